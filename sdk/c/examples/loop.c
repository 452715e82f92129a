/* Map with a loop of its own: passes frames on, and looks at standard input's descriptor or any other beside it.
 *
 * The rule: call chx_next() without waiting until it has nothing, then poll chx_worker_fd() with everything else.
 */
#include <chronetix.h>
#include <poll.h>
#include <stdio.h>

static int run(chx_worker *worker) {
    for (;;) {
        chx_event event;
        int kind = chx_next(worker, 0, &event);
        if (kind < 0) return chx_fault(worker, NULL, chx_error_name(kind), chx_error(worker)), chx_exit_code(kind);
        if (kind == CHX_NOTHING) {
            struct pollfd entries[] = {{.fd = chx_worker_fd(worker), .events = POLLIN}}; /* and those of others */
            poll(entries, 1, -1);
        } else if (kind == CHX_FRAME) {
            int sent = chx_send(worker, event.frame.data, event.frame.size, &(chx_how){.from = &event.frame});
            if (sent < 0) return chx_fault(worker, NULL, chx_error_name(sent), chx_error(worker)), chx_exit_code(sent);
            chx_release(worker, &event.frame);
        } else if (kind == CHX_END) {
            return chx_finish(worker, NULL, 0) == 0 ? 0 : 1;
        }
    }
}

int main(void) {
    chx_worker *worker;
    int result = chx_worker_inherit(&worker);
    int code = result < 0 ? chx_exit_code(result) : run(worker);
    if (code) fprintf(stderr, "%s\n", chx_error(worker));
    chx_worker_close(worker);
    return code;
}
