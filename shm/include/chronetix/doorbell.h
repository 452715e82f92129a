/* The doorbell: one non-blocking eventfd per event loop, on which it sleeps for all its routes.
 *
 * Ringing never blocks and never fails for being rung already. A bell says "look again", nothing more: the words in
 * RING and CREDIT say what happened, so a spurious ring costs a look and a lost one cannot be (see SPEC.md, Wake-up).
 */
#ifndef CHRONETIX_DOORBELL_H
#define CHRONETIX_DOORBELL_H

#ifndef _GNU_SOURCE
#error "compile with -D_GNU_SOURCE: ppoll needs it"
#endif

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/eventfd.h>
#include <time.h>
#include <unistd.h>

#include "abi.h"

static inline int chx_bell_create(void) { return eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK); }

/* 0, or errno. EAGAIN means the counter is full: it has been rung. */
static inline int chx_bell_ring(int fd) {
    uint64_t one = 1;
    ssize_t written;
    do {
        written = write(fd, &one, sizeof one);
    } while (written < 0 && errno == EINTR);
    return written == sizeof one || errno == EAGAIN ? 0 : errno;
}

/* Was it rung? It is silent afterwards. */
static inline int chx_bell_clear(int fd) {
    uint64_t rings;
    ssize_t got;
    do {
        got = read(fd, &rings, sizeof rings);
    } while (got < 0 && errno == EINTR);
    return got == sizeof rings;
}

/* Sleep until it is rung (1), `timeout_ns` has passed (0; negative: never), or -1 with errno (EINTR: a signal). */
static inline int chx_bell_sleep(int fd, int64_t timeout_ns) {
    struct pollfd entry = {.fd = fd, .events = POLLIN};
    struct timespec limit = {.tv_sec = timeout_ns / 1000000000, .tv_nsec = timeout_ns % 1000000000};
    return ppoll(&entry, 1, timeout_ns < 0 ? NULL : &limit, NULL);
}

/* A private duplicate of a peer's bell, once it is known to be a non-blocking eventfd. */
static inline int chx_bell_adopt(int fd, struct chx_why *why) {
    char path[40], target[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(path, target, sizeof target - 1);
    target[length < 0 ? 0 : length] = 0;
    if (strcmp(target, "anon_inode:[eventfd]") != 0) {
        snprintf(why->text, sizeof why->text, "descriptor %d is no eventfd but %.64s", fd,
                 length < 0 ? "nothing open" : target);
        return -1;
    }
    int flags = fcntl(fd, F_GETFL);
    if (flags < 0 || !(flags & O_NONBLOCK)) {
        snprintf(why->text, sizeof why->text, "doorbell %d would block its caller: O_NONBLOCK is not set", fd);
        return -1;
    }
    int copy = fcntl(fd, F_DUPFD_CLOEXEC, 3);
    if (copy < 0) snprintf(why->text, sizeof why->text, "doorbell %d cannot be duplicated: %s", fd, strerror(errno));
    return copy;
}

#endif
