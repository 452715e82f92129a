/* The pace of a stream: a consumer that sleeps lets some frames gather where the producer spends its time with rings.
 *
 * A ring costs some microseconds, a small frame less than one. A consumer that is quicker than its producer would
 * sleep and be rung for every few frames, and rings and wake-ups would cost both more than the frames. So a producer
 * that again and again commits its next frame in less time than the ring before took writes a time, the nap, into its
 * RING. A consumer that falls asleep on such a route asks for the bell only when half of its free credits are used, and
 * looks itself when the nap is over; if it finds nothing then, it asks for the next frame, like every other sleeper.
 * So a frame is seen at most CHX_NAP_MAX_NS later than otherwise, no wake-up is lost whatever a producer writes, and an
 * idle route costs nothing.
 *
 * A producer that waits between two frames, for an answer or for work, proposes no nap: its next frame comes later. Where
 * both ends share a processor the answer may be there when the ring is over, so a consumer takes a nap only if
 * it has taken CHX_NAP_FRAMES frames or more, since it last waited, for each that it has sent itself: it may be answering.
 */
#ifndef CHRONETIX_PACE_H
#define CHRONETIX_PACE_H

#include <stdint.h>

#define CHX_NAP_NS 250000u      /* the nap that a producer of one route proposes; of n routes 1 + n/8 times that */
#define CHX_NAP_MAX_NS 4000000u /* the longest one that a consumer takes */
#define CHX_NAP_FRAMES 4u
#define CHX_PACE_SURE 4u        /* commits that came quickly after a ring, one more than the others */

/* Of one sending end. */
struct chx_pace {
    uint64_t rung_at; /* when the last ring was over; 0: not since the last commit */
    uint64_t ring_ns; /* how long that took */
    uint32_t score, rapid;
};

/* The nap that the producer of so many routes proposes. They share the processors that their consumers need. */
static inline uint64_t chx_pace_nap(const struct chx_pace *pace, uint64_t routes) {
    return pace->rapid ? CHX_NAP_NS * (1 + routes / 8) : 0;
}

/* A ring began and ended then. */
static inline void chx_pace_rang(struct chx_pace *pace, uint64_t began, uint64_t ended) {
    pace->rung_at = ended;
    pace->ring_ns = ended - began;
}

/* The sender waited for credits or room: the time until its next frame says nothing. */
static inline void chx_pace_waited(struct chx_pace *pace) { pace->rung_at = 0; }

/* A frame is committed at `now`. 1: `rapid` has changed. */
static inline int chx_pace_commit(struct chx_pace *pace, uint64_t now) {
    if (pace->rung_at == 0) return 0;
    uint64_t after = now > pace->rung_at ? now - pace->rung_at : 0;
    pace->rung_at = 0;
    if (after >= pace->ring_ns)
        pace->score = pace->score > 2 ? pace->score - 2 : 0;
    else if (pace->score < CHX_PACE_SURE)
        pace->score++;
    uint32_t rapid = pace->score == CHX_PACE_SURE ? 1 : pace->score == 0 ? 0 : pace->rapid;
    if (rapid == pace->rapid) return 0;
    pace->rapid = rapid;
    return 1;
}

#endif
