"""A gRPC service without generated code: messages are bytes. Every kind of call, trailers, deadlines, cancellation."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent import futures
from contextlib import contextmanager
from typing import Any

import grpc  # type: ignore[import-untyped]

SERVICE = "test.Echo"


class Echo:
    """What the server saw; the methods of the service are its methods."""

    def __init__(self) -> None:
        self.metadata: dict[str, str] = {}
        self.time_remaining_s: float | None = None
        self.cancelled = threading.Event()
        self.waiting = threading.Event()

    def _note(self, context: Any) -> None:
        self.metadata = dict(context.invocation_metadata())
        self.time_remaining_s = context.time_remaining()

    def unary(self, request: bytes, context: Any) -> bytes:
        self._note(context)
        context.send_initial_metadata((("x-early", "1"),))
        context.set_trailing_metadata((("x-late", "2"), ("x-late-bin", b"\x00\xff")))
        return request.upper()

    def fail(self, request: bytes, context: Any) -> bytes:
        context.set_trailing_metadata((("x-why", "because"),))
        context.abort(grpc.StatusCode.FAILED_PRECONDITION, "not like this: ä%")
        return b""

    def count(self, request: bytes, context: Any) -> Iterator[bytes]:
        for number in range(int(request)):
            yield b"%d" % number

    def blob(self, request: bytes, context: Any) -> Iterator[bytes]:
        for _ in range(int(request)):
            yield bytes(256 * 1024)

    def gather(self, requests: Iterator[bytes], context: Any) -> bytes:
        sizes = [len(request) for request in requests]
        return b"%d messages, %d bytes" % (len(sizes), sum(sizes))

    def chat(self, requests: Iterator[bytes], context: Any) -> Iterator[bytes]:
        for request in requests:
            yield b"you said " + request
        yield b"bye"

    def wait(self, request: bytes, context: Any) -> Iterator[bytes]:
        self._note(context)
        context.add_callback(self.cancelled.set)
        self.waiting.set()
        if request:
            yield request
        while context.is_active():
            time.sleep(0.01)


@contextmanager
def echo_server(
    port: int = 0, credentials: Any = None, options: tuple[tuple[str, Any], ...] = ()
) -> Iterator[tuple[Echo, int]]:
    """A real grpc server on loopback; h2c unless credentials are given."""
    echo = Echo()
    handlers = {
        "Unary": grpc.unary_unary_rpc_method_handler(echo.unary),
        "Fail": grpc.unary_unary_rpc_method_handler(echo.fail),
        "Count": grpc.unary_stream_rpc_method_handler(echo.count),
        "Blob": grpc.unary_stream_rpc_method_handler(echo.blob),
        "Gather": grpc.stream_unary_rpc_method_handler(echo.gather),
        "Chat": grpc.stream_stream_rpc_method_handler(echo.chat),
        "Wait": grpc.unary_stream_rpc_method_handler(echo.wait),
    }
    server = grpc.server(futures.ThreadPoolExecutor(16), options=options)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
    if credentials is None:
        bound = server.add_insecure_port(f"127.0.0.1:{port}")
    else:
        bound = server.add_secure_port(f"127.0.0.1:{port}", credentials)
    server.start()
    try:
        yield echo, bound
    finally:
        server.stop(0).wait()


class EchoClient:
    """The calls of a grpc client over one channel. Blocks: call it from a thread."""

    def __init__(self, channel: Any) -> None:
        self.channel = channel

    def unary(self, name: str) -> Any:
        return self.channel.unary_unary(f"/{SERVICE}/{name}")

    def down(self, name: str) -> Any:
        return self.channel.unary_stream(f"/{SERVICE}/{name}")

    def up(self, name: str) -> Any:
        return self.channel.stream_unary(f"/{SERVICE}/{name}")

    def both(self, name: str) -> Any:
        return self.channel.stream_stream(f"/{SERVICE}/{name}")
