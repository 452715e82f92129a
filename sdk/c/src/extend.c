/* Routes that come, change and go while the worker runs.
 *
 * Inputs, their next stages and taps are made at once. Other outputs change between two frames, all together: an output
 * of a higher epoch begins where the one before it stops, which is kept until the daemon says that it is drained.
 */
#include <stdlib.h>
#include <string.h>

#include "worker.h"

/* Shows memory. `routes` has the texts of the rings, then of the credits; all of it is freed. */
int control_offer(chx_worker *worker, chx_writer *routes, uint32_t rings, uint32_t credits, const int *fds, uint32_t count) {
    chx_writer message = message_begin("offer", 3);
    chx_write_text(&message, "rings");
    chx_write_list(&message, rings);
    chx_write_raw(&message, routes[0].data, routes[0].size);
    chx_write_text(&message, "credits");
    chx_write_list(&message, credits);
    chx_write_raw(&message, routes[1].data, routes[1].size);
    chx_write_text(&message, "segments");
    uint32_t segments = count - rings - credits;
    chx_write_list(&message, segments);
    for (uint32_t i = 0, left = segments; left && i < worker->arena.segment_count; i++) {
        if (worker->arena.segments[i].map.fd < 0) continue;
        chx_write_count(&message, i);
        left--;
    }
    message.failed |= routes[0].failed || routes[1].failed;
    chx_free_writer(&routes[0]);
    chx_free_writer(&routes[1]);
    return tell(worker, &message, fds, count, true);
}

static int tap_make(chx_worker *worker, struct port *port, struct output **made) {
    const struct output *tapped = output_find(worker, port->tap_of);
    if (!worker->has_arena || !tapped || tapped->tap_of)
        return fail(worker, CHX_E_MALFORMED_MESSAGE, "%.200s is no output that could be listened to", port->tap_of);
    if (output_find(worker, port->route)) return fail(worker, CHX_E_MALFORMED_MESSAGE, "%.200s is there already", port->route);
    outputs_sweep(worker);
    int result = output_make(worker, port, false, made);
    return result < 0 ? result : output_add(worker, *made);
}

/* Inputs and taps, at once. */
static int extend(chx_worker *worker, const chx_value *message) {
    const chx_value *inputs = chx_get(message, "inputs"), *taps = chx_get(message, "outputs");
    chx_writer routes[2] = {{0}, {0}};
    uint32_t rings = 0, credits = 0;
    int result = 0, *fds = malloc((chx_size_of(inputs) + chx_size_of(taps) + 1) * sizeof *fds);
    if (!fds) return no_memory(worker, "an offer");
    for (size_t i = 0; result >= 0 && i < chx_size_of(taps); i++) {
        struct port port;
        struct output *tap;
        result = port_read(worker, chx_at(taps, i), &port);
        if (result >= 0) result = tap_make(worker, &port, &tap);
        if (result < 0) break;
        chx_write_text(&routes[0], port.route);
        fds[rings++] = tap->end.ring_map.fd;
    }
    for (size_t i = 0; result >= 0 && i < chx_size_of(inputs); i++) {
        struct port port;
        struct stage *stage;
        result = port_read(worker, chx_at(inputs, i), &port);
        if (result >= 0) result = input_append(worker, &port, &stage);
        if (result < 0) break;
        chx_write_text(&routes[1], port.route);
        fds[rings + credits++] = stage->end.credit_map.fd;
    }
    if (result >= 0) {
        result = control_offer(worker, routes, rings, credits, fds, rings + credits);
    } else {
        chx_free_writer(&routes[0]);
        chx_free_writer(&routes[1]);
    }
    free(fds);
    return result;
}

/* Whether outputs that are no taps change: that is done between two frames. Takes the message over then. */
int control_extend(chx_worker *worker, struct incoming *incoming) {
    const chx_value *outputs = chx_get(incoming->message, "outputs");
    bool waits = chx_size_of(chx_get(incoming->message, "leave")) != 0;
    for (size_t i = 0; i < chx_size_of(outputs); i++)
        waits |= chx_size_of(chx_get(chx_at(outputs, i), "tap_of")) == 0;
    if (!waits) return extend(worker, incoming->message);
    struct extension *extension = calloc(1, sizeof *extension);
    if (!extension) return no_memory(worker, "a change of routes");
    extension->message = incoming->message;
    incoming->message = NULL;
    *worker->last_extension = extension;
    worker->last_extension = &extension->next;
    return 0;
}

static bool is_busy(const chx_worker *worker, const chx_value *message) {
    const chx_value *outputs = chx_get(message, "outputs"), *leave = chx_get(message, "leave");
    for (size_t i = 0; i < chx_size_of(outputs) + chx_size_of(leave); i++) {
        const chx_value *route = i < chx_size_of(outputs) ? chx_get(chx_at(outputs, i), "route")
                                                          : chx_at(leave, i - chx_size_of(outputs));
        const struct output *output = output_find(worker, chx_text(route, ""));
        if (output && output->end.reserved) return true;
    }
    return false;
}

/* Take an output out of those that are sent to, and keep it until its stage is drained. */
static struct output *output_leave(chx_worker *worker, const char *route) {
    for (uint32_t i = 0; i < worker->output_count; i++) {
        struct output *output = worker->outputs[i];
        if (strcmp(output->names.route, route) != 0) continue;
        memmove(&worker->outputs[i], &worker->outputs[i + 1], (worker->output_count - i - 1) * sizeof(*worker->outputs));
        worker->output_count--;
        output->next = worker->done;
        return worker->done = output;
    }
    return NULL;
}

static int reroute_output(chx_worker *worker, struct port *port, uint64_t sent, struct output **made) {
    struct output *before = output_find(worker, port->route);
    if (before) {
        if (port->epoch <= before->end.header.epoch)
            return fail(worker, CHX_E_MALFORMED_MESSAGE, "output %.200s: its next stage is not behind the present one", port->route);
        port->base_seq = before->end.header.base_seq + before->end.position;
        uint64_t item = worker->item > before->resume ? worker->item : before->resume;
        port->resume = worker->is_source ? item : sent;
        output_leave(worker, port->route);
    } else {
        port->resume = sent;
    }
    int result = output_make(worker, port, true, made);
    return result < 0 ? result : output_add(worker, *made);
}

static int reroute(chx_worker *worker, const chx_value *message) {
    const chx_value *outputs = chx_get(message, "outputs"), *leave = chx_get(message, "leave");
    chx_writer routes[2] = {{0}, {0}};
    uint64_t sent = 0;
    uint32_t rings = 0;
    if (!worker->has_arena) return fail(worker, CHX_E_MALFORMED_MESSAGE, "this node had no outputs and cannot get some while it runs");
    for (uint32_t i = 0; worker->is_source && i < worker->output_count; i++)
        sent = worker->outputs[i]->resume > sent ? worker->outputs[i]->resume : sent;
    if (worker->is_source && worker->item > sent) sent = worker->item;
    for (size_t i = 0; i < chx_size_of(leave); i++) {
        struct output *output = output_leave(worker, chx_text(chx_at(leave, i), ""));
        if (!output) return fail(worker, CHX_E_ROUTE_UNKNOWN, "this node has no output that it could leave so");
        chx_producer_close(&output->end);
    }
    int result = 0, *fds = malloc((chx_size_of(outputs) + 1) * sizeof *fds);
    if (!fds) return no_memory(worker, "an offer");
    for (size_t i = 0; result >= 0 && i < chx_size_of(outputs); i++) {
        struct port port;
        struct output *output;
        result = port_read(worker, chx_at(outputs, i), &port);
        if (result >= 0) result = reroute_output(worker, &port, sent, &output);
        if (result < 0) break;
        chx_write_text(&routes[0], port.route);
        fds[rings++] = output->end.ring_map.fd;
    }
    if (result >= 0)
        result = control_offer(worker, routes, rings, 0, fds, rings);
    else
        chx_free_writer(&routes[0]);
    free(fds);
    return result;
}

/* Between two frames: change outputs, unless a frame is being filled that goes to one of them. */
int control_reroute(chx_worker *worker) {
    while (worker->extensions) {
        struct extension *extension = worker->extensions;
        if (is_busy(worker, extension->message)) return 0;
        worker->extensions = extension->next;
        if (!worker->extensions) worker->last_extension = &worker->extensions;
        int result = reroute(worker, extension->message);
        chx_free_value(extension->message);
        free(extension);
        if (result < 0) return result;
    }
    return 0;
}
