//! What can go wrong outside a single row.

use std::fmt;
use std::io::ErrorKind;
use std::path::PathBuf;

/// The world's faults: files, memory, devices.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A file could not be read.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// `config.json` says something that cannot be served.
    #[error("{}: {what}", path.display())]
    Config {
        /// Which file.
        path: PathBuf,
        /// The key and value, and what was expected.
        what: String,
    },
    /// The checkpoint's files disagree with the configuration or with themselves.
    #[error("{}: {what}", path.display())]
    Checkpoint {
        /// Which shard or index.
        path: PathBuf,
        /// The tensor and what is wrong with it.
        what: String,
    },
    /// An option is out of its range.
    #[error("--{option} is {value}, expected {min} to {max}")]
    Option {
        /// The flag's name, without dashes.
        option: &'static str,
        /// What was given.
        value: u64,
        /// The least allowed.
        min: u64,
        /// The most allowed.
        max: u64,
    },
    /// Tokens to come cannot be guessed at here.
    #[error("--speculative-tokens {asked}: {why}")]
    Drafts {
        /// How many were asked for.
        asked: u32,
        /// What is missing.
        why: &'static str,
    },
    /// States of this model cannot be kept so on this device.
    #[error(
        "a float16 Mamba state takes even widths on this device, the state's is {} and the mixer's {}: \
         --mamba-ssm-cache-dtype float32",
        widths[0], widths[1]
    )]
    StateDtype {
        /// Columns of a state, channels of a mixer.
        widths: [usize; 2],
    },
    /// The model cannot be split over so many ranks.
    #[error("--tensor-parallel-size {ranks}: {what}")]
    Ranks {
        /// How many were asked for.
        ranks: usize,
        /// The sizes that do not divide.
        what: String,
    },
    /// The memory that was granted, or that there is, cannot hold what was asked for.
    #[error("{0}")]
    Memory(String),
    /// The device, its driver, or what its kernels are compiled with is missing.
    #[error("{0}")]
    Device(String),
    /// The device broke off its work.
    #[error("{0}")]
    Fault(String),
    /// A step failed, and nothing says that memory or the device is to blame.
    #[error("{0}")]
    Step(String),
    /// The engine thread ended by a panic; the message is the panic's.
    #[error("the engine thread panicked: {0}")]
    Panicked(String),
}

impl EngineError {
    /// The same, said by one rank of several.
    pub(crate) fn of_rank(self, rank: usize, num_ranks: usize) -> Self {
        let of = |text: String| format!("rank {rank} of {num_ranks}: {text}");
        match self {
            Self::Memory(text) => Self::Memory(of(text)),
            Self::Device(text) => Self::Device(of(text)),
            Self::Fault(text) => Self::Fault(of(text)),
            Self::Step(text) => Self::Step(of(text)),
            Self::Panicked(text) => Self::Panicked(of(text)),
            // These name a file or a flag, and all ranks read the same ones.
            other => other,
        }
    }

    /// Who has to do something about it.
    pub fn cause(&self) -> Cause {
        match self {
            // The system says so where a file cannot be mapped.
            Self::Io { source, .. } if source.kind() == ErrorKind::OutOfMemory => Cause::Memory,
            Self::Io { .. } | Self::Config { .. } | Self::Checkpoint { .. } => Cause::Model,
            Self::Option { .. }
            | Self::Ranks { .. }
            | Self::Drafts { .. }
            | Self::StateDtype { .. } => Cause::Option,
            Self::Memory(_) => Cause::Memory,
            Self::Device(_) => Cause::Device,
            Self::Fault(_) => Cause::Fault,
            Self::Step(_) | Self::Panicked(_) => Cause::Engine,
        }
    }
}

/// Who has to do something about a failure; each has an exit code of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Whoever wrote the command line.
    Option,
    /// Whoever made the model folder.
    Model,
    /// Whoever grants memory.
    Memory,
    /// Whoever installs devices, drivers and toolkits.
    Device,
    /// A restart, or whoever exchanges devices.
    Fault,
    /// A restart, for now: it hangs, and nothing says why.
    Stall,
    /// We.
    Engine,
}

/// Why the engine ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Failure {
    /// Who has to do something about it.
    pub cause: Cause,
    /// One line for people.
    pub message: String,
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl From<&EngineError> for Failure {
    fn from(error: &EngineError) -> Self {
        Self {
            cause: error.cause(),
            message: error.to_string(),
        }
    }
}
