/* Frames that go out: claimed (a credit of every output that is to get it, and an extent), filled, then committed.
 *
 * Claiming decides everything that can fail, and changes nothing until all of it is certain; committing never waits. A
 * frame is written once, whatever the number of outputs and taps. An output that has ended is left out; when none is
 * left the sender is told (CHX_GONE). What an attempt without a credit or without room comes to is room.c's.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "worker.h"

struct output *output_find(const chx_worker *worker, const char *route) {
    for (uint32_t i = 0; i < worker->output_count; i++)
        if (strcmp(worker->outputs[i]->names.route, route) == 0) return worker->outputs[i];
    return NULL;
}

int output_make(chx_worker *worker, const struct port *port, bool later, struct output **made) {
    struct output *output = calloc(1, sizeof *output);
    if (!output || names_keep(&output->names, port) != 0) {
        free(output);
        return no_memory(worker, "a route");
    }
    struct chx_header header = {
        .epoch = port->epoch,
        .base_seq = port->base_seq,
        .credits = (uint32_t)port->credits,
        .watermark = (uint32_t)port->watermark,
        .credit_low = (uint32_t)port->credit_low,
        .policy = port->policy_code,
    };
    enum chx_status status = chx_producer_init(&output->end, &worker->arena, &header);
    output->end.limit_ns = port->limit_ns;
    output->end.resume = worker->is_source ? port->resume : 0;
    output->resume = port->resume;
    output->later = later;
    if (status == CHX_OK && *port->tap_of) {
        output->tap_of = strdup(port->tap_of);
        if (!output->tap_of) status = CHX_NO_MEMORY;
    }
    if (status != CHX_OK) {
        output_free(output, true);
        return fail_status(worker, status, port->route, NULL);
    }
    *made = output;
    return 0;
}

/* `destroy`: what was not returned becomes free; else it stays as it is, for whoever still reads it. */
void output_free(struct output *output, bool destroy) {
    if (destroy && output->end.slots)
        chx_producer_destroy(&output->end);
    else
        chx_producer_forget(&output->end);
    free(output->names.route);
    free(output->tap_of);
    free(output);
}

int output_add(chx_worker *worker, struct output *output) {
    if (worker->output_count == worker->output_room) {
        uint32_t room = worker->output_room ? 2 * worker->output_room : 4;
        struct output **outputs = realloc(worker->outputs, room * sizeof(*outputs));
        if (!outputs) return no_memory(worker, "a route");
        worker->outputs = outputs;
        worker->output_room = room;
    }
    worker->outputs[worker->output_count++] = output;
    return 0;
}

/* Free taps that have ended and are in no loan. */
void outputs_sweep(chx_worker *worker) {
    uint32_t kept = 0;
    for (uint32_t i = 0; i < worker->output_count; i++) {
        struct output *output = worker->outputs[i];
        if (output->gone && !output->end.reserved)
            output_free(output, true);
        else
            worker->outputs[kept++] = output;
    }
    worker->output_count = kept;
}

void outputs_close(chx_worker *worker) {
    for (uint32_t i = 0; i < worker->output_count; i++) chx_producer_close(&worker->outputs[i]->end);
}

void outputs_free(chx_worker *worker) {
    for (uint32_t i = 0; i < worker->output_count; i++) output_free(worker->outputs[i], false);
    for (struct output *output = worker->done, *next; output; output = next) {
        next = output->next;
        output_free(output, false);
    }
    free(worker->outputs);
    worker->outputs = NULL;
    worker->done = NULL;
    worker->output_count = worker->output_room = 0;
}

/* ---- which outputs ---------------------------------------------------------------------------------------------- */

static bool is_meant(const chx_worker *worker, const struct output *output, const char *to) {
    if (!to) return true;
    if (output->tap_of) output = output_find(worker, output->tap_of);
    if (!output) return false;
    const struct names *names = &output->names;
    return strcmp(names->peer, to) == 0 || strcmp(names->route, to) == 0 || strcmp(names->topic, to) == 0;
}

static bool awaits(const struct output *output) { return output->later && output->end.state == CHX_UNLINKED; }

/* Close a route on which a frame has waited for longer than its limit; the others go on without it. */
int output_gave_up(chx_worker *worker, struct output *output, uint64_t now) {
    chx_producer_give_up(&output->end, now);
    chx_writer message = message_begin("gave-up", 2);
    chx_pair_text(&message, "route", output->names.route);
    chx_pair_count(&message, "waited_ns", chx_read(&output->end.ring->losses.gave_up_after_ns));
    return tell(worker, &message, NULL, 0, false);
}

/* Whether a route that is meant takes frames. 0; CHX_GONE; or what a peer has done, which is told once. */
static int find_alive(chx_worker *worker, const char *to) {
    bool alive = false, any = false;
    for (uint32_t i = 0; i < worker->output_count; i++) {
        struct output *output = worker->outputs[i];
        if (!is_meant(worker, output, to)) continue;
        enum chx_status status = chx_producer_check(&output->end);
        if (output->tap_of) continue;
        any = true;
        if (status == CHX_FAULT && !output->told) {
            output->told = 1;
            return fail_peer(worker, output->names.route, output->end.header.epoch, &output->end.why);
        }
        alive |= status == CHX_OK || awaits(output);
    }
    if (alive) return 0;
    if (!any && to) return fail(worker, CHX_E_ROUTE_UNKNOWN, "%.200s is no output of this node", to);
    fail(worker, CHX_E_ROUTE_DETACHED, "no consumer is left%s", any ? "" : ": this node has no outputs");
    return CHX_GONE;
}

/* ---- claims ----------------------------------------------------------------------------------------------------- */

static void claim_init(struct claim *claim, uint64_t length) {
    claim->extent.handle = CHX_NO_EXTENT;
    claim->length = length;
    claim->count = 0;
    claim->room = 4;
    claim->outputs = claim->few;
    claim->scratch = NULL;
    claim->dropped = claim->no_room = 0;
}

static void claim_free(struct claim *claim) {
    if (claim->outputs != claim->few) free(claim->outputs);
    free(claim->scratch);
    claim->outputs = claim->few;
    claim->scratch = NULL;
    claim->count = 0;
}

static int claim_add(struct claim *claim, struct output *output) {
    if (claim->count == claim->room) {
        struct output **larger = malloc(2 * claim->room * sizeof(*larger));
        if (!larger) return -1;
        memcpy(larger, claim->outputs, claim->count * sizeof(*larger));
        if (claim->outputs != claim->few) free(claim->outputs);
        claim->outputs = larger;
        claim->room *= 2;
    }
    claim->outputs[claim->count++] = output;
    return 0;
}

/* Find the outputs that have a credit for this frame. CHX_AGAIN: one that must get it has none. */
static int claim_credits(chx_worker *worker, const char *to, struct claim *claim) {
    int result = 0;
    claim->count = 0;
    for (uint32_t i = 0; i < worker->output_count; i++) {
        struct output *output = worker->outputs[i];
        struct chx_producer *end = &output->end;
        output->wanted = 0;
        if (!is_meant(worker, output, to)) continue;
        if (awaits(output)) {
            output->wanted = 1;
            result = CHX_AGAIN;
        }
        if (end->state != CHX_OPEN) continue;
        enum chx_status status = CHX_OK;
        if (chx_producer_left(end) == 0)
            status = chx_producer_reclaim(end, UINT32_MAX);
        else if (claim->length >= CHX_PAGE)
            status = chx_producer_reclaim(end, CHX_REUSE_LOOK);
        if (status != CHX_OK) {
            if (output->tap_of) continue;
            output->told = 1;
            return fail_peer(worker, output->names.route, end->header.epoch, &end->why);
        }
        if (chx_producer_left(end)) {
            if (claim_add(claim, output) != 0) return no_memory(worker, "a frame");
            chx_producer_not_short(end);
        } else if (end->header.policy == CHX_POLICY_BLOCK) {
            uint64_t now = end->limit_ns ? chx_now_ns() : 0;
            if (!chx_producer_short(end, now)) {
                output->wanted = 1;
                result = CHX_AGAIN;
            } else if (output_gave_up(worker, output, now) < 0) {
                return -CHX_E_CONNECTION_LOST;
            }
        }
    }
    return result;
}

static bool must_deliver(const struct claim *claim) {
    for (uint32_t i = 0; i < claim->count; i++)
        if (claim->outputs[i]->end.header.policy == CHX_POLICY_BLOCK) return true;
    return false;
}

/* One attempt. 0: claimed; CHX_AGAIN: `worker->short_at` says whether room is missing; CHX_GONE; or an error. */
static int claim_try(chx_worker *worker, const char *to, struct claim *claim) {
    worker->short_at = 0;
    int result = find_alive(worker, to);
    if (result == 0) result = claim_credits(worker, to, claim);
    if (result != 0) return result;
    claim->dropped = claim->count == 0;
    if (claim->dropped) return find_alive(worker, to);
    int found = room_make(worker, claim->length, &claim->extent);
    if (found < 0) return found;
    if (found == 0) {
        if (must_deliver(claim)) {
            for (uint32_t i = 0; i < claim->count; i++) claim->outputs[i]->wanted = 1;
            return CHX_AGAIN;
        }
        claim->count = 0; /* all of them may drop it */
        claim->dropped = claim->no_room = 1;
        return 0;
    }
    worker->short_at = 0;
    for (uint32_t i = 0; i < claim->count; i++) claim->outputs[i]->end.reserved++;
    return 0;
}

static void claim_cancel(chx_worker *worker, struct claim *claim) {
    for (uint32_t i = 0; i < claim->count; i++) claim->outputs[i]->end.reserved--;
    chx_extent_drop(&worker->arena, claim->extent.handle);
    claim_free(claim);
}

static bool is_claimed(const struct claim *claim, const struct output *output) {
    for (uint32_t i = 0; i < claim->count; i++)
        if (claim->outputs[i] == output) return true;
    return false;
}

/* Count the frame on each output that does not get it, by its reason. */
static void count_lost(chx_worker *worker, const char *to, const struct claim *claim) {
    for (uint32_t i = 0; i < worker->output_count; i++) {
        struct output *output = worker->outputs[i];
        struct chx_producer *end = &output->end;
        if ((end->state != CHX_OPEN && end->state != CHX_GIVEN_UP) || is_claimed(claim, output)) continue;
        if (!is_meant(worker, output, to)) continue;
        chx_word *reason = claim->no_room ? &end->ring->losses.no_room : &end->ring->stats.dropped;
        chx_count(end->state == CHX_GIVEN_UP ? &end->ring->losses.given_up : reason, 1);
    }
}

static struct chx_tags tags_of(chx_worker *worker, const chx_how *how, uint64_t now) {
    struct chx_tags tags = {.deadline_ns = how->deadline_ns, .trace = how->trace, .schema = how->schema};
    const chx_frame *from = how->from ? how->from : worker->handled;
    if (from) {
        tags.input_seq = from->seq;
        tags.flags = from->redelivered ? CHX_FLAG_REDELIVERED : 0;
        if (from->deadline_ns && (!tags.deadline_ns || from->deadline_ns < tags.deadline_ns))
            tags.deadline_ns = from->deadline_ns;
    } else if (worker->is_source) {
        tags.input_seq = ++worker->item;
    }
    uint64_t due = now + worker->budget_ns;
    if (worker->budget_ns && (!tags.deadline_ns || tags.deadline_ns > due)) tags.deadline_ns = due;
    return tags;
}

static void propose_nap(const chx_worker *worker) {
    uint64_t nap = chx_pace_nap(&worker->pace, worker->output_count);
    for (uint32_t i = 0; i < worker->output_count; i++) chx_producer_propose_nap(&worker->outputs[i]->end, nap);
}

/* Publish to every claimed output that is still open, then ring those that sleep. The claim is used up. */
static int claim_commit(chx_worker *worker, struct claim *claim, uint64_t length, const chx_how *how, bool noted) {
    uint64_t now = chx_now_ns();
    if (worker->output_count > claim->count) count_lost(worker, how->to, claim);
    uint32_t open = 0;
    for (uint32_t i = 0; i < claim->count; i++) {
        struct output *output = claim->outputs[i];
        output->end.reserved--;
        if (output->end.state == CHX_OPEN) claim->outputs[open++] = output;
    }
    bool dropped = claim->dropped;
    claim->count = open;
    struct chx_tags tags = tags_of(worker, how, now);
    if (noted) tags.flags |= CHX_FLAG_NOTED;
    if (open == 0) {
        chx_extent_drop(&worker->arena, claim->extent.handle);
        claim_free(claim);
        return dropped ? 0 : find_alive(worker, how->to);
    }
    if (open > 1) chx_extent_share(&worker->arena, claim->extent.handle, open - 1);
    worker->commits++;
    uint32_t ring = 0;
    for (uint32_t i = 0; i < open; i++)
        if (chx_producer_commit(&claim->outputs[i]->end, &claim->extent, length, &tags, now))
            claim->outputs[ring++] = claim->outputs[i];
    if (chx_pace_commit(&worker->pace, now)) propose_nap(worker);
    for (uint32_t i = 0; i < ring; i++) chx_producer_ring(&claim->outputs[i]->end);
    if (ring) {
        worker->rings++;
        chx_pace_rang(&worker->pace, now, chx_now_ns());
    }
    claim_free(claim);
    return 0;
}

/* ---- the public part -------------------------------------------------------------------------------------------- */

static const chx_how plain;

static size_t notes_size(const chx_how *how) {
    return how->meta_size || how->stamp_ns ? how->meta_size + sizeof(struct chx_notes) : 0;
}

static void notes_write(uint8_t *to, const chx_how *how) {
    struct chx_notes notes = {.stamp_ns = how->stamp_ns, .meta = (uint32_t)how->meta_size};
    if (how->meta_size) memcpy(to, how->meta, how->meta_size);
    memcpy(to + how->meta_size, &notes, sizeof notes);
}

static int may_send(chx_worker *worker, size_t size, const chx_how *how) {
    if (worker->owner != getpid()) return fail(worker, CHX_E_WRONG_STATE, "a worker is of the process that made it");
    if (worker->life < LIFE_START || worker->life > LIFE_STARTED)
        return fail(worker, CHX_E_WRONG_STATE, "frames are sent between CHX_START and chx_finish()");
    if (how->meta_size > UINT32_MAX || size > SIZE_MAX / 4)
        return fail(worker, CHX_E_BAD_ARGUMENT, "a frame of %zu bytes with %zu of metadata is too large", size, how->meta_size);
    return 0;
}

int chx_send(chx_worker *worker, const void *data, size_t size, const chx_how *how) {
    if (!how) how = &plain;
    int result = may_send(worker, size, how);
    if (result != 0) return result;
    size_t notes = notes_size(how);
    struct claim claim;
    claim_init(&claim, size + notes);
    result = room_claim(worker, claim_try, how, &claim);
    if (result != 0) {
        claim_free(&claim);
        return result;
    }
    if (claim.extent.handle != CHX_NO_EXTENT) {
        if (size) memcpy(claim.extent.data, data, size);
        if (notes) notes_write(claim.extent.data + size, how);
    }
    return claim_commit(worker, &claim, size + notes, how, notes != 0);
}

int chx_reserve(chx_worker *worker, size_t size, const chx_how *how, chx_loan *loan) {
    *loan = (chx_loan){0};
    if (!how) how = &plain;
    int result = may_send(worker, size, how);
    if (result != 0) return result;
    struct claim *claim = malloc(sizeof *claim);
    if (!claim) return no_memory(worker, "a frame");
    claim_init(claim, size + notes_size(how));
    result = room_claim(worker, claim_try, how, claim);
    if (result == 0 && claim->extent.handle == CHX_NO_EXTENT) { /* nobody gets it, or it has no bytes */
        claim->scratch = malloc(claim->length + 1);
        if (!claim->scratch) {
            claim_cancel(worker, claim);
            result = no_memory(worker, "a frame");
        }
    }
    if (result != 0) {
        claim_free(claim);
        free(claim);
        return result;
    }
    *loan = (chx_loan){claim->scratch ? claim->scratch : claim->extent.data, size, claim};
    return 0;
}

int chx_commit(chx_worker *worker, chx_loan *loan, size_t size, const chx_how *how) {
    struct claim *claim = loan->claim;
    if (!how) how = &plain;
    if (!claim) return fail(worker, CHX_E_BAD_ARGUMENT, "the loan is over already");
    int result = may_send(worker, size, how);
    if (result != 0) return result;
    size_t notes = notes_size(how);
    if (size > loan->size || size + notes > claim->length)
        return fail(worker, CHX_E_BAD_ARGUMENT, "the loan has %zu bytes, not %zu", loan->size, size + notes);
    if (notes && !claim->scratch) notes_write((uint8_t *)loan->data + size, how);
    result = claim_commit(worker, claim, size + notes, how, notes != 0);
    free(claim);
    *loan = (chx_loan){0};
    return result;
}

void chx_cancel(chx_worker *worker, chx_loan *loan) {
    struct claim *claim = loan->claim;
    if (claim && worker->owner == getpid()) {
        claim_cancel(worker, claim);
        free(claim);
    }
    *loan = (chx_loan){0};
}
