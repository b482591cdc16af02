//! Attention on the CPU: blocks of absolute position are read where they lie.
//!
//! A job is some queries of one row with some of the query heads that share a kv head, so that each
//! block of keys and values is read once for all of them. Every query keeps its own running
//! maximum, and what it adds depends on absolute positions alone: neither chunking, nor the other
//! queries of a job, nor the split into jobs changes a bit.
#![allow(unsafe_code)]

use std::ops::Range;

use burn::tensor::{DType, Element, Tensor};
use burn_flex::FlexTensor;
use bytemuck::{Pod, TransparentWrapper as _};

use super::online::{Attend, Cached, Job};
use crate::e4m3::E4m3;
use crate::flex;
use crate::profile::{self, Work};
use crate::simd;
use crate::team::{self, SharedMut};
use crate::{Arithmetic, KvPool, KvTensor, Layout, RowLayout, isa};

/// Numbers of the queries of a job: enough rows to reuse a span that was laid out for them, few enough
/// to stay in the second-level cache with it.
const JOB_NUMBERS: usize = 8192;

/// See [`paged_attention`](super::paged_attention()).
pub(super) fn paged_attention(
    q: Tensor<2>,
    pool: &KvPool,
    heads: usize,
    arithmetic: Arithmetic,
    layout: &Layout,
) -> Tensor<2> {
    let [num_tokens, width] = q.dims();
    let [_, _, kv_heads, head_dim] = pool.keys.dims();
    assert_eq!(pool.values.dims(), pool.keys.dims(), "value pool");
    let q = flex::owned(q);
    let (keys, values) = (view(&pool.keys), view(&pool.values));
    let mut out = vec![0.0; num_tokens * width];
    let attend = Attend {
        q: flex::f32s(&q),
        cached: cached(&keys, &values),
        key_scale: pool.keys.scale(),
        value_scale: pool.values.scale(),
        heads,
        kv_heads,
        head_dim,
        block_size: layout.block_size,
        rounded: arithmetic.is_rounded(),
        first_position: layout.first_position,
        out: SharedMut::new(&mut out),
    };
    let job_rows = (JOB_NUMBERS / head_dim).clamp(16, 128);
    let jobs = jobs(layout, job_rows, heads / kv_heads, kv_heads);
    let cost = jobs.iter().map(|job| job.cost(head_dim)).sum();
    let _scope = profile::scope("attention", [heads, head_dim], || {
        let positions: usize = layout.rows.iter().map(RowLayout::context_len).sum();
        let stored = attend.cached.num_bytes();
        Work {
            bytes: 2 * stored * positions * kv_heads * head_dim
                + 2 * size_of::<f32>() * num_tokens * width,
            operations: 2 * cost,
        }
    });
    let isa = isa();
    team::share(jobs.len(), cost, |index| {
        simd::run(isa, (&attend, &jobs[index]));
    });
    flex::from_vec(out, [num_tokens, width])
}

fn view(side: &KvTensor) -> FlexTensor {
    match side {
        KvTensor::Float(tensor) => flex::view(tensor),
        KvTensor::Fp8 { codes, .. } => flex::view(codes),
    }
}

/// Both sides in the format that they share.
fn cached<'a>(keys: &'a FlexTensor, values: &'a FlexTensor) -> Cached<'a> {
    fn slice<E: Element + Pod>(tensor: &FlexTensor) -> &[E] {
        tensor
            .as_slice()
            .expect("the view is contiguous and of this dtype")
    }
    match (keys.dtype(), values.dtype()) {
        (DType::F32, DType::F32) => Cached::F32(slice(keys), slice(values)),
        (DType::BF16, DType::BF16) => Cached::Bf16(slice(keys), slice(values)),
        (DType::U8, DType::U8) => Cached::Fp8(
            E4m3::wrap_slice(slice(keys)),
            E4m3::wrap_slice(slice(values)),
        ),
        (keys, values) => panic!("KV pools are both F32, BF16 or FP8, not {keys:?} and {values:?}"),
    }
}

/// Cuts the step into jobs: by kv head, by queries, and by heads of a group while there are fewer
/// jobs than threads.
fn jobs(layout: &Layout, rows: usize, group: usize, kv_heads: usize) -> Vec<Job<'_>> {
    let queries = (rows / group).max(1);
    let cuts: Vec<(&RowLayout, Range<usize>)> = layout
        .rows
        .iter()
        .flat_map(|row| {
            row.tokens
                .clone()
                .step_by(queries)
                .map(move |start| (row, start..(start + queries).min(row.tokens.end)))
        })
        .collect();
    let threads = team::num_threads();
    let split = threads.div_ceil((cuts.len() * kv_heads).max(1)).min(group);
    let heads_per_job = group.div_ceil(split);
    let mut jobs = Vec::new();
    for kv_head in 0..kv_heads {
        for start in (0..group).step_by(heads_per_job) {
            let end = (start + heads_per_job).min(group);
            for (row, tokens) in &cuts {
                jobs.push(Job {
                    row,
                    tokens: tokens.clone(),
                    kv_head,
                    heads: kv_head * group + start..kv_head * group + end,
                });
            }
        }
    }
    jobs
}
