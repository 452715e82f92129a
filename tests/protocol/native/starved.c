/* An allocator that fails: preloaded, it lets every allocation through until starve() is called. Then the n-th one that
 * follows in this thread fails, and as many after it as was said. Counts what is allocated and was not freed.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>

void *__libc_malloc(size_t);
void *__libc_calloc(size_t, size_t);
void *__libc_realloc(void *, size_t);
void __libc_free(void *);

static _Thread_local long left;
static _Thread_local long more;
static _Thread_local long failed;
static atomic_long held;

/* The n-th allocation from now on fails, and `after` ones behind it. */
void starve(long n, long after)
{
    failed = 0;
    more = after;
    left = n;
}

/* The end of that, and how many have failed. In the place of a function that Python calls without an allocation. */
int getppid(void)
{
    left = more = 0;
    return failed < 255 ? (int)failed : 255;
}

long living(void)
{
    return held;
}

static bool refused(void)
{
    if (left == 0 || --left > 0) return false;
    if (more > 0) {
        more--;
        left = 1;
    }
    failed++;
    errno = ENOMEM;
    return true;
}

static void *counted(void *made)
{
    if (made != NULL) held++;
    return made;
}

void *malloc(size_t size)
{
    return refused() ? NULL : counted(__libc_malloc(size));
}

void *calloc(size_t count, size_t size)
{
    return refused() ? NULL : counted(__libc_calloc(count, size));
}

void *realloc(void *old, size_t size)
{
    if (refused()) return NULL;
    void *made = __libc_realloc(old, size);
    if (old == NULL && made != NULL) held++;
    if (old != NULL && size == 0) held--;
    return made;
}

void free(void *old)
{
    if (old != NULL) held--;
    __libc_free(old);
}
