//! What calls look like and what a request allows.

use std::sync::Arc;

use crate::chat::tools::{Tool, ToolChoice, ToolSet};
use crate::text::Tokenizer;

/// How a model family writes calls.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Dialect {
    /// Nemotron 3: `<tool_call>`, `<function=f>`, `<parameter=p>`, a value, and all of it closed.
    Tagged,
    /// Nano v2: `<TOOLCALL>`, a JSON list of names and arguments, `</TOOLCALL>`.
    Listed,
}

/// What calls look like and what they may be; shared by all choices of a request.
pub struct ToolCallFormat {
    pub(super) dialect: Dialect,
    tokenizer: Arc<Tokenizer>,
    /// The opening tag, where it is one token.
    pub(super) open: Option<u32>,
    /// The closing tag, where it is one token.
    pub(super) close: Option<u32>,
    tools: Vec<Tool>,
    pub(super) max_calls: usize,
}

impl Dialect {
    /// The one that a chat template teaches, if any.
    pub fn of_template(source: &str) -> Option<Self> {
        if source.contains("<TOOLCALL>") {
            return Some(Self::Listed);
        }
        source.contains("<function=").then_some(Self::Tagged)
    }

    /// What begins a block of calls.
    pub fn open(self) -> &'static str {
        match self {
            Self::Tagged => "<tool_call>",
            Self::Listed => "<TOOLCALL>",
        }
    }

    /// What ends it.
    pub fn close(self) -> &'static str {
        match self {
            Self::Tagged => "</tool_call>",
            Self::Listed => "</TOOLCALL>",
        }
    }
}

impl ToolCallFormat {
    /// For a request; `None` if it allows no calls.
    pub fn new(dialect: Dialect, tokenizer: &Arc<Tokenizer>, tools: &ToolSet) -> Option<Arc<Self>> {
        if tools.tools.is_empty() || tools.choice == ToolChoice::None {
            return None;
        }
        let token = |tag| {
            tokenizer
                .added_id(tag)
                .filter(|id| tokenizer.is_control(*id))
        };
        let many = tools.parallel && !tools.legacy;
        Some(Arc::new(Self {
            dialect,
            tokenizer: Arc::clone(tokenizer),
            open: token(dialect.open()),
            close: token(dialect.close()),
            tools: tools.tools.clone(),
            max_calls: if many { usize::MAX } else { 1 },
        }))
    }

    /// How a token without text is spelled, if it is one of the tokenizer's own.
    pub(super) fn spelling(&self, id: u32) -> Option<&str> {
        let mut added = self.tokenizer.added().iter();
        let token = added.find(|token| token.id == id);
        token.map(|token| &*token.content)
    }

    pub(super) fn tool(&self, name: &str) -> Option<&Tool> {
        self.tools.iter().find(|tool| tool.name == name)
    }

    /// The opening tag where it is spelled.
    pub(super) fn spelled_open(&self) -> Option<&'static [u8]> {
        self.open.is_none().then(|| self.dialect.open().as_bytes())
    }

    /// The closing tag where it is spelled.
    pub(super) fn spelled_close(&self) -> Option<&'static [u8]> {
        self.close
            .is_none()
            .then(|| self.dialect.close().as_bytes())
    }
}
