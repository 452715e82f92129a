//! The consuming end: `credit.h`, and its sleep from `shm/native/inlet.c`. One function for each of theirs.

use std::sync::Arc;

use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::memory::Route;
use crate::protocol::Mutant;
use crate::verdict::{LOST_END, TORN_READ};

/// `struct chx_taken`
pub struct Frame {
    stamp: u64,
    extent: u64,
    seq: u64,
}

/// `enum chx_status`, as far as it matters here
enum Status {
    Ok,
    Empty,
    Ended,
}

enum Scan {
    Found(Frame),
    Nothing,
    Ended,
}

/// `struct chx_consumer`
pub struct Consumer {
    route: Arc<Route>,
    position: u64,
    taken: u64,
}

/// `chx_consumer_return`, from any thread, after a last look at the payload
pub fn give_back(route: &Route, frame: Frame) {
    frame.read(route);
    let protocol = route.protocol;
    if let Some(read) = route.reads.get(route.slot(frame.stamp - 1)) {
        read.store(0, protocol.order(Mutant::ForgetReadRelaxed, Release));
    }
    let order = protocol.order(Mutant::ReturnStampRelaxed, Release);
    route.stamp[route.slot(frame.stamp - 1)].store(frame.stamp, order);
    let order = protocol.order(Mutant::ReturnCountRelaxed, AcqRel);
    let returned = route.returned.fetch_add(1, order) + 1;
    // In C the count and the two loads are seq_cst, of which loom knows only fences: one between the count and the
    // loads says the same here. A load that is not seq_cst may come before it.
    let wake_at = || route.wake_at.load(Acquire);
    let wait_for = || route.wait_for.load(Acquire);
    let wake_early = protocol.is(Mutant::ReturnWakeAtAcquire).then(wake_at);
    let wait_early = protocol.is(Mutant::ReturnWaitForAcquire).then(wait_for);
    protocol.fence(&[Mutant::ReturnCountAcqRel, Mutant::ReturnCountRelaxed]);
    let wake_at = wake_early.unwrap_or_else(wake_at);
    let nudges = || !protocol.is(Mutant::ReturnNudgeMissing);
    let asleep = || nudges() && wait_early.unwrap_or_else(wait_for) != 0;
    if wake_at == returned || (wake_at > returned && asleep()) {
        route.producer_bell.ring();
    }
}

/// `chx_consumer_drop`: take the memory away unless a frame of it is held, whatever its producer says. What is written
/// stands for the unmapping.
pub fn drop_memory(route: &Route, extent: u64) {
    let order = route.protocol.order(Mutant::DropLooksRelaxed, Acquire);
    let held = |read: &AtomicU64| read.load(order) == extent + 1;
    if route.protocol.is(Mutant::DropLookMissing) || !route.reads.iter().any(held) {
        route.arena[extent as usize].write(u64::MAX);
    }
}

impl Frame {
    /// The extent it lies in.
    pub fn extent(&self) -> u64 {
        self.extent
    }

    /// Look at the payload: it is the frame's number.
    pub fn read(&self, route: &Route) {
        let payload = route.arena[self.extent as usize].read();
        assert!(payload == self.seq, "{TORN_READ}");
    }
}

impl Consumer {
    pub fn new(route: &Arc<Route>) -> Self {
        Consumer {
            route: route.clone(),
            position: 0,
            taken: 0,
        }
    }

    /// `chx_consumer_peek`
    fn peek(&mut self) -> Status {
        let protocol = self.route.protocol;
        loop {
            let slot = self.route.slot(self.position);
            let order = protocol.order(Mutant::PeekStampRelaxed, Acquire);
            if self.route.desc[slot].stamp.load(order) == self.position + 1 {
                return Status::Ok;
            }
            let order = protocol.order(Mutant::PeekSkipRelaxed, Acquire);
            if self.route.skip[slot].load(order) != self.position + 1 {
                return Status::Empty;
            }
            self.position += 1;
        }
    }

    /// `chx_consumer_end`
    fn end(&mut self) -> Status {
        let protocol = self.route.protocol;
        let order = protocol.order(Mutant::EndClosedRelaxed, Acquire);
        let closed = self.route.closed.load(order);
        if closed == 0 {
            return Status::Empty;
        }
        if !protocol.is(Mutant::EndLookMissing) {
            if let Status::Ok = self.peek() {
                return Status::Ok;
            }
        }
        assert!(closed - 1 == self.position, "{LOST_END}");
        Status::Ended
    }

    /// `chx_consumer_take`, `inlet_scan`
    fn take(&mut self) -> Scan {
        let mut status = self.peek();
        if let Status::Empty = status {
            status = self.end();
        }
        match status {
            Status::Empty => return Scan::Nothing,
            Status::Ended => return Scan::Ended,
            Status::Ok => {}
        }
        let extent = self.route.desc[self.route.slot(self.position)].extent.read();
        self.position += 1;
        self.taken += 1;
        let frame = Frame {
            stamp: self.position,
            extent,
            seq: self.taken - 1,
        };
        if let Some(read) = self.route.reads.get(self.route.slot(frame.stamp - 1)) {
            read.store(extent + 1, Relaxed);
        }
        frame.read(&self.route);
        Scan::Found(frame)
    }

    /// `inlet_arm`
    fn arm(&self) {
        self.route.wait_for.store(self.position + 1, Relaxed);
        self.route.protocol.fence(&[Mutant::ArmFenceMissing]);
    }

    /// `inlet_disarm`
    fn disarm(&self) {
        self.route.wait_for.store(0, Relaxed);
    }

    /// `chx_consumer_nudge`
    fn nudge(&self) {
        if self.route.protocol.is(Mutant::NudgeMissing) {
            return;
        }
        let returned = self.route.returned.load(Relaxed);
        if self.route.wake_at.load(Relaxed) > returned && self.taken - returned < self.route.credits {
            self.route.producer_bell.ring();
        }
    }

    /// `inlet_sleep` when the scan after arming finds a frame of another route: armed, and not asleep.
    pub fn arm_in_passing(&mut self) {
        self.arm();
        self.disarm();
    }

    /// `inlet_sleep`
    fn sleep(&mut self) -> Scan {
        self.arm();
        let mut scan = Scan::Nothing;
        if !self.route.protocol.is(Mutant::ArmLookMissing) {
            scan = self.take();
        }
        if let Scan::Nothing = scan {
            self.nudge();
            self.route.consumer_bell.sleep();
            self.disarm();
            return self.take();
        }
        self.disarm();
        scan
    }

    /// `inlet_take` without a time limit, until there is a frame (None: the stream has ended).
    pub fn next_frame(&mut self) -> Option<Frame> {
        let mut scan = self.take();
        loop {
            match scan {
                Scan::Found(frame) => return Some(frame),
                Scan::Ended => return None,
                Scan::Nothing => scan = self.sleep(),
            }
        }
    }

    /// `chx_consumer_close`
    pub fn detach(&mut self) {
        let protocol = self.route.protocol;
        let order = protocol.order(Mutant::DetachRelaxed, Release);
        self.route.detached.store(1, order);
        if !protocol.is(Mutant::DetachRingMissing) {
            self.route.producer_bell.ring();
        }
    }
}
