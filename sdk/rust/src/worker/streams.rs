//! Stdout and stderr of a worker that outlives its daemon, which reads both.
//!
//! Who writes into a pipe that nobody reads gets SIGPIPE or EPIPE, so the worker holds a reading end of each. Such a pipe is
//! full after a while, and then a write sleeps, for ever if no daemon comes. The worker's own thread cannot help: it may be
//! the one that sleeps. So a second thread, the keeper, watches the daemon's socket. While no daemon is there it takes the
//! oldest away and counts that. The next daemon is shown the reading ends, and told what was taken away. The keeper never
//! touches the worker. Output is never made non-blocking: `println!` panics when such a descriptor refuses something.

use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use rustix::event::{epoll, EventfdFlags, Timespec};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::{Errno, FdFlags, Result};

/// Between two looks while somebody prints.
const BUSY: Timespec = Timespec { tv_sec: 0, tv_nsec: 5_000_000 };
const IDLE: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

#[derive(Default)]
pub(crate) struct Streams {
    kept: Option<(Arc<Kept>, JoinHandle<()>)>,
}

/// What the worker and the keeper share.
struct Kept {
    state: Mutex<State>,
    epoll: OwnedFd,
    bell: OwnedFd,
}

#[derive(Default)]
struct State {
    /// Reading ends of stdout and stderr.
    held: [Option<OwnedFd>; 2],
    /// Bytes that were there at the keeper's last look.
    left: [u64; 2],
    lost: [u64; 2],
    /// How many daemons there were: which one an event of the keeper is about.
    daemons: u64,
    /// No daemon reads.
    alone: bool,
    ends: bool,
}

fn stream(which: usize) -> impl AsFd {
    if which == 0 {
        rustix::stdio::stdout()
    } else {
        rustix::stdio::stderr()
    }
}

/// Puts a descriptor in the place of stdout or stderr.
fn replace(which: usize, fd: impl AsFd) -> Result<()> {
    if which == 0 {
        rustix::stdio::dup2_stdout(fd)
    } else {
        rustix::stdio::dup2_stderr(fd)
    }
}

fn is_pipe(which: usize) -> Result<bool> {
    let status = rustix::fs::fstat(stream(which))?;
    Ok(FileType::from_raw_mode(status.st_mode) == FileType::Fifo)
}

fn open(which: usize, flags: OFlags) -> Result<OwnedFd> {
    rustix::fs::open(format!("/proc/self/fd/{}", which + 1), flags | OFlags::CLOEXEC, Mode::empty())
}

/// Gives stdout or stderr a description of this process alone, which reads if `flags` says so.
fn reopen(which: usize, flags: OFlags) -> Result<()> {
    replace(which, open(which, flags)?)?;
    rustix::io::fcntl_setfd(stream(which), FdFlags::empty())
}

fn hold_one(which: usize) -> Result<Option<OwnedFd>> {
    if !is_pipe(which)? {
        return Ok(None);
    }
    reopen(which, OFlags::RDWR)?;
    open(which, OFlags::RDONLY | OFlags::NONBLOCK).map(Some)
}

impl State {
    /// Once a quarter of a pipe is full, all but an eighth of it goes, the oldest first. (A pipe is full when all its pages
    /// are begun, which may be with half of its bytes.) True: something was printed since the last look.
    fn make_room(&mut self, which: usize) -> bool {
        let Some(held) = &self.held[which] else { return false };
        let mut bytes = [0; 4096];
        let waiting = || rustix::io::ioctl_fionread(held).unwrap_or(0);
        let size = rustix::pipe::fcntl_getpipe_size(held).unwrap_or(0) as u64;
        let mut there = waiting();
        let printed = there != self.left[which];
        let full = there > size / 4;
        while full && there > size / 8 {
            match rustix::io::read(held, &mut bytes) {
                Ok(got) if got > 0 => self.lost[which] += got as u64,
                _ => break, // a daemon that was shown the pipe has just emptied it
            }
            there = waiting();
        }
        self.left[which] = there;
        printed
    }
}

impl Kept {
    fn new() -> Result<Self> {
        let bell = rustix::event::eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)?;
        epoll::add(&epoll, &bell, epoll::EventData::new_u64(0), epoll::EventFlags::IN)?;
        Ok(Self { state: Mutex::default(), epoll, bell })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ring(&self) {
        let _ = rustix::io::write(&self.bell, &1u64.to_ne_bytes()); // one that refuses has been rung already
    }

    /// The keeper's thread.
    fn keep(&self) {
        let mut pause = None;
        loop {
            let mut room = [MaybeUninit::<epoll::Event>::uninit(); 2];
            let (events, _) = match epoll::wait(&self.epoll, &mut room, pause) {
                Err(Errno::INTR) => continue,
                done => done.expect("this thread owns a right epoll"),
            };
            let mut state = self.state();
            for event in events {
                match event.data.u64() {
                    0 => drop(rustix::io::read(&self.bell, &mut [0; 8])),
                    daemon => state.alone |= daemon == state.daemons,
                }
            }
            if state.ends {
                return;
            }
            pause = state.alone.then(|| {
                let printed = [state.make_room(0), state.make_room(1)];
                if printed.contains(&true) {
                    &BUSY
                } else {
                    &IDLE
                }
            });
        }
    }
}

impl Streams {
    /// The daemon behind the socket `daemon` reads them now, and may die from now on. `given`: what it has given for both.
    pub(crate) fn hold(&mut self, daemon: impl AsFd, given: &[OwnedFd]) -> Result<()> {
        let kept = match &self.kept {
            Some((kept, _)) => kept.clone(),
            None if !is_pipe(0)? && !is_pipe(1)? => return Ok(()),
            None => {
                let kept = Arc::new(Kept::new()?);
                let shared = kept.clone();
                let thread = std::thread::Builder::new().name("chronetix-print".into());
                let thread = thread.spawn(move || shared.keep()).map_err(|_| Errno::AGAIN)?;
                self.kept = Some((kept.clone(), thread));
                kept
            }
        };
        let mut state = kept.state();
        state.alone = false;
        state.daemons += 1;
        state.held = [None, None];
        for (which, fd) in given.iter().take(2).enumerate() {
            replace(which, fd)?;
        }
        for which in 0..2 {
            state.held[which] = hold_one(which)?;
        }
        let once = epoll::EventFlags::RDHUP | epoll::EventFlags::ONESHOT;
        // Of a daemon that is dead already this tells at once.
        epoll::add(&kept.epoll, daemon, epoll::EventData::new_u64(state.daemons), once)
    }

    /// No daemon reads.
    pub(crate) fn begin(&self) {
        if let Some((kept, _)) = &self.kept {
            kept.state().alone = true;
            kept.ring();
        }
    }

    /// Reading ends for the next daemon, of stdout and stderr; nothing unless both are pipes.
    pub(crate) fn shown(&self) -> Result<Vec<OwnedFd>> {
        let Some((kept, _)) = &self.kept else { return Ok(Vec::new()) };
        let state = kept.state();
        let [Some(out), Some(err)] = &state.held else { return Ok(Vec::new()) };
        [out, err].into_iter().map(|held| rustix::io::fcntl_dupfd_cloexec(held, 3)).collect()
    }

    /// Bytes of stdout and of stderr that were taken away and not told yet.
    pub(crate) fn take_lost(&self) -> [u64; 2] {
        self.kept.as_ref().map_or([0, 0], |(kept, _)| std::mem::take(&mut kept.state().lost))
    }
}

impl Drop for Streams {
    /// A write that comes later never sleeps for ever: it goes to nowhere if no daemon is there, else to a pipe that the
    /// daemon alone reads.
    fn drop(&mut self) {
        let Some((kept, thread)) = self.kept.take() else { return };
        kept.state().ends = true;
        kept.ring();
        let _ = thread.join();
        let state = kept.state();
        for which in (0..2).filter(|which| state.held[*which].is_some()) {
            let _ = if state.alone {
                let nowhere = rustix::fs::open("/dev/null", OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty());
                nowhere.and_then(|nowhere| replace(which, nowhere))
            } else if is_pipe(which) == Ok(true) {
                reopen(which, OFlags::WRONLY)
            } else {
                Ok(())
            };
        }
    }
}
