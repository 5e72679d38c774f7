"""A program bound to spaces and a step, with one likelihood per kind of data."""

from physppl.dynamics.dynamics import Dynamics

__all__ = [
    "Dynamics",
]
