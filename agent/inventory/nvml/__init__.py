"""NVML, in a process of its own: a hung driver call can be killed, and its handles with it."""
