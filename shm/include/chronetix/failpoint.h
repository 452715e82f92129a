/* Places at which a test build can die, as if by kill -9. In any other build they are empty.
 *
 * A test build defines CHX_FAILPOINTS and one `struct chx_failpoints chx_failpoints`; it sets `armed` to a place and
 * `countdown` to the visit at which the process is to end (1: the next one).
 */
#ifndef CHRONETIX_FAILPOINT_H
#define CHRONETIX_FAILPOINT_H

#ifndef CHX_FAILPOINTS
#define CHX_FAILPOINT(place) ((void)0)
#else

#include <signal.h>
#include <stdint.h>
#include <unistd.h>

/* In the order in which a frame passes them. */
#define CHX_FAILPOINT_LIST(X) \
    X(CLAIM_RESERVED)         \
    X(WRITE_COPIED)           \
    X(SKIP_MARKED)            \
    X(COMMIT_CHOSEN)          \
    X(COMMIT_DESCRIBED)       \
    X(RUN_STAMPED)            \
    X(RUN_HIDDEN)             \
    X(RUN_SHOWN)              \
    X(COMMIT_ANNOUNCED)       \
    X(COMMIT_RUNG)            \
    X(WAIT_ARMED)             \
    X(RELINK_MAPPED)          \
    X(RELINK_FREED)           \
    X(RELINK_COUNTED)         \
    X(CLOSE_BEGUN)            \
    X(CLOSE_STORED)           \
    X(INHERIT_STAMPED)        \
    X(INHERIT_DONE)           \
    X(TAKE_CHOSEN)            \
    X(TAKE_NOTED)             \
    X(TAKE_ARMED)             \
    X(RETURN_BEGUN)           \
    X(RETURN_STAMPED)         \
    X(RETURN_COUNTED)         \
    X(DETACH_BEGUN)           \
    X(DETACH_STORED)

#define CHX_FAILPOINT_NAME(name) CHX_AT_##name,
enum chx_failpoint { CHX_FAILPOINT_LIST(CHX_FAILPOINT_NAME) CHX_FAILPOINT_COUNT };
#undef CHX_FAILPOINT_NAME

struct chx_failpoints {
    enum chx_failpoint armed; /* CHX_FAILPOINT_COUNT: none */
    uint32_t countdown;
};
extern struct chx_failpoints chx_failpoints;

static inline void chx_failpoint(enum chx_failpoint place) {
    if (chx_failpoints.armed == place && --chx_failpoints.countdown == 0) kill(getpid(), SIGKILL);
}

#define CHX_FAILPOINT(place) chx_failpoint(CHX_AT_##place)

#endif
#endif
