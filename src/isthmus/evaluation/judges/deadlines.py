"""HTTP requests with one deadline for connecting, sending, and reading headers and body.

A socket's own time-out starts anew with every byte, and with every address of a host.

1. Every address of the host is tried with what is left of the time.
2. Before bytes are sent or read, the socket is given what is left.
"""

import functools
import http.client
import io
import socket
import time
import urllib.request
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

_BLOCK_BYTES = 16_384


class Deadline:
    """A moment until which a request must be done.

    Args:
        seconds: From now.
    """

    def __init__(self, seconds: float) -> None:
        self._ends_at = time.monotonic() + seconds

    def left_s(self) -> float:
        """Says how long there still is.

        Returns:
            Seconds, above 0.

        Raises:
            TimeoutError: If none are.
        """
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError
        return left


def timed_handlers(deadline: Deadline) -> Sequence[urllib.request.BaseHandler]:
    """Lets an opener of `urllib` keep a deadline; what takes longer raises TimeoutError.

    Looking up the address of a host is the system's, which has a time-out of its own.

    Args:
        deadline: Of all requests of this opener.

    Returns:
        Handlers for `urllib.request.build_opener`, one for http and one for https.
    """
    return (_Http(deadline), _Https(deadline))


class _Http(urllib.request.HTTPHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    @override
    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_Connection, deadline=self._deadline), req)


class _Https(urllib.request.HTTPSHandler):
    def __init__(self, deadline: Deadline) -> None:
        super().__init__()
        self._deadline = deadline

    @override
    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(functools.partial(_SecureConnection, deadline=self._deadline), req)


class _Connection(http.client.HTTPConnection):
    """A connection whose socket never has more time than is left."""

    def __init__(self, *given: Any, deadline: Deadline, **named: Any) -> None:
        super().__init__(*given, **named)
        self._deadline = deadline
        # The library's own gives every address of a host the whole time.
        self._create_connection = self._connected
        # A class and a function that makes one are called alike.
        made: Any = functools.partial(_Response, deadline=deadline)
        self.response_class = made

    def _connected(self, address: tuple[str, int], *_: Any) -> socket.socket:
        problem: OSError = OSError(f"no address of {address[0]}")
        for family, kind, protocol, _name, place in socket.getaddrinfo(
            *address, type=socket.SOCK_STREAM
        ):
            one = socket.socket(family, kind, protocol)
            try:
                one.settimeout(self._deadline.left_s())
                one.connect(place)
                one.settimeout(self._deadline.left_s())
            except OSError as error:
                one.close()
                problem = error
            else:
                return one
        raise problem

    @override
    def send(self, data: Any) -> None:
        # TLS gives every record the whole time.
        for start in range(0, len(data), _BLOCK_BYTES):
            if self.sock is not None:
                self.sock.settimeout(self._deadline.left_s())
            super().send(data[start : start + _BLOCK_BYTES])


class _SecureConnection(_Connection, http.client.HTTPSConnection):
    """The same with TLS."""


class _Response(http.client.HTTPResponse):
    """A response that is read while there is time."""

    def __init__(self, sock: socket.socket, *given: Any, deadline: Deadline, **named: Any) -> None:
        super().__init__(sock, *given, **named)
        unlimited = self.fp
        self.fp = io.BufferedReader(_Reader(sock, deadline))
        unlimited.close()


class _Reader(io.RawIOBase):
    """What a socket receives, read while there is time."""

    def __init__(self, sock: socket.socket, deadline: Deadline) -> None:
        self._sock, self._deadline = sock, deadline
        self._received = sock.makefile("rb", buffering=0)

    @override
    def readable(self) -> bool:
        return True

    @override
    def readinto(self, buffer: Any) -> int | None:
        self._sock.settimeout(self._deadline.left_s())
        n_bytes = self._received.readinto(buffer)
        # What follows without this reader, such as the handshake behind a proxy, has the rest.
        self._sock.settimeout(self._deadline.left_s())
        return n_bytes

    @override
    def close(self) -> None:
        self._received.close()
        super().close()
