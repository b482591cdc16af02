//! Calls as members of a list: names and arguments are JSON.

use constraint::{Grammar, GrammarError};
use serde_json::{Value, json};

use super::calls::{ToolRules, lark_string};
use super::document::{document, restricted};
use super::parameters::no_object;
use super::pattern;
use crate::chat::{CustomFormat, Tool, ToolInput};

/// Writes the rule of `tool`.
pub(super) fn rules(index: usize, tool: &Tool) -> Result<ToolRules, GrammarError> {
    let (arguments, own) = match &tool.input {
        ToolInput::Function { parameters } => (object(parameters)?, None),
        ToolInput::Custom(format) => custom(format)?,
    };
    let (start, part) = (format!("t{index}"), format!("p{index}"));
    let head = format!("{{\"name\": {}, \"arguments\": ", json!(tool.name));
    Ok(ToolRules {
        text: format!("{start}: {} @{part} \"}}\"\n", lark_string(&head)),
        parts: vec![(part, Grammar::JsonSchema(arguments.to_string()))],
        start,
        own,
    })
}

/// Arguments are an object even where the schema says nothing.
fn object(parameters: &Value) -> Result<Value, GrammarError> {
    let is_object = |name: &Value| name == "object";
    Ok(match parameters.get("type") {
        Some(name) if is_object(name) => parameters.clone(),
        None if parameters
            .as_object()
            .is_some_and(serde_json::Map::is_empty) =>
        {
            json!({"type": "object", "properties": {}, "additionalProperties": false})
        }
        Some(Value::Array(names)) if !names.iter().any(is_object) => return Err(no_object()),
        Some(Value::String(_)) => return Err(no_object()),
        _ => restricted(document(parameters, parameters), &["object"]),
    })
}

/// The input stands in a JSON string, which holds a regular expression but no grammar of Lark's.
fn custom(format: &CustomFormat) -> Result<(Value, Option<Grammar>), GrammarError> {
    let (input, own) = match format {
        CustomFormat::Text => (json!({"type": "string"}), None),
        CustomFormat::Regex(expression) => {
            let own = Grammar::Regex(expression.clone());
            let pattern = format!("^(?:{})$", pattern::delimit(expression));
            (json!({"type": "string", "pattern": pattern}), Some(own))
        }
        CustomFormat::Lark(_) => {
            return Err(GrammarError::Unsupported {
                keyword: "lark".into(),
                at: "#".into(),
                why: "this model writes the input of a tool as a JSON string".into(),
            });
        }
    };
    let schema = json!({"type": "object", "properties": {"input": input}, "required": ["input"],
                        "additionalProperties": false});
    Ok((schema, own))
}
