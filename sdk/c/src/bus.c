/* The event bus, and logs: what a worker says to others by way of the daemon. */
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>

#include "worker.h"

#define TIMEOUT_MAX ((int64_t)1 << 62)
#define LOG_MAX 16384

static int may_speak(chx_worker *worker) {
    if (worker->owner != getpid()) return fail(worker, CHX_E_WRONG_STATE, "a worker is of the process that made it");
    if (worker->life < LIFE_CONFIGURED) return fail(worker, CHX_E_WRONG_STATE, "the worker is not configured yet");
    return 0;
}

static void pair_envelope(chx_writer *message, const chx_envelope *envelope, const char *corr_id) {
    chx_write_text(message, "envelope");
    size_t pairs = 1u + (envelope->content_type != NULL) + (envelope->schema_ver != NULL) + (envelope->dst != NULL) +
                   (envelope->trace != NULL) + (envelope->deadline_ns != 0) + (envelope->has_priority) + (corr_id != NULL);
    chx_write_map(message, pairs);
    chx_pair_text(message, "topic", envelope->topic);
    if (envelope->content_type) chx_pair_text(message, "content_type", envelope->content_type);
    if (envelope->schema_ver) chx_pair_text(message, "schema_ver", envelope->schema_ver);
    if (envelope->dst) chx_pair_text(message, "dst", envelope->dst);
    if (envelope->trace) chx_pair_text(message, "trace", envelope->trace);
    if (envelope->deadline_ns) chx_pair_count(message, "deadline_ns", envelope->deadline_ns);
    if (envelope->has_priority) chx_pair_count(message, "priority", envelope->priority);
    if (corr_id) chx_pair_text(message, "corr_id", corr_id);
}

static void pair_payload(chx_writer *message, const void *data, size_t size) {
    chx_write_text(message, "payload");
    chx_write_bytes(message, data, size);
}

static int check_envelope(chx_worker *worker, const chx_envelope *envelope) {
    int may = may_speak(worker);
    if (may == 0 && (!envelope->topic || !*envelope->topic)) return fail(worker, CHX_E_BAD_ARGUMENT, "a message has no topic");
    if (may == 0 && envelope->priority > 7) return fail(worker, CHX_E_BAD_ARGUMENT, "a priority is 0 to 7");
    return may;
}

int chx_publish(chx_worker *worker, const chx_envelope *envelope, const void *data, size_t size) {
    int may = check_envelope(worker, envelope);
    if (may != 0) return may;
    chx_writer message = message_begin("publish", 2);
    pair_envelope(&message, envelope, NULL);
    pair_payload(&message, data, size);
    return tell(worker, &message, NULL, 0, false);
}

/* ---- subscriptions ---------------------------------------------------------------------------------------------- */

static int tell_subscription(chx_worker *worker, const struct subscription *subscription) {
    chx_writer message = message_begin(subscription->wanted ? "subscribe" : "unsubscribe", 1);
    chx_pair_text(&message, "topic", subscription->topic);
    return tell(worker, &message, NULL, 0, true);
}

static int want(chx_worker *worker, const char *topic, bool wanted) {
    int may = may_speak(worker);
    if (may != 0) return may;
    if (!topic || !*topic) return fail(worker, CHX_E_BAD_ARGUMENT, "a subscription has no topic");
    struct subscription *entry = worker->subscriptions;
    while (entry && strcmp(entry->topic, topic) != 0) entry = entry->next;
    if (!entry) {
        entry = malloc(sizeof *entry + strlen(topic) + 1);
        if (!entry) return no_memory(worker, "a subscription");
        memcpy(entry->topic, topic, strlen(topic) + 1);
        entry->next = worker->subscriptions;
        worker->subscriptions = entry;
    }
    entry->wanted = wanted;
    return tell_subscription(worker, entry);
}

int chx_subscribe(chx_worker *worker, const char *topic) { return want(worker, topic, true); }
int chx_unsubscribe(chx_worker *worker, const char *topic) { return want(worker, topic, false); }

/* For a daemon that knows only what the node's manifest says. */
int bus_tell_subscriptions(chx_worker *worker) {
    for (const struct subscription *entry = worker->subscriptions; entry; entry = entry->next) {
        int told = tell_subscription(worker, entry);
        if (told < 0) return told;
    }
    return 0;
}

/* ---- requests --------------------------------------------------------------------------------------------------- */

int chx_request(chx_worker *worker, const chx_envelope *envelope, const void *data, size_t size, int64_t timeout_ns,
                uint64_t *id) {
    int may = check_envelope(worker, envelope);
    if (may != 0) return may;
    uint64_t chance[2];
    struct request *request = calloc(1, sizeof *request);
    if (!request) return no_memory(worker, "a request");
    if (getrandom(chance, sizeof chance, 0) != (ssize_t)sizeof chance) {
        free(request);
        return fail(worker, CHX_E_INTERNAL, "the kernel gives no random numbers");
    }
    snprintf(request->corr_id, sizeof request->corr_id, "%016llx%016llx", (unsigned long long)chance[0],
             (unsigned long long)chance[1]);
    request->id = ++worker->request_count;
    request->next = worker->requests;
    worker->requests = request;
    *id = request->id;
    chx_writer message = message_begin("request", 3);
    pair_envelope(&message, envelope, request->corr_id);
    pair_payload(&message, data, size);
    chx_pair_count(&message, "timeout_ns", (uint64_t)(timeout_ns < 0 || timeout_ns > TIMEOUT_MAX ? TIMEOUT_MAX : timeout_ns));
    return tell(worker, &message, NULL, 0, false);
}

/* What the daemon said about a request: `message` is taken over. One that is not waited for is late: it is nobody's. */
int bus_ended(chx_worker *worker, const chx_value *message, const char *failure) {
    static const char *const reasons[] = {"timeout", "no-subscriber", "peer-gone"};
    const char *corr_id = chx_text(chx_get(message, "corr_id"), ""), *known = NULL;
    for (size_t i = 0; failure && i < sizeof reasons / sizeof *reasons; i++)
        if (strcmp(failure, reasons[i]) == 0) known = reasons[i];
    struct request **at = &worker->requests;
    while (*at && strcmp((*at)->corr_id, corr_id) != 0) at = &(*at)->next;
    if (!*at || (failure && !known)) {
        chx_free_value(message);
        return failure && !known ? fail(worker, CHX_E_MALFORMED_MESSAGE, "a request failed for no known reason") : 0;
    }
    struct request *request = *at;
    *at = request->next;
    int put = mailbox_put_end(worker, message, request, known);
    free(request);
    return put;
}

/* The daemon is gone: end every request that is open. */
int bus_abandon(chx_worker *worker) {
    int result = 0;
    while (worker->requests) {
        struct request *request = worker->requests;
        worker->requests = request->next;
        int put = mailbox_put_end(worker, NULL, request, "peer-gone");
        if (put < 0) result = put;
        free(request);
    }
    return result;
}

int chx_await(chx_worker *worker, uint64_t request, chx_message *answer) {
    for (;;) {
        int heard = hear(worker);
        if (heard < 0) return heard;
        struct note *note = mailbox_take_end(&worker->mailbox, request);
        if (note) {
            chx_event event;
            note_free(worker->answered);
            worker->answered = note;
            event_fill(&event, note);
            *answer = event.message;
            return 0;
        }
        const struct request *open = worker->requests;
        while (open && open->id != request) open = open->next;
        if (!open) return fail(worker, CHX_E_BAD_ARGUMENT, "no request %llu is open", (unsigned long long)request);
        heard = sleep_until(worker, UINT64_MAX);
        if (heard < 0) return heard;
    }
}

int chx_reply(chx_worker *worker, const chx_message *asked, const void *data, size_t size, const char *content_type) {
    int may = may_speak(worker);
    if (may != 0) return may;
    if (!asked->corr_id) return fail(worker, CHX_E_BAD_ARGUMENT, "a message of topic %.200s expects no reply", asked->topic);
    chx_writer message = message_begin("reply", content_type ? 3 : 2);
    chx_pair_text(&message, "corr_id", asked->corr_id);
    pair_payload(&message, data, size);
    if (content_type) chx_pair_text(&message, "content_type", content_type);
    return tell(worker, &message, NULL, 0, false);
}

/* ---- logs ------------------------------------------------------------------------------------------------------- */

int chx_log(chx_worker *worker, const char *level, const char *format, ...) {
    int may = may_speak(worker);
    if (may != 0) return may;
    char text[LOG_MAX];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    chx_writer message = message_begin("log", 3);
    chx_pair_text(&message, "level", level);
    text_clean(text);
    chx_pair_text(&message, "message", text);
    chx_pair_count(&message, "unix_ns", (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec);
    return tell(worker, &message, NULL, 0, false);
}

void bus_free(chx_worker *worker) {
    for (struct request *request = worker->requests, *next; request; request = next) {
        next = request->next;
        free(request);
    }
    for (struct subscription *entry = worker->subscriptions, *next; entry; entry = next) {
        next = entry->next;
        free(entry);
    }
}
