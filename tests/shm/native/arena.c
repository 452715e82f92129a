/* The allocator alone, against itself: random extents with random numbers of readers, every byte of each owned by one,
 * while segments leave, stay after all, are dropped and come again.
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
        uint32_t index;
        chx_arena_stay(arena);
        enum chx_status status = chx_arena_grow(arena, length, &index);
        if (status == CHX_OK) chx_arena_confirm(arena, index);
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

/* To a random size; what was dropped can come again at once or later. */
static uint64_t shrink(struct chx_arena *arena) {
    uint64_t before = arena->size, keep = next_random() % (8u << 20);
    uint64_t given = chx_arena_shrink(arena, keep);
    must(given == before - arena->size, "what was given back is gone");
    must(chx_arena_staying(arena) >= keep || chx_segment_find(arena, CHX_SEGMENT_LEAVING, 0, UINT64_MAX) == CHX_NONE,
         "what is to stay stays");
    for (uint32_t i = 0; i < arena->segment_count; i++)
        if (next_random() % 2) chx_arena_forget(arena, i);
    return given;
}

int main(void) {
    static struct owned owned[EXTENTS];
    struct chx_arena arena;
    uint64_t given = 0;
    must(chx_arena_init(&arena, 8u << 20, CHX_ARENA_MIN, 0) == CHX_OK, "an arena");
    arena.drops = 1;
    for (uint32_t step = 0; step < STEPS; step++) {
        if (next_random() % 64 == 0) given += shrink(&arena);
        uint32_t i = next_random() % EXTENTS;
        if (owned[i].readers)
            give(&arena, &owned[i], (uint8_t)i);
        else if (!take(&arena, &owned[i], (uint8_t)i))
            owned[i].readers = 0;
    }
    for (uint32_t i = 0; i < EXTENTS; i++)
        while (owned[i].readers) give(&arena, &owned[i], (uint8_t)i);
    must(arena.used == 0, "all memory came back");
    must(given > 0, "some of it was given back on the way");
    chx_arena_shrink(&arena, 0);
    must(arena.size == 0, "and the rest at the end");
    chx_arena_destroy(&arena);
    return 0;
}
