//! The tensor core products: their texts are written by hand, so every one is listed, at the shape
//! that it is for.

use cube_kernels::tensor_core::{Routed, allow_wgmma, tensor_experts, tensor_linear};
use cube_kernels::{Arithmetic, Client, Epilogue, Format};

use crate::products::matrix;
use crate::{Entry, floats, words};

fn linear(client: &Client, t: usize, format: Format, n: usize, k: usize) {
    let w = matrix(client, format, 1, n, k);
    let (x, out) = (floats(client, t * k), floats(client, t * n));
    let (arithmetic, epilogue) = (Arithmetic::Bf16, Epilogue::None);
    tensor_linear(client, &x, t, &w, None, arithmetic, epilogue, &out);
}

/// Super's routed experts.
fn experts(client: &Client, t: usize, format: Format) {
    let (top_k, experts, latent, width) = (22, 512, 1024, 2688);
    let routed = Routed {
        num_tokens: t,
        top_k,
        experts: &words(client, t * top_k),
        weights: &floats(client, t * top_k),
        sorted: &words(client, t * top_k),
        offsets: &words(client, experts + 1),
    };
    let up = matrix(client, format, experts, width, latent);
    let down = matrix(client, format, experts, latent, width);
    let (x, out) = (floats(client, t * latent), floats(client, t * latent));
    tensor_experts(client, &x, routed, &up, &down, &out);
}

macro_rules! linear_entries {
    ($($name:literal $t:literal $format:ident $n:literal $k:literal),* $(,)?) => {
        &[$(Entry::new($name, |client| linear(client, $t, Format::$format, $n, $k))),*]
    };
}

pub(crate) const LINEAR: &[Entry] = linear_entries![
    "tensor_linear_bf16_8x4096x4096" 8 Bf16 4096 4096,
    "tensor_linear_bf16_16x4096x4096" 16 Bf16 4096 4096,
    "tensor_linear_bf16_32x4096x4096" 32 Bf16 4096 4096,
    "tensor_linear_bf16_64x4096x4096" 64 Bf16 4096 4096,
    "tensor_linear_bf16_128x4096x4096" 128 Bf16 4096 4096,
    "tensor_linear_bf16_8192x4096x4096" 8192 Bf16 4096 4096,
    "tensor_linear_bf16_1x131072x4096" 1 Bf16 131072 4096,
    "tensor_linear_bf16_16x131072x4096" 16 Bf16 131072 4096,
    "tensor_linear_bf16_32x131072x4096" 32 Bf16 131072 4096,
    "tensor_linear_bf16_64x131072x4096" 64 Bf16 131072 4096,
    "tensor_linear_bf16_128x131072x4096" 128 Bf16 131072 4096,
    "tensor_linear_fp8_8x18560x4096" 8 Fp8 18560 4096,
    "tensor_linear_fp8_16x18560x4096" 16 Fp8 18560 4096,
    "tensor_linear_fp8_32x18560x4096" 32 Fp8 18560 4096,
    "tensor_linear_fp8_64x18560x4096" 64 Fp8 18560 4096,
    "tensor_linear_fp8_128x4096x8192" 128 Fp8 4096 8192,
    "tensor_linear_fp8_8192x18560x4096" 8192 Fp8 18560 4096,
    "tensor_linear_nvfp4_8x4096x5376" 8 Nvfp4 4096 5376,
    "tensor_linear_nvfp4_16x4096x5376" 16 Nvfp4 4096 5376,
    "tensor_linear_nvfp4_32x4096x5376" 32 Nvfp4 4096 5376,
    "tensor_linear_nvfp4_64x4096x5376" 64 Nvfp4 4096 5376,
    "tensor_linear_nvfp4_128x4096x5376" 128 Nvfp4 4096 5376,
    "tensor_linear_nvfp4_8192x4096x5376" 8192 Nvfp4 4096 5376,
];

pub(crate) const EXPERTS: &[Entry] = &[
    Entry::new("tensor_experts_nvfp4_1", |client| {
        experts(client, 1, Format::Nvfp4)
    }),
    Entry::new("tensor_experts_nvfp4_64", |client| {
        experts(client, 64, Format::Nvfp4)
    }),
    Entry::new("tensor_experts_nvfp4_256", |client| {
        experts(client, 256, Format::Nvfp4)
    }),
    Entry::new("tensor_experts_nvfp4_512", |client| {
        experts(client, 512, Format::Nvfp4)
    }),
    Entry::new("tensor_experts_nvfp4_1024", |client| {
        experts(client, 1024, Format::Nvfp4)
    }),
    Entry::new("tensor_experts_nvfp4_8192", |client| {
        experts(client, 8192, Format::Nvfp4)
    }),
    Entry::new("tensor_experts_fp8_64", |client| {
        experts(client, 64, Format::Fp8)
    }),
    Entry::new("tensor_experts_fp8_8192", |client| {
        experts(client, 8192, Format::Fp8)
    }),
    Entry::new("tensor_experts_bf16_64", |client| {
        experts(client, 64, Format::Bf16)
    }),
    Entry::new("tensor_experts_bf16_8192", |client| {
        experts(client, 8192, Format::Bf16)
    }),
];

const fn hopper(name: &'static str, call: fn(&Client)) -> Entry {
    Entry {
        arches: &[90],
        ..Entry::new(name, call)
    }
}

fn linear_hopper(client: &Client, format: Format) {
    allow_wgmma(true);
    linear(client, 8192, format, 18560, 4096);
    allow_wgmma(false);
}

fn experts_hopper(client: &Client, format: Format) {
    allow_wgmma(true);
    experts(client, 8192, format);
    allow_wgmma(false);
}

pub(crate) const HOPPER: &[Entry] = &[
    hopper("tensor_linear_wgmma_bf16_8192x18560x4096", |client| {
        linear_hopper(client, Format::Bf16)
    }),
    hopper("tensor_linear_wgmma_fp8_8192x18560x4096", |client| {
        linear_hopper(client, Format::Fp8)
    }),
    hopper("tensor_linear_wgmma_nvfp4_8192x18560x4096", |client| {
        linear_hopper(client, Format::Nvfp4)
    }),
    hopper("tensor_experts_wgmma_bf16_8192", |client| {
        experts_hopper(client, Format::Bf16)
    }),
    hopper("tensor_experts_wgmma_fp8_8192", |client| {
        experts_hopper(client, Format::Fp8)
    }),
    hopper("tensor_experts_wgmma_nvfp4_8192", |client| {
        experts_hopper(client, Format::Nvfp4)
    }),
];
