//! Whole requests: whatever is sent, the answer is well-formed and never the server's fault.

use nemoserve_tests::front_end::BLOCK_SIZE;
use nemoserve_tests::prompted::PromptedRunner;
use serde_json::Value;
use tokio::runtime::Runtime;

use crate::client::{Client, Reply};
use crate::mutate::{Rng, mutate};
use crate::{SIZE, Target, server};

/// `[path, body]` pairs to begin with.
const CORPUS: &str = include_str!("corpus.json");
const IM_END: u32 = 11;

/// An input is a path, a line break and a body.
pub(crate) struct Bodies {
    client: Client,
    paths: Vec<String>,
    entries: Vec<Vec<u8>>,
}

impl Bodies {
    pub(crate) fn new(runtime: &Runtime) -> Self {
        // Some tokens that depend on the prompt, markers and halves of characters among them.
        let author = |prompt: &[u32]| {
            let sum = prompt
                .iter()
                .fold(7_u32, |sum, id| sum.wrapping_mul(31) ^ id);
            (0..sum % 24)
                .map(|i| sum.rotate_left(i) % 600 + i % 3)
                .collect::<Vec<_>>()
        };
        let address = server(runtime, |vocab_size| {
            PromptedRunner::new(author, IM_END, vocab_size, BLOCK_SIZE, SIZE.num_blocks + 1)
        });
        let corpus: Vec<(String, Value)> = serde_json::from_str(CORPUS).expect("it is pairs");
        let (paths, entries) = corpus
            .into_iter()
            .map(|(path, body)| (path, body.to_string().into_bytes()))
            .unzip();
        Self {
            client: Client::new(address),
            paths,
            entries,
        }
    }
}

impl Target for Bodies {
    fn input(&mut self, rng: &mut Rng) -> Vec<u8> {
        let i = rng.below(self.entries.len());
        let path = if rng.one_in(16) {
            rng.pick(&self.paths)
        } else {
            &self.paths[i]
        };
        let body = mutate(&self.entries[i], &self.entries, rng);
        [path.as_bytes(), b"\n", &body].concat()
    }

    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let (path, body) = halves(input);
        let reply = self.client.post(path, body)?;
        let kind = match reply.status {
            200 if reply.events => events(&reply.body)?,
            200 => keys(&json(&reply.body)?),
            400..=499 => refusal(path, &reply)?,
            status => {
                return Err(format!(
                    "{status}: {}",
                    String::from_utf8_lossy(&reply.body)
                ));
            }
        };
        Ok(format!("{path} {} {kind}", reply.status))
    }

    fn keep(&mut self, input: Vec<u8>) {
        let (path, body) = halves(&input);
        self.paths.push(path.to_owned());
        self.entries.push(body.to_vec());
    }
}

fn halves(input: &[u8]) -> (&str, &[u8]) {
    let at = input
        .iter()
        .position(|byte| *byte == b'\n')
        .expect("a line break");
    let path = std::str::from_utf8(&input[..at]).expect("paths are ours");
    (path, &input[at + 1..])
}

fn json(bytes: &[u8]) -> Result<Value, String> {
    serde_json::from_slice(bytes)
        .map_err(|error| format!("{error}: {}", String::from_utf8_lossy(bytes)))
}

/// An error body in the words of the path's clients.
fn refusal(path: &str, reply: &Reply) -> Result<String, String> {
    if reply.events {
        return Err("a refusal as a stream".into());
    }
    let body = json(&reply.body)?;
    let openai = ["message", "type", "param", "code"];
    let has = |value: &Value, names: &[&str]| {
        value
            .as_object()
            .is_some_and(|map| names.iter().all(|name| map.contains_key(*name)))
    };
    let whole = match path {
        "/v1/messages" | "/v1/messages/count_tokens" => {
            body["type"] == "error" && has(&body["error"], &["type", "message"])
        }
        _ if path.starts_with("/api/") => {
            body["error"]["code"] == reply.status && has(&body["error"], &["message"])
        }
        _ if path.starts_with("/ai/") || path.starts_with("/client/") => {
            body["success"] == false && has(&body["errors"][0], &["code", "message"])
                || has(&body["error"], &openai)
        }
        _ => has(&body["error"], &openai),
    };
    if !whole {
        return Err(format!("an odd error body: {body}"));
    }
    // Numbers and the client's own words do not make another kind.
    let error = &body["error"];
    let text = format!("{} {} {}", error["code"], error["param"], error["message"]);
    let letters = text
        .chars()
        .filter(|c| c.is_ascii_alphabetic() || *c == ' ');
    Ok(letters.take(60).collect())
}

/// Frames of a stream: each is data, named data or a comment, and none tells of a failure.
fn events(body: &[u8]) -> Result<String, String> {
    let text = std::str::from_utf8(body).map_err(|error| error.to_string())?;
    let Some(text) = text.strip_suffix("\n\n") else {
        return Err(format!("the last frame is open: {text:?}"));
    };
    let mut kinds = std::collections::BTreeSet::new();
    for frame in text.split("\n\n") {
        for line in frame.lines() {
            let known = ["data: ", "event: ", ":"]
                .iter()
                .any(|start| line.starts_with(start));
            if !known || line.contains('\r') {
                return Err(format!("an odd line: {line:?}"));
            }
            let Some(data) = line.strip_prefix("data: ").filter(|data| *data != "[DONE]") else {
                continue;
            };
            let event = json(data.as_bytes())?;
            if !event["error"].is_null() || event["type"] == "error" {
                return Err(format!("the stream failed: {event}"));
            }
            kinds.insert(keys(&event));
        }
    }
    Ok(kinds.into_iter().collect::<Vec<_>>().join("|"))
}

/// The shape of an answer, two levels deep.
fn keys(value: &Value) -> String {
    let names = |value: &Value| match value.as_object() {
        Some(map) => map.keys().cloned().collect::<Vec<_>>().join(","),
        None => String::new(),
    };
    let choice = &value["choices"][0];
    format!(
        "{};{};{};{};{}",
        names(value),
        names(&choice["message"]),
        names(&choice["delta"]),
        choice["finish_reason"],
        value["type"],
    )
}
