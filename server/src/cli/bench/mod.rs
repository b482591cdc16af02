//! `nemoserve bench`: how fast this model is on this machine, and how near to what it could be.

mod attention;
mod decode;
mod drafts;
mod load;
mod prefill;
mod products;
mod profile;
mod report;
mod samples;
mod serve;

use std::process::ExitCode;

use engine::{Engine, Opened};

use crate::args::{BenchArgs, BenchCommand, ServeArgs, exit};
use crate::config::{ConfigError, Settings};

use self::report::Report;

/// Why there is nothing to report.
#[derive(Debug, thiserror::Error)]
enum BenchError {
    /// The model cannot be opened, loaded or run.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The options ask for what the model cannot do.
    #[error("{0}")]
    Usage(String),
    /// Requests failed.
    #[error("{0}")]
    Failed(String),
}

impl From<engine::EngineError> for BenchError {
    fn from(error: engine::EngineError) -> Self {
        Self::Config(error.into())
    }
}

/// Measures and prints.
pub fn run(args: BenchArgs) -> ExitCode {
    let BenchArgs { json, what } = args;
    let report = match what {
        BenchCommand::Decode(args) => decode::run(*args),
        BenchCommand::Prefill(args) => prefill::run(*args),
        BenchCommand::Attention(args) => attention::run(&args),
        BenchCommand::Products(args) => products::run(&args),
        BenchCommand::Serve(args) => serve::run(&args),
        BenchCommand::Load(args) => load::run(&args),
    };
    let code = match report {
        Ok(report) => {
            print!("{}", if json { report.json() } else { report.text() });
            exit::OK
        }
        Err(error) => {
            eprintln!("nemoserve bench: {error}");
            match error {
                BenchError::Config(error) => error.exit_code(),
                BenchError::Usage(_) => exit::USAGE,
                BenchError::Failed(_) => exit::COMMAND,
            }
        }
    };
    ExitCode::from(code)
}

/// Opens what the options of `serve` name.
fn open(args: &ServeArgs) -> Result<Opened, BenchError> {
    let settings = Settings::new(args)?;
    Ok(Engine::open(settings.engine)?)
}

/// A report that begins with what was measured, on what, and how busy that was.
fn report(name: &'static str, opened: &Opened, args: &ServeArgs) -> Report {
    let info = opened.info();
    let mut report = Report::new(name);
    let model = match &args.model {
        Some(folder) => folder.display().to_string(),
        None => crate::demo::NAME.to_owned(),
    };
    report.about("model", model);
    report.about("parameters", info.num_parameters);
    report.about("weight_bytes", info.weight_bytes);
    report.about("device", info.device.clone());
    report.about("arithmetic", info.dtype.clone());
    report.about_load();
    report
}

/// Prompts without a pattern, none the beginning of another: no cache knows them.
fn prompt(salt: u64, len: u32, vocab_size: u32) -> Vec<u32> {
    let mut numbers = samples::Numbers::new(salt);
    (0..len)
        .map(|_| (numbers.draw() % u64::from(vocab_size)) as u32)
        .collect()
}
