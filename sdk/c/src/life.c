/* A worker from its hello to its end, and the one place where it sleeps.
 *
 * It has one thread (that of streams.c knows no worker): what the daemon says is handled whenever the library is called and would wait, and at least
 * every few milliseconds of a busy stream. The control socket and a timer are in the epoll of the doorbell, so that one
 * descriptor wakes for everything.
 */
#include <errno.h>
#include <poll.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>
#include <unistd.h>

#include "worker.h"

#define SPIN_ROUNDS 8

/* ---- errors ----------------------------------------------------------------------------------------------------- */

int fail(chx_worker *worker, int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(worker->error, sizeof worker->error, format, arguments);
    va_end(arguments);
    return -code;
}

int no_memory(chx_worker *worker, const char *what) {
    return fail(worker, CHX_E_OUT_OF_MEMORY, "there is no memory for %s", what);
}

int fail_status(chx_worker *worker, enum chx_status status, const char *route, const struct chx_why *why) {
    switch (status) {
        case CHX_FAULT:
            return fail(worker, CHX_E_ROUTE_DETACHED, "route %.200s: %s", route, why ? why->text : "its peer is at fault");
        case CHX_NO_MEMORY:
            return no_memory(worker, route);
        default:
            return fail(worker, CHX_E_DESCRIPTOR_REFUSED, "%.200s: %s", route, strerror(errno));
    }
}

int fail_peer(chx_worker *worker, const char *route, uint64_t epoch, const struct chx_why *why) {
    if (worker->may_accuse) {
        char rule[sizeof why->text];
        snprintf(rule, sizeof rule, "%s", why->text);
        text_clean(rule);
        chx_writer message = message_begin("accuse", 3);
        chx_pair_text(&message, "route", route);
        chx_pair_text(&message, "rule", rule);
        chx_pair_count(&message, "epoch", epoch);
        tell(worker, &message, NULL, 0, false); /* a daemon that is gone is found by who reads */
    }
    return fail_status(worker, CHX_FAULT, route, why);
}

const char *chx_error(const chx_worker *worker) { return worker ? worker->error : "there is no memory for a worker"; }

/* ---- the control socket ----------------------------------------------------------------------------------------- */

static int daemon_gone(chx_worker *worker, const char *why) {
    if (worker->survives && worker->life >= LIFE_START && worker->life <= LIFE_FINISHED) return absent_begin(worker);
    return fail(worker, CHX_E_CONNECTION_LOST, "%.400s", why);
}

int tell(chx_worker *worker, chx_writer *message, const int *fds, uint32_t fd_count, bool state) {
    int result = 0;
    if (message->failed)
        result = no_memory(worker, "a message");
    else if (worker->presence != PRESENT)
        return absent_keep(worker, message, fds, fd_count, state);
    else if (link_send(&worker->link, message, fds, fd_count) != 0) {
        if (errno == EMSGSIZE) {
            result = fail(worker, CHX_E_FRAME_NOT_SENDABLE, "a message of %zu bytes cannot be sent: at most %llu", message->size,
                          (unsigned long long)worker->link.max_frame);
        } else {
            result = daemon_gone(worker, strerror(errno));
            if (result == 0) return absent_keep(worker, message, fds, fd_count, state);
        }
    }
    chx_free_writer(message);
    return result;
}

int tell_simple(chx_worker *worker, const char *type, bool state) {
    chx_writer message = message_begin(type, 0);
    return tell(worker, &message, NULL, 0, state);
}

void welcome_read(chx_worker *worker, const chx_value *welcome) {
    uint64_t most;
    const chx_value *features = chx_get(welcome, "features");
    if (chx_count_of(chx_get(welcome, "max_frame"), &most) && most < FRAME_MAX) worker->link.max_frame = most;
    worker->may_accuse = 0;
    for (size_t i = 0; i < chx_size_of(features); i++)
        if (strcmp(chx_text(chx_at(features, i), ""), "accuse") == 0) worker->may_accuse = 1;
}

static int handle_welcome(chx_worker *worker, const struct incoming *incoming) {
    if (strcmp(incoming->type, "error") == 0)
        return fail(worker, CHX_E_ROLE_NOT_ACCEPTED, "the daemon refuses: %.300s",
                    chx_text(chx_get(incoming->message, "message"), "no reason"));
    if (strcmp(incoming->type, "welcome") != 0)
        return fail(worker, CHX_E_UNEXPECTED_MESSAGE, "a message of type %.40s came where welcome is due", incoming->type);
    if (chx_int(chx_get(incoming->message, "protocol"), 0) != CHX_PROTOCOL)
        return fail(worker, CHX_E_VERSION_UNSUPPORTED, "the daemon speaks another version of the protocol");
    welcome_read(worker, incoming->message);
    worker->life = LIFE_WELCOME;
    return 0;
}

static int handle_configure(chx_worker *worker, struct incoming *incoming) {
    if (strcmp(incoming->type, "configure") != 0)
        return fail(worker, CHX_E_UNEXPECTED_MESSAGE, "a message of type %.40s came where configure is due", incoming->type);
    if (!chx_text(chx_get(incoming->message, "flow"), NULL) || !chx_text(chx_get(incoming->message, "node"), NULL))
        return fail(worker, CHX_E_MALFORMED_MESSAGE, "configure names no flow or no node");
    chx_free_value(worker->config);
    worker->config = incoming->message;
    incoming->message = NULL;
    const char *loss = chx_text(chx_get(worker->config, "on_daemon_loss"), "stop");
    worker->survives = strcmp(loss, "survive") == 0;
    if (worker->life != LIFE_STANDBY) {
        worker->life = LIFE_CONFIGURED;
        return 0;
    }
    worker->life = LIFE_OFFERED;
    return control_configure(worker);
}

static int handle(chx_worker *worker, struct incoming *incoming) {
    if (worker->presence != PRESENT) return absent_handle(worker, incoming);
    if (worker->life == LIFE_NEW) return handle_welcome(worker, incoming);
    if (worker->life == LIFE_WELCOME || worker->life == LIFE_STANDBY) return handle_configure(worker, incoming);
    return control_handle(worker, incoming);
}

int hear(chx_worker *worker) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    worker->looked = (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
    while (worker->link.fd >= 0) {
        struct incoming incoming;
        char why[ERROR_ROOM] = "";
        int got = link_receive(&worker->link, &incoming, why);
        if (got == 0) break;
        if (got == -CHX_E_CONNECTION_LOST || got == -CHX_E_CONNECTION_CUT) return daemon_gone(worker, why);
        if (got < 0) return fail(worker, -got, "%s", why);
        bool last = worker->life == LIFE_WELCOME; /* what is behind configure waits until the code has looked at it */
        int result = handle(worker, &incoming);
        incoming_free(&incoming);
        if (result < 0) return result;
        if (last) break;
    }
    int result = absent_look(worker);
    if (result >= 0) result = trim_look(worker);
    if (result >= 0) result = mailbox_report(worker);
    return result < 0 ? result : 0;
}

/* The coarse clock has moved on: a few milliseconds. */
static bool time_to_hear(const chx_worker *worker) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec != worker->looked;
}

uint64_t deadline_of(int64_t timeout_ns) {
    if (timeout_ns < 0) return UINT64_MAX;
    uint64_t now = chx_now_ns();
    return (uint64_t)timeout_ns > UINT64_MAX - 1 - now ? UINT64_MAX - 1 : now + (uint64_t)timeout_ns;
}

int sleep_until(chx_worker *worker, uint64_t deadline) {
    struct epoll_event events[CHX_BELL_EVENTS];
    int64_t left = -1;
    if (deadline != UINT64_MAX) {
        uint64_t now = chx_now_ns();
        left = now < deadline ? (int64_t)(deadline - now) : 0;
    }
    int got = chx_bell_await(&worker->bell, events, left);
    if (got < 0) return errno == EINTR ? 0 : fail(worker, CHX_E_INTERNAL, "epoll: %s", strerror(errno));
    chx_bell_hear(&worker->bell, events, got);
    bool heard = false;
    for (int i = 0; i < got; i++) {
        uint64_t times;
        if (events[i].data.fd == worker->timer && read(worker->timer, &times, sizeof times) > 0) heard = true;
        if (events[i].data.fd == worker->link.fd) heard = true;
    }
    int result = heard ? hear(worker) : 0;
    if (heard) timer_set(worker, trim_due(worker));
    return result;
}

/* ---- the beginning ---------------------------------------------------------------------------------------------- */

static int watch(const chx_worker *worker, int fd) {
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    return epoll_ctl(worker->bell.epoll, EPOLL_CTL_ADD, fd, &event);
}

static chx_worker *make(void) {
    chx_worker *worker = calloc(1, sizeof *worker);
    if (!worker) return NULL;
    worker->owner = getpid();
    worker->link.fd = worker->timer = -1;
    streams_init(&worker->streams);
    worker->last_extension = &worker->extensions;
    worker->last_kept = &worker->kept;
    mailbox_init(&worker->mailbox);
    chx_wake_init(&worker->wake);
    worker->take_spin = worker->send_spin = (struct chx_spin){.ns = CHX_SPIN_CAP_NS};
    worker->bell.epoll = worker->bell.self = -1;
    return worker;
}

/* Hello on `fd`, which it takes over, to the configuration. */
static int begin(chx_worker *worker, int fd) {
    link_open(&worker->link, fd);
    if (chx_bell_init(&worker->bell) != 0) return fail(worker, CHX_E_INTERNAL, "no doorbell: %s", strerror(errno));
    worker->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (worker->timer < 0 || watch(worker, worker->timer) != 0 || watch(worker, fd) != 0)
        return fail(worker, CHX_E_INTERNAL, "no timer: %s", strerror(errno));
    struct ucred peer;
    socklen_t size = sizeof peer;
    worker->daemon_user = getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 ? peer.uid : geteuid();
    chx_writer hello = message_hello(false);
    int result = tell(worker, &hello, NULL, 0, false);
    while (result == 0 && worker->life < LIFE_CONFIGURED) {
        struct pollfd entry = {.fd = worker->link.fd, .events = POLLIN};
        if (poll(&entry, 1, -1) < 0 && errno != EINTR) return fail(worker, CHX_E_INTERNAL, "poll: %s", strerror(errno));
        result = hear(worker);
    }
    return result;
}

int chx_worker_inherit(chx_worker **worker) {
    const char *number = getenv(FD_VARIABLE);
    char *end = NULL;
    *worker = make();
    if (!*worker) return -CHX_E_OUT_OF_MEMORY;
    long fd = number && *number ? strtol(number, &end, 10) : -1;
    if (fd < 0 || fd > INT32_MAX || *end)
        return fail(*worker, CHX_E_WRONG_STATE, FD_VARIABLE " names no descriptor: this program is started by chronetixd, in a flow");
    unsetenv(FD_VARIABLE);
    if (fcntl((int)fd, F_SETFD, FD_CLOEXEC) != 0)
        return fail(*worker, CHX_E_WRONG_STATE, FD_VARIABLE " names descriptor %ld: %s", fd, strerror(errno));
    return begin(*worker, (int)fd);
}

void chx_worker_close(chx_worker *worker) {
    if (!worker) return;
    bool here = worker->owner == getpid();
    inputs_free(worker, here && worker->life == LIFE_FINISHED && !worker->leaves);
    outputs_free(worker);
    if (worker->has_arena) chx_arena_destroy(&worker->arena);
    link_close(&worker->link);
    if (worker->timer >= 0) close(worker->timer);
    chx_bell_destroy(&worker->bell);
    for (struct extension *next; worker->extensions; worker->extensions = next) {
        next = worker->extensions->next;
        chx_free_value(worker->extensions->message);
        free(worker->extensions);
    }
    note_free(worker->current);
    note_free(worker->answered);
    mailbox_free(&worker->mailbox);
    bus_free(worker);
    absent_free(worker);
    streams_free(&worker->streams, here);
    chx_free_value(worker->config);
    chx_free_value(worker->handover_document);
    free(worker->result);
    free(worker);
}

/* ---- what comes ------------------------------------------------------------------------------------------------- */

/* The step that is due before the node has started. CHX_START, 0: something else has to come first, or a code. */
static int before_start(chx_worker *worker) {
    switch (worker->life) {
        case LIFE_CONFIGURED:
            if (chx_bool(chx_get(worker->config, "standby"), false)) {
                worker->life = LIFE_STANDBY;
                return tell_simple(worker, "ready", false);
            }
            worker->life = LIFE_OFFERED;
            return control_configure(worker);
        case LIFE_START:
            worker->life = LIFE_STARTING;
            return CHX_START;
        case LIFE_STARTING:
            worker->life = LIFE_STARTED;
            return tell_simple(worker, "started", true);
        default:
            return 0;
    }
}

/* A frame, or the end of all inputs. 0: neither. */
static int next_frame(chx_worker *worker, chx_event *event) {
    if (worker->leaves && worker->leave_left == 0) return CHX_END;
    int found = inputs_scan(worker, &event->frame);
    if (found < 0) return found;
    if (found == SCAN_TORN) return CHX_NOTHING;
    if (found == SCAN_FOUND) {
        worker->taken++;
        worker->steps++;
        worker->leave_left -= worker->leave_left != 0;
        return CHX_FRAME;
    }
    return found == SCAN_ENDED || worker->draining ? CHX_END : CHX_NOTHING;
}

/* What is there, without waiting. */
static int once(chx_worker *worker, chx_event *event) {
    if (worker->life < LIFE_STARTED) {
        int due = before_start(worker);
        if (due != 0 || worker->life < LIFE_STARTED) return due;
    }
    struct note *note = mailbox_take(&worker->mailbox);
    if (note) {
        worker->current = note;
        event_fill(event, note);
        worker->steps++;
        return (int)event->kind;
    }
    int rerouted = worker->extensions ? control_reroute(worker) : 0;
    if (rerouted < 0) return rerouted;
    if (worker->wants_room && !room_waits(worker, false)) {
        worker->wants_room = 0;
        worker->short_at = 0;
        return CHX_ROOM;
    }
    if (worker->input_count) return next_frame(worker, event);
    return worker->draining || chx_size_of(chx_get(worker->config, "inputs")) ? CHX_END : CHX_NOTHING;
}

static void disarm(chx_worker *worker) {
    if (!worker->armed) return;
    inputs_disarm(worker);
    if (worker->wants_room) room_disarm(worker);
    worker->armed = 0;
}

static int spin(chx_worker *worker, chx_event *event, uint64_t deadline) {
    uint32_t cap = chx_spin_cap(&worker->wake);
    if (worker->take_spin.ns == 0 || cap == 0 || inputs_nap(worker) || worker->life != LIFE_STARTED) return 0;
    uint64_t start = chx_now_ns(), until = min_u64(start + worker->take_spin.ns, deadline);
    do {
        for (int i = 0; i < SPIN_ROUNDS; i++) {
            int result = once(worker, event);
            if (result != 0) {
                chx_spin_found(&worker->take_spin, cap, chx_now_ns() - start);
                return result;
            }
            chx_pause();
        }
    } while (chx_now_ns() < until);
    chx_spin_missed(&worker->take_spin, cap);
    return 0;
}

/* Adapt the spin to the sleep since `start`, which ended with this frame. */
static void learn(chx_worker *worker, const chx_frame *frame, uint64_t start, bool nap) {
    if (frame->time_ns < start) return;
    if (!nap) chx_wake_took(&worker->wake, chx_now_ns() - frame->time_ns);
    chx_spin_slept(&worker->take_spin, chx_spin_cap(&worker->wake), frame->time_ns - start, worker->rings != worker->rings_before);
}

/* Publish what is waited for, fence, look again; 0: sleeping is safe now, for at most `*nap` ns if that is not 0. */
static int arm(chx_worker *worker, chx_event *event, bool naps, uint64_t *nap) {
    *nap = inputs_arm(worker, naps);
    bool room = worker->wants_room && room_waits(worker, true);
    atomic_thread_fence(memory_order_seq_cst); /* partners: chx_producer_commit, chx_consumer_return */
    int result = once(worker, event);
    if (result != 0) return result;
    if (room) room_count_sleeps(worker);
    inputs_nudge(worker);
    return 0;
}

/* Wait for an event, asleep. 0: the time is up. */
static int await(chx_worker *worker, chx_event *event, uint64_t deadline) {
    bool naps = inputs_nap(worker);
    for (;;) {
        uint64_t nap, start = chx_now_ns();
        int result = arm(worker, event, naps, &nap);
        if (result != 0) return result;
        uint64_t until = nap ? min_u64(deadline, start + nap) : deadline;
        result = sleep_until(worker, until);
        disarm(worker);
        if (result == 0) result = once(worker, event);
        if (result == CHX_FRAME) learn(worker, &event->frame, start, nap != 0);
        if (result != 0) return result;
        naps = false; /* the stream has stopped: the next frame rings */
        if (deadline != UINT64_MAX && chx_now_ns() >= deadline) return 0;
    }
}

/* The caller polls the descriptor itself: clear it, look once more, and leave everything armed. */
static int leave_armed(chx_worker *worker, chx_event *event) {
    uint64_t nap;
    int result = sleep_until(worker, 0);
    return result < 0 ? result : arm(worker, event, false, &nap);
}

int chx_next(chx_worker *worker, int64_t timeout_ns, chx_event *event) {
    *event = (chx_event){0};
    if (worker->owner != getpid()) return fail(worker, CHX_E_WRONG_STATE, "a worker is of the process that made it");
    if (worker->life < LIFE_CONFIGURED || worker->life >= LIFE_FINISHED)
        return fail(worker, CHX_E_WRONG_STATE, "the worker is not configured, or has ended");
    note_free(worker->current);
    worker->current = NULL;
    disarm(worker);
    int result = worker->life < LIFE_STARTED || time_to_hear(worker) ? hear(worker) : 0;
    if (result == 0) result = once(worker, event);
    if (result == 0) {
        uint64_t deadline = timeout_ns > 0 ? deadline_of(timeout_ns) : UINT64_MAX;
        if (timeout_ns == 0)
            result = leave_armed(worker, event);
        else if ((result = spin(worker, event, deadline)) == 0)
            result = await(worker, event, deadline);
        worker->rings_before = worker->rings;
        worker->commits_before = worker->commits;
        worker->taken = result == CHX_FRAME;
    }
    if (result >= 0) event->kind = (enum chx_event_kind)result;
    return result;
}

/* What is there between two items of a source: as chx_next without waiting, but nothing is armed. */
int glance(chx_worker *worker, chx_event *event) {
    *event = (chx_event){0};
    note_free(worker->current);
    worker->current = NULL;
    int result = time_to_hear(worker) ? hear(worker) : 0;
    if (result == 0) result = once(worker, event);
    if (result >= 0) event->kind = (enum chx_event_kind)result;
    return result;
}

/* ---- the end ---------------------------------------------------------------------------------------------------- */

int chx_finish(chx_worker *worker, const void *result, size_t size) {
    if (worker->life != LIFE_STARTED && worker->life != LIFE_STARTING)
        return fail(worker, CHX_E_WRONG_STATE, "a node finishes once, after it has started");
    if (size) {
        char why[128] = "";
        const chx_value *value = chx_decode(result, size, why, sizeof why);
        if (!value) return fail(worker, CHX_E_FRAME_NOT_SENDABLE, "the result is no strict CBOR: %s", why);
        chx_free_value(value);
    }
    int told = worker->life == LIFE_STARTING ? tell_simple(worker, "started", true) : 0;
    if (told < 0) return told;
    if (!worker->leaves) outputs_close(worker);
    worker->life = LIFE_FINISHED;
    free(worker->result);
    worker->result = size ? malloc(size) : NULL;
    if (size && !worker->result) return no_memory(worker, "the result");
    if (size) memcpy(worker->result, result, size);
    worker->result_size = size;
    told = tell_finished(worker);
    return told < 0 || !worker->survives ? told : absent_settle(worker);
}

int tell_finished(chx_worker *worker) {
    chx_writer message = message_begin("finished", 1);
    chx_write_text(&message, "result");
    if (worker->result_size)
        chx_write_raw(&message, worker->result, worker->result_size);
    else
        chx_write_null(&message);
    return tell(worker, &message, NULL, 0, true);
}

int chx_fault(chx_worker *worker, const char *phase, const char *error, const char *message) {
    if (worker->life == LIFE_FAILED || worker->life == LIFE_FINISHED) return 1;
    char text[2 * ERROR_ROOM];
    snprintf(text, sizeof text, "%s", message);
    text_clean(text);
    if (!phase) phase = worker->life < LIFE_READY ? "wiring" : "frame";
    if (!error) error = "Failed";
    chx_writer fault = message_begin("fault", 3);
    chx_pair_text(&fault, "phase", phase);
    chx_pair_text(&fault, "error", error);
    chx_pair_text(&fault, "message", text);
    tell(worker, &fault, NULL, 0, false); /* a daemon that is gone cannot be told */
    worker->life = LIFE_FAILED;
    return 1;
}
