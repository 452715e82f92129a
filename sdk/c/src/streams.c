/* Stdout and stderr of a worker that outlives its daemon, which reads both.
 *
 * Who writes into a pipe that nobody reads gets SIGPIPE, so the worker holds a reading end of each. There is no thread
 * that empties them: while no daemon is there they do not block, the library takes the oldest away when it is called,
 * and what a pipe that is full refuses is lost. The next daemon is shown the reading ends, and told what was taken away.
 */
#include <fcntl.h>
#include <stdio.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker.h"

static bool is_pipe(int fd) {
    struct stat status;
    return fstat(fd, &status) == 0 && S_ISFIFO(status.st_mode);
}

static void let_go(struct streams *streams) {
    for (int i = 0; i < 2; i++) {
        if (streams->held[i] >= 0) close(streams->held[i]);
        streams->held[i] = -1;
    }
}

static void set_blocking(const struct streams *streams, bool blocking) {
    for (int i = 0; i < 2; i++) {
        if (streams->held[i] < 0) continue;
        int flags = fcntl(i + 1, F_GETFL); /* of a description that was opened here: nobody else's */
        if (flags >= 0) fcntl(i + 1, F_SETFL, blocking ? flags & ~O_NONBLOCK : flags | O_NONBLOCK);
    }
}

/* A daemon reads them now, and may die from now on. */
void streams_hold(struct streams *streams) {
    let_go(streams);
    for (int i = 0; i < 2; i++) {
        char path[32];
        if (!is_pipe(i + 1)) continue;
        snprintf(path, sizeof path, "/proc/self/fd/%d", i + 1);
        int own = open(path, O_RDWR | O_CLOEXEC);
        if (own < 0) continue;
        if (dup2(own, i + 1) >= 0) streams->held[i] = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
        close(own);
    }
}

void streams_begin(struct streams *streams) {
    streams->active = 1;
    set_blocking(streams, false);
}

/* Once a quarter of a pipe is full, all but an eighth of it goes, the oldest first. */
void streams_make_room(struct streams *streams) {
    char bytes[4096];
    for (int i = 0; streams->active && i < 2; i++) {
        int there = 0, size = streams->held[i] >= 0 ? fcntl(streams->held[i], F_GETPIPE_SZ) : -1;
        if (size < 0 || ioctl(streams->held[i], FIONREAD, &there) != 0 || there <= size / 4) continue;
        while (there > size / 8) {
            ssize_t got = read(streams->held[i], bytes, sizeof bytes);
            if (got <= 0) break;
            there -= (int)got;
            streams->lost[i] += (uint64_t)got;
        }
    }
}

void streams_end(struct streams *streams) {
    if (!streams->active) return;
    streams->active = 0;
    set_blocking(streams, true);
}

void streams_free(struct streams *streams) {
    if (streams->active) { /* no daemon will read: print to nowhere */
        int nowhere = open("/dev/null", O_WRONLY | O_CLOEXEC);
        for (int i = 0; nowhere >= 0 && i < 2; i++)
            if (streams->held[i] >= 0) dup2(nowhere, i + 1);
        if (nowhere >= 0) close(nowhere);
    }
    let_go(streams);
}
