//! NVIDIA's hosted API: OpenAI's with defaults and limits of its own.
//!
//! | Parameter | Here |
//! |---|---|
//! | `model` | the loaded one, unless given |
//! | `stream` | true, unless given |
//! | `temperature` | 0 to 1 |
//! | `top_p` | 0.95, unless given |
//! | `max_tokens` | 1 to 32768; unless given 16384, or what the window has left |
//! | `reasoning_effort` | none, low, high |
//! | `reasoning_budget` | 16384, unless given |
//! | first message | may have the role `context`: text that the question is about |
//!
//! Completions have no defaults of NVIDIA's; there only `model` is optional.

use serde_json::{Map, Value};

use crate::api::fields::Fields;
use crate::api::models::ModelNames;
use crate::api::params::Params;
use crate::error::ApiError;

const MAX_TOKENS: i128 = 32_768;
const DEFAULT_MAX_TOKENS: u64 = 16_384;
const DEFAULT_BUDGET: u64 = 16_384;
const DEFAULT_TOP_P: f64 = 0.95;
const EFFORTS: &[&str] = &["none", "low", "high"];

/// The body as `/v1/chat/completions` has it.
pub fn chat(
    mut body: Map<String, Value>,
    names: &ModelNames,
) -> Result<Map<String, Value>, ApiError> {
    let fields = Fields::root(&body);
    for name in ["max_tokens", "max_completion_tokens"] {
        fields.int(name, 1..=MAX_TOKENS)?;
    }
    fields.number("temperature", 0.0..=1.0)?;
    fields.word("reasoning_effort", EFFORTS)?;
    unless_given(&mut body, "stream", true);
    unless_given(&mut body, "top_p", DEFAULT_TOP_P);
    unless_given(&mut body, "reasoning_budget", DEFAULT_BUDGET);
    if let Some(Value::Array(messages)) = body.get_mut("messages") {
        context_is_system(messages);
    }
    Ok(model(body, names))
}

/// The body with a model.
pub fn model(mut body: Map<String, Value>, names: &ModelNames) -> Map<String, Value> {
    let main = names.ids.first();
    unless_given(&mut body, "model", main.map_or("", String::as_str));
    body
}

/// The default is a wish: a smaller window is no reason to refuse.
pub fn limit(params: &mut Params) {
    params.default_max_tokens = Some(DEFAULT_MAX_TOKENS);
}

fn unless_given(body: &mut Map<String, Value>, name: &str, default: impl Into<Value>) {
    if body.get(name).is_none_or(Value::is_null) {
        body.insert(name.to_owned(), default.into());
    }
}

/// Templates know no `context`. It stays where it is, so that errors name the client's own paths.
fn context_is_system(messages: &mut [Value]) {
    let has_system = messages
        .first()
        .is_some_and(|first| first["role"] == "system");
    let leading = messages.get_mut(usize::from(has_system));
    if let Some(role) = leading.and_then(|message| message.get_mut("role"))
        && *role == "context"
    {
        *role = "system".into();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn silence_means_nvidias_defaults() {
        let names = ModelNames {
            ids: vec!["m".into(), "alias".into()],
            ..ModelNames::default()
        };
        let check = |body: Value, expect: Value| {
            let mapped = chat(body.as_object().unwrap().clone(), &names).unwrap();
            assert_eq!(Value::Object(mapped), expect, "{body}");
        };
        check(
            json!({"stream": null}),
            json!({"model": "m", "stream": true, "top_p": 0.95, "reasoning_budget": 16384}),
        );
        let given = json!({"model": "alias", "stream": false, "top_p": 1, "reasoning_budget": -1});
        check(given.clone(), given);
    }
}
