/* libchronetix: a Chronetix worker in C.
 *
 * A worker is one node of a flow: the daemon starts its process (artifact kind Process), or it attaches itself. It takes
 * frames from its inputs, sends frames to its outputs, and exchanges messages on the event bus.
 *
 * There are two ways to write one:
 *
 *   callbacks           chx_run(&plugin, state) in main(); see struct chx_plugin
 *   a loop of one's own chx_worker_inherit(), then chx_next() again and again; chx_worker_fd() is the one descriptor
 *                       that is readable when chx_next() has something to do, for poll, epoll or an event library
 *
 * Rules:
 *  - A worker and everything of it belongs to one thread at a time. The library has no state but the worker, and
 *    starts no thread unless the flow has on_daemon_loss: survive; then there is one, which blocks all signals and takes
 *    from the pipes of stdout and stderr while no daemon reads them. In a child made by fork() a worker is not to be used.
 *  - What a function returns: 0 or more on success; CHX_AGAIN, CHX_GONE or CHX_FAILED; or a negated code of the error
 *    catalogue (chronetix_errors.h). After a negative result chx_error() has a sentence.
 *  - The library answers the daemon's pings, and maps memory that its producers add, while it is called. A callback
 *    that computes for a long time holds both up.
 *  - Data that a frame or an event points to is the library's, and is only read. It may lie in shared memory that its
 *    producer writes: what must not change while it is checked has to be copied first.
 *  - Structures are made with designated initialisers; what is left out is 0 and means "by default".
 *
 * Times are nanoseconds of CLOCK_MONOTONIC, unless said otherwise. Link with -lchronetix (pkg-config chronetix).
 */
#ifndef CHRONETIX_H
#define CHRONETIX_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "chronetix_errors.h"

#ifdef __cplusplus
extern "C" {
#endif

#define CHRONETIX_VERSION "0.1.0"
#define CHX_PROTOCOL 1 /* version of protocol/PROTOCOL.md */

#if defined(__GNUC__)
#define CHX_API __attribute__((visibility("default")))
#define CHX_PRINTF(text, first) __attribute__((format(printf, text, first)))
#else
#define CHX_API
#define CHX_PRINTF(text, first)
#endif

/* Results that are no errors of the catalogue. */
enum {
    CHX_DONE = 1,    /* of a `produce` callback: there are no more items */
    CHX_AGAIN = -1,  /* no credit or no room within the time; nothing was sent */
    CHX_GONE = -2,   /* no consumer is left: a node that only produces for it ends */
    CHX_FAILED = -3, /* the worker's own code has failed: chx_fail() has said how */
};

#define CHX_FOREVER INT64_C(-1) /* as a timeout */

typedef struct chx_worker chx_worker;

/* ---- values: CBOR, strictly ------------------------------------------------------------------------------------- */

/* A decoded value. It belongs to what it was read from. All functions take NULL and then find nothing. */
typedef struct chx_value chx_value;

enum chx_type { CHX_NULL, CHX_BOOL, CHX_INT, CHX_FLOAT, CHX_TEXT, CHX_BYTES, CHX_LIST, CHX_MAP };

/* NULL for what is not there; else one of chx_type. */
CHX_API enum chx_type chx_type_of(const chx_value *value);
/* Entries of a map or a list, bytes of a text or byte string, else 0. */
CHX_API size_t chx_size_of(const chx_value *value);
CHX_API const chx_value *chx_get(const chx_value *map, const char *key);
CHX_API const chx_value *chx_at(const chx_value *list, size_t index);
/* Entry `index` of a map: its key (also a value), and what it stands for. */
CHX_API const chx_value *chx_entry(const chx_value *map, size_t index, const chx_value **key);
/* The value, or `otherwise` if it is of another type or does not fit. Integers are accepted as numbers. */
CHX_API bool chx_bool(const chx_value *value, bool otherwise);
CHX_API int64_t chx_int(const chx_value *value, int64_t otherwise);
CHX_API double chx_number(const chx_value *value, double otherwise);
/* Text and bytes end with a zero byte that does not count; they may contain others. */
CHX_API const char *chx_text(const chx_value *value, const char *otherwise);
CHX_API const uint8_t *chx_bytes(const chx_value *value);

/* Decodes `size` bytes that hold exactly one item, by the rules of PROTOCOL.md (definite lengths, text keys, none twice,
 * no tags, at most 64 containers inside each other, at most 1048576 items). The value is freed by chx_free_value(). NULL,
 * and a sentence in `why` (of `room` bytes; may be NULL), when it breaks a rule or memory is exhausted. */
CHX_API const chx_value *chx_decode(const void *data, size_t size, char *why, size_t room);
CHX_API void chx_free_value(const chx_value *decoded);

/* Writes CBOR into memory that grows. Begin with {0}; maps and lists are told how many entries follow. What fails is
 * noted in `failed`: chx_written() is then NULL. */
typedef struct chx_writer {
    uint8_t *data;
    size_t size, room;
    bool failed;
} chx_writer;

CHX_API void chx_write_null(chx_writer *writer);
CHX_API void chx_write_bool(chx_writer *writer, bool value);
CHX_API void chx_write_int(chx_writer *writer, int64_t value);
CHX_API void chx_write_count(chx_writer *writer, uint64_t value);
CHX_API void chx_write_float(chx_writer *writer, double value);
CHX_API void chx_write_text(chx_writer *writer, const char *text);
CHX_API void chx_write_text_of(chx_writer *writer, const char *text, size_t size);
CHX_API void chx_write_bytes(chx_writer *writer, const void *data, size_t size);
CHX_API void chx_write_list(chx_writer *writer, size_t entries);
CHX_API void chx_write_map(chx_writer *writer, size_t entries);
CHX_API void chx_write_value(chx_writer *writer, const chx_value *value);
CHX_API const uint8_t *chx_written(const chx_writer *writer);
CHX_API void chx_free_writer(chx_writer *writer);

/* ---- a worker's life -------------------------------------------------------------------------------------------- */

/* Be the worker that the daemon has started: says hello on the socket that CHRONETIX_FD names, and waits for the
 * configuration. The variable is removed from the environment. `*worker` is set, also on failure unless memory is
 * exhausted, so that chx_error() can tell; it is freed by chx_worker_close(). */
CHX_API int chx_worker_inherit(chx_worker **worker);
/* Frees everything. A worker that has not finished leaves its routes as a death would. NULL is accepted. */
CHX_API void chx_worker_close(chx_worker *worker);

/* The one descriptor to poll for reading, once chx_next() has returned 0 for a timeout of 0. The worker's for good. */
CHX_API int chx_worker_fd(const chx_worker *worker);
/* What the last negative result meant. Never NULL. */
CHX_API const char *chx_error(const chx_worker *worker);
/* What main() returns after this result: 0, 70 if the daemon is gone, 1 for any other failure. */
CHX_API int chx_exit_code(int result);
/* The name of a code of the catalogue, as "route-detached"; NULL for none. A negated code is accepted. */
CHX_API const char *chx_error_name(int code);

CHX_API const char *chx_flow(const chx_worker *worker);
CHX_API const char *chx_node(const chx_worker *worker);
/* The message `configure`, with everything that the flow says of this node. */
CHX_API const chx_value *chx_config(const chx_worker *worker);
CHX_API const chx_value *chx_params(const chx_worker *worker);
/* Of a worker that replaces another one: the result that it left. Once CHX_START has come. */
CHX_API const chx_value *chx_handover(const chx_worker *worker);
/* Of a source: the number of the last item that its predecessors have sent on all outputs; 0 at first. The next item
 * that is sent has the number behind it. */
CHX_API uint64_t chx_resume_after(const chx_worker *worker);
/* Whether it was told to stop: CHX_END follows, or has come. */
CHX_API bool chx_stopping(const chx_worker *worker);

/* One end of a route. Valid until the next call of chx_next(). */
typedef struct chx_route {
    const char *route;        /* its id */
    const char *peer;         /* the node at the other end */
    const char *topic;
    const char *content_type;
    const char *policy;       /* block, drop_newest or latest */
    uint32_t credits, used;   /* of an output: frames sent and not yet returned, and promised to loans */
    bool high;                /* of an output: its watermark is reached */
    bool open;                /* it takes or may bring frames */
} chx_route;

CHX_API size_t chx_inputs(const chx_worker *worker);
CHX_API size_t chx_outputs(const chx_worker *worker);
CHX_API int chx_input(const chx_worker *worker, size_t index, chx_route *route);
CHX_API int chx_output(const chx_worker *worker, size_t index, chx_route *route);

/* ---- what comes ------------------------------------------------------------------------------------------------- */

/* A frame that was taken. It costs its producer a credit until it is released. */
typedef struct chx_frame {
    const void *data;
    size_t size;
    const char *route, *peer, *content_type;
    uint64_t seq;                 /* grows on its route; leaves numbers out */
    uint64_t time_ns;             /* when it was committed */
    uint64_t deadline_ns;         /* when it is due; 0: whenever */
    uint64_t trace, input_seq;    /* as its sender set them */
    uint32_t schema;
    bool redelivered;             /* it may be a duplicate */
    const void *meta;             /* one map in CBOR, or NULL */
    size_t meta_size;
    int64_t stamp_ns;             /* the sender's own time; 0: none */
    void *stage, *copy;           /* the library's */
    uint64_t stamp;               /* the library's */
} chx_frame;

typedef struct chx_tick {
    const char *id;
    uint64_t sequence, due_ns, missed;
} chx_tick;

/* A message of the event bus, or the end of a request. Valid until the next call of chx_next(). */
typedef struct chx_message {
    const char *topic;
    const char *content_type;
    const void *data;
    size_t size;
    const char *corr_id;       /* of a request that expects chx_reply(); else NULL */
    const chx_value *envelope; /* all that came with it; NULL of the end of a request */
    uint64_t request;          /* of the end of a request: what chx_request() has returned */
    const char *failure;       /* of the end of a request: NULL, or timeout, no-subscriber, peer-gone */
} chx_message;

enum chx_event_kind {
    CHX_NOTHING,  /* the time is up */
    CHX_START,    /* all nodes are ready. The next call of chx_next() says that this one has started */
    CHX_FRAME,    /* `frame`, until chx_release() */
    CHX_TICK,     /* `tick`: a timer was due */
    CHX_MESSAGE,  /* `message`: of a topic that is subscribed to */
    CHX_REPLY,    /* `message`: a request has ended */
    CHX_ROOM,     /* a send that had returned CHX_AGAIN may succeed now */
    CHX_END,      /* no frame will come any more, or the node is to stop: send what is left, then chx_finish() */
};

typedef struct chx_event {
    enum chx_event_kind kind;
    chx_frame frame;
    chx_tick tick;
    chx_message message;
} chx_event;

/* Waits at most `timeout_ns` (0: not at all; CHX_FOREVER) for the next event. Its kind, or an error. */
CHX_API int chx_next(chx_worker *worker, int64_t timeout_ns, chx_event *event);
/* Gives a frame back. Once for each frame, in any order; what points to it is void then. */
CHX_API void chx_release(chx_worker *worker, const chx_frame *frame);

/* The end of a node that has done its work: closes its outputs, and tells the daemon the result, which is `size` bytes
 * that hold one CBOR value (NULL: none). Then the process exits with 0. */
CHX_API int chx_finish(chx_worker *worker, const void *result, size_t size);
/* The end of a node that cannot go on. `phase` is one of load, init, start, frame, tick, message, source, stop, wiring
 * (NULL: wiring before the node has started, else frame); `error` names the kind of error (NULL: "Failed"). Then the
 * process exits with the result, which is not 0. */
CHX_API int chx_fault(chx_worker *worker, const char *phase, const char *error, const char *message);

/* ---- what is sent ----------------------------------------------------------------------------------------------- */

/* How a frame is sent. NULL or {0}: to every output, waiting for ever. */
typedef struct chx_how {
    const char *to;         /* a node, a route or a topic; NULL: every output */
    const chx_frame *from;  /* the frame that it is made of: its number, deadline and mark are carried on */
    bool may_not_wait;      /* CHX_AGAIN at once; else it waits up to limit_ns */
    int64_t limit_ns;       /* 0: for ever */
    uint64_t deadline_ns, trace;
    uint32_t schema;
    const void *meta;       /* one map in CBOR */
    size_t meta_size;
    int64_t stamp_ns;       /* a time of the sender's own */
} chx_how;

/* Sends `size` bytes, with one copy whatever the number of outputs. 0; CHX_AGAIN; CHX_GONE; or an error. A route whose
 * policy lets it drop the frame does so and counts it. */
CHX_API int chx_send(chx_worker *worker, const void *data, size_t size, const chx_how *how);

/* Memory for a frame that is filled in place. */
typedef struct chx_loan {
    void *data;
    size_t size;
    void *claim; /* the library's; NULL when it is over */
} chx_loan;

/* Reserves `size` bytes, and a credit of each output: committing never waits. Results as chx_send(). */
CHX_API int chx_reserve(chx_worker *worker, size_t size, const chx_how *how, chx_loan *loan);
/* Sends the first `size` bytes of the loan, which is over then. Metadata are copied behind them and need no room in it
 * if chx_reserve() was told of them. */
CHX_API int chx_commit(chx_worker *worker, chx_loan *loan, size_t size, const chx_how *how);
CHX_API void chx_cancel(chx_worker *worker, chx_loan *loan);

/* ---- the event bus, logs ---------------------------------------------------------------------------------------- */

typedef struct chx_envelope {
    const char *topic;
    const char *content_type; /* NULL: application/json */
    const char *schema_ver;   /* NULL: v1 */
    const char *dst, *trace;
    uint64_t deadline_ns;     /* Unix time; 0: none */
    bool has_priority;
    uint8_t priority;         /* 0 to 7; 4 without has_priority */
} chx_envelope;

CHX_API int chx_publish(chx_worker *worker, const chx_envelope *envelope, const void *data, size_t size);
CHX_API int chx_subscribe(chx_worker *worker, const char *topic);
CHX_API int chx_unsubscribe(chx_worker *worker, const char *topic);
/* Asks one subscriber of the topic. CHX_REPLY brings the end, exactly once; `*request` tells which. */
CHX_API int chx_request(chx_worker *worker, const chx_envelope *envelope, const void *data, size_t size,
                        int64_t timeout_ns, uint64_t *request);
/* Waits for the end of a request; other events wait meanwhile. `answer` is valid until the next call of chx_next(). */
CHX_API int chx_await(chx_worker *worker, uint64_t request, chx_message *answer);
/* Answers a message with a corr_id, once. */
CHX_API int chx_reply(chx_worker *worker, const chx_message *message, const void *data, size_t size,
                      const char *content_type);
/* `level` is debug, info, warning, error or critical. */
CHX_API int chx_log(chx_worker *worker, const char *level, const char *format, ...) CHX_PRINTF(3, 4);

/* ---- callbacks -------------------------------------------------------------------------------------------------- */

/* All may be NULL. Each returns 0, or what a function of the library has returned, or CHX_FAILED after chx_fail(): then
 * the node ends with a fault. CHX_GONE ends it without one: nobody wants what it makes. */
typedef struct chx_plugin {
    int (*init)(chx_worker *worker, void *state);  /* before any route is there */
    int (*start)(chx_worker *worker, void *state); /* all nodes are ready */
    int (*produce)(chx_worker *worker, void *state); /* of a source, again and again: sends an item; CHX_DONE at the end */
    int (*frame)(chx_worker *worker, const chx_frame *frame, void *state); /* released afterwards, unless kept */
    int (*tick)(chx_worker *worker, const chx_tick *tick, void *state);
    int (*message)(chx_worker *worker, const chx_message *message, void *state);
    int (*stop)(chx_worker *worker, void *state); /* may still send, and may set the result by chx_set_result() */
} chx_plugin;

/* chx_worker_inherit(), chx_worker_run(), chx_worker_close(): returns what main() returns. Errors go to stderr, too.
 * SIGPIPE is ignored from then on, unless the program has a handler: whoever reads stdout may end before the worker. A
 * program that does not call chx_run() sees to that itself. */
CHX_API int chx_run(const chx_plugin *plugin, void *state);
/* Runs to the node's end: 0 finished, 1 failed, 70 the daemon is gone. */
CHX_API int chx_worker_run(chx_worker *worker, const chx_plugin *plugin, void *state);
/* Notes why a callback fails; returns CHX_FAILED. */
CHX_API int chx_fail(chx_worker *worker, const char *format, ...) CHX_PRINTF(2, 3);
/* Within `frame`: it stays the plugin's, as `mine`, until chx_release(). */
CHX_API void chx_keep(chx_worker *worker, const chx_frame *frame, chx_frame *mine);
/* The result that chx_worker_run() finishes with: `size` bytes that hold one CBOR value; copied. */
CHX_API int chx_set_result(chx_worker *worker, const void *cbor, size_t size);

#ifdef __cplusplus
}
#endif

#endif
