/* Reads CBOR by the strict rules of PROTOCOL.md, on libcbor's streaming decoder.
 *
 * libcbor decodes one head at a time and allocates nothing; the rules are checked here, item by item, before anything
 * that an item claims is believed. The result is one flat array: a container's entries follow it, and `span` leads to
 * what is behind them. Nothing is recursive, so no nesting costs stack. The values point into one copy of the bytes, in
 * which a zero byte is put behind each text once everything is read.
 */
#include "values.h"

#include <cbor.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define DEPTH_MAX 64u
#define ITEMS_MAX 1048576u
#define PAIRWISE 16u /* keys up to which each is compared with each; more are sorted */

struct chx_value {
    uint8_t type; /* enum chx_type */
    uint8_t negative, truth;
    uint32_t span; /* this value and all that is in it */
    uint64_t count; /* entries, bytes, or the number: of a negative one -1 - n */
    union {
        double number;
        const uint8_t *data;
    } as;
};

struct document {
    uint8_t *bytes;
    size_t size;
    struct chx_value *values;
    uint32_t count, room;
    char *why;
    size_t why_room;
};

static int refuse(const struct document *document, const char *reason) {
    if (document->why_room) snprintf(document->why, document->why_room, "%s", reason);
    return -1;
}

/* ---- one head, by libcbor --------------------------------------------------------------------------------------- */

struct head {
    struct chx_value value;
    const char *refused;
};

static void head_count(void *context, uint64_t value) {
    struct head *head = context;
    head->value.type = CHX_INT;
    head->value.count = value;
}
static void head_count8(void *context, uint8_t value) { head_count(context, value); }
static void head_count16(void *context, uint16_t value) { head_count(context, value); }
static void head_count32(void *context, uint32_t value) { head_count(context, value); }
static void head_negative(void *context, uint64_t value) {
    head_count(context, value);
    ((struct head *)context)->value.negative = 1;
}
static void head_negative8(void *context, uint8_t value) { head_negative(context, value); }
static void head_negative16(void *context, uint16_t value) { head_negative(context, value); }
static void head_negative32(void *context, uint32_t value) { head_negative(context, value); }
static void head_data(void *context, cbor_data data, size_t size, enum chx_type type) {
    struct head *head = context;
    head->value.type = (uint8_t)type;
    head->value.count = size;
    head->value.as.data = data;
}
static void head_bytes(void *context, cbor_data data, size_t size) { head_data(context, data, size, CHX_BYTES); }
static void head_text(void *context, cbor_data data, size_t size) { head_data(context, data, size, CHX_TEXT); }
static void head_list(void *context, size_t entries) { head_data(context, NULL, entries, CHX_LIST); }
static void head_map(void *context, size_t entries) { head_data(context, NULL, entries, CHX_MAP); }
static void head_double(void *context, double value) {
    struct head *head = context;
    head->value.type = CHX_FLOAT;
    head->value.as.number = value;
}
static void head_float(void *context, float value) { head_double(context, (double)value); }
static void head_null(void *context) { ((struct head *)context)->value.type = CHX_NULL; }
static void head_bool(void *context, bool value) {
    struct head *head = context;
    head->value.type = CHX_BOOL;
    head->value.truth = value;
}
static void head_undefined(void *context) { ((struct head *)context)->refused = "it has an undefined value"; }
static void head_indefinite(void *context) { ((struct head *)context)->refused = "it has a length that is not definite"; }
static void head_tag(void *context, uint64_t value) {
    (void)value;
    ((struct head *)context)->refused = "it has a tag";
}

static const struct cbor_callbacks heads = {
    .uint8 = head_count8,
    .uint16 = head_count16,
    .uint32 = head_count32,
    .uint64 = head_count,
    .negint8 = head_negative8,
    .negint16 = head_negative16,
    .negint32 = head_negative32,
    .negint64 = head_negative,
    .byte_string_start = head_indefinite,
    .byte_string = head_bytes,
    .string = head_text,
    .string_start = head_indefinite,
    .indef_array_start = head_indefinite,
    .array_start = head_list,
    .indef_map_start = head_indefinite,
    .map_start = head_map,
    .tag = head_tag,
    .float2 = head_float,
    .float4 = head_float,
    .float8 = head_double,
    .undefined = head_undefined,
    .null = head_null,
    .boolean = head_bool,
    .indef_break = head_indefinite,
};

/* ---- rules ------------------------------------------------------------------------------------------------------ */

/* Bytes of the character at `at`, `left` bytes before the end; 0: there is none. RFC 3629: no overlong forms, no
 * surrogates, at most U+10FFFF. */
static unsigned character(const uint8_t *at, uint64_t left) {
    uint8_t lead = at[0];
    if (lead < 0x80) return 1;
    unsigned size = lead >= 0xF0 ? 4 : lead >= 0xE0 ? 3 : 2;
    if (lead < 0xC2 || lead > 0xF4 || left < size) return 0;
    uint8_t low = 0x80, high = 0xBF;
    if (lead == 0xE0) low = 0xA0;
    if (lead == 0xED) high = 0x9F;
    if (lead == 0xF0) low = 0x90;
    if (lead == 0xF4) high = 0x8F;
    if (at[1] < low || at[1] > high) return 0;
    for (unsigned i = 2; i < size; i++)
        if ((at[i] & 0xC0) != 0x80) return 0;
    return size;
}

static bool is_utf8(const uint8_t *at, uint64_t size) {
    for (uint64_t left = size; left;) {
        unsigned step = character(at, left);
        if (!step) return false;
        at += step;
        left -= step;
    }
    return true;
}

void text_clean(char *text) {
    for (uint64_t left = strlen(text); left;) {
        unsigned step = character((const uint8_t *)text, left);
        if (!step) *text = '?';
        if (!step) step = 1;
        text += step;
        left -= step;
    }
}

static int key_order(const void *left, const void *right) {
    const struct chx_value *a = *(const struct chx_value *const *)left, *b = *(const struct chx_value *const *)right;
    if (a->count != b->count) return a->count < b->count ? -1 : 1;
    return memcmp(a->as.data, b->as.data, a->count);
}

static const struct chx_value *behind(const struct chx_value *value) { return value + value->span; }

/* Whether no two keys of this map are the same. */
static int keys_differ(const struct document *document, const struct chx_value *map) {
    const struct chx_value *few[PAIRWISE], **keys = few;
    size_t count = map->count;
    if (count < 2) return 0;
    if (count > PAIRWISE) keys = malloc(count * sizeof(*keys));
    if (!keys) return refuse(document, "there is no memory for its keys");
    const struct chx_value *key = map + 1;
    for (size_t i = 0; i < count; i++, key = behind(behind(key))) keys[i] = key;
    if (count > PAIRWISE) qsort(keys, count, sizeof(*keys), key_order);
    int same = 0;
    for (size_t i = 1; i < count && !same; i++)
        for (size_t j = count > PAIRWISE ? i - 1 : 0; j < i && !same; j++) same = key_order(&keys[i], &keys[j]) == 0;
    if (keys != few) free(keys);
    return same ? refuse(document, "a map has a key twice") : 0;
}

struct level {
    uint32_t value;   /* the container's index */
    uint64_t missing; /* entries that are still to come, keys counted */
    uint8_t map, at_key;
};

static int push(struct document *document, const struct chx_value *value) {
    if (document->count == document->room) {
        uint32_t room = document->room ? document->room * 2 : 16;
        struct chx_value *values = realloc(document->values, room * sizeof *values);
        if (!values) return refuse(document, "there is no memory for its items");
        document->values = values;
        document->room = room;
    }
    document->values[document->count++] = *value;
    return 0;
}

/* Everything that one item must fulfil by itself. */
static int check(const struct document *document, const struct head *head, const struct level *level, size_t left,
                 unsigned depth) {
    const struct chx_value *value = &head->value;
    if (head->refused) return refuse(document, head->refused);
    if (level && level->map && level->at_key && value->type != CHX_TEXT) return refuse(document, "a key is no text");
    if (value->type == CHX_TEXT && !is_utf8(value->as.data, value->count)) return refuse(document, "a text is not UTF-8");
    if (value->type != CHX_LIST && value->type != CHX_MAP) return 0;
    if (value->count > left) return refuse(document, "a container has more entries than bytes follow");
    if (depth >= DEPTH_MAX) return refuse(document, "more than 64 containers are inside each other");
    return 0;
}

static int read_all(struct document *document) {
    struct level levels[DEPTH_MAX];
    unsigned depth = 0;
    size_t at = 0;
    do {
        struct head head = {.value = {.span = 1}};
        struct level *level = depth ? &levels[depth - 1] : NULL;
        struct cbor_decoder_result read =
            cbor_stream_decode(document->bytes + at, document->size - at, &heads, &head);
        if (read.status == CBOR_DECODER_NEDATA) return refuse(document, "it ends in the middle of an item");
        if (read.status != CBOR_DECODER_FINISHED) return refuse(document, "it has a byte that begins no item");
        at += read.read;
        if (check(document, &head, level, document->size - at, depth) != 0) return -1;
        if (document->count == ITEMS_MAX) return refuse(document, "it has more than 1048576 items");
        if (push(document, &head.value) != 0) return -1;
        if (level) {
            level->missing--;
            level->at_key ^= 1;
        }
        if ((head.value.type == CHX_LIST || head.value.type == CHX_MAP) && head.value.count) {
            int map = head.value.type == CHX_MAP;
            levels[depth++] = (struct level){document->count - 1, head.value.count * (map ? 2 : 1), (uint8_t)map, 1};
        }
        for (; depth && levels[depth - 1].missing == 0; depth--) {
            struct chx_value *container = &document->values[levels[depth - 1].value];
            container->span = document->count - levels[depth - 1].value;
            if (levels[depth - 1].map && keys_differ(document, container) != 0) return -1;
        }
    } while (depth);
    return at == document->size ? 0 : refuse(document, "bytes follow behind the item");
}

/* ---- the document ----------------------------------------------------------------------------------------------- */

struct owner { /* lies before the values, so that freeing the first one finds it */
    uint8_t *bytes;
    struct chx_value values[];
};

const chx_value *chx_adopt(uint8_t *bytes, size_t size, char *why, size_t room) {
    struct document document = {.bytes = bytes, .size = size, .why = why, .why_room = why ? room : 0};
    struct owner *owner = NULL;
    if (size == 0)
        refuse(&document, "it is empty");
    else if (read_all(&document) == 0)
        owner = malloc(sizeof *owner + document.count * sizeof *document.values);
    if (document.count && !owner && document.why_room && !*why) refuse(&document, "there is no memory for it");
    if (owner) {
        owner->bytes = bytes;
        memcpy(owner->values, document.values, document.count * sizeof *document.values);
        for (uint32_t i = 0; i < document.count; i++) {
            struct chx_value *value = &owner->values[i];
            if (value->type == CHX_TEXT || value->type == CHX_BYTES) bytes[(size_t)(value->as.data - bytes) + value->count] = 0;
        }
    } else {
        free(bytes);
    }
    free(document.values);
    return owner ? owner->values : NULL;
}

const chx_value *chx_decode(const void *data, size_t size, char *why, size_t room) {
    if (why && room) *why = 0;
    uint8_t *bytes = malloc(size + 1);
    if (!bytes) {
        if (why && room) snprintf(why, room, "there is no memory for it");
        return NULL;
    }
    if (size) memcpy(bytes, data, size);
    return chx_adopt(bytes, size, why, room);
}

void chx_free_value(const chx_value *decoded) {
    if (!decoded) return;
    struct owner *owner = (struct owner *)(void *)((uintptr_t)decoded - offsetof(struct owner, values));
    free(owner->bytes);
    free(owner);
}

/* ---- reading it ------------------------------------------------------------------------------------------------- */

enum chx_type chx_type_of(const chx_value *value) { return value ? (enum chx_type)value->type : CHX_NULL; }

size_t chx_size_of(const chx_value *value) { return value && value->type >= CHX_TEXT ? (size_t)value->count : 0; }

const chx_value *chx_get(const chx_value *map, const char *key) {
    if (!map || map->type != CHX_MAP) return NULL;
    size_t size = strlen(key);
    const chx_value *at = map + 1;
    for (uint64_t i = 0; i < map->count; i++, at = behind(behind(at)))
        if (at->count == size && memcmp(at->as.data, key, size) == 0) return at + 1;
    return NULL;
}

const chx_value *chx_at(const chx_value *list, size_t index) {
    if (!list || list->type != CHX_LIST || index >= list->count) return NULL;
    const chx_value *at = list + 1;
    while (index--) at = behind(at);
    return at;
}

const chx_value *chx_entry(const chx_value *map, size_t index, const chx_value **key) {
    if (!map || map->type != CHX_MAP || index >= map->count) return NULL;
    const chx_value *at = map + 1;
    while (index--) at = behind(behind(at));
    if (key) *key = at;
    return at + 1;
}

const chx_value *chx_next_value(const chx_value *value) { return behind(value); }

bool chx_bool(const chx_value *value, bool otherwise) {
    return value && value->type == CHX_BOOL ? value->truth != 0 : otherwise;
}

int64_t chx_int(const chx_value *value, int64_t otherwise) {
    if (!value || value->type != CHX_INT || value->count > INT64_MAX) return otherwise;
    return value->negative ? -1 - (int64_t)value->count : (int64_t)value->count;
}

double chx_number(const chx_value *value, double otherwise) {
    if (value && value->type == CHX_FLOAT) return value->as.number;
    if (!value || value->type != CHX_INT) return otherwise;
    return value->negative ? -1.0 - (double)value->count : (double)value->count;
}

const char *chx_text(const chx_value *value, const char *otherwise) {
    return value && value->type == CHX_TEXT ? (const char *)value->as.data : otherwise;
}

const uint8_t *chx_bytes(const chx_value *value) { return value && value->type == CHX_BYTES ? value->as.data : NULL; }

bool chx_count_of(const chx_value *value, uint64_t *count) {
    if (!value || value->type != CHX_INT || value->negative || value->count > INT64_MAX) return false;
    *count = value->count;
    return true;
}

void chx_write_value(chx_writer *writer, const chx_value *value) {
    if (!value) {
        chx_write_null(writer);
        return;
    }
    for (const chx_value *at = value, *end = behind(value); at < end; at++) {
        switch ((enum chx_type)at->type) {
            case CHX_NULL: chx_write_null(writer); break;
            case CHX_BOOL: chx_write_bool(writer, at->truth != 0); break;
            case CHX_INT:
                if (at->negative)
                    chx_write_below(writer, at->count);
                else
                    chx_write_count(writer, at->count);
                break;
            case CHX_FLOAT: chx_write_float(writer, at->as.number); break;
            case CHX_TEXT: chx_write_text_of(writer, (const char *)at->as.data, (size_t)at->count); break;
            case CHX_BYTES: chx_write_bytes(writer, at->as.data, (size_t)at->count); break;
            case CHX_LIST: chx_write_list(writer, (size_t)at->count); break;
            case CHX_MAP: chx_write_map(writer, (size_t)at->count); break;
        }
    }
}
