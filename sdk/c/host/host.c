/* chronetix-dylib-host PLUGIN.so: the worker of a node whose artifact is a shared library.
 *
 * The library is loaded after the hello, so that what is wrong with it is a fault with a reason. Its undefined functions
 * of chronetix.h are bound to this program's. What it does to this process is its own node's affair.
 */
#include <dlfcn.h>
#include <signal.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

#include "chronetix_plugin.h"

#define SYMBOL "chronetix_plugin_v1"
#define SMALLEST offsetof(struct chronetix_plugin_v1, describe)

struct loaded {
    struct chronetix_plugin_v1 table;
    void *state;
};

static int on_init(chx_worker *worker, void *state) {
    struct loaded *loaded = state;
    const char *about = loaded->table.describe ? loaded->table.describe() : NULL;
    if (about) chx_log(worker, "info", "%s", about);
    return loaded->table.init ? loaded->table.init(worker, &loaded->state) : 0;
}

static int on_start(chx_worker *worker, void *state) {
    struct loaded *loaded = state;
    return loaded->table.on_start ? loaded->table.on_start(worker, loaded->state) : 0;
}

static int on_produce(chx_worker *worker, void *state) {
    struct loaded *loaded = state;
    return loaded->table.produce(worker, loaded->state);
}

static int on_frame(chx_worker *worker, const chx_frame *frame, void *state) {
    struct loaded *loaded = state;
    return loaded->table.on_frame ? loaded->table.on_frame(worker, frame, loaded->state) : 0;
}

static int on_tick(chx_worker *worker, const chx_tick *tick, void *state) {
    struct loaded *loaded = state;
    return loaded->table.on_tick ? loaded->table.on_tick(worker, tick, loaded->state) : 0;
}

static int on_message(chx_worker *worker, const chx_message *message, void *state) {
    struct loaded *loaded = state;
    return loaded->table.on_message ? loaded->table.on_message(worker, message, loaded->state) : 0;
}

static int on_stop(chx_worker *worker, void *state) {
    struct loaded *loaded = state;
    return loaded->table.stop ? loaded->table.stop(worker, loaded->state) : 0;
}

/* The library's table, as far as it goes. 0, or -1 and a sentence in `why`. */
static int load(const char *path, struct loaded *loaded, char *why, size_t room) {
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!library) return snprintf(why, room, "%s", dlerror()), -1;
    const struct chronetix_plugin_v1 *table = dlsym(library, SYMBOL);
    if (!table) return snprintf(why, room, "%s exports no " SYMBOL, path), -1;
    if (table->abi != CHRONETIX_PLUGIN_ABI)
        return snprintf(why, room, "%s has a table of ABI %u, this host takes %u", path, table->abi, CHRONETIX_PLUGIN_ABI), -1;
    if (table->size < SMALLEST) return snprintf(why, room, "%s says that its table has %u bytes", path, table->size), -1;
    memcpy(&loaded->table, table, table->size < sizeof loaded->table ? table->size : sizeof loaded->table);
    return 0;
}

int main(int count, char **arguments) {
    struct loaded loaded = {0};
    chx_worker *worker;
    char why[512] = "";
    if (count != 2) {
        fprintf(stderr, "usage: chronetix-dylib-host PLUGIN.so, started by chronetixd\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN); /* whoever reads what the plugin prints may end before it */
    int result = chx_worker_inherit(&worker);
    if (result < 0) {
        fprintf(stderr, "chronetix-dylib-host: %s\n", chx_error(worker));
        chx_worker_close(worker);
        return chx_exit_code(result);
    }
    int code;
    if (load(arguments[1], &loaded, why, sizeof why) != 0) {
        fprintf(stderr, "chronetix-dylib-host: %s\n", why);
        code = chx_fault(worker, "load", "plugin-not-loadable", why);
    } else {
        const chx_plugin plugin = {
            .init = on_init,
            .start = on_start,
            .produce = loaded.table.produce ? on_produce : NULL,
            .frame = on_frame,
            .tick = on_tick,
            .message = on_message,
            .stop = on_stop,
        };
        code = chx_worker_run(worker, &plugin, &loaded);
    }
    chx_worker_close(worker);
    return code;
}
