"""What a reader may skip: the Hub, safe files, the offline model, a CPU's own kernels, errors, signals."""
