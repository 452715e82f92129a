/* Source: the numbers below its parameter `count`, each a map {"n": …} in CBOR, written in place. */
#include <chronetix.h>

static int produce(chx_worker *worker, void *state) {
    int64_t *next = state;
    if (*next >= chx_int(chx_get(chx_params(worker), "count"), 0)) return CHX_DONE;
    chx_writer item = {0};
    chx_write_map(&item, 1);
    chx_write_text(&item, "n");
    chx_write_int(&item, (*next)++);
    int sent = chx_send(worker, chx_written(&item), item.size, NULL);
    chx_free_writer(&item);
    return sent;
}

/* After a restart: go on behind the last item that has left on all outputs. */
static int on_start(chx_worker *worker, void *state) {
    *(int64_t *)state = (int64_t)chx_resume_after(worker);
    return 0;
}

int main(void) {
    int64_t next = 0;
    const chx_plugin plugin = {.start = on_start, .produce = produce};
    return chx_run(&plugin, &next);
}
