"""Benchmarks: one question a file. ``scripts/bench <name>`` runs ``benchmarks/<name>.py``."""
