"""Tracing: which requests are traced, what is recorded of them, and where it is written."""
