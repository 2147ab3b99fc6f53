"""`mlabel serve`: over a real connection, what is answered, what is refused, and the page in a real browser."""

from __future__ import annotations

import base64
import io
import json
import logging
import re
import socket
import struct
import sys
import threading
import time
import urllib.error
import urllib.request
import zlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import contextmanager
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import uvicorn
from PIL import Image
from torch import nn
from torchvision.models import VisionTransformer

from mlabel.cli import main
from mlabel.data import read_image
from mlabel.decisions import TopK
from mlabel.inference import Tagger
from mlabel.labels import Group, LabelSpace
from mlabel.models import create_model
from mlabel.report import ServeLimits, create_app, explain, serve
from mlabel.report.serving import _listen, _uvicorn_config

EVIL = '<img src=x onerror="console.error(1)">&"\''
SPACE = LabelSpace(
    [Group("tags", ["cat", "long_hair", EVIL]), Group("size", ["small", "large"], exclusive=True)],
)
LIMITS = ServeLimits(max_bytes=100_000, max_pixels=1_000_000, max_waiting=3, timeout=1.5)
KIND = {"Content-Type": "image/png"}


def make_tagger(**options: Any) -> Tagger:
    torch.manual_seed(0)
    model = create_model("small_cnn", SPACE, image_size=32)
    return Tagger(model, np.array([0.4, 0.5, 0.6, np.nan, np.nan]), **options)


def picture(width: int = 40, height: int = 30, kind: str = "PNG") -> bytes:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


@contextmanager
def serving(tagger: Tagger, limits: ServeLimits = LIMITS, **options: Any) -> Iterator[str]:
    """Serve in a thread, at a port that is free; yield the address."""
    with _listen("127.0.0.1", 0) as listening:
        app = create_app(tagger, limits=limits, **options)
        server = uvicorn.Server(_uvicorn_config(uvicorn, app))
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
        thread.start()
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"
        server.should_exit = True
        thread.join(timeout=10)
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def tagger() -> Tagger:
    return make_tagger()


@pytest.fixture(scope="module")
def address(tagger: Tagger) -> Iterator[str]:
    with serving(tagger, title="Cats", allow_hosts=["Labels.example"]) as found:
        yield found


def ask(url: str, body: bytes | None = None, *, method: str | None = None, **headers: str) -> tuple[int, Any, Any]:
    """Return status, JSON (text of what is none) and headers of an answer."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    request = urllib.request.Request(url, body, {**(KIND if body is not None else {}), **named}, method=method)
    try:
        with urllib.request.urlopen(request, timeout=20) as answer:
            status, content, said = answer.status, answer.read(), answer.headers
    except urllib.error.HTTPError as error:
        with error:
            status, content, said = error.code, error.read(), error.headers
    is_json = said.get_content_type() == "application/json"
    return status, json.loads(content) if is_json else content.decode(), said


def talk(address: str, sent: bytes, *, wait: float = 10.0) -> bytes:
    """Return what a server answers to bytes as they are, until it closes the connection."""
    host, port = address.removeprefix("http://").split(":")
    answer = b""
    with socket.create_connection((host, int(port)), timeout=wait) as connection:
        try:
            connection.sendall(sent)
            while chunk := connection.recv(65536):
                answer += chunk
        except (ConnectionResetError, BrokenPipeError):
            pass
    return answer


# What is answered.


def test_a_prediction_is_that_of_the_tagger(address: str, tagger: Tagger, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    wanted = tagger.predict(tmp_path / "a.png")[0]
    status, found, _ = ask(f"{address}/predict", picture())
    assert status == 200
    assert found["labels"] == pytest.approx(wanted.labels)
    assert list(found["labels"]) == list(wanted.labels)
    assert list(found["scores"]) == list(SPACE.names)
    assert np.allclose(list(found["scores"].values()), wanted.scores)
    assert found["thresholds"] == {"cat": 0.4, "long_hair": 0.5, EVIL: 0.6, "small": None, "large": None}


def test_a_map_is_that_of_explain(address: str, tagger: Tagger) -> None:
    pixels = torch.from_numpy(read_image(picture(), size=(32, 32))).permute(2, 0, 1)[None]
    maps = explain(tagger.model, pixels, ["cat", "large"])[0].numpy()
    for name, wanted in zip(("cat", "large"), maps, strict=True):
        status, found, _ = ask(f"{address}/explain?label={name}", picture())
        assert (status, found["label"], found["method"], found["empty"]) == (200, name, "grad_cam", not wanted.any())
        kind, _, content = found["map"].partition(",")
        assert kind == "data:image/png;base64"
        shade = np.array(Image.open(io.BytesIO(base64.b64decode(content))))
        assert (shade[..., 0] == 0).all()
        assert np.abs(shade[..., 1] - 255 * 0.85 * (1 - wanted)).max() < 1


def test_what_is_served(address: str) -> None:
    assert ask(f"{address}/health")[:2] == (200, {"status": "ok", "labels": 5})
    status, found, _ = ask(f"{address}/labels")
    assert (status, found["title"], found["rule"]) == (200, "Cats", None)
    assert [group["name"] for group in found["groups"]] == ["tags", "size"]
    assert [group["exclusive"] for group in found["groups"]] == [False, True]
    assert found["groups"][0]["labels"][0] == {"name": "cat", "threshold": 0.4}


@pytest.mark.parametrize("kind", ["JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_formats_are_found_by_content(address: str, kind: str) -> None:
    assert ask(f"{address}/predict", picture(kind=kind), Content_Type="application/octet-stream")[0] == 200


def test_many_at_once_get_their_own_answers(tagger: Tagger) -> None:
    bodies = [picture(width) for width in (20, 30, 40, 50)]
    with serving(tagger, ServeLimits(max_waiting=8)) as address, ThreadPoolExecutor(4) as pool:
        alone = [ask(f"{address}/predict", body)[1] for body in bodies]
        together = list(pool.map(lambda body: ask(f"{address}/predict", body)[1], bodies * 3))
    assert together == alone * 3
    assert len({json.dumps(each) for each in alone}) == 4


def test_a_rule_has_no_thresholds() -> None:
    torch.manual_seed(0)
    model = create_model("small_cnn", SPACE, image_size=32)
    with serving(Tagger(model, TopK(1))) as address:
        found = ask(f"{address}/predict", picture())[1]
        assert set(found["thresholds"].values()) == {None}
        assert len(found["labels"]) == 2  # one tag and one size
        assert "1" in ask(f"{address}/labels")[1]["rule"]


def test_a_threshold_that_no_score_reaches_is_not_a_number_of_json() -> None:
    levels = np.array([np.inf, 0.5, 0.5, np.nan, np.nan])
    with serving(Tagger(create_model("small_cnn", SPACE, image_size=32), levels)) as address:
        status, found, _ = ask(f"{address}/predict", picture())
        assert (status, found["thresholds"]["cat"]) == (200, None)
        assert "cat" not in found["labels"]
        assert ask(f"{address}/labels")[0] == 200


class Flat(nn.Module):
    """A network without a map of places."""

    num_features = 3

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean(dim=(2, 3))


def test_a_network_without_a_map_says_so() -> None:
    with serving(Tagger(create_model(Flat(), SPACE, image_size=32))) as address:
        assert ask(f"{address}/predict", picture())[0] == 200
        status, found, _ = ask(f"{address}/explain?label=cat", picture())
        assert (status, found["error"][:34]) == (422, "this network has no map to show: n")


class Patches(VisionTransformer):
    """A small vision transformer."""

    num_features = 16

    def __init__(self) -> None:
        super().__init__(image_size=32, patch_size=8, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=32)
        self.heads = nn.Identity()


def test_a_vision_transformer_shows_its_attention() -> None:
    with serving(Tagger(create_model(Patches(), SPACE, image_size=32))) as address:
        said = [ask(f"{address}/explain?label={name}", picture())[1] for name in ("cat", "small")]
    assert [each["method"] for each in said] == ["attention_rollout"] * 2
    assert said[0]["map"] == said[1]["map"]


# What is refused.


def test_every_answer_has_the_headers_of_safety(address: str) -> None:
    for path in ("/", "/page.js", "/page.css", "/health", "/nothing", "/predict"):
        _, _, headers = ask(address + path)
        policy = headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "*" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["cache-control"] == "no-store"
        assert not any(name.lower().startswith("access-control") for name in headers)
        assert "server" not in headers
    assert ask(address, Host="evil.example")[2]["x-content-type-options"] == "nosniff"


def bomb(width: int, height: int) -> bytes:
    """Return a PNG of few bytes that says it has many pixels."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    body = zlib.compress(b"\0" * 1_000_000, 9)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"", 400, "empty"),
        (b"hello", 415, "not an image"),
        (b"<svg onload='alert(1)'></svg>", 415, "HTML or XML"),
        (b"%PDF-1.7 " + bytes(100), 415, "PDF"),
        (picture()[:200], 422, "truncated"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), 422, "damaged"),
        (bomb(5_000, 5_000), 413, "max_pixels"),
        (bomb(30_000, 30_000), 413, "too large"),
        (bomb(2**31 - 1, 2**31 - 1), 413, "too large"),
        (bytes(100_001), 413, "100,000 bytes"),
    ],
)
def test_what_is_no_fit_image_is_refused(address: str, body: bytes, status: int, words: str) -> None:
    found = ask(f"{address}/predict", body)
    assert (found[0], list(found[1])) == (status, ["error"])
    assert words in found[1]["error"]
    assert ask(f"{address}/predict", picture())[0] == 200


@pytest.mark.parametrize(
    ("path", "method", "headers", "status"),
    [
        ("/nothing", "GET", {}, 404),
        ("/predict", "GET", {}, 405),
        ("/predict", "PUT", {}, 405),
        ("/", "POST", {}, 405),
        ("/docs", "GET", {}, 404),
        ("/openapi.json", "GET", {}, 404),
        ("/../pyproject.toml", "GET", {}, 404),
        ("/predict/", "POST", {}, 404),
        ("/predict", "POST", {"Content_Type": "multipart/form-data; boundary=a"}, 415),
        ("/predict", "POST", {"Content_Type": "text/plain"}, 415),
        ("/predict", "POST", {"Content_Length": "many"}, 400),
        ("/explain", "POST", {}, 400),
        ("/explain?label=cat&label=cat", "POST", {}, 400),
        ("/explain?label=cot", "POST", {}, 422),
        ("/predict", "POST", {"Origin": "http://evil.example"}, 403),
        ("/predict", "POST", {"Origin": "null"}, 403),
        ("/predict", "OPTIONS", {"Origin": "http://evil.example"}, 403),
    ],
)
def test_what_is_not_asked_for_rightly_is_refused(
    address: str, path: str, method: str, headers: Mapping[str, str], status: int
) -> None:
    found = ask(address + path, picture() if method in ("POST", "PUT") else None, method=method, **headers)
    assert found[0] == status
    if "Content_Length" not in headers:  # which the parser of requests answers
        assert list(found[1]) == ["error"]


def test_the_nearest_label_is_named(address: str) -> None:
    assert "did you mean 'cat'" in ask(f"{address}/explain?label=cot", picture())[1]["error"]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1", 200),
        ("LOCALHOST:8000", 200),
        ("[::1]:8000", 200),
        ("labels.example:80", 200),
        ("evil.example", 403),
        ("localhost.evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("localhost:evil", 403),
        ("evil.example:80@localhost", 403),
        ("", 403),
    ],
)
def test_only_known_names_are_answered(address: str, host: str, status: int) -> None:
    """A page of another name, which was made to lead to this machine, gets nothing (DNS rebinding)."""
    assert ask(f"{address}/health", Host=host)[0] == status


def test_two_host_headers_are_refused_and_none(address: str) -> None:
    assert talk(address, b"GET /health HTTP/1.0\r\n\r\n").startswith(b"HTTP/1.1 403 ")
    said = talk(address, b"GET /health HTTP/1.1\r\nHost: localhost\r\nHost: evil.example\r\n\r\n")
    assert re.match(rb"HTTP/1.1 40[03] ", said)


def test_a_long_body_is_refused_before_it_comes(address: str) -> None:
    head = "POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Type: image/png\r\n"
    begun = time.monotonic()
    said = talk(address, f"{head}Content-Length: 1000000000000\r\n\r\n".encode())
    assert said.startswith(b"HTTP/1.1 413 ")
    assert time.monotonic() - begun < 1
    # Without a length: what comes is counted.
    chunks = b"".join(b"2000\r\n" + bytes(0x2000) + b"\r\n" for _ in range(14))
    assert talk(address, f"{head}Transfer-Encoding: chunked\r\n\r\n".encode() + chunks).startswith(b"HTTP/1.1 413 ")


def test_a_body_that_does_not_come_is_not_waited_for(address: str) -> None:
    begun = time.monotonic()
    said = talk(address, b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
    assert said.startswith(b"HTTP/1.1 408 ")
    assert 1 < time.monotonic() - begun < 6


def test_a_head_that_does_not_end_is_not_waited_for(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = talk(address, b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"a" * 100_000)
    assert said.startswith(b"HTTP/1.1 400 ")
    monkeypatch.setattr("mlabel.report.serving._HEAD_SECONDS", 0.3)
    for sent in (b"", b"GET / HTTP/1.1\r\nHost: local"):
        begun = time.monotonic()
        assert talk(address, sent) == b""
        assert 0.2 < time.monotonic() - begun < 3
    # A request that was answered leaves no clock that would cut the next one short.
    monkeypatch.setattr("mlabel.report.serving._HEAD_SECONDS", 10)
    assert ask(f"{address}/health")[0] == 200


class Slow(Flat):
    """A network that takes its time."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.most = 0
        self.go = threading.Event()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.inside += 1
        self.most = max(self.most, self.inside)
        self.go.wait(10)
        self.inside -= 1
        return super().forward(images)


def test_a_busy_model_is_not_asked_by_two_and_not_waited_for_by_many() -> None:
    slow = Slow()
    limits = replace(LIMITS, timeout=0.5)
    with serving(Tagger(create_model(slow, SPACE, image_size=32)), limits) as address, ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, f"{address}/predict", picture()) for _ in range(4)]
        refused = [each.result() for each in islice(as_completed(asked), 3)]
        # One more than may wait, and two that waited for too long; the fourth is still at it.
        words = sorted("waiting already" in found["error"] for _, found, _ in refused)
        assert [status for status, _, _ in refused] == [503] * 3
        assert words == [False, False, True]
        assert refused[0][2]["retry-after"] == "1"
        assert ask(f"{address}/health")[0] == 200  # which needs no model
        slow.go.set()
        assert sorted(each.result()[0] for each in asked) == [200, 503, 503, 503]
        assert ask(f"{address}/predict", picture())[0] == 200
    assert slow.most == 1


class Broken(Flat):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("secret of the house")


def test_a_fault_is_for_the_log_and_not_for_who_asks(caplog: pytest.LogCaptureFixture) -> None:
    with serving(Tagger(create_model(Broken(), SPACE, image_size=32))) as address:
        status, found, _ = ask(f"{address}/predict", picture())
    assert (status, list(found)) == (500, ["error"])
    assert "secret" not in found["error"]
    assert "secret of the house" in caplog.text


def test_somebody_who_leaves_leaves_no_trace(address: str, caplog: pytest.LogCaptureFixture) -> None:
    host, port = address.removeprefix("http://").split(":")
    for _ in range(LIMITS.max_waiting + 1):
        with socket.create_connection((host, int(port))) as connection:
            connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Length: 1000\r\n\r\nabc")
            time.sleep(0.05)
    time.sleep(0.1)
    assert ask(f"{address}/predict", picture())[0] == 200
    assert caplog.text == ""


@pytest.mark.parametrize("name", ["max_bytes", "max_pixels", "max_waiting", "timeout"])
def test_limits_must_be_something(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be"):
        ServeLimits(**{name: 0})


def test_pixels_that_do_not_fit_are_refused(tagger: Tagger) -> None:
    with pytest.raises(ValueError, match=r"uint8 \(N, 3, 32, 32\); got \(1, 3, 32, 31\)"):
        tagger.predict_pixels(torch.zeros((1, 3, 32, 31), dtype=torch.uint8))


@pytest.mark.parametrize("module", ["fastapi", "uvicorn"])
def test_a_missing_extra_is_named(tagger: Tagger, module: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ImportError, match=rf"{module} is not installed; .*mlabel\[serve\]"):
        serve(tagger, port=0)


# The command.


@pytest.fixture
def not_run(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The settings that the server would have run with."""
    held: list[Any] = []

    def run(self: Any, sockets: Any) -> None:
        held.extend([self.config, sockets[0].getsockname()])

    monkeypatch.setattr(uvicorn.Server, "run", run)
    return held


def test_the_command_listens_at_this_machine_alone(
    not_run: list[Any], tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    Tagger(create_model("small_cnn", SPACE, image_size=32)).save(tmp_path / "bundle")
    assert main(["serve", "--bundle", str(tmp_path / "bundle"), "--port", "0"]) == 0
    config, where = not_run
    assert where[0] == "127.0.0.1"
    assert capsys.readouterr().out == f"http://127.0.0.1:{where[1]}/\n"
    assert (config.proxy_headers, config.access_log, config.ws) == (False, False, "none")
    assert caplog.text == ""


def test_another_address_is_warned_of(not_run: list[Any], tagger: Tagger, caplog: pytest.LogCaptureFixture) -> None:
    serve(tagger, host="0.0.0.0", port=0, say=lambda _: None)
    assert "no password" in caplog.text
    assert caplog.records[0].levelno == logging.WARNING


def test_a_taken_port_is_told(tagger: Tagger) -> None:
    with _listen("127.0.0.1", 0) as taken, pytest.raises(OSError, match="choose another --host or --port"):
        serve(tagger, port=taken.getsockname()[1])
    with pytest.raises(ValueError, match="port must be between 0 and 65535"):
        serve(tagger, port=65_536)


# The page, in a browser.


@pytest.fixture
def chosen(visit: Callable[..., Any], address: str, tmp_path: Path) -> Any:
    """The page with an image dropped on it."""
    opened = visit(f"{address}/")
    opened.page.wait_for_selector("body[data-ready]")
    drop(opened.page, picture(), "a.png")
    opened.page.wait_for_selector(".row")
    return opened


def drop(page: Any, content: bytes, name: str) -> None:
    """Drop a file on the page, as a person does."""
    page.dispatch_event("#drop", "drop", {"dataTransfer": carried(page, content, name)})


def carried(page: Any, content: bytes, name: str) -> Any:
    """Return what carries a file that is dropped or pasted."""
    return page.evaluate_handle(
        """([text, name]) => {
            const bytes = Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], name, {type: "image/png"}));
            return transfer;
        }""",
        [base64.b64encode(content).decode(), name],
    )


def test_an_image_is_dropped_and_its_labels_and_maps_are_seen(chosen: Any, address: str) -> None:
    page = chosen.page
    assert page.title() == "Cats"
    said = ask(f"{address}/predict", picture())[1]
    assert page.locator("#groups h2").all_inner_texts() == ["tags", "size (one of)"]
    rows = {each.split("\n")[-2]: each for each in page.locator(".row").all_inner_texts()}
    assert set(rows) == set(SPACE.names)
    for name, text in rows.items():
        assert text.endswith(f"\n{said['scores'][name]:.2f}")
        assert text.startswith("✓") == (name in said["labels"])
    assert page.locator(".mark").count() == 3  # sizes have no threshold
    page.get_by_role("button", name="cat: score").click()
    page.wait_for_selector("#map:not([hidden])")
    boxes = [page.locator(which).bounding_box() for which in ("#image", "#map")]
    assert boxes[0] == pytest.approx(boxes[1], abs=1)
    assert "cat" in page.locator("#caption").inner_text()
    pressed = page.locator(".row[aria-pressed=true] .name")
    assert pressed.all_inner_texts() == ["cat"]
    page.get_by_role("button", name="large: score").click()
    page.locator("#caption", has_text=re.compile("Lit.*large|large: nothing")).wait_for()
    assert pressed.all_inner_texts() == ["large"]
    page.get_by_role("button", name="cat: score").click()
    page.wait_for_selector("#map:not([hidden])")
    page.get_by_role("button", name="Show the image without a map").click()
    assert not page.locator("#map").is_visible()
    assert chosen.errors == []
    assert all(each.startswith((address, "blob:")) for each in chosen.requests)


def test_the_page_is_used_by_keyboard_alone(visit: Callable[..., Any], address: str, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(picture())
    opened = visit(f"{address}/", width=390)
    page = opened.page
    page.wait_for_selector("body[data-ready]")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.id") == "file"
    page.set_input_files("#file", tmp_path / "a.png")  # what the picker, which is the system's, does
    page.wait_for_selector(".row")
    page.keyboard.press("Tab")
    assert "row" in page.evaluate("document.activeElement.className")
    page.keyboard.press("Enter")
    page.locator("#caption", has_text=re.compile("Lit|nothing")).wait_for()
    assert page.evaluate("document.activeElement.getAttribute('aria-pressed')") == "true"
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert opened.errors == []


def test_one_of_many_labels_is_found(visit: Callable[..., Any]) -> None:
    space = LabelSpace([Group("tags", [f"tag_{number}" for number in range(500)])])
    with serving(Tagger(create_model("small_cnn", space, image_size=32), 0.99)) as address:
        opened = visit(f"{address}/")
        page = opened.page
        page.wait_for_selector("body[data-ready]")
        drop(page, picture(), "a.png")
        page.wait_for_selector(".row")
        assert page.locator(".row").count() == 40
        page.get_by_role("button", name="Show all 500").click()
        assert page.locator(".row").count() == 500
        page.fill("#query", "TAG_49")
        assert page.locator(".row").count() == 11
        page.locator(".row").last.click()
        page.locator("#caption", has_text=re.compile("Lit|nothing")).wait_for()
        picked = page.locator(".row[aria-pressed=true]").inner_text()
        page.fill("#query", "tag_4")  # what is picked stays so
        assert page.locator(".row[aria-pressed=true]").inner_text() == picked
        page.fill("#query", "dog")
        assert "No label has this" in page.locator("#groups").inner_text()
        assert opened.errors == []


def test_an_image_is_pasted(visit: Callable[..., Any], address: str) -> None:
    opened = visit(f"{address}/")
    opened.page.wait_for_selector("body[data-ready]")
    paste = "(held) => document.dispatchEvent(new ClipboardEvent('paste', {clipboardData: held}))"
    opened.page.evaluate(paste, carried(opened.page, picture(), "a.png"))
    opened.page.wait_for_selector(".row")
    assert opened.errors == []


def test_what_is_refused_is_said_on_the_page(visit: Callable[..., Any], address: str) -> None:
    opened = visit(f"{address}/")
    page = opened.page
    page.wait_for_selector("body[data-ready]")
    drop(page, b"no image", "a.png")
    page.locator("#error", has_text="image").wait_for()
    assert "not an image" in page.locator("#error").inner_text()
    drop(page, bytes(LIMITS.max_bytes + 1), "b.png")
    assert "at most 100,000" in page.locator("#error").inner_text()
    drop(page, picture(), "c.png")
    page.wait_for_selector(".row")
    assert page.locator("#error").inner_text() == ""
    assert [each for each in opened.errors if "415" not in each] == []
