"""What runs in the guest to prove the row itself: standard library and raw kernel files only, nothing of ours.

Owns: one check per limit, each with its positive control, told as one JSON line.
Refuses: to import pytest_isolate: when a row fails, this says whether the kernel or the product is to blame.
"""
