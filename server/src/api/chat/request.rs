//! A chat request: one form for every flavour.

use constraint::GrammarGuide;
use serde_json::Value;

use crate::api::fields::Fields;
use crate::api::flavour::Flavour;
use crate::api::messages;
use crate::api::params::{Loaded, Params, Route};
use crate::api::thinking::Thinking;
use crate::api::tools;
use crate::chat::{Message, ResponseFormat, ToolSet};
use crate::error::ApiError;
use crate::state::AppState;

/// A chat request, checked.
pub struct ChatRequest {
    /// What completions have too.
    pub params: Params,
    /// The conversation.
    pub messages: Vec<Message>,
    /// What the model may call, and must.
    pub tools: ToolSet,
    /// What its answer must look like, where it is no call.
    pub format: ResponseFormat,
    /// The two as a grammar, once it is compiled.
    pub grammar: Option<GrammarGuide>,
    /// How much it may think.
    pub thinking: Thinking,
    /// Whether the choice shows log-probabilities.
    pub logprobs: bool,
}

impl ChatRequest {
    /// Reads and checks a body in the form of `/v1/chat/completions`, which all flavours map to.
    pub fn read(
        body: &serde_json::Map<String, Value>,
        state: &AppState,
        flavour: Flavour,
    ) -> Result<Self, ApiError> {
        let fields = Fields::root(body);
        let mut params = Params::read(&fields, Route::Chat, &Loaded::of(state))?;
        let logprobs = fields.bool("logprobs")?.unwrap_or(false);
        let top_logprobs = fields.int("top_logprobs", 0..=20)?;
        if top_logprobs.is_some() && !logprobs {
            return Err(ApiError::invalid_value(
                fields.path("top_logprobs"),
                "needs 'logprobs': true",
            ));
        }
        params.sampling.logprobs = logprobs.then_some(top_logprobs.unwrap_or(0) as u32);
        check_unserved(&fields)?;
        Ok(Self {
            thinking: Thinking::read(&fields, flavour)?,
            format: response_format(&fields)?,
            messages: messages::read(&fields)?,
            tools: tools::read(&fields)?,
            grammar: None,
            params,
            logprobs,
        })
    }
}

impl ChatRequest {
    /// Whether its answers need a guide.
    pub fn is_guided(&self) -> bool {
        self.format != ResponseFormat::Text
            || !self.tools.tools.is_empty()
            || self.thinking.budget.is_some()
    }
}

/// `response_format`, whose schema is judged where it is compiled.
fn response_format(fields: &Fields<'_>) -> Result<ResponseFormat, ApiError> {
    let Some(format) = fields.object("response_format")? else {
        return Ok(ResponseFormat::Text);
    };
    let kinds = &["text", "json_object", "json_schema"];
    let kind = format.word("type", kinds)?;
    match kind.ok_or_else(|| format.missing("type"))? {
        "text" => return Ok(ResponseFormat::Text),
        "json_object" => return Ok(ResponseFormat::JsonObject),
        _ => {}
    }
    let named = format.object("json_schema")?;
    let named = named.ok_or_else(|| format.missing("json_schema"))?;
    tools::name(&named)?;
    named.string("description")?;
    named.bool("strict")?;
    match named.get("schema") {
        None => Err(named.missing("schema")),
        Some(schema @ (Value::Object(_) | Value::Bool(_))) => {
            Ok(ResponseFormat::JsonSchema(schema.clone()))
        }
        Some(other) => {
            let path = named.path("schema");
            Err(ApiError::invalid_type(path, "a JSON schema", other))
        }
    }
}

/// What other servers of this API do with more than text, and what has no effect here.
fn check_unserved(fields: &Fields<'_>) -> Result<(), ApiError> {
    for name in ["audio", "web_search_options"] {
        if fields.get(name).is_some() {
            let message = format!("'{name}' is not served: this model reads and writes text");
            return Err(ApiError::unsupported(fields.path(name), message));
        }
    }
    fields.word("verbosity", &["low", "medium", "high"])?;
    if let Some(modalities) = fields.array("modalities")?
        && (modalities.iter().any(|kind| kind != "text") || modalities.is_empty())
    {
        return Err(ApiError::bad_request(
            "unsupported_value",
            Some(fields.path("modalities")),
            "only [\"text\"] is served",
        ));
    }
    if let Some(prediction) = fields.object("prediction")? {
        let kind = prediction.word("type", &["content"])?;
        kind.ok_or_else(|| prediction.missing("type"))?;
        match prediction.get("content") {
            None => return Err(prediction.missing("content")),
            Some(Value::String(_)) => {}
            Some(Value::Array(parts)) => {
                let path = prediction.path("content");
                if parts.is_empty() {
                    return Err(ApiError::invalid_value(path, "must not be empty"));
                }
                for (j, part) in parts.iter().enumerate() {
                    let part = Fields::of(part, format!("{path}[{j}]"))?;
                    let kind = part.word("type", &["text"])?;
                    kind.ok_or_else(|| part.missing("type"))?;
                    part.string("text")?.ok_or_else(|| part.missing("text"))?;
                }
            }
            Some(other) => {
                let path = prediction.path("content");
                return Err(ApiError::invalid_type(
                    path,
                    "a string or text parts",
                    other,
                ));
            }
        }
    }
    Ok(())
}
