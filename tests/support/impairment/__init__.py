"""A bad network for tests: loss, delay, reordering, a rate, a black hole, an MTU, a NAT that forgets. Seeded, so repeatable.

`wire` decides (pure): what becomes of each packet. `udp_path` and `tcp_path` carry datagrams and byte streams between sockets on
loopback, in the test's own event loop, without rights. `packet_path` carries whole IP packets between two network namespaces
(root), so that the kernel's own TCP meets loss as well.
"""

from support.impairment.wire import GOOD, Impairment, Wire

__all__ = ["GOOD", "Impairment", "Wire"]
