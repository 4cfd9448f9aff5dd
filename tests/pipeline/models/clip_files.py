"""Small CLIP models with random weights, on disk, and the same weights in transformers' CLIPModel."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pipeline import weights
from pipeline.models import clip_net
from pipeline.models.clip import ClipEncoder
from pipeline.models.foundation import Chosen

SMALL = {
    "embed_dim": 64,
    "vision_cfg": {"image_size": 96, "layers": 3, "width": 128, "patch_size": 16},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 64, "heads": 4, "layers": 2},
}


def small(quick_gelu: bool = False, **preprocess: Any) -> clip_net.Design:
    """A CLIP of 4 million weights."""
    return clip_net.Design("small", {**SMALL, "quick_gelu": quick_gelu}, preprocess)


def random_network(what: clip_net.Design, seed: int = 0) -> Any:
    """The network with random weights that are not all alike: open_clip begins with zeros and ones in places."""
    import torch

    torch.manual_seed(seed)
    network = clip_net.build(what)
    with torch.no_grad():
        for value in network.parameters():
            if value.ndim:
                value.add_(0.02 * torch.randn_like(value))
    return network


def chosen(path: Path, architecture: str = "", **options: Any) -> Chosen:
    return Chosen("encoder", weights.checkpoint(str(path)), architecture, options)


def encoder(folder: Path, what: clip_net.Design | None = None, **options: Any) -> ClipEncoder:
    """A small encoder out of a file that describes itself."""
    path = folder / "small.safetensors"
    if not path.is_file():
        clip_net.save(path, random_network(what or small()), what or small())
    return ClipEncoder(chosen(path, **options))


def transformers_model(network: Any, what: clip_net.Design) -> Any:
    """transformers' CLIPModel with the weights of an open_clip network."""
    import torch
    from transformers import CLIPConfig, CLIPModel

    vision, text = what.config["vision_cfg"], what.config["text_cfg"]
    act = "quick_gelu" if what.config["quick_gelu"] else "gelu"
    config = CLIPConfig(
        projection_dim=what.config["embed_dim"],
        vision_config={
            "hidden_size": vision["width"],
            "intermediate_size": 4 * vision["width"],
            "num_hidden_layers": vision["layers"],
            "num_attention_heads": vision["width"] // 64,
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
            "hidden_act": act,
        },
        text_config={
            "hidden_size": text["width"],
            "intermediate_size": 4 * text["width"],
            "num_hidden_layers": text["layers"],
            "num_attention_heads": text["heads"],
            "vocab_size": text["vocab_size"],
            "max_position_embeddings": text["context_length"],
            "hidden_act": act,
            "bos_token_id": 49406,
            "eos_token_id": 49407,
        },
    )
    model = CLIPModel(config).eval()
    given, made = network.state_dict(), {"logit_scale": network.logit_scale}
    made["text_projection.weight"] = given["text_projection"].T
    made["visual_projection.weight"] = given["visual.proj"].T
    made["text_model.embeddings.token_embedding.weight"] = given["token_embedding.weight"]
    made["text_model.embeddings.position_embedding.weight"] = given["positional_embedding"]
    made["vision_model.embeddings.class_embedding"] = given["visual.class_embedding"]
    made["vision_model.embeddings.patch_embedding.weight"] = given["visual.conv1.weight"]
    made["vision_model.embeddings.position_embedding.weight"] = given["visual.positional_embedding"]
    norms = {
        "ln_final": "text_model.final_layer_norm",
        "visual.ln_pre": "vision_model.pre_layrnorm",
        "visual.ln_post": "vision_model.post_layernorm",
    }
    for ours, theirs in norms.items():
        made |= {f"{theirs}.{kind}": given[f"{ours}.{kind}"] for kind in ("weight", "bias")}
    for tower, side, layers in (("", "text_model", text["layers"]), ("visual.", "vision_model", vision["layers"])):
        for i in range(layers):
            ours, theirs = f"{tower}transformer.resblocks.{i}", f"{side}.encoder.layers.{i}"
            for kind in ("weight", "bias"):
                parts = given[f"{ours}.attn.in_proj_{kind}"].chunk(3)
                made |= {f"{theirs}.self_attn.{n}_proj.{kind}": p for n, p in zip("qkv", parts, strict=True)}
                made[f"{theirs}.self_attn.out_proj.{kind}"] = given[f"{ours}.attn.out_proj.{kind}"]
                made[f"{theirs}.layer_norm1.{kind}"] = given[f"{ours}.ln_1.{kind}"]
                made[f"{theirs}.layer_norm2.{kind}"] = given[f"{ours}.ln_2.{kind}"]
                made[f"{theirs}.mlp.fc1.{kind}"] = given[f"{ours}.mlp.c_fc.{kind}"]
                made[f"{theirs}.mlp.fc2.{kind}"] = given[f"{ours}.mlp.c_proj.{kind}"]
    left = [k for k in model.state_dict() if k not in made and not k.endswith("position_ids")]
    assert not left, left
    with torch.no_grad():
        model.load_state_dict({k: v.clone() for k, v in made.items()}, strict=False)
    return model


def transformers_tokenizer() -> Any:
    """transformers' CLIP tokenizer, out of the vocabulary that open_clip ships."""
    from open_clip import SimpleTokenizer
    from transformers import CLIPTokenizer

    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    words = {names.get(word, word): number for word, number in own.encoder.items()}
    return CLIPTokenizer(words, [pair for pair, _ in sorted(own.bpe_ranks.items(), key=lambda item: item[1])])
