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
