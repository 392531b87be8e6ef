"""What a reader may skip: the Hub, storage, tables, the offline model, CPU kernels."""
