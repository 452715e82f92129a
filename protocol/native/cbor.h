/* Strict CBOR for CPython: the declarations that the files of this folder share. The rules are in protocol/cbor.py.
 *
 * All input comes from other processes, and memory may run out at any allocation: then MemoryError is raised,
 * everything that was made so far is freed, and the process goes on. No function here recurses, aborts or asserts.
 */
#ifndef CHRONETIX_CBOR_H
#define CHRONETIX_CBOR_H

#define PY_SSIZE_T_CLEAN
#include <Python.h>

#include <stdbool.h>
#include <stdint.h>
#include <string.h>

enum {
    MAX_DEPTH = 64,         /* containers inside each other */
    MAX_ITEMS = 1 << 20,    /* items of one document, keys counted */
    TEXT_PER_ITEM = 512,    /* bytes of a string that cost as much work as an item */
    KEYS = 256,             /* map keys that are remembered, a power of two */
    LONGEST_KEY = 32,       /* bytes of a key that is worth remembering */
};

/* Map keys that were read lately, by the hash of their bytes: the same few dozen come again and again. Bounded by KEYS *
 * LONGEST_KEY bytes, whatever a peer sends. */
typedef struct {
    PyObject *text[KEYS];
} key_cache;

typedef struct {
    PyObject *error; /* CborError */
    PyTypeObject *decoder;
    PyTypeObject *encoder;
    PyTypeObject *encoded;
    key_cache keys;
} cbor_state;

extern PyType_Spec chronetix_decoder_spec;
extern PyType_Spec chronetix_encoder_spec;
extern PyType_Spec chronetix_encoded_spec;

/* The module's functions; docstrings stand in module.c. */
PyObject *chronetix_loads(PyObject *module, PyObject *args);
PyObject *chronetix_dumps(PyObject *module, PyObject *value);
PyObject *chronetix_frame(PyObject *module, PyObject *args);
PyObject *chronetix_check(PyObject *module, PyObject *value);
PyObject *chronetix_check_json(PyObject *module, PyObject *value);
PyObject *chronetix_dismantle(PyObject *module, PyObject *args);

#endif
