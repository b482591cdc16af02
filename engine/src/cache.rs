//! Block and slot tensors of every layer, and the plan's movements between them.
//!
//! A pool has one owner: it is taken out, written and put back. A second handle to it would turn
//! every write into a copy of the whole pool.

use burn::tensor::{DType, Device, Tensor};
use kernels::{KvFormat, KvPool, KvTensor, Layout, Rings, StatePool};
use scheduler::{CacheConfig, StateOp};

use crate::host_cache::HostCache;
use crate::model::config::StateDtype;
use crate::model::nemotron_h::select;
use crate::model::{LayerKind, ModelConfig};

/// All cached state of all sequences.
pub(crate) struct DeviceCache {
    /// Per attention layer. `None` only while a layer holds its pool.
    blocks: Vec<Option<KvPool>>,
    /// Per Mamba layer.
    states: Vec<Option<StatePool>>,
    /// What the model made of the last token of each slot, `[num_slots, H]`, F32: the draft block goes
    /// on from there. `None` without drafts, or while it is written.
    hidden: Option<Tensor<2>>,
    host: HostCache,
    pub(crate) block_size: usize,
}

/// What an FP8 cache divides the keys and values of a layer by.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct KvScales {
    pub(crate) key: f32,
    pub(crate) value: f32,
}

impl Default for KvScales {
    fn default() -> Self {
        Self {
            key: 1.0,
            value: 1.0,
        }
    }
}

impl DeviceCache {
    /// Zeroed pools. `kv_scales` are those of each attention layer, in stack order;
    /// only FP8 asks for them. Rows of up to `max_drafts` drafts may come.
    pub(crate) fn new(
        model: &ModelConfig,
        cache: &CacheConfig,
        max_drafts: u32,
        kv_format: KvFormat,
        kv_scales: &[KvScales],
        device: &Device,
    ) -> Self {
        let block_size = cache.block_size as usize;
        let (num_blocks, num_slots) = (cache.num_blocks as usize, cache.num_slots as usize);
        let blocks = model.attention.iter().flat_map(|attention| {
            let shape = [
                num_blocks,
                block_size,
                attention.num_kv_heads,
                attention.head_dim,
            ];
            kv_scales.iter().map(move |scales| KvPool {
                keys: side(shape, kv_format, scales.key, device),
                values: side(shape, kv_format, scales.value, device),
            })
        });
        let states = model.mamba.iter().flat_map(|mamba| {
            let conv = [num_slots, mamba.conv_dim(), mamba.conv_kernel - 1];
            let ssm = [num_slots, mamba.num_heads, mamba.head_dim, mamba.state_size];
            let ssm_dtype = match mamba.state_dtype {
                StateDtype::F32 => DType::F32,
                StateDtype::F16 => DType::F16,
            };
            let width = mamba.conv_dim() + mamba.num_heads;
            let ring = (max_drafts > 0).then_some([num_slots, max_drafts as usize + 1, width]);
            (0..model.num_layers(LayerKind::Mamba)).map(move |_| StatePool {
                conv: kernels::zeros(conv, DType::F32, device),
                ssm: kernels::zeros(ssm, ssm_dtype, device),
                ring: ring.map(|ring| kernels::zeros(ring, DType::F32, device)),
            })
        });
        let hidden = (max_drafts > 0).then_some([num_slots, model.hidden_size]);
        Self {
            blocks: blocks.map(Some).collect(),
            states: states.map(Some).collect(),
            hidden: hidden.map(|hidden| kernels::zeros(hidden, DType::F32, device)),
            host: HostCache::new(cache),
            block_size,
        }
    }

    /// Carries out a plan's movements in their order.
    pub(crate) fn apply(&mut self, ops: &[StateOp]) {
        for op in ops {
            match *op {
                StateOp::ZeroSlot(slot) => {
                    let slot = slot.0 as usize;
                    self.each_state(|pool| kernels::zero_slot(pool, slot));
                    self.with_hidden(|hidden| kernels::zero_row(hidden, slot));
                }
                StateOp::CopySlot { from, to } => {
                    let (from, to) = (from.0 as usize, to.0 as usize);
                    self.each_state(|pool| kernels::copy_slot(pool, from, to));
                    self.with_hidden(|hidden| kernels::copy_row(hidden, from, to));
                }
                StateOp::CopyBlock { from, to } => {
                    let (from, to) = (from.0 as usize, to.0 as usize);
                    for layer in &mut self.blocks {
                        let pool = layer.take().expect(PUT_BACK);
                        *layer = Some(kernels::copy_block(pool, from, to));
                    }
                }
                StateOp::SlotToHost { from, to } => {
                    let pools = self.states.iter();
                    let pools = pools.map(|layer| layer.as_ref().expect(PUT_BACK));
                    let (hidden, from) = (self.hidden.as_ref(), from.0 as usize);
                    self.host.store_slot(pools, hidden, from, to);
                }
                StateOp::BlockToHost { from, to } => {
                    let pools = self.blocks.iter();
                    let pools = pools.map(|layer| layer.as_ref().expect(PUT_BACK));
                    self.host.store_block(pools, from.0 as usize, to);
                }
                StateOp::HostToSlot { from, to } => {
                    for (index, layer) in self.states.iter_mut().enumerate() {
                        let pool = layer.take().expect(PUT_BACK);
                        *layer = Some(self.host.load_slot(from, index, pool, to.0 as usize));
                    }
                    let hidden = self.hidden.take();
                    self.hidden =
                        hidden.map(|hidden| self.host.load_hidden(from, hidden, to.0 as usize));
                }
                StateOp::HostToBlock { from, to } => {
                    for (index, layer) in self.blocks.iter_mut().enumerate() {
                        let pool = layer.take().expect(PUT_BACK);
                        *layer = Some(self.host.load_block(from, index, pool, to.0 as usize));
                    }
                }
            }
        }
    }

    /// Lends the pool of one attention layer.
    pub(crate) fn with_blocks<R>(
        &mut self,
        layer: usize,
        f: impl FnOnce(KvPool) -> (R, KvPool),
    ) -> R {
        let pool = self.blocks[layer].take().expect(PUT_BACK);
        let (result, pool) = f(pool);
        self.blocks[layer] = Some(pool);
        result
    }

    /// Lends the pool of one Mamba layer.
    pub(crate) fn with_states<R>(
        &mut self,
        layer: usize,
        f: impl FnOnce(StatePool) -> (R, StatePool),
    ) -> R {
        let pool = self.states[layer].take().expect(PUT_BACK);
        let (result, pool) = f(pool);
        self.states[layer] = Some(pool);
        result
    }

    /// Where rows keep drafts; `None` if none may have any, or no layer has a state.
    pub(crate) fn rings(&self) -> Option<Rings> {
        let pool = self.states.first()?.as_ref().expect(PUT_BACK);
        let [num_slots, len, _] = pool.ring.as_ref()?.dims();
        Some(Rings { num_slots, len })
    }

    /// The hidden vectors of some slots, `[slots, H]`; `None` without drafts.
    pub(crate) fn hidden(&self, slots: &[usize]) -> Option<Tensor<2>> {
        self.hidden.as_ref().map(|hidden| select(hidden, slots))
    }

    /// Puts rows of `hidden`, `[T, H]`, into slots, as `(row, slot)`. Without drafts nobody asks for
    /// them and nothing happens.
    pub(crate) fn set_hidden(&mut self, hidden: &Tensor<2>, moves: &[(usize, usize)]) {
        self.with_hidden(|kept| kernels::write_rows(kept, hidden, moves));
    }

    /// Puts the hidden vector of every row's last token into its slot, and those of the tokens that
    /// copies were made after into theirs. A row with drafts has to wait until it is known which of
    /// them came true.
    pub(crate) fn keep_hidden(&mut self, hidden: &Tensor<2>, layout: &Layout) {
        let absorbed = layout.rows.iter().filter(|row| row.is_absorbed());
        let moves = absorbed.flat_map(|row| {
            let saves = row.saves.iter();
            let saved = saves.map(|save| (row.tokens.start + save.num_tokens - 1, save.slot));
            saved.chain([(row.tokens.end - 1, row.slot)])
        });
        self.set_hidden(hidden, &moves.collect::<Vec<_>>());
    }

    fn with_hidden(&mut self, f: impl FnOnce(Tensor<2>) -> Tensor<2>) {
        self.hidden = self.hidden.take().map(f);
    }

    fn each_state(&mut self, f: impl Fn(StatePool) -> StatePool) {
        for layer in &mut self.states {
            let pool = layer.take().expect(PUT_BACK);
            *layer = Some(f(pool));
        }
    }
}

/// A zeroed side of a KV pool.
fn side(shape: [usize; 4], format: KvFormat, scale: f32, device: &Device) -> KvTensor {
    match format {
        KvFormat::F32 => KvTensor::Float(kernels::zeros(shape, DType::F32, device)),
        KvFormat::Bf16 => KvTensor::Float(kernels::zeros(shape, DType::BF16, device)),
        KvFormat::Fp8 => KvTensor::Fp8 {
            codes: kernels::zeros(shape, DType::U8, device),
            scale,
        },
    }
}

const PUT_BACK: &str = "every pool was put back";
