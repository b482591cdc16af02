//! Grammars into automata: off the engine's thread, within limits, each content once.

use std::fmt;
use std::sync::{Arc, mpsc};
use std::time::Duration;

use llguidance::api::{ParserLimits, TopLevelGrammar};
use llguidance::{Matcher, ParserFactory};
use parking_lot::Mutex;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, GuardResult};

use crate::{Grammar, GrammarError, Vocabulary, translate};

/// What a grammar may cost.
#[derive(Clone, Debug)]
pub struct Limits {
    /// Bytes of a grammar's text, parts included. Default 512 KiB.
    pub max_bytes: usize,
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
}

type Outcome = Result<Arc<Compiled>, GrammarError>;

impl Compiler {
    /// Prepares for grammars over `vocabulary`.
    pub fn new(vocabulary: Arc<Vocabulary>, limits: Limits) -> Self {
        let mut factory = ParserFactory::new_simple(vocabulary.env())
            .expect("the library's own slices of the vocabulary are sound");
        factory.quiet();
        *factory.limits_mut() = parser_limits();
        Self {
            vocabulary,
            factory: Arc::new(factory),
            cache: Cache::with_weighter(1024, limits.cache_bytes, Weight),
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

    /// The library cannot be interrupted while it builds, but all its loops are fuelled: a thread
    /// that is given up ends soon. Its stack holds the deepest grammar that the limits let through.
    fn compile_in_time(&self, grammar: &Grammar) -> Outcome {
        const STACK_BYTES: usize = 64 << 20;
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
            });
        if let Err(error) = spawned {
            return Err(GrammarError::TooComplex {
                message: format!("no thread to compile it: {error}"),
            });
        }
        match receiver.recv_timeout(self.limits.timeout) {
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

/// A grammar that is ready to make masks.
pub struct Compiled {
    vocabulary: Arc<Vocabulary>,
    /// Before the first token; each choice takes a copy of its own.
    start: Mutex<Matcher>,
}

impl Compiled {
    fn new(
        factory: &ParserFactory,
        vocabulary: Arc<Vocabulary>,
        top: TopLevelGrammar,
    ) -> Result<Self, GrammarError> {
        let parser = factory.create_parser(top).map_err(translate::error)?;
        let mut start = Matcher::new(Ok(parser));
        // The first mask fills the caches that all copies share, and shows a grammar without text.
        start.compute_mask_or_eos().map_err(translate::error)?;
        Ok(Self {
            vocabulary,
            start: Mutex::new(start),
        })
    }

    /// The tokens that it was compiled for.
    pub fn vocabulary(&self) -> &Arc<Vocabulary> {
        &self.vocabulary
    }

    /// Whether an answer may begin with this token.
    pub fn can_start_with(&self, token: u32) -> bool {
        let mut start = self.start.lock();
        start
            .compute_mask_or_eos()
            .is_ok_and(|mask| mask.is_allowed(token))
    }

    pub(crate) fn start(&self) -> Matcher {
        self.start.lock().deep_clone()
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
        ..ParserLimits::default()
    }
}

#[derive(Clone)]
struct Weight;

impl Weighter<Grammar, Outcome> for Weight {
    fn weight(&self, grammar: &Grammar, outcome: &Outcome) -> u64 {
        // Measured on schemas of 1 to 100 KB: the automaton takes about forty times its text, on
        // top of tables that every grammar has.
        let text = grammar.num_bytes() as u64;
        match outcome {
            Ok(_) => (64 << 10) + 40 * text,
            Err(_) => 256 + text,
        }
    }
}
