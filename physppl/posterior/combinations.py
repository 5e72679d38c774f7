"""Combinations of parameters in the order of what data tell about them."""

import numpy as np

SAME = 1e-6  # eigenvalues as close as this share one space, in which any basis is right


def compare(before: np.ndarray, after: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Generalised eigenvalues (P,) of `after` against `before`, ascending, and their combinations (P, P).

    A combination is a row a of unit length in units of the sds before: a' (z / sd) has the eigenvalue as its ratio of
    variances. Where eigenvalues coincide, a basis is chosen that is as close to single parameters as can be.
    """
    lower, sd = np.linalg.cholesky(before), np.sqrt(np.diagonal(before))
    white = np.linalg.solve(lower, np.linalg.solve(lower, after).T)
    eigenvalues, vectors = np.linalg.eigh(0.5 * (white + white.T))
    start = 0
    for stop in range(1, len(eigenvalues) + 1):
        if stop == len(eigenvalues) or eigenvalues[stop] - eigenvalues[start] > SAME:
            vectors[:, start:stop] = _plain(vectors[:, start:stop])
            start = stop
    rows = np.linalg.solve(lower.T, vectors).T * sd
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    largest = rows[np.arange(len(rows)), np.argmax(np.abs(rows).round(6), axis=1)]
    return eigenvalues, rows * np.sign(largest)[:, None]


def _plain(basis: np.ndarray) -> np.ndarray:
    """Another orthonormal basis (P, K) of the same space: pivoted Cholesky vectors of its projector."""
    projector, vectors = basis @ basis.T, []
    for _ in range(basis.shape[1]):
        pivot = np.argmax(np.diagonal(projector))
        vector = projector[:, pivot] / np.sqrt(projector[pivot, pivot])
        projector = projector - np.outer(vector, vector)
        vectors.append(vector)
    return np.stack(vectors, axis=1)
