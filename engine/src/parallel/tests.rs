//! Ranks that add and fail as they are told.

use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::time::Duration;

use parking_lot::Mutex;
use scheduler::StepId;

use super::*;
use crate::heart::Heart;

/// When a rank fails, and how.
#[derive(Clone, Copy, PartialEq)]
enum At {
    Load,
    Submit,
    Collect,
}

#[derive(Clone, Copy)]
struct Fault {
    rank: usize,
    at: At,
    /// Counted from 0.
    step: u64,
    panics: bool,
}

/// A rank that meets the others twice in each half of a step.
struct Scripted {
    rank: usize,
    all_reduce: Arc<Meeting>,
    fault: Option<Fault>,
    plan: Option<SchedulerOutput>,
    ended: Arc<AtomicUsize>,
}

impl Scripted {
    fn step(&self, at: At, step: u64) -> Result<(), EngineError> {
        meet(&self.all_reduce, self.rank);
        if let Some(fault) = self.fault
            && (fault.rank, fault.at, fault.step) == (self.rank, at, step)
        {
            fail(fault)?;
        }
        meet(&self.all_reduce, self.rank);
        Ok(())
    }
}

impl Drop for Scripted {
    fn drop(&mut self) {
        self.ended.fetch_add(1, Ordering::SeqCst);
    }
}

fn fail(fault: Fault) -> Result<(), EngineError> {
    if fault.panics {
        // As a panic, without its message in the test's output.
        resume_unwind(Box::new("scripted".to_owned()));
    }
    Err(EngineError::Memory("scripted".into()))
}

fn meet(all_reduce: &Meeting, rank: usize) {
    let sum = all_reduce.sum(rank, tensor(&[rank as f32, 1.0]));
    let sum: Vec<f32> = sum.try_to_vec_as().expect("it reads back");
    assert!(sum[0] == sum[1] * (sum[1] - 1.0) / 2.0, "{sum:?}");
}

fn tensor(values: &[f32]) -> Tensor<2> {
    Tensor::<1>::from_floats(values, &Device::flex()).reshape([1, values.len()])
}

impl Runner for Scripted {
    type Error = EngineError;

    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), EngineError> {
        let step = plan.step.0;
        self.plan = Some(plan);
        self.step(At::Submit, step)
    }

    fn collect(&mut self, _masks: &[RowMasks]) -> Result<StepResult, EngineError> {
        let plan = self.plan.take().expect("a step was submitted");
        self.step(At::Collect, plan.step.0)?;
        // Only rank 0 is asked.
        let step = StepId(plan.step.0 + 1000 * self.rank as u64);
        Ok(StepResult {
            step,
            rows: Vec::new(),
        })
    }
}

/// A test that waits for ever has failed.
fn in_time<R: Send + 'static>(f: impl FnOnce() -> R + Send + 'static) -> R {
    let (done, wait) = mpsc::channel();
    std::thread::spawn(move || done.send(f()));
    wait.recv_timeout(Duration::from_mins(1))
        .expect("somebody waits for ever, or the test panicked")
}

fn start(
    num_ranks: usize,
    fault: Option<Fault>,
    ended: &Arc<AtomicUsize>,
) -> Result<ParallelRunner, EngineError> {
    let meeting = Arc::new(Meeting::new(num_ranks));
    let (between, ended) = (Arc::clone(&meeting), Arc::clone(ended));
    let load = move |rank, progress: LoadProgress| {
        // A rank that fails to load stops the others at their next weight, if not before.
        progress.set(1, 2);
        if let Some(fault) = fault
            && (fault.rank, fault.at) == (rank, At::Load)
        {
            fail(fault)?;
        }
        progress.set(2, 2);
        Ok(Scripted {
            rank,
            all_reduce: Arc::clone(&between),
            fault,
            plan: None,
            ended: Arc::clone(&ended),
        })
    };
    ParallelRunner::start(num_ranks, meeting, LoadProgress::unwatched(), load)
}

fn plan(step: u64) -> SchedulerOutput {
    SchedulerOutput {
        step: StepId(step),
        ops: Vec::new(),
        rows: Vec::new(),
    }
}

#[test]
fn rank_0_answers_and_the_end_is_the_end_of_all() {
    in_time(|| {
        for num_ranks in [1, 2, 3, 8] {
            let ended = Arc::default();
            let mut runner = start(num_ranks, None, &ended).expect("all load");
            for step in 0..20 {
                runner.submit(plan(step)).expect("nobody fails");
                let result = runner.collect(&[]).expect("nobody fails");
                assert_eq!(result.step, StepId(step));
            }
            // Between a submit and its collect.
            runner.submit(plan(20)).expect("nobody fails");
            assert_eq!(ended.load(Ordering::SeqCst), 0);
            drop(runner);
            assert_eq!(ended.load(Ordering::SeqCst), num_ranks, "all are joined");
        }
    });
}

#[test]
fn one_rank_that_fails_fails_the_step_for_all() {
    in_time(|| {
        for rank in [0, 1, 3] {
            for at in [At::Submit, At::Collect] {
                for panics in [false, true] {
                    let step = 2;
                    let fault = Fault {
                        rank,
                        at,
                        step,
                        panics,
                    };
                    let ended = Arc::default();
                    let mut runner = start(4, Some(fault), &ended).expect("all load");
                    for step in 0..step {
                        runner.submit(plan(step)).expect("nobody fails yet");
                        runner.collect(&[]).expect("nobody fails yet");
                    }
                    runner.submit(plan(step)).expect("told by collect");
                    let error = runner.collect(&[]).expect_err("one fails");
                    check_error(&error, rank, panics);
                    drop(runner);
                    assert_eq!(ended.load(Ordering::SeqCst), 4, "all are joined");
                }
            }
        }
    });
}

#[test]
fn one_rank_that_cannot_load_ends_the_loading_of_all() {
    in_time(|| {
        for panics in [false, true] {
            let fault = Fault {
                rank: 2,
                at: At::Load,
                step: 0,
                panics,
            };
            let ended = Arc::default();
            let Err(error) = start(3, Some(fault), &ended) else {
                panic!("rank 2 does not load");
            };
            check_error(&error, 2, panics);
        }
    });
}

#[track_caller]
fn check_error(error: &EngineError, rank: usize, panics: bool) {
    let text = error.to_string();
    assert!(text.contains(&format!("rank {rank} of ")), "{text}");
    assert!(text.contains("scripted"), "{text}");
    // The kind stays: exit codes depend on it.
    assert_eq!(matches!(error, EngineError::Panicked(_)), panics);
    assert_eq!(matches!(error, EngineError::Memory(_)), !panics);
}

/// Tensors of different shapes are our bug, and nobody's wait.
#[test]
fn shapes_that_differ_fail_instead_of_hanging() {
    struct Uneven(usize, Arc<Meeting>);
    impl Runner for Uneven {
        type Error = EngineError;

        fn submit(&mut self, _plan: SchedulerOutput) -> Result<(), EngineError> {
            let columns = vec![1.0; 1 + self.0 % 2];
            self.1.sum(self.0, tensor(&columns));
            Ok(())
        }

        fn collect(&mut self, _masks: &[RowMasks]) -> Result<StepResult, EngineError> {
            unreachable!("submit failed")
        }
    }
    in_time(|| {
        let meeting = Arc::new(Meeting::new(3));
        let between = Arc::clone(&meeting);
        let load = move |rank, _| Ok(Uneven(rank, Arc::clone(&between)));
        let progress = LoadProgress::unwatched();
        let mut runner = ParallelRunner::start(3, meeting, progress, load).expect("all load");
        runner.submit(plan(0)).expect("told by collect");
        let error = runner.collect(&[]).expect_err("shapes differ");
        assert!(error.to_string().contains("one shape"), "{error}");
    });
}

/// Numbers whose sum depends on the order, brought in a different order every round.
#[test]
fn a_sum_has_one_order() {
    in_time(|| {
        const RANKS: usize = 5;
        let value = |rank: usize, round: u64, at: u64| {
            let noise = crate::noise::uniform(crate::noise::mix(round * 100 + at, rank as u64));
            (noise as f32 - 0.5) * 10_f32.powi((rank as i32 * 7 + at as i32) % 9)
        };
        let meeting = Meeting::new(RANKS);
        let differs = Mutex::new(false);
        std::thread::scope(|scope| {
            for rank in 0..RANKS {
                let (meeting, differs) = (&meeting, &differs);
                scope.spawn(move || {
                    for round in 0..200 {
                        let mine: Vec<f32> = (0..16).map(|at| value(rank, round, at)).collect();
                        let sum = meeting.sum(rank, tensor(&mine));
                        let sum: Vec<f32> = sum.try_to_vec_as().expect("it reads back");
                        for (at, got) in (0..).zip(sum) {
                            let parts = (0..RANKS).map(|rank| value(rank, round, at));
                            let expect = parts.clone().reduce(|a, b| a + b).expect("ranks");
                            assert_eq!(got.to_bits(), expect.to_bits());
                            let backwards = parts.rev().reduce(|a, b| a + b).expect("ranks");
                            *differs.lock() |= backwards.to_bits() != expect.to_bits();
                        }
                    }
                });
            }
        });
        assert!(differs.into_inner(), "these numbers show no order");
    });
}

#[test]
fn progress_is_that_of_all_together() {
    let seen = Arc::new(Mutex::new(Vec::new()));
    let record = Arc::clone(&seen);
    let whole = LoadProgress::new(Heart::new(), move |loaded, total| {
        record.lock().push((loaded, total));
    });
    let progress = Arc::new(SharedProgress::new(2, whole));
    let ties = Arc::new(Ties {
        all_reduce: Arc::new(Meeting::new(2)),
        broken: AtomicBool::new(false),
    });
    let (one, other) = (progress.of(0, &ties), progress.of(1, &ties));
    one.set(0, 10);
    other.set(0, 30);
    one.set(10, 10);
    other.set(15, 30);
    assert_eq!(*seen.lock(), [(0, 10), (0, 40), (10, 40), (25, 40)]);
    ties.broken.store(true, Ordering::Release);
    let stopped = catch_unwind(AssertUnwindSafe(|| other.set(30, 30)));
    assert!(stopped.expect_err("a rank is gone").is::<PeerGone>());
}

/// The others' columns are theirs, bit for bit.
#[test]
fn logits_are_gathered_as_they_are() {
    in_time(|| {
        let all: Arc<dyn AllReduce> = Arc::new(Meeting::new(3));
        let ranges = [0..2, 2..3, 3..7];
        let threads: Vec<_> = ranges
            .into_iter()
            .enumerate()
            .map(|(rank, vocabulary)| {
                let all_reduce = Arc::clone(&all);
                std::thread::spawn(move || {
                    let mine: Vec<f32> = vocabulary.clone().map(|id| 0.1 + id as f32).collect();
                    let peers = Peers {
                        all_reduce,
                        rank,
                        vocabulary,
                    };
                    let logits = peers.gather_vocabulary(tensor(&mine), 7);
                    logits.try_to_vec_as::<f32>().expect("it reads back")
                })
            })
            .collect();
        let expect: Vec<f32> = (0..7).map(|id| 0.1 + id as f32).collect();
        for thread in threads {
            assert_eq!(thread.join().expect("no rank panics"), expect);
        }
    });
}
