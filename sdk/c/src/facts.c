/* What a worker's code may ask: its place in the flow, its routes, the names of errors. */
#include <string.h>

#include "worker.h"

int chx_worker_fd(const chx_worker *worker) { return worker->bell.epoll; }
const chx_value *chx_config(const chx_worker *worker) { return worker->config; }
const chx_value *chx_params(const chx_worker *worker) { return chx_get(worker->config, "params"); }
const chx_value *chx_handover(const chx_worker *worker) { return worker->handover; }
const char *chx_flow(const chx_worker *worker) { return chx_text(chx_get(worker->config, "flow"), ""); }
const char *chx_node(const chx_worker *worker) { return chx_text(chx_get(worker->config, "node"), ""); }
uint64_t chx_resume_after(const chx_worker *worker) { return worker->resume_after; }
bool chx_stopping(const chx_worker *worker) { return worker->draining != 0; }

size_t chx_inputs(const chx_worker *worker) { return worker->input_count; }

size_t chx_outputs(const chx_worker *worker) {
    size_t count = 0;
    for (uint32_t i = 0; i < worker->output_count; i++) count += worker->outputs[i]->tap_of == NULL;
    return count;
}

static void fill(chx_route *route, const struct names *names, uint32_t credits) {
    *route = (chx_route){
        .route = names->route,
        .peer = names->peer,
        .topic = names->topic,
        .content_type = names->content_type,
        .policy = names->policy,
        .credits = credits,
    };
}

int chx_input(const chx_worker *worker, size_t index, chx_route *route) {
    if (index >= worker->input_count) return -CHX_E_ROUTE_UNKNOWN;
    const struct input *input = worker->inputs[index];
    fill(route, &input->names, input->current->end.credits);
    route->open = input->current->end.state <= CHX_CONSUMER_OPEN || input->current->next;
    return 0;
}

int chx_output(const chx_worker *worker, size_t index, chx_route *route) {
    for (uint32_t i = 0; i < worker->output_count; i++) {
        struct output *output = worker->outputs[i];
        if (output->tap_of || index-- != 0) continue;
        uint64_t due = 0;
        bool counts = chx_producer_returns(&output->end) && chx_producer_look(&output->end, &due) == CHX_OK;
        fill(route, &output->names, output->end.credits);
        route->used = chx_outstanding(&output->end) - (counts ? (uint32_t)due : 0) + output->end.reserved;
        route->high = route->used >= output->end.header.watermark;
        route->open = output->end.state == CHX_OPEN || (output->later && output->end.state == CHX_UNLINKED);
        return 0;
    }
    return -CHX_E_ROUTE_UNKNOWN;
}

const char *chx_error_name(int code) {
#define NAME(constant, number, name) \
    case number:                     \
        return name;
    switch (code < 0 ? -code : code) {
        CHX_ERROR_LIST(NAME)
        default:
            return NULL;
    }
#undef NAME
}
