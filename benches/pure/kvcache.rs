//! What it costs to find and take over a cached prefix of 64k tokens.

use std::hint::black_box;

use criterion::{Criterion, criterion_group, criterion_main};
use kvcache::{CacheConfig, HashChain, KvCacheManager, Reservation, SnapshotKind, Start, Wish};

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

/// A full cache of 400 snapshots of 40 conversations, and one conversation of 256k tokens whose next turn
/// arrives: what a hit costs, and what a snapshot costs for which another has to go.
fn crowd(criterion: &mut Criterion) {
    const LONG: usize = 262_144;
    const NUM_TALKS: u32 = 40;
    const TURN: usize = 2000;
    let mut group = criterion.benchmark_group("400 snapshots, a prompt of 262144 tokens");
    let num_slots = 10 * NUM_TALKS + 12;
    let mut cache = KvCacheManager::new(CacheConfig {
        block_size: BLOCK_SIZE,
        num_blocks: 120_000,
        num_slots,
        num_host_slots: 0,
        num_host_blocks: 0,
    });
    let mut retire = |tokens: &[u32], len: usize| {
        let mut chain = HashChain::new("".into(), BLOCK_SIZE);
        let found = cache.reserve(reservation(&mut chain, &tokens[..=len]));
        let Start { lease, .. } = found.expect("there is room");
        cache.retire(lease, &mut chain, &tokens[..len], SnapshotKind::Finish);
        cache.take_ops();
    };
    for talk in 0..NUM_TALKS {
        let tokens: Vec<u32> = (0..20_001).map(|token| token ^ (talk + 1) << 20).collect();
        for turn in 1..=10 {
            retire(&tokens, turn * TURN);
        }
    }
    let tokens: Vec<u32> = (0..LONG as u32 + 20).collect();
    for turn in (0..10).rev() {
        retire(&tokens, LONG - 7 - turn * TURN);
    }
    assert_eq!(cache.states().num_free(), 1);
    let mut chain = HashChain::new("".into(), BLOCK_SIZE);
    let start = |cache: &mut KvCacheManager, chain: &mut HashChain| {
        let found = cache.reserve(reservation(chain, &tokens));
        let Start { lease, num_hit, .. } = found.expect("there is room");
        assert_eq!(num_hit as usize, LONG - 7);
        cache.take_ops();
        lease
    };
    group.bench_function("look up a hashed prompt", |bencher| {
        bencher.iter(|| cache.longest_hit(&mut chain, &tokens, LONG));
    });
    group.bench_function("hit, reserve and release", |bencher| {
        bencher.iter(|| {
            let lease = start(&mut cache, &mut chain);
            cache.release(lease);
        });
    });
    let mut lease = start(&mut cache, &mut chain);
    assert_eq!(cache.states().num_free(), 0);
    // Each of another length, long gone when its turn comes again.
    let mut len = LONG;
    group.bench_function(
        "begin and finish a save for which another goes",
        |bencher| {
            bencher.iter(|| {
                len = if len == LONG - 4096 { LONG } else { len - 1 };
                let wish = Wish {
                    len: len as u32,
                    shorter: 0,
                    kind: SnapshotKind::Boundary,
                    has_longer: false,
                    is_awaited: true,
                };
                let slot = cache.begin_save(&wish, &mut chain, &tokens[..len]);
                if let Some(slot) = slot {
                    cache.finish_save(slot, &mut lease, &mut chain, &tokens[..len], wish.kind);
                }
            });
        },
    );
    cache.release(lease);
}

/// Full caches of the size of a server's, of conversations of 512 tokens: one more ends. A snapshot goes
/// from the device to the host, for which another one goes there.
fn tiers(criterion: &mut Criterion) {
    const LEN: u32 = 512;
    const NUM_SLOTS: u32 = 401;
    let mut group = criterion.benchmark_group("400 snapshots on the device: a conversation ends");
    for num_host_slots in [0, 400, 10_000] {
        let num_blocks = |num_slots| num_slots * LEN / BLOCK_SIZE;
        let mut cache = KvCacheManager::new(CacheConfig {
            block_size: BLOCK_SIZE,
            num_blocks: num_blocks(NUM_SLOTS + 4),
            num_slots: NUM_SLOTS,
            num_host_slots,
            num_host_blocks: num_blocks(num_host_slots),
        });
        let mut talk = 0;
        let mut retire = || {
            talk += 1;
            let tokens: Vec<u32> = (0..LEN).map(|token| token ^ talk << 10).collect();
            let mut chain = HashChain::new("".into(), BLOCK_SIZE);
            let found = cache.reserve(reservation(&mut chain, &tokens));
            let Start { lease, .. } = found.expect("there is room");
            let len = LEN as usize - 1;
            cache.retire(lease, &mut chain, &tokens[..len], SnapshotKind::Finish);
            cache.take_ops()
        };
        for _ in 0..NUM_SLOTS + num_host_slots {
            retire();
        }
        let name = format!("{num_host_slots} on the host");
        group.bench_function(name, |bencher| bencher.iter(&mut retire));
        assert_eq!(cache.states().num_free(), 0);
        assert_eq!(cache.host_states().num_free(), 0);
    }
}

criterion_group!(benches, prefix, crowd, tiers);
criterion_main!(benches);
