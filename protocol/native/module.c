/* The module chronetix.protocol._cbor. */
#include "cbor.h"

static int add_type(PyObject *module, PyType_Spec *spec, PyTypeObject **place)
{
    *place = (PyTypeObject *)PyType_FromModuleAndSpec(module, spec, NULL);
    return *place == NULL ? -1 : PyModule_AddType(module, *place);
}

static int fill(PyObject *module)
{
    cbor_state *state = PyModule_GetState(module);
    state->error = PyErr_NewExceptionWithDoc(
        "chronetix.protocol.cbor.CborError",
        "These bytes, or this value, are not CBOR as we speak it; the text says which rule is broken.", PyExc_ValueError,
        NULL);
    if (state->error == NULL || PyModule_AddObjectRef(module, "CborError", state->error) < 0) return -1;
    if (add_type(module, &chronetix_decoder_spec, &state->decoder) < 0) return -1;
    if (add_type(module, &chronetix_encoder_spec, &state->encoder) < 0) return -1;
    if (add_type(module, &chronetix_encoded_spec, &state->encoded) < 0) return -1;
    if (PyModule_AddIntConstant(module, "MAX_DEPTH", MAX_DEPTH) < 0) return -1;
    return PyModule_AddIntConstant(module, "MAX_ITEMS", MAX_ITEMS);
}

static int traverse(PyObject *module, visitproc visit, void *arg)
{
    cbor_state *state = PyModule_GetState(module);
    Py_VISIT(state->error);
    Py_VISIT(state->decoder);
    Py_VISIT(state->encoder);
    Py_VISIT(state->encoded);
    return 0;
}

static int clear(PyObject *module)
{
    cbor_state *state = PyModule_GetState(module);
    Py_CLEAR(state->error);
    Py_CLEAR(state->decoder);
    Py_CLEAR(state->encoder);
    Py_CLEAR(state->encoded);
    for (int i = 0; i < KEYS; i++) Py_CLEAR(state->keys.text[i]);
    return 0;
}

static void release(void *module)
{
    clear(module);
}

static PyMethodDef functions[] = {
    {"loads", chronetix_loads, METH_VARARGS, "loads(data, max_items=MAX_ITEMS)\n--\n\nThe one item that data holds."},
    {"dumps", chronetix_dumps, METH_O, "dumps(value)\n--\n\nvalue as CBOR."},
    {"frame", chronetix_frame, METH_VARARGS,
     "frame(value, limit)\n--\n\nvalue as CBOR of at most limit bytes, behind their number as u32."},
    {"check", chronetix_check, METH_O, "check(value)\n--\n\nRaise CborError for what dumps does not take."},
    {"check_json", chronetix_check_json, METH_O,
     "check_json(value)\n--\n\nRaise CborError for what check refuses, and for bytes, NaN and infinities."},
    {"dismantle", chronetix_dismantle, METH_VARARGS,
     "dismantle(pile, budget)\n--\n\n"
     "Free about budget items of the lists and maps in pile, a list of the caller's alone; True once it is empty.\n"
     "Containers that somebody else has too are left as they are. Raises MemoryError."},
    {NULL, NULL, 0, NULL},
};

static PyModuleDef_Slot slots[] = {{Py_mod_exec, fill}, {0, NULL}};

static struct PyModuleDef definition = {
    PyModuleDef_HEAD_INIT,
    .m_name = "_cbor",
    .m_doc = "Strict CBOR; protocol/cbor.py is its face and has the rules.",
    .m_size = sizeof(cbor_state),
    .m_methods = functions,
    .m_slots = slots,
    .m_traverse = traverse,
    .m_clear = clear,
    .m_free = release,
};

PyMODINIT_FUNC PyInit__cbor(void)
{
    return PyModuleDef_Init(&definition);
}
