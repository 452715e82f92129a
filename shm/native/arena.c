/* shm.Arena: payload memory that grows and shrinks by segments, and the callbacks that report each change. */
#include "native.h"

PyTypeObject *native_Arena;

#define ARENA_FIRST (1ll << 18)

static PyObject *arena_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"limit", "first", "on_grow", "on_drop", "hugepages", NULL};
    long long limit = 1ll << 30, first = 0;
    int hugepages = 0;
    PyObject *on_grow = Py_None, *on_drop = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|L$LOOp:Arena", names, &limit, &first, &on_grow, &on_drop,
                                     &hugepages))
        return NULL;
    if (limit < (long long)CHX_ARENA_MIN || limit > 1ll << 43)
        return PyErr_Format(PyExc_ValueError, "limit must be from %u bytes to 8 TiB, not %lld", CHX_ARENA_MIN, limit);
    if (first < 0 || first > limit)
        return PyErr_Format(PyExc_ValueError, "first must be from 1 to limit (%lld) bytes, not %lld", limit, first);
    if (first == 0) first = limit < ARENA_FIRST ? limit : ARENA_FIRST;
    if ((on_grow != Py_None && !PyCallable_Check(on_grow)) || (on_drop != Py_None && !PyCallable_Check(on_drop))) {
        PyErr_SetString(PyExc_TypeError, "on_grow and on_drop must be callable or None");
        return NULL;
    }
    Arena *self = (Arena *)PyType_GenericAlloc(type, 0);
    if (!self) return NULL;
    self->owner = native_process_claim();
    if (first < (long long)(CHX_SLAB_PAGES * CHX_PAGE)) first = CHX_SLAB_PAGES * CHX_PAGE;
    enum chx_status status = chx_arena_init(&self->arena, (uint64_t)limit, (uint64_t)first, hugepages);
    if (status != CHX_OK) {
        native_raise_status(status, NULL, NULL, (uint64_t)first);
        Py_DECREF(self);
        return NULL;
    }
    if (on_grow != Py_None) self->on_grow = Py_NewRef(on_grow);
    if (on_drop != Py_None) self->on_drop = Py_NewRef(on_drop);
    self->arena.drops = on_drop != Py_None;
    return (PyObject *)self;
}

static int arena_traverse(Arena *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE((PyObject *)(self)));
    Py_VISIT(self->on_grow);
    Py_VISIT(self->on_drop);
    return 0;
}

static int arena_clear(Arena *self) {
    Py_CLEAR(self->on_grow);
    Py_CLEAR(self->on_drop);
    return 0;
}

static void arena_dealloc(Arena *self) {
    PyObject_GC_UnTrack(self);
    arena_clear(self);
    Py_CLEAR(self->bell);
    chx_arena_destroy(&self->arena);
    NATIVE_DEALLOC_GC(self);
}

/* Unmap a closed arena once nothing uses its memory any more; the allocator's state stays for late returns. */
static void arena_unmap(Arena *self) {
    if (!self->closed || self->pins) return;
    for (uint32_t i = 0; i < self->arena.segment_count; i++) chx_unmap(&self->arena.segments[i].map);
}

void native_arena_unpin(Arena *self) {
    self->pins--;
    arena_unmap(self);
}

/* Must every consumer have mapped a segment before it is used? One that may lose frames need not: until it has, what is
 * in there is not there for it. */
static int arena_waits_for_consumers(const Arena *self) {
    for (const Producer *producer = self->producers; producer; producer = producer->next)
        if (producer->end.header.policy == CHX_POLICY_BLOCK) return 1;
    return 0;
}

static int arena_announce(Arena *self, uint32_t index) {
    if (!self->on_grow) {
        if (chx_arena_confirm(&self->arena, index) == CHX_OK) return 0;
        PyErr_NoMemory();
        return -1;
    }
    const struct chx_segment *segment = &self->arena.segments[index];
    self->growing = 1;
    PyObject *done = PyObject_CallFunction(self->on_grow, "IiK", index, segment->map.fd,
                                           (unsigned long long)segment->map.size);
    self->growing = 0;
    if (!done) return -1;
    Py_DECREF(done);
    if (native_foreign(self->owner, "arena")) return -1;
    self->arena.segments[index].announced = 1;
    if (arena_waits_for_consumers(self) || chx_arena_confirm(&self->arena, index) == CHX_OK) return 0;
    PyErr_NoMemory();
    return -1;
}

/* Report every segment that was dropped and not reported yet. A callback that raises is called again the next time. */
static int arena_tell_drops(Arena *self) {
    for (uint32_t i = 0; i < self->arena.segment_count; i++) {
        if (self->arena.segments[i].state != CHX_SEGMENT_DROPPED || self->arena.segments[i].announced) continue;
        self->arena.segments[i].announced = 1; /* before another thread runs */
        PyObject *done = PyObject_CallFunction(self->on_drop, "I", i);
        if (!done) {
            self->arena.segments[i].announced = 0;
            return -1;
        }
        Py_DECREF(done);
        if (native_foreign(self->owner, "arena")) return -1;
    }
    return 0;
}

static void arena_raise(const struct chx_arena *arena, enum chx_status status, uint64_t length) {
    if (status != CHX_TOO_LARGE) {
        native_raise_status(status, NULL, NULL, length);
        return;
    }
    PyErr_Format(native_frame_too_large,
                 "a frame of %llu bytes can never fit: the arena's limit is %llu bytes, of which %llu are in "
                 "segments already; raise resource_claims.arena_bytes",
                 (unsigned long long)length, (unsigned long long)arena->limit, (unsigned long long)arena->size);
}

/* Make room for `length` bytes by a further segment. 1: try again now; 0: wait, for a segment on its way or for
 * returned extents; -1: an exception is set (FrameTooLarge, MemoryError, or what a callback raised). */
int native_arena_grow(Arena *self, uint64_t length) {
    struct chx_arena *arena = &self->arena;
    if (self->growing) return 0;
    if (chx_arena_stay(arena)) return 1;
    uint32_t index = chx_arena_pending(arena, length);
    if (index == arena->segment_count) {
        enum chx_status status = chx_arena_grow(arena, length, &index);
        if (arena_tell_drops(self) != 0) return -1;
        if (status == CHX_EMPTY) return 0;
        if (status != CHX_OK) {
            arena_raise(arena, status, length);
            return -1;
        }
    }
    if (!arena->segments[index].announced && arena_announce(self, index) != 0) return -1;
    return arena->segments[index].state == CHX_SEGMENT_USED;
}

static int arena_open(const Arena *self) {
    if (native_foreign(self->owner, "arena") != 0) return 0;
    if (self->closed) PyErr_SetString(PyExc_ValueError, "the arena is closed");
    return !self->closed;
}

/* The index of a segment that exists or has existed; -1 with an exception. */
static int64_t arena_index(const Arena *self, PyObject *arg) {
    unsigned long index = PyLong_AsUnsignedLong(arg);
    if ((index == (unsigned long)-1 && PyErr_Occurred()) || !arena_open(self)) return -1;
    if (index < self->arena.segment_count && self->arena.segments[index].state != CHX_SEGMENT_NONE)
        return (int64_t)index;
    PyErr_Format(PyExc_ValueError, "segment %lu does not exist", index);
    return -1;
}

static PyObject *arena_confirm(Arena *self, PyObject *arg) {
    int64_t index = arena_index(self, arg);
    if (index < 0) return NULL;
    if (chx_arena_confirm(&self->arena, (uint32_t)index) != CHX_OK) return PyErr_NoMemory();
    if (self->bell) native_bell_stir(self->bell);
    Py_RETURN_NONE;
}

static PyObject *arena_forget(Arena *self, PyObject *arg) {
    int64_t index = arena_index(self, arg);
    if (index < 0) return NULL;
    if (self->arena.segments[index].state != CHX_SEGMENT_DROPPED)
        return PyErr_Format(PyExc_ValueError, "segment %lld was not dropped", (long long)index);
    chx_arena_forget(&self->arena, (uint32_t)index);
    Py_RETURN_NONE;
}

static void arena_reclaim(Arena *self) {
    for (Producer *producer = self->producers; producer; producer = producer->next)
        if (chx_producer_returns(&producer->end)) chx_producer_reclaim(&producer->end, UINT32_MAX);
}

static PyObject *arena_shrink(Arena *self, PyObject *arg) {
    unsigned long long keep = PyLong_AsUnsignedLongLong(arg);
    if ((keep == (unsigned long long)-1 && PyErr_Occurred()) || !arena_open(self)) return NULL;
    arena_reclaim(self);
    uint64_t given = chx_arena_shrink(&self->arena, keep);
    return arena_tell_drops(self) == 0 ? PyLong_FromUnsignedLongLong(given) : NULL;
}

/* Return the peak use since the last call; the next peak begins at the present use. */
static PyObject *arena_take_peak(Arena *self, PyObject *Py_UNUSED(ignored)) {
    if (!arena_open(self)) return NULL;
    arena_reclaim(self);
    uint64_t peak = self->arena.peak;
    self->arena.peak = self->arena.used;
    return PyLong_FromUnsignedLongLong(peak);
}

static PyObject *arena_close(Arena *self, PyObject *Py_UNUSED(ignored)) {
    self->closed = 1;
    arena_unmap(self);
    Py_RETURN_NONE;
}

static PyObject *arena_segments(Arena *self, void *Py_UNUSED(closure)) {
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < self->arena.segment_count; i++) {
        const struct chx_segment *segment = &self->arena.segments[i];
        if (segment->map.fd < 0) continue; /* given back, or the arena is closed */
        PyObject *entry = Py_BuildValue("(IiK)", i, segment->map.fd, (unsigned long long)segment->pages * CHX_PAGE);
        if (!entry || PyList_Append(list, entry) != 0) Py_CLEAR(list);
        Py_XDECREF(entry);
    }
    PyObject *segments = list ? PyList_AsTuple(list) : NULL;
    Py_XDECREF(list);
    return segments;
}

/* All in one call, so that no other thread changes anything in between. */
static PyObject *arena_inventory(Arena *self, void *closure) {
    PyObject *segments = arena_segments(self, closure);
    PyObject *made = PyList_New(0), *dropped = PyList_New(0);
    for (uint32_t i = 0; segments && made && dropped && i < self->arena.segment_count; i++) {
        PyObject *list = self->arena.segments[i].state == CHX_SEGMENT_MADE ? made : dropped;
        if (list == dropped && self->arena.segments[i].state != CHX_SEGMENT_DROPPED) continue;
        PyObject *index = PyLong_FromUnsignedLong(i);
        if (!index || PyList_Append(list, index) != 0) Py_CLEAR(segments);
        Py_XDECREF(index);
    }
    PyObject *all = segments && made && dropped ? PyTuple_Pack(3, segments, made, dropped) : NULL;
    Py_XDECREF(segments);
    Py_XDECREF(made);
    Py_XDECREF(dropped);
    return all;
}

static PyObject *arena_limit(Arena *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->arena.limit);
}

static PyObject *arena_size(Arena *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->arena.size);
}

static PyObject *arena_used(Arena *self, void *Py_UNUSED(closure)) {
    if (self->owner == native_process()) arena_reclaim(self);
    return PyLong_FromUnsignedLongLong(self->arena.used);
}

static PyObject *arena_pages(Arena *self, void *Py_UNUSED(closure)) {
    uint8_t got = self->arena.huge.got;
    return PyUnicode_FromString(got & CHX_PAGES_SMALL ? "small" : got & CHX_PAGES_ADVISED ? "advised" : "huge");
}

static PyMethodDef arena_methods[] = {
    {"confirm", (PyCFunction)arena_confirm, METH_O, "Every consumer has mapped segment `index`: use it."},
    {"forget", (PyCFunction)arena_forget, METH_O, "Every consumer has unmapped segment `index`: its number is free."},
    {"shrink", (PyCFunction)arena_shrink, METH_O,
     "Have segments leave as long as `keep` bytes stay, and drop those that are empty; bytes given back now."},
    {"take_peak", (PyCFunction)arena_take_peak, METH_NOARGS, "Most bytes in use at a time since the last call."},
    {"close", (PyCFunction)arena_close, METH_NOARGS, "Unmap it as soon as no loan is open. Idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef arena_getset[] = {
    {"segments", (getter)arena_segments, NULL, "(index, descriptor, bytes) of each.", NULL},
    {"inventory", (getter)arena_inventory, NULL, "segments, indices not confirmed, indices given back and not forgotten.", NULL},
    {"limit", (getter)arena_limit, NULL, "Bytes it may grow to.", NULL},
    {"size", (getter)arena_size, NULL, "Bytes of all segments.", NULL},
    {"used", (getter)arena_used, NULL, "Bytes in extents not yet returned.", NULL},
    {"pages", (getter)arena_pages, NULL, "The smallest kind that a segment was made of: small, advised or huge.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot arena_slots[] = {
    {Py_tp_new, arena_new},         {Py_tp_dealloc, arena_dealloc}, {Py_tp_traverse, arena_traverse},
    {Py_tp_clear, arena_clear},     {Py_tp_methods, arena_methods}, {Py_tp_getset, arena_getset},
    {Py_tp_doc, "Payload memory of one producing process. Grows by segments up to `limit` bytes."},
    {0, NULL},
};

static PyType_Spec arena_spec = {"shm.Arena", sizeof(Arena), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, arena_slots};

int native_arena_init(PyObject *module) {
    native_Arena = native_add_type(module, &arena_spec);
    return native_Arena ? 0 : -1;
}
