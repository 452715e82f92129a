/* A peer gone mad, made for AddressSanitizer: one thread writes into every page that a peer may write while the other end
 * of the route works. That end may report a fault; it may not touch what is not its own, loop, or believe too much.
 *
 * The mad one has the writable mapping that its end of the route really has; the sane one maps it read-only by its
 * descriptor, as ever. Rounds are short: a fault ends one. Arguments: rounds, seed. Exit status 0: all promises kept.
 */
#include <pthread.h>

#include <chronetix/chronetix.h>

enum { CREDITS = 8, ROOM = 16 * 4096, STEPS = 400, RUN = 5 };

static uint32_t seed;
static const char *doing = "nothing yet";

static void must(int true, const char *what) {
    if (true) return;
    fprintf(stderr, "not so: %s (%s)\n", what, doing);
    abort();
}

static uint32_t next_random(uint32_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

/* ---- the mad one ------------------------------------------------------------------------------------------------ */

static uint32_t a_policy(void) { return next_random(&seed) % 3 ? CHX_POLICY_BLOCK : CHX_POLICY_LATEST; }

struct target {
    void *memory;
    uint64_t size;
    uint32_t kind; /* enum chx_kind, or 0: any bytes will do */
};

struct mad {
    struct target targets[3];
    const chx_word *done[2]; /* words of the victim's: their sum is its next position */
    uint32_t count, state;
    _Atomic int stop;
    _Atomic uint64_t writes, limit; /* 0: no limit */
    pthread_t thread;
};

/* Numbers that somebody might believe, or fail to check. */
static uint64_t a_number(uint32_t *state) {
    uint32_t r = next_random(state);
    switch (r % 8) {
        case 0:
            return 0;
        case 1:
            return ~0ull - (r >> 8) % 70;
        case 2:
            return 1ull << ((r >> 8) % 64);
        case 3:
            return (1ull << ((r >> 8) % 64)) - 1;
        case 4:
            return (uint64_t)next_random(state) << 32 | r;
        case 5:
            return 64ull * ((r >> 8) % 2048);
        default:
            return (r >> 8) % 40;
    }
}

static void put(const struct target *target, uint64_t offset, uint64_t value) {
    if (offset + 8 <= target->size)
        atomic_store_explicit((chx_word *)(void *)((uint8_t *)target->memory + offset), value, memory_order_relaxed);
}

/* Where the victim stands, or nearly. */
static uint64_t a_position(const struct mad *mad, uint32_t *state) {
    uint64_t next = chx_read(mad->done[0]) + (mad->done[1] ? chx_read(mad->done[1]) : 0);
    return next_random(state) % 4 ? next : next + next_random(state) % 16;
}

/* A frame as a producer would commit it, often with one field that cannot be; then the same frame in other words, over
 * and over, so that whoever reads a field twice reads two things. */
static void put_frame(const struct target *target, uint64_t position, uint32_t *state) {
    static const uint64_t pairs[2][2] = {{0, ROOM}, {ROOM - 64, 64}}; /* each is possible, the mixture is not */
    uint64_t at = 512 + 64 * (position % 16);
    uint32_t wrong = next_random(state) % 24;
    for (uint32_t i = 0; i < 200; i++) {
        const uint64_t *pair = pairs[i & 1];
        put(target, at + 8, wrong == 1 ? a_number(state) : pair[0]);
        put(target, at + 16, wrong == 2 ? a_number(state) : pair[1]);
        put(target, at + 24, wrong == 3 ? a_number(state) : 0);
        put(target, at, wrong == 4 ? a_number(state) : position + 1);
        if (wrong == 5) put(target, 320, position + i); /* oldest, ever later */
    }
}

static void put_skips(const struct target *target, uint64_t position, uint32_t *state) {
    uint64_t end = position + next_random(state) % 400;
    for (; position < end; position++) put(target, 512 + 64 * 16 + 8 * (position % 16), position + 1);
}

static void put_returns(const struct target *target, uint64_t upto, uint32_t *state) {
    for (uint64_t p = upto > 16 ? upto - 16 : 0; p < upto; p++)
        if (next_random(state) % 32) put(target, 5376 + 8 * (p % 16), p + 1);
    put(target, 192, next_random(state) % 4 ? upto : a_number(state));
}

static void *go_mad(void *arg) {
    struct mad *mad = arg;
    uint32_t *state = &mad->state;
    while (!atomic_load_explicit(&mad->stop, memory_order_relaxed)) {
        uint64_t limit = atomic_load_explicit(&mad->limit, memory_order_relaxed);
        if (limit && atomic_load_explicit(&mad->writes, memory_order_relaxed) >= limit) break;
        const struct target *target = &mad->targets[next_random(state) % mad->count];
        uint32_t what = next_random(state) % 16;
        if (target->kind == CHX_KIND_RING && what < 6)
            put_frame(target, a_position(mad, state), state);
        else if (target->kind == CHX_KIND_RING && what < 9)
            put_skips(target, a_position(mad, state), state);
        else if (target->kind == CHX_KIND_CREDIT && what < 8)
            put_returns(target, a_position(mad, state), state);
        else if (what < 10)
            put(target, next_random(state) % 2 ? 64 : 320, /* closed, oldest */
                next_random(state) % 2 ? a_number(state) : a_position(mad, state));
        else
            put(target, 8 * (next_random(state) % (target->size / 8)), a_number(state));
        atomic_fetch_add_explicit(&mad->writes, 1, memory_order_relaxed);
    }
    return NULL;
}

static void make_line(struct chx_bell *bell, int line[2]) {
    must(chx_bell_init(bell) == 0 && chx_line_pair(line, 0) == 0, "a doorbell and a line");
}

static void end_line(struct chx_bell *bell, const int line[2]) {
    chx_bell_destroy(bell);
    close(line[0]);
    close(line[1]);
}

static void start(struct mad *mad) {
    atomic_store(&mad->stop, 0);
    atomic_store(&mad->writes, 0);
    mad->state = next_random(&seed) | 1;
    must(pthread_create(&mad->thread, NULL, go_mad, mad) == 0, "a thread");
}

static void stop(struct mad *mad) {
    atomic_store(&mad->stop, 1);
    pthread_join(mad->thread, NULL);
}

/* ---- a consumer that is lied to --------------------------------------------------------------------------------- */

static uint64_t sum;

static void check_frame(const struct chx_consumer *c, const struct chx_taken *taken) {
    if (taken->length == 0) return;
    const struct chx_reader_segment *segment = &c->segments[0]; /* all zero once it was dropped */
    must(taken->data >= segment->base && taken->length <= segment->size &&
             (uint64_t)(taken->data - segment->base) <= segment->size - taken->length,
         "a frame lies in its segment");
    for (uint64_t i = 0; i < taken->length; i += 61) sum += taken->data[i];
    sum += taken->data[taken->length - 1];
}

static void check_fault(const struct chx_consumer *c) {
    must(c->state == CHX_CONSUMER_FAULTY && c->why.text[0], "a fault is told");
    must(chx_read(&c->credit->closed) == 1, "a fault detaches");
}

/* Policy latest: a copy, believed only if it was whole. */
static void consume_latest(struct chx_consumer *c, uint32_t *state) {
    static uint8_t copy[ROOM];
    for (int step = 0; step < STEPS && c->state == CHX_CONSUMER_OPEN; step++) {
        struct chx_taken taken;
        enum chx_status status = chx_consumer_look(c, &taken);
        if (status == CHX_FAULT) check_fault(c);
        if (status == CHX_OK) {
            check_frame(c, &taken);
            chx_latest_begin(c, &taken);
            memcpy(copy, taken.data, taken.length);
            chx_latest_keep(c, &taken);
        }
        if (next_random(state) % 8) continue;
        chx_consumer_arm(c);
        atomic_thread_fence(memory_order_seq_cst);
        chx_consumer_disarm(c);
    }
}

static void consume(struct chx_consumer *c, uint32_t *state) {
    if (c->latest) {
        consume_latest(c, state);
        return;
    }
    struct chx_taken taken[RUN], held[CREDITS];
    uint32_t holds = 0, frames = 0;
    for (int step = 0; step < STEPS && c->state == CHX_CONSUMER_OPEN; step++) {
        uint64_t before = c->position, most = 2 * (c->slots + 1) + 1;
        enum chx_status status = CHX_EMPTY;
        frames = 0;
        switch (next_random(state) % 6) {
            case 0:
                status = chx_consumer_look(c, taken);
                if (step % 8) break;
                if (chx_consumer_drop(c, 0) == CHX_OK)
                    for (uint32_t i = 0; i < holds; i++) must(!held[i].length, "what is held is not taken away");
                break;
            case 1:
                chx_consumer_arm(c);
                atomic_thread_fence(memory_order_seq_cst);
                chx_consumer_nudge(c);
                chx_consumer_disarm(c);
                break;
            case 2:
                status = chx_consumer_take_run(c, taken, RUN, &frames);
                most += RUN * (c->slots + 2);
                break;
            case 3:
                if (holds) chx_consumer_return(c, held[--holds].stamp);
                break;
            default:
                status = chx_consumer_take(c, taken);
                frames = status == CHX_OK;
        }
        must(c->position - before <= most, "it goes on step by step");
        for (uint32_t i = 0; i < frames; i++) check_frame(c, &taken[i]);
        if (frames && holds < CREDITS) held[holds++] = taken[--frames];
        if (frames) chx_consumer_return_run(c, taken, frames);
        if (status == CHX_FAULT) check_fault(c);
    }
    while (holds) {
        check_frame(c, &held[--holds]);
        chx_consumer_return(c, held[holds].stamp);
    }
}

static int round_for_a_consumer(void) {
    struct chx_arena arena;
    struct chx_producer evil;
    struct chx_consumer c;
    struct chx_header header = {.credits = CREDITS, .watermark = 6, .credit_low = 4, .policy = a_policy()};
    struct chx_bell bell;
    int line[2];
    make_line(&bell, line);
    must(chx_arena_init(&arena, ROOM, ROOM, 0) == CHX_OK && chx_producer_init(&evil, &arena, &header) == CHX_OK, "evil");
    must(chx_consumer_init(&c, &header) == CHX_OK, "a consumer");
    struct mad mad = {.targets = {{evil.ring, evil.ring_map.size, CHX_KIND_RING},
                                  {arena.segments[0].map.base, arena.segments[0].map.size, 0}},
                      .done = {&c.credit->stats.next},
                      .count = 2};
    int early = next_random(&seed) % 4 == 0; /* also while it attaches: then the header may be wrong, or right */
    if (early) start(&mad);
    enum chx_status status = chx_consumer_link(&c, evil.ring_map.fd, line[1], &bell);
    must(chx_consumer_map(&c, 0, arena.segments[0].map.fd) == CHX_OK, "a segment");
    must(early ? status == CHX_OK || (status == CHX_FAULT && c.why.text[0]) : status == CHX_OK, "linked");
    if (!early) start(&mad);
    while (atomic_load(&mad.writes) == 0) sched_yield();
    uint32_t state = next_random(&seed) | 1;
    if (status == CHX_OK) consume(&c, &state);
    stop(&mad);
    int fault = c.state == CHX_CONSUMER_FAULTY;
    chx_consumer_close(&c);
    chx_consumer_destroy(&c);
    chx_producer_destroy(&evil);
    chx_arena_destroy(&arena);
    end_line(&bell, line);
    return fault;
}

/* ---- a producer that is lied to --------------------------------------------------------------------------------- */

static void send_some(struct chx_producer *p, uint32_t *state) {
    uint32_t frames = 1 + next_random(state) % RUN;
    uint64_t length = 64 * (next_random(state) % 40);
    struct chx_extent extent;
    struct chx_tags tags = {0};
    if (chx_producer_check(p) != CHX_OK || chx_producer_left(p) < frames) return;
    if (chx_arena_alloc(p->arena, length * frames, &extent) != CHX_OK) return;
    if (length) memset(extent.data, 0xA5, length * frames);
    if (frames > 1) chx_extent_share(p->arena, extent.handle, frames - 1);
    if (chx_producer_commit_run(p, &extent, length, frames, &tags, 1)) chx_producer_ring(p);
}

static void produce(struct chx_producer *p, uint32_t *state) {
    for (int step = 0; step < STEPS; step++) {
        uint64_t due;
        enum chx_status status = CHX_OK;
        switch (next_random(state) % 6) {
            case 0:
                if (chx_producer_returns(p)) status = chx_producer_look(p, &due);
                break;
            case 1:
                if (chx_producer_returns(p)) status = chx_producer_reclaim(p, 1 + next_random(state) % 20);
                break;
            case 2:
                if (!chx_producer_returns(p)) break;
                chx_producer_arm(p, chx_producer_goal(p));
                atomic_thread_fence(memory_order_seq_cst);
                chx_producer_ready(p, chx_producer_goal(p));
                chx_producer_disarm(p);
                break;
            default:
                send_some(p, state);
        }
        must(chx_outstanding(p) <= CREDITS, "never more frames than credits");
        must(p->arena->used <= p->arena->size, "never more memory than there is");
        if (status == CHX_FAULT) must(p->state == CHX_FAULTY && p->why.text[0], "a fault is told");
        if (chx_producer_check(p) == CHX_FAULT) must(p->arena->used == 0, "a fault frees what the route held");
    }
}

static int round_for_a_producer(void) {
    struct chx_arena arena;
    struct chx_producer p;
    struct chx_consumer evil;
    struct chx_header header = {.credits = CREDITS, .watermark = 6, .credit_low = 4, .policy = a_policy()};
    struct chx_bell bell;
    int line[2];
    make_line(&bell, line);
    must(chx_arena_init(&arena, ROOM, ROOM, 0) == CHX_OK && chx_producer_init(&p, &arena, &header) == CHX_OK, "a producer");
    must(chx_consumer_init(&evil, &header) == CHX_OK, "evil");
    struct mad mad = {.targets = {{evil.credit, evil.credit_map.size, CHX_KIND_CREDIT}},
                      .done = {&p.ring->stats.committed, &p.ring->stats.skipped},
                      .count = 1};
    int early = next_random(&seed) % 4 == 0;
    if (early) start(&mad);
    enum chx_status status = chx_producer_link(&p, evil.credit_map.fd, line[0], &bell);
    must(early ? status == CHX_OK || (status == CHX_FAULT && p.why.text[0]) : status == CHX_OK, "linked");
    if (!early) start(&mad);
    while (atomic_load(&mad.writes) == 0) sched_yield();
    uint32_t state = next_random(&seed) | 1;
    if (status == CHX_OK) produce(&p, &state);
    stop(&mad);
    int fault = p.state == CHX_FAULTY;
    chx_producer_close(&p);
    chx_producer_destroy(&p);
    must(arena.used == 0, "all memory came back");
    chx_consumer_destroy(&evil);
    chx_arena_destroy(&arena);
    end_line(&bell, line);
    return fault;
}

/* An honest producer of policy latest that laps a thread which still copies is not called a liar for it. */
static void a_slow_copy(void) {
    struct chx_arena arena;
    struct chx_producer p;
    struct chx_consumer c;
    struct chx_taken slow, taken;
    struct chx_extent extent;
    struct chx_tags tags = {0};
    struct chx_header header = {.credits = 4, .watermark = 4, .credit_low = 2, .policy = CHX_POLICY_LATEST};
    struct chx_bell bell;
    int line[2];
    make_line(&bell, line);
    doing = "a slow copy";
    must(chx_arena_init(&arena, ROOM, ROOM, 0) == CHX_OK && chx_producer_init(&p, &arena, &header) == CHX_OK, "a ring");
    must(chx_consumer_init(&c, &header) == CHX_OK && chx_producer_link(&p, c.credit_map.fd, line[0], &bell) == CHX_OK, "a credit");
    must(chx_consumer_link(&c, p.ring_map.fd, line[1], &bell) == CHX_OK, "linked");
    must(chx_consumer_map(&c, 0, arena.segments[0].map.fd) == CHX_OK, "a segment");
    for (int i = 0; i < 30; i++) {
        must(chx_arena_alloc(&arena, 100, &extent) == CHX_OK, "room");
        chx_producer_commit(&p, &extent, 100, &tags, 1);
        enum chx_status status = chx_consumer_look(&c, &taken);
        must(status == CHX_OK || status == CHX_WOULD_BLOCK, "there is a frame, or there is shortly");
        if (status != CHX_OK) continue;
        chx_latest_begin(&c, &taken);
        if (i == 0)
            slow = taken;
        else
            must(chx_latest_keep(&c, &taken), "it is whole");
    }
    must(c.state == CHX_CONSUMER_OPEN && !chx_latest_keep(&c, &slow), "what was overwritten is not kept");
    chx_consumer_destroy(&c);
    chx_producer_destroy(&p);
    chx_arena_destroy(&arena);
    end_line(&bell, line);
}

/* ---- successors of dead liars ----------------------------------------------------------------------------------- */

/* Go mad for a while in this thread, before anybody looks. */
static void rave(struct mad *mad, uint32_t writes) {
    mad->state = next_random(&seed) | 1;
    atomic_store(&mad->stop, 0);
    atomic_store(&mad->limit, writes);
    atomic_store(&mad->writes, 0);
    go_mad(mad);
    atomic_store(&mad->limit, 0);
}

/* A consumer takes over from one whose CREDIT says anything, sometimes beside a producer that does so too; and the ring
 * of a dead producer is looked through for its end. */
static int round_for_a_successor(void) {
    struct chx_arena arena;
    struct chx_producer p;
    struct chx_consumer dead, c;
    struct chx_header header = {.credits = CREDITS, .watermark = 6, .credit_low = 4, .policy = a_policy()};
    struct chx_why why = {""};
    struct chx_remains remains;
    struct chx_bell bell;
    int line[2];
    make_line(&bell, line);
    must(chx_arena_init(&arena, ROOM, ROOM, 0) == CHX_OK && chx_producer_init(&p, &arena, &header) == CHX_OK, "a producer");
    must(chx_consumer_init(&dead, &header) == CHX_OK && chx_consumer_init(&c, &header) == CHX_OK, "consumers");
    must(chx_producer_link(&p, dead.credit_map.fd, line[0], &bell) == CHX_OK, "linked to the dead");
    uint32_t state = next_random(&seed) | 1;
    for (int i = 0; i < 5; i++) send_some(&p, &state);
    struct mad mad = {.targets = {{dead.credit, dead.credit_map.size, CHX_KIND_CREDIT},
                                  {p.ring, p.ring_map.size, CHX_KIND_RING}},
                      .done = {&p.ring->stats.committed, &p.ring->stats.skipped},
                      .count = 1 + (next_random(&seed) & 1)};
    rave(&mad, 1 + next_random(&seed) % 12);
    int mad_now = next_random(&seed) & 1;
    if (mad_now) start(&mad);
    enum chx_status status = chx_consumer_link(&c, p.ring_map.fd, line[1], &bell);
    must(chx_consumer_map(&c, 0, arena.segments[0].map.fd) == CHX_OK, "a segment");
    if (status == CHX_OK) {
        status = chx_consumer_inherit(&c, dead.credit_map.fd);
        must(status == CHX_OK || c.why.text[0], "inherited, or said why not");
        must(c.again_count <= c.slots && c.position <= CHX_POSITION_MAX, "no more is inherited than there can be");
    }
    if (status == CHX_OK && chx_producer_relink(&p, c.credit_map.fd, line[0], &bell) == CHX_OK) {
        send_some(&p, &state);
        consume(&c, &state);
        if (next_random(&seed) & 1) status = chx_consumer_end_at(&c, a_number(&seed));
        consume(&c, &state);
    }
    if (chx_ring_remains(p.ring, &p.header, &remains, &why) == CHX_OK)
        must(remains.end <= CHX_POSITION_MAX, "an end that can be");
    else
        must(why.text[0], "or it is said why there is none");
    if (mad_now) stop(&mad);
    int fault = c.state == CHX_CONSUMER_FAULTY;
    chx_consumer_destroy(&dead);
    chx_consumer_close(&c);
    chx_consumer_destroy(&c);
    chx_producer_destroy(&p);
    chx_arena_destroy(&arena);
    end_line(&bell, line);
    return fault;
}

/* ---- an observer of two liars ----------------------------------------------------------------------------------- */

static int round_for_an_observer(void) {
    struct chx_arena arena;
    struct chx_producer one;
    struct chx_consumer other;
    struct chx_view view;
    struct chx_why why = {""};
    struct chx_header header = {.credits = CREDITS, .watermark = 6, .credit_low = 4, .policy = a_policy()};
    must(chx_arena_init(&arena, ROOM, ROOM, 0) == CHX_OK && chx_producer_init(&one, &arena, &header) == CHX_OK, "a ring");
    must(chx_consumer_init(&other, &header) == CHX_OK, "a credit");
    struct mad mad = {.targets = {{one.ring, one.ring_map.size, CHX_KIND_RING},
                                  {other.credit, other.credit_map.size, CHX_KIND_CREDIT}},
                      .done = {&one.ring->stats.committed, &one.ring->stats.skipped},
                      .count = 2};
    start(&mad);
    while (atomic_load(&mad.writes) < next_random(&seed) % 100) sched_yield();
    enum chx_status status = chx_view_init(&view, one.ring_map.fd, other.credit_map.fd, &why);
    must(status == CHX_OK || (status == CHX_FAULT && why.text[0]), "seen, or said why not");
    for (int i = 0; i < 20 && status == CHX_OK; i++) {
        uint64_t counts[CHX_BUCKETS], total = chx_view_latency(&view, counts);
        sum += chx_quantile(counts, total, 500) + chx_quantile(counts, total, 990);
    }
    stop(&mad);
    if (status == CHX_OK) chx_view_destroy(&view);
    chx_consumer_destroy(&other);
    chx_producer_destroy(&one);
    chx_arena_destroy(&arena);
    return status == CHX_FAULT;
}

int main(int count, char **arguments) {
    must(count == 3, "rounds and a seed are given");
    uint64_t rounds = strtoull(arguments[1], NULL, 10);
    seed = (uint32_t)strtoul(arguments[2], NULL, 10) | 1;
    enum { KINDS = 4 };
    int (*const kinds[KINDS])(void) = {round_for_a_consumer, round_for_a_producer, round_for_a_successor,
                                       round_for_an_observer};
    static const char *const names[KINDS] = {"consumer", "producer", "successor", "observer"};
    uint64_t faults[KINDS] = {0};
    a_slow_copy();
    for (uint64_t i = 0; i < rounds; i++) {
        uint32_t kind = i % 8 == 7 ? 3 : (uint32_t)(i % 3);
        doing = names[kind];
        alarm(60); /* whoever loops is ended */
        faults[kind] += (uint64_t)kinds[kind]();
    }
    for (int i = 0; i < KINDS; i++) printf("%s %llu faults\n", names[i], (unsigned long long)faults[i]);
    must(faults[0] && faults[1] && faults[2], "lies were found");
    return sum == 1; /* so that nothing was read for nothing */
}
