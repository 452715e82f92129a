/* Map: squares the numbers that come as {"n": …} in CBOR. */
#include <chronetix.h>

static int on_frame(chx_worker *worker, const chx_frame *frame, void *state) {
    (void)state;
    char why[128] = "";
    const chx_value *value = chx_decode(frame->data, frame->size, why, sizeof why);
    if (!value) return chx_fail(worker, "frame %llu is no CBOR: %s", (unsigned long long)frame->seq, why);
    int64_t n = chx_int(chx_get(value, "n"), 0);
    chx_free_value(value);
    chx_writer square = {0};
    chx_write_map(&square, 1);
    chx_write_text(&square, "n");
    chx_write_int(&square, n * n);
    int sent = chx_send(worker, chx_written(&square), square.size, NULL);
    chx_free_writer(&square);
    return sent;
}

int main(void) {
    const chx_plugin plugin = {.frame = on_frame};
    return chx_run(&plugin, NULL);
}
