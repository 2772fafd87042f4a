"""A rate that grows with the batch keeps loss and accuracy, up to a break-down.

Digits, 20 epochs whatever the batch, gradient descent with momentum 0.9, two epochs of warm-up and
then half a cosine. The peak rate of batches of 8 is chosen by the validation loss; for batches of b
it is b/8 times that one (Goyal et al. 2017), or the same as a comparison.
"""

from matplotlib.figure import Figure

from gradkit.report.palette import BLUE, RED
from gradkit.runner.compare import compared, open_all
from gradkit.transforms.schedules import scaled_by_batch_size

REFERENCE = "final loss and accuracy nearly unchanged up to a break-down (Goyal et al. 2017)"
MINUTES = 1.3
EXAMPLES, EPOCHS, SMALLEST = 1024, 20, 8
SIZES = (32, 64, 128, 256, 512, 1024)
PEAK = "optimizer.learning_rate.warmup_cosine.peak"
LOSS, ACCURACY = 0.05, 0.01  # how far from batches of 8 is nearly unchanged [nats, share]


def commands(out):
    """The command lines, one after the other."""
    yield command(out, SMALLEST, ["0.0025", "0.005", "0.01", "0.02", "0.04"])
    best = peak(out)
    for size in SIZES:
        scaled = scaled_by_batch_size(best, size, SMALLEST)
        yield command(out, size, [f"{best:g}", f"{scaled:g}"])


def command(out, size, peaks):
    """The runs of one batch size."""
    steps = EPOCHS * EXAMPLES // size
    return (
        f"gradkit sweep configs/batch_scaling.yaml batch_size={size} "
        f"optimizer.learning_rate.warmup_cosine.steps={steps} "
        f"optimizer.learning_rate.warmup_cosine.warmup={steps // 10} log_every={steps} "
        f"evaluate_every={steps} checkpoint_every={steps} {PEAK}={','.join(peaks)} seed=0:4 "
        f"--out {out}/batch_{size}"
    )


def rows(out, size):
    """The rows of one batch size, by peak rate; those that diverged are none."""
    found = compared(open_all([f"{out}/batch_{size}"]))
    return {row.config[PEAK]: row for row in found if set(row.ended) == {"finished"}}


def peak(out):
    """The best rate of the smallest batch."""
    found = rows(out, SMALLEST)
    return min(found, key=lambda rate: found[rate].figures["validation_loss"].value)


def arms(out):
    """For the scaled and the constant rate, the row of each batch size; None where it diverged."""
    best = peak(out)
    first = rows(out, SMALLEST)[best]
    found = {"rate ∝ batch": {SMALLEST: first}, "constant rate": {SMALLEST: first}}
    for size in SIZES:
        here = rows(out, size)
        found["rate ∝ batch"][size] = here.get(scaled_by_batch_size(best, size, SMALLEST))
        found["constant rate"][size] = here.get(best)
    return found


def unchanged(row, first):
    """Whether loss and accuracy are nearly those of the smallest batch."""
    if row is None:
        return False
    loss, accuracy = (
        abs(row.figures[name].value - first.figures[name].value)
        for name in ("train_loss", "test_accuracy")
    )
    return loss < LOSS and accuracy < ACCURACY


def kept(arm):
    """The largest batch size up to which nothing changed."""
    last = SMALLEST
    for size, row in arm.items():
        if not unchanged(row, arm[SMALLEST]):
            break
        last = size
    return last


def words(row):
    """Loss and accuracy of a row."""
    if row is None:
        return "diverged"
    loss, accuracy = row.figures["train_loss"], row.figures["test_accuracy"]
    return (
        f"{loss.value:.3f} ± {loss.stderr:.3f} nats, "
        f"{100 * accuracy.value:.1f} ± {100 * accuracy.stderr:.1f} %"
    )


def judge(out):
    """Looks how far the scaled rate keeps the result, and the constant one does."""
    scaled, constant = arms(out).values()
    last = kept(scaled)
    after = next((size for size in SIZES if size > last), None)
    agrees = last >= 8 * SMALLEST and after is not None and kept(constant) < last
    broken = f"; at {after}: {words(scaled[after])}" if after else "; no break-down up to 1,024"
    return (
        f"unchanged up to batches of {last}: {words(scaled[last])} against "
        f"{words(scaled[SMALLEST])} at {SMALLEST}{broken} (4 seeds)",
        agrees,
        f"Nearly unchanged means a training loss within {LOSS} nats and a test accuracy within "
        f"{100 * ACCURACY:.0f} point of batches of {SMALLEST}, whose best peak rate is "
        f"{peak(out):g}. The constant rate keeps them up to {kept(constant)}, and is at "
        f"{words(constant[1024])} with batches of 1,024: 20 steps in all. There the scaled rate is "
        f"{scaled_by_batch_size(peak(out), 1024, SMALLEST):g}, with {words(scaled[1024])}.",
    )


def draw(out):
    """Loss and accuracy against the batch size."""
    figure = Figure(figsize=(7.4, 3.5), layout="constrained")
    panels = figure.subplots(1, 2)
    found = arms(out)
    last = kept(found["rate ∝ batch"])
    looks = {"rate ∝ batch": (BLUE, "o"), "constant rate": (RED, "^")}
    figures = (
        ("train_loss", 1, "final training loss [nats]"),
        ("test_accuracy", 100, "test accuracy [%]"),
    )
    for axes, (name, scale, label) in zip(panels, figures, strict=True):
        for arm, (color, marker) in looks.items():
            means = {s: row.figures[name] for s, row in found[arm].items() if row is not None}
            axes.errorbar(
                list(means),
                [scale * mean.value for mean in means.values()],
                [scale * mean.stderr for mean in means.values()],
                color=color,
                marker=marker,
                markersize=5,
                label=arm,
            )
        if last < SIZES[-1]:
            axes.axvline(last * 2**0.5, color="#999999", linewidth=0.8, linestyle="--")
        axes.set_xscale("log", base=2)
        axes.set_xticks([SMALLEST, *SIZES], [SMALLEST, *SIZES])
        axes.set_xlabel("examples in a batch")
        axes.set_ylabel(label)
    panels[0].set_yscale("log")
    panels[0].legend()
    figure.suptitle(
        f"Scaled with the batch, the rate keeps the result up to batches of {last}",
        x=0.01,
        ha="left",
        fontsize=10,
    )
    return figure
