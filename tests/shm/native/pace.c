/* When a producer proposes a nap, from times that are given to it; exit status 0 when each is as SPEC.md says. */
#include <chronetix/chronetix.h>

static void must(int true, const char *what) {
    if (true) return;
    fprintf(stderr, "not so: %s\n", what);
    exit(1);
}

static uint64_t now = 1000000;

/* A frame is committed `after` ns behind the last ring, and rings for `took` ns. Whether the pace has changed. */
static int frame(struct chx_pace *pace, uint64_t after, uint64_t took) {
    now += after;
    int changed = chx_pace_commit(pace, now);
    chx_pace_rang(pace, now, now + took);
    now += took;
    return changed;
}

static void quick_frames_make_a_nap(void) {
    struct chx_pace pace = {0};
    must(!frame(&pace, 0, 4000), "the first frame follows no ring");
    for (uint32_t i = 1; i < CHX_PACE_SURE; i++) must(!frame(&pace, 3999, 4000), "few quick frames are no stream");
    must(chx_pace_nap(&pace, 1) == 0, "before it is sure there is no nap");
    must(frame(&pace, 3999, 4000), "then it is sure");
    must(!frame(&pace, 0, 4000), "and says so once");
    must(chx_pace_nap(&pace, 1) == CHX_NAP_NS, "one route");
    must(chx_pace_nap(&pace, 7) == CHX_NAP_NS && chx_pace_nap(&pace, 8) == 2 * CHX_NAP_NS, "eight routes");
    must(chx_pace_nap(&pace, 64) == 9 * CHX_NAP_NS, "many routes");
}

static void slow_frames_end_it(void) {
    struct chx_pace pace = {0};
    for (uint32_t i = 0; i <= CHX_PACE_SURE; i++) frame(&pace, 0, 4000);
    must(pace.rapid == 1, "it begins rapid");
    must(!frame(&pace, 4000, 4000) && pace.rapid, "one frame after a ring's time is not enough");
    must(frame(&pace, 4000, 4000) && !pace.rapid, "two are");
    must(chx_pace_nap(&pace, 64) == 0, "then there is no nap");
}

static void a_single_slow_frame_is_made_up_for(void) {
    struct chx_pace pace = {0};
    for (uint32_t i = 0; i <= CHX_PACE_SURE; i++) frame(&pace, 0, 4000);
    for (int i = 0; i < 1000; i++) {
        must(!frame(&pace, 1000000, 4000) && pace.rapid, "one in three is slow");
        must(!frame(&pace, 10, 4000) && !frame(&pace, 10, 4000), "two are quick");
    }
}

static void an_answer_that_is_waited_for_is_no_stream(void) {
    struct chx_pace pace = {0};
    for (int i = 0; i < 1000; i++) must(!frame(&pace, i % 2 ? 4000 : 100000, 4000), "a ping that waits for its pong");
}

static void a_wait_for_credits_says_nothing(void) {
    struct chx_pace pace = {0};
    for (uint32_t i = 0; i <= CHX_PACE_SURE; i++) frame(&pace, 0, 4000);
    for (int i = 0; i < 100; i++) {
        chx_pace_waited(&pace);
        must(!frame(&pace, 10000000, 4000) && pace.rapid, "it stays rapid");
    }
}

static void a_frame_that_rang_nobody_says_nothing(void) {
    struct chx_pace pace = {0};
    for (int i = 0; i < 100; i++) must(!chx_pace_commit(&pace, now += 10), "no ring, no pace");
}

static void a_clock_that_goes_back_is_quick(void) {
    struct chx_pace pace = {.rung_at = UINT64_MAX, .ring_ns = 1};
    must(!chx_pace_commit(&pace, 5), "it harms nobody");
}

int main(void) {
    quick_frames_make_a_nap();
    slow_frames_end_it();
    a_single_slow_frame_is_made_up_for();
    an_answer_that_is_waited_for_is_no_stream();
    a_wait_for_credits_says_nothing();
    a_frame_that_rang_nobody_says_nothing();
    a_clock_that_goes_back_is_quick();
    return 0;
}
