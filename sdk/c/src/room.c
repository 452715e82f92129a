/* Room for frames: the arena grows and shrinks by segments; and a sender waits for credits, or for room.
 *
 * Growing: a further segment is shown to the daemon, and used once every consumer has mapped it. Shrinking: what is
 * beyond twice the recent peak is given back after a quiet time, by a look once a second that is only made while the
 * arena is larger than at first.
 *
 * Waiting: look, spin a little, publish what is waited for, fence, look again, sleep. The order is what makes it safe:
 * SPEC.md, Wake-up. An output is waited for until it has come down to credit_low; room, until any frame comes back.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/timerfd.h>

#include "worker.h"

#define SECOND 1000000000ull
#define LONGEST_PAUSE (64 * SECOND)
#define PATIENCE 2u
#define MOST_PATIENCE 64u

void room_reclaim(chx_worker *worker) {
    for (uint32_t i = 0; i < worker->output_count; i++)
        if (chx_producer_returns(&worker->outputs[i]->end)) chx_producer_reclaim(&worker->outputs[i]->end, UINT32_MAX);
    for (struct output *output = worker->done; output; output = output->next)
        if (chx_producer_returns(&output->end)) chx_producer_reclaim(&output->end, UINT32_MAX);
}

/* ---- growing ---------------------------------------------------------------------------------------------------- */

static int tell_segment(chx_worker *worker, const char *type, uint32_t index, const int *fd) {
    chx_writer message = message_begin(type, 1);
    chx_pair_count(&message, "index", index);
    return tell(worker, &message, fd, fd ? 1 : 0, true);
}

static int tell_drops(chx_worker *worker) {
    for (uint32_t i = 0; i < worker->arena.segment_count; i++) {
        struct chx_segment *segment = &worker->arena.segments[i];
        if (segment->state != CHX_SEGMENT_DROPPED || segment->announced) continue;
        segment->announced = 1;
        int told = tell_segment(worker, "segment-dropped", i, NULL);
        if (told < 0) return told;
    }
    return 0;
}

/* Must every consumer have mapped a segment before it is used? One that may lose frames need not. */
static bool waits_for_consumers(const chx_worker *worker) {
    for (uint32_t i = 0; i < worker->output_count; i++)
        if (worker->outputs[i]->end.header.policy == CHX_POLICY_BLOCK) return true;
    for (const struct output *output = worker->done; output; output = output->next)
        if (output->end.header.policy == CHX_POLICY_BLOCK) return true;
    return false;
}

/* 1: try again now; 0: wait; else a code. */
static int grow(chx_worker *worker, uint64_t length) {
    struct chx_arena *arena = &worker->arena;
    if (chx_arena_stay(arena)) return 1;
    uint32_t index = chx_arena_pending(arena, length);
    if (index == arena->segment_count) {
        enum chx_status status = chx_arena_grow(arena, length, &index);
        int told = tell_drops(worker);
        if (told < 0) return told;
        if (status == CHX_EMPTY) return 0;
        if (status == CHX_TOO_LARGE)
            return fail(worker, CHX_E_OUT_OF_MEMORY,
                        "a frame of %llu bytes can never fit: the arena's limit is %llu bytes; raise resource_claims.arena_bytes",
                        (unsigned long long)length, (unsigned long long)arena->limit);
        if (status != CHX_OK) return fail_status(worker, status, "a frame", NULL);
    }
    struct chx_segment *segment = &arena->segments[index];
    if (!segment->announced) {
        int told = tell_segment(worker, "segment", index, &segment->map.fd);
        if (told < 0) return told;
        segment->announced = 1;
        if (!waits_for_consumers(worker) && chx_arena_confirm(arena, index) != CHX_OK) return no_memory(worker, "a segment");
        timer_set(worker, trim_due(worker));
    }
    return segment->state == CHX_SEGMENT_USED;
}

/* Make room by taking back the oldest frame of each output of policy latest. */
static int overwrite(chx_worker *worker, uint64_t length, struct chx_extent *extent) {
    for (bool revoked = true; revoked;) {
        revoked = false;
        for (uint32_t i = 0; i < worker->output_count; i++) {
            struct chx_producer *end = &worker->outputs[i]->end;
            if (!end->latest || end->head == CHX_NONE) continue;
            uint64_t frees = worker->arena.frees;
            chx_producer_revoke(end);
            revoked = true;
            if (worker->arena.frees != frees && chx_arena_alloc(&worker->arena, length, extent) == CHX_OK) return 1;
        }
    }
    return 0;
}

int room_make(chx_worker *worker, uint64_t length, struct chx_extent *extent) {
    struct chx_arena *arena = &worker->arena;
    if (chx_arena_alloc(arena, length, extent) == CHX_OK) return 1;
    room_reclaim(worker);
    if (chx_arena_alloc(arena, length, extent) == CHX_OK) return 1;
    for (;;) {
        worker->short_at = arena->frees + 1;
        int grown = grow(worker, length);
        if (grown < 0) return grown;
        if (grown == 0) return overwrite(worker, length, extent);
        if (chx_arena_alloc(arena, length, extent) == CHX_OK) return 1;
    }
}

/* ---- shrinking -------------------------------------------------------------------------------------------------- */

void timer_set(const chx_worker *worker, uint64_t at_ns) {
    if (worker->presence != PRESENT && worker->retry_ns) at_ns = at_ns ? min_u64(at_ns, worker->retry_ns) : worker->retry_ns;
    struct itimerspec when = {.it_value = {(time_t)(at_ns / SECOND), (long)(at_ns % SECOND)}};
    timerfd_settime(worker->timer, TFD_TIMER_ABSTIME, &when, NULL); /* cannot fail: the clock is monotonic */
}

void trim_init(chx_worker *worker) {
    worker->trim = (struct trim){.first = worker->arena.size, .size = worker->arena.size, .patience = PATIENCE, .pause_ns = SECOND};
}

/* When to look next; 0: there is nothing to look for. */
uint64_t trim_due(chx_worker *worker) {
    struct trim *trim = &worker->trim;
    if (!worker->has_arena || worker->arena.size <= trim->first) return trim->due_ns = 0;
    if (!trim->due_ns) trim->due_ns = chx_now_ns() + SECOND;
    return trim->due_ns;
}

/* It grew again so soon after giving back that it was better kept? */
static void repent(struct trim *trim) {
    if (!trim->given) return;
    uint32_t more = 2 * trim->patience < MOST_PATIENCE ? 2 * trim->patience : MOST_PATIENCE;
    trim->patience = trim->since_given <= 4 * trim->patience ? more : PATIENCE;
    if (trim->count > trim->patience) {
        memmove(trim->peaks, trim->peaks + trim->count - trim->patience, trim->patience * sizeof *trim->peaks);
        trim->count = trim->patience;
    }
    trim->given = 0;
}

static uint64_t note_peak(chx_worker *worker, bool *changed) {
    struct trim *trim = &worker->trim;
    room_reclaim(worker);
    uint64_t peak = worker->arena.peak, most = 0;
    worker->arena.peak = worker->arena.used;
    *changed |= trim->count == 0 || peak != trim->peaks[trim->count - 1];
    if (trim->count == trim->patience) {
        memmove(trim->peaks, trim->peaks + 1, (trim->count - 1) * sizeof *trim->peaks);
        trim->count--;
    }
    trim->peaks[trim->count++] = peak;
    for (uint32_t i = 0; i < trim->count; i++)
        if (trim->peaks[i] > most) most = trim->peaks[i];
    return most;
}

int trim_look(chx_worker *worker) {
    struct trim *trim = &worker->trim;
    struct chx_arena *arena = &worker->arena;
    if (!trim_due(worker) || chx_now_ns() < trim->due_ns) return 0;
    bool changed = arena->size > trim->size, full;
    if (changed) repent(trim);
    uint64_t most = note_peak(worker, &changed), given = 0;
    full = trim->count == trim->patience;
    if (full) {
        given = chx_arena_shrink(arena, 2 * most > trim->first ? 2 * most : trim->first);
        if (most == 0 && !given && arena->size > trim->first) given = chx_arena_shrink(arena, 0);
    }
    if (given) {
        trim->given = 1;
        trim->since_given = 0;
    } else if (trim->given) {
        trim->since_given++;
    }
    trim->size = arena->size;
    trim->pause_ns = full && !changed && !given ? min_u64(2 * trim->pause_ns, LONGEST_PAUSE) : SECOND;
    trim->due_ns = chx_now_ns() + trim->pause_ns;
    return tell_drops(worker);
}

/* ---- waiting ---------------------------------------------------------------------------------------------------- */

static bool waits_credits(const chx_worker *worker, bool arm) {
    bool waits = false;
    for (uint32_t i = 0; i < worker->output_count; i++) {
        struct output *output = worker->outputs[i];
        struct chx_producer *end = &output->end;
        if (!output->wanted) continue;
        if (output->later && end->state == CHX_UNLINKED) waits = true; /* linking it is an event */
        if (end->state != CHX_OPEN || end->header.policy != CHX_POLICY_BLOCK) continue;
        uint64_t goal = chx_producer_goal(end);
        uint32_t used = chx_outstanding(end) + end->reserved;
        bool low = goal ? used <= end->low : chx_producer_has_credit(end);
        if (low) continue;
        if (!chx_producer_ready(end, goal)) waits = true;
        if (arm && goal) chx_producer_arm(end, goal); /* also when ready: a starving consumer may find a frame elsewhere */
    }
    return waits;
}

static bool room_of(struct chx_producer *end, bool arm) {
    uint64_t due;
    if (!chx_producer_returns(end)) return false;
    if (end->latest && chx_outstanding(end)) return true; /* it need not come back */
    if (chx_producer_look(end, &due) != CHX_OK || due) return true;
    if (arm && chx_outstanding(end)) chx_producer_arm(end, end->reclaimed + 1);
    return false;
}

/* Every frame that is out, on any output, may make room when it comes back. */
static bool waits_room(const chx_worker *worker, bool arm) {
    if (worker->arena.frees + 1 != worker->short_at) return false;
    for (uint32_t i = 0; i < worker->output_count; i++)
        if (room_of(&worker->outputs[i]->end, arm)) return false;
    for (struct output *output = worker->done; output; output = output->next)
        if (room_of(&output->end, arm)) return false;
    return true;
}

bool room_waits(chx_worker *worker, bool arm) {
    return worker->short_at ? waits_room(worker, arm) : waits_credits(worker, arm);
}

void room_disarm(const chx_worker *worker) {
    for (uint32_t i = 0; i < worker->output_count; i++)
        if (chx_producer_returns(&worker->outputs[i]->end)) chx_producer_disarm(&worker->outputs[i]->end);
    for (struct output *output = worker->done; output; output = output->next)
        if (chx_producer_returns(&output->end)) chx_producer_disarm(&output->end);
}

/* Whether this output holds the frame up. */
static bool holds_up(const chx_worker *worker, const struct output *output) {
    const struct chx_producer *end = &output->end;
    if (!output->wanted || end->state != CHX_OPEN || end->header.policy != CHX_POLICY_BLOCK) return false;
    return worker->short_at || !chx_producer_has_credit(end);
}

void room_count_sleeps(const chx_worker *worker) {
    for (uint32_t i = 0; i < worker->output_count; i++)
        if (holds_up(worker, worker->outputs[i])) chx_count(&worker->outputs[i]->end.ring->stats.sleeps, 1);
}

static void blocked_from(const chx_worker *worker, uint64_t now) {
    for (uint32_t i = 0; i < worker->output_count; i++) {
        struct chx_producer_stats *stats = &worker->outputs[i]->end.ring->stats;
        if (holds_up(worker, worker->outputs[i]) && !chx_read(&stats->blocked_since))
            atomic_store_explicit(&stats->blocked_since, now, memory_order_relaxed);
    }
}

static void blocked_until(const chx_worker *worker, uint64_t now) {
    for (uint32_t i = 0; i < worker->output_count; i++) {
        struct chx_producer_stats *stats = &worker->outputs[i]->end.ring->stats;
        uint64_t since = chx_read(&stats->blocked_since);
        if (since == 0) continue;
        chx_count(&stats->blocked_ns, now - since);
        atomic_store_explicit(&stats->blocked_since, 0, memory_order_relaxed);
    }
}

/* When the first output is to be given up, or `deadline`. */
static uint64_t patience(const chx_worker *worker, uint64_t deadline) {
    for (uint32_t i = 0; i < worker->output_count; i++) {
        const struct chx_producer *end = &worker->outputs[i]->end;
        if (end->state != CHX_OPEN || end->limit_ns == 0 || end->short_since == 0) continue;
        if (end->limit_ns < deadline && end->short_since < deadline - end->limit_ns)
            deadline = end->short_since + end->limit_ns;
    }
    return deadline;
}

static bool spin(chx_worker *worker) {
    uint32_t cap = chx_spin_cap(&worker->wake);
    if (worker->send_spin.ns == 0 || cap == 0) return false;
    uint64_t start = chx_now_ns(), until = start + worker->send_spin.ns;
    do {
        for (int i = 0; i < 8; i++) {
            if (!room_waits(worker, false)) {
                chx_spin_found(&worker->send_spin, cap, chx_now_ns() - start);
                return true;
            }
            chx_pause();
        }
    } while (chx_now_ns() < until);
    chx_spin_missed(&worker->send_spin, cap);
    return false;
}

/* Sleep until a retry makes sense, or `until`. 0, or a code. */
static int wait_once(chx_worker *worker, uint64_t until) {
    if (!room_waits(worker, false) || spin(worker)) return 0;
    bool waits = room_waits(worker, true);
    atomic_thread_fence(memory_order_seq_cst); /* partners: chx_consumer_return, chx_consumer_nudge */
    int heard = 0;
    if (waits && room_waits(worker, false)) {
        uint64_t start = chx_now_ns();
        room_count_sleeps(worker);
        heard = sleep_until(worker, until);
        chx_spin_slept(&worker->send_spin, chx_spin_cap(&worker->wake), (chx_now_ns() - start) / 4, 0);
    }
    room_disarm(worker);
    return heard;
}

/* Claim, waiting as `how` says. A wait that is not wished for leaves word that CHX_ROOM is due. */
int room_claim(chx_worker *worker, int (*attempt)(chx_worker *, const char *, struct claim *), const chx_how *how,
               struct claim *claim) {
    int result = attempt(worker, how->to, claim);
    if (result != CHX_AGAIN) return result;
    for (uint32_t i = 0; i < worker->output_count; i++)
        if (holds_up(worker, worker->outputs[i])) chx_count(&worker->outputs[i]->end.ring->stats.would_block, 1);
    uint64_t deadline = how->limit_ns > 0 ? deadline_of(how->limit_ns) : UINT64_MAX;
    while (!how->may_not_wait) {
        blocked_from(worker, chx_now_ns());
        uint64_t until = worker->short_at ? deadline : patience(worker, deadline);
        int heard = wait_once(worker, until);
        blocked_until(worker, chx_now_ns());
        chx_pace_waited(&worker->pace);
        if (heard < 0) return heard;
        result = attempt(worker, how->to, claim);
        if (result != CHX_AGAIN) return result;
        if (deadline != UINT64_MAX && chx_now_ns() >= deadline) break;
    }
    worker->wants_room = 1;
    fail(worker, CHX_E_TIMED_OUT, worker->short_at ? "there is no room for %llu bytes now" : "no credit for %llu bytes now",
         (unsigned long long)claim->length);
    return CHX_AGAIN;
}
