//! How fast one product reads its weights on the CPU, format by format.
//!
//!     cargo run --release -p kernels --example products -- [--threads N]
//!
//! Many matrices, so that none is found in a cache, and small, so that the fastest run is one that
//! nobody interrupted. `GB/s` counts bytes as stored; a packed format pays where it multiplies more
//! weights per second than bf16.

use std::time::Instant;

use burn::tensor::{DType, Device, Distribution, FloatDType, Int, Tensor, TensorData};
use kernels::{Arithmetic, Matrix, NVFP4_BLOCK, linear};

const N: usize = 512;
const K: usize = 4096;
const COPIES: usize = 32;
const RUNS: usize = 4;

fn main() {
    let mut threads = std::thread::available_parallelism().map_or(1, usize::from);
    let mut args = std::env::args().skip(1);
    while let Some(arg) = args.next() {
        match arg.as_str() {
            "--threads" => {
                let value = args.next().expect("a number follows");
                threads = value.parse().expect("a number of threads");
            }
            other => panic!("{other}: expected --threads"),
        }
    }
    kernels::set_num_threads(threads);
    println!(
        "{}, {threads} threads, {:.1} GB/s read",
        kernels::isa().name(),
        kernels::measure_read_bandwidth(threads)
    );
    for (name, bits, make) in [
        ("bf16", 16.0, plain as fn() -> Matrix),
        ("fp8", 8.0, fp8),
        ("nvfp4", 4.5, nvfp4),
    ] {
        let matrices: Vec<Matrix> = (0..COPIES).map(|_| make()).collect();
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            for m in [1, 8, 32] {
                let seconds = best(&matrices, m, arithmetic);
                let weights = (N * K) as f64 / seconds / 1e9;
                println!(
                    "{name:5} {arithmetic:?} M {m:2}: {:6.2} GB/s, {weights:6.2} G weights/s",
                    weights * bits / 8.0
                );
            }
        }
    }
}

/// Seconds of the fastest product.
fn best(matrices: &[Matrix], m: usize, arithmetic: Arithmetic) -> f64 {
    let x = Tensor::random([m, K], Distribution::Uniform(-1.0, 1.0), &Device::flex());
    let mut best = f64::INFINITY;
    for _ in 0..RUNS {
        for matrix in matrices {
            let start = Instant::now();
            let out = linear(x.clone(), matrix, None, arithmetic);
            best = best.min(start.elapsed().as_secs_f64());
            std::hint::black_box(out);
        }
    }
    best
}

fn plain() -> Matrix {
    let uniform = Distribution::Uniform(-1.0, 1.0);
    let weight: Tensor<2> = Tensor::random([N, K], uniform, &Device::flex());
    Matrix::Plain(weight.cast(FloatDType::BF16))
}

fn fp8() -> Matrix {
    Matrix::Fp8 {
        codes: codes([N, K], 0xf7),
        scale: Tensor::ones([1], &Device::flex()),
    }
}

fn nvfp4() -> Matrix {
    Matrix::Nvfp4 {
        codes: codes([N, K / 2], 0xff),
        block_scales: codes([N, K / NVFP4_BLOCK], 0x77),
        scale: Tensor::ones([1], &Device::flex()),
    }
}

/// Bytes of which only the bits of `mask` may be set: without those that are left out, none is NaN.
fn codes(shape: [usize; 2], mask: u8) -> Tensor<2, Int> {
    let bytes: Vec<u8> = (0..shape[0] * shape[1])
        .map(|at| (at.wrapping_mul(0x9e37_79b9) >> 13) as u8 & mask)
        .collect();
    let device = Device::flex();
    Tensor::from_data(TensorData::new(bytes, shape), (&device, DType::U8))
}
