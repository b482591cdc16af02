//! Which tokens are thoughts and which are the answer.
//!
//! Where the tokenizer has `</think>` as one token, its id decides, so that text which merely
//! spells it cannot confuse; where it has not, the spelling decides.

use crate::text::{StopMatch, StopMatcher, StopStrings, Tokenizer, Utf8Stream};

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
            Close::Token(_) => {
                let text = trim_newline(&mut self.skip_newline, bytes);
                if text.is_empty() && !bytes.is_empty() {
                    return Placement::Marker;
                }
                self.text.push(text);
            }
            Close::Spelled(matcher) => {
                let before = self.text.num_bytes();
                let found = matcher.push(bytes);
                self.text.hold(bytes);
                if let Some(StopMatch { start, .. }) = found {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::text::samples;

    /// Runs `text`, with `[t]` for `<think>`, `[/t]` for its end and `[c]` for a call as tokens and
    /// everything else letter by letter; returns thoughts, answer and their numbers of tokens.
    fn split(tokenizer: &Tokenizer, thinking: bool, text: &str) -> (String, String, u32) {
        let mut splitter = ReasoningSplitter::new(tokenizer, thinking, true);
        let (mut reasoning, mut content) = (String::new(), Vec::new());
        let spelled = text
            .replace("[t]", "<think>")
            .replace("[/t]", "</think>")
            .replace("[c]", "<tool_call>");
        let ids = if tokenizer.added().is_empty() {
            tokenizer.encode(&spelled, false).unwrap()
        } else {
            tokenizer.encode_special(&spelled, false).unwrap()
        };
        for id in ids {
            let bytes = tokenizer.bytes(None, id);
            if let Placement::Content(bytes) = splitter.push(id, &bytes) {
                content.extend_from_slice(bytes);
            }
            let taken = splitter.take();
            assert!(
                taken.is_empty() || content.is_empty(),
                "thoughts come first"
            );
            reasoning.push_str(&taken);
        }
        splitter.finish();
        reasoning.push_str(&splitter.take());
        let content = String::from_utf8(content).unwrap();
        (reasoning, content, splitter.num_tokens())
    }

    #[test]
    fn splits_at_the_marker() {
        let check = |text: &str, thinking, reasoning: &str, content: &str| {
            for tokenizer in [samples::byte_level(), samples::byte_level_bare()] {
                let (thought, answer, _) = split(&tokenizer, thinking, text);
                assert_eq!(
                    (thought.as_str(), answer.as_str()),
                    (reasoning, content),
                    "{text}"
                );
            }
        };
        check("why\n[/t]\nso", true, "why", "so");
        check("why[/t]so", true, "why", "so");
        check("a \n b \n\n[/t]\n\nso\n", true, "a \n b", "\nso\n");
        check("never closed \n", true, "never closed", "");
        check("[/t]", true, "", "");
        check("é[/t]é", true, "é", "é");
        check("plain", false, "", "plain");
        check("\nplain", false, "", "\nplain");
        check("a < b </thin[/t]c", true, "a < b </thin", "c");
    }

    #[test]
    fn token_ids_are_not_fooled_by_spelling() {
        let tokenizer = samples::byte_level();
        let mut splitter = ReasoningSplitter::new(&tokenizer, true, true);
        for id in tokenizer.encode("say </think> aloud", false).unwrap() {
            let bytes = tokenizer.bytes(None, id);
            assert_eq!(splitter.push(id, &bytes), Placement::Reasoning);
        }
        splitter.finish();
        assert_eq!(splitter.take(), "say </think> aloud");
    }

    #[test]
    fn markers_the_model_adds() {
        let tokenizer = samples::byte_level();
        let check = |text: &str, thinking, expect: (&str, &str, u32)| {
            let (reasoning, content, num) = split(&tokenizer, thinking, text);
            assert_eq!(
                (reasoning.as_str(), content.as_str(), num),
                expect,
                "{text}"
            );
        };
        // An opening one at the start is swallowed, or begins the thought.
        check("[t]\nab[/t]c", true, ("ab", "c", 2));
        check("[t]ab[/t]c", false, ("ab", "c", 2));
        check("ab[t]", false, ("", "ab", 0));
        // A second end is dropped.
        check("ab[/t]c[/t]d", true, ("ab", "cd", 2));
        // A call ends the thought.
        check("ab[c]x", true, ("ab", "x", 2));
    }

    #[test]
    fn counts_no_markers() {
        let (_, _, num) = split(&samples::byte_level(), true, "abc[/t]de");
        assert_eq!(num, 3);
    }
}
