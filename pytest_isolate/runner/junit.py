"""What a test adds to the junit file by pytest's fixtures record_xml_attribute and record_testsuite_property.

Owns: the way from the copy of pytest's LogXML in the test's process to the one in the parent's, which writes the file.
Refuses: record_property, which travels in the report itself. Under xdist a worker has no LogXML, and nothing to send.
"""

from __future__ import annotations

from typing import Any

import pytest

from pytest_isolate import wire
from pytest_isolate.runner import compat

_MAX_PAIRS = 1000


class Additions:
    """In a test's process: what its copy of the LogXML has that it had not when the process began."""

    def __init__(self, config: pytest.Config) -> None:
        self._xml = compat.junit_log(config)
        self._had = len(self._xml.global_properties) if self._xml is not None else 0

    def take(self, item: pytest.Item) -> dict[str, list[list[str]]] | None:
        """What ``item`` added since the last call; None when that is nothing."""
        if self._xml is None:
            return None
        properties, self._had = self._xml.global_properties[self._had :], len(self._xml.global_properties)
        node = self._xml.node_reporters.get((getattr(item, "id", item.nodeid), None))
        attributes = dict(node.attrs) if node is not None else {}
        if not properties and not attributes:
            return None
        return {"properties": _texts(properties), "attributes": _texts(attributes.items())}


def read(data: Any) -> dict[str, list[list[str]]]:
    """In the parent: what take() gave, out of a frame.

    Raises:
        WireError: it is no list of names and values.
    """
    match data:
        case {"properties": list(properties), "attributes": list(attributes)} if _are_pairs(properties, attributes):
            return {"properties": properties, "attributes": attributes}
    raise wire.WireError("additions to the junit file that are none")


def add(item: pytest.Item, added: dict[str, list[list[str]]]) -> None:
    """In the parent: add them to the LogXML that is written."""
    xml = compat.junit_log(item.config)
    if xml is None:
        return
    for name, value in added["properties"]:
        xml.add_global_property(name, value)
    if added["attributes"]:
        node = xml.node_reporter(getattr(item, "id", item.nodeid))
        for name, value in added["attributes"]:
            node.add_attribute(name, value)


def _texts(pairs: Any) -> list[list[str]]:
    return [[str(name), str(value)] for name, value in list(pairs)[:_MAX_PAIRS]]


def _are_pairs(*lists: list[Any]) -> bool:
    return all(
        len(pairs) <= _MAX_PAIRS
        and all(type(pair) is list and [type(part) for part in pair] == [str, str] for pair in pairs)
        for pairs in lists
    )
