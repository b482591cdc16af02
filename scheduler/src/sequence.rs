//! One choice of a request, in flight.

use std::sync::Arc;

use kvcache::{BlockHash, BlockId, HashChain, KvCacheManager, Lease, Reservation, SnapshotKind};

use crate::budget::Span;
use crate::depth::Guesser;
use crate::marks::{Known, Mark, Stretch, on_grid};
use crate::output::{Drafting, History, PromptLogprobs, Row, Sample, SequenceId, TokenLogprobs};
use crate::queue::Rank;
use crate::request::Request;
use crate::tenants::Place;
use crate::turns::Prompt;

/// Generated tokens for which room is made at first.
const MAX_ROOM: u32 = 1024;

/// Where a sequence stands.
///
/// ```text
/// Waiting --start--> Running --leave--> Leaving
///    ^                  |
///    +------yield-------+
/// ```
///
/// Whoever is not in flight ends at once, without `Leaving`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Status {
    /// In the queue, without memory; new or preempted.
    Waiting,
    /// With memory.
    Running,
    /// Ended by its client while the runner works on it: the result will be dropped.
    Leaving {
        /// Whether its state is worth a snapshot.
        publish: bool,
    },
}

/// One choice of a request, in flight.
#[derive(Debug)]
pub(crate) struct Sequence {
    pub(crate) id: SequenceId,
    pub(crate) request: Arc<Request>,
    pub(crate) choice: u32,
    /// Its place in the queue whenever it waits: lower goes first.
    pub(crate) rank: Rank,
    /// Prompt and generated tokens, once there is a generated one or is about to be; until then the
    /// prompt is shared with the request.
    own_tokens: Vec<u32>,
    num_computed: u32,
    /// Set by the first start.
    num_cached: Option<u32>,
    /// Prompt tokens that it was given or that were cached: what it is given again costs nothing.
    num_given: u32,
    /// Where its state is worth a snapshot, ahead of what is computed.
    marks: Vec<Mark>,
    /// Length of the last snapshot that it came from or left behind.
    num_saved: u32,
    /// How often it had to yield.
    pub(crate) num_yields: u32,
    /// While it waits: for whose snapshot, and where.
    pub(crate) awaited: Option<(SequenceId, u32)>,
    /// Scores of prompt tokens so far, as long as they are wanted and undelivered.
    scores: Option<Vec<TokenLogprobs>>,
    status: Status,
    lease: Option<Lease>,
    chain: HashChain,
    block_size: u32,
    /// See [`SchedulerConfig::grid`](crate::SchedulerConfig::grid).
    grid: Option<u32>,
    /// The beginning of the next row's table, copied while a step ran. It stays right as long as the
    /// lease keeps its blocks.
    next_table: Vec<BlockId>,
    pub(crate) guesses: Guesses,
}

/// Guesses at tokens to come.
#[derive(Debug)]
pub(crate) struct Guesses {
    /// At those behind the last one known; empty if the last row made none.
    pub(crate) drafts: Vec<u32>,
    /// Whether the draft block has seen the last token known.
    pub(crate) is_drafted: bool,
    pub(crate) guesser: Guesser,
}

impl Sequence {
    /// A new choice, waiting.
    pub(crate) fn new(
        id: SequenceId,
        request: Arc<Request>,
        choice: u32,
        block_size: u32,
        grid: Option<u32>,
        guesser: Guesser,
    ) -> Self {
        let wants_scores = choice == 0 && request.sampling.prompt_logprobs.is_some();
        Self {
            id,
            choice,
            rank: Rank::default(),
            own_tokens: Vec::new(),
            num_computed: 0,
            num_cached: None,
            num_given: 0,
            marks: Vec::new(),
            num_saved: 0,
            num_yields: 0,
            awaited: None,
            scores: wants_scores.then(Vec::new),
            status: Status::Waiting,
            lease: None,
            chain: HashChain::new(Arc::clone(&request.cache_salt), block_size),
            block_size,
            grid,
            next_table: Vec::new(),
            guesses: Guesses {
                drafts: Vec::new(),
                is_drafted: false,
                guesser,
            },
            request,
        }
    }

    pub(crate) fn status(&self) -> Status {
        self.status
    }

    pub(crate) fn lease(&self) -> Option<&Lease> {
        self.lease.as_ref()
    }

    /// All tokens known.
    pub(crate) fn tokens(&self) -> &[u32] {
        known(&self.request, &self.own_tokens)
    }

    /// Where it stands among those who wait.
    pub(crate) fn place(&self) -> Place {
        Place {
            tenant: self.request.tenant,
            priority: self.request.priority,
            rank: self.rank,
        }
    }

    /// What it has to compute, as far as is known now.
    pub(crate) fn prompt_left(&self) -> Prompt {
        Prompt {
            id: self.id,
            rank: self.rank,
            num_left: self.num_wanted() - self.num_computed,
        }
    }

    /// It is given the tokens up to `end`. Returns how many of the prompt it never had before.
    pub(crate) fn note_given(&mut self, end: u32) -> u32 {
        let end = end.min(self.num_prompt()).max(self.num_given);
        end - std::mem::replace(&mut self.num_given, end)
    }

    pub(crate) fn num_prompt(&self) -> u32 {
        self.request.prompt.len() as u32
    }

    pub(crate) fn num_generated(&self) -> u32 {
        self.tokens().len() as u32 - self.num_prompt()
    }

    pub(crate) fn num_computed(&self) -> u32 {
        self.num_computed
    }

    /// Prompt tokens that needed no computing at the first start.
    pub(crate) fn num_cached(&self) -> u32 {
        self.num_cached.unwrap_or(0)
    }

    /// Whether it ever ran.
    pub(crate) fn has_run(&self) -> bool {
        self.num_cached.is_some()
    }

    /// Length of the last snapshot that it came from or left behind.
    pub(crate) fn num_saved(&self) -> u32 {
        self.num_saved
    }

    /// It has left a snapshot of so many tokens behind.
    pub(crate) fn note_saved(&mut self, num_tokens: u32) {
        self.num_saved = num_tokens;
    }

    /// Where its state is worth a snapshot, ahead of what is computed; ascending.
    pub(crate) fn marks(&self) -> &[Mark] {
        &self.marks
    }

    /// Somebody waits for the snapshot there.
    pub(crate) fn await_mark(&mut self, at: u32) {
        let index = self.marks.binary_search_by_key(&at, |mark| mark.at);
        self.marks[index.expect("a mark is awaited")].is_awaited = true;
    }

    /// Stands for its first `len` tokens and its salt.
    pub(crate) fn prefix_hash(&mut self, len: u32) -> BlockHash {
        let tokens = known(&self.request, &self.own_tokens);
        let len = len as usize;
        let hash = self.chain.at(tokens, len);
        hash.child(&tokens[len - len % self.block_size as usize..len])
    }

    /// The longest hit it could use.
    pub(crate) fn max_hit(&self) -> u32 {
        // Scores are of computed positions, so nothing may be skipped.
        match self.scores {
            Some(_) => 0,
            None => self.num_wanted() - 1,
        }
    }

    /// How many tokens it may still draw.
    pub(crate) fn num_left(&self, max_model_len: u32) -> u32 {
        let num_in_window = max_model_len - self.tokens().len() as u32;
        let max_tokens = self.request.sampling.max_tokens;
        num_in_window.min(max_tokens - self.num_generated())
    }

    /// How many of the tokens must be computed, as far as is known now.
    pub(crate) fn num_wanted(&self) -> u32 {
        let num_tokens = self.tokens().len() as u32;
        match (self.request.sampling.max_tokens, &self.scores) {
            // Nothing is sampled: the last token would only give logits that nobody asked for.
            (0, Some(_)) => (num_tokens - 1).max(1),
            // Nothing is asked at all. A row holds at least one token.
            (0, None) => 1,
            _ => num_tokens,
        }
    }

    /// What decides where its state is worth a snapshot.
    fn stretch(&self, known: Known) -> Stretch<'_> {
        Stretch {
            known,
            num_prompt: self.num_prompt(),
            num_wanted: self.num_wanted(),
            boundaries: &self.request.boundaries,
            has_siblings: self.request.num_choices > 1,
            block_size: self.block_size,
            grid: self.grid,
        }
    }

    /// What it could run next.
    pub(crate) fn span(&self) -> Span {
        let (start, num_wanted) = (self.num_computed, self.num_wanted());
        let Some(grid) = self.grid else {
            return Span {
                start,
                end: num_wanted,
                grid: 1,
            };
        };
        // What follows the last line of the grid is computed apart, and generated tokens run alone, as
        // they did the first time.
        let last_line = on_grid(self.num_prompt() - 1, self.grid);
        let ends = [last_line, self.num_prompt(), start + 1];
        let end = ends.into_iter().find(|end| start < *end);
        Span {
            start,
            end: num_wanted.min(end.expect("the last is beyond it")),
            grid,
        }
    }

    /// What it needs to run.
    pub(crate) fn reservation(&mut self, num_spare_blocks: u32) -> Reservation<'_> {
        let num_wanted = self.num_wanted() as usize;
        let max_hit = self.max_hit() as usize;
        let tokens = known(&self.request, &self.own_tokens);
        Reservation {
            chain: &mut self.chain,
            tokens: &tokens[..num_wanted],
            max_hit,
            num_spare_blocks,
        }
    }

    /// `Waiting` to `Running`, with as many tokens computed as were hit.
    pub(crate) fn start(&mut self, lease: Lease, known: Known) {
        let num_hit = known.num_hit;
        assert_eq!(self.status, Status::Waiting, "{:?} starts", self.id);
        self.status = Status::Running;
        self.lease = Some(lease);
        self.num_computed = num_hit;
        self.num_saved = num_hit;
        self.awaited = None;
        self.marks = self.stretch(known).marks();
        self.num_cached.get_or_insert(num_hit);
        self.note_given(num_hit);
    }

    /// `Running` to `Waiting`: keeps its tokens, leaves what was computed as a snapshot.
    pub(crate) fn yield_memory(&mut self, cache: &mut KvCacheManager) {
        assert_eq!(self.status, Status::Running, "{:?} yields", self.id);
        let lease = self.lease.take().expect("a running sequence has a lease");
        self.give_back(lease, cache, SnapshotKind::Yielded);
        self.status = Status::Waiting;
        self.num_yields += 1;
        self.num_computed = 0;
        self.marks.clear();
        self.next_table.clear();
        self.guesses.drafts.clear();
        self.guesses.is_drafted = false;
        if let Some(scores) = &mut self.scores {
            scores.clear();
        }
    }

    /// Publishes what was computed, unless decoding made it and that is not the state that a prompt
    /// makes.
    fn give_back(&mut self, lease: Lease, cache: &mut KvCacheManager, kind: SnapshotKind) {
        if self.grid.is_some() {
            cache.release(lease);
            return;
        }
        let tokens = known(&self.request, &self.own_tokens);
        let computed = &tokens[..self.num_computed as usize];
        cache.retire(lease, &mut self.chain, computed, kind);
    }

    /// `Running` to `Leaving`.
    pub(crate) fn leave(&mut self, publish: bool) {
        assert_eq!(self.status, Status::Running, "{:?} leaves", self.id);
        self.status = Status::Leaving { publish };
    }

    /// Lease, chain and tokens, to extend the first or publish the others.
    pub(crate) fn cache_parts(&mut self) -> (&mut Lease, &mut HashChain, &[u32]) {
        let lease = self.lease.as_mut().expect("a running sequence has a lease");
        let tokens = known(&self.request, &self.own_tokens);
        (lease, &mut self.chain, tokens)
    }

    /// Gives back what it holds, and publishes its state if that is good.
    pub(crate) fn end(mut self, cache: &mut KvCacheManager, publish: bool) {
        match self.lease.take() {
            Some(lease) if publish => self.give_back(lease, cache, SnapshotKind::Finish),
            Some(lease) => cache.release(lease),
            None => {}
        }
    }

    /// The next `len` tokens as a row of the plan.
    pub(crate) fn row(&mut self, len: u32) -> Row {
        let mut block_table = std::mem::take(&mut self.next_table);
        let lease = self.lease.as_ref().expect("a running sequence has a lease");
        let (start, end) = (
            self.num_computed as usize,
            (self.num_computed + len) as usize,
        );
        let num_blocks = end.div_ceil(self.block_size as usize);
        block_table.truncate(num_blocks);
        block_table.extend_from_slice(&lease.blocks()[block_table.len()..num_blocks]);
        Row {
            sequence: self.id,
            input_ids: self.tokens()[start..end].to_vec(),
            start: self.num_computed,
            block_table,
            slot: lease.slot(),
            saves: Vec::new(),
            drafting: Drafting {
                num_pending: lease.num_pending(),
                is_drafted: self.guesses.is_drafted,
                ..Drafting::default()
            },
            sample: self.sample(end),
            prompt_logprobs: self.scored_targets(start, end),
        }
    }

    /// `len` more tokens are computed, with these scores. Without drafts the slot has absorbed them;
    /// with drafts they lie beside it.
    pub(crate) fn advance(&mut self, len: u32, has_drafts: bool, scores: Vec<TokenLogprobs>) {
        self.num_computed += len;
        let lease = self.lease.as_mut().expect("a running sequence has a lease");
        lease.set_num_pending(if has_drafts { len } else { 0 });
        let num_passed = self
            .marks
            .partition_point(|mark| mark.at <= self.num_computed);
        self.marks.drain(..num_passed);
        if let Some(sum) = &mut self.scores {
            sum.extend(scores);
        }
    }

    /// One more token is known.
    pub(crate) fn append(&mut self, token: u32) {
        self.own_prompt();
        self.own_tokens.push(token);
    }

    /// While a row of `len` tokens that samples runs: makes what its token will need.
    pub(crate) fn prepare_next(&mut self, len: u32) {
        self.own_prompt();
        let lease = self.lease.as_ref().expect("a running sequence has a lease");
        let wanted = (self.num_computed + len + 1).div_ceil(self.block_size) as usize;
        // A block that the new token may need comes with the plan.
        let num_blocks = wanted.min(lease.blocks().len());
        self.next_table.clear();
        self.next_table.reserve_exact(wanted);
        self.next_table
            .extend_from_slice(&lease.blocks()[..num_blocks]);
    }

    /// Hashes of its tokens as far as the row in flight goes, and of who waits as far as it may be
    /// hit. Returns how many tokens were hashed.
    pub(crate) fn look_ahead(
        &mut self,
        cache: &KvCacheManager,
        len: u32,
        max_tokens: usize,
    ) -> usize {
        let tokens = known(&self.request, &self.own_tokens);
        if self.lease.is_some() {
            let end = (self.num_computed + len) as usize;
            return self.chain.extend(tokens, end, max_tokens);
        }
        let wanted = self.reservation(0);
        cache.look_ahead(wanted.chain, wanted.tokens, wanted.max_hit, max_tokens)
    }

    /// Its lease has given blocks back.
    pub(crate) fn forget_trimmed(&mut self) {
        let num_blocks = self.lease.as_ref().map_or(0, |lease| lease.blocks().len());
        self.next_table.truncate(num_blocks);
    }

    /// Whether what was prepared is what the lease says.
    pub(crate) fn check_prepared(&self) {
        let blocks = self.lease.as_ref().map_or(&[][..], Lease::blocks);
        assert!(
            blocks.starts_with(&self.next_table),
            "{:?}: the next table is a beginning of the lease",
            self.id
        );
        let own = self.own_tokens.is_empty() || self.own_tokens.starts_with(&self.request.prompt);
        assert!(own, "{:?}: its tokens begin with the prompt", self.id);
    }

    /// From the first generated token on, tokens are its own.
    fn own_prompt(&mut self) {
        if self.own_tokens.is_empty() {
            let room = self.request.sampling.max_tokens.min(MAX_ROOM) as usize;
            self.own_tokens
                .reserve_exact(self.request.prompt.len() + room);
            self.own_tokens.extend_from_slice(&self.request.prompt);
        }
    }

    /// The prompt's scores, the first time.
    pub(crate) fn deliver_scores(&mut self) -> Vec<TokenLogprobs> {
        self.scores.take().unwrap_or_default()
    }

    /// For the test of the test: breaks the bond of status and lease.
    #[cfg(test)]
    pub(crate) fn lose_lease(&mut self) -> Lease {
        self.lease.take().expect("a running sequence has a lease")
    }

    fn sample(&self, end: usize) -> Option<Sample> {
        let params = &self.request.sampling;
        if end < self.tokens().len() || params.max_tokens == 0 {
            return None;
        }
        let history = params.needs_history().then(|| History {
            prompt: Arc::clone(&self.request.prompt),
            generated: self.tokens()[self.request.prompt.len()..].to_vec(),
        });
        Some(Sample {
            request: self.request.id,
            choice: self.choice,
            params: Arc::clone(params),
            seed: params.seed.wrapping_add(u64::from(self.choice)),
            index: self.num_generated(),
            history,
        })
    }

    fn scored_targets(&self, start: usize, end: usize) -> Option<PromptLogprobs> {
        let top = self.request.sampling.prompt_logprobs?;
        self.scores.as_ref()?;
        let targets = self
            .request
            .prompt
            .get(start + 1..self.request.prompt.len().min(end + 1))?;
        (!targets.is_empty()).then(|| PromptLogprobs {
            targets: targets.to_vec(),
            top,
        })
    }
}

/// All tokens known, by parts, so that other parts may be borrowed at the same time.
fn known<'a>(request: &'a Request, own_tokens: &'a [u32]) -> &'a [u32] {
    if own_tokens.is_empty() {
        &request.prompt
    } else {
        own_tokens
    }
}
