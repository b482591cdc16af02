//! Counts what a step read, for benches. Off, it costs a look at a thread's own flag per layer.

use std::cell::Cell;

use burn::tensor::{Int, Tensor};

thread_local! {
    static NUM_EXPERTS: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Runs `f` and counts the experts that its steps chose on this thread: each once per step and
/// layer, however many tokens chose it. Reads choices back from the device, so it is no time to take
/// times.
pub(crate) fn count_experts<R>(f: impl FnOnce() -> R) -> (R, u64) {
    let before = NUM_EXPERTS.replace(Some(0));
    let result = f();
    let counted = NUM_EXPERTS.replace(before);
    (result, counted.expect("set above"))
}

/// Notes the choices of one layer.
pub(crate) fn note_experts(ids: &Tensor<2, Int>) {
    let Some(count) = NUM_EXPERTS.get() else {
        return;
    };
    let mut ids: Vec<i64> = ids.clone().into_data().iter::<i64>().collect();
    ids.sort_unstable();
    ids.dedup();
    NUM_EXPERTS.set(Some(count + ids.len() as u64));
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, TensorData};

    use super::*;

    #[test]
    fn each_is_counted_once_a_layer() {
        let ids = TensorData::new(vec![3_i32, 1, 3, 7], [2, 2]);
        let ids: Tensor<2, Int> = Tensor::from_data(ids, &Device::flex());
        note_experts(&ids);
        let ((), count) = count_experts(|| {
            note_experts(&ids);
            note_experts(&ids);
        });
        assert_eq!(count, 6);
    }
}
