//! What the cache can be hit with, told to whoever publishes it.

use scheduler::{News, Scheduler};
use tokio::sync::mpsc;

/// Turns of the engine that a reader may fall behind.
pub(crate) const MAX_BEHIND: usize = 4096;

/// What one turn of the engine changed.
#[derive(Clone, Debug)]
pub struct CacheNews {
    /// From 0; who sees a gap has missed something.
    pub number: u64,
    /// In order.
    pub news: Vec<News>,
}

/// The engine's end.
#[derive(Default)]
pub(crate) struct Newspaper {
    reader: Option<mpsc::Sender<CacheNews>>,
    num_issues: u64,
}

impl Newspaper {
    /// There is one reader: the last.
    pub(crate) fn subscribe(&mut self, reader: mpsc::Sender<CacheNews>, scheduler: &mut Scheduler) {
        scheduler.keep_news();
        self.reader = Some(reader);
    }

    /// Tells what has changed. A reader who is too slow misses it, and sees that by the number.
    pub(crate) fn publish(&mut self, scheduler: &mut Scheduler) {
        let Some(reader) = &self.reader else {
            return;
        };
        let news = scheduler.take_news();
        if news.is_empty() {
            return;
        }
        let number = self.num_issues;
        self.num_issues += 1;
        // Gone or slow: nobody waits for it.
        let _ = reader.try_send(CacheNews { number, news });
    }
}
