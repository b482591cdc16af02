//! Script in, schedule out.
//!
//! A script sets up a small machine, lets named requests arrive and takes steps:
//!
//! ```text
//! machine budget=8 seqs=4 queue=8 len=64 block=4 blocks=16 slots=6 host=20
//! a prompt=s8+u3 max=4 n=2 salt=x scores    s8: eight tokens of text s; equal texts are equal
//! c prompt=s8 messages=3,6 priority=-1 max=4  messages begin at 3 and 6
//! b prompt=s8+u3+a.0 max=4                  a.0: all that choice 0 of a has said
//! d prompt=s8 max=4 tenant=2 weight=3       the second of tenants, with a share of three
//! step 3                                    three steps
//! launch                                    half a step: the runner works on it
//! land                                      the other half
//! abort a
//! finish a.1
//! fault a                                   rows of a go wrong from now on
//! ```
//!
//! `host` is for so many slots and blocks.
//!
//! The schedule shows for each step the operations, a line per row (whose, positions, whether it
//! samples, blocks, slot), the news, and who holds memory afterwards.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::sync::Arc;

use scheduler::{
    BlockId, CacheConfig, FinishReason, Request, RequestId, RequestOutput, Row, RowFault,
    RowResult, Runner, SamplingParams, Scheduler, SchedulerConfig, SchedulerOutput, SequenceId,
    SlotId, StateOp, TenantId,
};

use crate::reference::Poison;
use crate::toy_model::{Guessing, ToyModel};

/// Plays a script and returns its schedule.
pub fn play(script: &str) -> String {
    let mut lines = script
        .lines()
        .filter(|line| !line.starts_with('#') && !line.is_empty());
    let machine = lines.next().expect("a script begins with a machine");
    let mut player = Player::new(&Words::of(machine));
    for line in lines {
        player.obey(&Words::of(line));
    }
    player.shown
}

/// `verb plain.. key=value..`
struct Words<'a> {
    words: Vec<&'a str>,
}

impl<'a> Words<'a> {
    fn of(line: &'a str) -> Self {
        Self {
            words: line.split_whitespace().collect(),
        }
    }

    fn value(&self, key: &str) -> Option<&'a str> {
        let mut pairs = self.words.iter().filter_map(|word| word.split_once('='));
        pairs.find(|(name, _)| *name == key).map(|(_, value)| value)
    }

    fn number(&self, key: &str) -> Option<u32> {
        let value = self.value(key)?;
        Some(
            value
                .parse()
                .unwrap_or_else(|_| panic!("{key}={value} should be a number")),
        )
    }

    fn list(&self, key: &str) -> Vec<u32> {
        let values = self.value(key).unwrap_or("").split(',');
        let values = values.filter(|value| !value.is_empty());
        let number = |value: &str| value.parse().expect("a list of numbers");
        values.map(number).collect()
    }

    fn signed(&self, key: &str) -> i8 {
        let value = self.value(key).unwrap_or("0");
        value
            .parse()
            .unwrap_or_else(|_| panic!("{key}={value} should be a small number"))
    }

    fn must(&self, key: &str) -> u32 {
        self.number(key)
            .unwrap_or_else(|| panic!("{key}= is missing"))
    }
}

struct Player {
    scheduler: Scheduler,
    model: ToyModel,
    /// By name: the request, and what each choice has said.
    requests: BTreeMap<String, (RequestId, Vec<Vec<u32>>)>,
    /// Names of sequences, in the order in which the scheduler numbers them.
    sequences: Vec<String>,
    faulty: Vec<String>,
    /// Whether a step is in flight.
    launched: bool,
    shown: String,
}

impl Player {
    fn new(machine: &Words<'_>) -> Self {
        let config = SchedulerConfig {
            max_num_batched_tokens: machine.must("budget"),
            max_num_seqs: machine.must("seqs"),
            max_queue: machine.number("queue").unwrap_or(100),
            max_model_len: machine.number("len").unwrap_or(1000),
            grid: machine.number("grid"),
            max_drafts: machine.number("drafts").unwrap_or(0),
            draft_costs: Vec::new(),
            max_slowdown: None,
            context_cost: 0,
        };
        let cache = CacheConfig {
            block_size: machine.must("block"),
            num_blocks: machine.must("blocks") + 1,
            num_slots: machine.must("slots") + 1,
            num_host_slots: machine.number("host").unwrap_or(0),
            num_host_blocks: machine.number("host").unwrap_or(0),
        };
        let poison = Poison {
            one_in: 0,
            shows_at_once: false,
        };
        let guessing = Guessing {
            percent: machine.number("right").unwrap_or(100).into(),
            seed: 0,
        };
        Self {
            model: ToyModel::new(&cache, 1000, poison, guessing),
            scheduler: Scheduler::new(config, cache),
            requests: BTreeMap::new(),
            sequences: Vec::new(),
            faulty: Vec::new(),
            launched: false,
            shown: String::new(),
        }
    }

    fn obey(&mut self, line: &Words<'_>) {
        match line.words[..] {
            ["step"] => self.step(),
            ["step", times] => {
                for _ in 0..times.parse().expect("a number of steps") {
                    self.step();
                }
            }
            ["launch"] => self.launch(),
            ["land"] => self.land(),
            ["abort", name] => {
                self.note(&format!("abort {name}"));
                self.scheduler.abort(self.requests[name].0);
                self.memory();
            }
            ["finish", choice] => {
                self.note(&format!("finish {choice}"));
                let (name, choice) = choice.split_once('.').expect("name.choice");
                let choice = choice.parse().expect("a choice is a number");
                self.scheduler.finish_choice(self.requests[name].0, choice);
                self.memory();
            }
            ["fault", name] => {
                self.note(&format!("fault {name}"));
                self.faulty.push(name.to_owned());
            }
            [name, ..] => self.add(name, line),
            [] => unreachable!("empty lines were filtered"),
        }
        self.scheduler.check_invariants();
    }

    fn add(&mut self, name: &str, line: &Words<'_>) {
        let prompt = self.prompt(line.value("prompt").expect("prompt= is missing"));
        let num_choices = line.number("n").unwrap_or(1);
        let sampling = SamplingParams {
            max_tokens: line.must("max"),
            prompt_logprobs: line.words.contains(&"scores").then_some(0),
            ..Default::default()
        };
        let id = RequestId(self.requests.len() as u64);
        let request = Request {
            id,
            prompt: prompt.into(),
            sampling: Arc::new(sampling),
            num_choices,
            cache_salt: line.value("salt").unwrap_or("").into(),
            boundaries: line.list("messages").into(),
            priority: line.signed("priority"),
            tenant: TenantId(line.number("tenant").unwrap_or(0)),
            tenant_weight: line.number("weight").unwrap_or(1) as u16,
        };
        self.note(&line.words.join(" "));
        if let Err(error) = self.scheduler.add(request) {
            self.show(&format!("  refused: {error}"));
            return;
        }
        self.requests.insert(
            name.to_owned(),
            (id, vec![Vec::new(); num_choices as usize]),
        );
        let numbered = |choice| format!("{name}.{choice}");
        match num_choices {
            1 => self.sequences.push(name.to_owned()),
            _ => self.sequences.extend((0..num_choices).map(numbered)),
        }
    }

    /// `s8+u3+a.0`
    fn prompt(&self, parts: &str) -> Vec<u32> {
        let mut prompt = Vec::new();
        for part in parts.split('+') {
            if let Some((name, choice)) = part.split_once('.') {
                let choice: usize = choice.parse().expect("a choice is a number");
                prompt.extend(&self.requests[name].1[choice]);
            } else {
                let (text, len) = part.split_at(1);
                let first = 1000 * (u32::from(text.as_bytes()[0]) + 1);
                let len: u32 = len.parse().expect("a text has a length");
                prompt.extend(first..first + len);
            }
        }
        prompt
    }

    fn step(&mut self) {
        self.launch();
        if self.launched {
            self.land();
        }
    }

    fn launch(&mut self) {
        let Some(plan) = self.scheduler.schedule() else {
            self.show("idle");
            return;
        };
        self.scheduler.check_invariants();
        self.show(&format!("step {}", plan.step.0));
        self.show_plan(&plan);
        let Ok(()) = self.model.submit(plan);
        self.launched = true;
    }

    fn land(&mut self) {
        assert!(self.launched, "land follows launch");
        self.launched = false;
        let Ok(mut result) = self.model.collect(&[]);
        for RowResult { sequence, outcome } in &mut result.rows {
            let name = self.name(*sequence);
            if self
                .faulty
                .iter()
                .any(|faulty| name.split('.').next() == Some(faulty))
            {
                *outcome = Err(RowFault::BadLogits);
            }
        }
        for news in self.scheduler.update(result) {
            self.hear(&news);
        }
        self.memory();
    }

    fn hear(&mut self, news: &RequestOutput) {
        let (name, said) = self
            .requests
            .iter_mut()
            .find(|(_, (id, _))| *id == news.request)
            .map(|(name, (_, said))| (name.clone(), said))
            .expect("news of a known request");
        let label = if said.len() == 1 {
            name
        } else {
            format!("{name}.{}", news.choice)
        };
        said[news.choice as usize].extend(&news.tokens);
        let mut line = format!("  -> {label}: {} token", news.tokens.len());
        if !news.prompt_logprobs.is_empty() {
            write!(line, ", {} scores", news.prompt_logprobs.len()).expect("a string");
        }
        if news.num_cached_tokens > 0 {
            write!(line, ", {} cached", news.num_cached_tokens).expect("a string");
        }
        match news.finish {
            None => {}
            Some(FinishReason::Stop(_)) => line.push_str(", ends: stop"),
            Some(FinishReason::Length) => line.push_str(", ends: length"),
            Some(FinishReason::Aborted) => line.push_str(", ends: aborted"),
            Some(FinishReason::Fault(_)) => line.push_str(", ends: fault"),
        }
        self.show(&line);
    }

    fn name(&self, SequenceId(index): SequenceId) -> &str {
        &self.sequences[index as usize]
    }

    fn show_plan(&mut self, plan: &SchedulerOutput) {
        for op in &plan.ops {
            let line = match op {
                StateOp::ZeroSlot(SlotId(slot)) => format!("  zero s{slot}"),
                StateOp::CopySlot {
                    from: SlotId(from),
                    to: SlotId(to),
                } => {
                    format!("  copy s{from} to s{to}")
                }
                StateOp::CopyBlock {
                    from: BlockId(from),
                    to: BlockId(to),
                } => {
                    format!("  copy b{from} to b{to}")
                }
                StateOp::SlotToHost { from, to } => format!("  s{} to host s{}", from.0, to.0),
                StateOp::BlockToHost { from, to } => format!("  b{} to host b{}", from.0, to.0),
                StateOp::HostToSlot { from, to } => format!("  host s{} to s{}", from.0, to.0),
                StateOp::HostToBlock { from, to } => format!("  host b{} to b{}", from.0, to.0),
            };
            self.show(&line);
        }
        let lines: Vec<String> = plan.rows.iter().map(|row| self.row_line(row)).collect();
        for line in lines {
            self.show(&line);
        }
    }

    fn row_line(&self, row: &Row) -> String {
        let span = format!(
            "{}..{}",
            row.start,
            row.start as usize + row.input_ids.len()
        );
        let does = match (&row.sample, &row.prompt_logprobs) {
            (Some(_), Some(_)) => "scores, samples",
            (Some(_), None) => "samples",
            (None, Some(_)) => "scores",
            (None, None) => "",
        };
        let blocks: Vec<String> = row
            .block_table
            .iter()
            .map(|block| format!("b{}", block.0))
            .collect();
        let mut saves = String::new();
        for save in &row.saves {
            write!(saves, "  {} to s{}", save.at, save.to.0).expect("a string");
        }
        let (name, slot, blocks) = (self.name(row.sequence), row.slot.0, blocks.join(" "));
        let drafting = &row.drafting;
        let mut drafts = String::new();
        for (num, what) in [
            (drafting.num_pending, "pending"),
            (drafting.num_drafts, "drafts"),
            (drafting.max_drafts, "to make"),
        ] {
            if num > 0 {
                let _ = write!(drafts, "  {num} {what}");
            }
        }
        format!("  {name:4} {span:7} {does:8} s{slot}  {blocks}{saves}{drafts}")
    }

    fn memory(&mut self) {
        let stats = self.scheduler.stats();
        let line = format!(
            "  == blocks {} used, {} cached; slots {} live, {} saved; {} wait",
            stats.num_blocks_used,
            stats.num_blocks_cached,
            stats.num_slots_used,
            stats.num_slots_cached,
            stats.num_waiting
        );
        self.show(&line);
    }

    fn note(&mut self, text: &str) {
        self.show(&format!("> {text}"));
    }

    fn show(&mut self, line: &str) {
        self.shown.push_str(line.trim_end());
        self.shown.push('\n');
    }
}
