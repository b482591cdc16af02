//! The tensor core products: their texts are written by hand, so every one is listed, at the shape
//! that it is for.

use cube_kernels::tensor_core::choice::Way;
use cube_kernels::tensor_core::linear_by;
use cube_kernels::{Arithmetic, Client, Epilogue, Format};

use crate::products::matrix;
use crate::{Entry, floats, words};

fn linear(client: &Client, arithmetic: Arithmetic, t: usize, format: Format, n: usize, k: usize) {
    let w = matrix(client, format, 1, n, k);
    let (x, out) = (floats(client, t * k), floats(client, t * n));
    let epilogue = Epilogue::None;
    cube_kernels::linear(client, &x, t, &w, None, arithmetic, epilogue, &out);
}

/// Super's routed experts, and how they are grouped.
fn experts(client: &Client, arithmetic: Arithmetic, t: usize, format: Format) {
    let (top_k, experts, latent, width) = (22, 512, 1024, 2688);
    let up = matrix(client, format, experts, width, latent);
    let down = matrix(client, format, experts, latent, width);
    let (x, out) = (floats(client, t * latent), floats(client, t * latent));
    let (ids, weights) = (words(client, t * top_k), floats(client, t * top_k));
    cube_kernels::experts(
        client, &x, t, &up, &down, &ids, &weights, top_k, arithmetic, &out,
    );
}

/// Bytes that tiles of 64 tokens and more may spill (see tensor_product.cu).
const SPILL_BYTES: usize = 16;

macro_rules! entries {
    ($($name:literal $call:ident($t:expr, $($argument:expr),*)),* $(,)?) => {
        &[$(Entry {
            spill_bytes: if $t >= 64 { SPILL_BYTES } else { 0 },
            ..Entry::new($name, |client| $call(client, Arithmetic::Bf16, $t, $($argument),*))
        }),*]
    };
}

pub(crate) const LINEAR: &[Entry] = entries![
    "tensor_linear_bf16_8x4096x4096" linear(8, Format::Bf16, 4096, 4096),
    "tensor_linear_bf16_16x4096x4096" linear(16, Format::Bf16, 4096, 4096),
    "tensor_linear_bf16_32x4096x4096" linear(32, Format::Bf16, 4096, 4096),
    "tensor_linear_bf16_64x4096x4096" linear(64, Format::Bf16, 4096, 4096),
    "tensor_linear_bf16_128x4096x4096" linear(128, Format::Bf16, 4096, 4096),
    "tensor_linear_bf16_8192x4096x4096" linear(8192, Format::Bf16, 4096, 4096),
    "tensor_linear_bf16_64x131072x4096" linear(64, Format::Bf16, 131_072, 4096),
    "tensor_linear_bf16_128x131072x4096" linear(128, Format::Bf16, 131_072, 4096),
    "tensor_linear_fp8_8x18560x4096" linear(8, Format::Fp8, 18_560, 4096),
    "tensor_linear_fp8_16x18560x4096" linear(16, Format::Fp8, 18_560, 4096),
    "tensor_linear_fp8_32x18560x4096" linear(32, Format::Fp8, 18_560, 4096),
    "tensor_linear_fp8_64x18560x4096" linear(64, Format::Fp8, 18_560, 4096),
    "tensor_linear_fp8_8192x18560x4096" linear(8192, Format::Fp8, 18_560, 4096),
    "tensor_linear_nvfp4_8x4096x5376" linear(8, Format::Nvfp4, 4096, 5376),
    "tensor_linear_nvfp4_16x4096x5376" linear(16, Format::Nvfp4, 4096, 5376),
    "tensor_linear_nvfp4_32x4096x5376" linear(32, Format::Nvfp4, 4096, 5376),
    "tensor_linear_nvfp4_64x4096x5376" linear(64, Format::Nvfp4, 4096, 5376),
    "tensor_linear_nvfp4_8192x4096x5376" linear(8192, Format::Nvfp4, 4096, 5376),
];

/// Tiles of 8, 16, 32, 64 and 128 tokens.
pub(crate) const EXPERTS: &[Entry] = entries![
    "tensor_experts_nvfp4_64" experts(64, Format::Nvfp4),
    "tensor_experts_nvfp4_180" experts(180, Format::Nvfp4),
    "tensor_experts_nvfp4_512" experts(512, Format::Nvfp4),
    "tensor_experts_nvfp4_1024" experts(1024, Format::Nvfp4),
    "tensor_experts_nvfp4_2048" experts(2048, Format::Nvfp4),
    "tensor_experts_fp8_64" experts(64, Format::Fp8),
    "tensor_experts_fp8_2048" experts(2048, Format::Fp8),
    "tensor_experts_bf16_64" experts(64, Format::Bf16),
    "tensor_experts_bf16_2048" experts(2048, Format::Bf16),
];

/// What goes before and after a library's product: once for each format, and every epilogue.
pub(crate) const LIBRARY: &[Entry] = &[
    Entry::new("tensor_library_bf16_8192x18560x4096", |client| {
        by_library(client, Format::Bf16, true, Epilogue::None);
    }),
    Entry::new("tensor_library_fp8_8192x18560x4096", |client| {
        by_library(client, Format::Fp8, false, Epilogue::Relu2);
    }),
    Entry::new("tensor_library_nvfp4_8192x18560x4096", |client| {
        by_library(client, Format::Nvfp4, false, Epilogue::None);
    }),
];

fn by_library(client: &Client, format: Format, has_bias: bool, epilogue: Epilogue) {
    let [t, n, k] = [8192, 18_560, 4096];
    let w = matrix(client, format, 1, n, k);
    let bias = has_bias.then(|| floats(client, n));
    let (x, out) = (floats(client, t * k), floats(client, t * n));
    let bias = bias.as_ref();
    linear_by(Way::Library, client, &x, t, &w, bias, epilogue, &out);
}

macro_rules! hopper_entries {
    ($($name:literal $call:ident($($argument:expr),*)),* $(,)?) => {
        &[$(Entry {
            arches: &[90],
            ..Entry::new($name, |client| {
                $call(client, Arithmetic::Bf16AnyOrder, $($argument),*);
            })
        }),*]
    };
}

pub(crate) const HOPPER: &[Entry] = hopper_entries![
    "tensor_linear_wgmma_bf16_8192x18560x4096" linear(8192, Format::Bf16, 18_560, 4096),
    "tensor_linear_wgmma_fp8_8192x18560x4096" linear(8192, Format::Fp8, 18_560, 4096),
    "tensor_linear_wgmma_nvfp4_8192x18560x4096" linear(8192, Format::Nvfp4, 18_560, 4096),
    "tensor_experts_wgmma_fp8_2048" experts(2048, Format::Fp8),
    "tensor_experts_wgmma_nvfp4_2048" experts(2048, Format::Nvfp4),
];
