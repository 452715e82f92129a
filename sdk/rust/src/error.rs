//! What goes wrong, with the codes of the catalogue (protocol/errors.json).

use std::fmt;

pub use crate::codes::Code;
use crate::memory::Refusal;

/// The result of this crate's functions.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why something did not happen, and a sentence about it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    kind: Kind,
    message: String,
}

/// The kinds of [`Error`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum Kind {
    /// No credit or no room within the time; nothing was sent.
    WouldBlock,
    /// No consumer is left: nobody wants what this node makes.
    Gone,
    /// An error of the catalogue.
    Code(Code),
    /// What the worker's own code says.
    Failed,
}

impl Error {
    pub(crate) fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    pub(crate) fn code_of(code: Code, message: impl Into<String>) -> Self {
        Self::new(Kind::Code(code), message)
    }

    pub(crate) fn refusal(route: &str, refusal: Refusal) -> Self {
        match refusal {
            Refusal::Fault(why) => Self::code_of(Code::RouteDetached, format!("route {route}: {why}")),
            Refusal::NoMemory => Self::code_of(Code::OutOfMemory, format!("there is no memory for {route}")),
            Refusal::System(why) => Self::code_of(Code::DescriptorRefused, format!("{route}: {why}")),
        }
    }

    /// Why the worker's own code fails: the node ends with this sentence.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// Its kind.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// Its code in the catalogue, if it has one.
    pub fn code(&self) -> Option<Code> {
        match self.kind {
            Kind::Code(code) => Some(code),
            _ => None,
        }
    }

    /// Whether the daemon is gone, and not to come back for this worker.
    pub fn is_daemon_gone(&self) -> bool {
        matches!(self.code(), Some(Code::ConnectionLost | Code::ConnectionCut | Code::ReattachRefused))
    }

    /// The name that a fault carries.
    pub(crate) fn name(&self) -> &'static str {
        match self.kind {
            Kind::WouldBlock => "WouldBlock",
            Kind::Gone => "Gone",
            Kind::Failed => "Failed",
            Kind::Code(code) => code.name(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.message)
    }
}

impl std::error::Error for Error {}

impl From<std::io::Error> for Error {
    fn from(error: std::io::Error) -> Self {
        Self::failed(error.to_string())
    }
}
