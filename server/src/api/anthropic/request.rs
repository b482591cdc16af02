//! A body of `/v1/messages` as a chat form.

use serde_json::{Map, Value, json};

use super::messages;
use crate::api::fields::Fields;
use crate::api::hosted;
use crate::api::mapping::{ChatForm, Paths};
use crate::api::params::MAX_TOKENS;
use crate::error::ApiError;
use crate::metrics::Metrics;

/// The most that chat takes as a budget of thoughts; a larger one is as good as this.
const MAX_BUDGET: i128 = 32_768;

/// A request, in the chat form and beside it.
pub(super) struct MessagesRequest {
    /// For [`chat::prepare`](crate::api::chat::prepare).
    pub(super) chat: Map<String, Value>,
    /// From that form back to the client's.
    pub(super) paths: Paths,
    /// Thoughts go back sealed, without their text.
    pub(super) omit_thinking: bool,
}

impl MessagesRequest {
    /// Reads and checks what has no counterpart in chat; the chat form checks the rest. Who only
    /// counts needs no `max_tokens`.
    pub(super) fn read(
        body: &Map<String, Value>,
        metrics: &Metrics,
        only_counts: bool,
    ) -> Result<Self, ApiError> {
        let fields = Fields::root(body);
        let max_tokens = fields.int("max_tokens", 1..=MAX_TOKENS)?;
        if max_tokens.is_none() && !only_counts {
            return Err(fields.missing("max_tokens"));
        }
        check_alone(&fields)?;
        let mut form = ChatForm::new(&fields);
        form.copy(&fields, "reasoning");
        let stream = fields.bool("stream")?.unwrap_or(false);
        form.set("stream", stream, "stream");
        // Here none are as good as not given.
        if let Some(stop) = fields.array("stop_sequences")?
            && !stop.is_empty()
        {
            form.set("stop", stop, "stop_sequences");
        }
        let omit_thinking = thinking(&fields, &mut form, max_tokens)?;
        output_format(&fields, &mut form)?;
        tools(&fields, &mut form, metrics)?;
        messages::read(&fields, &mut form)?;
        let (chat, paths) = form.finish();
        Ok(Self {
            chat,
            paths,
            omit_thinking,
        })
    }
}

/// Parameters that only this API has, and its narrower ranges.
fn check_alone(fields: &Fields<'_>) -> Result<(), ApiError> {
    fields.number("temperature", 0.0..=1.0)?;
    fields.word("service_tier", &["auto", "standard_only"])?;
    if let Some(metadata) = fields.object("metadata")? {
        metadata.short_string("user_id", 1024)?;
    }
    for name in ["container", "mcp_servers"] {
        let is_empty = |value: &Value| value.as_array().is_some_and(Vec::is_empty);
        if fields.get(name).is_some_and(|value| !is_empty(value)) {
            let message = format!("'{name}' is not served: tools run at the client");
            return Err(ApiError::unsupported(fields.path(name), message));
        }
    }
    Ok(())
}

/// Thinking is off unless asked for; true if its text is to be left out.
fn thinking(
    fields: &Fields<'_>,
    form: &mut ChatForm,
    max_tokens: Option<i128>,
) -> Result<bool, ApiError> {
    keep_thinking(fields, form)?;
    let config = fields.object("output_config")?;
    let effort = match &config {
        Some(config) => config.word("effort", &["low", "medium", "high", "xhigh", "max"])?,
        None => None,
    };
    let off = |form: &mut ChatForm| {
        if fields.get("reasoning_effort").is_none() {
            form.set("reasoning_effort", "none", "thinking");
        }
    };
    let Some(thinking) = fields.object("thinking")? else {
        off(form);
        return Ok(false);
    };
    let budget = thinking.int("budget_tokens", 1..=MAX_TOKENS)?;
    let display = thinking.word("display", &["summarized", "omitted"])?;
    let kind = thinking.word("type", &["enabled", "adaptive", "disabled"])?;
    let kind = kind.ok_or_else(|| thinking.missing("type"))?;
    if kind == "disabled" {
        off(form);
        return Ok(false);
    }
    if let Some(effort) = effort {
        form.set("reasoning_effort", effort, "output_config.effort");
    }
    if kind == "enabled" {
        if let (Some(budget), Some(max)) = (budget, max_tokens)
            && budget >= max
        {
            let message = format!("must be less than 'max_tokens', {max}, is {budget}");
            let path = thinking.path("budget_tokens");
            return Err(ApiError::invalid_value(path, message));
        }
        // Some clients leave it out, for no limit.
        if let Some(budget) = budget {
            let budget = budget.min(MAX_BUDGET) as u64;
            form.set("reasoning_budget", budget, thinking.path("budget_tokens"));
        }
    }
    Ok(display == Some("omitted"))
}

/// Of the edits to the history that may be asked for, one is the template's: which thoughts stay.
/// Others only make room where this API's own servers would run out of it.
fn keep_thinking(fields: &Fields<'_>, form: &mut ChatForm) -> Result<(), ApiError> {
    let Some(management) = fields.object("context_management")? else {
        return Ok(());
    };
    let edits = management.array("edits")?.unwrap_or(&[]);
    let keeps_all = |edit: &Value| {
        let kind = edit["type"].as_str().unwrap_or_default();
        kind.starts_with("clear_thinking_") && edit["keep"] == "all"
    };
    if edits.iter().any(keeps_all) && fields.get("chat_template_kwargs").is_none() {
        let settings = json!({"truncate_history_thinking": false});
        form.set("chat_template_kwargs", settings, "context_management");
    }
    Ok(())
}

/// Structured output, under its name and the one it had before.
fn output_format(fields: &Fields<'_>, form: &mut ChatForm) -> Result<(), ApiError> {
    let format = match fields.object("output_config")? {
        Some(config) => config.object("format")?,
        None => None,
    };
    let Some(format) = format.or(fields.object("output_format")?) else {
        return Ok(());
    };
    let schema = format.object("schema")?;
    let kind = format.word("type", &["json_schema"])?;
    kind.ok_or_else(|| format.missing("type"))?;
    let schema = schema.ok_or_else(|| format.missing("schema"))?;
    let mapped = json!({
        "type": "json_schema",
        "json_schema": {"name": "output", "strict": true, "schema": schema.map()},
    });
    let path = format.path("schema");
    form.set("response_format", mapped, path.clone());
    form.paths().add("response_format.json_schema.schema", path);
    Ok(())
}

fn tools(fields: &Fields<'_>, form: &mut ChatForm, metrics: &Metrics) -> Result<(), ApiError> {
    let mut mapped = Vec::new();
    for (i, tool) in fields.array("tools")?.unwrap_or(&[]).iter().enumerate() {
        let path = format!("{}[{i}]", fields.path("tools"));
        let tool = Fields::of(tool, path.clone())?;
        match tool.string("type")? {
            None | Some("custom") => {}
            Some(hosted) => {
                hosted::skip(&tool, hosted, metrics)?;
                continue;
            }
        }
        let schema = tool.object("input_schema")?;
        let schema = schema.ok_or_else(|| tool.missing("input_schema"))?;
        let mut function = Map::new();
        for name in ["name", "description", "strict"] {
            if let Some(value) = tool.get(name) {
                function.insert(name.into(), value.clone());
            }
        }
        function.insert("parameters".into(), schema.map().clone().into());
        let chat = format!("tools[{}]", mapped.len());
        let paths = form.paths();
        paths.add(
            format!("{chat}.function.parameters"),
            tool.path("input_schema"),
        );
        paths.add(format!("{chat}.function"), &path);
        paths.add(&chat, &path);
        mapped.push(json!({"type": "function", "function": function}));
    }
    choice(fields, form, !mapped.is_empty())?;
    if !mapped.is_empty() {
        form.set("tools", mapped, "tools");
    }
    Ok(())
}

fn choice(fields: &Fields<'_>, form: &mut ChatForm, any_tools: bool) -> Result<(), ApiError> {
    let Some(choice) = fields.object("tool_choice")? else {
        return Ok(());
    };
    let alone = choice.bool("disable_parallel_tool_use")?;
    let name = choice.string("name")?;
    let kind = choice.word("type", &["auto", "any", "tool", "none"])?;
    let mapped = match kind.ok_or_else(|| choice.missing("type"))? {
        "none" => json!("none"),
        "any" => json!("required"),
        "tool" => {
            let name = name.ok_or_else(|| choice.missing("name"))?;
            json!({"type": "function", "function": {"name": name}})
        }
        // Agents say so whether they have tools or not.
        _ if !any_tools => return Ok(()),
        _ => json!("auto"),
    };
    form.set("tool_choice", mapped, "tool_choice");
    if let Some(alone) = alone {
        let path = choice.path("disable_parallel_tool_use");
        form.set("parallel_tool_calls", !alone, path);
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fields::parse_object;

    fn read(extra: &Value) -> Result<MessagesRequest, ApiError> {
        let mut body = json!({
            "model": "m", "max_tokens": 100,
            "messages": [{"role": "user", "content": "u"}],
        });
        let members = extra.as_object().expect("members").clone();
        body.as_object_mut().expect("an object").extend(members);
        let body = parse_object(body.to_string().as_bytes())?;
        let info = engine::EngineInfo::default();
        MessagesRequest::read(&body, &Metrics::new("m", &info, []), false)
    }

    #[test]
    fn parameters_have_their_chat_names() {
        let check = |extra: Value, name: &str, expect: Value| {
            let chat = read(&extra).expect("it is valid").chat;
            assert_eq!(chat.get(name).unwrap_or(&Value::Null), &expect, "{extra}");
        };
        check(json!({}), "max_tokens", json!(100));
        check(json!({}), "reasoning_effort", json!("none"));
        check(json!({"ignore_eos": true}), "ignore_eos", json!(true));
        check(json!({"stop_sequences": ["x"]}), "stop", json!(["x"]));
        check(json!({"stop_sequences": []}), "stop", Value::Null);
        let enabled = json!({"thinking": {"type": "enabled", "budget_tokens": 99}});
        check(enabled.clone(), "reasoning_budget", json!(99));
        check(enabled, "reasoning_effort", Value::Null);
        let adaptive =
            json!({"thinking": {"type": "adaptive"}, "output_config": {"effort": "low"}});
        check(adaptive, "reasoning_effort", json!("low"));
        let off = json!({"thinking": {"type": "disabled"}, "output_config": {"effort": "low"}});
        check(off, "reasoning_effort", json!("none"));
        check(
            json!({"context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]}}),
            "chat_template_kwargs",
            json!({"truncate_history_thinking": false}),
        );
        let tools = json!([{"type": "web_search_20250305", "name": "web_search"}]);
        check(
            json!({"tools": tools, "tool_choice": {"type": "auto"}}),
            "tools",
            Value::Null,
        );
        let tools = json!([{"name": "f", "input_schema": {"type": "object"}, "cache_control": {}}]);
        check(
            json!({"tools": tools}),
            "tools",
            json!([{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]),
        );
        check(
            json!({"tools": tools, "tool_choice": {"type": "any", "disable_parallel_tool_use": true}}),
            "parallel_tool_calls",
            json!(false),
        );
        check(
            json!({"tools": tools, "tool_choice": {"type": "tool", "name": "f"}}),
            "tool_choice",
            json!({"type": "function", "function": {"name": "f"}}),
        );
        let large =
            json!({"max_tokens": 64000, "thinking": {"type": "enabled", "budget_tokens": 63999}});
        check(large, "reasoning_budget", json!(32_768));
    }

    #[test]
    fn errors_name_the_parameter() {
        let check = |extra: Value, param: &str| {
            let error = read(&extra).err().expect("it is refused");
            assert_eq!(error.param.as_deref(), Some(param), "{extra}");
        };
        check(json!({"max_tokens": null}), "max_tokens");
        check(json!({"max_tokens": 0}), "max_tokens");
        check(json!({"temperature": 1.5}), "temperature");
        check(json!({"thinking": {}}), "thinking.type");
        check(
            json!({"thinking": {"type": "enabled", "budget_tokens": 100}}),
            "thinking.budget_tokens",
        );
        check(json!({"tools": [{"name": "f"}]}), "tools[0].input_schema");
        check(json!({"tool_choice": "auto"}), "tool_choice");
        check(json!({"tool_choice": {"type": "tool"}}), "tool_choice.name");
        check(json!({"mcp_servers": [{}]}), "mcp_servers");
        check(
            json!({"output_format": {"type": "json_schema"}}),
            "output_format.schema",
        );
    }
}
