//! When to spin before sleeping, and when to propose a nap. The measures are those of the other ends
//! (shm/include/chronetix/spin.h and pace.h), so that ends in any two languages keep the same pace.

use rustix::time::{clock_gettime, ClockId};

const CAP: u64 = 64_000;
const FLOOR: u64 = 500;
const LONG: u64 = 90_000;
const LONG_TRIES: u32 = 4;
const NAP: u64 = 250_000;
pub(crate) const NAP_MAX: u64 = 4_000_000;
pub(crate) const NAP_FRAMES: u64 = 4;
const SURE: u32 = 4;

fn read(clock: ClockId) -> u64 {
    let now = clock_gettime(clock);
    now.tv_sec as u64 * 1_000_000_000 + now.tv_nsec as u64
}

/// CLOCK_MONOTONIC, in ns.
pub(crate) fn now() -> u64 {
    read(ClockId::Monotonic)
}

/// The same at a tick's accuracy, for less.
pub(crate) fn coarse() -> u64 {
    read(ClockId::MonotonicCoarse)
}

/// Unix time, in ns.
pub(crate) fn unix() -> u64 {
    read(ClockId::Realtime)
}

/// What a wake-up costs in this process: a moving average.
pub(crate) struct Wake(u64);

impl Wake {
    pub(crate) fn new() -> Self {
        Self(std::thread::available_parallelism().map_or(0, |count| if count.get() < 2 { 0 } else { 8_000 }))
    }

    pub(crate) fn took(&mut self, ns: u64) {
        if self.0 > 0 {
            self.0 = self.0 - self.0 / 8 + ns.min(CAP) / 8 + 1;
        }
    }

    /// The longest spin that is worth it; 0: none is.
    pub(crate) fn cap(&self) -> u64 {
        (2 * self.0).min(CAP)
    }
}

/// How long to look before sleeping: less when looking has not paid lately.
pub(crate) struct Spin {
    pub(crate) ns: u64,
    evidence: u32,
    doubt: u32,
    restored: bool,
    tries: u32,
}

impl Spin {
    pub(crate) fn new() -> Self {
        Self { ns: CAP, evidence: 0, doubt: 0, restored: false, tries: 0 }
    }

    fn distrust(&mut self) {
        self.ns = 0;
        self.tries = 0;
        self.doubt = (2 * self.doubt + 1).min(511);
    }

    pub(crate) fn found(&mut self, cap: u64, took: u64) {
        self.restored = false;
        if took > cap {
            self.tries += 1;
            if self.tries >= LONG_TRIES {
                self.distrust();
            }
            return;
        }
        *self = Self { ns: (2 * self.ns).max(FLOOR).min(cap), ..Self::new() };
    }

    pub(crate) fn missed(&mut self, cap: u64) {
        if self.restored || self.ns > cap {
            let ns = self.ns;
            self.distrust();
            self.ns = if ns > cap { 0 } else { ns / 2 };
            self.restored = false;
        } else {
            self.ns = if self.ns / 2 < FLOOR { 0 } else { self.ns / 2 };
        }
    }

    /// A sleep has ended; what it waited for happened `after` ns from its start.
    pub(crate) fn slept(&mut self, cap: u64, after: u64, answered: bool) {
        if cap == 0 || after >= if answered { LONG } else { cap } {
            return;
        }
        self.evidence += 1;
        if self.evidence > self.doubt {
            self.evidence = 0;
            self.ns = if after < cap { cap } else { LONG };
            self.restored = true;
        }
    }
}

/// Whether frames follow each other faster than rings do.
#[derive(Default)]
pub(crate) struct Pace {
    rung_at: u64,
    ring_ns: u64,
    score: u32,
    rapid: bool,
}

impl Pace {
    pub(crate) fn nap(&self, routes: usize) -> u64 {
        if self.rapid {
            NAP * (1 + routes as u64 / 8)
        } else {
            0
        }
    }

    pub(crate) fn rang(&mut self, began: u64, ended: u64) {
        (self.rung_at, self.ring_ns) = (ended, ended.saturating_sub(began));
    }

    pub(crate) fn waited(&mut self) {
        self.rung_at = 0;
    }

    /// A frame is committed; whether the proposal has changed.
    pub(crate) fn commit(&mut self, now: u64) -> bool {
        if self.rung_at == 0 {
            return false;
        }
        let after = now.saturating_sub(self.rung_at);
        self.rung_at = 0;
        if after >= self.ring_ns {
            self.score = self.score.saturating_sub(2);
        } else if self.score < SURE {
            self.score += 1;
        }
        let rapid = self.score == SURE || (self.score > 0 && self.rapid);
        std::mem::replace(&mut self.rapid, rapid) != rapid
    }
}
