//! The texts: constants in front, what they use of the machine, the kernel.

use super::attention::AttentionShape;
use crate::attention::{SECOND, THIRD};
use crate::{Format, MambaShape};

const DEVICE: &str = include_str!("../../cuda/device.cuh");

/// A kernel as CUDA C++.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Text {
    /// The entry point, which also tells the constants apart.
    pub name: String,
    /// Threads of a block.
    pub num_threads: u32,
    constants: String,
    body: &'static str,
}

impl Text {
    /// What NVRTC compiles, and the emulator runs.
    pub fn source(&self) -> String {
        let Self {
            name,
            num_threads,
            constants,
            ..
        } = self;
        format!(
            "// units {num_threads}\n#define ENTRY {name}\n{DEVICE}\n{constants}\n{}",
            self.body
        )
    }
}

/// What a product is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Work {
    /// One matrix for all tokens.
    Dense,
    /// An expert's first matrix: rows of x by the sorted pairs, results rounded for `Down`.
    Up,
    /// An expert's second matrix: results go where the pair is.
    Down,
}

/// Which slices of the columns a block adds up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Mode {
    /// There is one.
    OneSlice,
    /// All of them, one after the other.
    AllSlices,
    /// One, into a partial that `tensor_reduce` adds to the others.
    Partial,
}

/// Which of the tensor cores' instructions multiplies.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Unit {
    /// `mma.sync`, a warp's: everywhere.
    Mma,
    /// `wgmma`, four warps': Hopper alone.
    Wgmma,
}

/// How a block is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Tile {
    pub(super) unit: Unit,
    /// Tokens of a block.
    pub(super) tokens: usize,
    /// Groups of 32 columns in a stage.
    pub(super) groups: usize,
    /// Stages in shared memory.
    pub(super) stages: usize,
}

impl Tile {
    /// Warps along the outputs, the tiles of 16 outputs of each, warps along the tokens.
    fn warps(self) -> (usize, usize, usize) {
        match (self.unit, self.tokens) {
            (Unit::Mma, 128) => (4, 2, 2),
            (Unit::Mma, _) => (4, 2, 1),
            (Unit::Wgmma, _) => (8, 1, 1),
        }
    }

    /// Columns of a stage.
    pub(super) fn step(self) -> usize {
        self.groups * 32
    }
}

pub(super) fn product(format: Format, tile: Tile, is_x_f32: bool, mode: Mode, work: Work) -> Text {
    let (format, format_constant) = format_names(format);
    let (mode, mode_constant) = match mode {
        Mode::OneSlice => ("", "ONE_SLICE"),
        Mode::AllSlices => ("_slices", "ALL_SLICES"),
        Mode::Partial => ("_partial", "PARTIAL"),
    };
    let (work, work_constant) = match work {
        Work::Dense => ("linear", "DENSE"),
        Work::Up => ("experts_up", "UP"),
        Work::Down => ("experts_down", "DOWN"),
    };
    let Tile {
        unit,
        tokens,
        groups,
        stages,
    } = tile;
    let (unit, unit_constant, body) = match unit {
        Unit::Mma => ("", "MMA", MMA),
        Unit::Wgmma => ("_wgmma", "WGMMA", WGMMA),
    };
    let (warps_n, tiles_n, warps_t) = tile.warps();
    Text {
        name: format!("tensor_{work}_{format}_{tokens}{unit}{mode}"),
        num_threads: (warps_n * warps_t * 32) as u32,
        constants: format!(
            "constexpr int BF16 = 0, FP8 = 1, NVFP4 = 2, FORMAT = {format_constant};
constexpr int MMA = 0, WGMMA = 1, UNIT = {unit_constant};
constexpr int ONE_SLICE = 0, ALL_SLICES = 1, PARTIAL = 2, MODE = {mode_constant};
constexpr int DENSE = 0, UP = 1, DOWN = 2, WORK = {work_constant};
constexpr int TOKENS = {tokens}, WARPS_N = {warps_n}, WARPS_T = {warps_t}, TILES_N = {tiles_n};
constexpr int GROUPS = {groups}, STAGES = {stages};
constexpr bool IS_X_F32 = {is_x_f32};"
        ),
        body,
    }
}

const MMA: &str = concat!(
    include_str!("../../cuda/tensor_decode.cuh"),
    include_str!("../../cuda/tensor_tile.cuh"),
    include_str!("../../cuda/tensor_product.cu")
);

const WGMMA: &str = concat!(
    include_str!("../../cuda/hopper.cuh"),
    include_str!("../../cuda/tensor_decode.cuh"),
    include_str!("../../cuda/tensor_tile.cuh"),
    include_str!("../../cuda/tensor_wgmma.cu")
);

/// How far apart the columns of a pair of weights lie, as they are decoded.
fn hop(format: Format) -> u32 {
    match format {
        Format::Fp8 => 2,
        Format::Nvfp4 => 4,
        _ => 1,
    }
}

/// The order of 32 columns that a product wants its x in (`paired` in the text).
pub(super) fn order(format: Format, unit: Unit) -> u32 {
    hop(format) + if unit == Unit::Wgmma { 16 } else { 0 }
}

pub(super) fn round(format: Format, unit: Unit) -> Text {
    let (hop, is_wgmma) = (hop(format), unit == Unit::Wgmma);
    Text {
        name: format!("tensor_round_{}", order(format, unit)),
        num_threads: ELEMENT_THREADS,
        constants: format!("constexpr int HOP = {hop};\nconstexpr bool IS_WGMMA = {is_wgmma};"),
        body: include_str!("../../cuda/tensor_round.cu"),
    }
}

pub(super) fn widen(format: Format) -> Text {
    let (format, constant) = format_names(format);
    Text {
        name: format!("tensor_widen_{format}"),
        num_threads: ELEMENT_THREADS,
        constants: format!("constexpr int BF16 = 0, FP8 = 1, NVFP4 = 2, FORMAT = {constant};"),
        body: concat!(
            include_str!("../../cuda/tensor_decode.cuh"),
            include_str!("../../cuda/tensor_widen.cu")
        ),
    }
}

pub(super) fn reduce(format: Format) -> Text {
    let (format, constant) = format_names(format);
    Text {
        name: format!("tensor_reduce_{format}"),
        num_threads: ELEMENT_THREADS,
        constants: format!("constexpr int BF16 = 0, FP8 = 1, NVFP4 = 2, FORMAT = {constant};"),
        body: include_str!("../../cuda/tensor_reduce.cu"),
    }
}

pub(super) fn combine() -> Text {
    Text {
        name: "tensor_combine".into(),
        num_threads: ELEMENT_THREADS,
        constants: String::new(),
        body: include_str!("../../cuda/tensor_combine.cu"),
    }
}

/// The recurrence over chunks of `SCAN_CHUNK` tokens, over states in f32 or in halves.
pub(super) fn scan(shape: &MambaShape, is_half: bool) -> Text {
    let MambaShape {
        heads,
        head_dim,
        groups,
        state,
        ..
    } = *shape;
    let half = if is_half { "_half" } else { "" };
    Text {
        name: format!("tensor_scan_{heads}_{groups}{half}"),
        num_threads: 128,
        constants: format!(
            "constexpr u32 HEADS = {heads}, GROUPS = {groups}, HEAD_DIM = {head_dim};
constexpr u32 STATE = {state};
constexpr bool IS_HALF = {is_half};"
        ),
        body: include_str!("../../cuda/tensor_scan.cu"),
    }
}

/// Attention by blocks of so many warps, within one split each or over all of them.
pub(super) fn attention(shape: &AttentionShape, warps: usize, is_split: bool) -> Text {
    let AttentionShape {
        kv_heads,
        head_dim,
        block_size,
        ..
    } = *shape;
    let group = shape.group();
    let (format, constant) = format_names(shape.format.codes());
    let split = if is_split { "_split" } else { "" };
    Text {
        name: format!(
            "tensor_attention_{format}_{kv_heads}_{group}_{head_dim}_{block_size}_{warps}{split}"
        ),
        num_threads: (warps * 32) as u32,
        constants: format!(
            "constexpr int BF16 = 0, FP8 = 1, FORMAT = {constant};
constexpr u32 KV_HEADS = {kv_heads}, GROUP = {group}, HEAD_DIM = {head_dim};
constexpr u32 BLOCK_SIZE = {block_size}, WARPS = {warps};
constexpr bool IS_SPLIT = {is_split};
constexpr u32 SECOND = {SECOND}, THIRD = {THIRD};"
        ),
        body: concat!(
            include_str!("../../cuda/tensor_attention.cuh"),
            include_str!("../../cuda/tensor_attention.cu")
        ),
    }
}

pub(super) fn attention_combine(head_dim: usize) -> Text {
    Text {
        name: format!("tensor_attention_combine_{head_dim}"),
        num_threads: ELEMENT_THREADS,
        constants: format!(
            "constexpr u32 HEAD_DIM = {head_dim}, SECOND = {SECOND}, THIRD = {THIRD};"
        ),
        body: concat!(
            include_str!("../../cuda/tensor_attention.cuh"),
            include_str!("../../cuda/tensor_attention_combine.cu")
        ),
    }
}

/// Threads of a block of the kernels that go element by element.
pub(super) const ELEMENT_THREADS: u32 = 256;

fn format_names(format: Format) -> (&'static str, &'static str) {
    match format {
        Format::Bf16 => ("bf16", "BF16"),
        Format::Fp8 => ("fp8", "FP8"),
        Format::Nvfp4 => ("nvfp4", "NVFP4"),
        Format::F32 | Format::F16 => unreachable!("`fits` refused it"),
    }
}
