//! The data plane's layout (shm/SPEC.md, sections 2 to 4): offsets, the header, the histogram's buckets.

pub(crate) const PAGE: u64 = 4096;
pub(crate) const LINE: u64 = 64;
pub(crate) const ABI: u32 = 1;
pub(crate) const CREDITS_MAX: u64 = 65536;
pub(crate) const SEGMENTS_MAX: u64 = 65535;
pub(crate) const POSITION_MAX: u64 = 1 << 62;

pub(crate) const REDELIVERED: u16 = 1;
pub(crate) const NOTED: u16 = 2;
pub(crate) const NOTES: u64 = 16;

/// Words of a RING.
pub(crate) mod ring {
    pub(crate) const CLOSED: u64 = 64;
    pub(crate) const WAKE_AT: u64 = 128;
    pub(crate) const COMMITTED: u64 = 192;
    pub(crate) const BYTES: u64 = 200;
    pub(crate) const WOULD_BLOCK: u64 = 208;
    pub(crate) const BLOCKED_NS: u64 = 216;
    pub(crate) const SLEEPS: u64 = 224;
    pub(crate) const WAKES: u64 = 232;
    pub(crate) const DROPPED: u64 = 240;
    pub(crate) const SKIPPED: u64 = 248;
    pub(crate) const MAX_OUTSTANDING: u64 = 256;
    pub(crate) const BLOCKED_SINCE: u64 = 264;
    pub(crate) const RETURNED_BEFORE: u64 = 272;
    pub(crate) const OLDEST: u64 = 320;
    pub(crate) const NO_ROOM: u64 = 384;
    pub(crate) const GIVEN_UP: u64 = 392;
    pub(crate) const GAVE_UP_AFTER: u64 = 400;
    pub(crate) const NAP: u64 = 448;
    pub(crate) const DESC: u64 = 512;
    pub(crate) const DESC_SIZE: u64 = 64;
}

/// Words of a CREDIT.
pub(crate) mod credit {
    pub(crate) const CLOSED: u64 = 64;
    pub(crate) const WAIT_FOR: u64 = 128;
    pub(crate) const RETURNED: u64 = 192;
    pub(crate) const TAKEN: u64 = 256;
    pub(crate) const NEXT: u64 = 264;
    pub(crate) const SLEEPS: u64 = 272;
    pub(crate) const WAKES: u64 = 280;
    pub(crate) const LATENCY_SUM: u64 = 288;
    pub(crate) const LATENCY_MAX: u64 = 296;
    pub(crate) const AGAIN: u64 = 304;
    pub(crate) const LOST: u64 = 312;
    pub(crate) const LATENCY: u64 = 512;
    pub(crate) const STAMP: u64 = 5376;
}

const BUCKETS: u64 = 608;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Ring = 1,
    Credit = 2,
}

/// What a route does with a frame that it has no credit for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Policy {
    /// The sender waits.
    #[default]
    Block,
    /// The frame is dropped, and counted.
    DropNewest,
    /// The oldest frame makes room for the newest.
    Latest,
}

/// The first line of RING and CREDIT, as a private copy.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Header {
    pub(crate) epoch: u64,
    pub(crate) base_seq: u64,
    pub(crate) credits: u32,
    pub(crate) watermark: u32,
    pub(crate) credit_low: u32,
    pub(crate) policy: Policy,
    ring: bool,
}

pub(crate) fn slots_log2(credits: u32) -> u32 {
    (3..).find(|log2| 1u64 << log2 >= 2 * u64::from(credits)).unwrap_or(3)
}

pub(crate) fn whole_pages(bytes: u64) -> u64 {
    bytes.div_ceil(PAGE) * PAGE
}

pub(crate) fn memory_size(kind: Kind, slots_log2: u32) -> u64 {
    whole_pages(match kind {
        Kind::Ring => ring::DESC + ((ring::DESC_SIZE + 8) << slots_log2),
        Kind::Credit => credit::STAMP + (8 << slots_log2),
    })
}

/// CRC-32 of IEEE 802.3, as zlib's `crc32`.
pub(crate) fn crc32(data: &[u8]) -> u32 {
    !data.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| (crc >> 1) ^ (0xEDB8_8320 & (0u32.wrapping_sub(crc & 1))))
    })
}

fn number(bytes: &[u8; 64], at: usize) -> u32 {
    u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]])
}

fn long(bytes: &[u8; 64], at: usize) -> u64 {
    u64::from(number(bytes, at)) | u64::from(number(bytes, at + 4)) << 32
}

impl Header {
    pub(crate) fn ring(epoch: u64, base_seq: u64, credits: u32, watermark: u32, low: u32, policy: Policy) -> Self {
        Self { epoch, base_seq, credits, watermark, credit_low: low, policy, ring: true }
    }

    pub(crate) fn credit(epoch: u64, base_seq: u64, credits: u32) -> Self {
        Self { epoch, base_seq, credits, ..Self::default() }
    }

    fn kind(&self) -> Kind {
        if self.ring {
            Kind::Ring
        } else {
            Kind::Credit
        }
    }

    pub(crate) fn slots_log2(&self) -> u32 {
        slots_log2(self.credits)
    }

    pub(crate) fn size(&self) -> u64 {
        memory_size(self.kind(), self.slots_log2())
    }

    pub(crate) fn bytes(&self) -> [u8; 64] {
        let mut bytes = [0; 64];
        let kind = self.kind();
        bytes[..8].copy_from_slice(magic(kind));
        let mut put = |at: usize, value: &[u8]| bytes[at..at + value.len()].copy_from_slice(value);
        put(8, &ABI.to_le_bytes());
        put(12, &(kind as u32).to_le_bytes());
        put(16, &self.epoch.to_le_bytes());
        put(24, &self.base_seq.to_le_bytes());
        put(32, &self.slots_log2().to_le_bytes());
        put(36, &self.credits.to_le_bytes());
        put(40, &self.watermark.to_le_bytes());
        put(44, &self.credit_low.to_le_bytes());
        put(48, &(self.policy as u32).to_le_bytes());
        let crc = crc32(&bytes[..60]);
        bytes[60..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads and checks a private copy of the line of a memory of `size` bytes.
    pub(crate) fn read(bytes: &[u8; 64], kind: Kind, size: u64) -> Result<Self, String> {
        let name = if kind == Kind::Ring { "ring" } else { "credit" };
        if &bytes[..8] != magic(kind) {
            return Err(format!("not a {name}: wrong magic"));
        }
        if number(bytes, 60) != crc32(&bytes[..60]) {
            return Err(format!("{name} header: checksum does not match"));
        }
        if number(bytes, 8) != ABI {
            return Err(format!("{name} header: ABI {}, this side speaks {ABI}", number(bytes, 8)));
        }
        if number(bytes, 12) != kind as u32 {
            return Err(format!("{name} header: kind {}", number(bytes, 12)));
        }
        let credits = number(bytes, 36);
        if credits == 0 || u64::from(credits) > CREDITS_MAX || number(bytes, 32) != slots_log2(credits) {
            return Err(format!("{name} header: {credits} credits in 2^{} slots", number(bytes, 32)));
        }
        let policy = match number(bytes, 48) {
            0 => Policy::Block,
            1 if kind == Kind::Ring => Policy::DropNewest,
            2 if kind == Kind::Ring => Policy::Latest,
            other => return Err(format!("{name} header: unknown policy {other}")),
        };
        let (watermark, low) = (number(bytes, 40), number(bytes, 44));
        if kind == Kind::Ring && (watermark == 0 || watermark > credits || low >= credits) {
            return Err(format!("ring header: watermark {watermark} and credit_low {low} of {credits} credits"));
        }
        let expected = memory_size(kind, slots_log2(credits));
        if size != expected {
            return Err(format!("{name} of {credits} credits has {size} bytes instead of {expected}"));
        }
        let (epoch, base_seq) = (long(bytes, 16), long(bytes, 24));
        Ok(Self { epoch, base_seq, credits, watermark, credit_low: low, policy, ring: kind == Kind::Ring })
    }

    /// Whether the ends of a route agree.
    pub(crate) fn matches(&self, theirs: &Self) -> Result<(), String> {
        let mine = (self.credits, self.epoch, self.base_seq);
        let other = (theirs.credits, theirs.epoch, theirs.base_seq);
        if mine == other {
            return Ok(());
        }
        Err(format!("this end has credits, epoch and base_seq {mine:?}, the other {other:?}"))
    }
}

fn magic(kind: Kind) -> &'static [u8; 8] {
    match kind {
        Kind::Ring => b"CHXRING\0",
        Kind::Credit => b"CHXCRED\0",
    }
}

/// The histogram's bucket of a duration.
pub(crate) fn bucket(ns: u64) -> u64 {
    if ns < 16 {
        return ns;
    }
    let octave = u64::from(63 - ns.leading_zeros());
    if octave > 40 {
        return BUCKETS - 1;
    }
    (octave - 4) * 16 + (ns >> (octave - 4))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn crc_is_zlibs() {
        assert_eq!(crc32(b"123456789"), 0xCBF4_3926);
    }

    #[test]
    fn buckets_are_as_the_specification_says() {
        assert_eq!([0, 15, 16, 31, 32, 1 << 41, u64::MAX].map(bucket), [0, 15, 16, 31, 32, 607, 607]);
    }

    proptest! {
        #[test]
        fn a_header_is_read_as_it_was_written(epoch: u64, base_seq: u64, credits in 1u32..=65536, part: u32) {
            let header = Header::ring(epoch, base_seq, credits, 1 + part % credits, part % credits, Policy::Latest);
            prop_assert_eq!(Header::read(&header.bytes(), Kind::Ring, header.size()), Ok(header));
        }

        #[test]
        fn any_changed_byte_of_a_header_is_refused(credits in 1u32..=65536, at in 0usize..64, by in 1u8..) {
            let header = Header::credit(3, 70, credits);
            let mut bytes = header.bytes();
            bytes[at] ^= by;
            prop_assert!(Header::read(&bytes, Kind::Credit, header.size()).is_err());
        }

        #[test]
        fn any_bytes_are_refused_or_a_header_of_that_size(bytes: [u8; 32], more: [u8; 32], size: u64) {
            let mut whole = [0; 64];
            whole[..32].copy_from_slice(&bytes);
            whole[32..].copy_from_slice(&more);
            whole[..8].copy_from_slice(b"CHXRING\0");
            whole[8] = 1;
            let crc = crc32(&whole[..60]);
            whole[60..].copy_from_slice(&crc.to_le_bytes());
            if let Ok(header) = Header::read(&whole, Kind::Ring, size) {
                prop_assert_eq!(header.size(), size);
            }
        }
    }
}
