/* One frame there and one back, in C, by the method of iceoryx2's own publish-subscribe benchmark: two ends, each pinned to
 * a processor, each asking without pause for the next frame; the time of one way is half of a round trip's mean.
 *
 * Everything that a frame costs is in it: reclaiming, an extent from the arena, the descriptor, both ends' statistics
 * with their two looks at the clock, the return. With `touched` the sender writes every byte and the receiver reads
 * every
 * byte; without, neither end reads the payload. `word` is the lower bound of this machine: one word that two threads
 * change in
 * turn. Arguments: threads|processes|word, bytes, touched (0|1), round trips, two processors. One line: nanoseconds of
 * one way.
 */
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>

#include <chronetix/chronetix.h>

enum { CREDITS = 8 };

struct end {
    struct chx_arena arena;
    struct chx_producer producer;
    struct chx_consumer consumer;
    struct chx_bell bell;
    int processor, first;
};

static struct end ends[2];
static uint64_t bytes, trips, warm_up;
static int touched;
static int lines[2][2]; /* of what the first end produces and of what the second does: producer's end, consumer's end */

static void must(int true, const char *what) {
    if (true) return;
    fprintf(stderr, "pingpong: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void make(struct end *end, int first, int processor) {
    struct chx_header header = {.credits = CREDITS, .watermark = CREDITS, .policy = CHX_POLICY_BLOCK};
    uint64_t room = CREDITS * (bytes + CHX_PAGE) + CHX_ARENA_MIN;
    end->first = first;
    end->processor = processor;
    must(chx_bell_init(&end->bell) == 0, "a doorbell");
    must(chx_arena_init(&end->arena, room, room, 0) == CHX_OK, "an arena");
    must(chx_producer_init(&end->producer, &end->arena, &header) == CHX_OK, "a ring");
    header.watermark = header.policy = 0;
    must(chx_consumer_init(&end->consumer, &header) == CHX_OK, "credits");
}

/* What the peer of an end needs of it. */
struct memory {
    int credit, ring, segment;
};

static struct memory memory_of(const struct end *end) {
    return (struct memory){end->consumer.credit_map.fd, end->producer.ring_map.fd, end->arena.segments[0].map.fd};
}

static void link_to(struct end *end, struct memory peer) {
    int there = lines[!end->first][0], back = lines[end->first][1];
    must(chx_producer_link(&end->producer, peer.credit, there, &end->bell) == CHX_OK, "linking a producer");
    must(chx_consumer_link(&end->consumer, peer.ring, back, &end->bell) == CHX_OK, "linking a consumer");
    must(chx_consumer_map(&end->consumer, 0, peer.segment) == CHX_OK, "mapping a segment");
}

/* Send the own memory through `socket` and receive the peer's. */
static struct memory exchange(int socket, struct memory own) {
    union {
        struct cmsghdr head;
        char room[CMSG_SPACE(sizeof own)];
    } control = {0};
    char byte = 0;
    struct iovec data = {&byte, 1};
    struct msghdr message = {.msg_iov = &data, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    control.head = (struct cmsghdr){.cmsg_len = CMSG_LEN(sizeof own), .cmsg_level = SOL_SOCKET, .cmsg_type = SCM_RIGHTS};
    memcpy(CMSG_DATA(&control.head), &own, sizeof own);
    must(sendmsg(socket, &message, 0) == 1, "sending memory");
    must(recvmsg(socket, &message, 0) == 1 && message.msg_controllen == sizeof control, "receiving memory");
    memcpy(&own, CMSG_DATA(&control.head), sizeof own);
    return own;
}

static void pin(int processor) {
    cpu_set_t set;
    CPU_ZERO(&set);
    CPU_SET((unsigned)processor, &set);
    must(sched_setaffinity(0, sizeof set, &set) == 0, "pinning");
}

static void put(struct end *end, uint64_t number) {
    struct chx_producer *producer = &end->producer;
    struct chx_tags tags = {0};
    struct chx_extent extent = {0};
    must(chx_producer_has_credit(producer), "a credit: at most two frames are on their way");
    must(chx_arena_alloc(&end->arena, bytes, &extent) == CHX_OK, "room for a frame");
    if (touched) memset(extent.data, (int)(number & 0xFF), bytes);
    tags.input_seq = number;
    if (chx_producer_commit(producer, &extent, bytes, &tags, chx_now_ns())) chx_producer_ring(producer);
    must(chx_producer_reclaim(producer, CHX_REUSE_LOOK) == CHX_OK, "the peer is honest"); /* while it is on its way */
}

static void get(struct end *end, uint64_t number) {
    struct chx_taken taken;
    enum chx_status status;
    while ((status = chx_consumer_take(&end->consumer, &taken)) == CHX_EMPTY) continue;
    must(status == CHX_OK && taken.length == bytes && taken.input_seq == number, "the frame that was sent");
    if (touched) {
        uint64_t wrong = 0;
        for (uint64_t i = 0; i < bytes; i++) wrong += taken.data[i] != (number & 0xFF);
        must(wrong == 0, "the bytes that were sent");
    }
    chx_consumer_return(&end->consumer, taken.stamp);
}

static void *play(void *argument) {
    struct end *end = argument;
    uint64_t start = 0;
    pin(end->processor);
    for (uint64_t i = 0; i < warm_up + trips; i++) {
        if (i == warm_up) start = chx_now_ns();
        if (end->first) put(end, i);
        get(end, i);
        if (!end->first) put(end, i);
    }
    if (end->first) printf("%.2f\n", (double)(chx_now_ns() - start) / (double)trips / 2);
    return NULL;
}

static _Alignas(CHX_LINE) _Atomic uint64_t word;

/* Odd values are written by the first end, even ones by the second. */
static void *play_word(void *argument) {
    struct end *end = argument;
    uint64_t start = 0;
    pin(end->processor);
    for (uint64_t i = 0; i < 2 * (warm_up + trips); i += 2) {
        if (i == 2 * warm_up) start = chx_now_ns();
        uint64_t awaited = end->first ? i : i + 1;
        while (atomic_load_explicit(&word, memory_order_acquire) != awaited) continue;
        atomic_store_explicit(&word, awaited + 1, memory_order_release);
    }
    if (end->first) printf("%.2f\n", (double)(chx_now_ns() - start) / (double)trips / 2);
    return NULL;
}

static int two_threads(const int processors[2], void *(*run)(void *)) {
    pthread_t other;
    for (int i = 0; i < 2; i++) make(&ends[i], i == 0, processors[i]);
    for (int i = 0; i < 2; i++) link_to(&ends[i], memory_of(&ends[!i]));
    must(pthread_create(&other, NULL, run, &ends[1]) == 0, "a thread");
    run(&ends[0]);
    return pthread_join(other, NULL);
}

/* The other process has ended: without it, this one would ask for the next frame for ever. */
static void without_peer(int signal) {
    int status;
    (void)signal;
    if (wait(&status) > 0 && status != 0) _exit(1);
}

/* Each process makes its own end: a child cannot write what its parent has made. */
static int two_processes(const int processors[2]) {
    int sockets[2];
    must(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, sockets) == 0, "a pair of sockets");
    signal(SIGCHLD, without_peer);
    pid_t other = fork();
    must(other >= 0, "a process");
    int first = other != 0;
    struct end *end = &ends[!first];
    make(end, first, processors[!first]);
    link_to(end, exchange(sockets[!first], memory_of(end)));
    play(end);
    return 0;
}

int main(int count, char **words) {
    if (count != 7) {
        fprintf(stderr, "usage: pingpong threads|processes|word BYTES 0|1 TRIPS PROCESSOR PROCESSOR\n");
        return 2;
    }
    bytes = strtoull(words[2], NULL, 10);
    touched = words[3][0] == '1';
    trips = strtoull(words[4], NULL, 10);
    warm_up = trips / 10;
    int processors[2] = {atoi(words[5]), atoi(words[6])};
    for (int i = 0; i < 2; i++) must(chx_line_pair(lines[i], 0) == 0, "a line");
    if (strcmp(words[1], "processes") == 0) return two_processes(processors);
    return two_threads(processors, strcmp(words[1], "word") == 0 ? play_word : play);
}
