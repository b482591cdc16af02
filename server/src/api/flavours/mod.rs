//! The surfaces of four providers of this model, each only as far as it differs from OpenAI's: a
//! mapping of its body to chat, and what it says beside the answer.

pub mod cloudflare;
pub mod deepinfra;
pub mod nvidia;
pub mod openrouter;

use serde_json::{Map, Value, json};

use super::flavour::Flavour;
use crate::error::ApiError;
use crate::state::AppState;

/// The body of a chat as `/v1/chat/completions` has it.
pub fn chat_body(
    body: Map<String, Value>,
    state: &AppState,
    flavour: Flavour,
) -> Result<Map<String, Value>, ApiError> {
    match flavour {
        Flavour::OpenRouter => {
            let body = openrouter::to_openai(body, &state.models)?;
            Ok(with_old_thoughts(body))
        }
        Flavour::Nvidia => nvidia::chat(body, state),
        _ => Ok(body),
    }
}

/// The body of a completion as `/v1/completions` has it.
pub fn completion_body(
    body: Map<String, Value>,
    state: &AppState,
    flavour: Flavour,
) -> Result<Map<String, Value>, ApiError> {
    match flavour {
        Flavour::OpenRouter => openrouter::to_openai(body, &state.models),
        Flavour::Nvidia => Ok(nvidia::model(body, state)),
        _ => Ok(body),
    }
}

/// Thoughts of earlier turns stay in the prompt, unless the request says otherwise. A setting that is
/// no object is left for whoever reads it to refuse.
fn with_old_thoughts(mut body: Map<String, Value>) -> Map<String, Value> {
    let settings = body.entry("chat_template_kwargs").or_insert(Value::Null);
    if settings.is_null() {
        *settings = json!({});
    }
    if let Value::Object(settings) = settings {
        let names = ["truncate_history_thinking", "clear_thinking"];
        let given = |name: &&str| settings.get(*name).is_some_and(|value| !value.is_null());
        if !names.iter().any(given) {
            settings.insert(names[0].into(), false.into());
        }
    }
    body
}
