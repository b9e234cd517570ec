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
# # 09 · Your pictures, on a GPU
#
# After this notebook you can say
# - how pictures of your own have to lie in folders, and what is reported about them before anything is learned,
# - what a run will cost in time, memory and money, before it is started,
# - which word changes between this laptop and a GPU, and which line uses several of them.
#
# About 1 minute on two CPU cores. No network is needed.

# %%
# %matplotlib inline
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np

from gcpl_lab import GCPLClassifier, load_fashion, read_class_folders
from gcpl_lab.data.readers import read_images
from gcpl_lab.views import style

preset = "tiny"  # with a GPU: "sd-1.4"
os.chdir(tempfile.mkdtemp())  # a folder to play in; leave this line out to work where you are

# %% [markdown]
# ## The idea
#
# Nothing in this lab knows garments. One folder a class is enough, and the folder's name goes into the prompt:
#
# ```
# my_pictures/
#   support/          learned from
#     ankle_boot/     "a photo of a ankle boot"
#     sandal/
#   test/             only ever measured on
#     ankle_boot/
#     sandal/
# ```
#
# We play that these images of shoes and bags are yours. To use your own, put them there and go on below.

# %%
mine = ("ankle boot", "bag", "sandal", "sneaker")
for split, count in (("support", 12), ("test", 10)):
    photographs = load_fashion(split)
    for name in mine:
        folder = Path("my_pictures", split, name.replace(" ", "_"))
        folder.mkdir(parents=True)
        label = photographs.class_names.index(name)
        for index in np.flatnonzero(photographs.labels == label)[:count]:
            shutil.copy(photographs.images[index], folder)
shutil.copy(
    "my_pictures/support/sandal/" + os.listdir("my_pictures/support/sandal")[0], "my_pictures/test/sandal/copy.png"
)
sorted(path.as_posix() for path in Path("my_pictures").glob("*/*"))

# %%
from gcpl_lab.views.evidence import plot_sample_grid

support, test = (read_class_folders(Path("my_pictures", split)) for split in ("support", "test"))
shown = [
    (name, [np.asarray(image) for image in read_images(support.images[12 * i : 12 * i + 8])])
    for i, name in enumerate(support.class_names)
]
plot_sample_grid(shown)

# %% [markdown]
# ## A look at the data first
#
# Every line below is one that you would type in a terminal; here it runs in this process. `init` reads all pictures and
# reports what would spoil a result: unreadable files, duplicates, and test pictures that are copies of support pictures
# (we have planted one).

# %%
from unittest.mock import patch

from typer.testing import CliRunner


def gcpl_lab(line):
    with patch("rich.console._is_jupyter", return_value=False):  # plain text, as a terminal shows it
        from gcpl_lab.cli.app import app

        answer = CliRunner(env={"COLUMNS": "108", "FORCE_COLOR": ""}).invoke(app, line.split(), catch_exceptions=False)
    print(answer.stdout.rstrip())


gcpl_lab(f"init my_project --images my_pictures --shots 8 --preset {preset}")

# %% [markdown]
# The copy has to go: a picture that was learned from proves nothing when it is recognised.

# %%
Path("my_pictures/test/sandal/copy.png").unlink()
test = read_class_folders("my_pictures/test")
f"{len(support)} images to learn from, {len(test)} to test on"

# %% [markdown]
# ## The plan
#
# Everything that costs is a pass of the denoiser. With S updates of B samples, C classes, N test pictures and E pairs
# $(t, \epsilon)$ for each:
#
# $$\text{training} = S \cdot B \ \text{(forward and backward)}, \qquad \text{classification} = N \cdot C \cdot E$$
#
# `plan` counts them and takes seconds from a recorded machine, or times a few steps on yours (`--measure`).

# %%
gcpl_lab("plan --preset sd-1.4 --classes 4 --shots 8 --test 40 --recorded --price 2.50")

# %% [markdown]
# These are seconds on two CPU cores, the only machine whose recording is shipped; there, nobody would do it. On your
# GPU, run the same line with `--measure` before you start anything long.

# %%
from gcpl_lab.experiments.plan import make_plan

# %%
counts = np.array([2, 4, 10, 50, 200])
plans = [make_plan(preset, num_classes=int(count), num_shots=16, num_test=1000) for count in counts]
with style.figure_style():
    figure = style.new_figure(9, 4.2)
    ax = figure.subplots()
    for turn, stage in enumerate(("training", "classification")):
        passes = [getattr(plan, stage).denoiser_evaluations for plan in plans]
        ax.plot(counts, passes, color=style.PALETTE[turn], marker=style.MARKERS[turn], label=stage)
    ax.set(xscale="log", yscale="log", xlabel="classes (16 images each, 1,000 to classify)", ylabel="denoiser passes")
    ax.set_xticks(counts, [str(count) for count in counts])
    ax.legend(frameon=False)
figure

# %% [markdown]
# With many classes, classification costs the most: that is where stages, fewer pairs and half precision pay (notebook
# 05).
#
# ## Learn and classify

# %%
gcpl_lab(
    f"train gcpl my_pictures/support -o runs/mine --shots 8 --preset {preset} "
    "--set num_steps=60 --set batch_size=16 --set num_evidence=4"
)
sorted((path.name, f"{path.stat().st_size // 1024 + 1} kB") for path in Path("runs/mine").iterdir())

# %% [markdown]
# The whole model that was learned is that small: a few vectors a class, and JSON that says on which frozen weights,
# with which settings and images. Interrupted runs go on where the same line is given again.

# %%
gcpl_lab("classify runs/mine " + " ".join(map(str, test.images[::8])))

# %% [markdown]
# ## One tensor
#
# In Python the same folder is a classifier. What it holds:

# %%
model = GCPLClassifier.load("runs/mine")
chances = model.predict_proba(test.images)
print("learned vectors:", tuple(model.prompts_.vectors.shape), "(class, vector, width)")
print(
    "frozen weights: ",
    f"{sum(value.numel() for value in model.diffusion.denoiser.parameters()):,} in the denoiser alone",
)

# %%
from gcpl_lab.evaluation.metrics import confusion_matrix
from gcpl_lab.evaluation.trust import share_with_interval
from gcpl_lab.views.evidence import plot_confusion

right = share_with_interval(int((chances.argmax(1) == test.labels).sum()), len(test))
with style.figure_style():
    figure = style.new_figure(6.5, 5.6)
    ax = plot_confusion(figure.subplots(), confusion_matrix(chances, test.labels), test.class_names)
    ax.set_title(f"{right.value:.0%} right (95 % interval {right.low:.0%} to {right.high:.0%})")
figure

# %% [markdown]
# ## Against what?
#
# Before you rent a GPU: what do the class names alone reach, and a linear probe on CLIP features, on the same pictures?

# %%
gcpl_lab(
    "compare --images my_pictures --methods linear_probe,zero_shot_clip --reference linear_probe "
    f"--shots 8 --seeds 1 --folder runs/compare --preset {preset}"
)

# %%
from gcpl_lab.storage import read_json

found = {row["name"]: row["accuracy"] for row in read_json("runs/compare/results.json")["methods"]}
for name, accuracy in {"gcpl, from above": right.value, **found}.items():
    share = share_with_interval(round(accuracy * len(test)), len(test))
    print(f"{name:17s} {share.value:.0%} (95 % interval {share.low:.0%} to {share.high:.0%})")

# %% [markdown]
# ## On a GPU
#
# | | here | there |
# | --- | --- | --- |
# | in a notebook | `preset = "tiny"` | `preset = "sd-1.4"` |
# | in a terminal | `gcpl-lab train gcpl my_pictures/support` | the same with `--preset sd-1.4` |
# | weights | inside the package | Hugging Face cache, or `--preset /models/mine` with `diffusion/` and `clip/` in it |
# | no network there | – | fetch once (`gcpl-lab doctor` prints the line), then copy the cache |
#
# `gcpl-lab doctor` says which presets can be used on this machine now, which device was found, and what is missing.
#
# ## Several GPUs, several machines
#
# ```bash
# accelerate launch --multi_gpu -m gcpl_lab train gcpl my_pictures/support --preset sd-1.4 -o runs/mine
# accelerate launch --num_machines 2 --machine_rank 0 --main_process_ip HOST --main_process_port 29500 \
#   -m gcpl_lab classify runs/mine my_pictures/test/bag        # the second machine: --machine_rank 1
# ```
#
# Every process takes its share of the samples of an update and of the test pictures. The noise of a sample follows
# from seed, step and place in the whole batch, not from the process that computes it: so the result does not depend
# on how many processes there are. How ten test pictures are dealt to four of them:

# %%
from gcpl_lab.training.processes import Processes

{f"process {index}": list(range(10))[Processes(index, 4).share(10)] for index in range(4)}

# %% tags=["sanity"]
assert right.value > 1.5 / len(mine), "hardly better than guessing: look at the confusion matrix and at the pictures"
again = GCPLClassifier.load("runs/mine", model.diffusion).predict_proba(test.images)
assert np.allclose(chances, again, atol=1e-6), "a saved classifier must answer the same again"
assert plans[2].classification.denoiser_evaluations == 1000 * 10 * plans[2].config.num_evidence
assert sum(Processes(index, 4).share(10).stop - Processes(index, 4).share(10).start for index in range(4)) == 10
f"{right.value:.0%} of {len(test)} test images right, from 8 images a class"

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1
# Put a file that is no picture into a class folder and train again. What does the lab do?

# %% tags=["solution"]
Path("my_pictures/support/bag/broken.png").write_text("not a picture")
try:
    gcpl_lab(f"train gcpl my_pictures/support -o runs/broken --shots 0 --preset {preset} --set num_steps=1")
except Exception as error:
    print(f"{type(error).__name__}: {error}")
Path("my_pictures/support/bag/broken.png").unlink()

# %% [markdown]
# ### Exercise 2
# How many denoiser passes would 1,000 pictures of 200 classes cost, and which single change saves the most time?

# %% tags=["solution"]
large = make_plan("sd-1.4", num_classes=200, num_shots=16, num_test=1000)
best = max(large.savings, key=lambda saving: saving.saved_seconds)
print(
    f"{large.classification.denoiser_evaluations:,} passes to classify; {best.title} ({best.how}) would save "
    f"{best.saved_seconds / large.seconds:.0%} of all the time"
)

# %% [markdown]
# ### Exercise 3
# You have a single folder of pictures without a test set. How do you get an honest number?

# %% [markdown] tags=["solution"]
# Hold pictures out *before* you look at any result, by seed, class by class (`draw_episode` draws the support pictures,
# the rest is the test set), or cross-validate over folds (`cross_validation_folds`) and report the spread. Check for
# duplicates across the cut first: pictures of one object taken seconds apart belong on the same side.

# %% [markdown]
# ## Check yourself
#
# **1.** Why must the planted copy be removed from the test folder?
#
# <details><summary>It takes up memory.</summary>No: one picture hardly counts.</details>
# <details><summary>Recognising a picture that was learned from says nothing about new ones.</summary>
# Right: leakage flatters every method, and those that memorise the most.</details>
# <details><summary>File names must differ from class names.</summary>No: only folder names matter.</details>
#
# **2.** What changes in the cells of this notebook when it goes to a GPU?
#
# <details><summary>The preset's name.</summary>Right: everything else follows from it.</details>
# <details><summary>The training loop and the device of every tensor.</summary>No: the library places them.</details>
# <details><summary>The class names.</summary>No: they are the folders' names as before.</details>
