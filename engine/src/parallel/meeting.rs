//! The sum between ranks that share one memory.

use burn::tensor::Tensor;
use parking_lot::{Condvar, Mutex};

use super::{AllReduce, leave};

/// Where ranks bring their tensors and wait for one another. The last to come adds them up in the
/// order of the ranks, whoever that is, so a sum has one order.
pub(crate) struct Meeting {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    /// Sums made so far.
    round: u64,
    /// What each rank has brought to this round.
    brought: Vec<Option<Tensor<2>>>,
    /// Of the last round. All have taken it before the next is made, because a rank brings nothing
    /// new until it has.
    sum: Option<Tensor<2>>,
    /// A rank is gone.
    broken: bool,
}

impl Meeting {
    pub(crate) fn new(num_ranks: usize) -> Self {
        Self {
            state: Mutex::new(State {
                round: 0,
                brought: vec![None; num_ranks],
                sum: None,
                broken: false,
            }),
            changed: Condvar::new(),
        }
    }
}

impl AllReduce for Meeting {
    fn sum(&self, rank: usize, x: Tensor<2>) -> Tensor<2> {
        let mut state = self.state.lock();
        let round = state.round;
        let before = state.brought[rank].replace(x);
        assert!(before.is_none(), "rank {rank} comes once to each round");
        if state.brought.iter().all(Option::is_some) {
            let parts = state.brought.iter_mut().filter_map(Option::take);
            state.sum = parts.reduce(|sum, part| {
                assert_eq!(sum.dims(), part.dims(), "ranks bring tensors of one shape");
                sum + part
            });
            state.round += 1;
            self.changed.notify_all();
        } else {
            self.changed
                .wait_while(&mut state, |state| state.round == round && !state.broken);
        }
        if state.round == round {
            drop(state);
            leave();
        }
        state.sum.clone().expect("the round has a sum")
    }

    fn break_up(&self) -> bool {
        self.state.lock().broken = true;
        self.changed.notify_all();
        true
    }
}
