//! Many seeds, each a small world. See the crate's map.
//!
//! `NEMOSERVE_SIM_SEEDS=N` runs N seeds instead of 10,000; `NEMOSERVE_SIM_SEED=S` runs seed S alone.

use std::panic::catch_unwind;

use simulation::{Report, Rng, Scenario, run, run_prepared};

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(
        text.parse()
            .unwrap_or_else(|error| panic!("{name}={text}: {error}")),
    )
}

/// Runs one seed twice and says how to run it again if it fails.
fn run_seed(seed: u64) -> Report {
    let outcome = catch_unwind(|| {
        let report = run(&Scenario::draw(seed));
        // The same plans again, whatever was prepared while steps ran.
        let again = run_prepared(&Scenario::draw(seed), Rng::new(seed));
        assert!(report.plans == again.plans, "same seed, other plans");
        assert_eq!(report.stats, again.stats, "same seed, other numbers");
        report
    });
    outcome.unwrap_or_else(|_| {
        panic!(
            "seed {seed} failed; reproduce with: \
             NEMOSERVE_SIM_SEED={seed} cargo test -p simulation --test simulation"
        )
    })
}

/// How many seeds saw something, and whether that is enough to say that it was tested.
struct Sighting {
    what: &'static str,
    num_seeds: u64,
    /// How many seeds it takes to see it once.
    least_one_in: u64,
    seen: fn(&Report) -> bool,
}

#[test]
fn seeds() {
    if let Some(seed) = number("NEMOSERVE_SIM_SEED") {
        println!("{:#?}", Scenario::draw(seed));
        run_seed(seed);
        return;
    }
    let sighting = |what, seen| Sighting {
        what,
        num_seeds: 0,
        least_one_in: 20,
        seen,
    };
    let rarity = |what, seen| Sighting {
        least_one_in: 200,
        ..sighting(what, seen)
    };
    let mut sightings = [
        sighting("a preemption", |report| report.stats.num_preemptions > 0),
        sighting("an ending while waiting", |report| {
            report.num_endings[0] > 0
        }),
        sighting("an ending while preempted", |report| {
            report.num_endings[1] > 0
        }),
        sighting("an ending between steps", |report| {
            report.num_endings[2] > 0
        }),
        sighting("an ending in flight", |report| report.num_endings[3] > 0),
        sighting("a block copied for a second writer", |report| {
            report.num_block_copies > 0
        }),
        sighting("exhaustion", |report| report.num_exhausted_steps > 0),
        sighting("a prefix hit", |report| report.num_cached_tokens > 0),
        sighting("a state copied", |report| report.num_slot_copies > 0),
        sighting("a state saved on the way", |report| report.num_saves > 0),
        sighting("a state moved to the host", |report| {
            report.num_swaps[0] > 0
        }),
        sighting("a state brought back from the host", |report| {
            report.num_swaps[1] > 0
        }),
        sighting("a draft that came true", |report| {
            report.stats.num_accepted_by_position[0] > 0
        }),
        sighting("three drafts that came true", |report| {
            report.stats.num_accepted_by_position[2] > 0
        }),
        sighting("a draft in vain", |report| {
            report.stats.num_accepted_by_position.iter().sum::<u64>()
                < report.stats.num_draft_tokens
        }),
        rarity("somebody yields to another tenant", |report| {
            report.stats.num_tenant_preemptions > 0
        }),
        rarity("a hit with pending tokens", |report| {
            report.num_pending_hits > 0
        }),
    ];
    let num_seeds = number("NEMOSERVE_SIM_SEEDS").unwrap_or(10_000);
    for seed in 0..num_seeds {
        let report = run_seed(seed);
        for sighting in &mut sightings {
            sighting.num_seeds += u64::from((sighting.seen)(&report));
        }
    }
    for sighting in &sightings {
        println!(
            "{}: {} of {num_seeds} seeds",
            sighting.what, sighting.num_seeds
        );
    }
    for Sighting {
        what,
        num_seeds: num_seen,
        least_one_in,
        ..
    } in sightings
    {
        // A share of a few seeds says nothing.
        let enough = num_seeds < 1000 || num_seen * least_one_in >= num_seeds;
        assert!(enough, "{what}: only {num_seen} of {num_seeds} seeds");
    }
}
