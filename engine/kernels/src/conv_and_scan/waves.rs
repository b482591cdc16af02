//! A step's rows in pieces, on a GPU: every row up to its first copy, then the copies, then every row
//! up to its second copy, and so on. Pending tokens come before a row's first piece.
//!
//! A row's state is read and written once a piece; tokens that are not absorbed leave no trace in it.
//! Where there is more than one wave, or something is pending, a wave's inputs are gathered first and
//! its outputs scattered: `4 projected + 4 inner` bytes a token twice, little beside the projections.

use std::sync::{Arc, OnceLock};

use burn::tensor::{DType, Tensor};
use cube_kernels::{Buffer, Client, Columns, RowIndex, RowMoves, StepIndex, copy_rows, copy_words};

use crate::cube::{Kind, elements, empty, state_format, view, words};
use crate::{
    Arithmetic, Layout, MambaShape, RowLayout, ScanParameters, StatePool, causal_conv1d, ssm_scan,
};

/// The pieces of a step, and what rows leave in their rings.
#[derive(Debug)]
pub(crate) struct Waves {
    pub(super) list: Vec<Wave>,
    /// From the step's tokens to the rings'.
    pub(super) kept: RowMoves,
    /// Whether the first wave is the step as it is.
    pub(super) is_whole: bool,
    pub(super) max_ring: usize,
}

/// A piece of some rows.
#[derive(Debug)]
pub(super) struct Wave {
    pub(super) index: StepIndex,
    /// From the step's tokens to the wave's.
    pub(super) own: RowMoves,
    /// From the rings' tokens to the wave's.
    pub(super) pending: RowMoves,
    /// From the wave's tokens to the step's.
    pub(super) outputs: RowMoves,
    /// Slots to copy afterwards.
    pub(super) copies: Vec<(usize, usize)>,
}

/// Where a row's pieces end, counted in its own tokens, ascending.
fn ends(row: &RowLayout) -> Vec<usize> {
    let saves = row.saves.iter().map(|save| save.num_tokens);
    let mut ends: Vec<usize> = saves.chain([row.num_tokens()]).collect();
    ends.dedup();
    ends
}

impl Waves {
    fn new(client: &Client, layout: &Layout, max_ring: usize) -> Self {
        let ends: Vec<Vec<usize>> = layout.rows.iter().map(ends).collect();
        let count = ends.iter().map(Vec::len).max().unwrap_or(0);
        let waves = (0..count).map(|wave| Wave::new(client, layout, &ends, wave, max_ring));
        let drafting = layout.rows.iter().filter(|row| !row.is_absorbed());
        let kept = drafting.flat_map(|row| {
            let places = row.slot * max_ring..;
            row.tokens.clone().zip(places)
        });
        Self {
            is_whole: count == 1 && layout.num_pending() == 0,
            kept: RowMoves::upload(client, &kept.collect::<Vec<_>>()),
            list: waves.collect(),
            max_ring,
        }
    }
}

impl Wave {
    fn new(
        client: &Client,
        layout: &Layout,
        ends: &[Vec<usize>],
        wave: usize,
        max_ring: usize,
    ) -> Self {
        let (mut rows, mut absorbed) = (Vec::new(), Vec::new());
        let (mut own, mut pending, mut copies) = (Vec::new(), Vec::new(), Vec::new());
        let mut place = 0;
        for (row, ends) in layout.rows.iter().zip(ends) {
            let Some(&end) = ends.get(wave) else {
                continue;
            };
            let begin = wave.checked_sub(1).map_or(0, |before| ends[before]);
            let num_pending = if wave == 0 { row.num_pending } else { 0 };
            for at in 0..num_pending {
                pending.push((row.slot * max_ring + at, place));
                place += 1;
            }
            for at in begin..end {
                own.push((row.tokens.start + at, place));
                place += 1;
            }
            let num_tokens = num_pending + end - begin;
            rows.push(RowIndex {
                num_tokens,
                // Chunks of a scan lie on a grid of positions.
                start: row.start + begin - num_pending,
                slot: row.slot,
                blocks: Vec::new(),
            });
            absorbed.push(if row.is_absorbed() {
                num_tokens
            } else {
                num_pending
            });
            let saved = row.saves.iter().filter(|save| save.num_tokens == end);
            copies.extend(saved.map(|save| (row.slot, save.slot)));
        }
        let index = StepIndex::upload(client, &rows, layout.block_size);
        let is_all = rows
            .iter()
            .map(|row| row.num_tokens)
            .eq(absorbed.iter().copied());
        let outputs: Vec<(usize, usize)> = own.iter().map(|(token, at)| (*at, *token)).collect();
        Self {
            index: if is_all {
                index
            } else {
                index.absorbing(client, &rows, &absorbed)
            },
            own: RowMoves::upload(client, &own),
            pending: RowMoves::upload(client, &pending),
            outputs: RowMoves::upload(client, &outputs),
            copies,
        }
    }
}

/// The waves of a step, made when its first layer asks. Equal to every other, as they say nothing that
/// the layout does not.
#[derive(Clone, Debug, Default)]
pub(crate) struct WavesCell(OnceLock<Arc<Waves>>);

impl WavesCell {
    /// Waves that are on the device already.
    pub(crate) fn preset(waves: Arc<Waves>) -> Self {
        Self(waves.into())
    }
}

impl PartialEq for WavesCell {
    fn eq(&self, _: &Self) -> bool {
        true
    }
}

impl Eq for WavesCell {}

/// See [`conv_and_scan`](super::conv_and_scan()).
#[allow(clippy::too_many_arguments)] // As there.
pub(super) fn in_waves(
    projected: &Tensor<2>,
    weight: &Tensor<3>,
    bias: Option<&Tensor<1>>,
    parameters: &ScanParameters<'_>,
    pool: StatePool,
    shape: &MambaShape,
    layout: &Layout,
    arithmetic: Arithmetic,
) -> (Tensor<2>, StatePool) {
    causal_conv1d::check(projected, weight, &pool, shape, layout);
    ssm_scan::check(projected, &pool, shape, layout);
    let [num_tokens, width] = projected.dims();
    let num_slots = pool.conv.dims()[0];
    let max_ring = pool.max_ring();
    let (projected, weight, bias) = (view(projected), view(weight), bias.map(view));
    let (conv, ssm, ring) = (
        view(&pool.conv),
        view(&pool.ssm),
        pool.ring.as_ref().map(view),
    );
    let constants = [parameters.a, parameters.d, parameters.dt_bias].map(|x| elements(&view(x)));
    let client = &projected.client;
    let waves = layout
        .waves
        .0
        .get_or_init(|| Waves::new(client, layout, max_ring).into());
    assert_eq!(waves.max_ring, max_ring, "rings of a model are alike");

    let like = |rows, columns| empty(&projected, &[rows, columns], DType::F32);
    let state = state_format(&ssm, parameters.seed);
    let [from, conv] = [&projected, &conv].map(elements);
    let ssm = words(&ssm);
    let ring = ring.as_ref().map(elements);
    let ring_of = || columns(ring.as_ref().expect("checked above"), shape.ring(), 0);
    let y = like(num_tokens, shape.inner());
    for wave in &waves.list {
        let len = wave.index.num_tokens;
        let gathered = (!waves.is_whole).then(|| {
            let gathered = like(len, width);
            let to = elements(&gathered);
            let place = columns(&to, width, shape.inner());
            let source = columns(&from, width, shape.inner());
            copy_rows(client, source, place, shape.ring(), &wave.own);
            if !wave.pending.is_empty() {
                copy_rows(client, ring_of(), place, shape.ring(), &wave.pending);
            }
            to
        });
        let inputs = gathered.as_ref().unwrap_or(&from);
        let xbc = elements(&like(len, shape.conv_dim()));
        let out = if waves.is_whole {
            elements(&y)
        } else {
            elements(&like(len, shape.inner()))
        };
        cube_kernels::causal_conv1d(
            client,
            inputs,
            &elements(&weight),
            bias.as_ref().map(elements).as_ref(),
            &conv,
            &shape.into(),
            &wave.index,
            &xbc,
        );
        cube_kernels::ssm_scan(
            client,
            &xbc,
            inputs,
            &cube_kernels::ScanParameters {
                a: &constants[0],
                d: &constants[1],
                dt_bias: &constants[2],
                time_step_limit: parameters.time_step_limit,
                state,
            },
            &ssm,
            &shape.into(),
            &wave.index,
            arithmetic.into(),
            &out,
        );
        if !waves.is_whole {
            let to = elements(&y);
            copy_rows(
                client,
                columns(&out, shape.inner(), 0),
                columns(&to, shape.inner(), 0),
                shape.inner(),
                &wave.outputs,
            );
        }
        for &(slot, copy) in &wave.copies {
            for states in [&conv, &ssm] {
                let len = states.len() / num_slots;
                copy_words(client, states, slot * len, copy * len, len);
            }
        }
    }
    if !waves.kept.is_empty() {
        let source = columns(&from, width, shape.inner());
        copy_rows(client, source, ring_of(), shape.ring(), &waves.kept);
    }
    (Kind::tensor(y), pool)
}

fn columns(buffer: &Buffer, stride: usize, first: usize) -> Columns<'_> {
    Columns {
        buffer,
        stride,
        first,
    }
}
