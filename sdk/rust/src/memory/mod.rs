//! Shared memory, and the few kernel calls that have no safe face: the one module with unsafe code.
//!
//! A mapping that was made here ([`OwnMap`]) is written through atomic words and through rooms, which its allocator
//! hands out once. A peer's mapping ([`PeerMap`]) is sealed before it is mapped, so that no read of it can fault, and is
//! only ever loaded from. Every offset is compared with the mapping's size before it is used.
#![allow(unsafe_code)]

pub(crate) mod system;

use std::os::fd::{AsFd, OwnedFd};
use std::ptr::NonNull;
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::io::Errno;
use rustix::mm::{Advice, MapFlags, ProtFlags};

use crate::abi::{Header, Kind, PAGE};

const WORD: u64 = 8;

/// Why a memory could not be made or is refused.
#[derive(Debug)]
pub(crate) enum Refusal {
    /// What the peer has shown breaks a rule.
    Fault(String),
    /// The machine cannot give that much.
    NoMemory,
    /// A kernel call failed.
    System(String),
}

fn failed(what: &str, error: Errno) -> Refusal {
    match error {
        Errno::NOSPC | Errno::NOMEM => Refusal::NoMemory,
        _ => Refusal::System(format!("{what}: {error}")),
    }
}

#[derive(Debug)]
struct Mapping {
    base: NonNull<u8>,
    size: u64,
}

impl Mapping {
    fn new(fd: impl AsFd, size: u64, writable: bool) -> Result<Self, Errno> {
        let (protection, more) = if writable {
            (ProtFlags::READ | ProtFlags::WRITE, MapFlags::POPULATE)
        } else {
            (ProtFlags::READ, MapFlags::empty())
        };
        let length = usize::try_from(size).map_err(|_| Errno::NOMEM)?;
        // SAFETY: a new mapping at an address of the kernel's choice overlaps nothing that exists.
        let base =
            unsafe { rustix::mm::mmap(std::ptr::null_mut(), length, protection, MapFlags::SHARED | more, fd, 0) }?;
        NonNull::new(base.cast()).map(|base| Self { base, size }).ok_or(Errno::NOMEM)
    }

    /// Checks that `length` bytes from `offset` on lie inside.
    fn at(&self, offset: u64, length: u64) -> NonNull<u8> {
        assert!(offset <= self.size && length <= self.size - offset, "an access beyond a mapping");
        // SAFETY: the sum lies inside of the mapping, or one behind its end.
        unsafe { self.base.add(offset as usize) }
    }

    fn word(&self, offset: u64) -> &AtomicU64 {
        assert!(offset.is_multiple_of(WORD), "a word that is not aligned");
        let word = self.at(offset, WORD).cast::<AtomicU64>();
        // SAFETY: eight aligned bytes inside of the mapping, which lives as long as the reference; whoever else changes
        // them does so atomically or is a peer, whose value is checked like any other.
        unsafe { word.as_ref() }
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        // SAFETY: the mapping was made by `new` with this size; references into it borrow from it.
        let _ = unsafe { rustix::mm::munmap(self.base.as_ptr().cast(), self.size as usize) };
    }
}

/// Memory that this process has made, and alone writes.
#[derive(Debug)]
pub(crate) struct OwnMap {
    map: Mapping,
    fd: OwnedFd,
}

impl OwnMap {
    /// New zeroed memory of whole pages, every page of it reserved, sealed after `header` was written.
    pub(crate) fn create(name: &str, size: u64, header: Option<&Header>) -> Result<Self, Refusal> {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let fd = match rustix::fs::memfd_create(name, flags | MemfdFlags::NOEXEC_SEAL) {
            Err(Errno::INVAL) => rustix::fs::memfd_create(name, flags),
            made => made,
        }
        .map_err(|error| failed("memfd_create", error))?;
        loop {
            match rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, size) {
                Err(Errno::INTR) => {}
                done => break done.map_err(|error| failed("fallocate", error))?,
            }
        }
        let map = Mapping::new(&fd, size, true).map_err(|error| failed("mmap", error))?;
        // SAFETY: the range is exactly this mapping; a forked child then lacks it, and can write nothing of its parent's.
        unsafe { rustix::mm::madvise(map.base.as_ptr().cast(), size as usize, Advice::LinuxDontFork) }
            .map_err(|error| failed("madvise", error))?;
        let own = Self { map, fd };
        if let Some(header) = header {
            own.copy_in(0, &header.bytes());
        }
        rustix::fs::fcntl_add_seals(&own.fd, seals()).map_err(|error| failed("F_ADD_SEALS", error))?;
        Ok(own)
    }

    pub(crate) fn fd(&self) -> &OwnedFd {
        &self.fd
    }

    pub(crate) fn size(&self) -> u64 {
        self.map.size
    }

    pub(crate) fn word(&self, offset: u64) -> &AtomicU64 {
        self.map.word(offset)
    }

    pub(crate) fn load(&self, offset: u64) -> u64 {
        self.word(offset).load(Ordering::Relaxed)
    }

    pub(crate) fn store(&self, offset: u64, value: u64) {
        self.word(offset).store(value, Ordering::Relaxed);
    }

    /// Adds to a counter whose one writer this is.
    pub(crate) fn count(&self, offset: u64, n: u64) {
        self.store(offset, self.load(offset).wrapping_add(n));
    }

    /// Copies `data` to `offset`, into an extent that the caller holds.
    pub(crate) fn copy_in(&self, offset: u64, data: &[u8]) {
        let to = self.map.at(offset, data.len() as u64);
        // SAFETY: the target lies inside of the mapping, and no reference points to an extent that is not handed out, so
        // `data` does not overlap it.
        unsafe { std::ptr::copy_nonoverlapping(data.as_ptr(), to.as_ptr(), data.len()) }
    }
}

/// A piece of an own segment that is being filled.
#[derive(Debug)]
pub(crate) struct Room {
    map: Rc<OwnMap>,
    offset: u64,
    length: usize,
}

impl Room {
    /// The caller's allocator hands out each extent once, until it has come back.
    pub(crate) fn new(map: &Rc<OwnMap>, offset: u64, length: usize) -> Self {
        map.map.at(offset, length as u64);
        Self { map: map.clone(), offset, length }
    }

    pub(crate) fn bytes(&self) -> &[u8] {
        let at = self.map.map.at(self.offset, self.length as u64);
        // SAFETY: inside of the mapping, which `map` keeps; the extent is this room's alone until it is committed.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), self.length) }
    }

    pub(crate) fn bytes_mut(&mut self) -> &mut [u8] {
        let at = self.map.map.at(self.offset, self.length as u64);
        // SAFETY: as in `bytes`, and the room is borrowed mutably.
        unsafe { std::slice::from_raw_parts_mut(at.as_ptr(), self.length) }
    }
}

/// A peer's memory, mapped to be read.
#[derive(Debug)]
pub(crate) struct PeerMap {
    map: Mapping,
}

impl PeerMap {
    /// Checks seals, size and reservation, and maps. The descriptor is not kept.
    pub(crate) fn open(fd: impl AsFd) -> Result<Self, Refusal> {
        let fault = |text: String| Err(Refusal::Fault(text));
        let found = match rustix::fs::fcntl_get_seals(&fd) {
            Ok(found) => found,
            Err(error) => return fault(format!("a descriptor is no memfd: {error}")),
        };
        if !found.contains(seals()) {
            return fault(format!("memory is not sealed as it must be: {found:?}"));
        }
        let status = rustix::fs::fstat(&fd).map_err(|error| failed("fstat", error))?;
        let size = match u64::try_from(status.st_size) {
            Ok(size) if size > 0 && size.is_multiple_of(PAGE) => size,
            _ => return fault(format!("memory of {} bytes is not whole pages", status.st_size)),
        };
        let reserved = u64::try_from(status.st_blocks).unwrap_or(0).saturating_mul(512);
        if reserved < size {
            return fault(format!("only {reserved} of {size} bytes are reserved"));
        }
        Mapping::new(fd, size, false).map(|map| Self { map }).map_err(|error| failed("mmap", error))
    }

    /// Maps a RING or CREDIT; its header is copied once, and the copy is checked.
    pub(crate) fn attach(fd: impl AsFd, kind: Kind) -> Result<(Self, Header), Refusal> {
        let map = Self::open(fd)?;
        let mut bytes = [0; 64];
        for (at, part) in bytes.chunks_exact_mut(8).enumerate() {
            part.copy_from_slice(&map.load(at as u64 * WORD, Ordering::Relaxed).to_ne_bytes());
        }
        let header = Header::read(&bytes, kind, map.size()).map_err(Refusal::Fault)?;
        Ok((map, header))
    }

    pub(crate) fn size(&self) -> u64 {
        self.map.size
    }

    pub(crate) fn load(&self, offset: u64, order: Ordering) -> u64 {
        self.map.word(offset).load(order)
    }

    /// The bytes of a frame. Its producer keeps them until the frame is given back; one that does not, can change them
    /// while they are read.
    pub(crate) fn bytes(&self, offset: u64, length: u64) -> &[u8] {
        let at = self.map.at(offset, length);
        // SAFETY: inside of the mapping, which cannot shrink because of its seals and lives as long as the reference. A
        // frame that is out is not written by a producer that keeps the protocol.
        unsafe { std::slice::from_raw_parts(at.as_ptr(), length as usize) }
    }

    /// Copies bytes that may be overwritten meanwhile, word by word, so that there is no race in the language's sense.
    pub(crate) fn copy_out(&self, offset: u64, length: u64, to: &mut Vec<u8>) {
        to.clear();
        to.reserve(length as usize);
        self.map.at(offset, length);
        let (first, whole) = (offset / WORD * WORD, length / WORD);
        for at in 0..whole {
            to.extend_from_slice(&self.load(first + at * WORD, Ordering::Relaxed).to_ne_bytes());
        }
        let rest = (length % WORD) as usize;
        if rest > 0 {
            to.extend_from_slice(&self.load(first + whole * WORD, Ordering::Relaxed).to_ne_bytes()[..rest]);
        }
    }
}

fn seals() -> SealFlags {
    SealFlags::SHRINK | SealFlags::GROW | SealFlags::FUTURE_WRITE | SealFlags::SEAL
}

#[cfg(test)]
mod tests;
