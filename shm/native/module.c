/* The module chronetix.shm._native: one file a type, gathered here. Loaded once a process, by the main interpreter. */
#include "native.h"

PyTypeObject *native_add_type(PyObject *module, PyType_Spec *spec) {
    PyObject *type = PyType_FromModuleAndSpec(module, spec, NULL);
    if (!type) return NULL;
    if (PyModule_AddType(module, (PyTypeObject *)type) != 0) Py_CLEAR(type);
    return (PyTypeObject *)type; /* one reference stays with the static pointer */
}

static PyMethodDef module_methods[] = {
    {"check", (PyCFunction)(void (*)(void))native_check, METH_FASTCALL,
     "Verify seals, size and (for ring and credit) the header; bytes."},
    {"line", (PyCFunction)(void (*)(void))native_line, METH_VARARGS | METH_KEYWORDS,
     "Both ends of a new line, one for each end of a route."},
    {"missing_features", native_missing_features, METH_NOARGS, "What this kernel lacks, by name."},
    {"run_frames", (PyCFunction)(void (*)(void))native_run_frames, METH_FASTCALL,
     "Frames of an inlet through a plugin's function, until its inputs have ended (True) or an event is there (False)."},
    {"run_items", (PyCFunction)(void (*)(void))native_run_items, METH_FASTCALL,
     "Send the items of an iterator, until it is exhausted (True) or an event is there (False)."},
    {"run_awaited", (PyCFunction)(void (*)(void))native_run_awaited, METH_FASTCALL,
     "Frames of an inlet through an asynchronous plugin's function, as far as that goes without a wait."},
    {"remains", (PyCFunction)native_remains, METH_O,
     "(end, input_seq) of a dead producer's RING: behind its last position, and the highest of its last frames."},
#ifdef CHX_FAILPOINTS
    {"failpoints", native_failpoints, METH_NOARGS, "Places at which this test build can die."},
    {"fail_at", native_fail_at, METH_VARARGS, "Die at a place, at the visit given (1: the next)."},
#endif
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef module_definition = {
    PyModuleDef_HEAD_INIT, "chronetix.shm._native", "Rings, credits and arenas of one process.", -1, module_methods, NULL, NULL,
    NULL,
    NULL,
};

PyMODINIT_FUNC PyInit__native(void) {
    PyObject *module = PyModule_Create(&module_definition);
    if (!module) return NULL;
    if (native_process_init() || native_errors_init(module) || native_doorbell_init(module) ||
        native_arena_init(module) || native_producer_init(module) || native_outlet_init(module) ||
        native_loan_init(module) || native_consumer_init(module) || native_frame_init(module) ||
        native_batch_init(module) ||
        native_inlet_init(module) || native_view_init(module) || native_plugin_loop_init(module) ||
        PyModule_AddIntConstant(module, "ABI_VERSION", CHX_ABI)) {
        Py_DECREF(module);
        return NULL;
    }
    return module;
}
