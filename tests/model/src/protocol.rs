//! The places of the protocol that order anything, and how each is broken on purpose.

use loom::sync::atomic::{fence, Ordering};

/// One change to the protocol.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// `chx_producer_commit` stores the stamp relaxed.
    CommitStampRelaxed,
    /// `chx_producer_commit` has no fence between stamp and `wait_for`.
    CommitFenceMissing,
    /// `chx_consumer_peek` loads the stamp relaxed.
    PeekStampRelaxed,
    /// `inlet_arm` has no fence after `wait_for`.
    ArmFenceMissing,
    /// `inlet_sleep` does not look again after it has armed.
    ArmLookMissing,
    /// `inlet_sleep` does not limit a nap.
    NapLimitMissing,
    /// `inlet_sleep` goes on napping when a nap is over, without a limit.
    NapAgain,
    /// `chx_producer_look` loads `returned` relaxed.
    LookReturnedRelaxed,
    /// `chx_producer_reclaim` loads a returned stamp relaxed.
    ReclaimStampRelaxed,
    /// `chx_consumer_return` stores the stamp relaxed.
    ReturnStampRelaxed,
    /// `chx_consumer_return` counts with acq_rel instead of seq_cst.
    ReturnCountAcqRel,
    /// `chx_consumer_return` counts relaxed.
    ReturnCountRelaxed,
    /// `chx_consumer_return` loads `wake_at` with acquire instead of seq_cst.
    ReturnWakeAtAcquire,
    /// `chx_consumer_return` does not ring for a sleeping consumer of its own.
    ReturnNudgeMissing,
    /// `chx_consumer_return` loads `wait_for` with acquire instead of seq_cst.
    ReturnWaitForAcquire,
    /// `waiting_sleep` has no fence after `wake_at`.
    WaitFenceMissing,
    /// `waiting_sleep` does not look again after it has armed.
    WaitLookMissing,
    /// `waiting_credits` arms only routes that are not ready at that moment.
    WaitArmsUnreadyOnly,
    /// `chx_producer_starves` is always false.
    StarvesMissing,
    /// `chx_consumer_nudge` does nothing.
    NudgeMissing,
    /// `chx_producer_skip` passes over a held slot without a mark.
    SkipMarkMissing,
    /// `chx_producer_commit` rings only for the frame's own position, not for those it skipped.
    SkipRingsOwnOnly,
    /// `chx_producer_close` stores `closed` relaxed.
    CloseRelaxed,
    /// `chx_consumer_end` loads `closed` relaxed.
    EndClosedRelaxed,
    /// `chx_consumer_end` believes `closed` without a last look.
    EndLookMissing,
    /// `chx_producer_close` does not ring.
    CloseRingMissing,
    /// `chx_consumer_close` does not ring.
    DetachRingMissing,
    /// `chx_producer_skip` stores the mark relaxed.
    SkipMarkRelaxed,
    /// `chx_consumer_peek` loads the mark relaxed.
    PeekSkipRelaxed,
    /// `chx_consumer_close` stores `closed` relaxed.
    DetachRelaxed,
    /// `chx_producer_detached` loads `closed` relaxed.
    DetachedRelaxed,
    /// `chx_producer_commit_run` stores the run's first stamp, which comes last, relaxed.
    RunHeadRelaxed,
    /// `chx_producer_commit_run` stores the other stamps relaxed.
    RunTailRelaxed,
    /// `chx_producer_commit_run` rings only for positions up to the run's first.
    RunRingsToHeadOnly,
    /// `chx_consumer_stamp` forgets which segment the frame lies in with a relaxed store.
    ForgetReadRelaxed,
    /// `chx_consumer_drop` looks at what is read with relaxed loads.
    DropLooksRelaxed,
    /// `chx_consumer_drop` does not look at what is read.
    DropLookMissing,
    /// `chx_inherit_stamps` loads the dead consumer's stamps relaxed.
    InheritStampRelaxed,
    /// `chx_inherit_stamps` does not store them in the successor's CREDIT.
    InheritCopyMissing,
    /// `chx_inherit_frames` and `chx_consumer_look_special` load the descriptors' stamps relaxed.
    InheritDescRelaxed,
    /// `chx_relink_reclaim` loads the successor's stamps relaxed.
    RelinkStampRelaxed,
    /// `chx_relink_reclaim` frees nothing.
    RelinkReclaimMissing,
    /// `chx_relink_reclaim` leaves `base` as it was.
    RelinkBaseMissing,
    /// `chx_producer_relink` does not ring the successor.
    RelinkRingMissing,
    /// `producer_relink` does not wake who sleeps in its own process.
    RelinkStirMissing,
}

impl Mutant {
    /// All of them.
    pub const ALL: &'static [Mutant] = &[
        Mutant::CommitStampRelaxed,
        Mutant::CommitFenceMissing,
        Mutant::PeekStampRelaxed,
        Mutant::ArmFenceMissing,
        Mutant::ArmLookMissing,
        Mutant::NapLimitMissing,
        Mutant::NapAgain,
        Mutant::LookReturnedRelaxed,
        Mutant::ReclaimStampRelaxed,
        Mutant::ReturnStampRelaxed,
        Mutant::ReturnCountAcqRel,
        Mutant::ReturnCountRelaxed,
        Mutant::ReturnWakeAtAcquire,
        Mutant::ReturnNudgeMissing,
        Mutant::ReturnWaitForAcquire,
        Mutant::WaitFenceMissing,
        Mutant::WaitLookMissing,
        Mutant::WaitArmsUnreadyOnly,
        Mutant::StarvesMissing,
        Mutant::NudgeMissing,
        Mutant::SkipMarkMissing,
        Mutant::SkipRingsOwnOnly,
        Mutant::CloseRelaxed,
        Mutant::EndClosedRelaxed,
        Mutant::EndLookMissing,
        Mutant::CloseRingMissing,
        Mutant::DetachRingMissing,
        Mutant::SkipMarkRelaxed,
        Mutant::PeekSkipRelaxed,
        Mutant::DetachRelaxed,
        Mutant::DetachedRelaxed,
        Mutant::RunHeadRelaxed,
        Mutant::RunTailRelaxed,
        Mutant::RunRingsToHeadOnly,
        Mutant::ForgetReadRelaxed,
        Mutant::DropLooksRelaxed,
        Mutant::DropLookMissing,
        Mutant::InheritStampRelaxed,
        Mutant::InheritCopyMissing,
        Mutant::InheritDescRelaxed,
        Mutant::RelinkStampRelaxed,
        Mutant::RelinkReclaimMissing,
        Mutant::RelinkBaseMissing,
        Mutant::RelinkRingMissing,
        Mutant::RelinkStirMissing,
    ];
}

/// The protocol with these changes; with none it is the protocol itself.
#[derive(Clone, Copy, Debug)]
pub struct Protocol(pub &'static [Mutant]);

impl Protocol {
    /// Is it changed here?
    pub fn is(self, mutant: Mutant) -> bool {
        self.0.contains(&mutant)
    }

    /// `order`, or relaxed when it is changed here.
    pub fn order(self, mutant: Mutant, order: Ordering) -> Ordering {
        if self.is(mutant) {
            Ordering::Relaxed
        } else {
            order
        }
    }

    /// A seq_cst fence, unless one of these changes takes it away.
    pub fn fence(self, missing: &[Mutant]) {
        if !missing.iter().any(|&mutant| self.is(mutant)) {
            fence(Ordering::SeqCst);
        }
    }
}
