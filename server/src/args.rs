//! Flags, environment and configuration file; the only place that reads the environment.
//!
//! A value comes from the first of: flag, `NEMOSERVE_*` variable, file, default. The defaults are
//! those of the crate that a value configures, so here everything is optional.

use std::path::{Path, PathBuf};

use clap::{Args, Parser, Subcommand, ValueEnum};
use serde::{Deserialize, Deserializer};

use crate::api::flavour::Flavour;
use crate::api::params::ReasoningField;
use crate::logging::LogFormat;

/// Exit codes, as `--help` documents them.
pub mod exit {
    /// A drained stop.
    pub const OK: u8 = 0;
    /// A flag, variable or file key is wrong.
    pub const USAGE: u8 = 2;
    /// The model cannot be served: its files.
    pub const MODEL: u8 = 3;
    /// The address cannot be listened on.
    pub const ADDRESS: u8 = 4;
    /// The engine failed, and neither memory nor the device is to blame.
    pub const ENGINE: u8 = 5;
    /// Memory is short: granted too little, or used up at load, warm-up or step.
    pub const MEMORY: u8 = 6;
    /// The device cannot be used: it, its driver or what its kernels are compiled with is missing.
    pub const DEVICE: u8 = 7;
    /// The device broke off its work.
    pub const FAULT: u8 = 8;
    /// The watchdog found that the engine hangs.
    pub const STALL: u8 = 9;
    /// A command other than `serve` did not succeed.
    pub const COMMAND: u8 = 1;
    /// A second signal cut the drain short.
    pub const FORCED: u8 = 130;

    /// The code of a failure of the engine.
    pub fn of(cause: engine::Cause) -> u8 {
        match cause {
            engine::Cause::Option => USAGE,
            engine::Cause::Model => MODEL,
            engine::Cause::Memory => MEMORY,
            engine::Cause::Device => DEVICE,
            engine::Cause::Fault => FAULT,
            engine::Cause::Stall => STALL,
            engine::Cause::Engine => ENGINE,
        }
    }
}

const EXIT_CODES: &str = "Exit codes:
  0    stopped by a signal, after the drain
  1    a command other than serve did not succeed
  2    a flag, variable or key of the file is wrong
  3    the model's files cannot be served
  4    the address cannot be listened on
  5    the engine failed (a bug)
  6    memory is short: granted too little, or used up while loading, warming up or serving
  7    the device cannot be used: it, its driver, NVRTC or the headers are missing
  8    the device failed at its work
  9    the engine hung for --watchdog-seconds, or its loading for --load-timeout; the log has what it was at
  130  a second signal cut the drain short";

/// Serves NVIDIA's Nemotron-H family as an OpenAI endpoint.
#[derive(Debug, Parser)]
#[command(name = "nemoserve", version, after_help = EXIT_CODES)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Option<Command>,
    /// Without a command: serve.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What to do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve a model; without --model the embedded demo.
    #[command(after_help = EXIT_CODES)]
    Serve(Box<ServeArgs>),
    /// Chat in the terminal with a running server.
    Chat(ChatArgs),
    /// Say what this machine can serve.
    Doctor(DoctorArgs),
    /// Write a BF16 checkpoint anew in FP8 or NVFP4.
    Quantize(QuantizeArgs),
    /// Fetch a model's files from a hub into a folder; what was interrupted goes on
    Pull(PullArgs),
    /// Hold a folder that was pulled against its hashes
    Verify(VerifyArgs),
    /// Watch a running server in the terminal
    Top(TopArgs),
    /// Run a flight recording again: its plans must come out equal
    Replay(ReplayArgs),
    /// Measure a model on this machine, and how near it comes to what the machine can do.
    Bench(BenchArgs),
    /// Make an API key for --api-key-file, or check such a file.
    Key(KeyArgs),
}

/// Everything about serving. Keys of the file are the flags' names.
#[derive(Clone, Debug, Default, Args, Deserialize)]
#[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
pub struct ServeArgs {
    /// Read options from this TOML file; keys are the flags' names
    #[arg(long, env = "NEMOSERVE_CONFIG", value_name = "FILE")]
    #[serde(skip)]
    pub config: Option<PathBuf>,

    /// Checkpoint folder in Hugging Face layout [default: the embedded demo model]
    #[arg(long, env = "NEMOSERVE_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,

    /// Names that clients may use for the model, besides the family's
    #[arg(
        long,
        env = "NEMOSERVE_SERVED_MODEL_NAME",
        value_name = "NAME",
        num_args = 1..,
        value_delimiter = ','
    )]
    pub served_model_name: Option<Vec<String>>,

    /// Addresses: ADDR:PORT, or unix:PATH for a socket [default: the sockets that systemd hands over, else
    /// 127.0.0.1:8000]
    #[arg(
        long,
        env = "NEMOSERVE_LISTEN",
        value_name = "ADDR",
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "one_or_more")]
    pub listen: Option<Vec<String>>,

    /// Who may connect to unix sockets, as permissions of their file [default: 660]
    #[arg(long, env = "NEMOSERVE_UNIX_SOCKET_MODE", value_name = "OCTAL")]
    pub unix_socket_mode: Option<String>,

    /// Certificate chain in PEM: TLS on all TCP ports. Read anew on SIGHUP and when it changes
    #[arg(long, env = "NEMOSERVE_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<PathBuf>,

    /// The certificate's private key in PEM
    #[arg(long, env = "NEMOSERVE_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<PathBuf>,

    /// Clients must show a certificate that one of these has signed
    #[arg(long, env = "NEMOSERVE_TLS_CLIENT_CA", value_name = "FILE")]
    pub tls_client_ca: Option<PathBuf>,

    /// Proxies whose X-Forwarded-For or Forwarded is believed, for logs: addresses, ADDRESS/BITS, or unix
    /// for those on unix sockets
    #[arg(
        long,
        env = "NEMOSERVE_TRUSTED_PROXIES",
        value_name = "CIDR",
        value_delimiter = ','
    )]
    #[serde(deserialize_with = "one_or_more")]
    pub trusted_proxies: Option<Vec<String>>,

    /// Connections of trusted proxies begin with a PROXY protocol header, version 1 or 2
    #[arg(
        long,
        env = "NEMOSERVE_PROXY_PROTOCOL",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub proxy_protocol: Option<bool>,

    /// auto, cpu, cuda or cuda:INDEX [default: auto]
    #[arg(long, env = "NEMOSERVE_DEVICE")]
    pub device: Option<String>,

    /// Arithmetic: auto, f32 or bf16; weights stay as stored. auto is bf16 on a GPU, and on a CPU that
    /// multiplies bf16 (AVX-512 BF16) if most weights are bf16; else f32 [default: auto]
    #[arg(long, env = "NEMOSERVE_DTYPE")]
    pub dtype: Option<String>,

    /// KV cache: auto, f32, bf16 or fp8; auto is what the checkpoint asks for, else the arithmetic's
    /// type [default: auto]
    #[arg(long, env = "NEMOSERVE_KV_CACHE_DTYPE")]
    pub kv_cache_dtype: Option<String>,

    /// Mamba states between two tokens: auto, float32 or float16; auto is what the checkpoint asks for,
    /// else float32. float16 halves their memory; they are rounded up or down at random [default: auto]
    #[arg(long, env = "NEMOSERVE_MAMBA_SSM_CACHE_DTYPE")]
    pub mamba_ssm_cache_dtype: Option<String>,

    /// Tokens that the model's draft block guesses ahead and one step checks: 0 to 7, always so many; or
    /// auto, as many as pay. The text is the same [default: 0]
    #[arg(long, env = "NEMOSERVE_SPECULATIVE_TOKENS", value_name = "N|auto")]
    pub speculative_tokens: Option<String>,

    /// Prompt plus output tokens of one request, up to 1048576 [default: the model's, if it fits]
    #[arg(long, env = "NEMOSERVE_MAX_MODEL_LEN", value_name = "TOKENS")]
    pub max_model_len: Option<u32>,

    /// Sequences that run at once [default: 64]
    #[arg(long, env = "NEMOSERVE_MAX_NUM_SEQS", value_name = "N")]
    pub max_num_seqs: Option<u32>,

    /// Tokens in one step over all sequences [default: 512]
    #[arg(long, env = "NEMOSERVE_MAX_NUM_BATCHED_TOKENS", value_name = "TOKENS")]
    pub max_num_batched_tokens: Option<u32>,

    /// While answers are written, steps that read prompts too take at most so many times as long, on
    /// average where a single token takes longer, 2 to 1000; 0: as long as it takes [default: 4 on a
    /// CPU, 0 elsewhere]
    #[arg(long, env = "NEMOSERVE_MAX_DECODE_SLOWDOWN", value_name = "TIMES")]
    pub max_decode_slowdown: Option<u32>,

    /// Requests that may wait; beyond them 429 [default: 1024]
    #[arg(long, env = "NEMOSERVE_MAX_QUEUE", value_name = "N")]
    pub max_queue: Option<u32>,
    /// Tokens that one choice may have, whatever a request asks for [default: what the window has
    /// left]
    #[arg(long, env = "NEMOSERVE_MAX_TOKENS", value_name = "N")]
    pub max_tokens: Option<u32>,

    /// Tokens per KV block [default: 32]
    #[arg(long, env = "NEMOSERVE_BLOCK_SIZE", value_name = "TOKENS")]
    pub block_size: Option<u32>,

    /// Memory for KV blocks and state slots on each device, such as 4GiB [default: see
    /// --memory-fraction]
    #[arg(long, env = "NEMOSERVE_CACHE_MEMORY", value_name = "SIZE")]
    pub cache_memory: Option<String>,

    /// The host's memory for cached prefixes that a GPU has no room for, such as 16GiB, shared by all
    /// ranks. A hit there is copied back, for which its step waits [default: 0, none]
    #[arg(long, env = "NEMOSERVE_HOST_CACHE_MEMORY", value_name = "SIZE")]
    pub host_cache_memory: Option<String>,

    /// Share of the cache's memory for state slots, 0 to 1; running sequences and one context of the
    /// greatest length come first. More for many short conversations, less for few long ones
    /// [default: 0.6]
    #[arg(long, env = "NEMOSERVE_CACHE_SLOT_SHARE", value_name = "SHARE")]
    pub cache_slot_share: Option<f64>,

    /// Share of the device's memory for weights, cache and workspace together, 0.1 to 1 [default: 0.95;
    /// on a CPU half of what weights leave is left to others]
    #[arg(long, env = "NEMOSERVE_MEMORY_FRACTION", value_name = "SHARE")]
    pub memory_fraction: Option<f64>,

    /// CPU threads for one operation [default: all cores]
    #[arg(long, env = "NEMOSERVE_THREADS", value_name = "N")]
    pub threads: Option<usize>,

    /// Ranks that run the model together, a GPU or a share of the threads each [default: 1]
    #[arg(long, env = "NEMOSERVE_TENSOR_PARALLEL_SIZE", value_name = "N")]
    pub tensor_parallel_size: Option<usize>,

    /// Ranks keep whole experts instead of a part of each
    #[arg(
        long,
        env = "NEMOSERVE_EXPERT_PARALLEL",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub expert_parallel: Option<bool>,

    /// Folder that keeps compiled GPU kernels for the next start, or off [default:
    /// $XDG_CACHE_HOME/nemoserve/kernels, else ~/.cache/nemoserve/kernels]
    #[arg(long, env = "NEMOSERVE_KERNEL_CACHE", value_name = "DIR")]
    pub kernel_cache: Option<PathBuf>,

    /// auto reads the weights; dummy invents seeded random ones from config.json [default: auto]
    #[arg(long, env = "NEMOSERVE_LOAD_FORMAT")]
    pub load_format: Option<LoadFormat>,

    /// Be ready before every shape of step has run once: the first clients wait instead
    #[arg(
        long,
        env = "NEMOSERVE_NO_WARM_UP",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub no_warm_up: Option<bool>,

    /// Formats of dummy weights: nvfp4-mix, fp8 or none [default: as the folder's config says]
    #[arg(long, env = "NEMOSERVE_QUANTIZATION", value_name = "MIX")]
    pub quantization: Option<String>,

    /// Seed of dummy weights [default: 0]
    #[arg(long, env = "NEMOSERVE_SEED")]
    pub seed: Option<u64>,

    /// Keys that clients must show; none: no authentication
    #[arg(
        long,
        env = "NEMOSERVE_API_KEY",
        hide_env_values = true,
        value_name = "KEY",
        num_args = 1..,
        value_delimiter = ','
    )]
    pub api_key: Option<Vec<String>>,

    /// More keys: a TOML file of their hashes, each with its limits (see `nemoserve key`); read again on
    /// SIGHUP
    #[arg(long, env = "NEMOSERVE_API_KEY_FILE", value_name = "FILE")]
    pub api_key_file: Option<PathBuf>,

    /// Seconds that a request has at most, from its headers to its last byte; beyond them 504, or an
    /// error event if the answer has begun. x-request-timeout-ms asks for less [default: as many as it
    /// takes]
    #[arg(long, env = "NEMOSERVE_REQUEST_TIMEOUT", value_name = "S")]
    pub request_timeout: Option<u64>,

    /// Prompt tokens of requests that wait for their first token; beyond them 429 [default: as many as
    /// --max-queue has]
    #[arg(long, env = "NEMOSERVE_MAX_QUEUED_TOKENS", value_name = "TOKENS")]
    pub max_queued_tokens: Option<u64>,

    /// Seconds that a request should wait at most before it is begun. While others wait, at a quarter
    /// of it drafts end and low priority is refused, at half all but high priority, then everything
    /// (503, or 529 on /v1/messages) [default: however long]
    #[arg(long, env = "NEMOSERVE_MAX_QUEUE_AGE", value_name = "S")]
    pub max_queue_age: Option<u64>,

    /// Origins whose pages may call the API [default: *]
    #[arg(
        long,
        env = "NEMOSERVE_CORS_ORIGIN",
        value_name = "ORIGIN",
        num_args = 1..,
        value_delimiter = ','
    )]
    pub cors_origin: Option<Vec<String>>,

    /// Let an answer depend on nothing but its request: not on what is cached or who else is served, bit
    /// for bit. The CPU always does; on a GPU it costs some speed and cache hits
    #[arg(
        long,
        env = "NEMOSERVE_DETERMINISTIC",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub deterministic: Option<bool>,

    /// Serve no web playground at /
    #[arg(
        long,
        env = "NEMOSERVE_NO_PLAYGROUND",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub no_playground: Option<bool>,

    /// Under which name reasoning is returned [default: reasoning_content]
    #[arg(long, env = "NEMOSERVE_REASONING_FIELD", value_name = "NAME")]
    pub reasoning_field: Option<ReasoningFieldArg>,

    /// Whose defaults hold on /v1: nvidia streams unless told otherwise [default: openai]
    #[arg(long, env = "NEMOSERVE_DEFAULTS", value_name = "WHOSE")]
    pub defaults: Option<DefaultsArg>,

    /// USD per million tokens on /ai/run and /client/v4 [default: 0.50,1.50,0.50]
    #[arg(long, env = "NEMOSERVE_PRICE_CLOUDFLARE", value_name = "IN,OUT,CACHED")]
    pub price_cloudflare: Option<String>,

    /// USD per million tokens on /api/v1 [default: 0.09,0.45,0.09]
    #[arg(long, env = "NEMOSERVE_PRICE_OPENROUTER", value_name = "IN,OUT,CACHED")]
    pub price_openrouter: Option<String>,

    /// USD per million tokens on /v1/openai [default: 0.10,0.50,0.04]
    #[arg(long, env = "NEMOSERVE_PRICE_DEEPINFRA", value_name = "IN,OUT,CACHED")]
    pub price_deepinfra: Option<String>,

    /// Silence on a stream before a comment is sent [default: 10000]
    #[arg(long, env = "NEMOSERVE_SSE_KEEPALIVE_MS", value_name = "MS")]
    pub sse_keepalive_ms: Option<u64>,

    /// Largest request body, such as 32MiB [default: 32MiB]
    #[arg(long, env = "NEMOSERVE_MAX_BODY", value_name = "SIZE")]
    pub max_body: Option<String>,

    /// Memory for stored answers of /v1/responses; 0 stores none [default: 64MiB]
    #[arg(long, env = "NEMOSERVE_MAX_STORED_RESPONSES", value_name = "SIZE")]
    pub max_stored_responses: Option<String>,

    /// Open connections; more wait [default: 4096]
    #[arg(long, env = "NEMOSERVE_MAX_CONNECTIONS", value_name = "N")]
    pub max_connections: Option<usize>,

    /// How long running streams may take to finish after a stop signal [default: 30]
    #[arg(long, env = "NEMOSERVE_DRAIN_SECONDS", value_name = "S")]
    pub drain_seconds: Option<u64>,

    /// While work waits and nothing is computed for this long, /health and /ready fail [default: 10]
    #[arg(long, env = "NEMOSERVE_STALL_SECONDS", value_name = "S")]
    pub stall_seconds: Option<u64>,

    /// After this long of the same every client is told, and the process ends with code 9; 0: never
    /// [default: 60]
    #[arg(long, env = "NEMOSERVE_WATCHDOG_SECONDS", value_name = "S")]
    pub watchdog_seconds: Option<u64>,

    /// While weights load or the model warms up, and nothing comes of it for this long, the same happens:
    /// /health fails, and the process ends with code 9 unless --watchdog-seconds is 0 [default: 600]
    #[arg(long, env = "NEMOSERVE_LOAD_TIMEOUT", value_name = "S")]
    pub load_timeout: Option<u64>,

    /// Send traces to this OTLP collector by HTTP, such as http://127.0.0.1:4318 or https://HOST:4318;
    /// /v1/traces is added [default: none]
    #[arg(long, env = "OTEL_EXPORTER_OTLP_ENDPOINT", value_name = "URL")]
    pub otlp_endpoint: Option<String>,

    /// Certificates in PEM to trust besides the public authorities', as of a collector that signed its own
    // No path: an empty variable is as good as none.
    #[arg(long, env = "OTEL_EXPORTER_OTLP_CERTIFICATE", value_name = "FILE")]
    pub otlp_certificate: Option<String>,

    /// Share of requests to trace where the caller's traceparent leaves it open, 0 to 1 [default: 1]
    #[arg(long, env = "NEMOSERVE_TRACE_RATIO", value_name = "SHARE")]
    pub trace_ratio: Option<f64>,

    /// Write the scheduler's last calls and plans to a file here when the engine fails; the newest 16 files
    /// are kept
    #[arg(long, env = "NEMOSERVE_FLIGHT_DIR", value_name = "DIR")]
    pub flight_dir: Option<PathBuf>,

    /// Memory for those calls, the oldest dropped first; 0 records none [default: 64MiB]
    #[arg(long, env = "NEMOSERVE_FLIGHT_MEMORY", value_name = "SIZE")]
    pub flight_memory: Option<String>,

    /// Write tokens to that file as they are, readable with the tokenizer, and not as hashes
    #[arg(
        long,
        env = "NEMOSERVE_FLIGHT_CONTENTS",
        value_name = "BOOL",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true",
        value_parser = clap::builder::BoolishValueParser::new()
    )]
    pub flight_contents: Option<bool>,

    /// Tell routers over ZeroMQ what the cache can be hit with, such as tcp://*:5556 [default: off]
    #[arg(long, env = "NEMOSERVE_KV_EVENTS_ENDPOINT", value_name = "URL")]
    pub kv_events_endpoint: Option<String>,

    /// Under which name [default: kv@HOSTNAME@MODEL]
    #[arg(long, env = "NEMOSERVE_KV_EVENTS_TOPIC", value_name = "TOPIC")]
    pub kv_events_topic: Option<String>,

    /// Looks of the log [default: text]
    #[arg(long, env = "NEMOSERVE_LOG_FORMAT")]
    pub log_format: Option<LogFormat>,

    /// What is logged: a level, or target=level pairs [default: info]
    #[arg(long, env = "NEMOSERVE_LOG", value_name = "FILTER")]
    pub log: Option<String>,
}

/// In a file, a list may be one value.
fn one_or_more<'de, D: Deserializer<'de>>(values: D) -> Result<Option<Vec<String>>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged, expecting = "a string or a list of strings")]
    enum OneOrMore {
        One(String),
        More(Vec<String>),
    }
    Ok(Some(match OneOrMore::deserialize(values)? {
        OneOrMore::One(value) => vec![value],
        OneOrMore::More(values) => values,
    }))
}

/// Where files of this program that can be made again lie on this machine; `None` if it does not say.
pub fn cache_folder() -> Option<PathBuf> {
    // A relative path is to be ignored, as the standard for these folders has it.
    let absolute = |name: &str| {
        let path = std::env::var_os(name).map(PathBuf::from);
        path.filter(|path| path.is_absolute())
    };
    absolute("XDG_CACHE_HOME")
        .or_else(|| Some(absolute("HOME")?.join(".cache")))
        .map(|folder| folder.join("nemoserve"))
}

/// Where weights come from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LoadFormat {
    /// The folder's safetensors.
    #[default]
    Auto,
    /// Seeded random ones.
    Dummy,
}

/// [`ReasoningField`] as a flag.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "snake_case")]
#[value(rename_all = "snake_case")]
pub enum ReasoningFieldArg {
    /// As the OpenAI dialect of most servers has it.
    ReasoningContent,
    /// For clients that want the newer name.
    Reasoning,
    /// Both.
    Both,
}

impl From<ReasoningFieldArg> for ReasoningField {
    fn from(arg: ReasoningFieldArg) -> Self {
        match arg {
            ReasoningFieldArg::ReasoningContent => Self::ReasoningContent,
            ReasoningFieldArg::Reasoning => Self::Reasoning,
            ReasoningFieldArg::Both => Self::Both,
        }
    }
}

/// Whose defaults hold on `/v1`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum DefaultsArg {
    /// OpenAI's.
    Openai,
    /// Those of NVIDIA's hosted API.
    Nvidia,
}

impl From<DefaultsArg> for Flavour {
    fn from(arg: DefaultsArg) -> Self {
        match arg {
            DefaultsArg::Openai => Self::OpenAi,
            DefaultsArg::Nvidia => Self::Nvidia,
        }
    }
}

/// What to do about keys.
#[derive(Clone, Debug, Args)]
pub struct KeyArgs {
    /// Which part.
    #[command(subcommand)]
    pub what: KeyCommand,
}

/// What to do about keys.
#[derive(Clone, Debug, Subcommand)]
pub enum KeyCommand {
    /// Make a key: it goes to standard error, once; its entry for the file to standard output
    New {
        /// Whose it is: letters, digits and ._-
        #[arg(long, default_value = "client")]
        name: String,
    },
    /// Read a key that there is already from standard input, and print its hash
    Hash,
    /// Say whether a file can be used, and whom it lets in
    Check {
        /// The file
        file: PathBuf,
    },
}

/// How to reach a server.
#[derive(Clone, Debug, Args)]
pub struct ChatArgs {
    /// The server, http:// or https://
    #[arg(long, env = "NEMOSERVE_URL", default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Certificates in PEM to trust besides the public authorities', as of a server that signed its own
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// The model's name [default: the first that the server lists]
    #[arg(long, env = "NEMOSERVE_CHAT_MODEL")]
    pub model: Option<String>,
    /// The server's key, if it wants one
    #[arg(long, env = "NEMOSERVE_API_KEY", hide_env_values = true)]
    pub api_key: Option<String>,
    /// Let the model think first
    #[arg(long, default_value_t = true, action = clap::ArgAction::Set, value_name = "BOOL")]
    pub think: bool,
}

/// What to watch.
#[derive(Clone, Debug, Args)]
pub struct TopArgs {
    /// The server, http:// or https://
    #[arg(env = "NEMOSERVE_URL", default_value = "http://127.0.0.1:8000")]
    pub url: String,
    /// Certificates in PEM to trust besides the public authorities', as of a server that signed its own
    #[arg(long, value_name = "FILE")]
    pub cacert: Option<PathBuf>,
    /// Seconds between two looks, 0.2 to 60
    #[arg(long, value_name = "S", default_value_t = 1.0)]
    pub interval: f64,
    /// Print what can be seen now, as text, and end
    #[arg(long)]
    pub once: bool,
}

/// What to run again.
#[derive(Clone, Debug, Args)]
pub struct ReplayArgs {
    /// As --flight-dir or /debug/flight gave it
    #[arg(value_name = "FILE")]
    pub file: PathBuf,
}

/// What to write.
#[derive(Clone, Debug, Args)]
pub struct QuantizeArgs {
    /// Checkpoint folder in Hugging Face layout, not quantised
    #[arg(long, env = "NEMOSERVE_MODEL", value_name = "DIR")]
    pub model: PathBuf,
    /// Folder to write; it must not exist, or be empty
    #[arg(long, value_name = "DIR")]
    pub output: PathBuf,
    /// nvfp4 (4.5 bits a weight) or fp8 (8 bits)
    #[arg(long)]
    pub format: String,
    /// Leave these modules as they are, too; * stands for anything
    #[arg(long, value_name = "PATTERN", num_args = 1.., value_delimiter = ',')]
    pub exclude: Vec<String>,
    /// Score this text with both checkpoints and print their perplexities; form feeds part documents,
    /// and what stands before a vertical tab in one is read and not scored
    #[arg(long, value_name = "TEXTFILE")]
    pub evaluate: Option<PathBuf>,
}

/// What to fetch.
#[derive(Clone, Debug, Args)]
pub struct PullArgs {
    /// Repository, such as nvidia/NVIDIA-Nemotron-3-Nano-30B-A3B-BF16
    #[arg(value_name = "OWNER/NAME")]
    pub repo: String,
    /// Branch, tag or commit
    #[arg(long, default_value = "main")]
    pub revision: String,
    /// Folder to fill [default: the repository's name]
    #[arg(long, value_name = "DIR")]
    pub to: Option<PathBuf>,
    /// The hub, or a mirror of it
    #[arg(
        long,
        env = "HF_ENDPOINT",
        value_name = "URL",
        default_value = "https://huggingface.co"
    )]
    pub endpoint: String,
    /// Access token, for repositories that want one
    #[arg(long, env = "HF_TOKEN", hide_env_values = true)]
    pub token: Option<String>,
}

/// What to check.
#[derive(Clone, Debug, Args)]
pub struct VerifyArgs {
    /// Folder that was pulled
    #[arg(value_name = "DIR")]
    pub folder: PathBuf,
}

/// What to measure.
#[derive(Clone, Debug, Args)]
pub struct BenchArgs {
    /// Print JSON instead of a table
    #[arg(long, global = true)]
    pub json: bool,
    /// Which part.
    #[command(subcommand)]
    pub what: BenchCommand,
}

/// What to measure.
#[derive(Clone, Debug, Subcommand)]
pub enum BenchCommand {
    /// Steps in which every sequence draws a token: time, bytes moved, share of the bandwidth
    Decode(Box<BenchDecodeArgs>),
    /// Prompts from nothing to their first token: operations, share of the matrix rate
    Prefill(Box<BenchPrefillArgs>),
    /// Attention of the last tokens over a long context: what a turn pays for its history
    Attention(Box<BenchAttentionArgs>),
    /// The large products of prompts by every way that the device has, beside its matrix rate
    Products(BenchProductsArgs),
    /// Requests as clients send them: times to first token and between tokens
    Serve(Box<BenchServeArgs>),
    /// Time to ready, beside the time that reading the same files takes
    Load(Box<BenchLoadArgs>),
}

/// Steps that draw.
#[derive(Clone, Debug, Args)]
pub struct BenchDecodeArgs {
    /// Sequences in a step
    #[arg(long, value_delimiter = ',', default_value = "1,8,32,64,128")]
    pub batch: Vec<u32>,
    /// Of drafts, have so many come true that a step with 7 draws this many tokens on average, by a
    /// seeded coin: for weights whose drafts are worth nothing. 3.45 is published for Super. Then
    /// --speculative-tokens may be a list, such as 1,3,5
    #[arg(long, value_name = "TOKENS")]
    pub synthetic_acceptance_length: Option<f64>,
    /// Steps to time for each
    #[arg(long, default_value_t = 32)]
    pub steps: u32,
    /// Prompt tokens of each sequence
    #[arg(long, value_name = "TOKENS", default_value_t = 128)]
    pub context: u32,
    /// Show where the time of the steps goes instead, by operation and shape: on a CPU, without drafts
    #[arg(long)]
    pub profile: bool,
    /// The model.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Prompts.
#[derive(Clone, Debug, Args)]
pub struct BenchPrefillArgs {
    /// Prompt tokens
    #[arg(long, value_delimiter = ',', default_value = "128,512,2048,8192,32768")]
    pub lengths: Vec<u32>,
    /// Prompts of each length; the median counts
    #[arg(long, default_value_t = 3)]
    pub repeat: u32,
    /// Show where the time of the prompts goes instead, by operation and shape: on a CPU
    #[arg(long)]
    pub profile: bool,
    /// The model.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Tokens over contexts.
#[derive(Clone, Debug, Args)]
pub struct BenchAttentionArgs {
    /// Tokens at once
    #[arg(long, value_delimiter = ',', default_value = "16,64,256")]
    pub tokens: Vec<usize>,
    /// Positions before them
    #[arg(long, value_delimiter = ',', default_value = "8192,65536,262144")]
    pub context: Vec<usize>,
    /// The model.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Products.
#[derive(Clone, Debug, Args)]
pub struct BenchProductsArgs {
    /// Folder whose config.json says the shapes [default: Nemotron 3 Super's]
    #[arg(long, env = "NEMOSERVE_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// auto, cpu, cuda or cuda:INDEX
    #[arg(long, env = "NEMOSERVE_DEVICE", default_value = "auto")]
    pub device: String,
    /// Tokens at once
    #[arg(long, value_delimiter = ',', default_value = "512,2048,8192")]
    pub tokens: Vec<usize>,
}

/// Requests.
#[derive(Clone, Debug, Args)]
pub struct BenchServeArgs {
    /// Conversations: each asks again as soon as it is answered; with --rate, whose turns those are
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub streams: u32,
    /// Requests per second instead, at random times, whether or not others have been answered; with
    /// --turns, conversations per second. Several, such as 1,2,4: a run for each
    #[arg(long, value_name = "R", value_delimiter = ',')]
    pub rate: Vec<f64>,
    /// Requests in all
    #[arg(long, value_name = "N", default_value_t = 128)]
    pub requests: u32,
    /// Prompt tokens of a request: so many, or LOW..HIGH drawn evenly
    #[arg(long, value_name = "TOKENS", default_value = "1024")]
    pub input_len: String,
    /// Tokens that each draws: so many, or LOW..HIGH drawn evenly
    #[arg(long, value_name = "TOKENS", default_value = "128")]
    pub output_len: String,
    /// Lengths from a file of JSON lines instead, each with input_length and output_length, as published
    /// traces have them; over and over
    #[arg(long, value_name = "FILE")]
    pub dataset: Option<PathBuf>,
    /// Turns of a conversation: each repeats what was said and adds a prompt of its own
    #[arg(long, value_name = "N", default_value_t = 1)]
    pub turns: u32,
    /// Share of a prompt that its conversation has seen before, as agents' have
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    pub reuse: f64,
    /// A request is good if its first token comes within this time; good ones are counted
    #[arg(long, value_name = "MS")]
    pub slo_ttft_ms: Option<f64>,
    /// And if its tokens come this fast on average
    #[arg(long, value_name = "MS")]
    pub slo_itl_ms: Option<f64>,
    /// Also write a page with plots
    #[arg(long, value_name = "FILE")]
    pub html: Option<PathBuf>,
    /// Ask a running server instead, of any make, by http:// or https://; --served-model-name says for
    /// which model [default: the first that it lists]
    #[arg(long)]
    pub url: Option<String>,
    /// Certificates in PEM to trust besides the public authorities', as of a server that signed its own
    #[arg(long, value_name = "FILE", requires = "url")]
    pub cacert: Option<PathBuf>,
    /// Ask it in words at /v1/chat/completions rather than in token ids at /v1/completions
    #[arg(long)]
    pub chat: bool,
    /// Ask it for nothing that OpenAI's own endpoints do not know: then answers may end early
    #[arg(long)]
    pub plain: bool,
    /// That server's key, if it wants one
    #[arg(long, hide_env_values = true)]
    pub key: Option<String>,
    /// The model.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// Loading.
#[derive(Clone, Debug, Args)]
pub struct BenchLoadArgs {
    /// The model.
    #[command(flatten)]
    pub serve: ServeArgs,
}

/// What to examine.
#[derive(Clone, Debug, Args)]
pub struct DoctorArgs {
    /// Also judge this checkpoint folder
    #[arg(long, env = "NEMOSERVE_MODEL", value_name = "DIR")]
    pub model: Option<PathBuf>,
    /// Also run every kernel against plain loops
    #[arg(long)]
    pub self_test: bool,
    /// Device of the self-test: auto, cpu, cuda or cuda:INDEX
    #[arg(long, env = "NEMOSERVE_DEVICE", default_value = "auto")]
    pub device: String,
    /// Whose shapes to test at; a large model's take minutes on a CPU
    #[arg(long, value_name = "WHOSE", default_value = "small")]
    pub shapes: TestShapes,
    /// Seed of the self-test's inputs [default: another one every time]
    #[arg(long)]
    pub seed: Option<u64>,
}

/// Shapes of the self-test.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TestShapes {
    /// Small ones.
    Small,
    /// Nemotron 3 Super's.
    Super,
    /// Nemotron 3 Nano 30B's.
    Nano,
    /// Those of --model.
    Model,
}

impl ServeArgs {
    /// Fills what flags and variables left open from the file, if one is named.
    ///
    /// # Errors
    /// The file cannot be read, is not TOML, or has a key that is no flag; the message names it.
    pub fn with_file(self) -> Result<Self, String> {
        let Some(path) = self.config.clone() else {
            return Ok(self);
        };
        let text = std::fs::read_to_string(&path)
            .map_err(|error| format!("--config {}: {error}", path.display()))?;
        Ok(self.over(Self::from_toml(&text, &path)?))
    }

    fn from_toml(text: &str, path: &Path) -> Result<Self, String> {
        toml::from_str(text)
            .map_err(|error| format!("--config {}: {}", path.display(), error.to_string().trim()))
    }

    /// `self` where it says something, else `base`.
    #[must_use]
    pub fn over(self, base: Self) -> Self {
        Self {
            config: self.config,
            model: self.model.or(base.model),
            served_model_name: self.served_model_name.or(base.served_model_name),
            listen: self.listen.or(base.listen),
            unix_socket_mode: self.unix_socket_mode.or(base.unix_socket_mode),
            tls_cert: self.tls_cert.or(base.tls_cert),
            tls_key: self.tls_key.or(base.tls_key),
            tls_client_ca: self.tls_client_ca.or(base.tls_client_ca),
            trusted_proxies: self.trusted_proxies.or(base.trusted_proxies),
            proxy_protocol: self.proxy_protocol.or(base.proxy_protocol),
            device: self.device.or(base.device),
            dtype: self.dtype.or(base.dtype),
            kv_cache_dtype: self.kv_cache_dtype.or(base.kv_cache_dtype),
            mamba_ssm_cache_dtype: self.mamba_ssm_cache_dtype.or(base.mamba_ssm_cache_dtype),
            speculative_tokens: self.speculative_tokens.or(base.speculative_tokens),
            max_model_len: self.max_model_len.or(base.max_model_len),
            max_num_seqs: self.max_num_seqs.or(base.max_num_seqs),
            max_num_batched_tokens: self.max_num_batched_tokens.or(base.max_num_batched_tokens),
            max_decode_slowdown: self.max_decode_slowdown.or(base.max_decode_slowdown),
            max_queue: self.max_queue.or(base.max_queue),
            max_tokens: self.max_tokens.or(base.max_tokens),
            block_size: self.block_size.or(base.block_size),
            cache_memory: self.cache_memory.or(base.cache_memory),
            host_cache_memory: self.host_cache_memory.or(base.host_cache_memory),
            cache_slot_share: self.cache_slot_share.or(base.cache_slot_share),
            memory_fraction: self.memory_fraction.or(base.memory_fraction),
            threads: self.threads.or(base.threads),
            tensor_parallel_size: self.tensor_parallel_size.or(base.tensor_parallel_size),
            expert_parallel: self.expert_parallel.or(base.expert_parallel),
            kernel_cache: self.kernel_cache.or(base.kernel_cache),
            load_format: self.load_format.or(base.load_format),
            no_warm_up: self.no_warm_up.or(base.no_warm_up),
            quantization: self.quantization.or(base.quantization),
            seed: self.seed.or(base.seed),
            api_key: self.api_key.or(base.api_key),
            api_key_file: self.api_key_file.or(base.api_key_file),
            request_timeout: self.request_timeout.or(base.request_timeout),
            max_queued_tokens: self.max_queued_tokens.or(base.max_queued_tokens),
            max_queue_age: self.max_queue_age.or(base.max_queue_age),
            cors_origin: self.cors_origin.or(base.cors_origin),
            deterministic: self.deterministic.or(base.deterministic),
            no_playground: self.no_playground.or(base.no_playground),
            reasoning_field: self.reasoning_field.or(base.reasoning_field),
            defaults: self.defaults.or(base.defaults),
            price_cloudflare: self.price_cloudflare.or(base.price_cloudflare),
            price_openrouter: self.price_openrouter.or(base.price_openrouter),
            price_deepinfra: self.price_deepinfra.or(base.price_deepinfra),
            sse_keepalive_ms: self.sse_keepalive_ms.or(base.sse_keepalive_ms),
            max_body: self.max_body.or(base.max_body),
            max_stored_responses: self.max_stored_responses.or(base.max_stored_responses),
            max_connections: self.max_connections.or(base.max_connections),
            drain_seconds: self.drain_seconds.or(base.drain_seconds),
            stall_seconds: self.stall_seconds.or(base.stall_seconds),
            watchdog_seconds: self.watchdog_seconds.or(base.watchdog_seconds),
            load_timeout: self.load_timeout.or(base.load_timeout),
            kv_events_endpoint: self.kv_events_endpoint.or(base.kv_events_endpoint),
            kv_events_topic: self.kv_events_topic.or(base.kv_events_topic),
            otlp_endpoint: self.otlp_endpoint.or(base.otlp_endpoint),
            otlp_certificate: self.otlp_certificate.or(base.otlp_certificate),
            trace_ratio: self.trace_ratio.or(base.trace_ratio),
            flight_dir: self.flight_dir.or(base.flight_dir),
            flight_memory: self.flight_memory.or(base.flight_memory),
            flight_contents: self.flight_contents.or(base.flight_contents),
            log_format: self.log_format.or(base.log_format),
            log: self.log.or(base.log),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_flags_are_consistent() {
        use clap::CommandFactory as _;
        Cli::command().debug_assert();
    }

    #[test]
    fn no_command_is_serve() {
        let cli = Cli::parse_from(["nemoserve", "--listen", "[::1]:9", "--api-key", "a,b"]);
        assert!(cli.command.is_none());
        assert_eq!(cli.serve.listen, Some(vec!["[::1]:9".to_owned()]));
        assert_eq!(cli.serve.api_key.expect("given").len(), 2);
    }

    #[test]
    fn a_switch_needs_no_value() {
        let read = |flag: &[&str]| {
            let args = ["nemoserve"].iter().chain(flag);
            Cli::parse_from(args).serve.no_playground
        };
        assert_eq!(read(&[]), None);
        assert_eq!(read(&["--no-playground"]), Some(true));
        assert_eq!(read(&["--no-playground=false"]), Some(false));
    }

    #[test]
    fn every_flag_is_a_key_of_the_file() {
        use clap::CommandFactory as _;
        let command = Cli::command();
        for flag in command.get_arguments().filter_map(clap::Arg::get_long) {
            if ["config", "help", "version"].contains(&flag) {
                continue;
            }
            // A wrong type means that the key is known; an unknown key says so.
            let text = format!("{flag} = [[]]");
            let error = ServeArgs::from_toml(&text, Path::new("f")).expect_err(flag);
            assert!(!error.contains("unknown field"), "{error}");
        }
    }

    #[test]
    fn the_flag_wins_over_the_file() {
        let file = "max-num-seqs = 4\nblock-size = 16\nreasoning-field = \"both\"\n\
                    listen = \"unix:/s\"\ntrusted-proxies = [\"::1\", \"unix\"]";
        let file = ServeArgs::from_toml(file, Path::new("f")).expect("valid");
        let flags = ServeArgs {
            max_num_seqs: Some(8),
            ..ServeArgs::default()
        };
        let both = flags.over(file);
        assert_eq!((both.max_num_seqs, both.block_size), (Some(8), Some(16)));
        assert_eq!(both.reasoning_field, Some(ReasoningFieldArg::Both));
        let lists = [both.listen, both.trusted_proxies].map(|list| list.map(|list| list.len()));
        assert_eq!(lists, [Some(1), Some(2)]);
    }

    #[test]
    fn an_unknown_key_is_named() {
        for text in [
            "max-nun-seqs = 4",
            "config = \"x\"",
            "[serve]\nmodel = \"x\"",
        ] {
            let error = ServeArgs::from_toml(text, Path::new("my.toml")).expect_err(text);
            let key = text
                .trim_start_matches('[')
                .split([' ', ']'])
                .next()
                .expect("a key");
            assert!(error.contains("my.toml") && error.contains(key), "{error}");
        }
    }
}
