"""The tests of pytest-isolate, and the tools they run with."""
