//! A worker that outlives its daemon (`on_daemon_loss: survive`): it goes on, and reattaches to the next one.
//!
//! ```text
//! Present ─ the socket ends ─▶ Absent ─ connected, hello ─▶ Greeting ─ welcome, reattach ─▶ Showing ─ reattached ─▶ Present
//! ```
//!
//! None of it waits: each step is taken when an answer comes or a timer is due, while data flows on. What the worker says
//! meanwhile is kept, bounded, and what finds no room is counted and told; what the next daemon learns from how things
//! stand is not kept, unless it changes after they were shown. Whoever listens where the daemon did as another user than
//! that, or root, is told nothing.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{hello, Core, Life};
use crate::arena::SegmentState;
use crate::error::{Code, Error, Result};
use crate::link::{frame, message, Incoming, Link};
use crate::memory::system::unread;
use crate::pace::now;
use crate::value::Value;

const MS: u64 = 1_000_000;
const FIRST_PAUSE: u64 = 10 * MS;
const LONGEST_PAUSE: u64 = 1000 * MS;
const ANSWER: u64 = 10_000 * MS;
const KEPT_MAX: usize = 4 << 20;

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) enum Presence {
    #[default]
    Present,
    Absent,
    Greeting,
    Showing,
}

/// What waits for the next daemon.
#[derive(Default)]
pub(crate) struct Absence {
    pub(crate) presence: Presence,
    kept: std::collections::VecDeque<(Vec<u8>, Vec<OwnedFd>)>,
    bytes: usize,
    dropped: u64,
    pause_ns: u64,
    pub(crate) retry_ns: u64,
    /// As which user the daemon ran.
    user: u32,
}

fn not_held(error: rustix::io::Errno) -> Error {
    Error::code_of(Code::Internal, format!("stdout and stderr cannot be kept open: {error}"))
}

impl Absence {
    /// Of a worker whose daemon runs as that user.
    pub(crate) fn of(user: u32) -> Self {
        Self { user, ..Self::default() }
    }
}

impl Core {
    /// Keeps a message for the next daemon. `state`: it learns that from how things stand.
    pub(crate) fn keep(&mut self, frame: Vec<u8>, fds: &[BorrowedFd<'_>], state: bool) -> Result<()> {
        let absence = &mut self.absence;
        if state && absence.presence != Presence::Showing {
            return Ok(());
        }
        if absence.bytes + frame.len() > KEPT_MAX {
            absence.dropped += 1;
            return Ok(());
        }
        let copy = |fd: &BorrowedFd<'_>| fd.try_clone_to_owned();
        let fds = fds.iter().map(copy).collect::<std::io::Result<Vec<_>>>();
        let fds = fds.map_err(|error| Error::code_of(Code::DaemonExhausted, error.to_string()))?;
        absence.bytes += frame.len();
        absence.kept.push_back((frame, fds));
        Ok(())
    }

    // ---- who it is, and all its memory ------------------------------------------------------------------------------

    fn show(&mut self) -> Result<()> {
        let copy =
            |fd: &OwnedFd| fd.try_clone().map_err(|error| Error::code_of(Code::DaemonExhausted, error.to_string()));
        let mut fds = Vec::new();
        let (mut outputs, mut inputs, mut segments) = (Vec::new(), Vec::new(), Vec::new());
        let present = self.outputs.iter().filter(|output| !output.is_tap()).map(|output| (output, output.resume));
        let before = self.done.iter().filter(|output| self.output_find(&output.names.route).is_some());
        for (output, resume) in present.chain(before.map(|output| (output, 0))) {
            let stage = Value::map().with("route", output.names.route.as_str()).with("epoch", output.end.header.epoch);
            outputs.push(stage.with("linked", output.end.is_linked()).with("resume", resume));
            fds.push(copy(output.end.ring_fd())?);
        }
        for id in self.inputs.iter().flat_map(|input| &input.stages) {
            let Some(stage) = &self.stages[*id] else { continue };
            let mapped: Vec<Value> = stage.end.mapped().map(Value::from).collect();
            let shown = Value::map().with("route", stage.name()).with("epoch", stage.end.header.epoch);
            let linked = stage.end.is_linked() || stage.end.is_void();
            inputs.push(shown.with("linked", linked).with("resume", stage.resume).with("segments", mapped));
            fds.push(copy(stage.end.credit_fd())?);
        }
        for (index, segment) in self.arena.iter().flat_map(|arena| arena.segments.iter().enumerate()) {
            if let Some(map) = &segment.map {
                segments.push(Value::from(index));
                fds.push(copy(map.fd())?);
            }
        }
        let pipes = self.streams.shown().map_err(not_held)?;
        let shows_pipes = !pipes.is_empty();
        fds.extend(pipes);
        let state = match self.life {
            life if life < Life::Started => "starting",
            _ if self.draining => "draining",
            _ => "started",
        };
        let config = |key: &str| self.config.get(key).clone();
        let shown = message("reattach").with("flow", config("flow")).with("node", config("node"));
        let shown = shown.with("token", config("token").as_str().unwrap_or("")).with("state", state);
        let shown = shown.with("incarnation", config("incarnation").as_u64().unwrap_or(0)).with("outputs", outputs);
        let shown = shown.with("inputs", inputs).with("segments", segments);
        let shown = shown.with("unconfirmed", self.segments_of(SegmentState::Made));
        let shown = shown.with("dropped", self.segments_of(SegmentState::Dropped)).with("pipes", shows_pipes);
        self.send_now(&shown, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>())?;
        self.absence.presence = Presence::Showing;
        Ok(())
    }

    fn send_now(&self, message: &Value, fds: &[BorrowedFd<'_>]) -> Result<()> {
        let gone = || Error::code_of(Code::ConnectionLost, "there is no daemon");
        let link = self.link.as_ref().ok_or_else(gone)?;
        link.send(&frame(message, link.frames.limit)?, fds).map_err(|_| gone())
    }

    // ---- the steps --------------------------------------------------------------------------------------------------

    fn plan_retry(&mut self, in_ns: u64) {
        self.absence.retry_ns = now() + in_ns + 1;
        self.set_timer();
    }

    /// The daemon is gone, or this one is no good: try again, at first at once, then with pauses.
    pub(crate) fn begin_absence(&mut self) -> Result<()> {
        let first = self.absence.presence == Presence::Present;
        self.absence.presence = Presence::Absent;
        self.link = None;
        let pause = if first { 0 } else { self.absence.pause_ns };
        self.plan_retry(pause);
        self.absence.pause_ns = if pause == 0 { FIRST_PAUSE } else { (2 * pause).min(LONGEST_PAUSE) };
        if !first {
            return Ok(());
        }
        self.streams.begin();
        for output in self.outputs.iter_mut().filter(|output| output.is_tap()) {
            output.end.close(); // who listened did so by way of the daemon that is gone
            output.gone = true;
        }
        self.abandon_requests()
    }

    /// Connects to the next daemon and says hello.
    fn connect(&self) -> Option<Link> {
        let path = self.config.get("socket").as_str()?;
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let fd = rustix::net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None).ok()?;
        rustix::net::connect(&fd, &SocketAddrUnix::new(path).ok()?).ok()?;
        let listener = rustix::net::sockopt::socket_peercred(&fd).ok()?.uid.as_raw();
        if listener != 0 && listener != self.absence.user {
            return None;
        }
        self.bell.watch(&fd).ok()?;
        let link = Link::new(fd);
        link.send(&frame(&hello(true), link.frames.limit).ok()?, &[]).ok()?;
        Some(link)
    }

    pub(crate) fn look_for_daemon(&mut self) -> Result<()> {
        if self.absence.presence == Presence::Present {
            return Ok(());
        }
        if now() < self.absence.retry_ns {
            return Ok(());
        }
        let link = if self.absence.presence == Presence::Absent { self.connect() } else { None };
        let Some(link) = link else { return self.begin_absence() };
        self.link = Some(link);
        self.absence.presence = Presence::Greeting;
        self.plan_retry(ANSWER);
        Ok(())
    }

    /// A daemon is there. `fds`: what it has given for stdout and stderr.
    pub(crate) fn hold_streams(&mut self, fds: &[OwnedFd]) -> Result<()> {
        let Some(link) = &self.link else { return Ok(()) };
        self.streams.hold(link.fd(), fds).map_err(not_held)
    }

    fn tell_losses(&mut self) -> Result<()> {
        for (name, lost) in ["stdout", "stderr"].into_iter().zip(self.streams.take_lost()) {
            if lost > 0 {
                let text =
                    format!("{lost} bytes that were printed to {name} while no daemon was there are lost, the oldest");
                self.log("warning", &text)?;
            }
        }
        match std::mem::take(&mut self.absence.dropped) {
            0 => Ok(()),
            lost => {
                let text = format!("{lost} messages found no room while no daemon was there, and are lost");
                self.log("warning", &text)
            }
        }
    }

    fn present_again(&mut self, fds: &[OwnedFd]) -> Result<()> {
        self.hold_streams(fds)?;
        self.absence.presence = Presence::Present;
        self.absence.retry_ns = 0;
        self.set_timer();
        self.tell_losses()?;
        self.tell_subscriptions()?;
        if self.life == Life::Finished {
            self.tell_finished()?;
        }
        while self.absence.presence == Presence::Present {
            let Some((frame, fds)) = self.absence.kept.pop_front() else {
                break;
            };
            self.absence.bytes -= frame.len();
            self.tell_frame(frame, &fds.iter().map(AsFd::as_fd).collect::<Vec<_>>(), false)?;
        }
        Ok(())
    }

    pub(crate) fn handle_absent(&mut self, incoming: Incoming) -> Result<()> {
        match (incoming.kind(), self.absence.presence) {
            ("error", _) => {
                let reason = incoming.message.get("message").as_str().unwrap_or("no reason");
                let text = format!("the daemon does not take this worker back: {reason}");
                Err(Error::code_of(Code::ReattachRefused, text))
            }
            ("welcome", Presence::Greeting) => match self.show() {
                Err(error) if error.code() == Some(Code::ConnectionLost) => self.begin_absence(),
                shown => shown,
            },
            ("reattached", Presence::Showing) => self.present_again(&incoming.fds),
            _ => self.begin_absence(),
        }
    }

    fn is_delivered(&self) -> bool {
        let Some(link) = self.link.as_ref().filter(|_| self.absence.presence == Presence::Present) else {
            return false;
        };
        // In this order: a peer that dies throws away what it has not read.
        let empty = unread(link.fd()).is_ok_and(|bytes| bytes == 0);
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let mut entry = [PollFd::new(link.fd(), PollFlags::RDHUP)];
        empty && rustix::event::poll(&mut entry, Some(&none)) == Ok(0)
    }

    /// Waits until a daemon has read what was said last. No event tells that.
    pub(crate) fn settle_with_daemon(&mut self) -> Result<()> {
        let mut pause = Duration::from_millis(1);
        while !self.is_delivered() {
            self.hear()?;
            self.sleep_until(Some(now() + pause.as_nanos() as u64))?;
            pause = (2 * pause).min(Duration::from_millis(100));
        }
        Ok(())
    }
}
