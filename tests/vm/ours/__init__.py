"""What runs in the guest through the product: its limits hit by real processes, its header, its own tests.

Owns: one check per limit that a user can ask for, and how the product told what it did.
Refuses: raw kernel files; that the kernel can do it is what tests/vm/inside shows.
"""
