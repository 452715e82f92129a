/* The first line of RING and CREDIT: made once by the writer, checked once by every reader.
 *
 * chx_header_check works on a private copy: the writer may change the page at any time, the copy stays.
 */
#ifndef CHRONETIX_HEADER_H
#define CHRONETIX_HEADER_H

#include <stdio.h>

#include "abi.h"

/* CRC-32 of IEEE 802.3 (reflected, polynomial 0xEDB88320), as zlib's crc32. */
static inline uint32_t chx_crc32(const void *data, size_t length) {
    const uint8_t *byte = data;
    uint32_t crc = 0xFFFFFFFFu;
    for (size_t i = 0; i < length; i++) {
        crc ^= byte[i];
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1u)));
    }
    return ~crc;
}

static inline const char *chx_magic(enum chx_kind kind) { return kind == CHX_KIND_RING ? "CHXRING" : "CHXCRED"; }

static inline const char *chx_kind_name(enum chx_kind kind) { return kind == CHX_KIND_RING ? "ring" : "credit"; }

static inline uint64_t chx_kind_size(enum chx_kind kind, uint32_t slots_log2) {
    return kind == CHX_KIND_RING ? chx_ring_size(slots_log2) : chx_credit_size(slots_log2);
}

/* Fill in magic, abi, kind, slots and crc around the fields the caller has set. */
static inline void chx_header_finish(struct chx_header *header, enum chx_kind kind) {
    memcpy(header->magic, chx_magic(kind), 8);
    header->abi = CHX_ABI;
    header->kind = kind;
    header->slots_log2 = chx_slots_log2(header->credits);
    memset(header->reserved, 0, sizeof header->reserved);
    header->crc = chx_crc32(header, offsetof(struct chx_header, crc));
}

#define CHX_SAY(why, ...) ((void)snprintf((why)->text, sizeof(why)->text, __VA_ARGS__))
#define CHX_REFUSE(why, ...) (CHX_SAY(why, __VA_ARGS__), CHX_FAULT)

/* Whether this private copy is a header of `kind` for a memory of `size` bytes. */
static inline enum chx_status chx_header_check(const struct chx_header *header, enum chx_kind kind, uint64_t size,
                                               struct chx_why *why) {
    const char *name = chx_kind_name(kind);
    if (memcmp(header->magic, chx_magic(kind), 8) != 0) return CHX_REFUSE(why, "not a %s: wrong magic", name);
    if (header->crc != chx_crc32(header, offsetof(struct chx_header, crc)))
        return CHX_REFUSE(why, "%s header: checksum does not match", name);
    if (header->abi != CHX_ABI)
        return CHX_REFUSE(why, "%s header: ABI %u, this side speaks %u", name, header->abi, CHX_ABI);
    if (header->kind != (uint32_t)kind) return CHX_REFUSE(why, "%s header: kind %u", name, header->kind);
    if (header->credits < 1 || header->credits > CHX_CREDITS_MAX)
        return CHX_REFUSE(why, "%s header: %u credits, allowed are 1 to %u", name, header->credits, CHX_CREDITS_MAX);
    if (header->slots_log2 != chx_slots_log2(header->credits))
        return CHX_REFUSE(why, "%s header: 2^%u slots for %u credits", name, header->slots_log2, header->credits);
    if (kind == CHX_KIND_RING) {
        if (header->watermark < 1 || header->watermark > header->credits)
            return CHX_REFUSE(why, "ring header: watermark %u of %u credits", header->watermark, header->credits);
        if (header->credit_low >= header->credits)
            return CHX_REFUSE(why, "ring header: credit_low %u of %u credits", header->credit_low, header->credits);
        if (header->policy > CHX_POLICY_LATEST)
            return CHX_REFUSE(why, "ring header: unknown policy %u", header->policy);
    }
    uint64_t expected = chx_kind_size(kind, header->slots_log2);
    if (size != expected)
        return CHX_REFUSE(why, "%s of %u credits has %llu bytes instead of %llu", name, header->credits,
                          (unsigned long long)size, (unsigned long long)expected);
    return CHX_OK;
}

/* Whether the headers of the two ends of a route agree. */
static inline enum chx_status chx_header_match(const struct chx_header *mine, const struct chx_header *theirs,
                                               struct chx_why *why) {
    if (mine->credits != theirs->credits)
        return CHX_REFUSE(why, "this end was made for %u credits, the other for %u", mine->credits, theirs->credits);
    if (mine->epoch != theirs->epoch)
        return CHX_REFUSE(why, "this end is of epoch %llu, the other of %llu", (unsigned long long)mine->epoch,
                          (unsigned long long)theirs->epoch);
    if (mine->base_seq != theirs->base_seq)
        return CHX_REFUSE(why, "this end starts at frame %llu, the other at %llu", (unsigned long long)mine->base_seq,
                          (unsigned long long)theirs->base_seq);
    return CHX_OK;
}

#endif
