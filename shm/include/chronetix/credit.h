/* The consuming end of a route: it owns CREDIT and reads RING and the producer's segments.
 *
 * Calls on one consumer are serialised by its caller, except chx_consumer_return, which any thread may call. A
 * descriptor is copied into locals, checked, and only then used; a wrong one detaches the route (CHX_FAULT). All code
 * that writes CREDIT is in this file, so that each word's order can be read beside its partner's in ring.h.
 */
#ifndef CHRONETIX_CREDIT_H
#define CHRONETIX_CREDIT_H

#include <stdlib.h>

#include "clock.h"
#include "doorbell.h"
#include "failpoint.h"
#include "hints.h"
#include "memory.h"
#include "pace.h"

enum chx_consumer_state {
    CHX_CONSUMER_UNLINKED,
    CHX_CONSUMER_OPEN,
    CHX_CONSUMER_ENDED,    /* the producer closed or died, and everything was taken */
    CHX_CONSUMER_DETACHED, /* closed at this end */
    CHX_CONSUMER_FAULTY,   /* the producer broke the ABI; `why` tells */
};

#define CHX_NO_END UINT64_MAX
#define CHX_POSITION_MAX (1ull << 62) /* no route reaches this position; a peer that claims it is at fault */

struct chx_reader_segment {
    const uint8_t *base;
    uint64_t size;
    struct chx_guard *guard;
};

struct chx_consumer {
    struct chx_credit *credit;
    const struct chx_ring *ring;
    const struct chx_desc *desc;
    const chx_word *skip;
    struct chx_reader_segment *segments;
    uint32_t segment_count;
    uint64_t mapped;         /* bytes of all segments */
    _Atomic uint32_t *reads; /* by slot: 0, or chx_reads() of the frame that is held in it */
    uint32_t mask, slots, credits;
    uint64_t position; /* of the next frame */
    uint64_t taken;
    uint64_t known;    /* a predecessor had taken the frames at positions below it */
    uint64_t end;      /* where a dead producer's stage ends, or CHX_NO_END */
    uint64_t *again;   /* stamps, ascending: a predecessor had taken these frames, and returned later ones */
    uint32_t again_next, again_count;
    uint8_t special;   /* one of the four above matters: see succession.h */
    uint32_t torn, copying; /* policy latest: frames overwritten while copied, in a row; copies under way */
    uint64_t lost;          /* the last count, once a drained stage has no CREDIT: see chx_consumer_lost */
    uint8_t latest, blocks; /* of the policies latest and block */
    enum chx_consumer_state state;
    int line;              /* to the producer, or -1 */
    struct chx_bell *bell; /* what the producer's rings wake */
    struct chx_header header;
    struct chx_map ring_map, credit_map;
    struct chx_why why;
};

/* A frame that was taken: payload and a private copy of its descriptor. */
struct chx_taken {
    const uint8_t *data;
    uint64_t length, stamp, seq;
    uint64_t time_ns, deadline_ns, trace, input_seq;
    uint32_t schema;
    uint16_t flags, segment; /* segment + 1; 0: it lies in none */
    uint32_t meta;           /* with CHX_FLAG_NOTED: bytes of metadata, which lie behind the payload; else 0 */
};

/* Bytes of its extent: `length` is the payload alone. */
static inline uint64_t chx_taken_bytes(const struct chx_taken *taken) {
    return taken->flags & CHX_FLAG_NOTED ? taken->length + taken->meta + sizeof(struct chx_notes) : taken->length;
}

/* The mark of a slot whose frame is held or copied: it names the segment in which the frame lies. */
static inline uint32_t chx_reads(const struct chx_taken *taken) { return taken->segment + 1u; }
static inline uint32_t chx_reads_segment(uint32_t index) { return index + 2u; }

/* Make the CREDIT and seal it. `header` carries epoch, base_seq and credits. */
static inline enum chx_status chx_consumer_init(struct chx_consumer *c, const struct chx_header *header) {
    memset(c, 0, sizeof *c);
    c->line = c->ring_map.fd = c->credit_map.fd = -1;
    c->end = CHX_NO_END;
    c->header = *header;
    chx_header_finish(&c->header, CHX_KIND_CREDIT);
    enum chx_status status =
        chx_memory_create("chronetix-credit", chx_credit_size(c->header.slots_log2), 1, &c->credit_map);
    if (status != CHX_OK) return status;
    c->credit = (struct chx_credit *)(void *)c->credit_map.base;
    memcpy(&c->credit->header, &c->header, sizeof c->header);
    if (chx_memory_seal(&c->credit_map) != 0) return CHX_SYSTEM;
    c->slots = 1u << c->header.slots_log2;
    c->mask = c->slots - 1;
    c->credits = header->credits;
    c->reads = calloc(c->slots, sizeof *c->reads);
    return c->reads ? CHX_OK : CHX_NO_MEMORY;
}

/* Attach the producer's RING, and this end of the line to it: what comes on it wakes `bell`. */
static inline enum chx_status chx_consumer_link(struct chx_consumer *c, int ring_fd, int line_fd,
                                                struct chx_bell *bell) {
    struct chx_header theirs;
    enum chx_status status = chx_memory_attach(ring_fd, CHX_KIND_RING, &c->ring_map, &theirs, &c->why);
    if (status != CHX_OK) return status;
    status = chx_header_match(&c->header, &theirs, &c->why);
    if (status == CHX_OK) {
        c->line = chx_line_adopt(line_fd, 1, bell, &c->why);
        if (c->line < 0) status = CHX_FAULT;
    }
    if (status != CHX_OK) {
        chx_unmap(&c->ring_map);
        return status;
    }
    c->bell = bell;
    c->ring = (const struct chx_ring *)(const void *)c->ring_map.base;
    c->desc = c->ring->desc;
    c->skip = (const chx_word *)(const void *)(c->desc + c->slots);
    c->latest = theirs.policy == CHX_POLICY_LATEST;
    c->blocks = theirs.policy == CHX_POLICY_BLOCK;
    c->state = CHX_CONSUMER_OPEN;
    return CHX_OK;
}

/* Map segment `index` of the producer's arena. Mapping the same index twice is a fault. A stage that is drained needs
 * none. */
static inline enum chx_status chx_consumer_map(struct chx_consumer *c, uint32_t index, int fd) {
    if (!c->credit) return CHX_OK;
    if (index >= CHX_SEGMENTS_MAX) return CHX_REFUSE(&c->why, "segment %u: at most %u", index, CHX_SEGMENTS_MAX);
    if (index < c->segment_count && c->segments[index].base)
        return CHX_REFUSE(&c->why, "segment %u is mapped already", index);
    if (index >= c->segment_count) {
        struct chx_reader_segment *segments = realloc(c->segments, (index + 1) * sizeof *segments);
        if (!segments) return CHX_NO_MEMORY;
        memset(segments + c->segment_count, 0, (index + 1 - c->segment_count) * sizeof *segments);
        c->segments = segments;
        c->segment_count = index + 1;
    }
    struct chx_map map;
    enum chx_status status = chx_memory_open(fd, &map, &c->why);
    if (status != CHX_OK) return status;
    c->segments[index] = (struct chx_reader_segment){map.base, map.size, map.guard};
    c->mapped += map.size;
    return CHX_OK;
}

/* Of latest.h: what differs when the producer may overwrite what it has sent. */
static inline enum chx_status chx_latest_look(struct chx_consumer *c, struct chx_taken *out);
static inline enum chx_status chx_latest_peek(struct chx_consumer *c);

static inline enum chx_status chx_consumer_fault(struct chx_consumer *c) {
    c->state = CHX_CONSUMER_FAULTY;
    atomic_store_explicit(&c->credit->closed, 1, memory_order_release);
    chx_line_ring(c->line);
    return CHX_FAULT;
}

/* Unmap segment `index`, which the producer has given back. If a frame of it has not come back, the producer has broken
 * the protocol: the route ends, and the memory stays mapped under its readers. reads: acquire; partner: the release in
 * chx_consumer_stamp, before the stamp that the producer has seen. */
static inline enum chx_status chx_consumer_drop(struct chx_consumer *c, uint32_t index) {
    if (!c->credit) return CHX_OK; /* drained: nothing is mapped any more */
    if (index >= c->segment_count || !c->segments[index].base) {
        CHX_SAY(&c->why, "segment %u was dropped, but is not mapped", index);
        return chx_consumer_fault(c);
    }
    for (uint32_t slot = 0; slot < c->slots; slot++) {
        if (atomic_load_explicit(&c->reads[slot], memory_order_acquire) != chx_reads_segment(index)) continue;
        if (c->latest) return CHX_WOULD_BLOCK; /* it is being copied, though it was overwritten: soon done */
        CHX_SAY(&c->why, "segment %u was dropped while a frame of it is held", index);
        return chx_consumer_fault(c);
    }
    struct chx_reader_segment *segment = &c->segments[index];
    if (segment->guard) chx_guard_drop(segment->guard);
    munmap((void *)(uintptr_t)segment->base, segment->size);
    c->mapped -= segment->size;
    *segment = (struct chx_reader_segment){0};
    return CHX_OK;
}

/* ---- take ------------------------------------------------------------------------------------------------------- */

/* A stamp of this slot is 0, or of an earlier lap, or the awaited one; no correct producer writes another one. */
static inline int chx_stamp_possible(const struct chx_consumer *c, uint64_t stamp) {
    uint64_t awaited = c->position + 1;
    return stamp == 0 || (stamp <= awaited && ((stamp ^ awaited) & c->mask) == 0);
}

/* The notes behind the payload, read once; what is left is the payload's length. Out of line: few frames have notes. */
__attribute__((noinline, cold, unused)) static enum chx_status chx_notes_check(struct chx_consumer *c, uint64_t position,
                                                                              struct chx_taken *out) {
    unsigned long long at = (unsigned long long)position;
    struct chx_notes notes;
    if (out->length < sizeof notes)
        return CHX_REFUSE(&c->why, "frame at %llu: %llu bytes, fewer than notes have", at, (unsigned long long)out->length);
    uint64_t before = out->length - sizeof notes;
    memcpy(&notes, out->data + before, sizeof notes);
    atomic_signal_fence(memory_order_seq_cst); /* the copy is what is checked */
    if (notes.reserved || notes.meta > before)
        return CHX_REFUSE(&c->why, "frame at %llu: notes of %u bytes (and 0x%x) behind %llu", at, notes.meta, notes.reserved,
                          (unsigned long long)before);
    out->meta = notes.meta;
    out->length = before - notes.meta;
    return CHX_OK;
}

/* Check the descriptor of `position`, and set why if it is wrong. The caller has seen its stamp (acquire). EMPTY: its
 * segment is not mapped yet. */
static inline enum chx_status chx_desc_check(struct chx_consumer *c, uint64_t position, struct chx_taken *out) {
    const struct chx_desc *desc = &c->desc[position & c->mask];
    uint64_t offset = desc->offset, length = desc->length;
    uint32_t segment = desc->segment, flags = desc->flags;
    out->schema = desc->schema;
    out->time_ns = desc->time_ns;
    out->deadline_ns = desc->deadline_ns;
    out->trace = desc->trace;
    out->input_seq = desc->input_seq;
    atomic_signal_fence(memory_order_seq_cst); /* the copies above are the ones that are checked below */
    unsigned long long at = (unsigned long long)position;
    if (flags & ~(CHX_FLAG_REDELIVERED | CHX_FLAG_NOTED))
        return CHX_REFUSE(&c->why, "frame at %llu: unknown flags 0x%x", at, flags);
    /* A correct producer passes over such a slot. Ordered by its stamp, which it stores after it has seen this
     * consumer's. */
    if (atomic_load_explicit(&c->reads[position & c->mask], memory_order_relaxed))
        return c->latest ? CHX_WOULD_BLOCK /* another thread still copies that one, which was overwritten */
                         : CHX_REFUSE(&c->why, "frame at %llu: its slot has a frame that is still held", at);
    out->flags = (uint16_t)flags;
    out->length = length;
    out->segment = 0;
    if (length == 0) {
        out->data = (const uint8_t *)"";
        if (flags & CHX_FLAG_NOTED) return CHX_REFUSE(&c->why, "frame at %llu: no bytes, but notes among them", at);
        return CHX_OK;
    }
    if (segment >= c->segment_count || !c->segments[segment].base) return CHX_EMPTY;
    const struct chx_reader_segment *memory = &c->segments[segment];
    if (offset % CHX_LINE != 0 || offset > memory->size || length > memory->size - offset)
        return CHX_REFUSE(&c->why, "frame at %llu: %llu bytes at offset %llu of segment %u, which has %llu", at,
                          (unsigned long long)length, (unsigned long long)offset, segment,
                          (unsigned long long)memory->size);
    out->data = memory->base + offset;
    out->segment = (uint16_t)(segment + 1);
    return flags & CHX_FLAG_NOTED ? chx_notes_check(c, position, out) : CHX_OK;
}

static inline void chx_consumer_reach(struct chx_consumer *c) {
    uint64_t next = c->position > c->known ? c->position : c->known;
    atomic_store_explicit(&c->credit->stats.next, next, memory_order_relaxed);
}

/* Is something at the next position? OK: a descriptor. EMPTY: nothing. Steps over skipped positions on the way.
 * stamp and skip: acquire; partners: the release stores in chx_producer_commit and chx_producer_skip. */
static inline enum chx_status chx_consumer_peek(struct chx_consumer *c) {
    if (c->latest) return chx_latest_peek(c);
    for (uint32_t steps = 0; steps <= c->slots; steps++) {
        uint32_t slot = (uint32_t)(c->position & c->mask);
        uint64_t stamp = atomic_load_explicit(&c->desc[slot].stamp, memory_order_acquire);
        if (stamp == c->position + 1) return CHX_OK;
        uint64_t skip = atomic_load_explicit(&c->skip[slot], memory_order_acquire);
        if (skip != c->position + 1) {
            if (chx_stamp_possible(c, stamp) && chx_stamp_possible(c, skip)) return CHX_EMPTY;
            return CHX_REFUSE(&c->why, "position %llu: impossible stamps %llu and %llu", (unsigned long long)c->position,
                              (unsigned long long)stamp, (unsigned long long)skip);
        }
        c->position++;
        chx_consumer_reach(c);
    }
    return CHX_REFUSE(&c->why, "more skipped positions than slots");
}

/* No frame is there: has the stream ended? closed: acquire; partner: chx_producer_close. Frames that were committed
 * before it are visible, so the caller looks at the next position once more before it reports the end. */
static inline enum chx_status chx_consumer_end(struct chx_consumer *c) {
    uint64_t closed = atomic_load_explicit(&c->ring->closed, memory_order_acquire);
    uint64_t end = closed ? closed - 1 : c->end;
    if (end == CHX_NO_END) return CHX_EMPTY;
    enum chx_status status = chx_consumer_peek(c);
    if (status != CHX_EMPTY) return status;
    if (end != c->position || (c->end != CHX_NO_END && c->end != end))
        return CHX_REFUSE(&c->why, "%s at position %llu, but frames end at %llu", closed ? "closed" : "left by a dead producer",
                          (unsigned long long)end, (unsigned long long)c->position);
    c->state = CHX_CONSUMER_ENDED;
    return CHX_ENDED;
}

/* chx_consumer_look for a consumer that repeats frames of its predecessor, or whose stage has a known end. */
static inline enum chx_status chx_consumer_look_special(struct chx_consumer *c, struct chx_taken *out) {
    uint64_t position = c->position;
    enum chx_status status = CHX_OK;
    if (c->again_next < c->again_count) {
        position = c->again[c->again_next] - 1;
        uint64_t stamp = atomic_load_explicit(&c->desc[position & c->mask].stamp, memory_order_acquire);
        if (stamp != position + 1)
            return CHX_REFUSE(&c->why, "position %llu: its frame was not returned, and is gone", (unsigned long long)position);
    } else {
        status = chx_consumer_peek(c);
        if (status == CHX_EMPTY) status = chx_consumer_end(c);
        position = c->position;
        if (status == CHX_OK && position >= c->end)
            return CHX_REFUSE(&c->why, "a frame at position %llu, but its dead producer's end at %llu",
                              (unsigned long long)position, (unsigned long long)c->end);
    }
    if (status == CHX_OK) status = chx_desc_check(c, position, out);
    if (status == CHX_OK && position < c->known) out->flags |= CHX_FLAG_REDELIVERED;
    return status;
}

static inline enum chx_status chx_consumer_standing(const struct chx_consumer *c) {
    switch (c->state) {
        case CHX_CONSUMER_UNLINKED:
            return CHX_EMPTY;
        case CHX_CONSUMER_OPEN:
            return CHX_OK;
        case CHX_CONSUMER_FAULTY:
            return CHX_FAULT;
        default:
            return CHX_ENDED;
    }
}

/* No frame is there: check that the memory was not truncated. Costs one load as long as no memory ever was. */
static inline enum chx_status chx_consumer_whole(struct chx_consumer *c) {
    int cut = chx_map_cut(&c->ring_map) || chx_map_cut(&c->credit_map);
    for (uint32_t i = 0; i < c->segment_count; i++) cut |= chx_guard_cut(c->segments[i].guard);
    return cut ? CHX_REFUSE(&c->why, "its shared memory was cut short") : CHX_EMPTY;
}

/* Look at the next position without taking its frame: OK and its description, EMPTY, ENDED, or FAULT. */
static inline enum chx_status chx_consumer_look(struct chx_consumer *c, struct chx_taken *out) {
    enum chx_status status = chx_consumer_standing(c);
    if (status != CHX_OK) return status;
    if (c->latest) {
        status = chx_latest_look(c, out);
    } else if (c->special) {
        status = chx_consumer_look_special(c, out);
    } else {
        status = chx_consumer_peek(c);
        if (status == CHX_EMPTY) status = chx_consumer_end(c);
        if (status == CHX_OK) status = chx_desc_check(c, c->position, out);
    }
    if (status == CHX_EMPTY && chx_guards_cut()) status = chx_consumer_whole(c);
    if (status == CHX_EMPTY && chx_line_spoilt(c->bell, c->line))
        status = CHX_REFUSE(&c->why, "the producer has sent descriptors where only rings may come");
    return status == CHX_FAULT ? chx_consumer_fault(c) : status;
}

static inline void chx_consumer_settle(struct chx_consumer *c) {
    c->special = c->again_next < c->again_count || c->position < c->known || c->end != CHX_NO_END;
}

/* chx_consumer_step after chx_consumer_look_special. */
static inline void chx_consumer_step_special(struct chx_consumer *c, struct chx_taken *out) {
    out->stamp = c->again_next < c->again_count ? c->again[c->again_next++] : ++c->position;
    out->seq = c->header.base_seq + out->stamp - 1;
    if (out->stamp <= c->known) chx_count(&c->credit->stats.again, 1);
    chx_consumer_settle(c);
}

static inline void chx_consumer_hold(struct chx_consumer *c, const struct chx_taken *out) {
    atomic_store_explicit(&c->reads[(out->stamp - 1) & c->mask], chx_reads(out), memory_order_relaxed);
}

/* The frame that was looked at is taken. */
static inline void chx_consumer_step(struct chx_consumer *c, struct chx_taken *out) {
    c->taken++;
    if (c->special) {
        chx_consumer_step_special(c, out);
    } else {
        out->seq = c->header.base_seq + c->position;
        out->stamp = ++c->position;
    }
    chx_consumer_hold(c, out);
}

/* Update the counters before a caller sees a frame: a successor counts positions below `next` as seen. */
static inline void chx_consumer_note(struct chx_consumer *c) {
    CHX_FAILPOINT(TAKE_CHOSEN);
    atomic_store_explicit(&c->credit->stats.taken, c->taken, memory_order_relaxed);
    chx_consumer_reach(c);
    CHX_FAILPOINT(TAKE_NOTED);
}

/* `frames` were committed at `time_ns` and taken at `now`. */
static inline void chx_latency(struct chx_consumer *c, uint64_t time_ns, uint64_t now, uint32_t frames) {
    struct chx_consumer_stats *stats = &c->credit->stats;
    uint64_t ns = now > time_ns ? now - time_ns : 0;
    chx_count(&c->credit->latency[chx_bucket(ns)], frames);
    chx_count(&stats->latency_sum_ns, ns * frames);
    if (ns > chx_read(&stats->latency_max_ns)) atomic_store_explicit(&stats->latency_max_ns, ns, memory_order_relaxed);
}

/* The next frame (OK), nothing (EMPTY), ENDED, or FAULT, which has detached the route for good. Not for policy latest,
 * nor are the other steps of taking and returning below: see latest.h. */
static inline enum chx_status chx_consumer_take(struct chx_consumer *c, struct chx_taken *out) {
    enum chx_status status = chx_consumer_look(c, out);
    if (status != CHX_OK) return status;
    chx_consumer_step(c, out);
    chx_prefetch_read(&c->desc[(c->position + 1) & c->mask]); /* not the next one: the producer may be writing it */
    chx_prefetch_read(out->data);
    chx_consumer_note(c);
    chx_latency(c, out->time_ns, chx_now_ns(), 1);
    return CHX_OK;
}

/* Frames committed together have one time: the counters take one step for each such group. */
static inline void chx_latency_run(struct chx_consumer *c, const struct chx_taken *taken, uint32_t frames) {
    uint64_t now = chx_now_ns();
    uint32_t begin = 0;
    for (uint32_t i = 1; i <= frames; i++) {
        if (i < frames && taken[i].time_ns == taken[begin].time_ns) continue;
        chx_latency(c, taken[begin].time_ns, now, i - begin);
        begin = i;
    }
}

/* Take up to `limit` (at least 1) frames that have arrived, in order, with one reading of the clock; as
 * chx_consumer_take. A fault after the first frame is found by the next call. After a succession frames come one by
 * one.
 *
 * The frames have at most `room` bytes together, which is reduced by their size; EMPTY if the first has more. Frames
 * that are held at the same time do not overlap, so all of them together fit into the mapped memory (c->mapped). A
 * caller that takes no more bytes than that at once copies an extent only once, however many descriptors name it. */
static inline enum chx_status chx_consumer_take_within(struct chx_consumer *c, struct chx_taken *out, uint32_t limit,
                                                       uint64_t *room, uint32_t *frames) {
    uint32_t count = 0;
    uint64_t left = *room;
    *frames = 0;
    enum chx_status status = chx_consumer_look(c, out);
    if (status != CHX_OK) return status;
    if (out->length > left) return CHX_EMPTY;
    if (c->special) {
        left -= out->length;
        chx_consumer_step(c, &out[count++]);
    } else {
        do {
            left -= out[count].length;
            out[count].seq = c->header.base_seq + c->position;
            out[count].stamp = ++c->position;
            chx_consumer_hold(c, &out[count]);
            count++;
        } while (count < limit && chx_consumer_peek(c) == CHX_OK &&
                 chx_desc_check(c, c->position, &out[count]) == CHX_OK && out[count].length <= left);
        c->taken += count;
    }
    *room = left;
    chx_consumer_note(c);
    chx_latency_run(c, out, count);
    *frames = count;
    return CHX_OK;
}

static inline enum chx_status chx_consumer_take_run(struct chx_consumer *c, struct chx_taken *out, uint32_t limit,
                                                    uint32_t *frames) {
    uint64_t room = c->mapped;
    return chx_consumer_take_within(c, out, limit, &room, frames);
}

/* ---- return ----------------------------------------------------------------------------------------------------- */

/* The stamps of `frames` returned frames are stored: count them and tell the producer if it waits for that. */
static inline void chx_consumer_count(struct chx_consumer *c, uint64_t frames) {
    CHX_FAILPOINT(RETURN_STAMPED);
    uint64_t before = atomic_fetch_add_explicit(&c->credit->returned, frames, memory_order_seq_cst);
    CHX_FAILPOINT(RETURN_COUNTED);
    uint64_t wake_at = atomic_load_explicit(&c->ring->wake_at, memory_order_seq_cst);
    if (wake_at <= before) return;
    if (wake_at > before + frames && !atomic_load_explicit(&c->credit->wait_for, memory_order_seq_cst)) return;
    atomic_fetch_add_explicit(&c->credit->stats.wakes, 1, memory_order_relaxed);
    chx_line_ring(c->line);
}

static inline void chx_consumer_stamp(struct chx_consumer *c, uint64_t stamp) {
    CHX_FAILPOINT(RETURN_BEGUN);
    atomic_store_explicit(&c->reads[(stamp - 1) & c->mask], 0, memory_order_release);
    atomic_store_explicit(&c->credit->stamp[(stamp - 1) & c->mask], stamp, memory_order_release);
}

/* Give the frame of `stamp` back; once for each frame, in any order, from any thread.
 *
 * Order: reads of the payload -> stamp (release) -> returned += 1 (seq_cst) -> wake_at (seq_cst). Partners:
 * chx_producer_look acquires returned; chx_producer_arm stores wake_at -> fence -> loads returned. Exactly one call
 * crosses each count, so exactly one rings for it. While the taker sleeps (wait_for), any return rings a producer that
 * sleeps for a later count: it has a credit now, and no other call would ring it; see chx_consumer_nudge. */
static inline void chx_consumer_return(struct chx_consumer *c, uint64_t stamp) {
    chx_consumer_stamp(c, stamp);
    chx_consumer_count(c, 1);
}

/* Give `frames` (at least 1) frames back with one step: all stamps, then the count. */
static inline void chx_consumer_return_run(struct chx_consumer *c, const struct chx_taken *taken, uint32_t frames) {
    for (uint32_t i = 0; i < frames; i++) chx_consumer_stamp(c, taken[i].stamp);
    chx_consumer_count(c, frames);
}

/* Frames taken and not given back; of policy latest none, for copies need no credit. */
static inline uint64_t chx_consumer_held(const struct chx_consumer *c) {
    return c->latest ? 0 : c->taken - chx_read(&c->credit->returned);
}

/* Policy latest: frames that were overwritten before they were read. */
static inline uint64_t chx_consumer_lost(const struct chx_consumer *c) {
    return c->credit ? chx_read(&c->credit->stats.lost) : c->lost;
}

/* ---- waiting for frames ----------------------------------------------------------------------------------------- */

/* Ask for the bell at the next frame. The caller then issues one seq_cst fence for all its routes and looks once more
 * before it sleeps. Partner: chx_producer_commit. */
static inline void chx_consumer_arm(struct chx_consumer *c) {
    if (c->state == CHX_CONSUMER_OPEN)
        atomic_store_explicit(&c->credit->wait_for, c->position + 1, memory_order_relaxed);
    CHX_FAILPOINT(TAKE_ARMED);
}

/* Whether the producer proposes a nap, and waiting for the next frame awake would only keep it from gathering some. */
static inline int chx_consumer_may_nap(const struct chx_consumer *c) {
    return c->state == CHX_CONSUMER_OPEN && c->blocks && chx_read(&c->ring->nap_ns) != 0;
}

/* As chx_consumer_arm for a sleep in which frames may gather, if the producer proposes one: the bell rings when half of
 * the frames are there that it can send before one is returned. The longest that the sleep may last, in ns; 0: the bell
 * rings at the next frame. See pace.h. */
static inline uint64_t chx_consumer_arm_nap(struct chx_consumer *c) {
    uint64_t ahead = 0, nap = 0;
    if (chx_consumer_may_nap(c)) {
        uint64_t held = chx_consumer_held(c);
        nap = chx_read(&c->ring->nap_ns);
        ahead = held < c->credits ? (c->credits - held) / 2 : 0;
    }
    if (ahead < 2) {
        chx_consumer_arm(c);
        return 0;
    }
    atomic_store_explicit(&c->credit->wait_for, c->position + ahead, memory_order_relaxed);
    CHX_FAILPOINT(TAKE_ARMED);
    return nap < CHX_NAP_MAX_NS ? nap + (nap == 0) : CHX_NAP_MAX_NS; /* taken back meanwhile: look at once */
}

static inline void chx_consumer_disarm(struct chx_consumer *c) {
    if (!c->credit) return; /* drained meanwhile */
    atomic_store_explicit(&c->credit->wait_for, 0, memory_order_relaxed);
}

/* About to sleep with the ring empty: if the producer sleeps too, for a count that the frames held here keep away,
 * while it has a credit, ring it. After the fence; partner: chx_producer_starves. */
static inline void chx_consumer_nudge(struct chx_consumer *c) {
    if (c->state != CHX_CONSUMER_OPEN) return;
    uint64_t wake_at = chx_read(&c->ring->wake_at);
    if (wake_at > chx_read(&c->credit->returned) && chx_consumer_held(c) < c->credits) {
        atomic_fetch_add_explicit(&c->credit->stats.wakes, 1, memory_order_relaxed);
        chx_line_ring(c->line);
    }
}

/* ---- end -------------------------------------------------------------------------------------------------------- */

/* Detach: closed (release), then the producer's bell. Held frames stay readable and may still be returned.
 * Idempotent. */
static inline void chx_consumer_close(struct chx_consumer *c) {
    if (!c->credit || chx_read(&c->credit->closed)) return;
    c->state = CHX_CONSUMER_DETACHED;
    CHX_FAILPOINT(DETACH_BEGUN);
    atomic_store_explicit(&c->credit->closed, 1, memory_order_release);
    CHX_FAILPOINT(DETACH_STORED);
    chx_line_ring(c->line);
}

/* Whether the mappings are in use: a frame is held, or just being copied. */
static inline int chx_consumer_busy(const struct chx_consumer *c) { return c->copying || chx_consumer_held(c); }

/* Unmap everything; no mapping may be in use (chx_consumer_busy). The counters can still be read. */
static inline void chx_consumer_destroy(struct chx_consumer *c) {
    if (c->credit) c->lost = chx_read(&c->credit->stats.lost);
    for (uint32_t i = 0; i < c->segment_count; i++) {
        struct chx_reader_segment *segment = &c->segments[i];
        struct chx_map map = {.base = (uint8_t *)(uintptr_t)segment->base, .size = segment->size, .fd = -1, .guard = segment->guard};
        chx_unmap(&map);
    }
    free(c->segments);
    free(c->again);
    free(c->reads);
    c->segments = NULL;
    c->reads = NULL;
    c->again = NULL;
    c->again_next = c->again_count = 0;
    c->segment_count = 0;
    c->mapped = 0;
    chx_line_close(c->bell, c->line);
    c->line = -1;
    chx_unmap(&c->ring_map);
    chx_unmap(&c->credit_map);
    c->ring = NULL;
    c->credit = NULL;
}

#include "latest.h"

#endif
