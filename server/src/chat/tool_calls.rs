//! Calls of tools in what the model says.
//!
//! Own code, after weighing `tool-parser` 1.10.0 and `dynamo-parsers` 11.0.1. Both read text rather
//! than token ids, so that a quoted tag is a call, and trim strings; one parses a stream by another
//! road than the whole and knows no log-probabilities, the other keeps a call until it is closed and
//! unescapes HTML in it. They bring 175 and 343 crates, a parser of Python among them.
//!
//! Input is a row of *symbols*: the bytes of text tokens, and tokens without text, which count as
//! one symbol each. Every symbol is judged once, in order: text of the answer or markup. What could
//! become a tag waits until it cannot, or does.
//!
//! - A tag that the tokenizer has as a token is that token; its spelling is text. Other tags are
//!   spelled, and count where they are not quoted: outside fences, and a `<function=` that no
//!   `<tool_call>` precedes only at a line's start with the name of an offered tool.
//! - Inside a call a closing tag is one only if a tag or the end follows, so that values may quote
//!   them.
//! - A name that was not offered is a call nevertheless: clients answer it with an error that the
//!   model can learn from, while markup in the answer helps nobody.
//! - Blanks around calls are markup; blanks around text are text. Text after a call is text.
//! - Output that was cut leaves a call with what was certain: half a string, never half a number.

mod format;
mod json;
mod listed;
mod tags;
mod values;
mod xml;

use std::sync::Arc;

use super::tools::ToolInput;
use tags::{Found, Prose, find};

pub use format::{Dialect, ToolCallFormat};
pub use values::ValueTypes;

const FUNCTION: &[u8] = b"<function=";
/// Longer names are no names.
const MAX_NAME: usize = 256;

/// What is known of the next symbols or of a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ToolCallEvent {
    /// This many symbols are text of the answer.
    Text(usize),
    /// This many symbols are not.
    Markup(usize),
    /// A call begins.
    Start {
        /// The tool.
        name: String,
        /// It takes text instead of JSON.
        custom: bool,
    },
    /// More of the call's arguments, as JSON, or of a custom tool's input.
    Arguments(String),
}

/// Follows one choice's answer.
pub struct ToolCallParser {
    format: Arc<ToolCallFormat>,
    state: State,
    /// Symbols that came and are not judged.
    num_undecided: usize,
    /// The last bytes of these, if they may be a tag.
    held: Vec<u8>,
    prose: Prose,
    /// Only blanks came since the start or the last call.
    blank: bool,
    /// A call ended and its block is not closed.
    in_block: bool,
    num_calls: usize,
    over: bool,
    events: Vec<ToolCallEvent>,
}

#[derive(Debug)]
enum State {
    /// In the answer.
    Outside,
    /// After an opening tag: a function or a list must follow.
    Opened,
    /// In the name after `<function=`.
    Header {
        name: Vec<u8>,
        /// An opening tag came before: it need not be an offered one.
        any: bool,
    },
    Inside(xml::Call),
    List {
        list: listed::List,
        /// It has a call.
        started: bool,
        /// It is no JSON from here on.
        broken: bool,
    },
}

/// A tag in the answer.
#[derive(Clone, Copy)]
enum Tag {
    Open,
    Close,
    Function,
}

impl ToolCallParser {
    /// At the start of an answer.
    pub fn new(format: Arc<ToolCallFormat>) -> Self {
        Self {
            format,
            state: State::Outside,
            num_undecided: 0,
            held: Vec::new(),
            prose: Prose::default(),
            blank: true,
            in_block: false,
            num_calls: 0,
            over: false,
            events: Vec::new(),
        }
    }

    /// Reads on: a token of the answer and its bytes. Without bytes it counts as one symbol.
    pub fn push(&mut self, id: u32, bytes: &[u8]) {
        if bytes.is_empty() {
            self.num_undecided += 1;
            self.control(id);
            return;
        }
        let mut rest = bytes;
        while let Some((&byte, after)) = rest.split_first() {
            if let State::Inside(_) = self.state {
                rest = self.inside(rest);
            } else {
                self.feed(byte);
                rest = after;
            }
        }
    }

    /// The answer is over. `cut`: it had more to say. Everything is judged then.
    pub fn finish(&mut self, cut: bool) {
        match std::mem::replace(&mut self.state, State::Outside) {
            State::Outside if self.blank && self.held.is_empty() && self.num_calls > 0 => {
                self.accept_markup();
            }
            State::Outside if self.in_block && cut => self.accept_markup(),
            State::Opened if self.held.is_empty() => self.accept_markup(),
            State::Opened | State::Header { .. } if cut => self.accept_markup(),
            State::Outside | State::Opened | State::Header { .. } => self.accept_text(0),
            State::Inside(mut call) => {
                call.finish(cut);
                self.take_arguments(&mut call);
                self.accept_markup();
            }
            State::List { list, started, .. } => self.end_list(list, started, cut),
        }
        self.held.clear();
    }

    /// What is new; leaves nothing.
    pub fn take(&mut self) -> Vec<ToolCallEvent> {
        std::mem::take(&mut self.events)
    }

    /// No further call is allowed, and the last one is complete.
    pub fn is_over(&self) -> bool {
        self.over
    }

    /// Calls so far.
    pub fn num_calls(&self) -> usize {
        self.num_calls
    }

    fn feed(&mut self, byte: u8) {
        self.num_undecided += 1;
        match &mut self.state {
            State::Outside => self.outside(byte),
            State::Opened => self.opened(byte),
            State::Header { .. } => self.header(byte),
            State::Inside(_) => {
                // Counted again there.
                self.num_undecided -= 1;
                self.inside(&[byte]);
            }
            State::List { .. } => self.list(byte),
        }
    }

    fn outside(&mut self, byte: u8) {
        if self.held.is_empty() && byte != b'<' {
            self.prose.push(byte);
            if !byte.is_ascii_whitespace() || !self.blank {
                self.accept_text(0);
            }
            return;
        }
        self.held.push(byte);
        match self.find_tag() {
            Found::Tag(tag) => {
                self.held.clear();
                match tag {
                    Tag::Open => self.state = State::Opened,
                    Tag::Close => self.close_block(),
                    Tag::Function => {
                        let any = self.in_block;
                        self.state = State::Header {
                            name: Vec::new(),
                            any,
                        };
                    }
                }
            }
            Found::Prefix => {}
            Found::Nothing => self.refuse_held(byte),
        }
    }

    /// What is held is no tag; its last byte may begin one.
    fn refuse_held(&mut self, last: u8) {
        self.held.pop();
        if self.held.is_empty() {
            // A `<` where no tag counts.
            self.prose.push(last);
            return self.accept_text(0);
        }
        for byte in std::mem::take(&mut self.held) {
            self.prose.push(byte);
        }
        self.accept_text(1);
        self.outside(last);
    }

    fn find_tag(&self) -> Found<Tag> {
        let format = &*self.format;
        let open = format.spelled_open().filter(|_| self.prose.may_open());
        let close = format.spelled_close().filter(|_| self.in_block);
        let function = format.dialect == Dialect::Tagged;
        let function = function && (self.in_block || self.prose.may_call());
        let tags = [
            (open, Tag::Open),
            (close, Tag::Close),
            (Some(FUNCTION).filter(|_| function), Tag::Function),
        ];
        find(&self.held, tags)
    }

    fn opened(&mut self, byte: u8) {
        if self.held.is_empty() && byte.is_ascii_whitespace() {
            return;
        }
        if self.format.dialect == Dialect::Listed {
            if !matches!(byte, b'[' | b'{') {
                return self.refuse(byte);
            }
            self.state = State::List {
                list: listed::List::new(),
                started: false,
                broken: false,
            };
            return self.list(byte);
        }
        self.held.push(byte);
        match find(&self.held, [(Some(FUNCTION), Tag::Function)]) {
            Found::Tag(_) => {
                self.held.clear();
                self.state = State::Header {
                    name: Vec::new(),
                    any: true,
                };
            }
            Found::Prefix => {}
            Found::Nothing => self.refuse(byte),
        }
    }

    fn header(&mut self, byte: u8) {
        let State::Header { name, any } = &mut self.state else {
            unreachable!("only called in this state");
        };
        if byte != b'>' {
            if matches!(byte, b'\n' | b'<') || name.len() == MAX_NAME {
                return self.refuse(byte);
            }
            return name.push(byte);
        }
        let name = String::from_utf8_lossy(name).trim().to_owned();
        if name.is_empty() || !(*any || self.format.tool(&name).is_some()) {
            return self.refuse(byte);
        }
        self.accept_markup();
        self.begin(name);
    }

    /// What looked like a call is text up to its last byte, which is read anew.
    fn refuse(&mut self, last: u8) {
        self.state = State::Outside;
        self.held.clear();
        // Whatever it was, it was not blank.
        self.prose.push(b'<');
        self.accept_text(1);
        self.outside(last);
    }

    fn begin(&mut self, name: String) {
        let tool = self.format.tool(&name);
        let custom = tool.is_some_and(|tool| matches!(tool.input, ToolInput::Custom(_)));
        self.state = State::Inside(xml::Call::new(&name, custom));
        self.announce(name);
    }

    /// A call begins.
    fn announce(&mut self, name: String) {
        let tool = self.format.tool(&name);
        let custom = tool.is_some_and(|tool| matches!(tool.input, ToolInput::Custom(_)));
        if self.num_calls == self.format.max_calls {
            self.over = true;
        }
        if !self.over {
            self.num_calls += 1;
            self.events.push(ToolCallEvent::Start { name, custom });
        }
    }

    /// Reads on inside a call; returns what is behind it.
    fn inside<'a>(&mut self, bytes: &'a [u8]) -> &'a [u8] {
        let State::Inside(call) = &mut self.state else {
            unreachable!("only called in this state");
        };
        let (num_read, end) = call.push(bytes, &self.format);
        self.num_undecided += num_read;
        let State::Inside(mut call) = std::mem::replace(&mut self.state, State::Outside) else {
            unreachable!("it was a moment ago");
        };
        self.take_arguments(&mut call);
        let rest = &bytes[num_read..];
        let Some(end) = end else {
            self.judge(self.num_undecided - call.num_held(), ToolCallEvent::Markup);
            self.state = State::Inside(call);
            return rest;
        };
        let unread = call.into_unread();
        self.judge(self.num_undecided - unread.len(), ToolCallEvent::Markup);
        self.num_undecided = 0;
        self.blank = true;
        self.in_block = true;
        self.prose.end_line();
        match end {
            xml::End::Function => {}
            xml::End::NextFunction => {
                self.state = State::Header {
                    name: Vec::new(),
                    any: true,
                };
            }
            xml::End::Open => self.state = State::Opened,
            xml::End::Close => self.close_block(),
        }
        for byte in unread {
            self.feed(byte);
        }
        rest
    }

    fn list(&mut self, byte: u8) {
        let State::List {
            list,
            started,
            broken,
        } = &mut self.state
        else {
            unreachable!("only called in this state");
        };
        if *broken {
            return self.skip_to_close(byte);
        }
        let step = list.push(byte, &self.format);
        let news = list.take();
        *started |= !news.is_empty();
        match step {
            listed::Step::More if !*started => return,
            listed::Step::Bad if !*started => return self.refuse(byte),
            listed::Step::More | listed::Step::End => {}
            listed::Step::Bad => *broken = true,
        }
        self.accept_markup();
        self.tell(news);
        match step {
            listed::Step::More => {}
            listed::Step::End => {
                self.state = State::Outside;
                self.blank = true;
                self.in_block = true;
                self.prose.end_line();
            }
            listed::Step::Bad => {
                if let State::List { list, .. } = &mut self.state {
                    list.finish(true);
                    let news = list.take();
                    self.tell(news);
                }
                self.skip_to_close(byte);
            }
        }
    }

    /// Nothing is understood until a closing tag.
    fn skip_to_close(&mut self, byte: u8) {
        self.accept_markup();
        self.held.push(byte);
        match find(&self.held, [(self.format.spelled_close(), ())]) {
            Found::Prefix => {}
            Found::Nothing => {
                self.held.clear();
                if byte == b'<' {
                    self.held.push(byte);
                }
            }
            Found::Tag(()) => {
                self.held.clear();
                self.state = State::Outside;
                self.close_block();
            }
        }
    }

    /// The answer ended, or a token ended the list.
    fn end_list(&mut self, mut list: listed::List, started: bool, cut: bool) {
        list.finish(cut);
        let news = list.take();
        self.tell(news);
        if cut || started {
            self.accept_markup();
        } else {
            self.accept_text(0);
        }
    }

    fn tell(&mut self, news: Vec<listed::News>) {
        for news in news {
            match news {
                listed::News::Start(name) => self.announce(name),
                listed::News::Arguments(more) if !self.over => {
                    self.events.push(ToolCallEvent::Arguments(more));
                }
                listed::News::Arguments(_) => {}
            }
        }
    }

    fn close_block(&mut self) {
        self.accept_markup();
        self.in_block = false;
        self.blank = true;
        self.prose.end_line();
        self.over |= self.num_calls == self.format.max_calls;
    }

    /// A token without text came; it is counted.
    fn control(&mut self, id: u32) {
        let (open, close) = (self.format.open == Some(id), self.format.close == Some(id));
        match std::mem::replace(&mut self.state, State::Outside) {
            State::Outside => {
                if !std::mem::take(&mut self.held).is_empty() {
                    self.prose.push(b'<');
                    self.accept_text(1);
                }
                if open {
                    self.state = State::Opened;
                } else if close && self.in_block {
                    self.close_block();
                } else if !self.blank {
                    self.accept_text(0);
                }
            }
            // Nothing between the tags.
            State::Opened if close && self.held.is_empty() => {
                self.accept_markup();
                self.in_block = false;
            }
            State::Opened if self.held.is_empty() => self.state = State::Opened,
            State::Opened | State::Header { .. } => {
                self.held.clear();
                self.prose.push(b'<');
                self.accept_text(usize::from(open));
                if open {
                    self.state = State::Opened;
                }
            }
            State::Inside(mut call) if open || close => {
                call.finish(false);
                self.take_arguments(&mut call);
                self.in_block = true;
                if close {
                    self.close_block();
                } else {
                    self.accept_markup();
                    self.state = State::Opened;
                }
            }
            State::List { list, started, .. } if open || close => {
                self.held.clear();
                self.end_list(list, started, false);
                if close {
                    self.close_block();
                } else {
                    self.state = State::Opened;
                }
            }
            State::List {
                mut list,
                started,
                broken,
            } => {
                list.quote(self.format.spelling(id).unwrap_or_default());
                if started {
                    self.accept_markup();
                }
                self.state = State::List {
                    list,
                    started,
                    broken,
                };
            }
            // In a value it is not structure but quoted.
            State::Inside(mut call) => {
                call.quote(self.format.spelling(id).unwrap_or_default());
                self.take_arguments(&mut call);
                self.judge(self.num_undecided - call.num_held(), ToolCallEvent::Markup);
                self.state = State::Inside(call);
            }
        }
    }

    fn take_arguments(&mut self, call: &mut xml::Call) {
        let arguments = call.take();
        if !arguments.is_empty() && !self.over {
            self.events.push(ToolCallEvent::Arguments(arguments));
        }
    }

    /// All but the last `except` symbols are text.
    fn accept_text(&mut self, except: usize) {
        self.judge(self.num_undecided - except, ToolCallEvent::Text);
        self.blank = false;
        self.in_block = false;
    }

    fn accept_markup(&mut self) {
        self.judge(self.num_undecided, ToolCallEvent::Markup);
    }

    fn judge(&mut self, num: usize, verdict: fn(usize) -> ToolCallEvent) {
        if num > 0 {
            self.events.push(verdict(num));
            self.num_undecided -= num;
        }
    }
}
