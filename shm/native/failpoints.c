/* The failpoints of a test build; in any other, nothing. See failpoint.h. */
#include "native.h"

#ifdef CHX_FAILPOINTS

struct chx_failpoints chx_failpoints = {CHX_FAILPOINT_COUNT, 0};

#define FAILPOINT_NAME(name) #name,
static const char *const failpoint_names[] = {CHX_FAILPOINT_LIST(FAILPOINT_NAME)};

PyObject *native_failpoints(PyObject *Py_UNUSED(module), PyObject *Py_UNUSED(ignored)) {
    PyObject *names = PyTuple_New(CHX_FAILPOINT_COUNT);
    for (int i = 0; names && i < CHX_FAILPOINT_COUNT; i++) {
        PyObject *name = PyUnicode_FromString(failpoint_names[i]);
        if (!name || PyTuple_SetItem(names, i, name) != 0) Py_CLEAR(names);
    }
    return names;
}

PyObject *native_fail_at(PyObject *Py_UNUSED(module), PyObject *args) {
    const char *name;
    unsigned int visit = 1;
    if (!PyArg_ParseTuple(args, "s|I:fail_at", &name, &visit)) return NULL;
    for (int i = 0; i < CHX_FAILPOINT_COUNT; i++) {
        if (strcmp(name, failpoint_names[i]) != 0) continue;
        chx_failpoints = (struct chx_failpoints){(enum chx_failpoint)i, visit};
        Py_RETURN_NONE;
    }
    return PyErr_Format(PyExc_ValueError, "there is no failpoint %s", name);
}

#endif
