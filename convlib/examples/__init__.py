"""Programs on real input: python -m convlib.examples.NAME."""
