//! The emulator does what PTX says, and finds what it says it finds.

use emulated::weights::Random;
use emulated::{Emulator, Launch};

mod emulated;

const DEVICE: &str = include_str!("../cuda/device.cuh");

/// Kernels of one buffer to read, one to write and no sizes to speak of.
fn kernel(name: &str, body: &str) -> (String, String) {
    let text = format!(
        "{DEVICE}
struct Sizes {{ u32 unused; }};
extern \"C\" __global__ void {name}(Global<const u8> in, Global<u8> out, Sizes sizes) {{
    u32 lane = threadIdx.x;
    {body}
}}"
    );
    (name.into(), text)
}

fn run(
    emulator: &Emulator,
    kernel: &str,
    threads: u32,
    input: &[u32],
    seed: u32,
) -> Result<Vec<u32>, String> {
    let mut input: Vec<u8> = bytemuck::cast_slice(input).to_vec();
    let mut output = vec![0xff; 4 * 4 * threads as usize];
    let launch = Launch {
        kernel,
        grid: [1, 1, 1],
        threads,
        sizes: &[0],
        seed,
    };
    emulator.run(&launch, &mut [&mut input, &mut output])?;
    Ok(bytemuck::cast_slice(&output).to_vec())
}

fn bf16(bits: u32) -> f64 {
    f64::from(f32::from_bits(bits << 16))
}

/// Every lane loads the fragments of `a` [16, 16] and `b` [16, 8], both row-major, as the PTX ISA
/// lays them out, by formulas of its own.
#[test]
fn mma_multiplies_the_documented_fragments() {
    let body = "
    u32 g = lane >> 2, c = lane & 3;
    auto half = [&](u32 at) { return (u32)in[at * 2] | (u32)in[at * 2 + 1] << 8; };
    auto a = [&](u32 row, u32 column) { return half(row * 16 + column) | half(row * 16 + column + 1) << 16; };
    auto b = [&](u32 row, u32 column) { return half(256 + row * 8 + column) | half(256 + (row + 1) * 8 + column) << 16; };
    float d[4];
    for (u32 i = 0; i < 4; i++) d[i] = 0.5f * (float)(lane * 4 + i);
    mma_m16n8k16(d, a(g, 2 * c), a(g + 8, 2 * c), a(g, 2 * c + 8), a(g + 8, 2 * c + 8), b(2 * c, g), b(2 * c + 8, g));
    for (u32 i = 0; i < 4; i++) global_store4(out, (lane * 4 + i) * 4, bits_of(d[i]));";
    let Some(emulator) = Emulator::new("emulator_mma", &[kernel("product", body)]) else {
        return;
    };
    let mut random = Random::new(1);
    let halves: Vec<u32> = (0..384).map(|_| random.signed().to_bits() >> 16).collect();
    let words: Vec<u32> = halves
        .chunks(2)
        .map(|pair| pair[0] | pair[1] << 16)
        .collect();
    let output = run(&emulator, "product", 32, &words, 1).unwrap();
    for row in 0..16 {
        for column in 0..8 {
            // d0, d1: row g, columns 2c, 2c + 1; d2, d3: row g + 8.
            let (lane, i) = (row % 8 * 4 + column / 2, row / 8 * 2 + column % 2);
            let mut expected = 0.5 * (lane * 4 + i) as f64;
            for k in 0..16 {
                expected += bf16(halves[row * 16 + k]) * bf16(halves[256 + k * 8 + column]);
            }
            let value = f64::from(f32::from_bits(output[lane * 4 + i]));
            assert!(
                (value - expected).abs() < 1e-5,
                "({row}, {column}): {value}, not {expected}"
            );
        }
    }
}

#[test]
fn small_operations_do_as_told() {
    let body = "
    u32 at = lane * 16;
    uint4 v = global_load16(in, at);
    global_store4(out, at, pack_bf16x2(float_of(v.x), float_of(v.y)));
    global_store4(out, at + 4, mul_bf16x2(v.z, v.w));
    global_store4(out, at + 8, shuffle_up(v.x, 3));
    global_store2(out, at + 12, (u16)v.y);";
    let Some(emulator) = Emulator::new("emulator_small", &[kernel("small", body)]) else {
        return;
    };
    let mut random = Random::new(2);
    let mut words: Vec<u32> = (0..128).map(|_| random.bits() & 0xbf7f_bf7f).collect();
    // A tie to even, a tie to odd, NaN, infinity by rounding; a subnormal that becomes normal.
    words[0] = 0x3f80_8000;
    words[1] = 0x3f81_8000;
    words[4] = 0x7f80_0001;
    words[5] = 0x7f7f_ffff;
    words[2] = 0x8040_0001;
    words[3] = 0x7b00_7b00;
    let output = run(&emulator, "small", 32, &words, 1).unwrap();
    assert_eq!(output[0], 0x3f82_3f80);
    assert_eq!(output[4], 0x7f80_7fff);
    assert_eq!(output[1], 0xbb80_3880); // -2^-127 and 2^-133, times 2^119
    for lane in 0..32 {
        let [x, y] = [words[lane * 4], words[lane * 4 + 1]];
        if lane >= 2 {
            let round = |bits: u32| {
                (emulated::weights::to_bf16(f32::from_bits(bits)) as f32).to_bits() >> 16
            };
            assert_eq!(output[lane * 4], round(x) | round(y) << 16, "lane {lane}");
        }
        let from = if lane < 3 { lane } else { lane - 3 };
        assert_eq!(output[lane * 4 + 2], words[from * 4], "lane {lane}");
        assert_eq!(
            output[lane * 4 + 3],
            0xffff_0000 | y & 0xffff,
            "lane {lane}"
        );
    }
}

/// Pipelines and exchanges that are right, and the same with one thing missing.
#[test]
fn what_is_missing_is_found() {
    let ring = |commit: &str, wait: &str, barrier: &str| {
        format!(
            "SHARED(memory, 64 * 16);
            cp_async16(memory, lane * 16, in, lane * 16, true); {commit}
            {wait} {barrier}
            global_store4(out, lane * 4, shared_load4(memory, (63 - lane) * 16));
            cp_async_wait<0>();"
        )
    };
    let (commit, wait, barrier) = (
        "cp_async_commit();",
        "cp_async_wait<0>();",
        "__syncthreads();",
    );
    let cases = [
        ("right", ring(commit, wait, barrier), None),
        ("no_wait", ring(commit, "", barrier), Some("in flight")),
        (
            "late_wait",
            ring(commit, "cp_async_wait<1>();", barrier),
            Some("in flight"),
        ),
        ("no_commit", ring("", wait, barrier), Some("in flight")),
        ("no_barrier", ring(commit, wait, ""), Some("")),
        (
            "no_second_barrier",
            "SHARED(memory, 256); shared_store4(memory, lane * 4, lane); __syncthreads();
            u32 v = shared_load4(memory, (lane + 40) % 64 * 4);
            shared_store4(memory, lane * 4, v);"
                .into(),
            Some("without a barrier"),
        ),
        (
            "second_barrier",
            "SHARED(memory, 256); shared_store4(memory, lane * 4, lane); __syncthreads();
            u32 v = shared_load4(memory, (lane + 40) % 64 * 4); __syncthreads();
            shared_store4(memory, lane * 4, v);"
                .into(),
            None,
        ),
        (
            "unwritten",
            "SHARED(memory, 256); shared_load4(memory, lane * 4);".into(),
            Some("before it was written"),
        ),
        (
            "outside",
            "global_store4(out, 1024 + lane * 4, 0);".into(),
            Some("outside a buffer"),
        ),
        (
            "crooked",
            "global_load16(in, lane * 8);".into(),
            Some("alignment"),
        ),
        (
            "alone",
            "if (lane < 63) __syncthreads();".into(),
            Some("never come"),
        ),
        (
            "large",
            "SHARED(memory, 49153); shared_store4(memory, lane * 4, 0);".into(),
            Some("static shared"),
        ),
    ];
    let texts: Vec<_> = cases
        .iter()
        .map(|(name, body, _)| kernel(name, body))
        .collect();
    let Some(emulator) = Emulator::new("emulator_faults", &texts) else {
        return;
    };
    let input: Vec<u32> = (0..256).collect();
    for (name, _, expected) in &cases {
        for seed in 0..8 {
            let result = run(&emulator, name, 64, &input, seed);
            match expected {
                None => assert!(result.is_ok(), "{name}: {result:?}"),
                Some(expected) => {
                    let error = result.expect_err(name);
                    assert!(
                        error.contains(expected) && error.contains("emulator:"),
                        "{error}"
                    );
                }
            }
        }
    }
    let output = run(&emulator, "right", 64, &input, 1).unwrap();
    assert_eq!(output[0], 63 * 4);
}
