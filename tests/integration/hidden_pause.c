/* A machine whose clocks do not show that it was stopped, for one process: what a hypervisor does that hides it.
 *
 * Preloaded into the process (LD_PRELOAD). HIDDEN_PAUSE names a file of one 64-bit number, which tests/integration/hidden_pause.py
 * changes while the process is stopped: by how much the clocks that count (monotonic, boot) are behind, in ns. What waits until a
 * time of such a clock is given the machine's own, so that it does not come back at once for ever.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <pthread.h>
#include <semaphore.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

static volatile int64_t *hidden;
static int (*real_clock)(clockid_t, struct timespec *);

__attribute__((constructor)) static void begin(void)
{
    *(void **)&real_clock = dlsym(RTLD_NEXT, "clock_gettime");
    const char *file = getenv("HIDDEN_PAUSE");
    int fd = file ? open(file, O_RDONLY | O_CLOEXEC) : -1;
    if (fd < 0)
        return;
    void *page = mmap(NULL, sizeof(int64_t), PROT_READ, MAP_SHARED, fd, 0);
    close(fd);
    if (page != MAP_FAILED)
        hidden = page;
}

static int counts(clockid_t clock)
{
    return clock == CLOCK_MONOTONIC || clock == CLOCK_MONOTONIC_RAW || clock == CLOCK_MONOTONIC_COARSE || clock == CLOCK_BOOTTIME;
}

static struct timespec moved(const struct timespec *told, int64_t by)
{
    int64_t now = (int64_t)told->tv_sec * 1000000000 + told->tv_nsec + by;
    return (struct timespec){.tv_sec = now / 1000000000, .tv_nsec = now % 1000000000};
}

int clock_gettime(clockid_t clock, struct timespec *told)
{
    int answer = real_clock ? real_clock(clock, told) : (int)syscall(SYS_clock_gettime, clock, told);
    if (answer == 0 && hidden && *hidden && counts(clock))
        *told = moved(told, -*hidden);
    return answer;
}

/* The newest of a function that has been there in two versions. */
static void *newest(const char *name)
{
    void *found = dlvsym(RTLD_NEXT, name, "GLIBC_2.3.2");
    return found ? found : dlsym(RTLD_NEXT, name);
}

/* Here and in the engine conditions go by the monotonic clock. */
int pthread_cond_timedwait(pthread_cond_t *condition, pthread_mutex_t *mutex, const struct timespec *until)
{
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, const struct timespec *);
    struct timespec then = moved(until, hidden ? *hidden : 0);
    if (!real)
        *(void **)&real = newest("pthread_cond_timedwait");
    return real(condition, mutex, &then);
}

int pthread_cond_clockwait(pthread_cond_t *condition, pthread_mutex_t *mutex, clockid_t clock, const struct timespec *until)
{
    static int (*real)(pthread_cond_t *, pthread_mutex_t *, clockid_t, const struct timespec *);
    struct timespec then = moved(until, hidden && counts(clock) ? *hidden : 0);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "pthread_cond_clockwait");
    return real(condition, mutex, clock, &then);
}

int sem_clockwait(sem_t *semaphore, clockid_t clock, const struct timespec *until)
{
    static int (*real)(sem_t *, clockid_t, const struct timespec *);
    struct timespec then = moved(until, hidden && counts(clock) ? *hidden : 0);
    if (!real)
        *(void **)&real = dlsym(RTLD_NEXT, "sem_clockwait");
    return real(semaphore, clock, &then);
}
