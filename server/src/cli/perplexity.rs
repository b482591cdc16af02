//! How well a model expects a text.

use std::path::Path;
use std::sync::Arc;

use engine::{Engine, EngineConfig, EngineHandle, ModelSource, StreamEvent};
use scheduler::{FinishReason, Request, SamplingParams, TenantId};

use crate::text::Tokenizer;

/// Tokens that are scored in one go; a longer document begins anew, knowing nothing.
const WINDOW: usize = 2048;

/// Windows that are scored at once.
const NUM_AT_ONCE: usize = 8;

/// Stands between documents: a form feed.
const BETWEEN: char = '\u{c}';

/// What stands before it in a document is read and not scored: a vertical tab.
const BEGIN: char = '\u{b}';

/// A text as tokens.
pub(super) struct Document {
    ids: Vec<u32>,
    /// The first token that counts.
    first: usize,
}

/// Sums over every token that counts but the first of each window, which nothing announces.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Perplexity {
    /// In nats.
    sum: f64,
    pub(super) num_tokens: usize,
}

/// The documents of a text file as token ids, by the tokenizer of a model folder. The spellings of
/// its special tokens are those tokens.
pub(super) fn documents(path: &Path, model: &Path) -> Result<Vec<Document>, String> {
    let in_file =
        |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| in_file(path, &error))?;
    let tokenizer_path = model.join("tokenizer.json");
    let json = std::fs::read(&tokenizer_path).map_err(|error| in_file(&tokenizer_path, &error))?;
    let tokenizer =
        Tokenizer::from_bytes(&json).map_err(|error| in_file(&tokenizer_path, &error))?;
    let encode = |text: &str| {
        let ids = tokenizer.encode_special(text, false);
        ids.map_err(|error| in_file(path, &error))
    };
    let mut documents = Vec::new();
    for document in text.split(BETWEEN) {
        let (read, scored) = document.split_once(BEGIN).unwrap_or(("", document));
        let mut ids = encode(read)?;
        let first = ids.len();
        ids.extend(encode(scored)?);
        if ids.len() > first.max(1) {
            documents.push(Document { ids, first });
        }
    }
    if documents.is_empty() {
        return Err(in_file(path, &"has no token to score"));
    }
    Ok(documents)
}

impl Perplexity {
    /// Scores the documents with the model of a folder.
    pub(super) async fn of(model: &Path, documents: &[Document]) -> Result<Self, String> {
        let config = EngineConfig {
            max_num_seqs: NUM_AT_ONCE as u32,
            max_model_len: Some(WINDOW as u32),
            ..EngineConfig::new(ModelSource::Folder(model.to_owned()))
        };
        let engine = Engine::open(config)
            .and_then(engine::Opened::start)
            .map_err(|error| error.to_string())?;
        engine.ready().await.map_err(|error| error.to_string())?;
        let windows: Vec<(&[u32], usize)> = documents
            .iter()
            .flat_map(|Document { ids, first }| {
                let starts = (0..ids.len()).step_by(WINDOW);
                starts
                    .zip(ids.chunks(WINDOW))
                    .map(|(start, window)| (window, first.saturating_sub(start)))
            })
            .filter(|(window, first)| window.len() > (*first).max(1))
            .collect();
        let mut sums = Self::default();
        for windows in windows.chunks(NUM_AT_ONCE) {
            let streams: Vec<_> = windows
                .iter()
                .map(|(window, _)| engine.submit(request(&engine, window), None))
                .collect::<Result<_, _>>()
                .map_err(|error| error.to_string())?;
            for (mut stream, (window, first)) in streams.into_iter().zip(windows) {
                let mut logprobs = Vec::with_capacity(window.len());
                while let Some(event) = stream.next().await {
                    logprobs.extend(scores(event)?);
                }
                assert_eq!(logprobs.len(), window.len() - 1, "all but the first");
                sums.add(&logprobs[first.saturating_sub(1)..]);
            }
        }
        Ok(sums)
    }

    fn add(&mut self, logprobs: &[f32]) {
        for logprob in logprobs {
            self.sum -= f64::from(*logprob);
        }
        self.num_tokens += logprobs.len();
    }

    /// The number of equally likely tokens that would surprise as much.
    pub(super) fn value(self) -> f64 {
        (self.sum / self.num_tokens as f64).exp()
    }
}

/// The log-probabilities of some tokens of a window, in order.
fn scores(event: StreamEvent) -> Result<impl Iterator<Item = f32>, String> {
    let output = match event {
        StreamEvent::Output(output) => output,
        StreamEvent::Failed(why) => return Err(why),
    };
    if let Some(FinishReason::Fault(fault)) = output.finish {
        return Err(format!("the text cannot be scored: {fault:?}"));
    }
    let scored = output.prompt_logprobs.into_iter();
    Ok(scored.map(|scored| scored.logprob))
}

fn request(engine: &EngineHandle, window: &[u32]) -> Request {
    Request {
        id: engine.next_request_id(),
        prompt: window.into(),
        sampling: Arc::new(SamplingParams {
            max_tokens: 0,
            prompt_logprobs: Some(0),
            ..SamplingParams::default()
        }),
        num_choices: 1,
        cache_salt: "".into(),
        boundaries: Arc::default(),
        priority: 0,
        tenant: TenantId::default(),
        tenant_weight: 1,
    }
}
