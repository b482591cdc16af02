//! Our grammars as the library's, and its errors as ours.

use llguidance::api::{GrammarWithLexer, TopLevelGrammar};
use serde_json::{Value, json};

use crate::{Grammar, GrammarError, Limits, lark, schema};

/// Refuses what is too large before anything is hashed, stored or parsed.
pub(crate) fn check_size(grammar: &Grammar, limits: &Limits) -> Result<(), GrammarError> {
    let size = grammar.num_bytes();
    if size > limits.max_bytes {
        return Err(GrammarError::TooLarge {
            what: "the size of the grammar in bytes".into(),
            size: size as u64,
            max: limits.max_bytes as u64,
        });
    }
    Ok(())
}

/// The library's form of a grammar.
pub(crate) fn to_library(
    grammar: &Grammar,
    limits: &Limits,
) -> Result<TopLevelGrammar, GrammarError> {
    let grammars = match grammar {
        Grammar::Composed { root, parts } => {
            let mut grammars = vec![GrammarWithLexer::from_lark(root.clone())];
            for (name, part) in parts {
                let mut part = alone(part, limits)?;
                part.name = Some(name.clone());
                grammars.push(part);
            }
            grammars
        }
        other => vec![alone(other, limits)?],
    };
    Ok(TopLevelGrammar {
        grammars,
        max_tokens: None,
    })
}

fn alone(grammar: &Grammar, limits: &Limits) -> Result<GrammarWithLexer, GrammarError> {
    Ok(match grammar {
        Grammar::JsonSchema(text) => GrammarWithLexer::from_json_schema(json_schema(text, limits)?),
        Grammar::Lark(text) => {
            check_pattern(text, limits)?;
            lark::check(text)?;
            GrammarWithLexer::from_lark(text.clone())
        }
        Grammar::Regex(pattern) => {
            check_pattern(pattern, limits)?;
            GrammarWithLexer::from_regex(pattern)
        }
        Grammar::Composed { .. } => {
            return Err(GrammarError::Malformed {
                message: "a part of a grammar has parts itself".into(),
            });
        }
    })
}

/// Regular expressions and Lark grammars have a smaller limit than schemas.
fn check_pattern(text: &str, limits: &Limits) -> Result<(), GrammarError> {
    if text.len() <= limits.max_pattern_bytes {
        return Ok(());
    }
    Err(GrammarError::TooLarge {
        what: "the size of the expression in bytes".into(),
        size: text.len() as u64,
        max: limits.max_pattern_bytes as u64,
    })
}

fn json_schema(text: &str, limits: &Limits) -> Result<Value, GrammarError> {
    let depth = schema::depth(text);
    if depth > limits.max_depth {
        return Err(GrammarError::TooLarge {
            what: "the depth of the schema".into(),
            size: depth as u64,
            max: limits.max_depth as u64,
        });
    }
    let schema = serde_json::from_str(text).map_err(|error| GrammarError::Malformed {
        message: format!("the schema is not JSON: {error}"),
    })?;
    let mut schema = schema::prepare(schema)?;
    let options = json_options(&schema);
    if let Value::Object(schema) = &mut schema {
        schema.insert("x-guidance".into(), options);
    }
    Ok(schema)
}

/// How JSON is written: compactly, but a model may put the space that it is used to after a comma
/// or a colon. More would let it write white space for ever. Characters have one spelling, or
/// `"\u0061"` would be an additional property beside `"a"`; only a schema that has control characters
/// of its own, which have no other, lets them be escaped by number.
fn json_options(schema: &Value) -> Value {
    let needs_numbers = schema.to_string().contains("\\u00");
    json!({
        "json_allowed_escapes": if needs_numbers { r#"nrbtf\"u"# } else { r#"nrbtf\""# },
        "whitespace_flexible": false,
        "item_separator": ", ?",
        "key_separator": ": ?",
        "coerce_one_of": true,
    })
}

/// The library's reasons, as ours.
pub(crate) fn error(error: impl std::fmt::Display) -> GrammarError {
    let message = error.to_string();
    let message = message.trim_end_matches("<non-verbose/>").trim_end();
    let is_limit = [
        "fuel",
        "too large",
        "too big",
        "limit",
        "panic",
        "stack level",
    ];
    if is_limit.iter().any(|word| message.contains(word)) {
        return GrammarError::TooComplex {
            message: message.to_owned(),
        };
    }
    for (sign, keyword) in [
        ("patternProperty", "patternProperties"),
        ("min/maxProperties", "maxProperties"),
        ("circular references", "$ref"),
    ] {
        if message.contains(sign) {
            return GrammarError::Unsupported {
                keyword: keyword.into(),
                at: "some place".into(),
                why: message.to_owned(),
            };
        }
    }
    if let Some(why) = message.strip_prefix("Unsatisfiable schema: ") {
        return GrammarError::Unsatisfiable {
            message: why.to_owned(),
        };
    }
    GrammarError::Malformed {
        message: message.to_owned(),
    }
}
