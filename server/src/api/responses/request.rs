//! A body of `/v1/responses` as a chat form.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::input::Conversation;
use super::tools;
use crate::api::fields::Fields;
use crate::api::mapping::{ChatForm, Paths};
use crate::error::ApiError;
use crate::state::AppState;

/// What `include` may ask for; of these, two mean something here.
const INCLUDABLE: &[&str] = &[
    "file_search_call.results",
    "web_search_call.results",
    "web_search_call.action.sources",
    "message.input_image.image_url",
    "computer_call_output.output.image_url",
    "code_interpreter_call.outputs",
    SEALED_REASONING,
    LOGPROBS,
];
const SEALED_REASONING: &str = "reasoning.encrypted_content";
const LOGPROBS: &str = "message.output_text.logprobs";

/// A request, in the chat form and beside it.
pub(super) struct ResponsesRequest {
    /// For [`chat::prepare`](crate::api::chat::prepare).
    pub(super) chat: Map<String, Value>,
    /// From that form back to the client's.
    pub(super) paths: Paths,
    /// How the answer looks.
    pub(super) shape: Shape,
}

/// What the answer depends on beside the generation.
pub(super) struct Shape {
    /// Members of the answer that repeat the request.
    pub(super) echo: Map<String, Value>,
    /// The input as items, if the answer is to be stored.
    pub(super) input: Option<Vec<Value>>,
    /// The response that this one continues.
    pub(super) previous: Option<Arc<str>>,
    /// Log-probabilities beside the text.
    pub(super) logprobs: bool,
    /// Thoughts also in the form that clients hand back.
    pub(super) sealed_reasoning: bool,
}

impl ResponsesRequest {
    /// Reads and checks what has no counterpart in chat; the chat form checks the rest.
    pub(super) fn read(
        body: &Map<String, Value>,
        state: &AppState,
        key: Option<usize>,
    ) -> Result<Self, ApiError> {
        let fields = Fields::root(body);
        check_unserved(&fields)?;
        let mut form = ChatForm::new(&fields);
        for name in [
            "parallel_tool_calls",
            "service_tier",
            "metadata",
            "user",
            "prompt_cache_key",
            "safety_identifier",
            "store",
            "stream_options",
        ] {
            form.copy(&fields, name);
        }
        let stream = fields.bool("stream")?.unwrap_or(false);
        form.set("stream", stream, "stream");
        if let Some(max) = fields.get("max_output_tokens") {
            form.set("max_completion_tokens", max.clone(), "max_output_tokens");
        }
        let include = include(&fields)?;
        let top_logprobs = fields.int("top_logprobs", 0..=20)?.unwrap_or(0) as u32;
        let logprobs = include.contains(&LOGPROBS);
        if logprobs {
            form.set("logprobs", true, "include");
            form.set("top_logprobs", top_logprobs, "top_logprobs");
        }
        reasoning(&fields, &mut form)?;
        text(&fields, &mut form)?;
        let shown_tools = tools::read(&fields, &mut form, &state.metrics)?;
        let previous = fields.string("previous_response_id")?;
        let items = conversation(&fields, &mut form, state, key, previous)?;
        let store = fields.bool("store")?.unwrap_or(true);
        let mut echo = echo(&fields);
        echo.insert("tools".into(), shown_tools.into());
        echo.insert("top_logprobs".into(), top_logprobs.into());
        echo.insert("store".into(), store.into());
        let (chat, paths) = form.finish();
        Ok(Self {
            chat,
            paths,
            shape: Shape {
                echo,
                input: store.then_some(items),
                previous: previous.map(Arc::from),
                logprobs,
                sealed_reasoning: include.contains(&SEALED_REASONING),
            },
        })
    }
}

/// What only the provider's own servers have.
fn check_unserved(fields: &Fields<'_>) -> Result<(), ApiError> {
    if fields.bool("background")? == Some(true) {
        let message = "'background' is not served: keep the connection, or stream";
        return Err(ApiError::unsupported(fields.path("background"), message));
    }
    for (name, instead) in [
        ("conversation", "use 'previous_response_id'"),
        ("prompt", "send 'instructions' and 'input'"),
        ("moderation", "no judge is loaded"),
    ] {
        if fields.get(name).is_some() {
            let message = format!("'{name}' is not served: {instead}");
            return Err(ApiError::unsupported(fields.path(name), message));
        }
    }
    fields.word("truncation", &["auto", "disabled"])?;
    fields.int("max_tool_calls", 1..=i128::from(u32::MAX))?;
    Ok(())
}

fn include<'a>(fields: &Fields<'a>) -> Result<Vec<&'a str>, ApiError> {
    let path = fields.path("include");
    let mut include = Vec::new();
    for (i, one) in fields.array("include")?.unwrap_or(&[]).iter().enumerate() {
        match one.as_str() {
            Some(name) if INCLUDABLE.contains(&name) => include.push(name),
            _ => {
                let message = format!("must be one of {}, is {one}", INCLUDABLE.join(", "));
                return Err(ApiError::invalid_value(format!("{path}[{i}]"), message));
            }
        }
    }
    Ok(include)
}

fn reasoning(fields: &Fields<'_>, form: &mut ChatForm) -> Result<(), ApiError> {
    let Some(reasoning) = fields.object("reasoning")? else {
        return Ok(());
    };
    // Thoughts are returned as they are; nobody summarises them.
    for name in ["summary", "generate_summary"] {
        reasoning.word(name, &["auto", "concise", "detailed"])?;
    }
    form.copy(fields, "reasoning");
    Ok(())
}

fn text(fields: &Fields<'_>, form: &mut ChatForm) -> Result<(), ApiError> {
    let Some(text) = fields.object("text")? else {
        return Ok(());
    };
    if let Some(verbosity) = text.get("verbosity") {
        form.set("verbosity", verbosity.clone(), text.path("verbosity"));
    }
    let Some(format) = text.object("format")? else {
        return Ok(());
    };
    // {type, name, schema, ...} here, {type, json_schema: {name, schema, ...}} there.
    let mut members = format.map().clone();
    let kind = members.shift_remove("type");
    let is_schema = kind.as_ref().is_some_and(|kind| kind == "json_schema");
    let mut mapped = json!({"type": kind});
    if is_schema {
        mapped["json_schema"] = members.into();
    }
    let path = text.path("format");
    form.set("response_format", mapped, &path);
    form.paths().add("response_format.json_schema", &path);
    Ok(())
}

/// Everything that was said, oldest first; the items of this request alone.
fn conversation(
    fields: &Fields<'_>,
    form: &mut ChatForm,
    state: &AppState,
    key: Option<usize>,
    previous: Option<&str>,
) -> Result<Vec<Value>, ApiError> {
    form.paths().add("messages", "input");
    let mut conversation = Conversation::new(form, &state.responses, key);
    if let Some(instructions) = fields.string("instructions")? {
        conversation.instructions(instructions);
    }
    if let Some(previous) = previous {
        let Some(chain) = state.responses.chain(previous, key) else {
            let path = fields.path("previous_response_id");
            let message = format!("{previous:?} is not stored, or what it continued is not");
            return Err(ApiError::invalid_value(path, message));
        };
        for response in chain {
            conversation.stored(&response.items())?;
        }
    }
    let path = fields.path("input");
    let mut items = match fields.get("input") {
        None if previous.is_some() => Vec::new(),
        None => return Err(fields.missing("input")),
        Some(Value::String(text)) => {
            let part = json!({"type": "input_text", "text": text});
            vec![json!({"type": "message", "role": "user", "content": [part]})]
        }
        Some(Value::Array(items)) => items.clone(),
        Some(other) => {
            let expected = "a string or an array of items";
            return Err(ApiError::invalid_type(path, expected, other));
        }
    };
    if items.is_empty() && previous.is_none() {
        return Err(ApiError::invalid_value(path, "must not be empty"));
    }
    for (i, item) in items.iter_mut().enumerate() {
        if let Some(referred) = conversation.item(item, &format!("{path}[{i}]"))? {
            *item = referred;
        }
    }
    conversation.finish();
    Ok(items)
}

/// Members that repeat the request, or say what holds where it was silent.
fn echo(fields: &Fields<'_>) -> Map<String, Value> {
    let reasoning = |name| fields.get("reasoning").map(|value| value[name].clone());
    let text = fields.get("text");
    let format = text.and_then(|text| text.get("format")).cloned();
    let given = |name: &str, default: Value| fields.get(name).cloned().unwrap_or(default);
    let echo = json!({
        "instructions": given("instructions", Value::Null),
        "metadata": given("metadata", json!({})),
        "parallel_tool_calls": given("parallel_tool_calls", json!(true)),
        "temperature": given("temperature", Value::Null),
        "tool_choice": given("tool_choice", json!("auto")),
        "top_p": given("top_p", Value::Null),
        "background": false,
        "max_output_tokens": given("max_output_tokens", Value::Null),
        "max_tool_calls": given("max_tool_calls", Value::Null),
        "previous_response_id": given("previous_response_id", Value::Null),
        "prompt_cache_key": given("prompt_cache_key", Value::Null),
        "reasoning": {
            "effort": reasoning("effort").unwrap_or_else(|| given("reasoning_effort", Value::Null)),
            "summary": null,
        },
        "safety_identifier": given("safety_identifier", Value::Null),
        "service_tier": "default",
        "text": {
            "format": format.unwrap_or_else(|| json!({"type": "text"})),
            "verbosity": text.map_or(Value::Null, |text| text["verbosity"].clone()),
        },
        "presence_penalty": given("presence_penalty", json!(0)),
        "frequency_penalty": given("frequency_penalty", json!(0)),
        // Nothing is ever cut off the front of a conversation, whatever was allowed.
        "truncation": "disabled",
        "user": given("user", Value::Null),
    });
    match echo {
        Value::Object(echo) => echo,
        _ => unreachable!("it is written as an object"),
    }
}
