//! Values by key, bounded, with errors that name key and value.

use std::path::PathBuf;

use serde_json::{Map, Value};

use crate::error::EngineError;

/// No published width comes near, so that bytes of caches and weights fit 64 bits.
pub(super) const MAX_SIZE: usize = 1 << 20;

/// The file's keys, with errors that name key and value.
pub(super) struct Keys<'a> {
    pub(super) map: &'a Map<String, Value>,
    pub(super) path: PathBuf,
}

impl<'a> Keys<'a> {
    pub(super) fn fail(&self, what: impl Into<String>) -> EngineError {
        EngineError::Config {
            path: self.path.clone(),
            what: what.into(),
        }
    }

    pub(super) fn bad(&self, key: &str, value: &Value, expect: &str) -> EngineError {
        let mut shown = value.to_string();
        if shown.len() > 80 {
            let cut = shown.floor_char_boundary(77);
            shown.truncate(cut);
            shown.push_str("...");
        }
        self.fail(format!("`{key}` is {shown}, expected {expect}"))
    }

    /// The value under the first of `names` that is present; null counts as absent.
    pub(super) fn get(&self, names: &[&'static str]) -> Option<(&'static str, &'a Value)> {
        names.iter().find_map(|name| {
            let value = self.map.get(*name)?;
            (!value.is_null()).then_some((*name, value))
        })
    }

    pub(super) fn integer(
        &self,
        names: &[&'static str],
        range: std::ops::RangeInclusive<usize>,
    ) -> Result<Option<usize>, EngineError> {
        let Some((key, value)) = self.get(names) else {
            return Ok(None);
        };
        value
            .as_u64()
            .and_then(|number| usize::try_from(number).ok())
            .filter(|number| range.contains(number))
            .map(Some)
            .ok_or_else(|| {
                let expect = format!("an integer in {}..={}", range.start(), range.end());
                self.bad(key, value, &expect)
            })
    }

    pub(super) fn size(&self, name: &'static str) -> Result<usize, EngineError> {
        self.size_of(&[name])
    }

    /// A dimension that the stack needs.
    pub(super) fn size_of(&self, names: &[&'static str]) -> Result<usize, EngineError> {
        self.integer(names, 1..=MAX_SIZE)?
            .ok_or_else(|| self.fail(format!("`{}` is missing", names[0])))
    }

    pub(super) fn size_or(
        &self,
        names: &[&'static str],
        default: usize,
    ) -> Result<usize, EngineError> {
        Ok(self.integer(names, 1..=MAX_SIZE)?.unwrap_or(default))
    }

    pub(super) fn flag(&self, name: &'static str, default: bool) -> Result<bool, EngineError> {
        self.flag_of(&[name], default)
    }

    pub(super) fn flag_of(
        &self,
        names: &[&'static str],
        default: bool,
    ) -> Result<bool, EngineError> {
        match self.get(names) {
            None => Ok(default),
            Some((key, value)) => value
                .as_bool()
                .ok_or_else(|| self.bad(key, value, "true or false")),
        }
    }

    pub(super) fn activation(&self, name: &'static str, only: &str) -> Result<(), EngineError> {
        match self.get(&[name]) {
            Some((key, value)) if value != only => {
                Err(self.bad(key, value, &format!("{only:?}, the only one implemented")))
            }
            _ => Ok(()),
        }
    }

    /// The product of two sizes is a width of its own.
    pub(super) fn product(&self, a: (&str, usize), b: (&str, usize)) -> Result<(), EngineError> {
        let width = a.1 * b.1;
        if width <= MAX_SIZE {
            return Ok(());
        }
        Err(self.fail(format!(
            "`{}` ({}) times `{}` ({}) is {width}, expected at most {MAX_SIZE}",
            a.0, a.1, b.0, b.1
        )))
    }

    /// `whole` must be a multiple of `part`.
    pub(super) fn divides(
        &self,
        part: (&str, usize),
        whole: (&str, usize),
    ) -> Result<(), EngineError> {
        if whole.1.is_multiple_of(part.1) {
            return Ok(());
        }
        Err(self.fail(format!(
            "`{}` ({}) does not divide `{}` ({})",
            part.0, part.1, whole.0, whole.1
        )))
    }
}
