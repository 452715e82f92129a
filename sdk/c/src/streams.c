/* Stdout and stderr of a worker that outlives its daemon, which reads both.
 *
 * Who writes into a pipe that nobody reads gets SIGPIPE, so the worker holds a reading end of each. Such a pipe is full
 * after a while, and then a write sleeps, for ever if no daemon comes. The worker's own thread cannot help: it may be the
 * one that sleeps. So a second thread, the keeper, watches the daemon's socket. While no daemon is there it takes the
 * oldest away and counts that. The next daemon is shown the reading ends, and told what was taken away. The keeper never
 * touches the worker, and blocks every signal. Output is never made non-blocking: stdio loses what such a descriptor
 * refuses, and an std::ostream refuses all that follows.
 */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <unistd.h>

#include "worker.h"

#define BUSY_MS 5 /* between two looks while somebody prints */
#define IDLE_MS 100

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

void streams_init(struct streams *streams) {
    pthread_mutex_init(&streams->lock, NULL);
    streams->held[0] = streams->held[1] = streams->epoll = streams->bell = -1;
}

/* ---- the keeper ------------------------------------------------------------------------------------------------- */

static int waiting(int fd) {
    int there = 0;
    return fd >= 0 && ioctl(fd, FIONREAD, &there) == 0 ? there : 0;
}

/* Once a quarter of a pipe is full, all but an eighth of it goes, the oldest first. (A pipe is full when all its pages are
 * begun, which may be with half of its bytes.) True: something was printed since the last look. */
static bool make_room(struct streams *streams, int which) {
    char bytes[4096];
    int fd = streams->held[which], there = waiting(fd), size = fd >= 0 ? fcntl(fd, F_GETPIPE_SZ) : 0;
    bool printed = there != streams->left[which];
    for (bool full = there > size / 4; full && there > size / 8; there = waiting(fd)) {
        ssize_t got = read(fd, bytes, sizeof bytes);
        if (got <= 0) break; /* a daemon that was shown the pipe has just emptied it */
        streams->lost[which] += (uint64_t)got;
    }
    streams->left[which] = there;
    return printed;
}

static void *keep(void *state) {
    struct streams *streams = state;
    int pause = -1;
    for (bool ends = false; !ends;) {
        struct epoll_event events[2];
        int got = epoll_wait(streams->epoll, events, 2, pause);
        pthread_mutex_lock(&streams->lock);
        for (int i = 0; i < got; i++) {
            uint64_t times;
            if (events[i].data.u64 == streams->daemons) streams->alone = 1;
            else if (events[i].data.u64 == 0 && read(streams->bell, &times, sizeof times) < 0) break;
        }
        ends = streams->ends;
        pause = -1;
        if (streams->alone) {
            bool out = make_room(streams, 0), err = make_room(streams, 1);
            pause = out || err ? BUSY_MS : IDLE_MS;
        }
        pthread_mutex_unlock(&streams->lock);
    }
    return NULL;
}

static void ring(const struct streams *streams) {
    const uint64_t once = 1;
    ssize_t rung = streams->runs ? write(streams->bell, &once, sizeof once) : 0;
    (void)rung; /* a bell that refuses has been rung already */
}

static int run_keeper(struct streams *streams) {
    struct epoll_event event = {.events = EPOLLIN, .data.u64 = 0};
    streams->bell = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK);
    streams->epoll = epoll_create1(EPOLL_CLOEXEC);
    if (streams->bell < 0 || streams->epoll < 0 || epoll_ctl(streams->epoll, EPOLL_CTL_ADD, streams->bell, &event) != 0) return -1;
    sigset_t all, before;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int refused = pthread_create(&streams->keeper, NULL, keep, streams);
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (refused) {
        errno = refused;
        return -1;
    }
    pthread_setname_np(streams->keeper, "chronetix-print");
    streams->runs = 1;
    return 0;
}

/* ---- daemons come and go ---------------------------------------------------------------------------------------- */

/* Give stdout or stderr a description of this process alone, which reads if `mode` says so. */
static int reopen(int fd, int mode) {
    char path[32];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    int own = open(path, mode | O_CLOEXEC);
    if (own < 0 || dup2(own, fd) < 0) {
        if (own >= 0) close(own);
        return -1;
    }
    return close(own);
}

static int hold(struct streams *streams, int which) {
    char path[32];
    if (!is_pipe(which + 1)) return 0;
    if (reopen(which + 1, O_RDWR) != 0) return -1;
    snprintf(path, sizeof path, "/proc/self/fd/%d", which + 1);
    streams->held[which] = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
    return streams->held[which] < 0 ? -1 : 0;
}

int streams_hold(struct streams *streams, int daemon, const int *fds) {
    int result = 0;
    pthread_mutex_lock(&streams->lock);
    streams->alone = 0;
    streams->daemons++;
    let_go(streams);
    for (int i = 0; result == 0 && i < 2; i++)
        if (fds && dup2(fds[i], i + 1) < 0) result = -1;
    for (int i = 0; result == 0 && i < 2; i++) result = hold(streams, i);
    bool any = streams->held[0] >= 0 || streams->held[1] >= 0;
    if (result == 0 && any && !streams->runs) result = run_keeper(streams);
    if (result == 0 && any) { /* of a daemon that is dead already this tells at once */
        struct epoll_event event = {.events = EPOLLRDHUP | EPOLLONESHOT, .data.u64 = streams->daemons};
        result = epoll_ctl(streams->epoll, EPOLL_CTL_ADD, daemon, &event);
    }
    pthread_mutex_unlock(&streams->lock);
    return result;
}

void streams_begin(struct streams *streams) {
    pthread_mutex_lock(&streams->lock);
    streams->alone = 1;
    pthread_mutex_unlock(&streams->lock);
    ring(streams);
}

uint64_t streams_take_lost(struct streams *streams, int which) {
    pthread_mutex_lock(&streams->lock);
    uint64_t lost = streams->lost[which];
    streams->lost[which] = 0;
    pthread_mutex_unlock(&streams->lock);
    return lost;
}

/* A write that comes later never sleeps for ever: it goes to nowhere if no daemon is there, else to a pipe that the daemon
 * alone reads. A forked child has no keeper. */
void streams_free(struct streams *streams, bool here) {
    if (here && streams->runs) {
        pthread_mutex_lock(&streams->lock);
        streams->ends = 1;
        pthread_mutex_unlock(&streams->lock);
        ring(streams);
        pthread_join(streams->keeper, NULL);
    }
    int nowhere = streams->alone ? open("/dev/null", O_WRONLY | O_CLOEXEC) : -1;
    for (int i = 0; i < 2; i++) {
        if (streams->held[i] < 0) continue;
        if (nowhere >= 0) dup2(nowhere, i + 1);
        else if (is_pipe(i + 1)) reopen(i + 1, O_WRONLY);
    }
    if (nowhere >= 0) close(nowhere);
    let_go(streams);
    if (streams->epoll >= 0) close(streams->epoll);
    if (streams->bell >= 0) close(streams->bell);
    if (here) pthread_mutex_destroy(&streams->lock);
}
