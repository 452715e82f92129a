/* shm.Batch: frames of one route that were taken together and go back together.
 *
 * It returns all credits in one step: when released, or when the last frame or view made of it is dropped, whichever is
 * later; at the latest when it is collected. A frame of it is a shm.Frame that holds the batch instead of a credit.
 */
#include "native.h"

PyTypeObject *native_Batch;

enum batch_state { BATCH_HELD, BATCH_RELEASING, BATCH_RETURNED };

struct Batch {
    PyObject_HEAD
    Consumer *consumer;
    struct chx_taken *taken;
    void *copy;           /* policy latest: the payloads themselves; NULL: each has a credit */
    uint64_t bytes;       /* of all payloads */
    const uint8_t *start; /* of the first; NULL: they do not follow each other without a gap */
    Py_ssize_t exports; /* views, and frames that are held */
    uint32_t frames, port;
    uint8_t state;
};

/* Where the payloads begin if they follow each other without a gap, else NULL. */
static const uint8_t *batch_start(const struct chx_taken *taken, uint32_t frames) {
    const uint8_t *start = NULL, *next = NULL;
    for (uint32_t i = 0; i < frames; i++) {
        if (taken[i].length == 0) continue;
        if (!start)
            start = taken[i].data;
        else if (taken[i].data != next)
            return NULL;
        next = taken[i].data + taken[i].length;
    }
    return start ? start : (const uint8_t *)"";
}

/* Takes `taken` (from PyMem_Malloc) and `copy` (from native_copy_room, or NULL) over, also when it fails. */
PyObject *native_batch_new(Consumer *consumer, struct chx_taken *taken, void *copy, uint32_t frames, uint32_t port) {
    Batch *self = PyObject_New(Batch, native_Batch);
    if (!self) {
        if (!copy) {
            chx_consumer_return_run(&consumer->end, taken, frames);
            native_consumer_returned(consumer);
        }
        free(copy);
        PyMem_Free(taken);
        return NULL;
    }
    self->consumer = (Consumer *)Py_NewRef((PyObject *)consumer);
    self->taken = taken;
    self->copy = copy;
    self->bytes = 0;
    for (uint32_t i = 0; i < frames; i++) self->bytes += taken[i].length;
    self->exports = 0;
    self->frames = frames;
    self->port = port;
    self->state = BATCH_HELD;
    self->start = batch_start(taken, frames);
    return (PyObject *)self;
}

/* Origin of a frame made from the whole batch: the last frame's number, the earliest deadline, redelivered if one
 * is. */
void native_batch_origin(PyObject *batch, struct chx_tags *tags) {
    const Batch *self = (const Batch *)batch;
    tags->input_seq = self->taken[self->frames - 1].seq;
    for (uint32_t i = 0; i < self->frames; i++) {
        uint64_t due = self->taken[i].deadline_ns;
        tags->flags |= self->taken[i].flags & CHX_FLAG_REDELIVERED;
        if (due && (!tags->deadline_ns || due < tags->deadline_ns)) tags->deadline_ns = due;
    }
}

static void batch_return(Batch *self) {
    if (self->state == BATCH_RETURNED) return;
    self->state = BATCH_RETURNED;
    if (self->copy || !native_consumer_returns(self->consumer)) return;
    chx_consumer_return_run(&self->consumer->end, self->taken, self->frames);
    native_consumer_returned(self->consumer);
}

static void batch_dealloc(Batch *self) {
    batch_return(self);
    PyMem_Free(self->taken);
    free(self->copy);
    Py_DECREF((PyObject *)self->consumer);
    NATIVE_DEALLOC(self);
}

void native_batch_release(PyObject *batch) {
    Batch *self = (Batch *)batch;
    if (self->exports == 0)
        batch_return(self);
    else if (self->state == BATCH_HELD)
        self->state = BATCH_RELEASING;
}

static PyObject *batch_release(Batch *self, PyObject *Py_UNUSED(ignored)) {
    native_batch_release((PyObject *)self);
    Py_RETURN_NONE;
}

static int batch_held(const Batch *self) {
    if (self->state == BATCH_HELD) return 1;
    PyErr_Format(PyExc_ValueError, "the batch of %u frames of route %U was released", self->frames,
                 self->consumer->route);
    return 0;
}

/* A frame or a view of the batch was freed. */
void native_batch_unpin(Batch *self) {
    if (--self->exports == 0 && self->state == BATCH_RELEASING) batch_return(self);
}

static int batch_getbuffer(Batch *self, Py_buffer *view, int flags) {
    view->obj = NULL;
    if (!batch_held(self)) return -1;
    if (!self->start) {
        PyErr_SetString(PyExc_BufferError, "the payloads of the batch are not adjacent: take its frames one by one");
        return -1;
    }
    if (PyBuffer_FillInfo(view, (PyObject *)self, (void *)(uintptr_t)self->start, (Py_ssize_t)self->bytes, 1, flags) != 0)
        return -1;
    self->exports++;
    return 0;
}

static void batch_releasebuffer(Batch *self, Py_buffer *Py_UNUSED(view)) { native_batch_unpin(self); }

static Py_ssize_t batch_length(Batch *self) { return (Py_ssize_t)self->frames; }

static PyObject *batch_item(Batch *self, Py_ssize_t index) {
    if (index < 0 || index >= (Py_ssize_t)self->frames) {
        PyErr_Format(PyExc_IndexError, "the batch has %u frames", self->frames);
        return NULL;
    }
    if (!batch_held(self)) return NULL;
    PyObject *frame = native_frame_of_batch(self, self->consumer, &self->taken[index], self->port);
    if (frame) self->exports++;
    return frame;
}

static PyObject *batch_iter(PyObject *self) { return PySeqIter_New(self); }

/* All payloads one after another in a bytes object. */
static PyObject *batch_copy(const Batch *self) {
    PyObject *copy = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)self->bytes);
    char *to = copy ? PyBytes_AsString(copy) : NULL;
    for (uint32_t i = 0; to && i < self->frames; i++) {
        memcpy(to, self->taken[i].data, self->taken[i].length);
        to += self->taken[i].length;
    }
    return copy;
}

static PyObject *batch_numpy(Batch *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"dtype", NULL};
    static const struct native_signature signature = {"numpy", names, 0, 1};
    PyObject *given[1] = {NULL};
    if (native_arguments(&signature, args, nargs, kwnames, given) || !batch_held(self)) return NULL;
    if (self->consumer->array)
        return PyErr_Format(PyExc_TypeError,
                            "each frame of route %U is encoded by itself: call [frame.numpy() for frame in batch], or frame.value()",
                            self->consumer->route);
    PyObject *source = self->start ? Py_NewRef((PyObject *)self) : batch_copy(self);
    PyObject *array = source ? native_numpy(source, self->bytes, given[0]) : NULL;
    Py_XDECREF(source);
    return array;
}

static PyObject *batch_repr(Batch *self) {
    return PyUnicode_FromFormat("<shm.Batch of %u frames from %llu of route %U%s>", self->frames,
                                (unsigned long long)self->taken[0].seq, self->consumer->route,
                                self->state == BATCH_HELD ? "" : ", released");
}

static PyObject *batch_route(Batch *self, void *Py_UNUSED(closure)) { return Py_NewRef(self->consumer->route); }

static PyObject *batch_peer(Batch *self, void *Py_UNUSED(closure)) { return Py_NewRef(self->consumer->peer); }

static PyObject *batch_port(Batch *self, void *Py_UNUSED(closure)) { return PyLong_FromUnsignedLong(self->port); }

static PyObject *batch_seq(Batch *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->taken[0].seq);
}

static PyObject *batch_nbytes(Batch *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->bytes);
}

static PyObject *batch_redelivered(Batch *self, void *Py_UNUSED(closure)) {
    uint32_t flags = 0;
    for (uint32_t i = 0; i < self->frames; i++) flags |= self->taken[i].flags;
    return PyBool_FromLong(flags & CHX_FLAG_REDELIVERED);
}

static PyObject *batch_is_adjacent(Batch *self, void *Py_UNUSED(closure)) { return PyBool_FromLong(self->start != NULL); }

static PyObject *batch_released(Batch *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->state != BATCH_HELD);
}

static PyMethodDef batch_methods[] = {
    {"numpy", (PyCFunction)(void (*)(void))batch_numpy, METH_FASTCALL | METH_KEYWORDS,
     "One-dimensional array of `dtype` (default uint8) over all payloads: in place if they are adjacent, else a copy."},
    {"release", (PyCFunction)batch_release, METH_NOARGS,
     "Return all credits now, or as soon as the last frame or view of it is dropped. Idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef batch_getset[] = {
    {"route", (getter)batch_route, NULL, "Name of the route.", NULL},
    {"peer", (getter)batch_peer, NULL, "The producing node, as its consumer was told.", NULL},
    {"port", (getter)batch_port, NULL, "Index of its consumer in the inlet.", NULL},
    {"seq", (getter)batch_seq, NULL, "Sequence number of its first frame.", NULL},
    {"nbytes", (getter)batch_nbytes, NULL, "Bytes of all payloads.", NULL},
    {"adjacent", (getter)batch_is_adjacent, NULL, "Do the payloads follow each other without a gap?", NULL},
    {"redelivered", (getter)batch_redelivered, NULL, "May one of its frames be a duplicate?", NULL},
    {"released", (getter)batch_released, NULL, "Was release() called?", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot batch_slots[] = {
    {Py_tp_dealloc, batch_dealloc},
    {Py_tp_repr, batch_repr},
    {Py_tp_methods, batch_methods},
    {Py_tp_getset, batch_getset},
    {Py_tp_iter, batch_iter},
    {Py_sq_length, batch_length},
    {Py_sq_item, batch_item},
    {Py_bf_getbuffer, batch_getbuffer},
    {Py_bf_releasebuffer, batch_releasebuffer},
    {Py_tp_doc, "Frames of one route that were taken together; their credits go back together."},
    {0, NULL},
};

static PyType_Spec batch_spec = {"shm.Batch", sizeof(Batch), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION,
                                 batch_slots};

int native_batch_init(PyObject *module) {
    native_Batch = native_add_type(module, &batch_spec);
    return native_Batch ? 0 : -1;
}
