//! JSON as Python's `json.dumps` writes it, which templates were written against: `", "` and
//! `": "`, no escaping beyond JSON's own.

use minijinja::value::{Kwargs, ValueKind};
use minijinja::{Error, ErrorKind, Value};

/// The filter `tojson`. `indent` is honoured; `ensure_ascii`, `sort_keys` and `separators` have the
/// values that templates are rendered with elsewhere and are only accepted.
#[expect(
    clippy::needless_pass_by_value,
    reason = "filters take their arguments by value"
)]
pub(super) fn tojson(
    value: &Value,
    indent: Option<usize>,
    options: Kwargs,
) -> Result<Value, Error> {
    let named: Option<usize> = options.get("indent")?;
    for ignored in ["ensure_ascii", "sort_keys", "separators"] {
        let _: Option<Value> = options.get(ignored)?;
    }
    options.assert_all_used()?;
    let mut text = String::new();
    write(value, indent.or(named), 0, &mut text)?;
    Ok(Value::from(text))
}

fn write(
    value: &Value,
    indent: Option<usize>,
    depth: usize,
    text: &mut String,
) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Undefined | ValueKind::None => text.push_str("null"),
        ValueKind::Bool => text.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => write_number(value, text),
        ValueKind::String => write_string(value.as_str().unwrap_or_default(), text),
        ValueKind::Seq | ValueKind::Iterable => {
            let items = value.try_iter()?.map(|item| (None, item));
            write_items(items, ['[', ']'], indent, depth, text)?;
        }
        ValueKind::Map => {
            let mut items = Vec::new();
            for key in value.try_iter()? {
                let item = value.get_item(&key)?;
                items.push((Some(key), item));
            }
            write_items(items.into_iter(), ['{', '}'], indent, depth, text)?;
        }
        kind => {
            return Err(Error::new(
                ErrorKind::BadSerialization,
                format!("a {kind} has no JSON form"),
            ));
        }
    }
    Ok(())
}

fn write_items(
    items: impl Iterator<Item = (Option<Value>, Value)>,
    [open, close]: [char; 2],
    indent: Option<usize>,
    depth: usize,
    text: &mut String,
) -> Result<(), Error> {
    let break_line = |text: &mut String, depth: usize| {
        if let Some(width) = indent {
            text.push('\n');
            text.extend(std::iter::repeat_n(' ', width * depth));
        }
    };
    text.push(open);
    let mut empty = true;
    for (key, item) in items {
        if !empty {
            text.push_str(if indent.is_some() { "," } else { ", " });
        }
        empty = false;
        break_line(text, depth + 1);
        if let Some(key) = key {
            match key.as_str() {
                Some(key) => write_string(key, text),
                None => write_string(&key.to_string(), text),
            }
            text.push_str(": ");
        }
        write(&item, indent, depth + 1, text)?;
    }
    if !empty {
        break_line(text, depth);
    }
    text.push(close);
    Ok(())
}

fn write_number(value: &Value, text: &mut String) {
    if value.is_integer() {
        text.push_str(&value.to_string());
        return;
    }
    let number = f64::try_from(value.clone()).unwrap_or(f64::NAN);
    text.push_str(&float_repr(number));
}

/// Python's `repr` of a float: the shortest digits that read back, with an exponent from 1e16 up
/// and below 1e-4.
fn float_repr(number: f64) -> String {
    if number.is_nan() {
        return "NaN".into();
    }
    if number.is_infinite() {
        return if number > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .into();
    }
    let size = number.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let scientific = format!("{number:e}");
        let (digits, exponent) = scientific.split_once('e').expect("`:e` writes an exponent");
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{number:?}")
}

fn write_string(string: &str, text: &mut String) {
    let quoted = serde_json::to_string(string).expect("a string is JSON");
    text.push_str(&quoted);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn writes_what_python_writes() {
        let check = |value: Value, expect: &str| {
            let mut text = String::new();
            write(&value, None, 0, &mut text).unwrap();
            assert_eq!(text, expect);
        };
        check(Value::from_pairs([("a", vec![1, 2])]), r#"{"a": [1, 2]}"#);
        check(Value::from("é<\n\"'"), r#""é<\n\"'""#);
        check(Value::from(1.0), "1.0");
        check(Value::from(0.1), "0.1");
        check(Value::from(1e16), "1e+16");
        check(Value::from(1.5e-7), "1.5e-07");
        check(Value::from(123_456_789_012_345.0), "123456789012345.0");
        check(Value::from(-3), "-3");
        check(Value::from(()), "null");
        check(Value::from(Vec::<i32>::new()), "[]");
    }
}
