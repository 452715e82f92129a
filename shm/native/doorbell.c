/* shm.Doorbell: the descriptor on which an event loop sleeps, several threads that sleep on one doorbell, and lines.
 *
 * The first sleeper leads: it sleeps on the bell and reads the lines that rang, under the interpreter lock, so that
 * none of them is closed meanwhile. Further ones follow: each sleeps on an eventfd of its own, which the leader rings
 * when it clears the bell or leaves. So every thread that was registered before a ring sees it, and looks at its own
 * routes again. A thread registers before it arms its routes.
 */
#include "native.h"

PyTypeObject *native_Doorbell;

uint64_t native_deadline(int64_t timeout_ns) {
    if (timeout_ns < 0) return UINT64_MAX;
    uint64_t now = chx_now_ns();
    return (uint64_t)timeout_ns > UINT64_MAX - 1 - now ? UINT64_MAX - 1 : now + (uint64_t)timeout_ns;
}

/* A follower's eventfd, which no other process has. */
static int follower_create(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

static void follower_ring(int fd) {
    uint64_t one = 1;
    while (write(fd, &one, sizeof one) < 0 && errno == EINTR) continue; /* EAGAIN: it has been rung */
}

static void follower_clear(int fd) {
    uint64_t rings;
    while (read(fd, &rings, sizeof rings) < 0 && errno == EINTR) continue;
}

static int follower_sleep(int fd, int64_t timeout_ns) {
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    struct timespec limit = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    return ppoll(&entry, 1, timeout_ns < 0 ? NULL : &limit, NULL);
}

/* Open, and of this process; -1 with an exception. */
int native_bell_usable(const Doorbell *bell) {
    if (bell->bell.epoll >= 0) return native_foreign(bell->owner, "doorbell");
    PyErr_SetString(PyExc_ValueError, "the doorbell is closed");
    return -1;
}

static int bell_led(const Doorbell *bell) {
    const struct native_sleeper *other = bell->sleepers;
    while (other && other->fd >= 0) other = other->next;
    return other != NULL;
}

/* Not inlined: the compiler would warn that the list keeps a local; native_bell_leave takes it out again. */
__attribute__((noinline)) int native_bell_enter(Doorbell *bell, struct native_sleeper *sleeper) {
    if (native_bell_usable(bell) != 0) return -1;
    sleeper->fd = -1;
    if (bell_led(bell)) {
        sleeper->fd = follower_create();
        if (sleeper->fd < 0) {
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
    sleeper->next = bell->sleepers;
    bell->sleepers = sleeper;
    return 0;
}

/* Wake the sleepers of this process: a state that they may wait for has changed. */
void native_bell_stir(const Doorbell *bell) {
    if (bell->sleepers && bell->owner == native_process()) chx_bell_ring(&bell->bell);
}

static void bell_relay(const Doorbell *bell) {
    for (const struct native_sleeper *other = bell->sleepers; other; other = other->next)
        if (other->fd >= 0) follower_ring(other->fd);
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

/* Run signal handlers. -1 when one has raised or the sleep is interrupted, and in a child that a handler has forked. */
static int bell_signals(Doorbell *bell) {
    if (PyErr_CheckSignals() != 0) return -1;
    PyObject *interrupt = bell->interrupt;
    if (interrupt) {
        bell->interrupt = NULL;
        PyErr_SetObject((PyObject *)Py_TYPE(interrupt), interrupt);
        Py_DECREF(interrupt);
        return -1;
    }
    return native_foreign(bell->owner, "doorbell");
}

/* 1: rung (or told to look again), 0: the deadline has passed, -1: a signal handler raised. */
int native_bell_sleep(Doorbell *bell, struct native_sleeper *sleeper, uint64_t deadline) {
    struct epoll_event events[CHX_BELL_EVENTS];
    int leads = sleeper->fd < 0;
    for (;;) {
        int64_t left = -1;
        if (deadline != UINT64_MAX) {
            uint64_t now = chx_now_ns();
            left = now < deadline ? (int64_t)(deadline - now) : 0;
        }
        int got, error;
        Py_BEGIN_ALLOW_THREADS
        got = leads ? chx_bell_await(&bell->bell, events, left) : follower_sleep(sleeper->fd, left);
        error = errno;
        Py_END_ALLOW_THREADS
        if (got > 0) {
            if (leads) {
                chx_bell_hear(&bell->bell, events, got);
                bell_relay(bell);
            } else {
                follower_clear(sleeper->fd);
            }
            return bell_signals(bell) != 0 ? -1 : 1; /* a signal handler may have rung */
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
    static char *names[] = {NULL};
    struct chx_bell bell;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Doorbell", names)) return NULL;
    if (chx_bell_init(&bell) != 0) return PyErr_SetFromErrno(PyExc_OSError);
    Doorbell *self = PyObject_New(Doorbell, type);
    if (!self) {
        chx_bell_destroy(&bell);
        return NULL;
    }
    self->bell = bell;
    self->owner = native_process_claim();
    self->sleepers = NULL;
    self->interrupt = NULL;
    return (PyObject *)self;
}

static void doorbell_dealloc(Doorbell *self) {
    chx_bell_destroy(&self->bell);
    Py_CLEAR(self->interrupt);
    NATIVE_DEALLOC(self);
}

static int doorbell_open(const Doorbell *self) {
    if (self->bell.epoll >= 0) return 1;
    PyErr_SetString(PyExc_ValueError, "the doorbell is closed");
    return 0;
}

static PyObject *doorbell_fileno(Doorbell *self, PyObject *Py_UNUSED(ignored)) {
    return doorbell_open(self) ? PyLong_FromLong(self->bell.epoll) : NULL;
}

static PyObject *doorbell_ring(Doorbell *self, PyObject *Py_UNUSED(ignored)) {
    if (native_bell_usable(self) != 0) return NULL;
    chx_bell_ring(&self->bell);
    Py_RETURN_NONE;
}

static PyObject *doorbell_interrupt(Doorbell *self, PyObject *reason) {
    if (native_bell_usable(self) != 0) return NULL;
    if (reason != Py_None && !PyExceptionInstance_Check(reason)) {
        PyErr_SetString(PyExc_TypeError, "reason must be an exception or None");
        return NULL;
    }
    PyObject *before = self->interrupt;
    self->interrupt = reason == Py_None ? NULL : Py_NewRef(reason);
    Py_XDECREF(before);
    if (self->interrupt) chx_bell_ring(&self->bell);
    Py_RETURN_NONE;
}

static PyObject *doorbell_clear(Doorbell *self, PyObject *Py_UNUSED(ignored)) {
    return native_bell_usable(self) == 0 ? PyBool_FromLong(chx_bell_clear(&self->bell)) : NULL;
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
    chx_bell_destroy(&self->bell);
    Py_RETURN_NONE;
}

static PyMethodDef doorbell_methods[] = {
    {"fileno", (PyCFunction)doorbell_fileno, METH_NOARGS, "The descriptor, for poll and asyncio. To be cleared when it is readable."},
    {"ring", (PyCFunction)doorbell_ring, METH_NOARGS, "Wake whoever sleeps on it, from this process; never blocks."},
    {"interrupt", (PyCFunction)doorbell_interrupt, METH_O,
     "Have whoever sleeps on it now, or else next, raise this exception, once; None: nobody. From any thread."},
    {"clear", (PyCFunction)doorbell_clear, METH_NOARGS, "Silence it; was it rung?"},
    {"wait", (PyCFunction)(void (*)(void))doorbell_wait, METH_FASTCALL | METH_KEYWORDS,
     "Sleep until rung and clear it; False on time-out."},
    {"close", (PyCFunction)doorbell_close, METH_NOARGS, "Close it. Idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyObject *doorbell_own(Doorbell *self, void *Py_UNUSED(closure)) {
    return doorbell_open(self) ? PyLong_FromLong(self->bell.self) : NULL;
}

static PyGetSetDef doorbell_getset[] = {
    {"eventfd", (getter)doorbell_own, NULL, "What ring() writes to, for a signal handler of this process.", NULL},
    {NULL, NULL, NULL, NULL, NULL},
};

/* The producer's end of a new line and the consumer's. */
PyObject *native_line(PyObject *Py_UNUSED(module), PyObject *args, PyObject *kwargs) {
    static char *names[] = {"one_way", NULL};
    int ends[2], one_way = 0;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "|$p:line", names, &one_way)) return NULL;
    if (chx_line_pair(ends, one_way) != 0) return PyErr_SetFromErrno(PyExc_OSError);
    PyObject *both = Py_BuildValue("(ii)", ends[0], ends[1]);
    for (int i = 0; i < 2 && !both; i++) close(ends[i]);
    return both;
}

static PyType_Slot doorbell_slots[] = {
    {Py_tp_new, doorbell_new},
    {Py_tp_dealloc, doorbell_dealloc},
    {Py_tp_methods, doorbell_methods},
    {Py_tp_getset, doorbell_getset},
    {Py_tp_doc, "What one event loop sleeps on, for all its routes."},
    {0, NULL},
};

static PyType_Spec doorbell_spec = {"shm.Doorbell", sizeof(Doorbell), 0, Py_TPFLAGS_DEFAULT, doorbell_slots};

int native_doorbell_init(PyObject *module) {
    native_Doorbell = native_add_type(module, &doorbell_spec);
    return native_Doorbell ? 0 : -1;
}
