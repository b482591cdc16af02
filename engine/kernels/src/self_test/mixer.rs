//! Cases of the Mamba-2 mixer and of moving its states.

use burn::tensor::{DType, Device, Tensor};
use half::f16;

use super::compare::{TOLERANCE, kept_alone, outcome, untouched, worst};
use super::inputs::{Numbers, scatter, upload, wide};
use super::oracle::{self, HeadConstants, HeadToken};
use super::{Outcome, Shapes, kv};
use crate::ssm_scan::rounding;
use crate::{Arithmetic, KvPool, Layout, ScanParameters, StatePool, with_f32};

/// Of an output, a sum over all tokens before it.
const SCAN_TOLERANCE: f64 = 10.0 * TOLERANCE;

/// Of the noise that halves are rounded by.
const SEED: u32 = 5;

/// State pools of the mixer whose slots are NaN but for the rows' own, and those rows' contents.
pub(super) struct States {
    pub(super) layout: Layout,
    num_slots: usize,
    conv: Vec<f32>,
    ssm: Vec<f32>,
    /// Of the recurrent states.
    dtype: DType,
}

impl States {
    pub(super) fn new(shapes: &Shapes, numbers: &mut Numbers) -> Self {
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
            dtype: DType::F32,
        }
    }

    /// The same with recurrent states kept in halves.
    fn in_halves(mut self) -> Self {
        for x in &mut self.ssm {
            *x = f16::from_f32(*x).to_f32();
        }
        self.dtype = DType::F16;
        self
    }

    pub(super) fn upload(&self, shapes: &Shapes, device: &Device) -> StatePool {
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
                self.dtype,
                device,
            ),
            ring: None,
        }
    }
}

/// A mixer's weights and the inputs of a step.
pub(super) struct Mixer<'a> {
    shapes: &'a Shapes,
    projected: Vec<f32>,
    weight: Vec<f32>,
    bias: Option<Vec<f32>>,
    a: Vec<f32>,
    d: Vec<f32>,
    dt_bias: Vec<f32>,
}

impl<'a> Mixer<'a> {
    /// With projections in `-scale..scale`.
    pub(super) fn new(shapes: &'a Shapes, scale: f32, numbers: &mut Numbers) -> Self {
        let mamba = &shapes.mamba;
        let (channels, heads) = (mamba.conv_dim(), mamba.heads);
        let num_projected = shapes.num_tokens() * mamba.projected();
        let a_log = numbers.vector(heads, 2.0, DType::F32);
        Self {
            shapes,
            projected: numbers.vector(num_projected, scale, DType::F32),
            weight: numbers.vector(channels * mamba.conv_kernel, 1.0, shapes.weights),
            bias: (shapes.seed.is_multiple_of(2))
                .then(|| numbers.vector(channels, 1.0, shapes.weights)),
            a: a_log.iter().map(|a_log| -a_log.exp()).collect(),
            d: numbers.vector(heads, 1.0, DType::F32),
            dt_bias: numbers.vector(heads, 3.0, DType::F32),
        }
    }

    /// xbc, and the pool of convolution states after it.
    fn want_conv(&self, states: &States) -> (Vec<f64>, Vec<f32>) {
        let mamba = &self.shapes.mamba;
        let (channels, kernel) = (mamba.conv_dim(), mamba.conv_kernel);
        let history = kernel - 1;
        let mut want = vec![0.0; self.shapes.num_tokens() * channels];
        let mut want_state = states.conv.clone();
        for row in &states.layout.rows {
            for channel in 0..channels {
                let state = &mut want_state[(row.slot * channels + channel) * history..][..history];
                let mut window = state.to_vec();
                window.extend(row.tokens.clone().map(|token| {
                    self.projected[token * mamba.projected() + mamba.inner() + channel]
                }));
                let weight = wide(&self.weight[channel * kernel..][..kernel]);
                let bias = (self.bias.as_ref()).map_or(0.0, |bias| f64::from(bias[channel]));
                let out = oracle::conv(&wide(&window), &weight, bias);
                for (token, value) in row.tokens.clone().zip(out) {
                    want[token * channels + channel] = value;
                }
                state.copy_from_slice(&window[window.len() - history..]);
            }
        }
        (want, want_state)
    }

    /// y, and the pool of recurrent states after it.
    pub(super) fn want_scan(&self, xbc: &[f64], states: &States) -> (Vec<f64>, Vec<f64>) {
        let mamba = &self.shapes.mamba;
        let (heads, head_dim, n) = (mamba.heads, mamba.head_dim, mamba.state);
        let (inner, channels) = (mamba.inner(), mamba.conv_dim());
        let mut want = vec![0.0; self.shapes.num_tokens() * inner];
        let mut want_state = wide(&states.ssm);
        for row in &states.layout.rows {
            for head in 0..heads {
                let constants = HeadConstants {
                    a: f64::from(self.a[head]),
                    d: f64::from(self.d[head]),
                    dt_bias: f64::from(self.dt_bias[head]),
                    limit: self.shapes.time_step_limit,
                };
                let group = head / (heads / mamba.groups);
                let state = &mut want_state[(row.slot * heads + head) * head_dim * n..];
                for token in row.tokens.clone() {
                    let now = &xbc[token * channels..][..channels];
                    let dt = self.projected[token * mamba.projected() + inner + channels + head];
                    let y = oracle::scan(
                        &mut state[..head_dim * n],
                        &HeadToken {
                            x: &now[head * head_dim..][..head_dim],
                            b: &now[inner + group * n..][..n],
                            c: &now[inner + (mamba.groups + group) * n..][..n],
                            dt: f64::from(dt),
                        },
                        &constants,
                        mamba,
                    );
                    want[token * inner + head * head_dim..][..head_dim].copy_from_slice(&y);
                }
            }
        }
        (want, want_state)
    }

    pub(super) fn upload(&self, device: &Device) -> Uploaded {
        let (shapes, mamba) = (self.shapes, &self.shapes.mamba);
        let (channels, kernel) = (mamba.conv_dim(), mamba.conv_kernel);
        let constants = |values: &[f32]| upload(values, [mamba.heads], DType::F32, device);
        let projected = [shapes.num_tokens(), mamba.projected()];
        Uploaded {
            projected: upload(&self.projected, projected, DType::F32, device),
            weight: shapes.vector(&self.weight, [channels, 1, kernel], device),
            bias: (self.bias.as_ref()).map(|bias| shapes.vector(bias, [channels], device)),
            a: constants(&self.a),
            d: constants(&self.d),
            dt_bias: constants(&self.dt_bias),
            time_step_limit: shapes.time_step_limit,
        }
    }
}

/// The same on a device.
pub(super) struct Uploaded {
    pub(super) projected: Tensor<2>,
    weight: Tensor<3>,
    bias: Option<Tensor<1>>,
    a: Tensor<1>,
    d: Tensor<1>,
    dt_bias: Tensor<1>,
    time_step_limit: Option<(f32, f32)>,
}

impl Uploaded {
    pub(super) fn parameters(&self) -> ScanParameters<'_> {
        ScanParameters {
            a: &self.a,
            d: &self.d,
            dt_bias: &self.dt_bias,
            time_step_limit: self.time_step_limit,
            seed: SEED,
        }
    }
}

/// The convolution and the recurrence, each with its state, then both as one operation in a step of
/// one token per row.
pub fn conv_and_scan(device: &Device, shapes: &Shapes) -> Vec<Outcome> {
    let numbers = &mut Numbers::new(shapes.seed);
    let states = States::new(shapes, numbers);
    let mut outcomes = conv(device, shapes, &states, numbers);
    outcomes.extend(scan(device, shapes, &states, numbers));
    outcomes.extend(decode(device, shapes, numbers));
    outcomes.extend(halves(device, shapes, numbers));
    outcomes
}

fn conv(device: &Device, shapes: &Shapes, states: &States, numbers: &mut Numbers) -> Vec<Outcome> {
    let mixer = Mixer::new(shapes, 2.0, numbers);
    let (want, want_state) = mixer.want_conv(states);
    let on_device = mixer.upload(device);
    let (got, pool) = crate::causal_conv1d(
        &on_device.projected,
        &on_device.weight,
        on_device.bias.as_ref(),
        states.upload(shapes, device),
        &shapes.mamba,
        &states.layout,
    );
    vec![
        outcome("causal_conv1d", &got, &want, TOLERANCE),
        untouched("causal_conv1d: state", &pool.conv, &want_state),
        untouched("causal_conv1d: other state", &pool.ssm, &states.ssm),
    ]
}

fn scan(device: &Device, shapes: &Shapes, states: &States, numbers: &mut Numbers) -> Vec<Outcome> {
    // dt far beyond where the softplus turns linear, and far below.
    let mixer = Mixer::new(shapes, 30.0, numbers);
    let shape = [shapes.num_tokens(), shapes.mamba.conv_dim()];
    let xbc = numbers.vector(shape[0] * shape[1], 1.0, DType::F32);
    let (want, want_state) = mixer.want_scan(&wide(&xbc), states);
    let on_device = mixer.upload(device);
    let (got, pool) = crate::ssm_scan(
        upload(&xbc, shape, DType::F32, device),
        &on_device.projected,
        &on_device.parameters(),
        states.upload(shapes, device),
        &shapes.mamba,
        &states.layout,
        Arithmetic::F32,
    );
    vec![
        outcome("ssm_scan", &got, &want, SCAN_TOLERANCE),
        near("ssm_scan: state", &pool.ssm, &want_state),
    ]
}

/// The rows of a decode step.
fn one_token_each(shapes: &Shapes) -> Shapes {
    Shapes {
        rows: shapes.rows.iter().map(|&(start, _)| (start, 1)).collect(),
        ..shapes.clone()
    }
}

/// Both operations in one, on the device.
fn in_one(
    device: &Device,
    shapes: &Shapes,
    mixer: &Mixer<'_>,
    states: &States,
) -> (Tensor<2>, StatePool) {
    let on_device = mixer.upload(device);
    crate::conv_and_scan(
        &on_device.projected,
        &on_device.weight,
        on_device.bias.as_ref(),
        &on_device.parameters(),
        states.upload(shapes, device),
        &shapes.mamba,
        &states.layout,
        shapes.arithmetic,
    )
}

fn decode(device: &Device, shapes: &Shapes, numbers: &mut Numbers) -> Vec<Outcome> {
    let shapes = &one_token_each(shapes);
    let states = States::new(shapes, numbers);
    let mixer = Mixer::new(shapes, 2.0, numbers);
    let (xbc, want_conv) = mixer.want_conv(&states);
    let (want, want_ssm) = mixer.want_scan(&xbc, &states);
    let (got, pool) = in_one(device, shapes, &mixer, &states);
    vec![
        outcome("conv_and_scan", &got, &want, SCAN_TOLERANCE),
        untouched("conv_and_scan: convolution", &pool.conv, &want_conv),
        near("conv_and_scan: state", &pool.ssm, &want_ssm),
    ]
}

/// A token per row over states kept in halves: which half an element becomes is told by the noise, but
/// for the few whose f64 lies on its other side.
fn halves(device: &Device, shapes: &Shapes, numbers: &mut Numbers) -> Vec<Outcome> {
    let shapes = &one_token_each(shapes);
    if !(shapes.mamba.state.is_multiple_of(2) && shapes.mamba.inner().is_multiple_of(2)) {
        // No device keeps them.
        return Vec::new();
    }
    let states = States::new(shapes, numbers).in_halves();
    let mixer = Mixer::new(shapes, 2.0, numbers);
    let (xbc, _) = mixer.want_conv(&states);
    let (want, mut want_ssm) = mixer.want_scan(&xbc, &states);
    let mamba = &shapes.mamba;
    let len = mamba.head_dim * mamba.state;
    for row in &states.layout.rows {
        for head in 0..mamba.heads {
            let state = &mut want_ssm[(row.slot * mamba.heads + head) * len..][..len];
            let mut rounded: Vec<f32> = state.iter().map(|&x| x as f32).collect();
            let key = rounding::key(rounding::stream(SEED, head), row.start);
            rounding::round_state(key, &mut rounded, mamba.state);
            for (to, from) in state.iter_mut().zip(rounded) {
                *to = f64::from(from);
            }
        }
    }
    let (got, pool) = in_one(device, shapes, &mixer, &states);
    vec![
        outcome("half states: y", &got, &want, SCAN_TOLERANCE),
        neighbours("half states", &pool.ssm, &want_ssm),
    ]
}

/// The largest error in steps of half, of which one may be, beyond what f32 leaves before it is rounded;
/// infinite if more than one in a hundred has one.
fn neighbours(operation: &'static str, pool: &Tensor<4>, want: &[f64]) -> Outcome {
    /// Terms that cancel are as large as one.
    const BEFORE: f64 = 1e-5;
    let max_error = with_f32(pool, |got| {
        let (mut max_error, mut num_others, mut num_all) = (0.0_f64, 0, 0);
        for (&got, &want) in got.iter().zip(want) {
            if got.is_nan() != want.is_nan() {
                return f64::INFINITY;
            }
            if want.is_nan() {
                continue;
            }
            let size = want.abs().max(f64::from(rounding::SMALLEST_NORMAL));
            let error = ((f64::from(got) - want).abs() - BEFORE).max(0.0);
            let error = error / (size.log2().floor() - 10.0).exp2();
            max_error = max_error.max(error);
            num_all += 1;
            num_others += usize::from(error > 0.0);
        }
        if num_others > num_all / 100 + 3 {
            return f64::INFINITY;
        }
        max_error
    });
    Outcome {
        operation,
        max_error,
        tolerance: 1.0,
    }
}

/// States may be near in every row's slot, and must be NaN still in every other.
fn near(operation: &'static str, pool: &Tensor<4>, want: &[f64]) -> Outcome {
    let max_error = with_f32(pool, |got| {
        let is_same = |(got, want): (&f32, &f64)| got.is_nan() == want.is_nan();
        if !got.iter().zip(want).all(is_same) {
            return f64::INFINITY;
        }
        let (got, want): (Vec<f32>, Vec<f64>) = got
            .iter()
            .zip(want)
            .filter(|(_, want)| !want.is_nan())
            .map(|(&got, &want)| (got, want))
            .unzip();
        worst(&got, &want)
    });
    Outcome {
        operation,
        max_error,
        tolerance: TOLERANCE,
    }
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
