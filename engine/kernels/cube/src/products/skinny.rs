//! The product behind `linear` and `experts`: a few rows of x, f32, against a matrix that is read
//! once, `out[t, n] = epilogue(x[t, k] . w[n, k] + bias[n])`.
//!
//! **What binds it.** The weights' bytes, for a tile of tokens once; see benches/KERNELS.md. So a
//! unit has `rows` loads of 16 bytes under way for the next columns while it computes on these, and
//! what is computed must fit the time that the loads take: at 4.8 TB/s a Hopper issues 12
//! instructions a weight of bf16, 6 of FP8 and 3.5 of NVFP4. x lies in shared memory, and every
//! value read from there serves `rows` weights.
//!
//! **Layout.** A cube is 8 planes: `splits` share out the columns, `groups` the rows, `rows` each.
//! Of a row, a unit's columns are those of one load, then those that lie `splits * lanes` loads
//! further, and so on. The pieces of x of a load lie in shared memory so that the units of a plane
//! read them from different banks: piece `s` of load `v` at `v * pieces + (s ^ swizzle(v))`.
//!
//! **Order of sums.** A unit sums its columns in order, the units of a plane by a butterfly, planes
//! by number. It follows from k, the format and the device's lanes; `tile` and `rows` only say how
//! many such sums a unit does side by side. So a token's outputs are the same bits in any batch.
//!
//! **Lost.** `plane_sum` for each sum: ten instructions where the butterfly, which halves the number
//! of sums at every step, needs four. A block scale on each weight: 1 more instruction a weight
//! instead of one in 16. x from L1 without shared memory: the units of a plane are 32 to 128 bytes
//! apart, so that a load touches up to 32 lines. Split-K over cubes: a second launch, which costs
//! more than what the small matrices that need it take; they get fewer rows a unit instead.
#![allow(unsafe_code)]
// The kernel language has neither of the shorter ways.
#![allow(clippy::manual_is_multiple_of, clippy::trivially_copy_pass_by_ref)]

use cubecl::prelude::*;

use crate::decode::{bf16_rounded, e4m3, per_word, unit, weights};
use crate::{Arithmetic, Buffer, Client, Epilogue, Format, Matrix, NVFP4_GROUP};

/// Planes of a cube.
const PLANES: usize = 8;
/// Cubes that a multiprocessor should get: fewer than two leave its loads waiting for each other.
const MIN_CUBES: usize = 2;
/// Most tokens of a tile.
pub(super) const MAX_TILE: usize = 8;

/// Which rows of x meet which matrix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Source {
    /// Token `i` of the first.
    Dense,
    /// Pair `i` of token `i / share` and expert `index[i]`; none if that is past the last.
    Pair,
    /// Tiles of pairs that have an expert in common, as `group` lists them in `index`.
    Tile,
}

/// What a kernel is compiled for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Plan {
    source: Source,
    format: Format,
    is_rounded: bool,
    epilogue: Epilogue,
    has_bias: bool,
    /// Units of a plane.
    lanes: usize,
    /// Words of a load.
    load: usize,
    splits: usize,
    groups: usize,
    rows: usize,
    tile: usize,
}

impl Plan {
    /// Columns of a load.
    fn columns(&self) -> usize {
        self.load * per_word(self.format)
    }

    /// Columns of a piece of x.
    fn piece(&self) -> usize {
        self.columns().min(4)
    }

    /// Pieces of a load.
    fn pieces(&self) -> usize {
        self.columns() / self.piece()
    }

    /// Loads of a row that a cube takes at a time.
    fn chunk(&self) -> usize {
        self.splits * self.lanes
    }

    /// Sums that a unit does.
    fn sums(&self) -> usize {
        self.rows * self.tile
    }
}

/// A product to launch.
pub(super) struct Product<'a> {
    pub(super) w: &'a Matrix,
    pub(super) x: &'a Buffer,
    pub(super) bias: Option<&'a Buffer>,
    pub(super) out: &'a Buffer,
    pub(super) arithmetic: Arithmetic,
    pub(super) epilogue: Epilogue,
    pub(super) source: Source,
    /// Expert ids of `Pair`, tiles of `Tile`.
    pub(super) index: Option<&'a Buffer>,
    /// Pairs by expert of `Tile`.
    pub(super) order: Option<&'a Buffer>,
    /// Pairs that read the same row of x; 1 for `Dense`.
    pub(super) share: usize,
    /// Rows of out: tokens or pairs.
    pub(super) num_out: usize,
    /// Tiles, and the tokens of each.
    pub(super) num_tiles: usize,
    pub(super) tile: usize,
}

impl Product<'_> {
    pub(super) fn launch(&self, client: &Client) {
        let Matrix { n, k, format, .. } = *self.w;
        if n == 0 || self.num_tiles == 0 {
            return;
        }
        let plan = self.plan(client);
        let blocks = n.div_ceil(plan.rows * plan.groups) as u32;
        let (scales, block_scales) = self.w.scale_args();
        let or_any = |buffer: Option<&Buffer>| buffer.unwrap_or(self.x).arg();
        // SAFETY: rows and columns past the matrix are neither read nor written, tokens past the
        // tile neither, and the callers check the buffers against the shapes.
        unsafe {
            product::launch_unchecked(
                client,
                CubeCount::Static(self.num_tiles as u32, blocks, 1),
                CubeDim::new_2d(plan.lanes as u32, PLANES as u32),
                plan.load,
                plan.piece(),
                self.w.words.vectors(plan.load),
                block_scales,
                scales,
                or_any(self.bias),
                self.x.vectors(plan.piece()),
                or_any(self.index),
                or_any(self.order),
                self.out.arg(),
                n as u32,
                (k / plan.columns()) as u32,
                self.num_out as u32,
                self.share as u32,
                (self.w.experts - 1) as u32,
                Plan { format, ..plan },
            );
        }
    }

    fn plan(&self, client: &Client) -> Plan {
        let Matrix { n, k, format, .. } = *self.w;
        let hardware = &client.properties().hardware;
        let words = k / per_word(format);
        // 16 bytes, where rows are made of them.
        let load = [4, 2, 1]
            .into_iter()
            .find(|load| words.is_multiple_of(*load))
            .expect("1 divides");
        let mut plan = Plan {
            source: self.source,
            format,
            is_rounded: self.arithmetic.is_rounded(),
            epilogue: self.epilogue,
            has_bias: self.bias.is_some(),
            lanes: hardware.plane_size_max as usize,
            load,
            splits: 1,
            groups: PLANES,
            rows: match hardware.plane_size_max {
                // A processor in disguise, on which tests run: what is unrolled it compiles slowly.
                ..32 => 2,
                _ if self.tile > 2 => 4,
                _ => 8,
            },
            tile: self.tile,
        };
        plan.splits = splits(words / load, format, plan.lanes);
        plan.groups = PLANES / plan.splits;
        let min_cubes = MIN_CUBES * hardware.num_streaming_multiprocessors.unwrap_or(1) as usize;
        let cubes = |rows: usize| self.num_tiles * n.div_ceil(rows * plan.groups);
        while plan.rows > 1 && cubes(plan.rows) < min_cubes {
            plan.rows /= 2;
        }
        plan
    }
}

/// Planes that share out a row of `loads` loads: as many as keep 2048 columns of x a token in
/// shared memory, and fewer where the last chunk would leave more than a fifth of all loads empty.
fn splits(loads: usize, format: Format, lanes: usize) -> usize {
    let most = match format {
        Format::F32 | Format::F16 | Format::Bf16 => 8,
        Format::Fp8 => 4,
        Format::Nvfp4 => 2,
    };
    let mut splits = most;
    while splits > 1 {
        let chunk = splits * lanes;
        if loads * 5 >= loads.div_ceil(chunk) * chunk * 4 {
            break;
        }
        splits /= 2;
    }
    splits
}

#[cube(launch_unchecked)]
fn product<N: Size, P: Size>(
    words: &[Vector<u32, N>],
    block_scales: &[u32],
    scales: &[f32],
    bias: &[f32],
    x: &[Vector<f32, P>],
    index: &[u32],
    order: &[u32],
    out: &mut [f32],
    num_rows: u32,
    loads: u32,
    num_out: u32,
    share: u32,
    last_expert: u32,
    #[comptime] plan: Plan,
) {
    let tile = comptime!(plan.tile);
    let rows = comptime!(plan.rows);
    let pieces = comptime!(plan.pieces());
    let lane = UNIT_POS_X;
    let split = UNIT_POS_Y % comptime!(plan.splits as u32);
    let group = UNIT_POS_Y / comptime!(plan.splits as u32);

    // The tile: its expert, and where its rows of x start.
    let mut expert = 0u32;
    let mut count = 1u32;
    let mut x_rows = Array::<u32>::new(tile);
    if comptime!(plan.source == Source::Tile) {
        let at = (CUBE_POS_X * 3) as usize;
        expert = index[at];
        count = index[at + 2];
        let start = index[at + 1];
        #[unroll]
        for token in 0..tile {
            if (token as u32) < count {
                x_rows[token] = order[(start as usize) + token] / share;
            }
        }
    } else if comptime!(plan.source == Source::Pair) {
        let chosen = index[CUBE_POS_X as usize];
        expert = u32::min(chosen, last_expert);
        if chosen > last_expert {
            count = 0u32;
        }
        x_rows[0] = CUBE_POS_X / share;
    } else {
        let start = CUBE_POS_X * comptime!(tile as u32);
        count = u32::min(num_out - start, comptime!(tile as u32));
        #[unroll]
        for token in 0..tile {
            x_rows[token] = start + (token as u32);
        }
    }
    #[unroll]
    for token in 0..tile {
        x_rows[token] *= loads * comptime!(pieces as u32);
    }
    // A tile that the device did not fill, or an expert that is elsewhere.
    if count == 0 {
        terminate!();
    }

    let first_row = (CUBE_POS_Y * comptime!(plan.groups as u32) + group) * comptime!(rows as u32);
    let first_load = split * comptime!(plan.lanes as u32) + lane;
    let mut at = Array::<u32>::new(rows);
    #[unroll]
    for row in 0..rows {
        // Rows past the end repeat the last, and are not stored.
        let inside = u32::min(first_row + (row as u32), num_rows - 1);
        at[row] = (expert * num_rows + inside) * loads + first_load;
    }

    let chunk = comptime!(plan.chunk() as u32);
    let mut staged =
        Shared::<[Vector<f32, P>]>::new_slice(comptime!(plan.chunk() * plan.pieces() * plan.tile));
    let place = ((split * comptime!(plan.lanes as u32) + lane) as usize) * pieces;
    // Lanes are a multiple of 8, so the split changes nothing.
    let swizzle = swizzle(lane, plan);

    let mut sums = Array::<f32>::new(comptime!(plan.sums()));
    let mut next = Array::<Vector<u32, N>>::new(rows);
    if first_load < loads {
        fetch::<N>(words, &at, &mut next, 0u32, rows);
    }

    let mut first = 0u32;
    while first < loads {
        let mut now = Array::<Vector<u32, N>>::new(rows);
        #[unroll]
        for row in 0..rows {
            now[row] = next[row];
        }
        let mut scale = Array::<u32>::new(rows);
        if comptime!(plan.format == Format::Nvfp4) && first + first_load < loads {
            fetch_scales(block_scales, &at, &mut scale, first, plan);
        }
        // Past the end of the row the codes of the last load stay: they meet zeros.
        if first + chunk + first_load < loads {
            fetch::<N>(words, &at, &mut next, first + chunk, rows);
        }

        stage::<P>(x, &mut staged, &x_rows, count, first, loads, plan);
        sync_cube();
        accumulate::<N, P>(
            &now, &scale, &staged, &mut sums, count, place, swizzle, plan,
        );
        sync_cube();
        first += chunk;
    }

    // Across the units of a plane, then across the planes of a row.
    let total = comptime!(plan.sums());
    let mut of_planes = Shared::<[f32]>::new_slice(comptime!(PLANES * plan.sums()));
    let batch = comptime!(plan.sums().min(plan.lanes));
    #[unroll]
    for from in 0..comptime!(total / batch) {
        let sum = butterfly(&mut sums, comptime!(from * batch), batch, lane, plan.lanes);
        let width = comptime!((plan.lanes / batch) as u32);
        if lane % width == 0 {
            let at = comptime!(from * batch) + ((lane / width) as usize);
            of_planes[(UNIT_POS_Y as usize) * total + at] = sum;
        }
    }
    sync_cube();

    let mut at = UNIT_POS_Y * comptime!(plan.lanes as u32) + lane;
    while at < comptime!((plan.groups * plan.sums()) as u32) {
        let of_group = at / comptime!(total as u32);
        let token = at % comptime!(tile as u32);
        let row = (CUBE_POS_Y * comptime!(plan.groups as u32) + of_group) * comptime!(rows as u32)
            + at % comptime!(total as u32) / comptime!(tile as u32);
        if row < num_rows && token < count {
            let from = (of_group * comptime!((plan.splits * total) as u32)
                + at % comptime!(total as u32)) as usize;
            let mut sum = of_planes[from];
            #[unroll]
            for plane in 1..comptime!(plan.splits) {
                sum += of_planes[from + comptime!(plane * total)];
            }
            let mut value = sum * comptime!(unit(plan.format));
            if comptime!(matches!(plan.format, Format::Fp8 | Format::Nvfp4)) {
                value *= scales[expert as usize];
            }
            if comptime!(plan.has_bias) {
                value += bias[row as usize];
            }
            if comptime!(plan.epilogue == Epilogue::Relu2) {
                let positive = select(value > 0.0, value, 0.0f32);
                value = positive * positive;
            }
            let out_row = if comptime!(plan.source == Source::Tile) {
                order[(index[(CUBE_POS_X * 3 + 1) as usize] + token) as usize]
            } else {
                CUBE_POS_X * comptime!(tile as u32) + token
            };
            out[(out_row * num_rows + row) as usize] = value;
        }
        at += comptime!((PLANES * plan.lanes) as u32);
    }
}

/// The codes of a unit's rows, `first` loads on.
#[cube]
fn fetch<N: Size>(
    words: &[Vector<u32, N>],
    at: &Array<u32>,
    to: &mut Array<Vector<u32, N>>,
    first: u32,
    #[comptime] rows: usize,
) {
    #[unroll]
    for row in 0..rows {
        to[row] = words[(at[row] + first) as usize];
    }
}

/// Their block scales, as codes: of the first 16 columns in the low byte.
#[cube]
fn fetch_scales(
    block_scales: &[u32],
    at: &Array<u32>,
    to: &mut Array<u32>,
    first: u32,
    #[comptime] plan: Plan,
) {
    let columns = comptime!(plan.columns());
    #[unroll]
    for row in 0..comptime!(plan.rows) {
        let load = at[row] + first;
        if comptime!(columns > NVFP4_GROUP) {
            // Two scales a load: rows are whole loads, so both lie in one word.
            to[row] = block_scales[(load / 2) as usize] >> (load % 2 * 16);
        } else {
            let group = load / comptime!((NVFP4_GROUP / columns) as u32);
            to[row] = block_scales[(group / 4) as usize] >> (group % 4 * 8);
        }
    }
}

/// The columns of x of one chunk, for every token of the tile; zeros where there are none.
#[cube]
fn stage<P: Size>(
    x: &[Vector<f32, P>],
    staged: &mut Shared<[Vector<f32, P>]>,
    x_rows: &Array<u32>,
    count: u32,
    first: u32,
    loads: u32,
    #[comptime] plan: Plan,
) {
    let pieces = comptime!(plan.pieces() as u32);
    let of_chunk = comptime!(plan.chunk() as u32 * plan.pieces() as u32);
    let units = comptime!((PLANES * plan.lanes) as u32);
    let inside = (loads - first) * pieces;
    #[unroll]
    for step in 0..comptime!(of_chunk.div_ceil(units)) {
        let at = UNIT_POS_Y * comptime!(plan.lanes as u32) + UNIT_POS_X + comptime!(step * units);
        if comptime!(of_chunk.is_multiple_of(units)) || at < of_chunk {
            let load = at / pieces;
            let place = load * pieces + ((at % pieces) ^ swizzle(load, plan));
            let from = first * pieces + at;
            #[unroll]
            for token in 0..comptime!(plan.tile) {
                if comptime!(token == 0) || (token as u32) < count {
                    let mut piece = Vector::<f32, P>::new(0.0f32);
                    if at < inside {
                        piece = x[(x_rows[token] + from) as usize];
                    }
                    if plan.is_rounded {
                        #[unroll]
                        for column in 0..P::value() {
                            piece.insert(column, bf16_rounded(piece.extract(column)));
                        }
                    }
                    staged[(place + comptime!(token as u32) * of_chunk) as usize] = piece;
                }
            }
        }
    }
}

/// What the place of a load's pieces is mixed with: 8 units read 16 bytes each at a time.
#[cube]
fn swizzle(load: u32, #[comptime] plan: Plan) -> u32 {
    (load / comptime!((8 / plan.pieces()).max(1) as u32)) % comptime!(plan.pieces() as u32)
}

/// Adds the products of one chunk to a unit's sums.
#[cube]
fn accumulate<N: Size, P: Size>(
    words: &Array<Vector<u32, N>>,
    scale: &Array<u32>,
    staged: &Shared<[Vector<f32, P>]>,
    sums: &mut Array<f32>,
    count: u32,
    place: usize,
    swizzle: u32,
    #[comptime] plan: Plan,
) {
    let rows = comptime!(plan.rows);
    let tile = comptime!(plan.tile);
    let pieces = comptime!(plan.pieces());
    let of_chunk = comptime!(plan.chunk() * plan.pieces());
    let is_blocked = comptime!(plan.format == Format::Nvfp4);
    // Pieces under one block scale.
    let block = comptime!(if is_blocked {
        plan.pieces().min(NVFP4_GROUP / plan.piece())
    } else {
        plan.pieces()
    });
    #[unroll]
    for at in 0..comptime!(pieces / block) {
        let mut parts = Array::<f32>::new(comptime!(plan.sums()));
        #[unroll]
        for of_block in 0..block {
            let piece = comptime!(at * block + of_block);
            let mut values = Array::<Vector<f32, P>>::new(rows);
            #[unroll]
            for row in 0..rows {
                values[row] = weights::<N, P>(words[row], piece, plan.format);
            }
            let here = place + (((piece as u32) ^ swizzle) as usize);
            #[unroll]
            for token in 0..tile {
                if comptime!(token == 0) || (token as u32) < count {
                    let columns = staged[here + comptime!(token * of_chunk)];
                    #[unroll]
                    for row in 0..rows {
                        let sum = comptime!(row * tile + token);
                        #[unroll]
                        for column in 0..P::value() {
                            let (weight, value) =
                                (values[row].extract(column), columns.extract(column));
                            if comptime!(is_blocked) {
                                parts[sum] = fma(weight, value, parts[sum]);
                            } else {
                                sums[sum] = fma(weight, value, sums[sum]);
                            }
                        }
                    }
                }
            }
        }
        if comptime!(is_blocked) {
            #[unroll]
            for row in 0..rows {
                let factor = e4m3(scale[row], at);
                #[unroll]
                for token in 0..tile {
                    let sum = comptime!(row * tile + token);
                    sums[sum] = fma(factor, parts[sum], sums[sum]);
                }
            }
        }
    }
}

/// Sums `many` values over the units of a plane; unit `i` gets value `i * many / lanes`. The tree of
/// each sum is that of a butterfly over all units, whatever `many` is.
#[cube]
fn butterfly(
    values: &mut Array<f32>,
    #[comptime] from: usize,
    #[comptime] many: usize,
    lane: u32,
    #[comptime] lanes: usize,
) -> f32 {
    let steps = comptime!(lanes.ilog2());
    #[unroll]
    for step in 0..steps {
        let distance = comptime!((lanes as u32 / 2) >> step);
        let left = comptime!(many >> step);
        if comptime!(left > 1) {
            let half = comptime!(left / 2);
            let is_upper = lane & distance != 0;
            #[unroll]
            for at in 0..half {
                let (low, high) = (values[from + at], values[from + at + half]);
                let kept = select(is_upper, high, low);
                let given = select(is_upper, low, high);
                values[from + at] = kept + plane_shuffle_xor(given, distance);
            }
        } else {
            values[from] = values[from] + plane_shuffle_xor(values[from], distance);
        }
    }
    values[from]
}
