/* Whatever stands in a peer's memory: the input is the memory. Made for libFuzzer (make fuzz); compiled with -DALONE it
 * tries random inputs by itself, as the tests do for a moment. Arguments then: inputs, seed.
 *
 * The memories lie in the heap, so that the sanitizer sees the first byte too much. First byte of the input: which end is
 * to read it; the next ones: what it does.
 */
#include <chronetix/chronetix.h>

enum { CREDITS = 4, SLOTS = 8, SEGMENT = 256, OPS = 24 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

struct input {
    const uint8_t *at;
    size_t left;
};

static uint8_t next_byte(struct input *input) {
    if (!input->left) return 0;
    input->left--;
    return *input->at++;
}

/* Fresh memory of `size` bytes with the rest of the input in it from `from` on; each 32 bits that are given as one byte. */
static void *memory_of(struct input *input, size_t size, size_t from) {
    uint8_t *memory = aligned_alloc(CHX_LINE, size);
    if (!memory) abort();
    memset(memory, 0, size);
    while (input->left >= 3) {
        size_t at = from + ((size_t)next_byte(input) * 8 + (size_t)(next_byte(input) & 7) * 2048) % (size - from - 8);
        uint64_t value = next_byte(input);
        if (value >= 224) value = (value & 1) ? ~0ull - (value >> 1 & 7) : 1ull << (2 * (value & 31));
        at &= ~(size_t)7;
        memcpy(memory + at, &value, sizeof value);
    }
    return memory;
}

static struct chx_header header_of(enum chx_kind kind, uint8_t policy) {
    struct chx_header header = {.credits = CREDITS, .watermark = 3, .credit_low = 2, .policy = policy % 3};
    chx_header_finish(&header, kind);
    return header;
}

static uint64_t sum;

static void read_frame(const struct chx_consumer *c, const struct chx_taken *taken) {
    if (taken->length && (taken->data < c->segments[0].base || taken->length > SEGMENT)) abort();
    for (uint64_t i = 0; i < taken->length; i++) sum += taken->data[i];
}

static void read_ring(struct input *input, int succeed) {
    struct chx_consumer c;
    struct chx_header header = header_of(CHX_KIND_CREDIT, 0);
    struct chx_taken taken[3];
    uint8_t ops[OPS], policy = next_byte(input);
    for (int i = 0; i < OPS; i++) ops[i] = next_byte(input);
    if (chx_consumer_init(&c, &header) != CHX_OK) abort();
    struct chx_ring *ring = memory_of(input, chx_ring_size(c.header.slots_log2), 64);
    struct chx_credit *dead = memory_of(input, chx_credit_size(c.header.slots_log2), 64);
    uint8_t *segment = calloc(1, SEGMENT);
    c.segments = calloc(1, sizeof *c.segments);
    if (!segment || !c.segments) abort();
    c.segments[0].base = segment;
    c.segments[0].size = c.mapped = SEGMENT;
    c.segment_count = 1;
    c.ring = ring;
    c.desc = ring->desc;
    c.skip = (const chx_word *)(const void *)(c.desc + c.slots);
    c.latest = policy % 3 == CHX_POLICY_LATEST;
    c.state = CHX_CONSUMER_OPEN;
    if (succeed) {
        struct chx_remains remains;
        struct chx_why why;
        struct chx_header theirs = header_of(CHX_KIND_RING, 0);
        for (uint32_t i = 0; i < SLOTS; i++) /* stamps may be those of any lap, or nonsense */
            atomic_store(&dead->stamp[i], chx_read(&dead->stamp[i]) + (ops[i] & 3));
        if (chx_ring_remains(ring, &theirs, &remains, &why) == CHX_OK) chx_consumer_end_at(&c, remains.end);
        if (!c.latest && chx_inherit_from(&c, dead) == CHX_FAULT) chx_consumer_fault(&c);
    }
    for (int i = 0; i < OPS && c.state == CHX_CONSUMER_OPEN; i++) {
        uint32_t frames = 0;
        if (c.latest) {
            if (chx_consumer_look(&c, taken) != CHX_OK) break;
            chx_latest_begin(&c, taken);
            read_frame(&c, taken);
            chx_latest_keep(&c, taken);
        } else if (ops[i] & 1) {
            frames = chx_consumer_take(&c, taken) == CHX_OK;
        } else {
            chx_consumer_take_run(&c, taken, 3, &frames);
            uint64_t bytes = 0;
            for (uint32_t f = 0; f < frames; f++) bytes += taken[f].length;
            if (bytes > SEGMENT) abort();
        }
        for (uint32_t f = 0; f < frames; f++) read_frame(&c, &taken[f]);
        if (frames && ops[i] & 2) chx_consumer_return_run(&c, taken, frames);
        if (ops[i] & 4) chx_consumer_arm(&c), chx_consumer_nudge(&c), chx_consumer_disarm(&c);
    }
    if (c.state == CHX_CONSUMER_FAULTY && !c.why.text[0]) abort();
    c.segments[0].base = NULL;
    c.ring = NULL;
    chx_consumer_destroy(&c);
    free(segment);
    free(ring);
    free(dead);
}

static void read_credit(struct input *input) {
    struct chx_arena arena;
    struct chx_producer p;
    struct chx_tags tags = {0};
    uint8_t ops[OPS];
    struct chx_header header = header_of(CHX_KIND_RING, next_byte(input));
    for (int i = 0; i < OPS; i++) ops[i] = next_byte(input);
    if (chx_arena_init(&arena, CHX_ARENA_MIN, CHX_ARENA_MIN, 0) != CHX_OK) abort();
    if (chx_producer_init(&p, &arena, &header) != CHX_OK) abort();
    struct chx_credit *credit = memory_of(input, chx_credit_size(p.header.slots_log2), 64);
    uint64_t returned = chx_read(&credit->returned);
    p.credit = credit;
    p.state = CHX_OPEN;
    for (int i = 0; i < OPS; i++) {
        struct chx_extent extent;
        uint32_t frames = 1 + ops[i] % 2;
        if (ops[i] & 4) atomic_store(&credit->returned, returned ? returned : p.committed);
        if (ops[i] & 8) chx_producer_returns(&p) ? chx_producer_reclaim(&p, ops[i] >> 4) : CHX_OK;
        if (ops[i] & 16 && chx_producer_returns(&p)) chx_producer_ready(&p, chx_producer_goal(&p));
        if (chx_producer_check(&p) != CHX_OK || chx_producer_left(&p) < frames) continue;
        if (chx_arena_alloc(&arena, 128, &extent) != CHX_OK) abort();
        if (frames > 1) chx_extent_share(&arena, extent.handle, frames - 1);
        chx_producer_commit_run(&p, &extent, 64, frames, &tags, 1);
        if (chx_outstanding(&p) > CREDITS) abort();
    }
    if (p.state == CHX_FAULTY && (!p.why.text[0] || arena.used)) abort();
    chx_producer_destroy(&p);
    if (arena.used) abort();
    chx_arena_destroy(&arena);
    free(credit);
}

/* A header of any bytes, with or without the checksum that belongs to them. */
static void read_header(struct input *input) {
    struct chx_header header;
    struct chx_why why = {""};
    uint8_t flags = next_byte(input);
    enum chx_kind kind = flags & 1 ? CHX_KIND_RING : CHX_KIND_CREDIT;
    header = header_of(kind, flags >> 6);
    uint8_t *bytes = (uint8_t *)&header;
    while (input->left >= 2) {
        uint8_t at = next_byte(input) % sizeof header;
        bytes[at] = next_byte(input);
    }
    if (flags & 2) header.crc = chx_crc32(&header, offsetof(struct chx_header, crc));
    uint64_t size = flags & 4 ? CHX_PAGE : chx_kind_size(kind, header.slots_log2 % 24);
    enum chx_status status = chx_header_check(&header, kind, size, &why);
    if (status == CHX_FAULT ? !why.text[0] : status != CHX_OK) abort();
    if (status != CHX_OK) return;
    if (header.credits < 1 || header.credits > CHX_CREDITS_MAX || size != chx_kind_size(kind, header.slots_log2)) abort();
    if (1u << header.slots_log2 < 2 * header.credits) abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    struct input input = {data, size};
    switch (next_byte(&input) % 5) {
        case 0:
            read_header(&input);
            break;
        case 1:
            read_credit(&input);
            break;
        case 2:
            read_ring(&input, 1);
            break;
        default:
            read_ring(&input, 0);
    }
    return 0;
}

#ifdef ALONE
int main(int count, char **arguments) {
    if (count != 3) return 2;
    uint64_t inputs = strtoull(arguments[1], NULL, 10), state = strtoull(arguments[2], NULL, 10) | 1;
    uint8_t data[512];
    while (inputs--) {
        size_t size = 0;
        for (; size < sizeof data; size++) {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            data[size] = state & 0x100 ? (uint8_t)(state >> 16 & 15) : (uint8_t)(state >> 24);
        }
        LLVMFuzzerTestOneInput(data, 30 + state % (sizeof data - 30));
    }
    return sum == 1;
}
#endif
