//! Room for frames: the arena grows and shrinks by segments; and a sender waits for credits, or for room.
//!
//! Waiting: look, spin a little, publish what is waited for, fence, look again, sleep. The order is what makes it safe:
//! SPEC.md, Wake-up. An output is waited for until it has come down to credit_low; room, until any frame comes back.

use std::sync::atomic::{fence, Ordering::SeqCst};

use super::outputs::{Attempt, Claim, Output, SendOptions, Wait};
use super::Core;
use crate::abi::ring;
use crate::arena::{Arena, Extent, NoGrowth, SegmentState};
use crate::error::{Code, Error, Kind, Result};
use crate::link::message;
use crate::pace::now;
use crate::producer::State;

const SECOND: u64 = 1_000_000_000;
const LONGEST_PAUSE: u64 = 64 * SECOND;
const PATIENCE: usize = 2;
const MOST_PATIENCE: usize = 64;

/// What is beyond twice the recent peak is given back after a quiet time.
#[derive(Default)]
pub(crate) struct Trim {
    first: u64,
    size: u64,
    peaks: Vec<u64>,
    due_ns: u64,
    pause_ns: u64,
    patience: usize,
    since_given: usize,
    given: bool,
}

impl Trim {
    pub(crate) fn new(arena: &Arena) -> Self {
        Self { first: arena.size, size: arena.size, pause_ns: SECOND, patience: PATIENCE, ..Self::default() }
    }

    /// It grew again so soon after giving back that it was better kept?
    fn repent(&mut self) {
        if !self.given {
            return;
        }
        let soon = self.since_given <= 4 * self.patience;
        self.patience = if soon { (2 * self.patience).min(MOST_PATIENCE) } else { PATIENCE };
        let surplus = self.peaks.len().saturating_sub(self.patience);
        self.peaks.drain(..surplus);
        self.given = false;
    }
}

impl Core {
    fn ends(&mut self) -> (impl Iterator<Item = &mut Output>, Option<&mut Arena>) {
        (self.outputs.iter_mut().chain(self.done.iter_mut()), self.arena.as_mut())
    }

    fn reclaim_all(&mut self) {
        let (outputs, Some(arena)) = self.ends() else { return };
        for output in outputs.filter(|output| output.end.returns()) {
            output.end.reclaim(u32::MAX, arena);
        }
    }

    // ---- growing ----------------------------------------------------------------------------------------------------

    fn tell_drops(&mut self) -> Result<()> {
        let Some(arena) = &mut self.arena else { return Ok(()) };
        let mut dropped = Vec::new();
        for (index, segment) in arena.segments.iter_mut().enumerate() {
            if segment.state == SegmentState::Dropped && !segment.announced {
                segment.announced = true;
                dropped.push(index);
            }
        }
        dropped.into_iter().try_for_each(|index| self.tell_state(&message("segment-dropped").with("index", index), &[]))
    }

    /// Whether a frame of that size may fit now. False: wait.
    fn grow(&mut self, length: u64) -> Result<bool> {
        let Some(arena) = &mut self.arena else { return Ok(false) };
        if arena.stay() {
            return Ok(true);
        }
        let limit = arena.limit;
        let index = match arena.pending(length) {
            Some(index) => index,
            None => {
                let grown = arena.grow(length);
                self.tell_drops()?;
                match grown {
                    Ok(index) => index,
                    Err(NoGrowth::Wait) => return Ok(false),
                    Err(NoGrowth::TooLarge) => {
                        let text = format!(
                            "a frame of {length} bytes can never fit: the arena's limit is {limit} bytes; raise resource_claims.arena_bytes"
                        );
                        return Err(Error::code_of(Code::OutOfMemory, text));
                    }
                    Err(NoGrowth::Refused(refusal)) => return Err(Error::refusal("a frame", refusal)),
                }
            }
        };
        let waits = self.outputs.iter().chain(&self.done).any(Output::blocks);
        let Some(arena) = &mut self.arena else { return Ok(false) };
        if !arena.segments[index].announced {
            arena.segments[index].announced = true;
            let map = arena.segments[index].map.clone();
            let fds: Vec<_> = map.iter().map(|map| std::os::fd::AsFd::as_fd(map.fd())).collect();
            self.tell_state(&message("segment").with("index", index), &fds)?;
            if let Some(arena) = self.arena.as_mut().filter(|_| !waits) {
                arena.confirm(index);
            }
            self.set_timer();
        }
        Ok(self.arena.as_ref().is_some_and(|arena| arena.segments[index].state == SegmentState::Used))
    }

    /// Takes back the oldest frame of each output of policy latest, until there is room.
    fn overwrite(&mut self, length: u64) -> Option<Extent> {
        let Self { outputs, arena: Some(arena), .. } = self else {
            return None;
        };
        let mut revoked = true;
        while revoked {
            revoked = false;
            for output in outputs.iter_mut().filter(|output| output.end.is_latest()) {
                let frees = arena.frees;
                revoked |= output.end.revoke(arena);
                if arena.frees != frees {
                    if let Some(extent) = arena.alloc(length) {
                        return Some(extent);
                    }
                }
            }
        }
        None
    }

    /// An extent for a frame; None: there is no room now.
    pub(crate) fn make_room(&mut self, length: u64) -> Result<Option<Extent>> {
        let alloc = |core: &mut Self| core.arena.as_mut().and_then(|arena| arena.alloc(length));
        if let Some(extent) = alloc(self) {
            return Ok(Some(extent));
        }
        self.reclaim_all();
        if let Some(extent) = alloc(self) {
            return Ok(Some(extent));
        }
        loop {
            self.short_at = self.arena.as_ref().map(|arena| arena.frees);
            if !self.grow(length)? {
                return Ok(self.overwrite(length));
            }
            if let Some(extent) = alloc(self) {
                return Ok(Some(extent));
            }
        }
    }

    // ---- shrinking --------------------------------------------------------------------------------------------------

    /// When to look whether memory can be given back; None: there is nothing to look for.
    pub(crate) fn trim_due(&mut self) -> Option<u64> {
        let size = self.arena.as_ref()?.size;
        if size <= self.trim.first {
            self.trim.due_ns = 0;
            return None;
        }
        if self.trim.due_ns == 0 {
            self.trim.due_ns = now() + SECOND;
        }
        Some(self.trim.due_ns)
    }

    pub(crate) fn trim_look(&mut self) -> Result<()> {
        if self.trim_due().is_none_or(|due| now() < due) {
            return Ok(());
        }
        self.reclaim_all();
        let Self { trim, arena: Some(arena), .. } = self else {
            return Ok(());
        };
        let mut changed = arena.size > trim.size;
        if changed {
            trim.repent();
        }
        let peak = std::mem::replace(&mut arena.peak, arena.used);
        changed |= trim.peaks.last() != Some(&peak);
        if trim.peaks.len() == trim.patience {
            trim.peaks.remove(0);
        }
        trim.peaks.push(peak);
        let most = trim.peaks.iter().copied().max().unwrap_or(0);
        let full = trim.peaks.len() == trim.patience;
        let mut given = 0;
        if full {
            given = arena.shrink((2 * most).max(trim.first));
            if most == 0 && given == 0 && arena.size > trim.first {
                given = arena.shrink(0);
            }
        }
        if given > 0 {
            (trim.given, trim.since_given) = (true, 0);
        } else if trim.given {
            trim.since_given += 1;
        }
        trim.size = arena.size;
        let quiet = full && !changed && given == 0;
        trim.pause_ns = if quiet { (2 * trim.pause_ns).min(LONGEST_PAUSE) } else { SECOND };
        trim.due_ns = now() + trim.pause_ns;
        self.tell_drops()
    }

    // ---- waiting ----------------------------------------------------------------------------------------------------

    fn waits_credits(&mut self, arm: bool) -> bool {
        let Self { outputs, arena: Some(arena), .. } = self else {
            return false;
        };
        let mut waits = false;
        for output in outputs.iter_mut().filter(|output| output.wanted) {
            waits |= output.awaits(); // linking it is an event
            if output.end.state != State::Open || !output.blocks() {
                continue;
            }
            let goal = output.end.goal();
            let low = if goal.is_some() { output.end.is_low() } else { output.end.has_credit() };
            if low {
                continue;
            }
            waits |= !output.end.is_ready(goal, arena);
            if let Some(goal) = goal.filter(|_| arm) {
                output.end.arm(goal); // also when ready: a starving consumer may find a frame elsewhere
            }
        }
        waits
    }

    fn waits_room(&mut self, arm: bool) -> bool {
        let short_at = self.short_at;
        let (outputs, Some(arena)) = self.ends() else {
            return false;
        };
        if Some(arena.frees) != short_at {
            return false;
        }
        for output in outputs.filter(|output| output.end.returns()) {
            if output.end.is_latest() && output.end.outstanding() > 0 {
                return false; // it need not come back
            }
            if output.end.look(arena) != Some(0) {
                return false;
            }
            if arm && output.end.outstanding() > 0 {
                output.end.arm(output.end.next_return());
            }
        }
        true
    }

    /// Whether a send that was refused would be refused still.
    pub(crate) fn room_waits(&mut self, arm: bool) -> bool {
        if self.short_at.is_some() {
            self.waits_room(arm)
        } else {
            self.waits_credits(arm)
        }
    }

    pub(crate) fn disarm_outputs(&self) {
        let ends = self.outputs.iter().chain(&self.done).map(|output| &output.end);
        ends.filter(|end| end.returns()).for_each(|end| end.disarm());
    }

    fn holding_up(&self) -> impl Iterator<Item = &Output> {
        let short = self.short_at.is_some();
        self.outputs.iter().filter(move |output| {
            let open = output.wanted && output.end.state == State::Open && output.blocks();
            open && (short || !output.end.has_credit())
        })
    }

    pub(crate) fn count_sleeps(&self) {
        self.holding_up().for_each(|output| output.end.count(ring::SLEEPS, 1));
    }

    fn blocked_from(&self, now: u64) {
        let ends = self.holding_up().filter(|output| output.end.blocked_since() == 0);
        ends.for_each(|output| output.end.set_blocked_since(now));
    }

    fn blocked_until(&self, now: u64) {
        for output in self.outputs.iter().filter(|output| output.end.blocked_since() != 0) {
            output.end.count(ring::BLOCKED_NS, now - output.end.blocked_since());
            output.end.set_blocked_since(0);
        }
    }

    /// When the first output is to be given up, or `deadline`.
    fn patience(&self, deadline: Option<u64>) -> Option<u64> {
        let limited = self.outputs.iter().map(|output| &output.end);
        let limited = limited.filter(|end| end.state == State::Open && end.limit_ns > 0 && end.short_since > 0);
        limited.map(|end| end.short_since.saturating_add(end.limit_ns)).chain(deadline).min()
    }

    fn spin_for_room(&mut self) -> bool {
        let cap = self.wake.cap();
        if self.send_spin.ns == 0 || cap == 0 {
            return false;
        }
        let start = now();
        let until = start + self.send_spin.ns;
        loop {
            for _ in 0..8 {
                if !self.room_waits(false) {
                    self.send_spin.found(cap, now() - start);
                    return true;
                }
                std::hint::spin_loop();
            }
            if now() >= until {
                break;
            }
        }
        self.send_spin.missed(cap);
        false
    }

    /// Sleeps until a retry makes sense, or `until`.
    fn wait_once(&mut self, until: Option<u64>) -> Result<()> {
        if !self.room_waits(false) || self.spin_for_room() {
            return Ok(());
        }
        let waits = self.room_waits(true);
        fence(SeqCst); // partners: a return, and a consumer's nudge
        let mut heard = Ok(());
        if waits && self.room_waits(false) {
            let start = now();
            self.count_sleeps();
            heard = self.sleep_until(until);
            let cap = self.wake.cap();
            self.send_spin.slept(cap, (now() - start) / 4, false);
        }
        self.disarm_outputs();
        heard
    }

    /// Claims, waiting as the options say. A wait that is not wished for leaves word that an event is due.
    pub(crate) fn claim(&mut self, length: u64, options: &SendOptions<'_>) -> Result<Claim> {
        if let Attempt::Claimed(claim) = self.claim_try(options.to, length)? {
            return Ok(claim);
        }
        self.holding_up().for_each(|output| output.end.count(ring::WOULD_BLOCK, 1));
        let deadline = match options.wait {
            Wait::AtMost(limit) => Some(now().saturating_add(limit.as_nanos().min(u64::MAX.into()) as u64)),
            _ => None,
        };
        if options.wait != Wait::No {
            loop {
                self.blocked_from(now());
                let until = if self.short_at.is_some() { deadline } else { self.patience(deadline) };
                let heard = self.wait_once(until);
                self.blocked_until(now());
                self.pace.waited();
                heard?;
                if let Attempt::Claimed(claim) = self.claim_try(options.to, length)? {
                    return Ok(claim);
                }
                if deadline.is_some_and(|deadline| now() >= deadline) {
                    break;
                }
            }
        }
        self.wants_room = true;
        let what = if self.short_at.is_some() { "room" } else { "credit" };
        Err(Error::new(Kind::WouldBlock, format!("there is no {what} for {length} bytes now")))
    }
}
