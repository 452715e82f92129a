/* The producing end of a route: it owns RING and reads CREDIT.
 *
 * Calls on one producer are serialised by its caller. All state that decides is private: the consumer's words are
 * compared with it, never followed. A consumer that writes wrong values loses only its route (CHX_FAULT).
 *
 * Frames that are committed and not returned stand in a private list in commit order, one entry a slot. `returned` says
 * how many of them have come back since the last look; only then is the list walked, comparing each slot's stamp.
 *
 * All code that writes RING is in this file, so that each word's order can be read beside its partner's in credit.h.
 */
#ifndef CHRONETIX_RING_H
#define CHRONETIX_RING_H

#include "arena.h"
#include "clock.h"
#include "doorbell.h"
#include "failpoint.h"

#define CHX_REUSE_LOOK 64u /* outstanding frames looked at when the walk is only there to find warm memory */

enum chx_state { CHX_UNLINKED, CHX_OPEN, CHX_STATE_CLOSED, CHX_DETACHED, CHX_GIVEN_UP, CHX_FAULTY };

/* What is in a slot: 0 when free, else position + 1 of the frame whose extent it keeps. */
struct chx_slot {
    uint64_t stamp;
    uint64_t extent;
    uint32_t prev, next;
};

struct chx_producer {
    struct chx_ring *ring;
    struct chx_desc *desc;
    chx_word *skip;
    const struct chx_credit *credit;
    struct chx_arena *arena;
    struct chx_slot *slots;
    uint64_t position;  /* of the next frame */
    uint64_t committed; /* frames */
    uint64_t reclaimed; /* of them, found returned */
    uint64_t peak;      /* most outstanding, as in stats */
    uint64_t seen;      /* frames returned when last looked */
    uint64_t base;      /* of them, before `returned` of the present CREDIT began to count */
    uint64_t resume;    /* the highest input_seq that a predecessor had committed here: items up to it come again */
    uint32_t mask, credits, low;
    uint32_t head, tail;  /* of the list of outstanding slots */
    uint32_t reserved;    /* credits promised to open loans */
    uint8_t latest;       /* policy: the oldest frame makes room for the newest */
    uint64_t limit_ns;    /* policy block: how long to wait for a credit before giving the route up; 0: for ever */
    uint64_t short_since; /* 0, or since when a frame waits for a credit; only with a limit */
    enum chx_state state;
    int line;              /* to the consumer, or -1 */
    uint8_t shut;          /* for writing: how it is rung, see doorbell.h */
    struct chx_bell *bell; /* what the consumer's rings wake */
    struct chx_header header;
    struct chx_map ring_map, credit_map;
    struct chx_why why;
};

/* The application's part of a descriptor. */
struct chx_tags {
    uint64_t deadline_ns, trace, input_seq;
    uint32_t schema;
    uint16_t flags; /* CHX_FLAG_… */
    uint16_t step;  /* of input_seq from one frame of a run to the next */
};

static inline uint32_t chx_outstanding(const struct chx_producer *p) { return (uint32_t)(p->committed - p->reclaimed); }

/* Make the RING and seal it. `header` carries epoch, base_seq, credits, watermark, credit_low and policy. */
static inline enum chx_status chx_producer_init(struct chx_producer *p, struct chx_arena *arena,
                                                const struct chx_header *header) {
    memset(p, 0, sizeof *p);
    p->line = p->ring_map.fd = p->credit_map.fd = -1;
    p->head = p->tail = CHX_NONE;
    p->header = *header;
    p->arena = arena;
    chx_header_finish(&p->header, CHX_KIND_RING);
    uint32_t slots = 1u << p->header.slots_log2;
    p->slots = calloc(slots, sizeof *p->slots);
    if (!p->slots) return CHX_NO_MEMORY;
    enum chx_status status =
        chx_memory_create("chronetix-ring", chx_ring_size(p->header.slots_log2), 1, &p->ring_map);
    if (status != CHX_OK) return status;
    p->ring = (struct chx_ring *)(void *)p->ring_map.base;
    memcpy(&p->ring->header, &p->header, sizeof p->header);
    if (chx_memory_seal(&p->ring_map) != 0) return CHX_SYSTEM;
    p->desc = p->ring->desc;
    p->skip = (chx_word *)(void *)(p->desc + slots);
    p->mask = slots - 1;
    p->credits = header->credits;
    p->low = header->credit_low;
    p->latest = header->policy == CHX_POLICY_LATEST;
    return CHX_OK;
}

/* Attach the consumer's CREDIT, and this end of the line to it: what comes on it wakes `bell`. */
static inline enum chx_status chx_producer_link(struct chx_producer *p, int credit_fd, int line_fd,
                                                struct chx_bell *bell) {
    struct chx_header theirs;
    enum chx_status status = chx_memory_attach(credit_fd, CHX_KIND_CREDIT, &p->credit_map, &theirs, &p->why);
    if (status != CHX_OK) return status;
    status = chx_header_match(&p->header, &theirs, &p->why);
    if (status == CHX_OK) {
        p->line = chx_line_adopt(line_fd, 0, bell, &p->why);
        if (p->line < 0) status = CHX_FAULT;
    }
    if (status != CHX_OK) {
        chx_unmap(&p->credit_map);
        return status;
    }
    p->credit = (const struct chx_credit *)(const void *)p->credit_map.base;
    p->bell = bell;
    p->shut = chx_line_is_shut(p->line) != 0;
    p->state = CHX_OPEN;
    return CHX_OK;
}

/* Wake the consumer. 0, or errno. */
static inline int chx_producer_ring(const struct chx_producer *p) {
    return p->shut ? chx_line_ring_shut(p->line) : chx_line_ring(p->line);
}

/* ---- returned frames -------------------------------------------------------------------------------------------- */

static inline void chx_slot_free(struct chx_producer *p, uint32_t slot) {
    struct chx_slot *entry = &p->slots[slot];
    if (entry->next != CHX_NONE)
        p->slots[entry->next].prev = entry->prev;
    else
        p->tail = entry->prev;
    if (entry->prev != CHX_NONE)
        p->slots[entry->prev].next = entry->next;
    else
        p->head = entry->next;
    entry->stamp = 0;
    chx_extent_drop(p->arena, entry->extent);
    p->reclaimed++;
}

/* Whether frames can still come back: also after the end of stream, and from a consumer that has detached. */
static inline int chx_producer_returns(const struct chx_producer *p) { return p->credit && p->state != CHX_FAULTY; }

/* The consumer has written false values: its route ends, and frames that it has not returned are freed. */
static inline enum chx_status chx_producer_fault(struct chx_producer *p) {
    p->state = CHX_FAULTY;
    while (p->head != CHX_NONE) chx_slot_free(p, p->head);
    return CHX_FAULT;
}

/* Whether no memory of this route was truncated. */
static inline int chx_producer_whole(const struct chx_producer *p) {
    int cut = chx_map_cut(&p->ring_map) || chx_map_cut(&p->credit_map);
    for (uint32_t i = 0; i < p->arena->segment_count; i++) cut |= chx_map_cut(&p->arena->segments[i].map);
    return !cut;
}

/* Frames returned and not yet reclaimed. `returned`: acquire; its partner is the increment in chx_consumer_return, so
 * the stamps of all frames it counts are visible, and the consumer's reads of them are over. */
static inline enum chx_status chx_producer_look(struct chx_producer *p, uint64_t *due) {
    p->seen = p->base + atomic_load_explicit(&p->credit->returned, memory_order_acquire);
    *due = p->latest && p->seen < p->reclaimed ? 0 : p->seen - p->reclaimed;
    if (chx_guards_cut() && !chx_producer_whole(p)) {
        CHX_SAY(&p->why, "its shared memory was cut short");
        return chx_producer_fault(p);
    }
    if (chx_line_spoilt(p->bell, p->line)) {
        CHX_SAY(&p->why, "the consumer has sent descriptors where only rings may come");
        return chx_producer_fault(p);
    }
    if (*due <= p->committed - p->reclaimed) return CHX_OK;
    CHX_SAY(&p->why, "the consumer claims %llu frames returned of %llu sent", (unsigned long long)p->seen,
            (unsigned long long)p->committed);
    return chx_producer_fault(p);
}

/* Take back what has been returned, in any order, looking at no more than `looks` outstanding frames. */
static inline enum chx_status chx_producer_reclaim(struct chx_producer *p, uint32_t looks) {
    uint64_t due;
    enum chx_status status = chx_producer_look(p, &due);
    if (status != CHX_OK || due == 0) return status;
    if (p->latest) { /* `returned` is a position there, and frames are committed and freed in order */
        for (; due; due--) chx_slot_free(p, p->head);
        return CHX_OK;
    }
    uint32_t next;
    for (uint32_t slot = p->head; slot != CHX_NONE && due && looks; slot = next, looks--) {
        next = p->slots[slot].next;
        /* acquire; partner: the stamp in chx_consumer_return. `returned` alone orders only what it counted: a later
         * return may have stored its stamp and not yet its count, and be taken for one that was counted. */
        if (atomic_load_explicit(&p->credit->stamp[slot], memory_order_acquire) != p->slots[slot].stamp) continue;
        chx_slot_free(p, slot);
        due--;
    }
    if (!due || !looks) return CHX_OK;
    CHX_SAY(&p->why, "the consumer claims %llu frames returned, but the stamps show %llu",
            (unsigned long long)p->seen, (unsigned long long)p->reclaimed);
    return chx_producer_fault(p);
}

/* Policy latest: take the oldest frame back, read or not. A consumer that is copying it finds that out afterwards.
 *
 * Order: oldest (relaxed) -> fence (release) -> whatever is written into its extent and its descriptor from now on.
 * Partner: chx_latest_keep reads those -> fence (acquire) -> oldest. If it has read anything new, it sees oldest. */
static inline void chx_producer_revoke(struct chx_producer *p) {
    atomic_store_explicit(&p->ring->oldest, p->slots[p->head].stamp, memory_order_relaxed);
    atomic_thread_fence(memory_order_release);
    chx_slot_free(p, p->head);
}

/* Policy latest: room in the ring for one more frame. Frames that have been read go first, then the oldest. */
static inline void chx_producer_make_way(struct chx_producer *p) {
    chx_producer_reclaim(p, UINT32_MAX);
    while (chx_outstanding(p) >= p->credits) chx_producer_revoke(p);
}

/* Frames that are possible without waiting, loans included. */
static inline uint32_t chx_producer_left(const struct chx_producer *p) {
    uint32_t used = (p->latest ? 0 : chx_outstanding(p)) + p->reserved;
    return used < p->credits ? p->credits - used : 0;
}

static inline int chx_producer_has_credit(const struct chx_producer *p) { return chx_producer_left(p) > 0; }

static inline int chx_producer_detached(const struct chx_producer *p) {
    return atomic_load_explicit(&p->credit->closed, memory_order_acquire) != 0;
}

/* The route's state as the other end left it. */
static inline enum chx_status chx_producer_check(struct chx_producer *p) {
    if (p->state == CHX_OPEN && chx_producer_detached(p)) p->state = CHX_DETACHED;
    if (p->state == CHX_OPEN) return CHX_OK;
    return p->state == CHX_FAULTY ? CHX_FAULT : CHX_CLOSED;
}

/* ---- commit ----------------------------------------------------------------------------------------------------- */

/* Pass over positions whose slot is still held. There are at least twice as many slots as credits, so one is free. */
static inline void chx_producer_skip(struct chx_producer *p) {
    while (p->slots[p->position & p->mask].stamp) {
        /* release; partner: the acquire load of skip in chx_consumer_take */
        atomic_store_explicit(&p->skip[p->position & p->mask], p->position + 1, memory_order_release);
        CHX_FAILPOINT(SKIP_MARKED);
        p->position++;
        chx_count(&p->ring->stats.skipped, 1);
    }
}

/* Most frames outstanding. `returned` is read only when the frame just committed may set a new record. */
static inline void chx_producer_peak(struct chx_producer *p) {
    if (p->committed - p->seen <= p->peak || (p->latest && chx_outstanding(p) <= p->peak)) return;
    uint64_t seen = p->base + chx_read(&p->credit->returned);
    if (seen > p->committed) return; /* a false value: chx_producer_look reports it */
    p->seen = seen;
    if (p->latest && seen < p->reclaimed) seen = p->reclaimed;
    if (p->committed - seen <= p->peak) return;
    p->peak = p->committed - seen;
    atomic_store_explicit(&p->ring->stats.max_outstanding, p->peak, memory_order_relaxed);
}

/* Write the next frame's descriptor without its stamp, and its slot's entry. Its stamp is p->position afterwards. The
 * caller has made sure of a credit. */
static inline struct chx_desc *chx_producer_put(struct chx_producer *p, const struct chx_extent *extent, uint64_t
inside,
                                                uint64_t length, const struct chx_tags *tags, uint64_t time_ns) {
    if (p->latest && chx_outstanding(p) >= p->credits) chx_producer_make_way(p);
    if (p->slots[p->position & p->mask].stamp) {
        chx_producer_reclaim(p, UINT32_MAX); /* a fault shows at the next check; until then only own memory is written */
        chx_producer_skip(p);
    }
    uint32_t slot = (uint32_t)(p->position & p->mask);
    struct chx_desc *desc = &p->desc[slot];
    CHX_FAILPOINT(COMMIT_CHOSEN);
    desc->offset = extent->offset + inside;
    desc->length = length;
    desc->segment = extent->segment;
    desc->flags = (uint16_t)(tags->flags | (tags->input_seq - 1 < p->resume ? CHX_FLAG_REDELIVERED : 0));
    desc->schema = tags->schema;
    desc->time_ns = time_ns;
    desc->deadline_ns = tags->deadline_ns;
    desc->trace = tags->trace;
    desc->input_seq = tags->input_seq;
    CHX_FAILPOINT(COMMIT_DESCRIBED);

    struct chx_slot *entry = &p->slots[slot];
    *entry = (struct chx_slot){.stamp = ++p->position, .extent = extent->handle, .prev = p->tail, .next = CHX_NONE};
    if (p->tail != CHX_NONE)
        p->slots[p->tail].next = slot;
    else
        p->head = slot;
    p->tail = slot;
    p->committed++;
    return desc;
}

/* The positions from `first` on are stamped: is the consumer asleep for one of them? Partner: chx_consumer_arm stores
 * wait_for -> fence -> loads stamp. Of the two at least one sees the other, so a consumer never sleeps over a frame. */
static inline int chx_producer_announce(struct chx_producer *p, uint64_t first, uint64_t bytes) {
    atomic_store_explicit(&p->ring->stats.committed, p->committed, memory_order_relaxed);
    chx_count(&p->ring->stats.bytes, bytes);
    atomic_thread_fence(memory_order_seq_cst);
    uint64_t wait_for = chx_read(&p->credit->wait_for);
    chx_prefetch_write(&p->desc[(p->position + 1) & p->mask]); /* not the next one: the consumer may be looking at it */
    chx_producer_peak(p);
    CHX_FAILPOINT(COMMIT_ANNOUNCED);
    if (p->state == CHX_FAULTY) chx_producer_fault(p); /* found by chx_producer_put: free what came after it too */
    if (wait_for - first - 1 >= p->position - first) return 0; /* not one of first + 1 .. position */
    chx_count(&p->ring->stats.wakes, 1);
    return 1;
}

/* Publish a frame of `length` bytes in `extent`, giving the route one reference to it. The caller has made sure of a
 * credit and of CHX_OPEN. Returns 1 if the consumer's doorbell is to be rung (the caller may ring after its last
 * route).
 *
 * Order: fields (plain) -> stamp (release) -> fence -> wait_for (relaxed). */
static inline int chx_producer_commit(struct chx_producer *p, const struct chx_extent *extent, uint64_t length,
                                      const struct chx_tags *tags, uint64_t time_ns) {
    uint64_t first = p->position;
    struct chx_desc *desc = chx_producer_put(p, extent, 0, length, tags, time_ns);
    atomic_store_explicit(&desc->stamp, p->position, memory_order_release);
    return chx_producer_announce(p, first, length);
}

/* Bytes from one frame of a run to the next: an offset is a multiple of a line. */
static inline uint64_t chx_stride(uint64_t length) { return (length + CHX_LINE - 1) & ~(uint64_t)(CHX_LINE - 1); }

/* Publish `frames` (at least 1) frames of `length` bytes that lie chx_stride(length) apart in `extent`, giving the
 * route one reference to it for each. As chx_producer_commit, but one fence and one look for all of them.
 *
 * The first stamp is stored last: the run appears at once, and a producer that dies before that has sent nothing of
 * it. */
static inline int chx_producer_commit_run(struct chx_producer *p, const struct chx_extent *extent, uint64_t length,
                                          uint32_t frames, const struct chx_tags *tags, uint64_t time_ns) {
    uint64_t first = p->position, inside = 0;
    struct chx_tags own = *tags;
    struct chx_desc *head = chx_producer_put(p, extent, inside, length, &own, time_ns);
    uint64_t stamp = p->position;
    for (uint32_t i = 1; i < frames; i++) {
        inside += chx_stride(length);
        own.input_seq += own.step;
        struct chx_desc *desc = chx_producer_put(p, extent, inside, length, &own, time_ns);
        atomic_store_explicit(&desc->stamp, p->position, memory_order_release);
        CHX_FAILPOINT(RUN_STAMPED);
    }
    CHX_FAILPOINT(RUN_HIDDEN);
    atomic_store_explicit(&head->stamp, stamp, memory_order_release);
    CHX_FAILPOINT(RUN_SHOWN);
    return chx_producer_announce(p, first, length * frames);
}

/* Propose a nap to the consumer; 0: none. See pace.h. */
static inline void chx_producer_propose_nap(struct chx_producer *p, uint64_t nap_ns) {
    atomic_store_explicit(&p->ring->nap_ns, nap_ns, memory_order_relaxed);
}

/* ---- waiting for credits ---------------------------------------------------------------------------------------- */

/* The `returned` count that brings the route down to credit_low, loans included; 0 when nothing is outstanding. */
static inline uint64_t chx_producer_goal(const struct chx_producer *p) {
    uint32_t outstanding = chx_outstanding(p);
    if (outstanding == 0) return 0;
    uint32_t floor = p->low > p->reserved ? p->low - p->reserved : 0;
    if (floor >= outstanding) floor = outstanding - 1;
    return p->committed - floor;
}

/* Whether the consumer sleeps for exactly the frame that is not sent yet, while there is a credit for it. Then waiting
 * for credit_low would never end, because the consumer holds more than credit_low frames on purpose. */
static inline int chx_producer_starves(const struct chx_producer *p, uint64_t returned) {
    return p->committed - returned + p->reserved < p->credits && chx_read(&p->credit->wait_for) == p->position + 1;
}

/* Whether the producer has to try again: the route is down to `goal`, starves, or is closed. */
static inline int chx_producer_ready(struct chx_producer *p, uint64_t goal) {
    uint64_t due;
    if (p->state != CHX_OPEN || chx_producer_detached(p) || chx_producer_look(p, &due) != CHX_OK) return 1;
    if (goal && p->seen >= goal) return 1;
    return chx_producer_starves(p, p->seen);
}

/* Ask for the bell at `goal` (frames returned since the first). The caller then issues one seq_cst fence for all its
 * routes and looks once more before it sleeps. Partner: chx_consumer_return increments returned -> loads wake_at (both
 * seq_cst). An earlier wish of another thread is kept when it comes first. */
static inline void chx_producer_arm(struct chx_producer *p, uint64_t goal) {
    uint64_t armed = p->base + chx_read(&p->ring->wake_at);
    if (armed > p->seen && armed < goal) goal = armed;
    atomic_store_explicit(&p->ring->wake_at, goal - p->base, memory_order_relaxed);
    CHX_FAILPOINT(WAIT_ARMED);
}

static inline void chx_producer_disarm(struct chx_producer *p) {
    atomic_store_explicit(&p->ring->wake_at, 0, memory_order_relaxed);
}

/* Note that a frame finds no credit on this route at `now`; return 1 if there was none for longer than the route's
 * limit. The caller calls chx_producer_not_short whenever there is a credit. */
static inline int chx_producer_short(struct chx_producer *p, uint64_t now) {
    if (p->limit_ns == 0) return 0;
    if (p->short_since == 0) p->short_since = now;
    return now - p->short_since >= p->limit_ns;
}

static inline void chx_producer_not_short(struct chx_producer *p) { p->short_since = 0; }

/* ---- end -------------------------------------------------------------------------------------------------------- */

/* End of stream: closed (release) after the last stamp; partner: chx_consumer_take. The bell is rung whatever
 * wait_for says. Idempotent. */
static inline void chx_producer_close(struct chx_producer *p) {
    if (!p->ring || chx_read(&p->ring->closed)) return;
    CHX_FAILPOINT(CLOSE_BEGUN);
    atomic_store_explicit(&p->ring->closed, p->position + 1, memory_order_release);
    CHX_FAILPOINT(CLOSE_STORED);
    if (p->state == CHX_OPEN || p->state == CHX_UNLINKED) p->state = CHX_STATE_CLOSED;
    chx_producer_ring(p);
}

/* The consumer has kept a frame waiting past the limit: the stream ends here for it, what is in the ring it may still
 * take and return. */
static inline void chx_producer_give_up(struct chx_producer *p, uint64_t now) {
    chx_producer_close(p);
    p->state = CHX_GIVEN_UP;
    uint64_t after = now - p->short_since;
    atomic_store_explicit(&p->ring->losses.gave_up_after_ns, after ? after : 1, memory_order_relaxed);
}

/* Give up the mappings and the extents that were never returned, and write nothing that is shared: what a forked child
 * does with a producer of its parent's. */
static inline void chx_producer_forget(struct chx_producer *p) {
    while (p->head != CHX_NONE) chx_slot_free(p, p->head);
    free(p->slots);
    p->slots = NULL;
    chx_line_close(p->bell, p->line);
    p->line = -1;
    chx_unmap(&p->ring_map);
    chx_unmap(&p->credit_map);
    p->ring = NULL;
    p->credit = NULL;
}

/* Give up the producer in the process that has made it. */
static inline void chx_producer_destroy(struct chx_producer *p) {
    while (p->head != CHX_NONE && p->latest) chx_producer_revoke(p);
    chx_producer_forget(p);
}

#endif
