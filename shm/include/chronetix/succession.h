/* What is done after a death: a consumer's successor, a producer's next ring, and the end of a ring that was left.
 *
 * Nothing here trusts what the dead end has counted. Which frames have come back is decided by stamps alone: a consumer
 * that died between a stamp and its count has returned that frame. What a dead end claims is checked like what a living
 * one writes, and read once. See SPEC.md, Death and succession.
 */
#ifndef CHRONETIX_SUCCESSION_H
#define CHRONETIX_SUCCESSION_H

#include "credit.h"
#include "ring.h"

/* ---- a consumer's successor ------------------------------------------------------------------------------------- */

static inline int chx_in_its_slot(uint64_t stamp, uint32_t slot, uint32_t mask) {
    return stamp == 0 || ((stamp - 1) & mask) == slot;
}

static inline int chx_stamp_order(const void *left, const void *right) {
    const uint64_t *a = left, *b = right;
    return (*a > *b) - (*a < *b);
}

/* The stamps of a dead consumer become this one's; the position behind the last of them. */
static inline enum chx_status chx_inherit_stamps(struct chx_consumer *c, const struct chx_credit *dead, uint64_t *last)
{
    *last = 0;
    for (uint32_t slot = 0; slot < c->slots; slot++) {
        uint64_t stamp = atomic_load_explicit(&dead->stamp[slot], memory_order_acquire);
        if (!chx_in_its_slot(stamp, slot, c->mask))
            return CHX_REFUSE(&c->why, "predecessor: stamp %llu in slot %u", (unsigned long long)stamp, slot);
        atomic_store_explicit(&c->credit->stamp[slot], stamp, memory_order_relaxed);
        if (stamp > *last) *last = stamp;
        CHX_FAILPOINT(INHERIT_STAMPED);
    }
    return CHX_OK;
}

/* Frames before `last` that are in the ring and were not returned. */
static inline enum chx_status chx_inherit_frames(struct chx_consumer *c, uint64_t last) {
    for (uint32_t slot = 0; slot < c->slots; slot++) {
        uint64_t sent = atomic_load_explicit(&c->desc[slot].stamp, memory_order_acquire);
        uint64_t returned = chx_read(&c->credit->stamp[slot]);
        if (!chx_in_its_slot(sent, slot, c->mask))
            return CHX_REFUSE(&c->why, "stamp %llu in slot %u", (unsigned long long)sent, slot);
        if (returned > sent)
            return CHX_REFUSE(&c->why, "predecessor: position %llu was returned, but never sent",
                              (unsigned long long)returned - 1);
        if (returned != sent && sent <= last) c->again[c->again_count++] = sent;
    }
    qsort(c->again, c->again_count, sizeof *c->again, chx_stamp_order);
    return CHX_OK;
}

static inline enum chx_status chx_inherit_from(struct chx_consumer *c, const struct chx_credit *dead) {
    uint64_t last;
    if (c->latest) { /* nothing is returned there, and nothing redelivered: go on where it was, or at the oldest */
        uint64_t next = chx_read(&dead->stats.next);
        if (next > CHX_POSITION_MAX)
            return CHX_REFUSE(&c->why, "predecessor: says that it took up to position %llu", (unsigned long long)next);
        c->position = next;
        chx_consumer_reach(c);
        return CHX_OK;
    }
    c->again = malloc(c->slots * sizeof *c->again);
    if (!c->again) return CHX_NO_MEMORY;
    enum chx_status status = chx_inherit_stamps(c, dead, &last);
    if (status == CHX_OK) status = chx_inherit_frames(c, last);
    if (status != CHX_OK) return status;
    uint64_t next = chx_read(&dead->stats.next);
    if (next < last) next = last;
    if (next - last > c->slots)
        return CHX_REFUSE(&c->why, "predecessor: says that it took up to position %llu and returned up to %llu",
                          (unsigned long long)next, (unsigned long long)last);
    c->position = last;
    c->known = next;
    chx_consumer_reach(c);
    chx_consumer_settle(c);
    CHX_FAILPOINT(INHERIT_DONE);
    return CHX_OK;
}

/* Be the successor of the consumer whose CREDIT is `credit_fd`; it is dead, or this end would take what it returns.
 * After chx_consumer_link and before the first take. Nothing may be returned before the producer has linked this
 * CREDIT: see chx_producer_relink. The descriptor is not kept. A fault detaches the route.
 *
 * All positions at or behind the last returned one's successor hold frames that were not returned, or are still to
 * come: the ring is gone through from there. Frames before it are remembered and come first. */
static inline enum chx_status chx_consumer_inherit(struct chx_consumer *c, int credit_fd) {
    struct chx_header theirs;
    struct chx_map map;
    struct chx_why why;
    if (c->state != CHX_CONSUMER_OPEN || c->taken) return CHX_REFUSE(&c->why, "not freshly linked");
    enum chx_status status = chx_memory_attach(credit_fd, CHX_KIND_CREDIT, &map, &theirs, &why);
    if (status == CHX_OK) status = chx_header_match(&c->header, &theirs, &why);
    if (status == CHX_FAULT) CHX_SAY(&c->why, "predecessor: %.160s", why.text);
    if (status == CHX_OK) status = chx_inherit_from(c, (const struct chx_credit *)(const void *)map.base);
    if (status == CHX_OK && chx_map_cut(&map)) status = CHX_REFUSE(&c->why, "predecessor: its shared memory was cut short");
    chx_unmap(&map);
    return status == CHX_FAULT ? chx_consumer_fault(c) : status;
}

/* Set the end of a dead producer's ring to position `end`: a consumer that has taken all frames before it has come to
 * the end of this stage. Setting the same end again has no effect; another end is a fault. */
static inline enum chx_status chx_consumer_end_at(struct chx_consumer *c, uint64_t end) {
    if (c->state == CHX_CONSUMER_FAULTY || c->state == CHX_CONSUMER_DETACHED) return CHX_OK;
    if (end > CHX_POSITION_MAX || (c->end != CHX_NO_END && c->end != end) ||
        (c->state == CHX_CONSUMER_ENDED && c->position != end)) {
        CHX_SAY(&c->why, "its dead producer's end at position %llu does not fit", (unsigned long long)end);
        return chx_consumer_fault(c);
    }
    c->end = end;
    if (c->state == CHX_CONSUMER_UNLINKED && end == 0) c->state = CHX_CONSUMER_ENDED; /* it died before it had sent a frame */
    chx_consumer_settle(c);
    return CHX_OK;
}

/* ---- a producer whose consumer has a successor ------------------------------------------------------------------ */

/* What the successor has taken over as returned is free; `returned` counts anew. */
static inline void chx_relink_reclaim(struct chx_producer *p) {
    uint32_t next;
    if (p->latest) return; /* `returned` is a position there */
    for (uint32_t slot = p->head; slot != CHX_NONE; slot = next) {
        next = p->slots[slot].next;
        /* acquire; partner: the stamp in chx_consumer_return of whichever consumer it was: it has come here by way of
         * the successor and whoever has handed over its CREDIT */
        if (atomic_load_explicit(&p->credit->stamp[slot], memory_order_acquire) == p->slots[slot].stamp)
            chx_slot_free(p, slot);
        CHX_FAILPOINT(RELINK_FREED);
    }
    p->base = p->seen = p->reclaimed;
    atomic_store_explicit(&p->ring->stats.returned_before, p->base, memory_order_relaxed);
    CHX_FAILPOINT(RELINK_COUNTED);
}

/* Go on with the CREDIT of the consumer's successor and a line to it, which has inherited and returned nothing yet.
 * Also while a thread sleeps for credits: it has to be woken, and looks again, since what it has armed counts
 * otherwise. The successor is rung, because it may have armed before. A fault changes nothing. */
static inline enum chx_status chx_producer_relink(struct chx_producer *p, int credit_fd, int line_fd,
                                                  struct chx_bell *bell) {
    struct chx_header theirs;
    struct chx_map map;
    if (!p->credit || p->state == CHX_FAULTY) return CHX_REFUSE(&p->why, "a route that is not linked has no succession");
    enum chx_status status = chx_memory_attach(credit_fd, CHX_KIND_CREDIT, &map, &theirs, &p->why);
    if (status != CHX_OK) return status;
    const struct chx_credit *credit = (const struct chx_credit *)(const void *)map.base;
    status = chx_header_match(&p->header, &theirs, &p->why);
    if (status == CHX_OK && atomic_load_explicit(&credit->returned, memory_order_acquire))
        status = CHX_REFUSE(&p->why, "the consumer's successor has returned frames before it was linked");
    int line = status == CHX_OK ? chx_line_adopt(line_fd, 0, bell, &p->why) : -1;
    if (line < 0) {
        chx_unmap(&map);
        return CHX_FAULT;
    }
    chx_unmap(&p->credit_map);
    chx_line_close(p->bell, p->line);
    p->credit_map = map;
    p->credit = credit;
    p->bell = bell;
    p->line = line;
    p->shut = chx_line_is_shut(line) != 0;
    CHX_FAILPOINT(RELINK_MAPPED);
    chx_relink_reclaim(p);
    atomic_store_explicit(&p->ring->wake_at, 0, memory_order_relaxed);
    if (p->state == CHX_DETACHED) p->state = CHX_OPEN;
    chx_producer_ring(p);
    return CHX_OK;
}

/* ---- what a dead producer has left ------------------------------------------------------------------------------ */

struct chx_remains {
    uint64_t end;       /* position behind its last frame: the next stage's base_seq is base_seq + end */
    uint64_t input_seq; /* the highest of its last frames; 0 if there is none */
};

static inline enum chx_status chx_remains_last(const struct chx_desc *desc, const chx_word *skip, uint32_t slots,
                                               uint64_t *last, struct chx_why *why) {
    *last = 0;
    for (uint32_t slot = 0; slot < slots; slot++) {
        uint64_t stamps[2] = {atomic_load_explicit(&desc[slot].stamp, memory_order_acquire),
                              atomic_load_explicit(&skip[slot], memory_order_acquire)};
        for (int i = 0; i < 2; i++) {
            if (stamps[i] > CHX_POSITION_MAX || !chx_in_its_slot(stamps[i], slot, slots - 1))
                return CHX_REFUSE(why, "the ring that was left has %llu in slot %u", (unsigned long long)stamps[i], slot);
            if (stamps[i] > *last) *last = stamps[i];
        }
    }
    return CHX_OK;
}

/* Find where the ring of a dead writer ends. The end is the first position that holds neither frame nor skip, whatever
 * is behind it: a run whose first stamp is missing was never sent. At most one lap is searched.
 *
 * The producer may have died while it described frames up to a credits' number behind the end, in slots whose old
 * stamps still stand: their input_seq are not looked at. Of the others one at least is a frame: no more are skipped in
 * a lap.
 * */
static inline enum chx_status chx_ring_remains(const struct chx_ring *ring, const struct chx_header *header,
                                               struct chx_remains *remains, struct chx_why *why) {
    uint32_t slots = 1u << header->slots_log2, mask = slots - 1;
    const struct chx_desc *desc = ring->desc;
    const chx_word *skip = (const chx_word *)(const void *)(desc + slots);
    uint64_t last;
    enum chx_status status = chx_remains_last(desc, skip, slots, &last, why);
    if (status != CHX_OK) return status;
    uint64_t end = last > slots ? last - slots : 0;
    while (end < last && (chx_read(&desc[end & mask].stamp) == end + 1 || chx_read(&skip[end & mask]) == end + 1))
    end++;
    *remains = (struct chx_remains){.end = end};
    uint64_t sound = slots - header->credits;
    for (uint64_t position = end > sound ? end - sound : 0; position < end; position++) {
        const struct chx_desc *frame = &desc[position & mask];
        if (chx_read(&frame->stamp) == position + 1 && frame->input_seq > remains->input_seq)
            remains->input_seq = frame->input_seq;
    }
    return CHX_OK;
}

#endif
