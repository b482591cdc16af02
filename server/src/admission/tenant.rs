//! Whose key it is, what it may have, and what it has had.

use std::sync::Arc;
use std::time::{Duration, Instant};

use http::{HeaderMap, HeaderValue, StatusCode};
use parking_lot::{Mutex, RwLock};
use scheduler::TenantId;

use super::bucket::Bucket;
use super::key_file::Terms;
use super::refusal::{Cause, Refusal};
use crate::api::models::bare;
use crate::error::ApiError;

/// One of those who share the server. Lives as long as the process: reloading the file changes its terms
/// and not what it has had.
#[derive(Debug)]
pub struct Tenant {
    number: u32,
    name: Option<Arc<str>>,
    terms: RwLock<Arc<Terms>>,
    ledger: Mutex<Ledger>,
}

#[derive(Debug)]
struct Ledger {
    requests: Bucket,
    tokens: Bucket,
    /// As in usage.
    spent_tokens: u64,
    load: Load,
}

/// What is in flight.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Load {
    pub(crate) requests: u64,
    /// Of these, how many have no token yet.
    pub(crate) queued: u64,
    /// Of those, the prompts' tokens, estimated until they are counted.
    pub(crate) queued_tokens: u64,
    pub(crate) choices: u64,
}

impl Tenant {
    /// `number` is its alone for the life of the process; 0 is nobody in particular.
    pub fn new(number: u32, name: Option<&str>, terms: Terms) -> Self {
        let now = Instant::now();
        Self {
            number,
            name: name.map(Arc::from),
            terms: RwLock::new(Arc::new(terms)),
            ledger: Mutex::new(Ledger {
                requests: Bucket::new(now),
                tokens: Bucket::new(now),
                spent_tokens: 0,
                load: Load::default(),
            }),
        }
    }

    /// Its number.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// Whose what is kept for later is: receipts, stored answers.
    pub fn key(&self) -> Option<usize> {
        self.number.checked_sub(1).map(|index| index as usize)
    }

    /// As the scheduler knows it.
    pub fn id(&self) -> TenantId {
        TenantId(self.number)
    }

    /// From the key file, so there are as many as somebody wrote there.
    pub fn name(&self) -> Option<&str> {
        self.name.as_deref()
    }

    /// What holds now.
    pub fn terms(&self) -> Arc<Terms> {
        Arc::clone(&self.terms.read())
    }

    pub(crate) fn set_terms(&self, terms: Terms) {
        *self.terms.write() = Arc::new(terms);
    }

    pub(crate) fn load(&self) -> Load {
        self.ledger.lock().load
    }

    /// What its request goes before, if it asks for so much.
    pub fn priority(&self, asked: Option<i8>) -> i8 {
        let terms = self.terms();
        asked.unwrap_or(terms.priority).min(terms.max_priority)
    }

    /// The most that any of its requests could have.
    pub(crate) fn max_priority(&self) -> i8 {
        self.terms().max_priority
    }

    /// The pool of cached prefixes for a request with this salt of its own. No two pairs of salts give
    /// the same pool, since the first has no slash.
    pub fn salt(&self, own: &Arc<str>) -> Arc<str> {
        match &self.terms().cache_salt {
            None => Arc::clone(own),
            Some(salt) if salt.is_empty() && own.is_empty() => Arc::clone(own),
            Some(salt) => format!("{salt}/{own}").into(),
        }
    }

    /// Whether it may use a name of the model.
    pub fn may_use(&self, model: &str) -> bool {
        let terms = self.terms();
        let allowed = terms.models.as_ref();
        allowed.is_none_or(|names| names.iter().any(|name| bare(name) == bare(model)))
    }

    pub(crate) fn check_model(&self, model: &str) -> Result<(), ApiError> {
        if self.may_use(model) {
            return Ok(());
        }
        Err(ApiError {
            param: Some("model".into()),
            ..ApiError::new(
                StatusCode::FORBIDDEN,
                "permission_error",
                "model_not_allowed",
                "this key may not use this model; /v1/models lists those that it may",
            )
        })
    }

    /// Takes a place, and a request of the minute's. `queued_tokens` is what its prompt will have at
    /// the least, `None` if nothing is going to be generated.
    pub(crate) fn enter(&self, queued_tokens: Option<u64>, now: Instant) -> Result<(), Refusal> {
        let terms = self.terms();
        let mut ledger = self.ledger.lock();
        let load = ledger.load;
        below(Cause::Concurrency, load.requests, terms.max_concurrency)?;
        if let Some(tokens) = queued_tokens {
            below(Cause::Queue, load.queued, terms.max_queue)?;
            room_for_tokens(&terms, load.queued_tokens, tokens)?;
        }
        if let Some(limit) = terms.requests_per_minute {
            let wait = ledger.requests.wait(limit, 1, now);
            if wait > Duration::ZERO {
                return Err(Refusal::rate(Cause::Requests, limit, wait));
            }
        }
        if let Some(tokens) = queued_tokens {
            ledger.check_tokens(&terms, tokens, now)?;
        }
        if let Some(limit) = terms.requests_per_minute {
            ledger.requests.take(limit, 1, now);
        }
        ledger.load.requests += 1;
        ledger.load.queued += u64::from(queued_tokens.is_some());
        ledger.load.queued_tokens += queued_tokens.unwrap_or(0);
        Ok(())
    }

    /// Whether another of its requests may wait where there is room for so many more: as long as fewer wait
    /// than that. So one key fills half of a queue at most and two a third each, and whoever has nothing in
    /// it finds room (dynamic thresholds, Choudhury and Hahne 1998, with a factor of one).
    pub(crate) fn check_share(&self, room: u64) -> Result<(), Refusal> {
        let queued = self.load().queued;
        if queued < room {
            return Ok(());
        }
        Err(Refusal::share_full(queued, room))
    }

    /// Its prompt has `tokens` rather than `before`.
    pub(crate) fn recount(&self, before: u64, tokens: u64, now: Instant) -> Result<(), Refusal> {
        let terms = self.terms();
        let mut ledger = self.ledger.lock();
        let others = ledger.load.queued_tokens - before;
        room_for_tokens(&terms, others, tokens)?;
        ledger.check_tokens(&terms, tokens, now)?;
        ledger.load.queued_tokens = others + tokens;
        Ok(())
    }

    /// More choices than it may ever have at once are no matter of waiting.
    pub(crate) fn check_choices(&self, choices: u64) -> Result<(), ApiError> {
        match self.terms().max_slots {
            Some(max) if choices > max => Err(ApiError::invalid_value(
                "n",
                format!("asks for {choices} choices in all, this key may have {max} at once"),
            )),
            _ => Ok(()),
        }
    }

    /// Takes slots for its choices, and its prompt off the minute's tokens.
    pub(crate) fn begin(&self, tokens: u64, choices: u64, now: Instant) -> Result<(), Refusal> {
        let terms = self.terms();
        let mut ledger = self.ledger.lock();
        if let Some(max) = terms.max_slots
            && ledger.load.choices + choices > max
        {
            return Err(Refusal::at_once(Cause::Slots, max));
        }
        ledger.load.choices += choices;
        if let Some(limit) = terms.tokens_per_minute {
            ledger.tokens.take(limit, tokens, now);
        }
        Ok(())
    }

    /// What is in flight is no longer.
    pub(crate) fn leave(&self, load: Load) {
        let mut ledger = self.ledger.lock();
        let all = &mut ledger.load;
        all.requests -= load.requests;
        all.queued -= load.queued;
        all.queued_tokens -= load.queued_tokens;
        all.choices -= load.choices;
    }

    /// Counts what was used. The prompt was taken off the minute's tokens when it entered; nobody knew
    /// then how long the answer would get.
    pub(crate) fn spend(&self, prompt: u64, generated: u64, now: Instant) {
        let terms = self.terms();
        let mut ledger = self.ledger.lock();
        ledger.spent_tokens = ledger.spent_tokens.saturating_add(prompt + generated);
        if let Some(limit) = terms.tokens_per_minute
            && generated > 0
        {
            ledger.tokens.take(limit, generated, now);
        }
    }

    /// `x-ratelimit-*`, for those limits that there are.
    pub(crate) fn tell_limits(&self, headers: &mut HeaderMap, now: Instant) {
        let terms = self.terms();
        let ledger = self.ledger.lock();
        for (names, limit, bucket) in [
            (
                &REQUEST_HEADERS,
                terms.requests_per_minute,
                &ledger.requests,
            ),
            (&TOKEN_HEADERS, terms.tokens_per_minute, &ledger.tokens),
        ] {
            let Some(limit) = limit else { continue };
            let [limit_name, remaining, reset] = *names;
            headers.insert(limit_name, limit.into());
            headers.insert(remaining, bucket.remaining(limit, now).into());
            let reset_in = HeaderValue::from_str(&duration(bucket.reset(limit, now)));
            headers.insert(reset, reset_in.expect("digits and letters"));
        }
    }
}

impl Ledger {
    fn check_tokens(&self, terms: &Terms, tokens: u64, now: Instant) -> Result<(), Refusal> {
        if let Some(limit) = terms.tokens_per_minute {
            let wait = self.tokens.wait(limit, tokens.max(1), now);
            if wait > Duration::ZERO {
                return Err(Refusal::rate(Cause::Tokens, limit, wait));
            }
        }
        match terms.budget_tokens {
            Some(budget) if self.spent_tokens.saturating_add(tokens.max(1)) > budget => {
                Err(Refusal::budget(terms))
            }
            _ => Ok(()),
        }
    }
}

const REQUEST_HEADERS: [&str; 3] = [
    "x-ratelimit-limit-requests",
    "x-ratelimit-remaining-requests",
    "x-ratelimit-reset-requests",
];
const TOKEN_HEADERS: [&str; 3] = [
    "x-ratelimit-limit-tokens",
    "x-ratelimit-remaining-tokens",
    "x-ratelimit-reset-tokens",
];

fn below(cause: Cause, number: u64, max: Option<u64>) -> Result<(), Refusal> {
    match max {
        Some(max) if number >= max => Err(Refusal::at_once(cause, max)),
        _ => Ok(()),
    }
}

/// One prompt larger than all that may wait enters alone.
fn room_for_tokens(terms: &Terms, others: u64, tokens: u64) -> Result<(), Refusal> {
    match terms.max_queued_tokens {
        Some(max) if others > 0 && others + tokens > max => {
            Err(Refusal::at_once(Cause::QueuedTokens, max))
        }
        _ => Ok(()),
    }
}

/// `0s`, `20ms`, `3s`, `6m0s`: as OpenAI writes it.
fn duration(time: Duration) -> String {
    if time < Duration::from_secs(1) && time > Duration::ZERO {
        return format!("{}ms", time.as_millis().max(1));
    }
    let seconds = time.as_secs() + u64::from(time.subsec_nanos() > 0);
    match (seconds / 60, seconds % 60) {
        (0, seconds) => format!("{seconds}s"),
        (minutes, seconds) => format!("{minutes}m{seconds}s"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tenant(terms: Terms) -> Tenant {
        Tenant::new(1, Some("t"), terms)
    }

    fn cause(outcome: Result<(), Refusal>) -> Option<Cause> {
        outcome.err().map(|refusal| refusal.cause)
    }

    const ONE: Load = Load {
        requests: 1,
        queued: 0,
        queued_tokens: 0,
        choices: 0,
    };

    #[test]
    fn limits_of_what_is_in_flight() {
        let now = Instant::now();
        let few = tenant(Terms {
            max_concurrency: Some(2),
            ..Terms::default()
        });
        assert_eq!(cause(few.enter(None, now)), None);
        assert_eq!(cause(few.enter(Some(5), now)), None);
        assert_eq!(cause(few.enter(None, now)), Some(Cause::Concurrency));
        few.leave(ONE);
        assert_eq!(cause(few.enter(None, now)), None);

        let queue = tenant(Terms {
            max_queue: Some(1),
            max_queued_tokens: Some(100),
            ..Terms::default()
        });
        assert_eq!(cause(queue.enter(Some(1000), now)), None, "alone");
        assert_eq!(cause(queue.enter(None, now)), None, "it does not queue");
        assert_eq!(cause(queue.enter(Some(1), now)), Some(Cause::Queue));

        let tokens = tenant(Terms {
            max_queued_tokens: Some(100),
            ..Terms::default()
        });
        assert_eq!(cause(tokens.enter(Some(60), now)), None);
        assert_eq!(
            cause(tokens.enter(Some(41), now)),
            Some(Cause::QueuedTokens)
        );
        assert_eq!(cause(tokens.enter(Some(40), now)), None);
        assert_eq!(
            cause(tokens.recount(40, 41, now)),
            Some(Cause::QueuedTokens)
        );
        assert_eq!(cause(tokens.recount(60, 10, now)), None);
        assert_eq!(cause(tokens.recount(40, 90, now)), None);

        let slots = tenant(Terms {
            max_slots: Some(4),
            ..Terms::default()
        });
        assert_eq!(cause(slots.begin(1, 3, now)), None);
        assert_eq!(cause(slots.begin(1, 2, now)), Some(Cause::Slots));
        assert_eq!(cause(slots.begin(1, 1, now)), None);
        assert!(slots.check_choices(4).is_ok() && slots.check_choices(5).is_err());
    }

    #[test]
    fn what_is_refused_costs_nothing() {
        let now = Instant::now();
        let tenant = tenant(Terms {
            requests_per_minute: Some(2),
            max_concurrency: Some(1),
            ..Terms::default()
        });
        assert_eq!(cause(tenant.enter(None, now)), None);
        for _ in 0..10 {
            assert_eq!(cause(tenant.enter(None, now)), Some(Cause::Concurrency));
        }
        tenant.leave(ONE);
        assert_eq!(cause(tenant.enter(None, now)), None);
        tenant.leave(ONE);
        let refusal = tenant.enter(None, now).expect_err("two were taken");
        assert_eq!(refusal.cause, Cause::Requests);
        assert_eq!(refusal.retry_in, Duration::from_secs(30));
        let later = now + Duration::from_secs(30);
        assert_eq!(cause(tenant.enter(None, later)), None);
    }

    #[test]
    fn answers_are_paid_for_by_those_who_come_next() {
        let now = Instant::now();
        let tenant = tenant(Terms {
            tokens_per_minute: Some(600),
            ..Terms::default()
        });
        assert_eq!(cause(tenant.enter(Some(100), now)), None);
        assert_eq!(cause(tenant.begin(100, 1, now)), None);
        tenant.spend(100, 700, now);
        let refusal = tenant.enter(Some(1), now).expect_err("800 of 600");
        assert_eq!(refusal.cause, Cause::Tokens);
        assert_eq!(refusal.retry_in, Duration::from_millis(20_100));
        let later = now + Duration::from_millis(20_100);
        assert_eq!(cause(tenant.enter(Some(1), later)), None);
    }

    #[test]
    fn a_budget_is_for_good_and_a_raise_is_heard() {
        let now = Instant::now();
        let terms = Terms {
            budget_tokens: Some(100),
            ..Terms::default()
        };
        let tenant = tenant(terms.clone());
        assert_eq!(cause(tenant.enter(Some(101), now)), Some(Cause::Budget));
        assert_eq!(cause(tenant.enter(Some(60), now)), None);
        tenant.spend(60, 40, now);
        let tomorrow = now + Duration::from_hours(24);
        assert_eq!(cause(tenant.enter(Some(0), tomorrow)), Some(Cause::Budget));
        tenant.set_terms(Terms {
            budget_tokens: Some(101),
            ..terms
        });
        assert_eq!(cause(tenant.enter(Some(1), tomorrow)), None);
    }

    #[test]
    fn priorities_have_a_default_and_a_cap() {
        let tenant = tenant(Terms {
            priority: -1,
            max_priority: 2,
            ..Terms::default()
        });
        for (asked, expect) in [(None, -1), (Some(0), 0), (Some(8), 2), (Some(-8), -8)] {
            assert_eq!(tenant.priority(asked), expect);
        }
    }

    #[test]
    fn pools_of_cached_prefixes_do_not_meet() {
        let pool = |salt: Option<&str>, own: &str| {
            let terms = Terms {
                cache_salt: salt.map(str::to_owned),
                ..Terms::default()
            };
            tenant(terms).salt(&own.into())
        };
        // Without a key file as ever; with one, the common pool is that of no salt.
        assert_eq!(&*pool(None, "x/y"), "x/y");
        assert_eq!(&*pool(Some(""), ""), "");
        let pools = [
            pool(Some(""), ""),
            pool(Some(""), "a"),
            pool(Some(""), "a/b"),
            pool(Some("a"), ""),
            pool(Some("a"), "b"),
            pool(Some("a"), "/b"),
            pool(Some("b"), ""),
        ];
        let distinct: std::collections::HashSet<_> = pools.iter().collect();
        assert_eq!(distinct.len(), pools.len(), "{pools:?}");
    }

    #[test]
    fn models_by_any_spelling() {
        let tenant = tenant(Terms {
            models: Some(vec!["a/b".into()]),
            ..Terms::default()
        });
        for (model, may) in [
            ("a/b", true),
            ("a/b:free", true),
            ("a", false),
            ("A/B", false),
        ] {
            assert_eq!(tenant.check_model(model).is_ok(), may, "{model}");
        }
    }

    #[test]
    fn limits_are_told() {
        let now = Instant::now();
        let tenant = tenant(Terms {
            requests_per_minute: Some(60),
            tokens_per_minute: Some(600),
            ..Terms::default()
        });
        tenant.enter(Some(10), now).expect("within its limits");
        tenant.begin(10, 1, now).expect("within its limits");
        tenant.spend(10, 1190, now);
        let mut headers = HeaderMap::new();
        tenant.tell_limits(&mut headers, now);
        for (name, value) in [
            ("x-ratelimit-limit-requests", "60"),
            ("x-ratelimit-remaining-requests", "59"),
            ("x-ratelimit-reset-requests", "1s"),
            ("x-ratelimit-limit-tokens", "600"),
            ("x-ratelimit-remaining-tokens", "0"),
            ("x-ratelimit-reset-tokens", "2m0s"),
        ] {
            assert_eq!(headers[name], value, "{name}");
        }
        let mut none = HeaderMap::new();
        super::Tenant::new(1, None, Terms::default()).tell_limits(&mut none, now);
        assert!(none.is_empty());
    }

    #[test]
    fn durations() {
        for (ms, text) in [
            (0, "0s"),
            (20, "20ms"),
            (999, "999ms"),
            (1000, "1s"),
            (1001, "2s"),
            (60_000, "1m0s"),
            (90_500, "1m31s"),
        ] {
            assert_eq!(duration(Duration::from_millis(ms)), text);
        }
    }
}
