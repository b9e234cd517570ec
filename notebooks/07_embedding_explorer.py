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
# # 07 · The embedding explorer: which maps show learning, and which cannot
#
# **The question:** on which map does one *see* that look-alikes come apart, and that it was the labels that did it?
#
# After this notebook you can say
# - why a map of raw error profiles looks alike before and after learning, and which map does not,
# - how PCA, t-SNE, UMAP and densMAP differ on the very same points,
# - when a map looks better than the data, and which number in the original space shows it.
#
# About 1.5 minutes on two CPU cores. No network is needed.

# %%
# %matplotlib inline
import numpy as np
import torch
from IPython.display import Markdown, display

from gcpl_lab import FrozenCLIP, FrozenDiffusion, GCPLClassifier, load_fashion
from gcpl_lab.evaluation.separation import measure_separation, profile_points
from gcpl_lab.training.device import default_device
from gcpl_lab.views import style
from gcpl_lab.views.plots import plot_map, plot_token_journey
from gcpl_lab.views.projection import project
from gcpl_lab.workshop import course

preset = "tiny"
diffusion = FrozenDiffusion.load(preset, device=default_device())

# %% [markdown]
# ## Something to look at
#
# Notebook 04 left four trainings on five kinds of tops, the states on their way, and the errors of 150 test images:
# under the class names (step 0), and under the prompts of GCPL, CoMPLe, the discriminative objective and the control,
# whose labels were shuffled. Two more states of GCPL are measured here.

# %%
from gcpl_lab.gcpl.classifier import DiffusionClassifier

earlier = course.load_state("04", diffusion)  # absent? run notebook 04, or: gcpl-lab catch-up 04
gcpl = GCPLClassifier.load(earlier.folder / "gcpl", diffusion)
names, labels, latents = earlier.facts["class_names"], earlier.tensors["labels"].numpy(), earlier.tensors["latents"]
journeys = {}
for method in ("GCPL", "CoMPLe", "Discriminative", "Shuffled labels"):
    steps, path = earlier.tensors[f"steps/{method}"].tolist(), earlier.tensors[f"journey/{method}"]
    journeys[method] = dict(zip(steps, path, strict=True))


# %%
@torch.no_grad()
def errors_at(vectors):
    parts = torch.func.functional_call(gcpl.prompts_, {"vectors": vectors}, ())
    judge = DiffusionClassifier(
        diffusion, diffusion.encode_prompts(*parts), timestep_range=gcpl.timestep_range, bfloat16=True
    )
    return judge.exact(latents, num_samples=8).errors


known = {key: value.numpy() for key, value in earlier.tensors.items() if key.startswith("errors/")}
errors = {f"step {step}": errors_at(journeys["GCPL"][step]) for step in (2, 32)}
errors |= {"names": known["errors/GCPL/0"], "step 8": known["errors/GCPL/8"], "step 120": known["errors/GCPL/120"]}
errors |= {"CoMPLe": known["errors/CoMPLe/120"], "discriminative": known["errors/Discriminative/140"]}
errors["shuffled labels"] = known["errors/Shuffled labels/120"]
errors["names"].shape

# %% [markdown]
# ## The idea
#
# A map puts points of many dimensions on paper. Something is always lost. Two questions come before every map:
#
# 1. **Which space?** A space that learning did not touch cannot show learning.
# 2. **How much is lost?** *Trustworthiness* of the map, from 0 to 1: are neighbours on paper neighbours in truth?
#    *Separation* of the classes, in the *original space*: the silhouette $s = (b - a) / \max(a, b)$ with $a$ the mean
#    distance to one's own class and $b$ to the nearest other; and how often a nearest neighbour is of the own class.
#
# The map is for finding questions. The numbers are for answering them.
#
# ## One tensor
#
# An image's *profile*: its denoising error under every class prompt at every timestep, relative to the mean over
# classes. And what the classifier reads of it: the mean over timesteps, one score a class.

# %%
from gcpl_lab.evaluation.look_alikes import relative_scores, share_in_own_sector

profiles = {state: profile_points(found) for state, found in errors.items()}
scores = {state: relative_scores(found) for state, found in errors.items()}
profiles["names"].shape, scores["names"].shape

# %%
answers = ["about 20 %, as by chance", "clearly less than with true labels", "about as often as with true labels"]
first = course.guess("07.1", "labels shuffled: how often is an image's nearest profile one of its own class?", answers)
first

# %% [markdown]
# ## A map that does not see it

# %%
looked_at = ("names", "step 120", "shuffled labels")
raw = {state: profiles[state] for state in looked_at}
near = {state: measure_separation(points, labels) for state, points in raw.items()}
right = {state: share_in_own_sector(found, labels) for state, found in scores.items()}

# %%
with style.figure_style():
    figure, flat = style.new_figure(13.5, 5.9), project(raw, "pca").points
    for ax, (state, points) in zip(figure.subplots(1, 3), flat.items(), strict=True):
        share, silhouette = near[state].neighbour_accuracy, near[state].silhouette.value
        said = f"neighbour right {share.value:.0%} ({share.low:.0%} to {share.high:.0%})\nsilhouette {silhouette:.2f}"
        plot_map(ax, points, labels, names, None, f"Raw error profiles: {state}", said, window=flat.values())
figure

# %% [markdown]
# **What you see.** Under learned prompts the cloud is larger, because the errors differ more. "Neighbour right" is no
# better after learning than before, and its intervals overlap with the control's. The silhouette moves a little. The
# names stand at each class's median.
#
# **What it does not say.** Whether anything was learned. A profile holds whatever *any* classifier could read from the
# errors, with names, learned prompts or wrong ones; the decision is made from the class scores alone:

# %%
for state in looked_at:
    neighbour = near[state].neighbour_accuracy.value
    print(f"{state:16s} neighbour right {neighbour:.0%}; decided right {right[state].value:.0%}")
gap = near["step 120"].neighbour_accuracy.value - near["shuffled labels"].neighbour_accuracy.value
measured_gap = 0 if near["shuffled labels"].neighbour_accuracy.value < 0.28 else (1 if gap > 0.1 else 2)
print(first.reveal(answers[measured_gap]))

# %% [markdown]
# ## The map of what the classifier reads
#
# The class scores become probabilities, and one UMAP is fitted for *all* states together, so that a point may be
# followed from map to map. Rings are the places of the classes: where an image would lie that is surely of this class.
# "In own sector" is the share that is decided right; "worst pair" the two classes whose scores part least (AUC: how
# often an image of one has the higher score than an image of the other; 0.5 is chance).

# %%
from dataclasses import replace

from gcpl_lab.views.moving import moving_scores
from gcpl_lab.views.score_strip import fit_score_map, score_strip
from gcpl_lab.views.widgets import Player

looks, controls = style.class_style(names, {"tops": names}), ["shuffled labels"]
found = fit_score_map(scores, labels, names)
way = ["names", "step 2", "step 8", "step 32", "step 120"]
journey = replace(found, probabilities={state: found.probabilities[state] for state in (*way, *controls)})
Player(moving_scores(journey, controls, looks))

# %% [markdown]
# The slider (arrow keys) and the play button go through training, beside the control. Without a kernel all states stand
# side by side, as above.
#
# **What you see.** Under the names most images lie in one cloud between the rings. After eight and after 32 steps more
# have come to their own rings, and the AUC of the worst pair grows; by step 120 both are a little lower, within the
# intervals. In the control (dotted frame) they gather between the rings, and the numbers fall.
#
# **What it does not say.** Distances: UMAP keeps neighbourhoods, so a gap on it is no measure.
#
# The end of every training, on the same map:

# %%
score_strip(found, ["step 120", "CoMPLe", "discriminative", "shuffled labels"], looks, controls)

# %% [markdown]
# **What you see.** GCPL, CoMPLe and the discriminative objective send the images to the same rings, to about the same
# extent. Under shuffled labels they stay between the rings; hardly more are right than by chance (20 %).
#
# **What it does not say.** Which of the three is best; their intervals overlap (notebook 04 compares image by image).
#
# ## The prompts' own way
#
# The class tokens, and what the text encoder makes of them. All methods on one map.

# %%
from gcpl_lab.evaluation.features import prompt_outputs

outputs = {method: prompt_outputs(diffusion, gcpl.prompts_, path) for method, path in journeys.items()}
flat = {f"{method} {step}": points for method, path in outputs.items() for step, points in path.items()}
together = project(flat, "pca")
with style.figure_style():
    figure = style.new_figure(15, 5.6)
    shown = ("GCPL", "CoMPLe", "Shuffled labels")
    for ax, method in zip(figure.subplots(1, 3), shown, strict=True):
        steps = sorted(outputs[method])
        path = np.stack([together.points[f"{method} {step}"] for step in steps])
        plot_token_journey(ax, path, steps, names, window=together.points.values())
        ax.set_title(method)
figure

# %% [markdown]
# **What you see.** The text encoder's outputs of the five prompts, from the names (hollow) to the end. CoMPLe's
# prompts walk far, t-shirt and dress farthest; of GCPL's only the dress does. In the control all stay near the names.
#
# **What it does not say.** That farther is better: the denoiser may not react to the direction in which a prompt walks.

# %% [markdown]
# ## Linked: the prompts part, do the images follow?
#
# One slider, two panels: the mean cosine of the five prompts (directions from the mean of all ten class names; 1 is the
# same prompt), and the share of images that are right at the same step.

# %%
from scipy.spatial.distance import pdist

from gcpl_lab.gcpl.prompts import ClassPrompts

with torch.no_grad():
    ten = ClassPrompts(diffusion, load_fashion("test").class_names, num_vectors=4).to(diffusion.device)
    middle = diffusion.encode_prompts(*ten()).float().flatten(1).mean(0).cpu().numpy()

# %%
curves, shares = {}, {}
for method, path in outputs.items():
    cosines = [1 - pdist(path[step] - middle, "cosine").mean() for step in sorted(path)]
    curves[method] = (np.array(sorted(path)), np.array(cosines))
    measured = {int(key.split("/")[2]): known[key] for key in known if key.split("/")[1] == method}
    measured |= {2: errors["step 2"], 32: errors["step 32"]} if method == "GCPL" else {}
    shares[method] = [
        (step, *share_in_own_sector(relative_scores(measured[step]), labels)) for step in sorted(measured)
    ]

# %%
from gcpl_lab.views.moving import moving_lines

Player(moving_lines(curves, shares, chance=1 / len(names)))

# %% [markdown]
# **What you see.** Left: most of the way lies in the first steps. CoMPLe's prompts part fastest and come together
# again; GCPL's go on. Right: images follow where labels are true, GCPL's and CoMPLe's to the same height.
#
# **What it does not say.** Which prompts are better: the distance of prompts is not what is ranked.

# %% [markdown]
# ## Four methods, the very same points
#
# PCA keeps large distances and is exact. t-SNE and UMAP keep neighbourhoods and *tear apart what lies between them*:
# gaps and sizes of clusters mean little. densMAP is UMAP that keeps densities. All four show profiles after GCPL, and
# *trustworthiness* is 1 where no neighbour on the map is a stranger in the original space.

# %%
methods = {"pca": "PCA", "tsne": "t-SNE", "umap": "UMAP", "densmap": "densMAP"}
four = {method: project(profiles["step 120"], method, seed=0) for method in methods}
for pair in (("pca", "tsne"), ("umap", "densmap")):
    with style.figure_style():
        figure = style.new_figure(12.8, 6.9)
        for ax, method in zip(figure.subplots(1, 2), pair, strict=True):
            trust = f"{four[method].note}; trustworthiness {four[method].trustworthiness['all']:.2f}"
            plot_map(ax, four[method].points["all"], labels, names, title=methods[method], caption=trust)
    display(figure)

# %% [markdown]
# **What you see.** On all four, t-shirt and dress lie apart from the three with long sleeves. UMAP and densMAP tear the
# t-shirts nearly off; PCA shows a gradual transition.
#
# **What it does not say.** That there is a gap. Whether the map is kinder than the data is a count:

# %%
from gcpl_lab.evaluation.separation import neighbour_correctness


def neighbour_right(points):
    return np.nanmean(neighbour_correctness(points, labels))


truth = neighbour_right(profiles["step 120"])
print(f"original space: the nearest neighbour has the same class in {truth:.0%} of cases")
for method, placed in four.items():
    on_map = neighbour_right(placed.points["all"])
    print(f"{method:8s} {on_map:.0%} on the map: {'flatters' if on_map > truth else 'does not flatter'}")

# %% [markdown]
# ## A map that does flatter
#
# 150 points of pure noise in 120 dimensions have no classes. A method that knows the labels (linear discriminant
# analysis, fitted and shown on the same points) makes tidy islands of them all the same.

# %%
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

noise = np.random.default_rng(0).normal(size=(150, 120))
islands = LinearDiscriminantAnalysis(n_components=2).fit(noise, labels).transform(noise)
shown_right, noise_right = neighbour_right(islands), neighbour_right(noise)
warning = f"nearest neighbour right: {shown_right:.0%} on the map, {noise_right:.0%} in the original space"
with style.figure_style():
    figure = style.new_figure(8, 8.6)
    plot_map(figure.subplots(), islands, labels, names, title="Islands made of noise", caption=warning)
figure

# %% [markdown]
# **What you see.** Four islands: three classes have one each; coat and pullover share the fourth, since what parts them
# lies on the axes that are not drawn.
#
# **What it does not say.** Anything about images: every point is a random number. The line under the map
# compares with the original space, and that is what gives it away.
#
# ## Inside the denoiser
#
# What does the frozen network know about the garments before any prompt says a word? A hook takes each block's
# output, with the empty prompt, and the separation is measured block by block.

# %%
from gcpl_lab.evaluation.features import denoiser_features, denoiser_layers

nothing = diffusion.encode_texts([""])
inside = {layer: denoiser_features(diffusion, latents, nothing, layer=layer) for layer in denoiser_layers(diffusion)}
layers = {layer: measure_separation(points, labels).neighbour_accuracy for layer, points in inside.items()}
best = max(layers, key=lambda layer: layers[layer].value)
for layer, estimate in layers.items():
    print(f"{layer:16s} neighbour right {estimate.value:.0%} ({estimate.low:.0%} to {estimate.high:.0%})")

# %%
with style.figure_style():
    figure = style.new_figure(8, 8.6)
    placed = project(inside[best], "pca")
    caption = f"{placed.note}; trustworthiness {placed.trustworthiness['all']:.2f}"
    plot_map(figure.subplots(), placed.points["all"], labels, names, title=f"Denoiser, {best}", caption=caption)
figure

# %% [markdown]
# **What you see.** Without any prompt the middle of the network already parts dress and t-shirt somewhat from the rest.
#
# **What it does not say.** That a prompt can use it: neighbours are right about as often as in the profiles, and no
# map of this space changes when prompts are trained.
#
# ## CLIP: images and class prompts together
#
# Scenes with several garments (notebook 06), each marked by the *rarest* class it shows, and the ten class
# prompts before and after LMPT. Images and texts of CLIP lie in different corners of the sphere (the *modality gap*);
# each cloud is centred first, or the map would show nothing but the gap.

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
modality_gap = float((views[0].mean(0) - lmpt.start_features_.mean(0)).norm())
f"distance of the two clouds' centres: {modality_gap:.2f}; of two scenes: {pdist(views[0].numpy()).mean():.2f}"

# %%
centres = {name: clouds["prompts before" if "prompt" in name else name].mean(0) for name in clouds}
centred = {name: (points - centres[name]).numpy() for name, points in clouds.items()}
placed = project(centred, "pca", fit_on="scenes")
counts = scenes.class_counts()
part_of = {int(label): part for part, ids in head_medium_tail(counts).items() for label in ids}
rarest = [part_of[min(np.flatnonzero(row), key=lambda label: counts[label])] for row in scenes.targets]
parts = {part: style.PART_LOOKS[part] for part in ("head", "medium", "tail")}

# %%
from gcpl_lab.views.panels import name_places

with style.figure_style():
    figure = style.new_figure(11, 8.4)
    ax = figure.subplots()
    for part, (color, marker) in parts.items():
        x, y = placed.points["scenes"][np.array(rarest) == part].T
        ax.scatter(x, y, s=26, color=color, marker=marker, alpha=0.5, label=f"scene, rarest: {part}")
    start, end = placed.points["prompts before"], placed.points["prompts after"]
    ax.quiver(*start.T, *(end - start).T, angles="xy", scale_units="xy", scale=1, width=0.003, color=style.GREY)
    ax.set(xticks=[], yticks=[], xlabel=f"{placed.note}; arrows: prompts through training")
    ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1.01, 1))
    taken = np.concatenate([placed.points["scenes"], start, (start + end) / 2, end])
    name_places(ax, end, scenes.class_names, [parts[part_of[c]][0] for c in range(10)], taken)
figure

# %% [markdown]
# **What you see.** Tops start close together, and so does footwear. Trousers, sneaker and t-shirt, the head classes,
# are pulled outwards, each to its own side; ankle boot and sandal move a little towards the middle, the bag
# moves least.
#
# **What it does not say.** How well scenes are recognised: two axes hold half of the variance, and the average
# precision of notebook 06 is not on paper.
#
# ## Take it away
#
# A hover map (every point with its image and answer) and a flip-book of the maps above: one HTML file each, which opens
# without a server or a network.

# %%
import tempfile
from pathlib import Path

from gcpl_lab.views.interactive import frames_of, write_flip_book, write_hover_map

folder = Path(tempfile.mkdtemp())  # choose a folder of your own
maps = project({state: np.sqrt(found.probabilities[state]) for state in looked_at}, "pca")
of_name = {path.name: path for path in load_fashion("test").images}
photographs = [of_name[name] for name in earlier.facts["images"]]
about = {"images": photographs, "predictions": {state: scores[state].argmax(1) for state in looked_at}}
write_hover_map(folder / "hover.html", maps, labels, names, title="What the classifier reads", **about)
pages = [(score_strip(found, [state, *controls], looks, controls), state) for state in way]
write_flip_book(folder / "scores.html", frames_of(pages), title="Class scores", alt="Images move to their rings")
sorted(path.name for path in folder.iterdir())

# %% [markdown]
# And slides: a figure drawn at the size of a slide, a chart that stays editable, notes, and a line that says where the
# numbers come from.

# %%
from gcpl_lab.views.slides import Bars, Deck, Provenance, slide_figure, to_slide

with style.figure_style("slide"):
    drawn = slide_figure()
    plot_map(drawn.subplots(), maps.points["step 120"], labels, names)
ends = [right[state] for state in looked_at]
bars = Bars(list(looked_at), *np.array(ends).T.tolist(), axis="decided right, 95 % interval")
deck = Deck(Provenance(seed=0, checksum=load_fashion("test").checksum, command="notebook 07"))
about_map = {"alt": "Map of 150 images: three look-alikes overlap, t-shirt and dress do not"}
deck.add(to_slide(drawn, "Tops after learning", "A map; the next slide has the number.", "PCA of scores", **about_map))
deck.add(to_slide(bars, "True labels move images, shuffled do not", "Measured in the scores.", "95 % Wilson intervals"))
[path.relative_to(folder).as_posix() for path in deck.save(folder / "slides.pptx")]

# %% tags=["sanity"]
assert right["step 120"].low > right["shuffled labels"].value, "the control learned classes: were labels shuffled?"
assert min(entry.neighbour_accuracy.value for entry in near.values()) > 0.3, "no better than chance: check labels"
assert all(placed.trustworthiness["all"] > 0.7 for placed in four.values()), "a map that cannot be trusted at all"
assert shown_right > noise_right + 0.1, "the islands made of noise must flatter"
f"decided right: {right['names'].value:.0%} under the names, {right['step 120'].value:.0%} under learned prompts"

# %% [markdown]
# ## Exercises

# %% [markdown]
# ### Exercise 1 · medium · 10 minutes
#
# Put an image on the decision map by hand: three scores to two coordinates, so that a lead of one class points to its
# corner (`CORNERS`, a row a class) and equal scores land at the centre.
#
# <details><summary>Hint</summary>Take the mean of the three scores away, then add up the corners, each weighted with
# its score.</details>
#
# **Expected:** `right`, in one line; any positive scale will do.

# %% tags=["exercise"]
from gcpl_lab.evaluation.look_alikes import CORNERS


def on_the_map(three_scores):
    return three_scores[:, :2]  # yours instead


# %% tags=["check"]
def check_places(place):
    given = np.random.default_rng(0).normal(size=(50, 3))
    points = np.asarray(place(given))
    if points.shape != (50, 2) or not np.allclose(place(np.ones((1, 3))), 0, atol=1e-9):
        return "still wrong: three equal scores should land at (0, 0)"
    if not np.array_equal((points @ CORNERS.T).argmax(1), given.argmax(1)):
        return "still wrong: an image is not in the sector of its largest score"
    lengths = np.linalg.norm(points, axis=1) / np.linalg.norm(given - given.mean(1, keepdims=True), axis=1)
    return "right" if lengths.std() < 1e-9 else "still wrong: distances are not kept"


check_places(on_the_map)


# %% tags=["solution"]
def on_the_map(three_scores):
    return (three_scores - three_scores.mean(1, keepdims=True)) @ CORNERS


check_places(on_the_map)

# %% [markdown]
# ### Exercise 2 · easy · 5 minutes
#
# Give UMAP another seed (`fit_score_map(scores, labels, names, seed=1)`). What stays, and what was chance?
#
# <details><summary>Hint</summary>Compare the *order* of the rings and the numbers under the maps.</details>
#
# **Expected:** the numbers stay to the last digit; the rings change places.

# %% tags=["exercise"]
another = found  # yours instead


# %% tags=["check"]
def check_seed(map_of):
    if np.allclose(map_of.projection.points["names"], found.projection.points["names"]):
        return "still wrong: every point is where it was; give another seed"
    same = map_of.describe("step 120") == found.describe("step 120")
    return "right: places are chance, numbers are not" if same else "still wrong: these are other scores"


check_seed(another)

# %% tags=["solution"]
another = fit_score_map(scores, labels, names, seed=1)
check_seed(another)

# %% tags=["solution"]
score_strip(another, ["names", "step 120", "shuffled labels"], looks)

# %% [markdown]
# ### Exercise 3 · medium · 8 minutes
#
# At which noise level do the denoiser's features tell the tops apart best? Try `timestep` 0.1, 0.3, 0.6 and 0.9.
#
# <details><summary>Hint</summary><code>denoiser_features(diffusion, latents, nothing, layer=best,
# timestep=0.1)</code>, then <code>measure_separation</code>.</details>
#
# **Expected:** between 50 and 65 %, so near each other that 150 images do not tell which is best.

# %% tags=["exercise"]
at_noise = dict.fromkeys((0.1, 0.3, 0.6, 0.9), 0.0)  # share of T: how often a neighbour is right


# %% tags=["check"]
def check_noise(shares_of):
    if not all(0.2 < share < 1 for share in shares_of.values()):
        return "still wrong: a share is not measured yet"
    if len(set(shares_of.values())) == 1:
        return f"still wrong: the same at every noise level; is timestep given to the block {best}?"
    return "right: " + ", ".join(f"{timestep} T {share:.0%}" for timestep, share in shares_of.items())


check_noise(at_noise)

# %% tags=["solution"]
for timestep in at_noise:
    points = denoiser_features(diffusion, latents, nothing, layer=best, timestep=timestep)
    at_noise[timestep] = measure_separation(points, labels).neighbour_accuracy.value
check_noise(at_noise)

# %% [markdown]
# ## Check yourself
#
# **1.** Two clusters are far apart on a UMAP. What follows?
#
# <details><summary>The classes are easy to tell apart.</summary>No: gaps on such a map are no distances.</details>
# <details><summary>Nothing yet: measure the separation in the original space, beside a control.</summary>
# Right: that is where the classifier works.</details>
# <details><summary>The perplexity was too low.</summary>
# No: that is a setting of t-SNE, and it is not the point.</details>
#
# **2.** Why does "neighbour right" in raw profiles not move when prompts are learned?
#
# <details><summary>The prompts have learned nothing.</summary>No: decisions are right more often.</details>
# <details><summary>A profile holds what any classifier could read; learning changes what this one reads.</summary>
# Right: so the class scores are the space to map.</details>
# <details><summary>150 images are too few.</summary>No: they are enough to see accuracy move.</details>

# %% [markdown]
# ## What we found
#
# On which map does one see that look-alikes come apart, and that it was the labels that did it?

# %% tags=["found"]
by_neighbour = {state: near[state].neighbour_accuracy.value for state in looked_at}
Markdown(
    f"""
- Raw profiles, nearest neighbour of the own class: names {by_neighbour["names"]:.0%}, GCPL
  {by_neighbour["step 120"]:.0%}, **shuffled labels {by_neighbour["shuffled labels"]:.0%}**. This map is nearly blind.
- What the classifier reads, right: names {right["names"].value:.0%}, after 8 steps {right["step 8"].value:.0%},
  after 120 **{right["step 120"].value:.0%}**, CoMPLe {right["CoMPLe"].value:.0%}, discriminative
  {right["discriminative"].value:.0%}, **shuffled labels {right["shuffled labels"].value:.0%}**.
- The map of the class scores shows it.
- Noise, drawn by a method that knows the labels: tidy islands; {warning}.
"""
)
