/* Preloaded into a process: lets the n-th call of one kind fail, of those that write regular files.

   Armed by fault_arm, or by FAULT_KIND, FAULT_AT, FAULT_ERRNO and FAULT_LASTS in the environment,
   for processes that the first one starts. FAULT_ERRNO 0 is a short write. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/types.h>
#include <unistd.h>

enum { WRITE, FSYNC, TRUNCATE, ALLOCATE, RENAME, CLOSE, CREATE, N_KINDS };

static long counts[N_KINDS];
static long kind = -1, at, error, lasts;

void fault_arm(long new_kind, long new_at, long new_error, long new_lasts) {
    for (int i = 0; i < N_KINDS; i++) counts[i] = 0;
    kind = new_kind, at = new_at, error = new_error, lasts = new_lasts;
}

long fault_count(long of_kind) { return counts[of_kind]; }

__attribute__((constructor)) static void arm_by_environment(void) {
    const char *name = getenv("FAULT_KIND");
    if (name)
        fault_arm(atol(name), atol(getenv("FAULT_AT")), atol(getenv("FAULT_ERRNO")),
                  atol(getenv("FAULT_LASTS")));
}

static int is_written_to(int descriptor) {
    struct stat found;
    int flags = fcntl(descriptor, F_GETFL);
    return flags >= 0 && (flags & O_ACCMODE) != O_RDONLY && fstat(descriptor, &found) == 0 &&
           S_ISREG(found.st_mode);
}

static int fails(long this_kind) {
    long n = ++counts[this_kind];
    return this_kind == kind && (n == at || (lasts && n > at));
}

#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define REFUSE(result) return errno = (int)error, (result)

static size_t shorter(size_t n) { return n > 1 ? n / 2 : n; }

ssize_t write(int d, const void *data, size_t n) {
    if (is_written_to(d) && fails(WRITE)) {
        if (error) REFUSE(-1);
        n = shorter(n);
    }
    return REAL(write)(d, data, n);
}

ssize_t pwrite(int d, const void *data, size_t n, off_t offset) {
    if (is_written_to(d) && fails(WRITE)) {
        if (error) REFUSE(-1);
        n = shorter(n);
    }
    return REAL(pwrite)(d, data, n, offset);
}

ssize_t pwrite64(int d, const void *data, size_t n, off64_t offset) {
    if (is_written_to(d) && fails(WRITE)) {
        if (error) REFUSE(-1);
        n = shorter(n);
    }
    return REAL(pwrite64)(d, data, n, offset);
}

int fsync(int d) {
    if (fails(FSYNC)) REFUSE(-1);
    return REAL(fsync)(d);
}

int fdatasync(int d) {
    if (fails(FSYNC)) REFUSE(-1);
    return REAL(fdatasync)(d);
}

int ftruncate(int d, off_t n) {
    if (fails(TRUNCATE)) REFUSE(-1);
    return REAL(ftruncate)(d, n);
}

int ftruncate64(int d, off64_t n) {
    if (fails(TRUNCATE)) REFUSE(-1);
    return REAL(ftruncate64)(d, n);
}

int posix_fallocate(int d, off_t offset, off_t n) {
    return fails(ALLOCATE) ? (int)error : REAL(posix_fallocate)(d, offset, n);
}

int posix_fallocate64(int d, off64_t offset, off64_t n) {
    return fails(ALLOCATE) ? (int)error : REAL(posix_fallocate64)(d, offset, n);
}

int rename(const char *from, const char *to) {
    if (fails(RENAME)) REFUSE(-1);
    return REAL(rename)(from, to);
}

int renameat(int a, const char *from, int b, const char *to) {
    if (fails(RENAME)) REFUSE(-1);
    return REAL(renameat)(a, from, b, to);
}

int link(const char *from, const char *to) {
    if (fails(RENAME)) REFUSE(-1);
    return REAL(link)(from, to);
}

int linkat(int a, const char *from, int b, const char *to, int flags) {
    if (fails(RENAME)) REFUSE(-1);
    return REAL(linkat)(a, from, b, to, flags);
}

int close(int d) {
    int failing = is_written_to(d) && fails(CLOSE);
    int result = REAL(close)(d);
    if (failing) REFUSE(-1);
    return result;
}

static mode_t mode_of(int flags, va_list rest) {
    return flags & (O_CREAT | O_TMPFILE) ? va_arg(rest, mode_t) : 0;
}

#define OPEN(name, before, pass)                                   \
    int name(before const char *path, int flags, ...) {            \
        va_list rest;                                              \
        va_start(rest, flags);                                     \
        mode_t mode = mode_of(flags, rest);                        \
        va_end(rest);                                              \
        if ((flags & O_CREAT) && fails(CREATE)) REFUSE(-1);        \
        return REAL(name)(pass path, flags, mode);                 \
    }
#define NOTHING
#define FOLDER int folder,
#define PASS_FOLDER folder,

OPEN(open, NOTHING, NOTHING)
OPEN(open64, NOTHING, NOTHING)
OPEN(openat, FOLDER, PASS_FOLDER)
OPEN(openat64, FOLDER, PASS_FOLDER)
