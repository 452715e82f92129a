/* shm.Loan: an extent that is filled in place.
 *
 * It holds a credit on each of its routes from the start, so committing never waits. It commits once or cancels; one
 * that is dropped has cancelled itself. While a view of it is held it cannot be committed: the view would go on writing
 * into a frame that others read.
 */
#include "native.h"

PyTypeObject *native_Loan;

enum loan_state { LOAN_OPEN, LOAN_COMMITTED, LOAN_CANCELLED };

typedef struct {
    PyObject_HEAD
    Outlet *outlet;
    struct native_claim claim;
    struct chx_tags tags; /* unless commit says otherwise */
    Py_ssize_t exports;
    enum loan_state state;
    uint8_t dropping; /* cancelled while a view was held: the extent goes with the view */
} Loan;

PyObject *native_loan_new(Outlet *outlet, const struct native_claim *claim, const struct chx_tags *tags) {
    Loan *self = PyObject_New(Loan, native_Loan);
    if (!self) {
        struct native_claim unused = *claim;
        if (claim->bits == &claim->word) unused.bits = &unused.word;
        native_outlet_cancel(outlet, &unused, 0);
        return NULL;
    }
    self->outlet = (Outlet *)Py_NewRef((PyObject *)outlet);
    self->claim = *claim;
    if (claim->bits == &claim->word) self->claim.bits = &self->claim.word;
    self->tags = *tags;
    self->exports = 0;
    self->state = LOAN_OPEN;
    self->dropping = 0;
    outlet->arena->pins++;
    return (PyObject *)self;
}

static int loan_open(const Loan *self) {
    if (self->state == LOAN_OPEN) return 1;
    PyErr_Format(PyExc_ValueError, "the loan is %s already",
                 self->state == LOAN_COMMITTED ? "committed" : "cancelled");
    return 0;
}

static void loan_cancel(Loan *self) {
    if (self->state != LOAN_OPEN) return;
    self->state = LOAN_CANCELLED;
    self->dropping = self->exports > 0;
    native_outlet_cancel(self->outlet, &self->claim, self->dropping);
    if (!self->dropping) native_arena_unpin(self->outlet->arena);
}

static void loan_dealloc(Loan *self) {
    loan_cancel(self);
    Py_CLEAR(self->outlet);
    NATIVE_DEALLOC(self);
}

static PyObject *loan_commit_as(Loan *self, int64_t length, const struct chx_tags *tags) {
    if (!loan_open(self) || native_foreign(self->outlet->arena->owner, "loan")) return NULL;
    if (self->exports) {
        PyErr_Format(PyExc_BufferError,
                     "the loan cannot be committed while %zd view(s) of it are held: delete or release them first",
                     self->exports);
        return NULL;
    }
    if (length < 0) length = (int64_t)self->claim.length;
    if ((uint64_t)length > self->claim.length)
        return PyErr_Format(PyExc_ValueError, "the loan has %llu bytes, not %lld",
                            (unsigned long long)self->claim.length, (long long)length);
    int64_t seq;
    self->state = LOAN_COMMITTED;
    int status = native_outlet_commit(self->outlet, &self->claim, (uint64_t)length, tags, &seq);
    native_arena_unpin(self->outlet->arena);
    return status == 0 ? PyLong_FromLongLong(seq) : NULL;
}

static PyObject *loan_commit(Loan *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"length", NATIVE_TAGS, NULL};
    static const struct native_signature signature = {"commit", names, 0, 1};
    PyObject *given[1 + NATIVE_TAG_COUNT] = {NULL};
    struct chx_tags tags = self->tags;
    int64_t length = -1;
    if (native_arguments(&signature, args, nargs, kwnames, given) || native_i64(given[0], "length", &length) ||
        native_tags(given + 1, &tags))
        return NULL;
    return loan_commit_as(self, length, &tags);
}

static PyObject *loan_cancel_method(Loan *self, PyObject *Py_UNUSED(ignored)) {
    loan_cancel(self);
    Py_RETURN_NONE;
}

static PyObject *loan_enter(Loan *self, PyObject *Py_UNUSED(ignored)) {
    return loan_open(self) ? Py_NewRef((PyObject *)self) : NULL;
}

static PyObject *loan_exit(Loan *self, PyObject *const *args, Py_ssize_t nargs) {
    if (self->state == LOAN_OPEN && nargs > 0 && args[0] == Py_None) {
        PyObject *seq = loan_commit_as(self, -1, &self->tags);
        if (!seq) return NULL;
        Py_DECREF(seq);
    } else {
        loan_cancel(self);
    }
    Py_RETURN_NONE;
}

static Py_ssize_t loan_length(Loan *self) { return (Py_ssize_t)self->claim.length; }

static int loan_getbuffer(Loan *self, Py_buffer *view, int flags) {
    static uint8_t nowhere[1];
    view->obj = NULL;
    if (!loan_open(self) || native_foreign(self->outlet->arena->owner, "loan")) return -1;
    if (self->claim.extent.handle == CHX_NO_EXTENT && self->claim.length) {
        PyErr_SetString(PyExc_BufferError, "the frame was dropped by its routes: there is nothing to fill");
        return -1;
    }
    void *data = self->claim.length ? self->claim.extent.data : nowhere;
    if (PyBuffer_FillInfo(view, (PyObject *)self, data, (Py_ssize_t)self->claim.length, 0, flags) != 0) return -1;
    self->exports++;
    return 0;
}

static void loan_releasebuffer(Loan *self, Py_buffer *Py_UNUSED(view)) {
    if (--self->exports || !self->dropping) return;
    self->dropping = 0;
    Outlet *outlet = self->outlet;
    chx_extent_drop(&outlet->arena->arena, self->claim.extent.handle);
    native_arena_unpin(outlet->arena);
    native_bell_stir(outlet->bell);
}

static PyMethodDef loan_methods[] = {
    {"commit", (PyCFunction)(void (*)(void))loan_commit, METH_FASTCALL | METH_KEYWORDS,
     "Publish the first `length` bytes (all by default); the sequence number on the first route."},
    {"cancel", (PyCFunction)loan_cancel_method, METH_NOARGS, "Give it back unsent. Idempotent."},
    {"__enter__", (PyCFunction)loan_enter, METH_NOARGS, NULL},
    {"__exit__", (PyCFunction)(void (*)(void))loan_exit, METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot loan_slots[] = {
    {Py_tp_dealloc, loan_dealloc},
    {Py_tp_methods, loan_methods},
    {Py_sq_length, loan_length},
    {Py_bf_getbuffer, loan_getbuffer},
    {Py_bf_releasebuffer, loan_releasebuffer},
    {Py_tp_doc, "A writable extent in place. A context manager: leaving it normally commits, an exception cancels."},
    {0, NULL},
};

static PyType_Spec loan_spec = {"shm.Loan", sizeof(Loan), 0,
                                Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, loan_slots};

int native_loan_init(PyObject *module) {
    native_Loan = native_add_type(module, &loan_spec);
    return native_Loan ? 0 : -1;
}
