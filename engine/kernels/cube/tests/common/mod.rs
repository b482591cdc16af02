//! The device that kernels are tested on.

use cube_kernels::Client;
use cubecl::Device;

/// The first Vulkan device, on a processor if need be (lavapipe); `None`, said loudly, where the
/// machine has none and `NEMOSERVE_REQUIRE_VULKAN` does not insist.
pub(crate) fn client() -> Option<Client> {
    let device = Device::enumerate_all()
        .into_iter()
        .find(|device| matches!(device, Device::Wgpu(_)));
    if device.is_none() {
        assert!(
            std::env::var_os("NEMOSERVE_REQUIRE_VULKAN").is_none(),
            "no Vulkan device: install mesa-vulkan-drivers"
        );
        eprintln!("SKIPPED: no Vulkan device (install mesa-vulkan-drivers to run the GPU kernels)");
    }
    device.map(|device| device.client())
}
