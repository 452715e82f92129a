/* How long to look before sleeping: at most what a wake-up costs, less when looking has not paid lately.
 *
 * The cost is measured once a process (eventfd round trips between two threads) and capped at 10 µs. A spin that finds
 * nothing halves the next one, down to none; a find doubles it; a sleep that a full spin would have spared restores it.
 * With one usable CPU nobody could produce anything meanwhile, so there is no spin at all.
 */
#ifndef CHRONETIX_SPIN_H
#define CHRONETIX_SPIN_H

#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE: sched_getaffinity needs it"
#endif

#include <pthread.h>
#include <sched.h>
#include <stdlib.h>

#include "clock.h"
#include "doorbell.h"

#define CHX_SPIN_CAP_NS 10000u
#define CHX_SPIN_FLOOR_NS 500u
#define CHX_SPIN_ROUNDS 16

struct chx_spin {
    uint32_t ns;
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
    return (uint32_t)(took[CHX_SPIN_ROUNDS / 2] / 2);
}

/* Half an eventfd round trip to another thread, capped; 0 with one usable CPU. Takes about half a millisecond. */
static inline uint32_t chx_spin_measure(void) {
    cpu_set_t usable;
    if (sched_getaffinity(0, sizeof usable, &usable) == 0 && CPU_COUNT(&usable) < 2) return 0;
    struct chx_echo echo = {chx_bell_create(), chx_bell_create()};
    uint32_t cost = CHX_SPIN_CAP_NS;
    pthread_t thread;
    if (echo.ask >= 0 && echo.answer >= 0 && pthread_create(&thread, NULL, chx_echo_run, &echo) == 0) {
        cost = chx_spin_rounds(&echo);
        pthread_join(thread, NULL);
    }
    if (echo.ask >= 0) close(echo.ask);
    if (echo.answer >= 0) close(echo.answer);
    return cost;
}

static inline void chx_spin_found(struct chx_spin *spin, uint32_t cap) {
    uint32_t ns = spin->ns * 2 < CHX_SPIN_FLOOR_NS ? CHX_SPIN_FLOOR_NS : spin->ns * 2;
    spin->ns = ns < cap ? ns : cap;
}

static inline void chx_spin_missed(struct chx_spin *spin) {
    spin->ns /= 2;
    if (spin->ns < CHX_SPIN_FLOOR_NS) spin->ns = 0;
}

/* A sleep has ended, and what it waited for happened `after` ns from its start: would a full spin have found it? */
static inline void chx_spin_slept(struct chx_spin *spin, uint32_t cap, uint64_t after) {
    if (after < cap) spin->ns = cap;
}

#endif
