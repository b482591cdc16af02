//! The folder that is written.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use crate::error::EngineError;

/// A new folder. Until it is [kept](Self::keep), whatever ends the writing removes it again.
pub(super) struct OutputFolder {
    path: PathBuf,
    /// Ours to remove.
    is_new: bool,
    files: Vec<PathBuf>,
    is_kept: bool,
}

/// A file in it, written in any order.
pub(super) struct OutputFile {
    path: PathBuf,
    file: File,
}

impl OutputFolder {
    pub(super) fn create(path: &Path) -> Result<Self, EngineError> {
        let io = |source| EngineError::Io {
            path: path.to_owned(),
            source,
        };
        let is_new = match fs::create_dir(path) {
            Ok(()) => true,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                let is_empty = fs::read_dir(path).map_err(io)?.next().is_none();
                if !is_empty {
                    let what = "the output folder exists and is not empty";
                    return Err(io(io::Error::new(io::ErrorKind::AlreadyExists, what)));
                }
                false
            }
            Err(error) => return Err(io(error)),
        };
        Ok(Self {
            path: path.to_owned(),
            is_new,
            files: Vec::new(),
            is_kept: false,
        })
    }

    pub(super) fn file(&mut self, name: &str) -> Result<OutputFile, EngineError> {
        let path = self.path.join(name);
        match File::create_new(&path) {
            Ok(file) => {
                self.files.push(path.clone());
                Ok(OutputFile { path, file })
            }
            Err(source) => Err(EngineError::Io { path, source }),
        }
    }

    /// A file in one go.
    pub(super) fn write(&mut self, name: &str, bytes: &[u8]) -> Result<(), EngineError> {
        let file = self.file(name)?;
        file.write_at(0, bytes)?;
        file.finish()
    }

    /// All is written.
    pub(super) fn keep(mut self) {
        self.is_kept = true;
    }
}

impl Drop for OutputFolder {
    fn drop(&mut self) {
        if self.is_kept {
            return;
        }
        // Nobody is left to tell of a second failure; the first is on its way.
        for file in &self.files {
            let _ = fs::remove_file(file);
        }
        if self.is_new {
            let _ = fs::remove_dir(&self.path);
        }
    }
}

impl OutputFile {
    pub(super) fn write_at(&self, offset: u64, bytes: &[u8]) -> Result<(), EngineError> {
        let written = self.file.write_all_at(bytes, offset);
        written.map_err(|source| self.error(source))
    }

    /// What the disk refuses late it refuses here.
    pub(super) fn finish(self) -> Result<(), EngineError> {
        self.file.sync_all().map_err(|source| self.error(source))
    }

    fn error(&self, source: io::Error) -> EngineError {
        EngineError::Io {
            path: self.path.clone(),
            source,
        }
    }
}
