/* Read-only view of a route for an observer: both ends' counters and the latency histogram, while they run or after
 * they died. The numbers are the writers' claims; a liar can make them wrong, never dangerous.
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
