//! Reading a JSON object by name and type, with errors that name the path.
//!
//! `null` counts as absent. Nothing is coerced: `"1"` and `true` are no numbers, `5.0` is an
//! integer and `5.5` is none.

use std::fmt::Display;
use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use crate::error::ApiError;

/// An object and where it stands in the request.
#[derive(Clone, Debug)]
pub struct Fields<'a> {
    map: &'a Map<String, Value>,
    path: String,
}

impl<'a> Fields<'a> {
    /// The request itself.
    pub fn root(map: &'a Map<String, Value>) -> Self {
        Self {
            map,
            path: String::new(),
        }
    }

    /// `value`, found at `path`, if it is an object.
    pub fn of(value: &'a Value, path: String) -> Result<Self, ApiError> {
        match value {
            Value::Object(map) => Ok(Self { map, path }),
            other => Err(ApiError::invalid_type(path, "an object", other)),
        }
    }

    /// The path of a member.
    pub fn path(&self, name: &str) -> String {
        if self.path.is_empty() {
            name.to_owned()
        } else {
            format!("{}.{name}", self.path)
        }
    }

    /// A member that is there and not `null`.
    pub fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// All members.
    pub fn map(&self) -> &'a Map<String, Value> {
        self.map
    }

    /// `true` or `false`.
    pub fn bool(&self, name: &str) -> Result<Option<bool>, ApiError> {
        self.read(name, "a boolean", Value::as_bool)
    }

    /// An integer in `range`.
    pub fn int(&self, name: &str, range: RangeInclusive<i128>) -> Result<Option<i128>, ApiError> {
        let value = self.read(name, "an integer", integer)?;
        self.within(name, value, &range)
    }

    /// A number in `range`.
    pub fn number(&self, name: &str, range: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let value = self.read(name, "a number", Value::as_f64)?;
        self.within(name, value, &range)
    }

    /// A string.
    pub fn string(&self, name: &str) -> Result<Option<&'a str>, ApiError> {
        self.read(name, "a string", Value::as_str)
    }

    /// A string of at most `max` characters.
    pub fn short_string(&self, name: &str, max: usize) -> Result<Option<&'a str>, ApiError> {
        let value = self.string(name)?;
        match value.map(|text| text.chars().count()) {
            Some(len) if len > max => Err(ApiError::invalid_value(
                self.path(name),
                format!("must have at most {max} characters, has {len}"),
            )),
            _ => Ok(value),
        }
    }

    /// One of `words`.
    pub fn word(
        &self,
        name: &str,
        words: &'static [&'static str],
    ) -> Result<Option<&'static str>, ApiError> {
        let Some(value) = self.string(name)? else {
            return Ok(None);
        };
        match words.iter().find(|word| **word == value) {
            Some(word) => Ok(Some(word)),
            None => Err(ApiError::invalid_value(
                self.path(name),
                format!("must be one of {}, is {value:?}", words.join(", ")),
            )),
        }
    }

    /// An array.
    pub fn array(&self, name: &str) -> Result<Option<&'a [Value]>, ApiError> {
        self.read(name, "an array", |value| {
            value.as_array().map(Vec::as_slice)
        })
    }

    /// An object.
    pub fn object(&self, name: &str) -> Result<Option<Fields<'a>>, ApiError> {
        self.get(name)
            .map(|value| Fields::of(value, self.path(name)))
            .transpose()
    }

    /// The error for a member that must be there.
    pub fn missing(&self, name: &str) -> ApiError {
        let path = self.path(name);
        let message = format!("missing required parameter: '{path}'");
        ApiError::bad_request("missing_required_parameter", Some(path), message)
    }

    fn read<T>(
        &self,
        name: &str,
        expected: &str,
        read: impl Fn(&'a Value) -> Option<T>,
    ) -> Result<Option<T>, ApiError> {
        let Some(value) = self.get(name) else {
            return Ok(None);
        };
        match read(value) {
            Some(value) => Ok(Some(value)),
            None => Err(ApiError::invalid_type(self.path(name), expected, value)),
        }
    }

    fn within<T: PartialOrd + Display>(
        &self,
        name: &str,
        value: Option<T>,
        range: &RangeInclusive<T>,
    ) -> Result<Option<T>, ApiError> {
        match value {
            Some(value) if !range.contains(&value) => Err(ApiError::invalid_value(
                self.path(name),
                format!(
                    "must be between {} and {}, is {value}",
                    range.start(),
                    range.end()
                ),
            )),
            value => Ok(value),
        }
    }
}

/// The body of a request: an object, or 400 without `param`.
pub fn parse_object(body: &[u8]) -> Result<Map<String, Value>, ApiError> {
    let invalid = |message| Err(ApiError::bad_request("invalid_json", None, message));
    match serde_json::from_slice(body) {
        Ok(Value::Object(map)) => Ok(map),
        Ok(other) => invalid(format!(
            "the body must be a JSON object, is {}",
            type_name(&other)
        )),
        Err(error) => invalid(format!("the body is not valid JSON: {error}")),
    }
}

/// An integer however it is written: `5`, `5.0`, `5e0`.
pub fn integer(value: &Value) -> Option<i128> {
    let number = value.as_number()?;
    if let Some(int) = number.as_i64() {
        return Some(int.into());
    }
    if let Some(int) = number.as_u64() {
        return Some(int.into());
    }
    let float = number.as_f64()?;
    if float.fract() != 0.0 || float.abs() >= 1e30 {
        return None;
    }
    // What 64 bits could hold was taken above: this is less, though it was rounded back to it.
    let lowest = i128::from(i64::MIN);
    Some(match float as i128 {
        int if int == lowest => lowest - 1,
        int => int,
    })
}

/// A token id below `vocab_size`.
pub fn token_id(
    value: &Value,
    vocab_size: u32,
    path: impl Fn() -> String,
) -> Result<u32, ApiError> {
    match integer(value) {
        Some(id) if (0..i128::from(vocab_size)).contains(&id) => Ok(id as u32),
        Some(id) => Err(ApiError::invalid_value(
            path(),
            format!(
                "token ids are 0 to {}, got {id}",
                vocab_size.saturating_sub(1)
            ),
        )),
        None => Err(ApiError::invalid_type(path(), "a token id", value)),
    }
}

/// What a value is, for people.
pub fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn error(json: &str, read: impl Fn(&Fields<'_>) -> Result<(), ApiError>) -> String {
        let map = parse_object(json.as_bytes()).unwrap();
        let error = read(&Fields::root(&map)).unwrap_err();
        format!("{} {}", error.code, error.param.unwrap_or_default())
    }

    #[test]
    fn integers_are_integers_however_written() {
        let check = |text: &str, expect: Option<i128>| {
            let value = serde_json::from_str(text).unwrap();
            assert_eq!(integer(&value), expect, "{text}");
        };
        check("5", Some(5));
        check("5.0", Some(5));
        check("5e0", Some(5));
        check("-9223372036854775808", Some(-(1 << 63)));
        check("-9223372036854775809", Some(-(1 << 63) - 1));
        check("18446744073709551615", Some((1 << 64) - 1));
        check("18446744073709552000", Some(1 << 64));
        check("5.5", None);
        check("1e300", None);
        check("\"5\"", None);
        check("true", None);
    }

    #[test]
    fn errors_name_the_path() {
        let nested = r#"{"a": {"b": "x", "c": 3, "d": null}}"#;
        let read = |json, read: fn(&Fields<'_>) -> Result<(), ApiError>| error(json, read);
        assert_eq!(
            read(nested, |fields| {
                fields.object("a")?.unwrap().bool("b").map(drop)
            }),
            "invalid_type a.b"
        );
        assert_eq!(
            read(nested, |fields| {
                fields.object("a")?.unwrap().int("c", 0..=2).map(drop)
            }),
            "invalid_value a.c"
        );
        assert_eq!(
            read(nested, |fields| {
                let inner = fields.object("a")?.unwrap();
                inner
                    .string("d")?
                    .ok_or_else(|| inner.missing("d"))
                    .map(drop)
            }),
            "missing_required_parameter a.d"
        );
    }

    #[test]
    fn only_json_objects_are_bodies() {
        let check = |body: &[u8]| {
            let error = parse_object(body).unwrap_err();
            assert_eq!((error.code, error.param), ("invalid_json", None));
        };
        check(b"");
        check(b"[]");
        check(b"{\"a\": NaN}");
        check(b"{\"a\": 1e999}");
        check(b"{\"a\": \"\xff\"}");
        check(br#"{"a": "\ud800"}"#);
        check(br#"{"a": 1"#);
        check(&[b"{\"a\":".as_slice(), &b"[".repeat(10_000)].concat());
        let last = parse_object(br#"{"a": 1, "a": 2}"#).unwrap();
        assert_eq!(last["a"], 2);
    }
}
