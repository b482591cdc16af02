//! What the CUDA driver and toolkit of this machine say, before anything is built on them.
#![allow(unsafe_code)]

use std::any::Any;
use std::io;
use std::path::Path;
use std::sync::OnceLock;

use cube_kernels::tensor_core::library::{self, Library, Pointers, ProductKernel};
use cubecl_cuda::{HostCall, HostCalls};
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

/// cuBLASLt, looked for when this is first asked for; from then on large products may go to it. Its name
/// and version, or why there is none.
pub(crate) fn product_library() -> Result<&'static str, &'static str> {
    static FOUND: OnceLock<Result<String, String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let library = library::offer(Library::open(&library_names(driver_version()))?);
        // Whoever else set something would be ours too, and refuse these launches: nothing is wrong then.
        cubecl_cuda::set_host_calls(Box::new(Products(library)));
        Ok(library.describe())
    });
    found.as_deref().map_err(String::as_str)
}

/// Where it may be, in the order of trying: the newest that the driver can run, by its name alone and in
/// the toolkit that kernels are compiled with.
fn library_names(driver_version: i32) -> Vec<String> {
    let majors = [13, 12].into_iter();
    let names = majors
        .filter(|major| driver_version >= major * 1000)
        .map(|major| format!("libcublasLt.so.{major}"));
    let toolkit = cubecl_cuda::install::cuda_path();
    names
        .flat_map(|name| {
            let beside = toolkit.as_ref().map(|toolkit| {
                let path = toolkit.join("lib64").join(&name);
                path.to_string_lossy().into_owned()
            });
            [Some(name), beside]
        })
        .flatten()
        .collect()
}

/// 13000 for 13.0; 0 if it does not say.
fn driver_version() -> i32 {
    let mut version = 0;
    // SAFETY: a place for a number; the driver is loaded, or there would be no device to ask for.
    let result = unsafe { driver::cuDriverGetVersion(&raw mut version) };
    result.result().map_or(0, |()| version)
}

/// Hands launches of products to the library.
struct Products(&'static Library);

impl HostCalls for Products {
    fn takes(&self, kernel: &dyn Any) -> bool {
        kernel.is::<ProductKernel>()
    }

    unsafe fn enqueue(&self, kernel: &dyn Any, call: HostCall<'_>) -> Result<(), String> {
        let ProductKernel(product) = kernel.downcast_ref().expect("one that was taken");
        let &[w, x, workspace, out] = call.pointers else {
            unreachable!("a product is launched over four buffers");
        };
        let pointers = Pointers {
            w,
            x,
            workspace,
            out,
        };
        // SAFETY: of this function, for device, stream and memory; `cube_kernels` launches a product over
        // buffers of its plan's sizes.
        unsafe {
            self.0
                .multiply(call.device, call.stream, *product, pointers)
        }
    }
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
