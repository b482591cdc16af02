//! Calls as rules: what follows a tool's name, to the end of its function.
//!
//! Strings stand bare between tags, so a string's terminal excludes what the reader of calls would
//! take for a tag (`tool_calls`). Everything else is JSON by the parameter's own schema.

use std::fmt::Write as _;

use constraint::{Grammar, GrammarError};
use serde_json::{Value, json};

use super::document::{document, restricted};
use super::parameters::{Others, Parameter, Variant, variants};
use super::pattern;
use super::strings::{literals, texts};
use crate::chat::tool_calls::ValueTypes;
use crate::chat::{CustomFormat, Tool, ToolInput};

/// The rules of one tool, named after its index.
pub(super) struct ToolRules {
    /// The rule that begins behind `<function=` and ends with `</function>` and its newline.
    pub(super) start: String,
    /// Lark.
    pub(super) text: String,
    /// Grammars that the rules refer to.
    pub(super) parts: Vec<(String, Grammar)>,
    /// What the client wrote as a grammar: it is to blame for its own faults.
    pub(super) own: Option<Grammar>,
}

/// Writes the rules of `tool`. `spelled`: the tags around a call are text to the tokenizer.
pub(super) fn rules(index: usize, tool: &Tool, spelled: bool) -> Result<ToolRules, GrammarError> {
    let mut writer = Writer {
        index,
        num_names: 0,
        rules: ToolRules {
            start: format!("t{index}"),
            text: String::new(),
            parts: Vec::new(),
            own: None,
        },
    };
    match &tool.input {
        ToolInput::Function { parameters } => writer.function(&tool.name, parameters, spelled)?,
        ToolInput::Custom(format) => writer.custom(&tool.name, format, spelled),
    }
    Ok(writer.rules)
}

struct Writer {
    index: usize,
    num_names: usize,
    rules: ToolRules,
}

impl Writer {
    fn function(&mut self, name: &str, root: &Value, spelled: bool) -> Result<(), GrammarError> {
        let variants = variants(root)?;
        let quoted = self.quoted_tags(&variants, spelled);
        let mut options = Vec::with_capacity(variants.len());
        for variant in &variants {
            let mut sequence = String::new();
            for parameter in &variant.parameters {
                let optional = if parameter.required { "" } else { "?" };
                match self.parameter(parameter, root, &quoted)? {
                    Some(rule) => write!(sequence, "{rule}{optional} ").expect("a string grows"),
                    None if parameter.required => {
                        return Err(GrammarError::Unsatisfiable {
                            message: format!("no value is admitted for {:?}", parameter.name),
                        });
                    }
                    None => {}
                }
            }
            if let Others::Open(schema) = &variant.others
                && let Some(rule) = self.others(schema, root, variant, &quoted)?
            {
                write!(sequence, "{rule}* ").expect("a string grows");
            }
            options.push(sequence);
        }
        let start = lark_string(&format!("{name}>\n"));
        self.rule(
            &format!("t{}", self.index),
            &format!("{start} ({}) \"</function>\\n\"", options.join("| ")),
        );
        Ok(())
    }

    /// The rule of a parameter; `None` if nothing is admitted.
    fn parameter(
        &mut self,
        parameter: &Parameter,
        root: &Value,
        quoted: &str,
    ) -> Result<Option<String>, GrammarError> {
        let types = ValueTypes::of(&parameter.schema, root);
        if types != ValueTypes::of_parameter(root, &parameter.name) {
            // Whoever reads the call sees names and text only, and takes the first schema found.
            return Err(GrammarError::Unsupported {
                keyword: "properties".into(),
                at: "#".into(),
                why: format!(
                    "{:?} has different types in different places",
                    parameter.name
                ),
            });
        }
        let at = format!("#/properties/{}", parameter.name);
        let open = lark_string(&format!("<parameter={}>\n", parameter.name));
        self.value(&open, types, &parameter.schema, root, &at, quoted)
    }

    /// Parameters that only `additionalProperties` admits.
    fn others(
        &mut self,
        schema: &Value,
        root: &Value,
        variant: &Variant,
        quoted: &str,
    ) -> Result<Option<String>, GrammarError> {
        let known: Vec<String> = variant
            .parameters
            .iter()
            .map(|parameter| format!("<parameter={}>\n", parameter.name))
            .map(|tag| format!("/{}/", pattern::escape(&tag)))
            .collect();
        let any = r"/<parameter=[^\x00-\x20<>\x7f]{1,64}>\n/";
        let open = if known.is_empty() {
            self.terminal(any)
        } else {
            self.terminal(&format!("{any} & ~({})", known.join(" | ")))
        };
        let types = ValueTypes::of(schema, root);
        self.value(&open, types, schema, root, "#/additionalProperties", quoted)
    }

    /// A rule for a value of `schema` between `open` and its closing tag.
    fn value(
        &mut self,
        open: &str,
        types: ValueTypes,
        schema: &Value,
        root: &Value,
        at: &str,
        quoted: &str,
    ) -> Result<Option<String>, GrammarError> {
        let mut options = Vec::new();
        let mut others = types.others_than_string();
        if types.is_string() || types.admits_string() {
            // These begin like texts, and one terminal must know them all.
            others.retain(|name| !matches!(*name, "null" | "boolean"));
            let mut bare = texts(schema, root, at)?.but(&json_like(types));
            if !types.is_string() {
                bare = bare.or(literals(schema, root, at)?);
            }
            if let Some(texts) = bare.expression() {
                let end = r"/\n<\/parameter>\n/";
                options.push(self.terminal(&format!("({texts} & ~{quoted}) {end}")));
            }
        }
        if !others.is_empty() {
            let mut schema = document(schema, root);
            if types.admits_string() {
                schema = restricted(schema, &others);
            }
            let part = self.name("p");
            let grammar = Grammar::JsonSchema(schema.to_string());
            self.rules.parts.push((part.clone(), grammar));
            options.push(format!("@{part} \"\\n</parameter>\\n\""));
        }
        if options.is_empty() {
            return Ok(None);
        }
        let rule = self.name("p");
        self.rule(&rule, &format!("{open} ({})", options.join(" | ")));
        Ok(Some(rule))
    }

    fn custom(&mut self, name: &str, format: &CustomFormat, spelled: bool) {
        let quoted = self.quoted_tags(&[], spelled);
        let open = lark_string(&format!("{name}>\n<parameter=input>\n"));
        let end = r"/\n<\/parameter>\n/";
        let body = match format {
            CustomFormat::Text => self.terminal(&format!("(/(?s:.*)/ & ~{quoted}) {end}")),
            CustomFormat::Regex(expression) => {
                self.rules.own = Some(Grammar::Regex(expression.clone()));
                let expression = pattern::delimit(expression);
                self.terminal(&format!("(/(?:{expression})/ & ~{quoted}) {end}"))
            }
            CustomFormat::Lark(grammar) => {
                let part = self.name("p");
                let grammar = Grammar::Lark(grammar.clone());
                self.rules.own = Some(grammar.clone());
                self.rules.parts.push((part.clone(), grammar));
                format!("@{part} \"\\n</parameter>\\n\"")
            }
        };
        let start = self.rules.start.clone();
        self.rule(&start, &format!("{open} {body} \"</function>\\n\""));
    }

    /// A terminal for texts that hold what counts as a tag inside a value.
    fn quoted_tags(&mut self, variants: &[Variant], spelled: bool) -> String {
        let around = if spelled { r"|<\/?tool_call>" } else { "" };
        let mut tags = vec![
            r"\n<\/parameter>".to_owned(),
            format!(r"<\/parameter>\s*(<parameter=|<\/function>|<function={around})"),
            format!(r"\n<\/function>\s*(<function={around})"),
            r"\n<parameter=[^<>\n]*>".to_owned(),
        ];
        if spelled {
            tags.push(r"\n<\/tool_call>".to_owned());
            tags.push(r"<\/function>\s*<\/?tool_call>".to_owned());
        }
        let mut names: Vec<String> = variants
            .iter()
            .flat_map(|variant| &variant.parameters)
            .map(|parameter| pattern::escape(&parameter.name))
            .collect();
        names.sort();
        names.dedup();
        if !names.is_empty() {
            tags.push(format!("<parameter=({})>", names.join("|")));
        }
        self.terminal(&format!("/(?s:.*)({})(?s:.*)/", tags.join("|")))
    }

    fn name(&mut self, prefix: &str) -> String {
        self.num_names += 1;
        format!("{prefix}{}_{}", self.index, self.num_names)
    }

    fn terminal(&mut self, expression: &str) -> String {
        let name = self.name("T");
        self.rule(&name, expression);
        name
    }

    fn rule(&mut self, name: &str, body: &str) {
        writeln!(self.rules.text, "{name}: {body}").expect("a string grows");
    }
}

/// A Lark literal.
pub(super) fn lark_string(text: &str) -> String {
    json!(text).to_string()
}

/// Expressions of texts that would be read as another type than string.
fn json_like(types: ValueTypes) -> Vec<&'static str> {
    let expression = |name| match name {
        "null" => r"/\s*(null|None)\s*/",
        "boolean" => r"/\s*(true|True|TRUE|false|False|FALSE)\s*/",
        "object" => r"/\s*\{(?s:.*)/",
        "array" => r"/\s*\[(?s:.*)/",
        // Its JSON is another terminal, which must not begin alike.
        _ => r"/\s*[+\-.0-9](?s:.*)/",
    };
    types
        .others_than_string()
        .into_iter()
        .map(expression)
        .collect()
}
