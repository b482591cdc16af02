//! The CPU backend's buffers behind a `Tensor`, read and written without copies.

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use burn::tensor::kind::Basic;
use burn::tensor::{
    AllocationProperty, BackendPrimitive, Bytes, DType, Device, Int, Shape, Tensor, TensorData,
};
use burn_flex::{Flex, FlexTensor};
use half::{bf16, f16};

use crate::{read_back, route};

/// Numbers of any kind: the CPU backend has one buffer type for all.
pub(crate) trait OnFlex: Basic + BackendPrimitive<Flex, Primitive = FlexTensor> {}

impl<K: Basic + BackendPrimitive<Flex, Primitive = FlexTensor>> OnFlex for K {}

/// A contiguous view of a CPU tensor: shares the buffer, or copies a strided one.
pub(crate) fn view<const D: usize, K: OnFlex>(tensor: &Tensor<D, K>) -> FlexTensor {
    owned(tensor.clone())
}

/// A contiguous view of the U8 codes of a quantised tensor.
pub(crate) fn view_codes<const D: usize>(codes: &Tensor<D, Int>) -> FlexTensor {
    let codes = codes.clone().try_into_primitive::<Flex>().expect(
        "the operation was routed to the CPU by its first tensor, the others live there too",
    );
    if codes.is_contiguous() {
        codes
    } else {
        codes.to_contiguous()
    }
}

/// The same for a tensor that is used up.
pub(crate) fn owned<const D: usize, K: OnFlex>(tensor: Tensor<D, K>) -> FlexTensor {
    let tensor = tensor.try_into_primitive::<Flex>().expect(
        "the operation was routed to the CPU by its first tensor, the others live there too",
    );
    if tensor.is_contiguous() {
        tensor
    } else {
        tensor.to_contiguous()
    }
}

/// A cache tensor, about to be written in place.
///
/// # Panics
/// If it has another owner: the write would become a copy of the whole cache.
pub(crate) fn pool<const D: usize, K: OnFlex>(tensor: Tensor<D, K>) -> FlexTensor {
    let tensor = owned(tensor);
    assert!(
        tensor.is_unique(),
        "a cache tensor has one owner, or a write would copy it"
    );
    tensor
}

/// Back to a tensor.
pub(crate) fn tensor<const D: usize, K: OnFlex>(primitive: FlexTensor) -> Tensor<D, K> {
    Tensor::from_primitive::<Flex>(primitive)
}

/// A new F32 tensor over `values`, not copied.
pub(crate) fn from_vec<const D: usize>(values: Vec<f32>, shape: [usize; D]) -> Tensor<D> {
    tensor(FlexTensor::from_data(TensorData::new(values, shape)))
}

/// A new I32 tensor over `values`, not copied.
pub(crate) fn from_ids<const D: usize>(values: Vec<i32>, shape: [usize; D]) -> Tensor<D, Int> {
    Tensor::from_primitive::<Flex>(FlexTensor::from_data(TensorData::new(values, shape)))
}

/// The bytes of a contiguous U8 tensor.
pub(crate) fn codes(tensor: &FlexTensor) -> &[u8] {
    tensor
        .as_slice()
        .unwrap_or_else(|| panic!("codes are U8, not {:?}", tensor.dtype()))
}

/// The elements of a contiguous F32 tensor.
pub(crate) fn f32s(tensor: &FlexTensor) -> &[f32] {
    tensor
        .as_slice()
        .unwrap_or_else(|| panic!("activations are F32 on the CPU, not {:?}", tensor.dtype()))
}

/// The elements of a small tensor (a norm's weight, a bias) as f32, widened if need be.
pub(crate) fn widened(tensor: &FlexTensor) -> Cow<'_, [f32]> {
    match elements(tensor) {
        Elements::F32(values) => Cow::Borrowed(values),
        Elements::F16(values) => values.iter().map(|value| value.to_f32()).collect(),
        Elements::Bf16(values) => values.iter().map(|value| value.to_f32()).collect(),
    }
}

/// The elements of a contiguous weight tensor in their stored format.
#[derive(Clone, Copy)]
pub(crate) enum Elements<'a> {
    F32(&'a [f32]),
    F16(&'a [f16]),
    Bf16(&'a [bf16]),
}

/// Reads a weight tensor as it is stored.
pub(crate) fn elements(tensor: &FlexTensor) -> Elements<'_> {
    const CONTIGUOUS: &str = "the view is contiguous and of this dtype";
    match tensor.dtype() {
        DType::F32 => Elements::F32(tensor.as_slice().expect(CONTIGUOUS)),
        DType::F16 => Elements::F16(tensor.as_slice().expect(CONTIGUOUS)),
        DType::BF16 => Elements::Bf16(tensor.as_slice().expect(CONTIGUOUS)),
        other => panic!("weights are F32, F16 or BF16, not {other:?}"),
    }
}

impl Elements<'_> {
    /// The elements `range`.
    pub(crate) fn slice(self, range: Range<usize>) -> Self {
        match self {
            Self::F32(values) => Self::F32(&values[range]),
            Self::F16(values) => Self::F16(&values[range]),
            Self::Bf16(values) => Self::Bf16(&values[range]),
        }
    }
}

/// Calls `f` with the tensor's elements in row-major order: in place on the CPU when they are
/// contiguous F32, read back or widened otherwise.
pub fn with_f32<R, const D: usize>(tensor: &Tensor<D>, f: impl FnOnce(&[f32]) -> R) -> R {
    if route::is_cpu(&tensor.device()) && tensor.dtype() == DType::F32 {
        return f(f32s(&view(tensor)));
    }
    let values = tensor
        .try_to_vec_as::<f32>()
        .expect("any float reads back as f32");
    if !route::is_cpu(&tensor.device()) {
        read_back::note(size_of_val(values.as_slice()));
    }
    f(&values)
}

/// Part of a shared buffer, as `bytes` wants its owners.
struct Part {
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
}

impl AsRef<[u8]> for Part {
    fn as_ref(&self) -> &[u8] {
        &(*self.owner).as_ref()[self.range.clone()]
    }
}

/// Wraps bytes of a memory map as the codes of a quantised tensor, U8. On the CPU nothing is copied;
/// elsewhere they are uploaded.
///
/// # Panics
/// As [`weight_from_shared`].
pub fn codes_from_shared<const D: usize>(
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
    shape: [usize; D],
    device: &Device,
) -> Tensor<D, Int> {
    let part = Part { owner, range };
    let len = part.as_ref().len();
    assert_eq!(
        len,
        shape.iter().product::<usize>(),
        "bytes of a {shape:?} tensor of codes"
    );
    let bytes = Bytes::from_shared(bytes::Bytes::from_owner(part), AllocationProperty::File);
    if route::is_cpu(device) {
        let data = TensorData::from_bytes(bytes, shape.to_vec(), DType::U8);
        return Tensor::from_primitive::<Flex>(FlexTensor::from_data(data));
    }
    let flat = TensorData::from_bytes(bytes, [len], DType::U8);
    Tensor::<1, Int>::from_data(flat, (device, DType::U8)).reshape(shape)
}

/// Wraps bytes of a memory map as a weight tensor. On the CPU nothing is copied, unless the bytes
/// are misaligned for their dtype; elsewhere they are uploaded.
///
/// # Panics
/// If the range is outside the owner's bytes or does not hold exactly `shape`, or the dtype is not
/// F32, F16 or BF16: checkpoint headers are checked before.
pub fn weight_from_shared<const D: usize>(
    owner: Arc<dyn AsRef<[u8]> + Send + Sync>,
    range: Range<usize>,
    shape: &[usize],
    dtype: DType,
    device: &Device,
) -> Tensor<D> {
    assert!(
        matches!(dtype, DType::F32 | DType::F16 | DType::BF16),
        "weights are F32, F16 or BF16, not {dtype:?}"
    );
    assert_eq!(shape.len(), D, "dimensions of {shape:?}");
    let part = Part { owner, range };
    let source = part.as_ref();
    assert_eq!(
        source.len(),
        shape.iter().product::<usize>() * dtype.size(),
        "bytes of a {shape:?} {dtype:?} tensor"
    );
    let bytes = if source.as_ptr().addr().is_multiple_of(dtype.size()) {
        Bytes::from_shared(bytes::Bytes::from_owner(part), AllocationProperty::File)
    } else {
        aligned_copy(source, dtype)
    };
    if route::is_cpu(device) {
        let data = TensorData::from_bytes(bytes, shape.to_vec(), dtype);
        return tensor(FlexTensor::from_data(data));
    }
    // A device may pad the rows of what it is told to be a matrix; kernels want words in a row.
    let flat = TensorData::from_bytes(bytes, [shape.iter().product::<usize>()], dtype);
    Tensor::<1>::from_data(flat, (device, dtype)).reshape(Shape::from(shape.to_vec()))
}

fn aligned_copy(source: &[u8], dtype: DType) -> Bytes {
    if dtype == DType::F32 {
        let mut values = vec![0_f32; source.len() / size_of::<f32>()];
        bytemuck::cast_slice_mut::<f32, u8>(&mut values).copy_from_slice(source);
        Bytes::from_elems(values)
    } else {
        let mut values = vec![0_u16; source.len() / size_of::<u16>()];
        bytemuck::cast_slice_mut::<u16, u8>(&mut values).copy_from_slice(source);
        Bytes::from_elems(values)
    }
}
