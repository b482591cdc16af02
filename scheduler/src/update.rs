//! What a result changes.

use crate::output::{RequestOutput, RowFault, RowOutput, SequenceId, StepResult, TokenLogprobs};
use crate::request::FinishReason;
use crate::scheduler::{PlannedRow, Scheduler};
use crate::sequence::{Sequence, Status};
use crate::stop;
use crate::tenants::GENERATED;

impl Scheduler {
    /// Takes a plan's result; returns news for clients. From here on all memory of the step is ours
    /// again.
    pub fn update(&mut self, result: StepResult) -> Vec<RequestOutput> {
        let mut in_flight = self.in_flight.take().expect("a result follows its plan");
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
            let saves = in_flight.saves.remove(&planned.sequence);
            let saves = saves.unwrap_or_default();
            // A sibling's fault in this very step may have ended it.
            let Some(sequence) = self.sequences.get(&planned.sequence) else {
                self.cancel_saves(saves);
                continue;
            };
            let status = sequence.status();
            let is_good = row.outcome.is_ok() && status != (Status::Leaving { publish: false });
            if is_good {
                self.finish_saves(planned.sequence, saves);
            } else {
                self.cancel_saves(saves);
            }
            match (status, row.outcome) {
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
    fn accept(&mut self, planned: PlannedRow, mut output: RowOutput) -> Option<RequestOutput> {
        let max_tokens = usize::from(planned.samples) * (1 + planned.num_drafts as usize);
        assert!(
            output.tokens.len() <= max_tokens,
            "{} tokens where {max_tokens} at most were asked for",
            output.tokens.len()
        );
        assert!(
            output.drafts.len() <= planned.max_drafts as usize,
            "no more drafts than were asked for"
        );
        let id = planned.sequence;
        self.note_drafts(planned, &output);
        let sequence = self
            .sequences
            .get_mut(&id)
            .expect("looked up by our caller");
        let num_told = output.tokens.len() as u32;
        let finish = append(sequence, &mut output, self.config.max_model_len);
        let num_kept = output.tokens.len() as u32;
        self.counters.generation_tokens += u64::from(num_kept);
        self.tenants
            .charge(sequence.request.tenant, GENERATED * num_kept);
        // What was drawn behind a draft that came true makes it a token computed.
        let num_drafts_computed = num_kept.saturating_sub(1);
        sequence.advance(
            planned.len + num_drafts_computed,
            planned.num_drafts > 0,
            output.prompt_logprobs,
        );
        sequence.guesses.is_drafted = planned.max_drafts > 0 && num_kept > 0;
        sequence.guesses.drafts = output.drafts;
        let finish = match finish {
            // Its grammar cannot be followed further: what it has is a beginning.
            None if planned.samples && num_kept == 0 => Some(FinishReason::Length),
            None if has_all_it_wants(sequence) => Some(FinishReason::Length),
            finish => finish,
        };
        // A draft before a token that was drawn came true.
        let num_accepted = num_kept.min(num_told.saturating_sub(1));
        let num_rejected = planned.num_drafts - num_accepted;
        let news = (planned.samples || finish.is_some()).then(|| RequestOutput {
            num_accepted_drafts: num_accepted,
            num_rejected_drafts: num_rejected,
            ..tell(sequence, output.tokens, output.logprobs, finish)
        });
        if finish.is_some() {
            self.forget_choice(id);
            self.remove(id, true);
        } else {
            self.trim(id);
        }
        news
    }

    /// Counts which drafts came true.
    fn note_drafts(&mut self, planned: PlannedRow, output: &RowOutput) {
        let num_drafts = planned.num_drafts;
        if num_drafts == 0 {
            return;
        }
        let num_accepted = (output.tokens.len() as u32).saturating_sub(1);
        let sequence = self
            .sequences
            .get_mut(&planned.sequence)
            .expect("looked up by our caller");
        self.depth
            .note(&mut sequence.guesses.guesser, num_drafts, num_accepted);
        let counters = &mut self.counters;
        counters.drafted_rows += 1;
        counters.draft_tokens += u64::from(num_drafts);
        for position in &mut counters.accepted_by_position[..num_accepted as usize] {
            *position += 1;
        }
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
        sequence.advance(planned.len, planned.num_drafts > 0, Vec::new());
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

/// Takes the tokens drawn one by one, and drops what lies behind one that ends the choice.
fn append(
    sequence: &mut Sequence,
    output: &mut RowOutput,
    max_model_len: u32,
) -> Option<FinishReason> {
    for (at, &token) in output.tokens.iter().enumerate() {
        sequence.append(token);
        let finish = stop::check(
            &sequence.request.sampling,
            max_model_len,
            token,
            sequence.num_generated(),
            sequence.tokens().len() as u32,
        );
        if finish.is_some() {
            output.tokens.truncate(at + 1);
            output.logprobs.truncate(at + 1);
            return finish;
        }
    }
    None
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
        num_accepted_drafts: 0,
        num_rejected_drafts: 0,
        finish,
    }
}
