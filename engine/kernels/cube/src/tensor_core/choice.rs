//! Which way large products go in [`Arithmetic::Bf16AnyOrder`](crate::Arithmetic): the one that was
//! fastest when it was tried, on the very device and matrix.
//!
//! Trials are made while a thread is [`choosing`], for the life of the process: all threads go the way
//! that the first one chose, so that several devices compute the same from the same. What nobody tried
//! goes the way of a number of tokens that somebody did, and else the first way there is.

use std::cell::Cell;
use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, LazyLock, Mutex, OnceLock, PoisonError};

use super::plan::Shape;
use super::text::Unit;
use crate::Epilogue;

/// A way to make a large product.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Way {
    /// By our kernels, with this instruction.
    Own(Unit),
    /// By [`library`](super::library).
    Library,
}

/// What has a choice of its own, at each number of tokens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Case {
    /// The matrix.
    pub shape: Shape,
    /// Whether a bias is added.
    pub has_bias: bool,
    /// What comes after.
    pub epilogue: Epilogue,
}

/// What was chosen so far.
#[derive(Debug, Default)]
pub struct Choices(Mutex<HashMap<Case, Classes>>);

/// By class of tokens; empty while somebody tries.
type Classes = BTreeMap<usize, Arc<OnceLock<Way>>>;

impl Choices {
    /// The way of a case at so many tokens: as chosen, or as `choose` does. Who asks meanwhile waits, if
    /// it asks the same; not otherwise, since the one who chooses may have to wait for others' work.
    pub fn settle(&self, case: Case, t: usize, choose: impl FnOnce() -> Way) -> Way {
        let cell = {
            let mut cases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(cases.entry(case).or_default().entry(class(t)).or_default())
        };
        *cell.get_or_init(choose)
    }

    /// The choice for so many tokens, else for the next larger number, else for the next smaller one.
    pub fn nearest(&self, case: Case, t: usize) -> Option<Way> {
        let cases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let classes = cases.get(&case)?;
        let chosen = |(_, cell): (&usize, &Arc<OnceLock<Way>>)| cell.get().copied();
        let class = class(t);
        classes
            .range(class..)
            .find_map(chosen)
            .or_else(|| classes.range(..class).rev().find_map(chosen))
    }

    /// Everything chosen, sorted: for people.
    pub fn list(&self) -> Vec<(Case, usize, Way)> {
        let cases = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut list: Vec<_> = cases
            .iter()
            .flat_map(|(case, classes)| {
                let chosen = classes
                    .iter()
                    .filter_map(|(class, cell)| Some((*class, *cell.get()?)));
                chosen.map(|(class, way)| (*case, class, way))
            })
            .collect();
        list.sort_by_key(|(case, class, _)| {
            let Shape { n, k, format, .. } = case.shape;
            (n, k, format.code_bits(), case.has_bias, *class)
        });
        list
    }
}

/// Numbers of tokens that share a choice: up to the same power of two.
fn class(t: usize) -> usize {
    t.next_power_of_two()
}

/// How much faster a later way must be than an earlier one.
const NOISE: f64 = 0.02;

/// The way to take, of those that worked, by seconds: an earlier one, unless a later one is faster by
/// more than noise. `None` if none worked.
pub fn fastest(tried: &[(Way, Option<f64>)]) -> Option<Way> {
    let mut best: Option<(Way, f64)> = None;
    for &(way, seconds) in tried {
        let Some(seconds) = seconds else { continue };
        if best.is_none_or(|(_, least)| seconds < least * (1.0 - NOISE)) {
            best = Some((way, seconds));
        }
    }
    best.map(|(way, _)| way)
}

/// Of this process.
pub static CHOICES: LazyLock<Choices> = LazyLock::new(Choices::default);

thread_local! {
    static MODE: Cell<Mode> = const { Cell::new(Mode::Chosen) };
}

/// How a thread's large products find their way.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Mode {
    /// As chosen.
    Chosen,
    /// As chosen, or by trying.
    Choosing,
    /// This way.
    Forced(Way),
}

pub(super) fn mode() -> Mode {
    MODE.get()
}

/// Runs `f`; large products that it makes on this thread and that nobody chose a way for are made by
/// every way, timed and settled. It must not be recording: trials wait for the device.
pub fn choosing<R>(f: impl FnOnce() -> R) -> R {
    within(Mode::Choosing, f)
}

/// Runs `f` with large products of any order made this way on this thread, to test it.
pub fn forced<R>(way: Way, f: impl FnOnce() -> R) -> R {
    within(Mode::Forced(way), f)
}

fn within<R>(mode: Mode, f: impl FnOnce() -> R) -> R {
    /// Puts the thread's mode back, also after a panic.
    struct Restore(Mode);
    impl Drop for Restore {
        fn drop(&mut self) {
            MODE.set(self.0);
        }
    }
    let _restore = Restore(MODE.replace(mode));
    f()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Format;

    const WGMMA: Way = Way::Own(Unit::Wgmma);
    const MMA: Way = Way::Own(Unit::Mma);

    fn case(n: usize) -> Case {
        Case {
            shape: Shape {
                format: Format::Bf16,
                experts: 1,
                n,
                k: 4096,
            },
            has_bias: false,
            epilogue: Epilogue::None,
        }
    }

    #[test]
    fn the_fastest_is_taken_and_an_earlier_one_of_equals() {
        let check = |times: [Option<f64>; 3], want| {
            let tried = [WGMMA, MMA, Way::Library].into_iter().zip(times);
            assert_eq!(fastest(&tried.collect::<Vec<_>>()), want, "{times:?}");
        };
        check([Some(1.0), Some(2.0), Some(3.0)], Some(WGMMA));
        check([Some(2.0), Some(1.0), Some(3.0)], Some(MMA));
        check([Some(2.0), Some(1.5), Some(1.0)], Some(Way::Library));
        // What two runs of one kernel differ by.
        check([Some(1.0), Some(1.0), Some(0.99)], Some(WGMMA));
        check([Some(1.0), Some(1.0), Some(0.97)], Some(Way::Library));
        // What did not work is not taken, however little time it took.
        check([Some(1.0), Some(2.0), None], Some(WGMMA));
        check([None, Some(2.0), None], Some(MMA));
        check([None, None, None], None);
        assert_eq!(fastest(&[]), None);
    }

    #[test]
    fn a_choice_is_kept_and_serves_its_neighbours() {
        let choices = Choices::default();
        assert_eq!(choices.nearest(case(8192), 128), None);
        assert_eq!(choices.settle(case(8192), 200, || MMA), MMA);
        // Up to 256 tokens are one class.
        let again = choices.settle(case(8192), 130, || panic!("chosen already"));
        assert_eq!(again, MMA);
        assert_eq!(
            choices.settle(case(8192), 2048, || Way::Library),
            Way::Library
        );
        for (t, want) in [
            (65, MMA),
            (129, MMA),
            (256, MMA),
            (257, Way::Library),
            (2048, Way::Library),
            (9000, Way::Library),
        ] {
            assert_eq!(choices.nearest(case(8192), t), Some(want), "{t}");
        }
        let with_bias = Case {
            has_bias: true,
            ..case(8192)
        };
        assert_eq!(choices.nearest(with_bias, 2048), None);
        assert_eq!(choices.settle(case(16), 128, || WGMMA), WGMMA);
        let listed: Vec<_> = choices
            .list()
            .into_iter()
            .map(|(case, t, way)| (case.shape.n, t, way))
            .collect();
        assert_eq!(
            listed,
            [
                (16, 128, WGMMA),
                (8192, 256, MMA),
                (8192, 2048, Way::Library)
            ]
        );
    }

    #[test]
    fn who_asks_for_another_case_does_not_wait() {
        let choices = Choices::default();
        let way = choices.settle(case(1), 128, || {
            std::thread::scope(|scope| {
                let other = scope.spawn(|| choices.settle(case(2), 128, || Way::Library));
                other.join().expect("the other thread chooses")
            })
        });
        assert_eq!(way, Way::Library);
    }

    #[test]
    fn modes_are_a_threads_own_and_end() {
        choosing(|| {
            assert_eq!(mode(), Mode::Choosing);
            let within = forced(Way::Library, mode);
            assert_eq!(within, Mode::Forced(Way::Library));
            assert_eq!(mode(), Mode::Choosing);
            std::thread::scope(|scope| {
                let other = scope.spawn(mode);
                assert_eq!(other.join().expect("it only looks"), Mode::Chosen);
            });
        });
        assert_eq!(mode(), Mode::Chosen);
    }
}
