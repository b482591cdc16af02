//! Parts of rows copied from one matrix into another.
//!
//! Shapes: f32 `[n, stride]` to f32 `[m, stride]`, of both the columns `first..first + width`; index
//! lists u32 `[p]`. Bytes: `8 p width`; bandwidth binds, or the launch: rows are few or short. Sixteen
//! bytes per access wherever all offsets allow it.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::Buffer;

/// Units of a cube.
const UNITS: u32 = 256;
/// Most cubes of a launch: each unit then walks on by the size of the grid.
const MAX_CUBES: usize = 8192;

/// Which rows go where, on the device.
#[derive(Clone, Debug)]
pub struct RowMoves {
    from: Buffer,
    to: Buffer,
    /// One more than the largest index of each list.
    bounds: [usize; 2],
}

impl RowMoves {
    /// Uploads `(from, to)` pairs. No two have the same `to`.
    pub fn upload(client: &Client, moves: &[(usize, usize)]) -> Self {
        let list = |of: fn(&(usize, usize)) -> usize| {
            let list: Vec<u32> = moves.iter().map(|pair| of(pair) as u32).collect();
            Buffer::upload(client, &list)
        };
        let bound =
            |of: fn(&(usize, usize)) -> usize| moves.iter().map(of).max().map_or(0, |max| max + 1);
        Self {
            from: list(|pair| pair.0),
            to: list(|pair| pair.1),
            bounds: [bound(|pair| pair.0), bound(|pair| pair.1)],
        }
    }

    /// `len` moves between matrices of `bounds` rows, at addresses that [`rewrite`](Self::rewrite)
    /// keeps. At first all are from row 0 to row 0.
    pub fn fixed(client: &Client, len: usize, bounds: [usize; 2]) -> Self {
        let zeros = vec![0_u32; len];
        Self {
            from: Buffer::upload(client, &zeros),
            to: Buffer::upload(client, &zeros),
            bounds,
        }
    }

    /// Puts other moves in place, and `filler` for those that are missing: it alone may come more than
    /// once, to a row that nobody reads.
    ///
    /// # Panics
    /// If there are more, or between rows beyond the bounds.
    pub fn rewrite(&self, client: &Client, moves: &[(usize, usize)], filler: (usize, usize)) {
        let (len, [from_bound, to_bound]) = (self.len(), self.bounds);
        assert!(moves.len() <= len, "{} of {len} moves", moves.len());
        let list = |of: fn(&(usize, usize)) -> usize, bound: usize| -> Vec<u32> {
            let filled = moves.iter().chain(std::iter::repeat(&filler)).take(len);
            let of = |pair| {
                let row = of(pair);
                assert!(row < bound, "row {row} of {bound}");
                row as u32
            };
            filled.map(of).collect()
        };
        self.from.write(client, &list(|pair| pair.0, from_bound));
        self.to.write(client, &list(|pair| pair.1, to_bound));
    }

    /// How many rows move.
    pub fn len(&self) -> usize {
        self.from.len()
    }

    /// Whether none does.
    pub fn is_empty(&self) -> bool {
        self.from.is_empty()
    }
}

/// Columns of a matrix of f32.
#[derive(Clone, Copy, Debug)]
pub struct Columns<'a> {
    /// The matrix.
    pub buffer: &'a Buffer,
    /// Columns of the matrix.
    pub stride: usize,
    /// The first that is meant.
    pub first: usize,
}

/// Copies `width` columns of some rows of `from` to rows of `to`, another buffer.
///
/// # Panics
/// If a row or column lies beyond its matrix.
pub fn copy_rows(
    client: &Client,
    from: Columns<'_>,
    to: Columns<'_>,
    width: usize,
    moves: &RowMoves,
) {
    for (columns, bound) in [from, to].iter().zip(moves.bounds) {
        let Columns {
            buffer,
            stride,
            first,
        } = columns;
        assert!(
            first + width <= *stride,
            "{width} columns from {first} of {stride}"
        );
        assert!(
            bound * stride <= buffer.len(),
            "{bound} rows of {stride} in {}",
            buffer.len()
        );
        assert!(
            u32::try_from(buffer.len()).is_ok(),
            "{} words to index",
            buffer.len()
        );
    }
    if moves.is_empty() || width == 0 {
        return;
    }
    let offsets = [from.stride, from.first, to.stride, to.first, width];
    let whole = [from.buffer.len(), to.buffer.len()];
    let lanes = if offsets
        .iter()
        .chain(&whole)
        .all(|offset| offset.is_multiple_of(4))
    {
        4
    } else {
        1
    };
    let len = moves.len() * width / lanes;
    let cubes = len.div_ceil(UNITS as usize).min(MAX_CUBES) as u32;
    // SAFETY: every row and column of the lists lies in its matrix, asserted above.
    unsafe {
        copy_columns::launch_unchecked(
            client,
            CubeCount::Static(cubes, 1, 1),
            CubeDim::new_1d(UNITS),
            lanes,
            from.buffer.vectors(lanes),
            to.buffer.vectors(lanes),
            moves.from.arg(),
            moves.to.arg(),
            from.stride / lanes,
            from.first / lanes,
            to.stride / lanes,
            to.first / lanes,
            width / lanes,
            len,
        );
    }
}

#[cube(launch_unchecked)]
fn copy_columns<N: Size>(
    from: &[Vector<f32, N>],
    to: &mut [Vector<f32, N>],
    from_rows: &[u32],
    to_rows: &[u32],
    from_stride: usize,
    from_first: usize,
    to_stride: usize,
    to_first: usize,
    width: usize,
    len: usize,
) {
    let stride = CUBE_COUNT_X as usize * CUBE_DIM_X as usize;
    let mut i = ABSOLUTE_POS_X as usize;
    while i < len {
        let row = i / width;
        let column = i % width;
        to[to_rows[row] as usize * to_stride + to_first + column] =
            from[from_rows[row] as usize * from_stride + from_first + column];
        i += stride;
    }
}
