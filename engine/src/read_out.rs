//! What logits say at the positions of a step: from shortlists where the device makes them, else from
//! whole rows.
//!
//! On a GPU one read-back serves all positions, a few hundred bytes each where a row of a large
//! vocabulary is half a megabyte; a second one fetches the rows that a list cannot decide, or that
//! too many alternatives are wanted of.

use std::sync::OnceLock;

use burn::tensor::{Device, Tensor};
use scheduler::{Row, RowFault, RowOutput, Sample, TokenLogprobs, TokenMask};

use crate::model::nemotron_h;
use crate::sampler::{self, Ask};

/// Rows of logits that are on the host at once: one of a large vocabulary is half a megabyte, and
/// scoring a long prompt needs thousands.
const LOGIT_ROWS: usize = 64;
/// Rows of logits at once where drafts make them more than the sequences: 256 MB of a vocabulary of
/// 131,072.
const MAX_DRAWS: usize = 512;
/// Operations that finishing a draw from a shortlist takes: its lists are sorted.
const SHORTLIST_COST: usize = 20_000;

/// What is wanted at one position.
#[derive(Clone, Copy, Default)]
pub(crate) struct Position<'a> {
    /// The prompt's next token, and with how many alternatives it is scored.
    target: Option<(u32, u32)>,
    sample: Option<&'a Sample>,
    /// Tokens that may be drawn; all without one.
    mask: Option<&'a TokenMask>,
}

/// What one position said.
type Outcome = Result<RowOutput, RowFault>;

impl<'a> Position<'a> {
    /// The `input`th input position of a row, and what is drawn there under which mask.
    pub(crate) fn of(
        row: &'a Row,
        input: usize,
        draw: Option<(&'a Sample, Option<&'a TokenMask>)>,
    ) -> Self {
        let target = row.prompt_logprobs.as_ref().and_then(|prompt| {
            let target = prompt.targets.get(input)?;
            Some((*target, prompt.top))
        });
        Self {
            target,
            ..draw.map_or_else(Self::default, |(sample, mask)| Self::draw(sample, mask))
        }
    }

    /// A token is drawn and nothing else wanted.
    pub(crate) fn draw(sample: &'a Sample, mask: Option<&'a TokenMask>) -> Self {
        Self {
            target: None,
            sample: Some(sample),
            mask,
        }
    }

    /// From the logits of the whole vocabulary.
    fn read_row(&self, logits: &[f32]) -> Outcome {
        let score = |token, num_top| sampler::logprobs(logits, token, num_top);
        let mut output = RowOutput::default();
        if let Some((target, num_top)) = self.target {
            output.prompt_logprobs.push(score(target, num_top)?);
        }
        if let Some(sample) = self.sample {
            let token = sampler::sample(logits, sample, self.mask)?;
            output.tokens.push(token);
            if let Some(num_top) = sample.params.logprobs {
                output.logprobs.push(score(token, num_top)?);
            }
        }
        Ok(output)
    }

    /// What a shortlist has to hold; `None` if none can hold it.
    fn ask(&self, vocab_size: usize) -> Option<Ask<'a>> {
        let mut ask = match self.sample {
            None => Ask::default(),
            Some(sample) => Ask::sample(sample, self.mask, vocab_size),
        };
        if let Some((target, num_top)) = self.target {
            ask.wanted = Some(target);
            ask.num_top = ask.num_top.max(num_top as usize);
        }
        ask.fits(vocab_size).then_some(ask)
    }

    /// From what came back; `None` if it takes the row.
    fn read_shortlist(
        &self,
        ask: &Ask<'_>,
        list: &kernels::Shortlist,
        vocab_size: usize,
    ) -> Option<Outcome> {
        if !list.is_sound {
            return Some(Err(RowFault::BadLogits));
        }
        let score = |token, num_top| -> Option<TokenLogprobs> {
            sampler::listed_logprobs(list, token, ask.raw(list, token)?, num_top)
        };
        let mut output = RowOutput::default();
        if let Some((target, num_top)) = self.target {
            output.prompt_logprobs.push(score(target, num_top)?);
        }
        if let Some(sample) = self.sample {
            let token = match ask.draw(list, sample, self.mask, vocab_size)? {
                Ok(token) => token,
                Err(fault) => return Some(Err(fault)),
            };
            output.tokens.push(token);
            if let Some(num_top) = sample.params.logprobs {
                output.logprobs.push(score(token, num_top)?);
            }
        }
        Some(Ok(output))
    }
}

/// Positions whose logits are computed at once. Those of a decode step on a GPU all are, so that the
/// head is read once, and read back once; and those behind drafts as far as they are
/// [`MAX_DRAWS`] together. A processor has them in its own memory and gains nothing.
pub(crate) fn logits_at_once(device: &Device, num_rows: usize, num_drafts: usize) -> usize {
    if kernels::is_cpu(device) {
        LOGIT_ROWS
    } else {
        let num_draws = (num_rows + num_drafts).min(MAX_DRAWS);
        LOGIT_ROWS.max(num_rows).max(num_draws)
    }
}

/// What `logits`, `[P, V]`, say at these positions.
pub(crate) fn read_out(logits: &Tensor<2>, positions: &[Position<'_>]) -> Vec<Outcome> {
    let read: Vec<OnceLock<Outcome>> = positions.iter().map(|_| OnceLock::new()).collect();
    if kernels::has_shortlists(logits) {
        from_shortlists(logits, positions, &read);
    }
    let left: Vec<usize> = (0..positions.len())
        .filter(|at| read[*at].get().is_none())
        .collect();
    for left in left.chunks(LOGIT_ROWS) {
        from_rows(logits, positions, left, &read);
    }
    let outcomes = read.into_iter().map(OnceLock::into_inner);
    outcomes
        .map(|outcome| outcome.expect("each position was read"))
        .collect()
}

const ONCE: &str = "each position is read once";

/// Reads what shortlists decide.
fn from_shortlists(logits: &Tensor<2>, positions: &[Position<'_>], read: &[OnceLock<Outcome>]) {
    let [_, vocab_size] = logits.dims();
    let asks: Vec<Option<Ask<'_>>> = positions.iter().map(|p| p.ask(vocab_size)).collect();
    if asks.iter().all(Option::is_none) {
        return;
    }
    // Rows that are read whole anyway ask for nothing.
    let requests: Vec<kernels::SampleRequest<'_>> = asks
        .iter()
        .map(|ask| ask.as_ref().map_or_else(Default::default, Ask::request))
        .collect();
    let lists = kernels::shortlist(logits, &requests).expect("this device makes shortlists");
    let decide = |at: usize| {
        let outcome = asks[at]
            .as_ref()
            .and_then(|ask| positions[at].read_shortlist(ask, &lists[at], vocab_size));
        if let Some(outcome) = outcome {
            read[at].set(outcome).expect(ONCE);
        }
    };
    kernels::share(positions.len(), positions.len() * SHORTLIST_COST, decide);
}

/// Reads some positions from their whole rows.
fn from_rows(
    logits: &Tensor<2>,
    positions: &[Position<'_>],
    some: &[usize],
    read: &[OnceLock<Outcome>],
) {
    let [_, vocab_size] = logits.dims();
    let _scope = kernels::scope("draw", [vocab_size, 1], || kernels::Work {
        bytes: size_of::<f32>() * some.len() * vocab_size,
        operations: 0,
    });
    kernels::with_f32(&nemotron_h::select(logits, some), |logits| {
        kernels::share(some.len(), logits.len(), |nth| {
            let row = &logits[nth * vocab_size..][..vocab_size];
            let at = some[nth];
            read[at].set(positions[at].read_row(row)).expect(ONCE);
        });
    });
}
