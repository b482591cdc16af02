//! The embedding on the CPU: reads only the rows it needs.

use burn::tensor::Tensor;

use crate::flex::{self, Elements};
use crate::profile::{self, Work};

/// Widens the rows into a new tensor.
pub(super) fn embedding(table: &Tensor<2>, ids: &[u32]) -> Tensor<2> {
    let [_, width] = table.dims();
    let table = flex::view(table);
    let _scope = profile::scope("embedding", [width, 1], || Work {
        bytes: 2 * size_of::<f32>() * ids.len() * width,
        operations: 0,
    });
    let mut out = vec![0.0; ids.len() * width];
    for (out, &id) in out.chunks_exact_mut(width).zip(ids) {
        let start = id as usize * width;
        match flex::elements(&table).slice(start..start + width) {
            Elements::F32(row) => out.copy_from_slice(row),
            Elements::F16(row) => widen(row, out, half::f16::to_f32),
            Elements::Bf16(row) => widen(row, out, half::bf16::to_f32),
        }
    }
    flex::from_vec(out, [ids.len(), width])
}

fn widen<E: Copy>(row: &[E], out: &mut [f32], to_f32: impl Fn(E) -> f32) {
    for (out, &value) in out.iter_mut().zip(row) {
        *out = to_f32(value);
    }
}
