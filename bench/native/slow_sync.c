/* Preloaded into a daemon: a disk that takes $SLOW_SYNC_MS for every fsync and fdatasync, or until the file
 * $SLOW_SYNC_ON is gone; without that file it is as fast as ever. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

static int slowly(int fd, const char *name) {
    const char *ms = getenv("SLOW_SYNC_MS"), *on = getenv("SLOW_SYNC_ON");
    struct timespec one = {0, 1000000L};
    for (long left = ms ? atol(ms) : 0; on && left > 0 && access(on, F_OK) == 0; left--) nanosleep(&one, NULL);
    int (*real)(int) = (int (*)(int))dlsym(RTLD_NEXT, name);
    return real(fd);
}

int fsync(int fd) { return slowly(fd, "fsync"); }

int fdatasync(int fd) { return slowly(fd, "fdatasync"); }
