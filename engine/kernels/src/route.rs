//! Which of an operation's ways is taken: the CPU kernel for tensors on Flex, else the reference.

use std::cell::Cell;
use std::sync::atomic::{AtomicBool, Ordering};

use burn::tensor::{Device, Tensor, kind::Basic};
use burn_dispatch::DispatchDevice;

static FORCE_REFERENCE: AtomicBool = AtomicBool::new(false);

/// Sends every operation of this process to its reference, whatever the device.
///
/// For comparing a whole model run with and without our kernels; never on in service.
pub fn force_reference(on: bool) {
    FORCE_REFERENCE.store(on, Ordering::Relaxed);
}

thread_local! {
    static REFERENCE_HERE: Cell<bool> = const { Cell::new(false) };
}

/// Runs `f` with the operations called from this thread sent to their references.
pub fn with_reference<R>(f: impl FnOnce() -> R) -> R {
    let _restore = Restore(REFERENCE_HERE.replace(true));
    f()
}

/// Puts the thread's choice back, also after a panic.
struct Restore(bool);

impl Drop for Restore {
    fn drop(&mut self) {
        REFERENCE_HERE.set(self.0);
    }
}

/// Whether the device is the CPU backend, whose buffers our CPU kernels read and write.
pub fn is_cpu(device: &Device) -> bool {
    matches!(device.as_dispatch(), DispatchDevice::Flex(_))
}

/// Whether an operation on this tensor takes the CPU kernel.
pub(crate) fn takes_cpu<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> bool {
    !FORCE_REFERENCE.load(Ordering::Relaxed) && !REFERENCE_HERE.get() && is_cpu(&tensor.device())
}
