"""A picture of a frequency prior."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from synth.spectral.prior import FrequencyPrior

COLOURS = {1: ("#333333",), 3: ("#D55E00", "#009E73", "#0072B2")}
"""Grey, or Okabe and Ito's red, green and blue."""
NAMES = {1: ("amplitude",), 3: ("red", "green", "blue")}


def radial_figure(prior: FrequencyPrior) -> Figure:
    """Returns a figure: mean amplitude over frequency, a panel per region that was seen, a line per channel.

    Round each line lies a band of one standard deviation between images; both axes are logarithmic.
    """
    from matplotlib.figure import Figure

    panels = [k for k, n in enumerate(prior.n.tolist()) if n]
    figure = Figure(figsize=(1 + 4.2 * len(panels), 3.6), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharey=True)[0]
    x, lines = prior.frequencies[1:].numpy(), range(prior.n_channels)
    names = NAMES.get(prior.n_channels, tuple(f"channel {c}" for c in lines))
    colours = COLOURS.get(prior.n_channels, tuple(f"C{c}" for c in lines))
    for axis, k in zip(axes, panels, strict=True):
        for c in lines:
            mean, sd = prior.radial[k, c, 1:].numpy(), prior.radial_sd[k, c, 1:].numpy()
            axis.plot(x, mean, color=colours[c], label=names[c], linewidth=1.4)
            # A band that reached 0 could not be drawn on a logarithmic axis.
            axis.fill_between(x, (mean - sd).clip(min=0.1 * mean), mean + sd, color=colours[c], alpha=0.18, linewidth=0)
        axis.set(xscale="log", yscale="log", xlabel="cycles per pixel",
                 title=f"{prior.regions[k]} ({int(prior.n[k])} images)")
        axis.spines[["top", "right"]].set_visible(False)
    axes[0].set_ylabel(f"mean amplitude, {prior.settings.kind}")
    axes[0].legend(frameon=False)
    return figure
