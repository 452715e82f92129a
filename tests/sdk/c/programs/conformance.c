/* What the conformance kit asks of a program: by its ports a sink, a map that returns each frame, or a source of the
 * numbers from 1. */
#include <chronetix.h>
#include <string.h>

static int produce(chx_worker *worker, void *state) {
    uint64_t *number = state, next = *number + 1;
    size_t size = (size_t)chx_int(chx_get(chx_params(worker), "size"), sizeof next);
    chx_loan loan;
    int result = chx_reserve(worker, size, NULL, &loan);
    if (result < 0) return result;
    for (size_t at = 0; at < size; at += sizeof next) /* the number again and again */
        memcpy((char *)loan.data + at, &next, size - at < sizeof next ? size - at : sizeof next);
    result = chx_commit(worker, &loan, size, NULL);
    if (result == 0) *number = next;
    return result;
}

static int on_start(chx_worker *worker, void *state) {
    *(uint64_t *)state = chx_resume_after(worker);
    return 0;
}

static int on_frame(chx_worker *worker, const chx_frame *frame, void *state) {
    (void)state;
    const chx_how how = {.meta = frame->meta, .meta_size = frame->meta_size, .stamp_ns = frame->stamp_ns};
    return chx_outputs(worker) ? chx_send(worker, frame->data, frame->size, &how) : 0;
}

int main(void) {
    uint64_t number = 0;
    chx_worker *worker;
    int result = chx_worker_inherit(&worker);
    if (result < 0) {
        chx_worker_close(worker);
        return chx_exit_code(result);
    }
    bool source = chx_size_of(chx_get(chx_config(worker), "inputs")) == 0 && chx_size_of(chx_get(chx_config(worker), "outputs")) != 0;
    const chx_plugin plugin = {.start = on_start, .frame = on_frame, .produce = source ? produce : NULL};
    int code = chx_worker_run(worker, &plugin, &number);
    chx_worker_close(worker);
    return code;
}
