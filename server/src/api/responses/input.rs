//! `input` items to chat messages.
//!
//! A turn of the assistant is several items here (thoughts, text, calls) and one message there.

use serde_json::{Map, Value, json};

use super::store::ResponseStore;
use crate::api::fields::Fields;
use crate::api::mapping::ChatForm;
use crate::api::sealed;
use crate::error::ApiError;

/// Records of what a provider's own tools did. They hold nothing that the model could read, and a
/// conversation that began elsewhere has them.
const HOSTED_RECORDS: &[&str] = &[
    "web_search_call",
    "file_search_call",
    "code_interpreter_call",
    "image_generation_call",
    "mcp_list_tools",
];

/// Turns items into the messages of a chat form.
pub(super) struct Conversation<'a> {
    form: &'a mut ChatForm,
    store: &'a ResponseStore,
    key: Option<usize>,
    /// The assistant's turn, until something else comes.
    turn: Option<Map<String, Value>>,
}

impl<'a> Conversation<'a> {
    /// With nothing said yet. References are looked up in `store`, as far as they are `key`'s.
    pub(super) fn new(
        form: &'a mut ChatForm,
        store: &'a ResponseStore,
        key: Option<usize>,
    ) -> Self {
        Self {
            form,
            store,
            key,
            turn: None,
        }
    }

    /// What the operator says first.
    pub(super) fn instructions(&mut self, text: &str) {
        self.place("", "instructions");
        self.push(json!({"role": "system", "content": text}));
    }

    /// One item, found at `path`; what it refers to instead, if it is a reference.
    pub(super) fn item(&mut self, item: &Value, path: &str) -> Result<Option<Value>, ApiError> {
        let fields = Fields::of(item, path.to_owned())?;
        match fields.string("type")? {
            None if fields.get("role").is_none() => return Err(fields.missing("type")),
            None | Some("message") => self.message(&fields, path)?,
            Some("reasoning") => self.reasoning(&fields, path)?,
            Some("function_call") => self.call("function", "arguments", &fields, path)?,
            Some("custom_tool_call") => self.call("custom", "input", &fields, path)?,
            Some("function_call_output" | "custom_tool_call_output") => {
                self.call_output(&fields, path)?;
            }
            Some("item_reference") => {
                let id = fields.string("id")?.ok_or_else(|| fields.missing("id"))?;
                let Some(item) = self.store.item(id, self.key) else {
                    let message = format!("{id:?} is no item of a stored response");
                    return Err(ApiError::invalid_value(fields.path("id"), message));
                };
                self.item(&item, path)?;
                return Ok(Some(item));
            }
            Some(kind) if HOSTED_RECORDS.contains(&kind) => {}
            Some(other) => {
                return Err(ApiError::bad_request(
                    "unsupported_value",
                    Some(fields.path("type")),
                    format!("items of type {other:?} are not served"),
                ));
            }
        }
        Ok(None)
    }

    /// Items of a stored response; whatever is wrong with them, the client named them by its id.
    pub(super) fn stored(&mut self, items: &[Value]) -> Result<(), ApiError> {
        for item in items {
            let blamed = |error: ApiError| ApiError {
                param: Some("previous_response_id".into()),
                ..error
            };
            self.item(item, "previous_response_id").map_err(blamed)?;
        }
        Ok(())
    }

    /// Nothing more comes.
    pub(super) fn finish(mut self) {
        self.end_turn();
    }

    fn message(&mut self, fields: &Fields<'_>, path: &str) -> Result<(), ApiError> {
        let roles = &["user", "assistant", "system", "developer"];
        let role = fields.word("role", roles)?;
        let role = role.ok_or_else(|| fields.missing("role"))?;
        let is_assistant = role == "assistant";
        let content = content(fields, "content", is_assistant)?;
        if !is_assistant {
            self.end_turn();
            self.place("", path);
            self.push(json!({"role": role, "content": content}));
            return Ok(());
        }
        if self
            .turn
            .as_ref()
            .is_some_and(|turn| turn.contains_key("content") || turn.contains_key("tool_calls"))
        {
            self.end_turn();
        }
        self.place(".content", &fields.path("content"));
        self.turn(path).insert("content".into(), content);
        Ok(())
    }

    fn reasoning(&mut self, fields: &Fields<'_>, path: &str) -> Result<(), ApiError> {
        if self
            .turn
            .as_ref()
            .is_some_and(|turn| turn.contains_key("content") || turn.contains_key("tool_calls"))
        {
            self.end_turn();
        }
        let shown = texts(fields, "content")?;
        let sealed = fields.string("encrypted_content")?.and_then(sealed::open);
        let summary = texts(fields, "summary")?;
        let thought = Some(shown)
            .filter(|text| !text.is_empty())
            .or_else(|| sealed.map(str::to_owned))
            .unwrap_or(summary);
        let turn = self.turn(path);
        let thought = match turn.get("reasoning_content").and_then(Value::as_str) {
            Some(before) => format!("{before}\n{thought}"),
            None => thought,
        };
        turn.insert("reasoning_content".into(), thought.into());
        Ok(())
    }

    fn call(
        &mut self,
        kind: &str,
        input: &str,
        fields: &Fields<'_>,
        path: &str,
    ) -> Result<(), ApiError> {
        let id = fields.string("call_id")?;
        let id = id.ok_or_else(|| fields.missing("call_id"))?;
        let call = json!({
            "id": id,
            "type": kind,
            kind: {"name": fields.get("name"), input: fields.get(input)},
        });
        let turn = self.turn(path);
        let calls = turn.entry("tool_calls").or_insert_with(|| json!([]));
        let calls = calls.as_array_mut().expect("we made it one");
        let index = calls.len();
        calls.push(call);
        self.place(&format!(".tool_calls[{index}].{kind}"), path);
        self.place(&format!(".tool_calls[{index}]"), path);
        Ok(())
    }

    fn call_output(&mut self, fields: &Fields<'_>, path: &str) -> Result<(), ApiError> {
        let id = fields.string("call_id")?;
        let id = id.ok_or_else(|| fields.missing("call_id"))?;
        let content = match fields.get("output") {
            // A tool may well have nothing to say.
            Some(Value::Array(parts)) if parts.is_empty() => json!(""),
            _ => content(fields, "output", false)?,
        };
        self.end_turn();
        self.place("", path);
        self.place(".tool_call_id", &fields.path("call_id"));
        self.place(".content", &fields.path("output"));
        self.push(json!({"role": "tool", "tool_call_id": id, "content": content}));
        Ok(())
    }

    /// The open turn of the assistant, begun by the item at `path` if there is none.
    fn turn(&mut self, path: &str) -> &mut Map<String, Value> {
        if self.turn.is_none() {
            self.place("", path);
        }
        self.turn.get_or_insert_with(|| {
            let mut turn = Map::new();
            turn.insert("role".into(), "assistant".into());
            turn
        })
    }

    fn end_turn(&mut self) {
        let Some(mut turn) = self.turn.take() else {
            return;
        };
        if !turn.contains_key("tool_calls") {
            // Thoughts alone: the answer was cut before it began.
            turn.entry("content").or_insert_with(|| json!(""));
        }
        self.push(turn.into());
    }

    fn push(&mut self, message: Value) {
        self.form.push_message(message);
    }

    /// Part `part` of the message that comes next was written at `client`.
    fn place(&mut self, part: &str, client: &str) {
        let chat = format!("messages[{}]{part}", self.form.next_message());
        let paths = self.form.paths();
        if client == "previous_response_id" || client == "instructions" {
            paths.add_whole(chat, client);
        } else {
            paths.add(chat, client);
        }
    }
}

/// A string or text parts, as chat has them.
fn content(fields: &Fields<'_>, name: &str, is_assistant: bool) -> Result<Value, ApiError> {
    let path = fields.path(name);
    let parts = match fields.get(name) {
        None => return Err(fields.missing(name)),
        Some(Value::String(text)) => return Ok(text.as_str().into()),
        Some(Value::Array(parts)) => parts,
        Some(other) => {
            let expected = "a string or an array of parts";
            return Err(ApiError::invalid_type(path, expected, other));
        }
    };
    let mut mapped = Vec::with_capacity(parts.len());
    for (j, part) in parts.iter().enumerate() {
        let part = Fields::of(part, format!("{path}[{j}]"))?;
        let kind = part.string("type")?.ok_or_else(|| part.missing("type"))?;
        mapped.push(match kind {
            "input_text" | "output_text" | "text" => {
                json!({"type": "text", "text": part.get("text")})
            }
            "refusal" if is_assistant => {
                json!({"type": "refusal", "refusal": part.get("refusal")})
            }
            other => {
                return Err(ApiError::bad_request(
                    "unsupported_value",
                    Some(part.path("type")),
                    format!("only text parts are served, got {other:?}"),
                ));
            }
        });
    }
    Ok(mapped.into())
}

/// All `text` of the parts under `name`.
fn texts(fields: &Fields<'_>, name: &str) -> Result<String, ApiError> {
    let path = fields.path(name);
    let mut texts = Vec::new();
    for (j, part) in fields.array(name)?.unwrap_or(&[]).iter().enumerate() {
        let part = Fields::of(part, format!("{path}[{j}]"))?;
        texts.extend(part.string("text")?);
    }
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fields::parse_object;
    use crate::api::mapping::Paths;

    fn convert(items: &Value) -> Result<(Value, Paths), ApiError> {
        let body = parse_object(b"{}")?;
        let mut form = ChatForm::new(&Fields::root(&body));
        let store = ResponseStore::new(0);
        let mut conversation = Conversation::new(&mut form, &store, None);
        for (i, item) in items.as_array().expect("items").iter().enumerate() {
            conversation.item(item, &format!("input[{i}]"))?;
        }
        conversation.finish();
        let (mut body, paths) = form.finish();
        Ok((body["messages"].take(), paths))
    }

    #[test]
    fn a_turn_becomes_one_message() {
        let (messages, paths) = convert(&json!([
            {"role": "developer", "content": "d"},
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "u"}]},
            {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "r"}]},
            {"type": "message", "role": "assistant", "content": [{"type": "output_text", "text": "a"}]},
            {"type": "web_search_call", "id": "ws"},
            {"type": "function_call", "call_id": "1", "name": "f", "arguments": "{}"},
            {"type": "custom_tool_call", "call_id": "2", "name": "g", "input": "raw"},
            {"type": "function_call_output", "call_id": "1", "output": []},
            {"type": "custom_tool_call_output", "call_id": "2", "output": "two"},
            {"type": "reasoning", "summary": [{"text": "s"}], "encrypted_content": "another server's"},
            {"type": "reasoning", "summary": [], "encrypted_content": sealed::seal("t")},
        ]))
        .unwrap();
        let expect = json!([
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": "u"}]},
            {"role": "assistant", "reasoning_content": "r",
             "content": [{"type": "text", "text": "a"}],
             "tool_calls": [
                {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}},
                {"id": "2", "type": "custom", "custom": {"name": "g", "input": "raw"}}]},
            {"role": "tool", "tool_call_id": "1", "content": ""},
            {"role": "tool", "tool_call_id": "2", "content": "two"},
            {"role": "assistant", "reasoning_content": "s\nt", "content": ""},
        ]);
        assert_eq!(messages, expect);
        let check = |chat: &str, client: &str| {
            let error = paths.translate(ApiError::invalid_value(chat, ""));
            assert_eq!(error.param.as_deref(), Some(client));
        };
        check("messages[2].content[0].text", "input[3].content[0].text");
        check(
            "messages[2].tool_calls[0].function.arguments",
            "input[5].arguments",
        );
        check("messages[2].tool_calls[1].custom.input", "input[6].input");
        check("messages[4].tool_call_id", "input[8].call_id");
        check("messages[4].content", "input[8].output");
    }

    #[test]
    fn errors_name_the_item() {
        let check = |item: Value, param: &str| {
            let error = convert(&json!([{"role": "user", "content": "u"}, item])).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        };
        check(json!(1), "input[1]");
        check(json!({}), "input[1].type");
        check(json!({"type": "computer_call"}), "input[1].type");
        check(json!({"role": "tool", "content": ""}), "input[1].role");
        check(json!({"role": "user"}), "input[1].content");
        check(
            json!({"role": "user", "content": [{}]}),
            "input[1].content[0].type",
        );
        let image = json!({"role": "user", "content": [{"type": "input_image"}]});
        check(image, "input[1].content[0].type");
        check(
            json!({"type": "function_call", "name": "f"}),
            "input[1].call_id",
        );
        check(
            json!({"type": "function_call_output", "call_id": "1"}),
            "input[1].output",
        );
        check(
            json!({"type": "item_reference", "id": "msg_1"}),
            "input[1].id",
        );
        check(
            json!({"type": "reasoning", "content": "r"}),
            "input[1].content",
        );
    }
}
