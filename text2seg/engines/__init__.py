"""Engines that run a labelling job's batches elsewhere than in this process. The only room of Ray."""
