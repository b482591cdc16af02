//! Which kernels an operation launches, over which buffers: decided here, carried out by the device
//! or, in tests, by the emulator.

use super::library::{FACTOR_BYTES, Product, WORKSPACE_BYTES};
use super::text::{self, ELEMENT_THREADS, Mode, Text, Tile, Unit, Work};
use crate::{Epilogue, Format, Matrix, NVFP4_GROUP};

/// What a kernel's argument is to the operation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Role {
    /// f32 inputs `[t, k]` (attention: the queries).
    X,
    /// The weights' codes (experts: of the first matrix).
    Words,
    /// Their block scales.
    BlockScales,
    /// Their scales.
    Scales,
    /// f32 `[n]`.
    Bias,
    /// Experts: codes of the second matrix.
    DownWords,
    /// Its block scales.
    DownBlockScales,
    /// Its scales.
    DownScales,
    /// Pairs `token * top_k + slot` in ascending order of their expert.
    Sorted,
    /// Where each expert's pairs begin in `Sorted`, then where the last one's end.
    Offsets,
    /// Experts of the pairs `[t, top_k]`.
    Experts,
    /// Their weights, f32.
    Weights,
    /// Attention: the pools, in words.
    Keys,
    /// As above.
    Values,
    /// The step's.
    TokenRows,
    /// The step's.
    TokenPositions,
    /// The step's.
    RowTokens,
    /// The step's.
    Tables,
    /// The result, f32.
    Out,
    /// Scratch: x in bf16.
    Rounded,
    /// Scratch: the partial sums of the slices, or of the splits.
    Partial,
    /// Scratch: between an expert's matrices, bf16, sorted.
    Hidden,
    /// Scratch: the experts' results, pair by pair.
    Pairs,
    /// Scratch: a library's weights in bf16, its factors behind them.
    Widened,
    /// Scratch: whatever a library does with it.
    Workspace,
}

/// One launch.
#[derive(Clone, Debug)]
pub struct Launch {
    /// The kernel.
    pub text: Text,
    /// Blocks.
    pub grid: [u32; 3],
    /// The kernel's pointers; the last is what it writes. Unused ones name something that is there.
    pub arguments: Vec<Role>,
    /// What follows them, by value.
    pub sizes: Vec<u32>,
}

/// Launches in order, and the scratch between them in bytes.
#[derive(Clone, Debug)]
pub struct Plan {
    /// In this order.
    pub launches: Vec<Launch>,
    /// Memory that only they see.
    pub scratch: Vec<(Role, usize)>,
}

/// The shape of a weight matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Shape {
    /// How it is stored.
    pub format: Format,
    /// Matrices in the stack.
    pub experts: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
}

impl From<&Matrix> for Shape {
    fn from(w: &Matrix) -> Self {
        Self {
            format: w.format,
            experts: w.experts,
            n: w.n,
            k: w.k,
        }
    }
}

impl Shape {
    /// Whether the kernels take it: rows of codes in whole copies of 16 bytes, rows of block scales
    /// in whole words.
    pub fn fits(self) -> bool {
        match self.format {
            Format::F32 | Format::F16 => false,
            Format::Bf16 => self.k.is_multiple_of(8),
            Format::Fp8 => self.k.is_multiple_of(16),
            Format::Nvfp4 => self.k.is_multiple_of(4 * NVFP4_GROUP),
        }
    }

    /// Whether x can lie in the order of wgmma.
    pub(super) fn has_whole_groups(self) -> bool {
        self.k.is_multiple_of(32)
    }

    /// Whether a library can multiply it: what it would be in bf16 is within bounds.
    pub fn fits_library(self) -> bool {
        self.fits() && self.experts == 1 && self.widened_bytes() <= MAX_WIDENED_BYTES
    }

    /// Bytes of scratch that a library's product takes, whatever the tokens: to plan memory by.
    pub fn library_bytes(self) -> usize {
        if self.fits_library() {
            WORKSPACE_BYTES + self.widened_bytes()
        } else {
            0
        }
    }

    fn widened_bytes(self) -> usize {
        match self.format {
            Format::Bf16 => 0,
            _ => 2 * self.n * self.k + FACTOR_BYTES,
        }
    }
}

const BIAS: u32 = 1;
const RELU2: u32 = 2;

/// Most bytes of a matrix that is widened for a library. The head of a large model would be more; it
/// seldom has tokens enough.
const MAX_WIDENED_BYTES: usize = 256 << 20;

/// Outputs of a block, whatever the tile.
const ROWS: usize = 128;

/// Half a GPU of whole products is worth more than the traffic of partial ones.
const ENOUGH_BLOCKS: usize = 64;

/// Most tokens of a block that rounds x itself; more are rounded beforehand, once.
const MAX_F32_TOKENS: usize = 16;

/// The tile for `tokens` tokens: the smallest that holds them.
fn tile(format: Format, tokens: usize) -> Tile {
    let tokens = tokens.next_power_of_two().clamp(8, 128);
    // Stages of 64 bytes a row where shared memory (48 KiB) has room for three.
    let (groups, stages) = match (format, tokens) {
        (Format::Bf16, 8..=64) => (1, 4),
        (Format::Bf16, _) => (1, 3),
        (Format::Fp8, 8) => (2, 4),
        (Format::Fp8, 16 | 32) => (2, 3),
        (Format::Fp8, 64) => (1, 5),
        (_, 8) => (4, 3),
        (_, 16 | 32) => (2, 5),
        (_, 64) => (2, 3),
        (_, _) => (1, 4),
    };
    Tile {
        unit: Unit::Mma,
        tokens,
        groups,
        stages,
    }
}

/// The tile for many tokens on Hopper.
fn wgmma_tile(format: Format) -> Tile {
    Tile {
        unit: Unit::Wgmma,
        tokens: 128,
        groups: 1,
        stages: if format == Format::Bf16 { 3 } else { 4 },
    }
}

/// Columns are added up in this many slices of this many columns: enough blocks to keep a large
/// GPU's memory busy with one tile of tokens (132 SMs, about three blocks each), and never a
/// function of the tokens, so that no other row changes a row's sum.
fn slices(shape: Shape) -> (usize, usize) {
    const BLOCKS: usize = 384;
    const COLUMNS: usize = 512;
    /// Whole stages of every tile.
    const UNIT: usize = 128;
    let wanted = (BLOCKS / shape.n.div_ceil(ROWS))
        .min(shape.k.div_ceil(COLUMNS))
        .clamp(1, 16);
    let columns = shape.k.div_ceil(wanted).next_multiple_of(UNIT);
    (shape.k.div_ceil(columns), columns)
}

/// Whether a product has so many tiles of 128 tokens that Hopper's instruction takes it.
pub fn is_large(t: usize, shape: Shape) -> bool {
    t > 64 && shape.n.div_ceil(ROWS) * t.div_ceil(128) >= ENOUGH_BLOCKS
}

/// `out[t, n] = epilogue(x[t, k] @ w[n, k]^T + bias)`; `unit` for as many tokens as it is good for.
///
/// # Panics
/// If the matrix does not fit, or is a stack.
pub fn linear(t: usize, shape: Shape, has_bias: bool, epilogue: Epilogue, unit: Unit) -> Plan {
    assert!(shape.fits(), "no tensor core product for {shape:?}");
    assert_eq!(shape.experts, 1, "a stack of matrices");
    let Shape { format, n, .. } = shape;
    let mut plan = Plan {
        launches: Vec::new(),
        scratch: Vec::new(),
    };
    if t == 0 {
        return plan;
    }
    let mut tile = tile(format, t);
    let (num_slices, slice_columns) = slices(shape);
    let num_tiles = n.div_ceil(ROWS) * t.div_ceil(tile.tokens);
    let is_large = is_large(t, shape);
    let mode = if is_large && unit == Unit::Wgmma && shape.has_whole_groups() {
        tile = wgmma_tile(format);
        Mode::OneSlice
    } else if num_slices == 1 {
        Mode::OneSlice
    } else if is_large {
        Mode::AllSlices
    } else {
        Mode::Partial
    };
    let x = plan.round(t, shape, tile);
    let bias = if has_bias { Role::Bias } else { Role::X };
    let flags = flags(has_bias, epilogue);
    let is_partial = mode == Mode::Partial;
    let scales = if format == Format::Bf16 {
        Role::X
    } else {
        Role::Scales
    };
    plan.launches.push(Launch {
        text: text::product(format, tile, x == Role::X, mode, Work::Dense),
        grid: [
            num_tiles as u32,
            if is_partial { num_slices } else { 1 } as u32,
            1,
        ],
        arguments: vec![
            x,
            Role::Words,
            if format == Format::Nvfp4 {
                Role::BlockScales
            } else {
                Role::X
            },
            scales,
            bias,
            Role::X,
            Role::X,
            if is_partial { Role::Partial } else { Role::Out },
        ],
        sizes: product_sizes(
            t,
            shape,
            (num_slices, slice_columns / tile.step()),
            flags,
            1,
            0,
        ),
    });
    if is_partial {
        plan.scratch.push((Role::Partial, num_slices * t * n * 4));
        plan.launches.push(Launch {
            text: text::reduce(format),
            grid: [(t * n).div_ceil(ELEMENT_THREADS as usize) as u32, 1, 1],
            arguments: vec![Role::Partial, scales, bias, Role::Out],
            sizes: vec![(t * n) as u32, n as u32, num_slices as u32, flags],
        });
    }
    plan
}

/// A product that a library makes between launches of ours.
#[derive(Clone, Debug)]
pub struct ByLibrary {
    /// Before it.
    pub before: Plan,
    /// The product.
    pub product: Product,
    /// Its weights, x, workspace and result.
    pub arguments: [Role; 4],
    /// After it.
    pub after: Plan,
}

/// [`linear()`] by a library, which knows neither packed weights nor our epilogues: weights are widened
/// before it, and what is left to do happens in place after it.
///
/// # Panics
/// If the matrix does not [fit](Shape::fits_library), or there are no tokens.
pub fn by_library(t: usize, shape: Shape, has_bias: bool, epilogue: Epilogue) -> ByLibrary {
    assert!(shape.fits_library(), "no library product for {shape:?}");
    assert!(t > 0, "a library's product of no tokens");
    let Shape { format, n, k, .. } = shape;
    let mut before = Plan {
        launches: Vec::new(),
        scratch: vec![(Role::Workspace, WORKSPACE_BYTES)],
    };
    before.round_by(t, shape, text::round(Format::Bf16, Unit::Mma));
    let is_scaled = format != Format::Bf16;
    if is_scaled {
        let num_vectors = n * k * format.code_bits() / 128;
        before.scratch.push((Role::Widened, shape.widened_bytes()));
        before.launches.push(Launch {
            text: text::widen(format),
            grid: [num_vectors.div_ceil(ELEMENT_THREADS as usize) as u32, 1, 1],
            arguments: vec![
                Role::Words,
                if format == Format::Nvfp4 {
                    Role::BlockScales
                } else {
                    Role::Words
                },
                Role::Scales,
                Role::Widened,
            ],
            sizes: vec![num_vectors as u32],
        });
    }
    let mut after = Plan {
        launches: Vec::new(),
        scratch: Vec::new(),
    };
    let flags = flags(has_bias, epilogue);
    if flags != 0 {
        // The sum of one slice, scaled already.
        let bias = if has_bias { Role::Bias } else { Role::Out };
        after.launches.push(Launch {
            text: text::reduce(Format::Bf16),
            grid: [(t * n).div_ceil(ELEMENT_THREADS as usize) as u32, 1, 1],
            arguments: vec![Role::Out, Role::Out, bias, Role::Out],
            sizes: vec![(t * n) as u32, n as u32, 1, flags],
        });
    }
    let w = if is_scaled {
        Role::Widened
    } else {
        Role::Words
    };
    ByLibrary {
        before,
        product: Product { t, n, k, is_scaled },
        arguments: [w, Role::Rounded, Role::Workspace, Role::Out],
        after,
    }
}

fn flags(has_bias: bool, epilogue: Epilogue) -> u32 {
    u32::from(has_bias) * BIAS + u32::from(epilogue == Epilogue::Relu2) * RELU2
}

/// `out[t, n] = sum over a token's experts of weight * down(relu(up(x))^2)`.
///
/// # Panics
/// If the matrices do not fit, or each other.
pub fn experts(t: usize, top_k: usize, up: Shape, down: Shape, unit: Unit) -> Plan {
    /// `MAX_TOP_K` in the text.
    const MAX_TOP_K: usize = 64;
    assert!(up.fits(), "no tensor core product for {up:?}");
    assert!(down.fits(), "no tensor core product for {down:?}");
    assert_eq!((up.experts, up.n), (down.experts, down.k), "up and down");
    assert!(top_k <= MAX_TOP_K, "{top_k} experts a token");
    let mut plan = Plan {
        launches: Vec::new(),
        scratch: Vec::new(),
    };
    if t == 0 {
        return plan;
    }
    let pairs = t * top_k;
    // Tiles that an expert of a quarter more than the mean fills: larger ones go half empty, smaller
    // ones read weights again.
    let tokens = (5 * pairs / (4 * up.experts)).clamp(8, 128);
    let most_tiles = |tile: Tile| {
        let at_most_partly_full = up.experts * (tile.tokens - 1);
        pairs.min((pairs + at_most_partly_full) / tile.tokens)
    };

    let is_large = tokens > 64 && unit == Unit::Wgmma;
    let tile_of = |shape: Shape| {
        if is_large && up.has_whole_groups() && down.has_whole_groups() {
            wgmma_tile(shape.format)
        } else {
            tile(shape.format, tokens)
        }
    };

    let (up_tile, down_tile) = (tile_of(up), tile_of(down));
    let down_order = text::order(down.format, down_tile.unit);
    let x = plan.round(t, up, up_tile);
    plan.launches.push(Launch {
        text: text::product(up.format, up_tile, x == Role::X, Mode::OneSlice, Work::Up),
        grid: [(most_tiles(up_tile) * up.n.div_ceil(ROWS)) as u32, 1, 1],
        arguments: vec![
            x,
            Role::Words,
            if up.format == Format::Nvfp4 {
                Role::BlockScales
            } else {
                Role::X
            },
            if up.format == Format::Bf16 {
                Role::X
            } else {
                Role::Scales
            },
            Role::X,
            Role::Sorted,
            Role::Offsets,
            Role::Hidden,
        ],
        sizes: product_sizes(pairs, up, (1, 0), RELU2, top_k, down_order),
    });
    plan.scratch.push((Role::Hidden, pairs * up.n * 2));

    plan.launches.push(Launch {
        text: text::product(down.format, down_tile, false, Mode::OneSlice, Work::Down),
        grid: [(most_tiles(down_tile) * down.n.div_ceil(ROWS)) as u32, 1, 1],
        arguments: vec![
            Role::Hidden,
            Role::DownWords,
            if down.format == Format::Nvfp4 {
                Role::DownBlockScales
            } else {
                Role::X
            },
            if down.format == Format::Bf16 {
                Role::X
            } else {
                Role::DownScales
            },
            Role::X,
            Role::Sorted,
            Role::Offsets,
            Role::Pairs,
        ],
        sizes: product_sizes(pairs, down, (1, 0), 0, top_k, 0),
    });
    plan.scratch.push((Role::Pairs, pairs * down.n * 4));

    plan.launches.push(Launch {
        text: text::combine(),
        grid: [
            down.n.div_ceil(ELEMENT_THREADS as usize) as u32,
            t as u32,
            1,
        ],
        arguments: vec![Role::Pairs, Role::Experts, Role::Weights, Role::Out],
        sizes: vec![down.n as u32, top_k as u32, up.experts as u32],
    });
    plan
}

/// Every text that a plan may name; those with `wgmma` in their names are for Hopper alone.
pub fn texts() -> Vec<Text> {
    let mut texts = vec![text::combine()];
    for format in [Format::Bf16, Format::Fp8, Format::Nvfp4] {
        texts.extend([Unit::Mma, Unit::Wgmma].map(|unit| text::round(format, unit)));
        texts.push(text::reduce(format));
        if format != Format::Bf16 {
            texts.push(text::widen(format));
        }
        for work in [Work::Dense, Work::Up, Work::Down] {
            let tile = wgmma_tile(format);
            texts.push(text::product(format, tile, false, Mode::OneSlice, work));
        }
        for tokens in [8, 16, 32, 64, 128] {
            let tile = tile(format, tokens);
            let is_x_f32 = tokens <= MAX_F32_TOKENS;
            let mut modes = vec![Mode::OneSlice, Mode::Partial];
            if tokens == 128 {
                modes.push(Mode::AllSlices);
            }
            for mode in modes {
                texts.push(text::product(format, tile, is_x_f32, mode, Work::Dense));
            }
            for (work, is_x_f32) in [(Work::Up, is_x_f32), (Work::Down, false)] {
                texts.push(text::product(format, tile, is_x_f32, Mode::OneSlice, work));
            }
        }
    }
    texts
}

impl Plan {
    /// Where the product finds x: as it is, or rounded beforehand.
    fn round(&mut self, t: usize, shape: Shape, tile: Tile) -> Role {
        if tile.tokens <= MAX_F32_TOKENS {
            return Role::X;
        }
        self.round_by(t, shape, text::round(shape.format, tile.unit));
        Role::Rounded
    }

    fn round_by(&mut self, t: usize, shape: Shape, text: Text) {
        let num_vectors = t * shape.k / 8;
        self.scratch.push((Role::Rounded, t * shape.k * 2));
        self.launches.push(Launch {
            text,
            grid: [num_vectors.div_ceil(ELEMENT_THREADS as usize) as u32, 1, 1],
            arguments: vec![Role::X, Role::Rounded],
            sizes: vec![num_vectors as u32],
        });
    }
}

fn product_sizes(
    tokens: usize,
    shape: Shape,
    (num_slices, slice_steps): (usize, usize),
    flags: u32,
    top_k: usize,
    order: u32,
) -> Vec<u32> {
    vec![
        tokens as u32,
        shape.n as u32,
        shape.k as u32,
        num_slices as u32,
        slice_steps as u32,
        flags,
        top_k as u32,
        shape.experts as u32,
        order,
    ]
}
