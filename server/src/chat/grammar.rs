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
//! Required parameters come, optional ones may, in the schema's order. Where `<tool_call>` is one
//! token, calls that the model makes of its own accord are bound too: the grammar begins with that
//! token. Where the tag is spelled with letters, nothing says when a grammar should begin, so only
//! calls that must come are bound.

mod calls;
mod document;
mod parameters;
mod pattern;
mod strings;
#[cfg(test)]
mod tests;

use constraint::{Grammar, GrammarError};
use serde_json::Value;

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
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct CallTags {
    /// `<tool_call>`.
    pub open: Option<u32>,
    /// `</tool_call>`.
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
    pub fn of(tokenizer: &Tokenizer) -> Self {
        let token = |tag| {
            let id = tokenizer.added_id(tag);
            id.filter(|id| tokenizer.is_control(*id))
        };
        Self {
            open: token("<tool_call>"),
            close: token("</tool_call>"),
        }
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
        let rules = calls::rules(index, &tools.tools[index], spelled);
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
        let open = match tags.open {
            Some(id) => format!("<[{id}]> \"\\n<function=\""),
            None => "\"<tool_call>\\n<function=\"".to_owned(),
        };
        let close = match tags.close {
            Some(id) => format!("<[{id}]>"),
            None => "\"</tool_call>\"".to_owned(),
        };
        let more = if single { "" } else { " (\"\\n\" call)*" };
        let or_format = if format.is_some() { "@format | " } else { "" };
        let root = format!(
            "start: {or_format}call{more} \"\\n\"?\ncall: {open} ({}) {close}\n{}",
            self.starts.join(" | "),
            self.text
        );
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
