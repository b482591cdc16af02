//! Decode steps recorded per bucket of rows and context, replayed as one launch.
//!
//! A step in which every row runs one token is the same sequence of kernels whatever the rows hold.
//! Rows are padded up to the bucket's number; padding reads and writes block 0 and slot 0. The head
//! is left out: every recording would keep a large tensor of logits.

use std::collections::HashMap;

use burn::tensor::{Device, Tensor};
use kernels::{Recording, StepInputs};

use crate::batch::Batch;
use crate::buckets;
use crate::cache::DeviceCache;
use crate::error::EngineError;
use crate::model::nemotron_h::NemotronH;

/// The recorded steps of one device.
pub(crate) struct DecodeGraphs {
    device: Device,
    max_num_seqs: u32,
    /// By number of rows and blocks per row.
    recorded: HashMap<Bucket, Recorded>,
}

/// Rows of a step and blocks of a row, rounded up.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Bucket {
    num_rows: usize,
    max_blocks: usize,
}

struct Recorded {
    inputs: StepInputs,
    hidden: Recording<Tensor<2>>,
}

impl DecodeGraphs {
    pub(crate) fn new(device: &Device, max_num_seqs: u32) -> Self {
        Self {
            device: device.clone(),
            max_num_seqs,
            recorded: HashMap::new(),
        }
    }

    /// Whether steps are replayed as one launch; `false` before the first.
    pub(crate) fn is_hardware(&self) -> bool {
        let mut recorded = self.recorded.values();
        recorded.any(|recorded| recorded.hidden.is_hardware())
    }

    /// Hidden states of all rows, `[R, H]`, from the recorded step; `None` if the step is not one of
    /// one token per row, or this device records nothing.
    pub(crate) fn hidden(
        &mut self,
        batch: &Batch,
        model: &NemotronH,
        cache: &mut DeviceCache,
    ) -> Result<Option<Tensor<2>>, EngineError> {
        let rows = &batch.layout.rows;
        // Copies of a state and tokens beside it are not recorded.
        let is_decode = batch.layout.is_plain() && rows.iter().all(|row| row.num_tokens() == 1);
        if !kernels::is_gpu(&self.device) || !is_decode {
            return Ok(None);
        }
        let bucket = Bucket::of(batch, self.max_num_seqs);
        let recorded = match self.recorded.entry(bucket) {
            std::collections::hash_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::hash_map::Entry::Vacant(entry) => {
                let Some(recorded) = Recorded::new(&self.device, bucket, model, cache) else {
                    return Ok(None);
                };
                entry.insert(recorded)
            }
        };
        recorded.inputs.write(batch.ids.as_slice(), rows);
        let inputs = &recorded.inputs;
        let hidden = recorded
            .hidden
            .replay(|| forward(inputs, model, cache))
            .map_err(EngineError::Device)?;
        Ok(Some(hidden.clone().narrow(0, 0, rows.len())))
    }
}

impl Recorded {
    /// Records over padding alone, which changes nobody's state.
    fn new(
        device: &Device,
        bucket: Bucket,
        model: &NemotronH,
        cache: &mut DeviceCache,
    ) -> Option<Self> {
        let inputs = StepInputs::on(device, bucket.num_rows, bucket.max_blocks, cache.block_size)?;
        let hidden = Recording::record(device, || forward(&inputs, model, cache));
        tracing::debug!(
            rows = bucket.num_rows,
            blocks = bucket.max_blocks,
            one_launch = hidden.is_hardware(),
            "recorded a decode step"
        );
        Some(Self { inputs, hidden })
    }
}

fn forward(inputs: &StepInputs, model: &NemotronH, cache: &mut DeviceCache) -> Tensor<2> {
    model.forward(&inputs.ids(), &inputs.layout(), cache)
}

impl Bucket {
    fn of(batch: &Batch, max_num_seqs: u32) -> Self {
        let rows = &batch.layout.rows;
        let blocks = rows.iter().map(|row| row.blocks.len()).max().unwrap_or(1);
        Self {
            num_rows: buckets::bucket_of(rows.len() as u32, max_num_seqs) as usize,
            max_blocks: buckets::context_bucket_of(blocks),
        }
    }
}
