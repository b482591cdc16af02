//! Parts of schemas as documents of their own.

use serde_json::{Map, Value, json};

/// A part of `root` by itself, with all that it refers to under new names.
pub(super) fn document(schema: &Value, root: &Value) -> Value {
    let mut references = Vec::new();
    collect(schema, &mut references);
    if references.is_empty() {
        return schema.clone();
    }
    let mut targets = Vec::new();
    let mut next = 0;
    while let Some(reference) = references.get(next).cloned() {
        next += 1;
        let pointer = reference.strip_prefix('#');
        // One that leads nowhere stays as it is: its own words say best what is wrong.
        let Some(target) = pointer.and_then(|pointer| root.pointer(pointer)) else {
            continue;
        };
        collect(target, &mut references);
        targets.push((reference, target));
    }
    let definitions: Map<String, Value> = targets
        .iter()
        .enumerate()
        .map(|(i, (_, target))| (name(i), turned(target, &targets)))
        .collect();
    let mut document = turned(schema, &targets);
    if let (Value::Object(map), false) = (&mut document, definitions.is_empty()) {
        map.insert("$defs".into(), Value::Object(definitions));
    }
    document
}

/// The schema, for values of these types alone.
pub(super) fn restricted(schema: Value, types: &[&str]) -> Value {
    match schema {
        Value::Object(mut map) => {
            let definitions = map.remove("$defs");
            let mut restricted = json!({"allOf": [map, {"type": types}]});
            if let Some(definitions) = definitions {
                restricted["$defs"] = definitions;
            }
            restricted
        }
        _ => json!({"type": types}),
    }
}

fn name(index: usize) -> String {
    format!("d{index}")
}

/// What a member of a schema is.
enum Member {
    /// A schema, or several in an array.
    Schema,
    /// Schemas by name.
    Named,
    /// Definitions: they count only where something refers to them.
    Definitions,
    /// A value.
    Value,
}

fn member(key: &str) -> Member {
    match key {
        "properties" | "patternProperties" | "dependentSchemas" => Member::Named,
        "$defs" | "definitions" => Member::Definitions,
        "enum" | "const" | "default" | "examples" | "example" => Member::Value,
        _ => Member::Schema,
    }
}

/// References inside a schema, each once.
fn collect(schema: &Value, references: &mut Vec<String>) {
    match schema {
        Value::Array(items) => items.iter().for_each(|item| collect(item, references)),
        Value::Object(map) => {
            for (key, value) in map {
                match (member(key), value) {
                    (Member::Schema, Value::String(reference))
                        if key == "$ref" && !references.contains(reference) =>
                    {
                        references.push(reference.clone());
                    }
                    (Member::Schema, value) => collect(value, references),
                    (Member::Named, Value::Object(named)) => {
                        named.values().for_each(|value| collect(value, references));
                    }
                    _ => {}
                }
            }
        }
        _ => {}
    }
}

/// The same schema with its references turned to where their targets are now.
fn turned(schema: &Value, targets: &[(String, &Value)]) -> Value {
    match schema {
        Value::Array(items) => items.iter().map(|item| turned(item, targets)).collect(),
        Value::Object(map) => {
            let mut turned_map = Map::new();
            for (key, value) in map {
                let value = match (member(key), value) {
                    (Member::Definitions, _) => continue,
                    (Member::Schema, Value::String(reference)) if key == "$ref" => {
                        let index = targets.iter().position(|(known, _)| known == reference);
                        index.map_or_else(
                            || value.clone(),
                            |index| format!("#/$defs/{}", name(index)).into(),
                        )
                    }
                    (Member::Schema, value) => turned(value, targets),
                    (Member::Named, Value::Object(named)) => {
                        let turn = |(name, value): (&String, &Value)| {
                            (name.clone(), turned(value, targets))
                        };
                        Value::Object(named.iter().map(turn).collect())
                    }
                    (_, value) => value.clone(),
                };
                turned_map.insert(key.clone(), value);
            }
            Value::Object(turned_map)
        }
        other => other.clone(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn parts_carry_what_they_refer_to() {
        let root = json!({
            "properties": {
                "plain": {"type": "integer", "$defs": {"unused": {}}},
                "day": {"$ref": "#/$defs/Day", "description": "d"},
                "tree": {"$ref": "#/definitions/Tree"},
                "all": {"$ref": "#"},
                "none": {"$ref": "#/$defs/None"},
            },
            "$defs": {"Day": {"enum": [{"$ref": "x"}]}},
            "definitions": {"Tree": {"items": {"$ref": "#/definitions/Tree"}}},
        });
        let check = |name: &str, expect: Value| {
            assert_eq!(document(&root["properties"][name], &root), expect, "{name}");
        };
        check("plain", json!({"type": "integer", "$defs": {"unused": {}}}));
        check(
            "day",
            json!({"$ref": "#/$defs/d0", "description": "d", "$defs": {"d0": {"enum": [{"$ref": "x"}]}}}),
        );
        check(
            "tree",
            json!({"$ref": "#/$defs/d0", "$defs": {"d0": {"items": {"$ref": "#/$defs/d0"}}}}),
        );
        check("none", json!({"$ref": "#/$defs/None"}));
        let all = document(&root["properties"]["all"], &root);
        assert_eq!(
            all["$defs"]["d0"]["properties"]["all"],
            json!({"$ref": "#/$defs/d0"})
        );
        assert_eq!(
            all["$defs"]["d0"]["properties"]["tree"],
            json!({"$ref": "#/$defs/d2"})
        );
    }

    #[test]
    fn members_of_any_name_are_no_keywords() {
        let root = json!({"$defs": {"A": {"type": "string"}}});
        let schema = json!({"properties": {"$ref": {"$ref": "#/$defs/A"}, "default": {"$ref": "#/$defs/A"}},
                            "default": {"$ref": "#/$defs/A"}});
        let moved = document(&schema, &root);
        assert_eq!(moved["properties"]["$ref"], json!({"$ref": "#/$defs/d0"}));
        assert_eq!(
            moved["properties"]["default"],
            json!({"$ref": "#/$defs/d0"})
        );
        assert_eq!(moved["default"], json!({"$ref": "#/$defs/A"}));
    }
}
