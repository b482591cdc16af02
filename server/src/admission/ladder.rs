//! What is given up first when it gets crowded: a pure function of a few numbers.
//!
//! | Level | Gives up | When (any of) |
//! |---|---|---|
//! | 0 | nothing | |
//! | 1 | drafts, and requests below the usual priority (`flex`) | somebody waits, and under 5 % of blocks or slots are free; a quarter of the longest wait; under 64 MiB of memory |
//! | 2 | all but requests above the usual priority | half of the longest wait; under 32 MiB |
//! | 3 | all new requests | the longest wait; under 16 MiB |
//!
//! The longest wait is `--max-queue-age`; without it, waiting alone costs nobody anything.

use std::time::{Duration, Instant};

/// How much is given up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Nothing.
    #[default]
    Normal,
    /// Drafts, and requests below the usual priority.
    Trimmed,
    /// All but requests above the usual priority.
    PriorityOnly,
    /// All new requests.
    Closed,
}

/// How crowded it is.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Pressure {
    /// Share of the KV blocks that no live sequence holds, 0 to 1.
    pub free_blocks: f64,
    /// Share of the state slots that no live sequence holds, 0 to 1.
    pub free_slots: f64,
    /// Whether a choice waits for either.
    pub somebody_waits: bool,
    /// Since the oldest request came with which the engine has not begun.
    pub queue_age: Duration,
    /// Bytes that the process may still take.
    pub memory_bytes: u64,
}

/// Below this share somebody's blocks or slots will soon be taken.
const SCARCE: f64 = 0.05;
/// Below these the next level holds. A body of the largest size has 32 MiB; a process that was given just
/// enough runs with little more left, and should.
const MEMORY_BYTES: [u64; 3] = [64 << 20, 32 << 20, 16 << 20];

impl Level {
    /// What must be given up. `max_queue_age`: as long as anybody should wait.
    pub fn of(pressure: &Pressure, max_queue_age: Option<Duration>) -> Self {
        let scarce = pressure.free_blocks.min(pressure.free_slots) < SCARCE;
        let by_cache = usize::from(pressure.somebody_waits && scarce);
        let by_memory = MEMORY_BYTES
            .iter()
            .filter(|least| pressure.memory_bytes < **least)
            .count();
        let by_age = max_queue_age.map_or(0, |longest| {
            let waited = if pressure.somebody_waits {
                pressure.queue_age
            } else {
                // Who is being served is slow, not late.
                Duration::ZERO
            };
            [longest / 4, longest / 2, longest]
                .iter()
                .filter(|limit| waited >= **limit)
                .count()
        });
        match by_cache.max(by_memory).max(by_age) {
            0 => Self::Normal,
            1 => Self::Trimmed,
            2 => Self::PriorityOnly,
            _ => Self::Closed,
        }
    }

    /// Whether a request of this priority may enter.
    pub fn admits(self, priority: i8) -> bool {
        match self {
            Self::Normal => true,
            Self::Trimmed => priority >= 0,
            Self::PriorityOnly => priority > 0,
            Self::Closed => false,
        }
    }

    /// Whether steps may carry drafts.
    pub fn allows_drafts(self) -> bool {
        self == Self::Normal
    }

    /// For people and metrics.
    pub fn number(self) -> u8 {
        self as u8
    }
}

/// A level that rises at once and falls when it has been lower for a while: what is switched by it should
/// not be switched four times a second.
#[derive(Debug)]
pub(crate) struct Held {
    level: Level,
    /// When it was last as high.
    seen: Instant,
}

/// For so long a level is held.
const CALM: Duration = Duration::from_secs(5);

impl Held {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            level: Level::Normal,
            seen: now,
        }
    }

    /// What holds before and after a look, if that is not the same.
    pub(crate) fn look(&mut self, level: Level, now: Instant) -> Option<(Level, Level)> {
        if level >= self.level {
            self.seen = now;
        }
        let changes = level > self.level || now.duration_since(self.seen) >= CALM;
        if !changes || level == self.level {
            return None;
        }
        self.seen = now;
        Some((std::mem::replace(&mut self.level, level), level))
    }

    pub(crate) fn level(&self) -> Level {
        self.level
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const QUIET: Pressure = Pressure {
        free_blocks: 1.0,
        free_slots: 1.0,
        somebody_waits: false,
        queue_age: Duration::ZERO,
        memory_bytes: 8 << 30,
    };
    #[test]
    fn a_level_rises_at_once_and_falls_after_a_while() {
        let begin = Instant::now();
        let mut held = Held::new(begin);
        let mut look = |level, ms| held.look(level, begin + Duration::from_millis(ms));
        assert_eq!(look(Level::Normal, 0), None);
        assert_eq!(
            look(Level::Trimmed, 10),
            Some((Level::Normal, Level::Trimmed))
        );
        for ms in (20..20_000).step_by(500) {
            assert_eq!(look(Level::Normal, ms), None, "{ms}");
            assert_eq!(look(Level::Trimmed, ms + 250), None, "{ms}");
        }
        assert_eq!(
            look(Level::Closed, 20_000),
            Some((Level::Trimmed, Level::Closed))
        );
        assert_eq!(look(Level::Trimmed, 24_900), None);
        assert_eq!(
            look(Level::Trimmed, 25_000),
            Some((Level::Closed, Level::Trimmed))
        );
        assert_eq!(look(Level::Normal, 29_900), None);
        assert_eq!(
            look(Level::Normal, 30_000),
            Some((Level::Trimmed, Level::Normal))
        );
        assert_eq!(held.level(), Level::Normal);
    }

    const WAITING: Pressure = Pressure {
        somebody_waits: true,
        ..QUIET
    };

    #[track_caller]
    fn check(pressure: Pressure, level: u8) {
        let longest = Some(Duration::from_secs(40));
        assert_eq!(
            Level::of(&pressure, longest).number(),
            level,
            "{pressure:?}"
        );
    }

    #[test]
    fn every_signal_has_its_rungs() {
        check(QUIET, 0);
        check(WAITING, 0);
        let blocks = |free_blocks, somebody_waits| Pressure {
            free_blocks,
            somebody_waits,
            ..QUIET
        };
        check(blocks(0.0, false), 0);
        check(blocks(0.05, true), 0);
        check(blocks(0.049, true), 1);
        check(blocks(0.0, true), 1);
        let slots = |free_slots, somebody_waits| Pressure {
            free_slots,
            somebody_waits,
            ..QUIET
        };
        check(slots(0.0, false), 0);
        check(slots(0.05, true), 0);
        check(slots(0.0, true), 1);
        let aged = |ms| Pressure {
            queue_age: Duration::from_millis(ms),
            ..WAITING
        };
        for (ms, level) in [
            (0, 0),
            (9_999, 0),
            (10_000, 1),
            (19_999, 1),
            (20_000, 2),
            (39_999, 2),
            (40_000, 3),
            (1 << 40, 3),
        ] {
            check(aged(ms), level);
        }
        let slow = Pressure {
            queue_age: Duration::from_hours(1),
            ..QUIET
        };
        check(slow, 0);
        for (mib, level) in [(64, 0), (63, 1), (32, 1), (31, 2), (16, 2), (15, 3), (0, 3)] {
            let memory_bytes = mib << 20;
            check(
                Pressure {
                    memory_bytes,
                    ..QUIET
                },
                level,
            );
        }
    }

    #[test]
    fn the_worst_signal_decides() {
        let both = Pressure {
            free_blocks: 0.0,
            queue_age: Duration::from_secs(20),
            ..WAITING
        };
        check(both, 2);
        let all = Pressure {
            memory_bytes: 0,
            ..both
        };
        check(all, 3);
    }

    #[test]
    fn without_a_longest_wait_nobody_is_too_old() {
        let old = Pressure {
            queue_age: Duration::from_hours(24),
            ..WAITING
        };
        assert_eq!(Level::of(&old, None), Level::Normal);
    }

    #[test]
    fn who_enters_at_which_level() {
        for (level, flex, usual, priority) in [
            (Level::Normal, true, true, true),
            (Level::Trimmed, false, true, true),
            (Level::PriorityOnly, false, false, true),
            (Level::Closed, false, false, false),
        ] {
            let got = [-4, 0, 4].map(|priority| level.admits(priority));
            assert_eq!(got, [flex, usual, priority], "{level:?}");
            assert_eq!(level.allows_drafts(), level == Level::Normal);
        }
    }
}
