//! The consuming end: `credit.h`, and its sleep from `shm/native/inlet.c`. One function for each of theirs.

use std::sync::Arc;

use loom::sync::atomic::AtomicU64;
use loom::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};

use crate::memory::{Credit, Route};
use crate::protocol::Mutant;
use crate::verdict::{LOST_END, LOST_FRAME, TORN_READ};

/// `struct chx_taken`
pub struct Frame {
    credit: usize,
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
    credit: usize,
    position: u64,
    passed: u64,
    taken: u64,
    again: Vec<u64>,
}

/// `chx_consumer_stamp`: what a consumer has done of a return that dies before it has counted
pub fn stamp(route: &Route, frame: &Frame) {
    if let Some(read) = route.reads.get(route.slot(frame.stamp - 1)) {
        read.store(0, route.protocol.order(Mutant::ForgetReadRelaxed, Release));
    }
    let order = route.protocol.order(Mutant::ReturnStampRelaxed, Release);
    route.credit[frame.credit].stamp[route.slot(frame.stamp - 1)].store(frame.stamp, order);
}

/// `chx_consumer_return`, from any thread, after a last look at the payload
pub fn give_back(route: &Route, frame: Frame) {
    frame.read(route);
    let protocol = route.protocol;
    stamp(route, &frame);
    let credit = &route.credit[frame.credit];
    let order = protocol.order(Mutant::ReturnCountRelaxed, AcqRel);
    let returned = credit.returned.fetch_add(1, order) + 1;
    // In C the count and the two loads are seq_cst, of which loom knows only fences: one between the count and the
    // loads says the same here. A load that is not seq_cst may come before it.
    let wake_at = || route.wake_at.load(Acquire);
    let wait_for = || credit.wait_for.load(Acquire);
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

    /// Its number.
    pub fn number(&self) -> u64 {
        self.seq
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
            credit: 0,
            position: 0,
            passed: 0,
            taken: 0,
            again: Vec::new(),
        }
    }

    fn credit(&self) -> &Credit {
        &self.route.credit[self.credit]
    }

    /// `chx_consumer_inherit`: the successor of the consumer of the first CREDIT, which is dead
    pub fn inherit(route: &Arc<Route>) -> Self {
        let protocol = route.protocol;
        let mut heir = Consumer::new(route);
        heir.credit = 1;
        let order = protocol.order(Mutant::InheritStampRelaxed, Acquire);
        let dead: Vec<u64> = route.credit[0].stamp.iter().map(|stamp| stamp.load(order)).collect();
        for (own, &stamp) in heir.credit().stamp.iter().zip(&dead) {
            if !protocol.is(Mutant::InheritCopyMissing) {
                own.store(stamp, Relaxed);
            }
        }
        let last = dead.iter().copied().max().unwrap_or(0);
        let order = protocol.order(Mutant::InheritDescRelaxed, Acquire);
        let sent = route.desc.iter().map(|desc| desc.stamp.load(order));
        let unreturned = sent
            .zip(&dead)
            .filter(|&(sent, &returned)| sent != returned && sent <= last);
        heir.again = unreturned.map(|(sent, _)| sent).collect();
        heir.again.sort_unstable_by(|a, b| b.cmp(a));
        heir.position = last;
        heir
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
            self.passed += 1;
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
        if let Some(stamp) = self.again.pop() {
            let order = self.route.protocol.order(Mutant::InheritDescRelaxed, Acquire);
            let there = self.route.desc[self.route.slot(stamp - 1)].stamp.load(order);
            assert!(there == stamp, "{LOST_FRAME}");
            return Scan::Found(self.found(stamp));
        }
        let mut status = self.peek();
        if let Status::Empty = status {
            status = self.end();
        }
        match status {
            Status::Empty => return Scan::Nothing,
            Status::Ended => return Scan::Ended,
            Status::Ok => {}
        }
        self.position += 1;
        Scan::Found(self.found(self.position))
    }

    /// A frame that was looked at.
    fn found(&mut self, stamp: u64) -> Frame {
        self.taken += 1;
        let extent = self.route.desc[self.route.slot(stamp - 1)].extent.read();
        let frame = Frame {
            credit: self.credit,
            stamp,
            extent,
            seq: stamp - 1 - self.passed,
        };
        if let Some(read) = self.route.reads.get(self.route.slot(frame.stamp - 1)) {
            read.store(extent + 1, Relaxed);
        }
        frame.read(&self.route);
        frame
    }

    /// `inlet_arm`
    fn arm(&self) {
        self.arm_at(1);
    }

    /// `inlet_arm`: for the frame that is so many further on.
    fn arm_at(&self, ahead: u64) {
        self.credit().wait_for.store(self.position + ahead, Relaxed);
        self.route.protocol.fence(&[Mutant::ArmFenceMissing]);
    }

    /// `inlet_disarm`
    fn disarm(&self) {
        self.credit().wait_for.store(0, Relaxed);
    }

    /// `chx_consumer_nudge`
    fn nudge(&self) {
        if self.route.protocol.is(Mutant::NudgeMissing) {
            return;
        }
        let returned = self.credit().returned.load(Relaxed);
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

    /// `inlet_sleep` where the producer proposes a nap: it wants to be rung at the second frame, and its time limit rings
    /// too. A mutant naps on without one.
    pub fn nap(&mut self) -> Option<Frame> {
        self.arm_at(2);
        let mut scan = self.take();
        if let Scan::Nothing = scan {
            self.nudge();
            self.route.consumer_bell.sleep();
            scan = self.take();
        }
        if let (Scan::Nothing, true) = (&scan, self.route.protocol.is(Mutant::NapAgain)) {
            self.route.consumer_bell.sleep();
            scan = self.take();
        }
        self.disarm();
        match scan {
            Scan::Found(frame) => Some(frame),
            Scan::Ended => None,
            Scan::Nothing => self.next_frame(),
        }
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
        self.credit().detached.store(1, order);
        if !protocol.is(Mutant::DetachRingMissing) {
            self.route.producer_bell.ring();
        }
    }
}
