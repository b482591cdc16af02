//! The cache, attention, routing and sampling.

use cube_kernels::RouterShape;

use crate::{Entry, floats, words};

pub(crate) const ENTRIES: &[Entry] = &[
    // A state slot of one layer: 128 heads of 64 by 128.
    Entry::new("zero_words_state", |client| {
        let pool = words(client, 4 << 20);
        cube_kernels::zero_words(client, &pool, 1 << 20, 1 << 20);
    }),
    Entry::new("copy_words_state", |client| {
        let pool = words(client, 4 << 20);
        cube_kernels::copy_words(client, &pool, 1 << 20, 2 << 20, 1 << 20);
    }),
    Entry::new("gather_rows_64x4096", |client| {
        let x = floats(client, 2048 * 4096);
        let (positions, out) = (words(client, 64), floats(client, 64 * 4096));
        cube_kernels::gather_rows(client, &x, 4096, &positions, 64, &out);
    }),
    Entry::new("router_topk_64x512_22", |client| {
        let shape = RouterShape {
            num_experts: 512,
            top_k: 22,
            n_group: 1,
            topk_group: 1,
            norm_topk_prob: true,
            scaling: 5.0,
        };
        let (logits, bias) = (floats(client, 64 * 512), floats(client, 512));
        let (ids, weights) = (words(client, 64 * 22), floats(client, 64 * 22));
        cube_kernels::router_topk(client, &logits, &bias, 64, &shape, &ids, &weights);
    }),
];
