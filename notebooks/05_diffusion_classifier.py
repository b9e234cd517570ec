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
# **The question:** where does the evidence for a class come from, and how little of it is enough?
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
from IPython.display import Markdown

from gcpl_lab import FrozenDiffusion, GCPLClassifier, load_fashion
from gcpl_lab.data.episodes import draw_test
from gcpl_lab.data.readers import read_images
from gcpl_lab.evaluation.trust import share_with_interval
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
# The prompts are GCPL's: notebook 04 could not establish that another objective is better on new images, and GCPL's
# training is the cheapest.

# %%
diffusion = FrozenDiffusion.load(preset, device=default_device())
earlier = course.load_state("04", diffusion)  # absent? run notebook 04, or: gcpl-lab catch-up 04
model = GCPLClassifier.load(earlier.folder / "gcpl", diffusion)
names = list(model.class_names_)
test = load_fashion("test").only(names)
test = test.subset(draw_test(test, per_class=20))
images, latents = read_images(test.images), model.encode(test.images)
tuple(latents.shape)

# %% [markdown]
# ## One tensor
#
# Sixteen noise levels over the *whole* schedule, every class on each of them, for all test images at once. The
# table of the first image, relative to the mean over the classes (below 1: this prompt denoises better than the
# others do), under its true class:

# %%
from gcpl_lab.gcpl.classifier import DiffusionClassifier

with torch.no_grad():
    hidden = diffusion.encode_prompts(*model.prompts_())
wide = DiffusionClassifier(diffusion, hidden, timestep_range=(0.0, 1.0), bfloat16=True).exact(latents, 16)
table = wide.errors[0] / wide.errors[0].mean(axis=0)
print(f"{names[test.labels[0]]}\n{'t':10s}", *[f"{t:5d}" for t in wide.timesteps[::3]])
for name, row in zip(names, table, strict=True):
    print(f"{name:10s}", *[f"{value:5.2f}" for value in row[::3]])

# %% [markdown]
# ## Where the evidence is
#
# How much better does the own prompt denoise than the others, at each noise level, averaged over all test images?

# %%
from gcpl_lab.views.evidence import plot_timestep_evidence

own = wide.errors[np.arange(len(test)), test.labels]
others = (wide.errors.sum(axis=1) - own) / (len(names) - 1)
gap = (others - own) / wide.errors.mean(axis=1)
dealt = np.random.default_rng(0).permutation(test.labels)  # the control: labels shuffled among the images
wrong = wide.errors[np.arange(len(test)), dealt]
control = ((wide.errors.sum(axis=1) - wrong) / (len(names) - 1) - wrong) / wide.errors.mean(axis=1)
with style.figure_style():
    figure = style.new_figure(10, 4.5)
    plot_timestep_evidence(figure.subplots(), wide.timesteps, {"true labels": gap, "labels shuffled": control})
figure

# %% [markdown]
# **What you see.** With little noise the image is visible and the prompt matters little; the evidence lies at large t,
# and falls again at the very end, where almost only noise is left. With labels shuffled among the images there is none.
#
# **What it does not say.** Which classes it tells apart there: the mean is over easy and hard ones.
#
# The tiny preset trains and classifies at t = 500 to 900 (`diffusion.evidence_range`); larger t would serve as well.
#
# ## The staged classifier
#
# Most classes can be ruled out after a few samples. The staged classifier evaluates every class on four pairs (t, ε),
# keeps the best two, and evaluates only these on the other twelve (a *race*). Choose an image and move through the
# samples. Shown first is the image whose decision was the closest of those that were decided right.

# %%
from gcpl_lab.views.widgets import ClassifierRace

judge = DiffusionClassifier(diffusion, hidden, timestep_range=model.timestep_range, bfloat16=True)
exact = judge.exact(latents, 16)
staged = judge.staged(latents, to_keep=(2, 1), n_samples=(4, 16))
final = staged.errors.mean(axis=2)  # NaN where a class is out
final = np.where(np.isnan(final), np.inf, final)
lead = np.partition(final, 1, axis=1)[:, 1] - final.min(1)
closest = int(np.where(final.argmin(1) == test.labels, lead, np.inf).argmin())
race = ClassifierRace(staged, names, images=images, labels=test.labels, weighting="absolute")
race.image.value = closest
race

# %% [markdown]
# **What you see.** The first samples swing widely. After four of them three classes are out (dashed); the two that are
# left change places or run close together until the end.
#
# **What it does not say.** How often the *true* class is thrown out after four samples: for 13 of the 100 images.
# Exercise 2 counts it after one.
#
# ## Cost against accuracy
#
# Cost is counted in denoiser evaluations per image (classes × pairs for the exact classifier): seconds depend on
# the machine, evaluations do not.

# %%
answers = ["about a tenth", "about half", "nearly all"]
first = course.guess(
    "05.1", "which share of the 16 pairs' evaluations does the race need for the same accuracy?", answers
)
first

# %%
from gcpl_lab.evaluation.metrics import accuracy
from gcpl_lab.gcpl.calibration import class_scores


def measure(evidence, weighting="absolute"):
    share = accuracy(class_scores(evidence.errors, weighting), test.labels)
    return evidence.num_evaluations / len(test), share


runs = {f"exact {count}": measure(judge.exact(latents, count)) for count in (1, 2, 4, 8)}
runs |= {"exact 16": measure(exact), "staged 4, 16": measure(staged)}
for name, (cost, share) in runs.items():
    print(f"{name:13s} {cost:5.1f} evaluations per image   {share:.0%}")
spent = runs["staged 4, 16"][0] / runs["exact 16"][0]
print(first.reveal(answers[int(np.searchsorted((0.25, 0.75), spent))]))

# %%
with style.figure_style():
    figure = style.new_figure(9, 5)
    ax = figure.subplots()
    for name, (cost, share) in runs.items():
        color, marker, up = ("#D55E00", "D", 12) if name.startswith("staged") else ("#0072B2", "o", -26)
        low, high = share_with_interval(round(share * len(test)), len(test))[1:]
        ax.errorbar(cost, share, [[share - low], [high - share]], color=color, marker=marker, markersize=9, capsize=4)
        side = "left" if up > 0 else "right"
        ax.annotate(name, (cost, share), (8 if up > 0 else -8, up), textcoords="offset points", color=color, ha=side)
    ax.set(xscale="log", xlim=(3, 140), ylim=(0, 1), xlabel="denoiser evaluations per image", ylabel="accuracy")
    ax.set_xticks([5, 10, 20, 40, 80], ["5", "10", "20", "40", "80"])
    ax.set_xticks([], minor=True)
    ax.axhline(1 / len(names), color=style.GREY, linestyle=":", linewidth=1.5)
figure

# %% [markdown]
# **What you see.** Accuracy grows with the cost, most at the beginning (bars: 95 % intervals; dotted: chance). The race
# reaches the level of sixteen pairs for about half of their evaluations, and eight plain pairs do about as well for
# less.
#
# **What it does not say.** That the race gains anything here: 100 images leave ten points to each side of every mark.
#
# ## Where in the image
#
# The error is a sum over the latent's places, so the difference of two classes' errors can be laid over the
# image. Here: the pair of classes that is mistaken most, and one image that was mistaken.

# %%
from gcpl_lab.evaluation.metrics import confusion_matrix
from gcpl_lab.experiments.figures import most_confused_pair
from gcpl_lab.gcpl.evidence import evidence_map
from gcpl_lab.views.evidence import plot_error_map

predicted = class_scores(exact.errors, "absolute").argmax(axis=1)
a, b = most_confused_pair(confusion_matrix(class_scores(exact.errors, "absolute"), test.labels))
index = int(np.flatnonzero((test.labels == a) & (predicted == b))[0])
error_map = evidence_map(judge, latents[index], a, b, num_samples=16)
with style.figure_style():
    figure = style.new_figure(9, 4)
    plot_error_map(figure.subplots(1, 2), np.asarray(images[index]), error_map.numpy(), names[a], names[b])
print(f"true class: {names[a]}; taken for: {names[b]}")
figure

# %% [markdown]
# **What you see.** Blue places are evidence for the true class, orange ones for the wrong one; most of the image speaks
# for neither.
#
# **What it does not say.** Why. The map has the 8 × 8 places of the latent, and a handful of noises decide its colours.
#
# More pairs, with their images:

# %%
from gcpl_lab.views.widgets import PairExplorer

PairExplorer(exact, test.labels, names, images)

# %% [markdown]
# **What you see.** Which images of the two classes were mistaken, and at which timesteps each class's own prompt is
# ahead: curves above zero.
#
# **What it does not say.** That a peak belongs to its timestep: every t has one noise, the same for all images, which
# the bands do not cover; another seed moves the peaks. Nor whether a curve below zero is a bad prompt or a good rival.
#
# ## Probabilities that mean something
#
# The softmax of raw errors is nearly flat: errors are near 0.04, best and worst differ by 0.01, and exp of that is near
# 1. A temperature, fitted on the *support* images together with one offset a class, stretches them until a stated 80 %
# is right in about 80 % of cases. Neither changes what the denoiser saw.

# %%
from gcpl_lab.evaluation.metrics import NUM_BINS, expected_calibration_error, log_loss
from gcpl_lab.gcpl.calibration import probabilities
from gcpl_lab.views.evidence import plot_reliability

judged = model.evidence(latents)
raw = probabilities(class_scores(judged.errors, "absolute"), 1.0)
fitted = probabilities(model.scores(judged), model.temperature_)
for name, chances in {"raw": raw, "fitted": fitted}.items():
    surest, loss = np.median(chances.max(axis=1)), log_loss(chances, test.labels)
    error = expected_calibration_error(chances, test.labels)
    print(f"{name:7s} surest class {surest:.2f} (median), log-loss {loss:.2f}, calibration error {error:.3f}")

# %%
with style.figure_style():
    figure = style.new_figure(12, 6)
    for ax, title, chances in zip(figure.subplots(1, 2), ("raw", "fitted"), (raw, fitted), strict=True):
        plot_reliability(ax, chances.max(axis=1), chances.argmax(axis=1) == test.labels, num_bins=NUM_BINS)
        ax.set_title(title)
figure

# %% [markdown]
# **What you see.** Raw probabilities all sit near 20 %, far below how often they are right. Fitted ones spread out
# around the diagonal, up to thirty points off; the calibration error is the one printed above.
#
# **What it does not say.** Whether each point is off by chance: most hold about ten images.
#
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
# ### Exercise 1 · easy · 5 minutes
#
# From errors (image, class, sample) to probabilities: mean over samples, then a softmax of −τ times it. Write it, with
# numbers that do not overflow for τ = 10,000.
#
# <details><summary>Hint</summary>Take the smallest mean of each image away before the exponential.</details>
#
# **Expected:** rows that sum to 1, the smallest error with the largest probability.


# %% tags=["exercise"]
def to_probabilities(errors, tau):
    return errors.mean(axis=2) / errors.mean(axis=2).sum(axis=1, keepdims=True)  # yours instead


# %% tags=["check"]
def check_probabilities(of):
    found = np.asarray(of(exact.errors, 10_000.0))
    if found.shape != exact.errors.shape[:2] or not np.allclose(found.sum(1), 1):
        return "still wrong: not one row of probabilities an image"
    if not np.array_equal(found.argmax(1), exact.errors.mean(2).argmin(1)):
        return "still wrong: the class with the smallest error should be the most probable"
    expected = probabilities(-exact.errors.mean(2).astype(float), 10_000.0)
    return "right" if np.allclose(found, expected, atol=1e-3) else "still wrong: no softmax of −τ · error"


check_probabilities(to_probabilities)


# %% tags=["solution"]
def to_probabilities(errors, tau):
    mean = errors.mean(axis=2).astype(float)
    powers = np.exp(-tau * (mean - mean.min(axis=1, keepdims=True)))
    return powers / powers.sum(axis=1, keepdims=True)


check_probabilities(to_probabilities)

# %% [markdown]
# ### Exercise 2 · medium · 8 minutes
#
# A bolder race: keep two classes after a single pair, `to_keep=(2, 1), n_samples=(1, 16)`. In how many images
# is the right class thrown out after the first stage?
#
# <details><summary>Hint</summary>Classes that were dropped have NaN among their errors.</details>
#
# **Expected:** in 30 to 60 % of the images; less than half the cost of sixteen pairs, and clearly fewer right.

# %% tags=["exercise"]
bold, thrown_out = None, 0.0  # the evidence of the race, and the share of images whose class was thrown out


# %% tags=["check"]
def check_race(evidence, share_out):
    if evidence is None:
        return "still wrong: no race yet"
    alive = ~np.isnan(evidence.errors).any(axis=2)
    if not (alive.sum(axis=1) == 2).all():
        return f"still wrong: {alive.sum(axis=1).mean():.1f} classes stay after the first stage, two should"
    cost, share = measure(evidence)
    true_stays = alive[np.arange(len(test)), test.labels].mean()
    word = "right" if abs(1 - true_stays - share_out) < 1e-6 else "still wrong, count them anew"
    return f"{word}: {cost:.0f} evaluations, {share:.0%} of the answers right"


check_race(bold, thrown_out)

# %% tags=["solution"]
bold = judge.staged(latents, to_keep=(2, 1), n_samples=(1, 16))
stays = ~np.isnan(bold.errors).any(axis=2)[np.arange(len(test)), test.labels]
thrown_out = 1 - stays.mean()
print(f"right class out in {thrown_out:.0%} of the images")
check_race(bold, thrown_out)

# %% [markdown]
# ### Exercise 3 · medium · 8 minutes
#
# Which classes are helped by the offsets, and which are held back? Compare the predictions with and without them.
#
# <details><summary>Hint</summary><code>model.scores(judged)</code> holds the offsets; <code>model.offsets_</code> has
# one a class.</details>
#
# **Expected:** pullover is predicted more often and dress less, by five or more each, both closer to 20; coat and shirt
# move away from it.

# %% tags=["exercise"]
with_offsets = np.bincount(model.scores(judged).argmax(axis=1), minlength=len(names))
without = with_offsets  # yours instead: how often each class is predicted without offsets


# %% tags=["check"]
def check_offsets(counts):
    if np.array_equal(counts, with_offsets):
        return "still wrong: these are the counts with offsets"
    if sum(counts) != len(test) or abs(counts - 20).sum() < abs(with_offsets - 20).sum():
        return "still wrong: every image is predicted once, and offsets bring the counts nearer to 20"
    pairs = zip(names, counts, with_offsets, strict=True)
    return "right: " + ", ".join(f"{name} {before_it} → {after_it}" for name, before_it, after_it in pairs)


check_offsets(without)

# %% tags=["solution"]
without = np.bincount((model.scores(judged) - model.offsets_).argmax(axis=1), minlength=len(names))
check_offsets(without)

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

# %% [markdown]
# ## What we found
#
# Where does the evidence come from, and how little of it is enough?

# %% tags=["found"]
strongest = int(wide.timesteps[gap.mean(0).argmax()])
errors_of = {n: expected_calibration_error(c, test.labels) for n, c in {"raw": raw, "fitted": fitted}.items()}
Markdown(
    f"""
- The own prompt is ahead by {100 * gap.mean(0).max():.0f} % of the error at t = {strongest}, and by
  {100 * gap.mean(0)[:4].mean():.1f} % in the lowest quarter of the schedule.
- {runs["exact 16"][0]:.0f} evaluations per image: {runs["exact 16"][1]:.0%} right; the race with
  **{runs["staged 4, 16"][0]:.0f}**: {runs["staged 4, 16"][1]:.0%}; {runs["exact 1"][0]:.0f} evaluations:
  {runs["exact 1"][1]:.0%}.
- Calibration error: {errors_of["raw"]:.2f} raw, **{errors_of["fitted"]:.2f}** with temperature and offsets, which were
  fitted on support images.
"""
)
