/* How long to look before sleeping: at most what sleeping costs, less when looking has not paid lately.
 *
 * The cost is measured once a process (an eventfd round trip between two threads) and capped at 10 µs. A spin that finds
 * nothing halves the next one, down to none; a sleep that a full spin would have spared is evidence that restores it.
 *
 * Two ends that answer each other can also lock each other out: each sleeps only because the other one has to be woken
 * first, which costs more than a spin. So after waking a peer and then sleeping briefly, one long spin is tried, and a
 * few more while they find something; if both ends come together the waits shrink to nothing and spins are short again.
 *
 * A restored spin that finds nothing raises a doubt (the two ends share a processor, say, and the other one could run
 * only because this one slept): each doubt doubles the evidence that the next restoring takes. On a machine with one
 * processor there is no spin at all.
 */
#ifndef CHRONETIX_SPIN_H
#define CHRONETIX_SPIN_H

#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE: ppoll needs it"
#endif

#include <pthread.h>
#include <stdlib.h>

#include "clock.h"
#include "doorbell.h"

#define CHX_SPIN_CAP_NS 10000u
#define CHX_SPIN_FLOOR_NS 500u
#define CHX_SPIN_ROUNDS 16
#define CHX_SPIN_DOUBT_MAX 255u
#define CHX_SPIN_LONG_NS 50000u
#define CHX_SPIN_LONG_TRIES 4

struct chx_spin {
    uint32_t ns;
    uint16_t evidence, doubt; /* sleeps that a spin would have spared; how many of them are not enough */
    uint8_t restored, tries;  /* restored and not tried yet; long spins in a row */
};

struct chx_echo {
    int ask, answer;
};

static inline void *chx_echo_run(void *argument) {
    const struct chx_echo *echo = argument;
    for (int round = 0; round < CHX_SPIN_ROUNDS; round++) {
        while (chx_bell_sleep(echo->ask, -1) < 0) continue;
        chx_bell_clear(echo->ask);
        chx_bell_ring(echo->answer);
    }
    return NULL;
}

static inline int chx_spin_order(const void *left, const void *right) {
    uint64_t a = *(const uint64_t *)left, b = *(const uint64_t *)right;
    return (a > b) - (a < b);
}

static inline uint32_t chx_spin_rounds(const struct chx_echo *echo) {
    uint64_t took[CHX_SPIN_ROUNDS];
    for (int round = 0; round < CHX_SPIN_ROUNDS; round++) {
        uint64_t start = chx_now_ns();
        chx_bell_ring(echo->ask);
        while (chx_bell_sleep(echo->answer, -1) < 0) continue;
        chx_bell_clear(echo->answer);
        took[round] = chx_now_ns() - start;
    }
    qsort(took, CHX_SPIN_ROUNDS, sizeof took[0], chx_spin_order);
    return (uint32_t)took[CHX_SPIN_ROUNDS / 2];
}

/* An eventfd round trip to another thread, at most 10 µs; 0 on one processor. Takes a tenth of a millisecond. */
static inline uint32_t chx_spin_measure(void) {
    if (sysconf(_SC_NPROCESSORS_ONLN) < 2) return 0;
    struct chx_echo echo = {chx_bell_create(), chx_bell_create()};
    uint32_t cost = CHX_SPIN_CAP_NS;
    pthread_t thread;
    if (echo.ask >= 0 && echo.answer >= 0 && pthread_create(&thread, NULL, chx_echo_run, &echo) == 0) {
        cost = chx_spin_rounds(&echo);
        pthread_join(thread, NULL);
    }
    if (echo.ask >= 0) close(echo.ask);
    if (echo.answer >= 0) close(echo.answer);
    return cost < CHX_SPIN_CAP_NS ? cost : CHX_SPIN_CAP_NS;
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
