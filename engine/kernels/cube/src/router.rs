//! Which experts a token goes to, and with what weight.
//!
//! Shapes: `logits` f32 `[t, e]` (the gate's product, before the sigmoid), `bias` f32 `[e]`; `ids`
//! i32 and `weights` f32 `[t, top_k]`, in order of choice. Scores are `sigmoid(logits)`; score
//! plus bias chooses, the score alone weighs, ties go to the lowest id, NaN comes last: the
//! `router_topk` reference, DeepSeek-V3's router.
//!
//! One plane routes one token: its keys lie in registers, spread over the lanes, and every round
//! takes the largest. Keys are u32 whose order is the floats' order, so that a round compares
//! integers. Bytes moved per token: `4 e + 8 top_k`; latency binds in decode (`top_k` rounds of
//! two reductions), the integer units in prefill. A cube per token that counts for every expert
//! how many come before it (no rounds, no reductions) needs one pass, but `e^2` comparisons: by
//! count sixteen times the instructions for 512 experts, all of it prefill's loss; not measured.
#![allow(unsafe_code)]

use cubecl::client::Client;
use cubecl::prelude::*;

use crate::Buffer;

/// The rules of a router.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct RouterShape {
    /// Experts to choose from.
    pub num_experts: usize,
    /// Experts per token.
    pub top_k: usize,
    /// Groups the experts are split into; 1 for none.
    pub n_group: usize,
    /// Groups a token may choose from.
    pub topk_group: usize,
    /// Whether the weights of a token are normalised to sum to one.
    pub norm_topk_prob: bool,
    /// Factor on the weights.
    pub scaling: f32,
}

/// Chooses for `t` tokens. A row of NaN chooses some experts and gets NaN weights: it spoils its
/// own token and no other.
pub fn router_topk(
    client: &Client,
    logits: &Buffer,
    bias: &Buffer,
    t: usize,
    shape: &RouterShape,
    ids: &Buffer,
    weights: &Buffer,
) {
    let num_experts = shape.num_experts;
    let n_group = shape.n_group.max(1);
    assert!(
        shape.top_k <= num_experts,
        "top {} of {num_experts} experts",
        shape.top_k
    );
    assert_eq!(num_experts % n_group, 0, "experts per group");
    assert_eq!(logits.len(), t * num_experts, "router logits");
    assert_eq!(bias.len(), num_experts, "correction bias");
    assert_eq!([ids.len(), weights.len()], [t * shape.top_k; 2], "choices");
    if t == 0 || shape.top_k == 0 {
        return;
    }
    let hardware = &client.properties().hardware;
    let lanes = hardware.plane_size_max as usize;
    assert_eq!(
        lanes, hardware.plane_size_min as usize,
        "planes of one width"
    );
    // SAFETY: one cube, which is one plane, per token, and the lengths asserted above.
    unsafe {
        route::launch_unchecked(
            client,
            CubeCount::Static(t as u32, 1, 1),
            CubeDim::new_1d(lanes as u32),
            logits.arg(),
            bias.arg(),
            ids.arg(),
            weights.arg(),
            shape.scaling,
            num_experts,
            lanes,
            shape.top_k,
            n_group,
            shape.topk_group.min(n_group),
            shape.norm_topk_prob,
        );
    }
}

/// Key of an entry that is taken, or that never was.
const TAKEN: u32 = 0;
/// Key of a NaN: behind every number, [`ordered`] of minus infinity included.
const NAN: u32 = 1;

/// A u32 whose order is that of `x`; both zeros are one.
#[cube]
fn ordered(x: f32) -> u32 {
    let zero = f32::new(0.0);
    let bits = u32::reinterpret(select(x == zero, zero, x));
    let key = select(bits >> 31 == 1, !bits, bits | 0x8000_0000u32);
    // The bits, not `x != x`: compilers may take it that there is no NaN.
    select(bits << 1 > 0xff00_0000u32, NAN.runtime(), key)
}

#[cube(launch_unchecked)]
fn route(
    logits: &[f32],
    bias: &[f32],
    ids: &mut [i32],
    weights: &mut [f32],
    scaling: f32,
    #[comptime] num_experts: usize,
    #[comptime] lanes: usize,
    #[comptime] top_k: usize,
    #[comptime] n_group: usize,
    #[comptime] topk_group: usize,
    #[comptime] norm_topk_prob: bool,
) {
    let token = CUBE_POS_X as usize;
    let lane = UNIT_POS_X as usize;
    let per_lane = comptime!(num_experts.div_ceil(lanes));
    let mut scores = Shared::<[f32]>::new_slice(num_experts);
    let mut keys = Array::<u32>::new(per_lane);
    #[unroll]
    for j in 0..per_lane {
        let expert = j * lanes + lane;
        keys[j] = TAKEN.runtime();
        if expert < num_experts {
            let score = 1.0 / (1.0 + (-logits[token * num_experts + expert]).exp());
            scores[expert] = score;
            keys[j] = ordered(score + bias[expert]);
        }
    }
    if comptime!(n_group > 1) {
        let size = comptime!(num_experts / n_group);
        let is_kept = keep_groups(&scores, bias, lane, size, lanes, n_group, topk_group);
        #[unroll]
        for j in 0..per_lane {
            let expert = j * lanes + lane;
            if expert < num_experts && is_kept[expert / size] == 0 {
                keys[j] = ordered(f32::new(f32::NEG_INFINITY));
            }
        }
    }
    sync_cube();

    let mut chosen = Shared::<[u32]>::new_slice(top_k);
    let mut sum = f32::new(0.0);
    for round in 0..top_k {
        // The lane's largest, the lowest id among equals because ids ascend.
        let mut best = TAKEN.runtime();
        let mut slot = 0u32;
        #[unroll]
        for j in 0..per_lane {
            let is_better = keys[j] > best;
            best = select(is_better, keys[j], best);
            slot = select(is_better, j as u32, slot);
        }
        let largest = plane_max(best);
        let expert = slot * lanes as u32 + lane as u32;
        let winner = plane_min(select(best == largest, expert, u32::MAX.runtime()));
        if lane == 0 {
            chosen[round] = winner;
        }
        #[unroll]
        for j in 0..per_lane {
            let is_winner = (j * lanes + lane) as u32 == winner;
            keys[j] = select(is_winner, TAKEN.runtime(), keys[j]);
        }
        sum += scores[winner as usize];
    }
    sync_cube();

    let mut round = lane;
    while round < top_k {
        let expert = chosen[round];
        let mut weight = scores[expert as usize];
        if norm_topk_prob {
            weight /= sum + 1e-20;
        }
        ids[token * top_k + round] = i32::cast_from(expert);
        weights[token * top_k + round] = weight * scaling;
        round += lanes;
    }
}

/// Per group 1 if it is one of the `topk_group` whose two largest keys have the largest sum.
#[cube]
fn keep_groups(
    scores: &[f32],
    bias: &[f32],
    lane: usize,
    #[comptime] size: usize,
    #[comptime] lanes: usize,
    #[comptime] n_group: usize,
    #[comptime] topk_group: usize,
) -> Shared<[u32]> {
    let mut group_keys = Shared::<[u32]>::new_slice(n_group);
    let mut is_kept = Shared::<[u32]>::new_slice(n_group);
    sync_cube();
    let mut group = lane;
    while group < n_group {
        // Values and keys of the best two so far.
        let mut first = f32::new(0.0);
        let mut second = f32::new(0.0);
        let mut first_key = TAKEN.runtime();
        let mut second_key = TAKEN.runtime();
        for i in 0..size {
            let expert = group * size + i;
            let value = scores[expert] + bias[expert];
            let key = ordered(value);
            if key > first_key {
                second = first;
                second_key = first_key;
                first = value;
                first_key = key;
            } else if key > second_key {
                second = value;
                second_key = key;
            }
        }
        group_keys[group] = ordered(first + second);
        group += lanes;
    }
    sync_cube();
    group = lane;
    while group < n_group {
        let key = group_keys[group];
        let mut before = 0u32;
        for other in 0..n_group {
            let other_key = group_keys[other];
            if other_key > key || (other_key == key && other < group) {
                before += 1;
            }
        }
        is_kept[group] = select(before < topk_group as u32, 1u32, 0u32);
        group += lanes;
    }
    sync_cube();
    is_kept
}
