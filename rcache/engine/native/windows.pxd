"""Windows of links in native code: frames that were sent to a peer and are not acknowledged, without the interpreter's lock.

What it is: `rcache.engine.window` in native code. What is there for the peer is sent from the ring by whoever comes first: the
link's own thread, or a worker that is about to wait for it; and acknowledgements are taken in by whoever comes first: a worker
that waits for one, or the link's other thread. So a change that one backup has to have goes to it and comes back without a
thread being woken on this side.
Which thread runs it: `window_run` the link's sender; `window_push` and `window_receive` any that holds no lock of the engine.
What it owns: the connection of a link, from `window_begin` to `window_end`; the frames under way; its cursor's place.
What it must not know: which buckets are whose; what an answer says that is no plain OK.

Invariants:
1. Only who holds `sending` reads on in the stream and begins a frame; and a worker only while the window is `open`, which says
   that the link's sender has followed its orders and waits in `window_run`. So no frame carries an epoch that the link has left.
2. A frame is in the books before its first byte is sent, and the books are in the order of the frames.
3. A frame that the socket did not take whole is finished by the sender (`unsent`) before another begins.
4. A position is acknowledged when the peer answered OK for the last frame before it; what is not for the peer is passed by with
   the frame before it, or at once if there is none under way.
5. An answer that is no plain OK to the oldest frame is left to Python, and so is all that comes behind it, until Python has
   taken that in (`handed`); nothing is taken in of an earlier connection or generation.
6. A point that was closed, and whose number is another's by now, is told nothing (`serial`).
7. Who found `sending` taken leaves its record, or the question it wants asked, to who has it: that one looks again after it has
   let go.
8. A frame has the moment that is read before its first byte is sent, and the epoch that it names. What its answer confirms is
   that moment, and only where the answer names no newer epoch: a peer that goes by a newer view may serve what was this node's,
   and still takes what fits of an older one (decision 0027). It is asked again once this side's frames name another epoch.
9. Where somebody wants an answer to a frame of a newer moment than that of the last one, and nothing of the stream is there for
   the peer, an empty frame is sent: a question. So it comes behind all that was sent before, and says that nothing of old comes
   after it.
10. A frame that comes up to the position of a sample of what was used of the peer's credit has that sample (`credit`,
   invariant 2); nothing is sent across that position. What the peer lends beyond the frame then renews the credit, whatever epoch its
   answer names: what room it has is so by any view.

Lock order: `receiving`, `sending`, `books`, then the ring's. Nothing blocks under `sending` but the sender that finishes a
frame, and nothing under the others; a stripe is never held.
"""

from libc.stddef cimport size_t
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from libc.stdlib cimport calloc, free
from libc.string cimport memcpy, memmove, memset

from rcache.engine.native.commitment cimport (
    Wait, is_lost, is_met, is_point_done, point_advance_as, ring_wait,
)
from rcache.engine.native.credit cimport Sample, credit_pass_on, credit_renew, credit_sample
from rcache.engine.native.cursors cimport (
    SPANS_MAX, Measured, Span, cursor_measure, cursor_rewind, cursor_unpin,
)
from rcache.engine.native.protocol cimport HEADER_BYTES, PROTOCOL_VERSION, REPLY_MAGIC, ST_OK
from rcache.engine.native.ring cimport (
    CREDIT_NOT_SAID, KIND_AT, POINTS_MAX, STREAM_FAILED, STREAM_REACHED, STREAM_TIMED_OUT, Cursor, Ring, StreamEnd, ring_at, ring_head,
)
from rcache.engine.native.system cimport (
    EAGAIN, EFD_CLOEXEC, EFD_NONBLOCK, EINTR, MSG_DONTWAIT, MSG_NOSIGNAL, POLLIN, POLLOUT, add64, close, cond_wait_until, eventfd,
    fence, get32, hint8, iovec, last_errno, load64, load8,
    lowest64, monotonic_ns, msghdr, mutex_init, poll, pollfd, pthread_cond_broadcast, pthread_mutex_lock, pthread_mutex_t,
    pthread_mutex_trylock, pthread_mutex_unlock, put32, read, recv, sched_yield, sendmsg, signed64, store64, store8, write,
)
from rcache.records._countdown cimport Countdown, countdown, take8, take32, take64

cdef enum:
    # One for each commit point that is a link's, and some that are on their way out.
    WINDOWS_MAX = 64
    # Frames under way: more than a peer that keeps up ever has before it. Then nobody sends until some were answered.
    FRAMES_MAX = 1024
    # A header and the words that precede the records.
    WINDOW_HEAD_MAX = 128
    # Some hundred acknowledgements. What does not fit is Python's business.
    ANSWERS_BYTES = 16384
    ANSWER_PAYLOAD = 8
    # How long a worker that waits alone looks for an acknowledgement before it sleeps over it.
    LEAD_LOOK_NS = 50000
    LEAD_LOOKS_IN_VAIN_MAX = 10
    # How long it sleeps before it looks whether its wait has ended otherwise.
    LEAD_MS = 2
    # How long the link's receiver leaves the socket to workers that took acknowledgements in since it looked last.
    ASIDE_MS = 2
    RECEIVE_MS = 250
    REQUEST_ID_HALF = 0x7FFFFFFF
    NO_ACCOUNT = 0

cdef enum WindowStep:
    STEP_NOTHING = 0         # there is nothing to send
    STEP_DONE
    STEP_FULL                # too many frames are under way

cdef enum WindowEnd:
    # How `window_run` came back.
    WINDOW_WOKEN = 0
    WINDOW_TIMED_OUT
    WINDOW_SLOW
    WINDOW_LOST


cdef struct Frame:
    uint64_t position        # behind what it brings, and what was passed by after it
    int64_t sent_ns
    uint64_t moment          # invariant 8
    uint32_t epoch
    int64_t used             # of the credit, up to here
    uint64_t account         # whose that is; NO_ACCOUNT: there is no sample of it
    uint32_t request_id
    bint marked              # what follows from its answer is Python's


cdef struct Window:
    Ring *ring
    Cursor *cursor
    uint64_t owner           # of the cursor
    pthread_mutex_t sending
    pthread_mutex_t receiving
    pthread_mutex_t books
    int waker                # eventfd: the receiver is to look
    int fd                   # written under `receiving` and `sending`; -1: no connection
    uint64_t connection      # which one, counted; 0: none
    uint64_t connections
    uint8_t open
    uint8_t unsent
    uint8_t lost
    uint8_t handed
    uint8_t watched
    uint8_t moved
    uint8_t full
    uint8_t opcode
    int64_t served           # acknowledgements were looked for by somebody else than the receiver, counted
    uint64_t asked           # the moment of the newest frame of this connection, generation and epoch
    uint64_t looked          # the cursor's place, for those who have no lock
    uint64_t bytes_max
    int64_t send_ns
    uint64_t point           # what is advanced; it and its serial are written under `books`
    uint32_t serial
    uint64_t account         # both in one
    # under `books`
    Frame frames[FRAMES_MAX]
    uint32_t frame_at
    uint32_t frame_count
    uint32_t first_id        # of this connection and generation
    uint32_t next_id
    uint64_t acknowledged
    uint64_t answered        # the moment that was confirmed last
    uint64_t frames_sent
    uint64_t records_sent
    # under `sending`
    uint8_t head[WINDOW_HEAD_MAX]
    uint32_t head_bytes
    uint32_t epoch           # that it names
    Sample sample            # that a frame is to take along
    uint64_t sample_account
    Span spans[SPANS_MAX]
    iovec pieces[1 + SPANS_MAX]
    uint32_t piece_at
    uint32_t piece_count
    # under `receiving`
    uint8_t answers[ANSWERS_BYTES]
    uint32_t held
    bint used


cdef struct Windows:
    # All there are. A place that was given once stays, so that whoever found one may go on.
    pthread_mutex_t lock
    Window *at[WINDOWS_MAX]
    uint64_t count
    bint looks


# --- who is told

cdef inline void wake_sender(Window *window) noexcept nogil:
    """Have the link's sender come back to Python, or look."""
    pthread_mutex_lock(&window.ring.lock)
    window.cursor.woken = True
    pthread_cond_broadcast(&window.ring.readable)
    pthread_mutex_unlock(&window.ring.lock)


cdef inline void rouse_sender(Window *window) noexcept nogil:
    """Have the link's sender look, where it sleeps; it goes on by itself."""
    pthread_mutex_lock(&window.ring.lock)
    pthread_cond_broadcast(&window.ring.readable)
    pthread_mutex_unlock(&window.ring.lock)


cdef inline void wake_receiver(Window *window) noexcept nogil:
    cdef uint64_t one = 1
    write(window.waker, &one, sizeof(one))


cdef inline void lose(Window *window) noexcept nogil:
    """The connection is of no use any more."""
    store8(&window.lost, 1)
    wake_sender(window)
    wake_receiver(window)


# --- the books

cdef inline void move_locked(Window *window, uint64_t position, uint64_t moment) noexcept nogil:
    """The peer has all that it is to have of what lies before `position`, and has answered a frame of this moment (0: of none
    that is new). Under `books`."""
    cdef bint moved = position > window.acknowledged
    if not moved and moment <= window.answered:
        return
    store64(&window.acknowledged, max(position, window.acknowledged))
    window.answered = max(moment, window.answered)
    point_advance_as(
        window.ring, <uint32_t>window.point, window.serial, window.acknowledged, window.answered, window.cursor, window.owner
    )
    if moved and load8(&window.watched):
        store8(&window.watched, 0)
        store8(&window.moved, 1)
        wake_sender(window)


cdef inline void give_sample_locked(Window *window, Frame *frame, uint64_t position) noexcept nogil:
    """To a frame that is the last before this position (invariant 10). Under `sending` and `books`."""
    if window.sample.taken and position >= window.sample.position:
        frame.used, frame.account = window.sample.used, window.sample_account
        window.sample.taken = False


cdef inline void take_sample(Window *window) noexcept nogil:
    """Of what is used of the credit, unless a frame is still to take one along. (One whose position was come by is none's:
    too many frames were under way.) Under `sending`."""
    cdef uint64_t account
    if not window.sample.taken or window.sample.position <= window.cursor.position:
        window.sample.taken = False
        account = load64(&window.account)
        if account == NO_ACCOUNT:
            window.sample.position = ring_head(window.ring)
        else:
            window.sample = credit_sample(window.ring, account >> 32)
        window.sample_account = account


cdef inline bint enter_locked(Window *window, uint64_t position, uint64_t records, bint marked) noexcept nogil:
    """A frame is about to be sent. Under `sending` and `books`."""
    cdef Frame *frame
    if window.frame_count == FRAMES_MAX:
        return False
    frame = &window.frames[(window.frame_at + window.frame_count) % FRAMES_MAX]
    frame.position, frame.sent_ns, frame.request_id, frame.marked = position, monotonic_ns(), window.next_id, marked
    frame.moment, frame.epoch = load64(&window.ring.moment), window.epoch  # invariant 8
    frame.account = NO_ACCOUNT
    give_sample_locked(window, frame, max(position, window.cursor.position))
    store64(&window.asked, frame.moment)
    window.frame_count += 1
    window.next_id += 1
    window.next_id += window.next_id == 0
    window.frames_sent += 1
    window.records_sent += records
    return True


cdef inline void leave_locked(Window *window) noexcept nogil:
    """The oldest frame was answered. Under `books`."""
    window.first_id = window.frames[window.frame_at].request_id  # numbers go round, in half a day of a busy link
    window.frame_at = (window.frame_at + 1) % FRAMES_MAX
    window.frame_count -= 1


cdef inline uint64_t moment_of(const Frame *frame, uint32_t epoch) noexcept nogil:
    """What an answer that names this epoch confirms (invariant 8); 0: nothing."""
    return frame.moment if epoch <= frame.epoch else 0


cdef inline bint is_of_old(const Window *window, uint32_t request_id) noexcept nogil:
    """Whether an answer is to a frame of an earlier connection or generation."""
    return request_id - window.first_id > REQUEST_ID_HALF


# --- sending

cdef inline bint has_more(Window *window) noexcept nogil:
    """Whether there is a whole record that was not looked at. A hint, where `sending` is not held: what lies there may be looked
    at, let go of and written over meanwhile. Who reads the record looks for himself (`cursor_measure`)."""
    cdef uint64_t at = load64(&window.looked)
    return at < ring_head(window.ring) and hint8(ring_at(window.ring, at) + KIND_AT) != 0


cdef inline bint wants_answer(Window *window) noexcept nogil:
    """Whether a frame is wanted even if it brings nothing (invariant 9). A hint, where `sending` is not held."""
    cdef uint64_t point = load64(&window.point)
    return point < POINTS_MAX and load64(&window.ring.wanted[point]) > load64(&window.asked)


cdef inline bint has_business(Window *window) noexcept nogil:
    return has_more(window) or wants_answer(window)


cdef inline void send_now(Window *window) noexcept nogil:
    """Send on what the socket takes of the frame under way. Under `sending`."""
    cdef msghdr message
    cdef iovec *piece
    cdef ssize_t sent
    memset(&message, 0, sizeof(message))
    while window.piece_at < window.piece_count:
        message.msg_iov, message.msg_iovlen = &window.pieces[window.piece_at], window.piece_count - window.piece_at
        sent = sendmsg(window.fd, &message, MSG_NOSIGNAL | MSG_DONTWAIT)
        if sent < 0:
            if last_errno() == EINTR:
                continue
            if last_errno() != EAGAIN:
                lose(window)
            else:
                store8(&window.unsent, 1)
            return
        while window.piece_at < window.piece_count and <size_t>sent >= window.pieces[window.piece_at].iov_len:
            sent -= <ssize_t>window.pieces[window.piece_at].iov_len
            window.piece_at += 1
        if window.piece_at < window.piece_count:
            piece = &window.pieces[window.piece_at]
            piece.iov_base = <char *>piece.iov_base + sent
            piece.iov_len -= <size_t>sent
    store8(&window.unsent, 0)


cdef inline void begin_frame(Window *window, uint32_t request_id, uint64_t bytes) noexcept nogil:
    """The head of a frame of so many bytes behind its prefix. Under `sending`."""
    put32(window.head + 4, <uint32_t>(window.head_bytes - HEADER_BYTES + bytes))
    put32(window.head + 8, request_id)
    window.pieces[0].iov_base, window.pieces[0].iov_len = window.head, window.head_bytes
    window.piece_at, window.piece_count = 0, 1


cdef inline WindowStep send_next(Window *window, uint64_t until) noexcept nogil:
    """The next frame, as far as the socket takes it. Under `sending` (invariant 1)."""
    cdef Measured found
    cdef uint32_t number, request_id = 0
    cdef bint entered = True
    cdef Frame *last
    if window.cursor.position >= until or not has_more(window):
        return send_question(window, until)
    take_sample(window)
    cursor_measure(
        window.ring, window.cursor, window.bytes_max, min(until, window.sample.position), window.spans, SPANS_MAX, &found
    )
    if found.position == window.cursor.position:
        return send_question(window, until)
    pthread_mutex_lock(&window.books)
    if found.count:
        request_id = window.next_id
        entered = enter_locked(window, found.position, found.count, False)
        store8(&window.full, not entered)
    elif window.frame_count:
        last = &window.frames[(window.frame_at + window.frame_count - 1) % FRAMES_MAX]
        last.position = found.position
        give_sample_locked(window, last, found.position)
    elif found.position >= window.sample.position:
        window.sample.taken = False
    if entered:
        cursor_unpin(window.ring, window.cursor, found.position)
        store64(&window.looked, found.position)
        if not found.count and not window.frame_count:  # invariant 4
            move_locked(window, found.position, 0)
    pthread_mutex_unlock(&window.books)
    if not entered:
        return STEP_FULL
    if found.count:
        begin_frame(window, request_id, found.bytes)
        for number in range(found.spans):
            window.pieces[number + 1].iov_base = ring_at(window.ring, window.spans[number].position)
            window.pieces[number + 1].iov_len = window.spans[number].count
        window.piece_count = 1 + found.spans
        send_now(window)
    return STEP_DONE


cdef inline WindowStep send_question(Window *window, uint64_t until) noexcept nogil:
    """There is nothing of the stream to send: an empty frame, where that is wanted (invariant 9). Not while only what lies
    before `until` is to be sent: who asks for that comes to an end by it. Under `sending`."""
    cdef uint32_t request_id
    cdef bint entered
    if until != <uint64_t>-1 or not wants_answer(window):
        return STEP_NOTHING
    take_sample(window)
    pthread_mutex_lock(&window.books)
    request_id = window.next_id
    entered = enter_locked(window, window.cursor.position, 0, False)
    store8(&window.full, not entered)
    pthread_mutex_unlock(&window.books)
    if not entered:
        return STEP_FULL
    begin_frame(window, request_id, 0)
    send_now(window)
    return STEP_DONE


cdef inline void window_push(Window *window) noexcept nogil:
    """Send what is there for the peer, if nobody else is about to. Never blocks. Any thread that holds no lock."""
    cdef bint goes_on
    while load8(&window.open) and not load8(&window.unsent) and has_business(window):
        if pthread_mutex_trylock(&window.sending):
            return  # invariant 7
        goes_on = load8(&window.open) and not load8(&window.unsent) and not load8(&window.lost)
        if goes_on:
            goes_on = send_next(window, <uint64_t>-1) != STEP_FULL
        pthread_mutex_unlock(&window.sending)
        if load8(&window.unsent):
            rouse_sender(window)
        if not goes_on:
            return
        fence()


cdef inline void windows_push(Windows *windows) noexcept nogil:
    """Send to every peer what is there for it."""
    cdef uint64_t number
    for number in range(load64(&windows.count)):
        window_push(windows.at[number])


cdef inline WindowEnd finish_frame(Window *window) noexcept nogil:
    """Send the rest of a frame that the socket did not take at once (invariant 3). Under `sending`; the sender's. Blocks."""
    cdef int64_t deadline_ns = monotonic_ns() + window.send_ns, left_ms
    cdef pollfd watched
    watched.fd, watched.events = window.fd, POLLOUT
    while load8(&window.unsent):
        send_now(window)
        if load8(&window.lost):
            return WINDOW_LOST
        if not load8(&window.unsent):
            break
        left_ms = (deadline_ns - monotonic_ns() + 999999) // 1000000
        if left_ms <= 0:
            return WINDOW_SLOW
        poll(&watched, 1, <int>min(left_ms, <int64_t>RECEIVE_MS))
    return WINDOW_WOKEN


cdef inline void sleep_until(Window *window, int64_t until_ns) noexcept nogil:
    """Until there is something to do for the sender: a record whose maker does not send it, an order, a frame to finish."""
    cdef Ring *ring = window.ring
    pthread_mutex_lock(&ring.lock)
    add64(&ring.window_sleepers, 1)
    fence()
    while (not window.cursor.woken and not load8(&window.unsent) and not load8(&window.lost)
            and (load8(&window.full) or not has_business(window)) and monotonic_ns() < until_ns):
        cond_wait_until(&ring.readable, &ring.lock, until_ns)
    add64(&ring.window_sleepers, -1)
    pthread_mutex_unlock(&ring.lock)


cdef inline bint take_woken(Window *window) noexcept nogil:
    cdef bint woken
    pthread_mutex_lock(&window.ring.lock)
    woken = window.cursor.woken
    window.cursor.woken = False
    pthread_mutex_unlock(&window.ring.lock)
    return woken


cdef inline WindowEnd window_run(Window *window, int64_t until_ns) noexcept nogil:
    """Send frame after frame, and have others send, until something is Python's business. Blocks."""
    cdef WindowEnd end = WINDOW_WOKEN
    pthread_mutex_lock(&window.sending)
    while True:
        if load8(&window.lost) or window.fd < 0:
            end = WINDOW_LOST
            break
        if load8(&window.unsent):
            end = finish_frame(window)
            if end != WINDOW_WOKEN:
                break
        if take_woken(window):
            end = WINDOW_WOKEN
            break
        store8(&window.open, 1)
        if send_next(window, <uint64_t>-1) == STEP_DONE:
            continue
        pthread_mutex_unlock(&window.sending)
        sleep_until(window, until_ns)
        pthread_mutex_lock(&window.sending)
        if monotonic_ns() >= until_ns and not load8(&window.unsent):
            end = WINDOW_TIMED_OUT
            break
    store8(&window.open, 0)
    pthread_mutex_unlock(&window.sending)
    return end


cdef inline WindowEnd window_send_until(Window *window, uint64_t until) noexcept nogil:
    """Send all that begins before `until`. The sender's, outside of `window_run`. Blocks. WOKEN: it was, or all was sent."""
    cdef WindowEnd end = WINDOW_WOKEN
    pthread_mutex_lock(&window.sending)
    while end == WINDOW_WOKEN:
        if load8(&window.lost) or window.fd < 0:
            end = WINDOW_LOST
        elif load8(&window.unsent):
            end = finish_frame(window)
        elif send_next(window, until) != STEP_DONE:
            break
    pthread_mutex_unlock(&window.sending)
    return end


cdef inline WindowEnd window_send_body(
    Window *window, const uint8_t *body, uint64_t count, uint64_t position, bint *full
) noexcept nogil:
    """A frame of other records than the stream's, whose answer is Python's business. The sender's, outside of `window_run`.
    Blocks."""
    cdef WindowEnd end = WINDOW_WOKEN
    cdef uint32_t request_id
    pthread_mutex_lock(&window.sending)
    if load8(&window.lost) or window.fd < 0:
        end = WINDOW_LOST
    elif load8(&window.unsent):
        end = finish_frame(window)
    full[0] = False
    if end == WINDOW_WOKEN:
        take_sample(window)
        pthread_mutex_lock(&window.books)
        request_id = window.next_id
        full[0] = not enter_locked(window, position, 0, True)
        pthread_mutex_unlock(&window.books)
        if not full[0]:
            begin_frame(window, request_id, count)
            window.pieces[1].iov_base, window.pieces[1].iov_len = <void *>body, count
            window.piece_count = 2
            store8(&window.unsent, 1)
            end = finish_frame(window)
    pthread_mutex_unlock(&window.sending)
    return end


# --- receiving

cdef inline bint is_plain(Countdown *head) noexcept nogil:
    """Whether a header is that of a plain OK; it has 16 bytes. What is left of it is its request id and its epoch."""
    cdef uint8_t magic = take8(head), version = take8(head)
    take8(head)
    return magic == REPLY_MAGIC and version == PROTOCOL_VERSION and take8(head) == ST_OK and take32(head) == ANSWER_PAYLOAD


cdef inline int64_t room_of(const uint8_t *answer) noexcept nogil:
    """What a whole plain answer says."""
    cdef Countdown payload = countdown(answer + HEADER_BYTES, ANSWER_PAYLOAD)
    return <int64_t>take64(&payload)


cdef inline void renew_locked(Window *window, uint64_t account, int64_t used, int64_t room) noexcept nogil:
    """Invariant 10. What was for an earlier point says nothing of this one. Under `books`."""
    if account != NO_ACCOUNT and account == window.account and room != CREDIT_NOT_SAID:
        credit_renew(window.ring, account >> 32, <uint32_t>account, used, room)


cdef inline void take_answers(Window *window) noexcept nogil:
    """Take in the whole plain answers that are held; what is left begins with one that is not whole, or not plain (invariant
    5). Under `receiving`."""
    cdef uint32_t at = 0, request_id
    cdef uint64_t position = 0, moment = 0, account = NO_ACCOUNT
    cdef int64_t used = 0, room = 0
    cdef Countdown head
    cdef Frame *oldest
    pthread_mutex_lock(&window.books)
    while window.held - at >= HEADER_BYTES:
        head = countdown(window.answers + at, window.held - at)
        if not is_plain(&head) or window.answers[at + 2] != window.opcode:
            store8(&window.handed, 1)
            break
        if window.held - at < HEADER_BYTES + ANSWER_PAYLOAD:
            break
        request_id = take32(&head)
        oldest = &window.frames[window.frame_at]
        if not is_of_old(window, request_id):
            if not window.frame_count or oldest.request_id != request_id or oldest.marked:
                store8(&window.handed, 1)
                break
            position = oldest.position
            moment = max(moment, moment_of(oldest, take32(&head)))
            if oldest.account != NO_ACCOUNT:
                used, account, room = oldest.used, oldest.account, room_of(window.answers + at)
            leave_locked(window)
        at += HEADER_BYTES + ANSWER_PAYLOAD
    renew_locked(window, account, used, room)
    move_locked(window, position, moment)
    pthread_mutex_unlock(&window.books)
    memmove(window.answers, window.answers + at, window.held - at)
    window.held -= at


cdef inline void receive_locked(Window *window) noexcept nogil:
    """Take in what has come. Under `receiving`."""
    cdef ssize_t got
    cdef uint32_t room
    while window.fd >= 0 and not load8(&window.handed) and not load8(&window.lost):
        room = ANSWERS_BYTES - window.held
        got = recv(window.fd, window.answers + window.held, room, MSG_DONTWAIT | MSG_NOSIGNAL)
        if got <= 0:
            if got < 0 and last_errno() == EINTR:
                continue
            if got == 0 or last_errno() != EAGAIN:
                lose(window)
            break
        window.held += <uint32_t>got
        take_answers(window)
        if <uint32_t>got < room:
            break
    if load8(&window.handed):
        wake_receiver(window)


cdef inline void go_on_sending(Window *window) noexcept nogil:
    """After frames were answered: what waited for that, and what has come meanwhile."""
    if load8(&window.full):
        store8(&window.full, 0)
        rouse_sender(window)
    window_push(window)


cdef inline int window_receive(Window *window) noexcept nogil:
    """Take in what the peer has answered. Any thread that holds no lock; does not block but for who is at it already. Returns
    the connection's descriptor, which may not be one any more."""
    cdef int fd
    add64(&window.served, 1)
    pthread_mutex_lock(&window.receiving)
    receive_locked(window)
    fd = window.fd
    pthread_mutex_unlock(&window.receiving)
    go_on_sending(window)
    return fd


cdef inline int64_t window_await(Window *window, uint64_t connection, bint in_python, int64_t served) noexcept nogil:
    """The receiver's: sleep until there may be something to take in. Where workers took in what came lately, they are left to it
    for a moment. Returns what `served` was."""
    cdef pollfd watched[2]
    cdef int64_t now_served = signed64(&window.served)
    cdef bint aside = now_served != served and not in_python
    cdef uint64_t ticks
    watched[0].fd, watched[0].events, watched[0].revents = window.waker, POLLIN, 0
    pthread_mutex_lock(&window.receiving)
    watched[1].fd = window.fd if window.connection == connection else -1
    pthread_mutex_unlock(&window.receiving)
    watched[1].events = POLLIN
    poll(watched, 1 if aside else 2, ASIDE_MS if aside else RECEIVE_MS)
    if watched[0].revents:
        read(window.waker, &ticks, sizeof(ticks))
    return now_served


# --- connections

cdef inline bint window_begin(Window *window, int fd) noexcept nogil:
    """A new connection or generation: nothing is under way, and reading goes on from what was acknowledged. False where that
    cannot be. The sender's."""
    cdef bint done
    pthread_mutex_lock(&window.receiving)
    pthread_mutex_lock(&window.sending)
    pthread_mutex_lock(&window.books)
    window.frame_count = 0
    window.first_id = window.next_id
    done = cursor_rewind(window.ring, window.cursor, window.acknowledged)
    store64(&window.looked, window.cursor.position)
    store64(&window.asked, window.answered)  # what was under way will not be answered
    window.sample.taken = False
    store8(&window.full, 0)
    if fd >= 0:
        window.fd, window.held, window.piece_at, window.piece_count = fd, 0, 0, 0
        window.connections += 1
        store64(&window.connection, window.connections)
        store8(&window.unsent, 0)
        store8(&window.lost, 0)
        store8(&window.handed, 0)
    pthread_mutex_unlock(&window.books)
    pthread_mutex_unlock(&window.sending)
    pthread_mutex_unlock(&window.receiving)
    return done


cdef inline void window_end(Window *window) noexcept nogil:
    """Nobody touches the connection any more once this returns."""
    store8(&window.lost, 1)
    pthread_mutex_lock(&window.receiving)
    pthread_mutex_lock(&window.sending)
    window.fd = -1
    store64(&window.connection, 0)
    store8(&window.open, 0)
    pthread_mutex_unlock(&window.sending)
    pthread_mutex_unlock(&window.receiving)
    wake_receiver(window)


cdef inline void window_set_point(Window *window, uint32_t number) noexcept nogil:
    cdef uint64_t old
    pthread_mutex_lock(&window.books)
    pthread_mutex_lock(&window.ring.lock)
    old = window.point
    if old < POINTS_MAX and old != number and window.ring.serials[old] == window.serial:
        credit_pass_on(window.ring, <uint32_t>old, number)
    store64(&window.point, number)
    window.serial = window.ring.serials[number]
    store64(&window.account, <uint64_t>number << 32 | window.serial)
    pthread_mutex_unlock(&window.ring.lock)
    point_advance_as(
        window.ring, number, window.serial, window.acknowledged, window.answered, window.cursor, window.owner
    )
    pthread_mutex_unlock(&window.books)


cdef inline void window_set_head(Window *window, const uint8_t *head, uint32_t count, uint32_t epoch) noexcept nogil:
    """What frames begin with from now on; WINDOW_HEAD_MAX bytes at most."""
    pthread_mutex_lock(&window.sending)
    memcpy(window.head, head, count)
    window.head_bytes = count
    if epoch != window.epoch:
        window.epoch = epoch
        pthread_mutex_lock(&window.books)
        store64(&window.asked, window.answered)  # what is under way may not be confirmed any more (invariant 8)
        pthread_mutex_unlock(&window.books)
    pthread_mutex_unlock(&window.sending)


cdef inline void window_pass_by(Window *window) noexcept nogil:
    """Without a connection: what is there is for nobody. The sender's."""
    cdef uint64_t head
    pthread_mutex_lock(&window.sending)
    head = window.cursor.position
    while head < ring_head(window.ring) and load8(ring_at(window.ring, head) + KIND_AT):
        head += get32(ring_at(window.ring, head))
    cursor_unpin(window.ring, window.cursor, head)
    store64(&window.looked, head)
    pthread_mutex_lock(&window.books)
    window.frame_count = 0
    move_locked(window, head, 0)
    pthread_mutex_unlock(&window.books)
    pthread_mutex_unlock(&window.sending)


cdef inline int64_t window_take_handed(
    Window *window, uint64_t connection, bint mid_frame, int64_t *served, uint8_t *taken
) noexcept nogil:
    """The receiver's: wait for what is Python's business, taking in what is not. Returns how many bytes of it are in `taken`, as
    many as ANSWERS_BYTES; 0 once the connection has ended. `mid_frame`: Python has begun a frame, and wants the rest of it. Blocks."""
    cdef int64_t count = -1
    cdef bint begun = mid_frame
    cdef ssize_t got
    while True:
        pthread_mutex_lock(&window.receiving)
        if window.connection != connection:
            count = 0
        elif not begun:  # Python has taken in what it was handed
            store8(&window.handed, 0)
            take_answers(window)
            receive_locked(window)
            begun = load8(&window.handed) != 0
        if count and begun:
            count = -1
            if not window.held:
                got = recv(window.fd, window.answers, ANSWERS_BYTES, MSG_DONTWAIT | MSG_NOSIGNAL)
                if got > 0:
                    window.held = <uint32_t>got
                elif got == 0 or (last_errno() != EAGAIN and last_errno() != EINTR):
                    count = 0
            if window.held:
                count = window.held
                memcpy(taken, window.answers, window.held)
                window.held = 0
        elif count and load8(&window.lost):
            count = 0
        pthread_mutex_unlock(&window.receiving)
        if not begun:
            go_on_sending(window)
        if count >= 0:
            return count
        served[0] = window_await(window, connection, begun, served[0])


cdef inline bint window_is_of_old(Window *window, uint32_t request_id) noexcept nogil:
    cdef bint of_old
    pthread_mutex_lock(&window.books)
    of_old = is_of_old(window, request_id)
    pthread_mutex_unlock(&window.books)
    return of_old


cdef inline int window_take(Window *window, uint32_t request_id, uint32_t epoch, int64_t room) noexcept nogil:
    """An OK that names this epoch and lends so much, and that Python took in: -1: of old; 0: to the oldest frame; 1: that one
    was marked; -2: not to the oldest."""
    cdef Frame *oldest
    cdef int taken = -2
    pthread_mutex_lock(&window.books)
    oldest = &window.frames[window.frame_at]
    if is_of_old(window, request_id):
        taken = -1
    elif window.frame_count and oldest.request_id == request_id:
        taken = 1 if oldest.marked else 0
        leave_locked(window)
        renew_locked(window, oldest.account, oldest.used, room)
        move_locked(window, oldest.position, moment_of(oldest, epoch))
    pthread_mutex_unlock(&window.books)
    return taken


# --- the places of windows

cdef inline Window *window_open(Windows *windows, Ring *ring, Cursor *cursor) noexcept nogil:
    """A place for a window over this cursor, or NULL."""
    cdef Window *found = NULL
    cdef uint64_t number
    pthread_mutex_lock(&windows.lock)
    for number in range(WINDOWS_MAX):
        if number == windows.count:
            windows.at[number] = window_new(ring)
            if windows.at[number] == NULL:
                break
            store64(&windows.count, number + 1)
        if not windows.at[number].used:
            found = windows.at[number]
            found.used = True
            break
    pthread_mutex_unlock(&windows.lock)
    if found != NULL:
        window_take_over(found, cursor)
    return found


cdef inline Window *window_new(Ring *ring) noexcept nogil:
    cdef Window *made = <Window *>calloc(1, sizeof(Window))
    if made == NULL:
        return NULL
    made.ring, made.fd, made.point = ring, -1, POINTS_MAX
    made.waker = eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)
    if made.waker < 0 or mutex_init(&made.sending) or mutex_init(&made.receiving) or mutex_init(&made.books):
        if made.waker >= 0:
            close(made.waker)
        free(made)
        return NULL
    return made


cdef inline void window_take_over(Window *window, Cursor *cursor) noexcept nogil:
    pthread_mutex_lock(&window.receiving)
    pthread_mutex_lock(&window.sending)
    pthread_mutex_lock(&window.books)
    window.cursor, window.owner = cursor, cursor.owner
    window.frame_at = window.frame_count = 0
    window.first_id = window.next_id = 1
    window.frames_sent = window.records_sent = window.answered = 0
    window.epoch = 0
    window.head_bytes = window.held = window.piece_at = window.piece_count = 0
    store64(&window.point, POINTS_MAX)
    store64(&window.account, NO_ACCOUNT)
    window.sample.taken = False
    store64(&window.acknowledged, cursor.position)
    store64(&window.looked, cursor.position)
    store64(&window.asked, 0)
    store8(&window.watched, 0)
    store8(&window.moved, 0)
    store8(&window.full, 0)
    store8(&window.unsent, 0)
    store8(&window.handed, 0)
    pthread_mutex_unlock(&window.books)
    pthread_mutex_unlock(&window.sending)
    pthread_mutex_unlock(&window.receiving)


cdef inline void window_give_back(Windows *windows, Window *window) noexcept nogil:
    """It has ended, and nobody but workers that look at all of them knows it any more."""
    pthread_mutex_lock(&windows.lock)
    window.used = False
    pthread_mutex_unlock(&windows.lock)


cdef inline void windows_close(Windows *windows) noexcept nogil:
    cdef uint64_t number
    for number in range(windows.count):
        close(windows.at[number].waker)
        free(windows.at[number])
    windows.count = 0


# --- who waits

cdef inline Window *window_for(Windows *windows, const Ring *ring, const Wait *wait) noexcept nogil:
    """The window that a wait is for, if it is for one alone and that can bring it on."""
    cdef uint64_t points = wait.points
    cdef uint32_t point = POINTS_MAX
    while points:
        if not is_point_done(ring, lowest64(points), wait):
            if point != POINTS_MAX:
                return NULL
            point = lowest64(points)
        points &= points - 1
    return window_at(windows, point)


cdef inline Window *window_at(Windows *windows, uint32_t point) noexcept nogil:
    """The window of a point, where answers may be taken in by whoever comes first; or NULL."""
    cdef uint64_t number
    cdef Window *window
    for number in range(load64(&windows.count)):
        window = windows.at[number]
        if load64(&window.point) == point and load64(&window.connection) and not load8(&window.lost) and not load8(&window.handed):
            return window
    return NULL


cdef inline StreamEnd windows_wait(
    Windows *windows, Ring *ring, const Wait *wait, int64_t deadline_ns, uint32_t *in_vain, uint32_t *unlooked
) noexcept nogil:
    """As `ring_wait`, by a thread that sends what it waits for, and takes in the answer to that itself, where it can. Blocks."""
    cdef int64_t look_until_ns = 0
    cdef Window *window
    cdef pollfd watched
    windows_push(windows)
    if is_met(ring, wait):
        return STREAM_REACHED
    if windows.looks and not unlooked[0]:
        look_until_ns = monotonic_ns() + LEAD_LOOK_NS
    unlooked[0] -= unlooked[0] > 0
    while True:
        window = window_for(windows, ring, wait)
        if window == NULL or load8(&ring.failed) or load8(&ring.waits_ended) or is_lost(ring, wait):
            return ring_wait(ring, wait, deadline_ns)
        watched.fd, watched.events = window_receive(window), POLLIN
        if is_met(ring, wait):
            if look_until_ns:
                in_vain[0] = 0
            return STREAM_REACHED
        if monotonic_ns() < look_until_ns:
            sched_yield()
            continue
        if look_until_ns:
            look_until_ns = 0
            in_vain[0] = min(in_vain[0] + 1, <uint32_t>LEAD_LOOKS_IN_VAIN_MAX)
            unlooked[0] = (<uint32_t>1 << in_vain[0]) - 1
        if monotonic_ns() >= deadline_ns:
            return STREAM_TIMED_OUT
        poll(&watched, 1, LEAD_MS)
