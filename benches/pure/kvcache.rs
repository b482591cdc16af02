//! What it costs to find and take over a cached prefix of 64k tokens.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use kvcache::{CacheConfig, HashChain, KvCacheManager, Reservation, SnapshotKind, Start};

const NUM_TOKENS: usize = 65_536;
const BLOCK_SIZE: u32 = 16;

fn reservation<'a>(chain: &'a mut HashChain, tokens: &'a [u32]) -> Reservation<'a> {
    Reservation {
        chain,
        tokens,
        max_hit: tokens.len() - 1,
        num_spare_blocks: 0,
    }
}

fn prefix(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("a prefix of 65536 tokens");
    let tokens: Vec<u32> = (0..NUM_TOKENS as u32 + 20).collect();
    group.bench_function("hash", |bencher| {
        bencher.iter(|| HashChain::new("".into(), BLOCK_SIZE).at(black_box(&tokens), NUM_TOKENS));
    });

    let num_blocks = 3 * (NUM_TOKENS as u32 / BLOCK_SIZE);
    let mut cache = KvCacheManager::new(CacheConfig {
        block_size: BLOCK_SIZE,
        num_blocks,
        num_slots: 64,
        num_host_slots: 0,
        num_host_blocks: 0,
        blocks_per_slot: 1,
    });
    // A conversation: every turn goes on from the one before. The last one ends in a started block.
    for len in (0..32).rev().map(|turn| NUM_TOKENS - 7 - turn * 1000) {
        let mut chain = HashChain::new("".into(), BLOCK_SIZE);
        let found = cache.reserve(reservation(&mut chain, &tokens[..len]));
        let Start { lease, .. } = found.expect("there is room");
        cache.retire(lease, &mut chain, &tokens[..len], SnapshotKind::Finish);
    }
    group.bench_function("hit, reserve and release", |bencher| {
        bencher.iter(|| {
            let mut chain = HashChain::new("".into(), BLOCK_SIZE);
            let found = cache.reserve(reservation(&mut chain, &tokens));
            let Start { lease, num_hit, .. } = found.expect("there is room");
            assert_eq!(num_hit as usize, NUM_TOKENS - 7);
            cache.release(lease);
            cache.take_ops()
        });
    });
    let mut other = tokens.clone();
    other[0] = u32::MAX;
    group.bench_function("miss, reserve and release", |bencher| {
        bencher.iter(|| {
            let mut chain = HashChain::new("".into(), BLOCK_SIZE);
            let found = cache.reserve(reservation(&mut chain, &other));
            let Start { lease, num_hit, .. } = found.expect("there is room");
            assert_eq!(num_hit, 0);
            cache.release(lease);
            cache.take_ops()
        });
    });
}

criterion_group!(benches, prefix);
criterion_main!(benches);
