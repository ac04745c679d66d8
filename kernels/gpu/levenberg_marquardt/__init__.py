"""Least squares by Levenberg and Marquardt."""
