"""The lazy leader: real threads, and yet a call costs no hand-over.

One of the nfsd threads leads: it reads the wire, runs the stack, serves the calls that it has just
read, and stays leader. That is as fast as one thread, because it is one thread, as long as nothing
waits. Four things keep it from being only one thread:

1. Announced waiting. Whoever is about to wait for a device calls `about_to_wait`. A leader that
   does so first sends the replies that it already has, then gives up the lead, so that another
   nfsd thread reads the wire; it waits as an ordinary thread, sends its reply, and queues up for
   the lead again.
2. Unannounced waiting. The ticker looks at the leader every few milliseconds while calls are being
   served. One that has been at it for longer than HELD_UP_AFTER loses the lead where it stands.
3. Held replies. A reply that promises durability waits for a flush (held.py), and no thread waits
   with it. The thread that has flushed sends what it has released, all at once; calls for which
   there is room by that are not its work: it wakes the leader from reading.
4. Nobody left. Where every nfsd thread waits, the ticker itself reads the wire: it serves no
   call, but ping, ARP, acknowledgements and the services with threads of their own go on.

Two locks. `_lead`: who reads the wire. `lock`: the state of the stack, and of everything that hangs
on a connection. Order: `_lead` before `lock`. `lock` is never held while anything waits or a call
runs.

The ticker also runs the timers of the stack: it sleeps until the next deadline, and is woken where
one comes up that is earlier. With nothing going on, nothing wakes.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from queue import SimpleQueue
from threading import Lock, get_ident
from typing import Final, Protocol

from appliance.clock import SECOND, Clock, Instant
from appliance.limits import HELD_UP_AFTER, WATCH_LINGERS
from appliance.oncrpc.held import Answer, Call, Held, WaitingRoom
from appliance.trace import Counters


class Wire(Protocol):
    """What is led: a stack on its link. `read`, `wait` and `wake` may be called without the lock,
    everything else is called with it."""

    @property
    def next_deadline(self) -> Instant | None:
        """Nothing is due before."""

    def read(self) -> bytes | None:
        """The next frame, waiting for it; empty: `wake` was called; None: there will be no more."""

    def wait(self, timeout_ns: int) -> bool:
        """Whether `read` would return within the timeout."""

    def wake(self) -> None:
        """Let `read` return, now or when it is called next."""

    def receive(self, frame: bytes, now: Instant) -> None:
        """Take a frame in. Calls that are complete with it are submitted."""

    def flush(self, now: Instant) -> None:
        """Send what has become ready to be sent."""

    def expire(self, now: Instant) -> None:
        """Run the timers that are due."""


class Worker:
    """One nfsd thread, and the replies of its present batch that have not been sent."""

    __slots__ = ("answered", "ident")

    def __init__(self) -> None:
        self.ident = get_ident()
        self.answered: list[Answer] = []


class Leader:
    """Who leads, what is ready to be served, and the bodies of the threads."""

    def __init__(self, wire: Wire, clock: Clock, counters: Counters) -> None:
        self.lock: Final = Lock()
        self._wire = wire
        self._clock = clock
        self._counters = counters
        self._ready: deque[Call] = deque()
        self.held: Final = WaitingRoom(self._release)
        self._lead = Lock()
        self._owner: Worker | None = None
        self._workers = 0
        self._idle = 0  # workers that would take the lead
        self._stopping = False
        # What the ticker looks at.
        self._busy_since: Instant | None = None
        self._batches = 0
        self._watching = False
        self._alarm = Lock()
        self._alarm.acquire()
        self._alarm_at: Instant = 0  # when the ticker wakes by itself

    def submit(self, call: Call) -> None:
        """A call for the nfsd threads. The lock is held."""
        self._ready.append(call)

    # --- the nfsd threads ---------------------------------------------------------

    def work(self) -> None:
        """The body of an nfsd thread: lead when it can, serve what is ready, until the stop."""
        worker = Worker()
        with self.lock:
            self._workers += 1
        try:
            self._work(worker)
        finally:
            with self.lock:
                self._workers -= 1

    def _work(self, worker: Worker) -> None:
        while not self._stopping:
            if self._ready:  # left over by a leader who waits, or read by the ticker
                self._serve(worker)
                continue
            self._take_lead(worker)
            try:
                self._run(worker)
            finally:
                self._give_up_lead(worker)

    def _take_lead(self, worker: Worker) -> None:
        with self.lock:
            self._idle += 1
        self._lead.acquire()
        with self.lock:
            self._idle -= 1
            self._owner = worker

    def _give_up_lead(self, worker: Worker) -> bool:
        """No longer the leader; False: this worker had lost the lead before."""
        with self.lock:
            if self._owner is not worker:
                return False
            self._owner = None
            self._busy_since = None
            self._lead.release()
            return True

    def _run(self, worker: Worker) -> None:
        """Read and serve, until the lead is lost or the wire ends."""
        wire, ready, now = self._wire, self._ready, self._clock.now
        while self._owner is worker and not self._stopping:
            if ready:
                self._serve(worker)
                continue
            frame = wire.read()
            if frame is None:
                self.stop()
                return
            if not frame:  # woken: a call may be ready, or the link holds a frame until later
                with self.lock:
                    self._wake_for_deadline()
                continue
            instant = now()
            with self.lock:
                wire.receive(frame, instant)
                if not ready:
                    wire.flush(instant)
                    self._wake_for_deadline()

    def _serve(self, worker: Worker) -> None:
        """Run calls that are ready, and send their replies together.

        The batch ends early where a reply is large (its sending had better begin), and where the
        lead has been lost meanwhile (this call took long; the others are the new leader's).
        """
        ready, answered = self._ready, worker.answered
        leads = self._owner is worker
        if leads:
            self._begin_batch()
        try:
            while ready:
                call = ready.popleft()
                reply = call.run()
                if isinstance(reply, Held):
                    self.held.add(call, reply)
                else:
                    answered.append((call, reply))
                    if reply is not None and len(reply) > 1:
                        break
                if (self._owner is worker) is not leads:
                    break
        except IndexError:
            pass  # another thread took the last one
        finally:
            with self.lock:
                self._send(worker)
                if self._owner is worker:
                    self._busy_since = None

    def _begin_batch(self) -> None:
        self._batches += 1
        self._busy_since = self._clock.now()
        if not self._watching:
            self._watching = True
            self._wake_ticker()

    def _send(self, worker: Worker) -> None:
        """Send the replies of a batch. The lock is held."""
        self._finish(worker.answered)
        worker.answered.clear()

    def _finish(self, answers: Sequence[Answer]) -> None:
        """Send replies. The lock is held."""
        for call, reply in answers:
            call.finish(reply)
        self._wire.flush(self._clock.now())
        self._wake_for_deadline()

    def _release(self, answers: Sequence[Answer]) -> None:
        """Send replies that were held, by the thread that has kept what they promise."""
        with self.lock:
            self._finish(answers)
            self._counters["leader.held"] += len(answers)
            self._counters["leader.released"] += 1
            if self._ready and self._busy_since is None:
                self._wire.wake()  # there is room for calls now, and whoever leads may be reading

    def about_to_wait(self) -> None:
        """This thread is about to wait for a device: whoever leads gives up the lead.

        Called by a backend, at any depth inside `Call.run`, without `lock`. In a thread that does
        not lead nothing happens.
        """
        worker = self._owner
        if worker is None or worker.ident != get_ident():
            return
        with self.lock:
            self._send(worker)
        if self._give_up_lead(worker):
            self._counters["leader.announced"] += 1

    # --- services with a thread of their own ------------------------------------------

    def serve_queue(self, queue: ServiceQueue) -> None:
        """The body of a service's thread: run its calls. Returns when the queue is closed."""
        while (call := queue.get()) is not None:
            reply = call.run()
            if isinstance(reply, Held):
                self.held.add(call, reply)
                continue
            with self.lock:
                self._finish([(call, reply)])

    # --- the ticker -------------------------------------------------------------------

    def tick(self) -> None:
        """The body of the ticker. Returns at the stop."""
        seen, since = self._batches, self._clock.now()
        while not self._stopping:
            now = self._clock.now()
            deadline = self._wire.next_deadline
            if deadline is not None and deadline <= now:
                with self.lock:
                    self._wire.expire(now)
                    self._wire.flush(now)
            if self._batches != seen:
                seen, since = self._batches, now
            self._watch(now, since)
            self._relieve()
            self._sleep()

    def _watch(self, now: Instant, active: Instant) -> None:
        """Take the lead from a leader that is held up; stop watching when all has been quiet."""
        busy = self._busy_since
        if busy is None:
            if now - active > WATCH_LINGERS:
                self._watching = False
            return
        worker = self._owner
        if now - busy < HELD_UP_AFTER or worker is None:
            return
        with self.lock:
            if self._owner is not worker or self._busy_since != busy:
                return  # it got on while we were looking
            self._owner = None
            self._busy_since = None
            self._counters["leader.held_up"] += 1
            self._lead.release()

    def _relieve(self) -> None:
        """Read the wire where every worker waits, until one comes back."""
        if not self._everybody_waits() or not self._lead.acquire(blocking=False):
            return
        self._counters["leader.relieved"] += 1
        try:
            while self._everybody_waits() and not self._stopping:
                frame = self._wire.read() if self._wire.wait(HELD_UP_AFTER) else b""
                if frame is None:
                    self.stop()
                    return
                now = self._clock.now()
                with self.lock:
                    if frame:
                        self._wire.receive(frame, now)
                    self._wire.expire(now)
                    self._wire.flush(now)
        finally:
            self._lead.release()

    def _everybody_waits(self) -> bool:
        return self._idle == 0

    def _sleep(self) -> None:
        """Until the next deadline, or the next look at the leader, or until woken."""
        with self.lock:
            now = self._clock.now()
            deadline = self._wire.next_deadline
            if self._watching:
                look = now + HELD_UP_AFTER
                deadline = look if deadline is None else min(deadline, look)
            self._alarm_at = now + 3600 * SECOND if deadline is None else deadline
            timeout = max(0, self._alarm_at - now)
        self._alarm.acquire(timeout=timeout / SECOND)

    def _wake_for_deadline(self) -> None:
        """The ticker would sleep past a deadline. The lock is held."""
        if self._watching:
            return  # it wakes every other millisecond, and deadlines are further away than that
        deadline = self._wire.next_deadline
        if deadline is not None and deadline < self._alarm_at:
            self._alarm_at = deadline  # once is enough
            self._wake_ticker()

    def _wake_ticker(self) -> None:
        with suppress(RuntimeError):  # it has been woken already
            self._alarm.release()

    # --- the end ----------------------------------------------------------------------

    @property
    def is_idle(self) -> bool:
        """True: no nfsd thread has a call to serve, and no reply is held."""
        served = not self._ready and self._busy_since is None and self._idle >= self._workers - 1
        return served and not self.held

    def stop(self) -> None:
        """Let every thread return from its body: at once, or when its call or read is done."""
        self._stopping = True
        self._wake_ticker()


class ServiceQueue:
    """The calls of one service that has a thread of its own; bounded by what connections may have
    in progress (limits.py)."""

    def __init__(self) -> None:
        self._calls: SimpleQueue[Call | None] = SimpleQueue()

    def submit(self, call: Call) -> None:
        """A call for this service. The lock of the leader is held."""
        self._calls.put(call)

    def get(self) -> Call | None:
        """The next call, waiting for it; None: closed."""
        return self._calls.get()

    def close(self) -> None:
        """Let the thread go, after the calls that are in the queue."""
        self._calls.put(None)
