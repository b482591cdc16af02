//! What the model may call.

use serde_json::{Value, json};

/// The tools of a request and how they may be used. The default has none.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ToolSet {
    /// In the order given; names are distinct.
    pub tools: Vec<Tool>,
    /// Whether the model decides.
    pub choice: ToolChoice,
    /// More than one call in an answer is welcome.
    pub parallel: bool,
    /// They came as `functions`, and calls go back as `function_call`.
    pub legacy: bool,
}

impl ToolSet {
    /// What the prompt shows, in the form that templates expect: every tool is a function.
    pub fn shown(&self) -> Vec<Value> {
        if self.choice == ToolChoice::None {
            return Vec::new();
        }
        self.tools.iter().map(Tool::shown).collect()
    }

    /// Whether the answer must be a call.
    pub fn is_required(&self) -> bool {
        match &self.choice {
            ToolChoice::None | ToolChoice::Auto => false,
            ToolChoice::Required | ToolChoice::Named(_) => true,
            ToolChoice::Allowed { required, .. } => *required,
        }
    }

    /// Indices of the tools that may be called.
    pub fn callable(&self) -> Vec<usize> {
        match &self.choice {
            ToolChoice::None => Vec::new(),
            ToolChoice::Auto | ToolChoice::Required => (0..self.tools.len()).collect(),
            ToolChoice::Named(index) => vec![*index],
            ToolChoice::Allowed { tools, .. } => tools.clone(),
        }
    }
}

/// Something that the client can run.
#[derive(Clone, Debug, PartialEq)]
pub struct Tool {
    /// 1 to 64 letters, digits, `_` and `-`.
    pub name: String,
    /// For the model.
    pub description: Option<String>,
    /// What it takes.
    pub input: ToolInput,
    /// The client insists on the schema; calls are bound to it anyway.
    pub strict: bool,
}

impl Tool {
    fn shown(&self) -> Value {
        let format = match &self.input {
            ToolInput::Function { parameters } => return self.function(parameters.clone()),
            ToolInput::Custom(format) => format,
        };
        let mut input = json!({"type": "string"});
        let described = match format {
            CustomFormat::Text => None,
            CustomFormat::Lark(grammar) => Some(format!(
                "Text in the language of this Lark grammar:\n{grammar}"
            )),
            CustomFormat::Regex(pattern) => Some(format!(
                "Text that matches this regular expression:\n{pattern}"
            )),
        };
        if let Some(text) = described {
            input["description"] = text.into();
        }
        self.function(json!({
            "type": "object",
            "properties": {"input": input},
            "required": ["input"],
        }))
    }

    fn function(&self, parameters: Value) -> Value {
        let mut function = json!({"name": self.name});
        if let Some(description) = &self.description {
            function["description"] = description.as_str().into();
        }
        function["parameters"] = parameters;
        json!({"type": "function", "function": function})
    }
}

/// What a tool takes.
#[derive(Clone, Debug, PartialEq)]
pub enum ToolInput {
    /// A JSON object that is valid under this schema.
    Function {
        /// `{}` if the client gave none.
        parameters: Value,
    },
    /// Text in this form.
    Custom(CustomFormat),
}

/// The form of a custom tool's input.
#[derive(Clone, Debug, PartialEq)]
pub enum CustomFormat {
    /// Any.
    Text,
    /// In the language of this grammar.
    Lark(String),
    /// Matching this expression as a whole.
    Regex(String),
}

/// Whether the model decides. Numbers are indices into [`ToolSet::tools`].
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// No call; the tools are not even shown.
    None,
    /// The model decides.
    #[default]
    Auto,
    /// At least one call and nothing else.
    Required,
    /// A call of exactly this one.
    Named(usize),
    /// Only these, though the prompt shows all.
    Allowed {
        /// At least one call.
        required: bool,
        /// Which.
        tools: Vec<usize>,
    },
}
