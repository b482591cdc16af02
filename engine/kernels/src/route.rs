//! Which of an operation's ways is taken: the CPU kernel for tensors on Flex, the CubeCL kernel for
//! tensors on a GPU, else the reference.

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

/// Whether the device is one that CubeCL speaks to.
pub fn is_gpu(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    return matches!(device.as_dispatch(), DispatchDevice::Cube(_));
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        false
    }
}

/// Whether [`Arithmetic`](crate::Arithmetic)s that round go to tensor cores on this device.
pub fn has_tensor_cores(device: &Device) -> bool {
    #[cfg(feature = "cube")]
    return crate::cube::client(device)
        .is_some_and(|client| cube_kernels::tensor_core::supports(&client));
    #[cfg(not(feature = "cube"))]
    {
        let _ = device;
        false
    }
}

/// Kinds of tensors that a GPU can hold; all of them in builds for none.
#[cfg(feature = "cube")]
pub(crate) use crate::cube::Kind as OnGpu;
#[cfg(not(feature = "cube"))]
pub(crate) trait OnGpu {}
#[cfg(not(feature = "cube"))]
impl<K> OnGpu for K {}

/// The ways of an operation.
pub(crate) enum Way {
    Cpu,
    #[cfg(feature = "cube")]
    Cube,
    Reference,
}

/// Which way an operation on this tensor takes.
pub(crate) fn way<const D: usize, K: Basic>(tensor: &Tensor<D, K>) -> Way {
    if FORCE_REFERENCE.load(Ordering::Relaxed) || REFERENCE_HERE.get() {
        return Way::Reference;
    }
    match tensor.device().as_dispatch() {
        DispatchDevice::Flex(_) => Way::Cpu,
        #[cfg(feature = "cube")]
        DispatchDevice::Cube(_) => Way::Cube,
        #[allow(unreachable_patterns)] // Devices that other features would bring.
        _ => Way::Reference,
    }
}

/// Takes the way of a tensor.
macro_rules! route {
    ($tensor:expr, cpu: $cpu:expr, cube: $cube:expr, reference: $reference:expr $(,)?) => {
        match $crate::route::way($tensor) {
            $crate::route::Way::Cpu => $cpu,
            #[cfg(feature = "cube")]
            $crate::route::Way::Cube => $cube,
            $crate::route::Way::Reference => $reference,
        }
    };
}
pub(crate) use route;
