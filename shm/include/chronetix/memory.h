/* Sealed anonymous shared memory: one writer, any number of readers, no name, nothing to clean up.
 *
 * The writer reserves every page (a full machine is an error here, not a SIGBUS later), maps the memory, then seals it
 * against shrinking, growing and any further writable mapping. A reader checks exactly that before it maps.
 */
#ifndef CHRONETIX_MEMORY_H
#define CHRONETIX_MEMORY_H

#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE: memfd_create, fallocate and the seals need it"
#endif

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include "header.h"

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 0x0008U
#endif
#ifndef F_SEAL_FUTURE_WRITE
#define F_SEAL_FUTURE_WRITE 0x0010
#endif

#define CHX_SEALS (F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_FUTURE_WRITE | F_SEAL_SEAL)

#define CHX_ASK_BYTES (8u << 20) /* from this size on the machine is asked first whether it has that much */

struct chx_map {
    uint8_t *base;
    uint64_t size;
    int fd;
};

static inline void chx_unmap(struct chx_map *map) {
    if (map->base) munmap(map->base, map->size);
    if (map->fd >= 0) close(map->fd);
    *map = (struct chx_map){NULL, 0, -1};
}

/* The kernel's flags for memfd_create: without NOEXEC_SEAL before Linux 6.3. */
static inline int chx_memfd(const char *name) {
    int fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_NOEXEC_SEAL);
    if (fd < 0 && errno == EINVAL) fd = memfd_create(name, MFD_CLOEXEC | MFD_ALLOW_SEALING);
    return fd;
}

/* Seal; before Linux 5.1 there is no FUTURE_WRITE. */
static inline int chx_seal(int fd) {
    if (fcntl(fd, F_ADD_SEALS, CHX_SEALS) == 0) return 0;
    if (errno != EINVAL) return -1;
    return fcntl(fd, F_ADD_SEALS, CHX_SEALS & ~F_SEAL_FUTURE_WRITE);
}

/* The seals to ask of a peer: those this kernel knows. Probed once per translation unit. */
static inline int chx_seals_known(void) {
    static _Atomic int known;
    int seals = atomic_load_explicit(&known, memory_order_relaxed);
    if (seals) return seals;
    int fd = chx_memfd("chronetix-probe");
    seals = CHX_SEALS;
    if (fd >= 0) {
        if (fcntl(fd, F_ADD_SEALS, F_SEAL_FUTURE_WRITE) != 0 && errno == EINVAL) seals &= ~F_SEAL_FUTURE_WRITE;
        close(fd);
    }
    atomic_store_explicit(&known, seals, memory_order_relaxed);
    return seals;
}

/* Bytes the machine could still give without swapping; UINT64_MAX when it does not say. */
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

/* Reserve every page now. The kernel would rather kill somebody than refuse, so what is clearly too much is refused
 * here. 0 or errno. */
static inline int chx_memory_reserve(int fd, uint64_t size) {
    if (size >= CHX_ASK_BYTES && size > chx_memory_available()) return ENOMEM;
    int error;
    do {
        error = fallocate(fd, 0, 0, (off_t)size) == 0 ? 0 : errno;
    } while (error == EINTR);
    return error;
}

/* New zeroed memory of `size` bytes (whole pages), mapped writable and not yet sealed. `populate` maps every page now. */
static inline enum chx_status chx_memory_create(const char *name, uint64_t size, int populate, struct chx_map *map) {
    *map = (struct chx_map){NULL, size, chx_memfd(name)};
    if (map->fd < 0) return CHX_SYSTEM;
    int error = chx_memory_reserve(map->fd, size);
    if (!error) {
        int flags = MAP_SHARED | (populate ? MAP_POPULATE : 0);
        void *base = mmap(NULL, size, PROT_READ | PROT_WRITE, flags, map->fd, 0);
        if (base != MAP_FAILED) {
            map->base = base;
            return CHX_OK;
        }
        error = errno;
    }
    chx_unmap(map);
    errno = error;
    return error == ENOSPC || error == ENOMEM ? CHX_NO_MEMORY : CHX_SYSTEM;
}

/* Is `fd` sealed, whole-page, fully reserved memory? Its size; never follows anything inside it. */
static inline enum chx_status chx_memory_check(int fd, uint64_t *size, struct chx_why *why) {
    int seals = fcntl(fd, F_GET_SEALS);
    if (seals < 0) return CHX_REFUSE(why, "descriptor %d is no memfd: %s", fd, strerror(errno));
    int missing = chx_seals_known() & ~seals;
    if (missing)
        return CHX_REFUSE(why, "memory is not sealed against%s%s%s%s", missing & F_SEAL_SHRINK ? " shrinking" : "",
                          missing & F_SEAL_GROW ? " growing" : "",
                          missing & F_SEAL_FUTURE_WRITE ? " other writers" : "",
                          missing & F_SEAL_SEAL ? " further seals" : "");
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
    *map = (struct chx_map){NULL, 0, -1};
    enum chx_status status = chx_memory_check(fd, &map->size, why);
    if (status != CHX_OK) return status;
    void *base = mmap(NULL, map->size, PROT_READ, MAP_SHARED, fd, 0);
    if (base == MAP_FAILED) return errno == ENOMEM ? CHX_NO_MEMORY : CHX_SYSTEM;
    map->base = base;
    return CHX_OK;
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
