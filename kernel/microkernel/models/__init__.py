"""The models being served."""
