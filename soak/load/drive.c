/* drive: a closed-loop load over many keys, for any request/reply protocol over TCP whose requests differ in the key alone.
 *
 *   drive -c CONNECTIONS -d DEPTH -s SECONDS [-w OWED_SECONDS] -k KEYS [-f FIRST] -o each|random|next [-x SEED]
 *         [-r RATE] [-t TIMES_FILE] -q REQUEST_FILE -e HEAD_FILE -l REPLY_BYTES [-a DIGITS_AT] HOST PORT
 *
 * REQUEST_FILE is one request in which ######## stands wherever the eight digits of a key's number belong. Every connection
 * has a batch of DEPTH such requests; it fills in the digits, sends, waits until every reply of the batch came, and starts
 * again. The numbers are FIRST to FIRST + KEYS - 1, each once (`each`: ends with the last reply, and fails where SECONDS are
 * not enough), drawn evenly (`random`), or in order and from FIRST again (`next`); these two end after SECONDS and the replies
 * that are then still owed.
 *
 * With RATE so many requests a second are due, evenly over the connections. A batch is sent when it is due and the one before
 * it on its connection was answered; its round trip counts from when it was due, so a server that falls behind is seen to.
 * TIMES_FILE gets a double for each number from 0 to FIRST + KEYS - 1: when its last reply came (CLOCK_MONOTONIC, seconds; 0:
 * never).
 *
 * A reply is right when it has REPLY_BYTES, begins with the bytes of HEAD_FILE and, where -a is given, has the digits of its
 * own request at DIGITS_AT. The first wrong one ends the run with an error, and so does a reply nobody asked for.
 *
 * Prints: operations a second, from the first request to the last reply, the 50th, 99th and 99.9th percentile of a batch's
 * round trip in microseconds, and how many operations that were.
 * Exit code: 0, 1 where the server did not do its part, 2 for wrong use.
 *
 * One thread. It owns its sockets. Once connected nothing blocks but epoll_wait, so neither a server that does not read nor
 * one that does not answer holds it beyond SECONDS + OWED_SECONDS. It knows no protocol: lg.c beside it sends one request for
 * ever and is a little cheaper; this one is for what depends on keys, values and right answers.
 *
 * Build: gcc -O2 -Wall -Wextra -Werror -o drive drive.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <ctype.h>
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
#include <sys/socket.h>
#include <sys/timerfd.h>
#include <time.h>
#include <unistd.h>

#define MARK "########"

enum {
    DIGITS = sizeof MARK - 1,
    MARKS_MAX = 4,             /* a SET has two: in its key and at the front of its value */
    FILE_BYTES_MAX = 1 << 24,  /* values of a megabyte, and room */
    EVENTS_MAX = 256,
    SAMPLES_MAX = 5000000,     /* 20 MB; later batches of a longer run have no part in the percentiles */
    CONNECTIONS_MAX = 10000,
    DEPTH_MAX = 10000,
    RATE_MAX = 10000000,
    KEYS_MAX = 100000000,      /* what eight digits can tell apart */
    SHOWN = 60,                /* bytes of a wrong reply in a complaint */
};
static const size_t BUFFERS_BYTES_MAX = (size_t)4 << 30;
static const double OWED_S = 10.0; /* unless told otherwise: after the end, for the replies still owed */
static const time_t CONNECT_S = 10;

typedef struct { char *bytes; size_t length; } Bytes;

typedef struct { /* what the command line says */
    const char *host;
    int port, connections, depth;
    double seconds, owed_s;
    uint32_t first, keys;
    bool each, in_order;
    double rate; /* 0: as fast as it goes */
    const char *times;
    uint64_t seed;
    Bytes request, head;
    size_t reply_bytes;
    long digits_at; /* -1: replies do not tell */
    size_t marks[MARKS_MAX];
    int marks_count;
} Plan;

typedef struct { /* invariant: `checked` whole replies of the batch are right, and checked * reply_bytes <= got */
    int fd;
    bool waits_to_send;
    int count; /* requests of the batch under way; 0: none is */
    int checked;
    size_t sent, got;
    double sent_at, due; /* due: when the next batch is, where a rate was given */
    char *batch, *reply;
} Connection;

typedef struct {
    const Plan *plan;
    Connection *connections;
    int poller, under_way;
    uint64_t random;
    uint32_t told; /* keys handed out so far, of `each` and `next` */
    int timer;
    double end;
    long operations, taken;
    float *samples;
    double *answered; /* the times file; NULL: there is none */
} Run;

static char quads[10000][4]; /* "0000" to "9999" */

/* ---- ends ---------------------------------------------------------------------------------------------------------- */

__attribute__((noreturn, format(printf, 2, 3))) static void fail(int code, const char *format, ...) {
    va_list arguments;
    va_start(arguments, format);
    fputs("drive: ", stderr);
    vfprintf(stderr, format, arguments);
    fputc('\n', stderr);
    va_end(arguments);
    exit(code);
}

/* Ends the run over the reply at `bytes`, of which `length` bytes are there. */
__attribute__((noreturn)) static void wrong_reply(const char *what, const char *bytes, size_t length) {
    char shown[SHOWN + 1];
    size_t n = length < SHOWN ? length : SHOWN;
    for (size_t i = 0; i < n; i++) shown[i] = isprint((unsigned char)bytes[i]) ? bytes[i] : '.';
    shown[n] = 0;
    fail(1, "%s: %s", what, shown);
}

static void *room(size_t count, size_t size) {
    void *found = calloc(count, size);
    if (!found) fail(1, "no memory for %zu times %zu bytes", count, size);
    return found;
}

static double now(void) {
    struct timespec t;
    if (clock_gettime(CLOCK_MONOTONIC, &t)) fail(1, "clock_gettime: %s", strerror(errno));
    return t.tv_sec + t.tv_nsec * 1e-9;
}

/* ---- the command line ---------------------------------------------------------------------------------------------- */

static long number(const char *text, char option, long least, long most) {
    char *end;
    errno = 0;
    long found = strtol(text, &end, 10);
    if (errno || end == text || *end || found < least || found > most)
        fail(2, "-%c takes a number from %ld to %ld, not %s", option, least, most, text);
    return found;
}

static double duration(const char *text, char option) {
    char *end;
    double found = strtod(text, &end);
    if (end == text || *end || !(found > 0 && found <= 86400)) fail(2, "-%c takes seconds, above 0, not %s", option, text);
    return found;
}

static Bytes content(const char *path) {
    FILE *file = fopen(path, "rb");
    if (!file) fail(2, "%s: %s", path, strerror(errno));
    Bytes found = {.bytes = room(FILE_BYTES_MAX + 1, 1)};
    found.length = fread(found.bytes, 1, FILE_BYTES_MAX + 1, file);
    if (ferror(file)) fail(2, "%s: %s", path, strerror(errno));
    if (found.length > FILE_BYTES_MAX) fail(2, "%s has more than %d bytes", path, FILE_BYTES_MAX);
    if (!found.length) fail(2, "%s is empty", path);
    if (fclose(file)) fail(2, "%s: %s", path, strerror(errno));
    return found;
}

static void find_marks(Plan *plan) {
    const char *from = plan->request.bytes, *end = from + plan->request.length, *mark;
    while ((mark = memmem(from, end - from, MARK, DIGITS))) {
        if (plan->marks_count == MARKS_MAX) fail(2, "more than %d marks in the request", MARKS_MAX);
        plan->marks[plan->marks_count++] = mark - plan->request.bytes;
        from = mark + DIGITS;
    }
    if (!plan->marks_count) fail(2, "no " MARK " in the request");
}

static void check_plan(const Plan *plan) {
    if (!plan->connections || !plan->depth || !plan->seconds || !plan->keys || !plan->request.length || !plan->head.length ||
        !plan->reply_bytes)
        fail(2, "one of -c -d -s -k -q -e -l is missing");
    if ((long)plan->first + plan->keys > KEYS_MAX) fail(2, "keys end at %d", KEYS_MAX);
    if (plan->head.length > plan->reply_bytes) fail(2, "a reply of %zu bytes cannot begin so", plan->reply_bytes);
    if (plan->digits_at >= 0 && (size_t)plan->digits_at + DIGITS > plan->reply_bytes) fail(2, "-a lies outside the reply");
    if ((plan->request.length + plan->reply_bytes) * plan->depth > BUFFERS_BYTES_MAX / plan->connections)
        fail(2, "batches and replies of that size do not fit into memory");
}

static Plan read_plan(int argc, char **argv) {
    Plan plan = {.digits_at = -1, .seed = 1, .owed_s = OWED_S};
    bool ordered = false;
    for (int option; (option = getopt(argc, argv, "c:d:s:w:f:k:o:x:r:t:q:e:l:a:")) != -1;) switch (option) {
        case 'c': plan.connections = number(optarg, 'c', 1, CONNECTIONS_MAX); break;
        case 'd': plan.depth = number(optarg, 'd', 1, DEPTH_MAX); break;
        case 's': plan.seconds = duration(optarg, 's'); break;
        case 'w': plan.owed_s = duration(optarg, 'w'); break;
        case 'f': plan.first = number(optarg, 'f', 0, KEYS_MAX - 1); break;
        case 'k': plan.keys = number(optarg, 'k', 1, KEYS_MAX); break;
        case 'o':
            plan.each = !strcmp(optarg, "each");
            plan.in_order = plan.each || !strcmp(optarg, "next");
            ordered = plan.in_order || !strcmp(optarg, "random");
            break;
        case 'r': plan.rate = number(optarg, 'r', 1, RATE_MAX); break;
        case 't': plan.times = optarg; break;
        case 'x': plan.seed = number(optarg, 'x', 0, INT32_MAX); break;
        case 'q': plan.request = content(optarg); break;
        case 'e': plan.head = content(optarg); break;
        case 'l': plan.reply_bytes = number(optarg, 'l', 1, FILE_BYTES_MAX); break;
        case 'a': plan.digits_at = number(optarg, 'a', 0, FILE_BYTES_MAX); break;
        default: fail(2, "wrong use; the head of drive.c says how");
    }
    if (!ordered) fail(2, "-o takes each, random or next");
    if (argc - optind != 2) fail(2, "a host and a port come last");
    plan.host = argv[optind];
    plan.port = number(argv[optind + 1], 'p', 1, 65535);
    check_plan(&plan);
    find_marks(&plan);
    return plan;
}

/* ---- requests ------------------------------------------------------------------------------------------------------ */

static uint32_t next_key(Run *run) {
    const Plan *plan = run->plan;
    if (plan->in_order) return plan->first + run->told++ % plan->keys;
    run->random ^= run->random >> 12; /* xorshift64*; its upper half, scaled, is even enough for 32 bits */
    run->random ^= run->random << 25;
    run->random ^= run->random >> 27;
    uint64_t upper = (run->random * UINT64_C(2685821657736338717)) >> 32;
    return plan->first + (uint32_t)((upper * plan->keys) >> 32);
}

/* Writes new keys into the batch; `count` is 0 afterwards where none are left. */
static void fill(Run *run, Connection *c) {
    const Plan *plan = run->plan;
    uint32_t left = plan->each ? plan->keys - run->told : (uint32_t)plan->depth;
    c->count = left < (uint32_t)plan->depth ? (int)left : plan->depth;
    for (int i = 0; i < c->count; i++) {
        uint32_t key = next_key(run);
        char *request = c->batch + i * plan->request.length;
        for (int m = 0; m < plan->marks_count; m++) {
            memcpy(request + plan->marks[m], quads[key / 10000], 4);
            memcpy(request + plan->marks[m] + 4, quads[key % 10000], 4);
        }
    }
}

static void watch(Run *run, Connection *c, int how, bool sending) {
    struct epoll_event event = {.events = EPOLLIN | (sending ? EPOLLOUT : 0), .data.ptr = c};
    if (epoll_ctl(run->poller, how, c->fd, &event)) fail(1, "epoll_ctl: %s", strerror(errno));
    c->waits_to_send = sending;
}

/* Sends what the socket takes of the batch. */
static void push(Run *run, Connection *c) {
    size_t length = c->count * run->plan->request.length;
    while (c->sent < length) {
        ssize_t n = send(c->fd, c->batch + c->sent, length - c->sent, MSG_DONTWAIT | MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK) fail(1, "send: %s", strerror(errno));
        if (n < 0) break;
        c->sent += n;
    }
    bool unsent = c->sent < length;
    if (unsent != c->waits_to_send) watch(run, c, EPOLL_CTL_MOD, unsent);
}

static void start_batch(Run *run, Connection *c) {
    fill(run, c);
    if (!c->count) return;
    c->sent = c->got = 0;
    c->checked = 0;
    c->sent_at = run->plan->rate ? c->due : now();
    if (run->plan->rate) c->due += run->plan->connections * run->plan->depth / run->plan->rate;
    run->under_way++;
    push(run, c);
}

/* ---- replies ------------------------------------------------------------------------------------------------------- */

static void note_answer(double *answered, const char *digits, double t) {
    uint32_t key = 0;
    for (int i = 0; i < DIGITS; i++) key = key * 10 + (digits[i] - '0');
    answered[key] = t;
}

static void check_replies(const Run *run, Connection *c) {
    const Plan *plan = run->plan;
    double t = run->answered ? now() : 0;
    while (c->checked < c->count && (c->checked + 1) * plan->reply_bytes <= c->got) {
        const char *reply = c->reply + c->checked * plan->reply_bytes;
        if (memcmp(reply, plan->head.bytes, plan->head.length)) wrong_reply("wrong reply", reply, c->got - (reply - c->reply));
        const char *asked = c->batch + c->checked * plan->request.length + plan->marks[0];
        if (plan->digits_at >= 0 && memcmp(reply + plan->digits_at, asked, DIGITS))
            wrong_reply("the reply to another key", reply, plan->reply_bytes);
        if (run->answered) note_answer(run->answered, asked, t);
        c->checked++;
    }
    if (c->checked == c->count) return;
    /* An error is most often shorter than the reply it stands for: do not wait for the rest of it. */
    size_t whole = c->checked * plan->reply_bytes, begun = c->got - whole;
    if (memcmp(c->reply + whole, plan->head.bytes, begun < plan->head.length ? begun : plan->head.length))
        wrong_reply("wrong reply", c->reply + whole, begun);
}

static void end_batch(Run *run, Connection *c) {
    double t = now();
    if (c->sent < c->count * run->plan->request.length) fail(1, "an answer to what was not yet asked");
    if (run->taken < SAMPLES_MAX) run->samples[run->taken++] = t - c->sent_at;
    run->operations += c->count;
    run->under_way--;
    c->count = 0;
    if (t < run->end && c->due <= t) start_batch(run, c);
}

/* Takes what the socket has, once. Asks for one byte more than is owed, so that a reply too long is seen. */
static void pull(Run *run, Connection *c) {
    size_t owed = c->count * run->plan->reply_bytes;
    ssize_t n = recv(c->fd, c->reply + (c->count ? c->got : 0), c->count ? owed + 1 - c->got : 1, MSG_DONTWAIT);
    if (n < 0 && (errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR)) return;
    if (n < 0) fail(1, "recv: %s", strerror(errno));
    if (!n) fail(1, "connection closed by the server");
    if (!c->count) wrong_reply("a reply that nobody asked for", c->reply, n);
    c->got += n;
    check_replies(run, c);
    size_t last = owed - run->plan->reply_bytes;
    if (c->got > owed) wrong_reply("reply too long", c->reply + last, c->got - last);
    if (c->got == owed) end_batch(run, c);
}

/* ---- the run ------------------------------------------------------------------------------------------------------- */

static void open_connection(Run *run, Connection *c) {
    const Plan *plan = run->plan;
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(plan->port)};
    struct timeval patience = {.tv_sec = CONNECT_S};
    int one = 1;
    if (!inet_aton(plan->host, &address.sin_addr)) fail(2, "not an IPv4 address: %s", plan->host);
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (c->fd < 0) fail(1, "socket: %s", strerror(errno));
    if (setsockopt(c->fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience)) fail(1, "SO_SNDTIMEO: %s", strerror(errno));
    if (connect(c->fd, (struct sockaddr *)&address, sizeof address)) fail(1, "connect: %s", strerror(errno));
    if (setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one)) fail(1, "TCP_NODELAY: %s", strerror(errno));
    c->batch = room(plan->depth, plan->request.length);
    c->reply = room(plan->depth * plan->reply_bytes + 1, 1);
    size_t length = plan->request.length;
    for (int i = 0; i < plan->depth; i++) memcpy(c->batch + i * length, plan->request.bytes, length);
    watch(run, c, EPOLL_CTL_ADD, false);
}

/* Has the poller wake up whenever a batch is due. */
static void start_clock(Run *run, double began) {
    const Plan *plan = run->plan;
    double apart = plan->depth / plan->rate;
    for (int i = 0; i < plan->connections; i++) run->connections[i].due = began + i * apart;
    struct timespec every = {.tv_sec = apart, .tv_nsec = (apart - (time_t)apart) * 1e9};
    struct itimerspec ticks = {.it_interval = every, .it_value = every};
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = NULL};
    run->timer = timerfd_create(CLOCK_MONOTONIC, TFD_CLOEXEC | TFD_NONBLOCK);
    if (run->timer < 0 || timerfd_settime(run->timer, 0, &ticks, NULL)) fail(1, "timerfd: %s", strerror(errno));
    if (epoll_ctl(run->poller, EPOLL_CTL_ADD, run->timer, &event)) fail(1, "epoll_ctl: %s", strerror(errno));
}

/* Starts what is due and has nothing under way. */
static void tick(Run *run) {
    uint64_t ticks;
    double t = now();
    if (read(run->timer, &ticks, sizeof ticks) < 0 && errno != EAGAIN) fail(1, "timerfd: %s", strerror(errno));
    for (Connection *c = run->connections; t < run->end && c < run->connections + run->plan->connections; c++)
        if (!c->count && c->due <= t) start_batch(run, c);
}

/* Blocks until no batch is under way: after `end` none begins. */
static void drive(Run *run) {
    struct epoll_event events[EVENTS_MAX];
    while (run->under_way || (run->plan->rate && now() < run->end)) {
        int ready = epoll_wait(run->poller, events, EVENTS_MAX, 100);
        if (ready < 0 && errno != EINTR) fail(1, "epoll_wait: %s", strerror(errno));
        for (int i = 0; i < ready; i++) {
            Connection *c = events[i].data.ptr;
            if (!c) tick(run);
            if (c && events[i].events & EPOLLOUT) push(run, c);
            if (c && events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) pull(run, c);
        }
        if (now() < run->end + run->plan->owed_s) continue;
        for (Connection *c = run->connections; c < run->connections + run->plan->connections; c++)
            if (c->count) {
                const char *owed = c->reply + c->checked * run->plan->reply_bytes;
                wrong_reply("a reply is still owed; what came of it", owed, c->reply + c->got - owed);
            }
    }
}

static int ascending(const void *a, const void *b) {
    float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static double *open_times(const char *path, size_t count) {
    int fd = open(path, O_RDWR | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
    if (fd < 0 || ftruncate(fd, count * sizeof(double))) fail(1, "%s: %s", path, strerror(errno));
    double *times = mmap(NULL, count * sizeof *times, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (times == MAP_FAILED || close(fd)) fail(1, "%s: %s", path, strerror(errno));
    return times;
}

int main(int argc, char **argv) {
    Plan plan = read_plan(argc, argv);
    for (int i = 0; i < 10000; i++) {
        char text[5];
        snprintf(text, sizeof text, "%04d", i);
        memcpy(quads[i], text, 4);
    }
    Run run = {.plan = &plan, .random = (plan.seed + 1) * UINT64_C(0x9e3779b97f4a7c15)};
    run.samples = room(SAMPLES_MAX, sizeof *run.samples);
    run.connections = room(plan.connections, sizeof *run.connections);
    run.poller = epoll_create1(EPOLL_CLOEXEC);
    if (run.poller < 0) fail(1, "epoll_create1: %s", strerror(errno));
    for (int i = 0; i < plan.connections; i++) open_connection(&run, &run.connections[i]);
    if (plan.times) run.answered = open_times(plan.times, (size_t)plan.first + plan.keys);

    double began = now();
    run.end = began + plan.seconds;
    if (plan.rate)
        start_clock(&run, began);
    else
        for (int i = 0; i < plan.connections; i++) start_batch(&run, &run.connections[i]);
    drive(&run);
    double elapsed = now() - began;

    uint32_t left = plan.each ? plan.keys - run.told : 0;
    if (left) fail(1, "%u of %u keys were not sent in %.1f s", left, plan.keys, elapsed);
    qsort(run.samples, run.taken, sizeof *run.samples, ascending);
    if (!run.taken) fail(1, "nothing was due in %.1f s", plan.seconds);
    printf("%.0f ops/s p50 %.0f us p99 %.0f us p99.9 %.0f us, %ld ops\n", run.operations / elapsed,
           run.samples[run.taken / 2] * 1e6, run.samples[(long)(run.taken * .99)] * 1e6,
           run.samples[(long)(run.taken * .999)] * 1e6, run.operations);
    if (fflush(stdout)) fail(1, "standard output: %s", strerror(errno));
    return 0;
}
