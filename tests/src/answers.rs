//! Requests to a running engine, and what it answers, to the bit.

use std::sync::Arc;

use constraint::Guide;
use engine::{
    DeviceChoice, DtypeChoice, Engine, EngineConfig, EngineHandle, ModelSource, Opened,
    RequestStream, StreamEvent,
};
use scheduler::{FinishReason, Request, SamplingParams, TenantId, TokenLogprobs};
use tempfile::TempDir;
use tokio::runtime::Runtime;

use crate::tiny;

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

impl Ask {
    /// As it goes to an engine.
    pub fn request(&self, handle: &EngineHandle) -> Request {
        Request {
            id: handle.next_request_id(),
            prompt: self.prompt.clone().into(),
            sampling: Arc::new(self.params.clone()),
            num_choices: self.num_choices,
            cache_salt: "".into(),
            boundaries: Arc::default(),
            priority: 0,
            tenant: TenantId::default(),
            tenant_weight: 1,
        }
    }

    /// Its answer is on the way.
    pub fn submit(&self, handle: &EngineHandle) -> RequestStream {
        let submitted = handle.submit(self.request(handle), self.guide.clone());
        submitted.expect("the queue is long enough")
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
    /// Seeded random weights under [`tiny::EVERY_LAYER`].
    pub fn dummy() -> Self {
        Self::invented(tiny::EVERY_LAYER)
    }

    /// Seeded random weights under a configuration.
    pub fn invented(config: &str) -> Self {
        let folder = tiny::folder(config);
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
            // The same on every machine.
            dtype: DtypeChoice::F32,
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
            let streams: Vec<_> = asks.iter().map(|ask| ask.submit(handle)).collect();
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
