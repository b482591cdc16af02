//! Pairs of a token and an expert, by expert, on the device, so that no step waits for the host.
//!
//! A plane for each expert goes through all ids twice: it counts the pairs of smaller experts, which
//! is where its own start, then places its own. No cube waits for another, and nothing is shared.
//! Ids past the last expert, and negative ones, which are large as u32, are nobody's here. Every
//! plane reads every id: 46 MB out of the second-level cache for 1024 tokens of Super, 3 MB for 64,
//! beside the gigabytes of weights that they meet.
//!
//! Lost: counting with atomics in one cube, a sum over experts and a scatter: the fewest reads, but
//! one multiprocessor does it all, and lavapipe loses the stores that follow an atomic in a loop.
#![allow(unsafe_code)]

use cubecl::prelude::*;

use super::skinny::MAX_TILE;
use crate::{Buffer, Client};

const PLANES: u32 = 4;

/// The pairs of a pass.
pub(super) struct Groups {
    /// Pairs, u32; those of an expert follow one another.
    pub(super) order: Buffer,
    /// Where each expert's pairs start in `order`, then their number: u32 `[e + 1]`.
    pub(super) offsets: Buffer,
    /// An expert, where its pairs start in `order` and how many they are, three u32 a tile. Where
    /// the tiles of an expert start follows from where its pairs do, so some have no pairs.
    pub(super) tiles: Buffer,
    /// Tiles, at most.
    pub(super) max_tiles: usize,
    /// Pairs of a tile, at most.
    pub(super) tile: usize,
}

impl Groups {
    /// `ids` are i32, an expert for each pair.
    pub(super) fn new(client: &Client, ids: &Buffer, experts: usize) -> Self {
        let num_pairs = ids.len();
        // Twice what an expert gets on average, so that few experts need a second tile.
        let tile = (2 * num_pairs)
            .div_ceil(experts)
            .next_power_of_two()
            .min(MAX_TILE);
        let max_tiles = num_pairs / tile + experts;
        let groups = Self {
            order: Buffer::empty::<u32>(client, num_pairs),
            offsets: Buffer::empty::<u32>(client, experts + 1),
            tiles: Buffer::empty::<u32>(client, max_tiles * 3),
            max_tiles,
            tile,
        };
        let lanes = client.properties().hardware.plane_size_max;
        // SAFETY: ids are only compared, and pairs and tiles are as many as the buffers hold.
        unsafe {
            group::launch_unchecked(
                client,
                CubeCount::Static((experts as u32).div_ceil(PLANES), 1, 1),
                CubeDim::new_2d(lanes, PLANES),
                ids.arg(),
                groups.order.arg(),
                groups.offsets.arg(),
                groups.tiles.arg(),
                num_pairs as u32,
                experts as u32,
                tile as u32,
                lanes,
            );
        }
        groups
    }
}

#[cube(launch_unchecked)]
fn group(
    ids: &[u32],
    order: &mut [u32],
    offsets: &mut [u32],
    tiles: &mut [u32],
    num_pairs: u32,
    experts: u32,
    #[comptime] tile: u32,
    #[comptime] lanes: u32,
) {
    let expert = CUBE_POS_X * PLANES + UNIT_POS_Y;
    let lane = UNIT_POS_X;
    if expert < experts {
        let steps = num_pairs.div_ceil(lanes);
        let mut smaller = 0u32;
        let mut own = 0u32;
        for step in 0..steps {
            let pair = step * lanes + lane;
            if pair < num_pairs {
                let id = ids[pair as usize];
                smaller += select(id < expert, 1u32, 0u32);
                own += select(id == expert, 1u32, 0u32);
            }
        }
        let start = plane_sum(smaller);
        let count = plane_sum(own);
        if lane == 0 {
            offsets[expert as usize] = start;
            if expert == experts - 1 {
                // Pairs of experts elsewhere are in nobody's range.
                offsets[experts as usize] = start + count;
            }
        }

        let mut place = start;
        for step in 0..steps {
            let pair = step * lanes + lane;
            let mut is_own = 0u32;
            if pair < num_pairs {
                let id = ids[pair as usize];
                is_own = select(id == expert, 1u32, 0u32);
            }
            let before = plane_exclusive_sum(is_own);
            if is_own == 1 {
                order[(place + before) as usize] = pair;
            }
            place += plane_sum(is_own);
        }

        // floor((start + count) / tile) - floor(start / tile) + 1 tiles hold any `count`.
        let first = start / tile + expert;
        let mut end = (start + count) / tile + expert + 1;
        if expert == experts - 1 {
            // What pairs of experts elsewhere leave over.
            end = num_pairs / tile + experts;
        }
        let mut at = first + lane;
        while at < end {
            let done = (at - first) * tile;
            let mut left = 0u32;
            if done < count {
                left = u32::min(count - done, tile);
            }
            tiles[(at * 3) as usize] = expert;
            tiles[(at * 3 + 1) as usize] = start + done;
            tiles[(at * 3 + 2) as usize] = left;
            at += lanes;
        }
    }
}

#[cfg(test)]
mod tests {
    use cubecl::Device;

    use super::*;

    /// Ids in any order, idle experts first, last and between, ids of experts elsewhere with nobody.
    #[test]
    fn pairs_are_sorted_and_offsets_say_where() {
        let devices = Device::enumerate_all().into_iter();
        let client = devices
            .filter(|device| matches!(device, Device::Wgpu(_)))
            .map(|device| device.client())
            // OpenGL cannot say how wide its planes are.
            .find(|client| {
                let hardware = &client.properties().hardware;
                hardware.plane_size_min == hardware.plane_size_max
            });
        let Some(client) = client else {
            eprintln!("SKIPPED: no Vulkan device");
            return;
        };
        let experts = 11;
        let ids: Vec<i32> = (0..77)
            .map(|pair| [3, 9, 1, 14, 3, 7, -1][pair % 7])
            .collect();
        let groups = Groups::new(&client, &Buffer::upload(&client, &ids), experts);
        let of = |pair: &u32| ids[*pair as usize] as u32;
        let mut expected: Vec<u32> = (0..77).filter(|pair| of(pair) < experts as u32).collect();
        expected.sort_by_key(of);
        let order: Vec<u32> = groups.order.read(&client);
        assert_eq!(order[..expected.len()], expected);
        let before = |expert: u32| expected.iter().filter(|pair| of(pair) < expert).count() as u32;
        let offsets: Vec<u32> = groups.offsets.read(&client);
        assert_eq!(offsets, (0..=11).map(before).collect::<Vec<_>>());
    }
}
