/* Memory without seals can be truncated by every process that may write it, and touching the missing pages raises
 * SIGBUS. For such mappings, and only for them, this header handles that signal: the mapping becomes private zero
 * pages, which its writer could have written anyway, and is marked as cut, which its route finds at its next check
 * (CHX_FAULT).
 *
 * One list a process (a shared object, to be exact), which the signal handler walks: entries are never freed, a free
 * one is used again. A SIGBUS anywhere else goes to the handler that was there before. The handler may run in any
 * thread while another one guards and drops: it acts on a range only if the entry has meant that range from beginning
 * to end of its look (`turn`). Whoever reads a mapping keeps it from being unmapped, so the range that it has hit stays
 * what it is.
 */
#ifndef CHRONETIX_GUARD_H
#define CHRONETIX_GUARD_H

#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE: sigaction and MAP_ANONYMOUS need it"
#endif

#include <errno.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define CHX_GUARD_CLAIMED 1u /* `base` of an entry that is being filled in */
#define CHX_NAME_MAX 128

struct chx_guard {
    struct chx_guard *next;
    _Atomic uintptr_t base; /* 0: free */
    _Atomic uint64_t size;
    _Atomic int protection;
    _Atomic uint32_t turn; /* counts the mappings that it has been used for */
    _Atomic int cut;
    pid_t owner;             /* the process that removes the name */
    char path[CHX_NAME_MAX]; /* of memory made here; "" for a peer's */
};

struct chx_guards {
    struct chx_guard *_Atomic first;
    _Atomic uint32_t cuts; /* mappings cut so far; while it is 0 no closer check is made */
    _Atomic int installed; /* 0, 1: in a moment, 2 */
    struct sigaction before;
};

/* One for all translation units that are linked together. */
__attribute__((weak, visibility("hidden"))) struct chx_guards chx_guards;

/* `sent`: by a process, and not by an instruction. */
static inline void chx_guard_pass_on(int number, siginfo_t *info, void *context, int sent) {
    const struct sigaction *before = &chx_guards.before;
    if (before->sa_flags & SA_SIGINFO) {
        before->sa_sigaction(number, info, context);
    } else if (before->sa_handler == SIG_DFL || before->sa_handler == SIG_IGN) {
        if (sent && before->sa_handler == SIG_IGN) return;
        signal(number, SIG_DFL); /* the instruction is tried again, and ends the process as it would have */
        if (sent) raise(number);
    } else {
        before->sa_handler(number);
    }
}

struct chx_guarded {
    void *base;
    uint64_t size;
    int protection;
};

/* The range in which `address` lies, and its entry; NULL if no guarded mapping is there. */
static inline struct chx_guard *chx_guard_of(uintptr_t address, struct chx_guarded *range) {
    struct chx_guard *guard = atomic_load_explicit(&chx_guards.first, memory_order_acquire);
    for (; guard; guard = guard->next) {
        uint32_t turn = atomic_load(&guard->turn);
        uintptr_t base = atomic_load(&guard->base);
        *range = (struct chx_guarded){(void *)base, atomic_load(&guard->size), atomic_load(&guard->protection)};
        if (base > CHX_GUARD_CLAIMED && address - base < range->size && atomic_load(&guard->turn) == turn) return guard;
    }
    return NULL;
}

static inline void chx_guard_signal(int number, siginfo_t *info, void *context) {
    int error = errno;
    int sent = info->si_code <= 0;
    struct chx_guarded range;
    struct chx_guard *guard = sent ? NULL : chx_guard_of((uintptr_t)info->si_addr, &range);
    if (guard) {
        if (!atomic_exchange_explicit(&guard->cut, 1, memory_order_relaxed))
            atomic_fetch_add_explicit(&chx_guards.cuts, 1, memory_order_release);
        if (mmap(range.base, range.size, range.protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0) ==
            MAP_FAILED)
            guard = NULL;
    }
    if (!guard) chx_guard_pass_on(number, info, context, sent);
    errno = error;
}

/* Install the signal handler, once. 0, or -1 with errno. */
static inline int chx_guard_install(void) {
    int free_to_go = 0;
    if (!atomic_compare_exchange_strong(&chx_guards.installed, &free_to_go, 1)) {
        while (atomic_load(&chx_guards.installed) == 1) sched_yield();
        return 0;
    }
    struct sigaction action = {.sa_sigaction = chx_guard_signal, .sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER};
    sigemptyset(&action.sa_mask);
    int failed = sigaction(SIGBUS, NULL, &chx_guards.before); /* before the handler can need it */
    if (!failed) failed = sigaction(SIGBUS, &action, NULL);
    atomic_store(&chx_guards.installed, failed ? 0 : 2);
    return failed;
}

/* Claim a free entry or make a new one; NULL when memory is exhausted. */
static inline struct chx_guard *chx_guard_claim(void) {
    struct chx_guard *guard = atomic_load_explicit(&chx_guards.first, memory_order_acquire);
    for (; guard; guard = guard->next) {
        uintptr_t none = 0;
        if (atomic_compare_exchange_strong(&guard->base, &none, CHX_GUARD_CLAIMED)) return guard;
    }
    guard = calloc(1, sizeof *guard);
    if (!guard) return NULL;
    atomic_init(&guard->base, CHX_GUARD_CLAIMED);
    guard->next = atomic_load(&chx_guards.first);
    while (!atomic_compare_exchange_weak(&chx_guards.first, &guard->next, guard)) continue;
    return guard;
}

/* Guard a mapping from now on. NULL with errno when that is not possible. `path` may be NULL. */
static inline struct chx_guard *chx_guard_add(const void *base, uint64_t size, int protection, const char *path) {
    struct chx_guard *guard = chx_guard_install() == 0 ? chx_guard_claim() : NULL;
    if (!guard) return NULL;
    guard->owner = getpid();
    guard->path[0] = 0;
    if (path) memcpy(guard->path, path, strlen(path) + 1);
    atomic_fetch_add(&guard->turn, 1); /* until `base` is set, no reader takes the entry for its former mapping */
    atomic_store(&guard->size, size);
    atomic_store(&guard->protection, protection);
    atomic_store_explicit(&guard->cut, 0, memory_order_relaxed);
    atomic_store(&guard->base, (uintptr_t)base);
    return guard;
}

/* The mapping is about to be unmapped. A name that this process has made is removed with it; a forked child removes
 * none. */
static inline void chx_guard_drop(struct chx_guard *guard) {
    if (guard->path[0] && guard->owner == getpid()) unlink(guard->path);
    atomic_store_explicit(&guard->base, 0, memory_order_release);
}

static inline int chx_guard_cut(const struct chx_guard *guard) {
    return guard && atomic_load_explicit(&guard->cut, memory_order_relaxed);
}

/* Whether any mapping has been cut. */
static inline int chx_guards_cut(void) {
    return atomic_load_explicit(&chx_guards.cuts, memory_order_acquire) != 0;
}

#endif
