//! Text between added tokens, and its ids, remembered: the next turn of a conversation brings all of
//! its history again.

use std::sync::Arc;

use quick_cache::sync::{Cache, DefaultLifecycle};
use quick_cache::{DefaultHashBuilder, OptionsBuilder, Weighter};

use super::TokenizerError;

/// Bytes of texts and ids together: about thirty conversations of 256k tokens.
const MAX_BYTES: u64 = 64 << 20;
/// Bytes that an entry costs beside its text and ids.
const OVERHEAD: u64 = 128;

/// Ids by text. A hit compares the text, not its hash alone.
pub(super) struct SegmentCache {
    entries: Cache<Box<str>, Arc<[u32]>, ByBytes>,
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Box<str>, Arc<[u32]>> for ByBytes {
    fn weight(&self, text: &Box<str>, ids: &Arc<[u32]>) -> u64 {
        (text.len() + size_of_val(&**ids)) as u64 + OVERHEAD
    }
}

impl SegmentCache {
    pub(super) fn new() -> Self {
        // One shard, so that one long document may take all of it.
        let options = OptionsBuilder::new()
            .estimated_items_capacity((MAX_BYTES / 4096) as usize)
            .weight_capacity(MAX_BYTES)
            .shards(1)
            .build()
            .expect("capacities are given");
        Self {
            entries: Cache::with_options(
                options,
                ByBytes,
                DefaultHashBuilder::default(),
                DefaultLifecycle::default(),
            ),
        }
    }

    /// The ids of `text`, by `encode` if nobody asked for them lately. Who asks for the same at the
    /// same time encodes it, too.
    pub(super) fn ids(
        &self,
        text: &str,
        encode: impl FnOnce() -> Result<Vec<u32>, TokenizerError>,
    ) -> Result<Arc<[u32]>, TokenizerError> {
        if let Some(ids) = self.entries.get(text) {
            return Ok(ids);
        }
        let ids: Arc<[u32]> = encode()?.into();
        self.entries.insert(text.into(), Arc::clone(&ids));
        Ok(ids)
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.entries.len()
    }
}
