//! Turns the crank, plays the clients, and looks at everything after each move.

use std::collections::BTreeSet;

use scheduler::{
    Row, Runner, Scheduler, SchedulerOutput, SchedulerStats, SequenceId, Standing, StateOp,
    StepTime,
};

use crate::checkers::{Clients, check_admission, check_plan};
use crate::rng::Rng;
use crate::toy_model::ToyModel;
use crate::workload::{Event, Scenario};

/// What happened in one run.
#[derive(Debug, Default)]
pub struct Report {
    /// All plans, in order.
    pub plans: Vec<SchedulerOutput>,
    /// Final numbers.
    pub stats: SchedulerStats,
    /// Requests aborted and choices finished early, by standing: waiting, preempted, running, in
    /// flight.
    pub num_endings: [u64; 4],
    /// Copies of blocks for a second writer.
    pub num_block_copies: u64,
    /// Steps in which no block or no slot was left for anyone else.
    pub num_exhausted_steps: u64,
    /// Tokens that some choice did not compute.
    pub num_cached_tokens: u64,
    /// Restores and saves of state.
    pub num_slot_copies: u64,
    /// States saved while a row ran.
    pub num_saves: u64,
    /// States that went to the host, and states that came back.
    pub num_swaps: [u64; 2],
    /// Hits of snapshots with pending tokens.
    pub num_pending_hits: u64,
    /// Calls of `prepare`.
    pub num_prepares: u64,
}

/// Runs a scenario to its end. Panics if anything is wrong.
pub fn run(scenario: &Scenario) -> Report {
    live_through(scenario, None)
}

/// The same, with calls to `prepare` strewn in as `rng` says: none, one or several where a step is in
/// flight, and now and then where none is.
pub fn run_prepared(scenario: &Scenario, rng: Rng) -> Report {
    live_through(scenario, Some(rng))
}

fn live_through(scenario: &Scenario, prepares: Option<Rng>) -> Report {
    let mut world = World {
        scenario,
        prepares,
        scheduler: Scheduler::new(scenario.config.clone(), scenario.cache.clone()),
        model: ToyModel::new(
            &scenario.cache,
            scenario.vocabulary,
            scenario.poison,
            scenario.guessing,
        ),
        clients: Clients::default(),
        endings: scenario.endings.clone(),
        started: BTreeSet::new(),
        report: Report::default(),
    };
    world.live();
    world.report
}

struct World<'a> {
    scenario: &'a Scenario,
    prepares: Option<Rng>,
    scheduler: Scheduler,
    model: ToyModel,
    clients: Clients,
    endings: Vec<(u32, Event)>,
    /// Sequences that had a row.
    started: BTreeSet<SequenceId>,
    report: Report,
}

impl World<'_> {
    fn live(&mut self) {
        let mut arrivals = self.scenario.arrivals.iter().peekable();
        let mut patience = 0;
        for turn in 0.. {
            while let Some((_, request)) = arrivals.next_if(|(when, _)| *when <= turn) {
                self.add(request);
            }
            self.end_some(
                turn,
                &[Standing::Waiting, Standing::Preempted, Standing::Running],
            );
            self.prepare(4);
            let busy = self.step(turn);
            if arrivals.peek().is_none() {
                // Arrivals have stopped: everyone must finish.
                if !busy {
                    break;
                }
                patience += 1;
                assert!(
                    patience <= self.clients.patience(),
                    "no end in sight at turn {turn}"
                );
            }
        }
        self.clients.check_all_ended();
        self.report.stats = self.scheduler.stats();
        self.report.num_cached_tokens = self.clients.num_cached_tokens();
        let stats = &self.report.stats;
        assert_eq!(
            stats.num_draft_tokens,
            self.clients.num_drafts(),
            "clients hear of all drafts"
        );
        assert_eq!(
            (stats.num_blocks_used, stats.num_slots_used),
            (0, 0),
            "all is given back"
        );
    }

    fn add(&mut self, request: &scheduler::Request) {
        let answer = self.scheduler.add(request.clone());
        // Only an idle scheduler's queue is known from outside.
        let idle = self.scheduler.stats().num_waiting == 0;
        check_admission(self.scenario, request, idle.then_some(0), &answer);
        if answer.is_ok() {
            let arrived = self.scheduler.stats().num_steps;
            self.clients.admit(self.scenario, request, arrived);
        }
        self.scheduler.check_invariants();
    }

    /// Returns whether there was anything to do.
    fn step(&mut self, turn: u32) -> bool {
        let before = self.scheduler.stats();
        let running = self.clients.running(&self.scheduler);
        let Some(plan) = self.scheduler.schedule() else {
            assert_eq!(
                (before.num_running, before.num_waiting),
                (0, 0),
                "work was left lying"
            );
            return false;
        };
        self.scheduler.check_invariants();
        check_plan(self.scenario, &plan);
        self.clients.check_rows(&plan, &self.scenario.config);
        let num_for_tenants = |stats: &SchedulerStats| stats.num_tenant_preemptions;
        let num_for_tenants = num_for_tenants(&self.scheduler.stats()) - num_for_tenants(&before);
        self.clients
            .check_yields(&running, &self.scheduler, &plan, num_for_tenants);
        self.check_decodes(&plan, &before);
        self.count(&plan);
        self.report.plans.push(plan.clone());
        let Ok(()) = self.model.submit(plan);
        self.prepare(2);
        self.end_some(turn, &[Standing::InFlight]);
        self.prepare(2);
        let Ok(result) = self.model.collect(&[]);
        let nanos = self.step_nanos();
        self.scheduler.note_times(nanos, &self.parts_of(nanos));
        let news = self.scheduler.update(result);
        self.scheduler.check_invariants();
        self.clients.hear(news);
        true
    }

    /// What the last step took, so to speak: by its tokens, and now and then for no reason.
    fn step_nanos(&self) -> u64 {
        let plan = self.report.plans.last().expect("a step was planned");
        let num_tokens: usize = plan.rows.iter().map(|row| row.input_ids.len()).sum();
        let disturbance = (plan.step.0.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 61).pow(3);
        1000 + 50 * num_tokens as u64 + disturbance
    }

    /// What a runner would say of a step that took so long.
    fn parts_of(&self, nanos: u64) -> Vec<StepTime> {
        let rows = &self.report.plans.last().expect("a step was planned").rows;
        let num_drafts = |row: &Row| row.drafting.num_drafts;
        let draws =
            |row: &Row| row.sample.is_some() && row.input_ids.len() as u32 == 1 + num_drafts(row);
        let time = StepTime {
            num_rows: rows.len() as u32,
            num_drafts: rows.iter().map(num_drafts).sum(),
            step_ns: nanos,
            num_passes: rows
                .iter()
                .map(|row| row.drafting.max_drafts)
                .max()
                .unwrap_or(0),
            drafting_ns: nanos / 8,
        };
        rows.iter().all(draws).then_some(time).into_iter().collect()
    }

    /// Once in `n` chances, or never.
    fn prepare(&mut self, n: u64) {
        let Some(rng) = &mut self.prepares else {
            return;
        };
        if rng.one_in(n) {
            self.scheduler.prepare();
            self.scheduler.check_invariants();
            self.report.num_prepares += 1;
        }
    }

    /// Prompts never hold up those who generate: with a budget for all, whoever sampled in the last
    /// step and has not ended runs in this one, unless it had to yield.
    fn check_decodes(&self, plan: &SchedulerOutput, before: &SchedulerStats) {
        let config = &self.scenario.config;
        let Some(last) = self.report.plans.last() else {
            return;
        };
        if config.max_num_batched_tokens < config.max_num_seqs {
            return;
        }
        let num_missing = last
            .rows
            .iter()
            .filter(|row| row.sample.is_some())
            .filter(|row| self.clients.listens(row.sequence))
            .filter(|row| plan.rows.iter().all(|now| now.sequence != row.sequence))
            .count() as u64;
        let num_yielded = self.scheduler.stats().num_preemptions - before.num_preemptions;
        assert!(
            num_missing <= num_yielded,
            "{num_missing} starve, {num_yielded} yielded"
        );
    }

    fn count(&mut self, plan: &SchedulerOutput) {
        let stats = self.scheduler.stats();
        let no_block = stats.num_blocks_used == stats.num_blocks;
        let no_slot = stats.num_slots_used == stats.num_slots;
        self.report.num_exhausted_steps += u64::from(no_block || no_slot);
        for row in &plan.rows {
            let is_first = self.started.insert(row.sequence);
            let is_hit = is_first && row.drafting.num_pending > 0;
            self.report.num_pending_hits += u64::from(is_hit);
        }
        let saves = plan.rows.iter().map(|row| row.saves.len() as u64);
        self.report.num_saves += saves.sum::<u64>();
        for op in &plan.ops {
            match op {
                StateOp::CopySlot { .. } => self.report.num_slot_copies += 1,
                StateOp::SlotToHost { .. } => self.report.num_swaps[0] += 1,
                StateOp::HostToSlot { .. } => self.report.num_swaps[1] += 1,
                StateOp::ZeroSlot(_)
                | StateOp::BlockToHost { .. }
                | StateOp::HostToBlock { .. } => {}
                StateOp::CopyBlock { .. } => self.report.num_block_copies += 1,
            }
        }
    }

    /// Lets clients leave whose time has come and whose request stands as they wish.
    fn end_some(&mut self, turn: u32, standings: &[Standing]) {
        let due =
            |(when, event): &(u32, Event)| *when <= turn && standings.contains(&event.standing);
        let events: Vec<(u32, Event)> = self.endings.iter().copied().filter(due).collect();
        for (when, event) in events {
            let candidates: Vec<_> = self
                .clients
                .open()
                .filter(|&(id, choice)| self.scheduler.standing(id, choice) == Some(event.standing))
                .collect();
            if candidates.is_empty() {
                continue;
            }
            let (id, choice) = candidates[(event.pick % candidates.len() as u64) as usize];
            if event.one_choice {
                self.scheduler.finish_choice(id, choice);
                self.clients.leave(id, Some(choice));
            } else {
                self.scheduler.abort(id);
                self.clients.leave(id, None);
            }
            self.scheduler.check_invariants();
            self.report.num_endings[event.standing as usize] += 1;
            let same = |other: &(u32, Event)| other.0 == when && other.1.pick == event.pick;
            self.endings.retain(|other| !same(other));
        }
    }
}
