"""How the tiny pair of frozen models was made: tokenizer, VAE, CLIP and denoiser, from raw images.

Every stage draws its randomness from (seed, step) alone, so an interrupted stage resumes from its last
checkpoint and ends as if it had not been interrupted. Only ``PRETRAIN_PART`` of the training images is
seen (see ``tools.raw_fashion``).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from gcpl_lab.data.samples import SAMPLES_FORMAT
from gcpl_lab.errors import ArtifactError
from gcpl_lab.models.clip import encode_token_embeddings
from gcpl_lab.models.diffusion import quiet_libraries
from gcpl_lab.storage import file_checksums, read_json, read_tensors, write_json, write_tensors, write_text
from tools.captions import AttributeScale, caption_vocabulary, photo_caption, scene_caption
from tools.raw_fashion import PRETRAIN_PART, RawFashion, read_raw_fashion
from tools.scenes import CANVAS_SIZE, compose_scene
from tools.words import COMMON_WORDS

CONTEXT_LENGTH = 32
TEXT_WIDTH = 128
IMAGE_MEAN, IMAGE_STD = 0.3, 0.35
LATENT_IMAGE_SIZE = 32


@dataclass(frozen=True)
class StageConfig:
    """How long and how fast one stage trains.

    Attributes:
        num_steps: Optimiser updates.
        batch_size: Images an update.
        learning_rate: Peak of AdamW's rate; linear warm-up, constant, then a cosine to zero over the last
            ``decay_share`` of the steps.
        decay_share: Share of the steps in the final decay.
        weight_decay: AdamW's, on matrices only.
        bfloat16: Autocast the forward pass.
        ema: Decay of the weight average that is kept in the end; 0 keeps the last weights.
    """

    num_steps: int
    batch_size: int = 128
    learning_rate: float = 1e-3
    decay_share: float = 0.3
    weight_decay: float = 0.01
    bfloat16: bool = False
    ema: float = 0.0


@dataclass(frozen=True)
class PretrainConfig:
    """All stages; the defaults made the shipped pair."""

    seed: int = 0
    vae: StageConfig = field(default_factory=lambda: StageConfig(1800, 64, 2e-3))
    clip: StageConfig = field(default_factory=lambda: StageConfig(1400, 256, 1e-3, 0.6, 0.1, bfloat16=True))
    denoiser: StageConfig = field(default_factory=lambda: StageConfig(4200, 128, 1e-3, 0.3, 0.01, ema=0.999))
    checkpoint_seconds: float = 60.0


class PretrainData:
    """The pretraining part in memory, with the measured levels that captions tell."""

    def __init__(self, raw: RawFashion) -> None:
        part = slice(PRETRAIN_PART.start, PRETRAIN_PART.stop)
        self.images = raw.train_images[part]
        self.labels = raw.train_labels[part]
        self.scale = AttributeScale.fit(self.images, self.labels)
        self.levels = self.scale.levels(self.images, self.labels)

    def photo_captions(self, indices: np.ndarray, rng: np.random.Generator) -> list[str]:
        """One fresh caption for each of the images ``indices`` (batch,)."""
        return [photo_caption(int(self.labels[i]), self.levels[i], rng) for i in indices]

    def clip_batch(self, batch_size: int, rng: np.random.Generator) -> tuple[np.ndarray, list[str]]:
        """Half single garments, half scenes of one to five items, with captions.

        Returns:
            uint8 (batch, 64, 64) and ``batch`` captions.
        """
        num_scenes = batch_size // 2
        singles = rng.integers(0, len(self.images), batch_size - num_scenes)
        photos = torch.from_numpy(self.images[singles]).unsqueeze(1).float()
        photos = F.interpolate(photos, size=CANVAS_SIZE, mode="bicubic", align_corners=False).clamp(0, 255)
        images = [photos[:, 0].round().byte().numpy()]
        captions = self.photo_captions(singles, rng)
        scenes = []
        for _ in range(num_scenes):
            items = rng.integers(0, len(self.images), int(rng.integers(1, 6)))
            scenes.append(compose_scene([self.images[i] for i in items], rng))
            captions.append(scene_caption([int(self.labels[i]) for i in items], [self.levels[i] for i in items], rng))
        batch = np.concatenate([*images, np.stack(scenes)])
        flipped = rng.random(batch_size) < 0.5
        batch[flipped] = batch[flipped][:, :, ::-1]
        return batch, captions


# ---------------------------------------------------------------------------------------------- training


def _learning_rate(config: StageConfig, step: int) -> float:
    warmup = min(200, max(1, config.num_steps // 10))
    decay_steps = max(1, int(config.num_steps * config.decay_share))
    left = config.num_steps - step
    factor = 1.0 if left >= decay_steps else 0.5 * (1 - math.cos(math.pi * left / decay_steps))
    return config.learning_rate * min(1.0, (step + 1) / warmup) * factor


def train_stage(
    name: str,
    model: nn.Module,
    loss_at: Callable[[int], Tensor],
    config: StageConfig,
    folder: Path,
    checkpoint_seconds: float,
) -> Iterator[dict[str, Any]]:
    """Train one stage, yielding a record every 20 steps, and leave the final weights in ``model``.

    Args:
        name: Names the checkpoint and the log.
        model: Trained in place.
        loss_at: Computes the loss of a step; all its randomness comes from the step's number.
        config: Length and rates.
        folder: Where ``<name>.safetensors`` and ``<name>.log.jsonl`` are kept.
        checkpoint_seconds: Time between checkpoints.
    """
    matrices = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    vectors = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=config.learning_rate,
        betas=(0.9, 0.98),
    )
    average = {key: value.clone() for key, value in model.state_dict().items()} if config.ema else {}
    path = folder / f"{name}.safetensors"
    start = _restore(path, model, optimizer, average) if path.is_file() else 0
    log = folder / f"{name}.log.jsonl"
    model.train()
    running, saved_at, began = [], time.monotonic(), time.monotonic()
    for step in range(start, config.num_steps):
        for group in optimizer.param_groups:
            group["lr"] = _learning_rate(config, step)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast("cpu", torch.bfloat16, enabled=config.bfloat16):
            loss = loss_at(step)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        if config.ema:
            decay = min(config.ema, (1 + step) / (10 + step))
            with torch.no_grad():
                for key, value in model.state_dict().items():
                    average[key].lerp_(value.to(average[key].dtype), 1 - decay)
        running.append(float(loss.detach()))
        done = step + 1
        if done % 20 == 0 or done == config.num_steps:
            record = {
                "stage": name,
                "step": done,
                "num_steps": config.num_steps,
                "loss": float(np.mean(running)),
                "seconds_per_step": (time.monotonic() - began) / (done - start),
            }
            running = []
            with open(log, "a", encoding="utf-8") as stream:
                stream.write(json.dumps(record) + "\n")
            yield record
        if done == config.num_steps or time.monotonic() - saved_at > checkpoint_seconds:
            _save(path, model, optimizer, average, done)
            saved_at = time.monotonic()
    if config.ema:
        model.load_state_dict(average)
    model.eval().requires_grad_(False)


def _save(
    path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor], step: int
) -> None:
    tensors = {f"model.{key}": value for key, value in model.state_dict().items()}
    tensors |= {f"average.{key}": value for key, value in average.items()}
    for index, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": torch.as_tensor(value) for key, value in state.items()}
    write_tensors(path, tensors, {"step": str(step)})


def _restore(path: Path, model: nn.Module, optimizer: torch.optim.Optimizer, average: dict[str, Tensor]) -> int:
    tensors, metadata = read_tensors(path)
    model.load_state_dict({k.removeprefix("model."): v for k, v in tensors.items() if k.startswith("model.")})
    for key in average:
        average[key] = tensors[f"average.{key}"]
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        if key.startswith("optimizer."):
            _, index, entry = key.split(".", 2)
            state.setdefault(int(index), {})[entry] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return int(metadata["step"])


def _generators(seed: int, stage: int, step: int) -> tuple[np.random.Generator, torch.Generator]:
    rng = np.random.default_rng([seed, stage, step])
    return rng, torch.Generator().manual_seed(int(rng.integers(2**62)))


# ------------------------------------------------------------------------------------------------ stages


def build_tokenizer(folder: Path) -> Any:
    """Make CLIP's kind of byte-pair tokenizer with the captions' words as whole tokens.

    Other English words fall back to pieces and bytes, so every text in any language has tokens.
    """
    from tokenizers import Tokenizer, models, pre_tokenizers, trainers
    from transformers import CLIPTokenizer

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=100_000, min_frequency=1, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    learner = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    splits = [(" ", "removed"), ("-", "isolated"), (",", "isolated")]
    learner.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(*split) for split in splits])
    learner.train_from_iterator([*caption_vocabulary(), *COMMON_WORDS], trainer)
    merges = [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]
    pieces = [*alphabet, *(letter + "</w>" for letter in alphabet)]
    known = set(pieces)
    for first, second in merges:
        if first + second not in known:
            known.add(first + second)
            pieces.append(first + second)
    pieces += ["<|startoftext|>", "<|endoftext|>"]
    vocabulary = {piece: index for index, piece in enumerate(pieces)}
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CONTEXT_LENGTH)
    _save_tokenizer(tokenizer, folder)
    return tokenizer


def tokenize(tokenizer: Any, texts: list[str]) -> Tensor:
    """int64 (batch, context length): start, words, end, then end tokens as padding (as Stable Diffusion does)."""
    encoded = tokenizer(texts, padding="max_length", truncation=True, max_length=CONTEXT_LENGTH, return_tensors="pt")
    ids: Tensor = encoded.input_ids
    return ids


def build_vae() -> Any:
    """An ``AutoencoderKL`` from 32×32 RGB to 4 × 8 × 8 latents."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        sample_size=LATENT_IMAGE_SIZE,
        block_out_channels=(16, 32, 64),
        layers_per_block=1,
        norm_num_groups=8,
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
    )


def build_clip(vocab_size: int) -> Any:
    """An open_clip ``CLIP``: a 64-px ViT with patches of 8 and a causal text transformer."""
    import open_clip

    return open_clip.model.CLIP(**clip_config(vocab_size))


def clip_config(vocab_size: int) -> dict[str, Any]:
    """The ``model_cfg`` of ``open_clip_config.json``."""
    return {
        "embed_dim": 128,
        "vision_cfg": {
            "image_size": CANVAS_SIZE,
            "layers": 5,
            "width": 160,
            "head_width": 32,
            "patch_size": 8,
            "mlp_ratio": 3.0,
        },
        "text_cfg": {
            "context_length": CONTEXT_LENGTH,
            "vocab_size": vocab_size,
            "width": TEXT_WIDTH,
            "heads": 4,
            "layers": 4,
            "hf_tokenizer_name": "tiny",
            "eos_id": vocab_size - 1,
        },
    }


def build_denoiser() -> Any:
    """A ``UNet2DConditionModel`` that hears the prompt at its 4×4 level only, so that most of it is shared."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        layers_per_block=1,
        block_out_channels=(64, 128),
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=(2, 4),
        norm_num_groups=16,
    )


def build_scheduler() -> Any:
    """Stable Diffusion 1.x's noise schedule."""
    from diffusers import DDPMScheduler

    return DDPMScheduler(
        num_train_timesteps=1000,
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        clip_sample=False,
        prediction_type="epsilon",
        steps_offset=1,
    )


def _to_rgb(images: np.ndarray, size: int) -> Tensor:
    """uint8 (batch, side, side) to float32 (batch, 3, size, size) in [-1, 1]."""
    values = torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1).float()
    if values.shape[-1] != size:
        values = F.interpolate(values, size=size, mode="bicubic", align_corners=False, antialias=True).clamp(0, 255)
    return (values / 127.5 - 1).expand(-1, 3, -1, -1)


def train_vae(data: PretrainData, vae: Any, config: PretrainConfig, folder: Path) -> Iterator[dict[str, Any]]:
    """Mean absolute and squared error with a light KL term; afterwards ``scaling_factor`` makes latents unit."""
    stage = config.vae

    def loss_at(step: int) -> Tensor:
        rng, generator = _generators(config.seed, 1, step)
        indices = rng.integers(0, len(data.images), stage.batch_size)
        images = _to_rgb(data.images[indices], LATENT_IMAGE_SIZE)
        if step % 2:
            images = images.flip(-1)
        posterior = vae.encode(images).latent_dist
        decoded = vae.decode(posterior.sample(generator)).sample
        divergence = 0.5 * (posterior.mean.square() + posterior.var - 1 - posterior.logvar).mean()
        return F.l1_loss(decoded, images) + F.mse_loss(decoded, images) + 1e-3 * divergence

    yield from train_stage("vae", vae, loss_at, stage, folder, config.checkpoint_seconds)


def train_clip(
    data: PretrainData, clip: Any, tokenizer: Any, config: PretrainConfig, folder: Path
) -> Iterator[dict[str, Any]]:
    """CLIP's symmetric cross entropy on images and scenes, both towers."""

    def loss_at(step: int) -> Tensor:
        rng, _ = _generators(config.seed, 2, step)
        return _contrastive_loss(clip, tokenizer, *data.clip_batch(config.clip.batch_size, rng))

    yield from train_stage("clip", clip, loss_at, config.clip, folder, config.checkpoint_seconds)


def _contrastive_loss(clip: Any, tokenizer: Any, images: np.ndarray, captions: list[str]) -> Tensor:
    values = torch.from_numpy(np.ascontiguousarray(images)).unsqueeze(1).float().div_(255)
    values = ((values - IMAGE_MEAN) / IMAGE_STD).expand(-1, 3, -1, -1)
    ids = tokenize(tokenizer, captions)
    ends = (ids == ids.max()).int().argmax(1)
    image_features = F.normalize(clip.encode_image(values).float(), dim=-1)
    order = ends.argsort()  # captions of like length together, so that short ones run on few positions
    parts = []
    for part in order.chunk(4):
        longest = int(ends[part].max()) + 1
        parts.append(encode_token_embeddings(clip, clip.token_embedding(ids[part, :longest]), ends[part])[1])
    text_features = torch.cat(parts)[order.argsort()]
    logits = clip.logit_scale.exp().clamp(max=100) * image_features @ F.normalize(text_features.float(), dim=-1).T
    targets = torch.arange(len(logits))
    return (F.cross_entropy(logits, targets) + F.cross_entropy(logits.T, targets)) / 2


@torch.no_grad()
def encode_latents(data: PretrainData, vae: Any) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of every image's latent and its mirror image's.

    Returns:
        Two float32 (2, count, 4, 8, 8), before scaling.
    """
    means, deviations = [], []
    for flip in (False, True):
        for start in range(0, len(data.images), 500):
            images = _to_rgb(data.images[start : start + 500], LATENT_IMAGE_SIZE)
            posterior = vae.encode(images.flip(-1) if flip else images).latent_dist
            means.append(posterior.mean)
            deviations.append(posterior.std)
    shape = (2, len(data.images), *means[0].shape[1:])
    return torch.cat(means).reshape(shape), torch.cat(deviations).reshape(shape)


def train_denoiser(
    data: PretrainData, denoiser: Any, vae: Any, clip: Any, tokenizer: Any, config: PretrainConfig, folder: Path
) -> Iterator[dict[str, Any]]:
    """Noise prediction under fresh captions, one in ten of them empty; the text tower is CLIP's, frozen."""
    stage = config.denoiser
    means, deviations = encode_latents(data, vae)
    factor = float(vae.config.scaling_factor)
    scheduler = build_scheduler()

    def loss_at(step: int) -> Tensor:
        rng, generator = _generators(config.seed, 3, step)
        indices = torch.from_numpy(rng.integers(0, len(data.images), stage.batch_size))
        flips = torch.from_numpy(rng.integers(0, 2, stage.batch_size))
        captions = data.photo_captions(indices.numpy(), rng)
        captions = ["" if rng.random() < 0.1 else caption for caption in captions]
        mean, deviation = means[flips, indices], deviations[flips, indices]
        latents = factor * (mean + deviation * torch.randn(mean.shape, generator=generator))
        noise = torch.randn(latents.shape, generator=generator)
        # Two thirds of the steps go to the upper two thirds' noisier part, where prompts matter most.
        uniform = torch.rand(stage.batch_size, generator=generator)
        timesteps = (1000 * uniform**0.8).long().clamp(max=999)
        ids = tokenize(tokenizer, captions)
        ends = torch.zeros(len(ids), dtype=torch.long)  # the pooled feature is not needed
        with torch.no_grad():
            hidden, _ = encode_token_embeddings(clip, clip.token_embedding(ids), ends)
        noisy = scheduler.add_noise(latents, noise, timesteps)
        return F.mse_loss(denoiser(noisy, timesteps, hidden.float()).sample.float(), noise)

    yield from train_stage("denoiser", denoiser, loss_at, stage, folder, config.checkpoint_seconds)


# ------------------------------------------------------------------------------------------------ export


def set_latent_scale(data: PretrainData, vae: Any) -> None:
    """Put the factor that makes latents of unit spread into the VAE's configuration."""
    with torch.no_grad():
        posterior = vae.encode(_to_rgb(data.images[:2000], LATENT_IMAGE_SIZE)).latent_dist
    vae.register_to_config(scaling_factor=round(1 / float(posterior.mean.std()), 5))


def to_text_encoder(clip: Any) -> Any:
    """transformers' copy of an open_clip text tower, as Stable Diffusion 1.x carries one of CLIP ViT-L/14."""
    from transformers import CLIPTextConfig, CLIPTextModel

    width, layers = clip.token_embedding.weight.shape[1], len(clip.transformer.resblocks)
    end_id = clip.vocab_size - 1
    config = CLIPTextConfig(
        vocab_size=clip.vocab_size,
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=layers,
        num_attention_heads=clip.transformer.resblocks[0].attn.num_heads,
        projection_dim=clip.text_projection.shape[1],
        max_position_embeddings=clip.context_length,
        hidden_act="gelu",
        bos_token_id=end_id - 1,
        eos_token_id=end_id,
        pad_token_id=end_id,
    )
    encoder = CLIPTextModel(config)
    state: dict[str, Tensor] = {
        "embeddings.token_embedding.weight": clip.token_embedding.weight,
        "embeddings.position_embedding.weight": clip.positional_embedding,
        "final_layer_norm.weight": clip.ln_final.weight,
        "final_layer_norm.bias": clip.ln_final.bias,
    }
    for index, block in enumerate(clip.transformer.resblocks):
        prefix = f"encoder.layers.{index}"
        for part in ("weight", "bias"):
            stacked = getattr(block.attn, f"in_proj_{part}").chunk(3)
            for name, value in zip(("q_proj", "k_proj", "v_proj"), stacked, strict=True):
                state[f"{prefix}.self_attn.{name}.{part}"] = value
            state[f"{prefix}.self_attn.out_proj.{part}"] = getattr(block.attn.out_proj, part)
            state[f"{prefix}.layer_norm1.{part}"] = getattr(block.ln_1, part)
            state[f"{prefix}.layer_norm2.{part}"] = getattr(block.ln_2, part)
            state[f"{prefix}.mlp.fc1.{part}"] = getattr(block.mlp.c_fc, part)
            state[f"{prefix}.mlp.fc2.{part}"] = getattr(block.mlp.c_proj, part)
    encoder.load_state_dict({key: value.detach().clone() for key, value in state.items()})
    return encoder.eval()


def export_pair(target: Path, *, vae: Any, clip: Any, denoiser: Any, tokenizer: Any) -> None:
    """Write ``diffusion/`` (a Stable Diffusion pipeline of diffusers) and ``clip/`` (open_clip's own format)."""
    from diffusers import StableDiffusionPipeline

    pipeline = StableDiffusionPipeline(
        vae=vae,
        unet=denoiser,
        text_encoder=to_text_encoder(clip),
        tokenizer=tokenizer,
        scheduler=build_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    with quiet_libraries():
        pipeline.save_pretrained(target / "diffusion", safe_serialization=True)
    # Half precision on disk halves the largest part; loaders cast it back to float32 (the card measures this copy).
    halved = {key: value.half() for key, value in denoiser.state_dict().items()}
    write_tensors(target / "diffusion" / "unet" / "diffusion_pytorch_model.safetensors", halved, {"format": "pt"})
    _save_tokenizer(tokenizer, target / "diffusion" / "tokenizer")
    _save_tokenizer(tokenizer, target / "clip")
    preprocess = {
        "size": CANVAS_SIZE,
        "mean": [IMAGE_MEAN] * 3,
        "std": [IMAGE_STD] * 3,
        "mode": "RGB",
        "interpolation": "bicubic",
        "resize_mode": "shortest",
    }
    config = {"model_cfg": clip_config(clip.vocab_size), "preprocess_cfg": preprocess}
    write_json(target / "clip" / "open_clip_config.json", config)
    write_tensors(target / "clip" / "open_clip_model.safetensors", clip.state_dict(), {"format": "pt"})
    write_checksums(target)


def write_checksums(target: Path) -> None:
    """List the files of both models; those of the bundled pair are compared with it whenever they are loaded."""
    files = {name: value for name, value in file_checksums(target).items() if name.startswith(("clip/", "diffusion/"))}
    write_json(target / "checksums.json", {"format": SAMPLES_FORMAT, "name": "tiny", "files": files})


def _save_tokenizer(tokenizer: Any, folder: Path) -> None:
    """Both ways of storing it: tokenizer.json, and the vocabulary and merges that older loaders read."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    write_json(folder / "vocab.json", model["vocab"])
    lines = "".join(" ".join(pair) + "\n" for pair in model["merges"])
    write_text(folder / "merges.txt", "#version: 0.2\n" + lines)


def run_pretraining(
    raw_folder: str | Path, work: str | Path, target: str | Path, config: PretrainConfig | None = None
) -> Iterator[dict[str, Any]]:
    """Train every stage, yielding its records, and export the finished pair.

    Args:
        raw_folder: The published Fashion-MNIST files.
        work: Checkpoints and logs; what is there is gone on with.
        target: Receives ``diffusion/``, ``clip/`` and ``pretraining.json``.
        config: Length and rates of the stages.

    Raises:
        DataError: The raw files are absent or damaged.
        ArtifactError: The work folder belongs to another configuration.
    """
    config = config or PretrainConfig()
    work, target = Path(work), Path(target)
    work.mkdir(parents=True, exist_ok=True)
    settings = json.loads(json.dumps(asdict(config)))
    if (work / "config.json").is_file() and read_json(work / "config.json") != settings:
        raise ArtifactError(
            f"{work}: holds the checkpoints of another configuration; choose another folder, or delete it to start anew"
        )
    write_json(work / "config.json", settings)
    data = PretrainData(read_raw_fashion(raw_folder))
    tokenizer = build_tokenizer(work / "tokenizer")
    torch.manual_seed(config.seed)  # starting weights; every step draws from (seed, step) instead
    vae = build_vae()
    torch.manual_seed(config.seed)
    clip = build_clip(len(tokenizer))
    torch.manual_seed(config.seed)
    denoiser = build_denoiser()
    yield from train_vae(data, vae, config, work)
    set_latent_scale(data, vae)
    yield from train_clip(data, clip, tokenizer, config, work)
    yield from train_denoiser(data, denoiser, vae, clip, tokenizer, config, work)
    export_pair(target, vae=vae, clip=clip, denoiser=denoiser, tokenizer=tokenizer)
    curves = {name: _read_log(work / f"{name}.log.jsonl") for name in ("vae", "clip", "denoiser")}
    write_json(target / "pretraining.json", {"config": settings, "curves": curves})


def _read_log(path: Path, num_points: int = 60) -> list[dict[str, float]]:
    """An evenly thinned curve; of steps that were logged twice around an interruption the later entry counts."""
    records: dict[int, float] = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        records[record["step"]] = record["loss"]
    steps = sorted(records)
    chosen = [steps[i] for i in np.unique(np.linspace(0, len(steps) - 1, num_points).astype(int))]
    return [{"step": step, "loss": round(records[step], 5)} for step in chosen]
