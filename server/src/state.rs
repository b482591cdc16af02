//! What every request may see.

use std::convert::Infallible;
use std::future::Future;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use bytes::Bytes;
use engine::{EngineHandle, EngineInfo};
use http_body_util::combinators::UnsyncBoxBody;
use tokio::sync::watch;

use crate::admission::deadline::Deadline;
use crate::admission::{Admission, Tenant, Ticket};
use crate::api::flavour::Flavour;
use crate::api::models::ModelNames;
use crate::api::params::Defaults;
use crate::api::prices::Prices;
use crate::api::responses::ResponseStore;
use crate::api::types::Usage;
use crate::chat::ChatTemplate;
use crate::flight::FlightConfig;
use crate::grammars::Grammars;
use crate::kv_events::KvEvents;
use crate::metrics::Metrics;
use crate::receipts::Receipts;
use crate::text::Tokenizer;
use crate::timeline::Timeline;
use crate::traces::TraceConfig;
use crate::transport::Proxies;

/// A response body, whole or streamed. Dropping it drops the engine's stream, which aborts.
pub type Body = UnsyncBoxBody<Bytes, Infallible>;

/// What every handler answers with.
pub type Response = http::Response<Body>;

/// Where the server is in its life. It only moves forward.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Phase {
    /// New work is welcome, once the engine is ready.
    Serving,
    /// No new work; running streams may finish.
    Draining,
    /// The drain's time is up: running streams end with a terminal event now.
    Deadline,
}

/// Limits and habits of the front end.
#[derive(Clone, Debug)]
pub struct ServerConfig {
    /// Keys that clients must show; empty: authentication is off.
    pub api_keys: Vec<String>,
    /// More keys, as hashes, each with its terms.
    pub api_key_file: Option<PathBuf>,
    /// From a request's headers to its last byte, if it asks for no less. Default: as long as it takes.
    pub request_timeout: Option<Duration>,
    /// Prompt tokens of requests that have no token yet; beyond them 429. Default: as many as there are.
    pub max_queued_tokens: Option<u64>,
    /// As long as a request should wait before it is begun; as it comes nearer, more is given up.
    /// Default: however long.
    pub max_queue_age: Option<Duration>,
    /// Origins whose pages may call the API. Default `*`: all.
    pub cors_origins: Vec<String>,
    /// Whether `/` is the web playground. Default true; without it `/` is 404.
    pub playground: bool,
    /// Silence on a stream after which a comment is sent. Default 10 s.
    pub sse_keepalive: Duration,
    /// Bytes of a request body; beyond it 413. Default 32 MiB.
    pub max_body_bytes: usize,
    /// Bytes of stored responses; the least used go first. Default 64 MiB.
    pub max_stored_bytes: u64,
    /// Open connections; more wait in the kernel's backlog. Default 4096.
    pub max_connections: usize,
    /// From a request's first byte to its last header; also for what comes before the first: a proxy's
    /// header and the TLS handshake. Default 15 s.
    pub header_timeout: Duration,
    /// From the headers to the last byte of the body. Default 60 s.
    pub body_timeout: Duration,
    /// A connection without any request in flight is closed after this. Longer than the idle time of
    /// common proxies (60 s), so that it is they who close. Default 75 s.
    pub idle_timeout: Duration,
    /// A connection that takes no byte of what is written to it is closed after this. Default 60 s.
    pub write_timeout: Duration,
    /// `/health` and `/ready` fail when work waits and nothing was computed for this long. Default 10 s.
    pub stall_timeout: Duration,
    /// The process ends when work waits and nothing was computed for this long. Default 60 s; `None`: it
    /// never does.
    pub watchdog_timeout: Option<Duration>,
    /// `/health` and `/ready` fail, and the process ends if work that hangs would end it, when weights load
    /// or the model warms up and nothing came of it for this long. Shorter than a kernel takes to compile,
    /// and no replica gets ready. Default 10 min.
    pub load_timeout: Duration,
    /// Whose word about a client's address is taken. Default: nobody's.
    pub proxies: Proxies,
    /// Where routers are told what the cache can be hit with. Default: nowhere.
    pub kv_events: Option<KvEvents>,
    /// How long running streams may take to finish after a stop signal. Default 30 s.
    pub drain: Duration,
    /// Whose manners `/v1` has: OpenAI's, or NVIDIA's, which answers with a stream unless told
    /// otherwise. Default OpenAI's.
    pub v1_flavour: Flavour,
    /// What tokens cost on routes that say so. Defaults: the providers' own.
    pub prices: Prices,
    /// Where traces go. Default: nowhere.
    pub traces: TraceConfig,
    /// What is recorded of the scheduler's plans, and where it is written when the engine fails.
    pub flight: FlightConfig,
}

impl Default for ServerConfig {
    fn default() -> Self {
        Self {
            api_keys: Vec::new(),
            api_key_file: None,
            request_timeout: None,
            max_queued_tokens: None,
            max_queue_age: None,
            cors_origins: vec!["*".into()],
            playground: true,
            sse_keepalive: Duration::from_secs(10),
            max_body_bytes: 32 << 20,
            max_stored_bytes: 64 << 20,
            max_connections: 4096,
            header_timeout: Duration::from_secs(15),
            body_timeout: Duration::from_mins(1),
            idle_timeout: Duration::from_secs(75),
            write_timeout: Duration::from_mins(1),
            stall_timeout: Duration::from_secs(10),
            watchdog_timeout: Some(Duration::from_mins(1)),
            load_timeout: Duration::from_mins(10),
            proxies: Proxies::default(),
            kv_events: None,
            drain: Duration::from_secs(30),
            v1_flavour: Flavour::OpenAi,
            prices: Prices::default(),
            traces: TraceConfig::default(),
            flight: FlightConfig::default(),
        }
    }
}

/// One per process; requests hold it through their [`RequestContext`].
pub struct AppState {
    /// The only door to the engine.
    pub engine: EngineHandle,
    /// Known once the headers are validated, so before any request.
    pub info: EngineInfo,
    /// `None` if the model folder has none: then only token-id prompts are served.
    pub tokenizer: Option<Arc<Tokenizer>>,
    /// `None` if the model folder has none: then chat answers a clear 400.
    pub template: Option<Arc<ChatTemplate>>,
    /// What answers can be bound to.
    pub grammars: Arc<Grammars>,
    /// Names that the loaded model answers to.
    pub models: ModelNames,
    /// The model's and the operator's defaults for parameters.
    pub defaults: Defaults,
    /// Limits and habits.
    pub config: ServerConfig,
    /// Who may enter.
    pub admission: Admission,
    /// Counters.
    pub metrics: Metrics,
    /// What recent generations used.
    pub receipts: Receipts,
    /// Answers that later requests may refer to.
    pub responses: ResponseStore,
    /// Where the server is in its life.
    pub phase: watch::Sender<Phase>,
    /// Generating requests whose answer is not complete.
    pub num_generating: AtomicU64,
}

impl AppState {
    /// Whether a stop signal has come.
    pub fn is_draining(&self) -> bool {
        *self.phase.borrow() >= Phase::Draining
    }

    /// Resolves when running streams must end. Select on it beside the engine's stream.
    pub fn drain_deadline(&self) -> impl Future<Output = ()> + Send + 'static {
        let mut phase = self.phase.subscribe();
        async move {
            // The sender lives in `AppState`: if it is gone, so is everybody who could wait.
            let _ = phase.wait_for(|phase| *phase == Phase::Deadline).await;
        }
    }
}

/// One request on its way through a handler.
#[derive(Clone)]
pub struct RequestContext {
    /// The process.
    pub state: Arc<AppState>,
    /// The client's `x-request-id` if it is well-formed, else ours.
    pub request_id: Arc<str>,
    /// The route's pattern, never the path: safe as a label.
    pub route: &'static str,
    /// Whose manners the route has.
    pub flavour: Flavour,
    /// The part of the URI after `?`.
    pub query: Option<Arc<str>>,
    /// Whose key it showed; where none is needed, anybody.
    pub tenant: Arc<Tenant>,
    /// What it holds of everybody's room, once it is in.
    pub ticket: Option<Arc<Ticket>>,
    /// When its answer is of no more use.
    pub deadline: Option<Deadline>,
    /// What its headers ask for, over what its body does.
    pub priority: Option<i8>,
    /// When its headers were complete.
    pub received: Instant,
    /// Tokens so far, for the request's log line.
    pub tokens: Arc<TokenCounts>,
    /// What it generates, once that has a name.
    pub generation: Arc<OnceLock<GenerationName>>,
    /// What that went through, once it is over.
    pub timeline: Arc<OnceLock<Timeline>>,
}

/// How clients call a generation.
#[derive(Clone, Debug)]
pub struct GenerationName {
    /// `chatcmpl-…`, ...
    pub id: Arc<str>,
    /// As requested.
    pub model: Arc<str>,
}

/// Tokens of one request, counted by whoever sees them.
#[derive(Debug, Default)]
pub struct TokenCounts {
    /// Of the prompt.
    pub prompt: AtomicU64,
    /// Of these, not computed.
    pub cached: AtomicU64,
    /// Sampled.
    pub generated: AtomicU64,
}

impl RequestContext {
    /// Gives what is generated the name under which its receipt is found.
    pub fn name_generation(&self, id: &str, model: &str) {
        // A request has one answer; should it build two heads, the first is the one it sends.
        self.generation.get_or_init(|| GenerationName {
            id: id.into(),
            model: model.into(),
        });
    }

    /// Whose what is kept of it is; `None` without keys.
    pub fn key(&self) -> Option<usize> {
        self.tenant.key()
    }

    /// Counts a prompt once it is admitted, with the part of it that needed no computing.
    pub fn count_prompt(&self, prompt: u64, cached: u64) {
        self.tokens.prompt.fetch_add(prompt, Ordering::Relaxed);
        self.tokens.cached.fetch_add(cached, Ordering::Relaxed);
        self.state.metrics.count_prompt(prompt, cached);
        let metrics = &self.state.metrics.admission;
        metrics.count_prompt(self.tenant.name(), prompt, cached);
        self.tenant.spend(prompt, 0, Instant::now());
    }

    /// What was counted so far. Thoughts are counted where they are told from answers.
    pub fn counted(&self) -> Usage {
        let [prompt, cached, completion] = [
            &self.tokens.prompt,
            &self.tokens.cached,
            &self.tokens.generated,
        ]
        .map(|count| count.load(Ordering::Relaxed));
        Usage {
            prompt,
            cached,
            completion,
            ..Usage::default()
        }
    }

    /// Counts sampled tokens as they come.
    pub fn count_generated(&self, generated: u64) {
        self.tokens
            .generated
            .fetch_add(generated, Ordering::Relaxed);
        self.state.metrics.count_generated(generated);
        let metrics = &self.state.metrics.admission;
        metrics.count_generated(self.tenant.name(), generated);
        self.tenant.spend(0, generated, Instant::now());
    }
}
