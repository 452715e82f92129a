//! Frames that come in: each route is a chain of stages, oldest first; of the routes' frames one is chosen.
//!
//! The highest class of service that has a frame goes first, for at most 8, 4, 2 and 1 takes of a round. Within a class
//! inputs take turns; once a frame with a deadline was seen, the earliest deadline goes first, but for every eighth take.

use std::collections::VecDeque;
use std::rc::Rc;

use super::ports::{Names, Port};
use super::Core;
use crate::abi::Header;
use crate::consumer::{Consumer, Look, State, Taken};
use crate::error::{Code, Error, Result};
use crate::link::message;
use crate::pace::NAP_FRAMES;

pub(crate) const CLASSES: usize = 4;
const QUOTAS: [u32; CLASSES] = [1, 2, 4, 8];
const BY_TURN: u32 = 8;
/// Looks for deadlines that show none, until they are not looked for.
const PATIENCE: u32 = 256;
/// Copies in a row that are overwritten, until the caller gets a turn.
const TORN_MAX: u32 = 64;

/// A route's time with one RING.
pub(crate) struct Stage {
    pub(crate) end: Consumer,
    /// What the next daemon has to know.
    pub(crate) resume: u64,
    route: Rc<Names>,
    /// The input has gone on: drained when its frames are back.
    left: bool,
    /// Its fault was told.
    pub(crate) told: bool,
}

pub(crate) struct Input {
    pub(crate) names: Rc<Names>,
    /// In `Core::stages`, oldest first.
    pub(crate) stages: VecDeque<usize>,
    pub(crate) current: usize,
    class: usize,
    concluded: bool,
}

/// A frame that was taken.
pub(crate) struct RawFrame {
    pub(crate) taken: Taken,
    pub(crate) names: Rc<Names>,
    pub(crate) stage: usize,
    /// Policy latest: its bytes.
    pub(crate) copy: Option<Vec<u8>>,
}

pub(crate) enum Scan {
    Found(RawFrame),
    Nothing,
    Ended,
    Torn,
}

/// Whose turn it is.
#[derive(Default)]
pub(crate) struct Turns {
    next: [usize; CLASSES],
    left: [u32; CLASSES],
    deadlines: [u32; CLASSES],
    takes: [u32; CLASSES],
}

impl Core {
    pub(crate) fn input_find(&self, route: &str) -> Option<usize> {
        self.inputs.iter().position(|input| input.names.route == route)
    }

    pub(crate) fn stage(&mut self, id: usize) -> Option<&mut Stage> {
        self.stages.get_mut(id).and_then(Option::as_mut)
    }

    /// The stage of that number, if it is not drained.
    pub(crate) fn stage_find(&mut self, route: &str, epoch: u64) -> Option<&mut Stage> {
        let input = &self.inputs[self.input_find(route)?];
        let id = input
            .stages
            .iter()
            .copied()
            .find(|id| self.stages[*id].as_ref().is_some_and(|stage| stage.end.header.epoch == epoch))?;
        self.stage(id)
    }

    /// A further stage of an input, which ends the one before it; or a new input.
    pub(crate) fn input_append(&mut self, port: &Port) -> Result<usize> {
        let found = self.input_find(&port.names.route);
        let before = found.and_then(|at| self.inputs[at].stages.back().copied());
        if let Some(stage) = before.and_then(|id| self.stage(id)) {
            let header = stage.end.header;
            if port.epoch <= header.epoch || port.base_seq < header.base_seq {
                let text = format!("route {}: a stage of epoch {} cannot follow", port.names.route, port.epoch);
                return Err(Error::code_of(Code::MalformedMessage, text));
            }
            if !stage.end.end_at(port.base_seq - header.base_seq) {
                stage.told = true;
                return Err(Error::code_of(
                    Code::RouteDetached,
                    format!("route {}: {}", port.names.route, stage.end.why),
                ));
            }
        }
        let end = Consumer::new(Header::credit(port.epoch, port.base_seq, port.credits))
            .map_err(|refusal| Error::refusal(&port.names.route, refusal))?;
        let stage = Stage { end, resume: port.resume, route: port.names.clone(), left: false, told: false };
        let id = self.stages.iter().position(Option::is_none).unwrap_or(self.stages.len());
        if id == self.stages.len() {
            self.stages.push(None);
        }
        self.stages[id] = Some(stage);
        match found {
            Some(at) => {
                let input = &mut self.inputs[at];
                input.stages.push_back(id);
                (input.class, input.concluded) = (port.class, false);
            }
            None => self.inputs.push(Input {
                names: port.names.clone(),
                stages: VecDeque::from([id]),
                current: id,
                class: port.class,
                concluded: false,
            }),
        }
        Ok(id)
    }

    /// Nothing follows: the input ends at `seq`.
    pub(crate) fn input_conclude(&mut self, route: &str, seq: u64) -> Result<()> {
        let last = self.input_find(route).and_then(|at| {
            let input = &mut self.inputs[at];
            input.concluded = true;
            input.stages.back().copied()
        });
        let Some(stage) = last.and_then(|id| self.stage(id)) else {
            return Err(Error::code_of(Code::RouteUnknown, format!("{route} is no input of this node")));
        };
        let Some(end) = seq.checked_sub(stage.end.header.base_seq) else {
            return Err(Error::code_of(Code::MalformedMessage, format!("route {route} is concluded before it began")));
        };
        if stage.end.end_at(end) {
            return Ok(());
        }
        stage.told = true;
        Err(Error::code_of(Code::RouteDetached, format!("route {route}: {}", stage.end.why)))
    }

    /// Unmaps the stages that were left and whose frames are all back, oldest first; the input goes with its last stage
    /// if nothing follows.
    pub(crate) fn settle(&mut self, at: usize) {
        while let Some(&id) = self.inputs[at].stages.front() {
            let Some(stage) = self.stages[id].take_if(|stage| stage.left && stage.end.held() == 0) else {
                break;
            };
            let input = &mut self.inputs[at];
            input.stages.pop_front();
            if let Some(next) = input.stages.front().filter(|_| input.current == id) {
                input.current = *next;
            }
            let drained =
                message("drained").with("route", stage.route.route.as_str()).with("epoch", stage.end.header.epoch);
            let _ = self.tell_state(&drained, &[]); // a broken connection is found by who reads it
        }
        if self.inputs[at].stages.is_empty() && self.inputs[at].concluded {
            self.inputs.remove(at);
            self.turns.next = [0; CLASSES];
        }
    }

    /// The present stage has ended: go on with the next one. False: there is none, or the route is over.
    fn advance(&mut self, at: usize) -> bool {
        let input = &mut self.inputs[at];
        let id = input.current;
        let next = input.stages.iter().skip_while(|other| **other != id).nth(1).copied();
        let concluded = input.concluded;
        if let Some(next) = next {
            input.current = next;
        }
        if next.is_some() || concluded {
            if let Some(stage) = self.stage(id) {
                stage.left = true;
            }
            self.settle(at);
        }
        next.is_some()
    }

    fn input_take(&mut self, at: usize) -> Result<Scan> {
        for _ in 0..TORN_MAX {
            let id = self.inputs[at].current;
            let Some(stage) = self.stages[id].as_mut() else {
                return Ok(Scan::Ended);
            };
            match stage.end.look() {
                Ok(Look::Empty) => return Ok(Scan::Nothing),
                Ok(Look::Torn) => return Ok(Scan::Torn),
                Ok(Look::Ended) => {
                    if !self.advance(at) {
                        return Ok(Scan::Ended);
                    }
                }
                Ok(Look::Frame(mut taken)) if !stage.end.is_latest() => {
                    stage.end.step(&mut taken);
                    let names = self.inputs[at].names.clone();
                    return Ok(Scan::Found(RawFrame { taken, names, stage: id, copy: None }));
                }
                Ok(Look::Frame(mut taken)) => {
                    let mut copy = self.buffers.pop().unwrap_or_default();
                    if stage.end.copy(&mut taken, &mut copy) {
                        let names = self.inputs[at].names.clone();
                        return Ok(Scan::Found(RawFrame { taken, names, stage: id, copy: Some(copy) }));
                    }
                    self.buffers.push(copy);
                }
                Err(()) if stage.told => return Ok(Scan::Ended),
                Err(()) => {
                    stage.told = true;
                    let text = format!("route {}: {}", stage.route.route, stage.end.why);
                    return Err(Error::code_of(Code::RouteDetached, text));
                }
            }
        }
        Ok(Scan::Torn)
    }

    fn take_by_turn(&mut self, class: usize) -> Result<Scan> {
        let (count, from) = (self.inputs.len(), self.turns.next[class]);
        let mut result = Scan::Ended;
        for looks in 0..count {
            let at = (from + looks) % count;
            if self.inputs[at].class != class {
                continue;
            }
            match self.input_take(at) {
                Ok(Scan::Found(frame)) => {
                    self.turns.next[class] = (at + 1) % count;
                    if frame.taken.deadline_ns != 0 {
                        self.turns.deadlines[class] = PATIENCE;
                    }
                    return Ok(Scan::Found(frame));
                }
                Err(error) => {
                    self.turns.next[class] = (at + 1) % count;
                    return Err(error);
                }
                Ok(Scan::Ended) if self.inputs.len() != count => return Ok(Scan::Torn), // a route is over: look again
                Ok(Scan::Ended) => {}
                Ok(other) => result = other,
            }
        }
        Ok(result)
    }

    fn take_by_deadline(&mut self, class: usize) -> Result<Scan> {
        let (count, from) = (self.inputs.len(), self.turns.next[class]);
        let mut best: Option<(usize, u64)> = None;
        self.turns.deadlines[class] -= 1;
        for looks in 0..count {
            let at = (from + looks) % count;
            if self.inputs[at].class != class {
                continue;
            }
            let current = self.inputs[at].current;
            let Some(Ok(Look::Frame(seen))) = self.stage(current).map(|stage| stage.end.look()) else {
                continue;
            };
            if seen.deadline_ns != 0 {
                self.turns.deadlines[class] = PATIENCE;
            }
            let due = if seen.deadline_ns == 0 { u64::MAX } else { seen.deadline_ns };
            if best.is_none_or(|(_, earliest)| due < earliest) {
                best = Some((at, due));
            }
        }
        let Some((at, _)) = best else {
            return self.take_by_turn(class);
        };
        self.turns.next[class] = (at + 1) % count;
        self.input_take(at)
    }

    fn take_of_class(&mut self, class: usize) -> Result<Scan> {
        if self.turns.deadlines[class] > 0 {
            self.turns.takes[class] = self.turns.takes[class].wrapping_add(1);
            if !self.turns.takes[class].is_multiple_of(BY_TURN) {
                return self.take_by_deadline(class);
            }
        }
        self.take_by_turn(class)
    }

    /// The next frame of all inputs.
    pub(crate) fn scan(&mut self) -> Result<Scan> {
        if self.inputs.len() == 1 {
            return self.input_take(0);
        }
        loop {
            let (mut result, mut spent) = (Scan::Ended, false);
            for class in (0..CLASSES).rev() {
                if !self.inputs.iter().any(|input| input.class == class) {
                    continue;
                }
                if self.turns.left[class] == 0 {
                    spent = true;
                    continue;
                }
                match self.take_of_class(class)? {
                    Scan::Found(frame) => {
                        self.turns.left[class] -= 1;
                        return Ok(Scan::Found(frame));
                    }
                    Scan::Ended => {}
                    other => result = other,
                }
            }
            if !spent {
                return Ok(result);
            }
            self.turns.left = QUOTAS;
        }
    }

    /// Gives a frame back.
    pub(crate) fn release(&mut self, id: usize, stamp: u64, copy: Option<Vec<u8>>) {
        if let Some(copy) = copy {
            self.buffers.push(copy);
            return;
        }
        let Some(stage) = self.stages[id].as_mut() else { return };
        stage.end.give_back(stamp);
        if stage.left {
            let route = stage.route.clone();
            if let Some(at) = self.input_find(&route.route) {
                self.settle(at);
            }
        }
    }

    // ---- waiting ----------------------------------------------------------------------------------------------------

    fn current(&self) -> impl Iterator<Item = &Consumer> {
        self.inputs.iter().filter_map(|input| self.stages[input.current].as_ref()).map(|stage| &stage.end)
    }

    /// A worker that may be answering takes no nap, nor one of a class above normal.
    pub(crate) fn naps(&self) -> bool {
        self.taken >= NAP_FRAMES * (self.commits - self.commits_before)
            && !self.inputs.is_empty()
            && self.inputs.iter().all(|input| input.class <= 1)
            && self.current().all(Consumer::may_nap)
    }

    /// Publishes the positions waited for; how long the sleep may last. The caller issues the fence.
    pub(crate) fn arm_inputs(&self, naps: bool) -> Option<u64> {
        let arm = |end: &Consumer| {
            if naps {
                return end.arm_nap();
            }
            end.arm();
            None
        };
        self.current().filter_map(arm).min()
    }

    pub(crate) fn nudge_inputs(&self) {
        self.current().for_each(Consumer::nudge);
    }

    pub(crate) fn disarm_inputs(&self) {
        self.current().for_each(Consumer::disarm);
    }

    /// Detaches from all inputs.
    pub(crate) fn close_inputs(&mut self) {
        self.stages.iter_mut().flatten().for_each(|stage| stage.end.close());
    }

    /// Whether a stage is the consumer's business no more.
    pub(crate) fn is_over(stage: &Stage) -> bool {
        stage.end.is_void()
    }

    /// Whether an input may still bring frames.
    pub(crate) fn input_is_open(&self, at: usize) -> bool {
        let input = &self.inputs[at];
        let stage = self.stages[input.current].as_ref();
        stage.is_some_and(|stage| matches!(stage.end.state, State::Unlinked | State::Open))
            || input.stages.back() != Some(&input.current)
    }
}

impl Stage {
    pub(crate) fn name(&self) -> &str {
        &self.route.route
    }
}
