"""`.pt2` files: programs of `torch.export` and packages of AOTInductor."""
