//! What the CUDA driver and toolkit of this machine say, before anything is built on them.
#![allow(unsafe_code)]

use std::io;
use std::path::Path;

use cudarc::driver::result::{self, DriverError};
use cudarc::driver::sys as driver;
use cudarc::nvrtc::sys as nvrtc;

use crate::KernelFolder;

/// What is missing to run kernels, in words that say what to install; `None` if all is there.
/// Kernels are compiled when they are first used, which takes the compiler and its headers.
pub fn missing_tool() -> Option<String> {
    // SAFETY: both look for a library by its names and close it again; they run its initialisers, as
    // the first real use would.
    let (has_driver, has_compiler) =
        unsafe { (driver::is_culib_present(), nvrtc::is_culib_present()) };
    if !has_driver {
        return Some("libcuda is not found: install the NVIDIA driver".into());
    }
    if !has_compiler {
        return Some(
            "libnvrtc is not found: install the CUDA toolkit's NVRTC, or put its folder into \
             LD_LIBRARY_PATH"
                .into(),
        );
    }
    let Some(toolkit) = cubecl_cuda::install::cuda_path() else {
        return Some(
            "no CUDA toolkit is found, and kernels need its headers: install it, or let CUDA_PATH \
             name its folder"
                .into(),
        );
    };
    let header = toolkit.join("include").join("cuda_fp16.h");
    (!header.is_file()).then(|| {
        format!(
            "{} is not there, and kernels need the CUDA toolkit's headers: install them, or let \
             CUDA_PATH name the toolkit's folder",
            header.display()
        )
    })
}

/// Keeps compiled kernels in this folder, for the life of the process and from the first call on.
///
/// # Errors
/// The folder cannot be made.
pub fn keep_kernels(folder: &Path) -> io::Result<()> {
    let folder = KernelFolder::open(folder)?;
    // A second engine in one process keeps them where the first one does.
    cubecl_cuda::set_kernel_cache(Box::new(folder));
    Ok(())
}

/// Free bytes and all bytes of a device, as its driver counts them now.
pub fn device_memory(index: usize) -> Result<(u64, u64), String> {
    memory_of(index as i32).map_err(|error| format!("cuda:{index}: {error}"))
}

fn memory_of(index: i32) -> Result<(u64, u64), DriverError> {
    result::init()?;
    let device = result::device::get(index)?;
    // SAFETY: the handle is the driver's own, just got. The primary context is retained for the
    // question and released after it; that it stays this thread's current one until the next is set
    // harms nobody, since everybody who works with the driver sets one first.
    let (free, total) = unsafe {
        let context = result::primary_ctx::retain(device)?;
        let memory = result::ctx::set_current(context).and_then(|()| result::mem_get_info());
        result::primary_ctx::release(device)?;
        memory?
    };
    Ok((free as u64, total as u64))
}
