//! What the last tokens of a long sequence pay for what lies before them: the least that a turn of a long
//! conversation takes beyond its own tokens.

use serde_json::json;

use super::{BenchError, open, report};
use crate::args::BenchAttentionArgs;
use crate::cli::bench::report::Report;

pub(super) fn run(args: &BenchAttentionArgs) -> Result<Report, BenchError> {
    if args.tokens.contains(&0) {
        return Err(BenchError::Usage("--tokens counts from 1".into()));
    }
    let opened = open(&args.serve)?;
    let mut report = report("attention", &opened, &args.serve);
    for context in &args.context {
        for num_tokens in &args.tokens {
            let seconds = opened.time_attention(*num_tokens, *context)?;
            report.row(json!({
                "tokens": num_tokens,
                "context": context,
                "ms": seconds * 1e3,
                "us_per_token": seconds * 1e6 / *num_tokens as f64,
            }));
        }
    }
    report.note("All attention layers together; projections and the cache's writes are not in it.");
    Ok(report)
}
