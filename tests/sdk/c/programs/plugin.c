/* Shared libraries for the host, by -DKIND=…: 0 counts ticks, messages and frames; 1 crashes at its third frame; 2 has a
 * table of another ABI; 3 fails in init; 4 has the smallest table; 5 a source of the numbers from 1 to `count`. */
#include <chronetix_plugin.h>

static uint64_t counted, sent;

#if KIND == 5
static int produce(chx_worker *worker, void *state) {
    (void)state;
    if (sent >= (uint64_t)chx_int(chx_get(chx_params(worker), "count"), 0)) return CHX_DONE;
    sent++;
    return chx_send(worker, &sent, sizeof sent, NULL);
}
CHRONETIX_PLUGIN = {CHRONETIX_PLUGIN_HEAD, .produce = produce};
#elif KIND == 4
CHRONETIX_PLUGIN = {.abi = CHRONETIX_PLUGIN_ABI, .size = 8, .produce = (int (*)(chx_worker *, void *))1};
#else
static const char *describe(void) { return "a plugin of the tests"; }

static int init(chx_worker *worker, void **state) {
    *state = &counted;
    return KIND == 3 ? chx_fail(worker, "init does not like this") : 0;
}

static int on_start(chx_worker *worker, void *state) {
    (void)state;
    return chx_subscribe(worker, "beat");
}

static int on_frame(chx_worker *worker, const chx_frame *frame, void *state) {
    ++*(uint64_t *)state;
    volatile uintptr_t nowhere = 0;
    if (KIND == 1 && counted == 3) *(volatile int *)nowhere = 1;
    return chx_outputs(worker) ? chx_send(worker, frame->data, frame->size, NULL) : 0;
}

static int on_tick(chx_worker *worker, const chx_tick *tick, void *state) {
    (void)state;
    const chx_envelope envelope = {.topic = "beat", .content_type = "application/octet-stream"};
    return chx_publish(worker, &envelope, &tick->sequence, sizeof tick->sequence);
}

static int on_message(chx_worker *worker, const chx_message *message, void *state) {
    (void)message;
    (void)state;
    return ++sent == 3 ? chx_log(worker, "info", "heard 3") : 0;
}

static int stop(chx_worker *worker, void *state) {
    chx_writer result = {0};
    chx_write_count(&result, *(uint64_t *)state);
    int set = chx_set_result(worker, chx_written(&result), result.size);
    chx_free_writer(&result);
    return set;
}

CHRONETIX_PLUGIN = {CHRONETIX_PLUGIN_HEAD, .describe = describe, .init = init, .on_start = on_start, .on_frame = on_frame,
                    .on_tick = on_tick, .on_message = on_message, .stop = stop
#if KIND == 2
                    , .abi = 2
#endif
};
#endif
