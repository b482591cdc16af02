//! The real front end over a pretend model: the demo's tokenizer and template, none of its weights.

use engine::Engine;
use nemoserve::args::ServeArgs;
use nemoserve::config::Settings;
use nemoserve::startup;
use nemoserve::state::AppState;
use scheduler::{CacheConfig, Runner, SchedulerConfig};

/// How large the pretend model is.
#[derive(Clone, Copy, Debug)]
pub struct Size {
    /// Prompt plus output.
    pub max_model_len: u32,
    /// Sequences at once.
    pub max_num_seqs: u32,
    /// Usable blocks.
    pub num_blocks: u32,
}

/// Tokens per block.
pub const BLOCK_SIZE: u32 = 32;

/// Everything that a request may see. `runner` is told the size of the vocabulary.
pub fn state<R: Runner + Send + 'static>(size: Size, runner: impl FnOnce(u32) -> R) -> AppState {
    let settings = Settings::new(&ServeArgs::default()).expect("the defaults are valid");
    // The demo's headers say what its engine would be; the weights are never read.
    let opened = Engine::open(settings.engine.clone()).expect("the demo opens");
    let defaults = settings
        .defaults(opened.model())
        .expect("the demo has them");
    let mut info = opened.info().clone();
    info.max_model_len = size.max_model_len;
    info.max_num_seqs = size.max_num_seqs;
    (info.block_size, info.num_blocks) = (BLOCK_SIZE, size.num_blocks);
    info.num_slots = 2 * size.max_num_seqs;
    let scheduler = SchedulerConfig {
        max_model_len: size.max_model_len,
        max_num_seqs: size.max_num_seqs,
        max_num_batched_tokens: 1 << 14,
        ..SchedulerConfig::default()
    };
    let cache = CacheConfig {
        block_size: BLOCK_SIZE,
        num_blocks: size.num_blocks + 1,
        num_slots: info.num_slots + 1,
        num_host_slots: 0,
        num_host_blocks: 0,
    };
    let vocab_size = info.vocab_size;
    let runner = runner(vocab_size);
    startup::assemble(settings, info, defaults, || {
        engine::spawn(scheduler, cache, vocab_size, move |_| Ok(runner))
    })
    .expect("the demo is sound")
}
