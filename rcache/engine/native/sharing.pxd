"""Many connections, one worker: sockets that share a thread by a level-triggered epoll.

What it is: the loop of a worker that serves a group of connections and never blocks in one of them. A connection whose replies
wait for commitment is parked; one whose peer takes nothing waits for room; both are read from no further meanwhile.
Which thread runs it: the group's own worker; `group_add` any.
What it owns: the connections that were added, until they are handed back. What it must not know: what is said in the frames
that are not the engine's business.

The phases of a connection here:
    OPEN      it is read from; nothing is to be sent
    PARKED    replies `wait` for commitment or for a lease, until `deadline_ns`; it is watched no more once it says something
    SENDING   bytes wait for the peer to take them, for `send_ns` at most
    DRAINING  the last frame and FIN are sent; what still comes is read and dropped, until the peer closes or FAREWELL_NS are
    over
OPEN -> PARKED -> SENDING -> OPEN or DRAINING, with none or any of the two in the middle.

Invariants: those of `serving` (so one that is parked is looked at again, clock and all, right before it is sent), and
4. A frame that is not the engine's business is handed back only when all replies before it were sent.
5. A connection is in the group, or handed back; never both.
"""

from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from libc.stdlib cimport free, realloc
from libc.string cimport memset

from rcache.engine.native.answers cimport Worker, forget_replies, join_waits, rewrite_uncommitted, want_confirmed
from rcache.engine.native.change cimport Buffer, buffer_free, end_batch
from rcache.engine.native.commitment cimport Wait, is_lost, is_met, ring_park, ring_unpark
from rcache.engine.native.operations cimport begin_batch
from rcache.engine.native.protocol cimport ST_BAD_PAYLOAD
from rcache.engine.native.ring cimport Ring
from rcache.engine.native.serving cimport (
    ENDED_BAD_FRAME, ENDED_CLOSED, ENDED_FRAME, ENDED_IDLE_TIMEOUT, ENDED_LOST, ENDED_SLOW_READER, ENDED_STOPPING,
    GOING_ON, LOOKS_IN_VAIN_MAX, LOOK_NS, OUTPUT_BYTES_MAX, OUTPUT_FULL, BUFFER_BYTES_KEPT, Conn, Ending, Handed, hold,
    limit_of, note_received, process, receive,
)
from rcache.engine.native.store cimport Store
from rcache.engine.native.system cimport (
    EAGAIN, EINTR, EPOLLET, EPOLLEXCLUSIVE, EPOLLIN, EPOLLOUT, EPOLL_CTL_ADD, EPOLL_CTL_DEL, EPOLL_CTL_MOD, MSG_DONTWAIT, MSG_NOSIGNAL, SHUT_WR,
    add64, epoll_ctl, epoll_event, epoll_wait, last_errno, load64, load8, monotonic_ns, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_unlock, read, recv, sched_yield, send, set_own_waker, set_pushing, shutdown, signed64,
)
from rcache.engine.native.windows cimport WINDOWS_MAX, Window, Windows, window_receive, windows_push

cdef enum Phase:
    PHASE_OPEN = 0
    PHASE_PARKED
    PHASE_SENDING
    PHASE_DRAINING

cdef enum:
    EVENTS_MAX = 128
    SLEEP_MS_MAX = 1000
    # How often the limits of all connections are looked at.
    SWEEP_NS = 50000000
    # How long a peer has to close after FIN: one that reads its replies does so within a round trip.
    FAREWELL_NS = 2000000000
    DISCARD_BYTES = 16384


cdef struct Group:
    Store *store
    int poller
    int waker                # eventfd: something was added, a commit point came further
    int stop_fd
    const uint8_t *stop
    bint stop_seen
    pthread_mutex_t lock     # of `incoming`
    Conn **incoming
    uint32_t incoming_count
    uint32_t incoming_room
    Conn **conns
    uint32_t count
    uint32_t room
    Conn **again             # whose held bytes are to be looked at
    uint32_t again_count
    uint32_t again_room
    epoll_event events[EVENTS_MAX]
    int event_count
    int event_at
    uint32_t parked
    int64_t sweep_at_ns
    uint32_t sweep_from      # where a sweep that was interrupted by a handback goes on
    bint sweeping
    uint64_t moves_seen      # of commit points
    uint64_t windows_watched[WINDOWS_MAX]   # the connections of links that the poller knows
    uint32_t in_vain         # looks in a row that found nothing
    uint32_t waits_unlooked  # sleeps to come that begin without a look
    Worker worker


cdef inline bint push(Conn ***list_, uint32_t *count, uint32_t *room, Conn *conn) noexcept nogil:
    cdef Conn **longer
    if count[0] == room[0]:
        longer = <Conn **>realloc(list_[0], (room[0] * 2 + 16) * sizeof(Conn *))
        if longer == NULL:
            return False
        list_[0], room[0] = longer, room[0] * 2 + 16
    list_[0][count[0]] = conn
    count[0] += 1
    return True


# --- who is watched for what

cdef inline void watch(Group *group, Conn *conn, uint32_t events) noexcept nogil:
    """Have the kernel tell of these events, or of nothing (0)."""
    cdef epoll_event wanted
    wanted.events, wanted.data.ptr = events, conn
    if events == conn.watched:
        return
    if events:
        epoll_ctl(group.poller, EPOLL_CTL_MOD if conn.watched else EPOLL_CTL_ADD, conn.fd, &wanted)
    else:
        epoll_ctl(group.poller, EPOLL_CTL_DEL, conn.fd, &wanted)
    conn.watched = events


cdef inline void leave(Group *group, Conn *conn) noexcept nogil:
    """Out of the group (invariant 5)."""
    cdef Conn *last = group.conns[group.count - 1]
    cdef int event
    cdef uint32_t number, kept = 0
    watch(group, conn, 0)
    for number in range(group.again_count):
        if group.again[number] != conn:
            group.again[kept] = group.again[number]
            kept += 1
    group.again_count = kept
    group.conns[conn.place] = last
    last.place = conn.place
    group.count -= 1
    for event in range(group.event_at, group.event_count):
        if group.events[event].data.ptr == conn:
            group.events[event].data.ptr = NULL
    if conn.phase == PHASE_PARKED:
        unpark(group, conn)


cdef inline void unpark(Group *group, Conn *conn) noexcept nogil:
    group.parked -= 1
    ring_unpark(&group.store.ring, &conn.wait)
    conn.phase = PHASE_OPEN


# --- sending

cdef inline void drop_unsent(Group *group, Conn *conn) noexcept nogil:
    add64(&group.store.buffer_bytes, -<int64_t>conn.unsent.room)
    buffer_free(&conn.unsent)
    conn.unsent_at = 0


cdef inline void keep_unsent(Group *group, Conn *conn, Worker *worker, uint64_t sent) noexcept nogil:
    """What was not sent, or may not be yet, goes over to the connection; the worker gets a new buffer when it needs one."""
    conn.unsent, conn.unsent_at = worker.out, sent
    add64(&group.store.buffer_bytes, <int64_t>conn.unsent.room)
    memset(&worker.out, 0, sizeof(Buffer))


cdef inline Ending send_some(Group *group, Conn *conn) noexcept nogil:
    """Send on what waits. GOING_ON, whether all was taken (then the phase is another) or not."""
    cdef ssize_t sent
    while conn.unsent_at < conn.unsent.count:
        sent = send(conn.fd, conn.unsent.data + conn.unsent_at, conn.unsent.count - conn.unsent_at, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if last_errno() == EINTR:
                continue
            if last_errno() != EAGAIN:
                return ENDED_LOST
            if conn.phase != PHASE_SENDING:
                conn.phase, conn.phase_began_ns = PHASE_SENDING, monotonic_ns()
            watch(group, conn, EPOLLOUT)
            return GOING_ON
        conn.unsent_at += sent
    drop_unsent(group, conn)
    if conn.parting:
        shutdown(conn.fd, SHUT_WR)
        conn.phase, conn.phase_began_ns = PHASE_DRAINING, monotonic_ns()
    else:
        conn.phase = PHASE_OPEN
        if conn.again and not push(&group.again, &group.again_count, &group.again_room, conn):
            return ENDED_LOST
    watch(group, conn, EPOLLIN)
    return GOING_ON


cdef inline Ending lose_replies(Worker *worker) noexcept nogil:
    """A connection is lost: what it was to be told is told to nobody, least of all to the next one that is served."""
    forget_replies(worker)
    buffer_free(&worker.out)
    worker.out.failed = False
    return ENDED_LOST


cdef inline bint flush_shared(Group *group, Conn *conn, Ending *lost) noexcept nogil:
    """Send the replies gathered, as far as that can be done now. True if all of them have left."""
    cdef Worker *worker = &group.worker
    cdef ssize_t sent = 0
    lost[0] = GOING_ON
    if worker.out.failed:
        lost[0] = lose_replies(worker)
        return False
    want_confirmed(group.store, worker)
    if not is_met(&group.store.ring, &worker.wait):
        park(group, conn)
        return False
    if worker.out.count:
        sent = send(conn.fd, worker.out.data, worker.out.count, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0 and last_errno() != EAGAIN and last_errno() != EINTR:
            lost[0] = lose_replies(worker)
            return False
        if sent < <ssize_t>worker.out.count:
            keep_unsent(group, conn, worker, max(sent, <ssize_t>0))
            forget_replies(worker)
            conn.phase, conn.phase_began_ns = PHASE_SENDING, monotonic_ns()
            if signed64(&group.store.buffer_bytes) > group.store.buffer_bytes_max + <int64_t>group.store.frame_bytes_max:
                lost[0] = ENDED_SLOW_READER
            watch(group, conn, EPOLLOUT)
            return False
    forget_replies(worker)
    if worker.out.room > OUTPUT_BYTES_MAX + BUFFER_BYTES_KEPT:
        buffer_free(&worker.out)
    return True


cdef inline void park(Group *group, Conn *conn) noexcept nogil:
    """The replies gathered wait for commitment (invariant 2)."""
    cdef Worker *worker = &group.worker
    keep_unsent(group, conn, worker, 0)
    conn.replies, conn.reply_count, conn.reply_room = worker.replies, worker.reply_count, worker.reply_room
    conn.wait, conn.deadline_ns = worker.wait, worker.deadline_ns
    worker.replies, worker.reply_room = NULL, 0
    forget_replies(worker)
    conn.phase, conn.phase_began_ns = PHASE_PARKED, monotonic_ns()
    group.parked += 1
    group.sweep_at_ns = min(group.sweep_at_ns, conn.deadline_ns)
    ring_park(&group.store.ring, &conn.wait)
    if is_met(&group.store.ring, &conn.wait) or is_lost(&group.store.ring, &conn.wait):  # before anybody was there to wake
        group.sweep_at_ns = 0


cdef inline Ending unpark_if_due(Group *group, Conn *conn, int64_t now_ns) noexcept nogil:
    """Send the replies of a parked connection if they may leave, or if that will not be in time."""
    cdef Ring *ring = &group.store.ring
    cdef Wait wait = conn.wait
    cdef Worker told
    cdef bint whole = join_waits(ring, conn.replies, conn.reply_count, &wait), met
    if not whole:  # the rest of them goes on waiting
        ring_unpark(ring, &conn.wait)
        conn.wait = wait
        ring_park(ring, &conn.wait)
    met = is_met(ring, &conn.wait)
    if not met and not load8(&ring.failed) and not load8(&ring.waits_ended) and now_ns < conn.deadline_ns:
        group.sweep_at_ns = min(group.sweep_at_ns, conn.deadline_ns)
        return GOING_ON
    if not met or not whole:
        memset(&told, 0, sizeof(Worker))
        told.out, told.replies, told.reply_count = conn.unsent, conn.replies, conn.reply_count
        told.wait.moment = conn.wait.moment
        add64(&group.store.buffer_bytes, -<int64_t>conn.unsent.room)
        rewrite_uncommitted(group.store, &told, load8(&ring.failed) != 0)
        conn.unsent = told.out
        add64(&group.store.buffer_bytes, <int64_t>conn.unsent.room)
    free(conn.replies)
    conn.replies = NULL
    unpark(group, conn)
    return ENDED_LOST if conn.unsent.failed else send_some(group, conn)


# --- receiving

cdef inline Ending answer_shared(Group *group, Conn *conn, const uint8_t *data, uint64_t count, Handed *handed) noexcept nogil:
    """Execute and answer the whole frames of `data`, as far as that can be done now; what is left is held."""
    cdef uint64_t at = 0, used = 0
    cdef Ending ending, lost
    begin_batch(group.store, &group.worker, monotonic_ns() if conn.again else conn.received_ns)
    conn.again = False
    while True:
        ending = process(group.store, &group.worker, conn, data + at, count - at, &used, handed)
        end_batch(group.store, &group.worker.batch)
        at += used
        if not flush_shared(group, conn, &lost):
            if lost != GOING_ON:
                return lost
            if ending == ENDED_FRAME or ending == ENDED_BAD_FRAME:  # invariant 4: it is looked at again
                at = handed.frame - data
                conn.requests -= ending == ENDED_FRAME or handed.status == ST_BAD_PAYLOAD
            conn.again = ending != GOING_ON
            break
        if ending == GOING_ON:
            break
        if ending != OUTPUT_FULL:
            handed.rest, handed.rest_count = data + at, count - at
            return ending
        begin_batch(group.store, &group.worker, monotonic_ns())
    return GOING_ON if hold(group.store, conn, data + at, count - at) else ENDED_LOST


cdef inline Ending receive_shared(Group *group, Conn *conn, Handed *handed) noexcept nogil:
    """Something is there to read."""
    cdef const uint8_t *data = NULL
    cdef uint64_t count = 0
    cdef ssize_t got = receive(group.store, &group.worker, conn, MSG_DONTWAIT, &data, &count)
    if got == -2:  # no buffer now: not watched until the next look at the limits
        watch(group, conn, 0)
        return GOING_ON
    if got < 0:
        return GOING_ON if last_errno() == EAGAIN or last_errno() == EINTR else ENDED_LOST
    if got == 0:
        return ENDED_CLOSED
    note_received(conn, conn.held_count if data != conn.held else conn.held_count - got)
    return answer_shared(group, conn, data, count, handed)


cdef inline Ending drain(Group *group, Conn *conn) noexcept nogil:
    """After FIN: what still comes is dropped."""
    cdef ssize_t got = recv(conn.fd, group.worker.input, DISCARD_BYTES, MSG_DONTWAIT)
    if got < 0:
        return GOING_ON if last_errno() == EAGAIN or last_errno() == EINTR else ENDED_LOST
    return GOING_ON if got else ENDED_CLOSED


cdef inline Ending on_event(Group *group, Conn *conn, Handed *handed) noexcept nogil:
    if conn.phase == PHASE_SENDING:
        return send_some(group, conn)
    if conn.phase == PHASE_DRAINING:
        return drain(group, conn)
    if conn.phase == PHASE_OPEN and not conn.again:
        # Here too, not by the sweep alone: whoever is told of each commitment and asks again at once is parked at every sweep.
        return ENDED_STOPPING if group.stop_seen else receive_shared(group, conn, handed)
    if conn.phase == PHASE_PARKED:
        watch(group, conn, 0)  # most that are parked say nothing meanwhile, and are spared two calls
    return GOING_ON


# --- limits

cdef inline Ending overdue(Group *group, Conn *conn, int64_t now_ns) noexcept nogil:
    """Which of its limits a connection has passed, or GOING_ON."""
    cdef int64_t left_ns
    cdef Ending ending
    if conn.phase == PHASE_PARKED:
        return unpark_if_due(group, conn, now_ns)
    if conn.phase == PHASE_SENDING:
        return ENDED_SLOW_READER if now_ns - conn.phase_began_ns > conn.send_ns else GOING_ON
    if conn.phase == PHASE_DRAINING:
        return ENDED_CLOSED if now_ns - conn.phase_began_ns > FAREWELL_NS else GOING_ON
    if group.stop_seen and not conn.again:
        return ENDED_STOPPING
    if not conn.watched:
        watch(group, conn, EPOLLIN)
    ending = limit_of(conn, now_ns, &left_ns)
    if ending == ENDED_IDLE_TIMEOUT:  # counted from the last read
        left_ns = conn.idle_ns - (now_ns - max(conn.received_ns, conn.began_ns))
    return ending if left_ns <= 0 else GOING_ON


# --- the loop

cdef inline bint again_room(Group *group) noexcept nogil:
    """Room in `again` for all connections of the group, in which each is once at most: no `push` there can fail."""
    cdef Conn **longer
    if group.again_room < group.room:
        longer = <Conn **>realloc(group.again, group.room * sizeof(Conn *))
        if longer == NULL:
            return False
        group.again, group.again_room = longer, group.room
    return True


cdef inline bint nobody_comes(Group *group) noexcept nogil:
    """Whether no connection waits to be taken in."""
    cdef bint none
    pthread_mutex_lock(&group.lock)
    none = not group.incoming_count
    pthread_mutex_unlock(&group.lock)
    return none


cdef inline bint take_incoming(Group *group) noexcept nogil:
    """Those that were added by other threads. False if memory for them cannot be had: they go on waiting."""
    cdef Conn *conn
    cdef bint taken = True
    pthread_mutex_lock(&group.lock)
    while taken and group.incoming_count:
        conn = group.incoming[group.incoming_count - 1]
        conn.place, conn.watched = group.count, 0
        taken = push(&group.conns, &group.count, &group.room, conn)
        if not taken:
            break
        if not again_room(group):
            group.count -= 1
            taken = False
            break
        group.incoming_count -= 1
        conn.again = conn.held_count > 0
        if conn.unsent.count or conn.parting:
            conn.phase, conn.phase_began_ns = PHASE_SENDING, monotonic_ns()
            watch(group, conn, EPOLLOUT)
            continue
        conn.phase = PHASE_OPEN
        watch(group, conn, EPOLLIN)
        if conn.again:
            push(&group.again, &group.again_count, &group.again_room, conn)
    pthread_mutex_unlock(&group.lock)
    return taken


cdef inline void look_at_stop(Group *group) noexcept nogil:
    cdef epoll_event unused
    if load8(group.stop) and not group.stop_seen:
        group.stop_seen = True
        epoll_ctl(group.poller, EPOLL_CTL_DEL, group.stop_fd, &unused)
        group.sweep_at_ns = 0


cdef inline Conn *sweep(Group *group, int64_t now_ns, Ending *ending) noexcept nogil:
    """Look at the limits of all connections. One that has passed one is returned; the sweep goes on behind it next time."""
    cdef Conn *conn
    if not group.sweeping:
        group.sweeping, group.sweep_from = True, 0
        group.sweep_at_ns = now_ns + SWEEP_NS
    while group.sweep_from < group.count:
        conn = group.conns[group.sweep_from]
        ending[0] = overdue(group, conn, now_ns)
        if ending[0] != GOING_ON:
            return conn
        group.sweep_from += 1
    group.sweeping = False
    return NULL


cdef inline Conn *next_handed(Group *group, Ending *ending, Handed *handed) noexcept nogil:
    """Serve until a connection is to be handed back: it is out of the group then. NULL: serving ends, and nobody is left."""
    cdef Conn *conn
    cdef int64_t now_ns
    set_pushing(True)
    set_own_waker(group.waker)
    conn = serve_group(group, ending, handed)
    set_pushing(False)
    set_own_waker(-1)
    windows_push(&group.store.windows)
    return conn


cdef inline Conn *serve_group(Group *group, Ending *ending, Handed *handed) noexcept nogil:
    cdef Conn *conn
    cdef int64_t now_ns
    while True:
        handed.status, handed.frame = 0, NULL
        ending[0] = GOING_ON
        conn = NULL
        if group.again_count:
            group.again_count -= 1
            conn = group.again[group.again_count]
            if conn.phase == PHASE_OPEN and conn.again:
                ending[0] = answer_shared(group, conn, conn.held, conn.held_count, handed)
        elif group.event_at < group.event_count:
            conn = <Conn *>group.events[group.event_at].data.ptr
            group.event_at += 1
            if conn == NULL:
                continue
            ending[0] = on_event(group, conn, handed)
        else:
            now_ns = monotonic_ns()
            if group.sweeping or now_ns >= group.sweep_at_ns:
                conn = sweep(group, now_ns, ending)
            if ending[0] == GOING_ON:
                conn = NULL
                if group.stop_seen and not group.count and nobody_comes(group):
                    return NULL
                push_windows(group)
                if group.parked and load64(&group.store.ring.moves) != group.moves_seen:
                    group.moves_seen, group.sweep_at_ns = load64(&group.store.ring.moves), 0
                    continue
                wait_for_events(group, now_ns)
        if conn != NULL and ending[0] != GOING_ON:
            leave(group, conn)
            return conn


cdef inline void push_windows(Group *group) noexcept nogil:
    """Send to the peers what was changed since the last sleep, and have the poller tell of what they answer."""
    cdef Windows *windows = &group.store.windows
    cdef epoll_event wanted
    cdef Window *window
    cdef uint64_t number
    windows_push(windows)
    if not group.parked:
        return
    for number in range(load64(&windows.count)):
        window = windows.at[number]
        if load64(&window.connection) == group.windows_watched[number]:
            continue
        pthread_mutex_lock(&window.receiving)
        group.windows_watched[number] = window.connection
        if window.fd >= 0:
            # One of the workers is told, once for what has come: that one takes all of it.
            wanted.events, wanted.data.ptr = EPOLLIN | EPOLLET | EPOLLEXCLUSIVE, window
            epoll_ctl(group.poller, EPOLL_CTL_ADD, window.fd, &wanted)
        pthread_mutex_unlock(&window.receiving)


cdef inline bint on_window(Group *group, void *told) noexcept nogil:
    """Take in what a peer has answered, if it is of one that there is something to read. A worker with nobody parked has no
    business with it, and leaves it to others from now on."""
    cdef Windows *windows = &group.store.windows
    cdef epoll_event unused
    cdef Window *window
    cdef uint64_t number
    for number in range(load64(&windows.count)):
        window = windows.at[number]
        if <void *>window != told:
            continue
        if not group.parked:
            pthread_mutex_lock(&window.receiving)
            if window.fd >= 0 and window.connection == group.windows_watched[number]:
                epoll_ctl(group.poller, EPOLL_CTL_DEL, window.fd, &unused)
            group.windows_watched[number] = 0
            pthread_mutex_unlock(&window.receiving)
        window_receive(window)
        return True
    return False


cdef inline bint look_for_events(Group *group, int64_t now_ns) noexcept nogil:
    """Before a sleep: look for a moment, unless that was in vain lately. Whoever sends then wakes nobody, which costs it
    most of its call, and is answered by one who is awake."""
    if not group.store.looks or not group.count:
        return False
    if group.waits_unlooked:
        group.waits_unlooked -= 1
        return False
    while monotonic_ns() - now_ns < LOOK_NS:
        group.event_count = epoll_wait(group.poller, group.events, EVENTS_MAX, 0)
        if group.event_count > 0:
            group.in_vain = 0
            return True
        sched_yield()  # whoever was woken by the reply may be on this very core
    group.in_vain = min(group.in_vain + 1, <uint32_t>LOOKS_IN_VAIN_MAX)
    group.waits_unlooked = (<uint32_t>1 << group.in_vain) - 1
    return False


cdef inline void wait_for_events(Group *group, int64_t now_ns) noexcept nogil:
    """Sleep until something happens or limits are to be looked at."""
    cdef int64_t left_ms = max((group.sweep_at_ns - now_ns + 999999) // 1000000, <int64_t>0)
    cdef uint64_t ticks
    cdef int event
    group.event_at = 0
    if left_ms and not group.again_count and look_for_events(group, now_ns):
        left_ms = 0
    else:
        left_ms = min(left_ms, <int64_t>SLEEP_MS_MAX) if not group.again_count else 0
        group.event_count = epoll_wait(group.poller, group.events, EVENTS_MAX, <int>left_ms)
    for event in range(group.event_count):
        if group.events[event].data.ptr == &group.waker:
            read(group.waker, &ticks, sizeof(ticks))
            if group.parked:
                group.sweep_at_ns = 0
        elif group.events[event].data.ptr != &group.stop_fd and not on_window(group, group.events[event].data.ptr):
            continue
        group.events[event].data.ptr = NULL
    look_at_stop(group)
    if not take_incoming(group):
        group.sweep_at_ns = min(group.sweep_at_ns, now_ns + SWEEP_NS)  # tried again then
