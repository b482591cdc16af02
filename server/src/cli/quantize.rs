//! `nemoserve quantize`: a checkpoint in BF16 to one in FP8 or NVFP4, and what that costs.

use std::path::Path;

use engine::{EngineError, ModuleReport, PackedFormat, Quantize, Quantized};

use super::perplexity::{Document, Perplexity, documents};
use crate::args::{QuantizeArgs, exit};
use crate::startup::bytes;

/// Writes the new checkpoint; with `--evaluate` also scores a text with both.
pub async fn run(args: QuantizeArgs) -> u8 {
    let format: PackedFormat = match args.format.parse() {
        Ok(format) => format,
        Err(why) => return complain(exit::USAGE, &format!("--format: {why}")),
    };
    // A text that cannot be read should not be found out after an hour of writing.
    let texts = match &args.evaluate {
        None => None,
        Some(path) => match documents(path, &args.model) {
            Ok(texts) => Some(texts),
            Err(why) => return complain(exit::COMMAND, &why),
        },
    };
    let quantize = Quantize {
        model: args.model.clone(),
        output: args.output.clone(),
        format,
        exclude: args.exclude.clone(),
    };
    let written = tokio::task::spawn_blocking(move || quantize.run(print_module)).await;
    match written.expect("quantising does not panic") {
        Ok(summary) => print_summary(&args.output, format, &summary),
        Err(error) => {
            let remark = match &error {
                EngineError::Io { source, .. }
                    if source.kind() != std::io::ErrorKind::AlreadyExists =>
                {
                    "; nothing of the new checkpoint is left"
                }
                _ => "",
            };
            return complain(exit::COMMAND, &format!("{error}{remark}"));
        }
    }
    let Some(texts) = texts else {
        return exit::OK;
    };
    match compare(&args.model, &args.output, &texts).await {
        Ok(()) => exit::OK,
        Err(why) => complain(exit::COMMAND, &why),
    }
}

fn print_module(report: &ModuleReport) {
    let ModuleReport {
        name,
        count,
        error,
        worst,
    } = report;
    if *count == 1 {
        println!("{name:<60} error {:.2} %", error * 100.0);
    } else {
        let worst = worst * 100.0;
        println!(
            "{name:<60} error {:.2} %, {count} matrices, worst {worst:.2} %",
            error * 100.0
        );
    }
}

fn print_summary(output: &Path, format: PackedFormat, summary: &Quantized) {
    for module in &summary.uneven {
        println!("{module:<60} left as it is: its rows are not whole groups of 16");
    }
    println!(
        "\n{} matrices in {format}, error {:.2} % of their length; {} before, {} after ({:.1} %), \
         {} in {}",
        summary.num_packed,
        summary.error * 100.0,
        bytes(summary.bytes_before),
        bytes(summary.bytes_after),
        summary.bytes_after as f64 * 100.0 / summary.bytes_before as f64,
        match summary.num_shards {
            1 => "one file".to_owned(),
            n => format!("{n} files"),
        },
        output.display(),
    );
}

async fn compare(model: &Path, output: &Path, texts: &[Document]) -> Result<(), String> {
    let before = Perplexity::of(model, texts).await?;
    let after = Perplexity::of(output, texts).await?;
    println!(
        "perplexity over {} tokens of {} documents: {:.4} before, {:.4} after ({:+.2} %)",
        before.num_tokens,
        texts.len(),
        before.value(),
        after.value(),
        (after.value() / before.value() - 1.0) * 100.0,
    );
    Ok(())
}

fn complain(code: u8, why: &str) -> u8 {
    eprintln!("nemoserve quantize: {why}");
    code
}
