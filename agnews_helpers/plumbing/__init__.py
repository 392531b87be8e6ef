"""What a reader may skip: Hub, safe files, offline model, errors."""
