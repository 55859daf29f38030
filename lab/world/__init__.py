"""Synthetic clips whose questions have exact answers and known evidence, and the training of the embedded models."""
