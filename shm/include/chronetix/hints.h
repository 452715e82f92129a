/* Hints to the processor: they change the time that code takes, never its result. */
#ifndef CHRONETIX_HINTS_H
#define CHRONETIX_HINTS_H

/* One turn of a spin loop. */
static inline void chx_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ volatile("isb" ::: "memory");
#else
    __asm__ volatile("" ::: "memory");
#endif
}

/* This line will be written soon: fetch it from the peer's cache while there is something else to do. */
static inline void chx_prefetch_write(const void *line) {
#if defined(__x86_64__)
    __asm__ volatile("prefetchw %0" ::"m"(*(const char *)line));
#else
    __builtin_prefetch(line, 1, 3);
#endif
}

static inline void chx_prefetch_read(const void *line) { __builtin_prefetch(line, 0, 3); }

#endif
