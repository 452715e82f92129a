/* Frames that come in: each route is a chain of stages, oldest first; of the routes' frames one is chosen.
 *
 * Choosing: the highest class of service that has a frame goes first, for at most 8, 4, 2 and 1 takes of a round
 * (realtime, high, normal, best-effort). Within a class inputs take turns; once a frame with a deadline was seen, the
 * earliest deadline goes first, but for every eighth take.
 *
 * A stage whose producer has died, or has gone on, ends where the next one begins. When all of its frames are back it is
 * unmapped and the daemon is told, oldest stage first.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker.h"

#define BY_TURN 8u
#define PATIENCE 256u /* looks for deadlines that show none, until they are not looked for */
#define TORN_MAX 64u  /* copies in a row that are overwritten, until the caller gets a turn */

struct input *input_find(const chx_worker *worker, const char *route) {
    for (uint32_t i = 0; i < worker->input_count; i++)
        if (strcmp(worker->inputs[i]->names.route, route) == 0) return worker->inputs[i];
    return NULL;
}

struct stage *stage_find(const struct input *input, uint64_t epoch) {
    for (struct stage *stage = input->first; stage; stage = stage->next)
        if (stage->end.header.epoch == epoch) return stage;
    return NULL;
}

static void stage_free(struct stage *stage) {
    chx_consumer_destroy(&stage->end);
    free(stage->segments);
    free(stage);
}

static void input_free(struct input *input) {
    for (struct stage *stage = input->first, *next; stage; stage = next) {
        next = stage->next;
        stage_free(stage);
    }
    free(input->names.route);
    free(input);
}

static struct input *input_make(chx_worker *worker, const struct port *port) {
    if (worker->input_count == worker->input_room) {
        uint32_t room = worker->input_room ? 2 * worker->input_room : 4;
        struct input **inputs = realloc(worker->inputs, room * sizeof(*inputs));
        if (!inputs) return NULL;
        worker->inputs = inputs;
        worker->input_room = room;
    }
    struct input *input = calloc(1, sizeof *input);
    if (!input || names_keep(&input->names, port) != 0) {
        free(input);
        return NULL;
    }
    worker->inputs[worker->input_count++] = input;
    return input;
}

static struct stage *last_stage(const struct input *input) {
    struct stage *stage = input->first;
    while (stage && stage->next) stage = stage->next;
    return stage;
}

/* Whether a stage of `epoch` from `base_seq` on can follow, which ends the present last one there. */
static int stage_succeeds(chx_worker *worker, struct stage *before, uint64_t epoch, uint64_t base_seq) {
    const struct chx_header *header = &before->end.header;
    const char *route = before->input->names.route;
    if (epoch <= header->epoch || base_seq < header->base_seq)
        return fail(worker, CHX_E_MALFORMED_MESSAGE, "route %s: a stage of epoch %llu cannot follow one of epoch %llu", route,
                    (unsigned long long)epoch, (unsigned long long)header->epoch);
    enum chx_status status = chx_consumer_end_at(&before->end, base_seq - header->base_seq);
    if (status == CHX_OK) return 0;
    before->told = 1;
    return fail_status(worker, status, route, &before->end.why);
}

int input_append(chx_worker *worker, const struct port *port, struct stage **made) {
    struct input *input = input_find(worker, port->route);
    struct stage *before = input ? last_stage(input) : NULL;
    if (before && stage_succeeds(worker, before, port->epoch, port->base_seq) < 0) return -CHX_E_MALFORMED_MESSAGE;
    struct stage *stage = calloc(1, sizeof *stage);
    if (stage && !input) input = input_make(worker, port);
    if (!stage || !input) {
        free(stage);
        return no_memory(worker, "a route");
    }
    struct chx_header header = {.epoch = port->epoch, .base_seq = port->base_seq, .credits = (uint32_t)port->credits};
    enum chx_status status = chx_consumer_init(&stage->end, &header);
    stage->input = input;
    stage->resume = port->resume;
    if (status != CHX_OK) {
        stage_free(stage);
        return fail_status(worker, status, port->route, NULL);
    }
    input->class = port->class;
    input->concluded = 0;
    if (before)
        before->next = stage;
    else
        input->first = stage;
    if (!input->current) input->current = stage;
    *made = stage;
    return 0;
}

int input_conclude(chx_worker *worker, const char *route, uint64_t seq) {
    struct input *input = input_find(worker, route);
    struct stage *last = input ? last_stage(input) : NULL;
    if (!last) return fail(worker, CHX_E_ROUTE_UNKNOWN, "%s is no input of this node", route);
    if (seq < last->end.header.base_seq)
        return fail(worker, CHX_E_MALFORMED_MESSAGE, "route %s is concluded before it began", route);
    enum chx_status status = chx_consumer_end_at(&last->end, seq - last->end.header.base_seq);
    input->concluded = 1;
    if (status == CHX_OK) return 0;
    last->told = 1;
    return fail_status(worker, status, route, &last->end.why);
}

/* ---- stages that are over --------------------------------------------------------------------------------------- */

static void tell_drained(chx_worker *worker, const char *route, uint64_t epoch) {
    chx_writer message = message_begin("drained", 2);
    chx_pair_text(&message, "route", route);
    chx_pair_count(&message, "epoch", epoch);
    tell(worker, &message, NULL, 0, true); /* a broken connection is found by who reads it */
}

static void input_forget(chx_worker *worker, struct input *input) {
    for (uint32_t i = 0; i < worker->input_count; i++) {
        if (worker->inputs[i] != input) continue;
        memmove(&worker->inputs[i], &worker->inputs[i + 1], (worker->input_count - i - 1) * sizeof(*worker->inputs));
        worker->input_count--;
        break;
    }
    memset(worker->next_turn, 0, sizeof worker->next_turn);
    input_free(input);
}

/* Unmap the stages that were left and whose frames are all back, oldest first. The input itself goes with its last stage
 * if nothing follows: then `input` is freed. */
void stage_settle(chx_worker *worker, struct input *input) {
    for (struct stage *stage = input->first; stage && stage->left && !chx_consumer_busy(&stage->end); stage = input->first) {
        input->first = stage->next;
        if (input->current == stage) input->current = stage->next;
        tell_drained(worker, input->names.route, stage->end.header.epoch);
        stage_free(stage);
    }
    if (!input->first && input->concluded && !input->copies) input_forget(worker, input);
}

/* The present stage has ended: go on with the next one. False if there is none, or the route is over. */
static bool input_advance(chx_worker *worker, struct input *input) {
    struct stage *stage = input->current;
    if (stage->next) {
        stage->left = 1;
        input->current = stage->next;
        stage_settle(worker, input);
        return true;
    }
    if (input->concluded) {
        stage->left = 1;
        stage_settle(worker, input);
    }
    return false;
}

/* ---- taking ----------------------------------------------------------------------------------------------------- */

static void fill(chx_frame *frame, struct stage *stage, const struct chx_taken *taken, void *copy) {
    const struct names *names = &stage->input->names;
    const uint8_t *data = copy ? copy : taken->data;
    *frame = (chx_frame){
        .data = data,
        .size = (size_t)taken->length,
        .route = names->route,
        .peer = names->peer,
        .content_type = names->content_type,
        .seq = taken->seq,
        .time_ns = taken->time_ns,
        .deadline_ns = taken->deadline_ns,
        .trace = taken->trace,
        .input_seq = taken->input_seq,
        .schema = taken->schema,
        .redelivered = (taken->flags & CHX_FLAG_REDELIVERED) != 0,
        .stage = copy ? (void *)stage->input : (void *)stage,
        .copy = copy,
        .stamp = taken->stamp,
    };
    if (!(taken->flags & CHX_FLAG_NOTED)) return;
    struct chx_notes notes;
    memcpy(&notes, data + taken->length + taken->meta, sizeof notes);
    frame->stamp_ns = notes.stamp_ns;
    if (taken->meta) frame->meta = data + taken->length;
    frame->meta_size = taken->meta;
}

/* Policy latest: the frame is copied, and believed afterwards. */
static enum chx_status take_copy(struct stage *stage, struct chx_taken *taken, void **copy) {
    for (uint32_t tries = 0; tries < TORN_MAX; tries++) {
        enum chx_status status = chx_consumer_look(&stage->end, taken);
        if (status != CHX_OK) return status;
        uint64_t size = chx_taken_bytes(taken);
        *copy = malloc(size ? size : 1);
        if (!*copy) return CHX_NO_MEMORY;
        chx_latest_begin(&stage->end, taken);
        memcpy(*copy, taken->data, size);
        if (chx_latest_keep(&stage->end, taken)) return CHX_OK;
        free(*copy);
        *copy = NULL;
    }
    return CHX_WOULD_BLOCK;
}

static int input_take(chx_worker *worker, struct input *input, chx_frame *frame) {
    for (;;) {
        struct stage *stage = input->current;
        struct chx_taken taken;
        void *copy = NULL;
        enum chx_status status =
            stage->end.latest ? take_copy(stage, &taken, &copy) : chx_consumer_take(&stage->end, &taken);
        switch (status) {
            case CHX_OK:
                fill(frame, stage, &taken, copy);
                input->copies += copy != NULL;
                return SCAN_FOUND;
            case CHX_EMPTY:
                return SCAN_NOTHING;
            case CHX_WOULD_BLOCK:
                return SCAN_TORN;
            case CHX_FAULT:
                if (stage->told) return SCAN_ENDED;
                stage->told = 1;
                return fail_peer(worker, input->names.route, stage->end.header.epoch, &stage->end.why);
            case CHX_ENDED:
                if (!input_advance(worker, input)) return SCAN_ENDED;
                continue;
            default:
                return fail_status(worker, status, input->names.route, &stage->end.why);
        }
    }
}

static struct input *at(const chx_worker *worker, uint32_t class, uint32_t index) {
    struct input *input = worker->inputs[index];
    return input->class == class ? input : NULL;
}

/* The next in turn of a class that has something. */
static int take_by_turn(chx_worker *worker, uint32_t class, chx_frame *frame) {
    int result = SCAN_ENDED;
    uint32_t count = worker->input_count, from = worker->next_turn[class];
    for (uint32_t looks = 0; looks < count && worker->input_count == count; looks++) {
        uint32_t index = (from + looks) % count;
        struct input *input = at(worker, class, index);
        if (!input) continue;
        int found = input_take(worker, input, frame);
        if (found == SCAN_FOUND || found < 0) {
            worker->next_turn[class] = (index + 1) % count;
            if (found == SCAN_FOUND && frame->deadline_ns && count > 1) worker->deadlines[class] = PATIENCE;
            return found;
        }
        if (found != SCAN_ENDED) result = found;
    }
    return worker->input_count == count ? result : SCAN_TORN; /* a route is over: look again */
}

/* The earliest deadline; among equals the next in turn. */
static int take_by_deadline(chx_worker *worker, uint32_t class, chx_frame *frame) {
    uint32_t count = worker->input_count, from = worker->next_turn[class], best = count;
    uint64_t earliest = UINT64_MAX;
    worker->deadlines[class]--;
    for (uint32_t looks = 0; looks < count; looks++) {
        uint32_t index = (from + looks) % count;
        struct input *input = at(worker, class, index);
        struct chx_taken seen;
        if (!input || chx_consumer_look(&input->current->end, &seen) != CHX_OK) continue;
        uint64_t due = seen.deadline_ns ? seen.deadline_ns : UINT64_MAX;
        if (seen.deadline_ns) worker->deadlines[class] = PATIENCE;
        if (best == count || due < earliest) {
            best = index;
            earliest = due;
        }
    }
    if (best == count) return take_by_turn(worker, class, frame);
    worker->next_turn[class] = (best + 1) % count;
    return input_take(worker, worker->inputs[best], frame);
}

static int take_of_class(chx_worker *worker, uint32_t class, chx_frame *frame) {
    if (worker->deadlines[class] && ++worker->takes[class] % BY_TURN != 0) return take_by_deadline(worker, class, frame);
    return take_by_turn(worker, class, frame);
}

static bool has_class(const chx_worker *worker, uint32_t class) {
    for (uint32_t i = 0; i < worker->input_count; i++)
        if (worker->inputs[i]->class == class) return true;
    return false;
}

int inputs_scan(chx_worker *worker, chx_frame *frame) {
    static const uint32_t quotas[CLASSES] = {1, 2, 4, 8};
    if (worker->input_count == 1) return input_take(worker, worker->inputs[0], frame);
    for (;;) {
        int result = SCAN_ENDED;
        bool spent = false;
        for (uint32_t class = CLASSES; class-- > 0;) {
            if (!has_class(worker, class)) continue;
            if (!worker->turns_left[class]) {
                spent = true;
                continue;
            }
            int found = take_of_class(worker, class, frame);
            if (found == SCAN_FOUND) worker->turns_left[class]--;
            if (found == SCAN_FOUND || found < 0) return found;
            if (found != SCAN_ENDED) result = found;
        }
        if (!spent) return result;
        memcpy(worker->turns_left, quotas, sizeof quotas);
    }
}

void chx_release(chx_worker *worker, const chx_frame *frame) {
    if (!frame->stage || worker->owner != getpid()) return;
    if (frame->copy) {
        struct input *input = frame->stage;
        free(frame->copy);
        input->copies--;
        stage_settle(worker, input);
        return;
    }
    struct stage *stage = frame->stage;
    chx_consumer_return(&stage->end, frame->stamp);
    if (stage->left) stage_settle(worker, stage->input);
}

/* ---- waiting ---------------------------------------------------------------------------------------------------- */

/* A worker that may be answering takes no nap, nor one of a class above normal: see pace.h. */
bool inputs_nap(const chx_worker *worker) {
    if (worker->taken < CHX_NAP_FRAMES * (worker->commits - worker->commits_before)) return false;
    for (uint32_t i = 0; i < worker->input_count; i++)
        if (worker->inputs[i]->class > 1 || !chx_consumer_may_nap(&worker->inputs[i]->current->end)) return false;
    return worker->input_count > 0;
}

/* Publishes the positions waited for; how long the sleep may last, in ns, 0: for ever. The caller issues the fence. */
uint64_t inputs_arm(chx_worker *worker, bool naps) {
    uint64_t shortest = 0;
    for (uint32_t i = 0; i < worker->input_count; i++) {
        struct chx_consumer *end = &worker->inputs[i]->current->end;
        uint64_t nap = 0;
        if (naps)
            nap = chx_consumer_arm_nap(end);
        else
            chx_consumer_arm(end);
        if (nap && (!shortest || nap < shortest)) shortest = nap;
    }
    worker->armed = 1;
    return shortest;
}

void inputs_nudge(const chx_worker *worker) {
    for (uint32_t i = 0; i < worker->input_count; i++) {
        struct chx_consumer *end = &worker->inputs[i]->current->end;
        if (end->state != CHX_CONSUMER_OPEN) continue;
        chx_count(&end->credit->stats.sleeps, 1);
        chx_consumer_nudge(end);
    }
}

void inputs_disarm(const chx_worker *worker) {
    for (uint32_t i = 0; i < worker->input_count; i++) chx_consumer_disarm(&worker->inputs[i]->current->end);
}

void inputs_free(chx_worker *worker, bool detach) {
    for (uint32_t i = 0; i < worker->input_count; i++) {
        for (struct stage *stage = worker->inputs[i]->first; stage && detach; stage = stage->next)
            chx_consumer_close(&stage->end);
        input_free(worker->inputs[i]);
    }
    free(worker->inputs);
    worker->inputs = NULL;
    worker->input_count = worker->input_room = 0;
}
