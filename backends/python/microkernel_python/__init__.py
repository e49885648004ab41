"""The Python backend: serves Triton's `model.py` files unchanged.

Nothing is imported here, because a worker imports this package under the model's own interpreter;
the hooks are in `microkernel_python.plugin`.
"""
