//! Frames that go out: claimed (a credit of every output that is to get it, and an extent), filled, then committed.
//!
//! Claiming decides everything that can fail, and changes nothing until all of it is certain; committing never waits. A
//! frame is written once, whatever the number of outputs and taps. An output that has ended is left out; when none is
//! left the sender is told.
//!
//! This file is longer than 400 lines because the options of a send are read as one with the claim that they decide.

use std::rc::Rc;
use std::time::Duration;

use super::ports::{Names, Port};
use super::{Core, Origin};
use crate::abi::{ring, Header, Policy, NOTED, NOTES, PAGE, REDELIVERED};
use crate::arena::Extent;
use crate::error::{Code, Error, Kind, Result};
use crate::link::message;
use crate::pace::now;
use crate::producer::{Producer, State, Tags};

/// Slots that are looked at before a frame of a page or more, so that a warm extent is used again.
const REUSE_LOOK: u32 = 64;

/// How long a send waits for credits and room.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wait {
    /// Until there is some.
    #[default]
    Forever,
    /// So long at most.
    AtMost(Duration),
    /// Not at all.
    No,
}

/// How a frame is sent. By default: to every output, waiting for ever.
#[derive(Clone, Debug, Default)]
pub struct SendOptions<'a> {
    pub(crate) to: Option<&'a str>,
    pub(crate) from: Option<Origin>,
    pub(crate) wait: Wait,
    pub(crate) tags: Tags,
    pub(crate) meta: &'a [u8],
    pub(crate) stamp_ns: i64,
}

impl<'a> SendOptions<'a> {
    /// To every output, waiting for ever.
    pub fn new() -> Self {
        Self::default()
    }

    /// Only to outputs of this node, route or topic.
    #[must_use]
    pub fn to(mut self, to: &'a str) -> Self {
        self.to = Some(to);
        self
    }

    /// Made of this frame: its number, deadline and mark are carried on.
    #[must_use]
    pub fn from(mut self, frame: &crate::Frame<'_>) -> Self {
        self.from = Some(frame.origin());
        self
    }

    /// How long to wait for credits and room.
    #[must_use]
    pub fn wait(mut self, wait: Wait) -> Self {
        self.wait = wait;
        self
    }

    /// When it is due, on CLOCK_MONOTONIC in ns; 0: whenever.
    #[must_use]
    pub fn deadline_ns(mut self, at: u64) -> Self {
        self.tags.deadline_ns = at;
        self
    }

    /// A number that is carried along.
    #[must_use]
    pub fn trace(mut self, trace: u64) -> Self {
        self.tags.trace = trace;
        self
    }

    /// A number of the application's.
    #[must_use]
    pub fn schema(mut self, schema: u32) -> Self {
        self.tags.schema = schema;
        self
    }

    /// Metadata: one map in CBOR.
    #[must_use]
    pub fn meta(mut self, meta: &'a [u8]) -> Self {
        self.meta = meta;
        self
    }

    /// A time of the sender's own.
    #[must_use]
    pub fn stamp_ns(mut self, stamp: i64) -> Self {
        self.stamp_ns = stamp;
        self
    }

    pub(crate) fn notes(&self) -> usize {
        if self.meta.is_empty() && self.stamp_ns == 0 {
            0
        } else {
            self.meta.len() + NOTES as usize
        }
    }

    /// The bytes behind the payload.
    pub(crate) fn write_notes(&self, to: &mut [u8]) {
        let (meta, notes) = to.split_at_mut(self.meta.len());
        meta.copy_from_slice(self.meta);
        notes[..8].copy_from_slice(&self.stamp_ns.to_le_bytes());
        notes[8..12].copy_from_slice(&(self.meta.len() as u32).to_le_bytes());
        notes[12..].fill(0);
    }
}

pub(crate) struct Output {
    pub(crate) id: u64,
    pub(crate) names: Rc<Names>,
    pub(crate) tap_of: String,
    pub(crate) end: Producer,
    pub(crate) resume: u64,
    told: bool,
    /// Frames for it wait until it is linked.
    later: bool,
    /// A send waits for it.
    pub(crate) wanted: bool,
    /// A tap that has ended: freed when no loan needs it.
    pub(crate) gone: bool,
}

impl Output {
    pub(crate) fn is_tap(&self) -> bool {
        !self.tap_of.is_empty()
    }

    pub(crate) fn awaits(&self) -> bool {
        self.later && self.end.state == State::Unlinked
    }

    fn has_name(&self, to: &str) -> bool {
        self.names.peer == to || self.names.route == to || self.names.topic == to
    }

    pub(crate) fn blocks(&self) -> bool {
        self.end.header.policy == Policy::Block
    }
}

/// A frame on its way out: its extent and the outputs that have promised a credit.
pub(crate) struct Claim {
    pub(crate) extent: Extent,
    pub(crate) length: u64,
    outputs: Vec<u64>,
    dropped: bool,
    no_room: bool,
}

pub(crate) enum Attempt {
    Claimed(Claim),
    /// An output that must get it has no credit, or there is no room: `Core::short_at` tells.
    Again,
}

impl Core {
    pub(crate) fn output_find(&self, route: &str) -> Option<usize> {
        self.outputs.iter().position(|output| output.names.route == route)
    }

    pub(crate) fn output_make(&mut self, port: &Port, later: bool) -> Result<usize> {
        let Port { epoch, base_seq, credits, watermark, credit_low, policy, .. } = *port;
        let mut end = Producer::new(Header::ring(epoch, base_seq, credits, watermark, credit_low, policy))
            .map_err(|refusal| Error::refusal(&port.names.route, refusal))?;
        end.limit_ns = port.limit_ns;
        end.resume = if self.is_source { port.resume } else { 0 };
        self.output_count += 1;
        self.outputs.push(Output {
            id: self.output_count,
            names: port.names.clone(),
            tap_of: port.tap_of.clone(),
            end,
            resume: port.resume,
            told: false,
            later,
            wanted: false,
            gone: false,
        });
        Ok(self.outputs.len() - 1)
    }

    /// Frees taps that have ended and are in no loan.
    pub(crate) fn sweep_outputs(&mut self) {
        let mut at = 0;
        while at < self.outputs.len() {
            if self.outputs[at].gone && self.outputs[at].end.reserved == 0 {
                let output = self.outputs.remove(at);
                if let Some(arena) = &mut self.arena {
                    output.end.destroy(arena);
                }
            } else {
                at += 1;
            }
        }
    }

    pub(crate) fn is_meant(&self, at: usize, to: Option<&str>) -> bool {
        let Some(to) = to else { return true };
        let output = &self.outputs[at];
        if output.is_tap() {
            return self.output_find(&output.tap_of).is_some_and(|tapped| self.outputs[tapped].has_name(to));
        }
        output.has_name(to)
    }

    /// Closes a route on which a frame has waited for longer than its limit; the others go on without it.
    fn give_up(&mut self, at: usize, now: u64) -> Result<()> {
        let waited = self.outputs[at].end.give_up(now);
        let text = message("gave-up").with("route", self.outputs[at].names.route.as_str()).with("waited_ns", waited);
        self.tell(&text, &[])
    }

    fn route_fault(&mut self, at: usize) -> Error {
        let output = &mut self.outputs[at];
        output.told = true;
        Error::code_of(Code::RouteDetached, format!("route {}: {}", output.names.route, output.end.why))
    }

    /// Whether a route that is meant takes frames. What a peer has done is told once.
    fn find_alive(&mut self, to: Option<&str>) -> Result<()> {
        let (mut alive, mut any) = (false, false);
        for at in 0..self.outputs.len() {
            if !self.is_meant(at, to) {
                continue;
            }
            let state = self.outputs[at].end.check();
            let output = &self.outputs[at];
            if output.is_tap() {
                continue;
            }
            any = true;
            if state == State::Faulty && !output.told {
                return Err(self.route_fault(at));
            }
            alive |= state == State::Open || output.awaits();
        }
        match to {
            _ if alive => Ok(()),
            Some(to) if !any => Err(Error::code_of(Code::RouteUnknown, format!("{to} is no output of this node"))),
            _ => Err(Error::new(Kind::Gone, if any { "no consumer is left" } else { "this node has no outputs" })),
        }
    }

    /// The outputs that have a credit for this frame. False: one that must get it has none.
    fn claim_credits(&mut self, to: Option<&str>, claim: &mut Claim) -> Result<bool> {
        let mut complete = true;
        for at in 0..self.outputs.len() {
            self.outputs[at].wanted = false;
            if !self.is_meant(at, to) {
                continue;
            }
            let Self { outputs, arena: Some(arena), .. } = self else {
                break;
            };
            let output = &mut outputs[at];
            if output.awaits() {
                output.wanted = true;
                complete = false;
            }
            if output.end.state != State::Open {
                continue;
            }
            let sound = if !output.end.has_credit() {
                output.end.reclaim(u32::MAX, arena)
            } else {
                claim.length < PAGE || output.end.reclaim(REUSE_LOOK, arena)
            };
            if !sound && output.is_tap() {
                continue;
            }
            if !sound {
                return Err(self.route_fault(at));
            }
            if output.end.has_credit() {
                output.end.short_since = 0;
                claim.outputs.push(output.id);
            } else if output.blocks() {
                let now = if output.end.limit_ns > 0 { now() } else { 0 };
                if output.end.is_short(now) {
                    self.give_up(at, now)?;
                } else {
                    output.wanted = true;
                    complete = false;
                }
            }
        }
        Ok(complete)
    }

    /// One attempt.
    pub(crate) fn claim_try(&mut self, to: Option<&str>, length: u64) -> Result<Attempt> {
        self.short_at = None;
        self.find_alive(to)?;
        let outputs = self.claims.pop().unwrap_or_default();
        let mut claim = Claim { extent: Extent::NONE, length, outputs, dropped: false, no_room: false };
        claim.outputs.clear();
        if !self.claim_credits(to, &mut claim)? {
            self.claims.push(claim.outputs);
            return Ok(Attempt::Again);
        }
        if claim.outputs.is_empty() {
            claim.dropped = true;
            self.find_alive(to)?;
            return Ok(Attempt::Claimed(claim));
        }
        match self.make_room(length)? {
            Some(extent) => claim.extent = extent,
            None => {
                let must = |output: &Output| claim.outputs.contains(&output.id) && output.blocks();
                if self.outputs.iter().any(must) {
                    for output in &mut self.outputs {
                        output.wanted = claim.outputs.contains(&output.id);
                    }
                    self.claims.push(claim.outputs);
                    return Ok(Attempt::Again);
                }
                claim.outputs.clear(); // all of them may drop it
                (claim.dropped, claim.no_room) = (true, true);
                return Ok(Attempt::Claimed(claim));
            }
        }
        self.short_at = None;
        for output in self.outputs.iter_mut().filter(|output| claim.outputs.contains(&output.id)) {
            output.end.reserved += 1;
        }
        Ok(Attempt::Claimed(claim))
    }

    pub(crate) fn claim_cancel(&mut self, claim: Claim) {
        for output in self.outputs.iter_mut().filter(|output| claim.outputs.contains(&output.id)) {
            output.end.reserved -= 1;
        }
        if let Some(arena) = &mut self.arena {
            arena.drop_one(&claim.extent);
        }
        self.claims.push(claim.outputs);
    }

    /// Counts the frame on each output that does not get it, by its reason.
    fn count_lost(&mut self, to: Option<&str>, claim: &Claim) {
        for at in 0..self.outputs.len() {
            let output = &self.outputs[at];
            let state = output.end.state;
            let lost = matches!(state, State::Open | State::GivenUp) && !claim.outputs.contains(&output.id);
            if !lost || !self.is_meant(at, to) {
                continue;
            }
            let word = match state {
                State::GivenUp => ring::GIVEN_UP,
                _ if claim.no_room => ring::NO_ROOM,
                _ => ring::DROPPED,
            };
            output.end.count(word, 1);
        }
    }

    fn tags(&mut self, options: &SendOptions<'_>, now: u64) -> Tags {
        let mut tags = options.tags;
        let sooner = |at: u64, other: u64| {
            if at == 0 || (other != 0 && other < at) {
                other
            } else {
                at
            }
        };
        if let Some(from) = options.from.or(self.handled) {
            tags.input_seq = from.seq;
            tags.flags |= if from.redelivered { REDELIVERED } else { 0 };
            tags.deadline_ns = sooner(tags.deadline_ns, from.deadline_ns);
        } else if self.is_source {
            self.item += 1;
            tags.input_seq = self.item;
        }
        if self.budget_ns > 0 {
            tags.deadline_ns = sooner(tags.deadline_ns, now + self.budget_ns);
        }
        tags
    }

    /// Publishes to every claimed output that is still open, then rings those that sleep.
    pub(crate) fn claim_commit(&mut self, mut claim: Claim, length: u64, options: &SendOptions<'_>) -> Result<()> {
        let now = now();
        if self.outputs.len() > claim.outputs.len() {
            self.count_lost(options.to, &claim);
        }
        let mut tags = self.tags(options, now);
        if options.notes() > 0 {
            tags.flags |= NOTED;
        }
        let Self { outputs, arena: Some(arena), .. } = self else {
            return Ok(());
        };
        for output in outputs.iter_mut() {
            let Some(at) = claim.outputs.iter().position(|id| *id == output.id) else {
                continue;
            };
            output.end.reserved -= 1;
            if output.end.state != State::Open {
                claim.outputs.swap_remove(at);
            }
        }
        let open = claim.outputs.len() as u32;
        if open == 0 {
            arena.drop_one(&claim.extent);
            let dropped = claim.dropped;
            self.claims.push(claim.outputs);
            return if dropped { Ok(()) } else { self.find_alive(options.to) };
        }
        arena.share(&claim.extent, open - 1);
        self.commits += 1;
        let mut rings = 0u32;
        let ids = &mut claim.outputs;
        for output in outputs.iter_mut() {
            let Some(at) = ids.iter().position(|id| *id == output.id) else {
                continue;
            };
            if output.end.commit(&claim.extent, length, &tags, now, arena) {
                rings += 1;
            } else {
                ids[at] = 0; // no output has that number
            }
        }
        if self.pace.commit(now) {
            let nap = self.pace.nap(self.outputs.len());
            self.outputs.iter().for_each(|output| output.end.propose_nap(nap));
        }
        if rings > 0 {
            let asleep = self.outputs.iter().filter(|output| claim.outputs.contains(&output.id));
            asleep.for_each(|output| output.end.ring_consumer());
            self.rings += 1;
            self.pace.rang(now, crate::pace::now());
        }
        self.claims.push(claim.outputs);
        Ok(())
    }
}
