//! What a seed draws.

use std::sync::Arc;

use scheduler::{
    CacheConfig, DraftCost, Request, RequestId, SamplingParams, SchedulerConfig, Standing, TenantId,
};

use crate::reference::{Poison, expect};
use crate::rng::Rng;
use crate::toy_model::Guessing;

/// A machine, its clients and what they do.
#[derive(Debug)]
pub struct Scenario {
    /// Limits.
    pub config: SchedulerConfig,
    /// Memory.
    pub cache: CacheConfig,
    /// Token ids are below it.
    pub vocabulary: u32,
    /// Faults of the model.
    pub poison: Poison,
    /// Drafts of the model.
    pub guessing: Guessing,
    /// Arrivals by turn, in order.
    pub arrivals: Vec<(u32, Request)>,
    /// Endings by turn, in order.
    pub endings: Vec<(u32, Event)>,
}

/// Something a client does to a request that stands as described. It waits until there is one, and
/// happens then or never.
#[derive(Clone, Copy, Debug)]
pub struct Event {
    /// Where the request or choice must stand.
    pub standing: Standing,
    /// Ends one choice only.
    pub one_choice: bool,
    /// Which of the candidates.
    pub pick: u64,
}

impl Scenario {
    /// The scenario of `seed`.
    pub fn draw(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let cache = draw_cache(&mut rng);
        let config = draw_limits(&mut rng);
        let vocabulary = *rng.pick(&[2, 5, 50, 1000]);
        let poison = Poison {
            one_in: *rng.pick(&[0, 0, 500, 100]),
            shows_at_once: rng.one_in(2),
        };
        let mut scenario = Self {
            config,
            cache,
            vocabulary,
            poison,
            guessing: Guessing {
                percent: *rng.pick(&[0, 50, 90, 95, 100]),
                seed: rng.draw(),
            },
            arrivals: Vec::new(),
            endings: Vec::new(),
        };
        scenario.draw_arrivals(&mut rng);
        scenario.draw_endings(&mut rng);
        scenario
    }

    fn draw_arrivals(&mut self, rng: &mut Rng) {
        let num_requests = rng.range(1, 20);
        // All at once, or spread so that later ones find what earlier ones left.
        let max_gap = *rng.pick(&[0, 1, 4, 20]);
        let salts = ["", "", "a"];
        // One tenant, or some.
        let max_tenant = *rng.pick(&[0, 0, 1, 2, 3]);
        let weights: [u16; 4] = std::array::from_fn(|_| *rng.pick(&[1, 1, 2, 5]));
        let bases: Vec<Vec<u32>> = (0..3).map(|_| self.draw_tokens(rng, 20)).collect();
        let mut turn = 0;
        let mut earlier: Vec<Request> = Vec::new();
        for id in 0..num_requests {
            turn += rng.range(0, max_gap);
            let prompt = self.draw_prompt(rng, &bases, &earlier);
            let boundaries = draw_boundaries(rng, prompt.len() as u32);
            // The first sends most of them.
            let tenant = rng.range(0, max_tenant).saturating_sub(rng.range(0, 1));
            let request = Request {
                id: RequestId(u64::from(id)),
                prompt: prompt.into(),
                sampling: Arc::new(self.draw_sampling(rng)),
                num_choices: if rng.one_in(3) { rng.range(2, 4) } else { 1 },
                cache_salt: (*rng.pick(&salts)).into(),
                boundaries: boundaries.into(),
                priority: *rng.pick(&[0, 0, 0, 1, -1, 3]),
                tenant: TenantId(tenant),
                tenant_weight: weights[tenant as usize],
            };
            earlier.push(request.clone());
            self.arrivals.push((turn, request));
        }
    }

    fn draw_tokens(&self, rng: &mut Rng, max: u32) -> Vec<u32> {
        (0..rng.range(1, max))
            .map(|_| rng.range(0, self.vocabulary - 1))
            .collect()
    }

    /// A fresh prompt, one that shares a prefix, the same again, or the next turn of a conversation.
    fn draw_prompt(&self, rng: &mut Rng, bases: &[Vec<u32>], earlier: &[Request]) -> Vec<u32> {
        let mut prompt = match rng.range(0, 3) {
            0 => Vec::new(),
            1 => rng.pick(bases).clone(),
            _ if earlier.is_empty() => Vec::new(),
            2 => return rng.pick(earlier).prompt.to_vec(),
            _ => {
                let previous = rng.pick(earlier);
                let max = self.config.max_model_len;
                let said = expect(previous, 0, max, self.vocabulary, self.poison).tokens;
                previous.prompt.iter().copied().chain(said).collect()
            }
        };
        prompt.extend(self.draw_tokens(rng, 8));
        prompt
    }

    fn draw_sampling(&self, rng: &mut Rng) -> SamplingParams {
        SamplingParams {
            max_tokens: match rng.range(0, 9) {
                0 => 0,
                1 => u32::MAX,
                _ => rng.range(1, 32),
            },
            frequency_penalty: if rng.one_in(5) { 0.5 } else { 0.0 },
            seed: rng.draw(),
            stop_token_ids: if rng.one_in(3) {
                self.draw_tokens(rng, 3)
            } else {
                Vec::new()
            },
            logprobs: rng.one_in(4).then_some(2),
            prompt_logprobs: rng.one_in(8).then_some(1),
            ..Default::default()
        }
    }

    fn draw_endings(&mut self, rng: &mut Rng) {
        // Few are ever preempted, so many wait for one.
        let standings = [
            Standing::Waiting,
            Standing::Preempted,
            Standing::Preempted,
            Standing::Preempted,
            Standing::Running,
            Standing::InFlight,
        ];
        let mut turn = 0;
        for _ in 0..rng.range(0, 6) {
            turn += rng.range(0, 10);
            let standing = *rng.pick(&standings);
            let event = Event {
                standing,
                one_choice: rng.one_in(3),
                pick: rng.draw(),
            };
            self.endings.push((turn, event));
        }
    }
}

/// Ascending positions within the prompt, or none.
fn draw_boundaries(rng: &mut Rng, num_prompt: u32) -> Vec<u32> {
    let one_in = *rng.pick(&[1, 3, 8, 1000]);
    (0..num_prompt).filter(|_| rng.one_in(one_in)).collect()
}

fn draw_cache(rng: &mut Rng) -> CacheConfig {
    let block_size = *rng.pick(&[1, 2, 3, 4, 8, 16]);
    // Enough tokens for one to four sequences of a usual length, or for all.
    let num_tokens = *rng.pick(&[40, 50, 60, 90, 400]);
    CacheConfig {
        block_size,
        num_blocks: num_tokens / block_size + rng.range(2, 4),
        num_slots: *rng.pick(&[2, 3, 5, 8, 20]),
        num_host_slots: *rng.pick(&[0, 2, 10, 10, 10]),
        num_host_blocks: 2 * num_tokens / block_size + rng.range(0, 4),
    }
}

fn draw_limits(rng: &mut Rng) -> SchedulerConfig {
    let max_num_batched_tokens = *rng.pick(&[1, 2, 3, 8, 16, 64]);
    let grid = rng
        .one_in(3)
        .then(|| (*rng.pick(&[1, 2, 4, 8])).min(max_num_batched_tokens));
    let draft_costs = if rng.one_in(3) {
        let cost = |rng: &mut Rng| DraftCost {
            token: rng.range(0, 600),
            pass: rng.range(0, 200),
        };
        (0..rng.range(1, 4)).map(|_| cost(rng)).collect()
    } else {
        Vec::new()
    };
    SchedulerConfig {
        max_num_batched_tokens,
        max_num_seqs: *rng.pick(&[1, 2, 4, 6, 8]),
        max_queue: *rng.pick(&[1, 4, 100]),
        max_model_len: *rng.pick(&[8, 32, 48, 64]),
        // Where the cut decides about bits there are no drafts.
        max_drafts: match grid {
            None => *rng.pick(&[0, 1, 2, 3, 3, 5, 5, 7]),
            Some(_) => 0,
        },
        grid,
        draft_costs,
        max_slowdown: rng.one_in(4).then(|| rng.range(2, 5)),
        context_cost: rng.range(0, 40),
    }
}
