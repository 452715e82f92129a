/* Read-only view of a route for an observer: both ends' counters and the latency histogram, while they run or after
 * they died. The numbers are the writers' claims: a faulty writer can make them wrong, never dangerous.
 */
#ifndef CHRONETIX_VIEW_H
#define CHRONETIX_VIEW_H

#include "memory.h"

struct chx_view {
    const struct chx_ring *ring;
    const struct chx_credit *credit;
    struct chx_header header;
    struct chx_map ring_map, credit_map;
};

static inline enum chx_status chx_view_init(struct chx_view *view, int ring_fd, int credit_fd, struct chx_why *why) {
    struct chx_header credit;
    memset(view, 0, sizeof *view);
    view->ring_map.fd = view->credit_map.fd = -1;
    enum chx_status status = chx_memory_attach(ring_fd, CHX_KIND_RING, &view->ring_map, &view->header, why);
    if (status == CHX_OK)
        status = chx_memory_attach(credit_fd, CHX_KIND_CREDIT, &view->credit_map, &credit, why);
    if (status == CHX_OK) status = chx_header_match(&view->header, &credit, why);
    if (status != CHX_OK) {
        chx_unmap(&view->ring_map);
        chx_unmap(&view->credit_map);
        return status;
    }
    view->ring = (const struct chx_ring *)(const void *)view->ring_map.base;
    view->credit = (const struct chx_credit *)(const void *)view->credit_map.base;
    return CHX_OK;
}

static inline void chx_view_destroy(struct chx_view *view) {
    chx_unmap(&view->ring_map);
    chx_unmap(&view->credit_map);
    view->ring = NULL;
    view->credit = NULL;
}

/* A frame that the consumer has taken and not returned. */
struct chx_held {
    uint64_t seq, bytes, trace, time_ns;
};

/* Write the held frames into `out`, at most `room` of them, and return their number. Exact for a dead consumer; a
 * living one changes them meanwhile. A stamp in a wrong slot is ignored. */
static inline uint32_t chx_view_held(const struct chx_view *view, struct chx_held *out, uint32_t room) {
    uint32_t slots = 1u << view->header.slots_log2, held = 0;
    if (view->header.policy == CHX_POLICY_LATEST) return 0; /* they are copies */
    uint64_t next = chx_read(&view->credit->stats.next);
    for (uint32_t i = 0; i < slots; i++) {
        uint32_t slot = (uint32_t)((next + i) & (slots - 1)); /* the oldest are behind the newest position */
        const struct chx_desc *desc = &view->ring->desc[slot];
        uint64_t stamp = atomic_load_explicit(&desc->stamp, memory_order_acquire);
        if (stamp == 0 || stamp > next || ((stamp - 1) & (slots - 1)) != slot) continue;
        if (atomic_load_explicit(&view->credit->stamp[slot], memory_order_acquire) == stamp) continue;
        if (held < room)
            out[held] = (struct chx_held){view->header.base_seq + stamp - 1, desc->length, desc->trace, desc->time_ns};
        held++;
    }
    return held;
}

/* The oldest frame that is held, as chx_view_held: how many are. Nothing is looked at while nothing is outstanding. */
static inline uint32_t chx_view_oldest(const struct chx_view *view, struct chx_held *out) {
    uint64_t returned = chx_read(&view->credit->returned) + chx_read(&view->ring->stats.returned_before);
    if (returned >= chx_read(&view->ring->stats.committed)) return 0;
    return chx_view_held(view, out, 1);
}

/* Copy the histogram and return how many frames are in it. */
static inline uint64_t chx_view_latency(const struct chx_view *view, uint64_t counts[CHX_BUCKETS]) {
    uint64_t total = 0;
    for (uint32_t i = 0; i < CHX_BUCKETS; i++) total += counts[i] = chx_read(&view->credit->latency[i]);
    return total;
}

/* The middle of the bucket below which `permille` of 1000 lie; 0 when there are none. */
static inline uint64_t chx_quantile(const uint64_t counts[CHX_BUCKETS], uint64_t total, uint32_t permille) {
    uint64_t rank = total / 1000 * permille + (total % 1000 * permille + 999) / 1000, sum = 0;
    if (rank == 0) return 0;
    for (uint32_t i = 0; i < CHX_BUCKETS; i++) {
        sum += counts[i];
        if (sum >= rank) return (chx_bucket_floor(i) + (i + 1 < CHX_BUCKETS ? chx_bucket_floor(i + 1) : 0)) / 2;
    }
    return 0;
}

#endif
