"""What the server costs, next to bare yardsticks in the same run: `python -m benchmarks`."""
