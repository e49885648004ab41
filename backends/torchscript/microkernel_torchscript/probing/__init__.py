"""What can be told of a model by trying it."""
