//! `system` and `messages` to chat messages.

use serde_json::{Map, Value, json};

use crate::api::fields::Fields;
use crate::api::mapping::ChatForm;
use crate::api::sealed;
use crate::error::ApiError;

/// Claude Code begins its system prompt with a block like this. It changes with every request, and
/// what follows it would never be found in the prefix cache.
const BILLING_HEADER: &str = "x-anthropic-billing-header";

/// Puts the whole conversation into the form.
pub(super) fn read(fields: &Fields<'_>, form: &mut ChatForm) -> Result<(), ApiError> {
    system(fields, form)?;
    let messages = fields.array("messages")?;
    let messages = messages.ok_or_else(|| fields.missing("messages"))?;
    if messages.is_empty() {
        let path = fields.path("messages");
        return Err(ApiError::invalid_value(path, "must not be empty"));
    }
    for (i, message) in messages.iter().enumerate() {
        let path = format!("{}[{i}]", fields.path("messages"));
        let message = Fields::of(message, path.clone())?;
        let role = message.word("role", &["user", "assistant", "system"])?;
        let role = role.ok_or_else(|| message.missing("role"))?;
        let blocks = match message.get("content") {
            None => return Err(message.missing("content")),
            Some(Value::String(text)) => {
                place(form, "", &path);
                form.push_message(json!({"role": role, "content": text}));
                continue;
            }
            Some(Value::Array(blocks)) => blocks,
            Some(other) => {
                let expected = "a string or an array of blocks";
                let path = message.path("content");
                return Err(ApiError::invalid_type(path, expected, other));
            }
        };
        if blocks.is_empty() {
            let path = message.path("content");
            return Err(ApiError::invalid_value(path, "must not be empty"));
        }
        let mut reader = Turn {
            form,
            role,
            path,
            message: Map::new(),
            texts: Vec::new(),
        };
        for (j, block) in blocks.iter().enumerate() {
            let path = format!("{}[{j}]", message.path("content"));
            reader.block(&Fields::of(block, path.clone())?, &path)?;
        }
        reader.end();
    }
    Ok(())
}

fn system(fields: &Fields<'_>, form: &mut ChatForm) -> Result<(), ApiError> {
    let content = match fields.get("system") {
        None => return Ok(()),
        Some(Value::String(text)) => text.as_str().into(),
        Some(Value::Array(blocks)) => {
            let mut parts = Vec::new();
            for (i, block) in blocks.iter().enumerate() {
                let block = Fields::of(block, format!("{}[{i}]", fields.path("system")))?;
                if !text(&block)?.starts_with(BILLING_HEADER) {
                    parts.push(part(&block)?);
                }
            }
            if parts.is_empty() {
                return Ok(());
            }
            Value::from(parts)
        }
        Some(other) => {
            let expected = "a string or an array of text blocks";
            return Err(ApiError::invalid_type(
                fields.path("system"),
                expected,
                other,
            ));
        }
    };
    let paths = form.paths();
    paths.add_whole("messages[0]", "system");
    form.push_message(json!({"role": "system", "content": content}));
    Ok(())
}

/// A message of blocks, which chat may need several messages for.
struct Turn<'a> {
    form: &'a mut ChatForm,
    role: &'static str,
    /// Where the message stands.
    path: String,
    /// What the assistant's message has beside text.
    message: Map<String, Value>,
    texts: Vec<Value>,
}

impl Turn<'_> {
    fn block(&mut self, block: &Fields<'_>, path: &str) -> Result<(), ApiError> {
        let kind = block.string("type")?;
        let kind = kind.ok_or_else(|| block.missing("type"))?;
        match (self.role, kind) {
            (_, "text") => self.texts.push(part(block)?),
            ("user", "tool_result") => self.tool_result(block, path)?,
            ("assistant", "tool_use") => self.tool_use(block, path)?,
            ("assistant", "thinking") => {
                let shown = block.string("thinking")?;
                let shown = shown.ok_or_else(|| block.missing("thinking"))?;
                let signature = block.string("signature")?.and_then(sealed::open);
                self.think(if shown.is_empty() {
                    signature.unwrap_or_default()
                } else {
                    shown
                });
            }
            ("assistant", "redacted_thinking") => {
                // Another server's are not readable, and nothing was lost that was ever here.
                let data = block.string("data")?;
                let data = data.ok_or_else(|| block.missing("data"))?;
                self.think(sealed::open(data).unwrap_or_default());
            }
            (role, other) => {
                return Err(ApiError::bad_request(
                    "unsupported_value",
                    Some(block.path("type")),
                    format!("blocks of type {other:?} are not served in messages of {role:?}"),
                ));
            }
        }
        Ok(())
    }

    fn think(&mut self, thought: &str) {
        if thought.is_empty() {
            return;
        }
        let before = self
            .message
            .get("reasoning_content")
            .and_then(Value::as_str);
        let thought = match before {
            Some(before) => format!("{before}\n{thought}"),
            None => thought.to_owned(),
        };
        self.message
            .insert("reasoning_content".into(), thought.into());
    }

    fn tool_use(&mut self, block: &Fields<'_>, path: &str) -> Result<(), ApiError> {
        let id = block.string("id")?.ok_or_else(|| block.missing("id"))?;
        let input = block.object("input")?;
        let input = input.ok_or_else(|| block.missing("input"))?;
        let calls = self.message.entry("tool_calls");
        let calls = calls.or_insert_with(|| json!([]));
        let calls = calls.as_array_mut().expect("we made it one");
        let index = calls.len();
        calls.push(json!({
            "id": id,
            "type": "function",
            "function": {"name": block.get("name"), "arguments": input.map()},
        }));
        place(self.form, &format!(".tool_calls[{index}]"), path);
        place(self.form, &format!(".tool_calls[{index}].function"), path);
        Ok(())
    }

    fn tool_result(&mut self, block: &Fields<'_>, path: &str) -> Result<(), ApiError> {
        let id = block.string("tool_use_id")?;
        let id = id.ok_or_else(|| block.missing("tool_use_id"))?;
        let mut texts = Vec::new();
        match block.get("content") {
            None => {}
            Some(Value::String(text)) => texts.push(text.as_str()),
            Some(Value::Array(blocks)) => {
                for (k, inner) in blocks.iter().enumerate() {
                    let inner = Fields::of(inner, format!("{}[{k}]", block.path("content")))?;
                    texts.push(text(&inner)?);
                }
            }
            Some(other) => {
                let expected = "a string or an array of text blocks";
                let path = block.path("content");
                return Err(ApiError::invalid_type(path, expected, other));
            }
        }
        let mut content = texts.join("\n");
        if block.bool("is_error")?.unwrap_or(false) {
            // Chat has no mark for it, and the model should know.
            content.insert_str(0, "Error: ");
        }
        self.end();
        place(self.form, "", path);
        place(self.form, ".tool_call_id", &block.path("tool_use_id"));
        let message = json!({"role": "tool", "tool_call_id": id, "content": content});
        self.form.push_message(message);
        Ok(())
    }

    /// What was gathered becomes a message.
    fn end(&mut self) {
        let mut message = std::mem::take(&mut self.message);
        let texts = std::mem::take(&mut self.texts);
        if message.is_empty() && texts.is_empty() {
            return;
        }
        if !texts.is_empty() {
            message.insert("content".into(), texts.into());
        } else if !message.contains_key("tool_calls") {
            // Thoughts alone: the answer was cut before it began.
            message.insert("content".into(), "".into());
        }
        message.insert("role".into(), self.role.into());
        place(self.form, "", &self.path);
        self.form.push_message(message.into());
    }
}

/// A text block as a part of a chat's content, wanted cached up to there or not.
fn part(block: &Fields<'_>) -> Result<Value, ApiError> {
    let mut part = json!({"type": "text", "text": text(block)?});
    if let Some(control) = block.get("cache_control") {
        part["cache_control"] = control.clone();
    }
    Ok(part)
}

/// The text of a text block; citations are no part of it.
fn text<'a>(block: &Fields<'a>) -> Result<&'a str, ApiError> {
    match block.string("type")? {
        None => return Err(block.missing("type")),
        Some("text") => {}
        Some(other) => {
            return Err(ApiError::bad_request(
                "unsupported_value",
                Some(block.path("type")),
                format!("only text blocks are served, got {other:?}"),
            ));
        }
    }
    block.string("text")?.ok_or_else(|| block.missing("text"))
}

/// Part `part` of the message that comes next was written at `client`.
fn place(form: &mut ChatForm, part: &str, client: &str) {
    let chat = format!("messages[{}]{part}", form.next_message());
    form.paths().add(chat, client);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fields::parse_object;

    fn convert(body: &Value) -> Result<Value, ApiError> {
        let body = parse_object(body.to_string().as_bytes())?;
        let fields = Fields::root(&body);
        let mut form = ChatForm::new(&fields);
        read(&fields, &mut form)?;
        Ok(form.finish().0["messages"].take())
    }

    #[test]
    fn blocks_become_messages() {
        let cache = json!({"type": "ephemeral"});
        let messages = convert(&json!({
            "system": [
                {"type": "text", "text": "x-anthropic-billing-header: cc_version=1; cch=00000;"},
                {"type": "text", "text": "s1", "cache_control": cache},
                {"type": "text", "text": "s2"}],
            "messages": [
                {"role": "user", "content": "u"},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "t", "signature": "theirs"},
                    {"type": "redacted_thinking", "data": "theirs"},
                    {"type": "text", "text": "a"},
                    {"type": "tool_use", "id": "1", "name": "f", "input": {"x": 1}, "cache_control": cache}]},
                {"role": "user", "content": [
                    {"type": "tool_result", "tool_use_id": "1", "content": [{"type": "text", "text": "r"}], "is_error": true},
                    {"type": "text", "text": "b"},
                    {"type": "text", "text": "c"}]},
                {"role": "assistant", "content": [
                    {"type": "thinking", "thinking": "", "signature": sealed::seal("hidden")}]},
                {"role": "system", "content": [{"type": "text", "text": "m"}]},
            ],
        }))
        .unwrap();
        let part = |text: &str| json!({"type": "text", "text": text});
        let expect = json!([
            {"role": "system", "content": [
                {"type": "text", "text": "s1", "cache_control": cache}, part("s2")]},
            {"role": "user", "content": "u"},
            {"reasoning_content": "t",
             "tool_calls": [{"id": "1", "type": "function", "function": {"name": "f", "arguments": {"x": 1}}}],
             "content": [part("a")], "role": "assistant"},
            {"role": "tool", "tool_call_id": "1", "content": "Error: r"},
            {"content": [part("b"), part("c")], "role": "user"},
            {"reasoning_content": "hidden", "content": "", "role": "assistant"},
            {"content": [part("m")], "role": "system"},
        ]);
        assert_eq!(messages, expect);
    }

    #[test]
    fn errors_name_the_block() {
        let check = |content: Value, param: &str| {
            let body = json!({"messages": [{"role": "user", "content": content}]});
            let error = convert(&body).unwrap_err();
            assert_eq!(error.param.as_deref(), Some(param));
        };
        check(json!(1), "messages[0].content");
        check(json!([]), "messages[0].content");
        check(json!(["text"]), "messages[0].content[0]");
        check(json!([{"type": "text"}]), "messages[0].content[0].text");
        check(json!([{"type": "image"}]), "messages[0].content[0].type");
        check(json!([{"type": "tool_use"}]), "messages[0].content[0].type");
        let result =
            |content| json!([{"type": "tool_result", "tool_use_id": "1", "content": content}]);
        check(
            result(json!([{"type": "image"}])),
            "messages[0].content[0].content[0].type",
        );
        check(result(json!(1)), "messages[0].content[0].content");
    }
}
