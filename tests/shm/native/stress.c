/* Four threads, one route, nothing but the headers: what a worker in C does, made for the sanitizers.
 *
 * Both ends use one mapping of each memory, because ThreadSanitizer cannot see that two mappings are one page. The
 * producer sends frames and runs of random sizes, grows its arena, waits as SPEC.md section 7 says when it is out of
 * credits or room, and closes; the consumer checks every byte, maps what the arena grows by, holds some frames, returns
 * some itself and some through two other threads, out of order, and sleeps when there is nothing. An observer's counters
 * are read all the time. Arguments: frames; the frame at which the consumer detaches, or 0 if it does not.
 * Exit status 0: every frame came once, in order and whole, and all memory came back.
 */
#include <pthread.h>

#include <chronetix/chronetix.h>

/* Room for fewer frames than there are credits, but always for one more than are held, however they lie. */
enum { CREDITS = 16, HOLD = 3, RETURNERS = 2, RUN = 12, LARGEST = 20000, FIRST = 16 * 4096, ROOM = 96 * 4096, SEGMENTS = 8 };

static struct chx_arena arena;
static struct chx_producer producer;
static struct chx_consumer consumer;
static struct chx_bell producer_bell, consumer_bell;
static int line[2];
static uint64_t frames, detach_at;

/* A frame on its way to a thread that returns it; the index of a segment on its way to the consumer, and back. */
struct hand {
    pthread_mutex_t lock;
    pthread_cond_t changed;
    struct chx_taken taken;
    uint64_t number;
    int full, over;
};

static struct hand hands[RETURNERS] = {{.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER},
                                       {.lock = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER}};
static _Atomic uint32_t segments_made = 1, segments_mapped = 1;
static struct chx_map segments[SEGMENTS];
static _Atomic int over;

static void must(int true, const char *what) {
    if (true) return;
    fprintf(stderr, "not so: %s\n", what);
    exit(1);
}

static uint32_t next_random(uint32_t *state) {
    *state ^= *state << 13;
    *state ^= *state >> 17;
    *state ^= *state << 5;
    return *state;
}

static void sleep_on(struct chx_bell *bell) {
    while (chx_bell_sleep(bell, -1) < 0) continue;
}

static int short_of_credit(void) {
    must(chx_producer_reclaim(&producer, UINT32_MAX) == CHX_OK, "the consumer is honest");
    return !chx_producer_has_credit(&producer);
}

static int detached(void) { return chx_producer_check(&producer) == CHX_CLOSED; }

static void wait_for(uint64_t goal, int for_room) {
    uint64_t due;
    chx_producer_arm(&producer, goal);
    atomic_thread_fence(memory_order_seq_cst);
    chx_producer_look(&producer, &due);
    int starves = !for_room && chx_producer_starves(&producer, producer.seen);
    int grown = atomic_load(&segments_mapped) != atomic_load(&segments_made);
    if (producer.seen < goal && !starves && !detached() && !grown) sleep_on(&producer_bell);
    chx_producer_disarm(&producer);
}

/* Use what the consumer has mapped meanwhile, or make a further segment if there may be one. */
static void grow(uint64_t length) {
    uint32_t made = atomic_load(&segments_made);
    for (uint32_t i = 1; i < atomic_load(&segments_mapped); i++)
        must(chx_arena_confirm(&arena, i) == CHX_OK, "a segment is used");
    if (made != atomic_load(&segments_mapped) || made == SEGMENTS) return;
    uint32_t index;
    enum chx_status status = chx_arena_grow(&arena, length, &index);
    if (status == CHX_EMPTY) return;
    must(status == CHX_OK && index == made, "a further segment");
    segments[made] = arena.segments[made].map;
    atomic_store(&segments_made, made + 1);
    chx_bell_ring(&consumer_bell);
}

/* An extent, after waiting for it if need be; 0 when the consumer has detached meanwhile. */
static int get_extent(uint64_t length, struct chx_extent *extent) {
    while (chx_arena_alloc(&arena, length, extent) != CHX_OK) {
        if (detached()) return 0;
        grow(length);
        if (chx_arena_alloc(&arena, length, extent) == CHX_OK) return 1;
        wait_for(producer.reclaimed + 1, 1);
        must(chx_producer_reclaim(&producer, UINT32_MAX) == CHX_OK, "the consumer is honest");
    }
    return 1;
}

/* Wait for a credit; 0 when the consumer has detached. */
static int get_credit(void) {
    while (short_of_credit() && !detached()) wait_for(chx_producer_goal(&producer), 0);
    return !detached();
}

static uint32_t send_one(uint64_t number, uint64_t length) {
    struct chx_extent extent;
    if (!get_credit() || !get_extent(length, &extent)) return 0;
    if (length) memset(extent.data, (int)(number & 0xFF), length);
    struct chx_tags tags = {.input_seq = number, .trace = length};
    if (chx_producer_commit(&producer, &extent, length, &tags, chx_now_ns())) chx_producer_ring(&producer);
    return 1;
}

/* As many frames of one small size as there are credits for, up to `wanted`, in one extent; how many. All of them have
 * the tags of the first. */
static uint32_t send_run(uint64_t number, uint64_t length, uint32_t wanted) {
    struct chx_extent extent;
    if (!get_credit()) return 0;
    uint32_t run = chx_producer_left(&producer) < wanted ? chx_producer_left(&producer) : wanted;
    if (!get_extent(run * chx_stride(length), &extent)) return 0;
    chx_extent_share(&arena, extent.handle, run - 1);
    for (uint32_t i = 0; i < run; i++)
        memset(extent.data + i * chx_stride(length), (int)((number + i) & 0xFF), length);
    struct chx_tags tags = {.input_seq = number, .trace = length};
    if (chx_producer_commit_run(&producer, &extent, length, run, &tags, chx_now_ns())) chx_producer_ring(&producer);
    return run;
}

static void *produce(void *unused) {
    uint32_t state = 1, sent = 1;
    for (uint64_t number = 0; number < frames && sent; number += sent) {
        uint64_t left = frames - number;
        if (next_random(&state) % 2)
            sent = send_run(number, 1 + next_random(&state) % 300, left < RUN ? (uint32_t)left : RUN);
        else
            sent = send_one(number, next_random(&state) % LARGEST);
    }
    must((sent == 0) == (detach_at != 0), "it goes on until it is detached");
    chx_producer_close(&producer);
    return unused;
}

/* Map what the producer has grown by: the mapping that it has, see above. */
static void follow(void) {
    uint32_t made = atomic_load(&segments_made);
    for (uint32_t i = atomic_load(&segments_mapped); i < made; i++) {
        must(chx_consumer_map(&consumer, i, segments[i].fd) == CHX_OK, "a segment");
        munmap((void *)(uintptr_t)consumer.segments[i].base, consumer.segments[i].size);
        consumer.segments[i].base = segments[i].base;
        atomic_store(&segments_mapped, i + 1);
        chx_bell_ring(&producer_bell);
    }
}

/* Up to `limit` frames. */
static enum chx_status take_or_sleep(struct chx_taken *taken, uint32_t limit, uint32_t *got) {
    for (;;) {
        follow();
        enum chx_status status = chx_consumer_take_run(&consumer, taken, limit, got);
        if (status != CHX_EMPTY) return status;
        chx_consumer_arm(&consumer);
        atomic_thread_fence(memory_order_seq_cst);
        *got = 1;
        status = chx_consumer_take(&consumer, taken);
        if (status == CHX_EMPTY) {
            chx_consumer_nudge(&consumer);
            sleep_on(&consumer_bell);
        }
        chx_consumer_disarm(&consumer);
        if (status != CHX_EMPTY) return status;
    }
}

/* The sequence number has gaps, where a slot was held: the frame's own number is counted. */
static void check(const struct chx_taken *taken, uint64_t number) {
    must(taken->seq >= number && taken->seq == taken->stamp - 1, "a frame's sequence number is its position");
    must(taken->trace == taken->length, "each has its own tags");
    must(taken->input_seq <= number && number - taken->input_seq < RUN, "each has the tags of its run");
    for (uint64_t i = 0; i < taken->length; i++) must(taken->data[i] == (number & 0xFF), "payloads are whole");
}

static void give(struct hand *hand, const struct chx_taken *taken, uint64_t number) {
    pthread_mutex_lock(&hand->lock);
    while (hand->full) pthread_cond_wait(&hand->changed, &hand->lock);
    if (taken) hand->taken = *taken;
    hand->number = number;
    hand->full = taken != NULL;
    hand->over = taken == NULL;
    pthread_cond_broadcast(&hand->changed);
    pthread_mutex_unlock(&hand->lock);
}

/* A thread that returns what another one has taken. */
static void *return_frames(void *arg) {
    struct hand *hand = arg;
    for (;;) {
        pthread_mutex_lock(&hand->lock);
        while (!hand->full && !hand->over) pthread_cond_wait(&hand->changed, &hand->lock);
        struct chx_taken taken = hand->taken;
        uint64_t number = hand->number;
        int full = hand->full;
        hand->full = 0;
        pthread_cond_broadcast(&hand->changed);
        pthread_mutex_unlock(&hand->lock);
        if (!full) return NULL;
        check(&taken, number);
        chx_consumer_return(&consumer, taken.stamp);
    }
}

/* An observer: nothing it reads is ever wrong enough to matter. */
static void *observe(void *unused) {
    while (!atomic_load(&over)) {
        must(chx_read(&consumer.credit->stats.taken) <= frames, "counters count");
        must(chx_read(&producer.ring->stats.max_outstanding) <= CREDITS, "credits are kept");
        for (uint32_t i = 0; i < CHX_BUCKETS; i++) must(chx_read(&consumer.credit->latency[i]) <= frames, "so does this");
        sched_yield();
    }
    return unused;
}

static void *consume(void *unused) {
    struct chx_taken held[HOLD] = {{0}};
    uint64_t numbers[HOLD] = {0}, last = 0;
    uint32_t state = 2;
    uint64_t number = 0;
    enum chx_status status;
    struct chx_taken taken[RUN];
    uint32_t got;
    while ((status = take_or_sleep(taken, 1 + next_random(&state) % RUN, &got)) == CHX_OK) {
        for (uint32_t i = 0; i < got; i++) {
            check(&taken[i], number++);
            must(taken[i].stamp > last, "frames come in order");
            last = taken[i].stamp;
        }
        uint32_t at = next_random(&state) % HOLD;
        struct chx_taken *place = &held[at];
        if (place->stamp) {
            check(place, numbers[at]);
            chx_consumer_return(&consumer, place->stamp);
        }
        *place = taken[--got];
        numbers[at] = number - 1;
        if (got) --got, give(&hands[next_random(&state) % RETURNERS], &taken[got], number - 2);
        if (got) chx_consumer_return_run(&consumer, taken, got);
        if (detach_at && number >= detach_at) chx_consumer_close(&consumer);
    }
    must(status == CHX_ENDED, "the stream ends");
    must(detach_at ? number >= detach_at : number == frames, "every frame came");
    for (int i = 0; i < RETURNERS; i++) give(&hands[i], NULL, 0);
    for (int i = 0; i < HOLD; i++)
        if (held[i].stamp) chx_consumer_return(&consumer, held[i].stamp);
    return unused;
}

/* One mapping of each memory, see above. */
static void share_mappings(void) {
    chx_unmap(&producer.credit_map);
    chx_unmap(&consumer.ring_map);
    producer.credit = consumer.credit;
    consumer.ring = producer.ring;
    consumer.desc = producer.desc;
    consumer.skip = producer.skip;
}

static void open_route(void) {
    struct chx_header header = {.credits = CREDITS, .watermark = 12, .credit_low = 8};
    must(chx_bell_init(&producer_bell) == 0 && chx_bell_init(&consumer_bell) == 0, "doorbells");
    must(chx_line_pair(line, 0) == 0, "a line");
    must(chx_arena_init(&arena, ROOM, FIRST, 0) == CHX_OK, "an arena");
    must(chx_producer_init(&producer, &arena, &header) == CHX_OK, "a producer");
    must(chx_consumer_init(&consumer, &header) == CHX_OK, "a consumer");
    must(chx_producer_link(&producer, consumer.credit_map.fd, line[0], &producer_bell) == CHX_OK, "linked there");
    must(chx_consumer_link(&consumer, producer.ring_map.fd, line[1], &consumer_bell) == CHX_OK, "linked back");
    must(chx_consumer_map(&consumer, 0, arena.segments[0].map.fd) == CHX_OK, "a segment");
    munmap((void *)(uintptr_t)consumer.segments[0].base, consumer.segments[0].size);
    consumer.segments[0].base = arena.segments[0].map.base;
    share_mappings();
}

static void close_route(void) {
    must(chx_producer_reclaim(&producer, UINT32_MAX) == CHX_OK, "the consumer is honest");
    must(detach_at || arena.used == 0, "all memory came back");
    must(atomic_load(&segments_mapped) > 1 || frames < 1000 || detach_at, "the arena has grown");
    for (uint32_t i = 0; i < consumer.segment_count; i++) consumer.segments[i].base = NULL;
    chx_consumer_close(&consumer);
    chx_consumer_destroy(&consumer);
    chx_producer_destroy(&producer);
    must(arena.used == 0, "all memory came back, also what was never taken");
    chx_arena_destroy(&arena);
    close(line[0]);
    close(line[1]);
    chx_bell_destroy(&producer_bell);
    chx_bell_destroy(&consumer_bell);
}

int main(int count, char **arguments) {
    pthread_t threads[2 + RETURNERS], observer;
    must(count == 3, "the numbers of frames are given");
    frames = strtoull(arguments[1], NULL, 10);
    detach_at = strtoull(arguments[2], NULL, 10);
    open_route();
    must(pthread_create(&observer, NULL, observe, NULL) == 0, "a thread");
    must(pthread_create(&threads[0], NULL, produce, NULL) == 0, "a thread");
    must(pthread_create(&threads[1], NULL, consume, NULL) == 0, "a thread");
    for (int i = 0; i < RETURNERS; i++)
        must(pthread_create(&threads[2 + i], NULL, return_frames, &hands[i]) == 0, "a thread");
    for (int i = 0; i < 2 + RETURNERS; i++) pthread_join(threads[i], NULL);
    atomic_store(&over, 1);
    pthread_join(observer, NULL);
    close_route();
    return 0;
}
