//! The ways of large products in [`Arithmetic::Bf16AnyOrder`](crate::Arithmetic): which the device has,
//! and which is taken. On a CPU there are none.

use burn::tensor::Device;

use crate::Format;

/// A way that is for large products in any order alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProductWay {
    /// Ours, by Hopper's instruction.
    Wgmma,
    /// By NVIDIA's library.
    Library,
}

impl ProductWay {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Wgmma => "wgmma",
            Self::Library => "cuBLASLt",
        }
    }
}

/// A choice that was made by timing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ChosenWay {
    /// Outputs and inputs of the matrix.
    pub dims: [usize; 2],
    /// How it is stored.
    pub format: Format,
    /// Up to so many tokens.
    pub num_tokens: usize,
    /// For people.
    pub way: &'static str,
}

/// Those that the device has and that were not [refused](refuse_way).
pub fn reordering_ways(device: &Device) -> Vec<ProductWay> {
    let _ = product_library(device);
    #[cfg(feature = "cube")]
    if let Some(client) = crate::cube::client(device) {
        let ways = [ProductWay::Wgmma, ProductWay::Library].into_iter();
        return ways
            .filter(|way| cube_kernels::tensor_core::has(&client, (*way).into()))
            .collect();
    }
    Vec::new()
}

/// Whether [`Arithmetic::Bf16AnyOrder`](crate::Arithmetic) is another on this device than `Bf16`.
pub fn can_reorder(device: &Device) -> bool {
    !reordering_ways(device).is_empty()
}

/// Takes a way no more in this process: its results are wrong.
pub fn refuse_way(way: ProductWay) {
    #[cfg(feature = "cube")]
    cube_kernels::tensor_core::refuse(way.into());
    #[cfg(not(feature = "cube"))]
    unreachable!("{way:?} without a GPU");
}

/// Runs `f`; large products in any order that it makes on this thread are timed by every way, once for
/// each matrix and power of two of tokens, and go the fastest in this process from then on.
pub fn choose_ways<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "cube")]
    return cube_kernels::tensor_core::choice::choosing(f);
    #[cfg(not(feature = "cube"))]
    f()
}

/// Runs `f` with large products in any order made this way on this thread.
pub(crate) fn with_way<R>(way: ProductWay, f: impl FnOnce() -> R) -> R {
    #[cfg(feature = "cube")]
    return cube_kernels::tensor_core::choice::forced(way.into(), f);
    #[cfg(not(feature = "cube"))]
    unreachable!("{way:?} without a GPU, beside {}", size_of_val(&f))
}

/// What was chosen so far, sorted by matrix.
pub fn chosen_ways() -> Vec<ChosenWay> {
    #[cfg(feature = "cube")]
    return in_cube::chosen();
    #[cfg(not(feature = "cube"))]
    Vec::new()
}

/// The library that large products may go to, for people: which it is, or why there is none. `None` where
/// there is nothing to look for: the device is not NVIDIA's.
pub fn product_library(device: &Device) -> Option<Result<&'static str, &'static str>> {
    #[cfg(feature = "cuda")]
    if crate::has_tensor_cores(device) {
        return Some(crate::cuda::product_library());
    }
    let _ = device;
    None
}

/// Bytes of scratch that the library's products with these matrices take, `[outputs, inputs]`, in bf16 or
/// in fewer bits.
pub fn library_bytes(device: &Device, is_packed: bool, matrices: &[[usize; 2]]) -> u64 {
    if !reordering_ways(device).contains(&ProductWay::Library) {
        return 0;
    }
    #[cfg(feature = "cube")]
    return in_cube::library_bytes(is_packed, matrices);
    #[cfg(not(feature = "cube"))]
    unreachable!("{} matrices, {is_packed}, without a GPU", matrices.len());
}

#[cfg(feature = "cube")]
mod in_cube {
    use cube_kernels::tensor_core::choice::{CHOICES, Way};
    use cube_kernels::tensor_core::{Unit, plan::Shape};

    use super::{ChosenWay, ProductWay};
    use crate::Format;

    impl From<ProductWay> for Way {
        fn from(way: ProductWay) -> Self {
            match way {
                ProductWay::Wgmma => Self::Own(Unit::Wgmma),
                ProductWay::Library => Self::Library,
            }
        }
    }

    pub(super) fn chosen() -> Vec<ChosenWay> {
        let list = CHOICES.list().into_iter();
        list.map(|(case, num_tokens, way)| ChosenWay {
            dims: [case.shape.n, case.shape.k],
            format: match case.shape.format {
                cube_kernels::Format::Fp8 => Format::Fp8,
                cube_kernels::Format::Nvfp4 => Format::Nvfp4,
                _ => Format::Plain,
            },
            num_tokens,
            way: match way {
                Way::Own(Unit::Mma) => "mma.sync",
                Way::Own(Unit::Wgmma) => ProductWay::Wgmma.name(),
                Way::Library => ProductWay::Library.name(),
            },
        })
        .collect()
    }

    pub(super) fn library_bytes(is_packed: bool, matrices: &[[usize; 2]]) -> u64 {
        let format = if is_packed {
            cube_kernels::Format::Fp8
        } else {
            cube_kernels::Format::Bf16
        };
        let shapes = matrices.iter().map(|&[n, k]| Shape {
            format,
            experts: 1,
            n,
            k,
        });
        shapes.map(Shape::library_bytes).max().unwrap_or(0) as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_none_and_chooses_nothing() {
        let device = Device::flex();
        assert_eq!(reordering_ways(&device), []);
        assert!(!can_reorder(&device));
        assert_eq!(product_library(&device), None);
        assert_eq!(library_bytes(&device, true, &[[4096, 4096]]), 0);
        assert_eq!(choose_ways(|| 7), 7);
        assert_eq!(chosen_ways(), []);
    }

    #[cfg(feature = "cube")]
    #[test]
    fn a_librarys_scratch_is_its_workspace_and_the_widest_matrix_that_is_widened() {
        let check = |is_packed, matrices: &[[usize; 2]], want: u64| {
            assert_eq!(in_cube::library_bytes(is_packed, matrices), want);
        };
        check(false, &[[18_560, 4096], [4096, 8192]], 32 << 20);
        check(
            true,
            &[[18_560, 4096], [4096, 8192]],
            (32 << 20) + 2 * 18_560 * 4096 + 8,
        );
        // Super's head in bf16 would be a gigabyte: it does not go there.
        check(true, &[[131_072, 4096]], 0);
        check(true, &[], 0);
    }
}
