//! The names of `cubecl-llvm` that `cubecl-cuda` mentions, with nothing behind them.
//!
//! The published crate's build script downloads a prebuilt LLVM, which an offline build cannot do
//! and our binary does not want: our kernels are emitted as CUDA C++ and compiled by NVRTC (the
//! `cpp` feature of `cubecl-cuda`). Both of its compilers are always type-checked, so the other one
//! needs these names. Whoever asks this one to compile gets an error that says so.
//!
//! Pinned to one version: a patch release of `cubecl-cuda` may ask for another name.

use core::fmt;

use cubecl_core::ir::nvidia::SmArch;
use cubecl_core::prelude::KernelDefinition;
use cubecl_runtime::compiler::{CompilationError, Compiler};
use cubecl_runtime::kernel::BufferIOAttr;
use nvptx::ptx_version::PtxVersion;

/// What LLVM would compile for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LlvmTarget {
    /// NVIDIA's virtual instruction set.
    Nvptx,
}

/// The compiler that is not here.
#[derive(Clone, Debug)]
pub struct PlironCompiler {
    /// Its target.
    pub target: LlvmTarget,
}

/// Options that nobody reads.
#[derive(Clone, Debug, Default)]
pub struct PlironOptions {
    /// AMD's architecture, never set here.
    pub arch: Option<()>,
    /// NVIDIA's architecture.
    pub sm_arch: Option<SmArch>,
    /// PTX version of the driver.
    pub ptx_version: Option<PtxVersion>,
    /// Whether scalars travel in the kernel's parameter block.
    pub grid_constants: bool,
    /// Keeps `..Default::default()` meaningful to callers that name every other field.
    #[doc(hidden)]
    pub reserved: (),
}

/// PTX and what a launch needs to know of it.
#[derive(Clone, Debug)]
pub struct NvptxModule {
    /// NUL-terminated PTX.
    pub ptx: Vec<core::ffi::c_char>,
    /// The kernel's symbol.
    pub entrypoint: String,
    /// The text that logs and cache keys show.
    pub ir: String,
    /// Bytes of shared memory per launch.
    pub shared_memory_size: usize,
    /// How each buffer is used, in binding order.
    pub io: Vec<BufferIOAttr>,
}

/// What a compiler would return. Never built.
#[derive(Clone, Debug)]
pub enum PlironArtifact {
    /// PTX.
    NvptxCode(NvptxModule),
    /// The variant that keeps callers' wildcard arms reachable.
    Absent,
}

impl fmt::Display for PlironArtifact {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NvptxCode(module) => f.write_str(&module.ir),
            Self::Absent => f.write_str("absent"),
        }
    }
}

impl Compiler for PlironCompiler {
    type Representation = PlironArtifact;
    type CompilationOptions = PlironOptions;

    fn compile(
        &mut self,
        _kernel: KernelDefinition,
        _options: &PlironOptions,
    ) -> Result<PlironArtifact, CompilationError> {
        Err(CompilationError::Generic {
            reason: "this build has no LLVM: kernels compile through NVRTC".into(),
            backtrace: Default::default(),
        })
    }

    fn extension(&self) -> &'static str {
        "ll"
    }

    fn lang_tag(&self) -> &'static str {
        "ptx"
    }
}

/// NVIDIA's side.
pub mod nvptx {
    /// PTX versions.
    pub mod ptx_version {
        use core::fmt;

        /// A PTX version. None exists here: the NVRTC path does not ask for one.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        pub enum PtxVersion {}

        impl PtxVersion {
            /// The version for a driver: none, which only the absent compiler would read.
            pub fn for_driver(_driver_version: i32) -> Option<Self> {
                None
            }
        }

        impl fmt::Display for PtxVersion {
            fn fmt(&self, _: &mut fmt::Formatter<'_>) -> fmt::Result {
                match *self {}
            }
        }
    }
}

/// What both GPU targets share.
pub mod shared {
    /// Narrowing a device's features to what a compiler can lower.
    pub mod lowered_features {
        use cubecl_core::ir::DeviceProperties;

        /// The target whose features are narrowed.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum GpuTarget {
            /// NVIDIA.
            Nvptx,
        }

        /// Called only when LLVM is the chosen compiler, which it never is here.
        pub fn restrict_features(_properties: &mut DeviceProperties, _target: GpuTarget) {}
    }
}
