//! Random weights: seeded, of the right shapes, and fast to make.
//!
//! Every piece of a tensor draws from a stream of its own, so the result does not depend on the
//! number of threads. A GPU makes large ones itself, to the same bit.

use bytes::Bytes;
use half::bf16;
use kernels::RandomForm;

use super::weights::{BLOCK_SCALES, Init};
use crate::noise;

/// Bytes that share one stream.
const PIECE_BYTES: usize = kernels::RANDOM_PIECE_BYTES;

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
        Init::Fp8Codes => codes(seed, count, num_threads, |byte| {
            // NaN gives way to the largest number.
            if byte & 0x7f == 0x7f { byte - 1 } else { byte }
        }),
        Init::Nvfp4Codes => codes(seed, count, num_threads, |byte| byte),
        Init::BlockScales => codes(seed, count, num_threads, |byte| {
            let choices = BLOCK_SCALES.end - BLOCK_SCALES.start;
            BLOCK_SCALES.start + byte % choices
        }),
        Init::Scale(value) => Bytes::from(value.to_le_bytes().repeat(count)),
        Init::DecayRate => scalars(seed, count, |u| (1.0 + 15.0 * u).ln()),
        Init::TimeStep => scalars(seed, count, |u| {
            let dt = 0.001 * 100_f64.powf(u);
            // The inverse of softplus.
            dt + (-(-dt).exp_m1()).ln()
        }),
    }
}

/// How a device makes the same bytes; `None` for what is small or the same all over.
pub(crate) fn random_form(init: Init) -> Option<RandomForm> {
    match init {
        Init::Random { std } => Some(RandomForm::Bf16 { step: step(std) }),
        Init::Fp8Codes => Some(RandomForm::E4m3),
        Init::Nvfp4Codes => Some(RandomForm::Bytes),
        Init::BlockScales => {
            // From 1 to under 2, as the form has it.
            const { assert!(BLOCK_SCALES.start == 0x38 && BLOCK_SCALES.end == 0x40) }
            Some(RandomForm::OneToTwo)
        }
        Init::Constant(_) | Init::Scale(_) | Init::DecayRate | Init::TimeStep => None,
    }
}

/// Between neighbours of 65536 numbers with this standard deviation: a uniform variable on [-w, w] has
/// `w / sqrt(3)`.
fn step(std: f32) -> f32 {
    std * 3_f32.sqrt() / 32768.0
}

fn scalars(seed: u64, count: usize, f: impl Fn(f64) -> f64) -> Bytes {
    let bytes: Vec<u8> = (0..count as u64)
        .flat_map(|at| (f(noise::uniform(noise::mix(seed, at))) as f32).to_le_bytes())
        .collect();
    Bytes::from(bytes)
}

/// Random bytes, each through `f`.
fn codes(seed: u64, count: usize, num_threads: usize, f: impl Fn(u8) -> u8 + Sync) -> Bytes {
    let mut bytes = vec![0_u8; count];
    in_pieces(&mut bytes, seed, num_threads, |part, stream| {
        for (counter, eight) in (0..).zip(part.chunks_mut(8)) {
            let random = noise::mix(stream, counter).to_le_bytes();
            for (code, random) in eight.iter_mut().zip(random) {
                *code = f(random);
            }
        }
    });
    Bytes::from(bytes)
}

/// Uniform bf16 numbers of mean 0 and the given standard deviation.
fn fill(bytes: &mut [u8], seed: u64, std: f32, num_threads: usize) {
    let step = step(std);
    in_pieces(bytes, seed, num_threads, |part, stream| {
        fill_piece(part, stream, step);
    });
}

/// Has several threads fill pieces, each from a stream of its own.
fn in_pieces(
    bytes: &mut [u8],
    seed: u64,
    num_threads: usize,
    fill: impl Fn(&mut [u8], u64) + Sync,
) {
    let pieces = bytes.len().div_ceil(PIECE_BYTES);
    let share = pieces.div_ceil(num_threads).max(1) * PIECE_BYTES;
    let fill = &fill;
    std::thread::scope(|scope| {
        for (thread, part) in bytes.chunks_mut(share).enumerate() {
            let first = (thread * share / PIECE_BYTES) as u64;
            scope.spawn(move || {
                for (piece, part) in (first..).zip(part.chunks_mut(PIECE_BYTES)) {
                    fill(part, noise::mix(seed, piece));
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
    use std::path::Path;

    use super::*;
    use crate::model::{ModelConfig, weights};

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
        let count = 3 * PIECE_BYTES / 2 + 17;
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
    fn codes_are_numbers_and_do_not_depend_on_threads() {
        for init in [Init::Fp8Codes, Init::BlockScales, Init::Nvfp4Codes] {
            let count = 2 * PIECE_BYTES + 5;
            let one = generate(init, 3, count, 1);
            assert_eq!(one.len(), count);
            assert_eq!(one, generate(init, 3, count, 3));
            let used = (0..=255_u8).filter(|code| one.contains(code)).count();
            let expect = match init {
                Init::Fp8Codes => 254,
                Init::BlockScales => 8,
                _ => 256,
            };
            assert_eq!(used, expect);
            if init != Init::Nvfp4Codes {
                assert!(
                    one.iter()
                        .all(|code| kernels::e4m3::decode(*code).is_finite())
                );
            }
        }
        let scale = generate(Init::Scale(0.25), 3, 1, 1);
        assert_eq!(scale[..], 0.25_f32.to_le_bytes());
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

    #[test]
    fn the_maps_of_super_add_up_to_its_published_sizes() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../benches/configs");
        for (folder, gib) in [
            ("super", 230.2),
            ("super-fp8", 119.5),
            ("super-nvfp4", 74.8),
        ] {
            let folder = root.join(folder);
            let path = folder.join("config.json");
            let text = ModelConfig::read_text(&path).expect("it is committed");
            let mut config = ModelConfig::parse(&text, &path).expect("it is Super's");
            config.quantization.read_beside(&folder).expect("all known");
            let (weights, inventory) = weights::invent(&config, 0).expect("all fits");
            // In BF16 everywhere, whatever the map says of other experts.
            let draft = weights
                .draft
                .expect("the configuration has one")
                .num_bytes();
            let draft_parameters = draft as f64 / 2.0;
            assert!((2.941e9..2.943e9).contains(&draft_parameters));
            let got = (inventory.num_bytes + draft) as f64 / f64::from(1 << 30);
            assert!(
                (got - gib).abs() < 0.06,
                "{}: {got:.2} GiB",
                folder.display()
            );
            let main_parameters = inventory.num_parameters as f64 - draft_parameters;
            assert!((120.6e9..120.8e9).contains(&main_parameters));
        }
    }
}
