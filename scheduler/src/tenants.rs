//! What each tenant was served, and who waits of each.
//!
//! A virtual token counter (Sheng et al., "Fairness in Serving Large Language Models", OSDI 2024). What a
//! tenant is given adds to its counter, over its weight, and of those who wait the tenant with the
//! lowest goes first. So among tenants who want more than there is each is served alike, however many
//! requests it sends, and who wants less than that need not wait for the others' requests.
//!
//! Nobody saves up what he does not use: a tenant of which nobody waits has its counter lifted, when its
//! next request comes, to the lowest of those who wait, less a credit of a few steps. Thanks to the
//! credit a prompt of a few chunks goes in one piece past whoever always wants more. Who has been served
//! more than his share has none, however often he comes and goes.

use std::cmp::Reverse;
use std::collections::BTreeMap;

use crate::output::SequenceId;
use crate::queue::{Line, Rank};
use crate::request::TenantId;

/// What a token of a prompt costs a tenant whose weight is 1. Tokens that were cached cost nothing.
const TOKEN: u64 = 1 << 16;
/// What a generated token costs, in tokens of a prompt; as in the paper.
pub(crate) const GENERATED: u32 = 2;
/// What it costs to start, in tokens of a prompt: a state is copied.
const START: u32 = 16;
/// The credit, in steps full of a prompt.
const CREDIT_STEPS: u64 = 4;

/// Whose a sequence is, and where it stands among his.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) tenant: TenantId,
    pub(crate) priority: i8,
    pub(crate) rank: Rank,
}

/// By what tenants are ordered: the lowest goes first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Order {
    pub(crate) level: Reverse<i64>,
    pub(crate) served: u64,
    pub(crate) num_running: u32,
    pub(crate) rank: Rank,
    pub(crate) first: SequenceId,
}

/// One that has somebody here, or had lately.
#[derive(Debug, Default)]
pub(crate) struct Tenant {
    pub(crate) weight: u16,
    /// The counter.
    pub(crate) served: u64,
    pub(crate) num_running: u32,
    /// The step in which one of it started last.
    last_start: u64,
    pub(crate) waiting: Line,
}

impl Tenant {
    pub(crate) fn is_here(&self) -> bool {
        self.num_running > 0 || self.waiting.len() > 0
    }

    /// Where it stands with a sequence of its own of this rank.
    pub(crate) fn order(&self, (rank, first): (Rank, SequenceId), now: u64, top: i8) -> Order {
        Order {
            level: Reverse(rank.level(self.last_start, now, top)),
            served: self.served,
            num_running: self.num_running,
            rank,
            first,
        }
    }

    /// The same with the one that waits first.
    fn waiting_order(&self, now: u64, top: i8) -> Option<Order> {
        Some(self.order(self.waiting.first()?, now, top))
    }

    fn charge(&mut self, num_tokens: u32) {
        let cost = u64::from(num_tokens) * TOKEN / u64::from(self.weight);
        self.served = self.served.saturating_add(cost);
    }
}

/// All tenants.
#[derive(Debug)]
pub(crate) struct Tenants {
    entries: BTreeMap<TenantId, Tenant>,
    /// How many wait of each priority.
    priorities: BTreeMap<i8, u32>,
    num_waiting: usize,
    /// The counter of whoever started last.
    last_served: u64,
    credit: u64,
}

impl Tenants {
    /// Steps take up to `max_num_batched_tokens`.
    pub(crate) fn new(max_num_batched_tokens: u32) -> Self {
        Self {
            entries: BTreeMap::new(),
            priorities: BTreeMap::new(),
            num_waiting: 0,
            last_served: 0,
            credit: CREDIT_STEPS * u64::from(max_num_batched_tokens) * TOKEN,
        }
    }

    /// A request has come; its choices will [`wait`](Self::wait).
    pub(crate) fn welcome(&mut self, id: TenantId, weight: u16) {
        assert!(weight > 0, "{id:?} has a share");
        self.entries.entry(id).or_default().weight = weight;
    }

    /// Somebody new waits.
    pub(crate) fn wait(&mut self, id: SequenceId, place: Place) {
        if self.get(place.tenant).waiting.len() == 0 {
            let least = self.least_served().saturating_sub(self.credit);
            let tenant = self.tenant_mut(place.tenant);
            tenant.served = tenant.served.max(least);
        }
        self.tenant_mut(place.tenant).waiting.insert(id, place.rank);
        *self.priorities.entry(place.priority).or_default() += 1;
        self.num_waiting += 1;
    }

    /// Whoever waited runs from step `now` on.
    pub(crate) fn start(&mut self, id: SequenceId, place: Place, now: u64) {
        assert!(self.leave_line(id, place), "{id:?} starts and waited");
        let tenant = self.tenant_mut(place.tenant);
        tenant.num_running += 1;
        tenant.last_start = now;
        tenant.charge(START);
        self.last_served = tenant.served;
    }

    /// Whoever ran waits again.
    pub(crate) fn stop(&mut self, id: SequenceId, place: Place) {
        self.wait(id, place);
        self.tenant_mut(place.tenant).num_running -= 1;
    }

    /// Whoever ran or waited has ended.
    pub(crate) fn end(&mut self, id: SequenceId, place: Place) {
        if !self.leave_line(id, place) {
            self.tenant_mut(place.tenant).num_running -= 1;
        }
        if !self.entries[&place.tenant].is_here() {
            self.forget();
        }
    }

    /// Whether it was there.
    fn leave_line(&mut self, id: SequenceId, place: Place) -> bool {
        if !self.tenant_mut(place.tenant).waiting.remove(id) {
            return false;
        }
        let num = self.priorities.get_mut(&place.priority);
        let num = num.expect("who waits is counted");
        *num -= 1;
        if *num == 0 {
            self.priorities.remove(&place.priority);
        }
        self.num_waiting -= 1;
        true
    }

    /// Of those who are not here, those stay whose counter says more than they would begin with. Where
    /// nobody is, nobody was served at another's cost.
    fn forget(&mut self) {
        if !self.entries.values().any(Tenant::is_here) {
            self.entries.clear();
            self.last_served = 0;
            return;
        }
        let least = self.least_served().saturating_sub(self.credit);
        self.entries
            .retain(|_, tenant| tenant.is_here() || tenant.served > least);
    }

    /// The lowest counter of those who wait; where nobody does, that of who did last.
    fn least_served(&self) -> u64 {
        let waiting = self.entries.values();
        let waiting = waiting.filter(|tenant| tenant.waiting.len() > 0);
        let least = waiting.map(|tenant| tenant.served).min();
        least.unwrap_or(self.last_served)
    }

    /// Somebody of this tenant was given so many tokens of a prompt, or what costs as much.
    pub(crate) fn charge(&mut self, id: TenantId, num_tokens: u32) {
        self.tenant_mut(id).charge(num_tokens);
    }

    /// One that has somebody here.
    pub(crate) fn get(&self, id: TenantId) -> &Tenant {
        self.entries.get(&id).expect("a tenant with sequences")
    }

    /// All that have somebody here.
    pub(crate) fn here(&self) -> impl Iterator<Item = (TenantId, &Tenant)> {
        let all = self.entries.iter().map(|(&id, tenant)| (id, tenant));
        all.filter(|(_, tenant)| tenant.is_here())
    }

    /// Whether a second one is known.
    pub(crate) fn are_many(&self) -> bool {
        self.entries.len() > 1
    }

    /// How many wait, of all tenants.
    pub(crate) fn num_waiting(&self) -> usize {
        self.num_waiting
    }

    /// The highest priority of anybody who waits.
    pub(crate) fn top(&self) -> Option<i8> {
        self.priorities
            .last_key_value()
            .map(|(&priority, _)| priority)
    }

    /// Who waits first of each tenant.
    pub(crate) fn heads(&self) -> impl Iterator<Item = SequenceId> {
        let firsts = self.entries.values();
        let firsts = firsts.filter_map(|tenant| tenant.waiting.first());
        firsts.map(|(_, id)| id)
    }

    /// Who is next of all who wait.
    pub(crate) fn first(&self, now: u64) -> Option<SequenceId> {
        let top = self.top()?;
        let orders = self.here();
        let orders = orders.filter_map(|(_, tenant)| tenant.waiting_order(now, top));
        orders.min().map(|order| order.first)
    }

    /// So many who are likely to be next, tenant by tenant.
    pub(crate) fn likely(&self, now: u64, max: usize) -> Vec<SequenceId> {
        let Some(top) = self.top() else {
            return Vec::new();
        };
        let mut tenants: Vec<(Order, &Tenant)> = self
            .here()
            .filter_map(|(_, tenant)| Some((tenant.waiting_order(now, top)?, tenant)))
            .collect();
        tenants.sort_unstable_by_key(|(order, _)| *order);
        tenants.truncate(max);
        let each = max.div_ceil(tenants.len().max(1));
        let likely = tenants
            .iter()
            .flat_map(|(_, tenant)| tenant.waiting.iter().take(each));
        likely.take(max).collect()
    }

    /// The next of the same tenant behind `id`, which waits.
    pub(crate) fn after(&self, tenant: TenantId, id: SequenceId) -> Option<SequenceId> {
        self.get(tenant).waiting.after(id)
    }

    /// Whether it waits.
    pub(crate) fn waits(&self, id: SequenceId, tenant: TenantId) -> bool {
        let tenant = self.entries.get(&tenant);
        tenant.is_some_and(|tenant| tenant.waiting.contains(id))
    }

    fn tenant_mut(&mut self, id: TenantId) -> &mut Tenant {
        self.entries.get_mut(&id).expect("a tenant with sequences")
    }

    /// Recounts everything but the counters, from those who wait and those who run.
    pub(crate) fn check(
        &self,
        waiting: impl Iterator<Item = (SequenceId, Place)>,
        running: impl Iterator<Item = TenantId>,
    ) {
        let mut num_running: BTreeMap<TenantId, u32> = BTreeMap::new();
        for tenant in running {
            *num_running.entry(tenant).or_default() += 1;
        }
        let mut priorities: BTreeMap<i8, u32> = BTreeMap::new();
        let mut num_waiting = 0;
        for (id, place) in waiting {
            assert!(self.waits(id, place.tenant), "{id:?} is in its line");
            *priorities.entry(place.priority).or_default() += 1;
            num_waiting += 1;
        }
        assert_eq!(self.num_waiting, num_waiting, "who waits");
        assert_eq!(self.priorities, priorities, "priorities of those who wait");
        let in_lines = self.entries.values().map(|tenant| tenant.waiting.len());
        assert_eq!(in_lines.sum::<usize>(), num_waiting, "who stands in line");
        for (id, tenant) in &self.entries {
            let num = num_running.remove(id).unwrap_or(0);
            assert_eq!(tenant.num_running, num, "{id:?}: who runs");
            assert!(tenant.weight > 0, "{id:?} has a share");
        }
        assert!(num_running.is_empty(), "tenants that nobody knows");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: TenantId = TenantId(1);
    const B: TenantId = TenantId(2);
    const C: TenantId = TenantId(3);
    const NOW: u64 = 100;

    /// The sequence's number is the step in which it came.
    fn place(tenant: TenantId, id: u64) -> Place {
        Place {
            tenant,
            priority: 0,
            rank: Rank::new(0, id),
        }
    }

    /// Credits are of 4 tokens.
    fn tenants(waiting: &[(TenantId, u64)]) -> Tenants {
        let mut tenants = Tenants::new(1);
        for &(tenant, id) in waiting {
            come(&mut tenants, tenant, id);
        }
        tenants
    }

    fn come(tenants: &mut Tenants, tenant: TenantId, id: u64) {
        tenants.welcome(tenant, 1);
        tenants.wait(SequenceId(id), place(tenant, id));
    }

    fn tokens(tenants: &Tenants, id: TenantId) -> u64 {
        tenants.get(id).served / TOKEN
    }

    /// Starts who is first, for a prompt of so many tokens.
    fn start(tenants: &mut Tenants, num_tokens: u32) -> (TenantId, u64) {
        let first = tenants.first(NOW).expect("somebody waits");
        let here = tenants.here().find(|(_, one)| one.waiting.contains(first));
        let (tenant, _) = here.expect("who waits has a tenant");
        tenants.start(first, place(tenant, first.0), NOW);
        tenants.charge(tenant, num_tokens);
        (tenant, first.0)
    }

    #[test]
    fn one_tenant_is_served_as_it_comes() {
        let mut tenants = tenants(&[(A, 3), (A, 1), (A, 2)]);
        let started = [(); 3].map(|()| start(&mut tenants, 100).1);
        assert_eq!(started, [1, 2, 3]);
        assert_eq!(tenants.first(NOW), None);
    }

    #[test]
    fn who_was_served_least_is_next() {
        let mut tenants = tenants(&[(A, 1), (A, 2), (A, 3), (A, 4), (B, 5), (B, 6)]);
        let started = [(); 6].map(|()| start(&mut tenants, 100));
        assert_eq!(started, [(A, 1), (B, 5), (A, 2), (B, 6), (A, 3), (A, 4)]);
    }

    #[test]
    fn weight_is_a_share() {
        let mut tenants = tenants(&[]);
        for id in 0..40 {
            let tenant = if id % 2 == 0 { A } else { B };
            tenants.welcome(tenant, if tenant == A { 3 } else { 1 });
            tenants.wait(SequenceId(id), place(tenant, id));
        }
        let started = [(); 16].map(|()| start(&mut tenants, 100).0);
        let num = started.iter().filter(|tenant| **tenant == A).count();
        assert_eq!(num, 12, "three of four: {started:?}");
    }

    #[test]
    fn nobody_saves_up_more_than_the_credit() {
        let mut tenants = tenants(&[(A, 1), (A, 2)]);
        assert_eq!(start(&mut tenants, 1000), (A, 1));
        come(&mut tenants, B, 3);
        assert_eq!(tokens(&tenants, B), 1016 - 4);
        // The paper's rule looks at those who wait, not at those who run.
        assert_eq!(start(&mut tenants, 10), (B, 3));
        come(&mut tenants, C, 4);
        assert_eq!(tokens(&tenants, C), 1016 - 4, "A is the only one who waits");
    }

    #[test]
    fn debts_are_not_forgotten_by_leaving() {
        let mut tenants = tenants(&[(A, 1), (B, 2), (B, 3)]);
        assert_eq!(start(&mut tenants, 500), (A, 1));
        tenants.end(SequenceId(1), place(A, 1));
        come(&mut tenants, A, 4);
        assert_eq!(tokens(&tenants, A), 516);
        assert_eq!(start(&mut tenants, 5), (B, 2));
        assert_eq!(start(&mut tenants, 5), (B, 3));
        assert_eq!(start(&mut tenants, 5), (A, 4));
    }

    #[test]
    fn whoever_is_gone_and_owes_nothing_is_forgotten() {
        let mut tenants = tenants(&[(A, 1), (B, 2), (B, 3), (B, 4)]);
        assert_eq!(start(&mut tenants, 10), (A, 1));
        assert_eq!(start(&mut tenants, 500), (B, 2));
        tenants.end(SequenceId(1), place(A, 1));
        assert_eq!(tenants.entries.len(), 1, "B waits with a higher counter");
        for id in 2..=4 {
            tenants.end(SequenceId(id), place(B, id));
        }
        assert_eq!((tenants.entries.len(), tenants.last_served), (0, 0));
    }

    #[test]
    fn priority_comes_first_and_waiting_makes_up_for_it() {
        let mut tenants = Tenants::new(1);
        let urgent = |id| Place {
            priority: 1,
            rank: Rank::new(1, id),
            ..place(A, id)
        };
        for (tenant, id, place) in [
            (A, 1000, urgent(1000)),
            (B, 800, place(B, 800)),
            (C, 999, place(C, 999)),
        ] {
            tenants.welcome(tenant, 1);
            tenants.wait(SequenceId(id), place);
        }
        tenants.charge(A, 10);
        assert_eq!(tenants.first(1000), Some(SequenceId(1000)));
        // B has waited for a level and was served less, C has not.
        assert_eq!(tenants.first(1056), Some(SequenceId(800)));
        tenants.charge(B, 20);
        assert_eq!(tenants.first(1056), Some(SequenceId(1000)));
        // Nobody rises above what anybody asked for.
        assert_eq!(tenants.first(9000), Some(SequenceId(999)));
        assert_eq!(tenants.likely(1000, 9), [1000, 999, 800].map(SequenceId));
        assert_eq!(tenants.likely(1000, 1), [SequenceId(1000)]);
    }

    fn broken(change: impl Fn(&mut Tenants)) {
        let mut tenants = tenants(&[(A, 1), (A, 2), (B, 3)]);
        tenants.start(SequenceId(1), place(A, 1), NOW);
        change(&mut tenants);
        let waiting = [(SequenceId(2), place(A, 2)), (SequenceId(3), place(B, 3))];
        tenants.check(waiting.into_iter(), [A].into_iter());
    }

    #[test]
    fn the_check_passes_what_is_right() {
        broken(|_| {});
    }

    #[test]
    #[should_panic(expected = "is in its line")]
    fn the_check_finds_who_is_lost() {
        broken(|tenants| {
            tenants.tenant_mut(B).waiting.remove(SequenceId(3));
        });
    }

    #[test]
    #[should_panic(expected = "who runs")]
    fn the_check_finds_a_wrong_count() {
        broken(|tenants| tenants.tenant_mut(B).num_running = 1);
    }

    #[test]
    #[should_panic(expected = "priorities")]
    fn the_check_finds_a_wrong_priority() {
        broken(|tenants| {
            tenants.priorities.insert(5, 1);
        });
    }
}
