//! Helpers that wait for operations.
//!
//! One operation at a time is open. Helpers enter it, take pieces until none is left, and leave; the
//! caller works along, then closes it and waits until those who entered have left. So a helper that
//! wakes up late finds a closed operation and costs nobody anything, and what an operation borrows is
//! borrowed while somebody is inside and no longer.
//!
//! The gate is one word: the number of the operation, how many helpers are inside, and whether it is
//! open. It is changed at once or not at all, so that nobody enters what was closed.
//!
//! Whoever shares a core with another process is interrupted for milliseconds, and when that happens
//! inside a piece all wait for it. A helper that notices (a piece took far longer than it can) rests
//! between pieces for a while: it then uses no more than its share of the core, and the system has no
//! reason to interrupt it.
#![allow(unsafe_code)]

use std::any::Any;
use std::cell::UnsafeCell;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, TryLockError};
use std::thread::{self, JoinHandle, Thread};
use std::time::{Duration, Instant};

/// How long a helper spins for the next operation: longer than what lies between two operations of a
/// step, shorter than what lies between two steps of a server that has little to do.
const SPIN: Duration = Duration::from_micros(60);

/// Looks at the gate between two looks at the clock.
const LOOKS: u32 = 32;

/// A piece was interrupted if it took longer than this,
const INTERRUPTED: Duration = Duration::from_millis(1);
/// and so many times as long as pieces of its cost usually take: operations differ, but not so much.
const LATE: f64 = 8.0;
/// For how long a helper that was interrupted is careful.
const CAREFUL: Duration = Duration::from_millis(200);
/// What a careful helper works before it rests, and how long that is.
const STINT: Duration = Duration::from_millis(1);
const REST: Duration = Duration::from_micros(1500);

/// The gate's bit of an open operation.
const OPEN: u64 = 1;
/// One helper inside.
const ONE: u64 = 2;
/// All helpers inside.
const INSIDE: u64 = (1 << 32) - ONE;
/// The operation's number begins here.
const NUMBER: u32 = 32;

/// What somebody panicked with.
type Panic = Box<dyn Any + Send>;

/// The calling thread's helpers.
pub(super) struct Crew {
    hall: Arc<Hall>,
    helpers: Vec<(Thread, JoinHandle<()>)>,
    /// Held by whoever has an operation open.
    caller: Mutex<()>,
}

/// What caller and helpers share.
struct Hall {
    gate: AtomicU64,
    operation: UnsafeCell<Operation>,
    /// The next piece to be taken.
    next: AtomicUsize,
    /// The first panic of a helper in the open operation.
    panic: Mutex<Option<Panic>>,
    /// One per helper: whether it is about to sleep or sleeps.
    asleep: Vec<AtomicBool>,
    quits: AtomicBool,
}

/// What is to be done.
struct Operation {
    /// `None` before the first. The borrow is as long as the operation is open and somebody inside.
    job: Option<*const (dyn Fn(usize) + Sync)>,
    num_jobs: usize,
    /// About how many multiply-adds a piece is.
    cost: usize,
}

// SAFETY: `operation` is written by whoever holds `caller`, while the gate is closed and nobody inside,
// and read by those who entered since: entering takes the gate's word with acquire after the caller
// published it with release. What `job` points to is `Sync`. Everything else is `Sync` by itself.
unsafe impl Sync for Hall {}
// SAFETY: as above; no part belongs to a thread.
unsafe impl Send for Hall {}

impl Crew {
    /// A team of `n`, the calling thread included.
    ///
    /// # Panics
    /// If `n` is 0, or the system refuses the threads.
    pub(super) fn new(n: usize) -> Self {
        assert!(n > 0, "at least one thread");
        let hall = Arc::new(Hall {
            gate: AtomicU64::new(0),
            operation: UnsafeCell::new(Operation {
                job: None,
                num_jobs: 0,
                cost: 0,
            }),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            asleep: (1..n).map(|_| AtomicBool::new(false)).collect(),
            quits: AtomicBool::new(false),
        });
        let helper = |index: usize| {
            let hall = Arc::clone(&hall);
            let handle = thread::Builder::new()
                .name(format!("kernels-{index}"))
                .spawn(move || hall.help(index))
                .expect("the system gives threads to the kernels");
            (handle.thread().clone(), handle)
        };
        let helpers = (0..n - 1).map(helper).collect();
        Self {
            hall,
            helpers,
            caller: Mutex::new(()),
        }
    }

    pub(super) fn num_threads(&self) -> usize {
        self.helpers.len() + 1
    }

    /// Calls `job(0..num_jobs)`, each once, and returns true; or returns false without a call, if there
    /// is nobody to share with. Helpers that sleep are woken only if asked for. Each piece takes about
    /// `cost` multiply-adds.
    ///
    /// # Panics
    /// If a job does; the others may then be left out.
    pub(super) fn share(
        &self,
        num_jobs: usize,
        cost: usize,
        wakes: bool,
        job: &(dyn Fn(usize) + Sync),
    ) -> bool {
        if self.helpers.is_empty() {
            return false;
        }
        // Somebody else's operation is open, or our own around this call.
        let caller = match self.caller.try_lock() {
            Ok(caller) => caller,
            Err(TryLockError::Poisoned(poisoned)) => poisoned.into_inner(),
            Err(TryLockError::WouldBlock) => return false,
        };
        let hall = &*self.hall;
        // SAFETY: only the lifetime of the borrow changes (a cast cannot lengthen it). It is over when this function returns; by
        // then the gate is closed and nobody inside, and whoever enters later enters another operation.
        #[allow(clippy::transmute_ptr_to_ptr)]
        let erased = unsafe {
            std::mem::transmute::<
                *const (dyn Fn(usize) + Sync + '_),
                *const (dyn Fn(usize) + Sync + 'static),
            >(std::ptr::from_ref(job))
        };
        // SAFETY: the gate is closed and nobody inside, as every operation leaves it, and nobody else
        // writes: we are the caller.
        unsafe {
            *hall.operation.get() = Operation {
                job: Some(erased),
                num_jobs,
                cost,
            };
        }
        hall.next.store(0, Ordering::Relaxed);
        let number = (hall.gate.load(Ordering::Relaxed) >> NUMBER).wrapping_add(1);
        // Sequentially consistent with `wait`: either a helper that is about to sleep sees this word, or
        // we see that it is.
        hall.gate.store(number << NUMBER | OPEN, Ordering::SeqCst);
        if wakes {
            for (asleep, (thread, _)) in hall.asleep.iter().zip(&self.helpers).take(num_jobs - 1) {
                if asleep.load(Ordering::SeqCst) && asleep.swap(false, Ordering::SeqCst) {
                    thread.unpark();
                }
            }
        }
        let own = catch_unwind(AssertUnwindSafe(|| {
            while let Some(index) = hall.take(num_jobs) {
                job(index);
            }
        }));
        if own.is_err() {
            hall.next.store(num_jobs, Ordering::Relaxed);
        }
        hall.close();
        let theirs = hall.lock_panic().take();
        drop(caller);
        if let Some(panic) = own.err().or(theirs) {
            resume_unwind(panic);
        }
        true
    }
}

impl Drop for Crew {
    fn drop(&mut self) {
        self.hall.quits.store(true, Ordering::SeqCst);
        for (thread, handle) in self.helpers.drain(..) {
            thread.unpark();
            // A helper contains the panics of its jobs and has none of its own.
            handle.join().expect("a helper returns");
        }
    }
}

impl Hall {
    /// The next piece, if one is left.
    fn take(&self, num_jobs: usize) -> Option<usize> {
        let index = self.next.fetch_add(1, Ordering::Relaxed);
        (index < num_jobs).then_some(index)
    }

    /// Lets nobody in any more and waits until all are out.
    fn close(&self) {
        self.gate.fetch_and(!OPEN, Ordering::AcqRel);
        let mut looks = 0_u32;
        while self.gate.load(Ordering::Acquire) & INSIDE != 0 {
            looks += 1;
            if looks.is_multiple_of(64 * LOOKS) {
                // Whoever we wait for may want this core.
                thread::yield_now();
            } else {
                std::hint::spin_loop();
            }
        }
    }

    fn lock_panic(&self) -> std::sync::MutexGuard<'_, Option<Panic>> {
        self.panic.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A helper's life.
    fn help(&self, index: usize) {
        let mut pace = Pace::default();
        let mut number = 0;
        while let Some(new) = self.wait(index, number) {
            number = new;
            // A long operation is still open after a rest.
            loop {
                if let Some(rest) = pace.rest(Instant::now()) {
                    thread::sleep(rest);
                }
                if !self.enter(number) {
                    break;
                }
                let is_done = self.work(&mut pace);
                self.gate.fetch_sub(ONE, Ordering::Release);
                if is_done {
                    break;
                }
            }
        }
    }

    /// The number of the operation after `number`, once there is one; `None` at the end.
    fn wait(&self, index: usize, number: u64) -> Option<u64> {
        let mut begin = Instant::now();
        loop {
            for _ in 0..LOOKS {
                let now = self.gate.load(Ordering::Acquire) >> NUMBER;
                if now != number {
                    return Some(now);
                }
                std::hint::spin_loop();
            }
            if self.quits.load(Ordering::SeqCst) {
                return None;
            }
            if begin.elapsed() < SPIN {
                continue;
            }
            let asleep = &self.asleep[index];
            asleep.store(true, Ordering::SeqCst);
            if self.gate.load(Ordering::SeqCst) >> NUMBER == number
                && !self.quits.load(Ordering::SeqCst)
            {
                thread::park();
            }
            asleep.store(false, Ordering::SeqCst);
            begin = Instant::now();
        }
    }

    /// Whether the operation was still open, and this helper is inside.
    fn enter(&self, number: u64) -> bool {
        let mut gate = self.gate.load(Ordering::Acquire);
        while gate >> NUMBER == number && gate & OPEN != 0 {
            match self.gate.compare_exchange_weak(
                gate,
                gate + ONE,
                Ordering::AcqRel,
                Ordering::Acquire,
            ) {
                Ok(_) => return true,
                Err(now) => gate = now,
            }
        }
        false
    }

    /// Takes pieces until none is left, or the helper has to rest. Whether none is left.
    fn work(&self, pace: &mut Pace) -> bool {
        // SAFETY: we are inside, so nobody writes the operation before we leave.
        let operation = unsafe { &*self.operation.get() };
        let job = operation.job.expect("the operation that is open has a job");
        // SAFETY: the caller keeps what it borrows until we have left.
        let job = unsafe { &*job };
        let result = catch_unwind(AssertUnwindSafe(|| {
            let mut begin = Instant::now();
            while let Some(index) = self.take(operation.num_jobs) {
                job(index);
                let end = Instant::now();
                if pace.has_to_rest(end - begin, operation.cost, end) {
                    return false;
                }
                begin = end;
            }
            true
        }));
        result.unwrap_or_else(|panic| {
            self.next.store(operation.num_jobs, Ordering::Relaxed);
            self.lock_panic().get_or_insert(panic);
            true
        })
    }
}

/// How much of its core a helper takes.
#[derive(Default)]
struct Pace {
    /// Seconds that a multiply-add usually takes, once one was timed.
    usual: Option<f64>,
    /// Until when it is careful.
    careful: Option<Instant>,
    /// What it worked since it rested.
    worked: Duration,
}

impl Pace {
    /// Notes that a piece of some multiply-adds took `time`. Whether the helper has worked enough for now.
    fn has_to_rest(&mut self, time: Duration, cost: usize, now: Instant) -> bool {
        let rate = time.as_secs_f64() / cost.max(1) as f64;
        let usual = self.usual.unwrap_or(rate);
        if time > INTERRUPTED && rate > LATE * usual {
            self.careful = Some(now + CAREFUL);
            self.worked = STINT;
        }
        // What is always slow becomes usual after a while.
        self.usual = Some(usual + (rate.min(LATE * usual) - usual) / 16.0);
        if self.careful.is_none() {
            return false;
        }
        self.worked += time;
        self.worked >= STINT
    }

    /// How long the helper has to rest before it enters another operation, if at all.
    fn rest(&mut self, now: Instant) -> Option<Duration> {
        if now > self.careful? {
            self.careful = None;
            self.worked = Duration::ZERO;
        }
        if self.worked < STINT {
            return None;
        }
        self.worked = Duration::ZERO;
        Some(REST)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;

    use super::*;

    const COST: usize = 1000;

    /// Until a helper sleeps, or is about to.
    fn asleep(crew: &Crew) {
        let begin = Instant::now();
        let all = || crew.hall.asleep.iter().all(|a| a.load(Ordering::SeqCst));
        while !all() {
            assert!(
                begin.elapsed() < Duration::from_secs(30),
                "nobody goes to sleep"
            );
            thread::yield_now();
        }
    }

    /// Every job once, whether there are fewer than threads or many more, and whether helpers spin or
    /// sleep.
    #[test]
    fn every_job_is_done_once() {
        for num_threads in [2, 3, 5] {
            let crew = Crew::new(num_threads);
            for round in 0..300 {
                let num_jobs = 2 + round % 37;
                let done: Vec<AtomicUsize> = (0..num_jobs).map(|_| AtomicUsize::new(0)).collect();
                let wakes = round % 3 != 0;
                assert!(crew.share(num_jobs, COST, wakes, &|job| {
                    done[job].fetch_add(1, Ordering::Relaxed);
                }));
                assert!(done.iter().all(|done| done.load(Ordering::Relaxed) == 1));
                if round % 50 == 0 {
                    asleep(&crew);
                }
            }
        }
    }

    /// Two jobs that wait for one another: only two threads at once can do them, one of which slept.
    #[test]
    fn a_sleeping_helper_is_woken() {
        let crew = Crew::new(2);
        for _ in 0..20 {
            asleep(&crew);
            let together = Barrier::new(2);
            assert!(crew.share(2, COST, true, &|_| {
                together.wait();
            }));
        }
    }

    #[test]
    fn a_call_from_a_job_runs_alone() {
        let crew = Crew::new(2);
        let done = AtomicUsize::new(0);
        assert!(crew.share(4, COST, true, &|_| {
            assert!(!crew.share(4, COST, true, &|_| unreachable!("the team is taken")));
            done.fetch_add(1, Ordering::Relaxed);
        }));
        assert_eq!(done.into_inner(), 4);
    }

    #[test]
    fn a_team_of_one_shares_nothing() {
        assert!(!Crew::new(1).share(4, COST, true, &|_| unreachable!("nobody to share with")));
    }

    /// Whoever panics, the caller hears of it when all are out, and the team goes on.
    #[test]
    fn panics_reach_the_caller() {
        let crew = Crew::new(2);
        for by_caller in [true, false] {
            let caller = thread::current().id();
            let together = Barrier::new(2);
            let panic = catch_unwind(AssertUnwindSafe(|| {
                crew.share(2, COST, true, &|_| {
                    together.wait();
                    assert!(
                        (thread::current().id() == caller) != by_caller,
                        "as tests do"
                    );
                })
            }));
            let panic = panic.expect_err("a job panicked");
            assert_eq!(panic.downcast_ref::<&str>(), Some(&"as tests do"));
            let done = AtomicUsize::new(0);
            assert!(crew.share(16, COST, true, &|_| {
                done.fetch_add(1, Ordering::Relaxed);
            }));
            assert_eq!(done.into_inner(), 16);
        }
    }

    /// Helpers that have to rest within an operation come back to it as long as it is open.
    #[test]
    fn who_rests_comes_back() {
        let crew = Crew::new(2);
        let caller = thread::current().id();
        let num_helped = AtomicUsize::new(0);
        let nap = |time| {
            if thread::current().id() != caller {
                num_helped.fetch_add(1, Ordering::Relaxed);
            }
            thread::sleep(time);
        };
        // What is usual, and then a piece of which each thread takes one, and takes long.
        assert!(crew.share(64, COST, true, &|_| nap(Duration::from_micros(50))));
        let together = Barrier::new(2);
        assert!(crew.share(2, COST, true, &|_| {
            together.wait();
            nap(50 * INTERRUPTED);
        }));
        let before = num_helped.load(Ordering::Relaxed);
        assert!(crew.share(40, COST, true, &|_| nap(2 * STINT)));
        let helped = num_helped.into_inner() - before;
        assert!(helped > 4, "{helped} of 40 pieces by the helper");
    }

    #[test]
    fn who_is_interrupted_rests_for_a_while() {
        let mut pace = Pace::default();
        let usual = Duration::from_micros(300);
        let now = Instant::now();
        for _ in 0..100 {
            assert!(!pace.has_to_rest(usual, COST, now));
            // A larger piece takes longer.
            assert!(!pace.has_to_rest(20 * usual, 20 * COST, now));
            assert_eq!(pace.rest(now), None);
        }
        assert!(pace.has_to_rest(20 * usual, COST, now));
        assert_eq!((pace.rest(now), pace.rest(now)), (Some(REST), None));
        // A stint is several pieces.
        assert!(!pace.has_to_rest(STINT / 2, 2 * COST, now));
        assert!(pace.has_to_rest(STINT / 2, 2 * COST, now));
        assert_eq!((pace.rest(now), pace.rest(now)), (Some(REST), None));
        // Long after, it is as if nothing had been.
        let later = now + 2 * CAREFUL;
        assert_eq!(pace.rest(later), None);
        assert!(!pace.has_to_rest(STINT, 4 * COST, later));
    }
}
