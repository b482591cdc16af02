//! The inside of a block of calls in Nano v2's format: a list of `{"name", "arguments"}`.

use serde_json::Value;

use super::ToolCallFormat;
use super::json::{JsonStream, Progress};
use crate::chat::tools::ToolInput;

/// A block of calls, from behind its opening tag.
#[derive(Debug)]
pub(super) struct List {
    at: At,
    /// It is one call without the brackets of a list.
    single: bool,
    member: Member,
    value: JsonStream,
    /// The value so far, where it cannot be passed on yet.
    text: String,
    call: Option<Call>,
    news: Vec<News>,
}

/// What a block says.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum News {
    /// The name of a call.
    Start(String),
    /// More of its arguments or input.
    Arguments(String),
}

/// What a byte was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Step {
    /// Part of the block.
    More,
    /// The end of its list.
    End,
    /// No such list.
    Bad,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum At {
    Start,
    /// Before a call or the end.
    Item,
    AfterItem,
    /// Before the name of a member or the end.
    Key,
    KeyText,
    Colon,
    Value,
    AfterValue,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Member {
    Name,
    Arguments,
    Other,
}

/// The call being read.
#[derive(Debug, Default)]
struct Call {
    name: Option<String>,
    custom: bool,
    /// Arguments that came before the name, whole.
    early: Option<String>,
    has_arguments: bool,
    /// They are passed on as they come.
    flowing: bool,
}

impl List {
    pub(super) fn new() -> Self {
        Self {
            at: At::Start,
            single: false,
            member: Member::Other,
            value: JsonStream::new(),
            text: String::new(),
            call: None,
            news: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, byte: u8, format: &ToolCallFormat) -> Step {
        match (self.at, byte) {
            (At::KeyText | At::Value, _) => return self.value(byte, format),
            _ if byte.is_ascii_whitespace() => {}
            (At::Start, b'[') | (At::AfterItem, b',') => self.at = At::Item,
            (At::Start | At::Item, b'{') => {
                self.single = self.at == At::Start;
                self.call = Some(Call::default());
                self.at = At::Key;
            }
            (At::Item | At::AfterItem, b']') => return Step::End,
            (At::Key, b'"') => {
                self.begin_value(At::KeyText);
                return self.value(byte, format);
            }
            (At::Colon, b':') => self.begin_value(At::Value),
            (At::AfterValue, b',') => self.at = At::Key,
            (At::Key | At::AfterValue, b'}') => {
                if !self.end_call() {
                    return Step::Bad;
                }
                if self.single {
                    return Step::End;
                }
                self.at = At::AfterItem;
            }
            _ => return Step::Bad,
        }
        Step::More
    }

    /// A token that is spelled like this came; in a string it is text.
    pub(super) fn quote(&mut self, spelling: &str) {
        if self.at == At::Value {
            self.value.quote(spelling);
        }
    }

    /// The block is over. `cut`: it had more to say.
    pub(super) fn finish(&mut self, cut: bool) {
        if self.at == At::Value && self.member == Member::Arguments {
            self.value.finish(cut);
            self.pass_on();
            self.end_value();
        }
        self.end_call();
        self.at = At::AfterItem;
    }

    /// What is new; leaves nothing.
    pub(super) fn take(&mut self) -> Vec<News> {
        std::mem::take(&mut self.news)
    }

    fn begin_value(&mut self, at: At) {
        self.at = at;
        self.value = JsonStream::new();
        self.text.clear();
    }

    fn value(&mut self, byte: u8, format: &ToolCallFormat) -> Step {
        let progress = self.value.push(byte);
        self.pass_on();
        match progress {
            Progress::More => return Step::More,
            Progress::Bad => return Step::Bad,
            Progress::Done | Progress::DoneBefore => {}
        }
        if self.at == At::KeyText {
            self.member = match &*self.text {
                "\"name\"" => Member::Name,
                "\"arguments\"" | "\"parameters\"" => Member::Arguments,
                _ => Member::Other,
            };
            self.at = At::Colon;
            return Step::More;
        }
        self.at = At::AfterValue;
        if self.member == Member::Name {
            self.begin_call(format);
        } else {
            self.end_value();
        }
        if progress == Progress::DoneBefore {
            return self.push(byte, format);
        }
        Step::More
    }

    /// Arguments flow once the name is known; all else is kept.
    fn pass_on(&mut self) {
        let text = self.value.take();
        if text.is_empty() {
            return;
        }
        let flows = self.text.is_empty() && self.flows(&text);
        match self.news.last_mut() {
            Some(News::Arguments(all)) if flows => all.push_str(&text),
            _ if flows => self.news.push(News::Arguments(text)),
            _ => self.text.push_str(&text),
        }
    }

    fn flows(&mut self, text: &str) -> bool {
        let Some(call) = &mut self.call else {
            return false;
        };
        if self.at != At::Value || self.member != Member::Arguments || call.custom {
            return false;
        }
        // An object, of which this is the beginning, or which already flows.
        let begins = call.name.is_some() && !call.has_arguments && text.starts_with('{');
        if begins {
            call.has_arguments = true;
            call.flowing = true;
        }
        call.flowing
    }

    fn begin_call(&mut self, format: &ToolCallFormat) {
        let name = serde_json::from_str::<String>(&self.text).unwrap_or_default();
        let call = self.call.as_mut().expect("members are a call's");
        if name.is_empty() || call.name.is_some() {
            return;
        }
        let tool = format.tool(&name);
        call.custom = tool.is_some_and(|tool| matches!(tool.input, ToolInput::Custom(_)));
        call.name = Some(name.clone());
        self.news.push(News::Start(name));
        if let Some(early) = call.early.take() {
            let arguments = whole(&early, call.custom);
            self.news.push(News::Arguments(arguments));
        }
    }

    /// A value that did not flow is whole.
    fn end_value(&mut self) {
        let call = self.call.as_mut().expect("members are a call's");
        call.flowing = false;
        if self.member != Member::Arguments || call.has_arguments || self.text.is_empty() {
            return;
        }
        call.has_arguments = true;
        if call.name.is_some() {
            let arguments = whole(&self.text, call.custom);
            self.news.push(News::Arguments(arguments));
        } else {
            call.early = Some(self.text.clone());
        }
    }

    /// False if it has no name.
    fn end_call(&mut self) -> bool {
        let Some(call) = self.call.take() else {
            return true;
        };
        if call.name.is_some() && !call.has_arguments && !call.custom {
            self.news.push(News::Arguments("{}".to_owned()));
        }
        call.name.is_some()
    }
}

/// Arguments that came as one: an object, or a string that holds one. Of a custom tool's the input.
fn whole(json: &str, custom: bool) -> String {
    let value = serde_json::from_str::<Value>(json).unwrap_or_default();
    if custom {
        return match &value {
            Value::String(text) => text.clone(),
            Value::Object(members) if members.is_empty() => String::new(),
            value => {
                let input = value["input"].as_str();
                input.map_or_else(|| json.to_owned(), str::to_owned)
            }
        };
    }
    match &value {
        Value::Null => "{}".to_owned(),
        Value::String(text) if text.trim().is_empty() => "{}".to_owned(),
        Value::String(text) if text.trim_start().starts_with('{') => closed(text),
        _ => json.to_owned(),
    }
}

/// As much of an object as is well-formed.
fn closed(text: &str) -> String {
    let mut stream = JsonStream::new();
    let _end = text
        .bytes()
        .find(|byte| stream.push(*byte) != Progress::More);
    stream.finish(true);
    stream.take()
}
