//! A stream's tokens and log-probabilities are the same bits, whatever else is in the batch and
//! however its prompt was cut.
//!
//! One tiny model with every kind of layer and random weights, many ways to run the same requests;
//! each must reproduce what one request at a time gives.

use engine::{DtypeChoice, Engine, EngineConfig, KvDtypeChoice, StateDtypeChoice, StreamEvent};
use nemoserve_tests::answers::{Ask, Model, Said, assert_same};
use nemoserve_tests::fixtures;
use nemoserve_tests::memory::smallest_cache;
use nemoserve_tests::surgery::Shard;
use scheduler::{FinishReason, RowFault, SamplingParams};

/// Prompts around the sizes where something changes (one token, the convolution's window, a block,
/// a chunk), half of them greedy, half drawn hot.
fn asks() -> Vec<Ask> {
    let lengths = [1, 2, 3, 4, 5, 15, 16, 17, 31, 33, 48, 70];
    (0..)
        .zip(lengths)
        .map(|(at, len): (u32, u32)| Ask {
            prompt: (0..len)
                .map(|i| (i * i * 7 + i * 31 + at * 17) % 300)
                .collect(),
            params: SamplingParams {
                max_tokens: 8 + at % 5,
                temperature: if at % 2 == 0 { 0.0 } else { 1.3 },
                top_p: if at % 4 == 1 { 0.9 } else { 1.0 },
                frequency_penalty: if at % 3 == 0 { 0.2 } else { 0.0 },
                seed: u64::from(at),
                logprobs: Some(3),
                prompt_logprobs: (at % 3 == 1).then_some(2),
                ..SamplingParams::default()
            },
            ..Ask::default()
        })
        .collect()
}

#[test]
fn the_answers_are_worth_comparing() {
    let model = Model::dummy();
    let answers = model.alone(|_| {}, &asks());
    for (ask, said) in asks().iter().zip(&answers) {
        let said = &said[0];
        assert_eq!(said.tokens.len(), ask.params.max_tokens as usize);
        assert_eq!(said.finish, Some(FinishReason::Length));
        assert_eq!(said.logprobs.len(), said.tokens.len());
        let scored = ask
            .params
            .prompt_logprobs
            .map_or(0, |_| ask.prompt.len() - 1);
        assert_eq!(said.prompt_logprobs.len(), scored);
        let logprobs = said
            .logprobs
            .iter()
            .map(|bits| f32::from_bits(bits.logprob));
        for logprob in logprobs {
            assert!(logprob.is_finite() && logprob < 0.0);
        }
    }
    // Different prompts say different things, so a mix-up would show.
    for (at, said) in answers.iter().enumerate() {
        assert!(
            !answers[..at].contains(said),
            "request {at} repeats another"
        );
    }
}

#[test]
fn company_and_order_change_nothing() {
    let model = Model::dummy();
    let asks = asks();
    let expect = model.alone(|_| {}, &asks);
    let handle = model.start(model.config());
    assert_same("all at once", &expect, &model.run(&handle, &asks));

    let reversed: Vec<Ask> = asks.iter().rev().cloned().collect();
    let mut got = model.run(&model.start(model.config()), &reversed);
    got.reverse();
    assert_same("in reverse", &expect, &got);

    for max_num_seqs in [1, 2, 5] {
        let mut config = model.config();
        config.max_num_seqs = max_num_seqs;
        let got = model.run(&model.start(config), &asks);
        assert_same(&format!("{max_num_seqs} at a time"), &expect, &got);
    }
}

#[test]
fn chunks_change_nothing() {
    let model = Model::dummy();
    let asks = asks();
    let expect = model.alone(|_| {}, &asks);
    for budget in [1, 2, 3, 7, 16, 33] {
        let mut config = model.config();
        config.max_num_seqs = budget.min(6);
        config.max_num_batched_tokens = budget;
        let got = model.run(&model.start(config), &asks);
        assert_same(&format!("{budget} tokens per step"), &expect, &got);
    }
}

/// The size of a block is part of the configuration and may move a bit; company may not.
#[test]
fn blocks_of_any_size_hold_apart() {
    let model = Model::dummy();
    let asks = asks();
    for block_size in [1, 3, 64] {
        let change = |config: &mut EngineConfig| config.block_size = block_size;
        let expect = model.alone(change, &asks);
        let mut config = model.config();
        change(&mut config);
        config.max_num_batched_tokens = 21;
        let got = model.run(&model.start(config), &asks);
        assert_same(&format!("blocks of {block_size}"), &expect, &got);
    }
}

#[test]
fn threads_change_nothing() {
    let model = Model::dummy();
    let asks = asks();
    let expect = model.alone(|_| {}, &asks);
    let mut config = model.config();
    config.threads = Some(5);
    let got = model.run(&model.start(config), &asks);
    assert_same("five threads", &expect, &got);
}

/// Ranks sum in one order, whoever comes last: within one number of them everything above holds too.
#[test]
fn ranks_are_as_repeatable() {
    let model = Model::dummy();
    let asks = asks();
    let single = model.alone(|_| {}, &asks);
    for experts in [false, true] {
        let two = |config: &mut EngineConfig| {
            config.tensor_parallel_size = 2;
            config.expert_parallel = experts;
        };
        let expect = model.alone(two, &asks);
        assert!(expect != single, "one rank did it all");
        let change = |also: &dyn Fn(&mut EngineConfig)| {
            let mut config = model.config();
            two(&mut config);
            also(&mut config);
            model.start(config)
        };
        let got = model.run(&change(&|_| {}), &asks);
        assert_same("all at once", &expect, &got);
        for budget in [1, 7, 33] {
            let got = model.run(
                &change(&|config| {
                    config.max_num_seqs = budget.min(6);
                    config.max_num_batched_tokens = budget;
                }),
                &asks,
            );
            assert_same(&format!("{budget} tokens per step"), &expect, &got);
        }
        let got = model.run(&change(&|config| config.threads = Some(5)), &asks);
        assert_same("two threads each", &expect, &got);
    }
}

#[test]
fn ranks_survive_preemption() {
    let model = Model::dummy();
    let mut asks = asks();
    for ask in &mut asks {
        ask.params.max_tokens = 60;
    }
    let small = |config: &mut EngineConfig| {
        config.tensor_parallel_size = 2;
        config.block_size = 4;
        config.max_model_len = Some(140);
    };
    let expect = model.alone(small, &asks);
    let mut config = model.config();
    small(&mut config);
    config.cache_memory_bytes = Some(smallest_cache(&config));
    let handle = model.start(config);
    assert_same("a tiny cache", &expect, &model.run(&handle, &asks));
    let stats = handle.stats().scheduler;
    assert!(
        stats.num_preemptions > 0,
        "nothing was preempted: {stats:?}"
    );
}

#[test]
fn bf16_arithmetic_is_as_repeatable() {
    let model = Model::dummy();
    let asks = asks();
    let bf16 = |config: &mut EngineConfig| config.dtype = DtypeChoice::Bf16;
    let expect = model.alone(bf16, &asks);
    assert!(expect != model.alone(|_| {}, &asks), "bf16 is not in use");
    for budget in [7, 512] {
        let mut config = model.config();
        bf16(&mut config);
        config.max_num_seqs = budget.min(16);
        config.max_num_batched_tokens = budget;
        let got = model.run(&model.start(config), &asks);
        assert_same(&format!("{budget} tokens per step"), &expect, &got);
    }
}

#[test]
fn an_fp8_cache_is_as_repeatable() {
    let model = Model::dummy();
    let asks = asks();
    let fp8 = |config: &mut EngineConfig| config.kv_cache_dtype = KvDtypeChoice::Fp8;
    let expect = model.alone(fp8, &asks);
    assert!(expect != model.alone(|_| {}, &asks), "fp8 is not in use");
    for budget in [1, 7, 33, 512] {
        let mut config = model.config();
        fp8(&mut config);
        config.max_num_seqs = budget.min(16);
        config.max_num_batched_tokens = budget;
        let got = model.run(&model.start(config), &asks);
        assert_same(&format!("{budget} tokens per step"), &expect, &got);
    }
}

fn in_halves(config: &mut EngineConfig) {
    config.mamba_ssm_cache_dtype = StateDtypeChoice::F16;
}

#[test]
fn a_half_state_is_as_repeatable() {
    let model = Model::dummy();
    let asks = asks();
    let expect = model.alone(in_halves, &asks);
    assert!(
        expect != model.alone(|_| {}, &asks),
        "halves are not in use"
    );
    for budget in [1, 7, 33, 512] {
        let mut config = model.config();
        in_halves(&mut config);
        config.max_num_seqs = budget.min(16);
        config.max_num_batched_tokens = budget;
        let got = model.run(&model.start(config), &asks);
        assert_same(&format!("{budget} tokens per step"), &expect, &got);
    }
}

#[test]
fn a_half_state_has_half_the_bytes() {
    let model = Model::dummy();
    let slot = |change: fn(&mut EngineConfig)| {
        let mut config = model.config();
        change(&mut config);
        let opened = Engine::open(config).expect("it fits");
        let footprint = opened.footprint().slot_bytes;
        (opened.info().slot_bytes, footprint)
    };
    // Three layers of 6 heads of 12 channels and 16 columns; convolutions stay f32.
    let saved = 2 * 3 * (6 * 12 * 16);
    let ((whole, whole_step), (half, half_step)) = (slot(|_| {}), slot(in_halves));
    assert_eq!((whole - half, whole_step - half_step), (saved, saved));
}

#[test]
fn an_fp8_cache_holds_more_tokens() {
    let model = Model::dummy();
    let num_blocks = |kv_cache_dtype| {
        let config = EngineConfig {
            kv_cache_dtype,
            cache_memory_bytes: Some(1 << 20),
            max_num_seqs: 64,
            ..model.config()
        };
        let opened = Engine::open(config).expect("it fits");
        (opened.info().num_blocks, opened.info().block_bytes)
    };
    let (f32_blocks, f32_bytes) = num_blocks(KvDtypeChoice::F32);
    for (choice, share) in [(KvDtypeChoice::Bf16, 2), (KvDtypeChoice::Fp8, 4)] {
        let (blocks, bytes) = num_blocks(choice);
        assert_eq!(bytes * share, f32_bytes);
        assert!(
            blocks >= f32_blocks * share as u32,
            "{blocks}, {f32_blocks}"
        );
    }
}

#[test]
fn preemption_changes_nothing() {
    check_preemption(|_| {}, 140);
}

#[test]
fn preemption_changes_nothing_in_an_fp8_cache() {
    // A quarter of the bytes: four times the tokens until memory is short of blocks.
    check_preemption(|config| config.kv_cache_dtype = KvDtypeChoice::Fp8, 4 * 140);
}

#[test]
fn preemption_changes_nothing_in_a_half_state() {
    check_preemption(in_halves, 140);
}

fn check_preemption(change: fn(&mut EngineConfig), max_model_len: u32) {
    let model = Model::dummy();
    // Long answers in a cache that holds few of them.
    let mut asks = asks();
    for ask in &mut asks {
        ask.params.max_tokens = max_model_len * 3 / 7;
    }
    let small = |config: &mut EngineConfig| {
        config.block_size = 4;
        config.max_model_len = Some(max_model_len);
        change(config);
    };
    let expect = model.alone(small, &asks);
    let mut config = model.config();
    small(&mut config);
    config.cache_memory_bytes = Some(smallest_cache(&config));
    let handle = model.start(config);
    assert_same("a tiny cache", &expect, &model.run(&handle, &asks));
    let stats = handle.stats().scheduler;
    assert!(
        stats.num_preemptions > 0,
        "nothing was preempted: {stats:?}"
    );
}

#[test]
fn several_choices_are_those_of_several_seeds() {
    let model = Model::dummy();
    let with_choices = |num_choices: u32| -> Vec<Ask> {
        asks()
            .into_iter()
            .map(|mut ask| {
                ask.num_choices = num_choices;
                ask.params.temperature = 1.0;
                // Scored once, with the first choice.
                ask.params.prompt_logprobs = None;
                ask
            })
            .collect()
    };
    let mut single = with_choices(1);
    let mut expect: Vec<Vec<Said>> = vec![Vec::new(); single.len()];
    for _ in 0..3 {
        for (expect, said) in expect.iter_mut().zip(model.alone(|_| {}, &single)) {
            expect.extend(said);
        }
        for ask in &mut single {
            ask.params.seed += 1;
        }
    }
    let got = model.run(&model.start(model.config()), &with_choices(3));
    assert_same("three choices", &expect, &got);
}

#[test]
fn what_is_cached_changes_nothing() {
    check_cache_hits(|_| {});
}

#[test]
fn what_is_cached_changes_nothing_in_a_half_state() {
    check_cache_hits(in_halves);
}

fn check_cache_hits(change: fn(&mut EngineConfig)) {
    let model = Model::dummy();
    // Two turns: the second prompt is the first with its answer and more behind.
    let first = asks();
    let expect_first = model.alone(change, &first);
    let second: Vec<Ask> = first
        .iter()
        .zip(&expect_first)
        .map(|(ask, said)| {
            let mut ask = ask.clone();
            ask.prompt.extend(&said[0].tokens);
            ask.prompt.extend([9, 8, 7]);
            ask.params.prompt_logprobs = None;
            ask
        })
        .collect();
    let expect_second = model.alone(change, &second);
    let mut config = model.config();
    change(&mut config);
    let handle = model.start(config);
    assert_same("first turn", &expect_first, &model.run(&handle, &first));
    assert_same("second turn", &expect_second, &model.run(&handle, &second));
    assert_same("asked again", &expect_second, &model.run(&handle, &second));
    let stats = handle.stats().scheduler;
    assert!(stats.num_cached_prompt_tokens > 0, "no hit: {stats:?}");
}

#[test]
fn drafts_change_nothing() {
    check_drafts(|_| {});
}

#[test]
fn drafts_change_nothing_in_a_half_state() {
    check_drafts(in_halves);
}

fn check_drafts(change: fn(&mut EngineConfig)) {
    let model = Model::dummy();
    let asks = asks();
    let expect = model.alone(change, &asks);
    for (max_drafts, max_num_batched_tokens) in [(1, 512), (3, 19), (5, 512)] {
        let mut config = EngineConfig {
            max_drafts,
            max_num_batched_tokens,
            ..model.config()
        };
        change(&mut config);
        let handle = model.start(config);
        let what = format!("{max_drafts} drafts");
        assert_same(&what, &expect, &model.run(&handle, &asks));
        assert_same("asked again", &expect, &model.run(&handle, &asks));
        let stats = handle.stats().scheduler;
        assert!(stats.num_draft_tokens > 100, "{stats:?}");
        assert!(stats.num_cached_prompt_tokens > 0, "{stats:?}");
    }
}

/// A token whose embedding is not a number fails its own request, wherever its state and blocks lay
/// and whoever gets them next.
#[test]
fn a_spoilt_request_spoils_no_other() {
    let model = Model::stored(fixtures::copy("nano3-30b"));
    let path = model.folder.path().join("model.safetensors");
    let mut shard = Shard::read(&path);
    let table = shard.bytes("backbone.embeddings.weight");
    let row_bytes = table.len() / VOCAB_SIZE as usize;
    // All bits set is not a number in every element type.
    table[SPOILT as usize * row_bytes..][..row_bytes].fill(0xff);
    shard.write(&path);
    let stored = |config: &mut EngineConfig| config.block_size = 4;
    let mut banned = asks();
    for ask in &mut banned {
        for token in &mut ask.prompt {
            *token = *token % VOCAB_SIZE % SPOILT;
        }
        ask.params.logit_bias = vec![(SPOILT, -100.0)];
    }
    let expect = model.alone(stored, &banned);

    let mut config = model.config();
    stored(&mut config);
    config.max_model_len = Some(140);
    config.cache_memory_bytes = Some(smallest_cache(&config));
    let handle = model.start(config);
    let spoilt = |at: usize| {
        let mut prompt: Vec<u32> = (0..20).map(|i| i * 13 % SPOILT).collect();
        prompt[at] = SPOILT;
        Ask {
            prompt,
            ..Ask::default()
        }
    };
    let mut streams: Vec<_> = (0..20).map(|at| spoilt(at).submit(&handle)).collect();
    assert_same("beside a fault", &expect, &model.run(&handle, &banned));
    for stream in &mut streams {
        let event = model.runtime.block_on(stream.next());
        let Some(StreamEvent::Output(output)) = event else {
            panic!("{event:?}");
        };
        let fault = FinishReason::Fault(RowFault::BadLogits);
        assert_eq!(output.finish, Some(fault));
        assert!(output.tokens.is_empty());
    }
    assert_same("after faults", &expect, &model.run(&handle, &banned));
}

/// Of the fixture.
const VOCAB_SIZE: u32 = 157;
/// The token without an embedding.
const SPOILT: u32 = VOCAB_SIZE - 1;
