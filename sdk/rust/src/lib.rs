//! Workers for Chronetix flows: a process of its own that takes frames from its inputs, sends frames to its outputs and
//! exchanges messages with other nodes. Frames go through shared memory, without the daemon and without a copy on the way
//! to the reader; everything else goes over one socket to the daemon.
//!
//! There are two ways to write one: a [`Node`] with callbacks, which [`run`] runs; or a loop of one's own around
//! [`Worker::next`], or [`Worker::try_next`] and the worker's descriptor where there is an event loop already.
//!
//! ```no_run
//! use chronetix::{run, Frame, Node, Result, Value, Worker};
//!
//! #[derive(Default)]
//! struct Count(u64);
//!
//! impl Node for Count {
//!     fn frame(&mut self, _: &Worker, frame: &Frame<'_>) -> Result<()> {
//!         self.0 += frame.len() as u64;
//!         Ok(())
//!     }
//!
//!     fn stop(&mut self, _: &Worker) -> Result<Value> {
//!         Ok(self.0.into())
//!     }
//! }
//!
//! fn main() -> std::process::ExitCode {
//!     run(Count::default())
//! }
//! ```
//!
//! A worker belongs to one thread. The crate starts none but, with `on_daemon_loss: survive`, one that takes from the pipes
//! of stdout and stderr while no daemon reads them. The daemon's questions are answered, and memory that a
//! producer adds is mapped, while the crate is called. A callback that computes for a long time holds both up.

#![deny(unsafe_code)]

mod abi;
mod arena;
mod bell;
mod codes;
mod consumer;
mod error;
mod link;
mod memory;
mod pace;
mod producer;
mod value;
mod worker;

pub use abi::Policy;
pub use error::{Code, Error, Kind, Result};
pub use value::Value;
pub use worker::{
    run, Envelope, Event, Frame, Loan, Message, NoReply, Node, Produce, Reply, RequestId, Route, SendOptions, Tick,
    Wait, Worker,
};

#[cfg(test)]
mod tests;
