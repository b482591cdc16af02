//! The large products of a prompt, by every way that the device has.

use std::path::Path;

use engine::model::family;
use engine::{DeviceChoice, Machine, ModelConfig};
use serde_json::json;

use super::BenchError;
use super::report::Report;
use crate::args::BenchProductsArgs;

pub(super) fn run(args: &BenchProductsArgs) -> Result<Report, BenchError> {
    if args.tokens.contains(&0) {
        return Err(BenchError::Usage("--tokens counts from 1".into()));
    }
    let device: DeviceChoice = args
        .device
        .parse()
        .map_err(|why| BenchError::Usage(format!("--device: {why}")))?;
    let (name, model) = match &args.model {
        None => (
            "Super",
            ModelConfig::parse(family::SUPER, Path::new("super"))?,
        ),
        Some(folder) => {
            let path = folder.join("config.json");
            let text = ModelConfig::read_text(&path)?;
            ("", ModelConfig::parse(&text, &path)?)
        }
    };
    let mut report = Report::new("products");
    let shown = args
        .model
        .as_ref()
        .map(|folder| folder.display().to_string());
    report.about("shapes", shown.unwrap_or_else(|| name.to_owned()));
    report.about("device", device.to_string());
    report.about("arithmetic", "bf16");
    report.about_load();
    let timed = Machine::time_products(device, &model, &args.tokens)?;
    report.about("matrix_tflop_per_s", timed.matrix_rate / 1e12);
    if let Some(library) = timed.library {
        report.about("library", library);
    }
    for product in timed.products {
        let [t, n, k] = product.shape;
        for (way, seconds) in product.ways {
            let rate = seconds.map(|seconds| (2 * t * n * k) as f64 / seconds);
            report.row(json!({
                "matrix": product.matrix,
                "tokens": t,
                "n": n,
                "k": k,
                "way": way,
                "tflop_per_s": rate.map_or_else(|| "not available".into(), |rate| json!(rate / 1e12)),
                "share_of_matrix_rate": rate.map(|rate| rate / timed.matrix_rate),
            }));
        }
    }
    report.note(
        "\"as served\" is the way that a model takes here without --deterministic; the matrix rate is the\n\
         best of growing square products, ours and cubek's.",
    );
    Ok(report)
}
