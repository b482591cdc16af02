//! The threads that share the work inside one operation.
//!
//! A team is the calling thread and helpers that wait for its next operation: spinning for as long as
//! the gap between two operations of a step usually lasts, then asleep. Pieces are taken one by one,
//! so that a helper whose core is busy with something else takes fewer. `crew.rs` has the helpers.

mod crew;

use std::cell::RefCell;
use std::sync::{Arc, PoisonError, RwLock};

use self::crew::Crew;

/// Multiply-adds below which an operation stays on the calling thread: one AVX-512 core with its
/// operands in the cache computes about this much in two microseconds, and a helper that is awake
/// needs half of one to begin.
const MIN_SHARED_COST: usize = 200_000;

/// Multiply-adds from which sleeping helpers are woken: that takes the caller some microseconds.
const MIN_WAKING_COST: usize = 2_000_000;

/// Pieces per thread, so that a thread that was interrupted does not hold up the others.
const PIECES_PER_THREAD: usize = 8;

/// Multiply-adds of a piece, unless the granularity says otherwise: taking one costs little beside the
/// least, and nobody waits long for whoever is interrupted within the most.
const PIECE_COST: std::ops::Range<usize> = 50_000..64_000_000;

static TEAM: RwLock<Option<Arc<Crew>>> = RwLock::new(None);

/// Sets the number of threads that share work inside an operation. Without it, all the cores that
/// the process may use. Results do not depend on it.
///
/// # Panics
/// If `n` is 0, or the system refuses the threads.
pub fn set_num_threads(n: usize) {
    let crew = Arc::new(Crew::new(n));
    *TEAM.write().unwrap_or_else(PoisonError::into_inner) = Some(crew);
}

thread_local! {
    static TEAM_HERE: RefCell<Option<Arc<Crew>>> = const { RefCell::new(None) };
}

/// Gives the operations called from this thread a team of their own, until the thread ends. Several
/// models at work in one process, each on its thread, then neither wait for one another's threads
/// nor take more than their share. A team of one is the calling thread itself.
///
/// # Panics
/// If `n` is 0, or the system refuses the threads.
pub fn set_num_threads_here(n: usize) {
    let crew = Arc::new(Crew::new(n));
    TEAM_HERE.with_borrow_mut(|team| *team = Some(crew));
}

/// The number of threads that share work inside an operation called from this thread.
pub fn num_threads() -> usize {
    team().num_threads()
}

fn team() -> Arc<Crew> {
    if let Some(team) = TEAM_HERE.with_borrow(Clone::clone) {
        return team;
    }
    if let Some(team) = &*TEAM.read().unwrap_or_else(PoisonError::into_inner) {
        return Arc::clone(team);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut slot = TEAM.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(slot.get_or_insert_with(|| Arc::new(Crew::new(cores))))
}

/// Calls `f(0..num_jobs)`, each once, on the team if `cost` (in multiply-adds) is worth it. Also for
/// host-side work between operations, so that it runs on the threads that it was granted. A call from
/// within a job, or while another thread has the team, runs on the calling thread alone.
///
/// # Panics
/// If `f` does: with what it panicked with, once no job runs any more.
pub fn share(num_jobs: usize, cost: usize, f: impl Fn(usize) + Sync) {
    if num_jobs > 1 && cost >= MIN_SHARED_COST {
        let wakes = cost >= MIN_WAKING_COST;
        if team().share(num_jobs, cost / num_jobs, wakes, &f) {
            return;
        }
    }
    (0..num_jobs).for_each(f);
}

/// How many pieces to cut `num_items` of work into, each a multiple of `granularity` items and
/// worth handing over. Returns the items per piece.
pub(crate) fn piece_len(num_items: usize, granularity: usize, cost: usize) -> usize {
    let threads = if cost >= MIN_SHARED_COST {
        num_threads()
    } else {
        1
    };
    let pieces = if threads == 1 {
        1
    } else {
        (threads * PIECES_PER_THREAD)
            .min(cost / PIECE_COST.start)
            .max(cost / PIECE_COST.end)
            .max(1)
    };
    num_items
        .div_ceil(pieces)
        .next_multiple_of(granularity)
        .max(granularity)
}

/// A pointer that the jobs of one operation write through, each to its own part.
#[derive(Clone, Copy)]
pub(crate) struct SharedMut<T>(*mut T);

// SAFETY: the pointer is only a number until `at` is dereferenced, and whoever does that promises
// that no other job touches the same elements.
#[allow(unsafe_code)]
unsafe impl<T: Send> Send for SharedMut<T> {}
// SAFETY: as above.
#[allow(unsafe_code)]
unsafe impl<T: Send> Sync for SharedMut<T> {}

impl<T> SharedMut<T> {
    /// Borrows the elements for the jobs of one operation.
    pub(crate) fn new(elements: &mut [T]) -> Self {
        Self(elements.as_mut_ptr())
    }

    /// The address of an element, not yet touched.
    pub(crate) fn at(self, index: usize) -> *mut T {
        self.0.wrapping_add(index)
    }

    /// The same elements, counted from `index` on.
    pub(crate) fn offset(self, index: usize) -> Self {
        Self(self.at(index))
    }

    /// The elements `start..start + len`.
    ///
    /// # Safety
    /// They lie inside the slice given to [`new`](Self::new), which is still borrowed, and no one
    /// else touches them while the result lives.
    #[allow(unsafe_code)]
    pub(crate) unsafe fn slice<'a>(self, start: usize, len: usize) -> &'a mut [T] {
        // SAFETY: the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.at(start), len) }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    /// Jobs that are worth sharing, from two threads at once: each has its own team, and all jobs
    /// of both are done.
    #[test]
    fn teams_of_two_threads_do_not_wait_for_each_other() {
        let together = Barrier::new(2);
        std::thread::scope(|scope| {
            for n in [1, 3] {
                let together = &together;
                scope.spawn(move || {
                    set_num_threads_here(n);
                    assert_eq!(num_threads(), n);
                    let done = AtomicUsize::new(0);
                    for _ in 0..50 {
                        together.wait();
                        share(8, MIN_WAKING_COST, |_| {
                            done.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                    assert_eq!(done.into_inner(), 400);
                });
            }
        });
    }

    /// One team for two threads: whoever does not get it works alone, and nothing is lost.
    #[test]
    fn threads_that_want_one_team_do_not_wait_for_each_other() {
        let crew = Crew::new(2);
        let together = Barrier::new(2);
        let done = AtomicUsize::new(0);
        let job = |_: usize| {
            done.fetch_add(1, Ordering::Relaxed);
        };
        std::thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    together.wait();
                    for _ in 0..200 {
                        if !crew.share(8, MIN_WAKING_COST, true, &job) {
                            (0..8).for_each(job);
                        }
                    }
                });
            }
        });
        assert_eq!(done.into_inner(), 2 * 200 * 8);
    }

    /// Cuts are whole granules, and pieces of a long prompt's product stay short.
    #[test]
    fn pieces_are_neither_crumbs_nor_boulders() {
        std::thread::scope(|scope| {
            scope.spawn(|| {
                set_num_threads_here(2);
                let check = |items, granularity, cost, want| {
                    assert_eq!(piece_len(items, granularity, cost), want);
                };
                check(4096, 8, MIN_SHARED_COST - 1, 4096);
                check(4096, 8, MIN_SHARED_COST, 1024);
                check(4096, 8, 4_000_000, 256);
                check(4096, 8, 6_400_000_000, 48);
                check(16, 8, 6_400_000_000, 8);
                check(0, 8, 0, 8);
            });
        });
    }
}
