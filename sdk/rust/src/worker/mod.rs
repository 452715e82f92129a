//! A worker from its hello to its end, and the one place where it sleeps.
//!
//! It has one thread (that of `streams` knows no worker): what the daemon says is handled whenever the crate is called and would wait, and at least
//! every few milliseconds of a busy stream. The control socket and a timer are in the epoll of the doorbell, so that one
//! descriptor wakes for everything. This file is longer than 400 lines because the steps of a life and its sleeps share one
//! state, which it also holds.

mod bus;
mod control;
mod face;
mod inputs;
mod outputs;
mod ports;
mod reattach;
mod room;
mod run;
mod streams;

use std::collections::{BTreeMap, VecDeque};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd};
use std::rc::Rc;
use std::sync::atomic::{fence, Ordering::SeqCst};

use rustix::time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec};

pub use bus::{Envelope, Message, NoReply, Reply, RequestId, Tick};
pub use face::{Event, Frame, Loan, Route, Worker};
pub use outputs::{SendOptions, Wait};
pub use run::{run, Node, Produce};

use crate::arena::Arena;
use crate::bell::Bell;
use crate::error::{Code, Error, Kind, Result};
use crate::link::{frame, message, Incoming, Link, FRAME_MAX};
use crate::pace::{coarse, now, Pace, Spin, Wake};
use crate::value::Value;
use bus::{Mail, Mailbox};
use inputs::{Input, RawFrame, Scan, Stage, Turns};
use outputs::Output;
use reattach::{Absence, Presence};
use room::Trim;
use streams::Streams;

const FD_VARIABLE: &str = "CHRONETIX_FD";
const PROTOCOL: u64 = 1;
const SPIN_ROUNDS: u32 = 8;
const SECOND: u64 = 1_000_000_000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Life {
    /// The hello is sent.
    New,
    Welcome,
    /// The worker's code may look at the configuration.
    Configured,
    /// Another worker of the node still runs.
    Standby,
    /// Memory is made and shown.
    Offered,
    Ready,
    /// Told to start: the event is due.
    Start,
    Starting,
    Started,
    Finished,
    Failed,
}

/// What a frame that is made of another one carries on.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Origin {
    pub(crate) seq: u64,
    pub(crate) deadline_ns: u64,
    pub(crate) redelivered: bool,
}

/// What comes to a worker.
pub(crate) enum Happening {
    Start,
    Frame(RawFrame),
    Mail(Mail),
    Room,
    End,
}

pub(crate) fn hello(returns: bool) -> Value {
    let features = if returns { vec!["reattach".into(), "handover".into()] } else { vec![Value::from("handover")] };
    let software = concat!("chronetix-rust ", env!("CARGO_PKG_VERSION"));
    let hello = message("hello").with("protocol", vec![Value::from(PROTOCOL)]).with("role", "worker");
    hello.with("software", software).with("features", features).with("pid", std::process::id())
}

pub(crate) struct Core {
    link: Option<Link>,
    life: Life,
    absence: Absence,
    config: Value,
    handover: Value,
    bell: Rc<Bell>,
    timer: OwnedFd,

    arena: Option<Arena>,
    trim: Trim,
    is_source: bool,
    draining: bool,
    leaves: bool,
    survives: bool,
    inputs: Vec<Input>,
    stages: Vec<Option<Stage>>,
    turns: Turns,
    /// Of copies that were given back.
    buffers: Vec<Vec<u8>>,
    outputs: Vec<Output>,
    output_count: u64,
    /// Outputs of stages that are not drained.
    done: Vec<Output>,
    /// Changes of outputs, which wait for the time between two frames.
    extensions: VecDeque<Value>,
    /// Lists of claims that are over.
    claims: Vec<Vec<u64>>,

    leave_left: u64,
    item: u64,
    resume_after: u64,
    budget_ns: u64,
    /// `Arena::frees` when a send last ran out of room.
    short_at: Option<u64>,
    /// An event is due when a send may succeed.
    wants_room: bool,
    armed: bool,
    handled: Option<Origin>,

    take_spin: Spin,
    send_spin: Spin,
    wake: Wake,
    pace: Pace,
    rings: u64,
    rings_before: u64,
    commits: u64,
    commits_before: u64,
    taken: u64,
    looked: u64,
    steps: u64,

    mailbox: Mailbox,
    requests: BTreeMap<String, RequestId>,
    request_count: u64,
    subscriptions: BTreeMap<String, bool>,
    streams: Streams,
    result: Value,
}

impl Core {
    /// Says hello on `fd`, and waits for the configuration.
    fn begin(fd: OwnedFd) -> Result<Self> {
        let internal = |error: rustix::io::Errno| Error::code_of(Code::Internal, format!("no doorbell: {error}"));
        let bell = Bell::new().map_err(internal)?;
        let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
        let timer = rustix::time::timerfd_create(TimerfdClockId::Monotonic, flags).map_err(internal)?;
        bell.watch(&timer).map_err(internal)?;
        bell.watch(&fd).map_err(internal)?;
        let user = rustix::net::sockopt::socket_peercred(&fd).map_or(rustix::process::geteuid(), |peer| peer.uid);
        let mut core = Self {
            link: Some(Link::new(fd)),
            life: Life::New,
            absence: Absence::of(user.as_raw()),
            config: Value::Null,
            handover: Value::Null,
            bell: Rc::new(bell),
            timer,
            arena: None,
            trim: Trim::default(),
            is_source: false,
            draining: false,
            leaves: false,
            survives: false,
            inputs: Vec::new(),
            stages: Vec::new(),
            turns: Turns::default(),
            buffers: Vec::new(),
            outputs: Vec::new(),
            output_count: 0,
            done: Vec::new(),
            extensions: VecDeque::new(),
            claims: Vec::new(),
            leave_left: 0,
            item: 0,
            resume_after: 0,
            budget_ns: 0,
            short_at: None,
            wants_room: false,
            armed: false,
            handled: None,
            take_spin: Spin::new(),
            send_spin: Spin::new(),
            wake: Wake::new(),
            pace: Pace::default(),
            rings: 0,
            rings_before: 0,
            commits: 0,
            commits_before: 0,
            taken: 0,
            looked: 0,
            steps: 0,
            mailbox: Mailbox::default(),
            requests: BTreeMap::new(),
            request_count: 0,
            subscriptions: BTreeMap::new(),
            streams: Streams::default(),
            result: Value::Null,
        };
        core.tell(&hello(false), &[])?;
        while core.life < Life::Configured {
            if let Some(link) = &core.link {
                link.wait();
            }
            core.hear()?;
        }
        Ok(core)
    }

    // ---- the control socket -----------------------------------------------------------------------------------------

    fn daemon_gone(&mut self, why: Error) -> Result<()> {
        if self.survives && self.life >= Life::Start && self.life <= Life::Finished {
            return self.begin_absence();
        }
        Err(why)
    }

    fn tell_frame(&mut self, frame: Vec<u8>, fds: &[BorrowedFd<'_>], state: bool) -> Result<()> {
        if self.absence.presence != Presence::Present {
            return self.keep(frame, fds, state);
        }
        let sent = self.link.as_ref().map_or(Err(rustix::io::Errno::NOTCONN), |link| link.send(&frame, fds));
        let Err(error) = sent else { return Ok(()) };
        self.daemon_gone(Error::code_of(Code::ConnectionLost, error.to_string()))?;
        self.keep(frame, fds, state)
    }

    fn limit(&self) -> u64 {
        self.link.as_ref().map_or(FRAME_MAX, |link| link.frames.limit)
    }

    /// Sends a message, or keeps it for the next daemon.
    fn tell(&mut self, message: &Value, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.tell_frame(frame(message, self.limit())?, fds, false)
    }

    /// The same, of something that the next daemon learns from how things stand.
    fn tell_state(&mut self, message: &Value, fds: &[BorrowedFd<'_>]) -> Result<()> {
        self.tell_frame(frame(message, self.limit())?, fds, true)
    }

    fn welcome(&mut self, said: &Value) -> Result<()> {
        match said.get("type").as_str() {
            Some("welcome") => {}
            Some("error") => {
                let reason = said.get("message").as_str().unwrap_or("no reason");
                return Err(Error::code_of(Code::RoleNotAccepted, format!("the daemon refuses: {reason}")));
            }
            _ => return Err(Error::code_of(Code::UnexpectedMessage, "a message came where welcome is due")),
        }
        if said.get("protocol").as_u64() != Some(PROTOCOL) {
            return Err(Error::code_of(Code::VersionUnsupported, "the daemon speaks another version of the protocol"));
        }
        if let (Some(link), Some(most)) = (&mut self.link, said.get("max_frame").as_u64()) {
            link.frames.limit = most.min(FRAME_MAX);
        }
        self.life = Life::Welcome;
        Ok(())
    }

    fn configured(&mut self, config: Value) -> Result<()> {
        let named = config.get("flow").as_str().is_some() && config.get("node").as_str().is_some();
        if config.get("type").as_str() != Some("configure") || !named {
            return Err(Error::code_of(Code::UnexpectedMessage, "a message came where configure is due"));
        }
        self.survives = config.get("on_daemon_loss").as_str() == Some("survive");
        self.config = config;
        if self.life != Life::Standby {
            self.life = Life::Configured;
            return Ok(());
        }
        self.life = Life::Offered;
        self.configure()
    }

    fn dispatch(&mut self, incoming: Incoming) -> Result<()> {
        match self.life {
            _ if self.absence.presence != Presence::Present => self.handle_absent(incoming),
            Life::New => self.welcome(&incoming.message),
            Life::Welcome | Life::Standby => self.configured(incoming.message),
            _ => self.handle(incoming),
        }
    }

    /// Handles what the daemon has said, without waiting.
    fn hear(&mut self) -> Result<()> {
        self.looked = coarse();
        while let Some(link) = &mut self.link {
            match link.receive() {
                Ok(None) => break,
                Ok(Some(incoming)) => {
                    let last = self.life == Life::Welcome; // what is behind configure waits until the code has looked at it
                    self.dispatch(incoming)?;
                    if last {
                        break;
                    }
                }
                Err(error) if matches!(error.code(), Some(Code::ConnectionLost | Code::ConnectionCut)) => {
                    self.daemon_gone(error)?;
                    break;
                }
                Err(error) => return Err(error),
            }
        }
        self.look_for_daemon()?;
        self.trim_look()?;
        self.report_dropped()
    }

    /// The coarse clock has moved on: a few milliseconds.
    fn time_to_hear(&self) -> bool {
        coarse() != self.looked
    }

    /// Has the timer wake the worker when something is due.
    fn set_timer(&mut self) {
        let retry = Some(self.absence.retry_ns).filter(|at| *at > 0 && self.absence.presence != Presence::Present);
        let at = self.trim_due().into_iter().chain(retry).min().unwrap_or(0);
        let it_value = Timespec { tv_sec: (at / SECOND) as i64, tv_nsec: (at % SECOND) as i64 };
        let when = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value };
        let _ = rustix::time::timerfd_settime(&self.timer, TimerfdTimerFlags::ABSTIME, &when);
    }

    /// Sleeps until something may have changed, at most until `deadline`, and handles what the daemon has said.
    fn sleep_until(&mut self, deadline: Option<u64>) -> Result<()> {
        let left = deadline.map(|deadline| deadline.saturating_sub(now()));
        let (timer, link) = (self.timer.as_raw_fd(), self.link.as_ref().map_or(-1, |link| link.fd().as_raw_fd()));
        let (mut due, mut said) = (false, false);
        let slept = self.bell.sleep(left, |fd| {
            due |= fd == timer;
            said |= fd == link;
        });
        slept.map_err(|error| Error::code_of(Code::Internal, format!("epoll: {error}")))?;
        if due {
            let _ = rustix::io::read(&self.timer, &mut [0; 8]);
        }
        if due || said {
            self.hear()?;
            self.set_timer();
        }
        Ok(())
    }

    // ---- what comes -------------------------------------------------------------------------------------------------

    /// The step that is due before the node has started.
    fn before_start(&mut self) -> Result<Option<Happening>> {
        match self.life {
            Life::Configured if self.config.get("standby").as_bool() == Some(true) => {
                self.life = Life::Standby;
                self.tell(&message("ready"), &[])?;
            }
            Life::Configured => {
                self.life = Life::Offered;
                self.configure()?;
            }
            Life::Start => {
                self.life = Life::Starting;
                return Ok(Some(Happening::Start));
            }
            Life::Starting => {
                self.life = Life::Started;
                self.tell_state(&message("started"), &[])?;
            }
            _ => {}
        }
        Ok(None)
    }

    /// A frame, or the end of all inputs.
    fn next_frame(&mut self) -> Result<Option<Happening>> {
        if self.leaves && self.leave_left == 0 {
            return Ok(Some(Happening::End));
        }
        match self.scan()? {
            Scan::Found(frame) => {
                self.taken += 1;
                self.steps += 1;
                self.leave_left = self.leave_left.saturating_sub(1);
                Ok(Some(Happening::Frame(frame)))
            }
            Scan::Ended => Ok(Some(Happening::End)),
            Scan::Nothing if self.draining => Ok(Some(Happening::End)),
            Scan::Nothing | Scan::Torn => Ok(None),
        }
    }

    /// What is there, without waiting.
    fn once(&mut self) -> Result<Option<Happening>> {
        if self.life < Life::Started {
            let due = self.before_start()?;
            if due.is_some() || self.life < Life::Started {
                return Ok(due);
            }
        }
        if let Some(mail) = self.mail() {
            self.steps += 1;
            return Ok(Some(Happening::Mail(mail)));
        }
        if !self.extensions.is_empty() {
            self.reroute()?;
        }
        if self.wants_room && !self.room_waits(false) {
            self.wants_room = false;
            self.short_at = None;
            return Ok(Some(Happening::Room));
        }
        if !self.inputs.is_empty() {
            return self.next_frame();
        }
        let ended = self.draining || !self.config.get("inputs").items().is_empty();
        Ok(ended.then_some(Happening::End))
    }

    fn disarm(&mut self) {
        if std::mem::take(&mut self.armed) {
            self.disarm_inputs();
            if self.wants_room {
                self.disarm_outputs();
            }
        }
    }

    fn spin(&mut self, deadline: Option<u64>) -> Result<Option<Happening>> {
        let cap = self.wake.cap();
        if self.take_spin.ns == 0 || cap == 0 || self.life != Life::Started || self.naps() {
            return Ok(None);
        }
        let start = now();
        let until = (start + self.take_spin.ns).min(deadline.unwrap_or(u64::MAX));
        loop {
            for _ in 0..SPIN_ROUNDS {
                if let Some(found) = self.once()? {
                    self.take_spin.found(cap, now() - start);
                    return Ok(Some(found));
                }
                std::hint::spin_loop();
            }
            if now() >= until {
                break;
            }
        }
        self.take_spin.missed(cap);
        Ok(None)
    }

    /// Adapts the spin to the sleep since `start`, which ended with this frame.
    fn learn(&mut self, time_ns: u64, start: u64, nap: bool) {
        let Some(after) = time_ns.checked_sub(start) else {
            return;
        };
        if !nap {
            self.wake.took(now().saturating_sub(time_ns));
        }
        let answered = self.rings != self.rings_before;
        let cap = self.wake.cap();
        self.take_spin.slept(cap, after, answered);
    }

    /// Publishes what is waited for, fences, and looks again. Nothing: sleeping is safe now, for so long at most.
    fn arm(&mut self, naps: bool) -> Result<(Option<Happening>, Option<u64>)> {
        self.armed = true;
        let nap = self.arm_inputs(naps);
        let room = self.wants_room && self.room_waits(true);
        fence(SeqCst); // partners: a producer's commit, a consumer's return
        let found = self.once()?;
        if found.is_none() {
            if room {
                self.count_sleeps();
            }
            self.nudge_inputs();
        }
        Ok((found, nap))
    }

    /// Waits for an event, asleep. None: the time is up.
    fn wait(&mut self, deadline: Option<u64>) -> Result<Option<Happening>> {
        let mut naps = self.naps();
        loop {
            let start = now();
            let (found, nap) = self.arm(naps)?;
            if found.is_some() {
                return Ok(found);
            }
            let slept = self.sleep_until(nap.map(|nap| start + nap).into_iter().chain(deadline).min());
            self.disarm();
            slept?;
            let found = self.once()?;
            if let Some(Happening::Frame(frame)) = &found {
                let time_ns = frame.taken.time_ns;
                self.learn(time_ns, start, nap.is_some());
            }
            if found.is_some() {
                return Ok(found);
            }
            naps = false; // the stream has stopped: the next frame rings
            if deadline.is_some_and(|deadline| now() >= deadline) {
                return Ok(None);
            }
        }
    }

    fn must_run(&self) -> Result<()> {
        if self.life >= Life::Configured && self.life < Life::Finished {
            return Ok(());
        }
        Err(Error::code_of(Code::WrongState, "the worker is not configured, or has ended"))
    }

    /// The next event, waiting until `deadline` at most.
    fn next(&mut self, deadline: Option<u64>) -> Result<Option<Happening>> {
        self.must_run()?;
        self.disarm();
        if self.life < Life::Started || self.time_to_hear() {
            self.hear()?;
        }
        if let Some(found) = self.once()? {
            return Ok(Some(found));
        }
        let found = match self.spin(deadline)? {
            Some(found) => Some(found),
            None => self.wait(deadline)?,
        };
        self.rest(&found);
        Ok(found)
    }

    fn rest(&mut self, found: &Option<Happening>) {
        self.rings_before = self.rings;
        self.commits_before = self.commits;
        self.taken = u64::from(matches!(found, Some(Happening::Frame(_))));
    }

    /// What is there; where there is nothing, everything is left armed, and the caller polls the descriptor.
    fn poll(&mut self) -> Result<Option<Happening>> {
        self.must_run()?;
        self.disarm();
        if self.life < Life::Started || self.time_to_hear() {
            self.hear()?;
        }
        if let Some(found) = self.once()? {
            return Ok(Some(found));
        }
        self.sleep_until(Some(0))?;
        let (found, _) = self.arm(false)?;
        self.rest(&found);
        Ok(found)
    }

    /// What is there between two items of a source.
    fn glance(&mut self) -> Result<Option<Happening>> {
        if self.time_to_hear() {
            self.hear()?;
        }
        self.once()
    }

    // ---- the end ----------------------------------------------------------------------------------------------------

    fn may_send(&self) -> Result<()> {
        if self.life >= Life::Start && self.life <= Life::Started {
            return Ok(());
        }
        Err(Error::code_of(Code::WrongState, "frames are sent between the start and the end of a node"))
    }

    fn finish(&mut self, result: Value) -> Result<()> {
        if self.life != Life::Started && self.life != Life::Starting {
            return Err(Error::code_of(Code::WrongState, "a node finishes once, after it has started"));
        }
        if self.life == Life::Starting {
            self.tell_state(&message("started"), &[])?;
        }
        if !self.leaves {
            self.outputs.iter_mut().for_each(|output| output.end.close());
        }
        self.life = Life::Finished;
        self.result = result;
        self.tell_finished()?;
        if self.survives {
            self.settle_with_daemon()?;
        }
        Ok(())
    }

    fn tell_finished(&mut self) -> Result<()> {
        let finished = message("finished").with("result", self.result.clone());
        self.tell_state(&finished, &[])
    }

    fn fault(&mut self, phase: &str, error: &Error) {
        if self.life >= Life::Finished {
            return;
        }
        let name = if error.kind() == Kind::Failed { "Failed" } else { error.name() };
        let fault = message("fault").with("phase", phase).with("error", name).with("message", error.to_string());
        let _ = self.tell(&fault, &[]); // a daemon that is gone cannot be told
        self.life = Life::Failed;
    }
}

impl Drop for Core {
    /// A worker that has not finished closes no route and detaches from none: the daemon decides whether its node gets
    /// a successor.
    fn drop(&mut self) {
        if self.life == Life::Finished && !self.leaves {
            self.close_inputs();
        }
    }
}
