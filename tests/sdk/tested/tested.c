/* The worker that the conformance kit checks: it returns each frame on its outputs, if it has any, and sends the kit's
 * sequence if it has no inputs. */
#include <chronetix.h>
#include <stdlib.h>
#include <string.h>

static int on_frame(chx_worker *worker, const chx_frame *frame, void *state) {
    (void)state;
    if (!chx_outputs(worker)) return 0;
    const chx_how how = {.from = frame};
    return chx_send(worker, frame->data, frame->size, &how);
}

static int produce(chx_worker *worker, void *state) {
    uint64_t *number = state;
    size_t size = (size_t)chx_int(chx_get(chx_params(worker), "size"), 8);
    chx_loan loan;
    if (chx_inputs(worker)) return CHX_DONE;
    if (!*number) *number = chx_resume_after(worker);
    int result = chx_reserve(worker, size, NULL, &loan);
    if (result) return result;
    ++*number;
    for (size_t at = 0; at < size; at += 8)
        memcpy((char *)loan.data + at, number, size - at < 8 ? size - at : 8);
    return chx_commit(worker, &loan, size, NULL);
}

int main(void) {
    uint64_t number = 0;
    const chx_plugin plugin = {.frame = on_frame, .produce = produce};
    return chx_run(&plugin, &number);
}
