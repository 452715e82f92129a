/* Makes the arena's memory and gives it back: whole segments, never resized.
 *
 *   NONE -> MADE -> USED <-> LEAVING -> DROPPED -> NONE
 *
 * A segment is used once every consumer has mapped it (chx_arena_confirm). A segment that is not needed any more leaves
 * (chx_arena_shrink): no extent is taken from it any more, and it is unmapped when the last extent has come back. Its
 * index is free again once every consumer has unmapped it too (chx_arena_forget), so that a descriptor never means
 * another segment to its reader than to its writer. Until it is unmapped, a leaving segment can be used again at no
 * cost.
 *
 * The caller notifies the consumers: `announced` tells whether that was done for the present state.
 */
#ifndef CHRONETIX_SEGMENTS_H
#define CHRONETIX_SEGMENTS_H

#include "arena.h"

/* Let the allocator use a segment that every consumer has mapped. */
static inline enum chx_status chx_arena_confirm(struct chx_arena *arena, uint32_t index) {
    struct chx_segment *segment = &arena->segments[index];
    if (segment->state != CHX_SEGMENT_MADE) return CHX_OK;
    if (chx_run_room(arena) != CHX_OK) return CHX_NO_MEMORY;
    uint32_t run = chx_run_make(arena, (uint16_t)index, 0, segment->pages);
    chx_run_mark(arena, run);
    chx_bin_push(arena, run);
    segment->state = CHX_SEGMENT_USED;
    arena->frees++;
    return CHX_OK;
}

/* An index for one more segment: one that is free, or a new one. CHX_NONE: no memory for that, or none is left. */
static inline uint32_t chx_segment_index(struct chx_arena *arena) {
    for (uint32_t i = 0; i < arena->segment_count; i++)
        if (arena->segments[i].state == CHX_SEGMENT_NONE) return i;
    if (arena->segment_count >= CHX_SEGMENTS_MAX) return CHX_NONE;
    if (arena->segment_count == arena->segment_room) {
        uint32_t room = arena->segment_room ? arena->segment_room * 2 : 4;
        struct chx_segment *segments = realloc(arena->segments, room * sizeof *segments);
        if (!segments) return CHX_NONE;
        arena->segments = segments;
        arena->segment_room = room;
    }
    arena->segments[arena->segment_count] = (struct chx_segment){.map = {.fd = -1}};
    return arena->segment_count++;
}

/* A further segment of `size` bytes (more, if that fills huge pages), sealed but not yet confirmed, and its index. */
static inline enum chx_status chx_segment_add(struct chx_arena *arena, uint64_t size, uint32_t *index) {
    *index = chx_segment_index(arena);
    if (*index == CHX_NONE) return CHX_NO_MEMORY;
    struct chx_segment segment = {.state = CHX_SEGMENT_MADE};
    uint64_t left = arena->limit - arena->size;
    enum chx_status status = chx_huge_create(&arena->huge, "chronetix-arena", size, left, &segment.map);
    if (status != CHX_OK) return status;
    segment.pages = (uint32_t)(segment.map.size / CHX_PAGE);
    segment.page_run = calloc(segment.pages, sizeof *segment.page_run);
    if (!segment.page_run || chx_memory_seal(&segment.map) != 0) {
        status = segment.page_run ? CHX_SYSTEM : CHX_NO_MEMORY;
        free(segment.page_run);
        chx_unmap(&segment.map);
        return status;
    }
    arena->segments[*index] = segment;
    arena->size += segment.map.size;
    return CHX_OK;
}

/* ---- leaving ---------------------------------------------------------------------------------------------------- */

static inline int chx_slab_has_room(const struct chx_run *run) {
    return run->state == CHX_RUN_SLAB && run->slab->free != 0;
}

/* Take no extent from this segment any more. */
static inline void chx_segment_leave(struct chx_arena *arena, uint32_t index) {
    struct chx_segment *segment = &arena->segments[index];
    chx_quick_flush(arena, 0);
    chx_slabs_flush(arena);
    for (uint32_t page = 0, run; page < segment->pages; page += arena->runs[run].pages) {
        run = segment->page_run[page] - 1;
        struct chx_run *entry = &arena->runs[run];
        if (entry->state == CHX_RUN_FREE) chx_bin_remove(arena, run);
        if (chx_slab_has_room(entry)) chx_list_remove(arena, &arena->classes[entry->class], run);
        entry->leaving = 1;
    }
    segment->state = CHX_SEGMENT_LEAVING;
}

/* Use a leaving segment again. */
static inline void chx_segment_stay(struct chx_arena *arena, uint32_t index) {
    struct chx_segment *segment = &arena->segments[index];
    for (uint32_t page = 0, run; page < segment->pages; page += arena->runs[run].pages) {
        run = segment->page_run[page] - 1;
        struct chx_run *entry = &arena->runs[run];
        entry->leaving = 0;
        if (entry->state == CHX_RUN_FREE) chx_bin_push(arena, run);
        if (chx_slab_has_room(entry)) chx_list_push(arena, &arena->classes[entry->class], run);
    }
    segment->state = CHX_SEGMENT_USED;
    arena->frees++;
}

/* Whether every extent of it has come back. Exact only for a leaving segment, and for others after the flushes of
 * chx_segment_leave. */
static inline int chx_segment_empty(const struct chx_arena *arena, const struct chx_segment *segment) {
    const struct chx_run *run = &arena->runs[segment->page_run[0] - 1];
    return run->state == CHX_RUN_FREE && run->pages == segment->pages;
}

/* Give the memory of a leaving, empty segment back to the machine. */
static inline void chx_segment_drop(struct chx_arena *arena, uint32_t index) {
    struct chx_segment *segment = &arena->segments[index];
    chx_run_drop(arena, segment->page_run[0] - 1);
    arena->size -= segment->map.size;
    chx_unmap(&segment->map);
    free(segment->page_run);
    *segment = (struct chx_segment){.map = {.fd = -1}, .state = CHX_SEGMENT_DROPPED};
}

/* Every consumer has unmapped it: its index may be used again. */
static inline void chx_arena_forget(struct chx_arena *arena, uint32_t index) {
    if (arena->segments[index].state == CHX_SEGMENT_DROPPED) arena->segments[index].state = CHX_SEGMENT_NONE;
}

/* Bytes in segments that stay, or are to come. */
static inline uint64_t chx_arena_staying(const struct chx_arena *arena) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < arena->segment_count; i++)
        if (arena->segments[i].state == CHX_SEGMENT_MADE || arena->segments[i].state == CHX_SEGMENT_USED)
            bytes += arena->segments[i].map.size;
    return bytes;
}

/* The largest segment in `state` of `least` to `most` bytes, the newest of those; CHX_NONE: there is none. */
static inline uint32_t chx_segment_find(const struct chx_arena *arena, enum chx_segment_state state, uint64_t least,
                                        uint64_t most) {
    uint32_t found = CHX_NONE;
    for (uint32_t i = 0; i < arena->segment_count; i++) {
        const struct chx_segment *segment = &arena->segments[i];
        if (segment->state != state || segment->map.size < least || segment->map.size > most) continue;
        if (found == CHX_NONE || segment->map.size >= arena->segments[found].map.size) found = i;
    }
    return found;
}

/* Use all leaving segments again. Returns whether there was one. */
static inline int chx_arena_stay(struct chx_arena *arena) {
    int stayed = 0;
    for (uint32_t i = 0; i < arena->segment_count; i++) {
        if (arena->segments[i].state != CHX_SEGMENT_LEAVING) continue;
        chx_segment_stay(arena, i);
        stayed = 1;
    }
    return stayed;
}

/* Have segments leave, largest first, as long as `keep` bytes stay, and drop those that are empty. Bytes given back.
 * Those that are no larger than the first one was leave only if less than that is to stay: they are what it would end
 * with.
 * */
static inline uint64_t chx_arena_shrink(struct chx_arena *arena, uint64_t keep) {
    if (!arena->drops) return 0;
    uint64_t staying = chx_arena_staying(arena), before = arena->size, least = keep < arena->first ? 0 : arena->first + 1;
    uint32_t index;
    while (staying < keep && (index = chx_segment_find(arena, CHX_SEGMENT_LEAVING, 0, UINT64_MAX)) != CHX_NONE) {
        staying += arena->segments[index].map.size;
        chx_segment_stay(arena, index);
    }
    while (staying > keep && (index = chx_segment_find(arena, CHX_SEGMENT_USED, least, staying - keep)) != CHX_NONE) {
        staying -= arena->segments[index].map.size;
        chx_segment_leave(arena, index);
    }
    for (uint32_t i = 0; i < arena->segment_count; i++)
        if (arena->segments[i].state == CHX_SEGMENT_LEAVING && chx_segment_empty(arena, &arena->segments[i]))
            chx_segment_drop(arena, i);
    return before - arena->size;
}

/* ---- growing ---------------------------------------------------------------------------------------------------- */

/* The largest segment's bytes: no frame can be larger than one segment. */
static inline uint64_t chx_arena_largest(const struct chx_arena *arena) {
    uint64_t bytes = 0;
    for (uint32_t i = 0; i < arena->segment_count; i++)
        if (arena->segments[i].map.base && arena->segments[i].map.size > bytes) bytes = arena->segments[i].map.size;
    return bytes;
}

/* A segment that is on its way and large enough, or segment_count. */
static inline uint32_t chx_arena_pending(const struct chx_arena *arena, uint64_t length) {
    uint32_t index = 0;
    for (; index < arena->segment_count; index++)
        if (arena->segments[index].state == CHX_SEGMENT_MADE && arena->segments[index].map.size >= length) break;
    return index;
}

/* `need` bytes in one piece do not fit below the limit beside the segments there are: drop empty ones if then they
 * do. */
static inline void chx_arena_make_way(struct chx_arena *arena, uint64_t need) {
    uint64_t empty = 0, left = arena->limit - arena->size;
    if (!arena->drops) return;
    chx_quick_flush(arena, 0);
    chx_slabs_flush(arena);
    for (uint32_t i = 0; i < arena->segment_count; i++) {
        const struct chx_segment *segment = &arena->segments[i];
        if (segment->state == CHX_SEGMENT_USED && chx_segment_empty(arena, segment)) empty += segment->map.size;
    }
    if (left + empty < need) return;
    for (uint32_t i = 0; i < arena->segment_count && arena->limit - arena->size < need; i++) {
        const struct chx_segment *segment = &arena->segments[i];
        if (segment->state != CHX_SEGMENT_USED || !chx_segment_empty(arena, segment)) continue;
        chx_segment_leave(arena, i);
        chx_segment_drop(arena, i);
    }
}

/* Double the arena, by at least what `length` needs; `index` is the new segment's. EMPTY: it is at its limit, or the
 * machine is at its own, but room will come back: wait for that. TOO_LARGE: `length` can never fit. */
static inline enum chx_status chx_arena_grow(struct chx_arena *arena, uint64_t length, uint32_t *index) {
    if (length > arena->limit) return CHX_TOO_LARGE;
    uint64_t need = length <= CHX_SMALL_MAX ? CHX_SLAB_PAGES * CHX_PAGE : chx_whole_pages(length);
    int fits = need <= chx_arena_largest(arena);
    if (need > arena->limit - arena->size && !fits) chx_arena_make_way(arena, need);
    uint64_t left = arena->limit - arena->size, size = arena->size > arena->first ? arena->size : arena->first;
    if (size < need) size = need;
    if (need > left) return fits || arena->drops ? CHX_EMPTY : CHX_TOO_LARGE;
    if (size > left) size = left;
    enum chx_status status = chx_segment_add(arena, size, index);
    if (status == CHX_NO_MEMORY && size > need) status = chx_segment_add(arena, need, index);
    return status == CHX_NO_MEMORY && fits && arena->used ? CHX_EMPTY : status;
}

/* ---- the whole -------------------------------------------------------------------------------------------------- */

static inline void chx_arena_destroy(struct chx_arena *arena) {
    for (uint32_t i = 0; i < arena->run_count; i++)
        if (arena->runs[i].state == CHX_RUN_SLAB) free(arena->runs[i].slab);
    for (uint32_t i = 0; i < arena->segment_count; i++) {
        chx_unmap(&arena->segments[i].map);
        free(arena->segments[i].page_run);
    }
    free(arena->segments);
    free(arena->runs);
    memset(arena, 0, sizeof *arena);
}

/* `limit` and `first` are rounded down and up to whole pages; `first` is usable at once. With `huge` segments are of
 * huge pages where there are some. */
static inline enum chx_status chx_arena_init(struct chx_arena *arena, uint64_t limit, uint64_t first, int huge) {
    memset(arena, 0, sizeof *arena);
    arena->limit = limit & ~(uint64_t)(CHX_PAGE - 1);
    arena->huge.wanted = (uint8_t)huge;
    arena->run_spare = CHX_NONE;
    for (uint32_t i = 0; i < CHX_BINS; i++) arena->bins[i] = CHX_NONE;
    for (uint32_t i = 0; i < CHX_CLASSES; i++) arena->classes[i] = CHX_NONE;
    for (uint32_t lines = 0, class = 0; lines <= CHX_SMALL_MAX / CHX_LINE; lines++) {
        if (lines > chx_class_lines[class]) class++;
        arena->class_of[lines] = (uint8_t)class;
    }
    first = chx_whole_pages(first);
    if (first > arena->limit) first = arena->limit;
    uint32_t index;
    enum chx_status status = chx_segment_add(arena, first, &index);
    arena->first = arena->size;
    if (status == CHX_OK) status = chx_arena_confirm(arena, index);
    if (status != CHX_OK) {
        int error = errno;
        chx_arena_destroy(arena);
        errno = error;
    }
    return status;
}

#endif
