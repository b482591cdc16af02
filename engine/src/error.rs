//! What can go wrong outside a single row.

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
    /// The model cannot be split over so many ranks.
    #[error("--tensor-parallel-size {ranks}: {what}")]
    Ranks {
        /// How many were asked for.
        ranks: usize,
        /// The sizes that do not divide.
        what: String,
    },
    /// The memory that was granted cannot hold what was asked for.
    #[error("{0}")]
    Memory(String),
    /// The device is missing or failed.
    #[error("{0}")]
    Device(String),
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
            Self::Panicked(text) => Self::Panicked(of(text)),
            // These name a file or a flag, and all ranks read the same ones.
            other => other,
        }
    }
}
