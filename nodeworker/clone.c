/* What a worker process needs of the kernel and Python's library lacks: being started as the daemon's own child, from the
 * launcher, in a control group of its own; a limit on its memory; and waking up from its doorbell when a signal comes.
 *
 * clone3(CLONE_PARENT | CLONE_PIDFD, exit_signal 0): the new process's parent is our parent (the daemon), which therefore
 * owns its exit status, and we get a pidfd to hand over. It is fork otherwise, so the interpreter is told before and after.
 * A raw clone3 skips libc's pthread_atfork handlers: the caller must have one thread only, and must not have started
 * libraries with threads of their own. The child's thread id, which libc caches, is written by the kernel as fork() does.
 *
 * And the end of a process: limited in time by a thread that needs no interpreter (limit_end), and without the part that
 * only gives memory back page by page (end_with).
 */
#include <Python.h>

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <link.h>
#include <linux/sched.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static unsigned long long libraries_at_birth; /* loaded ones, ever, when this process was forked; 0: it was not */

static int count_libraries(struct dl_phdr_info *info, size_t size, void *into)
{
    (void)size;
    *(unsigned long long *)into = info->dlpi_adds;
    return 1; /* each entry has the same number */
}

static unsigned long long libraries(void)
{
    unsigned long long count = 0;
    dl_iterate_phdr(count_libraries, &count);
    return count;
}

static PyObject *clone_fork(PyObject *self, PyObject *args)
{
    (void)self;
    int as_sibling = 1, group = -1;
    if (!PyArg_ParseTuple(args, "|pi:fork", &as_sibling, &group))
        return NULL;

    int pidfd = -1;
    struct clone_args request = {0};
    request.flags = CLONE_PIDFD | (as_sibling ? CLONE_PARENT : 0);
    request.pidfd = (uint64_t)(uintptr_t)&pidfd;
    request.exit_signal = 0;
    if (group >= 0) { /* it is in its control group before its first instruction, so nothing it does can come before that */
        request.flags |= CLONE_INTO_CGROUP;
        request.cgroup = (uint64_t)group;
    }
    int *tid_address = NULL;
    if (prctl(PR_GET_TID_ADDRESS, &tid_address, 0, 0, 0) == 0 && tid_address != NULL) {
        request.flags |= CLONE_CHILD_SETTID | CLONE_CHILD_CLEARTID;
        request.child_tid = (uint64_t)(uintptr_t)tid_address;
    }

    PyOS_BeforeFork();
    long pid = syscall(SYS_clone3, &request, sizeof request);
    int error = errno;
    if (pid == 0) {
        PyOS_AfterFork_Child();
        libraries_at_birth = libraries();
        return Py_BuildValue("(ii)", 0, -1);
    }
    PyOS_AfterFork_Parent();
    if (pid < 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    return Py_BuildValue("(li)", pid, pidfd);
}

/* A copy of `fd` above `last`, or `fd` itself if it is there already. */
static int above(int fd, int last)
{
    return fd > last ? fd : fcntl(fd, F_DUPFD_CLOEXEC, last + 1);
}

static PyObject *clone_settle(PyObject *self, PyObject *args)
{
    (void)self;
    int control, out, err;
    long parent;
    const char *name;
    if (!PyArg_ParseTuple(args, "iiils:settle", &control, &out, &err, &parent, &name))
        return NULL;
    setsid(); /* fails only for a leader of a process group, which a new process is not */
    if (prctl(PR_SET_PDEATHSIG, (unsigned long)SIGKILL, 0, 0, 0) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (getppid() != (pid_t)parent)
        _exit(70); /* it ended before we hung on it */
    control = above(control, 3);
    out = above(out, 3);
    err = above(err, 3);
    if (control < 0 || out < 0 || err < 0 || dup2(out, 1) < 0 || dup2(err, 2) < 0 || dup3(control, 3, O_CLOEXEC) < 0 ||
        syscall(SYS_close_range, 4u, UINT_MAX, 0) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    sigset_t none;
    sigemptyset(&none);
    if (sigprocmask(SIG_SETMASK, &none, NULL) != 0 || prctl(PR_SET_NAME, name, 0, 0, 0) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    return PyLong_FromLong(3);
}

/* Becoming another user clears both; the kernel means to protect programs that have privileges, which this one has lost. */
static PyObject *clone_hang_on(PyObject *self, PyObject *args)
{
    (void)self;
    long parent;
    if (!PyArg_ParseTuple(args, "l:hang_on", &parent))
        return NULL;
    if (prctl(PR_SET_PDEATHSIG, (unsigned long)SIGKILL, 0, 0, 0) != 0 || prctl(PR_SET_DUMPABLE, 1ul, 0, 0, 0) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    if (getppid() != (pid_t)parent)
        _exit(70); /* it ended before we hung on it */
    Py_RETURN_NONE;
}

static PyObject *clone_outlive_parent(PyObject *self, PyObject *ignored)
{
    (void)self;
    (void)ignored;
    if (prctl(PR_SET_PDEATHSIG, 0ul, 0, 0, 0) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* Python's own handler only notes the signal; a thread that is about to sleep would sleep on. Ours also rings the eventfd
 * that it sleeps on, so that it comes back to the interpreter, which then calls the handler written in Python. */
static volatile int ring_descriptor = -1;
static struct sigaction ring_inner[NSIG];

static void ring_handler(int signum)
{
    int error = errno;
    ring_inner[signum].sa_handler(signum);
    if (ring_descriptor >= 0) {
        uint64_t one = 1;
        ssize_t written = write(ring_descriptor, &one, sizeof one); /* full means that it was rung already */
        (void)written;
    }
    errno = error;
}

static PyObject *clone_ring_on_signal(PyObject *self, PyObject *args)
{
    (void)self;
    int signum, descriptor;
    if (!PyArg_ParseTuple(args, "ii:ring_on_signal", &signum, &descriptor))
        return NULL;
    if (signum < 1 || signum >= NSIG)
        return PyErr_Format(PyExc_ValueError, "no signal has number %d", signum);
    struct sigaction action;
    if (sigaction(signum, NULL, &action) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    ring_descriptor = descriptor;
    /* One without a handler (the plugin has put the default back) interrupts nothing, or ends the process: its choice. */
    int handled = action.sa_handler != SIG_DFL && action.sa_handler != SIG_IGN;
    if (handled && descriptor >= 0 && action.sa_handler != ring_handler) {
        ring_inner[signum] = action;
        action.sa_handler = ring_handler;
        if (sigaction(signum, &action, NULL) != 0)
            return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

/* Private writable memory now (VmData), in bytes; -1 if the kernel does not tell. statm's 6th number, in pages. */
static long long private_data(void)
{
    char text[256];
    int fd = open("/proc/self/statm", O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return -1;
    ssize_t length = read(fd, text, sizeof text - 1);
    close(fd);
    if (length <= 0)
        return -1;
    text[length] = 0;
    long long pages = -1;
    if (sscanf(text, "%*s %*s %*s %*s %*s %lld", &pages) != 1)
        return -1;
    return pages * sysconf(_SC_PAGESIZE);
}

static PyObject *clone_limit_data(PyObject *self, PyObject *args)
{
    (void)self;
    unsigned long long more;
    int from_now = 1;
    if (!PyArg_ParseTuple(args, "K|p:limit_data", &more, &from_now))
        return NULL;
    long long base = from_now ? private_data() : 0;
    struct rlimit limit;
    if (base < 0 || getrlimit(RLIMIT_DATA, &limit) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    rlim_t wanted = (rlim_t)base + (rlim_t)more;
    if (wanted < limit.rlim_max)
        limit.rlim_cur = limit.rlim_max = wanted; /* the hard one too: the plugin must not lift it */
    else
        limit.rlim_cur = limit.rlim_max;
    if (setrlimit(RLIMIT_DATA, &limit) != 0)
        return PyErr_SetFromErrno(PyExc_OSError);
    Py_RETURN_NONE;
}

/* -- the end --------------------------------------------------------------------------------------------- */

/* The limit of the end, and what is said when it is over: `frame` to the daemon, `text` to stderr. */
static struct {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int watched;
    struct timespec due;
    int code, control;
    Py_buffer frame, text;
} end_limit = {.lock = PTHREAD_MUTEX_INITIALIZER};

static int end_is_due(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec > end_limit.due.tv_sec ||
           (now.tv_sec == end_limit.due.tv_sec && now.tv_nsec >= end_limit.due.tv_nsec);
}

/* A thread that runs no Python: the interpreter may be held by whoever hangs, or be half gone. */
static void *end_watch(void *ignored)
{
    (void)ignored;
    pthread_mutex_lock(&end_limit.lock);
    while (!end_is_due())
        pthread_cond_timedwait(&end_limit.changed, &end_limit.lock, &end_limit.due);
    if (end_limit.control >= 0)
        (void)!send(end_limit.control, end_limit.frame.buf, (size_t)end_limit.frame.len, MSG_DONTWAIT | MSG_NOSIGNAL);
    struct pollfd err = {.fd = 2, .events = POLLOUT};
    if (poll(&err, 1, 100) == 1)
        (void)!write(2, end_limit.text.buf, (size_t)end_limit.text.len);
    _exit(end_limit.code);
}

static int end_start_watch(void)
{
    pthread_condattr_t monotonic;
    pthread_condattr_init(&monotonic);
    pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
    pthread_cond_init(&end_limit.changed, &monotonic);
    pthread_attr_t attributes;
    pthread_attr_init(&attributes);
    pthread_attr_setdetachstate(&attributes, PTHREAD_CREATE_DETACHED);
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before); /* signals are the others' affair */
    pthread_t thread;
    int error = pthread_create(&thread, &attributes, end_watch, NULL);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    end_limit.watched = error == 0;
    return error;
}

static PyObject *clone_limit_end(PyObject *self, PyObject *args)
{
    (void)self;
    double seconds;
    int code, control;
    Py_buffer frame, text;
    if (!PyArg_ParseTuple(args, "diiy*y*:limit_end", &seconds, &code, &control, &frame, &text))
        return NULL;
    if (!(seconds >= 0 && seconds < 1e9)) {
        PyBuffer_Release(&frame);
        PyBuffer_Release(&text);
        return PyErr_Format(PyExc_ValueError, "the limit of the end must be from 0 to 10^9 seconds");
    }
    pthread_mutex_lock(&end_limit.lock);
    clock_gettime(CLOCK_MONOTONIC, &end_limit.due);
    long long ns = end_limit.due.tv_nsec + (long long)(seconds * 1e9);
    end_limit.due.tv_sec += ns / 1000000000;
    end_limit.due.tv_nsec = ns % 1000000000;
    Py_buffer before[2] = {end_limit.frame, end_limit.text};
    end_limit.code = code, end_limit.control = control;
    end_limit.frame = frame, end_limit.text = text; /* of bytes objects, which are kept until the next call */
    int first = !end_limit.watched, error = first ? end_start_watch() : 0;
    if (!first)
        pthread_cond_signal(&end_limit.changed);
    pthread_mutex_unlock(&end_limit.lock);
    if (before[0].obj != NULL) {
        PyBuffer_Release(&before[0]);
        PyBuffer_Release(&before[1]);
    }
    if (error != 0) {
        errno = error;
        return PyErr_SetFromErrno(PyExc_OSError);
    }
    Py_RETURN_NONE;
}

static int end_code;

/* What is left once the interpreter is gone: what C libraries have to do at the end of a process. Nothing if all of them
 * were loaded before this process was forked; their destructors would copy thousands of shared pages. */
static void end_process(void)
{
    if (libraries_at_birth == 0 || libraries() != libraries_at_birth)
        exit(end_code);
    fflush(NULL);
    _exit(end_code);
}

/* The interpreter's dict goes after all modules and objects, and before the interpreter gives its own memory back. */
static void end_interpreter(PyObject *ignored)
{
    (void)ignored;
    if (libraries_at_birth != 0 && libraries() == libraries_at_birth)
        end_process();
}

static PyObject *clone_end_with(PyObject *self, PyObject *args)
{
    (void)self;
    if (!PyArg_ParseTuple(args, "i:end_with", &end_code))
        return NULL;
    PyObject *dict = PyInterpreterState_GetDict(PyInterpreterState_Get());
    PyObject *last = dict ? PyCapsule_New(&end_code, NULL, end_interpreter) : NULL;
    if (last == NULL || PyDict_SetItemString(dict, "chronetix.nodeworker._clone.end_with", last) != 0) {
        Py_XDECREF(last);
        return PyErr_Occurred() ? NULL : PyErr_NoMemory();
    }
    Py_DECREF(last);
    if (Py_AtExit(end_process) != 0)
        return PyErr_Format(PyExc_RuntimeError, "there is no room for another function at the interpreter's end");
    Py_RETURN_NONE;
}

static PyMethodDef methods[] = {
    {"fork", clone_fork, METH_VARARGS, "fork(as_sibling=True, cgroup=-1) -> (pid, pidfd) in the caller, (0, -1) in the new process."},
    {"settle", clone_settle, METH_VARARGS,
     "settle(control, out, err, parent, name) -> 3: what a new process does first; see _clone.pyi."},
    {"hang_on", clone_hang_on, METH_VARARGS, "hang_on(parent): as settle, after becoming another user; see _clone.pyi."},
    {"outlive_parent", clone_outlive_parent, METH_NOARGS, "outlive_parent(): the parent's end is no end of this process."},
    {"limit_data", clone_limit_data, METH_VARARGS,
     "limit_data(more, from_now=True): bytes of private memory that this process may have beyond what it has now."},
    {"ring_on_signal", clone_ring_on_signal, METH_VARARGS,
     "ring_on_signal(signum, descriptor): the signal's handler also rings this eventfd; -1: none."},
    {"limit_end", clone_limit_end, METH_VARARGS,
     "limit_end(seconds, code, control, frame, text): exit with `code` then, after these last words; see _clone.pyi."},
    {"end_with", clone_end_with, METH_VARARGS, "end_with(code): the interpreter's end is the process's, with this code."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{0, NULL}};

static struct PyModuleDef module = {
    PyModuleDef_HEAD_INIT,
    .m_name = "chronetix.nodeworker._clone",
    .m_doc = "Processes with a chosen parent, and what a new one does first.",
    .m_methods = methods,
    .m_slots = slots,
};

PyMODINIT_FUNC PyInit__clone(void);

PyMODINIT_FUNC PyInit__clone(void)
{
    return PyModuleDef_Init(&module);
}
