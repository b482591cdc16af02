//! What an answer must look like, as grammars: response formats, and calls in the model's own words.
//!
//! Nemotron 3 writes a call as
//!
//! ```text
//! <tool_call>
//! <function=NAME>
//! <parameter=ARG>
//! VALUE
//! </parameter>
//! </function>
//! </tool_call>
//! ```
//!
//! and Nano v2 all calls as one list:
//!
//! ```text
//! <TOOLCALL>[{"name": "NAME", "arguments": {"ARG": VALUE}}]</TOOLCALL>
//! ```
//!
//! Required parameters come, optional ones may, in the schema's order. Where the opening tag is one
//! token, calls that the model makes of its own accord are bound too: the grammar begins with that
//! token. Where the tag is spelled with letters, nothing says when a grammar should begin, so only
//! calls that must come are bound.

mod calls;
mod document;
mod listed;
mod parameters;
mod pattern;
mod strings;
#[cfg(test)]
mod tests;

use constraint::{Grammar, GrammarError};
use serde_json::Value;

use super::tool_calls::Dialect;
use super::tools::{ToolChoice, ToolSet};
use crate::text::Tokenizer;

/// `response_format`.
#[derive(Clone, Debug, Default, PartialEq)]
pub enum ResponseFormat {
    /// Anything.
    #[default]
    Text,
    /// Any JSON object.
    JsonObject,
    /// JSON that is valid under this schema.
    JsonSchema(Value),
}

/// The tags around a call: a token's id, or `None` where it is spelled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CallTags {
    /// Whose they are.
    pub dialect: Dialect,
    /// What begins a call.
    pub open: Option<u32>,
    /// What ends it.
    pub close: Option<u32>,
}

/// A grammar for a whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct AnswerGrammar {
    /// To be compiled.
    pub grammar: Grammar,
    /// It begins with this token, wherever it comes.
    pub trigger: Option<u32>,
    /// Each part by itself, to find out which one cannot be compiled.
    pub parts: Vec<(Place, Grammar)>,
}

/// What of a request a grammar came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// The schema of its response format.
    Format,
    /// The tool of this index.
    Tool(usize),
}

/// A part of a request that makes no grammar.
#[derive(Clone, Debug, PartialEq)]
pub struct Refused {
    /// Which.
    pub place: Place,
    /// Why.
    pub error: GrammarError,
}

impl CallTags {
    /// As this tokenizer has them.
    pub fn of(dialect: Dialect, tokenizer: &Tokenizer) -> Self {
        let token = |tag| {
            let id = tokenizer.added_id(tag);
            id.filter(|id| tokenizer.is_control(*id))
        };
        Self {
            dialect,
            open: token(dialect.open()),
            close: token(dialect.close()),
        }
    }

    /// As Lark.
    fn rules(self) -> (String, String) {
        let rule = |id: Option<u32>, spelling: &str| match id {
            Some(id) => format!("<[{id}]>"),
            None => calls::lark_string(spelling),
        };
        let Self {
            dialect,
            open,
            close,
        } = self;
        (rule(open, dialect.open()), rule(close, dialect.close()))
    }
}

impl ResponseFormat {
    fn grammar(&self) -> Option<Grammar> {
        match self {
            Self::Text => None,
            Self::JsonObject => Some(Grammar::JsonSchema(r#"{"type":"object"}"#.into())),
            Self::JsonSchema(schema) => Some(Grammar::JsonSchema(schema.to_string())),
        }
    }
}

/// What an answer must look like; `None` if it is free.
pub fn answer(
    format: &ResponseFormat,
    tools: &ToolSet,
    tags: CallTags,
) -> Result<Option<AnswerGrammar>, Refused> {
    let format = format.grammar();
    let required = tools.is_required();
    let callable = tools.callable();
    let bound = required || tags.open.is_some() || format.is_some();
    if callable.is_empty() || !bound {
        return Ok(format.map(|grammar| AnswerGrammar {
            parts: vec![(Place::Format, grammar.clone())],
            grammar,
            trigger: None,
        }));
    }
    let spelled = tags.open.is_none() || tags.close.is_none();
    let mut composer = Composer::default();
    for index in callable {
        let tool = &tools.tools[index];
        let rules = match tags.dialect {
            Dialect::Tagged => calls::rules(index, tool, spelled),
            Dialect::Listed => listed::rules(index, tool),
        };
        let rules = rules.map_err(|error| Refused {
            place: Place::Tool(index),
            error,
        })?;
        composer.add(index, rules);
    }
    let single = !tools.parallel || matches!(tools.choice, ToolChoice::Named(_));
    let format = format.filter(|_| !required);
    let trigger = tags.open.filter(|_| !required && format.is_none());
    Ok(Some(composer.finish(tags, single, format, trigger)))
}

/// Puts the rules of tools together.
#[derive(Default)]
struct Composer {
    text: String,
    starts: Vec<String>,
    parts: Vec<(String, Grammar)>,
    alone: Vec<(Place, Grammar)>,
}

impl Composer {
    fn add(&mut self, index: usize, rules: calls::ToolRules) {
        let own = rules.own.map(|grammar| (Place::Tool(index), grammar));
        self.alone.extend(own);
        let alone = Grammar::Composed {
            root: format!("start: {}\n{}", rules.start, rules.text),
            parts: rules.parts.clone(),
        };
        self.alone.push((Place::Tool(index), alone));
        self.text.push_str(&rules.text);
        self.starts.push(rules.start);
        self.parts.extend(rules.parts);
    }

    fn finish(
        mut self,
        tags: CallTags,
        single: bool,
        format: Option<Grammar>,
        trigger: Option<u32>,
    ) -> AnswerGrammar {
        let (open, close) = tags.rules();
        let tools = self.starts.join(" | ");
        let more = |separator: &str| {
            if single {
                return String::new();
            }
            format!(" ({separator} call)*")
        };
        let or_format = if format.is_some() { "@format | " } else { "" };
        let calls = match tags.dialect {
            Dialect::Tagged => format!(
                "call{} \"\\n\"?\ncall: {open} \"\\n<function=\" ({tools}) {close}",
                more("\"\\n\"")
            ),
            Dialect::Listed => format!(
                "{open} \"[\" call{} \"]\" {close} \"\\n\"?\ncall: {tools}",
                more("/, ?/")
            ),
        };
        let root = format!("start: {or_format}{calls}\n{}", self.text);
        if let Some(format) = format {
            self.alone.insert(0, (Place::Format, format.clone()));
            self.parts.push(("format".into(), format));
        }
        AnswerGrammar {
            grammar: Grammar::Composed {
                root,
                parts: self.parts,
            },
            trigger,
            parts: self.alone,
        }
    }
}
