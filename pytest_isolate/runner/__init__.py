"""The only floor that imports pytest: options, fixtures, the protocol, the report."""
