"""A server on loopback that answers like the head of a Ray cluster, and keeps the tokens that it is shown."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc


class FakeHead:
    """Answers Ray's check of its head. `required` is whether it refuses clients without a token."""

    def __init__(self, required: bool) -> None:
        self.required, self.tokens, self.address = required, list[str](), ""

    def service(self, details: Any) -> Any:
        """The handler of a call (the interface of grpc)."""
        shown = [value for name, value in details.invocation_metadata if name == "authorization"]
        self.tokens += shown
        return grpc.unary_unary_rpc_method_handler(lambda _, context: self._answer(context, bool(shown)))

    def _answer(self, context: Any, shown: bool) -> bytes:
        if self.required and not shown:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no token")
        return b""


@contextmanager
def fake_head(required: bool) -> Iterator[FakeHead]:
    """A running head for the block."""
    head = FakeHead(required)
    server: Any = grpc.server(ThreadPoolExecutor(1), handlers=(head,))
    head.address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
    server.start()
    yield head
    server.stop(None)
