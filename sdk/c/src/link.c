/* The control socket: a u32 length (big-endian), one CBOR map, and the descriptors that belong to it.
 *
 * What is received is hostile until it is checked: a length is compared with the limit before memory is made for it, a
 * map is read strictly, and a message has exactly the descriptors that PROTOCOL.md gives it. Descriptors are kept in
 * order of arrival; a message takes its own when its frame is complete.
 */
#include <errno.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "worker.h"

#define HEAD 4u
#define CHUNK 65536u
#define RIGHTS 253u /* descriptors that one call of sendmsg takes */
#define WAITING_MAX 4096u

void link_open(struct link *link, int fd) { *link = (struct link){.fd = fd, .max_frame = FRAME_MAX}; }

void close_all(const int *fds, uint32_t count) {
    for (uint32_t i = 0; i < count; i++) close(fds[i]);
}

void link_close(struct link *link) {
    if (link->fd >= 0) close(link->fd);
    close_all(link->fds, link->fd_count);
    free(link->in);
    free(link->fds);
    *link = (struct link){.fd = -1, .max_frame = FRAME_MAX};
}

static int refuse(char why[ERROR_ROOM], int code, const char *reason) {
    snprintf(why, ERROR_ROOM, "%s", reason);
    return -code;
}

/* ---- receiving -------------------------------------------------------------------------------------------------- */

static int keep_fds(struct link *link, struct msghdr *header, char why[ERROR_ROOM]) {
    int broken = header->msg_flags & MSG_CTRUNC;
    for (struct cmsghdr *part = CMSG_FIRSTHDR(header); part; part = CMSG_NXTHDR(header, part)) {
        if (part->cmsg_level != SOL_SOCKET || part->cmsg_type != SCM_RIGHTS) continue;
        uint32_t count = (uint32_t)((part->cmsg_len - CMSG_LEN(0)) / sizeof(int));
        int fds[RIGHTS + 1];
        memcpy(fds, CMSG_DATA(part), count * sizeof(int));
        if (!broken && link->fd_count + count > link->fd_room) {
            uint32_t room = link->fd_count + count + 16;
            int *more = link->fd_count + count > WAITING_MAX ? NULL : realloc(link->fds, room * sizeof *more);
            broken = !more;
            if (more) {
                link->fds = more;
                link->fd_room = room;
            }
        }
        if (broken) {
            close_all(fds, count);
            continue;
        }
        memcpy(link->fds + link->fd_count, fds, count * sizeof(int));
        link->fd_count += count;
    }
    return broken ? refuse(why, CHX_E_MISSING_DESCRIPTORS, "descriptors were lost on the way, or are too many") : 0;
}

static int make_room(struct link *link, size_t more) {
    if (link->in_size + more <= link->in_room) return 0;
    uint8_t *in = realloc(link->in, link->in_size + more);
    if (!in) return -1;
    link->in = in;
    link->in_room = link->in_size + more;
    return 0;
}

/* Reads what is there. 1: something; 0: nothing now; else a negated code. */
static int read_some(struct link *link, char why[ERROR_ROOM]) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * RIGHTS)];
    } control;
    if (make_room(link, CHUNK) != 0) return refuse(why, CHX_E_OUT_OF_MEMORY, "no memory for what the daemon says");
    struct iovec room = {link->in + link->in_size, link->in_room - link->in_size};
    struct msghdr header = {.msg_iov = &room, .msg_iovlen = 1, .msg_control = &control, .msg_controllen = sizeof control};
    ssize_t got;
    do {
        got = recvmsg(link->fd, &header, MSG_DONTWAIT | MSG_CMSG_CLOEXEC);
    } while (got < 0 && errno == EINTR);
    if (got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK)) return 0;
    if (got < 0 && errno != ECONNRESET) return refuse(why, CHX_E_CONNECTION_LOST, strerror(errno));
    int kept = got < 0 ? 0 : keep_fds(link, &header, why);
    if (kept != 0) return kept;
    if (got <= 0) {
        if (got == 0 && link->in_size) return refuse(why, CHX_E_CONNECTION_CUT, "the connection ended in the middle of a frame");
        return refuse(why, CHX_E_CONNECTION_LOST, "the daemon has closed the connection");
    }
    link->in_size += (size_t)got;
    return 1;
}

/* How many descriptors a message to a worker has; -1: it is not as it must be. */
static int64_t fds_of(const char *type, const chx_value *message) {
    if (strcmp(type, "segment") == 0) return 1;
    if (strcmp(type, "reattached") == 0) return 2;
    if (strcmp(type, "link") != 0) return 0;
    const chx_value *inputs = chx_get(message, "inputs");
    int64_t count = 2 * (int64_t)chx_size_of(chx_get(message, "outputs"));
    for (size_t i = 0; i < chx_size_of(inputs); i++) {
        const chx_value *input = chx_at(inputs, i), *segments = chx_get(input, "segments");
        if (chx_type_of(segments) != CHX_LIST) return -1;
        count += 2 + (int64_t)chx_size_of(segments) + chx_bool(chx_get(input, "predecessor"), false);
    }
    return count;
}

static int take_fds(struct link *link, struct incoming *incoming, char why[ERROR_ROOM]) {
    int64_t count = fds_of(incoming->type, incoming->message);
    if (count < 0) return refuse(why, CHX_E_MALFORMED_MESSAGE, "a message of type link lacks segments");
    if (count > (int64_t)link->fd_count) {
        snprintf(why, ERROR_ROOM, "a message of type %.40s needs %lld descriptors, but %u came", incoming->type,
                 (long long)count, link->fd_count);
        return -CHX_E_MISSING_DESCRIPTORS;
    }
    if (count) {
        incoming->fds = malloc((size_t)count * sizeof(int));
        if (!incoming->fds) return refuse(why, CHX_E_OUT_OF_MEMORY, "no memory for descriptors");
        incoming->fd_count = (uint32_t)count;
        memcpy(incoming->fds, link->fds, (size_t)count * sizeof(int));
        link->fd_count -= incoming->fd_count;
        memmove(link->fds, link->fds + count, link->fd_count * sizeof(int));
    }
    if (link->fd_count && link->in_size == 0)
        return refuse(why, CHX_E_UNEXPECTED_DESCRIPTORS, "descriptors came that belong to no message");
    return 1;
}

/* The next complete frame of what was read. As link_receive. */
static int take_frame(struct link *link, struct incoming *incoming, char why[ERROR_ROOM]) {
    if (link->in_size < HEAD) return 0;
    size_t size = (size_t)link->in[0] << 24 | (size_t)link->in[1] << 16 | (size_t)link->in[2] << 8 | link->in[3];
    if (size > link->max_frame) {
        snprintf(why, ERROR_ROOM, "the daemon announced a frame of %zu bytes; at most %llu are accepted", size,
                 (unsigned long long)link->max_frame);
        return -CHX_E_FRAME_TOO_LARGE;
    }
    if (link->in_size < HEAD + size) return 0;
    char reason[128] = "";
    incoming->message = chx_decode(link->in + HEAD, size, reason, sizeof reason);
    link->in_size -= HEAD + size;
    memmove(link->in, link->in + HEAD + size, link->in_size);
    if (!incoming->message) {
        snprintf(why, ERROR_ROOM, "a frame is no strict CBOR: %s", reason);
        return -CHX_E_MALFORMED_CBOR;
    }
    incoming->type = chx_text(chx_get(incoming->message, "type"), NULL);
    if (!incoming->type) return refuse(why, CHX_E_MALFORMED_MESSAGE, "a message has no type");
    return take_fds(link, incoming, why);
}

int link_receive(struct link *link, struct incoming *incoming, char why[ERROR_ROOM]) {
    *incoming = (struct incoming){0};
    for (;;) {
        int got = take_frame(link, incoming, why);
        if (got == 1) return 1;
        if (got == 0) got = read_some(link, why);
        if (got == 1) continue;
        if (got < 0) incoming_free(incoming);
        return got;
    }
}

void incoming_free(struct incoming *incoming) {
    close_all(incoming->fds, incoming->fd_count);
    free(incoming->fds);
    chx_free_value(incoming->message);
    *incoming = (struct incoming){0};
}

/* ---- sending ---------------------------------------------------------------------------------------------------- */

chx_writer message_begin(const char *type, size_t pairs) {
    chx_writer message = {0};
    chx_write_raw(&message, "\0\0\0\0", HEAD);
    chx_write_map(&message, pairs + 1);
    chx_pair_text(&message, "type", type);
    return message;
}

/* `returns`: from a worker that has outlived its daemon. */
chx_writer message_hello(bool returns) {
    chx_writer message = message_begin("hello", 5);
    chx_write_text(&message, "protocol");
    chx_write_list(&message, 1);
    chx_write_count(&message, CHX_PROTOCOL);
    chx_pair_text(&message, "role", "worker");
    chx_pair_text(&message, "software", "libchronetix " CHRONETIX_VERSION);
    chx_write_text(&message, "features");
    chx_write_list(&message, returns ? 3 : 2);
    if (returns) chx_write_text(&message, "reattach");
    chx_write_text(&message, "handover");
    chx_write_text(&message, "accuse");
    chx_pair_count(&message, "pid", (uint64_t)getpid());
    return message;
}

/* One call, which may take only some of the bytes. */
static ssize_t send_some(int fd, const uint8_t *data, size_t size, const int *fds, uint32_t fd_count) {
    union {
        struct cmsghdr align;
        char bytes[CMSG_SPACE(sizeof(int) * RIGHTS)];
    } control;
    struct iovec part = {(void *)(uintptr_t)data, size};
    struct msghdr header = {.msg_iov = &part, .msg_iovlen = 1};
    if (fd_count) {
        memset(&control, 0, sizeof control);
        header.msg_control = &control;
        header.msg_controllen = CMSG_SPACE(sizeof(int) * fd_count);
        struct cmsghdr *rights = CMSG_FIRSTHDR(&header);
        rights->cmsg_level = SOL_SOCKET;
        rights->cmsg_type = SCM_RIGHTS;
        rights->cmsg_len = CMSG_LEN(sizeof(int) * fd_count);
        memcpy(CMSG_DATA(rights), fds, sizeof(int) * fd_count);
    }
    for (;;) {
        ssize_t sent = sendmsg(fd, &header, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (sent >= 0) return sent;
        if (errno == EAGAIN || errno == EWOULDBLOCK) {
            struct pollfd entry = {.fd = fd, .events = POLLOUT};
            if (poll(&entry, 1, -1) < 0 && errno != EINTR) return -1;
        } else if (errno != EINTR) {
            return -1;
        }
    }
}

int link_send(const struct link *link, chx_writer *message, const int *fds, uint32_t fd_count) {
    if (message->failed || message->size - HEAD > link->max_frame) {
        errno = message->failed ? ENOMEM : EMSGSIZE;
        return -1;
    }
    size_t body = message->size - HEAD;
    for (unsigned i = 0; i < HEAD; i++) message->data[i] = (uint8_t)(body >> (24 - 8 * i));
    const uint8_t *at = message->data, *end = at + message->size;
    while (at < end) {
        uint32_t now = fd_count < RIGHTS ? fd_count : RIGHTS;
        size_t size = fd_count > now ? 1 : (size_t)(end - at); /* the next descriptors go with the next byte */
        ssize_t sent = send_some(link->fd, at, size, fds, now);
        if (sent < 0) return -1;
        at += sent;
        fds += now;
        fd_count -= now;
    }
    return 0;
}
