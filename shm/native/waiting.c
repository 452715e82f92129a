/* How an outlet waits: for credits (down to credit_low) or for room (any return on any route of the arena).
 *
 * Look, spin a little, register as sleeper, publish what is waited for, fence, look again, sleep. The order is what
 * makes it safe: see SPEC.md, Wake-up.
 */
#include "native.h"

static int waiting_blocks(const struct chx_producer *end) {
    return end->state == CHX_OPEN && end->header.policy == CHX_POLICY_BLOCK;
}

/* Routes that are over credit_low keep a frame waiting; those with a starving consumer or a changed state do not. */
static int waiting_credits(const Outlet *self, int arm) {
    int waits = 0;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_producer *end = &self->producers[i]->end;
        if (native_producer_awaits(self->producers[i])) waits = 1; /* its link rings */
        if (!waiting_blocks(end)) continue;
        uint64_t goal = chx_producer_goal(end);
        uint32_t used = chx_outstanding(end) + end->reserved;
        int low = goal ? used <= end->low : chx_producer_has_credit(end);
        if (low) continue;
        if (!chx_producer_ready(end, goal)) waits = 1;
        if (arm) chx_producer_arm(end, goal); /* also when ready: a starving consumer may find a frame elsewhere */
    }
    return waits;
}

/* Every frame that is out, on any route of the arena, may make room when it comes back. */
static int waiting_room(const Outlet *self, int arm) {
    if (self->short_at && self->arena->arena.frees + 1 != self->short_at) return 0;
    for (Producer *producer = self->arena->producers; producer; producer = producer->next) {
        struct chx_producer *end = &producer->end;
        uint64_t due;
        if (!chx_producer_returns(end)) continue;
        if (end->latest && chx_outstanding(end)) return 0; /* it need not come back */
        if (chx_producer_look(end, &due) != CHX_OK || due) return 0;
        if (arm && chx_outstanding(end)) chx_producer_arm(end, end->reclaimed + 1);
    }
    return 1;
}

static int waiting_look(const Outlet *self, int for_room, int arm) {
    return for_room ? waiting_room(self, arm) : waiting_credits(self, arm);
}

static void waiting_disarm(const Outlet *self) {
    for (Producer *producer = self->arena->producers; producer; producer = producer->next)
        if (chx_producer_returns(&producer->end)) chx_producer_disarm(&producer->end);
}

static void waiting_count(const Outlet *self, int for_room) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_producer *end = &self->producers[i]->end;
        if (waiting_blocks(end) && (for_room || !chx_producer_has_credit(end))) chx_count(&end->ring->stats.sleeps, 1);
    }
}

static int waiting_spin(Outlet *self, int for_room, uint64_t deadline) {
    uint32_t cap = chx_spin_cap(&native_wake);
    if (self->spin.ns == 0 || cap == 0) return 0;
    uint64_t start = chx_now_ns(), until = start + self->spin.ns;
    if (until > deadline) until = deadline;
    do {
        for (int i = 0; i < 8; i++) {
            if (!waiting_look(self, for_room, 0)) {
                chx_spin_found(&self->spin, cap, chx_now_ns() - start);
                return 1;
            }
            chx_pause();
        }
    } while (chx_now_ns() < until);
    chx_spin_missed(&self->spin, cap);
    return 0;
}

static int waiting_sleep(Outlet *self, int for_room, uint64_t deadline) {
    struct native_sleeper sleeper;
    if (native_bell_enter(self->bell, &sleeper) != 0) return -1;
    int woken = 1;
    int waits = waiting_look(self, for_room, 1);
    atomic_thread_fence(memory_order_seq_cst); /* partners: chx_consumer_return, chx_consumer_nudge */
    if (waits && waiting_look(self, for_room, 0)) {
        uint64_t start = chx_now_ns();
        waiting_count(self, for_room);
        woken = native_bell_sleep(self->bell, &sleeper, deadline);
        /* when the credits came back is not known, only when we noticed: a wake-up is 1 to 3 caps of that */
        chx_spin_slept(&self->spin, chx_spin_cap(&native_wake), (chx_now_ns() - start) / 4, 0);
    }
    if (native_bell_alone(self->bell)) waiting_disarm(self);
    native_bell_leave(self->bell, &sleeper);
    return woken;
}

/* 1: something has changed, try again; 0: the deadline has passed; -1: exception. */
int native_outlet_wait(Outlet *self, int for_room, uint64_t deadline) {
    if (!waiting_look(self, for_room, 0) || waiting_spin(self, for_room, deadline)) return 1;
    return waiting_sleep(self, for_room, deadline);
}

/* Arm the routes for an event loop that polls the bell itself. 1: a ring follows when a retry makes sense; 0: retry now. */
int native_outlet_arm(Outlet *self) {
    int for_room = self->short_at != 0;
    int waits = waiting_look(self, for_room, 1);
    atomic_thread_fence(memory_order_seq_cst); /* partners: chx_consumer_return, chx_consumer_nudge */
    if (!waits || !waiting_look(self, for_room, 0)) {
        self->short_at = 0; /* the next try says anew what it is short of */
        return 0;
    }
    waiting_count(self, for_room);
    return 1;
}

/* No ring is wanted any more, by any outlet of the arena. */
void native_outlet_disarm(Outlet *self) { waiting_disarm(self); }

/* Is there nothing to wait for? */
int native_outlet_room(Outlet *self) {
    if (self->short_at) return !waiting_room(self, 0);
    return !waiting_credits(self, 0);
}
