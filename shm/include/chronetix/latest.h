/* Policy latest, the consuming end: the producer never waits, so a frame may be overwritten while it is read.
 *
 * A frame is therefore copied out and looked at again afterwards: chx_consumer_look, chx_latest_begin, copy,
 * chx_latest_keep. What keep refuses was torn and is forgotten. Positions and frames are the same thing here (nothing
 * is ever skipped), and `returned` is a position: all before it are done with, read or lost.
 *
 * Reads of a descriptor and a payload that the producer may be writing are races by design, as in any seqlock; nothing
 * read is used before `oldest` has shown that it was whole.
 */
#ifndef CHRONETIX_LATEST_H
#define CHRONETIX_LATEST_H

#include "credit.h"

#define CHX_LAPS_MAX 65536u /* laps in a row that a producer may be ahead between two loads before that counts as a fault */
#define CHX_LOOKS_MAX 64u   /* descriptors in a row that are overwritten while they are read before the caller gets a turn */

/* Positions up to `to` are lost. */
static inline void chx_latest_lose(struct chx_consumer *c, uint64_t to) {
    chx_count(&c->credit->stats.lost, to - c->position);
    c->position = to;
    chx_consumer_reach(c);
}

/* The frame at the next position was overwritten: go on at the oldest that is left. After one that was overwritten
 * while it was copied the reader is too slow to follow the writer closely: skip up to half of what is there. */
static inline void chx_latest_fall(struct chx_consumer *c, uint64_t oldest) {
    chx_latest_lose(c, oldest);
    if (c->torn == 0) return;
    for (uint32_t ahead = c->credits / 2; ahead; ahead /= 2) {
        uint64_t at = oldest + ahead;
        if (atomic_load_explicit(&c->desc[at & c->mask].stamp, memory_order_acquire) != at + 1) continue;
        chx_latest_lose(c, at);
        return;
    }
}

/* As chx_consumer_peek. stamp: acquire; partner: the release store in chx_producer_commit. A stamp of a later lap was
 * stored after `oldest` had left this position behind, so that is visible too; if not, the producer is at fault. */
static inline enum chx_status chx_latest_peek(struct chx_consumer *c) {
    for (uint32_t laps = 0; laps < CHX_LAPS_MAX; laps++) {
        uint64_t oldest = chx_read(&c->ring->oldest);
        if (oldest > CHX_POSITION_MAX)
            return CHX_REFUSE(&c->why, "frames up to %llu are said to be overwritten", (unsigned long long)oldest);
        if (oldest > c->position) chx_latest_fall(c, oldest);
        uint64_t stamp = atomic_load_explicit(&c->desc[c->position & c->mask].stamp, memory_order_acquire);
        if (stamp == c->position + 1) return CHX_OK;
        if (chx_stamp_possible(c, stamp)) return CHX_EMPTY;
        if (chx_read(&c->ring->oldest) <= c->position)
            return CHX_REFUSE(&c->why, "position %llu: impossible stamp %llu", (unsigned long long)c->position,
                              (unsigned long long)stamp);
    }
    return CHX_REFUSE(&c->why, "the oldest frame moves on and on without an end");
}

/* Whether what was just read of the next position was overwritten meanwhile. Fence (acquire); partner:
 * chx_producer_revoke. */
static inline int chx_latest_moved(const struct chx_consumer *c) {
    atomic_thread_fence(memory_order_acquire);
    return chx_read(&c->ring->oldest) > c->position;
}

/* As chx_consumer_look, whose part this is. A descriptor that is found wrong may have been read from two frames: then
 * look again. That can go on for as long as the producer likes: WOULD_BLOCK gives the caller a turn. */
static inline enum chx_status chx_latest_look(struct chx_consumer *c, struct chx_taken *out) {
    for (uint32_t looks = 0; looks < CHX_LOOKS_MAX; looks++) {
        enum chx_status status = chx_latest_peek(c);
        if (status == CHX_EMPTY) status = chx_consumer_end(c);
        if (status != CHX_OK) return status;
        if (c->position >= c->end)
            return CHX_REFUSE(&c->why, "a frame at position %llu, but its dead producer's end at %llu",
                              (unsigned long long)c->position, (unsigned long long)c->end);
        status = chx_desc_check(c, c->position, out);
        if (!chx_latest_moved(c)) return status;
    }
    return CHX_WOULD_BLOCK;
}

/* After chx_consumer_look has found a frame: it is going to be copied. */
static inline void chx_latest_begin(struct chx_consumer *c, struct chx_taken *taken) {
    taken->seq = c->header.base_seq + c->position;
    taken->stamp = ++c->position;
    c->copying++;
    chx_consumer_hold(c, taken);
}

/* It is copied: 1 if the copy is whole, and then it was taken; 0 if it was overwritten meanwhile, and is lost.
 *
 * Order: reads of descriptor and payload -> fence (acquire) -> oldest (relaxed), and -> returned (release), which lets
 * the producer use the extent again without revoking it. Partners: chx_producer_revoke, chx_producer_look. While
 * another thread still copies, nothing is given back. */
static inline int chx_latest_keep(struct chx_consumer *c, const struct chx_taken *taken) {
    atomic_thread_fence(memory_order_acquire);
    int whole = chx_read(&c->ring->oldest) < taken->stamp;
    atomic_store_explicit(&c->reads[(taken->stamp - 1) & c->mask], 0, memory_order_release);
    if (whole) {
        c->torn = 0;
        c->taken++;
        atomic_store_explicit(&c->credit->stats.taken, c->taken, memory_order_relaxed);
        chx_latency(c, taken->time_ns, chx_now_ns(), 1);
    } else {
        c->torn++;
        chx_count(&c->credit->stats.lost, 1);
    }
    chx_consumer_reach(c);
    if (--c->copying == 0) atomic_store_explicit(&c->credit->returned, c->position, memory_order_release);
    return whole;
}

#endif
