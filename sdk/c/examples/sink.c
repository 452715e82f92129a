/* Sink: adds up the numbers that come as {"n": …} in CBOR, and leaves the sum as the node's result. */
#include <chronetix.h>

static int on_frame(chx_worker *worker, const chx_frame *frame, void *state) {
    char why[128] = "";
    const chx_value *value = chx_decode(frame->data, frame->size, why, sizeof why);
    if (!value) return chx_fail(worker, "frame %llu is no CBOR: %s", (unsigned long long)frame->seq, why);
    *(int64_t *)state += chx_int(chx_get(value, "n"), 0);
    chx_free_value(value);
    return 0;
}

static int on_stop(chx_worker *worker, void *state) {
    chx_writer result = {0};
    chx_write_int(&result, *(int64_t *)state);
    int set = chx_set_result(worker, chx_written(&result), result.size);
    chx_free_writer(&result);
    return set;
}

int main(void) {
    int64_t sum = 0;
    const chx_plugin plugin = {.frame = on_frame, .stop = on_stop};
    return chx_run(&plugin, &sum);
}
