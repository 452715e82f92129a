/* A frame on its way out: claimed (a credit of every route that is to get it, and an extent), filled by its sender,
 * then committed or cancelled.
 *
 * Claiming decides everything that can fail and changes nothing until all of it is certain. A route whose end was
 * reported to a caller once is left out from then on; when none is left, the first one's end is reported every time.
 * Nothing here waits: what becomes of an attempt without a credit or without room is backpressure.c's.
 */
#include "native.h"

static int claim_has(const struct native_claim *claim, Py_ssize_t i) { return claim->bits[i / 64] >> (i % 64) & 1; }

static void claim_add(struct native_claim *claim, Py_ssize_t i) { claim->bits[i / 64] |= 1ull << (i % 64); }

void native_claim_free(struct native_claim *claim) {
    if (claim->bits != &claim->word) PyMem_Free(claim->bits);
    claim->bits = NULL;
}

int native_claim_init(struct native_claim *claim, Py_ssize_t routes) {
    claim->word = 0;
    claim->bits = &claim->word;
    claim->extent.handle = CHX_NO_EXTENT;
    claim->dropped = claim->no_room = 0;
    claim->routes = 0;
    claim->places = 64;
    if (routes <= 64) return 0;
    claim->places = (routes + 63) / 64 * 64;
    claim->bits = PyMem_Calloc((size_t)(routes + 63) / 64, sizeof(uint64_t));
    if (claim->bits) return 0;
    PyErr_NoMemory();
    return -1;
}

/* Withdraw all promised credits and begin again with the present routes. */
static void claim_clear(struct native_claim *claim, Py_ssize_t routes) {
    claim->routes = routes < claim->places ? routes : claim->places;
    memset(claim->bits, 0, (size_t)claim->places / 8);
}

/* Find routes whose end has not been told yet (-1), or how many still take frames. Taps do not count. */
static Py_ssize_t outlet_alive(Outlet *self) {
    Py_ssize_t alive = 0;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        Producer *producer = self->producers[i];
        if (producer->tap) {
            chx_producer_check(&producer->end);
        } else if (chx_producer_check(&producer->end) == CHX_OK || native_producer_awaits(producer)) {
            alive++;
        } else if (!producer->told || producer->end.state == CHX_UNLINKED) {
            native_producer_raise(producer);
            return -1;
        }
    }
    if (alive) return alive;
    native_producer_raise(self->producers[0]);
    return -1;
}

/* Reclaim returned frames on all routes of the arena, also on those of other outlets. */
static void outlet_reclaim(Outlet *self) {
    for (Producer *producer = self->arena->producers; producer; producer = producer->next)
        if (chx_producer_returns(&producer->end)) chx_producer_reclaim(&producer->end, UINT32_MAX);
}

/* Make room by taking back the oldest frame of each route of policy latest: such a route never makes a sender wait. As
 * native_claim_extent. */
static int outlet_overwrite(Outlet *self, uint64_t length, struct chx_extent *extent) {
    struct chx_arena *arena = &self->arena->arena;
    int revoked;
    do {
        revoked = 0;
        for (Producer *producer = self->arena->producers; producer; producer = producer->next) {
            if (!producer->end.latest || producer->end.head == CHX_NONE) continue;
            uint64_t frees = arena->frees;
            chx_producer_revoke(&producer->end);
            revoked = 1;
            if (arena->frees != frees && chx_arena_alloc(arena, length, extent) == CHX_OK) return 1;
        }
    } while (revoked);
    return 0;
}

/* Find an extent, after reclaiming, growing and overwriting if need be. 1: found, 0: no room, -1: exception. */
int native_claim_extent(Outlet *self, uint64_t length, struct chx_extent *extent) {
    struct chx_arena *arena = &self->arena->arena;
    if (chx_arena_alloc(arena, length, extent) == CHX_OK) return 1;
    outlet_reclaim(self);
    if (chx_arena_alloc(arena, length, extent) == CHX_OK) return 1;
    for (;;) {
        self->short_at = arena->frees + 1;
        int grown = native_arena_grow(self->arena, length);
        if (grown < 0) return grown;
        if (grown == 0) return outlet_overwrite(self, length, extent);
        if (chx_arena_alloc(arena, length, extent) == CHX_OK) return 1;
    }
}

/* The extent of a frame, or of a run, shortened to what there is room for without growing. As native_claim_extent. */
static int outlet_room_for(Outlet *self, struct native_claim *claim) {
    struct chx_arena *arena = &self->arena->arena;
    if (claim->frames > 1 && claim->length) {
        uint64_t stride = chx_stride(claim->length);
        if (chx_arena_alloc(arena, stride * claim->frames, &claim->extent) == CHX_OK) return 1;
        outlet_reclaim(self);
        for (; claim->frames > 1; claim->frames /= 2)
            if (chx_arena_alloc(arena, stride * claim->frames, &claim->extent) == CHX_OK) return 1;
    }
    return native_claim_extent(self, claim->length, &claim->extent);
}

/* Mark the routes that have a credit for this frame, and shorten a run to what each of them has. NATIVE_NO_CREDIT: one
 * that must have it has none. */
static enum native_attempt outlet_credits(Outlet *self, struct native_claim *claim, int *wanted) {
    enum native_attempt result = NATIVE_CLAIMED;
    uint64_t bytes = claim->length * claim->frames;
    uint32_t frames = claim->frames;
    claim_clear(claim, self->count);
    for (Py_ssize_t i = 0; i < claim->routes; i++) {
        struct chx_producer *end = &self->producers[i]->end;
        if (native_producer_awaits(self->producers[i])) result = NATIVE_NO_CREDIT;
        if (end->state != CHX_OPEN) continue;
        enum chx_status status = CHX_OK;
        if (chx_producer_left(end) < claim->frames)
            status = chx_producer_reclaim(end, UINT32_MAX);
        else if (bytes >= CHX_PAGE)
            status = chx_producer_reclaim(end, CHX_REUSE_LOOK);
        if (status != CHX_OK) {
            if (self->producers[i]->tap) continue;
            native_producer_raise(self->producers[i]);
            return NATIVE_RAISED;
        }
        uint32_t left = chx_producer_left(end);
        if (left) {
            claim_add(claim, i);
            ++*wanted;
            if (left < frames) frames = left;
            chx_producer_not_short(end);
        } else if (end->header.policy == CHX_POLICY_BLOCK) {
            uint64_t now = end->limit_ns ? chx_now_ns() : 0;
            if (!chx_producer_short(end, now))
                result = NATIVE_NO_CREDIT;
            else if (native_producer_give_up(self->producers[i], now) != 0 || outlet_alive(self) < 0)
                return NATIVE_RAISED;
        }
    }
    if (result == NATIVE_CLAIMED) claim->frames = frames;
    return result;
}

static int outlet_must_deliver(const Outlet *self, const struct native_claim *claim) {
    for (Py_ssize_t i = 0; i < claim->routes; i++)
        if (claim_has(claim, i) && self->producers[i]->end.header.policy == CHX_POLICY_BLOCK) return 1;
    return 0;
}

static enum native_attempt outlet_attempt(Outlet *self, uint32_t frames, struct native_claim *claim) {
    if (self->arena->closed) {
        PyErr_SetString(PyExc_ValueError, "the arena is closed");
        return NATIVE_RAISED;
    }
    if (outlet_alive(self) < 0) return NATIVE_RAISED;
    self->short_at = 0;
    int wanted = 0;
    claim->no_room = 0;
    claim->frames = frames;
    enum native_attempt result = outlet_credits(self, claim, &wanted);
    claim->dropped = result == NATIVE_CLAIMED && wanted == 0;
    if (result != NATIVE_CLAIMED || wanted == 0) return result;
    if (claim->length >= NATIVE_LINGER_BYTES) native_outlet_linger(self, claim->length);
    int got = outlet_room_for(self, claim);
    if (got < 0) return NATIVE_RAISED;
    if (got == 0) {
        if (outlet_must_deliver(self, claim)) return NATIVE_NO_ROOM;
        claim_clear(claim, claim->routes); /* all of them may drop it */
        claim->dropped = claim->no_room = 1;
        return NATIVE_CLAIMED;
    }
    for (Py_ssize_t i = 0; i < claim->routes; i++)
        if (claim_has(claim, i)) self->producers[i]->end.reserved += claim->frames;
    CHX_FAILPOINT(CLAIM_RESERVED);
    return NATIVE_CLAIMED;
}

/* Make one attempt. Routes stay in their places meanwhile, also if on_grow, on_drop, on_give_up or other threads change
 * them. */
enum native_attempt native_claim_try(Outlet *self, uint32_t frames, struct native_claim *claim) {
    self->claiming++;
    enum native_attempt result = outlet_attempt(self, frames, claim);
    self->claiming--;
    return result;
}

/* Give the credits back, and the extent too unless a view of it is left. */
void native_outlet_cancel(Outlet *self, struct native_claim *claim, int keep_extent) {
    for (Py_ssize_t i = 0; i < claim->routes; i++)
        if (claim_has(claim, i)) self->producers[i]->end.reserved -= claim->frames;
    native_claim_free(claim);
    if (keep_extent) return;
    chx_extent_drop(&self->arena->arena, claim->extent.handle);
    native_bell_stir(self->bell);
}

static void outlet_ring(Outlet *self, const struct native_claim *claim) {
    for (Py_ssize_t i = 0; i < claim->routes; i++)
        if (claim_has(claim, i)) chx_producer_ring(&self->producers[i]->end);
    CHX_FAILPOINT(COMMIT_RUNG);
    native_rings++;
}

static void outlet_propose_nap(const Outlet *self) {
    uint64_t nap = chx_pace_nap(&self->pace, (uint64_t)self->count);
    for (Py_ssize_t i = 0; i < self->count; i++) chx_producer_propose_nap(&self->producers[i]->end, nap);
}

/* Count a frame or a run that a route did not get, by its reason. */
static void outlet_count_lost(struct chx_producer *end, const struct native_claim *claim) {
    chx_word *reason = claim->no_room ? &end->ring->losses.no_room : &end->ring->stats.dropped;
    chx_count(end->state == CHX_GIVEN_UP ? &end->ring->losses.given_up : reason, claim->frames);
}

/* Publish to every claimed route, then ring those that sleep. `seq`: its number (the last one's of a run) on the first
 * route, -1 if that one did not get it. RouteClosed when every claimed route was closed meanwhile. The claim is used
 * up. */
int native_outlet_commit(Outlet *self, struct native_claim *claim, uint64_t length, const struct chx_tags *tags,
                         int64_t *seq) {
    uint32_t routes = 0;
    *seq = -1;
    if (claim->routes > self->count) claim->routes = self->count; /* the last ones were taps that have gone */
    for (Py_ssize_t i = 0; i < claim->routes; i++) {
        struct chx_producer *end = &self->producers[i]->end;
        if (claim_has(claim, i)) {
            end->reserved -= claim->frames;
            if (end->state != CHX_OPEN)
                claim->bits[i / 64] &= ~(1ull << (i % 64));
            else
                routes++;
        } else if (end->state == CHX_OPEN || end->state == CHX_GIVEN_UP) {
            outlet_count_lost(end, claim);
        }
    }
    if (routes == 0) {
        chx_extent_drop(&self->arena->arena, claim->extent.handle);
        native_claim_free(claim);
        return claim->dropped || outlet_alive(self) > 0 ? 0 : -1;
    }
    uint32_t readers = routes * claim->frames;
    if (readers > 1) chx_extent_share(&self->arena->arena, claim->extent.handle, readers - 1);
    uint64_t now = chx_now_ns();
    struct chx_tags due;
    if (self->budget_ns && (!tags->deadline_ns || tags->deadline_ns > now + self->budget_ns)) {
        due = *tags;
        due.deadline_ns = now + self->budget_ns;
        tags = &due;
    }
    int ring = 0;
    native_commits++;
    for (Py_ssize_t i = 0; i < claim->routes; i++) {
        if (!claim_has(claim, i)) continue;
        struct chx_producer *end = &self->producers[i]->end;
        if (chx_producer_commit_run(end, &claim->extent, length, claim->frames, tags, now))
            ring = 1;
        else
            claim->bits[i / 64] &= ~(1ull << (i % 64));
        if (i == 0) *seq = (int64_t)(end->header.base_seq + end->position - 1);
    }
    if (chx_pace_commit(&self->pace, now)) outlet_propose_nap(self);
    if (ring) {
        outlet_ring(self, claim);
        chx_pace_rang(&self->pace, now, chx_now_ns());
    }
    native_claim_free(claim);
    return 0;
}
