//! What models write, and what must come of it however it is cut into tokens and steps.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;
use crate::api::choice::{Choice, ChoiceOptions, Delta, Finish, TokenText};
use crate::chat::{CustomFormat, Dialect, ReasoningSplitter, Tool, ToolInput, ToolSet};
use crate::text::{StopStrings, Tokenizer, samples};
use scheduler::TokenLogprobs;

/// One output: text in which tags are tokens where the tokenizer has them and `§` turns that off
/// and on, the answer's text, and the calls.
type Case = (&'static str, &'static str, Calls);

/// Names and arguments.
type Calls = &'static [(&'static str, &'static str)];

const CASES: &[Case] = &[
    // Text without calls.
    ("plain", "plain", &[]),
    (" \n", " \n", &[]),
    ("a < b && c > d <", "a < b && c > d <", &[]),
    ("<function", "<function", &[]),
    ("<function=", "<function=", &[]),
    ("<function=get_weather", "<function=get_weather", &[]),
    (
        "say `<function=get_weather>`",
        "say `<function=get_weather>`",
        &[],
    ),
    (
        "not <function=get_weather> here",
        "not <function=get_weather> here",
        &[],
    ),
    (
        "<function=unknown>\n</function>",
        "<function=unknown>\n</function>",
        &[],
    ),
    ("<<function=now", "<<function=now", &[]),
    (
        "Like this:\n```\n<function=now>\n</function>\n```\nok",
        "Like this:\n```\n<function=now>\n</function>\n```\nok",
        &[],
    ),
    (
        "```\n§<tool_call>\n<function=now>\n</function>\n</tool_call>§\n```",
        "```\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n```",
        &[],
    ),
    ("`§<tool_call>§` opens", "`<tool_call>` opens", &[]),
    ("</parameter></function>", "</parameter></function>", &[]),
    ("<tool_call>\n</tool_call>", "", &[]),
    ("hi<tool_call></tool_call>", "hi", &[]),
    // One call.
    (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n</function>\n</tool_call>\n",
        "",
        &[("get_weather", r#"{"city":"Paris"}"#)],
    ),
    (
        "\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("get_weather", r#"{"city":"Paris","days":2}"#)],
    ),
    (
        "<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        &[("now", "{}")],
    ),
    (
        "<tool_call><function=now></function></tool_call>",
        "",
        &[("now", "{}")],
    ),
    (
        "<tool_call> <function= now ></function></tool_call>",
        "",
        &[("now", "{}")],
    ),
    (
        "Let me look.\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n",
        "Let me look.\n",
        &[("now", "{}")],
    ),
    (
        "  Let me < look.\n\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n \n",
        "  Let me < look.\n\n",
        &[("now", "{}")],
    ),
    (
        "<tool_call>\n<function=now>\n</function>\n</tool_call>\nDone, hello.\n",
        "\nDone, hello.\n",
        &[("now", "{}")],
    ),
    // Typed values.
    (
        "<tool_call>\n<function=get_weather>\n<parameter=opts>\n{\"a\": [1, 2], \"b\": {\"c\": null}}\n</parameter>\n<parameter=on>\nTrue\n</parameter>\n<parameter=ratio>\n1.50\n</parameter>\n<parameter=tags>\n[\"x\", \"y\"]\n</parameter>\n</function>\n</tool_call>",
        "",
        &[(
            "get_weather",
            r#"{"opts":{"a": [1, 2], "b": {"c": null}},"on":true,"ratio":1.50,"tags":["x", "y"]}"#,
        )],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=unit>\nNone\n</parameter>\n<parameter=day>\nnull\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("get_weather", r#"{"unit":null,"day":"null"}"#)],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=unit>\nNonesuch\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("get_weather", r#"{"unit":"Nonesuch"}"#)],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=unit>\nnul\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("get_weather", r#"{"unit":"nul"}"#)],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=days>\nsoon\n</parameter>\n<parameter=opts>\n{'a': 1}\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("get_weather", r#"{"days":"soon","opts":"{'a': 1}"}"#)],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\n5\n</parameter>\n<parameter=other>\n7\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("get_weather", r#"{"city":"5","other":"7"}"#)],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=opts>\n{\n  \"a\": \"<x>\\n</parameter\"\n}\n</parameter>\n</function>\n</tool_call>",
        "",
        &[(
            "get_weather",
            "{\"opts\":{\n  \"a\": \"<x>\\n</parameter\"\n}}",
        )],
    ),
    // Strings, exactly.
    (
        "<tool_call>\n<function=write>\n<parameter=text>\n\n\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("write", r#"{"text":"\n"}"#)],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text>\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("write", r#"{"text":""}"#)],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text></parameter>\n</function>\n</tool_call>",
        "",
        &[("write", r#"{"text":""}"#)],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text>  a  </parameter></function></tool_call>",
        "",
        &[("write", r#"{"text":"  a  "}"#)],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text>\n\n a\r\n\tb\n\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("write", r#"{"text":"\n a\r\n\tb\n"}"#)],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text>\nsay \"hi\" \\ 'there' \u{1} \u{7f}\n</parameter>\n</function>\n</tool_call>",
        "",
        &[(
            "write",
            "{\"text\":\"say \\\"hi\\\" \\\\ 'there' \\u0001 \u{7f}\"}",
        )],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text>\nnaïve 😀 日本語 \u{2028} e\u{301}\n</parameter>\n<parameter=path>\n/tmp/é\n</parameter>\n</function>\n</tool_call>",
        "",
        &[(
            "write",
            "{\"text\":\"naïve 😀 日本語 \u{2028} e\u{301}\",\"path\":\"/tmp/é\"}",
        )],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text>\nif a < b:\n  <b>x</b>\n<\n</\n\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("write", r#"{"text":"if a < b:\n  <b>x</b>\n<\n</\n"}"#)],
    ),
    // Quoted tags in values.
    (
        "<tool_call>\n<function=write>\n<parameter=text>\na </parameter> b\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("write", r#"{"text":"a </parameter> b"}"#)],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text>\na </function> b <function=now> c\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("write", r#"{"text":"a </function> b <function=now> c"}"#)],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text>\nx <parameter=city> y\n<parameter=city>\nz\n</parameter>\n</function>\n</tool_call>",
        "",
        &[(
            "write",
            r#"{"text":"x <parameter=city> y\n<parameter=city>\nz"}"#,
        )],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text>\n§<tool_call>§ and §</tool_call>§ x\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("write", r#"{"text":"<tool_call> and </tool_call> x"}"#)],
    ),
    (
        "<tool_call>\n<function=write>\n<parameter=text>\n<think>no</think>\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("write", r#"{"text":"<think>no</think>"}"#)],
    ),
    // Several calls.
    (
        "<tool_call>\n<function=now>\n</function>\n</tool_call>\n<tool_call>\n<function=get_weather>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>\n",
        "",
        &[("now", "{}"), ("get_weather", r#"{"city":"Rome"}"#)],
    ),
    (
        "Both:\n<tool_call>\n<function=now>\n</function>\n</tool_call><tool_call><function=now></function></tool_call>",
        "Both:\n",
        &[("now", "{}"), ("now", "{}")],
    ),
    (
        "<tool_call>\n<function=now>\n</function>\n<function=now>\n</function>\n</tool_call>",
        "",
        &[("now", "{}"), ("now", "{}")],
    ),
    (
        "<tool_call>\n<function=now>\n</function>\n</tool_call> and <tool_call>\n<function=now>\n</function>\n</tool_call>",
        " and ",
        &[("now", "{}"), ("now", "{}")],
    ),
    // What is missing.
    (
        "<function=now>\n</function>\n</tool_call>",
        "",
        &[("now", "{}")],
    ),
    ("<function=now></function>", "", &[("now", "{}")]),
    (
        "Sure.\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\n",
        "Sure.\n",
        &[("get_weather", r#"{"city":"Oslo"}"#)],
    ),
    (
        "<function=now>\n</function>\n<function=now>\n</function>",
        "",
        &[("now", "{}"), ("now", "{}")],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n<parameter=days>\n3\n</function>\n</tool_call>",
        "",
        &[("get_weather", r#"{"city":"Oslo","days":3}"#)],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=city>Oslo<parameter=days>3</function></tool_call>",
        "",
        &[("get_weather", r#"{"city":"Oslo","days":3}"#)],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</tool_call>\n<tool_call>\n<function=now>\n</tool_call>",
        "",
        &[("get_weather", r#"{"city":"Oslo"}"#), ("now", "{}")],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</tool_call>",
        "",
        &[("get_weather", r#"{"city":"Oslo"}"#)],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=days>\n12",
        "",
        &[("get_weather", r#"{"days":12}"#)],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n</function>\nThat was it.",
        "\nThat was it.",
        &[("get_weather", r#"{"city":"Oslo"}"#)],
    ),
    (
        "<tool_call>\n<function=now>\n<tool_call>\n<function=now>\n</function>\n</tool_call>",
        "",
        &[("now", "{}"), ("now", "{}")],
    ),
    // What is too much.
    (
        "<tool_call>\n<function=get_weather>\nnoise <b>\n<parameter=city>\nOslo\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("get_weather", r#"{"city":"Oslo"}"#)],
    ),
    (
        "<tool_call>\n<function=get_weather>\n<parameter=city>\nOslo\n</parameter>\n<parameter=city>\nRome\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("get_weather", r#"{"city":"Oslo"}"#)],
    ),
    (
        "<tool_call>\n<tool_call>\n<function=now>\n</function>\n</tool_call>\n</tool_call>",
        "",
        &[("now", "{}")],
    ),
    ("<tool_call>\nno call", "\nno call", &[]),
    (
        "<tool_call><function=></function>",
        "<function=></function>",
        &[],
    ),
    (
        "<tool_call>\n<function=not_offered>\n<parameter=x>\n1\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("not_offered", r#"{"x":"1"}"#)],
    ),
    // Custom tools.
    (
        "<tool_call>\n<function=patch>\n<parameter=input>\n*** \"Begin\" <a>\n\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("patch", "*** \"Begin\" <a>\n")],
    ),
    (
        "<tool_call>\n<function=patch>\n<parameter=input>\na\n<parameter=city>\nb\n</parameter>\n</function>\n</tool_call>",
        "",
        &[("patch", "a\n<parameter=city>\nb")],
    ),
];

/// The same for Nano v2, where tags are spelled.
const LISTED: &[Case] = &[
    ("plain < text", "plain < text", &[]),
    ("<TOOLCALL", "<TOOLCALL", &[]),
    ("<TOOLCALL> is a tag", "<TOOLCALL> is a tag", &[]),
    (
        "`<TOOLCALL>[{\"name\": \"now\"}]`",
        "`<TOOLCALL>[{\"name\": \"now\"}]`",
        &[],
    ),
    ("<TOOLCALL>[]</TOOLCALL>", "", &[]),
    ("<TOOLCALL>[1]", "<TOOLCALL>[1]", &[]),
    (
        "<TOOLCALL>[{\"x\": 1}]</TOOLCALL>",
        "<TOOLCALL>[{\"x\": 1}]</TOOLCALL>",
        &[],
    ),
    (
        "<function=now></function>",
        "<function=now></function>",
        &[],
    ),
    (
        "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Paris\", \"days\": 2}}]</TOOLCALL>",
        "",
        &[("get_weather", r#"{"city":"Paris","days":2}"#)],
    ),
    (
        "Sure.\n<TOOLCALL>[{\"name\": \"now\", \"arguments\": {}}, {\"name\": \"now\"}]</TOOLCALL>\n",
        "Sure.\n",
        &[("now", "{}"), ("now", "{}")],
    ),
    (
        "<TOOLCALL>[ { \"arguments\" : { \"city\" : \"Rome\" } , \"name\" : \"get_weather\" } ]\n</TOOLCALL>",
        "",
        &[("get_weather", r#"{"city":"Rome"}"#)],
    ),
    (
        "<TOOLCALL>{\"name\": \"now\", \"arguments\": {}}</TOOLCALL>",
        "",
        &[("now", "{}")],
    ),
    (
        "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": \"{\\\"city\\\": \\\"Rome\\\"}\"}]</TOOLCALL>",
        "",
        &[("get_weather", r#"{"city":"Rome"}"#)],
    ),
    (
        "<TOOLCALL>[{\"id\": 7, \"name\": \"write\", \"arguments\": {\"text\": \"a </TOOLCALL> \\\"b\\\" é😀 \\u00e9\\n\", \"path\": null}}]</TOOLCALL>",
        "",
        &[(
            "write",
            "{\"text\":\"a </TOOLCALL> \\\"b\\\" é😀 \\u00e9\\n\",\"path\":null}",
        )],
    ),
    (
        "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"opts\": {\"a\": [1, {}, [true, 2.5e3]]}}}]</TOOLCALL>",
        "",
        &[("get_weather", r#"{"opts":{"a":[1,{},[true,2.5e3]]}}"#)],
    ),
    (
        "<TOOLCALL>[{\"name\": \"patch\", \"arguments\": {\"input\": \"a\\n\\\"b\\\"\"}}]</TOOLCALL>",
        "",
        &[("patch", "a\n\"b\"")],
    ),
    (
        "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}</TOOLCALL>",
        "",
        &[("get_weather", r#"{"city":"Oslo"}"#)],
    ),
    (
        "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"}}]",
        "",
        &[("get_weather", r#"{"city":"Oslo"}"#)],
    ),
    (
        "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\"",
        "",
        &[("get_weather", r#"{"city":"Oslo"}"#)],
    ),
    (
        "<TOOLCALL>[{\"name\": \"get_weather\", \"arguments\": {\"city\": \"Oslo\", days}}]</TOOLCALL> ok",
        " ok",
        &[("get_weather", r#"{"city":"Oslo"}"#)],
    ),
    (
        "<TOOLCALL>[{\"name\": \"now\"}]</TOOLCALL>\n<TOOLCALL>[{\"name\": \"unknown\", \"arguments\": {\"x\": [\n1]}}]</TOOLCALL>",
        "",
        &[("now", "{}"), ("unknown", r#"{"x":[1]}"#)],
    ),
];

pub(super) fn tools() -> ToolSet {
    let function = |name: &str, properties: Value| Tool {
        name: name.into(),
        description: None,
        input: ToolInput::Function {
            parameters: json!({"type": "object", "properties": properties}),
        },
        strict: false,
    };
    ToolSet {
        tools: vec![
            function(
                "get_weather",
                json!({
                    "city": {"type": "string"}, "days": {"type": "integer"},
                    "opts": {"type": "object"}, "on": {"type": "boolean"},
                    "ratio": {"type": "number"}, "tags": {"type": "array"},
                    "unit": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "day": {"type": "string"},
                }),
            ),
            function("now", json!({})),
            function(
                "write",
                json!({"path": {"type": "string"}, "text": {"type": "string"}}),
            ),
            Tool {
                name: "patch".into(),
                description: None,
                input: ToolInput::Custom(CustomFormat::Text),
                strict: false,
            },
        ],
        parallel: true,
        ..ToolSet::default()
    }
}

/// Tags are tokens except between `§`.
pub(super) fn encode(tokenizer: &Tokenizer, text: &str) -> Vec<u32> {
    let parts = text.split('§').enumerate();
    let encoded = parts.map(|(i, part)| {
        if i % 2 == 0 && !tokenizer.added().is_empty() {
            tokenizer.encode_special(part, false).unwrap()
        } else {
            tokenizer.encode(part, false).unwrap()
        }
    });
    encoded.flatten().collect()
}

/// Every byte as a token of its own.
pub(super) fn split_bytes(tokenizer: &Tokenizer, ids: &[u32]) -> Vec<u32> {
    let by_byte: HashMap<u8, u32> = (16..272)
        .map(|id| (tokenizer.bytes(None, id)[0], id))
        .collect();
    let split = |id: &u32| match &*tokenizer.bytes(None, *id) {
        [] => vec![*id],
        bytes => bytes.iter().map(|byte| by_byte[byte]).collect(),
    };
    ids.iter().flat_map(split).collect()
}

fn choice(tokenizer: &Arc<Tokenizer>, dialect: Dialect, tools: &ToolSet, thinking: bool) -> Choice {
    let options = ChoiceOptions {
        tokenizer: Some(Arc::clone(tokenizer)),
        stop: StopStrings::default(),
        min_tokens: 0,
        logprobs: true,
        force_nonempty_content: false,
        calls: ToolCallFormat::new(dialect, tokenizer, tools),
    };
    let splitter = ReasoningSplitter::new(tokenizer, thinking, true);
    Choice::new(options, &[], Some(splitter))
}

/// Runs a choice, taking what is new where `take` says, and joins it.
fn run(mut choice: Choice, ids: &[u32], finish: Finish, take: &dyn Fn(usize) -> bool) -> Delta {
    let mut whole = Delta::default();
    for (i, &id) in ids.iter().enumerate() {
        let score = TokenLogprobs {
            token: id,
            logprob: -1.0,
            top: Vec::new(),
        };
        if choice.push(id, Some(&score), false) {
            break;
        }
        if take(i) {
            join(&mut whole, choice.take());
        }
    }
    if !choice.is_finished() {
        choice.finish(finish);
    }
    join(&mut whole, choice.take());
    whole
}

/// As a client adds deltas up.
pub(super) fn join(whole: &mut Delta, delta: Delta) {
    whole.reasoning.push_str(&delta.reasoning);
    whole.content.push_str(&delta.content);
    whole.entries.extend(delta.entries);
    whole.token_ids.extend(delta.token_ids);
    whole.finish = whole.finish.or(delta.finish);
    whole.stop_string = whole.stop_string.take().or(delta.stop_string);
    for call in delta.calls {
        if let Some(start) = &call.start {
            assert_eq!(call.index, whole.calls.len(), "calls begin in order");
            assert!(start.id.starts_with("call_"));
            whole.calls.push(call);
        } else {
            assert_eq!(call.index + 1, whole.calls.len(), "the last call goes on");
            let last = whole.calls.last_mut().expect("it began");
            last.arguments.push_str(&call.arguments);
        }
    }
}

fn calls(delta: &Delta) -> Vec<(&str, &str)> {
    let named = delta.calls.iter().map(|call| {
        let start = call.start.as_ref().expect("whole calls begin");
        (&*start.name, &*call.arguments)
    });
    named.collect()
}

/// The text that log-probabilities cover.
pub(super) fn text_of(delta: &Delta) -> String {
    let bytes: Vec<u8> = delta
        .entries
        .iter()
        .flat_map(|entry| match &entry.token {
            TokenText::Bytes(bytes) => bytes.as_slice(),
            TokenText::Control(_) => &[],
        })
        .copied()
        .collect();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Tokenizers with tags as tokens and without, each with merged tokens and byte by byte.
fn encodings(text: &str) -> Vec<(Arc<Tokenizer>, Vec<u32>)> {
    let mut all = Vec::new();
    for tokenizer in [samples::byte_level(), samples::byte_level_bare()] {
        let tokenizer = Arc::new(tokenizer);
        let ids = encode(&tokenizer, text);
        let bytes = split_bytes(&tokenizer, &ids);
        all.push((Arc::clone(&tokenizer), ids));
        all.push((tokenizer, bytes));
    }
    all
}

/// Whether a case holds where tags are spelled: quoting cannot be told from meaning there, and
/// structure has letters.
fn holds_spelled(text: &str, content: &str) -> bool {
    let noise = [
        "<tool_call>\nno",
        "<tool_call><function=>",
        "<tool_call>\n<tool_call>",
        "<tool_call>\n</tool_call>",
        "<tool_call></tool_call>",
    ];
    let quoted = text.contains("§") && !text.contains('`');
    !quoted && !noise.iter().any(|noise| text.contains(noise)) && !content.contains("and <tool")
}

fn cases() -> impl Iterator<Item = (Dialect, &'static str, &'static str, Calls)> {
    let of =
        |dialect| move |&(text, content, calls): &'static Case| (dialect, text, content, calls);
    let tagged = CASES.iter().map(of(Dialect::Tagged));
    tagged.chain(LISTED.iter().map(of(Dialect::Listed)))
}

#[test]
fn outputs_become_what_they_mean() {
    assert!(CASES.len() >= 60 && LISTED.len() >= 20);
    let mut wrong = Vec::new();
    for (dialect, text, content, expect) in cases() {
        for (tokenizer, ids) in encodings(text) {
            let spelled = tokenizer.added().is_empty();
            if spelled && dialect == Dialect::Tagged && !holds_spelled(text, content) {
                continue;
            }
            let make = || choice(&tokenizer, dialect, &tools(), false);
            let whole = run(make(), &ids, Finish::Stop, &|_| false);
            if (&*whole.content, calls(&whole)) != (content, expect.to_vec()) {
                let found = (&whole.content, calls(&whole));
                wrong.push(format!("{text:?} ({} tokens): {found:?}", ids.len()));
                continue;
            }
            assert_eq!(text_of(&whole), whole.content, "{text:?}");
            let finish = if expect.is_empty() {
                Finish::Stop
            } else {
                Finish::ToolCalls
            };
            assert_eq!(whole.finish, Some(finish), "{text:?}");
            for every in 1..=ids.len().min(7) {
                let streamed = run(make(), &ids, Finish::Stop, &|i| i % every == 0);
                assert_eq!(calls(&streamed), calls(&whole), "{text:?}");
                assert_eq!(streamed.content, whole.content, "{text:?}");
                assert_eq!(streamed.entries, whole.entries, "{text:?}");
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn outputs_cut_anywhere_lose_and_invent_nothing() {
    for (dialect, text, ..) in cases() {
        for (tokenizer, ids) in encodings(text) {
            let make = || choice(&tokenizer, dialect, &tools(), false);
            let full = run(make(), &ids, Finish::Length, &|_| false);
            for len in 0..ids.len() {
                let cut = run(make(), &ids[..len], Finish::Length, &|i| i % 3 == 0);
                assert_eq!(cut.finish, Some(Finish::Length));
                assert_eq!(text_of(&cut), cut.content, "{text:?}");
                check_cut(&cut, &full, &format!("{text:?} after {len} tokens"));
            }
        }
    }
}

#[test]
fn calls_in_thoughts_are_thoughts() {
    let quoted = "I could write\n§<tool_call>§\n<function=now>\n</function>\n§</tool_call>§ or\n\
                  <TOOLCALL>[{\"name\": \"now\"}]</TOOLCALL>";
    let called = "<tool_call>\n<function=now>\n</function>\n</tool_call>";
    let check = |text: &str, spelled: bool, expect: (&str, &str, usize)| {
        for (tokenizer, ids) in encodings(text) {
            if tokenizer.added().is_empty() && !spelled {
                continue;
            }
            let make = || choice(&tokenizer, Dialect::Tagged, &tools(), true);
            for every in [1, usize::MAX] {
                let found = run(make(), &ids, Finish::Stop, &|i| i % every == 0);
                let found = (&*found.reasoning, &*found.content, found.calls.len());
                assert_eq!(found, expect, "{text:?}");
            }
        }
    };
    let plain = &*quoted.replace('§', "");
    check(&format!("{quoted}\n</think>\nok"), true, (plain, "ok", 0));
    check(
        &format!("{quoted}</think>\n\n{called}\n"),
        true,
        (plain, "", 1),
    );
    check(&format!("{quoted}\n"), true, (plain, "", 0));
    // A call ends a thought that nothing closed, where it is told from a quotation.
    check(&format!("hm\n{called}"), false, ("hm", "", 1));
}

/// What a cut output says is what the full one says, as far as it goes.
fn check_cut(cut: &Delta, full: &Delta, what: &str) {
    // What may have become a tag is text once the output is over.
    let known = cut.content.rfind(['<', '\u{fffd}']);
    let known = &cut.content[..known.unwrap_or(cut.content.len())];
    let same = known.trim().is_empty() || full.content.starts_with(known);
    assert!(same, "{what}: {known:?}");
    assert!(cut.calls.len() <= full.calls.len(), "{what}: invented");
    for (call, expect) in cut.calls.iter().zip(&full.calls) {
        let (start, end) = (call.start.as_ref().unwrap(), expect.start.as_ref().unwrap());
        assert_eq!(start.name, end.name, "{what}");
        if call.custom {
            let known = call.arguments.trim_end_matches('\u{fffd}');
            assert!(expect.arguments.starts_with(known), "{what}: {known:?}");
            continue;
        }
        let parse = |text: &str| match serde_json::from_str(text) {
            Ok(map @ Value::Object(_)) => map,
            other => panic!("{what}: {text:?} is {other:?}"),
        };
        let (found, expect) = (parse(&call.arguments), parse(&expect.arguments));
        assert!(is_part(&found, &expect), "{what}: {found:?} of {expect:?}");
    }
}

/// Whether a closed value is what there was of the whole one: strings may be cut, numbers not.
fn is_part(part: &Value, whole: &Value) -> bool {
    match (part, whole) {
        (Value::String(part), Value::String(whole)) => {
            whole.starts_with(part.trim_end_matches('\u{fffd}'))
        }
        (Value::Array(part), Value::Array(whole)) => {
            part.len() <= whole.len() && part.iter().zip(whole).all(|(a, b)| is_part(a, b))
        }
        (Value::Object(part), Value::Object(whole)) => part
            .iter()
            .all(|(key, value)| whole.get(key).is_some_and(|whole| is_part(value, whole))),
        _ => part == whole,
    }
}
