//! Patterns of JSON schemas as whole-text expressions.
//!
//! A schema's `pattern` may match anywhere in the text and is written in JavaScript's dialect; a
//! terminal must match all of it and is written in Rust's.

use std::fmt::Write as _;

use constraint::GrammarError;

/// A terminal for texts in which `pattern` is found.
pub(super) fn terminal(pattern: &str, at: &str) -> Result<String, GrammarError> {
    let unsupported = |why: &str| GrammarError::Unsupported {
        keyword: "pattern".into(),
        at: at.to_owned(),
        why: format!("{pattern:?} {why}"),
    };
    let mut options = Vec::new();
    for option in split(pattern).ok_or_else(|| unsupported("has unbalanced brackets"))? {
        let (start, rest) = match option.strip_prefix('^') {
            Some(rest) => ("", rest),
            None => ("(?s:.*)", option),
        };
        let (rest, end) = match rest.strip_suffix('$') {
            Some(rest) if !ends_escaped(rest) => (rest, ""),
            _ => (rest, "(?s:.*)"),
        };
        let body =
            translate(rest).ok_or_else(|| unsupported("has an anchor or a look-around inside"))?;
        options.push(format!("{start}(?:{body}){end}"));
    }
    Ok(format!("/{}/", delimit(&options.join("|"))))
}

/// An expression between slashes: they and line ends inside are escaped.
pub(super) fn delimit(expression: &str) -> String {
    let mut delimited = String::with_capacity(expression.len());
    let mut escaped = false;
    for character in expression.chars() {
        match character {
            '/' if !escaped => delimited.push_str("\\/"),
            '\n' if escaped => delimited.push('n'),
            '\n' => delimited.push_str("\\n"),
            '\r' if escaped => delimited.push('r'),
            '\r' => delimited.push_str("\\r"),
            other => delimited.push(other),
        }
        escaped = character == '\\' && !escaped;
    }
    delimited
}

/// A text as an expression that matches only it.
pub(super) fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for character in text.chars() {
        if character.is_control() {
            write!(escaped, "\\x{{{:x}}}", character as u32).expect("a string grows");
            continue;
        }
        if r"\.+*?()|[]{}^$#&-~/".contains(character) {
            escaped.push('\\');
        }
        escaped.push(character);
    }
    escaped
}

/// The alternatives at the top level.
fn split(pattern: &str) -> Option<Vec<&str>> {
    let mut options = Vec::new();
    let (mut depth, mut in_class, mut escaped, mut start) = (0u32, false, false, 0);
    for (at, byte) in pattern.bytes().enumerate() {
        if std::mem::take(&mut escaped) {
            continue;
        }
        match byte {
            b'\\' => escaped = true,
            b']' if in_class => in_class = false,
            _ if in_class => {}
            b'[' => in_class = true,
            b'(' => depth += 1,
            b')' => depth = depth.checked_sub(1)?,
            b'|' if depth == 0 => {
                options.push(&pattern[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    options.push(&pattern[start..]);
    (depth == 0 && !in_class && !escaped).then_some(options)
}

fn ends_escaped(text: &str) -> bool {
    let num = text.bytes().rev().take_while(|b| *b == b'\\').count();
    num % 2 == 1
}

/// JavaScript's classes are ASCII, and a slash may be escaped.
fn translate(pattern: &str) -> Option<String> {
    let mut translated = String::with_capacity(pattern.len());
    let mut characters = pattern.chars().peekable();
    let mut in_class = false;
    while let Some(character) = characters.next() {
        match character {
            '\\' => match (characters.next()?, in_class) {
                ('d', false) => translated.push_str("[0-9]"),
                ('d', true) => translated.push_str("0-9"),
                ('D', false) => translated.push_str("[^0-9]"),
                ('w', false) => translated.push_str("[A-Za-z0-9_]"),
                ('w', true) => translated.push_str("A-Za-z0-9_"),
                ('W', false) => translated.push_str("[^A-Za-z0-9_]"),
                ('b' | 'B' | '1'..='9', _) => return None,
                ('/', _) => translated.push('/'),
                (other, _) => translated.extend(['\\', other]),
            },
            '[' if in_class => translated.push_str("\\["),
            '[' => {
                in_class = true;
                translated.push('[');
                if characters.next_if_eq(&'^').is_some() {
                    translated.push('^');
                }
            }
            ']' => {
                in_class = false;
                translated.push(']');
            }
            '^' | '$' if !in_class => return None,
            '(' if !in_class => {
                translated.push('(');
                if characters.next_if_eq(&'?').is_some() {
                    translated.push('?');
                    match characters.peek() {
                        Some(':') => {}
                        Some('<') => {
                            let mut ahead = characters.clone();
                            ahead.next();
                            if matches!(ahead.peek(), Some('=' | '!')) {
                                return None;
                            }
                        }
                        _ => return None,
                    }
                }
            }
            other => translated.push(other),
        }
    }
    Some(translated)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_become_terminals() {
        let check = |pattern: &str, expect: &str| {
            assert_eq!(terminal(pattern, "#").unwrap(), expect, "{pattern}");
        };
        check("^[a-z]+$", "/(?:[a-z]+)/");
        check("^a|b$", "/(?:a)(?s:.*)|(?s:.*)(?:b)/");
        check("a", "/(?s:.*)(?:a)(?s:.*)/");
        check(r"^\d{3}-\d{4}$", "/(?:[0-9]{3}-[0-9]{4})/");
        check(r"^[\w.-]+\$$", r"/(?:[A-Za-z0-9_.-]+\$)/");
        check(r"^a\/b/c$", r"/(?:a\/b\/c)/");
        check("^(?:a|b)$", "/(?:(?:a|b))/");
        check("^(x|[)|])$", "/(?:(x|[)|]))/");
    }

    #[test]
    fn patterns_that_no_terminal_can_be() {
        for pattern in [
            "a^b",
            "(^a|b)",
            "^(?=a)b$",
            "^(?<!a)b$",
            r"\bword\b",
            "(a",
            "a)",
            r"(a)\1",
        ] {
            let error = terminal(pattern, "#/properties/x").unwrap_err();
            assert!(
                error.to_string().contains("`pattern` at #/properties/x"),
                "{error}"
            );
        }
    }
}
