//! CUDA C++ on the processor: compiles kernel texts with the emulator and runs launches in it.

#![allow(dead_code, unreachable_pub)] // Each test uses its part.

pub mod weights;

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use cube_kernels::tensor_core::plan::{Plan, Role};

/// Some kernels, compiled.
pub struct Emulator {
    program: PathBuf,
    names: Vec<String>,
}

/// One launch.
pub struct Launch<'a> {
    pub kernel: &'a str,
    pub grid: [u32; 3],
    pub threads: u32,
    pub sizes: &'a [u32],
    /// Draws the order of warps.
    pub seed: u32,
}

impl Emulator {
    /// Compiles texts, each with the name of its entry point; `None`, said loudly, without a C++
    /// compiler.
    pub fn new(test: &str, texts: &[(String, String)]) -> Option<Self> {
        let compiler = std::env::var("CXX").unwrap_or_else(|_| "c++".into());
        if Command::new(&compiler).arg("--version").output().is_err() {
            assert!(
                std::env::var_os("NEMOSERVE_REQUIRE_VULKAN").is_none(),
                "no C++ compiler: install g++"
            );
            eprintln!("SKIPPED: no C++ compiler ({compiler}) to emulate CUDA with");
            return None;
        }
        let mut source = String::from("#include \"emulator.hpp\"\n");
        let mut cases = String::new();
        for (at, (name, text)) in texts.iter().enumerate() {
            write!(
                source,
                "namespace kernel_{at} {{\n{text}\n}}\n#undef ENTRY\n"
            )
            .unwrap();
            writeln!(
                cases,
                "case {at}: emulator::run(kernel_{at}::{name}, launch); break;"
            )
            .unwrap();
        }
        write!(
            source,
            "int main(int, char** files) {{
    std::FILE* input = std::fopen(files[1], \"rb\");
    emulator::Launch launch(input);
    switch (launch.kernel) {{ {cases} default: return 5; }}
    std::FILE* output = std::fopen(files[2], \"wb\");
    launch.finish(output);
    return std::fclose(output);
}}\n"
        )
        .unwrap();
        let folder = PathBuf::from(env!("CARGO_TARGET_TMPDIR"));
        let file = folder.join(format!("{test}.cpp"));
        std::fs::write(&file, source).unwrap();
        let program = folder.join(test);
        let include = concat!(env!("CARGO_MANIFEST_DIR"), "/cuda");
        let output = Command::new(&compiler)
            .args(["-std=c++17", "-O1", "-w", "-I", include, "-o"])
            .args([&program, &file])
            .output()
            .unwrap();
        let messages = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}:\n{messages}", file.display());
        let names = texts.iter().map(|(name, _)| name.clone()).collect();
        Some(Self { program, names })
    }

    /// Runs a launch over these buffers, or says what the kernel did wrong.
    pub fn run(&self, launch: &Launch<'_>, buffers: &mut [&mut Vec<u8>]) -> Result<(), String> {
        static RUNS: AtomicU32 = AtomicU32::new(0);
        let run = RUNS.fetch_add(1, Ordering::Relaxed);
        let kernel = self.names.iter().position(|name| name == launch.kernel);
        let kernel = kernel.unwrap_or_else(|| panic!("{} was not compiled", launch.kernel));
        let [x, y, z] = launch.grid;
        let mut words = vec![kernel as u32, x, y, z, launch.threads, launch.seed];
        words.push(launch.sizes.len() as u32);
        words.extend(launch.sizes);
        words.push(buffers.len() as u32);
        let mut bytes: Vec<u8> = bytemuck::cast_slice(&words).to_vec();
        for buffer in buffers.iter() {
            bytes.extend((buffer.len() as u32).to_le_bytes());
            bytes.extend(buffer.iter());
        }
        let input = self.program.with_extension(format!("{run}.in"));
        let output = self.program.with_extension(format!("{run}.out"));
        std::fs::write(&input, bytes).unwrap();
        let ran = Command::new(&self.program).args([&input, &output]).output();
        let ran = ran.unwrap();
        std::fs::remove_file(&input).unwrap();
        if !ran.status.success() {
            let message = String::from_utf8_lossy(&ran.stderr).into_owned();
            return Err(format!("{}: {message} ({})", launch.kernel, ran.status));
        }
        let bytes = std::fs::read(&output).unwrap();
        std::fs::remove_file(&output).unwrap();
        let mut at = 0;
        for buffer in buffers.iter_mut() {
            let len = buffer.len();
            buffer.copy_from_slice(&bytes[at..at + len]);
            at += len;
        }
        Ok(())
    }

    /// Carries out a plan over named buffers, as the device would; scratch starts poisoned.
    pub fn carry_out(&self, plan: &Plan, buffers: &mut BTreeMap<Role, Vec<u8>>, seed: u32) {
        for &(role, bytes) in &plan.scratch {
            buffers.insert(role, vec![0xff; bytes]); // NaN, in f32 and in bf16
        }
        for launch in &plan.launches {
            // A buffer may be named twice, the last alone is written.
            let mut copies: Vec<Vec<u8>> = launch
                .arguments
                .iter()
                .map(|role| buffers[role].clone())
                .collect();
            let mut arguments: Vec<&mut Vec<u8>> = copies.iter_mut().collect();
            let emulated = Launch {
                kernel: &launch.text.name,
                grid: launch.grid,
                threads: launch.text.num_threads,
                sizes: &launch.sizes,
                seed,
            };
            self.run(&emulated, &mut arguments)
                .unwrap_or_else(|error| panic!("{error}"));
            let written = launch.arguments.last().expect("a kernel writes something");
            let at = copies.len() - 1;
            for (role, copy) in launch.arguments[..at].iter().zip(&copies) {
                assert_eq!(
                    &buffers[role], copy,
                    "{} wrote to its {role:?}",
                    launch.text.name
                );
            }
            buffers.insert(*written, copies.swap_remove(at));
        }
    }
}
