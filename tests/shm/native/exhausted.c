/* Every allocation, descriptor and mapping that making, attaching and growing a route needs fails once, each in turn, for
 * every reason: what comes back says so, and nothing stays behind (the sanitizer looks for memory, this program for
 * descriptors, mappings and names). Linked with --wrap for each of the calls.
 */
#include <dirent.h>
#include <stdarg.h>

#include <chronetix/chronetix.h>

static long countdown; /* calls until the one that fails; 0: none */
static int reason;
static const char *failed = "nothing";

static int fails(const char *call) {
    if (countdown == 0 || --countdown) return 0;
    failed = call;
    errno = reason;
    return 1;
}

/* The real call, or the failure. */
#define WRAP(type, call, failure, parameters, arguments)                              \
    type __real_##call parameters;                                                    \
    type __wrap_##call parameters;                                                    \
    type __wrap_##call parameters { return fails(#call) ? failure : __real_##call arguments; }

WRAP(void *, malloc, NULL, (size_t size), (size))
WRAP(void *, calloc, NULL, (size_t count, size_t size), (count, size))
WRAP(void *, realloc, NULL, (void *old, size_t size), (old, size))
WRAP(int, memfd_create, -1, (const char *name, unsigned flags), (name, flags))
WRAP(int, fallocate, -1, (int fd, int mode, off_t from, off_t length), (fd, mode, from, length))
WRAP(void *, mmap, MAP_FAILED, (void *at, size_t size, int protection, int flags, int fd, off_t from),
     (at, size, protection, flags, fd, from))
WRAP(int, eventfd, -1, (unsigned value, int flags), (value, flags))
WRAP(int, epoll_create1, -1, (int flags), (flags))
WRAP(int, epoll_ctl, -1, (int epoll, int what, int fd, struct epoll_event *event), (epoll, what, fd, event))
WRAP(int, socketpair, -1, (int domain, int type, int protocol, int ends[2]), (domain, type, protocol, ends))

int __real_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...);
int __wrap_fcntl(int fd, int command, ...) {
    va_list rest;
    va_start(rest, command);
    long argument = va_arg(rest, long);
    va_end(rest);
    return fails("fcntl") ? -1 : __real_fcntl(fd, command, argument);
}

int __real_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...);
int __wrap_open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    unsigned mode = va_arg(rest, unsigned);
    va_end(rest);
    return fails("open") ? -1 : __real_open(path, flags, mode);
}

static void must(int true, const char *what) {
    if (true) return;
    fprintf(stderr, "not so: %s (%s failed with %s)\n", what, failed, strerror(reason));
    abort();
}

static int open_descriptors(void) {
    DIR *folder = opendir("/proc/self/fd");
    int count = -1; /* its own */
    while (folder && readdir(folder)) count++;
    closedir(folder);
    return count;
}

static int mappings(void) {
    FILE *maps = fopen("/proc/self/maps", "re");
    char line[512];
    int count = 0;
    while (maps && fgets(line, sizeof line, maps)) count += strstr(line, "chronetix") != NULL;
    fclose(maps);
    return count;
}

static int names(void) {
    DIR *folder = opendir(CHX_NAMED_FOLDER);
    char mine[32];
    int count = 0;
    snprintf(mine, sizeof mine, "-%ld-", (long)getpid());
    for (struct dirent *entry; folder && (entry = readdir(folder));) count += strstr(entry->d_name, mine) != NULL;
    closedir(folder);
    return count;
}

/* A failure that was asked for comes back as one that says it; one that was not, not at all. */
static int went(enum chx_status status, const struct chx_why *why) {
    if (status == CHX_OK) return 1;
    must(countdown == 0 && strcmp(failed, "nothing") != 0, "it fails only when something has failed");
    must(status == CHX_NO_MEMORY || status == CHX_SYSTEM || status == CHX_FAULT, "it is a failure");
    if (status == CHX_FAULT) must(why && why->text[0], "a refusal says why");
    if (status == CHX_SYSTEM) must(errno == reason, "errno tells the reason");
    return 0;
}

/* Make both ends, link them, grow, send and take one frame. 1 when all of it went well. */
static int live(void) {
    struct chx_arena arena = {0};
    struct chx_producer p = {.line = -1, .head = CHX_NONE, .ring_map.fd = -1, .credit_map.fd = -1};
    struct chx_consumer c = {.line = -1, .ring_map.fd = -1, .credit_map.fd = -1};
    struct chx_view view = {.ring_map.fd = -1, .credit_map.fd = -1};
    struct chx_header header = {.credits = 8, .watermark = 6, .credit_low = 4};
    struct chx_why why = {""};
    struct chx_extent extent;
    struct chx_taken taken;
    struct chx_tags tags = {0};
    uint32_t index = 1;
    struct chx_bell near, far;
    int line[2] = {-1, -1}, well = chx_bell_init(&near) == 0;
    well = (chx_bell_init(&far) == 0) && well;
    well = well && chx_line_pair(line, 0) == 0;
    if (!well) must(errno == reason, "errno tells");
    well = well && went(chx_arena_init(&arena, 1 << 20, 1 << 16, 0), NULL);
    well = well && went(chx_producer_init(&p, &arena, &header), NULL);
    well = well && went(chx_consumer_init(&c, &header), NULL);
    well = well && went(chx_producer_link(&p, c.credit_map.fd, line[0], &near), &p.why);
    well = well && went(chx_consumer_link(&c, p.ring_map.fd, line[1], &far), &c.why);
    well = well && went(chx_arena_grow(&arena, 200000, &index), NULL);
    for (uint32_t i = 0; well && i <= index; i++)
        well = went(chx_consumer_map(&c, i, arena.segments[i].map.fd), &c.why);
    well = well && went(chx_arena_confirm(&arena, index), NULL);
    well = well && went(chx_view_init(&view, p.ring_map.fd, c.credit_map.fd, &why), &why);
    if (well) {
        enum chx_status status = chx_arena_alloc(&arena, 100, &extent);
        well = status == CHX_NO_MEMORY || status == CHX_WOULD_BLOCK ? 0 : went(status, NULL);
    }
    if (well) {
        chx_producer_commit(&p, &extent, 100, &tags, 1);
        must(chx_consumer_take(&c, &taken) == CHX_OK && taken.length == 100, "the frame comes");
        chx_consumer_return(&c, taken.stamp);
        must(chx_producer_reclaim(&p, 1) == CHX_OK && arena.used == 0, "and comes back");
    }
    chx_view_destroy(&view);
    chx_consumer_destroy(&c);
    chx_producer_destroy(&p);
    chx_arena_destroy(&arena);
    for (int i = 0; i < 2; i++)
        if (line[i] >= 0) close(line[i]);
    chx_bell_destroy(&near);
    chx_bell_destroy(&far);
    return well;
}

int main(void) {
    static const int reasons[] = {ENOMEM, ENOSPC, EMFILE};
    chx_features();
    must(live(), "without failures all goes well");
    int before = open_descriptors(), steps = 0;
    for (int r = 0; r < 3; r++) {
        for (int at = 1;; at++) {
            countdown = at;
            reason = reasons[r];
            failed = "nothing";
            int well = live();
            int reached = countdown == 0;
            countdown = 0;
            must(open_descriptors() == before, "no descriptor is left");
            must(mappings() == 0, "no mapping is left");
            must(names() == 0, "no name is left");
            steps += reached;
            if (!reached) {
                must(well, "nothing failed");
                break;
            }
        }
    }
    printf("%d failures\n", steps);
    return 0;
}
