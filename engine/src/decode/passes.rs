//! Recorded passes through the draft block.
//!
//! The first pass of a step writes the pairs of all tokens that it drew and looks from the last one of
//! each row; the others write and look from one pair per row. Where a pair's hidden state comes from
//! changes from step to step, so it is put in place before a replay.

use burn::tensor::{DType, Tensor};
use kernels::{Layout, Recording, RowLayout, StepInputs, StepShape};

use super::{Bucket, DecodeGraphs, Kind};
use crate::buckets;
use crate::cache::DeviceCache;
use crate::error::EngineError;
use crate::layers::draft::{Asked, Pairs};
use crate::model::nemotron_h::{NemotronH, gather};

/// What a pass reads beside the ids and the layout of its pairs.
pub(super) struct Inputs {
    /// Hidden states of the pairs, `[R * row_tokens, H]`.
    hidden: Tensor<2>,
    /// The pairs that are asked, one per row, in a layout of their own; their ids are their places. `None`
    /// where all are.
    looking: Option<StepInputs>,
}

/// A pass to run.
pub(crate) struct Pass<'a> {
    pub(crate) ids: Vec<u32>,
    /// Where hidden states are taken from, `[n, H]`.
    pub(crate) source: &'a Tensor<2>,
    /// Which of them is each pair's.
    pub(crate) places: &'a [usize],
    pub(crate) layout: &'a Layout,
    pub(crate) asked: &'a Asked<'a>,
    /// Most tokens of a row of the step that the pass belongs to: with its bucket comes the pass's.
    pub(crate) step_tokens: usize,
}

impl Pass<'_> {
    /// `h'` of the pairs that are asked, `[A, H]`; `None` if none are. From a recording where there may
    /// be one.
    pub(crate) fn run(
        self,
        graphs: Option<&mut DecodeGraphs>,
        model: &NemotronH,
        cache: &mut DeviceCache,
    ) -> Result<Option<Tensor<2>>, EngineError> {
        if let Some(graphs) = graphs
            && let Some(recorded) = graphs.pass(&self, model, cache)?
        {
            return Ok(Some(recorded));
        }
        let pairs = Pairs {
            tokens: model.embed(&self.ids.into()),
            hidden: gather(self.source, self.places),
            layout: self.layout,
        };
        Ok(model.draft(pairs, self.asked, cache))
    }

    fn bucket(&self, graphs: &DecodeGraphs) -> Option<Bucket> {
        let rows = &self.layout.rows;
        let asked = &self.asked.layout.rows;
        if !kernels::is_gpu(&graphs.device) || asked.is_empty() {
            return None;
        }
        let longest = rows.iter().map(RowLayout::num_tokens).max()?;
        let is_first = self.step_tokens > 0;
        let row_tokens = if is_first {
            let longest = longest.max(self.step_tokens) as u32;
            buckets::row_bucket_of(longest, graphs.max_drafts)? as usize
        } else {
            1
        };
        let covered = |row: &RowLayout| row.blocks.len() * self.layout.block_size;
        let num_blocks = rows.iter().map(|row| row.blocks.len()).max()?;
        rows.iter()
            .all(|row| row.start + row_tokens <= covered(row))
            .then(|| Bucket {
                kind: if is_first { Kind::Pairs } else { Kind::Guesses },
                num_rows: buckets::bucket_of(rows.len() as u32, graphs.max_num_seqs) as usize,
                row_tokens,
                max_blocks: buckets::draft_context_bucket_of(num_blocks),
            })
    }
}

impl DecodeGraphs {
    fn pass(
        &mut self,
        pass: &Pass<'_>,
        model: &NemotronH,
        cache: &mut DeviceCache,
    ) -> Result<Option<Tensor<2>>, EngineError> {
        let Some(bucket) = pass.bucket(self) else {
            return Ok(None);
        };
        let [_, width] = pass.source.dims();
        let recorded = self.recorded(bucket, cache, |device, shape, cache| {
            let inputs = StepInputs::on(device, shape)?;
            let looking = match bucket.kind {
                Kind::Pairs => {
                    let shape = StepShape {
                        row_tokens: 1,
                        ..*shape
                    };
                    Some(StepInputs::on(device, &shape)?)
                }
                _ => None,
            };
            let rows = [shape.num_rows * shape.row_tokens, width];
            let beside = Inputs {
                hidden: kernels::zeros(rows, DType::F32, device),
                looking,
            };
            let hidden = Recording::record(device, || forward(&inputs, &beside, model, cache));
            Some((inputs, Some(beside), hidden))
        });
        let Some(recorded) = recorded else {
            return Ok(None);
        };
        let beside = recorded.pass.as_ref().expect("a pass was recorded");
        let (rows, len) = (&pass.layout.rows, bucket.row_tokens);
        recorded.inputs.write(&pass.ids, rows);
        let to = |at: usize, row: &RowLayout| at * len..at * len + row.num_tokens();
        let places = rows.iter().enumerate().flat_map(|(at, row)| to(at, row));
        let moves: Vec<(usize, usize)> = pass.places.iter().copied().zip(places.clone()).collect();
        kernels::write_rows(beside.hidden.clone(), pass.source, &moves);
        let asked = &pass.asked.layout.rows;
        if let (Some(looking), Some(some)) = (&beside.looking, pass.asked.places) {
            let places: Vec<usize> = places.collect();
            let ids = some.as_slice().iter().map(|at| places[*at as usize] as u32);
            looking.write(&ids.collect::<Vec<_>>(), asked);
        }
        let inputs = &recorded.inputs;
        let own = recorded
            .hidden
            .replay(|| forward(inputs, beside, model, cache))
            .map_err(EngineError::Device)?;
        Ok(Some(own.clone().narrow(0, 0, asked.len())))
    }
}

fn forward(
    inputs: &StepInputs,
    beside: &Inputs,
    model: &NemotronH,
    cache: &mut DeviceCache,
) -> Tensor<2> {
    let layout = inputs.layout();
    let pairs = Pairs {
        tokens: model.embed(&inputs.ids()),
        hidden: beside.hidden.clone(),
        layout: &layout,
    };
    let asked = beside
        .looking
        .as_ref()
        .map(|asked| (asked.ids(), asked.layout()));
    let asked = match &asked {
        None => Asked {
            places: None,
            layout: &layout,
        },
        Some((places, looking)) => Asked {
            places: Some(places),
            layout: looking,
        },
    };
    model.draft(pairs, &asked, cache).expect("some are asked")
}
