"""Where blocking model code runs."""
