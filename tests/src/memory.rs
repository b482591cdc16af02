//! How little memory an engine can be given.

use engine::{Engine, EngineConfig};

/// The least cache memory that a configuration opens with, to 64 bytes; found by asking for less.
pub fn smallest_cache(config: &EngineConfig) -> u64 {
    let opens = |bytes: u64| {
        let mut config = config.clone();
        config.cache_memory_bytes = Some(bytes);
        Engine::open(config).is_ok()
    };
    let (mut low, mut high) = (0, 64 << 20);
    assert!(opens(high));
    while high - low > 64 {
        let middle = u64::midpoint(low, high);
        if opens(middle) {
            high = middle;
        } else {
            low = middle;
        }
    }
    high
}

/// The same with memory for one context of the greatest length, to be shared by all who run, and for so
/// many state slots: running requests must yield to each other, and find their states again.
#[must_use]
pub fn one_context(config: EngineConfig, num_slots: u64) -> EngineConfig {
    let config = EngineConfig {
        // Slots take all but the blocks of one context.
        slot_share: 1.0,
        cache_memory_bytes: Some(64 << 20),
        ..config
    };
    let opened = Engine::open(config.clone()).expect("that is plenty");
    let info = opened.info();
    let num_blocks = info.max_model_len.div_ceil(config.block_size);
    // Slot and block 0 are padding.
    let bytes = (num_slots + 1) * info.slot_bytes + (u64::from(num_blocks) + 1) * info.block_bytes;
    EngineConfig {
        cache_memory_bytes: Some(bytes),
        ..config
    }
}
