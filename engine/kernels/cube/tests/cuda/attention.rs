//! The cache, attention, routing and sampling.

use cube_kernels::{
    Arithmetic, Buffer, Client, Columns, KvFormat, Noise, RouterShape, RowIndex, RowMoves,
    SampleRequest, StepIndex,
};

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
    // Hidden states of 64 rows into a matrix of wider ones.
    Entry::new("copy_rows_64x4096", |client| {
        let [from, to] = [4096, 8192].map(|stride| (floats(client, 64 * stride), stride));
        let moves: Vec<(usize, usize)> = (0..64).map(|row| (row, 63 - row)).collect();
        let columns = |(buffer, stride)| Columns {
            buffer,
            stride,
            first: 0,
        };
        let moves = RowMoves::upload(client, &moves);
        let (from, to) = (columns((&from.0, from.1)), columns((&to.0, to.1)));
        cube_kernels::copy_rows(client, from, to, 4096, &moves);
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
    Entry::new("cache_write_bf16_64", |client| {
        write(client, KvFormat::Bf16);
    }),
    Entry::new("cache_write_fp8_64", |client| {
        write(client, FP8);
    }),
    Entry::new("cache_write_f32_64", |client| {
        write(client, KvFormat::F32);
    }),
    // 64 streams of 8192 positions, one token each: splits.
    Entry {
        spill_bytes: 16,
        ..Entry::new("paged_attention_bf16_64x8192", |client| {
            attend(client, KvFormat::Bf16, 64, 1, Arithmetic::F32);
        })
    },
    Entry::new("paged_attention_fp8_64x8192", |client| {
        attend(client, FP8, 64, 1, Arithmetic::F32);
    }),
    // The last 2048 tokens of a prompt of 8192: walks.
    Entry::new("paged_attention_bf16_chunk_2048", |client| {
        attend(client, KvFormat::Bf16, 1, 2048, Arithmetic::F32);
    }),
    Entry {
        spill_bytes: 12,
        ..Entry::new("paged_attention_f32_64x8192", |client| {
            attend(client, KvFormat::F32, 64, 1, Arithmetic::F32);
        })
    },
    // A draft's, which sees a row's newest positions alone.
    Entry::new("paged_attention_bf16_newest_64x8192", |client| {
        let step = step(client, 64, 1).seen_from(CONTEXT - 512);
        attend_in(client, KvFormat::Bf16, Arithmetic::Bf16, &step);
    }),
    Entry::new("tensor_attention_bf16_64x8192", |client| {
        tensor(client, KvFormat::Bf16, 64, 1);
    }),
    Entry::new("tensor_attention_fp8_64x8192", |client| {
        tensor(client, FP8, 64, 1);
    }),
    Entry {
        spill_bytes: WALK_SPILL_BYTES,
        ..Entry::new("tensor_attention_bf16_chunk_2048", |client| {
            tensor(client, KvFormat::Bf16, 1, 2048);
        })
    },
    Entry {
        spill_bytes: WALK_SPILL_BYTES,
        ..Entry::new("tensor_attention_fp8_chunk_2048", |client| {
            tensor(client, FP8, 1, 2048);
        })
    },
    // Four tokens at the end of a long context, as drafts are verified: splits of a block of warps.
    Entry::new("tensor_attention_bf16_16x4_8192", |client| {
        tensor(client, KvFormat::Bf16, 16, 4);
    }),
    // 64 rows, each with every list, a mask, penalties and a prompt's token.
    Entry {
        spill_bytes: 4,
        ..Entry::new("shortlist_64x131072", |client| {
            let (mask, edited) = (vec![!0; 131_072 / 32], (0..500).collect::<Vec<u32>>());
            let request = SampleRequest {
                mask: Some(&mask),
                edited: &edited,
                wanted: &[7],
                num_top: 20,
                num_likely: 256,
                noise: Some(Noise {
                    stream: 1,
                    temperature: 1.0,
                    count: 16,
                }),
            };
            let logits = floats(client, 64 * 131_072);
            cube_kernels::shortlist(client, &logits, 64, 131_072, &[request; 64]);
        })
    },
];

/// See tensor_attention.cu.
const WALK_SPILL_BYTES: usize = 24;

const FP8: KvFormat = KvFormat::Fp8 {
    k_scale: 1.0,
    v_scale: 1.0,
};
const HEADS: usize = 32;
const KV_HEADS: usize = 2;
const HEAD_DIM: usize = 128;
const BLOCK: usize = 32;
const CONTEXT: usize = 8192;

/// Rows at the end of their context.
fn step(client: &Client, num_rows: usize, num_tokens: usize) -> StepIndex {
    let row = RowIndex {
        num_tokens,
        start: CONTEXT - num_tokens,
        slot: 1,
        blocks: vec![1; CONTEXT / BLOCK],
    };
    StepIndex::upload(client, &vec![row; num_rows], BLOCK)
}

/// A side of a pool of 4096 blocks.
fn pool(client: &Client, format: KvFormat) -> Buffer {
    let bits = match format {
        KvFormat::F32 => 32,
        KvFormat::Bf16 => 16,
        KvFormat::Fp8 { .. } => 8,
    };
    words(client, 4096 * BLOCK * KV_HEADS * HEAD_DIM * bits / 32)
}

fn write(client: &Client, format: KvFormat) {
    let side = floats(client, 64 * KV_HEADS * HEAD_DIM);
    let (keys, values) = (pool(client, format), pool(client, format));
    let step = step(client, 64, 1);
    cube_kernels::cache_write(
        client, &side, &side, &keys, &values, format, KV_HEADS, HEAD_DIM, &step,
    );
}

/// On tensor cores.
fn tensor(client: &Client, format: KvFormat, num_rows: usize, num_tokens: usize) {
    let arithmetic = Arithmetic::Bf16;
    attend(client, format, num_rows, num_tokens, arithmetic);
}

fn attend(
    client: &Client,
    format: KvFormat,
    num_rows: usize,
    num_tokens: usize,
    arithmetic: Arithmetic,
) {
    let step = step(client, num_rows, num_tokens);
    attend_in(client, format, arithmetic, &step);
}

fn attend_in(client: &Client, format: KvFormat, arithmetic: Arithmetic, step: &StepIndex) {
    let q = floats(client, step.num_tokens * HEADS * HEAD_DIM);
    let out = floats(client, q.len());
    let (keys, values) = (pool(client, format), pool(client, format));
    cube_kernels::paged_attention(
        client, &q, &keys, &values, format, HEADS, KV_HEADS, HEAD_DIM, arithmetic, step, &out,
    );
}
