"""A wire in virtual time between two ends, each a stack or a script, with faults from one seed.

Theory. What an end sends is first made what a wire carries: without a virtio-net header, cut into
segments, checksums finished. Each such frame may be lost, sent twice, damaged, or held up so that
others overtake it; it takes its time (delay, and its place in the queue of a link with a limited
rate), and comes out at the other end. An end with a virtio-net header gets frames whose checksum is
still to be verified. A `whole` wire between two such ends passes super-frames as they are, as one
between two guests of a machine does.

    clock = VirtualClock()
    wire = Wire(clock, seed=7, conditions=Conditions(delay=10 * MILLISECOND, loss=0.01))
    a, b = Host(wire.a, ...), Host(wire.b, ...)         # two stacks
    script = Script(wire.b)                             # or frames in a list

Everything that comes out is recorded; `evidence(wire, "name")` around a test writes a capture to
tests/out where it fails.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from decimal import Decimal
from functools import partial
from pathlib import Path
from random import Random

from dpkt import pcap

from appliance.clock import Instant
from appliance.limits import FRAME_BYTES_MAX
from appliance.netstack.link.conditions import PERFECT, Conditions, OneWay
from appliance.netstack.link.segmentation import wire_frames
from appliance.netstack.stack import HostConfig, Stack
from appliance.netstack.wire import vnet
from appliance.trace import Counters
from tests.sim.clock import VirtualClock

__all__ = ["Conditions", "Host", "Script", "Wire", "WireEnd", "evidence"]

Buffer = bytes | bytearray | memoryview

OUT = Path(__file__).parents[1] / "out"
MTU = 1500
"""Of both ends, unless the conditions say otherwise."""
RECORDED_FRAMES_MAX = 20_000
AT_ONCE_MAX = 3
"""A timer may start what has to be looked at once more at the same instant, but not for ever."""


class WireEnd:
    """One end of a wire. A link (appliance.netstack.link.interface)."""

    def __init__(self, wire: Wire, has_vnet_header: bool, mtu: int) -> None:
        self.vnet = has_vnet_header
        self.mtu = mtu
        self.deliver: Callable[[bytes], None] = lambda _frame: None
        self.path = OneWay(wire.random, wire.counters, "wire")
        self._wire = wire

    def send(self, buffers: Sequence[Buffer]) -> bool:
        """Put a frame on the wire."""
        return self._wire.carry(self, b"".join(buffers))

    def receive(self) -> bytes | None:
        """Frames are delivered, not fetched, in virtual time."""
        raise AssertionError("nobody waits in virtual time")


class Wire:
    """The wire. `counters` tell what happened to frames."""

    def __init__(
        self,
        clock: VirtualClock,
        *,
        seed: int = 0,
        conditions: Conditions = PERFECT,
        vnet_headers: tuple[bool, bool] = (True, True),
        whole: bool = False,
    ) -> None:
        # Faults happen to what is on a wire, and a whole super-frame is not.
        assert not whole or (all(vnet_headers) and conditions == Conditions(conditions.delay))
        self.clock = clock
        self.conditions = conditions
        self.counters = Counters()
        self.seed = seed
        self.random = Random(seed)  # one for both directions
        self._whole = whole
        mtu = conditions.mtu or MTU
        self.a = WireEnd(self, vnet_headers[0], mtu)
        self.b = WireEnd(self, vnet_headers[1], mtu)
        self.record: deque[tuple[int, bytes]] = deque(maxlen=RECORDED_FRAMES_MAX)
        self.too_large: Callable[[bytes], None] = lambda _frame: None
        """Told of frames that were lost because of the MTU, as the router there would be."""

    def carry(self, sender: WireEnd, frame: bytes) -> bool:
        """A frame from `sender`, on its way to the other end."""
        receiver = self.b if sender is self.a else self.a
        if self._whole:
            self.clock.after(self.conditions.delay, partial(self._arrive, receiver, frame, frame))
            return True
        for bare in wire_frames(frame) if sender.vnet else (frame,):
            self._carry_one(sender, receiver, bare)
        return True

    def _carry_one(self, sender: WireEnd, receiver: WireEnd, bare: bytes) -> None:
        self.counters["wire.frames"] += 1
        fate = sender.path.carry(self.conditions, bare, self.clock.now())
        if "too_large" in fate.events:
            self.too_large(bare)
        for arrives, arriving in fate.arrivals:
            frame = vnet.NOTHING + arriving if receiver.vnet else arriving
            self.clock.at(arrives, partial(self._arrive, receiver, frame, arriving))

    def _arrive(self, receiver: WireEnd, frame: bytes, recorded: bytes) -> None:
        self.record.append((self.clock.wall(), recorded))
        receiver.deliver(frame)

    def write_capture(self, file: Path) -> None:
        """What came out of the wire lately, as a pcap file."""
        with file.open("wb") as out:
            writer = pcap.Writer(out, snaplen=FRAME_BYTES_MAX, nano=True)
            for wall, frame in self.record:
                frames = wire_frames(frame) if self._whole else (frame,)
                for bare in frames:
                    writer.writepkt_time(bare, Decimal(wall).scaleb(-9))


@contextmanager
def evidence(wire: Wire, name: str) -> Iterator[None]:
    """Where what is inside fails, write the capture, and say where it is."""
    try:
        yield
    except BaseException as failure:
        OUT.mkdir(exist_ok=True)
        file = OUT / f"{name}.pcap"
        wire.write_capture(file)
        failure.add_note(f"seed {wire.seed}; capture in {file}")
        raise


class Host:
    """A stack at one end of a wire, in virtual time."""

    def __init__(
        self, end: WireEnd, clock: VirtualClock, config: HostConfig, seed: int = 0
    ) -> None:
        self.counters = Counters()
        self.config = config
        self.stack = Stack(end, config, random=Random(seed), counters=self.counters)
        self._clock = clock
        self._alarm: Instant | None = None
        end.deliver = self._deliver
        self.stack.start(clock.now())
        self.act()

    def _deliver(self, frame: bytes) -> None:
        self.stack.receive(frame, self._clock.now())
        self.act()

    def act(self) -> None:
        """After any call of the stack: send what is ready, and have the timers run in time."""
        self.stack.flush(self._clock.now())
        deadline = self.stack.next_deadline
        if deadline is not None and (self._alarm is None or deadline < self._alarm):
            self._alarm = max(deadline, self._clock.now())
            self._clock.at(self._alarm, partial(self._expire, self._alarm))

    def _expire(self, alarm: Instant) -> None:
        if alarm != self._alarm:
            return  # overtaken by an earlier one
        self._alarm = None
        now = self._clock.now()
        for _ in range(AT_ONCE_MAX):
            self.stack.expire(now)
            deadline = self.stack.next_deadline
            if deadline is None or deadline > now:
                self.act()
                return
        raise AssertionError("a timer that is due again at once never ends")


class Script:
    """A scripted peer at one end: what came, and a way to send anything."""

    def __init__(self, end: WireEnd) -> None:
        self.frames: list[bytes] = []
        self._end = end
        end.deliver = self._deliver

    def _deliver(self, frame: bytes) -> None:
        self.frames.append(frame[vnet.HEADER_BYTES :] if self._end.vnet else frame)

    def take(self) -> list[bytes]:
        """What came since the last call, without virtio-net headers."""
        frames, self.frames = self.frames, []
        return frames

    def send(self, frame: bytes) -> None:
        """Send a bare Ethernet frame."""
        self._end.send((vnet.NOTHING, frame) if self._end.vnet else (frame,))
