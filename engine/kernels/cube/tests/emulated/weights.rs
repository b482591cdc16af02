//! Random numbers, and weights of every format beside what they are worth.

use cube_kernels::Format;
use cube_kernels::tensor_core::plan::Shape;

/// Numbers from a seed.
pub struct Random(u64);

impl Random {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e3779b97f4a7c15) | 1)
    }

    pub fn bits(&mut self) -> u32 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        (self.0.wrapping_mul(0x2545f4914f6cdd1d) >> 32) as u32
    }

    pub fn below(&mut self, end: u32) -> u32 {
        ((u64::from(self.bits()) * u64::from(end)) >> 32) as u32
    }

    /// From -1 to 1.
    pub fn signed(&mut self) -> f32 {
        f64::from(self.bits()).mul_add(2.0 / 4294967296.0, -1.0) as f32
    }

    pub fn values(&mut self, len: usize) -> Vec<f32> {
        (0..len).map(|_| self.signed()).collect()
    }
}

/// To nearest even, by the definition: the neighbour in bf16 that is closer, the even one of two.
pub fn to_bf16(value: f32) -> f64 {
    if !value.is_finite() {
        return f64::from(value);
    }
    let below = f32::from_bits(value.to_bits() & 0xffff_0000);
    let above = f64::from(f32::from_bits((value.to_bits() & 0xffff_0000) + 0x1_0000));
    let (value, below) = (f64::from(value), f64::from(below));
    let to_below = (value - below).abs();
    let to_above = (above - value).abs();
    let is_even = (below as f32).to_bits() & 0x1_0000 == 0;
    if to_below < to_above || (to_below == to_above && is_even) {
        below
    } else {
        above
    }
}

fn e4m3(code: u8) -> f64 {
    let sign = if code & 0x80 == 0 { 1.0 } else { -1.0 };
    let (exponent, fraction) = (i32::from(code >> 3 & 15), f64::from(code & 7) / 8.0);
    sign * if exponent == 0 {
        fraction * 2_f64.powi(-6)
    } else {
        (1.0 + fraction) * 2_f64.powi(exponent - 7)
    }
}

fn e2m1(code: u8) -> f64 {
    let magnitude = [0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0][usize::from(code & 7)];
    if code & 8 == 0 { magnitude } else { -magnitude }
}

/// A stack of matrices as bytes, and as numbers `[experts, n, k]` without the matrix's scale.
#[derive(Clone)]
pub struct Weights {
    pub words: Vec<u8>,
    pub block_scales: Vec<u8>,
    pub scales: Vec<f32>,
    pub values: Vec<f64>,
}

impl Weights {
    pub fn random(shape: Shape, random: &mut Random) -> Self {
        let Shape {
            format,
            experts,
            n,
            k,
        } = shape;
        let count = experts * n * k;
        let mut weights = Self {
            words: Vec::new(),
            block_scales: Vec::new(),
            scales: Vec::new(),
            values: Vec::new(),
        };
        // No two scales alike, none a power of two.
        let scale = |expert: usize| 0.37 + 0.11 * expert as f32;
        match format {
            Format::Bf16 => {
                for _ in 0..count {
                    let code = (random.signed().to_bits() >> 16) as u16;
                    weights.words.extend(code.to_le_bytes());
                    let value = f32::from_bits(u32::from(code) << 16);
                    weights.values.push(f64::from(value));
                }
            }
            Format::Fp8 => {
                for _ in 0..count {
                    // Every code but the two for NaN.
                    let code = (random.below(127) | random.below(2) << 7) as u8;
                    weights.words.push(code);
                    weights.values.push(e4m3(code));
                }
                weights.scales = (0..experts).map(scale).collect();
            }
            Format::Nvfp4 => {
                for _ in 0..count / 16 {
                    let block_scale = (random.below(127) | random.below(2) << 7) as u8;
                    weights.block_scales.push(block_scale);
                    for _ in 0..8 {
                        let pair = random.bits() as u8;
                        weights.words.push(pair);
                        for code in [pair & 15, pair >> 4] {
                            weights.values.push(e2m1(code) * e4m3(block_scale));
                        }
                    }
                }
                weights.scales = (0..experts).map(scale).collect();
            }
            Format::F32 | Format::F16 => unreachable!("not a format of tensor cores here"),
        }
        weights
    }

    pub fn scale(&self, expert: usize) -> f64 {
        self.scales
            .get(expert)
            .map_or(1.0, |&scale| f64::from(scale))
    }
}
