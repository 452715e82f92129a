/* The doorbell, on which an event loop sleeps for all its routes, and the lines on which its peers ring it.
 *
 *      producer                                            consumer
 *   chx_bell: epoll ── line end ═══ one socketpair ═══ line end ── epoll :chx_bell
 *               └── eventfd (this process alone)   (this process alone) eventfd ──┘
 *
 * A line is a pair of connected Unix stream sockets, made by the process that links the two ends of a route. Each end
 * has one holder, so that no process can change the flags of another one's descriptor, or read bytes that another one
 * waits for. A ring only means "look again": the words in RING and CREDIT tell what happened.
 *
 * The producer's end is shut for writing when it is made, and the producer rings by shutting it again: that sends no
 * data, needs no memory, never waits, and is an edge for the consumer's epoll (EPOLLET) each time. The woken consumer
 * has nothing to read and makes no further system call. The shutdown is no edge for the producer's own epoll, whose end
 * is not shut for reading. Whether the kernel does so is tried out when the first line is made; if it does not, the end
 * is left open.
 *
 * The consumer, and a producer whose end is open, ring by one byte, sent with MSG_DONTWAIT, which holds for this call
 * whatever flags the socket has; every send is an edge, too. A woken process reads the bytes on the lines that rang and
 * then looks at its routes. EAGAIN at a send means that unread bytes are there; the process that reads them looks at
 * its routes later than that (see SPEC.md, Wake-up). A peer's end that is closed is an edge: a line that has hung up
 * wakes once.
 *
 * Descriptors that a peer attaches to its bytes would be closed by the process that reads or drops the bytes, and
 * closing them may take as long as their sender wants. The kernel refuses them (SO_PASSRIGHTS); where it cannot, they
 * are detected before the bytes are read: then the line is never read and never closed, and its route gets a fault.
 */
#ifndef CHRONETIX_DOORBELL_H
#define CHRONETIX_DOORBELL_H

#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE: ppoll needs it"
#endif

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"
#include "features.h"

#ifndef SO_PASSRIGHTS
#define SO_PASSRIGHTS 83
#endif
#ifndef SYS_epoll_pwait2
#define SYS_epoll_pwait2 441
#endif

#define CHX_BELL_EVENTS 16 /* lines that one wake-up reads; more wait for the next one */
#define CHX_LINE_BYTES 256 /* read at once; a correct peer has fewer on their way: see CHX_LINE_ROOM */
#define CHX_LINE_ROOM 0    /* asked for as SO_SNDBUF: the kernel's least, some six rings */

enum chx_line_state {
    CHX_LINE_NONE,
    CHX_LINE_SHUT,    /* nothing can come on this line: nothing is read or dropped */
    CHX_LINE_BARE,    /* no descriptors can come: SO_PASSRIGHTS was off before a peer could send one */
    CHX_LINE_GUARDED, /* looked at before it is read */
    CHX_LINE_SPOILT,  /* the peer has sent a descriptor on it: never read or closed */
};

struct chx_bell {
    int epoll; /* the epoll on which threads sleep */
    int self;  /* an eventfd: rung from inside this process, never read */
    uint8_t *lines; /* by descriptor, an enum chx_line_state */
    int room;
    int spoilt; /* how many lines are CHX_LINE_SPOILT */
    pid_t pid;  /* a forked child has the same epoll, and must not change it */
};

/* ---- lines ------------------------------------------------------------------------------------------------------ */

/* Whether it is certain that no descriptor is attached to the bytes in `fd`, and that none will be. */
static inline int chx_line_refuses_rights(int fd) {
    int passes = 1, off = 0;
    socklen_t size = sizeof passes;
    if (chx_word_in(getenv("CHRONETIX_WITHOUT"), "passrights")) return 0;
    if (getsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, &passes, &size) != 0) return 0;
    return passes == 0 || (setsockopt(fd, SOL_SOCKET, SO_PASSRIGHTS, &off, sizeof off), 0);
}

/* Whether shutting `ends`[0] for writing wakes the epoll of `ends`[1], and not that of `ends`[0]. */
static inline int chx_shut_rings_once(const int ends[2], const int epolls[2]) {
    struct epoll_event event;
    return shutdown(ends[0], SHUT_WR) == 0 && epoll_wait(epolls[1], &event, 1, 0) == 1 &&
           epoll_wait(epolls[1], &event, 1, 0) == 0 && epoll_wait(epolls[0], &event, 1, 0) == 0;
}

/* Whether each further shutting wakes it again; -1 with errno if that cannot be found out now. */
static inline int chx_shut_rings_probe(void) {
    int ends[2], epolls[2], rings = -1;
    if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) return -1;
    for (int i = 0; i < 2; i++) epolls[i] = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    if (epolls[0] >= 0 && epolls[1] >= 0 && epoll_ctl(epolls[0], EPOLL_CTL_ADD, ends[0], &event) == 0 &&
        epoll_ctl(epolls[1], EPOLL_CTL_ADD, ends[1], &event) == 0)
        rings = chx_shut_rings_once(ends, epolls) && chx_shut_rings_once(ends, epolls) && chx_shut_rings_once(ends, epolls);
    int error = errno;
    for (int i = 0; i < 2; i++) {
        close(ends[i]);
        if (epolls[i] >= 0) close(epolls[i]);
    }
    errno = error;
    return rings;
}

/* The same, found out once. CHRONETIX_WITHOUT=shut_rings makes a kernel behave as one where shutting does not ring. */
static inline int chx_shut_rings(void) {
    static _Atomic int cached; /* 1: no, 2: yes */
    if (chx_word_in(getenv("CHRONETIX_WITHOUT"), "shut_rings")) return 0;
    int known = atomic_load_explicit(&cached, memory_order_relaxed);
    if (known) return known - 1;
    int rings = chx_shut_rings_probe();
    if (rings >= 0) atomic_store_explicit(&cached, rings + 1, memory_order_relaxed);
    return rings;
}

/* Both ends of a new line: the producer's, which is shut for writing where that rings, and the consumer's. With
 * `one_way` the consumer cannot ring the producer. 0, or -1 with errno. */
static inline int chx_line_pair(int ends[2], int one_way) {
    int off = 0, room = CHX_LINE_ROOM, rings = chx_shut_rings();
    if (rings < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) != 0) return -1;
    for (int i = 0; i < 2; i++) {
        setsockopt(ends[i], SOL_SOCKET, SO_PASSRIGHTS, &off, sizeof off); /* Linux 6.16 */
        setsockopt(ends[i], SOL_SOCKET, SO_SNDBUF, &room, sizeof room);
    }
    if (rings) shutdown(ends[0], SHUT_WR);
    if (one_way) shutdown(ends[1], SHUT_WR);
    return 0;
}

/* Whether this end is shut for writing; true also if its peer has gone. Sending no bytes finds that out and has no
 * other effect. */
static inline int chx_line_is_shut(int fd) { return send(fd, "", 0, MSG_DONTWAIT | MSG_NOSIGNAL) < 0 && errno == EPIPE;
}

/* Ring by an end that is shut for writing. Never blocks, and needs no memory. 0, or errno. */
static inline int chx_line_ring_shut(int fd) { return fd < 0 || shutdown(fd, SHUT_WR) == 0 ? 0 : errno; }

/* Whether nothing can come on this end any more. Looks at the end without reading from it. */
static inline int chx_line_is_mute(int fd) {
    char byte;
    ssize_t got;
    do {
        got = recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    return got == 0;
}

/* By one that is not. Never blocks. 0, or errno; EAGAIN is success: it has been rung. So is a peer that has gone: there
 * is nobody to wake. A kernel without memory for one byte ends this process rather than refuse it; if it does refuse,
 * it is asked again.
 * */
static inline int chx_line_ring(int fd) {
    ssize_t sent;
    if (fd < 0) return 0;
    do {
        sent = send(fd, "", 1, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent < 0 && (errno == ENOBUFS || errno == ENOMEM)) sched_yield();
    } while (sent < 0 && (errno == EINTR || errno == ENOBUFS || errno == ENOMEM));
    return sent == 1 || errno == EAGAIN || errno == EPIPE || errno == ECONNRESET ? 0 : errno;
}

/* Bytes that came without a descriptor: read and forgotten, at most CHX_LINE_BYTES. How many; 0: none are there, or the
 * peer has hung up; -1: a descriptor lies there, and nothing was read. */
static inline ssize_t chx_line_read(int fd, enum chx_line_state state) {
    char bytes[CHX_LINE_BYTES];
    size_t length = sizeof bytes;
    ssize_t got;
    if (state != CHX_LINE_BARE) {
        struct iovec room = {.iov_base = bytes, .iov_len = length};
        struct msghdr message = {.msg_iov = &room, .msg_iovlen = 1};
        do {
            got = recvmsg(fd, &message, MSG_PEEK | MSG_DONTWAIT);
        } while (got < 0 && errno == EINTR);
        if (got <= 0) return 0;
        if (message.msg_flags & MSG_CTRUNC) return -1;
        length = (size_t)got;
    }
    do {
        got = recv(fd, bytes, length, MSG_DONTWAIT);
    } while (got < 0 && errno == EINTR);
    return got < 0 ? 0 : got;
}

/* ---- the bell --------------------------------------------------------------------------------------------------- */

static inline void chx_bell_destroy(struct chx_bell *bell) {
    if (bell->epoll >= 0) close(bell->epoll);
    if (bell->self >= 0) close(bell->self);
    free(bell->lines);
    *bell = (struct chx_bell){.epoll = -1, .self = -1, .pid = bell->pid};
}

static inline int chx_bell_watch(const struct chx_bell *bell, int fd) {
    struct epoll_event event = {.events = EPOLLIN | EPOLLET, .data.fd = fd};
    return epoll_ctl(bell->epoll, EPOLL_CTL_ADD, fd, &event);
}

/* 0, or -1 with errno. */
static inline int chx_bell_init(struct chx_bell *bell) {
    *bell = (struct chx_bell){.epoll = epoll_create1(EPOLL_CLOEXEC), .self = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)};
    bell->pid = getpid();
    if (bell->epoll >= 0 && bell->self >= 0 && chx_bell_watch(bell, bell->self) == 0) return 0;
    int error = errno;
    chx_bell_destroy(bell);
    errno = error;
    return -1;
}

/* Ring from inside this process: from any thread, also from a signal handler. */
static inline void chx_bell_ring(const struct chx_bell *bell) {
    uint64_t one = 1;
    int error = errno;
    while (bell->self >= 0 && write(bell->self, &one, sizeof one) < 0 && errno == EINTR) continue;
    errno = error;
}

/* Sleep until it is rung, `timeout_ns` has passed (negative: never), or a signal comes; what rang is put into `events`
 * (CHX_BELL_EVENTS of them). How many; 0: the time has passed; -1 with errno. */
static inline int chx_bell_await(const struct chx_bell *bell, struct epoll_event *events, int64_t timeout_ns) {
    if (timeout_ns <= 0) return epoll_wait(bell->epoll, events, CHX_BELL_EVENTS, timeout_ns < 0 ? -1 : 0);
    struct timespec limit = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    int got = (int)syscall(SYS_epoll_pwait2, bell->epoll, events, CHX_BELL_EVENTS, &limit, NULL, (size_t)0);
    if (got >= 0 || (errno != ENOSYS && errno != EPERM)) return got;
    struct pollfd entry = {.fd = bell->epoll, .events = POLLIN}; /* Linux before 5.11, or a filter of system calls */
    got = ppoll(&entry, 1, &limit, NULL);
    return got <= 0 ? got : epoll_wait(bell->epoll, events, CHX_BELL_EVENTS, 0);
}

/* Read what has come on the lines that rang. Those that were closed since are passed over. */
static inline void chx_bell_hear(struct chx_bell *bell, const struct epoll_event *events, int count) {
    for (int i = 0; i < count; i++) {
        int fd = events[i].data.fd;
        if (fd >= bell->room || (bell->lines[fd] != CHX_LINE_BARE && bell->lines[fd] != CHX_LINE_GUARDED)) continue;
        if (chx_line_read(fd, (enum chx_line_state)bell->lines[fd]) >= 0) continue;
        bell->lines[fd] = CHX_LINE_SPOILT;
        bell->spoilt++;
        epoll_ctl(bell->epoll, EPOLL_CTL_DEL, fd, NULL);
    }
}

/* Sleep until it is rung (1), `timeout_ns` has passed (0; negative: never), or -1 with errno (EINTR: a signal). */
static inline int chx_bell_sleep(struct chx_bell *bell, int64_t timeout_ns) {
    struct epoll_event events[CHX_BELL_EVENTS];
    int got = chx_bell_await(bell, events, timeout_ns);
    if (got > 0) chx_bell_hear(bell, events, got);
    return got > 0 ? 1 : got;
}

/* Whether it was rung. It is silent afterwards, unless more lines rang than one wake-up reads. */
static inline int chx_bell_clear(struct chx_bell *bell) { return chx_bell_sleep(bell, 0) > 0; }

/* ---- the ends of a line in a bell ------------------------------------------------------------------------------- */

static inline int chx_bell_note(struct chx_bell *bell, int fd, enum chx_line_state state) {
    if (fd >= bell->room) {
        int room = fd < 32 ? 64 : 2 * fd;
        uint8_t *lines = realloc(bell->lines, (size_t)room);
        if (!lines) return -1;
        memset(lines + bell->room, CHX_LINE_NONE, (size_t)(room - bell->room));
        bell->lines = lines;
        bell->room = room;
    }
    bell->lines[fd] = (uint8_t)state;
    return 0;
}

static inline int chx_line_is_one(int fd) {
    int domain = 0, type = 0;
    socklen_t size = sizeof domain;
    return getsockopt(fd, SOL_SOCKET, SO_DOMAIN, &domain, &size) == 0 && domain == AF_UNIX &&
           getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &size) == 0 && type == SOCK_STREAM;
}

static inline enum chx_line_state chx_line_state_of(int fd) {
    if (chx_line_is_mute(fd)) return CHX_LINE_SHUT;
    return chx_line_refuses_rights(fd) ? CHX_LINE_BARE : CHX_LINE_GUARDED;
}

/* An end that is shut rings when it is added to the epoll. That ring has no meaning, because no position is waited for
 * yet and linking looks at the route anyway. It is cleared; if the ring of another line is cleared with it, that line
 * is rung again. */
static inline void chx_bell_settle(struct chx_bell *bell, int fd) {
    struct epoll_event events[CHX_BELL_EVENTS];
    int got = chx_bell_await(bell, events, 0);
    if (got <= 0) return;
    chx_bell_hear(bell, events, got);
    if (got > 1 || events[0].data.fd != fd) chx_bell_ring(bell);
}

/* Duplicate this end of a line and have it wake `bell` from now on; -1 and `why` on failure. A producer's end on which
 * no data can come never wakes, whatever the other end does. */
static inline int chx_line_adopt(int fd, int consumer, struct chx_bell *bell, struct chx_why *why) {
    if (!chx_line_is_one(fd)) {
        snprintf(why->text, sizeof why->text, "descriptor %d is no end of a line: no Unix stream socket", fd);
        return -1;
    }
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    enum chx_line_state state = copy >= 0 ? chx_line_state_of(copy) : CHX_LINE_NONE;
    int watched = consumer || state != CHX_LINE_SHUT;
    if (copy >= 0 && chx_bell_note(bell, copy, state) == 0 && (!watched || chx_bell_watch(bell, copy) == 0)) {
        if (watched && state == CHX_LINE_SHUT) chx_bell_settle(bell, copy);
        return copy;
    }
    snprintf(why->text, sizeof why->text, "the line %d cannot be listened to: %s", fd, strerror(errno));
    if (copy >= 0) {
        if (copy < bell->room) bell->lines[copy] = CHX_LINE_NONE;
        close(copy);
    }
    return -1;
}

/* Whether the peer has sent descriptors on this line. */
static inline int chx_line_spoilt(const struct chx_bell *bell, int fd) {
    return bell && bell->spoilt && fd >= 0 && fd < bell->room && bell->lines[fd] == CHX_LINE_SPOILT;
}

/* Close the line of a route that has ended, which the peer notices. Unread bytes are checked before they are dropped; a
 * line with a descriptor in it stays open for as long as this process lives. A forked child closes its duplicate. */
static inline void chx_line_close(struct chx_bell *bell, int fd) {
    if (fd < 0) return;
    if (bell && bell->pid == getpid()) {
        enum chx_line_state state = bell->epoll < 0 ? CHX_LINE_GUARDED : (enum chx_line_state)bell->lines[fd];
        ssize_t got = 0;
        shutdown(fd, SHUT_RDWR);
        if (bell->epoll >= 0) {
            bell->lines[fd] = CHX_LINE_NONE;
            bell->spoilt -= state == CHX_LINE_SPOILT;
            epoll_ctl(bell->epoll, EPOLL_CTL_DEL, fd, NULL); /* a forked child may have it open still */
        }
        while (state != CHX_LINE_BARE && state != CHX_LINE_SHUT && (got = chx_line_read(fd, state)) > 0) continue;
        if (got < 0) return;
    }
    close(fd);
}

#endif
