"""The metrics page: Triton's families, our histograms, the host's gauges and families of models."""
