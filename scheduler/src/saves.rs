//! Snapshots on the way: which rows write them, and what becomes of those they wrote.

use std::collections::BTreeMap;

use kvcache::{SlotId, SnapshotKind, Wish};

use crate::marks::min_gain;
use crate::output::{Row, Save, SequenceId};
use crate::scheduler::Scheduler;
use crate::sequence::Status;

/// A row is cut where it is saved on some devices, so it is not saved everywhere.
const MAX_SAVES_PER_ROW: usize = 16;

/// A snapshot that a row in flight writes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PlannedSave {
    pub(crate) at: u32,
    pub(crate) to: SlotId,
    pub(crate) kind: SnapshotKind,
}

/// By sequence, those of its row.
pub(crate) type PlannedSaves = BTreeMap<SequenceId, Vec<PlannedSave>>;

/// A save that could be.
struct Candidate {
    /// Index of its row.
    row: usize,
    wish: Wish,
    worth: f64,
}

impl Scheduler {
    /// Takes slots for what rows can save on their way, the most valuable first. Comes behind
    /// everything else: who runs comes before what is saved.
    pub(crate) fn plan_saves(&mut self, rows: &mut [Row]) -> PlannedSaves {
        let mut planned = PlannedSaves::new();
        let mut candidates = Vec::new();
        for (index, row) in rows.iter().enumerate() {
            if row.drafting.num_drafts == 0 {
                self.collect_wishes(index, row, &mut candidates);
            }
        }
        candidates.sort_by(|a, b| {
            let by_worth = b.worth.total_cmp(&a.worth);
            b.wish.is_awaited.cmp(&a.wish.is_awaited).then(by_worth)
        });
        for Candidate { row, wish, .. } in candidates {
            let row = &mut rows[row];
            if row.saves.len() == MAX_SAVES_PER_ROW {
                continue;
            }
            let sequence = self.sequences.get_mut(&row.sequence);
            let sequence = sequence.expect("a row has a sequence");
            let (_, chain, tokens) = sequence.cache_parts();
            let tokens = &tokens[..wish.len as usize];
            if let Some(to) = self.cache.begin_save(&wish, chain, tokens) {
                row.saves.push(Save { at: wish.len, to });
                planned.entry(row.sequence).or_default().push(PlannedSave {
                    at: wish.len,
                    to,
                    kind: wish.kind,
                });
            }
        }
        for row in rows {
            row.saves.sort_unstable_by_key(|save| save.at);
        }
        for saves in planned.values_mut() {
            saves.sort_unstable_by_key(|save| save.at);
        }
        planned
    }

    fn collect_wishes(&self, index: usize, row: &Row, candidates: &mut Vec<Candidate>) {
        let marks = self.sequences[&row.sequence].marks();
        let end = row.start + row.input_ids.len() as u32;
        let mut shorter = self.sequences[&row.sequence].num_saved();
        let num_within = marks.partition_point(|mark| mark.at <= end);
        for mark in &marks[..num_within] {
            let wish = Wish {
                len: mark.at,
                shorter,
                kind: mark.kind,
                has_longer: marks.last().is_some_and(|last| last.at > mark.at),
                is_awaited: mark.is_awaited,
            };
            let worth = self.cache.worth(&wish);
            candidates.push(Candidate {
                row: index,
                wish,
                worth,
            });
            shorter = mark.at;
        }
    }

    /// The row that wrote them went well: they are there for everybody now.
    pub(crate) fn finish_saves(&mut self, id: SequenceId, saves: Vec<PlannedSave>) {
        let sequence = self.sequences.get_mut(&id).expect("a row has a sequence");
        let mut num_saved = sequence.num_saved();
        let (lease, chain, tokens) = sequence.cache_parts();
        for PlannedSave { at, to, kind } in saves {
            let tokens = &tokens[..at as usize];
            self.cache.finish_save(to, lease, chain, tokens, kind);
            num_saved = at;
        }
        sequence.note_saved(num_saved);
    }

    /// What the row wrote is not to be trusted, or nobody wants it.
    pub(crate) fn cancel_saves(&mut self, saves: Vec<PlannedSave>) {
        for save in saves {
            self.cache.cancel_save(save.to);
        }
    }

    /// Those who run and may save a state on their way.
    pub(crate) fn makers(&self) -> Vec<SequenceId> {
        let has_marks = |id: &SequenceId| !self.sequences[id].marks().is_empty();
        self.running.iter().filter(has_marks).collect()
    }

    /// Whether one who waits had better go on waiting: an older one that runs is about to save a state
    /// that is worth it. Requests that arrive together with one long prefix compute it once.
    ///
    /// As only older ones are waited for, everybody's turn comes; and who is waited for runs, so the
    /// waiting ends: with the save, without it, or with whoever was to make it.
    /// `makers` are those who run and have marks, and maybe others.
    pub(crate) fn waits_for_save(&mut self, id: SequenceId, makers: &[SequenceId]) -> bool {
        let awaited = self.sequences[&id].awaited;
        if awaited.is_some_and(|(maker, at)| self.is_about_to_save(maker, at)) {
            return true;
        }
        let found = self.find_save(id, makers);
        let sequence = self.sequences.get_mut(&id).expect("who waits is known");
        sequence.awaited = found;
        if let Some((maker, at)) = found {
            let maker = self.sequences.get_mut(&maker).expect("who runs is known");
            maker.await_mark(at);
        }
        found.is_some()
    }

    fn is_about_to_save(&self, maker: SequenceId, at: u32) -> bool {
        let maker = self.sequences.get(&maker);
        maker.is_some_and(|maker| {
            let marks = maker.marks();
            let is_ahead = marks.binary_search_by_key(&at, |mark| mark.at).is_ok();
            maker.status() == Status::Running && is_ahead
        })
    }

    /// The longest prefix of a waiting sequence that an older one is about to save, if it is enough
    /// longer than what there is.
    fn find_save(&mut self, id: SequenceId, makers: &[SequenceId]) -> Option<(SequenceId, u32)> {
        let max_hit = self.sequences[&id].max_hit();
        let older = makers.iter().copied().filter(|&maker| maker < id);
        let makers: Vec<SequenceId> = older
            .filter(|maker| {
                let maker = &self.sequences[maker];
                maker.status() == Status::Running
                    && maker.marks().first().is_some_and(|mark| mark.at <= max_hit)
                    && maker.request.cache_salt == self.sequences[&id].request.cache_salt
            })
            .collect();
        let mut best: Option<(SequenceId, u32)> = None;
        for maker in makers {
            let Some(at) = self.longest_common_mark(id, maker, max_hit) else {
                continue;
            };
            if best.is_none_or(|(_, best)| at > best) {
                best = Some((maker, at));
            }
        }
        let (maker, at) = best?;
        let are_siblings = self.sequences[&id].request.id == self.sequences[&maker].request.id;
        let min_gain = min_gain(self.cache.config().block_size, are_siblings);
        let sequence = self.sequences.get_mut(&id).expect("who waits is known");
        let wanted = sequence.reservation(0);
        let num_hit = self
            .cache
            .longest_hit(wanted.chain, wanted.tokens, wanted.max_hit);
        (at >= num_hit + min_gain).then_some((maker, at))
    }

    /// The last mark of `maker` up to `max_hit` before which both have the same tokens.
    fn longest_common_mark(
        &mut self,
        id: SequenceId,
        maker: SequenceId,
        max_hit: u32,
    ) -> Option<u32> {
        let places: Vec<u32> = self.sequences[&maker]
            .marks()
            .iter()
            .map(|mark| mark.at)
            .filter(|&at| at <= max_hit)
            .collect();
        let mut is_common = |at: u32| {
            let mut ending = |id: &SequenceId| {
                let sequence = self.sequences.get_mut(id).expect("both are known");
                sequence.prefix_hash(at)
            };
            ending(&id) == ending(&maker)
        };
        let num_common = places.partition_point(|&at| is_common(at));
        num_common.checked_sub(1).map(|last| places[last])
    }
}
