"""AOTInductor as a variant of a TorchScript module: exported, compiled, compared, kept and served
as machine code."""
