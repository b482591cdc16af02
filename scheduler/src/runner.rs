//! The seam between deciding and computing.

use crate::costs::StepTime;
use crate::mask::RowMasks;
use crate::output::{SchedulerOutput, StepResult};

/// Carries out plans. The model runner does it on a device, the toy model in pretend memory.
pub trait Runner {
    /// What makes a whole step fail. The engine ends on it: restarting beats guessing.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Runs every shape of step once, before the first plan, so that no client waits for a kernel to be
    /// compiled or a page to be touched. `tell` hears how many of how many are done. No block or slot
    /// that a plan could know is changed by it.
    ///
    /// # Errors
    /// As a step's.
    fn warm_up(&mut self, tell: &mut dyn FnMut(u32, u32)) -> Result<(), Self::Error> {
        let _ = tell;
        Ok(())
    }

    /// Starts a step. At most one is in flight.
    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), Self::Error>;

    /// Waits for the step in flight and draws its tokens. `masks[i]` says which tokens row `i` of the
    /// plan may draw at each of its positions; a row beyond the end may draw any. Masks come this late because
    /// they are made while the device works.
    fn collect(&mut self, masks: &[RowMasks]) -> Result<StepResult, Self::Error>;

    /// How long steps took since the last call, those of the warm-up among them, if anybody looked at a
    /// clock.
    fn times(&mut self) -> Vec<StepTime> {
        Vec::new()
    }
}
