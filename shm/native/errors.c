/* The exceptions, and how a status of the headers becomes one. Those about a route carry it as args[1]. */
#include "native.h"

#include <stdarg.h>

PyObject *native_would_block, *native_route_closed, *native_peer_fault, *native_frame_too_large;

static int error_add(PyObject *module, PyObject **slot, const char *name, const char *doc, PyObject *base) {
    char qualified[64];
    snprintf(qualified, sizeof qualified, "shm.%s", name);
    *slot = PyErr_NewExceptionWithDoc(qualified, doc, base, NULL);
    return *slot && PyModule_AddObjectRef(module, name, *slot) == 0 ? 0 : -1;
}

int native_errors_init(PyObject *module) {
    if (error_add(module, &native_would_block, "WouldBlock",
                  "No credit or no room, and the caller chose not to wait. Nothing was written.", NULL) ||
        error_add(module, &native_route_closed, "RouteClosed",
                  "The other end has closed or detached; args[1] is the route.", NULL) ||
        error_add(module, &native_peer_fault, "PeerFault",
                  "The peer wrote what the ABI forbids; the route is detached. args[1] is the route.", NULL) ||
        error_add(module, &native_frame_too_large, "FrameTooLarge", "The frame can never fit the arena's limit.",
                  PyExc_ValueError))
        return -1;
    return 0;
}

void native_raise(PyObject *type, PyObject *route, const char *format, ...) {
    va_list args;
    va_start(args, format);
    PyObject *message = PyUnicode_FromFormatV(format, args);
    va_end(args);
    if (!message) return;
    PyObject *value = PyTuple_Pack(2, message, route ? route : Py_None);
    Py_DECREF(message);
    if (!value) return;
    PyErr_SetObject(type, value);
    Py_DECREF(value);
}

/* `bytes`: how much memory was asked for, 0 if none. */
void native_raise_status(enum chx_status status, PyObject *route, const struct chx_why *why, uint64_t bytes) {
    if (status == CHX_FAULT) {
        if (route)
            native_raise(native_peer_fault, route, "route %U: %s", route, why->text);
        else
            native_raise(native_peer_fault, NULL, "%s", why->text);
    } else if (status == CHX_NO_MEMORY && bytes == 0) {
        PyErr_SetString(PyExc_MemoryError, "cannot map a peer's shared memory: free some memory, or raise the limit of this "
                                           "process's group or address space");
    } else if (status == CHX_NO_MEMORY) {
        PyErr_Format(PyExc_MemoryError,
                     "cannot reserve %llu bytes of shared memory: free some, or raise the memory limit of this process's "
                     "group",
                     (unsigned long long)bytes);
    } else {
        PyErr_SetFromErrno(PyExc_OSError);
    }
}

/* Raise if the parent process has made `what` before a fork. */
int native_foreign(uint32_t owner, const char *what) {
    if (owner == native_process()) return 0;
    PyErr_Format(PyExc_RuntimeError, "this %s belongs to the process that made it: make a new one after fork()", what);
    return -1;
}
