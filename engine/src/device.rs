//! CPU or CUDA, decided here and nowhere else.

use std::fmt;
use std::path::Path;
use std::str::FromStr;

use burn::tensor::Device;

use crate::error::{Cause, EngineError};

/// Which device the operator asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DeviceChoice {
    /// The first CUDA device if this build has CUDA and the machine a device, else the CPU.
    #[default]
    Auto,
    /// The CPU.
    Cpu,
    /// A CUDA device by index.
    Cuda(usize),
    /// The first Vulkan device: for tests of the GPU kernels where there is no GPU.
    #[cfg(feature = "vulkan")]
    Vulkan,
}

impl FromStr for DeviceChoice {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        match text {
            "auto" => Ok(Self::Auto),
            "cpu" => Ok(Self::Cpu),
            "cuda" => Ok(Self::Cuda(0)),
            #[cfg(feature = "vulkan")]
            "vulkan" => Ok(Self::Vulkan),
            _ => text
                .strip_prefix("cuda:")
                .and_then(|index| index.parse().ok())
                .map(Self::Cuda)
                .ok_or_else(|| format!("{text:?} is none of auto, cpu, cuda, cuda:INDEX")),
        }
    }
}

impl fmt::Display for DeviceChoice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Auto => f.write_str("auto"),
            Self::Cpu => f.write_str("cpu"),
            Self::Cuda(index) => write!(f, "cuda:{index}"),
            #[cfg(feature = "vulkan")]
            Self::Vulkan => f.write_str("vulkan"),
        }
    }
}

/// Turns the choice into a device of this machine. Devices are enumerated, never probed by
/// opening one.
pub(crate) fn resolve(choice: DeviceChoice) -> Result<Device, EngineError> {
    match choice {
        DeviceChoice::Cpu => Ok(Device::flex()),
        DeviceChoice::Auto if num_cuda_devices() == 0 => Ok(Device::flex()),
        DeviceChoice::Auto => cuda(0),
        DeviceChoice::Cuda(index) => cuda(index),
        #[cfg(feature = "vulkan")]
        DeviceChoice::Vulkan => vulkan(),
    }
}

/// The devices of several ranks: GPUs one after the other from the chosen one on, or the CPU for all
/// of them.
pub(crate) fn resolve_ranks(
    choice: DeviceChoice,
    num_ranks: usize,
) -> Result<Vec<Device>, EngineError> {
    let first = match choice {
        DeviceChoice::Cuda(index) => index,
        DeviceChoice::Auto if num_cuda_devices() > 0 => 0,
        DeviceChoice::Auto | DeviceChoice::Cpu => return Ok(vec![Device::flex(); num_ranks]),
        #[cfg(feature = "vulkan")]
        DeviceChoice::Vulkan => return Ok(vec![vulkan()?; num_ranks]),
    };
    if num_ranks > 1 && first + num_ranks > num_cuda_devices() && cfg!(feature = "cuda") {
        return Err(EngineError::Device(format!(
            "--tensor-parallel-size {num_ranks} takes cuda:{first} to cuda:{}, this machine has {} \
             CUDA devices",
            first + num_ranks - 1,
            num_cuda_devices()
        )));
    }
    (first..first + num_ranks).map(cuda).collect()
}

/// Keeps the kernels that are compiled from here on. One folder serves the whole process.
#[cfg(feature = "cuda")]
pub(crate) fn keep_kernels(folder: &Path) {
    if let Err(error) = kernels::cuda::keep_kernels(folder) {
        let folder = folder.display();
        tracing::warn!(%folder, %error, "compiled kernels are not kept, every start compiles them");
    }
}

/// Without kernels to compile there are none to keep.
#[cfg(not(feature = "cuda"))]
pub(crate) fn keep_kernels(_folder: &Path) {}

/// Whether tensors of this device are ordinary memory.
pub(crate) fn is_cpu(device: &Device) -> bool {
    kernels::is_cpu(device)
}

/// Cores that this process may use.
pub(crate) fn num_cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

/// For people.
pub(crate) fn name(device: &Device) -> String {
    if is_cpu(device) {
        format!("cpu ({})", kernels::isa().name())
    } else {
        format!("{device:?}").to_lowercase()
    }
}

/// Who has to do something about what a driver, compiler or runtime of a device said; `None` if it
/// was not one of them that spoke. What is most particular comes first.
pub(crate) fn cause_of(text: &str) -> Option<Cause> {
    const SAYINGS: [(&str, Cause); 21] = [
        ("out of device memory", Cause::Memory),
        ("can't allocate buffer", Cause::Memory),
        ("OUT_OF_MEMORY", Cause::Memory),
        ("OutOfMemory", Cause::Memory),
        ("out of memory", Cause::Memory),
        ("Cannot allocate memory", Cause::Memory),
        ("Unable to dynamically load", Cause::Device),
        ("CUDA installation not found", Cause::Device),
        ("cannot open source file", Cause::Device),
        ("could not open source file", Cause::Device),
        ("NO_DEVICE", Cause::Device),
        ("INSUFFICIENT_DRIVER", Cause::Device),
        ("DRIVER_MISMATCH", Cause::Device),
        ("UNSUPPORTED_PTX_VERSION", Cause::Device),
        ("NO_BINARY_FOR_GPU", Cause::Device),
        ("CUDA_ERROR_", Cause::Fault),
        ("device is poisoned", Cause::Fault),
        ("device was poisoned", Cause::Fault),
        ("evice is lost", Cause::Fault),
        ("A launch error happened", Cause::Fault),
        ("An error happened during execution", Cause::Fault),
    ];
    SAYINGS
        .iter()
        .find(|(saying, _)| text.contains(saying))
        .map(|(_, cause)| *cause)
}

/// How many there are; `None`: this build cannot use any.
pub(crate) fn num_accelerators() -> Option<usize> {
    cfg!(feature = "cuda").then(num_cuda_devices)
}

#[cfg(feature = "cuda")]
fn num_cuda_devices() -> usize {
    Device::enumerate(burn::tensor::DeviceType::Cuda).len()
}

#[cfg(not(feature = "cuda"))]
fn num_cuda_devices() -> usize {
    0
}

/// Free bytes and all bytes of a device with memory of its own; `None` for one that shares the
/// machine's.
pub(crate) fn memory(
    choice: DeviceChoice,
    rank: usize,
    device: &Device,
) -> Result<Option<(u64, u64)>, EngineError> {
    let first = match choice {
        DeviceChoice::Cuda(index) => index,
        DeviceChoice::Auto => 0,
        DeviceChoice::Cpu => return Ok(None),
        #[cfg(feature = "vulkan")]
        DeviceChoice::Vulkan => return Ok(None),
    };
    if is_cpu(device) {
        return Ok(None);
    }
    cuda_memory(first + rank).map(Some)
}

#[cfg(feature = "cuda")]
fn cuda_memory(index: usize) -> Result<(u64, u64), EngineError> {
    kernels::cuda::device_memory(index).map_err(EngineError::Device)
}

#[cfg(not(feature = "cuda"))]
fn cuda_memory(index: usize) -> Result<(u64, u64), EngineError> {
    unreachable!("cuda:{index} was refused when the device was resolved")
}

#[cfg(feature = "cuda")]
fn cuda(index: usize) -> Result<Device, EngineError> {
    // Asked before devices are counted: without a driver there are none, which says less.
    if let Some(missing) = kernels::cuda::missing_tool() {
        return Err(EngineError::Device(format!("cuda:{index}: {missing}")));
    }
    let count = num_cuda_devices();
    if index >= count {
        return Err(EngineError::Device(format!(
            "cuda:{index} was asked for, this machine has {count} CUDA devices"
        )));
    }
    Ok(Device::cuda(index))
}

#[cfg(not(feature = "cuda"))]
fn cuda(index: usize) -> Result<Device, EngineError> {
    Err(EngineError::Device(format!(
        "cuda:{index} was asked for, this build has no CUDA (build with `--features cuda`)"
    )))
}

#[cfg(feature = "vulkan")]
fn vulkan() -> Result<Device, EngineError> {
    use burn::tensor::{DeviceKind, DeviceType};
    if Device::enumerate(DeviceType::Vulkan).is_empty() {
        return Err(EngineError::Device(
            "vulkan was asked for, this machine has no Vulkan device".into(),
        ));
    }
    Ok(Device::vulkan(DeviceKind::DefaultDevice))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cause_has_its_sayings() {
        for (text, cause) in [
            (
                "DriverError(CUDA_ERROR_OUT_OF_MEMORY, \"out of memory\")",
                Cause::Memory,
            ),
            (
                "DriverError(CUDA_ERROR_ILLEGAL_ADDRESS, \"an illegal access\")",
                Cause::Fault,
            ),
            (
                "Unable to dynamically load the \"nvrtc\" shared library - searched for",
                Cause::Device,
            ),
            (
                "[Compilation Error] \n    x.cu(1): catastrophic error: cannot open source file \"cuda_fp16.h\"",
                Cause::Device,
            ),
            (
                "DriverError(CUDA_ERROR_NO_DEVICE, \"no device\")",
                Cause::Device,
            ),
        ] {
            assert_eq!(cause_of(text), Some(cause), "{text}");
        }
        assert_eq!(cause_of("attempt to subtract with overflow"), None);
    }

    #[test]
    fn choices_are_spelt_as_flags() {
        for text in ["auto", "cpu", "cuda:3"] {
            assert_eq!(text.parse::<DeviceChoice>().expect(text).to_string(), text);
        }
        assert_eq!("cuda".parse(), Ok(DeviceChoice::Cuda(0)));
        for text in ["", "gpu", "cuda:", "cuda:x", "cuda:-1"] {
            assert!(text.parse::<DeviceChoice>().is_err(), "{text:?}");
        }
    }
}
