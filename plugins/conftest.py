"""A plugin need not be installed for its tests: the pytest runs that they start find it, too."""

from __future__ import annotations

import os

import pytest


@pytest.fixture(autouse=True)
def _importable(request, monkeypatch):
    found = [str(request.path.parents[1]), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, found)))
