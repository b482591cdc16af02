//! Prompts from nothing to their first token.

use engine::{Workbench, guarded};
use serde_json::{Value, json};

use super::profile::{self, Profile};
use super::report::Report;
use super::samples::Samples;
use super::{BenchError, open, prompt, report};
use crate::args::BenchPrefillArgs;

pub(super) fn run(mut args: BenchPrefillArgs) -> Result<Report, BenchError> {
    if args.lengths.contains(&0) || args.repeat == 0 {
        return Err(BenchError::Usage(
            "--lengths and --repeat are at least 1".into(),
        ));
    }
    args.serve.max_num_seqs.get_or_insert(1);
    let opened = open(&args.serve)?;
    let mut report = report("prefill", &opened, &args.serve);
    let info = opened.info().clone();
    guarded(|| {
        let mut bench = opened.into_workbench()?;
        let roof = bench.measure_roof();
        report.about("matrix_gflop_per_s", roof.flops_per_second / 1e9);
        report.about("repeats", args.repeat);
        for &len in &args.lengths {
            // One token must be left to generate.
            if len >= info.max_model_len {
                report.note(format!(
                    "{len} tokens do not fit a context of {}",
                    info.max_model_len
                ));
                continue;
            }
            if args.profile {
                let profile = profiled(&mut bench, &args, len, info.vocab_size)?;
                profile.tell(&mut report, ("length", len), roof);
                continue;
            }
            let row = measure(
                &mut bench,
                &args,
                len,
                info.vocab_size,
                roof.flops_per_second,
            )?;
            report.row(row);
        }
        Ok(())
    })?;
    if args.profile {
        profile::explain(&mut report);
        return Ok(report);
    }
    report.note(
        "Operations are two per parameter that a token uses, the head's once, the recurrence's and\n\
         attention's; the share is of the measured rate of a product of a long chunk.",
    );
    Ok(report)
}

/// Where the time of whole prompts goes.
fn profiled(
    bench: &mut Workbench,
    args: &BenchPrefillArgs,
    len: u32,
    vocab_size: u32,
) -> Result<Profile, engine::EngineError> {
    let mut profile = Profile::default();
    for repeat in 0..args.repeat {
        add(bench, len, repeat, vocab_size)?;
        let (mut time, mut all) = (std::time::Duration::ZERO, Vec::new());
        while let Some((step, rows)) = bench.profiled_step()? {
            time += step.time;
            all.extend(rows);
        }
        profile.add(time, all);
    }
    Ok(profile)
}

/// Queues one of the prompts.
fn add(
    bench: &mut Workbench,
    len: u32,
    repeat: u32,
    vocab_size: u32,
) -> Result<(), engine::EngineError> {
    let salt = (u64::from(len) << 32) + u64::from(repeat);
    bench
        .add(prompt(salt, len, vocab_size), 1)
        .map_err(|error| engine::EngineError::Memory(error.to_string()))
}

fn measure(
    bench: &mut Workbench,
    args: &BenchPrefillArgs,
    len: u32,
    vocab_size: u32,
    matrix_rate: f64,
) -> Result<Value, engine::EngineError> {
    let mut times = Samples::default();
    let mut num_tokens = 0;
    for repeat in 0..args.repeat {
        add(bench, len, repeat, vocab_size)?;
        let mut time = std::time::Duration::ZERO;
        while let Some(step) = bench.step()? {
            time += step.time;
            num_tokens += step.size.num_tokens;
        }
        times.add_ms(time);
    }
    let median = times.percentile(50.0).expect("a prompt was timed");
    let flops = bench.footprint().flops(0, len.into(), 1);
    let rate = flops as f64 / (median / 1e3);
    Ok(json!({
        "length": len,
        "tokens": num_tokens,
        "ms_p50": median,
        "tokens_per_s": f64::from(len) / (median / 1e3),
        "gflop": flops as f64 / 1e9,
        "gflop_per_s": rate / 1e9,
        "share_of_matrix_rate": rate / matrix_rate,
    }))
}
