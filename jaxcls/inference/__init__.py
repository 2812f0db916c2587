"""Prediction, evaluation reports and export with a trained or pretrained network."""
