//! Random inputs, the same on every machine, and their way onto a device.

use burn::tensor::{DType, Device, Tensor, TensorData};
use half::{bf16, f16};

use crate::{Layout, RowLayout};

/// Reproducible numbers (SplitMix64).
pub(super) struct Numbers(u64);

impl Numbers {
    pub(super) fn new(seed: u64) -> Self {
        Self(seed)
    }

    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Below `n`.
    pub(super) fn below(&mut self, n: usize) -> usize {
        (self.next() % n as u64) as usize
    }

    /// Uniform in `-1..1`.
    pub(super) fn signed(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1_u64 << 23) as f32 - 1.0
    }

    /// `len` numbers in `-scale..scale` as `dtype` can hold them.
    pub(super) fn vector(&mut self, len: usize, scale: f32, dtype: DType) -> Vec<f32> {
        (0..len)
            .map(|_| round(self.signed() * scale, dtype))
            .collect()
    }

    /// `0..n` in some order.
    pub(super) fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        for i in (1..n).rev() {
            order.swap(i, self.below(i + 1));
        }
        order
    }
}

/// The nearest number of a dtype.
pub(super) fn round(x: f32, dtype: DType) -> f32 {
    match dtype {
        DType::F32 => x,
        DType::F16 => f16::from_f32(x).to_f32(),
        DType::BF16 => bf16::from_f32(x).to_f32(),
        other => panic!("inputs are F32, F16 or BF16, not {other:?}"),
    }
}

/// Rounds to bf16 by way of f32, as a kernel does.
pub(super) fn bf16_round(x: f64) -> f64 {
    bf16::from_f32(x as f32).to_f64()
}

/// Exactly the same numbers, wider.
pub(super) fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// A tensor of these numbers.
pub(super) fn upload<const D: usize>(
    values: &[f32],
    shape: [usize; D],
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    let data = match dtype {
        DType::F32 => TensorData::new(values.to_vec(), shape),
        DType::F16 => TensorData::new(values.iter().map(|&x| f16::from_f32(x)).collect(), shape),
        DType::BF16 => TensorData::new(values.iter().map(|&x| bf16::from_f32(x)).collect(), shape),
        other => panic!("inputs are F32, F16 or BF16, not {other:?}"),
    };
    Tensor::from_data(data, (device, dtype))
}

/// Lays rows of `(start, len)` out over scattered blocks and slots. Returns the layout and the
/// numbers of blocks and slots; block 0, slot 0 and a few more belong to nobody.
pub(super) fn scatter(
    rows: &[(usize, usize)],
    block_size: usize,
    numbers: &mut Numbers,
) -> (Layout, usize, usize) {
    let needed: usize = rows
        .iter()
        .map(|(start, len)| (start + len).div_ceil(block_size))
        .sum();
    let num_blocks = needed + 3;
    let num_slots = rows.len() + 3;
    let mut blocks = numbers
        .permutation(num_blocks)
        .into_iter()
        .filter(|&block| block != 0);
    let mut slots = numbers
        .permutation(num_slots)
        .into_iter()
        .filter(|&slot| slot != 0);
    let mut first = 0;
    let rows = rows
        .iter()
        .map(|&(start, len)| {
            let tokens = first..first + len;
            first += len;
            RowLayout {
                tokens,
                start,
                slot: slots.next().expect("more slots than rows"),
                blocks: blocks
                    .by_ref()
                    .take((start + len).div_ceil(block_size))
                    .map(|block| block as u32)
                    .collect(),
                ..RowLayout::default()
            }
        })
        .collect();
    (Layout::new(rows, block_size), num_blocks, num_slots)
}
