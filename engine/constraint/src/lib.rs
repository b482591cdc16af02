//! Which tokens may come next: grammars, forced text, thinking budgets.
//!
//! A crate of its own beside the engine, so that its tests and benches need no tensors.
//!
//! | file | is |
//! |---|---|
//! | `vocabulary` | [`Vocabulary`]: the model's tokens as bytes, control tokens apart |
//! | `grammar`, `error` | [`Grammar`]: JSON schema, Lark, regex, by content; [`GrammarError`]: why one is refused |
//! | `compiler` | [`Compiler`]: grammars into automata, within [`Limits`], each content once |
//! | `translate` | our grammars as the library's, its errors as ours |
//! | `schema`, `formats` | JSON schemas read before the library: what no mask can hold is refused by name |
//! | `lark` | Lark grammars of clients: nothing of the library's own language |
//! | `guide` | [`Guide`]: what a request's answers must obey |
//! | `state` | [`GuideState`]: how far one choice has come; makes the mask of its next token |
//! | `walk` | one text on its way through a grammar |
//! | `thought` | the thinking before an answer: budget, closing marker |
//!
//! It knows no text of any template, no request and no clock: who writes grammars for tools is the
//! server, who samples is the engine.

mod compiler;
mod error;
mod formats;
mod grammar;
mod guide;
mod lark;
mod schema;
mod state;
mod thought;
mod translate;
mod vocabulary;
mod walk;

pub use compiler::{Compiled, Compiler, Limits};
pub use error::GrammarError;
pub use grammar::Grammar;
pub use guide::{GrammarGuide, Guide, ThinkingGuide};
pub use scheduler::TokenMask;
pub use schema::check as check_schema;
pub use state::{GuideError, GuideState};
pub use vocabulary::{Piece, Vocabulary};
