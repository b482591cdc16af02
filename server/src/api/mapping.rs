//! From another API's body to the chat form, and errors back to where the client wrote them.

use serde_json::{Map, Value};

use super::chat::{self, ChatRequest};
use super::fields::Fields;
use super::generation::Generation;
use crate::error::ApiError;
use crate::state::RequestContext;

/// Parameters with one name and one meaning in every flavour; the chat form checks them.
const COMMON: &[&str] = &[
    "model",
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "seed",
    "stop",
    "stop_token_ids",
    "ignore_eos",
    "min_tokens",
    "max_tokens",
    "reasoning_effort",
    "reasoning_budget",
    "include_reasoning",
    "chat_template_kwargs",
    "cache_salt",
    "priority",
];

/// A request in the chat form, while it is made from another.
#[derive(Debug, Default)]
pub struct ChatForm {
    body: Map<String, Value>,
    messages: Vec<Value>,
    paths: Paths,
}

/// Where the client wrote what the chat form has elsewhere.
#[derive(Clone, Debug, Default)]
pub struct Paths(Vec<Place>);

#[derive(Clone, Debug)]
struct Place {
    chat: String,
    client: String,
    /// Deeper parts of the path are the client's too.
    deep: bool,
}

/// Prepares and submits a mapped request; what is wrong is said to be where the client wrote it.
pub async fn start(
    ctx: &RequestContext,
    chat: Map<String, Value>,
    paths: &Paths,
) -> Result<(ChatRequest, Generation), ApiError> {
    let started = async {
        let (request, prompt) = chat::prepare(ctx, move || Ok(chat)).await?;
        let generation = chat::start(ctx, &request, &prompt)?;
        Ok((request, generation))
    };
    started.await.map_err(|error| paths.translate(error))
}

impl ChatForm {
    /// Begins with what means the same.
    pub fn new(fields: &Fields<'_>) -> Self {
        let mut form = Self::default();
        for name in COMMON {
            form.copy(fields, name);
        }
        form
    }

    /// Takes a parameter over as it is.
    pub fn copy(&mut self, fields: &Fields<'_>, name: &str) {
        if let Some(value) = fields.get(name) {
            self.body.insert(name.to_owned(), value.clone());
        }
    }

    /// Sets a parameter that the client wrote at `client`.
    pub fn set(&mut self, name: &str, value: impl Into<Value>, client: impl Into<String>) {
        self.body.insert(name.to_owned(), value.into());
        self.paths.add(name, client);
    }

    /// The index of the next message.
    pub fn next_message(&self) -> usize {
        self.messages.len()
    }

    /// Adds a message.
    pub fn push_message(&mut self, message: Value) {
        self.messages.push(message);
    }

    /// Where errors are said to be.
    pub fn paths(&mut self) -> &mut Paths {
        &mut self.paths
    }

    /// The whole body, and the way back.
    pub fn finish(mut self) -> (Map<String, Value>, Paths) {
        self.body.insert("messages".into(), self.messages.into());
        (self.body, self.paths)
    }
}

impl Paths {
    /// What the chat form has at `chat` and deeper came from `client` and deeper.
    pub fn add(&mut self, chat: impl Into<String>, client: impl Into<String>) {
        self.push(chat.into(), client.into(), true);
    }

    /// What the chat form has at `chat` and anywhere below came from `client`, which has no parts.
    pub fn add_whole(&mut self, chat: impl Into<String>, client: impl Into<String>) {
        self.push(chat.into(), client.into(), false);
    }

    fn push(&mut self, chat: String, client: String, deep: bool) {
        self.0.push(Place { chat, client, deep });
    }

    /// An error about the chat form as one about the client's own request.
    pub fn translate(&self, mut error: ApiError) -> ApiError {
        let Some(param) = &error.param else {
            return error;
        };
        let Some(client) = self.client_path(param) else {
            return error;
        };
        let (old, new) = (format!("'{param}'"), format!("'{client}'"));
        error.message = error.message.replace(&old, &new);
        error.param = Some(client);
        error
    }

    /// The longest known beginning decides; of equal ones the first.
    fn client_path(&self, chat: &str) -> Option<String> {
        let mut best: Option<(&Place, &str)> = None;
        for place in &self.0 {
            let Some(rest) = chat.strip_prefix(place.chat.as_str()) else {
                continue;
            };
            let is_part = rest.is_empty() || rest.starts_with(['.', '[']);
            let is_longer = best.is_none_or(|(best, _)| place.chat.len() > best.chat.len());
            if is_part && is_longer {
                best = Some((place, rest));
            }
        }
        let (place, rest) = best?;
        let rest = if place.deep { rest } else { "" };
        Some(format!("{}{rest}", place.client))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_go_back_to_where_they_came_from() {
        let mut paths = Paths::default();
        paths.add("messages", "input");
        paths.add("messages[1]", "input[4]");
        paths.add("messages[1].tool_calls[0].function", "input[5]");
        paths.add_whole("messages[10]", "previous_response_id");
        let check = |chat: &str, client: &str| {
            let error = paths.translate(ApiError::invalid_value(chat, "is bad"));
            assert_eq!(error.param.as_deref(), Some(client));
            assert_eq!(error.message, format!("'{client}' is bad"));
        };
        check("messages", "input");
        check("messages[1].content[0].type", "input[4].content[0].type");
        check("messages[1].tool_calls[0].function.name", "input[5].name");
        check("messages[10].content", "previous_response_id");
        check("seed", "seed");
        check("messages_too", "messages_too");
    }
}
