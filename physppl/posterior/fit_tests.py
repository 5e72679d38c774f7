"""Tests of fit: innovations against their null, independent standard normal (L. Ljung, System Identification, ch. 16).

Each kind of test is corrected for the number of its comparisons (Bonferroni), so that a right model fails one of them
with a probability of at most FALSE_ALARM.
"""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from jaxtyping import Float
from scipy import stats

from physppl.posterior.innovations import Innovations
from physppl.posterior.verdict import DOUBTFUL, Figures, Reason

FALSE_ALARM = 1e-3  # of each kind of test; seven kinds together fail one right fit in 150
FEWEST = 8  # outcomes of a coordinate from which it is tested
LAGS = 20  # of the autocorrelation and of the cross-correlation with the inputs
PORTMANTEAUS = (4, 20)  # lags of which Ljung and Box's statistic is taken
DECAYS = (0.7, 0.95)  # from lag to lag, of the weights of sums of correlations
SHAPE_LAGS = (0, 1, 2, 4)  # rows between a shape and the errors that it moves
STRETCH = 16  # outcomes in which a surprise is looked for
EARLY = 4  # first readings of a recording, at which the first state shows
CLIP = 4.0  # sds at which errors are clipped where single ones must not decide
MATERIAL = 0.05  # correlation below which dependence changes an sd by less than a twentieth
FLEXIBLE = 5  # outcomes for each parameter below which a fit makes its own errors dependent


def judge(innovations: Innovations) -> tuple[list[Reason], Figures]:
    """Reasons against a fit by its innovations, one for each kind of misfit, and figures.

    - size: their sum of squares, where a noise is held too small or too large;
    - whiteness: their autocorrelation, at the first lag, by the portmanteau statistic of G. Ljung and G. Box
      (Biometrika 65, 1978), and in sums that decay over the lags as a slow disturbance does, where a motion is missing;
      with the factor by which parameters' sds are then too small;
    - inputs: their cross-correlation with past inputs, where a delay or a mode is missing. Later inputs may depend on
      the errors, by feedback, and are left out;
    - shape: their correlation with powers of what was predicted and of its change (J. Ramsey's RESET, J. Royal
      Statistical Society B 31, 1969), where a force is missing that noise has taken over;
    - mean: an offset;
    - largest: outliers, with their places, and kurtosis;
    - stretches: a stretch of surprises that single outliers do not explain.
    """
    counts = innovations.seen.sum(axis=(0, 1))
    figures: Figures = {}
    if not np.any(counts >= FEWEST):
        return [], figures
    squares = np.sum(innovations.errors**2, axis=(0, 1))
    rms = np.sqrt(squares / np.maximum(counts, 1))
    figures["innovations_rms"] = float(np.sqrt(squares.sum() / counts.sum()))
    kinds = (_size, _whiteness, _inputs, _shape, _mean, _largest, _stretches)
    reasons = [reason for kind in kinds for reason in kind(innovations, counts, rms, figures)]
    return reasons, figures


def autocorrelation(innovations: Innovations, lags: int = LAGS) -> tuple[np.ndarray, np.ndarray]:
    """Autocorrelation (lags, d) of each coordinate's errors about their mean, from lag 1, and the number of pairs."""
    seen = innovations.seen
    counts = np.maximum(seen.sum(axis=(0, 1)), 1)
    errors = np.where(seen, innovations.errors - innovations.errors.sum(axis=(0, 1)) / counts, 0.0)
    variance = np.sum(errors**2, axis=(0, 1)) / counts
    rows, pairs = [], []
    for lag in range(1, min(lags, errors.shape[1] - 1) + 1):
        both = seen[:, lag:] & seen[:, :-lag]
        products = np.sum(errors[:, lag:] * errors[:, :-lag], axis=(0, 1))
        pairs.append(both.sum(axis=(0, 1)))
        rows.append(products / np.maximum(pairs[-1], 1) / np.maximum(variance, 1e-300))
    shape = (len(rows), errors.shape[-1])
    return np.reshape(rows, shape), np.reshape(pairs, shape)


def cross_correlation(
    innovations: Innovations, series: Float[np.ndarray, "R N"], lags: Iterable[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Correlation (lags, d) of errors with a series so many rows earlier, and the number of pairs of each.

    Errors are independent of all that precedes them, so that a correlation times the root of its pairs has sd 1.
    """
    errors, seen = innovations.errors, innovations.seen
    rows, pairs = [], []
    for lag in lags:
        then = series[:, : series.shape[1] - lag, None] * seen[:, lag:]
        products = np.sum(then * errors[:, lag:], axis=(0, 1))
        size = np.sqrt(np.sum(then**2, axis=(0, 1)) * np.sum(errors[:, lag:] ** 2, axis=(0, 1)))
        rows.append(products / np.maximum(size, 1e-300))
        pairs.append(np.sum(seen[:, lag:], axis=(0, 1)))
    shape = (len(rows), errors.shape[-1])
    return np.reshape(rows, shape), np.reshape(pairs, shape)


def _size(innovations: Innovations, counts, rms, figures) -> Iterator[Reason]:
    tested = counts >= FEWEST
    comparisons = 2 * (int(tested.sum()) + 1)
    squares = rms**2 * counts
    cases = [(name, rms[i], squares[i], counts[i]) for i, name in enumerate(innovations.names) if tested[i]]
    cases.append(("all", figures["innovations_rms"], squares.sum(), counts.sum()))
    too_large = [(s, n) for n, s, q, c in cases if stats.chi2.sf(q, c) * comparisons < FALSE_ALARM]
    if too_large:
        size, name = max(too_large)
        finding = f"one-step errors of {name} are {size:.2f} times their sds"
        remedy = (
            "a noise is held too small, or the program lacks physics: leave `process_noise` or `measurement_noise` to "
            "the fit, and look at `plots.innovations`"
        )
        yield Reason(DOUBTFUL, finding, remedy)
    elif innovations.noise_is_known:  # learned noises have floors and priors that may hold them up
        left = [
            (s, n) for n, s, q, c in cases if stats.chi2.cdf(q, c - innovations.parameters) * comparisons < FALSE_ALARM
        ]
        if left:
            size, name = min(left)
            finding = f"one-step errors of {name} are only {size:.2f} times their sds"
            yield Reason(DOUBTFUL, finding, "a noise is held too large: leave it to the fit, or give its true sd")


def _whiteness(innovations: Innovations, counts, rms, figures) -> Iterator[Reason]:
    correlations, pairs = autocorrelation(innovations)
    enough = counts >= FEWEST
    if not len(correlations) or not enough.any():
        return
    scores = correlations * np.sqrt(pairs)
    flexible = counts.sum() < FLEXIBLE * innovations.parameters
    comparisons = (1 + len(PORTMANTEAUS) + len(DECAYS)) * int(enough.sum())
    first = np.where(enough, correlations[0], 0.0)
    figures["autocorrelation"] = float(first[np.argmax(np.abs(first))])
    found = []
    for i in np.flatnonzero(enough):
        lags = max(1, min(LAGS, int(counts[i]) // 5, len(correlations)))
        portmanteau = float(np.sum(scores[:lags, i] ** 2))
        several = [m for m in PORTMANTEAUS if m <= lags]
        # A flexible fit makes its errors negatively correlated; a positive correlation is the model's all the same.
        alarm = stats.norm.sf(scores[0, i] if flexible else abs(scores[0, i])) * comparisons < FALSE_ALARM
        alarm &= abs(correlations[0, i]) > MATERIAL
        if not flexible and np.max(np.abs(correlations[:lags, i])) > MATERIAL:
            tails = [stats.chi2.sf(np.sum(scores[:m, i] ** 2), m) for m in several]
            for decay in DECAYS:
                weights = decay ** np.arange(lags)
                tails.append(2 * stats.norm.sf(abs(weights @ scores[:lags, i]) / np.linalg.norm(weights)))
            alarm |= min(tails, default=1.0) * comparisons < FALSE_ALARM
        if alarm:
            found.append((portmanteau, i, lags))
    if not found:
        return
    _, i, lags = max(found)
    course = correlations[:lags, i]
    positive = course[: int(np.argmax(course <= 0)) if np.any(course <= 0) else lags]
    factor = np.sqrt(1 + 2 * np.sum(positive))
    worst = int(np.argmax(np.abs(course)))
    apart = f"{course[worst]:+.2f} {_rows(worst + 1, innovations)} apart"
    finding = f"one-step errors of {innovations.names[i]} are correlated, {apart}"
    if factor > 1.1:
        finding += f": sds are too small by a factor of about {factor:.1f}"
    remedy = (
        "the program lacks a motion that the data have: add physics or a `residual`; where none is known, keep fewer "
        "samples and do not trust the sds"
    )
    yield Reason(DOUBTFUL, finding, remedy)


def _inputs(innovations: Innovations, counts, rms, figures) -> Iterator[Reason]:
    if innovations.inputs is None:
        return
    first, count = innovations.lag, min(LAGS, int(counts.max()) // 5, innovations.errors.shape[1] - FEWEST)
    lags = range(first, first + max(count, 0))
    series = {name: innovations.inputs[..., a] for a, name in enumerate(innovations.input_names)}
    found = _strongest(innovations, series, lags, counts)
    if found is not None:
        (name, earlier, i), value, _ = found
        figures["input_correlation"] = value
        when = "of the same step" if earlier == 0 else f"{_rows(earlier, innovations)} earlier"
        finding = f"one-step errors of {innovations.names[i]} correlate with {name} {when} ({value:+.2f})"
        delay = "`input_delay`" if first else "a delayed input"
        remedy = f"the input acts otherwise than in the program: {delay}, an actuator's lag or gain, or a missing mode"
        yield Reason(DOUBTFUL, finding, remedy)


def _shape(innovations: Innovations, counts, rms, figures) -> Iterator[Reason]:
    series = {}
    for j, name in enumerate(innovations.names):
        if counts[j] >= 3 * FEWEST:
            shapes = _features(innovations.expected[..., j], innovations.seen[..., j])
            series |= {f"{shape} {name}": feature for shape, feature in shapes}
    lags = [lag for lag in SHAPE_LAGS if lag < innovations.errors.shape[1] - FEWEST]
    found = _strongest(innovations, series, lags, counts)
    if found is not None:
        (shape, _, i), value, score = found
        figures["shape_correlation"] = value
        finding = f"one-step errors of {innovations.names[i]} depend on {shape} ({value:+.2f}, {score:.1f} sds)"
        remedy = "a force of that shape is missing in the program, such as a stiffening spring or dry friction: add it"
        yield Reason(DOUBTFUL, finding, remedy)


def _strongest(innovations: Innovations, series: dict[str, np.ndarray], lags: Sequence[int], counts):
    """The largest correlation with one of several series: (name, lag, coordinate), value and score; None by chance."""
    enough = counts >= 3 * FEWEST
    if not series or not len(lags) or not enough.any():
        return None
    columns = [cross_correlation(innovations, column, lags) for column in series.values()]
    values = np.stack([value for value, _ in columns])
    scores = np.where(enough & (np.abs(values) > MATERIAL), np.abs(values) * np.sqrt(columns[0][1]), 0.0)
    which, lag, i = map(int, np.unravel_index(np.argmax(scores), scores.shape))
    if 2 * stats.norm.sf(scores[which, lag, i]) * len(series) * len(lags) * enough.sum() >= FALSE_ALARM:
        return None
    return (list(series)[which], lags[lag], i), float(values[which, lag, i]), float(scores[which, lag, i])


def _features(expected: np.ndarray, seen: np.ndarray) -> Iterator[tuple[str, np.ndarray]]:
    """Shapes (R, N) of what was predicted of one coordinate, and of its change from row to row."""

    def standard(x):
        weight = max(int(seen.sum()), 1)
        x = np.where(seen, x - np.sum(x * seen) / weight, 0.0)
        return np.clip(x / max(np.sqrt(np.sum(x**2) / weight), 1e-300), -3.0, 3.0)

    level = standard(expected)
    change = standard(np.diff(expected, axis=1, prepend=expected[:, :1]))
    yield "the square of", level**2 - 1
    yield "the cube of", level**3 - 3 * level
    yield "the sign of the change of", np.sign(change)
    yield "the cube of the change of", change**3 - 3 * change


def _mean(innovations: Innovations, counts, rms, figures) -> Iterator[Reason]:
    total = np.sum(innovations.errors, axis=(0, 1))
    enough = counts >= FEWEST
    scores = np.where(enough, np.abs(total) / np.sqrt(np.maximum(counts, 1)) / np.maximum(rms, 1e-300), 0.0)
    i = int(np.argmax(scores))
    average = total[i] / max(counts[i], 1)
    tail = 2 * stats.t.sf(scores[i], max(int(counts[i]) - 1, 1)) * max(int(enough.sum()), 1)
    if tail < FALSE_ALARM and abs(average) > MATERIAL:
        finding = f"one-step errors of {innovations.names[i]} have the mean {average:+.2f} sds"
        yield Reason(DOUBTFUL, finding, "a sensor has an offset, or a constant force is missing in the program")


def _largest(innovations: Innovations, counts, rms, figures) -> Iterator[Reason]:
    scaled = np.abs(innovations.errors) / np.maximum(rms, 1.0)  # of errors that are too large altogether, the worst
    figures["largest_innovation_sds"] = float(np.abs(innovations.errors).max())
    limit = stats.norm.isf(FALSE_ALARM / 2 / max(int(counts.sum()), 1))
    places = np.argwhere(np.where(counts >= FEWEST, scaled, 0.0) > limit)
    if len(places):
        order = np.argsort([-scaled[tuple(place)] for place in places], kind="stable")
        named = ", ".join(innovations.place(*map(int, places[k])) for k in order[:3])
        size = float(np.abs(innovations.errors[tuple(places[order[0]])]))
        more = f" and {len(places) - 3} more" if len(places) > 3 else ""
        finding = f"one-step errors of up to {size:.1f} sds: {named}{more}"
        remedy = f"outliers: mark them (`valid=`{_heavy(innovations)})"
        if innovations.lag and places[:, 1].max() < EARLY:
            remedy = (
                "the first state lies far from what was expected, the first readings and for all else zero within the "
                "coordinates' scales: give it (`start=`), or larger scales of the state"
            )
        yield Reason(DOUBTFUL, finding, remedy)
        return
    for i in np.flatnonzero(counts >= 5 * FEWEST):
        errors = innovations.errors[..., i][innovations.seen[..., i]]
        test = stats.kurtosistest(errors, alternative="greater")
        if test.pvalue * len(counts) < FALSE_ALARM:
            kurtosis = stats.kurtosis(errors)
            finding = f"one-step errors of {innovations.names[i]} have heavy tails (excess kurtosis {kurtosis:.1f})"
            yield Reason(DOUBTFUL, finding, f"look for outliers and mark them (`valid=`{_heavy(innovations)})")
            return


def _stretches(innovations: Innovations, counts, rms, figures) -> Iterator[Reason]:
    errors, seen = innovations.errors, innovations.seen
    if errors.shape[1] < 2 * STRETCH:
        return
    clipped = np.clip(errors / np.maximum(rms, 1e-300), -CLIP, CLIP) ** 2
    kernel = np.ones(STRETCH)

    def windows(x):
        return np.apply_along_axis(lambda row: np.convolve(row, kernel, mode="valid"), 1, x.astype(float))

    squares, members = windows(clipped), windows(seen)
    tail = stats.chi2.logsf(squares, np.maximum(members, 1))
    tail = np.where((members >= STRETCH / 2) & (counts >= FEWEST), tail, 0.0)
    part, start, i = map(int, np.unravel_index(np.argmin(tail), tail.shape))
    if tail[part, start, i] + np.log(np.sum(members > 0)) < np.log(FALSE_ALARM):
        size = np.sqrt(squares[part, start, i] / members[part, start, i])
        first, last = innovations.place(part, start, i), start + STRETCH - 1
        end = f"{last}" if innovations.times is None else f"{innovations.times[part, last]:.4g} s"
        finding = f"one-step errors are {size:.1f} times their usual size from {first} to {end}"
        leave = "`data[k:]`" if innovations.times is None else "`data.between(since, until)`, `--since`, `--until`"
        yield Reason(DOUBTFUL, finding, f"something else acted there: mark it (`valid=`), or leave it out ({leave})")


def _rows(count: int, innovations: Innovations) -> str:
    return f"{count} {innovations.row}{'' if count == 1 else 's'}"


def _heavy(innovations: Innovations) -> str:
    return ", or take heavy-tailed readings, `measurement_df=4`" if innovations.lag else ""
