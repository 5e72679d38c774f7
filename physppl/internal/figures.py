"""Shared style of all figures. Matplotlib is imported only when a figure is drawn."""

import functools

import numpy as np

# The palette of M. Okabe and K. Ito (2008), distinguishable with every kind of colour vision.
BLUE, ORANGE, GREEN, PURPLE, GREY, INK = "#0072B2", "#D55E00", "#009E73", "#AA4499", "#8A8A8A", "#222222"
STYLE = {
    "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9, "legend.fontsize": 8.5, "legend.frameon": False,
    "xtick.labelsize": 8.5, "ytick.labelsize": 8.5, "axes.spines.top": False, "axes.spines.right": False,
    "axes.edgecolor": "#555555", "axes.linewidth": 0.8, "axes.labelcolor": INK, "text.color": INK,
    "xtick.color": "#555555", "ytick.color": "#555555", "xtick.labelcolor": INK, "ytick.labelcolor": INK,
    "axes.grid": False, "lines.linewidth": 1.4, "axes.titlelocation": "left", "axes.titlepad": 8,
    "savefig.bbox": None, "figure.dpi": 160,
}  # fmt: skip


def styled(draw):
    """Decorate a drawing function to run under `STYLE`."""

    @functools.wraps(draw)
    def run(*args, **kwargs):
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return run


def new_figure(width: float, height: float):
    from matplotlib.figure import Figure
    from matplotlib.layout_engine import ConstrainedLayoutEngine

    return Figure(figsize=(width, height), layout=ConstrainedLayoutEngine(w_pad=0.06, h_pad=0.06))


def legend(figure, axes, **options):
    """Add one legend under all axes, each name once."""
    pairs = [pair for axis in axes for pair in zip(*axis.get_legend_handles_labels(), strict=True)]
    named = {name: handle for handle, name in reversed(pairs)}
    names = list(dict.fromkeys(name for _, name in pairs))
    options = {"ncols": len(names), "columnspacing": 1.4, "handlelength": 1.7} | options
    figure.legend([named[n] for n in names], names, loc="outside lower center", **options)
    return figure


def words(name: str) -> str:
    """Readable form of a site's name."""
    return name.replace("_", " ").replace("[", ", ").replace("]", "")


def multiples_of_pi(axis) -> None:
    """Label an axis in radians with multiples of pi."""
    from matplotlib.ticker import FuncFormatter, MultipleLocator

    low, high = axis.get_view_interval()
    axis.set_major_locator(MultipleLocator(np.pi if high - low > 2.1 * np.pi else np.pi / 2))
    words = {0: "0", 1: "π/2", -1: "−π/2", 2: "π", -2: "−π"}
    axis.set_major_formatter(
        FuncFormatter(lambda x, _: words.get(round(2 * x / np.pi), f"{x / np.pi:.3g}π".replace("-", "−")))
    )
