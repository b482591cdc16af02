//! Large products by cuBLASLt: one of the ways that may be fastest, where it is installed. On CubeCL's
//! own stream and buffers: the product is launched like any kernel ([`ProductKernel`]), and whoever
//! serves the launch hands its pointers and stream to [`Library::multiply`].
//!
//! ```text
//! ours, rows one after the other        the library's, columns one after the other
//! w   [n, k]                            a  k x n, transposed
//! x   [t, k]                            b  k x t
//! out [t, n]                            d  n x t
//! ```
//!
//! Weights and x are bf16, sums and out f32. FP8 and NVFP4 weights come widened (`tensor_widen.cu`), with
//! their matrix's scale behind them: the library's own products of FP8 want x in FP8 too, which is
//! another arithmetic than ours.
//!
//! Algorithms are the library's first choice for a shape, kept for [`MAX_PLANNED`] shapes. A call
//! enqueues and allocates nothing, so it may be recorded into a graph once its shape has run.
#![allow(unsafe_code)]

mod symbols;

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::ffi::{c_int, c_void};
use std::ptr;
use std::sync::{Mutex, OnceLock, PoisonError};

use cubecl::PrecompiledSource;
use cubecl::ir::ElemType;
use cubecl::prelude::{CubeKernel, KernelDefinition, KernelId, KernelMetadata};

use symbols::{Algorithm, HeuristicResult, Opaque, SUCCESS, Symbols};

/// Memory that the library may use during a product: what NVIDIA recommends for Hopper. More buys it
/// nothing that its documentation names.
pub const WORKSPACE_BYTES: usize = 32 << 20;

/// Shapes whose algorithms are remembered. Every number of tokens is another; when there are more, all
/// are asked for again.
const MAX_PLANNED: usize = 1024;

/// Bytes behind widened weights: the matrix's scale, and zero.
pub(super) const FACTOR_BYTES: usize = 8;

/// `out[t, n] = x[t, k] @ w[n, k]^T`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Product {
    /// Tokens.
    pub t: usize,
    /// Outputs.
    pub n: usize,
    /// Inputs.
    pub k: usize,
    /// Whether two factors in f32 follow the weights: what the sums are multiplied with, and zero.
    pub is_scaled: bool,
}

/// A product's memory.
#[derive(Clone, Copy, Debug)]
pub struct Pointers {
    /// bf16 `[n, k]`.
    pub w: u64,
    /// bf16 `[t, k]`.
    pub x: u64,
    /// [`WORKSPACE_BYTES`] that nobody else uses meanwhile.
    pub workspace: u64,
    /// f32 `[t, n]`.
    pub out: u64,
}

impl Pointers {
    /// Most of a power of two that each is a multiple of, as far as the library is interested.
    fn alignments(self) -> [u32; 3] {
        const MOST: u32 = 256;
        [self.w, self.x, self.out].map(|pointer| 1 << pointer.trailing_zeros().min(MOST.ilog2()))
    }
}

/// cuBLASLt, loaded.
pub struct Library {
    symbols: Symbols,
    name: String,
    /// By the device's number, since a handle is for one.
    devices: Mutex<BTreeMap<u32, OnDevice>>,
}

struct OnDevice {
    handle: Opaque,
    planned: HashMap<(Product, [u32; 3]), Result<Planned, String>>,
}

// SAFETY: handles and descriptors belong to no thread; they are used under the lock.
unsafe impl Send for OnDevice {}

/// How a product will be made.
struct Planned {
    desc: Opaque,
    layouts: [Opaque; 3],
    algorithm: Algorithm,
    workspace_bytes: usize,
}

impl Library {
    /// Loads the first of these files or names that will do.
    ///
    /// # Errors
    /// Why none does: for a reader who wonders what to install.
    pub fn open(names: &[String]) -> Result<Self, String> {
        let (symbols, name) = Symbols::open(names)?;
        Ok(Self {
            symbols,
            name,
            devices: Mutex::default(),
        })
    }

    /// Its file and version, for people.
    pub fn describe(&self) -> String {
        // SAFETY: it takes nothing and returns a number.
        let version = unsafe { (self.symbols.get_version)() };
        let (major, minor, patch) = (version / 10_000, version / 100 % 100, version % 100);
        format!("cuBLASLt {major}.{minor}.{patch} ({})", self.name)
    }

    /// Enqueues a product on a stream of a device.
    ///
    /// # Errors
    /// What the library refused: it does not run on this device, or has no algorithm for the shape.
    ///
    /// # Safety
    /// The device is the calling thread's current one and the stream one of its. The memory is of the
    /// sizes that the product says and stays until the stream has come past the product; nothing else
    /// uses it that the stream does not order.
    pub unsafe fn multiply(
        &self,
        device: u32,
        stream: *mut c_void,
        product: Product,
        pointers: Pointers,
    ) -> Result<(), String> {
        let mut devices = self.devices.lock().unwrap_or_else(PoisonError::into_inner);
        let on_device = match devices.entry(device) {
            Entry::Occupied(entry) => entry.into_mut(),
            Entry::Vacant(entry) => {
                let mut handle = ptr::null_mut();
                // SAFETY: of this function: the device is current. The handle is never destroyed.
                let status = unsafe { (self.symbols.create)(&raw mut handle) };
                check("cublasLtCreate", status)?;
                let planned = HashMap::new();
                entry.insert(OnDevice { handle, planned })
            }
        };
        let OnDevice { handle, planned } = on_device;
        let key = (product, pointers.alignments());
        if !planned.contains_key(&key) {
            if planned.len() == MAX_PLANNED {
                for planned in planned.drain().filter_map(|(_, planned)| planned.ok()) {
                    self.forget(&planned);
                }
            }
            planned.insert(key, self.plan(*handle, product, key.1));
        }
        let planned = planned[&key].as_ref().map_err(Clone::clone)?;
        let Planned {
            desc,
            layouts: [a, b, d],
            algorithm,
            workspace_bytes,
        } = planned;

        let (one, zero) = (1.0_f32, 0.0_f32);
        let (alpha, beta) = if product.is_scaled {
            let factors = pointers.w + (2 * product.n * product.k) as u64;
            (factors as *const c_void, (factors + 4) as *const c_void)
        } else {
            ((&raw const one).cast(), (&raw const zero).cast())
        };
        let out = pointers.out as *mut c_void;
        // SAFETY: of this function, for memory and stream. The descriptors were made for this product by
        // `plan`, the algorithm for them; factors on the host are read before the call returns. Nothing
        // is read at `c`, which is `d`, since beta is zero.
        let status = unsafe {
            (self.symbols.matmul)(
                *handle,
                *desc,
                alpha,
                pointers.w as *const c_void,
                *a,
                pointers.x as *const c_void,
                *b,
                beta,
                out,
                *d,
                out,
                *d,
                algorithm,
                pointers.workspace as *mut c_void,
                *workspace_bytes,
                stream,
            )
        };
        check("cublasLtMatmul", status)
    }

    /// Describes a product and asks for an algorithm. What was made before something failed is not
    /// taken apart: a failure is remembered and does not repeat.
    fn plan(
        &self,
        handle: Opaque,
        product: Product,
        [align_w, align_x, align_out]: [u32; 3],
    ) -> Result<Planned, String> {
        use symbols::{
            COMPUTE_32F, DESC_POINTER_MODE, DESC_TRANSA, DESC_TRANSB, OP_N, OP_T,
            POINTER_MODE_DEVICE, POINTER_MODE_HOST, PREF_MAX_WORKSPACE_BYTES,
            PREF_MIN_ALIGNMENT_A_BYTES, PREF_MIN_ALIGNMENT_B_BYTES, PREF_MIN_ALIGNMENT_C_BYTES,
            PREF_MIN_ALIGNMENT_D_BYTES, R_16BF, R_32F,
        };
        let Self { symbols, .. } = self;
        let Product { t, n, k, is_scaled } = product;
        let mut desc = ptr::null_mut();
        // SAFETY: a place for the descriptor.
        let status = unsafe { (symbols.desc_create)(&raw mut desc, COMPUTE_32F, R_32F) };
        check("cublasLtMatmulDescCreate", status)?;
        let pointer_mode = if is_scaled {
            POINTER_MODE_DEVICE
        } else {
            POINTER_MODE_HOST
        };
        for (attribute, value) in [
            (DESC_TRANSA, OP_T),
            (DESC_TRANSB, OP_N),
            (DESC_POINTER_MODE, pointer_mode),
        ] {
            // SAFETY: the descriptor was just made; each of these is 32 bits.
            let status = unsafe {
                (symbols.desc_set)(
                    desc,
                    attribute,
                    (&raw const value).cast(),
                    size_of_val(&value),
                )
            };
            check("cublasLtMatmulDescSetAttribute", status)?;
        }
        let layout = |element: c_int, rows: usize, columns: usize| {
            let mut layout = ptr::null_mut();
            // SAFETY: a place for the descriptor.
            let status = unsafe {
                (symbols.layout_create)(
                    &raw mut layout,
                    element,
                    rows as u64,
                    columns as u64,
                    rows as i64,
                )
            };
            check("cublasLtMatrixLayoutCreate", status).map(|()| layout)
        };
        let layouts = [
            layout(R_16BF, k, n)?,
            layout(R_16BF, k, t)?,
            layout(R_32F, n, t)?,
        ];

        let mut preference = ptr::null_mut();
        // SAFETY: a place for the descriptor.
        let status = unsafe { (symbols.preference_create)(&raw mut preference) };
        check("cublasLtMatmulPreferenceCreate", status)?;
        let set = |attribute, value: *const c_void, size| {
            // SAFETY: the descriptor was just made; callers hand over as many bytes as they say.
            let status = unsafe { (symbols.preference_set)(preference, attribute, value, size) };
            check("cublasLtMatmulPreferenceSetAttribute", status)
        };
        let most = WORKSPACE_BYTES as u64;
        set(PREF_MAX_WORKSPACE_BYTES, (&raw const most).cast(), 8)?;
        for (attribute, alignment) in [
            (PREF_MIN_ALIGNMENT_A_BYTES, align_w),
            (PREF_MIN_ALIGNMENT_B_BYTES, align_x),
            (PREF_MIN_ALIGNMENT_C_BYTES, align_out),
            (PREF_MIN_ALIGNMENT_D_BYTES, align_out),
        ] {
            set(attribute, (&raw const alignment).cast(), 4)?;
        }
        let mut found = HeuristicResult::default();
        let mut num_found = 0;
        let [a, b, d] = layouts;
        // SAFETY: all of these were made above and live; there is room for the one result asked for.
        let status = unsafe {
            let status = (symbols.get_heuristic)(
                handle,
                desc,
                a,
                b,
                d,
                d,
                preference,
                1,
                &raw mut found,
                &raw mut num_found,
            );
            (symbols.preference_destroy)(preference);
            status
        };
        check("cublasLtMatmulAlgoGetHeuristic", status)?;
        if num_found == 0 || found.state != SUCCESS || found.workspace_bytes > WORKSPACE_BYTES {
            return Err(format!("cuBLASLt has no algorithm for {product:?}"));
        }
        Ok(Planned {
            desc,
            layouts,
            algorithm: found.algorithm,
            workspace_bytes: found.workspace_bytes,
        })
    }

    fn forget(&self, Planned { desc, layouts, .. }: &Planned) {
        // SAFETY: made by `plan`, out of the map now, and what was enqueued with them holds copies.
        unsafe {
            (self.symbols.desc_destroy)(*desc);
            for &layout in layouts {
                (self.symbols.layout_destroy)(layout);
            }
        }
    }
}

fn check(what: &str, status: c_int) -> Result<(), String> {
    if status == SUCCESS {
        Ok(())
    } else {
        Err(format!("{what}: status {status}"))
    }
}

/// A product as it is launched. Nothing compiles it: who serves launches must know it, and one that
/// does not refuses it by its language.
#[derive(Clone, Copy, Debug)]
pub struct ProductKernel(pub Product);

/// What [`ProductKernel`] says it is written in.
pub const LANGUAGE: &str = "cublaslt";

impl KernelMetadata for ProductKernel {
    fn id(&self) -> KernelId {
        KernelId::new::<Self>().info(self.0)
    }

    fn address_type(&self) -> ElemType {
        super::kernel::address_type()
    }
}

impl CubeKernel for ProductKernel {
    fn define(&self) -> KernelDefinition {
        super::kernel::nothing(1)
    }

    fn source(&self) -> Option<PrecompiledSource> {
        Some(PrecompiledSource {
            source: format!("{:?}", self.0),
            entrypoint_name: "cublasLtMatmul".into(),
            lang: LANGUAGE,
        })
    }
}

static OFFERED: OnceLock<Library> = OnceLock::new();

/// Offers a library to products from here on: by whoever serves [`ProductKernel`]s. The first one
/// counts.
pub fn offer(library: Library) -> &'static Library {
    OFFERED.get_or_init(|| library)
}

/// What was offered.
pub fn offered() -> Option<&'static Library> {
    OFFERED.get()
}
