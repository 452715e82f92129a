//! The event bus, ticks and logs. What comes waits in a mailbox, bounded, so that a slow callback costs messages and
//! never memory: a tick that finds others waiting is withheld and counts as missed by the next one of its timer; a message
//! that finds too many bytes waiting is dropped, counted by topic, and told to the daemon. The end of a request always
//! goes in.

use std::collections::hash_map::RandomState;
use std::collections::{BTreeMap, VecDeque};
use std::hash::{BuildHasher, Hasher};
use std::time::Duration;

use super::ports::{malformed, name};
use super::{Core, Life};
use crate::error::{Code, Error, Result};
use crate::link::message;
use crate::pace::unix;
use crate::value::Value;

/// Events that may wait before ticks are withheld.
const TICKS_MAX: usize = 16;
/// Of messages; the daemon's own bound for a subscriber that does not read.
const BYTES_MAX: usize = 8 << 20;
const REPORT_AT_ONCE: u64 = 1000;
const OVERHEAD: usize = 1024;
const TIMEOUT_MAX: u64 = 1 << 62;

/// A timer was due.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tick {
    /// The timer's id.
    pub id: String,
    /// Which tick of the timer it is.
    pub sequence: u64,
    /// When it was due, on CLOCK_MONOTONIC.
    pub due_ns: u64,
    /// Ticks before it that were not delivered.
    pub missed: u64,
}

/// A message of a topic that is subscribed to, or a request that expects [`Worker::reply`](crate::Worker::reply).
#[derive(Clone, Debug, PartialEq)]
pub struct Message {
    /// All that came with it.
    pub envelope: Value,
    /// Its bytes.
    pub payload: Vec<u8>,
}

impl Message {
    /// Its topic.
    pub fn topic(&self) -> &str {
        self.envelope.get("topic").as_str().unwrap_or("")
    }

    /// How its bytes are to be read.
    pub fn content_type(&self) -> &str {
        self.envelope.get("content_type").as_str().unwrap_or("application/json")
    }

    /// Of a request: what the reply refers to.
    pub fn corr_id(&self) -> Option<&str> {
        self.envelope.get("corr_id").as_str().filter(|id| !id.is_empty())
    }
}

/// Names a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct RequestId(u64);

/// Why no reply came.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NoReply {
    /// Nobody has answered in time.
    Timeout,
    /// Nobody has subscribed to the topic.
    NoSubscriber,
    /// Who was asked has ended, or the daemon.
    PeerGone,
}

impl NoReply {
    /// Its name in the protocol.
    pub fn name(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::NoSubscriber => "no-subscriber",
            Self::PeerGone => "peer-gone",
        }
    }
}

/// The end of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// Of which request.
    pub request: RequestId,
    /// The answer's bytes.
    pub result: std::result::Result<Vec<u8>, NoReply>,
    /// How they are to be read.
    pub content_type: String,
}

/// What is said about a message.
#[derive(Clone, Debug)]
pub struct Envelope(Value);

impl Envelope {
    /// Of a message of this topic.
    pub fn new(topic: &str) -> Self {
        Self(Value::map().with("topic", topic))
    }

    /// How its bytes are to be read; `application/json` by default.
    #[must_use]
    pub fn content_type(self, content_type: &str) -> Self {
        self.field("content_type", content_type)
    }

    /// Any field of the protocol's envelope: `dst`, `trace`, `deadline_ns`, `priority`, `headers`, `ext`.
    #[must_use]
    pub fn field(self, key: &str, value: impl Into<Value>) -> Self {
        Self(self.0.with(key, value))
    }
}

/// What waits for the worker's code.
pub(crate) enum Mail {
    Tick(Tick),
    Message(Value),
    Reply(Reply),
}

#[derive(Default)]
pub(crate) struct Mailbox {
    mail: VecDeque<Mail>,
    bytes: usize,
    ticks: BTreeMap<String, u64>,
    dropped: BTreeMap<String, u64>,
}

fn weight(mail: &Mail) -> usize {
    match mail {
        Mail::Message(message) => message.get("payload").as_bytes().map_or(0, <[u8]>::len) + OVERHEAD,
        _ => 0,
    }
}

impl Core {
    pub(crate) fn put_tick(&mut self, tick: Value) -> Result<()> {
        let number = |key| tick.get(key).as_u64().unwrap_or(0);
        let id = name(&tick, "id")?.to_owned();
        let withheld = self.mailbox.ticks.entry(id.clone()).or_default();
        if self.mailbox.mail.len() >= TICKS_MAX {
            *withheld += number("missed") + 1;
            return Ok(());
        }
        let missed = number("missed") + std::mem::take(withheld);
        let tick = Tick { id, sequence: number("sequence"), due_ns: number("due_ns"), missed };
        self.put(Mail::Tick(tick))
    }

    pub(crate) fn put(&mut self, mail: Mail) -> Result<()> {
        let bytes = weight(&mail);
        let mailbox = &mut self.mailbox;
        if let Mail::Message(message) = &mail {
            if !mailbox.mail.is_empty() && mailbox.bytes + bytes > BYTES_MAX {
                let topic = message.get("envelope").get("topic").as_str().unwrap_or("").to_owned();
                *mailbox.dropped.entry(topic).or_default() += 1;
                return self.report_dropped();
            }
        }
        mailbox.bytes += bytes;
        mailbox.mail.push_back(mail);
        Ok(())
    }

    pub(crate) fn mail(&mut self) -> Option<Mail> {
        let mail = self.mailbox.mail.pop_front()?;
        self.mailbox.bytes -= weight(&mail);
        Some(mail)
    }

    /// Tells the daemon what was dropped: once there is room again, and before that whenever it is much.
    pub(crate) fn report_dropped(&mut self) -> Result<()> {
        let many = self.mailbox.dropped.values().sum::<u64>();
        if many == 0 || (many < REPORT_AT_ONCE && self.mailbox.bytes > BYTES_MAX / 2) {
            return Ok(());
        }
        for (topic, count) in std::mem::take(&mut self.mailbox.dropped) {
            self.tell(&message("messages-dropped").with("topic", topic).with("count", count), &[])?;
        }
        Ok(())
    }

    fn may_speak(&self) -> Result<()> {
        if self.life >= Life::Configured {
            return Ok(());
        }
        Err(Error::code_of(Code::WrongState, "the worker is not configured yet"))
    }

    pub(crate) fn publish(&mut self, envelope: &Envelope, payload: &[u8]) -> Result<()> {
        self.may_speak()?;
        self.tell(&message("publish").with("envelope", envelope.0.clone()).with("payload", payload), &[])
    }

    // ---- subscriptions ----------------------------------------------------------------------------------------------

    pub(crate) fn want(&mut self, topic: &str, wanted: bool) -> Result<()> {
        self.may_speak()?;
        if topic.is_empty() {
            return Err(Error::code_of(Code::BadArgument, "a subscription has no topic"));
        }
        self.subscriptions.insert(topic.to_owned(), wanted);
        self.tell_subscription(topic, wanted)
    }

    fn tell_subscription(&mut self, topic: &str, wanted: bool) -> Result<()> {
        let kind = if wanted { "subscribe" } else { "unsubscribe" };
        self.tell_state(&message(kind).with("topic", topic), &[])
    }

    /// For a daemon that knows only what the node's manifest says.
    pub(crate) fn tell_subscriptions(&mut self) -> Result<()> {
        let all = self.subscriptions.clone();
        all.iter().try_for_each(|(topic, wanted)| self.tell_subscription(topic, *wanted))
    }

    // ---- requests ---------------------------------------------------------------------------------------------------

    pub(crate) fn request(&mut self, envelope: &Envelope, payload: &[u8], timeout: Duration) -> Result<RequestId> {
        self.may_speak()?;
        self.request_count += 1;
        let id = RequestId(self.request_count);
        let chance = || RandomState::new().build_hasher().finish();
        let corr_id = format!("{:016x}{:016x}", chance(), chance());
        let timeout_ns = timeout.as_nanos().min(TIMEOUT_MAX.into()) as u64;
        self.requests.insert(corr_id.clone(), id);
        let envelope = envelope.0.clone().with("corr_id", corr_id);
        let request =
            message("request").with("envelope", envelope).with("payload", payload).with("timeout_ns", timeout_ns);
        self.tell(&request, &[]).map(|()| id)
    }

    /// What the daemon said about a request. One that is not open any more is nobody's.
    pub(crate) fn answered(&mut self, said: Value) -> Result<()> {
        let failed = said.get("type").as_str() == Some("request-failed");
        let result = match said.get("reason").as_str() {
            _ if !failed => Ok(said.get("payload").as_bytes().ok_or_else(|| malformed(&said))?.to_vec()),
            Some("timeout") => Err(NoReply::Timeout),
            Some("no-subscriber") => Err(NoReply::NoSubscriber),
            Some("peer-gone") => Err(NoReply::PeerGone),
            _ => return Err(malformed(&said)),
        };
        let Some(request) = self.requests.remove(name(&said, "corr_id")?) else {
            return Ok(());
        };
        let content_type = said.get("content_type").as_str().unwrap_or("application/json").to_owned();
        self.put(Mail::Reply(Reply { request, result, content_type }))
    }

    /// The daemon is gone: every request that is open ends.
    pub(crate) fn abandon_requests(&mut self) -> Result<()> {
        for (_, request) in std::mem::take(&mut self.requests) {
            let result = Err(NoReply::PeerGone);
            self.put(Mail::Reply(Reply { request, result, content_type: String::new() }))?;
        }
        Ok(())
    }

    /// Waits for the end of a request; other events wait meanwhile.
    pub(crate) fn await_reply(&mut self, request: RequestId) -> Result<Reply> {
        loop {
            self.hear()?;
            let is_it = |mail: &Mail| matches!(mail, Mail::Reply(reply) if reply.request == request);
            if let Some(at) = self.mailbox.mail.iter().position(is_it) {
                if let Some(Mail::Reply(reply)) = self.mailbox.mail.remove(at) {
                    return Ok(reply);
                }
            }
            if !self.requests.values().any(|open| *open == request) {
                return Err(Error::code_of(Code::BadArgument, format!("no request {} is open", request.0)));
            }
            self.sleep_until(None)?;
        }
    }

    pub(crate) fn reply(&mut self, asked: &Message, payload: &[u8], content_type: &str) -> Result<()> {
        self.may_speak()?;
        let Some(corr_id) = asked.corr_id() else {
            let text = format!("a message of topic {} expects no reply", asked.topic());
            return Err(Error::code_of(Code::BadArgument, text));
        };
        let reply =
            message("reply").with("corr_id", corr_id).with("payload", payload).with("content_type", content_type);
        self.tell(&reply, &[])
    }

    pub(crate) fn log(&mut self, level: &str, text: &str) -> Result<()> {
        self.may_speak()?;
        self.tell(&message("log").with("level", level).with("message", text).with("unix_ns", unix()), &[])
    }
}
