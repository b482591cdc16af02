//! A GPU's buffers behind a `Tensor`, and a step's layout on it: what the operations' `cube.rs` share.

use std::sync::OnceLock;

use burn::tensor::{DType, Device, Float, Int, Tensor, kind::Basic};
use burn_backend::TensorMetadata;
use burn_cubecl::tensor::CubeTensor;
use burn_cubecl::{CubeBackend, kernel::into_contiguous};
use burn_dispatch::DispatchDevice;
use cube_kernels::Matrix as CubeMatrix;
use cube_kernels::{Buffer, Client, Format, KvFormat, RowIndex, StateFormat, StepIndex};

use crate::{Arithmetic, KvPool, KvTensor, Layout, MambaShape, Matrix, RowLayout, Stack};

/// A contiguous view of a GPU tensor: shares the buffer, or copies a strided one.
pub(crate) fn view<const D: usize, K: Kind>(tensor: &Tensor<D, K>) -> CubeTensor {
    into_contiguous(K::primitive(tensor.clone()))
}

/// The kinds of tensors that kernels read.
pub(crate) trait Kind: Basic + Sized {
    fn primitive<const D: usize>(tensor: Tensor<D, Self>) -> CubeTensor;

    /// Back to a tensor.
    fn tensor<const D: usize>(primitive: CubeTensor) -> Tensor<D, Self>;
}

const ROUTED: &str =
    "the operation was routed to the GPU by its first tensor, the others live there too";

impl Kind for Float {
    fn primitive<const D: usize>(tensor: Tensor<D, Self>) -> CubeTensor {
        tensor.try_into_primitive::<CubeBackend>().expect(ROUTED)
    }

    fn tensor<const D: usize>(primitive: CubeTensor) -> Tensor<D, Self> {
        Tensor::from_primitive::<CubeBackend>(primitive)
    }
}

impl Kind for Int {
    fn primitive<const D: usize>(tensor: Tensor<D, Self>) -> CubeTensor {
        tensor.try_into_primitive::<CubeBackend>().expect(ROUTED)
    }

    fn tensor<const D: usize>(primitive: CubeTensor) -> Tensor<D, Self> {
        Tensor::from_primitive::<CubeBackend>(primitive)
    }
}

/// The elements of a contiguous tensor of 32-bit elements.
///
/// # Panics
/// If they are of another width: kernels read narrower ones as words.
pub(crate) fn elements(tensor: &CubeTensor) -> Buffer {
    assert_eq!(
        tensor.dtype.size(),
        4,
        "activations and vectors are 32 bits wide on a GPU, not {:?}",
        tensor.dtype
    );
    words(tensor)
}

/// The bytes of a contiguous tensor as 32-bit words, the last one perhaps beyond its end.
pub(crate) fn words(tensor: &CubeTensor) -> Buffer {
    let num_bytes = tensor.shape().num_elements() * tensor.dtype.size();
    assert_eq!(
        num_bytes % 4,
        0,
        "a tensor of {num_bytes} bytes is not whole words"
    );
    Buffer::new(tensor.handle.clone(), num_bytes / 4, 4)
}

/// Why an operation on its own refuses a step.
pub(crate) const NOT_PLAIN: &str =
    "a GPU takes copies on the way and pending tokens for convolution and scan together";

/// A new tensor on the device of `like`, with whatever was in its memory.
pub(crate) fn empty(like: &CubeTensor, shape: &[usize], dtype: DType) -> CubeTensor {
    let num_elements: usize = shape.iter().product();
    let handle = like.client.empty(num_elements.max(1) * dtype.size());
    CubeTensor::new_contiguous(
        like.client.clone(),
        like.device.clone(),
        shape.to_vec().into(),
        handle,
        dtype,
    )
}

/// A new F32 tensor that `f` fills.
pub(crate) fn filled<const D: usize>(
    like: &CubeTensor,
    shape: [usize; D],
    f: impl FnOnce(&Client, &Buffer),
) -> Tensor<D> {
    let out = empty(like, &shape, DType::F32);
    f(&like.client, &elements(&out));
    Kind::tensor(out)
}

/// A plain vector or matrix of weights as kernels read it.
pub(crate) fn plain(tensor: &CubeTensor) -> CubeMatrix {
    let shape = tensor.shape();
    let format = match tensor.dtype {
        DType::F32 => Format::F32,
        DType::F16 => Format::F16,
        DType::BF16 => Format::Bf16,
        other => panic!("plain weights are F32, F16 or BF16, not {other:?}"),
    };
    let matrix = CubeMatrix {
        format,
        experts: if shape.num_dims() == 3 { shape[0] } else { 1 },
        n: shape[shape.num_dims() - 2],
        k: shape[shape.num_dims() - 1],
        words: words(tensor),
        block_scales: None,
        scales: None,
    };
    matrix.check();
    matrix
}

/// A weight matrix as kernels read it.
pub(crate) fn matrix(matrix: &Matrix) -> CubeMatrix {
    let [n, k] = matrix.dims();
    let (format, codes, block_scales, scale) = match matrix {
        Matrix::Plain(weight) => return plain(&view(weight)),
        Matrix::Fp8 { codes, scale } => (Format::Fp8, codes, None, scale),
        Matrix::Nvfp4 {
            codes,
            block_scales,
            scale,
        } => (Format::Nvfp4, codes, Some(block_scales), scale),
    };
    let matrix = CubeMatrix {
        format,
        experts: 1,
        n,
        k,
        words: words(&view(codes)),
        block_scales: block_scales.map(|scales| words(&view(scales))),
        scales: Some(elements(&view(scale))),
    };
    matrix.check();
    matrix
}

/// Quantised matrices of one shape, one after the other.
pub(crate) fn stack(stack: &Stack) -> CubeMatrix {
    let [experts, n, k] = stack.dims();
    let matrix = CubeMatrix {
        format: if stack.block_scales.is_some() {
            Format::Nvfp4
        } else {
            Format::Fp8
        },
        experts,
        n,
        k,
        words: words(&view(&stack.codes)),
        block_scales: stack
            .block_scales
            .as_ref()
            .map(|scales| words(&view(scales))),
        scales: Some(elements(&view(&stack.scales))),
    };
    matrix.check();
    matrix
}

impl From<Arithmetic> for cube_kernels::Arithmetic {
    fn from(arithmetic: Arithmetic) -> Self {
        match arithmetic {
            Arithmetic::F32 => Self::F32,
            Arithmetic::Bf16 => Self::Bf16,
            Arithmetic::Bf16AnyOrder => Self::Bf16AnyOrder,
        }
    }
}

/// One side of a pool.
pub(crate) fn side(side: &KvTensor) -> CubeTensor {
    match side {
        KvTensor::Float(tensor) => view(tensor),
        KvTensor::Fp8 { codes, .. } => view(codes),
    }
}

/// How a pool stores its elements.
pub(crate) fn kv_format(pool: &KvPool) -> KvFormat {
    match (&pool.keys, &pool.values) {
        (KvTensor::Float(keys), KvTensor::Float(_)) if keys.dtype() == DType::F32 => KvFormat::F32,
        (KvTensor::Float(_), KvTensor::Float(_)) => KvFormat::Bf16,
        (keys, values) => KvFormat::Fp8 {
            k_scale: keys.scale(),
            v_scale: values.scale(),
        },
    }
}

/// What speaks to a GPU; `None` for other devices.
#[allow(clippy::match_wildcard_for_single_variants)] // Others come and go with features.
pub(crate) fn client(device: &Device) -> Option<Client> {
    match device.as_dispatch() {
        DispatchDevice::Cube(device) => Some(device.client()),
        #[allow(unreachable_patterns)]
        _ => None,
    }
}

/// How a pool of recurrent states, F32 or F16, keeps them.
pub(crate) fn state_format(ssm: &CubeTensor, seed: u32) -> StateFormat {
    match ssm.dtype {
        DType::F16 => StateFormat::F16 { seed },
        _ => StateFormat::F32,
    }
}

/// A row as kernels index it.
pub(crate) fn row_index(row: &RowLayout) -> RowIndex {
    RowIndex {
        num_tokens: row.num_tokens(),
        start: row.start,
        slot: row.slot,
        blocks: row.blocks.clone(),
    }
}

impl From<&MambaShape> for cube_kernels::MambaShape {
    fn from(shape: &MambaShape) -> Self {
        Self {
            heads: shape.heads,
            head_dim: shape.head_dim,
            groups: shape.groups,
            state: shape.state,
            conv_kernel: shape.conv_kernel,
        }
    }
}

/// The index of a step, uploaded when its first kernel asks. Equal to every other: it says nothing
/// that the layout does not.
#[derive(Clone, Debug, Default)]
pub(crate) struct StepCell(OnceLock<StepIndex>);

impl StepCell {
    /// An index that is on the device already.
    pub(crate) fn preset(index: StepIndex) -> Self {
        Self(index.into())
    }
}

impl PartialEq for StepCell {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for StepCell {}

impl Layout {
    /// This layout on the device; kernels index tokens without gaps, so rows must follow one another.
    pub(crate) fn on(&self, client: &Client) -> &StepIndex {
        self.index.0.get_or_init(|| {
            let mut next = 0;
            let rows: Vec<RowIndex> = self
                .rows
                .iter()
                .map(|row| {
                    assert_eq!(row.tokens.start, next, "rows follow one another");
                    next = row.tokens.end;
                    row_index(row)
                })
                .collect();
            StepIndex::upload(client, &rows, self.block_size).seen_from(self.first_position)
        })
    }
}
