//! Thoughts, triggers and ends: what may come when.

mod common;

use std::sync::Arc;

use common::{compiler, vocabulary};
use constraint::{
    Grammar, GrammarGuide, Guide, GuideState, Piece, ThinkingGuide, TokenMask, Vocabulary,
};
use proptest::prelude::*;

/// The demo model's control tokens.
const END: u32 = 11;
const CLOSE: u32 = 13;
const CALL: u32 = 14;

fn grammar(lark: &str, trigger: Option<u32>) -> GrammarGuide {
    let composed = Grammar::Composed {
        root: lark.into(),
        parts: Vec::new(),
    };
    GrammarGuide {
        grammar: compiler().compile(&composed).expect("the grammar is sound"),
        trigger,
    }
}

fn digits() -> GrammarGuide {
    grammar("start: /[0-9]+/", None)
}

fn thinking(budget: Option<u32>) -> ThinkingGuide {
    ThinkingGuide {
        close: vec![CLOSE],
        budget,
        call: Some(CALL),
        newline: Some(text("\n")),
    }
}

fn guide(thinking: Option<ThinkingGuide>, grammar: Option<GrammarGuide>) -> Guide {
    Guide {
        thinking,
        grammar,
        ..Guide::new(vocabulary())
    }
}

/// The token of exactly this text.
fn text(wanted: &str) -> u32 {
    let vocabulary = vocabulary();
    let mut ids = 0..vocabulary.size();
    let found = ids.find(|id| vocabulary.text(*id) == wanted.as_bytes());
    found.expect("the demo model has this token")
}

struct Talk(GuideState);

impl Talk {
    fn new(guide: Guide) -> Self {
        Self(GuideState::new(&Arc::new(guide)))
    }

    fn mask(&mut self) -> Option<TokenMask> {
        self.0.mask().expect("the guide holds")
    }

    #[track_caller]
    fn forced(&mut self, token: u32) -> &mut Self {
        let mask = self.mask().expect("one token is left");
        assert_eq!(mask.iter().collect::<Vec<_>>(), [token]);
        self.say(token)
    }

    #[track_caller]
    fn free(&mut self) -> &mut Self {
        assert_eq!(self.mask(), None);
        self
    }

    #[track_caller]
    fn may(&mut self, token: u32) -> &mut Self {
        assert!(self.allows(token), "{token} is not allowed");
        self
    }

    #[track_caller]
    fn must_not(&mut self, token: u32) -> &mut Self {
        assert!(!self.allows(token), "{token} is allowed");
        self
    }

    fn allows(&mut self, token: u32) -> bool {
        self.mask().is_none_or(|mask| mask.allows(token))
    }

    #[track_caller]
    fn say(&mut self, token: u32) -> &mut Self {
        assert!(self.allows(token), "{token} is not allowed");
        self.0.advance(token).expect("it was allowed");
        self
    }
}

#[test]
fn a_budget_forces_the_marker() {
    for budget in [0, 1, 5] {
        let mut talk = Talk::new(guide(Some(thinking(Some(budget))), None));
        for _ in 0..budget {
            talk.free().say(text("a"));
        }
        // Closed by force, the answer is never empty; the marker's newline does not count.
        talk.forced(CLOSE)
            .must_not(END)
            .say(text("\n"))
            .must_not(END);
        talk.say(text("b")).free().say(END);
    }
}

#[test]
fn the_model_closes_by_itself() {
    let mut talk = Talk::new(guide(Some(thinking(Some(5))), None));
    talk.say(text("a")).say(CLOSE).free().say(END).free();
    let mut talk = Talk::new(guide(Some(thinking(Some(5))), None));
    talk.say(CALL).free();
    let mut talk = Talk::new(guide(Some(thinking(None)), None));
    talk.say(END).free();
}

#[test]
fn a_grammar_waits_for_the_marker() {
    let mut talk = Talk::new(guide(Some(thinking(Some(3))), Some(digits())));
    // An end here would be a stop without an answer; a call is no digits.
    talk.must_not(END).must_not(CALL).say(text("a"));
    talk.say(CLOSE)
        .must_not(text("a"))
        .must_not(END)
        .may(text("1"));
    // One newline between, not two, and none later.
    talk.say(text("\n")).must_not(text("\n"));
    talk.say(text("1"))
        .must_not(text("\n"))
        .may(END)
        .say(text("2"))
        .say(END);
    // With `ignore_eos` nothing follows but ends.
    talk.forced(END).forced(END);

    let mut talk = Talk::new(guide(Some(thinking(Some(0))), Some(digits())));
    talk.forced(CLOSE).say(text("7")).may(END);
}

#[test]
fn a_call_ends_a_thought_where_the_grammar_begins_with_one() {
    let calls = grammar("start: <tool_call> \"x\" </tool_call>", None);
    let mut talk = Talk::new(guide(Some(thinking(None)), Some(calls)));
    talk.must_not(END).say(text("a")).say(CALL);
    talk.forced(text("x")).forced(CALL + 1).forced(END);
}

#[test]
fn a_trigger_starts_the_grammar() {
    let calls = || grammar("start: <tool_call> \"x\" </tool_call>", Some(CALL));
    let mut talk = Talk::new(guide(None, Some(calls())));
    talk.free().say(text("a")).free().say(CALL);
    talk.forced(text("x"))
        .forced(CALL + 1)
        .forced(END)
        .forced(END);
    // Without the trigger there is nothing to obey.
    let mut talk = Talk::new(guide(None, Some(calls())));
    talk.say(text("a")).say(END).free();
    // In a thought too, and an end may come before.
    let mut talk = Talk::new(guide(Some(thinking(None)), Some(calls())));
    talk.free().say(text("a")).say(CALL).forced(text("x"));
    let mut talk = Talk::new(guide(Some(thinking(Some(0))), Some(calls())));
    talk.forced(CLOSE)
        .must_not(END)
        .say(text("a"))
        .may(END)
        .say(CALL)
        .forced(text("x"));
}

#[test]
fn bans_hold_until_the_grammar_leaves_nothing_else() {
    let mut banned = guide(Some(thinking(None)), None);
    banned.banned = vec![CALL, text("a")];
    let mut talk = Talk::new(banned);
    talk.must_not(CALL)
        .must_not(text("a"))
        .say(CLOSE)
        .must_not(CALL)
        .may(END);

    let mut banned = guide(None, Some(grammar("start: \"ab\" | \"c\"", None)));
    banned.banned = vec![text("a"), text("ab"), text("b")];
    let mut talk = Talk::new(banned.clone());
    talk.must_not(text("a")).forced(text("c")).forced(END);
    banned.banned.push(text("c"));
    let mut talk = Talk::new(banned);
    talk.may(text("c"))
        .may(text("a"))
        .say(text("a"))
        .forced(text("b"));
}

#[test]
fn text_never_matches_control_tokens() {
    let anything = grammar("start: /(?s:.*)/", None);
    let mut talk = Talk::new(guide(None, Some(anything)));
    for control in [0, 1, 2, 10, 12, CLOSE, CALL] {
        talk.must_not(control);
    }
    talk.may(END).may(text("<"));
}

/// A vocabulary without control tokens for thoughts: bytes, and some longer pieces.
fn plain() -> Arc<Vocabulary> {
    let longer = [
        "</",
        "think",
        "</think",
        ">\n",
        ">\n\n",
        "k>x",
        "think>",
        "</think>!",
        "ab",
    ];
    let piece = |id: u32| match id {
        0..=255 => Piece::Text(vec![id as u8]),
        256 => Piece::Control("<end>".into()),
        _ => Piece::Text(longer[id as usize - 257].as_bytes().to_vec()),
    };
    Arc::new(Vocabulary::new(257 + longer.len() as u32, piece, &[256]))
}

/// `</think>` in three tokens of [`plain`].
fn plain_thinking(budget: Option<u32>) -> ThinkingGuide {
    ThinkingGuide {
        close: vec![257, 258, u32::from(b'>')],
        budget,
        call: None,
        newline: Some(u32::from(b'\n')),
    }
}

#[test]
fn a_marker_of_several_tokens() {
    let guide = |budget| Guide {
        thinking: Some(plain_thinking(budget)),
        ..Guide::new(plain())
    };
    // Forced one by one, going on from what the model has said of it.
    let mut talk = Talk::new(guide(Some(1)));
    talk.free()
        .say(97)
        .forced(257)
        .forced(258)
        .forced(62)
        .must_not(256);
    let mut talk = Talk::new(guide(Some(1)));
    talk.say(257).say(258).say(62).free();
    let mut talk = Talk::new(guide(Some(1)));
    talk.say(257).say(97).forced(257);
    // Spelled with other tokens, or with text after it.
    for spelling in [
        &[60, 47, 263, 97][..],
        &[259, 62],
        &[257, 258, 260],
        &[97, 264],
    ] {
        let mut talk = Talk::new(guide(Some(4)));
        for token in spelling {
            talk.free().say(*token);
        }
        talk.free().say(97).say(97).say(97).say(97).free();
    }
}

#[test]
fn a_marker_ends_where_its_token_ends_if_a_grammar_follows() {
    let compiler = constraint::Compiler::new(plain(), constraint::Limits::default());
    let grammar = compiler
        .compile(&Grammar::Regex("[0-9]+".into()))
        .expect("it is sound");
    let guide = Guide {
        thinking: Some(plain_thinking(None)),
        grammar: Some(GrammarGuide {
            grammar,
            trigger: None,
        }),
        ..Guide::new(plain())
    };
    let mut talk = Talk::new(guide);
    talk.must_not(256).must_not(264).may(260).may(263);
    talk.say(257)
        .may(263)
        .say(258)
        .must_not(260)
        .must_not(261)
        .may(62);
    talk.say(62).may(49).must_not(97).say(10).say(49).may(256);
}

/// A talk as masks and tokens, one pick after the other.
fn spoken(guide: &Arc<Guide>, picks: &[u32]) -> (Vec<Option<TokenMask>>, Vec<u32>) {
    let mut state = GuideState::new(guide);
    let (mut masks, mut tokens) = (Vec::new(), Vec::new());
    for pick in picks {
        let mask = state.mask().expect("the guide holds");
        let size = guide.vocabulary.size();
        let mut allowed = mask.clone().unwrap_or_else(|| TokenMask::all(size));
        // Ends, markers and calls come as often as all the rest together.
        let special: Vec<u32> = [END, CLOSE, CALL, CALL + 1]
            .into_iter()
            .filter(|token| allowed.allows(*token))
            .collect();
        if pick % 2 == 0 && !special.is_empty() {
            allowed = TokenMask::only(&special, size);
        }
        let token = allowed
            .iter()
            .nth(*pick as usize / 2 % allowed.num_allowed() as usize);
        let token = token.expect("counted above");
        state.advance(token).expect("it was allowed");
        masks.push(mask);
        tokens.push(token);
    }
    (masks, tokens)
}

fn check_drafts(guide: Guide, picks: &[u32], num_drafts: usize) {
    let guide = Arc::new(guide);
    let (masks, tokens) = spoken(&guide, picks);
    let mut state = GuideState::new(&guide);
    for at in 0..tokens.len() {
        let end = (at + num_drafts).min(tokens.len() - 1);
        let ahead = state.masks(&tokens[at..end]).expect("the guide holds");
        assert_eq!(ahead, masks[at..=end], "at {at} of {tokens:?}");
        // A draft that may not come ends the masks, and leaves nothing behind either.
        if let Some(mask) = &masks[at]
            && let Some(wrong) = (0..guide.vocabulary.size()).find(|token| !mask.allows(*token))
        {
            let ahead = state.masks(&[wrong, tokens[at]]).expect("the guide holds");
            assert_eq!(ahead, masks[at..=at]);
        }
        state.advance(tokens[at]).expect("it was allowed");
    }
}

proptest! {
    /// Masks behind drafts are those that come if the drafts do, and nothing of it stays.
    #[test]
    fn drafts_change_no_mask(
        budget in prop::option::of(0_u32..6),
        num_drafts in 1_usize..6,
        picks in prop::collection::vec(any::<u32>(), 20),
    ) {
        let calls = |trigger| grammar("start: <tool_call> /[a-c]+/ </tool_call>", trigger);
        check_drafts(guide(Some(thinking(budget)), Some(digits())), &picks, num_drafts);
        check_drafts(guide(Some(thinking(budget)), Some(calls(Some(CALL)))), &picks, num_drafts);
        check_drafts(guide(Some(thinking(budget)), Some(calls(None))), &picks, num_drafts);
        check_drafts(guide(None, Some(calls(None))), &picks, num_drafts);
        let spelled = Guide { thinking: Some(plain_thinking(budget)), ..Guide::new(plain()) };
        check_drafts(spelled, &picks, num_drafts);
    }

    /// However a model behaves that obeys masks, budgets hold and grammars parse.
    #[test]
    fn every_path_ends_well(budget in 0_u32..6, picks in prop::collection::vec(any::<u32>(), 60)) {
        let mut talk = Talk::new(guide(Some(thinking(Some(budget))), Some(digits())));
        let (mut said, mut thought, mut closed) = (Vec::new(), 0, false);
        for pick in picks {
            let mask = talk.mask().expect("a grammar waits or rules");
            let allowed: Vec<u32> = mask.iter().collect();
            let token = allowed[pick as usize % allowed.len()];
            talk.say(token);
            if token == END {
                break;
            }
            match (closed, token == CLOSE) {
                (false, true) => closed = true,
                (false, false) => thought += 1,
                (true, _) => said.extend_from_slice(vocabulary().text(token)),
            }
        }
        prop_assert!(thought <= budget);
        let said = String::from_utf8(said).expect("digits");
        let said = said.strip_prefix('\n').unwrap_or(&said);
        prop_assert!(said.bytes().all(|byte| byte.is_ascii_digit()), "{said:?}");
    }
}
