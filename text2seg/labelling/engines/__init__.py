"""Engines run the batches of a labelling job: in this process, or on a Ray cluster."""
