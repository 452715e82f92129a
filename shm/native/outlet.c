/* shm.Outlet: one frame to several routes with one copy of its payload.
 *
 * The type and its methods. A frame's way is in claim.c, what holds it up in backpressure.c and waiting.c.
 */
#include "native.h"

PyTypeObject *native_Outlet;

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
    Py_VISIT(self->encode);
    Py_VISIT(self->plain);
    return 0;
}

static void outlet_dealloc(Outlet *self) {
    PyObject_GC_UnTrack(self);
    for (Py_ssize_t i = 0; i < self->count; i++) Py_DECREF((PyObject *)self->producers[i]);
    PyMem_Free(self->producers);
    Py_CLEAR(self->arena);
    Py_CLEAR(self->bell);
    Py_CLEAR(self->encode);
    Py_CLEAR(self->plain);
    NATIVE_DEALLOC_GC(self);
}

/* Items of this format (PEP 3118) are pointers, or have some in them: objects, pointers of C, functions, texts of C. A
 * field's name stands between colons; Zf, Zd and Zg are complex numbers. */
static int outlet_points(const char *format) {
    for (; *format; format++) {
        if (*format == ':') {
            format = strchr(format + 1, ':');
            if (!format) return 0;
        } else if (*format == 'Z' ? !format[1] || !strchr("fdg", format[1]) : strchr("OPXz&", *format) != NULL) {
            return 1;
        }
    }
    return 0;
}

/* Memory of this type is what `encode` need not see: 1 with that of `given` in `data`, else 0. -1 with an exception. */
static int outlet_plain_data(const Outlet *self, PyObject *given, Py_buffer *data) {
    if (self->encode && Py_TYPE(given) != self->plain && !PyMemoryView_Check(given)) return 0;
    if (PyObject_GetBuffer(given, data, PyBUF_C_CONTIGUOUS | PyBUF_FORMAT) == 0) {
        if (!data->format || !outlet_points(data->format)) return 1;
        PyBuffer_Release(data);
        PyErr_SetString(PyExc_ValueError, "its items are pointers, which mean nothing elsewhere");
    }
    if (!self->encode) return -1;
    PyErr_Clear();
    return 0;
}

/* The memory of `given`. What has none, or none that is C-contiguous, or pointers in it, is `encode`'s affair, which
 * returns bytes or says why not; and so is a type that it has not seen yet, whose memory may not be all of it. */
int native_outlet_data(Outlet *self, PyObject *given, Py_buffer *data) {
    if (PyByteArray_CheckExact(given)) return PyObject_GetBuffer(given, data, PyBUF_SIMPLE);
    int plain = outlet_plain_data(self, given, data);
    if (plain != 0) return plain < 0 ? -1 : 0;
    PyObject *encode = Py_NewRef(self->encode), *made = PyObject_CallFunctionObjArgs(encode, given, NULL);
    Py_DECREF(encode);
    if (!made) return -1;
    if (made == given && Py_TYPE(given) != self->plain) {
        PyTypeObject *before = self->plain;
        self->plain = (PyTypeObject *)Py_NewRef((PyObject *)Py_TYPE(given));
        Py_XDECREF((PyObject *)before);
    }
    int failed = PyObject_GetBuffer(made, data, PyBUF_SIMPLE);
    Py_DECREF(made); /* the view keeps it */
    return failed;
}

static PyObject *outlet_encode_with(Outlet *self, PyObject *encode) {
    if (!PyCallable_Check(encode)) return PyErr_Format(PyExc_TypeError, "encode must be callable");
    PyObject *before = self->encode;
    self->encode = Py_NewRef(encode);
    Py_XDECREF(before);
    Py_RETURN_NONE;
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

static int outlet_send_buffer(Outlet *self, const Py_buffer *data, int64_t timeout_ns, const struct chx_tags *tags,
                              int64_t *seq) {
    struct native_claim claim;
    uint64_t length = (uint64_t)data->len;
    if (native_outlet_claim(self, length, 1, timeout_ns, &claim) != 0) return -1;
    if (length && claim.extent.handle != CHX_NO_EXTENT) native_outlet_copy(self, claim.extent.data, data->buf, length);
    return native_outlet_commit(self, &claim, length, tags, seq);
}

/* Copy the memory of `value` into the arena and commit it to every route. `seq` as native_outlet_commit. */
static int outlet_send_value(Outlet *self, PyObject *value, int64_t timeout_ns, const struct chx_tags *tags,
                             int64_t *seq) {
    Py_buffer data;
    int failed = PyBytes_CheckExact(value) ? PyObject_GetBuffer(value, &data, PyBUF_SIMPLE)
                                           : native_outlet_data(self, value, &data);
    if (failed) return -1;
    failed = outlet_send_buffer(self, &data, timeout_ns, tags, seq);
    PyBuffer_Release(&data);
    return failed;
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
    int64_t seq;
    return outlet_send_value(self, given[0], timeout_ns, &tags, &seq) == 0 ? PyLong_FromLongLong(seq) : NULL;
}

/* Send `value` to every route, without a limit of time. 0, or -1 with an exception. */
int native_outlet_send(Outlet *self, PyObject *value, const struct chx_tags *tags) {
    int64_t unused;
    return outlet_send_value(self, value, -1, tags, &unused);
}

/* The same without waiting: WouldBlock. */
int native_outlet_try_send(Outlet *self, PyObject *value, const struct chx_tags *tags) {
    int64_t unused;
    return outlet_send_value(self, value, 0, tags, &unused);
}

/* The outlet whose bound method `send` this is, borrowed; NULL for anything else. */
Outlet *native_outlet_of(PyObject *method) {
    if (!PyCFunction_Check(method)) return NULL;
    if (PyCFunction_GetFunction(method) != (PyCFunction)(void (*)(void))outlet_send) return NULL;
    return (Outlet *)PyCFunction_GetSelf(method);
}

/* A loan that every route will drop is still filled by its caller: give it room all the same. */
static int outlet_scratch(Outlet *self, struct native_claim *claim) {
    if (!claim->dropped) return 0;
    int got = native_claim_extent(self, claim->length, &claim->extent);
    if (got == 0) native_outlet_raise_would_block(self, NATIVE_NO_ROOM, claim->length);
    if (got <= 0) native_claim_free(claim);
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

static PyObject *outlet_wait(Outlet *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"timeout_ns", NULL};
    static const struct native_signature signature = {"wait", names, 0, 1};
    PyObject *given[1] = {NULL};
    int64_t timeout_ns = -1;
    if (native_arguments(&signature, args, nargs, kwnames, given) || native_i64(given[0], "timeout_ns", &timeout_ns) ||
        native_foreign(self->arena->owner, "outlet"))
        return NULL;
    int may = native_outlet_await(self, timeout_ns);
    return may < 0 ? NULL : PyBool_FromLong(may);
}

/* Remove taps that have ended, unless a frame is under way: then places must not change, and the next call removes
 * them. The last route stays, because its end is reported to the sender. */
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
    if (waits) native_outlet_blocked_from(self, self->short_at ? NATIVE_NO_ROOM : NATIVE_NO_CREDIT, chx_now_ns());
    return PyBool_FromLong(waits);
}

static PyObject *outlet_disarm(Outlet *self, PyObject *Py_UNUSED(ignored)) {
    if (native_foreign(self->arena->owner, "outlet")) return NULL;
    native_outlet_disarm(self);
    native_outlet_blocked_until(self, chx_now_ns());
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
    {"encode_with", (PyCFunction)outlet_encode_with, METH_O,
     "What makes bytes of data without plain memory, or raises; a TypeError or a BufferError without it."},
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
