"""Gaussian noise: the process, its schedules, its solvers."""
