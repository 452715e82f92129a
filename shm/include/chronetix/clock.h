/* Time and the pause of a spin loop. All times are CLOCK_MONOTONIC nanoseconds, which every process shares. */
#ifndef CHRONETIX_CLOCK_H
#define CHRONETIX_CLOCK_H

#include <stdint.h>
#include <time.h>

static inline uint64_t chx_now_ns(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static inline void chx_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

#endif
