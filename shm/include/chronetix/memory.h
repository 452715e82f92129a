/* Shared memory with one writer and any number of readers: sealed and anonymous, so that nothing is left after a crash.
 *
 * The writer reserves every page (a full machine is an error here, not a SIGBUS later), maps the memory, then seals it
 * against shrinking, growing and any further writable mapping. A reader checks exactly that before it maps.
 *
 * On a kernel without seals (features.h) the memory is a named object for this user only (named.h), descriptors that
 * are handed out are read-only, and every mapping is guarded (guard.h), because processes of the same user may truncate
 * it.
 */
#ifndef CHRONETIX_MEMORY_H
#define CHRONETIX_MEMORY_H

#include <sys/stat.h>
#include <sys/vfs.h>

#include "features.h"
#include "forked.h"
#include "header.h"
#include "named.h"

#define CHX_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)
#define CHX_TMPFS 0x01021994

#define CHX_ASK_BYTES (8u << 20) /* from this size on the free memory of the machine is checked first */

struct chx_map {
    uint8_t *base;
    uint64_t size;
    int fd;
    struct chx_guard *guard; /* of memory without seals, else NULL */
    uint8_t own;             /* it was made here: this process writes it */
};

static inline int chx_sealed(void) { return (chx_features() & CHX_HAS_SEALS) != 0; }

static inline void chx_unmap(struct chx_map *map) {
    if (map->guard) chx_guard_drop(map->guard);
    if (map->own) chx_own_drop(map->base);
    if (map->base) munmap(map->base, map->size);
    if (map->fd >= 0) close(map->fd);
    *map = (struct chx_map){.fd = -1};
}

/* Whether this memory was truncated. Costs one load as long as no memory was. */
static inline int chx_map_cut(const struct chx_map *map) { return chx_guards_cut() && chx_guard_cut(map->guard); }

/* The seals to ask of a peer: those this kernel knows. */
static inline int chx_seals_known(void) {
    return chx_features() & CHX_HAS_FUTURE_WRITE ? CHX_SEALS : CHX_SEALS & ~F_SEAL_FUTURE_WRITE;
}

static inline int chx_memfd(const char *name) {
    unsigned noexec = chx_features() & CHX_HAS_NOEXEC_SEAL ? MFD_NOEXEC_SEAL : 0;
    return memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | noexec);
}

/* Keep a descriptor that can only be read: where there is no seal against other writers, the one that is handed out
 * must not make one. 0, or -1 with errno. */
static inline int chx_memory_read_only(struct chx_map *map) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", map->fd);
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return -1;
    close(map->fd);
    map->fd = fd;
    return 0;
}

/* Seal the memory after it was mapped and its header written: from here on it can be changed only through that mapping,
 * and not by a child of this process. */
static inline int chx_memory_seal(struct chx_map *map) {
    if (chx_own_add(map->base, map->size) != 0) return -1;
    map->own = 1;
    if (chx_sealed() && fcntl(map->fd, F_ADD_SEALS, chx_seals_known()) != 0) return -1;
    return chx_features() & CHX_HAS_FUTURE_WRITE ? 0 : chx_memory_read_only(map);
}

/* How many bytes the machine can still give without swapping; UINT64_MAX if that is unknown. */
static inline uint64_t chx_memory_available(void) {
    char text[512];
    int fd = open("/proc/meminfo", O_RDONLY | O_CLOEXEC);
    if (fd < 0) return UINT64_MAX;
    ssize_t got = read(fd, text, sizeof text - 1);
    close(fd);
    text[got < 0 ? 0 : got] = 0;
    const char *line = strstr(text, "MemAvailable:");
    return line ? strtoull(line + sizeof "MemAvailable:" - 1, NULL, 10) * 1024 : UINT64_MAX;
}

/* Reserve every page now; return 0 or errno. The kernel would kill a process rather than refuse, so a size that is
 * clearly too large is refused here. */
static inline int chx_memory_reserve(int fd, uint64_t size) {
    if (size >= CHX_ASK_BYTES && size > chx_memory_available()) return ENOMEM;
    int error;
    do {
        error = fallocate(fd, 0, 0, (off_t)size) == 0 ? 0 : errno;
    } while (error == EINTR);
    return error;
}

/* Reserve and map what `map->fd` is to be; 0 or errno. */
static inline int chx_memory_fill(struct chx_map *map, int populate, const char *path) {
    int error = chx_memory_reserve(map->fd, map->size);
    if (error) return error;
    int flags = MAP_SHARED | (populate ? MAP_POPULATE : 0);
    void *base = mmap(NULL, map->size, PROT_READ | PROT_WRITE, flags, map->fd, 0);
    if (base == MAP_FAILED) return errno;
    map->base = base;
    if (!path) return 0;
    map->guard = chx_guard_add(base, map->size, PROT_READ | PROT_WRITE, path);
    return map->guard ? 0 : errno;
}

/* New zeroed memory of `size` bytes (whole pages), mapped writable and not yet sealed. `populate` maps every page
 * now. */
static inline enum chx_status chx_memory_create(const char *name, uint64_t size, int populate, struct chx_map *map) {
    char path[CHX_NAME_MAX];
    int sealed = chx_sealed();
    *map = (struct chx_map){.size = size, .fd = sealed ? chx_memfd(name) : chx_named_create(path)};
    if (map->fd < 0) return errno == ENOSPC || errno == ENOMEM ? CHX_NO_MEMORY : CHX_SYSTEM;
    int error = chx_memory_fill(map, populate, sealed ? NULL : path);
    if (!error) return CHX_OK;
    if (!sealed && !map->guard) unlink(path);
    chx_unmap(map);
    errno = error;
    return error == ENOSPC || error == ENOMEM ? CHX_NO_MEMORY : CHX_SYSTEM;
}

/* Check that `fd` is sealed; CHX_FAULT if not. */
static inline enum chx_status chx_memory_check_seals(int fd, struct chx_why *why) {
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0) return CHX_REFUSE(why, "descriptor %d is no memfd: %s", fd, strerror(errno));
    int missing = chx_seals_known() & ~seals;
    if (missing)
        return CHX_REFUSE(why, "memory is not sealed against%s%s%s%s", missing & F_SEAL_SHRINK ? " shrinking" : "",
                          missing & F_SEAL_GROW ? " growing" : "",
                          missing & F_SEAL_FUTURE_WRITE ? " other writers" : "",
                          missing & F_SEAL_SEAL ? " further seals" : "");
    return CHX_OK;
}

/* Without seals: check that `fd` is at least a file in memory that only its user can open. */
static inline enum chx_status chx_memory_check_named(int fd, struct chx_why *why) {
    struct stat status;
    struct statfs system;
    if (fstat(fd, &status) != 0 || fstatfs(fd, &system) != 0)
        return CHX_REFUSE(why, "descriptor %d: %s", fd, strerror(errno));
    if (!S_ISREG(status.st_mode) || system.f_type != CHX_TMPFS)
        return CHX_REFUSE(why, "descriptor %d is no shared memory", fd);
    if (status.st_mode & 077)
        return CHX_REFUSE(why, "memory of mode 0%o: only its user may have it open", (unsigned)status.st_mode & 07777);
    return CHX_OK;
}

/* Check that `fd` is sealed memory of whole pages, all of them reserved, and return its size. Never reads the
 * memory. */
static inline enum chx_status chx_memory_check(int fd, uint64_t *size, struct chx_why *why) {
    enum chx_status safe = chx_sealed() ? chx_memory_check_seals(fd, why) : chx_memory_check_named(fd, why);
    if (safe != CHX_OK) return safe;
    struct stat status;
    if (fstat(fd, &status) != 0) return CHX_REFUSE(why, "descriptor %d: %s", fd, strerror(errno));
    if (status.st_size <= 0 || status.st_size % CHX_PAGE != 0)
        return CHX_REFUSE(why, "memory of %lld bytes is not whole pages", (long long)status.st_size);
    if ((uint64_t)status.st_blocks * 512 < (uint64_t)status.st_size)
        return CHX_REFUSE(why, "only %lld of %lld bytes are reserved", (long long)status.st_blocks * 512,
                          (long long)status.st_size);
    *size = (uint64_t)status.st_size;
    return CHX_OK;
}

/* Check and map a peer's memory read-only. The descriptor is not kept. */
static inline enum chx_status chx_memory_open(int fd, struct chx_map *map, struct chx_why *why) {
    *map = (struct chx_map){.fd = -1};
    enum chx_status status = chx_memory_check(fd, &map->size, why);
    if (status != CHX_OK) return status;
    void *base = mmap(NULL, map->size, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) return errno == ENOMEM ? CHX_NO_MEMORY : CHX_SYSTEM;
    map->base = base;
    if (chx_sealed()) return CHX_OK;
    map->guard = chx_guard_add(base, map->size, PROT_READ, NULL); /* before the first look at it */
    if (map->guard) return CHX_OK;
    chx_unmap(map);
    return CHX_NO_MEMORY;
}

/* Check and map a peer's RING or CREDIT, copy its header and validate the copy. */
static inline enum chx_status chx_memory_attach(int fd, enum chx_kind kind, struct chx_map *map,
                                                struct chx_header *header, struct chx_why *why) {
    enum chx_status status = chx_memory_open(fd, map, why);
    if (status != CHX_OK) return status;
    memcpy(header, map->base, sizeof *header);
    status = chx_header_check(header, kind, map->size, why);
    if (status != CHX_OK) chx_unmap(map);
    return status;
}

#endif
