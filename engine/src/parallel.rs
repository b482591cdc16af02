//! Several ranks as one [`Runner`]: every rank's thread gets the same plan and carries out its share
//! on its own device, with its own weights and caches.
//!
//! A rank meets the others once per layer and once per set of logits, in an [`AllReduce`]. All of them
//! then go on with the same bits, so they take the same decisions (which experts, for one) without a
//! word. Rank 0 alone draws tokens.
//!
//! A rank that fails or panics fails the step. Nobody waits for it: ranks in one memory are
//! woken; ranks on GPUs hang in their driver, so they are left where they are, and the process, which
//! ends on the first failed step, takes them along.

mod meeting;

use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;

use burn::tensor::{Device, Tensor};
use crossbeam::channel::{Receiver, Sender, unbounded};
use scheduler::{RowMasks, Runner, SchedulerOutput, StepResult, StepTime};

pub(crate) use self::meeting::Meeting;
use crate::engine_core::LoadProgress;
use crate::error::EngineError;
use crate::verdict::{self, Phase};

/// Sums tensors over the ranks.
pub(crate) trait AllReduce: Send + Sync {
    /// The sum of what every rank brings, the same bits for all of them. Every rank calls it as often
    /// as every other, with tensors of the same shapes.
    fn sum(&self, rank: usize, x: Tensor<2>) -> Tensor<2>;

    /// A rank is gone: wakes those who wait for it, now and later. Returns whether that is possible.
    fn break_up(&self) -> bool;
}

/// The other ranks, as one rank's layers see them.
pub(crate) struct Peers {
    pub(crate) all_reduce: Arc<dyn AllReduce>,
    pub(crate) rank: usize,
    /// Which tokens' logits this rank computes.
    pub(crate) vocabulary: Range<usize>,
}

impl Peers {
    /// The sum over the ranks of their parts of a layer's output.
    pub(crate) fn sum(&self, x: Tensor<2>) -> Tensor<2> {
        self.all_reduce.sum(self.rank, x)
    }

    /// `[P, V]` from every rank's columns. NCCL as Burn reaches it has no gather, so each rank brings
    /// zeros for the others' columns: `x + 0` is `x`, and half a megabyte per position is little
    /// beside reading the head.
    pub(crate) fn gather_vocabulary(&self, logits: Tensor<2>, vocab_size: usize) -> Tensor<2> {
        let [positions, _] = logits.dims();
        let all = Tensor::zeros([positions, vocab_size], (&logits.device(), logits.dtype()));
        self.sum(all.slice_assign([0..positions, self.vocabulary.clone()], logits))
    }
}

/// NCCL over GPUs: [`kernels::all_reduce`]. **Never run**: no machine with two GPUs was at hand.
pub(crate) struct OverDevices {
    devices: Vec<Device>,
}

impl OverDevices {
    /// # Errors
    /// The devices have no way to each other; says what is missing.
    pub(crate) fn new(devices: Vec<Device>) -> Result<Self, EngineError> {
        kernels::can_all_reduce(&devices).map_err(EngineError::Device)?;
        Ok(Self { devices })
    }
}

impl AllReduce for OverDevices {
    fn sum(&self, _rank: usize, x: Tensor<2>) -> Tensor<2> {
        kernels::all_reduce(x, &self.devices)
    }

    /// A sum that was queued waits in the driver for the rank that is gone.
    fn break_up(&self) -> bool {
        false
    }
}

/// All ranks, each on a thread of its own.
pub(crate) struct ParallelRunner {
    ranks: Vec<Rank>,
    reports: Receiver<Report>,
    /// Of rank 0, the last to know a step's tokens.
    times: Vec<StepTime>,
    ties: Arc<Ties>,
}

struct Rank {
    orders: Sender<Order>,
    thread: Option<JoinHandle<()>>,
}

/// What a rank is told.
enum Order {
    WarmUp,
    Submit(Arc<SchedulerOutput>),
    Collect(Arc<[RowMasks]>),
}

/// What a rank says once it has loaded, once per step, or with its last breath.
struct Report {
    rank: usize,
    outcome: Result<News, EngineError>,
}

/// What came of an order.
#[derive(Default)]
struct News {
    result: Option<StepResult>,
    times: Vec<StepTime>,
}

/// What ties the ranks together.
struct Ties {
    all_reduce: Arc<dyn AllReduce>,
    /// A rank is gone.
    broken: AtomicBool,
}

/// How a rank unwinds because of another.
struct PeerGone;

impl ParallelRunner {
    /// Starts `num_ranks` threads, on which `load` makes the ranks, and waits until all have.
    ///
    /// # Errors
    /// The first that a rank's loading ended with; the others then stop at their next weight.
    pub(crate) fn start<R: Runner<Error = EngineError>>(
        num_ranks: usize,
        all_reduce: Arc<dyn AllReduce>,
        progress: LoadProgress,
        load: impl Fn(usize, LoadProgress) -> Result<R, EngineError> + Send + Sync + 'static,
    ) -> Result<Self, EngineError> {
        let (reporter, reports) = unbounded();
        let ties = Arc::new(Ties {
            all_reduce,
            broken: AtomicBool::new(false),
        });
        let load = Arc::new(load);
        let progress = Arc::new(SharedProgress::new(num_ranks, progress));
        let mut runner = Self {
            ranks: Vec::with_capacity(num_ranks),
            reports,
            times: Vec::new(),
            ties: Arc::clone(&ties),
        };
        for rank in 0..num_ranks {
            let (orders, inbox) = unbounded();
            let (reporter, load) = (reporter.clone(), Arc::clone(&load));
            let (ties, progress) = (Arc::clone(&ties), progress.of(rank, &ties));
            let thread = std::thread::Builder::new()
                .name(format!("rank-{rank}"))
                .spawn(move || {
                    let load = || load(rank, progress);
                    serve(rank, num_ranks, load, &inbox, &reporter, &ties);
                })
                .map_err(|source| EngineError::Io {
                    path: "rank thread".into(),
                    source,
                })?;
            runner.ranks.push(Rank {
                orders,
                thread: Some(thread),
            });
        }
        runner.gather()?;
        Ok(runner)
    }

    fn tell(&self, order: impl Fn() -> Order) {
        for rank in &self.ranks {
            // One that is gone has said so, and `gather` hears it.
            drop(rank.orders.send(order()));
        }
    }

    /// Waits for a word from every rank, or for a bad one from any; rank 0's result.
    fn gather(&mut self) -> Result<Option<StepResult>, EngineError> {
        let mut result = None;
        for _ in &self.ranks {
            let report = self.reports.recv().expect("a rank speaks before it ends");
            let news = report.outcome?;
            if report.rank == 0 {
                result = news.result;
                self.times.extend(news.times);
            }
        }
        Ok(result)
    }
}

impl Runner for ParallelRunner {
    type Error = EngineError;

    /// All ranks at once: they wait for each other's sums.
    fn warm_up(&mut self, tell: &mut dyn FnMut(u32, u32)) -> Result<(), EngineError> {
        tell(0, 1);
        self.tell(|| Order::WarmUp);
        self.gather()?;
        tell(1, 1);
        Ok(())
    }

    /// Returns at once; what goes wrong is told by [`collect`](Self::collect).
    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), EngineError> {
        let plan = Arc::new(plan);
        self.tell(|| Order::Submit(Arc::clone(&plan)));
        Ok(())
    }

    fn collect(&mut self, masks: &[RowMasks]) -> Result<StepResult, EngineError> {
        let masks: Arc<[RowMasks]> = masks.into();
        self.tell(|| Order::Collect(Arc::clone(&masks)));
        let result = self.gather()?;
        Ok(result.expect("rank 0 reports what it drew"))
    }

    fn times(&mut self) -> Vec<StepTime> {
        std::mem::take(&mut self.times)
    }
}

impl Drop for ParallelRunner {
    fn drop(&mut self) {
        let was_broken = self.ties.broken.load(Ordering::Acquire);
        // Between steps nobody waits for anybody: ranks end when their orders do.
        for rank in &mut self.ranks {
            rank.orders = unbounded().0;
        }
        if was_broken && !self.ties.all_reduce.break_up() {
            return;
        }
        for rank in &mut self.ranks {
            let thread = rank.thread.take().expect("joined once");
            thread.join().expect("a rank catches its panics");
        }
    }
}

/// A rank's thread, from loading to the end of its orders or its first failure.
fn serve<R: Runner<Error = EngineError>>(
    rank: usize,
    num_ranks: usize,
    load: impl FnOnce() -> Result<R, EngineError>,
    orders: &Receiver<Order>,
    reports: &Sender<Report>,
    ties: &Ties,
) {
    let say = |outcome| drop(reports.send(Report { rank, outcome }));
    let phase = Cell::new(Phase::Load);
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let mut runner = load()?;
        say(Ok(News::default()));
        for order in orders {
            match order {
                Order::WarmUp => {
                    phase.set(Phase::WarmUp);
                    runner.warm_up(&mut |_, _| {})?;
                    let times = runner.times();
                    say(Ok(News {
                        result: None,
                        times,
                    }));
                }
                Order::Submit(plan) => {
                    phase.set(Phase::Step);
                    runner.submit((*plan).clone())?;
                }
                Order::Collect(masks) => {
                    let result = Some(runner.collect(&masks)?);
                    let times = runner.times();
                    say(Ok(News { result, times }));
                }
            }
        }
        Ok(())
    }));
    let failure = match outcome {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        // The culprit has spoken.
        Err(panic) if panic.is::<PeerGone>() => return,
        Err(panic) => verdict::of_panic(phase.get(), panic.as_ref()),
    };
    // Those whom this wakes say nothing.
    ties.broken.store(true, Ordering::Release);
    ties.all_reduce.break_up();
    say(Err(failure.of_rank(rank, num_ranks)));
}

/// Unwinds a rank that waits for one that is gone: layers have no way to return an error, and it is
/// not theirs. No panic hook runs.
fn leave() -> ! {
    resume_unwind(Box::new(PeerGone))
}

/// Bytes loaded by all ranks together.
struct SharedProgress {
    whole: LoadProgress,
    /// Loaded and total, per rank.
    ranks: Vec<[AtomicU64; 2]>,
}

impl SharedProgress {
    fn new(num_ranks: usize, whole: LoadProgress) -> Self {
        Self {
            whole,
            ranks: (0..num_ranks).map(|_| Default::default()).collect(),
        }
    }

    /// What one rank tells of itself.
    fn of(self: &Arc<Self>, rank: usize, ties: &Arc<Ties>) -> LoadProgress {
        let (shared, ties) = (Arc::clone(self), Arc::clone(ties));
        let heart = self.whole.heart();
        LoadProgress::new(heart, move |loaded, total| {
            if ties.broken.load(Ordering::Acquire) {
                leave();
            }
            shared.ranks[rank][0].store(loaded, Ordering::Relaxed);
            shared.ranks[rank][1].store(total, Ordering::Relaxed);
            let sum = |which: usize| {
                let counts = shared.ranks.iter();
                counts.map(|rank| rank[which].load(Ordering::Relaxed)).sum()
            };
            shared.whole.set(sum(0), sum(1));
        })
    }
}

#[cfg(test)]
mod tests;
