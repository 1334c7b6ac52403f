"""The conformance suite of backends: `pytest --pyargs pytest_isolate.testing`.

Every backend that is found, built in or offered by a plugin, is held to what it claims: each capability has a positive
control, a test that it is enforced, and one that nothing is left behind. Prints the table of backends and capabilities.
`require` is for a plugin's own tests: a skip that names the feature, and that ISOLATE_REQUIRE turns into a failure.
"""

from pytest_isolate.testing.requirement import require, required_features

__all__ = ["require", "required_features"]
