//! Measured numbers, and drawn ones.

use std::time::Duration;

/// Numbers of one kind, to be ordered.
#[derive(Clone, Debug, Default)]
pub(super) struct Samples(Vec<f64>);

impl Samples {
    pub(super) fn add(&mut self, value: f64) {
        self.0.push(value);
    }

    pub(super) fn add_ms(&mut self, time: Duration) {
        self.add(time.as_secs_f64() * 1e3);
    }

    /// The least number that at least this share of all do not exceed; `None` of none.
    pub(super) fn percentile(&self, percent: f64) -> Option<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        let rank = (percent / 100.0 * sorted.len() as f64).ceil() as usize;
        sorted.get(rank.max(1) - 1).copied()
    }
}

impl Extend<f64> for Samples {
    fn extend<I: IntoIterator<Item = f64>>(&mut self, values: I) {
        self.0.extend(values);
    }
}

/// Reproducible numbers (SplitMix64).
#[derive(Clone, Debug)]
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    pub(super) fn draw(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// The wait between two arrivals that know nothing of each other.
    pub(super) fn wait(&mut self, per_second: f64) -> Duration {
        let uniform = ((self.draw() >> 11) as f64 + 0.5) / (1_u64 << 53) as f64;
        Duration::from_secs_f64(-uniform.ln() / per_second)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_samples() {
        let mut samples = Samples::default();
        assert_eq!(samples.percentile(50.0), None);
        samples.extend((1..=100).rev().map(f64::from));
        for (percent, expect) in [(0.0, 1.0), (50.0, 50.0), (99.0, 99.0), (100.0, 100.0)] {
            assert_eq!(samples.percentile(percent), Some(expect));
        }
        let mut one = Samples::default();
        one.add_ms(Duration::from_millis(3));
        assert_eq!(one.percentile(1.0), Some(3.0));
    }

    #[test]
    fn arrivals_come_at_their_rate() {
        let mut numbers = Numbers::new(1);
        let total: Duration = (0..10_000).map(|_| numbers.wait(50.0)).sum();
        let rate = 10_000.0 / total.as_secs_f64();
        assert!((48.0..52.0).contains(&rate), "{rate}");
    }
}
