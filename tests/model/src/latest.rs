//! Policy latest: a producer that never waits, and a reader that copies and looks again (`latest.h`).
//!
//! Descriptors and payloads are relaxed words here, not plain memory: the race is the point, and only what is believed
//! afterwards counts. A frame is its number in its descriptor and again in its payload; one credit, two slots, one
//! extent, so that every frame is written over the one before. What lets the extent be used again without a revoke,
//! the release of `returned`, cannot be seen this way: loom knows no load that sees a later store.

use std::sync::Arc;

use loom::sync::atomic::{fence, AtomicU64, Ordering};
use loom::thread;

use crate::verdict::{FALSE_ACCUSATION, MISCOUNT, TORN_READ};

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
}

const SLOTS: u64 = 2;

struct Shared {
    stamp: [AtomicU64; 2],
    desc: [AtomicU64; 2],
    payload: AtomicU64,
    oldest: AtomicU64,
    returned: AtomicU64,
    change: Option<Change>,
}

impl Shared {
    fn is(&self, change: Change) -> bool {
        self.change == Some(change)
    }

    fn order(&self, change: Change, order: Ordering) -> Ordering {
        if self.is(change) {
            Ordering::Relaxed
        } else {
            order
        }
    }

    /// `chx_producer_look`, and `chx_producer_revoke` if the frame before has not come back.
    fn make_way(&self, position: u64) {
        if position > 0 && self.returned.load(Ordering::Acquire) < position {
            self.oldest.store(position, Ordering::Relaxed);
            if !self.is(Change::RevokeFenceMissing) {
                fence(Ordering::Release);
            }
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
pub fn overwritten(change: Option<Change>, frames: u64, tries: u32) {
    let word = || AtomicU64::new(0);
    let shared = Arc::new(Shared {
        stamp: [word(), word()],
        desc: [word(), word()],
        payload: word(),
        oldest: word(),
        returned: word(),
        change,
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
