//! The functions of cuBLASLt that we call, found by name in a library that is loaded at run time.
//!
//! Twelve signatures of our own instead of cudarc's module for it: that one finds its library by fixed
//! names, panics where a function is missing, and only exists in builds for GPUs. Ours are held against
//! a library that tests build (`tests/library.rs`), wherever there is a C compiler.
//!
//! Checked by hand, without a GPU: every signature, value and the size of the heuristic's result against
//! the headers of PyPI's `nvidia-cublas` 13.10.0.20 and `nvidia-cublas-cu12` 12.9.3.13 (compiled
//! assertions); that both libraries have all twelve functions; and that the first, loaded, makes these
//! descriptors and takes these attributes. Its handle wants a driver.
#![allow(unsafe_code)]

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::mem;

pub(super) type Opaque = *mut c_void;
type Status = c_int;

/// `CUBLAS_STATUS_SUCCESS`.
pub(super) const SUCCESS: Status = 0;
/// `cublasComputeType_t`: f32 sums.
pub(super) const COMPUTE_32F: c_int = 68;
/// `cudaDataType`.
pub(super) const R_32F: c_int = 0;
pub(super) const R_16BF: c_int = 14;
/// `cublasLtMatmulDescAttributes_t`.
pub(super) const DESC_POINTER_MODE: c_int = 2;
pub(super) const DESC_TRANSA: c_int = 3;
pub(super) const DESC_TRANSB: c_int = 4;
/// `cublasOperation_t`.
pub(super) const OP_N: i32 = 0;
pub(super) const OP_T: i32 = 1;
/// `cublasLtPointerMode_t`: where the two factors lie.
pub(super) const POINTER_MODE_HOST: i32 = 0;
pub(super) const POINTER_MODE_DEVICE: i32 = 1;
/// `cublasLtMatmulPreferenceAttributes_t`.
pub(super) const PREF_MAX_WORKSPACE_BYTES: c_int = 1;
pub(super) const PREF_MIN_ALIGNMENT_A_BYTES: c_int = 5;
pub(super) const PREF_MIN_ALIGNMENT_B_BYTES: c_int = 6;
pub(super) const PREF_MIN_ALIGNMENT_C_BYTES: c_int = 7;
pub(super) const PREF_MIN_ALIGNMENT_D_BYTES: c_int = 8;

/// `cublasLtMatmulAlgo_t`, and the name of nobody but the library for what is in it.
pub(super) type Algorithm = [u64; 8];

/// `cublasLtMatmulHeuristicResult_t`.
#[repr(C)]
#[derive(Clone, Copy, Default)]
pub(super) struct HeuristicResult {
    pub(super) algorithm: Algorithm,
    pub(super) workspace_bytes: usize,
    pub(super) state: Status,
    pub(super) waves: f32,
    pub(super) reserved: [c_int; 4],
}

const _: () = assert!(size_of::<HeuristicResult>() == 96);

type Create = unsafe extern "C" fn(*mut Opaque) -> Status;
type Destroy = unsafe extern "C" fn(Opaque) -> Status;
type GetVersion = unsafe extern "C" fn() -> usize;
type SetAttribute = unsafe extern "C" fn(Opaque, c_int, *const c_void, usize) -> Status;

/// Type of the sums, type of the factors.
type DescCreate = unsafe extern "C" fn(*mut Opaque, c_int, c_int) -> Status;
/// Type, rows, columns, elements from a column to the next.
type LayoutCreate = unsafe extern "C" fn(*mut Opaque, c_int, u64, u64, i64) -> Status;
/// Handle, product, a, b, c, d, preference, how many are wanted, where to, how many there are.
type GetHeuristic = unsafe extern "C" fn(
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    Opaque,
    c_int,
    *mut HeuristicResult,
    *mut c_int,
) -> Status;
/// Handle, product, alpha, a and its layout, b, beta, c, d, algorithm, workspace and its bytes, stream.
type Matmul = unsafe extern "C" fn(
    Opaque,
    Opaque,
    *const c_void,
    *const c_void,
    Opaque,
    *const c_void,
    Opaque,
    *const c_void,
    *const c_void,
    Opaque,
    *mut c_void,
    Opaque,
    *const Algorithm,
    *mut c_void,
    usize,
    Opaque,
) -> Status;

/// The functions. The library stays loaded for the life of the process.
pub(super) struct Symbols {
    pub(super) create: Create,
    pub(super) get_version: GetVersion,
    pub(super) desc_create: DescCreate,
    pub(super) desc_set: SetAttribute,
    pub(super) desc_destroy: Destroy,
    pub(super) layout_create: LayoutCreate,
    pub(super) layout_destroy: Destroy,
    pub(super) preference_create: Create,
    pub(super) preference_set: SetAttribute,
    pub(super) preference_destroy: Destroy,
    pub(super) get_heuristic: GetHeuristic,
    pub(super) matmul: Matmul,
}

impl Symbols {
    /// From the first of these files or names that can be loaded and has all of them.
    ///
    /// # Errors
    /// What the loader said of the first, and of the first that lacks something.
    pub(super) fn open(names: &[String]) -> Result<(Self, String), String> {
        let mut why = Vec::new();
        for name in names {
            match Self::load(name) {
                Ok(symbols) => return Ok((symbols, name.clone())),
                Err(error) => why.push(error),
            }
        }
        // One that is there and will not do says more than one that is not.
        let lacking = why.iter().find(|why| why.contains(LACKS));
        let first = lacking.or(why.first());
        Err(first.map_or_else(|| "no name to look for".into(), Clone::clone))
    }

    fn load(name: &str) -> Result<Self, String> {
        let path = CString::new(name).map_err(|_| format!("{name:?} is no file's name"))?;
        // SAFETY: the name ends in a zero. Loading runs the library's initialisers, which is what whoever
        // installed it expects of a program that uses it; it is never unloaded, so what is found in it
        // stays.
        let library = unsafe { dlopen(path.as_ptr(), RTLD_NOW) };
        if library.is_null() {
            return Err(loader_error());
        }
        macro_rules! find {
            ($symbol:literal, $function:ty) => {{
                // SAFETY: the library is loaded; the name ends in a zero.
                let found = unsafe { dlsym(library, $symbol.as_ptr()) };
                if found.is_null() {
                    return Err(format!("{name} {LACKS} {}", $symbol.to_string_lossy()));
                }
                // SAFETY: the library's function of this name has the signature of the field that it
                // goes to, which the module's head says how we know.
                unsafe { mem::transmute::<*mut c_void, $function>(found) }
            }};
        }
        Ok(Self {
            create: find!(c"cublasLtCreate", Create),
            get_version: find!(c"cublasLtGetVersion", GetVersion),
            desc_create: find!(c"cublasLtMatmulDescCreate", DescCreate),
            desc_set: find!(c"cublasLtMatmulDescSetAttribute", SetAttribute),
            desc_destroy: find!(c"cublasLtMatmulDescDestroy", Destroy),
            layout_create: find!(c"cublasLtMatrixLayoutCreate", LayoutCreate),
            layout_destroy: find!(c"cublasLtMatrixLayoutDestroy", Destroy),
            preference_create: find!(c"cublasLtMatmulPreferenceCreate", Create),
            preference_set: find!(c"cublasLtMatmulPreferenceSetAttribute", SetAttribute),
            preference_destroy: find!(c"cublasLtMatmulPreferenceDestroy", Destroy),
            get_heuristic: find!(c"cublasLtMatmulAlgoGetHeuristic", GetHeuristic),
            matmul: find!(c"cublasLtMatmul", Matmul),
        })
    }
}

const LACKS: &str = "lacks";

/// The same number on every system we build for.
const RTLD_NOW: c_int = 2;

unsafe extern "C" {
    fn dlopen(name: *const c_char, flags: c_int) -> *mut c_void;
    fn dlsym(library: *mut c_void, name: *const c_char) -> *mut c_void;
    fn dlerror() -> *const c_char;
}

fn loader_error() -> String {
    // SAFETY: asked right after a failure on this thread, so there is one; it ends in a zero and stays
    // until the thread's next call of the loader.
    unsafe {
        let error = dlerror();
        if error.is_null() {
            return "the loader does not say why".into();
        }
        CStr::from_ptr(error).to_string_lossy().into_owned()
    }
}
