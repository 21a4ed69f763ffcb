"""Sampling: the timestep spec, predictors, guidance, the options, the loop."""
