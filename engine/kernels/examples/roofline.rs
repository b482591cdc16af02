//! What this machine can do at most: bytes that come from memory, multiplications that come from
//! registers.
//!
//!     cargo run --release --workspace --example roofline -- [--threads N]
//!
//! The best of several short runs each, with one thread and with N. Operations count a multiplication
//! and an addition as two. Numbers that nobody can reach, to hold those against that are reached.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::time::{Duration, Instant};

/// Bytes that each thread copies.
const COPIED: usize = 128 << 20;
const RUNS: usize = 8;

fn main() {
    let mut threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--threads" => {
                let value = args.next().expect("a number follows");
                threads = value.parse().expect("a number of threads");
            }
            other => panic!("{other}: expected --threads"),
        }
    }
    println!("{}", kernels::isa().name());
    let counts = if threads > 1 {
        vec![1, threads]
    } else {
        vec![1]
    };
    for &threads in &counts {
        println!("{threads} threads");
        let read = kernels::measure_read_bandwidth(threads);
        println!("  read      {read:7.1} GB/s");
        println!("  copy      {:7.1} GB/s read and written", copy(threads));
        #[cfg(target_arch = "x86_64")]
        x86::arithmetic(threads);
    }
}

fn copy(threads: usize) -> f64 {
    let mut buffers: Vec<(Vec<u8>, Vec<u8>)> = (0..threads)
        .map(|_| (vec![1; COPIED], vec![2; COPIED]))
        .collect();
    let mut best = Duration::MAX;
    for _ in 0..RUNS {
        let begin = Instant::now();
        std::thread::scope(|scope| {
            for (from, to) in &mut buffers {
                scope.spawn(move || black_box(to).copy_from_slice(black_box(from)));
            }
        });
        best = best.min(begin.elapsed());
    }
    (2 * threads * COPIED) as f64 / best.as_secs_f64() / 1e9
}

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[allow(clippy::wildcard_imports)] // A dozen intrinsics.
    use std::arch::x86_64::*;
    use std::hint::black_box;
    use std::time::{Duration, Instant};

    use super::RUNS;

    /// Instructions of a run, per accumulator.
    const STEPS: usize = 2_000_000;
    /// Sums that do not wait for one another.
    const SUMS: usize = 16;

    /// Prints what the instruction sets that are here can do.
    pub(super) fn arithmetic(threads: usize) {
        let avx512 = is_x86_feature_detected!("avx512f");
        #[allow(clippy::type_complexity)] // Said once, and here.
        let kinds: [(&str, bool, usize, fn()); 3] = [
            ("f32", avx512, 16, || {
                // SAFETY: the machine has the instructions, or this is not called.
                unsafe { f32_sums() };
            }),
            (
                "bf16",
                avx512 && is_x86_feature_detected!("avx512bf16"),
                32,
                || {
                    // SAFETY: as above.
                    unsafe { bf16_sums() };
                },
            ),
            (
                "int8",
                avx512 && is_x86_feature_detected!("avx512vnni"),
                64,
                || {
                    // SAFETY: as above.
                    unsafe { int8_sums() };
                },
            ),
        ];
        for (name, is_here, lanes, run) in kinds {
            if !is_here {
                println!("  {name:<9} not here");
                continue;
            }
            let mut best = Duration::MAX;
            for _ in 0..RUNS {
                let begin = Instant::now();
                std::thread::scope(|scope| {
                    for _ in 0..threads {
                        scope.spawn(run);
                    }
                });
                best = best.min(begin.elapsed());
            }
            let operations = 2 * lanes * SUMS * STEPS * threads;
            let rate = operations as f64 / best.as_secs_f64() / 1e9;
            println!("  {name:<9} {rate:7.1} G operations/s");
        }
    }

    #[target_feature(enable = "avx512f")]
    fn f32_sums() {
        let x = black_box(_mm512_set1_ps(1e-9));
        let mut sums = [x; SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_fmadd_ps(x, x, *sum);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn bf16_sums() {
        let bits = black_box(_mm512_set1_epi16(0x3080));
        // SAFETY: both are 512 plain bits.
        let x = unsafe { std::mem::transmute::<__m512i, __m512bh>(bits) };
        let mut sums = [_mm512_setzero_ps(); SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbf16_ps(*sum, x, x);
            }
        }
        black_box(sums);
    }

    #[target_feature(enable = "avx512f,avx512vnni")]
    fn int8_sums() {
        let x = black_box(_mm512_set1_epi8(1));
        let mut sums = [x; SUMS];
        for _ in 0..STEPS {
            for sum in &mut sums {
                *sum = _mm512_dpbusd_epi32(*sum, x, x);
            }
        }
        black_box(sums);
    }
}
