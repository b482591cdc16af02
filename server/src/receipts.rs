//! What recent generations used, those included whose client left: its log line has the counts, and
//! this is where a program asks for them.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use quick_cache::sync::Cache;

use crate::api::prices::Cost;
use crate::api::types::Usage;

/// Receipts kept; older ones make room.
const MAX_RECEIPTS: usize = 16_384;

/// Receipts by the id of their generation.
pub struct Receipts(Cache<Arc<str>, Arc<Receipt>>);

/// What one generation used.
#[derive(Clone, Debug)]
pub struct Receipt {
    /// As its answer or its chunks have it.
    pub id: Arc<str>,
    /// `x-request-id`.
    pub request_id: Arc<str>,
    /// Which of the configured keys asked for it.
    pub key: Option<usize>,
    /// As requested.
    pub model: Arc<str>,
    /// A conversation, not a completion.
    pub chat: bool,
    /// Answered in events.
    pub streamed: bool,
    /// The client left before the end.
    pub cancelled: bool,
    /// Why it ended; `None` if it did not come to that.
    pub finish: Option<&'static str>,
    /// The same numbers as in its answer.
    pub usage: Usage,
    /// Where the flavour has prices.
    pub cost: Option<Cost>,
    /// When it was over.
    pub ended: SystemTime,
    /// From its headers to its end.
    pub took: Duration,
    /// From its headers to the first token.
    pub to_first_token: Option<Duration>,
}

impl Default for Receipts {
    fn default() -> Self {
        Self(Cache::new(MAX_RECEIPTS))
    }
}

impl Receipts {
    /// Keeps one for a while.
    pub fn keep(&self, receipt: Receipt) {
        self.0.insert(Arc::clone(&receipt.id), Arc::new(receipt));
    }

    /// One that is still kept, if `key` asked for what it is about.
    pub fn get(&self, id: &str, key: Option<usize>) -> Option<Arc<Receipt>> {
        self.0.get(id).filter(|receipt| receipt.key == key)
    }
}
