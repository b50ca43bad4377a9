"""Probes without RL: frozen rollouts replayed against a direction, and directions as classifiers (EXPERIMENT §4).

These are tools of analysis. They read strict verdicts, and nothing that trains may import them (tests/test_house.py).
"""
