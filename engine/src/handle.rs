//! The server's only door in.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use constraint::Guide;
use crossbeam::channel::Sender;
use parking_lot::{Mutex, RwLock};
use scheduler::{
    AdmissionError, CacheConfig, Held, Request, RequestId, RequestOutput, SchedulerConfig,
    SchedulerStats, check_size,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::engine_core::Command;
use crate::error::Failure;
use crate::flight::{Flight, Recording};
use crate::heart::{Heart, LastStep, StepNote};
use crate::news::{CacheNews, MAX_BEHIND};
use crate::step_tokens::StepTokens;

/// Outputs that may wait for one slow reader before its request is aborted.
pub(crate) const STREAM_CAPACITY: usize = 4096;

/// Where the engine is in its life.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum EngineStatus {
    /// Headers are valid; weights are on their way.
    Loading {
        /// Bytes read.
        loaded_bytes: u64,
        /// Bytes in all.
        total_bytes: u64,
    },
    /// Weights are there; every shape of step runs once.
    WarmingUp {
        /// Shapes that have run.
        num_done: u32,
        /// Shapes in all.
        num_total: u32,
    },
    /// Steps run.
    Ready,
    /// The engine ended and will not come back; the process should.
    Failed(Failure),
}

impl EngineStatus {
    /// Whether it is not ready and may become so.
    pub fn is_on_its_way(&self) -> bool {
        matches!(self, Self::Loading { .. } | Self::WarmingUp { .. })
    }
}

/// Why a request did not get in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// Weights are still loading, or the model warms up.
    #[error("the model is still loading")]
    NotReady,
    /// The engine ended.
    #[error("the engine has failed: {0}")]
    Failed(String),
    /// Nothing to compute.
    #[error("the request has no prompt tokens or no choices")]
    Empty,
    /// A prompt token that the model does not have.
    #[error("token {token} is not below the vocabulary size {vocab_size}")]
    TokenOutOfRange {
        /// The first such token.
        token: u32,
        /// Valid ids are below.
        vocab_size: u32,
    },
    /// The scheduler's limits.
    #[error(transparent)]
    Admission(#[from] AdmissionError),
}

/// Numbers of the engine for metrics and health.
#[derive(Clone, Debug, Default)]
pub struct EngineStats {
    /// The scheduler's, as of the last step.
    pub scheduler: SchedulerStats,
    /// Since a weight was loaded, the step loop turned or a layer was done. Large while work waits: the
    /// engine hangs.
    pub heartbeat_age: Duration,
    /// How large steps were.
    pub step_tokens: StepTokens,
}

/// Who waits for a first step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// Requests.
    pub num_waiting: u64,
    /// Beyond so many the next one is refused.
    pub max_waiting: u64,
}

/// What is loaded, fixed once the engine is ready.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct EngineInfo {
    /// Constant for build, weights and configuration: `system_fingerprint`.
    pub fingerprint: String,
    /// Token ids are below this.
    pub vocab_size: u32,
    /// Prompt plus output.
    pub max_model_len: u32,
    /// Sequences that can run at once: as configured, or as many as have a state slot.
    pub max_num_seqs: u32,
    /// Weights counted once.
    pub num_parameters: u64,
    /// Bytes of weights as stored.
    pub weight_bytes: u64,
    /// Tokens per block.
    pub block_size: u32,
    /// Usable blocks.
    pub num_blocks: u32,
    /// Usable state slots.
    pub num_slots: u32,
    /// Ranks that run the model together.
    pub num_ranks: usize,
    /// Bytes of the weights of one rank, the one with the most.
    pub rank_weight_bytes: u64,
    /// Bytes of one block over all attention layers, of one rank.
    pub block_bytes: u64,
    /// Bytes of one slot over all Mamba layers, of one rank.
    pub slot_bytes: u64,
    /// Blocks in host memory, of every rank.
    pub num_host_blocks: u32,
    /// Slots in host memory, of every rank.
    pub num_host_slots: u32,
    /// Bytes that the largest step needs besides.
    pub workspace_bytes: u64,
    /// Bytes left to others.
    pub reserve_bytes: u64,
    /// Most drafts of tokens to come that a sequence runs in one step; 0: it never does.
    pub max_drafts: u32,
    /// For people: "cpu (AVX-512 BF16, 2 threads)".
    pub device: String,
    /// Arithmetic: "f32" or "bf16".
    pub dtype: String,
    /// KV cache: "f32", "bf16" or "fp8".
    pub kv_cache_dtype: &'static str,
    /// Recurrent states: "float32" or "float16".
    pub mamba_ssm_cache_dtype: &'static str,
}

/// State that handle and engine thread share.
pub(crate) struct Shared {
    pub(crate) status: watch::Sender<EngineStatus>,
    pub(crate) stats: RwLock<SchedulerStats>,
    pub(crate) heart: Heart,
    pub(crate) last_step: StepNote,
    /// Requests submitted and not yet taken up by the engine thread.
    pub(crate) num_in_channel: AtomicU64,
    /// Steps carry no drafts.
    pub(crate) drafts_paused: AtomicBool,
    pub(crate) step_tokens: Mutex<StepTokens>,
    /// Also read when the engine thread hangs or is gone.
    pub(crate) flight: Mutex<Flight>,
    pub(crate) limits: Limits,
}

impl Shared {
    /// The next stage, unless the engine was given up: what hung and goes on after all brings nobody back.
    pub(crate) fn reach(&self, stage: EngineStatus) {
        self.status.send_if_modified(|status| {
            let goes_on = !matches!(status, EngineStatus::Failed(_));
            if goes_on {
                *status = stage;
            }
            goes_on
        });
    }

    /// For good; the first reason stays.
    pub(crate) fn fail(&self, why: Failure) {
        self.status.send_if_modified(|status| {
            let is_first = !matches!(status, EngineStatus::Failed(_));
            if is_first {
                *status = EngineStatus::Failed(why);
            }
            is_first
        });
    }
}

/// What admission needs to know without asking the engine thread.
#[derive(Clone, Debug)]
pub(crate) struct Limits {
    pub(crate) vocab_size: u32,
    pub(crate) config: SchedulerConfig,
    pub(crate) cache: CacheConfig,
}

/// Cheap to clone; every clone talks to the same engine.
#[derive(Clone)]
pub struct EngineHandle {
    pub(crate) commands: Sender<Command>,
    pub(crate) shared: Arc<Shared>,
    pub(crate) next_id: Arc<AtomicU64>,
}

impl EngineHandle {
    /// A name for the next request.
    pub fn next_request_id(&self) -> RequestId {
        RequestId(self.next_id.fetch_add(1, Ordering::Relaxed))
    }

    /// Hands a request over and returns at once; limits are checked here, before any waiting. Its
    /// choices obey `guide`.
    pub fn submit(
        &self,
        request: Request,
        guide: Option<Arc<Guide>>,
    ) -> Result<RequestStream, SubmitError> {
        match &*self.shared.status.borrow() {
            EngineStatus::Ready => {}
            EngineStatus::Loading { .. } | EngineStatus::WarmingUp { .. } => {
                return Err(SubmitError::NotReady);
            }
            EngineStatus::Failed(why) => return Err(SubmitError::Failed(why.to_string())),
        }
        self.check_contents(&request)?;
        let was_idle = self.still_for().is_none();
        self.take_place(&request)?;
        let id = request.id;
        let (outputs, receiver) = mpsc::channel(STREAM_CAPACITY);
        if was_idle {
            // Whoever had nothing to do is late from now on, not since it last said so.
            self.shared.heart.beat();
        }
        let begun = Arc::default();
        if self
            .commands
            .send(Command::Add {
                request,
                guide,
                outputs,
                begun: Arc::clone(&begun),
            })
            .is_err()
        {
            return Err(SubmitError::Failed("the engine thread has ended".into()));
        }
        Ok(RequestStream {
            id,
            receiver,
            commands: self.commands.clone(),
            begun,
            done: false,
        })
    }

    /// Ends one choice whose client has seen enough, such as a completed stop string.
    pub fn finish_choice(&self, id: RequestId, choice: u32) {
        // A closed channel means that the engine has ended and the stream tells so itself.
        let _ = self.commands.send(Command::FinishChoice { id, choice });
    }

    /// Who waits, as of now.
    pub fn queue(&self) -> Queue {
        // In this order: who passes from one to the other in between counts twice, not never.
        let in_channel = self.shared.num_in_channel.load(Ordering::Acquire);
        let queued = u64::from(self.shared.stats.read().num_queued);
        Queue {
            num_waiting: queued + in_channel,
            max_waiting: self.shared.limits.config.max_queue.into(),
        }
    }

    /// From the next step on, no row makes drafts, or they may again; tokens are the same either way.
    pub fn pause_drafts(&self, paused: bool) {
        self.shared.drafts_paused.store(paused, Ordering::Relaxed);
    }

    /// Loading, ready or failed.
    pub fn status(&self) -> EngineStatus {
        self.shared.status.borrow().clone()
    }

    /// Waits until steps can run, or returns why they never will be.
    pub async fn ready(&self) -> Result<(), SubmitError> {
        let mut status = self.shared.status.subscribe();
        let settled = status
            .wait_for(|status| matches!(status, EngineStatus::Ready | EngineStatus::Failed(_)))
            .await;
        match settled.as_deref() {
            Ok(EngineStatus::Failed(why)) => Err(SubmitError::Failed(why.to_string())),
            Ok(_) => Ok(()),
            Err(_) => unreachable!("the handle itself keeps the sender"),
        }
    }

    /// Waits for the end that should not come, and returns why it did.
    pub async fn failure(&self) -> Failure {
        let mut status = self.shared.status.subscribe();
        let failed = status
            .wait_for(|status| matches!(status, EngineStatus::Failed(_)))
            .await;
        match failed.as_deref() {
            Ok(EngineStatus::Failed(why)) => why.clone(),
            _ => unreachable!("waited for exactly that, and the handle itself keeps the sender"),
        }
    }

    /// Numbers as of the last step.
    pub fn stats(&self) -> EngineStats {
        EngineStats {
            scheduler: self.shared.stats.read().clone(),
            heartbeat_age: self.shared.heart.age(),
            step_tokens: *self.shared.step_tokens.lock(),
        }
    }

    /// For how long nothing was done although weights load, the model warms up, or work waits or runs;
    /// `None` while there is nothing to do, and after the engine has failed. How long is too long depends
    /// on [`status`](Self::status): ask for that first, or an age of loading may be taken for one of work.
    pub fn still_for(&self) -> Option<Duration> {
        let (is_on_its_way, is_ready) = {
            let status = self.shared.status.borrow();
            (status.is_on_its_way(), *status == EngineStatus::Ready)
        };
        let age = self.shared.heart.age();
        if !is_ready {
            return is_on_its_way.then_some(age);
        }
        let stats = self.shared.stats.read();
        let in_channel = self.shared.num_in_channel.load(Ordering::Relaxed);
        let has_work = stats.num_running + stats.num_waiting + stats.num_queued > 0;
        (has_work || in_channel > 0).then_some(age)
    }

    /// The step that ran last, or runs still.
    pub fn last_step(&self) -> LastStep {
        self.shared.last_step.read()
    }

    /// Takes the engine for dead, although its thread may not be: nothing is submitted any more, and
    /// whoever waits for [`failure`](Self::failure) hears why. What its streams say is up to their readers.
    pub fn give_up(&self, why: Failure) {
        self.shared.fail(why);
    }

    /// All snapshots of the prefix cache, the oldest first; `None` while there is none: before the engine
    /// is ready, and once it has ended. Nothing in it tells what anybody said.
    pub async fn held(&self) -> Option<Vec<Held>> {
        if self.status() != EngineStatus::Ready {
            return None;
        }
        let (answer, held) = oneshot::channel();
        self.commands.send(Command::Held(answer)).ok()?;
        held.await.ok()
    }

    /// What the cache can be hit with, from now on. There is one reader: the last who asked.
    pub fn cache_news(&self) -> mpsc::Receiver<CacheNews> {
        let (reader, news) = mpsc::channel(MAX_BEHIND);
        // An engine that has ended closes it at once.
        let _ = self.commands.send(Command::News(reader));
        news
    }

    /// What the scheduler was told and what it planned, as far back as memory for it goes. Works while
    /// the engine hangs, and after its end.
    pub fn flight(&self) -> Recording {
        self.shared.flight.lock().recording()
    }

    /// How many bytes the recording may take; 0: nothing is recorded from here on.
    pub fn limit_flight(&self, max_bytes: usize) {
        self.shared.flight.lock().limit(max_bytes);
    }

    fn check_contents(&self, request: &Request) -> Result<(), SubmitError> {
        if request.prompt.is_empty() || request.num_choices == 0 {
            return Err(SubmitError::Empty);
        }
        let vocab_size = self.shared.limits.vocab_size;
        match request.prompt.iter().find(|token| **token >= vocab_size) {
            Some(token) => Err(SubmitError::TokenOutOfRange {
                token: *token,
                vocab_size,
            }),
            None => Ok(()),
        }
    }

    /// Counts the request among those that wait, if it may. The scheduler would refuse it late: what it
    /// says then is a failure.
    fn take_place(&self, request: &Request) -> Result<(), AdmissionError> {
        let Limits { config, cache, .. } = &self.shared.limits;
        check_size(request, config, cache)?;
        // Counted first: of many who come at once no more get in than may.
        self.shared.num_in_channel.fetch_add(1, Ordering::AcqRel);
        let queue = self.queue();
        if queue.num_waiting > queue.max_waiting {
            self.shared.num_in_channel.fetch_sub(1, Ordering::Release);
            let max = config.max_queue;
            return Err(AdmissionError::QueueFull { max });
        }
        Ok(())
    }
}

/// News of one request. Dropping it aborts the request within a step.
pub struct RequestStream {
    id: RequestId,
    receiver: mpsc::Receiver<StreamEvent>,
    commands: Sender<Command>,
    begun: Arc<OnceLock<Instant>>,
    done: bool,
}

/// What a stream carries.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamEvent {
    /// News of one choice.
    Output(RequestOutput),
    /// The request ended without its outputs: refused late, too slow a reader, or the engine
    /// failed. Nothing follows.
    Failed(String),
}

impl RequestStream {
    /// The request's name.
    pub fn id(&self) -> RequestId {
        self.id
    }

    /// Set when the request's waiting is over and its first step is planned.
    pub fn begun(&self) -> Arc<OnceLock<Instant>> {
        Arc::clone(&self.begun)
    }

    /// The next event; `None` after the last choice's last output.
    pub async fn next(&mut self) -> Option<StreamEvent> {
        let event = self.receiver.recv().await;
        if event.is_none() {
            self.done = true;
        }
        event
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        if !self.done {
            // A closed channel means that there is nothing left to abort.
            let _ = self.commands.send(Command::Abort(self.id));
        }
    }
}
