"""Hyper-parameter search over federations with Ray Tune."""
