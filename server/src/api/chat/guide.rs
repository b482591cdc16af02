//! What the answers to a request must obey: its grammar, its budget of thoughts.

use std::sync::Arc;

use constraint::{GrammarError, GrammarGuide, Guide, ThinkingGuide, check_schema};

use super::ChatRequest;
use crate::api::prompt::ChatPrompt;
use crate::chat::{
    AnswerGrammar, CallTags, Dialect, Place, Refused, ToolChoice, ToolInput, answer,
};
use crate::error::ApiError;
use crate::state::AppState;
use crate::text::Tokenizer;

/// Compiles the grammar of the answer, if it must have one. Takes its time, so that [`guide`] takes
/// none.
pub(super) fn compile(
    state: &AppState,
    request: &ChatRequest,
) -> Result<Option<GrammarGuide>, ApiError> {
    let Some(tokenizer) = &state.tokenizer else {
        return Ok(None);
    };
    let compiler = state.grammars.compiler();
    let tags = match dialect(state) {
        Some(dialect) => CallTags::of(dialect, tokenizer),
        None if request.tools.callable().is_empty() => CallTags::of(Dialect::Tagged, tokenizer),
        None => {
            let message = "this model's chat template knows no tools";
            return Err(ApiError::unsupported(tools_path(request), message));
        }
    };
    check_schemas(request)?;
    let written = answer(&request.format, &request.tools, tags);
    let Some(answer) = written.map_err(|refused| refusal(request, &refused))? else {
        return Ok(None);
    };
    let Some(compiler) = compiler else {
        return Err(ApiError::bad_request(
            "unsupported_value",
            Some("response_format".into()),
            "this model has no token that ends an answer: its answers cannot be bound",
        ));
    };
    let AnswerGrammar {
        grammar,
        trigger,
        parts,
    } = answer;
    let whole = match compiler.compile(&grammar) {
        Ok(grammar) => return Ok(Some(GrammarGuide { grammar, trigger })),
        Err(error) => error,
    };
    for (place, part) in parts {
        if let Err(error) = compiler.compile(&part) {
            return Err(refusal(request, &Refused { place, error }));
        }
    }
    // Each part would do, all together are too much.
    let path = if request.tools.callable().is_empty() {
        "response_format.json_schema.schema".to_owned()
    } else {
        tools_path(request)
    };
    Err(refused_at(path, &whole))
}

/// A parameter that no call can give is left out of a call's grammar; its schema may still be wrong.
fn check_schemas(request: &ChatRequest) -> Result<(), ApiError> {
    for (index, tool) in request.tools.tools.iter().enumerate() {
        if let ToolInput::Function { parameters } = &tool.input {
            let place = Place::Tool(index);
            check_schema(parameters)
                .map_err(|error| refusal(request, &Refused { place, error }))?;
        }
    }
    Ok(())
}

/// Puts together what the engine needs to know; `None` if the answer is free.
pub(super) fn guide(
    state: &AppState,
    request: &ChatRequest,
    prompt: &ChatPrompt,
) -> Option<Arc<Guide>> {
    let tokenizer = state.tokenizer.as_ref()?;
    let dialect = dialect(state);
    let call = dialect.and_then(|dialect| CallTags::of(dialect, tokenizer).open);
    let tools = &request.tools;
    let refused = !tools.tools.is_empty() && tools.choice == ToolChoice::None;
    let banned: Vec<u32> = call.filter(|_| refused).into_iter().collect();
    let budget = request.thinking.budget;
    let grammar = request.grammar.clone();
    let thinks = prompt.thinking && (budget.is_some() || grammar.is_some());
    if banned.is_empty() && grammar.is_none() && !thinks {
        return None;
    }
    // Only this family begins a call without closing its thought.
    let ends_thought = call.filter(|_| !refused && dialect == Some(Dialect::Tagged));
    let thinking = || thinking(tokenizer, budget, ends_thought);
    Some(Arc::new(Guide {
        vocabulary: Arc::clone(state.grammars.compiler()?.vocabulary()),
        thinking: thinks.then(thinking),
        banned,
        grammar,
    }))
}

fn thinking(tokenizer: &Tokenizer, budget: Option<u32>, call: Option<u32>) -> ThinkingGuide {
    const CLOSE: &str = "</think>";
    let ids = |text| tokenizer.encode(text, false).unwrap_or_default();
    let close = tokenizer.added_id(CLOSE);
    let newline = ids("\n");
    ThinkingGuide {
        close: close.map_or_else(|| ids(CLOSE), |id| vec![id]),
        budget,
        call,
        newline: newline.first().copied().filter(|_| newline.len() == 1),
    }
}

fn dialect(state: &AppState) -> Option<Dialect> {
    state.template.as_ref()?.dialect()
}

fn tools_path(request: &ChatRequest) -> String {
    if request.tools.legacy {
        "functions".into()
    } else {
        "tools".into()
    }
}

fn refusal(request: &ChatRequest, Refused { place, error }: &Refused) -> ApiError {
    let path = match place {
        Place::Format => "response_format.json_schema.schema".to_owned(),
        Place::Tool(index) => match &request.tools.tools[*index].input {
            ToolInput::Function { .. } if request.tools.legacy => {
                format!("functions[{index}].parameters")
            }
            ToolInput::Function { .. } => format!("tools[{index}].function.parameters"),
            ToolInput::Custom(_) => format!("tools[{index}].custom.format.grammar.definition"),
        },
    };
    refused_at(path, error)
}

fn refused_at(path: String, error: &GrammarError) -> ApiError {
    ApiError::invalid_value(path, format!("cannot be enforced: {error}"))
}
