"""Runs tests, and programs that tests start, in Linux sandboxes of their own."""
