//! Numbers to codes.

use std::ops::{AddAssign, Range};
use std::path::Path;
use std::sync::Arc;

use bytes::Bytes;
use half::{bf16, f16};
use kernels::{e2m1, e4m3};
use safetensors::tensor::Dtype;

use crate::error::EngineError;

/// Weights that share an E4M3 scale in NVFP4.
pub(super) const GROUP: usize = 16;

/// Numbers that one thread packs at a time.
const PIECE: usize = 1 << 20;

/// Plain floats, row by row.
pub(super) struct Matrix {
    /// The shard, for errors.
    pub(super) path: Arc<Path>,
    pub(super) dtype: Dtype,
    pub(super) num_rows: usize,
    pub(super) row_len: usize,
    pub(super) data: Bytes,
}

/// What packing cost, in squares.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Rounding {
    difference: f64,
    whole: f64,
}

/// Some packed rows.
#[derive(Default)]
pub(super) struct Piece {
    pub(super) codes: Vec<u8>,
    /// E4M3 codes of the groups' scales.
    pub(super) scales: Vec<u8>,
    pub(super) rounding: Rounding,
}

impl Matrix {
    /// The largest magnitude; NaN if there is one.
    pub(super) fn largest(&self) -> f32 {
        let mut largest = 0_f32;
        let mut values = Vec::new();
        for rows in self.pieces() {
            self.widen(rows, &mut values);
            for value in &values {
                // Unlike `max`, this keeps a NaN.
                largest = if value.abs() <= largest {
                    largest
                } else {
                    value.abs()
                };
                if largest.is_nan() {
                    return largest;
                }
            }
        }
        largest
    }

    /// Packs all rows on several threads; `write` gets the pieces in order.
    pub(super) fn pack(
        &self,
        num_threads: usize,
        pack: impl Fn(&[f32]) -> Piece + Sync,
        mut write: impl FnMut(Piece) -> Result<(), EngineError>,
    ) -> Result<(), EngineError> {
        let pieces: Vec<Range<usize>> = self.pieces().collect();
        let run = |rows: Range<usize>| {
            let mut values = Vec::new();
            self.widen(rows, &mut values);
            pack(&values)
        };
        for wave in pieces.chunks(num_threads) {
            let done: Vec<Piece> = std::thread::scope(|scope| {
                let threads: Vec<_> = wave[1..]
                    .iter()
                    .map(|rows| scope.spawn(|| run(rows.clone())))
                    .collect();
                let first = run(wave[0].clone());
                let rest = threads
                    .into_iter()
                    .map(|thread| thread.join().expect("packing does not panic"));
                std::iter::once(first).chain(rest).collect()
            });
            done.into_iter().try_for_each(&mut write)?;
        }
        Ok(())
    }

    fn pieces(&self) -> impl Iterator<Item = Range<usize>> {
        let step = (PIECE / self.row_len.max(1)).max(1);
        (0..self.num_rows)
            .step_by(step)
            .map(move |start| start..(start + step).min(self.num_rows))
    }

    fn widen(&self, rows: Range<usize>, out: &mut Vec<f32>) {
        let size = self.dtype.bitsize() / 8;
        let bytes = &self.data[rows.start * self.row_len * size..rows.end * self.row_len * size];
        out.clear();
        match self.dtype {
            Dtype::F32 => out.extend(bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b))),
            Dtype::F16 => out.extend(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| f16::from_le_bytes(*b).to_f32()),
            ),
            Dtype::BF16 => out.extend(
                bytes
                    .as_chunks()
                    .0
                    .iter()
                    .map(|b| bf16::from_le_bytes(*b).to_f32()),
            ),
            other => unreachable!("{other} was refused before"),
        }
    }
}

/// The largest number on the largest code.
pub(super) fn fp8_scale(largest: f32) -> f32 {
    positive(largest / e4m3::MAX)
}

/// The largest number on the largest code under the largest scale.
pub(super) fn nvfp4_scale(largest: f32) -> f32 {
    positive(largest / (e2m1::MAX * e4m3::MAX))
}

/// Nothing but zeros, or nearly: any scale does that numbers can be divided by.
fn positive(scale: f32) -> f32 {
    if scale >= f32::MIN_POSITIVE {
        scale
    } else {
        1.0
    }
}

/// E4M3 codes under one scale.
pub(super) fn fp8(values: &[f32], scale: f32) -> Piece {
    let mut rounding = Rounding::default();
    let codes = values
        .iter()
        .map(|&value| {
            let code = e4m3::encode(value / scale);
            rounding.note(value, e4m3::decode(code) * scale);
            code
        })
        .collect();
    Piece {
        codes,
        scales: Vec::new(),
        rounding,
    }
}

/// E2M1 codes, two a byte, the even column in the low half, and the scale of every group.
pub(super) fn nvfp4(values: &[f32], scale: f32) -> Piece {
    let mut piece = Piece::default();
    for group in values.chunks_exact(GROUP) {
        let largest = group
            .iter()
            .fold(0_f32, |largest, value| largest.max(value.abs()));
        let mut group_scale = e4m3::encode(largest / e2m1::MAX / scale);
        if largest > 0.0 {
            // The smallest scale keeps more of tiny numbers than none.
            group_scale = group_scale.max(1);
        }
        let step = e4m3::decode(group_scale) * scale;
        let mut code = |value: f32| {
            let code = if step > 0.0 {
                e2m1::encode(value / step)
            } else {
                0
            };
            piece
                .rounding
                .note(value, e2m1::VALUES[usize::from(code)] * step);
            code
        };
        for pair in group.chunks_exact(2) {
            piece.codes.push(code(pair[0]) | code(pair[1]) << 4);
        }
        piece.scales.push(group_scale);
    }
    piece
}

impl Rounding {
    fn note(&mut self, value: f32, kept: f32) {
        let (value, kept) = (f64::from(value), f64::from(kept));
        self.difference += (value - kept) * (value - kept);
        self.whole += value * value;
    }

    /// Length of the difference over the length of the whole.
    pub(super) fn error(self) -> f64 {
        if self.whole > 0.0 {
            (self.difference / self.whole).sqrt()
        } else {
            0.0
        }
    }
}

impl AddAssign for Rounding {
    fn add_assign(&mut self, other: Self) {
        self.difference += other.difference;
        self.whole += other.whole;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fp8_of_known_numbers() {
        // The largest is 4.48, so the scale is 0.01 and 1 becomes 100, between 96 and 104: even.
        let values = [4.48, -4.48, 0.0, 0.01, 1.0, -0.005];
        let scale = fp8_scale(4.48);
        assert!((scale - 0.01).abs() < 1e-9);
        let piece = fp8(&values, 0.01);
        assert_eq!(piece.codes, [0x7e, 0xfe, 0x00, 0x38, 0x6c, 0xb0]);
        assert!(piece.scales.is_empty());
    }

    #[test]
    fn nvfp4_of_known_numbers() {
        // Under a scale of one: the first group's is 1, every value is a code's; the second's is
        // 0.5 by its largest, and 0.6 / 0.5 is nearer to 1 than to 1.5.
        let mut values = vec![0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0];
        values.extend([0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0]);
        values.extend([3.0, 0.6, -0.25]);
        values.extend([0.0; 13]);
        let piece = nvfp4(&values, 1.0);
        assert_eq!(piece.scales, [0x38, 0x30]);
        let first = [0x10, 0x32, 0x54, 0x76, 0x90, 0xba, 0xdc, 0xfe];
        assert_eq!(piece.codes[..8], first);
        assert_eq!(piece.codes[8..10], [0x27, 0x09]);
        assert!(piece.rounding.error() < 0.02);
    }

    #[test]
    fn the_largest_number_of_a_matrix_is_exact() {
        for largest in [1.0, 0.37, 1e-20, 3e4] {
            let mut values = [0.0_f32; GROUP];
            values[5] = -largest;
            for error in [
                fp8(&values, fp8_scale(largest)).rounding.error(),
                nvfp4(&values, nvfp4_scale(largest)).rounding.error(),
            ] {
                assert!(error < 1e-6, "{largest}: {error}");
            }
        }
    }

    #[test]
    fn zeros_and_tiny_numbers_are_divided_by_something() {
        for largest in [0.0, 1e-45, 1e-40] {
            let values = [largest; GROUP];
            for piece in [
                fp8(&values, fp8_scale(largest)),
                nvfp4(&values, nvfp4_scale(largest)),
            ] {
                assert!(piece.codes.iter().all(|code| *code == 0));
            }
        }
    }

    #[test]
    fn tiny_groups_beside_large_ones_keep_something() {
        // Two thousand times smaller than the matrix's largest over six: below the smallest scale.
        let scale = nvfp4_scale(6.0);
        let piece = nvfp4(&[scale * 0.004; GROUP], scale);
        assert_eq!(piece.scales, [1]);
        assert!(piece.rounding.error() < 0.05, "{}", piece.rounding.error());
    }

    #[test]
    fn errors_are_what_uniform_rounding_gives() {
        // Normal numbers would do as well: E4M3 keeps 4 bits of significand, so a relative error
        // of at most a sixteenth and about 2.6 % on average.
        let values: Vec<f32> = (0..4096)
            .map(|i| (crate::noise::uniform(crate::noise::mix(1, i)) as f32 - 0.5) * 2.0)
            .collect();
        let fp8 = fp8(&values, fp8_scale(1.0)).rounding.error();
        let nvfp4 = nvfp4(&values, nvfp4_scale(1.0)).rounding.error();
        assert!((0.015..0.035).contains(&fp8), "{fp8}");
        assert!((0.05..0.12).contains(&nvfp4), "{nvfp4}");
    }

    #[test]
    fn what_is_no_number_is_noticed() {
        let matrix = |values: [f32; 4]| Matrix {
            path: Path::new("x").into(),
            dtype: Dtype::F32,
            num_rows: 2,
            row_len: 2,
            data: values.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        assert_eq!(matrix([1.0, -3.0, 2.0, 0.0]).largest(), 3.0);
        assert!(matrix([1.0, f32::NAN, 2.0, 0.0]).largest().is_nan());
        assert!(
            matrix([1.0, 0.0, 2.0, f32::INFINITY])
                .largest()
                .is_infinite()
        );
    }
}
