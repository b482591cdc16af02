//! What the model says, as output items and as the events that tell of them.
//!
//! Items lie in the order in which they began; text that follows a call comes last, as a message of
//! its own. An answer and a stream walk the same way, so they cannot differ.

use serde_json::{Value, json};

use crate::api::choice::{CallDelta, Delta, Entry, Finish};
use crate::api::params::unique_id;
use crate::api::sealed;
use crate::api::types::ChatEntries;
use crate::sse;

/// The items so far.
pub(super) struct Output {
    done: Vec<Value>,
    open: Option<Item>,
    /// Text after a call, until all calls are over.
    late: (String, Vec<Value>),
    with_reasoning: bool,
    sealed_reasoning: bool,
    with_logprobs: bool,
}

/// Numbers events and writes them; or, for an answer that is not streamed, does not.
pub(super) struct Events {
    number: u64,
    on: bool,
}

/// The item that still grows.
struct Item {
    id: String,
    kind: Kind,
    /// Its text, arguments or input.
    text: String,
    logprobs: Vec<Value>,
}

enum Kind {
    Reasoning,
    Message,
    Call {
        call_id: String,
        name: String,
        custom: bool,
    },
}

impl Events {
    /// From number 0; `on` if there is a stream.
    pub(super) fn new(on: bool) -> Self {
        Self { number: 0, on }
    }

    /// Writes one event, whose members are made only for a stream.
    pub(super) fn emit(
        &mut self,
        kind: &str,
        frame: &mut Vec<u8>,
        members: impl FnOnce() -> Value,
    ) {
        if !self.on {
            return;
        }
        let mut event = json!({"type": kind, "sequence_number": self.number});
        self.number += 1;
        if let (Value::Object(event), Value::Object(members)) = (&mut event, members()) {
            event.extend(members);
        }
        sse::begin_named(kind, frame);
        serde_json::to_writer(&mut *frame, &event).expect("a JSON value is JSON");
        sse::end(frame);
    }
}

impl Output {
    /// Nothing yet.
    pub(super) fn new(with_reasoning: bool, sealed_reasoning: bool, with_logprobs: bool) -> Self {
        Self {
            done: Vec::new(),
            open: None,
            late: Default::default(),
            with_reasoning,
            sealed_reasoning,
            with_logprobs,
        }
    }

    /// Takes news in.
    pub(super) fn push(&mut self, delta: Delta, events: &mut Events, frame: &mut Vec<u8>) {
        if self.with_reasoning && !delta.reasoning.is_empty() {
            self.open_as(&Kind::Reasoning, events, frame);
            self.grow(&delta.reasoning, Vec::new(), events, frame);
        }
        if !delta.content.is_empty() || (self.with_logprobs && !delta.entries.is_empty()) {
            let logprobs = self.logprobs(&delta.entries);
            if self.has_call() {
                self.late.0.push_str(&delta.content);
                self.late.1.extend(logprobs);
            } else {
                self.open_as(&Kind::Message, events, frame);
                self.grow(&delta.content, logprobs, events, frame);
            }
        }
        for call in delta.calls {
            self.call(call, events, frame);
        }
        if let Some(finish) = delta.finish {
            self.finish(finish, events, frame);
        }
    }

    /// All items; one that still grows is left out.
    pub(super) fn items(&self) -> &[Value] {
        &self.done
    }

    /// Their ids.
    pub(super) fn ids(&self) -> Vec<String> {
        let id = |item: &Value| item["id"].as_str().map(str::to_owned);
        self.done.iter().filter_map(id).collect()
    }

    fn call(&mut self, call: CallDelta, events: &mut Events, frame: &mut Vec<u8>) {
        if let Some(start) = call.start {
            let kind = Kind::Call {
                call_id: start.id,
                name: start.name,
                custom: call.custom,
            };
            self.close("completed", events, frame);
            self.begin(kind, events, frame);
        }
        if !call.arguments.is_empty() {
            self.grow(&call.arguments, Vec::new(), events, frame);
        }
    }

    fn finish(&mut self, finish: Finish, events: &mut Events, frame: &mut Vec<u8>) {
        let status = match finish {
            Finish::Length => "incomplete",
            Finish::Stop | Finish::ToolCalls => "completed",
        };
        let (text, logprobs) = std::mem::take(&mut self.late);
        let is_late = !text.is_empty() || !logprobs.is_empty();
        if is_late {
            self.close("completed", events, frame);
            self.begin(Kind::Message, events, frame);
            self.grow(&text, logprobs, events, frame);
        }
        // A complete answer has a message or a call, if an empty one.
        let says_something = |kind: &Kind| !matches!(kind, Kind::Reasoning);
        let open_says = self
            .open
            .as_ref()
            .is_some_and(|item| says_something(&item.kind));
        let done_says = self.done.iter().any(|item| item["type"] != "reasoning");
        if status == "completed" && !open_says && !done_says {
            self.open_as(&Kind::Message, events, frame);
        }
        self.close(status, events, frame);
    }

    fn has_call(&self) -> bool {
        let is_open = |item: &Item| matches!(item.kind, Kind::Call { .. });
        self.open.as_ref().is_some_and(is_open)
    }

    /// Makes sure that the growing item is one of reasoning or text.
    fn open_as(&mut self, kind: &Kind, events: &mut Events, frame: &mut Vec<u8>) {
        let same = |item: &Item| std::mem::discriminant(&item.kind) == std::mem::discriminant(kind);
        if self.open.as_ref().is_some_and(same) {
            return;
        }
        self.close("completed", events, frame);
        let kind = match kind {
            Kind::Reasoning => Kind::Reasoning,
            _ => Kind::Message,
        };
        self.begin(kind, events, frame);
    }

    fn begin(&mut self, kind: Kind, events: &mut Events, frame: &mut Vec<u8>) {
        let item = Item {
            id: unique_id(kind.prefix()),
            kind,
            text: String::new(),
            logprobs: Vec::new(),
        };
        let output_index = self.done.len();
        events.emit("response.output_item.added", frame, || {
            let mut shown = item.shown("in_progress", self.sealed_reasoning);
            if !matches!(item.kind, Kind::Call { .. }) {
                shown["content"] = json!([]);
            }
            json!({"output_index": output_index, "item": shown})
        });
        if matches!(item.kind, Kind::Message) {
            events.emit("response.content_part.added", frame, || {
                json!({
                    "item_id": item.id,
                    "output_index": output_index,
                    "content_index": 0,
                    "part": item.part(),
                })
            });
        }
        self.open = Some(item);
    }

    fn grow(&mut self, text: &str, logprobs: Vec<Value>, events: &mut Events, frame: &mut Vec<u8>) {
        let output_index = self.done.len();
        let item = self.open.as_mut().expect("an item was begun");
        item.text.push_str(text);
        events.emit(item.kind.delta(), frame, || {
            let mut event = json!({"item_id": item.id, "output_index": output_index});
            if !matches!(item.kind, Kind::Call { .. }) {
                event["content_index"] = 0.into();
            }
            event["delta"] = text.into();
            if matches!(item.kind, Kind::Message) {
                event["logprobs"] = logprobs.clone().into();
            }
            event
        });
        item.logprobs.extend(logprobs);
    }

    fn close(&mut self, status: &str, events: &mut Events, frame: &mut Vec<u8>) {
        let Some(item) = self.open.take() else {
            return;
        };
        let output_index = self.done.len();
        let at = || json!({"item_id": item.id, "output_index": output_index});
        let in_content = || {
            let mut event = at();
            event["content_index"] = 0.into();
            event
        };
        events.emit(item.kind.done(), frame, || match &item.kind {
            Kind::Call { name, custom, .. } => {
                let mut event = at();
                if *custom {
                    event["input"] = item.text.as_str().into();
                } else {
                    event["name"] = name.as_str().into();
                    event["arguments"] = item.text.as_str().into();
                }
                event
            }
            Kind::Reasoning | Kind::Message => {
                let mut event = in_content();
                event["text"] = item.text.as_str().into();
                if matches!(item.kind, Kind::Message) {
                    event["logprobs"] = item.logprobs.clone().into();
                }
                event
            }
        });
        if matches!(item.kind, Kind::Message) {
            events.emit("response.content_part.done", frame, || {
                let mut event = in_content();
                event["part"] = item.part();
                event
            });
        }
        let shown = item.shown(status, self.sealed_reasoning);
        events.emit(
            "response.output_item.done",
            frame,
            || json!({"output_index": output_index, "item": shown}),
        );
        self.done.push(shown);
    }

    fn logprobs(&self, entries: &[Entry]) -> Vec<Value> {
        if !self.with_logprobs {
            return Vec::new();
        }
        let entries = serde_json::to_value(ChatEntries(entries)).expect("our own types are JSON");
        let Value::Array(mut entries) = entries else {
            return Vec::new();
        };
        for entry in &mut entries {
            bytes_are_a_list(entry);
            let top = entry["top_logprobs"].as_array_mut();
            top.into_iter().flatten().for_each(bytes_are_a_list);
        }
        entries
    }
}

/// Structure has no bytes; here that is an empty list, in chat it is `null`.
fn bytes_are_a_list(entry: &mut Value) {
    if entry["bytes"].is_null() {
        entry["bytes"] = json!([]);
    }
}

impl Kind {
    fn prefix(&self) -> &'static str {
        match self {
            Self::Reasoning => "rs_",
            Self::Message => "msg_",
            Self::Call { custom: false, .. } => "fc_",
            Self::Call { custom: true, .. } => "ctc_",
        }
    }

    fn delta(&self) -> &'static str {
        match self {
            Self::Reasoning => "response.reasoning_text.delta",
            Self::Message => "response.output_text.delta",
            Self::Call { custom: false, .. } => "response.function_call_arguments.delta",
            Self::Call { custom: true, .. } => "response.custom_tool_call_input.delta",
        }
    }

    fn done(&self) -> &'static str {
        match self {
            Self::Reasoning => "response.reasoning_text.done",
            Self::Message => "response.output_text.done",
            Self::Call { custom: false, .. } => "response.function_call_arguments.done",
            Self::Call { custom: true, .. } => "response.custom_tool_call_input.done",
        }
    }
}

impl Item {
    fn part(&self) -> Value {
        json!({
            "type": "output_text",
            "text": self.text,
            "annotations": [],
            "logprobs": self.logprobs,
        })
    }

    /// As a member of `output`.
    fn shown(&self, status: &str, sealed_reasoning: bool) -> Value {
        match &self.kind {
            Kind::Reasoning => json!({
                "type": "reasoning",
                "id": self.id,
                "status": status,
                "summary": [],
                "content": [{"type": "reasoning_text", "text": self.text}],
                "encrypted_content": sealed_reasoning.then(|| sealed::seal(&self.text)),
            }),
            Kind::Message => json!({
                "type": "message",
                "id": self.id,
                "status": status,
                "role": "assistant",
                "content": [self.part()],
            }),
            Kind::Call {
                call_id,
                name,
                custom: false,
            } => json!({
                "type": "function_call",
                "id": self.id,
                "status": status,
                "call_id": call_id,
                "name": name,
                "arguments": self.text,
            }),
            Kind::Call { call_id, name, .. } => json!({
                "type": "custom_tool_call",
                "id": self.id,
                "status": status,
                "call_id": call_id,
                "name": name,
                "input": self.text,
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::choice::CallStart;

    #[test]
    fn text_after_a_call_comes_last() {
        let text = |content: &str| Delta {
            content: content.into(),
            ..Delta::default()
        };
        let call = |index, name: Option<&str>, arguments: &str| Delta {
            calls: vec![CallDelta {
                index,
                start: name.map(|name| CallStart {
                    id: "call_1".into(),
                    name: name.into(),
                }),
                custom: false,
                arguments: arguments.into(),
            }],
            ..Delta::default()
        };
        let mut output = Output::new(true, false, false);
        let mut events = Events::new(false);
        for delta in [
            text("before"),
            call(0, Some("f"), "{"),
            text(" after"),
            call(0, None, "}"),
            call(1, Some("g"), "{}"),
            text(" all"),
            Delta {
                finish: Some(Finish::ToolCalls),
                ..Delta::default()
            },
        ] {
            output.push(delta, &mut events, &mut Vec::new());
        }
        let said = |item: &Value| match &item["arguments"] {
            Value::Null => item["content"][0]["text"].clone(),
            arguments => arguments.clone(),
        };
        let said: Vec<Value> = output.items().iter().map(said).collect();
        assert_eq!(said, ["before", "{}", "{}", " after all"]);
    }
}
