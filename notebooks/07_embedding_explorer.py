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
# # 07 · The embedding explorer: every map, and what it may be trusted for
#
# After this notebook you can say
# - which five spaces of a frozen model can be mapped, and what a map of each one shows,
# - how PCA, t-SNE, UMAP and densMAP differ on the very same points,
# - when a map looks better than the data, and which number in the original space shows it.
#
# About 2 minutes on two CPU cores. No network is needed.

# %%
# %matplotlib inline
import numpy as np

from gcpl_lab import FrozenCLIP, FrozenDiffusion, GCPLClassifier, load_fashion
from gcpl_lab.evaluation.separation import measure_separation, profile_points
from gcpl_lab.training.device import default_device
from gcpl_lab.views import style
from gcpl_lab.views.plots import plot_before_after, plot_map, plot_token_journey
from gcpl_lab.views.projection import project, warn_if_flattering

preset = "tiny"
diffusion = FrozenDiffusion.load(preset, device=default_device())

# %% [markdown]
# ## Something to look at
#
# The five kinds of tops, sixteen images each to learn from, thirty each to look at. Training keeps its state every
# ten updates, so that the way can be drawn later.

# %%
tops = (0, 2, 3, 4, 6)
support, test = load_fashion("support"), load_fashion("test")
names = [support.class_names[label] for label in tops]
chosen = [i for label in tops for i in np.flatnonzero(support.labels == label)[:16]]
shown = [i for label in tops for i in np.flatnonzero(test.labels == label)[:30]]
labels = np.repeat(np.arange(5), 30)
model = GCPLClassifier(preset, "gcpl", num_steps=100, seed=0, diffusion=diffusion)
model.fit([support.images[i] for i in chosen], support.labels[chosen], names)
f"{len(model.history_)} updates, {len(model.states_)} states kept"

# %% [markdown]
# ## The idea
#
# A map puts points of many dimensions on paper. Something is always lost. Two numbers say how much:
#
# - **trustworthiness** of the map, from 0 to 1: are neighbours on paper neighbours in truth?
# - **separation** of the classes, measured *in the original space*: the silhouette $s = (b - a) / \max(a, b)$ with
#   $a$ the mean distance to one's own class and $b$ to the nearest other; the Fisher ratio of scatter between and
#   within classes; and how often a point's nearest neighbour is of its own class.
#
# The map is for finding questions. The numbers are for answering them.
#
# ## Space 1 and 2: the class tokens, and what the text encoder makes of them
#
# Training changes the tokens. The denoiser is not conditioned on them directly but on the text encoder's output for the
# whole prompt.

# %%
from gcpl_lab.evaluation.features import prompt_outputs

tokens = {step: vectors.flatten(1).numpy() for step, vectors in model.states_.items()}
outputs = prompt_outputs(diffusion, model.prompts_, model.states_)
steps = sorted(tokens)
spaces = {"class tokens": tokens, "text encoder's output": outputs}
{name: points[0].shape for name, points in spaces.items()}

# %%
maps = {name: project({str(step): points[step] for step in steps}, "pca") for name, points in spaces.items()}
with style.figure_style():
    figure = style.new_figure(14, 7.4)
    for ax, (name, points) in zip(figure.subplots(1, 2), maps.items(), strict=True):
        plot_token_journey(ax, np.stack([points.points[str(step)] for step in steps]), steps, names)
        ax.set_title(style.wrap_lines(f"{name}: {points.note}", 6, 13))
figure

# %%
from scipy.spatial.distance import pdist

for name, points in spaces.items():
    start, end = (pdist(points[step]) for step in (steps[0], steps[-1]))
    print(
        f"{name:22s} mean distance between two classes: {start.mean():.2f} before, {end.mean():.2f} after; "
        f"the nearest two: {start.min():.2f} before, {end.min():.2f} after"
    )

# %% [markdown]
# Far apart does not mean well separated: tokens may move along directions that the denoiser does not react to. What
# matters is how images are classified.
#
# ## Space 3: error profiles of images
#
# An image's profile holds the denoising error under every class prompt at every timestep, relative to the mean
# over classes. It is exactly what the classifier decides on. Before: class names as prompts. After: learned ones. A
# third state trains on top of that to rank (the discriminative objective of notebook 04).

# %%
from gcpl_lab.data.readers import read_images
from gcpl_lab.gcpl.sampling import Exemplars

pixels = diffusion.preprocess(read_images([support.images[i] for i in chosen]))
exemplars = Exemplars.encode(diffusion, pixels, np.repeat(np.arange(5), 16))
ranked = GCPLClassifier(preset, "discriminative", discriminative_steps=20, seed=0, diffusion=diffusion)
for _ in ranked.learn(exemplars, names, warm_start=model.prompts_.vectors.detach()):
    pass

# %%
from gcpl_lab.gcpl.classifier import DiffusionClassifier

latents = model.encode([test.images[i] for i in shown])
by_name = diffusion.encode_texts([f"a photo of a {name}" for name in names])
before = DiffusionClassifier(diffusion, by_name, timestep_range=model.timestep_range, bfloat16=True)
evidence = {
    "class names": before.exact(latents, 8),
    "GCPL": model.evidence(latents),
    "discriminative": ranked.evidence(latents),
}
profiles = {name: profile_points(found.errors) for name, found in evidence.items()}
measured = {name: measure_separation(points, labels) for name, points in profiles.items()}
profiles["GCPL"].shape

# %%
together = project(profiles, "pca")
plot_before_after(
    together,
    labels,
    names,
    separations=measured,
    title="Error profiles of 150 test images on one map",
    warning=warn_if_flattering(together, profiles, labels),
)

# %% [markdown]
# ## Four methods, the very same points
#
# PCA keeps large distances and is exact. t-SNE and UMAP keep neighbourhoods and *tear what lies between them apart*:
# gaps and sizes of clusters mean little. densMAP is UMAP that keeps densities. All four show the state after GCPL.

# %%
four = {method: project(profiles["GCPL"], method, seed=0) for method in ("pca", "tsne", "umap", "densmap")}
with style.figure_style():
    figure = style.new_figure(14, 14)
    for ax, (method, found) in zip(figure.subplots(2, 2).ravel(), four.items(), strict=True):
        trust = f"{found.note}; seed {found.seed}; trustworthiness {found.trustworthiness['all']:.2f}"
        plot_map(ax, found.points["all"], labels, names, title=method, caption=trust)
figure

# %%
from gcpl_lab.evaluation.separation import neighbour_correctness

truth = np.nanmean(neighbour_correctness(profiles["GCPL"], labels))
print(f"original space: the nearest neighbour has the same class in {truth:.0%} of cases")
for method, found in four.items():
    on_map = np.nanmean(neighbour_correctness(found.points["all"], labels))
    said = "flatters" if warn_if_flattering(found, profiles["GCPL"], labels) else "within 10 points of the truth"
    print(f"{method:8s} {on_map:.0%} on the map: {said}")

# %% [markdown]
# ## A map that does flatter
#
# 150 points of pure noise in 120 dimensions have no classes. A method that knows the labels (here: linear discriminant
# analysis, fitted and shown on the same points) draws five tidy islands. The warning compares with the original space.

# %%
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

from gcpl_lab.views.projection import Projection

noise = np.random.default_rng(0).normal(size=(150, 120))
islands = LinearDiscriminantAnalysis(n_components=2).fit(noise, labels).transform(noise)
fooled = Projection({"all": islands}, "lda", 0, {"all": float("nan")}, "LDA fitted with the labels")
with style.figure_style():
    figure = style.new_figure(8, 8.6)
    warning = warn_if_flattering(fooled, noise, labels) or ""
    plot_map(figure.subplots(), islands, labels, names, title="Islands made of noise", caption=warning)
figure

# %% [markdown]
# ## Space 4: inside the denoiser
#
# What does the frozen network know about the garments before any prompt says a word? A hook takes each block's output,
# with the empty prompt, and the separation is measured block by block.

# %%
from gcpl_lab.evaluation.features import denoiser_features, denoiser_layers

nothing = diffusion.encode_texts([""])
inside = {layer: denoiser_features(diffusion, latents, nothing, layer=layer) for layer in denoiser_layers(diffusion)}
known = {layer: measure_separation(points, labels).neighbour_accuracy for layer, points in inside.items()}
best = max(known, key=lambda layer: known[layer].value)
for layer, estimate in known.items():
    print(f"{layer:16s} neighbour right {estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%})")

# %%
with style.figure_style():
    figure = style.new_figure(8, 8.6)
    found = project(inside[best], "pca")
    caption = f"{found.note}; trustworthiness {found.trustworthiness['all']:.2f}"
    plot_map(figure.subplots(), found.points["all"], labels, names, title=f"Denoiser, {best}", caption=caption)
figure

# %% [markdown]
# ## Space 5: CLIP, pictures and class prompts together
#
# Scenes with several garments (notebook 06), each marked by the *rarest* class it shows, and the ten class prompts
# before and after LMPT. Pictures and texts of CLIP lie in different corners of the sphere (the *modality gap*); each
# cloud is centred first, or the map would show nothing but the gap.

# %%
from gcpl_lab import LMPTClassifier, load_wardrobe
from gcpl_lab.data.multilabel import head_medium_tail
from gcpl_lab.lmpt.estimator import encode_views

clip = FrozenCLIP.load(preset, device=default_device())
scenes = load_wardrobe("train")
views = encode_views(clip, scenes.images, flip=False)
lmpt = LMPTClassifier(preset, num_epochs=12, learning_rate=0.02, flip=False, clip=clip)
for _ in lmpt.learn(views, scenes.targets, scenes.class_names, scenes.captions):
    pass
clouds = {"scenes": views[0], "prompts before": lmpt.start_features_}
clouds["prompts after"] = lmpt.objective_.text_features().detach().cpu()
gap = float((views[0].mean(0) - lmpt.start_features_.mean(0)).norm())
f"distance of the two clouds' centres: {gap:.2f}; of two scenes, on average: {pdist(views[0].numpy()).mean():.2f}"

# %%
centres = {name: clouds["prompts before" if "prompt" in name else name].mean(0) for name in clouds}
centred = {name: (points - centres[name]).numpy() for name, points in clouds.items()}
placed = project(centred, "pca", fit_on="scenes")
counts = scenes.class_counts()
part_of = {int(label): part for part, ids in head_medium_tail(counts).items() for label in ids}
rarest = [part_of[min(np.flatnonzero(row), key=lambda label: counts[label])] for row in scenes.targets]
looks = {part: style.PART_LOOKS[part] for part in ("head", "medium", "tail")}

# %%
from gcpl_lab.views.panels import name_places

with style.figure_style():
    figure = style.new_figure(11, 8.4)
    ax = figure.subplots()
    for part, (color, marker) in looks.items():
        x, y = placed.points["scenes"][np.array(rarest) == part].T
        ax.scatter(x, y, s=26, color=color, marker=marker, alpha=0.5, label=f"scene, rarest: {part}")
    start, end = placed.points["prompts before"], placed.points["prompts after"]
    ax.quiver(*start.T, *(end - start).T, angles="xy", scale_units="xy", scale=1, width=0.003, color=style.GREY)
    ax.set(xticks=[], yticks=[], xlabel=f"{placed.note}; arrows: prompts through training")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    name_places(ax, end, scenes.class_names, [looks[part_of[c]][0] for c in range(10)], placed.points["scenes"])
figure

# %% [markdown]
# ## Take it away
#
# A hover map (every point with its image and answer) and a flip-book of the tokens' way: one HTML
# file each, which opens without a server or a network.

# %%
import tempfile
from pathlib import Path

from gcpl_lab.views.interactive import journey_frames, write_flip_book, write_hover_map

folder = Path(tempfile.mkdtemp())  # choose a folder of your own
answers = {name: found.errors.mean(axis=2).argmin(axis=1) for name, found in evidence.items()}
photographs = [test.images[i] for i in shown]
about = {"images": photographs, "predictions": answers, "title": "Error profiles"}
write_hover_map(folder / "hover.html", together, labels, names, **about)
way = np.stack([maps["class tokens"].points[str(step)] for step in steps])
frames = journey_frames(way, steps, names)
write_flip_book(folder / "journey.html", frames, title="Class tokens", alt="The tokens' way through training")
sorted(path.name for path in folder.iterdir())

# %% [markdown]
# And slides: a picture drawn at the size of a slide, a chart that stays editable, notes, and a line that says where the
# numbers come from.

# %%
from gcpl_lab.views.slides import Bars, Deck, Provenance, slide_figure, to_slide

with style.figure_style("slide"):
    picture = slide_figure()
    plot_map(picture.subplots(), together.points["GCPL"], labels, names)

# %%
near = [entry.neighbour_accuracy for entry in measured.values()]
bars = Bars(list(measured), *np.array(near).T.tolist(), axis="nearest neighbour of its own class")
deck = Deck(Provenance(seed=0, checksum=test.checksum, command="notebook 07"))
deck.add(
    to_slide(
        picture,
        "Five kinds of tops",
        "A map; the next slide has the number.",
        "PCA of error profiles",
        alt="Map of 150 images in five colours",
    )
)
deck.add(to_slide(bars, "Do they come apart?", "Measured where the classifier works.", "95 % bootstrap intervals"))
[path.relative_to(folder).as_posix() for path in deck.save(folder / "slides.pptx")]

# %% tags=["sanity"]
own = {name: float(found.errors[np.arange(150), labels].mean()) for name, found in evidence.items()}
assert own["GCPL"] < own["class names"], f"the own prompt should denoise better after training: {own}"
assert min(entry.neighbour_accuracy.value for entry in measured.values()) > 0.3, "no better than chance: check labels"
assert all(found.trustworthiness["all"] > 0.7 for found in four.values()), "a map that cannot be trusted at all"
assert warning, "the islands made of noise must be warned of"
f"own-class error: {own['class names']:.4f} under the names, {own['GCPL']:.4f} under learned prompts"

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1
# Give UMAP another seed. Which things on the map stay, and which were chance?

# %% tags=["solution"]
with style.figure_style():
    figure = style.new_figure(14, 7.4)
    for ax, seed in zip(figure.subplots(1, 2), (1, 2), strict=True):
        found = project(profiles["GCPL"], "umap", seed=seed)
        plot_map(ax, found.points["all"], labels, names, title=f"UMAP, seed {seed}")
figure

# %% [markdown]
# ### Exercise 2
# Shuffle the labels and measure the separation again. What do silhouette and neighbour accuracy say about no structure?

# %% tags=["solution"]
shuffled = np.random.default_rng(0).permutation(labels)
for name, used in (("true labels", labels), ("shuffled", shuffled)):
    found = measure_separation(profiles["GCPL"], used)
    print(
        f"{name:12s} silhouette {found.silhouette.value:+.2f}, neighbour right {found.neighbour_accuracy.value:.0%}, "
        f"Fisher {found.fisher_ratio:.2f}"
    )

# %% [markdown]
# ### Exercise 3
# At which noise level do the denoiser's features tell the tops apart best? Try `timestep` 0.1, 0.3, 0.6 and 0.9.

# %% tags=["solution"]
for timestep in (0.1, 0.3, 0.6, 0.9):
    points = denoiser_features(diffusion, latents, nothing, layer=best, timestep=timestep)
    print(f"t = {timestep:.1f} T: {measure_separation(points, labels).neighbour_accuracy.value:.0%}")

# %% [markdown]
# ## Check yourself
#
# **1.** Two clusters are far apart on a UMAP. What follows?
#
# <details><summary>The classes are easy to tell apart.</summary>No: gaps on such a map are no distances.</details>
# <details><summary>Nothing yet: measure the separation in the original space.</summary>
# Right: that is where the classifier works.</details>
# <details><summary>The perplexity was too low.</summary>
# No: that is a setting of t-SNE, and it is not the point.</details>
#
# **2.** Why are all states of a training run put on one map?
#
# <details><summary>Because separate maps have axes of their own, and a move between them means nothing.</summary>
# Right: with one fit, a point that did not move stays where it was.</details>
# <details><summary>To save time.</summary>No: it would be worth it even if it took longer.</details>
