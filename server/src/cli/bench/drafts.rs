//! Steps that check drafts, and those that make new ones as well, beside steps of one token.

use engine::{EngineError, Workbench, guarded};
use serde_json::{Value, json};

use super::decode::CHUNK;
use super::report::Report;
use super::samples::Samples;
use super::{BenchError, open, prompt, report};
use crate::args::BenchDecodeArgs;

/// The draft length that mean lengths are published for.
const PUBLISHED_DRAFTS: u32 = 7;

pub(super) fn run(mut args: BenchDecodeArgs, most: u32) -> Result<Report, BenchError> {
    let depths = depths(args.serve.speculative_tokens.as_deref().unwrap_or_default())?;
    let deepest = depths.iter().copied().max().unwrap_or(1);
    let share = args.synthetic_acceptance_length.map(share_of).transpose()?;
    args.serve.speculative_tokens = Some(deepest.to_string());
    args.serve.max_num_seqs.get_or_insert(most);
    let budget = (most * (1 + deepest)).max(most + CHUNK);
    args.serve.max_num_batched_tokens.get_or_insert(budget);
    // As in `decode`; every step may draw all that it can.
    let steps = most * args.context / CHUNK + 16 + args.steps;
    let spare = 2 * args.serve.block_size.unwrap_or(32);
    let longest = args.context + steps * (1 + deepest) + spare;
    args.serve.max_model_len.get_or_insert(longest);
    let opened = open(&args.serve)?;
    let mut report = report("decode", &opened, &args.serve);
    let info = opened.info().clone();
    guarded(|| {
        let mut bench = opened.into_workbench_accepting(share)?;
        report.about("context_tokens", args.context);
        report.about("steps", args.steps);
        report.about("acceptance_length", args.synthetic_acceptance_length);
        report.about("acceptance_per_draft", share);
        for &batch in &args.batch {
            if batch > info.max_num_seqs {
                report.note(format!(
                    "{batch} sequences do not fit: {} do (--max-num-seqs, --cache-memory)",
                    info.max_num_seqs
                ));
                continue;
            }
            let mut measure = |depth, only_checks| {
                bench.draft(depth, only_checks);
                measure(&mut bench, &args, (batch, depth), info.vocab_size)
            };
            let plain = measure(0, false)?;
            for &depth in &depths {
                let check = measure(depth, true)?;
                let whole = measure(depth, false)?;
                report.row(row((batch, depth), plain, check, whole));
            }
        }
        Ok(())
    })?;
    report.note(
        "A check is a step whose drafts came from nowhere, a step one that made the next as well. Speed is\n\
         tokens per second over those of plain steps.",
    );
    if share.is_some() {
        report
            .note("Drafts came true by a coin, not because they were right: only times are real.");
    }
    Ok(report)
}

/// Of steps of one kind.
#[derive(Clone, Copy, Debug)]
struct Measured {
    step_ms: f64,
    /// Of all sequences.
    tokens_per_step: f64,
}

impl Measured {
    fn tokens_per_s(self) -> f64 {
        self.tokens_per_step / (self.step_ms / 1e3)
    }
}

fn row((batch, depth): (u32, u32), plain: Measured, check: Measured, whole: Measured) -> Value {
    json!({
        "batch": batch,
        "drafts": depth,
        "plain_ms_p50": plain.step_ms,
        "check_ms_p50": check.step_ms,
        "check_over_plain": check.step_ms / plain.step_ms,
        "step_ms_p50": whole.step_ms,
        "tokens_per_row": whole.tokens_per_step / f64::from(batch),
        "tokens_per_s": whole.tokens_per_s(),
        "plain_tokens_per_s": plain.tokens_per_s(),
        "speed_over_plain": whole.tokens_per_s() / plain.tokens_per_s(),
    })
}

/// Times steps in which all sequences check as many drafts.
fn measure(
    bench: &mut Workbench,
    args: &BenchDecodeArgs,
    (batch, depth): (u32, u32),
    vocab_size: u32,
) -> Result<Measured, EngineError> {
    for sequence in 0..batch {
        let salt = (u64::from(batch) << 32) + u64::from(sequence);
        bench
            .add(prompt(salt, args.context, vocab_size), u32::MAX / 2)
            .map_err(|error| EngineError::Memory(error.to_string()))?;
    }
    let all = u64::from(batch);
    let mut times = Samples::default();
    let (mut num_steps, mut num_drawn, mut is_first) = (0, 0, true);
    while num_steps < args.steps {
        let step = bench.step()?.expect("they have not ended");
        if step.num_finished > 0 {
            return Err(EngineError::Memory(format!(
                "{batch} sequences do not decode at once: their contexts do not fit the cache \
                 together (--cache-memory)"
            )));
        }
        let (rows, tokens) = (step.size.num_rows, step.size.num_tokens);
        if rows != all || tokens != all * u64::from(1 + depth) {
            // Prompts come first.
            if num_steps > 0 {
                return Err(EngineError::Memory(format!(
                    "{rows} of {batch} sequences ran {tokens} tokens: the cache is too small \
                     (--cache-memory), or the draft block said nothing"
                )));
            }
            continue;
        }
        // The first is like those which follow, but may find something cold.
        if !std::mem::take(&mut is_first) {
            times.add_ms(step.time);
            num_drawn += step.num_drawn;
            num_steps += 1;
        }
    }
    bench.clear();
    Ok(Measured {
        step_ms: times.percentile(50.0).expect("a step was timed"),
        tokens_per_step: num_drawn as f64 / f64::from(num_steps),
    })
}

/// `1,3,5`.
fn depths(text: &str) -> Result<Vec<u32>, BenchError> {
    let depths: Result<Vec<u32>, _> = text.split(',').map(|depth| depth.trim().parse()).collect();
    match depths {
        Ok(depths) if !depths.contains(&0) => Ok(depths),
        _ => Err(BenchError::Usage(format!(
            "--speculative-tokens: {text:?} is no list of numbers from 1, such as 1,3,5"
        ))),
    }
}

/// How likely each draft has to come true, if a step with [`PUBLISHED_DRAFTS`] is to draw so many tokens.
fn share_of(length: f64) -> Result<f64, BenchError> {
    let most = f64::from(1 + PUBLISHED_DRAFTS);
    if !(1.0..=most).contains(&length) {
        return Err(BenchError::Usage(format!(
            "--synthetic-acceptance-length: a step with {PUBLISHED_DRAFTS} drafts draws 1 to {most} \
             tokens, not {length}"
        )));
    }
    let (mut low, mut high) = (0.0, 1.0);
    for _ in 0..64 {
        let middle = f64::midpoint(low, high);
        if length_of(middle, PUBLISHED_DRAFTS) < length {
            low = middle;
        } else {
            high = middle;
        }
    }
    Ok(high)
}

/// Tokens that a step draws on average: one, and each draft as long as all before it came true.
fn length_of(share: f64, num_drafts: u32) -> f64 {
    (0..=num_drafts).map(|n| share.powi(n as i32)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_length_is_a_share() {
        for (length, expect) in [(1.0, 0.0), (8.0, 1.0), (3.45, 0.7348)] {
            let share = share_of(length).expect("it is in range");
            assert!((share - expect).abs() < 0.01, "{length}: {share}");
            assert!((length_of(share, PUBLISHED_DRAFTS) - length).abs() < 1e-6);
        }
        for length in [0.9, 8.1, f64::NAN] {
            assert!(share_of(length).is_err(), "{length}");
        }
    }

    #[test]
    fn depths_are_a_list_of_numbers() {
        assert_eq!(depths("1, 3,5").expect("three numbers"), [1, 3, 5]);
        for text in ["", "auto", "0,1", "1,"] {
            assert!(depths(text).is_err(), "{text:?}");
        }
    }
}
