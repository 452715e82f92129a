//! Kernel calls that need an unsafe block: what is inherited, and what a socket's peer has not read yet.

use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::io::Errno;

/// Takes over a descriptor that this process has inherited, and closes it in programs that are started from here.
pub(crate) fn inherited(number: RawFd) -> Result<OwnedFd, Errno> {
    if number < 0 {
        return Err(Errno::BADF);
    }
    // SAFETY: the number is not negative, and the borrow ends with this call; that it is open is what the call finds out.
    let found = unsafe { BorrowedFd::borrow_raw(number) };
    rustix::io::fcntl_setfd(found, rustix::io::FdFlags::CLOEXEC)?;
    // SAFETY: it is open, and whoever has started this program has left it to the worker, which takes it once: the
    // variable that names it is removed.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

/// Bytes that were written to `socket` and that its peer has not read.
pub(crate) fn unread(socket: impl AsFd) -> Result<u32, Errno> {
    // SAFETY: the pattern reads one int, which is what SIOCOUTQ (0x5411) writes.
    unsafe {
        let getter = rustix::ioctl::Getter::<0x5411, i32>::new();
        rustix::ioctl::ioctl(socket, getter).map(|bytes| u32::try_from(bytes).unwrap_or(0))
    }
}
