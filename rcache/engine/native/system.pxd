"""What the native engine takes from the operating system and the compiler: memory, locks, atomics, clocks, sockets.

What it is: declarations, and the few lines of C that Cython has no words for (atomic access, vector compare).
Which thread runs it: any. What it owns: nothing. What it must not know: the engine.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t


cdef extern from * nogil:
    """
    #ifndef _GNU_SOURCE
    #define _GNU_SOURCE
    #endif
    #include <errno.h>
    #include <fcntl.h>
    #include <poll.h>
    #include <pthread.h>
    #include <sched.h>
    #include <stdint.h>
    #include <string.h>
    #include <sys/epoll.h>
    #include <sys/eventfd.h>
    #include <sys/mman.h>
    #include <sys/random.h>
    #include <sys/socket.h>
    #include <sys/uio.h>
    #include <time.h>
    #include <unistd.h>
    #ifdef __SSE2__
    #include <emmintrin.h>
    #endif
    #if defined(__has_feature)
    #if __has_feature(address_sanitizer) && !defined(__SANITIZE_ADDRESS__)
    #define __SANITIZE_ADDRESS__ 1
    #endif
    #if __has_feature(thread_sanitizer) && !defined(__SANITIZE_THREAD__)
    #define __SANITIZE_THREAD__ 1
    #endif
    #endif

    /* With AddressSanitizer memory that is nobody's says so when it is touched; without it these do nothing. */
    #ifdef __SANITIZE_ADDRESS__
    #include <sanitizer/asan_interface.h>
    static inline void rc_poison(const void *at, size_t count) { ASAN_POISON_MEMORY_REGION(at, count); }
    static inline void rc_unpoison(const void *at, size_t count) { ASAN_UNPOISON_MEMORY_REGION(at, count); }
    #else
    static inline void rc_poison(const void *at, size_t count) { (void)at; (void)count; }
    static inline void rc_unpoison(const void *at, size_t count) { (void)at; (void)count; }
    #endif

    /* Reads of what may be nobody's, or another's by now: who looks for an item to evict goes over the chunks of a page without
       a lock, and may find the page cut anew meanwhile. What is read so is a hint that is checked under a lock, so the
       sanitizers are told to let it be; and nothing else is to be read in this way. */
    #if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
    #define RC_HINT static __attribute__((noinline, no_sanitize("address"), no_sanitize("thread")))
    #else
    #define RC_HINT static inline
    #endif
    RC_HINT uint8_t rc_hint8(const uint8_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
    RC_HINT uint32_t rc_hint32(const uint32_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
    RC_HINT uint64_t rc_hint64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }

    /* Atomic access. "relaxed" where a value is only a hint that is checked under a lock; acquire and release where it
       hands over what was written before; sequential where two threads each write one word and read the other's. */
    static inline uint8_t rc_load8(const uint8_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void rc_store8(uint8_t *at, uint8_t v) { __atomic_store_n(at, v, __ATOMIC_RELEASE); }
    static inline uint32_t rc_load32(const uint32_t *at) { return __atomic_load_n(at, __ATOMIC_RELAXED); }
    static inline void rc_store32(uint32_t *at, uint32_t v) { __atomic_store_n(at, v, __ATOMIC_RELAXED); }
    static inline uint64_t rc_load64(const uint64_t *at) { return __atomic_load_n(at, __ATOMIC_ACQUIRE); }
    static inline void rc_store64(uint64_t *at, uint64_t v) { __atomic_store_n(at, v, __ATOMIC_RELEASE); }
    static inline int rc_cas64(uint64_t *at, uint64_t *seen, uint64_t v) {
        return __atomic_compare_exchange_n(at, seen, v, 0, __ATOMIC_SEQ_CST, __ATOMIC_ACQUIRE);
    }
    static inline void rc_or64(uint64_t *at, uint64_t v) { __atomic_fetch_or(at, v, __ATOMIC_SEQ_CST); }
    static inline void rc_and64(uint64_t *at, uint64_t v) { __atomic_fetch_and(at, v, __ATOMIC_SEQ_CST); }
    static inline int64_t rc_add64(int64_t *at, int64_t v) { return __atomic_fetch_add(at, v, __ATOMIC_SEQ_CST); }
    static inline int64_t rc_signed64(const int64_t *at) { return __atomic_load_n(at, __ATOMIC_SEQ_CST); }
    static inline void rc_fence(void) { __atomic_thread_fence(__ATOMIC_SEQ_CST); }

    /* Which of the first 12 bytes at `tags` equal `tag`, as bits; 16 bytes must be readable there. */
    static inline uint32_t rc_match12(const uint8_t *tags, uint8_t tag) {
    #ifdef __SSE2__
        __m128i same = _mm_cmpeq_epi8(_mm_loadu_si128((const __m128i *)tags), _mm_set1_epi8((char)tag));
        return (uint32_t)_mm_movemask_epi8(same) & 0xFFFu;
    #else
        uint32_t found = 0;
        for (int i = 0; i < 12; i++) found |= (uint32_t)(tags[i] == tag) << i;
        return found;
    #endif
    }
    /* The bits in the opposite order. */
    static inline uint32_t rc_reverse32(uint32_t v) {
        v = (v >> 1 & 0x55555555u) | (v & 0x55555555u) << 1;
        v = (v >> 2 & 0x33333333u) | (v & 0x33333333u) << 2;
        v = (v >> 4 & 0x0F0F0F0Fu) | (v & 0x0F0F0F0Fu) << 4;
        return __builtin_bswap32(v);
    }
    /* So many cache lines will be written soon. */
    static inline void rc_fetch(uint8_t *at, size_t lines) {
        for (size_t n = 0; n < lines; n++) __builtin_prefetch(at + 64 * n, 1);
    }
    static inline int rc_lowest32(uint32_t bits) { return __builtin_ctz(bits); }
    static inline int rc_lowest64(uint64_t bits) { return __builtin_ctzll(bits); }
    static inline int rc_highest64(uint64_t bits) { return 63 - __builtin_clzll(bits); }

    /* Whether two stretches are alike: keys are short, and most of them are. */
    static inline int rc_same(const uint8_t *a, const uint8_t *b, size_t n) {
        uint64_t x, y;
        if (n > 64) return memcmp(a, b, n) == 0;
        if (n >= 8) {
            for (size_t at = 0; at + 8 < n; at += 8) {
                memcpy(&x, a + at, 8);
                memcpy(&y, b + at, 8);
                if (x != y) return 0;
            }
            memcpy(&x, a + n - 8, 8);
            memcpy(&y, b + n - 8, 8);
            return x == y;
        }
        for (size_t at = 0; at < n; at++) if (a[at] != b[at]) return 0;
        return 1;
    }

    static inline uint16_t rc_get16(const uint8_t *p) { uint16_t v; memcpy(&v, p, 2); return __builtin_bswap16(v); }
    static inline uint32_t rc_get32(const uint8_t *p) { uint32_t v; memcpy(&v, p, 4); return __builtin_bswap32(v); }
    static inline uint64_t rc_get64(const uint8_t *p) { uint64_t v; memcpy(&v, p, 8); return __builtin_bswap64(v); }
    static inline void rc_put16(uint8_t *p, uint16_t v) { v = __builtin_bswap16(v); memcpy(p, &v, 2); }
    static inline void rc_put32(uint8_t *p, uint32_t v) { v = __builtin_bswap32(v); memcpy(p, &v, 4); }
    static inline void rc_put64(uint8_t *p, uint64_t v) { v = __builtin_bswap64(v); memcpy(p, &v, 8); }
    #if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
    #error "written for little-endian machines; use the reference engine"
    #endif

    static inline int64_t rc_clock_ns(clockid_t which) {
        struct timespec t;
        clock_gettime(which, &t);
        return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
    }

    /* A mutex that spins for a moment before it sleeps: what it guards takes less time than a sleep. */
    static inline int rc_mutex_init(pthread_mutex_t *m) {
        pthread_mutexattr_t kind;
        pthread_mutexattr_init(&kind);
    #ifdef __GLIBC__
        pthread_mutexattr_settype(&kind, PTHREAD_MUTEX_ADAPTIVE_NP);
    #endif
        int failed = pthread_mutex_init(m, &kind);
        pthread_mutexattr_destroy(&kind);
        return failed;
    }
    /* A lock for what takes some dozens of stores and nobody waits under: let go of by a plain store, where a mutex needs a
    second
       atomic exchange, which costs as much as looking up a key. Who finds it taken looks again for a moment, then gives way to
       whoever may have it on this core, then sleeps: its holder may have been put off the core, or copy a whole bucket. */
    #define RC_LOOKS 64
    #define RC_YIELDS 8
    #define RC_SLEEP_NS 20000
    #define RC_SLEEP_NS_MAX 640000
    static inline int rc_spin_init(pthread_spinlock_t *l) { return pthread_spin_init(l, PTHREAD_PROCESS_PRIVATE); }
    static __attribute__((noinline)) void rc_spin_slowly(pthread_spinlock_t *l) {
        struct timespec sleep = {0, RC_SLEEP_NS};
        for (int tried = 0; ; tried++) {
            if (tried < RC_LOOKS) {
                for (int n = 0; n < 8; n++) {
    #if defined(__x86_64__) || defined(__i386__)
                    __builtin_ia32_pause();
    #endif
                }
            } else if (tried < RC_LOOKS + RC_YIELDS) {
                sched_yield();
            } else {
                nanosleep(&sleep, NULL);
                if (sleep.tv_nsec < RC_SLEEP_NS_MAX) sleep.tv_nsec *= 2;
            }
            if (!pthread_spin_trylock(l)) return;
        }
    }
    static inline void rc_spin_lock(pthread_spinlock_t *l) { if (pthread_spin_trylock(l)) rc_spin_slowly(l); }
    static inline void rc_spin_unlock(pthread_spinlock_t *l) { pthread_spin_unlock(l); }
    /* A condition that is waited for by the monotonic clock. */
    static inline int rc_cond_init(pthread_cond_t *c) {
        pthread_condattr_t kind;
        pthread_condattr_init(&kind);
        pthread_condattr_setclock(&kind, CLOCK_MONOTONIC);
        int failed = pthread_cond_init(c, &kind);
        pthread_condattr_destroy(&kind);
        return failed;
    }
    static inline int rc_cond_wait_until(pthread_cond_t *c, pthread_mutex_t *m, int64_t deadline_ns) {
        struct timespec t = {deadline_ns / 1000000000, deadline_ns % 1000000000};
        return pthread_cond_timedwait(c, m, &t);
    }
    /* False where the sum (or with `minus` the difference) does not fit. */
    static inline int rc_add(int64_t a, int64_t b, int minus, int64_t *sum) {
        return minus ? !__builtin_sub_overflow(a, b, sum) : !__builtin_add_overflow(a, b, sum);
    }
    /* A number that need not be secret, from a generator of each thread's own (Marsaglia, "Xorshift RNGs", 2003). */
    static inline uint64_t rc_random(void) {
        static __thread uint64_t seed;
        if (!seed) seed = (uint64_t)rc_clock_ns(CLOCK_MONOTONIC) ^ (uint64_t)(uintptr_t)&seed ^ 0x9E3779B97F4A7C15u;
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        return seed;
    }
    /* Whether this thread has waited since it last asked: then the times it holds are old. */
    static __attribute__((tls_model("initial-exec"))) __thread int rc_waited;
    static inline void rc_note_wait(void) { rc_waited = 1; }
    static inline int rc_take_wait(void) { int waited = rc_waited; rc_waited = 0; return waited; }
    /* Whether this thread sends what it changes to the peers itself, before it waits for anything; and which eventfd is its own. */
    static __attribute__((tls_model("initial-exec"))) __thread int rc_pushes;
    static __attribute__((tls_model("initial-exec"))) __thread int rc_own_waker = -1;
    static inline void rc_set_pushing(int pushes) { rc_pushes = pushes; }
    static inline int rc_is_pushing(void) { return rc_pushes; }
    static inline void rc_set_own_waker(int fd) { rc_own_waker = fd; }
    static inline int rc_is_own_waker(int fd) { return rc_own_waker == fd; }
    static inline int rc_errno(void) { return errno; }
    """
    ctypedef struct pthread_mutex_t:
        pass
    ctypedef struct pthread_cond_t:
        pass
    ctypedef int pthread_spinlock_t
    int spin_init "rc_spin_init"(pthread_spinlock_t *) noexcept
    void spin_lock "rc_spin_lock"(pthread_spinlock_t *) noexcept
    void spin_unlock "rc_spin_unlock"(pthread_spinlock_t *) noexcept
    int pthread_spin_destroy(pthread_spinlock_t *) noexcept
    bint same_bytes "rc_same"(const uint8_t *, const uint8_t *, size_t) noexcept
    int pthread_mutex_lock(pthread_mutex_t *) noexcept
    int pthread_mutex_trylock(pthread_mutex_t *) noexcept
    int pthread_mutex_unlock(pthread_mutex_t *) noexcept
    int pthread_mutex_destroy(pthread_mutex_t *) noexcept
    int pthread_cond_broadcast(pthread_cond_t *) noexcept
    int pthread_cond_destroy(pthread_cond_t *) noexcept
    int mutex_init "rc_mutex_init"(pthread_mutex_t *) noexcept
    int cond_init "rc_cond_init"(pthread_cond_t *) noexcept
    int cond_wait_until "rc_cond_wait_until"(pthread_cond_t *, pthread_mutex_t *, int64_t deadline_ns) noexcept

    void poison "rc_poison"(const void *, size_t) noexcept
    void unpoison "rc_unpoison"(const void *, size_t) noexcept
    uint8_t hint8 "rc_hint8"(const uint8_t *) noexcept
    uint32_t hint32 "rc_hint32"(const uint32_t *) noexcept
    uint64_t hint64 "rc_hint64"(const uint64_t *) noexcept
    uint8_t load8 "rc_load8"(const uint8_t *) noexcept
    void store8 "rc_store8"(uint8_t *, uint8_t) noexcept
    uint32_t load32 "rc_load32"(const uint32_t *) noexcept
    void store32 "rc_store32"(uint32_t *, uint32_t) noexcept
    uint64_t load64 "rc_load64"(const uint64_t *) noexcept
    void store64 "rc_store64"(uint64_t *, uint64_t) noexcept
    bint cas64 "rc_cas64"(uint64_t *, uint64_t *seen, uint64_t) noexcept
    void or64 "rc_or64"(uint64_t *, uint64_t) noexcept
    void and64 "rc_and64"(uint64_t *, uint64_t) noexcept
    int64_t add64 "rc_add64"(int64_t *, int64_t) noexcept
    int64_t signed64 "rc_signed64"(const int64_t *) noexcept
    void fence "rc_fence"() noexcept
    uint32_t match12 "rc_match12"(const uint8_t *tags, uint8_t tag) noexcept
    uint32_t reverse32 "rc_reverse32"(uint32_t) noexcept
    void fetch_lines "rc_fetch"(uint8_t *, size_t lines) noexcept
    int lowest32 "rc_lowest32"(uint32_t) noexcept
    int lowest64 "rc_lowest64"(uint64_t) noexcept
    int highest64 "rc_highest64"(uint64_t) noexcept
    uint16_t get16 "rc_get16"(const uint8_t *) noexcept
    uint32_t get32 "rc_get32"(const uint8_t *) noexcept
    uint64_t get64 "rc_get64"(const uint8_t *) noexcept
    void put16 "rc_put16"(uint8_t *, uint16_t) noexcept
    void put32 "rc_put32"(uint8_t *, uint32_t) noexcept
    void put64 "rc_put64"(uint8_t *, uint64_t) noexcept

    int CLOCK_MONOTONIC, CLOCK_BOOTTIME
    int64_t clock_ns "rc_clock_ns"(int which) noexcept
    uint64_t random64 "rc_random"() noexcept
    void note_wait "rc_note_wait"() noexcept
    bint take_wait "rc_take_wait"() noexcept
    void set_pushing "rc_set_pushing"(bint) noexcept
    bint is_pushing "rc_is_pushing"() noexcept
    void set_own_waker "rc_set_own_waker"(int) noexcept
    bint is_own_waker "rc_is_own_waker"(int) noexcept
    int sched_yield() noexcept
    bint add_fits "rc_add"(int64_t, int64_t, bint minus, int64_t *) noexcept
    int last_errno "rc_errno"() noexcept
    int EAGAIN, EINTR

    int PROT_NONE, PROT_READ, PROT_WRITE, MAP_PRIVATE, MAP_SHARED, MAP_ANONYMOUS, MAP_NORESERVE, MAP_FIXED, MADV_DONTNEED
    int MREMAP_MAYMOVE, MREMAP_FIXED
    void *MAP_FAILED
    void *mmap(void *, size_t, int, int, int, long) noexcept
    int munmap(void *, size_t) noexcept
    int mprotect(void *, size_t, int) noexcept
    int madvise(void *, size_t, int) noexcept
    void *mremap(void *, size_t, size_t, int, ...) noexcept
    int close(int) noexcept
    ssize_t getrandom(void *, size_t, unsigned int) noexcept
    ssize_t read(int, void *, size_t) noexcept
    ssize_t write(int, const void *, size_t) noexcept

    int MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR
    ssize_t recv(int, void *, size_t, int) noexcept
    ssize_t send(int, const void *, size_t, int) noexcept
    int shutdown(int, int) noexcept
    struct iovec:
        void *iov_base
        size_t iov_len
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    ssize_t sendmsg(int, const msghdr *, int) noexcept

    short POLLIN, POLLOUT
    struct pollfd:
        int fd
        short events
        short revents
    int poll(pollfd *, unsigned long, int) noexcept

    int EFD_CLOEXEC, EFD_NONBLOCK
    int eventfd(unsigned int, int) noexcept
    int EPOLL_CLOEXEC, EPOLL_CTL_ADD, EPOLL_CTL_MOD, EPOLL_CTL_DEL
    unsigned int EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLLOUT, EPOLLERR, EPOLLHUP, EPOLLRDHUP
    ctypedef union epoll_data_t:
        void *ptr
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int) noexcept
    int epoll_ctl(int, int, int, epoll_event *) noexcept
    int epoll_wait(int, epoll_event *, int, int) noexcept


cdef inline int64_t monotonic_ns() noexcept nogil:
    """The clock of deadlines: time.monotonic_ns."""
    return clock_ns(CLOCK_MONOTONIC)
