/* Events that wait for the worker's code: bounded, so that a slow callback costs messages and never memory.
 *
 * A tick that finds others waiting is withheld, and counts as missed by the next one of its timer. A message that finds
 * too many bytes waiting is dropped, counted by topic, and told to the daemon. The end of a request always goes in.
 */
#include <stdlib.h>
#include <string.h>

#include "worker.h"

#define TICKS_MAX 16u                /* events that may wait before ticks are withheld */
#define BYTES_MAX (8u * 1024 * 1024) /* of messages; the daemon's own bound for a subscriber that does not read */
#define REPORT_AT_ONCE 1000u
#define OVERHEAD 1024u

void mailbox_init(struct mailbox *mailbox) { *mailbox = (struct mailbox){.last = &mailbox->first}; }

void note_free(struct note *note) {
    if (!note) return;
    chx_free_value(note->message);
    free(note);
}

static void withheld_free(struct withheld *list) {
    for (struct withheld *next; list; list = next) {
        next = list->next;
        free(list);
    }
}

void mailbox_free(struct mailbox *mailbox) {
    for (struct note *note = mailbox->first, *next; note; note = next) {
        next = note->next;
        note_free(note);
    }
    withheld_free(mailbox->ticks);
    withheld_free(mailbox->dropped);
}

/* The entry of `name`, made if it is not there; NULL without memory. */
static struct withheld *withheld_of(struct withheld **list, const char *name) {
    for (struct withheld *entry = *list; entry; entry = entry->next)
        if (strcmp(entry->name, name) == 0) return entry;
    struct withheld *entry = calloc(1, sizeof *entry + strlen(name) + 1);
    if (!entry) return NULL;
    memcpy(entry->name, name, strlen(name) + 1);
    entry->next = *list;
    *list = entry;
    return entry;
}

static int append(chx_worker *worker, const struct note *content) {
    struct mailbox *mailbox = &worker->mailbox;
    struct note *note = malloc(sizeof *note);
    if (!note) {
        chx_free_value(content->message);
        return no_memory(worker, "a message");
    }
    *note = *content;
    *mailbox->last = note;
    mailbox->last = &note->next;
    mailbox->count++;
    mailbox->bytes += note->bytes;
    return 0;
}

/* Takes `message` over. */
int mailbox_put(chx_worker *worker, const chx_value *message, enum chx_event_kind kind) {
    struct mailbox *mailbox = &worker->mailbox;
    struct note note = {.message = message, .kind = kind};
    if (kind == CHX_TICK) {
        struct withheld *timer = withheld_of(&mailbox->ticks, chx_text(chx_get(message, "id"), ""));
        uint64_t missed = (uint64_t)chx_int(chx_get(message, "missed"), 0);
        if (!timer || mailbox->count >= TICKS_MAX) {
            chx_free_value(message);
            if (timer) timer->count += missed + 1;
            return timer ? 0 : no_memory(worker, "a tick");
        }
        note.missed = missed + timer->count;
        timer->count = 0;
    }
    if (kind == CHX_MESSAGE) {
        note.bytes = chx_size_of(chx_get(message, "payload")) + OVERHEAD;
        if (mailbox->count && mailbox->bytes + note.bytes > BYTES_MAX) {
            const char *topic = chx_text(chx_get(chx_get(message, "envelope"), "topic"), "");
            struct withheld *entry = withheld_of(&mailbox->dropped, topic);
            chx_free_value(message);
            if (!entry) return no_memory(worker, "a message");
            entry->count++;
            mailbox->unreported++;
            return mailbox_report(worker);
        }
    }
    return append(worker, &note);
}

/* The end of a request: `message` is the daemon's reply or failure, taken over, or NULL. */
int mailbox_put_end(chx_worker *worker, const chx_value *message, const struct request *request, const char *failure) {
    struct note note = {.message = message, .kind = CHX_REPLY, .request = request->id, .failure = failure};
    return append(worker, &note);
}

static struct note *take_out(struct mailbox *mailbox, struct note **at) {
    struct note *note = *at;
    *at = note->next;
    if (!note->next) mailbox->last = at;
    mailbox->count--;
    mailbox->bytes -= note->bytes;
    note->next = NULL;
    return note;
}

struct note *mailbox_take(struct mailbox *mailbox) { return mailbox->first ? take_out(mailbox, &mailbox->first) : NULL; }

struct note *mailbox_take_end(struct mailbox *mailbox, uint64_t request) {
    for (struct note **at = &mailbox->first; *at; at = &(*at)->next)
        if ((*at)->kind == CHX_REPLY && (*at)->request == request) return take_out(mailbox, at);
    return NULL;
}

/* Tell the daemon what was dropped: once there is room again, and before that whenever it is much. */
int mailbox_report(chx_worker *worker) {
    struct mailbox *mailbox = &worker->mailbox;
    if (!mailbox->unreported) return 0;
    if (mailbox->unreported < REPORT_AT_ONCE && mailbox->bytes > BYTES_MAX / 2) return 0;
    for (struct withheld *entry = mailbox->dropped; entry; entry = entry->next) {
        chx_writer message = message_begin("messages-dropped", 2);
        chx_pair_text(&message, "topic", entry->name);
        chx_pair_count(&message, "count", entry->count);
        int told = tell(worker, &message, NULL, 0, false);
        if (told < 0) return told;
    }
    withheld_free(mailbox->dropped);
    mailbox->dropped = NULL;
    mailbox->unreported = 0;
    return 0;
}

static void fill_tick(chx_tick *tick, const struct note *note) {
    const chx_value *message = note->message;
    *tick = (chx_tick){
        .id = chx_text(chx_get(message, "id"), ""),
        .sequence = (uint64_t)chx_int(chx_get(message, "sequence"), 0),
        .due_ns = (uint64_t)chx_int(chx_get(message, "due_ns"), 0),
        .missed = note->missed,
    };
}

static void fill_message(chx_message *message, const struct note *note) {
    const chx_value *envelope = chx_get(note->message, "envelope"), *payload = chx_get(note->message, "payload");
    const chx_value *head = note->kind == CHX_MESSAGE ? envelope : note->message;
    *message = (chx_message){
        .topic = chx_text(chx_get(head, "topic"), ""),
        .content_type = chx_text(chx_get(head, "content_type"), "application/json"),
        .data = chx_bytes(payload),
        .size = chx_size_of(payload),
        .envelope = envelope,
        .request = note->request,
        .failure = note->failure,
    };
    if (note->kind == CHX_MESSAGE) message->corr_id = chx_text(chx_get(envelope, "corr_id"), NULL);
    if (message->corr_id && !*message->corr_id) message->corr_id = NULL;
}

void event_fill(chx_event *event, const struct note *note) {
    event->kind = note->kind;
    if (note->kind == CHX_TICK)
        fill_tick(&event->tick, note);
    else
        fill_message(&event->message, note);
}
