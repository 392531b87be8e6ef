"""The notebooks, run in the size and with the data that their readers have."""
