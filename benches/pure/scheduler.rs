//! What a step costs before and after the model: `schedule` and `update`, with and without `prepare` in
//! between, which runs while the device does and is timed by itself. And what a crowd in the queue adds,
//! of few tenants or of many.

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use scheduler::{
    CacheConfig, Request, RequestId, RowOutput, RowResult, SamplingParams, Scheduler,
    SchedulerConfig, SchedulerOutput, StepResult, TenantId,
};

const BLOCK_SIZE: u32 = 16;
/// After so many generated tokens a fresh scheduler is set up, outside the measurement.
const NUM_STEPS: u32 = 512;

/// What is measured.
#[derive(Clone, Copy, PartialEq)]
enum Share {
    /// `schedule` and `update`, nothing between them.
    Unprepared,
    /// The same with `prepare` between them, which is not counted.
    Prepared,
    /// Of that, `schedule` alone.
    Plan,
    /// `prepare` alone.
    Prepare,
}

const SHARES: [(Share, &str); 4] = [
    (Share::Unprepared, "schedule and update"),
    (Share::Prepared, "schedule and update, prepared"),
    (Share::Plan, "schedule, prepared"),
    (Share::Prepare, "prepare"),
];

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

fn request(id: u32, prompt: Arc<[u32]>, max_tokens: u32) -> Request {
    Request {
        id: RequestId(u64::from(id)),
        prompt,
        sampling: Arc::new(SamplingParams {
            max_tokens,
            ..Default::default()
        }),
        num_choices: 1,
        cache_salt: "".into(),
        boundaries: Arc::default(),
        priority: 0,
        tenant: TenantId::default(),
        tenant_weight: 1,
    }
}

/// A scheduler whose sequences have all begun to generate after prompts of `num_prompt` tokens.
fn all_generate(num_seqs: u32, num_prompt: u32) -> Scheduler {
    let blocks_each = (num_prompt + NUM_STEPS).div_ceil(BLOCK_SIZE) + 1;
    let config = SchedulerConfig {
        // All prompts at once: only the steps behind them are measured.
        max_num_batched_tokens: num_seqs * num_prompt,
        max_num_seqs: num_seqs,
        max_queue: 4096,
        ..Default::default()
    };
    let cache = CacheConfig {
        block_size: BLOCK_SIZE,
        num_blocks: num_seqs * blocks_each + 1,
        num_slots: 2 * num_seqs,
        num_host_slots: 0,
        num_host_blocks: 0,
    };
    let mut scheduler = Scheduler::new(config, cache);
    for id in 0..num_seqs {
        let prompt: Arc<[u32]> = (0..num_prompt).map(|token| token ^ id).collect();
        scheduler
            .add(request(id, prompt, NUM_STEPS + 2))
            .expect("there is room for all");
    }
    loop {
        let plan = scheduler.schedule().expect("they go on");
        let all = plan.rows.len() == num_seqs as usize;
        let generate = plan.rows.iter().all(|row| row.sample.is_some());
        scheduler.update(answer(&plan));
        if all && generate {
            return scheduler;
        }
    }
}

/// One step, without the runner's share: the time that counts.
fn step(scheduler: &mut Scheduler, share: Share) -> Duration {
    let begin = Instant::now();
    let plan = scheduler.schedule().expect("they go on");
    let planned = begin.elapsed();
    let begin = Instant::now();
    if share != Share::Unprepared {
        scheduler.prepare();
    }
    let prepared = begin.elapsed();
    let result = answer(&plan);
    drop(plan);
    let begin = Instant::now();
    black_box(scheduler.update(result));
    match share {
        Share::Prepare => prepared,
        Share::Plan => planned,
        Share::Unprepared | Share::Prepared => planned + begin.elapsed(),
    }
}

/// Time of `num_steps` steps while everybody generates.
fn time_steps(num_seqs: u32, num_prompt: u32, share: Share, num_steps: u64) -> Duration {
    let mut total = Duration::ZERO;
    let mut scheduler = all_generate(num_seqs, num_prompt);
    let mut num_left = NUM_STEPS - 256;
    for _ in 0..num_steps {
        if num_left == 0 {
            scheduler = all_generate(num_seqs, num_prompt);
            num_left = NUM_STEPS - 256;
        }
        num_left -= 1;
        total += step(&mut scheduler, share);
    }
    total
}

/// Time of the step in which a prompt of 64k tokens enters that came while another step ran, and of
/// the update after it, in which the prompt's first token makes its tokens its own: agent traffic, where nine tenths
/// are a hit.
fn time_arrivals(share: Share, num_arrivals: u64) -> Duration {
    const LEN: u32 = 65_536;
    const NUM_KNOWN: u32 = LEN / 10 * 9;
    let config = SchedulerConfig {
        max_num_batched_tokens: 2 * LEN,
        max_num_seqs: 8,
        ..Default::default()
    };
    let cache = CacheConfig {
        block_size: BLOCK_SIZE,
        num_blocks: 8 * LEN / BLOCK_SIZE,
        num_slots: 32,
        num_host_slots: 0,
        num_host_blocks: 0,
    };
    let mut total = Duration::ZERO;
    for _ in 0..num_arrivals {
        let mut scheduler = Scheduler::new(config.clone(), cache.clone());
        // Somebody generates all the time, and somebody has left the known part behind.
        let known: Vec<u32> = (0..NUM_KNOWN).collect();
        scheduler
            .add(request(0, vec![7; 64].into(), 100))
            .expect("there is room");
        scheduler
            .add(request(1, known.clone().into(), 1))
            .expect("there is room");
        for _ in 0..4 {
            let plan = scheduler.schedule().expect("they go on");
            scheduler.update(answer(&plan));
        }
        // The known part as a snapshot ends one token before that prompt did.
        let prompt: Vec<u32> = known[..NUM_KNOWN as usize - 1]
            .iter()
            .copied()
            .chain((0..LEN - NUM_KNOWN).map(|token| token ^ 5))
            .collect();
        let plan = scheduler.schedule().expect("one goes on");
        scheduler
            .add(request(2, prompt.into(), 50))
            .expect("there is room");
        let begin = Instant::now();
        if share != Share::Unprepared {
            scheduler.prepare();
        }
        let prepared = begin.elapsed();
        scheduler.update(answer(&plan));
        let spent = step(&mut scheduler, share);
        assert!(
            scheduler.stats().num_cached_prompt_tokens >= u64::from(NUM_KNOWN) - 1,
            "the known part was hit"
        );
        total += spent;
        if share == Share::Prepare {
            total += prepared;
        }
    }
    total
}

/// 256 sequences of the first tenant generate, which takes all slots; `num_waiting` requests of
/// `num_tenants` wait.
fn crowd(num_waiting: u32, num_tenants: u32) -> Scheduler {
    let mut scheduler = all_generate(256, 1024);
    for id in 0..num_waiting {
        let prompt: Arc<[u32]> = (0..1024).map(|token| token ^ id << 12).collect();
        let request = Request {
            tenant: TenantId(id % num_tenants),
            // Or those who run would make way.
            priority: -1,
            ..request(1000 + id, prompt, 100)
        };
        scheduler.add(request).expect("the queue is long enough");
    }
    scheduler
}

/// Time of `num_steps` steps beside a crowd.
fn time_crowd(num_waiting: u32, num_tenants: u32, num_steps: u64) -> Duration {
    let mut total = Duration::ZERO;
    let mut num_left = 0;
    let mut scheduler = crowd(0, 1);
    for _ in 0..num_steps {
        if num_left == 0 {
            scheduler = crowd(num_waiting, num_tenants);
            num_left = NUM_STEPS - 256;
        }
        num_left -= 1;
        total += step(&mut scheduler, Share::Prepared);
    }
    total
}

fn crowds(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("256 generating, others wait");
    for (num_waiting, num_tenants) in [(0, 1), (256, 1), (4096, 1), (4096, 16), (4096, 1024)] {
        let name = format!("{num_waiting} of {num_tenants} tenants");
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|num| time_crowd(num_waiting, num_tenants, num));
        });
    }
}

fn steps(criterion: &mut Criterion) {
    for (num_seqs, num_prompt) in [
        (64, 1024),
        (256, 1024),
        (256, 16_384),
        (1024, 1024),
        (1024, 8192),
    ] {
        let name = format!("{num_seqs} generating after {num_prompt} tokens each");
        let mut group = criterion.benchmark_group(name);
        for (share, name) in SHARES {
            group.bench_function(name, |bencher| {
                bencher.iter_custom(|num| time_steps(num_seqs, num_prompt, share, num));
            });
        }
    }
    let mut group = criterion.benchmark_group("a prompt of 64k tokens enters, nine tenths hit");
    for (share, name) in SHARES {
        group.bench_function(name, |bencher| {
            bencher.iter_custom(|num| time_arrivals(share, num));
        });
    }
}

criterion_group!(benches, steps, crowds);
criterion_main!(benches);
