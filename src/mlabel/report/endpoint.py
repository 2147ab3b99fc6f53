"""A page to try a model on, and a JSON endpoint, as an application: one model, nothing written to disk.

What is sent is limited before it is in memory, decoded by `mlabel.data.read_image` alone, and answered by one thread at
a time. Browsers are kept to this page: a strict Content-Security-Policy, no requests from other sites, and a check of
the Host header, so that no other name can be made to lead here (DNS rebinding).
"""

from __future__ import annotations

import asyncio
import base64
import io
import ipaddress
import logging
import math
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch
from PIL import Image

from mlabel._checks import check_positive, require
from mlabel.data import ImageError, read_image
from mlabel.inference import Tagger
from mlabel.labels import row_rule, threshold_values
from mlabel.report._transformers import find_transformer
from mlabel.report.saliency import explain

if TYPE_CHECKING:
    from fastapi import FastAPI, Request, Response

_log = logging.getLogger(__name__)
T = TypeVar("T")

LOCAL = frozenset({"localhost"})
_BODY_TYPES = ("image/", "application/octet-stream")
_DARK = 0.85  # how much of the image is taken away where the map is 0
# What the browser may do with anything that comes from here.
_HEADERS = {
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src blob: data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-resource-policy": "same-origin",
    "cross-origin-opener-policy": "same-origin",
    "cache-control": "no-store",
}
# What is sent of an `ImageError`, by its reason: too large, of a format that is not taken, or not to be decoded.
_IMAGE_STATUS = {"too_large": 413, "not_an_image": 415, "format": 415, "empty": 400}
_PAGE = {
    "/": ("serving.html", "text/html"),
    "/page.js": ("serving.js", "text/javascript"),
    "/page.css": ("serving.css", "text/css"),
}


@dataclass(frozen=True)
class ServeLimits:
    """What a server takes, and refuses beyond.

    Args:
        max_bytes: Bytes of an image file; what is longer is refused while it comes, with status 413.
        max_pixels: Pixels of an image, refused from its header, with status 413.
        max_waiting: Images that wait for the model or are being received; further ones get status 503.
        timeout: Seconds that an image may take to arrive (status 408), and to wait for the model (status 503).

    Raises:
        ValueError: a number that is not above 0.

    Example:
        >>> ServeLimits(max_bytes=5 << 20).timeout
        30.0
    """

    max_bytes: int = 20 << 20
    max_pixels: int = 50_000_000
    max_waiting: int = 8
    timeout: float = 30.0

    def __post_init__(self) -> None:
        for name in ("max_bytes", "max_pixels", "max_waiting", "timeout"):
            check_positive(getattr(self, name), name)


class _Refused(Exception):  # noqa: N818  it is an answer, not a fault
    """A request that is answered with a status and a message."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def create_app(
    tagger: Tagger,
    *,
    allow_hosts: Iterable[str] = (),
    title: str = "mlabel",
    limits: ServeLimits | None = None,
) -> FastAPI:
    """Return the page and endpoint as an ASGI application, for `serve` or a server of your own.

    `GET /` is the page; `GET /health` and `GET /labels` say what is served; `POST /predict` with the bytes of an image
    answers labels, scores and thresholds, and `POST /explain?label=NAME` where the model looked. All but the page is
    JSON; an error is `{"error": message}`. See `docs/serving.md`.

    Args:
        tagger: The model; used by one thread at a time.
        allow_hosts: Names that the Host header may have, besides localhost and addresses.
        title: The page's heading.
        limits: None: those of `ServeLimits`.

    Raises:
        ImportError: FastAPI is not installed.

    Example:
        >>> from mlabel.inference import Tagger
        >>> from mlabel.labels import Group, LabelSpace
        >>> from mlabel.models import create_model
        >>> model = create_model("small_cnn", LabelSpace([Group("tags", ["cat", "dog"])]), image_size=32)
        >>> create_app(Tagger(model), title="cats and dogs").title
        'cats and dogs'
    """
    fastapi = require("fastapi", "serve")
    service = _Service(tagger, title, limits or ServeLimits())
    app = fastapi.FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    for path, (name, kind) in _PAGE.items():
        app.add_route(path, _file_route(name, kind), methods=["GET"])
    for path, answer, method in (
        ("/health", service.health, "GET"),
        ("/labels", service.labels, "GET"),
        ("/predict", service.predict, "POST"),
        ("/explain", service.explain, "POST"),
    ):
        app.add_route(path, _json_route(answer), methods=[method])
    app.add_exception_handler(_http_exception(), _say_status)
    app.add_middleware(_Guard, names=frozenset(name.lower() for name in allow_hosts) | LOCAL)
    return app


def _http_exception() -> type[Exception]:
    from starlette.exceptions import HTTPException

    return HTTPException


def _gone() -> type[Exception]:
    from starlette.requests import ClientDisconnect

    return ClientDisconnect


def _respond(content: Mapping[str, Any], status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    from fastapi.responses import JSONResponse

    return JSONResponse(content, status_code=status, headers=dict(headers or {}))


async def _say_status(request: Request, error: Any) -> Response:
    """Answer a path that is not there, or a method that it has not, as JSON."""
    return _respond({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code, error.headers)


def _file_route(name: str, kind: str) -> Callable[[Request], Awaitable[Response]]:
    text = files(__package__).joinpath(name).read_text(encoding="utf-8")

    async def route(request: Request) -> Response:
        from fastapi.responses import Response as Plain

        return Plain(text, media_type=f"{kind}; charset=utf-8")

    return route


def _json_route(
    answer: Callable[[Request], Awaitable[Mapping[str, Any]]],
) -> Callable[[Request], Awaitable[Response]]:
    """Return a route that answers as JSON, refusals too."""

    async def route(request: Request) -> Response:
        try:
            return _respond(await answer(request))
        except _Refused as error:
            again = {"retry-after": "1"} if error.status == 503 else {}
            # What was not read of a body that is refused must not be taken for the next request.
            return _respond({"error": str(error)}, error.status, {"connection": "close", **again})
        except Exception:  # what nobody foresaw is for the log of who serves, not for who asks
            _log.exception("answering %s failed", request.url.path)
            return _respond({"error": "the server failed at this request; its log says how"}, 500)

    return route


class _Guard:
    """ASGI middleware: refuses foreign hosts and origins, and puts the headers of safety on every answer."""

    def __init__(self, app: Any, names: frozenset[str]) -> None:
        self.app, self.names = app, names

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return  # nothing else is served

        async def send_guarded(message: Any) -> None:
            if message["type"] == "http.response.start":
                added = [(name.encode(), value.encode()) for name, value in _HEADERS.items()]
                message = {**message, "headers": [*message.get("headers", ()), *added]}
            await send(message)

        reason = self._foreign(scope)
        if reason is None:
            await self.app(scope, receive, send_guarded)
        else:
            await _respond({"error": reason}, 403, {"connection": "close"})(scope, receive, send_guarded)

    def _foreign(self, scope: Any) -> str | None:
        """Return why a request is refused, or None."""
        held: dict[bytes, list[bytes]] = {}
        for name, value in scope["headers"]:
            held.setdefault(name.lower(), []).append(value)
        hosts = [value.decode("latin-1") for value in held.get(b"host", [])]
        if len(hosts) != 1 or not self._is_known(hosts[0]):
            shown = ", ".join(hosts)[:80]
            return f"this server is not called {shown!r}; open it by its address, or start it with --allow-host NAME"
        origins = [value.decode("latin-1") for value in held.get(b"origin", [])]
        if any(origin.partition("://")[2].lower() != hosts[0].lower() for origin in origins):
            return f"requests from the site {origins[0][:80]!r} are not answered"
        return None

    def _is_known(self, host: str) -> bool:
        """Return whether a Host header is an allowed name, or an address, which no other name stands behind."""
        bare, port = host, ""
        if host.startswith("["):
            bare, _, port = host[1:].partition("]")
            port = port.removeprefix(":")
        elif ":" in host:
            bare, _, port = host.rpartition(":")
        if port and not port.isdigit():
            return False
        return bare.lower() in self.names or address_of(bare) is not None


def address_of(text: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address | None:
    """Return the IP address that a text is; None where it is another name."""
    try:
        return ipaddress.ip_address(text)
    except ValueError:
        return None


@dataclass
class _Service:
    """What is answered; each method takes a request and returns what becomes JSON."""

    tagger: Tagger
    title: str
    limits: ServeLimits
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    inside: int = 0

    async def health(self, request: Request) -> Mapping[str, Any]:
        """Say that the server is there."""
        return {"status": "ok", "labels": self.tagger.space.num_labels}

    async def labels(self, request: Request) -> Mapping[str, Any]:
        """Say what is served: title, limits, and labels by group with their thresholds."""
        space, thresholds = self.tagger.space, self._thresholds()
        groups = [
            {
                "name": group.name,
                "exclusive": group.exclusive,
                "labels": [{"name": name, "threshold": thresholds[name]} for name in group.labels],
            }
            for group in space.groups
        ]
        held = row_rule(self.tagger.thresholds)
        taken = {"max_bytes": self.limits.max_bytes, "max_pixels": self.limits.max_pixels}
        return {
            "title": self.title,
            "groups": groups,
            "rule": None if held is None else str(held),
            "image_size": self.tagger.model.image_size,
            **taken,
        }

    async def predict(self, request: Request) -> Mapping[str, Any]:
        """Answer the labels, scores and thresholds of an image."""
        return await self._with_image(request, self._predict)

    async def explain(self, request: Request) -> Mapping[str, Any]:
        """Answer where the model looked for a label."""
        names = request.query_params.getlist("label")
        if len(names) != 1:
            raise _Refused(400, "one ?label=NAME is wanted")
        try:
            column = self.tagger.space.index(names[0])
        except ValueError as error:
            raise _Refused(422, str(error)) from None
        return await self._with_image(request, lambda pixels: self._explain(pixels, column))

    async def _with_image(self, request: Request, work: Callable[[torch.Tensor], T]) -> T:
        """Return what `work` makes of the image of a request, in a thread, when it is its turn."""
        kind = request.headers.get("content-type", _BODY_TYPES[1]).lower()
        if not kind.startswith(_BODY_TYPES):
            raise _Refused(415, f"the bytes of an image were wanted, as image/* or {_BODY_TYPES[1]}; got {kind[:80]!r}")
        if self.inside >= self.limits.max_waiting:
            raise _Refused(503, f"{self.inside} images are waiting already; try again in a moment")
        self.inside += 1
        try:
            content = await self._receive(request)
            try:
                await asyncio.wait_for(self.turn.acquire(), self.limits.timeout)
            except TimeoutError:
                raise _Refused(503, "the model was busy for too long; try again in a moment") from None
            try:
                return await asyncio.to_thread(lambda: work(self._read(content)))
            finally:
                self.turn.release()
        finally:
            self.inside -= 1

    async def _receive(self, request: Request) -> bytes:
        """Return the body; what is too long is refused before it is held."""
        most = self.limits.max_bytes
        too_long = _Refused(413, f"an image of at most {most:,} bytes is taken")
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or int(length) > most:
            raise too_long
        content, end = bytearray(), time.monotonic() + self.limits.timeout
        stream = request.stream().__aiter__()
        while True:
            try:
                chunk = await asyncio.wait_for(anext(stream, None), end - time.monotonic())
            except _gone():
                raise _Refused(400, "the image stopped coming") from None
            except TimeoutError:
                raise _Refused(408, f"the image did not arrive within {self.limits.timeout:g} seconds") from None
            if chunk is None:
                return bytes(content)
            if len(content) + len(chunk) > most:
                raise too_long
            content += chunk

    def _read(self, content: bytes) -> torch.Tensor:
        """Return the image as the model takes it, uint8 (1, C, H, W)."""
        model = self.tagger.model
        try:
            pixels = read_image(
                content, channels=model.in_channels, max_pixels=self.limits.max_pixels, size=model.image_size
            )
        except ImageError as error:
            status = _IMAGE_STATUS.get(error.reason, 422)
            raise _Refused(status, str(error).replace(f"<{len(content)} bytes>", "the image")) from None
        return torch.from_numpy(pixels).permute(2, 0, 1)[None]

    def _predict(self, pixels: torch.Tensor) -> Mapping[str, Any]:
        found = self.tagger.predict_pixels(pixels)[0]
        scores = dict(zip(self.tagger.space.names, found.scores.tolist(), strict=True))
        return {"labels": found.labels, "scores": scores, "thresholds": self._thresholds()}

    def _thresholds(self) -> dict[str, float | None]:
        """Return the threshold of each label; None in exclusive groups, where a rule decides, and for inf."""
        space = self.tagger.space
        if row_rule(self.tagger.thresholds) is not None:
            return dict.fromkeys(space.names)
        values = threshold_values(self.tagger.thresholds, space.num_labels, space).tolist()
        return {n: value if math.isfinite(value) else None for n, value in zip(space.names, values, strict=True)}

    def _explain(self, pixels: torch.Tensor, column: int) -> Mapping[str, Any]:
        model = self.tagger.model
        try:
            found = explain(model, pixels, [column])[0, 0].cpu().numpy()
        except TypeError as error:
            raise _Refused(422, f"this network has no map to show: {error}") from None
        method = "grad_cam" if find_transformer(model.backbone) is None else "attention_rollout"
        name = self.tagger.space.names[column]
        return {"label": name, "method": method, "empty": not found.any(), "map": _shade(found)}


def _shade(values: np.ndarray) -> str:
    """Return a map (H, W) in [0, 1] as a PNG's data address: black, and the darker the less was looked there."""
    shade = np.zeros((*values.shape, 2), dtype=np.uint8)
    shade[..., 1] = np.rint(255 * _DARK * (1 - values))
    content = io.BytesIO()
    Image.fromarray(shade, "LA").save(content, "PNG")
    return f"data:image/png;base64,{base64.b64encode(content.getvalue()).decode('ascii')}"
