/* Bytes to objects: one pass over an explicit stack, which may stop after any item and continue later.
 *
 * Two counts bound the memory that a document can make this process allocate before its content has arrived: `owed`,
 * the items that open containers still wait for, each of which takes at least one of the remaining bytes; and `items`,
 * all that were announced. A container is made only if both counts permit its length, so lists that claim a million
 * items each, 64 deep, are refused by their heads. Heads, items and stack are one file, because each of them changes
 * both counts.
 */
#include "cbor.h"

typedef struct {
    PyObject *container; /* list or dict, ours */
    PyObject *key;       /* of the value that comes next in a dict, ours; NULL when a key comes next */
    Py_ssize_t size;     /* items (list) or pairs (dict) in all */
    Py_ssize_t done;
} level;

typedef struct {
    cbor_state *state;
    const uint8_t *data;
    Py_ssize_t at, end;
    Py_ssize_t items, max_items;
    Py_ssize_t owed;
    bool untracked; /* containers are kept from the garbage collector: a document has no cycles */
    int depth;
    level stack[MAX_DEPTH];
    PyObject *value; /* the document, ours, once it is complete */
} reader;

static void reader_begin(reader *r, cbor_state *state, const uint8_t *data, Py_ssize_t size, Py_ssize_t max_items,
                         bool untracked)
{
    r->state = state;
    r->data = data;
    r->at = 0;
    r->end = size;
    r->items = r->owed = 1;
    r->max_items = max_items;
    r->untracked = untracked;
    r->depth = 0;
    r->value = NULL;
}

static void reader_drop(reader *r)
{
    while (r->depth > 0) {
        level *top = &r->stack[--r->depth];
        Py_CLEAR(top->container);
        Py_CLEAR(top->key);
    }
    Py_CLEAR(r->value);
}

static int refuse(reader *r, const char *reason)
{
    PyErr_SetString(r->state->error, reason);
    return -1;
}

static int cut_short(reader *r)
{
    return refuse(r, "end of stream before the item's end");
}

/* The argument of a head whose first byte is at r->at. */
static int argument(reader *r, uint64_t *value)
{
    unsigned low = r->data[r->at] & 31;
    r->at++;
    if (low < 24) {
        *value = low;
        return 0;
    }
    if (low > 27) return refuse(r, low == 31 ? "indefinite lengths are not allowed" : "a head is reserved: malformed");
    Py_ssize_t width = (Py_ssize_t)1 << (low - 24);
    if (r->end - r->at < width) return cut_short(r);
    uint64_t sum = 0;
    for (Py_ssize_t i = 0; i < width; i++) sum = sum << 8 | r->data[r->at + i];
    r->at += width;
    *value = sum;
    return 0;
}

static PyObject *float_of(unsigned width, uint64_t bits)
{
    if (width == 8) {
        double number;
        memcpy(&number, &bits, sizeof number);
        return PyFloat_FromDouble(number);
    }
    uint32_t single = (uint32_t)bits;
    if (width == 2) { /* half: widened to a single by its bits */
        uint32_t sign = (single & 0x8000) << 16, exponent = single >> 10 & 31, fraction = single & 0x3ff;
        if (exponent == 0 && fraction != 0) { /* subnormal: fraction * 2^-24, exact in a double */
            double number = (double)fraction / 16777216.0;
            return PyFloat_FromDouble(sign ? -number : number);
        }
        uint32_t wide = exponent == 0 ? 0 : exponent == 31 ? 255 : exponent + 112;
        single = sign | wide << 23 | fraction << 13;
    }
    float number;
    memcpy(&number, &single, sizeof number);
    return PyFloat_FromDouble((double)number);
}

/* false, true, null and floats; the rest of major type 7 is refused. */
static PyObject *simple(reader *r)
{
    unsigned low = r->data[r->at] & 31;
    switch (low) {
    case 20: r->at++; return Py_NewRef(Py_False);
    case 21: r->at++; return Py_NewRef(Py_True);
    case 22: r->at++; return Py_NewRef(Py_None);
    case 23: refuse(r, "undefined is not allowed"); return NULL;
    case 31: refuse(r, "a break code has no place: lengths are definite"); return NULL;
    default: break;
    }
    uint64_t bits;
    if (argument(r, &bits) < 0) return NULL;
    if (low >= 25) return float_of(1U << (low - 24), bits);
    PyErr_Format(r->state->error, "simple value %d is not allowed", (int)bits);
    return NULL;
}

static PyObject *integer(bool negative, uint64_t value)
{
    if (!negative) return PyLong_FromUnsignedLongLong(value);
    if (value <= INT64_MAX) return PyLong_FromLongLong(-1 - (long long)value);
    PyObject *inverse = PyLong_FromUnsignedLongLong(value);
    if (inverse == NULL) return NULL;
    PyObject *number = PyNumber_Invert(inverse); /* -1 - value */
    Py_DECREF(inverse);
    return number;
}

static PyObject *new_text(reader *r, const char *start, Py_ssize_t size)
{
    PyObject *text = PyUnicode_DecodeUTF8(start, size, "strict");
    if (text == NULL && PyErr_ExceptionMatches(PyExc_UnicodeDecodeError)) {
        PyErr_Clear();
        refuse(r, "a text string is not UTF-8");
    }
    return text;
}

/* Return a key from the cache, or put it there. */
static PyObject *key_text(reader *r, const char *start, Py_ssize_t size)
{
    if (size == 0 || size > LONGEST_KEY) return new_text(r, start, size);
    uint32_t hash = (uint32_t)size;
    for (Py_ssize_t i = 0; i < size; i++) hash = (hash ^ (uint8_t)start[i]) * 16777619U;
    PyObject **place = &r->state->keys.text[(hash ^ hash >> 16) & (KEYS - 1)];
    if (*place != NULL) {
        Py_ssize_t known_size;
        const char *known = PyUnicode_AsUTF8AndSize(*place, &known_size);
        if (known == NULL) return NULL;
        if (known_size == size && memcmp(known, start, (size_t)size) == 0) return Py_NewRef(*place);
    }
    PyObject *text = new_text(r, start, size);
    if (text != NULL) {
        PyObject *old = *place;
        *place = Py_NewRef(text);
        Py_XDECREF(old);
    }
    return text;
}

/* Bytes or text. `work` grows by what a long one costs. */
static PyObject *string(reader *r, bool text, bool key, Py_ssize_t *work)
{
    uint64_t size;
    if (argument(r, &size) < 0) return NULL;
    if (size > (uint64_t)(r->end - r->at)) {
        cut_short(r);
        return NULL;
    }
    const char *start = (const char *)r->data + r->at;
    r->at += (Py_ssize_t)size;
    *work += (Py_ssize_t)size / TEXT_PER_ITEM;
    if (!text) return PyBytes_FromStringAndSize(start, (Py_ssize_t)size);
    return key ? key_text(r, start, (Py_ssize_t)size) : new_text(r, start, (Py_ssize_t)size);
}

/* Opens a list or a map; -1 on error. */
static int open_container(reader *r, bool map)
{
    uint64_t size;
    if (argument(r, &size) < 0) return -1;
    uint64_t left = (uint64_t)(r->end - r->at), each = map ? 2 : 1;
    if (size > left / each || (uint64_t)r->owed + size * each > left) return cut_short(r);
    Py_ssize_t more = (Py_ssize_t)(size * each);
    if (more > r->max_items - r->items) {
        PyErr_Format(r->state->error, "more than %zd items", r->max_items);
        return -1;
    }
    if (r->depth == MAX_DEPTH) {
        PyErr_Format(r->state->error, "more than %d containers inside each other", MAX_DEPTH);
        return -1;
    }
    PyObject *made = map ? PyDict_New() : PyList_New((Py_ssize_t)size);
    if (made == NULL) return -1;
    if (r->untracked) PyObject_GC_UnTrack(made);
    r->items += more;
    r->owed += more;
    r->stack[r->depth++] = (level){made, NULL, (Py_ssize_t)size, 0};
    return 0;
}

static int duplicate(reader *r, PyObject *key)
{
    PyObject *begin = PyUnicode_Substring(key, 0, 60);
    if (begin == NULL) return -1;
    PyErr_Format(r->state->error, "Duplicate map key: %R", begin);
    Py_DECREF(begin);
    return -1;
}

/* Put `item` into the innermost container, and close the containers that it completes. Takes `item` over. */
static int place(reader *r, PyObject *item)
{
    for (;;) {
        if (r->depth == 0) {
            r->value = item;
            return 0;
        }
        level *top = &r->stack[r->depth - 1];
        if (item != NULL) {
            if (PyList_CheckExact(top->container)) {
                if (PyList_SetItem(top->container, top->done++, item) < 0) return -1;
            } else if (top->key == NULL) {
                top->key = item;
                return 0;
            } else {
                int set = PyDict_SetItem(top->container, top->key, item);
                Py_DECREF(item);
                if (set < 0) return -1;
                top->done++;
                if (PyDict_Size(top->container) != top->done) return duplicate(r, top->key);
                Py_CLEAR(top->key);
            }
        }
        if (top->done < top->size) return 0;
        item = top->container;
        top->container = NULL;
        r->depth--;
        if (r->untracked) PyObject_GC_UnTrack(item); /* a dict was tracked as it got its first container */
    }
}

static const char *const KINDS[] = {"a number", "a number", "bytes", "text", "a list", "a map", "a tag", "a simple value"};

/* Read one item. Returns the work that it was, or -1 on error. */
static Py_ssize_t one(reader *r)
{
    if (r->at >= r->end) return cut_short(r);
    unsigned major = r->data[r->at] >> 5;
    level *top = r->depth > 0 ? &r->stack[r->depth - 1] : NULL;
    bool key = top != NULL && top->key == NULL && PyDict_CheckExact(top->container);
    if (key && major != 3) {
        PyErr_Format(r->state->error, "a map key must be text, not %s", KINDS[major]);
        return -1;
    }
    r->owed--;
    PyObject *item = NULL;
    Py_ssize_t work = 1;
    switch (major) {
    case 0:
    case 1: {
        uint64_t value;
        if ((r->data[r->at] & 31) == 31) return refuse(r, "a head is reserved: malformed");
        if (argument(r, &value) < 0) return -1;
        item = integer(major == 1, value);
        break;
    }
    case 2:
    case 3: item = string(r, major == 3, key, &work); break;
    case 4:
    case 5:
        if (open_container(r, major == 5) < 0) return -1;
        return place(r, NULL) < 0 ? -1 : work; /* an empty one is complete */
    case 6: {
        uint64_t tag;
        if (argument(r, &tag) == 0) PyErr_Format(r->state->error, "tag %llu is not allowed", (unsigned long long)tag);
        return -1;
    }
    default: item = simple(r);
    }
    if (item == NULL) return -1;
    return place(r, item) < 0 ? -1 : work;
}

/* Continue for about `budget` items. 1: the document is complete, 0: there is more, -1: error. */
static int run(reader *r, Py_ssize_t budget, Py_ssize_t *spent)
{
    while (r->value == NULL) {
        if (*spent >= budget) return 0;
        Py_ssize_t work = one(r);
        if (work < 0) return -1;
        *spent += work;
    }
    if (r->at == r->end) return 1;
    return refuse(r, "there are bytes after the end of the item");
}

PyObject *chronetix_loads(PyObject *module, PyObject *args)
{
    Py_buffer view;
    Py_ssize_t max_items = MAX_ITEMS;
    if (!PyArg_ParseTuple(args, "y*|n:loads", &view, &max_items)) return NULL;
    reader r;
    Py_ssize_t spent = 0;
    reader_begin(&r, PyModule_GetState(module), view.buf, view.len, max_items, false);
    PyObject *value = run(&r, PY_SSIZE_T_MAX, &spent) < 0 ? NULL : Py_NewRef(r.value);
    reader_drop(&r);
    PyBuffer_Release(&view);
    return value;
}

/* -- the type Decoder --------------------------------------------------------------------------------------- */

typedef struct {
    PyObject_HEAD
    Py_buffer view;
    bool open; /* view is ours */
    bool failed;
    Py_ssize_t spent;
    reader reader;
} decoder;

static PyObject *decoder_new(PyTypeObject *type, PyObject *args, PyObject *kwargs)
{
    static char *names[] = {"data", "max_items", NULL};
    Py_buffer view;
    Py_ssize_t max_items = MAX_ITEMS;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "y*|n:Decoder", names, &view, &max_items)) return NULL;
    allocfunc alloc = (allocfunc)PyType_GetSlot(type, Py_tp_alloc);
    decoder *self = (decoder *)alloc(type, 0);
    if (self == NULL) {
        PyBuffer_Release(&view);
        return NULL;
    }
    self->view = view;
    self->open = true;
    reader_begin(&self->reader, PyType_GetModuleState(type), view.buf, view.len, max_items, true);
    return (PyObject *)self;
}

static void decoder_release(decoder *self)
{
    if (self->open) PyBuffer_Release(&self->view);
    self->open = false;
}

static void decoder_dealloc(PyObject *object)
{
    decoder *self = (decoder *)object;
    PyTypeObject *type = Py_TYPE(object);
    reader_drop(&self->reader);
    decoder_release(self);
    ((freefunc)PyType_GetSlot(type, Py_tp_free))(object);
    Py_DECREF(type);
}

static PyObject *decoder_step(PyObject *object, PyObject *args)
{
    decoder *self = (decoder *)object;
    Py_ssize_t budget, spent = 0;
    if (!PyArg_ParseTuple(args, "n:step", &budget)) return NULL;
    if (!self->open) {
        PyErr_SetString(PyExc_ValueError, "this document was read to its end");
        return NULL;
    }
    int ended = run(&self->reader, budget, &spent);
    self->spent += spent;
    if (ended != 0) decoder_release(self);
    if (ended < 0) {
        self->failed = true;
        return NULL;
    }
    return PyBool_FromLong(ended);
}

static PyObject *decoder_take(PyObject *object, PyObject *Py_UNUSED(none))
{
    decoder *self = (decoder *)object;
    reader *r = &self->reader;
    if (r->value == NULL || self->failed) {
        PyErr_SetString(PyExc_ValueError, "this document is not complete");
        return NULL;
    }
    PyObject *value = r->value;
    r->value = NULL;
    return value;
}

static PyObject *decoder_leavings(PyObject *object, PyObject *Py_UNUSED(none))
{
    decoder *self = (decoder *)object;
    reader *r = &self->reader;
    decoder_release(self);
    self->failed = true;
    PyObject *all = PyList_New(0);
    if (all == NULL) return NULL;
    int failed = r->value != NULL ? PyList_Append(all, r->value) : 0;
    for (int i = 0; i < r->depth && !failed; i++) failed = PyList_Append(all, r->stack[i].container);
    reader_drop(r);
    if (failed) Py_CLEAR(all);
    return all;
}

static PyObject *decoder_get_spent(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(((decoder *)object)->spent);
}

static PyObject *decoder_get_items(PyObject *object, void *Py_UNUSED(closure))
{
    return PyLong_FromSsize_t(((decoder *)object)->reader.items);
}

static PyMethodDef decoder_methods[] = {
    {"step", decoder_step, METH_VARARGS,
     "step(budget)\n--\n\nRead about so many items; True once the document is complete. Raises CborError, MemoryError."},
    {"take", decoder_take, METH_NOARGS, "take()\n--\n\nThe complete document, once. Raises ValueError before it is."},
    {"leavings", decoder_leavings, METH_NOARGS,
     "leavings()\n--\n\nGive the document up; what was made of it, for :func:`dismantle`."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef decoder_members[] = {
    {"items", decoder_get_items, NULL, "Items that were announced so far.", NULL},
    {"spent", decoder_get_spent, NULL, "Work done so far, in items; a long string is as many as its bytes cost.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot decoder_slots[] = {
    {Py_tp_doc, "Decoder(data, max_items=MAX_ITEMS)\n--\n\n"
                "Reads the one item that data holds piece by piece. What it makes is not tracked by the\n"
                "garbage collector: a document has no cycles, and a million items would be looked at again and again."},
    {Py_tp_new, decoder_new},
    {Py_tp_dealloc, decoder_dealloc},
    {Py_tp_methods, decoder_methods},
    {Py_tp_getset, decoder_members},
    {0, NULL},
};

PyType_Spec chronetix_decoder_spec = {
    .name = "chronetix.protocol._cbor.Decoder",
    .basicsize = sizeof(decoder),
    .flags = Py_TPFLAGS_DEFAULT | Py_TPFLAGS_IMMUTABLETYPE,
    .slots = decoder_slots,
};

/* -- taking apart ------------------------------------------------------------------------------------------- */

/* Whether this is a non-empty container to which only the caller has a reference. A list that was abandoned half filled
 * holds NULL. */
static bool ours(PyObject *item)
{
    if (item == NULL) return false;
    if (PyList_CheckExact(item)) return Py_REFCNT(item) == 1 && PyList_Size(item) > 0;
    return PyDict_CheckExact(item) && Py_REFCNT(item) == 1 && PyDict_Size(item) > 0;
}

/* Shorten `list` from its end until it gives up a container that only the caller holds, which goes on the pile. -1 on
 * error. */
static int shorten(PyObject *pile, PyObject *list, Py_ssize_t *budget)
{
    Py_ssize_t size = PyList_Size(list), keep = size;
    PyObject *inner = NULL;
    while (keep > 0 && inner == NULL && *budget > 0) {
        PyObject *last = PyList_GetItem(list, --keep);
        if (ours(last)) inner = last;
        --*budget;
    }
    if (inner != NULL && PyList_Append(pile, inner) < 0) return -1;
    return PyList_SetSlice(list, keep, size, NULL);
}

static int shrink(PyObject *pile, PyObject *dict, Py_ssize_t *budget)
{
    while (*budget > 0 && PyDict_Size(dict) > 0) {
        PyObject *pair = PyObject_CallMethod(dict, "popitem", NULL);
        if (pair == NULL) return -1;
        PyObject *value = Py_NewRef(PyTuple_GetItem(pair, 1));
        Py_DECREF(pair);
        bool inner = ours(value);
        int failed = inner ? PyList_Append(pile, value) : 0;
        Py_DECREF(value);
        --*budget;
        if (failed) return -1;
        if (inner) break;
    }
    return 0;
}

PyObject *chronetix_dismantle(PyObject *Py_UNUSED(module), PyObject *args)
{
    PyObject *pile;
    Py_ssize_t budget, size;
    if (!PyArg_ParseTuple(args, "On:dismantle", &pile, &budget)) return NULL;
    if (!PyList_CheckExact(pile)) {
        PyErr_SetString(PyExc_TypeError, "the pile must be a list");
        return NULL;
    }
    while ((size = PyList_Size(pile)) > 0 && budget > 0) {
        PyObject *top = PyList_GetItem(pile, size - 1);
        int failed;
        if (!ours(top)) {
            budget--;
            failed = PyList_SetSlice(pile, size - 1, size, NULL);
        } else
            failed = PyList_CheckExact(top) ? shorten(pile, top, &budget) : shrink(pile, top, &budget);
        if (failed) return NULL;
    }
    return PyBool_FromLong(size == 0);
}
