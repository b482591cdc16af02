//! The CUDA C++ of every kernel at Super's shapes, without a GPU: each operation is called on a
//! device that only writes down what is launched on it (`recorder`).
//!
//! With `NEMOSERVE_CUDA_TEXT=FOLDER` the texts are written to `FOLDER/sm_ARCH/`, for
//! `engine/kernels/cube/cuda/check.sh` to compile; with `NEMOSERVE_CUDA_ONLY=WORD...` only entries
//! that have one of the words in their names. Without the folder they are only made, for Hopper.

use std::fmt::Write as _;
use std::path::Path;

use cube_kernels::{Buffer, Client};

mod attention;
mod choice;
mod mamba;
mod norms;
mod products;
mod random;
mod recorder;
mod tensor;

/// Architectures to compile for, as `sm_90a` is written `90`.
const ARCHES: [u16; 4] = [80, 90, 100, 120];

/// An operation at the shapes and parameters of a model.
pub(crate) struct Entry {
    /// Words of `a-z0-9_`: the operation, what tells this entry from its others, and the shape.
    pub(crate) name: &'static str,
    /// Most bytes that a thread may spill: 0, unless the kernel's head comment says why.
    pub(crate) spill_bytes: usize,
    /// Architectures that have the operation; all of `ARCHES` unless its text is for one.
    pub(crate) arches: &'static [u16],
    /// Calls the operation on empty buffers. Each kernel that this launches is one text.
    pub(crate) call: fn(&Client),
}

impl Entry {
    /// No spills, every architecture.
    pub(crate) const fn new(name: &'static str, call: fn(&Client)) -> Self {
        Self {
            name,
            spill_bytes: 0,
            arches: &ARCHES,
            call,
        }
    }
}

/// Every kernel's operation, grouped by file: **to register a kernel, add one entry to its file's
/// list** (a new file: `mod` it above and name its list here):
///
/// ```ignore
/// pub(crate) const ENTRIES: &[Entry] = &[Entry::new("norm_4096", |client| {
///     let x = floats(client, 4096);
///     cube_kernels::norm(client, &x, &floats(client, 4096), 1e-5, &floats(client, 4096));
/// })];
/// ```
const ENTRIES: &[&[Entry]] = &[
    attention::ENTRIES,
    mamba::ENTRIES,
    norms::ENTRIES,
    products::ENTRIES,
    random::ENTRIES,
    tensor::LIBRARY,
    tensor::LINEAR,
    tensor::EXPERTS,
    tensor::HOPPER,
];

/// `len` f32 without values.
pub(crate) fn floats(client: &Client, len: usize) -> Buffer {
    Buffer::empty::<f32>(client, len)
}

/// `len` u32 or i32 without values.
pub(crate) fn words(client: &Client, len: usize) -> Buffer {
    Buffer::empty::<u32>(client, len)
}

#[test]
fn every_kernel_has_cuda_text() {
    let _turn = recorder::turn();
    let folder = std::env::var_os("NEMOSERVE_CUDA_TEXT");
    let only = std::env::var("NEMOSERVE_CUDA_ONLY").unwrap_or_default();
    let is_wanted = |entry: &&Entry| {
        only.is_empty()
            || only
                .split_whitespace()
                .any(|word| entry.name.contains(word))
    };
    let arches = if folder.is_some() { &ARCHES[..] } else { &[90] };
    for &arch in arches {
        let client = recorder::client(arch);
        for entry in ENTRIES.iter().copied().flatten().filter(is_wanted) {
            if !entry.arches.contains(&arch) {
                continue;
            }
            (entry.call)(&client);
            let launches = recorder::launches(&client);
            assert!(!launches.is_empty(), "{} launches nothing", entry.name);
            let kernels = launches.iter().enumerate();
            for (at, launch) in kernels.filter(|(_, launch)| !launch.is_call) {
                let text = text(entry, launch);
                if let Some(folder) = &folder {
                    write(
                        Path::new(folder),
                        arch,
                        &format!("{}.{at}", entry.name),
                        &text,
                    );
                }
            }
        }
    }
}

/// The text under a head that says how it is launched, for the check to report.
fn text(entry: &Entry, launch: &recorder::Launch) -> String {
    let source = match &launch.text {
        Ok(source) => source,
        Err(error) => panic!("{}: {error}", entry.name),
    };
    assert!(
        source.contains("__global__"),
        "{}: no kernel in {source}",
        entry.name
    );
    let mut text = String::new();
    let mut say = |what: &str, value: String| {
        writeln!(text, "// {what} {value}").expect("strings take everything");
    };
    if let Some((x, y, z)) = launch.cubes {
        say("cubes", format!("{x}x{y}x{z}"));
    }
    if let Some(units) = launch.units {
        say("units", units.to_string());
    }
    say("shared", launch.shared.to_string());
    say("spill", entry.spill_bytes.to_string());
    text + source
}

fn write(folder: &Path, arch: u16, name: &str, text: &str) {
    let suffix = if arch >= 90 { "a" } else { "" };
    let folder = folder.join(format!("sm_{arch}{suffix}"));
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    std::fs::write(folder.join(format!("{name}.cu")), text).expect("the text can be written");
}
