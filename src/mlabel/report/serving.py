"""The server of the page to try a model on: one process, at this machine's own address unless told otherwise."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

from mlabel._checks import check_between, require
from mlabel.inference import Tagger
from mlabel.report.endpoint import LOCAL, ServeLimits, address_of, create_app

if TYPE_CHECKING:
    from fastapi import FastAPI

_log = logging.getLogger(__name__)

HOST, PORT = "127.0.0.1", 8000
_CONNECTIONS = 64  # more at once are answered 503
_MOST_HEADERS = 16 << 10  # bytes, of headers that have not ended
_HEAD_SECONDS = 10.0  # that a connection may take to say what it wants


def serve(
    tagger: Tagger,
    *,
    host: str = HOST,
    port: int = PORT,
    allow_hosts: Iterable[str] = (),
    title: str = "mlabel",
    limits: ServeLimits | None = None,
    say: Callable[[str], None] = print,
) -> None:
    """Serve the page and the endpoint of `create_app` until the process is interrupted.

    Args:
        tagger: The model.
        host: The address to listen at. Any but one of this machine itself lets others in, without a password: a
            warning says so.
        port: 0: any that is free.
        allow_hosts: Names by which the server may be called, besides localhost and addresses.
        title, limits: See `create_app`.
        say: Takes the address of the page, once it can be opened.

    Raises:
        ValueError: a port that none can have.
        OSError: the address or port cannot be listened at.
        ImportError: FastAPI or uvicorn is not installed.
    """
    check_between(port, 0, 65_535, "port")
    uvicorn = require("uvicorn", "serve")
    app = create_app(tagger, allow_hosts=[host, *allow_hosts], title=title, limits=limits)
    with _listen(host, port) as listening:
        if not _is_local(host):
            _log.warning(
                "listening at %s: everybody who reaches this machine can use the model; there is no password and no "
                "encryption",
                host,
            )
        shown = f"[{host}]" if ":" in host else host
        say(f"http://{shown}:{listening.getsockname()[1]}/")
        uvicorn.Server(_uvicorn_config(uvicorn, app)).run(sockets=[listening])


def _listen(host: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise OSError(
            f"cannot listen at {host}, port {port}: {error.strerror}; choose another --host or --port"
        ) from error


def _uvicorn_config(uvicorn: Any, app: FastAPI) -> Any:
    """Return settings without logs of requests, proxies' headers or web sockets, and with limits."""
    return uvicorn.Config(
        app,
        http=_impatient_protocol(),
        ws="none",
        lifespan="off",
        log_level="warning",
        access_log=False,
        proxy_headers=False,
        server_header=False,
        limit_concurrency=_CONNECTIONS,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=5,
        h11_max_incomplete_event_size=_MOST_HEADERS,
    )


def _is_local(host: str) -> bool:
    address = address_of(host)
    return host.lower() in LOCAL if address is None else address.is_loopback


def _impatient_protocol() -> type[asyncio.Protocol]:
    """Return uvicorn's protocol, but it hangs up where the head of a request does not come, which uvicorn waits for."""
    h11, protocol = require("h11", "serve"), require("uvicorn.protocols.http.h11_impl", "serve").H11Protocol

    class Impatient(protocol):  # type: ignore[misc, valid-type]
        timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.watch()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self.watch()

        def connection_lost(self, exc: Exception | None) -> None:
            self.rest()
            super().connection_lost(exc)

        def watch(self) -> None:
            if self.conn.their_state is not h11.IDLE:
                self.rest()
            elif self.timer is None:
                self.timer = self.loop.call_later(_HEAD_SECONDS, self.transport.close)

        def rest(self) -> None:
            if self.timer is not None:
                self.timer.cancel()
                self.timer = None

    return Impatient
