//! Free memory to block and slot counts.
//!
//! A sequence pays in two currencies: one state slot, and blocks as it grows. A slot is worth
//! thousands of tokens of KV, so neither may starve the other. Slots of running sequences come first,
//! half of the budget at most; then the blocks of one context of the greatest length. What is left is
//! for what is cached, and cut so that slots have their share of the whole
//! ([`EngineConfig::slot_share`]): a prefix can be gone on from only where there is a state beside its
//! blocks. Host memory, if any is granted, holds nothing but snapshots.

mod host;

use scheduler::CacheConfig;

pub use self::host::available_memory;
use crate::config::EngineConfig;
use crate::error::EngineError;
use crate::model::{LayerKind, ModelConfig};

/// The longest context that can be asked for.
pub const MAX_MODEL_LEN: u32 = 1_048_576;

/// How the cache memory is cut.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MemoryPlan {
    pub(crate) cache: CacheConfig,
    /// Bytes of one block over all attention layers.
    pub(crate) block_bytes: u64,
    /// Bytes of one slot over all Mamba layers.
    pub(crate) slot_bytes: u64,
    pub(crate) max_model_len: u32,
    /// As asked for, or as many as have a slot.
    pub(crate) max_num_seqs: u32,
    /// Bytes that the largest step needs besides.
    pub(crate) workspace: u64,
    /// Bytes left to others.
    pub(crate) reserve: u64,
}

impl MemoryPlan {
    /// What every rank can carry out: they all get the same plans.
    pub(crate) fn smallest(&self, other: &Self) -> Self {
        Self {
            cache: CacheConfig {
                block_size: self.cache.block_size,
                num_blocks: self.cache.num_blocks.min(other.cache.num_blocks),
                num_slots: self.cache.num_slots.min(other.cache.num_slots),
                num_host_slots: self.cache.num_host_slots.min(other.cache.num_host_slots),
                num_host_blocks: self.cache.num_host_blocks.min(other.cache.num_host_blocks),
            },
            block_bytes: self.block_bytes.max(other.block_bytes),
            slot_bytes: self.slot_bytes.max(other.slot_bytes),
            max_model_len: self.max_model_len.min(other.max_model_len),
            max_num_seqs: self.max_num_seqs.min(other.max_num_seqs),
            workspace: self.workspace.max(other.workspace),
            reserve: self.reserve.min(other.reserve),
        }
    }
}

/// What the device has, and what of it is spoken for.
///
/// ```text
/// |-- weights --|-- workspace --|-- cache: blocks and slots --|-- reserve --|
/// 0                                                                     available
/// ```
#[derive(Clone, Copy, Debug)]
pub(crate) struct FreeMemory {
    /// Bytes that can be had: on a processor without swapping, page cache included.
    pub(crate) available: u64,
    /// Bytes of weights that will want to stay in memory.
    pub(crate) weights: u64,
    /// Bytes of the largest step's activations.
    pub(crate) workspace: u64,
    /// Bytes left to others: to the page cache and to other processes, or to the driver, its modules
    /// and graphs, and what pools waste.
    pub(crate) reserve: u64,
    /// Whether memory is a device's own, which never swaps: then the plan must add up.
    pub(crate) is_device: bool,
}

/// Of a device's memory, what is ours unless the operator says otherwise.
const DEVICE_FRACTION: f64 = 0.95;

impl FreeMemory {
    /// A processor's: half of what weights leave, unless a fraction of all is said.
    pub(crate) fn of_cpu(
        available: u64,
        fraction: Option<f64>,
        weights: u64,
        workspace: u64,
    ) -> Self {
        let rest = available.saturating_sub(weights);
        let half = (rest - rest / 2).saturating_sub(workspace);
        let reserve = fraction.map_or(half, |fraction| beyond(available, fraction));
        Self {
            available,
            weights,
            workspace,
            reserve,
            is_device: false,
        }
    }

    /// A device's, of which others may hold some already.
    pub(crate) fn of_device(
        (free, total): (u64, u64),
        fraction: Option<f64>,
        weights: u64,
        workspace: u64,
    ) -> Self {
        let reserve = beyond(total, fraction.unwrap_or(DEVICE_FRACTION));
        Self {
            available: free,
            weights,
            workspace,
            // What others hold was theirs before it is asked whose the rest is.
            reserve: reserve.saturating_sub(total.saturating_sub(free)),
            is_device: true,
        }
    }

    fn for_cache(&self) -> u64 {
        self.available
            .saturating_sub(self.weights)
            .saturating_sub(self.workspace)
            .saturating_sub(self.reserve)
    }
}

fn beyond(total: u64, fraction: f64) -> u64 {
    total.saturating_sub((total as f64 * fraction) as u64)
}

/// Activations of the largest step, in f32: what the widest mixer holds at once beside the residual
/// stream, and the logits of as many positions as are computed at once.
pub(crate) fn workspace(
    model: &ModelConfig,
    max_num_batched_tokens: u32,
    logits_at_once: usize,
) -> u64 {
    let mamba = model.mamba.as_ref().map_or(0, |mamba| {
        mamba.projected_size() + mamba.conv_dim() + 2 * mamba.inner_size()
    });
    let attention = model.attention.as_ref().map_or(0, |attention| {
        2 * (attention.num_heads + attention.num_kv_heads) * attention.head_dim
    });
    let moe = model.moe.as_ref().map_or(0, |moe| {
        let width = moe.latent_size.unwrap_or(model.hidden_size);
        moe.num_experts_per_token * (moe.expert_size + width)
            + moe.num_experts
            + moe.shared_size.unwrap_or(0)
    });
    let mlp = model.mlp_sizes.iter().copied().max().unwrap_or(0);
    let widest = mamba.max(attention).max(moe).max(mlp);
    let per_token = 4 * model.hidden_size as u64 + widest as u64;
    let logits = (logits_at_once * model.vocab_size) as u64;
    per_token
        .saturating_mul(max_num_batched_tokens.into())
        .saturating_add(logits)
        .saturating_mul(4)
}

/// Cuts the cache. `kv_bytes` is the width of one cached key or value element.
pub(crate) fn plan(
    config: &EngineConfig,
    model: &ModelConfig,
    kv_bytes: u64,
    free: FreeMemory,
) -> Result<MemoryPlan, EngineError> {
    let block_size = u64::from(config.block_size);
    let block_bytes = block_size * kv_bytes_per_token(model, kv_bytes);
    let slot_bytes = slot_bytes(model, config.max_drafts);
    let wished_len = u64::from(match config.max_model_len {
        Some(len) => len,
        None => MAX_MODEL_LEN.min(model.max_position_embeddings as u32),
    });
    let num_seqs = u64::from(config.max_num_seqs);
    // More is hardly of use: every sequence as long as possible, every one with its snapshots.
    let longest = wished_len.div_ceil(block_size);
    let most_blocks = (num_seqs * longest).min(u64::from(u32::MAX / 2));
    let most_slots = SLOTS_EACH * num_seqs;
    let useful = (most_blocks + 1)
        .saturating_mul(block_bytes)
        .saturating_add((most_slots + 1).saturating_mul(slot_bytes));
    let budget = match config.cache_memory_bytes {
        Some(bytes) => bytes,
        None => free.for_cache().min(useful),
    };

    // Slot and block 0 are padding.
    let live_slots = affordable(budget / 2, slot_bytes, num_seqs + 1);
    let left = |slots, blocks| budget.saturating_sub(slots * slot_bytes + blocks * block_bytes);
    let least_blocks = affordable(
        left(live_slots, 0),
        block_bytes,
        longest.min(most_blocks) + 1,
    );
    let for_slots = (budget as f64 * config.slot_share) as u64;
    let slots = affordable(
        for_slots.min(left(0, least_blocks)),
        slot_bytes,
        most_slots + 1,
    );
    let slots = slots.max(live_slots);
    let blocks = affordable(left(slots, 0), block_bytes, most_blocks + 1).max(least_blocks);
    // Where blocks are as many as can be of use, slots take the rest.
    let slots = slots + affordable(left(slots, blocks), slot_bytes, most_slots + 1 - slots);

    let least = 2 * slot_bytes + 2 * block_bytes;
    if live_slots < 2 || blocks < 2 {
        return Err(EngineError::Memory(format!(
            "{} of cache memory cannot hold one sequence: a state slot takes {}, a block of {} \
             tokens {}; {} is the least ({})",
            bytes(budget),
            bytes(slot_bytes),
            config.block_size,
            bytes(block_bytes),
            bytes((2 * least).max(4 * slot_bytes)),
            granted(config, free),
        )));
    }
    let taken = live_slots * slot_bytes + blocks * block_bytes;
    if free.is_device && free.weights + free.workspace + taken > free.available {
        return Err(EngineError::Memory(format!(
            "{} of cache memory do not fit the device: {} ({} for a step's workspace)",
            bytes(budget),
            granted(config, free),
            bytes(free.workspace),
        )));
    }
    let (host_slots, host_blocks) = host_plan(config, (slot_bytes, block_bytes), blocks)?;
    let capacity = (blocks - 1) * block_size;
    if config.max_model_len.is_some() && capacity < wished_len {
        return Err(EngineError::Memory(format!(
            "a context of {wished_len} tokens takes {} of KV blocks, {} are there for them ({})",
            bytes(wished_len.div_ceil(block_size).saturating_mul(block_bytes)),
            bytes(blocks * block_bytes),
            granted(config, free),
        )));
    }
    Ok(MemoryPlan {
        cache: CacheConfig {
            block_size: config.block_size,
            num_blocks: blocks as u32,
            num_slots: slots as u32,
            num_host_slots: host_slots,
            num_host_blocks: host_blocks,
        },
        block_bytes,
        slot_bytes,
        max_model_len: wished_len.min(capacity) as u32,
        max_num_seqs: config.max_num_seqs.min(slots as u32 - 1),
        workspace: free.workspace,
        reserve: free.reserve,
    })
}

/// Slots of a sequence at most: its own, and the snapshots of its turns.
const SLOTS_EACH: u64 = 16;

/// Of host memory, what slots have at least, and what blocks have.
const LEAST_HOST_SHARE: f64 = 0.1;

/// Slots and blocks of one rank in host memory, beside `num_blocks` on its device.
fn host_plan(
    config: &EngineConfig,
    (slot_bytes, block_bytes): (u64, u64),
    num_blocks: u64,
) -> Result<(u32, u32), EngineError> {
    let budget = config.host_cache_bytes / config.tensor_parallel_size as u64;
    if budget == 0 {
        return Ok((0, 0));
    }
    let share = match (slot_bytes, block_bytes) {
        (0, _) => 0.0,
        (_, 0) => 1.0,
        // A snapshot takes both. On a device those who run have theirs at any share; here nobody runs.
        _ => config
            .slot_share
            .clamp(LEAST_HOST_SHARE, 1.0 - LEAST_HOST_SHARE),
    };
    let for_slots = (budget as f64 * share) as u64;
    // What takes no memory is never short.
    let count = |budget, each, free| match each {
        0 => free,
        _ => affordable(budget, each, u64::from(u32::MAX / 2)),
    };
    let slots = count(for_slots, slot_bytes, num_blocks);
    let blocks = count(budget - for_slots, block_bytes, num_blocks);
    if slots == 0 || blocks == 0 {
        return Err(EngineError::Memory(format!(
            "{} of host cache memory cannot hold one snapshot: a state slot takes {} of {:.0} %, a block \
             of {} tokens {} of the rest",
            bytes(budget),
            bytes(slot_bytes),
            100.0 * share,
            config.block_size,
            bytes(block_bytes),
        )));
    }
    Ok((slots as u32, blocks as u32))
}

fn granted(config: &EngineConfig, free: FreeMemory) -> String {
    match config.cache_memory_bytes {
        Some(bytes_granted) if !free.is_device => {
            format!("{} were granted", bytes(bytes_granted))
        }
        _ => format!(
            "{} are available, weights take {}",
            bytes(free.available),
            bytes(free.weights)
        ),
    }
}

/// As many as fit, `most` at most; things of no size always fit.
fn affordable(budget: u64, each: u64, most: u64) -> u64 {
    budget
        .checked_div(each)
        .map_or(most, |count| count.min(most))
}

/// Keys and values of one token over all attention layers, the draft block's included.
fn kv_bytes_per_token(model: &ModelConfig, kv_bytes: u64) -> u64 {
    let Some(attention) = &model.attention else {
        return 0;
    };
    let draft = model.mtp_layers.iter().flatten();
    let draft = draft.filter(|layer| **layer == LayerKind::Attention);
    let layers = (model.num_layers(LayerKind::Attention) + draft.count()) as u64;
    2 * layers * (attention.num_kv_heads * attention.head_dim) as u64 * kv_bytes
}

/// A slot, in f32 but for what the model says of the SSM state: over the Mamba layers the SSM and
/// convolution state of one sequence and, with drafts, the inputs of as many tokens and one more; then
/// also one hidden vector.
pub(crate) fn slot_bytes(model: &ModelConfig, max_drafts: u32) -> u64 {
    let num_inputs = match max_drafts {
        0 => 0,
        _ => max_drafts as usize + 1,
    };
    let layers = model.num_layers(LayerKind::Mamba) as u64;
    let layer = model.mamba.as_ref().map_or(0, |mamba| {
        let ssm = mamba.inner_size() * mamba.state_size * mamba.state_dtype.num_bytes();
        let conv = mamba.conv_dim() * (mamba.conv_kernel - 1);
        let ring = num_inputs * (mamba.conv_dim() + mamba.num_heads);
        (ssm + 4 * (conv + ring)) as u64
    });
    let hidden = if max_drafts > 0 { model.hidden_size } else { 0 };
    layers * layer + 4 * hidden as u64
}

/// For people.
pub(crate) fn bytes(count: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut value = count as f64;
    let mut unit = 0;
    while value >= 1024.0 && unit + 1 < UNITS.len() {
        value /= 1024.0;
        unit += 1;
    }
    if unit == 0 {
        format!("{count} B")
    } else {
        format!("{value:.1} {}", UNITS[unit])
    }
}

/// Bytes of the host's memory that this process may still take.
pub(crate) fn available() -> u64 {
    // A machine that does not tell gets a small cache rather than a refusal.
    available_memory().unwrap_or(2 << 30)
}

#[cfg(test)]
mod tests {
    use std::path::{Path, PathBuf};

    use super::*;
    use crate::config::ModelSource;

    /// 4 KiB of KV per token at f32, and slots of 2 layers.
    fn model(pattern: &str) -> ModelConfig {
        let text = format!(
            r#"{{"model_type": "nemotron_h", "hybrid_override_pattern": "{pattern}",
                "hidden_size": 64, "vocab_size": 100, "max_position_embeddings": 10000,
                "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 128,
                "mamba_num_heads": 8, "mamba_head_dim": 64, "n_groups": 2, "ssm_state_size": 128,
                "intermediate_size": 32}}"#
        );
        ModelConfig::parse(&text, Path::new("config.json")).expect("a good configuration")
    }

    fn config(cache_memory_bytes: Option<u64>, max_model_len: Option<u32>) -> EngineConfig {
        EngineConfig {
            max_model_len,
            cache_memory_bytes,
            ..EngineConfig::new(ModelSource::Folder(PathBuf::new()))
        }
    }

    fn free(available: u64) -> FreeMemory {
        FreeMemory::of_cpu(available, None, 1 << 30, 0)
    }

    /// Nemotron 3 Super on a device of 141 GB of which the driver holds half a gigabyte: cache of one
    /// byte per element, 64 sequences at most, steps of 2,048 tokens.
    fn super_on_141_gb(weights: u64, fraction: Option<f64>) -> MemoryPlan {
        const TOTAL: u64 = 141_000_000_000;
        let model = ModelConfig::parse(crate::model::family::SUPER, Path::new("config.json"));
        let model = model.expect("a good configuration");
        let workspace = workspace(&model, 2048, 64);
        assert!(
            (500_000_000..1_200_000_000).contains(&workspace),
            "{workspace}"
        );
        let memory = (TOTAL - 500_000_000, TOTAL);
        let free = FreeMemory::of_device(memory, fraction, weights, workspace);
        let plan = plan(&config(None, None), &model, 1, free).expect("it fits");
        // 160 MiB of recurrent state and the convolution's inputs in f32; 4 KiB of KV a token.
        assert_eq!(plan.slot_bytes, (160 << 20) + 40 * 10_240 * 3 * 4);
        assert_eq!(plan.block_bytes, 32 * 4096);
        let sum = weights + plan.workspace + used(&plan) + plan.reserve;
        assert!(sum <= memory.0, "{sum}");
        plan
    }

    #[test]
    fn super_in_four_bits_has_room_for_all() {
        // 80.3 GB, of which 5.9 are the draft block, which is not loaded.
        let plan = super_on_141_gb(74_400_000_000, None);
        assert_eq!(plan.max_num_seqs, 64);
        assert_eq!(plan.max_model_len, 262_144);
        assert_eq!(plan.reserve, 6_550_000_000);
        assert!(used(&plan) > 30_000_000_000, "{plan:?}");
    }

    #[test]
    fn super_in_eight_bits_has_room_for_some() {
        let plan = super_on_141_gb(122_400_000_000, None);
        assert!((20..64).contains(&plan.max_num_seqs), "{plan:?}");
        assert_eq!(plan.max_model_len, 262_144);
        assert!(used(&plan) > 10_000_000_000, "{plan:?}");
        let more = super_on_141_gb(122_400_000_000, Some(0.98));
        assert!(more.max_num_seqs > plan.max_num_seqs);
    }

    #[test]
    fn what_does_not_fit_a_device_is_refused() {
        let model = model("M*M");
        let of = |free, weights| FreeMemory::of_device((free, 2 << 30), None, weights, 1 << 20);
        let nothing_left = plan(&config(None, None), &model, 4, of(1 << 30, 1 << 30));
        assert!(nothing_left.is_err());
        let granted = config(Some(512 << 20), None);
        assert!(plan(&granted, &model, 4, of(2 << 30, 1 << 30)).is_ok());
        let error = plan(&granted, &model, 4, of(2 << 30, (2 << 30) - (100 << 20)));
        let text = error.expect_err("too much").to_string();
        assert!(
            text.contains("512.0 MiB") && text.contains("workspace"),
            "{text}"
        );
    }

    fn used(plan: &MemoryPlan) -> u64 {
        u64::from(plan.cache.num_blocks) * plan.block_bytes
            + u64::from(plan.cache.num_slots) * plan.slot_bytes
    }

    #[test]
    fn sizes_are_those_of_the_layers() {
        let plan = plan(&config(Some(1 << 30), None), &model("M*M"), 4, free(0)).expect("it fits");
        assert_eq!(plan.block_bytes, 32 * 2 * 4 * 128 * 4);
        assert_eq!(plan.slot_bytes, 2 * 4 * (512 * 128 + (512 + 512) * 3));
    }

    #[test]
    fn drafts_take_a_ring_and_a_hidden_vector() {
        let (model, plain) = (model("M*M"), config(Some(1 << 30), None));
        let drafting = EngineConfig {
            max_drafts: 3,
            ..plain.clone()
        };
        let [plain, drafting] =
            [plain, drafting].map(|config| plan(&config, &model, 4, free(0)).expect("it fits"));
        let ring = 2 * 4 * 4 * (512 + 512 + 8);
        assert_eq!(drafting.slot_bytes, plain.slot_bytes + ring + 64 * 4);
        assert_eq!(drafting.block_bytes, plain.block_bytes);
        assert!(used(&drafting) <= 1 << 30);
    }

    #[test]
    fn the_budget_is_kept_and_nearly_used() {
        for mib in [8, 16, 100, 500] {
            let budget = mib << 20;
            let plan =
                plan(&config(Some(budget), None), &model("M*M"), 4, free(0)).expect("it fits");
            assert!(used(&plan) <= budget);
            assert!(
                used(&plan) + plan.slot_bytes + plan.block_bytes > budget,
                "{plan:?}"
            );
        }
    }

    #[test]
    fn neither_currency_starves_the_other() {
        let budget = 32 << 20;
        let plan = plan(&config(Some(budget), None), &model("M*M"), 4, free(0)).expect("it fits");
        let blocks = u64::from(plan.cache.num_blocks) * plan.block_bytes;
        assert!(blocks * 3 > budget, "{plan:?}");
        assert!(plan.max_num_seqs > 8, "{plan:?}");
        assert_eq!(
            plan.max_num_seqs,
            plan.cache.num_slots - 1,
            "fewer than asked for"
        );
    }

    #[test]
    fn plenty_of_memory_is_not_all_taken() {
        let plan = plan(&config(None, None), &model("M*M"), 4, free(1 << 50)).expect("it fits");
        assert_eq!(plan.max_model_len, 10_000);
        assert_eq!(plan.max_num_seqs, 64);
        assert_eq!(plan.cache.num_blocks, 64 * 313 + 1);
        assert_eq!(plan.cache.num_slots, 16 * 64 + 1);
    }

    #[test]
    fn snapshots_have_their_share() {
        let of = |slot_share, len| {
            let config = EngineConfig {
                slot_share,
                max_num_seqs: 16,
                ..config(Some(128 << 20), len)
            };
            plan(&config, &model("M*M"), 4, free(0)).expect("it fits")
        };
        let slots = |plan: &MemoryPlan| u64::from(plan.cache.num_slots) * plan.slot_bytes;
        let all = (128 << 20) as f64;
        for share in [0.2, 0.4, 0.6] {
            let plan = of(share, None);
            let got = slots(&plan) as f64 / all;
            assert!((got - share).abs() < 0.01, "{share}: {got}");
            assert!(used(&plan) as f64 > 0.99 * all);
            assert_eq!((plan.max_num_seqs, plan.max_model_len), (16, 10_000));
        }
        // Running sequences and one context of the greatest length come first.
        let least = of(0.0, None);
        assert_eq!(least.cache.num_slots, 17);
        let most = of(1.0, None);
        assert!((314..318).contains(&most.cache.num_blocks), "{most:?}");
        assert!(used(&most) > 120 << 20);
        // Blocks that would lie idle make way.
        let short = of(0.1, Some(320));
        assert_eq!(short.cache.num_blocks, 16 * 10 + 1);
        assert!(used(&short) as f64 > 0.99 * all, "{short:?}");
    }

    #[test]
    fn super_keeps_three_fifths_for_states() {
        let plan = super_on_141_gb(74_400_000_000, None);
        let slots = u64::from(plan.cache.num_slots) * plan.slot_bytes;
        assert!(
            (0.59..0.61).contains(&(slots as f64 / used(&plan) as f64)),
            "{plan:?}"
        );
        assert!(plan.cache.num_slots > 150, "{plan:?}");
    }

    #[test]
    fn half_of_what_weights_leave_is_taken() {
        let plan = plan(
            &config(None, None),
            &model("M*M"),
            4,
            free((1 << 30) + (200 << 20)),
        )
        .expect("it fits");
        assert!(used(&plan) <= 100 << 20);
        assert!(used(&plan) > 90 << 20);
    }

    #[test]
    fn layers_without_one_currency_do_not_run_out_of_it() {
        let dense = plan(&config(Some(1 << 20), None), &model("M-M"), 4, free(0));
        assert!(dense.is_err(), "a megabyte holds no two slots");
        let plan_m =
            plan(&config(Some(8 << 20), None), &model("M-M"), 4, free(0)).expect("it fits");
        assert_eq!((plan_m.block_bytes, plan_m.max_model_len), (0, 10_000));
        let plan_a =
            plan(&config(Some(8 << 20), None), &model("*-*"), 4, free(0)).expect("it fits");
        assert_eq!((plan_a.slot_bytes, plan_a.max_num_seqs), (0, 64));
    }

    #[test]
    fn a_context_that_does_not_fit_is_an_error_with_numbers() {
        let long = config(Some(64 << 20), Some(1_000_000));
        let error = plan(&long, &model("M*M"), 4, free(0)).expect_err("too long");
        let text = error.to_string();
        assert!(
            text.contains("1000000 tokens") && text.contains("3.8 GiB"),
            "{text}"
        );
        // Left to itself the length shrinks to what fits.
        let fits = plan(&config(Some(64 << 20), None), &model("M*M"), 4, free(0)).expect("it fits");
        assert!(fits.max_model_len < 10_000, "{fits:?}");
        // Half the element, twice the context.
        let half = plan(&config(Some(64 << 20), None), &model("M*M"), 2, free(0)).expect("it fits");
        assert!(half.max_model_len > fits.max_model_len);
    }

    #[test]
    fn the_largest_of_everything_overflows_nothing() {
        let text = format!(
            r#"{{"model_type": "nemotron_h", "hybrid_override_pattern": "{}",
                "hidden_size": 1048576, "vocab_size": 1048576,
                "max_position_embeddings": 4294967295,
                "num_attention_heads": 1048576, "num_key_value_heads": 1048576, "head_dim": 1,
                "mamba_num_heads": 1048576, "mamba_head_dim": 1, "n_groups": 1,
                "ssm_state_size": 1048576, "conv_kernel": 64}}"#,
            "M*".repeat(2048)
        );
        let model =
            ModelConfig::parse(&text, Path::new("config.json")).expect("within every bound");
        let mut config = config(None, None);
        config.max_num_seqs = 4096;
        config.block_size = 1024;
        for available in [0, 1 << 40, u64::MAX] {
            // Whatever comes of it, nothing wraps.
            if let Ok(plan) = plan(&config, &model, 4, free(available)) {
                assert!(plan.slot_bytes > 1 << 40);
            }
        }
    }

    fn with_host(host_cache_bytes: u64, num_ranks: usize) -> EngineConfig {
        EngineConfig {
            host_cache_bytes,
            tensor_parallel_size: num_ranks,
            ..config(Some(64 << 20), None)
        }
    }

    #[test]
    fn host_memory_holds_snapshots_within_its_budget() {
        let model = model("M*M");
        let none = plan(&with_host(0, 1), &model, 4, free(0)).expect("it fits");
        assert_eq!(
            (none.cache.num_host_slots, none.cache.num_host_blocks),
            (0, 0)
        );
        for num_ranks in [1, 2] {
            let budget = 100 << 20;
            let plan = plan(&with_host(budget, num_ranks), &model, 4, free(0)).expect("it fits");
            assert_eq!(plan.cache.num_slots, none.cache.num_slots, "a device's own");
            let slots = u64::from(plan.cache.num_host_slots) * plan.slot_bytes;
            let blocks = u64::from(plan.cache.num_host_blocks) * plan.block_bytes;
            let of_rank = budget / num_ranks as u64;
            assert!(slots + blocks <= of_rank);
            assert!(slots + blocks + plan.slot_bytes + plan.block_bytes > of_rank);
            assert!(slots > blocks && 2 * blocks > slots);
        }
    }

    #[test]
    fn host_memory_is_for_what_a_model_has() {
        let of = |pattern| {
            let plan = plan(&with_host(8 << 20, 1), &model(pattern), 4, free(0)).expect("it fits");
            (plan.cache.num_host_slots, plan.cache.num_host_blocks)
        };
        let (slots, blocks) = of("M-M");
        assert_eq!(slots, (8 << 20) / (2 * 4 * (512 * 128 + (512 + 512) * 3)));
        assert_eq!(
            blocks,
            64 * 313 + 1,
            "they are nothing: as many as on the device"
        );
        let (slots, blocks) = of("*-*");
        assert_eq!(blocks, (8 << 20) / (2 * 32 * 4096));
        assert!(slots >= blocks, "nor are these");
    }

    #[test]
    fn host_memory_is_for_both_at_any_share() {
        for (slot_share, share) in [(0.0, 0.1), (1.0, 0.9)] {
            let config = EngineConfig {
                slot_share,
                ..with_host(100 << 20, 1)
            };
            let plan = plan(&config, &model("M*M"), 4, free(0)).expect("it fits");
            let slots = u64::from(plan.cache.num_host_slots) * plan.slot_bytes;
            let got = slots as f64 / f64::from(100 << 20);
            assert!((got - share).abs() < 0.01, "{slot_share}: {got}");
            assert!(plan.cache.num_host_blocks > 0);
        }
    }

    #[test]
    fn too_little_host_memory_is_an_error_with_numbers() {
        let error = plan(&with_host(100 << 10, 1), &model("M*M"), 4, free(0));
        let text = error.expect_err("no slot fits").to_string();
        assert!(
            text.contains("100.0 KiB of host") && text.contains("536.0 KiB"),
            "{text}"
        );
    }

    #[test]
    fn what_the_error_calls_enough_is_enough() {
        let error = plan(&config(Some(0), None), &model("M*M"), 4, free(0)).expect_err("nothing");
        let EngineError::Memory(text) = error else {
            panic!("{error}");
        };
        assert!(text.contains("is the least"), "{text}");
        let slot = 2 * 4 * (512 * 128 + (512 + 512) * 3);
        let block = 32 * 2 * 4 * 128 * 4;
        let least = (2 * (2 * slot + 2 * block)).max(4 * slot);
        assert!(plan(&config(Some(least), None), &model("M*M"), 4, free(0)).is_ok());
    }

    #[test]
    fn bytes_are_for_people() {
        assert_eq!(bytes(1023), "1023 B");
        assert_eq!(bytes(3 << 29), "1.5 GiB");
    }
}
