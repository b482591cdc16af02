//! What drafts cost on paper: bytes that a step reads, for it is by these that tokens of few rows take
//! their time. The scheduler weighs it against how many drafts come true.
//!
//! ```text
//! plain step of n rows     dense weights + experts that n tokens choose
//! one more token each      experts that 2 n tokens choose, but not n
//! one pass                 the draft block's own weights and experts, and the head
//! ```
//!
//! A token's operations are bytes, too, as many as the device could have read meanwhile; without them
//! tokens of a full step would be free.

use scheduler::DraftCost;

use crate::footprint::Footprint;

/// Operations that a device does while it reads a byte. A processor with AMX or AVX-512 BF16 does
/// 2 TFLOP/s at 100 GB/s, a GPU with tensor cores 800 at 4 TB/s, both about: it matters only from which
/// number of rows on drafts stop to pay, and a factor of two there is what acceptance decides.
const CPU_BALANCE: f64 = 20.0;
const GPU_BALANCE: f64 = 200.0;

/// The draft block: what it reads in each pass.
#[derive(Clone, Copy, Debug)]
pub(crate) struct DraftBlock {
    /// All but routed experts, the head included.
    pub(crate) dense_bytes: u64,
    pub(crate) routed_bytes: u64,
}

/// Routed experts of a layer.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Routing {
    /// In all; 0 without experts.
    pub(crate) num_experts: usize,
    /// Of each token.
    pub(crate) num_chosen: usize,
}

/// Costs of steps of 1, 2, 4, .. rows up to `max_rows`.
pub(crate) fn draft_costs(
    footprint: &Footprint,
    block: DraftBlock,
    routing: Routing,
    is_cpu: bool,
    max_rows: u32,
) -> Vec<DraftCost> {
    let balance = if is_cpu { CPU_BALANCE } else { GPU_BALANCE };
    let token_flops = (footprint.flops_per_token + footprint.head_flops) as f64;
    let state = 2.0 * footprint.slot_bytes as f64;
    let step = |num_rows: f64, num_tokens: f64| {
        footprint.dense_bytes as f64
            + footprint.routed_bytes as f64 * routing.share(num_tokens)
            + num_rows * state
            + num_tokens * token_flops / balance
    };
    let pass = |num_rows: f64| {
        block.dense_bytes as f64
            + block.routed_bytes as f64 * routing.share(num_rows)
            + num_rows * footprint.head_flops as f64 / balance
    };
    let mut costs = Vec::new();
    let mut num_rows = 1;
    loop {
        let rows = f64::from(num_rows);
        let plain = step(rows, rows);
        let parts = |bytes: f64| (1024.0 * bytes / plain).ceil() as u32;
        costs.push(DraftCost {
            token: parts(step(rows, 2.0 * rows) - plain),
            pass: parts(pass(rows)),
        });
        if num_rows >= max_rows {
            return costs;
        }
        num_rows *= 2;
    }
}

impl Routing {
    /// Share of the experts that somebody among so many tokens chooses, if each chooses without regard
    /// to the others.
    fn share(self, num_tokens: f64) -> f64 {
        if self.num_experts == 0 {
            return 0.0;
        }
        let missed = 1.0 - self.num_chosen as f64 / self.num_experts as f64;
        1.0 - missed.powf(num_tokens)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DENSE: Footprint = Footprint {
        dense_bytes: 1_000_000,
        embedding_row_bytes: 0,
        routed_bytes: 0,
        num_experts: 0,
        num_moe_layers: 0,
        slot_bytes: 0,
        kv_bytes_per_token: 0,
        flops_per_token: 900_000,
        head_flops: 100_000,
        attention_flops: 0,
    };
    const BLOCK: DraftBlock = DraftBlock {
        dense_bytes: 100_000,
        routed_bytes: 0,
    };
    const NONE: Routing = Routing {
        num_experts: 0,
        num_chosen: 0,
    };

    #[test]
    fn a_token_is_cheap_beside_weights_and_dear_in_a_full_step() {
        // A million operations are 50,000 bytes on a processor.
        let costs = draft_costs(&DENSE, BLOCK, NONE, true, 64);
        assert_eq!(costs.len(), 7);
        assert_eq!(costs[0].token, (1024.0 * 0.05 / 1.05_f64).ceil() as u32);
        assert_eq!(costs[0].pass, (1024.0 * 0.105 / 1.05_f64).ceil() as u32);
        assert!(costs.is_sorted_by(|few, many| few.token < many.token));
        assert!(costs[6].token > 700, "{costs:?}");
        let gpu = draft_costs(&DENSE, BLOCK, NONE, false, 64);
        assert!(gpu[6].token < costs[6].token);
    }

    #[test]
    fn other_experts_are_what_a_token_costs() {
        let sparse = Footprint {
            routed_bytes: 20_000_000,
            ..DENSE
        };
        let routing = Routing {
            num_experts: 100,
            num_chosen: 5,
        };
        let costs = draft_costs(&sparse, BLOCK, routing, false, 128);
        // One token reads a million bytes of experts, two nearly two.
        assert!((460..500).contains(&costs[0].token), "{costs:?}");
        // Of 128 rows somebody chooses each.
        assert!(costs[7].token < 100, "{costs:?}");
    }
}
