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
# # 03 · One class token, learned through a frozen diffusion model
#
# After this notebook you can say
# - what GCPL trains, and what stays frozen,
# - how a photograph is classified by denoising it,
# - whether five look-alike garments come apart, and by how much, measured and not only seen.
#
# About 2 minutes on two CPU cores. No network is needed.

# %%
# %matplotlib inline
import numpy as np
import torch

import gcpl_lab
from gcpl_lab import FrozenDiffusion, GCPLClassifier, load_fashion

gcpl_lab.__version__

# %% [markdown]
# ## The idea
#
# A diffusion model removes noise from pictures, and it listens to a text while it does so. If the text fits the
# picture, the noise is predicted a little better. So we may turn this around: *find the text that makes a few
# photographs of one class easiest to denoise*. Not the model changes but a few vectors, which stand in the prompt
# where a word would stand:
#
# > a photo of a **[v₁ v₂ v₃ v₄]**
#
# $$L_{GCPL} = E_{x,\epsilon,t}\;\lVert \epsilon - \epsilon_\theta(z_t, t, h_c) \rVert^2$$
#
# (Chattopadhyay et al. 2024, [arXiv 2409.01835](https://arxiv.org/abs/2409.01835).)

# %%
diffusion = FrozenDiffusion.load("tiny")
tops = load_fashion("support")
tops = tops.subset(np.flatnonzero(np.isin(tops.labels, [0, 2, 3, 4, 6])))  # the five kinds of tops
sorted({tops.class_names[label] for label in tops.labels})

# %% [markdown]
# ## One tensor
#
# A photograph becomes a latent of 4 × 8 × 8 numbers; noise is mixed in; the denoiser says which noise it was.

# %%
from gcpl_lab.data.readers import read_image

shirt = read_image(tops.images[np.flatnonzero(tops.labels == 6)[0]])
mean, log_variance = diffusion.encode_moments(diffusion.preprocess([shirt]))
latent = diffusion.scale_latents(mean)
noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
t = torch.tensor([600])
noisy = diffusion.add_noise(latent, noise, t)
latent.shape, float(noisy.std())

# %%
for prompt in ["a photo of a shirt", "a photo of a bag"]:
    predicted = diffusion.predict_noise(noisy, t, diffusion.encode_texts([prompt])).detach()
    print(f"{prompt:20s} error {float((predicted - noise).square().mean()):.4f}")

# %% [markdown]
# The right word makes a small difference on one noise. Averaged over many it is evidence.
#
# ## The loop, in plain sight
#
# Everything is frozen but `prompts.vectors`. The batch of a step depends on the step's number alone.

# %%
from gcpl_lab.methods.gcpl import GCPL, Exemplars, ExemplarSampler
from gcpl_lab.methods.prompts import ClassPrompts

shirts = [read_image(path) for path in tops.images[tops.labels.tolist().index(6) :][:16]]
exemplars = Exemplars.encode(diffusion, diffusion.preprocess(shirts), [0] * len(shirts))
prompts = ClassPrompts(diffusion, ["shirt"], num_vectors=4)
batches = ExemplarSampler(diffusion, exemplars, batch_size=32, timestep_range=diffusion.evidence_range)
objective = GCPL(diffusion, prompts)

# %%
optimizer = torch.optim.AdamW([prompts.vectors], lr=0.01, weight_decay=0.0)
start, losses = prompts.vectors.detach().clone(), []
for step in range(60):
    loss = objective(batches(step))["loss"]
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    losses.append(loss.item())
f"first ten steps {np.mean(losses[:10]):.4f}, last ten {np.mean(losses[-10:]):.4f}"

# %% [markdown]
# That is all of GCPL. Most of the loss is noise that no prompt can explain, so it falls by little; what counts is
# the difference between classes. Which words lie near the learned vectors?

# %%
from gcpl_lab.evaluation.reading import nearest_words

for found in nearest_words(diffusion, prompts.vectors[0], num_words=4):
    words = ", ".join(f"{word} {value:.2f}" for word, value in zip(found.words, found.similarities, strict=True))
    print(f"{words}   (a random vector reaches {found.random_similarity:.2f})")

# %% [markdown]
# ## All five look-alikes, with the library
#
# `GCPLClassifier` is the same loop for all classes together, with cached latents, checkpoints and a temperature.
# `steps` yields a record an update, so that you can watch or stop; `fit` runs it through.

# %%
episode = tops.subset([i for c in (0, 2, 3, 4, 6) for i in np.flatnonzero(tops.labels == c)[:16]])
names = [tops.class_names[label] for label in (0, 2, 3, 4, 6)]
model = GCPLClassifier("tiny", "gcpl", num_steps=120, seed=0, diffusion=diffusion)
for record in model.steps(episode.images, episode.labels, names):
    if record.step % 50 == 0:
        print(f"step {record.step:3d}  loss {record.loss:.3f}  after {record.seconds:.0f} s")

# %% [markdown]
# ## The picture, and the number beside it
#
# Every test photograph is denoised under each class's prompt: before (the names as prompts) and after. Both states
# share one map. A map can flatter, so the separation is measured in the original space and printed under it.

# %%
from gcpl_lab.methods.diffusion_classifier import DiffusionClassifier

test = load_fashion("test")
test = test.subset([i for c in (0, 2, 3, 4, 6) for i in np.flatnonzero(test.labels == c)[:30]])
labels = np.repeat(np.arange(5), 30)
latents = model.encode(test.images)
by_name = diffusion.encode_texts([f"a photo of a {name}" for name in names])
before = DiffusionClassifier(diffusion, by_name, timestep_range=model.timestep_range)
before = before.exact(latents, model.config.num_evidence)
after = model.evidence(latents)

# %%
from gcpl_lab.methods.diffusion_classifier import class_scores

accuracy = {
    "class names": (class_scores(before.errors, model.config.weighting).argmax(1) == labels).mean(),
    "learned tokens": (model.scores(after).argmax(1) == labels).mean(),
}
{name: f"{value:.0%}" for name, value in accuracy.items()}

# %%
from gcpl_lab.evaluation.separation import measure_separation, profile_points
from gcpl_lab.views.plots import plot_before_after
from gcpl_lab.views.projection import project

states = {"Before: names": profile_points(before.errors), "After: learned": profile_points(after.errors)}
measured = {name: measure_separation(points, labels) for name, points in states.items()}
plot_before_after(project(states, method="pca"), labels, names, separations=measured)

# %%
gain = accuracy["learned tokens"] - accuracy["class names"]
assert accuracy["learned tokens"] > 2 / len(names), "hardly better than guessing: look at the loss above"
f"learning changed the accuracy by {100 * gain:+.0f} points on {len(labels)} photographs"

# %% [markdown]
# ## Exercises
#
# 1. Learn from 4 photographs a class instead of 16. How much accuracy is lost?
# 2. Start from `initial="random"` instead of the class names. Are more steps needed?
# 3. Train and classify in the lower half of the noise schedule, `timestep_range=(0.0, 0.5)`. Why is it worse?
#
# ## Check yourself
#
# - What changes during training: the denoiser, the text encoder, or the vectors in the prompt?
# - Why is every class shown the same noise when a photograph is classified?
