"""Attacks whose success, or whose control, changes the machine itself: carried out in a virtual machine only."""
