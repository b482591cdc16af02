//! Which instruction set the CPU kernels use: found once, overridable.

use std::cell::Cell;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU8, Ordering};

/// An instruction set that the CPU kernels are compiled for, in rising order of preference.
///
/// Results are the same bits for every batch and chunking within one of these, not across them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
#[repr(u8)]
pub enum Isa {
    /// Plain Rust, vectorised by the compiler for the baseline of the target.
    Portable = 1,
    /// AVX2 with FMA and F16C.
    Avx2 = 2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512 = 3,
    /// AVX-512 with BF16 dot products, used where [`Arithmetic::Bf16`](crate::Arithmetic) meets
    /// bf16 weights, keys and values.
    Avx512Bf16 = 4,
}

impl Isa {
    /// Those that this machine can run, worst first.
    pub fn available() -> Vec<Self> {
        let best = Self::best();
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16]
            .into_iter()
            .filter(|&isa| isa <= best)
            .collect()
    }

    /// The best that this machine can run.
    pub fn best() -> Self {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(detect)
    }

    /// Name for people and flags: `portable`, `avx2`, `avx512`, `avx512bf16`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Portable => "portable",
            Self::Avx2 => "avx2",
            Self::Avx512 => "avx512",
            Self::Avx512Bf16 => "avx512bf16",
        }
    }

    /// The inverse of [`name`](Self::name).
    pub fn from_name(name: &str) -> Option<Self> {
        [Self::Portable, Self::Avx2, Self::Avx512, Self::Avx512Bf16]
            .into_iter()
            .find(|isa| isa.name() == name)
    }
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Isa {
    // The order is one of inclusion: every feature of a weaker set is asked for by the stronger.
    let avx2 = is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("f16c");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    if avx512 && is_x86_feature_detected!("avx512bf16") {
        Isa::Avx512Bf16
    } else if avx512 {
        Isa::Avx512
    } else if avx2 {
        Isa::Avx2
    } else {
        Isa::Portable
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Isa {
    Isa::Portable
}

/// 0 while nothing was chosen.
static CHOSEN: AtomicU8 = AtomicU8::new(0);

thread_local! {
    static CHOSEN_HERE: Cell<Option<Isa>> = const { Cell::new(None) };
}

/// The instruction set that kernels called from this thread use.
pub fn isa() -> Isa {
    CHOSEN_HERE
        .get()
        .unwrap_or_else(|| match CHOSEN.load(Ordering::Relaxed) {
            1 => Isa::Portable,
            2 => Isa::Avx2,
            3 => Isa::Avx512,
            4 => Isa::Avx512Bf16,
            _ => Isa::best(),
        })
}

/// Chooses the instruction set for the process. Returns whether the machine can run it; if not,
/// nothing changes.
pub fn set_isa(isa: Isa) -> bool {
    let can_run = isa <= Isa::best();
    if can_run {
        CHOSEN.store(isa as u8, Ordering::Relaxed);
    }
    can_run
}

/// Runs `f` with kernels called from this thread on the given instruction set.
///
/// # Panics
/// If the machine cannot run it.
pub fn with_isa<R>(isa: Isa, f: impl FnOnce() -> R) -> R {
    assert!(isa <= Isa::best(), "this machine cannot run {isa:?}");
    let _restore = Restore(CHOSEN_HERE.replace(Some(isa)));
    f()
}

/// Puts the thread's choice back, also after a panic.
struct Restore(Option<Isa>);

impl Drop for Restore {
    fn drop(&mut self) {
        CHOSEN_HERE.set(self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_choice_ends_with_its_scope() {
        let before = isa();
        with_isa(Isa::Portable, || assert_eq!(isa(), Isa::Portable));
        assert_eq!(isa(), before);
        let panicked =
            std::panic::catch_unwind(|| with_isa(Isa::Portable, || panic!("as tests do")));
        assert!(panicked.is_err());
        assert_eq!(isa(), before);
    }

    #[test]
    fn names_go_both_ways() {
        for isa in Isa::available() {
            assert_eq!(Isa::from_name(isa.name()), Some(isa));
            assert!(isa <= Isa::best());
        }
        assert_eq!(Isa::from_name("AVX"), None);
    }
}
