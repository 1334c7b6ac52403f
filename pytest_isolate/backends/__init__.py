"""The built-in backends: what starts a process under a plan."""
