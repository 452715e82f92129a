//! What lies in shared memory: the words of `abi.h` that the protocol depends on, a payload word for each extent, and
//! the doorbells.

use std::panic::{catch_unwind, AssertUnwindSafe};

use loom::cell::UnsafeCell;
use loom::sync::atomic::AtomicU64;
use loom::sync::{Condvar, Mutex};

use crate::protocol::Protocol;

/// Plain memory (a descriptor's fields, a payload). Unordered access by two threads, one of them writing, is an error.
pub struct Plain {
    cell: UnsafeCell<u64>,
    harm: &'static str,
}

// SAFETY: loom checks every access against the order of all others and panics before it could race.
unsafe impl Sync for Plain {}
unsafe impl Send for Plain {}

impl Plain {
    pub fn new(harm: &'static str) -> Self {
        Plain {
            cell: UnsafeCell::new(0),
            harm,
        }
    }

    /// Its value.
    pub fn read(&self) -> u64 {
        // SAFETY: as above.
        self.checked(|| self.cell.with(|value| unsafe { *value }))
    }

    /// Changes its value.
    pub fn write(&self, to: u64) {
        // SAFETY: as above.
        self.checked(|| self.cell.with_mut(|value| unsafe { *value = to }));
    }

    fn checked<T>(&self, access: impl FnOnce() -> T) -> T {
        catch_unwind(AssertUnwindSafe(access)).unwrap_or_else(|_| panic!("{}", self.harm))
    }
}

/// A doorbell and the line to it: a counter that ringing raises and a sleeper waits for. A ring without a byte is an edge, which
/// the epoll keeps until it is named; a full line is one that was rung.
#[derive(Default)]
pub struct Bell {
    rings: Mutex<u64>,
    rung: Condvar,
}

impl Bell {
    /// `chx_bell_ring`, `chx_producer_ring`, `chx_line_ring`
    pub fn ring(&self) {
        *self.rings.lock().unwrap() += 1;
        self.rung.notify_one();
    }

    /// `chx_bell_sleep` without a time limit, then `chx_bell_clear`
    pub fn sleep(&self) {
        let mut rings = self.rings.lock().unwrap();
        while *rings == 0 {
            rings = self.rung.wait(rings).unwrap();
        }
        *rings = 0;
    }
}

/// `struct chx_desc`; one field stands for all but the stamp: which extent holds the payload.
pub struct Desc {
    pub stamp: AtomicU64,
    pub extent: Plain,
}

/// `struct chx_credit`
pub struct Credit {
    pub detached: AtomicU64,
    pub wait_for: AtomicU64,
    pub returned: AtomicU64,
    pub stamp: Vec<AtomicU64>,
}

impl Credit {
    fn new(slots: u64) -> Self {
        Credit {
            detached: AtomicU64::new(0),
            wait_for: AtomicU64::new(0),
            returned: AtomicU64::new(0),
            stamp: words(slots),
        }
    }
}

/// Everything the two ends of a route share: `struct chx_ring`, an arena, the doorbells, and a `Credit` for the consumer
/// and one for its successor.
pub struct Route {
    pub protocol: Protocol,
    pub credits: u64,
    pub mask: u64,
    pub desc: Vec<Desc>,
    pub skip: Vec<AtomicU64>,
    pub closed: AtomicU64,
    pub wake_at: AtomicU64,
    pub credit: [Credit; 2],
    pub arena: Vec<Plain>,
    /// The consumer's own, shared by its threads: by slot, the extent + 1 of the frame held in it. Empty where nothing
    /// is ever dropped: it would only be more to try.
    pub reads: Vec<AtomicU64>,
    pub producer_bell: Bell,
    pub consumer_bell: Bell,
}

fn words(count: u64) -> Vec<AtomicU64> {
    (0..count).map(|_| AtomicU64::new(0)).collect()
}

impl Route {
    /// An empty route; `slots` is a power of two.
    pub fn new(protocol: Protocol, slots: u64, credits: u64, extents: usize) -> Self {
        let desc = || Desc {
            stamp: AtomicU64::new(0),
            extent: Plain::new(crate::verdict::TORN_READ),
        };
        Route {
            protocol,
            credits,
            mask: slots - 1,
            desc: (0..slots).map(|_| desc()).collect(),
            skip: words(slots),
            closed: AtomicU64::new(0),
            wake_at: AtomicU64::new(0),
            credit: [Credit::new(slots), Credit::new(slots)],
            arena: (0..extents)
                .map(|_| Plain::new(crate::verdict::PAYLOAD_REUSE))
                .collect(),
            reads: Vec::new(),
            producer_bell: Bell::default(),
            consumer_bell: Bell::default(),
        }
    }

    /// The same, where memory may be dropped.
    pub fn dropping(mut self) -> Self {
        self.reads = words(self.mask + 1);
        self
    }

    /// The slot of a position.
    pub fn slot(&self, position: u64) -> usize {
        (position & self.mask) as usize
    }
}
