"""How the plugins that people have installed are switched on in an inner run, by their entry points, as pytest loads them for users."""

from __future__ import annotations

from collections.abc import Callable

Need = Callable[[str, str], None]
ASYNCIO = ("-p", "asyncio", "-o", "asyncio_default_fixture_loop_scope=function")
COV = ("-p", "pytest_cov")
RERUNS = ("-p", "rerunfailures")
TIMEOUT = ("-p", "timeout")
XDIST = ("-p", "xdist")

FLAKY = """
    import os, pathlib, time, pytest

    def tries(name):
        path = pathlib.Path(__file__).with_name(f"tries of {name}")
        with path.open("a") as file:
            file.write(f"{os.getpid()}\\n")
        return len(path.read_text().split())
"""
