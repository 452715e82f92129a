/* A worker that outlives its daemon (on_daemon_loss: survive): it goes on, and reattaches to the next one.
 *
 *   PRESENT ─ the socket ends ─▶ ABSENT ─ connected, hello ─▶ GREETING ─ welcome, reattach ─▶ SHOWING ─ reattached ─▶ PRESENT
 *
 * None of it waits: each step is taken when an answer comes or a timer is due, while data flows on. What the worker says
 * meanwhile is kept, bounded, and what finds no room is counted and told; what the next daemon learns from how things
 * stand is not kept, unless it changes after they were shown. Whoever listens where the daemon did as another user than
 * that, or root, is told nothing.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/un.h>
#include <linux/sockios.h>
#include <unistd.h>

#include "worker.h"

#define MS 1000000ull
#define FIRST_PAUSE (10 * MS)
#define LONGEST_PAUSE (1000 * MS)
#define ANSWER (10000 * MS)
#define KEPT_MAX (4u << 20)

/* ---- what is kept ----------------------------------------------------------------------------------------------- */

static void kept_free(struct kept *kept) {
    chx_free_writer(&kept->message);
    close_all(kept->fds, kept->fd_count);
    free(kept);
}

static struct kept *kept_take(chx_worker *worker) {
    struct kept *kept = worker->kept;
    if (!kept) return NULL;
    worker->kept = kept->next;
    if (!worker->kept) worker->last_kept = &worker->kept;
    worker->kept_bytes -= kept->message.size;
    return kept;
}

/* The descriptors are duplicated, because they may be closed before there is a daemon. */
int absent_keep(chx_worker *worker, chx_writer *message, const int *fds, uint32_t fd_count, bool state) {
    struct kept *kept = NULL;
    bool wanted = !state || worker->presence == SHOWING;
    if (wanted && worker->kept_bytes + message->size <= KEPT_MAX) kept = malloc(sizeof *kept + fd_count * sizeof(int));
    if (!kept) {
        worker->kept_dropped += wanted;
        chx_free_writer(message);
        return 0;
    }
    *kept = (struct kept){.message = *message};
    for (; kept->fd_count < fd_count; kept->fd_count++) {
        kept->fds[kept->fd_count] = fcntl(fds[kept->fd_count], F_DUPFD_CLOEXEC, 3);
        if (kept->fds[kept->fd_count] >= 0) continue;
        kept_free(kept);
        return fail(worker, CHX_E_DAEMON_EXHAUSTED, "no descriptor is left");
    }
    *worker->last_kept = kept;
    worker->last_kept = &kept->next;
    worker->kept_bytes += kept->message.size;
    return 0;
}

void absent_free(chx_worker *worker) {
    for (struct kept *kept; (kept = kept_take(worker));) kept_free(kept);
}

/* ---- who it is, and all its memory ------------------------------------------------------------------------------ */

struct shown {
    chx_writer outputs, inputs, segments, unconfirmed, dropped;
    uint32_t output_count, input_count, segment_count, unconfirmed_count, dropped_count;
    int *fds;
    uint32_t fd_count;
};

static void show_stage(chx_writer *list, const char *route, uint64_t epoch, bool linked, uint64_t resume,
                       const struct stage *stage) {
    chx_write_map(list, stage ? 5 : 4);
    chx_pair_text(list, "route", route);
    chx_pair_count(list, "epoch", epoch);
    chx_write_text(list, "linked");
    chx_write_bool(list, linked);
    chx_pair_count(list, "resume", resume);
    if (!stage) return;
    chx_write_text(list, "segments");
    chx_write_list(list, stage->segment_count);
    for (uint32_t i = 0; i < stage->segment_count; i++) chx_write_count(list, stage->segments[i]);
}

static void show_output(struct shown *shown, const struct output *output, uint64_t resume) {
    const struct chx_producer *end = &output->end;
    show_stage(&shown->outputs, output->names.route, end->header.epoch, end->credit != NULL, resume, NULL);
    shown->output_count++;
    shown->fds[shown->fd_count++] = end->ring_map.fd;
}

static void show_routes(const chx_worker *worker, struct shown *shown) {
    for (uint32_t i = 0; i < worker->output_count; i++)
        if (!worker->outputs[i]->tap_of) show_output(shown, worker->outputs[i], worker->outputs[i]->resume);
    for (const struct output *output = worker->done; output; output = output->next)
        if (output_find(worker, output->names.route)) show_output(shown, output, 0);
    for (uint32_t i = 0; i < worker->input_count; i++) {
        for (const struct stage *stage = worker->inputs[i]->first; stage; stage = stage->next) {
            const struct chx_consumer *end = &stage->end;
            bool linked = end->ring != NULL || end->state == CHX_CONSUMER_ENDED;
            show_stage(&shown->inputs, worker->inputs[i]->names.route, end->header.epoch, linked, stage->resume, stage);
            shown->input_count++;
            shown->fds[shown->fd_count++] = end->credit_map.fd;
        }
    }
}

static void show_segments(const chx_worker *worker, struct shown *shown) {
    for (uint32_t i = 0; i < worker->arena.segment_count; i++) {
        const struct chx_segment *segment = &worker->arena.segments[i];
        if (segment->map.fd >= 0) {
            chx_write_count(&shown->segments, i);
            shown->segment_count++;
            shown->fds[shown->fd_count++] = segment->map.fd;
        }
        if (segment->state == CHX_SEGMENT_MADE) {
            chx_write_count(&shown->unconfirmed, i);
            shown->unconfirmed_count++;
        } else if (segment->state == CHX_SEGMENT_DROPPED) {
            chx_write_count(&shown->dropped, i);
            shown->dropped_count++;
        }
    }
}

static void pair_list(chx_writer *message, const char *key, uint32_t count, chx_writer *list) {
    chx_write_text(message, key);
    chx_write_list(message, count);
    chx_write_raw(message, list->data, list->size);
    message->failed |= list->failed;
    chx_free_writer(list);
}

static chx_writer reattach_message(const chx_worker *worker, struct shown *shown, bool pipes) {
    static const char *const states[] = {"starting", "started", "draining"};
    chx_writer message = message_begin("reattach", 11);
    unsigned state = worker->life < LIFE_STARTED ? 0 : worker->draining ? 2 : 1;
    chx_pair_text(&message, "flow", chx_flow(worker));
    chx_pair_text(&message, "node", chx_node(worker));
    chx_pair_text(&message, "token", chx_text(chx_get(worker->config, "token"), ""));
    chx_pair_text(&message, "state", states[state]);
    chx_pair_count(&message, "incarnation", (uint64_t)chx_int(chx_get(worker->config, "incarnation"), 0));
    pair_list(&message, "outputs", shown->output_count, &shown->outputs);
    pair_list(&message, "inputs", shown->input_count, &shown->inputs);
    pair_list(&message, "segments", shown->segment_count, &shown->segments);
    pair_list(&message, "unconfirmed", shown->unconfirmed_count, &shown->unconfirmed);
    pair_list(&message, "dropped", shown->dropped_count, &shown->dropped);
    chx_write_text(&message, "pipes");
    chx_write_bool(&message, pipes);
    return message;
}

static int show(chx_worker *worker) {
    uint32_t room = worker->output_count + worker->arena.segment_count + 2;
    for (const struct output *output = worker->done; output; output = output->next) room++;
    for (uint32_t i = 0; i < worker->input_count; i++)
        for (const struct stage *stage = worker->inputs[i]->first; stage; stage = stage->next) room++;
    struct shown shown = {.fds = malloc(room * sizeof(int))};
    if (!shown.fds) return no_memory(worker, "a reattachment");
    show_routes(worker, &shown);
    show_segments(worker, &shown);
    bool pipes = worker->streams.held[0] >= 0 && worker->streams.held[1] >= 0;
    for (int i = 0; pipes && i < 2; i++) shown.fds[shown.fd_count++] = worker->streams.held[i];
    chx_writer message = reattach_message(worker, &shown, pipes);
    int sent = message.failed ? no_memory(worker, "a reattachment") : link_send(&worker->link, &message, shown.fds, shown.fd_count);
    chx_free_writer(&message);
    free(shown.fds);
    if (sent == 0) worker->presence = SHOWING;
    return sent;
}

/* ---- the steps -------------------------------------------------------------------------------------------------- */

static void plan_retry(chx_worker *worker, uint64_t in_ns) {
    worker->retry_ns = chx_now_ns() + in_ns + 1;
    timer_set(worker, trim_due(worker));
}

/* The daemon is gone, or this one is no good: try again, at first at once, then with pauses. */
int absent_begin(chx_worker *worker) {
    bool first = worker->presence == PRESENT;
    worker->presence = ABSENT;
    link_close(&worker->link);
    if (first) worker->pause_ns = 0;
    plan_retry(worker, worker->pause_ns);
    worker->pause_ns = worker->pause_ns ? min_u64(2 * worker->pause_ns, LONGEST_PAUSE) : FIRST_PAUSE;
    if (!first) return 0;
    streams_begin(&worker->streams);
    for (uint32_t i = 0; i < worker->output_count; i++) { /* who listened did so by way of the daemon that is gone */
        if (!worker->outputs[i]->tap_of) continue;
        chx_producer_close(&worker->outputs[i]->end);
        worker->outputs[i]->gone = 1;
    }
    return bus_abandon(worker);
}

static bool is_trusted(const chx_worker *worker, int fd) {
    struct ucred peer;
    socklen_t size = sizeof peer;
    return getsockopt(fd, SOL_SOCKET, SO_PEERCRED, &peer, &size) == 0 && (peer.uid == 0 || peer.uid == worker->daemon_user);
}

static int attempt(chx_worker *worker) {
    const char *path = chx_text(chx_get(worker->config, "socket"), "");
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    if (strlen(path) >= sizeof address.sun_path) return fail(worker, CHX_E_SOCKET_UNUSABLE, "the daemon's socket has too long a path");
    memcpy(address.sun_path, path, strlen(path) + 1);
    int fd = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
    if (fd < 0) return absent_begin(worker);
    struct epoll_event event = {.events = EPOLLIN, .data.fd = fd};
    if (connect(fd, (struct sockaddr *)&address, sizeof address) != 0 || !is_trusted(worker, fd) ||
        epoll_ctl(worker->bell.epoll, EPOLL_CTL_ADD, fd, &event) != 0) {
        close(fd);
        return absent_begin(worker);
    }
    link_open(&worker->link, fd);
    chx_writer hello = message_hello(true);
    int sent = hello.failed ? -1 : link_send(&worker->link, &hello, NULL, 0);
    chx_free_writer(&hello);
    if (sent != 0) return absent_begin(worker);
    worker->presence = GREETING;
    plan_retry(worker, ANSWER);
    return 0;
}

int absent_look(chx_worker *worker) {
    if (worker->presence == PRESENT) return 0;
    if (chx_now_ns() < worker->retry_ns) return 0;
    return worker->presence == ABSENT ? attempt(worker) : absent_begin(worker);
}

static int tell_losses(chx_worker *worker) {
    static const char *const names[] = {"stdout", "stderr"};
    int result = 0;
    for (int i = 0; i < 2 && result == 0; i++) {
        uint64_t lost = streams_take_lost(&worker->streams, i);
        if (!lost) continue;
        result = chx_log(worker, "warning", "%llu bytes that were printed to %s while no daemon was there are lost, the oldest",
                         (unsigned long long)lost, names[i]);
    }
    if (result == 0 && worker->kept_dropped)
        result = chx_log(worker, "warning", "%llu messages found no room while no daemon was there, and are lost",
                         (unsigned long long)worker->kept_dropped);
    worker->kept_dropped = 0;
    return result;
}

static int present_again(chx_worker *worker, const struct incoming *incoming) {
    if (streams_hold(&worker->streams, worker->link.fd, incoming->fds) != 0)
        return fail(worker, CHX_E_INTERNAL, "stdout and stderr cannot be kept open: %s", strerror(errno));
    worker->presence = PRESENT;
    worker->retry_ns = 0;
    timer_set(worker, trim_due(worker));
    int result = tell_losses(worker);
    if (result == 0) result = bus_tell_subscriptions(worker);
    if (result == 0 && worker->life == LIFE_FINISHED) result = tell_finished(worker);
    for (struct kept *kept; result == 0 && worker->presence == PRESENT && (kept = kept_take(worker));) {
        result = tell(worker, &kept->message, kept->fds, kept->fd_count, false);
        kept_free(kept);
    }
    return result;
}

int absent_handle(chx_worker *worker, struct incoming *incoming) {
    if (strcmp(incoming->type, "error") == 0)
        return fail(worker, CHX_E_REATTACH_REFUSED, "the daemon does not take this worker back: %.300s",
                    chx_text(chx_get(incoming->message, "message"), "no reason"));
    if (worker->presence == GREETING && strcmp(incoming->type, "welcome") == 0) {
        welcome_read(worker, incoming->message);
        return show(worker) < 0 ? absent_begin(worker) : 0;
    }
    if (worker->presence == SHOWING && strcmp(incoming->type, "reattached") == 0) return present_again(worker, incoming);
    return absent_begin(worker); /* this daemon is no good */
}

static bool is_delivered(const chx_worker *worker) {
    int unread = 0;
    struct pollfd entry = {.fd = worker->link.fd, .events = POLLRDHUP};
    if (worker->presence != PRESENT || ioctl(worker->link.fd, SIOCOUTQ, &unread) != 0) return false;
    return unread == 0 && poll(&entry, 1, 0) == 0; /* in this order: a peer that dies throws away what it has not read */
}

/* Wait until a daemon has read what was said last. No event tells that. */
int absent_settle(chx_worker *worker) {
    for (uint64_t pause = MS; !is_delivered(worker); pause = min_u64(2 * pause, 100 * MS)) {
        int heard = hear(worker);
        if (heard == 0) heard = sleep_until(worker, chx_now_ns() + pause);
        if (heard < 0) return heard;
    }
    return 0;
}
