//! How far each choice has come through its guide.
//!
//! A state depends on the tokens that its choice has sampled and on nothing else, so preemption
//! leaves it alone. The scheduler never sees it.

use std::collections::HashMap;
use std::sync::Arc;

use constraint::{Guide, GuideError, GuideState};
use parking_lot::Mutex;
use scheduler::{RequestId, RowFault, RowMasks, SchedulerOutput, StepResult};

/// Guides of the requests in flight.
#[derive(Default)]
pub(crate) struct Constraints {
    requests: HashMap<RequestId, Vec<Option<Choice>>>,
}

/// One choice's way. The state begins with its first token: a copy of a large grammar takes a while,
/// and choices that wait have time.
struct Choice {
    guide: Arc<Guide>,
    state: Option<GuideState>,
    /// Why no mask can be made any more.
    exhausted: Option<GuideError>,
}

/// The rows of a plan that sample under a guide.
pub(crate) struct Constrained {
    num_rows: usize,
    rows: Vec<ConstrainedRow>,
}

struct ConstrainedRow {
    /// Where it is in the plan.
    at: usize,
    request: RequestId,
    choice: usize,
    /// Guesses that it runs at the tokens that it draws.
    drafts: Vec<u32>,
}

impl Constraints {
    /// Begins a request.
    pub(crate) fn add(&mut self, id: RequestId, num_choices: u32, guide: &Arc<Guide>) {
        let choice = || {
            Some(Choice {
                guide: Arc::clone(guide),
                state: None,
                exhausted: None,
            })
        };
        let choices = (0..num_choices).map(|_| choice()).collect();
        self.requests.insert(id, choices);
    }

    /// Forgets a choice that has ended.
    pub(crate) fn finish_choice(&mut self, id: RequestId, choice: u32) {
        let Some(choices) = self.requests.get_mut(&id) else {
            return;
        };
        choices[choice as usize] = None;
        if choices.iter().all(Option::is_none) {
            self.requests.remove(&id);
        }
    }

    /// Forgets a request.
    pub(crate) fn drop_request(&mut self, id: RequestId) {
        self.requests.remove(&id);
    }

    /// Who in this plan needs a mask.
    pub(crate) fn of(&self, plan: &SchedulerOutput) -> Constrained {
        let rows = plan.rows.iter().enumerate().filter_map(|(at, row)| {
            let sample = row.sample.as_ref()?;
            let choice = sample.choice as usize;
            self.requests.get(&sample.request)?[choice].as_ref()?;
            let num_known = row.input_ids.len() - row.drafting.num_drafts as usize;
            Some(ConstrainedRow {
                at,
                request: sample.request,
                choice,
                drafts: row.input_ids[num_known..].to_vec(),
            })
        });
        Constrained {
            num_rows: plan.rows.len(),
            rows: rows.collect(),
        }
    }

    /// What the rows of the plan may draw, in its order, made while the runner works.
    pub(crate) fn masks(&mut self, constrained: &Constrained) -> Vec<RowMasks> {
        // A mask costs some ten microseconds, more than handing it over.
        const COST: usize = 1 << 20;
        let rows = &constrained.rows;
        let jobs: Vec<_> = rows
            .iter()
            .map(|row| Mutex::new((self.take(row), RowMasks::Free)))
            .collect();
        kernels::share(rows.len(), rows.len() * COST, |at| {
            let (choice, masks) = &mut *jobs[at].lock();
            *masks = choice.masks(&rows[at].drafts);
        });
        let mut all = vec![RowMasks::Free; constrained.num_rows];
        for (row, job) in rows.iter().zip(jobs) {
            let (choice, masks) = job.into_inner();
            all[row.at] = masks;
            self.choice(row).replace(choice);
        }
        all
    }

    /// Moves on by what was sampled. A choice whose next mask was beyond the limits of a step ends
    /// here: what it has is the beginning of a text that obeys. A token that its own guide refuses is
    /// a fault.
    pub(crate) fn advance(&mut self, constrained: &Constrained, result: &mut StepResult) {
        for row in &constrained.rows {
            let choice = self.choice(row);
            let choice = choice.as_mut().expect("masks put it back");
            let outcome = &mut result.rows[row.at].outcome;
            let (request, at) = (row.request.0, row.choice);
            let Ok(output) = outcome else { continue };
            if let Some(error) = &choice.exhausted {
                tracing::warn!(request, choice = at, %error, "a grammar ended a choice");
                output.tokens.clear();
                output.logprobs.clear();
            } else if let Err(error) = choice.advance(&output.tokens) {
                tracing::error!(request, choice = at, %error, "a guide failed");
                *outcome = Err(RowFault::Constraint);
            }
        }
    }

    fn take(&mut self, row: &ConstrainedRow) -> Choice {
        self.choice(row)
            .take()
            .expect("found when the plan was made, and nobody ends meanwhile")
    }

    fn choice(&mut self, row: &ConstrainedRow) -> &mut Option<Choice> {
        let choices = self.requests.get_mut(&row.request);
        &mut choices.expect("found when the plan was made, and nobody ends meanwhile")[row.choice]
    }
}

impl Choice {
    fn masks(&mut self, drafts: &[u32]) -> RowMasks {
        let state = self
            .state
            .get_or_insert_with(|| GuideState::new(&self.guide));
        match state.masks(drafts) {
            Ok(masks) => RowMasks::Each(masks),
            Err(error) => {
                self.exhausted = Some(error);
                RowMasks::Each(Vec::new())
            }
        }
    }

    fn advance(&mut self, tokens: &[u32]) -> Result<(), GuideError> {
        let state = self.state.as_mut().expect("a mask was made");
        tokens.iter().try_for_each(|token| state.advance(*token))
    }
}
