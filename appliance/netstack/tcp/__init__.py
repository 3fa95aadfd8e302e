"""Transmission Control Protocol (RFC 9293), sans-I/O.

host.py             `Tcp`: the connections of one host; packets in, `flush` sends
connection.py       `Connection`: the transmission control block, and what its user calls
segment_arrives.py  section 3.10.7, step by step
express.py          header prediction: the common segment without the steps
output.py           what to send, decided once for everything
send_half.py        SND.* and the text behind it
receive_half.py     RCV.*, reassembly, the window
retransmission.py   the round-trip time and the timeout (RFC 6298); the timer of a connection
recovery.py         fast recovery without SACK (RFC 6582)
calm.py             ... of a connection that has not lost anything
sack_recovery.py    fast recovery with SACK (RFC 6675, 6937), tail loss probes (RFC 8985)
sack.py             the blocks of both sides (RFC 2018, 2883)
rack.py             which bytes are lost (RFC 8985)
send_times.py       when what is in flight was sent
ranges.py           sets of sequence numbers
undo.py             retransmissions that were needless (RFC 3522, 4015)
congestion.py       how much may be in flight, behind an interface; NewReno (RFC 5681)
cubic.py            CUBIC (RFC 9438); which algorithms there are
packet_size.py      the effective MSS, path MTUs, black holes (RFC 1191, 2923, 5927)
ecn.py              marks of routers (RFC 3168)
patience.py         how long to wait for a silent peer, how often to answer a noisy one
listener.py         passive open
syn_cookies.py      ... of more peers than can be remembered (RFC 4987)
active_open.py      active open; source ports (RFC 6056)
reasons.py          why a connection is over
state.py            the states, figure 5
sequence.py         the one place where sequence numbers wrap
"""
