//! Policy latest: no torn frame is believed, none is miscounted; every mutant is caught and named, or shown to be spare.

use chronetix_model::latest::{described, fallen, given_back, overwritten, Change, Change::*, Changes};
use chronetix_model::verdict::{explore, FALSE_ACCUSATION, PAYLOAD_REUSE, TORN_READ};

type Situation = fn(Changes);

const CAUGHT: &[(Changes, Situation, &str)] = &[
    (&[StampRelaxed], few, TORN_READ),
    (&[PeekRelaxed], few, TORN_READ),
    (&[RevokeFenceMissing], few, TORN_READ),
    (&[RevokeLate], few, TORN_READ),
    (&[KeepFenceMissing], few, TORN_READ),
    (&[KeepLookMissing], few, TORN_READ),
    (&[KeepReturnedRelaxed], given_back, PAYLOAD_REUSE),
    (&[RevokeFenceMissing], described, FALSE_ACCUSATION),
    (&[MovedFenceMissing], described, FALSE_ACCUSATION),
    (&[MovedLookMissing], described, FALSE_ACCUSATION),
    (&[FallRelaxed, FallLookMissing], fallen, TORN_READ),
];

/// Going ahead only chooses where to look: the look itself orders. Either of the two would do.
const SPARE: &[Change] = &[FallRelaxed, FallLookMissing];

fn few(changes: Changes) {
    overwritten(changes, 3, 2);
}

#[test]
fn no_torn_frame_is_believed_and_all_are_counted() {
    for (frames, tries, preemptions) in [(2, 2, None), (3, 2, Some(3)), (3, 3, Some(2))] {
        let verdict = explore(preemptions, move || overwritten(&[], frames, tries));
        println!("{frames} frames, {tries} tries: {} executions", verdict.executions);
        assert_eq!(verdict.harm, None);
    }
}

#[test]
fn nobody_is_accused_and_nothing_is_used_too_early() {
    for situation in [given_back, described, fallen] {
        let verdict = explore(None, move || situation(&[]));
        println!("{} executions", verdict.executions);
        assert!(verdict.executions > 1);
        assert_eq!(verdict.harm, None);
    }
}

#[test]
fn each_change_is_caught_and_named() {
    for &(changes, situation, harm) in CAUGHT {
        let verdict = explore(None, move || situation(changes));
        println!("{changes:?}: execution {}: {harm}", verdict.executions);
        assert_eq!(verdict.harm.as_deref(), Some(harm), "{changes:?}");
    }
}

#[test]
fn each_of_the_two_looks_at_a_stamp_ahead_is_spare() {
    for changes in [&[FallRelaxed], &[FallLookMissing]] {
        assert_eq!(explore(None, move || fallen(changes)).harm, None, "{changes:?}");
    }
}

#[test]
fn every_change_is_accounted_for() {
    for change in Change::ALL {
        let caught = CAUGHT.iter().any(|(changes, ..)| changes.contains(change));
        assert!(caught || SPARE.contains(change), "{change:?}");
    }
}
