/* What the daemon says about a worker's memory and routes: configure, link, growth, ends.
 *
 * Everything is checked before anything of it is done; a message that does not fit is the daemon's fault and ends the
 * worker, but a peer's memory that does not fit costs only its route. Descriptors that came are closed once they are
 * mapped.
 */
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "worker.h"

#define FIRST_SEGMENT (1ull << 18) /* enough for small frames, cheap to make; larger frames make it grow at once */
#define ARENA_MAX (1ull << 43)

/* ---- the first configuration ------------------------------------------------------------------------------------ */

static int offer_all(chx_worker *worker) {
    chx_writer routes[2] = {{0}, {0}};
    uint32_t rings = 0, credits = 0, count = 0, room = worker->output_count + worker->arena.segment_count;
    for (uint32_t i = 0; i < worker->input_count; i++)
        for (struct stage *stage = worker->inputs[i]->first; stage; stage = stage->next) room++;
    int *fds = malloc((room + 1) * sizeof *fds);
    if (!fds) return no_memory(worker, "an offer");
    for (uint32_t i = 0; i < worker->output_count; i++, rings++) {
        chx_write_text(&routes[0], worker->outputs[i]->names.route);
        fds[count++] = worker->outputs[i]->end.ring_map.fd;
    }
    const chx_value *ports = chx_get(worker->config, "inputs");
    for (size_t i = 0; i < chx_size_of(ports); i++, credits++) { /* in the order of the ports */
        struct port port;
        if (port_read(worker, chx_at(ports, i), &port) < 0) break;
        const struct input *input = input_find(worker, port.route);
        const struct stage *stage = input ? stage_find(input, port.epoch) : NULL;
        if (!stage) break;
        chx_write_text(&routes[1], port.route);
        fds[count++] = stage->end.credit_map.fd;
    }
    for (uint32_t i = 0; i < worker->arena.segment_count; i++) fds[count++] = worker->arena.segments[i].map.fd;
    for (uint32_t i = 0; i < worker->arena.segment_count; i++) worker->arena.segments[i].announced = 1;
    int told = control_offer(worker, routes, rings, credits, fds, count);
    free(fds);
    return told;
}

static int make_arena(chx_worker *worker, uint64_t limit) {
    if (limit < CHX_ARENA_MIN || limit > ARENA_MAX)
        return fail(worker, CHX_E_MALFORMED_MESSAGE, "an arena of %llu bytes cannot be", (unsigned long long)limit);
    bool huge = chx_bool(chx_get(worker->config, "hugepages"), false);
    enum chx_status status = chx_arena_init(&worker->arena, limit, min_u64(limit, FIRST_SEGMENT), huge);
    if (status != CHX_OK) return fail_status(worker, status, "the arena", NULL);
    worker->has_arena = worker->arena.drops = 1;
    trim_init(worker);
    if (huge && worker->arena.huge.got & CHX_PAGES_SMALL)
        return chx_log(worker, "warning", "huge pages were asked for, but there are none; the node runs with small ones");
    return 0;
}

/* Makes the memory of the node's ends, and shows it. */
int control_configure(chx_worker *worker) {
    const chx_value *inputs = chx_get(worker->config, "inputs"), *outputs = chx_get(worker->config, "outputs");
    uint64_t limit;
    bool sound = read_count(worker->config, "arena_limit", 1ull << 30, &limit) &&
                 read_count(worker->config, "budget_ns", 0, &worker->budget_ns);
    if (!sound) return fail(worker, CHX_E_MALFORMED_MESSAGE, "configure is not as PROTOCOL.md describes it");
    worker->is_source = chx_size_of(inputs) == 0;
    int result = chx_size_of(outputs) ? make_arena(worker, limit) : 0;
    uint64_t least = UINT64_MAX;
    for (size_t i = 0; result >= 0 && i < chx_size_of(outputs); i++) {
        struct port port;
        struct output *output = NULL;
        result = port_read(worker, chx_at(outputs, i), &port);
        if (result >= 0) result = output_make(worker, &port, false, &output);
        if (result >= 0) result = output_add(worker, output);
        if (result < 0) break;
        least = min_u64(least, port.resume);
    }
    worker->resume_after = worker->item = worker->is_source && least != UINT64_MAX ? least : 0;
    for (size_t i = 0; result >= 0 && i < chx_size_of(inputs); i++) {
        struct port port;
        struct stage *stage;
        result = port_read(worker, chx_at(inputs, i), &port);
        if (result >= 0) result = input_append(worker, &port, &stage);
    }
    return result < 0 ? result : offer_all(worker);
}

/* ---- link ------------------------------------------------------------------------------------------------------- */

/* The end of that stage of an output; NULL: it is over. */
static struct output *stage_meant(const chx_worker *worker, const char *route, const chx_value *epoch) {
    struct output *output = output_find(worker, route);
    uint64_t wanted = (uint64_t)chx_int(epoch, 0);
    if (!epoch || (output && output->end.header.epoch == wanted)) return output;
    for (output = worker->done; output; output = output->next)
        if (strcmp(output->names.route, route) == 0 && output->end.header.epoch == wanted) return output;
    return NULL;
}

static int link_output(chx_worker *worker, const char *route, const chx_value *epoch, const int *fds) {
    struct output *output = stage_meant(worker, route, epoch);
    if (!output) return epoch ? 0 : fail(worker, CHX_E_ROUTE_UNKNOWN, "%.200s is no output of this node", route);
    enum chx_status status = output->end.credit ? chx_producer_relink(&output->end, fds[0], fds[1], &worker->bell)
                                                : chx_producer_link(&output->end, fds[0], fds[1], &worker->bell);
    return status == CHX_OK ? 0 : fail_status(worker, status, route, &output->end.why);
}

static int map_segment(chx_worker *worker, struct stage *stage, uint64_t index, int fd) {
    uint32_t which = index < CHX_SEGMENTS_MAX ? (uint32_t)index : CHX_SEGMENTS_MAX;
    uint32_t *segments = realloc(stage->segments, (stage->segment_count + 1) * sizeof *segments);
    if (!segments) return no_memory(worker, "a segment");
    stage->segments = segments;
    enum chx_status status = chx_consumer_map(&stage->end, which, fd);
    if (status != CHX_OK) return fail_status(worker, status, stage->input->names.route, &stage->end.why);
    segments[stage->segment_count++] = which;
    return 0;
}

static int link_input(chx_worker *worker, const chx_value *link, const int *fds) {
    const char *route;
    uint64_t epoch, index;
    if (!read_text(link, "route", NULL, &route) || !read_count(link, "epoch", 0, &epoch))
        return fail(worker, CHX_E_MALFORMED_MESSAGE, "a link is not as PROTOCOL.md describes it");
    const struct input *input = input_find(worker, route);
    struct stage *stage = input ? stage_find(input, epoch) : NULL;
    if (!stage || (stage->end.state == CHX_CONSUMER_ENDED && stage->end.end == 0)) return 0; /* over, or nothing came of it */
    const chx_value *segments = chx_get(link, "segments");
    for (size_t i = 0; i < chx_size_of(segments); i++) {
        if (!chx_count_of(chx_at(segments, i), &index)) return fail(worker, CHX_E_MALFORMED_MESSAGE, "a segment has no index");
        int mapped = map_segment(worker, stage, index, fds[2 + i]);
        if (mapped < 0) return mapped;
    }
    enum chx_status status = chx_consumer_link(&stage->end, fds[0], fds[1], &worker->bell);
    if (status == CHX_OK && chx_bool(chx_get(link, "predecessor"), false)) {
        status = chx_consumer_inherit(&stage->end, fds[2 + chx_size_of(segments)]);
        stage->told = status == CHX_FAULT;
    }
    return status == CHX_OK ? 0 : fail_status(worker, status, route, &stage->end.why);
}

/* Maps the other ends. Descriptors: for each output two, for each input two and its segments, perhaps a predecessor's. */
static int link_all(chx_worker *worker, const struct incoming *incoming) {
    const chx_value *outputs = chx_get(incoming->message, "outputs"), *inputs = chx_get(incoming->message, "inputs");
    const chx_value *epochs = chx_get(incoming->message, "epochs");
    const int *fds = incoming->fds;
    for (size_t i = 0; i < chx_size_of(outputs); i++, fds += 2) {
        const char *route = chx_text(chx_at(outputs, i), NULL);
        if (!route) return fail(worker, CHX_E_MALFORMED_MESSAGE, "a link is not as PROTOCOL.md describes it");
        int result = link_output(worker, route, chx_at(epochs, i), fds);
        if (result < 0) return result;
    }
    for (size_t i = 0; i < chx_size_of(inputs); i++) {
        const chx_value *link = chx_at(inputs, i);
        int result = link_input(worker, link, fds);
        if (result < 0) return result;
        fds += 2 + chx_size_of(chx_get(link, "segments")) + chx_bool(chx_get(link, "predecessor"), false);
    }
    return 0;
}

static int first_link(chx_worker *worker, const struct incoming *incoming) {
    int result = link_all(worker, incoming);
    for (uint32_t i = 0; result >= 0 && i < worker->output_count; i++)
        if (!worker->outputs[i]->end.credit)
            result = fail(worker, CHX_E_ROUTE_DETACHED, "route %s: the daemon's link left it out", worker->outputs[i]->names.route);
    if (result < 0) return result;
    if (worker->survives) {
        prctl(PR_SET_PDEATHSIG, 0);
        if (streams_hold(&worker->streams, worker->link.fd, NULL) != 0)
            return fail(worker, CHX_E_INTERNAL, "stdout and stderr cannot be kept open: %s", strerror(errno));
    }
    worker->life = LIFE_READY;
    return tell_simple(worker, "ready", false);
}

static int further_link(chx_worker *worker, const struct incoming *incoming) {
    int result = link_all(worker, incoming);
    if (result < 0) return result;
    const chx_value *outputs = chx_get(incoming->message, "outputs"), *inputs = chx_get(incoming->message, "inputs");
    chx_writer message = message_begin("linked", 1);
    chx_write_text(&message, "routes");
    chx_write_list(&message, chx_size_of(outputs) + chx_size_of(inputs));
    for (size_t i = 0; i < chx_size_of(outputs); i++) chx_write_value(&message, chx_at(outputs, i));
    for (size_t i = 0; i < chx_size_of(inputs); i++) chx_write_value(&message, chx_get(chx_at(inputs, i), "route"));
    return tell(worker, &message, NULL, 0, true);
}

/* ---- segments, ends --------------------------------------------------------------------------------------------- */

static int answer_segment(chx_worker *worker, const char *type, uint64_t index, const char *route, uint64_t epoch) {
    chx_writer message = message_begin(type, 3);
    chx_pair_count(&message, "index", index);
    chx_pair_text(&message, "route", route);
    chx_pair_count(&message, "epoch", epoch);
    return tell(worker, &message, NULL, 0, true);
}

static int handle_segment(chx_worker *worker, const struct incoming *incoming) {
    const char *route;
    uint64_t index, epoch;
    const chx_value *message = incoming->message;
    if (!read_count(message, "index", UINT64_MAX, &index) || !read_text(message, "route", "", &route) ||
        !read_count(message, "epoch", 0, &epoch))
        return fail(worker, CHX_E_MALFORMED_MESSAGE, "%s is not as PROTOCOL.md describes it", incoming->type);
    const struct input *input = input_find(worker, route);
    struct stage *stage = input ? stage_find(input, epoch) : NULL;
    if (strcmp(incoming->type, "segment") == 0) {
        int mapped = stage ? map_segment(worker, stage, index, incoming->fds[0]) : 0;
        return mapped < 0 ? mapped : answer_segment(worker, "segment-mapped", index, route, epoch);
    }
    bool known = index < worker->arena.segment_count;
    if (strcmp(incoming->type, "segment-mapped") == 0) {
        if (known && chx_arena_confirm(&worker->arena, (uint32_t)index) != CHX_OK) return no_memory(worker, "a segment");
        return 0;
    }
    if (!*route) {
        if (known) chx_arena_forget(&worker->arena, (uint32_t)index);
        return 0;
    }
    if (stage) {
        uint32_t which = index < CHX_SEGMENTS_MAX ? (uint32_t)index : CHX_SEGMENTS_MAX;
        if (chx_consumer_drop(&stage->end, which) != CHX_OK) return 0; /* the next take says so */
        for (uint32_t i = 0; i < stage->segment_count; i++)
            if (stage->segments[i] == which) stage->segments[i--] = stage->segments[--stage->segment_count];
    }
    return answer_segment(worker, "segment-dropped", index, route, epoch);
}

static int handle_end(chx_worker *worker, const struct incoming *incoming) {
    const char *route, *type = incoming->type;
    uint64_t number;
    bool concludes = strcmp(type, "conclude") == 0;
    if (!read_text(incoming->message, "route", NULL, &route) ||
        !read_count(incoming->message, concludes ? "seq" : "epoch", 0, &number))
        return fail(worker, CHX_E_MALFORMED_MESSAGE, "%s is not as PROTOCOL.md describes it", type);
    if (concludes) return input_conclude(worker, route, number);
    struct output *output = output_find(worker, route);
    if (strcmp(type, "drained") == 0) {
        for (struct output **at = &worker->done; *at; at = &(*at)->next) {
            output = *at;
            if (strcmp(output->names.route, route) != 0 || output->end.header.epoch != number) continue;
            *at = output->next;
            output_free(output, true);
            break;
        }
        return 0;
    }
    if (!output) return 0; /* it is gone already */
    chx_producer_close(&output->end);
    output->gone = output->tap_of != NULL;
    outputs_sweep(worker);
    return 0;
}

static int handle_ping(chx_worker *worker, const struct incoming *incoming) {
    uint64_t id;
    if (!read_count(incoming->message, "id", UINT64_MAX, &id)) return fail(worker, CHX_E_MALFORMED_MESSAGE, "a ping has no id");
    chx_writer message = message_begin("pong", 2);
    chx_pair_count(&message, "id", id);
    chx_pair_count(&message, "progress", worker->steps);
    return tell(worker, &message, NULL, 0, true);
}

/* ---- which message ---------------------------------------------------------------------------------------------- */

static const chx_value *take_over(struct incoming *incoming) {
    const chx_value *message = incoming->message;
    incoming->message = NULL;
    return message;
}

static int handle_start(chx_worker *worker, struct incoming *incoming) {
    if (worker->life != LIFE_READY) return fail(worker, CHX_E_UNEXPECTED_MESSAGE, "a start came that is not due");
    worker->handover = chx_get(incoming->message, "handover");
    worker->handover_document = take_over(incoming);
    worker->life = LIFE_START;
    return 0;
}

static int handle_failure(chx_worker *worker, const struct incoming *incoming) {
    int64_t code = chx_int(chx_get(incoming->message, "code"), CHX_E_INTERNAL);
    bool sound = code > 0 && code < INT32_MAX;
    return fail(worker, sound ? (int)code : CHX_E_INTERNAL, "%s", chx_text(chx_get(incoming->message, "message"), "the daemon refuses"));
}

int control_handle(chx_worker *worker, struct incoming *incoming) {
    const char *type = incoming->type;
    static const char *const segments[] = {"segment", "segment-mapped", "segment-dropped"};
    static const char *const ends[] = {"conclude", "drained", "detach", "retract"};
    uint32_t which;
    if (strcmp(type, "tick") == 0) return mailbox_put(worker, take_over(incoming), CHX_TICK);
    if (strcmp(type, "deliver") == 0) return mailbox_put(worker, take_over(incoming), CHX_MESSAGE);
    if (strcmp(type, "reply") == 0) return bus_ended(worker, take_over(incoming), NULL);
    if (strcmp(type, "request-failed") == 0) {
        const char *reason = chx_text(chx_get(incoming->message, "reason"), "");
        return bus_ended(worker, take_over(incoming), reason);
    }
    if (strcmp(type, "ping") == 0) return handle_ping(worker, incoming);
    if (read_choice(type, segments, 3, &which)) return handle_segment(worker, incoming);
    if (read_choice(type, ends, 4, &which)) return handle_end(worker, incoming);
    if (strcmp(type, "extend") == 0) return control_extend(worker, incoming);
    if (strcmp(type, "link") == 0)
        return worker->life == LIFE_OFFERED ? first_link(worker, incoming) : further_link(worker, incoming);
    if (strcmp(type, "start") == 0) return handle_start(worker, incoming);
    if (strcmp(type, "drain") == 0 || strcmp(type, "leave") == 0) {
        worker->draining = 1;
        worker->leaves = strcmp(type, "leave") == 0;
        for (uint32_t i = 0; worker->leaves && i < worker->input_count; i++)
            worker->leave_left += worker->inputs[i]->current->end.credits;
        return 0;
    }
    if (strcmp(type, "error") == 0) return handle_failure(worker, incoming);
    return fail(worker, CHX_E_UNEXPECTED_MESSAGE, "a message of type %.40s may not come to a worker that runs", type);
}
