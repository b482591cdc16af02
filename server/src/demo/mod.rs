//! The embedded demo model: a trained Nemotron-H in miniature, so that the daemon answers out of the
//! box. How it was made is in `server/demo/training/`.

use bytes::Bytes;
use engine::ModelSource;

use crate::config::ModelTexts;

/// The name that `/v1/models` lists first.
pub const NAME: &str = "nemoserve-demo";

/// What `/v1/models` says about it.
pub const DESCRIPTION: &str = "A tiny demo model embedded in nemoserve: it shows that everything \
    works and knows next to nothing. Serve a real checkpoint with --model DIR.";

const CONFIG: &str = include_str!("../../demo/model/config.json");
static WEIGHTS: &[u8] = include_bytes!("../../demo/model/model.safetensors");

/// Configuration and weights for the engine.
pub fn source() -> ModelSource {
    ModelSource::Embedded {
        config: Bytes::from_static(CONFIG.as_bytes()),
        weights: Bytes::from_static(WEIGHTS),
    }
}

/// What the front end reads of a model folder.
pub fn texts() -> ModelTexts {
    let text = |text: &'static str| Some(text.to_owned());
    ModelTexts {
        tokenizer: Some(include_bytes!("../../demo/model/tokenizer.json").to_vec()),
        tokenizer_config: text(include_str!("../../demo/model/tokenizer_config.json")),
        chat_template: text(include_str!("../../demo/model/chat_template.jinja")),
        generation_config: text(include_str!("../../demo/model/generation_config.json")),
    }
}
