"""Running on GPUs."""
