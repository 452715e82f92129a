//! The producing end: `ring.h`, and its sleep from `shm/native/waiting.c`. One function for each of theirs.

use std::sync::Arc;

use loom::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use loom::sync::Mutex;

use crate::memory::{Credit, Route};
use crate::protocol::Mutant;
use crate::verdict::FALSE_ACCUSATION;

struct Outstanding {
    stamp: u64,
    extent: u64,
}

/// What a wait is for.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Need {
    Credits,
    Room,
}

/// `outlet_block` where another thread of the process may relink: whoever sleeps holds no lock (the interpreter's).
pub fn send_shared(producer: &Mutex<Producer>) {
    loop {
        let mut held = producer.lock().unwrap();
        let Err(need) = held.attempt() else { return };
        let sleeps = held.prepare(need);
        let route = held.route.clone();
        drop(held);
        if sleeps {
            route.producer_bell.sleep();
        }
        let _held = producer.lock().unwrap();
        route.wake_at.store(0, Relaxed);
    }
}

/// `struct chx_producer`
pub struct Producer {
    route: Arc<Route>,
    low: u64,
    position: u64,
    committed: u64,
    reclaimed: u64,
    seen: u64,
    base: u64,
    credit: usize,
    outstanding: Vec<Outstanding>,
    free: Vec<u64>,
}

impl Producer {
    pub fn new(route: &Arc<Route>, low: u64) -> Self {
        Producer {
            route: route.clone(),
            low,
            position: 0,
            committed: 0,
            reclaimed: 0,
            seen: 0,
            base: 0,
            credit: 0,
            outstanding: Vec::new(),
            free: (0..route.arena.len() as u64).rev().collect(),
        }
    }

    fn credit(&self) -> &Credit {
        &self.route.credit[self.credit]
    }

    /// `chx_producer_look`
    fn look(&mut self) -> u64 {
        let order = self.route.protocol.order(Mutant::LookReturnedRelaxed, Acquire);
        self.seen = self.base + self.credit().returned.load(order);
        assert!(self.seen <= self.committed, "{FALSE_ACCUSATION}");
        self.seen - self.reclaimed
    }

    /// `chx_producer_reclaim`
    fn reclaim(&mut self) {
        let mut due = self.look();
        let order = self.route.protocol.order(Mutant::ReclaimStampRelaxed, Acquire);
        let mut at = 0;
        while due > 0 && at < self.outstanding.len() {
            let stamp = self.outstanding[at].stamp;
            if self.credit().stamp[self.route.slot(stamp - 1)].load(order) == stamp {
                self.free.push(self.outstanding.remove(at).extent);
                self.reclaimed += 1;
                due -= 1;
            } else {
                at += 1;
            }
        }
        assert!(due == 0, "{FALSE_ACCUSATION}");
    }

    fn has_credit(&self) -> bool {
        self.committed - self.reclaimed < self.route.credits
    }

    /// `chx_producer_detached`
    fn detached(&self) -> bool {
        let order = self.route.protocol.order(Mutant::DetachedRelaxed, Acquire);
        self.credit().detached.load(order) != 0
    }

    fn holds(&self, slot: usize) -> bool {
        let mut held = self.outstanding.iter();
        held.any(|frame| self.route.slot(frame.stamp - 1) == slot)
    }

    /// `chx_producer_skip`
    fn skip(&mut self) {
        let protocol = self.route.protocol;
        while self.holds(self.route.slot(self.position)) {
            if !protocol.is(Mutant::SkipMarkMissing) {
                let order = protocol.order(Mutant::SkipMarkRelaxed, Release);
                self.route.skip[self.route.slot(self.position)].store(self.position + 1, order);
            }
            self.position += 1;
        }
    }

    /// `chx_producer_put`: all but the stamp, which it returns
    fn put(&mut self, extent: u64) -> u64 {
        if self.holds(self.route.slot(self.position)) {
            self.reclaim();
            self.skip();
        }
        let stamp = self.position + 1;
        self.route.desc[self.route.slot(self.position)].extent.write(extent);
        self.outstanding.push(Outstanding { stamp, extent });
        self.position = stamp;
        self.committed += 1;
        stamp
    }

    fn show(&self, stamp: u64, mutant: Mutant) {
        let order = self.route.protocol.order(mutant, Release);
        self.route.desc[self.route.slot(stamp - 1)].stamp.store(stamp, order);
    }

    /// `chx_producer_announce` for the positions behind `first` up to `last`, and the ring after it
    fn announce(&self, first: u64, last: u64) {
        self.route.protocol.fence(&[Mutant::CommitFenceMissing]);
        let wait_for = self.credit().wait_for.load(Relaxed);
        if first < wait_for && wait_for <= last {
            self.route.consumer_bell.ring();
        }
    }

    /// `chx_producer_commit`
    fn commit(&mut self, extent: u64) {
        let mut first = self.position;
        let stamp = self.put(extent);
        if self.route.protocol.is(Mutant::SkipRingsOwnOnly) {
            first = stamp - 1;
        }
        self.show(stamp, Mutant::CommitStampRelaxed);
        self.announce(first, stamp);
    }

    /// `chx_producer_commit_run` of two frames, with credits and room for both: the first stamp comes last.
    pub fn send_run(&mut self) {
        let first = self.position;
        let extents = [self.free.pop().unwrap(), self.free.pop().unwrap()];
        for (number, &extent) in (self.committed..).zip(&extents) {
            self.route.arena[extent as usize].write(number);
        }
        let head = self.put(extents[0]);
        let last = self.put(extents[1]);
        self.show(last, Mutant::RunTailRelaxed);
        self.show(head, Mutant::RunHeadRelaxed);
        let to_head = self.route.protocol.is(Mutant::RunRingsToHeadOnly);
        self.announce(first, if to_head { head } else { last });
    }

    /// `outlet_try` and `native_outlet_commit`: the frame's number is its payload. The error is what it lacks.
    fn attempt(&mut self) -> Result<(), Need> {
        if !self.has_credit() {
            self.reclaim();
        }
        if !self.has_credit() {
            return Err(Need::Credits);
        }
        if self.free.is_empty() {
            self.reclaim();
        }
        let extent = self.free.pop().ok_or(Need::Room)?;
        self.route.arena[extent as usize].write(self.committed);
        self.commit(extent);
        Ok(())
    }

    /// Find what has come back.
    pub fn take_back(&mut self) {
        self.reclaim();
    }

    /// Send the next frame if that is possible now.
    pub fn try_send(&mut self) -> bool {
        self.attempt().is_ok()
    }

    /// `native_outlet_claim`, `native_outlet_commit`: false when the consumer has detached.
    pub fn send(&mut self) -> bool {
        loop {
            if self.detached() {
                return false;
            }
            match self.attempt() {
                Ok(()) => return true,
                Err(need) => self.wait(need),
            }
        }
    }

    /// `chx_producer_goal`
    fn goal(&self) -> u64 {
        let outstanding = self.committed - self.reclaimed;
        self.committed - self.low.min(outstanding - 1)
    }

    /// `chx_producer_starves`
    fn starves(&self) -> bool {
        !self.route.protocol.is(Mutant::StarvesMissing)
            && self.committed - self.seen < self.route.credits
            && self.credit().wait_for.load(Relaxed) == self.position + 1
    }

    /// `chx_producer_ready`
    fn ready(&mut self, goal: u64) -> bool {
        if self.detached() {
            return true;
        }
        self.look();
        self.seen >= goal || self.starves()
    }

    /// `chx_producer_arm`
    fn arm(&self, goal: u64) {
        self.route.wake_at.store(goal - self.base, Relaxed);
    }

    /// `waiting_credits`: is there something to wait for?
    fn waiting_credits(&mut self, arm: bool) -> bool {
        if self.committed - self.reclaimed <= self.low {
            return false;
        }
        let goal = self.goal();
        let ready = self.ready(goal);
        if arm && !(ready && self.route.protocol.is(Mutant::WaitArmsUnreadyOnly)) {
            self.arm(goal);
        }
        !ready
    }

    /// `waiting_room`
    fn waiting_room(&mut self, arm: bool) -> bool {
        if self.look() != 0 {
            return false;
        }
        if arm {
            self.arm(self.reclaimed + 1);
        }
        true
    }

    fn waiting(&mut self, need: Need, arm: bool) -> bool {
        match need {
            Need::Credits => self.waiting_credits(arm),
            Need::Room => self.waiting_room(arm),
        }
    }

    /// `native_outlet_wait`, `waiting_sleep` up to the sleep: is there reason to?
    fn prepare(&mut self, need: Need) -> bool {
        if !self.waiting(need, false) {
            return false;
        }
        let protocol = self.route.protocol;
        self.waiting(need, true);
        protocol.fence(&[Mutant::WaitFenceMissing]);
        protocol.is(Mutant::WaitLookMissing) || self.waiting(need, false)
    }

    /// `native_outlet_wait`, `waiting_sleep`
    fn wait(&mut self, need: Need) {
        if self.prepare(need) {
            self.route.producer_bell.sleep();
        }
        self.route.wake_at.store(0, Relaxed);
    }

    /// `chx_producer_relink`, `producer_relink`: in one step, by whichever thread of the process
    pub fn relink(&mut self, credit: usize) {
        let protocol = self.route.protocol;
        self.credit = credit;
        let order = protocol.order(Mutant::RelinkStampRelaxed, Acquire);
        for frame in std::mem::take(&mut self.outstanding) {
            let returned = self.credit().stamp[self.route.slot(frame.stamp - 1)].load(order) == frame.stamp;
            if returned && !protocol.is(Mutant::RelinkReclaimMissing) {
                self.free.push(frame.extent);
                self.reclaimed += 1;
            } else {
                self.outstanding.push(frame);
            }
        }
        if !protocol.is(Mutant::RelinkBaseMissing) {
            self.base = self.reclaimed;
        }
        self.seen = self.base;
        self.route.wake_at.store(0, Relaxed);
        if !protocol.is(Mutant::RelinkRingMissing) {
            self.route.consumer_bell.ring();
        }
        if !protocol.is(Mutant::RelinkStirMissing) {
            self.route.producer_bell.ring();
        }
    }

    /// `chx_producer_close`
    pub fn close(&mut self) {
        let protocol = self.route.protocol;
        let order = protocol.order(Mutant::CloseRelaxed, Release);
        self.route.closed.store(self.position + 1, order);
        if !protocol.is(Mutant::CloseRingMissing) {
            self.route.consumer_bell.ring();
        }
    }
}
