/* A worker with a role for each thing that the tests look at; `params.role` names it. What a role sends and checks, the
 * Python plugins in ../../plugins/mixed.py send and check in the same way.
 */
#include <chronetix.h>
#include <fcntl.h>
#include <inttypes.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

struct own {
    const char *role;
    uint64_t number, frames, bytes, wrong, redelivered, ticks, missed, messages, rounds;
    size_t largest;
    uint8_t *room;
    int ledger;
    chx_frame kept[8];
    uint32_t kept_count;
    char answers[256];
};

static const chx_value *param(const chx_worker *worker, const char *name) { return chx_get(chx_params(worker), name); }

static bool is(const struct own *own, const char *role) { return strcmp(own->role, role) == 0; }

static uint64_t number_of(const chx_frame *frame) {
    uint64_t number = 0;
    memcpy(&number, frame->data, frame->size < sizeof number ? frame->size : sizeof number);
    return number;
}

/* ---- frames whose content tells which they are ------------------------------------------------------------------- */

static uint8_t byte_at(uint64_t number, size_t at) { return (uint8_t)(number * 131 + at * 7 + (at >> 8)); }

static void fill(uint8_t *data, size_t size, uint64_t number) {
    for (size_t i = 0; i < size; i++) data[i] = byte_at(number, i);
}

static bool is_whole(const uint8_t *data, size_t size, uint64_t number) {
    for (size_t i = 0; i < size; i++)
        if (data[i] != byte_at(number, i)) return false;
    return true;
}

static size_t size_of(const chx_worker *worker, uint64_t number) {
    const chx_value *sizes = param(worker, "sizes");
    return (size_t)chx_int(chx_at(sizes, (size_t)(number % chx_size_of(sizes))), 0);
}

static int send_sized(chx_worker *worker, struct own *own) {
    if (own->number >= (uint64_t)chx_int(param(worker, "count"), 0)) return CHX_DONE;
    size_t size = size_of(worker, own->number);
    chx_loan loan;
    int result = chx_reserve(worker, size, NULL, &loan);
    if (result < 0) return result;
    fill(loan.data, size, own->number++);
    return chx_commit(worker, &loan, size, NULL);
}

/* ---- sources ---------------------------------------------------------------------------------------------------- */

static int produce(chx_worker *worker, void *state) {
    struct own *own = state;
    if (is(own, "sized")) return send_sized(worker, own);
    if (is(own, "paced")) nanosleep(&(struct timespec){.tv_nsec = 200000}, NULL);
    uint64_t count = (uint64_t)chx_int(param(worker, "count"), INT64_MAX);
    if (own->number >= count) return CHX_DONE;
    own->number++;
    int sent = chx_send(worker, &own->number, sizeof own->number, NULL);
    if (sent == 0 && chx_bool(param(worker, "grows"), false) && own->number % 100 == 0) {
        chx_loan loan; /* a large loan that is given back, so that the arena grows and shrinks */
        sent = chx_reserve(worker, 4u << 20, NULL, &loan);
        if (sent == 0) chx_cancel(worker, &loan);
    }
    return sent;
}

/* ---- frames ----------------------------------------------------------------------------------------------------- */

static int forward(chx_worker *worker, const chx_frame *frame) {
    return chx_send(worker, frame->data, frame->size, NULL);
}

static int forward_in_place(chx_worker *worker, const chx_frame *frame) {
    chx_loan loan;
    int result = chx_reserve(worker, frame->size + 100, NULL, &loan);
    if (result < 0) return result;
    if (frame->size) memcpy(loan.data, frame->data, frame->size);
    return chx_commit(worker, &loan, frame->size, NULL);
}

/* Frames are given back later, and not in their order. */
static int forward_late(chx_worker *worker, const chx_frame *frame, struct own *own) {
    int sent = forward(worker, frame);
    if (sent < 0) return sent;
    chx_keep(worker, frame, &own->kept[own->kept_count++]);
    if (own->kept_count < 8) return 0;
    for (unsigned i = 0; i < 8; i++) chx_release(worker, &own->kept[(i * 3) % 8]);
    own->kept_count = 0;
    return 0;
}

static int check(chx_worker *worker, const chx_frame *frame, struct own *own) {
    int64_t pause_us = chx_int(param(worker, "pause_us"), 0);
    uint64_t number = own->frames++;
    own->bytes += frame->size;
    own->redelivered += frame->redelivered;
    if (frame->size > own->largest) own->largest = frame->size;
    own->wrong += !is_whole(frame->data, frame->size, number) || frame->size != size_of(worker, number);
    if (pause_us) nanosleep(&(struct timespec){.tv_nsec = pause_us * 1000}, NULL);
    return 0;
}

static int write_ledger(chx_worker *worker, const chx_frame *frame, const struct own *own) {
    char line[256];
    int size = snprintf(line, sizeof line, "%" PRId64 " %s %" PRIu64 " %d\n", chx_int(chx_get(chx_config(worker), "incarnation"), 0),
                        frame->route, number_of(frame), frame->redelivered);
    return write(own->ledger, line, (size_t)size) == size ? 0 : chx_fail(worker, "the ledger cannot be written");
}

static int noted(chx_worker *worker, const chx_frame *frame) {
    chx_writer meta = {0};
    chx_write_map(&meta, 1);
    chx_write_text(&meta, "camera");
    chx_write_int(&meta, 3);
    chx_how how = {.meta = chx_written(&meta), .meta_size = meta.size, .stamp_ns = 1700000000000000001};
    int sent = chx_send(worker, frame->data, frame->size, &how);
    chx_free_writer(&meta);
    return sent;
}

static void raise_segfault(void) {
    volatile uintptr_t nowhere = 0;
    *(volatile int *)nowhere = 1;
}

static int on_frame(chx_worker *worker, const chx_frame *frame, void *state) {
    struct own *own = state;
    own->rounds++;
    int64_t at = chx_int(param(worker, "at"), 10);
    bool first = chx_int(chx_get(chx_config(worker), "incarnation"), 0) == 0;
    if (is(own, "forward")) return forward(worker, frame);
    if (is(own, "in_place")) return forward_in_place(worker, frame);
    if (is(own, "prints")) { /* more than a pipe holds, by lines */
        for (int line = 0; line < 2400; line++) printf("%0100" PRIu64 " %025d\n", number_of(frame), line);
        return forward(worker, frame);
    }
    if (is(own, "late")) return forward_late(worker, frame, own);
    if (is(own, "check")) return check(worker, frame, own);
    if (is(own, "ledger")) return write_ledger(worker, frame, own);
    if (is(own, "noted")) return noted(worker, frame);
    if (is(own, "fails") && own->rounds == (uint64_t)at) return chx_fail(worker, "frame %d is one too many", (int)at);
    if (is(own, "crashes") && own->rounds == (uint64_t)at && first) raise_segfault();
    if (is(own, "fails") || is(own, "crashes")) return forward(worker, frame);
    if (is(own, "counts")) {
        own->frames++;
        own->number = number_of(frame);
        int64_t pause_us = chx_int(param(worker, "pause_us"), 0);
        if (pause_us) nanosleep(&(struct timespec){.tv_nsec = pause_us * 1000}, NULL);
        return 0;
    }
    if (is(own, "reads_notes")) {
        const chx_value *meta = chx_decode(frame->meta, frame->meta_size, NULL, 0);
        own->frames++;
        own->wrong += chx_int(chx_get(meta, "camera"), 0) != 3 || frame->stamp_ns != 1700000000000000001;
        chx_free_value(meta);
        return 0;
    }
    if (is(own, "asks")) {
        const chx_envelope envelope = {.topic = "double", .content_type = "application/octet-stream"};
        uint64_t request;
        chx_message answer;
        int result = chx_request(worker, &envelope, frame->data, frame->size, 5000000000, &request);
        if (result == 0) result = chx_await(worker, request, &answer);
        if (result < 0) return result;
        if (answer.failure) return chx_fail(worker, "no answer: %s", answer.failure);
        own->frames++;
        uint64_t doubled = 0;
        if (answer.size == sizeof doubled) memcpy(&doubled, answer.data, sizeof doubled);
        own->wrong += doubled != 2 * number_of(frame);
        return 0;
    }
    return chx_fail(worker, "no role %s", own->role);
}

/* ---- ticks, messages -------------------------------------------------------------------------------------------- */

static int on_tick(chx_worker *worker, const chx_tick *tick, void *state) {
    struct own *own = state;
    own->ticks++;
    own->missed += tick->missed;
    if (!is(own, "ticks")) return 0;
    const chx_envelope envelope = {.topic = "beat", .content_type = "application/octet-stream"};
    int told = chx_publish(worker, &envelope, &tick->sequence, sizeof tick->sequence);
    return told;
}

static int on_message(chx_worker *worker, const chx_message *message, void *state) {
    struct own *own = state;
    own->messages++;
    if (message->corr_id && message->size == sizeof(uint64_t)) {
        uint64_t doubled;
        memcpy(&doubled, message->data, sizeof doubled);
        doubled *= 2;
        return chx_reply(worker, message, &doubled, sizeof doubled, "application/octet-stream");
    }
    if (message->failure) {
        snprintf(own->answers, sizeof own->answers, "%s", message->failure);
        return chx_log(worker, "info", "no answer");
    }
    return own->messages == 3 ? chx_log(worker, "info", "heard 3") : 0;
}

/* ---- beginning and end ------------------------------------------------------------------------------------------ */

static int init(chx_worker *worker, void *state) {
    struct own *own = state;
    own->role = chx_text(param(worker, "role"), "");
    const char *ledger = chx_text(param(worker, "ledger"), NULL);
    if (ledger) own->ledger = open(ledger, O_WRONLY | O_APPEND | O_CREAT | O_CLOEXEC, 0600);
    if (ledger && own->ledger < 0) return chx_fail(worker, "%s cannot be opened", ledger);
    if (is(own, "refuses")) return chx_fail(worker, "not today");
    return 0;
}

static int start(chx_worker *worker, void *state) {
    struct own *own = state;
    own->number = chx_resume_after(worker);
    printf("role %s\n", own->role);
    fflush(stdout);
    const char *topic = chx_text(param(worker, "subscribes"), NULL);
    int result = topic ? chx_subscribe(worker, topic) : 0;
    if (result == 0 && is(own, "asks_nobody")) {
        const chx_envelope envelope = {.topic = "nobody-listens"};
        uint64_t request;
        result = chx_request(worker, &envelope, "1", 1, 5000000000, &request);
    }
    if (result == 0) result = chx_log(worker, "info", "started as %s", own->role);
    return result;
}

static int stop(chx_worker *worker, void *state) {
    struct own *own = state;
    for (uint32_t i = 0; i < own->kept_count; i++) chx_release(worker, &own->kept[i]);
    if (own->ledger > 0) close(own->ledger);
    const struct { const char *name; uint64_t count; } counts[] = {
        {"number", own->number},   {"frames", own->frames}, {"bytes", own->bytes},       {"wrong", own->wrong},
        {"redelivered", own->redelivered}, {"ticks", own->ticks}, {"messages", own->messages}, {"largest", own->largest},
    };
    chx_writer result = {0};
    size_t entries = sizeof counts / sizeof *counts;
    chx_write_map(&result, entries + 1);
    for (size_t i = 0; i < entries; i++) {
        chx_write_text(&result, counts[i].name);
        chx_write_count(&result, counts[i].count);
    }
    chx_write_text(&result, "answers");
    chx_write_text(&result, own->answers);
    int set = chx_set_result(worker, chx_written(&result), result.size);
    chx_free_writer(&result);
    return set;
}

/* ---- a loop of its own ------------------------------------------------------------------------------------------ */

static void await_readable(const chx_worker *worker) {
    struct pollfd entry = {.fd = chx_worker_fd(worker), .events = POLLIN};
    poll(&entry, 1, -1);
}

/* As role forward, with poll and without callbacks. A frame that finds no credit is held until CHX_ROOM comes; those
 * that come meanwhile wait in a queue of the program's own. */
static int own_loop(chx_worker *worker) {
    static chx_frame queue[4096];
    uint64_t first = 0, last = 0;
    for (bool ended = false;;) {
        chx_event event;
        int kind = ended && first == last ? CHX_END : chx_next(worker, 0, &event);
        if (kind < 0) return chx_fault(worker, "frame", "Failed", chx_error(worker));
        if (kind == CHX_NOTHING) await_readable(worker);
        if (kind == CHX_FRAME) queue[last++ % 4096] = event.frame;
        ended |= kind == CHX_END;
        while (first < last) {
            const chx_frame *frame = &queue[first % 4096];
            const chx_how how = {.from = frame, .may_not_wait = !ended};
            int sent = chx_send(worker, frame->data, frame->size, &how);
            if (sent == CHX_AGAIN) break;
            if (sent < 0) return chx_fault(worker, "frame", "Failed", chx_error(worker));
            chx_release(worker, frame);
            first++;
        }
        if (ended && first == last) return chx_finish(worker, NULL, 0) == 0 ? 0 : 1;
    }
}

int main(void) {
    static struct own own;
    static const chx_plugin source = {.init = init, .start = start, .produce = produce, .tick = on_tick, .stop = stop};
    static const chx_plugin other = {
        .init = init, .start = start, .frame = on_frame, .tick = on_tick, .message = on_message, .stop = stop};
    chx_worker *worker;
    int result = chx_worker_inherit(&worker);
    if (result < 0) {
        fprintf(stderr, "%s\n", chx_error(worker));
        chx_worker_close(worker);
        return chx_exit_code(result);
    }
    const char *role = chx_text(param(worker, "role"), "");
    bool produces = strcmp(role, "sized") == 0 || strcmp(role, "items") == 0 || strcmp(role, "paced") == 0;
    int code = strcmp(role, "own_loop") == 0 ? own_loop(worker) : chx_worker_run(worker, produces ? &source : &other, &own);
    chx_worker_close(worker);
    return code;
}
