//! The scan in chunks on tensor cores, its very text on the processor.

use cube_kernels::tensor_core::{SCAN_REST, scan_text};
use cube_kernels::{Client, MambaShape, RowIndex, StateFormat};

use crate::common::{self, Numbers};
use crate::emulated::{Emulator, Launch};
use crate::halves;
use crate::scan::{Case, bits};
use crate::states;

/// Of Super's head and state.
const SHAPE: MambaShape = MambaShape {
    heads: 4,
    head_dim: 64,
    groups: 2,
    state: 128,
    conv_kernel: 4,
};

fn emulator(test: &str) -> Option<Emulator> {
    let texts = [false, true].map(|is_half| scan_text(&SHAPE, is_half));
    let texts = texts.map(|text| (text.name.clone(), text.source()));
    Emulator::new(test, &texts)
}

/// Rows that begin there and are as long, and their random inputs.
fn case(starts: &[usize], lengths: &[usize], seed: u64) -> (Vec<RowIndex>, Case) {
    let numbers = &mut Numbers::new(seed);
    let (mut rows, num_slots) = states::rows(lengths, numbers);
    for (row, &start) in rows.iter_mut().zip(starts) {
        row.start = start;
    }
    let case = Case::new(SHAPE, &rows, num_slots, numbers).with_small_steps(numbers);
    (rows, case)
}

fn bytes<T: bytemuck::NoUninit>(values: &[T]) -> Vec<u8> {
    bytemuck::cast_slice(values).to_vec()
}

/// y and the pool.
fn run(emulator: &Emulator, case: &Case, rows: &[RowIndex], seed: u32) -> (Vec<f32>, Vec<f32>) {
    let per_row = |f: fn(&RowIndex) -> usize| -> Vec<u8> {
        bytes(&rows.iter().map(|row| f(row) as u32).collect::<Vec<_>>())
    };
    let mut ends = vec![0_u32];
    ends.extend(states::spans(rows).iter().map(|span| span.end as u32));
    let tokens = ends[rows.len()] as usize;
    let (min, max) = case.limit.unwrap_or_default();
    let mut buffers = [
        bytes(&case.xbc),
        bytes(&case.xbc),
        bytes(&case.projected),
        bytes(&case.a),
        bytes(&case.d),
        bytes(&case.dt_bias),
        bytes(&ends),
        per_row(|row| row.start),
        per_row(|row| row.slot),
        match case.state {
            StateFormat::F32 => bytes(&case.pool),
            StateFormat::F16 { .. } => bytes(&halves::packed(&case.pool)),
        },
        bytes(&vec![f32::NAN; tokens * SHAPE.inner()]),
    ];
    let (is_half, noise) = match case.state {
        StateFormat::F32 => (false, 0),
        StateFormat::F16 { seed } => (true, halves::scramble(seed)),
    };
    let text = scan_text(&SHAPE, is_half);
    let launch = Launch {
        kernel: &text.name,
        grid: [SHAPE.heads as u32, rows.len() as u32, 1],
        threads: text.num_threads,
        sizes: &[
            SCAN_REST.short_tokens as u32,
            u32::from(case.limit.is_some()),
            min.to_bits(),
            max.to_bits(),
            noise,
        ],
        seed,
    };
    let before = buffers.clone();
    emulator
        .run(&launch, &mut buffers.each_mut())
        .unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(buffers[..9], before[..9], "inputs are left alone");
    let pool = if is_half {
        halves::unpacked(&bytemuck::pod_collect_to_vec(&buffers[9]))
    } else {
        bytemuck::pod_collect_to_vec(&buffers[9])
    };
    (bytemuck::pod_collect_to_vec(&buffers[10]), pool)
}

/// How many of a row's tokens are scanned in chunks.
fn in_chunks(row: &RowIndex) -> usize {
    let end = row.start + row.num_tokens;
    let last = (end / SCAN_REST.chunk * SCAN_REST.chunk).max(row.start);
    let left = end - last;
    if row.num_tokens <= SCAN_REST.short_tokens {
        0
    } else if left <= SCAN_REST.short_tokens {
        row.num_tokens - left
    } else {
        row.num_tokens
    }
}

/// To nearest, ties to even.
fn bf16(value: f64) -> f64 {
    let bits = (value as f32).to_bits();
    f64::from(f32::from_bits(
        (bits + 0x7fff + (bits >> 16 & 1)) & 0xffff_0000,
    ))
}

/// A number as it is.
fn exact(value: f64) -> f64 {
    value
}

/// The formula in chunks (model-spec 2.5), with `round` where the kernel rounds to bf16: y of the
/// tokens in chunks, and the pool.
fn want(case: &Case, rows: &[RowIndex], round: fn(f64) -> f64) -> (Vec<f64>, Vec<f64>) {
    let MambaShape {
        heads,
        head_dim,
        groups,
        state: n,
        ..
    } = SHAPE;
    let (inner, width) = (SHAPE.inner(), SHAPE.conv_dim());
    let mut out = vec![f64::NAN; case.xbc.len() / width * inner];
    let mut pool: Vec<f64> = case.pool.iter().map(|&value| f64::from(value)).collect();
    for (row, tokens) in rows.iter().zip(states::spans(rows)) {
        let mut done = 0;
        while done < in_chunks(row) {
            let position = row.start + done;
            let to_grid = SCAN_REST.chunk - position % SCAN_REST.chunk;
            let len = to_grid.min(in_chunks(row) - done);
            let chunk = tokens.start + done..tokens.start + done + len;
            done += len;
            for head in 0..heads {
                let group = head / (heads / groups);
                let xbc = |token: usize, at: usize| f64::from(case.xbc[token * width + at]);
                let steps: Vec<f64> = chunk
                    .clone()
                    .map(|token| {
                        let at = token * SHAPE.projected() + inner + width + head;
                        let raw = f64::from(case.projected[at]) + f64::from(case.dt_bias[head]);
                        let dt = raw.max(0.0) + (-raw.abs()).exp().ln_1p();
                        case.limit
                            .map_or(dt, |(min, max)| dt.clamp(min.into(), max.into()))
                    })
                    .collect();
                let mut sum = 0.0;
                let decays: Vec<f64> = steps
                    .iter()
                    .map(|dt| {
                        sum += f64::from(case.a[head]) * dt;
                        sum
                    })
                    .collect();
                let at = (row.slot * heads + head) * head_dim * n;
                let state = &mut pool[at..at + head_dim * n];
                let b = |token: usize| -> Vec<f64> {
                    (0..n)
                        .map(|column| round(xbc(token, inner + group * n + column)))
                        .collect()
                };
                for (i, token) in chunk.clone().enumerate() {
                    let c: Vec<f64> = (0..n)
                        .map(|column| round(xbc(token, inner + (groups + group) * n + column)))
                        .collect();
                    let dot =
                        |a: &[f64], b: &[f64]| -> f64 { a.iter().zip(b).map(|(a, b)| a * b).sum() };
                    let weights: Vec<f64> = (0..=i)
                        .map(|j| {
                            let decay = (decays[i] - decays[j]).exp();
                            round(decay * dot(&c, &b(chunk.start + j)))
                        })
                        .collect();
                    for channel in 0..head_dim {
                        let x = |token: usize| xbc(token, head * head_dim + channel);
                        let seen: Vec<f64> = state[channel * n..][..n]
                            .iter()
                            .map(|&state| round(state))
                            .collect();
                        let mut y = decays[i].exp() * dot(&c, &seen);
                        for (j, weight) in weights.iter().enumerate() {
                            y += weight * round(steps[j] * x(chunk.start + j));
                        }
                        out[token * inner + head * head_dim + channel] =
                            y + f64::from(case.d[head]) * x(token);
                    }
                }
                let last = decays[len - 1];
                for state in &mut *state {
                    *state *= last.exp();
                }
                for (j, token) in chunk.clone().enumerate() {
                    let b = b(token);
                    let weight = (last - decays[j]).exp() * steps[j];
                    for channel in 0..head_dim {
                        let x = round(weight * xbc(token, head * head_dim + channel));
                        for (state, b) in state[channel * n..][..n].iter_mut().zip(&b) {
                            *state += x * b;
                        }
                    }
                }
                if let StateFormat::F16 { seed } = case.state {
                    halves::round(state, n, seed, head, position + len - 1);
                }
            }
        }
    }
    (out, pool)
}

/// Root of the mean square of the errors, in that of the wanted values. NaN where NaN is wanted.
fn error(got: &[f32], want: &[f64]) -> f64 {
    let (mut errors, mut squares) = (0.0, 0.0);
    for (at, (&got, &want)) in got.iter().zip(want).enumerate() {
        assert_eq!(got.is_nan(), want.is_nan(), "{got} for {want} at {at}");
        if !want.is_nan() {
            errors += (f64::from(got) - want).powi(2);
            squares += want * want;
        }
    }
    (errors / squares).sqrt()
}

#[test]
fn chunks_are_the_formula() {
    let Some(emulator) = emulator("scan_formula") else {
        return;
    };
    // Across the grid from anywhere, a short row, a last chunk too short to take, one that is not,
    // from grid to grid, inside one chunk.
    let starts = [60, 3, 128, 100, 64, 5];
    let lengths = [70, 5, 150, 97, 64, 40];
    for (limit, is_half) in [(None, false), (Some((0.01, 0.5)), false), (None, true)] {
        let (rows, mut case) = case(&starts, &lengths, 1);
        case.limit = limit;
        if is_half {
            case = case.in_halves(11);
        }
        let (y, pool) = run(&emulator, &case, &rows, 1);
        // With the kernel's own roundings little is left: a rounding that falls the other way.
        let (want_y, want_pool) = want(&case, &rows, bf16);
        let rounded = [error(&y, &want_y), error(&pool, &want_pool)];
        let (want_y, want_pool) = want(&case, &rows, exact);
        let whole = [error(&y, &want_y), error(&pool, &want_pool)];
        println!("errors {rounded:?}, without roundings {whole:?}");
        assert!(rounded.iter().all(|&error| error < 1e-4), "{rounded:?}");
        assert!(whole.iter().all(|&error| error < 5e-3), "{whole:?}");
    }
}

#[test]
fn the_formula_in_chunks_is_the_recurrence() {
    let (rows, case) = case(&[60, 64], &[67, 64], 2);
    let (y, pool) = want(&case, &rows, exact);
    let (want_y, want_pool) = case.want(&rows);
    for (got, want) in y.iter().chain(&pool).zip(want_y.iter().chain(&want_pool)) {
        let is_near = (got - want).abs() < 1e-9 * (1.0 + want.abs());
        assert!(is_near || (got.is_nan() && want.is_nan()), "{got} {want}");
    }
}

#[test]
fn neither_cuts_on_the_grid_nor_company_nor_warps_are_seen() {
    let Some(emulator) = emulator("scan_cuts") else {
        return;
    };
    let (rows, in_f32) = case(&[30, 64, 200], &[20, 170, 40], 3);
    let in_halves = in_f32.clone().in_halves(4);
    for case in [in_f32, in_halves] {
        cuts_are_not_seen(&emulator, &rows, &case);
    }
}

fn cuts_are_not_seen(emulator: &Emulator, rows: &[RowIndex], case: &Case) {
    let (whole, whole_pool) = run(emulator, case, rows, 1);
    let spans = states::spans(rows);
    for cuts in [
        &[0, 170][..],
        &[0, 64, 170],
        &[0, 128, 170],
        &[0, 64, 128, 170],
    ] {
        let mut pool = case.pool.clone();
        for (at, part) in cuts.windows(2).enumerate() {
            let tokens = spans[1].start + part[0]..spans[1].start + part[1];
            let mut alone = case.part(tokens.clone());
            alone.pool = pool;
            let row = RowIndex {
                num_tokens: part[1] - part[0],
                start: rows[1].start + part[0],
                ..rows[1].clone()
            };
            let (y, after) = run(emulator, &alone, &[row], 2 + at as u32);
            let inner = SHAPE.inner();
            let together = &whole[tokens.start * inner..tokens.end * inner];
            assert_eq!(bits(&y), bits(together), "{cuts:?}");
            pool = after;
        }
        let len = SHAPE.inner() * SHAPE.state;
        let slot = rows[1].slot * len..(rows[1].slot + 1) * len;
        let (pool, whole_pool) = (&pool[slot.clone()], &whole_pool[slot]);
        assert_eq!(bits(pool), bits(whole_pool), "{cuts:?}");
    }
}

/// The whole operation, as `ssm_scan` launches it: chunks, then what they leave.
fn run_both(
    emulator: &Emulator,
    client: &Client,
    case: &Case,
    rows: &[RowIndex],
) -> (Vec<f32>, Vec<f32>) {
    let (mut y, pool) = run(emulator, case, rows, 1);
    let left = Case {
        pool,
        ..case.clone()
    };
    let (rest, pool) = left.got_rest(client, rows, Some(SCAN_REST));
    for (y, rest) in y.iter_mut().zip(rest) {
        assert!(y.is_nan() != rest.is_nan(), "one of the two makes a token");
        if y.is_nan() {
            *y = rest;
        }
    }
    (y, pool)
}

#[test]
fn a_row_keeps_its_bits_in_a_mixed_step_and_cut_on_the_grid() {
    let (Some(emulator), Some(client)) = (emulator("scan_mixed"), common::client()) else {
        return;
    };
    // Two that decode, a prompt whose last chunk is left to the recurrence, one whose is not, a
    // short one.
    let starts = [30, 64, 200, 1000, 7];
    let lengths = [1, 140, 20, 1, 5];
    let (rows, case) = case(&starts, &lengths, 4);
    let (whole, whole_pool) = run_both(&emulator, &client, &case, &rows);
    let spans = states::spans(&rows);
    let inner = SHAPE.inner();
    let check = |at: usize, cuts: &[usize]| {
        let mut part = case.clone();
        let mut y = Vec::new();
        for cut in cuts.windows(2) {
            let first = spans[at].start;
            let row = RowIndex {
                num_tokens: cut[1] - cut[0],
                start: rows[at].start + cut[0],
                ..rows[at].clone()
            };
            let tokens = Case {
                pool: part.pool,
                ..case.part(first + cut[0]..first + cut[1])
            };
            let (out, pool) = run_both(&emulator, &client, &tokens, &[row]);
            y.extend(out);
            part = Case { pool, ..tokens };
        }
        let together = &whole[spans[at].start * inner..spans[at].end * inner];
        assert_eq!(bits(&y), bits(together), "row {at} cut at {cuts:?}");
        let len = inner * SHAPE.state;
        let slot = rows[at].slot * len..(rows[at].slot + 1) * len;
        let (pool, whole_pool) = (&part.pool[slot.clone()], &whole_pool[slot]);
        assert_eq!(bits(pool), bits(whole_pool), "row {at} cut at {cuts:?}");
    };
    for (at, &length) in lengths.iter().enumerate() {
        check(at, &[0, length]);
    }
    for cuts in [&[0, 64, 140][..], &[0, 128, 140], &[0, 64, 128, 140]] {
        check(1, cuts);
    }
    // Decode is the recurrence in f32, in any arithmetic.
    let (walked, _) = case.got(&client, &rows);
    for at in [0, 3] {
        let tokens = spans[at].start * inner..spans[at].end * inner;
        assert_eq!(bits(&whole[tokens.clone()]), bits(&walked[tokens]));
    }
}
