/* What a sender does that finds no credit, or no room: it is counted, shown to observers while it lasts, waited for,
 * and ends with a frame that is claimed, a route that is given up, or WouldBlock.
 *
 * How to wait, so that no wake-up is missed, is waiting.c's.
 */
#include "native.h"

/* Whether this route holds a frame up for this reason. */
static int outlet_holds_up(const struct chx_producer *end, enum native_attempt why) {
    if (end->state != CHX_OPEN || end->header.policy != CHX_POLICY_BLOCK) return 0;
    return why == NATIVE_NO_ROOM || !chx_producer_has_credit(end);
}

static void outlet_count_would_block(Outlet *self, enum native_attempt why) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_producer *end = &self->producers[i]->end;
        if (outlet_holds_up(end, why)) chx_count(&end->ring->stats.would_block, 1);
    }
}

/* The wait of these routes begins: an observer sees it from now on. */
void native_outlet_blocked_from(Outlet *self, enum native_attempt why, uint64_t now) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_producer *end = &self->producers[i]->end;
        if (outlet_holds_up(end, why) && !chx_read(&end->ring->stats.blocked_since))
            atomic_store_explicit(&end->ring->stats.blocked_since, now, memory_order_relaxed);
    }
}

/* End the wait in this process, whatever has ended it, but not in a child that was forked meanwhile. */
void native_outlet_blocked_until(Outlet *self, uint64_t now) {
    if (self->arena->owner != native_process()) return;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_producer_stats *stats = &self->producers[i]->end.ring->stats;
        uint64_t since = chx_read(&stats->blocked_since);
        if (since == 0) continue;
        chx_count(&stats->blocked_ns, now - since);
        atomic_store_explicit(&stats->blocked_since, 0, memory_order_relaxed);
    }
}

void native_outlet_raise_would_block(const Outlet *self, enum native_attempt why, uint64_t length) {
    if (why == NATIVE_NO_ROOM) {
        native_raise(native_would_block, self->producers[0]->route,
                     "no room for %llu bytes: %llu of at most %llu arena bytes are in use", (unsigned long long)length,
                     (unsigned long long)self->arena->arena.used, (unsigned long long)self->arena->arena.limit);
        return;
    }
    for (Py_ssize_t i = 0; i < self->count; i++) {
        const struct chx_producer *end = &self->producers[i]->end;
        if (native_producer_awaits(self->producers[i])) {
            native_raise(native_would_block, self->producers[i]->route, "route %U: its consumer is not linked yet",
                         self->producers[i]->route);
            return;
        }
        if (end->state != CHX_OPEN || chx_producer_has_credit(end)) continue;
        native_raise(native_would_block, self->producers[i]->route, "route %U: all %u credits are in use",
                     self->producers[i]->route, end->credits);
        return;
    }
    native_raise(native_would_block, self->producers[0]->route, "the time is up");
}

/* When the first route is to be given up, or `deadline`. */
static uint64_t outlet_patience(const Outlet *self, uint64_t deadline) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        const struct chx_producer *end = &self->producers[i]->end;
        if (end->state != CHX_OPEN || end->limit_ns == 0 || end->short_since == 0) continue;
        if (end->limit_ns < deadline && end->short_since < deadline - end->limit_ns)
            deadline = end->short_since + end->limit_ns;
    }
    return deadline;
}

/* Wait until a claim succeeds or the time is up. -1: exception. */
static int outlet_block(Outlet *self, uint32_t frames, int64_t timeout_ns, struct native_claim *claim,
                        enum native_attempt why) {
    uint64_t deadline = native_deadline(timeout_ns);
    for (;;) {
        native_outlet_blocked_from(self, why, chx_now_ns());
        uint64_t until = why == NATIVE_NO_ROOM ? deadline : outlet_patience(self, deadline);
        int woken = native_outlet_wait(self, why == NATIVE_NO_ROOM, until);
        native_outlet_blocked_until(self, chx_now_ns());
        chx_pace_waited(&self->pace);
        if (woken < 0) return -1;
        enum native_attempt result = native_claim_try(self, frames, claim);
        if (result == NATIVE_CLAIMED) return 0;
        if (result == NATIVE_RAISED) return -1;
        why = result;
        if (!woken && until == deadline) {
            native_outlet_raise_would_block(self, why, claim->length);
            return -1;
        }
    }
}

/* Claim a run of 1 to `frames` frames of `length` bytes, waiting up to `timeout_ns` for the first. 0, or -1 with an
 * exception and nothing claimed. */
int native_outlet_claim(Outlet *self, uint64_t length, uint32_t frames, int64_t timeout_ns, struct native_claim *claim)
{
    if (native_foreign(self->arena->owner, "outlet") || native_claim_init(claim, self->count)) return -1;
    claim->length = length;
    enum native_attempt result = native_claim_try(self, frames, claim);
    if (result == NATIVE_CLAIMED) return 0;
    if (result != NATIVE_RAISED) {
        outlet_count_would_block(self, result);
        if (timeout_ns == 0)
            native_outlet_raise_would_block(self, result, length);
        else if (outlet_block(self, frames, timeout_ns, claim, result) == 0)
            return 0;
    }
    native_claim_free(claim);
    return -1;
}

/* Give up the routes whose limit is over. */
static int outlet_lose_patience(Outlet *self) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_producer *end = &self->producers[i]->end;
        if (end->state != CHX_OPEN || end->short_since == 0) continue;
        chx_producer_reclaim(end, UINT32_MAX);
        if (chx_producer_has_credit(end)) {
            chx_producer_not_short(end);
        } else {
            uint64_t now = chx_now_ns();
            if (chx_producer_short(end, now) && native_producer_give_up(self->producers[i], now) != 0) return -1;
        }
    }
    return 0;
}

/* Wait until a send may succeed (1) or the time is up (0); -1: exception. Routes whose limit is over are given up. */
int native_outlet_await(Outlet *self, int64_t timeout_ns) {
    uint64_t deadline = native_deadline(timeout_ns);
    while (!native_outlet_room(self)) {
        if (timeout_ns == 0) return 0;
        uint64_t until = self->short_at ? deadline : outlet_patience(self, deadline);
        int woken = native_outlet_wait(self, self->short_at != 0, until);
        if (woken < 0 || (until < deadline && outlet_lose_patience(self) != 0)) return -1;
        if (!woken && until == deadline && !native_outlet_room(self)) return 0;
    }
    self->short_at = 0;
    return 1;
}
