//! A sequence of operations recorded once and replayed as one launch.

use burn::tensor::Device;
use burn_backend::{Backend, BackendGraph};
use burn_dispatch::Dispatch;

/// What `step` computed, and how to compute it again from the same addresses.
///
/// Devices without hardware graphs run the step again instead: slower, and the same.
pub struct Recording<T> {
    device: Device,
    output: T,
    graph: Option<BackendGraph<Dispatch>>,
}

/// Runs before the recording: the first compiles kernels, the second finds the memory that the
/// recording will ask for, which may allocate nothing new.
const WARM_UPS: usize = 2;

impl<T> Recording<T> {
    /// Runs the step a few times, then records it. It must read its inputs from addresses that stay
    /// (see [`StepInputs`](crate::StepInputs)) and neither upload, read back nor wait.
    pub fn record(device: &Device, mut step: impl FnMut() -> T) -> Self {
        let dispatch = device.as_dispatch();
        let can_record = Dispatch::graph_prepare(dispatch).is_ok();
        for _ in 0..WARM_UPS {
            let output = step();
            // An error stays on the buffers it spoilt, where the reader of the output finds it.
            let _ = Dispatch::sync(dispatch);
            drop(output);
        }
        let is_recording = can_record && Dispatch::graph_start_capture(dispatch).is_ok();
        let output = step();
        let graph = is_recording
            .then(|| Dispatch::graph_stop_capture(dispatch).ok())
            .flatten();
        Self {
            device: device.clone(),
            output,
            graph,
        }
    }

    /// Replays, or runs `step` where nothing could be recorded.
    ///
    /// # Errors
    /// The device's refusal to launch the graph.
    #[allow(unsafe_code)]
    pub fn replay(&mut self, step: impl FnOnce() -> T) -> Result<&T, String> {
        match &self.graph {
            // SAFETY: the graph guards every page that its launches were given memory on for as long
            // as it lives, so a replay writes no memory of others; inputs are written and outputs
            // read by this thread, whose work on a device is in order.
            Some(graph) => unsafe { Dispatch::graph_replay(self.device.as_dispatch(), graph) }
                .map_err(|error| format!("{error:?}"))?,
            None => self.output = step(),
        }
        Ok(&self.output)
    }

    /// Whether a replay is one launch.
    pub fn is_hardware(&self) -> bool {
        self.graph.is_some()
    }
}
