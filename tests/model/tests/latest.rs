//! Policy latest: no torn frame is believed, none is miscounted; every mutant is caught and named.

use chronetix_model::latest::{overwritten, Change, Change::*};
use chronetix_model::verdict::{explore, TORN_READ};

const CAUGHT: &[(Change, &str)] = &[
    (StampRelaxed, TORN_READ),
    (PeekRelaxed, TORN_READ),
    (RevokeFenceMissing, TORN_READ),
    (RevokeLate, TORN_READ),
    (KeepFenceMissing, TORN_READ),
    (KeepLookMissing, TORN_READ),
];

#[test]
fn no_torn_frame_is_believed_and_all_are_counted() {
    for (frames, tries, preemptions) in [(2, 2, None), (3, 2, Some(3)), (3, 3, Some(2))] {
        let verdict = explore(preemptions, move || overwritten(None, frames, tries));
        println!("{frames} frames, {tries} tries: {} executions", verdict.executions);
        assert_eq!(verdict.harm, None);
    }
}

#[test]
fn each_change_is_caught_and_named() {
    for &(change, harm) in CAUGHT {
        let verdict = explore(None, move || overwritten(Some(change), 3, 2));
        println!("{change:?}: execution {}: {harm}", verdict.executions);
        assert_eq!(verdict.harm.as_deref(), Some(harm), "{change:?}");
    }
}
