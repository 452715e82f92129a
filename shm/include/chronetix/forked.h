/* Memory that this process writes is read-only in every child that it forks: a child that stores to it, through
 * whatever it has inherited, ends by SIGSEGV and has changed nothing of its parent's.
 *
 * One list a process (a shared object, to be exact), which a handler of fork() walks in the child: entries are never
 * freed, a free one is used again. A child made by the bare system call, without libc's fork(), is not covered.
 */
#ifndef CHRONETIX_FORKED_H
#define CHRONETIX_FORKED_H

#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE: mprotect and pthread_atfork need it"
#endif

#include <errno.h>
#include <pthread.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>

#define CHX_OWN_CLAIMED 1u /* `base` of an entry that is being filled in */

struct chx_own {
    struct chx_own *next;
    _Atomic uintptr_t base; /* 0: free */
    _Atomic uint64_t size;
};

struct chx_owns {
    struct chx_own *_Atomic first;
    _Atomic int installed; /* 0, 1: in a moment, 2 */
};

/* One for all translation units that are linked together. */
__attribute__((weak, visibility("hidden"))) struct chx_owns chx_owns;

/* Runs in the child. Memory that the child makes from now on is its own. */
static inline void chx_own_forked(void) {
    for (struct chx_own *own = atomic_load(&chx_owns.first); own; own = own->next) {
        uintptr_t base = atomic_load(&own->base);
        if (base <= CHX_OWN_CLAIMED) continue;
        mprotect((void *)base, atomic_load(&own->size), PROT_READ);
    }
}

/* Register the handler of fork(), once. 0, or -1 with errno. */
static inline int chx_own_install(void) {
    int free_to_go = 0;
    if (!atomic_compare_exchange_strong(&chx_owns.installed, &free_to_go, 1)) {
        while (atomic_load(&chx_owns.installed) == 1) sched_yield();
        return 0;
    }
    int error = pthread_atfork(NULL, NULL, chx_own_forked);
    atomic_store(&chx_owns.installed, error ? 0 : 2);
    errno = error;
    return error ? -1 : 0;
}

/* This process writes this mapping from now on. 0, or -1 with errno. */
static inline int chx_own_add(const void *base, uint64_t size) {
    if (chx_own_install() != 0) return -1;
    struct chx_own *own = atomic_load(&chx_owns.first);
    uintptr_t none = 0;
    while (own && !atomic_compare_exchange_strong(&own->base, &none, CHX_OWN_CLAIMED)) {
        own = own->next;
        none = 0;
    }
    if (!own) {
        own = calloc(1, sizeof *own);
        if (!own) return -1;
        atomic_init(&own->base, CHX_OWN_CLAIMED);
        own->next = atomic_load(&chx_owns.first);
        while (!atomic_compare_exchange_weak(&chx_owns.first, &own->next, own)) continue;
    }
    atomic_store(&own->size, size);
    atomic_store(&own->base, (uintptr_t)base);
    return 0;
}

/* The mapping is about to be unmapped. No effect if it was never written. */
static inline void chx_own_drop(const void *base) {
    for (struct chx_own *own = atomic_load(&chx_owns.first); own; own = own->next)
        if (atomic_load(&own->base) == (uintptr_t)base) atomic_store(&own->base, 0);
}

#endif
