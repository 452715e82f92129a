"""What is said of exceptions that plugins raise."""

from __future__ import annotations

import asyncio

import pytest

from chronetix.nodeworker.api.errors import named, said

DONE = "; a node that is done says so by ctx.finish()"


class Mute(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no")


@pytest.mark.parametrize(
    ("reason", "text", "whole"),
    [
        (ValueError("no"), "no", "ValueError: no"),
        (ValueError(), "", "ValueError"),
        (SystemExit(0), f"the plugin called sys.exit(0){DONE}", f"SystemExit: the plugin called sys.exit(0){DONE}"),
        (SystemExit("bye"), f"the plugin called sys.exit('bye'){DONE}", None),
        (asyncio.CancelledError(), f"the plugin let a cancellation out of its callback{DONE}", None),
        (asyncio.CancelledError("why"), "why", "CancelledError: why"),
        (Mute(), "(its text cannot be shown: str() raised RuntimeError)", None),
    ],
)
def test_an_exception_is_told_by_its_class_and_its_text(reason: BaseException, text: str, whole: str | None) -> None:
    assert said(reason) == text
    assert named(reason) == (whole or f"{type(reason).__name__}: {text}")
