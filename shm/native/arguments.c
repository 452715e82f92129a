/* Arguments of the vectorcall functions: names are compared only when keywords are given. */
#include "native.h"

static Py_ssize_t argument_index(const struct native_signature *signature, PyObject *name) {
    for (Py_ssize_t i = 0; signature->names[i]; i++)
        if (PyUnicode_CompareWithASCIIString(name, signature->names[i]) == 0) return i;
    return -1;
}

static int argument_keywords(const struct native_signature *signature, PyObject *const *values, PyObject *kwnames,
                             PyObject **out) {
    Py_ssize_t count = PyTuple_Size(kwnames);
    for (Py_ssize_t i = 0; i < count; i++) {
        PyObject *name = PyTuple_GetItem(kwnames, i);
        Py_ssize_t index = argument_index(signature, name);
        if (index < 0) {
            PyErr_Format(PyExc_TypeError, "%s() got an unexpected keyword argument '%U'", signature->function, name);
            return -1;
        }
        if (out[index]) {
            PyErr_Format(PyExc_TypeError, "%s() got multiple values for argument '%U'", signature->function, name);
            return -1;
        }
        out[index] = values[i];
    }
    return 0;
}

/* Borrowed references into `out`, which the caller has zeroed. */
int native_arguments(const struct native_signature *signature, PyObject *const *args, Py_ssize_t nargs,
                     PyObject *kwnames, PyObject **out) {
    if (nargs > signature->positional) {
        PyErr_Format(PyExc_TypeError, "%s() takes at most %zd positional arguments (%zd given)", signature->function,
                     signature->positional, nargs);
        return -1;
    }
    for (Py_ssize_t i = 0; i < nargs; i++) out[i] = args[i];
    if (kwnames && argument_keywords(signature, args + nargs, kwnames, out) != 0) return -1;
    for (Py_ssize_t i = 0; i < signature->required; i++) {
        if (out[i]) continue;
        PyErr_Format(PyExc_TypeError, "%s() missing required argument '%s'", signature->function, signature->names[i]);
        return -1;
    }
    return 0;
}

int native_u64(PyObject *value, const char *name, uint64_t *out) {
    if (!value) return 0;
    unsigned long long number = PyLong_AsUnsignedLongLong(value);
    if (number == (unsigned long long)-1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_OverflowError, "%s must be from 0 to 2^64 - 1", name);
        return -1;
    }
    *out = number;
    return 0;
}

int native_u32(PyObject *value, const char *name, uint32_t *out) {
    uint64_t number = *out;
    if (native_u64(value, name, &number) != 0) return -1;
    if (number > UINT32_MAX) {
        PyErr_Format(PyExc_OverflowError, "%s must be from 0 to 2^32 - 1", name);
        return -1;
    }
    *out = (uint32_t)number;
    return 0;
}

int native_i64(PyObject *value, const char *name, int64_t *out) {
    if (!value) return 0;
    long long number = PyLong_AsLongLong(value);
    if (number == -1 && PyErr_Occurred()) {
        if (PyErr_ExceptionMatches(PyExc_OverflowError))
            PyErr_Format(PyExc_OverflowError, "%s must be from -2^63 to 2^63 - 1", name);
        return -1;
    }
    *out = number;
    return 0;
}

/* What a frame is made from: a frame or a batch, the number of a source's item, or None. */
static int argument_origin(PyObject *value, struct chx_tags *tags) {
    if (!value || value == Py_None) return 0;
    if (PyLong_Check(value)) return tags->step = 1, native_u64(value, "origin", &tags->input_seq);
    if (PyObject_TypeCheck(value, native_Frame)) return native_frame_origin(value, tags), 0;
    if (PyObject_TypeCheck(value, native_Batch)) return native_batch_origin(value, tags), 0;
    PyErr_Format(PyExc_TypeError, "origin must be a shm.Frame, a shm.Batch, a number or None, not %R", value);
    return -1;
}

int native_tags(PyObject *const *values, struct chx_tags *tags) {
    int redelivered = 0, noted = 0;
    if (argument_origin(values[0], tags)) return -1;
    uint64_t due = tags->deadline_ns; /* of what it is made from: it may be shortened */
    if (native_u32(values[1], "schema", &tags->schema) || native_u64(values[2], "deadline_ns", &tags->deadline_ns) ||
        native_u64(values[3], "trace", &tags->trace) || native_u64(values[4], "input_seq", &tags->input_seq))
        return -1;
    if (due && (!tags->deadline_ns || due < tags->deadline_ns)) tags->deadline_ns = due;
    if (values[5] && (redelivered = PyObject_IsTrue(values[5])) < 0) return -1;
    if (redelivered) tags->flags |= CHX_FLAG_REDELIVERED;
    if (values[6] && (noted = PyObject_IsTrue(values[6])) < 0) return -1;
    if (noted) tags->flags |= CHX_FLAG_NOTED;
    return 0;
}
