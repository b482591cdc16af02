//! JSON schemas before the library sees them.
//!
//! The library drops what it does not know and words its refusals without a place. So every schema
//! that can be reached is read here first: what cannot exclude anything goes, what no mask can hold
//! is refused by name, older drafts are brought to the newest.

use std::collections::{HashMap, HashSet};

use llguidance::derivre::RegexBuilder;
use llguidance::regex_to_lark;
use serde_json::{Map, Value, json};

use crate::{GrammarError, formats};

/// Items, characters or properties that a schema may ask for at least: more than any answer holds.
const MAX_MINIMUM: u64 = 100_000;

/// One schema each.
const SCHEMAS: [&str; 2] = ["items", "additionalProperties"];
/// Arrays of schemas.
const SCHEMA_LISTS: [&str; 4] = ["prefixItems", "anyOf", "oneOf", "allOf"];
/// Objects of schemas.
const SCHEMA_MAPS: [&str; 2] = ["properties", "patternProperties"];
/// Non-negative integers.
const COUNTS: [&str; 6] = [
    "minItems",
    "maxItems",
    "minLength",
    "maxLength",
    "minProperties",
    "maxProperties",
];
/// Numbers.
const BOUNDS: [&str; 5] = [
    "minimum",
    "maximum",
    "exclusiveMinimum",
    "exclusiveMaximum",
    "multipleOf",
];
/// Keywords that exclude answers in a way that masks cannot follow.
const UNSUPPORTED: [&str; 19] = [
    "not",
    "if",
    "then",
    "else",
    "contains",
    "minContains",
    "maxContains",
    "uniqueItems",
    "propertyNames",
    "dependencies",
    "dependentRequired",
    "dependentSchemas",
    "unevaluatedItems",
    "unevaluatedProperties",
    "additionalItems",
    "$dynamicRef",
    "$recursiveRef",
    "divisibleBy",
    "disallow",
];
/// Formats that a string can be held to.
const FORMATS: [&str; 10] = [
    "date",
    "time",
    "date-time",
    "duration",
    "uuid",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "uri",
];
const TYPES: [&str; 7] = [
    "null", "boolean", "integer", "number", "string", "array", "object",
];

/// Whether a schema is well-formed and holds only what masks can hold. Compiling it checks the same;
/// this is for schemas of which a grammar takes parts.
pub fn check(schema: &Value) -> Result<(), GrammarError> {
    prepare(schema.clone()).map(drop)
}

/// The schema as the library is to see it.
pub(crate) fn prepare(mut root: Value) -> Result<Value, GrammarError> {
    let names = Names::of(&root);
    let mut seen: HashSet<String> = HashSet::new();
    let mut pending = vec![String::new()];
    while let Some(at) = pending.pop() {
        if !seen.insert(at.clone()) {
            continue;
        }
        let schema = root
            .pointer_mut(&at)
            .expect("only pointers that lead somewhere are pushed");
        let num_known = pending.len();
        let mut visit = Visit {
            at: &at,
            names: &names,
            next: &mut pending,
        };
        match schema {
            Value::Bool(_) => {}
            Value::Object(schema) => visit.schema(schema)?,
            _ => return Err(visit.malformed("a schema is an object or a boolean")),
        }
        let mut new = pending[num_known..].iter();
        if let Some(dangling) = new.find(|next| root.pointer(next).is_none()) {
            return Err(GrammarError::UnresolvedRef {
                reference: format!("#{dangling}"),
                at: place(&at),
                why: "nothing is there",
            });
        }
    }
    Ok(root)
}

/// How deep brackets lie in each other, counted without descending.
pub(crate) fn depth(json: &str) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in json.bytes() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            _ if in_string => {}
            b'{' | b'[' => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// What references may call the schemas of a document.
struct Names {
    /// The document's own `$id`.
    id: Option<String>,
    /// Where each `$anchor` is.
    anchors: HashMap<String, String>,
}

impl Names {
    fn of(root: &Value) -> Self {
        let mut anchors = HashMap::new();
        let mut pending = vec![(String::new(), root)];
        while let Some((at, value)) = pending.pop() {
            match value {
                Value::Object(members) => {
                    if let Some(Value::String(anchor)) = members.get("$anchor") {
                        anchors.insert(anchor.clone(), at.clone());
                    }
                    let data = ["enum", "const", "default", "examples"];
                    let schemas = members.iter().filter(|(k, _)| !data.contains(&k.as_str()));
                    pending.extend(schemas.map(|(k, v)| (child(&at, k), v)));
                }
                Value::Array(items) => {
                    let items = items.iter().enumerate();
                    pending.extend(items.map(|(i, v)| (format!("{at}/{i}"), v)));
                }
                _ => {}
            }
        }
        let id = root.get("$id").and_then(Value::as_str);
        Self {
            id: id.map(|id| id.trim_end_matches('#').to_owned()),
            anchors,
        }
    }
}

/// One schema on the way.
struct Visit<'a> {
    at: &'a str,
    names: &'a Names,
    next: &'a mut Vec<String>,
}

impl Visit<'_> {
    fn schema(&mut self, schema: &mut Map<String, Value>) -> Result<(), GrammarError> {
        self.drop_names(schema)?;
        modernise(schema);
        drop_what_excludes_nothing(schema);
        for keyword in UNSUPPORTED {
            if schema.contains_key(keyword) {
                return Err(self.unsupported(keyword, "it cannot be held by a mask"));
            }
        }
        self.types(schema)?;
        self.format(schema)?;
        self.numbers(schema)?;
        self.lists(schema)?;
        self.count_properties(schema)?;
        self.reference(schema)?;
        self.children(schema)
    }

    /// Names move what references mean. Those of the whole document and of anchors are resolved
    /// here; a document inside the document is not.
    fn drop_names(&self, schema: &mut Map<String, Value>) -> Result<(), GrammarError> {
        for keyword in ["$id", "id"] {
            let Some(Value::String(id)) = schema.get(keyword) else {
                continue;
            };
            if !self.at.is_empty() && !id.starts_with('#') {
                return Err(self.unsupported(keyword, "only the whole schema can have one"));
            }
            schema.shift_remove(keyword);
        }
        schema.shift_remove("$schema");
        schema.shift_remove("$anchor");
        schema.shift_remove("$dynamicAnchor");
        schema.shift_remove("x-guidance");
        Ok(())
    }

    fn types(&self, schema: &Map<String, Value>) -> Result<(), GrammarError> {
        let known = |name: &Value| name.as_str().is_some_and(|name| TYPES.contains(&name));
        let fits = match schema.get("type") {
            None => true,
            Some(Value::Array(names)) => !names.is_empty() && names.iter().all(known),
            Some(name) => known(name),
        };
        if fits {
            return Ok(());
        }
        Err(self.malformed(&format!(
            "`type` is one of {}, or a list of them",
            TYPES.join(", ")
        )))
    }

    /// All formats but these tell about strings.
    fn format(&self, schema: &mut Map<String, Value>) -> Result<(), GrammarError> {
        let Some(format) = schema.get("format") else {
            return Ok(());
        };
        let Some(format) = format.as_str() else {
            return Err(self.malformed("`format` is a string"));
        };
        if !allows_type(schema, "string") {
            schema.shift_remove("format");
            return Ok(());
        }
        if FORMATS.contains(&format) {
            let patterns = formats::patterns(format);
            if !patterns.is_empty() {
                schema.shift_remove("format");
            }
            for pattern in patterns {
                and(schema, json!({"pattern": format!("^(?:{pattern})$")}));
            }
            return Ok(());
        }
        let why = format!("{format:?} is none of {}", FORMATS.join(", "));
        Err(self.unsupported("format", &why))
    }

    fn numbers(&self, schema: &mut Map<String, Value>) -> Result<(), GrammarError> {
        for keyword in COUNTS {
            let Some(value) = schema.get_mut(keyword) else {
                continue;
            };
            // 2.0 is an integer too.
            let whole = value
                .as_f64()
                .filter(|count| *count >= 0.0 && count.fract() == 0.0 && *count < 9e15);
            let Some(count) = whole.map(|count| count as u64) else {
                return Err(self.malformed(&format!("`{keyword}` is a non-negative integer")));
            };
            *value = count.into();
            if keyword.starts_with("min") && count > MAX_MINIMUM {
                return Err(GrammarError::TooLarge {
                    what: format!("`{keyword}` at {}", place(self.at)),
                    size: count,
                    max: MAX_MINIMUM,
                });
            }
        }
        for keyword in BOUNDS {
            if schema.get(keyword).is_some_and(|bound| !bound.is_number()) {
                return Err(self.malformed(&format!("`{keyword}` is a number")));
            }
        }
        let step = schema.get("multipleOf").and_then(Value::as_f64);
        if step.is_some_and(|step| step <= 0.0) {
            return Err(self.malformed("`multipleOf` is greater than 0"));
        }
        Ok(())
    }

    fn lists(&self, schema: &Map<String, Value>) -> Result<(), GrammarError> {
        let is_list_of_strings = |value: &Value| {
            let items = value.as_array();
            items.is_some_and(|items| items.iter().all(Value::is_string))
        };
        if schema
            .get("required")
            .is_some_and(|v| !is_list_of_strings(v))
        {
            return Err(self.malformed("`required` is a list of strings"));
        }
        self.patterns(schema)?;
        match schema.get("enum") {
            None => Ok(()),
            Some(Value::Array(values)) if !values.is_empty() => Ok(()),
            Some(_) => Err(self.malformed("`enum` is a list of at least one value")),
        }
    }

    fn patterns(&self, schema: &Map<String, Value>) -> Result<(), GrammarError> {
        if let Some(pattern) = schema.get("pattern") {
            let Some(pattern) = pattern.as_str() else {
                return Err(self.malformed("`pattern` is a string"));
            };
            self.regex("pattern", pattern)?;
        }
        if let Some(Value::Object(schemas)) = schema.get("patternProperties") {
            for pattern in schemas.keys() {
                self.regex("patternProperties", pattern)?;
            }
        }
        Ok(())
    }

    fn regex(&self, keyword: &str, pattern: &str) -> Result<(), GrammarError> {
        let in_lark = regex_to_lark(pattern, "dw");
        match RegexBuilder::new().mk_regex_for_serach(&in_lark) {
            Ok(_) => Ok(()),
            Err(error) => {
                // Past the pattern itself and a marker below it, the last line says what is wrong.
                let error = error.to_string();
                let why = error.lines().last().unwrap_or_default();
                Err(self.unsupported(keyword, &format!("{pattern:?}: {why}")))
            }
        }
    }

    /// A key may come twice among the additional ones, so only one of those is sure to count.
    fn count_properties(&self, schema: &Map<String, Value>) -> Result<(), GrammarError> {
        let Some(wanted) = schema.get("minProperties").and_then(Value::as_u64) else {
            return Ok(());
        };
        let required = schema.get("required").and_then(Value::as_array);
        let names: HashSet<_> = required.into_iter().flatten().collect();
        if wanted > names.len() as u64 + 1 {
            let why = "it asks for more than the required properties and one more";
            return Err(self.unsupported("minProperties", why));
        }
        Ok(())
    }

    fn reference(&mut self, schema: &mut Map<String, Value>) -> Result<(), GrammarError> {
        let Some(reference) = schema.get_mut("$ref") else {
            return Ok(());
        };
        let Some(text) = reference.as_str() else {
            return Err(self.malformed("`$ref` is a string"));
        };
        let unresolved = |why| GrammarError::UnresolvedRef {
            reference: text.to_owned(),
            at: place(self.at),
            why,
        };
        let local = match &self.names.id {
            Some(id) if !id.is_empty() => text.strip_prefix(id.as_str()).unwrap_or(text),
            _ => text,
        };
        let pointer = match local.strip_prefix('#') {
            Some(pointer) if pointer.is_empty() || pointer.starts_with('/') => {
                percent_decoded(pointer)
            }
            Some(anchor) => {
                let found = self.names.anchors.get(anchor);
                found
                    .cloned()
                    .ok_or_else(|| unresolved("no `$anchor` has this name"))?
            }
            None if local.is_empty() => String::new(),
            None => {
                return Err(unresolved(
                    "only references into the schema itself are followed",
                ));
            }
        };
        *reference = format!("#{}", percent_encoded(&pointer)).into();
        self.next.push(pointer);
        Ok(())
    }

    fn children(&mut self, schema: &Map<String, Value>) -> Result<(), GrammarError> {
        for keyword in SCHEMAS {
            if schema.contains_key(keyword) {
                self.next.push(child(self.at, keyword));
            }
        }
        for keyword in SCHEMA_LISTS {
            match schema.get(keyword) {
                None => {}
                Some(Value::Array(schemas)) if !schemas.is_empty() => {
                    let at = child(self.at, keyword);
                    let all = (0..schemas.len()).map(|i| format!("{at}/{i}"));
                    self.next.extend(all);
                }
                Some(_) => {
                    let what = format!("`{keyword}` is a list of at least one schema");
                    return Err(self.malformed(&what));
                }
            }
        }
        for keyword in SCHEMA_MAPS {
            match schema.get(keyword) {
                None => {}
                Some(Value::Object(schemas)) => {
                    let at = child(self.at, keyword);
                    self.next
                        .extend(schemas.keys().map(|name| child(&at, name)));
                }
                Some(_) => {
                    return Err(self.malformed(&format!("`{keyword}` is an object of schemas")));
                }
            }
        }
        Ok(())
    }

    fn malformed(&self, what: &str) -> GrammarError {
        GrammarError::Malformed {
            message: format!("at {}: {what}", place(self.at)),
        }
    }

    fn unsupported(&self, keyword: &str, why: &str) -> GrammarError {
        GrammarError::Unsupported {
            keyword: keyword.to_owned(),
            at: place(self.at),
            why: why.to_owned(),
        }
    }
}

/// Adds a schema that must hold too.
fn and(schema: &mut Map<String, Value>, other: Value) {
    match schema.get_mut("allOf") {
        Some(Value::Array(all)) => all.push(other),
        _ => drop(schema.insert("allOf".into(), vec![other].into())),
    }
}

/// Words of older drafts in those of the newest.
fn modernise(schema: &mut Map<String, Value>) {
    if matches!(schema.get("items"), Some(Value::Array(_))) {
        let prefix = schema.shift_remove("items").expect("found above");
        let rest = schema.shift_remove("additionalItems");
        schema.insert("prefixItems".into(), prefix);
        if let Some(rest) = rest {
            schema.insert("items".into(), rest);
        }
    }
    // Without a list before it, it says nothing.
    schema.shift_remove("additionalItems");
    for (flag, bound) in [
        ("exclusiveMinimum", "minimum"),
        ("exclusiveMaximum", "maximum"),
    ] {
        let Some(Value::Bool(excludes)) = schema.get(flag) else {
            continue;
        };
        let excludes = *excludes;
        schema.shift_remove(flag);
        if excludes && let Some(limit) = schema.shift_remove(bound) {
            schema.insert(flag.into(), limit);
        }
    }
    // The same where nothing beside it could have evaluated anything.
    let applies = [
        "$ref",
        "allOf",
        "anyOf",
        "oneOf",
        "if",
        "$dynamicRef",
        "dependentSchemas",
    ];
    if !applies.iter().any(|keyword| schema.contains_key(*keyword)) {
        let same = [
            ("unevaluatedProperties", "additionalProperties"),
            ("unevaluatedItems", "items"),
        ];
        for (keyword, plain) in same {
            if let Some(rest) = schema.shift_remove(keyword)
                && !schema.contains_key(plain)
            {
                schema.insert(plain.into(), rest);
            }
        }
    }
}

/// Keywords that are there and say nothing.
fn drop_what_excludes_nothing(schema: &mut Map<String, Value>) {
    if !schema.contains_key("contains") {
        schema.shift_remove("minContains");
        schema.shift_remove("maxContains");
    }
    if !schema.contains_key("if") {
        schema.shift_remove("then");
        schema.shift_remove("else");
    } else if !schema.contains_key("then") && !schema.contains_key("else") {
        schema.shift_remove("if");
    }
    let is_anything = |value: &Value| match value {
        Value::Bool(anything) => *anything,
        Value::Object(members) => members.is_empty(),
        _ => false,
    };
    let is_nothing = |value: &Value| value.as_object().is_some_and(Map::is_empty);
    let at_most_one = schema
        .get("maxItems")
        .and_then(Value::as_f64)
        .is_some_and(|max| max <= 1.0);
    schema.retain(|keyword, value| match keyword.as_str() {
        "uniqueItems" => *value != Value::Bool(false) && !at_most_one,
        "propertyNames" => {
            // Every name is a string.
            let is_string = value.as_object().is_some_and(|names| {
                names.len() == 1 && names.get("type") == Some(&"string".into())
            });
            !is_anything(value) && !is_string
        }
        "unevaluatedItems" | "unevaluatedProperties" => !is_anything(value),
        "not" => *value != Value::Bool(false),
        "dependencies" | "dependentRequired" | "dependentSchemas" => !is_nothing(value),
        "minItems" | "minLength" | "minProperties" => value.as_f64() != Some(0.0),
        _ => true,
    });
}

/// Whether a value of this type can fit as far as `type` tells.
fn allows_type(schema: &Map<String, Value>, name: &str) -> bool {
    match schema.get("type") {
        None => true,
        Some(Value::Array(names)) => names.iter().any(|other| other == name),
        Some(other) => other == name,
    }
}

/// A pointer as people write it.
fn place(at: &str) -> String {
    format!("#{at}")
}

fn child(at: &str, key: &str) -> String {
    format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"))
}

fn percent_decoded(pointer: &str) -> String {
    let mut bytes = Vec::with_capacity(pointer.len());
    let mut rest = pointer.as_bytes();
    while let Some((byte, tail)) = rest.split_first() {
        let hex = tail.get(..2).and_then(|hex| std::str::from_utf8(hex).ok());
        let code = hex.and_then(|hex| u8::from_str_radix(hex, 16).ok());
        if *byte == b'%'
            && let Some(code) = code
        {
            bytes.push(code);
            rest = &tail[2..];
        } else {
            bytes.push(*byte);
            rest = tail;
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// As a fragment of a URI.
fn percent_encoded(pointer: &str) -> String {
    use std::fmt::Write as _;
    let mut text = String::with_capacity(pointer.len());
    for byte in pointer.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'-' | b'_' | b'.' | b'~' | b'$' => {
                text.push(char::from(byte));
            }
            _ => write!(text, "%{byte:02X}").expect("a string takes all"),
        }
    }
    text
}
