/* Plugin as a shared library (artifact kind Dylib): passes frames on, and counts their bytes. */
#include <chronetix_plugin.h>
#include <stdlib.h>

static const char *describe(void) { return "counter 1.0"; }

static int init(chx_worker *worker, void **state) {
    *state = calloc(1, sizeof(uint64_t));
    return *state ? 0 : chx_fail(worker, "no memory");
}

static int on_frame(chx_worker *worker, const chx_frame *frame, void *state) {
    *(uint64_t *)state += frame->size;
    return chx_send(worker, frame->data, frame->size, NULL);
}

static int stop(chx_worker *worker, void *state) {
    chx_writer result = {0};
    chx_write_count(&result, *(uint64_t *)state);
    int set = chx_set_result(worker, chx_written(&result), result.size);
    chx_free_writer(&result);
    free(state);
    return set;
}

CHRONETIX_PLUGIN = {CHRONETIX_PLUGIN_HEAD, .describe = describe, .init = init, .on_frame = on_frame, .stop = stop};
