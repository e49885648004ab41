"""`microkernel export`: from a Python module to a model file that serves with no configuration."""
