"""Forward processes: the seam, and a folder for each process."""
