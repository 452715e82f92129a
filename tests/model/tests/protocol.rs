//! The protocol does no harm, every mutant that matters does, and is known by its harm.

use chronetix_model::protocol::{Mutant, Mutant::*, Protocol};
use chronetix_model::scenario::{named, SCENARIOS};
use chronetix_model::verdict::*;

const CAUGHT: &[(&[Mutant], &str, &str)] = &[
    (&[CommitStampRelaxed], "a consumer sleeps for two frames", TORN_READ),
    (&[PeekStampRelaxed], "a consumer sleeps for two frames", TORN_READ),
    (&[CommitFenceMissing], "a consumer sleeps for two frames", LOST_WAKE_UP),
    (&[ArmFenceMissing], "a consumer sleeps for two frames", LOST_WAKE_UP),
    (&[ArmLookMissing], "a consumer sleeps for two frames", LOST_WAKE_UP),
    (&[CommitFenceMissing], "a consumer naps for two frames", LOST_WAKE_UP),
    (&[ArmFenceMissing], "a consumer naps for two frames", LOST_WAKE_UP),
    (&[NapLimitMissing], "a consumer naps, and one frame comes", LOST_WAKE_UP),
    (&[NapAgain], "a consumer naps, and one frame comes", LOST_WAKE_UP),
    (
        &[LookReturnedRelaxed],
        "frames come back out of order",
        FALSE_ACCUSATION,
    ),
    (&[ReturnCountRelaxed], "frames come back out of order", FALSE_ACCUSATION),
    (&[ReclaimStampRelaxed], "frames come back out of order", PAYLOAD_REUSE),
    (&[ReturnStampRelaxed], "frames come back out of order", PAYLOAD_REUSE),
    (
        &[ReturnCountAcqRel],
        "a producer sleeps for its one credit",
        LOST_WAKE_UP,
    ),
    (
        &[ReturnWakeAtAcquire],
        "a producer sleeps for its one credit",
        LOST_WAKE_UP,
    ),
    (
        &[WaitFenceMissing],
        "a producer sleeps for its one credit",
        LOST_WAKE_UP,
    ),
    (&[WaitLookMissing], "a producer sleeps for room", LOST_WAKE_UP),
    (
        &[ReturnNudgeMissing],
        "a frame comes back while the consumer sleeps",
        LOST_WAKE_UP,
    ),
    (
        &[ReturnWaitForAcquire],
        "a frame comes back while the consumer sleeps",
        LOST_WAKE_UP,
    ),
    (
        &[WaitArmsUnreadyOnly],
        "the consumer arms in passing, then sleeps holding",
        LOST_WAKE_UP,
    ),
    (
        &[WaitFenceMissing],
        "the consumer holds more than low and sleeps",
        LOST_WAKE_UP,
    ),
    (
        &[ArmFenceMissing],
        "the consumer holds more than low and sleeps",
        LOST_WAKE_UP,
    ),
    (
        &[StarvesMissing],
        "the consumer holds more than low and sleeps",
        LOST_WAKE_UP,
    ),
    (
        &[NudgeMissing],
        "the consumer holds more than low and sleeps",
        LOST_WAKE_UP,
    ),
    (&[SkipMarkMissing], "a held frame is skipped", LOST_WAKE_UP),
    (&[SkipRingsOwnOnly], "a held frame is skipped", LOST_WAKE_UP),
    (&[EndClosedRelaxed], "the stream ends", LOST_END),
    (&[EndLookMissing], "the stream ends", LOST_END),
    (&[CloseRingMissing], "the stream ends", LOST_WAKE_UP),
    (&[CloseRelaxed, CommitFenceMissing], "the stream ends", LOST_END),
    (&[DetachRingMissing], "the consumer detaches", LOST_WAKE_UP),
    (&[RunHeadRelaxed], "a consumer sleeps for a run", TORN_READ),
    (&[CommitFenceMissing], "a consumer sleeps for a run", LOST_WAKE_UP),
    (
        &[ForgetReadRelaxed],
        "memory is dropped while a frame of it comes back",
        PAYLOAD_REUSE,
    ),
    (
        &[DropLooksRelaxed],
        "memory is dropped while a frame of it comes back",
        PAYLOAD_REUSE,
    ),
    (
        &[DropLookMissing],
        "memory is dropped while a frame of it comes back",
        PAYLOAD_REUSE,
    ),
    (
        &[RelinkStirMissing],
        "the consumer dies after a stamp, the producer sleeps",
        LOST_WAKE_UP,
    ),
    (
        &[RelinkReclaimMissing],
        "the consumer dies after a stamp, the producer sleeps",
        LOST_WAKE_UP,
    ),
    (
        &[InheritCopyMissing],
        "the consumer dies after a stamp, the producer sleeps",
        LOST_WAKE_UP,
    ),
    (
        &[RelinkStirMissing],
        "the consumer dies holding, the producer sleeps",
        LOST_WAKE_UP,
    ),
    (
        &[RelinkBaseMissing],
        "the consumer dies between two frames, the producer goes on",
        FALSE_ACCUSATION,
    ),
    (
        &[RelinkRingMissing],
        "a successor sleeps before the producer knows it",
        LOST_WAKE_UP,
    ),
];

fn harmless(protocol: Protocol) {
    for scenario in SCENARIOS {
        let verdict = check(scenario, protocol);
        println!("{}: {} executions", scenario.name, verdict.executions);
        assert_eq!(verdict.harm, None, "{protocol:?}: {}", scenario.name);
    }
}

#[test]
fn the_protocol_does_no_harm() {
    harmless(Protocol(&[]));
}

#[test]
fn each_mutant_is_caught_and_named() {
    for &(mutants, name, harm) in CAUGHT {
        let verdict = check(named(name), Protocol(mutants));
        println!("{mutants:?}: execution {} of {name:?}: {harm}", verdict.executions);
        assert_eq!(verdict.harm.as_deref(), Some(harm), "{mutants:?}: {name}");
    }
}

#[test]
fn every_mutant_is_accounted_for() {
    for mutant in Mutant::ALL {
        let caught = CAUGHT.iter().any(|(mutants, ..)| mutants.contains(mutant));
        assert!(caught || SPARE.contains(mutant), "{mutant:?}");
    }
}

/// Orders that nothing depends on: a mark and `CREDIT.closed` announce nothing but themselves; nobody looks at a run's
/// other stamps before its first one, nor waits for what stands behind that. In a succession the kernel, which tells of
/// a death, and the messages by which memories are handed on order what was before them.
const SPARE: &[Mutant] = &[
    SkipMarkRelaxed,
    PeekSkipRelaxed,
    DetachRelaxed,
    DetachedRelaxed,
    RunTailRelaxed,
    RunRingsToHeadOnly,
    InheritStampRelaxed,
    InheritDescRelaxed,
    RelinkStampRelaxed,
];

#[test]
fn orders_that_death_and_messages_give_as_well_are_spare() {
    harmless(Protocol(&[InheritStampRelaxed, InheritDescRelaxed, RelinkStampRelaxed]));
}

#[test]
fn the_order_of_skip_marks_is_spare() {
    harmless(Protocol(&[SkipMarkRelaxed, PeekSkipRelaxed]));
}

#[test]
fn the_order_of_a_runs_other_stamps_is_spare() {
    harmless(Protocol(&[RunTailRelaxed]));
}

#[test]
fn ringing_for_a_runs_other_positions_is_spare() {
    harmless(Protocol(&[RunRingsToHeadOnly]));
}

#[test]
fn the_order_of_detaching_is_spare() {
    harmless(Protocol(&[DetachRelaxed, DetachedRelaxed]));
}

/// The fence of the last commit comes before it, and would do. Without that fence it is needed: see `CAUGHT`.
#[test]
fn the_release_of_the_end_is_spare_while_commits_end_with_a_fence() {
    harmless(Protocol(&[CloseRelaxed]));
}

#[test]
fn the_bell_at_the_end_makes_up_for_the_fence_of_the_last_commit() {
    let verdict = check(named("the stream ends"), Protocol(&[CommitFenceMissing]));
    assert_eq!(verdict.harm, None);
}
