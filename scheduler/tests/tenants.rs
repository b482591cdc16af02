//! What one tenant's flood does to others, in steps: with requests told apart by tenant, and as if they
//! were all of one, which is first come, first served.

use std::collections::BTreeMap;
use std::sync::Arc;

use scheduler::{
    CacheConfig, Request, RequestId, RowOutput, RowResult, SamplingParams, Scheduler,
    SchedulerConfig, SchedulerOutput, StepResult, TenantId,
};

const FLOOD: u32 = 9;
/// How many tenants send what they are used to.
const NUM_USUAL: u32 = 4;
const NUM_STEPS: u64 = 4000;

/// A machine of which the usual load takes a third.
fn machine() -> Scheduler {
    let config = SchedulerConfig {
        max_num_batched_tokens: 512,
        max_num_seqs: 16,
        max_queue: 100_000,
        max_model_len: 4096,
        ..SchedulerConfig::default()
    };
    let cache = CacheConfig {
        block_size: 16,
        num_blocks: 2500,
        num_slots: 40,
        num_host_slots: 0,
        num_host_blocks: 0,
    };
    Scheduler::new(config, cache)
}

/// A request that comes in a step.
#[derive(Clone, Copy)]
struct Arrival {
    step: u64,
    tenant: u32,
    num_prompt: u32,
    max_tokens: u32,
    priority: i8,
}

/// Every usual tenant sends a prompt of four steps, and of some tokens more, every fifty steps or so.
fn usual() -> Vec<Arrival> {
    let of_tenant = |tenant: u32| {
        (0..NUM_STEPS / 50).map(move |nth| Arrival {
            step: nth * 50 + u64::from(tenant) * 13 + nth * 7 % 11,
            tenant,
            num_prompt: 1600 + 40 * (nth % 5) as u32,
            max_tokens: 20,
            priority: 0,
        })
    };
    (0..NUM_USUAL).flat_map(of_tenant).collect()
}

/// Ten times the requests of one of them, each of them longer.
fn flood() -> impl Iterator<Item = Arrival> {
    (0..NUM_STEPS / 5).map(|nth| Arrival {
        step: nth * 5,
        tenant: FLOOD,
        num_prompt: 1900,
        max_tokens: 200,
        priority: 0,
    })
}

fn answer(plan: &SchedulerOutput) -> StepResult {
    let rows = plan.rows.iter().map(|row| RowResult {
        sequence: row.sequence,
        outcome: Ok(RowOutput {
            tokens: row.sample.iter().map(|_| 1).collect(),
            ..RowOutput::default()
        }),
    });
    StepResult {
        step: plan.step,
        rows: rows.collect(),
    }
}

/// Lets requests come and returns how many steps each of the usual ones waited for its first token, and
/// how many tokens of each tenant were generated.
fn serve(
    mut arrivals: Vec<Arrival>,
    tenant_of: impl Fn(u32) -> (TenantId, u16),
) -> (Vec<u64>, BTreeMap<u32, u64>) {
    arrivals.sort_by_key(|arrival| arrival.step);
    let mut scheduler = machine();
    let mut next = 0;
    let mut firsts = vec![None; arrivals.len()];
    let mut num_tokens = BTreeMap::new();
    for step in 0..NUM_STEPS + 200 {
        while next < arrivals.len() && arrivals[next].step <= step {
            let Arrival {
                tenant,
                num_prompt,
                max_tokens,
                priority,
                ..
            } = arrivals[next];
            let (id, tenant_weight) = tenant_of(tenant);
            let request = Request {
                id: RequestId(next as u64),
                // Nobody's prompt begins like another's.
                prompt: (0..num_prompt).map(|at| at ^ (next as u32) << 13).collect(),
                sampling: Arc::new(SamplingParams {
                    max_tokens,
                    ..SamplingParams::default()
                }),
                num_choices: 1,
                cache_salt: "".into(),
                boundaries: Arc::default(),
                priority,
                tenant: id,
                tenant_weight,
            };
            scheduler.add(request).expect("the queue is long enough");
            next += 1;
        }
        let Some(plan) = scheduler.schedule() else {
            continue;
        };
        if step % 64 == 0 {
            scheduler.check_invariants();
        }
        for news in scheduler.update(answer(&plan)) {
            let index = news.request.0 as usize;
            firsts[index].get_or_insert(step - arrivals[index].step + 1);
            *num_tokens.entry(arrivals[index].tenant).or_default() += news.tokens.len() as u64;
        }
    }
    let usual = arrivals.iter().zip(&firsts);
    let usual = usual.filter(|(arrival, _)| arrival.tenant != FLOOD);
    // Who has not been served yet has waited until now at least.
    let waits = usual.map(|(arrival, first)| first.unwrap_or(NUM_STEPS + 200 - arrival.step));
    (waits.collect(), num_tokens)
}

fn p99(waits: &[u64]) -> u64 {
    let mut waits = waits.to_vec();
    waits.sort_unstable();
    waits[waits.len() * 99 / 100]
}

fn apart(tenant: u32) -> (TenantId, u16) {
    (TenantId(tenant), 1)
}

fn all_alike(_: u32) -> (TenantId, u16) {
    (TenantId::default(), 1)
}

#[test]
fn a_flood_by_one_tenant_hardly_delays_the_others() {
    let flooded: Vec<Arrival> = usual().into_iter().chain(flood()).collect();
    let (alone, _) = serve(usual(), apart);
    let (fair, of_tenants) = serve(flooded.clone(), apart);
    let (first_come, _) = serve(flooded, all_alike);
    let [alone, fair, first_come] = [alone, fair, first_come].map(|waits| p99(&waits));
    println!(
        "99 of 100 wait up to {alone} steps alone, {fair} beside a flood, {first_come} in line"
    );
    assert!(2 * fair <= 3 * alone, "{fair} steps, {alone} alone");
    assert!(
        first_come > 20 * alone,
        "{first_come} steps: no flood at all"
    );
    // What the others leave is the flood's.
    let usual: u64 = (0..NUM_USUAL).map(|tenant| of_tenants[&tenant]).sum();
    assert_eq!(usual, 4 * 20 * NUM_STEPS / 50);
    assert!(of_tenants[&FLOOD] > 2 * usual, "{of_tenants:?}");
}

#[test]
fn who_always_wants_more_gets_its_share() {
    // Two floods, one of twice the weight.
    let second = flood().map(|arrival| Arrival {
        tenant: FLOOD - 1,
        ..arrival
    });
    let both = flood().chain(second).collect();
    let weighted = |tenant| (TenantId(tenant), if tenant == FLOOD { 2 } else { 1 });
    let (_, num_tokens) = serve(both, weighted);
    let (more, less) = (num_tokens[&FLOOD], num_tokens[&(FLOOD - 1)]);
    println!("{more} tokens for a weight of 2, {less} for 1");
    assert!(
        (17 * less..=23 * less).contains(&(10 * more)),
        "{more}, {less}"
    );
}

#[test]
fn a_slot_is_found_for_who_has_none() {
    // The flood has every slot, for long.
    let flood = (0..16).map(|_| Arrival {
        step: 0,
        tenant: FLOOD,
        num_prompt: 32,
        max_tokens: 1500,
        priority: 0,
    });
    let guest = Arrival {
        step: 100,
        tenant: 0,
        num_prompt: 500,
        max_tokens: 10,
        priority: 0,
    };
    let arrivals: Vec<Arrival> = flood.chain([guest]).collect();
    let (waits, num_tokens) = serve(arrivals.clone(), apart);
    assert_eq!(waits, [2]);
    // Nobody loses a token by it.
    assert_eq!(num_tokens, [(0, 10), (FLOOD, 16 * 1500)].into());
    let (waits, _) = serve(arrivals, all_alike);
    assert!(waits[0] > 1000, "{waits:?}");
}

#[test]
fn a_lower_priority_has_its_turn_beside_a_flood_of_a_higher_one() {
    let flood = flood().map(|arrival| Arrival {
        priority: 1,
        ..arrival
    });
    let lower = |step| Arrival {
        step,
        tenant: 0,
        num_prompt: 1900,
        max_tokens: 10,
        priority: 0,
    };
    let (waits, _) = serve(flood.chain([500, 1500, 2500].map(lower)).collect(), apart);
    println!("{waits:?} steps beside a flood of a higher priority");
    // So long it waits for its turn, then for a slot, of which one is free after 200 steps at most, and
    // for its prompt.
    let is_served = |wait: &u64| (256..256 + 200 + 16).contains(wait);
    assert!(waits.iter().all(is_served), "{waits:?}");
}

#[test]
#[should_panic(expected = "has a share")]
fn a_tenant_without_a_share() {
    let arrival = Arrival {
        step: 0,
        tenant: 0,
        num_prompt: 8,
        max_tokens: 1,
        priority: 0,
    };
    serve(vec![arrival], |tenant| (TenantId(tenant), 0));
}
