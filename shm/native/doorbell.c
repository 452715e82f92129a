/* shm.Doorbell: an eventfd, and how several threads of a process sleep on one.
 *
 * The first sleeper leads: it sleeps on the bell and clears it. Further ones follow: each sleeps on an eventfd of its
 * own, which the leader rings when it clears the bell or leaves. So a ring is seen by everyone who was registered before
 * it, and whoever was registered looks at its own routes again. A thread registers before it arms its routes.
 */
#include "native.h"

PyTypeObject *native_Doorbell;

uint64_t native_deadline(int64_t timeout_ns) {
    if (timeout_ns < 0) return UINT64_MAX;
    uint64_t now = chx_now_ns();
    return (uint64_t)timeout_ns > UINT64_MAX - 1 - now ? UINT64_MAX - 1 : now + (uint64_t)timeout_ns;
}

static int bell_led(const Doorbell *bell) {
    const struct native_sleeper *other = bell->sleepers;
    while (other && other->fd >= 0) other = other->next;
    return other != NULL;
}

/* Not inlined: the compiler would warn that the list keeps a local; native_bell_leave takes it out again. */
__attribute__((noinline)) int native_bell_enter(Doorbell *bell, struct native_sleeper *sleeper) {
    if (bell->fd < 0) {
        PyErr_SetString(PyExc_ValueError, "the doorbell is closed");
        return -1;
    }
    if (native_foreign(bell->owner, "doorbell") != 0) return -1;
    sleeper->fd = -1;
    if (bell_led(bell)) {
        sleeper->fd = chx_bell_create();
        if (sleeper->fd < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
    sleeper->next = bell->sleepers;
    bell->sleepers = sleeper;
    return 0;
}

/* Something has changed in this process that a sleeper may wait for. */
void native_bell_stir(const Doorbell *bell) {
    if (bell->sleepers && bell->fd >= 0 && bell->owner == native_process()) chx_bell_ring(bell->fd);
}

static void bell_relay(const Doorbell *bell) {
    for (const struct native_sleeper *other = bell->sleepers; other; other = other->next)
        if (other->fd >= 0) chx_bell_ring(other->fd);
}

void native_bell_leave(Doorbell *bell, struct native_sleeper *sleeper) {
    if (bell->owner != native_process()) { /* forked meanwhile: the others sleep in the parent */
        if (sleeper->fd >= 0) close(sleeper->fd);
        bell->sleepers = NULL;
        return;
    }
    struct native_sleeper **link = &bell->sleepers;
    while (*link != sleeper) link = &(*link)->next;
    *link = sleeper->next;
    if (sleeper->fd >= 0)
        close(sleeper->fd);
    else
        bell_relay(bell);
}

/* Run signal handlers. -1 when one has raised, and in a child that one has forked. */
static int bell_signals(const Doorbell *bell) {
    return PyErr_CheckSignals() != 0 ? -1 : native_foreign(bell->owner, "doorbell");
}

/* 1: rung (or told to look again), 0: the deadline has passed, -1: a signal handler raised. */
int native_bell_sleep(Doorbell *bell, struct native_sleeper *sleeper, uint64_t deadline) {
    int leads = sleeper->fd < 0, fd = leads ? bell->fd : sleeper->fd;
    for (;;) {
        int64_t left = -1;
        if (deadline != UINT64_MAX) {
            uint64_t now = chx_now_ns();
            left = now < deadline ? (int64_t)(deadline - now) : 0;
        }
        int got, error;
        Py_BEGIN_ALLOW_THREADS
        got = chx_bell_sleep(fd, left);
        error = errno;
        Py_END_ALLOW_THREADS
        if (got > 0) {
            chx_bell_clear(fd);
            if (leads) bell_relay(bell);
            return bell_signals(bell) != 0 ? -1 : 1; /* a signal handler may be who rang */
        }
        if (got == 0) return 0;
        if (error != EINTR) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
        if (bell_signals(bell) != 0) return -1;
    }
}

static PyObject *doorbell_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"fd", NULL};
    PyObject *given = Py_None;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|O:Doorbell", names, &given)) return NULL;
    int fd;
    if (given == Py_None) {
        fd = chx_bell_create();
        if (fd < 0) return PyErr_SetFromErrno(PyExc_OSError);
    } else {
        long number = PyLong_AsLong(given);
        if (number == -1 && PyErr_Occurred()) return NULL;
        struct chx_why why;
        fd = chx_bell_adopt((int)number, &why);
        if (fd < 0) {
            PyErr_SetString(PyExc_ValueError, why.text);
            return NULL;
        }
    }
    Doorbell *self = PyObject_New(Doorbell, type);
    if (!self) {
        close(fd);
        return NULL;
    }
    self->fd = fd;
    self->owner = native_process_claim();
    self->sleepers = NULL;
    return (PyObject *)self;
}

static void doorbell_dealloc(Doorbell *self) {
    if (self->fd >= 0) close(self->fd);
    NATIVE_DEALLOC(self);
}

static int doorbell_open(const Doorbell *self) {
    if (self->fd >= 0) return 1;
    PyErr_SetString(PyExc_ValueError, "the doorbell is closed");
    return 0;
}

static PyObject *doorbell_fileno(Doorbell *self, PyObject *Py_UNUSED(ignored)) {
    return doorbell_open(self) ? PyLong_FromLong(self->fd) : NULL;
}

static PyObject *doorbell_ring(Doorbell *self, PyObject *Py_UNUSED(ignored)) {
    if (!doorbell_open(self) || native_foreign(self->owner, "doorbell")) return NULL;
    int error = chx_bell_ring(self->fd);
    if (error) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static PyObject *doorbell_clear(Doorbell *self, PyObject *Py_UNUSED(ignored)) {
    if (!doorbell_open(self) || native_foreign(self->owner, "doorbell")) return NULL;
    return PyBool_FromLong(chx_bell_clear(self->fd));
}

static PyObject *doorbell_wait(Doorbell *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"timeout_ns", NULL};
    static const struct native_signature signature = {"wait", names, 0, 1};
    PyObject *given[1] = {NULL};
    int64_t timeout_ns = -1;
    if (native_arguments(&signature, args, nargs, kwnames, given) || native_i64(given[0], "timeout_ns", &timeout_ns))
        return NULL;
    struct native_sleeper sleeper;
    if (native_bell_enter(self, &sleeper) != 0) return NULL;
    int rung = native_bell_sleep(self, &sleeper, native_deadline(timeout_ns));
    native_bell_leave(self, &sleeper);
    return rung < 0 ? NULL : PyBool_FromLong(rung);
}

static PyObject *doorbell_close(Doorbell *self, PyObject *Py_UNUSED(ignored)) {
    if (self->sleepers && self->owner == native_process()) {
        PyErr_SetString(PyExc_RuntimeError, "a thread sleeps on this doorbell: ring it and let the thread leave first");
        return NULL;
    }
    if (self->fd >= 0) close(self->fd);
    self->fd = -1;
    Py_RETURN_NONE;
}

static PyMethodDef doorbell_methods[] = {
    {"fileno", (PyCFunction)doorbell_fileno, METH_NOARGS, "The descriptor, for poll and asyncio."},
    {"ring", (PyCFunction)doorbell_ring, METH_NOARGS, "Wake whoever sleeps on it; never blocks."},
    {"clear", (PyCFunction)doorbell_clear, METH_NOARGS, "Silence it; was it rung?"},
    {"wait", (PyCFunction)(void (*)(void))doorbell_wait, METH_FASTCALL | METH_KEYWORDS,
     "Sleep until rung and clear it; False on time-out."},
    {"close", (PyCFunction)doorbell_close, METH_NOARGS, "Close the descriptor. Idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot doorbell_slots[] = {
    {Py_tp_new, doorbell_new},
    {Py_tp_dealloc, doorbell_dealloc},
    {Py_tp_methods, doorbell_methods},
    {Py_tp_doc, "An eventfd on which one event loop sleeps."},
    {0, NULL},
};

static PyType_Spec doorbell_spec = {"shm.Doorbell", sizeof(Doorbell), 0, Py_TPFLAGS_DEFAULT, doorbell_slots};

int native_doorbell_init(PyObject *module) {
    native_Doorbell = native_add_type(module, &doorbell_spec);
    return native_Doorbell ? 0 : -1;
}
