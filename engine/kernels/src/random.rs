//! Tensors of random bits, made on the device that will read them.

#[cfg(feature = "cube")]
use burn::tensor::Shape;
use burn::tensor::{DType, Device, Int, Tensor};
#[cfg(feature = "cube")]
use burn_cubecl::tensor::CubeTensor;
#[cfg(feature = "cube")]
use burn_dispatch::DispatchDevice;

#[cfg(feature = "cube")]
use crate::cube::{Kind, words};

/// Bytes that share one stream of random numbers, on the host as on a device.
pub const RANDOM_PIECE_BYTES: usize = 1 << 17;

/// What random bits are made into.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum RandomForm {
    /// Any bytes.
    Bytes,
    /// Any E4M3 codes but NaN.
    E4m3,
    /// E4M3 codes of numbers from 1 to under 2.
    OneToTwo,
    /// Uniform bf16 numbers, `step` between neighbours before they are rounded, symmetric around 0.
    Bf16 {
        /// The distance.
        step: f32,
    },
}

/// Bytes of one tensor, or of one of those that lie in a row.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RandomPart {
    /// Equal seeds make equal bytes.
    pub seed: u64,
    /// How many.
    pub num_bytes: usize,
    /// Of what kind.
    pub form: RandomForm,
}

/// The codes of quantised matrices, one part after the other. `None` where they are to be made on the
/// host: the device is no GPU, or a part is not whole words.
///
/// # Panics
/// If the parts are not as many bytes as the shape takes.
pub fn random_codes<const D: usize>(
    parts: &[RandomPart],
    shape: [usize; D],
    device: &Device,
) -> Option<Tensor<D, Int>> {
    #[cfg(feature = "cube")]
    return filled(parts, &shape, DType::U8, device).map(Kind::tensor);
    #[cfg(not(feature = "cube"))]
    {
        let _ = (parts, shape, device, DType::U8);
        None
    }
}

/// The same for plain weights.
///
/// # Panics
/// If the parts are not as many bytes as the shape takes.
pub fn random_weight<const D: usize>(
    parts: &[RandomPart],
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Option<Tensor<D>> {
    #[cfg(feature = "cube")]
    return filled(parts, shape, dtype, device).map(Kind::tensor);
    #[cfg(not(feature = "cube"))]
    {
        let _ = (parts, shape, dtype, device);
        None
    }
}

#[cfg(feature = "cube")]
#[allow(clippy::match_wildcard_for_single_variants)] // Others come and go with features.
fn filled(
    parts: &[RandomPart],
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Option<CubeTensor> {
    let num_bytes: usize = parts.iter().map(|part| part.num_bytes).sum();
    assert_eq!(
        num_bytes,
        shape.iter().product::<usize>() * dtype.size(),
        "bytes of a {shape:?} {dtype:?} tensor"
    );
    if num_bytes == 0 || parts.iter().any(|part| !part.num_bytes.is_multiple_of(4)) {
        return None;
    }
    let device = match device.as_dispatch() {
        DispatchDevice::Cube(device) => device.clone(),
        #[allow(unreachable_patterns)]
        _ => return None,
    };
    let client = device.client();
    let handle = client.empty(num_bytes);
    let shape = Shape::from(shape.to_vec());
    let tensor = CubeTensor::new_contiguous(client, device, shape, handle, dtype);
    let out = words(&tensor);
    let mut at = 0;
    for part in parts {
        let len = part.num_bytes / 4;
        let (seed, form) = (part.seed, part.form.into());
        let range = (at, len);
        cube_kernels::fill_random(&tensor.client, &out, range, seed, RANDOM_PIECE_BYTES, form);
        at += len;
    }
    Some(tensor)
}

#[cfg(feature = "cube")]
impl From<RandomForm> for cube_kernels::RandomForm {
    fn from(form: RandomForm) -> Self {
        match form {
            RandomForm::Bytes => Self::Bytes,
            RandomForm::E4m3 => Self::E4m3,
            RandomForm::OneToTwo => Self::OneToTwo,
            RandomForm::Bf16 { step } => Self::Bf16 { step },
        }
    }
}
