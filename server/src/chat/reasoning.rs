//! Which tokens are thoughts and which are the answer.
//!
//! Where the tokenizer has `</think>` as one token, its id decides, so that text which merely
//! spells it cannot confuse; where it has not, the spelling decides.

use crate::text::{StopMatcher, StopStrings, Tokenizer, Utf8Stream};

const OPEN: &str = "<think>";
const CLOSE: &str = "</think>";
const CALL: &str = "<tool_call>";

/// Follows one choice's tokens and keeps the text of its thoughts.
#[derive(Debug)]
pub struct ReasoningSplitter {
    state: State,
    open: Option<u32>,
    close: Close,
    /// A tool call ends a thought by itself.
    call: Option<u32>,
    /// The newline that belongs to the marker before it.
    skip_newline: bool,
    text: Thought,
    num_tokens: u32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// Nothing came yet; an opening marker would begin a thought.
    Start,
    Reasoning,
    Content,
}

#[derive(Debug)]
enum Close {
    Token(u32),
    Spelled(StopMatcher),
}

/// Where a token belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement<'a> {
    /// To the thoughts; [`ReasoningSplitter::take`] has what is certain of its text.
    Reasoning,
    /// Between them and the answer: no text of either.
    Marker,
    /// To the answer, with the part of its bytes that is.
    Content(&'a [u8]),
}

impl ReasoningSplitter {
    /// `thinking`: the prompt ends inside a thought. `may_think`: the model may open one itself.
    pub fn new(tokenizer: &Tokenizer, thinking: bool, may_think: bool) -> Self {
        let state = match (thinking, may_think) {
            (true, _) => State::Reasoning,
            (false, true) => State::Start,
            (false, false) => State::Content,
        };
        let close = tokenizer.added_id(CLOSE).map_or_else(
            || Close::Spelled(StopMatcher::new(StopStrings::new(&[CLOSE]))),
            Close::Token,
        );
        Self {
            state,
            open: tokenizer.added_id(OPEN),
            close,
            call: tokenizer.added_id(CALL),
            skip_newline: false,
            text: Thought::default(),
            num_tokens: 0,
        }
    }

    /// Places the next token, whose bytes are `bytes`.
    pub fn push<'a>(&mut self, id: u32, bytes: &'a [u8]) -> Placement<'a> {
        match self.state {
            State::Start if Some(id) == self.open => {
                self.state = State::Reasoning;
                self.skip_newline = true;
                Placement::Marker
            }
            State::Start => {
                self.state = State::Content;
                Placement::Content(bytes)
            }
            State::Reasoning => self.reason(id, bytes),
            State::Content => self.answer(bytes),
        }
    }

    /// The text of thoughts that became certain. White space before the closing marker belongs to
    /// the marker, so it waits.
    pub fn take(&mut self) -> String {
        std::mem::take(&mut self.text.ready)
    }

    /// The choice is over. [`take`](Self::take) has the rest.
    pub fn finish(&mut self) {
        self.text.finish();
    }

    /// Tokens of thoughts, markers not counted.
    pub fn num_tokens(&self) -> u32 {
        self.num_tokens
    }

    fn reason<'a>(&mut self, id: u32, bytes: &'a [u8]) -> Placement<'a> {
        if Some(id) == self.open && self.num_tokens == 0 {
            self.skip_newline = true;
            return Placement::Marker;
        }
        if Some(id) == self.call {
            self.close();
            self.skip_newline = false;
            return Placement::Content(bytes);
        }
        match &mut self.close {
            Close::Token(close) if *close == id => {
                self.close();
                return Placement::Marker;
            }
            Close::Token(_) => self.text.push(trim_newline(&mut self.skip_newline, bytes)),
            Close::Spelled(matcher) => {
                let before = self.text.num_bytes();
                let found = matcher.push(bytes);
                self.text.hold(bytes);
                if let Some(start) = found {
                    self.text.release(start);
                    self.text.held.clear();
                    self.close();
                    // The marker ends with this token's bytes or inside them.
                    let content = self.answer(&bytes[start + CLOSE.len() - before..]);
                    return match content {
                        Placement::Content(&[]) => Placement::Marker,
                        placement => placement,
                    };
                }
                self.text.release(matcher.safe_end());
            }
        }
        self.num_tokens += 1;
        Placement::Reasoning
    }

    fn close(&mut self) {
        self.text.finish();
        self.state = State::Content;
        self.skip_newline = true;
    }

    fn answer<'a>(&mut self, bytes: &'a [u8]) -> Placement<'a> {
        let content = trim_newline(&mut self.skip_newline, bytes);
        if content.is_empty() && !bytes.is_empty() {
            return Placement::Marker;
        }
        Placement::Content(content)
    }
}

/// Drops the newline that belongs to the marker before, once.
fn trim_newline<'a>(pending: &mut bool, bytes: &'a [u8]) -> &'a [u8] {
    if bytes.is_empty() || !std::mem::take(pending) {
        return bytes;
    }
    bytes.strip_prefix(b"\n").unwrap_or(bytes)
}

/// The text of a thought as it grows.
#[derive(Debug, Default)]
struct Thought {
    /// Bytes that may turn out to be the closing marker.
    held: Vec<u8>,
    num_released: usize,
    utf8: Utf8Stream,
    /// White space that may turn out to be the last.
    spaces: String,
    ready: String,
}

impl Thought {
    fn num_bytes(&self) -> usize {
        self.num_released + self.held.len()
    }

    fn push(&mut self, bytes: &[u8]) {
        self.num_released += bytes.len();
        let mut text = String::new();
        self.utf8.push(bytes, &mut text);
        self.append(&text);
    }

    fn hold(&mut self, bytes: &[u8]) {
        self.held.extend_from_slice(bytes);
    }

    /// Bytes before `end` are no marker.
    fn release(&mut self, end: usize) {
        let held = std::mem::take(&mut self.held);
        let (free, rest) = held.split_at(end - self.num_released);
        self.push(free);
        self.held = rest.to_vec();
    }

    fn finish(&mut self) {
        let held = std::mem::take(&mut self.held);
        self.push(&held);
        let mut text = String::new();
        self.utf8.finish(&mut text);
        self.append(&text);
        self.spaces.clear();
    }

    fn append(&mut self, text: &str) {
        let solid = text.trim_end().len();
        if solid > 0 {
            self.ready.push_str(&self.spaces);
            self.ready.push_str(&text[..solid]);
            self.spaces.clear();
        }
        self.spaces.push_str(&text[solid..]);
    }
}
