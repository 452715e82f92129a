//! Callbacks: the loop around the events that most workers would write.

use std::process::ExitCode;

use super::{Event, Frame, Life, Message, Reply, Tick, Worker};
use crate::error::{Error, Kind, Result};
use crate::value::Value;

const FAILED: u8 = 1;
const DAEMON_GONE: u8 = 70;

/// What [`Node::produce`] has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Produce {
    /// It has sent an item, and may be called again.
    More,
    /// There are no more items: the node ends, or, if it has inputs, goes on with those.
    Done,
    /// This node makes nothing by itself.
    Nothing,
}

/// What a node does. An error ends it with a fault, but for one of kind [`Kind::Gone`], which ends it as if its inputs had
/// ended: nobody wants what it makes.
#[allow(unused_variables)]
pub trait Node {
    /// Before any route is there.
    fn init(&mut self, worker: &Worker) -> Result<()> {
        Ok(())
    }

    /// All nodes are ready.
    fn start(&mut self, worker: &Worker) -> Result<()> {
        Ok(())
    }

    /// Of a source, again and again: sends an item.
    fn produce(&mut self, worker: &Worker) -> Result<Produce> {
        Ok(Produce::Nothing)
    }

    /// A frame, which is given back afterwards. What is sent meanwhile is made of it.
    fn frame(&mut self, worker: &Worker, frame: &Frame<'_>) -> Result<()> {
        Ok(())
    }

    /// A timer was due.
    fn tick(&mut self, worker: &Worker, tick: &Tick) -> Result<()> {
        Ok(())
    }

    /// A message of a topic that is subscribed to.
    fn message(&mut self, worker: &Worker, message: &Message) -> Result<()> {
        Ok(())
    }

    /// A request has ended.
    fn reply(&mut self, worker: &Worker, reply: &Reply) -> Result<()> {
        Ok(())
    }

    /// The end: may still send. What it returns is the node's result.
    fn stop(&mut self, worker: &Worker) -> Result<Value> {
        Ok(Value::Null)
    }
}

struct Loop<'w, N> {
    worker: &'w Worker,
    node: N,
    phase: &'static str,
    produces: bool,
}

impl<N: Node> Loop<'_, N> {
    fn frame(&mut self, frame: Frame<'_>) -> Result<()> {
        self.worker.core.borrow_mut().handled = Some(frame.origin());
        let done = self.node.frame(self.worker, &frame);
        self.worker.core.borrow_mut().handled = None;
        if done.is_err() {
            frame.abandon();
        }
        done
    }

    fn produce(&mut self) -> Result<bool> {
        self.phase = "source";
        self.worker.core.borrow_mut().steps += 1;
        match self.node.produce(self.worker)? {
            Produce::More => return Ok(true),
            Produce::Nothing => self.produces = false,
            Produce::Done if self.worker.is_source() => return Ok(false),
            Produce::Done => self.produces = false,
        }
        Ok(true)
    }

    /// One event. False: the node has done its work.
    fn step(&mut self) -> Result<bool> {
        let life = self.worker.core.borrow().life;
        let free = self.produces && life >= Life::Starting;
        self.phase = if life < Life::Ready { "wiring" } else { "frame" };
        match if free { self.worker.glance()? } else { self.worker.next()? } {
            Event::Nothing if free => return self.produce(),
            Event::Nothing | Event::Room => {}
            Event::Start => {
                self.phase = "start";
                self.node.start(self.worker)?;
            }
            Event::Frame(frame) => self.frame(frame)?,
            Event::Tick(tick) => {
                self.phase = "tick";
                self.node.tick(self.worker, &tick)?;
            }
            Event::Message(message) => {
                self.phase = "message";
                self.node.message(self.worker, &message)?;
            }
            Event::Reply(reply) => {
                self.phase = "message";
                self.node.reply(self.worker, &reply)?;
            }
            Event::End => return Ok(false),
        }
        Ok(true)
    }

    fn run(&mut self) -> Result<()> {
        let unless_gone = |done: Result<bool>| match done {
            Err(error) if error.kind() == Kind::Gone => Ok(false),
            other => other,
        };
        self.node.init(self.worker)?;
        loop {
            let done = self.step();
            if !unless_gone(done)? {
                break;
            }
        }
        self.phase = "stop";
        let result = match self.node.stop(self.worker) {
            Err(error) if error.kind() == Kind::Gone => Value::Null,
            other => other?,
        };
        self.worker.finish(result)
    }
}

impl Worker {
    /// Runs a node to its end; what `main` returns: 0 finished, 1 failed, 70 the daemon is gone.
    pub fn run(&self, node: impl Node) -> ExitCode {
        let mut inner = Loop { worker: self, node, phase: "init", produces: true };
        match inner.run() {
            Ok(()) => ExitCode::SUCCESS,
            Err(error) => {
                let phase = inner.phase;
                eprintln!("chronetix worker: {phase}: {error}");
                if !error.is_daemon_gone() {
                    self.fault(phase, &error);
                }
                code(&error)
            }
        }
    }
}

fn code(error: &Error) -> ExitCode {
    ExitCode::from(if error.is_daemon_gone() { DAEMON_GONE } else { FAILED })
}

/// Runs the node of the worker that the daemon has started this process for; what `main` returns.
pub fn run(node: impl Node) -> ExitCode {
    match Worker::inherit() {
        Ok(worker) => worker.run(node),
        Err(error) => {
            eprintln!("chronetix worker: {error}");
            code(&error)
        }
    }
}
