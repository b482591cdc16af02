//! The host's memory as the second tier of the prefix cache: what the device has no room for goes
//! there and comes back in a hit, and nobody can tell but by the time it takes.

use engine::{DeviceChoice, DtypeChoice, EngineConfig, KvDtypeChoice, Machine};
use nemoserve_tests::answers::{Answer, Ask, Model, Said, assert_same};
use nemoserve_tests::fixtures;
use nemoserve_tests::memory::smallest_cache;
use scheduler::{FinishReason, SamplingParams, SchedulerStats};

/// Conversations, and turns of each.
type Size = (u32, u32);

const USUAL: Size = (6, 3);
/// Tokens of an answer: more than the four blocks below which a state is not worth moving.
const NUM_NEW: u32 = 4 * BLOCK_SIZE + 5;
const BLOCK_SIZE: u32 = 4;
/// Of the fixtures, or less.
const VOCAB_SIZE: u32 = 150;

/// A turn's own words.
fn words(conversation: u32, turn: u32) -> impl Iterator<Item = u32> {
    let len = if turn == 0 { 37 } else { 9 };
    (0..len).map(move |i| (i * i * 7 + i * 31 + conversation * 17 + turn * 5) % VOCAB_SIZE)
}

/// All conversations take turns, one request at a time: before anybody's next turn comes, everybody
/// else has been here. The answers of each turn, and the engine's numbers at the end.
fn talk(
    model: &Model,
    (num_conversations, num_turns): Size,
    config: EngineConfig,
) -> (Vec<Vec<Answer>>, SchedulerStats) {
    let handle = model.start(config);
    let mut histories = vec![Vec::new(); num_conversations as usize];
    let turns = (0..num_turns).map(|turn| {
        let asked = (0..).zip(&mut histories).map(|(conversation, history)| {
            history.extend(words(conversation, turn));
            let ask = Ask {
                prompt: history.clone(),
                params: SamplingParams {
                    max_tokens: NUM_NEW,
                    temperature: if conversation % 2 == 0 { 0.0 } else { 1.0 },
                    seed: conversation.into(),
                    logprobs: Some(2),
                    ..SamplingParams::default()
                },
                ..Ask::default()
            };
            let answer = model.answers(&handle, &[ask]).remove(0);
            assert_eq!(answer.said[0].finish, Some(FinishReason::Length));
            history.extend(&answer.said[0].tokens);
            answer
        });
        asked.collect()
    });
    let turns = turns.collect();
    (turns, handle.stats().scheduler)
}

fn said(turns: &[Vec<Answer>]) -> Vec<Vec<Said>> {
    let answers = turns.iter().flatten();
    answers.map(|answer| answer.said.clone()).collect()
}

fn cached(turns: &[Vec<Answer>]) -> Vec<u32> {
    let answers = turns.iter().flatten();
    answers.map(|answer| answer.num_cached).collect()
}

/// With room for all on the device, with room for little, and with the host's memory beside that.
fn check(what: &str, model: &Model, size: Size, change: impl Fn(&mut EngineConfig)) {
    let roomy = || {
        let mut config = EngineConfig {
            max_num_batched_tokens: 64,
            block_size: BLOCK_SIZE,
            max_model_len: Some(160),
            ..model.config()
        };
        change(&mut config);
        config
    };
    let (expect, stats) = talk(model, size, roomy());
    assert_eq!(stats.num_evictions, 0, "{what}: there is room for all");
    let mut tight = roomy();
    tight.max_num_seqs = 1;
    tight.cache_memory_bytes = Some(smallest_cache(&tight));

    let (alone, stats) = talk(model, size, tight.clone());
    assert_same(what, &said(&expect), &said(&alone));
    assert!(stats.num_evictions > 0, "{what}: it was no strain");
    assert!(
        cached(&alone) != cached(&expect),
        "{what}: nothing was lost"
    );

    let (beside, stats) = talk(
        model,
        size,
        EngineConfig {
            host_cache_bytes: 32 << 20,
            ..tight
        },
    );
    assert_same(what, &said(&expect), &said(&beside));
    assert!(stats.num_swapped_out > 0, "{what}: {stats:?}");
    assert!(stats.num_swapped_in > 0, "{what}: {stats:?}");
    assert!(
        stats.num_host_slots_cached > 0 && stats.num_host_blocks_cached > 0,
        "{what}: {stats:?}"
    );
    // Whatever found its last turn finds all of it: prompt and answer but for the token drawn last.
    for (turn, answers) in beside.iter().enumerate().skip(1) {
        for (conversation, answer) in answers.iter().enumerate() {
            let place = format!("{what}: turn {turn} of {conversation}");
            assert_eq!(
                answer.num_cached, expect[turn][conversation].num_cached,
                "{place}"
            );
        }
    }
}

#[test]
fn what_comes_back_is_what_went() {
    check("plain", &Model::dummy(), USUAL, |_| {});
}

#[test]
fn in_every_format_of_the_cache() {
    let model = Model::dummy();
    for format in [KvDtypeChoice::Bf16, KvDtypeChoice::Fp8] {
        check(&format!("{format:?}"), &model, USUAL, |config| {
            config.kv_cache_dtype = format;
        });
    }
}

#[test]
fn pending_tokens_and_hidden_vectors_come_along() {
    let model = Model::stored(fixtures::copy("super"));
    for max_drafts in [1, 3] {
        check(&format!("{max_drafts} drafts"), &model, USUAL, |config| {
            config.max_drafts = max_drafts;
        });
    }
}

#[test]
fn every_rank_keeps_its_own() {
    check("two ranks", &Model::dummy(), USUAL, |config| {
        config.tensor_parallel_size = 2;
    });
}

/// The way that a GPU takes, on a Vulkan device. Where the machine has none, on a processor if need
/// be, it says so loudly and checks nothing.
#[test]
fn a_device_gets_back_what_it_gave() {
    if Machine::has_device(DeviceChoice::Vulkan) {
        let model = Model::stored(fixtures::copy("super"));
        return check("vulkan", &model, (3, 2), |config| {
            config.device = DeviceChoice::Vulkan;
            config.dtype = DtypeChoice::F32;
            config.warm_up = false;
        });
    }
    assert!(
        std::env::var_os("NEMOSERVE_REQUIRE_VULKAN").is_none(),
        "no Vulkan device: install mesa-vulkan-drivers"
    );
    eprintln!("SKIPPED: no Vulkan device (install mesa-vulkan-drivers to run the GPU kernels)");
}

#[test]
fn more_than_the_machine_has_is_refused() {
    let model = Model::dummy();
    let config = EngineConfig {
        host_cache_bytes: 1 << 60,
        ..model.config()
    };
    let error = engine::Engine::open(config).err().expect("too much");
    let text = error.to_string();
    assert!(text.contains("host cache memory"), "{text}");
}
