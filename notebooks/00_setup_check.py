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
# # 00 · Setup check
#
# After this notebook you can say
# - whether this machine is ready for the workshop, and what is missing if not,
# - what the two profiles are: tiny models on a laptop, Stable Diffusion and CLIP on a GPU,
# - how one image gets its class in two ways: by similarity to a text, and by denoising.
#
# About 0.5 minutes on two CPU cores. No network is needed.

# %%
# %matplotlib inline
import numpy as np

from gcpl_lab import FrozenCLIP, FrozenDiffusion, load_fashion
from gcpl_lab.cli.project import doctor
from gcpl_lab.data.readers import read_image
from gcpl_lab.training.device import default_device
from gcpl_lab.views import style

preset = "tiny"  # the same cells run with "sd-1.4" on a GPU

# %% [markdown]
# ## Check the installation
#
# The command `gcpl-lab doctor` prints the same in a terminal. What matters today: both sample sets have the right
# checksums, and the preset `tiny` is ready.

# %%
doctor()

# %% [markdown]
# ## Two profiles, one code
#
# A *preset* names a pair of frozen models: a latent diffusion model and a CLIP. `tiny` ships with the package and was
# trained for it on small images of garments; the `sd-*` presets are the real ones. Every notebook has the line
# `preset = "tiny"` in its first cells, and nothing else to change.

# %%
from gcpl_lab.models.presets import PRESETS

pairs = {name: found for name, found in PRESETS.items() if found.diffusion_source and found.clip_source}
print(f"{'preset':12s} {'download':>9s}  {'licence'}")
for name, found in pairs.items():
    size = "none" if not found.download_bytes else f"{found.download_bytes / 1e9:.1f} GB"
    print(f"{name:12s} {size:>9s}  {found.licence}")

# %%
diffusion = FrozenDiffusion.load(preset, device=default_device())
clip = FrozenCLIP.load(preset, device=default_device())
parts = {"autoencoder": diffusion.vae, "denoiser": diffusion.denoiser, "CLIP": clip.model}
for name, part in parts.items():
    print(f"{name:12s} {sum(weights.numel() for weights in part.parameters()) / 1e6:7.1f} million weights, frozen")

# %% [markdown]
# ## The idea: one image, two ways to a class
#
# **CLIP** turns the image x and a text into vectors; the class is the text whose vector is most similar to x's:
#
# $$\hat c = \arg\max_c \cos\big(f(x),\,g(\text{"a photo of a } c\text{"})\big)$$
#
# The **diffusion classifier** adds noise ε to the image and measures under which text the denoiser predicts that
# noise best:
#
# $$\hat c = \arg\min_c E_{t,\epsilon}\lVert\epsilon - \epsilon_\theta(z_t, t, h_c)\rVert^2$$
#
# ## One tensor
#
# The image, and what the diffusion model works on: a latent with fewer numbers.

# %%
test = load_fashion("test")
names = list(test.class_names)
picture = read_image(test.images[np.flatnonzero(test.labels == names.index("ankle boot"))[0]])
latent = diffusion.scale_latents(diffusion.encode_moments(diffusion.preprocess([picture]))[0])
picture.size, tuple(latent.shape)

# %% [markdown]
# ## A tiny run
#
# Ten class names, one image: one pass for CLIP, 10 classes × 16 noises for the denoiser.

# %%
from gcpl_lab.baselines.zero_shot import ZeroShotCLIP
from gcpl_lab.gcpl.calibration import class_scores
from gcpl_lab.gcpl.classifier import DiffusionClassifier

cosines = ZeroShotCLIP(clip, names).scores(clip.encode_images([picture]))[0].softmax(0).numpy()
prompts = diffusion.encode_texts([f"a photo of a {name}" for name in names])
judge = DiffusionClassifier(diffusion, prompts, timestep_range=diffusion.evidence_range)
errors = judge.exact(latent, num_samples=16)
likeness = class_scores(errors.errors, "relative")[0]
f"CLIP: {names[cosines.argmax()]}; denoising: {names[likeness.argmax()]}; {errors.num_evaluations} denoiser evaluations"

# %% [markdown]
# ## The figure

# %%
with style.figure_style():
    figure = style.new_figure(13, 4.5)
    photo, left, right = figure.subplots(1, 3, width_ratios=(0.8, 1, 1))
    photo.imshow(np.asarray(picture))
    photo.set_axis_off()
    left.barh(names, cosines, color="#0072B2")
    left.set_xlim(0, 1)
    left.set_title("CLIP: probability")
    right.barh(names, 100 * (likeness + 1), color="#D55E00")
    right.set_title("denoising: better than average by %")
    for ax in (left, right):
        ax.invert_yaxis()
figure

# %% [markdown]
# ## Sanity check
#
# One image proves nothing, so five of each class are classified: both ways must be far above chance (10 %).

# %% tags=["sanity"]
from gcpl_lab.data.episodes import draw_test
from gcpl_lab.data.readers import read_images

few = test.subset(draw_test(test, per_class=5))
pictures = read_images(few.images)
by_text = ZeroShotCLIP(clip, names).scores(clip.encode_images(pictures)).argmax(1).numpy()
latents = diffusion.scale_latents(diffusion.encode_moments(diffusion.preprocess(pictures))[0])
by_noise = class_scores(judge.exact(latents, num_samples=4).errors, "absolute").argmax(1)
shares = {"CLIP": (by_text == few.labels).mean(), "denoising": (by_noise == few.labels).mean()}
print({name: f"{share:.0%}" for name, share in shares.items()})
assert min(shares.values()) > 0.3, "no better than guessing: are the weights whole? gcpl-lab doctor"

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1
#
# Classify an image of another class, for example a `"shirt"`. Do the two ways agree?

# %% tags=["solution"]
shirt = read_image(test.images[np.flatnonzero(test.labels == names.index("shirt"))[0]])
scores = ZeroShotCLIP(clip, names).scores(clip.encode_images([shirt]))[0].numpy()
shirt_latent = diffusion.scale_latents(diffusion.encode_moments(diffusion.preprocess([shirt]))[0])
found = class_scores(judge.exact(shirt_latent, num_samples=16).errors, "relative")[0]
f"CLIP: {names[scores.argmax()]}; denoising: {names[found.argmax()]}"

# %% [markdown]
# ### Exercise 2
#
# How many denoiser evaluations would the 500 test images cost with 16 noises, and how long would that take if a
# GPU made 100 evaluations of Stable Diffusion a second?

# %% tags=["solution"]
evaluations = len(test) * len(names) * 16
f"{evaluations:,} evaluations, {evaluations / 100 / 60:.0f} minutes"

# %% [markdown] tags=["solution"]
# The race of notebook 05 and `gcpl-lab plan` are there for that reason.

# %% [markdown]
# ### Exercise 3
#
# Which of the numbers in the doctor's table would you send along with a result, so that a colleague can repeat it?

# %% [markdown] tags=["solution"]
# The versions (torch, diffusers, open_clip and the package itself), the checksums of data and weights, the preset, the
# seed and the command. The machine matters for the seconds, and for the last digits of the numbers.

# %% [markdown]
# ## Check yourself
#
# **1.** What changes in a notebook when it moves from the laptop to a GPU?
#
# <details><summary>the preset's name</summary>Right: everything else follows from it.</details>
# <details><summary>the classifier's class and its settings</summary>No: the same code runs on both.</details>
# <details><summary>the images have to be resized first</summary>No: the model does that itself.</details>
#
# **2.** Why does classifying by denoising cost more than CLIP?
#
# <details><summary>its models have more weights</summary>Not for this reason: here they are of like size.</details>
# <details><summary>one image needs classes × noises passes instead of one</summary>Right: that is the price, and
# notebook 05 lowers it.</details>
