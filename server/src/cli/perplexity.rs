//! How well a model expects a text.

use std::path::Path;
use std::sync::Arc;

use engine::{Engine, EngineConfig, EngineHandle, ModelSource, StreamEvent};
use scheduler::{FinishReason, Request, SamplingParams};

use crate::text::Tokenizer;

/// Tokens that are scored in one go; a longer document begins anew, knowing nothing.
const WINDOW: usize = 2048;

/// Windows that are scored at once.
const NUM_AT_ONCE: usize = 8;

/// Stands between documents.
const SEPARATOR: char = '\u{c}';

/// Sums over every token but the first of each window.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Perplexity {
    /// In nats.
    sum: f64,
    pub(super) num_tokens: usize,
}

/// The documents of a text file as token ids, by the tokenizer of a model folder. The spellings of
/// its special tokens are those tokens.
pub(super) fn documents(path: &Path, model: &Path) -> Result<Vec<Vec<u32>>, String> {
    let in_file =
        |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let text = std::fs::read_to_string(path).map_err(|error| in_file(path, &error))?;
    let tokenizer_path = model.join("tokenizer.json");
    let json = std::fs::read(&tokenizer_path).map_err(|error| in_file(&tokenizer_path, &error))?;
    let tokenizer =
        Tokenizer::from_bytes(&json).map_err(|error| in_file(&tokenizer_path, &error))?;
    let documents = text
        .split(SEPARATOR)
        .map(|document| tokenizer.encode_special(document, false))
        .filter(|ids| ids.as_ref().map_or(true, |ids| ids.len() > 1))
        .collect::<Result<Vec<_>, _>>()
        .map_err(|error| in_file(path, &error))?;
    if documents.is_empty() {
        return Err(in_file(path, &"has no two tokens to score"));
    }
    Ok(documents)
}

impl Perplexity {
    /// Scores the documents with the model of a folder.
    pub(super) async fn of(model: &Path, documents: &[Vec<u32>]) -> Result<Self, String> {
        let config = EngineConfig {
            max_num_seqs: NUM_AT_ONCE as u32,
            max_model_len: Some(WINDOW as u32),
            ..EngineConfig::new(ModelSource::Folder(model.to_owned()))
        };
        let engine = Engine::open(config)
            .and_then(engine::Opened::start)
            .map_err(|error| error.to_string())?;
        engine.ready().await.map_err(|error| error.to_string())?;
        let windows: Vec<&[u32]> = documents
            .iter()
            .flat_map(|ids| ids.chunks(WINDOW))
            .filter(|window| window.len() > 1)
            .collect();
        let mut scored = Self::default();
        for windows in windows.chunks(NUM_AT_ONCE) {
            let streams: Vec<_> = windows
                .iter()
                .map(|window| engine.submit(request(&engine, window), None))
                .collect::<Result<_, _>>()
                .map_err(|error| error.to_string())?;
            for (mut stream, window) in streams.into_iter().zip(windows) {
                let before = scored.num_tokens;
                while let Some(event) = stream.next().await {
                    scored.take(event)?;
                }
                assert_eq!(scored.num_tokens - before, window.len() - 1, "scores");
            }
        }
        Ok(scored)
    }

    fn take(&mut self, event: StreamEvent) -> Result<(), String> {
        let output = match event {
            StreamEvent::Output(output) => output,
            StreamEvent::Failed(why) => return Err(why),
        };
        if let Some(FinishReason::Fault(fault)) = output.finish {
            return Err(format!("the text cannot be scored: {fault:?}"));
        }
        for scored in &output.prompt_logprobs {
            self.sum -= f64::from(scored.logprob);
            self.num_tokens += 1;
        }
        Ok(())
    }

    /// The number of equally likely tokens that would surprise as much.
    pub(super) fn value(self) -> f64 {
        (self.sum / self.num_tokens as f64).exp()
    }
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
    }
}
