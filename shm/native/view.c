/* shm.RouteView and shm.check: how an observer reads memory by descriptors that it was sent. Nothing here writes. */
#include "native.h"

typedef struct {
    PyObject_HEAD
    struct chx_view view;
    uint32_t uses; /* calls that look at the mappings: making objects of what they see may run other code */
    uint8_t closed;
} RouteView;

static int view_use(RouteView *self) {
    if (self->closed) return PyErr_Format(PyExc_ValueError, "the view is closed"), -1;
    self->uses++;
    return 0;
}

/* The last call that looks at the mappings unmaps them. */
static void view_leave(RouteView *self) {
    if (--self->uses == 0 && self->closed) chx_view_destroy(&self->view);
}

static PyObject *view_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {"ring_fd", "credit_fd", NULL};
    int ring_fd, credit_fd;
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, "ii:RouteView", names, &ring_fd, &credit_fd)) return NULL;
    struct chx_view view;
    struct chx_why why = {""};
    enum chx_status status = chx_view_init(&view, ring_fd, credit_fd, &why);
    if (status != CHX_OK) {
        native_raise_status(status, NULL, &why, 0);
        return NULL;
    }
    RouteView *self = PyObject_New(RouteView, type);
    if (!self) {
        chx_view_destroy(&view);
        return NULL;
    }
    self->view = view;
    self->uses = self->closed = 0;
    return (PyObject *)self;
}

static void view_dealloc(RouteView *self) {
    chx_view_destroy(&self->view);
    NATIVE_DEALLOC(self);
}

static int view_put(PyObject *into, const char *name, uint64_t value) {
    PyObject *number = PyLong_FromUnsignedLongLong(value);
    int failed = !number || PyDict_SetItemString(into, name, number);
    Py_XDECREF(number);
    return failed;
}

static int view_put_flag(PyObject *into, const char *name, int value) {
    return PyDict_SetItemString(into, name, value ? Py_True : Py_False);
}

/* Time blocked, up to now if the producer is blocked now. */
static uint64_t view_blocked_ns(const struct chx_producer_stats *stats) {
    uint64_t since = chx_read(&stats->blocked_since), now = chx_now_ns();
    return chx_read(&stats->blocked_ns) + (since && since < now ? now - since : 0);
}

/* Policy latest: frames that are overwritten and that the consumer has not found so yet. `oldest` first: both ends
 * move, and too small a number is corrected by the next look. */
static uint64_t view_unseen(const struct chx_view *view, uint64_t *next) {
    uint64_t oldest = 0;
    if (view->header.policy == CHX_POLICY_LATEST)
        oldest = atomic_load_explicit(&view->ring->oldest, memory_order_acquire);
    *next = chx_read(&view->credit->stats.next);
    return oldest > *next ? oldest - *next : 0;
}

/* Frames that its consumer has left in the route: it has closed it, and neither holds them nor will take them. */
static uint64_t view_unread(const struct chx_view *view) {
    if (!atomic_load_explicit(&view->credit->closed, memory_order_acquire)) return 0;
    uint64_t returned = chx_read(&view->credit->returned), oldest = chx_read(&view->ring->oldest);
    if (view->header.policy != CHX_POLICY_LATEST)
        returned += chx_read(&view->ring->stats.returned_before);
    else if (returned < oldest)
        returned = oldest;
    uint64_t committed = chx_read(&view->ring->stats.committed), out = committed > returned ? committed - returned : 0;
    uint64_t held = out ? chx_view_held(view, NULL, 0) : 0;
    return out > held ? out - held : 0;
}

/* Frames that were meant for the route and that its consumer does not get, by reason, and their sum. */
static int view_put_drops(PyObject *into, const struct chx_view *view) {
    const struct chx_ring *ring = view->ring;
    uint64_t next, unseen = view_unseen(view, &next);
    uint64_t overwritten = chx_read(&view->credit->stats.lost) + unseen, no_credit = chx_read(&ring->stats.dropped);
    uint64_t no_room = chx_read(&ring->losses.no_room), given_up = chx_read(&ring->losses.given_up);
    uint64_t unread = view_unread(view);
    PyObject *drops = PyDict_New();
    int failed = !drops || view_put(drops, "no_credit", no_credit) || view_put(drops, "no_room", no_room) ||
                 view_put(drops, "overwritten", overwritten) || view_put(drops, "given_up", given_up) ||
                 view_put(drops, "unread", unread) ||
                 PyDict_SetItemString(into, "drops", drops) || view_put(into, "next", next) ||
                 view_put(into, "unseen", unseen) ||
                 view_put(into, "dropped", no_credit + no_room + overwritten + given_up + unread) ||
                 view_put(into, "gave_up_after_ns", chx_read(&ring->losses.gave_up_after_ns));
    Py_XDECREF(drops);
    return failed;
}

static int view_put_ends(PyObject *into, const struct chx_view *view) {
    const struct chx_producer_stats *out = &view->ring->stats;
    const struct chx_consumer_stats *in = &view->credit->stats;
    /* returned first: both only grow, and returned never overtakes committed */
    int latest = view->header.policy == CHX_POLICY_LATEST;
    uint64_t returned = atomic_load_explicit(&view->credit->returned, memory_order_acquire);
    uint64_t oldest = latest ? chx_read(&view->ring->oldest) : 0;
    if (!latest) returned += chx_read(&out->returned_before);
    if (returned < oldest) returned = oldest; /* policy latest: what is overwritten does not come back */
    uint64_t before = latest ? returned : chx_read(&out->returned_before);
    uint64_t taken = chx_read(&in->taken), committed = chx_read(&out->committed);
    return view_put(into, "committed", committed) || view_put(into, "bytes", chx_read(&out->bytes)) ||
           view_put(into, "taken", taken) || view_put(into, "again", chx_read(&in->again)) || view_put(into,
           "returned", returned) ||
           view_put(into, "returned_before", before) ||
           view_put(into, "outstanding", committed > returned ? committed - returned : 0) ||
           view_put(into, "credits", view->header.credits) || view_put(into, "watermark", view->header.watermark) ||
           view_put(into, "would_block", chx_read(&out->would_block)) ||
           view_put(into, "blocked_ns", view_blocked_ns(out)) ||
           view_put(into, "producer_sleeps", chx_read(&out->sleeps)) ||
           view_put(into, "consumer_sleeps", chx_read(&in->sleeps)) ||
           view_put(into, "producer_wakes", chx_read(&out->wakes)) ||
           view_put(into, "consumer_wakes", chx_read(&in->wakes)) ||
           view_put_drops(into, view) || view_put(into, "skipped", chx_read(&out->skipped)) ||
           view_put_flag(into, "closed", chx_read(&view->ring->closed) != 0) ||
           view_put_flag(into, "detached", chx_read(&view->credit->closed) != 0) ||
           view_put(into, "max_outstanding", chx_read(&out->max_outstanding));
}

static PyObject *view_snapshot(RouteView *self, PyObject *Py_UNUSED(ignored)) {
    if (view_use(self)) return NULL;
    uint64_t counts[CHX_BUCKETS];
    uint64_t total = chx_view_latency(&self->view, counts);
    PyObject *snapshot = PyDict_New();
    if (snapshot && (view_put_ends(snapshot, &self->view) ||
                     view_put(snapshot, "p50_ns", chx_quantile(counts, total, 500)) ||
                     view_put(snapshot, "p99_ns", chx_quantile(counts, total, 990)) ||
                     view_put(snapshot, "max_ns", chx_read(&self->view.credit->stats.latency_max_ns))))
        Py_CLEAR(snapshot);
    view_leave(self);
    return snapshot;
}

#define VIEW_HELD 64 /* of those that are held, what is worth telling */

static PyObject *view_held(RouteView *self, PyObject *Py_UNUSED(ignored)) {
    if (self->closed) return PyErr_Format(PyExc_ValueError, "the view is closed");
    struct chx_held held[VIEW_HELD];
    uint32_t count = chx_view_held(&self->view, held, VIEW_HELD);
    PyObject *list = PyList_New(0);
    for (uint32_t i = 0; list && i < count && i < VIEW_HELD; i++) {
        PyObject *frame = Py_BuildValue("(KKK)", (unsigned long long)held[i].seq, (unsigned long long)held[i].bytes,
                                        (unsigned long long)held[i].trace);
        if (!frame || PyList_Append(list, frame) != 0) Py_CLEAR(list);
        Py_XDECREF(frame);
    }
    return list ? Py_BuildValue("(kN)", (unsigned long)count, list) : NULL;
}

static PyObject *view_oldest(RouteView *self, PyObject *Py_UNUSED(ignored)) {
    if (self->closed) return PyErr_Format(PyExc_ValueError, "the view is closed");
    struct chx_held held = {0};
    uint32_t count = chx_view_oldest(&self->view, &held);
    if (count == 0) Py_RETURN_NONE;
    uint64_t now = chx_now_ns();
    return Py_BuildValue("(IKK)", count, (unsigned long long)held.seq,
                         (unsigned long long)(now > held.time_ns ? now - held.time_ns : 0));
}

static PyObject *view_close(RouteView *self, PyObject *Py_UNUSED(ignored)) {
    self->closed = 1;
    if (!self->uses) chx_view_destroy(&self->view);
    Py_RETURN_NONE;
}

static PyMethodDef view_methods[] = {
    {"snapshot", (PyCFunction)view_snapshot, METH_NOARGS, "Counters of the route as both ends wrote them."},
    {"oldest_held", (PyCFunction)view_oldest, METH_NOARGS,
     "The oldest frame that was taken and not returned: (how many are, seq, ns since it was sent)."},
    {"held", (PyCFunction)view_held, METH_NOARGS, "Frames that were taken and not returned: (count, [(seq, bytes, trace)])."},
    {"close", (PyCFunction)view_close, METH_NOARGS, "Unmap. Idempotent."},
    {NULL, NULL, 0, NULL},
};

static PyType_Slot view_slots[] = {
    {Py_tp_new, view_new},
    {Py_tp_dealloc, view_dealloc},
    {Py_tp_methods, view_methods},
    {Py_tp_doc, "Read-only observer of one route: sees both ends' counters and never writes."},
    {0, NULL},
};

static PyType_Spec view_spec = {"shm.RouteView", sizeof(RouteView), 0, Py_TPFLAGS_DEFAULT, view_slots};

int native_view_init(PyObject *module) { return native_add_type(module, &view_spec) ? 0 : -1; }

static enum chx_status view_check_header(int fd, enum chx_kind kind, uint64_t size, struct chx_why *why) {
    struct chx_header header;
    ssize_t got;
    do {
        got = pread(fd, &header, sizeof header, 0);
    } while (got < 0 && errno == EINTR);
    if (got != sizeof header) return CHX_REFUSE(why, "%s header cannot be read: %s", chx_kind_name(kind), strerror(errno));
    return chx_header_check(&header, kind, size, why);
}

/* A copy of `size` bytes of a peer's memory, to be freed; NULL with errno. */
static void *view_copy(int fd, uint64_t size) {
    char *copy = aligned_alloc(CHX_PAGE, size);
    uint64_t got = 0;
    while (copy && got < size) {
        ssize_t some = pread(fd, copy + got, size - got, (off_t)got);
        if (some < 0 && errno == EINTR) continue;
        if (some <= 0) {
            if (some == 0) errno = ENODATA;
            free(copy);
            return NULL;
        }
        got += (uint64_t)some;
    }
    return copy;
}

/* Find where a dead producer's ring ends. The ring is read and not mapped, so that this works without free address
 * space, and a child of the producer that still writes cannot change the copy. */
PyObject *native_remains(PyObject *Py_UNUSED(module), PyObject *arg) {
    long fd = PyLong_AsLong(arg);
    if (fd == -1 && PyErr_Occurred()) return NULL;
    struct chx_why why = {""};
    struct chx_header header;
    struct chx_remains remains;
    uint64_t size = 0;
    enum chx_status status = chx_memory_check((int)fd, &size, &why);
    if (status == CHX_OK) status = view_check_header((int)fd, CHX_KIND_RING, size, &why);
    if (status == CHX_OK) {
        struct chx_ring *ring = view_copy((int)fd, size);
        if (!ring) {
            status = errno == ENOMEM ? CHX_NO_MEMORY
                     : errno == ENODATA ? CHX_REFUSE(&why, "the ring that was left was cut short")
                                        : CHX_SYSTEM;
        } else {
            memcpy(&header, ring, sizeof header);
            status = chx_header_check(&header, CHX_KIND_RING, size, &why);
            if (status == CHX_OK) status = chx_ring_remains(ring, &header, &remains, &why);
        }
        int error = errno;
        free(ring);
        errno = error;
    }
    if (status == CHX_OK)
        return Py_BuildValue("(KK)", (unsigned long long)remains.end, (unsigned long long)remains.input_seq);
    native_raise_status(status, NULL, &why, size);
    return NULL;
}

PyObject *native_check(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 2 || !PyUnicode_Check(args[1]))
        return PyErr_Format(PyExc_TypeError, "check() takes a descriptor and 'ring', 'credit' or 'segment'");
    long fd = PyLong_AsLong(args[0]);
    if (fd == -1 && PyErr_Occurred()) return NULL;
    struct chx_why why = {""};
    uint64_t size = 0;
    enum chx_status status = chx_memory_check((int)fd, &size, &why);
    if (PyUnicode_CompareWithASCIIString(args[1], "ring") == 0) {
        if (status == CHX_OK) status = view_check_header((int)fd, CHX_KIND_RING, size, &why);
    } else if (PyUnicode_CompareWithASCIIString(args[1], "credit") == 0) {
        if (status == CHX_OK) status = view_check_header((int)fd, CHX_KIND_CREDIT, size, &why);
    } else if (PyUnicode_CompareWithASCIIString(args[1], "segment") != 0) {
        return PyErr_Format(PyExc_ValueError, "kind must be 'ring', 'credit' or 'segment', not %R", args[1]);
    }
    if (status == CHX_OK) return PyLong_FromUnsignedLongLong(size);
    native_raise_status(status, NULL, &why, 0);
    return NULL;
}

PyObject *native_missing_features(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
    int features = chx_features();
    PyObject *names = PyList_New(0);
    for (int i = 0; names && i < CHX_FEATURES; i++) {
        if (features >> i & 1) continue;
        PyObject *name = PyUnicode_FromString(chx_feature_names[i]);
        if (!name || PyList_Append(names, name) != 0) Py_CLEAR(names);
        Py_XDECREF(name);
    }
    PyObject *tuple = names ? PyList_AsTuple(names) : NULL;
    Py_XDECREF(names);
    return tuple;
}
