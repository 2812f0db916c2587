"""Trains image classifiers at hardware speed on TPU and GPU from one config file."""

__version__ = "0.1.0"
