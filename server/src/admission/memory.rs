//! How much memory the process may still take, read now and then.

use std::time::{Duration, Instant};

use parking_lot::Mutex;

/// A reading is good for so long.
const FRESH: Duration = Duration::from_millis(500);

/// The last reading.
#[derive(Debug, Default)]
pub(crate) struct Memory(Mutex<Option<(Instant, u64)>>);

impl Memory {
    /// Bytes, at most [`FRESH`] old.
    pub(crate) fn available(&self, now: Instant) -> u64 {
        let mut last = self.0.lock();
        match *last {
            Some((at, bytes)) if now.saturating_duration_since(at) < FRESH => bytes,
            _ => {
                let bytes = read();
                *last = Some((now, bytes));
                bytes
            }
        }
    }
}

/// Who does not tell has enough.
fn read() -> u64 {
    engine::available_memory().unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_reading_is_kept_for_a_while() {
        let memory = Memory::default();
        let now = Instant::now();
        let first = memory.available(now);
        assert!(first > 0);
        *memory.0.lock() = Some((now, 7));
        assert_eq!(memory.available(now + FRESH / 2), 7);
        assert_ne!(memory.available(now + FRESH), 7);
    }
}
