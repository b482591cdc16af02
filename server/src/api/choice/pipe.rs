//! Bytes become characters, and tokens their entries.

use std::collections::VecDeque;

use super::{Delta, Entry, TokenText};
use crate::text::Utf8Stream;

/// Bytes of the answer on their way to characters. Positions count from the answer's first byte.
#[derive(Default)]
pub(super) struct TextPipe {
    /// Bytes that may be part of a stop string.
    held: Vec<u8>,
    num_released: usize,
    /// With the position where each ends.
    entries: VecDeque<(usize, Entry)>,
    utf8: Utf8Stream,
    num_chars: usize,
    /// Code points before the first waiting entry.
    next_offset: usize,
}

impl TextPipe {
    pub(super) fn push(&mut self, bytes: &[u8], entry: Option<Entry>) {
        self.held.extend_from_slice(bytes);
        if let Some(entry) = entry {
            self.entries.push_back((self.end(), entry));
        }
    }

    fn end(&self) -> usize {
        self.num_released + self.held.len()
    }

    pub(super) fn release_all(&mut self, delta: &mut Delta) {
        self.release(self.end(), delta);
    }

    /// What lies before `end` is part of the answer.
    pub(super) fn release(&mut self, end: usize, delta: &mut Delta) {
        let held = std::mem::take(&mut self.held);
        let (free, rest) = held.split_at(end - self.num_released);
        let mut done = 0;
        let with_entries = !self.entries.is_empty();
        while let Some((entry_end, _)) = self.entries.front()
            && *entry_end <= end
        {
            let to = entry_end - self.num_released;
            self.decode(&free[done..to], delta);
            done = to;
            let (_, mut entry) = self.entries.pop_front().expect("front was there");
            entry.text_offset = self.next_offset;
            self.next_offset = self.num_chars;
            delta.entries.push(entry);
        }
        if with_entries {
            self.decode(&free[done..], delta);
        } else {
            self.utf8.push(&free[done..], &mut delta.content);
        }
        self.num_released = end;
        if rest.is_empty() {
            // Keeps the buffer.
            self.held = held;
            self.held.clear();
        } else {
            self.held = rest.to_vec();
        }
    }

    /// The answer ends at `end`; the token across it keeps what is before.
    pub(super) fn cut(&mut self, end: usize) {
        self.held.truncate(end - self.num_released);
        while let Some((entry_end, entry)) = self.entries.back_mut()
            && *entry_end > end
        {
            let start = *entry_end - entry.len();
            if start < end {
                if let TokenText::Bytes(bytes) = &mut entry.token {
                    bytes.truncate(end - start);
                }
                *entry_end = end;
            } else {
                self.entries.pop_back();
            }
        }
    }

    pub(super) fn finish(&mut self, delta: &mut Delta) {
        self.release_all(delta);
        self.utf8.finish(&mut delta.content);
    }

    fn decode(&mut self, bytes: &[u8], delta: &mut Delta) {
        let before = delta.content.len();
        self.utf8.push(bytes, &mut delta.content);
        self.num_chars += delta.content[before..].chars().count();
    }
}
