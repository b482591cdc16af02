//! Parts of a tensor: what one rank of several needs. Matrices are cut as such, whatever their
//! format: the codes with their block scales, and the scale of the whole for every part.

use std::ops::Range;

use bytes::Bytes;
use kernels::NVFP4_BLOCK;

use super::{ExpertWeights, LinearWeights, MatrixWeight, Source, Weight};
use crate::checkpoint::StoredTensor;

/// NVFP4 has a scale per block of columns, and these columns end inside one.
#[derive(Debug, thiserror::Error)]
#[error(
    "the columns {} to {} of an NVFP4 matrix {dims:?} are no whole blocks of {NVFP4_BLOCK}",
    columns.start,
    columns.end
)]
pub(crate) struct SplitBlock {
    dims: [usize; 2],
    columns: Range<usize>,
}

/// Ranges of one dimension of a tensor, one after the other.
#[derive(Clone)]
pub(crate) struct Cut {
    pub(crate) whole: Weight,
    dim: usize,
    ranges: Vec<Range<usize>>,
}

impl Weight {
    /// The given ranges of dimension `dim`, in that order. One range of whole rows of a stored tensor
    /// stays a view of the memory map; anything else is copied when it is loaded.
    pub(crate) fn cut(&self, dim: usize, ranges: &[Range<usize>]) -> Self {
        let size = self.shape[dim];
        assert!(
            ranges
                .iter()
                .all(|part| part.start < part.end && part.end <= size),
            "parts {ranges:?} of dimension {dim} of {:?}",
            self.shape
        );
        if let [only] = ranges
            && *only == (0..size)
        {
            return self.clone();
        }
        let mut shape = self.shape.clone();
        shape[dim] = ranges.iter().map(Range::len).sum();
        let source = match (&self.source, ranges) {
            (Source::Stored(tensor), [rows]) if dim == 0 => {
                let row_bytes = tensor.data.len() / size;
                Source::Stored(StoredTensor {
                    path: tensor.path.clone(),
                    dtype: tensor.dtype,
                    shape: shape.clone(),
                    data: tensor
                        .data
                        .slice(rows.start * row_bytes..rows.end * row_bytes),
                })
            }
            _ => Source::Cut(Box::new(Cut {
                whole: self.clone(),
                dim,
                ranges: ranges.to_vec(),
            })),
        };
        Self { shape, source }
    }

    /// A range of rows.
    pub(crate) fn rows(&self, range: &Range<usize>) -> Self {
        self.parts(std::slice::from_ref(range))
    }

    /// Several ranges of rows.
    pub(crate) fn parts(&self, ranges: &[Range<usize>]) -> Self {
        self.cut(0, ranges)
    }

    /// A range of the last dimension.
    fn columns(&self, range: &Range<usize>) -> Self {
        self.cut(self.shape.len() - 1, std::slice::from_ref(range))
    }
}

impl MatrixWeight {
    /// `[N, K]`.
    pub(crate) fn dims(&self) -> [usize; 2] {
        match self {
            Self::Plain(weight) | Self::Fp8 { codes: weight, .. } => {
                [weight.shape[0], weight.shape[1]]
            }
            Self::Nvfp4 { codes, .. } => [codes.shape[0], 2 * codes.shape[1]],
        }
    }

    pub(crate) fn rows(&self, range: &Range<usize>) -> Self {
        self.parts(std::slice::from_ref(range))
    }

    fn parts(&self, ranges: &[Range<usize>]) -> Self {
        match self {
            Self::Plain(weight) => Self::Plain(weight.parts(ranges)),
            Self::Fp8 { codes, scale } => Self::Fp8 {
                codes: codes.parts(ranges),
                scale: scale.clone(),
            },
            Self::Nvfp4 {
                codes,
                block_scales,
                scale,
            } => Self::Nvfp4 {
                codes: codes.parts(ranges),
                block_scales: block_scales.parts(ranges),
                scale: scale.clone(),
            },
        }
    }

    pub(crate) fn columns(&self, range: &Range<usize>) -> Result<Self, SplitBlock> {
        Ok(match self {
            Self::Plain(weight) => Self::Plain(weight.columns(range)),
            Self::Fp8 { codes, scale } => Self::Fp8 {
                codes: codes.columns(range),
                scale: scale.clone(),
            },
            Self::Nvfp4 {
                codes,
                block_scales,
                scale,
            } => {
                let scaled = |columns| range.start / columns..range.end / columns;
                if !(range.start.is_multiple_of(NVFP4_BLOCK)
                    && range.end.is_multiple_of(NVFP4_BLOCK))
                {
                    return Err(SplitBlock {
                        dims: self.dims(),
                        columns: range.clone(),
                    });
                }
                Self::Nvfp4 {
                    codes: codes.columns(&scaled(2)),
                    block_scales: block_scales.columns(&scaled(NVFP4_BLOCK)),
                    scale: scale.clone(),
                }
            }
        })
    }
}

impl LinearWeights {
    pub(crate) fn rows(&self, range: &Range<usize>) -> Self {
        self.parts(std::slice::from_ref(range))
    }

    pub(crate) fn parts(&self, ranges: &[Range<usize>]) -> Self {
        Self {
            weight: self.weight.parts(ranges),
            bias: self.bias.as_ref().map(|bias| bias.parts(ranges)),
        }
    }
}

impl ExpertWeights {
    pub(crate) fn num_experts(&self) -> usize {
        match self {
            Self::Fused(all) => all.shape[0],
            Self::PerExpert(each) => each.len(),
        }
    }

    /// Outputs of each expert.
    pub(crate) fn num_rows(&self) -> usize {
        match self {
            Self::Fused(all) => all.shape[1],
            Self::PerExpert(each) => each.first().map_or(0, |one| one.dims()[0]),
        }
    }

    /// Some of the experts, whole.
    pub(crate) fn experts(&self, range: &Range<usize>) -> Self {
        match self {
            Self::Fused(all) => Self::Fused(all.rows(range)),
            Self::PerExpert(each) => Self::PerExpert(each[range.clone()].to_vec()),
        }
    }

    /// Some rows of every expert.
    pub(crate) fn rows(&self, range: &Range<usize>) -> Self {
        match self {
            Self::Fused(all) => Self::Fused(all.cut(1, std::slice::from_ref(range))),
            Self::PerExpert(each) => {
                Self::PerExpert(each.iter().map(|one| one.rows(range)).collect())
            }
        }
    }

    /// Some columns of every expert.
    pub(crate) fn columns(&self, range: &Range<usize>) -> Result<Self, SplitBlock> {
        Ok(match self {
            Self::Fused(all) => Self::Fused(all.columns(range)),
            Self::PerExpert(each) => {
                let each = each.iter().map(|one| one.columns(range));
                Self::PerExpert(each.collect::<Result<_, _>>()?)
            }
        })
    }
}

impl Cut {
    /// Which parts, for tests.
    #[cfg(test)]
    pub(crate) fn ranges(&self) -> &[Range<usize>] {
        &self.ranges
    }

    /// The parts out of the bytes of the whole.
    pub(crate) fn apply(&self, whole: &[u8]) -> Bytes {
        let shape = &self.whole.shape;
        let num_outer: usize = shape[..self.dim].iter().product();
        let num_entries = num_outer * shape[self.dim];
        assert_eq!(whole.len() % num_entries, 0, "entries are whole bytes");
        // |-- outer --|-- this dimension --|-- inner: one entry --|
        let entry_bytes = whole.len() / num_entries;
        let kept: usize = self.ranges.iter().map(Range::len).sum();
        let mut bytes = Vec::with_capacity(num_outer * kept * entry_bytes);
        for outer in whole.chunks_exact(shape[self.dim] * entry_bytes) {
            for part in &self.ranges {
                bytes.extend_from_slice(&outer[part.start * entry_bytes..part.end * entry_bytes]);
            }
        }
        bytes.into()
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use safetensors::tensor::Dtype;

    use super::*;

    /// `[2, 3, 4]` in bf16, whose elements are 0, 1, 2 and so on as raw bits.
    fn stored() -> Weight {
        let data: Vec<u8> = (0_u16..24).flat_map(u16::to_le_bytes).collect();
        Weight {
            shape: vec![2, 3, 4],
            source: Source::Stored(StoredTensor {
                path: Path::new("a shard").into(),
                dtype: Dtype::BF16,
                shape: vec![2, 3, 4],
                data: data.into(),
            }),
        }
    }

    fn raw(weight: &Weight) -> Bytes {
        match &weight.source {
            Source::Stored(tensor) => tensor.data.clone(),
            Source::Cut(cut) => cut.apply(&raw(&cut.whole)),
            Source::Dummy { .. } => unreachable!("none here"),
        }
    }

    fn bytes(weight: &Weight) -> Vec<u16> {
        raw(weight)
            .chunks_exact(2)
            .map(|two| u16::from_le_bytes([two[0], two[1]]))
            .collect()
    }

    #[track_caller]
    fn check(weight: &Weight, shape: &[usize], expect: &[u16]) {
        assert_eq!(weight.shape, shape);
        assert_eq!(bytes(weight), expect);
        assert_eq!(weight.num_bytes(), 2 * expect.len() as u64);
    }

    #[test]
    fn rows_are_views_and_the_rest_is_copied() {
        let whole = stored();
        let rows = whole.cut(0, std::slice::from_ref(&(1..2)));
        check(&rows, &[1, 3, 4], &(12..24).collect::<Vec<_>>());
        let (Source::Stored(whole_tensor), Source::Stored(view)) = (&whole.source, &rows.source)
        else {
            panic!("a range of rows is a view");
        };
        assert_eq!(view.data.as_ptr(), whole_tensor.data[24..].as_ptr());

        let columns = whole.cut(2, std::slice::from_ref(&(1..3)));
        let expect = [1, 2, 5, 6, 9, 10, 13, 14, 17, 18, 21, 22];
        check(&columns, &[2, 3, 2], &expect);

        let middle = whole.cut(1, &[2..3, 0..1]);
        let expect = [8, 9, 10, 11, 0, 1, 2, 3, 20, 21, 22, 23, 12, 13, 14, 15];
        check(&middle, &[2, 2, 4], &expect);
        // A cut of a cut.
        let corner = middle.cut(2, std::slice::from_ref(&(3..4)));
        check(&corner, &[2, 2, 1], &[11, 3, 23, 15]);
        // All of it is it.
        let all = whole.cut(1, std::slice::from_ref(&(0..3)));
        assert!(matches!(all.source, Source::Stored(_)));
    }

    /// U8 `[4, K]`, whose bytes count from `first`.
    fn codes(columns: usize, first: u8) -> Weight {
        let data: Vec<u8> = (first..).take(4 * columns).collect();
        Weight {
            shape: vec![4, columns],
            source: Source::Stored(StoredTensor {
                path: Path::new("a shard").into(),
                dtype: Dtype::U8,
                shape: vec![4, columns],
                data: data.into(),
            }),
        }
    }

    #[test]
    fn packed_matrices_are_cut_with_their_scales() {
        let scale = codes(1, 200);
        let matrix = MatrixWeight::Nvfp4 {
            codes: codes(24, 0),
            block_scales: codes(3, 100),
            scale: scale.clone(),
        };
        assert_eq!(matrix.dims(), [4, 48]);
        let parts = |matrix: &MatrixWeight| {
            let MatrixWeight::Nvfp4 {
                codes,
                block_scales,
                ..
            } = matrix
            else {
                panic!("it stays what it is");
            };
            [raw(codes).to_vec(), raw(block_scales).to_vec()]
        };
        let [rows, scales] = parts(&matrix.rows(&(1..3)));
        assert_eq!(rows, (24..72).collect::<Vec<u8>>());
        assert_eq!(scales, (103..109).collect::<Vec<u8>>());
        let columns = matrix.columns(&(16..48)).expect("whole blocks");
        assert_eq!(columns.dims(), [4, 32]);
        let [columns, scales] = parts(&columns);
        let expect = (0..4).flat_map(|row| row * 24 + 8..row * 24 + 24);
        assert_eq!(columns, expect.collect::<Vec<u8>>());
        assert_eq!(scales, [101, 102, 104, 105, 107, 108, 110, 111]);
        let Err(error) = matrix.columns(&(0..24)) else {
            panic!("that is half a block");
        };
        let text = error.to_string();
        assert!(
            text.contains("0 to 24") && text.contains("[4, 48]"),
            "{text}"
        );

        let matrix = MatrixWeight::Fp8 {
            codes: codes(6, 0),
            scale,
        };
        let MatrixWeight::Fp8 { codes, scale } = matrix.columns(&(1..3)).expect("any will do")
        else {
            panic!("it stays what it is");
        };
        assert_eq!(raw(&codes)[..], [1, 2, 7, 8, 13, 14, 19, 20]);
        assert_eq!(raw(&scale)[..], [200, 201, 202, 203]);
    }

    #[test]
    #[should_panic(expected = "of dimension 1 of [2, 3, 4]")]
    fn parts_lie_inside() {
        let _ = stored().cut(1, &[0..1, 2..4]);
    }
}
