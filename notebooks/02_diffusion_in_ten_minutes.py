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
# # 02 · Diffusion in ten minutes
#
# After this notebook you can say
# - how an image is mixed with noise, and what the denoiser predicts,
# - what a prompt changes in an image that is generated, and in an error that is measured,
# - why that error can tell classes apart.
#
# About 0.5 minutes on two CPU cores. No network is needed.

# %%
# %matplotlib inline
import numpy as np
import torch

from gcpl_lab import FrozenDiffusion, load_fashion
from gcpl_lab.data.readers import read_image, read_images
from gcpl_lab.training.device import default_device
from gcpl_lab.views import style

preset = "tiny"  # the same cells run with "sd-1.4" on a GPU
diffusion = FrozenDiffusion.load(preset, device=default_device())

# %% [markdown]
# ## The idea
#
# Take an image, add noise to it, a little or a lot, and train a network to predict that noise. A network that can do
# this for every amount of noise can start from noise alone and remove it step by step until an image is left. A text
# that it gets as a second input says which image.
#
# Adding the noise is one line. t is the amount, from 0 (the image) to T (noise alone):
#
# $$z_t = \sqrt{\bar\alpha_t}\;z_0 + \sqrt{1-\bar\alpha_t}\;\epsilon, \qquad \epsilon \sim N(0, 1)$$
#
# and the network is asked for the noise: $\epsilon_\theta(z_t, t, h)$, h being the encoded text.
#
# ## One tensor
#
# z₀ is not the image itself but its *latent*: an autoencoder makes it smaller, and decodes it again.

# %%
test = load_fashion("test")
picture = read_image(test.images[np.flatnonzero(test.labels == test.class_names.index("ankle boot"))[0]])
mean, _ = diffusion.encode_moments(diffusion.preprocess([picture]))
latent = diffusion.scale_latents(mean)
back = diffusion.decode(latent)[0]
tuple(diffusion.preprocess([picture]).shape), "becomes", tuple(latent.shape)

# %% [markdown]
# ## More and more noise
#
# The same latent and the same noise at several t, decoded to pictures.

# %%
from gcpl_lab.views.evidence import draw_denoising

noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
shares = (0.0, 0.2, 0.4, 0.6, 0.8, 0.99)
timesteps = torch.tensor([int(share * diffusion.num_timesteps) for share in shares])
noisy = diffusion.add_noise(latent.expand(len(shares), -1, -1, -1), noise.expand(len(shares), -1, -1, -1), timesteps)
with style.figure_style():
    pictures = [np.asarray(image) for image in diffusion.decode(noisy)]
    figure = draw_denoising([(f"t = {t}", image) for t, image in zip(timesteps.tolist(), pictures, strict=True)])
figure

# %% [markdown]
# ## What the denoiser predicts
#
# From the noise the image follows: solve the equation above for z₀, and insert the *predicted* noise. The slider
# changes t (arrow keys work); change the text and see from which t on it matters.

# %%
from gcpl_lab.views.widgets import NoiseSlider

NoiseSlider(diffusion, picture, prompts=("a photo of a boot", "a photo of a bag"), timestep=int(timesteps[3]))

# %% [markdown]
# ## What a prompt changes: generated images
#
# Each column starts from the same noise; only the text differs.

# %%
from gcpl_lab.views.evidence import plot_sample_grid

words = ["trousers", "dress", "sneaker", "bag"]
prompts = [f"a photo of a {word}" for word in words for _ in range(6)]
drawn = []
for row in range(len(words)):  # one call a row, so that equal columns start from equal noise
    texts = diffusion.encode_texts(prompts[6 * row : 6 * row + 6])
    drawn.append([np.asarray(image) for image in diffusion.generate(texts, num_steps=20, seed=0)])
plot_sample_grid([(word, images) for word, images in zip(words, drawn, strict=True)])

# %% [markdown]
# ## What a prompt changes: errors
#
# Now with given images. Real images of the same four classes, noise added, and the error of the prediction under each
# of the four texts, on the same noise. Does the right text have the smallest error?

# %%
from gcpl_lab.gcpl.classifier import DiffusionClassifier

part = test.only(words)
part = part.subset([i for c in range(4) for i in np.flatnonzero(part.labels == c)[:10]])
moments = diffusion.encode_moments(diffusion.preprocess(read_images(part.images)))
texts = diffusion.encode_texts([f"a photo of a {word}" for word in words])
judge = DiffusionClassifier(diffusion, texts, bfloat16=True)
evidence = judge.exact(diffusion.scale_latents(moments[0]), num_samples=12)
evidence.errors.shape

# %%
from gcpl_lab.views.plots import plot_losses

right = evidence.errors[np.arange(len(part)), part.labels]
wrong = (evidence.errors.sum(axis=1) - right) / (len(words) - 1)
curves = {"right text": (evidence.timesteps, right.mean(0)), "other texts": (evidence.timesteps, wrong.mean(0))}
with style.figure_style():
    figure = style.new_figure(10, 4.5)
    ax = figure.subplots()
    ax.set_yscale("log")
    plot_losses(ax, curves, "mean squared error of the noise").set_xlabel("timestep t")
figure

# %% [markdown]
# With little noise the error is large: weak noise is hard to predict, and the text does not help. With much noise the
# input is nearly all noise, the error is small, and the right text makes it smaller. A classifier follows: choose the
# text with the smallest error. Notebook 03 *learns* the text.

# %% tags=["sanity"]
gap = (wrong - right).mean(axis=0)
share = (evidence.errors.mean(axis=2).argmin(axis=1) == part.labels).mean()
print(f"smallest error under the right text: {share:.0%} of {len(part)} images")
assert right.mean(0)[0] > right.mean(0)[-1], "faint noise should be harder to find than strong noise"
assert gap[len(gap) // 2 :].mean() > 0, "in strong noise the right text should help"
assert share > 0.5, "four easy classes should be told apart: are the weights whole?"
assert not np.array_equal(drawn[0][0], drawn[3][0]), "other texts should draw other pictures"

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1
#
# Check the mixing: how large is the variance of z_t over many noises, at 0.6 T? The picture's share of z_t is
# `diffusion.scheduler.alphas_cumprod[t]`.

# %% tags=["solution"]
many = torch.randn((2000, *latent.shape[1:]), generator=torch.Generator().manual_seed(1))
t = torch.full((2000,), int(0.6 * diffusion.num_timesteps))
mixed = diffusion.add_noise(latent.expand(2000, -1, -1, -1), many, t)
kept = float(diffusion.scheduler.alphas_cumprod[t[0]])  # ᾱ: the picture's share
f"variance over noises {float(mixed.var(0).mean()):.3f}, the noise's share 1 − ᾱ = {1 - kept:.3f}"

# %% [markdown]
# ### Exercise 2
#
# Draw with `guidance=1.0` (off), 3 and 8. What does guidance do?

# %% tags=["solution"]
texts = diffusion.encode_texts(["a photo of a dress"] * 6)
rows = [
    (f"guidance {value:g}", [np.asarray(p) for p in diffusion.generate(texts, num_steps=20, guidance=value, seed=0)])
    for value in (1.0, 3.0, 8.0)
]
plot_sample_grid(rows)

# %% [markdown] tags=["solution"]
# Guidance moves the prediction away from that of the empty text, towards that of the prompt. Large models need it to
# follow a prompt, and 8 is too much for many; the tiny one, trained on few classes, changes less.

# %% [markdown]
# ### Exercise 3
#
# Draw a `"shirt"`, a `"pullover"` and a `"coat"`. Are they what their names say? Keep your impression for notebook 03.

# %% tags=["solution"]
tops = ["shirt", "pullover", "coat"]
rows = []
for word in tops:
    texts = diffusion.encode_texts([f"a photo of a {word}"] * 6)
    rows.append((word, [np.asarray(p) for p in diffusion.generate(texts, num_steps=20, seed=0)]))
plot_sample_grid(rows)

# %% [markdown]
# ## Check yourself
#
# **1.** What is the denoiser asked for?
#
# <details><summary>the clean picture</summary>Not directly: it is asked for the noise; the picture follows by solving
# the mixing for z₀.</details>
# <details><summary>the noise that was mixed in</summary>Right: and its squared error is the loss.</details>
# <details><summary>the class of the picture</summary>No: classes enter only through the text.</details>
#
# **2.** At which noise levels can the text matter most?
#
# <details><summary>little noise</summary>No: there the picture itself shows what is in it.</details>
# <details><summary>much noise, while something of the picture is left</summary>Right: the denoiser must then rely
# on what the text says.</details>
