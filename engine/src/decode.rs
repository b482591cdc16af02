//! Steps recorded per bucket of rows, tokens and context, replayed as one launch.
//!
//! A step in which every row runs one token is the same sequence of kernels whatever the rows hold;
//! so is one in which every row runs a token and as many drafts, if a shorter row is filled up.
//! Missing rows are padding, which reads and writes block 0 and slot 0. The head is left out: every
//! recording would keep a large tensor of logits. Passes through the draft block are `passes`.

mod passes;

pub(crate) use self::passes::Pass;

use std::collections::HashMap;

use burn::tensor::{Device, Tensor};
use kernels::{Recording, RowLayout, StepInputs, StepShape};

use crate::batch::Batch;
use crate::buckets;
use crate::cache::DeviceCache;
use crate::error::EngineError;
use crate::model::nemotron_h::{NemotronH, gather};

/// The recorded steps of one device.
pub(crate) struct DecodeGraphs {
    device: Device,
    max_num_seqs: u32,
    max_drafts: u32,
    /// Of all recordings together.
    max_tokens: usize,
    recorded: HashMap<Bucket, Recorded>,
    /// Steps looked up so far.
    clock: u64,
}

/// What is the same in all steps that one recording serves.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Bucket {
    kind: Kind,
    num_rows: usize,
    /// Of every row.
    row_tokens: usize,
    /// Of every row, at most.
    max_blocks: usize,
}

/// What is recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Kind {
    /// The model, on rows of one token that is absorbed.
    Plain,
    /// The model, on rows that may have drafts and pending tokens.
    Drafts,
    /// The draft block, on the pairs of what a step drew.
    Pairs,
    /// The draft block, on a guess of each row.
    Guesses,
}

struct Recorded {
    inputs: StepInputs,
    /// What a pass through the draft block reads beside them.
    pass: Option<passes::Inputs>,
    hidden: Recording<Tensor<2>>,
    last_used: u64,
}

impl DecodeGraphs {
    pub(crate) fn new(device: &Device, max_num_seqs: u32, max_drafts: u32) -> Self {
        Self {
            device: device.clone(),
            max_num_seqs,
            max_drafts,
            max_tokens: buckets::MAX_KEPT_TOKENS,
            recorded: HashMap::new(),
            clock: 0,
        }
    }

    /// Whether steps are replayed as one launch; `false` before the first.
    pub(crate) fn is_hardware(&self) -> bool {
        let mut recorded = self.recorded.values();
        recorded.any(|recorded| recorded.hidden.is_hardware())
    }

    /// Hidden states of all tokens, `[T, H]`, from the recorded step; `None` if the step is not one of
    /// a token and perhaps drafts per row, or this device records nothing.
    pub(crate) fn hidden(
        &mut self,
        batch: &Batch,
        model: &NemotronH,
        cache: &mut DeviceCache,
    ) -> Result<Option<Tensor<2>>, EngineError> {
        let Some(bucket) = self.bucket(batch) else {
            return Ok(None);
        };
        let step = |inputs: &StepInputs, cache: &mut DeviceCache| {
            model.forward(&inputs.ids(), &inputs.layout(), cache)
        };
        let recorded = self.recorded(bucket, cache, |device, shape, cache| {
            let inputs = StepInputs::on(device, shape)?;
            let hidden = Recording::record(device, || step(&inputs, cache));
            Some((inputs, None, hidden))
        });
        let Some(recorded) = recorded else {
            return Ok(None);
        };
        let rows = &batch.layout.rows;
        recorded.inputs.write(batch.ids.as_slice(), rows);
        let inputs = &recorded.inputs;
        let hidden = recorded
            .hidden
            .replay(|| step(inputs, cache))
            .map_err(EngineError::Device)?;
        let len = bucket.row_tokens;
        if rows.iter().all(|row| row.num_tokens() == len) {
            return Ok(Some(hidden.clone().narrow(0, 0, rows.len() * len)));
        }
        let places = rows.iter().enumerate();
        let places = places.flat_map(|(at, row)| at * len..at * len + row.num_tokens());
        Ok(Some(gather(hidden, &places.collect::<Vec<_>>())))
    }

    /// The bucket of a step, if it is one to record.
    fn bucket(&self, batch: &Batch) -> Option<Bucket> {
        let rows = &batch.layout.rows;
        if !kernels::is_gpu(&self.device) {
            return None;
        }
        let num_rows = buckets::bucket_of(rows.len() as u32, self.max_num_seqs) as usize;
        let num_blocks = rows.iter().map(|row| row.blocks.len()).max().unwrap_or(1);
        let longest = rows.iter().map(RowLayout::num_tokens).max().unwrap_or(1);
        if batch.layout.is_plain() {
            // Prompts are as long as they are.
            return (longest == 1).then(|| Bucket {
                kind: Kind::Plain,
                num_rows,
                row_tokens: 1,
                max_blocks: buckets::context_bucket_of(num_blocks),
            });
        }
        let row_tokens = buckets::row_bucket_of(longest as u32, self.max_drafts)? as usize;
        // Copies on the way are not recorded, nor a step that would be mostly filling. A row is filled
        // up over positions that are its own.
        let num_tokens: usize = rows.iter().map(RowLayout::num_tokens).sum();
        let fits = rows.iter().all(|row| {
            row.saves.is_empty()
                && row.start + row_tokens <= row.blocks.len() * batch.layout.block_size
        });
        (fits && rows.len() * row_tokens <= 2 * num_tokens).then(|| Bucket {
            kind: Kind::Drafts,
            num_rows,
            row_tokens,
            max_blocks: buckets::draft_context_bucket_of(num_blocks),
        })
    }

    /// The recording of a bucket, made if need be by `record`: over padding alone, which changes
    /// nobody's state.
    fn recorded(
        &mut self,
        bucket: Bucket,
        cache: &mut DeviceCache,
        record: impl FnOnce(&Device, &StepShape, &mut DeviceCache) -> Option<Parts>,
    ) -> Option<&mut Recorded> {
        self.clock += 1;
        if !self.recorded.contains_key(&bucket) {
            self.make_room(bucket.num_tokens());
            let shape = bucket.shape(cache);
            let (inputs, pass, hidden) = record(&self.device, &shape, cache)?;
            tracing::debug!(
                ?bucket,
                one_launch = hidden.is_hardware(),
                "recorded a step"
            );
            let recorded = Recorded {
                inputs,
                pass,
                hidden,
                last_used: 0,
            };
            self.recorded.insert(bucket, recorded);
        }
        let recorded = self.recorded.get_mut(&bucket)?;
        recorded.last_used = self.clock;
        Some(recorded)
    }

    /// Drops what was not used for longest until there is room for so many tokens more.
    fn make_room(&mut self, num_tokens: usize) {
        let kept = |graphs: &Self| {
            graphs
                .recorded
                .keys()
                .map(Bucket::num_tokens)
                .sum::<usize>()
        };
        while kept(self) + num_tokens > self.max_tokens {
            let recorded = self.recorded.iter();
            let oldest = recorded.min_by_key(|(_, recorded)| recorded.last_used);
            let Some(oldest) = oldest.map(|(bucket, _)| *bucket) else {
                return;
            };
            self.recorded.remove(&oldest);
        }
    }
}

/// What a recording consists of.
type Parts = (StepInputs, Option<passes::Inputs>, Recording<Tensor<2>>);

impl Bucket {
    fn num_tokens(&self) -> usize {
        self.num_rows * self.row_tokens
    }

    fn shape(&self, cache: &DeviceCache) -> StepShape {
        StepShape {
            num_rows: self.num_rows,
            row_tokens: self.row_tokens,
            max_blocks: self.max_blocks,
            block_size: cache.block_size,
            first_position: match self.kind {
                Kind::Plain | Kind::Drafts => 0,
                Kind::Pairs | Kind::Guesses => crate::layers::draft::FIRST_PAIR,
            },
            rings: match self.kind {
                Kind::Drafts => cache.rings(),
                Kind::Plain | Kind::Pairs | Kind::Guesses => None,
            },
        }
    }
}

#[cfg(all(test, feature = "vulkan"))]
mod tests;
