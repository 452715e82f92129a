/* What the daemon says about an end of a route: read by the schema, with every default that may be left out. */
#include <stdlib.h>
#include <string.h>

#include "worker.h"


bool read_count(const chx_value *map, const char *key, uint64_t otherwise, uint64_t *count) {
    const chx_value *value = chx_get(map, key);
    *count = otherwise;
    return !value || chx_count_of(value, count);
}

bool read_text(const chx_value *map, const char *key, const char *otherwise, const char **text) {
    const chx_value *value = chx_get(map, key);
    *text = value ? chx_text(value, NULL) : otherwise;
    return *text != NULL;
}

bool read_choice(const char *text, const char *const *choices, uint32_t count, uint32_t *choice) {
    for (*choice = 0; *choice < count; ++*choice)
        if (strcmp(text, choices[*choice]) == 0) return true;
    return false;
}

int port_read(chx_worker *worker, const chx_value *value, struct port *port) {
    static const char *const policies[] = {"block", "drop_newest", "latest"};
    static const char *const classes[] = {"best-effort", "normal", "high", "realtime"};
    const char *qos;
    uint32_t class = 0;
    *port = (struct port){0};
    bool sound = read_text(value, "route", NULL, &port->route) && read_text(value, "peer", NULL, &port->peer) &&
                 read_text(value, "topic", "", &port->topic) &&
                 read_text(value, "content_type", "application/json", &port->content_type) &&
                 read_text(value, "schema_ver", "v1", &port->schema_ver) &&
                 read_text(value, "policy", "block", &port->policy) && read_text(value, "qos", "normal", &qos) &&
                 read_text(value, "tap_of", "", &port->tap_of) && read_count(value, "credits", 64, &port->credits) &&
                 read_count(value, "watermark", 48, &port->watermark) &&
                 read_count(value, "credit_low", 32, &port->credit_low) && read_count(value, "epoch", 0, &port->epoch) &&
                 read_count(value, "base_seq", 0, &port->base_seq) && read_count(value, "limit_ns", 0, &port->limit_ns) &&
                 read_count(value, "resume", 0, &port->resume) && read_choice(port->policy, policies, 3, &port->policy_code) &&
                 read_choice(qos, classes, CLASSES, &class) && port->credits >= 1 && port->credits <= CHX_CREDITS_MAX &&
                 port->watermark <= UINT32_MAX && port->credit_low <= UINT32_MAX;
    if (!sound) return fail(worker, CHX_E_MALFORMED_MESSAGE, "a port of this node is not as PROTOCOL.md describes it");
    if (*port->tap_of) { /* the defaults are of routes that wait */
        port->watermark = port->credits * 3 / 4 ? port->credits * 3 / 4 : 1;
        port->credit_low = port->credits / 2;
        port->policy_code = CHX_POLICY_LATEST;
    }
    port->class = (uint8_t)class;
    return 0;
}

int names_keep(struct names *names, const struct port *port) {
    const char *texts[] = {port->route, port->peer, port->topic, port->content_type, port->policy};
    char **places[] = {&names->route, &names->peer, &names->topic, &names->content_type, &names->policy};
    size_t size = 0;
    for (unsigned i = 0; i < 5; i++) size += strlen(texts[i]) + 1;
    char *at = malloc(size);
    if (!at) return -1;
    for (unsigned i = 0; i < 5; i++) {
        size_t length = strlen(texts[i]) + 1;
        *places[i] = memcpy(at, texts[i], length);
        at += length;
    }
    return 0;
}
