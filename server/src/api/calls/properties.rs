//! What must hold for any output, however it is made of tokens and cut into steps.

use std::sync::LazyLock;

use proptest::prelude::*;
use scheduler::TokenLogprobs;
use serde_json::Value;

use super::corpus::{encode, join, split_bytes, text_of, tools};
use super::*;
use crate::api::choice::{Choice, ChoiceOptions, Delta, Finish};
use crate::chat::{Dialect, ReasoningSplitter};
use crate::text::{StopStrings, Tokenizer, samples};

/// Words of both dialects and things like them.
const WORDS: &[&str] = &[
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "get_weather",
    "now",
    "patch",
    ">",
    "</function>",
    "<parameter=",
    "city",
    "days",
    "opts",
    "unit",
    "input",
    "</parameter>",
    "\n",
    " ",
    "hello",
    "<",
    "</",
    "12",
    "-1.5",
    "null",
    "None",
    "{\"a\": [1]}",
    "\"",
    "\\",
    "é",
    "😀",
    "```",
    "`",
    "<think>",
    "</think>",
    "§<tool_call>§",
    "§</tool_call>§",
    "<TOOLCALL>",
    "</TOOLCALL>",
    "[",
    "]",
    "{\"name\": \"",
    "\", \"arguments\": {",
    "}",
    ":",
    ",",
    "\\u00e9",
    "\\ud83d",
    "<tool_call>\n<function=get_weather>\n<parameter=city>\n",
    "\n</parameter>\n</function>\n</tool_call>",
    "<TOOLCALL>[{\"name\": \"now\", \"arguments\": {\"x\": \"",
    "\"}}]</TOOLCALL>",
];

static TAGGED: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(samples::byte_level()));
static BARE: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| Arc::new(samples::byte_level_bare()));

#[derive(Clone, Debug)]
#[expect(clippy::struct_excessive_bools, reason = "each is drawn by itself")]
struct Output {
    words: Vec<&'static str>,
    /// After how many tokens of these it ends.
    len: usize,
    /// Where a client takes what is new.
    takes: Vec<bool>,
    stops: Vec<String>,
    min_tokens: u32,
    dialect: Dialect,
    /// Tags are tokens, letters are not merged.
    with_tags: bool,
    by_bytes: bool,
    thinking: bool,
    parallel: bool,
    force: bool,
    cut: bool,
}

fn output() -> impl Strategy<Value = Output> {
    let words = prop::collection::vec(prop::sample::select(WORDS), 0..24);
    let stops = prop::collection::vec("[<>a-e\n \"1]{1,3}", 0..2);
    let takes = prop::collection::vec(any::<bool>(), 64);
    let flags = prop::array::uniform7(any::<bool>());
    let shape = (words, 0usize..400, takes, stops, 0u32..12, flags);
    shape.prop_map(|(words, len, takes, stops, min_tokens, flags)| {
        let [nano, with_tags, by_bytes, thinking, parallel, force, cut] = flags;
        Output {
            words,
            len,
            takes,
            stops,
            min_tokens,
            dialect: if nano {
                Dialect::Listed
            } else {
                Dialect::Tagged
            },
            with_tags,
            by_bytes,
            thinking,
            parallel,
            force,
            cut,
        }
    })
}

/// Runs it, taking what is new where `takes` says.
fn run(output: &Output, takes: &[bool]) -> (Delta, u64, u64) {
    let tokenizer = if output.with_tags { &*TAGGED } else { &*BARE };
    let mut set = tools();
    set.parallel = output.parallel;
    let options = ChoiceOptions {
        tokenizer: Some(Arc::clone(tokenizer)),
        stop: StopStrings::new(&output.stops),
        min_tokens: output.min_tokens,
        logprobs: true,
        force_nonempty_content: output.force,
        calls: ToolCallFormat::new(output.dialect, tokenizer, &set),
    };
    let splitter = ReasoningSplitter::new(tokenizer, output.thinking, true);
    let mut choice = Choice::new(options, &[], Some(splitter));
    let mut ids = encode(tokenizer, &output.words.concat());
    if output.by_bytes {
        ids = split_bytes(tokenizer, &ids);
    }
    ids.truncate(output.len);
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
        if takes.get(i % 64) == Some(&true) {
            join(&mut whole, choice.take());
        }
    }
    if !choice.is_finished() {
        choice.finish(if output.cut {
            Finish::Length
        } else {
            Finish::Stop
        });
    }
    join(&mut whole, choice.take());
    (whole, choice.num_tokens(), choice.num_reasoning_tokens())
}

/// Ids of calls are drawn anew each time.
fn without_ids(mut delta: Delta) -> Delta {
    for start in delta
        .calls
        .iter_mut()
        .filter_map(|call| call.start.as_mut())
    {
        start.id.clear();
    }
    delta
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(4096))]

    #[test]
    fn streams_add_up_to_the_answer(output in output()) {
        let (whole, num_tokens, num_thoughts) = run(&output, &[]);
        let (streamed, num_streamed, num_streamed_thoughts) = run(&output, &output.takes);
        prop_assert_eq!((num_tokens, num_thoughts), (num_streamed, num_streamed_thoughts));
        prop_assert_eq!(without_ids(streamed), without_ids(whole.clone()));
        prop_assert_eq!(whole.token_ids.len() as u64, num_tokens);
        if !output.force {
            prop_assert_eq!(text_of(&whole), whole.content.clone());
        }
        for call in &whole.calls {
            let arguments = serde_json::from_str::<Value>(&call.arguments);
            prop_assert!(call.custom || arguments.is_ok(), "{:?}", call.arguments);
        }
        let called = !whole.calls.is_empty();
        prop_assert!(output.parallel || whole.calls.len() <= 1);
        match whole.finish {
            Some(Finish::ToolCalls) => prop_assert!(called),
            Some(Finish::Stop) => prop_assert!(!called),
            finish => prop_assert!(finish == Some(Finish::Length) && output.cut),
        }
        for stop in &output.stops {
            let found = output.min_tokens == 0 && !output.force && whole.content.contains(stop);
            prop_assert!(!found, "{stop:?} in {:?}", whole.content);
        }
        if let Some(stop) = &whole.stop_string {
            prop_assert!(output.stops.contains(stop));
        }
        // Blanks beside calls are markup, unless a stop string took the text behind them.
        let blank = whole.content.trim().is_empty() && !whole.content.is_empty();
        prop_assert!(!called || !blank || whole.stop_string.is_some());
    }
}
