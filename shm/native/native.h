/* What the files of the Python face share. Each type has a file of its own; the work is done by the headers.
 *
 * Private state is protected by the interpreter lock; it is released only to sleep and to copy more than 64 KiB.
 * Everything belongs to the process that made it: `owner` is compared with native_process() before shared memory is
 * written, so destructors that run in a forked child touch nothing of the parent's. It is compared again after anything
 * that may run Python code, which may have forked. What is missed ends the child, not its parent: see forked.h.
 */
#ifndef CHRONETIX_NATIVE_H
#define CHRONETIX_NATIVE_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <chronetix/chronetix.h>

#define NATIVE_NO_GIL_BYTES 65536u
#define NATIVE_LINGER_BYTES (512u << 10) /* smaller frames stay in a cache whichever extent they use */

/* ---- process.c: fork, what a wake-up costs ---- */
extern volatile uint32_t *native_process_word;
int native_process_init(void);
uint32_t native_process_claim(void);
static inline uint32_t native_process(void) { return *native_process_word; }
extern struct chx_wake native_wake;
extern uint64_t native_rings; /* peers rung by this process */
extern uint64_t native_commits; /* frames, or runs, that it has sent */

/* ---- errors.c ---- */
extern PyObject *native_would_block, *native_route_closed, *native_peer_fault, *native_frame_too_large;
int native_errors_init(PyObject *module);
void native_raise(PyObject *type, PyObject *route, const char *format, ...);
void native_raise_status(enum chx_status status, PyObject *route, const struct chx_why *why, uint64_t bytes);
int native_foreign(uint32_t owner, const char *what);

/* ---- arguments.c: positional and keyword arguments without a tuple or a dict ---- */
struct native_signature {
    const char *function;
    const char *const *names; /* NULL at the end */
    Py_ssize_t required, positional;
};
int native_arguments(const struct native_signature *signature, PyObject *const *args, Py_ssize_t nargs,
                     PyObject *kwnames, PyObject **out);
int native_u64(PyObject *value, const char *name, uint64_t *out);
int native_u32(PyObject *value, const char *name, uint32_t *out);
int native_i64(PyObject *value, const char *name, int64_t *out);
#define NATIVE_TAGS "origin", "schema", "deadline_ns", "trace", "input_seq", "redelivered", "noted"
#define NATIVE_TAG_COUNT 7
int native_tags(PyObject *const *values, struct chx_tags *tags); /* of NATIVE_TAGS, in this order */

/* ---- doorbell.c ---- */
struct native_sleeper {
    struct native_sleeper *next;
    int fd; /* a follower's own eventfd; -1: the leader, who sleeps on the bell */
};

typedef struct {
    PyObject_HEAD
    struct chx_bell bell; /* changed under the interpreter lock; slept on without it */
    uint32_t owner;
    struct native_sleeper *sleepers;
    PyObject *interrupt; /* raised by whoever sleeps on it now or next, once; NULL: nothing */
} Doorbell;

extern PyTypeObject *native_Doorbell;
int native_doorbell_init(PyObject *module);
int native_bell_usable(const Doorbell *bell);
PyObject *native_line(PyObject *module, PyObject *args, PyObject *kwargs);
int native_bell_enter(Doorbell *bell, struct native_sleeper *sleeper);
int native_bell_sleep(Doorbell *bell, struct native_sleeper *sleeper, uint64_t deadline);
void native_bell_leave(Doorbell *bell, struct native_sleeper *sleeper);
void native_bell_stir(const Doorbell *bell);
/* Not in a child that was forked by what was called during the sleep: it has nothing to disarm. */
static inline int native_bell_alone(const Doorbell *bell) {
    return bell->sleepers && !bell->sleepers->next && bell->owner == native_process();
}
uint64_t native_deadline(int64_t timeout_ns);

/* ---- arena.c ---- */
typedef struct Producer Producer;

typedef struct {
    PyObject_HEAD
    struct chx_arena arena;
    PyObject *on_grow, *on_drop;
    Doorbell *bell;       /* of its outlets */
    Producer *producers;  /* made on it, not owned */
    uint32_t pins;        /* loans and copies that use the mapping */
    uint32_t owner;
    uint8_t closed, growing;
} Arena;

extern PyTypeObject *native_Arena;
int native_arena_init(PyObject *module);
int native_arena_grow(Arena *self, uint64_t length);
void native_arena_unpin(Arena *self);

/* ---- producer.c ---- */
struct Producer {
    PyObject_HEAD
    struct chx_producer end;
    PyObject *route;
    Doorbell *bell; /* of its line */
    Arena *arena;
    Producer *next, **link; /* in arena->producers */
    PyObject *on_give_up;
    uint32_t owner;
    uint8_t told; /* its end was reported to a caller */
    uint8_t tap;  /* neither keeps its outlets going nor ends them */
    uint8_t later; /* its link is to come: until then it has no credit */
};

extern PyTypeObject *native_Producer;
int native_producer_init(PyObject *module);
/* Frames for it wait until it is linked. */
static inline int native_producer_awaits(const Producer *self) { return self->later && self->end.state == CHX_UNLINKED; }
extern Producer *native_told; /* whose end native_producer_raise told just now, for the first time; or NULL */
void native_producer_raise(Producer *self);
int native_producer_give_up(Producer *self, uint64_t now);

/* ---- outlet.c, claim.c, backpressure.c, waiting.c, linger.c, run.c, loan.c ---- */
typedef struct {
    PyObject_HEAD
    Producer **producers; /* each a reference */
    Py_ssize_t count, room;
    Arena *arena;
    Doorbell *bell;
    struct chx_spin spin;
    struct chx_pace pace;
    uint64_t budget_ns; /* its frames are due that long after their commit, or earlier; 0: no deadline of its own */
    uint32_t claiming; /* a claim is being made: places must not change, whatever is called meanwhile */
    uint64_t short_at; /* arena.frees + 1 when it last ran out of room; 0: it did not */
    uint8_t linger_skip, linger_doubt; /* large frames before it waits again; how many more after another miss */
    PyObject *encode; /* makes bytes of what has no plain memory; NULL without one */
    PyTypeObject *plain; /* whose memory `encode` has let pass as it is, last of all; or NULL */
} Outlet;

/* A frame on its way, or a run of them that lie side by side: its extent and the routes that have promised a credit for
 * each, one bit a route. */
struct native_claim {
    struct chx_extent extent;
    uint64_t length; /* of each */
    uint32_t frames;
    uint64_t word; /* the bits of up to 64 routes */
    uint64_t *bits;
    Py_ssize_t routes, places; /* of the outlet when it was claimed; that `bits` have room for */
    uint8_t dropped; /* no route takes it, and the policy of all allows that */
    uint8_t no_room; /* because of that, not for want of credits */
};

/* What one attempt to claim has come to: there is no credit of a route that must get the frame, or no room in the
 * arena, or an exception. */
enum native_attempt { NATIVE_CLAIMED, NATIVE_NO_CREDIT, NATIVE_NO_ROOM, NATIVE_RAISED };

extern PyTypeObject *native_Outlet, *native_Loan;
int native_outlet_init(PyObject *module);
int native_loan_init(PyObject *module);
int native_claim_init(struct native_claim *claim, Py_ssize_t routes);
void native_claim_free(struct native_claim *claim);
enum native_attempt native_claim_try(Outlet *self, uint32_t frames, struct native_claim *claim);
int native_claim_extent(Outlet *self, uint64_t length, struct chx_extent *extent);
int native_outlet_claim(Outlet *self, uint64_t length, uint32_t frames, int64_t timeout_ns, struct native_claim *claim);
int native_outlet_commit(Outlet *self, struct native_claim *claim, uint64_t length, const struct chx_tags *tags,
                         int64_t *seq);
void native_outlet_cancel(Outlet *self, struct native_claim *claim, int keep_extent);
int native_outlet_await(Outlet *self, int64_t timeout_ns);
void native_outlet_blocked_from(Outlet *self, enum native_attempt why, uint64_t now);
void native_outlet_blocked_until(Outlet *self, uint64_t now);
void native_outlet_raise_would_block(const Outlet *self, enum native_attempt why, uint64_t length);
int native_outlet_wait(Outlet *self, int for_room, uint64_t deadline);
int native_outlet_room(Outlet *self);
int native_outlet_arm(Outlet *self);
void native_outlet_disarm(Outlet *self);
void native_outlet_linger(Outlet *self, uint64_t bytes);
int native_outlet_data(Outlet *self, PyObject *given, Py_buffer *data);
void native_outlet_copy(Outlet *self, void *to, const void *from, size_t length);
int native_outlet_send(Outlet *self, PyObject *value, const struct chx_tags *tags);
int native_outlet_try_send(Outlet *self, PyObject *value, const struct chx_tags *tags);
Outlet *native_outlet_of(PyObject *method);
PyObject *native_outlet_send_many(Outlet *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames);
PyObject *native_loan_new(Outlet *outlet, const struct native_claim *claim, const struct chx_tags *tags);

/* ---- consumer.c, frame.c, batch.c, inlet.c ---- */
typedef struct Batch Batch;
typedef struct Consumer Consumer;

struct Consumer {
    PyObject_HEAD
    struct chx_consumer end;
    PyObject *route;
    Doorbell *bell; /* of its line */
    PyObject *peer, *decode; /* what Frame.peer and Frame.value() give: see _native.pyi */
    PyObject *array, *meta, *content_type; /* the same for Frame.numpy(), meta and content_type; the first two may be NULL */
    Consumer *next;          /* the stage after this one; NULL: it is not known yet */
    PyObject *on_drained;    /* called once, when its inlet has gone on to `next` and all frames are back */
    uint32_t owner;
    uint8_t told;  /* its fault was raised to a caller */
    uint8_t left;  /* its inlet has gone on */
    uint8_t class; /* of service, 0 lowest: see turn.h */
    uint8_t abandoned;
};

extern PyTypeObject *native_Consumer, *native_Frame, *native_Batch, *native_Inlet;
int native_consumer_init(PyObject *module);
int native_frame_init(PyObject *module);
int native_batch_init(PyObject *module);
int native_inlet_init(PyObject *module);
PyObject *native_frame_new(Consumer *consumer, const struct chx_taken *taken, uint32_t port);
PyObject *native_frame_copied(Consumer *consumer, const struct chx_taken *taken, uint32_t port, void *copy);
int native_consumer_ended(Consumer *self);
void native_consumer_drained(Consumer *self);
/* May frames be given back by this process? What is abandoned stays as it is, for a successor. */
static inline int native_consumer_returns(const Consumer *self) {
    return self->owner == native_process() && !self->abandoned;
}
/* Frames were given back. */
static inline void native_consumer_returned(Consumer *self) {
    if (self->left) native_consumer_drained(self);
}
void native_frame_origin(PyObject *frame, struct chx_tags *tags);
void native_frame_release(PyObject *frame);
void native_batch_origin(PyObject *batch, struct chx_tags *tags);
void native_batch_release(PyObject *batch);
PyObject *native_inlet_take(PyObject *inlet, uint32_t limit, int64_t timeout_ns);
int native_inlet_ended(const PyObject *inlet);
PyObject *native_frame_of_batch(Batch *batch, Consumer *consumer, const struct chx_taken *taken, uint32_t port);
PyObject *native_batch_new(Consumer *consumer, struct chx_taken *taken, void *copy, uint32_t frames, uint32_t port);
void native_batch_unpin(Batch *self);
PyObject *native_numpy(PyObject *source, uint64_t bytes, PyObject *dtype);

/* ---- latest.c ---- */
void *native_copy_room(uint64_t bytes);
enum chx_status native_latest_take(Consumer *consumer, struct chx_taken *taken, void **copy);
enum chx_status native_latest_take_run(Consumer *consumer, uint32_t limit, uint32_t port, struct chx_taken *first,
                                       PyObject **found);

/* ---- plugin_loop.c ---- */
extern PyTypeObject *native_Step;
int native_plugin_loop_init(PyObject *module);
PyObject *native_run_frames(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *native_run_items(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *native_run_awaited(PyObject *module, PyObject *const *args, Py_ssize_t nargs);

/* ---- view.c ---- */
int native_view_init(PyObject *module);
PyObject *native_check(PyObject *module, PyObject *const *args, Py_ssize_t nargs);
PyObject *native_missing_features(PyObject *module, PyObject *unused);
PyObject *native_remains(PyObject *module, PyObject *arg);

#ifdef CHX_FAILPOINTS
/* ---- failpoints.c ---- */
PyObject *native_failpoints(PyObject *module, PyObject *unused);
PyObject *native_fail_at(PyObject *module, PyObject *args);
#endif

/* ---- module.c ---- */
PyTypeObject *native_add_type(PyObject *module, PyType_Spec *spec);
#define NATIVE_DEALLOC(self)                    \
    do {                                        \
        PyTypeObject *type = Py_TYPE((PyObject *)(self));     \
        PyObject_Free(self);                    \
        Py_DECREF(type);                        \
    } while (0)
#define NATIVE_DEALLOC_GC(self)                 \
    do {                                        \
        PyTypeObject *type = Py_TYPE((PyObject *)(self));     \
        PyObject_GC_Del(self);                  \
        Py_DECREF(type);                        \
    } while (0)

#endif
