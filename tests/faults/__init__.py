"""Faults, injected and counted: `make faults` prints the scoreboard that stands in docs/reliability.md."""
