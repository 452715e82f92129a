/* A plugin as a shared library: artifact kind Dylib, uri file://….so.
 *
 * The library exports one object, the table `chronetix_plugin_v1`. A host process (chronetix-dylib-host), one for each
 * node, loads the library and is the worker; so a crash of a plugin is the death of one worker. The functions of
 * chronetix.h are the host's: a plugin is linked without -lchronetix, and finds them when it is loaded.
 *
 *   static int on_frame(chx_worker *worker, const chx_frame *frame, void *state) { … }
 *   CHRONETIX_PLUGIN = {CHRONETIX_PLUGIN_HEAD, .on_frame = on_frame};
 *
 *   cc -shared -fPIC $(pkg-config --cflags chronetix) plugin.c -o plugin.so
 */
#ifndef CHRONETIX_PLUGIN_H
#define CHRONETIX_PLUGIN_H

#include "chronetix.h"

#define CHRONETIX_PLUGIN_ABI 1u

/* Every function may be NULL. Each returns what the callbacks of struct chx_plugin return, and what it returns has the
 * same consequence. `state` is what init has set, NULL without it. */
struct chronetix_plugin_v1 {
    uint32_t abi;  /* CHRONETIX_PLUGIN_ABI */
    uint32_t size; /* of this structure as the plugin knows it: members behind it are taken as NULL */
    const char *(*describe)(void); /* one line about the plugin, for the log; called first */
    int (*init)(chx_worker *worker, void **state); /* before any route is there */
    int (*on_start)(chx_worker *worker, void *state);
    int (*produce)(chx_worker *worker, void *state);
    int (*on_frame)(chx_worker *worker, const chx_frame *frame, void *state);
    int (*on_tick)(chx_worker *worker, const chx_tick *tick, void *state);
    int (*on_message)(chx_worker *worker, const chx_message *message, void *state);
    int (*stop)(chx_worker *worker, void *state); /* the last call after an orderly end: frees the state, too */
};

#define CHRONETIX_PLUGIN_HEAD .abi = CHRONETIX_PLUGIN_ABI, .size = sizeof(struct chronetix_plugin_v1)

#ifdef __cplusplus
#define CHRONETIX_PLUGIN extern "C" CHX_API const struct chronetix_plugin_v1 chronetix_plugin_v1
extern "C" CHX_API const struct chronetix_plugin_v1 chronetix_plugin_v1;
#else
#define CHRONETIX_PLUGIN CHX_API const struct chronetix_plugin_v1 chronetix_plugin_v1
extern CHX_API const struct chronetix_plugin_v1 chronetix_plugin_v1;
#endif

#endif
