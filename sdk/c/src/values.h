/* What the library's files share of the CBOR layer, beside the public part of it. */
#ifndef CHRONETIX_SDK_CBOR_H
#define CHRONETIX_SDK_CBOR_H

#include "chronetix.h"

/* As chx_decode, of memory that it takes over, also when it fails. There is room for one byte behind `size`. */
const chx_value *chx_adopt(uint8_t *bytes, size_t size, char *why, size_t room);

/* What is behind this value and all that is in it: the next entry of its container, if there is one. */
const chx_value *chx_next_value(const chx_value *value);

/* Whether it is an integer from 0 to 2^63-1, and which. */
bool chx_count_of(const chx_value *value, uint64_t *count);

/* The integer -1 - `count`. */
void chx_write_below(chx_writer *writer, uint64_t count);

/* Bytes that are CBOR already. */
void chx_write_raw(chx_writer *writer, const void *data, size_t size);

/* Puts a question mark in the place of each byte that is not of UTF-8: what the worker's code says may be anything. */
void text_clean(char *text);

/* A key of a map and its value. */
void chx_pair_text(chx_writer *writer, const char *key, const char *text);
void chx_pair_count(chx_writer *writer, const char *key, uint64_t count);

#endif
