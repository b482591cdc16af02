//! Slots and blocks in host memory, as bytes: what the device has no room for.
//!
//! A copy to the host waits for the device, once for all layers. It costs what its bytes take on the
//! bus, and saves computing thousands of tokens again. On CUDA the bytes lie in pinned memory as long
//! as CubeCL's pool can have more of it (else on the heap): that is where it reads to, they stay where
//! they were read to, and the way back takes them from there without another copy.

use burn::tensor::kind::{Numeric, Transaction as Readable};
use burn::tensor::{Tensor, TensorData, Transaction, s};
use kernels::{KvPool, KvTensor, StatePool};
use scheduler::{CacheConfig, HostBlockId, HostSlotId};

/// By slot and by block, the bytes of all layers in their order; none until it is first written.
pub(crate) struct HostCache {
    slots: Vec<HostSlot>,
    blocks: Vec<Vec<TensorData>>,
}

#[derive(Clone, Default)]
struct HostSlot {
    layers: Vec<SlotBytes>,
    /// With drafts.
    hidden: Option<TensorData>,
}

/// A state of one layer.
#[derive(Clone)]
struct SlotBytes {
    conv: TensorData,
    ssm: TensorData,
    ring: Option<TensorData>,
}

impl HostCache {
    pub(crate) fn new(cache: &CacheConfig) -> Self {
        Self {
            slots: vec![HostSlot::default(); cache.num_host_slots as usize],
            blocks: vec![Vec::new(); cache.num_host_blocks as usize],
        }
    }

    pub(crate) fn store_slot<'a>(
        &mut self,
        pools: impl Iterator<Item = &'a StatePool>,
        hidden: Option<&Tensor<2>>,
        from: usize,
        to: HostSlotId,
    ) {
        let mut rows = Rows::default();
        let mut has_ring = Vec::new();
        for pool in pools {
            rows.add(&pool.conv, from);
            rows.add(&pool.ssm, from);
            if let Some(ring) = &pool.ring {
                rows.add(ring, from);
            }
            has_ring.push(pool.ring.is_some());
        }
        if let Some(hidden) = hidden {
            rows.add(hidden, from);
        }
        let mut bytes = rows.read().into_iter();
        let mut next = || bytes.next().expect("what was asked for was read");
        let layers = has_ring.into_iter().map(|has_ring| SlotBytes {
            conv: next(),
            ssm: next(),
            ring: has_ring.then(&mut next),
        });
        self.slots[to.0 as usize] = HostSlot {
            layers: layers.collect(),
            hidden: hidden.map(|_| next()),
        };
    }

    /// `layer` counts Mamba layers.
    pub(crate) fn load_slot(
        &self,
        from: HostSlotId,
        layer: usize,
        pool: StatePool,
        to: usize,
    ) -> StatePool {
        let bytes = &self.slots[from.0 as usize].layers[layer];
        StatePool {
            conv: write_row(pool.conv, &bytes.conv, to),
            ssm: write_row(pool.ssm, &bytes.ssm, to),
            ring: pool.ring.map(|ring| {
                let bytes = bytes.ring.as_ref().expect("a pool keeps its ring");
                write_row(ring, bytes, to)
            }),
        }
    }

    pub(crate) fn load_hidden(&self, from: HostSlotId, hidden: Tensor<2>, to: usize) -> Tensor<2> {
        let bytes = self.slots[from.0 as usize].hidden.as_ref();
        write_row(hidden, bytes.expect("slots keep their hidden vectors"), to)
    }

    pub(crate) fn store_block<'a>(
        &mut self,
        pools: impl Iterator<Item = &'a KvPool>,
        from: usize,
        to: HostBlockId,
    ) {
        let mut rows = Rows::default();
        for side in pools.flat_map(|pool| [&pool.keys, &pool.values]) {
            match side {
                KvTensor::Float(tensor) => rows.add(tensor, from),
                KvTensor::Fp8 { codes, .. } => rows.add(codes, from),
            }
        }
        self.blocks[to.0 as usize] = rows.read();
    }

    /// `layer` counts attention layers.
    pub(crate) fn load_block(
        &self,
        from: HostBlockId,
        layer: usize,
        pool: KvPool,
        to: usize,
    ) -> KvPool {
        let bytes = &self.blocks[from.0 as usize][2 * layer..];
        let side = |side, bytes| match side {
            KvTensor::Float(tensor) => KvTensor::Float(write_row(tensor, bytes, to)),
            KvTensor::Fp8 { codes, scale } => KvTensor::Fp8 {
                codes: write_row(codes, bytes, to),
                scale,
            },
        };
        KvPool {
            keys: side(pool.keys, &bytes[0]),
            values: side(pool.values, &bytes[1]),
        }
    }
}

/// Rows of pools on their way to the host: the device is waited for once.
#[derive(Default)]
struct Rows(Transaction);

impl Rows {
    fn add<const D: usize, K: Numeric + Readable>(&mut self, pool: &Tensor<D, K>, row: usize) {
        let row = pool.clone().narrow(0, row, 1);
        self.0 = std::mem::take(&mut self.0).register(row);
    }

    /// In the order in which they were added.
    fn read(self) -> Vec<TensorData> {
        let shareable = |data: TensorData| {
            let (bytes, shape, dtype) = data.into_parts();
            TensorData::from_bytes(bytes.shared(), shape, dtype)
        };
        self.0.execute().into_iter().map(shareable).collect()
    }
}

fn write_row<const D: usize, K: Numeric>(
    pool: Tensor<D, K>,
    bytes: &TensorData,
    row: usize,
) -> Tensor<D, K> {
    let (device, dtype) = (pool.device(), pool.dtype());
    let row_of = Tensor::from_data(bytes.clone(), (&device, dtype));
    pool.slice_assign(s![row..=row], row_of)
}

#[cfg(test)]
mod tests {
    use burn::tensor::{Device, Int};

    use super::*;

    fn numbers<const D: usize, K: Numeric>(tensor: &Tensor<D, K>) -> Vec<f32> {
        tensor.to_data().iter::<f32>().collect()
    }

    /// A pool of three rows whose elements are `row * 10 + place`.
    fn rows<const D: usize>(shape: [usize; D], device: &Device) -> Tensor<D> {
        let per_row = shape[1..].iter().product::<usize>();
        let values = (0..3 * per_row).map(|i| (i / per_row * 10 + i % per_row) as f32);
        Tensor::from_data(TensorData::new(values.collect(), shape), device)
    }

    #[test]
    fn a_slot_comes_back_into_another_one() {
        let device = Device::flex();
        let cache = config();
        let mut host = HostCache::new(&cache);
        let pools = [1, 2].map(|size| StatePool {
            conv: rows([3, size, 1], &device),
            ssm: rows([3, 1, size, 2], &device),
            ring: (size == 2).then(|| rows([3, 2, 2], &device)),
        });
        let hidden = rows([3, 4], &device);
        host.store_slot(pools.iter(), Some(&hidden), 2, HostSlotId(1));
        let hidden = numbers(&host.load_hidden(HostSlotId(1), hidden, 1));
        assert_eq!(
            hidden[4..],
            [20.0, 21.0, 22.0, 23.0, 20.0, 21.0, 22.0, 23.0]
        );
        for (layer, pool) in pools.into_iter().enumerate() {
            let size = layer + 1;
            let pool = host.load_slot(HostSlotId(1), layer, pool, 0);
            let conv = numbers(&pool.conv);
            assert_eq!(conv[..size], conv[2 * size..], "row 0 is row 2 now");
            assert_eq!(conv[size], 10.0, "row 1 is untouched");
            let ssm = numbers(&pool.ssm);
            assert_eq!(ssm[..2 * size], ssm[4 * size..]);
            assert_eq!(ssm[0], 20.0);
            if let Some(ring) = &pool.ring {
                assert_eq!(numbers(ring)[..4], [20.0, 21.0, 22.0, 23.0]);
            }
        }
    }

    #[test]
    fn a_block_comes_back_into_another_one_in_every_format() {
        let device = Device::flex();
        let mut host = HostCache::new(&config());
        let keys = rows([3, 2, 1, 2], &device);
        let codes: Tensor<4, Int> = rows([3, 2, 1, 2], &device).int();
        let values = KvTensor::Fp8 {
            codes: codes.cast(burn::tensor::DType::U8),
            scale: 0.5,
        };
        let pool = KvPool {
            keys: KvTensor::Float(keys.cast(burn::tensor::DType::BF16)),
            values,
        };
        host.store_block(std::iter::once(&pool), 1, HostBlockId(0));
        let pool = host.load_block(HostBlockId(0), 0, pool, 2);
        let (KvTensor::Float(keys), KvTensor::Fp8 { codes, scale }) = (&pool.keys, &pool.values)
        else {
            panic!("formats stay")
        };
        assert_eq!(keys.dtype(), burn::tensor::DType::BF16);
        assert_eq!(codes.dtype(), burn::tensor::DType::U8);
        let expect = [
            0.0, 1.0, 2.0, 3.0, 10.0, 11.0, 12.0, 13.0, 10.0, 11.0, 12.0, 13.0,
        ];
        assert_eq!((numbers(keys), *scale), (expect.to_vec(), 0.5));
        assert_eq!(numbers(codes), expect);
    }

    fn config() -> CacheConfig {
        CacheConfig {
            block_size: 2,
            num_blocks: 3,
            num_slots: 3,
            num_host_slots: 2,
            num_host_blocks: 1,
        }
    }
}
