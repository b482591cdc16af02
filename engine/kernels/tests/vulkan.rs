//! Every operation behind Burn's tensors on a Vulkan device, against f64 loops: the way that a GPU
//! takes, on a processor if need be.
#![cfg(feature = "vulkan")]

use burn::tensor::{DType, Device, DeviceKind, DeviceType};
use kernels::self_test::{Outcome, Shapes, self_test};
use kernels::{Arithmetic, Format, KvFormat};

/// The first Vulkan device; `None`, said loudly, where the machine has none and
/// `NEMOSERVE_REQUIRE_VULKAN` does not insist.
fn device() -> Option<Device> {
    if !Device::enumerate(DeviceType::Vulkan).is_empty() {
        return Some(Device::vulkan(DeviceKind::DefaultDevice));
    }
    assert!(
        std::env::var_os("NEMOSERVE_REQUIRE_VULKAN").is_none(),
        "no Vulkan device: install mesa-vulkan-drivers"
    );
    eprintln!("SKIPPED: no Vulkan device (install mesa-vulkan-drivers to run the GPU kernels)");
    None
}

fn check(shapes: &Shapes) {
    let Some(device) = device() else {
        return;
    };
    assert!(kernels::is_gpu(&device) && !kernels::is_cpu(&device));
    let outcomes = self_test(&device, shapes);
    assert!(outcomes.len() > 10);
    let bad: Vec<&Outcome> = outcomes.iter().filter(|one| !one.is_ok()).collect();
    assert!(bad.is_empty(), "at {shapes:?}: {bad:?}");
}

#[test]
fn bf16_weights_as_they_are() {
    check(&Shapes::default());
}

#[test]
fn rounded_activations_and_cache() {
    check(&Shapes {
        arithmetic: Arithmetic::Bf16,
        kv: KvFormat::Bf16,
        seed: 2,
        ..Shapes::default()
    });
}

#[test]
fn wide_weights_and_narrow_cache() {
    check(&Shapes {
        weights: DType::F32,
        kv: KvFormat::Fp8,
        seed: 3,
        ..Shapes::default()
    });
    check(&Shapes {
        weights: DType::F16,
        seed: 4,
        ..Shapes::default()
    });
}

#[test]
fn packed_weights() {
    for (seed, format) in [(5, Format::Fp8), (6, Format::Nvfp4)] {
        for arithmetic in [Arithmetic::F32, Arithmetic::Bf16] {
            check(&Shapes {
                format,
                arithmetic,
                seed,
                ..Shapes::default()
            });
        }
    }
}

#[test]
fn a_step_of_decoding_rows() {
    check(&Shapes {
        rows: vec![(0, 1), (1, 1), (70, 1), (16, 1), (31, 1)],
        seed: 7,
        ..Shapes::default()
    });
}

/// What the tensor cores would take in chunks, at a shape that they take.
#[test]
fn a_mixer_of_a_models_heads() {
    let shapes = Shapes::default();
    check(&Shapes {
        mamba: kernels::MambaShape {
            heads: 4,
            head_dim: 64,
            state: 128,
            ..shapes.mamba
        },
        arithmetic: Arithmetic::Bf16,
        seed: 10,
        ..shapes
    });
}

#[test]
fn prompts_of_several_chunks() {
    check(&Shapes {
        rows: vec![(5, 150), (128, 131), (0, 3)],
        seed: 8,
        ..Shapes::default()
    });
}
