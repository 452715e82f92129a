/* Two threads, one route, nothing but the headers: what a worker in C does, made for the sanitizers.
 *
 * Both ends use one mapping of each memory, because ThreadSanitizer cannot see that two mappings are one page. The
 * producer sends frames of random sizes, waits as SPEC.md section 7 says when it is out of credits or room, and closes;
 * the consumer checks every byte, holds some frames, returns them out of order, and sleeps when there is nothing.
 * Exit status 0: every frame came once, in order and whole, and all memory came back.
 */
#include <pthread.h>

#include <chronetix/chronetix.h>

/* Room for fewer frames than there are credits, but always for one more than the consumer holds, however they lie. */
enum { CREDITS = 16, HOLD = 3, RUN = 12, LARGEST = 20000, ROOM = 48 * 4096 };

static struct chx_arena arena;
static struct chx_producer producer;
static struct chx_consumer consumer;
static int producer_bell, consumer_bell;
static uint64_t frames;

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

static void sleep_on(int bell) {
    while (chx_bell_sleep(bell, -1) < 0) continue;
    chx_bell_clear(bell);
}

static int short_of_credit(void) {
    must(chx_producer_reclaim(&producer, UINT32_MAX) == CHX_OK, "the consumer is honest");
    return !chx_producer_has_credit(&producer);
}

static void wait_for(uint64_t goal, int for_room) {
    uint64_t due;
    chx_producer_arm(&producer, goal);
    atomic_thread_fence(memory_order_seq_cst);
    chx_producer_look(&producer, &due);
    if (producer.seen < goal && (for_room || !chx_producer_starves(&producer, producer.seen))) sleep_on(producer_bell);
    chx_producer_disarm(&producer);
}

static void send_one(uint64_t number, uint64_t length) {
    struct chx_extent extent;
    while (short_of_credit()) wait_for(chx_producer_goal(&producer), 0);
    while (chx_arena_alloc(&arena, length, &extent) != CHX_OK) {
        wait_for(producer.reclaimed + 1, 1);
        must(chx_producer_reclaim(&producer, UINT32_MAX) == CHX_OK, "the consumer is honest");
    }
    if (length) memset(extent.data, (int)(number & 0xFF), length);
    struct chx_tags tags = {.input_seq = number, .trace = length};
    if (chx_producer_commit(&producer, &extent, length, &tags, chx_now_ns())) chx_bell_ring(producer.bell);
}

/* As many frames of one small size as there are credits for, up to `wanted`, in one extent; how many. All of them have
 * the tags of the first. */
static uint32_t send_run(uint64_t number, uint64_t length, uint32_t wanted) {
    struct chx_extent extent;
    while (short_of_credit()) wait_for(chx_producer_goal(&producer), 0);
    uint32_t run = chx_producer_left(&producer) < wanted ? chx_producer_left(&producer) : wanted;
    while (chx_arena_alloc(&arena, run * chx_stride(length), &extent) != CHX_OK) {
        wait_for(producer.reclaimed + 1, 1);
        must(chx_producer_reclaim(&producer, UINT32_MAX) == CHX_OK, "the consumer is honest");
    }
    chx_extent_share(&arena, extent.handle, run - 1);
    for (uint32_t i = 0; i < run; i++)
        memset(extent.data + i * chx_stride(length), (int)((number + i) & 0xFF), length);
    struct chx_tags tags = {.input_seq = number, .trace = length};
    if (chx_producer_commit_run(&producer, &extent, length, run, &tags, chx_now_ns())) chx_bell_ring(producer.bell);
    return run;
}

static void *produce(void *unused) {
    uint32_t state = 1;
    for (uint64_t number = 0; number < frames;) {
        uint64_t left = frames - number;
        if (next_random(&state) % 2)
            number += send_run(number, 1 + next_random(&state) % 300, left < RUN ? (uint32_t)left : RUN);
        else
            send_one(number++, next_random(&state) % LARGEST);
    }
    chx_producer_close(&producer);
    return unused;
}

/* Up to `limit` frames. */
static enum chx_status take_or_sleep(struct chx_taken *taken, uint32_t limit, uint32_t *got) {
    for (;;) {
        enum chx_status status = chx_consumer_take_run(&consumer, taken, limit, got);
        if (status != CHX_EMPTY) return status;
        chx_consumer_arm(&consumer);
        atomic_thread_fence(memory_order_seq_cst);
        *got = 1;
        status = chx_consumer_take(&consumer, taken);
        if (status == CHX_EMPTY) {
            chx_consumer_nudge(&consumer);
            sleep_on(consumer_bell);
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
        if (got) chx_consumer_return_run(&consumer, taken, got);
    }
    must(status == CHX_ENDED, "the stream ends");
    must(number == frames, "every frame came");
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
    producer_bell = chx_bell_create();
    consumer_bell = chx_bell_create();
    must(chx_arena_init(&arena, ROOM, ROOM, 0) == CHX_OK, "an arena");
    must(chx_producer_init(&producer, &arena, &header) == CHX_OK, "a producer");
    must(chx_consumer_init(&consumer, &header) == CHX_OK, "a consumer");
    must(chx_producer_link(&producer, consumer.credit_map.fd, consumer_bell) == CHX_OK, "linked there");
    must(chx_consumer_link(&consumer, producer.ring_map.fd, producer_bell) == CHX_OK, "linked back");
    must(chx_consumer_map(&consumer, 0, arena.segments[0].map.fd) == CHX_OK, "a segment");
    munmap((void *)(uintptr_t)consumer.segments[0].base, consumer.segments[0].size);
    consumer.segments[0].base = arena.segments[0].map.base;
    share_mappings();
}

static void close_route(void) {
    must(chx_producer_reclaim(&producer, UINT32_MAX) == CHX_OK, "the consumer is honest");
    must(arena.used == 0, "all memory came back");
    consumer.segments[0].base = NULL;
    chx_consumer_close(&consumer);
    chx_consumer_destroy(&consumer);
    chx_producer_destroy(&producer);
    chx_arena_destroy(&arena);
    close(producer_bell);
    close(consumer_bell);
}

int main(int count, char **arguments) {
    pthread_t threads[2];
    must(count == 2, "the number of frames is given");
    frames = strtoull(arguments[1], NULL, 10);
    open_route();
    must(pthread_create(&threads[0], NULL, produce, NULL) == 0, "a thread");
    must(pthread_create(&threads[1], NULL, consume, NULL) == 0, "a thread");
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    close_route();
    return 0;
}
