//! How fast this machine reads memory: the bound on decoding one sequence.

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes that each thread reads: beyond what its share of the caches holds.
const BYTES_PER_THREAD: usize = 128 * 1024 * 1024;

/// Reads memory with `threads` threads at once and returns the best of some rounds, in GB/s
/// (10^9 bytes). Takes less than a second and 128 MiB per thread.
///
/// # Panics
/// If `threads` is 0.
pub fn measure_read_bandwidth(threads: usize) -> f64 {
    assert!(threads > 0, "at least one thread");
    let buffers: Vec<Vec<u64>> = (0..threads as u64)
        .map(|thread| vec![thread + 1; BYTES_PER_THREAD / size_of::<u64>()])
        .collect();
    let mut best = Duration::MAX;
    for _ in 0..4 {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for buffer in &buffers {
                scope.spawn(move || black_box(sum(buffer)));
            }
        });
        best = best.min(start.elapsed());
    }
    (threads * BYTES_PER_THREAD) as f64 / best.as_secs_f64() / 1e9
}

/// Many sums at a time, which the compiler turns into wide loads.
fn sum(buffer: &[u64]) -> u64 {
    let mut sums = [0_u64; 32];
    for chunk in buffer.chunks_exact(32) {
        for (sum, value) in sums.iter_mut().zip(chunk) {
            *sum = sum.wrapping_add(*value);
        }
    }
    sums.iter().fold(0, |total, &sum| total.wrapping_add(sum))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_at_a_believable_rate() {
        let rate = measure_read_bandwidth(1);
        assert!((0.05..2000.0).contains(&rate), "{rate} GB/s");
    }
}
