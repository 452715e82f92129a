//! What a worker's code sees: the worker, frames, loans, events. Each function has its sentence, which makes this file longer
//! than 400 lines.

use std::cell::RefCell;
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, BorrowedFd};
use std::rc::Rc;
use std::time::Duration;

use super::outputs::Claim;
use super::ports::Names;
use super::{
    bus::Mail, inputs::RawFrame, Core, Envelope, Happening, Message, Origin, Reply, RequestId, SendOptions, Tick,
    FD_VARIABLE,
};
use crate::abi::{Policy, REDELIVERED};
use crate::bell::Bell;
use crate::error::{Code, Error, Result};
use crate::memory::{system::inherited, Room};
use crate::pace::now;
use crate::value::Value;

/// One node of a flow. It belongs to one thread.
pub struct Worker {
    pub(super) core: RefCell<Core>,
    bell: Rc<Bell>,
}

/// What comes to a worker.
#[derive(Debug)]
#[non_exhaustive]
pub enum Event<'w> {
    /// Nothing has come in time.
    Nothing,
    /// All nodes are ready. The next call says that this one has started.
    Start,
    /// A frame, which is given back when it is dropped.
    Frame(Frame<'w>),
    /// A timer was due.
    Tick(Tick),
    /// A message of a topic that is subscribed to.
    Message(Message),
    /// A request has ended.
    Reply(Reply),
    /// A send that had found no credit or no room may succeed now.
    Room,
    /// No frame will come any more, or the node is to stop: send what is left, then [`Worker::finish`].
    End,
}

/// One end of a route.
#[derive(Clone, Debug)]
pub struct Route {
    names: Rc<Names>,
    /// What becomes of a frame that finds no credit.
    pub policy: Policy,
    /// How many frames may be under way.
    pub credits: u32,
    /// Of an output: frames sent and not yet returned, and promised to loans.
    pub used: u32,
    /// Whether it takes or may bring frames.
    pub open: bool,
}

impl Route {
    /// Its id.
    pub fn id(&self) -> &str {
        &self.names.route
    }

    /// The node at the other end.
    pub fn peer(&self) -> &str {
        &self.names.peer
    }

    /// Its topic.
    pub fn topic(&self) -> &str {
        &self.names.topic
    }

    /// What its frames hold.
    pub fn content_type(&self) -> &str {
        &self.names.content_type
    }
}

impl Worker {
    /// The worker that the daemon has started this process for.
    pub fn inherit() -> Result<Self> {
        let refuse = |text: String| Error::code_of(Code::WrongState, text);
        let number = std::env::var(FD_VARIABLE).ok().and_then(|number| number.parse().ok()).ok_or_else(|| {
            refuse(format!("{FD_VARIABLE} names no descriptor: this program is started by chronetixd, in a flow"))
        })?;
        let fd =
            inherited(number).map_err(|error| refuse(format!("{FD_VARIABLE} names descriptor {number}: {error}")))?;
        std::env::remove_var(FD_VARIABLE);
        let core = Core::begin(fd)?;
        Ok(Self { bell: core.bell.clone(), core: RefCell::new(core) })
    }

    fn event(&self, found: Option<Happening>) -> Event<'_> {
        match found {
            None => Event::Nothing,
            Some(Happening::Start) => Event::Start,
            Some(Happening::Frame(raw)) => Event::Frame(Frame { worker: self, raw, back: true }),
            Some(Happening::Mail(Mail::Tick(tick))) => Event::Tick(tick),
            Some(Happening::Mail(Mail::Message(mut message))) => {
                let mut take = |key: &str| match &mut message {
                    Value::Map(entries) => {
                        entries.iter_mut().find(|entry| entry.0 == key).map(|entry| std::mem::take(&mut entry.1))
                    }
                    _ => None,
                };
                let envelope = take("envelope").unwrap_or_default();
                let payload = match take("payload") {
                    Some(Value::Bytes(payload)) => payload,
                    _ => Vec::new(),
                };
                Event::Message(Message { envelope, payload })
            }
            Some(Happening::Mail(Mail::Reply(reply))) => Event::Reply(reply),
            Some(Happening::Room) => Event::Room,
            Some(Happening::End) => Event::End,
        }
    }

    /// Waits for the next event.
    pub fn next(&self) -> Result<Event<'_>> {
        let found = self.core.borrow_mut().next(None)?;
        Ok(self.event(found))
    }

    /// Waits for the next event, for so long at most.
    pub fn next_within(&self, limit: Duration) -> Result<Event<'_>> {
        let deadline = now().saturating_add(limit.as_nanos().min(u64::MAX.into()) as u64);
        let found = self.core.borrow_mut().next(Some(deadline))?;
        Ok(self.event(found))
    }

    /// The next event if there is one. After [`Event::Nothing`] the worker's descriptor ([`AsFd`]) becomes readable when
    /// there is something to do.
    pub fn try_next(&self) -> Result<Event<'_>> {
        let found = self.core.borrow_mut().poll()?;
        Ok(self.event(found))
    }

    pub(super) fn glance(&self) -> Result<Event<'_>> {
        let found = self.core.borrow_mut().glance()?;
        Ok(self.event(found))
    }

    // ---- what is sent -----------------------------------------------------------------------------------------------

    /// Sends a frame to every output, waiting for credits and room.
    pub fn send(&self, data: &[u8]) -> Result<()> {
        self.send_with(data, &SendOptions::default())
    }

    /// Sends a frame, with one copy whatever the number of outputs. A route whose policy lets it drop the frame does so
    /// and counts it.
    pub fn send_with(&self, data: &[u8], options: &SendOptions<'_>) -> Result<()> {
        let mut core = self.core.borrow_mut();
        core.may_send()?;
        let length = (data.len() + options.notes()) as u64;
        let claim = core.claim(length, options)?;
        if !claim.extent.is_none() {
            if let Some(map) = core.arena.as_ref().and_then(|arena| arena.map(claim.extent.segment)) {
                map.copy_in(claim.extent.offset, data);
                if options.notes() > 0 {
                    let mut notes = vec![0; options.notes()];
                    options.write_notes(&mut notes);
                    map.copy_in(claim.extent.offset + data.len() as u64, &notes);
                }
            }
        }
        core.claim_commit(claim, length, options)
    }

    /// Reserves memory for a frame that is filled in place, and a credit of each output: committing never waits.
    pub fn reserve(&self, size: usize, options: &SendOptions<'_>) -> Result<Loan<'_>> {
        let mut core = self.core.borrow_mut();
        core.may_send()?;
        let claim = core.claim((size + options.notes()) as u64, options)?;
        let map = core.arena.as_ref().and_then(|arena| arena.map(claim.extent.segment));
        let memory = match map.filter(|_| !claim.extent.is_none()) {
            Some(map) => Memory::Shared(Room::new(map, claim.extent.offset, size + options.notes())),
            None => Memory::Nobodys(vec![0; size + options.notes()]),
        };
        Ok(Loan { worker: self, claim: Some(claim), memory, size })
    }

    /// The end of a node that has done its work: closes its outputs and tells the daemon the result.
    pub fn finish(&self, result: impl Into<Value>) -> Result<()> {
        self.core.borrow_mut().finish(result.into())
    }

    /// The end of a node that cannot go on. `phase` is one of load, init, start, frame, tick, message, source, stop,
    /// wiring. The process then exits with a code that is not 0.
    pub fn fault(&self, phase: &str, error: &Error) {
        self.core.borrow_mut().fault(phase, error);
    }

    // ---- the event bus ----------------------------------------------------------------------------------------------

    /// Sends a message to all subscribers of its topic.
    pub fn publish(&self, envelope: &Envelope, payload: &[u8]) -> Result<()> {
        self.core.borrow_mut().publish(envelope, payload)
    }

    /// Subscribes to a topic.
    pub fn subscribe(&self, topic: &str) -> Result<()> {
        self.core.borrow_mut().want(topic, true)
    }

    /// Ends a subscription.
    pub fn unsubscribe(&self, topic: &str) -> Result<()> {
        self.core.borrow_mut().want(topic, false)
    }

    /// Asks one subscriber of the topic. [`Event::Reply`] or [`Worker::await_reply`] brings the end, exactly once.
    pub fn request(&self, envelope: &Envelope, payload: &[u8], timeout: Duration) -> Result<RequestId> {
        self.core.borrow_mut().request(envelope, payload, timeout)
    }

    /// Waits for the end of a request; other events wait meanwhile.
    pub fn await_reply(&self, request: RequestId) -> Result<Reply> {
        self.core.borrow_mut().await_reply(request)
    }

    /// Answers a message that has a [`Message::corr_id`], once.
    pub fn reply(&self, asked: &Message, payload: &[u8], content_type: &str) -> Result<()> {
        self.core.borrow_mut().reply(asked, payload, content_type)
    }

    /// Logs a line. `level` is debug, info, warning, error or critical.
    pub fn log(&self, level: &str, text: &str) -> Result<()> {
        self.core.borrow_mut().log(level, text)
    }

    // ---- facts ------------------------------------------------------------------------------------------------------

    /// Everything that the daemon has said about the node: the message `configure`.
    pub fn config(&self) -> Value {
        self.core.borrow().config.clone()
    }

    /// The node's parameters.
    pub fn params(&self) -> Value {
        self.core.borrow().config.get("params").clone()
    }

    /// The flow's name.
    pub fn flow(&self) -> String {
        self.core.borrow().config.get("flow").as_str().unwrap_or("").to_owned()
    }

    /// The node's name.
    pub fn node(&self) -> String {
        self.core.borrow().config.get("node").as_str().unwrap_or("").to_owned()
    }

    /// The result of the worker that has handed the node over to this one.
    pub fn handover(&self) -> Value {
        self.core.borrow().handover.clone()
    }

    /// Of a source: the number of the last item that its predecessors have sent on all outputs; 0 at first.
    pub fn resume_after(&self) -> u64 {
        self.core.borrow().resume_after
    }

    /// Whether it was told to stop: [`Event::End`] follows, or has come.
    pub fn is_stopping(&self) -> bool {
        self.core.borrow().draining
    }

    /// Whether the node has no inputs.
    pub fn is_source(&self) -> bool {
        self.core.borrow().config.get("inputs").items().is_empty()
    }

    /// The node's inputs.
    pub fn inputs(&self) -> Vec<Route> {
        let core = self.core.borrow();
        let route = |at: usize| {
            let input = &core.inputs[at];
            let stage = core.stages[input.current].as_ref()?;
            let latest = stage.end.is_latest();
            Some(Route {
                names: input.names.clone(),
                policy: if latest { Policy::Latest } else { Policy::Block },
                credits: stage.end.header.credits,
                used: 0,
                open: core.input_is_open(at),
            })
        };
        (0..core.inputs.len()).filter_map(route).collect()
    }

    /// The node's outputs, without those that listen to others.
    pub fn outputs(&self) -> Vec<Route> {
        let mut core = self.core.borrow_mut();
        let Core { outputs, arena: Some(arena), .. } = &mut *core else {
            return Vec::new();
        };
        let mut routes = Vec::new();
        for output in outputs.iter_mut().filter(|output| !output.is_tap()) {
            let due = if output.end.returns() { output.end.look(arena).unwrap_or(0) } else { 0 };
            routes.push(Route {
                names: output.names.clone(),
                policy: output.end.header.policy,
                credits: output.end.header.credits,
                used: output.end.outstanding() - due as u32 + output.end.reserved,
                open: output.end.state == crate::producer::State::Open || output.awaits(),
            });
        }
        routes
    }
}

impl AsFd for Worker {
    /// Readable when [`Worker::try_next`] has something to do.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.bell.fd().as_fd()
    }
}

impl std::fmt::Debug for Worker {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Worker").finish_non_exhaustive()
    }
}

/// A frame that was taken: its bytes, and what is said about them. It is given back to its producer when it is dropped.
///
/// The bytes lie in shared memory that the producer writes. One that keeps the protocol does not touch them until they
/// come back; what must not change while it is checked has to be copied first.
pub struct Frame<'w> {
    worker: &'w Worker,
    raw: RawFrame,
    back: bool,
}

impl Frame<'_> {
    /// The route's id.
    pub fn route(&self) -> &str {
        &self.raw.names.route
    }

    /// The node that has sent it.
    pub fn peer(&self) -> &str {
        &self.raw.names.peer
    }

    /// What its bytes hold.
    pub fn content_type(&self) -> &str {
        &self.raw.names.content_type
    }

    /// Its number, which grows on its route and leaves numbers out.
    pub fn seq(&self) -> u64 {
        self.raw.taken.seq
    }

    /// When it was committed, on CLOCK_MONOTONIC.
    pub fn time_ns(&self) -> u64 {
        self.raw.taken.time_ns
    }

    /// When it is due; 0: whenever.
    pub fn deadline_ns(&self) -> u64 {
        self.raw.taken.deadline_ns
    }

    /// The sender's number.
    pub fn trace(&self) -> u64 {
        self.raw.taken.trace
    }

    /// The number of the frame that it was made of, or of a source's item.
    pub fn input_seq(&self) -> u64 {
        self.raw.taken.input_seq
    }

    /// The application's number.
    pub fn schema(&self) -> u32 {
        self.raw.taken.schema
    }

    /// Whether it may be a duplicate.
    pub fn is_redelivered(&self) -> bool {
        self.raw.taken.flags & REDELIVERED != 0
    }

    /// Its metadata: one map in CBOR, or nothing.
    pub fn meta(&self) -> &[u8] {
        let taken = &self.raw.taken;
        self.bytes(taken.length, taken.meta.into())
    }

    /// The sender's own time; 0: none.
    pub fn stamp_ns(&self) -> i64 {
        self.raw.taken.stamp_ns
    }

    /// Keeps it from being given back: the node's successor gets it again.
    pub fn abandon(mut self) {
        self.back = false;
    }

    pub(crate) fn origin(&self) -> Origin {
        Origin { seq: self.seq(), deadline_ns: self.deadline_ns(), redelivered: self.is_redelivered() }
    }

    fn bytes(&self, at: u64, length: u64) -> &[u8] {
        match (&self.raw.copy, &self.raw.taken.segment) {
            (Some(copy), _) => &copy[at as usize..(at + length) as usize],
            (None, Some(segment)) => segment.bytes(self.raw.taken.offset + at, length),
            (None, None) => &[],
        }
    }
}

impl Deref for Frame<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes(0, self.raw.taken.length)
    }
}

impl std::fmt::Debug for Frame<'_> {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Frame")
            .field("route", &self.route())
            .field("seq", &self.seq())
            .field("size", &self.len())
            .finish()
    }
}

impl Drop for Frame<'_> {
    /// A frame whose worker panics is not given back: its successor gets it again.
    fn drop(&mut self) {
        if self.back && !std::thread::panicking() {
            self.raw.taken.segment = None;
            let copy = self.raw.copy.take();
            self.worker.core.borrow_mut().release(self.raw.stage, self.raw.taken.stamp, copy);
        }
    }
}

#[derive(Debug)]
enum Memory {
    Shared(Room),
    /// Of a frame that no route takes, or that has no bytes.
    Nobodys(Vec<u8>),
}

/// Memory for a frame that is filled in place. Dropping it sends nothing.
pub struct Loan<'w> {
    worker: &'w Worker,
    claim: Option<Claim>,
    memory: Memory,
    size: usize,
}

impl Loan<'_> {
    fn memory_mut(&mut self) -> &mut [u8] {
        match &mut self.memory {
            Memory::Shared(room) => room.bytes_mut(),
            Memory::Nobodys(bytes) => bytes,
        }
    }

    /// Sends the first `size` bytes. Metadata need no room in the loan if [`Worker::reserve`] was told of them.
    pub fn commit(mut self, size: usize, options: &SendOptions<'_>) -> Result<()> {
        let (notes, room) = (options.notes(), self.claim.as_ref().map_or(0, |claim| claim.length) as usize);
        if size > self.size || size + notes > room {
            return Err(Error::code_of(
                Code::BadArgument,
                format!("the loan has {} bytes, not {}", self.size, size + notes),
            ));
        }
        if notes > 0 {
            options.write_notes(&mut self.memory_mut()[size..size + notes]);
        }
        let mut core = self.worker.core.borrow_mut();
        core.may_send()?;
        match self.claim.take() {
            Some(claim) => core.claim_commit(claim, (size + notes) as u64, options),
            None => Ok(()),
        }
    }
}

impl Deref for Loan<'_> {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        let bytes = match &self.memory {
            Memory::Shared(room) => room.bytes(),
            Memory::Nobodys(bytes) => bytes,
        };
        &bytes[..self.size]
    }
}

impl DerefMut for Loan<'_> {
    fn deref_mut(&mut self) -> &mut [u8] {
        let size = self.size;
        &mut self.memory_mut()[..size]
    }
}

impl std::fmt::Debug for Loan<'_> {
    fn fmt(&self, to: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        to.debug_struct("Loan").field("size", &self.size).finish_non_exhaustive()
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        if let Some(claim) = self.claim.take() {
            self.worker.core.borrow_mut().claim_cancel(claim);
        }
    }
}
