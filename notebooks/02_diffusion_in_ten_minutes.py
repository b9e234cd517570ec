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
# **The question:** how can a network that removes noise tell classes apart?
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
from IPython.display import Markdown

from gcpl_lab import FrozenDiffusion, load_fashion
from gcpl_lab.data.readers import read_image, read_images
from gcpl_lab.training.device import default_device
from gcpl_lab.views import style
from gcpl_lab.workshop import course

preset = "tiny"  # the same cells run with "sd-1.4" on a GPU
diffusion = FrozenDiffusion.load(preset, device=default_device())

# %% [markdown]
# ## The whole on one page
#
# This notebook is about image, autoencoder (VAE), noise and denoiser. The text is below; notebook 03 replaces its class
# word by learned vectors [v], which is GCPL (generative class prompt learning). The lowest arrow belongs there too.

# %%
from gcpl_lab.views.diagrams import draw_gcpl

draw_gcpl()

# %% [markdown]
# **What you see.** Grey parts are frozen. Noise enters the latent, and the denoiser is asked for it while it hears the
# text.
#
# **What it does not say.** How much noise: that is t, and what follows is about it.
#
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
image = read_image(test.images[np.flatnonzero(test.labels == test.class_names.index("ankle boot"))[0]])
mean, _ = diffusion.encode_moments(diffusion.preprocess([image]))
latent = diffusion.scale_latents(mean)
tuple(diffusion.preprocess([image]).shape), "becomes", tuple(latent.shape)

# %% [markdown]
# ## More and more noise
#
# The same latent and the same noise at several t. Above, the first channel of z_t itself; below, z_t decoded to an
# image.

# %%
from gcpl_lab.views.evidence import plot_sample_grid

noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
shares = (0.0, 0.2, 0.4, 0.6, 0.8, 0.99)
timesteps = torch.tensor([int(share * diffusion.num_timesteps) for share in shares])
noisy = diffusion.add_noise(latent.expand(len(shares), -1, -1, -1), noise.expand(len(shares), -1, -1, -1), timesteps)
channel = ((noisy[:, 0] + 3) / 6).clamp(0, 1).cpu().numpy()
decoded = [np.asarray(each) for each in diffusion.decode(noisy)]
kept = diffusion.scheduler.alphas_cumprod[timesteps].sqrt()
figure = plot_sample_grid([("z_t, channel 1", list(np.uint8(255 * channel))), ("z_t decoded", decoded)])
for ax, t, share in zip(figure.axes, timesteps.tolist(), kept.tolist(), strict=False):
    ax.set_title(f"t = {t}\nimage × {share:.2f}", fontsize=12)
figure

# %% [markdown]
# **What you see.** The weight of the image, $\sqrt{\bar\alpha_t}$, falls from 1 to 0.07; the upper row ends as plain
# noise. The lower row has bright patches on black even at the end: the decoder has seen garments only, and paints their
# greys and edges from any latent.
#
# **What it does not say.** That these patches are what is left of the boot. Look at z_t, not at its decoding.
#
# ## What the denoiser predicts
#
# From the noise the image follows: solve the equation above for z₀, and insert the *predicted* noise. The slider
# changes t (arrow keys work); change the text and see from which t on it matters.

# %%
from gcpl_lab.views.widgets import NoiseSlider

NoiseSlider(diffusion, image, prompts=("a photo of a boot", "a photo of a bag"), timestep=int(timesteps[3]))

# %% [markdown]
# **What you see.** From a latent that is mostly noise, one step brings back a boot, under both texts; the error is
# smaller under *boot* than under *bag*.
#
# **What it does not say.** That this holds for every noise: the slider changes t and keeps this one noise.
#
# ## What a prompt changes: generated images
#
# Each column starts from the same noise; only the text differs.

# %%
words = ["trousers", "dress", "sneaker", "bag"]
prompts = [f"a photo of a {word}" for word in words for _ in range(6)]
drawn = []
for row in range(len(words)):  # one call a row, so that equal columns start from equal noise
    texts = diffusion.encode_texts(prompts[6 * row : 6 * row + 6])
    drawn.append([np.asarray(each) for each in diffusion.generate(texts, num_steps=20, seed=0)])
plot_sample_grid([(word, images) for word, images in zip(words, drawn, strict=True)])

# %% [markdown]
# **What you see.** *Trousers* and *bag* are obeyed. The *sneaker* row shows boots and sandals, and half of the *dress*
# row has long sleeves: the prompt does not decide everything. The captions that the model learned from used these words
# loosely.
#
# **What it does not say.** Whether the model *knows* the difference and only the word is wrong. Notebook 03 asks that.
#
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
answers = ["at little noise (small t)", "in the middle", "at much noise (large t)"]
first = course.guess("02.1", "at which noise level does the right text help most, in percent of the error?", answers)
first

# %%
judge = DiffusionClassifier(diffusion, texts, bfloat16=True)
evidence = judge.exact(diffusion.scale_latents(moments[0]), num_samples=12)
evidence.errors.shape

# %%
right = evidence.errors[np.arange(len(part)), part.labels]
wrong = (evidence.errors.sum(axis=1) - right) / (len(words) - 1)
more = 100 * (wrong - right).mean(0) / right.mean(0)
with style.figure_style():
    figure = style.new_figure(13, 4.2)
    left, beside = figure.subplots(1, 2)
    for turn, (name, values) in enumerate({"right text": right, "other texts": wrong}.items()):
        color, marker = style.look(turn)
        left.plot(evidence.timesteps, values.mean(0), color=color, marker=marker, label=name)
    left.set(yscale="log", xlabel="timestep t", ylabel="mean squared error of the noise")
    left.legend(frameon=False)
    beside.plot(evidence.timesteps, more, color=style.BLUE, marker="o")
    beside.set(xlabel="timestep t", ylabel="other texts are worse by (%)")
print(first.reveal(answers[int(evidence.timesteps[more.argmax()] * 3 // diffusion.num_timesteps)]))
figure

# %% [markdown]
# **What you see.** Left: with little noise the error is large, because weak noise is hard to predict, and the text does
# not help; with much noise it is small. Right: with much noise the other texts are worse by tens of percent.
#
# **What it does not say.** That look-alikes can be told apart: these four classes are easy ones.
#
# A classifier follows: choose the text with the smallest error. Notebook 03 *learns* the text.

# %% tags=["sanity"]
gap = (wrong - right).mean(axis=0)
share = (evidence.errors.mean(axis=2).argmin(axis=1) == part.labels).mean()
print(f"smallest error under the right text: {share:.0%} of {len(part)} images")
assert right.mean(0)[0] > right.mean(0)[-1], "weak noise should be harder to predict than strong noise"
assert gap[len(gap) // 2 :].mean() > 0, "in strong noise the right text should help"
assert share > 0.5, "four easy classes should be told apart: are the weights whole?"
assert not np.array_equal(drawn[0][0], drawn[3][0]), "other texts should give other images"

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · easy · 5 minutes
#
# Solve the mixing for the image: from z_t, the noise and ᾱ_t back to z₀. (This is how the slider above makes its
# images, with the *predicted* noise.)
#
# <details><summary>Hint</summary>z_t = a·z₀ + b·ε with a = sqrt(ᾱ_t) and b = sqrt(1 − ᾱ_t).</details>
#
# **Expected:** `right`; the largest difference is below 0.001.


# %% tags=["exercise"]
def back_to_image(z_t, noise, alpha_bar):
    return z_t - noise  # yours instead


# %% tags=["check"]
def check_mixing(solve):
    for t, mixed in zip(timesteps.tolist(), noisy, strict=True):
        found = solve(mixed, noise[0], diffusion.scheduler.alphas_cumprod[t])
        off = float((found - latent[0]).abs().max())
        if off > 1e-3:
            return f"still wrong: at t = {t} it is up to {off:.2f} away from z₀"
    return "right"


check_mixing(back_to_image)


# %% tags=["solution"]
def back_to_image(z_t, noise, alpha_bar):
    return (z_t - (1 - alpha_bar).sqrt() * noise) / alpha_bar.sqrt()


check_mixing(back_to_image)

# %% [markdown]
# ### Exercise 2 · easy · 5 minutes
#
# *Guidance* asks the denoiser twice, first with the empty text, then with the prompt, and goes w times the way from the
# first answer to the second: w = 0 is the empty text, w = 1 the prompt, more goes beyond it. Write it; then generate a
# dress with 1, 3 and 8.
#
# <details><summary>Hint</summary>A start, and w times a difference. For the images:
# <code>diffusion.generate(texts, num_steps=20, guidance=3.0, seed=0)</code>, six equal texts.</details>
#
# **Expected:** `right`; three rows that differ little: one image of six loses its long sleeves at 8.


# %% tags=["exercise"]
def guide(with_text, without, w):
    return w * with_text  # yours instead


# %% tags=["check"]
def check_guidance(rule):
    with_text, without = torch.randn(2, 4, generator=torch.Generator().manual_seed(0))
    for w, expected in ((0.0, without), (1.0, with_text), (3.0, 3 * with_text - 2 * without)):
        if not torch.allclose(rule(with_text, without, w), expected, atol=1e-5):
            return f"still wrong: with w = {w:g} it is not where it should be"
    return "right"


check_guidance(guide)


# %% tags=["solution"]
def guide(with_text, without, w):
    return without + w * (with_text - without)


check_guidance(guide)

# %% tags=["solution"]
texts_of_dress = diffusion.encode_texts(["a photo of a dress"] * 6)
rows = []
for value in (1.0, 3.0, 8.0):
    made = diffusion.generate(texts_of_dress, num_steps=20, guidance=value, seed=0)
    rows.append((f"guidance {value:g}", [np.asarray(each) for each in made]))
plot_sample_grid(rows)

# %% [markdown] tags=["solution"]
# Guidance moves the prediction away from that of the empty text, towards that of the prompt. Large models need it to
# follow a prompt, and 8 is too much for many; the tiny one, trained on few classes, changes less.

# %% [markdown]
# ### Exercise 3 · easy · 5 minutes
#
# Generate a `"shirt"`, a `"pullover"` and a `"coat"`. Are they what their names say? Keep your impression for notebook
# 03.
#
# <details><summary>Hint</summary>The cell "What a prompt changes: generated images", with other words.</details>
#
# **Expected:** three rows that you could not sort back into their classes.

# %% tags=["exercise"]
made = {"shirt": [], "pullover": [], "coat": []}  # six images for each word


# %% tags=["check"]
def check_images(found):
    for word, images in found.items():
        if len(images) != 6:
            return f"still wrong: {len(images)} images of {word}, six are asked for"
    first = [np.asarray(images[0], dtype=int) for images in found.values()]
    if any(np.array_equal(one, other) for one, other in zip(first, [*first[1:], first[0]], strict=True)):
        return "still wrong: two words give the same image: is the text another one?"
    return "right"


check_images(made)

# %% tags=["solution"]
for word in made:
    texts_of_word = diffusion.encode_texts([f"a photo of a {word}"] * 6)
    made[word] = diffusion.generate(texts_of_word, num_steps=20, seed=0)
check_images(made)

# %% tags=["solution"]
plot_sample_grid([(word, [np.asarray(each) for each in images]) for word, images in made.items()])

# %% [markdown]
# ## Check yourself
#
# **1.** What is the denoiser asked for?
#
# <details><summary>the clean image</summary>Not directly: it is asked for the noise; the image follows by solving
# the mixing for z₀.</details>
# <details><summary>the noise that was mixed in</summary>Right: and its squared error is the loss.</details>
# <details><summary>the class of the image</summary>No: classes enter only through the text.</details>
#
# **2.** At which noise levels can the text matter most?
#
# <details><summary>little noise</summary>No: there the image itself shows what is in it.</details>
# <details><summary>much noise, while something of the image is left</summary>Right: the denoiser must then rely
# on what the text says.</details>

# %% [markdown]
# ## What we found
#
# How can a network that removes noise tell classes apart? By the text under which it removes noise best:

# %% tags=["found"]
half = len(more) // 2
Markdown(
    f"""
- At t = {int(timesteps[-1])} the image enters z_t with weight {float(kept[-1]):.2f}, at t = {int(timesteps[1])} with
  {float(kept[1]):.2f}.
- Other texts are worse than the right one by {more[:half].mean():.0f} % in the lower half of the schedule, and by
  **{more[half:].mean():.0f} %** in the upper half.
- The smallest error stands under the right text for **{share:.0%}** of {len(part)} images of four *easy* classes;
  chance is 25 %.
"""
)
