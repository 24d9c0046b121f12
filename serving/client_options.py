"""The options of the client's commands."""

from __future__ import annotations

import argparse
from pathlib import Path

from serving.client_channel import ADDRESS, TIMEOUT

STATUSES = (
    "Exit status: 0 done; 1 the server failed, refused or was not there; 2 a file or an option "
    "is at fault, the others were done; 130 interrupted."
)


def add_connection(to: argparse.ArgumentParser) -> None:
    """Where the server is, and how to go there."""
    to.add_argument("--address", default=ADDRESS, help="host:port [%(default)s]")
    text = "go by TLS, trusting the authorities that grpcio brings"
    to.add_argument("--tls", action="store_true", help=text)
    text = "go by TLS, to a server whose certificate one of these has signed, in PEM"
    to.add_argument("--tls-ca", type=Path, metavar="FILE", help=text)
    text = "our own, in PEM, for a server that asks for it"
    to.add_argument("--tls-certificate", type=Path, metavar="FILE", help=text)
    to.add_argument("--tls-key", type=Path, metavar="FILE", help="its key")
    text = "send what is in it as a bearer token, by TLS or within this machine only"
    to.add_argument("--token-file", type=Path, metavar="FILE", help=text)
    text = "seconds for an answer [%(default)g]"
    to.add_argument("--timeout", type=_positive, default=TIMEOUT, metavar="SECONDS", help=text)


def add_classify(to: argparse.ArgumentParser) -> None:
    """Which images, and what to print."""
    text = "PNG or JPEG files, folders of them, or - for one on standard input"
    to.add_argument("files", nargs="+", metavar="FILE", help=text)
    to.add_argument("--model", required=True, help="name of the model")
    to.add_argument("--version", default="", help="of the model [the newest]")
    to.add_argument(
        "--ids", action="store_true", help="print each prediction's id as well, for `feedback`"
    )
    to.add_argument("--json", action="store_true", help="print JSON, an object on each line")
    text = "requests in flight at the same time [%(default)s]"
    to.add_argument("--concurrency", type=_count, default=4, metavar="N", help=text)


def add_watch(to: argparse.ArgumentParser) -> None:
    """How often, and how long."""
    text = "seconds that each line is about [%(default)g]"
    to.add_argument("--interval", type=_positive, default=2.0, metavar="SECONDS", help=text)
    text = "look so many times [until interrupted]"
    to.add_argument("--count", type=_count, metavar="N", help=text)


def add_bench(to: argparse.ArgumentParser) -> None:
    """What to send, and in which manner."""
    text = "images to send, and folders of them [random ones]"
    to.add_argument("files", nargs="*", metavar="FILE", help=text)
    to.add_argument("--model", required=True, help="name of the model")
    to.add_argument("--version", default="", help="of the model [the newest]")
    to.add_argument("--seconds", type=_positive, default=10.0, help="how long [%(default)g]")
    to.add_argument(
        "--rows", type=_count, default=1, metavar="N", help="images in each request [1]"
    )
    text = "connections that requests take turns on [%(default)s]"
    to.add_argument("--connections", type=_count, default=1, metavar="N", help=text)
    loop = to.add_mutually_exclusive_group()
    text = "closed loop: callers that ask again when they are answered [%(default)s]"
    loop.add_argument("--concurrency", type=_count, default=8, metavar="N", help=text)
    text = "open loop: requests per second, at random times, whatever the answers do"
    loop.add_argument("--rate", type=_positive, metavar="R", help=text)


def _positive(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text!r} is no number above 0")
    return value


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 1 on")
    return int(text)
