//! The sum over several GPUs: NCCL's all-reduce, which Burn reaches through the device's client.
//!
//! NCCL is loaded when the first device opens and never linked. Between ranks that share one memory
//! there is nothing to do here: whoever runs them adds their tensors.

use burn::tensor::distributed::{self, ReduceOperation};
use burn::tensor::{Device, Tensor};

/// `sum_r x_r` over the devices `r`, each of which must call this from its own thread, with a tensor
/// of one shape and the same list. The call waits for nobody: it queues the sum on the device's
/// communication stream and makes the device's own stream wait for it.
///
/// Shapes: `x` F32 `[T, N]` on one of `devices`; returns the same. It moves `2 (R - 1) / R` times the
/// bytes of `x` over the links of each of `R` devices. Every rank gets the same bits: each element
/// is added up in one place and sent to the others. In which order depends on the algorithm that
/// NCCL picks by size and topology; `NCCL_ALGO=Ring` fixes it.
///
/// **Compiled, never run**: no machine with two GPUs was at hand.
///
/// # Panics
/// On devices without such a transport; see [`can_all_reduce`].
pub fn all_reduce(x: Tensor<2>, devices: &[Device]) -> Tensor<2> {
    distributed::all_reduce(x, ReduceOperation::Sum, devices.to_vec()).resolve()
}

/// Whether these devices can, or what is missing, in words for the operator. Opens the device.
pub fn can_all_reduce(devices: &[Device]) -> Result<(), String> {
    match devices.iter().find(|device| !has_transport(device)) {
        None => Ok(()),
        Some(device) => Err(format!(
            "several ranks on {device:?} need NCCL, and the system's loader finds no libnccl.so.2: \
             install it (Debian, Ubuntu: libnccl2) or name its folder in LD_LIBRARY_PATH"
        )),
    }
}

#[cfg(feature = "cube")]
#[allow(clippy::match_wildcard_for_single_variants)] // Others come and go with features.
fn has_transport(device: &Device) -> bool {
    use burn_dispatch::DispatchDevice;

    match device.as_dispatch() {
        DispatchDevice::Cube(device) => device.client().has_device_transport(),
        _ => false,
    }
}

#[cfg(not(feature = "cube"))]
fn has_transport(_device: &Device) -> bool {
    false
}

#[cfg(all(test, feature = "vulkan"))]
mod tests {
    use burn::tensor::{DeviceKind, DeviceType};

    use super::*;

    /// Vulkan has no way from device to device, as a machine without NCCL has none.
    #[test]
    fn what_is_missing_is_named() {
        if Device::enumerate(DeviceType::Vulkan).is_empty() {
            eprintln!("no Vulkan device: skipped");
            return;
        }
        let device = Device::vulkan(DeviceKind::DefaultDevice);
        let missing = can_all_reduce(&[device.clone(), device]).expect_err("there is none");
        assert!(missing.contains("libnccl.so.2"), "{missing}");
    }
}
