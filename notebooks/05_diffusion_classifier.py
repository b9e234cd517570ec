# ---
# jupyter:
#   jupytext:
#     formats: ipynb,py:percent
#     text_representation:
#       extension: .py
#       format_name: percent
#   kernelspec:
#     display_name: Python 3 (ipykernel)
#     language: python
#     name: python3
# ---

# %% [markdown]
# # 05 · The diffusion classifier, step by step
#
# After this notebook you can say
# - at which noise levels the evidence for a class lies, and where in the image,
# - what the staged classifier saves, and what accuracy costs in denoiser evaluations,
# - why raw probabilities are nearly equal, and what a temperature and offsets do about it.
#
# About 1 minute on two CPU cores. No network is needed.

# %%
# %matplotlib inline
import numpy as np
import torch

from gcpl_lab import FrozenDiffusion, GCPLClassifier, load_fashion
from gcpl_lab.data.episodes import draw_test
from gcpl_lab.data.readers import read_images
from gcpl_lab.training.device import default_device
from gcpl_lab.views import style
from gcpl_lab.workshop import course

preset = "tiny"  # the same cells run with "sd-1.4" on a GPU

# %% [markdown]
# ## The idea
#
# An image belongs to the class whose prompt denoises it best:
#
# $$p(c\mid x) \;\propto\; \exp\big(-\tau\, E_{t,\epsilon}\lVert\epsilon - \epsilon_\theta(z_t, t, h_c)\rVert^2\big)$$
#
# with the same (t, ε) for every class of an image (Li et al. 2023,
# [arXiv 2303.16203](https://arxiv.org/abs/2303.16203)). So a decision is a table of errors, one row a class, one column
# a pair (t, ε), and everything in this notebook is read from such tables.
#
# The prompts are those that notebook 04 learned with the discriminative objective.

# %%
diffusion = FrozenDiffusion.load(preset, device=default_device())
earlier = course.load_state("04", diffusion)  # absent? run notebook 04, or: gcpl-lab catch-up 04
model = GCPLClassifier.load(earlier.folder / "discriminative", diffusion)
names = list(model.class_names_)
test = load_fashion("test").only(names)
test = test.subset(draw_test(test, per_class=20))
pictures, latents = read_images(test.images), model.encode(test.images)
tuple(latents.shape)

# %% [markdown]
# ## One tensor
#
# Sixteen noise levels over the *whole* schedule, every class on each of them, for all test images at once. The
# table of the first image, relative to the mean over the classes (below 1: this prompt denoises better than the
# others do):

# %%
from gcpl_lab.gcpl.classifier import DiffusionClassifier

with torch.no_grad():
    hidden = diffusion.encode_prompts(*model.prompts_())
wide = DiffusionClassifier(diffusion, hidden, timestep_range=(0.0, 1.0), bfloat16=True).exact(latents, 16)
table = wide.errors[0] / wide.errors[0].mean(axis=0)
print(f"{'t':10s}", *[f"{t:5d}" for t in wide.timesteps[::3]])
for name, row in zip(names, table, strict=True):
    print(f"{name:10s}", *[f"{value:5.2f}" for value in row[::3]])

# %% [markdown]
# ## Where the evidence is
#
# How much better does the own prompt denoise than the others, at each noise level, averaged over all test
# images? With little noise the image is visible and the prompt matters little; with almost only noise there is no
# evidence left.

# %%
from gcpl_lab.views.evidence import plot_timestep_evidence

own = wide.errors[np.arange(len(test)), test.labels]
others = (wide.errors.sum(axis=1) - own) / (len(names) - 1)
gap = (others - own) / wide.errors.mean(axis=1)
half = 1.96 * gap.std(axis=0, ddof=1) / np.sqrt(len(test))
with style.figure_style():
    figure = style.new_figure(10, 4.5)
    plot_timestep_evidence(figure.subplots(), wide.timesteps, gap.mean(0), gap.mean(0) - half, gap.mean(0) + half)
figure

# %% [markdown]
# That is why the tiny preset trains and classifies in one part of the schedule only (`diffusion.evidence_range`).
#
# ## The staged classifier
#
# Most classes can be ruled out after a few samples. The staged classifier evaluates every class on four pairs (t, ε),
# keeps the best two, and evaluates only these on the other twelve. Choose an image and move through the samples.

# %%
from gcpl_lab.views.widgets import ClassifierRace

judge = DiffusionClassifier(diffusion, hidden, timestep_range=model.timestep_range, bfloat16=True)
exact = judge.exact(latents, 16)
staged = judge.staged(latents, to_keep=(2, 1), n_samples=(4, 16))
ClassifierRace(staged, names, images=pictures, labels=test.labels, weighting="absolute")

# %% [markdown]
# ## Cost against accuracy
#
# Cost is counted in denoiser evaluations an image (classes × pairs for the exact classifier): seconds depend on
# the machine, evaluations do not.

# %%
from gcpl_lab.evaluation.metrics import accuracy
from gcpl_lab.gcpl.calibration import class_scores


def measure(evidence, weighting="absolute"):
    share = accuracy(class_scores(evidence.errors, weighting), test.labels)
    return evidence.num_evaluations / len(test), share


runs = {f"exact {count}": measure(judge.exact(latents, count)) for count in (1, 2, 4, 8)}
runs |= {"exact 16": measure(exact), "staged 4, 16": measure(staged)}
for name, (cost, share) in runs.items():
    print(f"{name:13s} {cost:5.1f} evaluations an image   {share:.0%}")

# %%
with style.figure_style():
    figure = style.new_figure(9, 5)
    ax = figure.subplots()
    for name, (cost, share) in runs.items():
        color, marker, up = ("#D55E00", "D", 12) if name.startswith("staged") else ("#0072B2", "o", -26)
        ax.scatter(cost, share, s=80, color=color, marker=marker)
        ax.annotate(name, (cost, share), xytext=(0, up), textcoords="offset points", ha="center", color=color)
    ax.set(xscale="log", xlim=(3, 140), ylim=(0, 1), xlabel="denoiser evaluations an image", ylabel="accuracy")
    ax.set_xticks([5, 10, 20, 40, 80], ["5", "10", "20", "40", "80"])
    ax.set_xticks([], minor=True)
figure

# %% [markdown]
# ## Where in the image
#
# The error is a sum over the latent's places, so the difference of two classes' errors can be laid over the
# image. Here: the pair of classes that is mistaken most, and one image that was mistaken.

# %%
from gcpl_lab.evaluation.metrics import confusion_matrix
from gcpl_lab.experiments.results import most_confused_pair
from gcpl_lab.gcpl.evidence import evidence_map
from gcpl_lab.views.evidence import plot_error_map

predicted = class_scores(exact.errors, "absolute").argmax(axis=1)
a, b = most_confused_pair(confusion_matrix(class_scores(exact.errors, "absolute"), test.labels))
index = int(np.flatnonzero((test.labels == a) & (predicted == b))[0])
error_map = evidence_map(judge, latents[index], a, b, num_samples=16)
with style.figure_style():
    figure = style.new_figure(9, 4)
    plot_error_map(figure.subplots(1, 2), np.asarray(pictures[index]), error_map.numpy(), names[a], names[b])
f"a {names[a]} that was taken for a {names[b]}"

# %%
figure

# %% [markdown]
# Blue places are evidence for the true class, orange ones for the wrong one. More pairs, with their images:

# %%
from gcpl_lab.views.widgets import PairExplorer

PairExplorer(exact, test.labels, names, pictures)

# %% [markdown]
# ## Probabilities that mean something
#
# The softmax of raw errors is nearly flat: the classes' errors differ in the third digit. A temperature, fitted on
# the *support* images together with one offset a class, stretches them until a stated 80 % is right in about
# 80 % of cases. Neither changes what the denoiser saw.

# %%
from gcpl_lab.evaluation.metrics import expected_calibration_error, log_loss
from gcpl_lab.gcpl.calibration import probabilities
from gcpl_lab.views.evidence import plot_reliability

judged = model.evidence(latents)
raw = probabilities(class_scores(judged.errors, "absolute"), 1.0)
fitted = probabilities(model.scores(judged), model.temperature_)
for name, chances in {"raw": raw, "fitted": fitted}.items():
    surest, loss = np.median(chances.max(axis=1)), log_loss(chances, test.labels)
    error = expected_calibration_error(chances, test.labels)
    print(f"{name:7s} surest class {surest:.2f} (median), log-loss {loss:.2f}, calibration error {error:.2f}")

# %%
with style.figure_style():
    figure = style.new_figure(12, 6)
    for ax, title, chances in zip(figure.subplots(1, 2), ("raw", "fitted"), (raw, fitted), strict=True):
        plot_reliability(ax, chances.max(axis=1), chances.argmax(axis=1) == test.labels, num_bins=5)
        ax.set_title(title)
figure

# %% [markdown]
# The tables of errors are kept for the maps of notebook 07.

# %%
by_name = diffusion.encode_texts([f"a photo of a {name}" for name in names])
before = DiffusionClassifier(diffusion, by_name, timestep_range=model.timestep_range, bfloat16=True).exact(latents, 8)
tensors = {"before": before.errors, "after": judged.errors, "labels": test.labels, "timesteps": judged.timesteps}
tensors = {name: torch.from_numpy(values) for name, values in tensors.items()}
facts = {"class_names": names, "images": [path.name for path in test.images], "temperature": model.temperature_}
saved = course.save_state("05", diffusion, tensors=tensors, facts=facts)
sorted(path.name for path in saved.iterdir())

# %% tags=["sanity"]
low, high = (share * diffusion.num_timesteps for share in model.timestep_range)
inside = (wide.timesteps >= low) & (wide.timesteps < high)
assert gap[:, inside].mean() > 0, "own prompts are no better than others: look at notebook 04"
assert staged.num_evaluations < 0.6 * exact.num_evaluations, "the race saved nothing"
assert runs["staged 4, 16"][1] > runs["exact 16"][1] - 0.1, "the race threw the right classes out"
assert log_loss(fitted, test.labels) < log_loss(raw, test.labels), "the temperature made the probabilities worse"
assert runs["exact 16"][1] > 2 / len(names), "hardly better than guessing"

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1
#
# The mean of the evidence map is a number that you know already. Which one? Check it for the image above (the
# map is made without bfloat16, so compare with a judge that does not use it either).

# %% tags=["solution"]
plain = DiffusionClassifier(diffusion, hidden, timestep_range=model.timestep_range).exact(latents[[index]], 16)
difference = float(plain.errors[0, b].mean() - plain.errors[0, a].mean())
f"mean of the map {float(error_map.mean()):.6f}, difference of the two classes' errors {difference:.6f}"

# %% [markdown]
# ### Exercise 2
#
# A bolder race: keep two classes after a single pair, `to_keep=(2, 1), n_samples=(1, 16)`. In how many images
# is the right class thrown out after the first stage?

# %% tags=["solution"]
bold = judge.staged(latents, to_keep=(2, 1), n_samples=(1, 16))
alive = ~np.isnan(bold.errors).any(axis=2)
out = ~alive[np.arange(len(test)), test.labels]
cost, share = measure(bold)
f"right class out in {out.mean():.0%} of the images; {cost:.0f} evaluations, {share:.0%} right"

# %% [markdown]
# ### Exercise 3
#
# Which classes are helped by the offsets, and which are held back? Compare the predictions with and without them.

# %% tags=["solution"]
with_offsets = np.bincount(model.scores(judged).argmax(axis=1), minlength=len(names))
without = np.bincount((model.scores(judged) - model.offsets_).argmax(axis=1), minlength=len(names))
for name, before_it, after_it in zip(names, without, with_offsets, strict=True):
    print(f"{name:10s} predicted {before_it:2d} times without, {after_it:2d} with; there are 20")

# %% [markdown] tags=["solution"]
# A prompt that denoises the whole family well is predicted too often; its offset corrects that. The offsets come from
# the support images, so they may be used; fitted on test images they would make the result too good.

# %% [markdown]
# ## Check yourself
#
# **1.** Why is a race cheaper without losing much accuracy?
#
# <details><summary>most classes are far off after a few looks; only the close ones need many</summary>Right: the
# expensive pairs are spent where the decision is open.</details>
# <details><summary>it uses a smaller denoiser in the first stage</summary>No: the same one, on fewer pairs.</details>
# <details><summary>it skips the noise levels without evidence</summary>No: its pairs are spread over the same
# range; that would be another saving.</details>
#
# **2.** Raw probabilities of five classes are all about 20 %. What follows?
#
# <details><summary>the classifier guesses</summary>No: the ranking can be right although the differences are
# small.</details>
# <details><summary>the scale of the errors is arbitrary, and a temperature has to be fitted</summary>Right: and
# on images that are not the test images.</details>
