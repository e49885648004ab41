"""Python modules of the PyTorch 2 runtime."""
