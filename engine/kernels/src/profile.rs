//! Where the time of a step goes, if somebody asks: the CPU's operations by name and shape.
//!
//! Scopes do not nest, so that times add up. Asking costs two looks at the clock per operation; not
//! asking, one at a thread's variable.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// All calls of an operation at one shape.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ProfileRow {
    /// Its name.
    pub operation: &'static str,
    /// Of a product outputs and inputs; else what tells it from others of its name.
    pub dims: [usize; 2],
    /// How often it was called.
    pub num_calls: u64,
    /// From call to return, over all calls.
    pub time: Duration,
    /// Read and written at least: what is stored once, what is computed once.
    pub bytes: u64,
    /// Multiplications and additions that it cannot do without.
    pub operations: u64,
}

/// What a call has to do at least.
#[derive(Clone, Copy, Debug, Default)]
pub struct Work {
    /// Read and written.
    pub bytes: usize,
    /// Multiplications and additions.
    pub operations: usize,
}

type Key = (&'static str, [usize; 2]);

thread_local! {
    static ROWS: RefCell<Option<BTreeMap<Key, ProfileRow>>> = const { RefCell::new(None) };
}

/// Runs `f`; says what the operations called from this thread took, the longest first.
pub fn profile<R>(f: impl FnOnce() -> R) -> (R, Vec<ProfileRow>) {
    ROWS.set(Some(BTreeMap::new()));
    let _off = Off;
    let result = f();
    let rows = ROWS.take().unwrap_or_default();
    let mut rows: Vec<ProfileRow> = rows.into_values().collect();
    rows.sort_by_key(|row| std::cmp::Reverse(row.time));
    (result, rows)
}

/// Nobody asks any more, also after a panic.
struct Off;

impl Drop for Off {
    fn drop(&mut self) {
        ROWS.set(None);
    }
}

/// Times what happens until it is dropped, if somebody asks.
#[must_use]
pub struct Scope(Option<(Key, Work, Instant)>);

/// Opens a scope; `work` is called if somebody asks.
pub fn scope(operation: &'static str, dims: [usize; 2], work: impl FnOnce() -> Work) -> Scope {
    let asked = ROWS.with_borrow(Option::is_some);
    Scope(asked.then(|| ((operation, dims), work(), Instant::now())))
}

impl Drop for Scope {
    fn drop(&mut self) {
        let Some((key, work, begin)) = self.0.take() else {
            return;
        };
        let time = begin.elapsed();
        ROWS.with_borrow_mut(|rows| {
            let Some(rows) = rows else {
                return;
            };
            let row = rows.entry(key).or_insert(ProfileRow {
                operation: key.0,
                dims: key.1,
                num_calls: 0,
                time: Duration::ZERO,
                bytes: 0,
                operations: 0,
            });
            row.num_calls += 1;
            row.time += time;
            row.bytes += work.bytes as u64;
            row.operations += work.operations as u64;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn call(dims: [usize; 2], bytes: usize) {
        let _scope = scope("test", dims, || Work {
            bytes,
            operations: 1,
        });
    }

    #[test]
    fn calls_of_a_shape_add_up_while_somebody_asks() {
        call([1, 1], 5);
        let (seven, rows) = profile(|| {
            call([2, 3], 5);
            call([2, 3], 6);
            call([4, 4], 1);
            7
        });
        call([2, 3], 5);
        assert_eq!(seven, 7);
        let mut found: Vec<_> = rows
            .iter()
            .map(|row| (row.dims, row.num_calls, row.bytes, row.operations))
            .collect();
        found.sort_unstable();
        assert_eq!(found, [([2, 3], 2, 11, 2), ([4, 4], 1, 1, 1)]);
        assert!(profile(|| ()).1.is_empty());
    }
}
