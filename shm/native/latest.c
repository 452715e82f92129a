/* Taking frames of policy latest: a frame is copied out of shared memory, and the copy is kept only if the frame was
 * not overwritten meanwhile. */
#include "native.h"

#define LATEST_TORN 16u  /* frames torn in a row before the caller gets a turn */
#define LATEST_STEP 256u /* frames that a batch has room for at first; it doubles */

/* Memory for payloads, aligned as in shared memory; never NULL but when there is none. */
void *native_copy_room(uint64_t bytes) {
    void *room = NULL;
    if (posix_memalign(&room, CHX_LINE, bytes ? chx_stride(bytes) : CHX_LINE) == 0) return room;
    PyErr_NoMemory();
    return NULL;
}

/* Copy the frame that was found and begun. Long copies let other threads run, which may take from this consumer too,
 * and go on to the next stage: what is copied stays mapped until the last of them is done, and that one gives it up. */
static int latest_copy(Consumer *consumer, const struct chx_taken *taken, void *to) {
    uint64_t bytes = chx_taken_bytes(taken);
    if (bytes <= NATIVE_NO_GIL_BYTES) {
        memcpy(to, taken->data, bytes);
    } else {
        Py_BEGIN_ALLOW_THREADS
        memcpy(to, taken->data, bytes);
        Py_END_ALLOW_THREADS
    }
    int whole = chx_latest_keep(&consumer->end, taken);
    native_consumer_returned(consumer);
    return whole;
}

/* One call copies no more bytes than the producer has memory, torn ones counted: an extent that many descriptors name
 * is copied again only by a further call. The first frame always fits. */
static int latest_within(const struct chx_taken *taken, uint64_t *room, int first) {
    uint64_t bytes = chx_taken_bytes(taken);
    if (!first && bytes > *room) return 0;
    *room -= bytes < *room ? bytes : *room;
    return 1;
}

/* The next frame, copied. As chx_consumer_take; WOULD_BLOCK: torn again and again, come back; NO_MEMORY: an
 * exception. */
enum chx_status native_latest_take(Consumer *consumer, struct chx_taken *taken, void **copy) {
    uint64_t room = consumer->end.mapped;
    for (uint32_t torn = 0; torn < LATEST_TORN; torn++) {
        enum chx_status status = chx_consumer_look(&consumer->end, taken);
        if (status != CHX_OK) return status;
        if (!latest_within(taken, &room, torn == 0)) break;
        *copy = native_copy_room(chx_taken_bytes(taken));
        if (!*copy) return CHX_NO_MEMORY;
        chx_latest_begin(&consumer->end, taken);
        if (latest_copy(consumer, taken, *copy)) {
            taken->data = *copy;
            return CHX_OK;
        }
        free(*copy);
    }
    return CHX_WOULD_BLOCK;
}

/* A batch that grows: descriptions, and payloads one after another, each at a multiple of a line. */
struct latest_run {
    struct chx_taken *taken;
    uint8_t *copy;
    uint64_t used, room;
    uint64_t left; /* bytes that this call may still copy */
    uint32_t frames, places, copies;
};

static int latest_grow(struct latest_run *run, uint64_t bytes) {
    if (run->frames == run->places) {
        uint32_t places = run->places ? 2 * run->places : LATEST_STEP;
        struct chx_taken *taken = PyMem_Realloc(run->taken, places * sizeof *taken);
        if (!taken) return PyErr_NoMemory(), -1;
        run->taken = taken;
        run->places = places;
    }
    if (run->copy && bytes <= run->room - run->used) return 0;
    uint64_t room = run->used + (bytes > run->used ? bytes : run->used);
    uint8_t *copy = native_copy_room(room);
    if (!copy) return -1;
    if (run->used) memcpy(copy, run->copy, run->used);
    free(run->copy);
    run->copy = copy;
    run->room = chx_stride(room);
    return 0;
}

/* One more frame. As chx_consumer_look; WOULD_BLOCK when it was torn or is more than one call copies, NO_MEMORY with an
 * exception. */
static enum chx_status latest_append(Consumer *consumer, struct latest_run *run) {
    struct chx_taken taken;
    enum chx_status status = chx_consumer_look(&consumer->end, &taken);
    if (status != CHX_OK) return status;
    if (!latest_within(&taken, &run->left, run->copies++ == 0)) return CHX_WOULD_BLOCK;
    if (latest_grow(run, chx_stride(chx_taken_bytes(&taken))) != 0) return CHX_NO_MEMORY;
    uint8_t *to = run->copy + run->used;
    chx_latest_begin(&consumer->end, &taken);
    if (!latest_copy(consumer, &taken, to)) return CHX_WOULD_BLOCK;
    run->taken[run->frames++] = taken;
    run->used += chx_stride(chx_taken_bytes(&taken));
    return CHX_OK;
}

/* Up to `limit` frames that are there; statuses as native_latest_take. */
enum chx_status native_latest_take_run(Consumer *consumer, uint32_t limit, uint32_t port, struct chx_taken *first,
                                       PyObject **found) {
    struct latest_run run = {.left = consumer->end.mapped};
    enum chx_status status = CHX_OK;
    for (uint32_t torn = 0; run.frames < limit && torn < LATEST_TORN;) {
        status = latest_append(consumer, &run);
        if (status == CHX_WOULD_BLOCK)
            torn++;
        else if (status != CHX_OK)
            break;
    }
    if (run.frames == 0) {
        PyMem_Free(run.taken);
        free(run.copy);
        return status;
    }
    PyErr_Clear(); /* without memory for more, what there is will do */
    uint64_t inside = 0;
    for (uint32_t i = 0; i < run.frames; i++) {
        run.taken[i].data = run.copy + inside;
        inside += chx_stride(chx_taken_bytes(&run.taken[i]));
    }
    *first = run.taken[0];
    *found = native_batch_new(consumer, run.taken, run.copy, run.frames, port);
    return CHX_OK;
}
