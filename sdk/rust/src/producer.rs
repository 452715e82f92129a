//! The producing end of a stage: it owns RING and reads CREDIT (shm/SPEC.md, 5 and 10.3).
//!
//! What is outstanding is known from private memory alone: per slot the stamp and the extent, in commit order. All code
//! that writes RING is here, so that each word's order can be read beside its partner's in consumer.rs. That makes this
//! file longer than 400 lines.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::{
    fence,
    Ordering::{Acquire, Relaxed, Release, SeqCst},
};

use crate::abi::{credit, ring, Header, Kind, Policy, REDELIVERED};
use crate::arena::{Arena, Extent};
use crate::bell::{Bell, Line};
use crate::memory::{OwnMap, PeerMap, Refusal};

const NONE: u32 = u32::MAX;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Unlinked,
    Open,
    /// Closed at this end.
    Closed,
    Detached,
    GivenUp,
    Faulty,
}

#[derive(Clone, Copy)]
struct Slot {
    stamp: u64,
    extent: Extent,
    prev: u32,
    next: u32,
}

/// The application's part of a descriptor.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Tags {
    pub(crate) deadline_ns: u64,
    pub(crate) trace: u64,
    pub(crate) input_seq: u64,
    pub(crate) schema: u32,
    pub(crate) flags: u16,
}

pub(crate) struct Producer {
    pub(crate) header: Header,
    pub(crate) state: State,
    /// What the consumer has done.
    pub(crate) why: String,
    pub(crate) position: u64,
    /// Credits that are promised to open loans.
    pub(crate) reserved: u32,
    /// Policy block: how long to wait for a credit before the route is given up; 0: for ever.
    pub(crate) limit_ns: u64,
    pub(crate) short_since: u64,
    /// A predecessor had committed items up to this number.
    pub(crate) resume: u64,
    ring: OwnMap,
    credit: Option<PeerMap>,
    line: Option<Line>,
    slots: Vec<Slot>,
    head: u32,
    tail: u32,
    committed: u64,
    reclaimed: u64,
    seen: u64,
    base: u64,
    peak: u64,
}

impl Producer {
    /// Makes the RING and seals it.
    pub(crate) fn new(header: Header) -> Result<Self, Refusal> {
        let map = OwnMap::create("chronetix-ring", header.size(), Some(&header))?;
        let empty = Slot { stamp: 0, extent: Extent::NONE, prev: NONE, next: NONE };
        Ok(Self {
            header,
            state: State::Unlinked,
            why: String::new(),
            position: 0,
            reserved: 0,
            limit_ns: 0,
            short_since: 0,
            resume: 0,
            ring: map,
            credit: None,
            line: None,
            slots: vec![empty; 1 << header.slots_log2()],
            head: NONE,
            tail: NONE,
            committed: 0,
            reclaimed: 0,
            seen: 0,
            base: 0,
            peak: 0,
        })
    }

    pub(crate) fn ring_fd(&self) -> &OwnedFd {
        self.ring.fd()
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.credit.is_some()
    }

    pub(crate) fn is_latest(&self) -> bool {
        self.header.policy == Policy::Latest
    }

    fn mask(&self) -> u64 {
        self.slots.len() as u64 - 1
    }

    pub(crate) fn outstanding(&self) -> u32 {
        (self.committed - self.reclaimed) as u32
    }

    fn attach(&self, credit_fd: &OwnedFd) -> Result<PeerMap, Refusal> {
        let (map, theirs) = PeerMap::attach(credit_fd, Kind::Credit)?;
        self.header.matches(&theirs).map_err(Refusal::Fault)?;
        Ok(map)
    }

    /// Attaches the consumer's CREDIT, or that of its successor, and this end of the line to it.
    pub(crate) fn link(
        &mut self,
        credit_fd: &OwnedFd,
        line: OwnedFd,
        bell: &Rc<Bell>,
        arena: &mut Arena,
    ) -> Result<(), Refusal> {
        let again = self.credit.is_some();
        if again && self.state == State::Faulty {
            return Err(Refusal::Fault("a route that was lost by a fault has no succession".to_owned()));
        }
        let map = self.attach(credit_fd)?;
        if again && map.load(credit::RETURNED, Acquire) != 0 {
            return Err(Refusal::Fault("the consumer's successor has returned frames before it was linked".to_owned()));
        }
        self.line = Some(Line::adopt(line, false, bell).map_err(Refusal::Fault)?);
        self.credit = Some(map);
        if !again {
            self.state = if self.state == State::Unlinked { State::Open } else { self.state };
            return Ok(());
        }
        if !self.is_latest() {
            self.free_returned(u64::MAX, u32::MAX, arena);
            (self.base, self.seen) = (self.reclaimed, self.reclaimed);
            self.ring.store(ring::RETURNED_BEFORE, self.base);
        }
        self.ring.store(ring::WAKE_AT, 0);
        if self.state == State::Detached {
            self.state = State::Open;
        }
        self.ring_consumer();
        Ok(())
    }

    /// Wakes the consumer.
    pub(crate) fn ring_consumer(&self) {
        if let Some(line) = &self.line {
            line.ring();
        }
    }

    fn theirs(&self, offset: u64) -> u64 {
        self.credit.as_ref().map_or(0, |map| map.load(offset, Relaxed))
    }

    // ---- returned frames --------------------------------------------------------------------------------------------

    fn free_slot(&mut self, slot: u32, arena: &mut Arena) {
        let Slot { extent, prev, next, .. } = self.slots[slot as usize];
        match next {
            NONE => self.tail = prev,
            next => self.slots[next as usize].prev = prev,
        }
        match prev {
            NONE => self.head = next,
            prev => self.slots[prev as usize].next = next,
        }
        self.slots[slot as usize].stamp = 0;
        arena.drop_one(&extent);
        self.reclaimed += 1;
    }

    fn free_all(&mut self, arena: &mut Arena) {
        while self.head != NONE {
            self.free_slot(self.head, arena);
        }
    }

    /// Frees up to `due` slots whose stamps show that they are back, looking at no more than `looks`. What is left of both.
    fn free_returned(&mut self, mut due: u64, mut looks: u32, arena: &mut Arena) -> (u64, u32) {
        let mut slot = self.head;
        while slot != NONE && due > 0 && looks > 0 {
            let Slot { stamp, next, .. } = self.slots[slot as usize];
            let at = credit::STAMP + 8 * u64::from(slot);
            // acquire; partner: the stamp of a return. `returned` alone orders only what it counted.
            if self.credit.as_ref().is_some_and(|map| map.load(at, Acquire) == stamp) {
                self.free_slot(slot, arena);
                due -= 1;
            }
            looks -= 1;
            slot = next;
        }
        (due, looks)
    }

    /// Whether frames can still come back: also after the end of the stream, and from a consumer that has detached.
    pub(crate) fn returns(&self) -> bool {
        self.credit.is_some() && self.state != State::Faulty
    }

    fn fault(&mut self, why: String, arena: &mut Arena) {
        self.why = why;
        self.state = State::Faulty;
        self.free_all(arena);
    }

    /// Frames that are back and not reclaimed yet. None: the consumer lies, and the route has ended.
    pub(crate) fn look(&mut self, arena: &mut Arena) -> Option<u64> {
        // acquire; partner: the count of a return.
        self.seen = self.base.wrapping_add(self.credit.as_ref().map_or(0, |map| map.load(credit::RETURNED, Acquire)));
        if self.line.as_ref().is_some_and(Line::is_spoilt) {
            self.fault("the consumer has sent descriptors where only rings may come".to_owned(), arena);
            return None;
        }
        if self.is_latest() && self.seen < self.reclaimed {
            return Some(0);
        }
        match self.seen.checked_sub(self.reclaimed) {
            Some(due) if due <= u64::from(self.outstanding()) => Some(due),
            _ => {
                let why = format!("the consumer claims {} frames returned of {} sent", self.seen, self.committed);
                self.fault(why, arena);
                None
            }
        }
    }

    /// Takes back what has been returned, looking at no more than `looks` slots. False: the route has ended by a fault.
    pub(crate) fn reclaim(&mut self, looks: u32, arena: &mut Arena) -> bool {
        let Some(due) = self.look(arena) else { return false };
        if self.is_latest() {
            (0..due).for_each(|_| self.free_slot(self.head, arena));
            return true;
        }
        let (due, looks) = self.free_returned(due, looks, arena);
        if due == 0 || looks == 0 {
            return true;
        }
        let why = format!("the consumer claims {} frames returned, but the stamps show {}", self.seen, self.reclaimed);
        self.fault(why, arena);
        false
    }

    /// Policy latest: takes the oldest frame back, read or not; false: there is none. Order: `oldest`, fence (release),
    /// then whatever is written into its extent and descriptor.
    pub(crate) fn revoke(&mut self, arena: &mut Arena) -> bool {
        if self.head == NONE {
            return false;
        }
        self.ring.store(ring::OLDEST, self.slots[self.head as usize].stamp);
        fence(Release);
        self.free_slot(self.head, arena);
        true
    }

    /// Whether one more frame is possible without waiting, loans included.
    pub(crate) fn has_credit(&self) -> bool {
        let used = if self.is_latest() { 0 } else { self.outstanding() } + self.reserved;
        used < self.header.credits
    }

    fn is_detached(&self) -> bool {
        self.credit.as_ref().is_some_and(|map| map.load(credit::CLOSED, Acquire) != 0)
    }

    /// The route's state as the other end left it.
    pub(crate) fn check(&mut self) -> State {
        if self.state == State::Open && self.is_detached() {
            self.state = State::Detached;
        }
        self.state
    }

    // ---- commit -----------------------------------------------------------------------------------------------------

    fn desc(&self) -> u64 {
        ring::DESC + (self.position & self.mask()) * ring::DESC_SIZE
    }

    /// Passes over positions whose slot is still held. There are twice as many slots as credits, so one is free.
    fn skip_held(&mut self) {
        while self.slots[(self.position & self.mask()) as usize].stamp != 0 {
            let at = ring::DESC + ring::DESC_SIZE * self.slots.len() as u64 + 8 * (self.position & self.mask());
            // release; partner: the acquire load of skip in a take
            self.ring.word(at).store(self.position + 1, Release);
            self.position += 1;
            self.ring.count(ring::SKIPPED, 1);
        }
    }

    fn note_peak(&mut self) {
        if self.committed - self.seen.min(self.committed) <= self.peak
            || (self.is_latest() && u64::from(self.outstanding()) <= self.peak)
        {
            return;
        }
        let mut seen = self.base.wrapping_add(self.theirs(credit::RETURNED));
        if seen > self.committed {
            return; // a false value, which `look` reports
        }
        self.seen = seen;
        if self.is_latest() {
            seen = seen.max(self.reclaimed);
        }
        if self.committed - seen > self.peak {
            self.peak = self.committed - seen;
            self.ring.store(ring::MAX_OUTSTANDING, self.peak);
        }
    }

    /// Publishes a frame, giving the route one reference to its extent; the caller has made sure of a credit. Whether the
    /// consumer is to be rung. Order: fields, stamp (release), fence (seq_cst), wait_for.
    pub(crate) fn commit(
        &mut self,
        extent: &Extent,
        length: u64,
        tags: &Tags,
        time_ns: u64,
        arena: &mut Arena,
    ) -> bool {
        let first = self.position;
        if self.is_latest() && self.outstanding() >= self.header.credits {
            self.reclaim(u32::MAX, arena);
            while self.outstanding() >= self.header.credits && self.revoke(arena) {}
        }
        if self.slots[(self.position & self.mask()) as usize].stamp != 0 {
            self.reclaim(u32::MAX, arena);
            self.skip_held();
        }
        let at = self.desc();
        let again = tags.input_seq != 0 && tags.input_seq <= self.resume;
        let flags = tags.flags | if again { REDELIVERED } else { 0 };
        let packed = u64::from(extent.segment) | u64::from(flags) << 16 | u64::from(tags.schema) << 32;
        let fields = [extent.offset, length, packed, time_ns, tags.deadline_ns, tags.trace, tags.input_seq];
        for (index, field) in fields.into_iter().enumerate() {
            self.ring.store(at + 8 + 8 * index as u64, field);
        }
        let slot = (self.position & self.mask()) as u32;
        self.position += 1;
        self.slots[slot as usize] = Slot { stamp: self.position, extent: *extent, prev: self.tail, next: NONE };
        match self.tail {
            NONE => self.head = slot,
            tail => self.slots[tail as usize].next = slot,
        }
        self.tail = slot;
        self.committed += 1;
        self.ring.word(at).store(self.position, Release);
        self.ring.store(ring::COMMITTED, self.committed);
        self.ring.count(ring::BYTES, length);
        fence(SeqCst);
        let wait_for = self.theirs(credit::WAIT_FOR);
        self.note_peak();
        if self.state == State::Faulty {
            self.free_all(arena);
        }
        if wait_for.wrapping_sub(first).wrapping_sub(1) >= self.position - first {
            return false;
        }
        self.ring.count(ring::WAKES, 1);
        true
    }

    pub(crate) fn propose_nap(&self, nap_ns: u64) {
        self.ring.store(ring::NAP, nap_ns);
    }

    // ---- waiting for credits ----------------------------------------------------------------------------------------

    /// The count of returned frames that brings the route down to credit_low; None: nothing is outstanding.
    pub(crate) fn goal(&self) -> Option<u64> {
        let outstanding = self.outstanding();
        let floor = self.header.credit_low.saturating_sub(self.reserved).min(outstanding.checked_sub(1)?);
        Some(self.committed - u64::from(floor))
    }

    /// Whether it has come down to credit_low.
    pub(crate) fn is_low(&self) -> bool {
        self.outstanding() + self.reserved <= self.header.credit_low
    }

    pub(crate) fn next_return(&self) -> u64 {
        self.reclaimed + 1
    }

    /// Whether the producer has to try again: it is down to `goal`, starves its consumer, or is closed.
    pub(crate) fn is_ready(&mut self, goal: Option<u64>, arena: &mut Arena) -> bool {
        if self.state != State::Open || self.is_detached() || self.look(arena).is_none() {
            return true;
        }
        let used = self.committed - self.seen + u64::from(self.reserved);
        let starves = used < u64::from(self.header.credits) && self.theirs(credit::WAIT_FOR) == self.position + 1;
        goal.is_some_and(|goal| self.seen >= goal) || starves
    }

    /// Asks for a ring at `goal`. The caller issues one fence for all its routes, and looks again.
    pub(crate) fn arm(&self, goal: u64) {
        self.ring.store(ring::WAKE_AT, goal - self.base);
    }

    pub(crate) fn disarm(&self) {
        self.ring.store(ring::WAKE_AT, 0);
    }

    /// A frame finds no credit at `now`: whether it has been so for longer than the route's limit.
    pub(crate) fn is_short(&mut self, now: u64) -> bool {
        if self.limit_ns == 0 {
            return false;
        }
        if self.short_since == 0 {
            self.short_since = now;
        }
        now - self.short_since >= self.limit_ns
    }

    pub(crate) fn count(&self, word: u64, n: u64) {
        self.ring.count(word, n);
    }

    pub(crate) fn blocked_since(&self) -> u64 {
        self.ring.load(ring::BLOCKED_SINCE)
    }

    pub(crate) fn set_blocked_since(&self, at: u64) {
        self.ring.store(ring::BLOCKED_SINCE, at);
    }

    // ---- end --------------------------------------------------------------------------------------------------------

    /// The end of the stream: closed (release) after the last stamp, then a ring, whatever wait_for says.
    pub(crate) fn close(&mut self) {
        if self.ring.load(ring::CLOSED) != 0 {
            return;
        }
        self.ring.word(ring::CLOSED).store(self.position + 1, Release);
        if matches!(self.state, State::Open | State::Unlinked) {
            self.state = State::Closed;
        }
        self.ring_consumer();
    }

    /// The consumer has kept a frame waiting past the limit. How long.
    pub(crate) fn give_up(&mut self, now: u64) -> u64 {
        self.close();
        self.state = State::GivenUp;
        let waited = (now - self.short_since).max(1);
        self.ring.store(ring::GAVE_UP_AFTER, waited);
        waited
    }

    /// Gives back to the arena what was never returned, because nobody reads it any more.
    pub(crate) fn destroy(mut self, arena: &mut Arena) {
        while self.is_latest() && self.revoke(arena) {}
        self.free_all(arena);
    }
}
