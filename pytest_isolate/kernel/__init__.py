"""The only code that talks to the kernel or to the C library."""
