//! One request inside: what it takes of the house's room and of its key's, given back when it goes.

use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::refusal::Refusal;
use super::tenant::{Load, Tenant};

/// Room that everybody shares.
#[derive(Debug, Default)]
pub(crate) struct House {
    /// Prompt tokens that may wait; `None`: as many as fit the queue.
    max_queued_tokens: Option<u64>,
    queue: Mutex<Queue>,
}

/// Who has no token yet.
#[derive(Debug, Default)]
struct Queue {
    requests: u64,
    tokens: u64,
    /// Those whose body is here: a slow sender makes nobody wait. With them, once the engine has them,
    /// when it began with each of their prompts.
    since: BTreeMap<Place, Vec<Begun>>,
    next: u64,
}

/// When the engine began with a prompt, if it has.
pub(crate) type Begun = Arc<OnceLock<Instant>>;

/// Since when, and a number for those of one instant.
type Place = (Instant, u64);

impl House {
    pub(crate) fn new(max_queued_tokens: Option<u64>) -> Self {
        Self {
            max_queued_tokens,
            queue: Mutex::default(),
        }
    }

    /// Requests that have no token yet, and their prompts' tokens.
    pub(crate) fn queued(&self) -> (u64, u64) {
        let queue = self.queue.lock();
        (queue.requests, queue.tokens)
    }

    /// Since the oldest of them was here, body and all, with which the engine has not begun: a prompt that
    /// is being read is slow, not late.
    pub(crate) fn queue_age(&self, now: Instant) -> Duration {
        let queue = self.queue.lock();
        let waits = |begun: &[Begun]| begun.iter().all(|begun| begun.get().is_none());
        let oldest = queue.since.iter().find(|(_, begun)| waits(begun));
        oldest.map_or(Duration::ZERO, |((since, _), _)| {
            now.saturating_duration_since(*since)
        })
    }

    fn room_for(&self, others: u64, tokens: u64) -> Result<(), Refusal> {
        match self.max_queued_tokens {
            // One prompt larger than all that may wait enters alone.
            Some(max) if others > 0 && others + tokens > max => {
                Err(Refusal::too_many_queued_tokens(max))
            }
            _ => Ok(()),
        }
    }

    /// Takes a place in the queue of `max_queued`.
    fn enter(&self, tokens: u64, max_queued: u64) -> Result<(), Refusal> {
        let mut queue = self.queue.lock();
        if queue.requests >= max_queued {
            return Err(Refusal::queue_full(max_queued));
        }
        self.room_for(queue.tokens, tokens)?;
        queue.requests += 1;
        queue.tokens += tokens;
        Ok(())
    }

    fn wait_since(&self, now: Instant) -> Place {
        let mut queue = self.queue.lock();
        let place = (now, queue.next);
        queue.next += 1;
        queue.since.insert(place, Vec::new());
        place
    }

    fn submitted(&self, place: Place, begun: &[Begun]) {
        self.queue.lock().since.insert(place, begun.to_vec());
    }

    fn recount(&self, before: u64, tokens: u64) -> Result<(), Refusal> {
        let mut queue = self.queue.lock();
        let others = queue.tokens - before;
        self.room_for(others, tokens)?;
        queue.tokens = others + tokens;
        Ok(())
    }

    /// As it was before [`recount`](Self::recount).
    fn put_back(&self, tokens: u64, before: u64) {
        let mut queue = self.queue.lock();
        queue.tokens = queue.tokens - tokens + before;
    }

    fn leave(&self, place: Option<Place>, tokens: u64) {
        let mut queue = self.queue.lock();
        if let Some(place) = place {
            let was_there = queue.since.remove(&place);
            assert!(was_there.is_some(), "a request leaves the queue once");
        }
        queue.requests -= 1;
        queue.tokens -= tokens;
    }
}

/// What a request holds as long as this lives.
#[derive(Debug)]
pub struct Ticket {
    house: Arc<House>,
    tenant: Arc<Tenant>,
    generates: bool,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    queues: bool,
    place: Option<Place>,
    tokens: u64,
    choices: u64,
}

impl Ticket {
    /// For a request that generates from a prompt of at least `tokens`, if there is room for it.
    pub(crate) fn to_generate(
        house: &Arc<House>,
        tenant: &Arc<Tenant>,
        tokens: u64,
        max_queued: u64,
        now: Instant,
    ) -> Result<Self, Refusal> {
        house.enter(tokens, max_queued)?;
        if let Err(refusal) = tenant.enter(Some(tokens), now) {
            house.leave(None, tokens);
            return Err(refusal);
        }
        let held = Held {
            queues: true,
            tokens,
            ..Held::default()
        };
        Ok(Self {
            house: Arc::clone(house),
            tenant: Arc::clone(tenant),
            generates: true,
            held: Mutex::new(held),
        })
    }

    /// For a request that only renders or counts.
    pub(crate) fn to_render(
        house: &Arc<House>,
        tenant: &Arc<Tenant>,
        now: Instant,
    ) -> Result<Self, Refusal> {
        tenant.enter(None, now)?;
        Ok(Self {
            house: Arc::clone(house),
            tenant: Arc::clone(tenant),
            generates: false,
            held: Mutex::default(),
        })
    }

    /// Whether it is to generate.
    pub(crate) fn generates(&self) -> bool {
        self.generates
    }

    /// Its body is here, with a prompt of about so many tokens: from now on it waits for us.
    pub(crate) fn wait(&self, tokens: u64, now: Instant) -> Result<(), Refusal> {
        self.recount(tokens, now)?;
        let mut held = self.held.lock();
        if held.queues && held.place.is_none() {
            held.place = Some(self.house.wait_since(now));
        }
        Ok(())
    }

    /// Everything is known: it may be handed to the engine.
    pub(crate) fn begin(&self, tokens: u64, choices: u64, now: Instant) -> Result<(), Refusal> {
        self.recount(tokens, now)?;
        self.tenant.begin(tokens, choices, now)?;
        self.held.lock().choices += choices;
        Ok(())
    }

    /// The engine has its prompts, and says when it begins with each.
    pub(crate) fn submitted(&self, begun: &[Begun]) {
        let held = self.held.lock();
        if let Some(place) = held.place {
            self.house.submitted(place, begun);
        }
    }

    fn recount(&self, tokens: u64, now: Instant) -> Result<(), Refusal> {
        let mut held = self.held.lock();
        if !held.queues {
            return Ok(());
        }
        self.house.recount(held.tokens, tokens)?;
        if let Err(refusal) = self.tenant.recount(held.tokens, tokens, now) {
            self.house.put_back(tokens, held.tokens);
            return Err(refusal);
        }
        held.tokens = tokens;
        Ok(())
    }

    /// Its first token has come.
    pub(crate) fn started(&self) {
        let mut held = self.held.lock();
        if std::mem::replace(&mut held.queues, false) {
            let tokens = std::mem::take(&mut held.tokens);
            self.house.leave(held.place.take(), tokens);
            self.tenant.leave(Load {
                queued: 1,
                queued_tokens: tokens,
                ..Load::default()
            });
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        self.started();
        self.tenant.leave(Load {
            requests: 1,
            choices: self.held.get_mut().choices,
            ..Load::default()
        });
    }
}

#[cfg(test)]
mod tests {
    use super::super::key_file::Terms;
    use super::super::refusal::Cause;
    use super::*;

    fn house(max_queued_tokens: Option<u64>) -> Arc<House> {
        Arc::new(House::new(max_queued_tokens))
    }

    fn tenant(terms: Terms) -> Arc<Tenant> {
        Arc::new(Tenant::new(1, None, terms))
    }

    fn enter(house: &Arc<House>, tenant: &Arc<Tenant>, tokens: u64) -> Result<Ticket, Cause> {
        Ticket::to_generate(house, tenant, tokens, 3, Instant::now())
            .map_err(|refusal| refusal.cause)
    }

    #[test]
    fn whatever_happens_everything_is_given_back() {
        let (house, tenant) = (house(None), tenant(Terms::default()));
        let now = Instant::now();
        for ends in 0..5 {
            let ticket = enter(&house, &tenant, 10).expect("there is room");
            assert_eq!(house.queued(), (1, 10));
            if ends > 0 {
                ticket.wait(20, now).expect("there is room");
                assert_eq!(house.queued(), (1, 20));
            }
            if ends > 1 {
                ticket.begin(30, 2, now).expect("there is room");
                assert_eq!((house.queued(), tenant.load().choices), ((1, 30), 2));
            }
            if ends > 2 {
                ticket.started();
                assert_eq!(house.queued(), (0, 0));
                assert_eq!(tenant.load().requests, 1);
            }
            if ends > 3 {
                ticket.started();
                ticket.wait(99, now).expect("it queues no longer");
            }
            drop(ticket);
            assert_eq!((house.queued(), tenant.load()), ((0, 0), Load::default()));
        }
        let ticket = Ticket::to_render(&house, &tenant, now).expect("there is room");
        assert_eq!((house.queued(), tenant.load().requests), ((0, 0), 1));
        drop(ticket);
        assert_eq!(tenant.load(), Load::default());
    }

    #[test]
    fn a_refusal_by_the_key_leaves_the_house_as_it_was() {
        let house = house(None);
        let tenant = tenant(Terms {
            max_concurrency: Some(2),
            max_queued_tokens: Some(30),
            ..Terms::default()
        });
        let first = enter(&house, &tenant, 10).expect("there is room");
        let second = enter(&house, &tenant, 10).expect("there is room");
        assert_eq!(enter(&house, &tenant, 1).err(), Some(Cause::Concurrency));
        let refusal = second.wait(25, Instant::now()).expect_err("35 of 30");
        assert_eq!(refusal.cause, Cause::QueuedTokens);
        assert_eq!((house.queued(), tenant.load().queued_tokens), ((2, 20), 20));
        drop((first, second));
        assert_eq!((house.queued(), tenant.load()), ((0, 0), Load::default()));
    }

    #[test]
    fn the_house_has_its_own_limits() {
        let tenant = tenant(Terms::default());
        let narrow = house(Some(100));
        let large = enter(&narrow, &tenant, 1000).expect("alone");
        assert_eq!(enter(&narrow, &tenant, 1).err(), Some(Cause::QueuedTokens));
        large.started();
        let small = enter(&narrow, &tenant, 60).expect("nobody waits");
        let next = enter(&narrow, &tenant, 40).expect("just so");
        let refusal = next.wait(41, Instant::now()).expect_err("101 of 100");
        assert_eq!(refusal.cause, Cause::QueuedTokens);
        let third = enter(&narrow, &tenant, 0).expect("three may wait");
        assert_eq!(enter(&narrow, &tenant, 0).err(), Some(Cause::Queue));
        drop((large, small, next, third));
        assert_eq!((narrow.queued(), tenant.load()), ((0, 0), Load::default()));
    }

    #[test]
    fn the_oldest_tells_the_age() {
        let (house, tenant) = (house(None), tenant(Terms::default()));
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        assert_eq!(house.queue_age(after(9)), Duration::ZERO);
        let sender = Ticket::to_generate(&house, &tenant, 1, 9, start).expect("there is room");
        assert_eq!(house.queue_age(after(9)), Duration::ZERO, "no body yet");
        let enter = |seconds| {
            let ticket = Ticket::to_generate(&house, &tenant, 1, 9, start).expect("there is room");
            ticket.wait(1, after(seconds)).expect("there is room");
            ticket
        };
        let (first, second) = (enter(1), enter(4));
        assert_eq!(house.queue_age(after(9)), Duration::from_secs(8));
        first.started();
        assert_eq!(house.queue_age(after(9)), Duration::from_secs(5));
        drop((second, sender));
        assert_eq!(house.queue_age(after(9)), Duration::ZERO);
    }

    #[test]
    fn whose_prompt_is_being_read_is_not_late() {
        let (house, tenant) = (house(None), tenant(Terms::default()));
        let start = Instant::now();
        let after = |seconds| start + Duration::from_secs(seconds);
        let enter = |seconds| {
            let ticket = Ticket::to_generate(&house, &tenant, 1, 9, start).expect("there is room");
            ticket.wait(1, after(seconds)).expect("there is room");
            let begun = [Begun::default(), Begun::default()];
            ticket.submitted(&begun);
            (ticket, begun)
        };
        let (long, begun) = enter(0);
        let (next, _) = enter(8);
        assert_eq!(house.queue_age(after(9)), Duration::from_secs(9));
        begun[1].set(after(1)).expect("it begins once");
        assert_eq!(house.queue_age(after(9)), Duration::from_secs(1));
        assert_eq!(house.queued(), (2, 2), "it has no token yet");
        drop(next);
        assert_eq!(house.queue_age(after(9)), Duration::ZERO);
        drop(long);
        assert_eq!((house.queued(), tenant.load()), ((0, 0), Load::default()));
    }
}
