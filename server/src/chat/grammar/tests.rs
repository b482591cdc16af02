//! What the grammars accept, and that whoever reads the calls agrees.

use std::sync::{Arc, LazyLock};

use constraint::{Compiler, GrammarGuide, Guide, GuideState, Limits, Vocabulary};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::chat::{
    CustomFormat, Dialect, Tool, ToolCallEvent, ToolCallFormat, ToolCallParser, ToolInput,
};
use crate::demo;

const END: &str = "<|im_end|>";

struct Model {
    tokenizer: Arc<Tokenizer>,
    compiler: Compiler,
}

/// The demo's tokens.
static MODEL: LazyLock<Model> = LazyLock::new(|| {
    let json = demo::texts().tokenizer.unwrap();
    let tokenizer = Arc::new(Tokenizer::from_bytes(&json).unwrap());
    let pieces = |id| tokenizer.piece_for_grammars(id);
    let vocabulary = Vocabulary::new(2048, pieces, &[11, 2]);
    let limits = Limits {
        timeout: std::time::Duration::from_secs(20),
        ..Limits::default()
    };
    Model {
        compiler: Compiler::new(Arc::new(vocabulary), limits),
        tokenizer,
    }
});

fn ids(text: &str) -> Vec<u32> {
    MODEL.tokenizer.encode_special(text, false).unwrap()
}

fn function(name: &str, parameters: Value) -> Tool {
    Tool {
        name: name.into(),
        description: None,
        input: ToolInput::Function { parameters },
        strict: false,
    }
}

fn custom(name: &str, format: CustomFormat) -> Tool {
    Tool {
        input: ToolInput::Custom(format),
        ..function(name, json!({}))
    }
}

fn must_call(tools: Vec<Tool>) -> ToolSet {
    ToolSet {
        tools,
        choice: ToolChoice::Required,
        parallel: true,
        legacy: false,
    }
}

fn compiled(format: &ResponseFormat, tools: &ToolSet) -> GrammarGuide {
    written_in(Dialect::Tagged, format, tools)
}

fn written_in(dialect: Dialect, format: &ResponseFormat, tools: &ToolSet) -> GrammarGuide {
    let tags = CallTags::of(dialect, &MODEL.tokenizer);
    let answer = answer(format, tools, tags).unwrap();
    let answer = answer.expect("the answer is bound");
    let grammar = MODEL.compiler.compile(&answer.grammar);
    GrammarGuide {
        grammar: grammar.unwrap_or_else(|error| panic!("{error}\n{:#?}", answer.grammar)),
        trigger: answer.trigger,
    }
}

/// How much of `text` may be said before something else must be; all of it with its end is `None`.
fn stops(grammar: &GrammarGuide, text: &str) -> Option<String> {
    let guide = Guide {
        grammar: Some(grammar.clone()),
        ..Guide::new(Arc::clone(MODEL.compiler.vocabulary()))
    };
    let mut state = GuideState::new(&Arc::new(guide));
    let ids = MODEL
        .tokenizer
        .encode_special(&format!("{text}{END}"), false)
        .unwrap();
    for (i, id) in ids.iter().enumerate() {
        let mask = state.mask().unwrap();
        if mask.is_some_and(|mask| !mask.allows(*id)) {
            return Some(MODEL.tokenizer.decode(&ids[..i]));
        }
        state.advance(*id).unwrap();
    }
    None
}

/// `function` with parameters as they stand, as the model writes it.
fn call(function: &str, parameters: &[(&str, &str)]) -> String {
    let mut text = format!("<tool_call>\n<function={function}>\n");
    for (name, value) in parameters {
        for part in ["<parameter=", name, ">\n", value, "\n</parameter>\n"] {
            text += part;
        }
    }
    text + "</function>\n</tool_call>"
}

fn check_call(tools: &ToolSet, grammar: &GrammarGuide, accepted: bool, text: &str) {
    let stop = stops(grammar, text);
    assert_eq!(stop.is_none(), accepted, "{text}\n-- {stop:?}");
    if accepted {
        check_valid(tools, &ids(text));
    }
}

/// Whoever reads these calls finds arguments of the right schema.
fn check_valid(tools: &ToolSet, ids: &[u32]) {
    let calls = read(tools, ids);
    assert!(!calls.is_empty());
    for (name, arguments) in calls {
        let tool = tools.tools.iter().find(|tool| tool.name == name).unwrap();
        if let ToolInput::Function { parameters } = &tool.input {
            let arguments: Value = serde_json::from_str(&arguments).unwrap();
            let validator = jsonschema::options().build(parameters).unwrap();
            let errors: Vec<_> = validator.iter_errors(&arguments).collect();
            assert!(errors.is_empty(), "{arguments}\n{errors:?}");
        }
    }
}

/// The calls of an answer: names and arguments.
fn read(tools: &ToolSet, ids: &[u32]) -> Vec<(String, String)> {
    let format = ToolCallFormat::new(Dialect::Tagged, &MODEL.tokenizer, tools).unwrap();
    let mut parser = ToolCallParser::new(format);
    for &id in ids {
        let bytes = MODEL.tokenizer.bytes(None, id);
        parser.push(id, &bytes);
    }
    parser.finish(false);
    let mut calls: Vec<(String, String)> = Vec::new();
    for event in parser.take() {
        match event {
            ToolCallEvent::Start { name, .. } => calls.push((name, String::new())),
            ToolCallEvent::Arguments(more) => calls.last_mut().unwrap().1 += &more,
            ToolCallEvent::Text(_) | ToolCallEvent::Markup(_) => {}
        }
    }
    calls
}

#[test]
fn formats() {
    let check = |format: ResponseFormat, good: &[&str], bad: &[&str]| {
        let grammar = compiled(&format, &ToolSet::default());
        assert_eq!(grammar.trigger, None);
        for text in good {
            assert_eq!(stops(&grammar, text), None, "{format:?} {text}");
        }
        for text in bad {
            assert!(stops(&grammar, text).is_some(), "{format:?} {text}");
        }
    };
    check(
        ResponseFormat::JsonObject,
        &["{}", r#"{"a": [1, "x", null]}"#],
        &["[]", "5", "{", "x", r#"{"a": 1} "#, ""],
    );
    let schema = json!({"type": "object", "properties": {"a": {"type": "integer"}},
                        "required": ["a"], "additionalProperties": false});
    check(
        ResponseFormat::JsonSchema(schema),
        &[r#"{"a":5}"#, r#"{"a": 5}"#],
        &["{}", r#"{"a": "5"}"#, r#"{"a": 5, "b": 1}"#],
    );
}

#[test]
fn parameters_in_order() {
    let tools = must_call(vec![
        function(
            "get_weather",
            json!({"type": "object", "properties": {
                "city": {"type": "string"}, "days": {"type": "integer", "minimum": 1},
                "opts": {"type": "object"}, "b": {"type": "boolean"}},
                "required": ["city", "b"]}),
        ),
        function("now", json!({"type": "object", "properties": {}})),
    ]);
    let grammar = compiled(&ResponseFormat::Text, &tools);
    let check = |accepted, text: &str| check_call(&tools, &grammar, accepted, text);
    let paris = call("get_weather", &[("city", "Paris"), ("b", "true")]);
    check(true, &paris);
    check(true, &format!("{paris}\n"));
    check(true, &call("now", &[]));
    check(true, &format!("{paris}\n{}", call("now", &[])));
    check(
        true,
        &call(
            "get_weather",
            &[
                ("city", "a\nb\n"),
                ("days", "2"),
                ("opts", r#"{"a": [1, 2]}"#),
                ("b", "false"),
            ],
        ),
    );
    check(true, &call("get_weather", &[("city", ""), ("b", "true")]));
    check(false, &call("get_weather", &[("city", "Paris")]));
    check(
        false,
        &call("get_weather", &[("b", "true"), ("city", "Paris")]),
    );
    check(
        false,
        &call(
            "get_weather",
            &[("city", "x"), ("days", "0"), ("b", "true")],
        ),
    );
    check(false, &call("get_weather", &[("city", "x"), ("b", "yes")]));
    check(false, &call("now", &[("x", "y")]));
    check(false, &call("later", &[]));
    check(false, "Paris is sunny.");
    check(false, "");
    check(false, &format!("Well. {paris}"));
    check(false, &format!("{paris} Done."));
}

#[test]
fn choices_decide_how_many_and_which() {
    let tools = |choice, parallel| ToolSet {
        tools: vec![function("f", json!({})), function("g", json!({}))],
        choice,
        parallel,
        legacy: false,
    };
    let (f, g) = (call("f", &[]), call("g", &[]));
    let both = format!("{f}\n{g}");
    let check = |tools: ToolSet, trigger: bool, good: &[&str], bad: &[&str]| {
        let grammar = compiled(&ResponseFormat::Text, &tools);
        assert_eq!(grammar.trigger.is_some(), trigger, "{:?}", tools.choice);
        for text in good {
            assert_eq!(stops(&grammar, text), None, "{:?} {text}", tools.choice);
        }
        for text in bad {
            assert!(stops(&grammar, text).is_some(), "{:?} {text}", tools.choice);
        }
    };
    check(
        tools(ToolChoice::Required, true),
        false,
        &[&f, &g, &both],
        &["hi"],
    );
    check(
        tools(ToolChoice::Required, false),
        false,
        &[&f, &g],
        &["hi", &both],
    );
    check(
        tools(ToolChoice::Named(1), true),
        false,
        &[&g],
        &["hi", &f, &both],
    );
    let only = |required| ToolChoice::Allowed {
        required,
        tools: vec![0],
    };
    check(tools(only(true), true), false, &[&f], &["hi", &g]);
    let after = format!("Let me see.\n{f}");
    check(
        tools(only(false), true),
        true,
        &[&f, "hi", "", &after],
        &[&g],
    );
    let later = format!("{f} and so on");
    check(
        tools(ToolChoice::Auto, true),
        true,
        &[&f, &both, "hi", &after],
        &[&later],
    );
    check(tools(ToolChoice::Auto, false), true, &[&g, "hi"], &[&both]);
}

#[test]
fn a_format_or_calls() {
    let mut tools = must_call(vec![function("f", json!({}))]);
    tools.choice = ToolChoice::Auto;
    let grammar = compiled(&ResponseFormat::JsonObject, &tools);
    assert_eq!(stops(&grammar, r#"{"a": 1}"#), None);
    assert_eq!(stops(&grammar, &call("f", &[])), None);
    assert!(stops(&grammar, "hi").is_some());
    tools.choice = ToolChoice::None;
    assert!(
        stops(
            &compiled(&ResponseFormat::JsonObject, &tools),
            &call("f", &[])
        )
        .is_some()
    );
    tools.choice = ToolChoice::Required;
    assert!(stops(&compiled(&ResponseFormat::JsonObject, &tools), "{}").is_some());
}

/// A required parameter `x`.
fn one(schema: &Value) -> ToolSet {
    let definitions = json!({"Day": {"type": "string", "enum": ["mon", "tue"]},
                             "Tree": {"type": "object", "properties": {
                                 "v": {"type": "integer"},
                                 "next": {"$ref": "#/$defs/Tree"}}, "required": ["v"]}});
    must_call(vec![function(
        "f",
        json!({"type": "object", "properties": {"x": schema}, "required": ["x"], "$defs": definitions}),
    )])
}

#[test]
fn values_of_every_type() {
    let check = |schema: Value, good: &[&str], bad: &[&str]| {
        let tools = one(&schema);
        let grammar = compiled(&ResponseFormat::Text, &tools);
        for value in good {
            check_call(&tools, &grammar, true, &call("f", &[("x", value)]));
        }
        for value in bad {
            check_call(&tools, &grammar, false, &call("f", &[("x", value)]));
        }
    };
    check(
        json!({"type": "string", "enum": ["a", "b c", "1"]}),
        &["a", "b c", "1"],
        &["", "b", "\"a\""],
    );
    check(json!({"const": "only"}), &["only"], &["other"]);
    check(
        json!({"type": "string", "pattern": "^[a-z]+$"}),
        &["abc"],
        &["", "aB", "a\nb"],
    );
    check(
        json!({"type": "string", "pattern": "b"}),
        &["abc", "b"],
        &["ac"],
    );
    check(
        json!({"type": "string", "minLength": 2, "maxLength": 3}),
        &["ab", "äöü", "a\n\n"],
        &["a", "abcd"],
    );
    check(
        json!({"type": "string", "format": "date"}),
        &["2024-02-28"],
        &["2024-02-31", "today"],
    );
    check(
        json!({"type": "string", "format": "uri"}),
        &["https://example.org"],
        &[],
    );
    check(
        json!({"$ref": "#/$defs/Day"}),
        &["mon"],
        &["wed", "\"mon\""],
    );
    check(
        json!({"$ref": "#/$defs/Tree"}),
        &[r#"{"v": 1, "next": {"v": 2}}"#],
        &["{}", "x"],
    );
    check(
        json!({"type": "number", "exclusiveMinimum": 0}),
        &["0.5", "3"],
        &["0", "-1", "x"],
    );
    check(
        json!({"type": "array", "items": {"type": "string"}}),
        &["[]", r#"["a", "b"]"#],
        &["a", "[1]"],
    );
    check(
        json!({"type": ["string", "null"]}),
        &["text", "null", ""],
        &[],
    );
    check(
        json!({"anyOf": [{"$ref": "#/$defs/Day"}, {"type": "null"}]}),
        &["mon", "null"],
        &["nul", "x"],
    );
    check(
        json!({"anyOf": [{"type": "integer"}, {"type": "null"}], "default": null}),
        &["5", "null"],
        &["x"],
    );
    check(
        json!({"anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "string"}}]}),
        &["plain text", r#"["a"]"#],
        &["[1]", r#"["a""#],
    );
    check(
        json!({"type": ["string", "integer", "boolean"]}),
        &["text", "5", "-5", "true", "truely"],
        &["5 apples", "True"],
    );
    check(
        json!({"enum": ["a", 1, null, true]}),
        &["a", "1", "null", "true"],
        &["b", "2"],
    );
    check(json!({}), &["anything", "5", "{\"a\": 1}", "null"], &[]);
    check(json!(true), &["anything"], &[]);
}

#[test]
fn parameters_that_no_schema_names() {
    let tools = must_call(vec![function(
        "f",
        json!({"type": "object", "properties": {"a": {"type": "integer"}},
               "additionalProperties": {"type": "integer"}}),
    )]);
    let grammar = compiled(&ResponseFormat::Text, &tools);
    check_call(&tools, &grammar, true, &call("f", &[]));
    check_call(
        &tools,
        &grammar,
        true,
        &call("f", &[("a", "1"), ("b", "2"), ("ab", "3")]),
    );
    check_call(&tools, &grammar, false, &call("f", &[("b", "x")]));
    check_call(
        &tools,
        &grammar,
        false,
        &call("f", &[("b", "1"), ("a", "2")]),
    );
}

/// A model without sense, which only now and then thinks of closing what it opened.
fn babble(grammar: &GrammarGuide, seed: u64) -> Option<Vec<u32>> {
    const MAX_TOKENS: usize = 600;
    let guide = Guide {
        grammar: Some(grammar.clone()),
        ..Guide::new(Arc::clone(MODEL.compiler.vocabulary()))
    };
    let mut state = GuideState::new(&Arc::new(guide));
    let closers = [
        "\n</parameter>\n",
        "\"",
        "]",
        "}",
        "</function>\n</tool_call>",
    ]
    .map(ids);
    let end = MODEL.tokenizer.added_id(END).unwrap();
    let mut random = seed;
    let mut draw = |below: usize| {
        // Knuth's numbers; the high bits are good.
        random = random
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % below
    };
    let (mut said, mut plan) = (Vec::new(), Vec::new());
    while said.len() < MAX_TOKENS {
        let mask = state.mask().unwrap().expect("a grammar");
        if plan.is_empty() && draw(3) == 0 {
            plan = closers[draw(closers.len())].clone();
            plan.reverse();
        }
        let meant = plan.pop().filter(|id| mask.allows(*id));
        let id = meant.unwrap_or_else(|| {
            plan.clear();
            let allowed: Vec<u32> = mask.iter().collect();
            allowed[draw(allowed.len())]
        });
        if id == end || id == 2 {
            return Some(said);
        }
        said.push(id);
        state.advance(id).unwrap();
    }
    None
}

#[test]
fn whatever_stops_is_valid() {
    let agents = include_str!("../../../../tests/fixtures/agent_tools.json");
    let agents: Value = serde_json::from_str(agents).unwrap();
    let mut num_calls = 0;
    for tool in agents
        .as_object()
        .unwrap()
        .values()
        .flat_map(|tools| tools.as_array().unwrap())
    {
        let given = &tool["function"];
        let Some(name) = given["name"].as_str() else {
            continue;
        };
        let schema = given.get("parameters").cloned().unwrap_or(json!({}));
        let tools = must_call(vec![function(name, schema)]);
        let grammar = compiled(&ResponseFormat::Text, &tools);
        for seed in 0..12 {
            if let Some(ids) = babble(&grammar, seed) {
                num_calls += 1;
                check_valid(&tools, &ids);
            }
        }
    }
    assert!(num_calls > 50, "{num_calls} answers ended");
}

#[test]
fn calls_in_a_list() {
    let weather = json!({"type": "object", "properties": {"city": {"type": "string"}},
                         "required": ["city"], "additionalProperties": false});
    let tools = must_call(vec![
        function("now", json!({})),
        function("get_weather", weather),
        custom("grep", CustomFormat::Regex("[a-z]+".into())),
    ]);
    let grammar = written_in(Dialect::Listed, &ResponseFormat::Text, &tools);
    let check = |accepted: bool, calls: &str| {
        let text = format!("<TOOLCALL>{calls}</TOOLCALL>");
        assert_eq!(stops(&grammar, &text).is_none(), accepted, "{text}");
    };
    let now = r#"{"name": "now", "arguments": {}}"#;
    check(true, &format!("[{now}]"));
    check(
        true,
        r#"[{"name": "get_weather", "arguments": {"city": "Paris"}}]"#,
    );
    check(
        true,
        &format!(r#"[{now}, {{"name": "grep", "arguments": {{"input": "abc"}}}}]"#),
    );
    check(false, "[]");
    check(false, now);
    check(false, r#"[{"name": "later", "arguments": {}}]"#);
    check(false, r#"[{"name": "get_weather", "arguments": {}}]"#);
    check(
        false,
        r#"[{"name": "grep", "arguments": {"input": "a b"}}]"#,
    );
    let auto = ToolSet {
        choice: ToolChoice::Auto,
        ..tools
    };
    let tags = CallTags::of(Dialect::Listed, &MODEL.tokenizer);
    assert_eq!(tags.open, None, "this tokenizer spells the tag");
    assert_eq!(answer(&ResponseFormat::Text, &auto, tags), Ok(None));
}

#[test]
fn texts_of_custom_tools() {
    let check = |format: CustomFormat, good: &[&str], bad: &[&str]| {
        let tools = must_call(vec![custom("patch", format)]);
        let grammar = compiled(&ResponseFormat::Text, &tools);
        for input in good {
            let text = call("patch", &[("input", input)]);
            check_call(&tools, &grammar, true, &text);
            assert_eq!(read(&tools, &ids(&text))[0].1, *input);
        }
        for input in bad {
            check_call(&tools, &grammar, false, &call("patch", &[("input", input)]));
        }
    };
    check(
        CustomFormat::Text,
        &["", "any\ntext <b>", "</function>"],
        &[],
    );
    check(
        CustomFormat::Regex("[a-z]+/[0-9]{2}".into()),
        &["ab/12"],
        &["ab", " ab/12", "ab/123"],
    );
    let lark = "start: \"add\" WS NUMBER (\",\" NUMBER)*\nNUMBER: /[0-9]+/\nWS: / +/\n";
    check(
        CustomFormat::Lark(lark.into()),
        &["add 1", "add  1,22"],
        &["add", "add 1,", "sub 1"],
    );
}

#[test]
fn the_patch_grammar_of_an_agent() {
    let lark = r#"start: begin_patch hunk+ end_patch
begin_patch: "*** Begin Patch" LF
end_patch: "*** End Patch" LF?

hunk: add_hunk | delete_hunk | update_hunk
add_hunk: "*** Add File: " filename LF add_line+
delete_hunk: "*** Delete File: " filename LF
update_hunk: "*** Update File: " filename LF change_move? change?

filename: /(.+)/
add_line: "+" /(.*)/ LF -> line

change_move: "*** Move to: " filename LF
change: (change_context | change_line)+ eof_line?
change_context: ("@@" | "@@ " /(.+)/) LF
change_line: ("+" | "-" | " ") /(.*)/ LF
eof_line: "*** End of File" LF

%import common.LF
"#;
    let tools = must_call(vec![custom("apply_patch", CustomFormat::Lark(lark.into()))]);
    let grammar = compiled(&ResponseFormat::Text, &tools);
    let patch = "*** Begin Patch\n*** Update File: src/main.rs\n@@ fn main()\n-    old();\n+    \
                 new();\n*** Add File: x\n+one\n*** End Patch";
    let text = call("apply_patch", &[("input", patch)]);
    check_call(&tools, &grammar, true, &text);
    assert_eq!(
        read(&tools, &ids(&text)),
        [("apply_patch".to_owned(), patch.to_owned())]
    );
    check_call(
        &tools,
        &grammar,
        false,
        &call("apply_patch", &[("input", "*** Begin")]),
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    /// Whatever string the grammar lets through, the reader of calls reads back.
    #[test]
    fn strings_come_back(pieces in proptest::collection::vec(
        prop::sample::select(vec![
            "\n", "</parameter>", "<parameter=x>", "<parameter=y>", "<parameter=z>", "</function>",
            "<function=f>", "<", ">", "/", " ", "a", "é", "</param", "eter>", "null", "\"", "{",
        ]),
        0..9,
    )) {
        static TOOLS: LazyLock<(ToolSet, GrammarGuide)> = LazyLock::new(|| {
            let schema = json!({"type": "object", "required": ["x"], "properties": {
                "x": {"type": "string"}, "y": {"type": "string"}}});
            let tools = must_call(vec![function("f", schema)]);
            let grammar = compiled(&ResponseFormat::Text, &tools);
            (tools, grammar)
        });
        let (tools, grammar) = &*TOOLS;
        let value = pieces.concat();
        let text = call("f", &[("x", &value)]);
        if stops(grammar, &text).is_none() {
            let calls = read(tools, &ids(&text));
            prop_assert_eq!(calls.len(), 1);
            let arguments: Value = serde_json::from_str(&calls[0].1).unwrap();
            prop_assert_eq!(arguments, json!({"x": value}));
        } else {
            prop_assert!(value.contains("</") || value.contains("<parameter="), "{}", value);
        }
    }
}
