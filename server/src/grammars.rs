//! The compiler of grammars for the loaded model's tokens.
//!
//! It indexes the whole vocabulary, which takes a while for a large one: a thread does it while the
//! weights load, and a request that comes earlier waits.

use std::sync::{Arc, OnceLock};

use constraint::{Compiler, Limits, Vocabulary};

use crate::text::Tokenizer;

/// Grammars of one model.
pub struct Grammars {
    tokenizer: Option<Arc<Tokenizer>>,
    vocab_size: u32,
    end_ids: Vec<u32>,
    compiler: OnceLock<Option<Compiler>>,
}

impl Grammars {
    /// For a model whose answers end with any of `end_ids`.
    pub fn new(tokenizer: Option<Arc<Tokenizer>>, vocab_size: u32, end_ids: &[u32]) -> Arc<Self> {
        let end_ids = end_ids.iter().copied();
        Arc::new(Self {
            tokenizer,
            vocab_size,
            end_ids: end_ids.filter(|id| *id < vocab_size).collect(),
            compiler: OnceLock::new(),
        })
    }

    /// Makes the compiler on a thread of its own.
    pub fn warm_up(self: &Arc<Self>) {
        let grammars = Arc::clone(self);
        let spawned = std::thread::Builder::new()
            .name("vocabulary".into())
            .spawn(move || grammars.compiler().is_some());
        if let Err(error) = spawned {
            // The first request that needs it makes it.
            tracing::warn!(%error, "no thread to index the vocabulary");
        }
    }

    /// The compiler; `None` without a tokenizer, or if nothing ends an answer. Blocks while it is
    /// made.
    pub fn compiler(&self) -> Option<&Compiler> {
        let made = self.compiler.get_or_init(|| {
            let tokenizer = self.tokenizer.as_ref()?;
            if self.end_ids.is_empty() {
                return None;
            }
            let pieces = |id| tokenizer.piece_for_grammars(id);
            let vocabulary = Vocabulary::new(self.vocab_size, pieces, &self.end_ids);
            Some(Compiler::new(Arc::new(vocabulary), Limits::default()))
        });
        made.as_ref()
    }
}
