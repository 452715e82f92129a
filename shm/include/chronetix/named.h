/* Named shared memory (POSIX: /dev/shm), for machines without sealed anonymous memory.
 *
 * A name identifies its maker by boot, PID namespace, process id and start time of the process, and has a number. So a
 * sweep can tell names of dead makers from those in use (shm/names.py), also when a later process has the same pid. The
 * maker removes the name when it frees the memory.
 */
#ifndef CHRONETIX_NAMED_H
#define CHRONETIX_NAMED_H

#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "guard.h"

#define CHX_NAMED_FOLDER "/dev/shm"

/* The beginning of a small file in /proc, as text; empty when it cannot be read. */
static inline void chx_proc_text(const char *path, char *text, size_t room) {
    int fd = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t got = fd < 0 ? 0 : read(fd, text, room - 1);
    if (fd >= 0) close(fd);
    text[got < 0 ? 0 : got] = 0;
}

/* When this process started, in clock ticks after boot: field 22 of its stat. Its name, field 2, may hold anything. */
static inline unsigned long long chx_proc_start(void) {
    char text[1024];
    chx_proc_text("/proc/self/stat", text, sizeof text);
    const char *at = strrchr(text, ')');
    for (int field = 2; at && field < 22; field++) at = strchr(at + 1, ' ');
    return at ? strtoull(at + 1, NULL, 10) : 0;
}

/* The namespace that this process's number is of, by its inode. */
static inline unsigned long long chx_proc_namespace(void) {
    char target[64];
    ssize_t length = readlink("/proc/self/ns/pid", target, sizeof target - 1);
    target[length < 0 ? 0 : length] = 0;
    const char *at = strchr(target, '[');
    return at ? strtoull(at + 1, NULL, 10) : 0;
}

/* A new object with a name of its own, for this user only; `path` gets it. -1 with errno. */
static inline int chx_named_create(char path[CHX_NAME_MAX]) {
    static _Atomic uint32_t numbers;
    char boot[64];
    chx_proc_text("/proc/sys/kernel/random/boot_id", boot, sizeof boot);
    boot[strcspn(boot, "-\n")] = 0;
    int fd;
    do {
        snprintf(path, CHX_NAME_MAX, CHX_NAMED_FOLDER "/chronetix-%s-%llu-%ld-%llu-%u", boot, chx_proc_namespace(),
                 (long)getpid(), chx_proc_start(), atomic_fetch_add_explicit(&numbers, 1, memory_order_relaxed));
        fd = open(path, O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0600);
    } while (fd < 0 && errno == EEXIST); /* another translation unit's number */
    return fd;
}

#endif
