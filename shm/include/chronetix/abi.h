/* The shared layout of the data plane, version 1: the content of RING and CREDIT memory, byte for byte.
 *
 * Little-endian, 64-byte lines, every word naturally aligned. Each memory has one writer; every other process maps it
 * read-only and checks what it reads. Offsets are asserted here and frozen by golden bytes in tests/shm/golden. A
 * change of any offset or meaning is a new CHX_ABI; new words may only take reserved (zero) bytes. The steps and memory
 * orders are in SPEC.md; the code that performs them in ring.h (producer) and credit.h (consumer).
 */
#ifndef CHRONETIX_ABI_H
#define CHRONETIX_ABI_H

#include <assert.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "the shared layout is little-endian"
#endif

#define CHX_ABI 1u
#define CHX_PAGE 4096u
#define CHX_LINE 64u
#define CHX_CREDITS_MAX 65536u
#define CHX_SLOTS_LOG2_MIN 3u
#define CHX_SLOTS_LOG2_MAX 17u
#define CHX_SEGMENTS_MAX 65535u
#define CHX_BUCKETS 608u

enum chx_kind { CHX_KIND_RING = 1, CHX_KIND_CREDIT = 2 };
/* Flags of a descriptor; all others are errors. */
#define CHX_FLAG_REDELIVERED 1u /* it may be a duplicate of a frame that was sent before */
#define CHX_FLAG_NOTED 2u       /* its last bytes are notes, and no payload: struct chx_notes, and metadata before it */

enum chx_policy { CHX_POLICY_BLOCK = 0, CHX_POLICY_DROP_NEWEST = 1, CHX_POLICY_LATEST = 2 };

/* Results of the operations in these headers; zero is success and negative is failure. */
enum chx_status {
    CHX_OK = 0,
    CHX_EMPTY = 1,        /* nothing there yet */
    CHX_ENDED = 2,        /* the producer closed and everything was taken */
    CHX_WOULD_BLOCK = -1, /* no credit or no room; nothing was written */
    CHX_CLOSED = -2,      /* the other end closed or detached */
    CHX_FAULT = -3,       /* the peer wrote what the ABI forbids; `why` tells */
    CHX_TOO_LARGE = -4,   /* can never fit the arena's limit */
    CHX_NO_MEMORY = -5,   /* private or shared memory is exhausted */
    CHX_SYSTEM = -6,      /* errno tells */
};

typedef _Atomic uint64_t chx_word;

/* Room for one sentence that says what is wrong. */
struct chx_why {
    char text[192];
};

/* One line, written once before sealing, validated and copied to private memory at attach and never read again.
 *
 *    0        8     12     16       24        32      36       40         44          48      52        60
 *   +--------+-----+------+--------+---------+-------+--------+----------+-----------+-------+---------+-----+
 *   | magic  | abi | kind | epoch  | base_seq| slots | credits| watermark| credit_low| policy| 0       | crc |
 *   |        |     |      |        |         | log2  |        | (ring)   | (ring)    | (ring)|         |     |
 *   +--------+-----+------+--------+---------+-------+--------+----------+-----------+-------+---------+-----+
 * magic: "CHXRING\0" or "CHXCRED\0". crc: CRC-32 (IEEE 802.3, as in zlib) of bytes 0..59.
 */
struct chx_header {
    uint8_t magic[8];
    uint32_t abi;
    uint32_t kind;
    uint64_t epoch;
    uint64_t base_seq;
    uint32_t slots_log2;
    uint32_t credits;
    uint32_t watermark;
    uint32_t credit_low;
    uint32_t policy;
    uint8_t reserved[8];
    uint32_t crc;
};
static_assert(sizeof(struct chx_header) == 64, "header is one line");
static_assert(offsetof(struct chx_header, epoch) == 16, "epoch");
static_assert(offsetof(struct chx_header, base_seq) == 24, "base_seq");
static_assert(offsetof(struct chx_header, slots_log2) == 32, "slots_log2");
static_assert(offsetof(struct chx_header, credits) == 36, "credits");
static_assert(offsetof(struct chx_header, watermark) == 40, "watermark");
static_assert(offsetof(struct chx_header, credit_low) == 44, "credit_low");
static_assert(offsetof(struct chx_header, policy) == 48, "policy");
static_assert(offsetof(struct chx_header, crc) == 60, "crc");

/* One frame, one line.
 *
 *    0        8        16       24       26      28      32        40           48      56          64
 *   +--------+--------+--------+--------+-------+-------+---------+------------+-------+-----------+
 *   | stamp  | offset | length | segment| flags | schema| time_ns | deadline_ns| trace | input_seq |
 *   +--------+--------+--------+--------+-------+-------+---------+------------+-------+-----------+
 * stamp = position + 1, written last (release); its partner is the acquire load in chx_consumer_take. The other fields
 * are plain words: they are ordered by the stamp.
 */
struct chx_desc {
    chx_word stamp;
    uint64_t offset;
    uint64_t length;
    uint16_t segment;
    uint16_t flags;
    uint32_t schema;
    uint64_t time_ns;
    uint64_t deadline_ns;
    uint64_t trace;
    uint64_t input_seq;
};
static_assert(sizeof(struct chx_desc) == 64, "descriptor is one line");
static_assert(offsetof(struct chx_desc, offset) == 8, "offset");
static_assert(offsetof(struct chx_desc, length) == 16, "length");
static_assert(offsetof(struct chx_desc, segment) == 24, "segment");
static_assert(offsetof(struct chx_desc, flags) == 26, "flags");
static_assert(offsetof(struct chx_desc, schema) == 28, "schema");
static_assert(offsetof(struct chx_desc, time_ns) == 32, "time_ns");
static_assert(offsetof(struct chx_desc, deadline_ns) == 40, "deadline_ns");
static_assert(offsetof(struct chx_desc, trace) == 48, "trace");
static_assert(offsetof(struct chx_desc, input_seq) == 56, "input_seq");

/* The last bytes of a frame with CHX_FLAG_NOTED, wherever they fall; `meta` bytes of metadata lie before them. */
struct chx_notes {
    int64_t stamp_ns; /* the sender's own time; 0: none */
    uint32_t meta;
    uint32_t reserved; /* 0 */
};
static_assert(sizeof(struct chx_notes) == 16, "notes");
static_assert(offsetof(struct chx_notes, meta) == 8, "meta");

/* Counters of the producing end: monotonic words with one writer, stored relaxed, read relaxed by observers. */
struct chx_producer_stats {
    chx_word committed;       /* frames */
    chx_word bytes;           /* payload bytes of them */
    chx_word would_block;     /* times a frame found no credit or no room */
    chx_word blocked_ns;      /* time the producer then waited */
    chx_word sleeps;          /* times it slept for it */
    chx_word wakes;           /* times it rang the consumer's doorbell */
    chx_word dropped;         /* frames not sent because no credit was left */
    chx_word skipped;         /* positions passed over because their slot was still held */
    chx_word max_outstanding; /* most frames ever committed and not returned */
    chx_word blocked_since;   /* 0, or when the wait began that blocked_ns does not count yet (not a counter) */
    chx_word returned_before; /* frames that came back before `returned` of the present CREDIT began to count */
    chx_word reserved[5];
};
static_assert(sizeof(struct chx_producer_stats) == 128, "two lines");

/* Further counters of the producing end: why frames were not sent, beside `dropped`. */
struct chx_producer_losses {
    chx_word no_room; /* frames: the arena had no room, and the policy does not wait */
    chx_word given_up; /* frames that the producer sent elsewhere after it had given this route up */
    chx_word gave_up_after_ns; /* 0, or how long it had then been waiting for a credit (not a counter) */
    chx_word reserved[5];
};
static_assert(sizeof(struct chx_producer_losses) == 64, "a line");

/* RING: one per route, written by its producer, mapped read-only by its consumer and by the observer.
 *
 *      0   header
 *     64   closed    0 while open, then final position + 1     partner: chx_consumer_take
 *    128   wake_at   0, or the `returned` count at which the sleeping producer wants its bell rung
 *                                                              partner: chx_consumer_return
 *    192   stats
 *    320   oldest    policy latest: position of the oldest frame that may still be read, all before it are overwritten
 *                                                              partners: chx_latest_peek, chx_latest_keep
 *    384   losses
 *    448   nap_ns   0, or how long a sleeping consumer may let frames gather: see pace.h
 *    456   zero
 *    512   desc[slots]   64 bytes each
 *   512 + 64*slots   skip[slots]   8 bytes each: position + 1 of a position that holds no frame
 * The size is rounded up to whole pages. Position p lives in slot p mod slots.
 */
struct chx_ring {
    struct chx_header header;
    chx_word closed;
    uint8_t pad0[56];
    chx_word wake_at;
    uint8_t pad1[56];
    struct chx_producer_stats stats;
    chx_word oldest;
    uint8_t pad2[56];
    struct chx_producer_losses losses;
    chx_word nap_ns;
    uint8_t pad3[56];
    struct chx_desc desc[];
};
static_assert(offsetof(struct chx_ring, closed) == 64, "closed");
static_assert(offsetof(struct chx_ring, wake_at) == 128, "wake_at");
static_assert(offsetof(struct chx_ring, stats) == 192, "stats");
static_assert(offsetof(struct chx_ring, oldest) == 320, "oldest");
static_assert(offsetof(struct chx_ring, losses) == 384, "losses");
static_assert(offsetof(struct chx_ring, nap_ns) == 448, "nap_ns");
static_assert(offsetof(struct chx_ring, desc) == 512, "desc");

/* Counters of the consuming end, by the same rule. */
struct chx_consumer_stats {
    chx_word taken;      /* frames taken, those that came again included */
    chx_word next;       /* positions below it were taken or passed over, here or by a predecessor */
    chx_word sleeps;     /* times it slept for a frame */
    chx_word wakes;      /* times it rang the producer's doorbell */
    chx_word latency_sum_ns;
    chx_word latency_max_ns;
    chx_word again;      /* of those taken: frames that a predecessor had taken */
    chx_word lost;       /* policy latest: frames overwritten before they were read */
    chx_word reserved[24];
};
static_assert(sizeof(struct chx_consumer_stats) == 256, "four lines");

/* CREDIT: one per route, written by its consumer, mapped read-only by its producer and by the observer.
 *
 *      0   header
 *     64   closed     0 while attached, then 1                  partner: chx_producer_detached
 *    128   wait_for   0, or position + 1 for which the sleeping consumer wants its bell rung
 *                                                               partner: chx_producer_commit
 *    192   returned   frames given back so far; policy latest: the position up to which all are done with
 *                                                               partner: chx_producer_reclaim
 *    256   stats
 *    512   latency[608]   commit-to-take in ns, log-linear buckets, see chx_bucket
 *   5376   stamp[slots]   8 bytes each: position + 1 of the last frame given back in this slot
 * The size is rounded up to whole pages.
 */
struct chx_credit {
    struct chx_header header;
    chx_word closed;
    uint8_t pad0[56];
    chx_word wait_for;
    uint8_t pad1[56];
    chx_word returned;
    uint8_t pad2[56];
    struct chx_consumer_stats stats;
    chx_word latency[CHX_BUCKETS];
    chx_word stamp[];
};
static_assert(offsetof(struct chx_credit, closed) == 64, "closed");
static_assert(offsetof(struct chx_credit, wait_for) == 128, "wait_for");
static_assert(offsetof(struct chx_credit, returned) == 192, "returned");
static_assert(offsetof(struct chx_credit, stats) == 256, "stats");
static_assert(offsetof(struct chx_credit, latency) == 512, "latency");
static_assert(offsetof(struct chx_credit, stamp) == 5376, "stamp");

/* Slots are the power of two that is at least twice the credits, so a held frame never stops the ring. */
static inline uint32_t chx_slots_log2(uint32_t credits) {
    uint32_t log2 = CHX_SLOTS_LOG2_MIN;
    while ((1u << log2) < 2 * credits) log2++;
    return log2;
}

static inline uint64_t chx_whole_pages(uint64_t bytes) {
    return (bytes + CHX_PAGE - 1) & ~(uint64_t)(CHX_PAGE - 1);
}

static inline uint64_t chx_ring_size(uint32_t slots_log2) {
    return chx_whole_pages(sizeof(struct chx_ring) + ((sizeof(struct chx_desc) + sizeof(chx_word)) << slots_log2));
}

static inline uint64_t chx_credit_size(uint32_t slots_log2) {
    return chx_whole_pages(sizeof(struct chx_credit) + (sizeof(chx_word) << slots_log2));
}

/* Bucket of a duration: 16 steps an octave, so a bucket is at most 6.25 % wide; everything from 2^41 ns is in the last.
 * After G. Tene's HdrHistogram. */
static inline uint32_t chx_bucket(uint64_t ns) {
    if (ns < 16) return (uint32_t)ns;
    uint32_t octave = 63u - (uint32_t)__builtin_clzll(ns);
    if (octave > 40) return CHX_BUCKETS - 1;
    return (octave - 4) * 16 + (uint32_t)(ns >> (octave - 4));
}

/* Smallest duration of a bucket; the inverse of chx_bucket. */
static inline uint64_t chx_bucket_floor(uint32_t bucket) {
    if (bucket < 32) return bucket;
    uint32_t octave = bucket / 16 + 3;
    return (uint64_t)(16 + bucket % 16) << (octave - 4);
}

/* Single-writer counter: no read-modify-write needed. */
static inline void chx_count(chx_word *word, uint64_t n) {
    atomic_store_explicit(word, atomic_load_explicit(word, memory_order_relaxed) + n, memory_order_relaxed);
}

static inline uint64_t chx_read(const chx_word *word) {
    return atomic_load_explicit(word, memory_order_relaxed);
}

#endif
