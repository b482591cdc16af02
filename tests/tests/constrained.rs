//! Guides through the whole engine: random weights under schemas, at temperature 1, with everything
//! that parameters can do against them. Whatever stops parses and validates; a bounded schema stops.

use std::sync::Arc;

use constraint::{
    Compiler, Grammar, GrammarGuide, Guide, Limits, Piece, ThinkingGuide, Vocabulary,
};
use engine::{EngineConfig, EngineHandle};
use nemoserve_tests::answers::{Ask, Model, Said};
use nemoserve_tests::memory::smallest_cache;
use nemoserve_tests::tiny;
use scheduler::{FinishReason, SamplingParams};
use serde_json::{Value, json};

/// Of [`tiny::FEW_LAYERS`].
const VOCAB_SIZE: u32 = 300;
/// Two ways to end, as Nemotron has.
const END_IDS: [u32; 2] = [256, 257];
const CLOSE: u32 = 258;
const CALL: u32 = 259;
const NEWLINE: u32 = b'\n' as u32;
const BUDGET: u32 = 7;

/// Every byte, some longer texts, control tokens, and ids without any meaning.
fn vocabulary() -> Vocabulary {
    let longer = [
        "\":", "\",\"", "\": ", "{\"", "\"}", "true", "null", "12", "0.5", "]}", "ab", "é",
    ];
    let piece = |id: u32| match id {
        0..=255 => Piece::Text(vec![id as u8]),
        256..=259 => Piece::Control(format!("<control_{id}>")),
        _ => longer
            .get(id as usize - 260)
            .map_or(Piece::None, |text| Piece::Text(text.as_bytes().to_vec())),
    };
    Vocabulary::new(VOCAB_SIZE, piece, &END_IDS)
}

struct World {
    model: Model,
    handle: EngineHandle,
    compiler: Compiler,
}

impl World {
    fn new(change: impl Fn(&mut EngineConfig)) -> Self {
        let model = Model::invented(tiny::FEW_LAYERS);
        let mut config = EngineConfig {
            max_num_seqs: 64,
            ..model.config()
        };
        change(&mut config);
        let limits = Limits {
            timeout: std::time::Duration::from_mins(1),
            ..Limits::default()
        };
        Self {
            handle: model.start(config),
            compiler: Compiler::new(Arc::new(vocabulary()), limits),
            model,
        }
    }

    fn guide(&self, schema: &Value, thinks: bool) -> Arc<Guide> {
        let grammar = self
            .compiler
            .compile(&Grammar::JsonSchema(schema.to_string()));
        let grammar = grammar.unwrap_or_else(|error| panic!("{schema}: {error}"));
        let thinking = ThinkingGuide {
            close: vec![CLOSE],
            budget: Some(BUDGET),
            call: Some(CALL),
            newline: Some(NEWLINE),
        };
        Arc::new(Guide {
            thinking: thinks.then_some(thinking),
            grammar: Some(GrammarGuide {
                grammar,
                trigger: None,
            }),
            ..Guide::new(Arc::clone(self.compiler.vocabulary()))
        })
    }

    fn ask(&self, schema: &Value, thinks: bool) -> Ask {
        Ask {
            prompt: (0..20).collect(),
            guide: Some(self.guide(schema, thinks)),
            ..Ask::default()
        }
    }

    /// All at once.
    fn run(&self, asks: &[Ask]) -> Vec<Vec<Said>> {
        self.model.run(&self.handle, asks)
    }

    fn text(&self, tokens: &[u32]) -> String {
        let vocabulary = self.compiler.vocabulary();
        let bytes = tokens.iter().flat_map(|token| vocabulary.text(*token));
        String::from_utf8(bytes.copied().collect()).expect("grammars speak UTF-8")
    }

    /// The answer behind the thought, which must have kept to its budget.
    fn answer(&self, ask: &Ask, said: &Said) -> String {
        if ask
            .guide
            .as_ref()
            .is_none_or(|guide| guide.thinking.is_none())
        {
            return self.text(&said.tokens);
        }
        let close = said.tokens.iter().position(|token| *token == CLOSE);
        let close = close.expect("the thought was closed");
        assert!(close <= BUDGET as usize);
        let answer = &said.tokens[close + 1..];
        self.text(answer.strip_prefix(&[NEWLINE]).unwrap_or(answer))
    }
}

/// All that a client can say against a grammar.
fn obstacles() -> Vec<SamplingParams> {
    let plain = SamplingParams {
        max_tokens: 800,
        temperature: 1.0,
        stop_token_ids: END_IDS.to_vec(),
        ..SamplingParams::default()
    };
    let ban = |texts: &[u8]| {
        texts
            .iter()
            .map(|byte| (u32::from(*byte), -100.0))
            .collect()
    };
    vec![
        plain.clone(),
        SamplingParams {
            logit_bias: ban(b"\"]tn{}"),
            ..plain.clone()
        },
        SamplingParams {
            logit_bias: vec![(256, -100.0), (257, -100.0)],
            min_tokens: 700,
            ..plain.clone()
        },
        SamplingParams {
            frequency_penalty: 2.0,
            presence_penalty: 2.0,
            repetition_penalty: 1.5,
            ..plain.clone()
        },
        SamplingParams {
            top_k: 3,
            top_p: 0.5,
            min_p: 0.2,
            temperature: 2.0,
            ..plain
        },
    ]
}

fn schemas() -> Vec<Value> {
    let list = |items: Value, max: u32| json!({"type": "array", "items": items, "maxItems": max});
    let record = json!({"type": "object", "additionalProperties": false, "required": ["a", "c"],
        "properties": {"a": {"type": "boolean"}, "b": {"type": "null"}, "c": {"enum": ["x", 1.5, [null]]}}});
    vec![
        json!({"type": "boolean"}),
        json!({"const": {"k": ["v", 1, null]}}),
        json!({"enum": ["red", "green", "blue", 7, false]}),
        json!({"type": "integer", "minimum": -20, "maximum": 120}),
        json!({"type": "integer", "multipleOf": 7, "minimum": 0, "maximum": 99}),
        json!({"type": "string", "maxLength": 12}),
        json!({"type": "string", "minLength": 3, "maxLength": 3}),
        json!({"type": "string", "pattern": "^[a-c]{2,4}-\\d{2}$"}),
        json!({"type": "string", "format": "date"}),
        json!({"type": "string", "format": "uuid"}),
        json!({"type": ["string", "null"], "maxLength": 5}),
        list(json!({"type": "boolean"}), 6),
        list(record.clone(), 3),
        record,
        json!({"anyOf": [{"type": "null"}, {"type": "string", "maxLength": 4}, list(json!({"const": 1}), 3)]}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "boolean"}}, "required": ["a"]},
            {"properties": {"b": {"const": "b"}, "a": {}}, "required": ["b"], "additionalProperties": false}]}),
        json!({"$ref": "#/$defs/pair", "$defs": {"pair": {"type": "array", "minItems": 2,
            "prefixItems": [{"$ref": "#/$defs/leaf"}, {"$ref": "#/$defs/leaf"}], "items": false},
            "leaf": {"enum": ["l", "r"]}}}),
    ]
}

#[test]
fn what_stops_validates_whatever_stands_against_it() {
    let world = World::new(|_| {});
    let mut asks = Vec::new();
    for schema in schemas() {
        let judge = Arc::new(
            jsonschema::options()
                .should_validate_formats(true)
                .build(&schema)
                .expect("the schema is sound"),
        );
        for (number, params) in obstacles().into_iter().enumerate() {
            let ask = Ask {
                params: SamplingParams {
                    seed: number as u64 * 100,
                    ..params
                },
                num_choices: 3,
                ..world.ask(&schema, number % 2 == 1)
            };
            asks.push((schema.clone(), Arc::clone(&judge), ask));
        }
    }
    let plain: Vec<Ask> = asks.iter().map(|(_, _, ask)| ask.clone()).collect();
    let mut answers = Vec::new();
    for some in plain.chunks(60) {
        answers.extend(world.run(some));
    }
    for ((schema, judge, ask), said) in asks.iter().zip(answers) {
        assert_eq!(said.len(), 3);
        for said in said {
            let answer = world.answer(ask, &said);
            let stopped =
                matches!(said.finish, Some(FinishReason::Stop(id)) if END_IDS.contains(&id));
            assert!(stopped, "{schema}: {:?}: {answer}", said.finish);
            let value: Value = serde_json::from_str(&answer)
                .unwrap_or_else(|error| panic!("{schema}: {error}: {answer}"));
            assert!(judge.is_valid(&value), "{schema}: {answer}");
        }
    }
}

#[test]
fn beyond_the_end_come_only_ends() {
    let world = World::new(|_| {});
    let schema = json!({"enum": ["a", "bb"]});
    let ask = Ask {
        params: SamplingParams {
            max_tokens: 40,
            temperature: 1.0,
            ..SamplingParams::default()
        },
        num_choices: 4,
        ..world.ask(&schema, false)
    };
    for said in world.run(&[ask]).remove(0) {
        assert_eq!(said.finish, Some(FinishReason::Length));
        assert_eq!(said.tokens.len(), 40);
        let text = world.text(&said.tokens);
        assert!(["\"a\"", "\"bb\""].contains(&text.as_str()), "{text}");
    }
}

#[test]
fn company_and_preemption_change_no_token() {
    let asks = |world: &World| -> Vec<Ask> {
        let schemas = [
            json!({"type": "string", "pattern": "^([a-z]{3}-){20,}$"}),
            json!({"type": "array", "items": {"type": "string", "maxLength": 20}, "minItems": 8}),
            json!({"type": "string", "minLength": 60}),
        ];
        (0..12)
            .map(|number| Ask {
                params: SamplingParams {
                    max_tokens: 90,
                    temperature: 1.0,
                    seed: number as u64,
                    stop_token_ids: END_IDS.to_vec(),
                    ..SamplingParams::default()
                },
                ..world.ask(&schemas[number % 3], number % 2 == 0)
            })
            .collect()
    };
    let small = |config: &mut EngineConfig| {
        config.block_size = 4;
        config.max_model_len = Some(140);
    };
    let roomy = World::new(small);
    let expect: Vec<_> = asks(&roomy)
        .iter()
        .map(|ask| roomy.run(std::slice::from_ref(ask)).remove(0))
        .collect();
    assert_eq!(roomy.run(&asks(&roomy)), expect);

    let num_before = roomy.handle.stats().scheduler.num_preemptions;
    assert_eq!(num_before, 0);
    let tight = World::new(|config| {
        small(config);
        config.cache_memory_bytes = Some(3 * smallest_cache(config));
        config.max_num_seqs = 12;
    });
    assert_eq!(tight.run(&asks(&tight)), expect);
    let stats = tight.handle.stats().scheduler;
    assert!(
        stats.num_preemptions > 0,
        "nothing was preempted: {stats:?}"
    );
}
