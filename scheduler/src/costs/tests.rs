use super::*;

/// What is believed beforehand, of 1, 2, 4, 8 and 16 rows.
const TABLE: [DraftCost; 5] = [DraftCost {
    token: 100,
    pass: 50,
}; 5];

/// A machine on which a plain step of `n` rows takes `100 + 20 n` microseconds, each draft 40 and a pass
/// `10 + 5 n`.
fn step(num_rows: u32, num_drafts: u32, num_passes: u32) -> StepTime {
    let us = |us: u32| u64::from(us) * 1000;
    StepTime {
        num_rows,
        num_drafts,
        step_ns: us(100 + 20 * num_rows + 40 * num_drafts),
        num_passes,
        drafting_ns: us(num_passes * (10 + 5 * num_rows)),
    }
}

fn slowed(time: StepTime, factor: u64) -> StepTime {
    StepTime {
        step_ns: time.step_ns * factor,
        drafting_ns: time.drafting_ns * factor,
        ..time
    }
}

/// As a warm-up measures them.
fn measured(rows: &[u32]) -> Costs {
    let mut costs = Costs::new(TABLE.to_vec());
    for num_rows in rows {
        costs.note(&step(*num_rows, 0, 0));
        costs.note(&step(*num_rows, *num_rows, 1));
    }
    costs
}

fn check(costs: &Costs, num_rows: u32, token: u32, pass: u32) {
    check_within(50, costs, num_rows, [token, pass]);
}

/// To a `part`th.
fn check_within(part: u32, costs: &Costs, num_rows: u32, [token, pass]: [u32; 2]) {
    let cost = costs.of(num_rows).expect("there are costs");
    let near = |got: u32, want: u32| got.abs_diff(want) <= 2 + want / part;
    assert!(
        near(cost.token, token) && near(cost.pass, pass),
        "{num_rows} rows: {cost:?}, not {token} and {pass}"
    );
}

#[test]
fn nothing_measured_costs_what_the_table_says() {
    let mut costs = Costs::new(TABLE.to_vec());
    assert_eq!(costs.of(3), Some(TABLE[0]));
    assert!(!costs.probes(3, true) && !costs.probes(3, false));
    assert_eq!(Costs::new(Vec::new()).of(3), None);
    // Without a plain step nobody knows which part of it is the drafts'.
    costs.note(&step(4, 4, 1));
    assert_eq!(costs.of(4), Some(TABLE[0]));
    // Steps of whoever has a fixed depth.
    Costs::new(Vec::new()).note(&step(1, 1, 1));
}

#[test]
fn a_measured_step_costs_what_it_took() {
    let costs = measured(&[1, 2, 4, 8, 16]);
    check(&costs, 1, 40 * 1024 / 120, 15 * 1024 / 120);
    check(&costs, 4, 160 * 1024 / 180, 30 * 1024 / 180);
    check(&costs, 16, 640 * 1024 / 420, 90 * 1024 / 420);
    // More rows than there are points for.
    check(&costs, 40, 640 * 1024 / 420, 90 * 1024 / 420);
}

#[test]
fn what_was_not_measured_is_as_wrong_in_the_table_as_what_was() {
    let costs = measured(&[1, 2]);
    // 80 of 140 and 20 of 140, also where nobody looked.
    for num_rows in [2, 3, 4, 16] {
        check(&costs, num_rows, 80 * 1024 / 140, 20 * 1024 / 140);
    }
}

#[test]
fn smaller_steps_do_not_look_like_fast_ones() {
    let mut costs = measured(&[1, 2, 4, 8, 16]);
    let before = costs.of(16).expect("there are costs");
    // 9 to 16 rows share a point: plain steps of few, steps with drafts of many.
    for _ in 0..50 {
        costs.note(&step(9, 0, 0));
        costs.note(&step(16, 16, 1));
    }
    check(&costs, 16, before.token, before.pass);
}

#[test]
fn a_machine_that_is_slow_for_a_while_is_slow_at_everything() {
    let mut costs = measured(&[1]);
    let before = costs.of(1).expect("there are costs");
    for num_drafts in [1, 3, 1, 2].into_iter().cycle().take(200) {
        costs.note(&slowed(step(1, num_drafts, num_drafts), 3));
    }
    let after = costs.of(1).expect("there are costs");
    assert!(after.token.abs_diff(before.token) <= 20, "{after:?}");
}

#[test]
fn an_interrupt_is_not_believed() {
    let mut costs = measured(&[1]);
    for _ in 0..20 {
        costs.note(&step(1, 1, 1));
        costs.note(&step(1, 0, 0));
    }
    let before = costs.of(1).expect("there are costs");
    costs.note(&slowed(step(1, 0, 0), 1000));
    costs.note(&slowed(step(1, 1, 1), 1000));
    for _ in 0..WINDOW {
        costs.note(&step(1, 0, 0));
        costs.note(&step(1, 1, 1));
    }
    check_within(3, &costs, 1, [before.token, before.pass]);
}

/// The warm-up was wrong: probes of the plain step put it right.
#[test]
fn what_a_draft_costs_is_found_out() {
    for factor in [1, 4] {
        let mut costs = Costs::new(TABLE.to_vec());
        costs.note(&step(1, 0, 0));
        let mut wrong = step(1, 1, 1);
        wrong.step_ns = step(1, 0, 0).step_ns + 10_000 * factor * factor;
        costs.note(&wrong);
        let mut num_probes = 0;
        for _ in 0..3000 {
            let is_plain = costs.probes(1, true);
            num_probes += u32::from(is_plain);
            costs.note(&step(1, u32::from(!is_plain), 1));
        }
        check_within(3, &costs, 1, [40 * 1024 / 120, 15 * 1024 / 120]);
        assert!(num_probes <= 16, "{num_probes}");
    }
}

/// A step that follows one with drafts takes longer: it absorbs what came true. In the one step of a probe
/// that belongs to the others, and behind it the others have that of the probe.
#[test]
fn what_drafts_leave_behind_is_theirs() {
    let rest_ns = 30_000;
    for is_drafting in [true, false] {
        let mut costs = measured(&[1]);
        let mut last_drafts = 0;
        for _ in 0..6000 {
            let num_drafts = u32::from(costs.probes(1, is_drafting) != is_drafting);
            let mut time = step(1, num_drafts, 1);
            time.step_ns += rest_ns * u64::from(last_drafts);
            costs.note(&time);
            last_drafts = num_drafts;
        }
        check_within(10, &costs, 1, [70 * 1024 / 120, 15 * 1024 / 120]);
    }
    // And where it is decided to go on in the other way.
    for is_drafting in [true, false] {
        let mut costs = measured(&[1]);
        let mut last_drafts = 0;
        for at in 0..400 {
            let num_drafts = u32::from((at / 10 % 2 == 0) == is_drafting);
            let mut time = step(1, num_drafts, 1);
            time.step_ns += rest_ns * u64::from(last_drafts);
            costs.note(&time);
            last_drafts = num_drafts;
        }
        check_within(10, &costs, 1, [70 * 1024 / 120, 15 * 1024 / 120]);
    }
}

#[test]
fn probes_become_rare() {
    let mut costs = measured(&[1]);
    let due = |costs: &mut Costs, is_drafting, num_steps: usize| -> Vec<usize> {
        (0..num_steps)
            .filter(|_| costs.probes(1, is_drafting))
            .collect()
    };
    assert_eq!(due(&mut costs, false, 300), [15, 47, 111, 239]);
    let later = due(&mut costs, false, 100_000);
    assert!(later.len() <= 4 + 100_000 / 2048, "{}", later.len());
    // Nobody probes what is done anyway.
    for is_drafting in [true, false].into_iter().cycle().take(1000) {
        assert!(!costs.probes(2, is_drafting) && !costs.probes(1, is_drafting));
    }
}
