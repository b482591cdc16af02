//! What the prefix cache holds, for operators who ask why a hit was short. Lengths, counts and ages: no
//! text, no token, no salt.

use scheduler::{Held, SnapshotKind, Tier};
use schemars::JsonSchema;
use serde::Serialize;
use serde_json::json;

use crate::api::models;
use crate::error::ApiError;
use crate::health::NotReady;
use crate::state::{RequestContext, Response};

/// Snapshots listed unless `limit` says otherwise.
const USUAL_LIMIT: usize = 100;
/// Snapshots listed at most.
const MAX_LIMIT: usize = 1000;

/// What the prefix cache holds.
#[derive(Debug, Serialize, JsonSchema)]
pub struct CacheReport {
    /// KV blocks on the device.
    pub blocks: DeviceCounts,
    /// Mamba state slots on the device.
    pub slots: DeviceCounts,
    /// KV blocks in the host's memory.
    pub host_blocks: HostCounts,
    /// Mamba state slots in the host's memory.
    pub host_slots: HostCounts,
    /// How many there are.
    pub num_snapshots: u64,
    /// Those that would go first come first, at most `limit`.
    pub snapshots: Vec<SnapshotReport>,
}

/// A pool on the device.
#[derive(Debug, Serialize, JsonSchema)]
pub struct DeviceCounts {
    /// By live sequences.
    pub used: u64,
    /// For reuse only.
    pub cached: u64,
    /// In all.
    pub total: u64,
}

/// A pool in the host's memory.
#[derive(Debug, Serialize, JsonSchema)]
pub struct HostCounts {
    /// For reuse.
    pub cached: u64,
    /// In all.
    pub total: u64,
}

/// A state from which others may go on.
#[derive(Debug, Serialize, JsonSchema)]
pub struct SnapshotReport {
    /// Prompt and output tokens behind it.
    pub tokens: u64,
    /// Why it was made.
    pub class: SnapshotClass,
    /// Where it is.
    pub tier: SnapshotTier,
    /// Blocks of its tokens.
    pub blocks: u64,
    /// Of these, blocks that no other snapshot holds.
    pub own_blocks: u64,
    /// How many uses of the cache ago it was of use.
    pub age: u64,
    /// How often somebody went on from it.
    pub hits: u64,
    /// What it is worth; the lowest goes first.
    pub score: f64,
}

/// Why a state was saved.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotClass {
    /// A message begins there.
    Boundary,
    /// The answer begins there.
    Opening,
    /// A prompt ends there.
    PromptEnd,
    /// Its conversation stopped there.
    Finish,
    /// Others have parted there before.
    Branch,
    /// It is far from all others.
    Interval,
    /// It was preempted there.
    Yielded,
}

/// Where a state lies.
#[derive(Debug, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum SnapshotTier {
    /// The device.
    Device,
    /// The host's memory.
    Host,
}

impl From<&Held> for SnapshotReport {
    fn from(held: &Held) -> Self {
        Self {
            tokens: held.len.into(),
            class: match held.kind {
                SnapshotKind::Boundary => SnapshotClass::Boundary,
                SnapshotKind::Opening => SnapshotClass::Opening,
                SnapshotKind::PromptEnd => SnapshotClass::PromptEnd,
                SnapshotKind::Finish => SnapshotClass::Finish,
                SnapshotKind::Branch => SnapshotClass::Branch,
                SnapshotKind::Interval => SnapshotClass::Interval,
                SnapshotKind::Yielded => SnapshotClass::Yielded,
            },
            tier: match held.tier {
                Tier::Device => SnapshotTier::Device,
                Tier::Host => SnapshotTier::Host,
            },
            blocks: held.num_blocks.into(),
            own_blocks: held.num_own_blocks.into(),
            age: held.age,
            hits: held.num_hits.into(),
            score: held.score,
        }
    }
}

/// `GET /debug/cache?limit=N`
pub(crate) async fn cache(ctx: &RequestContext) -> Result<Response, ApiError> {
    let limit = limit(ctx.query.as_deref().unwrap_or_default())?;
    let engine = &ctx.state.engine;
    let Some(mut held) = engine.held().await else {
        return Err(NotReady::of(&ctx.state).unwrap_or(NotReady::Failed).into());
    };
    held.sort_by(|a, b| a.score.total_cmp(&b.score));
    let stats = engine.stats().scheduler;
    let device = |used: u32, cached: u32, total: u32| DeviceCounts {
        used: used.into(),
        cached: cached.into(),
        total: total.into(),
    };
    let host = |cached: u32, total: u32| HostCounts {
        cached: cached.into(),
        total: total.into(),
    };
    let report = CacheReport {
        blocks: device(
            stats.num_blocks_used,
            stats.num_blocks_cached,
            stats.num_blocks,
        ),
        slots: device(
            stats.num_slots_used,
            stats.num_slots_cached,
            stats.num_slots,
        ),
        host_blocks: host(stats.num_host_blocks_cached, stats.num_host_blocks),
        host_slots: host(stats.num_host_slots_cached, stats.num_host_slots),
        num_snapshots: held.len() as u64,
        snapshots: held.iter().take(limit).map(Into::into).collect(),
    };
    Ok(models::json(&json!(report)))
}

fn limit(query: &str) -> Result<usize, ApiError> {
    let given = query
        .split('&')
        .find_map(|pair| pair.strip_prefix("limit="));
    let Some(text) = given else {
        return Ok(USUAL_LIMIT);
    };
    match text.parse() {
        Ok(limit @ 1..=MAX_LIMIT) => Ok(limit),
        _ => Err(ApiError::invalid_value(
            "limit",
            format!("must be a whole number from 1 to {MAX_LIMIT}"),
        )),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lists_are_bounded() {
        for (query, expect) in [
            ("", Some(100)),
            ("limit=7", Some(7)),
            ("x=1&limit=1000", Some(1000)),
            ("limit=0", None),
            ("limit=1001", None),
            ("limit=-1", None),
            ("limit=", None),
        ] {
            assert_eq!(limit(query).ok(), expect, "{query}");
        }
    }
}
