/* Callbacks: the loop around chx_next that most workers would write. */
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "worker.h"

#define FAILED 1
#define DAEMON_GONE 70

int chx_fail(chx_worker *worker, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(worker->failure, sizeof worker->failure, format, arguments);
    va_end(arguments);
    return CHX_FAILED;
}

void chx_keep(chx_worker *worker, const chx_frame *frame, chx_frame *mine) {
    *mine = *frame;
    if (frame == worker->handled) worker->kept_frame = 1;
}

int chx_set_result(chx_worker *worker, const void *cbor, size_t size) {
    char why[128] = "";
    const chx_value *value = chx_decode(cbor, size, why, sizeof why);
    if (!value) return fail(worker, CHX_E_FRAME_NOT_SENDABLE, "the result is no strict CBOR: %s", why);
    chx_free_value(value);
    uint8_t *copy = malloc(size);
    if (!copy) return no_memory(worker, "the result");
    memcpy(copy, cbor, size);
    free(worker->result);
    worker->result = copy;
    worker->result_size = size;
    return 0;
}

int chx_exit_code(int result) {
    if (result >= 0) return 0;
    bool gone = result == -CHX_E_CONNECTION_LOST || result == -CHX_E_CONNECTION_CUT || result == -CHX_E_REATTACH_REFUSED;
    return gone ? DAEMON_GONE : FAILED;
}

/* The exit code of a node that cannot go on. */
static int ended(chx_worker *worker, const char *phase, int result) {
    const char *text = result == CHX_FAILED ? worker->failure : worker->error;
    const char *name = result == CHX_FAILED ? "Failed" : result == CHX_AGAIN ? "WouldBlock" : chx_error_name(result);
    if (!*text) text = "the callback has returned a negative result and said nothing";
    fprintf(stderr, "chronetix worker: %s: %s\n", phase, text);
    if (chx_exit_code(result) == FAILED) chx_fault(worker, phase, name ? name : "Failed", text);
    return chx_exit_code(result);
}

static int call_frame(chx_worker *worker, const chx_plugin *plugin, void *state, const chx_frame *frame) {
    worker->handled = frame;
    worker->kept_frame = 0;
    int result = plugin->frame ? plugin->frame(worker, frame, state) : 0;
    worker->handled = NULL;
    if (!worker->kept_frame && result >= 0) chx_release(worker, frame); /* else a successor gets it again */
    return result;
}

/* One event. 0: go on; CHX_DONE: the node has done its work; else why not, and `*phase`. */
static int serve(chx_worker *worker, const chx_plugin *plugin, void *state, const chx_event *event, const char **phase) {
    switch (event->kind) {
        case CHX_START:
            *phase = "start";
            return plugin->start ? plugin->start(worker, state) : 0;
        case CHX_FRAME:
            *phase = "frame";
            return call_frame(worker, plugin, state, &event->frame);
        case CHX_TICK:
            *phase = "tick";
            return plugin->tick ? plugin->tick(worker, &event->tick, state) : 0;
        case CHX_MESSAGE:
        case CHX_REPLY:
            *phase = "message";
            return plugin->message ? plugin->message(worker, &event->message, state) : 0;
        case CHX_END:
            return CHX_DONE;
        default:
            return 0;
    }
}

/* Events and items in turn, until there are no more. */
static int loop(chx_worker *worker, const chx_plugin *plugin, void *state, const char **phase) {
    bool produces = plugin->produce != NULL;
    for (;;) {
        chx_event event;
        bool free_to_produce = produces && worker->life >= LIFE_STARTING;
        *phase = worker->life < LIFE_READY ? "wiring" : "frame";
        int result = free_to_produce ? glance(worker, &event) : chx_next(worker, CHX_FOREVER, &event);
        if (result < 0) return result;
        result = serve(worker, plugin, state, &event, phase);
        if (result == 0 && event.kind == CHX_NOTHING && free_to_produce) {
            *phase = "source";
            worker->steps++;
            result = plugin->produce(worker, state);
            if (result == CHX_DONE && worker->input_count) {
                produces = false;
                result = 0;
            }
        }
        if (result < 0 && result != CHX_GONE) return result;
        if (result == CHX_DONE || result == CHX_GONE) break;
    }
    return 0;
}

int chx_worker_run(chx_worker *worker, const chx_plugin *plugin, void *state) {
    const char *phase = "init";
    int result = plugin->init ? plugin->init(worker, state) : 0;
    if (result >= 0) result = loop(worker, plugin, state, &phase);
    if (result >= 0) {
        phase = "stop";
        if (plugin->stop) result = plugin->stop(worker, state);
        if (result == CHX_GONE) result = 0;
    }
    if (result >= 0) {
        uint8_t *value = worker->result;
        size_t size = worker->result_size;
        worker->result = NULL;
        result = chx_finish(worker, value, size);
        free(value);
    }
    return result < 0 ? ended(worker, phase, result) : 0;
}

static int ended_early(const chx_worker *worker, int result) {
    fprintf(stderr, "chronetix worker: %s\n", chx_error(worker));
    return chx_exit_code(result);
}

int chx_run(const chx_plugin *plugin, void *state) {
    chx_worker *worker;
    struct sigaction before;
    if (sigaction(SIGPIPE, NULL, &before) == 0 && before.sa_handler == SIG_DFL) signal(SIGPIPE, SIG_IGN);
    int result = chx_worker_inherit(&worker);
    int code = result < 0 ? ended_early(worker, result) : chx_worker_run(worker, plugin, state);
    chx_worker_close(worker);
    return code;
}
