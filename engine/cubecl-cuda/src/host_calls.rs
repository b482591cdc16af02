//! Launches that the host carries out itself, on the launch's stream: calls of a library. Not part of the
//! published crate.

use std::any::Any;
use std::ffi::c_void;
use std::sync::OnceLock;

/// Where a launch goes.
#[derive(Clone, Copy, Debug)]
pub struct HostCall<'a> {
    /// The device's number; its context is the thread's current one.
    pub device: u32,
    /// A `CUstream`.
    pub stream: *mut c_void,
    /// The launch's buffers on the device, in its order.
    pub pointers: &'a [u64],
}

/// Takes kernels that are no kernels.
pub trait HostCalls: Send + Sync {
    /// Whether it carries out this one.
    fn takes(&self, kernel: &dyn Any) -> bool;

    /// Enqueues on the stream what the kernel stands for, and neither waits nor allocates. An error stays
    /// on the buffers that it was to write, as a refused launch does.
    ///
    /// # Safety
    /// `call` is as described, and its buffers stay until the stream has come past what is enqueued.
    unsafe fn enqueue(&self, kernel: &dyn Any, call: HostCall<'_>) -> Result<(), String>;
}

static CALLS: OnceLock<Box<dyn HostCalls>> = OnceLock::new();

/// Asks it first about every launch from here on. The first call counts; whether this one did.
pub fn set_host_calls(calls: Box<dyn HostCalls>) -> bool {
    CALLS.set(calls).is_ok()
}

pub(crate) fn host_calls(kernel: &dyn Any) -> Option<&'static dyn HostCalls> {
    let calls = CALLS.get()?;
    calls.takes(kernel).then_some(calls.as_ref())
}
