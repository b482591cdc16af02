//! Whether the planes of a cube may share memory.
//!
//! Where Vulkan lacks `VK_KHR_workgroup_memory_explicit_layout`, as lavapipe does, cubecl-spirv
//! 0.11.3 declares shared memory as a pointer to itself (`lower_shared_implicit` swaps the types of
//! the variable and of its address), and drivers crash on it while they compile. Kernels therefore
//! use shared memory only on CUDA, and have a way of one plane per cube for everything else.
//!
//! With the two types swapped back in a copy of the crate, the tests run the shared way on lavapipe:
//!
//! ```text
//! NEMOSERVE_SHARED_MEMORY=1 cargo test -p cube-kernels \
//!     --config 'patch.crates-io.cubecl-spirv.path="/path/to/copy"'
//! ```

use std::sync::atomic::{AtomicBool, Ordering};

use cubecl::client::Client;

static IS_TRUSTED: AtomicBool = AtomicBool::new(false);

/// Lets kernels use shared memory on every device of the process. For tests that know better.
pub fn trust_shared_memory() {
    IS_TRUSTED.store(true, Ordering::Relaxed);
}

/// Whether kernels may use it on this device.
pub(crate) fn shares_memory(client: &Client) -> bool {
    client.name() == "cuda" || IS_TRUSTED.load(Ordering::Relaxed)
}
