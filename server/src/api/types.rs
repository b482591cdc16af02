//! What goes over the wire, borrowed from where it lies.

use serde::ser::{SerializeMap as _, SerializeSeq as _, SerializeStruct as _};
use serde::{Serialize, Serializer};

use super::choice::{Entry, Finish, TokenText};
use super::flavour::Flavour;
use super::prices::{CostField, Usd};

/// An answer or a chunk of one, around its choices.
#[derive(Serialize)]
pub struct Envelope<'a, C> {
    /// Same in all chunks.
    pub id: &'a str,
    /// `chat.completion`, ...
    pub object: &'static str,
    /// Unix seconds.
    pub created: u64,
    /// As requested.
    pub model: &'a str,
    /// Who answered: OpenRouter only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub provider: Option<&'static str>,
    /// Build, weights and configuration.
    pub system_fingerprint: &'a str,
    /// Chat only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub service_tier: Option<&'static str>,
    /// Empty in the usage chunk.
    pub choices: &'a [C],
    /// In answers, and in streams that asked for it.
    #[serde(skip_serializing_if = "UsageField::is_absent")]
    pub usage: UsageField<'a>,
}

/// What an envelope says about usage.
#[derive(Clone, Copy)]
pub enum UsageField<'a> {
    /// Nothing.
    Absent,
    /// `null`: it comes in the last chunk.
    Null,
    /// The counts.
    Counts(&'a Usage),
}

impl UsageField<'_> {
    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl Serialize for UsageField<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent | Self::Null => serializer.serialize_none(),
            Self::Counts(usage) => usage.serialize(serializer),
        }
    }
}

/// Tokens of a request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Of all prompts, each once.
    pub prompt: u64,
    /// Of these, not computed.
    pub cached: u64,
    /// Sampled for all choices.
    pub completion: u64,
    /// Of these, thoughts.
    pub reasoning: u64,
    /// Of these, drafted before they were sampled.
    pub accepted_drafts: u64,
    /// Drafts that were not sampled.
    pub rejected_drafts: u64,
    /// What they cost, where the flavour says so.
    pub cost: Option<CostField>,
}

impl Serialize for Usage {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Prompt {
            cached_tokens: u64,
            audio_tokens: u64,
        }
        #[derive(Serialize)]
        #[expect(clippy::struct_field_names, reason = "the wire's names")]
        struct Completion {
            reasoning_tokens: u64,
            audio_tokens: u64,
            accepted_prediction_tokens: u64,
            rejected_prediction_tokens: u64,
        }
        #[derive(Serialize)]
        #[expect(clippy::struct_field_names, reason = "the wire's names")]
        struct Details {
            upstream_inference_cost: Usd,
            upstream_inference_prompt_cost: Usd,
            upstream_inference_completions_cost: Usd,
        }
        let num_fields = match self.cost {
            None => 5,
            Some(CostField::Estimated(_)) => 6,
            Some(CostField::Detailed(_)) => 8,
        };
        let mut usage = serializer.serialize_struct("Usage", num_fields)?;
        usage.serialize_field("prompt_tokens", &self.prompt)?;
        usage.serialize_field("completion_tokens", &self.completion)?;
        usage.serialize_field("total_tokens", &(self.prompt + self.completion))?;
        usage.serialize_field(
            "prompt_tokens_details",
            &Prompt {
                cached_tokens: self.cached,
                audio_tokens: 0,
            },
        )?;
        usage.serialize_field(
            "completion_tokens_details",
            &Completion {
                reasoning_tokens: self.reasoning,
                audio_tokens: 0,
                accepted_prediction_tokens: self.accepted_drafts,
                rejected_prediction_tokens: self.rejected_drafts,
            },
        )?;
        match self.cost {
            None => {}
            Some(CostField::Estimated(cost)) => {
                usage.serialize_field("estimated_cost", &cost.total())?;
            }
            Some(CostField::Detailed(cost)) => {
                usage.serialize_field("cost", &cost.total())?;
                usage.serialize_field("is_byok", &false)?;
                usage.serialize_field(
                    "cost_details",
                    &Details {
                        upstream_inference_cost: cost.total(),
                        upstream_inference_prompt_cost: cost.prompt,
                        upstream_inference_completions_cost: cost.completion,
                    },
                )?;
            }
        }
        usage.end()
    }
}

/// Fields of our own that a choice carries on request.
#[derive(Default, Serialize)]
pub struct Extras<'a> {
    /// The prompt's ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_token_ids: Option<&'a [u32]>,
    /// Sampled ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub token_ids: Option<&'a [u32]>,
    /// Scores of the prompt.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prompt_logprobs: Option<&'a PromptScores>,
    /// `finish_reason` again: OpenRouter only.
    #[serde(skip_serializing_if = "NativeFinish::is_absent")]
    pub native_finish_reason: NativeFinish,
}

/// What a choice says about how the model itself ended.
#[derive(Clone, Copy, Default)]
pub enum NativeFinish {
    /// Nothing.
    #[default]
    Absent,
    /// `null` before the end.
    Reason(Option<&'static str>),
}

impl NativeFinish {
    /// As `flavour` has it.
    pub fn of(flavour: Flavour, finish: Option<Finish>) -> Self {
        match flavour {
            Flavour::OpenRouter => Self::Reason(finish.map(Finish::as_str)),
            _ => Self::Absent,
        }
    }

    fn is_absent(&self) -> bool {
        matches!(self, Self::Absent)
    }
}

impl Serialize for NativeFinish {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self {
            Self::Absent => serializer.serialize_none(),
            Self::Reason(reason) => reason.serialize(serializer),
        }
    }
}

/// Thoughts by all their names.
#[derive(Default, Serialize)]
pub struct Thoughts<'a> {
    /// As most servers call them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_content: Option<&'a str>,
    /// As some clients want them.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning: Option<&'a str>,
    /// As OpenRouter's clients send them back.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reasoning_details: Option<[ReasoningDetail<'a>; 1]>,
}

/// One block of thought; the deltas of a block share its `id` and `index`.
#[derive(Serialize)]
pub struct ReasoningDetail<'a> {
    /// `reasoning.text`.
    #[serde(rename = "type")]
    pub kind: &'static str,
    /// What is new of it.
    pub text: &'a str,
    /// Nobody signs thoughts here.
    pub signature: Option<&'static str>,
    /// Same in all deltas.
    pub id: String,
    /// `unknown`: plain text, of no vendor's making.
    pub format: &'static str,
    /// Which block.
    pub index: usize,
}

/// A choice of a chat answer.
#[derive(Serialize)]
pub struct ChatChoice<'a> {
    /// Which.
    pub index: usize,
    /// What was said.
    pub message: ChatMessage<'a>,
    /// `null` unless asked for.
    pub logprobs: Option<ChatLogprobs<'a>>,
    /// Why it ended.
    pub finish_reason: Option<&'static str>,
    /// On request.
    #[serde(flatten)]
    pub extras: Extras<'a>,
}

/// What was said.
#[derive(Serialize)]
pub struct ChatMessage<'a> {
    /// Always `assistant`.
    pub role: &'static str,
    /// The answer; `null` only beside calls.
    pub content: Option<&'a str>,
    /// Always `null`.
    pub refusal: Option<&'static str>,
    /// Always empty.
    pub annotations: [&'static str; 0],
    /// What was thought before.
    #[serde(flatten)]
    pub thoughts: Thoughts<'a>,
    /// What is called.
    #[serde(flatten)]
    pub calls: Calls<'a>,
}

/// A call of a tool, whole or what is new of it.
#[derive(Default, Serialize)]
pub struct CallItem<'a> {
    /// Which; chunks only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub index: Option<usize>,
    /// With the name.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<&'a str>,
    /// With the name: `function` or `custom`.
    #[serde(rename = "type", skip_serializing_if = "Option::is_none")]
    pub kind: Option<&'static str>,
    /// A function.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function: Option<FunctionItem<'a>>,
    /// A custom tool.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub custom: Option<CustomItem<'a>>,
}

/// A function with its arguments.
#[derive(Serialize)]
pub struct FunctionItem<'a> {
    /// First of a call only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// JSON text.
    pub arguments: &'a str,
}

/// A custom tool with its input.
#[derive(Serialize)]
pub struct CustomItem<'a> {
    /// First of a call only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub name: Option<&'a str>,
    /// Text.
    pub input: &'a str,
}

/// Calls, where a message or a delta has them.
#[derive(Default, Serialize)]
pub struct Calls<'a> {
    /// As tools.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub tool_calls: Vec<CallItem<'a>>,
    /// As the one function that `functions` allow.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub function_call: Option<FunctionItem<'a>>,
}

/// A choice of a chat chunk.
#[derive(Serialize)]
pub struct ChatChunkChoice<'a> {
    /// Which.
    pub index: usize,
    /// What is new.
    pub delta: ChatDelta<'a>,
    /// Of what is new; `null` unless asked for.
    pub logprobs: Option<ChatLogprobs<'a>>,
    /// Set once.
    pub finish_reason: Option<&'static str>,
    /// On request.
    #[serde(flatten)]
    pub extras: Extras<'a>,
}

/// What is new.
#[derive(Default, Serialize)]
pub struct ChatDelta<'a> {
    /// First chunk only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub role: Option<&'static str>,
    /// Answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub content: Option<&'a str>,
    /// Thoughts.
    #[serde(flatten)]
    pub thoughts: Thoughts<'a>,
    /// What is called.
    #[serde(flatten)]
    pub calls: Calls<'a>,
}

/// Log-probabilities as chat shows them.
#[derive(Serialize)]
pub struct ChatLogprobs<'a> {
    /// One per token of the answer.
    pub content: ChatEntries<'a>,
    /// Always `null`.
    pub refusal: Option<&'static str>,
}

/// `[{token, logprob, bytes, top_logprobs}]`.
pub struct ChatEntries<'a>(pub &'a [Entry]);

/// A choice of a completion, whole or a chunk.
#[derive(Serialize)]
pub struct TextChoice<'a> {
    /// Which.
    pub index: usize,
    /// What is new.
    pub text: &'a str,
    /// `null` unless asked for.
    pub logprobs: Option<TextLogprobs<'a>>,
    /// Set once.
    pub finish_reason: Option<&'static str>,
    /// On request.
    #[serde(flatten)]
    pub extras: Extras<'a>,
}

/// Log-probabilities as completions show them: four lists of equal length.
pub struct TextLogprobs<'a> {
    /// Tokens of the text.
    pub entries: &'a [Entry],
    /// Whether alternatives were asked for.
    pub with_top: bool,
}

/// Per prompt token, the token and its alternatives; the first has none.
#[derive(Clone, Debug, Default)]
pub struct PromptScores(pub Vec<Option<Vec<PromptScore>>>);

/// One candidate for a prompt token.
#[derive(Clone, Debug)]
pub struct PromptScore {
    /// Which token.
    pub id: u32,
    /// Under the raw logits.
    pub logprob: f32,
    /// 1 is the most likely; unknown beyond the alternatives.
    pub rank: Option<u32>,
    /// How it reads.
    pub decoded_token: String,
}

impl Finish {
    /// As the wire says it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Stop => "stop",
            Self::Length => "length",
            Self::ToolCalls => "tool_calls",
        }
    }
}

impl Serialize for ChatEntries<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct One<'a> {
            token: &'a str,
            logprob: f32,
            bytes: Option<&'a [u8]>,
            top_logprobs: Vec<Top<'a>>,
        }
        #[derive(Serialize)]
        struct Top<'a> {
            token: std::borrow::Cow<'a, str>,
            logprob: f32,
            bytes: Option<&'a [u8]>,
        }
        let mut list = serializer.serialize_seq(Some(self.0.len()))?;
        for entry in self.0 {
            list.serialize_element(&One {
                token: &entry.token.lossy(),
                logprob: entry.logprob.unwrap_or_default(),
                bytes: entry.token.bytes(),
                top_logprobs: entry
                    .top
                    .iter()
                    .map(|(token, logprob)| Top {
                        token: token.lossy(),
                        logprob: *logprob,
                        bytes: token.bytes(),
                    })
                    .collect(),
            })?;
        }
        list.end()
    }
}

impl TokenText {
    /// The exact bytes; structure has none.
    fn bytes(&self) -> Option<&[u8]> {
        match self {
            Self::Bytes(bytes) => Some(bytes),
            Self::Control(_) => None,
        }
    }

    /// As completions write it: part of a character as `bytes:\xe2\x82`.
    fn legacy(&self) -> String {
        match self {
            Self::Control(name) => name.clone(),
            Self::Bytes(bytes) => std::str::from_utf8(bytes).map_or_else(
                |_| {
                    let digits = bytes.iter().map(|byte| format!("\\x{byte:02x}"));
                    format!("bytes:{}", digits.collect::<String>())
                },
                str::to_owned,
            ),
        }
    }
}

impl Serialize for TextLogprobs<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let entries = self.entries;
        let tokens: Vec<String> = entries.iter().map(|e| e.token.legacy()).collect();
        let logprobs: Vec<Option<f32>> = entries.iter().map(|e| e.logprob).collect();
        let offsets: Vec<usize> = entries.iter().map(|e| e.text_offset).collect();
        let top: Vec<Option<TopMap<'_>>> = entries
            .iter()
            .map(|entry| {
                entry.logprob.map(|_| TopMap {
                    entry,
                    with_top: self.with_top,
                })
            })
            .collect();
        let mut lists = serializer.serialize_struct("Logprobs", 4)?;
        lists.serialize_field("tokens", &tokens)?;
        lists.serialize_field("token_logprobs", &logprobs)?;
        lists.serialize_field("top_logprobs", &top)?;
        lists.serialize_field("text_offset", &offsets)?;
        lists.end()
    }
}

/// Alternatives by how they read, and the token itself if it is none of them.
struct TopMap<'a> {
    entry: &'a Entry,
    with_top: bool,
}

impl Serialize for TopMap<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let mut map = serializer.serialize_map(None)?;
        if self.with_top {
            let entry = self.entry;
            let mut sampled_among_top = false;
            for (token, logprob) in &entry.top {
                sampled_among_top |= *token == entry.token;
                map.serialize_entry(&token.legacy(), logprob)?;
            }
            if !sampled_among_top {
                map.serialize_entry(&entry.token.legacy(), &entry.logprob)?;
            }
        }
        map.end()
    }
}

impl Serialize for PromptScores {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        #[derive(Serialize)]
        struct Score<'a> {
            logprob: f32,
            rank: Option<u32>,
            decoded_token: &'a str,
        }
        struct Candidates<'a>(&'a [PromptScore]);
        impl Serialize for Candidates<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut map = serializer.serialize_map(Some(self.0.len()))?;
                for score in self.0 {
                    let value = Score {
                        logprob: score.logprob,
                        rank: score.rank,
                        decoded_token: &score.decoded_token,
                    };
                    map.serialize_entry(&score.id.to_string(), &value)?;
                }
                map.end()
            }
        }
        let candidates = self.0.iter().map(|token| token.as_deref().map(Candidates));
        serializer.collect_seq(candidates)
    }
}
