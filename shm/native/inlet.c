/* shm.Inlet: frames from several routes, by class, deadline and turn (turn.h), sleeping in one place.
 *
 * Choosing and sleeping are one file, because an inlet sleeps on exactly the inputs that its choice has found empty: a
 * change of only one of the two would lose a wake-up.
 *
 * Waiting: look, spin a little, register as sleeper, publish the positions waited for, fence, look again, sleep. See
 * SPEC.md, Wake-up.
 */
#include "native.h"
#include "turn.h"

PyTypeObject *native_Inlet;

#define INLET_NORMAL 1 /* the class of service of routes that say nothing */
#define TAKE_STEP 64u /* frames that a batch has room for at first; it doubles */

typedef struct {
    PyObject_HEAD
    Consumer **consumers; /* the present stage of each route */
    Py_ssize_t count;
    struct turns turns;
    uint8_t unranked, scanning; /* routes were added since they were ranked; it looks for a frame, ranks must stay */
    Doorbell *bell;
    struct chx_spin spin;
    uint64_t rings; /* native_rings when it last waited */
    uint64_t commits, taken; /* native_commits when it last waited; frames taken since */
} Inlet;

enum scan { FOUND, NOTHING, ALL_ENDED, RAISED, TORN /* policy latest: overwritten again and again */ };

/* What is to be taken next and what was: with `limit` 0 a frame, else a batch of at most so many. */
struct take {
    uint32_t limit;
    PyObject *found;
    uint64_t time_ns, deadline_ns; /* of the first frame: when it was committed, when it is due (0: whenever) */
    uint32_t frames;
};

/* The frames of this route that are there, as many as wanted, and of no more bytes than its producer has memory. A run is
 * appended to the last one until one comes short. */
static enum chx_status inlet_take_run(Consumer *consumer, uint32_t port, struct take *take) {
    uint32_t room = take->limit < TAKE_STEP ? take->limit : TAKE_STEP, frames, more;
    struct chx_taken first;
    enum chx_status status = chx_consumer_look(&consumer->end, &first);
    if (status != CHX_OK) return status;
    struct chx_taken *taken = PyMem_Malloc(room * sizeof *taken);
    if (!taken) return PyErr_NoMemory(), CHX_NO_MEMORY;
    uint64_t bytes = consumer->end.mapped;
    status = chx_consumer_take_within(&consumer->end, taken, room, &bytes, &frames);
    if (status != CHX_OK) { /* a peer that takes back what it has shown */
        PyMem_Free(taken);
        return status;
    }
    while (frames == room && room < take->limit && bytes) {
        room = take->limit - room < room ? take->limit : 2 * room;
        struct chx_taken *larger = PyMem_Realloc(taken, room * sizeof *taken);
        if (!larger) break; /* what there is will do */
        taken = larger;
        if (chx_consumer_take_within(&consumer->end, taken + frames, room - frames, &bytes, &more) != CHX_OK) break;
        frames += more;
    }
    take->time_ns = taken->time_ns;
    take->deadline_ns = taken->deadline_ns;
    take->frames = frames;
    take->found = native_batch_new(consumer, taken, NULL, frames, port);
    return CHX_OK;
}

/* Policy latest. What is overwritten again and again under our hands is None: the caller gets a turn. */
static enum chx_status inlet_take_copy(Consumer *consumer, uint32_t port, struct take *take) {
    struct chx_taken taken;
    void *copy = NULL;
    enum chx_status status = take->limit ? native_latest_take_run(consumer, take->limit, port, &taken, &take->found)
                                         : native_latest_take(consumer, &taken, &copy);
    if (status == CHX_WOULD_BLOCK) {
        take->time_ns = take->deadline_ns = 0;
        take->found = Py_NewRef(Py_None);
        return CHX_OK;
    }
    if (status != CHX_OK) return status;
    take->time_ns = taken.time_ns;
    take->deadline_ns = taken.deadline_ns;
    if (!take->limit) take->found = native_frame_copied(consumer, &taken, port, copy);
    return CHX_OK;
}

static enum chx_status inlet_take_from(Consumer *consumer, uint32_t port, struct take *take) {
    if (consumer->end.latest) return inlet_take_copy(consumer, port, take);
    if (take->limit) return inlet_take_run(consumer, port, take);
    struct chx_taken taken;
    enum chx_status status = chx_consumer_take(&consumer->end, &taken);
    if (status != CHX_OK) return status;
    take->time_ns = taken.time_ns;
    take->deadline_ns = taken.deadline_ns;
    take->found = native_frame_new(consumer, &taken, port);
    return CHX_OK;
}

/* The stage `old` is empty: go on with the next one, which may not be linked yet. Another thread may have done so while this
 * one copied. */
static void inlet_advance(Inlet *self, Py_ssize_t port, Consumer *old) {
    if (self->consumers[port] != old) return;
    self->consumers[port] = (Consumer *)Py_NewRef((PyObject *)old->next);
    if (old->class != old->next->class) self->unranked = 1;
    old->left = 1;
    native_consumer_drained(old);
    Py_DECREF((PyObject *)old);
}

/* What a look at this stage comes to. One found faulty is detached and raised once; after that it is like one that has
 * ended. */
static inline __attribute__((always_inline)) enum scan inlet_found(Consumer *consumer, enum chx_status status,
                                                                   const struct take *take) {
    switch (status) {
        case CHX_OK:
            return take->found ? FOUND : RAISED;
        case CHX_NO_MEMORY:
            return RAISED;
        case CHX_FAULT:
            if (consumer->told) return ALL_ENDED;
            consumer->told = 1;
            native_raise_status(CHX_FAULT, consumer->route, &consumer->end.why, 0);
            return RAISED;
        case CHX_EMPTY:
            return NOTHING;
        default:
            return ALL_ENDED;
    }
}

/* inlet_try where other code may run meanwhile: other threads during a copy of policy latest, or what is called when a stage
 * is left. Its route stays in its place, and its stage alive. */
static __attribute__((noinline)) enum scan inlet_try_long(Inlet *self, uint32_t port, struct take *take) {
    enum scan found = RAISED;
    self->scanning++;
    for (int more = 1; more;) {
        Consumer *consumer = (Consumer *)Py_NewRef((PyObject *)self->consumers[port]);
        enum chx_status status = inlet_take_from(consumer, port, take);
        more = status == CHX_ENDED && consumer->next;
        if (more)
            inlet_advance(self, port, consumer);
        else
            found = inlet_found(consumer, status, take);
        if (more && native_foreign(consumer->owner, "inlet")) more = 0; /* what was called has forked: this is the child */
        Py_DECREF((PyObject *)consumer);
    }
    self->scanning--;
    return found;
}

/* What this route has. */
static inline __attribute__((always_inline)) enum scan inlet_try(Inlet *self, uint32_t port, struct take *take) {
    Consumer *consumer = self->consumers[port];
    if (consumer->end.latest) return inlet_try_long(self, port, take);
    enum chx_status status = inlet_take_from(consumer, port, take);
    if (status == CHX_ENDED && consumer->next) return inlet_try_long(self, port, take);
    return inlet_found(consumer, status, take);
}

static __attribute__((noinline, flatten)) enum scan inlet_try_one(Inlet *self, uint32_t port, struct take *take) {
    return inlet_try(self, port, take);
}

static inline void rank_took(struct rank *rank, uint32_t at, const struct take *take) {
    rank->next = at + 1 == rank->count ? 0 : at + 1;
    if (!take->deadline_ns || rank->count == 1) return;
    if (!rank->deadlines) rank->takes = 0;
    rank->deadlines = TURN_PATIENCE;
}

/* Whether there is no new frame at the next position. Only for passing over empty inputs while another has frames: the word
 * is read without any check. */
static inline int consumer_still(const struct chx_consumer *end) {
    if (end->state != CHX_CONSUMER_OPEN) return end->state == CHX_CONSUMER_UNLINKED;
    uint32_t slot = (uint32_t)(end->position & end->mask);
    uint64_t awaited = end->position + 1;
    return atomic_load_explicit(&end->desc[slot].stamp, memory_order_relaxed) != awaited &&
           atomic_load_explicit(&end->skip[slot], memory_order_relaxed) != awaited &&
           !atomic_load_explicit(&end->ring->closed, memory_order_relaxed);
}

/* The next in turn that has something. */
static __attribute__((noinline, flatten)) enum scan inlet_by_turn(Inlet *self, struct rank *rank, struct take *take) {
    enum scan result = ALL_ENDED;
    uint32_t at = rank->next;
    for (uint32_t looks = rank->count < TURN_LAZY_FROM ? rank->count : 0; looks > 0; looks--) {
        if (!consumer_still(&self->consumers[rank->ports[at]]->end)) break;
        if (++at == rank->count) at = 0;
    }
    for (uint32_t looks = rank->count; looks > 0; looks--) {
        enum scan found = inlet_try(self, rank->ports[at], take);
        if (found == FOUND || found == RAISED) {
            rank_took(rank, at, take);
            return found;
        }
        if (found == NOTHING) result = NOTHING;
        if (++at == rank->count) at = 0;
    }
    return result;
}

/* The same where there are many: sleepers are passed over, see turn.h. */
static enum scan inlet_by_turn_of_many(Inlet *self, struct rank *rank, struct take *take) {
    rank_stir(rank);
    for (uint32_t from = rank->next; rank->busy;) {
        for (uint64_t awake = rank_awake(rank, from); awake; awake &= awake - 1) {
            uint32_t at = from / 64 * 64 + (uint32_t)__builtin_ctzll(awake);
            enum scan found = inlet_try_one(self, rank->ports[at], take);
            if (found == FOUND || found == RAISED) {
                rank->taken++;
                rank_took(rank, at, take);
                return found;
            }
            rank_sleep(rank, at);
        }
        from = from / 64 + 1 < rank_words(rank->count) ? (from / 64 + 1) * 64 : 0;
    }
    enum scan found = inlet_by_turn(self, rank, take);
    if (found == FOUND) {
        rank_wake(rank, (rank->next ? rank->next : rank->count) - 1);
        rank->taken = rank->count; /* others may have come with it */
    }
    return found;
}

/* Not by deadline this time. */
static enum scan inlet_by_fair_turn(Inlet *self, struct rank *rank, struct take *take) {
    uint32_t next = rank->next;
    rank->next = rank->fair;
    enum scan found = inlet_by_turn(self, rank, take);
    rank->fair = rank->next;
    rank->next = next;
    return found;
}

/* The earliest deadline; among equals the next in turn. */
static enum scan inlet_by_deadline(Inlet *self, struct rank *rank, struct take *take) {
    uint32_t best = rank->count, at = rank->next;
    uint64_t earliest = 0;
    rank->deadlines--;
    for (uint32_t looks = rank->count; looks > 0; looks--) {
        Consumer *consumer = self->consumers[rank->ports[at]];
        struct chx_taken seen;
        enum chx_status status = chx_consumer_look(&consumer->end, &seen);
        if (status == CHX_FAULT && !consumer->told) {
            best = at;
            break;
        }
        if (status == CHX_OK) {
            uint64_t due = seen.deadline_ns ? seen.deadline_ns : UINT64_MAX;
            if (seen.deadline_ns) rank->deadlines = TURN_PATIENCE;
            if (best == rank->count || due < earliest) {
                best = at;
                earliest = due;
            }
        }
        if (++at == rank->count) at = 0;
    }
    if (best == rank->count) return inlet_by_turn(self, rank, take); /* tells ended ones from empty ones */
    enum scan found = inlet_try_one(self, rank->ports[best], take);
    rank_took(rank, best, take);
    return found;
}

static inline enum scan inlet_scan_rank(Inlet *self, struct rank *rank, struct take *take) {
    if (rank->deadlines) {
        int fair = ++rank->takes % TURN_BY_TURN == 0;
        return fair ? inlet_by_fair_turn(self, rank, take) : inlet_by_deadline(self, rank, take);
    }
    if (rank->count >= TURN_LAZY_FROM) return inlet_by_turn_of_many(self, rank, take);
    return inlet_by_turn(self, rank, take);
}

/* Several classes: the highest that has something and takes left in this round. */
static enum scan inlet_scan_ranks(Inlet *self, struct take *take) {
    struct turns *turns = &self->turns;
    for (;;) {
        enum scan result = ALL_ENDED;
        int spent = 0;
        for (uint32_t i = 0; i < turns->count; i++) {
            struct rank *rank = &turns->ranks[i];
            if (!rank->left) {
                spent = 1;
                continue;
            }
            enum scan found = inlet_scan_rank(self, rank, take);
            if (found == FOUND) rank->left--;
            if (found == FOUND || found == RAISED) return found;
            if (found == NOTHING) result = NOTHING;
        }
        if (!spent) return result;
        turns_refill(turns);
    }
}

/* Put the consumers into their classes. Again when there are others; whose turn it is begins anew. */
static int inlet_rank(Inlet *self) {
    uint8_t *classes = PyMem_Malloc((size_t)self->count + 1);
    if (!classes) return PyErr_NoMemory(), -1;
    for (Py_ssize_t i = 0; i < self->count; i++) classes[i] = self->consumers[i]->class;
    turns_free(&self->turns);
    self->unranked = turns_make(&self->turns, (uint32_t)self->count, classes) != 0;
    PyMem_Free(classes);
    if (self->unranked) PyErr_NoMemory();
    return self->unranked ? -1 : 0;
}

static inline enum scan inlet_scan(Inlet *self, struct take *take) {
    if (self->count == 1) return inlet_try_one(self, 0, take);
    if (self->unranked && !self->scanning && inlet_rank(self) != 0) return RAISED;
    self->scanning++; /* a stage that is left calls back */
    enum scan found = self->turns.count == 1 ? inlet_scan_rank(self, &self->turns.ranks[0], take)
                                             : inlet_scan_ranks(self, take);
    self->scanning--;
    return found;
}

/* Will a sleep be a nap, on every route? Then spinning takes the processor from those who fill it. */
static int inlet_naps(const Inlet *self) {
    if (self->taken < CHX_NAP_FRAMES * (native_commits - self->commits)) return 0; /* it answers: see pace.h */
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (self->consumers[i]->class > INLET_NORMAL || !chx_consumer_may_nap(&self->consumers[i]->end)) return 0;
    return 1;
}

static enum scan inlet_spin(Inlet *self, struct take *take, uint64_t deadline) {
    uint32_t cap = chx_spin_cap(&native_wake);
    if (self->spin.ns == 0 || cap == 0) return NOTHING;
    uint64_t start = chx_now_ns(), until = start + self->spin.ns;
    if (until > deadline) until = deadline;
    do {
        for (int i = 0; i < 8; i++) {
            enum scan result = inlet_scan(self, take);
            if (result != NOTHING) {
                chx_spin_found(&self->spin, cap, chx_now_ns() - start);
                return result;
            }
            chx_pause();
        }
    } while (chx_now_ns() < until);
    chx_spin_missed(&self->spin, cap);
    return NOTHING;
}

/* Publish the positions waited for, for a nap where `naps`. How long that may last, in ns; 0: for ever. */
static uint64_t inlet_arm(const Inlet *self, int naps) {
    uint64_t shortest = 0;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_consumer *end = &self->consumers[i]->end;
        uint64_t nap = 0;
        if (naps)
            nap = chx_consumer_arm_nap(end);
        else
            chx_consumer_arm(end);
        if (nap && (!shortest || nap < shortest)) shortest = nap;
    }
    atomic_thread_fence(memory_order_seq_cst); /* partners: chx_producer_commit, chx_producer_starves */
    return shortest;
}

static void inlet_disarm(const Inlet *self) {
    for (Py_ssize_t i = 0; i < self->count; i++) chx_consumer_disarm(&self->consumers[i]->end);
}

/* Positions are published; nothing is there. Count the sleep, and ring producers that wait for more credits than this
 * end will return. */
static void inlet_nudge(const Inlet *self) {
    for (Py_ssize_t i = 0; i < self->count; i++) {
        struct chx_consumer *end = &self->consumers[i]->end;
        if (end->state != CHX_CONSUMER_OPEN) continue;
        chx_count(&end->credit->stats.sleeps, 1);
        chx_consumer_nudge(end);
    }
}

/* Adapt the spin to the sleep since `start`, which ended with a frame of that time. Of a nap it is not known how long the
 * wake-up took, for the bell did not ring at once. */
static void inlet_learn(Inlet *self, uint64_t committed, uint64_t start, int nap) {
    if (committed < start) return;
    uint64_t after = committed - start;
    if (!nap) chx_wake_took(&native_wake, chx_now_ns() - committed);
    chx_spin_slept(&self->spin, chx_spin_cap(&native_wake), after, native_rings != self->rings);
}

/* Asleep from `start` to `until`. `rung`: the sleep was ended by something other than that time. */
static enum scan inlet_doze(Inlet *self, struct take *take, struct native_sleeper *sleeper, uint64_t until, int *rung) {
    inlet_nudge(self);
    int woken = native_bell_sleep(self->bell, sleeper, until);
    *rung = woken != 0;
    return woken < 0 ? RAISED : inlet_scan(self, take);
}

static enum scan inlet_sleep(Inlet *self, struct take *take, uint64_t deadline) {
    struct native_sleeper sleeper;
    if (native_bell_enter(self->bell, &sleeper) != 0) return RAISED;
    uint64_t nap = inlet_arm(self, inlet_naps(self));
    int rung = 1;
    enum scan result = inlet_scan(self, take);
    if (result == NOTHING) {
        uint64_t start = chx_now_ns();
        uint64_t until = nap && start + nap < deadline ? start + nap : deadline;
        result = inlet_doze(self, take, &sleeper, until, &rung);
        if (result == NOTHING && !rung && until < deadline) { /* the stream has stopped: the next frame rings */
            inlet_arm(self, 0);
            result = inlet_scan(self, take);
            if (result == NOTHING) result = inlet_doze(self, take, &sleeper, deadline, &rung);
        } else if (result == FOUND) {
            inlet_learn(self, take->time_ns, start, nap != 0);
        }
    }
    if (native_bell_alone(self->bell)) inlet_disarm(self);
    native_bell_leave(self->bell, &sleeper);
    return result;
}

/* Take a frame (limit 0), or a batch of at most `limit`; None as Inlet.take. */
PyObject *native_inlet_take(PyObject *inlet, uint32_t limit, int64_t timeout_ns) {
    Inlet *self = (Inlet *)inlet;
    if (self->count && native_foreign(self->consumers[0]->owner, "inlet")) return NULL;
    struct take take = {.limit = limit, .frames = 1};
    enum scan result = inlet_scan(self, &take);
    if (result == NOTHING && timeout_ns != 0) {
        uint64_t deadline = native_deadline(timeout_ns);
        result = inlet_spin(self, &take, deadline);
        if (result == NOTHING) result = inlet_sleep(self, &take, deadline);
        self->rings = native_rings;
        self->commits = native_commits;
        self->taken = 0;
    }
    if (result == FOUND) {
        self->taken += take.frames;
        return take.found;
    }
    if (result == RAISED) return NULL;
    Py_RETURN_NONE;
}

static PyObject *inlet_take(Inlet *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"timeout_ns", NULL};
    static const struct native_signature signature = {"take", names, 0, 1};
    int64_t timeout_ns = -1;
    if (nargs || kwnames) {
        PyObject *given[1] = {NULL};
        if (native_arguments(&signature, args, nargs, kwnames, given) ||
            native_i64(given[0], "timeout_ns", &timeout_ns))
            return NULL;
    }
    return native_inlet_take((PyObject *)self, 0, timeout_ns);
}

static PyObject *inlet_take_many(Inlet *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"limit", "timeout_ns", NULL};
    static const struct native_signature signature = {"take_many", names, 1, 2};
    PyObject *given[2] = {NULL};
    int64_t limit = 0, timeout_ns = -1;
    if (native_arguments(&signature, args, nargs, kwnames, given) || native_i64(given[0], "limit", &limit) ||
        native_i64(given[1], "timeout_ns", &timeout_ns))
        return NULL;
    if (limit < 1) return PyErr_Format(PyExc_ValueError, "limit must be at least 1, not %lld", (long long)limit);
    return native_inlet_take((PyObject *)self, limit < CHX_CREDITS_MAX ? (uint32_t)limit : CHX_CREDITS_MAX, timeout_ns);
}

/* For a foreign event loop that polls the bell's descriptor itself. */
static PyObject *inlet_arm_method(Inlet *self, PyObject *Py_UNUSED(ignored)) {
    if (self->count && native_foreign(self->consumers[0]->owner, "inlet")) return NULL;
    inlet_arm(self, 0);
    struct chx_taken unused;
    for (Py_ssize_t i = 0; i < self->count; i++) {
        enum chx_status status = chx_consumer_look(&self->consumers[i]->end, &unused);
        if (status == CHX_OK || status == CHX_WOULD_BLOCK) Py_RETURN_FALSE;
        if (status == CHX_FAULT && !self->consumers[i]->told) Py_RETURN_FALSE;
        if (status == CHX_ENDED && self->consumers[i]->next) Py_RETURN_FALSE; /* there is a next stage to look at */
    }
    inlet_nudge(self);
    Py_RETURN_TRUE;
}

static int inlet_adopt(Inlet *self, PyObject *consumers, Doorbell *bell) {
    PyObject *tuple = PySequence_Tuple(consumers);
    if (!tuple) return -1;
    Py_ssize_t count = PyTuple_Size(tuple);
    self->consumers = PyMem_Calloc((size_t)count + 1, sizeof *self->consumers);
    if (!self->consumers) PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < count && self->consumers; i++) {
        PyObject *consumer = PyTuple_GetItem(tuple, i);
        if (!PyObject_TypeCheck(consumer, native_Consumer)) {
            PyErr_Format(PyExc_TypeError, "consumers must be shm.Consumer, not %R", consumer);
            break;
        }
        self->consumers[self->count++] = (Consumer *)Py_NewRef(consumer);
    }
    Py_DECREF(tuple);
    if (PyErr_Occurred() || inlet_rank(self) != 0) return -1;
    self->bell = (Doorbell *)Py_NewRef((PyObject *)bell);
    self->spin = (struct chx_spin){.ns = CHX_SPIN_CAP_NS};
    return 0;
}

static PyObject *inlet_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"consumers", "bell", NULL};
    PyObject *consumers;
    Doorbell *bell;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "OO!:Inlet", names, &consumers, native_Doorbell, &bell)) return NULL;
    Inlet *self = (Inlet *)PyType_GenericAlloc(type, 0);
    if (!self) return NULL;
    if (inlet_adopt(self, consumers, bell) != 0) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int inlet_traverse(Inlet *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE((PyObject *)self));
    for (Py_ssize_t i = 0; i < self->count; i++) Py_VISIT(self->consumers[i]);
    return 0;
}

static void inlet_dealloc(Inlet *self) {
    PyObject_GC_UnTrack(self);
    for (Py_ssize_t i = 0; i < self->count; i++) Py_DECREF((PyObject *)self->consumers[i]);
    PyMem_Free(self->consumers);
    turns_free(&self->turns);
    Py_CLEAR(self->bell);
    NATIVE_DEALLOC_GC(self);
}

static PyObject *inlet_consumers(Inlet *self, void *Py_UNUSED(closure)) {
    PyObject *tuple = PyTuple_New(self->count);
    for (Py_ssize_t i = 0; tuple && i < self->count; i++)
        if (PyTuple_SetItem(tuple, i, Py_NewRef((PyObject *)self->consumers[i])) != 0) Py_CLEAR(tuple);
    return tuple;
}

/* Safe while a thread sleeps in the inlet: a thread that wakes up looks at all inputs. */
static PyObject *inlet_add(Inlet *self, PyObject *consumer) {
    if (!PyObject_TypeCheck(consumer, native_Consumer))
        return PyErr_Format(PyExc_TypeError, "a consumer must be a shm.Consumer, not %R", consumer);
    Consumer **larger = PyMem_Realloc(self->consumers, ((size_t)self->count + 1) * sizeof *larger);
    if (!larger) return PyErr_NoMemory();
    self->consumers = larger;
    self->consumers[self->count++] = (Consumer *)Py_NewRef(consumer);
    self->unranked = 1;
    native_bell_stir(self->bell);
    Py_RETURN_NONE;
}

/* Forget a route that has ended. Not within a take: the next take ranks the others anew. */
static PyObject *inlet_remove(Inlet *self, PyObject *consumer) {
    for (Py_ssize_t i = 0; i < self->count && !self->scanning; i++) {
        if ((PyObject *)self->consumers[i] != consumer) continue;
        if (!native_consumer_ended(self->consumers[i])) break;
        memmove(&self->consumers[i], &self->consumers[i + 1], (size_t)(self->count - i - 1) * sizeof *self->consumers);
        self->count--;
        self->unranked = 1;
        Py_DECREF(consumer);
        Py_RETURN_NONE;
    }
    PyErr_SetString(PyExc_ValueError, "only a route of the inlet that has ended can be removed, and not within a take");
    return NULL;
}

/* Have all routes ended? */
int native_inlet_ended(const PyObject *inlet) {
    const Inlet *self = (const Inlet *)inlet;
    for (Py_ssize_t i = 0; i < self->count; i++)
        if (!native_consumer_ended(self->consumers[i])) return 0;
    return 1;
}

static PyObject *inlet_ended(Inlet *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(native_inlet_ended((PyObject *)self));
}

static PyMethodDef inlet_methods[] = {
    {"take", (PyCFunction)(void (*)(void))inlet_take, METH_FASTCALL | METH_KEYWORDS,
     "The next frame, or None when the time is up, the doorbell was rung for something else, or all have ended."},
    {"take_many", (PyCFunction)(void (*)(void))inlet_take_many, METH_FASTCALL | METH_KEYWORDS,
     "Up to `limit` frames of one route that are there, as a Batch; None as take."},
    {"add", (PyCFunction)inlet_add, METH_O, "One more route, from now on."},
    {"remove", (PyCFunction)inlet_remove, METH_O, "Forget a route that has ended."},
    {"arm", (PyCFunction)inlet_arm_method, METH_NOARGS,
     "Ask for the doorbell at the next frame. False: something is there already, take it first."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef inlet_getset[] = {
    {"consumers", (getter)inlet_consumers, NULL, "Its routes: the present stage of each.", NULL},
    {"ended", (getter)inlet_ended, NULL, "Every route has ended (True for an inlet without routes).", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot inlet_slots[] = {
    {Py_tp_new, inlet_new},         {Py_tp_dealloc, inlet_dealloc}, {Py_tp_traverse, inlet_traverse},
    {Py_tp_methods, inlet_methods}, {Py_tp_getset, inlet_getset},
    {Py_tp_doc, "Takes frames from one or more routes, by class, deadline and turn, sleeping in one place."},
    {0, NULL},
};

static PyType_Spec inlet_spec = {"shm.Inlet", sizeof(Inlet), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, inlet_slots};

int native_inlet_init(PyObject *module) {
    native_Inlet = native_add_type(module, &inlet_spec);
    return native_Inlet ? 0 : -1;
}
