/* shm.Producer: the producing end of one route. */
#include "native.h"

PyTypeObject *native_Producer;
Producer *native_told;

static int producer_policy(PyObject *given, uint32_t *policy) {
    if (!given) return 0;
    if (PyUnicode_Check(given)) {
        if (PyUnicode_CompareWithASCIIString(given, "block") == 0) return *policy = CHX_POLICY_BLOCK, 0;
        if (PyUnicode_CompareWithASCIIString(given, "drop_newest") == 0) return *policy = CHX_POLICY_DROP_NEWEST, 0;
        if (PyUnicode_CompareWithASCIIString(given, "latest") == 0) return *policy = CHX_POLICY_LATEST, 0;
    }
    PyErr_Format(PyExc_ValueError, "policy must be 'block', 'drop_newest' or 'latest', not %R", given);
    return -1;
}

/* Defaults for the marks that were not given: three quarters and a half of the credits. */
static int producer_marks(struct chx_header *header, long long credits, long long watermark, long long credit_low) {
    if (credits < 1 || credits > (long long)CHX_CREDITS_MAX) {
        PyErr_Format(PyExc_ValueError, "credits must be from 1 to %u, not %lld", CHX_CREDITS_MAX, credits);
        return -1;
    }
    if (watermark < 0) watermark = credits * 3 / 4 > 1 ? credits * 3 / 4 : 1;
    if (credit_low < 0) credit_low = credits / 2;
    if (watermark < 1 || watermark > credits) {
        PyErr_Format(PyExc_ValueError, "watermark must be from 1 to credits (%lld), not %lld", credits, watermark);
        return -1;
    }
    if (credit_low >= credits) {
        PyErr_Format(PyExc_ValueError, "credit_low must be below credits (%lld), not %lld", credits, credit_low);
        return -1;
    }
    header->credits = (uint32_t)credits;
    header->watermark = (uint32_t)watermark;
    header->credit_low = (uint32_t)credit_low;
    return 0;
}

static int producer_patience(const struct chx_header *header, PyObject *on_give_up, int tap) {
    if (tap && header->policy != CHX_POLICY_LATEST) {
        PyErr_SetString(PyExc_ValueError, "a tap must not hold anybody up: its policy is 'latest'");
        return -1;
    }
    if (on_give_up == Py_None || PyCallable_Check(on_give_up)) return 0;
    PyErr_SetString(PyExc_TypeError, "on_give_up must be callable or None");
    return -1;
}

static PyObject *producer_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"arena",  "route",    "credits", "watermark",  "credit_low", "policy", "epoch", "base_seq",
                            "resume", "limit_ns", "on_give_up", "tap", "later", NULL};
    Arena *arena;
    PyObject *route, *policy = NULL, *on_give_up = Py_None;
    long long credits = 64, watermark = -1, credit_low = -1, limit_ns = 0;
    int tap = 0, later = 0;
    unsigned long long epoch = 0, base_seq = 0, resume = 0;
    struct chx_header header = {.policy = CHX_POLICY_BLOCK};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "O!U|$LLLOKKKLOpp:Producer", names, native_Arena, &arena, &route,
                                     &credits, &watermark, &credit_low, &policy, &epoch, &base_seq, &resume, &limit_ns,
                                     &on_give_up, &tap, &later) ||
        native_foreign(arena->owner, "arena") || producer_policy(policy, &header.policy) ||
        producer_patience(&header, on_give_up, tap) || producer_marks(&header, credits, watermark, credit_low))
        return NULL;
    if (limit_ns < 0 || (limit_ns && header.policy != CHX_POLICY_BLOCK))
        return PyErr_Format(PyExc_ValueError, "limit_ns is 0, or a time that a route of policy 'block' may block");
    header.epoch = epoch;
    header.base_seq = base_seq;
    Producer *self = (Producer *)PyType_GenericAlloc(type, 0);
    if (!self) return NULL;
    enum chx_status status = chx_producer_init(&self->end, &arena->arena, &header);
    self->end.resume = resume;
    self->owner = native_process_claim();
    self->route = Py_NewRef(route);
    self->arena = (Arena *)Py_NewRef((PyObject *)arena);
    self->end.limit_ns = (uint64_t)limit_ns;
    self->on_give_up = on_give_up == Py_None ? NULL : Py_NewRef(on_give_up);
    self->tap = (uint8_t)tap;
    self->later = (uint8_t)later;
    if (status != CHX_OK) {
        native_raise_status(status, NULL, NULL, chx_ring_size(chx_slots_log2(header.credits)));
        Py_DECREF(self);
        return NULL;
    }
    self->next = arena->producers;
    self->link = &arena->producers;
    if (self->next) self->next->link = &self->next;
    arena->producers = self;
    return (PyObject *)self;
}

static int producer_traverse(Producer *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE((PyObject *)(self)));
    Py_VISIT(self->arena);
    Py_VISIT(self->on_give_up);
    return 0;
}

static int producer_clear(Producer *self) {
    Py_CLEAR(self->on_give_up);
    return 0;
}

static void producer_dealloc(Producer *self) {
    PyObject_GC_UnTrack(self);
    if (self->link) {
        *self->link = self->next;
        if (self->next) self->next->link = self->link;
    }
    /* No close: only a producer that says so has sent everything. Frames of policy latest are revoked because their
     * memory may be used again; that of a closed arena is not, and its consumer may still read them. */
    if (self->arena && self->owner == native_process() && !self->arena->closed)
        chx_producer_destroy(&self->end);
    else if (self->arena)
        chx_producer_forget(&self->end);
    Py_CLEAR(self->on_give_up);
    Py_CLEAR(self->bell);
    Py_CLEAR(self->arena);
    Py_CLEAR(self->route);
    NATIVE_DEALLOC_GC(self);
}

/* Say why this route takes no more frames. */
void native_producer_raise(Producer *self) {
    native_told = self->told ? NULL : self;
    self->told = 1;
    switch (self->end.state) {
        case CHX_FAULTY:
            native_raise_status(CHX_FAULT, self->route, &self->end.why, 0);
            return;
        case CHX_UNLINKED:
            PyErr_Format(PyExc_RuntimeError, "route %U is not linked to its consumer yet", self->route);
            return;
        case CHX_GIVEN_UP:
            native_raise(native_route_closed, self->route,
                         "route %U was given up: its consumer returned no credit for %llu ms", self->route,
                         (unsigned long long)chx_read(&self->end.ring->losses.gave_up_after_ns) / 1000000);
            return;
        case CHX_STATE_CLOSED:
            native_raise(native_route_closed, self->route, "route %U was closed at this end", self->route);
            return;
        default:
            native_raise(native_route_closed, self->route, "route %U: its consumer has detached", self->route);
    }
}

/* Close a route on which a frame waited for longer than its limit. The other routes go on without it, so only
 * on_give_up is called. */
int native_producer_give_up(Producer *self, uint64_t now) {
    chx_producer_give_up(&self->end, now);
    self->told = 1;
    if (!self->on_give_up) return 0;
    uint64_t after = chx_read(&self->end.ring->losses.gave_up_after_ns);
    PyObject *done = PyObject_CallFunction(self->on_give_up, "OK", self->route, (unsigned long long)after);
    Py_XDECREF(done);
    return done ? native_foreign(self->owner, "producer") : -1;
}

/* What its line is in has to be there as long as the line. */
static void producer_keep_bell(Producer *self, Doorbell *bell) {
    Doorbell *before = self->bell;
    self->bell = (Doorbell *)Py_NewRef((PyObject *)bell);
    Py_XDECREF((PyObject *)before);
}

static PyObject *producer_link(Producer *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"credit_fd", "line_fd", "bell", NULL};
    int credit_fd, line_fd;
    Doorbell *bell;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiO!:link", names, &credit_fd, &line_fd, native_Doorbell, &bell) ||
        native_foreign(self->owner, "producer") || native_bell_usable(bell))
        return NULL;
    if (self->end.state != CHX_UNLINKED)
        return PyErr_Format(PyExc_ValueError, "route %U is linked or closed already", self->route);
    enum chx_status status = chx_producer_link(&self->end, credit_fd, line_fd, &bell->bell);
    if (status != CHX_OK) {
        native_raise_status(status, self->route, &self->end.why, 0);
        return NULL;
    }
    producer_keep_bell(self, bell);
    if (self->later && self->arena->bell) native_bell_stir(self->arena->bell);
    Py_RETURN_NONE;
}

/* In one step under the interpreter lock: a thread that sleeps for credits or copies a payload has nothing of the old
 * CREDIT in hand. */
static PyObject *producer_relink(Producer *self, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"credit_fd", "line_fd", "bell", NULL};
    int credit_fd, line_fd;
    Doorbell *bell;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "iiO!:relink", names, &credit_fd, &line_fd, native_Doorbell, &bell) ||
        native_foreign(self->owner, "producer") || native_bell_usable(bell))
        return NULL;
    if (!self->end.credit) return PyErr_Format(PyExc_ValueError, "route %U is not linked yet", self->route);
    enum chx_status status = chx_producer_relink(&self->end, credit_fd, line_fd, &bell->bell);
    if (status != CHX_OK) {
        native_raise_status(status, self->route, &self->end.why, 0);
        return NULL;
    }
    producer_keep_bell(self, bell);
    if (self->end.state == CHX_OPEN) self->told = 0;
    if (self->arena->bell) native_bell_stir(self->arena->bell);
    Py_RETURN_NONE;
}

static PyObject *producer_close(Producer *self, PyObject *Py_UNUSED(ignored)) {
    if (self->owner == native_process()) chx_producer_close(&self->end);
    Py_RETURN_NONE;
}

static PyObject *producer_leave(Producer *self, PyObject *Py_UNUSED(ignored)) {
    self->told = 1;
    return producer_close(self, NULL);
}

/* Frames on their way or promised to loans, by the latest count of the consumer. */
static uint64_t producer_used(Producer *self) {
    if (chx_producer_returns(&self->end) && self->owner == native_process()) {
        uint64_t due;
        if (chx_producer_look(&self->end, &due) == CHX_OK)
            return chx_outstanding(&self->end) - due + self->end.reserved;
    }
    return chx_outstanding(&self->end) + self->end.reserved;
}

static PyObject *producer_fd(Producer *self, void *Py_UNUSED(closure)) { return PyLong_FromLong(self->end.ring_map.fd);
}

static PyObject *producer_route(Producer *self, void *Py_UNUSED(closure)) { return Py_NewRef(self->route); }

static PyObject *producer_epoch(Producer *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->end.header.epoch);
}

static PyObject *producer_limit(Producer *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->end.limit_ns);
}

static PyObject *producer_linked(Producer *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(self->end.credit != NULL);
}

static PyObject *producer_credits(Producer *self, void *Py_UNUSED(closure)) {
    return PyLong_FromLongLong((long long)self->end.credits - (long long)producer_used(self));
}

static PyObject *producer_outstanding(Producer *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(producer_used(self) - self->end.reserved);
}

static PyObject *producer_loans(Producer *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLong(self->end.reserved);
}

static PyObject *producer_high(Producer *self, void *Py_UNUSED(closure)) {
    return PyBool_FromLong(producer_used(self) >= self->end.header.watermark);
}

static PyObject *producer_position(Producer *self, void *Py_UNUSED(closure)) {
    return PyLong_FromUnsignedLongLong(self->end.header.base_seq + self->end.position);
}

static PyMethodDef producer_methods[] = {
    {"link", (PyCFunction)(void (*)(void))producer_link, METH_VARARGS | METH_KEYWORDS,
     "Validate and map the consumer's CREDIT; what comes on this end of the line to it wakes `bell`."},
    {"relink", (PyCFunction)(void (*)(void))producer_relink, METH_VARARGS | METH_KEYWORDS,
     "Go on with the CREDIT of the consumer's successor, and a line to it."},
    {"close", (PyCFunction)producer_close, METH_NOARGS, "End of stream: the consumer drains what is there. Idempotent."},
    {"leave", (PyCFunction)producer_leave, METH_NOARGS,
     "As close, and its outlets go on without it and without a word, while they have others."},
    {NULL, NULL, 0, NULL},
};

static PyGetSetDef producer_getset[] = {
    {"fd", (getter)producer_fd, NULL, "The sealed RING memfd.", NULL},
    {"route", (getter)producer_route, NULL, "Name of the route.", NULL},
    {"epoch", (getter)producer_epoch, NULL, "Which incarnation of the producing node.", NULL},
    {"limit_ns", (getter)producer_limit, NULL, "How long a frame waits for a credit before it is given up; 0: for ever.", NULL},
    {"linked", (getter)producer_linked, NULL, "Has link() succeeded?", NULL},
    {"credits", (getter)producer_credits, NULL, "Credits left, after a look at what has been returned.", NULL},
    {"outstanding", (getter)producer_outstanding, NULL, "Frames sent and not yet returned.", NULL},
    {"loans", (getter)producer_loans, NULL, "Frames that are being filled.", NULL},
    {"high", (getter)producer_high, NULL, "Used credits have reached the watermark.", NULL},
    {"position", (getter)producer_position, NULL, "Sequence number that the next frame gets, unless its slot is held.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

static PyType_Slot producer_slots[] = {
    {Py_tp_new, producer_new},           {Py_tp_dealloc, producer_dealloc}, {Py_tp_traverse, producer_traverse},
    {Py_tp_clear, producer_clear},
    {Py_tp_methods, producer_methods},   {Py_tp_getset, producer_getset},
    {Py_tp_doc, "Producing end of one route: owner of its RING."},
    {0, NULL},
};

static PyType_Spec producer_spec = {"shm.Producer", sizeof(Producer), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC,
                                    producer_slots};

int native_producer_init(PyObject *module) {
    native_Producer = native_add_type(module, &producer_spec);
    return native_Producer ? 0 : -1;
}
