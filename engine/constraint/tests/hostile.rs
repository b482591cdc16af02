//! Grammars that mean harm are answered, not suffered: each is refused or compiled within its limits,
//! and what compiles keeps to the limits of a step too.

mod common;

use common::{compiler, guide};
use constraint::{Grammar, GrammarError, GuideError, GuideState};
use serde_json::{Value, json};

#[track_caller]
fn refuse(what: &str, grammar: &Grammar) {
    let outcome = compiler().compile(grammar);
    assert!(outcome.is_err(), "{what} was compiled");
}

fn schema(schema: &Value) -> Grammar {
    Grammar::JsonSchema(schema.to_string())
}

#[test]
fn all_are_refused() {
    let words: Vec<String> = (0..1_000_000).map(|i| format!("word{i}")).collect();
    refuse("10 MB enum", &schema(&json!({"enum": words})));
    refuse(
        "minItems",
        &schema(&json!({"type": "array", "minItems": 1_000_000_000})),
    );
    refuse(
        "minLength",
        &schema(&json!({"type": "string", "minLength": 1_000_000_000})),
    );
    refuse(
        "deep",
        &Grammar::JsonSchema(format!("{}{}", "[".repeat(10_000), "]".repeat(10_000))),
    );
    let mut deep = json!({});
    for _ in 0..60 {
        deep = json!({"properties": {"a": deep}});
    }
    refuse("deep properties", &schema(&deep));
    // Each of 30 pairs doubles the options.
    let pairs: Vec<Value> = (0..30)
        .map(|i| {
            json!({"anyOf": [
                {"properties": {format!("a{i}"): {"type": "string"}}},
                {"properties": {format!("b{i}"): {"type": "integer"}}},
            ]})
        })
        .collect();
    refuse("exponential unions", &schema(&json!({"allOf": pairs})));
    let mut chain = json!({"type": "object"});
    for _ in 0..20 {
        chain = json!({"$ref": "#/$defs/a", "anyOf": [chain, {"$ref": "#/$defs/b"}]});
    }
    refuse(
        "unions through references",
        &schema(
            &json!({"$defs": {"a": {"anyOf": [{"$ref": "#/$defs/b"}, {"minLength": 2}, {"minimum": 3}]},
            "b": {"anyOf": [{"maxLength": 3}, {"maximum": 9}, {"$ref": "#/$defs/a"}]}}, "allOf": [chain]}),
        ),
    );
    refuse(
        "nested regex",
        &Grammar::Regex(format!("{}a{}", "(".repeat(10_000), ")".repeat(10_000))),
    );
    refuse(
        "nested lark",
        &Grammar::Lark(format!(
            "start: {}\"a\"{}",
            "(".repeat(10_000),
            ")".repeat(10_000)
        )),
    );
    let rules: Vec<String> = (0..100_000).map(|i| format!("r{i}: \"a{i}\"")).collect();
    refuse(
        "giant lark",
        &Grammar::Lark(format!("start: r0\n{}", rules.join("\n"))),
    );
    refuse("endless lark", &Grammar::Lark("start: start".into()));
    refuse("endless schema", &schema(&json!({"$ref": "#"})));
}

/// Steps through a grammar by tokens drawn without much thought; the error that ended it, if any did.
fn walk(grammar: &Grammar) -> Option<GuideError> {
    let grammar = compiler().compile(grammar).expect("it is no trouble yet");
    let mut state = GuideState::new(&guide(&grammar));
    for step in 0..300_usize {
        let mask = match state.mask() {
            Ok(mask) => mask.expect("it constrains"),
            Err(error) => {
                assert_eq!(state.mask(), Err(error.clone()), "an error is for good");
                return Some(error);
            }
        };
        let allowed: Vec<u32> = mask.iter().collect();
        let token = allowed[step * 7919 % allowed.len()];
        state.advance(token).expect("it was allowed");
    }
    None
}

#[test]
fn what_compiles_steps_within_its_limits() {
    let regex = |pattern: &str| Grammar::Regex(pattern.into());
    for (what, grammar) in [
        ("backwards", regex("(a|b)*a(a|b){18}")),
        ("counted", regex("((a{0,1000}){0,1000}){0,1000}")),
        ("counted from 1", regex("((a{1,1000}b?){1,1000}c?){1,1000}")),
        ("nested plus", regex("((a+)+b?)+c")),
        (
            "catastrophic",
            regex(&"(a|b|ab)*c{1,200}(a|aa)*[ab]{200}[^c]{300}x".repeat(40)),
        ),
        (
            "ambiguous",
            Grammar::Lark("start: e\ne: e e | \"a\" | \"b\" | \"(\" e \")\"".into()),
        ),
        ("wide enum", {
            let wide: Vec<String> = (0..20_000).map(|i| format!("word{i}")).collect();
            schema(&json!({"enum": wide}))
        }),
        (
            "long string",
            schema(&json!({"type": "string", "maxLength": 100_000})),
        ),
        (
            "many items",
            schema(
                &json!({"type": "array", "items": {"type": "integer"}, "maxItems": 1_000_000_000}),
            ),
        ),
    ] {
        assert_eq!(walk(&grammar), None, "{what}");
    }
    // So many places to be in at once that a step is too much: an answer ends there.
    let blown_up = walk(&regex("(.*a.{200}|.*b.{300}|.*c.{100}){50}"));
    assert!(blown_up.is_some());
}

#[test]
fn errors_have_numbers_and_places() {
    let error = |schema: Value| {
        let outcome = compiler().compile(&Grammar::JsonSchema(schema.to_string()));
        outcome.expect_err("it is wrong").to_string()
    };
    for (schema, words) in [
        (
            json!({"properties": {"a": {"uniqueItems": true}}}),
            vec!["uniqueItems", "#/properties/a"],
        ),
        (
            json!({"items": {"$ref": "#/$defs/gone"}}),
            vec!["#/$defs/gone", "#/items"],
        ),
        (json!({"type": "strin"}), vec!["type", "string"]),
        (
            json!({"type": "array", "minItems": 200_000}),
            vec!["minItems", "200000", "100000"],
        ),
        (
            json!({"type": "string", "pattern": "(?=a)b"}),
            vec!["pattern", "look-around"],
        ),
        (
            json!({"type": "string", "format": "binary"}),
            vec!["format", "binary"],
        ),
    ] {
        let error = error(schema);
        for word in words {
            assert!(error.contains(word), "{word:?} is not in {error:?}");
        }
    }
    let long = Grammar::JsonSchema(" ".repeat(600 << 10));
    let error = compiler().compile(&long).expect_err("too long");
    assert_eq!(
        error,
        GrammarError::TooLarge {
            what: "the size of the grammar in bytes".into(),
            size: 600 << 10,
            max: 512 << 10,
        }
    );
}
