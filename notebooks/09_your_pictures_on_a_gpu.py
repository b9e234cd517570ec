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
# # 09 · Your images, on a GPU
#
# **The question:** what do images of your own need, what will a run cost, and is it worth it?
#
# After this notebook you can say
# - how images of your own have to lie in folders, and what is reported about them before anything is learned,
# - what a run will cost in time, memory and money, before it is started,
# - which word changes between this laptop and a GPU, and which line uses several of them.
#
# About 0.5 minutes on two CPU cores. No network is needed.

# %%
# %matplotlib inline
import os
import shutil
import tempfile
from pathlib import Path

import numpy as np
from IPython.display import Markdown

from gcpl_lab import GCPLClassifier, load_fashion, read_class_folders
from gcpl_lab.data.readers import read_images
from gcpl_lab.views import style
from gcpl_lab.workshop import course

# %%
preset = "tiny"  # with a GPU: "sd-1.4"
os.chdir(tempfile.mkdtemp())  # a folder to play in; leave this line out to work where you are

# %% [markdown]
# ## The idea
#
# Nothing in this lab knows garments. One folder a class is enough, and the folder's name goes into the prompt:
#
# ```
# my_images/
#   support/          learned from
#     ankle_boot/     "a photo of a" + its vectors, which start from "ankle boot"
#     sandal/
#   test/             only ever measured on
#     ankle_boot/
#     sandal/
# ```
#
# Some of the bundled images of shoes and bags stand in for yours. To use your own, go through this once, then give the
# `gcpl-lab` lines below your folder in a terminal.

# %%
mine = ("ankle boot", "bag", "sandal", "sneaker")
for split, count in (("support", 12), ("test", 10)):
    photographs = load_fashion(split)
    for name in mine:
        folder = Path("my_images", split, name.replace(" ", "_"))
        folder.mkdir(parents=True)
        label = photographs.class_names.index(name)
        for index in np.flatnonzero(photographs.labels == label)[:count]:
            shutil.copy(photographs.images[index], folder)
shutil.copy("my_images/support/sandal/" + os.listdir("my_images/support/sandal")[0], "my_images/test/sandal/copy.png")
sorted(path.as_posix() for path in Path("my_images").glob("*/*"))

# %%
from gcpl_lab.views.evidence import plot_sample_grid

support, test = (read_class_folders(Path("my_images", split)) for split in ("support", "test"))
shown = [
    (name, [np.asarray(image) for image in read_images(support.images[12 * i : 12 * i + 8])])
    for i, name in enumerate(support.class_names)
]
plot_sample_grid(shown)

# %% [markdown]
# **What you see.** Eight images of each class folder, as they were read.
#
# **What it does not say.** What else lies in the folders; the report below reads every file.

# %% [markdown]
# ## A look at the data first
#
# Every line below is one that you would type in a terminal; here it runs in this process. `init` reads all images and
# reports what would spoil a result: unreadable files, duplicates, and test images that are copies of support images
# (we have planted one).

# %%
from unittest.mock import patch

from typer.testing import CliRunner


def gcpl_lab(line):
    with patch("rich.console._is_jupyter", return_value=False):  # plain text, as a terminal shows it
        from gcpl_lab.cli.app import app

        answer = CliRunner(env={"COLUMNS": "108", "FORCE_COLOR": ""}).invoke(app, line.split(), catch_exceptions=False)
    print(answer.stdout.rstrip())


gcpl_lab(f"init my_project --images my_images --shots 8 --preset {preset}")

# %% [markdown]
# The copy has to go: an image that was learned from proves nothing when it is recognised. The first lines say whether
# the frozen pair (the diffusion model and CLIP) sees your classes at all, beside plain image statistics (colours; HOG:
# gradients).

# %%
Path("my_images/test/sandal/copy.png").unlink()
test = read_class_folders("my_images/test")
f"{len(support)} images to learn from, {len(test)} to test on"

# %% [markdown]
# ## The plan
#
# Everything that costs is a pass of the denoiser. With S updates of B samples, C classes, N test images and E pairs
# $(t, \epsilon)$ for each:
#
# $$\text{training} = S \cdot B \ \text{(forward and backward)}, \qquad \text{classification} = N \cdot C \cdot E$$
#
# Calibration classifies the exemplars in the same way. `plan` counts these passes ("UNet evaluations") and multiplies
# them by the seconds of a recorded machine (`--profile`) or of yours, which it times (`--measure`).

# %%
gcpl_lab("plan --preset sd-1.4 --classes 4 --shots 8 --test 40 --profile sd-1.4-nvidia-h200 --price 4")

# %% [markdown]
# These are seconds of **one NVIDIA H200**, timed there by `gcpl-lab selftest` (docs/gpu.md); the price of an hour is an
# example; put in yours. Loading the weights is not counted. What carries over to another card is the count of
# evaluations: run the self-test on it and give its file to `--profile`, or this line with `--measure`, before you start
# anything long. Two CPU cores would take 26 hours for as many, in float32 (`--profile sd-1.4`).

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
# **What you see.** Training costs updates × batch, whatever the number of classes; classification grows with it.
#
# **What it does not say.** Seconds. A pass of Stable Diffusion on a GPU and one of the tiny model differ by orders of
# magnitude.
#
# With many classes, classification costs the most: that is where stages, fewer pairs and half precision pay (notebook
# 05).
#
# ## Learn and classify

# %%
gcpl_lab(
    f"train gcpl my_images/support -o runs/mine --shots 8 --preset {preset} "
    "--set num_steps=60 --set batch_size=16 --set num_evidence=4"
)
files = [path for path in Path("runs/mine").iterdir() if path.is_file()]  # kept/ holds what a report needs
sorted((path.name, f"{path.stat().st_size // 1024 + 1} kB") for path in files)

# %% [markdown]
# The whole model that was learned is that small: a few vectors a class, and JSON that names the frozen weights, the
# settings and the images. Interrupted runs go on where the same line is given again.

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
# **What you see.** Half of the ankle boots are not found, most of those are called sneakers: the look-alikes again.
#
# **What it does not say.** Whether that is good. It needs something to stand beside.
#
# ## Against what?
#
# Before you rent a GPU: what do the class names alone reach, and a linear probe on CLIP features, on the same images?

# %%
answers = ["GCPL is ahead", "level", "the linear probe is ahead"]
first = course.guess("09.1", "GCPL against a linear probe on these 40 images, eight to learn from?", answers)
first

# %%
gcpl_lab(
    "compare --images my_images --methods linear_probe,zero_shot_clip --reference linear_probe "
    f"--shots 8 --seeds 1 --folder runs/compare --preset {preset}"
)

# %%
from gcpl_lab.storage import read_json

found = {row["name"]: row["accuracy"] for row in read_json("runs/compare/results.json")["methods"]}
shares = {
    name: share_with_interval(round(accuracy * len(test)), len(test))
    for name, accuracy in {"gcpl, from above": right.value, **found}.items()
}
for name, share in shares.items():
    print(f"{name:17s} {share.value:.0%} (95 % interval {share.low:.0%} to {share.high:.0%})")
ahead = right.value - found["linear_probe"]
print(first.reveal(answers[0 if ahead > 0.025 else 2 if ahead < -0.025 else 1]))

# %% [markdown]
# On these 40 images the probe, which trains in less than a second, gets more right than GCPL after sixty updates. That
# is five images of 40; compare them in pairs, on more images, before you call it established. But nothing here says
# that you need a diffusion model, and *that* is worth knowing before a GPU is rented. Where the probe is ahead on your
# images too, take the probe.

# %% [markdown]
# ## On a GPU
#
# | | here | there |
# | --- | --- | --- |
# | in a notebook | `preset = "tiny"` | `preset = "sd-1.4"` |
# | in a terminal | `gcpl-lab train gcpl my_images/support` | the same with `--preset sd-1.4` |
# | is it right, and how fast? | `gcpl-lab selftest` | the same; an H200 passes: 0.1 s for an update of eight images |
# | weights | inside the package | Hugging Face cache, or `--preset /models/mine` with `diffusion/` and `clip/` in it |
# | no network there | – | fetch once (`gcpl-lab doctor` prints the line), then copy the cache |
#
# `gcpl-lab doctor` says which presets can be used on this machine now, which device was found, and what is missing.
#
# ## Several GPUs, several machines
#
# ```bash
# accelerate launch --multi_gpu --num_processes 4 -m gcpl_lab train gcpl my_images/support --preset sd-1.4 -o runs/mine
# accelerate launch --multi_gpu --num_machines 2 --num_processes 8 --machine_rank 0 --main_process_ip HOST \
#   --main_process_port 29500 -m gcpl_lab classify runs/mine my_images/test/bag    # second machine: --machine_rank 1
# ```
#
# Every process takes its share of the samples of an update and of the test images. The noise of a sample follows
# from seed, step and place in the whole batch, not from the process that computes it: so the result does not depend
# on how many processes there are. How ten test images are dealt to four of them:

# %%
from gcpl_lab.training.processes import Processes

{f"process {index}": list(range(10))[Processes(index, 4).share(10)] for index in range(4)}

# %% tags=["sanity"]
assert right.value > 1.5 / len(mine), "hardly better than guessing: look at the confusion matrix and at the images"
again = GCPLClassifier.load("runs/mine", model.diffusion).predict_proba(test.images)
assert np.allclose(chances, again, atol=1e-6), "a saved classifier must answer the same again"
assert plans[2].classification.denoiser_evaluations == 1000 * 10 * plans[2].config.num_evidence
assert sum(Processes(index, 4).share(10).stop - Processes(index, 4).share(10).start for index in range(4)) == 10
f"{right.value:.0%} of {len(test)} test images right, from 8 images a class"

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · easy · 5 minutes
#
# Write the plan's count: denoiser passes of training and of classification, from updates, batch size, test images,
# classes and pairs.
#
# <details><summary>Hint</summary>The formula under "The plan"; a training pass is counted once, forward and
# backward.</details>
#
# **Expected:** for 500 updates of 16, 40 images, 4 classes and 8 pairs: 8,000 and 1,280.


# %% tags=["exercise"]
def count_passes(num_steps, batch_size, num_test, num_classes, num_pairs):
    return num_steps, num_test  # yours instead


# %% tags=["check"]
def check_count(count):
    for plan, classes in zip(plans, counts.tolist(), strict=True):
        config = plan.config
        found = count(config.num_steps, config.batch_size, 1000, classes, config.num_evidence)
        expected = (plan.training.denoiser_evaluations, plan.classification.denoiser_evaluations)
        if tuple(found) != expected:
            return f"still wrong: {classes} classes give {tuple(found)}, the plan has {expected}"
    return "right"


check_count(count_passes)


# %% tags=["solution"]
def count_passes(num_steps, batch_size, num_test, num_classes, num_pairs):
    return num_steps * batch_size, num_test * num_classes * num_pairs


check_count(count_passes)

# %% [markdown]
# ### Exercise 2 · easy · 5 minutes
#
# Put a file `broken.png` that is no image into `my_images/support/bag` and train again, with `-o runs/broken`. What
# does the lab do? Keep the error's text in `message`, and take the file out again.
#
# <details><summary>Hint</summary><code>Path(...).write_text("no image")</code>, then the line of "Learn and classify"
# within <code>try</code>, and <code>except Exception as error: message = str(error)</code>.</details>
#
# **Expected:** one message with the file's name, within seconds, and no folder `runs/broken`.

# %% tags=["exercise"]
message = ""  # what the lab says


# %% tags=["check"]
def check_message(text):
    if Path("my_images/support/bag/broken.png").exists():
        return "still wrong: take the file out again, the next training needs the folder"
    if "broken.png" not in text:
        return "still wrong: the message should name the file"
    return "still wrong: something was trained" if Path("runs/broken").exists() else "right"


check_message(message)

# %% tags=["solution"]
Path("my_images/support/bag/broken.png").write_text("no image")
try:
    gcpl_lab(f"train gcpl my_images/support -o runs/broken --shots 0 --preset {preset} --set num_steps=1")
except Exception as error:
    message = f"{type(error).__name__}: {error}"
Path("my_images/support/bag/broken.png").unlink()
check_message(message)

# %% [markdown]
# ### Exercise 3 · medium · 8 minutes
#
# You have a single folder of images without a test set. How do you get an honest number?
#
# <details><summary>Hint</summary><code>draw_episode</code>, <code>cross_validation_folds</code>; and think of two
# images of one object.</details>
#
# **Expected:** two ways, and one thing to check first; here four folds of `support`, each with every class.

# %% tags=["exercise"]
folds = []  # yours instead: (places to learn from, places to judge on) for each of four folds


# %% tags=["check"]
def check_folds(found):
    if len(found) != 4 or sorted(np.concatenate([judged for _, judged in found])) != list(range(len(support))):
        return "still wrong: four folds judge every image once"
    if any(set(learned) & set(judged) for learned, judged in found):
        return "still wrong: an image is learned from and judged"
    return "right" if all(len(set(support.labels[j])) == 4 for _, j in found) else "still wrong: a class is missing"


check_folds(folds)

# %% tags=["solution"]
# Hold images out *before* you look at any result, by seed and class by class (`draw_episode`: the rest is the test
# set), or cross-validate and report the spread. Check for duplicates across the cut first: images of one object taken
# seconds apart belong on the same side.
from gcpl_lab.data.episodes import cross_validation_folds

folds = cross_validation_folds(support.labels, 4, seed=0)
check_folds(folds)

# %% [markdown]
# ## Check yourself
#
# **1.** Why must the planted copy be removed from the test folder?
#
# <details><summary>It takes up memory.</summary>No: one image hardly counts.</details>
# <details><summary>Recognising an image that was learned from says nothing about new ones.</summary>
# Right: leakage flatters every method, and those that memorise the most.</details>
# <details><summary>File names must differ from class names.</summary>No: only folder names matter.</details>
#
# **2.** What changes in the cells of this notebook when it goes to a GPU?
#
# <details><summary>The preset's name.</summary>Right: everything else follows from it.</details>
# <details><summary>The training loop and the device of every tensor.</summary>No: the library places them.</details>
# <details><summary>The class names.</summary>No: they are the folders' names as before.</details>

# %% [markdown]
# ## What we found
#
# What do images of your own need, what will a run cost, and is it worth it?

# %% tags=["found"]
Markdown(
    f"""
- Needed: one folder a class. Eight of {len(support) // 4} images a class were learned from, {len(test)} tested on; one
  planted copy was found and removed.
- Cost: {plans[0].training.denoiser_evaluations:,} denoiser passes to train with {counts[0]} classes,
  {plans[-1].classification.denoiser_evaluations:,} to classify 1,000 images of {counts[-1]} classes.
- Worth it? GCPL {right.value:.0%} ({right.low:.0%} to {right.high:.0%}), **linear probe
  {shares["linear_probe"].value:.0%}** ({shares["linear_probe"].low:.0%} to {shares["linear_probe"].high:.0%}), names
  {shares["zero_shot_clip"].value:.0%}. Not shown by these images.
"""
)
