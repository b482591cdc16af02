//! Who answers: an engine in this process, or any server that speaks OpenAI's dialect.

use std::sync::Arc;
use std::time::Instant;

use engine::{EngineHandle, StreamEvent};
use http::Method;
use http_body_util::BodyExt as _;
use scheduler::{Request, SamplingParams, TenantId};
use serde_json::{Value, json};

use super::outcome::{Clock, Recorder, Timing};
use crate::cli::bench::prompt;
use crate::cli::bench::samples::Numbers;
use crate::cli::client::{Lines, Server};

/// Ids that every vocabulary has and no tokenizer gives a meaning of its own.
const FOREIGN_VOCAB: u32 = 900;

/// Mostly one token each, whatever the tokenizer.
const WORDS: &[&str] = &[
    "the", "of", "and", "to", "in", "is", "that", "for", "it", "as", "was", "with", "be", "by",
    "on", "not", "he", "his", "but", "at", "are", "this", "have", "from", "or", "had", "an",
    "they", "which", "one", "you", "were", "all", "her", "she", "there", "would", "their", "we",
    "him", "been", "has", "when", "who", "will", "no", "more", "if", "out", "so", "up", "said",
    "what", "its", "about", "than", "into", "them", "can", "only", "other", "time", "new", "some",
];

/// Who answers.
pub(super) enum Target {
    Engine {
        handle: EngineHandle,
        vocab_size: u32,
    },
    Url {
        server: Box<Server>,
        model: String,
        dialect: Dialect,
    },
}

/// What a server is asked in.
#[derive(Clone, Copy, Debug)]
pub(super) struct Dialect {
    /// Words to `/v1/chat/completions` rather than token ids to `/v1/completions`.
    pub(super) chat: bool,
    /// Nothing that only some servers know.
    pub(super) plain: bool,
}

/// A conversation so far.
#[derive(Clone, Debug)]
pub(super) enum Said {
    Ids(Vec<u32>),
    Messages(Vec<Value>),
}

impl Target {
    /// Before anything has been said.
    pub(super) fn nothing(&self) -> Said {
        match self {
            Self::Url { dialect, .. } if dialect.chat => Said::Messages(Vec::new()),
            _ => Said::Ids(Vec::new()),
        }
    }

    /// Adds a prompt without a pattern; the same salt gives the same one.
    pub(super) fn say(&self, said: &mut Said, salt: u64, num_tokens: u32) {
        match said {
            Said::Ids(ids) => {
                let vocab_size = match self {
                    Self::Engine { vocab_size, .. } => *vocab_size,
                    Self::Url { .. } => FOREIGN_VOCAB,
                };
                ids.extend(prompt(salt, num_tokens, vocab_size));
            }
            Said::Messages(messages) => {
                let mut numbers = Numbers::new(salt);
                let words: Vec<&str> = (0..num_tokens)
                    .map(|_| WORDS[(numbers.draw() % WORDS.len() as u64) as usize])
                    .collect();
                messages.push(json!({"role": "user", "content": words.join(" ")}));
            }
        }
    }

    /// Asks, waits for the last token, and adds the answer to the conversation.
    pub(super) async fn ask(
        &self,
        said: &mut Said,
        num_tokens: u32,
        due: Instant,
        recorder: &Recorder,
    ) -> Result<Timing, String> {
        let mut clock = Clock::new(due, recorder);
        match (self, said) {
            (Self::Engine { handle, .. }, Said::Ids(ids)) => {
                let answer = ask_engine(handle, ids, num_tokens, &mut clock).await?;
                ids.extend(answer);
            }
            (
                Self::Url {
                    server,
                    model,
                    dialect,
                },
                said,
            ) => {
                let body = dialect.body(model, said, num_tokens);
                let answer = ask_server(server, dialect.path(), body, &mut clock).await?;
                answer.join(said, num_tokens);
            }
            (Self::Engine { .. }, Said::Messages(_)) => unreachable!("engines are asked in ids"),
        }
        Ok(clock.stop())
    }
}

impl Dialect {
    fn path(self) -> &'static str {
        if self.chat {
            "/v1/chat/completions"
        } else {
            "/v1/completions"
        }
    }

    fn body(self, model: &str, said: &Said, num_tokens: u32) -> Value {
        let mut body = json!({
            "model": model, "max_tokens": num_tokens, "temperature": 0, "stream": true,
            "stream_options": {"include_usage": true},
        });
        match said {
            Said::Ids(ids) => body["prompt"] = json!(ids),
            Said::Messages(messages) => body["messages"] = json!(messages),
        }
        if !self.plain {
            body["ignore_eos"] = true.into();
            if !self.chat {
                body["return_token_ids"] = true.into();
            }
        }
        body
    }
}

async fn ask_engine(
    handle: &EngineHandle,
    ids: &[u32],
    num_tokens: u32,
    clock: &mut Clock<'_>,
) -> Result<Vec<u32>, String> {
    let request = Request {
        id: handle.next_request_id(),
        prompt: ids.into(),
        sampling: Arc::new(SamplingParams {
            max_tokens: num_tokens,
            ..SamplingParams::default()
        }),
        num_choices: 1,
        cache_salt: "".into(),
        boundaries: Arc::default(),
        priority: 0,
        tenant: TenantId::default(),
        tenant_weight: 1,
    };
    let stream = handle.submit(request, None);
    let mut stream = stream.map_err(|error| error.to_string())?;
    let (mut answer, mut num_cached) = (Vec::new(), 0);
    while let Some(event) = stream.next().await {
        match event {
            StreamEvent::Output(output) => {
                clock.hear(output.tokens.len() as u64);
                answer.extend(output.tokens);
                num_cached = output.num_cached_tokens.max(num_cached);
            }
            StreamEvent::Failed(why) => return Err(why),
        }
    }
    let cached = Some(num_cached.into());
    clock.count(ids.len() as u64, answer.len() as u64, cached);
    Ok(answer)
}

/// What came over the wire.
#[derive(Debug, Default, PartialEq, Eq)]
struct Heard {
    text: String,
    /// Where the server tells them.
    ids: Vec<u32>,
}

impl Heard {
    /// The next turn begins with it.
    fn join(self, said: &mut Said, num_tokens: u32) {
        match said {
            Said::Messages(messages) => {
                messages.push(json!({"role": "assistant", "content": self.text}));
            }
            // A server that does not tell its ids has them replaced: it computes them as prompt.
            Said::Ids(ids) if self.ids.is_empty() => {
                let salt = ids.iter().map(|id| u64::from(*id)).sum();
                ids.extend(prompt(salt, num_tokens, FOREIGN_VOCAB));
            }
            Said::Ids(ids) => ids.extend(self.ids),
        }
    }

    /// Takes in an event; whether it had anything of the answer in it.
    fn add(&mut self, event: &Value) -> Result<bool, String> {
        if let Some(message) = event["error"]["message"].as_str() {
            return Err(format!("in the stream: {message}"));
        }
        let choice = &event["choices"][0];
        let delta = &choice["delta"];
        let texts = [
            &choice["text"],
            &delta["content"],
            &delta["reasoning_content"],
            &delta["reasoning"],
        ];
        let text = texts
            .iter()
            .find_map(|text| text.as_str().filter(|text| !text.is_empty()));
        if let Some(text) = text
            && delta["reasoning_content"].is_null()
            && delta["reasoning"].is_null()
        {
            self.text += text;
        }
        let ids = choice["token_ids"].as_array().into_iter().flatten();
        let before = self.ids.len();
        self.ids
            .extend(ids.filter_map(|id| Some(id.as_u64()? as u32)));
        Ok(text.is_some() || self.ids.len() > before)
    }
}

async fn ask_server(
    server: &Server,
    path: &str,
    body: Value,
    clock: &mut Clock<'_>,
) -> Result<Heard, String> {
    let mut response = server.send(Method::POST, path, body.to_string()).await?;
    let mut lines = Lines::default();
    let mut heard = Heard::default();
    while let Some(frame) = response.frame().await {
        let frame = frame.map_err(|error| format!("the stream broke off: {error}"))?;
        let Ok(data) = frame.into_data() else {
            continue;
        };
        for event in lines.push(&data) {
            // The stream's end is no JSON.
            let Ok(event) = serde_json::from_str::<Value>(&event) else {
                continue;
            };
            if heard.add(&event)? {
                clock.hear(1);
            }
            let usage = &event["usage"];
            if let (Some(prompt), Some(completion)) = (
                usage["prompt_tokens"].as_u64(),
                usage["completion_tokens"].as_u64(),
            ) {
                let cached = usage["prompt_tokens_details"]["cached_tokens"].as_u64();
                clock.count(prompt, completion, cached);
            }
        }
    }
    Ok(heard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_of_both_endpoints_are_read() {
        let mut heard = Heard::default();
        for (event, expect) in [
            (
                json!({"choices": [{"text": "a", "token_ids": [1, 2]}]}),
                true,
            ),
            (json!({"choices": [{"text": "", "token_ids": [3]}]}), true),
            (json!({"choices": [{"text": ""}]}), false),
            (
                json!({"choices": [{"delta": {"role": "assistant", "content": ""}}]}),
                false,
            ),
            (json!({"choices": [{"delta": {"content": "b"}}]}), true),
            (
                json!({"choices": [{"delta": {"reasoning_content": "x"}}]}),
                true,
            ),
            (json!({"choices": [{"delta": {"reasoning": "y"}}]}), true),
            (json!({"choices": [], "usage": {"prompt_tokens": 3}}), false),
        ] {
            assert_eq!(heard.add(&event), Ok(expect), "{event}");
        }
        assert_eq!(
            (heard.text.as_str(), &heard.ids[..]),
            ("ab", &[1, 2, 3][..])
        );
        let error = json!({"error": {"message": "no"}});
        assert!(heard.add(&error).is_err_and(|why| why.contains("no")));
    }

    #[test]
    fn conversations_go_on_with_what_was_answered() {
        let mut said = Said::Ids(vec![7]);
        let known = Heard {
            ids: vec![8, 9],
            ..Heard::default()
        };
        known.join(&mut said, 2);
        Heard::default().join(&mut said, 3);
        let Said::Ids(ids) = said else {
            panic!("ids stay ids");
        };
        assert_eq!((&ids[..3], ids.len()), (&[7, 8, 9][..], 6));
        let mut said = Said::Messages(vec![json!({"role": "user", "content": "a"})]);
        let words = Heard {
            text: "b".into(),
            ..Heard::default()
        };
        words.join(&mut said, 1);
        let Said::Messages(messages) = said else {
            panic!("words stay words");
        };
        assert_eq!(messages[1], json!({"role": "assistant", "content": "b"}));
    }

    #[test]
    fn plain_bodies_have_no_extension() {
        let body = |plain, chat| {
            let said = if chat {
                Said::Messages(Vec::new())
            } else {
                Said::Ids(vec![1])
            };
            let body = Dialect { chat, plain }.body("m", &said, 4);
            let names = body.as_object().expect("it is an object").keys();
            names.cloned().collect::<Vec<_>>()
        };
        let extensions = |names: Vec<String>| {
            let known = ["ignore_eos", "return_token_ids"];
            names
                .iter()
                .filter(|name| known.contains(&name.as_str()))
                .count()
        };
        assert_eq!(extensions(body(false, false)), 2);
        assert_eq!(extensions(body(false, true)), 1);
        assert_eq!(extensions(body(true, true)), 0);
        assert!(body(true, true).contains(&"messages".into()));
    }
}
