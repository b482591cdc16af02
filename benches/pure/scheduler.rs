//! What a step costs before and after the model: `schedule` and `update` while 256 choices generate.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use scheduler::{
    CacheConfig, Request, RequestId, RowOutput, RowResult, SamplingParams, Scheduler,
    SchedulerConfig, SchedulerOutput, StepResult,
};

const NUM_SEQS: u32 = 256;
const BLOCK_SIZE: u32 = 16;
/// After so many generated tokens a fresh scheduler is set up, outside the measurement.
const NUM_STEPS: u32 = 512;

/// Everybody's next token is 1.
fn answer(plan: &SchedulerOutput) -> StepResult {
    let rows = plan.rows.iter().map(|row| {
        let tokens = if row.sample.is_some() {
            vec![1]
        } else {
            Vec::new()
        };
        let output = RowOutput {
            tokens,
            ..Default::default()
        };
        RowResult {
            sequence: row.sequence,
            outcome: Ok(output),
        }
    });
    StepResult {
        step: plan.step,
        rows: rows.collect(),
    }
}

/// A scheduler whose 256 sequences have all begun to generate after prompts of `num_prompt` tokens.
fn all_generate(num_prompt: u32) -> Scheduler {
    let blocks_each = (num_prompt + NUM_STEPS).div_ceil(BLOCK_SIZE) + 1;
    let config = SchedulerConfig {
        // All prompts at once: only the steps behind them are measured.
        max_num_batched_tokens: NUM_SEQS * num_prompt,
        max_num_seqs: NUM_SEQS,
        ..Default::default()
    };
    let cache = CacheConfig {
        block_size: BLOCK_SIZE,
        num_blocks: NUM_SEQS * blocks_each + 1,
        num_slots: 2 * NUM_SEQS,
    };
    let mut scheduler = Scheduler::new(config, cache);
    for id in 0..NUM_SEQS {
        let prompt: Arc<[u32]> = (0..num_prompt).map(|token| token ^ id).collect();
        let sampling = SamplingParams {
            max_tokens: NUM_STEPS + 2,
            ..Default::default()
        };
        let request = Request {
            id: RequestId(u64::from(id)),
            prompt,
            sampling: Arc::new(sampling),
            num_choices: 1,
            cache_salt: "".into(),
        };
        scheduler.add(request).expect("there is room for all");
    }
    loop {
        let plan = scheduler.schedule().expect("they go on");
        let all = plan.rows.len() == NUM_SEQS as usize;
        let generate = plan.rows.iter().all(|row| row.sample.is_some());
        scheduler.update(answer(&plan));
        if all && generate {
            return scheduler;
        }
    }
}

/// Time of `num_steps` pairs of `schedule` and `update`, without the runner's share between them.
fn time_steps(num_prompt: u32, num_steps: u64) -> Duration {
    let mut total = Duration::ZERO;
    let mut scheduler = all_generate(num_prompt);
    let mut num_left = NUM_STEPS - 256;
    for _ in 0..num_steps {
        if num_left == 0 {
            scheduler = all_generate(num_prompt);
            num_left = NUM_STEPS - 256;
        }
        num_left -= 1;
        let begin = Instant::now();
        let plan = scheduler.schedule().expect("they go on");
        total += begin.elapsed();
        assert_eq!(plan.rows.len(), NUM_SEQS as usize);
        let result = answer(&plan);
        drop(plan);
        let begin = Instant::now();
        black_box(scheduler.update(result));
        total += begin.elapsed();
    }
    total
}

fn steps(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("schedule and update, 256 generating");
    for num_prompt in [1024, 16384] {
        group.bench_function(format!("after {num_prompt} tokens each"), |bencher| {
            bencher.iter_custom(|num_steps| time_steps(num_prompt, num_steps));
        });
    }
}

criterion_group!(benches, steps);
criterion_main!(benches);
