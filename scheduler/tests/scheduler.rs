//! The scheduler through its verbs: what rows carry, what news say, what is refused.

use std::sync::Arc;

use scheduler::{
    AdmissionError, ByMiss, CacheConfig, FinishReason, Request, RequestId, RequestOutput, RowFault,
    RowOutput, RowResult, SamplingParams, Scheduler, SchedulerConfig, SchedulerOutput,
    SchedulerStats, SequenceId, Standing, StepId, StepResult, TenantId, TokenLogprobs,
};

fn config() -> SchedulerConfig {
    SchedulerConfig {
        max_num_batched_tokens: 16,
        max_num_seqs: 4,
        max_queue: 2,
        max_model_len: 32,
        grid: None,
        max_drafts: 0,
        ..SchedulerConfig::default()
    }
}

fn cache() -> CacheConfig {
    CacheConfig {
        block_size: 4,
        num_blocks: 17,
        num_slots: 5,
        num_host_slots: 0,
        num_host_blocks: 0,
    }
}

fn scheduler() -> Scheduler {
    Scheduler::new(config(), cache())
}

fn greedy(max_tokens: u32) -> SamplingParams {
    SamplingParams {
        max_tokens,
        ..Default::default()
    }
}

fn request(id: u64, prompt: &[u32], num_choices: u32, sampling: SamplingParams) -> Request {
    Request {
        id: RequestId(id),
        prompt: prompt.into(),
        sampling: Arc::new(sampling),
        num_choices,
        cache_salt: "".into(),
        boundaries: Arc::default(),
        priority: 0,
        tenant: TenantId::default(),
        tenant_weight: 1,
    }
}

/// Everybody samples `token`.
fn answer(plan: &SchedulerOutput, token: u32) -> StepResult {
    let rows = plan.rows.iter().map(|row| {
        let targets = row
            .prompt_logprobs
            .iter()
            .flat_map(|scored| &scored.targets);
        let score = |&token: &u32| TokenLogprobs {
            token,
            logprob: -1.0,
            top: Vec::new(),
        };
        let output = RowOutput {
            tokens: row.sample.iter().map(|_| token).collect(),
            prompt_logprobs: targets.map(score).collect(),
            ..RowOutput::default()
        };
        RowResult {
            sequence: row.sequence,
            outcome: Ok(output),
        }
    });
    StepResult {
        step: plan.step,
        rows: rows.collect(),
    }
}

fn step(scheduler: &mut Scheduler, token: u32) -> Vec<RequestOutput> {
    let plan = scheduler.schedule().expect("there is something to do");
    scheduler.check_invariants();
    let news = scheduler.update(answer(&plan, token));
    scheduler.check_invariants();
    news
}

fn ends(news: &[RequestOutput]) -> Vec<(u64, u32, Option<FinishReason>)> {
    news.iter()
        .map(|output| (output.request.0, output.choice, output.finish))
        .collect()
}

#[test]
fn samples_carry_all_the_sampler_needs() {
    let mut scheduler = scheduler();
    let sampling = SamplingParams {
        seed: u64::MAX,
        presence_penalty: 0.5,
        ..greedy(8)
    };
    scheduler
        .add(request(7, &[1, 2, 3], 2, sampling.clone()))
        .unwrap();
    step(&mut scheduler, 9);
    step(&mut scheduler, 10);
    let plan = scheduler.schedule().unwrap();
    let samples: Vec<_> = plan
        .rows
        .iter()
        .map(|row| row.sample.clone().unwrap())
        .collect();
    assert_eq!(
        (samples[0].seed, samples[1].seed),
        (u64::MAX, 0),
        "wrapping"
    );
    // The second choice starts a step later, from the first one's state.
    for (sample, generated) in samples.into_iter().zip([&[9, 10][..], &[10]]) {
        let index = generated.len() as u32;
        assert_eq!((&*sample.params, sample.index), (&sampling, index));
        let history = sample.history.expect("penalties look at it");
        assert_eq!(
            (&history.prompt[..], &history.generated[..]),
            (&[1, 2, 3][..], generated)
        );
    }
}

#[test]
fn history_goes_only_to_those_who_look() {
    let neutral = greedy(1);
    assert!(!neutral.needs_history());
    assert!(
        SamplingParams {
            repetition_penalty: 1.1,
            ..neutral.clone()
        }
        .needs_history()
    );
    assert!(
        SamplingParams {
            frequency_penalty: -0.1,
            ..neutral.clone()
        }
        .needs_history()
    );
    assert!(
        SamplingParams {
            presence_penalty: 0.1,
            ..neutral
        }
        .needs_history()
    );
    let mut scheduler = scheduler();
    scheduler.add(request(7, &[1], 1, greedy(1))).unwrap();
    let plan = scheduler.schedule().unwrap();
    assert_eq!(plan.rows[0].sample.as_ref().unwrap().history, None);
}

#[test]
fn steps_are_numbered() {
    let mut scheduler = scheduler();
    assert_eq!(scheduler.schedule(), None);
    scheduler.add(request(7, &[1], 1, greedy(2))).unwrap();
    for number in 0..2 {
        let plan = scheduler.schedule().unwrap();
        assert_eq!(plan.step, StepId(number));
        scheduler.update(answer(&plan, 0));
    }
    assert_eq!(scheduler.schedule(), None);
    assert_eq!(scheduler.stats().num_steps, 2);
}

#[test]
fn rows_of_one_token_come_first() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1; 30], 1, greedy(2))).unwrap();
    scheduler.add(request(2, &[2], 1, greedy(2))).unwrap();
    step(&mut scheduler, 0);
    let plan = scheduler.schedule().unwrap();
    let rows: Vec<_> = plan
        .rows
        .iter()
        .map(|row| (row.sequence.0, row.input_ids.len()))
        .collect();
    assert_eq!(rows, [(1, 1), (0, 14)], "the older prompt comes second");
}

#[test]
fn a_stop_id_at_the_limit_is_a_stop() {
    let mut scheduler = scheduler();
    let sampling = SamplingParams {
        stop_token_ids: vec![5],
        ..greedy(2)
    };
    scheduler.add(request(7, &[1], 1, sampling)).unwrap();
    assert_eq!(ends(&step(&mut scheduler, 4)), [(7, 0, None)]);
    let news = step(&mut scheduler, 5);
    assert_eq!(ends(&news), [(7, 0, Some(FinishReason::Stop(5)))]);
    assert_eq!(news[0].tokens, [5], "the stop id is told");
}

#[test]
fn the_context_window_ends_a_choice() {
    let mut scheduler = scheduler();
    scheduler
        .add(request(7, &[1; 30], 1, greedy(u32::MAX)))
        .unwrap();
    while scheduler.stats().num_generation_tokens < 1 {
        step(&mut scheduler, 4);
    }
    assert_eq!(
        ends(&step(&mut scheduler, 4)),
        [(7, 0, Some(FinishReason::Length))]
    );
    assert_eq!(scheduler.stats().num_generation_tokens, 2);
}

#[test]
fn no_tokens_and_no_scores_cost_one_token() {
    let mut scheduler = scheduler();
    scheduler.add(request(7, &[1; 9], 2, greedy(0))).unwrap();
    let plan = scheduler.schedule().unwrap();
    // Nobody waits for a snapshot that nobody will save.
    let rows: Vec<_> = plan
        .rows
        .iter()
        .map(|row| (row.input_ids.len(), row.sample.clone()))
        .collect();
    assert_eq!(rows, [(1, None), (1, None)]);
    let news = scheduler.update(answer(&plan, 0));
    let length = Some(FinishReason::Length);
    assert_eq!(ends(&news), [(7, 0, length), (7, 1, length)]);
    assert_eq!(scheduler.schedule(), None);
}

#[test]
fn scores_stop_before_the_last_token() {
    let mut scheduler = scheduler();
    let sampling = SamplingParams {
        prompt_logprobs: Some(3),
        ..greedy(0)
    };
    scheduler
        .add(request(7, &[11, 12, 13], 1, sampling.clone()))
        .unwrap();
    let plan = scheduler.schedule().unwrap();
    let scored = plan.rows[0].prompt_logprobs.as_ref().unwrap();
    assert_eq!((&scored.targets[..], scored.top), (&[12, 13][..], 3));
    assert_eq!(plan.rows[0].input_ids, [11, 12]);
    let news = scheduler.update(answer(&plan, 0));
    assert_eq!(ends(&news), [(7, 0, Some(FinishReason::Length))]);
    assert_eq!(news[0].prompt_logprobs.len(), 2);

    // A prompt of one token has nothing to score, and still an end.
    scheduler.add(request(8, &[11], 1, sampling)).unwrap();
    let plan = scheduler.schedule().unwrap();
    assert_eq!(
        (plan.rows[0].input_ids.len(), &plan.rows[0].prompt_logprobs),
        (1, &None)
    );
    let news = scheduler.update(answer(&plan, 0));
    assert_eq!(ends(&news), [(8, 0, Some(FinishReason::Length))]);
}

#[test]
fn what_cannot_run_is_refused() {
    let mut scheduler = scheduler();
    let too_long = |len| AdmissionError::PromptTooLong { len, max: 32 };
    let mut add = |len: u32, max_tokens| {
        let request = request(
            u64::from(len),
            &vec![1; len as usize],
            1,
            greedy(max_tokens),
        );
        scheduler.add(request)
    };
    assert_eq!(add(33, 0), Err(too_long(33)));
    assert_eq!(add(32, 1), Err(too_long(32)));
    assert_eq!(add(32, 0), Ok(()));
    assert_eq!(add(31, 1), Ok(()));
    let error = add(30, 1).unwrap_err();
    assert_eq!(error, AdmissionError::QueueFull { max: 2 });
    assert_eq!(error.to_string(), "the queue is full (2 requests wait)");
}

#[test]
fn what_never_fits_is_refused() {
    let small = CacheConfig {
        num_blocks: 4,
        ..cache()
    };
    let add = |len: u32, max_tokens| {
        let request = request(1, &vec![1; len as usize], 1, greedy(max_tokens));
        Scheduler::new(config(), small.clone()).add(request)
    };
    let error = |needed| Err(AdmissionError::NeverFits { needed, total: 3 });
    assert_eq!(add(12, 1), Ok(()), "the sampled token is not computed");
    assert_eq!(add(12, 2), error(4));
    assert_eq!(add(12, 0), Ok(()));
    assert_eq!(add(13, 0), error(4));
    assert_eq!(
        add(1, u32::MAX),
        error(8),
        "32 tokens are the end, and the last is not computed"
    );
    assert_eq!(add(1, 12), Ok(()));
    assert_eq!(add(1, 13), error(4));
}

#[test]
fn only_requests_that_never_ran_fill_the_queue() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1], 3, greedy(4))).unwrap();
    scheduler.add(request(2, &[2], 1, greedy(4))).unwrap();
    assert!(scheduler.add(request(3, &[3], 1, greedy(4))).is_err());
    step(&mut scheduler, 0);
    scheduler.add(request(3, &[3], 1, greedy(4))).unwrap();
    scheduler.add(request(4, &[4], 1, greedy(4))).unwrap();
    assert!(scheduler.add(request(5, &[5], 1, greedy(4))).is_err());
    scheduler.abort(RequestId(3));
    scheduler.add(request(5, &[5], 1, greedy(4))).unwrap();
}

#[test]
fn endings_of_strangers_are_ignored() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1], 1, greedy(4))).unwrap();
    scheduler.abort(RequestId(2));
    scheduler.finish_choice(RequestId(2), 0);
    scheduler.finish_choice(RequestId(1), 1);
    assert_eq!(scheduler.standing(RequestId(1), 0), Some(Standing::Waiting));
    assert_eq!(scheduler.standing(RequestId(1), 1), None);
    assert_eq!(scheduler.standing(RequestId(2), 0), None);
}

#[test]
fn standings() {
    let mut scheduler = Scheduler::new(
        config(),
        CacheConfig {
            num_blocks: 4,
            ..cache()
        },
    );
    let one = |scheduler: &Scheduler, id| scheduler.standing(RequestId(id), 0).unwrap();
    scheduler.add(request(1, &[1; 7], 1, greedy(5))).unwrap();
    scheduler.add(request(2, &[2; 2], 1, greedy(4))).unwrap();
    assert_eq!(one(&scheduler, 2), Standing::Waiting);
    let plan = scheduler.schedule().unwrap();
    assert_eq!(
        (one(&scheduler, 1), one(&scheduler, 2)),
        (Standing::InFlight, Standing::Waiting)
    );
    scheduler.update(answer(&plan, 0));
    assert_eq!(one(&scheduler, 1), Standing::Running);

    let mut scheduler = Scheduler::new(
        config(),
        CacheConfig {
            num_blocks: 4,
            ..cache()
        },
    );
    scheduler.add(request(1, &[1; 3], 1, greedy(7))).unwrap();
    scheduler.add(request(2, &[2; 3], 1, greedy(7))).unwrap();
    while scheduler.stats().num_preemptions == 0 {
        step(&mut scheduler, 0);
    }
    assert_eq!(
        (one(&scheduler, 1), one(&scheduler, 2)),
        (Standing::Running, Standing::Preempted)
    );
}

#[test]
fn a_choice_ends_alone() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1], 2, greedy(2))).unwrap();
    assert_eq!(ends(&step(&mut scheduler, 0)), [(1, 0, None), (1, 1, None)]);
    scheduler.finish_choice(RequestId(1), 0);
    scheduler.check_invariants();
    assert_eq!(
        ends(&step(&mut scheduler, 0)),
        [(1, 1, Some(FinishReason::Length))]
    );
    assert_eq!(scheduler.schedule(), None);
}

#[test]
fn a_fault_ends_all_choices_of_its_request() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1, 2, 3], 2, greedy(9))).unwrap();
    scheduler.add(request(2, &[4], 1, greedy(9))).unwrap();
    step(&mut scheduler, 0);
    step(&mut scheduler, 0);
    let plan = scheduler.schedule().unwrap();
    let mut result = answer(&plan, 0);
    result.rows[0].outcome = Err(RowFault::BadLogits);
    let news = scheduler.update(result);
    scheduler.check_invariants();
    let fault = Some(FinishReason::Fault(RowFault::BadLogits));
    let mut got = ends(&news);
    got.sort_by_key(|&(request, choice, _)| (request, choice));
    assert_eq!(got, [(1, 0, fault), (1, 1, fault), (2, 0, None)]);
    assert_eq!(scheduler.stats().num_slots_used, 1);
}

#[test]
fn a_choice_finished_in_flight_leaves_its_state() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1, 2, 3], 1, greedy(9))).unwrap();
    step(&mut scheduler, 8);
    let plan = scheduler.schedule().unwrap();
    scheduler.finish_choice(RequestId(1), 0);
    assert!(scheduler.update(answer(&plan, 9)).is_empty());
    scheduler.check_invariants();
    assert_eq!(scheduler.schedule(), None);
    // Three tokens of prompt and the one that ran; the one sampled last was dropped.
    scheduler
        .add(request(2, &[1, 2, 3, 8, 5], 1, greedy(1)))
        .unwrap();
    assert_eq!(step(&mut scheduler, 0)[0].num_cached_tokens, 4);
}

#[test]
fn an_abort_in_flight_leaves_nothing() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1, 2, 3], 1, greedy(9))).unwrap();
    step(&mut scheduler, 8);
    let plan = scheduler.schedule().unwrap();
    scheduler.abort(RequestId(1));
    assert_eq!(scheduler.stats().num_slots_used, 1, "the runner is at it");
    assert!(scheduler.update(answer(&plan, 9)).is_empty());
    let stats = scheduler.stats();
    assert_eq!((stats.num_slots_used, stats.num_slots_cached), (0, 0));
}

#[test]
fn scores_without_tokens_go_on_over_chunks() {
    let mut scheduler = scheduler();
    let sampling = SamplingParams {
        prompt_logprobs: Some(0),
        ..greedy(0)
    };
    scheduler.add(request(7, &[1; 25], 1, sampling)).unwrap();
    assert!(step(&mut scheduler, 0).is_empty());
    let news = step(&mut scheduler, 0);
    assert_eq!(ends(&news), [(7, 0, Some(FinishReason::Length))]);
    assert_eq!(news[0].prompt_logprobs.len(), 24);
}

#[test]
fn the_budget_is_shared_out_to_the_last_token() {
    let mut scheduler = Scheduler::new(
        SchedulerConfig {
            max_queue: 9,
            ..config()
        },
        cache(),
    );
    for id in 0..3 {
        scheduler
            .add(request(id, &[id as u32; 10], 1, greedy(2)))
            .unwrap();
    }
    let lens = |scheduler: &mut Scheduler| {
        let plan = scheduler.schedule().unwrap();
        scheduler.update(answer(&plan, 0));
        let rows = plan.rows.iter();
        rows.map(|row| (row.sequence.0, row.input_ids.len()))
            .collect::<Vec<_>>()
    };
    assert_eq!(lens(&mut scheduler), [(0, 10), (1, 6)]);
    assert_eq!(lens(&mut scheduler), [(0, 1), (1, 4), (2, 10)]);
}

#[test]
fn a_fault_after_the_client_left_tells_nobody() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1, 2, 3], 2, greedy(9))).unwrap();
    step(&mut scheduler, 0);
    step(&mut scheduler, 0);
    assert_eq!(scheduler.stats().num_slots_cached, 1);
    let plan = scheduler.schedule().unwrap();
    scheduler.finish_choice(RequestId(1), 0);
    scheduler.check_invariants();
    let mut result = answer(&plan, 0);
    result.rows[0].outcome = Err(RowFault::BadLogits);
    let news = scheduler.update(result);
    scheduler.check_invariants();
    assert_eq!(ends(&news), [(1, 1, None)], "the other choice goes on");
    assert_eq!(
        scheduler.stats().num_slots_cached,
        0,
        "what it went through is suspect"
    );
}

fn no_blocks(no_blocks: u64) -> ByMiss {
    ByMiss {
        no_blocks,
        ..ByMiss::default()
    }
}

#[test]
fn numbers_to_export() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[7; 17], 1, greedy(2))).unwrap();
    step(&mut scheduler, 7);
    step(&mut scheduler, 7);
    scheduler.add(request(2, &[7; 17], 1, greedy(2))).unwrap();
    scheduler.add(request(3, &[9], 1, greedy(2))).unwrap();
    let expect = SchedulerStats {
        num_running: 1,
        num_waiting: 2,
        num_queued: 2,
        num_blocks_used: 5,
        num_blocks_cached: 0,
        num_blocks: 16,
        num_slots_used: 1,
        num_slots_cached: 1,
        num_slots: 4,
        num_steps: 2,
        num_prompt_tokens: 17,
        num_cached_prompt_tokens: 0,
        num_generation_tokens: 1,
        num_preemptions: 0,
        misses: no_blocks(1),
        missed_tokens: no_blocks(16),
        ..SchedulerStats::default()
    };
    assert_eq!(scheduler.stats(), expect);
    step(&mut scheduler, 7);
    let expect = SchedulerStats {
        num_running: 2,
        num_waiting: 0,
        num_queued: 0,
        num_blocks_used: 6,
        num_blocks_cached: 1,
        num_slots_used: 2,
        num_slots_cached: 2,
        num_steps: 3,
        num_prompt_tokens: 35,
        num_cached_prompt_tokens: 16,
        num_generation_tokens: 4,
        // A prompt of one token has nothing to miss, and the other's was a hit as long as can be.
        ..expect
    };
    assert_eq!(scheduler.stats(), expect);
}

#[test]
fn defaults_are_as_documented() {
    let config = SchedulerConfig::default();
    assert_eq!(
        (config.max_num_batched_tokens, config.max_num_seqs),
        (2048, 64)
    );
    assert_eq!((config.max_queue, config.max_model_len), (1024, 262_144));
    assert!(!SamplingParams::default().needs_history());
}

// Our own mistakes, and the runner's, end the process.

#[test]
#[should_panic(expected = "one step at a time")]
fn two_plans_without_a_result() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1], 1, greedy(2))).unwrap();
    scheduler.schedule();
    scheduler.schedule();
}

fn wrong_result(change: impl Fn(&mut StepResult)) {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1], 1, greedy(2))).unwrap();
    let plan = scheduler.schedule().unwrap();
    let mut result = answer(&plan, 0);
    change(&mut result);
    scheduler.update(result);
}

#[test]
#[should_panic(expected = "a result is its plan's")]
fn a_result_of_another_step() {
    wrong_result(|result| result.step = StepId(5));
}

#[test]
#[should_panic(expected = "its plan's rows")]
fn a_result_without_a_row() {
    wrong_result(|result| result.rows.clear());
}

#[test]
#[should_panic(expected = "its plan's order")]
fn a_result_of_another_sequence() {
    wrong_result(|result| result.rows[0].sequence = SequenceId(5));
}

#[test]
#[should_panic(expected = "2 tokens where 1 at most")]
fn a_result_with_two_tokens() {
    wrong_result(|result| {
        let output = RowOutput {
            tokens: vec![1, 2],
            ..RowOutput::default()
        };
        result.rows[0].outcome = Ok(output);
    });
}

#[test]
#[should_panic(expected = "has a prompt")]
fn a_request_without_a_prompt() {
    let _ = scheduler().add(request(1, &[], 1, greedy(1)));
}

#[test]
#[should_panic(expected = "has a choice")]
fn a_request_without_a_choice() {
    let _ = scheduler().add(request(1, &[1], 0, greedy(1)));
}

#[test]
#[should_panic(expected = "is new")]
fn a_request_twice() {
    let mut scheduler = scheduler();
    scheduler.add(request(1, &[1], 1, greedy(1))).unwrap();
    let _ = scheduler.add(request(1, &[1], 1, greedy(1)));
}

#[test]
#[should_panic(expected = "room for a token")]
fn a_step_of_nothing() {
    Scheduler::new(
        SchedulerConfig {
            max_num_batched_tokens: 0,
            ..config()
        },
        cache(),
    );
}

#[test]
#[should_panic(expected = "room for a sequence")]
fn a_step_of_nobody() {
    Scheduler::new(
        SchedulerConfig {
            max_num_seqs: 0,
            ..config()
        },
        cache(),
    );
}
