"""Evaluation: metrics, judges, estimates with intervals, the run, the report."""
