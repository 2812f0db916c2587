/* Disturbs a process by its system calls that change files below one folder.
 *
 * Loaded with LD_PRELOAD. It counts the calls that concern a path which contains STORM_PATH, in all
 * threads of the process together, and from the STORM_FROM-th on it does one of these:
 *
 *   STORM_KILL=1        kills the process
 *   STORM_ERRNO=N       lets the calls fail with this error number
 *   STORM_DELAY=N       lets each call begin this many milliseconds later
 *   STORM_CLOCK=N       moves the clock of the process by this many seconds, also backwards
 *
 * STORM_TIMES ends failures and delays after so many calls (0: all that follow). STORM_CALLS chooses
 * the calls: a comma-separated list of open, write, sync, rename, mkdir, delete. A call that only
 * reads is not counted. STORM_LOG names a file that gets a line for each counted call. A program that
 * the process executes in its place counts from 1 again, and has the right time until then.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/sendfile.h>
#include <sys/stat.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static atomic_long counted;
static const char *part, *calls, *record;
static long from, times, error, kills, delay, jump;

static long number(const char *name) {
  const char *text = getenv(name);
  return text ? atol(text) : 0;
}

__attribute__((constructor)) static void read_environment(void) {
  part = getenv("STORM_PATH");
  calls = getenv("STORM_CALLS");
  record = getenv("STORM_LOG");
  from = number("STORM_FROM");
  times = number("STORM_TIMES");
  error = number("STORM_ERRNO");
  kills = number("STORM_KILL");
  delay = number("STORM_DELAY");
  jump = number("STORM_CLOCK");
}

/* Whether this call shall fail, with errno set; does not return if it shall kill. */
static int disturbed(const char *call, const char *path) {
  if (!part || !path || !strstr(path, part) || (calls && !strstr(calls, call))) return 0;
  long count = atomic_fetch_add(&counted, 1) + 1;
  if (record) {
    static ssize_t (*real)(int, const void *, size_t);
    if (!real) real = dlsym(RTLD_NEXT, "write");
    int (*real_open)(const char *, int, ...) = dlsym(RTLD_NEXT, "open");
    int fd = real_open(record, O_WRONLY | O_CREAT | O_APPEND, 0600);
    char line[4400];
    int length = snprintf(line, sizeof line, "%ld %s %s\n", count, call, path);
    if (fd >= 0 && real(fd, line, length) >= 0) close(fd);
  }
  if (!from || count < from) return 0;
  if (kills) kill(getpid(), SIGKILL);
  if (times && count >= from + times) return 0;
  if (delay) usleep(1000 * delay);
  if (!error) return 0;
  errno = error;
  return 1;
}

static int disturbed_file(const char *call, int fd) {
  char link[64], path[4096];
  snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return disturbed(call, path);
}

/* A path that is relative to an open folder, as a whole. */
static const char *whole(int folder, const char *path, char *space) {
  if (folder == AT_FDCWD || path[0] == '/') return path;
  char link[64];
  snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  ssize_t length = readlink(link, space, 2000);
  if (length < 0) return path;
  snprintf(space + length, 2000, "/%s", path);
  return space;
}

#define REAL(name) \
  static __typeof__(&name) real;  \
  if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define MODE(flags)                     \
  mode_t mode = 0;                      \
  if ((flags) & (O_CREAT | __O_TMPFILE)) { \
    va_list rest;                       \
    va_start(rest, flags);              \
    mode = va_arg(rest, mode_t);        \
    va_end(rest);                       \
  }

#define OPEN(name)                                                             \
  int name(const char *path, int flags, ...) {                                 \
    REAL(name);                                                                \
    MODE(flags)                                                                \
    if ((flags & O_ACCMODE) != O_RDONLY && disturbed("open", path)) return -1; \
    return real(path, flags, mode);                                            \
  }
OPEN(open)
OPEN(open64)

#define CREAT(name)                                                            \
  int name(const char *path, mode_t mode) {                                    \
    REAL(name);                                                                \
    return disturbed("open", path) ? -1 : real(path, mode);                    \
  }
CREAT(creat)
CREAT(creat64)

#define OPENAT(name)                                                                           \
  int name(int folder, const char *path, int flags, ...) {                                     \
    REAL(name);                                                                                \
    MODE(flags)                                                                                \
    char space[4096];                                                                          \
    if ((flags & O_ACCMODE) != O_RDONLY && disturbed("open", whole(folder, path, space))) return -1; \
    return real(folder, path, flags, mode);                                                    \
  }
OPENAT(openat)
OPENAT(openat64)

#define FOPEN(name)                                                  \
  FILE *name(const char *path, const char *how) {                    \
    REAL(name);                                                      \
    if (strpbrk(how, "wa+") && disturbed("open", path)) return NULL; \
    return real(path, how);                                          \
  }
FOPEN(fopen)
FOPEN(fopen64)

/* A call that writes to a file: its type, name and parameters, and the arguments for the real one. */
#define WRITES(type, name, parameters, file, ...)                      \
  type name parameters {                                               \
    REAL(name);                                                        \
    return disturbed_file("write", file) ? -1 : real(__VA_ARGS__);     \
  }
WRITES(ssize_t, write, (int fd, const void *data, size_t size), fd, fd, data, size)
WRITES(ssize_t, writev, (int fd, const struct iovec *parts, int count), fd, fd, parts, count)
WRITES(ssize_t, pwrite, (int fd, const void *data, size_t size, off_t at), fd, fd, data, size, at)
WRITES(ssize_t, pwrite64, (int fd, const void *data, size_t size, off64_t at), fd, fd, data, size,
       at)
WRITES(ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t at), fd, fd, parts,
       count, at)
WRITES(ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), fd, fd,
       parts, count, at)
WRITES(ssize_t, pwritev2, (int fd, const struct iovec *parts, int count, off_t at, int flags), fd,
       fd, parts, count, at, flags)
WRITES(ssize_t, pwritev64v2, (int fd, const struct iovec *parts, int count, off64_t at, int flags),
       fd, fd, parts, count, at, flags)
WRITES(int, ftruncate, (int fd, off_t size), fd, fd, size)
WRITES(int, ftruncate64, (int fd, off64_t size), fd, fd, size)
WRITES(ssize_t, copy_file_range,
       (int from, off64_t *start, int to, off64_t *at, size_t size, unsigned flags), to, from,
       start, to, at, size, flags)
WRITES(ssize_t, sendfile, (int to, int from, off_t *at, size_t size), to, to, from, at, size)
WRITES(ssize_t, sendfile64, (int to, int from, off64_t *at, size_t size), to, to, from, at, size)

int fsync(int fd) {
  REAL(fsync);
  return disturbed_file("sync", fd) ? -1 : real(fd);
}
int fdatasync(int fd) {
  REAL(fdatasync);
  return disturbed_file("sync", fd) ? -1 : real(fd);
}
int rename(const char *from, const char *to) {
  REAL(rename);
  return disturbed("rename", to) ? -1 : real(from, to);
}
int renameat(int a, const char *from, int b, const char *to) {
  REAL(renameat);
  char space[4096];
  return disturbed("rename", whole(b, to, space)) ? -1 : real(a, from, b, to);
}
int renameat2(int a, const char *from, int b, const char *to, unsigned flags) {
  REAL(renameat2);
  char space[4096];
  return disturbed("rename", whole(b, to, space)) ? -1 : real(a, from, b, to, flags);
}
int link(const char *from, const char *to) {
  REAL(link);
  return disturbed("rename", to) ? -1 : real(from, to);
}
int mkdir(const char *path, mode_t mode) {
  REAL(mkdir);
  return disturbed("mkdir", path) ? -1 : real(path, mode);
}
int mkdirat(int folder, const char *path, mode_t mode) {
  REAL(mkdirat);
  char space[4096];
  return disturbed("mkdir", whole(folder, path, space)) ? -1 : real(folder, path, mode);
}
int unlink(const char *path) {
  REAL(unlink);
  return disturbed("delete", path) ? -1 : real(path);
}
int unlinkat(int folder, const char *path, int flags) {
  REAL(unlinkat);
  char space[4096];
  return disturbed("delete", whole(folder, path, space)) ? -1 : real(folder, path, flags);
}
int rmdir(const char *path) {
  REAL(rmdir);
  return disturbed("delete", path) ? -1 : real(path);
}

/* By how many seconds the clock is wrong. */
static long shift(void) { return from && atomic_load(&counted) >= from ? jump : 0; }

int clock_gettime(clockid_t which, struct timespec *now) {
  REAL(clock_gettime);
  int result = real(which, now);
  if (!result && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += shift();
  return result;
}
int gettimeofday(struct timeval *now, void *zone) {
  REAL(gettimeofday);
  int result = real(now, zone);
  if (!result) now->tv_sec += shift();
  return result;
}
time_t time(time_t *place) {
  REAL(time);
  time_t now = real(NULL) + shift();
  if (place) *place = now;
  return now;
}
