//! The control socket: a u32 length (big-endian), one CBOR map, and the descriptors that belong to it.
//!
//! What is received is hostile until it is checked: a length is compared with the limit before memory is made for it, a
//! map is read strictly, and a message has exactly the descriptors that PROTOCOL.md gives it. Descriptors are kept in
//! order of arrival; a message takes its own when its frame is complete.

use std::collections::VecDeque;
use std::io::{IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags};
use rustix::io::Errno;
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use crate::error::{Code, Error, Result};
use crate::value::Value;

pub(crate) const FRAME_MAX: u64 = 16_777_216;
const HEAD: usize = 4;
const CHUNK: usize = 65536;
const RIGHTS: usize = 253;
const WAITING_MAX: usize = 4096;

/// A message and its descriptors.
#[derive(Debug)]
pub(crate) struct Incoming {
    pub(crate) message: Value,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Incoming {
    pub(crate) fn kind(&self) -> &str {
        self.message.get("type").as_str().unwrap_or("")
    }
}

/// The beginning of a message of that type.
pub(crate) fn message(kind: &str) -> Value {
    Value::map().with("type", kind)
}

/// A message as a frame.
pub(crate) fn frame(message: &Value, limit: u64) -> Result<Vec<u8>> {
    let mut bytes = vec![0; HEAD];
    message.write(&mut bytes);
    let size = bytes.len() - HEAD;
    if size as u64 > limit {
        let text = format!("a message of {size} bytes cannot be sent: at most {limit}");
        return Err(Error::code_of(Code::FrameNotSendable, text));
    }
    bytes[..HEAD].copy_from_slice(&(size as u32).to_be_bytes());
    Ok(bytes)
}

/// The frames of a stream, from its bytes and descriptors.
#[derive(Debug)]
pub(crate) struct Frames {
    pub(crate) limit: u64,
    bytes: Vec<u8>,
    fds: VecDeque<OwnedFd>,
}

impl Frames {
    pub(crate) fn new() -> Self {
        Self { limit: FRAME_MAX, bytes: Vec::new(), fds: VecDeque::new() }
    }

    pub(crate) fn feed(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
    }

    pub(crate) fn is_cut(&self) -> bool {
        !self.bytes.is_empty()
    }

    /// The next complete frame.
    pub(crate) fn next(&mut self) -> Result<Option<Incoming>> {
        let Some(head) = self.bytes.first_chunk::<HEAD>() else {
            return Ok(None);
        };
        let size = u32::from_be_bytes(*head) as usize;
        if size as u64 > self.limit {
            let text = format!("the daemon announced a frame of {size} bytes; at most {} are accepted", self.limit);
            return Err(Error::code_of(Code::FrameTooLarge, text));
        }
        let Some(body) = self.bytes.get(HEAD..HEAD + size) else {
            return Ok(None);
        };
        let message = Value::decode(body)?;
        self.bytes.drain(..HEAD + size);
        if message.get("type").as_str().is_none() {
            return Err(Error::code_of(Code::MalformedMessage, "a message has no type"));
        }
        let fds = self.take_fds(&message)?;
        Ok(Some(Incoming { message, fds }))
    }

    fn take_fds(&mut self, message: &Value) -> Result<Vec<OwnedFd>> {
        let count = descriptors_of(message)?;
        if count > self.fds.len() {
            let text = format!("a message needs {count} descriptors, but {} came", self.fds.len());
            return Err(Error::code_of(Code::MissingDescriptors, text));
        }
        let taken = self.fds.drain(..count).collect();
        if !self.fds.is_empty() && self.bytes.is_empty() {
            return Err(Error::code_of(Code::UnexpectedDescriptors, "descriptors came that belong to no message"));
        }
        Ok(taken)
    }
}

/// How many descriptors a message to a worker has.
fn descriptors_of(message: &Value) -> Result<usize> {
    match message.get("type").as_str() {
        Some("segment") => Ok(1),
        Some("reattached") => Ok(2),
        Some("link") => {
            let mut count = 2 * message.get("outputs").items().len();
            for input in message.get("inputs").items() {
                let Value::List(segments) = input.get("segments") else {
                    return Err(Error::code_of(Code::MalformedMessage, "a message of type link lacks segments"));
                };
                count += 2 + segments.len() + usize::from(input.get("predecessor").as_bool().unwrap_or(false));
            }
            Ok(count)
        }
        _ => Ok(0),
    }
}

/// The socket to the daemon.
#[derive(Debug)]
pub(crate) struct Link {
    fd: OwnedFd,
    pub(crate) frames: Frames,
    chunk: Vec<u8>,
}

impl Link {
    pub(crate) fn new(fd: OwnedFd) -> Self {
        Self { fd, frames: Frames::new(), chunk: vec![0; CHUNK] }
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    /// Reads what is there. False: nothing now.
    fn read(&mut self) -> Result<bool> {
        let lost = |text: String| Error::code_of(Code::ConnectionLost, text);
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RIGHTS))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let got = loop {
            match rustix::net::recvmsg(&self.fd, &mut [IoSliceMut::new(&mut self.chunk)], &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => return Ok(false),
                Err(error) if error != Errno::CONNRESET => return Err(lost(error.to_string())),
                Err(_) => return Err(lost("the daemon has closed the connection".to_owned())),
                Ok(got) => break got,
            }
        };
        for part in control.drain() {
            if let RecvAncillaryMessage::ScmRights(fds) = part {
                self.frames.fds.extend(fds);
            }
        }
        if got.flags.contains(ReturnFlags::CTRUNC) || self.frames.fds.len() > WAITING_MAX {
            return Err(Error::code_of(Code::MissingDescriptors, "descriptors were lost on the way, or are too many"));
        }
        if got.bytes == 0 {
            return Err(if self.frames.is_cut() {
                Error::code_of(Code::ConnectionCut, "the connection ended in the middle of a frame")
            } else {
                lost("the daemon has closed the connection".to_owned())
            });
        }
        let Self { frames, chunk, .. } = self;
        frames.feed(&chunk[..got.bytes]);
        Ok(true)
    }

    /// The next message; None: nothing is there.
    pub(crate) fn receive(&mut self) -> Result<Option<Incoming>> {
        loop {
            if let Some(incoming) = self.frames.next()? {
                return Ok(Some(incoming));
            }
            if !self.read()? {
                return Ok(None);
            }
        }
    }

    /// Waits until something can be read.
    pub(crate) fn wait(&self) {
        let _ = rustix::event::poll(&mut [PollFd::new(&self.fd, PollFlags::IN)], None);
    }

    /// Sends a frame and its descriptors. Waits while the daemon is slow to read.
    pub(crate) fn send(&self, frame: &[u8], fds: &[BorrowedFd<'_>]) -> Result<(), Errno> {
        let (mut left, mut fds) = (frame, fds);
        while !left.is_empty() {
            let (now, later) = fds.split_at(fds.len().min(RIGHTS));
            let part = if later.is_empty() { left } else { &left[..1] };
            let sent = self.send_some(part, now)?;
            left = &left[sent..];
            fds = later;
        }
        Ok(())
    }

    fn send_some(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, Errno> {
        loop {
            let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(RIGHTS))];
            let mut control = SendAncillaryBuffer::new(&mut space);
            if !fds.is_empty() {
                control.push(SendAncillaryMessage::ScmRights(fds));
            }
            let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
            match rustix::net::sendmsg(self.fd.as_fd(), &[IoSlice::new(bytes)], &mut control, flags) {
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    let _ = rustix::event::poll(&mut [PollFd::new(&self.fd, PollFlags::OUT)], None);
                }
                done => return done,
            }
        }
    }
}
