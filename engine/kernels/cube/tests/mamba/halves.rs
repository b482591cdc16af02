//! States kept in halves: pools of them, and how f64 is rounded to them.

use cube_kernels::{Buffer, Client, MambaShape, StateFormat};
use half::f16;

use crate::common::{self, Numbers};
use crate::scan::{Case, bits};
use crate::states::{self, SMALL};

/// A pool as the device has it.
pub(crate) fn upload(client: &Client, pool: &[f32], format: StateFormat) -> Buffer {
    match format {
        StateFormat::F32 => Buffer::upload(client, pool),
        StateFormat::F16 { .. } => Buffer::upload(client, &packed(pool)),
    }
}

/// And back.
pub(crate) fn read(client: &Client, pool: &Buffer, format: StateFormat) -> Vec<f32> {
    match format {
        StateFormat::F32 => pool.read(client),
        StateFormat::F16 { .. } => unpacked(&pool.read::<u32>(client)),
    }
}

pub(crate) fn packed(pool: &[f32]) -> Vec<u32> {
    let half = |x: f32| u32::from(f16::from_f32(x).to_bits());
    pool.chunks(2)
        .map(|pair| half(pair[0]) | half(pair[1]) << 16)
        .collect()
}

pub(crate) fn unpacked(words: &[u32]) -> Vec<f32> {
    words
        .iter()
        .flat_map(|word| [*word as u16, (word >> 16) as u16])
        .map(|bits| f16::from_bits(bits).to_f32())
        .collect()
}

/// Rounds a pool's numbers to halves, as good as any.
pub(crate) fn to_halves(pool: &mut [f32]) {
    for x in pool {
        *x = f16::from_f32(*x).to_f32();
    }
}

pub(crate) fn scramble(mut x: u32) -> u32 {
    x = (x ^ (x >> 16)).wrapping_mul(0x7feb_352d);
    x = (x ^ (x >> 15)).wrapping_mul(0x846c_a68b);
    x ^ (x >> 16)
}

/// Rounds a head's state `[rows, columns]` as it is after the token at `position`.
pub(crate) fn round(state: &mut [f64], columns: usize, seed: u32, head: usize, position: usize) {
    assert!(columns.is_multiple_of(2), "words of a row");
    let stream = scramble(scramble(seed).wrapping_add(head as u32));
    let key = scramble(stream.wrapping_add(scramble(position as u32)));
    for (at, x) in state.iter_mut().enumerate() {
        let word = scramble(key.wrapping_add(at as u32 / 2));
        let noise = (word >> (at % 2 * 16) & 0xffff) >> 3;
        *x = rounded(*x, noise);
    }
}

/// Up if the part of a step that is left and the noise make one together.
fn rounded(x: f64, noise: u32) -> f64 {
    let size = if x.is_nan() { x } else { x.abs().min(65504.0) };
    let step = (size.max(1.0 / 16384.0).log2().floor() - 10.0).exp2();
    let steps = (size / step).floor();
    let left = ((size / step - steps) * 8192.0) as u32;
    (steps + f64::from(u8::from(left + noise >= 8192))) * step * x.signum()
}

/// All but a few are the same, and those are neighbours: f32 and f64 differ by less than the noise has
/// bits, but may fall on either side of it.
fn assert_halves(got: &[f32], want: &[f64], what: &str) {
    let mut num_others = 0;
    for (&got, &want) in got.iter().zip(want) {
        assert_eq!(got.is_nan(), want.is_nan(), "{what}: {got} for {want}");
        if want.is_nan() || f64::from(got) == want {
            continue;
        }
        let step = (want.abs().max(1.0 / 16384.0).log2().floor() - 10.0).exp2();
        let error = (f64::from(got) - want).abs();
        assert!(error <= step, "{what}: {got} for {want}");
        num_others += 1;
    }
    assert!(num_others * 200 < got.len(), "{what}: {num_others} differ");
}

const SHAPES: [MambaShape; 3] = [
    SMALL,
    MambaShape {
        heads: 2,
        head_dim: 80,
        groups: 1,
        state: 8,
        ..SMALL
    },
    // Rows of a word and a half of a vector.
    MambaShape {
        heads: 4,
        head_dim: 6,
        groups: 4,
        state: 18,
        ..SMALL
    },
];

#[test]
fn a_token_rounds_the_formula() {
    let Some(client) = common::client() else {
        return;
    };
    for (at, shape) in SHAPES.into_iter().enumerate() {
        let numbers = &mut Numbers::new(40 + at as u64);
        let (rows, num_slots) = states::rows(&[1; 6], numbers);
        let mut case = Case::new(shape, &rows, num_slots, numbers)
            .with_small_steps(numbers)
            .in_halves(7);
        // Sizes of all kinds: down to where half has few bits, up to where it has no numbers.
        for (at, x) in case.pool.iter_mut().enumerate() {
            *x *= [1.0, 100.0, 1e-4, 6e-8, 7e4][at % 5];
        }
        to_halves(&mut case.pool);
        let (y, pool) = case.got(&client, &rows);
        let (want_y, want_pool) = case.want(&rows);
        common::assert_near(&y, &want_y, 1e-4, "y");
        assert_halves(&pool, &want_pool, &format!("{shape:?}"));
    }
}

#[test]
fn cuts_and_company_are_not_seen() {
    let Some(client) = common::client() else {
        return;
    };
    for (at, shape) in SHAPES.into_iter().enumerate() {
        let numbers = &mut Numbers::new(50 + at as u64);
        let (rows, num_slots) = states::rows(&[3, 9, 1], numbers);
        let case = Case::new(shape, &rows, num_slots, numbers)
            .with_small_steps(numbers)
            .in_halves(2);
        let (whole, whole_pool) = case.got(&client, &rows);
        let each = rows.iter().zip(states::spans(&rows));
        let each = each.flat_map(|(row, tokens)| {
            let first = tokens.start;
            tokens.map(move |token| (row, row.start + token - first, token..token + 1))
        });
        let (together, pool) = case.got_in_parts(&client, each);
        assert_eq!(bits(&together), bits(&whole), "{shape:?}");
        assert_eq!(bits(&pool), bits(&whole_pool), "{shape:?}");
    }
}

#[test]
fn what_is_no_number_stays_none_and_what_is_too_large_becomes_the_largest() {
    let Some(client) = common::client() else {
        return;
    };
    let numbers = &mut Numbers::new(60);
    let (rows, num_slots) = states::rows(&[1], numbers);
    let mut case = Case::new(SMALL, &rows, num_slots, numbers).in_halves(0);
    // No decay, so that old states are the new ones but for x B dt, which is made 0.
    case.a.fill(-0.0);
    case.xbc[..SMALL.inner()].fill(0.0);
    let at = rows[0].slot * SMALL.inner() * SMALL.state;
    let special = [
        f32::NAN,
        65504.0,
        -65504.0,
        -0.0,
        5.960_464_5e-8,
        f32::INFINITY,
    ];
    case.pool[at..][..special.len()].copy_from_slice(&special);
    let (_, pool) = case.got(&client, &rows);
    assert!(pool[at].is_nan());
    assert_eq!(pool[at + 1..][..4], special[1..5], "halves stay");
    assert_eq!(pool[at + 5], 65504.0);
}
