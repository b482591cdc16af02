//! What of a prompt is computed once: the rules that clients rely on.

use std::collections::BTreeMap;
use std::sync::Arc;

use scheduler::{
    ByMiss, CacheConfig, Request, RequestId, RowFault, RowOutput, RowResult, SamplingParams,
    Scheduler, SchedulerConfig, SchedulerOutput, StepResult, TenantId, Tier,
};

const BLOCK_SIZE: u32 = 16;

/// A scheduler, and what has become of its requests.
struct Server {
    scheduler: Scheduler,
    next_id: u64,
    /// Cached tokens of each request that was heard of.
    cached: BTreeMap<u64, u32>,
    num_computed: usize,
}

/// A wish for a prompt.
#[derive(Clone, Default)]
struct Prompt {
    tokens: Vec<u32>,
    boundaries: Vec<u32>,
}

impl Prompt {
    /// Goes on with a message of `len` tokens that is like no other.
    fn message(mut self, text: u32, len: u32) -> Self {
        self.boundaries.push(self.tokens.len() as u32);
        self.tokens.push(1);
        self.tokens.extend((1..len).map(|i| 1000 * text + i));
        self
    }

    fn len(&self) -> u32 {
        self.tokens.len() as u32
    }
}

impl Server {
    fn new(num_blocks: u32, num_slots: u32, budget: u32) -> Self {
        Self::with_host(num_blocks, num_slots, budget, (0, 0))
    }

    fn with_host(
        num_blocks: u32,
        num_slots: u32,
        budget: u32,
        (num_host_slots, num_host_blocks): (u32, u32),
    ) -> Self {
        let config = SchedulerConfig {
            max_num_batched_tokens: budget,
            max_model_len: 100_000,
            ..SchedulerConfig::default()
        };
        let cache = CacheConfig {
            block_size: BLOCK_SIZE,
            num_blocks: num_blocks + 1,
            num_slots: num_slots + 1,
            num_host_slots,
            num_host_blocks,
        };
        Self {
            scheduler: Scheduler::new(config, cache),
            next_id: 0,
            cached: BTreeMap::new(),
            num_computed: 0,
        }
    }

    fn add(&mut self, prompt: &Prompt, max_tokens: u32) -> u64 {
        self.add_salted(prompt, max_tokens, "")
    }

    fn add_salted(&mut self, prompt: &Prompt, max_tokens: u32, salt: &str) -> u64 {
        let id = self.next_id;
        self.next_id += 1;
        let request = Request {
            id: RequestId(id),
            prompt: prompt.tokens.clone().into(),
            sampling: Arc::new(SamplingParams {
                max_tokens,
                ..SamplingParams::default()
            }),
            num_choices: 1,
            cache_salt: salt.into(),
            boundaries: prompt.boundaries.clone().into(),
            priority: 0,
            tenant: TenantId::default(),
            tenant_weight: 1,
        };
        self.scheduler.add(request).expect("there is room");
        id
    }

    /// Runs until nobody is left; every answer is made of twos.
    fn run(&mut self) {
        while let Some(plan) = self.scheduler.schedule() {
            self.land(&plan, |_| false);
        }
    }

    fn step(&mut self) -> SchedulerOutput {
        let plan = self.scheduler.schedule().expect("there is work");
        self.land(&plan, |_| false);
        plan
    }

    fn land(&mut self, plan: &SchedulerOutput, is_faulty: impl Fn(usize) -> bool) {
        self.scheduler.check_invariants();
        let rows = plan.rows.iter().enumerate().map(|(index, row)| {
            self.num_computed += row.input_ids.len();
            let output = RowOutput {
                tokens: row.sample.iter().map(|_| 2).collect(),
                ..RowOutput::default()
            };
            RowResult {
                sequence: row.sequence,
                outcome: if is_faulty(index) {
                    Err(RowFault::BadLogits)
                } else {
                    Ok(output)
                },
            }
        });
        let result = StepResult {
            step: plan.step,
            rows: rows.collect(),
        };
        for news in self.scheduler.update(result) {
            self.cached.insert(news.request.0, news.num_cached_tokens);
        }
        self.scheduler.check_invariants();
    }

    /// Cached tokens of one request that has nobody beside it.
    fn ask(&mut self, prompt: &Prompt) -> u32 {
        let id = self.add(prompt, 4);
        self.run();
        self.cached[&id]
    }
}

fn floor(len: u32) -> u32 {
    len - len % BLOCK_SIZE
}

#[test]
fn a_shared_prefix_that_ends_at_a_message_hits_on_the_second_sighting() {
    for len in (64..400).chain([1000, 5000, 8192]) {
        for budget in [100, 2048] {
            let mut server = Server::new(2000, 40, budget);
            let shared = Prompt::default().message(3, len);
            let first = shared.clone().message(4, 90).message(5, 7);
            let second = shared.message(6, 30).message(7, 7);
            assert_eq!(server.ask(&first), 0);
            let cached = server.ask(&second);
            assert!(cached >= floor(len), "{cached} of {len}, budget {budget}");
            assert!(cached <= len);
        }
    }
}

#[test]
fn messages_may_be_short() {
    let mut server = Server::new(2000, 100, 2048);
    let start = Prompt::default().message(3, 70);
    let talk = (0..12).fold(start, |talk, turn| talk.message(10 + turn, 5 + turn % 7));
    server.ask(&talk);
    for &boundary in &talk.boundaries[1..] {
        let other = Prompt {
            tokens: talk.tokens[..boundary as usize].to_vec(),
            boundaries: Vec::new(),
        };
        let cached = server.ask(&other.message(60 + boundary, 9));
        assert!(cached >= floor(boundary), "{cached} of {boundary}");
    }
}

#[test]
fn the_next_turn_hits_at_the_last_message_at_least() {
    // What the client sends back of the answer is not what was said: its thoughts are left out.
    let mut server = Server::new(4000, 100, 512);
    let mut history = Prompt::default().message(3, 300);
    for turn in 0..20 {
        let asked = history.clone().message(100 + turn, 40).message(5, 6);
        let cached = server.ask(&asked);
        if turn > 0 {
            let last_message = history.len() - 50;
            assert!(cached >= floor(last_message), "turn {turn}: {cached}");
        }
        history = history.message(100 + turn, 40).message(200 + turn, 50);
    }
    let stats = server.scheduler.stats();
    assert!(stats.num_cached_prompt_tokens * 100 > stats.num_prompt_tokens * 80);
}

#[test]
fn hits_hold_beside_others_and_after_yielding() {
    // Blocks for two and a half: the others make the first sighting yield again and again.
    let mut server = Server::with_host(80, 30, 64, (100, 1000));
    let shared = Prompt::default().message(3, 200);
    let first = server.add(&shared.clone().message(4, 60), 300);
    let others: Vec<u64> = (0..6)
        .map(|i| server.add(&Prompt::default().message(20 + i, 100), 300))
        .collect();
    server.run();
    assert!(server.scheduler.stats().num_preemptions > 0);
    assert!(server.scheduler.stats().num_swapped_in > 0);
    assert!(others.iter().all(|id| server.cached.contains_key(id)));
    assert_eq!(server.cached[&first], 0);
    let cached = server.ask(&shared.message(5, 60));
    assert!(cached >= floor(200), "{cached}");
}

/// It goes on from where it stopped, in the block in which the message begins, and that snapshot is gone
/// then: what would have served as well does not stay.
#[test]
fn a_message_is_saved_though_its_maker_yields_right_before_it() {
    for len in 64..100 {
        let shared = Prompt::default().message(3, len);
        let first = shared.clone().message(4, 60);
        // The senior has six blocks when the first comes, and one is spare: at the second that it wants
        // the first yields, having computed 66 tokens.
        let num_blocks = 6 + first.len().div_ceil(BLOCK_SIZE) + 1;
        let mut server = Server::with_host(num_blocks, 10, 4, (100, 1000));
        let senior = server.add(&Prompt::default().message(5, 90), 64);
        while !server.cached.contains_key(&senior) {
            server.step();
        }
        server.add(&first, 4);
        server.run();
        assert!(server.scheduler.stats().num_preemptions > 0);
        let cached = server.ask(&shared.message(6, 30));
        assert!(cached >= floor(len), "{cached} of {len}");
    }
}

#[test]
fn requests_that_arrive_together_compute_their_prefix_once() {
    let mut server = Server::new(2000, 40, 256);
    let shared = Prompt::default().message(3, 3000);
    let ids: Vec<u64> = (0..8)
        .map(|i| server.add(&shared.clone().message(10 + i, 40), 1))
        .collect();
    server.run();
    assert_eq!(server.num_computed, 3000 + 8 * 40);
    let cached: Vec<u32> = ids.iter().map(|id| server.cached[id]).collect();
    assert_eq!(cached, [0, 3000, 3000, 3000, 3000, 3000, 3000, 3000]);
}

#[test]
fn who_waits_for_a_prefix_holds_up_nobody() {
    let mut server = Server::new(2000, 40, 256);
    let shared = Prompt::default().message(3, 600);
    for i in 0..2 {
        server.add(&shared.clone().message(10 + i, 40), 1);
    }
    let stranger = server.add(&Prompt::default().message(5, 20), 1);
    // The first takes all of the budget, twice; what is left of the third step is for the stranger.
    server.step();
    server.step();
    assert_eq!(server.step().rows.len(), 2);
    assert!(server.cached.contains_key(&stranger));
}

#[test]
fn who_waits_goes_on_when_the_maker_is_gone() {
    let ends: [fn(&mut Server); 2] = [
        |server| server.scheduler.abort(RequestId(0)),
        |server| {
            let plan = server.scheduler.schedule().expect("there is work");
            server.land(&plan, |row| row == 0);
        },
    ];
    for end in ends {
        let mut server = Server::new(2000, 40, 256);
        let shared = Prompt::default().message(3, 3000);
        let ids: Vec<u64> = (0..3)
            .map(|i| server.add(&shared.clone().message(10 + i, 40), 1))
            .collect();
        assert_eq!(server.step().rows.len(), 1);
        end(&mut server);
        server.run();
        assert_eq!(server.cached[&ids[2]], 3000, "the second made it");
        assert!(server.cached[&ids[1]] < 3000);
    }
}

#[test]
fn without_a_slot_to_save_to_everybody_computes() {
    let mut server = Server::new(2000, 2, 10_000);
    let shared = Prompt::default().message(3, 300);
    // Two take both slots at once, since they share nothing yet.
    server.add(&Prompt::default().message(4, 30), 50);
    server.add(&shared.clone().message(5, 40), 50);
    server.step();
    let late = server.add(&shared.message(6, 40), 1);
    server.run();
    assert_eq!(server.scheduler.stats().num_running, 0);
    assert!(server.cached.contains_key(&late));
}

#[test]
fn a_branch_is_saved_when_it_is_seen_again() {
    // No messages: only the tokens tell where prompts part.
    let mut server = Server::new(2000, 40, 2048);
    let text = |ending: u32| {
        let tokens = (0..500).chain((0..300).map(|i| 1000 * ending + i));
        Prompt {
            tokens: tokens.collect(),
            boundaries: Vec::new(),
        }
    };
    assert_eq!(server.ask(&text(3)), 0);
    assert_eq!(server.ask(&text(4)), 0, "nobody has parted here before");
    assert_eq!(server.ask(&text(5)), floor(500));
}

#[test]
fn long_prompts_are_saved_in_between() {
    let mut server = Server::new(4000, 40, 2048);
    let long = Prompt::default().message(3, 30_000);
    server.ask(&long);
    let mut other = long;
    other.tokens[20_000] = 7;
    assert_eq!(server.ask(&other), 16_384);
}

#[test]
fn misses_have_reasons() {
    let mut server = Server::new(100, 2, 2048);
    let misses = |server: &Server| server.scheduler.stats().misses;
    let tokens = |server: &Server| server.scheduler.stats().missed_tokens;
    let (a, b) = (
        Prompt::default().message(3, 300),
        Prompt::default().message(4, 200),
    );
    server.ask(&a);
    let expect = ByMiss {
        no_blocks: 1,
        ..ByMiss::default()
    };
    assert_eq!(misses(&server), expect);
    assert_eq!(tokens(&server).no_blocks, 299);
    server.add_salted(&a, 1, "other");
    server.run();
    assert_eq!((misses(&server).salt, tokens(&server).salt), (1, 299));
    // Two slots: others drive it out.
    for text in 5..9 {
        server.ask(&Prompt::default().message(text, 400));
    }
    server.ask(&b);
    server.ask(&a);
    assert_eq!((misses(&server).evicted, tokens(&server).evicted), (1, 299));
    let mut parted = a;
    parted.tokens[150] = 7;
    server.ask(&parted);
    assert_eq!(misses(&server).no_snapshot, 1);
    assert_eq!(tokens(&server).no_snapshot, u64::from(floor(150)));
}

#[test]
fn what_is_held_can_be_listed() {
    let mut server = Server::with_host(1000, 2, 2048, (8, 1000));
    for text in 3..6 {
        server.ask(&Prompt::default().message(text, 200));
    }
    server.ask(&Prompt::default().message(3, 200).message(9, 20));
    let held = server.scheduler.held();
    let num_on = |tier| held.iter().filter(|held| held.tier == tier).count();
    let stats = server.scheduler.stats();
    assert_eq!(num_on(Tier::Device), stats.num_slots_cached as usize);
    assert_eq!(num_on(Tier::Host), stats.num_host_slots_cached as usize);
    assert!(num_on(Tier::Host) > 0 && stats.num_swapped_in == 1);
    for held in held {
        assert_eq!(held.num_blocks, held.len.div_ceil(BLOCK_SIZE));
        assert!(held.num_own_blocks <= held.num_blocks && held.score > 0.0);
    }
}
