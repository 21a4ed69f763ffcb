"""Training: times, objective, where weights start, their average, learning rate, distribution, what is kept."""
