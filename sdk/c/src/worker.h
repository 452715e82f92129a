/* What the library's files share: a worker and its parts. No part of it is public.
 *
 *   reader.c writer.c   CBOR
 *   link.c              the control socket: frames with descriptors, both ways
 *   life.c              from the hello to finished; chx_next
 *   facts.c             what a worker's code may ask
 *   control.c ports.c   what the daemon says about memory and routes
 *   extend.c            routes that come, change and go
 *   inputs.c            frames: stages of routes, whose turn it is, release
 *   outputs.c           frames: claim, commit, policies
 *   room.c              the arena grows and shrinks; waiting for credits and room
 *   mailbox.c           events that wait for the worker's code, bounded
 *   bus.c               messages, requests, logs
 *   reattach.c          a daemon that has gone, and the next one
 *   streams.c           stdout and stderr meanwhile
 *   run.c               callbacks
 */
#ifndef CHRONETIX_SDK_WORKER_H
#define CHRONETIX_SDK_WORKER_H

#include <chronetix/chronetix.h>
#include <pthread.h>
#include <sys/types.h>

#include "values.h"

#define FD_VARIABLE "CHRONETIX_FD"
#define FRAME_MAX 16777216u
#define ERROR_ROOM 512u
#define CLASSES 4u

/* ---- link.c ---- */

/* One message and its descriptors. Freed by incoming_free(), which closes those that are left. */
struct incoming {
    const chx_value *message;
    const char *type;
    int *fds;
    uint32_t fd_count;
};

struct link {
    int fd; /* -1: there is none */
    uint64_t max_frame;
    uint8_t *in;
    size_t in_size, in_room;
    int *fds;
    uint32_t fd_count, fd_room;
};

void link_open(struct link *link, int fd);
void link_close(struct link *link);
/* 1: a message; 0: nothing is there; else a negated code, and a sentence in `why`. */
int link_receive(struct link *link, struct incoming *incoming, char why[ERROR_ROOM]);
void incoming_free(struct incoming *incoming);
/* Sends a message made by message_begin(). Waits while the daemon is slow to read. 0, or -1 with errno. */
int link_send(const struct link *link, chx_writer *message, const int *fds, uint32_t fd_count);
/* The beginning of a message: room for its length, a map of `pairs` entries and the type. */
chx_writer message_begin(const char *type, size_t pairs);
chx_writer message_hello(bool returns);
void close_all(const int *fds, uint32_t count);

/* ---- routes ---- */

/* What a port of configure or extend says. Texts are the document's until port_keep(). */
struct port {
    const char *route, *peer, *topic, *content_type, *schema_ver, *policy, *tap_of;
    uint64_t credits, watermark, credit_low, epoch, base_seq, limit_ns, resume;
    uint32_t policy_code;
    uint8_t class;
};

struct names { /* copies of a port's texts, one allocation */
    char *route, *peer, *topic, *content_type, *policy;
};

struct input;

/* A route's time with one RING. */
struct stage {
    struct stage *next;
    struct input *input;
    struct chx_consumer end;
    uint64_t resume; /* what the next daemon has to know */
    uint32_t *segments; /* mapped */
    uint32_t segment_count;
    uint8_t left; /* the input has gone on: drained when its frames are back */
    uint8_t told; /* its fault was told */
};

struct input {
    struct names names;
    struct stage *first, *current; /* oldest that is not drained; the one that is taken from */
    uint8_t class;
    uint8_t concluded; /* nothing follows its last stage */
    uint32_t copies;   /* frames of policy latest that the worker's code has */
};

struct output {
    struct output *next; /* in chx_worker.done */
    struct names names;
    char *tap_of; /* NULL: no tap */
    struct chx_producer end;
    uint64_t resume;
    uint8_t told;   /* its fault was told */
    uint8_t later;  /* frames for it wait until it is linked */
    uint8_t wanted; /* a send waits for it */
    uint8_t gone;   /* a tap that has ended: freed when no loan needs it */
};

/* A frame on its way out: its extent and the outputs that have promised a credit. */
struct claim {
    struct chx_extent extent;
    uint64_t length;
    uint32_t count, room;
    struct output *few[4];
    struct output **outputs;
    void *scratch; /* of a loan that no route takes */
    uint8_t dropped, no_room;
};

/* ---- mailbox.c ---- */

/* An event that waits. */
struct note {
    struct note *next;
    const chx_value *message;
    enum chx_event_kind kind;
    size_t bytes;
    uint64_t request, missed;
    const char *failure; /* static */
};

struct withheld { /* ticks of a timer that found no room; messages of a topic that were dropped */
    struct withheld *next;
    uint64_t count;
    char name[];
};

struct mailbox {
    struct note *first, **last;
    uint32_t count;
    size_t bytes;
    struct withheld *ticks, *dropped;
    uint64_t unreported;
};

void mailbox_init(struct mailbox *mailbox);
void mailbox_free(struct mailbox *mailbox);

/* ---- a worker ---- */

enum life {
    LIFE_NEW,        /* hello is sent */
    LIFE_WELCOME,    /* the daemon has accepted */
    LIFE_CONFIGURED, /* the worker's code may look at the configuration */
    LIFE_STANDBY,    /* another worker of the node still runs */
    LIFE_OFFERED,    /* memory is made and shown */
    LIFE_READY,
    LIFE_START,      /* told to start: CHX_START is due */
    LIFE_STARTING,   /* CHX_START was returned */
    LIFE_STARTED,
    LIFE_FINISHED,
    LIFE_FAILED,
};

enum presence { PRESENT, ABSENT, GREETING, SHOWING };

struct request {
    struct request *next;
    uint64_t id;
    char corr_id[40];
};

struct subscription {
    struct subscription *next;
    bool wanted;
    char topic[];
};

struct extension { /* of outputs, between two frames */
    struct extension *next;
    const chx_value *message;
};

struct kept { /* a message for a daemon that is away */
    struct kept *next;
    chx_writer message;
    uint32_t fd_count;
    int fds[];
};

struct trim {
    uint64_t first, size, peaks[64], due_ns, pause_ns;
    uint32_t count, patience, since_given;
    uint8_t given;
};

struct streams {
    pthread_mutex_t lock; /* of all that follows but `keeper`, `runs` and the descriptors of the keeper */
    int held[2];          /* reading ends of stdout and stderr, -1 without */
    int left[2];          /* bytes that were there at the keeper's last look */
    uint64_t lost[2];
    uint64_t daemons; /* how many there were: which one an event of the keeper is about */
    uint8_t alone;    /* no daemon reads */
    uint8_t ends;
    uint8_t runs;
    pthread_t keeper;
    int epoll, bell;
};

struct chx_worker {
    pid_t owner;
    struct link link;
    enum life life;
    enum presence presence;
    char error[ERROR_ROOM];
    char failure[ERROR_ROOM]; /* chx_fail */

    const chx_value *config, *handover_document, *handover;
    struct chx_bell bell; /* its epoll has the control socket and the timer, too */
    int timer;

    struct chx_arena arena;
    uint8_t has_arena, is_source, draining, leaves, survives, may_accuse;
    struct input **inputs;
    uint32_t input_count, input_room;
    struct output **outputs;
    uint32_t output_count, output_room;
    struct output *done;
    struct extension *extensions, **last_extension;

    uint32_t next_turn[CLASSES], turns_left[CLASSES], deadlines[CLASSES], takes[CLASSES];
    uint64_t leave_left;   /* frames that a worker which leaves may still take */
    uint64_t item, resume_after, budget_ns;
    uint64_t short_at;     /* arena.frees + 1 when a send last ran out of room; 0: it did not */
    uint8_t wants_room;    /* CHX_ROOM is due when a send may succeed */
    uint8_t armed;

    struct chx_spin take_spin, send_spin;
    struct chx_wake wake;
    struct chx_pace pace;
    uint64_t rings, rings_before, commits, commits_before, taken;
    uint64_t looked; /* coarse time of the last look at the control socket */

    struct mailbox mailbox;
    struct note *current;  /* of the event that was returned last */
    struct note *answered; /* by chx_await */
    uint64_t ping_seen, steps;
    struct request *requests;
    uint64_t request_count;
    struct subscription *subscriptions;

    struct kept *kept, **last_kept;
    size_t kept_bytes;
    uint64_t kept_dropped;
    uint64_t pause_ns, retry_ns;
    uid_t daemon_user;
    struct streams streams;
    struct trim trim;

    const chx_frame *handled; /* the frame that a callback has */
    uint8_t kept_frame;
    uint8_t *result;
    size_t result_size;
};

/* Notes a sentence; returns the code negated. */
__attribute__((format(printf, 3, 4))) int fail(chx_worker *worker, int code, const char *format, ...);
int no_memory(chx_worker *worker, const char *what);
/* A status of the data plane's headers for `route`. */
int fail_status(chx_worker *worker, enum chx_status status, const char *route, const struct chx_why *why);

/* A peer has broken a rule of SPEC.md, section 8: the daemon is told, if it takes that. As fail_status. */
int fail_peer(chx_worker *worker, const char *route, uint64_t epoch, const struct chx_why *why);

/* life.c */
/* What the welcome says of the daemon. */
void welcome_read(chx_worker *worker, const chx_value *welcome);
/* Sends a message, or keeps it for the next daemon; `state`: the next daemon learns it from how things stand. The message
 * is freed. */
int tell(chx_worker *worker, chx_writer *message, const int *fds, uint32_t fd_count, bool state);
int tell_simple(chx_worker *worker, const char *type, bool state);
int tell_finished(chx_worker *worker);
/* Handles what the daemon has said, without waiting. */
int hear(chx_worker *worker);
/* What is there between two items of a source: as chx_next without waiting, but nothing is armed. */
int glance(chx_worker *worker, chx_event *event);
/* Sleeps until something may have changed, at most until `deadline` (UINT64_MAX: for ever), and handles it. */
int sleep_until(chx_worker *worker, uint64_t deadline);
uint64_t deadline_of(int64_t timeout_ns);

/* ports.c */
/* The field of a map, `otherwise` if it is not there; false for one of another type. */
bool read_count(const chx_value *map, const char *key, uint64_t otherwise, uint64_t *count);
bool read_text(const chx_value *map, const char *key, const char *otherwise, const char **text);
bool read_choice(const char *text, const char *const *choices, uint32_t count, uint32_t *choice);
int port_read(chx_worker *worker, const chx_value *value, struct port *port);
int names_keep(struct names *names, const struct port *port);

/* control.c, extend.c */
int control_configure(chx_worker *worker);
int control_handle(chx_worker *worker, struct incoming *incoming);
int control_extend(chx_worker *worker, struct incoming *incoming); /* may take the message over */
int control_reroute(chx_worker *worker);
int control_offer(chx_worker *worker, chx_writer *routes, uint32_t rings, uint32_t credits, const int *fds, uint32_t count);

/* inputs.c */
enum scan { SCAN_FOUND = 1, SCAN_NOTHING = 0, SCAN_ENDED = 2, SCAN_TORN = 3 }; /* or a negated code */
struct input *input_find(const chx_worker *worker, const char *route);
struct stage *stage_find(const struct input *input, uint64_t epoch);
int input_append(chx_worker *worker, const struct port *port, struct stage **made);
int input_conclude(chx_worker *worker, const char *route, uint64_t seq);
int inputs_scan(chx_worker *worker, chx_frame *frame);
uint64_t inputs_arm(chx_worker *worker, bool naps);
void inputs_nudge(const chx_worker *worker);
void inputs_disarm(const chx_worker *worker);
bool inputs_nap(const chx_worker *worker);
void inputs_free(chx_worker *worker, bool detach);
void stage_settle(chx_worker *worker, struct input *input);

/* outputs.c */
struct output *output_find(const chx_worker *worker, const char *route);
int output_make(chx_worker *worker, const struct port *port, bool later, struct output **made);
void output_free(struct output *output, bool destroy);
int output_add(chx_worker *worker, struct output *output);
void outputs_sweep(chx_worker *worker);
void outputs_close(chx_worker *worker);
void outputs_free(chx_worker *worker);
int output_gave_up(chx_worker *worker, struct output *output, uint64_t now);

/* room.c */
int room_make(chx_worker *worker, uint64_t length, struct chx_extent *extent); /* 1 found, 0 none, else a code */
void room_reclaim(chx_worker *worker);
int room_claim(chx_worker *worker, int (*attempt)(chx_worker *, const char *, struct claim *), const chx_how *how,
               struct claim *claim);
bool room_waits(chx_worker *worker, bool arm); /* whether a send that was refused would be refused still */
void room_disarm(const chx_worker *worker);
void room_count_sleeps(const chx_worker *worker);
void trim_init(chx_worker *worker);
uint64_t trim_due(chx_worker *worker);
int trim_look(chx_worker *worker);
void timer_set(const chx_worker *worker, uint64_t at_ns);

/* mailbox.c */
int mailbox_put(chx_worker *worker, const chx_value *message, enum chx_event_kind kind);
int mailbox_put_end(chx_worker *worker, const chx_value *message, const struct request *request, const char *failure);
struct note *mailbox_take(struct mailbox *mailbox);
struct note *mailbox_take_end(struct mailbox *mailbox, uint64_t request);
void note_free(struct note *note);
int mailbox_report(chx_worker *worker);
void event_fill(chx_event *event, const struct note *note);

/* bus.c */
int bus_ended(chx_worker *worker, const chx_value *message, const char *failure);
int bus_abandon(chx_worker *worker);
void bus_free(chx_worker *worker);
int bus_tell_subscriptions(chx_worker *worker);

/* reattach.c */
int absent_begin(chx_worker *worker);
int absent_look(chx_worker *worker);
int absent_handle(chx_worker *worker, struct incoming *incoming);
int absent_keep(chx_worker *worker, chx_writer *message, const int *fds, uint32_t fd_count, bool state);
int absent_settle(chx_worker *worker);
void absent_free(chx_worker *worker);

/* streams.c */
void streams_init(struct streams *streams);
/* The daemon behind the socket `daemon` reads them now, and may die from now on. `fds`: what it has given for both, or NULL.
 * 0, or -1 with errno. */
int streams_hold(struct streams *streams, int daemon, const int *fds);
/* No daemon reads. */
void streams_begin(struct streams *streams);
/* Bytes that were taken away and not told yet. */
uint64_t streams_take_lost(struct streams *streams, int which);
void streams_free(struct streams *streams, bool here);

static inline uint64_t min_u64(uint64_t a, uint64_t b) { return a < b ? a : b; }

#endif
