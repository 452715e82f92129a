//! The ring protocol of `shm/SPEC.md`, small enough to be tried in every interleaving and under every allowed
//! reordering of memory, by [loom](https://docs.rs/loom). No test by load shows a missing fence; this does: each order
//! the protocol relies on has a mutant without it, and `tests/protocol.rs` says which scenario catches it and how.
//! `make model` runs it.
//!
//! # How it maps to the C code
//!
//! | here | C |
//! | --- | --- |
//! | [`memory::Route`] | `struct chx_ring`, `struct chx_credit` (`abi.h`), the arena's bytes, both doorbells (`doorbell.h`) |
//! | [`producer::Producer`] | `ring.h`, one function of the same name each; sleeping: `shm/native/waiting.c` |
//! | [`consumer::Consumer`], [`consumer::give_back`] | `credit.h`, likewise; sleeping: `shm/native/inlet.c` |
//! | [`consumer::Consumer::inherit`], [`producer::Producer::relink`] | `succession.h`; `producer_relink` in `shm/native/producer.c` |
//! | [`producer::send_shared`] | `outlet_block` while another thread of the process relinks; the lock is the interpreter's |
//! | [`protocol::Mutant`] | a place in them that orders something; its comment names the function |
//! | [`latest`] | policy latest: `latest.h`, `chx_producer_revoke` |
//! | [`scenario`] | what two or three threads do with them |
//! | [`verdict`] | what can go wrong |
//!
//! One word stands for a payload, another for a descriptor's fields; both are plain memory, where loom reports every
//! access that is not ordered. A frame's payload is its number. The bell is a counter under a mutex: the kernel orders a
//! byte sent on a line before the read that sees it. Statistics, loans, several routes, spinning, time limits (but
//! that of a nap, which rings the bell here) and the checks against liars are left out: none orders anything. Where C reports a fault of the peer, here an honest peer
//! has been accused, or the end of the stream was lost.
//!
//! # Bounds
//!
//! Two slots, one or two credits and extents, up to three frames, two or three threads. The ABI wants twice as many
//! slots as credits; here they are as many, which the scenarios allow and which brings skips earlier. A scenario without
//! `preemptions` is tried in every interleaving that loom tells apart; the others with at most that many preemptions.
//!
//! # What loom does not see
//!
//! - seq_cst accesses count as acq_rel. The only ones are in `chx_consumer_return`; see [`consumer::give_back`].
//! - Its seq_cst fences order more than C's: everything before an earlier fence happens before everything after a later
//!   one. So it could miss data that only a fence orders; here all data is ordered by a stamp or by `returned`.
//! - A death and the handing over of a memory are a thread that has ended and program order: both order everything before
//!   them, as the kernel does with a pidfd and a socket message. So the acquires of a succession are spare here.
//! - A load never sees a store that is executed later (load buffering). Plain memory is not affected: there loom looks at
//!   the order itself, not at values.

pub mod consumer;
pub mod latest;
pub mod memory;
pub mod producer;
pub mod protocol;
pub mod scenario;
pub mod verdict;
