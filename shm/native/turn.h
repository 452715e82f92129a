/* Whose turn it is among the inputs of one inlet. Indices only: nothing here looks at a route.
 *
 * Inputs are ranked by their class of service. The highest class that has something goes first, but for at most `quota`
 * takes of a round of 15: realtime 8, high 4, normal 2, best-effort 1. A round ends when no class that has something
 * has takes left. So a class waits for those above it and is never starved by them, and takes that a class does not use
 * go to the others.
 *
 * Within a rank inputs take turns. Once a frame with a deadline was taken from it, the earliest deadline goes first
 * (none is later than any) and equals take turns, but every eighth take goes by turn whatever the deadlines: none
 * starves.
 *
 * With 32 inputs or more, those found empty sleep: they are passed over until all are woken, which is so often that a
 * take costs about eight looks at sleepers. Nothing is said to be empty before all were looked at. What has something
 * again waits for about as many takes as there are inputs, at most, as it would if all were looked at in turn.
 */
#ifndef CHRONETIX_NATIVE_TURN_H
#define CHRONETIX_NATIVE_TURN_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define TURN_CLASSES 4
#define TURN_LAZY_FROM 32u  /* inputs */
#define TURN_SLEEPERS 8u    /* looks at sleepers for each take, about */
#define TURN_BY_TURN 8u     /* one take of so many goes by turn, whatever the deadlines are */
#define TURN_PATIENCE 256u  /* looks at all inputs that show no deadline, until deadlines are not looked for any more */

struct rank {
    uint32_t *ports;       /* of one class, in the inlet's order */
    uint64_t *awake;       /* a bit for each, when there are many */
    uint32_t count, next;  /* `next`: in `ports`, whose turn it is */
    uint32_t busy;         /* how many are awake */
    uint32_t quota, left;  /* takes of a round; those that are left */
    uint32_t taken;        /* since all were woken */
    uint32_t deadlines;    /* looks for deadlines that are still worth it; 0: none was seen */
    uint32_t takes, fair;  /* since deadlines are looked for; whose turn it is when they do not count */
};

struct turns {
    struct rank ranks[TURN_CLASSES]; /* highest class first; none is empty */
    uint32_t count;
    uint32_t *ports;
    uint64_t *awake;
};

static inline uint32_t rank_words(uint32_t inputs) { return (inputs + 63) / 64; }

static inline void rank_wake(struct rank *rank, uint32_t at) {
    uint64_t bit = 1ull << (at % 64), *word = &rank->awake[at / 64];
    if (*word & bit) return;
    *word |= bit;
    rank->busy++;
}

/* Wake all if it is time. */
static inline void rank_stir(struct rank *rank) {
    if (rank->busy == 0 || rank->busy == rank->count) return;
    if (rank->taken < (rank->count - rank->busy) / (TURN_SLEEPERS * rank->busy)) return;
    memset(rank->awake, 0xff, rank_words(rank->count) * sizeof *rank->awake);
    if (rank->count % 64) rank->awake[rank->count / 64] = (1ull << rank->count % 64) - 1;
    rank->busy = rank->count;
    rank->taken = 0;
}

static inline void rank_sleep(struct rank *rank, uint32_t at) {
    rank->awake[at / 64] &= ~(1ull << (at % 64));
    rank->busy--;
}

/* Those of a word that are awake, from input `at` on. */
static inline uint64_t rank_awake(const struct rank *rank, uint32_t at) { return rank->awake[at / 64] >> at % 64 << at
% 64; }

static inline void turns_refill(struct turns *turns) {
    for (uint32_t i = 0; i < turns->count; i++) turns->ranks[i].left = turns->ranks[i].quota;
}

static inline void turns_free(struct turns *turns) {
    free(turns->ports);
    free(turns->awake);
    memset(turns, 0, sizeof *turns);
}

/* Rank `count` inputs by `class_of` each (0 lowest). -1: no memory. */
static inline int turns_make(struct turns *turns, uint32_t count, const uint8_t *class_of) {
    static const uint32_t quotas[TURN_CLASSES] = {1, 2, 4, 8};
    memset(turns, 0, sizeof *turns);
    turns->ports = malloc((count + 1) * sizeof *turns->ports);
    turns->awake = calloc(rank_words(count) + TURN_CLASSES, sizeof *turns->awake);
    if (!turns->ports || !turns->awake) return turns_free(turns), -1;
    uint32_t *ports = turns->ports;
    uint64_t *awake = turns->awake;
    for (int class = TURN_CLASSES - 1; class >= 0; class--) {
        struct rank *rank = &turns->ranks[turns->count];
        *rank = (struct rank){.ports = ports, .awake = awake, .quota = quotas[class], .left = quotas[class]};
        for (uint32_t port = 0; port < count; port++)
            if (class_of[port] == class) rank->ports[rank->count++] = port;
        if (!rank->count) continue;
        ports += rank->count;
        awake += rank_words(rank->count);
        turns->count++;
    }
    return 0;
}

#endif
