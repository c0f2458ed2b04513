"""The part that everything may import: the data contract, settings, random numbers and the one training loop."""
