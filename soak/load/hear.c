/* hear: many subscribers in one process, which count what they are told of changes.
 *
 *   hear -p rcache|redis -n SUBSCRIBERS -q SUBSCRIBE_FILE [-a ASK_FILE] [-t TIMES_FILE -k KEYS [-e EVERY]] HOST PORT
 *
 * Every subscriber has a connection of its own and sends the bytes of SUBSCRIBE_FILE. When all have been answered it prints
 * `ready`. Of rcache (docs/protocol.md, "Feeds") each then sends ASK_FILE, an EVENTS request, again whenever the last one was
 * answered, as a client does; an event is a SET or a REMOVE, and what a GAP leaves out is lost. Of Redis each message to a
 * pattern (`pmessage`) is an event; it does not tell of losses, but closes the connection of who is slow, which is counted.
 *
 * Keys are as those of drive.c: eight digits behind four bytes. TIMES_FILE gets a double for each subscriber and every EVERYth
 * number below KEYS: when it was last told of (CLOCK_MONOTONIC, seconds; 0: never), one subscriber after the other.
 *
 * For each line on standard input it prints the counts since `ready`, of all subscribers together, as one line of JSON; it
 * ends with the input. Exit code: 0, 1 where the server did not do its part, 2 for wrong use.
 *
 * One thread over all sockets. It owns them. An answer is taken when it is whole, so its first event counts as told when its
 * last byte is there; the time of an event is that of the read which brought it.
 *
 * Build: gcc -O2 -Wall -Wextra -Werror -o hear hear.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <fcntl.h>
#include <netinet/tcp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

enum {
    FILE_BYTES_MAX = 1 << 16,
    SUBSCRIBERS_MAX = 10000,
    KEYS_MAX = 100000000,
    EVENTS_MAX = 256,
    BUFFER_BYTES = 1 << 16,     /* at first; grows to the longest answer */
    BUFFER_BYTES_MAX = 1 << 26, /* four times what a frame of rcache may have unless told otherwise */
    SUBSCRIBE_S = 10,

    KEY_DIGITS_AT = 4, /* in a key */
    KEY_DIGITS = 8,

    FRAME_HEADER = 16, /* of rcache */
    STATUS_AT = 3,
    LENGTH_AT = 4,
    NOTICES_LENGTH_AT = 4, /* in the payload */
    NOTICES_AT = 8,
    NOTICE_BYTES = 21,
    NOTICE_GAP = 1,
    RECORD_HEADER = 40,
    RECORD_KIND_AT = 4,
    RECORD_KEY_BYTES_AT = 6,
    RECORD_SET = 2,
    RECORD_REMOVE = 3,
    COUNTER_BITS = 40,

    ELEMENTS_MAX = 8, /* of a message of Redis */
};

typedef struct { const char *bytes; size_t length; } Bytes;

typedef struct Subscriber {
    int fd; /* -1: closed */
    bool subscribed;
    char *buffer;
    size_t held, room;
    double *times; /* NULL: not wanted */
    uint64_t told, lost, gaps, bytes, answers;
} Subscriber;

typedef struct {
    const char *host, *times;
    int port, count;
    uint32_t keys, every;
    Bytes subscribe, ask;
    size_t (*take)(Subscriber *, const char *, size_t, double); /* one whole answer at the front; its length, 0: not whole */
    bool asks;
} Plan;

static Plan plan = {.every = 1};
static int poller;

__attribute__((noreturn, format(printf, 2, 3))) static void fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("hear: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(code);
}

static double now(void) {
    struct timespec t;
    if (clock_gettime(CLOCK_MONOTONIC, &t)) fail(1, "clock_gettime: %s", strerror(errno));
    return t.tv_sec + t.tv_nsec * 1e-9;
}

static uint32_t be32(const char *at) {
    uint32_t found;
    memcpy(&found, at, sizeof found);
    return ntohl(found);
}

static uint64_t be64(const char *at) { return (uint64_t)be32(at) << 32 | be32(at + 4); }

/* ---- events -------------------------------------------------------------------------------------------------------- */

static void note_time(Subscriber *s, const char *key, size_t length, double t) {
    if (length != KEY_DIGITS_AT + KEY_DIGITS) return;
    uint32_t number = 0;
    for (int i = 0; i < KEY_DIGITS; i++) number = number * 10 + (uint32_t)(key[KEY_DIGITS_AT + i] - '0') % 10;
    if (number < plan.keys && number % plan.every == 0) s->times[number / plan.every] = t;
}

static void take_notices(Subscriber *s, const char *at, const char *end) {
    const uint64_t counter = (UINT64_C(1) << COUNTER_BITS) - 1;
    for (; at + NOTICE_BYTES <= end; at += NOTICE_BYTES) {
        if (*at != NOTICE_GAP) continue;
        uint64_t after = be64(at + 5), upto = be64(at + 13);
        if (after >> COUNTER_BITS != upto >> COUNTER_BITS) fail(1, "a gap over two epochs: a node alone has one");
        s->gaps++;
        s->lost += (upto & counter) - (after & counter);
    }
}

static void take_records(Subscriber *s, const char *at, const char *end, double t) {
    while (at < end) {
        uint32_t length = end - at < RECORD_HEADER ? 0 : be32(at);
        if (length < RECORD_HEADER || length > end - at) fail(1, "a record of %u bytes, %td are left", length, end - at);
        if (at[RECORD_KIND_AT] == RECORD_SET || at[RECORD_KIND_AT] == RECORD_REMOVE) {
            s->told++;
            if (s->times) note_time(s, at + RECORD_HEADER, be32(at + RECORD_KEY_BYTES_AT - 2) & 0xffff, t);
        }
        at += length;
    }
}

static size_t take_frame(Subscriber *s, const char *bytes, size_t held, double t) {
    if (held < FRAME_HEADER) return 0;
    size_t length = FRAME_HEADER + (size_t)be32(bytes + LENGTH_AT);
    if (length > BUFFER_BYTES_MAX) fail(1, "an answer of %zu bytes", length);
    if (held < length) return 0;
    if (bytes[STATUS_AT]) fail(1, "status %#x", (unsigned char)bytes[STATUS_AT]);
    if (!s->subscribed) {
        s->subscribed = true;
        return length;
    }
    const char *payload = bytes + FRAME_HEADER, *end = bytes + length;
    if (length < FRAME_HEADER + NOTICES_AT || be32(payload + NOTICES_LENGTH_AT) > end - payload - NOTICES_AT)
        fail(1, "an answer to EVENTS of %zu bytes", length);
    const char *records = payload + NOTICES_AT + be32(payload + NOTICES_LENGTH_AT);
    take_notices(s, payload + NOTICES_AT, records);
    take_records(s, records, end, t);
    return length;
}

/* A line of Redis's protocol at `at`: its number; NULL where it is not whole, else what lies behind it. */
static const char *line(const char *at, const char *end, char *kind, long *value) {
    const char *found = at < end ? memchr(at, '\n', end - at) : NULL;
    if (!found) return NULL;
    *kind = *at;
    *value = strtol(at + 1, NULL, 10);
    if (*kind != '*' && *kind != '$' && *kind != ':') fail(1, "redis says %.*s", (int)(found - at), at);
    return found + 1;
}

static size_t take_message(Subscriber *s, const char *bytes, size_t held, double t) {
    const char *at = bytes, *end = bytes + held;
    Bytes elements[ELEMENTS_MAX] = {0};
    char kind;
    long count, length;
    at = line(at, end, &kind, &count);
    if (!at) return 0;
    if (kind != '*' || count < 1 || count > ELEMENTS_MAX) fail(1, "redis says no message: %.*s", (int)(at - bytes), bytes);
    for (long i = 0; i < count; i++) {
        at = line(at, end, &kind, &length);
        if (!at) return 0;
        if (kind != '$') continue;
        if (length < 0 || length > end - at - 2) return 0;
        elements[i] = (Bytes){at, length};
        at += length + 2;
    }
    if (count == 4 && elements[0].length == 8 && !memcmp(elements[0].bytes, "pmessage", 8)) {
        s->told++;
        if (s->times) note_time(s, elements[3].bytes, elements[3].length, t);
    } else {
        s->subscribed = true;
    }
    return at - bytes;
}

/* ---- sockets ------------------------------------------------------------------------------------------------------- */

static void send_all(const Subscriber *s, Bytes what) {
    for (size_t sent = 0; sent < what.length;) {
        ssize_t n = send(s->fd, what.bytes + sent, what.length - sent, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && (errno == EPIPE || errno == ECONNRESET)) return; /* the next read says so, too */
        if (n < 0) fail(1, "send: %s", strerror(errno));
        sent += n;
    }
}

static void take_all(Subscriber *s, double t) {
    size_t at = 0, length;
    bool was_subscribed = s->subscribed;
    while ((length = plan.take(s, s->buffer + at, s->held - at, t))) {
        at += length;
        s->answers += was_subscribed;
        if (was_subscribed && plan.asks) send_all(s, plan.ask);
        was_subscribed = s->subscribed;
    }
    memmove(s->buffer, s->buffer + at, s->held - at);
    s->held -= at;
}

static void pull(Subscriber *s) {
    if (s->held == s->room) {
        s->room *= 2;
        s->buffer = s->room > BUFFER_BYTES_MAX ? NULL : realloc(s->buffer, s->room);
        if (!s->buffer) fail(1, "an answer is longer than %d bytes", BUFFER_BYTES_MAX / 2);
    }
    ssize_t n = recv(s->fd, s->buffer + s->held, s->room - s->held, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (n <= 0 && !s->subscribed) fail(1, "not subscribed: %s", n ? strerror(errno) : "connection closed by the server");
    if (n <= 0) {
        close(s->fd);
        s->fd = -1;
        return;
    }
    s->held += n;
    s->bytes += n;
    take_all(s, now());
}

static void open_subscriber(Subscriber *s) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(plan.port)};
    int one = 1;
    if (!inet_aton(plan.host, &address.sin_addr)) fail(2, "not an IPv4 address: %s", plan.host);
    s->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (s->fd < 0) fail(1, "socket: %s", strerror(errno));
    if (connect(s->fd, (struct sockaddr *)&address, sizeof address)) fail(1, "connect: %s", strerror(errno));
    if (setsockopt(s->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one)) fail(1, "TCP_NODELAY: %s", strerror(errno));
    s->room = BUFFER_BYTES;
    s->buffer = malloc(s->room);
    if (!s->buffer) fail(1, "no memory");
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = s};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, s->fd, &event)) fail(1, "epoll_ctl: %s", strerror(errno));
    send_all(s, plan.subscribe);
}

static void open_times(Subscriber *all) {
    size_t each = (plan.keys + plan.every - 1) / plan.every, bytes = each * plan.count * sizeof(double);
    int fd = open(plan.times, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, bytes)) fail(1, "%s: %s", plan.times, strerror(errno));
    double *times = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (times == MAP_FAILED || close(fd)) fail(1, "%s: %s", plan.times, strerror(errno));
    for (int i = 0; i < plan.count; i++) all[i].times = times + each * i;
}

/* ---- the run ------------------------------------------------------------------------------------------------------- */

static bool all_subscribed(const Subscriber *all) {
    for (int i = 0; i < plan.count; i++)
        if (!all[i].subscribed) return false;
    return true;
}

static void say(const Subscriber *all) {
    uint64_t told = 0, lost = 0, gaps = 0, bytes = 0, answers = 0, least = UINT64_MAX, most = 0;
    int closed = 0;
    for (const Subscriber *s = all; s < all + plan.count; s++) {
        told += s->told, lost += s->lost, gaps += s->gaps, bytes += s->bytes, answers += s->answers;
        least = s->told < least ? s->told : least;
        most = s->told > most ? s->told : most;
        closed += s->fd < 0;
    }
    struct rusage used;
    if (getrusage(RUSAGE_SELF, &used)) fail(1, "getrusage: %s", strerror(errno));
    double cpu_s = used.ru_utime.tv_sec + used.ru_stime.tv_sec + (used.ru_utime.tv_usec + used.ru_stime.tv_usec) * 1e-6;
    printf("{\"at\": %.6f, \"cpu_s\": %.6f, \"told\": %lu, \"lost\": %lu, \"gaps\": %lu, \"least\": %lu, \"most\": %lu, "
           "\"closed\": %d, \"bytes\": %lu, \"answers\": %lu}\n",
           now(), cpu_s, told, lost, gaps, least, most, closed, bytes, answers);
    if (fflush(stdout)) fail(1, "standard output: %s", strerror(errno));
}

/* What standard input has; false at its end. */
static bool answer_input(const Subscriber *all) {
    char asked[64];
    ssize_t n = read(STDIN_FILENO, asked, sizeof asked);
    for (ssize_t i = 0; i < n; i++)
        if (asked[i] == '\n') say(all);
    return n > 0;
}

static void hear(Subscriber *all) {
    struct epoll_event events[EVENTS_MAX], input = {.events = EPOLLIN, .data.ptr = NULL};
    double deadline = now() + SUBSCRIBE_S;
    for (bool ready = false;;) {
        int found = epoll_wait(poller, events, EVENTS_MAX, 1000);
        if (found < 0 && errno != EINTR) fail(1, "epoll_wait: %s", strerror(errno));
        for (int i = 0; i < found; i++) {
            if (events[i].data.ptr)
                pull(events[i].data.ptr);
            else if (!answer_input(all))
                return;
        }
        if (ready) continue;
        if (now() > deadline) fail(1, "not all are subscribed after %d s", SUBSCRIBE_S);
        if (!all_subscribed(all)) continue;
        ready = true;
        for (int i = 0; i < plan.count && plan.asks; i++) send_all(&all[i], plan.ask);
        if (epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &input)) fail(1, "standard input: %s", strerror(errno));
        puts("ready");
        if (fflush(stdout)) fail(1, "standard output: %s", strerror(errno));
    }
}

/* ---- the command line ---------------------------------------------------------------------------------------------- */

static long number(const char *text, char option, long most) {
    char *end;
    errno = 0;
    long found = strtol(text, &end, 10);
    if (errno || end == text || *end || found < 1 || found > most)
        fail(2, "-%c takes a number from 1 to %ld, not %s", option, most, text);
    return found;
}

static Bytes content(const char *path) {
    FILE *file = fopen(path, "rb");
    char *bytes = malloc(FILE_BYTES_MAX);
    if (!file || !bytes) fail(2, "%s: %s", path, strerror(errno));
    Bytes found = {bytes, fread(bytes, 1, FILE_BYTES_MAX, file)};
    if (ferror(file) || fclose(file)) fail(2, "%s: %s", path, strerror(errno));
    return found;
}

static void read_plan(int argc, char **argv) {
    for (int option; (option = getopt(argc, argv, "p:n:q:a:t:k:e:")) != -1;) switch (option) {
        case 'p': plan.take = !strcmp(optarg, "rcache") ? take_frame : !strcmp(optarg, "redis") ? take_message : NULL; break;
        case 'n': plan.count = number(optarg, 'n', SUBSCRIBERS_MAX); break;
        case 'q': plan.subscribe = content(optarg); break;
        case 'a': plan.ask = content(optarg); plan.asks = true; break;
        case 't': plan.times = optarg; break;
        case 'k': plan.keys = number(optarg, 'k', KEYS_MAX); break;
        case 'e': plan.every = number(optarg, 'e', KEYS_MAX); break;
        default: fail(2, "wrong use; the head of hear.c says how");
    }
    if (!plan.take || !plan.count || !plan.subscribe.length || (plan.times && !plan.keys) || argc - optind != 2)
        fail(2, "-p rcache|redis, -n, -q, a host and a port must be given; -k with -t");
    plan.host = argv[optind];
    plan.port = number(argv[optind + 1], 'p', 65535);
}

int main(int argc, char **argv) {
    read_plan(argc, argv);
    Subscriber *all = calloc(plan.count, sizeof *all);
    if (!all) fail(1, "no memory");
    poller = epoll_create1(EPOLL_CLOEXEC);
    if (poller < 0) fail(1, "epoll_create1: %s", strerror(errno));
    if (plan.times) open_times(all);
    for (int i = 0; i < plan.count; i++) open_subscriber(&all[i]);
    hear(all);
    return 0;
}
