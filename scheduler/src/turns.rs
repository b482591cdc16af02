//! Whose prompt is next within a step, and how much of what is left it may take.
//!
//! Each tenant's prompts are a party. The party that was served least has its turn, then whichever has
//! been served least by then, and so on until the step is full. Within a party:
//!
//! ```text
//! the oldest that runs: half of what is left, or all if nothing shorter comes behind it
//! others that run, and those who wait in their order: the shorter one first
//! the oldest again: what nobody else took
//! ```
//!
//! So a short prompt does not wait for a long one, and a long one gets on, however many short ones come.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BinaryHeap};

use crate::output::SequenceId;
use crate::queue::Rank;
use crate::request::TenantId;
use crate::tenants::{Order, Tenant};

/// A prompt that could run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Prompt {
    pub(crate) id: SequenceId,
    pub(crate) rank: Rank,
    /// Tokens to be computed.
    pub(crate) num_left: u32,
}

/// Who may run next.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Turn {
    pub(crate) prompt: Prompt,
    /// It has no memory yet.
    pub(crate) waits: bool,
    /// It may take half of what is left.
    pub(crate) leaves_half: bool,
}

/// Prompts of one tenant.
#[derive(Debug)]
pub(crate) struct Party {
    pub(crate) tenant: TenantId,
    /// Of those that run.
    oldest: Option<Prompt>,
    has_had_half: bool,
    /// Others that run, most left first.
    others: Vec<Prompt>,
    /// The next in line of those who wait.
    pub(crate) waiting: Option<Prompt>,
}

impl Party {
    fn new(tenant: TenantId) -> Self {
        Self {
            tenant,
            oldest: None,
            has_had_half: false,
            others: Vec::new(),
            waiting: None,
        }
    }

    /// Whether there is one besides those who wait.
    pub(crate) fn has_running(&self) -> bool {
        self.oldest.is_some() || !self.others.is_empty()
    }

    fn next(&self) -> Option<Turn> {
        let turn = |prompt| Turn {
            prompt,
            waits: false,
            leaves_half: false,
        };
        let other = self.others.last().copied();
        if let Some(oldest) = self.oldest.filter(|_| !self.has_had_half) {
            let shorter = other.into_iter().chain(self.waiting);
            let mut shorter = shorter.filter(|one| one.num_left < oldest.num_left);
            return Some(Turn {
                leaves_half: shorter.next().is_some(),
                ..turn(oldest)
            });
        }
        let waits_longer = |one: &Prompt| self.waiting.is_none_or(|w| one.num_left <= w.num_left);
        if let Some(other) = other.filter(waits_longer) {
            return Some(turn(other));
        }
        let waiting = self.waiting.map(|waiting| Turn {
            waits: true,
            ..turn(waiting)
        });
        waiting.or_else(|| self.oldest.map(turn))
    }

    /// What `next` said happens.
    fn take(&mut self) -> Option<Turn> {
        let turn = self.next()?;
        if turn.waits {
            self.waiting = None;
        } else if self.oldest != Some(turn.prompt) {
            self.others.pop();
        } else if turn.leaves_half {
            self.has_had_half = true;
        } else {
            self.oldest = None;
        }
        Some(turn)
    }
}

/// All parties of a step, those with something left to run.
#[derive(Debug)]
pub(crate) struct Turns {
    heap: BinaryHeap<Reverse<(Order, usize)>>,
    parties: Vec<Party>,
    now: u64,
    top: i8,
}

impl Turns {
    /// Of prompts that run, the oldest first, and of who waits first of each tenant, in step `now`.
    /// `top` is the highest priority of any.
    pub(crate) fn new<'a>(
        running: impl Iterator<Item = (&'a Tenant, TenantId, Prompt)>,
        waiting: impl Iterator<Item = (&'a Tenant, TenantId, Prompt)>,
        now: u64,
        top: i8,
    ) -> Self {
        let mut parties: Vec<Party> = Vec::new();
        let mut accounts: Vec<&Tenant> = Vec::new();
        let mut by_tenant: BTreeMap<TenantId, usize> = BTreeMap::new();
        let mut party_of = |tenant: TenantId, account| match by_tenant.entry(tenant) {
            Entry::Occupied(entry) => *entry.get(),
            Entry::Vacant(entry) => {
                parties.push(Party::new(tenant));
                accounts.push(account);
                *entry.insert(parties.len() - 1)
            }
        };
        let running: Vec<(usize, Prompt)> = running
            .map(|(account, tenant, prompt)| (party_of(tenant, account), prompt))
            .collect();
        let waiting: Vec<(usize, Prompt)> = waiting
            .map(|(account, tenant, prompt)| (party_of(tenant, account), prompt))
            .collect();
        for (index, prompt) in running {
            let party = &mut parties[index];
            match party.oldest {
                None => party.oldest = Some(prompt),
                Some(_) => party.others.push(prompt),
            }
        }
        for (index, prompt) in waiting {
            parties[index].waiting = Some(prompt);
        }
        for party in &mut parties {
            // Of equals the oldest is the last, which is first.
            party.others.reverse();
            party.others.sort_by_key(|one| Reverse(one.num_left));
        }
        let mut turns = Self {
            heap: BinaryHeap::new(),
            parties,
            now,
            top,
        };
        let orders = accounts.iter().enumerate();
        let orders = orders.filter_map(|(index, account)| turns.order(index, account));
        turns.heap = orders.map(Reverse).collect();
        turns
    }

    fn order(&self, index: usize, account: &Tenant) -> Option<(Order, usize)> {
        let Prompt { id, rank, .. } = self.parties[index].next()?.prompt;
        Some((account.order((rank, id), self.now, self.top), index))
    }

    /// Whose turn it is. The party must be put [`back`](Self::back).
    pub(crate) fn next(&mut self) -> Option<(usize, Turn)> {
        let Reverse((_, index)) = self.heap.pop()?;
        let turn = self.parties[index].take();
        Some((index, turn.expect("who stands in the heap has a turn")))
    }

    pub(crate) fn party_mut(&mut self, index: usize) -> &mut Party {
        &mut self.parties[index]
    }

    /// For its further turns, after what it was charged for the last.
    pub(crate) fn back(&mut self, index: usize, account: &Tenant) {
        let order = self.order(index, account);
        self.heap.extend(order.map(Reverse));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn prompt(id: u64, num_left: u32) -> Prompt {
        Prompt {
            id: SequenceId(id),
            rank: Rank::new(0, id),
            num_left,
        }
    }

    fn party(running: &[(u64, u32)], waiting: Option<(u64, u32)>) -> Party {
        let account = Tenant::default();
        let tenant = TenantId(0);
        let running = running
            .iter()
            .map(|&(id, left)| (&account, tenant, prompt(id, left)));
        let waiting = waiting
            .into_iter()
            .map(|(id, left)| (&account, tenant, prompt(id, left)));
        let mut turns = Turns::new(running, waiting, 0, 0);
        turns.parties.remove(0)
    }

    /// Who has turns, in order: `h` is for half, `w` for somebody who waits.
    fn shown(mut party: Party) -> String {
        let turns = std::iter::from_fn(|| party.take()).map(|turn| {
            let half = if turn.leaves_half { "h" } else { "" };
            let waits = if turn.waits { "w" } else { "" };
            format!("{}{half}{waits}", turn.prompt.id.0)
        });
        turns.collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn a_prompt_alone_takes_all() {
        assert_eq!(shown(party(&[(1, 5000)], None)), "1");
        assert_eq!(shown(party(&[], Some((1, 5000)))), "1w");
    }

    #[test]
    fn equals_are_served_as_they_came() {
        let equals = party(&[(1, 500), (2, 500), (3, 500)], Some((4, 500)));
        assert_eq!(shown(equals), "1 2 3 4w");
        assert_eq!(shown(party(&[(1, 400), (2, 500)], None)), "1 2");
    }

    #[test]
    fn the_oldest_leaves_half_to_shorter_ones() {
        assert_eq!(shown(party(&[(1, 5000)], Some((2, 50)))), "1h 2w 1");
        assert_eq!(shown(party(&[(1, 5000)], Some((2, 5000)))), "1 2w");
        let crowd = party(&[(1, 500), (2, 900), (3, 100), (4, 300)], Some((5, 200)));
        assert_eq!(shown(crowd), "1h 3 5w 4 2 1");
    }

    #[test]
    fn who_waits_behind_is_next_in_line() {
        let mut party = party(&[(1, 5000), (2, 300)], Some((3, 50)));
        let ids = |turn: Option<Turn>| turn.map(|turn| turn.prompt.id.0);
        assert_eq!([(); 2].map(|()| ids(party.take())), [Some(1), Some(3)]);
        party.waiting = Some(prompt(4, 900));
        let rest = [(); 4].map(|()| ids(party.take()));
        assert_eq!(rest, [Some(2), Some(4), Some(1), None]);
    }

    #[test]
    fn parties_take_turns_by_what_they_were_served() {
        let mut accounts = [Tenant::default(), Tenant::default()];
        for (account, served) in accounts.iter_mut().zip([1000, 400]) {
            account.weight = 1;
            account.served = served;
        }
        let of = |(id, left): (u64, u32)| {
            let tenant = id as usize % 2;
            (tenant, TenantId(tenant as u32), prompt(id, left))
        };
        let prompts = [(0, 700), (1, 300), (2, 100), (3, 500)].map(of);
        let running = prompts
            .iter()
            .map(|&(index, id, one)| (&accounts[index], id, one));
        let mut turns = Turns::new(running, std::iter::empty(), 9, 0);
        let mut order = Vec::new();
        while let Some((index, turn)) = turns.next() {
            let tenant = turns.party_mut(index).tenant.0 as usize;
            order.push(turn.prompt.id.0);
            accounts[tenant].served += 350;
            turns.back(index, &accounts[tenant]);
        }
        // 400 and 750 against 1000; the half of 0 is a turn, too.
        assert_eq!(order, [1, 3, 0, 2, 0]);
    }
}
