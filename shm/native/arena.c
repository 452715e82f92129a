/* shm.Arena: payload memory that grows by segments, and the announcing of new ones. */
#include "native.h"

PyTypeObject *native_Arena;

#define ARENA_FIRST (1ll << 18)

static PyObject *arena_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"limit", "first", "on_grow", NULL};
    long long limit = 1ll << 30, first = 0;
    PyObject *on_grow = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|L$LO:Arena", names, &limit, &first, &on_grow)) return NULL;
    if (limit < (long long)CHX_ARENA_MIN || limit > 1ll << 43)
        return PyErr_Format(PyExc_ValueError, "limit must be from %u bytes to 8 TiB, not %lld", CHX_ARENA_MIN, limit);
    if (first < 0 || first > limit)
        return PyErr_Format(PyExc_ValueError, "first must be from 1 to limit (%lld) bytes, not %lld", limit, first);
    if (first == 0) first = limit < ARENA_FIRST ? limit : ARENA_FIRST;
    if (on_grow != Py_None && !PyCallable_Check(on_grow)) {
        PyErr_SetString(PyExc_TypeError, "on_grow must be callable or None");
        return NULL;
    }
    Arena *self = (Arena *)PyType_GenericAlloc(type, 0);
    if (!self) return NULL;
    self->owner = native_process_claim();
    if (first < (long long)(CHX_SLAB_PAGES * CHX_PAGE)) first = CHX_SLAB_PAGES * CHX_PAGE;
    enum chx_status status = chx_arena_init(&self->arena, (uint64_t)limit, (uint64_t)first);
    if (status != CHX_OK) {
        native_raise_status(status, NULL, NULL, (uint64_t)first);
        Py_DECREF(self);
        return NULL;
    }
    if (on_grow != Py_None) self->on_grow = Py_NewRef(on_grow);
    return (PyObject *)self;
}

static int arena_traverse(Arena *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE((PyObject *)(self)));
    Py_VISIT(self->on_grow);
    return 0;
}

static int arena_clear(Arena *self) {
    Py_CLEAR(self->on_grow);
    return 0;
}

static void arena_dealloc(Arena *self) {
    PyObject_GC_UnTrack(self);
    arena_clear(self);
    Py_CLEAR(self->bell);
    chx_arena_destroy(&self->arena);
    NATIVE_DEALLOC_GC(self);
}

/* The mapping goes when it was closed and nothing uses it any more; the allocator's books stay for late returns. */
static void arena_unmap(Arena *self) {
    if (!self->closed || self->pins) return;
    for (uint32_t i = 0; i < self->arena.segment_count; i++) chx_unmap(&self->arena.segments[i].map);
}

void native_arena_unpin(Arena *self) {
    self->pins--;
    arena_unmap(self);
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
    self->arena.segments[index].announced = 1;
    return 0;
}

/* Make room for `length` bytes by a further segment. 1: try again now; 0: wait, for a segment on its way or for
 * returned extents; -1: an exception is set (FrameTooLarge, MemoryError, or what on_grow raised). */
int native_arena_grow(Arena *self, uint64_t length) {
    struct chx_arena *arena = &self->arena;
    if (self->growing) return 0;
    uint32_t index = chx_arena_pending(arena, length);
    if (index == arena->segment_count) {
        enum chx_status status = chx_arena_grow(arena, length);
        if (status == CHX_EMPTY) return 0;
        if (status == CHX_TOO_LARGE) {
            PyErr_Format(native_frame_too_large,
                         "a frame of %llu bytes can never fit: the arena's limit is %llu bytes, of which %llu are in "
                         "segments already; raise resource_claims.arena_bytes",
                         (unsigned long long)length, (unsigned long long)arena->limit, (unsigned long long)arena->size);
            return -1;
        }
        if (status != CHX_OK) {
            native_raise_status(status, NULL, NULL, length);
            return -1;
        }
    }
    if (!arena->segments[index].announced && arena_announce(self, index) != 0) return -1;
    return arena->segments[index].confirmed;
}

static PyObject *arena_confirm(Arena *self, PyObject *arg) {
    unsigned long index = PyLong_AsUnsignedLong(arg);
    if (index == (unsigned long)-1 && PyErr_Occurred()) return NULL;
    if (self->closed || native_foreign(self->owner, "arena") != 0)
        return self->closed ? PyErr_Format(PyExc_ValueError, "the arena is closed") : NULL;
    if (index >= self->arena.segment_count)
        return PyErr_Format(PyExc_ValueError, "segment %lu does not exist: there are %u", index,
                            self->arena.segment_count);
    if (chx_arena_confirm(&self->arena, (uint32_t)index) != CHX_OK) return PyErr_NoMemory();
    if (self->bell) native_bell_stir(self->bell);
    Py_RETURN_NONE;
}

static PyObject *arena_close(Arena *self, PyObject *Py_UNUSED(ignored)) {
    self->closed = 1;
    arena_unmap(self);
    Py_RETURN_NONE;
}

static PyObject *arena_segments(Arena *self, void *Py_UNUSED(closure)) {
    PyObject *segments = PyTuple_New(self->arena.segment_count);
    for (uint32_t i = 0; segments && i < self->arena.segment_count; i++) {
        const struct chx_segment *segment = &self->arena.segments[i];
        PyObject *entry = Py_BuildValue("(IiK)", i, segment->map.fd,
                                        (unsigned long long)segment->pages * CHX_PAGE);
        if (!entry || PyTuple_SetItem(segments, i, entry) != 0) Py_CLEAR(segments);
    }
    return segments;
}

static PyObject *arena_limit(Arena *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->arena.limit);
}

static PyObject *arena_size(Arena *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->arena.size);
}

static PyObject *arena_used(Arena *self, void *Py_UNUSED(closure)) {
    if (self->owner == native_process())
        for (Producer *producer = self->producers; producer; producer = producer->next)
            if (chx_producer_returns(&producer->end)) chx_producer_reclaim(&producer->end, UINT32_MAX);
    return PyLong_FromUnsignedLongLong(self->arena.used);
}

static PyMethodDef arena_methods[] = {
    {"confirm", (PyCFunction)arena_confirm, METH_O, "Every consumer has mapped segment `index`: use it."},
    {"close", (PyCFunction)arena_close, METH_NOARGS, "Unmap it as soon as no loan is open. Idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef arena_getset[] = {
    {"segments", (getter)arena_segments, NULL, "(index, descriptor, bytes) of each.", NULL},
    {"limit", (getter)arena_limit, NULL, "Bytes it may grow to.", NULL},
    {"size", (getter)arena_size, NULL, "Bytes of all segments.", NULL},
    {"used", (getter)arena_used, NULL, "Bytes in extents not yet returned.", NULL},
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
