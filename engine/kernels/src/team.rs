//! The threads that share the work inside one operation.

use std::cell::RefCell;
use std::sync::{Arc, PoisonError, RwLock};

use rayon::prelude::*;
use rayon::{ThreadPool, ThreadPoolBuilder};

/// Multiply-adds below which an operation stays on the calling thread. Handing work to sleeping
/// threads and waiting for them was measured at 11 to 15 us, and one AVX-512 core with its operands
/// in the cache computes about this much in 25 us: from here on two threads win.
const MIN_SHARED_COST: usize = 1_000_000;

/// Pieces per thread, so that a thread that was interrupted does not hold up the others.
const PIECES_PER_THREAD: usize = 4;

static TEAM: RwLock<Option<Arc<ThreadPool>>> = RwLock::new(None);

/// Sets the number of threads that share work inside an operation. Without it, all the cores that
/// the process may use. Results do not depend on it.
///
/// # Panics
/// If `n` is 0, or the system refuses the threads.
pub fn set_num_threads(n: usize) {
    assert!(n > 0, "at least one thread");
    let pool = build(n);
    *TEAM.write().unwrap_or_else(PoisonError::into_inner) = Some(pool);
}

thread_local! {
    static TEAM_HERE: RefCell<Option<Arc<ThreadPool>>> = const { RefCell::new(None) };
}

/// Gives the operations called from this thread a team of their own, until the thread ends. Several
/// models at work in one process, each on its thread, then neither wait for one another's threads
/// nor take more than their share. A team of one is the calling thread itself.
///
/// # Panics
/// If `n` is 0, or the system refuses the threads.
pub fn set_num_threads_here(n: usize) {
    assert!(n > 0, "at least one thread");
    let pool = build(n);
    TEAM_HERE.with_borrow_mut(|team| *team = Some(pool));
}

/// The number of threads that share work inside an operation called from this thread.
pub fn num_threads() -> usize {
    team().current_num_threads()
}

fn build(n: usize) -> Arc<ThreadPool> {
    let pool = ThreadPoolBuilder::new()
        .num_threads(n)
        .thread_name(|index| format!("kernels-{index}"))
        .build()
        .expect("the system gives threads to the kernels");
    Arc::new(pool)
}

fn team() -> Arc<ThreadPool> {
    if let Some(team) = TEAM_HERE.with_borrow(Clone::clone) {
        return team;
    }
    if let Some(team) = &*TEAM.read().unwrap_or_else(PoisonError::into_inner) {
        return Arc::clone(team);
    }
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    let mut slot = TEAM.write().unwrap_or_else(PoisonError::into_inner);
    Arc::clone(slot.get_or_insert_with(|| build(cores)))
}

/// Calls `f(0..num_jobs)`, each once, on the team if `cost` (in multiply-adds) is worth it. Also for
/// host-side work between operations, so that it runs on the threads that it was granted.
pub fn share(num_jobs: usize, cost: usize, f: impl Fn(usize) + Sync) {
    if num_jobs > 1 && cost >= MIN_SHARED_COST {
        let team = team();
        if team.current_num_threads() > 1 {
            team.install(|| {
                (0..num_jobs).into_par_iter().with_max_len(1).for_each(&f);
            });
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
            .min(cost / (MIN_SHARED_COST / 8))
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
                        share(8, MIN_SHARED_COST, |_| {
                            done.fetch_add(1, Ordering::Relaxed);
                        });
                    }
                    assert_eq!(done.into_inner(), 400);
                });
            }
        });
    }
}
