"""Transmission Control Protocol (RFC 9293), sans-I/O.

host.py             `Tcp`: the connections of one host; packets in, `flush` sends
connection.py       `Connection`: the transmission control block, and what its user calls
segment_arrives.py  section 3.10.7, step by step
express.py          header prediction: the common segment without the steps
output.py           what to send, decided once for everything
send_half.py        SND.* and the text behind it
receive_half.py     RCV.*, reassembly, the window
retransmission.py   RFC 6298 and RFC 6582; the timer of a connection
congestion.py       RFC 5681 behind an interface
listener.py         passive open
state.py            the states, figure 5
sequence.py         the one place where sequence numbers wrap
"""
