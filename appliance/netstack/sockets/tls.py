"""TLS over a socket on the stack.

The standard library's SSLSocket lets OpenSSL read and write the descriptor, and ours carries no
data. But SSLContext says of what class its sockets are (`sslsocket_class`, which is documented for
that), so `context.wrap_socket(sock)` gives this one: the same OpenSSL through an SSLObject, which
takes and gives bytes, and the bytes go through the socket. What is not on the stack gets the
standard library's.

Like OpenSSL on a descriptor, it takes one record at a time and leaves the rest in the socket. So
poll and select know of what has not been read.
"""

from __future__ import annotations

import socket as std
import ssl
from collections.abc import Callable
from threading import Lock, RLock
from typing import Any, Final, TypeVar

from appliance.netstack.sockets.facade import Socket
from appliance.netstack.sockets.stream import Stream

Result = TypeVar("Result")

_RECORD_HEADER_BYTES: Final = 5
"""Type, version, length (RFC 8446 section 5.1)."""


class TlsSocket(Socket):
    """What SSLContext.wrap_socket gives."""

    @classmethod
    def _create(
        cls,
        sock: Any,
        server_side: bool = False,
        do_handshake_on_connect: bool = True,
        suppress_ragged_eofs: bool = True,
        server_hostname: str | None = None,
        context: ssl.SSLContext | None = None,
        session: ssl.SSLSession | None = None,
    ) -> Any:
        """As SSLContext.wrap_socket calls it. The socket that is wrapped is used up."""
        if not isinstance(sock, Socket):
            return ssl.SSLSocket._create(  # type: ignore[attr-defined]
                sock,
                server_side,
                do_handshake_on_connect,
                suppress_ragged_eofs,
                server_hostname,
                context,
                session,
            )
        if sock.type != std.SOCK_STREAM:
            raise ValueError("only stream sockets are supported")
        if server_side and server_hostname:
            raise ValueError("server_hostname can only be specified in client mode")
        assert context is not None
        if context.check_hostname and not server_hostname:
            raise ValueError("check_hostname requires server_hostname")
        made: TlsSocket = object.__new__(cls)
        made._host = sock._host
        made._begin(
            context,
            server_side,
            do_handshake_on_connect,
            suppress_ragged_eofs,
            server_hostname,
            session,
        )
        made.take_over(sock)
        sock.give_up()
        made._connected()
        return made

    def _begin(
        self,
        context: ssl.SSLContext,
        server_side: bool,
        handshakes: bool,
        suppress_ragged_eofs: bool,
        server_hostname: str | None,
        session: ssl.SSLSession | None,
    ) -> None:
        self.context = context
        self.server_side = server_side
        self.do_handshake_on_connect = handshakes
        self.suppress_ragged_eofs = suppress_ragged_eofs
        self.server_hostname = server_hostname
        self._first_session = session
        self._engine: ssl.SSLObject | None = None
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._lock_engine, self._lock_input, self._lock_output = RLock(), Lock(), Lock()
        self._unsent = b""
        self._header = b""
        self._missing = _RECORD_HEADER_BYTES  # of the header, or of the record behind it

    def _connected(self) -> None:
        """There may be somebody to talk to now."""
        if not (isinstance(self.endpoint, Stream) and self.endpoint.is_connected):
            return
        self._engine = self.context.wrap_bio(
            self._incoming,
            self._outgoing,
            self.server_side,
            self.server_hostname,
            self._first_session,
        )
        if self.do_handshake_on_connect:
            if self.gettimeout() == 0:
                raise ValueError("do_handshake_on_connect should not be specified for non-blocking")
            try:
                self.do_handshake()
            except BaseException:
                self.close()
                raise

    # --- records ------------------------------------------------------------------------

    def _run(self, operation: Callable[[ssl.SSLObject], Result]) -> Result:
        """Let OpenSSL do something (which gives something), and carry its bytes to and fro until
        it is done."""
        engine = self._engine
        if engine is None:
            raise OSError(107, "not connected")
        while True:
            self._flush()
            with self._lock_engine:
                try:
                    result: Result | None = operation(engine)
                except ssl.SSLWantReadError:
                    result = None
                except ssl.SSLError:
                    self._flush_quietly()  # the alert
                    raise
            if result is not None:
                self._flush_quietly()
                return result
            self._flush()
            self._fill()

    def _flush(self) -> None:
        """Send what OpenSSL has written. SSLWantWriteError: not now."""
        with self._lock_output:
            while True:
                self._unsent = self._unsent or self._outgoing.read()
                if not self._unsent:
                    return
                try:
                    sent = super().send(self._unsent)
                except BlockingIOError:
                    raise ssl.SSLWantWriteError(
                        ssl.SSL_ERROR_WANT_WRITE, "The operation did not complete (write)"
                    ) from None
                self._unsent = self._unsent[sent:]

    def _flush_quietly(self) -> None:
        """The same; what cannot go now goes with the next call, or never."""
        try:
            self._flush()
        except (ssl.SSLWantWriteError, TimeoutError, BrokenPipeError, ConnectionError):
            return

    def _fill(self) -> None:
        """Give OpenSSL the next piece of a record. SSLWantReadError: it is not there."""
        with self._lock_input:
            try:
                data = super().recv(self._missing)
            except BlockingIOError:
                raise ssl.SSLWantReadError(
                    ssl.SSL_ERROR_WANT_READ, "The operation did not complete (read)"
                ) from None
            self._feed(data)

    def _feed(self, data: bytes) -> None:
        with self._lock_engine:
            if not data:
                self._incoming.write_eof()
                return
            self._incoming.write(data)
            self._missing -= len(data)
            if len(self._header) < _RECORD_HEADER_BYTES:
                self._header += data
                if len(self._header) == _RECORD_HEADER_BYTES:
                    self._missing = int.from_bytes(self._header[3:], "big")
            if not self._missing:
                self._header, self._missing = b"", _RECORD_HEADER_BYTES

    # --- as of SSLSocket ------------------------------------------------------------------

    def do_handshake(self, block: bool = False) -> None:
        """Agree on keys, and make sure of the peer."""
        self._run(_handshake)

    def read(self, len: int = 1024, buffer: Any = None) -> Any:
        """Bytes, or how many there are in `buffer`; none: the peer has sent everything."""
        try:
            if buffer is None:
                return self._run(lambda engine: engine.read(len))
            return self._run(lambda engine: engine.read(len, buffer))
        except ssl.SSLEOFError:
            if self.suppress_ragged_eofs:
                return b"" if buffer is None else 0
            raise

    def write(self, data: Any) -> int:
        """Send what there is room for: how many bytes."""
        return self._run(lambda engine: engine.write(data))

    def recv(self, bufsize: int = 1024, flags: int = 0) -> bytes:
        if self._engine is None:
            return super().recv(bufsize, flags)
        self._no_flags(flags)
        data: bytes = self.read(bufsize)
        return data

    def recv_into(self, buffer: Any, nbytes: int = 0, flags: int = 0) -> int:
        if self._engine is None:
            return super().recv_into(buffer, nbytes, flags)
        self._no_flags(flags)
        view = memoryview(buffer).cast("B")
        if not len(view):
            return 0
        count: int = self.read(nbytes or len(view), view)
        return count

    def send(self, data: Any, flags: int = 0) -> int:
        if self._engine is None:
            return super().send(data, flags)
        self._no_flags(flags)
        return self.write(data) if len(memoryview(data)) else 0

    def sendall(self, data: Any, flags: int = 0) -> None:
        if self._engine is None:
            super().sendall(data, flags)
            return
        self._no_flags(flags)
        view = memoryview(data).cast("B")
        while len(view):
            view = view[self.write(view) :]

    @staticmethod
    def _no_flags(flags: int) -> None:
        if flags:
            raise ValueError("non-zero flags not allowed in calls on a TLS socket")

    def _not_of_tls(self, *_args: Any, **_kwargs: Any) -> Any:
        raise ValueError("not allowed on instances of a TLS socket")

    recvfrom = recvfrom_into = sendto = recvmsg = recvmsg_into = sendmsg = _not_of_tls

    def connect(self, address: object) -> None:
        super().connect(address)
        self._connected()

    def connect_ex(self, address: object, raises: bool = False) -> int:
        number = super().connect_ex(address, raises)
        if not number and not raises:
            self._connected()
        return number

    def accept(self) -> tuple[Socket, Any]:
        """The next connection, with TLS; its handshake is done, if that was asked for."""
        plain, address = super().accept()
        made: Socket = self.context.wrap_socket(  # type: ignore[assignment]
            plain,  # type: ignore[arg-type]
            server_side=True,
            do_handshake_on_connect=self.do_handshake_on_connect,
            suppress_ragged_eofs=self.suppress_ragged_eofs,
        )
        return made, address

    def unwrap(self) -> Socket:
        """Say goodbye in TLS, hear the same, and go on in the clear: the socket for that."""
        self._run(_goodbye)
        self._flush()
        plain: Socket = object.__new__(self._host.socket)
        plain.take_over(self)
        self.give_up()
        return plain

    def shutdown(self, how: int) -> None:
        self._engine = None
        super().shutdown(how)

    # --- what was agreed on ---------------------------------------------------------------

    def pending(self) -> int:
        """Bytes that are decrypted and were not read."""
        return 0 if self._engine is None else self._engine.pending()

    def getpeercert(self, binary_form: bool = False) -> Any:
        if self._engine is None:
            raise ValueError("handshake not done yet")
        return self._engine.getpeercert(binary_form)

    def version(self) -> str | None:
        return self._engine.version() if self._engine else None

    def cipher(self) -> tuple[str, str, int] | None:
        return self._engine.cipher() if self._engine else None

    def shared_ciphers(self) -> list[tuple[str, str, int]] | None:
        return self._engine.shared_ciphers() if self._engine else None

    def compression(self) -> str | None:
        return self._engine.compression() if self._engine else None

    def selected_alpn_protocol(self) -> str | None:
        return self._engine.selected_alpn_protocol() if self._engine else None

    def get_channel_binding(self, cb_type: str = "tls-unique") -> bytes | None:
        return self._engine.get_channel_binding(cb_type) if self._engine else None

    @property
    def session(self) -> ssl.SSLSession | None:
        return self._engine.session if self._engine else None

    @property
    def session_reused(self) -> bool | None:
        return self._engine.session_reused if self._engine else None


def _handshake(engine: ssl.SSLObject) -> bool:
    engine.do_handshake()
    return True


def _goodbye(engine: ssl.SSLObject) -> bool:
    engine.unwrap()
    return True
