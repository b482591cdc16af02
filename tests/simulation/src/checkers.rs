//! What must hold of every plan and of all news.

use std::collections::{BTreeMap, BTreeSet};

use scheduler::{
    AdmissionError, BlockId, FinishReason, HostBlockId, HostSlotId, Request, RequestId,
    RequestOutput, Row, Scheduler, SchedulerConfig, SchedulerOutput, SequenceId, SlotId, Standing,
    StateOp, TenantId, TokenLogprobs,
};

use crate::reference::{Expected, expect};
use crate::workload::Scenario;

/// The only errors that `add` may answer, worked out by hand.
pub(crate) fn check_admission(
    scenario: &Scenario,
    request: &Request,
    num_queued: Option<u32>,
    answer: &Result<(), AdmissionError>,
) {
    let len = request.prompt.len() as u32;
    let max = scenario.config.max_model_len;
    let generates = request.sampling.max_tokens > 0;
    if len > max || (generates && len == max) {
        assert_eq!(*answer, Err(AdmissionError::PromptTooLong { len, max }));
        return;
    }
    let computed = if generates {
        (u64::from(len) + u64::from(request.sampling.max_tokens)).min(u64::from(max)) as u32 - 1
    } else {
        len
    };
    let needed = computed.div_ceil(scenario.cache.block_size);
    let total = scenario.cache.num_blocks - 1;
    if needed > total {
        assert_eq!(*answer, Err(AdmissionError::NeverFits { needed, total }));
        return;
    }
    let max = scenario.config.max_queue;
    match answer {
        Ok(()) => assert!(num_queued.is_none_or(|num| num < max), "the queue was full"),
        Err(error) => {
            assert_eq!(*error, AdmissionError::QueueFull { max });
            assert!(
                num_queued.is_none_or(|num| num >= max),
                "the queue had room"
            );
        }
    }
}

/// Order, budget, tables, ownership.
pub(crate) fn check_plan(scenario: &Scenario, plan: &SchedulerOutput) {
    let (config, cache) = (&scenario.config, &scenario.cache);
    assert!(!plan.rows.is_empty(), "a plan has a row");
    assert!(
        plan.rows.len() <= config.max_num_seqs as usize,
        "{} rows",
        plan.rows.len()
    );
    let num_tokens: usize = plan.rows.iter().map(|row| row.input_ids.len()).sum();
    assert!(
        num_tokens <= config.max_num_batched_tokens as usize,
        "{num_tokens} tokens"
    );
    assert!(
        plan.rows
            .is_sorted_by_key(|row| (row.input_ids.len() > 1, row.drafting.num_drafts == 0)),
        "single tokens first, then drafts"
    );

    let block = |id: BlockId| assert!((1..cache.num_blocks).contains(&id.0), "{id:?}");
    let slot = |id: SlotId| assert!((1..cache.num_slots).contains(&id.0), "{id:?}");
    let host_block = |id: HostBlockId| assert!(id.0 < cache.num_host_blocks, "{id:?}");
    let host_slot = |id: HostSlotId| assert!(id.0 < cache.num_host_slots, "{id:?}");
    for op in &plan.ops {
        match *op {
            StateOp::ZeroSlot(to) => slot(to),
            StateOp::CopySlot { from, to } => {
                slot(from);
                slot(to);
            }
            StateOp::CopyBlock { from, to } => {
                block(from);
                block(to);
            }
            StateOp::SlotToHost { from, to } => {
                slot(from);
                host_slot(to);
            }
            StateOp::HostToSlot { from, to } => {
                host_slot(from);
                slot(to);
            }
            StateOp::BlockToHost { from, to } => {
                block(from);
                host_block(to);
            }
            StateOp::HostToBlock { from, to } => {
                host_block(from);
                block(to);
            }
        }
    }
    let mut sequences = BTreeSet::new();
    let mut slots = BTreeSet::new();
    let mut num_holders: BTreeMap<BlockId, u32> = BTreeMap::new();
    for row in &plan.rows {
        assert!(
            !row.input_ids.is_empty(),
            "{:?}: a row has a token",
            row.sequence
        );
        assert!(
            sequences.insert(row.sequence),
            "{:?} has two rows",
            row.sequence
        );
        assert!(slots.insert(row.slot), "{:?} in two rows", row.slot);
        slot(row.slot);
        let end = row.start as usize + row.input_ids.len();
        let covered = end + row.drafting.max_drafts as usize;
        assert_eq!(
            row.block_table.len(),
            covered.div_ceil(cache.block_size as usize)
        );
        check_drafting(config, row);
        for &id in &row.block_table {
            block(id);
            *num_holders.entry(id).or_default() += 1;
        }
    }
    for row in &plan.rows {
        check_saves(scenario, row, &mut slots);
    }
    for row in &plan.rows {
        let first_written = (row.start / cache.block_size) as usize;
        for id in &row.block_table[first_written..] {
            assert_eq!(num_holders[id], 1, "{id:?} has a writer and another reader");
        }
    }
}

/// What a row may have of drafts by itself.
fn check_drafting(config: &SchedulerConfig, row: &Row) {
    let (id, drafting) = (row.sequence, &row.drafting);
    let end = row.start + row.input_ids.len() as u32;
    assert!(
        drafting.num_drafts.max(drafting.max_drafts) <= config.max_drafts,
        "{id:?}: {drafting:?}"
    );
    assert!(
        end + drafting.max_drafts <= config.max_model_len.max(end),
        "{id:?}: guesses within the window"
    );
    assert!(
        drafting.num_pending <= (1 + config.max_drafts).min(row.start),
        "{id:?}: {drafting:?}"
    );
    if drafting.num_drafts > 0 {
        let num_known = row.input_ids.len() as u32 - drafting.num_drafts;
        assert_eq!(num_known, 1, "{id:?}: drafts follow one token");
        assert!(row.sample.is_some() && row.saves.is_empty(), "{id:?}");
    }
}

/// Saves lie within their rows and go to slots that nobody runs in.
fn check_saves(scenario: &Scenario, row: &Row, slots: &mut BTreeSet<SlotId>) {
    let (config, cache) = (&scenario.config, &scenario.cache);
    let end = row.start + row.input_ids.len() as u32;
    let is_plain = row.drafting.num_drafts == 0;
    assert!(row.saves.is_empty() || is_plain, "{:?}", row.sequence);
    assert!(row.saves.is_sorted_by(|a, b| a.at < b.at));
    for save in &row.saves {
        assert!(
            row.start < save.at && save.at <= end,
            "{:?}: {save:?}",
            row.sequence
        );
        assert!(save.at.is_multiple_of(config.grid.unwrap_or(1)), "{save:?}");
        assert!((1..cache.num_slots).contains(&save.to.0), "{save:?}");
        assert!(slots.insert(save.to), "{save:?}: its slot is in use");
    }
}

/// One choice as its client sees it.
#[derive(Debug)]
struct Client {
    request: Request,
    choice: u32,
    /// Step in which it came.
    arrived: u64,
    expected: Expected,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    /// Where the sequence first started: tokens it did not compute.
    num_cached: Option<u32>,
    heard: bool,
    /// Drafts told of.
    num_drafts: u64,
    end: End,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Open,
    /// The client went away.
    Left,
    Told,
    /// Its own fault or a sibling's.
    Faulted,
}

/// One who holds memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Seat {
    sequence: SequenceId,
    rank: i64,
    priority: i8,
    tenant: TenantId,
}

/// All clients, and the true history of every sequence.
#[derive(Debug, Default)]
pub(crate) struct Clients {
    /// The scheduler numbers sequences in the order in which choices arrive.
    clients: Vec<Client>,
}

impl Clients {
    pub(crate) fn admit(&mut self, scenario: &Scenario, request: &Request, arrived: u64) {
        for choice in 0..request.num_choices {
            let max = scenario.config.max_model_len;
            self.clients.push(Client {
                request: request.clone(),
                choice,
                arrived,
                expected: expect(request, choice, max, scenario.vocabulary, scenario.poison),
                tokens: Vec::new(),
                logprobs: Vec::new(),
                num_cached: None,
                heard: false,
                num_drafts: 0,
                end: End::Open,
            });
        }
    }

    /// Choices whose clients still listen.
    pub(crate) fn open(&self) -> impl Iterator<Item = (RequestId, u32)> + '_ {
        let open = self.clients.iter().filter(|client| client.end == End::Open);
        open.map(|client| (client.request.id, client.choice))
    }

    pub(crate) fn leave(&mut self, id: RequestId, choice: Option<u32>) {
        for client in &mut self.clients {
            let chosen = choice.is_none_or(|choice| client.choice == choice);
            if client.request.id == id && chosen && client.end == End::Open {
                client.end = End::Left;
            }
        }
    }

    /// Those who hold memory between two steps.
    pub(crate) fn running(&self, scheduler: &Scheduler) -> Vec<Seat> {
        let mut seats: Vec<Seat> = Vec::new();
        for (index, client) in self.clients.iter().enumerate() {
            let standing = scheduler.standing(client.request.id, client.choice);
            if client.end == End::Open && standing == Some(Standing::Running) {
                let priority = client.request.priority;
                // 256 steps of waiting make up for a level.
                let rank = client.arrived as i64 - 256 * i64::from(priority);
                seats.push(Seat {
                    sequence: SequenceId(index as u64),
                    rank,
                    priority,
                    tenant: client.request.tenant,
                });
            }
        }
        seats.sort_by_key(|seat| (seat.rank, seat.sequence));
        seats
    }

    /// The most senior of those who ran does not yield; whoever does is worth no more than those who
    /// could have in its stead, unless `num_for_tenants` of them did for other tenants; and somebody else
    /// gets on.
    pub(crate) fn check_yields(
        &self,
        before: &[Seat],
        scheduler: &Scheduler,
        plan: &SchedulerOutput,
        num_for_tenants: u64,
    ) {
        let stays = |seat: &&Seat| {
            let client = &self.clients[seat.sequence.0 as usize];
            let standing = scheduler.standing(client.request.id, client.choice);
            standing != Some(Standing::Preempted)
        };
        let (stayed, yielded): (Vec<&Seat>, Vec<&Seat>) = before.iter().partition(stays);
        if yielded.is_empty() {
            return;
        }
        let first = before.first().expect("somebody yielded");
        assert!(stays(&first), "{first:?} is the most senior and yields");
        if num_for_tenants > 0 {
            let other = |client: &Client| {
                let tenant = client.request.tenant;
                client.end == End::Open && yielded.iter().any(|seat| seat.tenant != tenant)
            };
            assert!(self.clients.iter().any(other), "for no other tenant");
            return;
        }
        let is_planned = |seat: &Seat| plan.rows.iter().any(|row| row.sequence == seat.sequence);
        assert!(
            stayed.iter().any(|seat| is_planned(seat)),
            "for nobody's sake"
        );
        let spared = stayed
            .iter()
            .filter(|seat| !is_planned(seat) && **seat != first);
        for spared in spared {
            let all_are_worth_less = yielded.iter().all(|one| one.priority <= spared.priority);
            assert!(all_are_worth_less, "{yielded:?} yield, {spared:?} does not");
        }
    }

    /// Rows run the true tokens of their sequences, cut as the grid wants them.
    pub(crate) fn check_rows(&mut self, plan: &SchedulerOutput, config: &SchedulerConfig) {
        let max_model_len = config.max_model_len as usize;
        for row in &plan.rows {
            let SequenceId(index) = row.sequence;
            let client = &mut self.clients[index as usize];
            let truth: Vec<u32> = client
                .request
                .prompt
                .iter()
                .chain(&client.tokens)
                .copied()
                .collect();
            let num_drafts = row.drafting.num_drafts as usize;
            let num_known = row.input_ids.len() - num_drafts;
            let end = row.start as usize + num_known;
            assert_eq!(
                row.input_ids[..num_known],
                truth[row.start as usize..end],
                "{:?}",
                row.sequence
            );
            client.num_cached.get_or_insert(row.start);
            if let Some(grid) = config.grid {
                check_cut(row, client.request.prompt.len() as u32, grid);
            }
            let samples = end == truth.len() && client.request.sampling.max_tokens > 0;
            assert_eq!(
                row.sample.is_some(),
                samples,
                "{:?} samples at its end",
                row.sequence
            );
            // Whatever is drawn, no token is computed that nobody may want.
            let max_tokens = client.request.sampling.max_tokens as usize;
            let num_most = (max_tokens - client.tokens.len()).min(max_model_len - truth.len());
            assert!(
                num_drafts < num_most.max(1),
                "{:?} drafts beyond its end",
                row.sequence
            );
            if let Some(sample) = &row.sample {
                assert_eq!(
                    sample.index as usize,
                    client.tokens.len(),
                    "{:?}",
                    row.sequence
                );
            }
            let unscored = client.request.sampling.prompt_logprobs.is_none() || client.choice > 0;
            assert!(
                unscored || client.heard || client.num_cached == Some(0),
                "scores of a hit"
            );
        }
    }

    pub(crate) fn hear(&mut self, news: Vec<RequestOutput>) {
        for output in news {
            let of_choice =
                |c: &&mut Client| c.request.id == output.request && c.choice == output.choice;
            let client = self
                .clients
                .iter_mut()
                .find(of_choice)
                .expect("news of a known choice");
            client.hear(output);
        }
    }

    /// Whether the client of a sequence still listens.
    pub(crate) fn listens(&self, SequenceId(index): SequenceId) -> bool {
        self.clients[index as usize].end == End::Open
    }

    pub(crate) fn check_all_ended(&self) {
        for client in &self.clients {
            let id = client.request.id;
            assert_ne!(client.end, End::Open, "{id:?} was forgotten");
            if client.end == End::Faulted {
                let mut siblings = self.clients.iter().filter(|other| other.request.id == id);
                assert!(
                    siblings.any(Client::met_its_fault),
                    "{id:?} faulted for no reason"
                );
            }
        }
    }

    /// How many steps all of them may take together if no step is wasted but by preemption.
    pub(crate) fn patience(&self) -> u64 {
        let steps = |client: &Client| {
            let tokens = client.request.prompt.len() + client.expected.tokens.len();
            (tokens as u64 + 1).pow(2)
        };
        self.clients.iter().map(steps).sum()
    }

    /// Drafts that clients were told of.
    pub(crate) fn num_drafts(&self) -> u64 {
        self.clients.iter().map(|client| client.num_drafts).sum()
    }

    pub(crate) fn num_cached_tokens(&self) -> u64 {
        self.clients
            .iter()
            .filter_map(|client| client.num_cached)
            .map(u64::from)
            .sum()
    }
}

impl Client {
    fn hear(&mut self, output: RequestOutput) {
        let name = (self.request.id, self.choice);
        assert_eq!(self.end, End::Open, "{name:?} hears after its end");
        let expected = &self.expected;
        if matches!(output.finish, Some(FinishReason::Fault(_))) {
            assert!(
                output.tokens.is_empty() && output.logprobs.is_empty(),
                "{name:?}: a fault"
            );
            self.end = End::Faulted;
            return;
        }
        let num_drawn = output.tokens.len() as u32;
        let num_accepted = output.num_accepted_drafts;
        let samples = self.request.sampling.max_tokens > 0;
        assert_eq!(num_drawn > 0, samples, "{name:?}");
        // The last token is a draft only where the choice ended before what followed it.
        assert!(
            num_drawn == num_accepted + u32::from(samples)
                || (num_drawn == num_accepted && output.finish.is_some()),
            "{name:?}: {num_accepted} of {num_drawn} tokens were drafts"
        );
        self.num_drafts += u64::from(num_accepted + output.num_rejected_drafts);
        self.tokens.extend(&output.tokens);
        self.logprobs.extend(output.logprobs);
        let num_tokens = self.tokens.len();
        assert_eq!(self.tokens, expected.tokens[..num_tokens], "{name:?}");
        let num_scores = self.logprobs.len();
        assert_eq!(self.logprobs, expected.logprobs[..num_scores], "{name:?}");
        if self.heard {
            assert_eq!(output.prompt_logprobs, [], "{name:?}: delivered once");
        } else {
            assert_eq!(output.prompt_logprobs, expected.prompt_logprobs, "{name:?}");
        }
        self.heard = true;
        assert_eq!(
            Some(output.num_cached_tokens),
            self.num_cached,
            "{name:?}: first start"
        );
        if let Some(finish) = output.finish {
            assert_eq!(finish, expected.finish, "{name:?}");
            assert_eq!(self.tokens, expected.tokens, "{name:?}");
            assert_eq!(num_scores, expected.logprobs.len(), "{name:?}");
            self.end = End::Told;
        } else {
            // A fault comes after the last good token.
            let faults = matches!(expected.finish, FinishReason::Fault(_));
            let should_end = num_tokens == expected.tokens.len() && !faults;
            assert!(!should_end, "{name:?} should have ended");
        }
    }

    fn met_its_fault(&self) -> bool {
        let faults = matches!(self.expected.finish, FinishReason::Fault(_));
        faults && self.tokens == self.expected.tokens && self.end == End::Faulted
    }
}

/// What is computed together with a token depends on its place in its request alone: on the cell of
/// the grid that it lies in, of which the last of a prompt ends with the prompt. Generated tokens are
/// alone.
fn check_cut(row: &Row, num_prompt: u32, grid: u32) {
    let (start, len) = (row.start, row.input_ids.len() as u32);
    let end = start + len;
    let is_good = if start < num_prompt {
        let last_line = (num_prompt - 1) / grid * grid;
        let within = end <= last_line || start >= last_line;
        // Who asks for scores alone needs no logits after the last token.
        let ends = end.is_multiple_of(grid) || end == num_prompt || row.sample.is_none();
        start.is_multiple_of(grid) && within && ends && end <= num_prompt
    } else {
        len == 1
    };
    assert!(
        is_good,
        "{:?} runs {start}..{end} of a prompt of {num_prompt} on a grid of {grid}",
        row.sequence
    );
}
