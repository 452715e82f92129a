/* shm.Consumer: the consuming end of one route. */
#include <sched.h>

#include "native.h"

PyTypeObject *native_Consumer;

static const char *const class_names[] = {"best-effort", "normal", "high", "realtime"};

/* The class of service that `name` means; -1: none, with an exception. */
static int consumer_class(const char *name) {
    for (int class = 0; class < 4; class++)
        if (strcmp(name, class_names[class]) == 0) return class;
    PyErr_Format(PyExc_ValueError, "qos must be 'best-effort', 'normal', 'high' or 'realtime', not '%s'", name);
    return -1;
}

/* NULL instead of None; -1 for what cannot be called, with an exception. */
static int consumer_callable(PyObject **given, const char *name) {
    if (*given == Py_None) *given = NULL;
    if (!*given || PyCallable_Check(*given)) return 0;
    PyErr_Format(PyExc_TypeError, "%s must be callable, or None", name);
    return -1;
}

static PyObject *consumer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"route", "credits", "epoch", "base_seq", "peer", "decode", "array", "meta", "content_type", "qos",
                            NULL};
    PyObject *route, *peer = NULL, *decode = NULL, *array = NULL, *meta = NULL, *content_type = NULL;
    long long credits = 64;
    unsigned long long epoch = 0, base_seq = 0;
    const char *qos = "normal";
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "U|$LKKUOOOUs:Consumer", names, &route, &credits, &epoch,
                                     &base_seq, &peer, &decode, &array, &meta, &content_type, &qos))
        return NULL;
    int class = consumer_class(qos);
    if (class < 0) return NULL;
    if (consumer_callable(&decode, "decode") || consumer_callable(&array, "array") || consumer_callable(&meta, "meta"))
        return NULL;
    if (credits < 1 || credits > (long long)CHX_CREDITS_MAX)
        return PyErr_Format(PyExc_ValueError, "credits must be from 1 to %u, not %lld", CHX_CREDITS_MAX, credits);
    struct chx_header header = {.credits = (uint32_t)credits, .epoch = epoch, .base_seq = base_seq};
    Consumer *self = (Consumer *)PyType_GenericAlloc(type, 0);
    if (!self) return NULL;
    self->owner = native_process_claim();
    self->class = (uint8_t)class;
    self->route = Py_NewRef(route);
    self->peer = peer ? Py_NewRef(peer) : PyUnicode_FromString("");
    self->content_type = content_type ? Py_NewRef(content_type) : PyUnicode_FromString("");
    self->decode = Py_XNewRef(decode);
    self->array = Py_XNewRef(array);
    self->meta = Py_XNewRef(meta);
    enum chx_status status = chx_consumer_init(&self->end, &header);
    if (status != CHX_OK || !self->peer || !self->content_type) {
        if (status != CHX_OK) native_raise_status(status, NULL, NULL, chx_credit_size(chx_slots_log2(header.credits)));
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

static int consumer_traverse(Consumer *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->decode);
    Py_VISIT(self->array);
    Py_VISIT(self->meta);
    Py_VISIT(self->next);
    Py_VISIT(self->on_drained);
    return 0;
}

static int consumer_clear(Consumer *self) {
    Py_CLEAR(self->decode);
    Py_CLEAR(self->array);
    Py_CLEAR(self->meta);
    Py_CLEAR(self->next);
    Py_CLEAR(self->on_drained);
    return 0;
}

static void consumer_dealloc(Consumer *self) {
    PyObject_GC_UnTrack(self);
    if (self->route) {
        if (self->owner == native_process() && !self->abandoned) chx_consumer_close(&self->end);
        chx_consumer_destroy(&self->end);
    }
    Py_CLEAR(self->bell);
    Py_CLEAR(self->route);
    Py_CLEAR(self->peer);
    Py_CLEAR(self->content_type);
    consumer_clear(self);
    NATIVE_DEALLOC_GC(self);
}

static PyObject *consumer_link(Consumer *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ring_fd", "line_fd", "bell", "predecessor", NULL};
    int ring_fd, line_fd, predecessor = -1;
    Doorbell *bell;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiO!|$i:link", names, &ring_fd, &line_fd, native_Doorbell, &bell,
                                     &predecessor) ||
        native_foreign(self->owner, "consumer") || native_bell_usable(bell))
        return NULL;
    if (self->end.state == CHX_CONSUMER_ENDED && self->end.end == 0) Py_RETURN_NONE; /* nothing ever came of it */
    if (self->end.state != CHX_CONSUMER_UNLINKED)
        return PyErr_Format(PyExc_ValueError, "route %U is linked or closed already", self->route);
    enum chx_status status = chx_consumer_link(&self->end, ring_fd, line_fd, &bell->bell);
    if (status == CHX_OK) self->bell = (Doorbell *)Py_NewRef((PyObject *)bell);
    if (status == CHX_OK && predecessor >= 0) {
        status = chx_consumer_inherit(&self->end, predecessor);
        self->told = status == CHX_FAULT;
    }
    if (status != CHX_OK) {
        native_raise_status(status, self->route, &self->end.why, 0);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *consumer_add_segment(Consumer *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"index", "fd", NULL};
    unsigned int index;
    int fd;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "Ii:add_segment", names, &index, &fd)) return NULL;
    if (native_foreign(self->owner, "consumer") != 0) return NULL;
    enum chx_status status = chx_consumer_map(&self->end, index, fd);
    if (status != CHX_OK) {
        native_raise_status(status, self->route, &self->end.why, 0);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *consumer_drop_segment(Consumer *self, PyObject *arg) {
    unsigned long index = PyLong_AsUnsignedLong(arg);
    if ((index == (unsigned long)-1 && PyErr_Occurred()) || native_foreign(self->owner, "consumer") != 0) return NULL;
    uint32_t which = index < CHX_SEGMENTS_MAX ? (uint32_t)index : CHX_SEGMENTS_MAX;
    enum chx_status status;
    while ((status = chx_consumer_drop(&self->end, which)) == CHX_WOULD_BLOCK) { /* for as long as a copy takes */
        Py_BEGIN_ALLOW_THREADS
        sched_yield();
        Py_END_ALLOW_THREADS
    }
    if (status != CHX_OK) {
        native_raise_status(status, self->route, &self->end.why, 0);
        return NULL;
    }
    Py_RETURN_NONE;
}

static PyObject *consumer_close(Consumer *self, PyObject *Py_UNUSED(ignored)) {
    if (self->owner == native_process()) chx_consumer_close(&self->end);
    Py_RETURN_NONE;
}

/* Unmap a stage that the inlet has left, when the last frame has come back and the last copy is made, and report that.
 * A frame may come back anywhere, also while an exception is being raised. */
void native_consumer_drained(Consumer *self) {
    if (!self->end.credit || chx_consumer_busy(&self->end)) return;
    int fd = self->end.credit_map.fd; /* the descriptor may be about to be sent */
    self->end.credit_map.fd = -1;
    chx_consumer_destroy(&self->end);
    self->end.credit_map.fd = fd;
    if (!self->on_drained) return;
    PyObject *type, *value, *traceback, *call = self->on_drained;
    self->on_drained = NULL;
    PyErr_Fetch(&type, &value, &traceback);
    PyObject *done = PyObject_CallNoArgs(call);
    if (!done) PyErr_WriteUnraisable(call);
    Py_XDECREF(done);
    Py_DECREF(call);
    PyErr_Restore(type, value, traceback);
}

/* Whether following `next` from here leads back to `self`. */
static int consumer_precedes(const Consumer *self, const Consumer *later) {
    while (later && later != self) later = later->next;
    return later != NULL;
}

static PyObject *consumer_succeed(Consumer *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"next", "on_drained", NULL};
    Consumer *next;
    PyObject *on_drained = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!|O:succeed", names, native_Consumer, &next, &on_drained) ||
        native_foreign(self->owner, "consumer"))
        return NULL;
    if (on_drained != Py_None && !PyCallable_Check(on_drained))
        return PyErr_Format(PyExc_TypeError, "on_drained must be callable, or None");
    if (self->next || consumer_precedes(self, next))
        return PyErr_Format(PyExc_ValueError, "route %U: its stage of epoch %llu has a next one already", self->route,
                            (unsigned long long)self->end.header.epoch);
    const struct chx_header *mine = &self->end.header, *theirs = &next->end.header;
    if (theirs->epoch <= mine->epoch || theirs->base_seq < mine->base_seq)
        return PyErr_Format(PyExc_ValueError,
                            "route %U: a stage of epoch %llu that begins at %llu cannot follow one of epoch %llu that began "
                            "at %llu",
                            self->route, (unsigned long long)theirs->epoch, (unsigned long long)theirs->base_seq,
                            (unsigned long long)mine->epoch, (unsigned long long)mine->base_seq);
    enum chx_status status = chx_consumer_end_at(&self->end, theirs->base_seq - mine->base_seq);
    if (status != CHX_OK) {
        self->told = 1;
        native_raise_status(status, self->route, &self->end.why, 0);
        return NULL;
    }
    self->next = (Consumer *)Py_NewRef((PyObject *)next);
    if (on_drained != Py_None) self->on_drained = Py_NewRef(on_drained);
    Py_RETURN_NONE;
}

static PyObject *consumer_abandon(Consumer *self, PyObject *Py_UNUSED(ignored)) {
    self->abandoned = 1;
    Py_RETURN_NONE;
}

static PyObject *consumer_fd(Consumer *self, void *Py_UNUSED(closure)) {
    return PyLong_FromLong(self->end.credit_map.fd);
}

static PyObject *consumer_route(Consumer *self, void *Py_UNUSED(closure)) { return Py_NewRef(self->route); }

static PyObject *consumer_epoch(Consumer *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->end.header.epoch);
}

static PyObject *consumer_linked(Consumer *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->end.ring != NULL || self->end.state == CHX_CONSUMER_ENDED);
}

static PyObject *consumer_held(Consumer *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->end.credit ? chx_consumer_held(&self->end) : 0);
}

/* No frame and no fault will come from it or a later stage any more. */
int native_consumer_ended(Consumer *self) {
    struct chx_taken unused;
    while (self->end.state == CHX_CONSUMER_ENDED && self->next) self = self->next;
    if (self->end.state == CHX_CONSUMER_OPEN && self->owner == native_process()) chx_consumer_look(&self->end, &unused);
    return self->end.state == CHX_CONSUMER_FAULTY ? self->told : self->end.state >= CHX_CONSUMER_ENDED;
}

static PyObject *consumer_lost(Consumer *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(chx_consumer_lost(&self->end));
}

static PyObject *consumer_ended(Consumer *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(native_consumer_ended(self));
}

static PyMethodDef consumer_methods[] = {
    {"link", (PyCFunction)(void (*)(void))consumer_link, METH_VARARGS | METH_KEYWORDS,
     "Validate and map the producer's RING; what comes on this end of the line to it wakes `bell`. Be the successor of "
     "`predecessor`, a dead CREDIT."},
    {"succeed", (PyCFunction)(void (*)(void))consumer_succeed, METH_VARARGS | METH_KEYWORDS,
     "The producer is dead: this stage ends where `next` begins, and the inlet goes on with that."},
    {"add_segment", (PyCFunction)(void (*)(void))consumer_add_segment, METH_VARARGS | METH_KEYWORDS,
     "Map a sealed segment of the producer's arena read-only."},
    {"drop_segment", (PyCFunction)consumer_drop_segment, METH_O,
     "Unmap a segment that the producer has given up."},
    {"close", (PyCFunction)consumer_close, METH_NOARGS,
     "Detach: the producer gets RouteClosed. Held frames stay readable. Idempotent."},
    {"abandon", (PyCFunction)consumer_abandon, METH_NOARGS,
     "Leave it as a death would, from now on: dropping it does not detach, dropping a frame returns nothing; a successor "
     "gets what was not returned."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef consumer_getset[] = {
    {"fd", (getter)consumer_fd, NULL, "The sealed CREDIT memfd.", NULL},
    {"route", (getter)consumer_route, NULL, "Name of the route.", NULL},
    {"epoch", (getter)consumer_epoch, NULL, "Incarnation of the producer.", NULL},
    {"linked", (getter)consumer_linked, NULL, "Has link() succeeded?", NULL},
    {"held", (getter)consumer_held, NULL, "Frames taken and not yet returned.", NULL},
    {"lost", (getter)consumer_lost, NULL, "Policy latest: frames overwritten before they were read.", NULL},
    {"ended", (getter)consumer_ended, NULL, "Closed and every frame taken, or detached.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot consumer_slots[] = {
    {Py_tp_new, consumer_new},         {Py_tp_dealloc, consumer_dealloc}, {Py_tp_traverse, consumer_traverse},
    {Py_tp_clear, consumer_clear},
    {Py_tp_methods, consumer_methods}, {Py_tp_getset, consumer_getset},
    {Py_tp_doc, "Consuming end of one route: owner of its CREDIT."},
    {0, NULL},
};

static PyType_Spec consumer_spec = {"shm.Consumer", sizeof(Consumer), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                    consumer_slots};

int native_consumer_init(PyObject *module) {
    native_Consumer = native_add_type(module, &consumer_spec);
    return native_Consumer ? 0 : -1;
}
