"""Every constructor shows the arguments that it takes, and the help shows the same."""

from __future__ import annotations

import inspect

import pytest
from jsonargparse import ArgumentParser
from methods import PIECES

import datamodules
from datamodules import ImageDataModule

KINDS = [*PIECES.values()]
KINDS += [
    kind
    for kind in vars(datamodules).values()
    if inspect.isclass(kind) and issubclass(kind, ImageDataModule) and not inspect.isabstract(kind)
]


@pytest.mark.parametrize("kind", KINDS)
def test_the_signature_is_what_the_parser_finds_in_the_code(kind: type) -> None:
    """jsonargparse reads from the source which arguments `**options` passes on, and where."""
    parser = ArgumentParser(exit_on_error=False)
    added = parser.add_class_arguments(kind, fail_untyped=False)
    taken = {name.partition(".")[0] for name in added}
    shown = inspect.signature(kind).parameters
    assert set(shown) == taken
    assert all(each.kind is not inspect.Parameter.VAR_KEYWORD for each in shown.values())


def test_the_arguments_that_all_methods_share_are_shown() -> None:
    for kind in PIECES.values():
        assert {"lr", "optimizer", "lr_scheduler", "decay_all"} <= set(
            inspect.signature(kind).parameters
        )
