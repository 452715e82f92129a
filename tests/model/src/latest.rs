//! Policy latest: a producer that never waits, and a reader that copies and looks again (`latest.h`).
//!
//! Descriptors and payloads are relaxed words here, not plain memory: the race is the point, and only what is believed
//! afterwards counts. A frame is its number in its descriptor and again in its payload; one credit, two slots, one
//! extent, so that every frame is written over the one before ([`overwritten`]).
//!
//! Three smaller situations show what that one cannot. Where nothing is revoked, payload and descriptor are plain memory:
//! what lets an extent be used again is the release of `returned` ([`given_back`]), and what a reader that has fallen
//! behind sees after it went ahead is ordered by the look at the stamp there ([`fallen`]). And a descriptor of two words
//! is overwritten while it is looked at: what does not fit together is no lie of the producer's ([`described`]).

use std::sync::Arc;

use loom::sync::atomic::{fence, AtomicU64, Ordering};
use loom::thread;

use crate::memory::Plain;
use crate::verdict::{FALSE_ACCUSATION, MISCOUNT, PAYLOAD_REUSE, TORN_READ};

/// One change to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `chx_producer_commit` stores the stamp relaxed.
    StampRelaxed,
    /// `chx_latest_peek` loads the stamp relaxed.
    PeekRelaxed,
    /// `chx_producer_revoke` has no fence.
    RevokeFenceMissing,
    /// `chx_producer_revoke` comes after the extent was written again.
    RevokeLate,
    /// `chx_latest_keep` has no fence.
    KeepFenceMissing,
    /// `chx_latest_keep` does not look again.
    KeepLookMissing,
    /// `chx_latest_keep` stores `returned` relaxed.
    KeepReturnedRelaxed,
    /// `chx_latest_moved` has no fence.
    MovedFenceMissing,
    /// `chx_latest_look` believes a descriptor without asking `chx_latest_moved`.
    MovedLookMissing,
    /// `chx_latest_fall` loads the stamp ahead relaxed.
    FallRelaxed,
    /// `chx_latest_peek` does not look at the stamp again to which it has fallen.
    FallLookMissing,
}

impl Change {
    /// All of them.
    pub const ALL: &'static [Change] = &[
        Change::StampRelaxed,
        Change::PeekRelaxed,
        Change::RevokeFenceMissing,
        Change::RevokeLate,
        Change::KeepFenceMissing,
        Change::KeepLookMissing,
        Change::KeepReturnedRelaxed,
        Change::MovedFenceMissing,
        Change::MovedLookMissing,
        Change::FallRelaxed,
        Change::FallLookMissing,
    ];
}

/// The policy with these changes; with none it is the policy itself.
pub type Changes = &'static [Change];

fn order(changes: Changes, change: Change, order: Ordering) -> Ordering {
    if changes.contains(&change) {
        Ordering::Relaxed
    } else {
        order
    }
}

/// `chx_producer_revoke`: `oldest`, and the fence behind it.
fn revoke(oldest: &AtomicU64, upto: u64, changes: Changes) {
    oldest.store(upto, Ordering::Relaxed);
    if !changes.contains(&Change::RevokeFenceMissing) {
        fence(Ordering::Release);
    }
}

const SLOTS: u64 = 2;

struct Shared {
    stamp: [AtomicU64; 2],
    desc: [AtomicU64; 2],
    payload: AtomicU64,
    oldest: AtomicU64,
    returned: AtomicU64,
    changes: Changes,
}

impl Shared {
    fn is(&self, change: Change) -> bool {
        self.changes.contains(&change)
    }

    fn order(&self, change: Change, intended: Ordering) -> Ordering {
        order(self.changes, change, intended)
    }

    /// `chx_producer_look`, and `chx_producer_revoke` if the frame before has not come back.
    fn make_way(&self, position: u64) {
        if position > 0 && self.returned.load(Ordering::Acquire) < position {
            revoke(&self.oldest, position, self.changes);
        }
    }

    /// Claim, copy, commit.
    fn send(&self, position: u64) {
        let slot = (position % SLOTS) as usize;
        if !self.is(Change::RevokeLate) {
            self.make_way(position);
        }
        self.payload.store(position + 1, Ordering::Relaxed);
        self.desc[slot].store(position + 1, Ordering::Relaxed);
        if self.is(Change::RevokeLate) {
            self.make_way(position);
        }
        let release = self.order(Change::StampRelaxed, Ordering::Release);
        self.stamp[slot].store(position + 1, release);
    }

    /// One attempt to take: `position` moves on, and what was taken or lost is counted.
    fn take(&self, position: &mut u64, taken: &mut u64, lost: &mut u64) {
        let oldest = self.oldest.load(Ordering::Relaxed);
        if oldest > *position {
            *lost += oldest - *position;
            *position = oldest;
        }
        let slot = (*position % SLOTS) as usize;
        let stamp = self.stamp[slot].load(self.order(Change::PeekRelaxed, Ordering::Acquire));
        if stamp != *position + 1 {
            let lapped = stamp > *position + 1;
            let told = self.oldest.load(Ordering::Relaxed) > *position;
            assert!(!lapped || told, "{FALSE_ACCUSATION}");
            return;
        }
        let described = self.desc[slot].load(Ordering::Relaxed);
        let copied = self.payload.load(Ordering::Relaxed);
        if !self.is(Change::KeepFenceMissing) {
            fence(Ordering::Acquire);
        }
        let moved = !self.is(Change::KeepLookMissing) && self.oldest.load(Ordering::Relaxed) > *position;
        *position += 1;
        if moved {
            *lost += 1;
        } else {
            assert!(described == *position && copied == *position, "{TORN_READ}");
            *taken += 1;
        }
        self.returned.store(*position, Ordering::Release);
    }
}

/// A producer sends `frames`, a reader tries `tries` times meanwhile and takes the rest afterwards.
pub fn overwritten(changes: Changes, frames: u64, tries: u32) {
    let word = || AtomicU64::new(0);
    let shared = Arc::new(Shared {
        stamp: [word(), word()],
        desc: [word(), word()],
        payload: word(),
        oldest: word(),
        returned: word(),
        changes,
    });
    let writer = {
        let shared = shared.clone();
        thread::spawn(move || (0..frames).for_each(|position| shared.send(position)))
    };
    let (mut position, mut taken, mut lost) = (0, 0, 0);
    for _ in 0..tries {
        shared.take(&mut position, &mut taken, &mut lost);
    }
    writer.join().unwrap();
    while position < frames {
        shared.take(&mut position, &mut taken, &mut lost);
    }
    assert_eq!(taken + lost, frames, "{MISCOUNT}");
}

/// Nothing is revoked: a reader copies a frame and gives its position back, and only then its extent is written again.
pub fn given_back(changes: Changes) {
    let shared = Arc::new((AtomicU64::new(0), Plain::new(PAYLOAD_REUSE)));
    let (returned, payload) = &*shared;
    payload.write(1);
    let reader = {
        let shared = shared.clone();
        thread::spawn(move || {
            let (returned, payload) = &*shared;
            assert!(payload.read() == 1, "{TORN_READ}");
            fence(Ordering::Acquire);
            returned.store(1, order(changes, Change::KeepReturnedRelaxed, Ordering::Release));
        })
    };
    if returned.load(Ordering::Acquire) == 1 {
        payload.write(2);
    }
    reader.join().unwrap();
}

/// A descriptor of two words, whose frame is revoked and whose slot is written again while a reader looks at it.
pub fn described(changes: Changes) {
    let word = || AtomicU64::new(0);
    let shared = Arc::new(([word(), word()], word(), word()));
    let (desc, stamp, _) = &*shared;
    desc.iter().for_each(|half| half.store(1, Ordering::Relaxed));
    stamp.store(1, Ordering::Relaxed);
    let writer = {
        let shared = shared.clone();
        thread::spawn(move || {
            let (desc, stamp, oldest) = &*shared;
            revoke(oldest, 1, changes);
            desc.iter().for_each(|half| half.store(1 + SLOTS, Ordering::Relaxed));
            stamp.store(1 + SLOTS, Ordering::Release);
        })
    };
    let (desc, stamp, oldest) = &*shared;
    if stamp.load(Ordering::Acquire) == 1 {
        let halves = [desc[0].load(Ordering::Relaxed), desc[1].load(Ordering::Relaxed)];
        if !changes.contains(&Change::MovedFenceMissing) {
            fence(Ordering::Acquire);
        }
        let moved = !changes.contains(&Change::MovedLookMissing) && oldest.load(Ordering::Relaxed) > 0;
        assert!(moved || halves == [1, 1], "{FALSE_ACCUSATION}");
    }
    writer.join().unwrap();
}

/// A reader that was too slow once goes ahead of the oldest frame, to one whose stamp it has seen there. Nothing is
/// revoked after that, so what it reads is plain memory.
pub fn fallen(changes: Changes) {
    let word = || AtomicU64::new(0);
    let shared = Arc::new(([word(), word(), word()], Plain::new(TORN_READ), word()));
    let writer = {
        let shared = shared.clone();
        thread::spawn(move || {
            let (stamps, desc, oldest) = &*shared;
            stamps[1].store(2, Ordering::Release);
            revoke(oldest, 1, changes);
            desc.write(3);
            stamps[2].store(3, Ordering::Release);
        })
    };
    let (stamps, desc, oldest) = &*shared;
    let mut position = oldest.load(Ordering::Relaxed) as usize;
    let ahead = order(changes, Change::FallRelaxed, Ordering::Acquire);
    if position == 1 && stamps[2].load(ahead) == 3 {
        position = 2;
    }
    let again = !changes.contains(&Change::FallLookMissing);
    if position == 2 && (!again || stamps[2].load(Ordering::Acquire) == 3) {
        assert!(desc.read() == 3, "{TORN_READ}");
    }
    writer.join().unwrap();
}
