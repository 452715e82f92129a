/* Outlet.send_many: records of one size as consecutive frames, in runs.
 *
 * A run is as many frames as fit the free credits and RUN_BYTES: one claim, one extent, one reading of the clock, one
 * fence and at most one ring. An error that ends it half-way is raised by the next call: this one returns how many were
 * sent.
 */
#include "native.h"

#define RUN_BYTES NATIVE_NO_GIL_BYTES

static uint32_t run_longest(uint64_t size, uint64_t left) {
    uint64_t fit = RUN_BYTES / chx_stride(size);
    if (fit > CHX_CREDITS_MAX) fit = CHX_CREDITS_MAX;
    if (fit > left) fit = left;
    return fit ? (uint32_t)fit : 1;
}

/* Records of `size` bytes lie chx_stride(size) apart in the extent. */
static void run_copy(Outlet *self, const struct native_claim *claim, const uint8_t *from) {
    uint64_t size = claim->length, stride = chx_stride(size);
    if (claim->extent.handle == CHX_NO_EXTENT) return;
    if (size == stride || claim->frames == 1) {
        native_outlet_copy(self, claim->extent.data, from, size * claim->frames);
        return;
    }
    uint8_t *to = claim->extent.data;
    for (uint32_t i = 0; i < claim->frames; i++, to += stride, from += size) memcpy(to, from, size);
    CHX_FAILPOINT(WRITE_COPIED);
}

/* One run of at most `left` frames; how many it had, or -1 with an exception. */
static int64_t run_send(Outlet *self, const uint8_t *from, uint64_t size, uint64_t left, int64_t timeout_ns,
                        const struct chx_tags *tags) {
    struct native_claim claim;
    int64_t unused;
    if (native_outlet_claim(self, size, run_longest(size, left), timeout_ns, &claim) != 0) return -1;
    run_copy(self, &claim, from);
    return native_outlet_commit(self, &claim, size, tags, &unused) == 0 ? (int64_t)claim.frames : -1;
}

/* After `sent` frames an exception is set: whether the next call can raise it instead. */
static int run_is_told_later(uint64_t sent) {
    if (sent == 0) return 0;
    if (!PyErr_ExceptionMatches(native_would_block)) {
        if (!PyErr_ExceptionMatches(native_route_closed) && !PyErr_ExceptionMatches(native_peer_fault)) return 0;
        if (native_told) native_told->told = 0;
    }
    PyErr_Clear();
    return 1;
}

static PyObject *run_send_all(Outlet *self, const uint8_t *from, uint64_t size, uint64_t count, int64_t timeout_ns,
                              struct chx_tags tags) {
    uint64_t deadline = timeout_ns > 0 ? native_deadline(timeout_ns) : 0, sent = 0;
    while (sent < count) {
        int64_t frames = run_send(self, from + sent * size, size, count - sent, timeout_ns, &tags);
        if (frames >= 0) {
            sent += (uint64_t)frames;
            tags.input_seq += (uint64_t)frames * tags.step;
        }
        if (frames < 0 && run_is_told_later(sent)) break;
        if (frames < 0 || PyErr_CheckSignals() != 0) return NULL;
        if (timeout_ns <= 0) continue;
        uint64_t now = chx_now_ns();
        timeout_ns = now < deadline ? (int64_t)(deadline - now) : 0;
    }
    return PyLong_FromUnsignedLongLong(sent);
}

PyObject *native_outlet_send_many(Outlet *self, PyObject *const *args, Py_ssize_t nargs, PyObject *kwnames) {
    static const char *const names[] = {"data", "size", "timeout_ns", NATIVE_TAGS, NULL};
    static const struct native_signature signature = {"send_many", names, 2, 4};
    PyObject *given[3 + NATIVE_TAG_COUNT] = {NULL};
    struct chx_tags tags = {0};
    int64_t timeout_ns = -1, size = 0;
    if (native_arguments(&signature, args, nargs, kwnames, given) || native_i64(given[1], "size", &size) ||
        native_i64(given[2], "timeout_ns", &timeout_ns) || native_tags(given + 3, &tags))
        return NULL;
    if (size < 1) return PyErr_Format(PyExc_ValueError, "size must be at least 1, not %lld", (long long)size);
    Py_buffer data;
    if (native_outlet_data(self, given[0], &data) != 0) return NULL;
    PyObject *sent = NULL;
    if (data.len % size)
        PyErr_Format(PyExc_ValueError, "%zd bytes are no whole number of frames of %lld bytes", data.len,
                     (long long)size);
    else
        sent = run_send_all(self, data.buf, (uint64_t)size, (uint64_t)(data.len / size), timeout_ns, tags);
    PyBuffer_Release(&data);
    return sent;
}
