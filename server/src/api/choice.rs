//! One choice: its tokens in, what its client sees out.
//!
//! Streaming and not streaming read the same [`Delta`]; a stream takes it after every step, an
//! answer at the end. Nothing here depends on how tokens are grouped into steps.

mod pipe;

use std::borrow::Cow;
use std::sync::Arc;

use scheduler::TokenLogprobs;

use self::pipe::TextPipe;
use super::calls::CallReader;
use crate::chat::{Placement, ReasoningSplitter, ToolCallFormat};
use crate::text::{Detokenizer, StopMatch, StopMatcher, StopStrings, Tokenizer};

/// What became certain since it was last taken.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Delta {
    /// Thoughts.
    pub reasoning: String,
    /// The answer, whole characters only.
    pub content: String,
    /// One per token of the answer, if asked for.
    pub entries: Vec<Entry>,
    /// Calls of tools, in order; a call may be spread over many deltas.
    pub calls: Vec<CallDelta>,
    /// Sampled tokens, end tokens and thoughts included.
    pub token_ids: Vec<u32>,
    /// Why it ended, once.
    pub finish: Option<Finish>,
    /// The stop string that ended it.
    pub stop_string: Option<String>,
}

/// News of one call.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct CallDelta {
    /// Which call of the choice, from 0.
    pub index: usize,
    /// Set when the call begins.
    pub start: Option<CallStart>,
    /// The tool takes text instead of JSON.
    pub custom: bool,
    /// More of its arguments (JSON text, which the deltas of a call add up to) or of a custom
    /// tool's input.
    pub arguments: String,
}

/// What is known of a call when it begins.
#[derive(Clone, Debug, PartialEq)]
pub struct CallStart {
    /// `call_…`, unique.
    pub id: String,
    /// The tool.
    pub name: String,
}

/// Why a choice ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Finish {
    /// An end token or a stop string.
    Stop,
    /// `max_tokens` or the window.
    Length,
    /// The model waits for the results of its calls.
    ToolCalls,
}

/// A token of the answer with its log-probabilities.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// What it stands for, as far as it is part of the answer.
    pub token: TokenText,
    /// `None` for the first token of an echoed prompt, which nothing predicts.
    pub logprob: Option<f32>,
    /// Most likely tokens, descending.
    pub top: Vec<(TokenText, f32)>,
    /// Where it begins in the answer, in code points.
    pub text_offset: usize,
}

/// A token as clients see it.
#[derive(Clone, Debug, PartialEq)]
pub enum TokenText {
    /// Text or a part of a character.
    Bytes(Vec<u8>),
    /// Structure, by name.
    Control(String),
}

/// What one choice is made with.
#[derive(Clone)]
pub struct ChoiceOptions {
    /// `None`: only ids are known.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// Strings that end the answer. They are looked for in its text only: not in thoughts, which
    /// the contract excludes, nor in calls, whose arguments a stop string would break.
    pub stop: StopStrings,
    /// Stop strings count from this many tokens on.
    pub min_tokens: u32,
    /// Whether entries are wanted.
    pub logprobs: bool,
    /// Whether a blank answer is replaced by the thought.
    pub force_nonempty_content: bool,
    /// What calls look like; `None`: all is text.
    pub calls: Option<Arc<ToolCallFormat>>,
}

/// The state of one choice.
pub struct Choice {
    options: ChoiceOptions,
    detokenizer: Detokenizer,
    /// Chat only.
    splitter: Option<ReasoningSplitter>,
    /// With tools only.
    calls: Option<CallReader>,
    matcher: StopMatcher,
    pipe: TextPipe,
    /// Bytes of an echoed prompt, in which no stop string is looked for.
    num_echoed: usize,
    /// The thought so far, if it may have to be the answer.
    thought: String,
    blank: bool,
    num_tokens: u64,
    ended: Option<Finish>,
    delta: Delta,
}

impl Choice {
    /// Before its first token. `prompt` is what it continues.
    pub fn new(
        options: ChoiceOptions,
        prompt: &[u32],
        splitter: Option<ReasoningSplitter>,
    ) -> Self {
        let tokenizer = options.tokenizer.as_deref();
        Self {
            detokenizer: tokenizer.map_or_else(Detokenizer::default, |tokenizer| {
                Detokenizer::after(tokenizer, prompt)
            }),
            matcher: StopMatcher::new(options.stop.clone()),
            splitter,
            calls: options.calls.clone().map(CallReader::new),
            pipe: TextPipe::default(),
            num_echoed: 0,
            thought: String::new(),
            blank: true,
            num_tokens: 0,
            ended: None,
            delta: Delta::default(),
            options,
        }
    }

    /// Puts the prompt before the answer. `logprobs` are those of tokens 1 and on, if asked for.
    pub fn echo(&mut self, prompt: &[u32], logprobs: &[TokenLogprobs]) {
        assert_eq!(self.num_tokens, 0, "the prompt comes first");
        self.detokenizer = Detokenizer::default();
        for (i, &id) in prompt.iter().enumerate() {
            let known = i.checked_sub(1).and_then(|i| logprobs.get(i));
            let entry = self.options.logprobs.then(|| self.entry(id, known));
            let tokenizer = self.options.tokenizer.clone();
            let bytes = next_bytes(tokenizer.as_deref(), &mut self.detokenizer, id);
            self.pipe.push(&bytes, entry);
            self.num_echoed += bytes.len();
        }
        self.pipe.release(self.num_echoed, &mut self.delta);
    }

    /// Takes one sampled token. `ends` if it is a stop id, which is no text. True when a stop
    /// string is complete: the choice is over and further tokens are not its.
    pub fn push(&mut self, id: u32, logprobs: Option<&TokenLogprobs>, ends: bool) -> bool {
        assert!(!self.is_finished(), "nothing follows the end");
        self.num_tokens += 1;
        self.delta.token_ids.push(id);
        if ends {
            return false;
        }
        let entry = match logprobs {
            Some(logprobs) if self.options.logprobs => Some(self.entry(id, Some(logprobs))),
            _ => None,
        };
        let tokenizer = self.options.tokenizer.clone();
        let bytes = next_bytes(tokenizer.as_deref(), &mut self.detokenizer, id);
        let content = match &mut self.splitter {
            None => &*bytes,
            Some(splitter) => {
                let placement = splitter.push(id, &bytes);
                take_thought(splitter, &mut self.delta, &mut self.thought, &self.options);
                match placement {
                    Placement::Reasoning | Placement::Marker => return false,
                    Placement::Content(content) => content,
                }
            }
        };
        let Some(calls) = &mut self.calls else {
            return self.answer(content, entry, self.num_tokens);
        };
        calls.push(id, content, entry, self.num_tokens);
        if self.take_calls() {
            return true;
        }
        let over = self.calls.as_ref().is_some_and(CallReader::is_over);
        if over && self.num_tokens >= u64::from(self.options.min_tokens) {
            self.finish(Finish::Stop);
            return true;
        }
        false
    }

    /// The choice is over: what was held back is released.
    pub fn finish(&mut self, mut finish: Finish) {
        assert!(!self.is_finished(), "a choice ends once");
        if let Some(splitter) = &mut self.splitter {
            splitter.finish();
            take_thought(splitter, &mut self.delta, &mut self.thought, &self.options);
        }
        if let Some(calls) = &mut self.calls {
            calls.finish(finish == Finish::Length);
            if self.take_calls() {
                return;
            }
        }
        self.pipe.finish(&mut self.delta);
        self.note_blank();
        let num_calls = self.calls.as_ref().map_or(0, CallReader::num_calls);
        if self.options.force_nonempty_content && self.blank && num_calls == 0 {
            self.delta.content.push_str(&self.thought);
        }
        if num_calls > 0 && finish == Finish::Stop {
            finish = Finish::ToolCalls;
        }
        self.ended = Some(finish);
        self.delta.finish = Some(finish);
    }

    /// What is new; leaves nothing.
    pub fn take(&mut self) -> Delta {
        self.note_blank();
        std::mem::take(&mut self.delta)
    }

    /// Whether [`finish`](Self::finish) was called.
    pub fn is_finished(&self) -> bool {
        self.ended.is_some()
    }

    /// Why it ended, if it has.
    pub fn ended(&self) -> Option<Finish> {
        self.ended
    }

    /// Sampled tokens up to its end.
    pub fn num_tokens(&self) -> u64 {
        self.num_tokens
    }

    /// Of these, thoughts.
    pub fn num_reasoning_tokens(&self) -> u64 {
        self.splitter
            .as_ref()
            .map_or(0, |splitter| splitter.num_tokens().into())
    }

    /// Takes a token's part of the answer, sampled as the `num_tokens`-th. True when it completes
    /// a stop string, which ends the choice.
    fn answer(&mut self, content: &[u8], entry: Option<Entry>, num_tokens: u64) -> bool {
        self.pipe
            .push(content, entry.map(|entry| entry.clipped(content)));
        if self.options.stop.is_empty() {
            self.pipe.release_all(&mut self.delta);
            return false;
        }
        if num_tokens < u64::from(self.options.min_tokens) {
            self.matcher.skip(content);
        } else if let Some(StopMatch { start, index }) = self.matcher.push(content) {
            self.pipe.cut(self.num_echoed + start);
            self.delta.stop_string = Some(self.options.stop.get(index).to_owned());
            // What came behind it never did.
            if let Some(calls) = &mut self.calls {
                calls.abandon();
            }
            self.finish(Finish::Stop);
            return true;
        }
        let safe = self.num_echoed + self.matcher.safe_end();
        self.pipe.release(safe, &mut self.delta);
        false
    }

    /// Takes what the calls' reader is sure of. True when a stop string ended the choice.
    fn take_calls(&mut self) -> bool {
        while let Some(calls) = &mut self.calls
            && let Some(token) = calls.next_token(&mut self.delta.calls)
        {
            if self.answer(&token.text, token.entry, token.num_tokens) {
                return true;
            }
        }
        false
    }

    fn note_blank(&mut self) {
        self.blank &= self.delta.content.trim().is_empty();
    }

    fn entry(&self, id: u32, logprobs: Option<&TokenLogprobs>) -> Entry {
        let top = logprobs.map_or(&[][..], |logprobs| &logprobs.top);
        Entry {
            token: self.token_text(id),
            logprob: logprobs.map(|logprobs| logprobs.logprob),
            top: top
                .iter()
                .map(|(id, logprob)| (self.token_text(*id), *logprob))
                .collect(),
            text_offset: 0,
        }
    }

    /// How a token would read if it came next.
    fn token_text(&self, id: u32) -> TokenText {
        token_text(self.options.tokenizer.as_deref(), &self.detokenizer, id)
    }
}

/// The bytes of the next token.
fn next_bytes<'a>(
    tokenizer: Option<&'a Tokenizer>,
    detokenizer: &mut Detokenizer,
    id: u32,
) -> Cow<'a, [u8]> {
    match tokenizer {
        Some(tokenizer) => detokenizer.push(tokenizer, id),
        None => Cow::Borrowed(&[]),
    }
}

/// How a token would read after those that `detokenizer` has seen.
pub fn token_text(tokenizer: Option<&Tokenizer>, detokenizer: &Detokenizer, id: u32) -> TokenText {
    match tokenizer {
        None => TokenText::Control(format!("token_id:{id}")),
        Some(tokenizer) if tokenizer.is_control(id) => {
            TokenText::Control(tokenizer.name(id).into_owned())
        }
        Some(tokenizer) => TokenText::Bytes(detokenizer.peek(tokenizer, id).into_owned()),
    }
}

fn take_thought(
    splitter: &mut ReasoningSplitter,
    delta: &mut Delta,
    thought: &mut String,
    options: &ChoiceOptions,
) {
    let text = splitter.take();
    if options.force_nonempty_content {
        thought.push_str(&text);
    }
    if delta.reasoning.is_empty() {
        delta.reasoning = text;
    } else {
        delta.reasoning.push_str(&text);
    }
}

impl Entry {
    /// With the part of the token that is answer: a marker's newline is not.
    fn clipped(mut self, content: &[u8]) -> Self {
        if let TokenText::Bytes(bytes) = &mut self.token
            && bytes.len() != content.len()
        {
            *bytes = content.to_vec();
        }
        self
    }

    fn len(&self) -> usize {
        match &self.token {
            TokenText::Bytes(bytes) => bytes.len(),
            TokenText::Control(_) => 0,
        }
    }
}

impl TokenText {
    /// Text with U+FFFD for what is none, or the name.
    pub fn lossy(&self) -> Cow<'_, str> {
        match self {
            Self::Bytes(bytes) => String::from_utf8_lossy(bytes),
            Self::Control(name) => Cow::Borrowed(name),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::text::samples;

    fn options(tokenizer: &Arc<Tokenizer>, stop: &[&str]) -> ChoiceOptions {
        ChoiceOptions {
            tokenizer: Some(Arc::clone(tokenizer)),
            stop: StopStrings::new(stop),
            min_tokens: 0,
            logprobs: true,
            force_nonempty_content: false,
            calls: None,
        }
    }

    fn scored(id: u32) -> TokenLogprobs {
        TokenLogprobs {
            token: id,
            logprob: -1.0,
            top: vec![(id, -1.0), (id + 1, -2.0)],
        }
    }

    /// Runs `ids` and takes what is new after those tokens that `takes` names.
    fn run(choice: &mut Choice, ids: &[u32], takes: &[bool]) -> Vec<Delta> {
        let mut deltas = Vec::new();
        for (i, &id) in ids.iter().enumerate() {
            if choice.push(id, Some(&scored(id)), false) {
                break;
            }
            if takes.get(i) == Some(&true) {
                deltas.push(choice.take());
            }
        }
        if !choice.is_finished() {
            choice.finish(Finish::Length);
        }
        deltas.push(choice.take());
        deltas
    }

    fn joined(deltas: &[Delta]) -> Delta {
        let mut whole = Delta::default();
        for delta in deltas {
            whole.reasoning.push_str(&delta.reasoning);
            whole.content.push_str(&delta.content);
            whole.entries.extend_from_slice(&delta.entries);
            whole.token_ids.extend_from_slice(&delta.token_ids);
            whole.finish = whole.finish.or(delta.finish);
        }
        whole
    }

    fn whole(choice: &mut Choice, ids: &[u32]) -> Delta {
        joined(&run(choice, ids, &[]))
    }

    /// Bytes of all entries, decoded: what the content must be.
    fn text_of(entries: &[Entry]) -> String {
        let bytes: Vec<u8> = entries
            .iter()
            .flat_map(|entry| match &entry.token {
                TokenText::Bytes(bytes) => bytes.as_slice(),
                TokenText::Control(_) => &[],
            })
            .copied()
            .collect();
        String::from_utf8_lossy(&bytes).into_owned()
    }

    fn check_entries(delta: &Delta) {
        assert_eq!(text_of(&delta.entries), delta.content);
        let mut previous = 0;
        for entry in &delta.entries {
            assert!(entry.text_offset >= previous);
            assert!(entry.text_offset <= delta.content.chars().count());
            previous = entry.text_offset;
        }
    }

    #[test]
    fn stops_inside_a_token() {
        let tokenizer = Arc::new(samples::byte_level());
        let ids = tokenizer.encode("the hello world", false).unwrap();
        let mut choice = Choice::new(options(&tokenizer, &["llo w"]), &[], None);
        let delta = whole(&mut choice, &ids);
        assert_eq!(delta.content, "the he");
        assert_eq!(delta.finish, Some(Finish::Stop));
        assert!(choice.num_tokens() < ids.len() as u64);
        check_entries(&delta);
        let last = delta.entries.last().unwrap();
        assert_eq!(last.token, TokenText::Bytes(b"he".to_vec()));
    }

    #[test]
    fn an_end_token_is_counted_and_no_text() {
        let tokenizer = Arc::new(samples::byte_level());
        let mut choice = Choice::new(options(&tokenizer, &[]), &[], None);
        choice.push(301, Some(&scored(301)), false);
        choice.push(4, Some(&scored(4)), true);
        choice.finish(Finish::Stop);
        let delta = choice.take();
        assert_eq!((delta.content.as_str(), delta.entries.len()), ("ll", 1));
        assert_eq!((choice.num_tokens(), delta.token_ids), (2, vec![301, 4]));
    }

    #[test]
    fn control_tokens_are_entries_without_text() {
        let tokenizer = Arc::new(samples::byte_level());
        let mut choice = Choice::new(options(&tokenizer, &[]), &[], None);
        let delta = whole(&mut choice, &[301, 6, 301]);
        assert_eq!(delta.content, "llll");
        assert_eq!(
            delta.entries[1].token,
            TokenText::Control("</think>".into())
        );
        assert_eq!(delta.entries[2].text_offset, 2);
    }

    #[test]
    fn a_character_cut_short_is_one_replacement() {
        let tokenizer = Arc::new(samples::byte_level());
        let ids = tokenizer.encode("a😀", false).unwrap();
        assert_eq!(ids.len(), 5);
        let mut choice = Choice::new(options(&tokenizer, &[]), &[], None);
        let delta = whole(&mut choice, &ids[..4]);
        assert_eq!(delta.content, "a\u{fffd}");
        check_entries(&delta);
        let offsets: Vec<usize> = delta.entries.iter().map(|e| e.text_offset).collect();
        assert_eq!(offsets, [0, 1, 1, 1]);
    }

    #[test]
    fn stop_strings_wait_for_min_tokens() {
        let tokenizer = Arc::new(samples::byte_level());
        let ids = tokenizer.encode("xyxyxy", false).unwrap();
        let mut late = options(&tokenizer, &["y"]);
        late.min_tokens = 4;
        let mut choice = Choice::new(late, &[], None);
        assert_eq!(whole(&mut choice, &ids).content, "xyx");
        assert_eq!(choice.num_tokens(), 4);
    }

    #[test]
    fn an_echo_is_searched_for_no_stop_string() {
        let tokenizer = Arc::new(samples::byte_level());
        let prompt = tokenizer.encode("hello é", false).unwrap();
        let ids = tokenizer.encode(" world é", false).unwrap();
        let mut choice = Choice::new(options(&tokenizer, &["é"]), &prompt, None);
        let scores: Vec<_> = prompt[1..].iter().map(|id| scored(*id)).collect();
        choice.echo(&prompt, &scores);
        let delta = whole(&mut choice, &ids);
        assert_eq!(delta.content, "hello é world ");
        assert_eq!(delta.entries[0].logprob, None);
        assert!(
            delta.entries[1..]
                .iter()
                .all(|entry| entry.logprob == Some(-1.0))
        );
        check_entries(&delta);
    }

    #[test]
    fn a_blank_answer_may_be_replaced_by_the_thought() {
        let tokenizer = Arc::new(samples::byte_level());
        for (answer, expect) in [(" ", " think"), ("ok", "ok")] {
            let mut forced = options(&tokenizer, &[]);
            forced.force_nonempty_content = true;
            let splitter = ReasoningSplitter::new(&tokenizer, true, true);
            let mut choice = Choice::new(forced, &[], Some(splitter));
            let text = format!("think</think>{answer}");
            let ids = tokenizer.encode_special(&text, false).unwrap();
            let takes = vec![true; ids.len()];
            let delta = joined(&run(&mut choice, &ids, &takes));
            assert_eq!(
                (delta.reasoning.as_str(), delta.content.as_str()),
                ("think", expect)
            );
        }
    }

    proptest! {
        #[test]
        fn grouping_changes_nothing(
            ids in prop::collection::vec(prop_oneof![16u32..272, 300u32..308, 3u32..8], 0..40),
            takes in prop::collection::vec(any::<bool>(), 40),
            stops in prop::collection::vec("[a-e \n]{1,3}", 0..3),
            thinking in any::<bool>(),
            echoed in 0usize..5,
        ) {
            let tokenizer = Arc::new(samples::byte_level());
            let stops: Vec<&str> = stops.iter().map(String::as_str).collect();
            let prompt = &ids[..echoed.min(ids.len())];
            let make = || {
                let splitter = thinking.then(|| ReasoningSplitter::new(&tokenizer, true, true));
                let mut choice = Choice::new(options(&tokenizer, &stops), prompt, splitter);
                if !thinking {
                    choice.echo(prompt, &prompt.iter().skip(1).map(|id| scored(*id)).collect::<Vec<_>>());
                }
                choice
            };
            let (mut one, mut many) = (make(), make());
            let answer = whole(&mut one, &ids);
            let deltas = run(&mut many, &ids, &takes);
            prop_assert_eq!(&joined(&deltas), &answer);
            prop_assert_eq!(one.num_tokens(), many.num_tokens());
            prop_assert_eq!(one.num_reasoning_tokens(), many.num_reasoning_tokens());
            check_entries(&answer);
            // All thoughts before any answer.
            let first_content = deltas.iter().position(|d| !d.content.is_empty());
            let last_thought = deltas.iter().rposition(|d| !d.reasoning.is_empty());
            if let (Some(content), Some(thought)) = (first_content, last_thought) {
                prop_assert!(thought <= content);
            }
        }
    }
}
