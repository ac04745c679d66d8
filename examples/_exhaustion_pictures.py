"""The pictures of `exhaustion.py`."""

import os
import textwrap

import torch
from _curves import STRAIGHT, segments, table_of

from fastmlp import piecewise

COLUMNS = 6
PANELS = 3
"""Panels in a row of the pictures that have one for each walk."""
BEYOND = 20.0


def draw(courses, out, gif):
    """Save all of them; GIFs of the walks whose names have one of the words, of all without."""
    os.environ.setdefault("MPLBACKEND", "Agg")
    try:
        import matplotlib.pyplot as plt
    except ModuleNotFoundError:
        print("no pictures: matplotlib is not installed, `pip install matplotlib` adds it")
        return
    figures = {
        "births_and_deaths": draw_births(plt, courses),
        "beyond": draw_beyond(plt, courses),
        "losses": draw_losses(plt, courses),
        "recovery": draw_recovery(plt, courses),
    }
    for activation, name in (("relu", "relu"), ("leaky_relu", "leaky")):
        figures[f"strips-{name}"] = draw_strips(plt, of_activation(courses, activation))
    for name, figure in figures.items():
        figure.savefig(out / f"{name}.png", dpi=100)
    for i, course in enumerate(courses if gif is not None else ()):
        if not gif or any(word in course.walk.name for word in gif):
            animate(plt, course, out / f"segments-{i}.gif")
    plt.close("all")
    print(f"\npictures in {out}")


def of_activation(courses, activation):
    return [course for course in courses if course.walk.activation == activation]


def limits(target):
    """The range of a target; that of 1/x near its pole leaves the picture."""
    low, high = map(float, target.data()[1].aminmax())
    if target.pole is not None:
        low, high = max(low, -20.0), min(high, 20.0)
    margin = 0.12 * (high - low)
    return low - margin, high + margin


def draw_function(ax, course, i):
    """The net of look i by its segments over the truth."""
    target = course.targets[i]
    ax.plot(*target.data(), color="0.8", linewidth=4)
    table_of(course.nets[i], target).merged().plot(ax=ax)
    ax.set(xlim=(target.lo, target.hi), ylim=limits(target), xlabel="", ylabel="")


def draw_strips(plt, courses):
    """A row a walk: the function by its coloured segments at six epochs."""
    size = 1.75 * COLUMNS, 1.55 * len(courses) + 0.5
    figure, axes = plt.subplots(len(courses), COLUMNS, figsize=size, layout="constrained")
    for row, course in zip(axes, courses, strict=True):
        last = len(course.epochs) - 1
        chosen = [round(last * k / (COLUMNS - 1)) for k in range(COLUMNS)]
        for ax, i in zip(row, chosen, strict=True):
            draw_function(ax, course, i)
            ax.set(xticks=[], yticks=[])
            ax.set_title(f"epoch {course.epochs[i]}", fontsize=9, pad=2)
        name = course.walk.name.replace("H = ", "H\u00a0=\u00a0").replace("8 s", "8\u00a0s")
        row[0].set_ylabel(textwrap.fill(name, 18), fontsize=9)
    title = "Segments over the epochs, in two colours by turns; the truth in grey"
    figure.suptitle(title, fontsize=11)
    return figure


def draw_births(plt, courses):
    """Breakpoints in the domain over the epochs."""
    figure, axes = grid(plt, len(courses))
    for ax, course in zip(axes, courses, strict=False):
        # marks that do not touch those of the next look
        size = min(8.0, 130 / len(course.epochs))
        for i, epoch in enumerate(course.epochs):
            table = table_of(course.nets[i], course.targets[i])
            t = table.breakpoints[table.bends(STRAIGHT)]
            ax.plot([epoch] * len(t), t, "_", color="C0", markersize=size)
        for end in course.shift[:-1]:
            line = ax.axvline(end, color="C3", linewidth=1)
        entitle(ax, course)
    (mark,) = axes[0].plot([], [], "_", color="C0", markersize=8)
    figure.legend([mark, line], ["a breakpoint in the domain", "the target or the rate changes"],
                  loc="outside lower center", ncols=2)  # fmt: skip
    for ax in axes[len(courses) - PANELS : len(courses)]:
        ax.set_xlabel("epoch", fontsize=9)
    figure.supylabel("x", fontsize=9)
    return figure


def draw_beyond(plt, courses):
    """Each net at its walk's end, on ±20: the domain that it saw is shaded."""
    figure, axes = grid(plt, len(courses))
    for ax, course in zip(axes, courses, strict=False):
        target, net = course.targets[-1], course.nets[-1]
        shade = ax.axvspan(target.lo, target.hi, color="0.9")
        x = torch.linspace(-BEYOND, BEYOND, 4001)
        low, high = limits(target)
        span = high - low
        bottom, top = low - 0.5 * span, high + 0.5 * span
        y = target.f(x)
        # nothing is drawn across a pole
        y = torch.where((y > bottom) & (y < top), y, torch.nan)
        (truth,) = ax.plot(x, y, color="0.6", linewidth=3)
        table = piecewise.from_module(net.eval(), interval=(-BEYOND, BEYOND))
        (learned,) = ax.plot(x, table(x), color="k", linewidth=1)
        ax.set(xlim=(-BEYOND, BEYOND), ylim=(bottom, top))
        entitle(ax, course)
    figure.legend([shade, truth, learned], ["trained here", "truth", "the net"],
                  loc="outside lower center", ncols=3)  # fmt: skip
    return figure


def draw_losses(plt, courses):
    """Mean loss of every epoch, over the variance of the target; all starts, the best black."""
    figure, axes = grid(plt, len(courses))
    for ax, course in zip(axes, courses, strict=False):
        variances, start = torch.empty(course.losses.shape[1]), 0
        for end, at in zip(course.ends, course.shift, strict=True):
            variances[start:at] = end.stage.target.data()[1].var()
            start = at
        for i, one in enumerate(course.losses / variances):
            style = {"color": "k", "zorder": 3} if i == course.best else {"color": "C0"}
            ax.semilogy(range(1, len(one) + 1), one, linewidth=0.9, **style)
        ax.set_ylim(3e-5, 5)
        for end in course.shift[:-1]:
            line = ax.axvline(end, color="C3", linewidth=1)
        entitle(ax, course)
    kinds = [*(axes[0].plot([], [], color=c)[0] for c in ("k", "C0")), line]
    names = ["the net that ends best", "the others", "the target or the rate changes"]
    figure.legend(kinds, names, loc="outside lower center", ncols=3)
    for ax in axes[len(courses) - PANELS : len(courses)]:
        ax.set_xlabel("epoch", fontsize=9)
    figure.supylabel("mean loss of an epoch / variance of the target", fontsize=9)
    return figure


def draw_recovery(plt, courses):
    """Errors, dead units and segments as a step goes back and forth and exp is mirrored."""
    moves = {}
    for course in courses:
        names = [end.stage.target.name for end in course.ends]
        learned = course.targets[0].pole is None  # of 1/x too little is to tell
        if len(set(names)) > 1 and course.walk.hidden == 10 and learned:
            moves.setdefault(tuple(names), []).append(course)
    rows = (
        ("median error, % of std", lambda end: 100 * float(end.error.quantile(0.5))),
        ("dead units, mean", lambda end: sum(end.dead) / len(end.dead)),
        ("segments, mean", lambda end: sum(end.pieces) / len(end.pieces)),
    )
    figure, axes = plt.subplots(
        len(rows), len(moves), figsize=(11, 7), layout="constrained", squeeze=False,
        width_ratios=[1 + len(names) / 4 for names in moves],
    )  # fmt: skip
    for column, (names, both) in zip(axes.T, moves.items(), strict=True):
        short = [name.split(",")[0] for name in names]
        column[0].set_title(" → ".join(dict.fromkeys(short)), fontsize=10)
        for ax, (_, value) in zip(column, rows, strict=True):
            for course, style in zip(both, ("C0o-", "C1s--"), strict=True):
                ax.plot([value(end) for end in course.ends], style, label=course.walk.activation)
            top = max(value(end) for course in both for end in course.ends)
            ax.set(ylim=(-0.07 * top, 1.15 * top + 1e-9), xlim=(-0.3, len(names) - 0.7))
            ax.set_xticks(range(len(names)), short if len(names) < 4 else [n[4:] for n in short])
        column[-1].set_xlabel("stage: target" if len(names) < 4 else "stage: place of the step")
    for ax, (what, _) in zip(axes[:, 0], rows, strict=True):
        ax.set_ylabel(what)
    figure.align_ylabels(axes[:, 0])
    lines = axes[0, 0].get_legend_handles_labels()
    figure.legend(*lines, loc="outside lower center", ncols=2)
    return figure


def grid(plt, n):
    """A figure with a panel for each of n walks, and its axes."""
    rows = -(-n // PANELS)
    size = 10.5, 2.0 * rows + 0.6
    figure, axes = plt.subplots(rows, PANELS, figsize=size, layout="constrained")
    for ax in axes.flat[n:]:
        ax.set_axis_off()
    for ax in axes.flat:
        ax.tick_params(labelsize=8)
    return figure, list(axes.flat)


def entitle(ax, course):
    """Say above a panel whose it is."""
    ax.set_title(course.walk.name, fontsize=9)


def animate(plt, course, file):
    """Save the segments over the epochs as an animated GIF."""
    from matplotlib.animation import FuncAnimation, PillowWriter

    figure, ax = plt.subplots(figsize=(5, 3.4))

    def frame(i):
        ax.clear()
        draw_function(ax, course, i)
        count = segments(table_of(course.nets[i], course.targets[i]))
        ax.set_title(f"{course.targets[i].name}: epoch {course.epochs[i]}, {count} segments")

    film = FuncAnimation(figure, frame, frames=len(course.epochs))
    film.save(file, writer=PillowWriter(fps=3), dpi=80)
