//! Selection on the device.
//!
//! On sm_120 alone the assembler spills 4 bytes of a chunk's thread, at 48 registers and of its own
//! accord. Ids beside the keys in registers spilled 92 of a row's: its 1024 units have 64 each.
#![allow(unsafe_code)]
// What kernels can say: loops by index, arrays by reference, sums that are halved.
#![allow(
    clippy::needless_range_loop,
    clippy::trivially_copy_pass_by_ref,
    clippy::manual_midpoint
)]

use cubecl::client::Client;
use cubecl::prelude::*;

use super::{Row, SampleRequest};
use crate::Buffer;
use crate::noise::mix;

/// Logits of a cube of the first launch.
pub(super) const CHUNK: usize = 2048;
/// Units of it.
const UNITS: usize = 256;
/// Units of the second.
const ROW_UNITS: usize = 1024;
/// Words that a chunk leaves beside its lists: NaN, the largest key, its sum, the largest key among
/// the likely, their mass.
const STATS: usize = 5;
/// Words of a row's answer before its lists: those of [`STATS`] as floats, the lengths of the three
/// lists, the least noisy sum.
pub(super) const HEADER: usize = 9;

/// Words of a row's plan.
const PLAN: usize = 16;
// What they are.
const MASK_AT: usize = 0;
const MASK_LEN: usize = 1;
const EDITED_AT: usize = 2;
const EDITED_LEN: usize = 3;
/// Lengths of the three lists.
const LISTS: usize = 4;
const STREAM: usize = 7;
const INVERSE: usize = 9;
/// First entry of the row's chunks among the entries, and first word of its answer.
const ENTRIES_AT: usize = 10;
const ANSWER_AT: usize = 11;

/// No mask.
const NONE: u32 = u32::MAX;

/// Rows' plans, masks and edits, as the kernels read them.
#[derive(Default)]
pub(super) struct Plan {
    plans: Vec<[u32; PLAN]>,
    /// Masks and edits.
    words: Vec<u32>,
    /// Logits to gather.
    picks: Vec<u32>,
    num_entries: usize,
    num_words: usize,
    longest: usize,
}

impl Plan {
    /// Adds a row; says where its answer will be, single logits counted from the first of them.
    pub(super) fn push(
        &mut self,
        row: usize,
        v: usize,
        chunks: usize,
        request: &SampleRequest<'_>,
    ) -> Row {
        let noise = request.noise;
        let counts = [
            request.num_top,
            request.num_likely,
            noise.map_or(0, |noise| noise.count),
        ];
        let mut plan = [0; PLAN];
        plan[MASK_AT] = NONE;
        if let Some(mask) = request.mask {
            plan[MASK_AT] = self.words.len() as u32;
            plan[MASK_LEN] = mask.len() as u32;
            self.words.extend(mask);
        }
        plan[EDITED_AT] = self.words.len() as u32;
        plan[EDITED_LEN] = request.edited.len() as u32;
        self.words.extend(request.edited);
        for (at, count) in counts.into_iter().enumerate() {
            plan[LISTS + at] = count as u32;
        }
        if let Some(noise) = noise {
            plan[STREAM] = noise.stream as u32;
            plan[STREAM + 1] = (noise.stream >> 32) as u32;
            plan[INVERSE] = noise.temperature.recip().to_bits();
        }
        plan[ENTRIES_AT] = self.num_entries as u32;
        plan[ANSWER_AT] = self.num_words as u32;
        let header = self.num_words;
        let each: usize = counts.iter().sum();
        self.num_entries += chunks * each;
        self.num_words += HEADER + 2 * each;
        self.longest = counts.into_iter().fold(self.longest, usize::max);
        self.plans.push(plan);
        let mut at = header + HEADER;
        let lists = counts.map(|count| {
            at += 2 * count;
            (count, at - 2 * count)
        });
        let mut pick = |tokens: &[u32]| {
            let at = self.picks.len();
            self.picks
                .extend(tokens.iter().map(|token| (row * v) as u32 + token));
            (at, tokens.len())
        };
        Row {
            header,
            lists,
            edited: pick(request.edited),
            wanted: pick(request.wanted),
        }
    }

    /// Launches everything; single logits are at the end of the answer.
    pub(super) fn run(
        self,
        client: &Client,
        logits: &Buffer,
        v: usize,
        chunks: usize,
    ) -> (Buffer, usize) {
        let p = self.plans.len();
        let answer = Buffer::empty::<u32>(client, self.num_words + self.picks.len());
        if p == 0 {
            return (answer, self.num_words);
        }
        let hardware = &client.properties().hardware;
        let lanes = hardware.plane_size_max as usize;
        assert!(
            lanes == hardware.plane_size_min as usize && UNITS.is_multiple_of(lanes),
            "planes of {} to {lanes} lanes",
            hardware.plane_size_min
        );
        assert!(chunks <= ROW_UNITS, "{v} logits in a row");
        let plans = Buffer::upload(client, self.plans.as_flattened());
        let words = Buffer::upload(client, &[&self.words[..], &[0]].concat());
        let stats = Buffer::empty::<u32>(client, p * chunks * STATS);
        let entries = Buffer::empty::<u32>(client, 2 * self.num_entries + 1);
        // SAFETY: a cube per chunk and row; plans point into the buffers as laid out by `push`.
        unsafe {
            select_in_chunks::launch_unchecked(
                client,
                CubeCount::Static(chunks as u32, p as u32, 1),
                CubeDim::new_2d(lanes as u32, (UNITS / lanes) as u32),
                logits.arg(),
                plans.arg(),
                words.arg(),
                stats.arg(),
                entries.arg(),
                v,
                UNITS / lanes,
            );
        }
        // Registers for the longest list, in a few sizes.
        let per_unit = (chunks * self.longest)
            .div_ceil(ROW_UNITS)
            .max(1)
            .next_power_of_two();
        // SAFETY: a cube per row, as above; all chunks of a row fit in the cube's registers.
        unsafe {
            select_in_rows::launch_unchecked(
                client,
                CubeCount::Static(p as u32, 1, 1),
                CubeDim::new_2d(lanes as u32, (ROW_UNITS / lanes) as u32),
                logits.arg(),
                plans.arg(),
                stats.arg(),
                entries.arg(),
                answer.arg(),
                v,
                chunks,
                per_unit,
                ROW_UNITS / lanes,
            );
        }
        if !self.picks.is_empty() {
            let len = self.picks.len();
            let picks = Buffer::upload(client, &self.picks);
            // SAFETY: a unit per pick, each of a token below `v`; the answer has room for all.
            unsafe {
                gather::launch_unchecked(
                    client,
                    CubeCount::Static(len.div_ceil(UNITS) as u32, 1, 1),
                    CubeDim::new_1d(UNITS as u32),
                    logits.arg(),
                    picks.arg(),
                    answer.arg(),
                    self.num_words,
                    len,
                );
            }
        }
        (answer, self.num_words)
    }
}

/// Key of what is not to be selected: below those of all numbers.
const OUT: u32 = 0;

/// A u32 whose order is the total order of floats.
#[cube]
fn ordered(x: f32) -> u32 {
    let bits = u32::reinterpret(x);
    select(bits >> 31 == 1, !bits, bits | 0x8000_0000u32)
}

/// The float of a key.
#[cube]
fn unordered(key: u32) -> f32 {
    f32::reinterpret(select(key >> 31 == 1, key & 0x7fff_ffffu32, !key))
}

/// Sum over the cube, in every unit. `turn` is another one at the next call: two halves of `sums`
/// take turns, so that one barrier does.
#[cube]
fn cube_count(value: u32, sums: &mut [u32], turn: usize, #[comptime] planes: usize) -> u32 {
    let half = turn % 2 * planes;
    let sum = plane_sum(value);
    if UNIT_POS_X == 0 {
        sums[half + UNIT_POS_Y as usize] = sum;
    }
    sync_cube();
    let mut total = 0u32;
    for plane in 0..planes {
        total += sums[half + plane];
    }
    total
}

/// The same for the largest.
#[cube]
fn cube_max(value: u32, sums: &mut [u32], #[comptime] planes: usize) -> u32 {
    sync_cube();
    let largest = plane_max(value);
    if UNIT_POS_X == 0 {
        sums[UNIT_POS_Y as usize] = largest;
    }
    sync_cube();
    let mut total = 0u32;
    for plane in 0..planes {
        let other = sums[plane];
        total = select(other > total, other, total);
    }
    sync_cube();
    total
}

/// The same for a sum of floats, planes first, then in their order.
#[cube]
fn cube_sum(value: f32, sums: &mut [u32], #[comptime] planes: usize) -> f32 {
    sync_cube();
    let sum = plane_sum(value);
    if UNIT_POS_X == 0 {
        sums[UNIT_POS_Y as usize] = u32::reinterpret(sum);
    }
    sync_cube();
    let mut total = f32::new(0.0);
    for plane in 0..planes {
        total += f32::reinterpret(sums[plane]);
    }
    sync_cube();
    total
}

/// The id of a unit's `j`th key. They are listed behind their keys, or ascend by [`CUBE_DIM`] from
/// the unit's `first`: in registers they would not fit beside the keys.
#[cube]
fn id_of(ids: &[u32], first: usize, #[comptime] j: usize, #[comptime] are_listed: bool) -> u32 {
    let at = first + j * CUBE_DIM as usize;
    if comptime!(are_listed) {
        ids[2 * at + 1]
    } else {
        at as u32
    }
}

/// The key and the id of the last of the `k` best, by key and then by lowest id. Keys of [`OUT`]
/// are never among them; with fewer than `k` others, all others are.
#[cube]
fn last_of_best(
    keys: &Array<u32>,
    ids: &[u32],
    first: usize,
    k: u32,
    sums: &mut [u32],
    #[comptime] per_unit: usize,
    #[comptime] planes: usize,
    #[comptime] are_listed: bool,
) -> (u32, u32) {
    let mut least = 0u32;
    let mut turn = 0usize;
    for round in 0..32u32 {
        let middle = least | (1u32 << (31 - round));
        let mut count = 0u32;
        #[unroll]
        for j in 0..per_unit {
            count += u32::cast_from(keys[j] >= middle);
        }
        if cube_count(count, sums, turn, planes) >= k {
            least = middle;
        }
        turn += 1;
    }
    let mut above = 0u32;
    let mut equal = 0u32;
    #[unroll]
    for j in 0..per_unit {
        above += u32::cast_from(keys[j] > least);
        equal += u32::cast_from(keys[j] == least);
    }
    let above = cube_count(above, sums, turn, planes);
    let equal = cube_count(equal, sums, turn + 1, planes);
    let mut id = u32::MAX.runtime();
    if least > OUT && above + equal > k {
        // The id below which enough of the equal ones lie.
        let mut below = 0u32;
        turn = 0usize;
        for round in 0..32u32 {
            let middle = below | (1u32 << (31 - round));
            let mut count = 0u32;
            #[unroll]
            for j in 0..per_unit {
                if keys[j] == least {
                    count += u32::cast_from(id_of(ids, first, j, are_listed) < middle);
                }
            }
            if above + cube_count(count, sums, turn, planes) < k {
                below = middle;
            }
            turn += 1;
        }
        id = below;
    }
    sync_cube();
    (least, id)
}

/// The unit's first place among all that are taken, and their number.
#[cube]
fn places(count: u32, sums: &mut [u32], #[comptime] planes: usize) -> (u32, u32) {
    let before = plane_exclusive_sum(count);
    let sum = plane_sum(count);
    sync_cube();
    if UNIT_POS_X == 0 {
        sums[UNIT_POS_Y as usize] = sum;
    }
    sync_cube();
    let mut first = before;
    let mut total = 0u32;
    for plane in 0..planes {
        let other = sums[plane];
        first += select((plane as u32) < UNIT_POS_Y, other, 0u32);
        total += other;
    }
    sync_cube();
    (first, total)
}

/// Writes the `k` best of the cube as (key, id) to `entries` from pair `to` on, [`OUT`] where there
/// are fewer. `any` is any buffer: ids are not listed.
#[cube]
fn keep(
    keys: &Array<u32>,
    any: &[u32],
    first: usize,
    k: u32,
    entries: &mut [u32],
    to: usize,
    sums: &mut [u32],
    #[comptime] per_unit: usize,
    #[comptime] planes: usize,
) {
    let (least, last) = last_of_best(keys, any, first, k, sums, per_unit, planes, false);
    let mut count = 0u32;
    #[unroll]
    for j in 0..per_unit {
        let id = (first + j * CUBE_DIM as usize) as u32;
        let is_taken = keys[j] > least || (keys[j] == least && id <= last);
        count += u32::cast_from(is_taken && keys[j] > OUT);
    }
    let (place, total) = places(count, sums, planes);
    let mut at = to + place as usize;
    #[unroll]
    for j in 0..per_unit {
        let id = (first + j * CUBE_DIM as usize) as u32;
        let is_taken = keys[j] > least || (keys[j] == least && id <= last);
        if is_taken && keys[j] > OUT {
            entries[2 * at] = keys[j];
            entries[2 * at + 1] = id;
            at += 1;
        }
    }
    let mut rest = total + UNIT_POS;
    while rest < k {
        entries[2 * (to + rest as usize)] = OUT;
        rest += CUBE_DIM;
    }
}

#[cube(launch_unchecked)]
fn select_in_chunks(
    logits: &[f32],
    plans: &[u32],
    words: &[u32],
    stats: &mut [u32],
    entries: &mut [u32],
    v: usize,
    #[comptime] planes: usize,
) {
    let per_unit = comptime!(CHUNK / UNITS);
    let chunk = CUBE_POS_X as usize;
    let row = CUBE_POS_Y as usize;
    let plan = row * PLAN;
    let mut sums = Shared::<[u32]>::new_slice(comptime!(2 * planes));
    let inverse = f32::reinterpret(plans[plan + INVERSE]);
    let num_noisy = plans[plan + LISTS + 2];
    let edited = plans[plan + EDITED_AT] as usize;
    let num_edited = plans[plan + EDITED_LEN] as usize;
    // Edits from this chunk on.
    let from = edited + lower_bound(words, edited, num_edited, (chunk * CHUNK) as u32);
    let num_edited = edited + num_edited - from;

    // Ids ascend by the number of units from here.
    let first = chunk * CHUNK + UNIT_POS as usize;
    let mut raw = Array::<u32>::new(per_unit);
    let mut likely = Array::<u32>::new(per_unit);
    let mut is_nan = 0u32;
    let mut largest = OUT.runtime();
    let mut likeliest = OUT.runtime();
    #[unroll]
    for j in 0..per_unit {
        let id = first + j * UNITS;
        raw[j] = OUT.runtime();
        likely[j] = OUT.runtime();
        if id < v {
            let logit = logits[row * v + id];
            // The bits, not `x != x`: compilers may take it that there is no NaN.
            if u32::reinterpret(logit) << 1 > 0xff00_0000u32 {
                is_nan = 1u32;
            } else {
                raw[j] = ordered(logit);
                let is_possible = u32::reinterpret(logit) != 0xff80_0000u32;
                let is_edited = is_listed(words, from, num_edited, id as u32);
                if is_possible && is_allowed(plans, words, plan, id) && !is_edited {
                    likely[j] = raw[j];
                }
            }
        }
        largest = select(raw[j] > largest, raw[j], largest);
        likeliest = select(likely[j] > likeliest, likely[j], likeliest);
    }
    let is_nan = cube_max(is_nan, &mut sums, planes);
    let largest = cube_max(largest, &mut sums, planes);
    let likeliest = cube_max(likeliest, &mut sums, planes);
    let max = unordered(largest);
    let likely_max = unordered(likeliest);
    let mut sum = f32::new(0.0);
    let mut mass = f32::new(0.0);
    #[unroll]
    for j in 0..per_unit {
        if raw[j] > OUT {
            // Equal infinities are one, not NaN.
            if raw[j] == largest {
                sum += 1.0;
            } else {
                sum += (unordered(raw[j]) - max).exp();
            }
        }
        if likely[j] > OUT && num_noisy > 0 {
            if likely[j] == likeliest {
                mass += 1.0;
            } else {
                mass += ((unordered(likely[j]) - likely_max) * inverse).exp();
            }
        }
    }
    let sum = cube_sum(sum, &mut sums, planes);
    let mass = cube_sum(mass, &mut sums, planes);
    if UNIT_POS == 0 {
        let at = (row * CUBE_COUNT_X as usize + chunk) * STATS;
        stats[at] = is_nan;
        stats[at + 1] = largest;
        stats[at + 2] = u32::reinterpret(sum);
        stats[at + 3] = likeliest;
        stats[at + 4] = u32::reinterpret(mass);
    }

    // The three lists, each behind the other's chunks.
    let num_top = plans[plan + LISTS];
    let num_likely = plans[plan + LISTS + 1];
    let chunks = CUBE_COUNT_X as usize;
    let to = plans[plan + ENTRIES_AT] as usize;
    if num_top > 0 {
        let to = to + chunk * num_top as usize;
        keep(
            &raw, words, first, num_top, entries, to, &mut sums, per_unit, planes,
        );
    }
    let to = to + chunks * num_top as usize;
    if num_likely > 0 {
        let to = to + chunk * num_likely as usize;
        keep(
            &likely, words, first, num_likely, entries, to, &mut sums, per_unit, planes,
        );
    }
    let to = to + chunks * num_likely as usize;
    if num_noisy > 0 {
        let low = plans[plan + STREAM];
        let high = plans[plan + STREAM + 1];
        #[unroll]
        for j in 0..per_unit {
            if likely[j] > OUT {
                let noise = gumbel(low, high, (first + j * UNITS) as u32);
                likely[j] = ordered(fma(unordered(likely[j]), inverse, noise));
            }
        }
        let to = to + chunk * num_noisy as usize;
        keep(
            &likely, words, first, num_noisy, entries, to, &mut sums, per_unit, planes,
        );
    }
}

/// How many of `len` ascending words from `from` on are below `token`.
#[cube]
fn lower_bound(words: &[u32], from: usize, len: usize, token: u32) -> usize {
    let mut low = 0usize;
    let mut high = len;
    while low < high {
        let middle = (low + high) / 2;
        if words[from + middle] < token {
            low = middle + 1;
        } else {
            high = middle;
        }
    }
    low
}

#[cube]
fn is_listed(words: &[u32], from: usize, len: usize, token: u32) -> bool {
    let at = lower_bound(words, from, len, token);
    let mut is_listed = false;
    if at < len {
        is_listed = words[from + at] == token;
    }
    is_listed
}

#[cube]
fn is_allowed(plans: &[u32], words: &[u32], plan: usize, token: usize) -> bool {
    let mask = plans[plan + MASK_AT];
    let mut is_allowed = true;
    if mask != NONE {
        is_allowed = false;
        if token / 32 < plans[plan + MASK_LEN] as usize {
            let word = words[mask as usize + token / 32];
            is_allowed = (word >> (token as u32 % 32)) & 1 == 1;
        }
    }
    is_allowed
}

#[cube(launch_unchecked)]
fn select_in_rows(
    logits: &[f32],
    plans: &[u32],
    stats: &[u32],
    entries: &[u32],
    answer: &mut [u32],
    v: usize,
    chunks: usize,
    #[comptime] per_unit: usize,
    #[comptime] planes: usize,
) {
    let row = CUBE_POS_X as usize;
    let plan = row * PLAN;
    let unit = UNIT_POS as usize;
    let mut sums = Shared::<[u32]>::new_slice(comptime!(2 * planes));
    let inverse = f32::reinterpret(plans[plan + INVERSE]);
    let header = plans[plan + ANSWER_AT] as usize;

    // The chunks' statistics, one a unit.
    let mut is_nan = 0u32;
    let mut largest = OUT.runtime();
    let mut likeliest = OUT.runtime();
    let mut sum = f32::new(0.0);
    let mut mass = f32::new(0.0);
    if unit < chunks {
        let at = (row * chunks + unit) * STATS;
        is_nan = stats[at];
        largest = stats[at + 1];
        sum = f32::reinterpret(stats[at + 2]);
        likeliest = stats[at + 3];
        mass = f32::reinterpret(stats[at + 4]);
    }
    let is_nan = cube_max(is_nan, &mut sums, planes);
    let row_largest = cube_max(largest, &mut sums, planes);
    let row_likeliest = cube_max(likeliest, &mut sums, planes);
    if largest < row_largest {
        sum *= (unordered(largest) - unordered(row_largest)).exp();
    }
    if likeliest < row_likeliest {
        mass *= ((unordered(likeliest) - unordered(row_likeliest)) * inverse).exp();
    }
    // A chunk without any has neither.
    sum = select(largest > OUT, sum, f32::new(0.0));
    mass = select(likeliest > OUT, mass, f32::new(0.0));
    let sum = cube_sum(sum, &mut sums, planes);
    let mass = cube_sum(mass, &mut sums, planes);
    if unit == 0 {
        let none = f32::new(f32::NEG_INFINITY);
        let max = select(row_largest > OUT, unordered(row_largest), none);
        let likely_max = select(row_likeliest > OUT, unordered(row_likeliest), none);
        answer[header] = is_nan;
        answer[header + 1] = u32::reinterpret(max);
        answer[header + 2] = u32::reinterpret(sum);
        answer[header + 3] = u32::reinterpret(likely_max);
        answer[header + 4] = u32::reinterpret(mass);
    }

    let mut from = plans[plan + ENTRIES_AT] as usize;
    let mut to = header + HEADER;
    for list in 0..3usize {
        let k = plans[plan + LISTS + list];
        if k == 0 {
            if unit == 0 {
                answer[header + 5 + list] = 0u32;
            }
        } else {
            let len = chunks * k as usize;
            let mut keys = Array::<u32>::new(per_unit);
            let first = from + unit;
            #[unroll]
            for j in 0..per_unit {
                keys[j] = OUT.runtime();
                if j * ROW_UNITS + unit < len {
                    keys[j] = entries[2 * (first + j * ROW_UNITS)];
                }
            }
            let (least, last) =
                last_of_best(&keys, entries, first, k, &mut sums, per_unit, planes, true);
            let mut count = 0u32;
            #[unroll]
            for j in 0..per_unit {
                if keys[j] > OUT && keys[j] >= least {
                    let is_taken = keys[j] > least || id_of(entries, first, j, true) <= last;
                    count += u32::cast_from(is_taken);
                }
            }
            let (place, total) = places(count, &mut sums, planes);
            let mut at = to + 2 * place as usize;
            #[unroll]
            for j in 0..per_unit {
                if keys[j] > OUT && keys[j] >= least {
                    let id = id_of(entries, first, j, true);
                    if keys[j] > least || id <= last {
                        answer[at] = id;
                        answer[at + 1] = u32::reinterpret(logits[row * v + id as usize]);
                        at += 2;
                    }
                }
            }
            if unit == 0 {
                answer[header + 5 + list] = total;
                if list == 2 {
                    answer[header + 8] = u32::reinterpret(unordered(least));
                }
            }
            from += len;
            to += 2 * k as usize;
        }
    }
}

#[cube(launch_unchecked)]
fn gather(logits: &[f32], picks: &[u32], answer: &mut [u32], to: usize, len: usize) {
    let i = ABSOLUTE_POS_X as usize;
    if i < len {
        answer[to + i] = u32::reinterpret(logits[picks[i] as usize]);
    }
}

/// Gumbel noise of a token: the host's `-ln(-ln(u))` of the same 64 bits, in f32, off by less than
/// [`super::decide::NOISE_ERROR`].
#[cube]
fn gumbel(stream_low: u32, stream_high: u32, token: u32) -> f32 {
    let (low, high) = mix(stream_low, stream_high, token);

    // `u` is the upper 52 bits and a half; `a` is it or its complement, whichever is below a half,
    // so that it has all of f32's digits.
    let is_upper = high >> 31 == 1;
    let high = select(is_upper, !high, high);
    let low = select(is_upper, !low, low);
    let low = (low & 0xffff_f000u32) | 0x800u32;
    let unit = f32::new(2.328_306_4e-10);
    let a = fma(f32::cast_from(low), unit, f32::cast_from(high)) * unit;
    // -ln(1 - a) = 2 atanh(a / (2 - a)), by its series: at most 1/3, so that the first term left
    // out is below f32's digits. Logarithms near one are where devices are weak.
    let s = a / (2.0 - a);
    let q = s * s;
    let mut series = fma(q, f32::new(1.0 / 15.0), f32::new(1.0 / 13.0));
    series = fma(q, series, f32::new(1.0 / 11.0));
    series = fma(q, series, f32::new(1.0 / 9.0));
    series = fma(q, series, f32::new(1.0 / 7.0));
    series = fma(q, series, f32::new(1.0 / 5.0));
    series = fma(q, series, f32::new(1.0 / 3.0));
    series = fma(q, series, f32::new(1.0));
    let upper = 2.0 * s * series;
    let lower = -a.ln();
    -select(is_upper, upper, lower).ln()
}
