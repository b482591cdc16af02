//! Decides what runs in each step. No tensor, clock, thread, async or randomness.
//!
//! # The map
//!
//! | File | Holds |
//! |---|---|
//! | `config` | [`SchedulerConfig`]: limits |
//! | `request` | [`Request`], [`SamplingParams`], [`FinishReason`] |
//! | `sequence` | one choice of a request, in flight, and its legal status changes |
//! | `queue` | the order of one tenant's requests, and of those who run |
//! | `tenants` | what each tenant was served; whose turn it is |
//! | `budget` | how many tokens a sequence gets |
//! | `pace` | how much of prompts a step takes beside those who generate |
//! | `admission` | [`check_size`]: what can never run |
//! | `scheduler` | [`Scheduler`]: add, abort, finish |
//! | `plan` | `schedule`: who runs in the next step |
//! | `turns` | whose prompt is next within a step, and how much it gets |
//! | `shares` | who makes way for a tenant that has less than its share |
//! | `drafts` | which rows carry drafts, and make new ones |
//! | `depth`, `costs` | how many drafts pay; what they cost |
//! | `prepare` | `prepare`: what can be done while a step runs |
//! | `update` | `update`: what a result changes |
//! | `preempt` | who yields and what is given back |
//! | `stop` | stop ids, length |
//! | `marks` | where the state of a prompt is worth a snapshot |
//! | `saves` | snapshots on the way: who writes them, who waits for them |
//! | `output` | [`SchedulerOutput`], the plan; [`StepResult`]; [`RequestOutput`] |
//! | `mask` | [`TokenMask`], [`RowMasks`]: which tokens a row may draw, decided outside |
//! | `runner` | [`Runner`]: plan in, result out |
//! | `stats` | [`SchedulerStats`]: plain numbers |
//! | `check` | [`Standing`] and `check_invariants`, for tests |
//!
//! # The contract
//!
//! There is no prefill or decode phase. A sequence has tokens and computed tokens, and each step
//! lets the second catch up with the first:
//!
//! ```text
//! |--- computed ---|--- this step ---|--- later ---|
//! 0              start           start+len      tokens
//! ```
//!
//! A row that reaches the end samples a token; a chunk, a prefix hit and resuming after preemption
//! are the same rule with other numbers.
//!
//! 1. *Order.* A step serves first the running sequences that want one token. What is left goes to
//!    prompts, of those who run and of those who wait alike: to the highest priority, of equals to the
//!    tenant that was served least, and so on until the step is full. Within a tenant those who wait go
//!    by priority and arrival, and a short prompt goes before what is left of a longer one, but the
//!    oldest of those who run has half of what is left. So many steps of waiting make up for a level of
//!    priority, so everybody's turn comes. Who
//!    waits at the head waits for memory alone: of those behind, nobody overtakes it. Only who shares
//!    with an older running sequence a prefix that this is about to save is passed over, until it is
//!    saved or its maker is gone: requests that arrive together with one prefix compute it once.
//! 2. *Memory.* A sequence enters with blocks for all tokens known of it and a slot, or not at all.
//!    From then on it wants at most one block a step. If that one is short, first snapshots go, then
//!    a running sequence yields, of the lowest priority the one that is rebuilt most cheaply (`preempt`):
//!    it gives back everything, keeps its tokens and returns to its place in the queue. What it had computed is a snapshot from then on, which may go to the host
//!    or be evicted like any other; what is gone when its turn comes is computed again. Nobody enters
//!    in a step in which somebody yielded to a running one.
//! 3. *Progress.* The first running sequence in that order never yields to another, and alone it always
//!    fits: what could never fit was refused by `add`. Whoever has yielded is dearer the next time.
//! 4. *In flight.* Between `schedule` and `update` a row's memory belongs to the runner. Whoever is
//!    aborted then keeps its memory until `update`, which drops its result.
//! 5. *Saving.* Rows carry places where their state is copied on the way: where messages begin, at the
//!    prompt's end less one (the last token must run to give logits), where others have parted from
//!    this path before, and now and then in long stretches. Slots for that are taken when everything
//!    else is planned, the most valuable first; where there is none there is no save. A prefix that two
//!    prompts share and that ends where a message begins is thus a hit on the second sighting, to the
//!    block, as long as there are slots. *Publishing* happens in `update`: what a row has saved, and the
//!    final state of whoever ends well. A row's fault fails its request, publishes nothing, and removes
//!    all snapshots of prefixes it went through.
//! 6. *Determinism.* Same calls, same plans, byte for byte. `prepare` makes no difference to them,
//!    called or not, whenever and however often.
//! 7. *Drafts.* A row that samples may carry guesses at the tokens behind its own, and draws as many
//!    tokens as come out as guessed and one more. They go through stop checks one by one; what lies
//!    behind a stop is dropped. So the text is that of plain decoding, for any number of drafts. What
//!    goes wrong behind a draft (a NaN, a grammar's end) is left to the next row, which meets it at its
//!    first position. Drafts are guests: they count against the budget after everyone's first token,
//!    take blocks that are free or cached and give them back in `update`; nobody yields, or waits for
//!    memory, for their sake.
//! 8. *Drafts and bits.* On a device whose result depends on how many tokens run together, a token
//!    that runs behind others may come out otherwise than alone where two are about as likely, as it
//!    may in another batch. A `grid` rules that out, so with a grid there are no drafts.
//! 9. *Tenants.* A counter per [`TenantId`] says what it was served: prompt tokens computed, and twice
//!    the tokens generated, over its weight; what was cached, and what is computed again after yielding,
//!    costs nothing. It is lifted, when somebody of it comes and nobody of it waits, to the lowest of
//!    those who wait, less a few steps. If the first in line has no slot or no blocks and its tenant is
//!    within its share of both, one of a tenant that has more yields to it, of the same priority or a
//!    lower one; nobody falls below its share by that. With a `grid`, after which nothing could go on,
//!    nobody does. Where there is one tenant, nothing of this is to be seen.
//! 10. *Pace.* With a `max_slowdown` prompts get what is left of a step's time, so learned from the times
//!     told to `note_times`; which tokens run together changes, no token does. A time told is a call like
//!     any other: same calls, same plans.
//!
//! # What this crate does not know
//!
//! Text, stop strings, grammars (the server's and the runner's); devices and tensors; how a token is
//! chosen; who a tenant is. It reads limits and stop ids of [`SamplingParams`] and hands the rest through. It has no
//! clock: whoever wants deadlines calls `abort`; waiting is counted in steps; how long a step took is
//! told by [`Runner::times`] and changes how many drafts there are, never what is said.

mod admission;
mod budget;
mod check;
mod config;
mod costs;
mod depth;
mod drafts;
mod marks;
mod mask;
mod output;
mod pace;
mod plan;
mod preempt;
mod prepare;
mod queue;
mod request;
mod runner;
mod saves;
mod scheduler;
mod sequence;
mod shares;
mod stats;
mod stop;
mod tenants;
mod turns;
mod update;

pub use admission::{AdmissionError, check_size};
pub use check::Standing;
pub use config::{DraftCost, MAX_DRAFTS, SchedulerConfig};
pub use costs::StepTime;
pub use kvcache::{
    BlockHash, BlockId, CacheConfig, Held, HostBlockId, HostSlotId, News, SlotId, SnapshotKind,
    StateOp, Tier,
};
pub use mask::{RowMasks, TokenMask};
pub use output::{
    Drafting, History, PromptLogprobs, RequestOutput, Row, RowFault, RowOutput, RowResult, Sample,
    Save, SchedulerOutput, SequenceId, StepId, StepResult, TokenLogprobs,
};
pub use request::{FinishReason, Request, RequestId, SamplingParams, TenantId};
pub use runner::Runner;
pub use scheduler::Scheduler;
pub use stats::{ByMiss, SchedulerStats};
