//! Steps in which every sequence draws one token; with drafts, `drafts`.

use engine::{Workbench, guarded};
use serde_json::{Value, json};

use super::profile::{self, Profile};
use super::report::Report;
use super::samples::Samples;
use super::{BenchError, drafts, open, prompt, report};
use crate::args::BenchDecodeArgs;

/// Prompt tokens in a step beside those that draw.
pub(super) const CHUNK: u32 = 2048;
/// Steps after the timed ones that are counted.
const NUM_COUNTED: u32 = 2;

pub(super) fn run(mut args: BenchDecodeArgs) -> Result<Report, BenchError> {
    let most = args.batch.iter().copied().max().unwrap_or(1);
    if args.batch.contains(&0) || args.steps == 0 || args.context == 0 {
        return Err(BenchError::Usage(
            "--batch, --steps and --context are at least 1".into(),
        ));
    }
    if args.serve.speculative_tokens.is_some() {
        if args.profile {
            return Err(BenchError::Usage(
                "--profile is without --speculative-tokens".into(),
            ));
        }
        return drafts::run(args, most);
    }
    if args.synthetic_acceptance_length.is_some() {
        return Err(BenchError::Usage(
            "--synthetic-acceptance-length wants --speculative-tokens".into(),
        ));
    }
    args.serve.max_num_seqs.get_or_insert(most);
    args.serve
        .max_num_batched_tokens
        .get_or_insert(most + CHUNK);
    // Who was prefilled first draws while others still are.
    let early = most * args.context / CHUNK + 16;
    // And whoever enters must find a spare block for each that runs.
    let spare = 2 * args.serve.block_size.unwrap_or(32);
    let longest = args.context + early + args.steps + NUM_COUNTED + spare;
    args.serve.max_model_len.get_or_insert(longest);
    let opened = open(&args.serve)?;
    let mut report = report("decode", &opened, &args.serve);
    let info = opened.info().clone();
    guarded(|| {
        let mut bench = opened.into_workbench()?;
        let roof = bench.measure_roof();
        report.about("bandwidth_gb_per_s", roof.bytes_per_second / 1e9);
        report.about("context_tokens", args.context);
        report.about("steps", args.steps);
        for &batch in &args.batch {
            if batch > info.max_num_seqs {
                report.note(format!(
                    "{batch} sequences do not fit: {} do (--max-num-seqs, --cache-memory)",
                    info.max_num_seqs
                ));
                continue;
            }
            begin(&mut bench, &args, batch, info.vocab_size)?;
            if args.profile {
                let profile = profiled(&mut bench, &args, batch)?;
                profile.tell(&mut report, ("batch", batch), roof);
            } else {
                report.row(measure(&mut bench, &args, batch, roof.bytes_per_second)?);
            }
            bench.clear();
        }
        Ok(())
    })?;
    if args.profile {
        profile::explain(&mut report);
        return Ok(report);
    }
    report.note(
        "Bytes are what such a step moves at least: weights once, of the experts those that were\n\
         chosen, state read and written, keys and values; the share is of the measured bandwidth.",
    );
    Ok(report)
}

/// Runs the prompts of `batch` sequences, until all decode.
fn begin(
    bench: &mut Workbench,
    args: &BenchDecodeArgs,
    batch: u32,
    vocab_size: u32,
) -> Result<(), engine::EngineError> {
    for sequence in 0..batch {
        let salt = (u64::from(batch) << 32) + u64::from(sequence);
        // Nobody ends before the last step, also where somebody began a few steps earlier.
        let max_tokens = u32::MAX / 2;
        bench
            .add(prompt(salt, args.context, vocab_size), max_tokens)
            .map_err(|error| engine::EngineError::Memory(error.to_string()))?;
    }
    // Prompts first, and one step that is like those which follow.
    loop {
        let step = bench.step()?.expect("they have not ended");
        if decodes(batch, step.size) && step.num_drawn == u64::from(batch) {
            return Ok(());
        }
        if step.num_finished > 0 {
            return Err(engine::EngineError::Memory(format!(
                "{batch} sequences do not decode at once: their contexts do not fit the cache \
                 together (--cache-memory)"
            )));
        }
    }
}

/// Whether a step is one token of each sequence.
fn decodes(batch: u32, size: engine::StepSize) -> bool {
    let all = u64::from(batch);
    size.num_rows == all && size.num_tokens == all
}

/// Where the time of such steps goes.
fn profiled(
    bench: &mut Workbench,
    args: &BenchDecodeArgs,
    batch: u32,
) -> Result<Profile, engine::EngineError> {
    let mut profile = Profile::default();
    for _ in 0..args.steps {
        let (step, rows) = bench.profiled_step()?.expect("they have not ended");
        check(batch, step.size)?;
        profile.add(step.time, rows);
    }
    Ok(profile)
}

/// Refuses a step that not all were in.
fn check(batch: u32, size: engine::StepSize) -> Result<(), engine::EngineError> {
    if decodes(batch, size) {
        return Ok(());
    }
    Err(engine::EngineError::Memory(format!(
        "{batch} sequences did not stay together: the cache is too small (--cache-memory)"
    )))
}

fn measure(
    bench: &mut Workbench,
    args: &BenchDecodeArgs,
    batch: u32,
    bandwidth: f64,
) -> Result<Value, engine::EngineError> {
    let mut times = Samples::default();
    let (mut num_tokens, mut sizes) = (0, Vec::new());
    for _ in 0..args.steps {
        let step = bench.step()?.expect("they have not ended");
        check(batch, step.size)?;
        times.add_ms(step.time);
        num_tokens += step.num_drawn;
        sizes.push(step.size);
    }
    let (mut num_experts, mut num_launches, mut read_back_bytes) = (Some(0), None, None);
    for _ in 0..NUM_COUNTED {
        let counts = bench.counted_step()?.expect("they have not ended");
        num_experts = num_experts.zip(counts.num_experts).map(|(sum, n)| sum + n);
        num_launches = counts.num_launches;
        read_back_bytes = counts.read_back_bytes;
    }

    let footprint = bench.footprint();
    let chosen = num_experts.map(|sum| sum as f64 / f64::from(NUM_COUNTED));
    let median = times.percentile(50.0).expect("a step was timed");
    let bytes_per_step = chosen.map(|chosen| {
        let each = sizes.iter().map(|size| footprint.step_bytes(*size, chosen));
        each.sum::<f64>() / sizes.len() as f64
    });
    let rate = bytes_per_step.map(|bytes| bytes / (median / 1e3));
    let layers = footprint.num_moe_layers;
    let per_layer = chosen.filter(|_| layers > 0).map(|n| n / layers as f64);
    Ok(json!({
        "batch": batch,
        "tokens": num_tokens,
        "step_ms_p50": median,
        "step_ms_p99": times.percentile(99.0),
        "tokens_per_s": f64::from(batch) / (median / 1e3),
        "mb_per_step": bytes_per_step.map(|bytes| bytes / 1e6),
        "gb_per_s": rate.map(|rate| rate / 1e9),
        "share_of_bandwidth": rate.map(|rate| rate / bandwidth),
        "experts_per_layer": per_layer,
        "launches_per_step": num_launches,
        "read_back_bytes_per_step": read_back_bytes,
    }))
}
