//! Arguments and model folder to each crate's validated configuration.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use engine::flight::Contents;
use engine::{
    DeviceChoice, DtypeChoice, EngineConfig, EngineError, KvDtypeChoice, ModelConfig, ModelSource,
    StateDtypeChoice,
};
use serde_json::Value;

use crate::api::models::ModelNames;
use crate::api::params::Defaults;
use crate::api::prices::{Price, Prices};
use crate::args::{LoadFormat, ServeArgs, cache_folder, exit};
use crate::chat::ChatTemplate;
use crate::demo;
use crate::flight::FlightConfig;
use crate::kv_events::KvEvents;
use crate::state::ServerConfig;
use crate::text::Tokenizer;
use crate::traces::TraceConfig;
use crate::transport::{ListenAddress, Network, Proxies, TlsFiles};

/// Names under which the family is known to clients; all resolve to the one loaded model.
pub const FAMILY_NAMES: [&str; 3] = [
    "nvidia/nemotron-3-super-120b-a12b",
    "nvidia/NVIDIA-Nemotron-3-Super-120B-A12B",
    "@cf/nvidia/nemotron-3-120b-a12b",
];

/// Texts of a model folder are small; a larger file is something else.
const MAX_TEXT_BYTES: u64 = 256 << 20;

/// Why nothing can be served.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// A flag, variable or key of the file is wrong; the message names it.
    #[error("{0}")]
    Usage(String),
    /// A file beside the weights is unusable.
    #[error("{}: {what}", path.display())]
    File {
        /// Which.
        path: PathBuf,
        /// Why.
        what: String,
    },
    /// The engine says why.
    #[error(transparent)]
    Engine(#[from] EngineError),
}

impl ConfigError {
    /// What the process ends with.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Usage(_) => exit::USAGE,
            Self::File { .. } => exit::MODEL,
            Self::Engine(error) => exit::of(error.cause()),
        }
    }
}

/// Drafts at most where their number is not given: deeper ones rarely come true.
const AUTO_DRAFTS: u32 = 5;

/// All that serving needs, checked as far as can be without reading weights.
pub struct Settings {
    /// For the engine.
    pub engine: EngineConfig,
    /// For the front end.
    pub server: ServerConfig,
    /// Where to listen; empty if nobody said where.
    pub listen: Vec<ListenAddress>,
    /// Permissions of unix sockets.
    pub unix_socket_mode: u32,
    /// Certificates for TCP ports.
    pub tls: Option<TlsFiles>,
    /// Names of the model.
    pub names: ModelNames,
    /// Tokenizer, template and defaults.
    pub texts: ModelTexts,
    /// Where the texts come from, for errors.
    pub folder: PathBuf,
    /// Under which names reasoning is returned.
    pub reasoning_field: crate::api::params::ReasoningField,
    /// Tokens of a choice at most.
    pub max_tokens: Option<u32>,
}

impl Settings {
    /// Reads the texts of the model folder and checks every option that no other crate checks.
    pub fn new(args: &ServeArgs) -> Result<Self, ConfigError> {
        let engine = engine_config(args)?;
        let (texts, folder) = match &args.model {
            None => (demo::texts(), PathBuf::from("embedded demo")),
            Some(folder) => (ModelTexts::read(folder)?, folder.clone()),
        };
        Ok(Self {
            engine,
            server: server_config(args)?,
            listen: args
                .listen
                .iter()
                .flatten()
                .map(|text| {
                    let address = text.parse::<ListenAddress>();
                    address.map_err(|why| ConfigError::Usage(format!("--listen: {why}")))
                })
                .collect::<Result<_, _>>()?,
            unix_socket_mode: unix_socket_mode(args)?,
            tls: tls_files(args)?,
            names: model_names(args)?,
            texts,
            folder,
            reasoning_field: args.reasoning_field.map(Into::into).unwrap_or_default(),
            max_tokens: match args.max_tokens {
                Some(0) => {
                    let message = "--max-tokens is 0, at least 1 is needed";
                    return Err(ConfigError::Usage(message.into()));
                }
                most => most,
            },
        })
    }

    /// The folder's tokenizer, if it has one.
    pub fn tokenizer(&self) -> Result<Option<Arc<Tokenizer>>, ConfigError> {
        let Some(json) = &self.texts.tokenizer else {
            return Ok(None);
        };
        Tokenizer::from_bytes(json)
            .map(|tokenizer| Some(Arc::new(tokenizer)))
            .map_err(|error| self.file_error("tokenizer.json", error.to_string()))
    }

    /// Whether the model knows every id that the tokenizer makes.
    pub fn check_ids(&self, tokenizer: &Tokenizer, vocab_size: u32) -> Result<(), ConfigError> {
        let num_ids = tokenizer.num_ids();
        if num_ids <= vocab_size as usize {
            return Ok(());
        }
        let what = format!(
            "it has ids up to {}, and the model's `vocab_size` is {vocab_size}",
            num_ids - 1
        );
        Err(self.file_error("tokenizer.json", what))
    }

    /// The folder's chat template, if it has one. Without a tokenizer a template is of no use.
    pub fn template(
        &self,
        tokenizer: Option<&Tokenizer>,
    ) -> Result<Option<Arc<ChatTemplate>>, ConfigError> {
        let Some(tokenizer) = tokenizer else {
            return Ok(None);
        };
        let jinja = self.texts.chat_template.as_deref();
        let config = self.texts.tokenizer_config.as_deref();
        ChatTemplate::from_folder(jinja, config, tokenizer)
            .map(|template| template.map(Arc::new))
            .map_err(|error| ConfigError::File {
                path: self.folder.clone(),
                what: error.to_string(),
            })
    }

    /// What holds where a request is silent.
    pub fn defaults(&self, model: &ModelConfig) -> Result<Defaults, ConfigError> {
        let name = "generation_config.json";
        let fail = |what: String| self.file_error(name, what);
        let generation: Value = match &self.texts.generation_config {
            None => Value::Null,
            Some(text) => serde_json::from_str(text).map_err(|error| fail(error.to_string()))?,
        };
        let number = |key: &str, max: f64| match &generation[key] {
            Value::Null => Ok(None),
            value => match value.as_f64() {
                Some(number) if (0.0..=max).contains(&number) => Ok(Some(number as f32)),
                _ => Err(fail(format!("`{key}` is {value}, expected 0 to {max}"))),
            },
        };
        let eos_token_ids = match &generation["eos_token_id"] {
            Value::Null => model.eos_token_ids.clone(),
            value => token_ids(value)
                .ok_or_else(|| fail(format!("`eos_token_id` is {value}, expected token ids")))?,
        };
        Ok(Defaults {
            temperature: number("temperature", 2.0)?,
            top_p: number("top_p", 1.0)?,
            eos_token_ids,
            reasoning_field: self.reasoning_field,
            max_tokens: self.max_tokens.map(u64::from),
        })
    }

    fn file_error(&self, name: &str, what: String) -> ConfigError {
        ConfigError::File {
            path: self.folder.join(name),
            what,
        }
    }
}

/// What the front end reads of a model folder. Only weights and `config.json` are required, and the
/// engine reads those.
#[derive(Clone, Debug, Default)]
pub struct ModelTexts {
    /// `tokenizer.json`.
    pub tokenizer: Option<Vec<u8>>,
    /// `tokenizer_config.json`.
    pub tokenizer_config: Option<String>,
    /// `chat_template.jinja`.
    pub chat_template: Option<String>,
    /// `generation_config.json`.
    pub generation_config: Option<String>,
}

impl ModelTexts {
    fn read(folder: &Path) -> Result<Self, ConfigError> {
        let text = |name: &str| {
            read_optional(&folder.join(name))?
                .map(|bytes| {
                    String::from_utf8(bytes).map_err(|error| ConfigError::File {
                        path: folder.join(name),
                        what: format!("not UTF-8: {error}"),
                    })
                })
                .transpose()
        };
        Ok(Self {
            tokenizer: read_optional(&folder.join("tokenizer.json"))?,
            tokenizer_config: text("tokenizer_config.json")?,
            chat_template: text("chat_template.jinja")?,
            generation_config: text("generation_config.json")?,
        })
    }
}

fn read_optional(path: &Path) -> Result<Option<Vec<u8>>, ConfigError> {
    let fail = |what: String| ConfigError::File {
        path: path.to_owned(),
        what,
    };
    match std::fs::metadata(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(fail(error.to_string())),
        Ok(metadata) if metadata.len() > MAX_TEXT_BYTES => {
            return Err(fail(format!("{} bytes is too large", metadata.len())));
        }
        Ok(_) => {}
    }
    std::fs::read(path)
        .map(Some)
        .map_err(|error| fail(error.to_string()))
}

fn token_ids(value: &Value) -> Option<Vec<u32>> {
    let one = std::slice::from_ref(value);
    value
        .as_array()
        .map_or(one, Vec::as_slice)
        .iter()
        .map(|id| id.as_u64().and_then(|id| u32::try_from(id).ok()))
        .collect()
}

/// Where compiled kernels are kept; `None` if they are not.
fn kernel_cache(asked: Option<&Path>) -> Option<PathBuf> {
    match asked {
        Some(off) if off == Path::new("off") => None,
        Some(folder) => Some(folder.to_owned()),
        None => cache_folder().map(|folder| folder.join("kernels")),
    }
}

fn engine_config(args: &ServeArgs) -> Result<EngineConfig, ConfigError> {
    let dummy = args.load_format == Some(LoadFormat::Dummy);
    if args.seed.is_some() && !dummy {
        return Err(ConfigError::Usage(
            "--seed is the seed of dummy weights: it goes with --load-format dummy".into(),
        ));
    }
    let dummy_mix = match args.quantization.as_deref() {
        None => None,
        Some(_) if !dummy => {
            return Err(ConfigError::Usage(
                "--quantization is that of dummy weights: it goes with --load-format dummy; stored \
                 weights say theirs"
                    .into(),
            ));
        }
        Some(text) => Some(
            text.parse()
                .map_err(|why| ConfigError::Usage(format!("--quantization: {why}")))?,
        ),
    };
    let source = match &args.model {
        Some(folder) if !folder.is_dir() => {
            return Err(ConfigError::File {
                path: folder.clone(),
                what: "--model wants a folder that exists".into(),
            });
        }
        Some(folder) if dummy => ModelSource::Dummy {
            folder: folder.clone(),
            seed: args.seed.unwrap_or(0),
        },
        Some(folder) => ModelSource::Folder(folder.clone()),
        None if dummy => {
            return Err(ConfigError::Usage(
                "--load-format dummy wants a --model folder with a config.json".into(),
            ));
        }
        None => demo::source(),
    };
    let defaults = EngineConfig::new(source);
    let cache_memory_bytes = match &args.cache_memory {
        None => None,
        Some(text) => Some(size("--cache-memory", text)?),
    };
    let host_cache_bytes = match args.host_cache_memory.as_deref() {
        None | Some("0") => 0,
        Some(text) => size("--host-cache-memory", text)?,
    };
    let (max_drafts, adaptive_drafts) = drafts(args.speculative_tokens.as_deref())?;
    let slot_share = args.cache_slot_share.unwrap_or(defaults.slot_share);
    if !(0.0..=1.0).contains(&slot_share) {
        return Err(ConfigError::Usage(
            "--cache-slot-share is a share from 0 to 1".into(),
        ));
    }
    let memory_fraction = args.memory_fraction;
    if memory_fraction.is_some_and(|share| !(0.1..=1.0).contains(&share)) {
        return Err(ConfigError::Usage(
            "--memory-fraction is a share from 0.1 to 1".into(),
        ));
    }
    Ok(EngineConfig {
        memory_fraction,
        slot_share,
        dummy_mix,
        device: parsed::<DeviceChoice>("--device", args.device.as_deref())?,
        dtype: parsed::<DtypeChoice>("--dtype", args.dtype.as_deref())?,
        kv_cache_dtype: parsed::<KvDtypeChoice>(
            "--kv-cache-dtype",
            args.kv_cache_dtype.as_deref(),
        )?,
        mamba_ssm_cache_dtype: parsed::<StateDtypeChoice>(
            "--mamba-ssm-cache-dtype",
            args.mamba_ssm_cache_dtype.as_deref(),
        )?,
        max_drafts,
        adaptive_drafts,
        max_model_len: args.max_model_len,
        max_num_seqs: args.max_num_seqs.unwrap_or(defaults.max_num_seqs),
        // One step must have room for a token of every sequence.
        max_num_batched_tokens: args.max_num_batched_tokens.unwrap_or_else(|| {
            let seqs = args.max_num_seqs.unwrap_or(0);
            defaults.max_num_batched_tokens.max(seqs)
        }),
        max_decode_slowdown: args.max_decode_slowdown,
        block_size: args.block_size.unwrap_or(defaults.block_size),
        cache_memory_bytes,
        host_cache_bytes,
        threads: args.threads,
        max_queue: args.max_queue.unwrap_or(defaults.max_queue),
        tensor_parallel_size: args
            .tensor_parallel_size
            .unwrap_or(defaults.tensor_parallel_size),
        expert_parallel: args.expert_parallel.unwrap_or(defaults.expert_parallel),
        kernel_cache: kernel_cache(args.kernel_cache.as_deref()),
        warm_up: !args.no_warm_up.unwrap_or(false),
        deterministic: args.deterministic.unwrap_or(false),
        ..defaults
    })
}

/// A year.
const MAX_SECONDS: u64 = 365 * 86_400;

fn server_config(args: &ServeArgs) -> Result<ServerConfig, ConfigError> {
    let defaults = ServerConfig::default();
    let api_keys = args.api_key.clone().unwrap_or_default();
    if api_keys.iter().any(|key| key.trim().is_empty()) {
        return Err(ConfigError::Usage(
            "--api-key: an empty key would let everybody in".into(),
        ));
    }
    let at_least = |flag: &str, value: Option<u64>, min: u64| match value {
        Some(value) if value < min => Err(ConfigError::Usage(format!(
            "{flag} is {value}, at least {min} is needed"
        ))),
        _ => Ok(value),
    };
    let keepalive = at_least("--sse-keepalive-ms", args.sse_keepalive_ms, 1)?;
    let connections = args.max_connections.map(|n| n as u64);
    let connections = at_least("--max-connections", connections, 1)?;
    let stall = at_least("--stall-seconds", args.stall_seconds, 1)?;
    let stall = stall.map_or(defaults.stall_timeout, Duration::from_secs);
    let watchdog = match args.watchdog_seconds {
        None => defaults.watchdog_timeout.map(|usual| usual.max(stall)),
        Some(0) => None,
        Some(seconds) if Duration::from_secs(seconds) < stall => {
            return Err(ConfigError::Usage(format!(
                "--watchdog-seconds is {seconds}, less than the {} of --stall-seconds",
                stall.as_secs()
            )));
        }
        Some(seconds) => Some(Duration::from_secs(seconds)),
    };
    let seconds = |flag: &str, value: Option<u64>| match at_least(flag, value, 1)? {
        Some(value) if value > MAX_SECONDS => Err(ConfigError::Usage(format!(
            "{flag} is {value}, at most {MAX_SECONDS} can be waited"
        ))),
        value => Ok(value.map(Duration::from_secs)),
    };
    Ok(ServerConfig {
        api_keys,
        api_key_file: args.api_key_file.clone(),
        request_timeout: seconds("--request-timeout", args.request_timeout)?,
        max_queued_tokens: at_least("--max-queued-tokens", args.max_queued_tokens, 1)?,
        max_queue_age: seconds("--max-queue-age", args.max_queue_age)?,
        cors_origins: args.cors_origin.clone().unwrap_or(defaults.cors_origins),
        playground: !args.no_playground.unwrap_or(false),
        sse_keepalive: keepalive.map_or(defaults.sse_keepalive, Duration::from_millis),
        max_body_bytes: match &args.max_body {
            None => defaults.max_body_bytes,
            Some(text) => size("--max-body", text)? as usize,
        },
        max_stored_bytes: match args.max_stored_responses.as_deref() {
            None => defaults.max_stored_bytes,
            Some("0") => 0,
            Some(text) => size("--max-stored-responses", text)?,
        },
        max_connections: connections.map_or(defaults.max_connections, |n| n as usize),
        kv_events: kv_events(args)?,
        drain: args
            .drain_seconds
            .map_or(defaults.drain, Duration::from_secs),
        stall_timeout: stall,
        watchdog_timeout: watchdog,
        load_timeout: seconds("--load-timeout", args.load_timeout)?
            .unwrap_or(defaults.load_timeout),
        proxies: proxies(args)?,
        v1_flavour: args.defaults.map_or(defaults.v1_flavour, Into::into),
        prices: prices(args)?,
        traces: traces(args)?,
        flight: flight(args)?,
        ..defaults
    })
}

fn unix_socket_mode(args: &ServeArgs) -> Result<u32, ConfigError> {
    let text = args.unix_socket_mode.as_deref().unwrap_or("660");
    match u32::from_str_radix(text, 8) {
        Ok(mode) if mode <= 0o777 => Ok(mode),
        _ => Err(ConfigError::Usage(format!(
            "--unix-socket-mode is {text}, expected three octal digits such as 660"
        ))),
    }
}

fn tls_files(args: &ServeArgs) -> Result<Option<TlsFiles>, ConfigError> {
    match (&args.tls_cert, &args.tls_key, &args.tls_client_ca) {
        (Some(cert), Some(key), client_ca) => Ok(Some(TlsFiles {
            cert: cert.clone(),
            key: key.clone(),
            client_ca: client_ca.clone(),
        })),
        (None, None, None) => Ok(None),
        (None, None, Some(_)) => Err(ConfigError::Usage(
            "--tls-client-ca goes with --tls-cert and --tls-key".into(),
        )),
        _ => Err(ConfigError::Usage(
            "--tls-cert and --tls-key go together".into(),
        )),
    }
}

fn proxies(args: &ServeArgs) -> Result<Proxies, ConfigError> {
    let mut proxies = Proxies {
        send_header: args.proxy_protocol.unwrap_or(false),
        ..Proxies::default()
    };
    for text in args.trusted_proxies.iter().flatten() {
        if text == "unix" {
            proxies.unix = true;
            continue;
        }
        let network = text.parse::<Network>();
        let network =
            network.map_err(|why| ConfigError::Usage(format!("--trusted-proxies: {why}")))?;
        proxies.networks.push(network);
    }
    if proxies.send_header && args.trusted_proxies.is_none() {
        return Err(ConfigError::Usage(
            "--proxy-protocol wants --trusted-proxies: anybody else's header would be a claim"
                .into(),
        ));
    }
    Ok(proxies)
}

fn traces(args: &ServeArgs) -> Result<TraceConfig, ConfigError> {
    // An empty variable is as good as none.
    let said = |value: Option<&String>| value.filter(|value| !value.is_empty()).cloned();
    let traces = TraceConfig {
        endpoint: said(args.otlp_endpoint.as_ref()),
        certificate: said(args.otlp_certificate.as_ref()).map(PathBuf::from),
        ratio: args.trace_ratio.unwrap_or(1.0),
    };
    traces.check().map_err(ConfigError::Usage)?;
    Ok(traces)
}

fn flight(args: &ServeArgs) -> Result<FlightConfig, ConfigError> {
    let dir = args.flight_dir.clone();
    if let Some(dir) = dir.as_ref().filter(|dir| !dir.is_dir()) {
        let dir = dir.display();
        let message = format!("--flight-dir {dir}: expected a folder that exists");
        return Err(ConfigError::Usage(message));
    }
    if args.flight_contents == Some(true) && dir.is_none() {
        return Err(ConfigError::Usage(
            "--flight-contents is about files: it goes with --flight-dir".into(),
        ));
    }
    let defaults = FlightConfig::default();
    Ok(FlightConfig {
        dir,
        contents: if args.flight_contents == Some(true) {
            Contents::Plain
        } else {
            Contents::Hidden
        },
        max_bytes: match args.flight_memory.as_deref() {
            None => defaults.max_bytes,
            Some("0") => 0,
            Some(text) => size("--flight-memory", text)? as usize,
        },
    })
}

fn prices(args: &ServeArgs) -> Result<Prices, ConfigError> {
    let price = |flag: &str, text: &Option<String>, default: Price| match text {
        None => Ok(default),
        Some(text) => text
            .parse()
            .map_err(|error: String| ConfigError::Usage(format!("{flag}: {error}"))),
    };
    let defaults = Prices::default();
    Ok(Prices {
        cloudflare: price(
            "--price-cloudflare",
            &args.price_cloudflare,
            defaults.cloudflare,
        )?,
        openrouter: price(
            "--price-openrouter",
            &args.price_openrouter,
            defaults.openrouter,
        )?,
        deepinfra: price(
            "--price-deepinfra",
            &args.price_deepinfra,
            defaults.deepinfra,
        )?,
    })
}

fn kv_events(args: &ServeArgs) -> Result<Option<KvEvents>, ConfigError> {
    let Some(endpoint) = args.kv_events_endpoint.clone() else {
        return Ok(None);
    };
    let topic = if let Some(topic) = &args.kv_events_topic {
        topic.clone()
    } else {
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        format!("kv@{}@{}", host.trim(), model_names(args)?.ids[0])
    };
    Ok(Some(KvEvents { endpoint, topic }))
}

fn model_names(args: &ServeArgs) -> Result<ModelNames, ConfigError> {
    let given = args.served_model_name.clone().unwrap_or_default();
    if given.iter().any(|name| name.trim().is_empty()) {
        return Err(ConfigError::Usage(
            "--served-model-name: an empty name names nothing".into(),
        ));
    }
    let own = match &args.model {
        None => Some(demo::NAME.to_owned()),
        Some(_) if !given.is_empty() => None,
        Some(folder) => std::fs::canonicalize(folder)
            .ok()
            .as_deref()
            .and_then(Path::file_name)
            .map(|name| name.to_string_lossy().into_owned()),
    };
    let mut ids: Vec<String> = Vec::new();
    let family = FAMILY_NAMES.map(str::to_owned);
    for name in given.into_iter().chain(own).chain(family) {
        if !ids.contains(&name) {
            ids.push(name);
        }
    }
    let is_demo = args.model.is_none();
    Ok(ModelNames {
        ids,
        owned_by: if is_demo { demo::NAME } else { "nemoserve" }.to_owned(),
        description: is_demo.then(|| demo::DESCRIPTION.to_owned()),
        created: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs()),
    })
}

/// How many drafts at most, and whether fewer where fewer pay.
fn drafts(text: Option<&str>) -> Result<(u32, bool), ConfigError> {
    match text {
        None => Ok((0, false)),
        Some("auto") => Ok((AUTO_DRAFTS, true)),
        Some(text) => match text.parse() {
            Ok(num_drafts) => Ok((num_drafts, false)),
            Err(_) => Err(ConfigError::Usage(format!(
                "--speculative-tokens: {text:?} is neither a number nor auto"
            ))),
        },
    }
}

fn parsed<T: std::str::FromStr<Err = String> + Default>(
    flag: &str,
    text: Option<&str>,
) -> Result<T, ConfigError> {
    text.map_or(Ok(T::default()), |text| {
        text.parse()
            .map_err(|why| ConfigError::Usage(format!("{flag}: {why}")))
    })
}

/// Bytes from `123`, `4GiB`, `4G` (both 2^30), `4GB` (10^9) and the like.
fn size(flag: &str, text: &str) -> Result<u64, ConfigError> {
    let fail = || {
        ConfigError::Usage(format!(
            "{flag}: {text:?} is no size; write bytes, or 512MiB, 4GiB, 1.5GB"
        ))
    };
    let trimmed = text.trim();
    let digits = trimmed
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(trimmed.len());
    let (number, unit) = trimmed.split_at(digits);
    let number: f64 = number.parse().map_err(|_| fail())?;
    let unit: u64 = match unit.trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kib" => 1 << 10,
        "m" | "mib" => 1 << 20,
        "g" | "gib" => 1 << 30,
        "t" | "tib" => 1 << 40,
        "kb" => 1000,
        "mb" => 1_000_000,
        "gb" => 1_000_000_000,
        "tb" => 1_000_000_000_000,
        _ => return Err(fail()),
    };
    let bytes = number * unit as f64;
    if bytes < 1.0 || bytes >= u64::MAX as f64 {
        return Err(fail());
    }
    Ok(bytes as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn refusal(args: &ServeArgs) -> String {
        match Settings::new(args) {
            Ok(_) => panic!("{args:?} was accepted"),
            Err(error) => error.to_string(),
        }
    }

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("123", 123),
            ("4GiB", 4 << 30),
            ("4g", 4 << 30),
            ("1.5 GB", 1_500_000_000),
            ("512MiB", 512 << 20),
        ] {
            assert_eq!(size("--x", text).expect(text), bytes, "{text}");
        }
        for text in ["", "x", "-1", "0", "4XB", "1e9", "4 4", "99999999TiB"] {
            assert!(size("--x", text).is_err(), "{text}");
        }
    }

    #[test]
    fn compiled_kernels_are_kept_unless_told_otherwise() {
        let own = cache_folder().map(|folder| folder.join("kernels"));
        assert_eq!(kernel_cache(None), own);
        assert_eq!(kernel_cache(Some(Path::new("off"))), None);
        let folder = Path::new("/var/cache/kernels");
        assert_eq!(kernel_cache(Some(folder)), Some(folder.into()));
    }

    #[test]
    fn drafts_are_so_many_or_as_many_as_pay() {
        let check = |text, expect| assert_eq!(drafts(text).expect("it is good"), expect);
        check(None, (0, false));
        check(Some("0"), (0, false));
        check(Some("3"), (3, false));
        check(Some("auto"), (AUTO_DRAFTS, true));
        for nonsense in ["-1", "", "1.5", "3 ", "Auto", "yes", "4294967296", "1,2"] {
            let error = drafts(Some(nonsense)).expect_err(nonsense);
            let text = error.to_string();
            assert!(text.contains("--speculative-tokens"), "{text}");
            assert_eq!(error.exit_code(), exit::USAGE);
        }
    }

    /// A number is read before anybody knows the model; how many it can have is said when it is opened.
    #[test]
    fn more_drafts_than_a_row_can_have_are_refused() {
        let open = |text: &str| {
            let settings = Settings::new(&ServeArgs {
                speculative_tokens: Some(text.into()),
                ..ServeArgs::default()
            });
            let opened = engine::Engine::open(settings.expect("it is a number").engine);
            opened.map(|opened| opened.info().max_drafts)
        };
        assert_eq!(open("7").expect("it has a draft block"), 7);
        for text in ["8", "1000", "4294967295"] {
            let error = open(text).expect_err(text);
            assert_eq!(exit::of(error.cause()), exit::USAGE);
            let text = error.to_string();
            assert!(
                text.contains("speculative-tokens") && text.contains('7'),
                "{text}"
            );
        }
    }

    #[test]
    fn errors_name_the_flag() {
        let empty = || Some(vec![String::new()]);
        let base = ServeArgs::default;
        for (args, flag) in vec![
            (
                ServeArgs {
                    device: Some("gpu".into()),
                    ..base()
                },
                "--device",
            ),
            (
                ServeArgs {
                    dtype: Some("f8".into()),
                    ..base()
                },
                "--dtype",
            ),
            (
                ServeArgs {
                    kv_cache_dtype: Some("int8".into()),
                    ..base()
                },
                "--kv-cache-dtype",
            ),
            (
                ServeArgs {
                    mamba_ssm_cache_dtype: Some("bfloat16".into()),
                    ..base()
                },
                "--mamba-ssm-cache-dtype",
            ),
            (
                ServeArgs {
                    speculative_tokens: Some("many".into()),
                    ..base()
                },
                "--speculative-tokens",
            ),
            (
                ServeArgs {
                    cache_slot_share: Some(1.5),
                    ..base()
                },
                "--cache-slot-share",
            ),
            (
                ServeArgs {
                    cache_memory: Some("lots".into()),
                    ..base()
                },
                "--cache-memory",
            ),
            (
                ServeArgs {
                    host_cache_memory: Some("some".into()),
                    ..base()
                },
                "--host-cache-memory",
            ),
            (
                ServeArgs {
                    max_body: Some("0".into()),
                    ..base()
                },
                "--max-body",
            ),
            (
                ServeArgs {
                    api_key: empty(),
                    ..base()
                },
                "--api-key",
            ),
            (
                ServeArgs {
                    request_timeout: Some(0),
                    ..base()
                },
                "--request-timeout",
            ),
            (
                ServeArgs {
                    request_timeout: Some(u64::MAX),
                    ..base()
                },
                "--request-timeout",
            ),
            (
                ServeArgs {
                    max_queued_tokens: Some(0),
                    ..base()
                },
                "--max-queued-tokens",
            ),
            (
                ServeArgs {
                    max_queue_age: Some(0),
                    ..base()
                },
                "--max-queue-age",
            ),
            (
                ServeArgs {
                    served_model_name: empty(),
                    ..base()
                },
                "--served-model-name",
            ),
            (
                ServeArgs {
                    seed: Some(1),
                    ..base()
                },
                "--seed",
            ),
            (
                ServeArgs {
                    quantization: Some("fp8".into()),
                    ..base()
                },
                "--quantization",
            ),
            (
                ServeArgs {
                    quantization: Some("int4".into()),
                    load_format: Some(LoadFormat::Dummy),
                    ..base()
                },
                "--quantization",
            ),
            (
                ServeArgs {
                    load_format: Some(LoadFormat::Dummy),
                    ..base()
                },
                "--load-format",
            ),
            (
                ServeArgs {
                    sse_keepalive_ms: Some(0),
                    ..base()
                },
                "--sse-keepalive-ms",
            ),
            (
                ServeArgs {
                    max_connections: Some(0),
                    ..base()
                },
                "--max-connections",
            ),
            (
                ServeArgs {
                    stall_seconds: Some(0),
                    ..base()
                },
                "--stall-seconds",
            ),
            (
                ServeArgs {
                    watchdog_seconds: Some(5),
                    ..base()
                },
                "--watchdog-seconds",
            ),
            (
                ServeArgs {
                    load_timeout: Some(0),
                    ..base()
                },
                "--load-timeout",
            ),
            (
                ServeArgs {
                    tls_cert: Some("/cert".into()),
                    ..base()
                },
                "--tls-key",
            ),
            (
                ServeArgs {
                    tls_client_ca: Some("/ca".into()),
                    ..base()
                },
                "--tls-client-ca",
            ),
            (
                ServeArgs {
                    proxy_protocol: Some(true),
                    ..base()
                },
                "--proxy-protocol",
            ),
            (
                ServeArgs {
                    trusted_proxies: Some(vec!["10.0.0.0/99".into()]),
                    ..base()
                },
                "--trusted-proxies",
            ),
            (
                ServeArgs {
                    unix_socket_mode: Some("999".into()),
                    ..base()
                },
                "--unix-socket-mode",
            ),
            (
                ServeArgs {
                    listen: Some(vec!["unix:".into()]),
                    ..base()
                },
                "--listen",
            ),
            (
                ServeArgs {
                    otlp_endpoint: Some("ftp://far".into()),
                    ..base()
                },
                "--otlp-endpoint",
            ),
            (
                ServeArgs {
                    otlp_endpoint: Some("https://far".into()),
                    otlp_certificate: Some("/nonexistent".into()),
                    ..base()
                },
                "--otlp-certificate",
            ),
            (
                ServeArgs {
                    trace_ratio: Some(2.0),
                    ..base()
                },
                "--trace-ratio",
            ),
            (
                ServeArgs {
                    flight_dir: Some("/nonexistent".into()),
                    ..base()
                },
                "--flight-dir",
            ),
            (
                ServeArgs {
                    flight_memory: Some("much".into()),
                    ..base()
                },
                "--flight-memory",
            ),
            (
                ServeArgs {
                    flight_contents: Some(true),
                    ..base()
                },
                "--flight-contents",
            ),
            (
                ServeArgs {
                    model: Some("/nonexistent".into()),
                    ..base()
                },
                "--model",
            ),
        ] {
            let error = refusal(&args);
            assert!(error.contains(flag), "{flag}: {error}");
        }
    }

    #[test]
    fn names_are_the_operators_then_the_family() {
        let args = ServeArgs {
            served_model_name: Some(vec!["mine".into(), FAMILY_NAMES[1].into()]),
            ..ServeArgs::default()
        };
        let ids = model_names(&args).expect("valid").ids;
        assert_eq!(
            ids,
            [
                "mine",
                FAMILY_NAMES[1],
                demo::NAME,
                FAMILY_NAMES[0],
                FAMILY_NAMES[2]
            ]
        );
    }

    #[test]
    fn the_demo_needs_no_flag() {
        let settings = Settings::new(&ServeArgs::default()).expect("the demo is complete");
        let tokenizer = settings.tokenizer().expect("valid");
        let template = settings.template(tokenizer.as_deref()).expect("valid");
        assert!(tokenizer.is_some() && template.is_some());
        let opened = engine::Engine::open(settings.engine.clone()).expect("the demo opens");
        let defaults = settings.defaults(opened.model()).expect("valid");
        assert!(defaults.eos_token_ids.contains(&11), "{defaults:?}");
    }
}
