//! `messages` of a chat: validated, and in the one form that templates see.

use std::collections::HashSet;

use serde_json::{Map, Value};

use super::fields::{Fields, type_name};
use crate::chat::{Message, Role, ToolCall};
use crate::error::ApiError;

/// Reads and checks the whole history.
pub fn read(fields: &Fields<'_>) -> Result<Vec<Message>, ApiError> {
    let Some(values) = fields.array("messages")? else {
        return Err(fields.missing("messages"));
    };
    if values.is_empty() {
        let path = fields.path("messages");
        return Err(ApiError::invalid_value(path, "must not be empty"));
    }
    let mut reader = Reader::default();
    let mut messages = Vec::with_capacity(values.len());
    for (i, value) in values.iter().enumerate() {
        let message = Fields::of(value, format!("messages[{i}]"))?;
        messages.push(reader.message(&message)?);
    }
    Ok(messages)
}

/// What later messages may refer to.
#[derive(Default)]
struct Reader {
    call_ids: HashSet<String>,
    /// Names called by the deprecated `function_call`.
    functions: HashSet<String>,
}

impl Reader {
    fn message(&mut self, fields: &Fields<'_>) -> Result<Message, ApiError> {
        let Some(role) = fields.string("role")? else {
            return Err(fields.missing("role"));
        };
        let mut message = Message {
            name: fields.string("name")?.map(str::to_owned),
            ..Message::default()
        };
        message.role = match role {
            "system" | "developer" => Role::System,
            "user" => Role::User,
            "assistant" => return self.assistant(fields, message),
            "tool" => return self.tool(fields, message),
            "function" => return self.function(fields, message),
            other => {
                return Err(ApiError::invalid_value(
                    fields.path("role"),
                    format!(
                        "must be one of system, developer, user, assistant, tool, function, is \
                         {other:?}"
                    ),
                ));
            }
        };
        required_content(fields)?.put(&mut message);
        Ok(message)
    }

    fn assistant(
        &mut self,
        fields: &Fields<'_>,
        mut message: Message,
    ) -> Result<Message, ApiError> {
        message.role = Role::Assistant;
        message.reasoning = reasoning(fields)?;
        let refusal = fields.string("refusal")?;
        let content = content(fields, true)?;
        let calls = fields.array("tool_calls")?.unwrap_or(&[]);
        for (j, call) in calls.iter().enumerate() {
            let path = format!("{}[{j}]", fields.path("tool_calls"));
            let call = tool_call(&Fields::of(call, path)?)?;
            self.call_ids.insert(call.id.clone());
            message.tool_calls.push(call);
        }
        if let Some(call) = fields.object("function_call")? {
            let call = function(&call, String::new())?;
            self.functions.insert(call.name.clone());
            message.tool_calls.push(call);
        }
        if content.is_none() && refusal.is_none() && message.tool_calls.is_empty() {
            return Err(fields.missing("content"));
        }
        let refusal = refusal.map(Content::from);
        content.or(refusal).unwrap_or_default().put(&mut message);
        if message.reasoning.is_none()
            && let Some((thought, answer)) = split_thought(&message.content)
        {
            let num_taken = message.content.len() - answer.len();
            let left = message.breakpoints.iter();
            message.breakpoints = left.filter_map(|at| at.checked_sub(num_taken)).collect();
            (message.reasoning, message.content) = (Some(thought), answer);
        }
        Ok(message)
    }

    fn tool(&self, fields: &Fields<'_>, mut message: Message) -> Result<Message, ApiError> {
        message.role = Role::Tool;
        let Some(id) = fields.string("tool_call_id")? else {
            return Err(fields.missing("tool_call_id"));
        };
        if !self.call_ids.contains(id) {
            let message = format!("{id:?} answers no tool call before it");
            return Err(ApiError::invalid_value(
                fields.path("tool_call_id"),
                message,
            ));
        }
        message.tool_call_id = Some(id.to_owned());
        required_content(fields)?.put(&mut message);
        Ok(message)
    }

    fn function(&self, fields: &Fields<'_>, mut message: Message) -> Result<Message, ApiError> {
        message.role = Role::Tool;
        let Some(name) = &message.name else {
            return Err(fields.missing("name"));
        };
        if !self.functions.contains(name) {
            let message = format!("{name:?} answers no function call before it");
            return Err(ApiError::invalid_value(fields.path("name"), message));
        }
        content(fields, false)?
            .unwrap_or_default()
            .put(&mut message);
        Ok(message)
    }
}

/// What a message says.
#[derive(Default)]
struct Content {
    text: String,
    /// See [`Message::breakpoints`].
    breakpoints: Vec<usize>,
}

impl Content {
    fn put(self, message: &mut Message) {
        (message.content, message.breakpoints) = (self.text, self.breakpoints);
    }
}

impl From<&str> for Content {
    fn from(text: &str) -> Self {
        Self {
            text: text.to_owned(),
            breakpoints: Vec::new(),
        }
    }
}

fn required_content(fields: &Fields<'_>) -> Result<Content, ApiError> {
    content(fields, false)?.ok_or_else(|| fields.missing("content"))
}

/// A string, or text parts joined by newlines.
fn content(fields: &Fields<'_>, assistant: bool) -> Result<Option<Content>, ApiError> {
    let path = fields.path("content");
    let parts = match fields.get("content") {
        None => return Ok(None),
        Some(Value::String(text)) => return Ok(Some(text.as_str().into())),
        Some(Value::Array(parts)) => parts,
        Some(other) => {
            return Err(ApiError::invalid_type(
                path,
                "a string or an array of parts",
                other,
            ));
        }
    };
    if parts.is_empty() {
        return Err(ApiError::invalid_value(path, "must not be empty"));
    }
    let mut content = Content::default();
    for (j, part) in parts.iter().enumerate() {
        let part = Fields::of(part, format!("{path}[{j}]"))?;
        let kind = part.string("type")?.ok_or_else(|| part.missing("type"))?;
        let key = match kind {
            "text" => "text",
            "refusal" if assistant => "refusal",
            other => {
                return Err(ApiError::bad_request(
                    "unsupported_value",
                    Some(part.path("type")),
                    format!("only text parts are served, got {other:?}"),
                ));
            }
        };
        let text = part.string(key)?.ok_or_else(|| part.missing(key))?;
        if j > 0 {
            content.text.push('\n');
        }
        content.text.push_str(text);
        if part.get("cache_control").is_some() {
            content.breakpoints.push(content.text.len());
        }
    }
    Ok(Some(content))
}

/// The thought that belongs to an assistant's message, under any of its three names.
fn reasoning(fields: &Fields<'_>) -> Result<Option<String>, ApiError> {
    let content = fields.string("reasoning_content")?;
    let plain = fields.string("reasoning")?;
    let mut details = String::new();
    let parts = fields.array("reasoning_details")?.unwrap_or(&[]);
    for (j, part) in parts.iter().enumerate() {
        let part = Fields::of(part, format!("{}[{j}]", fields.path("reasoning_details")))?;
        details.push_str(part.string("text")?.unwrap_or_default());
    }
    let details = Some(details).filter(|text| !text.is_empty());
    Ok(content.or(plain).map(str::to_owned).or(details))
}

/// Clients that know no field for thoughts send them back in front of the answer. There they would
/// be text; they are meant as thoughts.
fn split_thought(content: &str) -> Option<(String, String)> {
    let (thought, answer) = content.strip_prefix("<think>")?.split_once("</think>")?;
    let answer = answer.strip_prefix('\n').unwrap_or(answer);
    Some((thought.trim().to_owned(), answer.to_owned()))
}

fn tool_call(fields: &Fields<'_>) -> Result<ToolCall, ApiError> {
    let id = fields.string("id")?.ok_or_else(|| fields.missing("id"))?;
    match fields.word("type", &["function", "custom"])? {
        None | Some("function") => {
            let call = fields
                .object("function")?
                .ok_or_else(|| fields.missing("function"))?;
            function(&call, id.to_owned())
        }
        Some(_) => {
            let call = fields
                .object("custom")?
                .ok_or_else(|| fields.missing("custom"))?;
            let input = call.string("input")?.ok_or_else(|| call.missing("input"))?;
            let mut arguments = Map::new();
            arguments.insert("input".into(), input.into());
            Ok(ToolCall {
                id: id.to_owned(),
                name: name(&call)?,
                arguments,
            })
        }
    }
}

fn function(fields: &Fields<'_>, id: String) -> Result<ToolCall, ApiError> {
    let path = fields.path("arguments");
    // Some clients send the object itself.
    let arguments = match fields.get("arguments") {
        None => return Err(fields.missing("arguments")),
        Some(Value::Object(arguments)) => arguments.clone(),
        Some(Value::String(text)) if text.trim().is_empty() => Map::new(),
        Some(Value::String(text)) => match serde_json::from_str(text) {
            Ok(Value::Object(arguments)) => arguments,
            Ok(other) => {
                let message = format!(
                    "must be a JSON object in a string, is {}",
                    type_name(&other)
                );
                return Err(ApiError::invalid_value(path, message));
            }
            Err(error) => {
                let message = format!("must be a JSON object in a string: {error}");
                return Err(ApiError::invalid_value(path, message));
            }
        },
        Some(other) => return Err(ApiError::invalid_type(path, "a string", other)),
    };
    Ok(ToolCall {
        id,
        name: name(fields)?,
        arguments,
    })
}

fn name(fields: &Fields<'_>) -> Result<String, ApiError> {
    match fields.string("name")? {
        None => Err(fields.missing("name")),
        Some("") => Err(ApiError::invalid_value(
            fields.path("name"),
            "must not be empty",
        )),
        Some(name) => Ok(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fields::parse_object;

    fn messages(json: &str) -> Result<Vec<Message>, ApiError> {
        let body = format!("{{\"messages\": {json}}}");
        read(&Fields::root(&parse_object(body.as_bytes()).unwrap()))
    }

    #[test]
    fn histories_become_one_form() {
        let read = messages(
            r#"[
                {"role": "developer", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]},
                {"role": "user", "content": "", "name": "u"},
                {"role": "assistant", "content": null, "reasoning": "r", "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": [1]}"}},
                    {"id": "2", "type": "custom", "custom": {"name": "g", "input": "raw"}},
                    {"id": "3", "function": {"name": "h", "arguments": ""}}]},
                {"role": "tool", "tool_call_id": "2", "content": [{"type": "text", "text": "ok"}]},
                {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}],
                 "reasoning_details": [{"type": "reasoning.text", "text": "d1"}, {"text": "d2"}]},
                {"role": "assistant", "function_call": {"name": "k", "arguments": "{}"}},
                {"role": "function", "name": "k", "content": null}
            ]"#,
        )
        .unwrap();
        let roles: Vec<&str> = read.iter().map(|m| m.role.as_str()).collect();
        let expect = [
            "system",
            "user",
            "assistant",
            "tool",
            "assistant",
            "assistant",
            "tool",
        ];
        assert_eq!(roles, expect);
        assert_eq!(read[0].content, "a\nb");
        assert_eq!(read[1].name.as_deref(), Some("u"));
        assert_eq!(read[2].reasoning.as_deref(), Some("r"));
        assert_eq!(read[2].tool_calls[0].arguments["x"][0], 1);
        assert_eq!(read[2].tool_calls[1].arguments["input"], "raw");
        assert!(read[2].tool_calls[2].arguments.is_empty());
        assert_eq!(read[4].content, "no");
        assert_eq!(read[4].reasoning.as_deref(), Some("d1d2"));
        assert_eq!(read[5].tool_calls[0].name, "k");
    }

    #[test]
    fn parts_end_where_their_client_wants_them_cached() {
        let ends = |content: &str| {
            let read = messages(&format!(
                r#"[{{"role": "assistant", "content": {content}}}]"#
            ));
            let message = read.unwrap().remove(0);
            let ends = message.breakpoints.iter();
            ends.map(|end| message.content[..*end].to_owned())
                .collect::<Vec<_>>()
        };
        let marked = |text: &str| {
            format!(
                r#"{{"type": "text", "text": "{text}", "cache_control": {{"type": "ephemeral"}}}}"#
            )
        };
        let plain = r#"{"type": "text", "text": "é", "cache_control": null}"#;
        let (one, two) = (marked("one"), marked("two"));
        assert_eq!(ends(&format!("[{plain}]")), [""; 0]);
        assert_eq!(
            ends(&format!("[{plain}, {one}, {plain}, {two}]")),
            ["é\none", "é\none\né\ntwo"]
        );
        // A thought in front of the answer is taken out, and what ends in it ends nowhere.
        let thought = marked("<think>so");
        let answer = marked("</think>yes");
        assert_eq!(
            ends(&format!("[{thought}, {answer}, {one}]")),
            ["yes", "yes\none"]
        );
    }
}
