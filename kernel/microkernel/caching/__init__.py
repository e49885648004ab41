"""The response cache: what requests and responses are to it."""
