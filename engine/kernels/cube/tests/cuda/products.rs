//! Products with weight matrices.

use cube_kernels::{Arithmetic, Client, Epilogue, Format, Matrix, NVFP4_GROUP, tensor_core};

use crate::{Entry, floats, words};

pub(crate) const ENTRIES: &[Entry] = &[
    Entry::new("embedding_bf16_131072x4096", |client| {
        let table = matrix(client, Format::Bf16, 1, 131_072, 4096);
        let (ids, out) = (words(client, 64), floats(client, 64 * 4096));
        cube_kernels::embedding(client, &table, &ids, 64, &out);
    }),
    Entry::new("linear_bf16_in_18560x4096_t1", |client| {
        linear(client, Format::Bf16, [18_560, 4096], 1);
    }),
    Entry::new("linear_bf16_q_4096x4096_t1", |client| {
        linear(client, Format::Bf16, [4096, 4096], 1);
    }),
    Entry::new("linear_bf16_kv_256x4096_t1", |client| {
        linear(client, Format::Bf16, [256, 4096], 1);
    }),
    Entry::new("linear_bf16_head_131072x4096_t2", |client| {
        linear(client, Format::Bf16, [131_072, 4096], 2);
    }),
    Entry::new("linear_bf16_head_131072x4096_t8", |client| {
        linear(client, Format::Bf16, [131_072, 4096], 8);
    }),
    Entry::new("linear_fp8_in_18560x4096_t1", |client| {
        linear(client, Format::Fp8, [18_560, 4096], 1);
    }),
    Entry::new("linear_fp8_in_18560x4096_t4", |client| {
        linear(client, Format::Fp8, [18_560, 4096], 4);
    }),
    Entry::new("linear_fp8_in_18560x4096_t64", |client| {
        linear(client, Format::Fp8, [18_560, 4096], 64);
    }),
    Entry::new("linear_fp8_out_4096x8192_t1", |client| {
        linear(client, Format::Fp8, [4096, 8192], 1);
    }),
    Entry::new("linear_fp8_latent_1024x4096_t1", |client| {
        linear(client, Format::Fp8, [1024, 4096], 1);
    }),
    Entry::new("linear_nvfp4_in_18560x4096_t1", |client| {
        linear(client, Format::Nvfp4, [18_560, 4096], 1);
    }),
    Entry::new("linear_nvfp4_in_18560x4096_t8", |client| {
        linear(client, Format::Nvfp4, [18_560, 4096], 8);
    }),
    // Activations of full precision, as --dtype f32 has them.
    Entry::new("linear_bf16_in_f32_18560x4096_t8", |client| {
        linear_in(client, Format::Bf16, [18_560, 4096], 8, Arithmetic::F32);
    }),
    Entry::new("linear_fp8_in_f32_18560x4096_t8", |client| {
        linear_in(client, Format::Fp8, [18_560, 4096], 8, Arithmetic::F32);
    }),
    Entry::new("linear_f32_gate_512x4096_t1", |client| {
        linear(client, Format::F32, [512, 4096], 1);
    }),
    Entry::new("experts_nvfp4_512x2688x1024_t1", |client| {
        experts(client, Format::Nvfp4, 1);
    }),
    Entry::new("experts_nvfp4_512x2688x1024_t64", |client| {
        experts(client, Format::Nvfp4, 64);
    }),
    Entry::new("experts_nvfp4_512x2688x1024_t512", |client| {
        experts(client, Format::Nvfp4, 512);
    }),
    Entry::new("experts_fp8_512x2688x1024_t1", |client| {
        experts(client, Format::Fp8, 1);
    }),
    Entry::new("experts_fp8_512x2688x1024_t64", |client| {
        experts(client, Format::Fp8, 64);
    }),
];

fn experts(client: &Client, format: Format, t: usize) {
    let (up, down) = (
        matrix(client, format, 512, 2688, 1024),
        matrix(client, format, 512, 1024, 2688),
    );
    let (v, out) = (floats(client, t * 1024), floats(client, t * 1024));
    let (ids, weights) = (words(client, t * 22), floats(client, t * 22));
    let arithmetic = Arithmetic::Bf16;
    tensor_core::allow(false);
    cube_kernels::experts(
        client, &v, t, &up, &down, &ids, &weights, 22, arithmetic, &out,
    );
    tensor_core::allow(true);
}

fn linear(client: &Client, format: Format, dims: [usize; 2], t: usize) {
    linear_in(client, format, dims, t, Arithmetic::Bf16);
}

fn linear_in(
    client: &Client,
    format: Format,
    [n, k]: [usize; 2],
    t: usize,
    arithmetic: Arithmetic,
) {
    let w = matrix(client, format, 1, n, k);
    let (x, out) = (floats(client, t * k), floats(client, t * n));
    let epilogue = Epilogue::None;
    tensor_core::allow(false); // They have entries of their own.
    cube_kernels::linear(client, &x, t, &w, None, arithmetic, epilogue, &out);
    tensor_core::allow(true);
}

/// A stack without values.
pub(crate) fn matrix(
    client: &Client,
    format: Format,
    experts: usize,
    n: usize,
    k: usize,
) -> Matrix {
    let is_scaled = matches!(format, Format::Fp8 | Format::Nvfp4);
    Matrix {
        format,
        experts,
        n,
        k,
        words: words(client, experts * n * k * format.code_bits() / 32),
        block_scales: (format == Format::Nvfp4)
            .then(|| words(client, experts * n * k / NVFP4_GROUP / 4)),
        scales: is_scaled.then(|| floats(client, experts)),
    }
}
