"""What is done with a trained model: compositions of timestep specs over modalities by name."""
