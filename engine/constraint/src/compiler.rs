//! Grammars into automata: off the engine's thread, within limits, each content once.

use std::fmt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory, TokenParser};
use parking_lot::{Condvar, Mutex};
use quick_cache::Weighter;
use quick_cache::sync::{Cache, GuardResult};
use toktrie::InferenceCapabilities;

use crate::{Grammar, GrammarError, Vocabulary, translate};

/// What a grammar may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a grammar's text, parts included. Default 512 KiB.
    pub max_bytes: usize,
    /// Bytes of one regular expression or one Lark grammar of a client: some take quadratic time.
    /// Default 16 KiB.
    pub max_pattern_bytes: usize,
    /// Brackets that may be open at once in a schema, a regular expression or a Lark grammar. The
    /// library descends once for each. Default 100.
    pub max_depth: usize,
    /// Time until a grammar is refused. Default 800 ms, so that the refusal comes within a second.
    pub timeout: Duration,
    /// Estimated bytes of compiled grammars that are kept. Default 256 MiB.
    pub cache_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            max_bytes: 512 << 10,
            max_pattern_bytes: 16 << 10,
            max_depth: 100,
            timeout: Duration::from_millis(800),
            cache_bytes: 256 << 20,
        }
    }
}

/// Compiles grammars over one vocabulary and remembers them, the refused ones too. Shared by all
/// requests.
pub struct Compiler {
    vocabulary: Arc<Vocabulary>,
    factory: Arc<ParserFactory>,
    limits: Limits,
    cache: Cache<Grammar, Outcome, Weight>,
    num_compiling: Arc<Places>,
}

/// Parts of the vocabulary that are allowed or not as a whole, so that most masks look at few tokens
/// one by one: white space; text inside of JSON strings, that between tags apart, because where a
/// closing tag may stand only a token with a bracket can make it. Each lies within those below it.
const SLICES: [&str; 5] = [
    r"[\x20\x0A\x0D\x09]+",
    r#"[^<>"\\\x00-\x1F\x7F]{1,10}"#,
    r#"[^<>"\\\x00-\x1F\x7F]{1,30}"#,
    r#"[^<>"\\\x00-\x1F\x7F]+"#,
    r#"[^"\\\x00-\x1F\x7F]+"#,
];

/// Grammars that are compiled at once.
const MAX_COMPILING: usize = 4;
/// An automaton that has grown beyond starts over with the next text.
const MAX_GROWN_BYTES: usize = 8 << 20;

type Outcome = Result<Arc<Compiled>, GrammarError>;

impl Compiler {
    /// Prepares for grammars over `vocabulary`.
    pub fn new(vocabulary: Arc<Vocabulary>, limits: Limits) -> Self {
        let capabilities = InferenceCapabilities::default();
        let slices = SLICES.map(str::to_owned);
        let mut factory = ParserFactory::new(vocabulary.env(), capabilities, &slices)
            .expect("the slices are sound");
        factory.quiet();
        *factory.limits_mut() = parser_limits();
        Self {
            vocabulary,
            factory: Arc::new(factory),
            cache: Cache::with_weighter(1024, limits.cache_bytes, Weight),
            num_compiling: Arc::default(),
            limits,
        }
    }

    /// The tokens that grammars are compiled for.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// Compiles a grammar or says what is wrong with it, within the time limit. Blocks; the same
    /// grammar from several threads is compiled once.
    pub fn compile(&self, grammar: &Grammar) -> Result<Arc<Compiled>, GrammarError> {
        translate::check_size(grammar, &self.limits)?;
        match self
            .cache
            .get_value_or_guard(grammar, Some(self.limits.timeout))
        {
            GuardResult::Value(outcome) => outcome,
            GuardResult::Guard(guard) => {
                let outcome = self.compile_in_time(grammar);
                // A slow machine is not the grammar's fault; a dropped guard lets the next try.
                if !matches!(outcome, Err(GrammarError::TooComplex { .. })) {
                    // The entry may have been evicted meanwhile.
                    let _ = guard.insert(outcome.clone());
                }
                outcome
            }
            GuardResult::Timeout => Err(self.too_slow()),
        }
    }

    /// The library cannot be interrupted while it builds, so it does that on a thread that can be
    /// given up, of which there are few. Its stack holds the deepest grammar that the limits let
    /// through.
    fn compile_in_time(&self, grammar: &Grammar) -> Outcome {
        const STACK_BYTES: usize = 64 << 20;
        let deadline = Instant::now() + self.limits.timeout;
        let Some(place) = Place::take(&self.num_compiling, deadline) else {
            return Err(GrammarError::TooComplex {
                message: "too many others are being compiled".into(),
            });
        };
        let (sender, receiver) = mpsc::sync_channel(1);
        let (grammar, factory) = (grammar.clone(), Arc::clone(&self.factory));
        let vocabulary = Arc::clone(&self.vocabulary);
        let limits = self.limits.clone();
        let spawned = std::thread::Builder::new()
            .name("grammar".into())
            .stack_size(STACK_BYTES)
            .spawn(move || {
                let outcome = translate::to_library(&grammar, &limits)
                    .and_then(|top| Compiled::new(&factory, vocabulary, top));
                // Whoever asked may have given up.
                let _ = sender.send(outcome.map(Arc::new));
                drop(place);
            });
        if let Err(error) = spawned {
            return Err(GrammarError::TooComplex {
                message: format!("no thread to compile it: {error}"),
            });
        }
        match receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(outcome) => outcome,
            Err(mpsc::RecvTimeoutError::Timeout) => Err(self.too_slow()),
            Err(mpsc::RecvTimeoutError::Disconnected) => Err(GrammarError::TooComplex {
                message: "compiling it went wrong".into(),
            }),
        }
    }

    fn too_slow(&self) -> GrammarError {
        GrammarError::TooComplex {
            message: format!("it takes more than {} ms", self.limits.timeout.as_millis()),
        }
    }
}

impl fmt::Debug for Compiler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Compiler")
            .field("vocabulary", &self.vocabulary)
            .field("limits", &self.limits)
            .finish_non_exhaustive()
    }
}

/// How many threads compile, those included that were given up.
#[derive(Default)]
struct Places {
    num_taken: Mutex<usize>,
    freed: Condvar,
}

/// One of them, until dropped.
struct Place(Arc<Places>);

impl Place {
    fn take(places: &Arc<Places>, deadline: Instant) -> Option<Self> {
        let mut num_taken = places.num_taken.lock();
        while *num_taken >= MAX_COMPILING {
            if places
                .freed
                .wait_until(&mut num_taken, deadline)
                .timed_out()
            {
                return None;
            }
        }
        *num_taken += 1;
        Some(Self(Arc::clone(places)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        *self.0.num_taken.lock() -= 1;
        self.0.freed.notify_one();
    }
}

/// A grammar that is ready to make masks.
pub struct Compiled {
    vocabulary: Arc<Vocabulary>,
    /// As compiled, never run.
    pristine: TokenParser,
    /// Its automaton grows with every text; all texts share it.
    grown: Mutex<TokenParser>,
}

impl Compiled {
    fn new(
        factory: &ParserFactory,
        vocabulary: Arc<Vocabulary>,
        top: TopLevelGrammar,
    ) -> Result<Self, GrammarError> {
        let pristine = factory.create_parser(top).map_err(translate::error)?;
        let compiled = Self {
            vocabulary,
            grown: Mutex::new(pristine.deep_clone()),
            pristine,
        };
        // A grammar without any text shows here; and every text begins with this mask.
        let first = compiled.matcher().compute_mask_or_eos();
        first.map_err(translate::error)?;
        Ok(compiled)
    }

    /// The tokens that it was compiled for.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// Whether an answer may begin with this token.
    pub fn can_start_with(&self, token: u32) -> bool {
        let mask = self.matcher().compute_mask_or_eos();
        mask.is_ok_and(|mask| mask.is_allowed(token))
    }

    /// A new text. It shares the automaton that others have grown, unless that has broken or grown
    /// too large.
    pub(crate) fn matcher(&self) -> Matcher {
        let mut grown = self.grown.lock();
        // The library's lock is poisoned if it panicked, and then its statistics panic too.
        let stats = catch_unwind(AssertUnwindSafe(|| grown.parser.lexer_stats()));
        if !stats.is_ok_and(|stats| !stats.error && stats.num_bytes <= MAX_GROWN_BYTES) {
            *grown = self.pristine.deep_clone();
        }
        Matcher::new(Ok(grown.clone()))
    }
}

impl fmt::Debug for Compiled {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Compiled")
    }
}

fn parser_limits() -> ParserLimits {
    ParserLimits {
        verbose_errors: false,
        // Both would let a line of text compile for seconds.
        precompute_large_lexemes: false,
        initial_lexer_fuel: 300_000,
        // A state takes about a kilobyte.
        max_lexer_states: 50_000,
        ..ParserLimits::default()
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Grammar, Outcome> for Weight {
    fn weight(&self, grammar: &Grammar, outcome: &Outcome) -> u64 {
        let text = grammar.num_bytes() as u64;
        match outcome {
            // Automata of ordinary schemas stay around a megabyte; the rules behind them take some
            // forty times their text.
            Ok(_) => (2 << 20) + 40 * text,
            Err(_) => 256 + text,
        }
    }
}
