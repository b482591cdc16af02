//! `tokenizer.json`, whatever its model.
//!
//! Text becomes ids by the library's own steps, except that the caller decides which places are
//! added tokens: a user who spells `<|im_end|>` gets its letters. Ids become bytes rather than
//! text, because a token may hold part of a character.

use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;
use std::panic::catch_unwind;

use serde_json::Value;
use tokenizers::tokenizer::normalizer::Range as Slice;
use tokenizers::{
    DecoderWrapper, EncodeInput, Model as _, ModelWrapper, NormalizedString, Normalizer as _,
    NormalizerWrapper, OffsetType, PostProcessorWrapper, PreTokenizedString, PreTokenizer as _,
    PreTokenizerWrapper, Token, TokenizerImpl,
};

use super::segments::SegmentCache;

/// Markers of turns, thoughts and calls that some tokenizers do not flag as special: they are
/// never text either.
const MARKERS: [&str; 8] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<tool_response>",
    "</tool_response>",
    "<|im_start|>",
    "<|im_end|>",
];

type Inner = TokenizerImpl<
    ModelWrapper,
    NormalizerWrapper,
    PreTokenizerWrapper,
    PostProcessorWrapper,
    DecoderWrapper,
>;

/// Encodes and decodes.
pub struct Tokenizer {
    inner: Inner,
    /// The model without the added tokens, where it would find their spellings in plain text.
    plain_model: Option<ModelWrapper>,
    added: Vec<AddedToken>,
    /// By id.
    pieces: Vec<Piece>,
    /// What the ranges in `pieces` point into.
    bytes: Vec<u8>,
    /// Bytes of the longest token; 0 if a token may stand for more text than it is spelled with.
    max_bytes: usize,
    /// Where the ids of a text between two added tokens follow from that text alone.
    segments: Option<SegmentCache>,
    /// Tokens that begin a turn of a conversation.
    turn_starts: Vec<u32>,
}

/// A token that `tokenizer.json` adds to its model's vocabulary.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AddedToken {
    /// Its id.
    pub id: u32,
    /// How it is spelled.
    pub content: String,
    /// Swallows white space before it.
    strip_left: bool,
    /// Swallows white space after it.
    strip_right: bool,
}

/// What a token is when it becomes text.
#[derive(Clone, Debug)]
enum Piece {
    /// No such token.
    Unknown,
    /// Structure, not text; the range holds its name.
    Control(Range<u32>),
    /// These bytes, whatever stands around it.
    Bytes(Range<u32>),
    /// The decoder must see the token before it; the range holds its spelling.
    InContext(Range<u32>),
}

impl Piece {
    fn len(&self) -> usize {
        match self {
            Self::Unknown => 0,
            Self::Control(range) | Self::Bytes(range) | Self::InContext(range) => range.len(),
        }
    }
}

/// Text in which the places of added tokens are known.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Marked {
    /// The text with added tokens spelled out.
    pub text: String,
    /// Where they stand, in order and apart, and the index of each in [`Tokenizer::added`].
    pub added: Vec<(Range<usize>, usize)>,
}

/// Why a tokenizer is unusable or a text cannot be encoded.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct TokenizerError(pub String);

impl Tokenizer {
    /// Reads the bytes of `tokenizer.json`.
    pub fn from_bytes(json: &[u8]) -> Result<Self, TokenizerError> {
        let fail = |error: &dyn std::fmt::Display| TokenizerError(error.to_string());
        // Syntax comes first: see `parse`, and here the error has line and column.
        let file: Value = serde_json::from_slice(json).map_err(|error| fail(&error))?;
        let mut inner = parse(json)?;
        let plain_model = without_added(file)
            .map(serde_json::from_value)
            .transpose()
            .map_err(|error| fail(&error))?;
        // A prompt is neither cut nor filled up, whatever the file was saved with.
        inner.with_truncation(None).map_err(|error| fail(&error))?;
        inner.with_padding(None);
        let decoder = serde_json::to_value(inner.get_decoder()).map_err(|error| fail(&error))?;
        let mut tokenizer = Self {
            added: added_tokens(&inner),
            inner,
            plain_model,
            pieces: Vec::new(),
            bytes: Vec::new(),
            max_bytes: 0,
            segments: None,
            turn_starts: Vec::new(),
        };
        tokenizer.turn_starts = tokenizer.find_turn_starts();
        let decoder = DecoderKind::of(&decoder);
        tokenizer.fill_pieces(&decoder);
        let strips = |token: &AddedToken| token.strip_left || token.strip_right;
        if matches!(decoder, DecoderKind::ByteLevel)
            && tokenizer.inner.get_normalizer().is_none()
            && !tokenizer.added.iter().any(strips)
        {
            let lengths = tokenizer.pieces.iter().map(Piece::len);
            tokenizer.max_bytes = lengths.max().unwrap_or(0);
            // Without a normaliser the library takes the text between two added tokens by itself.
            tokenizer.segments = Some(SegmentCache::new());
        }
        Ok(tokenizer)
    }

    /// Encodes a text in which nothing is special. `add_special_tokens` lets the file's
    /// post-processor add what it adds, such as a first `<s>`.
    pub fn encode(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>, TokenizerError> {
        self.encode_places(text, &[], add_special_tokens)
    }

    /// Encodes a text in which every spelling of an added token is that token.
    pub fn encode_special(
        &self,
        text: &str,
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let encoding = self
            .inner
            .encode_fast(EncodeInput::from(text), add_special_tokens)
            .map_err(|error| TokenizerError(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    /// Encodes a rendered template: only its own added tokens are special, nothing is added.
    pub fn encode_marked(&self, marked: &Marked) -> Result<Vec<u32>, TokenizerError> {
        let Some(segments) = &self.segments else {
            return self.encode_places(&marked.text, &marked.added, false);
        };
        let mut ids = Vec::with_capacity(marked.text.len() / 4);
        let mut done = 0;
        let places = marked.added.iter().map(|(place, index)| {
            let before = std::mem::replace(&mut done, place.end)..place.start;
            (before, Some(self.added[*index].id))
        });
        let mut parts: Vec<_> = places.collect();
        parts.push((done..marked.text.len(), None));
        for (before, token) in parts {
            let text = &marked.text[before];
            if !text.is_empty() {
                let encode = || self.encode_places(text, &[], false);
                ids.extend_from_slice(&segments.ids(text, encode)?);
            }
            ids.extend(token);
        }
        Ok(ids)
    }

    /// Where turns begin in `ids`, the first token left out: where other prompts part from this one.
    pub fn turns(&self, ids: &[u32]) -> Vec<u32> {
        let starts = |(at, id): (usize, &u32)| {
            (at > 0 && self.turn_starts.contains(id)).then_some(at as u32)
        };
        ids.iter().enumerate().filter_map(starts).collect()
    }

    /// Bytes that `id` stands for after the text token `previous`. Empty for control tokens.
    pub fn bytes(&self, previous: Option<u32>, id: u32) -> Cow<'_, [u8]> {
        match self.piece(id) {
            Piece::Unknown | Piece::Control(_) => Cow::Borrowed(&[]),
            Piece::Bytes(range) => Cow::Borrowed(self.slice(range)),
            Piece::InContext(_) => Cow::Owned(self.decode_after(previous, id).into_bytes()),
        }
    }

    /// Whether `id` is structure rather than text: it gives no bytes, only a name.
    pub fn is_control(&self, id: u32) -> bool {
        matches!(self.piece(id), Piece::Unknown | Piece::Control(_))
    }

    /// As grammars see it. Where a token's bytes depend on the token before it, they are those in
    /// the midst of a text.
    pub fn piece_for_grammars(&self, id: u32) -> constraint::Piece {
        match self.piece(id) {
            Piece::Unknown => constraint::Piece::None,
            Piece::Control(_) => constraint::Piece::Control(self.name(id).into_owned()),
            Piece::Bytes(_) | Piece::InContext(_) => {
                constraint::Piece::Text(self.bytes(Some(id), id).into_owned())
            }
        }
    }

    /// What a control token is called.
    pub fn name(&self, id: u32) -> Cow<'_, str> {
        match self.piece(id) {
            Piece::Unknown => Cow::Owned(format!("<unknown_{id}>")),
            Piece::Control(range) | Piece::Bytes(range) | Piece::InContext(range) => {
                String::from_utf8_lossy(self.slice(range))
            }
        }
    }

    /// The text of `ids`, with control tokens spelled out.
    pub fn decode(&self, ids: &[u32]) -> String {
        let mut bytes = Vec::new();
        let mut previous = None;
        for &id in ids {
            if self.is_control(id) {
                bytes.extend_from_slice(self.name(id).as_bytes());
            } else {
                bytes.extend_from_slice(&self.bytes(previous, id));
                previous = Some(id);
            }
        }
        String::from_utf8_lossy(&bytes).into_owned()
    }

    /// How many tokens a text of `num_bytes` has at least; 0 where that cannot be told.
    pub fn min_tokens(&self, num_bytes: usize) -> usize {
        num_bytes.checked_div(self.max_bytes).unwrap_or(0)
    }

    /// Ids are below this.
    pub fn num_ids(&self) -> usize {
        self.pieces.len()
    }

    /// All added tokens.
    pub fn added(&self) -> &[AddedToken] {
        &self.added
    }

    /// The id of an added token by its spelling.
    pub fn added_id(&self, content: &str) -> Option<u32> {
        let token = self.added.iter().find(|token| token.content == content)?;
        Some(token.id)
    }

    /// Later families have a marker of their own; Nano v2 takes two reserved tokens.
    fn find_turn_starts(&self) -> Vec<u32> {
        let found = |names: &[&str]| {
            names
                .iter()
                .filter_map(|name| self.added_id(name))
                .collect()
        };
        let own: Vec<u32> = found(&["<|im_start|>"]);
        if own.is_empty() {
            return found(&["<SPECIAL_10>", "<SPECIAL_11>"]);
        }
        own
    }

    /// The library's own steps, with the added tokens cut out where the caller says.
    fn encode_places(
        &self,
        text: &str,
        places: &[(Range<usize>, usize)],
        add_special_tokens: bool,
    ) -> Result<Vec<u32>, TokenizerError> {
        let encode = || {
            let mut pieces = PreTokenizedString::from(text);
            if !places.is_empty() {
                pieces.split(|_, whole| Ok(self.cut(&whole, places)))?;
            }
            if let Some(normalizer) = self.inner.get_normalizer() {
                pieces.normalize(|text| normalizer.normalize(text))?;
            }
            if let Some(pre_tokenizer) = self.inner.get_pre_tokenizer() {
                pre_tokenizer.pre_tokenize(&mut pieces)?;
            }
            let model = self.plain_model.as_ref().unwrap_or(self.inner.get_model());
            model.tokenize_in_pretokenized(&mut pieces, None)?;
            let encoding = pieces.into_encoding(None, 0, OffsetType::None)?;
            self.inner.post_process(encoding, None, add_special_tokens)
        };
        let encoding = encode().map_err(|error| TokenizerError(error.to_string()))?;
        Ok(encoding.get_ids().to_vec())
    }

    fn cut(
        &self,
        whole: &NormalizedString,
        places: &[(Range<usize>, usize)],
    ) -> Vec<(NormalizedString, Option<Vec<Token>>)> {
        let text = whole.get();
        let slice = |from: usize, to: usize| {
            whole
                .slice(Slice::Normalized(from..to))
                .expect("places lie on character boundaries")
        };
        let mut cuts = Vec::with_capacity(2 * places.len() + 1);
        let mut done = 0;
        for (place, index) in places {
            let token = &self.added[*index];
            let (mut start, mut end) = (place.start, place.end);
            if token.strip_left {
                start = done + text[done..start].trim_end().len();
            }
            if token.strip_right {
                end = text.len() - text[end..].trim_start().len();
            }
            // The place before may have swallowed what stands here.
            let start = start.max(done);
            if done < start {
                cuts.push((slice(done, start), None));
            }
            if start < end {
                let spelled = Token::new(token.id, token.content.clone(), (0, end - start));
                cuts.push((slice(start, end), Some(vec![spelled])));
            }
            done = done.max(end);
        }
        if done < text.len() {
            cuts.push((slice(done, text.len()), None));
        }
        cuts
    }

    fn fill_pieces(&mut self, decoder: &DecoderKind) {
        let vocabulary = self.inner.get_vocab(true);
        let num_ids = vocabulary.values().max().map_or(0, |id| *id as usize + 1);
        self.pieces = vec![Piece::Unknown; num_ids];
        for (spelling, id) in vocabulary {
            let (bytes, in_context) = decoder.bytes(&spelling);
            let range = self.keep(&bytes);
            self.pieces[id as usize] = if in_context {
                Piece::InContext(range)
            } else {
                Piece::Bytes(range)
            };
        }
        // The model's vocabulary may hold them too; what they are added as counts.
        for (id, token) in self.inner.get_added_tokens_decoder() {
            let range = self.keep(token.content.as_bytes());
            let control = token.special || MARKERS.contains(&token.content.as_str());
            self.pieces[id as usize] = match decoder {
                _ if control => Piece::Control(range),
                DecoderKind::ByteLevel => Piece::Bytes(range),
                DecoderKind::Other { .. } => Piece::InContext(range),
            };
        }
    }

    fn keep(&mut self, bytes: &[u8]) -> Range<u32> {
        let start = self.bytes.len() as u32;
        self.bytes.extend_from_slice(bytes);
        start..self.bytes.len() as u32
    }

    fn slice(&self, range: &Range<u32>) -> &[u8] {
        &self.bytes[range.start as usize..range.end as usize]
    }

    fn piece(&self, id: u32) -> &Piece {
        self.pieces.get(id as usize).unwrap_or(&Piece::Unknown)
    }

    /// Decoders that join words look one token back, no further.
    fn decode_after(&self, previous: Option<u32>, id: u32) -> String {
        let decode = |ids: &[u32]| self.inner.decode(ids, false).unwrap_or_default();
        let Some(previous) = previous else {
            return decode(&[id]);
        };
        let (before, both) = (decode(&[previous]), decode(&[previous, id]));
        both.strip_prefix(&before)
            .map_or_else(|| decode(&[id]), str::to_owned)
    }
}

/// The library's parser panics on some of what it cannot read: on broken syntax inside a decoder,
/// on a normaliser's table that is none. That panic is an error like any other.
fn parse(json: &[u8]) -> Result<Inner, TokenizerError> {
    catch_unwind(|| serde_json::from_slice(json))
        .map_err(|_| TokenizerError("the tokenizers library cannot read it".into()))?
        .map_err(|error| TokenizerError(error.to_string()))
}

/// How spelled tokens become bytes.
enum DecoderKind {
    /// Each character of a token is a byte.
    ByteLevel,
    /// Anything else is asked token by token; with `byte_fallback`, `<0x41>` is that byte.
    Other { byte_fallback: bool },
}

impl DecoderKind {
    fn of(decoder: &Value) -> Self {
        let mut kinds = Vec::new();
        decoder_kinds(decoder, &mut kinds);
        if kinds.contains(&"ByteLevel") {
            return Self::ByteLevel;
        }
        Self::Other {
            byte_fallback: kinds.contains(&"ByteFallback"),
        }
    }

    /// The token's bytes, or its spelling and `true` if they depend on the token before.
    fn bytes<'a>(&self, spelling: &'a str) -> (Cow<'a, [u8]>, bool) {
        match self {
            Self::ByteLevel => {
                let bytes: Option<Vec<u8>> = spelling.chars().map(byte_of).collect();
                // A spelling outside the byte alphabet stands for itself.
                let bytes = bytes.map_or(Cow::Borrowed(spelling.as_bytes()), Cow::Owned);
                (bytes, false)
            }
            Self::Other { byte_fallback } => match fallback_byte(spelling) {
                Some(byte) if *byte_fallback => (Cow::Owned(vec![byte]), false),
                _ => (Cow::Borrowed(spelling.as_bytes()), true),
            },
        }
    }
}

fn decoder_kinds<'a>(decoder: &'a Value, kinds: &mut Vec<&'a str>) {
    kinds.extend(decoder["type"].as_str());
    for part in decoder["decoders"].as_array().into_iter().flatten() {
        decoder_kinds(part, kinds);
    }
}

/// `<0x41>` is 0x41.
fn fallback_byte(spelling: &str) -> Option<u8> {
    let digits = spelling.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2).then(|| u8::from_str_radix(digits, 16).ok())?
}

/// Inverse of the byte alphabet of GPT-2: printable Latin-1 stands for itself, the other 68 bytes
/// are the characters from U+0100 on, in order.
fn byte_of(character: char) -> Option<u8> {
    match character as u32 {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The file's model with the spellings of added tokens made unreachable, each id still its own.
/// `None` where they are unreachable anyway: byte pairs only make what merges make.
fn without_added(mut file: Value) -> Option<Value> {
    let added = file["added_tokens"].take();
    let added: HashSet<&str> = added
        .as_array()?
        .iter()
        .filter_map(|token| token["content"].as_str())
        .collect();
    let mut model = file["model"].take();
    if model["type"] == "BPE" && model["ignore_merges"] != true {
        return None;
    }
    let unknown = model["unk_token"].clone();
    let merges = model["merges"].as_array();
    let merged: HashSet<String> = merges.into_iter().flatten().map(merge_result).collect();
    match &mut model["vocab"] {
        Value::Object(vocab) => vocab.retain(|spelling, _| {
            unknown == spelling.as_str()
                || merged.contains(spelling)
                || !added.contains(spelling.as_str())
        }),
        Value::Array(pieces) => {
            for (id, piece) in pieces.iter_mut().enumerate() {
                if piece[0]
                    .as_str()
                    .is_some_and(|spelling| added.contains(spelling))
                {
                    // A noncharacter, then the id: no text is meant to hold this.
                    piece[0] = format!("\u{fdd0}{id}").into();
                }
            }
        }
        _ => return None,
    }
    Some(model)
}

/// `"a b"` and `["a", "b"]` make `ab`.
fn merge_result(merge: &Value) -> String {
    match merge {
        Value::String(pair) => pair.replacen(' ', "", 1),
        pair => [&pair[0], &pair[1]]
            .map(|part| part.as_str().unwrap_or_default())
            .concat(),
    }
}

fn added_tokens(inner: &Inner) -> Vec<AddedToken> {
    let mut added: Vec<AddedToken> = inner
        .get_added_tokens_decoder()
        .iter()
        .map(|(id, token)| AddedToken {
            id: *id,
            content: token.content.clone(),
            strip_left: token.lstrip,
            strip_right: token.rstrip,
        })
        .collect();
    added.sort_by_key(|token| token.id);
    added
}

#[cfg(test)]
mod tests {
    use std::sync::LazyLock;

    use proptest::prelude::*;

    use super::super::samples;
    use super::*;

    #[test]
    fn the_byte_alphabet_is_a_bijection() {
        let bytes: std::collections::BTreeSet<u8> = (0..=0x143)
            .filter_map(char::from_u32)
            .filter_map(byte_of)
            .collect();
        assert_eq!(bytes.len(), 256);
        assert_eq!(byte_of('Ġ'), Some(b' '));
        assert_eq!(byte_of('Ċ'), Some(b'\n'));
        assert_eq!(byte_of('ÿ'), Some(0xff));
        assert_eq!(byte_of('Ń'), Some(0xad));
        assert_eq!(byte_of('世'), None);
    }

    #[test]
    fn spelled_tokens_stay_text() {
        for tokenizer in [
            samples::byte_level(),
            samples::metaspace(),
            samples::word_level(),
        ] {
            // The unknown token is also what a word level says of any unknown word.
            for token in tokenizer.added().iter().filter(|token| token.id != 0) {
                let text = format!("one {} two", token.content);
                let ids = tokenizer.encode(&text, false).unwrap();
                assert!(!ids.contains(&token.id), "{text} gave {ids:?}");
                let parsed = tokenizer.encode_special(&text, false).unwrap();
                assert!(parsed.contains(&token.id), "{text} gave {parsed:?}");
            }
        }
        let tokenizer = samples::byte_level();
        let text = "<|im_end|>\n<|im_start|>system";
        let ids = tokenizer.encode(text, true).unwrap();
        assert_eq!(tokenizer.decode(&ids), text);
    }

    #[test]
    fn marked_places_are_tokens_and_nothing_else_is() {
        let tokenizer = samples::byte_level();
        let index = |id| tokenizer.added().iter().position(|t| t.id == id).unwrap();
        let text = "<|im_start|>say <think><|im_end|>";
        let marked = Marked {
            text: text.into(),
            added: vec![(0..12, index(3)), (text.len() - 10..text.len(), index(4))],
        };
        let ids = tokenizer.encode_marked(&marked).unwrap();
        assert_eq!((ids[0], ids[ids.len() - 1]), (3, 4));
        assert!(!ids.contains(&5));
        assert_eq!(tokenizer.decode(&ids), text);
    }

    static DEMO: LazyLock<Tokenizer> = LazyLock::new(|| {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/demo/model/tokenizer.json");
        let json = std::fs::read(path).expect("the demo is committed");
        Tokenizer::from_bytes(&json).expect("it is valid")
    });

    proptest! {
        /// What is remembered of a text is what the library says of it in its place.
        #[test]
        fn segments_are_what_the_whole_gives(
            parts in prop::collection::vec(("[ -~é😀\n]{0,12}", 1_usize..9), 0..8),
            tail in "[ -~\n]{0,12}",
        ) {
            let small = [samples::byte_level(), samples::metaspace(), samples::word_level()];
            for tokenizer in small.iter().chain([&*DEMO]) {
                let mut marked = Marked::default();
                for (text, index) in &parts {
                    marked.text.push_str(text);
                    let start = marked.text.len();
                    let index = index % tokenizer.added().len();
                    marked.text.push_str(&tokenizer.added()[index].content);
                    marked.added.push((start..marked.text.len(), index));
                }
                marked.text.push_str(&tail);
                let whole = tokenizer.encode_places(&marked.text, &marked.added, false).unwrap();
                for _ in 0..2 {
                    prop_assert_eq!(&tokenizer.encode_marked(&marked).unwrap(), &whole);
                }
            }
        }
    }

    #[test]
    fn a_segment_is_encoded_once() {
        let tokenizer = samples::byte_level();
        let segments = tokenizer.segments.as_ref().expect("it has no normaliser");
        let marked = |text: &str| Marked {
            text: format!("{text}<s>{text}<s>{text}"),
            added: vec![
                (text.len()..text.len() + 3, 1),
                (2 * text.len() + 3..2 * text.len() + 6, 1),
            ],
        };
        tokenizer.encode_marked(&marked("one")).unwrap();
        assert_eq!(segments.len(), 1);
        tokenizer.encode_marked(&marked("two")).unwrap();
        assert_eq!(segments.len(), 2);
        assert!(
            samples::metaspace().segments.is_none(),
            "its first word is another one"
        );
    }

    #[test]
    fn turns_begin_at_their_marker() {
        let tokenizer = samples::byte_level();
        assert_eq!(tokenizer.turns(&[3, 20, 4, 3, 21, 4, 3]), [3, 6]);
        assert_eq!(tokenizer.turns(&[20, 3]), [1]);
        assert_eq!(samples::byte_level_bare().turns(&[3, 3]), [] as [u32; 0]);
    }

    #[test]
    fn white_space_goes_to_tokens_that_take_it() {
        let mut tokenizer = samples::byte_level();
        let index = tokenizer.added.iter().position(|t| t.id == 5).unwrap();
        (
            tokenizer.added[index].strip_left,
            tokenizer.added[index].strip_right,
        ) = (true, true);
        tokenizer.segments = None;
        let marked = Marked {
            text: "a  <think> \n<think> b".into(),
            added: vec![(3..10, index), (12..19, index)],
        };
        let ids = tokenizer.encode_marked(&marked).unwrap();
        assert_eq!(tokenizer.decode(&ids), "a<think><think>b");
    }

    #[test]
    fn a_text_has_at_least_so_many_tokens() {
        let tokenizer = samples::byte_level();
        assert_eq!(tokenizer.max_bytes, "<|im_start|>".len());
        let ids = tokenizer.encode_special(&"<|im_start|>".repeat(7), false);
        assert_eq!(ids.unwrap().len(), tokenizer.min_tokens(7 * 12));
        assert_eq!(samples::word_level().min_tokens(1 << 20), 0);
    }

    #[test]
    fn pieces_in_context() {
        let words = samples::word_level();
        assert_eq!(&*words.bytes(None, 8), b"one");
        assert_eq!(&*words.bytes(Some(9), 8), b" one");
        assert_eq!(words.decode(&[8, 9, 10]), "one two three");
        let pieces = samples::metaspace();
        let ids = pieces.encode("hello world", false).unwrap();
        assert_eq!(pieces.decode(&ids), "hello world");
        let ids = pieces.encode("hello é", false).unwrap();
        assert_eq!(pieces.decode(&ids), "hello é", "{ids:?}");
        let byte = pieces.inner.token_to_id("<0xC3>").unwrap();
        assert_eq!(&*pieces.bytes(None, byte), [0xc3]);
    }

    #[test]
    fn control_tokens_have_names_and_no_bytes() {
        let tokenizer = samples::byte_level();
        for (id, name) in [(2, "</s>"), (6, "</think>"), (99_999, "<unknown_99999>")] {
            assert!(tokenizer.is_control(id));
            assert_eq!(
                (&*tokenizer.bytes(None, id), &*tokenizer.name(id)),
                (&[][..], name)
            );
        }
    }

    /// Texts that spell no added token, in which a property may compare with the library's way.
    fn plain_text() -> impl Strategy<Value = String> {
        let piece = prop_oneof![
            "\\PC{0,6}",
            "[a-z ]{0,8}",
            "[<>|/\n\t é]{0,4}",
            "(hello|world|the) ?"
        ];
        prop::collection::vec(piece, 0..12).prop_map(|pieces| pieces.concat())
    }

    proptest! {
        #[test]
        fn any_text_survives(text in any::<String>()) {
            let tokenizer = samples::byte_level();
            let ids = tokenizer.encode(&text, false).unwrap();
            prop_assert_eq!(tokenizer.decode(&ids), text);
        }

        #[test]
        fn plain_text_is_encoded_as_the_library_does(text in plain_text()) {
            for tokenizer in [samples::byte_level(), samples::metaspace(), samples::word_level()] {
                prop_assume!(tokenizer.added().iter().all(|t| !text.contains(&t.content)));
                let ours = tokenizer.encode(&text, false).unwrap();
                prop_assert_eq!(ours, tokenizer.encode_special(&text, false).unwrap());
            }
        }

        #[test]
        fn marked_text_is_encoded_as_the_library_does(
            pieces in prop::collection::vec((plain_text(), 0usize..3), 0..6),
        ) {
            for tokenizer in [samples::byte_level(), samples::metaspace()] {
                let mut marked = Marked::default();
                for (text, index) in &pieces {
                    prop_assume!(tokenizer.added().iter().all(|t| !text.contains(&t.content)));
                    marked.text.push_str(text);
                    let start = marked.text.len();
                    marked.text.push_str(&tokenizer.added()[*index].content);
                    marked.added.push((start..marked.text.len(), *index));
                }
                // A text may spell a token together with what follows it.
                let num_spelled: usize = tokenizer
                    .added()
                    .iter()
                    .map(|token| marked.text.matches(&token.content).count())
                    .sum();
                prop_assume!(num_spelled == marked.added.len());
                let ours = tokenizer.encode_marked(&marked).unwrap();
                prop_assert_eq!(ours, tokenizer.encode_special(&marked.text, false).unwrap());
            }
        }
    }
}
