//! What a worker sleeps on, and the lines by which the ends of a route ring each other (shm/SPEC.md, 7.1).

use std::cell::{Cell, RefCell};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::rc::Rc;

use rustix::event::{epoll, PollFd, PollFlags, Timespec};
use rustix::io::Errno;
use rustix::net::{AddressFamily, RecvFlags, ReturnFlags, SendFlags, Shutdown, SocketType};

const EVENTS: usize = 16;
const BYTES: usize = 256;
const SECOND: u64 = 1_000_000_000;

#[derive(Clone, Copy, PartialEq, Eq)]
enum LineState {
    /// Nothing can come on it.
    Mute,
    Open,
    /// The peer has sent a descriptor: it is never read or closed.
    Spoilt,
}

type Known = (Rc<OwnedFd>, LineState);

/// One epoll with every line, the control socket and the timer.
pub(crate) struct Bell {
    epoll: OwnedFd,
    /// The lines, by descriptor.
    lines: RefCell<Vec<Option<Known>>>,
    spoilt: Cell<u32>,
}

fn retry<T>(mut call: impl FnMut() -> Result<T, Errno>) -> Result<T, Errno> {
    loop {
        match call() {
            Err(Errno::INTR) => {}
            done => return done,
        }
    }
}

/// Reads what has come on a line. False: a descriptor lies there, and nothing was read.
fn hear(fd: &Rc<OwnedFd>) -> bool {
    let mut bytes = [0; BYTES];
    let mut room = [rustix::io::IoSliceMut::new(&mut bytes)];
    let flags = RecvFlags::PEEK | RecvFlags::DONTWAIT;
    let seen = retry(|| rustix::net::recvmsg(fd, &mut room, &mut rustix::net::RecvAncillaryBuffer::default(), flags));
    let length = match seen {
        Ok(seen) if seen.flags.contains(ReturnFlags::CTRUNC) => return false,
        Ok(seen) => seen.bytes,
        Err(_) => 0,
    };
    if length > 0 {
        let _ = retry(|| rustix::net::recv(fd, &mut bytes[..length], RecvFlags::DONTWAIT));
    }
    true
}

impl Bell {
    pub(crate) fn new() -> Result<Self, Errno> {
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        Ok(Self { epoll, lines: RefCell::default(), spoilt: Cell::new(0) })
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.epoll
    }

    /// Wakes the worker for as long as `fd` is readable.
    pub(crate) fn watch(&self, fd: &impl AsFd) -> Result<(), Errno> {
        let key = epoll::EventData::new_u64(fd.as_fd().as_raw_fd() as u64);
        epoll::add(&self.epoll, fd, key, epoll::EventFlags::IN)
    }

    /// Sleeps until something has rung or `timeout_ns` has passed (None: never), and clears it. Calls `other` for each
    /// descriptor that is no line.
    pub(crate) fn sleep(&self, timeout_ns: Option<u64>, mut other: impl FnMut(i32)) -> Result<(), Errno> {
        let mut room = [MaybeUninit::<epoll::Event>::uninit(); EVENTS];
        if let Some(ns) = timeout_ns.filter(|ns| *ns > 0) {
            let limit = Timespec { tv_sec: (ns / SECOND) as i64, tv_nsec: (ns % SECOND) as i64 };
            let mut entries = [PollFd::new(&self.epoll, PollFlags::IN)];
            match rustix::event::poll(&mut entries, Some(&limit)) {
                Ok(0) | Err(Errno::INTR) => return Ok(()),
                Ok(_) => {}
                Err(error) => return Err(error),
            }
        }
        let none = Timespec { tv_sec: 0, tv_nsec: 0 };
        let limit = timeout_ns.map(|_| &none);
        let (events, _) = match epoll::wait(&self.epoll, &mut room, limit) {
            Err(Errno::INTR) => return Ok(()),
            done => done?,
        };
        for event in events {
            let fd = event.data.u64() as usize;
            match self.line(fd) {
                None => other(fd as i32),
                Some((line, LineState::Open)) if !hear(&line) => {
                    self.note(fd, Some((line.clone(), LineState::Spoilt)));
                    self.spoilt.set(self.spoilt.get() + 1);
                    let _ = epoll::delete(&self.epoll, &*line);
                }
                Some(_) => {}
            }
        }
        Ok(())
    }

    fn line(&self, fd: usize) -> Option<Known> {
        self.lines.borrow().get(fd).cloned().flatten()
    }

    fn note(&self, fd: usize, line: Option<Known>) {
        let mut lines = self.lines.borrow_mut();
        if fd >= lines.len() {
            lines.resize(2 * fd + 64, None);
        }
        lines[fd] = line;
    }
}

/// This process's end of a line.
pub(crate) struct Line {
    fd: Rc<OwnedFd>,
    bell: Rc<Bell>,
    shut: bool,
}

impl Line {
    /// Has this end wake `bell` from now on. A producer's end on which nothing can come never does.
    pub(crate) fn adopt(fd: OwnedFd, consumer: bool, bell: &Rc<Bell>) -> Result<Self, String> {
        let is_line = rustix::net::sockopt::socket_domain(&fd) == Ok(AddressFamily::UNIX)
            && rustix::net::sockopt::socket_type(&fd) == Ok(SocketType::STREAM);
        if !is_line {
            return Err("a descriptor is no end of a line: no Unix stream socket".to_owned());
        }
        let peek = RecvFlags::PEEK | RecvFlags::DONTWAIT;
        let mute = retry(|| rustix::net::recv(&fd, &mut [0u8; 1][..], peek).map(|got| got.1)) == Ok(0);
        let shut = rustix::net::send(&fd, &[], SendFlags::DONTWAIT | SendFlags::NOSIGNAL) == Err(Errno::PIPE);
        let fd = Rc::new(fd);
        let number = fd.as_raw_fd() as usize;
        bell.note(number, Some((fd.clone(), if mute { LineState::Mute } else { LineState::Open })));
        let line = Self { fd, bell: bell.clone(), shut };
        if consumer || !mute {
            let key = epoll::EventData::new_u64(number as u64);
            epoll::add(&bell.epoll, &*line.fd, key, epoll::EventFlags::IN | epoll::EventFlags::ET)
                .map_err(|error| format!("a line cannot be listened to: {error}"))?;
        }
        Ok(line)
    }

    /// Wakes the other end. Never waits.
    pub(crate) fn ring(&self) {
        if self.shut {
            let _ = rustix::net::shutdown(&*self.fd, Shutdown::Write);
            return;
        }
        let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
        while let Err(Errno::INTR | Errno::NOBUFS | Errno::NOMEM) = rustix::net::send(&*self.fd, &[0], flags) {
            std::thread::yield_now();
        }
    }

    /// Whether the peer has sent descriptors on it.
    pub(crate) fn is_spoilt(&self) -> bool {
        let number = self.fd.as_raw_fd() as usize;
        self.bell.spoilt.get() > 0 && matches!(self.bell.line(number), Some((_, LineState::Spoilt)))
    }
}

impl Drop for Line {
    /// The peer notices. A line with a descriptor in it stays open for as long as this process lives.
    fn drop(&mut self) {
        let number = self.fd.as_raw_fd() as usize;
        let state = self.bell.line(number).map(|line| line.1);
        let _ = rustix::net::shutdown(&*self.fd, Shutdown::Both);
        let _ = epoll::delete(&self.bell.epoll, &*self.fd);
        self.bell.note(number, None);
        if state == Some(LineState::Spoilt) {
            self.bell.spoilt.set(self.bell.spoilt.get() - 1);
        }
        if state == Some(LineState::Spoilt) || (state == Some(LineState::Open) && !hear(&self.fd)) {
            std::mem::forget(self.fd.clone());
        }
    }
}
