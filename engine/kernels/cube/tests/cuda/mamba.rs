//! The Mamba-2 mixer.

use cube_kernels::{Client, MambaShape, ScanParameters, StepIndex};

use crate::{Entry, floats, words};

/// Super's.
const SHAPE: MambaShape = MambaShape {
    heads: 128,
    head_dim: 64,
    groups: 8,
    state: 128,
    conv_kernel: 4,
};

/// `rows` rows of `tokens` tokens, without values.
fn step(client: &Client, rows: usize, tokens: usize) -> StepIndex {
    StepIndex {
        num_tokens: rows * tokens,
        num_rows: rows,
        num_single_rows: if tokens == 1 { rows } else { 0 },
        max_row_tokens: tokens,
        max_context: tokens,
        block_size: 64,
        table_stride: 1,
        token_rows: words(client, rows * tokens),
        token_positions: words(client, rows * tokens),
        row_tokens: words(client, rows + 1),
        row_starts: words(client, rows),
        row_slots: words(client, rows),
        tables: words(client, rows),
    }
}

fn conv(client: &Client, rows: usize, tokens: usize) {
    let step = step(client, rows, tokens);
    let t = step.num_tokens;
    cube_kernels::causal_conv1d(
        client,
        &floats(client, t * SHAPE.projected()),
        &floats(client, SHAPE.conv_dim() * 4),
        Some(&floats(client, SHAPE.conv_dim())),
        &floats(client, rows * SHAPE.conv_dim() * 3),
        &SHAPE,
        &step,
        &floats(client, t * SHAPE.conv_dim()),
    );
}

fn scan(client: &Client, rows: usize, tokens: usize) {
    let step = step(client, rows, tokens);
    let t = step.num_tokens;
    let [a, d, dt_bias] = [(); 3].map(|()| floats(client, SHAPE.heads));
    let scan = if tokens == 1 {
        cube_kernels::ssm_scan
    } else {
        cube_kernels::tensor_core::tensor_scan
    };
    scan(
        client,
        &floats(client, t * SHAPE.conv_dim()),
        &floats(client, t * SHAPE.projected()),
        &ScanParameters {
            a: &a,
            d: &d,
            dt_bias: &dt_bias,
            time_step_limit: None,
        },
        &floats(client, rows * SHAPE.inner() * SHAPE.state),
        &SHAPE,
        &step,
        &floats(client, t * SHAPE.inner()),
    );
}

fn decode(client: &Client, rows: usize) {
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
            time_step_limit: None,
        },
        &floats(client, rows * SHAPE.inner() * SHAPE.state),
        &SHAPE,
        &step(client, rows, 1),
        &words(client, rows * SHAPE.groups),
        &floats(client, rows * SHAPE.inner()),
    );
}

pub(crate) const ENTRIES: &[Entry] = &[
    Entry::new("conv_decode_64x10240", |client| conv(client, 64, 1)),
    Entry::new("conv_prefill_2048x10240", |client| conv(client, 1, 2048)),
    Entry::new("ssm_decode_64x128x64x128", |client| scan(client, 64, 1)),
    Entry::new("conv_and_update_64x128x64x128", |client| decode(client, 64)),
    Entry::new("tensor_scan_2048x128x64x128", |client| {
        scan(client, 1, 2048);
    }),
];
