//! Random weights: seeded, of the right shapes, and fast to make.
//!
//! Every piece of a tensor draws from a stream of its own, so the result does not depend on the
//! number of threads.

use bytes::Bytes;
use half::bf16;

use super::weights::Init;
use crate::noise;

/// Elements that share one stream.
const PIECE: usize = 1 << 16;

/// `count` elements in the element type that `init` is stored in.
pub(crate) fn generate(init: Init, seed: u64, count: usize, num_threads: usize) -> Bytes {
    match init {
        Init::Constant(value) => {
            let value = bf16::from_f32(value).to_bits().to_le_bytes();
            Bytes::from(value.repeat(count))
        }
        Init::Random { std } => {
            let mut bytes = vec![0_u8; 2 * count];
            fill(&mut bytes, seed, std, num_threads);
            Bytes::from(bytes)
        }
        Init::DecayRate => scalars(seed, count, |u| (1.0 + 15.0 * u).ln()),
        Init::TimeStep => scalars(seed, count, |u| {
            let dt = 0.001 * 100_f64.powf(u);
            // The inverse of softplus.
            dt + (-(-dt).exp_m1()).ln()
        }),
    }
}

fn scalars(seed: u64, count: usize, f: impl Fn(f64) -> f64) -> Bytes {
    let bytes: Vec<u8> = (0..count as u64)
        .flat_map(|at| (f(noise::uniform(noise::mix(seed, at))) as f32).to_le_bytes())
        .collect();
    Bytes::from(bytes)
}

/// Uniform bf16 numbers of mean 0 and the given standard deviation.
fn fill(bytes: &mut [u8], seed: u64, std: f32, num_threads: usize) {
    // A uniform variable on [-w, w] has the standard deviation w / sqrt(3).
    let step = std * 3_f32.sqrt() / 32768.0;
    let pieces = bytes.len().div_ceil(2 * PIECE);
    let share = pieces.div_ceil(num_threads).max(1) * 2 * PIECE;
    std::thread::scope(|scope| {
        for (thread, part) in bytes.chunks_mut(share).enumerate() {
            let first = (thread * share / (2 * PIECE)) as u64;
            scope.spawn(move || {
                for (piece, part) in (first..).zip(part.chunks_mut(2 * PIECE)) {
                    fill_piece(part, noise::mix(seed, piece), step);
                }
            });
        }
    });
}

fn fill_piece(part: &mut [u8], stream: u64, step: f32) {
    for (counter, four) in (0..).zip(part.chunks_mut(8)) {
        let random = noise::mix(stream, counter).to_le_bytes();
        for (element, random) in four.chunks_exact_mut(2).zip(random.chunks_exact(2)) {
            let level = i16::from_le_bytes([random[0], random[1]]);
            // The half makes the levels symmetric around 0.
            let value = (f32::from(level) + 0.5) * step;
            element.copy_from_slice(&rounded(value).to_le_bytes());
        }
    }
}

/// The bits of the nearest bf16, ties to even, of a finite number: a branch per element would cost
/// more than the rest.
fn rounded(value: f32) -> u16 {
    let bits = value.to_bits();
    ((bits + 0x7fff + ((bits >> 16) & 1)) >> 16) as u16
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_bf16() {
        for at in 0..100_000 {
            let value = (noise::uniform(noise::mix(5, at)) as f32 - 0.5) * 3.0;
            for value in [
                value,
                value * 1e-30,
                f32::from_bits(value.to_bits() | 0xffff),
            ] {
                assert_eq!(rounded(value), bf16::from_f32(value).to_bits(), "{value}");
            }
        }
    }

    fn values(bytes: &[u8]) -> Vec<f32> {
        bytes
            .chunks_exact(2)
            .map(|pair| bf16::from_le_bytes([pair[0], pair[1]]).to_f32())
            .collect()
    }

    #[test]
    fn threads_do_not_change_the_numbers() {
        let init = Init::Random { std: 0.5 };
        let count = 3 * PIECE + 17;
        let one = generate(init, 7, count, 1);
        assert_eq!(one.len(), 2 * count);
        for threads in [2, 3, 8] {
            assert_eq!(one, generate(init, 7, count, threads));
        }
        assert_ne!(one, generate(init, 8, count, 1));
    }

    #[test]
    fn moments_are_as_asked() {
        let values = values(&generate(Init::Random { std: 0.5 }, 1, 1 << 18, 2));
        let n = values.len() as f32;
        let mean = values.iter().sum::<f32>() / n;
        let variance = values.iter().map(|v| v * v).sum::<f32>() / n;
        assert!(mean.abs() < 0.005, "mean {mean}");
        assert!((variance - 0.25).abs() < 0.005, "variance {variance}");
    }

    #[test]
    fn scalars_lie_in_their_ranges() {
        let read = |init| -> Vec<f32> {
            generate(init, 3, 1000, 1)
                .chunks_exact(4)
                .map(|b| f32::from_le_bytes(b.try_into().expect("chunks of 4")))
                .collect()
        };
        for a_log in read(Init::DecayRate) {
            assert!((0.0..=16_f32.ln() + 1e-6).contains(&a_log));
        }
        for bias in read(Init::TimeStep) {
            let dt = bias.exp().ln_1p();
            assert!((0.000_99..=0.101).contains(&dt), "{dt}");
        }
    }
}
