//! Random stacks of matrices in every format, and what their codes say in f64.

use cube_kernels::{Buffer, Client, Format, Matrix, NVFP4_GROUP};
use half::{bf16, f16};

pub(crate) const FORMATS: [Format; 5] = [
    Format::F32,
    Format::F16,
    Format::Bf16,
    Format::Fp8,
    Format::Nvfp4,
];

/// A fixed sequence of numbers from a seed (xorshift64*).
pub(crate) struct Random(u64);

impl Random {
    pub(crate) fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub(crate) fn bits(&mut self) -> u32 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 32) as u32
    }

    /// Between -1 and 1.
    pub(crate) fn value(&mut self) -> f32 {
        self.bits() as f32 / (1_u64 << 31) as f32 - 1.0
    }

    pub(crate) fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.value()).collect()
    }
}

/// A stack and its values, `[experts, n, k]`.
pub(crate) struct Weights {
    pub(crate) matrix: Matrix,
    pub(crate) values: Vec<f64>,
}

impl Weights {
    /// Any code that is a number may come.
    pub(crate) fn random(
        client: &Client,
        random: &mut Random,
        format: Format,
        [experts, n, k]: [usize; 3],
    ) -> Self {
        let len = experts * n * k;
        let mut codes = Bits::default();
        let mut values = Vec::with_capacity(len);
        for _ in 0..len {
            let (code, value) = match format {
                Format::F32 => {
                    let value = random.value();
                    (value.to_bits(), f64::from(value))
                }
                Format::F16 => {
                    let value = f16::from_f32(random.value());
                    (u32::from(value.to_bits()), f64::from(value))
                }
                Format::Bf16 => {
                    let value = bf16::from_f32(random.value());
                    (u32::from(value.to_bits()), f64::from(value))
                }
                Format::Fp8 => {
                    let code = e4m3_code(random);
                    (code, e4m3(code))
                }
                Format::Nvfp4 => {
                    let code = random.bits() & 15;
                    (code, e2m1(code))
                }
            };
            codes.push(code, format.code_bits());
            values.push(value);
        }
        let mut scale = |_| 0.01 + random.value().abs() / 100.0;
        let scales: Vec<f32> = (0..experts).map(&mut scale).collect();
        let mut block_codes = Bits::default();
        if format == Format::Nvfp4 {
            for group in values.chunks_mut(NVFP4_GROUP) {
                let code = e4m3_code(random) & 0x7f;
                block_codes.push(code, 8);
                for value in group {
                    *value *= e4m3(code);
                }
            }
        }
        let is_scaled = matches!(format, Format::Fp8 | Format::Nvfp4);
        if is_scaled {
            for (expert, matrix) in values.chunks_mut(n * k).enumerate() {
                let scale = f64::from(scales[expert]);
                for value in matrix {
                    *value *= scale;
                }
            }
        }
        let matrix = Matrix {
            format,
            experts,
            n,
            k,
            words: Buffer::upload(client, &codes.words),
            block_scales: (format == Format::Nvfp4)
                .then(|| Buffer::upload(client, &block_codes.words)),
            scales: is_scaled.then(|| Buffer::upload(client, &scales)),
        };
        Self { matrix, values }
    }

    /// Row `row` of expert `expert`.
    pub(crate) fn row(&self, expert: usize, row: usize) -> &[f64] {
        let Matrix { n, k, .. } = self.matrix;
        &self.values[(expert * n + row) * k..][..k]
    }
}

/// Codes in words, the first in the low bits.
#[derive(Default)]
struct Bits {
    words: Vec<u32>,
    filled: usize,
}

impl Bits {
    fn push(&mut self, code: u32, bits: usize) {
        if self.filled.is_multiple_of(32) {
            self.words.push(0);
        }
        *self.words.last_mut().expect("pushed above") |= code << (self.filled % 32);
        self.filled += bits;
    }
}

/// Any but the two that are no numbers.
fn e4m3_code(random: &mut Random) -> u32 {
    loop {
        let code = random.bits() & 0xff;
        if code & 0x7f != 0x7f {
            return code;
        }
    }
}

pub(crate) fn e4m3(code: u32) -> f64 {
    let (exponent, mantissa) = ((code >> 3 & 15) as i32, f64::from(code & 7));
    let magnitude = match exponent {
        0 => mantissa / 8.0 * 2_f64.powi(-6),
        _ => (1.0 + mantissa / 8.0) * 2_f64.powi(exponent - 7),
    };
    if code & 0x80 == 0 {
        magnitude
    } else {
        -magnitude
    }
}

fn e2m1(code: u32) -> f64 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][(code & 7) as usize];
    if code & 8 == 0 { magnitude } else { -magnitude }
}
