"""Small random models of the foundation packages' own classes, on disk as users have them."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from pipeline import weights
from pipeline.config import samples_root
from pipeline.models import grounding_dino_net, sam_net
from pipeline.models.captions import WordPieces
from pipeline.models.dino_questions import DinoOptions, Questions
from pipeline.models.grounding_dino import GroundingDino
from pipeline.ontology import Class, Ontology

DINO = grounding_dino_net.DinoConfig(
    embed_dim=24,
    depths=(1, 1, 2, 1),
    heads=(2, 2, 4, 4),
    encoder_layers=2,
    decoder_layers=2,
    feedforward=128,
    queries=60,
    text={"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128},
    shorter=160,
    longest=266,
)


SAM = sam_net.SamConfig(
    image=256, width=64, depth=3, heads=4, window=5, whole=(1,), prompt=64, feedforward=128, iou_hidden=64
)


def tokenizer() -> Path:
    """BGE-small's: the vocabulary of bert-base-uncased."""
    return weights.resolve("bge_small_en_tokenizer")


def randomised(model: Any, seed: int) -> Any:
    """Every weight moved, those too that begin at 0 or 1, so that nothing agrees by being nothing."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def dino_checkpoint(folder: Path, config: grounding_dino_net.DinoConfig = DINO) -> Path:
    torch.manual_seed(0)
    model = randomised(grounding_dino_net.build(config, WordPieces(tokenizer())), 1)
    with torch.no_grad():  # untrained logits are so large that every probability would be 0 or 1
        model.transformer.decoder.norm.weight.mul_(0.1)
        model.transformer.decoder.norm.bias.mul_(0.1)
    path = folder / "dino.safetensors"
    grounding_dino_net.save(path, model, config)
    return path


def dino(checkpoint: Path, classes: dict[str, tuple[str, ...]], **options: Any) -> GroundingDino:
    ontology = Ontology(tuple(Class(name, prompts) for name, prompts in classes.items()))
    questions = Questions(ontology, tokenizer(), "small", DinoOptions(**options))
    return GroundingDino(questions, checkpoint)


def sam_checkpoint(folder: Path, config: sam_net.SamConfig = SAM) -> Path:
    torch.manual_seed(0)
    path = folder / "sam.safetensors"
    sam_net.save(path, randomised(sam_net.build(config), 2))
    return path


def photos() -> list[np.ndarray]:
    """Pieces of real aerial photographs, of three shapes."""
    folder = samples_root() / "trees"
    whole = np.asarray(Image.open(folder / "2026-06-01-yell" / "yell_541000_val.png").convert("RGB"))
    other = np.asarray(Image.open(folder / "2026-08-01-osbs" / "osbs_029.png").convert("RGB"))
    return [whole[:320, :427], other[:400, :300], whole[200:500, 300:820], other[50:370, :427][:, :384]]
