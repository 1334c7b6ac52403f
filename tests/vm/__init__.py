"""Real kernels for tests: each row boots a Debian kernel in qemu and sees every limit act there. See README.md.

Owns: everything between a row's name and its cells. Refuses: to touch the machine it runs on: kernels are unpacked,
never installed, roots are shared read-only, and what a guest writes is gone with it.
"""
