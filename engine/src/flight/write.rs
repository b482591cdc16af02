//! Lines out of a recording, with tokens made unreadable.
//!
//! What a token says is of no use to whoever runs a plan again; which prompts begin alike is. So a
//! token is written as a keyed hash of all tokens up to it: equal beginnings stay equal, and nothing
//! else can be told, not even how often a word occurs. Prompts under different salts share nothing, so
//! whether they begin alike cannot be told either. The key is drawn for each file and kept nowhere.
//! Tokens that end their choice all read [`STOP`].

use std::collections::HashMap;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Write};
use std::sync::Arc;

use scheduler::{Request, SamplingParams};

use super::line::{AddLine, FORMAT, Header, Line, ResultLine, TimedLine};
use super::note::{PlanNote, ResultNote};
use super::{Call, Recording};

/// Stands for every token that ends its choice. No other token reads so: hashes are below 2^31.
const STOP: u32 = u32::MAX;

/// What becomes of tokens in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Contents {
    /// Written so that only equal beginnings can be recognised.
    #[default]
    Hidden,
    /// Written as they are: whoever has the tokenizer reads what was said.
    Plain,
}

impl Recording {
    /// Writes it as lines of JSON.
    pub fn write(&self, out: &mut dyn Write, contents: Contents) -> io::Result<()> {
        let header = Header {
            flight: FORMAT,
            version: env!("CARGO_PKG_VERSION").to_owned(),
            contents: contents == Contents::Plain,
            num_dropped: self.num_dropped,
            config: (&self.setup.config).into(),
            cache: (&self.setup.cache).into(),
        };
        put(out, &header)?;
        let mut writer = Writer {
            key: RandomState::new(),
            contents,
            chains: HashMap::new(),
            next_sequence: self.num_forgotten,
            plan: None,
        };
        for timed in &self.calls {
            let line: TimedLine = (timed.at, writer.line(&timed.call));
            put(out, &line)?;
        }
        Ok(())
    }
}

fn put(out: &mut dyn Write, line: &impl serde::Serialize) -> io::Result<()> {
    serde_json::to_writer(&mut *out, line)?;
    out.write_all(b"\n")
}

struct Writer<'a> {
    key: RandomState,
    contents: Contents,
    /// By the low bits of their sequence's number, as plans have them.
    chains: HashMap<u32, Chain>,
    next_sequence: u64,
    /// Whose result comes next.
    plan: Option<&'a PlanNote>,
}

/// All tokens of a sequence so far.
#[derive(Clone)]
struct Chain {
    hash: u64,
    /// `None`: its arrival is not in the recording.
    sampling: Option<Arc<SamplingParams>>,
}

impl<'a> Writer<'a> {
    fn line(&mut self, call: &'a Call) -> Line {
        match call {
            Call::Add(request) => Line::Add(self.add(request)),
            Call::Abort(id) => Line::Abort(id.0),
            Call::FinishChoice(id, choice) => Line::Finish(id.0, *choice),
            Call::PauseDrafts(paused) => Line::PauseDrafts(*paused),
            Call::Times(times) => Line::Times(times.iter().map(Into::into).collect()),
            Call::Idle(times) => Line::Idle(*times),
            Call::Plan(plan) => {
                self.plan = Some(plan);
                Line::Plan(plan.clone())
            }
            Call::Result(result) => Line::Result(self.result(result)),
        }
    }

    fn add(&mut self, request: &Request) -> AddLine {
        let sampling = &request.sampling;
        let mut chain = Chain {
            hash: self.key.hash_one(&*request.cache_salt),
            sampling: Some(Arc::clone(sampling)),
        };
        let tokens = request.prompt.iter();
        let prompt = tokens.map(|token| self.read(&mut chain, *token)).collect();
        for _ in 0..request.num_choices {
            self.chains.insert(self.next_sequence as u32, chain.clone());
            self.next_sequence += 1;
        }
        let stops = match self.contents {
            Contents::Plain => sampling.stop_token_ids.clone(),
            Contents::Hidden if sampling.stop_token_ids.is_empty() => Vec::new(),
            Contents::Hidden => vec![STOP],
        };
        let salt = match self.contents {
            Contents::Hidden if !request.cache_salt.is_empty() => {
                format!("{:016x}", self.key.hash_one(&*request.cache_salt))
            }
            _ => request.cache_salt.to_string(),
        };
        AddLine {
            id: request.id.0,
            prompt,
            max_tokens: sampling.max_tokens,
            stops,
            scores: sampling.prompt_logprobs,
            n: request.num_choices,
            salt,
            boundaries: request.boundaries.to_vec(),
            priority: request.priority,
            tenant: request.tenant.0,
            weight: request.tenant_weight,
        }
    }

    fn result(&mut self, result: &ResultNote) -> ResultLine {
        // A recording may begin between a plan and its result.
        let planned = self.plan.take().map_or(&[][..], |plan| &*plan.rows);
        let mut tokens = &*result.tokens;
        let mut rows = Vec::with_capacity(result.rows.len());
        for (at, row) in result.rows.iter().enumerate() {
            let (own, rest) = tokens.split_at(row.num_tokens.into());
            tokens = rest;
            let whose = planned.get(at).map(|planned| planned.0);
            let own = self.drawn(whose, own);
            rows.push((own, row.num_drafts, row.fault.map(Into::into)));
        }
        ResultLine {
            ns: result.nanos,
            times: result.times.iter().map(Into::into).collect(),
            rows,
        }
    }

    fn drawn(&mut self, whose: Option<u32>, tokens: &[u32]) -> Vec<u32> {
        let unknown = || Chain {
            hash: self.key.hash_one(whose),
            sampling: None,
        };
        let known = whose.and_then(|whose| self.chains.remove(&whose));
        let mut chain = known.unwrap_or_else(unknown);
        let ends = |chain: &Chain, token: u32| {
            let sampling = chain.sampling.as_ref();
            sampling.is_some_and(|sampling| sampling.stop_token_ids.contains(&token))
        };
        let mut read = Vec::with_capacity(tokens.len());
        for token in tokens {
            let stops = self.contents == Contents::Hidden && ends(&chain, *token);
            let shown = self.read(&mut chain, *token);
            read.push(if stops { STOP } else { shown });
        }
        self.chains.extend(whose.map(|whose| (whose, chain)));
        read
    }

    /// What stands for the next token of a chain.
    fn read(&self, chain: &mut Chain, token: u32) -> u32 {
        match self.contents {
            Contents::Plain => token,
            Contents::Hidden => {
                chain.hash = self.key.hash_one((chain.hash, token));
                (chain.hash >> 33) as u32
            }
        }
    }
}
