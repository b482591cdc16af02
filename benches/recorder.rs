//! What the flight recorder costs: steps of a model that answers at once, with and without it.

use std::convert::Infallible;
use std::time::Instant;

use engine::{EngineHandle, StreamEvent};
use scheduler::{
    CacheConfig, RowMasks, RowOutput, RowResult, Runner, SamplingParams, SchedulerConfig,
    SchedulerOutput, StepResult,
};

use crate::{prompt, request};

const VOCAB_SIZE: u32 = 131_072;
const PROMPT_LEN: u32 = 64;
const NUM_TOKENS: u32 = 1500;
const ROUNDS: usize = 7;

/// Prints the time of a step, in turns with and without a recording.
pub(crate) async fn compare() {
    for num_streams in [1, 64, 256] {
        let handle = spawn(num_streams);
        handle.ready().await.expect("there is nothing to load");
        let (mut with, mut without, mut bytes) = (Vec::new(), Vec::new(), 0.0);
        for round in 0..ROUNDS {
            handle.limit_flight(0);
            without.push(step_micros(&handle, num_streams, 2 * round as u32).await);
            handle.limit_flight(1 << 30);
            let before = handle.flight();
            with.push(step_micros(&handle, num_streams, 2 * round as u32 + 1).await);
            let after = handle.flight();
            bytes = (after.num_bytes() - before.num_bytes()) as f64 / f64::from(NUM_TOKENS);
        }
        with.sort_by(f64::total_cmp);
        without.sort_by(f64::total_cmp);
        let (with, without) = (with[ROUNDS / 2], without[ROUNDS / 2]);
        println!(
            "{num_streams:3} streams: {without:6.1} us a step, recorded {with:6.1} us ({:+.1} us), {bytes:.0} bytes",
            with - without
        );
    }
}

async fn step_micros(handle: &EngineHandle, num_streams: u32, round: u32) -> f64 {
    let sampling = SamplingParams {
        max_tokens: NUM_TOKENS,
        ..SamplingParams::default()
    };
    let streams: Vec<_> = (0..num_streams)
        .map(|stream| {
            let prompt = prompt(1000 * round + stream, PROMPT_LEN, VOCAB_SIZE);
            let request = request(handle, prompt, sampling.clone());
            let stream = handle.submit(request, None);
            stream.expect("the queue is long enough")
        })
        .collect();
    let steps = handle.stats().scheduler.num_steps;
    let begin = Instant::now();
    for mut stream in streams {
        while let Some(event) = stream.next().await {
            assert!(matches!(event, StreamEvent::Output(_)), "{event:?}");
        }
    }
    let took = begin.elapsed();
    let steps = handle.stats().scheduler.num_steps - steps;
    took.as_secs_f64() * 1e6 / steps as f64
}

fn spawn(num_streams: u32) -> EngineHandle {
    let config = SchedulerConfig {
        max_num_seqs: num_streams,
        max_num_batched_tokens: 1 << 15,
        max_model_len: 4096,
        ..SchedulerConfig::default()
    };
    let cache = CacheConfig {
        block_size: 32,
        num_blocks: 128 * num_streams + 1,
        num_slots: 2 * num_streams + 1,
        num_host_slots: 0,
        num_host_blocks: 0,
    };
    let handle = engine::spawn(config, cache, VOCAB_SIZE, |_| Ok(AtOnce { plan: None }));
    handle.expect("a thread")
}

/// Draws the same token for everybody.
struct AtOnce {
    plan: Option<SchedulerOutput>,
}

impl Runner for AtOnce {
    type Error = Infallible;

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), Infallible> {
        self.plan = Some(plan);
        Ok(())
    }

    fn collect(&mut self, _masks: &[RowMasks]) -> Result<StepResult, Infallible> {
        let plan = self.plan.take().expect("submit comes first");
        let rows = plan.rows.iter().map(|row| RowResult {
            sequence: row.sequence,
            outcome: Ok(RowOutput {
                tokens: row.sample.iter().map(|_| 17).collect(),
                ..RowOutput::default()
            }),
        });
        Ok(StepResult {
            step: plan.step,
            rows: rows.collect(),
        })
    }
}
