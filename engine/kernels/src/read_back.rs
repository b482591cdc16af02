//! How many bytes of logits come back from a device, for benches and tests.

use std::cell::Cell;

thread_local! {
    static NUM_BYTES: Cell<u64> = const { Cell::new(0) };
}

/// Runs `f` and counts the bytes that this thread read back from a device meanwhile: shortlists, and
/// tensors by [`with_f32`](crate::with_f32). Zero on a processor, whose tensors are read in place.
pub fn count_read_back<R>(f: impl FnOnce() -> R) -> (R, u64) {
    let before = NUM_BYTES.get();
    let result = f();
    (result, NUM_BYTES.get() - before)
}

/// Notes one read-back.
pub(crate) fn note(num_bytes: usize) {
    NUM_BYTES.set(NUM_BYTES.get() + num_bytes as u64);
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Tensor};

    use super::*;

    #[test]
    fn what_is_noted_is_counted() {
        note(5);
        let (inner, outer) = count_read_back(|| {
            note(7);
            count_read_back(|| note(11)).1
        });
        assert_eq!([inner, outer], [11, 18]);
    }

    #[test]
    fn a_processor_reads_in_place() {
        let tensor: Tensor<1> = Tensor::ones([4], &Device::flex());
        let (sum, num_bytes) =
            count_read_back(|| crate::with_f32(&tensor, |values| values.iter().sum::<f32>()));
        assert_eq!((sum, num_bytes), (4.0, 0));
    }
}
