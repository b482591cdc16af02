//! The step loop, on its own thread: owns scheduler and runner, turns the crank.
//!
//! A panic or a failed step fails every stream in flight, sets [`EngineStatus::Failed`] and ends
//! the thread; the process is expected to restart.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use constraint::Guide;
use crossbeam::channel::{Receiver, RecvTimeoutError, TryRecvError, unbounded};
use parking_lot::{Mutex, RwLock};
use scheduler::{
    CacheConfig, Held, Request, RequestId, RequestOutput, Runner, Scheduler, SchedulerConfig,
    SchedulerStats,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::constraints::Constraints;
use crate::error::{EngineError, Failure};
use crate::flight::Flight;
use crate::handle::{EngineHandle, EngineStatus, Limits, Shared, StreamEvent};
use crate::heart::{Heart, StepNote};
use crate::news::{CacheNews, Newspaper};
use crate::verdict::{self, Phase};

/// How often an idle engine beats its heart.
const IDLE_BEAT: Duration = Duration::from_secs(1);

/// What the handle sends.
pub(crate) enum Command {
    Add {
        request: Request,
        guide: Option<Arc<Guide>>,
        outputs: mpsc::Sender<StreamEvent>,
        /// Set when its first choice first runs.
        begun: Arc<OnceLock<Instant>>,
    },
    Abort(RequestId),
    FinishChoice {
        id: RequestId,
        choice: u32,
    },
    /// What the cache holds; looked up where it changes.
    Held(oneshot::Sender<Vec<Held>>),
    /// What the cache can be hit with, from now on.
    News(mpsc::Sender<CacheNews>),
}

/// Tells whoever watches how far loading is, and carries the heart that the runner beats.
#[derive(Clone)]
pub struct LoadProgress {
    tell: Arc<dyn Fn(u64, u64) + Send + Sync>,
    heart: Heart,
}

impl LoadProgress {
    /// Calls `watch` with the bytes loaded and their total.
    pub(crate) fn new(heart: Heart, watch: impl Fn(u64, u64) + Send + Sync + 'static) -> Self {
        Self {
            tell: Arc::new(watch),
            heart,
        }
    }

    /// Nobody watches.
    pub(crate) fn unwatched() -> Self {
        Self::new(Heart::new(), |_, _| {})
    }

    fn to(shared: Arc<Shared>) -> Self {
        Self::new(shared.heart.clone(), move |loaded_bytes, total_bytes| {
            shared.reach(EngineStatus::Loading {
                loaded_bytes,
                total_bytes,
            });
        })
    }

    /// To be beaten inside long steps and large weights, so that what is slow is not taken for what hangs.
    pub fn heart(&self) -> Heart {
        self.heart.clone()
    }

    /// Publishes a new count, which is a sign of life.
    pub fn set(&self, loaded_bytes: u64, total_bytes: u64) {
        self.heart.beat();
        (self.tell)(loaded_bytes, total_bytes);
    }
}

/// Starts the engine thread. `load` runs on it first and builds the runner; tensors never leave
/// that thread. The handle refuses requests until `load` returns, and prompts with tokens from
/// `vocab_size` on always. Dropping every handle and stream ends the thread.
pub fn spawn<R, F>(
    config: SchedulerConfig,
    cache: CacheConfig,
    vocab_size: u32,
    load: F,
) -> Result<EngineHandle, EngineError>
where
    R: Runner + 'static,
    F: FnOnce(LoadProgress) -> Result<R, EngineError> + Send + 'static,
{
    let (commands, inbox) = unbounded();
    let shared = Arc::new(Shared {
        status: watch::Sender::new(EngineStatus::Loading {
            loaded_bytes: 0,
            total_bytes: 0,
        }),
        stats: RwLock::new(SchedulerStats::default()),
        heart: Heart::new(),
        last_step: StepNote::default(),
        num_in_channel: AtomicU64::new(0),
        drafts_paused: AtomicBool::new(false),
        step_tokens: Mutex::default(),
        flight: Mutex::new(Flight::new(&config, &cache)),
        limits: Limits {
            vocab_size,
            config: config.clone(),
            cache: cache.clone(),
        },
    });
    let handle = EngineHandle {
        commands,
        shared: Arc::clone(&shared),
        next_id: Arc::new(AtomicU64::new(1)),
    };
    std::thread::Builder::new()
        .name("engine".into())
        .spawn(move || {
            verdict::listen();
            let mut streams = Streams::default();
            let mut phase = Phase::Load;
            let outcome = catch_unwind(AssertUnwindSafe(|| {
                let mut runner = load(LoadProgress::to(Arc::clone(&shared)))?;
                phase = Phase::WarmUp;
                warm_up(&mut runner, &shared)?;
                phase = Phase::Step;
                let mut scheduler = Scheduler::new(config, cache);
                let times = runner.times();
                for time in &times {
                    tracing::debug!(?time, "a step without anybody's tokens");
                }
                shared.flight.lock().times(&times);
                scheduler.note_times(0, &times);
                shared.reach(EngineStatus::Ready);
                EngineCore {
                    scheduler,
                    runner,
                    inbox,
                    deferred: VecDeque::new(),
                    constraints: Constraints::default(),
                    newspaper: Newspaper::default(),
                    streams: &mut streams,
                    shared: &shared,
                }
                .run()
            }));
            let failure = match outcome {
                Ok(Ok(())) => return,
                Ok(Err(error)) => error,
                Err(panic) => verdict::of_panic(phase, panic.as_ref()),
            };
            tracing::error!(error = %failure, cause = ?failure.cause(), "the engine has ended");
            shared.fail(Failure::from(&failure));
            streams.fail_all(&failure.to_string());
        })
        .map_err(|source| EngineError::Io {
            path: "engine thread".into(),
            source,
        })?;
    Ok(handle)
}

/// Runs every shape once, and says how long that took.
fn warm_up<R: Runner>(runner: &mut R, shared: &Shared) -> Result<(), EngineError> {
    let begin = Instant::now();
    let mut num_shapes = 0;
    runner
        .warm_up(&mut |num_done, num_total| {
            num_shapes = num_total;
            shared.heart.beat();
            shared.reach(EngineStatus::WarmingUp {
                num_done,
                num_total,
            });
        })
        .map_err(|error| verdict::of_error(Phase::WarmUp, error))?;
    if num_shapes > 0 {
        let ms = begin.elapsed().as_millis() as u64;
        tracing::info!(num_shapes, ms, "warmed up");
    }
    Ok(())
}

struct EngineCore<'a, R> {
    scheduler: Scheduler,
    runner: R,
    inbox: Receiver<Command>,
    /// Commands that came while a step ran and may change what its rows mean.
    deferred: VecDeque<Command>,
    constraints: Constraints,
    newspaper: Newspaper,
    streams: &'a mut Streams,
    shared: &'a Shared,
}

impl<R: Runner> EngineCore<'_, R> {
    /// Turns until every handle is gone.
    fn run(mut self) -> Result<(), EngineError> {
        loop {
            if !self.take_commands() {
                return Ok(());
            }
            self.newspaper.publish(&mut self.scheduler);
            let paused = self.shared.drafts_paused.load(Ordering::Relaxed);
            self.scheduler.pause_drafts(paused);
            self.shared.flight.lock().pause_drafts(paused);
            let Some(plan) = self.scheduler.schedule() else {
                self.shared.flight.lock().idle();
                self.beat();
                if !self.wait_for_command() {
                    return Ok(());
                }
                continue;
            };
            self.beat();
            let begin = Instant::now();
            for id in self.scheduler.started() {
                self.streams.begin(*id, begin);
            }
            let num_tokens = plan.rows.iter().map(|row| row.input_ids.len() as u64);
            self.shared.step_tokens.lock().note(num_tokens.sum());
            self.shared.flight.lock().plan(&plan);
            let failed = |error: R::Error| verdict::of_error(Phase::Step, error);
            let constrained = self.constraints.of(&plan);
            self.shared.last_step.begin(&plan);
            self.runner.submit(plan).map_err(failed)?;
            // While the device works: first what the step itself needs of us, then what the next will.
            let masks = self.constraints.masks(&constrained);
            self.take_arrivals();
            self.scheduler.prepare();
            let mut result = self.runner.collect(&masks).map_err(failed)?;
            self.shared.last_step.end();
            let nanos = begin.elapsed().as_nanos() as u64;
            let times = self.runner.times();
            self.scheduler.note_times(nanos, &times);
            self.constraints.advance(&constrained, &mut result);
            self.shared.flight.lock().result(&result, (nanos, &times));
            for output in self.scheduler.update(result) {
                self.deliver(output);
            }
        }
    }

    /// Admits who came while a step runs. Endings wait for its result, which is theirs still, and
    /// whatever came behind one waits with it.
    fn take_arrivals(&mut self) {
        while self.deferred.is_empty() {
            match self.inbox.try_recv() {
                Ok(command @ (Command::Add { .. } | Command::Held(_))) => self.apply(command),
                Ok(command) => self.deferred.push_back(command),
                // That every handle is gone is found out between steps.
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => return,
            }
        }
    }

    /// Applies all waiting commands; false when every handle is gone.
    fn take_commands(&mut self) -> bool {
        while let Some(command) = self.deferred.pop_front() {
            self.apply(command);
        }
        loop {
            match self.inbox.try_recv() {
                Ok(command) => self.apply(command),
                Err(TryRecvError::Empty) => return true,
                Err(TryRecvError::Disconnected) => return false,
            }
        }
    }

    /// Sleeps until a command comes or the heart must beat; false when every handle is gone.
    fn wait_for_command(&mut self) -> bool {
        match self.inbox.recv_timeout(IDLE_BEAT) {
            Ok(command) => self.apply(command),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => return false,
        }
        true
    }

    fn apply(&mut self, command: Command) {
        match command {
            Command::Add {
                request,
                guide,
                outputs,
                begun,
            } => {
                let (id, num_choices) = (request.id, request.num_choices);
                // Cheap: what is long in it is shared.
                let noted = request.clone();
                match self.scheduler.add(request) {
                    Ok(()) => {
                        self.shared.flight.lock().add(noted);
                        self.streams.open(id, num_choices, (outputs, begun));
                        if let Some(guide) = guide {
                            self.constraints.add(id, num_choices, &guide);
                        }
                    }
                    // The reader may already be gone.
                    Err(error) => drop(outputs.try_send(StreamEvent::Failed(error.to_string()))),
                }
                self.beat();
                // It is in the queue that others see: nobody takes its place meanwhile.
                self.shared.num_in_channel.fetch_sub(1, Ordering::Release);
            }
            Command::Abort(id) => {
                self.abort(id);
            }
            // Who asked may be gone.
            Command::Held(answer) => drop(answer.send(self.scheduler.held())),
            Command::News(reader) => self.newspaper.subscribe(reader, &mut self.scheduler),
            Command::FinishChoice { id, choice } => {
                self.shared.flight.lock().finish_choice(id, choice);
                self.scheduler.finish_choice(id, choice);
                self.constraints.finish_choice(id, choice);
                self.streams.finish_choice(id, choice);
            }
        }
    }

    /// Sends news to its stream. A reader that is gone or too slow loses its request, nobody else's.
    fn deliver(&mut self, output: RequestOutput) {
        let id = output.request;
        if output.finish.is_some() {
            self.constraints.finish_choice(id, output.choice);
        }
        if !self.streams.send(output) {
            self.abort(id);
        }
    }

    fn abort(&mut self, id: RequestId) {
        self.shared.flight.lock().abort(id);
        self.scheduler.abort(id);
        self.constraints.drop_request(id);
        self.streams.close(id);
    }

    fn beat(&self) {
        *self.shared.stats.write() = self.scheduler.stats();
        self.shared.heart.beat();
    }
}

/// Open streams by request.
#[derive(Default)]
struct Streams {
    open: HashMap<RequestId, OpenStream>,
}

struct OpenStream {
    outputs: mpsc::Sender<StreamEvent>,
    begun: Arc<OnceLock<Instant>>,
    /// Which choices have had their last output, or were ended by their client.
    finished: Vec<bool>,
}

impl Streams {
    fn open(
        &mut self,
        id: RequestId,
        num_choices: u32,
        (outputs, begun): (mpsc::Sender<StreamEvent>, Arc<OnceLock<Instant>>),
    ) {
        self.open.insert(
            id,
            OpenStream {
                outputs,
                begun,
                finished: vec![false; num_choices as usize],
            },
        );
    }

    fn close(&mut self, id: RequestId) {
        self.open.remove(&id);
    }

    /// Its waiting is over.
    fn begin(&self, id: RequestId, now: Instant) {
        if let Some(stream) = self.open.get(&id) {
            stream.begun.get_or_init(|| now);
        }
    }

    /// A choice has ended, perhaps told twice: by the scheduler and by its client's side. The
    /// stream ends with its last choice.
    fn finish_choice(&mut self, id: RequestId, choice: u32) {
        let Some(stream) = self.open.get_mut(&id) else {
            return;
        };
        if let Some(finished) = stream.finished.get_mut(choice as usize) {
            *finished = true;
        }
        if stream.finished.iter().all(|finished| *finished) {
            self.close(id);
        }
    }

    /// False if the reader is gone or has fallen a whole buffer behind.
    fn send(&mut self, output: RequestOutput) -> bool {
        let (id, choice, finished) = (output.request, output.choice, output.finish.is_some());
        let Some(stream) = self.open.get_mut(&id) else {
            return false;
        };
        if stream
            .outputs
            .try_send(StreamEvent::Output(output))
            .is_err()
        {
            return false;
        }
        if finished {
            self.finish_choice(id, choice);
        }
        true
    }

    fn fail_all(&mut self, why: &str) {
        for (_, stream) in self.open.drain() {
            // The reader may already be gone.
            let _ = stream.outputs.try_send(StreamEvent::Failed(why.to_owned()));
        }
    }
}

#[cfg(test)]
mod failures;
#[cfg(test)]
mod tests;
