/* Any bytes: what is accepted is written again and means the same; nothing else is believed. For libFuzzer, and with
 * -DALONE a program that makes its own bytes, from frames that are sound. */
#include <chronetix.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static void insist(bool holds, const char *what) {
    if (holds) return;
    fprintf(stderr, "%s\n", what);
    abort();
}

static uint64_t walk(const chx_value *value, unsigned depth) {
    uint64_t seen = 1;
    insist(depth <= 64, "too deep");
    const chx_value *key = NULL;
    for (size_t i = 0; chx_type_of(value) == CHX_LIST && i < chx_size_of(value); i++) seen += walk(chx_at(value, i), depth + 1);
    for (size_t i = 0; chx_type_of(value) == CHX_MAP && i < chx_size_of(value); i++) {
        const chx_value *entry = chx_entry(value, i, &key);
        insist(chx_type_of(key) == CHX_TEXT, "a key is no text");
        if (strlen(chx_text(key, "")) == chx_size_of(key)) insist(chx_get(value, chx_text(key, "")) == entry, "a key is not found");
        seen += walk(entry, depth + 1);
    }
    if (chx_type_of(value) == CHX_TEXT) insist(chx_text(value, NULL)[chx_size_of(value)] == 0, "a text does not end");
    return seen;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char why[64] = "";
    const chx_value *value = chx_decode(data, size, why, sizeof why);
    insist(value != NULL || *why, "a refusal without a reason");
    if (!value) return 0;
    if (size < 4096) walk(value, 0);
    chx_writer again = {0};
    chx_write_value(&again, value);
    const chx_value *other = chx_decode(chx_written(&again), again.size, why, sizeof why);
    insist(other != NULL, "what was written is refused");
    chx_writer third = {0};
    chx_write_value(&third, other);
    insist(third.size == again.size && memcmp(third.data, again.data, third.size) == 0, "it means something else");
    chx_free_writer(&again);
    chx_free_writer(&third);
    chx_free_value(value);
    chx_free_value(other);
    return 0;
}

#ifdef ALONE
/* Arguments: rounds, seed. Frames on stdin (u32 length, bytes) are changed at random. */
int main(int count, char **arguments) {
    static uint8_t sound[1 << 20];
    size_t size = fread(sound, 1, sizeof sound, stdin);
    long rounds = count > 1 ? atol(arguments[1]) : 1000;
    srand(count > 2 ? (unsigned)atoi(arguments[2]) : 1);
    for (long round = 0; round < rounds; round++) {
        for (size_t at = 0; at + 4 <= size;) {
            size_t length = (size_t)sound[at] << 24 | (size_t)sound[at + 1] << 16 | (size_t)sound[at + 2] << 8 | sound[at + 3];
            at += 4;
            uint8_t *copy = malloc(length + 1);
            if (!copy) return 1;
            memcpy(copy, sound + at, length);
            for (int i = rand() % 4; i > 0 && length; i--) copy[(size_t)rand() % length] = (uint8_t)rand();
            LLVMFuzzerTestOneInput(copy, length ? length - (size_t)(rand() % 2) : 0);
            free(copy);
            at += length;
        }
    }
    return 0;
}
#endif
