"""Every limit of a program under sandbox.run, hit for real."""
