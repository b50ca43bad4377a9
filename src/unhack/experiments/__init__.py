"""Experiments: one TOML file of arms, seeds and hypotheses (`plan`), frozen at its first run, run by an engine."""
