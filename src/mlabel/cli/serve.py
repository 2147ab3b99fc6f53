"""The command that serves a page to try a model on."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from mlabel.cli._config import Listing
from mlabel.cli._options import add_bundle, add_command, add_device
from mlabel.inference import Tagger
from mlabel.report import ServeLimits, serve
from mlabel.report.serving import HOST, PORT


def add_serve(commands: Any) -> None:
    """Add `mlabel serve`."""
    parser = add_command(commands, "serve", _serve, example="mlabel serve --bundle runs/m/bundle --port 8000")
    add_bundle(parser, ", which labels the images", required=True)
    parser.add_argument("--host", default=HOST, help="address to listen at; any but this machine's own lets others in")
    parser.add_argument("--port", type=int, default=PORT, help="port to listen at; 0: any that is free")
    parser.add_argument(
        "--allow-host",
        type=Listing(str),
        default=(),
        metavar="NAME[,NAME]",
        help="names by which browsers may call the server, besides localhost and addresses",
    )
    parser.add_argument("--max-bytes", type=int, default=ServeLimits.max_bytes, help="of an image file")
    parser.add_argument("--max-pixels", type=int, default=ServeLimits.max_pixels, help="of an image")
    parser.add_argument("--timeout", type=float, default=ServeLimits.timeout, help="seconds an image may take or wait")
    add_device(parser)


def _serve(options: argparse.Namespace) -> None:
    """Serve a page to try a bundle on, and a JSON endpoint, for this machine alone."""
    serve(
        Tagger.load(options.bundle, device=options.device),
        host=options.host,
        port=options.port,
        allow_hosts=options.allow_host,
        title=f"Labels by {Path(options.bundle).resolve().parent.name}",
        limits=ServeLimits(max_bytes=options.max_bytes, max_pixels=options.max_pixels, timeout=options.timeout),
        say=_say,
    )


def _say(address: str) -> None:
    print(address, flush=True)
    print("open it in a browser; Ctrl-C ends it", file=sys.stderr)
