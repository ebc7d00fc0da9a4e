"""The instruments' docstring examples (``>>>``) do what they say."""

import doctest
import importlib
import pkgutil

import pytest

from mmrec_helpers import profiling

MODULES = [m.name for m in pkgutil.walk_packages(profiling.__path__, "mmrec_helpers.profiling.") if not m.ispkg]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    assert doctest.testmod(importlib.import_module(name)).failed == 0


def test_there_are_examples():
    found = doctest.DocTestFinder().find(profiling.measure_memory)
    assert found[0].examples
