"""The states of a DHCP client (RFC 2131 section 4.4), and figure 5 as data."""

from __future__ import annotations

from enum import Enum
from typing import Final


class State(Enum):
    """RFC 2131 figure 5, in the order of a life. INIT-REBOOT has no duration here: what is sent in
    it leads to REBOOTING at once."""

    INIT = "INIT"
    REBOOTING = "REBOOTING"
    SELECTING = "SELECTING"
    REQUESTING = "REQUESTING"
    CHECKING = "CHECKING"
    """Not in the figure, where it is the arrow "DHCPACK / record lease": the address is probed
    (RFC 5227 section 2.1) before it is used."""
    BOUND = "BOUND"
    RENEWING = "RENEWING"
    REBINDING = "REBINDING"

    def __str__(self) -> str:
        return self.value


FIGURE_5: Final[dict[State, frozenset[State]]] = {
    State.INIT: frozenset((State.SELECTING, State.REBOOTING)),
    State.REBOOTING: frozenset((State.CHECKING, State.INIT)),
    State.SELECTING: frozenset((State.REQUESTING, State.INIT)),
    State.REQUESTING: frozenset((State.CHECKING, State.INIT)),
    State.CHECKING: frozenset((State.BOUND, State.INIT)),
    State.BOUND: frozenset((State.RENEWING, State.INIT)),
    State.RENEWING: frozenset((State.BOUND, State.REBINDING, State.CHECKING, State.INIT)),
    State.REBINDING: frozenset((State.BOUND, State.CHECKING, State.INIT)),
}
"""Where each state leads to. To INIT: refused (DHCPNAK), no answer, the lease is over, another
station has the address, or it is given back. From the last two to CHECKING, which is not in the
figure: the network has another size, so the address is taken anew."""

IN_USE: Final = frozenset((State.BOUND, State.RENEWING, State.REBINDING))
"""The address is ours."""
