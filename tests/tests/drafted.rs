//! Drafts through the whole engine, with everything that a request can ask for beside them: the tokens,
//! log-probabilities and endings of plain decoding, in any company, and however often its requests yield.
//! On the demo, many of whose drafts come true. Stop strings are the server's: `demo/pressure.rs`.

use std::sync::Arc;
use std::time::Duration;

use constraint::{Compiler, Grammar, GrammarGuide, Guide, Limits, ThinkingGuide, Vocabulary};
use engine::EngineConfig;
use nemoserve::args::ServeArgs;
use nemoserve::config::Settings;
use nemoserve::text::Tokenizer;
use nemoserve_tests::answers::{Ask, Model, Said, assert_same};
use nemoserve_tests::memory::{one_context, smallest_cache};
use scheduler::{FinishReason, SamplingParams};
use serde_json::{Value, json};

const BLOCK_SIZE: u32 = 4;
const MAX_MODEL_LEN: u32 = 160;

struct Bench {
    model: Model,
    tokenizer: Arc<Tokenizer>,
    compiler: Compiler,
    end_ids: Vec<u32>,
}

impl Bench {
    fn new() -> Self {
        let settings = Settings::new(&ServeArgs::default()).expect("the demo is complete");
        let tokenizer = settings.tokenizer().expect("valid").expect("it has one");
        let end_ids = vec![tokenizer.added_id("<|im_end|>").expect("turns end")];
        let num_ids = tokenizer.num_ids() as u32;
        let vocabulary = Vocabulary::new(num_ids, |id| tokenizer.piece_for_grammars(id), &end_ids);
        let limits = Limits {
            timeout: Duration::from_mins(1),
            ..Limits::default()
        };
        Self {
            model: Model::demo(),
            compiler: Compiler::new(Arc::new(vocabulary), limits),
            tokenizer,
            end_ids,
        }
    }

    fn ask(&self, question: &str, params: SamplingParams) -> Ask {
        let text = format!(
            "<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n<think></think>"
        );
        let prompt = self.tokenizer.encode_special(&text, false);
        Ask {
            prompt: prompt.expect("it is text"),
            params,
            ..Ask::default()
        }
    }

    fn guide(&self, schema: &Value, thinking: Option<ThinkingGuide>) -> Arc<Guide> {
        let grammar = Grammar::JsonSchema(schema.to_string());
        let grammar = self.compiler.compile(&grammar).expect("it is sound");
        Arc::new(Guide {
            thinking,
            grammar: Some(GrammarGuide {
                grammar,
                trigger: None,
            }),
            ..Guide::new(Arc::clone(self.compiler.vocabulary()))
        })
    }

    fn asks(&self) -> Vec<Ask> {
        let greedy = SamplingParams {
            max_tokens: 60,
            stop_token_ids: self.end_ids.clone(),
            logprobs: Some(2),
            ..SamplingParams::default()
        };
        let drawn = SamplingParams {
            temperature: 0.9,
            seed: 5,
            ..greedy.clone()
        };
        let city = json!({"type": "object", "additionalProperties": false, "required": ["city", "big"],
            "properties": {"city": {"type": "string", "maxLength": 20}, "big": {"type": "boolean"}}});
        let list =
            json!({"type": "array", "maxItems": 4, "items": {"enum": ["red", "green", 7, null]}});
        let code = json!({"type": "string", "pattern": "^([A-Z]{2}-\\d{2};){3,6}$"});
        let close = self.tokenizer.added_id("</think>").expect("thoughts end");
        let thinking = ThinkingGuide {
            close: vec![close],
            budget: Some(9),
            call: None,
            newline: None,
        };
        let story = "Tell me a short story.";
        let peru = "What is the capital of Peru?";
        let dot = self.tokenizer.encode(".", false).expect("it is text");
        vec![
            self.ask(peru, greedy.clone()),
            Ask {
                guide: Some(self.guide(&city, None)),
                ..self.ask(peru, greedy.clone())
            },
            Ask {
                guide: Some(self.guide(&list, None)),
                ..self.ask("Name three colours.", drawn.clone())
            },
            Ask {
                guide: Some(self.guide(&code, Some(thinking))),
                num_choices: 2,
                ..self.ask("Which code is it?", drawn.clone())
            },
            // Ends at a token in the midst of what was guessed.
            self.ask(
                story,
                SamplingParams {
                    stop_token_ids: [self.end_ids.clone(), dot].concat(),
                    min_tokens: 12,
                    ..greedy.clone()
                },
            ),
            Ask {
                num_choices: 3,
                ..self.ask(story, drawn.clone())
            },
            self.ask(
                story,
                SamplingParams {
                    repetition_penalty: 1.2,
                    frequency_penalty: 0.5,
                    presence_penalty: 0.3,
                    ..greedy.clone()
                },
            ),
            self.ask(
                "Who are you?",
                SamplingParams {
                    top_p: 0.9,
                    top_k: 20,
                    min_p: 0.02,
                    logit_bias: vec![(self.end_ids[0], -2.0), (300, 1.5)],
                    prompt_logprobs: Some(1),
                    ..drawn
                },
            ),
            // Goes on behind the end, to the last token that it may have.
            self.ask(
                "Hello!",
                SamplingParams {
                    stop_token_ids: Vec::new(),
                    ..greedy
                },
            ),
        ]
    }

    fn config(&self, max_drafts: u32) -> EngineConfig {
        EngineConfig {
            max_drafts,
            block_size: BLOCK_SIZE,
            max_model_len: Some(MAX_MODEL_LEN),
            ..self.model.config()
        }
    }

    /// One at a time, without drafts.
    fn plain(&self, asks: &[Ask]) -> Vec<Vec<Said>> {
        let handle = self.model.start(self.config(0));
        let each = asks.chunks(1);
        each.flat_map(|ask| self.model.run(&handle, ask)).collect()
    }
}

#[test]
fn whatever_is_asked_for() {
    let bench = Bench::new();
    let asks = bench.asks();
    let expect = bench.plain(&asks);
    let stops = expect.iter().flatten();
    let stops = stops.filter(|said| matches!(said.finish, Some(FinishReason::Stop(_))));
    assert!(stops.count() >= 6, "most answers come to an end");
    for max_drafts in [1, 3] {
        let handle = bench.model.start(bench.config(max_drafts));
        let what = format!("{max_drafts} drafts");
        assert_same(&what, &expect, &bench.model.run(&handle, &asks));
        let stats = handle.stats().scheduler;
        let accepted: u64 = stats.num_accepted_by_position.iter().sum();
        assert!(4 * accepted > stats.num_draft_tokens, "{what}: {stats:?}");

        // Again, from what is cached, though that lie beside a state.
        let again = bench.model.answers(&handle, &asks);
        let said: Vec<Vec<Said>> = again.iter().map(|answer| answer.said.clone()).collect();
        assert_same(&format!("{what}, again"), &expect, &said);
        let hits = again.iter().filter(|answer| answer.num_cached > 0);
        assert!(
            hits.count() + 2 >= asks.len(),
            "{what}: all but the scored one hit"
        );
    }
}

#[test]
fn in_chunks_and_one_after_the_other() {
    let bench = Bench::new();
    let mut asks = bench.asks();
    for ask in &mut asks {
        ask.params.max_tokens = 90;
    }
    let expect = bench.plain(&asks);
    let mut config = EngineConfig {
        max_num_batched_tokens: 19,
        ..bench.config(2)
    };
    // One state slot.
    config.cache_memory_bytes = Some(smallest_cache(&config));
    let handle = bench.model.start(config);
    assert_same(
        "in little memory",
        &expect,
        &bench.model.run(&handle, &asks),
    );
    let stats = handle.stats().scheduler;
    let accepted: u64 = stats.num_accepted_by_position.iter().sum();
    assert!(accepted > 0 && stats.num_evictions > 0, "{stats:?}");
}

/// The blocks of one context for twelve choices: grammars, thoughts, histories and scores go on where
/// they were when their choice comes back, from its snapshot, from the host's copy of that, or from its
/// tokens alone.
#[test]
fn however_often_they_yield() {
    let bench = Bench::new();
    let mut asks = bench.asks();
    for ask in &mut asks {
        ask.params.max_tokens = 90;
    }
    let expect = bench.plain(&asks);
    for (max_drafts, host_cache_bytes, num_slots) in [(1, 0, 40), (3, 0, 15), (3, 64 << 20, 40)] {
        let config = EngineConfig {
            host_cache_bytes,
            max_num_seqs: 12,
            max_num_batched_tokens: 64,
            ..bench.config(max_drafts)
        };
        let handle = bench.model.start(one_context(config, num_slots));
        let what = format!("{max_drafts} drafts, {host_cache_bytes} bytes of the host");
        assert_same(&what, &expect, &bench.model.run(&handle, &asks));
        let stats = handle.stats().scheduler;
        assert!(stats.num_preemptions >= 10, "{what}: {stats:?}");
        let accepted: u64 = stats.num_accepted_by_position.iter().sum();
        assert!(accepted > 50, "{what}: {stats:?}");
        assert_eq!(
            stats.num_swapped_in > 0,
            host_cache_bytes > 0,
            "{what}: {stats:?}"
        );
    }
}
