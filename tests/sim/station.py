"""One stack and one scripted peer on a perfect wire: what the unit tests of the stack stand on."""

from __future__ import annotations

from appliance.clock import MILLISECOND, SECOND
from appliance.netstack.stack import HostConfig
from appliance.trace import Counters
from tests.sim.clock import VirtualClock
from tests.sim.wire import Conditions, Host, Script, Wire

OUR_MAC = bytes.fromhex("02000a000005")
OUR_ADDRESS = bytes([10, 0, 0, 5])
OURS = HostConfig.single(OUR_MAC, OUR_ADDRESS, 24, gateway=bytes([10, 0, 0, 254]))
PEER_MAC = bytes.fromhex("02000a000001")
PEER_ADDRESS = bytes([10, 0, 0, 1])
PEER = HostConfig.single(PEER_MAC, PEER_ADDRESS, 24)

STARTED = 5 * SECOND
"""When probes and announcements are over."""


class Station:
    """Our stack at wire.b, started, and a script at wire.a."""

    def __init__(self, *, vnet: bool = False, mtu: int = 1500, config: HostConfig = OURS) -> None:
        self.clock = VirtualClock()
        headers = (False, vnet)
        self.wire = Wire(self.clock, conditions=Conditions(mtu=mtu), vnet_headers=headers)
        self.peer = Script(self.wire.a)
        self.host = Host(self.wire.b, self.clock, config)
        self.stack = self.host.stack
        self.clock.run(STARTED)
        self.peer.take()

    @property
    def counters(self) -> Counters:
        return self.host.counters

    def exchange(self, *frames: bytes) -> list[bytes]:
        """Send these frames, and give what comes back within a millisecond."""
        self.peer.take()
        for frame in frames:
            self.peer.send(frame)
        self.clock.run(MILLISECOND)
        return self.peer.take()
