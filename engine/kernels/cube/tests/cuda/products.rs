//! Products with weight matrices.

use cube_kernels::{Client, Format, Matrix, NVFP4_GROUP};

use crate::{Entry, floats, words};

pub(crate) const ENTRIES: &[Entry] = &[Entry::new("embedding_bf16_131072x4096", |client| {
    let table = matrix(client, Format::Bf16, 1, 131_072, 4096);
    let (ids, out) = (words(client, 64), floats(client, 64 * 4096));
    cube_kernels::embedding(client, &table, &ids, 64, &out);
})];

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
