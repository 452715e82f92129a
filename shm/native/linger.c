/* Before a large frame is sent: a short wait until the frame before it comes back.
 *
 * Its consumer gives it back a microsecond after it was sent, or a wake-up after. Its extent then is the warmest memory
 * there is: one extent used again and again is written up to twice as fast as two in turn, once two no longer fit a
 * cache. So a sender whose only frame under way is about to come back waits for it, for two hundredths of what copying
 * takes, about. A wait for nothing doubles the number of frames before the next try.
 */
#include "native.h"

#define LINGER_SHIFT 10u /* 1 ns a KiB: 2 % of a copy at 20 GB/s */
#define LINGER_DOUBT_MAX 127u

static int linger_back(struct chx_producer *end, uint64_t until) {
    uint64_t due;
    do {
        for (int i = 0; i < 8; i++) {
            if (chx_producer_look(end, &due) != CHX_OK || due) return 1;
            chx_pause();
        }
    } while (chx_now_ns() < until);
    return 0;
}

/* `bytes` are at least NATIVE_LINGER_BYTES. A fault that shows is raised by the commit. */
void native_outlet_linger(Outlet *self, uint64_t bytes) {
    struct chx_producer *end = &self->producers[0]->end;
    uint32_t cap = chx_spin_cap(&native_wake);
    if (self->count != 1 || chx_outstanding(end) != 1 || cap == 0) return;
    if (self->linger_skip) {
        self->linger_skip--;
        return;
    }
    uint64_t budget = bytes >> LINGER_SHIFT;
    if (linger_back(end, chx_now_ns() + (budget < cap ? budget : cap))) {
        self->linger_doubt = 0;
        chx_producer_reclaim(end, CHX_REUSE_LOOK);
    } else {
        self->linger_skip = self->linger_doubt = (uint8_t)((self->linger_doubt * 2 + 1) & LINGER_DOUBT_MAX);
    }
}
