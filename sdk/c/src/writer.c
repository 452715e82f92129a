/* Writes CBOR, on libcbor's encoders: the shortest form of each item; floats are double. */
#include <cbor.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "values.h"

#define HEAD_MAX 9u

static uint8_t *room_for(chx_writer *writer, size_t more) {
    if (writer->failed) return NULL;
    if (more > SIZE_MAX / 4 - writer->size) {
        writer->failed = true;
        return NULL;
    }
    if (writer->size + more > writer->room) {
        size_t room = writer->room ? writer->room : 128;
        while (room < writer->size + more) room *= 2;
        uint8_t *data = realloc(writer->data, room);
        if (!data) {
            writer->failed = true;
            return NULL;
        }
        writer->data = data;
        writer->room = room;
    }
    return writer->data + writer->size;
}

void chx_write_raw(chx_writer *writer, const void *data, size_t size) {
    uint8_t *to = room_for(writer, size);
    if (!to || !size) return;
    memcpy(to, data, size);
    writer->size += size;
}

#define WRITE(writer, call)                                    \
    do {                                                       \
        uint8_t *to = room_for(writer, HEAD_MAX);              \
        if (to) (writer)->size += (call);                      \
    } while (0)

void chx_write_null(chx_writer *writer) { WRITE(writer, cbor_encode_null(to, HEAD_MAX)); }
void chx_write_bool(chx_writer *writer, bool value) { WRITE(writer, cbor_encode_bool(value, to, HEAD_MAX)); }
void chx_write_count(chx_writer *writer, uint64_t value) { WRITE(writer, cbor_encode_uint(value, to, HEAD_MAX)); }
void chx_write_below(chx_writer *writer, uint64_t count) { WRITE(writer, cbor_encode_negint(count, to, HEAD_MAX)); }
void chx_write_list(chx_writer *writer, size_t entries) { WRITE(writer, cbor_encode_array_start(entries, to, HEAD_MAX)); }
void chx_write_map(chx_writer *writer, size_t entries) { WRITE(writer, cbor_encode_map_start(entries, to, HEAD_MAX)); }

/* NaN and infinities are as short as they can be. */
void chx_write_float(chx_writer *writer, double value) {
    if (isfinite(value))
        WRITE(writer, cbor_encode_double(value, to, HEAD_MAX));
    else
        WRITE(writer, cbor_encode_half(isnan(value) ? NAN : value > 0 ? INFINITY : -INFINITY, to, HEAD_MAX));
}

void chx_write_int(chx_writer *writer, int64_t value) {
    if (value < 0)
        chx_write_below(writer, (uint64_t)(-1 - value));
    else
        chx_write_count(writer, (uint64_t)value);
}

void chx_write_text_of(chx_writer *writer, const char *text, size_t size) {
    WRITE(writer, cbor_encode_string_start(size, to, HEAD_MAX));
    chx_write_raw(writer, text, size);
}

void chx_write_text(chx_writer *writer, const char *text) { chx_write_text_of(writer, text, strlen(text)); }

void chx_write_bytes(chx_writer *writer, const void *data, size_t size) {
    WRITE(writer, cbor_encode_bytestring_start(size, to, HEAD_MAX));
    chx_write_raw(writer, data, size);
}

void chx_pair_text(chx_writer *writer, const char *key, const char *text) {
    chx_write_text(writer, key);
    chx_write_text(writer, text);
}

void chx_pair_count(chx_writer *writer, const char *key, uint64_t count) {
    chx_write_text(writer, key);
    chx_write_count(writer, count);
}

const uint8_t *chx_written(const chx_writer *writer) { return writer->failed ? NULL : writer->data; }

void chx_free_writer(chx_writer *writer) {
    free(writer->data);
    *writer = (chx_writer){0};
}
