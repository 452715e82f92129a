/* shm.Outlet: one frame to several routes with one copy of its payload.
 *
 * A frame is first claimed (a credit of every route that is to get it, and an extent), then filled, then committed.
 * Claiming decides everything that can fail and changes nothing until all of it is certain. A route whose end was
 * reported to a caller once is left out from then on; when none is left, the first one's end is reported every time.
 */
#include "native.h"

PyTypeObject *native_Outlet;

static int claim_has(const struct native_claim *claim, Py_ssize_t i) { return claim->bits[i / 64] >> (i % 64) & 1; }

static void claim_add(struct native_claim *claim, Py_ssize_t i) { claim->bits[i / 64] |= 1ull << (i % 64); }

static void claim_free(struct native_claim *claim) {
    if (claim->bits != &claim->word) PyMem_Free(claim->bits);
    claim->bits = NULL;
}

static int claim_init(struct native_claim *claim, Py_ssize_t routes) {
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

/* Nobody has a credit any more, nothing is marked: begin anew with the routes that there are now. */
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

/* Take back what was returned on all routes of the arena, whatever outlet they belong to. */
static void outlet_reclaim(Outlet *self) {
    for (Producer *producer = self->arena->producers; producer; producer = producer->next)
        if (chx_producer_returns(&producer->end)) chx_producer_reclaim(&producer->end, UINT32_MAX);
}

/* Nobody waits for room because of frames of policy latest: the oldest of each such route make way. As outlet_extent. */
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

/* An extent, after reclaiming, growing and overwriting if need be. 1: there it is, 0: no room, -1: exception. */
static int outlet_extent(Outlet *self, uint64_t length, struct chx_extent *extent) {
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

/* The extent of a frame, or of a run, shortened to what there is room for without growing. As outlet_extent. */
static int outlet_room_for(Outlet *self, struct native_claim *claim) {
    struct chx_arena *arena = &self->arena->arena;
    if (claim->frames > 1 && claim->length) {
        uint64_t stride = chx_stride(claim->length);
        if (chx_arena_alloc(arena, stride * claim->frames, &claim->extent) == CHX_OK) return 1;
        outlet_reclaim(self);
        for (; claim->frames > 1; claim->frames /= 2)
            if (chx_arena_alloc(arena, stride * claim->frames, &claim->extent) == CHX_OK) return 1;
    }
    return outlet_extent(self, claim->length, &claim->extent);
}

enum attempt { CLAIMED, NO_CREDIT, NO_ROOM, RAISED };

/* Mark the routes that have a credit for this frame, and shorten a run to what each of them has. NO_CREDIT: one that must
 * have it has none. */
static enum attempt outlet_credits(Outlet *self, struct native_claim *claim, int *wanted) {
    enum attempt result = CLAIMED;
    uint64_t bytes = claim->length * claim->frames;
    uint32_t frames = claim->frames;
    claim_clear(claim, self->count);
    for (Py_ssize_t i = 0; i < claim->routes; i++) {
        struct chx_producer *end = &self->producers[i]->end;
        if (native_producer_awaits(self->producers[i])) result = NO_CREDIT;
        if (end->state != CHX_OPEN) continue;
        enum chx_status status = CHX_OK;
        if (chx_producer_left(end) < claim->frames)
            status = chx_producer_reclaim(end, UINT32_MAX);
        else if (bytes >= CHX_PAGE)
            status = chx_producer_reclaim(end, CHX_REUSE_LOOK);
        if (status != CHX_OK) {
            if (self->producers[i]->tap) continue;
            native_producer_raise(self->producers[i]);
            return RAISED;
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
                result = NO_CREDIT;
            else if (native_producer_give_up(self->producers[i], now) != 0 || outlet_alive(self) < 0)
                return RAISED;
        }
    }
    if (result == CLAIMED) claim->frames = frames;
    return result;
}

static int outlet_must_deliver(const Outlet *self, const struct native_claim *claim) {
    for (Py_ssize_t i = 0; i < claim->routes; i++)
        if (claim_has(claim, i) && self->producers[i]->end.header.policy == CHX_POLICY_BLOCK) return 1;
    return 0;
}

static enum attempt outlet_attempt(Outlet *self, uint32_t frames, struct native_claim *claim) {
    if (self->arena->closed) {
        PyErr_SetString(PyExc_ValueError, "the arena is closed");
        return RAISED;
    }
    if (outlet_alive(self) < 0) return RAISED;
    self->short_at = 0;
    int wanted = 0;
    claim->no_room = 0;
    claim->frames = frames;
    enum attempt result = outlet_credits(self, claim, &wanted);
    claim->dropped = result == CLAIMED && wanted == 0;
    if (result != CLAIMED || wanted == 0) return result;
    if (claim->length >= NATIVE_LINGER_BYTES) native_outlet_linger(self, claim->length);
    int got = outlet_room_for(self, claim);
    if (got < 0) return RAISED;
    if (got == 0) {
        if (outlet_must_deliver(self, claim)) return NO_ROOM;
        claim_clear(claim, claim->routes); /* all of them may drop it */
        claim->dropped = claim->no_room = 1;
        return CLAIMED;
    }
    for (Py_ssize_t i = 0; i < claim->routes; i++)
        if (claim_has(claim, i)) self->producers[i]->end.reserved += claim->frames;
    CHX_FAILPOINT(CLAIM_RESERVED);
    return CLAIMED;
}

/* One attempt. Routes stay in their places meanwhile, whatever on_grow, on_drop or on_give_up do, or other threads. */
static enum attempt outlet_try(Outlet *self, uint32_t frames, struct native_claim *claim) {
    self->claiming++;
    enum attempt result = outlet_attempt(self, frames, claim);
    self->claiming--;
    return result;
}

/* Does this route hold a frame up, for this reason? */
static int outlet_holds_up(const struct chx_producer *end, enum attempt why) {
    if (end->state != CHX_OPEN || end->header.policy != CHX_POLICY_BLOCK) return 0;
    return why == NO_ROOM || !chx_producer_has_credit(end);
}

static void outlet_count_would_block(Outlet *self, enum attempt why) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_producer *end = &self->producers[i]->end;
        if (outlet_holds_up(end, why)) chx_count(&end->ring->stats.would_block, 1);
    }
}

/* The wait of these routes begins: an observer sees it from now on. */
static void outlet_blocked_from(Outlet *self, enum attempt why, uint64_t now) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_producer *end = &self->producers[i]->end;
        if (outlet_holds_up(end, why) && !chx_read(&end->ring->stats.blocked_since))
            atomic_store_explicit(&end->ring->stats.blocked_since, now, memory_order_relaxed);
    }
}

/* It is over, whatever has ended it: for this process, not for a child that was forked meanwhile. */
static void outlet_blocked_until(Outlet *self, uint64_t now) {
    if (self->arena->owner != native_process()) return;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_producer_stats *stats = &self->producers[i]->end.ring->stats;
        uint64_t since = chx_read(&stats->blocked_since);
        if (since == 0) continue;
        chx_count(&stats->blocked_ns, now - since);
        atomic_store_explicit(&stats->blocked_since, 0, memory_order_relaxed);
    }
}

static void outlet_raise_would_block(const Outlet *self, enum attempt why, uint64_t length) {
    if (why == NO_ROOM) {
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
                        enum attempt why) {
    uint64_t deadline = native_deadline(timeout_ns);
    for (;;) {
        outlet_blocked_from(self, why, chx_now_ns());
        uint64_t until = why == NO_ROOM ? deadline : outlet_patience(self, deadline);
        int woken = native_outlet_wait(self, why == NO_ROOM, until);
        outlet_blocked_until(self, chx_now_ns());
        if (woken < 0) return -1;
        enum attempt result = outlet_try(self, frames, claim);
        if (result == CLAIMED) return 0;
        if (result == RAISED) return -1;
        why = result;
        if (!woken && until == deadline) {
            outlet_raise_would_block(self, why, claim->length);
            return -1;
        }
    }
}

/* Claim a run of 1 to `frames` frames of `length` bytes, waiting up to `timeout_ns` for the first. 0, or -1 with an
 * exception and nothing claimed. */
int native_outlet_claim(Outlet *self, uint64_t length, uint32_t frames, int64_t timeout_ns, struct native_claim *claim) {
    if (native_foreign(self->arena->owner, "outlet") || claim_init(claim, self->count)) return -1;
    claim->length = length;
    enum attempt result = outlet_try(self, frames, claim);
    if (result == CLAIMED) return 0;
    if (result != RAISED) {
        outlet_count_would_block(self, result);
        if (timeout_ns == 0)
            outlet_raise_would_block(self, result, length);
        else if (outlet_block(self, frames, timeout_ns, claim, result) == 0)
            return 0;
    }
    claim_free(claim);
    return -1;
}

/* Give the credits back, and the extent unless somebody still looks at it. */
void native_outlet_cancel(Outlet *self, struct native_claim *claim, int keep_extent) {
    for (Py_ssize_t i = 0; i < claim->routes; i++)
        if (claim_has(claim, i)) self->producers[i]->end.reserved -= claim->frames;
    claim_free(claim);
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

/* A frame, or a run, that a route did not get: for what reason. */
static void outlet_count_lost(struct chx_producer *end, const struct native_claim *claim) {
    chx_word *reason = claim->no_room ? &end->ring->losses.no_room : &end->ring->stats.dropped;
    chx_count(end->state == CHX_GIVEN_UP ? &end->ring->losses.given_up : reason, claim->frames);
}

/* Publish to every claimed route, then ring those that sleep. `seq`: its number (the last one's of a run) on the first
 * route, -1 if that one did not get it. RouteClosed when every claimed route was closed meanwhile. The claim is used up. */
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
        claim_free(claim);
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
    for (Py_ssize_t i = 0; i < claim->routes; i++) {
        if (!claim_has(claim, i)) continue;
        struct chx_producer *end = &self->producers[i]->end;
        if (chx_producer_commit_run(end, &claim->extent, length, claim->frames, tags, now))
            ring = 1;
        else
            claim->bits[i / 64] &= ~(1ull << (i % 64));
        if (i == 0) *seq = (int64_t)(end->header.base_seq + end->position - 1);
    }
    if (ring) outlet_ring(self, claim);
    claim_free(claim);
    return 0;
}

/* ---- Python ----------------------------------------------------------------------------------------------------- */

/* One more route at the end, which is a reference of its own. */
static int outlet_append(Outlet *self, PyObject *producer) {
    if (!PyObject_TypeCheck(producer, native_Producer)) {
        PyErr_Format(PyExc_TypeError, "producers must be shm.Producer, not %R", producer);
        return -1;
    }
    for (Py_ssize_t i = 0; i < self->count; i++)
        if ((PyObject *)self->producers[i] == producer) {
            PyErr_Format(PyExc_ValueError, "route %U is listed twice", ((Producer *)producer)->route);
            return -1;
        }
    if (self->count && self->producers[0]->arena != ((Producer *)producer)->arena) {
        PyErr_SetString(PyExc_ValueError, "the producers of an outlet must share one arena");
        return -1;
    }
    if (self->count == self->room) {
        Py_ssize_t room = self->room ? 2 * self->room : 4;
        Producer **producers = PyMem_Realloc(self->producers, (size_t)room * sizeof *producers);
        if (!producers) return PyErr_NoMemory(), -1;
        self->producers = producers;
        self->room = room;
    }
    self->producers[self->count++] = (Producer *)Py_NewRef(producer);
    return 0;
}

static int outlet_adopt(Outlet *self, PyObject *producers, Doorbell *bell) {
    PyObject *tuple = PySequence_Tuple(producers);
    if (!tuple) return -1;
    int failed = 0;
    for (Py_ssize_t i = 0; !failed && i < PyTuple_Size(tuple); i++) failed = outlet_append(self, PyTuple_GetItem(tuple, i));
    Py_DECREF(tuple);
    if (failed) return -1;
    if (self->count == 0) {
        PyErr_SetString(PyExc_ValueError, "an outlet needs at least one producer");
        return -1;
    }
    Arena *arena = self->producers[0]->arena;
    if (arena->bell && arena->bell != bell) {
        PyErr_SetString(PyExc_ValueError, "the outlets of an arena must share one doorbell");
        return -1;
    }
    if (!arena->bell) arena->bell = (Doorbell *)Py_NewRef((PyObject *)bell);
    self->arena = (Arena *)Py_NewRef((PyObject *)arena);
    self->bell = (Doorbell *)Py_NewRef((PyObject *)bell);
    return 0;
}

static PyObject *outlet_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"producers", "bell", "budget_ns", NULL};
    PyObject *producers;
    Doorbell *bell;
    long long budget_ns = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!|$L:Outlet", names, &producers, native_Doorbell, &bell,
                                     &budget_ns))
        return NULL;
    if (budget_ns < 0) return PyErr_Format(PyExc_ValueError, "budget_ns must not be negative, but is %lld", budget_ns);
    Outlet *self = (Outlet *)PyType_GenericAlloc(type, 0);
    if (!self) return NULL;
    if (outlet_adopt(self, producers, bell) != 0) {
        Py_DECREF(self);
        return NULL;
    }
    self->spin = (struct chx_spin){.ns = CHX_SPIN_CAP_NS};
    self->budget_ns = (uint64_t)budget_ns;
    return (PyObject *)self;
}

static int outlet_traverse(Outlet *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE((PyObject *)(self)));
    for (Py_ssize_t i = 0; i < self->count; i++) Py_VISIT(self->producers[i]);
    Py_VISIT(self->arena);
    return 0;
}

static void outlet_dealloc(Outlet *self) {
    PyObject_GC_UnTrack(self);
    for (Py_ssize_t i = 0; i < self->count; i++) Py_DECREF((PyObject *)self->producers[i]);
    PyMem_Free(self->producers);
    Py_CLEAR(self->arena);
    Py_CLEAR(self->bell);
    NATIVE_DEALLOC_GC(self);
}

/* Long copies let other threads run. */
void native_outlet_copy(Outlet *self, void *to, const void *from, size_t length) {
    if (length <= NATIVE_NO_GIL_BYTES) {
        memcpy(to, from, length);
        CHX_FAILPOINT(WRITE_COPIED);
        return;
    }
    self->arena->pins++;
    Py_BEGIN_ALLOW_THREADS
    memcpy(to, from, length);
    Py_END_ALLOW_THREADS
    native_arena_unpin(self->arena);
}

static PyObject *outlet_send_buffer(Outlet *self, const Py_buffer *data, int64_t timeout_ns, const struct chx_tags *tags) {
    struct native_claim claim;
    uint64_t length = (uint64_t)data->len;
    int64_t seq;
    if (native_outlet_claim(self, length, 1, timeout_ns, &claim) != 0) return NULL;
    if (length && claim.extent.handle != CHX_NO_EXTENT) native_outlet_copy(self, claim.extent.data, data->buf, length);
    if (native_outlet_commit(self, &claim, length, tags, &seq) != 0) return NULL;
    return PyLong_FromLongLong(seq);
}

static PyObject *outlet_send(Outlet *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"data", "timeout_ns", NATIVE_TAGS, NULL};
    static const struct native_signature signature = {"send", names, 1, 3};
    PyObject *given[2 + NATIVE_TAG_COUNT] = {NULL};
    struct chx_tags tags = {0};
    int64_t timeout_ns = -1;
    if (nargs == 1 && !kwnames) {
        given[0] = args[0];
    } else if (native_arguments(&signature, args, nargs, kwnames, given) ||
               native_i64(given[1], "timeout_ns", &timeout_ns) || native_tags(given + 2, &tags)) {
        return NULL;
    }
    Py_buffer data;
    if (PyObject_GetBuffer(given[0], &data, PyBUF_SIMPLE) != 0) return NULL;
    PyObject *seq = outlet_send_buffer(self, &data, timeout_ns, &tags);
    PyBuffer_Release(&data);
    return seq;
}

/* A loan that every route will drop is still filled by its caller: give it room all the same. */
static int outlet_scratch(Outlet *self, struct native_claim *claim) {
    if (!claim->dropped) return 0;
    int got = outlet_extent(self, claim->length, &claim->extent);
    if (got == 0) outlet_raise_would_block(self, NO_ROOM, claim->length);
    if (got <= 0) claim_free(claim);
    return got > 0 ? 0 : -1;
}

static PyObject *outlet_loan(Outlet *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"length", "timeout_ns", NATIVE_TAGS, NULL};
    static const struct native_signature signature = {"loan", names, 1, 3};
    PyObject *given[2 + NATIVE_TAG_COUNT] = {NULL};
    struct chx_tags tags = {0};
    int64_t length = 0, timeout_ns = -1;
    if (native_arguments(&signature, args, nargs, kwnames, given) || native_i64(given[0], "length", &length) ||
        native_i64(given[1], "timeout_ns", &timeout_ns) || native_tags(given + 2, &tags))
        return NULL;
    if (length < 0) return PyErr_Format(PyExc_ValueError, "length must not be negative, but is %lld", (long long)length);
    struct native_claim claim;
    if (native_outlet_claim(self, (uint64_t)length, 1, timeout_ns, &claim) != 0 || outlet_scratch(self, &claim) != 0)
        return NULL;
    return native_loan_new(self, &claim, &tags);
}

/* Give up what has been waited for too long. */
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

static PyObject *outlet_wait(Outlet *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"timeout_ns", NULL};
    static const struct native_signature signature = {"wait", names, 0, 1};
    PyObject *given[1] = {NULL};
    int64_t timeout_ns = -1;
    if (native_arguments(&signature, args, nargs, kwnames, given) || native_i64(given[0], "timeout_ns", &timeout_ns) ||
        native_foreign(self->arena->owner, "outlet"))
        return NULL;
    uint64_t deadline = native_deadline(timeout_ns);
    while (!native_outlet_room(self)) {
        if (timeout_ns == 0) Py_RETURN_FALSE;
        uint64_t until = self->short_at ? deadline : outlet_patience(self, deadline);
        int woken = native_outlet_wait(self, self->short_at != 0, until);
        if (woken < 0 || (until < deadline && outlet_lose_patience(self) != 0)) return NULL;
        if (!woken && until == deadline && !native_outlet_room(self)) Py_RETURN_FALSE;
    }
    self->short_at = 0;
    Py_RETURN_TRUE;
}

/* Taps that have ended go, unless a frame is on its way: then places must not change, and the next call does it. The last
 * route stays: its end is what a sender is told. */
static void outlet_sweep(Outlet *self) {
    Py_ssize_t kept = 0, count = self->count;
    if (self->claiming) return;
    for (Py_ssize_t i = 0; i < count; i++)
        if (self->producers[i]->end.reserved) return;
    PyObject **gone = PyMem_Calloc((size_t)count, sizeof *gone);
    if (!gone) return;
    for (Py_ssize_t i = 0; i < count; i++) {
        Producer *producer = self->producers[i];
        int ended = producer->end.state != CHX_OPEN && producer->end.state != CHX_UNLINKED;
        if (producer->tap && ended && (kept || i + 1 < count))
            gone[i] = (PyObject *)producer;
        else
            self->producers[kept++] = producer;
    }
    self->count = kept;
    for (Py_ssize_t i = 0; i < count; i++) Py_XDECREF(gone[i]);
    PyMem_Free(gone);
}

static PyObject *outlet_add(Outlet *self, PyObject *producer) {
    if (PyObject_TypeCheck(producer, native_Producer) && !((Producer *)producer)->tap)
        return PyErr_Format(PyExc_ValueError, "only taps are added to an outlet: Producer(..., tap=True)");
    outlet_sweep(self);
    if (outlet_append(self, producer) != 0) return NULL;
    Py_RETURN_NONE;
}

static PyObject *outlet_sweep_method(Outlet *self, PyObject *Py_UNUSED(ignored)) {
    outlet_sweep(self);
    Py_RETURN_NONE;
}

static PyObject *outlet_producers(Outlet *self, void *Py_UNUSED(closure)) {
    PyObject *tuple = PyTuple_New(self->count);
    for (Py_ssize_t i = 0; tuple && i < self->count; i++)
        if (PyTuple_SetItem(tuple, i, Py_NewRef((PyObject *)self->producers[i])) != 0) Py_CLEAR(tuple);
    return tuple;
}

static PyObject *outlet_arm(Outlet *self, PyObject *Py_UNUSED(ignored)) {
    if (native_foreign(self->arena->owner, "outlet")) return NULL;
    int waits = native_outlet_arm(self);
    if (waits) outlet_blocked_from(self, self->short_at ? NO_ROOM : NO_CREDIT, chx_now_ns());
    return PyBool_FromLong(waits);
}

static PyObject *outlet_disarm(Outlet *self, PyObject *Py_UNUSED(ignored)) {
    if (native_foreign(self->arena->owner, "outlet")) return NULL;
    native_outlet_disarm(self);
    outlet_blocked_until(self, chx_now_ns());
    Py_RETURN_NONE;
}


static PyMethodDef outlet_methods[] = {
    {"send", (PyCFunction)(void (*)(void))outlet_send, METH_FASTCALL | METH_KEYWORDS,
     "Copy `data` into the arena and commit it to every route; its sequence number on the first."},
    {"send_many", (PyCFunction)(void (*)(void))native_outlet_send_many, METH_FASTCALL | METH_KEYWORDS,
     "Send `data` as consecutive frames of `size` bytes each; how many."},
    {"loan", (PyCFunction)(void (*)(void))outlet_loan, METH_FASTCALL | METH_KEYWORDS,
     "A writable extent of `length` bytes, to be filled in place and committed."},
    {"wait", (PyCFunction)(void (*)(void))outlet_wait, METH_FASTCALL | METH_KEYWORDS,
     "Sleep until every blocking route has come down to credit_low; False on time-out."},
    {"add", (PyCFunction)outlet_add, METH_O, "A tap: it gets every frame from the next one on."},
    {"sweep", (PyCFunction)outlet_sweep_method, METH_NOARGS, "Let go of taps that have ended."},
    {"arm", (PyCFunction)outlet_arm, METH_NOARGS,
     "After WouldBlock: ask for the doorbell when a send may succeed. False: it may now."},
    {"disarm", (PyCFunction)outlet_disarm, METH_NOARGS, "The wait is over: no ring is wanted any more."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef outlet_getset[] = {
    {"producers", (getter)outlet_producers, NULL, "Its routes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot outlet_slots[] = {
    {Py_tp_new, outlet_new},         {Py_tp_dealloc, outlet_dealloc}, {Py_tp_traverse, outlet_traverse},
    {Py_tp_methods, outlet_methods}, {Py_tp_getset, outlet_getset},
    {Py_tp_doc, "Sends each frame to one or more routes of the same arena, with one copy of the payload."},
    {0, NULL},
};

static PyType_Spec outlet_spec = {"shm.Outlet", sizeof(Outlet), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                  outlet_slots};

int native_outlet_init(PyObject *module) {
    native_Outlet = native_add_type(module, &outlet_spec);
    return native_Outlet ? 0 : -1;
}
