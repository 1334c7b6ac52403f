"""Runs public projects' test suites plainly and with extra arguments, and compares the outcome of every test."""
