# %% [markdown]
# # One linear layer in integers: where does the error come from?
#
#     python docs/examples/quantize_linear.py [--out FOLDER]
#
# We take one layer of a real model, MiniLM-L6: `encoder.layer.0.intermediate.dense`, 384 -> 1536, and the GELU behind
# it. `accelsim.numerics` runs it as an integer accelerator would: 8-bit inputs, weights of 8, 4 or 2 bits, int32 sums,
# 8-bit outputs, GELU from a table of 256 entries.
#
# Each of these steps rounds or clips something. We switch on one of them at a time, all else in float64, and measure
# what it does to the output; then all of them, in integers. If the steps act independently, their noise powers add up
# to that of the whole, and the largest is the one to work on.
#
# Letters: t tokens, k = 384 features in, n = 1536 features out. x (t, k) input, w (n, k) weight, b (n,) bias,
# z = x w' + b (t, n) output of the layer, y = GELU(z). A scale s_x is the real value of one integer step of x.

# %%
import argparse
from pathlib import Path

import numpy as np
import torch
from accelsim_models.fetch import minilm_l6
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from matplotlib.style import context
from torch.nn.functional import gelu
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from accelsim import numerics, plots

parser = argparse.ArgumentParser(description="Quantize one linear layer of MiniLM-L6; show where the error comes from.")
parser.add_argument("--out", type=Path, default=Path(__file__).parent.parent / "figures", help="folder for the figure")
OUT = parser.parse_args().out

# %% [markdown]
# ## Real inputs
#
# Ranges are chosen on one set of sentences and errors measured on another.

# %%
CALIBRATION = """\
The ferry left the harbour an hour late because of the fog.
Prices for copper fell again after the strike in Chile ended.
My grandmother taught me how to bake bread without a recipe.
Is the library open on Sundays during the summer holidays?
The patch fixes a race between the writer and the flusher.
He scored twice in the last ten minutes and saved the match.
Photosynthesis turns light, water and carbon dioxide into sugar.
Nobody in the village remembered when the bridge was built.
Please send the signed contract to our office by Friday, 17:00.
The soundtrack is wonderful, but the plot makes no sense at all.
Two neighbouring towns share one hospital and three schools.
A violin has four strings, which are tuned in perfect fifths."""
TEST = """\
Heavy snow closed the mountain pass for the third day in a row.
The museum bought the painting at an auction in Vienna in 1928.
I would not recommend this hotel to anyone who sleeps lightly.
Engineers replaced the pump, tested the valves and left at noon.
How many moons does Jupiter have, and who discovered the first?
The senate postponed the vote on the new budget until October.
Her first novel sold fewer than 300 copies; her fifth, millions.
Bees tell each other where the flowers are by dancing.
The train to Lisbon departs from platform 9 at a quarter to six.
An old dog slept in the doorway and watched the rain come down.
Doctors advise against the drug for patients with weak kidneys.
What a waste of a brilliant cast, two hours and my evening!"""

logging.disable_progress_bar()
folder = minilm_l6()
tokenizer = AutoTokenizer.from_pretrained(folder)
model = AutoModel.from_pretrained(folder).eval()
layer = model.encoder.layer[0].intermediate.dense


def capture(sentences):
    """(input (t, k), output (t, n), token of each row) of the layer in the running model; padding is left out."""
    seen = {}
    hook = layer.register_forward_hook(lambda module, inputs, output: seen.update(x=inputs[0], z=output))
    batch = tokenizer(sentences.splitlines(), return_tensors="pt", padding=True)
    with torch.no_grad():
        model(**batch)
    hook.remove()
    real = batch["attention_mask"].bool()
    return seen["x"][real].double(), seen["z"][real].double(), batch["input_ids"][real]


x_seen, z_seen, tokens_seen = capture(CALIBRATION)
x, z_torch, _ = capture(TEST)
w, b = layer.weight.detach().double(), layer.bias.detach().double()


def linear(x, w=w, b=b):
    return x @ w.T + b


z = linear(x)  # the reference: the same layer in float64
y = gelu(z)
(t, k), n = x.shape, w.shape[0]
print(f"MiniLM-L6, encoder.layer.0.intermediate.dense: {k} -> {n}; {len(x_seen)} tokens to calibrate, {t} to test")

# %% [markdown]
# The measure is the signal-to-quantization-noise ratio, SQNR = 10 log10(sum of signal^2 / sum of error^2), in dB: 20 dB
# are an error of 10 % of the signal (root mean square), and one bit more makes 6 dB.


# %%
def sqnr(found, true):
    return 10 * np.log10(power(true) / max(power(found - true), 1e-300))


def power(values):
    return float(values.square().mean())


def decibels(value):
    return "exact" if value > 1000 else f"{round(value, 1) + 0:.1f}"


# %% [markdown]
# ## Scales
#
# Activations: the largest magnitude of the calibration set becomes 127 ("abs-max"), one scale for the whole tensor.

# %%
s_x, s_z, s_y = (float(seen.abs().max()) / 127 for seen in (x_seen, z_seen, gelu(z_seen)))

row, feature = divmod(int(x_seen.abs().argmax()), k)
special = torch.isin(tokens_seen, torch.tensor(tokenizer.all_special_ids))
print(f"\nLargest |input| {x_seen.abs().max():.1f}: token {tokenizer.decode(tokens_seen[row])}, feature {feature};")
print(f"without special tokens {x_seen[~special].abs().max():.1f}; root mean square of all {power(x_seen) ** 0.5:.2f}.")

# %% [markdown]
# A few features of the special tokens set the range of all inputs. That is known of BERT (Bondarenko et al.,
# arXiv:2109.12948), and it decides the row "input rounding" below.
#
# Weights: symmetric, integers from -top to top with top = 127, 7 or 1, one scale for the tensor or one for each of the
# n output channels. Abs-max makes the largest weight `top`. The alternative clips: of 46 ranges from 10 to 100 % of the
# abs-max it takes the one with the least squared error of the weights.


# %%
def quantize_weights(bits, per_channel, mse):
    """(integers (n, k) as int8, scale (n, 1))."""
    top = 2 ** (bits - 1) - 1
    widest = w.abs().amax(dim=1, keepdim=True) if per_channel else w.abs().max().expand(n, 1)
    least, scale = torch.full((n, 1), torch.inf, dtype=torch.float64), widest / top
    for share in torch.linspace(0.1, 1, 46) if mse else [1.0]:
        tried = widest * share / top
        error = ((w / tried).round().clamp(-top, top) * tried - w).square().sum(dim=1, keepdim=True)
        error = error if per_channel else error.sum().expand(n, 1)
        scale = torch.where(error < least, tried, scale)
        least = torch.minimum(error, least)
    return (w / scale).round().clamp(-top, top).to(torch.int8), scale


# %% [markdown]
# ## In integers
#
# `PackedWeights.pack` and `gemm` take torch tensors and read them where they lie. The sum of a column is worth
# s_x s_w[n]; the bias is an int32 in that unit. The `Requantizer` multiplies a sum by s_x s_w[n] / s_z, kept in a named
# format, rounds it in a named mode, clamps it to 8 bits and looks the result up in the GELU table, all while the sum is
# still in the cache (`gemm_requantized`). Entry i of the table is for the byte i.

# %%
x_q = (x / s_x).round().clamp(-127, 127).to(torch.int8)
print(f"\nnumpy sees the tensor where torch keeps it: {np.asarray(x_q).ctypes.data == x_q.data_ptr()}")

codes = torch.arange(256, dtype=torch.uint8).view(torch.int8)
table = (gelu(codes * s_z) / s_y).round().clamp(-128, 127).to(torch.int8)

# GELU never goes below -0.17, so int8 leaves almost half of its codes unused; uint8 with a zero point uses all of them.
lowest, highest = float(gelu(z_seen).min()), float(gelu(z_seen).max())
s_u = (highest - lowest) / 255
zero_u = round(-lowest / s_u)
table_u = ((gelu(codes * s_z) / s_u).round() + zero_u).clamp(0, 255).to(torch.uint8)


def pack(bits, w_q, s_w):
    """The weights as the kernels read them, with their bias."""
    bias = (b / (s_x * s_w[:, 0])).round().to(torch.int32)
    return numerics.PackedWeights.pack(w_q, bits=bits, scales=s_w[:, 0], bias=bias, name="intermediate.dense")


def requantizer(s_w, scale_format, rounding, table=None):
    seed = 1 if rounding == "stochastic" else None
    return numerics.Requantizer.of(
        s_x * s_w[:, 0] / s_z, scale_format=scale_format, rounding=rounding, dtype="int8", table=table, seed=seed
    )


def run(packed, to_8_bits, step, zero_point=0):
    """(what the 8-bit results stand for (t, n) float64, how many were clamped)."""
    values, saturated = numerics.gemm_requantized(x_q, packed, to_8_bits)
    return (torch.from_numpy(values).double() - zero_point) * step, saturated


# %% [markdown]
# ## One at a time
#
# Each source of error alone, everything else in float64. "Output rounding" puts z on the grid that indexes the table;
# "GELU table" is the rounding of the table's own entries.

# %%
ROUNDINGS = ("half_even", "half_away", "floor", "stochastic")
FORMATS = ("float32", "fixed", "scale8", "power_of_two")
PARTS = (
    "input rounding", "input clipping", "weights", "bias rounding", "scale format", "output rounding",
    "output saturation", "GELU table",
)  # fmt: skip


def on_grid(values, rounding="half_even"):
    """Integers as float64, no clamping."""
    if rounding == "stochastic":
        return (values + torch.rand(values.shape, generator=torch.Generator().manual_seed(1))).floor()
    if rounding == "half_away":
        return values.sign() * (values.abs() + 0.5).floor()
    return values.floor() if rounding == "floor" else values.round()


def alone(w_q, s_w, scale_format="fixed", rounding="half_even"):
    """Source -> z with this source of error alone; the table has no effect on z."""
    unit = s_x * s_w[:, 0]
    kept = torch.from_numpy(requantizer(s_w, scale_format, rounding).scale) / (unit / s_z)
    outputs = (
        linear(on_grid(x / s_x) * s_x),
        linear(x.clamp(-127 * s_x, 127 * s_x)),
        linear(x, w=w_q * s_w),
        linear(x, b=on_grid(b / unit) * unit),
        z * kept,
        on_grid(z / s_z, rounding) * s_z,
        z.clamp(-128 * s_z, 127 * s_z),
        z,
    )
    return dict(zip(PARTS, outputs, strict=True))


def after_gelu(part, z_with):
    return on_grid(gelu(z) / s_y) * s_y if part == "GELU table" else gelu(z_with)


# %% [markdown]
# All sources, the weights in every width. Rows of one kind are alternatives; "*" marks those that are combined below,
# with the share that each has in the sum of their noise powers in y.

# %%
CHOSEN, FORMAT, ROUNDING = (4, True, True), "fixed", "half_even"  # 4 bits, per channel, MSE clip
GRAIN, CLIP = {True: "channel", False: "tensor"}, {True: "MSE clip", False: "abs-max"}
choices = [(bits, per_channel, mse) for bits in (8, 4, 2) for per_channel in (False, True) for mse in (False, True)]
weights = {choice: quantize_weights(*choice) for choice in choices}
chosen = weights[CHOSEN]
rows = []


def named(choice):
    bits, per_channel, mse = choice
    return f"{bits} bits, per {GRAIN[per_channel]}, {CLIP[mse]}"


def add(kind, name, z_with, y_with, *, used=False, remark=""):
    rows.append(
        {
            "kind": kind,
            "name": name,
            "used": used,
            "z_db": sqnr(z_with, z),
            "y_db": sqnr(y_with, y),
            "y_noise": power(y_with - y),
            "y_largest": float((y_with - y).abs().max()),
            "remark": remark,
        }
    )


add("float", "torch, float32", z_torch, gelu(z_torch), remark="the model itself")
largest_999 = float(x_seen.abs().flatten().kthvalue(round(0.999 * x_seen.numel())).values)
for name, edge, used in (("abs-max", 127 * s_x, True), ("99.9 % of inputs", largest_999, False)):
    outside = x.abs() > edge
    z_with = linear(torch.where(outside, x, on_grid(x / edge * 127) * edge / 127))
    add("input", f"input rounding, {name}", z_with, gelu(z_with), used=used)
    z_with = linear(x.clamp(-edge, edge))
    add("input", f"input clipping, {name}", z_with, gelu(z_with), used=used, remark=f"{int(outside.sum())} clipped")
for choice, quantized in weights.items():
    z_with = alone(*quantized)["weights"]
    add("weights", f"weights, {named(choice)}", z_with, gelu(z_with), used=choice == CHOSEN)
z_with = alone(*chosen)["bias rounding"]
add("bias", "bias rounding, int32", z_with, gelu(z_with), used=True)
for name in FORMATS:
    z_with = alone(*chosen, scale_format=name)["scale format"]
    add("scale", f"scale format, {name}", z_with, gelu(z_with), used=name == FORMAT)
for name in ROUNDINGS:
    z_with = alone(*chosen, rounding=name)["output rounding"]
    add("output", f"output rounding, {name}", z_with, gelu(z_with), used=name == ROUNDING)
z_with = alone(*chosen)["output saturation"]
add("output", "output saturation", z_with, gelu(z_with), used=True, remark=f"{int((z_with != z).sum())} clamped")
add("table", "GELU table, int8", z, after_gelu("GELU table", z), used=True)
add("table", "GELU table, uint8", z, on_grid(y / s_u) * s_u, remark=f"zero point {zero_u}")

# %% [markdown]
# ## All of them, in integers
#
# The sums are compared with torch's in int64: accumulation adds no error of its own. The fused kernel with the table is
# compared with the same steps one after the other.

# %%
matches = 0
together = {}  # choice -> SQNR of z and of y, SQNR of y that the noise powers add up to, noise power of each source
for choice, (w_q, s_w) in weights.items():
    packed = pack(choice[0], w_q, s_w)
    sums = torch.from_numpy(numerics.gemm(x_q, packed))
    exact = x_q.long() @ w_q.long().T + torch.from_numpy(packed.bias).long()
    z_int, saturated = run(packed, requantizer(s_w, FORMAT, ROUNDING), s_z)
    y_int, _ = run(packed, requantizer(s_w, FORMAT, ROUNDING, table), s_y)
    looked_up = table[(z_int / s_z).round().long() & 255].double() * s_y
    matches += torch.equal(sums.long(), exact) and torch.equal(y_int, looked_up)
    noise = {part: power(after_gelu(part, z_with) - y) for part, z_with in alone(w_q, s_w).items()}
    together[choice] = {
        "z_db": sqnr(z_int, z),
        "y_db": sqnr(y_int, y),
        "predicted_db": 10 * np.log10(power(y) / sum(noise.values())),
        "noise": noise,
    }
    if choice == CHOSEN:
        add("all", "everything, GELU table int8", z_int, y_int, remark=f"in integers, {saturated} clamped")
        better, _ = run(packed, requantizer(s_w, FORMAT, ROUNDING, table_u), s_u, zero_u)
        add("all", "everything, GELU table uint8", z_int, better, remark="in integers")

print("\nError of each source alone               SQNR, dB             largest   share of")
print("                                             z       y     error of y    noise %")
marked = sum(row["y_noise"] for row in rows if row["used"])
for before, row in zip(["float", *(row["kind"] for row in rows)], rows, strict=False):
    share = f"{100 * row['y_noise'] / marked:.1f}" if row["used"] else ""
    cells = f"{decibels(row['z_db']):>7} {decibels(row['y_db']):>7} {row['y_largest']:>14.2g} {share:>10}"
    gap = "\n" if row["kind"] != before else ""
    print(f"{gap}{'*' if row['used'] else ' '}{row['name']:<38}{cells}   {row['remark']}".rstrip())

print(f"\nInteger sums equal torch int64 bit for bit: {matches} of {len(choices)} weight formats, {t * n} sums each")

print("\nThe whole layer in integers              SQNR, dB     y, noise powers")
print("                                             z       y   of all added up")
for choice, found in together.items():
    cells = (decibels(found[key]) for key in ("z_db", "y_db", "predicted_db"))
    print(" {:<38}{:>7} {:>7} {:>17}".format(named(choice), *cells))

# %% [markdown]
# Scale format and rounding are part of the result: accelerators that differ in them give other integers. Floor is a
# mere shift, and its error has a mean of half a step. Powers of two fit badly because the scales were chosen freely; a
# design that has nothing else chooses s_x, s_w and s_z such that s_x s_w / s_z is one.

# %%
print(f"\nSQNR of z in integers, dB: {named(CHOSEN)}")
print(" " * 14 + "".join(f"{name:>12}" for name in ROUNDINGS))
packed = pack(CHOSEN[0], *chosen)
for name in FORMATS:
    found = [sqnr(run(packed, requantizer(chosen[1], name, rounding), s_z)[0], z) for rounding in ROUNDINGS]
    print(f"{name:<14}" + "".join(f"{value:>12.1f}" for value in found))

# %% [markdown]
# ## The figure
#
# Left, the error of y, source by source, as a share of y (both root mean square, logarithmic). Right, what the noise of
# the whole layer is made of.
#
# What to look for: inputs and outputs have few values that are very large, so abs-max rounds the many small ones
# coarsely, and clipping the large ones costs more than it saves. Weights of 4 and 2 bits need a scale for each channel
# and a clipped range. A scale of 8 bits is as good as exact. And the cheapest step to make better is the largest one at
# 8 and 4 bits: the table, whose entries are free to use the codes that GELU leaves empty.

# %%
COLOURS = {
    "input": "#0072B2", "weights": "#E69F00", "bias": "#999999", "scale": "#CC79A7", "output": "#D55E00",
    "table": "#009E73", "all": "#202020",
}  # fmt: skip
KINDS = dict(zip(PARTS, ("input", "input", "weights", "bias", "scale", "output", "output", "table"), strict=True))
LOW, HIGH = 0.03, 130.0  # percent
bars = [row for row in rows if row["kind"] != "float"]

with context(plots.STYLE, after_reset=True):
    figure = Figure(figsize=(plots.DOUBLE, 4.9))
    axes = figure.add_axes((0.3, 0.09, 0.33, 0.85))
    place = 0.0
    for before, row in zip([bars[0], *bars], bars, strict=False):
        place += 1.0 if row["kind"] == before["kind"] else 1.45
        strong = row["used"] or row["kind"] == "all"
        percent = max(LOW, 100 * 10 ** (-row["y_db"] / 20))
        axes.barh(place, percent - LOW, 0.74, LOW, color=COLOURS[row["kind"]], alpha=1 if strong else 0.45)
        number = f"{decibels(row['y_db'])} dB" if row["y_db"] < 1000 else "none on these inputs"
        offset = {"textcoords": "offset points", "va": "center_baseline", "weight": "bold" if strong else "normal"}
        axes.annotate(number, (percent, place), (3, 0), size=6, **offset)
        side = {"xycoords": axes.get_yaxis_transform(), "ha": "right", "size": 6.5}
        axes.annotate(row["name"], (0, place), (-4, 0), **offset, **side)
    axes.set_xscale("log")
    axes.set_xlim(LOW, HIGH)
    axes.set_ylim(place + 0.7, 0.3)
    axes.set_yticks([])
    axes.set_xticks([0.1, 1, 10, 100], ["0.1 %", "1 %", "10 %", "100 %"])
    axes.grid(axis="x")
    axes.set_xlabel("error after GELU / output of GELU, rms (number: SQNR)")
    axes.set_title('each source alone; dark: those in "everything"', loc="center", weight="bold")

    stacks = figure.add_axes((0.77, 0.3, 0.21, 0.6))
    for column, bits in enumerate((8, 4, 2)):
        found = together[bits, True, True]
        bottom = 0.0
        for kind in reversed([kind for kind in COLOURS if kind != "all"]):
            share = sum(noise for part, noise in found["noise"].items() if KINDS[part] == kind)
            share *= 100 / sum(found["noise"].values())
            stacks.bar(column, share, 0.72, bottom, color=COLOURS[kind])
            if share > 4:
                dark = kind in ("input", "output", "table")
                colour = "white" if dark else "black"
                stacks.text(column, bottom + share / 2, f"{share:.0f} %", ha="center", va="center", color=colour)
            bottom += share
        stacks.annotate(
            f"{decibels(found['y_db'])} dB", (column, 100), (0, 3), textcoords="offset points", ha="center", size=6
        )
    stacks.set_xticks(range(3), ["8 bits", "4 bits", "2 bits"])
    stacks.tick_params(axis="x", length=0)
    stacks.set_ylim(0, 100)
    stacks.set_ylabel("noise power after GELU, %")
    stacks.set_xlabel("weights per channel, MSE clip")
    figure.text(0.875, 0.964, "shares of the whole", ha="center", va="center", size=7.5, weight="bold")
    kinds = {"input": "input", "weights": "weights", "output": "output", "table": "GELU table"}
    figure.legend(
        handles=[Patch(color=COLOURS[kind], label=label) for kind, label in kinds.items()],
        loc="upper center", bbox_to_anchor=(0.875, 0.2), ncols=2,
    )  # fmt: skip

OUT.mkdir(parents=True, exist_ok=True)
path = plots.save_figure(figure, OUT / "quantize-linear.png")
print(f"\nFigure: {path}")
