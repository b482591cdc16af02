//! Weights from where they lie to the device.

use std::sync::Arc;

use burn::tensor::{DType, Device, Int, Tensor, TensorData};
use bytes::Bytes;
use half::{bf16, f16};
use kernels::{Arithmetic, ExpertMatrices, Matrix, RandomPart, Stack};
use safetensors::tensor::Dtype;

use super::dummy;
use super::readahead::{PIECE_BYTES, touch};
use super::weights::{ExpertWeights, MatrixWeight, Source, Weight};
use crate::engine_core::LoadProgress;
use crate::heart::Heart;

/// Takes weights one by one. On the CPU a stored weight stays in its memory map; its pages are
/// touched, so that "ready" means that they have been read.
pub(crate) struct Loader {
    pub(crate) device: Device,
    /// Of the products with these weights.
    pub(crate) arithmetic: Arithmetic,
    /// Of those that only guess.
    pub(crate) draft_arithmetic: Arithmetic,
    num_threads: usize,
    progress: LoadProgress,
    loaded_bytes: u64,
    total_bytes: u64,
}

impl Loader {
    pub(crate) fn new(
        device: Device,
        arithmetic: Arithmetic,
        num_threads: usize,
        progress: LoadProgress,
        total_bytes: u64,
    ) -> Self {
        progress.set(0, total_bytes);
        Self {
            device,
            arithmetic,
            draft_arithmetic: arithmetic,
            num_threads,
            progress,
            loaded_bytes: 0,
            total_bytes,
        }
    }

    /// What the loaded layers beat.
    pub(crate) fn heart(&self) -> Heart {
        self.progress.heart()
    }

    /// The weight in its stored format. A GPU reads rows as whole words; the odd ones of tiny models
    /// are widened.
    pub(crate) fn tensor<const D: usize>(&mut self, weight: &Weight) -> Tensor<D> {
        if !kernels::is_cpu(&self.device) && !has_whole_words(weight) {
            return self.small(weight);
        }
        let dtype = burn_dtype(weight.dtype());
        if let Some(made) = self.invented(&[weight], |parts, device| {
            kernels::random_weight(parts, &weight.shape, dtype, device)
        }) {
            return made;
        }
        let bytes = self.bytes(weight);
        let range = 0..bytes.len();
        kernels::weight_from_shared(Arc::new(bytes), range, &weight.shape, dtype, &self.device)
    }

    /// The matrix in its stored format.
    pub(crate) fn matrix(&mut self, weight: &MatrixWeight) -> Matrix {
        match weight {
            MatrixWeight::Plain(weight) => Matrix::Plain(self.tensor(weight)),
            MatrixWeight::Fp8 { codes, .. }
                if !kernels::is_cpu(&self.device) && !has_whole_words(codes) =>
            {
                let data = TensorData::new(self.written_out(weight), codes.shape.clone());
                Matrix::Plain(Tensor::from_data(data, (&self.device, DType::F32)))
            }
            MatrixWeight::Fp8 { codes, scale } => Matrix::Fp8 {
                codes: self.codes(codes),
                scale: self.vector(scale, |scale| scale),
            },
            MatrixWeight::Nvfp4 {
                codes,
                block_scales,
                scale,
            } => Matrix::Nvfp4 {
                codes: self.codes(codes),
                block_scales: self.codes(block_scales),
                scale: self.vector(scale, |scale| scale),
            },
        }
    }

    /// Every expert's matrix of one kind: each where it lies on the CPU, all in one buffer elsewhere
    /// if they are stored alike.
    pub(crate) fn experts(&mut self, weights: &ExpertWeights) -> ExpertMatrices {
        match weights {
            ExpertWeights::Fused(weight) => ExpertMatrices::Fused(self.tensor(weight)),
            ExpertWeights::PerExpert(each) => {
                let stacked = if kernels::is_cpu(&self.device) {
                    None
                } else {
                    self.stacked(each)
                };
                stacked.unwrap_or_else(|| {
                    ExpertMatrices::PerExpert(each.iter().map(|one| self.matrix(one)).collect())
                })
            }
        }
    }

    /// Experts in one buffer; `None` if they are not stored alike.
    fn stacked(&mut self, each: &[MatrixWeight]) -> Option<ExpertMatrices> {
        let codes: Vec<&Weight> = each.iter().map(MatrixWeight::codes).collect();
        let block_scales: Vec<&Weight> =
            each.iter().filter_map(MatrixWeight::block_scales).collect();
        let scales: Vec<&Weight> = each.iter().filter_map(MatrixWeight::scale).collect();
        // Their codes have one element type, and so they one format.
        let shape = stack_shape(&codes)?;
        if block_scales.is_empty() && !has_whole_words(codes[0]) {
            let values: Vec<f32> = each.iter().flat_map(|one| self.written_out(one)).collect();
            let data = TensorData::new(values, shape);
            let all = Tensor::from_data(data, (&self.device, DType::F32));
            return Some(ExpertMatrices::Fused(all));
        }
        if scales.is_empty() {
            let dtype = burn_dtype(codes[0].dtype());
            if let Some(made) = self.invented(&codes, |parts, device| {
                kernels::random_weight(parts, &shape, dtype, device)
            }) {
                return Some(ExpertMatrices::Fused(made));
            }
            let bytes = self.concatenated(&codes);
            let range = 0..bytes.len();
            let device = &self.device;
            let all = kernels::weight_from_shared(Arc::new(bytes), range, &shape, dtype, device);
            return Some(ExpertMatrices::Fused(all));
        }
        let scales: Vec<f32> = scales
            .iter()
            .flat_map(|scale| self.numbers(scale))
            .collect();
        Some(ExpertMatrices::Stacked(Stack {
            codes: self.stacked_codes(&codes)?,
            block_scales: if block_scales.is_empty() {
                None
            } else {
                Some(self.stacked_codes(&block_scales)?)
            },
            scales: Tensor::from_floats(scales.as_slice(), &self.device),
        }))
    }

    fn stacked_codes(&mut self, each: &[&Weight]) -> Option<Tensor<3, Int>> {
        let shape = stack_shape(each)?;
        if let Some(made) = self.invented(each, |parts, device| {
            kernels::random_codes(parts, shape, device)
        }) {
            return Some(made);
        }
        let bytes = self.concatenated(each);
        let range = 0..bytes.len();
        let device = &self.device;
        Some(kernels::codes_from_shared(
            Arc::new(bytes),
            range,
            shape,
            device,
        ))
    }

    /// One layer's worth on the host, never the whole model's.
    fn concatenated(&mut self, each: &[&Weight]) -> Vec<u8> {
        let len: u64 = each.iter().map(|weight| weight.num_bytes()).sum();
        let mut all = Vec::with_capacity(len as usize);
        for weight in each {
            all.extend_from_slice(&self.bytes(weight));
        }
        all
    }

    /// The codes of a quantised matrix.
    fn codes(&mut self, weight: &Weight) -> Tensor<2, Int> {
        let shape = [weight.shape[0], weight.shape[1]];
        if let Some(made) = self.invented(&[weight], |parts, device| {
            kernels::random_codes(parts, shape, device)
        }) {
            return made;
        }
        let bytes = self.bytes(weight);
        let range = 0..bytes.len();
        kernels::codes_from_shared(Arc::new(bytes), range, shape, &self.device)
    }

    /// Dummies that the device makes itself, one after the other; `None` for all others.
    fn invented<T>(
        &mut self,
        each: &[&Weight],
        make: impl FnOnce(&[RandomPart], &Device) -> Option<T>,
    ) -> Option<T> {
        let parts: Option<Vec<RandomPart>> =
            each.iter().map(|weight| random_part(weight)).collect();
        let parts = parts.filter(|_| kernels::is_gpu(&self.device))?;
        let made = make(&parts, &self.device)?;
        let num_bytes = parts.iter().map(|part| part.num_bytes as u64).sum::<u64>();
        self.loaded_bytes += num_bytes;
        self.progress.set(self.loaded_bytes, self.total_bytes);
        Some(made)
    }

    /// A small tensor that is no matrix: as stored on the CPU, f32 elsewhere, whose kernels read
    /// such in one format.
    pub(crate) fn small<const D: usize>(&mut self, weight: &Weight) -> Tensor<D> {
        if kernels::is_cpu(&self.device) {
            return self.tensor(weight);
        }
        let values = self.numbers(weight);
        let data = TensorData::new(values, weight.shape.clone());
        Tensor::from_data(data, (&self.device, DType::F32))
    }

    /// A small vector as f32, whatever it is stored as, each element through `f`.
    pub(crate) fn vector(&mut self, weight: &Weight, f: impl Fn(f32) -> f32) -> Tensor<1> {
        let values: Vec<f32> = self.numbers(weight).into_iter().map(f).collect();
        Tensor::from_floats(values.as_slice(), &self.device)
    }

    /// The numbers of a small plain or FP8 matrix.
    fn written_out(&mut self, weight: &MatrixWeight) -> Vec<f32> {
        let Some(scale) = weight.scale() else {
            return self.numbers(weight.codes());
        };
        let scale = self.numbers(scale)[0];
        let codes = self.bytes(weight.codes());
        let decoded = codes.iter().map(|code| kernels::e4m3::decode(*code));
        decoded.map(|number| number * scale).collect()
    }

    /// A small weight's numbers.
    fn numbers(&mut self, weight: &Weight) -> Vec<f32> {
        let bytes = self.bytes(weight);
        match weight.dtype() {
            Dtype::F32 => widened(&bytes, f32::from_le_bytes),
            Dtype::F16 => widened(&bytes, |bytes| f16::from_le_bytes(bytes).to_f32()),
            Dtype::BF16 => widened(&bytes, |bytes| bf16::from_le_bytes(bytes).to_f32()),
            other => unreachable!("{other} was refused when the weight was located"),
        }
    }

    fn bytes(&mut self, weight: &Weight) -> Bytes {
        let bytes = self.read(weight);
        self.loaded_bytes += bytes.len() as u64;
        self.progress.set(self.loaded_bytes, self.total_bytes);
        bytes
    }

    fn read(&self, weight: &Weight) -> Bytes {
        match &weight.source {
            Source::Stored(tensor) => {
                let heart = self.heart();
                // An embedding table on a slow disk takes minutes.
                for piece in tensor.data.chunks(PIECE_BYTES) {
                    touch(piece);
                    heart.beat();
                }
                tensor.data.clone()
            }
            Source::Dummy { init, seed } => {
                let count = weight.num_elements() as usize;
                dummy::generate(*init, *seed, count, self.num_threads)
            }
            // A rank of several makes the whole of a dummy, so that its part is the same numbers that
            // one rank alone would have.
            Source::Cut(cut) => match &cut.whole.source {
                // Read as it is copied.
                Source::Stored(tensor) => cut.apply(&tensor.data),
                _ => cut.apply(&self.read(&cut.whole)),
            },
        }
    }
}

/// What a device makes a dummy from. Ranks' parts of a dummy are cut from the whole on the host.
fn random_part(weight: &Weight) -> Option<RandomPart> {
    let Source::Dummy { init, seed } = weight.source else {
        return None;
    };
    Some(RandomPart {
        seed,
        num_bytes: weight.num_bytes() as usize,
        form: dummy::random_form(init)?,
    })
}

/// Whether a row of the weight is a whole number of 32-bit words.
fn has_whole_words(weight: &Weight) -> bool {
    let columns = weight.shape.last().copied().unwrap_or(1);
    (columns * weight.dtype().bitsize()).is_multiple_of(32)
}

/// The shape of matrices of one shape and element type in a row.
fn stack_shape(each: &[&Weight]) -> Option<[usize; 3]> {
    let first = each.first()?;
    let is_alike =
        |weight: &&Weight| weight.shape == first.shape && weight.dtype() == first.dtype();
    each.iter()
        .all(is_alike)
        .then(|| [each.len(), first.shape[0], first.shape[1]])
}

fn widened<const N: usize>(bytes: &[u8], number: impl Fn([u8; N]) -> f32) -> Vec<f32> {
    let (numbers, _) = bytes.as_chunks();
    numbers.iter().map(|bytes| number(*bytes)).collect()
}

fn burn_dtype(dtype: Dtype) -> DType {
    match dtype {
        Dtype::F32 => DType::F32,
        Dtype::F16 => DType::F16,
        Dtype::BF16 => DType::BF16,
        other => unreachable!("{other} was refused when the weight was located"),
    }
}

#[cfg(all(test, feature = "vulkan"))]
mod tests {
    use std::path::Path;

    use burn::tensor::{DeviceKind, DeviceType};

    use super::*;
    use crate::checkpoint::StoredTensor;
    use crate::model::weights::Init;

    fn stored(dtype: Dtype, shape: &[usize], bytes: Vec<u8>) -> Weight {
        Weight {
            shape: shape.to_vec(),
            source: Source::Stored(StoredTensor {
                path: Path::new("here").into(),
                dtype,
                shape: shape.to_vec(),
                data: bytes.into(),
            }),
        }
    }

    /// Sixteen columns, as many rows as asked for; every byte another one.
    fn nvfp4(first: u8, rows: usize) -> MatrixWeight {
        let bytes = |start: u8, count: usize| (start..).take(count).collect();
        MatrixWeight::Nvfp4 {
            codes: stored(Dtype::U8, &[rows, 8], bytes(first, 8 * rows)),
            block_scales: stored(Dtype::F8_E4M3, &[rows, 1], bytes(first + 100, rows)),
            scale: stored(Dtype::F32, &[1], f32::from(first).to_le_bytes().to_vec()),
        }
    }

    #[test]
    fn a_device_makes_the_bytes_of_the_host() {
        if Device::enumerate(DeviceType::Vulkan).is_empty() {
            eprintln!("no Vulkan device: skipped");
            return;
        }
        let device = Device::vulkan(DeviceKind::DefaultDevice);
        let dummy = |init, seed, shape: [usize; 2]| Weight {
            shape: shape.to_vec(),
            source: Source::Dummy { init, seed },
        };
        let progress = LoadProgress::unwatched();
        let mut loader = Loader::new(device, Arithmetic::F32, 1, progress, 1 << 30);
        // Over a piece, and an odd number of words.
        let odd = [3, 4 * 11_003];
        let mut num_bytes = 0;
        for (at, init) in [Init::Fp8Codes, Init::Nvfp4Codes, Init::BlockScales]
            .into_iter()
            .enumerate()
        {
            let seed = 0xfedc_ba98_7654_3210 + at as u64;
            let weight = dummy(init, seed, odd);
            assert!(random_part(&weight).is_some());
            let expect = dummy::generate(init, seed, 3 * odd[1], 1);
            let made = loader.codes(&weight).into_data();
            assert!(made.as_bytes() == &expect[..], "{init:?}");
            num_bytes += expect.len() as u64;
            assert_eq!(loader.loaded_bytes, num_bytes);
        }
        for std in [0.02, 1.0] {
            let init = Init::Random { std };
            let made: Tensor<2> = loader.tensor(&dummy(init, 77, odd));
            let expect = dummy::generate(init, 77, 3 * odd[1], 1);
            assert!(made.into_data().as_bytes() == &expect[..], "{std}");
        }

        // Several in one buffer, each from its own seed.
        let each = [1, 2, 3].map(|seed| dummy(Init::Fp8Codes, seed, [5, 8]));
        let stacked = loader.stacked_codes(&each.each_ref()).expect("alike");
        let expect = [1, 2, 3].map(|seed| dummy::generate(Init::Fp8Codes, seed, 40, 1));
        assert_eq!(stacked.into_data().as_bytes(), expect.concat());
    }

    #[test]
    fn experts_elsewhere_lie_in_one_buffer() {
        if Device::enumerate(DeviceType::Vulkan).is_empty() {
            eprintln!("no Vulkan device: skipped");
            return;
        }
        let device = Device::vulkan(DeviceKind::DefaultDevice);
        let mut loader = Loader::new(device, Arithmetic::F32, 1, LoadProgress::unwatched(), 0);
        let each = ExpertWeights::PerExpert(vec![nvfp4(1, 3), nvfp4(50, 3)]);
        let ExpertMatrices::Stacked(stack) = loader.experts(&each) else {
            panic!("alike and quantised");
        };
        assert_eq!(stack.dims(), [2, 3, 16]);
        let codes: Vec<u8> = (1..25).chain(50..74).collect();
        assert_eq!(stack.codes.into_data().as_bytes(), codes);
        let block_scales = stack.block_scales.expect("NVFP4 has them").into_data();
        assert_eq!(block_scales.as_bytes(), [101, 102, 103, 150, 151, 152]);
        let scales = stack.scales.try_to_vec_as::<f32>().expect("numbers");
        assert_eq!(scales, [1.0, 50.0]);

        let plain =
            |byte| MatrixWeight::Plain(stored(Dtype::BF16, &[1, 2], vec![byte, 0, 0, byte]));
        let each = ExpertWeights::PerExpert(vec![plain(1), plain(2)]);
        let ExpertMatrices::Fused(all) = loader.experts(&each) else {
            panic!("alike and plain");
        };
        assert_eq!(all.dims(), [2, 1, 2]);
        assert_eq!(all.into_data().as_bytes(), [1, 0, 0, 1, 2, 0, 0, 2]);

        let unlike = ExpertWeights::PerExpert(vec![nvfp4(1, 1), plain(2)]);
        assert!(matches!(
            loader.experts(&unlike),
            ExpertMatrices::PerExpert(_)
        ));
    }
}
