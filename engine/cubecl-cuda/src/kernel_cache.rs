//! Compiled kernels kept outside of this process. Not part of the published crate.

use std::sync::OnceLock;

/// Keeps compiled kernels by what they were compiled from. What it cannot find or keep is compiled
/// again: nothing here is an error.
pub trait KernelCache: Send + Sync {
    /// The module that was stored under this key.
    fn lookup(&self, key: &[&[u8]]) -> Option<Vec<u8>>;

    /// Keeps a module: a cubin, or PTX with the zero at its end.
    fn store(&self, key: &[&[u8]], module: &[u8]);
}

static CACHE: OnceLock<Box<dyn KernelCache>> = OnceLock::new();

/// Keeps every kernel that is compiled from here on. The first call counts; whether this one did.
pub fn set_kernel_cache(cache: Box<dyn KernelCache>) -> bool {
    CACHE.set(cache).is_ok()
}

pub(crate) fn kernel_cache() -> Option<&'static dyn KernelCache> {
    CACHE.get().map(AsRef::as_ref)
}
