//! The consuming end of a stage: it owns CREDIT and reads RING and the producer's segments (shm/SPEC.md, 6 and 10.2).
//!
//! A descriptor is copied, the copy is checked, and only then used; a wrong one ends the route. All code that writes
//! CREDIT is here, so that each word's order can be read beside its partner's in producer.rs. That makes this
//! file longer than 400 lines.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release, SeqCst};

use crate::abi::{
    bucket, credit, ring, Header, Kind, Policy, LINE, NOTED, NOTES, POSITION_MAX, REDELIVERED, SEGMENTS_MAX,
};
use crate::bell::{Bell, Line};
use crate::memory::{OwnMap, PeerMap, Refusal};
use crate::pace::{now, NAP_MAX};

const LAPS_MAX: u32 = 65536;
const LOOKS_MAX: u32 = 64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum State {
    Unlinked,
    Open,
    Ended,
    Detached,
    Faulty,
}

/// A private copy of a descriptor that was checked.
#[derive(Clone, Debug, Default)]
pub(crate) struct Taken {
    pub(crate) segment: Option<Rc<PeerMap>>,
    index: u16,
    pub(crate) offset: u64,
    /// Bytes of the payload; with notes, `meta` bytes of metadata and the notes themselves follow.
    pub(crate) length: u64,
    pub(crate) meta: u32,
    pub(crate) stamp_ns: i64,
    pub(crate) stamp: u64,
    pub(crate) seq: u64,
    pub(crate) time_ns: u64,
    pub(crate) deadline_ns: u64,
    pub(crate) trace: u64,
    pub(crate) input_seq: u64,
    pub(crate) schema: u32,
    pub(crate) flags: u16,
}

impl Taken {
    fn bytes(&self) -> u64 {
        self.length + if self.flags & NOTED == 0 { 0 } else { u64::from(self.meta) + NOTES }
    }
}

/// What is at the next position.
pub(crate) enum Look {
    Frame(Taken),
    Empty,
    Ended,
    /// Policy latest: frames are overwritten faster than they are read; the caller gets a turn.
    Torn,
}

enum Peek {
    There,
    Empty,
}

type Checked<T> = Result<T, String>;

pub(crate) struct Consumer {
    pub(crate) header: Header,
    pub(crate) state: State,
    /// What the producer has done.
    pub(crate) why: String,
    credit: OwnMap,
    ring: Option<PeerMap>,
    segments: Vec<Option<Rc<PeerMap>>>,
    /// By slot: 0, or 1 and the segment (from 1) of the frame that is held in it.
    reads: Vec<u32>,
    line: Option<Line>,
    position: u64,
    taken: u64,
    /// A predecessor had taken the frames below it.
    known: u64,
    /// Where a dead producer's stage ends.
    end: Option<u64>,
    /// Stamps, descending: a predecessor had taken these frames, and returned later ones.
    again: Vec<u64>,
    torn: bool,
    policy: Policy,
}

fn in_its_slot(stamp: u64, slot: u64, mask: u64) -> bool {
    stamp == 0 || (stamp - 1) & mask == slot
}

impl Consumer {
    /// Makes the CREDIT and seals it.
    pub(crate) fn new(header: Header) -> Result<Self, Refusal> {
        let credit = OwnMap::create("chronetix-credit", header.size(), Some(&header))?;
        Ok(Self {
            header,
            state: State::Unlinked,
            why: String::new(),
            credit,
            ring: None,
            segments: Vec::new(),
            reads: vec![0; 1 << header.slots_log2()],
            line: None,
            position: 0,
            taken: 0,
            known: 0,
            end: None,
            again: Vec::new(),
            torn: false,
            policy: Policy::Block,
        })
    }

    pub(crate) fn credit_fd(&self) -> &OwnedFd {
        self.credit.fd()
    }

    pub(crate) fn is_linked(&self) -> bool {
        self.ring.is_some()
    }

    pub(crate) fn is_latest(&self) -> bool {
        self.policy == Policy::Latest
    }

    /// Whether it ended before it began.
    pub(crate) fn is_void(&self) -> bool {
        self.state == State::Ended && self.end == Some(0)
    }

    fn mask(&self) -> u64 {
        self.reads.len() as u64 - 1
    }

    /// Attaches the producer's RING, and this end of the line to it.
    pub(crate) fn link(&mut self, ring_fd: &OwnedFd, line: OwnedFd, bell: &Rc<Bell>) -> Result<(), Refusal> {
        let (map, theirs) = PeerMap::attach(ring_fd, Kind::Ring)?;
        self.header.matches(&theirs).map_err(Refusal::Fault)?;
        self.line = Some(Line::adopt(line, true, bell).map_err(Refusal::Fault)?);
        self.policy = theirs.policy;
        self.ring = Some(map);
        self.state = State::Open;
        Ok(())
    }

    /// Maps a segment of the producer's arena.
    pub(crate) fn map(&mut self, index: u64, fd: &OwnedFd) -> Result<(), Refusal> {
        if index >= SEGMENTS_MAX {
            return Err(Refusal::Fault(format!("segment {index}: at most {SEGMENTS_MAX}")));
        }
        let index = index as usize;
        if self.segments.get(index).is_some_and(Option::is_some) {
            return Err(Refusal::Fault(format!("segment {index} is mapped already")));
        }
        let map = PeerMap::open(fd)?;
        if index >= self.segments.len() {
            self.segments.resize(index + 1, None);
        }
        self.segments[index] = Some(Rc::new(map));
        Ok(())
    }

    /// The segments that are mapped.
    pub(crate) fn mapped(&self) -> impl Iterator<Item = u64> + '_ {
        self.segments.iter().enumerate().filter(|(_, map)| map.is_some()).map(|(index, _)| index as u64)
    }

    /// Unmaps a segment that the producer has given back. False: that breaks the protocol, and the route has ended.
    pub(crate) fn unmap(&mut self, index: u64) -> bool {
        let Some(place) =
            usize::try_from(index).ok().and_then(|at| self.segments.get_mut(at)).filter(|map| map.is_some())
        else {
            self.fault(format!("segment {index} was dropped, but is not mapped"));
            return false;
        };
        if self.reads.iter().any(|held| u64::from(*held) == index + 2) {
            self.fault(format!("segment {index} was dropped while a frame of it is held"));
            return false;
        }
        *place = None;
        true
    }

    fn fault(&mut self, why: String) {
        self.state = State::Faulty;
        self.why = why;
        self.credit.word(credit::CLOSED).store(1, Release);
        self.ring_producer();
    }

    fn ring_producer(&self) {
        if let Some(line) = &self.line {
            line.ring();
        }
    }

    // ---- take -------------------------------------------------------------------------------------------------------

    /// A stamp of this slot is 0, or of an earlier lap, or the awaited one.
    fn is_possible(&self, stamp: u64) -> bool {
        let awaited = self.position + 1;
        stamp == 0 || (stamp <= awaited && (stamp ^ awaited) & self.mask() == 0)
    }

    fn ring(&self) -> Checked<&PeerMap> {
        self.ring.as_ref().ok_or_else(|| "it is not linked".to_owned())
    }

    fn desc(&self, position: u64) -> u64 {
        ring::DESC + (position & self.mask()) * ring::DESC_SIZE
    }

    fn skip(&self, position: u64) -> u64 {
        ring::DESC + ring::DESC_SIZE * self.reads.len() as u64 + (position & self.mask()) * 8
    }

    fn reach(&self) {
        self.credit.store(credit::NEXT, self.position.max(self.known));
    }

    /// Copies the descriptor of `position` and checks the copy; the caller has seen its stamp (acquire). None: its
    /// segment is not mapped yet.
    fn check(&self, position: u64) -> Checked<Option<Taken>> {
        let (map, at) = (self.ring()?, self.desc(position));
        let part = |more: u64| map.load(at + more, Relaxed);
        let (offset, length, packed) = (part(8), part(16), part(24));
        let (index, flags) = (packed as u16, (packed >> 16) as u16);
        let mut taken = Taken {
            index: 0,
            offset,
            length,
            time_ns: part(32),
            deadline_ns: part(40),
            trace: part(48),
            input_seq: part(56),
            schema: (packed >> 32) as u32,
            flags,
            ..Taken::default()
        };
        if flags & !(REDELIVERED | NOTED) != 0 {
            return Err(format!("frame at {position}: unknown flags {flags:#x}"));
        }
        if self.reads[(position & self.mask()) as usize] != 0 {
            return Err(format!("frame at {position}: its slot has a frame that is still held"));
        }
        if length == 0 {
            if flags & NOTED != 0 {
                return Err(format!("frame at {position}: no bytes, but notes among them"));
            }
            return Ok(Some(taken));
        }
        let Some(Some(segment)) = self.segments.get(usize::from(index)) else {
            return Ok(None);
        };
        let size = segment.size();
        if !offset.is_multiple_of(LINE) || offset > size || length > size - offset {
            return Err(format!(
                "frame at {position}: {length} bytes at offset {offset} of segment {index}, which has {size}"
            ));
        }
        taken.index = index + 1;
        if flags & NOTED != 0 {
            Self::check_notes(segment, position, &mut taken)?;
        }
        taken.segment = Some(segment.clone());
        Ok(Some(taken))
    }

    fn check_notes(segment: &PeerMap, position: u64, taken: &mut Taken) -> Checked<()> {
        let refuse = || format!("frame at {position}: notes that do not fit into {} bytes", taken.length);
        let before = taken.length.checked_sub(NOTES).ok_or_else(refuse)?;
        let mut notes = [0u8; NOTES as usize];
        notes.copy_from_slice(segment.bytes(taken.offset + before, NOTES));
        let half = |at: usize| u32::from_le_bytes([notes[at], notes[at + 1], notes[at + 2], notes[at + 3]]);
        let (meta, reserved) = (half(8), half(12));
        if reserved != 0 || u64::from(meta) > before {
            return Err(refuse());
        }
        taken.stamp_ns = (u64::from(half(0)) | u64::from(half(4)) << 32) as i64;
        (taken.meta, taken.length) = (meta, before - u64::from(meta));
        Ok(())
    }

    /// Whether a frame is at the next position. Stamp and skip: acquire; partners: the release stores of the producer.
    fn peek(&mut self) -> Checked<Peek> {
        if self.is_latest() {
            return self.peek_latest();
        }
        for _ in 0..=self.reads.len() {
            let map = self.ring()?;
            let stamp = map.load(self.desc(self.position), Acquire);
            if stamp == self.position + 1 {
                return Ok(Peek::There);
            }
            let skip = map.load(self.skip(self.position), Acquire);
            if skip != self.position + 1 {
                if self.is_possible(stamp) && self.is_possible(skip) {
                    return Ok(Peek::Empty);
                }
                return Err(format!("position {}: impossible stamps {stamp} and {skip}", self.position));
            }
            self.position += 1;
            self.reach();
        }
        Err("more skipped positions than slots".to_owned())
    }

    /// Nothing is there: has the stream ended? `closed`: acquire; what was committed before it is visible now.
    fn at_end(&mut self) -> Checked<Option<bool>> {
        let closed = self.ring()?.load(ring::CLOSED, Acquire);
        let Some(end) = closed.checked_sub(1).or(self.end) else {
            return Ok(Some(false));
        };
        if matches!(self.peek()?, Peek::There) {
            return Ok(None);
        }
        if end != self.position || self.end.is_some_and(|known| known != end) {
            return Err(format!("the stream ends at position {end}, but frames at {}", self.position));
        }
        self.state = State::Ended;
        Ok(Some(true))
    }

    fn look_open(&mut self) -> Checked<Look> {
        if self.is_latest() {
            return self.look_latest();
        }
        let position;
        if let Some(&stamp) = self.again.last() {
            position = stamp - 1;
            if self.ring()?.load(self.desc(position), Acquire) != stamp {
                return Err(format!("position {position}: its frame was not returned, and is gone"));
            }
        } else {
            if matches!(self.peek()?, Peek::Empty) {
                match self.at_end()? {
                    Some(true) => return Ok(Look::Ended),
                    Some(false) => return Ok(Look::Empty),
                    None => {}
                }
            }
            position = self.position;
            if self.end.is_some_and(|end| position >= end) {
                return Err(format!("a frame at position {position}, behind its dead producer's end"));
            }
        }
        let Some(mut taken) = self.check(position)? else {
            return Ok(Look::Empty);
        };
        if position < self.known {
            taken.flags |= REDELIVERED;
        }
        Ok(Look::Frame(taken))
    }

    /// Looks at the next frame without taking it. Err: the producer has broken the ABI; `why` tells.
    pub(crate) fn look(&mut self) -> Result<Look, ()> {
        match self.state {
            State::Unlinked => return Ok(Look::Empty),
            State::Open => {}
            State::Faulty => return Err(()),
            State::Ended | State::Detached => return Ok(Look::Ended),
        }
        let mut found = self.look_open();
        if matches!(found, Ok(Look::Empty)) && self.line.as_ref().is_some_and(Line::is_spoilt) {
            found = Err("the producer has sent descriptors where only rings may come".to_owned());
        }
        found.map_err(|why| self.fault(why))
    }

    /// The frame that was looked at is taken: the counters are stored before anybody sees it.
    pub(crate) fn step(&mut self, taken: &mut Taken) {
        taken.stamp = match self.again.pop() {
            Some(stamp) => stamp,
            None => {
                self.position += 1;
                self.position
            }
        };
        taken.seq = self.header.base_seq + (taken.stamp - 1);
        if taken.stamp <= self.known {
            self.credit.count(credit::AGAIN, 1);
        }
        let slot = ((taken.stamp - 1) & self.mask()) as usize;
        self.reads[slot] = u32::from(taken.index) + 1;
        self.taken += 1;
        self.credit.store(credit::TAKEN, self.taken);
        self.reach();
        self.latency(taken.time_ns);
    }

    fn latency(&self, time_ns: u64) {
        let ns = now().saturating_sub(time_ns);
        self.credit.count(credit::LATENCY + 8 * bucket(ns), 1);
        self.credit.count(credit::LATENCY_SUM, ns);
        if ns > self.credit.load(credit::LATENCY_MAX) {
            self.credit.store(credit::LATENCY_MAX, ns);
        }
    }

    // ---- policy latest ----------------------------------------------------------------------------------------------

    fn lose(&mut self, to: u64) {
        self.credit.count(credit::LOST, to - self.position);
        self.position = to;
        self.reach();
    }

    /// The next frame was overwritten: go on at the oldest that is left, or a little later if the reader is too slow.
    fn fall(&mut self, oldest: u64) -> Checked<()> {
        self.lose(oldest);
        let mut ahead = if self.torn { u64::from(self.header.credits / 2) } else { 0 };
        while ahead > 0 {
            let at = oldest + ahead;
            if self.ring()?.load(self.desc(at), Acquire) == at + 1 {
                self.lose(at);
                break;
            }
            ahead /= 2;
        }
        Ok(())
    }

    fn peek_latest(&mut self) -> Checked<Peek> {
        for _ in 0..LAPS_MAX {
            let oldest = self.ring()?.load(ring::OLDEST, Relaxed);
            if oldest > POSITION_MAX {
                return Err(format!("frames up to {oldest} are said to be overwritten"));
            }
            if oldest > self.position {
                self.fall(oldest)?;
            }
            let map = self.ring()?;
            let stamp = map.load(self.desc(self.position), Acquire);
            if stamp == self.position + 1 {
                return Ok(Peek::There);
            }
            if self.is_possible(stamp) {
                return Ok(Peek::Empty);
            }
            if map.load(ring::OLDEST, Relaxed) <= self.position {
                return Err(format!("position {}: impossible stamp {stamp}", self.position));
            }
        }
        Err("the oldest frame moves on and on without an end".to_owned())
    }

    /// Whether what was just read of the next position was overwritten. Fence (acquire); partner: the producer's revoke.
    fn has_moved(&self) -> Checked<bool> {
        std::sync::atomic::fence(Acquire);
        Ok(self.ring()?.load(ring::OLDEST, Relaxed) > self.position)
    }

    fn look_latest(&mut self) -> Checked<Look> {
        for _ in 0..LOOKS_MAX {
            if matches!(self.peek()?, Peek::Empty) {
                match self.at_end()? {
                    Some(true) => return Ok(Look::Ended),
                    Some(false) => return Ok(Look::Empty),
                    None => {}
                }
            }
            if self.end.is_some_and(|end| self.position >= end) {
                return Err(format!("a frame at position {}, behind its dead producer's end", self.position));
            }
            let found = self.check(self.position);
            if !self.has_moved()? {
                return Ok(found?.map_or(Look::Empty, Look::Frame));
            }
        }
        Ok(Look::Torn)
    }

    /// Copies the frame that was looked at. False: it was overwritten meanwhile, and is lost.
    ///
    /// Order: reads of descriptor and payload, fence (acquire), `oldest`; then `returned` (release), which lets the
    /// producer use the extent again without revoking it.
    pub(crate) fn copy(&mut self, taken: &mut Taken, to: &mut Vec<u8>) -> bool {
        taken.seq = self.header.base_seq + self.position;
        self.position += 1;
        taken.stamp = self.position;
        to.clear();
        if let Some(segment) = &taken.segment {
            segment.copy_out(taken.offset, taken.bytes(), to);
        }
        taken.segment = None;
        std::sync::atomic::fence(Acquire);
        let whole = self.ring.as_ref().is_some_and(|map| map.load(ring::OLDEST, Relaxed) < taken.stamp);
        self.torn = !whole;
        if whole {
            self.taken += 1;
            self.credit.store(credit::TAKEN, self.taken);
            self.latency(taken.time_ns);
        } else {
            self.credit.count(credit::LOST, 1);
        }
        self.reach();
        self.credit.word(credit::RETURNED).store(self.position, Release);
        whole
    }

    // ---- return -----------------------------------------------------------------------------------------------------

    /// Gives the frame of `stamp` back. Order: reads of the payload, stamp (release), count (seq_cst), wake_at (seq_cst);
    /// partners: the producer's look and arm.
    pub(crate) fn give_back(&mut self, stamp: u64) {
        let slot = (stamp - 1) & self.mask();
        self.reads[slot as usize] = 0;
        self.credit.word(credit::STAMP + 8 * slot).store(stamp, Release);
        let count = self.credit.word(credit::RETURNED).fetch_add(1, SeqCst) + 1;
        let wake_at = self.ring.as_ref().map_or(0, |map| map.load(ring::WAKE_AT, SeqCst));
        let sleeps = || self.credit.word(credit::WAIT_FOR).load(SeqCst) != 0;
        if wake_at == count || (wake_at > count && sleeps()) {
            self.credit.count(credit::WAKES, 1);
            self.ring_producer();
        }
    }

    /// Frames taken and not given back.
    pub(crate) fn held(&self) -> u64 {
        if self.is_latest() {
            0
        } else {
            self.taken - self.credit.load(credit::RETURNED)
        }
    }

    // ---- waiting ----------------------------------------------------------------------------------------------------

    /// Asks for a ring at the next frame. The caller issues one fence for all its routes, and looks again.
    pub(crate) fn arm(&self) {
        if self.state == State::Open {
            self.credit.store(credit::WAIT_FOR, self.position + 1);
        }
    }

    pub(crate) fn disarm(&self) {
        self.credit.store(credit::WAIT_FOR, 0);
    }

    fn nap(&self) -> u64 {
        self.ring.as_ref().map_or(0, |map| map.load(ring::NAP, Relaxed))
    }

    pub(crate) fn may_nap(&self) -> bool {
        self.state == State::Open && self.policy == Policy::Block && self.nap() != 0
    }

    /// As `arm`, for a sleep in which frames may gather; how long it may last at most.
    pub(crate) fn arm_nap(&self) -> Option<u64> {
        let ahead = u64::from(self.header.credits).saturating_sub(self.held()) / 2;
        if !self.may_nap() || ahead < 2 {
            self.arm();
            return None;
        }
        self.credit.store(credit::WAIT_FOR, self.position + ahead);
        Some(self.nap().clamp(1, NAP_MAX))
    }

    /// About to sleep: a producer that sleeps for a count that frames held here keep away has a credit all the same.
    pub(crate) fn nudge(&self) {
        if self.state != State::Open {
            return;
        }
        self.credit.count(credit::SLEEPS, 1);
        let wake_at = self.ring.as_ref().map_or(0, |map| map.load(ring::WAKE_AT, Relaxed));
        if wake_at > self.credit.load(credit::RETURNED) && self.held() < u64::from(self.header.credits) {
            self.credit.count(credit::WAKES, 1);
            self.ring_producer();
        }
    }

    /// Detaches. Frames that are held may still be read and given back.
    pub(crate) fn close(&mut self) {
        if self.credit.load(credit::CLOSED) == 0 {
            self.state = State::Detached;
            self.credit.word(credit::CLOSED).store(1, Release);
            self.ring_producer();
        }
    }

    // ---- succession -------------------------------------------------------------------------------------------------

    /// Goes on where the consumer whose CREDIT this is has died. Nothing that it has counted is believed but its stamps.
    pub(crate) fn inherit(&mut self, credit_fd: &OwnedFd) -> Result<(), Refusal> {
        let result = match PeerMap::attach(credit_fd, Kind::Credit) {
            Ok((map, theirs)) => self.header.matches(&theirs).and_then(|()| self.inherit_from(&map)),
            Err(Refusal::Fault(why)) => Err(why),
            Err(other) => return Err(other),
        };
        result.map_err(|why| {
            let why = format!("predecessor: {why}");
            self.fault(why.clone());
            Refusal::Fault(why)
        })
    }

    fn inherit_from(&mut self, dead: &PeerMap) -> Checked<()> {
        let next = dead.load(credit::NEXT, Relaxed);
        if self.is_latest() {
            if next > POSITION_MAX {
                return Err(format!("it says that it took up to position {next}"));
            }
            self.position = next;
            self.reach();
            return Ok(());
        }
        let mut last = 0;
        for slot in 0..self.reads.len() as u64 {
            let stamp = dead.load(credit::STAMP + 8 * slot, Acquire);
            if !in_its_slot(stamp, slot, self.mask()) {
                return Err(format!("stamp {stamp} in slot {slot}"));
            }
            self.credit.store(credit::STAMP + 8 * slot, stamp);
            last = last.max(stamp);
        }
        for slot in 0..self.reads.len() as u64 {
            let sent = self.ring()?.load(self.desc(slot), Acquire);
            let returned = self.credit.load(credit::STAMP + 8 * slot);
            if !in_its_slot(sent, slot, self.mask()) {
                return Err(format!("stamp {sent} in slot {slot} of the ring"));
            }
            if returned > sent {
                return Err(format!("position {} was returned, but never sent", returned - 1));
            }
            if returned != sent && sent <= last {
                self.again.push(sent);
            }
        }
        self.again.sort_unstable_by(|left, right| right.cmp(left));
        let next = next.max(last);
        if next - last > self.reads.len() as u64 {
            return Err(format!("it says that it took up to position {next} and returned up to {last}"));
        }
        (self.position, self.known) = (last, next);
        self.reach();
        Ok(())
    }

    /// This stage ends at that position: its producer has died or gone on. False: that cannot be, and the route has ended.
    pub(crate) fn end_at(&mut self, end: u64) -> bool {
        if matches!(self.state, State::Faulty | State::Detached) {
            return true;
        }
        let differs =
            self.end.is_some_and(|known| known != end) || (self.state == State::Ended && self.position != end);
        if end > POSITION_MAX || differs {
            self.fault(format!("its dead producer's end at position {end} does not fit"));
            return false;
        }
        self.end = Some(end);
        if self.state == State::Unlinked && end == 0 {
            self.state = State::Ended;
        }
        true
    }
}
