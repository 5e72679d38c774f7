"""Foundations without any notion of dynamics: errors, units, keys, Gaussian algebra, files, figures."""
