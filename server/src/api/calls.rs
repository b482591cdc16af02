//! The calls among a choice's tokens, and which tokens are left for the answer.

use std::collections::VecDeque;
use std::sync::Arc;

use super::choice::{CallDelta, CallStart, Entry};
use super::params::unique_id;
use crate::chat::{ToolCallEvent, ToolCallFormat, ToolCallParser};

/// Reads calls. A token goes on to the answer once all of its bytes are judged, so that its text
/// and its log-probability stay together.
pub struct CallReader {
    parser: ToolCallParser,
    /// Tokens that are not wholly judged.
    waiting: VecDeque<Waiting>,
    events: VecDeque<ToolCallEvent>,
    num_started: usize,
    /// Whether the last one takes text.
    custom: bool,
}

/// A token, or the part of it, that is text of the answer.
pub struct AnswerToken {
    /// Its text.
    pub text: Vec<u8>,
    /// Its log-probabilities, if asked for.
    pub entry: Option<Entry>,
    /// How many tokens were sampled with it.
    pub num_tokens: u64,
}

struct Waiting {
    bytes: Vec<u8>,
    num_judged: usize,
    /// Whether some of it is text, if only structure.
    is_text: bool,
    token: AnswerToken,
}

impl CallReader {
    /// At the start of an answer.
    pub fn new(format: Arc<ToolCallFormat>) -> Self {
        Self {
            parser: ToolCallParser::new(format),
            waiting: VecDeque::new(),
            events: VecDeque::new(),
            num_started: 0,
            custom: false,
        }
    }

    /// Takes the next token, the `num_tokens`-th.
    pub fn push(&mut self, id: u32, bytes: &[u8], entry: Option<Entry>, num_tokens: u64) {
        self.waiting.push_back(Waiting {
            bytes: bytes.to_vec(),
            num_judged: 0,
            is_text: false,
            token: AnswerToken {
                text: Vec::new(),
                entry,
                num_tokens,
            },
        });
        self.parser.push(id, bytes);
        self.events.extend(self.parser.take());
    }

    /// The choice is over; `cut`: by a limit.
    pub fn finish(&mut self, cut: bool) {
        self.parser.finish(cut);
        self.events.extend(self.parser.take());
    }

    /// What waits is not wanted any more.
    pub fn abandon(&mut self) {
        self.events.clear();
        self.waiting.clear();
        self.parser.finish(true);
        self.parser.take();
    }

    /// The next token of the answer; news of calls on the way to it are appended to `calls`.
    pub fn next_token(&mut self, calls: &mut Vec<CallDelta>) -> Option<AnswerToken> {
        while let Some(event) = self.events.front_mut() {
            let (num, is_text) = match event {
                ToolCallEvent::Text(num) => (num, true),
                ToolCallEvent::Markup(num) => (num, false),
                ToolCallEvent::Start { name, custom } => {
                    calls.push(CallDelta {
                        index: self.num_started,
                        start: Some(CallStart {
                            id: unique_id("call_"),
                            name: std::mem::take(name),
                        }),
                        custom: *custom,
                        arguments: String::new(),
                    });
                    self.num_started += 1;
                    self.custom = *custom;
                    self.events.pop_front();
                    continue;
                }
                ToolCallEvent::Arguments(more) => {
                    append(calls, self.num_started - 1, self.custom, more);
                    self.events.pop_front();
                    continue;
                }
            };
            let token = self.waiting.front_mut();
            let token = token.expect("symbols are judged after they came");
            *num -= token.judge(*num, is_text);
            if *num == 0 {
                self.events.pop_front();
            }
            if token.is_judged() {
                let token = self.waiting.pop_front().expect("it was just there");
                if token.is_text {
                    return Some(token.token);
                }
            }
        }
        None
    }

    /// No further call is allowed, and the last one is complete.
    pub fn is_over(&self) -> bool {
        self.parser.is_over()
    }

    /// Calls that were begun.
    pub fn num_calls(&self) -> usize {
        self.num_started
    }
}

impl Waiting {
    /// A token without text counts as one symbol.
    fn num_symbols(&self) -> usize {
        self.bytes.len().max(1)
    }

    fn is_judged(&self) -> bool {
        self.num_judged == self.num_symbols()
    }

    /// Judges up to `num` of its symbols; how many there were.
    fn judge(&mut self, num: usize, is_text: bool) -> usize {
        let num = num.min(self.num_symbols() - self.num_judged);
        if is_text {
            self.is_text = true;
            let end = self.bytes.len().min(self.num_judged + num);
            self.token
                .text
                .extend(&self.bytes[self.num_judged.min(end)..end]);
        }
        self.num_judged += num;
        num
    }
}

/// Adds to the arguments of a call, in the delta that has it already if there is one.
fn append(calls: &mut Vec<CallDelta>, index: usize, custom: bool, more: &str) {
    match calls.last_mut() {
        Some(last) if last.index == index => last.arguments.push_str(more),
        _ => calls.push(CallDelta {
            index,
            start: None,
            custom,
            arguments: more.to_owned(),
        }),
    }
}

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod properties;
