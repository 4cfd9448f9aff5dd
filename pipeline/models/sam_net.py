"""Segment Anything's network (Kirillov et al., ICCV 2023) out of the classes of segment-anything, and its checkpoints.

A checkpoint of SAM says by its shapes all that it takes to build it, so official files and any smaller
or fine-tuned one load the same way.
"""

from __future__ import annotations

import pickle
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import WeightsError

HEADS = 8  # of the mask decoder: the one size that leaves no trace in a checkpoint


@dataclass(frozen=True)
class SamConfig:
    """Sizes of one network. The defaults are those of ViT-B.

    Attributes:
        image: edge of the square that images are shown in, pixels; patch: of one token.
        width, depth, heads, window: of the image encoder; at the blocks `whole` attention has no windows.
        prompt: channels of embeddings and prompts. decoder, feedforward: layers and width of the mask decoder.
    """

    image: int = 1024
    patch: int = 16
    width: int = 768
    depth: int = 12
    heads: int = 12
    window: int = 14
    whole: tuple[int, ...] = (2, 5, 8, 11)
    mlp: float = 4.0
    prompt: int = 256
    decoder: int = 2
    feedforward: int = 2048
    mask_channels: int = 16
    iou_hidden: int = 256
    masks: int = 3


VIT_B = SamConfig()
VIT_L = SamConfig(width=1024, depth=24, heads=16, whole=(5, 11, 17, 23))
VIT_H = SamConfig(width=1280, depth=32, heads=16, whole=(7, 15, 23, 31))


def build(config: SamConfig) -> Any:
    """A `segment_anything` model with random weights, in evaluation mode."""
    import torch

    from pipeline.torch_compat import import_torchvision

    import_torchvision()
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid = config.image // config.patch
    encoder = ImageEncoderViT(
        img_size=config.image,
        patch_size=config.patch,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=config.mlp,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=config.whole,
        window_size=config.window,
        out_chans=config.prompt,
    )
    prompts = PromptEncoder(
        embed_dim=config.prompt,
        image_embedding_size=(grid, grid),
        input_image_size=(config.image, config.image),
        mask_in_chans=config.mask_channels,
    )
    transformer = TwoWayTransformer(
        depth=config.decoder, embedding_dim=config.prompt, mlp_dim=config.feedforward, num_heads=HEADS
    )
    decoder = MaskDecoder(
        num_multimask_outputs=config.masks,
        transformer=transformer,
        transformer_dim=config.prompt,
        iou_head_depth=3,
        iou_head_hidden_dim=config.iou_hidden,
    )
    return Sam(encoder, prompts, decoder).eval()


def load(path: Path) -> tuple[Any, SamConfig]:
    """The model of a checkpoint: an official `.pth`, or a `.safetensors` that `save` wrote.

    Raises:
        WeightsError: the file is missing or damaged, or lacks a weight, or has one too many.
    """
    state = read_checkpoint(path)
    try:
        config = sizes(state)
        model = build(config)
    except (KeyError, IndexError, ValueError, RuntimeError, AssertionError) as error:
        raise WeightsError(f"{path} holds no SAM: {error}", "use an official checkpoint or one trained here") from error
    wanted = model.state_dict()
    missing, extra = sorted(set(wanted) - set(state)), sorted(set(state) - set(wanted))
    other = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if missing or extra or other:
        what = (
            f"lacks {missing[0]}" if missing else f"has an unknown {extra[0]}" if extra else f"has another {other[0]}"
        )
        raise WeightsError(f"{path} is not a SAM of a known kind: it {what}", "use sam_vit_b, sam_vit_l or sam_vit_h")
    model.load_state_dict(state, strict=True, assign=True)
    return model.requires_grad_(False), config


def save(path: Path, model: Any) -> None:
    """Write a checkpoint that `load` reads, as safetensors."""
    from safetensors.torch import save_file

    save_file({key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}, path)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Weights by name.

    Raises:
        WeightsError: the file is missing or damaged.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise WeightsError(f"there is no checkpoint {path}", "run: cvp models pull foundation")
    try:
        if path.suffix == ".safetensors":
            return dict(load_file(path))
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: {error}", "pull or copy it again") from error
    if not isinstance(state, dict):
        raise WeightsError(f"{path} holds no SAM", "use an official checkpoint or one trained here")
    return state


def sizes(state: dict[str, Any]) -> SamConfig:
    """What the shapes of a checkpoint say of its network.

    Raises:
        KeyError: it is not one of SAM.
    """
    patch = state["image_encoder.patch_embed.proj.weight"].shape
    grid = state["image_encoder.pos_embed"].shape[1]
    depth = len({key.split(".")[2] for key in state if key.startswith("image_encoder.blocks.")})
    relative = [state[f"image_encoder.blocks.{i}.attn.rel_pos_h"].shape for i in range(depth)]
    reach = [(length + 1) // 2 for length, _ in relative]
    whole = tuple(i for i, r in enumerate(reach) if r == grid)
    windows = {r for r in reach if r != grid}
    width = patch[0]
    return SamConfig(
        image=grid * patch[2],
        patch=patch[2],
        width=width,
        depth=depth,
        heads=width // relative[0][1],
        window=windows.pop() if windows else 0,
        whole=whole if windows or len(whole) < depth else tuple(range(depth)),
        mlp=state["image_encoder.blocks.0.mlp.lin1.weight"].shape[0] / width,
        prompt=state["image_encoder.neck.0.weight"].shape[0],
        decoder=len({key.split(".")[3] for key in state if key.startswith("mask_decoder.transformer.layers.")}),
        feedforward=state["mask_decoder.transformer.layers.0.mlp.lin1.weight"].shape[0],
        mask_channels=state["prompt_encoder.mask_downscaling.3.weight"].shape[0],
        iou_hidden=state["mask_decoder.iou_prediction_head.layers.0.weight"].shape[0],
        masks=state["mask_decoder.mask_tokens.weight"].shape[0] - 1,
    )
