/* shm.Step, and the loops of a plugin's thread: frames through a function, or one that may wait; items out of an
 * iterator.
 *
 * A frame costs one call of the plugin; taking, sending and returning it need no bytecode. What is seldom needs none of
 * it here: a loop comes back to its caller as soon as the mailbox has an event, and raises what the plugin raises.
 * A plugin that is no Python function runs no bytecode either, so other threads and signals get their turn from here.
 */
#include "native.h"

#include <structmember.h>

PyTypeObject *native_Step;

#define LOOP_TURNS 256u /* steps after which other threads and signal handlers get a turn */

typedef struct {
    PyObject_HEAD
    PyObject *doing, *source, *interrupt; /* NULL: None */
    long long count, item;
    char finishing, cancelled;
} Step;

static PyObject *step_new(PyTypeObject *type, PyObject *args, PyObject *kwargs) {
    static char *names[] = {NULL};
    if (!PyArg_ParseTupleAndKeywords(args, kwargs, ":Step", names)) return NULL;
    return PyType_GenericAlloc(type, 0);
}

static int step_traverse(Step *self, visitproc visit, void *arg) {
    Py_VISIT(Py_TYPE((PyObject *)self));
    Py_VISIT(self->doing);
    Py_VISIT(self->source);
    Py_VISIT(self->interrupt);
    return 0;
}

static int step_clear(Step *self) {
    Py_CLEAR(self->doing);
    Py_CLEAR(self->source);
    Py_CLEAR(self->interrupt);
    return 0;
}

static void step_dealloc(Step *self) {
    PyObject_GC_UnTrack(self);
    step_clear(self);
    NATIVE_DEALLOC_GC(self);
}

static PyMemberDef step_members[] = {
    {"doing", T_OBJECT, offsetof(Step, doing), 0, "The frame or event that the plugin works on; None while it waits."},
    {"source", T_OBJECT, offsetof(Step, source), 0, "The items of a node without inputs; None for other nodes."},
    {"interrupt", T_OBJECT, offsetof(Step, interrupt), 0, "The exception that ends every wait of the node; None: none."},
    {"count", T_LONGLONG, offsetof(Step, count), 0, "Steps begun."},
    {"item", T_LONGLONG, offsetof(Step, item), 0, "The number of the last item that the source has sent."},
    {"finishing", T_BOOL, offsetof(Step, finishing), 0, "The plugin wants no more."},
    {"cancelled", T_BOOL, offsetof(Step, cancelled), 0, "The tasks of an asynchronous plugin are cancelled."},
    {NULL, 0, 0, 0, NULL},
};

static PyType_Slot step_slots[] = {
    {Py_tp_new, step_new},           {Py_tp_dealloc, step_dealloc}, {Py_tp_traverse, step_traverse},
    {Py_tp_clear, step_clear},       {Py_tp_members, step_members},
    {Py_tp_doc, "Where a plugin's thread is. That thread alone writes it; others read it."},
    {0, NULL},
};

static PyType_Spec step_spec = {"shm.Step", sizeof(Step), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_HAVE_GC, step_slots};

/* A step begins with `doing` (a reference is taken), or ends with NULL. */
static inline void step_at(Step *self, PyObject *doing) {
    PyObject *before = self->doing;
    self->doing = Py_XNewRef(doing);
    Py_XDECREF(before);
}

struct loop {
    Step *step;
    PyObject *mailbox, *emit;
    Outlet *outlet; /* whose `send` emit is: no call is needed; NULL: emit is called */
    uint32_t turns;
    int batches; /* what is taken is batches, not frames */
};

static void loop_init(struct loop *loop, PyObject *step, PyObject *mailbox, PyObject *emit) {
    *loop = (struct loop){.step = (Step *)step, .mailbox = mailbox, .emit = emit, .outlet = native_outlet_of(emit)};
}

/* 1: the mailbox has an event; 0: go on; -1: a signal handler raised. */
static inline int loop_look(struct loop *loop) {
    if (++loop->turns % LOOP_TURNS == 0) {
        Py_BEGIN_ALLOW_THREADS
        Py_END_ALLOW_THREADS
        if (PyErr_CheckSignals() != 0) return -1;
    }
    Py_ssize_t events = PyObject_Size(loop->mailbox);
    return events < 0 ? -1 : events > 0;
}

/* Send to the routes that are left: the end of one of several is told once, and then the others go on. */
static int loop_send(Outlet *outlet, PyObject *value, const struct chx_tags *tags,
                     int (*send)(Outlet *, PyObject *, const struct chx_tags *)) {
    for (Py_ssize_t routes = outlet->count; send(outlet, value, tags) != 0; routes--) {
        if (routes <= 1 || !PyErr_ExceptionMatches(native_route_closed)) return -1;
        PyErr_Clear();
    }
    return 0;
}

/* Send what the plugin gave; `origin` is made only for an emit that is called. */
static int loop_emit(const struct loop *loop, PyObject *value, const struct chx_tags *tags, PyObject *frame) {
    PyObject *interrupt = loop->step->interrupt;
    if (interrupt && interrupt != Py_None) {
        PyErr_SetObject((PyObject *)Py_TYPE(interrupt), interrupt);
        return -1;
    }
    if (loop->outlet) return loop_send(loop->outlet, value, tags, native_outlet_send);
    PyObject *forever = PyLong_FromLong(-1);
    PyObject *origin = frame ? Py_NewRef(frame) : PyLong_FromUnsignedLongLong(tags->input_seq), *sent = NULL;
    if (forever && origin) sent = PyObject_CallFunctionObjArgs(loop->emit, value, forever, origin, NULL);
    Py_XDECREF(forever);
    Py_XDECREF(origin);
    Py_XDECREF(sent);
    return sent ? 0 : -1;
}

/* One frame or batch through the plugin. Its credit is returned when what was made of it has been committed. */
static int loop_frame(struct loop *loop, PyObject *frame, PyObject *on_frame, PyObject *ctx) {
    loop->step->count++;
    step_at(loop->step, frame);
    PyObject *result = PyObject_CallFunctionObjArgs(on_frame, frame, ctx, NULL);
    if (!result) return -1; /* `doing` stays: it is what failed */
    step_at(loop->step, NULL);
    int failed = 0;
    if (result != Py_None) {
        struct chx_tags tags = {0};
        if (loop->outlet) loop->batches ? native_batch_origin(frame, &tags) : native_frame_origin(frame, &tags);
        failed = loop_emit(loop, result, &tags, frame);
    }
    Py_DECREF(result);
    if (failed) { /* kept, as if the call had failed: its credit must not return with the last reference */
        step_at(loop->step, frame);
        return -1;
    }
    loop->batches ? native_batch_release(frame) : native_frame_release(frame);
    return 0;
}

/* run_frames(inlet, limit, on_frame, ctx, step, mailbox, emit): True when all inputs have ended, False when the mailbox
 * has something. */
PyObject *native_run_frames(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    int64_t limit = 0;
    if (nargs != 7) return PyErr_Format(PyExc_TypeError, "run_frames() takes 7 arguments (%zd given)", nargs);
    if (!PyObject_TypeCheck(args[0], native_Inlet) || !PyObject_TypeCheck(args[4], native_Step))
        return PyErr_Format(PyExc_TypeError, "run_frames() takes a shm.Inlet and a shm.Step, not %R and %R", args[0],
                            args[4]);
    if (native_i64(args[1], "limit", &limit)) return NULL;
    if (limit < 0) return PyErr_Format(PyExc_ValueError, "limit must not be negative, but is %lld", (long long)limit);
    if (limit > (int64_t)CHX_CREDITS_MAX) limit = CHX_CREDITS_MAX;
    struct loop loop;
    loop_init(&loop, args[4], args[5], args[6]);
    loop.batches = limit > 0;
    for (;;) {
        int events = loop_look(&loop);
        if (events < 0) return NULL;
        if (events) Py_RETURN_FALSE;
        PyObject *frame = native_inlet_take(args[0], (uint32_t)limit, -1);
        if (!frame) return NULL;
        if (frame == Py_None) {
            Py_DECREF(frame);
            if (native_inlet_ended(args[0])) Py_RETURN_TRUE;
            continue;
        }
        int failed = loop_frame(&loop, frame, args[2], args[3]);
        Py_DECREF(frame);
        if (failed) return NULL;
    }
}

/* run_items(items, step, mailbox, emit): True when the iterator is exhausted, False when the mailbox has something. */
PyObject *native_run_items(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    if (nargs != 4) return PyErr_Format(PyExc_TypeError, "run_items() takes 4 arguments (%zd given)", nargs);
    if (!PyIter_Check(args[0]) || !PyObject_TypeCheck(args[1], native_Step))
        return PyErr_Format(PyExc_TypeError, "run_items() takes an iterator and a shm.Step, not %R and %R", args[0],
                            args[1]);
    struct loop loop;
    loop_init(&loop, args[1], args[2], args[3]);
    Step *step = loop.step;
    for (int events = 0; events == 0; events = loop_look(&loop)) {
        step->count++;
        step_at(step, args[0]);
        PyObject *item = PyIter_Next(args[0]);
        if (!item && PyErr_Occurred()) return NULL;
        step_at(step, NULL);
        if (!item) Py_RETURN_TRUE;
        int failed = 0;
        if (item != Py_None) {
            struct chx_tags tags = {.step = 1, .input_seq = (uint64_t)++step->item};
            failed = loop_emit(&loop, item, &tags, NULL);
        }
        Py_DECREF(item);
        if (failed) return NULL;
    }
    if (PyErr_Occurred()) return NULL;
    Py_RETURN_FALSE;
}

/* ---- asynchronous plugins --------------------------------------------------------------------------------------- */

/* A callback that may have to be awaited, up to its first wait. */
struct stretch {
    PyObject *coroutine; /* that waits; NULL: the callback has ended, or has returned something else */
    PyObject *value;     /* what `coroutine` waits for, or the callback's result */
};

static void stretch_clear(struct stretch *stretch) {
    Py_CLEAR(stretch->coroutine);
    Py_CLEAR(stretch->value);
}

/* Call, and run what is to be awaited as far as it goes without a wait. `coroutines`: the type of coroutines. */
static int stretch_run(struct stretch *stretch, PyObject *on_frame, PyObject *frame, PyObject *ctx,
                       PyObject *coroutines) {
    *stretch = (struct stretch){.value = PyObject_CallFunctionObjArgs(on_frame, frame, ctx, NULL)};
    if (!stretch->value) return -1;
    if ((PyObject *)Py_TYPE(stretch->value) != coroutines) return 0;
    stretch->coroutine = stretch->value;
    stretch->value = NULL;
    PySendResult sent = PyIter_Send(stretch->coroutine, Py_None, &stretch->value);
    if (sent != PYGEN_NEXT) Py_CLEAR(stretch->coroutine);
    return sent == PYGEN_ERROR ? -1 : 0;
}

/* Send the result if that needs no wait. 1: it is sent, or there was none; 0: it is for the caller; -1: exception. */
static int stretch_emit(const struct loop *loop, const struct stretch *stretch, PyObject *frame) {
    if (stretch->coroutine) return 0;
    if (stretch->value == Py_None) return 1;
    if (!loop->outlet || PyObject_HasAttrString(stretch->value, "__await__")) return 0;
    struct chx_tags tags = {0};
    native_frame_origin(frame, &tags);
    if (loop_send(loop->outlet, stretch->value, &tags, native_outlet_try_send) == 0) return 1;
    if (!PyErr_ExceptionMatches(native_would_block)) return -1;
    PyErr_Clear();
    return 0;
}

/* run_awaited(inlet, on_frame, ctx, step, mailbox, emit, enter, doing, coroutines, most): (frame, coroutine, value) for
 * what has to be awaited or sent by the caller, True when others are to have their turn, False when nothing is there. */
PyObject *native_run_awaited(PyObject *Py_UNUSED(module), PyObject *const *args, Py_ssize_t nargs) {
    int64_t most = 0;
    if (nargs != 10) return PyErr_Format(PyExc_TypeError, "run_awaited() takes 10 arguments (%zd given)", nargs);
    if (!PyObject_TypeCheck(args[0], native_Inlet) || !PyObject_TypeCheck(args[3], native_Step))
        return PyErr_Format(PyExc_TypeError, "run_awaited() takes a shm.Inlet and a shm.Step, not %R and %R", args[0],
                            args[3]);
    if (native_i64(args[9], "most", &most)) return NULL;
    struct loop loop;
    loop_init(&loop, args[3], args[4], args[5]);
    uint32_t process = native_process();
    for (; most > 0; most--) {
        int events = loop_look(&loop);
        if (events < 0) return NULL;
        if (events) Py_RETURN_TRUE;
        PyObject *frame = native_inlet_take(args[0], 0, 0);
        if (!frame) return NULL;
        if (frame == Py_None) {
            Py_DECREF(frame);
            Py_RETURN_FALSE;
        }
        PyObject *entered = PyObject_CallFunctionObjArgs(args[6], frame, NULL), *before = Py_XNewRef(loop.step->doing);
        struct stretch stretch = {0};
        int sent = -1;
        if (entered) {
            loop.step->count++;
            step_at(loop.step, args[7]);
            if (stretch_run(&stretch, args[1], frame, args[2], args[8]) == 0)
                sent = process == native_process() ? stretch_emit(&loop, &stretch, frame) : 0;
            step_at(loop.step, before);
        }
        Py_XDECREF(entered);
        Py_XDECREF(before);
        PyObject *left = NULL;
        if (sent > 0) native_frame_release(frame);
        if (sent == 0)
            left = PyTuple_Pack(3, frame, stretch.coroutine ? stretch.coroutine : Py_None, stretch.value);
        stretch_clear(&stretch);
        Py_DECREF(frame);
        if (sent <= 0) return left;
    }
    Py_RETURN_TRUE;
}

int native_plugin_loop_init(PyObject *module) {
    native_Step = native_add_type(module, &step_spec);
    return native_Step ? 0 : -1;
}
