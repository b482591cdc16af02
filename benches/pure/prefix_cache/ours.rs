//! The real scheduler over the real caches, with a runner that draws whatever the answer says.

use std::collections::BTreeMap;
use std::sync::Arc;

use scheduler::{
    CacheConfig, Request, RequestId, RowOutput, RowResult, SamplingParams, Scheduler,
    SchedulerConfig, StepResult, TenantId,
};

use crate::workload::{self, Segment, mix};
use crate::{CACHE_BYTES, Outcome, STATE_BYTES, TOKEN_BYTES};

const BLOCK_SIZE: u32 = 16;
/// Of the memory, what states get; KV gets the rest. The peers share one budget.
const STATE_SHARE: f64 = 0.6;

pub(crate) fn serve(requests: &[workload::Request]) -> Outcome {
    let num_slots = (CACHE_BYTES as f64 * STATE_SHARE) as u64 / STATE_BYTES;
    let block_bytes = TOKEN_BYTES * u64::from(BLOCK_SIZE);
    let num_blocks = (CACHE_BYTES - num_slots * STATE_BYTES) / block_bytes;
    let config = SchedulerConfig {
        max_num_batched_tokens: 8192,
        max_num_seqs: 64,
        max_model_len: 1 << 20,
        ..SchedulerConfig::default()
    };
    let cache = CacheConfig {
        block_size: BLOCK_SIZE,
        num_blocks: num_blocks as u32,
        num_slots: num_slots as u32,
        num_host_slots: 0,
        num_host_blocks: 0,
    };
    let mut scheduler = Scheduler::new(config, cache);
    // Each segment's tokens are made once.
    let mut texts = BTreeMap::new();
    let hits = requests
        .iter()
        .zip(1..)
        .map(|(request, id)| serve_one(&mut scheduler, &mut texts, request, id))
        .collect();
    Outcome { name: "ours", hits }
}

/// Runs one request to its end; the length of its hit.
fn serve_one(
    scheduler: &mut Scheduler,
    texts: &mut BTreeMap<u64, Vec<u32>>,
    request: &workload::Request,
    id: u64,
) -> u32 {
    let mut tokens = |segment: &Segment| {
        let text = texts.entry(segment.id).or_insert_with(|| {
            let token = |i| mix(segment.id ^ mix(u64::from(i))) as u32 % 131_072;
            (0..segment.len).map(token).collect()
        });
        text.clone()
    };
    let prompt: Vec<u32> = request.prompt.iter().flat_map(&mut tokens).collect();
    let answer = tokens(&request.answer);
    let sampling = SamplingParams {
        max_tokens: answer.len() as u32,
        ..SamplingParams::default()
    };
    let admitted = scheduler.add(Request {
        id: RequestId(id),
        prompt: prompt.into(),
        sampling: Arc::new(sampling),
        num_choices: 1,
        cache_salt: "".into(),
        boundaries: request.boundaries().into(),
        priority: 0,
        tenant: TenantId::default(),
        tenant_weight: 1,
    });
    admitted.expect("it fits");
    let mut answer = answer.into_iter();
    let mut hit = 0;
    while let Some(plan) = scheduler.schedule() {
        let row = &plan.rows[0];
        let output = RowOutput {
            tokens: row.sample.iter().filter_map(|_| answer.next()).collect(),
            ..RowOutput::default()
        };
        let result = StepResult {
            step: plan.step,
            rows: vec![RowResult {
                sequence: row.sequence,
                outcome: Ok(output),
            }],
        };
        for news in scheduler.update(result) {
            hit = news.num_cached_tokens;
        }
    }
    hit
}
