/* Segments of huge pages, for arenas that ask for them: from the machine's reserve (vm.nr_hugepages) if it has enough,
 * else by advice if the kernel follows it for shared memory (transparent_hugepage/shmem_enabled), else of small pages.
 *
 * Huge pages make it several times cheaper to make memory (one page fault and one cleared page for 2 MiB), but not to
 * copy. `got` has a bit for each kind of pages that was made.
 */
#ifndef CHRONETIX_HUGEPAGES_H
#define CHRONETIX_HUGEPAGES_H

#include "memory.h"

#ifndef MFD_HUGETLB
#define MFD_HUGETLB 0x0004U
#endif
#ifndef MADV_POPULATE_WRITE
#define MADV_POPULATE_WRITE 23
#endif
#define CHX_MFD_HUGE_2MB (21u << 26)
#define CHX_HUGE_PAGE (2u << 20)
#define CHX_SHMEM_SETTING "/sys/kernel/mm/transparent_hugepage/shmem_enabled"

enum chx_pages { CHX_PAGES_SMALL = 1, CHX_PAGES_ADVISED = 2, CHX_PAGES_HUGE = 4 };

struct chx_huge {
    uint8_t wanted, got;
};

/* Whether the kernel follows advice for shared memory. */
static inline int chx_huge_heeded(void) {
    char text[128];
    chx_proc_text(CHX_SHMEM_SETTING, text, sizeof text);
    return strstr(text, "[advise]") || strstr(text, "[within_size]") || strstr(text, "[always]") ||
           strstr(text, "[force]");
}

/* Make the memory from the reserve of huge pages; 0 or errno. */
static inline int chx_huge_reserved(const char *name, uint64_t size, struct chx_map *map) {
    unsigned flags = MFD_CLOEXEC | MFD_ALLOW_SEALING | MFD_HUGETLB | CHX_MFD_HUGE_2MB;
    *map = (struct chx_map){.size = size, .fd = memfd_create(name, flags | MFD_NOEXEC_SEAL)};
    if (map->fd < 0 && errno == EINVAL) map->fd = memfd_create(name, flags);
    if (map->fd < 0) return errno;
    int error = fallocate(map->fd, 0, 0, (off_t)size) == 0 ? 0 : errno;
    if (!error) {
        map->base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, map->fd, 0);
        if (map->base == MAP_FAILED) {
            map->base = NULL;
            error = errno;
        }
    }
    if (error) chx_unmap(map);
    return error;
}

/* By advice, which has to come before the pages: mapped first, filled through the mapping, what is then missing
 * reserved. */
static inline int chx_huge_advised(const char *name, uint64_t size, struct chx_map *map) {
    if (size >= CHX_ASK_BYTES && size > chx_memory_available()) return ENOMEM;
    *map = (struct chx_map){.size = size, .fd = chx_memfd(name)};
    if (map->fd < 0) return errno;
    int error = ftruncate(map->fd, (off_t)size) == 0 ? 0 : errno;
    if (!error) {
        map->base = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, map->fd, 0);
        if (map->base == MAP_FAILED) {
            map->base = NULL;
            error = errno;
        }
    }
    if (!error && madvise(map->base, size, MADV_HUGEPAGE) != 0) error = errno;
    if (!error && madvise(map->base, size, MADV_POPULATE_WRITE) != 0 && errno != EINVAL) error = errno; /* Linux < 5.14 */
    if (!error) error = chx_memory_reserve(map->fd, size);
    if (error) chx_unmap(map);
    return error;
}

/* As chx_memory_create, of at least `size` bytes: whole huge pages if those are no more than `most`. */
static inline enum chx_status chx_huge_create(struct chx_huge *huge, const char *name, uint64_t size, uint64_t most,
                                              struct chx_map *map) {
    uint64_t rounded = (size + CHX_HUGE_PAGE - 1) & ~(uint64_t)(CHX_HUGE_PAGE - 1);
    if (huge->wanted && chx_sealed() && rounded <= most) {
        if (chx_huge_reserved(name, rounded, map) == 0) {
            huge->got |= CHX_PAGES_HUGE;
            return CHX_OK;
        }
        if (chx_huge_heeded() && chx_huge_advised(name, rounded, map) == 0) {
            huge->got |= CHX_PAGES_ADVISED;
            return CHX_OK;
        }
    }
    huge->got |= CHX_PAGES_SMALL;
    return chx_memory_create(name, size, 1, map);
}

#endif
