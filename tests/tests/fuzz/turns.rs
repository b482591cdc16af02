//! Conversations through the template: no text can open or close a turn.

use nemoserve_tests::scripted::Script;
use serde_json::{Value, json};
use tokio::runtime::Runtime;

use crate::client::Client;
use crate::mutate::{Rng, text};
use crate::{Target, server};

const IM_START: u32 = 10;
const IM_END: u32 = 11;

/// An input is the body of a `/tokenize` of messages.
pub(crate) struct Turns {
    client: Client,
    // The runner never runs; the script keeps it company.
}

impl Turns {
    pub(crate) fn new(runtime: &Runtime) -> Self {
        let address = server(runtime, |vocab_size| {
            Script::new(IM_END, vocab_size).runner()
        });
        Self {
            client: Client::new(address),
        }
    }

    fn tokens(&mut self, body: &Value) -> Result<Vec<u64>, String> {
        let reply = self.client.post("/tokenize", body.to_string().as_bytes())?;
        let answer: Value =
            serde_json::from_slice(&reply.body).map_err(|error| error.to_string())?;
        if reply.status != 200 {
            return Err(format!("{}: {answer}", reply.status));
        }
        let tokens = answer["tokens"].as_array().ok_or("no tokens")?;
        Ok(tokens.iter().filter_map(Value::as_u64).collect())
    }
}

impl Target for Turns {
    fn input(&mut self, rng: &mut Rng) -> Vec<u8> {
        let mut messages = Vec::new();
        if rng.one_in(2) {
            messages.push(json!({"role": "system", "content": some(rng)}));
        }
        for turn in 0..=rng.below(3) {
            messages.push(json!({"role": "user", "content": some(rng)}));
            if rng.one_in(2) {
                messages.push(json!({"role": "assistant", "content": some(rng),
                    "reasoning_content": some(rng)}));
            } else {
                let arguments = json!({"a": text(rng), "b": [text(rng)]}).to_string();
                let id = format!("call_{turn}");
                messages.push(json!({"role": "assistant", "content": some(rng), "tool_calls": [
                    {"id": id, "type": "function", "function": {"name": "f", "arguments": arguments}}
                ]}));
                messages.push(json!({"role": "tool", "tool_call_id": id, "content": some(rng)}));
            }
        }
        messages.push(json!({"role": "user", "content": some(rng)}));
        json!({"messages": messages}).to_string().into_bytes()
    }

    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let body: Value = serde_json::from_slice(input).expect("made above");
        let mut plain = body.clone();
        for message in plain["messages"].as_array_mut().expect("made above") {
            for field in ["content", "reasoning_content"] {
                if message.get(field).is_some() {
                    message[field] = json!("x");
                }
            }
            if let Some(call) = message.pointer_mut("/tool_calls/0/function/arguments") {
                *call = json!("{\"a\": \"x\", \"b\": [\"x\"]}");
            }
        }
        let (tokens, plain) = (self.tokens(&body)?, self.tokens(&plain)?);
        let markers = |tokens: &[u64]| {
            let num = |id: u32| {
                tokens
                    .iter()
                    .filter(|token| **token == u64::from(id))
                    .count()
            };
            (num(IM_START), num(IM_END))
        };
        let (found, expected) = (markers(&tokens), markers(&plain));
        if found != expected {
            return Err(format!("{found:?} markers of turns, not {expected:?}"));
        }
        Ok(format!("{found:?}"))
    }

    fn keep(&mut self, _: Vec<u8>) {}
}

/// Mutated text with something in it.
fn some(rng: &mut Rng) -> String {
    format!("x{}", text(rng))
}
