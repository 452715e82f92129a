/* How long to look before sleeping: at most what sleeping costs, less when looking has not paid lately.
 *
 * Sleeping costs this end a wake-up, which takes from 3 µs (a busy machine's own processors) to 30 µs (a virtual
 * machine's idle ones), and the other end about as much: it sends the interrupt, and stands still meanwhile. So it is
 * measured at each real wake-up, from the commit of the frame to the moment its taker runs, and a spin lasts twice as
 * long, at most 64 µs.
 *
 * A spin that finds nothing halves the next one, down to none; a sleep that a full spin would have spared is evidence
 * that restores it. A restored spin that finds nothing raises a doubt (the two ends share a processor, say, and the
 * other one could run only because this one slept): each doubt doubles the evidence that the next restoring takes.
 *
 * Two ends that answer each other can also lock each other out: each sleeps only because the other one has to be woken
 * first. So after waking a peer and then sleeping briefly, one long spin is tried, and a few more while they find
 * something; if both ends come together the waits shrink to nothing and spins are short again.
 *
 * On a machine with one processor there is no spin at all.
 */
#ifndef CHRONETIX_SPIN_H
#define CHRONETIX_SPIN_H

#include <stdint.h>
#include <unistd.h>

#define CHX_SPIN_CAP_NS 64000u
#define CHX_SPIN_FLOOR_NS 500u
#define CHX_SPIN_DOUBT_MAX 255u
#define CHX_SPIN_LONG_NS 90000u
#define CHX_SPIN_LONG_TRIES 4
#define CHX_WAKE_FIRST_NS 8000u

/* What a wake-up costs in this process: a moving average over the last eight or so. */
struct chx_wake {
    uint32_t ns;
};

struct chx_spin {
    uint32_t ns;
    uint16_t evidence, doubt; /* sleeps that a spin would have spared; how many of them are not enough */
    uint8_t restored, tries;  /* restored and not tried yet; long spins in a row */
};

static inline void chx_wake_init(struct chx_wake *wake) {
    wake->ns = sysconf(_SC_NPROCESSORS_ONLN) < 2 ? 0 : CHX_WAKE_FIRST_NS;
}

/* A sleeper ran `ns` after what woke it. */
static inline void chx_wake_took(struct chx_wake *wake, uint64_t ns) {
    if (wake->ns == 0) return;
    if (ns > CHX_SPIN_CAP_NS) ns = CHX_SPIN_CAP_NS;
    wake->ns = wake->ns - wake->ns / 8 + (uint32_t)ns / 8 + 1;
}

/* The longest spin that is worth it; 0: none is. */
static inline uint32_t chx_spin_cap(const struct chx_wake *wake) {
    uint32_t ns = wake->ns * 2;
    return ns < CHX_SPIN_CAP_NS ? ns : CHX_SPIN_CAP_NS;
}

static inline void chx_spin_distrust(struct chx_spin *spin) {
    spin->ns = 0;
    spin->tries = 0;
    if (spin->doubt < CHX_SPIN_DOUBT_MAX) spin->doubt = (uint16_t)(spin->doubt * 2 + 1);
}

/* The spin has found something after `took` ns. */
static inline void chx_spin_found(struct chx_spin *spin, uint32_t cap, uint64_t took) {
    spin->restored = 0;
    if (took > cap) { /* a long one; the next should be short */
        if (++spin->tries >= CHX_SPIN_LONG_TRIES) chx_spin_distrust(spin);
        return;
    }
    uint32_t ns = spin->ns * 2 < CHX_SPIN_FLOOR_NS ? CHX_SPIN_FLOOR_NS : spin->ns * 2;
    *spin = (struct chx_spin){.ns = ns < cap ? ns : cap};
}

static inline void chx_spin_missed(struct chx_spin *spin, uint32_t cap) {
    if (spin->restored || spin->ns > cap) {
        uint32_t ns = spin->ns;
        chx_spin_distrust(spin);
        spin->ns = ns > cap ? 0 : ns / 2;
        spin->restored = 0;
    } else {
        spin->ns = spin->ns / 2 < CHX_SPIN_FLOOR_NS ? 0 : spin->ns / 2;
    }
}

/* A sleep has ended; what it waited for happened `after` ns from its start. `answered`: a peer was woken before it. */
static inline void chx_spin_slept(struct chx_spin *spin, uint32_t cap, uint64_t after, int answered) {
    if (cap == 0 || after >= (answered ? CHX_SPIN_LONG_NS : cap) || ++spin->evidence <= spin->doubt) return;
    spin->evidence = 0;
    spin->ns = after < cap ? cap : CHX_SPIN_LONG_NS;
    spin->restored = 1;
}

#endif
