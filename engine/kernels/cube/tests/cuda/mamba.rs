//! The Mamba-2 mixer.

use cube_kernels::{
    Arithmetic, Client, MambaShape, RowIndex, ScanParameters, StateFormat, StepIndex,
};

use crate::{Entry, floats, words};

/// Super's.
const SHAPE: MambaShape = MambaShape {
    heads: 128,
    head_dim: 64,
    groups: 8,
    state: 128,
    conv_kernel: 4,
};

/// `rows` rows of `tokens` tokens.
fn step(client: &Client, rows: usize, tokens: usize) -> StepIndex {
    StepIndex::upload(client, &vec![row(tokens); rows], 64)
}

fn row(num_tokens: usize) -> RowIndex {
    RowIndex {
        num_tokens,
        start: 0,
        slot: 1,
        blocks: vec![1; num_tokens.div_ceil(64)],
    }
}

/// The same, of which the states absorb `absorbed` tokens: rows whose drafts are verified.
fn absorbing(client: &Client, rows: usize, tokens: usize, absorbed: usize) -> StepIndex {
    let list = vec![row(tokens); rows];
    step(client, rows, tokens).absorbing(client, &list, &vec![absorbed; rows])
}

fn conv(client: &Client, step: &StepIndex) {
    let (rows, t) = (step.num_rows, step.num_tokens);
    cube_kernels::causal_conv1d(
        client,
        &floats(client, t * SHAPE.projected()),
        &floats(client, SHAPE.conv_dim() * 4),
        Some(&floats(client, SHAPE.conv_dim())),
        &floats(client, rows * SHAPE.conv_dim() * 3),
        &SHAPE,
        step,
        &floats(client, t * SHAPE.conv_dim()),
    );
}

fn scan(client: &Client, step: &StepIndex, state: StateFormat) {
    let (rows, t) = (step.num_rows, step.num_tokens);
    let [a, d, dt_bias] = [(); 3].map(|()| floats(client, SHAPE.heads));
    cube_kernels::ssm_scan(
        client,
        &floats(client, t * SHAPE.conv_dim()),
        &floats(client, t * SHAPE.projected()),
        &ScanParameters {
            a: &a,
            d: &d,
            dt_bias: &dt_bias,
            time_step_limit: None,
            state,
        },
        &words(client, state.words(rows * SHAPE.inner() * SHAPE.state)),
        &SHAPE,
        step,
        Arithmetic::Bf16,
        &floats(client, t * SHAPE.inner()),
    );
}

fn decode(client: &Client, rows: usize, time_step_limit: Option<(f32, f32)>, state: StateFormat) {
    let [a, d, dt_bias] = [(); 3].map(|()| floats(client, SHAPE.heads));
    cube_kernels::conv_and_update(
        client,
        &floats(client, rows * SHAPE.projected()),
        &floats(client, SHAPE.conv_dim() * 4),
        Some(&floats(client, SHAPE.conv_dim())),
        &floats(client, rows * SHAPE.conv_dim() * 3),
        &ScanParameters {
            a: &a,
            d: &d,
            dt_bias: &dt_bias,
            time_step_limit,
            state,
        },
        &words(client, state.words(rows * SHAPE.inner() * SHAPE.state)),
        &SHAPE,
        &step(client, rows, 1),
        &floats(client, rows * SHAPE.inner()),
    );
}

const HALVES: StateFormat = StateFormat::F16 { seed: 1 };

pub(crate) const ENTRIES: &[Entry] = &[
    Entry::new("conv_decode_64x10240", |client| {
        conv(client, &step(client, 64, 1));
    }),
    Entry::new("conv_prefill_2048x10240", |client| {
        conv(client, &step(client, 1, 2048));
    }),
    Entry::new("conv_absorbing_16x4x10240", |client| {
        conv(client, &absorbing(client, 16, 4, 2));
    }),
    Entry::new("ssm_decode_64x128x64x128", |client| {
        scan(client, &step(client, 64, 1), StateFormat::F32);
    }),
    Entry::new("ssm_decode_half_64x128x64x128", |client| {
        scan(client, &step(client, 64, 1), HALVES);
    }),
    Entry::new("ssm_absorbing_16x4x128x64x128", |client| {
        scan(client, &absorbing(client, 16, 4, 2), StateFormat::F32);
    }),
    Entry::new("ssm_absorbing_half_16x4x128x64x128", |client| {
        scan(client, &absorbing(client, 16, 4, 2), HALVES);
    }),
    Entry::new("conv_and_update_64x128x64x128", |client| {
        decode(client, 64, None, StateFormat::F32);
    }),
    Entry::new("conv_and_update_limited_64x128x64x128", |client| {
        decode(client, 64, Some((0.001, 0.1)), StateFormat::F32);
    }),
    Entry::new("conv_and_update_half_64x128x64x128", |client| {
        decode(client, 64, None, HALVES);
    }),
    Entry::new("tensor_scan_2048x128x64x128", |client| {
        scan(client, &step(client, 1, 2048), StateFormat::F32);
    }),
    Entry::new("tensor_scan_half_2048x128x64x128", |client| {
        scan(client, &step(client, 1, 2048), HALVES);
    }),
];
