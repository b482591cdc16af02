//! A server in this process: the real front end and scheduler, and a runner that follows a script.

use std::convert::Infallible;
use std::future::Future;
use std::net::SocketAddr;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use engine::{EngineError, EngineHandle, EngineInfo, EngineStatus, Heart, LoadProgress};
use nemoserve::admission::Admission;
use nemoserve::api::models::ModelNames;
use nemoserve::api::responses::ResponseStore;
use nemoserve::args::ServeArgs;
use nemoserve::config::Settings;
use nemoserve::grammars::Grammars;
use nemoserve::http::{ServeError, serve};
use nemoserve::metrics::Metrics;
use nemoserve::receipts::Receipts;
use nemoserve::router::route_labels;
use nemoserve::state::{AppState, Phase, ServerConfig};
use nemoserve::transport::Listeners;
use scheduler::{
    CacheConfig, RowMasks, RowOutput, RowResult, Runner, SchedulerConfig, SchedulerOutput,
    StepResult, TokenLogprobs,
};
use tokio::net::TcpListener;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::wire::{PATIENCE, Reply, Wire};

pub(crate) const MODEL: &str = "test-model";

/// What the scripted runner waits for before each step.
#[derive(Default)]
pub(crate) struct Script {
    state: Mutex<ScriptState>,
    changed: Condvar,
}

#[derive(Default)]
struct ScriptState {
    pace: Pace,
    fails: bool,
    /// Loading waits for this.
    loads_late: bool,
    load_fails: bool,
}

/// How steps go.
#[derive(Default)]
enum Pace {
    /// As many as wanted.
    #[default]
    Free,
    /// So many more.
    Allowed(u64),
    /// They take for ever, and give signs of life all the while.
    Crawling,
}

impl Script {
    fn set(&self, change: impl FnOnce(&mut ScriptState)) {
        change(&mut self.state.lock().expect("no test panics in here"));
        self.changed.notify_all();
    }

    /// No step runs until [`Script::allow`].
    pub(crate) fn hold(&self) {
        self.set(|state| state.pace = Pace::Allowed(0));
    }

    /// So many more steps may run.
    pub(crate) fn allow(&self, steps: u64) {
        self.set(|state| {
            let left = match state.pace {
                Pace::Allowed(left) => left,
                Pace::Free | Pace::Crawling => 0,
            };
            state.pace = Pace::Allowed(left + steps);
        });
    }

    pub(crate) fn release(&self) {
        self.set(|state| state.pace = Pace::Free);
    }

    /// Steps compute on and on, until [`Script::release`], and weights come until [`Script::load`].
    pub(crate) fn crawl(&self) {
        self.set(|state| state.pace = Pace::Crawling);
    }

    /// The next step fails as a whole.
    pub(crate) fn fail(&self) {
        self.set(|state| {
            state.fails = true;
            state.pace = Pace::Free;
        });
    }

    /// Weights arrive.
    pub(crate) fn load(&self) {
        self.set(|state| state.loads_late = false);
    }

    fn wait_for_load(&self, progress: &LoadProgress) -> Result<(), EngineError> {
        let mut loaded_bytes = 0;
        let mut state = self.state.lock().expect("no test panics in here");
        while state.loads_late && !matches!(state.pace, Pace::Crawling) {
            state = self.changed.wait(state).expect("no test panics in here");
        }
        while state.loads_late {
            loaded_bytes += 1;
            progress.set(loaded_bytes, u64::from(u32::MAX));
            (state, _) = self
                .changed
                .wait_timeout(state, Duration::from_millis(1))
                .expect("no test panics in here");
        }
        if state.load_fails {
            return Err(EngineError::Device("scripted".into()));
        }
        Ok(())
    }

    /// Returns whether the step fails.
    fn wait_for_step(&self, heart: &Heart) -> bool {
        let mut state = self.state.lock().expect("no test panics in here");
        while matches!(state.pace, Pace::Crawling) {
            heart.beat();
            (state, _) = self
                .changed
                .wait_timeout(state, Duration::from_millis(1))
                .expect("no test panics in here");
        }
        let mut state = self
            .changed
            .wait_while(state, |state| matches!(state.pace, Pace::Allowed(0)))
            .expect("no test panics in here");
        if let Pace::Allowed(left) = &mut state.pace {
            *left -= 1;
        }
        state.fails
    }
}

/// Samples the same readable token again and again.
struct ScriptedRunner {
    script: Arc<Script>,
    heart: Heart,
    plan: Option<SchedulerOutput>,
}

#[derive(Debug)]
struct Scripted;

impl std::fmt::Display for Scripted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("scripted")
    }
}

impl std::error::Error for Scripted {}

impl Runner for ScriptedRunner {
    type Error = Scripted;

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), Scripted> {
        self.plan = Some(plan);
        Ok(())
    }

    fn collect(&mut self, _masks: &[RowMasks]) -> Result<StepResult, Scripted> {
        if self.script.wait_for_step(&self.heart) {
            return Err(Scripted);
        }
        let plan = self.plan.take().expect("submit comes first");
        let row = |row: &scheduler::Row| {
            let tokens: Vec<u32> = row.sample.iter().map(|_| TOKEN).collect();
            let wants_logprobs = row
                .sample
                .as_ref()
                .is_some_and(|sample| sample.params.logprobs.is_some());
            let logprobs = tokens
                .iter()
                .filter(|_| wants_logprobs)
                .map(|token| TokenLogprobs {
                    token: *token,
                    ..TokenLogprobs::default()
                })
                .collect();
            RowResult {
                sequence: row.sequence,
                outcome: Ok(RowOutput {
                    tokens,
                    logprobs,
                    ..RowOutput::default()
                }),
            }
        };
        Ok(StepResult {
            step: plan.step,
            rows: plan.rows.iter().map(row).collect(),
        })
    }
}

/// Some ordinary token of the demo's tokenizer.
const TOKEN: u32 = 300;

/// How a test's server differs from the ordinary one.
pub(crate) struct Plan {
    pub(crate) config: ServerConfig,
    pub(crate) loads_late: bool,
    pub(crate) load_fails: bool,
    pub(crate) max_queue: u32,
    pub(crate) max_num_seqs: u32,
    /// State slots; `None`: two for each sequence.
    pub(crate) num_slots: Option<u32>,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            config: ServerConfig::default(),
            loads_late: false,
            load_fails: false,
            max_queue: 64,
            max_num_seqs: 8,
            num_slots: None,
        }
    }
}

/// A running server.
pub(crate) struct Server {
    pub(crate) address: SocketAddr,
    pub(crate) state: Arc<AppState>,
    pub(crate) script: Arc<Script>,
    stop: Option<oneshot::Sender<Infallible>>,
    outcome: JoinHandle<Result<(), ServeError>>,
}

impl Server {
    pub(crate) async fn start() -> Self {
        Self::with(Plan::default()).await
    }

    pub(crate) async fn configured(config: ServerConfig) -> Self {
        Self::with(Plan {
            config,
            ..Plan::default()
        })
        .await
    }

    pub(crate) async fn with(plan: Plan) -> Self {
        Self::behind(plan, Listeners::from).await
    }

    /// With other doors than a plain port, or with what makes it another.
    pub(crate) async fn behind(plan: Plan, doors: impl FnOnce(TcpListener) -> Listeners) -> Self {
        let script = Arc::new(Script::default());
        script.set(|state| {
            state.loads_late = plan.loads_late;
            state.load_fails = plan.load_fails;
        });
        let loads_late = plan.loads_late || plan.load_fails;
        let state = Arc::new(app_state(&script, plan));
        if !loads_late {
            eventually("the model loads", || {
                state.engine.status() == EngineStatus::Ready
            })
            .await;
        }
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let address = listener.local_addr().expect("it is bound");
        let (stop, stopped) = oneshot::channel::<Infallible>();
        let shutdown = async move {
            // Dropping the sender is the signal.
            let _ = stopped.await;
        };
        let listeners = doors(listener);
        let outcome = tokio::spawn(serve(listeners, Arc::clone(&state), shutdown));
        Self {
            address,
            state,
            script,
            stop: Some(stop),
            outcome,
        }
    }

    pub(crate) async fn wire(&self) -> Wire {
        Wire::open(self.address).await
    }

    /// Sends a stop signal.
    pub(crate) fn stop(&mut self) {
        self.stop.take();
    }

    /// Waits for the end of `serve`.
    pub(crate) async fn outcome(self) -> Result<(), ServeError> {
        timeout(PATIENCE, self.outcome)
            .await
            .expect("it ends")
            .expect("it does not panic")
    }

    pub(crate) async fn get(&self, path: &str) -> Reply {
        self.request("GET", path, "", "").await
    }

    pub(crate) async fn post(&self, path: &str, body: &str) -> Reply {
        self.request("POST", path, "", body).await
    }

    /// One request on its own connection. `headers` are whole lines.
    pub(crate) async fn request(
        &self,
        method: &str,
        path: &str,
        headers: &str,
        body: &str,
    ) -> Reply {
        let mut wire = self.wire().await;
        wire.send(request(method, path, headers, body)).await;
        wire.reply_to(method).await
    }

    /// The value of one sample of `/metrics`, by its name and labels.
    pub(crate) async fn metric(&self, sample: &str) -> Option<f64> {
        let text = self.get("/metrics").await.body;
        metric_in(&text, sample)
    }

    /// Waits until a sample has a value.
    pub(crate) async fn metric_becomes(&self, sample: &str, value: f64) {
        let reached = async {
            while self.metric(sample).await != Some(value) {
                tokio::task::yield_now().await;
            }
        };
        let in_time = timeout(PATIENCE, reached).await.is_ok();
        assert!(
            in_time,
            "{sample} is {:?}, not {value}",
            self.metric(sample).await
        );
    }
}

pub(crate) fn metric_in(text: &str, sample: &str) -> Option<f64> {
    text.lines()
        .find_map(|line| line.strip_prefix(sample)?.strip_prefix(' '))
        .map(|value| value.parse().expect("samples are numbers"))
}

/// A request as bytes on the wire.
pub(crate) fn request(method: &str, path: &str, headers: &str, body: &str) -> String {
    let length = if method == "GET" || method == "HEAD" {
        String::new()
    } else {
        format!("content-length: {}\r\n", body.len())
    };
    format!("{method} {path} HTTP/1.1\r\nhost: test\r\n{headers}{length}\r\n{body}")
}

/// A request for `max_tokens` tokens, never ended by the model.
pub(crate) fn completion(max_tokens: u32, stream: bool) -> String {
    format!(
        r#"{{"model":"{MODEL}","prompt":[300,301],"max_tokens":{max_tokens},"ignore_eos":true,"stream":{stream}}}"#
    )
}

/// Waits for a condition, without a fixed time.
pub(crate) async fn eventually(what: &str, condition: impl Fn() -> bool) {
    let reached = async {
        while !condition() {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let in_time = timeout(PATIENCE, reached).await.is_ok();
    assert!(in_time, "this never happened: {what}");
}

/// The same for a future, which must not take longer than everything else.
pub(crate) async fn soon<T>(what: &str, future: impl Future<Output = T>) -> T {
    timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("this never happened: {what}"))
}

fn app_state(script: &Arc<Script>, plan: Plan) -> AppState {
    // The demo's tokenizer and template, without its weights.
    let settings = Settings::new(&ServeArgs::default()).expect("the demo is complete");
    let info = EngineInfo {
        fingerprint: "fp_test".into(),
        vocab_size: 2048,
        max_model_len: 65_536,
        max_num_seqs: plan.max_num_seqs,
        block_size: 32,
        num_blocks: 8191,
        num_slots: plan.num_slots.unwrap_or(plan.max_num_seqs * 2),
        ..EngineInfo::default()
    };
    let engine = scripted_engine(script, &info, &plan);
    let defaults = settings
        .defaults(
            engine::Engine::open(settings.engine.clone())
                .expect("the demo opens")
                .model(),
        )
        .expect("the demo's defaults are valid");
    let tokenizer = settings.tokenizer().expect("valid");
    AppState {
        engine,
        template: settings.template(tokenizer.as_deref()).expect("valid"),
        grammars: Grammars::new(tokenizer.clone(), info.vocab_size, &defaults.eos_token_ids),
        tokenizer,
        models: ModelNames {
            ids: vec![MODEL.into(), "org/other@name".into()],
            owned_by: "test".into(),
            description: None,
            created: 1,
        },
        defaults,
        admission: Admission::new(&plan.config).expect("the key file is sound"),
        config: plan.config,
        metrics: Metrics::new(MODEL, &info, route_labels()),
        info,
        receipts: Receipts::default(),
        responses: ResponseStore::new(1 << 20),
        phase: watch::Sender::new(Phase::Serving),
        num_generating: AtomicU64::new(0),
    }
}

fn scripted_engine(script: &Arc<Script>, info: &EngineInfo, plan: &Plan) -> EngineHandle {
    let script = Arc::clone(script);
    let config = SchedulerConfig {
        max_num_batched_tokens: 512,
        max_num_seqs: info.max_num_seqs,
        max_queue: plan.max_queue,
        max_model_len: info.max_model_len,
        grid: None,
        max_drafts: 0,
        ..SchedulerConfig::default()
    };
    let cache = CacheConfig {
        block_size: info.block_size,
        num_blocks: info.num_blocks + 1,
        num_slots: info.num_slots + 1,
        num_host_slots: 0,
        num_host_blocks: 0,
    };
    engine::spawn(config, cache, info.vocab_size, move |progress| {
        script.wait_for_load(&progress)?;
        Ok(ScriptedRunner {
            script,
            heart: progress.heart(),
            plan: None,
        })
    })
    .expect("a thread can be started")
}
