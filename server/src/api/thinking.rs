//! How much a chat may think, from four places that can say so.
//!
//! Per setting, `chat_template_kwargs` wins over `reasoning`, that over `reasoning_effort`.

use super::fields::Fields;
use super::flavour::Flavour;
use crate::error::ApiError;

const EFFORTS: &[&str] = &["none", "minimal", "low", "medium", "high", "xhigh", "max"];
const MAX_BUDGET: i128 = 32_768;

/// What the request asks for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thinking {
    /// Whether the model thinks before it answers.
    pub enabled: bool,
    /// Thoughts are counted and not returned.
    pub exclude: bool,
    /// A blank answer is replaced by the thought.
    pub force_nonempty_content: bool,
    /// Tokens of thoughts at most; `None` is no limit.
    pub budget: Option<u32>,
    /// For the template; absent ones have its own defaults.
    pub settings: Vec<(&'static str, bool)>,
}

impl Thinking {
    /// Reads and checks.
    pub fn read(fields: &Fields<'_>, flavour: Flavour) -> Result<Self, ApiError> {
        let effort = fields.word("reasoning_effort", EFFORTS)?;
        let mut budget = budget(fields)?;
        let mut exclude = !fields.bool("include_reasoning")?.unwrap_or(true);
        let mut effort = effort.unwrap_or("high");
        if let Some(reasoning) = fields.object("reasoning")? {
            let own = reasoning.word("effort", EFFORTS)?;
            let max_tokens = reasoning.int("max_tokens", 1..=MAX_BUDGET)?;
            if own.is_some() && max_tokens.is_some() {
                let path = fields.path("reasoning");
                let message = "must not have both 'effort' and 'max_tokens'";
                return Err(ApiError::invalid_value(path, message));
            }
            budget = max_tokens.or(budget);
            exclude = reasoning.bool("exclude")?.unwrap_or(exclude);
            effort = match (reasoning.bool("enabled")?, own) {
                (Some(false), _) => "none",
                (Some(true), None) if effort == "none" => "high",
                (_, own) => own.unwrap_or(effort),
            };
        }
        let mut enabled = effort != "none";
        let mut low_effort = matches!(effort, "minimal" | "low");
        let mut force_nonempty_content = false;
        let mut settings = Vec::new();
        // Their clients send all reasoning back and mean it to be read.
        let mut truncated = match flavour {
            Flavour::OpenRouter | Flavour::Cloudflare | Flavour::CloudflareRest => Some(false),
            Flavour::OpenAi | Flavour::Anthropic | Flavour::DeepInfra | Flavour::Nvidia => None,
        };
        if let Some(kwargs) = fields.object("chat_template_kwargs")? {
            budget = self::budget(&kwargs)?.or(budget);
            enabled = kwargs.bool("enable_thinking")?.unwrap_or(enabled);
            low_effort = kwargs.bool("low_effort")?.unwrap_or(low_effort);
            force_nonempty_content = kwargs.bool("force_nonempty_content")?.unwrap_or(false);
            let clear = kwargs.bool("clear_thinking")?;
            let truncate = kwargs.bool("truncate_history_thinking")?.or(clear);
            truncated = truncate.or(truncated);
            let medium = kwargs.bool("medium_effort")?;
            settings.extend(medium.map(|on| ("medium_effort", on)));
        }
        settings.extend(truncated.map(|on| ("truncate_history_thinking", on)));
        settings.push(("enable_thinking", enabled));
        settings.push(("low_effort", low_effort && enabled));
        Ok(Self {
            enabled,
            exclude,
            force_nonempty_content,
            // -1 is no limit, also where another place gives one.
            budget: budget.and_then(|tokens| u32::try_from(tokens).ok()),
            settings,
        })
    }
}

fn budget(fields: &Fields<'_>) -> Result<Option<i128>, ApiError> {
    fields.int("reasoning_budget", -1..=MAX_BUDGET)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::fields::parse_object;

    fn read(json: &str) -> Result<Thinking, ApiError> {
        let map = parse_object(json.as_bytes()).unwrap();
        Thinking::read(&Fields::root(&map), Flavour::OpenAi)
    }

    #[test]
    fn the_nearest_place_wins() {
        let check = |json, enabled, low| {
            let thinking = read(json).unwrap();
            assert_eq!(thinking.enabled, enabled, "{json}");
            let expect = ("low_effort", low);
            assert!(thinking.settings.contains(&expect), "{json}");
        };
        check("{}", true, false);
        check(r#"{"reasoning_effort": "none"}"#, false, false);
        check(r#"{"reasoning_effort": "low"}"#, true, true);
        check(r#"{"reasoning_effort": "minimal"}"#, true, true);
        check(r#"{"reasoning_effort": "xhigh"}"#, true, false);
        check(r#"{"reasoning": {"enabled": false}}"#, false, false);
        check(
            r#"{"reasoning": {"effort": "none"}, "reasoning_effort": "high"}"#,
            false,
            false,
        );
        check(
            r#"{"reasoning": {"enabled": true}, "reasoning_effort": "none"}"#,
            true,
            false,
        );
        check(
            r#"{"reasoning": {"exclude": true}, "reasoning_effort": "low"}"#,
            true,
            true,
        );
        check(
            r#"{"chat_template_kwargs": {"enable_thinking": true}, "reasoning_effort": "none"}"#,
            true,
            false,
        );
        check(
            r#"{"chat_template_kwargs": {"low_effort": false}, "reasoning": {"effort": "low"}}"#,
            true,
            false,
        );
        check(
            r#"{"reasoning_budget": -1, "reasoning": null}"#,
            true,
            false,
        );
    }

    #[test]
    fn budgets() {
        let check = |json, expect| assert_eq!(read(json).unwrap().budget, expect, "{json}");
        check("{}", None);
        check(r#"{"reasoning_budget": 0}"#, Some(0));
        check(r#"{"reasoning_budget": -1}"#, None);
        check(
            r#"{"reasoning": {"max_tokens": 5}, "reasoning_budget": 9}"#,
            Some(5),
        );
        check(
            r#"{"chat_template_kwargs": {"reasoning_budget": 7}, "reasoning": {"max_tokens": 5}}"#,
            Some(7),
        );
        check(
            r#"{"chat_template_kwargs": {"reasoning_budget": -1}, "reasoning_budget": 5}"#,
            None,
        );
    }

    #[test]
    fn flavours_that_keep_old_thoughts() {
        let truncated = |json: &str, flavour| {
            let map = parse_object(json.as_bytes()).unwrap();
            let thinking = Thinking::read(&Fields::root(&map), flavour).unwrap();
            let mut settings = thinking.settings.into_iter();
            let found = settings.find(|(name, _)| *name == "truncate_history_thinking");
            found.map(|(_, on)| on)
        };
        assert_eq!(truncated("{}", Flavour::OpenAi), None);
        assert_eq!(truncated("{}", Flavour::OpenRouter), Some(false));
        assert_eq!(truncated("{}", Flavour::Cloudflare), Some(false));
        let cleared = r#"{"chat_template_kwargs": {"clear_thinking": true}}"#;
        assert_eq!(truncated(cleared, Flavour::CloudflareRest), Some(true));
        assert_eq!(truncated(cleared, Flavour::OpenAi), Some(true));
    }

    #[test]
    fn excluding() {
        let check = |json, expect| assert_eq!(read(json).unwrap().exclude, expect, "{json}");
        check("{}", false);
        check(r#"{"include_reasoning": false}"#, true);
        check(
            r#"{"include_reasoning": false, "reasoning": {"exclude": false}}"#,
            false,
        );
        check(
            r#"{"include_reasoning": false, "reasoning": {"effort": "low"}}"#,
            true,
        );
    }
}
