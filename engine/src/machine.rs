//! What this machine has, for people who choose models by it.

use std::hint::black_box;
use std::time::Instant;

use crate::{device, memory};

/// Facts that decide what can be served, and how fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Threads that run at once.
    pub num_cores: usize,
    /// Instruction set that the CPU kernels will use.
    pub isa: &'static str,
    /// Bytes that this process may still take, page cache included.
    pub available_memory: u64,
    /// Accelerators that this build can use; `None`: it was built without their support.
    pub num_accelerators: Option<usize>,
}

impl Machine {
    /// Looks; measures nothing.
    pub fn survey() -> Self {
        Self {
            num_cores: std::thread::available_parallelism().map_or(1, usize::from),
            isa: kernels::isa().name(),
            available_memory: memory::available(),
            num_accelerators: device::num_accelerators(),
        }
    }

    /// Bytes per second that all cores together read from memory: the best of several passes over
    /// more than caches hold. Decoding one stream reads all active weights once per token, so this
    /// bounds its speed. Takes about a second.
    pub fn measure_bandwidth(&self) -> f64 {
        const PASSES: usize = 5;
        let bytes = (self.available_memory / 4).clamp(64 << 20, 1 << 30) as usize;
        // Written, so that the pages are really there.
        let words = vec![1_u64; bytes / size_of::<u64>()];
        let share = words.len().div_ceil(self.num_cores);
        let pass = || {
            let begin = Instant::now();
            std::thread::scope(|scope| {
                for part in words.chunks(share) {
                    scope.spawn(|| black_box(sum(part)));
                }
            });
            bytes as f64 / begin.elapsed().as_secs_f64()
        };
        (0..PASSES).map(|_| pass()).fold(0.0, f64::max)
    }
}

/// Eight sums side by side, so that additions never wait for each other.
fn sum(words: &[u64]) -> u64 {
    let (eights, rest) = words.as_chunks::<8>();
    let mut sums = [0_u64; 8];
    for eight in eights {
        for (sum, word) in sums.iter_mut().zip(eight) {
            *sum = sum.wrapping_add(*word);
        }
    }
    sums.iter()
        .chain(rest)
        .fold(0, |all, word| all.wrapping_add(*word))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_is_read() {
        for len in [0, 1, 7, 8, 9, 1000] {
            let words: Vec<u64> = (0..len).collect();
            assert_eq!(sum(&words), words.iter().sum::<u64>(), "{len} words");
        }
    }

    #[test]
    fn the_machine_has_what_it_needs_to_run_this() {
        let machine = Machine::survey();
        assert!(machine.num_cores > 0 && machine.available_memory > 0);
    }
}
