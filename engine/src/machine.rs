//! What this machine has, for people who choose models by it.

use kernels::self_test::{Outcome, Shapes, self_test};

use crate::error::EngineError;
use crate::{DeviceChoice, device, memory};

/// Facts that decide what can be served, and how fast.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Machine {
    /// Threads that run at once.
    pub num_cores: usize,
    /// Instruction set that the CPU kernels will use.
    pub isa: &'static str,
    /// Bytes that this process may still take, page cache included.
    pub available_memory: u64,
    /// Accelerators that this build can use; `None`: it was built without their support.
    pub num_accelerators: Option<usize>,
}

impl Machine {
    /// Looks; measures nothing.
    pub fn survey() -> Self {
        Self {
            num_cores: std::thread::available_parallelism().map_or(1, usize::from),
            isa: kernels::isa().name(),
            available_memory: memory::available(),
            num_accelerators: device::num_accelerators(),
        }
    }

    /// Runs every kernel on a device against plain loops in f64. Takes well under a second on a CPU.
    pub fn self_test(&self, device: DeviceChoice) -> Result<Vec<Outcome>, EngineError> {
        let device = device::resolve(device)?;
        Ok(self_test(&device, &Shapes::default()))
    }

    /// Bytes per second that all cores together read from memory. Decoding one stream reads all
    /// active weights once per token, so this bounds its speed. Takes about a second.
    pub fn measure_bandwidth(&self) -> f64 {
        kernels::measure_read_bandwidth(self.num_cores) * 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_machine_has_what_it_needs_to_run_this() {
        let machine = Machine::survey();
        assert!(machine.num_cores > 0 && machine.available_memory > 0);
    }

    #[test]
    fn the_kernels_pass_on_the_cpu() {
        let outcomes = Machine::survey().self_test(DeviceChoice::Cpu);
        let outcomes = outcomes.expect("every machine has a CPU");
        assert!(outcomes.len() > 10 && outcomes.iter().all(Outcome::is_ok));
    }
}
