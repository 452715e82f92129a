/* ARENA: payload memory of one producing process, in sealed segments; the allocator itself is private. segments.h makes
 * segments and gives them back.
 *
 * No allocation data is shared, so no peer can corrupt it. Extents are 64-byte aligned. Small ones (up to 3584 bytes)
 * are objects of a class in a slab of 8 pages (or 1); larger ones are runs of whole pages. What was freed last is
 * handed out first, because it is still in the cache. Every operation is constant time or nearly so, whatever the size.
 * Calls on one arena are serialised by the caller.
 *
 *   segment   | run (slab: 8 pages of one class) | run (one extent) | run (free) ...
 *   page_run  | first and last page of every run name it: that is how neighbours are found and merged
 *   quick     | the runs freed last, not merged: an exact size match is taken from here, newest first
 *   bins      | free runs by size, four steps an octave, after the two-level segregated fit of Masmano et al.
 *
 * A segment that is leaving hands out no extents: its free runs are in no list, and are merged as extents come back,
 * until one run is the whole segment.
 *
 * This file is longer than 400 lines because runs, slabs and extents change the same lists: each step of one of them
 * relies on what the others leave.
 */
#ifndef CHRONETIX_ARENA_H
#define CHRONETIX_ARENA_H

#include <stdlib.h>

#include "hints.h"
#include "hugepages.h"
#include "memory.h"

#define CHX_NONE UINT32_MAX
#define CHX_NO_EXTENT UINT64_MAX
#define CHX_CLASSES 19u
#define CHX_SMALL_MAX 3584u
#define CHX_SLAB_PAGES 8u
#define CHX_BINS 128u
#define CHX_QUICK 16u
#define CHX_BIN_LOOK 8u
#define CHX_ARENA_MIN 65536u

/* Object sizes of the classes, in lines. */
static const uint8_t chx_class_lines[CHX_CLASSES] = {1,  2,  3,  4,  5,  6,  7,  8,  10, 12,
                                                     14, 16, 20, 24, 28, 32, 40, 48, 56};

enum chx_run_state { CHX_RUN_FREE, CHX_RUN_QUICK, CHX_RUN_WHOLE, CHX_RUN_SLAB };

/* The objects of one slab: a stack of the free ones, and how many routes still read each used one. */
struct chx_slab {
    uint32_t total, free;
    uint32_t *refs;
    uint16_t stack[];
};

struct chx_run {
    uint32_t page, pages;
    uint32_t next, prev; /* in its bin (free) or its class (slab with room) */
    uint32_t refs;       /* routes that still read it (whole) */
    uint16_t segment;
    uint8_t state, class;
    uint8_t leaving; /* the segment is leaving */
    struct chx_slab *slab;
};

enum chx_segment_state {
    CHX_SEGMENT_NONE,    /* the index is free */
    CHX_SEGMENT_MADE,    /* not every consumer has mapped it yet */
    CHX_SEGMENT_USED,    /* extents come from it */
    CHX_SEGMENT_LEAVING, /* it is given back as soon as every extent of it has come back */
    CHX_SEGMENT_DROPPED, /* unmapped; not every consumer has done so yet */
};

struct chx_segment {
    struct chx_map map;
    uint32_t *page_run; /* run + 1 at the first and last page of each run */
    uint32_t pages;
    uint8_t announced, state; /* announced: consumers were told of what the state says */
};

struct chx_arena {
    uint64_t limit, size, used;
    uint64_t first; /* bytes of the first segment; further ones have at least as many */
    uint64_t peak;  /* most that was used since the last question for it */
    uint64_t frees; /* counts what may make room: extents freed and segments confirmed */
    struct chx_segment *segments;
    uint32_t segment_count, segment_room;
    uint8_t drops; /* segments may be given back */
    struct chx_huge huge;
    struct chx_run *runs;
    uint32_t run_count, run_room, run_spare;
    uint32_t quick[CHX_QUICK], quick_count;
    uint64_t bin_used[2];
    uint32_t bins[CHX_BINS];
    uint32_t classes[CHX_CLASSES];
    uint8_t class_of[64]; /* by lines */
};

/* A piece of payload memory. `handle` is private; `segment` and `offset` go into the descriptor. */
struct chx_extent {
    uint64_t handle;
    uint8_t *data;
    uint64_t offset;
    uint16_t segment;
};

/* ---- lists ------------------------------------------------------------------------------------------------------ */

static inline void chx_list_push(struct chx_arena *arena, uint32_t *head, uint32_t run) {
    arena->runs[run].prev = CHX_NONE;
    arena->runs[run].next = *head;
    if (*head != CHX_NONE) arena->runs[*head].prev = run;
    *head = run;
}

static inline void chx_list_remove(struct chx_arena *arena, uint32_t *head, uint32_t run) {
    struct chx_run *entry = &arena->runs[run];
    if (entry->next != CHX_NONE) arena->runs[entry->next].prev = entry->prev;
    if (entry->prev != CHX_NONE)
        arena->runs[entry->prev].next = entry->next;
    else
        *head = entry->next;
}

static inline uint32_t chx_bin_of(uint32_t pages) {
    uint32_t octave = 31u - (uint32_t)__builtin_clz(pages);
    return octave * 4 + ((uint32_t)(((uint64_t)pages << 2) >> octave) & 3u);
}

static inline void chx_bin_push(struct chx_arena *arena, uint32_t run) {
    uint32_t bin = chx_bin_of(arena->runs[run].pages);
    arena->runs[run].state = CHX_RUN_FREE;
    if (arena->runs[run].leaving) return;
    chx_list_push(arena, &arena->bins[bin], run);
    arena->bin_used[bin / 64] |= 1ull << (bin % 64);
}

static inline void chx_bin_remove(struct chx_arena *arena, uint32_t run) {
    if (arena->runs[run].leaving) return;
    uint32_t bin = chx_bin_of(arena->runs[run].pages);
    chx_list_remove(arena, &arena->bins[bin], run);
    if (arena->bins[bin] == CHX_NONE) arena->bin_used[bin / 64] &= ~(1ull << (bin % 64));
}

/* ---- runs ------------------------------------------------------------------------------------------------------- */

/* Make sure that one more run can be made without failing. */
static inline enum chx_status chx_run_room(struct chx_arena *arena) {
    if (arena->run_spare != CHX_NONE || arena->run_count < arena->run_room) return CHX_OK;
    uint32_t room = arena->run_room ? arena->run_room * 2 : 64;
    struct chx_run *runs = realloc(arena->runs, room * sizeof *runs);
    if (!runs) return CHX_NO_MEMORY;
    arena->runs = runs;
    arena->run_room = room;
    return CHX_OK;
}

static inline uint32_t chx_run_make(struct chx_arena *arena, uint16_t segment, uint32_t page, uint32_t pages) {
    uint32_t run = arena->run_spare;
    if (run != CHX_NONE)
        arena->run_spare = arena->runs[run].next;
    else
        run = arena->run_count++;
    arena->runs[run] = (struct chx_run){.page = page, .pages = pages, .segment = segment};
    return run;
}

static inline void chx_run_drop(struct chx_arena *arena, uint32_t run) {
    arena->runs[run].next = arena->run_spare;
    arena->run_spare = run;
}

static inline void chx_run_mark(struct chx_arena *arena, uint32_t run) {
    const struct chx_run *entry = &arena->runs[run];
    uint32_t *page_run = arena->segments[entry->segment].page_run;
    page_run[entry->page] = page_run[entry->page + entry->pages - 1] = run + 1;
}

/* Give a run back to the bins, merged with its free neighbours. */
static inline void chx_run_merge(struct chx_arena *arena, uint32_t run) {
    struct chx_run *entry = &arena->runs[run];
    const struct chx_segment *segment = &arena->segments[entry->segment];
    uint32_t right = entry->page + entry->pages;
    if (right < segment->pages && arena->runs[segment->page_run[right] - 1].state == CHX_RUN_FREE) {
        uint32_t other = segment->page_run[right] - 1;
        chx_bin_remove(arena, other);
        entry->pages += arena->runs[other].pages;
        chx_run_drop(arena, other);
    }
    if (entry->page > 0 && arena->runs[segment->page_run[entry->page - 1] - 1].state == CHX_RUN_FREE) {
        uint32_t other = segment->page_run[entry->page - 1] - 1;
        chx_bin_remove(arena, other);
        arena->runs[other].pages += entry->pages;
        chx_run_drop(arena, run);
        run = other;
    }
    chx_run_mark(arena, run);
    chx_bin_push(arena, run);
}

/* Cut `pages` off the front of a free run of at least that many. Needs chx_run_room. */
static inline uint32_t chx_run_cut(struct chx_arena *arena, uint32_t run, uint32_t pages) {
    chx_bin_remove(arena, run);
    struct chx_run *entry = &arena->runs[run];
    uint32_t left = entry->pages - pages;
    if (left) {
        entry->pages = pages;
        uint32_t rest = chx_run_make(arena, entry->segment, entry->page + pages, left);
        chx_run_mark(arena, rest);
        chx_bin_push(arena, rest);
        chx_run_mark(arena, run);
    }
    return run;
}

static inline uint32_t chx_bin_fit(const struct chx_arena *arena, uint32_t bin, uint32_t pages, uint32_t looks) {
    for (uint32_t run = arena->bins[bin]; run != CHX_NONE && looks; run = arena->runs[run].next, looks--)
        if (arena->runs[run].pages >= pages) return run;
    return CHX_NONE;
}

static inline uint32_t chx_bins_find(const struct chx_arena *arena, uint32_t pages) {
    uint32_t own = chx_bin_of(pages), next = own + 1;
    uint32_t run = chx_bin_fit(arena, own, pages, CHX_BIN_LOOK);
    if (run != CHX_NONE) return run;
    for (uint32_t half = next / 64; half < 2; half++) {
        uint64_t used = arena->bin_used[half];
        if (half == next / 64) used &= ~0ull << (next % 64);
        if (used) return arena->bins[half * 64 + (uint32_t)__builtin_ctzll(used)];
    }
    return chx_bin_fit(arena, own, pages, UINT32_MAX);
}

static inline void chx_quick_flush(struct chx_arena *arena, uint32_t keep) {
    uint32_t flush = arena->quick_count > keep ? arena->quick_count - keep : 0;
    for (uint32_t i = 0; i < flush; i++) chx_run_merge(arena, arena->quick[i]);
    arena->quick_count -= flush;
    memmove(arena->quick, arena->quick + flush, arena->quick_count * sizeof arena->quick[0]);
}

static inline void chx_run_free(struct chx_arena *arena, uint32_t run) {
    if (arena->runs[run].leaving) {
        chx_run_merge(arena, run);
        return;
    }
    if (arena->quick_count == CHX_QUICK) chx_quick_flush(arena, CHX_QUICK / 2);
    arena->runs[run].state = CHX_RUN_QUICK;
    arena->quick[arena->quick_count++] = run;
}

static inline uint32_t chx_quick_take(struct chx_arena *arena, uint32_t pages) {
    for (uint32_t i = arena->quick_count; i-- > 0;) {
        uint32_t run = arena->quick[i];
        if (arena->runs[run].pages != pages) continue;
        arena->quick_count--;
        memmove(arena->quick + i, arena->quick + i + 1, (arena->quick_count - i) * sizeof arena->quick[0]);
        return run;
    }
    return CHX_NONE;
}

/* A slab that has room is in its class's list of such slabs, unless its segment is leaving. */
static inline void chx_slab_drop(struct chx_arena *arena, uint32_t run) {
    if (!arena->runs[run].leaving) chx_list_remove(arena, &arena->classes[arena->runs[run].class], run);
    free(arena->runs[run].slab);
    arena->runs[run].slab = NULL;
}

/* Give back the empty slabs that are kept for the next object. */
static inline void chx_slabs_flush(struct chx_arena *arena) {
    for (uint32_t class = 0; class < CHX_CLASSES; class++) {
        uint32_t next;
        for (uint32_t run = arena->classes[class]; run != CHX_NONE; run = next) {
            next = arena->runs[run].next;
            if (arena->runs[run].slab->free != arena->runs[run].slab->total) continue;
            chx_slab_drop(arena, run);
            chx_run_merge(arena, run);
        }
    }
}

static inline uint32_t chx_run_take(struct chx_arena *arena, uint32_t pages) {
    uint32_t run = chx_quick_take(arena, pages);
    if (run != CHX_NONE) return run;
    if (chx_run_room(arena) != CHX_OK) return CHX_NONE;
    run = chx_bins_find(arena, pages);
    if (run == CHX_NONE) {
        chx_quick_flush(arena, 0);
        chx_slabs_flush(arena);
        run = chx_bins_find(arena, pages);
    }
    return run == CHX_NONE ? run : chx_run_cut(arena, run, pages);
}

/* ---- extents ---------------------------------------------------------------------------------------------------- */

/* A slab of a single page, for an arena in which held frames leave no room for a whole slab. */
static inline enum chx_status chx_slab_make(struct chx_arena *arena, uint32_t class) {
    uint32_t bytes = chx_class_lines[class] * CHX_LINE, total = CHX_SLAB_PAGES * CHX_PAGE / bytes;
    struct chx_slab *slab = malloc(sizeof *slab + total * (sizeof(uint16_t) + sizeof(uint32_t)) + sizeof(uint32_t));
    if (!slab) return CHX_NO_MEMORY;
    uint32_t run = chx_run_take(arena, CHX_SLAB_PAGES);
    if (run == CHX_NONE) {
        run = chx_run_take(arena, 1);
        total = CHX_PAGE / bytes;
    }
    if (run == CHX_NONE) {
        free(slab);
        return CHX_WOULD_BLOCK;
    }
    slab->total = slab->free = total;
    slab->refs = (uint32_t *)(void *)(slab->stack + ((total + 1u) & ~1u));
    for (uint32_t i = 0; i < total; i++) slab->stack[i] = (uint16_t)(total - 1 - i);
    arena->runs[run].state = CHX_RUN_SLAB;
    arena->runs[run].class = (uint8_t)class;
    arena->runs[run].slab = slab;
    chx_list_push(arena, &arena->classes[class], run);
    return CHX_OK;
}

static inline uint8_t *chx_run_data(const struct chx_arena *arena, const struct chx_run *run) {
    return arena->segments[run->segment].map.base + (uint64_t)run->page * CHX_PAGE;
}

static inline void chx_extent_place(const struct chx_arena *arena, const struct chx_run *run, uint64_t inside,
                                    struct chx_extent *extent) {
    extent->segment = run->segment;
    extent->offset = (uint64_t)run->page * CHX_PAGE + inside;
    extent->data = chx_run_data(arena, run) + inside;
}

static inline void chx_arena_take(struct chx_arena *arena, uint64_t bytes) {
    arena->used += bytes;
    if (arena->used > arena->peak) arena->peak = arena->used;
}

static inline enum chx_status chx_small_alloc(struct chx_arena *arena, uint32_t length, struct chx_extent *extent) {
    uint32_t class = arena->class_of[(length + CHX_LINE - 1) / CHX_LINE];
    if (arena->classes[class] == CHX_NONE) {
        enum chx_status status = chx_slab_make(arena, class);
        if (status != CHX_OK) return status;
    }
    uint32_t index = arena->classes[class];
    struct chx_run *run = &arena->runs[index];
    struct chx_slab *slab = run->slab;
    uint32_t bytes = chx_class_lines[class] * CHX_LINE;
    uint32_t object = slab->stack[--slab->free];
    slab->refs[object] = 1;
    if (slab->free == 0) chx_list_remove(arena, &arena->classes[class], index);
    if (slab->free) chx_prefetch_write(chx_run_data(arena, run) + slab->stack[slab->free - 1] * bytes);
    extent->handle = (uint64_t)index << 16 | object;
    chx_extent_place(arena, run, (uint64_t)object * bytes, extent);
    chx_arena_take(arena, bytes);
    return CHX_OK;
}

/* An extent of `length` bytes with one reference. WOULD_BLOCK: no room now. A length of 0 needs no memory. */
static inline enum chx_status chx_arena_alloc(struct chx_arena *arena, uint64_t length, struct chx_extent *extent) {
    if (length == 0) {
        *extent = (struct chx_extent){.handle = CHX_NO_EXTENT};
        return CHX_OK;
    }
    if (length <= CHX_SMALL_MAX) return chx_small_alloc(arena, (uint32_t)length, extent);
    if (length > arena->size) return CHX_WOULD_BLOCK;
    uint32_t pages = (uint32_t)(chx_whole_pages(length) / CHX_PAGE);
    uint32_t index = chx_run_take(arena, pages);
    if (index == CHX_NONE) return CHX_WOULD_BLOCK;
    struct chx_run *run = &arena->runs[index];
    run->state = CHX_RUN_WHOLE;
    run->refs = 1;
    extent->handle = (uint64_t)index << 16;
    chx_extent_place(arena, run, 0, extent);
    chx_arena_take(arena, (uint64_t)pages * CHX_PAGE);
    return CHX_OK;
}

/* `more` further references: one for each further route that reads it. */
static inline void chx_extent_share(struct chx_arena *arena, uint64_t handle, uint32_t more) {
    if (handle == CHX_NO_EXTENT) return;
    struct chx_run *run = &arena->runs[handle >> 16];
    if (run->state == CHX_RUN_SLAB)
        run->slab->refs[handle & 0xFFFF] += more;
    else
        run->refs += more;
}

static inline void chx_small_free(struct chx_arena *arena, uint32_t index, uint32_t object) {
    struct chx_run *run = &arena->runs[index];
    struct chx_slab *slab = run->slab;
    uint32_t *head = &arena->classes[run->class];
    if (--slab->refs[object]) return;
    arena->frees++;
    arena->used -= chx_class_lines[run->class] * CHX_LINE;
    if (run->leaving) {
        /* in no list */
    } else if (slab->free == 0) {
        chx_list_push(arena, head, index);
    } else if (*head != index) {
        chx_list_remove(arena, head, index);
        chx_list_push(arena, head, index);
    }
    slab->stack[slab->free++] = (uint16_t)object;
    if (slab->free == slab->total && (run->leaving || run->next != CHX_NONE)) {
        chx_slab_drop(arena, index);
        chx_run_free(arena, index);
    }
}

/* One reference less; the last one frees it. */
static inline void chx_extent_drop(struct chx_arena *arena, uint64_t handle) {
    if (handle == CHX_NO_EXTENT) return;
    uint32_t index = (uint32_t)(handle >> 16);
    struct chx_run *run = &arena->runs[index];
    if (run->state == CHX_RUN_SLAB) {
        chx_small_free(arena, index, (uint32_t)(handle & 0xFFFF));
    } else if (--run->refs == 0) {
        arena->frees++;
        arena->used -= (uint64_t)run->pages * CHX_PAGE;
        chx_run_free(arena, index);
    }
}

#endif
