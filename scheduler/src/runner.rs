//! The seam between deciding and computing.

use crate::mask::TokenMask;
use crate::output::{SchedulerOutput, StepResult};

/// Carries out plans. The model runner does it on a device, the toy model in pretend memory.
pub trait Runner {
    /// What makes a whole step fail. The engine ends on it: restarting beats guessing.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Starts a step. At most one is in flight.
    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), Self::Error>;

    /// Waits for the step in flight and draws its tokens. `masks[i]` says which tokens row `i` of the
    /// plan may draw; a row with `None`, or beyond the end, may draw any. Masks come this late because
    /// they are made while the device works.
    fn collect(&mut self, masks: &[Option<TokenMask>]) -> Result<StepResult, Self::Error>;
}
