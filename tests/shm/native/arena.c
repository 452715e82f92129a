/* The allocator alone, against itself: random extents with random numbers of readers, every byte of each owned by one.
 * Made for the sanitizers; exit status 0 when no extent ever overlapped another and all memory came back. */
#include <chronetix/chronetix.h>

enum { EXTENTS = 200, STEPS = 50000 };

struct owned {
    struct chx_extent extent;
    uint64_t length;
    uint32_t readers;
};

static uint32_t state = 7;

static uint32_t next_random(void) {
    state ^= state << 13;
    state ^= state >> 17;
    state ^= state << 5;
    return state;
}

static void must(int true, const char *what) {
    if (true) return;
    fprintf(stderr, "not so: %s\n", what);
    exit(1);
}

static uint64_t random_length(void) {
    switch (next_random() % 4) {
        case 0:
            return next_random() % 256;
        case 1:
            return next_random() % 5000;
        case 2:
            return next_random() % 70000;
        default:
            return next_random() % 400000;
    }
}

static int take(struct chx_arena *arena, struct owned *owned, uint8_t mark) {
    uint64_t length = random_length();
    if (chx_arena_alloc(arena, length, &owned->extent) != CHX_OK) {
        enum chx_status status = chx_arena_grow(arena, length);
        if (status == CHX_OK) chx_arena_confirm(arena, arena->segment_count - 1);
        must(status == CHX_OK || status == CHX_EMPTY || status == CHX_TOO_LARGE, "growing works or is refused");
        if (chx_arena_alloc(arena, length, &owned->extent) != CHX_OK) return 0;
    }
    owned->length = length;
    owned->readers = 1 + next_random() % 3;
    chx_extent_share(arena, owned->extent.handle, owned->readers - 1);
    if (length) memset(owned->extent.data, mark, length);
    return 1;
}

static void give(struct chx_arena *arena, struct owned *owned, uint8_t mark) {
    for (uint64_t i = 0; i < owned->length; i++) must(owned->extent.data[i] == mark, "an extent has one owner");
    chx_extent_drop(arena, owned->extent.handle);
    owned->readers--;
}

int main(void) {
    static struct owned owned[EXTENTS];
    struct chx_arena arena;
    must(chx_arena_init(&arena, 8u << 20, CHX_ARENA_MIN) == CHX_OK, "an arena");
    for (uint32_t step = 0; step < STEPS; step++) {
        uint32_t i = next_random() % EXTENTS;
        if (owned[i].readers)
            give(&arena, &owned[i], (uint8_t)i);
        else if (!take(&arena, &owned[i], (uint8_t)i))
            owned[i].readers = 0;
    }
    for (uint32_t i = 0; i < EXTENTS; i++)
        while (owned[i].readers) give(&arena, &owned[i], (uint8_t)i);
    must(arena.used == 0, "all memory came back");
    chx_arena_destroy(&arena);
    return 0;
}
