//! `tools`, `tool_choice` and their deprecated predecessors, read and checked.

use std::collections::HashSet;

use serde_json::Value;

use super::fields::Fields;
use crate::chat::{CustomFormat, Tool, ToolChoice, ToolInput, ToolSet};
use crate::error::ApiError;

const MAX_TOOLS: usize = 128;

/// Reads and checks everything that is about tools.
pub fn read(fields: &Fields<'_>) -> Result<ToolSet, ApiError> {
    let parallel = fields.bool("parallel_tool_calls")?.unwrap_or(true);
    let mut set = ToolSet {
        tools: tools(fields)?,
        parallel,
        ..ToolSet::default()
    };
    let functions = functions(fields)?;
    if !functions.is_empty() {
        if !set.tools.is_empty() {
            let message = "cannot be given with 'tools', which replace them";
            return Err(ApiError::invalid_value(fields.path("functions"), message));
        }
        // A message has room for one `function_call`.
        (set.tools, set.parallel, set.legacy) = (functions, false, true);
    }
    let of = |legacy: bool| {
        if set.legacy == legacy {
            &*set.tools
        } else {
            &[]
        }
    };
    let choice = tool_choice(fields, of(false))?;
    let called = function_call(fields, of(true))?;
    set.choice = if set.legacy { called } else { choice }.unwrap_or_default();
    Ok(set)
}

/// A name of 1 to 64 letters, digits, `_` and `-`.
pub fn name<'a>(fields: &Fields<'a>) -> Result<&'a str, ApiError> {
    let name = fields.string("name")?;
    let name = name.ok_or_else(|| fields.missing("name"))?;
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
    if !(1..=64).contains(&name.len()) || !name.bytes().all(plain) {
        let message = "must be 1 to 64 letters, digits, '_' or '-'";
        return Err(ApiError::invalid_value(fields.path("name"), message));
    }
    Ok(name)
}

fn tools(fields: &Fields<'_>) -> Result<Vec<Tool>, ApiError> {
    let given = fields.array("tools")?.unwrap_or(&[]);
    let path = fields.path("tools");
    if given.len() > MAX_TOOLS {
        let message = format!("must hold at most {MAX_TOOLS} tools, holds {}", given.len());
        return Err(ApiError::invalid_value(path, message));
    }
    let mut tools = Vec::with_capacity(given.len());
    for (i, value) in given.iter().enumerate() {
        let entry = Fields::of(value, format!("{path}[{i}]"))?;
        let kind = entry.word("type", &["function", "custom"])?;
        let kind = kind.ok_or_else(|| entry.missing("type"))?;
        let body = entry.object(kind)?.ok_or_else(|| entry.missing(kind))?;
        tools.push(match kind {
            "function" => function(&body)?,
            _ => custom(&body)?,
        });
    }
    distinct(&tools, &path)?;
    Ok(tools)
}

fn functions(fields: &Fields<'_>) -> Result<Vec<Tool>, ApiError> {
    let Some(given) = fields.array("functions")? else {
        return Ok(Vec::new());
    };
    let path = fields.path("functions");
    if !(1..=MAX_TOOLS).contains(&given.len()) {
        let message = format!(
            "must hold 1 to {MAX_TOOLS} functions, holds {}",
            given.len()
        );
        return Err(ApiError::invalid_value(path, message));
    }
    let read = |(i, value)| function(&Fields::of(value, format!("{path}[{i}]"))?);
    let tools: Vec<Tool> = given
        .iter()
        .enumerate()
        .map(read)
        .collect::<Result<_, _>>()?;
    distinct(&tools, &path)?;
    Ok(tools)
}

fn distinct(tools: &[Tool], path: &str) -> Result<(), ApiError> {
    let mut names = HashSet::new();
    match tools.iter().find(|tool| !names.insert(tool.name.as_str())) {
        Some(tool) => {
            let message = format!("must have distinct names, {:?} comes twice", tool.name);
            Err(ApiError::invalid_value(path, message))
        }
        None => Ok(()),
    }
}

fn function(fields: &Fields<'_>) -> Result<Tool, ApiError> {
    let parameters = match fields.get("parameters") {
        None => Value::Object(serde_json::Map::new()),
        Some(schema @ Value::Object(_)) => schema.clone(),
        Some(other) => {
            let path = fields.path("parameters");
            return Err(ApiError::invalid_type(path, "a JSON schema", other));
        }
    };
    Ok(Tool {
        name: name(fields)?.to_owned(),
        description: fields.string("description")?.map(str::to_owned),
        input: ToolInput::Function { parameters },
        strict: fields.bool("strict")?.unwrap_or(false),
    })
}

fn custom(fields: &Fields<'_>) -> Result<Tool, ApiError> {
    Ok(Tool {
        name: name(fields)?.to_owned(),
        description: fields.string("description")?.map(str::to_owned),
        input: ToolInput::Custom(match fields.object("format")? {
            None => CustomFormat::Text,
            Some(format) => custom_format(&format)?,
        }),
        strict: false,
    })
}

fn custom_format(fields: &Fields<'_>) -> Result<CustomFormat, ApiError> {
    let kind = fields.word("type", &["text", "grammar"])?;
    if kind.ok_or_else(|| fields.missing("type"))? == "text" {
        return Ok(CustomFormat::Text);
    }
    let grammar = fields.object("grammar")?;
    let grammar = grammar.ok_or_else(|| fields.missing("grammar"))?;
    let syntax = grammar.word("syntax", &["lark", "regex"])?;
    let syntax = syntax.ok_or_else(|| grammar.missing("syntax"))?;
    let definition = grammar.string("definition")?;
    let definition = definition.ok_or_else(|| grammar.missing("definition"))?;
    Ok(match syntax {
        "lark" => CustomFormat::Lark(definition.to_owned()),
        _ => CustomFormat::Regex(definition.to_owned()),
    })
}

/// `None` if nothing was chosen.
fn tool_choice(fields: &Fields<'_>, tools: &[Tool]) -> Result<Option<ToolChoice>, ApiError> {
    let path = fields.path("tool_choice");
    let choice = match fields.get("tool_choice") {
        None => return Ok(None),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(Some(ToolChoice::None)),
            "auto" => ToolChoice::Auto,
            "required" => ToolChoice::Required,
            other => {
                let message = format!("must be one of none, auto, required, is {other:?}");
                return Err(ApiError::invalid_value(path, message));
            }
        },
        Some(value @ Value::Object(_)) => {
            let choice = Fields::of(value, path.clone())?;
            let kinds = &["function", "custom", "allowed_tools"];
            let kind = choice.word("type", kinds)?;
            match kind.ok_or_else(|| choice.missing("type"))? {
                _ if tools.is_empty() => return Err(needs_tools(path, "tools")),
                "allowed_tools" => allowed(&choice, &path, tools)?,
                kind => ToolChoice::Named(named(&choice, kind, &path, tools)?),
            }
        }
        Some(other) => {
            return Err(ApiError::invalid_type(path, "a string or an object", other));
        }
    };
    if tools.is_empty() {
        return Err(needs_tools(path, "tools"));
    }
    Ok(Some(choice))
}

fn allowed(choice: &Fields<'_>, path: &str, tools: &[Tool]) -> Result<ToolChoice, ApiError> {
    let allowed = choice.object("allowed_tools")?;
    let allowed = allowed.ok_or_else(|| choice.missing("allowed_tools"))?;
    let mode = allowed.word("mode", &["auto", "required"])?;
    let mode = mode.ok_or_else(|| allowed.missing("mode"))?;
    let given = allowed.array("tools")?;
    let given = given.ok_or_else(|| allowed.missing("tools"))?;
    let list = allowed.path("tools");
    if given.is_empty() {
        return Err(ApiError::invalid_value(list, "must not be empty"));
    }
    let mut chosen = Vec::with_capacity(given.len());
    for (i, value) in given.iter().enumerate() {
        let entry = Fields::of(value, format!("{list}[{i}]"))?;
        let kind = entry.word("type", &["function", "custom"])?;
        let kind = kind.ok_or_else(|| entry.missing("type"))?;
        chosen.push(named(&entry, kind, path, tools)?);
    }
    chosen.sort_unstable();
    chosen.dedup();
    Ok(ToolChoice::Allowed {
        required: mode == "required",
        tools: chosen,
    })
}

/// The index of the tool that `{"type": kind, kind: {"name"}}` names.
fn named(
    choice: &Fields<'_>,
    kind: &'static str,
    path: &str,
    tools: &[Tool],
) -> Result<usize, ApiError> {
    let body = choice.object(kind)?.ok_or_else(|| choice.missing(kind))?;
    let name = body.string("name")?.ok_or_else(|| body.missing("name"))?;
    let is_custom = kind == "custom";
    let matches =
        |tool: &Tool| tool.name == name && matches!(tool.input, ToolInput::Custom(_)) == is_custom;
    tools.iter().position(matches).ok_or_else(|| {
        let message = format!("names the {kind} tool {name:?}, which is not among the tools");
        ApiError::invalid_value(path, message)
    })
}

/// The deprecated choice among `functions`.
fn function_call(fields: &Fields<'_>, tools: &[Tool]) -> Result<Option<ToolChoice>, ApiError> {
    let path = fields.path("function_call");
    let choice = match fields.get("function_call") {
        None => return Ok(None),
        Some(Value::String(word)) => match word.as_str() {
            "none" => return Ok(Some(ToolChoice::None)),
            "auto" => ToolChoice::Auto,
            other => {
                let message = format!("must be none, auto or {{\"name\": ..}}, is {other:?}");
                return Err(ApiError::invalid_value(path, message));
            }
        },
        Some(value @ Value::Object(_)) => {
            let call = Fields::of(value, path.clone())?;
            let name = call.string("name")?.ok_or_else(|| call.missing("name"))?;
            match tools.iter().position(|tool| tool.name == name) {
                Some(index) => ToolChoice::Named(index),
                None if tools.is_empty() => return Err(needs_tools(path, "functions")),
                None => {
                    let message = format!("names {name:?}, which is not among the functions");
                    return Err(ApiError::invalid_value(path, message));
                }
            }
        }
        Some(other) => {
            return Err(ApiError::invalid_type(path, "a string or an object", other));
        }
    };
    if tools.is_empty() {
        return Err(needs_tools(path, "functions"));
    }
    Ok(Some(choice))
}

fn needs_tools(path: String, what: &str) -> ApiError {
    let message = format!("needs '{what}': only \"none\" without them");
    ApiError::invalid_value(path, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fields::parse_object;

    fn set(json: &str) -> Result<ToolSet, ApiError> {
        read(&Fields::root(&parse_object(json.as_bytes()).unwrap()))
    }

    const TWO: &str = r#""tools": [
        {"type": "function", "function": {"name": "f", "description": "does f", "strict": true,
         "parameters": {"type": "object"}}},
        {"type": "custom", "custom": {"name": "g", "format": {"type": "grammar",
         "grammar": {"syntax": "regex", "definition": "[a-z]+"}}}}]"#;

    #[test]
    fn tools_become_one_form() {
        let set = set(&format!("{{{TWO}}}")).unwrap();
        assert_eq!(
            (set.choice, set.parallel, set.legacy),
            (ToolChoice::Auto, true, false)
        );
        assert_eq!(
            (set.tools[0].name.as_str(), set.tools[0].strict),
            ("f", true)
        );
        assert_eq!(set.tools[0].description.as_deref(), Some("does f"));
        let regex = ToolInput::Custom(CustomFormat::Regex("[a-z]+".into()));
        assert_eq!(set.tools[1].input, regex);
    }

    #[test]
    fn choices() {
        let check = |choice: &str, expect: ToolChoice| {
            let read = set(&format!("{{{TWO}, \"tool_choice\": {choice}}}")).unwrap();
            assert_eq!(read.choice, expect, "{choice}");
        };
        check("null", ToolChoice::Auto);
        check(r#""auto""#, ToolChoice::Auto);
        check(r#""none""#, ToolChoice::None);
        check(r#""required""#, ToolChoice::Required);
        check(
            r#"{"type": "function", "function": {"name": "f"}}"#,
            ToolChoice::Named(0),
        );
        check(
            r#"{"type": "custom", "custom": {"name": "g"}}"#,
            ToolChoice::Named(1),
        );
        check(
            r#"{"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [
                {"type": "custom", "custom": {"name": "g"}},
                {"type": "function", "function": {"name": "f"}},
                {"type": "custom", "custom": {"name": "g"}}]}}"#,
            ToolChoice::Allowed {
                required: true,
                tools: vec![0, 1],
            },
        );
    }

    #[test]
    fn functions_are_tools_of_old() {
        let functions = r#""functions": [{"name": "a"}, {"name": "b", "parameters": {}}]"#;
        let check = |more: &str, expect: ToolChoice| {
            let set = set(&format!("{{{functions}{more}}}")).unwrap();
            assert_eq!(
                (set.legacy, set.parallel, set.tools.len()),
                (true, false, 2)
            );
            assert_eq!(set.choice, expect, "{more}");
        };
        check("", ToolChoice::Auto);
        check(r#", "tools": []"#, ToolChoice::Auto);
        check(r#", "function_call": "none""#, ToolChoice::None);
        check(r#", "function_call": "auto""#, ToolChoice::Auto);
        check(r#", "function_call": {"name": "b"}"#, ToolChoice::Named(1));
        check(r#", "tool_choice": "none""#, ToolChoice::Auto);
    }

    #[test]
    fn what_is_refused() {
        let check = |json: &str, expect: &str| {
            let error = set(json).expect_err(json);
            let got = format!("{} {}", error.param.unwrap_or_default(), error.code);
            assert_eq!(got, expect, "{json}");
        };
        let many: Vec<String> = (0..129)
            .map(|i| format!(r#"{{"type":"function","function":{{"name":"f{i}"}}}}"#))
            .collect();
        let many = format!(r#"{{"tools":[{}]}}"#, many.join(","));
        check(&many, "tools invalid_value");
        let many: Vec<String> = (0..129).map(|i| format!(r#"{{"name":"f{i}"}}"#)).collect();
        let many = format!(r#"{{"functions":[{}]}}"#, many.join(","));
        check(&many, "functions invalid_value");
        let choose = |choice: &str| format!("{{{TWO}, \"tool_choice\": {choice}}}");
        check(&choose(r#""any""#), "tool_choice invalid_value");
        check(&choose("{}"), "tool_choice.type missing_required_parameter");
        check(
            &choose(r#"{"type": "function", "function": {"name": "g"}}"#),
            "tool_choice invalid_value",
        );
        check(
            &choose(r#"{"type": "custom", "custom": {}}"#),
            "tool_choice.custom.name missing_required_parameter",
        );
        check(
            &format!("{{{TWO}, \"function_call\": \"auto\"}}"),
            "function_call invalid_value",
        );
    }
}
