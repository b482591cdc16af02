//! What a model without any sense says under a schema, at temperature 1: whenever it stops, the text
//! parses and validates; and where the schema bounds the text, it does stop.

mod common;

use std::fs;

use common::{as_any_of, compile_schema, guide, vocabulary, workspace};
use constraint::GuideState;
use serde_json::{Value, json};

const SEEDS: [u64; 3] = [1, 2, 3];
/// Tokens of an answer at most.
const MAX_TOKENS: usize = 3000;

/// Every mask's tokens are equally likely, as random weights have it.
struct Weightless(u64);

impl Weightless {
    fn below(&mut self, limit: usize) -> usize {
        // The constants of Knuth's MMIX.
        self.0 = self
            .0
            .wrapping_mul(6364136223846793005)
            .wrapping_add(1442695040888963407);
        (self.0 >> 33) as usize % limit
    }
}

/// The answer's text, and whether it stopped.
fn answer(schema: &Value, seed: u64) -> (String, bool) {
    let vocabulary = vocabulary();
    let grammar = compile_schema(schema).unwrap_or_else(|error| panic!("{schema}: {error}"));
    let mut state = GuideState::new(&guide(&grammar));
    let mut model = Weightless(seed);
    let mut text = Vec::new();
    for _ in 0..MAX_TOKENS {
        let mask = state
            .mask()
            .unwrap_or_else(|error| panic!("{schema}: {error}"));
        let allowed: Vec<u32> = mask.expect("it constrains").iter().collect();
        let token = allowed[model.below(allowed.len())];
        state.advance(token).expect("it was allowed");
        if vocabulary.end_ids().contains(&token) {
            // With `ignore_eos` it goes on, and says nothing more.
            let after = state.mask().expect("the end holds").expect("it constrains");
            assert!(after.iter().eq(vocabulary.end_ids().iter().copied()));
            return (String::from_utf8(text).expect("grammars speak UTF-8"), true);
        }
        text.extend_from_slice(vocabulary.text(token));
    }
    (String::from_utf8_lossy(&text).into_owned(), false)
}

/// Returns what is wrong.
fn check(schema: &Value, is_bounded: bool) -> Vec<String> {
    let mut wrong = Vec::new();
    let judge = jsonschema::options()
        .should_validate_formats(true)
        .build(&as_any_of(schema))
        .unwrap_or_else(|error| panic!("{schema}: {error}"));
    for seed in SEEDS {
        let (text, stopped) = answer(schema, seed);
        if !stopped {
            if is_bounded {
                wrong.push(format!("{schema}, seed {seed} did not stop: {text}"));
            }
            continue;
        }
        let value: Value = match serde_json::from_str(&text) {
            Ok(value) => value,
            // JSON sets no limit to exponents; a double does.
            Err(error) if error.to_string().starts_with("number out of range") => continue,
            Err(error) => panic!("{schema}, seed {seed}: {error}: {text}"),
        };
        if has_huge_number(&value) && schema.to_string().contains("multipleOf") {
            continue;
        }
        if let Err(error) = judge.validate(&value) {
            wrong.push(format!("{schema}, seed {seed}: {error}: {text}"));
        }
    }
    wrong
}

/// A number that a double does not hold exactly, so that the judge cannot divide it.
fn has_huge_number(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.as_f64().is_none_or(|number| number.abs() > 9e15),
        Value::Array(items) => items.iter().any(has_huge_number),
        Value::Object(members) => members.values().any(has_huge_number),
        _ => false,
    }
}

/// Schemas under which every text is short, by families.
fn bounded() -> Vec<Value> {
    let closed = |properties: Value, required: Value| {
        json!({"type": "object", "properties": properties, "required": required,
            "additionalProperties": false})
    };
    let mut schemas = vec![
        json!({"type": "null"}),
        json!({"type": "boolean"}),
        json!({"type": ["null", "boolean"]}),
        json!({"const": null}),
        json!({"const": "a \"quoted\" \\ text\n\u{1f600}"}),
        json!({"const": 5}),
        json!({"const": -2.5}),
        json!({"const": {"a": [1, {"b": null}]}}),
        json!({"enum": ["red", "green", "blue"]}),
        json!({"enum": [1, "1", true, null, [1], {"one": 1}]}),
        json!({"enum": ["a\u{7f}b", "c\u{1}d", "\u{2028}"]}),
        json!({"type": "string", "enum": ["x", 5, "y"]}),
        json!({"type": "array", "items": {"type": "boolean"}, "maxItems": 5}),
        json!({"type": "array", "items": {"type": "boolean"}, "minItems": 2, "maxItems": 2}),
        json!({"type": "array", "prefixItems": [{"const": 1}, {"const": "b"}], "items": false}),
        json!({"type": "array", "prefixItems": [{"const": 1}, {"const": "b"}], "items": false, "minItems": 2}),
        json!({"type": "array", "prefixItems": [{"type": "null"}], "items": {"type": "boolean"}, "maxItems": 4}),
        json!({"type": "array", "items": {"enum": [0, 1]}, "minItems": 3, "maxItems": 30}),
        json!({"type": "array", "maxItems": 0}),
        json!({"type": "array", "items": {"enum": [1, 2]}, "maxItems": 1, "uniqueItems": true}),
        closed(json!({}), json!([])),
        closed(json!({"a": {"type": "boolean"}}), json!([])),
        closed(
            json!({"a": {"type": "boolean"}, "b": {"type": "null"}}),
            json!(["b"]),
        ),
        closed(
            json!({"a": {"const": 1}, "b": {"const": 2}, "c": {"const": 3}}),
            json!([]),
        ),
        closed(
            json!({"inner": closed(json!({"deep": closed(json!({"x": {"enum": ["y"]}}), json!(["x"]))}), json!(["deep"]))}),
            json!(["inner"]),
        ),
        closed(
            json!({"with space": {"const": 1}, "\"": {"const": 2}, "ü": {"const": 3}}),
            json!(["\"", "ü"]),
        ),
        json!({"$ref": "#/$defs/a", "$defs": {"a": {"enum": [1, 2]}}}),
        json!({"$ref": "#/definitions/a%25b", "definitions": {"a%b": {"enum": [1, 2]}}}),
        json!({"$ref": "#leaf", "$defs": {"x": {"$anchor": "leaf", "type": "boolean"}}}),
        json!({"items": {"$ref": "#/$defs/color"}, "type": "array", "maxItems": 3,
            "$defs": {"color": {"enum": ["r", "g"], "description": "one"}}}),
        json!({"allOf": [{"type": "integer", "minimum": 3}, {"maximum": 5}]}),
        json!({"allOf": [closed(json!({"a": {"const": 1}}), json!(["a"]))], "description": "merged"}),
        json!({"allOf": [
            {"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"type": "object", "properties": {"b": {"type": "null"}}, "required": ["b"]},
            {"additionalProperties": false, "properties": {"a": {}, "b": {}}}
        ]}),
        json!({"anyOf": [{"type": "boolean"}, {"const": "x"}, {"type": "array", "maxItems": 0}]}),
        json!({"oneOf": [{"const": 1}, {"const": 2}]}),
        json!({"oneOf": [closed(json!({"kind": {"const": "a"}, "x": {"type": "boolean"}}), json!(["kind", "x"])),
            closed(json!({"kind": {"const": "b"}, "y": {"enum": [7]}}), json!(["kind"]))]}),
        json!({"type": "object", "additionalProperties": false, "minProperties": 1,
            "properties": {"a": {"const": 1}, "b": {"const": 2}}}),
        json!({"type": "object", "additionalProperties": false, "maxProperties": 1,
            "properties": {"a": {"const": 1}, "b": {"const": 2}}}),
        json!({"type": "integer", "format": "int32", "minimum": 0, "maximum": 9}),
        json!({"type": ["string", "null"], "maxLength": 4, "x-unknown": {"not": 1}, "nullable": true}),
        json!({"title": "T", "description": "d", "$comment": "c", "examples": [1], "default": 1, "deprecated": true,
            "readOnly": true, "writeOnly": false, "type": "boolean", "$schema": "https://json-schema.org/draft/2020-12/schema"}),
        json!({"$schema": "http://json-schema.org/draft-04/schema#", "type": "integer", "minimum": 1,
            "exclusiveMinimum": true, "maximum": 4}),
        json!({"$schema": "http://json-schema.org/draft-07/schema#", "type": "array",
            "items": [{"const": 1}, {"const": 2}], "additionalItems": false}),
    ];
    for (min, max) in [(0, 0), (0, 3), (1, 1), (2, 5), (10, 40)] {
        schemas.push(json!({"type": "string", "minLength": min, "maxLength": max}));
    }
    for (min, max) in [
        (0, 9),
        (-5, 5),
        (100, 1000),
        (-1000, -7),
        (0, 0),
        (17, 18),
        (99, 101),
    ] {
        schemas.push(json!({"type": "integer", "minimum": min, "maximum": max}));
        schemas.push(
            json!({"type": "integer", "exclusiveMinimum": min - 1, "exclusiveMaximum": max + 1}),
        );
    }
    for step in [2, 3, 5, 7, 10, 25] {
        schemas.push(json!({"type": "integer", "multipleOf": step, "minimum": 1, "maximum": 500}));
    }
    for pattern in [
        "^[a-z]{1,8}$",
        "^\\d{3}-\\d{4}$",
        "^(yes|no|maybe)$",
        "^[A-Z][a-z]{0,5} [A-Z][a-z]{0,5}$",
        "^#[0-9a-fA-F]{6}$",
        "^v\\d{1,2}\\.\\d{1,2}\\.\\d{1,3}$",
        "^\\w{2,4}\\s\\w{2,4}$",
        "^.{3}$",
        "^[^\"\\\\]{2,5}$",
        "^(a|b)?c{2,3}$",
        "^\\u00e9{1,3}$",
        "^\\p{Lu}{2}$",
        "^$",
    ] {
        schemas.push(json!({"type": "string", "pattern": pattern}));
    }
    schemas.push(json!({"type": "string", "pattern": "x", "maxLength": 6}));
    schemas.push(json!({"type": "string", "pattern": "^[a-c]+$", "minLength": 2, "maxLength": 4}));
    for format in ["date", "uuid", "ipv4", "ipv6"] {
        schemas.push(json!({"type": "string", "format": format}));
    }
    schemas
}

/// Schemas whose texts may be of any length.
fn unbounded() -> Vec<Value> {
    let mut schemas = vec![
        json!({}),
        json!(true),
        json!({"type": "string"}),
        json!({"type": "integer"}),
        json!({"type": "number"}),
        json!({"type": "object"}),
        json!({"type": "array"}),
        json!({"minLength": 2}),
        json!({"type": "string", "minLength": 3}),
        json!({"type": "string", "pattern": "a"}),
        json!({"type": "string", "pattern": "^a.*b$"}),
        json!({"type": "string", "pattern": "b+$"}),
        json!({"type": "array", "items": {"type": "integer"}}),
        json!({"type": "array", "items": {"type": "string"}, "minItems": 2}),
        json!({"type": "array", "prefixItems": [{"type": "string"}]}),
        json!({"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}),
        json!({"type": "object", "properties": {"a": {"type": "integer"}, "b": {"type": "string"}}}),
        json!({"type": "object", "additionalProperties": {"type": "boolean"}}),
        json!({"type": "object", "additionalProperties": {"type": "number"}, "properties": {"x": {"type": "null"}}}),
        json!({"type": "object", "patternProperties": {"^s_": {"type": "string"}}, "additionalProperties": false}),
        json!({"type": "object", "patternProperties": {"^s_": {"type": "string"}, "^n_": {"type": "integer"}}}),
        json!({"type": "object", "required": ["a", "b"]}),
        json!({"type": "object", "minProperties": 1}),
        json!({"type": "object", "propertyNames": {"type": "string"}, "additionalProperties": {"type": "null"}}),
        json!({"type": "number", "minimum": 1.5, "maximum": 2.25}),
        json!({"type": "number", "exclusiveMinimum": 0}),
        json!({"type": "number", "exclusiveMaximum": -1.5}),
        json!({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0.5}),
        json!({"type": "integer", "minimum": 10}),
        json!({"type": "integer", "exclusiveMaximum": -3}),
        json!({"type": "number", "multipleOf": 0.5}),
        json!({"type": "integer", "multipleOf": 4}),
        json!({"type": ["integer", "string"]}),
        json!({"type": ["object", "array", "null"]}),
        json!({"anyOf": [{"type": "integer"}, {"type": "string", "maxLength": 3}]}),
        json!({"$ref": "#/$defs/node", "$defs": {"node": {"type": "object", "properties": {
            "value": {"type": "integer"}, "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
            "required": ["value", "next"], "additionalProperties": false}}}),
        json!({"type": "object", "properties": {"name": {"type": "string"},
            "children": {"type": "array", "items": {"$ref": "#"}}}, "required": ["name", "children"],
            "additionalProperties": false}),
        json!({"$defs": {"expr": {"anyOf": [{"type": "integer"}, {"type": "object", "properties": {
            "op": {"enum": ["+", "-"]}, "left": {"$ref": "#/$defs/expr"}, "right": {"$ref": "#/$defs/expr"}},
            "required": ["op", "left", "right"], "additionalProperties": false}]}}, "$ref": "#/$defs/expr"}),
        json!({"$id": "https://example.com/root", "$ref": "https://example.com/root#/$defs/a",
            "$defs": {"a": {"type": "integer"}}}),
        json!({"type": "object", "properties": {"user": {"type": "object", "properties": {
            "id": {"type": "integer", "minimum": 1}, "email": {"type": "string", "format": "email"},
            "tags": {"type": "array", "items": {"type": "string", "maxLength": 10}, "maxItems": 3}},
            "required": ["id", "email"], "additionalProperties": false},
            "at": {"type": "string", "format": "date-time"}}, "required": ["user", "at"], "additionalProperties": false}),
    ];
    for format in ["time", "date-time", "email", "hostname", "duration", "uri"] {
        schemas.push(json!({"type": "string", "format": format}));
    }
    schemas
}

#[test]
fn bounded_schemas_stop_and_validate() {
    let schemas = bounded();
    assert!(schemas.len() >= 80, "{} schemas", schemas.len());
    let wrong: Vec<String> = schemas.iter().flat_map(|s| check(s, true)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn whatever_stops_validates() {
    let schemas = unbounded();
    let wrong: Vec<String> = schemas.iter().flat_map(|s| check(s, false)).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn so_do_the_public_suites_schemas() {
    let folder = workspace("tests/fixtures/json-schema-suite/draft2020-12");
    let (mut num_tried, mut wrong) = (0, Vec::new());
    for entry in fs::read_dir(folder).expect("the fixture is there") {
        let path = entry.expect("it can be listed").path();
        let Ok(text) = fs::read_to_string(&path) else {
            continue; // A folder.
        };
        let groups: Value = serde_json::from_str(&text).expect("the fixture is JSON");
        for group in groups.as_array().expect("a list of groups") {
            if compile_schema(&group["schema"]).is_ok() {
                wrong.extend(check(&group["schema"], false));
                num_tried += 1;
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(num_tried > 150, "{num_tried} schemas");
}
