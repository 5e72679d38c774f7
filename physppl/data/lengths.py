"""Lengths to which data are padded, so that growing data rarely recompile."""


def bucket(length: int) -> int:
    """The smallest power of two that is at least `length`: data of one bucket share compiled programs."""
    return max(1, 1 << (length - 1).bit_length())


def fine_bucket(length: int) -> int:
    """The smallest of 8, 10, 12, 14, 16, 20, 24, ... that is at least `length`.

    Recordings of similar lengths share compiled programs, and at most a quarter is padding.
    """
    power = max(8, 1 << (max(length, 2) - 1).bit_length() - 1)
    return next(n for n in (power, *(power * k // 4 for k in (5, 6, 7, 8))) if n >= length)
