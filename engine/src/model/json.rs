//! JSON as Python writes it: bare `Infinity`, `-Infinity` and `NaN` are numbers there and syntax
//! errors here. They become `{"__float__": "Infinity"}`, which is how newer writers spell the same.

use serde_json::Value;

/// The key of a number that JSON cannot write.
const FLOAT_KEY: &str = "__float__";

/// Parses a document that may hold Python's bare constants.
pub(crate) fn parse(text: &str) -> Result<Value, serde_json::Error> {
    serde_json::from_str(&without_bare_constants(text))
}

/// The number in `value`, whichever way it is spelt.
pub(crate) fn float(value: &Value) -> Option<f64> {
    match value {
        Value::Number(number) => number.as_f64(),
        Value::Object(map) if map.len() == 1 => match map.get(FLOAT_KEY)?.as_str()? {
            "Infinity" | "inf" => Some(f64::INFINITY),
            "-Infinity" | "-inf" => Some(f64::NEG_INFINITY),
            "NaN" | "nan" => Some(f64::NAN),
            _ => None,
        },
        _ => None,
    }
}

/// Rewrites the constants outside strings; everything else passes unchanged.
fn without_bare_constants(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = rest.find(['"', 'I', '-', 'N']) {
        let (before, from) = rest.split_at(at);
        out.push_str(before);
        let taken = if from.starts_with('"') {
            let end = string_end(from);
            out.push_str(&from[..end]);
            end
        } else if let Some(name) = ["-Infinity", "Infinity", "NaN"]
            .into_iter()
            .find(|name| from.starts_with(name))
        {
            out.extend(["{\"", FLOAT_KEY, "\":\"", name, "\"}"]);
            name.len()
        } else {
            // An ordinary minus sign, or a stray letter for the parser to refuse.
            out.push_str(&from[..1]);
            1
        };
        rest = &from[taken..];
    }
    out.push_str(rest);
    out
}

/// Length of the string literal that `text` begins with, quotes included; all of `text` if it never
/// ends.
fn string_end(text: &str) -> usize {
    let mut escaped = false;
    for (at, byte) in text.bytes().enumerate().skip(1) {
        match byte {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return at + 1,
            _ => {}
        }
    }
    text.len()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expect: Option<f64>) {
        let value = parse(text).ok().and_then(|value| float(&value["x"]));
        assert_eq!(
            value.map(f64::to_bits),
            expect.map(f64::to_bits),
            "{text} gave {value:?}"
        );
    }

    #[test]
    fn bare_constants_are_numbers() {
        check(r#"{"x": Infinity}"#, Some(f64::INFINITY));
        check(r#"{"x": -Infinity}"#, Some(f64::NEG_INFINITY));
        check(r#"{"x": NaN}"#, Some(f64::NAN));
        check(r#"{"x": {"__float__": "Infinity"}}"#, Some(f64::INFINITY));
        check(r#"{"x": -1.5}"#, Some(-1.5));
        check(r#"{"x": {"__float__": "many"}}"#, None);
        check(r#"{"x": Infinitely}"#, None);
    }

    #[test]
    fn strings_pass_unchanged() {
        let text = r#"{"a \" Infinity": "NaN \\", "b": "-Infinity"}"#;
        assert_eq!(without_bare_constants(text), text);
        assert_eq!(without_bare_constants("\"open NaN"), "\"open NaN");
    }
}
