//! What a peer shows is refused unless it is sealed, whole and of the right size.

use std::io::Write;
use std::sync::atomic::Ordering;

use proptest::prelude::*;

use super::*;
use crate::abi::Policy;

#[test]
fn sealed_memory_is_read_as_it_was_written() {
    let own = OwnMap::create("test", 2 * PAGE, None).unwrap();
    own.copy_in(PAGE, b"a frame");
    own.store(8, 77);
    let peer = PeerMap::open(own.fd()).unwrap();
    assert_eq!(peer.bytes(PAGE, 7), b"a frame");
    assert_eq!((peer.load(8, Ordering::Acquire), peer.size()), (77, 2 * PAGE));
}

#[test]
fn memory_that_lacks_a_seal_is_refused() {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    for missing in [SealFlags::SHRINK, SealFlags::GROW, SealFlags::FUTURE_WRITE, SealFlags::SEAL] {
        let fd = rustix::fs::memfd_create("test", flags).unwrap();
        rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, PAGE).unwrap();
        rustix::fs::fcntl_add_seals(&fd, seals() - missing).unwrap();
        assert!(matches!(PeerMap::open(&fd), Err(Refusal::Fault(_))), "{missing:?}");
    }
}

#[test]
fn memory_whose_pages_are_not_reserved_is_refused() {
    let fd = rustix::fs::memfd_create("test", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING).unwrap();
    rustix::fs::ftruncate(&fd, PAGE).unwrap();
    rustix::fs::fcntl_add_seals(&fd, seals()).unwrap();
    assert!(matches!(PeerMap::open(&fd), Err(Refusal::Fault(text)) if text.contains("reserved")));
}

#[test]
fn a_file_is_no_memory() {
    let path = std::env::temp_dir().join(format!("chronetix-{}", std::process::id()));
    std::fs::File::create(&path).unwrap().write_all(&[0; 4096]).unwrap();
    let file = std::fs::File::open(&path).unwrap();
    std::fs::remove_file(&path).unwrap();
    assert!(matches!(PeerMap::open(&file), Err(Refusal::Fault(_))));
}

#[test]
#[should_panic(expected = "beyond a mapping")]
fn no_access_leaves_the_mapping() {
    OwnMap::create("test", PAGE, None).unwrap().word(PAGE);
}

proptest! {
    #[test]
    fn a_copy_has_the_bytes_of_any_place(at in 0u64..64, data in proptest::collection::vec(any::<u8>(), 0..200)) {
        let own = OwnMap::create("test", 2 * PAGE, None).unwrap();
        own.copy_in(at * 64, &data);
        let (peer, mut copy) = (PeerMap::open(own.fd()).unwrap(), Vec::new());
        peer.copy_out(at * 64, data.len() as u64, &mut copy);
        prop_assert_eq!(copy, data);
    }

    #[test]
    fn a_ring_is_attached_with_its_header(credits in 1u32..=300) {
        let header = Header::ring(1, 2, credits, 1, 0, Policy::Block);
        let own = OwnMap::create("test", header.size(), Some(&header)).unwrap();
        prop_assert_eq!(PeerMap::attach(own.fd(), Kind::Ring).unwrap().1, header);
        prop_assert!(PeerMap::attach(own.fd(), Kind::Credit).is_err());
    }
}
