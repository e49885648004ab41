"""The model configuration: reading, checking, completing and writing it."""
