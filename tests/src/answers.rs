//! Requests to a running engine, and what it answers, to the bit.

use std::sync::Arc;

use constraint::Guide;
use engine::{DeviceChoice, Engine, EngineConfig, EngineHandle, ModelSource, Opened, StreamEvent};
use scheduler::{FinishReason, Request, SamplingParams, TenantId, TokenLogprobs};
use tempfile::TempDir;
use tokio::runtime::Runtime;

/// Every kind of layer, tiny.
const CONFIG: &str = r#"{
    "model_type": "nemotron_h",
    "hybrid_override_pattern": "ME*-MEM*E",
    "hidden_size": 48, "vocab_size": 300, "max_position_embeddings": 4096,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
    "mamba_num_heads": 6, "mamba_head_dim": 12, "n_groups": 2, "ssm_state_size": 16, "conv_kernel": 4,
    "n_routed_experts": 12, "num_experts_per_tok": 3, "n_group": 3, "topk_group": 2,
    "moe_intermediate_size": 20, "moe_latent_size": 24, "routed_scaling_factor": 2.5,
    "moe_shared_expert_intermediate_size": 40, "n_shared_experts": 1,
    "intermediate_size": 64, "time_step_limit": [0.0, Infinity], "num_nextn_predict_layers": 1
}"#;

/// What one choice says, floats as bits.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Said {
    /// Its tokens.
    pub tokens: Vec<u32>,
    /// One per token, if asked for.
    pub logprobs: Vec<Bits>,
    /// One per prompt token but the first, if asked for.
    pub prompt_logprobs: Vec<Bits>,
    /// Why it ended.
    pub finish: Option<FinishReason>,
}

/// [`TokenLogprobs`], exactly.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bits {
    /// The token.
    pub token: u32,
    /// Of the token.
    pub logprob: u32,
    /// The most likely ones.
    pub top: Vec<(u32, u32)>,
}

impl From<&TokenLogprobs> for Bits {
    fn from(from: &TokenLogprobs) -> Self {
        Self {
            token: from.token,
            logprob: from.logprob.to_bits(),
            top: from.top.iter().map(|(t, p)| (*t, p.to_bits())).collect(),
        }
    }
}

/// A request without its id.
#[derive(Clone)]
pub struct Ask {
    /// Token ids.
    pub prompt: Vec<u32>,
    /// How to draw.
    pub params: SamplingParams,
    /// Answers wanted.
    pub num_choices: u32,
    /// What they obey.
    pub guide: Option<Arc<Guide>>,
}

impl Default for Ask {
    fn default() -> Self {
        Self {
            prompt: Vec::new(),
            params: SamplingParams::default(),
            num_choices: 1,
            guide: None,
        }
    }
}

/// What came back, and what it cost.
#[derive(Clone, Debug, Default)]
pub struct Answer {
    /// By choice.
    pub said: Vec<Said>,
    /// Prompt tokens that the first choice found in the cache.
    pub num_cached: u32,
}

/// A model folder of which engines can be started.
pub struct Model {
    /// Where it lies.
    pub folder: TempDir,
    source: ModelSource,
    /// Drives the streams.
    pub runtime: Runtime,
}

impl Model {
    /// Seeded random weights under [`CONFIG`].
    pub fn dummy() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        std::fs::write(folder.path().join("config.json"), CONFIG).expect("it can be written to");
        let source = ModelSource::Dummy {
            folder: folder.path().to_owned(),
            seed: 11,
        };
        Self::new(folder, source)
    }

    /// What lies in a folder.
    pub fn stored(folder: TempDir) -> Self {
        let source = ModelSource::Folder(folder.path().to_owned());
        Self::new(folder, source)
    }

    /// The demo model, whose drafts come true.
    pub fn demo() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        Self::new(folder, nemoserve::demo::source())
    }

    fn new(folder: TempDir, source: ModelSource) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .build()
            .expect("a runtime");
        Self {
            folder,
            source,
            runtime,
        }
    }

    /// With room for all, on the CPU.
    pub fn config(&self) -> EngineConfig {
        EngineConfig {
            device: DeviceChoice::Cpu,
            max_num_seqs: 16,
            max_num_batched_tokens: 512,
            block_size: 16,
            cache_memory_bytes: Some(64 << 20),
            ..EngineConfig::new(self.source.clone())
        }
    }

    /// Waits until it is ready.
    pub fn start(&self, config: EngineConfig) -> EngineHandle {
        let handle = Engine::open(config)
            .and_then(Opened::start)
            .expect("the model is good");
        self.runtime.block_on(handle.ready()).expect("it loads");
        handle
    }

    /// All at once, in this order; what each choice of each said.
    pub fn run(&self, handle: &EngineHandle, asks: &[Ask]) -> Vec<Vec<Said>> {
        let answers = self.answers(handle, asks).into_iter();
        answers.map(|answer| answer.said).collect()
    }

    /// The same, and what it cost.
    pub fn answers(&self, handle: &EngineHandle, asks: &[Ask]) -> Vec<Answer> {
        self.runtime.block_on(async {
            let streams: Vec<_> = asks
                .iter()
                .map(|ask| {
                    let request = Request {
                        id: handle.next_request_id(),
                        prompt: ask.prompt.clone().into(),
                        sampling: Arc::new(ask.params.clone()),
                        num_choices: ask.num_choices,
                        cache_salt: "".into(),
                        boundaries: Arc::default(),
                        priority: 0,
                        tenant: TenantId::default(),
                        tenant_weight: 1,
                    };
                    let guide = ask.guide.clone();
                    handle
                        .submit(request, guide)
                        .expect("the queue is long enough")
                })
                .collect();
            let mut answers = Vec::new();
            for (mut stream, ask) in streams.into_iter().zip(asks) {
                let mut answer = Answer {
                    said: vec![Said::default(); ask.num_choices as usize],
                    num_cached: 0,
                };
                while let Some(event) = stream.next().await {
                    let StreamEvent::Output(output) = event else {
                        panic!("{event:?}");
                    };
                    if output.choice == 0 {
                        answer.num_cached = output.num_cached_tokens;
                    }
                    let said = &mut answer.said[output.choice as usize];
                    said.tokens.extend(&output.tokens);
                    said.logprobs.extend(output.logprobs.iter().map(Bits::from));
                    let prompt = output.prompt_logprobs.iter().map(Bits::from);
                    said.prompt_logprobs.extend(prompt);
                    assert_eq!(said.finish, None, "nothing follows the end");
                    said.finish = output.finish;
                }
                let ended = answer.said.iter().all(|said| said.finish.is_some());
                assert!(ended, "every choice ends");
                answers.push(answer);
            }
            answers
        })
    }

    /// One at a time, each in an engine of its own.
    pub fn alone(&self, change: impl Fn(&mut EngineConfig), asks: &[Ask]) -> Vec<Vec<Said>> {
        asks.iter()
            .map(|ask| {
                let mut config = self.config();
                change(&mut config);
                let handle = self.start(config);
                let said = self.run(&handle, std::slice::from_ref(ask));
                said.into_iter().next().expect("one request, one answer")
            })
            .collect()
    }
}

/// The same bits, or where they part first.
#[track_caller]
pub fn assert_same(what: &str, expect: &[Vec<Said>], got: &[Vec<Said>]) {
    assert_eq!(expect.len(), got.len());
    for (at, (expect, got)) in expect.iter().zip(got).enumerate() {
        for (choice, (expect, got)) in expect.iter().zip(got).enumerate() {
            let part = |name, same: bool| {
                assert!(
                    same,
                    "{what}: the {name} of request {at} choice {choice} differ"
                );
            };
            part("tokens", expect.tokens == got.tokens);
            part("logprobs", expect.logprobs == got.logprobs);
            part(
                "prompt logprobs",
                expect.prompt_logprobs == got.prompt_logprobs,
            );
            part("endings", expect.finish == got.finish);
        }
        assert_eq!(expect.len(), got.len(), "{what}: choices of request {at}");
    }
}
