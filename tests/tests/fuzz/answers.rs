//! Whatever the model says, a stream and the whole answer say the same.

use std::fmt::Write as _;
use std::sync::Arc;

use nemoserve::args::ServeArgs;
use nemoserve::config::Settings;
use nemoserve::text::Tokenizer;
use nemoserve_tests::scripted::Script;
use serde_json::{Map, Value, json};
use tokio::runtime::Runtime;

use crate::client::Client;
use crate::mutate::Rng;
use crate::{Target, server};

const IM_END: u32 = 11;
const NAME: &str = "nvidia/nemotron-3-super-120b-a12b";

/// What models say, in pieces that fit and pieces that do not.
const PIECES: [&str; 30] = [
    "Hello",
    " world",
    "\n",
    "\n\n",
    " ",
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "\n<function=f>\n",
    "<function=g>",
    "<function=nobody>\n",
    "<parameter=a>\n",
    "<parameter=b>\n",
    "\n</parameter>\n",
    "</parameter>",
    "</function>\n",
    "</function>",
    "5",
    "-1.5e3",
    "true",
    "null",
    "{\"k\": [1, \"x\"]}",
    "\"",
    "```\n",
    "é🦀",
    "STOP",
    "ST",
    "<tool_response>",
    "<function=",
];

/// An input is `{tokens, options}`.
pub(crate) struct Answers {
    client: Client,
    script: Arc<Script>,
    tokenizer: Arc<Tokenizer>,
}

impl Answers {
    pub(crate) fn new(runtime: &Runtime) -> Self {
        let settings = Settings::new(&ServeArgs::default()).expect("the defaults are valid");
        let tokenizer = settings.tokenizer().expect("the demo's is valid");
        let mut script = None;
        let address = server(runtime, |vocab_size| {
            script.insert(Script::new(IM_END, vocab_size)).runner()
        });
        Self {
            client: Client::new(address),
            script: script.expect("made above"),
            tokenizer: tokenizer.expect("the demo has one"),
        }
    }
}

impl Target for Answers {
    fn input(&mut self, rng: &mut Rng) -> Vec<u8> {
        let mut tokens: Vec<u32> = Vec::new();
        for _ in 0..rng.below(30) {
            if rng.one_in(6) {
                tokens.push(rng.below(2048) as u32);
            } else {
                let piece: &&str = rng.pick(&PIECES);
                let ids = self.tokenizer.encode_special(piece, false);
                tokens.extend(ids.expect("plain text"));
            }
        }
        let mut options = Map::new();
        let mut sometimes = |name: &str, value: Value| {
            if rng.one_in(3) {
                options.insert(name.into(), value);
            }
        };
        sometimes("stop", json!(["STOP", "\n\n", "worldly"]));
        sometimes("logprobs", json!(true));
        sometimes("n", json!(2));
        sometimes("max_tokens", json!(1 + tokens.len() / 2));
        sometimes("chat_template_kwargs", json!({"enable_thinking": false}));
        sometimes("parallel_tool_calls", json!(false));
        sometimes("tools", tools());
        sometimes("tools", tools());
        if !options.contains_key("tools") {
            options.remove("parallel_tool_calls");
        }
        json!({"tokens": tokens, "options": options})
            .to_string()
            .into_bytes()
    }

    fn run(&mut self, input: &[u8]) -> Result<String, String> {
        let input: Value = serde_json::from_slice(input).expect("made above");
        let tokens = input["tokens"].as_array().expect("made above");
        let tokens: Vec<u32> = tokens
            .iter()
            .filter_map(|id| Some(id.as_u64()? as u32))
            .collect();
        self.script.say(&tokens);
        let mut body = input["options"].clone();
        body["model"] = json!(NAME);
        body["seed"] = json!(0);
        body["messages"] = json!([{"role": "user", "content": "x"}]);
        let whole = self.ask(&body)?;
        let whole = String::from_utf8(whole).map_err(|error| error.to_string())?;
        let whole: Value = serde_json::from_str(&whole).map_err(|error| error.to_string())?;
        let expected: Vec<Choice> = whole["choices"]
            .as_array()
            .ok_or("no choices")?
            .iter()
            .map(|choice| {
                let mut folded = Choice::default();
                folded.add(&choice["message"], choice);
                folded
            })
            .collect();
        body["stream"] = json!(true);
        body["stream_options"] = json!({"include_usage": true});
        let stream = self.ask(&body)?;
        let stream = String::from_utf8(stream).map_err(|error| error.to_string())?;
        let mut folded = vec![Choice::default(); expected.len()];
        let mut usage = Value::Null;
        for data in stream
            .split("\n\n")
            .filter_map(|frame| frame.strip_prefix("data: "))
        {
            if data == "[DONE]" {
                break;
            }
            let chunk: Value = serde_json::from_str(data).map_err(|error| error.to_string())?;
            if !chunk["usage"].is_null() {
                usage = chunk["usage"].clone();
            }
            for choice in chunk["choices"].as_array().ok_or(data)? {
                let index = choice["index"].as_u64().ok_or("no index")? as usize;
                folded[index].add(&choice["delta"], choice);
            }
        }
        if folded != expected {
            return Err(format!("streamed {folded:#?}\nwhole {expected:#?}"));
        }
        for name in ["completion_tokens", "prompt_tokens"] {
            if usage[name] != whole["usage"][name] {
                return Err(format!(
                    "{name}: streamed {usage}, whole {}",
                    whole["usage"]
                ));
            }
        }
        let mut kind = String::new();
        for choice in &expected {
            let lengths = (choice.content.len().min(1), choice.reasoning.len().min(1));
            let _ = write!(kind, "{lengths:?} {} {}", choice.calls.len(), choice.finish);
        }
        Ok(kind)
    }

    fn keep(&mut self, _: Vec<u8>) {}
}

impl Answers {
    fn ask(&mut self, body: &Value) -> Result<Vec<u8>, String> {
        let reply = self
            .client
            .post("/v1/chat/completions", body.to_string().as_bytes())?;
        if reply.status != 200 {
            let text = String::from_utf8_lossy(&reply.body).into_owned();
            return Err(format!("{}: {text}", reply.status));
        }
        Ok(reply.body)
    }
}

/// A choice put together again.
#[derive(Clone, Debug, Default, PartialEq)]
struct Choice {
    content: String,
    reasoning: String,
    /// Names and arguments.
    calls: Vec<(String, String)>,
    logprobs: Vec<Value>,
    finish: String,
}

impl Choice {
    fn add(&mut self, message: &Value, choice: &Value) {
        let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        self.content += &text(&message["content"]);
        self.reasoning += &text(&message["reasoning_content"]);
        let calls = message["tool_calls"].as_array();
        for (at, call) in calls.into_iter().flatten().enumerate() {
            let index = call["index"].as_u64().map_or(at, |index| index as usize);
            if self.calls.len() <= index {
                self.calls.resize(index + 1, Default::default());
            }
            self.calls[index].0 += &text(&call["function"]["name"]);
            self.calls[index].1 += &text(&call["function"]["arguments"]);
        }
        let entries = choice["logprobs"]["content"].as_array();
        self.logprobs.extend(entries.cloned().into_iter().flatten());
        self.finish += &text(&choice["finish_reason"]);
    }
}

fn tools() -> Value {
    let function = |name: &str| {
        json!({"type": "function", "function": {"name": name, "parameters": {
            "type": "object",
            "properties": {"a": {"type": "string"}, "b": {"type": ["integer", "null"]}},
        }}})
    };
    json!([function("f"), function("g")])
}
