"""Ensembles as graphs of tensors: whether they fit their models, and what runs when. Pure."""
