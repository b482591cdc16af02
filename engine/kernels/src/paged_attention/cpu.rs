//! Attention on the CPU: blocks of absolute position are read where they lie.
//!
//! A job is some queries of one row with some of the query heads that share a kv head, so that each
//! block of keys and values is read once for all of them. Every query keeps its own running
//! maximum, and what it adds depends on absolute positions alone: neither chunking, nor the other
//! queries of a job, nor the split into jobs changes a bit.
#![allow(unsafe_code)]

use std::ops::Range;

use burn::tensor::Tensor;

use super::online::{Attend, Job};
use crate::flex::{self, Elements};
use crate::simd;
use crate::team::{self, SharedMut};
use crate::{KvPool, Layout, RowLayout, isa};

/// Queries times heads of a job: enough to reuse a block, few enough to stay in the first-level
/// cache with it.
const JOB_ROWS: usize = 32;

/// See [`paged_attention`](super::paged_attention()).
pub(super) fn paged_attention(
    q: Tensor<2>,
    pool: &KvPool,
    heads: usize,
    layout: &Layout,
) -> Tensor<2> {
    let [num_tokens, width] = q.dims();
    let [_, _, kv_heads, head_dim] = pool.keys.dims();
    assert_eq!(pool.values.dims(), pool.keys.dims(), "value pool");
    let q = flex::owned(q);
    let (keys, values) = (flex::view(&pool.keys), flex::view(&pool.values));
    let mut out = vec![0.0; num_tokens * width];
    let attend = Attend {
        q: flex::f32s(&q),
        keys: flex::elements(&keys),
        values: flex::elements(&values),
        heads,
        kv_heads,
        head_dim,
        block_size: layout.block_size,
        out: SharedMut::new(&mut out),
    };
    assert!(
        std::mem::discriminant(&attend.keys) == std::mem::discriminant(&attend.values)
            && !matches!(attend.keys, Elements::F16(_)),
        "KV pools are both F32 or both BF16"
    );
    let jobs = jobs(layout, heads / kv_heads, kv_heads);
    let cost = jobs.iter().map(|job| job.cost(head_dim)).sum();
    let isa = isa();
    team::share(jobs.len(), cost, |index| {
        simd::run(isa, (&attend, &jobs[index]));
    });
    flex::from_vec(out, [num_tokens, width])
}

/// Cuts the step into jobs: by kv head, by queries, and by heads of a group while there are fewer
/// jobs than threads.
fn jobs(layout: &Layout, group: usize, kv_heads: usize) -> Vec<Job<'_>> {
    let queries = (JOB_ROWS / group).max(1);
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
