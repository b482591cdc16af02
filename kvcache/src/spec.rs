//! What the caches are made of, and how many of each there are.

/// What one layer keeps between steps.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LayerCache {
    /// Nothing: MLP and MoE layers.
    None,
    /// Keys and values of every token, in pages.
    Attention {
        /// Keys and values of one token, in bytes.
        bytes_per_token: u64,
    },
    /// A state of fixed size.
    Mamba {
        /// SSM and convolution state of one sequence, in bytes.
        bytes: u64,
    },
}

/// Which layers page KV, which carry state, and what that costs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheSpec {
    /// Tokens per block.
    pub block_size: u32,
    /// One entry per layer.
    pub layers: Vec<LayerCache>,
}

impl CacheSpec {
    /// One block over all attention layers, in bytes.
    pub fn block_bytes(&self) -> u64 {
        let token: u64 = self
            .layers
            .iter()
            .map(|layer| layer.bytes_per_token())
            .sum();
        token * u64::from(self.block_size)
    }

    /// One slot over all Mamba layers, in bytes.
    pub fn slot_bytes(&self) -> u64 {
        self.layers
            .iter()
            .map(|layer| layer.bytes_per_sequence())
            .sum()
    }

    /// Everything that `config` asks for, padding included, in bytes.
    pub fn total_bytes(&self, config: &CacheConfig) -> u64 {
        self.block_bytes() * u64::from(config.num_blocks)
            + self.slot_bytes() * u64::from(config.num_slots)
    }
}

impl LayerCache {
    fn bytes_per_token(self) -> u64 {
        match self {
            Self::Attention { bytes_per_token } => bytes_per_token,
            Self::None | Self::Mamba { .. } => 0,
        }
    }

    fn bytes_per_sequence(self) -> u64 {
        match self {
            Self::Mamba { bytes } => bytes,
            Self::None | Self::Attention { .. } => 0,
        }
    }
}

/// How the cache is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CacheConfig {
    /// Tokens per block. Default 16.
    pub block_size: u32,
    /// Blocks, block 0 included; at least 2.
    pub num_blocks: u32,
    /// State slots, slot 0 included; at least 2. Slots beyond the live ones hold snapshots.
    pub num_slots: u32,
    /// Slots in host memory, where snapshots go that the device has no room for; 0 is no host memory.
    pub num_host_slots: u32,
    /// Blocks in host memory; 0 is no host memory.
    pub num_host_blocks: u32,
}

impl CacheConfig {
    /// Blocks that hold `num_tokens` tokens.
    pub fn blocks_for(&self, num_tokens: u32) -> u32 {
        num_tokens.div_ceil(self.block_size)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn costs_add_up_over_layers() {
        let spec = CacheSpec {
            block_size: 16,
            layers: vec![
                LayerCache::Mamba { bytes: 1000 },
                LayerCache::None,
                LayerCache::Attention { bytes_per_token: 8 },
                LayerCache::Attention { bytes_per_token: 4 },
                LayerCache::Mamba { bytes: 500 },
            ],
        };
        assert_eq!(spec.block_bytes(), 12 * 16);
        assert_eq!(spec.slot_bytes(), 1500);
        let config = CacheConfig {
            block_size: 16,
            num_blocks: 10,
            num_slots: 3,
            num_host_slots: 0,
            num_host_blocks: 0,
        };
        assert_eq!(spec.total_bytes(&config), 1920 + 4500);
    }

    #[test]
    fn a_started_block_is_a_whole_block() {
        let config = CacheConfig {
            block_size: 4,
            num_blocks: 10,
            num_slots: 3,
            num_host_slots: 0,
            num_host_blocks: 0,
        };
        let got: Vec<u32> = [0, 1, 4, 5, 8]
            .iter()
            .map(|&n| config.blocks_for(n))
            .collect();
        assert_eq!(got, [0, 1, 1, 2, 2]);
    }
}
