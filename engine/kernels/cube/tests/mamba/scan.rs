//! The recurrence.

use cube_kernels::{
    Arithmetic, Buffer, Client, MambaShape, Rest, RowIndex, ScanParameters, StateFormat, ssm_scan,
    ssm_scan_rest,
};

use crate::common::{self, Numbers, assert_near, poisoned};
use crate::halves;
use crate::states::{self, SMALL};

/// Of an output, a sum over all tokens before it.
const TOLERANCE: f64 = 1e-4;

/// Everything but the step.
#[derive(Clone)]
pub(crate) struct Case {
    pub(crate) shape: MambaShape,
    pub(crate) xbc: Vec<f32>,
    pub(crate) projected: Vec<f32>,
    pub(crate) a: Vec<f32>,
    pub(crate) d: Vec<f32>,
    pub(crate) dt_bias: Vec<f32>,
    pub(crate) limit: Option<(f32, f32)>,
    pub(crate) pool: Vec<f32>,
    pub(crate) state: StateFormat,
}

impl Case {
    pub(crate) fn new(
        shape: MambaShape,
        rows: &[RowIndex],
        num_slots: usize,
        numbers: &mut Numbers,
    ) -> Self {
        let tokens: usize = rows.iter().map(|row| row.num_tokens).sum();
        let heads = shape.heads;
        // dt far beyond where the softplus turns linear, and far below.
        let mut projected = numbers.vector(tokens * shape.projected(), 30.0);
        // Everything before dt is none of the scan's business.
        for row in projected.chunks_mut(shape.projected()) {
            row[..shape.inner() + shape.conv_dim()].fill(f32::NAN);
        }
        let a = numbers.vector(heads, 2.0);
        Self {
            shape,
            xbc: numbers.vector(tokens * shape.conv_dim(), 1.0),
            projected,
            a: a.iter().map(|a_log| -a_log.exp()).collect(),
            d: numbers.vector(heads, 1.0),
            dt_bias: numbers.vector(heads, 3.0),
            limit: None,
            pool: states::pool(rows, num_slots, shape.inner() * shape.state, numbers),
            state: StateFormat::F32,
        }
    }

    /// With states kept in halves.
    pub(crate) fn in_halves(mut self, seed: u32) -> Self {
        halves::to_halves(&mut self.pool);
        self.state = StateFormat::F16 { seed };
        self
    }

    /// With dt of a trained model's size, so that states live for hundreds of tokens.
    pub(crate) fn with_small_steps(mut self, numbers: &mut Numbers) -> Self {
        let (first, heads) = (self.shape.inner() + self.shape.conv_dim(), self.shape.heads);
        for row in self.projected.chunks_mut(self.shape.projected()) {
            for (dt, value) in row[first..].iter_mut().zip(numbers.vector(heads, 3.0)) {
                *dt = value - 4.0;
            }
        }
        self.dt_bias.fill(-0.5);
        self
    }

    /// The tokens `tokens` alone.
    pub(crate) fn part(&self, tokens: std::ops::Range<usize>) -> Self {
        let cut = |values: &[f32], width: usize| {
            values[tokens.start * width..tokens.end * width].to_vec()
        };
        Self {
            xbc: cut(&self.xbc, self.shape.conv_dim()),
            projected: cut(&self.projected, self.shape.projected()),
            ..self.clone()
        }
    }

    /// The formula: y, and the pool after it.
    pub(crate) fn want(&self, rows: &[RowIndex]) -> (Vec<f64>, Vec<f64>) {
        let MambaShape {
            heads,
            head_dim,
            groups,
            state: n,
            ..
        } = self.shape;
        let (inner, width) = (self.shape.inner(), self.shape.conv_dim());
        let mut out = vec![f64::NAN; self.xbc.len() / width * inner];
        let mut pool: Vec<f64> = self.pool.iter().map(|&value| f64::from(value)).collect();
        for (row, tokens) in rows.iter().zip(states::spans(rows)) {
            for (position, token) in (row.start..).zip(tokens) {
                let xbc = |at: usize| f64::from(self.xbc[token * width + at]);
                for head in 0..heads {
                    let raw = f64::from(
                        self.projected[token * self.shape.projected() + inner + width + head],
                    ) + f64::from(self.dt_bias[head]);
                    let mut dt = raw.max(0.0) + (-raw.abs()).exp().ln_1p();
                    if let Some((min, max)) = self.limit {
                        dt = dt.clamp(f64::from(min), f64::from(max));
                    }
                    let decay = (f64::from(self.a[head]) * dt).exp();
                    let group = head / (heads / groups);
                    for channel in 0..head_dim {
                        let x = xbc(head * head_dim + channel);
                        let at = ((row.slot * heads + head) * head_dim + channel) * n;
                        let mut y = f64::from(self.d[head]) * x;
                        for (column, state) in pool[at..at + n].iter_mut().enumerate() {
                            let b = xbc(inner + group * n + column);
                            let c = xbc(inner + (groups + group) * n + column);
                            *state = *state * decay + dt * x * b;
                            y += *state * c;
                        }
                        out[token * inner + head * head_dim + channel] = y;
                    }
                    if let StateFormat::F16 { seed } = self.state {
                        let at = (row.slot * heads + head) * head_dim * n;
                        let state = &mut pool[at..][..head_dim * n];
                        halves::round(state, n, seed, head, position);
                    }
                }
            }
        }
        (out, pool)
    }

    /// The kernel: as above.
    pub(crate) fn got(&self, client: &Client, rows: &[RowIndex]) -> (Vec<f32>, Vec<f32>) {
        self.got_rest(client, rows, None)
    }

    pub(crate) fn got_rest(
        &self,
        client: &Client,
        rows: &[RowIndex],
        rest: Option<Rest>,
    ) -> (Vec<f32>, Vec<f32>) {
        let upload = |values: &[f32]| Buffer::upload(client, values);
        let step = states::index(client, rows);
        let (xbc, projected) = (upload(&self.xbc), upload(&self.projected));
        let parameters = ScanParameters {
            a: &upload(&self.a),
            d: &upload(&self.d),
            dt_bias: &upload(&self.dt_bias),
            time_step_limit: self.limit,
            state: self.state,
        };
        let pool = halves::upload(client, &self.pool, self.state);
        let out = poisoned(client, step.num_tokens * self.shape.inner());
        let shape = &self.shape;
        match rest {
            None => ssm_scan(
                client,
                &xbc,
                &projected,
                &parameters,
                &pool,
                shape,
                &step,
                Arithmetic::F32,
                &out,
            ),
            Some(rest) => ssm_scan_rest(
                client,
                &xbc,
                &projected,
                &parameters,
                &pool,
                shape,
                &step,
                rest,
                &out,
            ),
        }
        (out.read(client), halves::read(client, &pool, self.state))
    }

    /// The kernel in steps of one row each: parts of rows, where they start and which tokens they are.
    pub(crate) fn got_in_parts<'a>(
        &self,
        client: &Client,
        parts: impl IntoIterator<Item = (&'a RowIndex, usize, std::ops::Range<usize>)>,
    ) -> (Vec<f32>, Vec<f32>) {
        let mut pool = self.pool.clone();
        let mut together = Vec::new();
        for (row, start, tokens) in parts {
            let row = RowIndex {
                num_tokens: tokens.len(),
                start,
                ..row.clone()
            };
            let mut alone = self.part(tokens);
            alone.pool = pool;
            let (out, after) = alone.got(client, &[row]);
            together.extend(out);
            pool = after;
        }
        (together, pool)
    }

    fn check(&self, client: &Client, rows: &[RowIndex], name: &str) {
        let (want, want_pool) = self.want(rows);
        let (got, got_pool) = self.got(client, rows);
        assert_near(&got, &want, TOLERANCE, name);
        assert_near(&got_pool, &want_pool, TOLERANCE, &format!("{name}: state"));
    }
}

pub(crate) fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn the_recurrence_is_the_formula() {
    let Some(client) = common::client() else {
        return;
    };
    let steps: &[&[usize]] = &[&[1], &[1, 1, 1, 1], &[1, 5, 2, 1, 9]];
    // Channels that fill planes and not, columns that fill lanes and vectors and not.
    let shapes = [
        SMALL,
        MambaShape {
            heads: 2,
            head_dim: 80,
            groups: 1,
            state: 8,
            ..SMALL
        },
        MambaShape {
            heads: 4,
            head_dim: 5,
            groups: 4,
            state: 18,
            ..SMALL
        },
    ];
    for (at, shape) in shapes.into_iter().enumerate() {
        for lengths in steps {
            let numbers = &mut Numbers::new((at * 10 + lengths.len()) as u64);
            let (rows, num_slots) = states::rows(lengths, numbers);
            let case = Case::new(shape, &rows, num_slots, numbers);
            case.check(&client, &rows, &format!("{lengths:?} of {shape:?}"));
        }
    }
}

#[test]
fn limits_hold_dt() {
    let Some(client) = common::client() else {
        return;
    };
    let numbers = &mut Numbers::new(3);
    let (rows, num_slots) = states::rows(&[1, 4], numbers);
    let mut case = Case::new(SMALL, &rows, num_slots, numbers);
    case.limit = Some((0.05, 1.5));
    case.check(&client, &rows, "limited");
}

#[test]
fn a_small_dt_is_not_lost() {
    let Some(client) = common::client() else {
        return;
    };
    // softplus(-14) is 8e-7: a logarithm of one plus that would keep three bits of it.
    let numbers = &mut Numbers::new(4);
    let (rows, num_slots) = states::rows(&[1], numbers);
    let mut case = Case::new(SMALL, &rows, num_slots, numbers);
    let first = SMALL.inner() + SMALL.conv_dim();
    case.projected[first..].fill(-14.0);
    case.dt_bias.fill(0.0);
    case.a.fill(-1e5);
    case.pool.iter_mut().for_each(|state| *state *= 1e3);
    case.check(&client, &rows, "small dt");
}

#[test]
fn a_nan_stays_in_its_row() {
    let Some(client) = common::client() else {
        return;
    };
    let numbers = &mut Numbers::new(5);
    let (rows, num_slots) = states::rows(&[2, 3, 1], numbers);
    let mut case = Case::new(SMALL, &rows, num_slots, numbers);
    let (clean, _) = case.got(&client, &rows);
    // The second row's second token has no dt for the first head.
    let dt = SMALL.inner() + SMALL.conv_dim();
    case.projected[3 * SMALL.projected() + dt] = f32::NAN;
    let (out, _) = case.got(&client, &rows);
    let head_dim = SMALL.head_dim;
    for (at, (clean, out)) in clean.chunks(head_dim).zip(out.chunks(head_dim)).enumerate() {
        let (token, head) = (at / SMALL.heads, at % SMALL.heads);
        if head == 0 && (3..5).contains(&token) {
            assert!(out.iter().all(|y| y.is_nan()), "token {token}");
        } else {
            assert_eq!(bits(out), bits(clean), "token {token}, head {head}");
        }
    }
}

#[test]
fn company_is_not_seen() {
    let Some(client) = common::client() else {
        return;
    };
    let numbers = &mut Numbers::new(6);
    let (rows, num_slots) = states::rows(&[1, 7, 1], numbers);
    let case = Case::new(SMALL, &rows, num_slots, numbers);
    let (whole, whole_pool) = case.got(&client, &rows);
    let each = rows.iter().zip(states::spans(&rows));
    let each = each.map(|(row, tokens)| (row, row.start, tokens));
    let (together, pool) = case.got_in_parts(&client, each);
    assert_eq!(bits(&together), bits(&whole));
    assert_eq!(bits(&pool), bits(&whole_pool));
}

#[test]
fn cuts_of_a_short_row_are_not_seen() {
    let Some(client) = common::client() else {
        return;
    };
    let numbers = &mut Numbers::new(8);
    let (rows, num_slots) = states::rows(&[9], numbers);
    let case = Case::new(SMALL, &rows, num_slots, numbers).with_small_steps(numbers);
    case.check(&client, &rows, "small steps");
    let (whole, whole_pool) = case.got(&client, &rows);
    for cut in [1, 4, 8] {
        let parts = [0..cut, cut..9];
        let parts = parts.map(|tokens| (&rows[0], rows[0].start + tokens.start, tokens));
        let (together, pool) = case.got_in_parts(&client, parts);
        assert_eq!(bits(&together), bits(&whole), "cut at {cut}");
        assert_eq!(bits(&pool), bits(&whole_pool), "cut at {cut}");
    }
}

#[test]
fn the_rest_is_what_chunks_leave() {
    let Some(client) = common::client() else {
        return;
    };
    let numbers = &mut Numbers::new(9);
    // With chunks of 8 and at most 3 tokens left: all of a short row, even across the grid; the
    // end of a long one; none of one that ends on the grid or far from it; the end alone of one
    // that begins in its last chunk but one.
    let starts = [7, 13, 8, 6, 15];
    let lengths = [3, 12, 8, 7, 4];
    let left = [3, 1, 0, 0, 3];
    let (mut rows, num_slots) = states::rows(&lengths, numbers);
    for (row, start) in rows.iter_mut().zip(starts) {
        row.start = start;
    }
    let case = Case::new(SMALL, &rows, num_slots, numbers);
    let rest = Rest {
        chunk: 8,
        short_tokens: 3,
    };
    let (out, pool) = case.got_rest(&client, &rows, Some(rest));
    let mut want_pool = case.pool.clone();
    let inner = SMALL.inner();
    for ((row, tokens), left) in rows.iter().zip(states::spans(&rows)).zip(left) {
        let first = tokens.end - left;
        let untouched = &out[tokens.start * inner..first * inner];
        assert!(untouched.iter().all(|y| y.is_nan()), "row at {}", row.start);
        if left > 0 {
            let mut alone = case.part(first..tokens.end);
            alone.pool = want_pool;
            let (want, after) = alone.got(
                &client,
                &[RowIndex {
                    num_tokens: left,
                    ..row.clone()
                }],
            );
            let got = &out[first * inner..tokens.end * inner];
            assert_eq!(bits(got), bits(&want), "row at {}", row.start);
            want_pool = after;
        }
    }
    assert_eq!(bits(&pool), bits(&want_pool));
}
