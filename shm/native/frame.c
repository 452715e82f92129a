/* shm.Frame: a received frame, in place. It keeps its consumer's mappings alive and returns its credit exactly once:
 * when released, or when the last view of it is dropped, whichever is later; at the latest when it is collected.
 */
#include "native.h"

PyTypeObject *native_Frame;

enum frame_state { FRAME_HELD, FRAME_RELEASING, FRAME_RETURNED };

typedef struct {
    PyObject_HEAD
    Consumer *consumer;
    Batch *batch; /* that it is one of; NULL: it stands for itself */
    void *copy;   /* policy latest: its own payload; NULL: it has a credit */
    struct chx_taken taken;
    uint32_t exports;
    uint32_t port : 30, state : 2;
} Frame;
static_assert(sizeof(Frame) <= 128, "a frame is two lines");

static PyObject *frame_make(Consumer *consumer, Batch *batch, const struct chx_taken *taken, uint32_t port) {
    Frame *self = PyObject_New(Frame, native_Frame);
    if (!self) return NULL;
    self->batch = batch ? (Batch *)Py_NewRef((PyObject *)batch) : NULL;
    self->copy = NULL;
    self->consumer = (Consumer *)Py_NewRef((PyObject *)consumer);
    self->taken = *taken;
    self->exports = 0;
    self->port = port;
    self->state = FRAME_HELD;
    return (PyObject *)self;
}

PyObject *native_frame_new(Consumer *consumer, const struct chx_taken *taken, uint32_t port) {
    PyObject *self = frame_make(consumer, NULL, taken, port);
    if (!self) {
        chx_consumer_return(&consumer->end, taken->stamp);
        native_consumer_returned(consumer);
    }
    return self;
}

/* A copy of a frame that its producer may have overwritten since. Takes `copy` (from native_copy_room) over, also when
 * it fails. */
PyObject *native_frame_copied(Consumer *consumer, const struct chx_taken *taken, uint32_t port, void *copy) {
    Frame *self = (Frame *)frame_make(consumer, NULL, taken, port);
    if (self)
        self->copy = copy;
    else
        free(copy);
    return (PyObject *)self;
}

/* The caller counts it among the exports of the batch, which native_batch_unpin ends. */
PyObject *native_frame_of_batch(Batch *batch, Consumer *consumer, const struct chx_taken *taken, uint32_t port) {
    return frame_make(consumer, batch, taken, port);
}

static void frame_return(Frame *self) {
    if (self->state == FRAME_RETURNED) return;
    self->state = FRAME_RETURNED;
    if (self->batch) {
        native_batch_unpin(self->batch);
    } else if (!self->copy && native_consumer_returns(self->consumer)) {
        chx_consumer_return(&self->consumer->end, self->taken.stamp);
        native_consumer_returned(self->consumer);
    }
}

void native_frame_origin(PyObject *frame, struct chx_tags *tags) {
    const struct chx_taken *taken = &((Frame *)frame)->taken;
    tags->input_seq = taken->seq;
    tags->flags = taken->flags & CHX_FLAG_REDELIVERED;
    tags->deadline_ns = taken->deadline_ns;
}

static void frame_dealloc(Frame *self) {
    frame_return(self);
    Py_XDECREF((PyObject *)self->batch);
    free(self->copy);
    Py_DECREF((PyObject *)self->consumer);
    NATIVE_DEALLOC(self);
}

void native_frame_release(PyObject *frame) {
    Frame *self = (Frame *)frame;
    if (self->exports == 0)
        frame_return(self);
    else if (self->state == FRAME_HELD)
        self->state = FRAME_RELEASING;
}

static PyObject *frame_release(Frame *self, PyObject *Py_UNUSED(ignored)) {
    native_frame_release((PyObject *)self);
    Py_RETURN_NONE;
}

static int frame_held(const Frame *self) {
    if (self->state == FRAME_HELD) return 1;
    PyErr_Format(PyExc_ValueError, "frame %llu of route %U was released", (unsigned long long)self->taken.seq,
                 self->consumer->route);
    return 0;
}

static int frame_getbuffer(Frame *self, Py_buffer *view, int flags) {
    view->obj = NULL;
    if (!frame_held(self)) return -1;
    if (PyBuffer_FillInfo(view, (PyObject *)self, (void *)(uintptr_t)self->taken.data, (Py_ssize_t)self->taken.length, 1,
                          flags) != 0)
        return -1;
    self->exports++;
    return 0;
}

static void frame_releasebuffer(Frame *self, Py_buffer *Py_UNUSED(view)) {
    if (--self->exports == 0 && self->state == FRAME_RELEASING) frame_return(self);
}

static Py_ssize_t frame_length(Frame *self) { return (Py_ssize_t)self->taken.length; }

/* A function of a module, looked up once. */
static PyObject *frame_lookup(PyObject **cache, const char *module, const char *function) {
    if (*cache) return *cache;
    PyObject *found = PyImport_ImportModule(module);
    if (!found) return NULL;
    *cache = PyObject_GetAttrString(found, function);
    Py_DECREF(found);
    return *cache;
}

/* numpy.frombuffer, which takes no empty buffer. */
PyObject *native_numpy(PyObject *source, uint64_t bytes, PyObject *dtype) {
    static PyObject *frombuffer, *byte, *empty;
    if (!frame_lookup(&frombuffer, "numpy", "frombuffer") || !frame_lookup(&byte, "numpy", "uint8") ||
        !frame_lookup(&empty, "numpy", "empty"))
        return NULL;
    if (!dtype) dtype = byte;
    if (bytes) return PyObject_CallFunctionObjArgs(frombuffer, source, dtype, NULL);
    PyObject *zero = PyLong_FromLong(0);
    PyObject *array = zero ? PyObject_CallFunctionObjArgs(empty, zero, dtype, NULL) : NULL;
    Py_XDECREF(zero);
    return array;
}

static PyObject *frame_numpy(Frame *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"dtype", NULL};
    static const struct native_signature signature = {"numpy", names, 0, 1};
    PyObject *given[1] = {NULL};
    if (native_arguments(&signature, args, nargs, kwnames, given)) return NULL;
    if (self->consumer->array)
        return PyObject_CallFunctionObjArgs(self->consumer->array, (PyObject *)self, given[0], NULL);
    return native_numpy((PyObject *)self, self->taken.length, given[0]);
}

static PyObject *frame_arrow(Frame *self, PyObject *Py_UNUSED(ignored)) {
    static PyObject *py_buffer, *open_stream;
    if (!frame_lookup(&py_buffer, "pyarrow", "py_buffer") || !frame_lookup(&open_stream, "pyarrow.ipc", "open_stream"))
        return NULL;
    PyObject *buffer = PyObject_CallFunctionObjArgs(py_buffer, (PyObject *)self, NULL);
    PyObject *reader = buffer ? PyObject_CallFunctionObjArgs(open_stream, buffer, NULL) : NULL;
    PyObject *table = reader ? PyObject_CallMethod(reader, "read_all", NULL) : NULL;
    Py_XDECREF(reader);
    Py_XDECREF(buffer);
    return table;
}

static PyObject *frame_value(Frame *self, PyObject *Py_UNUSED(ignored)) {
    if (self->consumer->decode) return PyObject_CallFunctionObjArgs(self->consumer->decode, (PyObject *)self, NULL);
    return PyMemoryView_FromObject((PyObject *)self);
}

static PyObject *frame_meta(Frame *self, void *Py_UNUSED(closure)) {
    const struct chx_taken *taken = &self->taken;
    if (!(taken->flags & CHX_FLAG_NOTED) || !taken->meta) return PyDict_New();
    if (!frame_held(self)) return NULL;
    PyObject *data = PyBytes_FromStringAndSize((const char *)taken->data + taken->length, taken->meta);
    if (!data || !self->consumer->meta) return data;
    PyObject *value = PyObject_CallFunctionObjArgs(self->consumer->meta, data, NULL);
    Py_DECREF(data);
    return value;
}

static PyObject *frame_stamp(Frame *self, void *Py_UNUSED(closure)) {
    const struct chx_taken *taken = &self->taken;
    struct chx_notes notes = {0};
    if (taken->flags & CHX_FLAG_NOTED) {
        if (!frame_held(self)) return NULL;
        memcpy(&notes, taken->data + taken->length + taken->meta, sizeof notes);
    }
    return PyLong_FromLongLong(notes.stamp_ns);
}

static PyObject *frame_content_type(Frame *self, void *Py_UNUSED(closure)) {
    return Py_NewRef(self->consumer->content_type);
}

static PyObject *frame_repr(Frame *self) {
    return PyUnicode_FromFormat("<shm.Frame %llu of route %U, %llu bytes%s>", (unsigned long long)self->taken.seq,
                                self->consumer->route, (unsigned long long)self->taken.length,
                                self->state == FRAME_HELD ? "" : ", released");
}

static PyObject *frame_route(Frame *self, void *Py_UNUSED(closure)) { return Py_NewRef(self->consumer->route); }

static PyObject *frame_peer(Frame *self, void *Py_UNUSED(closure)) { return Py_NewRef(self->consumer->peer); }

static PyObject *frame_port(Frame *self, void *Py_UNUSED(closure)) { return PyLong_FromUnsignedLong(self->port); }

static PyObject *frame_schema(Frame *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(self->taken.schema);
}

/* A u64 of the descriptor; `closure` is its offset in struct chx_taken. */
static PyObject *frame_word(Frame *self, void *closure) {
    uint64_t value;
    memcpy(&value, (const uint8_t *)&self->taken + (uintptr_t)closure, sizeof value);
    return PyLong_FromUnsignedLongLong(value);
}

static PyObject *frame_redelivered(Frame *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->taken.flags & CHX_FLAG_REDELIVERED);
}

static PyObject *frame_released(Frame *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->state != FRAME_HELD);
}

#define FRAME_WORD(field) ((void *)offsetof(struct chx_taken, field))

static PyMethodDef frame_methods[] = {
    {"numpy", (PyCFunction)(void (*)(void))frame_numpy, METH_FASTCALL | METH_KEYWORDS,
     "Zero-copy array: of a route of arrays the one that was sent, else one-dimensional, of `dtype` (default uint8)."},
    {"arrow", (PyCFunction)frame_arrow, METH_NOARGS, "Zero-copy pyarrow.Table of the Arrow IPC stream in it."},
    {"value", (PyCFunction)frame_value, METH_NOARGS, "What its consumer's `decode` makes of it; without one, a view."},
    {"release", (PyCFunction)frame_release, METH_NOARGS,
     "Return the credit now, or as soon as the last view of it is dropped. Idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef frame_getset[] = {
    {"route", (getter)frame_route, NULL, "Name of the route.", NULL},
    {"peer", (getter)frame_peer, NULL, "The producing node, as its consumer was told.", NULL},
    {"content_type", (getter)frame_content_type, NULL, "What its payload is, as its consumer was told.", NULL},
    {"meta", (getter)frame_meta, NULL, "The metadata that were sent with it, decoded anew each time; {} without any.", NULL},
    {"stamp_ns", (getter)frame_stamp, NULL, "The sender's own time; 0: none.", NULL},
    {"port", (getter)frame_port, NULL, "Index of its consumer in the inlet.", NULL},
    {"seq", (getter)frame_word, NULL, "Sequence number on its route.", FRAME_WORD(seq)},
    {"time_ns", (getter)frame_word, NULL, "CLOCK_MONOTONIC at commit.", FRAME_WORD(time_ns)},
    {"deadline_ns", (getter)frame_word, NULL, "CLOCK_MONOTONIC when it is due; 0: whenever.", FRAME_WORD(deadline_ns)},
    {"schema", (getter)frame_schema, NULL, "As the sender set it.", NULL},
    {"trace", (getter)frame_word, NULL, "As the sender set it.", FRAME_WORD(trace)},
    {"input_seq", (getter)frame_word, NULL, "As the sender set it.", FRAME_WORD(input_seq)},
    {"redelivered", (getter)frame_redelivered, NULL, "May it be a duplicate?", NULL},
    {"released", (getter)frame_released, NULL, "Was release() called?", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot frame_slots[] = {
    {Py_tp_dealloc, frame_dealloc},
    {Py_tp_repr, frame_repr},
    {Py_tp_methods, frame_methods},
    {Py_tp_getset, frame_getset},
    {Py_sq_length, frame_length},
    {Py_bf_getbuffer, frame_getbuffer},
    {Py_bf_releasebuffer, frame_releasebuffer},
    {Py_tp_doc, "A received frame: a read-only buffer. Dropping the last view of it returns its credit."},
    {0, NULL},
};

static PyType_Spec frame_spec = {"shm.Frame", sizeof(Frame), 0,
                                 Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, frame_slots};

int native_frame_init(PyObject *module) {
    native_Frame = native_add_type(module, &frame_spec);
    return native_Frame ? 0 : -1;
}
