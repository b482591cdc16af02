//! A generation as a message of content blocks, whole and in events.
//!
//! Blocks lie in the order in which they began; text that follows a call comes last, as a block of
//! its own. An answer and a stream walk the same way, so they cannot differ.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::api::chat::ChatRequest;
use crate::api::choice::{CallDelta, Delta, Finish};
use crate::api::flavour::Flavour;
use crate::api::generation::Generation;
use crate::api::models::json;
use crate::api::params::unique_id;
use crate::api::sealed;
use crate::api::stream::Chunks;
use crate::api::types::Usage;
use crate::error::ApiError;
use crate::sse;
use crate::state::{RequestContext, Response};

const PING: &[u8] = b"event: ping\ndata: {\"type\": \"ping\"}\n\n";

/// How a generation looks as a message.
pub(super) struct MessagesView {
    id: String,
    model: String,
    request_id: Arc<str>,
    with_thinking: bool,
    omit_thinking: bool,
    stream: bool,
    done: Vec<Value>,
    open: Option<Block>,
    /// Text after a call, until all calls are over.
    late: String,
    finish: Option<Finish>,
    stop_string: Option<String>,
}

/// The block that still grows.
struct Block {
    kind: Kind,
    text: String,
}

enum Kind {
    Thinking,
    Text,
    ToolUse { id: String, name: String },
}

impl MessagesView {
    /// For a request that was just admitted.
    pub(super) fn new(ctx: &RequestContext, request: &ChatRequest, omit_thinking: bool) -> Self {
        let id = unique_id("msg_");
        ctx.name_generation(&id, &request.params.model);
        Self {
            id,
            model: request.params.model.clone(),
            request_id: Arc::clone(&ctx.request_id),
            with_thinking: !request.thinking.exclude,
            omit_thinking,
            stream: request.params.stream,
            done: Vec::new(),
            open: None,
            late: String::new(),
            finish: None,
            stop_string: None,
        }
    }

    /// The whole answer; runs the generation to its end.
    pub(super) async fn answer(mut self, mut generation: Generation) -> Result<Response, ApiError> {
        while let Some(choice) = generation.next().await? {
            self.take(&mut generation, choice, &mut Vec::new());
        }
        let usage = generation.usage();
        let content = std::mem::take(&mut self.done);
        Ok(json(&self.message(&content, &usage)))
    }

    fn message(&self, content: &[Value], usage: &Usage) -> Value {
        json!({
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": content,
            "stop_reason": self.stop_reason(),
            "stop_sequence": self.stop_string,
            "stop_details": null,
            "container": null,
            "usage": shown_usage(usage),
        })
    }

    fn stop_reason(&self) -> Option<&'static str> {
        Some(match self.finish? {
            Finish::Stop if self.stop_string.is_some() => "stop_sequence",
            Finish::Stop => "end_turn",
            Finish::Length => "max_tokens",
            Finish::ToolCalls => "tool_use",
        })
    }

    fn take(&mut self, generation: &mut Generation, choice: usize, frame: &mut Vec<u8>) {
        let delta = generation.choices()[choice].take();
        self.push(delta, frame);
    }

    fn push(&mut self, delta: Delta, frame: &mut Vec<u8>) {
        if self.with_thinking && !delta.reasoning.is_empty() {
            self.open_as(Kind::Thinking, frame);
            self.grow(&delta.reasoning, frame);
        }
        if !delta.content.is_empty() {
            let in_call = |block: &Block| matches!(block.kind, Kind::ToolUse { .. });
            if self.open.as_ref().is_some_and(in_call) {
                self.late.push_str(&delta.content);
            } else {
                self.open_as(Kind::Text, frame);
                self.grow(&delta.content, frame);
            }
        }
        for call in delta.calls {
            self.call(call, frame);
        }
        if let Some(finish) = delta.finish {
            (self.finish, self.stop_string) = (Some(finish), delta.stop_string);
            self.end(finish, frame);
        }
    }

    fn call(&mut self, call: CallDelta, frame: &mut Vec<u8>) {
        if let Some(start) = call.start {
            let serial = start.id.strip_prefix("call_").unwrap_or(&start.id);
            let kind = Kind::ToolUse {
                id: format!("toolu_{serial}"),
                name: start.name,
            };
            self.close(frame);
            self.begin(kind, frame);
        }
        if !call.arguments.is_empty() {
            self.grow(&call.arguments, frame);
        }
    }

    fn end(&mut self, finish: Finish, frame: &mut Vec<u8>) {
        let late = std::mem::take(&mut self.late);
        if !late.is_empty() {
            self.close(frame);
            self.begin(Kind::Text, frame);
            self.grow(&late, frame);
        }
        // Who reads the first block of a complete answer finds one, if an empty one.
        let open_says = |block: &Block| !matches!(block.kind, Kind::Thinking);
        let says_something = self.open.as_ref().is_some_and(open_says)
            || self.done.iter().any(|block| block["type"] != "thinking");
        if finish != Finish::Length && !says_something {
            self.open_as(Kind::Text, frame);
        }
        self.close(frame);
    }

    fn open_as(&mut self, kind: Kind, frame: &mut Vec<u8>) {
        let same =
            |block: &Block| std::mem::discriminant(&block.kind) == std::mem::discriminant(&kind);
        if !self.open.as_ref().is_some_and(same) {
            self.close(frame);
            self.begin(kind, frame);
        }
    }

    fn begin(&mut self, kind: Kind, frame: &mut Vec<u8>) {
        let empty = match &kind {
            Kind::Thinking => json!({"type": "thinking", "thinking": "", "signature": ""}),
            Kind::Text => json!({"type": "text", "text": "", "citations": null}),
            Kind::ToolUse { id, name } => {
                json!({"type": "tool_use", "id": id, "name": name, "input": {}})
            }
        };
        self.event(
            "content_block_start",
            frame,
            |index| json!({"index": index, "content_block": empty}),
        );
        self.open = Some(Block {
            kind,
            text: String::new(),
        });
    }

    fn grow(&mut self, text: &str, frame: &mut Vec<u8>) {
        let block = self.open.as_mut().expect("a block was begun");
        block.text.push_str(text);
        let delta = match block.kind {
            Kind::Thinking if self.omit_thinking => return,
            Kind::Thinking => json!({"type": "thinking_delta", "thinking": text}),
            Kind::Text => json!({"type": "text_delta", "text": text}),
            Kind::ToolUse { .. } => json!({"type": "input_json_delta", "partial_json": text}),
        };
        self.event(
            "content_block_delta",
            frame,
            |index| json!({"index": index, "delta": delta}),
        );
    }

    fn close(&mut self, frame: &mut Vec<u8>) {
        let Some(block) = self.open.take() else {
            return;
        };
        let done = match block.kind {
            Kind::Thinking => {
                let signature = if self.omit_thinking {
                    sealed::seal(&block.text)
                } else {
                    sealed::SHOWN.to_owned()
                };
                let delta = json!({"type": "signature_delta", "signature": signature});
                self.event(
                    "content_block_delta",
                    frame,
                    |index| json!({"index": index, "delta": delta}),
                );
                let shown = if self.omit_thinking { "" } else { &block.text };
                json!({"type": "thinking", "thinking": shown, "signature": signature})
            }
            Kind::Text => json!({"type": "text", "text": block.text, "citations": null}),
            Kind::ToolUse { id, name } => {
                let input = arguments(&block.text);
                json!({"type": "tool_use", "id": id, "name": name, "input": input})
            }
        };
        self.event("content_block_stop", frame, |index| json!({"index": index}));
        self.done.push(done);
    }

    /// Writes an event, if there is a stream. Its members may depend on the growing block's index.
    fn event(&self, kind: &str, frame: &mut Vec<u8>, members: impl FnOnce(usize) -> Value) {
        if !self.stream {
            return;
        }
        let mut event = json!({"type": kind});
        if let (Value::Object(event), Value::Object(members)) =
            (&mut event, members(self.done.len()))
        {
            event.extend(members);
        }
        sse::begin_named(kind, frame);
        serde_json::to_writer(&mut *frame, &event).expect("a JSON value is JSON");
        sse::end(frame);
    }
}

impl Chunks for MessagesView {
    fn open(&mut self, generation: &mut Generation, frame: &mut Vec<u8>) {
        // How much of the prompt was cached is known later, and said with the last event.
        let message = self.message(&[], &generation.usage());
        self.event("message_start", frame, |_| json!({"message": message}));
    }

    fn update(&mut self, generation: &mut Generation, choice: usize, frame: &mut Vec<u8>) {
        self.take(generation, choice, frame);
    }

    fn close(
        &mut self,
        generation: &mut Generation,
        error: Option<&ApiError>,
        frame: &mut Vec<u8>,
    ) {
        if let Some(error) = error {
            let body = error.body(Flavour::Anthropic, &self.request_id);
            return self.event("error", frame, |_| body);
        }
        let delta = json!({
            "stop_reason": self.stop_reason(),
            "stop_sequence": self.stop_string,
            "stop_details": null,
            "container": null,
        });
        let usage = shown_usage(&generation.usage());
        self.event(
            "message_delta",
            frame,
            |_| json!({"delta": delta, "usage": usage}),
        );
        self.event("message_stop", frame, |_| json!({}));
    }

    fn keep_alive(&self) -> &'static [u8] {
        PING
    }
}

/// The arguments of a call as a value. Those that were cut are closed where they end, as clients of a
/// stream do it.
fn arguments(text: &str) -> Value {
    let (mut closers, mut in_string, mut escaped) = (Vec::new(), false, false);
    for c in text.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if in_string => escaped = true,
            '"' => in_string = !in_string,
            _ if in_string => {}
            '{' => closers.push('}'),
            '[' => closers.push(']'),
            '}' | ']' => drop(closers.pop()),
            _ => {}
        }
    }
    let mut whole = text.to_owned();
    if escaped {
        whole.pop();
    }
    if in_string {
        whole.push('"');
    }
    let mut whole = whole.trim_end().trim_end_matches(',').to_owned();
    whole.extend(closers.iter().rev());
    serde_json::from_str(&whole).unwrap_or_else(|_| json!({}))
}

/// Here the prompt is what was computed plus what was read from the cache. Nothing is counted as
/// written to it: it keeps what it can without being asked and without a price.
fn shown_usage(usage: &Usage) -> Value {
    json!({
        "input_tokens": usage.prompt - usage.cached,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": usage.cached,
        "output_tokens": usage.completion,
        "output_tokens_details": {"thinking_tokens": usage.reasoning},
        "service_tier": "standard",
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cut_arguments_are_closed() {
        let check = |text: &str, expect: Value| assert_eq!(arguments(text), expect, "{text}");
        check("", json!({}));
        check("{}", json!({}));
        check(r#"{"a": "b\\"}"#, json!({"a": "b\\"}));
        check(r#"{"a": "b\"#, json!({"a": "b"}));
        check(r#"{"a": "b\\"#, json!({"a": "b\\"}));
        check(r#"{"a": "b\"c"#, json!({"a": "b\"c"}));
        check(r#"{"a": ["x", {"b": 1"#, json!({"a": ["x", {"b": 1}]}));
        check(r#"{"a": 1,"#, json!({"a": 1}));
        check(r#"{"a": 1, "b"#, json!({}));
    }
}
