//! The end of a request: what was sampled is counted once, and a receipt is kept.
//!
//! ```text
//! //   read by the answer | waiting in the channel | sampled after the abort
//! //   counted as it came | counted here           | nobody's
//! ```

use std::sync::Arc;
use std::time::{Instant, SystemTime};

use engine::StreamEvent;
use futures_util::FutureExt as _;
use futures_util::stream::{SelectAll, StreamExt as _};
use tokio::task::unconstrained;

use super::Generation;
use crate::api::choice::{Choice, Finish};
use crate::receipts::Receipt;
use crate::timeline::Timeline;

impl Generation {
    /// The answer goes out in events.
    pub fn streams(&mut self) {
        self.streamed = true;
    }

    /// Ends the request, counts what was sampled until now and keeps a receipt. Nothing that the
    /// engine says later counts.
    pub fn settle(&mut self) {
        if std::mem::replace(&mut self.settled, true) {
            return;
        }
        // Who waits for nobody must not be made to by its fair share either.
        while let Some(Some((prompt, event))) = unconstrained(self.events.next()).now_or_never() {
            if let Some(StreamEvent::Output(output)) = event {
                // A fault of one choice leaves the others' tokens to count.
                let _ = self.take_output(prompt, output);
            }
        }
        self.events = SelectAll::new();
        for (prompt, output) in std::mem::take(&mut self.early) {
            let index = prompt * self.num_choices + output.choice as usize;
            if !self.choices[index].is_finished() {
                self.ctx.count_generated(output.tokens.len() as u64);
                self.count_late(prompt);
            }
        }
        for prompt in 0..self.prompts.len() {
            let first = prompt * self.num_choices;
            let of_prompt = &self.choices[first..first + self.num_choices];
            if of_prompt.iter().any(|choice| choice.num_tokens() > 0) {
                self.count_late(prompt);
            }
        }
        let (abort, metrics) = (
            if self.failed { "error" } else { "abort" },
            &self.ctx.state.metrics,
        );
        for _ in 0..self.num_unfinished {
            metrics.count_finished(abort);
        }
        self.keep_receipt();
        self.keep_timeline();
    }

    /// Counts a prompt of which choices were sampled before its own first output came.
    fn count_late(&mut self, prompt: usize) {
        let prompt = &mut self.prompts[prompt];
        if !std::mem::replace(&mut prompt.started, true) {
            self.ctx.count_prompt(prompt.ids.len() as u64, 0);
        }
    }

    fn keep_timeline(&self) {
        let unfinished = if self.failed { "error" } else { "abort" };
        let finish = |choice: &Choice| choice.ended().map_or(unfinished, Finish::as_str);
        let begun = self.begun.iter().filter_map(|begun| begun.get());
        let timeline = Timeline {
            submitted: self.submitted,
            begun: begun.min().copied(),
            first_token: self.first_token,
            last_token: self.last_token.iter().flatten().max().copied(),
            chat: self.chat,
            streamed: self.streamed,
            usage: self.counted(),
            finishes: self.choices.iter().map(finish).collect(),
            sampling: self.sampling.clone(),
            num_choices: self.num_choices,
        };
        self.ctx.state.metrics.observe_generation(&timeline);
        // A request has one generation; were there more, the first is the one that it answers with.
        self.ctx.timeline.get_or_init(|| timeline);
    }

    fn keep_receipt(&self) {
        let ctx = &self.ctx;
        let Some(name) = ctx.generation.get() else {
            return;
        };
        let now = Instant::now();
        let usage = self.counted();
        ctx.state.receipts.keep(Receipt {
            id: Arc::clone(&name.id),
            request_id: Arc::clone(&ctx.request_id),
            key: ctx.key(),
            model: Arc::clone(&name.model),
            chat: self.chat,
            streamed: self.streamed,
            cancelled: !self.failed && self.num_unfinished > 0,
            finish: if self.failed {
                Some("error")
            } else {
                self.finish.map(Finish::as_str)
            },
            usage,
            cost: ctx.state.config.prices.cost(ctx.flavour, &usage),
            ended: SystemTime::now(),
            took: now - ctx.received,
            to_first_token: self.first_token.map(|first| first - ctx.received),
        });
    }
}
