/* The weather of a storm, preloaded into the daemon and what it starts: a wall clock that steps, and memory that is
 * refused.
 *
 * One page, the file $CHAOS_WEATHER, is shared by all of them and written by the storm. Rules: without it, or with
 * zeros in it, everything is as ever; only the wall clock steps, CLOCK_MONOTONIC does not; only shared memory is
 * refused (memfd_create, and mmap of a descriptor), as a machine without memory does, every refuse_every-th call of
 * all.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

struct weather {
    _Atomic int64_t step_ns;
    _Atomic uint32_t refuse_every; /* 0: never */
    _Atomic uint32_t asked;
    _Atomic uint32_t refused;
    _Atomic uint32_t clock_read;
};

static struct weather fair, *weather = &fair;
static int (*real_clock_gettime)(clockid_t, struct timespec *);
static void *(*real_mmap)(void *, size_t, int, int, int, off_t);
static int (*real_memfd_create)(const char *, unsigned);

__attribute__((constructor)) static void begin(void) {
    real_clock_gettime = (int (*)(clockid_t, struct timespec *))dlsym(RTLD_NEXT, "clock_gettime");
    real_mmap = (void *(*)(void *, size_t, int, int, int, off_t))dlsym(RTLD_NEXT, "mmap");
    real_memfd_create = (int (*)(const char *, unsigned))dlsym(RTLD_NEXT, "memfd_create");
    const char *path = getenv("CHAOS_WEATHER");
    int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (fd < 0) return;
    void *page = real_mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (page != MAP_FAILED) weather = page;
    close(fd);
}

static int refused(void) {
    uint32_t every = weather->refuse_every;
    if (every == 0) return 0;
    if ((weather->asked++ + 1) % every) return 0;
    weather->refused++;
    errno = ENOMEM;
    return 1;
}

int clock_gettime(clockid_t clock, struct timespec *now) {
    if (!real_clock_gettime) return (int)syscall(SYS_clock_gettime, clock, now);
    int failed = real_clock_gettime(clock, now);
    int64_t step = weather->step_ns;
    if (failed || step == 0 || (clock != CLOCK_REALTIME && clock != CLOCK_REALTIME_COARSE)) return failed;
    weather->clock_read++;
    int64_t ns = now->tv_nsec + step % 1000000000;
    now->tv_sec += step / 1000000000 + (ns >= 1000000000) - (ns < 0);
    now->tv_nsec = ns < 0 ? ns + 1000000000 : ns >= 1000000000 ? ns - 1000000000 : ns;
    return 0;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    (void)zone;
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    *now = (struct timeval){exact.tv_sec, exact.tv_nsec / 1000};
    return 0;
}

time_t time(time_t *into) {
    struct timespec exact;
    if (clock_gettime(CLOCK_REALTIME, &exact)) return -1;
    if (into) *into = exact.tv_sec;
    return exact.tv_sec;
}

int memfd_create(const char *name, unsigned flags) { return refused() ? -1 : real_memfd_create(name, flags); }

void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    if (!real_mmap) return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset);
    return fd >= 0 && (flags & MAP_SHARED) && refused() ? MAP_FAILED : real_mmap(at, size, protection, flags, fd, offset);
}

void *mmap64(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    return mmap(at, size, protection, flags, fd, offset);
}
