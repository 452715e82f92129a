/* Objects to bytes: one pass over an explicit stack, which may stop after any item and continue later. The caller
 * may change the objects meanwhile: a container whose length has changed when its end comes is refused, and none is
 * ever read beyond its end. Short documents stay in the writer itself; longer ones go into a bytearray that grows.
 * Stack, items and the writer are one file, because each step may be the last one of a slice, and all three know the
 * state that it leaves.
 */
#include "cbor.h"

typedef struct {
    PyObject *container; /* list, tuple or dict, ours */
    Py_ssize_t at;       /* of the next item; for PyDict_Next */
    Py_ssize_t done, size;
} level;

typedef struct {
    cbor_state *state;
    bool dry;      /* nothing is to be written */
    bool json;     /* dry: what JSON has no place for is refused too */
    PyObject *out; /* the bytearray, ours; NULL as long as `small` does */
    char *start;   /* of `small`, or of what `out` holds */
    Py_ssize_t head, used, room, limit; /* the head counts */
    PyObject *hook; /* converts objects that CBOR has no form for; borrowed; NULL without one */
    int depth;
    level stack[MAX_DEPTH];
    char small[1024];
} writer;

/* `head` bytes are left for the length; `limit` does not count them. */
static void writer_begin(writer *w, cbor_state *state, Py_ssize_t head, Py_ssize_t limit, bool dry)
{
    w->state = state;
    w->dry = dry;
    w->json = false;
    w->out = NULL;
    w->start = w->small;
    w->room = (Py_ssize_t)sizeof w->small;
    w->limit = limit > PY_SSIZE_T_MAX - head ? PY_SSIZE_T_MAX : limit + head;
    w->hook = NULL;
    w->depth = 0;
    w->used = w->head = head;
}

static void writer_drop(writer *w)
{
    while (w->depth > 0) {
        level *top = &w->stack[--w->depth];
        Py_CLEAR(top->container);
    }
    Py_CLEAR(w->out);
}

/* Room for `wanted` bytes in all. */
static int grow(writer *w, Py_ssize_t wanted)
{
    Py_ssize_t half = wanted > PY_SSIZE_T_MAX - wanted / 2 ? PY_SSIZE_T_MAX : wanted + wanted / 2;
    Py_ssize_t room = half < w->limit ? half : w->limit;
    if (w->out != NULL) {
        if (PyByteArray_Resize(w->out, room) < 0) return -1;
    } else {
        w->out = PyByteArray_FromStringAndSize(NULL, 0); /* CPython 3.11 stumbles where it makes one with a size and cannot */
        if (w->out == NULL || PyByteArray_Resize(w->out, room) < 0) return -1;
        memcpy(PyByteArray_AsString(w->out), w->small, (size_t)w->used);
    }
    w->start = PyByteArray_AsString(w->out);
    w->room = room;
    return 0;
}

static char *reserve(writer *w, Py_ssize_t size)
{
    if (size > w->limit - w->used) {
        PyErr_Format(w->state->error, "it has %zd bytes or more, at most %zd fit", w->used + size - w->head, w->limit -
        w->head);
        return NULL;
    }
    if (size > w->room - w->used && grow(w, w->used + size) < 0) return NULL;
    char *place = w->start + w->used;
    w->used += size;
    return place;
}

static void big_endian(char *to, uint64_t value, int width)
{
    for (int i = width - 1; i >= 0; i--, value >>= 8) to[i] = (char)(value & 0xff);
}

static int head(writer *w, unsigned major, uint64_t value)
{
    if (w->dry) return 0;
    int width = value < 24 ? 0 : value <= UINT8_MAX ? 1 : value <= UINT16_MAX ? 2 : value <= UINT32_MAX ? 4 : 8;
    unsigned low = width == 0 ? (unsigned)value : width == 1 ? 24 : width == 2 ? 25 : width == 4 ? 26 : 27;
    char *to = reserve(w, 1 + width);
    if (to == NULL) return -1;
    to[0] = (char)(major << 5 | low);
    big_endian(to + 1, value, width);
    return 0;
}

static int string(writer *w, unsigned major, const char *data, Py_ssize_t size, Py_ssize_t *work)
{
    *work += size / TEXT_PER_ITEM;
    if (w->json) {
        PyErr_SetString(w->state->error, "JSON has no bytes");
        return -1;
    }
    if (w->dry) return 0;
    if (head(w, major, (uint64_t)size) < 0) return -1;
    char *to = reserve(w, size);
    if (to == NULL) return -1;
    memcpy(to, data, (size_t)size);
    return 0;
}

static int text(writer *w, PyObject *item, Py_ssize_t *work)
{
    if (w->dry) return 0;
    Py_ssize_t size;
    const char *data = PyUnicode_AsUTF8AndSize(item, &size);
    if (data != NULL) return string(w, 3, data, size, work);
    if (PyErr_ExceptionMatches(PyExc_UnicodeEncodeError)) {
        PyObject *kind, *reason, *trace;
        PyErr_Fetch(&kind, &reason, &trace);
        PyErr_NormalizeException(&kind, &reason, &trace);
        PyErr_Format(w->state->error, "text that UTF-8 cannot hold: %S", reason);
        Py_XDECREF(kind);
        Py_XDECREF(reason);
        Py_XDECREF(trace);
    }
    return -1;
}

static int outside(writer *w, PyObject *number)
{
    PyErr_Clear();
    PyObject *bits = PyObject_CallMethod(number, "bit_length", NULL);
    if (bits == NULL) return -1;
    long count = PyLong_AsLong(bits);
    Py_DECREF(bits);
    if (count == -1 && PyErr_Occurred()) return -1;
    const char *range = "-2^64 \xe2\x80\xa6 2^64-1";
    if (count < 256)
        PyErr_Format(w->state->error, "%S is outside %s", number, range);
    else
        PyErr_Format(w->state->error, "a number of %ld bits is outside %s", count, range);
    return -1;
}

static int integer(writer *w, PyObject *number)
{
    int over = 0;
    long long value = PyLong_AsLongLongAndOverflow(number, &over);
    if (value == -1 && !over && PyErr_Occurred()) return -1;
    if (!over) return value >= 0 ? head(w, 0, (uint64_t)value) : head(w, 1, (uint64_t)(-1 - value));
    PyObject *wide = over > 0 ? Py_NewRef(number) : PyNumber_Invert(number);
    if (wide == NULL) return -1;
    unsigned long long big = PyLong_AsUnsignedLongLong(wide);
    Py_DECREF(wide);
    if (big == (unsigned long long)-1 && PyErr_Occurred())
        return PyErr_ExceptionMatches(PyExc_OverflowError) ? outside(w, number) : -1;
    return head(w, over > 0 ? 0 : 1, big);
}

static int number(writer *w, PyObject *item)
{
    if (w->dry && !w->json) return 0;
    double value = PyFloat_AsDouble(item);
    if (w->json) {
        if (value - value == 0) return 0;
        PyErr_SetString(w->state->error, "JSON has no NaN and no infinities");
        return -1;
    }
    if (value != value || value - value != 0) { /* NaN and infinities are a half */
        char *to = reserve(w, 3);
        if (to == NULL) return -1;
        memcpy(to, value != value ? "\xf9\x7e\x00" : value > 0 ? "\xf9\x7c\x00" : "\xf9\xfc\x00", 3);
        return 0;
    }
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    char *to = reserve(w, 9);
    if (to == NULL) return -1;
    to[0] = (char)0xfb;
    big_endian(to + 1, bits, 8);
    return 0;
}

typedef struct {
    PyObject_HEAD
    PyObject *data; /* bytes: one item of CBOR, ours */
} encoded;

/* Copy the bytes of an Encoded, which are CBOR already, into the document. */
static int embed(writer *w, PyObject *item, Py_ssize_t *work)
{
    if (w->json) {
        PyErr_SetString(w->state->error, "this is CBOR already, no JSON");
        return -1;
    }
    if (w->dry) return 0;
    PyObject *data = ((encoded *)item)->data;
    Py_ssize_t size = PyBytes_Size(data);
    *work += size / TEXT_PER_ITEM;
    char *to = reserve(w, size);
    if (to == NULL) return -1;
    memcpy(to, PyBytes_AsString(data), (size_t)size);
    return 0;
}

static int open_container(writer *w, PyObject *item, Py_ssize_t size, unsigned major)
{
    if (w->depth == MAX_DEPTH) {
        PyErr_Format(w->state->error, "more than %d containers inside each other", MAX_DEPTH);
        return -1;
    }
    if (head(w, major, (uint64_t)size) < 0) return -1;
    w->stack[w->depth++] = (level){Py_NewRef(item), 0, 0, size};
    return 0;
}

static int no_place(writer *w, PyObject *item, const char *format)
{
    PyObject *name = PyType_GetName(Py_TYPE(item));
    if (name == NULL) return -1;
    PyErr_Format(w->state->error, format, name);
    Py_DECREF(name);
    return -1;
}

/* Write `item`, or the head of a container. Returns the work that it was, or -1 on error. */
static Py_ssize_t one(writer *w, PyObject *item, bool hooked)
{
    Py_ssize_t work = 1;
    int failed;
    if (PyUnicode_CheckExact(item)) {
        failed = text(w, item, &work);
    } else if (PyLong_CheckExact(item)) {
        failed = integer(w, item);
    } else if (PyDict_CheckExact(item)) {
        failed = open_container(w, item, PyDict_Size(item), 5);
    } else if (PyList_CheckExact(item)) {
        failed = open_container(w, item, PyList_Size(item), 4);
    } else if (PyTuple_CheckExact(item)) {
        failed = open_container(w, item, PyTuple_Size(item), 4);
    } else if (item == Py_None) {
        failed = head(w, 7, 22);
    } else if (item == Py_True || item == Py_False) {
        failed = head(w, 7, item == Py_True ? 21 : 20);
    } else if (PyBytes_CheckExact(item)) {
        failed = string(w, 2, PyBytes_AsString(item), PyBytes_Size(item), &work);
    } else if (PyFloat_CheckExact(item)) {
        failed = number(w, item);
    } else if (PyByteArray_CheckExact(item)) {
        failed = string(w, 2, PyByteArray_AsString(item), PyByteArray_Size(item), &work);
    } else if (Py_IS_TYPE(item, w->state->encoded)) {
        failed = embed(w, item, &work);
    } else if (w->hook != NULL && !hooked) {
        PyObject *made = PyObject_CallFunctionObjArgs(w->hook, item, NULL);
        if (made == NULL) return -1;
        work = one(w, made, true);
        Py_DECREF(made);
        return work;
    } else {
        failed = no_place(w, item, "a %U has no place in CBOR");
    }
    return failed ? -1 : work;
}

/* Write the next item of the innermost container, or close it. */
static Py_ssize_t next(writer *w)
{
    level *top = &w->stack[w->depth - 1];
    PyObject *item = NULL, *key;
    Py_ssize_t work = 0;
    bool more;
    if (PyDict_CheckExact(top->container)) {
        more = PyDict_Next(top->container, &top->at, &key, &item);
        if (more && !PyUnicode_CheckExact(key)) return no_place(w, key, "a map key must be text, not %U");
        if (more) {
            work = 1;
            if (text(w, key, &work) < 0) return -1;
        }
    } else if (PyList_CheckExact(top->container)) {
        more = top->at < PyList_Size(top->container);
        if (more) item = PyList_GetItem(top->container, top->at++);
    } else {
        more = top->at < PyTuple_Size(top->container);
        if (more) item = PyTuple_GetItem(top->container, top->at++);
    }
    if (more != (top->done < top->size)) {
        PyErr_SetString(w->state->error, "a list or map was changed while it was written");
        return -1;
    }
    if (!more) {
        w->depth--;
        Py_CLEAR(top->container);
        return 1;
    }
    top->done++;
    Py_INCREF(item); /* a hook may drop the container's reference to it */
    Py_ssize_t more_work = one(w, item, false);
    Py_DECREF(item);
    return more_work < 0 ? -1 : work + more_work;
}

/* Continue for about `budget` items after the first. 1: the end, 0: there is more, -1: error. */
static int run(writer *w, Py_ssize_t budget, Py_ssize_t *spent)
{
    while (w->depth > 0) {
        if (*spent >= budget) return 0;
        Py_ssize_t work = next(w);
        if (work < 0) return -1;
        *spent += work;
    }
    return 1;
}

PyObject *chronetix_dumps(PyObject *module, PyObject *value)
{
    writer w;
    Py_ssize_t spent = 0;
    writer_begin(&w, PyModule_GetState(module), 0, PY_SSIZE_T_MAX, false);
    bool good = one(&w, value, false) >= 0 && run(&w, PY_SSIZE_T_MAX, &spent) > 0;
    PyObject *out = good ? PyBytes_FromStringAndSize(w.start, w.used) : NULL;
    writer_drop(&w);
    return out;
}

enum { PREFIX = 4 }; /* bytes of a frame's length, big-endian */

PyObject *chronetix_frame(PyObject *module, PyObject *args)
{
    PyObject *value;
    Py_ssize_t limit, spent = 0;
    writer w;
    if (!PyArg_ParseTuple(args, "On:frame", &value, &limit)) return NULL;
    writer_begin(&w, PyModule_GetState(module), PREFIX, limit, false);
    bool good = one(&w, value, false) >= 0 && run(&w, PY_SSIZE_T_MAX, &spent) > 0;
    big_endian(w.start, (uint64_t)(w.used - PREFIX), PREFIX);
    PyObject *out = good ? PyBytes_FromStringAndSize(w.start, w.used) : NULL;
    writer_drop(&w);
    return out;
}

static PyObject *check(PyObject *module, PyObject *value, bool json)
{
    writer w;
    Py_ssize_t spent = 0;
    writer_begin(&w, PyModule_GetState(module), 0, PY_SSIZE_T_MAX, true);
    w.json = json;
    bool good = one(&w, value, false) >= 0 && run(&w, PY_SSIZE_T_MAX, &spent) > 0;
    writer_drop(&w);
    return good ? Py_NewRef(Py_None) : NULL;
}

PyObject *chronetix_check(PyObject *module, PyObject *value) { return check(module, value, false); }

PyObject *chronetix_check_json(PyObject *module, PyObject *value) { return check(module, value, true); }

/* -- the type Encoder --------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    bool ended, taken;
    PyObject *value; /* until the first step */
    PyObject *hook;
    Py_ssize_t spent;
    writer writer;
} encoder;

static PyObject *encoder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"value", "limit", "hook", NULL};
    PyObject *value, *hook = Py_None;
    Py_ssize_t limit;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "On|O:Encoder", names, &value, &limit, &hook)) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    encoder *self = (encoder *)alloc(type, 0);
    if (self == NULL) return NULL;
    writer_begin(&self->writer, PyType_GetModuleState(type), PREFIX, limit, false);
    self->value = Py_NewRef(value);
    if (hook != Py_None) self->hook = self->writer.hook = Py_NewRef(hook);
    return (PyObject *)self;
}

static int encoder_traverse(PyObject *object, visitproc visit, void *arg)
{
    encoder *self = (encoder *)object;
    Py_VISIT(Py_TYPE(object));
    Py_VISIT(self->value);
    Py_VISIT(self->hook);
    for (int i = 0; i < self->writer.depth; i++) Py_VISIT(self->writer.stack[i].container);
    return 0;
}

static int encoder_clear(PyObject *object)
{
    encoder *self = (encoder *)object;
    self->ended = self->taken = true;
    Py_CLEAR(self->value);
    self->writer.hook = NULL;
    Py_CLEAR(self->hook);
    writer_drop(&self->writer);
    return 0;
}

static void encoder_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    PyObject_GC_UnTrack(object);
    encoder_clear(object);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *encoder_step(PyObject *object, PyObject *args)
{
    encoder *self = (encoder *)object;
    Py_ssize_t budget, spent = 0;
    if (!PyArg_ParseTuple(args, "n:step", &budget)) return NULL;
    if (self->ended) {
        PyErr_SetString(PyExc_ValueError, "this document was written to its end");
        return NULL;
    }
    int ended = 1;
    if (self->value != NULL) {
        PyObject *value = self->value;
        self->value = NULL;
        spent = one(&self->writer, value, false);
        Py_DECREF(value);
        ended = spent < 0 ? -1 : 1;
    }
    if (ended > 0) ended = run(&self->writer, budget, &spent);
    self->spent += spent;
    if (ended < 0) {
        encoder_clear(object);
        return NULL;
    }
    self->ended = ended != 0;
    return PyBool_FromLong(ended);
}

static PyObject *encoder_take(PyObject *object, PyObject *Py_UNUSED(none))
{
    encoder *self = (encoder *)object;
    writer *w = &self->writer;
    if (!self->ended || self->taken) {
        PyErr_SetString(PyExc_ValueError, "this document is not complete");
        return NULL;
    }
    big_endian(w->start, (uint64_t)(w->used - PREFIX), PREFIX);
    PyObject *out = w->out;
    if (out == NULL)
        out = PyBytes_FromStringAndSize(w->start, w->used);
    else if (PyByteArray_Resize(out, w->used) < 0)
        out = NULL;
    if (out != NULL) {
        self->taken = true;
        w->out = NULL;
    }
    return out;
}

static PyObject *encoder_get_size(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(((encoder *)object)->writer.used);
}

static PyObject *encoder_get_spent(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(((encoder *)object)->spent);
}

static PyMethodDef encoder_methods[] = {
    {"step", encoder_step, METH_VARARGS,
     "step(budget)\n--\n\nWrite about so many items; True once all is written. Raises CborError, MemoryError, and what the\n"
     "hook raises."},
    {"take", encoder_take, METH_NOARGS, "take()\n--\n\nThe bytes, once; a bytearray of the caller's alone when they are many. Raises ValueError before all is written."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef encoder_members[] = {
    {"size", encoder_get_size, NULL, "Bytes written so far, those of the head counted.", NULL},
    {"spent", encoder_get_spent, NULL, "Work done so far, in items; a long string is as many as its bytes cost.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot encoder_slots[] = {
    {Py_tp_doc, "Encoder(value, limit, hook=None)\n--\n\n"
                "Writes value piece by piece as a frame of at most limit bytes. What has no place in CBOR is given to hook, and\n"
                "what that returns is written instead."},
    {Py_tp_new, encoder_new},
    {Py_tp_dealloc, encoder_dealloc},
    {Py_tp_traverse, encoder_traverse},
    {Py_tp_clear, encoder_clear},
    {Py_tp_methods, encoder_methods},
    {Py_tp_getset, encoder_members},
    {0, NULL},
};

PyType_Spec chronetix_encoder_spec = {
    .name = "chronetix.protocol._cbor.Encoder",
    .basicsize = sizeof(encoder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = encoder_slots,
};

/* -- the type Encoded --------------------------------------------------------------------------------------- */

/* An Encoded of `data`, bytes, which it takes over; NULL is passed on. */
static PyObject *encoded_of(PyTypeObject *type, PyObject *data)
{
    if (data == NULL) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    encoded *self = (encoded *)alloc(type, 0);
    if (self == NULL)
        Py_DECREF(data);
    else
        self->data = data;
    return (PyObject *)self;
}

static PyObject *encoded_new(PyTypeObject *type, PyObject *args, PyObject *Py_UNUSED(kwargs))
{
    PyObject *data;
    if (!PyArg_ParseTuple(args, "S:Encoded", &data)) return NULL;
    return encoded_of(type, Py_NewRef(data));
}

static PyObject *encoded_list(PyObject *type, PyObject *items)
{
    PyObject *joined = NULL, *empty = PyBytes_FromStringAndSize(NULL, 0);
    Py_ssize_t count = PySequence_Size(items);
    writer w;
    writer_begin(&w, PyType_GetModuleState((PyTypeObject *)type), 0, PY_SSIZE_T_MAX, false);
    if (empty != NULL && count >= 0 && head(&w, 4, (uint64_t)count) == 0) {
        PyObject *start = PyBytes_FromStringAndSize(w.start, w.used);
        PyObject *rest = start != NULL ? PyObject_CallMethod(empty, "join", "O", items) : NULL;
        if (rest != NULL) PyBytes_ConcatAndDel(&start, rest);
        else Py_CLEAR(start);
        joined = start;
    }
    Py_XDECREF(empty);
    return encoded_of((PyTypeObject *)type, joined);
}

static void encoded_dealloc(PyObject *object)
{
    PyTypeObject *type = Py_TYPE(object);
    Py_XDECREF(((encoded *)object)->data);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *encoded_get_data(PyObject *object, void *Py_UNUSED(closure))
{
    return Py_NewRef(((encoded *)object)->data);
}

static PyMethodDef encoded_methods[] = {
    {"list", encoded_list, METH_O | METH_CLASS, "list(items)\n--\n\nA list of items that are CBOR already."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef encoded_members[] = {
    {"data", encoded_get_data, NULL, "The item's bytes.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot encoded_slots[] = {
    {Py_tp_doc, "Encoded(data)\n--\n\n"
                "One item that is CBOR already, of dumps: it goes as it is into what is made around it."},
    {Py_tp_new, encoded_new},
    {Py_tp_dealloc, encoded_dealloc},
    {Py_tp_methods, encoded_methods},
    {Py_tp_getset, encoded_members},
    {0, NULL},
};

PyType_Spec chronetix_encoded_spec = {
    .name = "chronetix.protocol._cbor.Encoded",
    .basicsize = sizeof(encoded),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = encoded_slots,
};
