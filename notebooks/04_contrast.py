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
# # 04 · Contrast: objectives that separate look-alikes
#
# After this notebook you can say
# - what CoMPLe's contrast rewards, by a closed form and by a measurement beside it,
# - what the discriminative objective trains instead, and why errors are averaged before the softmax,
# - how far look-alike prompts move apart, step by step, and whether that helps on new images.
#
# About 2 minutes on two CPU cores. No network is needed.

# %%
# %matplotlib inline
import numpy as np
import torch

from gcpl_lab import FrozenDiffusion, GCPLClassifier, draw_episode, load_fashion
from gcpl_lab.data.readers import read_images
from gcpl_lab.training.device import default_device
from gcpl_lab.views import style
from gcpl_lab.workshop import course

preset = "tiny"  # the same cells run with "sd-1.4" on a GPU

# %% [markdown]
# ## The idea
#
# GCPL trains every class alone: nothing penalises a shirt prompt that also denoises coats well. CoMPLe adds a contrast.
# In a batch of samples of different classes, each with its own noise, the prediction should be near its own noise and
# far from the others':
#
# $$L_{CoMPLe} = \frac1B\sum_j \lVert\epsilon_j - \epsilon_\theta(z_t^j, t, h_{c_j})\rVert^2
# - \lambda\,\frac{1}{B(B-1)}\sum_{i\ne j}\lVert\epsilon_i - \epsilon_\theta(z_t^j, t, h_{c_j})\rVert^2$$
#
# It costs no further forward pass. Before we train it, we ask what it rewards.
#
# We start from what notebook 03 left: class prompts learned with GCPL, and the same sixteen images a class.

# %%
diffusion = FrozenDiffusion.load(preset, device=default_device())
earlier = course.load_state("03", diffusion)  # absent? run notebook 03, or: gcpl-lab catch-up 03
gcpl = GCPLClassifier.load(earlier.folder / "gcpl", diffusion)
names = earlier.facts["class_names"]
tops = load_fashion("support").only(names)
episode = tops.subset(draw_episode(tops, shots=16, seed=0))
names

# %% [markdown]
# ## One tensor
#
# One batch holds each class once. Its B × B distances have the own noises on the diagonal, and off it the distances
# to noises of *other* samples: these are independent of everything that this prediction depends on.

# %%
from gcpl_lab.gcpl.objectives import expected_contrast, pairwise_noise_distances
from gcpl_lab.gcpl.sampling import Exemplars, ExemplarSampler

exemplars = Exemplars.encode(diffusion, diffusion.preprocess(read_images(episode.images)), episode.labels)
batches = ExemplarSampler(diffusion, exemplars, batch_size=len(names), timestep_range=gcpl.timestep_range)
batch = batches(0)
with torch.no_grad():
    noisy = diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
    hidden = diffusion.encode_prompts(*gcpl.prompts_(batch.labels))
    predicted = diffusion.predict_noise(noisy, batch.timesteps, hidden)
distances = pairwise_noise_distances(predicted, batch.noise).cpu()
tuple(distances.shape), float(distances.diagonal().mean()), float(distances[~torch.eye(len(names)).bool()].mean())

# %% [markdown]
# ## What the contrast rewards
#
# Let ε be independent of the prediction p. Its mean is zero and each of its numbers has variance 1, so per number
#
# $$E\lVert\epsilon_i - p\rVert^2 = 1 + \lVert p\rVert^2 .$$
#
# The contrast is, in expectation, a constant plus **the squared norm of the prediction**. No class appears in it. Is
# that so here? For many batches we lay the measured contrast beside 1 + mean(p²).

# %%
measured, foreseen = [], []
for step in range(40):
    batch = batches(step)
    with torch.no_grad():
        noisy = diffusion.add_noise(batch.latents, batch.noise, batch.timesteps)
        hidden = diffusion.encode_prompts(*gcpl.prompts_(batch.labels))
        predicted = diffusion.predict_noise(noisy, batch.timesteps, hidden)
    distances = pairwise_noise_distances(predicted, batch.noise)
    measured.append(float((distances.sum() - distances.trace()) / (len(names) * (len(names) - 1))))
    foreseen.append(float(expected_contrast(predicted)))
f"contrast: measured {np.mean(measured):.3f}, foreseen {np.mean(foreseen):.3f}"

# %% [markdown]
# So the minimiser is known without training: minimise ‖ε − p‖² − λ‖p‖² over p for a given input, and
# p = E[ε | input] / (1 − λ): GCPL's best prediction, **scaled up**. A longer vector in the same direction does not
# separate a shirt from a coat.
#
# ## Measured in training
#
# The same start, batches and noises as GCPL's run of notebook 03; only λ differs (0.1).

# %%
from gcpl_lab.views.widgets import TrainingMonitor

comple = GCPLClassifier(preset, "comple", num_steps=120, seed=0, diffusion=diffusion)
monitor = TrainingMonitor(comple.learn(exemplars, names), num_steps=120, title="CoMPLe")
monitor

# %%
from gcpl_lab.views.evidence import plot_norms

monitor.wait()
norms = {
    "GCPL": earlier.tensors["prediction_norm"].sqrt().numpy(),
    "CoMPLe": np.sqrt([record.values["prediction_norm"] for record in comple.history_]),
}
limit = float(norms["GCPL"][-40:].mean()) / (1 - comple.config.contrast_weight)
with style.figure_style():
    figure = style.new_figure(10, 5)
    curves = {name: (np.arange(1, len(norm) + 1), norm) for name, norm in norms.items()}
    plot_norms(figure.subplots(), curves, {"CoMPLe": limit})
figure

# %% [markdown]
# The dotted line is where a prediction that could be anything would end up. A few prompt vectors cannot make every
# prediction longer, so the curve stays below it; that it lies above GCPL's on the very same batches is the contrast.
#
# ## The discriminative objective
#
# What the classifier ranks can be trained directly. One image, S pairs (t, ε), all candidate prompts on the same
# pairs, d the denoising error:
#
# $$L = CE\Big(\mathrm{softmax}_c\big(-\tau\,\tfrac1S\sum_{t,\epsilon} d_c/\bar d\,\big),\,y\Big) + \beta\,d_y/\bar d$$
#
# Two details decide: errors are averaged over several (t, ε) *before* the softmax, as in the decision itself (a single
# pair is mostly noise), and they are relative, so that no noise level outweighs the others. Training starts from GCPL's
# vectors.

# %%
start = gcpl.prompts_.vectors.detach()
settings = {"discriminative_steps": 20, "num_rivals": 2}
discriminative = GCPLClassifier(preset, "discriminative", seed=0, diffusion=diffusion, **settings)
discriminative.journey_every = 2
monitor = TrainingMonitor(
    discriminative.learn(exemplars, names, warm_start=start), num_steps=20, title="Discriminative prompts"
)
monitor

# %%
monitor.wait()
batchwise = [record.values["accuracy"] for record in monitor.history]
f"right on a batch's images: first five updates {np.mean(batchwise[:5]):.0%}, last {np.mean(batchwise[-5:]):.0%}"

# %% [markdown]
# ## Look-alikes, step by step
#
# The class tokens from their names through GCPL to the discriminative end, on one map. Move the slider (arrow keys
# work); the numbers under it are not from the map.

# %%
from gcpl_lab.views.widgets import JourneySlider

path = dict(zip(earlier.tensors["steps"].tolist(), earlier.tensors["journey"], strict=True))
last = max(path)
path |= {last + step: vectors for step, vectors in discriminative.states_.items() if step}
JourneySlider(path, names)

# %% [markdown]
# The token is only the input of the text encoder. The denoiser is conditioned on the encoder's output: how far apart
# are the class prompts there, on average, after each step?

# %%
from copy import deepcopy

from gcpl_lab.views.plots import plot_losses

reader, apart = deepcopy(gcpl.prompts_), []
for step in sorted(path):
    with torch.no_grad():
        reader.vectors.copy_(path[step])
        heard = diffusion.encode_prompts(*reader()).float().flatten(1)
    apart.append(float(torch.pdist(heard).mean()))
apart = np.array(apart)

# %%
with style.figure_style():
    figure = style.new_figure(10, 4.5)
    plot_losses(figure.subplots(), {"prompts": (np.array(sorted(path)), apart / apart[0])}, "distance (start = 1)")
figure

# %% [markdown]
# ## Does it help on images that were never seen?
#
# The same test images, timesteps and noises for all three. Look at the accuracies with the separation beside
# them, and mind that 150 images leave an interval of about ±7 points on each.

# %%
from gcpl_lab.data.episodes import draw_test
from gcpl_lab.evaluation.metrics import accuracy
from gcpl_lab.evaluation.separation import measure_separation, profile_points

test = load_fashion("test").only(names)
test = test.subset(draw_test(test, per_class=30))
latents, models = gcpl.encode(test.images), {"GCPL": gcpl, "CoMPLe": comple, "Discriminative": discriminative}
evidence = {name: model.evidence(latents) for name, model in models.items()}
states = {name: profile_points(found.errors) for name, found in evidence.items()}
separations = {name: measure_separation(points, test.labels) for name, points in states.items()}
right = {name: accuracy(model.scores(evidence[name]), test.labels) for name, model in models.items()}
for name in models:
    print(f"{name:15s} accuracy {right[name]:.0%}   Fisher ratio {separations[name].fisher_ratio:.3f}")

# %%
from gcpl_lab.views.plots import plot_before_after
from gcpl_lab.views.projection import project

chosen = {name: states[name] for name in ("GCPL", "Discriminative")}
plot_before_after(project(chosen, method="pca"), test.labels, names, separations=separations)

# %% [markdown]
# All three are kept for the notebooks that follow.

# %%
kept = {"gcpl": gcpl, "comple": comple, "discriminative": discriminative}
journey = {"steps": torch.tensor(sorted(path)), "journey": torch.stack([path[step] for step in sorted(path)])}
facts = {"class_names": names, "accuracy": right}
saved = course.save_state("04", diffusion, models=kept, tensors=journey, facts=facts)
sorted(path.name for path in saved.iterdir())

# %% tags=["sanity"]
assert abs(np.mean(measured) - np.mean(foreseen)) < 0.05, "the contrast is not what the closed form says"
growth = norms["CoMPLe"][-40:].mean() / norms["GCPL"][-40:].mean()
print(f"CoMPLe's predictions are {growth:.3f} times as long as GCPL's; the limit is {1 / 0.9:.3f}")
assert 1 < growth < 1.05 / 0.9, "the contrast did not raise the norm, or by more than it can"
assert apart[-1] > apart[0], "the class prompts did not move apart: look at the journey"
assert min(right.values()) > 2 / len(names), "hardly better than guessing: look at the loss curves"

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1
#
# Take one prediction p and its noise ε, and find by trying which factor a makes ‖ε − a·p‖² − λ‖a·p‖² smallest, with
# λ = 0.1 and with λ = 0. Is their ratio 1 / (1 − λ)?

# %% tags=["solution"]
factors = np.linspace(0.5, 1.6, 1101)
noise = batch.noise
best = {
    share: factors[
        np.argmin(
            [float((noise - a * predicted).square().mean() - share * (a * predicted).square().mean()) for a in factors]
        )
    ]
    for share in (0.0, 0.1)
}
f"best factors {best}, ratio {best[0.1] / best[0.0]:.3f}, foreseen {1 / 0.9:.3f}"

# %% [markdown]
# ### Exercise 2
#
# Shuffle the classes: give the contrast noises of samples of the *same* class instead of other classes. Does its
# mean change?

# %% tags=["solution"]
same = exemplars.subset(np.flatnonzero(episode.labels == 0))
of_one_class = ExemplarSampler(diffusion, same, batch_size=len(names), timestep_range=gcpl.timestep_range)
contrasts = []
for step in range(40):
    part = of_one_class(step)
    with torch.no_grad():
        noisy = diffusion.add_noise(part.latents, part.noise, part.timesteps)
        hidden = diffusion.encode_prompts(*gcpl.prompts_(part.labels))
        distances = pairwise_noise_distances(diffusion.predict_noise(noisy, part.timesteps, hidden), part.noise)
    contrasts.append(float((distances.sum() - distances.trace()) / (len(names) * (len(names) - 1))))
f"other classes {np.mean(measured):.3f}, one class {np.mean(contrasts):.3f}"

# %% [markdown] tags=["solution"]
# It hardly does: the noises do not depend on the class. The remaining difference comes from the norm of the predictions
# of this one class.

# %% [markdown]
# ### Exercise 3
#
# Average fewer pairs before the softmax: how sure is the ranking of one image after 1, 2, 4 and 8 pairs (t, ε)?
# Use `evidence["GCPL"].errors` (image, class, pair).

# %% tags=["solution"]
from gcpl_lab.gcpl.calibration import class_scores

errors = evidence["GCPL"].errors
for count in (1, 2, 4, 8):
    groups = [errors[:, :, first :: 8 // count] for first in range(8 // count)]
    shares = [accuracy(class_scores(group, "relative"), test.labels) for group in groups]
    print(f"{count} pairs: {np.mean(shares):.0%} right on average")

# %% [markdown] tags=["solution"]
# A ranking by one pair is often wrong because of the noise alone. A softmax over it would train the prompts to
# explain noise; that is why the mean comes first.

# %% [markdown]
# ## Check yourself
#
# **1.** What does CoMPLe's second term reward in expectation?
#
# <details><summary>predictions that differ between classes</summary>No: the other samples' noises know nothing of
# classes; exercise 2 takes the classes away and gets the same contrast.</details>
# <details><summary>predictions of larger norm</summary>Right: for an independent noise the distance is 1 plus the
# squared norm.</details>
# <details><summary>nothing: it is a constant</summary>Half of it is a constant, but the squared norm is not.</details>
#
# **2.** The discriminative objective separates its sixteen images a class perfectly. What do you know?
#
# <details><summary>that it will separate new images</summary>No: a perfect fit of few is easy.</details>
# <details><summary>only that it has fitted them; measure on images it never saw</summary>Right: the cell with the
# test images is the one that counts.</details>
