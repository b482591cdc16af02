//! The surfaces of four providers of this model, each only as far as it differs from OpenAI's: a
//! mapping of its body to chat, and what it says beside the answer.

pub mod cloudflare;
pub mod deepinfra;
pub mod nvidia;
pub mod openrouter;

use serde_json::{Map, Value};

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
        Flavour::OpenRouter => openrouter::to_openai(body, &state.models),
        Flavour::Nvidia => nvidia::chat(body, &state.models),
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
        Flavour::Nvidia => Ok(nvidia::model(body, &state.models)),
        _ => Ok(body),
    }
}
