//! Schemas of strings as terminals, for strings that are written without quotes.

use constraint::GrammarError;
use serde_json::{Map, Value};

use super::pattern;

/// References that may be followed in a row.
const MAX_DEPTH: u32 = 32;

/// Which texts a schema admits as strings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Texts {
    /// None: it admits no string.
    None,
    /// All.
    All,
    /// Those of any of these terminals.
    Some(Vec<String>),
}

/// Reads the constraints on strings of `schema`, found at `at` in `root`.
pub(super) fn texts(schema: &Value, root: &Value, at: &str) -> Result<Texts, GrammarError> {
    Reader { root, of: None }.texts(schema, at, MAX_DEPTH)
}

/// Which of `null`, `true` and `false` the schema admits, as texts.
pub(super) fn literals(schema: &Value, root: &Value, at: &str) -> Result<Texts, GrammarError> {
    let mut admitted = Texts::None;
    for literal in [Value::Null, true.into(), false.into()] {
        let reader = Reader {
            root,
            of: Some(&literal),
        };
        if reader.texts(schema, at, MAX_DEPTH)? != Texts::None {
            admitted = admitted.or(Texts::one(format!("/{literal}/")));
        }
    }
    Ok(admitted)
}

struct Reader<'a> {
    root: &'a Value,
    /// Instead of strings, this value.
    of: Option<&'a Value>,
}

impl Reader<'_> {
    fn texts(&self, schema: &Value, at: &str, depth: u32) -> Result<Texts, GrammarError> {
        let map = match schema {
            Value::Bool(true) => return Ok(Texts::All),
            Value::Bool(false) => return Ok(Texts::None),
            Value::Object(map) => map,
            _ => {
                let message = format!("the schema at {at} is neither an object nor a boolean");
                return Err(GrammarError::Malformed { message });
            }
        };
        let Some(depth) = depth.checked_sub(1) else {
            return Err(GrammarError::UnresolvedRef {
                reference: map.get("$ref").map(Value::to_string).unwrap_or_default(),
                at: at.to_owned(),
                why: "it leads through too many schemas",
            });
        };
        for keyword in ["not", "if"] {
            if map.contains_key(keyword) {
                return Err(unsupported(keyword, at, "a mask cannot hold it"));
            }
        }
        let kind = match self.of {
            None => "string",
            Some(Value::Null) => "null",
            Some(_) => "boolean",
        };
        let mut texts = match map.get("type") {
            Some(Value::String(name)) if name != kind => return Ok(Texts::None),
            Some(Value::Array(names)) if !names.iter().any(|name| name == kind) => {
                return Ok(Texts::None);
            }
            _ => Texts::All,
        };
        let literal = |value: &Value| match (self.of, value) {
            (None, Value::String(text)) => Texts::one(format!("/{}/", pattern::escape(text))),
            (Some(own), value) if own == value => Texts::All,
            _ => Texts::None,
        };
        if let Some(Value::Array(values)) = map.get("enum") {
            texts = texts.and(values.iter().map(literal).fold(Texts::None, Texts::or));
        }
        if let Some(value) = map.get("const") {
            texts = texts.and(literal(value));
        }
        if self.of.is_none() {
            texts = texts.and(own(map, at)?);
        }
        for keyword in ["anyOf", "oneOf"] {
            if let Some(Value::Array(branches)) = map.get(keyword) {
                let mut any = Texts::None;
                for (i, branch) in branches.iter().enumerate() {
                    any = any.or(self.texts(branch, &format!("{at}/{keyword}/{i}"), depth)?);
                }
                texts = texts.and(any);
            }
        }
        if let Some(Value::Array(branches)) = map.get("allOf") {
            for (i, branch) in branches.iter().enumerate() {
                texts = texts.and(self.texts(branch, &format!("{at}/allOf/{i}"), depth)?);
            }
        }
        if let Some(Value::String(reference)) = map.get("$ref") {
            let target = resolve(self.root, reference, at)?;
            texts = texts.and(self.texts(target, reference, depth)?);
        }
        Ok(texts)
    }
}

impl Texts {
    /// Texts of both.
    fn and(self, other: Self) -> Self {
        match (self, other) {
            (Self::None, _) | (_, Self::None) => Self::None,
            (Self::All, some) | (some, Self::All) => some,
            (Self::Some(a), Self::Some(b)) => {
                Self::one(format!("({} & {})", any_of(&a), any_of(&b)))
            }
        }
    }

    /// Texts that none of these expressions match.
    pub(super) fn but(self, excluded: &[&str]) -> Self {
        if excluded.is_empty() {
            return self;
        }
        // The complement alone would admit bytes that are no text.
        let others = format!("(/(?s:.*)/ & ~({}))", excluded.join(" | "));
        self.and(Self::one(others))
    }

    /// Texts of either.
    pub(super) fn or(self, other: Self) -> Self {
        match (self, other) {
            (Self::All, _) | (_, Self::All) => Self::All,
            (Self::None, some) | (some, Self::None) => some,
            (Self::Some(mut a), Self::Some(b)) => {
                a.extend(b);
                Self::Some(a)
            }
        }
    }

    fn one(terminal: String) -> Self {
        Self::Some(vec![terminal])
    }

    /// The expression of a terminal; `None` if there is no text.
    pub(super) fn expression(&self) -> Option<String> {
        match self {
            Self::None => None,
            Self::All => Some("/(?s:.*)/".into()),
            Self::Some(terminals) => Some(any_of(terminals)),
        }
    }
}

fn any_of(terminals: &[String]) -> String {
    match terminals {
        [one] => one.clone(),
        many => format!("({})", many.join(" | ")),
    }
}

fn unsupported(keyword: &str, at: &str, why: &str) -> GrammarError {
    GrammarError::Unsupported {
        keyword: keyword.to_owned(),
        at: at.to_owned(),
        why: why.to_owned(),
    }
}

/// What a reference within the document points at.
pub(super) fn resolve<'a>(
    root: &'a Value,
    reference: &str,
    at: &str,
) -> Result<&'a Value, GrammarError> {
    let unresolved = |why| GrammarError::UnresolvedRef {
        reference: reference.to_owned(),
        at: at.to_owned(),
        why,
    };
    let pointer = reference
        .strip_prefix('#')
        .ok_or_else(|| unresolved("only references into the same document are"))?;
    root.pointer(pointer)
        .ok_or_else(|| unresolved("there is nothing"))
}

/// What only strings have.
fn own(map: &Map<String, Value>, at: &str) -> Result<Texts, GrammarError> {
    let mut texts = length(map);
    if let Some(Value::String(text)) = map.get("pattern") {
        texts = texts.and(Texts::one(pattern::terminal(text, at)?));
    }
    if let Some(expression) = map.get("format").and_then(Value::as_str).and_then(format) {
        let expression = pattern::delimit(expression);
        texts = texts.and(Texts::one(format!("/{expression}/")));
    }
    Ok(texts)
}

fn length(map: &Map<String, Value>) -> Texts {
    let number = |key| map.get(key).and_then(Value::as_u64);
    match (number("minLength").unwrap_or(0), number("maxLength")) {
        (0, None) => Texts::All,
        (min, None) => Texts::one(format!("/(?s:.{{{min},}})/")),
        (min, Some(max)) => Texts::one(format!("/(?s:.{{{min},{max}}})/")),
    }
}

/// Formats that are enforced; others are annotations.
fn format(name: &str) -> Option<&'static str> {
    Some(match name {
        "date" => DATE,
        "time" => TIME,
        "date-time" => DATE_TIME,
        "uuid" => r"[0-9a-fA-F]{8}(-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}",
        "email" => {
            r"[A-Za-z0-9!#$%&'*+\-=?^_`{|}~]+(\.[A-Za-z0-9!#$%&'*+\-=?^_`{|}~]+)*@[A-Za-z0-9]([A-Za-z0-9\-]{0,61}[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9\-]{0,61}[A-Za-z0-9])?)+"
        }
        "ipv4" => {
            r"((25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])"
        }
        _ => return None,
    })
}

// February has 28 days here: 29 would need the year.
macro_rules! date {
    () => {
        r"[0-9]{4}-((0[13578]|1[02])-(0[1-9]|[12][0-9]|3[01])|(0[469]|11)-(0[1-9]|[12][0-9]|30)|02-(0[1-9]|1[0-9]|2[0-8]))"
    };
}
macro_rules! time {
    () => {
        r"([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,9})?(Z|[+\-]([01][0-9]|2[0-3]):[0-5][0-9])"
    };
}
const DATE: &str = date!();
const TIME: &str = time!();
const DATE_TIME: &str = concat!(date!(), "T", time!());

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn read(schema: &Value) -> Result<Option<String>, GrammarError> {
        let root = json!({"$defs": {"Name": {"type": "string", "minLength": 1}, "Loop": {"$ref": "#/$defs/Loop"}}});
        texts(schema, &root, "#").map(|texts| texts.expression())
    }

    #[test]
    fn schemas_become_terminals() {
        let check = |schema: Value, expect: Option<&str>| {
            assert_eq!(read(&schema).unwrap().as_deref(), expect, "{schema}");
        };
        check(
            json!({"type": "string", "description": "d", "format": "uri"}),
            Some("/(?s:.*)/"),
        );
        check(json!(true), Some("/(?s:.*)/"));
        check(json!({"type": "integer"}), None);
        check(json!({"type": ["integer", "null"]}), None);
        check(
            json!({"enum": ["a", 1, "b/c", "d.e"]}),
            Some(r"(/a/ | /b\/c/ | /d\.e/)"),
        );
        check(json!({"const": 5}), None);
        check(
            json!({"type": "string", "maxLength": 9}),
            Some("/(?s:.{0,9})/"),
        );
        check(
            json!({"$ref": "#/$defs/Name", "pattern": "^x"}),
            Some("(/(?:x)(?s:.*)/ & /(?s:.{1,})/)"),
        );
        check(
            json!({"anyOf": [{"type": "null"}, {"enum": ["a", "b"]}, {"const": "c"}]}),
            Some("(/a/ | /b/ | /c/)"),
        );
        check(json!({"anyOf": [{"const": "c"}, {}]}), Some("/(?s:.*)/"));
        check(
            json!({"allOf": [{"enum": ["a"]}, {"type": "integer"}]}),
            None,
        );
    }

    #[test]
    fn what_is_refused() {
        let check = |schema: Value, expect: &str| {
            let error = read(&schema).unwrap_err().to_string();
            assert!(error.contains(expect), "{error}");
        };
        check(json!({"not": {"const": "x"}}), "`not`");
        check(json!({"$ref": "#/$defs/Nobody"}), "#/$defs/Nobody");
        check(json!({"$ref": "https://example.org/x"}), "same document");
        check(json!({"$ref": "#/$defs/Loop"}), "too many");
        check(json!({"anyOf": [5]}), "#/anyOf/0");
    }
}
