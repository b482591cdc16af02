//! Who may enter, on what terms, and what is given up when it is crowded.
//!
//! A request passes four times. Nothing before the third costs more than its headers and its body:
//!
//! ```text
//! //  headers ............ key, level, queue, the key's limits, by the body's declared length
//! //  body ............... its true length
//! //  model, priority .... whether this key and this hour allow them; then it is rendered
//! //  token ids .......... exactly what it takes
//! ```
//!
//! | File | Holds |
//! |---|---|
//! | `key_file` | `--api-key-file`: names, hashes, terms |
//! | `key_ring` | which key was shown |
//! | `tenant` | one key's terms, and what it has had |
//! | `bucket` | a rate |
//! | `ticket` | one request inside; the house's queue |
//! | `ladder` | how crowded it is, in levels |
//! | `memory` | what the kernel says is left |
//! | `deadline` | until when an answer is of use |
//! | `refusal` | why not |

mod bucket;
pub mod deadline;
pub mod key_file;
pub mod key_ring;
mod ladder;
mod memory;
mod refusal;
mod tenant;
mod ticket;

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use engine::EngineHandle;
use http::HeaderMap;
use parking_lot::{Mutex, RwLock};
use tokio::time::{MissedTickBehavior, interval};

use crate::error::ApiError;
use crate::state::{AppState, RequestContext, ServerConfig};

use key_file::{KeyEntry, Terms};
use key_ring::KeyRing;
use ladder::Held;
use memory::Memory;
use ticket::House;

pub use ladder::{Level, Pressure};
pub use refusal::Cause;
pub(crate) use refusal::Refusal;
pub use tenant::Tenant;
pub use ticket::Ticket;

/// Bytes of a body per token of its prompt, about: what JSON adds and what long words save.
const BYTES_PER_TOKEN: u64 = 4;
/// How often what is seen of the level from outside is brought up to date.
const WATCH_INTERVAL: Duration = Duration::from_millis(250);

/// The door.
pub struct Admission {
    ring: RwLock<Arc<KeyRing>>,
    file: Option<PathBuf>,
    plain: Vec<String>,
    /// Everybody that a file has ever named: limits outlive a reload.
    named: Mutex<HashMap<String, Arc<Tenant>>>,
    /// Whoever comes where no key is needed.
    anybody: Arc<Tenant>,
    house: Arc<House>,
    max_queue_age: Option<Duration>,
    memory: Memory,
}

/// What the headers tell of a request.
pub(crate) struct Arrival {
    /// Declared bytes of the body; 0 if they are not.
    pub(crate) num_bytes: u64,
    /// What its headers ask for.
    pub(crate) priority: Option<i8>,
    /// Whether it wants the engine, or only a prompt.
    pub(crate) generates: bool,
}

impl Admission {
    /// Reads the key file, if there is one.
    ///
    /// # Errors
    /// It cannot be used; the message names it and what is wrong.
    pub fn new(config: &ServerConfig) -> Result<Self, String> {
        let admission = Self {
            ring: RwLock::default(),
            file: config.api_key_file.clone(),
            plain: config.api_keys.clone(),
            named: Mutex::default(),
            anybody: Arc::new(Tenant::new(0, None, Terms::default())),
            house: Arc::new(House::new(config.max_queued_tokens)),
            max_queue_age: config.max_queue_age,
            memory: Memory::default(),
        };
        admission.reload()?;
        Ok(admission)
    }

    /// Reads the key file anew; what is in flight goes on. Returns how many names it has.
    ///
    /// # Errors
    /// It cannot be used; what held before holds on.
    pub fn reload(&self) -> Result<usize, String> {
        let entries = match &self.file {
            None => Vec::new(),
            Some(path) => key_file::read(path)?,
        };
        let plain = self.plain.iter().map(|key| key_ring::hash(key.as_bytes()));
        let plain: Vec<_> = plain.collect();
        for entry in &entries {
            if entry.hashes.iter().any(|hash| plain.contains(hash)) {
                return Err(format!("{}: its key is one of --api-key's", entry.name));
            }
        }
        let num_names = entries.len();
        let mut ring = KeyRing::default();
        // The first are those of --api-key, whose numbers and terms never change.
        let terms = Terms {
            cache_salt: self.file.as_ref().map(|_| String::new()),
            ..Terms::default()
        };
        for (hash, number) in plain.into_iter().zip(1..) {
            let known = self.ring.read().keys.get(number as usize - 1).cloned();
            let tenant = known.map_or_else(
                || Arc::new(Tenant::new(number, None, terms.clone())),
                |(_, tenant)| tenant,
            );
            ring.keys.push((hash, tenant));
        }
        let mut named = self.named.lock();
        for entry in entries {
            let KeyEntry {
                name,
                hashes,
                terms,
            } = entry;
            let number = (self.plain.len() + named.len() + 1) as u32;
            let tenant = named.entry(name).or_insert_with_key(|name| {
                Arc::new(Tenant::new(number, Some(name.as_str()), terms.clone()))
            });
            tenant.set_terms(terms);
            ring.keys
                .extend(hashes.into_iter().map(|hash| (hash, Arc::clone(tenant))));
        }
        *self.ring.write() = Arc::new(ring);
        Ok(num_names)
    }

    /// Keys that open the door; 0: none is needed.
    pub fn num_keys(&self) -> usize {
        self.ring.read().keys.len()
    }

    /// Whoever shows no key, where none is needed.
    pub fn anybody(&self) -> &Arc<Tenant> {
        &self.anybody
    }

    /// Whose request it is.
    pub(crate) fn authenticate(&self, headers: &HeaderMap) -> Result<Arc<Tenant>, ApiError> {
        let ring = Arc::clone(&self.ring.read());
        if ring.keys.is_empty() {
            return Ok(Arc::clone(&self.anybody));
        }
        ring.find(headers)
    }

    /// Lets a request in as far as its headers tell.
    pub(crate) fn enter(
        &self,
        state: &AppState,
        tenant: &Arc<Tenant>,
        arrival: &Arrival,
        now: Instant,
    ) -> Result<Ticket, Refusal> {
        let level = self.level(&state.engine, now);
        // What only the body tells may still speak for it.
        let at_most = match arrival.priority {
            Some(_) => tenant.priority(arrival.priority),
            None => tenant.max_priority(),
        };
        if !level.admits(at_most) {
            return Err(Refusal::crowded(level.number()));
        }
        if !arrival.generates {
            return Ticket::to_render(&self.house, tenant, now);
        }
        let queue = state.engine.queue();
        if queue.num_waiting >= queue.max_waiting {
            return Err(Refusal::queue_full(queue.max_waiting));
        }
        // Those who are about to run are no queue yet.
        let max_queued = queue.max_waiting + u64::from(state.info.max_num_seqs);
        if self.is_shared() {
            let room = max_queued.saturating_sub(self.house.queued().0);
            let room = room.min(queue.max_waiting - queue.num_waiting);
            tenant.check_share(room)?;
        }
        let tokens = arrival.num_bytes / BYTES_PER_TOKEN;
        Ticket::to_generate(&self.house, tenant, tokens, max_queued, now)
    }

    /// Whether more than one key opens the door.
    fn is_shared(&self) -> bool {
        let ring = self.ring.read();
        let mut tenants = ring.keys.iter().map(|(_, tenant)| tenant.number());
        let first = tenants.next();
        tenants.any(|number| Some(number) != first)
    }

    /// How crowded it is.
    pub fn level(&self, engine: &EngineHandle, now: Instant) -> Level {
        Level::of(&self.pressure(engine, now), self.max_queue_age)
    }

    fn pressure(&self, engine: &EngineHandle, now: Instant) -> Pressure {
        let stats = engine.stats().scheduler;
        let free = |used: u32, all: u32| match all {
            // Nothing is known before the first step.
            0 => 1.0,
            all => 1.0 - f64::from(used) / f64::from(all),
        };
        Pressure {
            free_blocks: free(stats.num_blocks_used, stats.num_blocks),
            free_slots: free(stats.num_slots_used, stats.num_slots),
            somebody_waits: stats.num_waiting > 0,
            queue_age: self.house.queue_age(now),
            memory_bytes: self.memory.available(now),
        }
    }

    /// Brings metrics up to date.
    pub(crate) fn observe(&self, state: &AppState) {
        let now = Instant::now();
        let (num_queued, tokens) = self.house.queued();
        let metrics = &state.metrics.admission;
        let level = self.level(&state.engine, now);
        metrics.level.set(level.number().into());
        metrics.queued_requests.set(num_queued as i64);
        metrics.queued_tokens.set(tokens as i64);
        metrics
            .queue_age
            .set(self.house.queue_age(now).as_secs_f64());
        for tenant in self.named.lock().values() {
            if let Some(name) = tenant.name() {
                metrics.set_load(name, tenant.load().requests);
            }
        }
    }
}

/// Of a body of so many bytes.
pub(crate) fn estimated_tokens(num_bytes: usize) -> u64 {
    num_bytes as u64 / BYTES_PER_TOKEN
}

/// Counts a refusal and words it.
pub(crate) fn shed(ctx: &RequestContext, refusal: Refusal) -> ApiError {
    count_shed(ctx, refusal.cause);
    refusal.into()
}

/// Counts a refusal that somebody else words.
pub(crate) fn count_shed(ctx: &RequestContext, cause: Cause) {
    let metrics = &ctx.state.metrics.admission;
    metrics.count_shed(cause, ctx.tenant.name());
}

/// The body was read: whether its key may use the model, and this hour allows its priority. Before anything is
/// rendered.
pub(crate) fn check_body(
    ctx: &RequestContext,
    model: &str,
    priority: Option<i8>,
) -> Result<(), ApiError> {
    if let Err(error) = ctx.tenant.check_model(model) {
        count_shed(ctx, Cause::Model);
        return Err(error);
    }
    let generates = ctx.ticket.as_ref().is_some_and(|ticket| ticket.generates());
    let level = ctx.state.admission.level(&ctx.state.engine, Instant::now());
    if generates && !level.admits(ctx.tenant.priority(ctx.priority.or(priority))) {
        return Err(shed(ctx, Refusal::crowded(level.number())));
    }
    Ok(())
}

/// Everything about a request is known: takes what it takes.
pub(crate) fn begin(ctx: &RequestContext, tokens: u64, choices: u64) -> Result<(), ApiError> {
    ctx.tenant.check_choices(choices)?;
    match &ctx.ticket {
        Some(ticket) => ticket
            .begin(tokens, choices, Instant::now())
            .map_err(|refusal| shed(ctx, refusal)),
        None => Ok(()),
    }
}

/// Keeps what follows from the level up to date, for ever.
pub(crate) async fn watch(state: Arc<AppState>) -> Infallible {
    let mut tick = interval(WATCH_INTERVAL);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut held = Held::new(Instant::now());
    loop {
        tick.tick().await;
        let now = Instant::now();
        let level = state.admission.level(&state.engine, now);
        if let Some((from, to)) = held.look(level, now) {
            let (from, to) = (from.number(), to.number());
            tracing::warn!(from, to, "the level of what is given up has changed");
        }
        state.engine.pause_drafts(!held.level().allows_drafts());
    }
}

/// Reads the key file again, if there is one, and says how that went.
pub fn reload(state: &AppState) {
    if state.config.api_key_file.is_none() {
        return;
    }
    let outcome = state.admission.reload();
    state.metrics.admission.count_reload(outcome.is_ok());
    match outcome {
        Ok(names) => tracing::info!(names, "the key file was read again"),
        Err(error) => {
            tracing::error!(
                error,
                "the key file cannot be used; the keys from before hold on"
            );
        }
    }
}
