//! From settings to a serving process, and what a person sees of it.

use std::fmt::Write as _;
use std::io::{IsTerminal as _, stderr};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use engine::{Engine, EngineError, EngineHandle, EngineInfo, EngineStatus};
use indicatif::{ProgressBar, ProgressStyle};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::time::interval;

use crate::admission::Admission;
use crate::api::models::ModelNames;
use crate::api::params::Defaults;
use crate::api::responses::ResponseStore;
use crate::config::{ConfigError, Settings};
use crate::grammars::Grammars;
use crate::metrics::Metrics;
use crate::receipts::Receipts;
use crate::router::route_labels;
use crate::state::{AppState, Phase};

/// Checks headers and memory, then starts the engine, which loads its weights in the background, and
/// reads texts meanwhile.
pub fn open(settings: Settings) -> Result<AppState, ConfigError> {
    let opened = Engine::open(settings.engine.clone())?;
    let info = opened.info().clone();
    let defaults = settings.defaults(opened.model())?;
    assemble(settings, info, defaults, || opened.start())
}

/// A front end and the engine that `start` gives it; an error in what the front end reads ends both.
pub fn assemble(
    settings: Settings,
    info: EngineInfo,
    defaults: Defaults,
    start: impl FnOnce() -> Result<EngineHandle, EngineError>,
) -> Result<AppState, ConfigError> {
    // A large vocabulary takes as long to parse as gigabytes to read.
    let engine = start()?;
    let tokenizer = settings.tokenizer()?;
    if let Some(tokenizer) = &tokenizer {
        settings.check_ids(tokenizer, info.vocab_size)?;
    }
    let template = settings.template(tokenizer.as_deref())?;
    let main_name = settings.names.ids.first().expect("the family has names");
    let metrics = Metrics::new(main_name, &info, route_labels());
    let end_ids = &defaults.eos_token_ids;
    let grammars = Grammars::new(tokenizer.clone(), info.vocab_size, end_ids);
    let admission = Admission::new(&settings.server)
        .map_err(|error| ConfigError::Usage(format!("--api-key-file {error}")))?;
    engine.limit_flight(settings.server.flight.max_bytes);
    grammars.warm_up();
    let responses = ResponseStore::new(settings.server.max_stored_bytes);
    Ok(AppState {
        engine,
        grammars,
        info,
        tokenizer,
        template,
        models: settings.names,
        defaults,
        config: settings.server,
        admission,
        metrics,
        receipts: Receipts::default(),
        responses,
        phase: watch::Sender::new(Phase::Serving),
        num_generating: AtomicU64::new(0),
    })
}

/// Listens; the error names the address.
pub async fn listen(address: &str) -> Result<TcpListener, String> {
    TcpListener::bind(address)
        .await
        .map_err(|error| format!("--listen {address}: {error}"))
}

/// One readable summary. `urls` are where clients come in.
pub fn summary(state: &AppState, urls: &[String]) -> String {
    let EngineInfo {
        max_model_len,
        max_num_seqs,
        block_size,
        num_blocks,
        num_slots,
        block_bytes,
        slot_bytes,
        ..
    } = state.info;
    let info = &state.info;
    let ModelNames {
        ids, description, ..
    } = &state.models;
    let tokens = u64::from(num_blocks) * u64::from(block_size);
    let blocks_each = u64::from(max_model_len.div_ceil(block_size));
    let sequence_bytes = blocks_each * block_bytes + slot_bytes;
    let at_full_length = (u64::from(num_blocks) / blocks_each.max(1)).min(max_num_seqs.into());
    let typical_len = u64::from(max_model_len.min(4096));
    let typical = (tokens / typical_len.max(1)).min(max_num_seqs.into());
    let mut out = String::new();
    let mut line = |name: &str, text: String| {
        writeln!(out, "  {name:<12} {text}").expect("writing to a string succeeds");
    };
    line("model", ids[0].clone());
    if let Some(description) = description {
        line("", description.clone());
    }
    line(
        "parameters",
        format!(
            "{}, arithmetic {}, KV cache {}, Mamba state {}",
            count(info.num_parameters),
            info.dtype,
            info.kv_cache_dtype,
            info.mamba_ssm_cache_dtype
        ),
    );
    line("device", info.device.clone());
    if info.max_drafts > 0 {
        line(
            "speculation",
            format!(
                "up to {} tokens guessed ahead, then checked",
                info.max_drafts
            ),
        );
    }
    let on_each = if info.num_ranks > 1 {
        "on each rank "
    } else {
        ""
    };
    line(
        "memory",
        format!(
            "{on_each}weights {}, {num_blocks} blocks of {block_size} tokens {}, {num_slots} state slots {}, \
             workspace {}, left to others {}",
            bytes(info.rank_weight_bytes),
            bytes(u64::from(num_blocks) * block_bytes),
            bytes(u64::from(num_slots) * slot_bytes),
            bytes(info.workspace_bytes),
            bytes(info.reserve_bytes),
        ),
    );
    if info.num_host_slots > 0 {
        let (num_blocks, num_slots) = (info.num_host_blocks, info.num_host_slots);
        line(
            "",
            format!(
                "{on_each}of the host: {num_blocks} cached blocks {}, {num_slots} cached states {}",
                bytes(u64::from(num_blocks) * block_bytes),
                bytes(u64::from(num_slots) * slot_bytes),
            ),
        );
    }
    line(
        "context",
        format!(
            "{max_model_len} tokens, {} for one sequence of that length",
            bytes(sequence_bytes)
        ),
    );
    line(
        "concurrency",
        format!(
            "{at_full_length} at full length, {typical} at {typical_len} tokens, {max_num_seqs} at most"
        ),
    );
    let missing = match (&state.tokenizer, &state.template) {
        (None, _) => Some("no tokenizer: prompts are token ids, and chat answers 400"),
        (_, None) => Some("no chat template: completions work, chat answers 400"),
        _ => None,
    };
    if let Some(missing) = missing {
        line("note", missing.into());
    }
    let keys = match state.admission.num_keys() {
        0 => "no key needed".to_owned(),
        n => format!("{n} API keys"),
    };
    line("address", format!("{} ({keys})", urls.join(", ")));
    let first = urls.iter().find(|url| url.starts_with("http"));
    if let (Some(_), Some(url)) = (description, first) {
        line(
            "try",
            format!(
                "curl {url}/v1/chat/completions -d '{{\"model\":\"{}\",\
                 \"messages\":[{{\"role\":\"user\",\"content\":\"What is the capital of Peru?\"}}]}}'",
                ids[0]
            ),
        );
    }
    out
}

/// Shows how far loading is on a terminal, logs its end everywhere, and returns then. A failure is
/// for [`crate::http::serve`] to tell.
pub async fn follow_loading(state: Arc<AppState>) {
    let style = |text| ProgressStyle::with_template(text).expect("the template is well-formed");
    let bar = stderr().is_terminal().then(|| {
        let text = "  loading      {bar:40} {bytes}/{total_bytes} {bytes_per_sec} {eta}";
        ProgressBar::no_length().with_style(style(text))
    });
    let mut tick = interval(Duration::from_millis(50));
    let ready = state.engine.ready();
    let mut ready = pin!(ready);
    let outcome = loop {
        tokio::select! {
            outcome = ready.as_mut() => break outcome,
            _ = tick.tick(), if bar.is_some() => {}
        }
        let Some(bar) = &bar else { continue };
        match state.engine.status() {
            EngineStatus::Loading {
                loaded_bytes,
                total_bytes,
            } => {
                bar.set_length(total_bytes);
                bar.set_position(loaded_bytes);
            }
            EngineStatus::WarmingUp {
                num_done,
                num_total,
            } => {
                bar.set_style(style("  warming up   {bar:40} {pos}/{len} shapes of step"));
                bar.set_length(num_total.into());
                bar.set_position(num_done.into());
            }
            EngineStatus::Ready | EngineStatus::Failed(_) => {}
        }
    };
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    if outcome.is_ok() {
        tracing::info!("ready");
    }
}

/// `7.6 MB`: decimal units, as memory is sold and files are listed.
pub(crate) fn bytes(bytes: u64) -> String {
    scaled(bytes, &["B", "kB", "MB", "GB", "TB", "PB"])
}

/// `3.8 M`.
pub(crate) fn count(number: u64) -> String {
    scaled(number, &["", "k", "M", "B", "T", "Q"])
        .trim_end()
        .to_owned()
}

fn scaled(number: u64, units: &[&str]) -> String {
    let mut value = number as f64;
    let mut unit = 0;
    // 999.95 would round to 1000.0.
    while value >= 999.95 && unit + 1 < units.len() {
        value /= 1000.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{number} {}", units[0])
    } else {
        format!("{value:.1} {}", units[unit])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_readable() {
        assert_eq!(bytes(0), "0 B");
        assert_eq!(bytes(999), "999 B");
        assert_eq!(bytes(999_950), "1.0 MB");
        assert_eq!(bytes(7_579_136), "7.6 MB");
        assert_eq!(count(3_775_200), "3.8 M");
        assert_eq!(count(120_000_000_000), "120.0 B");
        assert_eq!(count(12), "12");
    }
}
