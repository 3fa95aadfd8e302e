"""Figure 5 as data."""

from __future__ import annotations

from random import Random

import pytest

from appliance.netstack.tcp.connection import Connection
from appliance.netstack.tcp.host import Tcp
from appliance.netstack.tcp.state import FIGURE_5, State
from appliance.netstack.timers import Timers
from appliance.trace import Counters
from tests.transcripts.tcp_wire import RecordingPath


def test_every_state_is_reached_and_left() -> None:
    """RFC 9293 figure 5: from CLOSED to everywhere; only two states lead nowhere but to CLOSED."""
    reached, front = set[State](), {State.CLOSED}
    while front:
        reached |= front
        front = {after for before in front for after in FIGURE_5[before]} - reached
    assert reached == set(State) == set(FIGURE_5)
    assert {s for s in State if not FIGURE_5[s]} == {State.LAST_ACK, State.TIME_WAIT}


@pytest.mark.parametrize("before", State)
@pytest.mark.parametrize("after", State)
def test_only_edges_of_the_figure_are_taken(before: State, after: State) -> None:
    """An illegal change of state fails every test that meets it."""
    tcp = Tcp(Timers(), Random(1), Counters(), lambda *_: RecordingPath())
    c = Connection(tcp, RecordingPath(), bytes(12), 0, before)
    if after is State.CLOSED or after in FIGURE_5[before]:
        c.become(after)
        assert c.state is after
    else:
        with pytest.raises(AssertionError):
            c.become(after)
