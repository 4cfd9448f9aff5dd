"""Grounding DINO's network (Liu et al., ECCV 2024) out of the classes of groundingdino-py, and its checkpoints.

The package's own `forward` encodes text and image anew for every pair. Here its parts are called one by
one, so that a caption is encoded once, an image once, and only what joins the two runs for each pair.
"""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from pipeline.errors import WeightsError
from pipeline.models.captions import Caption, WordPieces

HEADER = "model"  # key of the description in our checkpoints' metadata
WIDTH = 256  # of the transformer: the package's sine embeddings know no other
LEVELS = 4
POINTS = 4
# Official checkpoints carry a label embedding of their training, and a buffer that transformers keeps no more.
_KNOWN_EXTRAS = {"label_enc.weight", "bert.embeddings.position_ids"}
_building = threading.Lock()


@dataclass(frozen=True)
class DinoConfig:
    """Sizes of one network. The defaults are those of Swin-T OGC.

    Attributes:
        embed_dim, depths, heads, window: of the Swin transformer. trained_at: its edge in pixels.
        text: what BERT has otherwise than bert-base-uncased, by the names of its configuration.
        shorter, longest: edges in pixels that images are resized to.
    """

    embed_dim: int = 96
    depths: tuple[int, ...] = (2, 2, 6, 2)
    heads: tuple[int, ...] = (3, 6, 12, 24)
    window: int = 7
    trained_at: int = 224
    encoder_layers: int = 6
    decoder_layers: int = 6
    feedforward: int = 2048
    attention_heads: int = 8
    queries: int = 900
    text: dict[str, Any] = field(default_factory=dict)
    shorter: int = 800
    longest: int = 1333

    def to_json(self) -> str:
        return json.dumps(asdict(self), sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> DinoConfig:
        """Raises:
        WeightsError: not such a configuration.
        """
        try:
            data: dict[str, Any] = json.loads(text)
            return cls(**(data | {key: tuple(data[key]) for key in ("depths", "heads")}))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise WeightsError(f"not the configuration of a Grounding DINO: {error}", "train it again") from error


SWIN_T = DinoConfig()
SWIN_B = DinoConfig(embed_dim=128, depths=(2, 2, 18, 2), heads=(4, 8, 16, 32), window=12, trained_at=384)
_OFFICIAL = {config.embed_dim: config for config in (SWIN_T, SWIN_B)}


def build(config: DinoConfig, words: WordPieces) -> Any:
    """A `groundingdino` model with random weights, in evaluation mode; no file or network is touched."""
    from pipeline.torch_compat import import_torchvision

    import_torchvision()
    from groundingdino.models.GroundingDINO import groundingdino as package
    from transformers import BertConfig, BertModel

    settings = BertConfig(**({"attn_implementation": "eager"} | config.text))
    if words.size > settings.vocab_size:
        raise WeightsError(
            f"the tokeniser has {words.size} words, the text encoder {settings.vocab_size}",
            "use the tokeniser that the checkpoint was made with: bert-base-uncased's",
        )
    text = SimpleNamespace(
        get_tokenlizer=lambda _: words.as_transformers(),
        get_pretrained_language_model=lambda _: BertModel(settings),
    )
    with _replaced(package, get_tokenlizer=text, BertModelWarper=_text_encoder):
        model = package.GroundingDINO(
            _backbone(config),
            _transformer(config),
            num_queries=config.queries,
            aux_loss=True,
            iter_update=True,
            query_dim=4,
            num_feature_levels=LEVELS,
            nheads=config.attention_heads,
            dec_pred_bbox_embed_share=True,
            two_stage_type="standard",
            two_stage_bbox_embed_share=False,
            two_stage_class_embed_share=False,
            dn_number=0,
        )
    return model.eval()


def calmed(model: Any, strength: float = 4.0) -> Any:
    """A randomly built model whose first answer is that nothing is there, as training needs to begin.

    Logits are products of a query and a token, without a bias. Untrained ones are so large that every
    probability is 0 or 1; here all begin near -`strength`, which plays the part of focal loss's bias.
    """
    import torch

    transformer = model.transformer
    direction = torch.nn.functional.normalize(torch.randn(WIDTH), dim=0) * strength**0.5
    texts, queries = transformer.encoder.text_layers[-1].norm2, (transformer.decoder.norm, transformer.enc_output_norm)
    with torch.no_grad():
        for norm in (texts, *queries):
            norm.weight.mul_(0.25)
        texts.bias.copy_(direction)
        for norm in queries:
            norm.bias.copy_(-direction)
    return model


def load(path: Path, words: WordPieces) -> tuple[Any, DinoConfig]:
    """The model of a checkpoint: an official one (`.pth`), or one that `save` wrote (`.safetensors`).

    Raises:
        WeightsError: the file is missing or damaged, or lacks a weight, or has one too many.
    """
    state, config = read_checkpoint(path)
    model = build(config, words)
    wanted = model.state_dict()
    missing = sorted(set(wanted) - set(state))
    extra = sorted(set(state) - set(wanted) - _KNOWN_EXTRAS)
    other = [k for k in wanted if k in state and state[k].shape != wanted[k].shape]
    if missing or extra or other:
        what = (
            f"lacks {missing[0]}" if missing else f"has an unknown {extra[0]}" if extra else f"has another {other[0]}"
        )
        raise WeightsError(
            f"{path} is not a Grounding DINO of a known kind: it {what}",
            "use groundingdino_swint_ogc.pth, groundingdino_swinb_cogcoor.pth, or one trained here",
        )
    model.load_state_dict({key: state[key] for key in wanted}, strict=True, assign=True)
    return model.requires_grad_(False), config


def save(path: Path, model: Any, config: DinoConfig) -> None:
    """Write a checkpoint that `load` reads: safetensors, with the configuration in its metadata."""
    from safetensors.torch import save_file

    # Parts of the decoder's heads are known by several names; each name gets a copy, as official files have it.
    state = {key: value.detach().cpu().clone().contiguous() for key, value in model.state_dict().items()}
    save_file(state, path, metadata={HEADER: config.to_json()})


def read_checkpoint(path: Path) -> tuple[dict[str, Any], DinoConfig]:
    """Weights by name, and the sizes that they were made for.

    Raises:
        WeightsError: the file is missing, damaged, or of another kind.
    """
    import pickle

    import torch
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise WeightsError(f"there is no checkpoint {path}", "run: cvp models pull foundation")
    try:
        if path.suffix == ".safetensors":
            with safe_open(path, "pt") as file:
                config = DinoConfig.from_json((file.metadata() or {}).get(HEADER, ""))
                return {key: file.get_tensor(key) for key in file.keys()}, config  # noqa: SIM118
        saved = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        state = {k.removeprefix("module."): v for k, v in saved.get("model", saved).items()}
        width = state["backbone.0.patch_embed.proj.weight"].shape[0]
        return state, _OFFICIAL[width]
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError, SafetensorError) as error:
        raise WeightsError(f"{path} is damaged: {error}", "pull or copy it again") from error
    except (KeyError, AttributeError) as error:
        raise WeightsError(
            f"{path} holds no Grounding DINO", "use an official checkpoint or one trained here"
        ) from error


# -- the parts of a forward pass --------------------------------------------------------------------


@dataclass(frozen=True)
class Text:
    """A caption as the network knows it: (t, 256) features, (t,) places, (t, t) which token sees which."""

    features: Any
    places: Any
    attention: Any


@dataclass(frozen=True)
class Features:
    """A padded batch of images as the network knows it, level by level: (b, 256, h, w), and (b, h, w) padding."""

    sources: list[Any]
    masks: list[Any]
    places: list[Any]

    def take(self, rows: Any) -> Features:
        """Those of some images, which may repeat."""
        return Features(*([level[rows] for level in part] for part in (self.sources, self.masks, self.places)))


def encode_caption(model: Any, caption: Caption) -> Text:
    """Features of a caption; they do not depend on any image."""
    import torch

    device = model.feat_map.weight.device
    tokens = torch.tensor([caption.tokens], device=device)
    places = torch.from_numpy(caption.positions()).to(device)
    attention = torch.from_numpy(caption.attention()).to(device)
    state = model.bert(
        input_ids=tokens,
        attention_mask=attention[None],
        token_type_ids=torch.zeros_like(tokens),
        position_ids=places[None],
    )["last_hidden_state"]
    return Text(model.feat_map(state)[0], places, attention)


def encode_images(model: Any, images: Sequence[Any], least: int = 0) -> Features:
    """Features of (3, h, w) normalised images of any sizes, padded at the right and the bottom.

    Args:
        least: locations that the network chooses queries from; thin images are padded until there are so many.
    """
    import torch
    from groundingdino.util.misc import NestedTensor
    from torch.nn import functional

    height, width = max(i.shape[1] for i in images), max(i.shape[2] for i in images)
    while locations(height, width) < least:
        height, width = height + 32 * (height <= width), width + 32 * (width < height)
    device = model.feat_map.weight.device
    canvas = torch.zeros((len(images), 3, height, width), device=device)
    padding = torch.ones((len(images), height, width), dtype=torch.bool, device=device)
    for number, image in enumerate(images):
        canvas[number, :, : image.shape[1], : image.shape[2]] = image
        padding[number, : image.shape[1], : image.shape[2]] = False
    found, places = model.backbone(NestedTensor(canvas, padding))
    sources, masks = [], []
    for level, feature in enumerate(found):
        source, mask = feature.decompose()
        sources.append(model.input_proj[level](source))
        masks.append(mask)
    for level in range(len(sources), model.num_feature_levels):
        source = model.input_proj[level](found[-1].tensors if level == len(found) else sources[-1])
        mask = functional.interpolate(padding[None].float(), size=source.shape[-2:]).to(torch.bool)[0]
        sources.append(source)
        masks.append(mask)
        places.append(model.backbone[1](NestedTensor(source, mask)).to(source.dtype))
    return Features(sources, masks, places)


def locations(height: int, width: int) -> int:
    """How many places of all levels an image of that size has: strides 8, 16, 32 and 64."""
    total, h, w = 0, -(-height // 4), -(-width // 4)
    for _ in range(LEVELS):
        h, w = -(-h // 2), -(-w // 2)
        total += h * w
    return total


def answer(model: Any, features: Features, texts: Sequence[Text]) -> tuple[Any, Any]:
    """What the network says of pairs: the i-th image of `features` asked with the i-th text.

    Returns:
        (p, queries, t) logits of each token, -inf where a caption has none; (p, queries, 4) boxes, as
        shares of each image's padded canvas' valid part: centre x, y, width, height.
    """
    text = collated(texts)
    states, references, *_ = _transformed(model, features, text)
    return _head(model, -1, states, references, text)  # earlier layers' heads served training


def all_answers(model: Any, features: Features, texts: Sequence[Text]) -> list[tuple[Any, Any]]:
    """As `answer`, of every stage that is trained: the encoder's proposals, then each layer of the decoder."""
    text = collated(texts)
    states, references, proposals, places, _ = _transformed(model, features, text)
    length = text["text_token_mask"].shape[1]
    proposed = model.transformer.enc_out_class_embed(proposals[0], text)[..., :length]
    layers = [_head(model, k, states, references, text) for k in range(len(states))]
    return [(proposed, places[0]), *layers]


def _transformed(model: Any, features: Features, text: dict[str, Any]) -> Any:
    return model.transformer(features.sources, features.masks, None, features.places, None, None, text)


def _head(model: Any, layer: int, states: Any, references: Any, text: dict[str, Any]) -> tuple[Any, Any]:
    """Logits and boxes of one layer of the decoder; `references` begins with what its first layer was given."""
    from groundingdino.util.misc import inverse_sigmoid

    before = references[layer % len(states)]
    boxes = (model.bbox_embed[layer](states[layer]) + inverse_sigmoid(before)).sigmoid()
    logits = model.class_embed[layer](states[layer], text)[..., : text["text_token_mask"].shape[1]]
    return logits, boxes


def collated(texts: Sequence[Text]) -> dict[str, Any]:
    """Texts padded to one length, by the names that the package's transformer knows."""
    import torch

    longest = max(len(text.places) for text in texts)
    first = texts[0].features
    encoded = first.new_zeros((len(texts), longest, first.shape[1]))
    places = torch.zeros((len(texts), longest), dtype=torch.long, device=first.device)
    used = torch.zeros((len(texts), longest), dtype=torch.bool, device=first.device)
    attention = torch.eye(longest, dtype=torch.bool, device=first.device).repeat(len(texts), 1, 1)
    for row, text in enumerate(texts):
        length = len(text.places)
        encoded[row, :length], places[row, :length], used[row, :length] = text.features, text.places, True
        attention[row, :length, :length] = text.attention
    return {
        "encoded_text": encoded,
        "text_token_mask": used,
        "position_ids": places,
        "text_self_attention_masks": attention,
    }


# -- building -----------------------------------------------------------------------------------------


def _backbone(config: DinoConfig) -> Any:
    from groundingdino.models.GroundingDINO.backbone.backbone import Joiner
    from groundingdino.models.GroundingDINO.backbone.position_encoding import PositionEmbeddingSineHW
    from groundingdino.models.GroundingDINO.backbone.swin_transformer import SwinTransformer

    swin = SwinTransformer(
        pretrain_img_size=config.trained_at,
        embed_dim=config.embed_dim,
        depths=list(config.depths),
        num_heads=list(config.heads),
        window_size=config.window,
        out_indices=(1, 2, 3),
        dilation=False,
        use_checkpoint=False,
    )
    places = PositionEmbeddingSineHW(WIDTH // 2, temperatureH=20, temperatureW=20, normalize=True)
    joined = Joiner(swin, places)
    joined.num_channels = swin.num_features[1:]
    return joined


def _transformer(config: DinoConfig) -> Any:
    from groundingdino.models.GroundingDINO.transformer import Transformer

    return Transformer(
        d_model=WIDTH,
        dropout=0.0,
        nhead=config.attention_heads,
        num_queries=config.queries,
        dim_feedforward=config.feedforward,
        num_encoder_layers=config.encoder_layers,
        num_decoder_layers=config.decoder_layers,
        return_intermediate_dec=True,
        query_dim=4,
        num_feature_levels=LEVELS,
        enc_n_points=POINTS,
        dec_n_points=POINTS,
        learnable_tgt_init=True,
        two_stage_type="standard",
        embed_init_tgt=True,
        use_text_enhancer=True,
        use_fusion_layer=True,
        use_text_cross_attention=True,
        text_dropout=0.0,
        fusion_dropout=0.0,
        fusion_droppath=0.1,
    )


def _text_encoder(bert_model: Any) -> Any:
    """In place of the package's wrapper, which calls what transformers 5 has no more.

    Takes a boolean mask of which token sees which, (b, t, t); gives `last_hidden_state`, (b, t, d).
    """
    import torch
    from torch import nn

    class TextEncoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.config = bert_model.config
            self.embeddings = bert_model.embeddings
            self.encoder = bert_model.encoder
            self.pooler = bert_model.pooler  # unused, but official checkpoints hold it

        def forward(
            self, input_ids: Any, attention_mask: Any, token_type_ids: Any = None, position_ids: Any = None
        ) -> dict[str, Any]:
            embedded = self.embeddings(input_ids=input_ids, token_type_ids=token_type_ids, position_ids=position_ids)
            seen = attention_mask[:, None].to(embedded.dtype)
            additive = (1.0 - seen) * torch.finfo(embedded.dtype).min
            return {"last_hidden_state": self.encoder(embedded, attention_mask=additive).last_hidden_state}

    return TextEncoder()


@contextmanager
def _replaced(module: Any, **names: Any) -> Iterator[None]:
    """Other objects under some of a module's names, for as long as a model is being built."""
    with _building:
        kept = {name: getattr(module, name) for name in names}
        for name, value in names.items():
            setattr(module, name, value)
        try:
            yield
        finally:
            for name, value in kept.items():
                setattr(module, name, value)
