//! Guesses at the tokens that follow, made by the draft block from what a step drew.
//!
//! All rows that want guesses make their first one together, then the second, and so on. A guess is
//! drawn as its token will be: with the parameters, the history and the very noise of its index, so
//! that a block that has nearly the model's distribution nearly always guesses the token that will be
//! drawn, at any temperature. No mask is known that far ahead.
//!
//! ```text
//!               |--- known ---|-- drawn --|-- guesses -->
//! tokens        t_s  ..        t_e   ..  t_n  g1   g2
//! hidden before h_{s-1} ..     h_{e-1}       h_n'  h_{n+1}'
//! positions     s    ..        e     ..  n    n+1  n+2      in the block's pool
//! ```

use std::sync::Arc;

use burn::tensor::Tensor;
use kernels::{Layout, RowLayout};
use scheduler::{Row, RowFault, RowOutput, Sample};

use crate::batch::Batch;
use crate::cache::DeviceCache;
use crate::decode::{DecodeGraphs, Pass};
use crate::error::EngineError;
use crate::layers::draft::{Asked, FIRST_PAIR};
use crate::model::nemotron_h::NemotronH;
use crate::read_out::{Position, logits_at_once, read_out};
use crate::verify;

/// The hidden states that a step's pairs are made of.
pub(crate) struct Hidden {
    /// Of the step's tokens, `[T, H]`.
    pub(crate) step: Tensor<2>,
    /// Of the token before each row that [needs it](needs_hidden), `[n, H]`.
    pub(crate) before: Option<Tensor<2>>,
}

/// Whether a row's first pair takes the hidden state that its slot remembers.
pub(crate) fn needs_hidden(row: &Row) -> bool {
    row.drafting.max_drafts > 0 && !row.drafting.is_drafted && row.start as usize >= FIRST_PAIR
}

/// Lets the draft block see the rows that want guesses, and writes the guesses into their outputs. A
/// block that answers NaN, which the model need not mind, guesses nothing. Returns how many passes
/// through the block that took.
///
/// # Errors
/// A recorded pass cannot be replayed.
pub(crate) fn guess(
    model: &NemotronH,
    cache: &mut DeviceCache,
    mut graphs: Option<&mut DecodeGraphs>,
    (rows, batch): (&[Row], &Batch),
    hidden: Hidden,
    outputs: &mut [Result<RowOutput, RowFault>],
) -> Result<u32, EngineError> {
    let mut pairs = FirstPairs::new(rows, batch, &hidden, outputs);
    if pairs.ids.is_empty() {
        return Ok(0);
    }
    let block_size = cache.block_size;
    let source = match hidden.before {
        None => hidden.step,
        Some(before) => Tensor::cat(vec![hidden.step, before], 0),
    };
    let layout = laid_out(pairs.layout, block_size);
    let mut guessers = std::mem::take(&mut pairs.guessers);
    let looking = laid_out(
        guessers.iter().enumerate().map(Guesser::row).collect(),
        block_size,
    );
    let asked = pairs.asked.iter().map(|at| *at as u32);
    let first = Pass {
        ids: pairs.ids,
        source: &source,
        places: &pairs.sources,
        layout: &layout,
        asked: &Asked {
            places: Some(&asked.collect::<Vec<_>>().into()),
            layout: &looking,
        },
        step_tokens: batch.longest_row(),
    };
    let mut own = first.run(graphs.as_deref_mut(), model, cache)?;
    let mut num_passes = 1;
    while let Some(hidden) = own.take() {
        let guesses = draw(model, &hidden, &guessers);
        let mut going = Vec::new();
        for (at, guess) in guesses.into_iter().enumerate() {
            let guesser = &mut guessers[at];
            let Some(guess) = guess else { continue };
            let output = outputs[guesser.at].as_mut().expect("it drew tokens");
            output.drafts.push(guess);
            guesser.ahead.push(guess);
            guesser.position += 1;
            let wanted = guesser.row.drafting.max_drafts as usize;
            let ends = guesser.sample.params.stop_token_ids.contains(&guess);
            if output.drafts.len() < wanted && !ends {
                going.push(at);
            }
        }
        if going.is_empty() {
            break;
        }
        let mut at = 0;
        guessers.retain(|_| {
            at += 1;
            going.contains(&(at - 1))
        });
        let ids = guessers.iter().map(Guesser::last).collect();
        let layout = laid_out(
            guessers.iter().enumerate().map(Guesser::row).collect(),
            block_size,
        );
        let next = Pass {
            ids,
            source: &hidden,
            places: &going,
            layout: &layout,
            asked: &Asked {
                places: None,
                layout: &layout,
            },
            step_tokens: 0,
        };
        own = next.run(graphs.as_deref_mut(), model, cache)?;
        num_passes += 1;
    }
    Ok(num_passes)
}

/// What each guesser would draw from the logits of its hidden state.
fn draw(model: &NemotronH, hidden: &Tensor<2>, guessers: &[Guesser<'_>]) -> Vec<Option<u32>> {
    let all: Vec<usize> = (0..guessers.len()).collect();
    let samples: Vec<Sample> = guessers.iter().map(Guesser::sample).collect();
    let mut guesses = Vec::with_capacity(all.len());
    let at_once = logits_at_once(&hidden.device(), all.len(), 0);
    for (places, samples) in all.chunks(at_once).zip(samples.chunks(at_once)) {
        let logits = model.draft_logits(hidden, places);
        let positions: Vec<Position<'_>> = samples
            .iter()
            .map(|sample| Position::draw(sample, None))
            .collect();
        let read = read_out(&logits, &positions).into_iter();
        guesses.extend(read.map(|read| read.ok()?.tokens.pop()));
    }
    guesses
}

/// A row that wants guesses.
struct Guesser<'a> {
    /// Which of the plan's rows.
    at: usize,
    row: &'a Row,
    sample: &'a Sample,
    /// Tokens drawn and guessed, from `sample`'s on.
    ahead: Vec<u32>,
    /// Of the last of them.
    position: usize,
}

impl Guesser<'_> {
    fn last(&self) -> u32 {
        *self.ahead.last().expect("it drew a token")
    }

    /// How the next token will be drawn.
    fn sample(&self) -> Sample {
        let mut sample = verify::later(self.sample, &self.ahead).into_owned();
        if sample.params.logprobs.is_some() {
            Arc::make_mut(&mut sample.params).logprobs = None;
        }
        sample
    }

    /// The last token's pair as the `nth` row.
    fn row((nth, guesser): (usize, &Self)) -> RowLayout {
        RowLayout {
            tokens: nth..nth + 1,
            start: guesser.position,
            blocks: blocks(guesser.row),
            ..RowLayout::default()
        }
    }
}

/// The pairs of a step's own tokens and of those that it drew.
struct FirstPairs<'a> {
    ids: Vec<u32>,
    /// Where each pair's hidden state is: among the step's, then those before the rows.
    sources: Vec<usize>,
    layout: Vec<RowLayout>,
    /// The last pair of each row that drew.
    asked: Vec<usize>,
    guessers: Vec<Guesser<'a>>,
}

impl<'a> FirstPairs<'a> {
    fn new(
        rows: &'a [Row],
        batch: &Batch,
        hidden: &Hidden,
        outputs: &[Result<RowOutput, RowFault>],
    ) -> Self {
        let mut all = Self {
            ids: Vec::new(),
            sources: Vec::new(),
            layout: Vec::new(),
            asked: Vec::new(),
            guessers: Vec::new(),
        };
        let [mut next_before, _] = hidden.step.dims();
        for (at, row) in rows.iter().enumerate() {
            let before = needs_hidden(row).then(|| {
                next_before += 1;
                next_before - 1
            });
            if let (Ok(output), true) = (&outputs[at], row.drafting.max_drafts > 0) {
                let first = batch.layout.rows[at].tokens.start;
                all.add((at, row), first, before, &output.tokens);
            }
        }
        all
    }

    fn add(
        &mut self,
        (at, row): (usize, &'a Row),
        first: usize,
        before: Option<usize>,
        drawn: &[u32],
    ) {
        let known = &row.input_ids[..verify::num_known(row)];
        let tokens = known.iter().chain(drawn).copied();
        let begin = self.ids.len();
        // The first token's pair is there already, or cannot be made, unless its hidden state is at hand.
        let skipped = usize::from(before.is_none());
        let own = (first..).take(known.len() + drawn.len() - 1);
        self.ids.extend(tokens.skip(skipped));
        self.sources.extend(before.into_iter().chain(own));
        let end = self.ids.len();
        if begin == end {
            return;
        }
        let start = row.start as usize + skipped;
        self.layout.push(RowLayout {
            tokens: begin..end,
            start,
            blocks: blocks(row),
            ..RowLayout::default()
        });
        if let (Some(sample), false) = (&row.sample, drawn.is_empty()) {
            self.asked.push(end - 1);
            self.guessers.push(Guesser {
                at,
                row,
                sample,
                ahead: drawn.to_vec(),
                position: start + (end - begin) - 1,
            });
        }
    }
}

fn blocks(row: &Row) -> Vec<u32> {
    row.block_table.iter().map(|block| block.0).collect()
}

fn laid_out(rows: Vec<RowLayout>, block_size: usize) -> Layout {
    Layout::new(rows, block_size).seen_from(FIRST_PAIR)
}
