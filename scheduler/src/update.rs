//! What a result changes.

use kvcache::SnapshotKind;

use crate::output::{RequestOutput, RowFault, RowOutput, SequenceId, StepResult, TokenLogprobs};
use crate::request::FinishReason;
use crate::scheduler::{PlannedRow, Scheduler};
use crate::sequence::{Sequence, Status};
use crate::stop;

impl Scheduler {
    /// Takes a plan's result; returns news for clients. From here on all memory of the step is ours
    /// again.
    pub fn update(&mut self, result: StepResult) -> Vec<RequestOutput> {
        let in_flight = self.in_flight.take().expect("a result follows its plan");
        assert_eq!(result.step, in_flight.step, "a result is its plan's");
        assert_eq!(
            result.rows.len(),
            in_flight.rows.len(),
            "a result has its plan's rows"
        );
        let mut news = Vec::new();
        for (planned, row) in in_flight.rows.into_iter().zip(result.rows) {
            assert_eq!(
                row.sequence, planned.sequence,
                "a result has its plan's order"
            );
            // A sibling's fault in this very step may have ended it.
            let Some(sequence) = self.sequences.get(&planned.sequence) else {
                continue;
            };
            match (sequence.status(), row.outcome) {
                (Status::Running, Ok(output)) => news.extend(self.accept(planned, output)),
                (Status::Running, Err(fault)) => {
                    self.fail_request(planned.sequence, fault, &mut news);
                }
                (Status::Leaving { publish }, Ok(_)) => self.see_off(planned, publish),
                (Status::Leaving { .. }, Err(_)) => self.discard(planned.sequence),
                (Status::Waiting, _) => unreachable!("nobody yields while in flight"),
            }
        }
        news
    }

    /// A row went well.
    fn accept(&mut self, planned: PlannedRow, output: RowOutput) -> Option<RequestOutput> {
        assert!(
            output.tokens.len() <= usize::from(planned.samples),
            "one token at most, and none where none was asked for"
        );
        let id = planned.sequence;
        let sequence = self
            .sequences
            .get_mut(&id)
            .expect("looked up by our caller");
        sequence.advance(planned.len, output.prompt_logprobs);
        let finish = match output.tokens.first() {
            Some(&token) => {
                self.counters.generation_tokens += 1;
                sequence.append(token);
                let num_tokens = sequence.tokens().len() as u32;
                let params = &sequence.request.sampling;
                let max_model_len = self.config.max_model_len;
                stop::check(
                    params,
                    max_model_len,
                    token,
                    sequence.num_generated(),
                    num_tokens,
                )
            }
            // Its grammar cannot be followed further: what it has is a beginning.
            None if planned.samples => Some(FinishReason::Length),
            None => has_all_it_wants(sequence).then_some(FinishReason::Length),
        };
        let news = (planned.samples || finish.is_some())
            .then(|| tell(sequence, output.tokens, output.logprobs, finish));
        if finish.is_some() {
            self.forget_choice(id);
            self.remove(id, true);
        } else if sequence.saves_prompt() && sequence.num_computed() == sequence.prompt_end() {
            let num_computed = sequence.num_computed() as usize;
            let (lease, chain, tokens) = sequence.cache_parts();
            // Without a spare slot there is no snapshot, and who waits for it computes by itself.
            self.cache.save(
                lease,
                chain,
                &tokens[..num_computed],
                SnapshotKind::PromptEnd,
            );
        }
        news
    }

    /// A row went wrong: all choices of its request end.
    fn fail_request(&mut self, id: SequenceId, fault: RowFault, news: &mut Vec<RequestOutput>) {
        let request = self.sequences[&id].request.id;
        let choices = self.requests[&request].sequences.clone();
        for choice in choices {
            let sequence = self
                .sequences
                .get_mut(&choice)
                .expect("a choice has a sequence");
            let finish = FinishReason::Fault(fault);
            news.push(tell(sequence, Vec::new(), Vec::new(), Some(finish)));
            self.forget_choice(choice);
            if choice != id {
                self.remove(choice, false);
            }
        }
        self.discard(id);
    }

    /// Ended by its client while in flight, and the row went well.
    fn see_off(&mut self, planned: PlannedRow, publish: bool) {
        let sequence = self
            .sequences
            .get_mut(&planned.sequence)
            .expect("looked up by our caller");
        sequence.advance(planned.len, Vec::new());
        self.remove(planned.sequence, publish);
    }

    /// Its row went wrong: whatever it went through is suspect.
    fn discard(&mut self, id: SequenceId) {
        let sequence = self
            .sequences
            .get_mut(&id)
            .expect("looked up by our caller");
        let (_, chain, tokens) = sequence.cache_parts();
        self.cache.forget(chain, tokens);
        self.remove(id, false);
    }
}

/// Only who samples nothing ever is done without a sample.
fn has_all_it_wants(sequence: &Sequence) -> bool {
    sequence.request.sampling.max_tokens == 0 && sequence.num_computed() == sequence.num_wanted()
}

fn tell(
    sequence: &mut Sequence,
    tokens: Vec<u32>,
    logprobs: Vec<TokenLogprobs>,
    finish: Option<FinishReason>,
) -> RequestOutput {
    RequestOutput {
        request: sequence.request.id,
        choice: sequence.choice,
        tokens,
        logprobs,
        prompt_logprobs: sequence.deliver_scores(),
        num_cached_tokens: sequence.num_cached(),
        finish,
    }
}
