//! The ways in which a device can multiply many tokens with a weight matrix, timed side by side: which
//! one serves is decided by what is measured.

use burn::tensor::{DType, Device, Tensor};

use crate::roof::{noise, shortest, wait};
use crate::{Arithmetic, Matrix, RandomForm, RandomPart, linear, random_weight, route};

/// Seconds that a product `[t, k] @ [n, k]^T` of bf16 weights takes, by way; `None` where this device
/// or build does not have it. Sums are f32, activations rounded to bf16.
pub fn time_products(device: &Device, [t, n, k]: [usize; 3]) -> Vec<(&'static str, Option<f64>)> {
    let part = RandomPart {
        seed: 1,
        num_bytes: 2 * n * k,
        form: RandomForm::Bf16 {
            step: 1.0 / 32768.0,
        },
    };
    let weight = random_weight(&[part], &[n, k], DType::BF16, device)
        .unwrap_or_else(|| noise([n, k], DType::BF16, device));
    let x = noise([t, k], DType::F32, device);
    let seconds = |f: &dyn Fn() -> Tensor<2>| shortest(|| wait(f().reshape([t * n]))).as_secs_f64();

    let matrix = Matrix::Plain(weight.clone());
    // Looked for before the first product, which chooses among what is there.
    let _ = crate::product_library(device);
    let served = seconds(&|| {
        crate::choose_ways(|| linear(x.clone(), &matrix, None, Arithmetic::Bf16AnyOrder))
    });
    let [mma, wgmma, cublaslt] = by_choice(&x, &matrix, &seconds);
    // Lavapipe cannot run the library's products.
    let has_library =
        cfg!(all(feature = "cuda", not(feature = "vulkan"))) && !route::is_cpu(device);
    let library = has_library.then(|| {
        let x = noise([t, k], DType::BF16, device);
        seconds(&|| x.clone().matmul(weight.clone().transpose()))
    });
    vec![
        ("as served", Some(served)),
        ("mma.sync", mma),
        ("wgmma", wgmma),
        ("cuBLASLt", cublaslt),
        ("cubek", library),
    ]
}

/// Ours on tensor cores, by either instruction, and the vendor's library.
#[cfg(feature = "cube")]
fn by_choice(
    x: &Tensor<2>,
    matrix: &Matrix,
    seconds: &dyn Fn(&dyn Fn() -> Tensor<2>) -> f64,
) -> [Option<f64>; 3] {
    use cube_kernels::Epilogue;
    use cube_kernels::tensor_core::choice::Way;
    use cube_kernels::tensor_core::{Unit, can, has, linear_by};

    use crate::cube;

    let Some(client) = cube::client(&x.device()) else {
        return [None; 3];
    };
    let ([t, _], [n, _]) = (x.dims(), matrix.dims());
    let (x, w) = (cube::view(x), cube::matrix(matrix));
    [Way::Own(Unit::Mma), Way::Own(Unit::Wgmma), Way::Library].map(|way| {
        let product = || {
            cube::filled(&x, [t, n], |client, out| {
                let x = cube::elements(&x);
                linear_by(way, client, &x, t, &w, None, Epilogue::None, out);
            })
        };
        (has(&client, way) && can(way, t, (&w).into())).then(|| seconds(&product))
    })
}

#[cfg(not(feature = "cube"))]
fn by_choice(
    _: &Tensor<2>,
    _: &Matrix,
    _: &dyn Fn(&dyn Fn() -> Tensor<2>) -> f64,
) -> [Option<f64>; 3] {
    [None; 3]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_processor_has_one_way() {
        let ways = time_products(&Device::flex(), [4, 8, 32]);
        let [served, rest @ ..] = &ways[..] else {
            panic!("{ways:?}");
        };
        assert!(served.1.is_some_and(|seconds| seconds > 0.0));
        assert!(rest.len() == 4 && rest.iter().all(|(_, seconds)| seconds.is_none()));
    }
}
