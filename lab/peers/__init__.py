"""Published denoisers, each run by its own code in a virtual environment of its own."""
