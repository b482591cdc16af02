//! `tools` and `tool_choice`, which are flat here and nested in chat.

use serde_json::{Map, Value, json};

use crate::api::fields::Fields;
use crate::api::hosted;
use crate::api::mapping::ChatForm;
use crate::error::ApiError;
use crate::metrics::Metrics;

/// Puts tools and choice into the form; the tools that the model is told of, as the answer repeats
/// them.
pub(super) fn read(
    fields: &Fields<'_>,
    form: &mut ChatForm,
    metrics: &Metrics,
) -> Result<Vec<Value>, ApiError> {
    let (mut mapped, mut shown) = (Vec::new(), Vec::new());
    for (i, tool) in fields.array("tools")?.unwrap_or(&[]).iter().enumerate() {
        let path = format!("{}[{i}]", fields.path("tools"));
        let tool = Fields::of(tool, path.clone())?;
        let kind = tool.string("type")?.ok_or_else(|| tool.missing("type"))?;
        let inner = match kind {
            "function" => function(&tool),
            "custom" => custom(&tool),
            hosted => {
                hosted::skip(&tool, hosted, metrics)?;
                continue;
            }
        };
        let chat = format!("tools[{}]", mapped.len());
        let paths = form.paths();
        paths.add(
            format!("{chat}.custom.format.grammar"),
            format!("{path}.format"),
        );
        paths.add(format!("{chat}.{kind}"), &path);
        paths.add(&chat, &path);
        mapped.push(json!({"type": kind, kind: inner}));
        shown.push(as_shown(&tool, kind));
    }
    choice(fields, form, !mapped.is_empty())?;
    if !mapped.is_empty() {
        form.set("tools", mapped, "tools");
    }
    Ok(shown)
}

fn function(tool: &Fields<'_>) -> Value {
    members(tool, &["name", "description", "parameters", "strict"])
}

fn custom(tool: &Fields<'_>) -> Value {
    let mut inner = members(tool, &["name", "description", "format"]);
    // {type, syntax, definition} here, {type, grammar: {syntax, definition}} there.
    if let Some(Value::Object(format)) = tool.get("format")
        && format.get("type").is_some_and(|kind| kind == "grammar")
    {
        let mut grammar = format.clone();
        let kind = grammar.shift_remove("type");
        inner["format"] = json!({"type": kind, "grammar": grammar});
    }
    inner
}

fn members(fields: &Fields<'_>, names: &[&str]) -> Value {
    let given = |name: &&str| Some(((*name).to_owned(), fields.get(name)?.clone()));
    names.iter().filter_map(given).collect::<Map<_, _>>().into()
}

/// With the keys that a tool of an answer must have.
fn as_shown(tool: &Fields<'_>, kind: &str) -> Value {
    let mut shown = tool.map().clone();
    if kind == "function" {
        for key in ["parameters", "strict"] {
            shown.entry(key).or_insert(Value::Null);
        }
    }
    shown.into()
}

fn choice(fields: &Fields<'_>, form: &mut ChatForm, any_tools: bool) -> Result<(), ApiError> {
    let choice = match fields.get("tool_choice") {
        None => return Ok(()),
        // Agents say so whether they have tools or not.
        Some(Value::String(word)) if word == "auto" && !any_tools => return Ok(()),
        Some(Value::Object(_)) => {
            let choice = fields.object("tool_choice")?.expect("it is there");
            named(fields, &choice)?
        }
        Some(other) => other.clone(),
    };
    form.set("tool_choice", choice, "tool_choice");
    Ok(())
}

fn named(fields: &Fields<'_>, choice: &Fields<'_>) -> Result<Value, ApiError> {
    let kind = choice
        .string("type")?
        .ok_or_else(|| choice.missing("type"))?;
    match kind {
        "function" | "custom" => Ok(one(choice, kind)),
        "allowed_tools" => {
            let mut tools = Vec::new();
            for (i, tool) in choice.array("tools")?.unwrap_or(&[]).iter().enumerate() {
                let tool = Fields::of(tool, format!("{}[{i}]", choice.path("tools")))?;
                let kind = tool.string("type")?.ok_or_else(|| tool.missing("type"))?;
                if !matches!(kind, "function" | "custom") {
                    return Err(hosted::chosen(fields, kind));
                }
                tools.push(one(&tool, kind));
            }
            let mode = choice.get("mode");
            Ok(json!({"type": kind, "allowed_tools": {"mode": mode, "tools": tools}}))
        }
        hosted => Err(hosted::chosen(fields, hosted)),
    }
}

fn one(tool: &Fields<'_>, kind: &str) -> Value {
    json!({"type": kind, kind: {"name": tool.get("name")}})
}
