//! The inside of a call in Nemotron 3's format: parameters to JSON.

use super::tags::{Found, find};
use super::values::ValueTypes;
use super::{FUNCTION, MAX_NAME, ToolCallFormat};
use crate::chat::tools::ToolInput;
use crate::text::Utf8Stream;

const PARAMETER: &[u8] = b"<parameter=";
const END_PARAMETER: &[u8] = b"</parameter>";
const END_FUNCTION: &[u8] = b"</function>";
/// More blanks after a closing tag need not be waited for.
const MAX_BLANKS: usize = 256;

/// One call, from behind its name.
#[derive(Debug)]
pub(super) struct Call {
    name: String,
    custom: bool,
    part: Part,
    /// Bytes that may be a tag, with the newline before it that would belong to it.
    held: Vec<u8>,
    /// Parameters so far.
    seen: Vec<String>,
    value: Value,
    /// Whether a member was written.
    has_members: bool,
    ready: String,
}

/// What ended a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// `</function>`.
    Function,
    /// The next `<function=`.
    NextFunction,
    /// A spelled opening tag.
    Open,
    /// A spelled closing tag.
    Close,
}

#[derive(Debug)]
enum Part {
    /// Between parameters.
    Body,
    /// After `<parameter=`.
    Name(Vec<u8>),
    Value,
}

/// A tag between parameters.
#[derive(Clone, Copy)]
enum Tag {
    Parameter,
    End(End),
}

/// What `held` is, inside a value.
enum Verdict {
    /// More must be seen.
    Wait,
    /// This many bytes of it belong to the value.
    Value(usize),
    /// It ends the value; this many bytes of it are done with.
    End(usize),
}

/// The value being read.
#[derive(Debug, Default)]
struct Value {
    kind: Kind,
    utf8: Utf8Stream,
    /// Where it has to wait for its end.
    text: String,
    /// The first newline belongs to the tag.
    skip_newline: bool,
    /// Whether its member or text was begun.
    started: bool,
}

#[derive(Debug, Default)]
enum Kind {
    /// Of no use: given before, or beside a custom tool's input.
    #[default]
    Ignored,
    /// A custom tool's input, as it stands.
    Input,
    /// Streamed.
    Text,
    /// Text, unless it turns out to be null.
    TextOrNull,
    /// Only the end tells what it is.
    Typed(ValueTypes),
}

impl Call {
    pub(super) fn new(name: &str, custom: bool) -> Self {
        Self {
            name: name.to_owned(),
            custom,
            part: Part::Body,
            held: Vec::new(),
            seen: Vec::new(),
            value: Value::default(),
            has_members: false,
            ready: String::new(),
        }
    }

    /// Reads on until the call ends; how much was read and what ended it.
    pub(super) fn push(&mut self, bytes: &[u8], format: &ToolCallFormat) -> (usize, Option<End>) {
        let mut num_read = 0;
        while num_read < bytes.len() {
            if matches!(self.part, Part::Value) && self.held.is_empty() {
                num_read += self.read_plain(&bytes[num_read..]);
            }
            let Some(&byte) = bytes.get(num_read) else {
                break;
            };
            num_read += 1;
            if let Some(end) = self.read(byte, format) {
                return (num_read, Some(end));
            }
        }
        (num_read, None)
    }

    /// A token that is spelled like this came; in a value that is text, whatever was held.
    pub(super) fn quote(&mut self, spelling: &str) {
        if matches!(self.part, Part::Value) {
            let held = std::mem::take(&mut self.held);
            self.append(&held);
            self.value.skip_newline = false;
            self.append(spelling.as_bytes());
        }
    }

    /// The call is over, if by a token or by the answer's end. `cut`: it had more to say.
    pub(super) fn finish(&mut self, cut: bool) {
        if matches!(self.part, Part::Value) {
            let tag = self.held.strip_prefix(b"\n").unwrap_or(&self.held);
            let closed = [END_PARAMETER, END_FUNCTION]
                .iter()
                .any(|end| tag.starts_with(end));
            if tag.is_empty() || closed || cut {
                let certain = !cut || !self.held.is_empty();
                self.end_value(cut, certain);
            } else {
                let held = std::mem::take(&mut self.held);
                self.append(&held);
                self.end_value(false, true);
            }
        }
        self.held.clear();
        self.end();
    }

    /// What became certain of the arguments or the input.
    pub(super) fn take(&mut self) -> String {
        std::mem::take(&mut self.ready)
    }

    /// Bytes read that may still belong to what follows the call.
    pub(super) fn num_held(&self) -> usize {
        self.held.len()
    }

    /// After the end: bytes behind it.
    pub(super) fn into_unread(self) -> Vec<u8> {
        self.held
    }

    fn read(&mut self, byte: u8, format: &ToolCallFormat) -> Option<End> {
        match &mut self.part {
            Part::Body => return self.body(byte, format),
            Part::Name(name) => {
                if byte == b'>' {
                    let name = String::from_utf8_lossy(name).trim().to_owned();
                    self.begin_value(name, format);
                } else if matches!(byte, b'\n' | b'<') || name.len() == MAX_NAME {
                    self.part = Part::Body;
                    return self.body(byte, format);
                } else {
                    name.push(byte);
                }
            }
            Part::Value => {
                self.held.push(byte);
                return self.judge(format);
            }
        }
        None
    }

    /// Between parameters anything but tags is noise.
    fn body(&mut self, byte: u8, format: &ToolCallFormat) -> Option<End> {
        if self.held.is_empty() && byte != b'<' {
            return None;
        }
        self.held.push(byte);
        let tags = [
            (Some(PARAMETER), Tag::Parameter),
            (Some(END_FUNCTION), Tag::End(End::Function)),
            (Some(FUNCTION), Tag::End(End::NextFunction)),
            (format.spelled_open(), Tag::End(End::Open)),
            (format.spelled_close(), Tag::End(End::Close)),
        ];
        match find(&self.held, tags) {
            Found::Prefix => None,
            Found::Nothing => {
                self.held.clear();
                if byte == b'<' {
                    self.held.push(byte);
                }
                None
            }
            Found::Tag(Tag::Parameter) => {
                self.held.clear();
                self.part = Part::Name(Vec::new());
                None
            }
            Found::Tag(Tag::End(end)) => {
                self.held.clear();
                self.end();
                Some(end)
            }
        }
    }

    /// Bytes at the start that cannot be or precede a tag.
    fn read_plain(&mut self, bytes: &[u8]) -> usize {
        let mut start = 0;
        if self.value.skip_newline {
            self.value.skip_newline = false;
            start = usize::from(bytes.first() == Some(&b'\n'));
        }
        let plain = bytes[start..]
            .iter()
            .position(|byte| matches!(byte, b'\n' | b'<'));
        let end = plain.map_or(bytes.len(), |len| start + len);
        self.append(&bytes[start..end]);
        end
    }

    /// Decides what of `held` can be decided.
    fn judge(&mut self, format: &ToolCallFormat) -> Option<End> {
        while !self.held.is_empty() {
            match self.verdict(format) {
                Verdict::Wait => return None,
                Verdict::Value(len) => {
                    let rest = self.held.split_off(len);
                    let value = std::mem::replace(&mut self.held, rest);
                    self.append(&value);
                }
                Verdict::End(len) => {
                    let rest = self.held.split_off(len);
                    self.held.clear();
                    self.end_value(false, true);
                    return self.reread(&rest, format);
                }
            }
        }
        None
    }

    /// Reads bytes that were held: at most one tag, which may end the call.
    fn reread(&mut self, bytes: &[u8], format: &ToolCallFormat) -> Option<End> {
        for (i, &byte) in bytes.iter().enumerate() {
            if let Some(end) = self.read(byte, format) {
                self.held = bytes[i + 1..].to_vec();
                return Some(end);
            }
        }
        None
    }

    fn verdict(&self, format: &ToolCallFormat) -> Verdict {
        let held = &*self.held;
        let newline = usize::from(held[0] == b'\n');
        let tag = &held[newline..];
        if newline == 0 && tag[0] != b'<' {
            let plain = tag.iter().position(|byte| matches!(byte, b'\n' | b'<'));
            return Verdict::Value(plain.unwrap_or(tag.len()));
        }
        if tag.is_empty() {
            return Verdict::Wait;
        }
        // The newline, or else the `<`, belongs to the value.
        let value = Verdict::Value(1);
        let spelled = [format.spelled_open(), format.spelled_close()];
        let spelled = spelled.into_iter().flatten();
        if let Some(behind) = tag.strip_prefix(END_PARAMETER) {
            let next = behind.trim_ascii_start();
            let tags = [PARAMETER, END_FUNCTION, FUNCTION]
                .into_iter()
                .chain(spelled);
            return match find(next, tags.map(|tag| (Some(tag), ()))) {
                _ if next.is_empty() && behind.len() < MAX_BLANKS => Verdict::Wait,
                Found::Prefix if !next.is_empty() => Verdict::Wait,
                Found::Tag(()) | Found::Prefix => Verdict::End(held.len() - next.len()),
                Found::Nothing => value,
            };
        }
        if let Some(behind) = tag.strip_prefix(END_FUNCTION) {
            let next = behind.trim_ascii_start();
            let function = Some(FUNCTION).filter(|_| newline == 1);
            let tags = function.into_iter().chain(spelled);
            return match find(next, tags.map(|tag| (Some(tag), ()))) {
                Found::Tag(()) => Verdict::End(newline),
                _ if next.is_empty() && behind.len() < MAX_BLANKS => Verdict::Wait,
                Found::Prefix if !next.is_empty() => Verdict::Wait,
                _ => value,
            };
        }
        if let Some(name) = tag.strip_prefix(PARAMETER) {
            return match name.iter().position(|b| matches!(b, b'>' | b'<' | b'\n')) {
                None if name.len() <= MAX_NAME => Verdict::Wait,
                Some(end) if name[end] == b'>' => {
                    let name = String::from_utf8_lossy(&name[..end]);
                    if self.is_next(name.trim(), newline == 1, format) {
                        Verdict::End(newline)
                    } else {
                        value
                    }
                }
                _ => value,
            };
        }
        let closes = format.spelled_close().filter(|_| newline == 1);
        let tags = [END_PARAMETER, END_FUNCTION, PARAMETER]
            .into_iter()
            .chain(closes);
        match find(tag, tags.map(|tag| (Some(tag), ()))) {
            Found::Tag(()) => Verdict::End(newline),
            Found::Prefix => Verdict::Wait,
            Found::Nothing => value,
        }
    }

    /// Whether a parameter inside a value is the next one, rather than a quotation.
    fn is_next(&self, name: &str, line_start: bool, format: &ToolCallFormat) -> bool {
        if self.custom || name.is_empty() || self.seen.iter().any(|seen| seen == name) {
            return false;
        }
        let declared = format.tool(&self.name).and_then(|tool| match &tool.input {
            ToolInput::Function { parameters } => parameters.get("properties")?.as_object(),
            ToolInput::Custom(_) => None,
        });
        declared.map_or(line_start, |declared| declared.contains_key(name))
    }

    fn begin_value(&mut self, name: String, format: &ToolCallFormat) {
        self.part = Part::Value;
        self.value = Value {
            kind: self.kind_of(&name, format),
            skip_newline: true,
            ..Value::default()
        };
        self.seen.push(name);
    }

    fn kind_of(&self, name: &str, format: &ToolCallFormat) -> Kind {
        if self.custom {
            return if self.seen.is_empty() {
                Kind::Input
            } else {
                Kind::Ignored
            };
        }
        if name.is_empty() || self.seen.iter().any(|seen| seen == name) {
            return Kind::Ignored;
        }
        let types = match format.tool(&self.name).map(|tool| &tool.input) {
            Some(ToolInput::Function { parameters }) => ValueTypes::of_parameter(parameters, name),
            _ => ValueTypes::default(),
        };
        if types.is_string() {
            Kind::Text
        } else if types.is_nullable_string() {
            Kind::TextOrNull
        } else {
            Kind::Typed(types)
        }
    }

    /// More of the value.
    fn append(&mut self, bytes: &[u8]) {
        if bytes.is_empty() {
            return;
        }
        let mut text = String::new();
        self.value.utf8.push(bytes, &mut text);
        self.append_text(&text);
    }

    fn append_text(&mut self, text: &str) {
        match self.value.kind {
            Kind::Ignored => {}
            Kind::Input => self.ready.push_str(text),
            Kind::Text => self.stream(text),
            Kind::Typed(_) => self.value.text.push_str(text),
            Kind::TextOrNull => {
                self.value.text.push_str(text);
                let may_be = |null: &str| null.starts_with(&self.value.text);
                if !may_be("null") && !may_be("None") {
                    self.value.kind = Kind::Text;
                    let text = std::mem::take(&mut self.value.text);
                    self.stream(&text);
                }
            }
        }
    }

    /// More of a string.
    fn stream(&mut self, text: &str) {
        if text.is_empty() {
            return;
        }
        if !std::mem::replace(&mut self.value.started, true) {
            self.write_key();
            self.ready.push('"');
        }
        let json = json_string(text);
        self.ready.push_str(&json[1..json.len() - 1]);
    }

    /// The value is over. `certain`: all of it was there.
    fn end_value(&mut self, cut: bool, certain: bool) {
        let mut text = String::new();
        self.value.utf8.finish(&mut text);
        self.append_text(&text);
        self.part = Part::Body;
        let value = std::mem::take(&mut self.value);
        match value.kind {
            Kind::Ignored | Kind::Input => {}
            Kind::Text if value.started => self.ready.push('"'),
            Kind::Text | Kind::TextOrNull | Kind::Typed(_) if !certain => {}
            Kind::Text => self.write_member("\"\""),
            Kind::TextOrNull if matches!(&*value.text, "null" | "None") => {
                self.write_member("null");
            }
            Kind::TextOrNull => self.write_member(&json_string(&value.text)),
            Kind::Typed(types) => match types.convert(&value.text) {
                Some(json) => self.write_member(&json),
                None if cut => {}
                None => self.write_member(&json_string(&value.text)),
            },
        }
    }

    fn write_member(&mut self, json: &str) {
        self.write_key();
        self.ready.push_str(json);
    }

    fn write_key(&mut self) {
        let separator = if self.has_members { ',' } else { '{' };
        self.has_members = true;
        self.ready.push(separator);
        let name = self
            .seen
            .last()
            .expect("its name was read before its value");
        self.ready.push_str(&json_string(name));
        self.ready.push(':');
    }

    fn end(&mut self) {
        if !self.custom {
            self.ready
                .push_str(if self.has_members { "}" } else { "{}" });
        }
    }
}

fn json_string(text: &str) -> String {
    serde_json::to_string(text).expect("a string is JSON")
}
