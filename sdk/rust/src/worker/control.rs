//! What the daemon says about a worker's memory and routes: configure, extend, link, growth, ends.
//!
//! A message that does not fit is the daemon's fault and ends the worker; a peer's memory that does not fit is reported
//! by the route's name. Descriptors that came are closed once they are mapped.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use super::bus::Mail;
use super::ports::{count, malformed, name, text, Port};
use super::{Core, Life};
use crate::arena::{Arena, SegmentState};
use crate::error::{Code, Error, Result};
use crate::link::{message, Incoming};
use crate::value::Value;

/// Enough for small frames, cheap to make; larger frames make it grow at once.
const FIRST_SEGMENT: u64 = 1 << 18;
const ARENA_MIN: u64 = 1 << 16;
const ARENA_MAX: u64 = 1 << 43;

impl Core {
    // ---- the first configuration ------------------------------------------------------------------------------------

    fn make_arena(&mut self, limit: u64) -> Result<()> {
        if !(ARENA_MIN..=ARENA_MAX).contains(&limit) {
            return Err(Error::code_of(Code::MalformedMessage, format!("an arena of {limit} bytes cannot be")));
        }
        let arena =
            Arena::new(limit, limit.min(FIRST_SEGMENT)).map_err(|refusal| Error::refusal("the arena", refusal))?;
        self.trim = super::room::Trim::new(&arena);
        self.arena = Some(arena);
        if self.config.get("hugepages").as_bool() == Some(true) {
            return self.log("warning", "huge pages were asked for; workers in Rust run with small ones");
        }
        Ok(())
    }

    /// Makes the memory of the node's ends, and shows it.
    pub(crate) fn configure(&mut self) -> Result<()> {
        let config = self.config.clone();
        let limit = count(&config, "arena_limit", 1 << 30)?;
        self.budget_ns = count(&config, "budget_ns", 0)?;
        let (inputs, outputs) = (config.get("inputs").items(), config.get("outputs").items());
        self.is_source = inputs.is_empty();
        if !outputs.is_empty() {
            self.make_arena(limit)?;
        }
        let mut least = None;
        for port in outputs {
            let port = Port::read(port)?;
            self.output_make(&port, false)?;
            least = Some(least.map_or(port.resume, |least: u64| least.min(port.resume)));
        }
        self.resume_after = least.filter(|_| self.is_source).unwrap_or(0);
        self.item = self.resume_after;
        let stages = inputs.iter().map(|port| self.input_append(&Port::read(port)?)).collect::<Result<Vec<_>>>()?;
        let rings = (0..self.outputs.len()).collect::<Vec<_>>();
        self.offer(&rings, &stages, true)
    }

    /// Shows memory: the rings of these outputs, the credits of these stages, all segments.
    fn offer(&mut self, outputs: &[usize], stages: &[usize], segments: bool) -> Result<()> {
        let mut fds: Vec<OwnedFd> = Vec::new();
        let copy =
            |fd: &OwnedFd| fd.try_clone().map_err(|error| Error::code_of(Code::DaemonExhausted, error.to_string()));
        let (mut rings, mut credits, mut indices) = (Vec::new(), Vec::new(), Vec::new());
        for at in outputs {
            rings.push(Value::from(self.outputs[*at].names.route.as_str()));
            fds.push(copy(self.outputs[*at].end.ring_fd())?);
        }
        for id in stages {
            let Some(stage) = &self.stages[*id] else { continue };
            credits.push(Value::from(stage.name()));
            fds.push(copy(stage.end.credit_fd())?);
        }
        if let Some(arena) = self.arena.as_mut().filter(|_| segments) {
            for (index, segment) in arena.segments.iter_mut().enumerate() {
                let Some(map) = &segment.map else { continue };
                indices.push(Value::from(index));
                fds.push(copy(map.fd())?);
                segment.announced = true;
            }
        }
        let offer = message("offer").with("rings", rings).with("credits", credits).with("segments", indices);
        let borrowed: Vec<BorrowedFd<'_>> = fds.iter().map(AsFd::as_fd).collect();
        self.tell_state(&offer, &borrowed)
    }

    // ---- routes that come, change and go ----------------------------------------------------------------------------

    fn make_tap(&mut self, port: &Port) -> Result<usize> {
        let tapped = self.output_find(&port.tap_of).is_some_and(|at| !self.outputs[at].is_tap());
        if !tapped || self.output_find(&port.names.route).is_some() {
            let text = format!("{} is no output that could be listened to as {}", port.tap_of, port.names.route);
            return Err(Error::code_of(Code::MalformedMessage, text));
        }
        self.sweep_outputs();
        self.output_make(port, false)
    }

    /// Inputs and taps are made at once; other outputs change between two frames.
    fn extend(&mut self, extension: Value) -> Result<()> {
        let outputs = extension.get("outputs").items();
        let changes = outputs.iter().any(|port| port.get("tap_of").as_str().is_none_or(str::is_empty));
        if changes || !extension.get("leave").items().is_empty() {
            self.extensions.push_back(extension);
            return Ok(());
        }
        let taps = outputs.iter().map(|port| self.make_tap(&Port::read(port)?)).collect::<Result<Vec<_>>>()?;
        let inputs = extension.get("inputs").items();
        let stages = inputs.iter().map(|port| self.input_append(&Port::read(port)?)).collect::<Result<Vec<_>>>()?;
        self.offer(&taps, &stages, false)
    }

    fn is_busy(&self, extension: &Value) -> bool {
        let changed = extension.get("outputs").items().iter().map(|port| port.get("route"));
        let mut routes = changed.chain(extension.get("leave").items());
        routes.any(|route| {
            let found = route.as_str().and_then(|route| self.output_find(route));
            found.is_some_and(|at| self.outputs[at].end.reserved > 0)
        })
    }

    /// Between two frames: changes outputs, unless a frame is being filled that goes to one of them.
    pub(crate) fn reroute(&mut self) -> Result<()> {
        while let Some(extension) = self.extensions.pop_front() {
            if self.is_busy(&extension) {
                self.extensions.push_front(extension);
                break;
            }
            self.reroute_one(&extension)?;
        }
        Ok(())
    }

    fn reroute_one(&mut self, extension: &Value) -> Result<()> {
        if self.arena.is_none() {
            let text = "this node had no outputs and cannot get some while it runs";
            return Err(Error::code_of(Code::MalformedMessage, text));
        }
        let behind = self.outputs.iter().map(|output| output.resume).max().unwrap_or(0);
        let sent = if self.is_source { behind.max(self.item) } else { 0 };
        for route in extension.get("leave").items() {
            let found = route.as_str().and_then(|route| self.output_find(route));
            let Some(at) = found else {
                return Err(Error::code_of(Code::RouteUnknown, "this node has no output that it could leave so"));
            };
            let mut output = self.outputs.remove(at);
            output.end.close();
            self.done.push(output);
        }
        let mut made = Vec::new();
        for port in extension.get("outputs").items() {
            let mut port = Port::read(port)?;
            port.resume = sent;
            if let Some(at) = self.output_find(&port.names.route) {
                let before = self.outputs.remove(at);
                if port.epoch <= before.end.header.epoch {
                    let text = format!("output {}: its next stage is not behind the present one", port.names.route);
                    return Err(Error::code_of(Code::MalformedMessage, text));
                }
                port.base_seq = before.end.header.base_seq + before.end.position;
                port.resume = if self.is_source { self.item.max(before.resume) } else { sent };
                self.done.push(before);
            }
            let at = self.output_make(&port, true)?;
            made.push(self.outputs[at].id);
        }
        let places: Vec<usize> =
            made.iter().filter_map(|id| self.outputs.iter().position(|output| output.id == *id)).collect();
        self.offer(&places, &[], false)
    }

    // ---- link -------------------------------------------------------------------------------------------------------

    fn link_output(&mut self, route: &str, epoch: Option<u64>, credit: &OwnedFd, line: OwnedFd) -> Result<()> {
        let bell = self.bell.clone();
        let Self { outputs, done, arena: Some(arena), .. } = self else {
            return Err(unknown(route));
        };
        let meant = outputs
            .iter_mut()
            .chain(done.iter_mut())
            .find(|output| output.names.route == route && epoch.is_none_or(|epoch| epoch == output.end.header.epoch));
        match meant {
            Some(output) => {
                output.end.link(credit, line, &bell, arena).map_err(|refusal| Error::refusal(route, refusal))
            }
            None if epoch.is_some() => Ok(()), // that stage is over
            None => Err(unknown(route)),
        }
    }

    fn link_input(&mut self, link: &Value, fds: &mut impl Iterator<Item = OwnedFd>) -> Result<()> {
        let (route, epoch) = (name(link, "route")?.to_owned(), count(link, "epoch", 0)?);
        let segments = link.get("segments").items();
        let mut next = || fds.next().ok_or_else(|| malformed(link));
        let (ring, line) = (next()?, next()?);
        let maps = segments.iter().map(|_| next()).collect::<Result<Vec<_>>>()?;
        let inherits = link.get("predecessor").as_bool().unwrap_or(false);
        let predecessor = if inherits { Some(next()?) } else { None };
        let bell = self.bell.clone();
        let Some(stage) = self.stage_find(&route, epoch) else {
            return Ok(());
        };
        if Self::is_over(stage) {
            return Ok(());
        }
        let refuse = |refusal| Error::refusal(&route, refusal);
        for (index, map) in segments.iter().zip(&maps) {
            stage.end.map(index.as_u64().ok_or_else(|| malformed(link))?, map).map_err(refuse)?;
        }
        stage.end.link(&ring, line, &bell).map_err(refuse)?;
        if let Some(credit) = predecessor {
            stage.end.inherit(&credit).map_err(|refusal| {
                stage.told = true;
                refuse(refusal)
            })?;
        }
        Ok(())
    }

    /// Maps the other ends: for each output two descriptors, for each input two and its segments, perhaps one more.
    fn link_all(&mut self, incoming: Incoming) -> Result<Value> {
        let Incoming { message, fds } = incoming;
        let mut fds = fds.into_iter();
        let epochs = message.get("epochs").items();
        for (at, route) in message.get("outputs").items().iter().enumerate() {
            let route = route.as_str().ok_or_else(|| malformed(&message))?;
            let (Some(credit), Some(line)) = (fds.next(), fds.next()) else {
                return Err(malformed(&message));
            };
            self.link_output(route, epochs.get(at).and_then(Value::as_u64), &credit, line)?;
        }
        for link in message.get("inputs").items() {
            self.link_input(link, &mut fds)?;
        }
        Ok(message)
    }

    fn first_link(&mut self, incoming: Incoming) -> Result<()> {
        self.link_all(incoming)?;
        if let Some(output) = self.outputs.iter().find(|output| !output.end.is_linked()) {
            let text = format!("route {}: the daemon's link left it out", output.names.route);
            return Err(Error::code_of(Code::RouteDetached, text));
        }
        if self.survives {
            let _ = rustix::process::set_parent_process_death_signal(None);
            self.hold_streams(&[])?;
        }
        self.life = Life::Ready;
        self.tell(&message("ready"), &[])
    }

    fn further_link(&mut self, incoming: Incoming) -> Result<()> {
        let link = self.link_all(incoming)?;
        let inputs = link.get("inputs").items().iter().map(|input| input.get("route"));
        let routes: Vec<Value> = link.get("outputs").items().iter().chain(inputs).cloned().collect();
        self.tell_state(&message("linked").with("routes", routes), &[])
    }

    // ---- segments, ends ---------------------------------------------------------------------------------------------

    fn segment(&mut self, incoming: Incoming) -> Result<()> {
        let said = &incoming.message;
        let index = said.get("index").as_u64().ok_or_else(|| malformed(said))?;
        let (route, epoch) = (text(said, "route", "")?, count(said, "epoch", 0)?);
        let answer = |kind| message(kind).with("index", index).with("route", route).with("epoch", epoch);
        if incoming.kind() == "segment" {
            if let (Some(stage), Some(fd)) = (self.stage_find(route, epoch), incoming.fds.first()) {
                stage.end.map(index, fd).map_err(|refusal| Error::refusal(route, refusal))?;
            }
            return self.tell_state(&answer("segment-mapped"), &[]);
        }
        if !route.is_empty() && incoming.kind() == "segment-dropped" {
            if self.stage_find(route, epoch).is_some_and(|stage| !stage.end.unmap(index)) {
                return Ok(()); // the next take says so
            }
            return self.tell_state(&answer("segment-dropped"), &[]);
        }
        let known = |arena: &&mut Arena| index < arena.segments.len() as u64;
        if let Some(arena) = self.arena.as_mut().filter(known) {
            match incoming.kind() {
                "segment-mapped" => arena.confirm(index as usize),
                _ => arena.forget(index as usize),
            }
        }
        Ok(())
    }

    fn drained(&mut self, route: &str, epoch: u64) {
        let Self { done, arena: Some(arena), .. } = self else {
            return;
        };
        let found = done.iter().position(|output| output.names.route == route && output.end.header.epoch == epoch);
        if let Some(at) = found {
            done.swap_remove(at).end.destroy(arena);
        }
    }

    /// `detach` and `retract`.
    fn close_output(&mut self, route: &str) {
        if let Some(at) = self.output_find(route) {
            self.outputs[at].end.close();
            self.outputs[at].gone = self.outputs[at].is_tap();
            self.sweep_outputs();
        }
    }

    // ---- which message ----------------------------------------------------------------------------------------------

    pub(crate) fn handle(&mut self, incoming: Incoming) -> Result<()> {
        let said = &incoming.message;
        match incoming.kind() {
            "tick" => self.put_tick(incoming.message),
            "deliver" => self.put(Mail::Message(incoming.message)),
            "reply" | "request-failed" => self.answered(incoming.message),
            "ping" => {
                let id = said.get("id").as_u64().ok_or_else(|| malformed(said))?;
                self.tell_state(&message("pong").with("id", id).with("progress", self.steps), &[])
            }
            "segment" | "segment-mapped" | "segment-dropped" => self.segment(incoming),
            "conclude" => self.input_conclude(name(said, "route")?, count(said, "seq", 0)?),
            "drained" => {
                self.drained(name(said, "route")?, count(said, "epoch", 0)?);
                Ok(())
            }
            "detach" | "retract" => {
                self.close_output(name(said, "route")?);
                Ok(())
            }
            "extend" => self.extend(incoming.message),
            "link" if self.life == Life::Offered => self.first_link(incoming),
            "link" => self.further_link(incoming),
            "start" if self.life == Life::Ready => {
                self.handover = said.get("handover").clone();
                self.life = Life::Start;
                Ok(())
            }
            "drain" => {
                self.draining = true;
                Ok(())
            }
            "leave" => {
                (self.draining, self.leaves) = (true, true);
                let inputs = self.inputs.iter().filter_map(|input| self.stages[input.current].as_ref());
                self.leave_left = inputs.map(|stage| u64::from(stage.end.header.credits)).sum();
                Ok(())
            }
            "error" => {
                let code = said.get("code").as_u64().and_then(Code::of).unwrap_or(Code::Internal);
                Err(Error::code_of(code, text(said, "message", "the daemon refuses")?))
            }
            other => {
                let text = format!("a message of type {other} may not come to a worker that runs");
                Err(Error::code_of(Code::UnexpectedMessage, text))
            }
        }
    }

    /// Segments by state, for the next daemon.
    pub(crate) fn segments_of(&self, state: SegmentState) -> Vec<Value> {
        let segments = self.arena.iter().flat_map(|arena| arena.segments.iter().enumerate());
        segments.filter(|(_, segment)| segment.state == state).map(|(index, _)| Value::from(index)).collect()
    }
}

fn unknown(route: &str) -> Error {
    Error::code_of(Code::RouteUnknown, format!("{route} is no output of this node"))
}
