//! The root of a tool's schema, taken apart: each parameter is written by itself.

use constraint::GrammarError;
use serde_json::{Map, Value, json};

use super::strings::resolve;

/// Combinations of alternatives at the root.
const MAX_VARIANTS: usize = 64;
/// References that may be followed in a row at the root.
const MAX_DEPTH: u32 = 32;
/// Longer names are no names of parameters.
const MAX_NAME: usize = 256;

/// One way in which the arguments may be given.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Variant {
    /// In the schema's order.
    pub(super) parameters: Vec<Parameter>,
    /// Which others are admitted.
    pub(super) others: Others,
}

/// One parameter.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Parameter {
    pub(super) name: String,
    pub(super) schema: Value,
    pub(super) required: bool,
}

/// Parameters that no schema names.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) enum Others {
    /// Nothing is said of them: none where others are named.
    #[default]
    Unsaid,
    /// None.
    Closed,
    /// Of this schema.
    Open(Value),
}

/// All ways that a tool's schema admits; at least one.
pub(super) fn variants(root: &Value) -> Result<Vec<Variant>, GrammarError> {
    let objects = Reader { root }.objects(root, "#", MAX_DEPTH)?;
    let mut variants = Vec::with_capacity(objects.len());
    let mut why = None;
    for object in objects {
        match object.finish() {
            Ok(variant) => variants.push(variant),
            Err(error @ GrammarError::Unsatisfiable { .. }) => why = Some(error),
            Err(error) => return Err(error),
        }
    }
    match why {
        Some(why) if variants.is_empty() => Err(why),
        _ => Ok(variants),
    }
}

/// What an object schema and what it refers to say together.
#[derive(Clone, Debug, Default)]
struct Object {
    properties: Vec<(String, Value)>,
    required: Vec<String>,
    others: Others,
    min: u64,
    max: Option<u64>,
    /// A required parameter that may not be given.
    contradiction: Option<String>,
}

struct Reader<'a> {
    root: &'a Value,
}

impl Reader<'_> {
    fn objects(&self, schema: &Value, at: &str, depth: u32) -> Result<Vec<Object>, GrammarError> {
        let map = match schema {
            Value::Bool(true) => return Ok(vec![Object::default()]),
            Value::Bool(false) => return Ok(Vec::new()),
            Value::Object(map) => map,
            _ => {
                return Err(malformed(format!(
                    "the schema at {at} is neither an object nor a boolean"
                )));
            }
        };
        let Some(depth) = depth.checked_sub(1) else {
            return Err(GrammarError::UnresolvedRef {
                reference: map.get("$ref").map(Value::to_string).unwrap_or_default(),
                at: at.to_owned(),
                why: "it leads through too many schemas",
            });
        };
        if !admits_object(map) {
            if at == "#" {
                return Err(no_object());
            }
            return Ok(Vec::new());
        }
        let mut all = vec![own(map, at)?];
        if let Some(value) = map.get("$ref") {
            let reference = value.as_str();
            let reference =
                reference.ok_or_else(|| malformed(format!("the `$ref` at {at} is no string")))?;
            let target = resolve(self.root, reference, at)?;
            all = product(&all, &self.objects(target, reference, depth)?, at)?;
        }
        for (i, branch) in branches(map, "allOf", at)?.iter().enumerate() {
            let branch = self.objects(branch, &format!("{at}/allOf/{i}"), depth)?;
            all = product(&all, &branch, at)?;
        }
        for keyword in ["anyOf", "oneOf"] {
            let mut any = Vec::new();
            let given = branches(map, keyword, at)?;
            for (i, branch) in given.iter().enumerate() {
                any.extend(self.objects(branch, &format!("{at}/{keyword}/{i}"), depth)?);
            }
            if !given.is_empty() {
                all = product(&all, &any, at)?;
            }
        }
        Ok(all)
    }
}

fn branches<'a>(
    map: &'a Map<String, Value>,
    keyword: &str,
    at: &str,
) -> Result<&'a [Value], GrammarError> {
    match map.get(keyword) {
        None => Ok(&[]),
        Some(Value::Array(branches)) => Ok(branches),
        Some(_) => Err(malformed(format!("`{keyword}` at {at} is no array"))),
    }
}

fn admits_object(map: &Map<String, Value>) -> bool {
    match map.get("type") {
        Some(Value::String(name)) => name == "object",
        Some(Value::Array(names)) => names.iter().any(|name| name == "object"),
        _ => true,
    }
}

/// What the schema says itself.
fn own(map: &Map<String, Value>, at: &str) -> Result<Object, GrammarError> {
    let unsupported = |keyword: &str, why: &str| GrammarError::Unsupported {
        keyword: keyword.to_owned(),
        at: at.to_owned(),
        why: why.to_owned(),
    };
    for keyword in [
        "not",
        "if",
        "then",
        "else",
        "enum",
        "const",
        "patternProperties",
        "dependencies",
        "dependentRequired",
        "dependentSchemas",
    ] {
        if map.contains_key(keyword) {
            return Err(unsupported(keyword, "parameters are written one by one"));
        }
    }
    if let Some(names) = map.get("propertyNames")
        && !says_nothing_of_strings(names)
    {
        return Err(unsupported(
            "propertyNames",
            "only {\"type\": \"string\"} is",
        ));
    }
    let mut object = Object::default();
    match map.get("properties") {
        None => {}
        Some(Value::Object(properties)) => {
            for (name, schema) in properties {
                check_name(name, at)?;
                if schema != &Value::Bool(false) {
                    object.properties.push((name.clone(), schema.clone()));
                }
            }
        }
        Some(_) => return Err(malformed(format!("`properties` at {at} is no object"))),
    }
    match map.get("required") {
        // Booleans are of a draft long gone, and of one property each.
        None | Some(Value::Bool(_)) => {}
        Some(Value::Array(names)) => {
            for name in names {
                let name = name.as_str();
                let name =
                    name.ok_or_else(|| malformed(format!("`required` at {at} holds no names")))?;
                check_name(name, at)?;
                object.required.push(name.to_owned());
            }
        }
        Some(_) => return Err(malformed(format!("`required` at {at} is no array"))),
    }
    for keyword in ["additionalProperties", "unevaluatedProperties"] {
        match (map.get(keyword), keyword) {
            (Some(Value::Bool(false)), _) => object.others = Others::Closed,
            (Some(schema), "additionalProperties") => object.others = Others::Open(schema.clone()),
            _ => {}
        }
    }
    if map.get("properties").is_none()
        && map.contains_key("type")
        && object.others == Others::Unsaid
    {
        // Nothing but an object: whatever the model finds fit.
        object.others = Others::Open(Value::Bool(true));
    }
    object.min = map
        .get("minProperties")
        .and_then(Value::as_u64)
        .unwrap_or(0);
    object.max = map.get("maxProperties").and_then(Value::as_u64);
    Ok(object)
}

fn says_nothing_of_strings(schema: &Value) -> bool {
    match schema {
        Value::Bool(admits) => *admits,
        Value::Object(map) => map
            .iter()
            .all(|(key, value)| key == "type" && value == "string"),
        _ => false,
    }
}

/// Names stand bare between `=` and `>`.
fn check_name(name: &str, at: &str) -> Result<(), GrammarError> {
    let bare = |c: char| !c.is_control() && !matches!(c, '<' | '>');
    if name.is_empty() || name.trim() != name || name.len() > MAX_NAME || !name.chars().all(bare) {
        return Err(GrammarError::Unsupported {
            keyword: "properties".into(),
            at: at.to_owned(),
            why: format!("{name:?} cannot be the name of a parameter"),
        });
    }
    Ok(())
}

/// Every one with every other.
fn product(left: &[Object], right: &[Object], at: &str) -> Result<Vec<Object>, GrammarError> {
    if left.len() * right.len() > MAX_VARIANTS {
        return Err(GrammarError::Unsupported {
            keyword: "anyOf".into(),
            at: at.to_owned(),
            why: format!("it makes more than {MAX_VARIANTS} kinds of parameters"),
        });
    }
    let pairs = left.iter().flat_map(|a| right.iter().map(move |b| (a, b)));
    Ok(pairs.map(|(a, b)| a.and(b)).collect())
}

impl Object {
    fn and(&self, other: &Self) -> Self {
        let mut both = self.clone();
        both.properties.retain(|(name, _)| other.admits(name));
        for (name, schema) in &other.properties {
            match both.properties.iter_mut().find(|(own, _)| own == name) {
                Some((_, own)) if own == schema => {}
                Some((_, own)) => *own = json!({"allOf": [own, schema]}),
                None if self.admits(name) => both.properties.push((name.clone(), schema.clone())),
                None => {}
            }
        }
        for name in &other.required {
            if !both.required.contains(name) {
                both.required.push(name.clone());
            }
        }
        both.others = match (&self.others, &other.others) {
            (Others::Closed, _) | (_, Others::Closed) => Others::Closed,
            (Others::Unsaid, said) | (said, Others::Unsaid) => said.clone(),
            (Others::Open(Value::Bool(true)), said) | (said, Others::Open(Value::Bool(true))) => {
                said.clone()
            }
            (Others::Open(a), Others::Open(b)) => Others::Open(json!({"allOf": [a, b]})),
        };
        both.min = self.min.max(other.min);
        both.max = self.max.into_iter().chain(other.max).min();
        // What one of them requires, both must admit.
        let admitted = |name: &String| self.admits(name) && other.admits(name);
        both.contradiction = both.required.iter().find(|name| !admitted(name)).cloned();
        both
    }

    fn admits(&self, name: &str) -> bool {
        self.others != Others::Closed || self.properties.iter().any(|(own, _)| own == name)
    }

    fn finish(self) -> Result<Variant, GrammarError> {
        let refused = self.required.iter().find(|name| !self.admits(name));
        if let Some(name) = self.contradiction.as_ref().or(refused) {
            return Err(GrammarError::Unsatisfiable {
                message: format!("{name:?} is required and not admitted"),
            });
        }
        let mut parameters: Vec<Parameter> = Vec::new();
        for (name, schema) in self.properties {
            let required = self.required.contains(&name);
            parameters.push(Parameter {
                name,
                schema,
                required,
            });
        }
        for name in self.required {
            if parameters.iter().any(|parameter| parameter.name == name) {
                continue;
            }
            parameters.push(Parameter {
                name,
                schema: match &self.others {
                    Others::Open(schema) => schema.clone(),
                    _ => Value::Bool(true),
                },
                required: true,
            });
        }
        let num_required = parameters.iter().filter(|p| p.required).count() as u64;
        let num_most = match self.others {
            Others::Open(_) => u64::MAX,
            _ => parameters.len() as u64,
        };
        for (keyword, holds) in [
            ("minProperties", self.min <= num_required),
            ("maxProperties", self.max.is_none_or(|max| max >= num_most)),
        ] {
            if !holds {
                return Err(GrammarError::Unsupported {
                    keyword: keyword.into(),
                    at: "#".into(),
                    why: "parameters are written one by one".into(),
                });
            }
        }
        Ok(Variant {
            parameters,
            others: self.others,
        })
    }
}

/// The error for a root that admits no object.
pub(super) fn no_object() -> GrammarError {
    malformed("the schema of parameters must be that of an object".into())
}

fn malformed(message: String) -> GrammarError {
    GrammarError::Malformed { message }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Each variant as its names, `?` behind optional ones, `*` for others.
    fn names(schema: &Value) -> Result<Vec<String>, GrammarError> {
        let name = |p: &Parameter| format!("{}{}", p.name, if p.required { "" } else { "?" });
        let variants = variants(schema)?;
        let texts = variants.iter().map(|variant| {
            let mut names: Vec<String> = variant.parameters.iter().map(name).collect();
            if matches!(variant.others, Others::Open(_)) {
                names.push("*".into());
            }
            names.join(" ")
        });
        Ok(texts.collect())
    }

    #[test]
    fn roots_are_taken_apart() {
        let check = |schema: Value, expect: &[&str]| {
            assert_eq!(names(&schema).unwrap(), expect, "{schema}");
        };
        let ab = json!({"a": {"type": "string"}, "b": {}});
        check(json!({}), &[""]);
        check(json!({"type": "object"}), &["*"]);
        check(json!({"type": "object", "properties": {}}), &[""]);
        check(
            json!({"type": "object", "properties": ab, "required": ["b"]}),
            &["a? b"],
        );
        check(
            json!({"type": ["object", "null"], "properties": ab, "additionalProperties": false}),
            &["a? b?"],
        );
        check(
            json!({"properties": ab, "additionalProperties": {}}),
            &["a? b? *"],
        );
        check(
            json!({"$schema": "x", "properties": {"a": false, "b": true}, "required": ["c"],
                   "propertyNames": {"type": "string"}, "x-extra": 1}),
            &["b? c"],
        );
        check(
            json!({"$ref": "#/$defs/T", "$defs": {"T": {"properties": ab}}, "required": ["a"]}),
            &["a b?"],
        );
        check(
            json!({"allOf": [{"properties": {"a": {}}, "required": ["a"]}, {"properties": {"c": {}}}]}),
            &["a c?"],
        );
        check(
            json!({"properties": ab, "anyOf": [{"required": ["a"]}, {"required": ["b"]}]}),
            &["a b?", "a? b"],
        );
        check(
            json!({"oneOf": [{"properties": ab, "additionalProperties": false},
                             {"type": "string"}, {"properties": {"c": {}}}]}),
            &["a? b?", "c?"],
        );
        check(
            json!({"properties": ab, "minProperties": 0, "maxProperties": 2}),
            &["a? b?"],
        );
    }

    #[test]
    fn both_schemas_of_one_name_hold() {
        let schema = json!({"properties": {"a": {"type": "string"}},
                            "allOf": [{"properties": {"a": {"maxLength": 3}}}]});
        let variants = variants(&schema).unwrap();
        let expect = json!({"allOf": [{"type": "string"}, {"maxLength": 3}]});
        assert_eq!(variants[0].parameters[0].schema, expect);
    }

    #[test]
    fn what_is_refused() {
        let check = |schema: Value, expect: &str| {
            let error = names(&schema).expect_err(&schema.to_string()).to_string();
            assert!(error.contains(expect), "{schema}: {error}");
        };
        check(json!({"type": "string"}), "must be that of an object");
        check(json!({"type": "object", "not": {}}), "`not` at #");
        check(json!({"allOf": [{"if": {}}]}), "`if` at #/allOf/0");
        check(json!({"type": "object", "enum": [{}]}), "`enum`");
        check(json!({"patternProperties": {}}), "`patternProperties`");
        check(
            json!({"minProperties": 1, "properties": {"a": {}}}),
            "`minProperties`",
        );
        check(
            json!({"maxProperties": 1, "properties": {"a": {}, "b": {}}}),
            "`maxProperties`",
        );
        check(
            json!({"propertyNames": {"pattern": "x"}}),
            "`propertyNames`",
        );
        check(json!({"properties": []}), "`properties` at #");
        check(json!({"required": "a"}), "`required` at #");
        check(json!({"properties": {"a>b": {}}}), "a>b");
        check(json!({"$ref": "#/$defs/T"}), "#/$defs/T");
        check(json!({"$ref": "#"}), "too many");
        check(
            json!({"properties": {}, "required": ["a"], "additionalProperties": false}),
            "\"a\" is required",
        );
        check(
            json!({"allOf": [{"properties": {"a": {}}, "additionalProperties": false},
                             {"properties": {"b": {}}, "required": ["b"]}]}),
            "\"b\" is required",
        );
        let any = json!([{}, {}, {}, {}, {}]);
        check(
            json!({"allOf": [{"anyOf": any}, {"anyOf": any}, {"anyOf": any}]}),
            "64 kinds",
        );
    }
}
