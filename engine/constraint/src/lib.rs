//! Which tokens may come next.

mod guide;

pub use guide::{GrammarGuide, Guide, ThinkingGuide};

/// A compiled grammar.
#[derive(Debug)]
pub struct Compiled {}
