/* Which of the features for making memories this kernel has: tried out once, never guessed from a version.
 *
 * The environment variable CHRONETIX_WITHOUT (names as in chx_feature_names, separated by commas) takes features away,
 * so that what happens on an older kernel can be tried on a newer one. It is read when the features are first asked
 * for.
 */
#ifndef CHRONETIX_FEATURES_H
#define CHRONETIX_FEATURES_H

#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE: memfd_create and the seals need it"
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

enum chx_feature {
    CHX_HAS_MEMFD = 1,        /* anonymous memory with a descriptor: Linux 3.17 */
    CHX_HAS_SEALS = 2,        /* against resizing: Linux 3.17, not everywhere */
    CHX_HAS_FUTURE_WRITE = 4, /* the seal against other writers: Linux 5.1 */
    CHX_HAS_NOEXEC_SEAL = 8,  /* memory that cannot be executed: Linux 6.3 */
    CHX_FEATURES_KNOWN = 16,
};

#define CHX_FEATURES 4
static const char *const chx_feature_names[CHX_FEATURES] = {"memfd", "seals", "future_write", "noexec_seal"};

/* Whether `name` is one of the words of `list`. */
static inline int chx_word_in(const char *list, const char *name) {
    size_t length = strlen(name);
    for (const char *at = list; at && *at;) {
        size_t word = strcspn(at, ",");
        if (word == length && memcmp(at, name, length) == 0) return 1;
        at += word + (at[word] == ',');
    }
    return 0;
}

static inline int chx_features_taken_away(void) {
    const char *without = getenv("CHRONETIX_WITHOUT");
    int away = 0;
    for (int i = 0; i < CHX_FEATURES; i++)
        if (chx_word_in(without, chx_feature_names[i])) away |= 1 << i;
    if (away & CHX_HAS_MEMFD) away |= CHX_HAS_SEALS;
    if (away & CHX_HAS_SEALS) away |= CHX_HAS_FUTURE_WRITE;
    return away;
}

/* Return the features, or -1 with errno when they cannot be found out now (for example, no descriptor is left). */
static inline int chx_features_probe(void) {
    int found = CHX_HAS_NOEXEC_SEAL;
    int fd = memfd_create("chronetix-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) {
        found = 0;
        fd = memfd_create("chronetix-probe", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    }
    if (fd < 0) return errno == ENOSYS || errno == EPERM || errno == EINVAL ? 0 : -1;
    found |= CHX_HAS_MEMFD;
    if (fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW) == 0) {
        found |= CHX_HAS_SEALS;
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) == 0) found |= CHX_HAS_FUTURE_WRITE;
    }
    close(fd);
    return found;
}

/* The features of this process. When they cannot be found out, those of a current kernel: then no peer's memory is
 * accepted for less, and making memory fails with the errno that probing failed with. */
static inline int chx_features(void) {
    static _Atomic int cached;
    int features = atomic_load_explicit(&cached, memory_order_relaxed);
    if (features) return features;
    features = chx_features_probe();
    if (features < 0) return CHX_HAS_MEMFD | CHX_HAS_SEALS | CHX_HAS_FUTURE_WRITE | CHX_HAS_NOEXEC_SEAL;
    features = (features & ~chx_features_taken_away()) | CHX_FEATURES_KNOWN;
    atomic_store_explicit(&cached, features, memory_order_relaxed);
    return features;
}

#endif
