//! The seam between deciding and computing.

use crate::output::{SchedulerOutput, StepResult};

/// Carries out plans. The model runner does it on a device, the toy model in pretend memory.
pub trait Runner {
    /// What makes a whole step fail. The engine ends on it: restarting beats guessing.
    type Error: std::error::Error + Send + Sync + 'static;

    /// Starts a step. At most one is in flight.
    fn submit(&mut self, plan: SchedulerOutput) -> Result<(), Self::Error>;

    /// Waits for the step in flight.
    fn collect(&mut self) -> Result<StepResult, Self::Error>;
}
