//! Cases of the Mamba-2 mixer and of moving its states.

use burn::tensor::{DType, Device};

use super::compare::{TOLERANCE, kept_alone, outcome, untouched, worst};
use super::inputs::{Numbers, scatter, upload, wide};
use super::oracle::{self, HeadConstants, HeadToken};
use super::{Outcome, Shapes, kv};
use crate::{KvPool, Layout, StatePool, with_f32};

/// State pools of the mixer whose slots are NaN but for the rows' own, and those rows' contents.
struct States {
    layout: Layout,
    num_slots: usize,
    conv: Vec<f32>,
    ssm: Vec<f32>,
}

impl States {
    fn new(shapes: &Shapes, numbers: &mut Numbers) -> Self {
        let (layout, _, num_slots) = scatter(&shapes.rows, shapes.block_size, numbers);
        let mamba = &shapes.mamba;
        let conv_len = mamba.conv_dim() * (mamba.conv_kernel - 1);
        let ssm_len = mamba.inner() * mamba.state;
        let mut conv = vec![f32::NAN; num_slots * conv_len];
        let mut ssm = vec![f32::NAN; num_slots * ssm_len];
        for row in &layout.rows {
            conv[row.slot * conv_len..][..conv_len].copy_from_slice(&numbers.vector(
                conv_len,
                2.0,
                DType::F32,
            ));
            ssm[row.slot * ssm_len..][..ssm_len].copy_from_slice(&numbers.vector(
                ssm_len,
                1.0,
                DType::F32,
            ));
        }
        Self {
            layout,
            num_slots,
            conv,
            ssm,
        }
    }

    fn upload(&self, shapes: &Shapes, device: &Device) -> StatePool {
        let mamba = &shapes.mamba;
        StatePool {
            conv: upload(
                &self.conv,
                [self.num_slots, mamba.conv_dim(), mamba.conv_kernel - 1],
                DType::F32,
                device,
            ),
            ssm: upload(
                &self.ssm,
                [self.num_slots, mamba.heads, mamba.head_dim, mamba.state],
                DType::F32,
                device,
            ),
            ring: None,
        }
    }
}

/// The convolution and the recurrence, each with its state.
pub fn conv_and_scan(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    let numbers = &mut Numbers::new(shapes.seed);
    let states = States::new(shapes, numbers);
    let mut outcomes = conv(device, shapes, &states, numbers);
    outcomes.extend(scan(device, shapes, &states, numbers));
    outcomes
}

fn conv(device: &Device, shapes: &Shapes, states: &States, numbers: &mut Numbers) -> Vec<Outcome> {
    let mamba = &shapes.mamba;
    let (m, channels, kernel) = (shapes.num_tokens(), mamba.conv_dim(), mamba.conv_kernel);
    let (columns, history) = (mamba.projected(), kernel - 1);
    let projected = numbers.vector(m * columns, 2.0, DType::F32);
    let weight = numbers.vector(channels * kernel, 1.0, shapes.weights);
    let bias =
        (shapes.seed.is_multiple_of(2)).then(|| numbers.vector(channels, 1.0, shapes.weights));

    let mut want = vec![0.0; m * channels];
    let mut want_state = states.conv.clone();
    for row in &states.layout.rows {
        for channel in 0..channels {
            let state = &mut want_state[(row.slot * channels + channel) * history..][..history];
            let mut window = state.to_vec();
            window.extend(
                row.tokens
                    .clone()
                    .map(|token| projected[token * columns + mamba.inner() + channel]),
            );
            let weight = wide(&weight[channel * kernel..][..kernel]);
            let bias = bias.as_ref().map_or(0.0, |bias| f64::from(bias[channel]));
            let out = oracle::conv(&wide(&window), &weight, bias);
            for (token, value) in row.tokens.clone().zip(out) {
                want[token * channels + channel] = value;
            }
            state.copy_from_slice(&window[window.len() - history..]);
        }
    }

    let bias = bias.map(|bias| shapes.vector(&bias, [channels], device));
    let (got, pool) = crate::causal_conv1d(
        &upload(&projected, [m, columns], DType::F32, device),
        &shapes.vector(&weight, [channels, 1, kernel], device),
        bias.as_ref(),
        states.upload(shapes, device),
        mamba,
        &states.layout,
    );
    vec![
        outcome("causal_conv1d", &got, &want, TOLERANCE),
        untouched("causal_conv1d: state", &pool.conv, &want_state),
        untouched("causal_conv1d: other state", &pool.ssm, &states.ssm),
    ]
}

fn scan(device: &Device, shapes: &Shapes, states: &States, numbers: &mut Numbers) -> Vec<Outcome> {
    let mamba = &shapes.mamba;
    let (m, heads, head_dim, n) = (
        shapes.num_tokens(),
        mamba.heads,
        mamba.head_dim,
        mamba.state,
    );
    let (inner, channels, columns) = (mamba.inner(), mamba.conv_dim(), mamba.projected());
    let xbc = numbers.vector(m * channels, 1.0, DType::F32);
    // dt far beyond where the softplus turns linear, and far below.
    let projected = numbers.vector(m * columns, 30.0, DType::F32);
    let a: Vec<f32> = numbers
        .vector(heads, 2.0, DType::F32)
        .iter()
        .map(|a_log| -a_log.exp())
        .collect();
    let d = numbers.vector(heads, 1.0, DType::F32);
    let dt_bias = numbers.vector(heads, 3.0, DType::F32);

    let mut want = vec![0.0; m * inner];
    let mut want_state = wide(&states.ssm);
    for row in &states.layout.rows {
        for head in 0..heads {
            let constants = HeadConstants {
                a: f64::from(a[head]),
                d: f64::from(d[head]),
                dt_bias: f64::from(dt_bias[head]),
                limit: shapes.time_step_limit,
            };
            let group = head / (heads / mamba.groups);
            let state = &mut want_state[(row.slot * heads + head) * head_dim * n..];
            for token in row.tokens.clone() {
                let now = wide(&xbc[token * channels..][..channels]);
                let y = oracle::scan(
                    &mut state[..head_dim * n],
                    &HeadToken {
                        x: &now[head * head_dim..][..head_dim],
                        b: &now[inner + group * n..][..n],
                        c: &now[inner + (mamba.groups + group) * n..][..n],
                        dt: f64::from(projected[token * columns + inner + channels + head]),
                    },
                    &constants,
                    mamba,
                );
                want[token * inner + head * head_dim..][..head_dim].copy_from_slice(&y);
            }
        }
    }

    let constants = |values: &[f32]| upload(values, [heads], DType::F32, device);
    let (got, pool) = crate::ssm_scan(
        upload(&xbc, [m, channels], DType::F32, device),
        &upload(&projected, [m, columns], DType::F32, device),
        &constants(&a),
        &constants(&d),
        &constants(&dt_bias),
        shapes.time_step_limit,
        states.upload(shapes, device),
        mamba,
        &states.layout,
    );
    // States may be near in every row's slot, and must be NaN still in every other.
    let strangers_kept = with_f32(&pool.ssm, |got| {
        got.iter()
            .zip(&want_state)
            .all(|(got, want)| got.is_nan() == want.is_nan())
    });
    let state_error = with_f32(&pool.ssm, |got| {
        let (got, want): (Vec<f32>, Vec<f64>) = got
            .iter()
            .zip(&want_state)
            .filter(|(_, want)| !want.is_nan())
            .map(|(&got, &want)| (got, want))
            .unzip();
        worst(&got, &want)
    });
    vec![
        outcome("ssm_scan", &got, &want, 10.0 * TOLERANCE),
        Outcome {
            operation: "ssm_scan: state",
            max_error: if strangers_kept {
                state_error
            } else {
                f64::INFINITY
            },
            tolerance: TOLERANCE,
        },
    ]
}

/// The slot and block moves of a plan.
pub fn copies(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    let numbers = &mut Numbers::new(shapes.seed);
    let states = States::new(shapes, numbers);
    let mamba = &shapes.mamba;
    let conv_len = mamba.conv_dim() * (mamba.conv_kernel - 1);
    let ssm_len = mamba.inner() * mamba.state;
    // From a row's slot to the padding slot, which is NaN; then the row's slot is zeroed.
    let slot = states.layout.rows[0].slot;
    let moved = |values: &[f32], len: usize| {
        let mut values = values.to_vec();
        values.copy_within(slot * len..(slot + 1) * len, 0);
        values[slot * len..(slot + 1) * len].fill(0.0);
        values
    };
    let pool = crate::copy_slot(states.upload(shapes, device), slot, 0);
    let pool = crate::zero_slot(pool, slot);

    let block_shape = [3, shapes.block_size, shapes.kv_heads, shapes.head_dim];
    let block_len: usize = block_shape[1..].iter().product();
    let mut side = |scale| -> Vec<f32> {
        let numbers = numbers.vector(3 * block_len, 1.0, DType::F32);
        let kept = numbers.iter().map(|&x| kv::kept(x, shapes.kv, scale));
        kept.collect()
    };
    let (mut keys, mut values) = (side(kv::KEY_SCALE), side(kv::VALUE_SCALE));
    let blocks = crate::copy_block(
        KvPool {
            keys: kv::pool(&keys, block_shape, shapes.kv, kv::KEY_SCALE, device),
            values: kv::pool(&values, block_shape, shapes.kv, kv::VALUE_SCALE, device),
        },
        2,
        1,
    );
    keys.copy_within(2 * block_len.., block_len);
    values.copy_within(2 * block_len.., block_len);
    vec![
        untouched("slots: conv", &pool.conv, &moved(&states.conv, conv_len)),
        untouched("slots: ssm", &pool.ssm, &moved(&states.ssm, ssm_len)),
        kept_alone("blocks: keys", &blocks.keys, &keys),
        kept_alone("blocks: values", &blocks.values, &values),
    ]
}
