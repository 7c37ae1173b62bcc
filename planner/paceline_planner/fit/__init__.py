"""Fits what the repository keeps of public measurements: a few constants, each with its source and its error."""
