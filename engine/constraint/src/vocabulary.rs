//! The model's tokens as bytes.

use std::fmt;
use std::sync::Arc;

use toktrie::{TokEnv, TokRxInfo, TokTrie, TokenId, TokenizerEnv};

/// What a token stands for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Piece {
    /// Nothing: an id that is never sampled under a grammar.
    None,
    /// A control token. No text matches it; a Lark grammar names it as `<tool_call>`.
    Control(String),
    /// These bytes, which may be part of a character.
    Text(Vec<u8>),
}

/// The model's tokens, as grammars see them. Building one takes a tenth of a second: once a process.
pub struct Vocabulary {
    env: TokEnv,
    end_ids: Vec<u32>,
}

impl Vocabulary {
    /// Takes `vocab_size` pieces. Each of `end_ids`, at least one, ends an answer and is no text,
    /// whatever its piece.
    pub fn new(vocab_size: u32, pieces: impl Fn(u32) -> Piece, end_ids: &[u32]) -> Self {
        assert!(!end_ids.is_empty(), "something must end an answer");
        let words: Vec<Vec<u8>> = (0..vocab_size)
            .map(|id| word(id, pieces(id), end_ids.contains(&id)))
            .collect();
        let info = TokRxInfo::new(vocab_size, end_ids[0]);
        let trie = TokTrie::from(&info, &words).with_eos_tokens(end_ids);
        Self {
            env: Arc::new(Tokens(trie)),
            end_ids: end_ids.to_vec(),
        }
    }

    /// Ids are below.
    pub fn size(&self) -> u32 {
        self.trie().vocab_size() as u32
    }

    /// What ends an answer.
    pub fn end_ids(&self) -> &[u32] {
        &self.end_ids
    }

    /// The text of a token; nothing for control tokens.
    pub fn text(&self, id: u32) -> &[u8] {
        let bytes = self.trie().token(id);
        match bytes.first() {
            Some(&TokTrie::SPECIAL_TOKEN_MARKER) => &[],
            _ => bytes,
        }
    }

    pub(crate) fn env(&self) -> &TokEnv {
        &self.env
    }

    fn trie(&self) -> &TokTrie {
        self.env.tok_trie()
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary")
            .field("size", &self.size())
            .field("end_ids", &self.end_ids)
            .finish_non_exhaustive()
    }
}

/// The trie's bytes of one token: control tokens live under a byte that is in no UTF-8 text.
fn word(id: u32, piece: Piece, ends: bool) -> Vec<u8> {
    let control = |name: &str| {
        let mut bytes = vec![TokTrie::SPECIAL_TOKEN_MARKER];
        bytes.extend_from_slice(name.as_bytes());
        bytes
    };
    match piece {
        Piece::Control(name) => control(&name),
        _ if ends => control(&format!("<end of answer {id}>")),
        // The byte alone is a token of every byte-level vocabulary, and would be read as the
        // beginning of a control token.
        Piece::Text(bytes) if bytes.first() != Some(&TokTrie::SPECIAL_TOKEN_MARKER) => bytes,
        Piece::Text(_) | Piece::None => Vec::new(),
    }
}

/// What the grammar library wants around the trie.
struct Tokens(TokTrie);

impl TokenizerEnv for Tokens {
    fn tok_trie(&self) -> &TokTrie {
        &self.0
    }

    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<TokenId> {
        self.0.greedy_tokenize(bytes)
    }

    /// The model chooses how to spell what the grammar forces.
    fn tokenize_is_canonical(&self) -> bool {
        false
    }
}
