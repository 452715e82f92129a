/* Which process is this? And what does a wake-up cost in it?
 *
 * One private page is wiped by the kernel in every forked child, however it was forked; what it holds is the owner mark
 * of all objects made in this process. A child claims a mark of its own when it first makes an object.
 */
#include "native.h"

#include <pthread.h>

volatile uint32_t *native_process_word;
struct chx_wake native_wake;
uint64_t native_rings;
uint64_t native_commits;
static uint32_t process_last = 0;

static void process_after_fork(void) { *native_process_word = 0; }

int native_process_init(void) {
    if (native_process_word) return 0;
    chx_wake_init(&native_wake);
    void *page = mmap(NULL, CHX_PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (page == MAP_FAILED) {
        PyErr_SetFromErrno(PyExc_OSError);
        return -1;
    }
    native_process_word = page;
    if (madvise(page, CHX_PAGE, MADV_WIPEONFORK) != 0) {
        int error = pthread_atfork(NULL, NULL, process_after_fork); /* Linux before 4.14 */
        if (error) {
            errno = error;
            PyErr_SetFromErrno(PyExc_OSError);
            return -1;
        }
    }
    return 0;
}

uint32_t native_process_claim(void) {
    if (*native_process_word == 0) *native_process_word = ++process_last;
    return *native_process_word;
}
