//! A rate: so much per minute, all of it at once if it was saved up.
//!
//! It is kept as what is owed, which falls with time. So it may be charged beyond its limit (nobody knows
//! beforehand how long an answer gets), and a new limit takes over what the old one left.

use std::time::{Duration, Instant};

const MINUTE_SECONDS: f64 = 60.0;

/// What was taken and has not grown back.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Bucket {
    owed: f64,
    at: Instant,
}

impl Bucket {
    /// Nothing was taken.
    pub(crate) fn new(now: Instant) -> Self {
        Self { owed: 0.0, at: now }
    }

    /// How long until `amount` may be taken; zero: now. More than a minute's worth waits until nothing is
    /// owed, and then goes: it could never go otherwise.
    pub(crate) fn wait(&self, per_minute: u64, amount: u64, now: Instant) -> Duration {
        let limit = per_minute as f64;
        let excess = self.owed(per_minute, now) + (amount as f64).min(limit) - limit;
        after(excess, limit)
    }

    /// Takes `amount`, whether it is there or not.
    pub(crate) fn take(&mut self, per_minute: u64, amount: u64, now: Instant) {
        self.owed = self.owed(per_minute, now) + amount as f64;
        self.at = now;
    }

    /// What may be taken now.
    pub(crate) fn remaining(&self, per_minute: u64, now: Instant) -> u64 {
        // The cast is floor, and 0 for what is below.
        (per_minute as f64 - self.owed(per_minute, now) + EPSILON) as u64
    }

    /// How long until nothing is owed.
    pub(crate) fn reset(&self, per_minute: u64, now: Instant) -> Duration {
        after(self.owed(per_minute, now), per_minute as f64)
    }

    fn owed(&self, per_minute: u64, now: Instant) -> f64 {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        (self.owed - passed * per_minute as f64 / MINUTE_SECONDS).max(0.0)
    }
}

/// Far below one request or token, far above what rounding leaves behind.
const EPSILON: f64 = 1e-6;

fn after(amount: f64, per_minute: f64) -> Duration {
    if amount <= EPSILON {
        return Duration::ZERO;
    }
    Duration::try_from_secs_f64(amount * MINUTE_SECONDS / per_minute).unwrap_or(Duration::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Takes `amounts` at their seconds, then asks.
    #[track_caller]
    fn check(limit: u64, taken: &[(u64, u64)], ask: (u64, u64), wait_ms: u64, remaining: u64) {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut bucket = Bucket::new(start);
        for (seconds, amount) in taken {
            bucket.take(limit, *amount, at(*seconds));
        }
        let (seconds, amount) = ask;
        let wait = bucket.wait(limit, amount, at(seconds));
        assert_eq!(wait.as_millis() as u64, wait_ms, "{taken:?} {ask:?}");
        assert_eq!(bucket.remaining(limit, at(seconds)), remaining);
    }

    #[test]
    fn a_minutes_worth_at_once_and_then_as_it_grows_back() {
        check(60, &[], (0, 1), 0, 60);
        check(60, &[(0, 59)], (0, 1), 0, 1);
        check(60, &[(0, 60)], (0, 1), 1000, 0);
        check(60, &[(0, 60)], (1, 1), 0, 1);
        check(60, &[(0, 60)], (30, 30), 0, 30);
        check(60, &[(0, 60)], (30, 31), 1000, 30);
        check(60, &[(0, 30), (30, 30)], (30, 30), 0, 30);
        check(1, &[(0, 1)], (0, 1), 60_000, 0);
        // Nothing is saved beyond a minute's worth.
        check(60, &[(0, 60)], (86_400, 61), 0, 60);
    }

    #[test]
    fn more_than_a_minutes_worth_goes_when_nothing_is_owed_and_is_paid_for() {
        check(60, &[], (0, 600), 0, 60);
        check(60, &[(0, 1)], (0, 600), 1000, 59);
        check(60, &[(0, 600)], (0, 1), 541_000, 0);
        check(60, &[(0, 600)], (541, 1), 0, 1);
    }

    #[test]
    fn a_clock_that_stands_or_a_limit_that_changes_does_no_harm() {
        let start = Instant::now();
        let later = start + Duration::from_secs(10);
        let mut bucket = Bucket::new(later);
        bucket.take(60, 60, start);
        assert_eq!(bucket.remaining(60, start), 0);
        assert_eq!(bucket.reset(60, start), Duration::from_mins(1));
        // What is owed stays, what may be owed changes.
        assert_eq!(bucket.remaining(120, start), 60);
        assert_eq!(bucket.wait(120, 60, start), Duration::ZERO);
        assert_eq!(bucket.remaining(30, start), 0);
    }

    #[test]
    fn the_largest_numbers_hold() {
        let now = Instant::now();
        let mut bucket = Bucket::new(now);
        bucket.take(u64::MAX, u64::MAX, now);
        assert!(bucket.wait(u64::MAX, u64::MAX, now) <= Duration::from_secs(61));
        let mut bucket = Bucket::new(now);
        bucket.take(1, 1 << 40, now);
        // Millennia, and no panic.
        assert!(bucket.reset(1, now) > Duration::from_secs(1 << 40));
    }
}
