//! A weight matrix as the checkpoint stores it.

use cubecl::prelude::BufferArg;

use crate::Buffer;

/// How a weight is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Format {
    /// 32 bits.
    F32,
    /// IEEE half.
    F16,
    /// The upper half of an f32.
    Bf16,
    /// E4M3 codes, one f32 scale per matrix.
    Fp8,
    /// E2M1 codes, two a byte, the even column in the low nibble; an E4M3 scale per 16 columns, an
    /// f32 scale per matrix.
    Nvfp4,
}

impl Format {
    /// Bits of a stored code, scales apart.
    pub fn code_bits(self) -> usize {
        match self {
            Self::F32 => 32,
            Self::F16 | Self::Bf16 => 16,
            Self::Fp8 => 8,
            Self::Nvfp4 => 4,
        }
    }
}

/// Columns that share a scale in NVFP4.
pub const NVFP4_GROUP: usize = 16;

/// One `[n, k]` matrix, or a stack of them (`experts` of them, one after the other). Rows are
/// outputs, row-major, without padding.
#[derive(Clone, Debug)]
pub struct Matrix {
    /// How the codes are stored.
    pub format: Format,
    /// Matrices in the stack; 1 for a matrix of its own.
    pub experts: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// The codes as u32 words.
    pub words: Buffer,
    /// NVFP4: E4M3 scales `[experts, n, k / 16]` as u32 words.
    pub block_scales: Option<Buffer>,
    /// FP8 and NVFP4: f32 `[experts]`.
    pub scales: Option<Buffer>,
}

impl Matrix {
    /// # Panics
    /// If the buffers do not hold exactly such a stack, or a row is not whole words.
    pub fn check(&self) {
        let bits = self.format.code_bits();
        assert_eq!(
            self.k * bits % 32,
            0,
            "a row of {} {:?} is not whole words",
            self.k,
            self.format
        );
        let rows = self.experts * self.n;
        assert_eq!(self.words.len(), rows * (self.k * bits / 32), "code words");
        let is_scaled = matches!(self.format, Format::Fp8 | Format::Nvfp4);
        assert_eq!(self.scales.is_some(), is_scaled, "scales");
        if let Some(scales) = &self.scales {
            assert_eq!(scales.len(), self.experts, "one scale per matrix");
        }
        assert_eq!(
            self.block_scales.is_some(),
            self.format == Format::Nvfp4,
            "block scales"
        );
        if let Some(scales) = &self.block_scales {
            assert_eq!(self.k % NVFP4_GROUP, 0, "columns per scale");
            let bytes = rows * (self.k / NVFP4_GROUP);
            assert_eq!(scales.len(), bytes.div_ceil(4), "words of block scales");
        }
    }

    /// Scales per matrix and per block as a kernel's arguments; any buffer where the format has
    /// none, which its kernels then do not read.
    pub(crate) fn scale_args(&self) -> (BufferArg, BufferArg) {
        let or_any = |buffer: &Option<Buffer>| buffer.as_ref().unwrap_or(&self.words).arg();
        (or_any(&self.scales), or_any(&self.block_scales))
    }
}
