//! Large products by cuBLASLt without it: our kernels before and after, in the emulator, and between them
//! a library of the same functions for the processor's memory (`library/fake.c`), which computes what the
//! documented layouts say. Rows taken for columns show in the result.
#![allow(unsafe_code)] // The library's product is an unsafe function.

use std::collections::BTreeMap;
use std::ffi::c_void;
use std::path::PathBuf;
use std::process::Command;

use cube_kernels::tensor_core::library::{Library, Pointers, Product, WORKSPACE_BYTES};
use cube_kernels::tensor_core::plan::{self, ByLibrary, Role, Shape};
use cube_kernels::{Epilogue, Format};
use emulated::Emulator;
use emulated::weights::{Random, Weights, to_bf16};

mod emulated;

/// What the fake writes down, in its own order.
#[repr(C)]
#[derive(Debug, Default)]
struct Log {
    num_products: u32,
    num_heuristics: u32,
    num_handles: u32,
    num_living: u32,
    workspace: u64,
    workspace_bytes: u64,
}

/// The fake, compiled: each test its own, since it counts.
fn compile(test: &str, defines: &[&str]) -> Option<String> {
    let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    if Command::new(&compiler).arg("--version").output().is_err() {
        assert!(
            std::env::var_os("NEMOSERVE_REQUIRE_VULKAN").is_none(),
            "no C compiler: install gcc"
        );
        eprintln!("SKIPPED: no C compiler ({compiler}) to build the library with");
        return None;
    }
    let source = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/library/fake.c");
    let library = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join(format!("lib{test}.so"));
    let output = Command::new(&compiler)
        .args(["-std=c11", "-O1", "-shared", "-fPIC", "-o"])
        .args([library.as_os_str(), source.as_ref()])
        .args(defines)
        .output()
        .expect("the compiler answered before");
    let messages = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{messages}");
    Some(library.to_str().expect("paths here are UTF-8").to_owned())
}

fn library(test: &str) -> Option<Library> {
    let file = compile(test, &[])?;
    Some(Library::open(&[file]).expect("the fake has every function"))
}

struct Case {
    format: Format,
    t: usize,
    n: usize,
    k: usize,
    has_bias: bool,
    epilogue: Epilogue,
}

impl Case {
    fn shape(&self) -> Shape {
        Shape {
            format: self.format,
            experts: 1,
            n: self.n,
            k: self.k,
        }
    }

    fn plan(&self) -> ByLibrary {
        plan::by_library(self.t, self.shape(), self.has_bias, self.epilogue)
    }
}

/// Bytes at a multiple of 512, as CubeCL's are, and of what follows them.
struct Aligned {
    memory: Vec<u8>,
    start: usize,
    len: usize,
}

impl Aligned {
    fn new(bytes: &[u8]) -> Self {
        let mut memory = vec![0x7f; bytes.len() + 1024];
        let start = memory.as_ptr().align_offset(512);
        memory[start..start + bytes.len()].copy_from_slice(bytes);
        let len = bytes.len();
        Self { memory, start, len }
    }

    fn pointer(&self) -> u64 {
        self.bytes().as_ptr() as u64
    }

    fn bytes(&self) -> &[u8] {
        &self.memory[self.start..self.start + self.len]
    }
}

/// Our kernels in the emulator, the library's product over the same bytes.
fn carry_out(
    emulator: &Emulator,
    library: &Library,
    plan: &ByLibrary,
    buffers: &mut BTreeMap<Role, Vec<u8>>,
) {
    emulator.carry_out(&plan.before, buffers, 3);
    let memory = plan.arguments.map(|role| Aligned::new(&buffers[&role]));
    let [w, x, workspace, out] = memory.each_ref().map(Aligned::pointer);
    let pointers = Pointers {
        w,
        x,
        workspace,
        out,
    };
    let mut log = Log::default();
    let stream: *mut c_void = (&raw mut log).cast();
    // SAFETY: the memory is as long as the plan says and outlives the call, which is done when it returns;
    // a stream of the fake is a log.
    unsafe { library.multiply(0, stream, plan.product, pointers) }.expect("a product");
    assert_eq!(log.num_products, 1, "on this stream");
    assert_eq!(log.workspace, workspace);
    assert!(log.workspace_bytes <= WORKSPACE_BYTES as u64);
    let [w, x, _, out] = &memory;
    for (role, memory) in plan.arguments.iter().zip([w, x]) {
        assert_eq!(buffers[role], memory.bytes(), "{role:?} was written");
    }
    buffers.insert(Role::Out, out.bytes().to_vec());
    emulator.carry_out(&plan.after, buffers, 4);
}

/// Every output against the sum in f64; the fake adds up in f64, so roundings are few.
fn check(emulator: &Emulator, library: &Library, case: &Case) {
    let mut random = Random::new(case.t as u64);
    let w = Weights::random(case.shape(), &mut random);
    let (bias, x) = (random.values(case.n), random.values(case.t * case.k));
    let mut buffers = BTreeMap::from([
        (Role::X, bytemuck::cast_slice(&x).to_vec()),
        (Role::Words, w.words.clone()),
        (Role::BlockScales, w.block_scales.clone()),
        (Role::Scales, bytemuck::cast_slice(&w.scales).to_vec()),
        (Role::Bias, bytemuck::cast_slice(&bias).to_vec()),
        (Role::Out, vec![0xff; case.t * case.n * 4]),
    ]);
    carry_out(emulator, library, &case.plan(), &mut buffers);
    let out: Vec<f32> = bytemuck::pod_collect_to_vec(&buffers[&Role::Out]);
    for token in 0..case.t {
        for n in 0..case.n {
            let terms =
                (0..case.k).map(|k| to_bf16(x[token * case.k + k]) * w.values[n * case.k + k]);
            let mut want = terms.sum::<f64>() * w.scale(0);
            if case.has_bias {
                want += f64::from(bias[n]);
            }
            if case.epilogue == Epilogue::Relu2 {
                want = want.max(0.0).powi(2);
            }
            let got = f64::from(out[token * case.n + n]);
            assert!(
                (got - want).abs() <= 1e-6 * (1.0 + want.abs()),
                "({token}, {n}): {got}, not {want}"
            );
        }
    }
}

#[test]
fn every_format_is_multiplied_as_it_is_stored() {
    let test = "library_products";
    let case = |format, [t, n, k]: [usize; 3]| Case {
        format,
        t,
        n,
        k,
        has_bias: false,
        epilogue: Epilogue::None,
    };
    // No two sizes alike, and none that another divides.
    let mut cases = vec![
        case(Format::Bf16, [5, 7, 24]),
        case(Format::Bf16, [9, 4, 40]),
        case(Format::Fp8, [6, 10, 48]),
        case(Format::Fp8, [3, 300, 16]),
        case(Format::Nvfp4, [7, 9, 192]),
        case(Format::Nvfp4, [10, 6, 64]),
    ];
    cases[1].has_bias = true;
    cases[3].epilogue = Epilogue::Relu2;
    cases[4].has_bias = true;
    cases[4].epilogue = Epilogue::Relu2;
    let launches = cases.iter().flat_map(|case| {
        let ByLibrary { before, after, .. } = case.plan();
        before.launches.into_iter().chain(after.launches)
    });
    let texts: BTreeMap<_, _> = launches
        .map(|launch| (launch.text.name.clone(), launch.text.source()))
        .collect();
    let emulator = Emulator::new(test, &texts.into_iter().collect::<Vec<_>>());
    let (Some(emulator), Some(library)) = (emulator, library(test)) else {
        return;
    };
    for case in &cases {
        check(&emulator, &library, case);
    }
}

/// Products of zeros over memory of their own.
struct Zeros {
    w: Aligned,
    x: Aligned,
    workspace: Aligned,
    out: Aligned,
}

impl Zeros {
    fn new(product: Product) -> Self {
        let Product { t, n, k, .. } = product;
        let zeros = |len| Aligned::new(&vec![0; len]);
        Self {
            w: zeros(2 * n * k + 8 + 64),
            x: zeros(2 * t * k),
            workspace: zeros(WORKSPACE_BYTES),
            out: zeros(4 * t * n),
        }
    }

    /// `offset` bytes into the memory of the weights.
    fn multiply(
        &self,
        library: &Library,
        device: u32,
        product: Product,
        offset: u64,
    ) -> Result<Log, String> {
        let pointers = Pointers {
            w: self.w.pointer() + offset,
            x: self.x.pointer(),
            workspace: self.workspace.pointer(),
            out: self.out.pointer(),
        };
        let mut log = Log::default();
        let stream: *mut c_void = (&raw mut log).cast();
        // SAFETY: the memory was made for the product, with room for the offset; a stream is a log.
        unsafe { library.multiply(device, stream, product, pointers) }.map(|()| log)
    }
}

const PRODUCT: Product = Product {
    t: 3,
    n: 4,
    k: 8,
    is_scaled: false,
};

#[test]
fn algorithms_are_asked_for_once() {
    let Some(library) = library("library_once") else {
        return;
    };
    let zeros = Zeros::new(PRODUCT);
    let multiply = |device, product, offset| {
        let log = zeros.multiply(&library, device, product, offset);
        log.map(|log| (log.num_heuristics, log.num_handles))
    };
    assert_eq!(multiply(0, PRODUCT, 0), Ok((1, 1)));
    assert_eq!(multiply(0, PRODUCT, 0), Ok((1, 1)));
    // Another number of tokens, another alignment, another device.
    assert_eq!(multiply(0, Product { t: 2, ..PRODUCT }, 0), Ok((2, 1)));
    assert_eq!(multiply(0, PRODUCT, 16), Ok((3, 1)));
    assert_eq!(multiply(1, PRODUCT, 0), Ok((4, 2)));
    assert_eq!(multiply(0, PRODUCT, 0), Ok((4, 2)));
}

#[test]
fn what_is_remembered_is_bounded() {
    let Some(library) = library("library_bounded") else {
        return;
    };
    let product = |t| Product {
        t,
        n: 2,
        k: 8,
        is_scaled: true,
    };
    let zeros = Zeros::new(product(1025));
    let living = |t| {
        zeros
            .multiply(&library, 0, product(t), 0)
            .expect("a product")
            .num_living
    };
    let of_one = living(1);
    assert_eq!(
        of_one, 4,
        "the product and its three matrices, the preference is gone"
    );
    for t in 2..=1024 {
        assert_eq!(living(t), of_one * t as u32);
    }
    assert_eq!(living(1025), of_one, "all but the last were forgotten");
}

#[test]
fn a_shape_without_algorithm_is_an_error_and_stays_one() {
    let Some(library) = library("library_refusal") else {
        return;
    };
    let lonely = Product { n: 1, ..PRODUCT };
    let zeros = Zeros::new(PRODUCT);
    for _ in 0..2 {
        let refused = zeros.multiply(&library, 0, lonely, 0);
        let why = refused.expect_err("the fake has none for a single output");
        assert!(why.contains("no algorithm for"), "{why}");
    }
    let log = zeros
        .multiply(&library, 0, PRODUCT, 0)
        .expect("others go on");
    assert_eq!(log.num_heuristics, 2, "the refusal was remembered");
}

#[test]
fn a_library_that_is_missing_or_lacks_a_function_says_so() {
    let why = |names: &[&str]| {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        Library::open(&names).err().expect("no such library")
    };
    let missing = why(&["libcublasLt.so.none"]);
    assert!(missing.contains("libcublasLt.so.none"), "{missing}");
    let renamed = "-DcublasLtMatmulAlgoGetHeuristic=cublasLtMatmulAlgoGetOther";
    let Some(old) = compile("library_old", &[renamed]) else {
        return;
    };
    // That one is there and too old says more than that another is not there.
    let lacking = why(&["libcublasLt.so.none", &old]);
    assert!(
        lacking.contains("lacks cublasLtMatmulAlgoGetHeuristic"),
        "{lacking}"
    );
    // The next that has all of it will do.
    let Some(whole) = compile("library_whole", &[]) else {
        return;
    };
    let library = Library::open(&[old, whole.clone()]).expect("the second is whole");
    assert_eq!(library.describe(), format!("cuBLASLt 13.10.2 ({whole})"));
}
