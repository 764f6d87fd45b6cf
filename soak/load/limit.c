/* limit: a server that does nothing but receive, walk rcache frames, and send the same reply for each.
 *
 *   limit OPCODE REPLY_FILE [OPCODE REPLY_FILE ...]
 *
 * About what no server of the protocol can be faster than, on the machine it runs on and beside the driver that loads it: the
 * cost of sockets and of the driver, and nothing else. A whole frame of OPCODE is answered by the bytes of its file; one of any
 * other opcode closes the connection. Prints `ready 127.0.0.1:PORT` when it listens, on a port that the system picked.
 *
 * One thread over all sockets; the driver has the other core. It runs until it is stopped. A client that does not take its
 * replies for SEND_S is let go. It checks nothing of a frame but its length: never give it a stranger's connection.
 *
 * Build: gcc -O2 -Wall -Wextra -Werror -o limit limit.c
 */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum {
    HEADER_BYTES = 16,
    OPCODE_AT = 2,
    LENGTH_AT = 4,
    OPCODES = 256,
    REPLY_BYTES_MAX = 1 << 16,
    RECV_BYTES = 1 << 16,
    /* Every frame has a header at least, and one was begun in the read before. */
    REPLIES_MAX = RECV_BYTES / HEADER_BYTES + 1,
    EVENTS_MAX = 256,
    BACKLOG = 1024,
    SEND_S = 10,
};

typedef struct { char *bytes; size_t length; } Reply;

typedef struct { /* invariant: `held` bytes of a header are there; of a whole one, `owed` bytes of payload are still to come */
    int fd;
    size_t held, owed;
    unsigned char header[HEADER_BYTES];
} Connection;

static Reply replies[OPCODES];
static size_t longest;

__attribute__((noreturn)) static void fail(const char *what) {
    fprintf(stderr, "limit: %s: %s\n", what, strerror(errno));
    exit(1);
}

static void read_reply(const char *opcode, const char *path) {
    Reply *reply = &replies[atoi(opcode) & (OPCODES - 1)];
    FILE *file = fopen(path, "rb");
    if (!file) fail(path);
    reply->bytes = malloc(REPLY_BYTES_MAX);
    if (!reply->bytes) fail("malloc");
    reply->length = fread(reply->bytes, 1, REPLY_BYTES_MAX, file);
    if (ferror(file) || fclose(file)) fail(path);
    if (reply->length > longest) longest = reply->length;
}

static int listening(void) {
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t length = sizeof address;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    if (fd < 0) fail("socket");
    if (bind(fd, (struct sockaddr *)&address, sizeof address)) fail("bind");
    if (listen(fd, BACKLOG)) fail("listen");
    if (getsockname(fd, (struct sockaddr *)&address, &length)) fail("getsockname");
    printf("ready 127.0.0.1:%d\n", ntohs(address.sin_port));
    if (fflush(stdout)) fail("standard output");
    return fd;
}

static void watch(int poller, int fd, void *what) {
    struct epoll_event event = {.events = EPOLLIN, .data.ptr = what};
    if (epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event)) fail("epoll_ctl");
}

static void welcome(int poller, int listener) {
    int fd = accept4(listener, NULL, NULL, SOCK_CLOEXEC), one = 1;
    if (fd < 0 && (errno == ECONNABORTED || errno == EINTR)) return;
    if (fd < 0) fail("accept");
    struct timeval patience = {.tv_sec = SEND_S};
    if (setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one)) fail("TCP_NODELAY");
    if (setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &patience, sizeof patience)) fail("SO_SNDTIMEO");
    Connection *connection = calloc(1, sizeof *connection);
    if (!connection) fail("calloc");
    connection->fd = fd;
    watch(poller, fd, connection);
}

/* Appends the reply of the whole frame whose header is held to `out`, and makes ready for the next. False: no such opcode. */
static bool answer(Connection *c, char *out, size_t *length) {
    const Reply *reply = &replies[c->header[OPCODE_AT]];
    if (!reply->length) return false;
    memcpy(out + *length, reply->bytes, reply->length);
    *length += reply->length;
    c->held = 0;
    return true;
}

/* Walks over what came in; returns the bytes of replies put into `out`, or -1 where the connection should end. */
static ssize_t walk(Connection *c, const char *bytes, size_t length, char *out) {
    size_t said = 0;
    while (length) {
        size_t wanted = c->held < HEADER_BYTES ? HEADER_BYTES - c->held : c->owed;
        size_t n = wanted < length ? wanted : length;
        if (c->held < HEADER_BYTES) {
            memcpy(c->header + c->held, bytes, n);
            c->held += n;
            if (c->held == HEADER_BYTES) {
                uint32_t payload;
                memcpy(&payload, c->header + LENGTH_AT, sizeof payload);
                c->owed = ntohl(payload);
            }
        } else {
            c->owed -= n;
        }
        bytes += n;
        length -= n;
        if (c->held == HEADER_BYTES && !c->owed && !answer(c, out, &said)) return -1;
    }
    return said;
}

static bool send_all(int fd, const char *bytes, size_t length) {
    while (length) {
        ssize_t n = send(fd, bytes, length, MSG_NOSIGNAL);
        if (n < 0 && errno == EINTR) continue;
        if (n < 0) return false;
        bytes += n;
        length -= n;
    }
    return true;
}

static void serve(Connection *c, char *in, char *out) {
    ssize_t n = recv(c->fd, in, RECV_BYTES, 0);
    if (n < 0 && errno == EINTR) return;
    ssize_t said = n > 0 ? walk(c, in, n, out) : -1;
    if (said >= 0 && send_all(c->fd, out, said)) return;
    if (close(c->fd)) fail("close");
    free(c);
}

int main(int argc, char **argv) {
    if (argc < 3 || argc % 2 == 0) {
        fprintf(stderr, "usage: limit OPCODE REPLY_FILE [OPCODE REPLY_FILE ...]\n");
        return 2;
    }
    for (int i = 1; i < argc; i += 2) read_reply(argv[i], argv[i + 1]);
    char *in = malloc(RECV_BYTES), *out = malloc(longest * REPLIES_MAX);
    if (!in || !out) fail("malloc");
    int poller = epoll_create1(EPOLL_CLOEXEC), listener = listening();
    if (poller < 0) fail("epoll_create1");
    watch(poller, listener, NULL);
    for (;;) {
        struct epoll_event events[EVENTS_MAX];
        int ready = epoll_wait(poller, events, EVENTS_MAX, -1);
        if (ready < 0 && errno != EINTR) fail("epoll_wait");
        for (int i = 0; i < ready; i++)
            if (events[i].data.ptr)
                serve(events[i].data.ptr, in, out);
            else
                welcome(poller, listener);
    }
}
