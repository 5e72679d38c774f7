"""Data that come twice."""

import numpy as np

from physppl.data.transitions import Transitions


def repeats(known, data) -> int:
    """Transitions, or recordings, of `data` that `known` holds too."""
    if data is None or type(known) is not type(data):
        return 0
    held = set(parts(known))
    return sum(part in held for part in parts(data))


def parts(data) -> list[bytes]:
    """Each transition, or each recording's readings and inputs, at single precision."""
    plain = lambda x: np.asarray(x, np.float32)  # noqa: E731
    if (data.next_states if isinstance(data, Transitions) else data.observations) is None:
        return []
    if isinstance(data, Transitions):
        rows = np.concatenate([plain(data.states), plain(data.actions), plain(data.next_states)], axis=-1)
        return [row.tobytes() for row in rows[np.asarray(data.valid)]]
    rows = data.rows()
    return [
        plain(y)[valid].tobytes() + plain(u)[valid].tobytes()
        for y, u, valid in zip(rows.observations, rows.actions, np.asarray(rows.valid), strict=True)
        if valid.any()
    ]
