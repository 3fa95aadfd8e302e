"""A limit on everything that a peer, a user or a file can make large, with its reason.

One section a part. A limit that depends on another one asserts the relation.
"""

from __future__ import annotations

from typing import Final

from appliance.clock import MILLISECOND, SECOND

KiB: Final = 1 << 10
MiB: Final = 1 << 20

# --- netstack ----------------------------------------------------------------

FRAME_BYTES_MAX: Final = 65560
"""One read of a link: the virtio-net header, the Ethernet header, and the largest IP packet."""

TAP_QUEUE_FRAMES: Final = 10_000
"""txqueuelen of a TAP that we create: the default of 1000 overruns with a few busy connections
without offload, and each overrun costs a retransmission."""

LINK_RETRY_AFTER: Final = 200 * MILLISECOND
"""How long to wait before reading again from a link that has gone down."""

LINK_SPIN_READS: Final = 64
"""How often a link is read in vain before its reader sleeps: some 60 us, which is what a client on
another processor takes for its next call."""

LINK_SPINS_IN_VAIN: Final = 4
LINK_SPIN_TRIED_EVERY: Final = 32
"""After so many spins in a row that gave nothing, only every so many-th wait begins with one."""

LINK_BURST_FRAMES: Final = 8
"""Full frames that are taken in before anything is sent: one acknowledgement for all, as of hosts
whose network card joins segments. More would hold back what others wait for."""

FAULT_DELAY_MAX: Final = 600 * SECOND
"""How long --fault holds a frame: longer than any peer waits for one."""

FAULT_WAITING_BYTES_MAX: Final = 64 * MiB
"""Frames that --fault holds, both ways: half a second of a link with one gigabit a second. More
are lost."""

FAULT_FRAME_OVERHEAD_BYTES: Final = 256
"""What a held frame is charged beside its bytes, for the objects around it."""

CAPTURE_FILES_MAX: Final = 1000
"""Files of one capture: each of them is renamed when the next begins."""

CAPTURE_FILE_BYTES_MIN: Final = 128 * KiB
"""A capture begins no new file before: it has to hold at least one super-frame."""

ADDRESSES_MAX: Final = 16
"""Addresses of one host, of both families: a router that advertises many prefixes gives us no more
(Linux: max_addresses)."""

ROUTES_MAX: Final = 64
"""Routes, learnt ones included: every new path looks at all of them."""

STATIC_ROUTES_MAX: Final = 16
"""Routes that the user gives. With the networks of ADDRESSES_MAX addresses, and with what may be
learnt (ND_ROUTERS_MAX, ND_PREFIXES_MAX, a lease's), they fit into ROUTES_MAX: none is left out."""

NEIGHBOURS_MAX: Final = 256
"""Neighbours of each family known at the same time: a /24 full of clients. A flood evicts idle ones
first."""

NEIGHBOURS_FIXED_MAX: Final = 256
"""Neighbours of each family whose MAC address the user has given. They are there for ever."""

NEIGHBOURS_RESOLVING_MAX: Final = 64
"""Neighbours being asked for at the same time, so that packets from forged addresses cannot make
us fill the link with broadcasts: at most this many in three seconds; and those that have answered
before, as long as a path leads over them."""

NEIGHBOUR_WAITING_FRAMES_MAX: Final = 64
"""Frames that wait for one neighbour: all fragments of a 64 KiB datagram."""

NEIGHBOUR_WAITING_BYTES_MAX: Final = 128 * KiB
"""Their bytes: two super-frames."""

ARP_TRIES_MAX: Final = 3
"""Requests without an answer until a neighbour counts as gone."""

ARP_RETRY_AFTER: Final = 1 * SECOND
"""Time between them (RFC 1122 section 2.3.2.1: not more than one a second)."""

ARP_CONFIRMED_FOR: Final = 30 * SECOND
"""How long a neighbour's MAC is believed before it is asked again (Linux: base_reachable_time)."""

ARP_LOCKED_FOR: Final = 1 * SECOND
"""A neighbour that was just confirmed does not move to another MAC (Linux: locktime)."""

ARP_PROBE_AFTER: Final = 200 * MILLISECOND
"""Time between our probes at the start. RFC 5227 has 1 to 2 s; a test server may live shorter."""

ARP_START_WAITS: Final = 20 * MILLISECOND
"""How long the start waits for somebody who has our address to say so: most answer within one, and
our users start a server for every test."""

ARP_CLAIMED_AFTER: Final = 200 * MILLISECOND
"""From the last probe until an address is ours (RFC 5227: ANNOUNCE_WAIT, 2 s); see above."""

ARP_ANNOUNCE_AFTER: Final = 2 * SECOND
"""Time between our two announcements (RFC 5227: ANNOUNCE_INTERVAL)."""

ARP_DEFEND_AFTER: Final = 10 * SECOND
"""Time between two defences of our address (RFC 5227: DEFEND_INTERVAL)."""

DHCP_MESSAGE_BYTES_MAX: Final = 1472
"""A DHCP message in one frame at the usual MTU; servers are told, and need a third of it."""

DHCP_WAITING_MAX: Final = 16
"""Answers that wait for the client: of as many servers. They wait for no time at all."""

DHCP_RETRY_AFTER: Final = 4 * SECOND
DHCP_RETRY_AFTER_MAX: Final = 64 * SECOND
DHCP_RETRY_JITTER: Final = 1 * SECOND
"""RFC 2131 section 4.1: until a message is sent again, at first; at most, after doubling; and so
much more or less by chance."""

DHCP_REQUEST_TRIES: Final = 4
"""Requests for an address that was offered, in a minute, before the client looks for another offer
(RFC 2131 section 3.1 (5))."""

DHCP_REBOOT_TRIES: Final = 2
"""Requests for the address of an earlier life, in twelve seconds."""

DHCP_EXTEND_AFTER_MIN: Final = 60 * SECOND
"""Between two requests to extend a lease (RFC 2131 section 4.4.5)."""

DHCP_DECLINED_FOR: Final = 10 * SECOND
"""How long after a DHCPDECLINE the client starts over (RFC 2131 section 3.1 (5))."""

DHCP_DECLINED_OFTEN: Final = 10
DHCP_DECLINED_OFTEN_FOR: Final = 60 * SECOND
"""And when so many addresses in a row were another's (RFC 5227: MAX_CONFLICTS and
RATE_LIMIT_INTERVAL)."""

DHCP_START_OVER_AFTER: Final = 1 * SECOND
"""And after a DHCPNAK, doubled with each failure, so that servers in disagreement are not asked in
a loop; RFC 2131 leaves it open."""

DHCP_RELEASE_WAITS: Final = 500 * MILLISECOND
"""How long a stop waits for the server's MAC address, to give the address back."""

DHCP_LEASE_MIN: Final = 4 * SECOND
"""A lease counts as at least so long: what is over at once could not be renewed."""

PATHS_MAX: Final = 1024
"""Destinations whose headers are kept ready; the one not used for longest gives way."""

PATH_MTU_MIN: Final = 552
"""No router may talk us into smaller packets (Linux: min_pmtu); a forged message could otherwise
make every segment a tiny one."""

PATH_MTU_LEARNT_FOR: Final = 600 * SECOND
"""A smaller path MTU is forgotten after so long (RFC 1191 section 6.3)."""

TCP_BLACK_HOLE_TIMEOUTS: Final = 3
TCP_BLACK_HOLE_TIMEOUTS_PROVEN: Final = 5
"""Retransmission timeouts in a row for a full segment, after which its size is to blame: 1.4 s,
or 6 s where segments of this size have got through before."""

TCP_BLACK_HOLE_RETRY_AFTER: Final = 10 * SECOND
"""Larger packets are tried again after so long, and then after four times as long: a peer that was
away for a few seconds looks like a black hole."""
assert TCP_BLACK_HOLE_RETRY_AFTER < PATH_MTU_LEARNT_FOR

FRAGMENT_BYTES_MAX: Final = 4 * MiB
"""Memory for datagrams that are not yet complete: 64 of the largest."""

FRAGMENT_FLOWS_MAX: Final = 256
"""Datagrams that are not yet complete; the oldest gives way."""

FRAGMENT_PIECES_MAX: Final = 256
"""Fragments of one datagram: 64 KiB over a link with an MTU of 296 (the smallest in use)."""

FRAGMENT_OVERHEAD_BYTES: Final = 128
"""What a fragment costs beside its data; charged, so that tiny ones are not free."""

FRAGMENT_WAITS: Final = 30 * SECOND
"""How long a datagram may take to become complete (Linux: ipfrag_time)."""

IPV6_FRAGMENT_WAITS: Final = 60 * SECOND
"""The same for IPv6 (RFC 8200 section 4.5)."""

IPV6_EXTENSIONS_MAX: Final = 8
"""Extension headers of one packet (RFC 8504 section 5.3): honest ones have two at most."""

IPV6_OPTIONS_MAX: Final = 16
"""Options of one hop-by-hop or destination options header, padding included (RFC 8504 section 5.3:
eight, and two of padding)."""

ND_REACHABLE_FOR: Final = 30 * SECOND
"""REACHABLE_TIME of RFC 4861 section 10, unless a router advertises another one."""

ND_RETRY_AFTER: Final = 1 * SECOND
"""RETRANS_TIMER: between two solicitations, and how long an address stays tentative."""

ND_RETRY_AFTER_MAX: Final = 3 * SECOND
"""As much of it as a router may ask for. RFC 4861 has no bound: with the 49 days that a forger can
write, a neighbour that misses one question would never be asked again."""

ND_START_WAITS: Final = 2 * ND_RETRY_AFTER
"""How long a start waits for it to be known that nobody else has our IPv6 addresses."""

ND_TRIES_MAX: Final = 3
"""MAX_MULTICAST_SOLICIT and MAX_UNICAST_SOLICIT: questions until a neighbour counts as gone."""

ND_DELAY_FIRST_PROBE: Final = 5 * SECOND
"""DELAY_FIRST_PROBE_TIME: a neighbour in doubt may show by himself that he is there."""

ND_STALE_FOR: Final = 60 * SECOND
"""A neighbour whom nobody wants is forgotten (Linux: gc_stale_time)."""

ND_ROUTERS_MAX: Final = 8
ND_PREFIXES_MAX: Final = 16
"""Routers and prefixes that we believe in at the same time: a link has one or two, and whoever can
send us an advertisement can send us many."""

ND_SOLICITATIONS_MAX: Final = 3
ND_SOLICITATION_AFTER: Final = 4 * SECOND
"""MAX_RTR_SOLICITATIONS and RTR_SOLICITATION_INTERVAL of RFC 4861 section 10."""

MLD_REPORTS: Final = 2
"""The robustness variable: a joined group is told so often (RFC 3810 section 9.1)."""

MLD_REPORT_AGAIN_AFTER: Final = 1 * SECOND
"""Unsolicited Report Interval (RFC 3810 section 9.11)."""

MLD_ANSWERS_APART: Final = 100 * MILLISECOND
"""Between two answers to queries: who asks a thousand times a second for an answer at once makes us
tell all our groups ten times."""

MLD_OLDER_VERSION_FOR: Final = 260 * SECOND
"""Older Version Querier Present Timeout (RFC 3810 section 9.12): two queries and a response."""

ND_OPTIONS_MAX: Final = 32
"""Options of one message of neighbour discovery: those of a router with many prefixes."""

ICMP_ERRORS_PER_SECOND: Final = 100
"""Errors that we report, on average: diagnosis needs few, and a flood must not echo."""

ICMP_ERRORS_BURST: Final = 50
"""And at once."""

UDP_PORTS_MAX: Final = 1024
"""Bound UDP ports: those of our own services, and of programs with sockets on the stack."""

TCP_PLAIN_RECEIVE_BYTES: Final = 1 * MiB
"""The receive window on a link without offload. There each MTU takes a place in the queue of the
TAP, and those are 1000 by default; a window that overruns it costs a factor of ten."""

# --- tcp ---------------------------------------------------------------------

TCP_CONNECTIONS_MAX: Final = 4096
"""Connections in any state but CLOSED: hundreds of clients with many mounts. One takes 3.5 KB, and
6 once text has gone both ways: the queues of text, and the numbers."""

TCP_SYN_BACKLOG: Final = 128
"""Half-open connections of one listener. Further SYNs are answered with cookies, which cost no
memory, but can say less."""

TCP_SYN_COOKIE_PERIOD: Final = 30 * SECOND
"""A cookie is good for one to two of these: a SYN-ACK and its answer take a few seconds at most."""

TCP_RECEIVE_BYTES_FIRST: Final = 256 * KiB
"""Text that we promise to take on a new connection: one super-frame after another, four times."""

TCP_RECEIVE_BYTES: Final = 8 * MiB
"""And that we promise at most, to a peer that sends so much in half a round trip and a user who
reads it: 80 MB/s over a way of 100 ms."""

TCP_RECEIVE_ROUND_MIN: Final = 4 * MILLISECOND
"""What counts as a round trip at least, when windows grow: on a host's own link it is some 50 us,
but whoever is to send more may first have to be woken."""

TCP_RECEIVE_TOTAL_BYTES_MAX: Final = 256 * MiB
"""Text of all connections that waits for its user, and out-of-order text. A busy peer's text is
taken at once and does not count; beyond this, windows close and what still comes is dropped. Also
what windows have grown by, together: no more is promised than could be kept."""

TCP_PIECE_BYTES_MIN: Final = 256
"""What one piece of waiting text is charged at least: the objects around one byte cost that."""

TCP_OUT_OF_ORDER_PIECES_MAX: Final = 2048
"""Out-of-order pieces of one connection: a window of plain frames behind one that was lost."""

TCP_SACK_RANGES_MAX: Final = 1024
"""Runs of text that one peer has acknowledged selectively. Further ones are not noted, which costs
a needless retransmission. An honest peer has one for each hole: a window of 4 MiB with every third
segment lost has as many."""

TCP_SEND_RUNS_MAX: Final = 1024
"""Runs of text in flight of which is known when they were sent: one for each flush."""

TCP_SEND_ROOM_BYTES: Final = 4 * MiB
"""Unacknowledged text with which a connection is crowded: `room_again` follows when half of it
has been acknowledged."""

TCP_PIECES_MAX: Final = 512
"""Pieces of text in one packet, half of what one writev takes (IOV_MAX); more are joined first."""

TCP_BURST_BYTES: Final = 60_000
"""New text that is cut up in one go for a link that cannot: about what it would take if it could.
Small enough that pieces are seldom joined for it in vain."""

TCP_MSS_DEFAULT: Final = 536
TCP_MSS_DEFAULT_IPV6: Final = 1220
"""A peer that sends no MSS option (RFC 9293 section 3.7.1)."""

TCP_MSS_MIN: Final = 88
"""The least MSS we believe: what is smaller makes us send more headers than text."""

TCP_RTO_INITIAL: Final = 1 * SECOND
"""RFC 6298 (2.1)."""

TCP_RTO_AFTER_SYN_LOSS: Final = 3 * SECOND
"""RFC 6298 (5.7): a SYN that got lost, or a round trip of more than the initial value."""

TCP_RTO_MIN: Final = 200 * MILLISECOND
"""RFC 6298 (2.4) says one second, for the clocks of 1988. The common systems use 200 ms, which is
as long as their acknowledgements may be delayed; a lost last segment of a reply costs one of it."""

TCP_PROBE_TIMEOUT_MIN: Final = 80 * MILLISECOND
"""A probe of the tail (RFC 8985) is not sent sooner. While its user does not read, Linux holds back
the acknowledgement of several segments, too, for 40 ms; and then the peer may have to wait for a
processor. It is still less than half of the timeout that a probe saves."""

TCP_RTO_MAX: Final = 60 * SECOND
"""RFC 6298 (2.5)."""

TCP_GIVE_UP_AFTER: Final = 300 * SECOND
"""No sign of life while text is unacknowledged (R2 of RFC 9293 section 3.8.3: 100 s or more)."""

TCP_SYN_GIVE_UP_AFTER: Final = 180 * SECOND
"""An active open without an answer (RFC 9293 MUST-23: three minutes or more)."""

TCP_SYN_RECEIVED_MAX: Final = 60 * SECOND
"""A half-open connection whose third segment does not come."""

TCP_ORPHAN_AFTER: Final = 60 * SECOND
"""A connection that its user has closed: in FIN-WAIT-2 altogether, in FIN-WAIT-1, CLOSING and
LAST-ACK without progress. Nobody is left who could wait for it."""

TCP_TIME_WAIT: Final = 60 * SECOND
"""2 MSL: nothing lives in a network for more than 30 seconds."""

TCP_KEEPALIVE_IDLE: Final = 7200 * SECOND
"""RFC 9293 MUST-28: keep-alives start after two hours, unless the user says otherwise."""

TCP_KEEPALIVE_INTERVAL: Final = 75 * SECOND
TCP_KEEPALIVE_PROBES: Final = 9
"""Then this many unanswered probes, so far apart, end the connection."""

TCP_DELAYED_ACK: Final = 40 * MILLISECOND
"""An acknowledgement waits so long for text to ride on (RFC 9293 MUST-40: under half a second)."""

TCP_CHALLENGES_PER_SECOND_MAX: Final = 10
"""Answers of one connection to segments that look forged (RFC 5961 section 7). Counted for each
connection: a common count would tell an attacker about connections that are not his."""

TCP_RESETS_PER_SECOND_MAX: Final = 1000
"""Resets for segments that belong to no connection."""

SOCKET_BUFFER_BYTES: Final = 1 * MiB
SOCKET_BUFFER_BYTES_MIN: Final = 4 * KiB
SOCKET_BUFFER_BYTES_MAX: Final = TCP_SEND_ROOM_BYTES
"""SO_RCVBUF and SO_SNDBUF of a socket on the stack. Not more than what makes a connection crowded,
because that is how its user hears that there is room again."""

SOCKET_BACKLOG_MAX: Final = 4096
"""Connections that wait to be accepted, whatever a program asks for (Linux: somaxconn)."""

SOCKET_PIECE_BYTES_MIN: Final = 256
"""What one piece of waiting text, or one datagram, is charged at least."""

assert DHCP_RETRY_JITTER < DHCP_RETRY_AFTER <= DHCP_RETRY_AFTER_MAX
assert TCP_RTO_INITIAL <= TCP_RTO_AFTER_SYN_LOSS <= TCP_RTO_MAX < TCP_GIVE_UP_AFTER
assert TCP_DELAYED_ACK < TCP_RTO_MIN
assert TCP_RECEIVE_BYTES_FIRST < TCP_RECEIVE_BYTES < TCP_RECEIVE_TOTAL_BYTES_MAX

# --- oncrpc ------------------------------------------------------------------

CALL_DATA_BYTES_MAX: Final = 1 * MiB
"""Bulk data in one READ or WRITE: what Linux asks for at most (NFSSVC_MAXBLKSIZE)."""

CALL_BYTES_MAX: Final = CALL_DATA_BYTES_MAX + 64 * KiB
"""One RPC record: the data and everything around it, with room for long paths and credentials."""

REPLY_JOINED_BYTES_MAX: Final = 8 * KiB
"""A reply up to this size goes out in one piece, data and all."""

RECORD_EMPTY_FRAGMENTS_MAX: Final = 64
"""Fragments without a byte in one record: allowed, but nobody needs them."""

RECORD_JOINED_BYTES_MAX: Final = 8 * KiB
"""A record up to this size is copied into one piece: cheaper than to carry pieces around."""

RECORD_HEAD_BYTES: Final = 1 * KiB
"""Of a larger one, this much is: the header, a credential, and every argument but the data."""
assert RECORD_HEAD_BYTES < RECORD_JOINED_BYTES_MAX

RECORD_PIECES_MAX: Final = 512
RECORD_PIECE_BYTES_MIN: Final = 1 * KiB
"""So many pieces of a record that are smaller than this on the average are copied together. Pieces
of a full frame at the usual MTU never are."""

AUTH_BODY_BYTES_MAX: Final = 400
"""Body of a credential or verifier (RFC 5531 section 8.2)."""

CREDENTIALS_KNOWN_MAX: Final = 256
"""Different credentials remembered for one connection, so that they need not be decoded again: one
for every user of a client, and at most half a KiB each."""

MACHINE_NAME_BYTES_MAX: Final = 255
CREDENTIAL_GIDS_MAX: Final = 16
"""Of AUTH_SYS (RFC 5531 appendix A)."""

REPLY_CHECKSUM_BYTES: Final = 1 * KiB
"""So many bytes of the arguments tell a call that is sent again from another with the same xid:
handles and names, which is all that such calls have."""

REPLIES_KEPT_MAX: Final = 8192
REPLIES_KEPT_BYTES_MAX: Final = 4 * MiB
REPLIES_KEPT_OF_CLIENT_MAX: Final = 1024
"""Replies to calls that must not be done twice, for when they come again: more of them than a
client can have on the way, for more clients than one appliance serves at full speed."""

REPLY_KEPT_BYTES_MAX: Final = 8 * KiB
"""A larger reply is not kept: those of calls that change something are far smaller."""

REPLY_KEPT_FOR: Final = 120 * SECOND
"""Clients ask again within a minute (Linux over TCP); much later, the same xid is another call."""

CONNECTIONS_MAX: Final = 256
"""Streams with RPC sessions; a further one takes the place of the one that has been silent longest.
A client holds one to sixteen (nconnect)."""

CALLS_IN_PROGRESS_MAX: Final = 64
"""Of one connection. More wait in the connection, which is not read meanwhile: TCP pushes back."""

CALLS_IN_PROGRESS_TOTAL: Final = 512
"""Of all connections together, shared equally: each call may hold 1 MiB of arguments and make 1 MiB
of reply, so this is what bounds their memory."""

CALLS_IN_PROGRESS_MIN: Final = 2
"""The smallest share: one call is served while the next one arrives."""
assert CALLS_IN_PROGRESS_MIN * CONNECTIONS_MAX <= CALLS_IN_PROGRESS_TOTAL

DATAGRAM_CALLS_IN_PROGRESS_MAX: Final = 64
"""Of all UDP peers together; further ones are dropped, their callers ask again."""

UNSENT_REPLY_BYTES_MAX: Final = TCP_SEND_ROOM_BYTES
"""Replies that a peer has not acknowledged, beyond which none of its calls is taken. TCP says when
half of this has been acknowledged, so it must not be less."""

DATAGRAM_BYTES_MAX: Final = 65_507
"""The data of one UDP datagram over IPv4."""

RPCBIND_STRING_BYTES_MAX: Final = 255
"""A netid, universal address or owner in a call to rpcbind."""

RPCBIND_STATISTICS_MAX: Final = 256
"""Programs of which rpcbind counts who asked for them; callers may ask for any number."""

# --- threads -----------------------------------------------------------------

HELD_UP_AFTER: Final = 2 * MILLISECOND
"""A leader that serves one batch for longer than this has blocked without saying so."""

WATCH_LINGERS: Final = 50 * MILLISECOND
"""How long the ticker keeps watching after the last call, before it sleeps until a deadline."""

CLIENT_IDLE_MAX: Final = 60 * SECOND
"""A client that says nothing for so long is asked whether it is there: one that vanished (a guest
that was switched off, a namespace that is gone) would keep one of the connections for two hours."""

CLIENT_PROBE_INTERVAL: Final = 15 * SECOND
CLIENT_PROBES: Final = 4
"""It has another minute to answer."""

STOP_GRACE: Final = 2 * SECOND
"""How long an orderly stop waits for calls in progress and for peers to acknowledge our FIN."""

# --- vfs ---------------------------------------------------------------------

NAME_BYTES_MAX: Final = 255
"""One name in a directory: what ext4, xfs, tmpfs and Linux's NAME_MAX all say."""

PATH_BYTES_MAX: Final = 1024
"""A path in a MOUNT call (MNTPATHLEN, RFC 1813 section 5.1.3) and the text of a symbolic link
that NFS clients are promised (PATH_MAX is 4096, but it is the mount path that is looked up)."""

HANDLE_BYTES_MAX: Final = 56
"""A file handle on the wire: version 3 allows 64, but ESXi accepts no more than 56."""

NODE_HANDLE_BYTES_MAX: Final = HANDLE_BYTES_MAX - 13
"""What a file system may use of it: the rest says which version, export and file system."""

SYMLINK_BYTES_MAX: Final = 4095
"""The text of a symbolic link: what Linux follows (PATH_MAX less the NUL)."""

DIRECTORY_DEPTH_MAX: Final = 10_000
"""How far up a rename looks for the directory that it moves: no honest tree is so deep, and a
damaged one may have a loop."""

ACL_ENTRIES_MAX: Final = 1024
"""Entries of one access control list: what NFSACL carries, and twice what a block of ext4 holds. It
is searched at every access, which then takes 50 us."""

ACLS_KEPT: Final = 1024
"""Lists that are kept decoded: of a tree, most are equal."""

XATTR_VALUE_BYTES_MAX: Final = 64 * KiB
XATTR_NAME_BYTES_MAX: Final = 255
XATTR_NAMES_BYTES_MAX: Final = 64 * KiB
"""Extended attributes of one node: what Linux allows (XATTR_SIZE_MAX and _NAME_MAX for one,
XATTR_LIST_MAX for the names of all)."""

HOST_NODES_MAX: Final = 4096
"""Files of a host directory that are kept open, with up to three descriptors each: enough for a
source tree, and under the half of any usual hard limit (RLIMIT_NOFILE)."""

HOST_IDS_MAX: Final = 1 << 20
"""Files that the map of a host directory remembers, about 300 bytes each. Handles of the oldest
beyond become stale."""

# --- control -----------------------------------------------------------------

CONTROL_CLIENTS_MAX: Final = 8
"""Connections to the control socket; a further one takes the place of the one that has been silent
longest. Its users are people and scripts of one owner."""

CONTROL_REQUEST_BYTES_MAX: Final = 16 * KiB
"""One request: a verb, a name, a path."""

CONTROL_REPLY_BYTES_MAX: Final = 1 * MiB
"""What rumpctl reads of one reply: a list of all snapshots has some 10 KiB."""

CONTROL_PATIENCE: Final = 60 * SECOND
"""How long rumpctl waits for a reply: a snapshot may have to wait for a busy disk."""

# --- exports -----------------------------------------------------------------

EXPORTS_BYTES_MAX: Final = 1 * MiB
"""One exports file: thousands of lines, and still read at once at every reload."""

EXPORT_ENTRIES_MAX: Final = 10_000
"""Pairs of a path and a client in one exports file: a client is compared with each of a path."""

HOST_NAME_BYTES_MAX: Final = 255
"""The name of a client, or a pattern of names: what DNS can hold (RFC 1035 section 2.3.4)."""

EXPORT_DECISIONS_MAX: Final = 4096
"""Remembered pairs of an export and a client address: more clients than one link has, and at about
200 bytes each no way for a peer with many addresses to fill the memory."""

# --- nfsd and mountd ---------------------------------------------------------

NODES_CACHED: Final = 16_384
"""Handles whose nodes are at hand, in each of two generations: more than a client works with at a
time, at some 200 bytes each, not counting the nodes."""

CALLERS_MAX: Final = 4096
"""Remembered pairs of an address and a credential: a peer can make up any number of these."""

DATAGRAM_DATA_BYTES_MAX: Final = 32 * KiB
"""Bulk data in one READ or WRITE over UDP: with its headers it has to fit into one datagram."""

DIRECTORY_BYTES_PREFERRED: Final = 64 * KiB
"""What clients are advised to ask for in one READDIRPLUS: some 400 entries, which take the server
less than a millisecond."""

MOUNT_LIST_MAX: Final = 4096
"""Remembered mounts, for showmount -a: a client that never unmounts must not fill the memory."""

assert DATAGRAM_DATA_BYTES_MAX < CALL_DATA_BYTES_MAX
