/* What stands between one node and its machine: a wall clock that can be set, and a disk that can be full.
 *
 * Preloaded into the node (LD_PRELOAD). SOAK_SHIM names a file of two 64-bit numbers, which soak/cluster/shim.py changes while
 * the node runs: what the wall clock is ahead by, in ns; and whether the file system of the directory that SOAK_SHIM_DISK names is
 * full. The clocks that only count (monotonic, boot) stay true, as where an operator or NTP steps the clock.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *orders;
static char disk[PATH_MAX];
static size_t disk_length;
static int (*real_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    *(void **)&real_clock = dlsym(RTLD_NEXT, "clock_gettime"); /* no system call, as without this library */
    const char *file = getenv("SOAK_SHIM"), *directory = getenv("SOAK_SHIM_DISK");
    if (!file)
        return;
    int fd = open(file, O_RDONLY | O_CLOEXEC);
    if (fd < 0)
        return;
    void *page = mmap(NULL, 2 * sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page == MAP_FAILED)
        return;
    if (directory && realpath(directory, disk))
        disk_length = strlen(disk);
    orders = page;
}

static int64_t ahead_ns(void)
{
    return orders ? orders[0] : 0;
}

/* Whether a write to this file finds no room. */
static int is_full(int fd)
{
    char link[64], path[PATH_MAX];
    if (!orders || !orders[1] || !disk_length)
        return 0;
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length <= (ssize_t)disk_length || memcmp(path, disk, disk_length) || path[disk_length] != '/')
        return 0;
    errno = ENOSPC;
    return 1;
}

int clock_gettime(clockid_t clock, struct timespec *told)
{
    int answer = real_clock ? real_clock(clock, told) : (int)syscall(SYS_clock_gettime, clock, told);
    int64_t ahead = ahead_ns();
    if (answer == 0 && ahead && (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE)) {
        int64_t now = (int64_t)told->tv_sec * 1000000000 + told->tv_nsec + ahead;
        told->tv_sec = now / 1000000000;
        told->tv_nsec = now % 1000000000;
    }
    return answer;
}

int gettimeofday(struct timeval *restrict told, void *restrict zone)
{
    struct timespec now;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &now);
    told->tv_sec = now.tv_sec;
    told->tv_usec = now.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *told)
{
    struct timespec now;
    clock_gettime(CLOCK_REALTIME, &now);
    if (told)
        *told = now.tv_sec;
    return now.tv_sec;
}

/* The real function of that name, found once. */
#define PASS(kind, name, parameters, arguments)                                                                                \
    kind name parameters                                                                                                       \
    {                                                                                                                          \
        static kind(*real) parameters;                                                                                         \
        if (is_full(fd))                                                                                                       \
            return -1;                                                                                                         \
        if (!real)                                                                                                             \
            *(void **)&real = dlsym(RTLD_NEXT, #name);                                                                         \
        return real arguments;                                                                                                 \
    }

PASS(ssize_t, write, (int fd, const void *data, size_t count), (fd, data, count))
PASS(ssize_t, pwrite, (int fd, const void *data, size_t count, off_t at), (fd, data, count, at))
PASS(ssize_t, pwrite64, (int fd, const void *data, size_t count, off64_t at), (fd, data, count, at))
PASS(ssize_t, writev, (int fd, const struct iovec *parts, int count), (fd, parts, count))
PASS(ssize_t, pwritev, (int fd, const struct iovec *parts, int count, off_t at), (fd, parts, count, at))
PASS(ssize_t, pwritev64, (int fd, const struct iovec *parts, int count, off64_t at), (fd, parts, count, at))
PASS(ssize_t, pwritev2, (int fd, const struct iovec *parts, int count, off_t at, int flags), (fd, parts, count, at, flags))
PASS(ssize_t, pwritev64v2, (int fd, const struct iovec *parts, int count, off64_t at, int flags), (fd, parts, count, at, flags))
PASS(int, fallocate, (int fd, int mode, off_t at, off_t length), (fd, mode, at, length))
PASS(int, fallocate64, (int fd, int mode, off64_t at, off64_t length), (fd, mode, at, length))

/* These return their error. */
int posix_fallocate(int fd, off_t at, off_t length)
{
    return is_full(fd) ? ENOSPC : fallocate(fd, 0, at, length) ? errno : 0;
}

int posix_fallocate64(int fd, off64_t at, off64_t length)
{
    return is_full(fd) ? ENOSPC : fallocate64(fd, 0, at, length) ? errno : 0;
}
