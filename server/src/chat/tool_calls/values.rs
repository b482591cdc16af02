//! What a parameter's text means under the tool's schema.
//!
//! The format writes strings bare and everything else as Python's `str` or JSON, so the text alone
//! does not say which it is; the schema does.

use serde_json::{Number, Value};

/// Schemas looked into before one counts as silent: references may branch and go in circles.
const MAX_VISITS: u32 = 200;

/// The JSON types that a schema admits, as bits. Empty: the schema does not say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ValueTypes(u8);

impl ValueTypes {
    const NULL: Self = Self(1);
    const INTEGER: Self = Self(2);
    const NUMBER: Self = Self(4);
    const BOOLEAN: Self = Self(8);
    const OBJECT: Self = Self(16);
    const ARRAY: Self = Self(32);
    const STRING: Self = Self(64);

    /// Of the parameter `name` of a tool whose parameters have the schema `root`.
    pub fn of_parameter(root: &Value, name: &str) -> Self {
        let found = property(root, root, name, &mut { MAX_VISITS });
        found.map_or(Self::default(), |schema| {
            of(schema, root, &mut { MAX_VISITS })
        })
    }

    /// Text is taken as it stands: the schema says string and nothing else, or nothing.
    pub fn is_string(self) -> bool {
        self == Self::STRING || self == Self::default()
    }

    /// A string or null: sure to be a string once it cannot be null any more.
    pub fn is_nullable_string(self) -> bool {
        self == Self(Self::STRING.0 | Self::NULL.0)
    }

    /// Of `schema`, whose references are in `root`.
    pub fn of(schema: &Value, root: &Value) -> Self {
        of(schema, root, &mut { MAX_VISITS })
    }

    /// A string, perhaps among others.
    pub fn admits_string(self) -> bool {
        self.admits(Self::STRING)
    }

    /// Names of the types that are no strings.
    pub fn others_than_string(self) -> Vec<&'static str> {
        const NAMES: [&str; 6] = ["null", "integer", "number", "boolean", "object", "array"];
        let admitted = NAMES.into_iter();
        admitted
            .filter(|name| self.admits(Self::named(name)))
            .collect()
    }

    /// The JSON of `text` if it is of one of these types, strings aside. More specific types come
    /// first.
    pub fn convert(self, text: &str) -> Option<String> {
        let text = text.trim();
        let json = |starts: char| {
            let is_json = serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok();
            (text.starts_with(starts) && is_json).then(|| text.to_owned())
        };
        let attempts: [(Self, &dyn Fn() -> Option<String>); 6] = [
            (Self::NULL, &|| {
                matches!(text, "null" | "None").then(|| "null".to_owned())
            }),
            (Self::INTEGER, &|| integer(text)),
            (Self::NUMBER, &|| number(text)),
            (Self::BOOLEAN, &|| boolean(text).map(str::to_owned)),
            (Self::OBJECT, &|| json('{')),
            (Self::ARRAY, &|| json('[')),
        ];
        let mut admitted = attempts.iter().filter(|(kind, _)| self.admits(*kind));
        admitted.find_map(|(_, convert)| convert())
    }

    fn admits(self, kind: Self) -> bool {
        self.0 & kind.0 != 0
    }

    fn named(name: &str) -> Self {
        match name {
            "null" => Self::NULL,
            "integer" => Self::INTEGER,
            "number" => Self::NUMBER,
            "boolean" => Self::BOOLEAN,
            "object" => Self::OBJECT,
            "array" => Self::ARRAY,
            "string" => Self::STRING,
            _ => Self::default(),
        }
    }

    fn of_value(value: &Value) -> Self {
        match value {
            Value::Null => Self::NULL,
            Value::Bool(_) => Self::BOOLEAN,
            Value::Number(number) if number.is_f64() => Self::NUMBER,
            Value::Number(_) => Self::INTEGER,
            Value::String(_) => Self::STRING,
            Value::Array(_) => Self::ARRAY,
            Value::Object(_) => Self::OBJECT,
        }
    }

    /// Of any of these; silent if one of them is.
    fn union(all: impl Iterator<Item = Self>) -> Self {
        all.reduce(|a, b| match (a.0, b.0) {
            (0, _) | (_, 0) => Self::default(),
            (a, b) => Self(a | b),
        })
        .unwrap_or_default()
    }

    /// Of both, where both say something that goes together.
    fn both(self, other: Self) -> Self {
        match (self.0, other.0) {
            (0, _) => other,
            (_, 0) => self,
            (a, b) if a & b != 0 => Self(a & b),
            _ => self,
        }
    }
}

/// The schema of a member, looked for where schemas may declare one.
fn property<'a>(
    schema: &'a Value,
    root: &'a Value,
    name: &str,
    visits: &mut u32,
) -> Option<&'a Value> {
    *visits = visits.checked_sub(1)?;
    if let Some(own) = schema.get("properties").and_then(|all| all.get(name)) {
        return Some(own);
    }
    let referred = resolve(schema, root).into_iter();
    let branches = ["allOf", "anyOf", "oneOf"]
        .iter()
        .filter_map(|key| schema.get(key)?.as_array())
        .flatten();
    referred
        .chain(branches)
        .find_map(|branch| property(branch, root, name, visits))
        .or_else(|| {
            schema
                .get("additionalProperties")
                .filter(|rest| rest.is_object())
        })
}

fn of(schema: &Value, root: &Value, visits: &mut u32) -> ValueTypes {
    let Some(left) = visits.checked_sub(1) else {
        return ValueTypes::default();
    };
    *visits = left;
    let mut branch = |branch: &Value| of(branch, root, visits);
    let mut types = match schema.get("type") {
        Some(Value::String(name)) => ValueTypes::named(name),
        Some(Value::Array(names)) => ValueTypes::union(
            names
                .iter()
                .filter_map(Value::as_str)
                .map(ValueTypes::named),
        ),
        _ => ValueTypes::default(),
    };
    if let Some(values) = schema.get("enum").and_then(Value::as_array) {
        types = types.both(ValueTypes::union(values.iter().map(ValueTypes::of_value)));
    }
    if let Some(value) = schema.get("const") {
        types = types.both(ValueTypes::of_value(value));
    }
    for key in ["anyOf", "oneOf"] {
        if let Some(branches) = schema.get(key).and_then(Value::as_array) {
            types = types.both(ValueTypes::union(branches.iter().map(&mut branch)));
        }
    }
    for part in schema
        .get("allOf")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        types = types.both(branch(part));
    }
    if let Some(target) = resolve(schema, root) {
        types = types.both(branch(target));
    }
    if types == ValueTypes::default() {
        let has = |key| schema.get(key).is_some();
        if has("properties") || has("additionalProperties") {
            return ValueTypes::OBJECT;
        }
        if has("items") || has("prefixItems") {
            return ValueTypes::ARRAY;
        }
    }
    types
}

/// What a local `$ref` points at.
fn resolve<'a>(schema: &Value, root: &'a Value) -> Option<&'a Value> {
    root.pointer(schema.get("$ref")?.as_str()?.strip_prefix('#')?)
}

/// Digits of any length, as JSON writes them; `5.0` is 5.
fn integer(text: &str) -> Option<String> {
    let (sign, digits) = match text.strip_prefix('-') {
        Some(digits) => ("-", digits),
        None => ("", text.strip_prefix('+').unwrap_or(text)),
    };
    let digits = match digits.split_once('.') {
        Some((whole, fraction)) if !fraction.is_empty() => {
            fraction.bytes().all(|b| b == b'0').then_some(whole)?
        }
        _ => digits,
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = match digits.trim_start_matches('0') {
        "" => return Some("0".to_owned()),
        digits => digits,
    };
    Some(format!("{sign}{digits}"))
}

/// As the text has it where that is JSON, so that no digit is lost.
fn number(text: &str) -> Option<String> {
    if serde_json::from_str::<Number>(text).is_ok() {
        return Some(text.to_owned());
    }
    if !text
        .bytes()
        .all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b))
    {
        return None;
    }
    // Beyond 64 bits it is as large as can be: most readers of JSON refuse more.
    let number: f64 = text.parse().ok()?;
    Number::from_f64(number.clamp(f64::MIN, f64::MAX)).map(|number| number.to_string())
}

fn boolean(text: &str) -> Option<&'static str> {
    match text {
        "true" | "True" | "TRUE" => Some("true"),
        "false" | "False" | "FALSE" => Some("false"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// The types of a parameter `x` with this schema.
    fn types(schema: &Value) -> ValueTypes {
        let root = json!({
            "properties": {"x": schema},
            "$defs": {"Day": {"type": "integer"}, "Loop": {"$ref": "#/$defs/Loop"}},
        });
        ValueTypes::of_parameter(&root, "x")
    }

    #[test]
    fn values_become_what_the_schema_says() {
        let check = |schema: Value, text: &str, expect: Option<&str>| {
            let found = types(&schema).convert(text);
            assert_eq!(found.as_deref(), expect, "{schema} {text:?}");
        };
        let typed = |kind: &str| json!({"type": kind});
        check(typed("integer"), "5", Some("5"));
        check(typed("integer"), " -05 ", Some("-5"));
        check(typed("integer"), "000", Some("0"));
        check(typed("integer"), "5.0", Some("5"));
        check(typed("integer"), "5.5", None);
        check(typed("integer"), "five", None);
        let long = "123456789012345678901234567890";
        check(typed("integer"), long, Some(long));
        check(typed("number"), "1.50", Some("1.50"));
        check(typed("number"), "1e3", Some("1e3"));
        check(typed("number"), ".5", Some("0.5"));
        check(typed("number"), "-1e999", Some("-1.7976931348623157e+308"));
        check(typed("number"), "inf", None);
        check(typed("number"), "nan", None);
        check(typed("boolean"), "True", Some("true"));
        check(typed("boolean"), "false", Some("false"));
        check(typed("boolean"), "yes", None);
        check(typed("null"), "None", Some("null"));
        check(typed("object"), "{\"a\": [1]}", Some("{\"a\": [1]}"));
        check(typed("object"), "[1]", None);
        check(typed("object"), "{\"a\": ", None);
        check(typed("array"), "[1, 2]\n", Some("[1, 2]"));
        check(typed("string"), "5", None);
        check(json!({}), "5", None);
        // Null, integer, number, boolean, object, array, string.
        let any = json!({"type": ["string", "number", "integer", "boolean", "null"]});
        check(any.clone(), "5", Some("5"));
        check(any.clone(), "5.5", Some("5.5"));
        check(any.clone(), "null", Some("null"));
        check(any, "text", None);
    }

    #[test]
    fn schemas_say_it_in_many_ways() {
        let check = |schema: Value, expect: u8| {
            assert_eq!(types(&schema), ValueTypes(expect), "{schema}");
        };
        check(json!({"type": ["integer", "null"]}), 1 | 2);
        check(json!({"enum": [1, "a", null]}), 1 | 2 | 64);
        check(json!({"type": "string", "enum": ["1", "2"]}), 64);
        check(json!({"const": true}), 8);
        check(
            json!({"anyOf": [{"type": "integer"}, {"type": "null"}]}),
            1 | 2,
        );
        check(json!({"anyOf": [{"type": "integer"}, {}]}), 0);
        check(
            json!({"oneOf": [{"$ref": "#/$defs/Day"}, {"type": "string"}]}),
            2 | 64,
        );
        check(
            json!({"allOf": [{"$ref": "#/$defs/Day"}], "description": "d"}),
            2,
        );
        check(json!({"$ref": "#/$defs/Loop"}), 0);
        check(json!({"$ref": "#/$defs/Missing"}), 0);
        check(json!({"properties": {}}), 16);
        check(json!({"items": {}}), 32);
        check(json!(true), 0);
    }

    #[test]
    fn parameters_are_found_where_schemas_declare_them() {
        let check = |root: Value, expect: u8| {
            let types = ValueTypes::of_parameter(&root, "x");
            assert_eq!(types, ValueTypes(expect), "{root}");
        };
        check(json!({"properties": {"y": {"type": "integer"}}}), 0);
        check(json!({"additionalProperties": {"type": "integer"}}), 2);
        check(json!({"additionalProperties": false}), 0);
        let tool = json!({"properties": {"x": {"type": "integer"}}});
        check(json!({"$ref": "#/$defs/T", "$defs": {"T": tool}}), 2);
        check(json!({"allOf": [{"properties": {}}, tool]}), 2);
        check(json!({"$ref": "#"}), 0);
        let circles = vec![json!({"$ref": "#"}); 100];
        check(json!({"allOf": circles, "anyOf": circles}), 0);
    }
}
