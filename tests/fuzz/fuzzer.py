"""Frames in every state of a connection, right ones and broken ones: from one seed.

A run is made of episodes, each with a host of its own, which depend on nothing but the seed and
their number. An episode brings a connection into a situation by right frames and calls, then sends
frames of the corpus, most of them mutated, while now and then time passes and the program calls.
After each the target is checked (target.py). What fails is a list of actions; the least of them
that still fail are the reproducer.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from random import Random

from appliance.clock import MILLISECOND
from appliance.netstack.tcp.state import State
from appliance.trace import log
from tests.fuzz.corpus import ACK, CORPUS, CORPUS6, FIN, PSH, SYN, SYN_OPTIONS, numbers, text
from tests.fuzz.mutation import mutated, offload_header
from tests.fuzz.target import Action, Arrives, Calls, Passes, Setting, Target

FRAMES_IN_EPISODE = 40
AS_IT_IS = 0.2
"""So many frames are sent without a mutation, or nothing would ever go on."""
PLAIN_OPTIONS = bytes.fromhex("020405b4")
PAUSES = (1, 10, 40, 200, 1000, 61_000)
"""Milliseconds: where the timers of a connection are, and the end of TIME-WAIT."""
TRIES_MAX = 2000
"""How often a failure is tried again while it is made smaller."""


@dataclass
class Failure:
    """What went wrong, and how to see it again."""

    seed: int
    episode: int
    setting: Setting
    actions: list[Action]
    what: str

    def __str__(self) -> str:
        lines = [f"seed {self.seed}, episode {self.episode}: {self.what}", f"{self.setting!r}"]
        return "\n".join(lines + [f"  {action!r}" for action in self.actions])


@dataclass
class Tally:
    """What was done."""

    frames: int = 0
    seen: Counter[tuple[str, str]] = field(default_factory=Counter)
    """States, and kinds of frames that came in them."""


class Episode:
    """One host, one situation, and what comes then."""

    def __init__(self, seed: int, number: int, tally: Tally) -> None:
        self.random = random = Random(f"{seed}/{number}")
        self.tally = tally
        self.setting = Setting(
            vnet=random.random() < 0.5,
            six=random.random() < 0.5,
            receive_bytes=random.choice((1000, 65_535, 1 << 18)),
            seed=random.getrandbits(32),
        )
        self.actions: list[Action] = []
        log.setLevel(logging.CRITICAL)  # of conflicts there are thousands here
        self.target = Target(self.setting)
        self.situation = SITUATIONS[number % len(SITUATIONS)]

    def run(self) -> None:
        """AssertionError, or anything else, where something is wrong."""
        self.situation(self)
        names = [*CORPUS, *CORPUS6] if self.setting.six else list(CORPUS)
        for _ in range(FRAMES_IN_EPISODE):
            chance = self.random.random()
            if chance < 0.1:
                self.do(Passes(self.random.choice(PAUSES) * MILLISECOND))
            elif chance < 0.25:
                self.do(self.some_call())
            self.send(self.random.choice(names))
        self.target.rest()

    def do(self, action: Action) -> None:
        self.actions.append(action)
        self.target.perform(action)

    def some_call(self) -> Calls:
        random = self.random
        name = random.choice(
            ("send",) * 5 + ("send_urgent", "read", "read", "pause", "resume", "finish", "close",
                             "keep_alive", "nodelay", "user_timeout")
            + ("abort",) * (random.random() < 0.2)
        )  # fmt: skip
        texts = (1, 100, 1460, 5000, 100_000)
        sizes = {"send": texts, "send_urgent": texts, "user_timeout": (5000,)}
        return Calls(name, random.choice(sizes.get(name, (0, 1))))

    def send(self, name: str) -> None:
        """A frame of the corpus, as it is or made wrong."""
        random, c = self.random, self.target.connection
        state = "CLOSED" if c is None else str(c.state)
        self.tally.frames += 1
        self.tally.seen[state, name] += 1
        make = CORPUS.get(name) or CORPUS6[name]
        frame = make(numbers(c, random, self.target.now, self.setting.six))
        bad = random.random() >= AS_IT_IS
        if bad:
            frame = mutated(frame, random)
        if self.setting.vnet:
            frame = offload_header(frame, random) + frame
        self.do(Arrives(frame, bad))

    # --- situations -------------------------------------------------------------------------------

    def right(self, flags: int, data: bytes = b"", options: bytes = b"", back: int = 0) -> None:
        """A segment that is what the connection waits for, or `back` bytes earlier acknowledged."""
        n = numbers(self.target.connection, self.random, self.target.now, self.setting.six)
        header = bytes(10) if self.setting.vnet else b""
        frame = n.segment(flags, data, ack=n.nxt - back, options=options)
        self.do(Arrives(header + frame))

    def listening(self) -> None:
        """Nothing but the listener."""

    def syn_received(self) -> None:
        self.right(SYN, options=self.random.choice((SYN_OPTIONS, PLAIN_OPTIONS, b"")))

    def established(self) -> None:
        self.syn_received()
        self.right_ack_of_syn()

    def right_ack_of_syn(self) -> None:
        """The handshake is completed, though the program does not know the connection yet."""
        tcp = self.target.stack.tcp
        made = next(iter(tcp.connections.values()))
        n = numbers(made, self.random, self.target.now, self.setting.six)
        header = bytes(10) if self.setting.vnet else b""
        self.do(Arrives(header + n.segment(ACK)))

    def sending(self) -> None:
        self.established()
        self.do(Calls("send", 100_000))

    def recovering(self) -> None:
        """Segments are lost, and the peer says so."""
        self.sending()
        c = self.target.connection
        assert c is not None
        flight = c.snd.nxt - c.snd.una
        for _ in range(4):
            self.right(ACK, back=flight)

    def timed_out(self) -> None:
        self.sending()
        self.do(Passes(1000 * MILLISECOND))

    def closed_window(self) -> None:
        self.established()
        self.do(Calls("read", 0))
        for _ in range(3):
            self.right(PSH | ACK, text(numbers(None, self.random, 0, False), 1000))

    def fin_wait_1(self) -> None:
        self.established()
        self.do(Calls("close"))

    def fin_wait_2(self) -> None:
        self.established()
        self.do(Calls("finish"))
        self.right(ACK)

    def closing(self) -> None:
        self.fin_wait_1()
        self.right(FIN | ACK, back=1)

    def time_wait(self) -> None:
        self.fin_wait_2()
        self.right(FIN | ACK)

    def close_wait(self) -> None:
        self.established()
        self.right(FIN | ACK)

    def last_ack(self) -> None:
        self.close_wait()
        self.do(Calls("close"))

    def syn_sent(self) -> None:
        self.do(Calls("connect"))


SITUATIONS: tuple[Callable[[Episode], None], ...] = (
    Episode.listening, Episode.syn_received, Episode.established, Episode.sending,
    Episode.recovering, Episode.timed_out, Episode.closed_window, Episode.fin_wait_1,
    Episode.fin_wait_2, Episode.closing, Episode.time_wait, Episode.close_wait, Episode.last_ack,
    Episode.syn_sent,
)  # fmt: skip


def run_episode(seed: int, number: int, tally: Tally) -> Failure | None:
    """One of them. A failure is the least that was found to fail."""
    episode = Episode(seed, number, tally)
    try:
        episode.run()
    except Exception as problem:  # noqa: BLE001 - what it is, is the result
        what = told(problem)
        actions = shrunk(episode.setting, episode.actions, what)
        return Failure(seed, number, episode.setting, actions, what)
    return None


def told(problem: Exception) -> str:
    """What it was, and where."""
    trace = problem.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    assert trace is not None
    code = trace.tb_frame.f_code
    return (
        f"{problem!r} in {code.co_filename.rpartition('/')[2]}:{trace.tb_lineno} ({code.co_name})"
    )


def replay(setting: Setting, actions: list[Action]) -> str | None:
    """Do them to a new host: what goes wrong."""
    try:
        target = Target(setting)
        for action in actions:
            target.perform(action)
        target.rest()
    except Exception as problem:  # noqa: BLE001 - what it is, is the result
        return told(problem)
    return None


def shrunk(setting: Setting, actions: list[Action], what: str) -> list[Action]:
    """As few of the actions as still end in the same failure: first halves are left out, then
    smaller parts, then single ones."""
    size = len(actions) // 2
    tries = 0
    while size and tries < TRIES_MAX:
        at = 0
        while at < len(actions) and tries < TRIES_MAX:
            fewer = actions[:at] + actions[at + size :]
            tries += 1
            if replay(setting, fewer) == what:
                actions = fewer
            else:
                at += size
        size //= 2
    return actions


ALL_STATES = {str(state) for state in State} - {"LISTEN"}
"""What `Tally.seen` must have: CLOSED stands for no connection."""
