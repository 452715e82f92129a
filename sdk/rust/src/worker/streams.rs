//! Stdout and stderr of a worker that outlives its daemon, which reads both.
//!
//! Who writes into a pipe that nobody reads gets SIGPIPE, so the worker holds a reading end of each. While no daemon is
//! there they do not block, the oldest of what they hold is taken away when the crate is called, and what a pipe that is
//! full refuses is lost. The next daemon is shown the reading ends, and told what was taken away.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{FdFlags, Result};

#[derive(Default)]
pub(crate) struct Streams {
    /// Reading ends of stdout and stderr.
    pub(crate) held: [Option<OwnedFd>; 2],
    pub(crate) lost: [u64; 2],
    active: bool,
}

fn stream(which: usize) -> impl AsFd {
    if which == 0 {
        rustix::stdio::stdout()
    } else {
        rustix::stdio::stderr()
    }
}

/// Puts a descriptor in the place of stdout or stderr.
pub(crate) fn replace(which: usize, fd: impl AsFd) -> Result<()> {
    if which == 0 {
        rustix::stdio::dup2_stdout(fd)
    } else {
        rustix::stdio::dup2_stderr(fd)
    }
}

fn hold_one(which: usize) -> Result<Option<OwnedFd>> {
    let status = rustix::fs::fstat(stream(which))?;
    if FileType::from_raw_mode(status.st_mode) != FileType::Fifo {
        return Ok(None);
    }
    let path = format!("/proc/self/fd/{}", which + 1);
    let own = rustix::fs::open(path.as_str(), OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    replace(which, &own)?;
    let _ = rustix::io::fcntl_setfd(stream(which), FdFlags::empty());
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
    rustix::fs::open(path.as_str(), flags, Mode::empty()).map(Some)
}

impl Streams {
    /// A daemon reads them now, and may die from now on.
    pub(crate) fn hold(&mut self) {
        for which in 0..2 {
            self.held[which] = hold_one(which).unwrap_or(None);
        }
    }

    fn set_blocking(&self, blocking: bool) {
        for which in (0..2).filter(|which| self.held[*which].is_some()) {
            if let Ok(flags) = rustix::fs::fcntl_getfl(stream(which)) {
                let flags = if blocking { flags - OFlags::NONBLOCK } else { flags | OFlags::NONBLOCK };
                let _ = rustix::fs::fcntl_setfl(stream(which), flags);
            }
        }
    }

    pub(crate) fn begin(&mut self) {
        self.active = true;
        self.set_blocking(false);
    }

    /// Once a quarter of a pipe is full, all but an eighth of it goes, the oldest first.
    pub(crate) fn make_room(&mut self) {
        let mut bytes = [0; 4096];
        for which in (0..2).filter(|_| self.active) {
            let Some(held) = &self.held[which] else { continue };
            let size = rustix::pipe::fcntl_getpipe_size(held).unwrap_or(0) as u64;
            let mut there = rustix::io::ioctl_fionread(held).unwrap_or(0);
            while there > size / 8 && size > 0 && (there > size / 4 || self.lost[which] > 0) {
                let got = rustix::io::read(held, &mut bytes).unwrap_or(0) as u64;
                if got == 0 {
                    break;
                }
                there = there.saturating_sub(got);
                self.lost[which] += got;
            }
        }
    }

    pub(crate) fn end(&mut self) {
        if std::mem::take(&mut self.active) {
            self.set_blocking(true);
        }
    }
}

impl Drop for Streams {
    /// No daemon will read: print to nowhere.
    fn drop(&mut self) {
        if !self.active {
            return;
        }
        let Ok(nowhere) = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty()) else {
            return;
        };
        for which in (0..2).filter(|which| self.held[*which].is_some()) {
            let _ = replace(which, &nowhere);
        }
    }
}
