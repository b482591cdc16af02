//! Texts that grammars let through and texts that they do not, one line each.

mod common;

use std::sync::Arc;

use common::{accepts, compile_schema, compiler, vocabulary};
use constraint::{Compiled, Compiler, Grammar, GrammarError, Limits};
use serde_json::{Value, json};

#[track_caller]
fn check(grammar: &Arc<Compiled>, good: &[&str], bad: &[&str]) {
    for text in good {
        assert!(accepts(grammar, text), "{text:?} is refused");
    }
    for text in bad {
        assert!(!accepts(grammar, text), "{text:?} is let through");
    }
}

#[track_caller]
fn lark(text: &str, good: &[&str], bad: &[&str]) {
    let grammar = compiler().compile(&Grammar::Lark(text.into()));
    check(
        &grammar.unwrap_or_else(|error| panic!("{text}: {error}")),
        good,
        bad,
    );
}

#[track_caller]
fn regex(text: &str, good: &[&str], bad: &[&str]) {
    let grammar = compiler().compile(&Grammar::Regex(text.into()));
    check(
        &grammar.unwrap_or_else(|error| panic!("{text}: {error}")),
        good,
        bad,
    );
}

#[track_caller]
fn schema(schema: &Value, good: &[&str], bad: &[&str]) {
    let grammar = compile_schema(schema);
    check(
        &grammar.unwrap_or_else(|error| panic!("{schema}: {error}")),
        good,
        bad,
    );
}

#[test]
fn regexes_are_anchored() {
    regex("[a-c]+", &["a", "abc"], &["", "abcd", "xa", "a "]);
    regex("^a|b$", &["a", "b"], &["ab", "xb"]);
    regex("(?i)yes", &["yes", "YES", "yEs"], &["no"]);
    regex(r"\d{2,3}", &["12", "123"], &["1", "1234"]);
    regex("é{2}", &["éé"], &["é", "ee"]);
    regex("a?", &["", "a"], &["aa"]);
    regex("a/b", &["a/b"], &["ab"]);
    for wrong in ["(", "a{3,1}", "(?=a)b", r"(a)\1", "[z-a]"] {
        let error = compiler().compile(&Grammar::Regex(wrong.into()));
        assert!(error.is_err(), "{wrong} was compiled");
    }
}

#[test]
fn lark_as_the_contract_has_it() {
    lark(
        "start: a | B\na: \"x\"\nB: \"y\"+",
        &["x", "y", "yyy"],
        &["", "xy"],
    );
    lark(
        "start: \"a\"? \"b\"* \"c\"+",
        &["c", "abbc", "cc"],
        &["", "ab"],
    );
    lark(
        "start: \"a\"~2..3 \"b\"~2",
        &["aabb", "aaabb"],
        &["abb", "aaaabb", "aab"],
    );
    lark(
        "start: (\"a\" | \"b\" \"c\")+ [\"d\"]",
        &["a", "bca", "ad"],
        &["b", "d"],
    );
    lark("start: \"yes\"i", &["yes", "YeS"], &["no"]);
    lark("start: /[0-9]+/ \"-\" /x/i", &["12-X", "1-x"], &["-x"]);
    lark("start: \"a\"..\"c\"", &["a", "b", "c"], &["d"]);
    lark(
        "start: \"a\" \"b\"\n%ignore \" \"",
        &["ab", "a b"],
        &["a-b", "b"],
    );
    lark(
        "%import common.INT\n%import common.WS\nstart: sum\nsum: INT (\"+\" sum)?\n%ignore WS",
        &["1", "1+2", "1 + 22"],
        &["+", "1+"],
    );
    lark(
        "start: expr\nexpr: term | expr \"+\" term\nterm: NUMBER | \"(\" expr \")\"\n%import common.NUMBER",
        &["1", "1+(2.5+3)"],
        &["1+", "(1"],
    );
    for wrong in [
        "",
        "start: missing",
        "start: \"a",
        "a: \"b\"",
        "start: <think>",
        "start: /(/",
    ] {
        let error = compiler().compile(&Grammar::Lark(wrong.into()));
        assert!(
            matches!(error, Err(GrammarError::Malformed { .. })),
            "{wrong}: {error:?}"
        );
    }
}

#[test]
fn json_is_compact() {
    let object = json!({"type": "object", "properties": {"a": {"type": "array", "items": {"type": "integer"}},
        "b": {"type": "null"}}, "required": ["a", "b"], "additionalProperties": false});
    schema(
        &object,
        &[
            r#"{"a":[1,2],"b":null}"#,
            r#"{"a": [1, 2], "b": null}"#,
            r#"{"a":[],"b":null}"#,
        ],
        &[
            r#"{"b":null,"a":[1]}"#,
            r#"{ "a":[],"b":null}"#,
            r#"{"a":  [],"b":null}"#,
            "{\"a\":\n[],\"b\":null}",
            r#"{"a":[] ,"b":null}"#,
            r#"{"a":[],"b":null} "#,
            r#" {"a":[],"b":null}"#,
        ],
    );
}

#[test]
fn a_key_has_one_spelling() {
    let open = json!({"properties": {"a": {"type": "integer"}}, "type": "object"});
    schema(
        &open,
        &[r#"{"a":1}"#, r#"{"b":"x"}"#, r#"{"a":1,"a b":"x"}"#],
        &[
            r#"{"a":"x"}"#,
            r#"{"\u0061":"x"}"#,
            r#"{"a":1,"a":"x"}"#,
            r#"{"b":1,"a":"x"}"#,
        ],
    );
}

#[test]
fn parts_of_a_composition() {
    let composed = Grammar::Composed {
        root: "start: <tool_call> \"x=\" @value \"\\n\" @word </tool_call>".into(),
        parts: vec![
            (
                "value".into(),
                Grammar::JsonSchema(r#"{"type":"integer"}"#.into()),
            ),
            ("word".into(), Grammar::Lark("start: /[a-z]+/".into())),
        ],
    };
    let grammar = compiler().compile(&composed).expect("it is sound");
    assert!(grammar.can_start_with(14) && !grammar.can_start_with(15));
    // A part is a client's, whatever is around it.
    let sly = Grammar::Composed {
        root: "start: @value".into(),
        parts: vec![("value".into(), Grammar::Lark("start: <tool_call>".into()))],
    };
    assert!(compiler().compile(&sly).is_err());
}

#[test]
fn the_same_text_is_compiled_once() {
    let compiler = Compiler::new(vocabulary(), Limits::default());
    let grammar = Grammar::Regex("[a-z]{3}".into());
    let all: Vec<_> = std::thread::scope(|scope| {
        let compile = || compiler.compile(&grammar).expect("it is sound");
        let threads: Vec<_> = (0..4).map(|_| scope.spawn(compile)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .collect()
    });
    assert!(all.iter().all(|one| Arc::ptr_eq(one, &all[0])));
    let refuse = || {
        compiler
            .compile(&Grammar::Regex("(".into()))
            .expect_err("it is not")
    };
    assert_eq!(refuse(), refuse());
}
