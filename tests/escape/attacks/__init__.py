"""One attack a file: each says what it tries, where it must work (its control), and where it must not."""
