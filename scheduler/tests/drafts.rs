//! Rows with drafts through the scheduler's verbs: what they carry, what comes of their results.

use std::sync::Arc;

use scheduler::{
    CacheConfig, FinishReason, Request, RequestId, RequestOutput, RowFault, RowOutput, RowResult,
    SamplingParams, Scheduler, SchedulerConfig, SchedulerOutput, StepResult, TenantId,
};

fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_batched_tokens: 16,
        max_num_seqs: 4,
        max_queue: 4,
        max_model_len: 64,
        max_drafts: 3,
        ..SchedulerConfig::default()
    }
}

fn cache() -> CacheConfig {
    CacheConfig {
        block_size: 4,
        num_blocks: 65,
        num_slots: 9,
        num_host_slots: 0,
        num_host_blocks: 0,
    }
}

fn scheduler() -> Scheduler {
    Scheduler::new(config(), cache())
}

fn add(scheduler: &mut Scheduler, id: u64, prompt: &[u32], sampling: SamplingParams) {
    let request = Request {
        id: RequestId(id),
        prompt: prompt.into(),
        sampling: Arc::new(sampling),
        num_choices: 1,
        cache_salt: "".into(),
        boundaries: Arc::default(),
        priority: 0,
        tenant: TenantId::default(),
        tenant_weight: 1,
    };
    scheduler.add(request).expect("there is room");
}

fn sampling(max_tokens: u32) -> SamplingParams {
    SamplingParams {
        max_tokens,
        ..Default::default()
    }
}

/// Each row draws `tokens[..]` as far as it may, and guesses `drafts`.
fn answer(plan: &SchedulerOutput, tokens: &[u32], drafts: &[u32]) -> StepResult {
    let rows = plan.rows.iter().map(|row| {
        let num_drawn = row.sample.iter().len() * (1 + row.drafting.num_drafts as usize);
        let num_drafts = drafts.len().min(row.drafting.max_drafts as usize);
        RowResult {
            sequence: row.sequence,
            outcome: Ok(RowOutput {
                tokens: tokens[..num_drawn.min(tokens.len())].to_vec(),
                drafts: drafts[..num_drafts].to_vec(),
                ..RowOutput::default()
            }),
        }
    });
    StepResult {
        step: plan.step,
        rows: rows.collect(),
    }
}

fn step(scheduler: &mut Scheduler, tokens: &[u32], drafts: &[u32]) -> Vec<RequestOutput> {
    let plan = scheduler.schedule().expect("there is something to do");
    scheduler.check_invariants();
    let news = scheduler.update(answer(&plan, tokens, drafts));
    scheduler.check_invariants();
    news
}

#[test]
fn while_drafts_are_paused_rows_are_plain() {
    let mut scheduler = scheduler();
    add(&mut scheduler, 1, &[1, 2], sampling(20));
    step(&mut scheduler, &[10], &[11, 12, 13]);
    scheduler.pause_drafts(true);
    // What was guessed is still checked; nothing new is guessed.
    let plan = scheduler.schedule().unwrap();
    let drafting = plan.rows[0].drafting;
    assert_eq!((drafting.num_drafts, drafting.max_drafts), (3, 0));
    scheduler.update(answer(&plan, &[11, 99], &[]));
    for token in [7, 8] {
        let plan = scheduler.schedule().unwrap();
        let drafting = plan.rows[0].drafting;
        assert_eq!((drafting.num_drafts, drafting.max_drafts), (0, 0));
        scheduler.update(answer(&plan, &[token], &[]));
        scheduler.check_invariants();
    }
    // A prompt that comes meanwhile does not pass through the draft block.
    add(&mut scheduler, 2, &[1, 2, 3], sampling(20));
    let plan = scheduler.schedule().unwrap();
    assert!(plan.rows.iter().all(|row| row.drafting.max_drafts == 0));
    scheduler.update(answer(&plan, &[9], &[]));
    scheduler.pause_drafts(false);
    let plan = scheduler.schedule().unwrap();
    assert!(plan.rows.iter().all(|row| row.drafting.max_drafts == 3));
    scheduler.update(answer(&plan, &[10], &[11]));
    scheduler.check_invariants();
}

#[test]
fn a_row_carries_what_the_last_one_guessed() {
    let mut scheduler = scheduler();
    add(&mut scheduler, 1, &[1, 2], sampling(20));
    let plan = scheduler.schedule().unwrap();
    let drafting = plan.rows[0].drafting;
    assert_eq!((drafting.num_drafts, drafting.max_drafts), (0, 3));
    assert!(!drafting.is_drafted);
    scheduler.update(answer(&plan, &[10], &[11, 12, 13]));

    let plan = scheduler.schedule().unwrap();
    let row = &plan.rows[0];
    assert_eq!(row.input_ids, [10, 11, 12, 13]);
    assert_eq!((row.start, row.sample.as_ref().unwrap().index), (2, 1));
    assert_eq!((row.drafting.num_drafts, row.drafting.num_pending), (3, 0));
    assert!(row.drafting.is_drafted);
    // Nine positions and three more.
    assert_eq!(row.block_table.len(), 3);
    // Two came true.
    let news = scheduler.update(answer(&plan, &[11, 12, 99], &[7]));
    assert_eq!(news[0].tokens, [11, 12, 99]);
    assert_eq!(
        (news[0].num_accepted_drafts, news[0].num_rejected_drafts),
        (2, 1)
    );

    let plan = scheduler.schedule().unwrap();
    let row = &plan.rows[0];
    assert_eq!((row.start, &row.input_ids[..]), (5, &[99, 7][..]));
    assert_eq!((row.drafting.num_pending, row.drafting.num_drafts), (3, 1));
    assert_eq!(row.sample.as_ref().unwrap().index, 4);
    scheduler.update(answer(&plan, &[8], &[]));

    // Nothing was guessed: a plain row takes in what is pending.
    let plan = scheduler.schedule().unwrap();
    let row = &plan.rows[0];
    assert_eq!((row.start, &row.input_ids[..]), (6, &[8][..]));
    assert_eq!((row.drafting.num_pending, row.drafting.num_drafts), (1, 0));
    scheduler.update(answer(&plan, &[9], &[]));
    let plan = scheduler.schedule().unwrap();
    assert_eq!(plan.rows[0].drafting.num_pending, 0);

    let stats = scheduler.stats();
    assert_eq!((stats.num_drafted_rows, stats.num_draft_tokens), (2, 4));
    assert_eq!(stats.num_accepted_by_position[..3], [1, 1, 0]);
}

/// Runs a prompt of two tokens, then a row with three drafts that draws `tokens`.
fn ends(sampling: SamplingParams, tokens: &[u32], expect: (&[u32], FinishReason)) -> Scheduler {
    let mut scheduler = scheduler();
    add(&mut scheduler, 1, &[1, 2], sampling);
    step(&mut scheduler, &[10], &[11, 12, 13]);
    let news = step(&mut scheduler, tokens, &[14]);
    assert_eq!((&news[0].tokens[..], news[0].finish.unwrap()), expect);
    assert_eq!(scheduler.schedule(), None);
    scheduler
}

#[test]
fn what_lies_behind_a_stop_is_dropped() {
    let stops = SamplingParams {
        stop_token_ids: vec![12],
        ..sampling(20)
    };
    let stop = FinishReason::Stop(12);
    let mut scheduler = ends(stops, &[11, 12, 13, 14], (&[11, 12], stop));
    // Its state is that of plain decoding: the stop was never computed. Two of its tokens are pending.
    add(&mut scheduler, 2, &[1, 2, 10, 11, 5, 6], sampling(1));
    let plan = scheduler.schedule().unwrap();
    assert_eq!(plan.rows[0].start, 4);
    assert_eq!(plan.rows[0].drafting.num_pending, 2);
}

#[test]
fn limits_end_in_the_midst_of_a_row() {
    // As many drafts as can be used at most, so the limit is met at the row's end at the earliest.
    let length = FinishReason::Length;
    ends(sampling(5), &[11, 12, 13, 14], (&[11, 12, 13, 14], length));
    let mut scheduler = scheduler();
    add(&mut scheduler, 1, &[1, 2], sampling(3));
    let plan = scheduler.schedule().unwrap();
    assert_eq!(
        plan.rows[0].drafting.max_drafts, 1,
        "one to draw, one to spare"
    );
    scheduler.update(answer(&plan, &[10], &[11]));
    let plan = scheduler.schedule().unwrap();
    assert_eq!(plan.rows[0].drafting.num_drafts, 1);
    assert_eq!(plan.rows[0].drafting.max_drafts, 0);
}

#[test]
fn who_can_say_little_never_drafts() {
    for max_tokens in [1, 2] {
        let mut scheduler = scheduler();
        add(&mut scheduler, 1, &[1, 2], sampling(max_tokens));
        let plan = scheduler.schedule().unwrap();
        assert_eq!(plan.rows[0].drafting.max_drafts, 0, "{max_tokens}");
    }
    // Of 64 positions.
    for (len, expect) in [(63, 0), (62, 0), (61, 1), (60, 2), (59, 3)] {
        let config = SchedulerConfig {
            max_num_batched_tokens: 64,
            ..config()
        };
        let mut scheduler = Scheduler::new(config, cache());
        add(&mut scheduler, 1, &vec![1; len], sampling(99));
        let mut plan = scheduler.schedule().unwrap();
        while plan.rows[0].sample.is_none() {
            scheduler.update(answer(&plan, &[10], &[]));
            plan = scheduler.schedule().unwrap();
        }
        assert_eq!(plan.rows[0].drafting.max_drafts, expect, "{len}");
    }
}

#[test]
fn nothing_drawn_where_drafts_were_ends_a_choice() {
    let mut scheduler = ends(sampling(20), &[], (&[], FinishReason::Length));
    add(&mut scheduler, 2, &[1, 2, 10, 5], sampling(1));
    let plan = scheduler.schedule().unwrap();
    assert_eq!(plan.rows[0].start, 3, "the known token was computed");
}

#[test]
fn a_fault_behind_drafts_publishes_nothing() {
    let mut scheduler = scheduler();
    add(&mut scheduler, 1, &[1, 2], sampling(20));
    step(&mut scheduler, &[10], &[11, 12, 13]);
    let plan = scheduler.schedule().unwrap();
    let mut result = answer(&plan, &[11, 12], &[]);
    result.rows[0].outcome = Err(RowFault::BadLogits);
    let news = scheduler.update(result);
    scheduler.check_invariants();
    let fault = FinishReason::Fault(RowFault::BadLogits);
    assert_eq!(news[0].finish, Some(fault));
    let stats = scheduler.stats();
    assert_eq!((stats.num_slots_used, stats.num_blocks_cached), (0, 0));
}

#[test]
fn a_choice_finished_in_flight_keeps_what_was_known() {
    let mut scheduler = scheduler();
    add(&mut scheduler, 1, &[1, 2], sampling(20));
    step(&mut scheduler, &[10], &[11, 12, 13]);
    let plan = scheduler.schedule().unwrap();
    scheduler.finish_choice(RequestId(1), 0);
    assert!(scheduler.update(answer(&plan, &[11, 12], &[])).is_empty());
    scheduler.check_invariants();
    add(&mut scheduler, 2, &[1, 2, 10, 11, 12, 13], sampling(1));
    let plan = scheduler.schedule().unwrap();
    assert_eq!(plan.rows[0].start, 3, "drafts are not known to its client");
    assert_eq!(plan.rows[0].drafting.num_pending, 1);
}

#[test]
fn drafts_share_the_budget_with_prompts() {
    let mut scheduler = scheduler();
    for id in 0..3 {
        add(&mut scheduler, id, &[id as u32, 2], sampling(20));
    }
    step(&mut scheduler, &[10], &[11, 12, 13]);
    add(&mut scheduler, 9, &[9; 30], sampling(20));
    let plan = scheduler.schedule().unwrap();
    // Three first tokens; of the other 13 drafts may have 6, two each, and the prompt 7.
    let lens: Vec<_> = plan.rows.iter().map(|row| row.input_ids.len()).collect();
    assert_eq!(lens, [3, 3, 3, 7]);
    scheduler.update(answer(&plan, &[11, 12, 99], &[]));
    // Without drafts at hand the prompt has all the rest.
    let plan = scheduler.schedule().unwrap();
    let lens: Vec<_> = plan.rows.iter().map(|row| row.input_ids.len()).collect();
    assert_eq!(lens, [1, 1, 1, 13]);
}

// Our own mistakes, and the runner's, end the process.

#[test]
#[should_panic(expected = "no more drafts than were asked for")]
fn a_result_with_drafts_unasked() {
    let mut scheduler = scheduler();
    add(&mut scheduler, 1, &[1, 2], sampling(1));
    let plan = scheduler.schedule().unwrap();
    let mut result = answer(&plan, &[10], &[]);
    let output = RowOutput {
        tokens: vec![10],
        drafts: vec![11],
        ..RowOutput::default()
    };
    result.rows[0].outcome = Ok(output);
    scheduler.update(result);
}

#[test]
#[should_panic(expected = "drafts would change how tokens are computed")]
fn drafts_on_a_grid() {
    let config = SchedulerConfig {
        grid: Some(8),
        ..config()
    };
    Scheduler::new(config, cache());
}
