"""CLIP networks of open_clip: built without a download, loaded strictly, saved so that they can be built again."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline import weights
from pipeline.errors import WeightsError, suggest
from pipeline.files import replaced

KIND = "open_clip"
HEADER = "model"  # key of the description in a checkpoint's metadata
_TORCHSCRIPT_KEYS = ("input_resolution", "context_length", "vocab_size")  # constants in OpenAI's state dicts
_SHOWN = 4  # wrong keys named in an error
# What the hub calls repositories that open_clip still knows by their first names.
_MOVED = {
    "bert-base-uncased": "google-bert/bert-base-uncased",
    "roberta-base": "FacebookAI/roberta-base",
    "xlm-roberta-base": "FacebookAI/xlm-roberta-base",
    "xlm-roberta-large": "FacebookAI/xlm-roberta-large",
}


@dataclass(frozen=True)
class Design:
    """What a network is before its weights.

    Attributes:
        name: open_clip's name of the model, e.g. ViT-B-32; any word for one of our own.
        config: open_clip's model configuration.
        preprocess: how its images were prepared in training: open_clip's PreprocessCfg without the size.
    """

    name: str
    config: Mapping[str, Any]
    preprocess: Mapping[str, Any] = field(default_factory=dict)

    @property
    def tokenizer_files(self) -> dict[str, str]:
        """File name -> hub reference of what its tokenizer is read from; none for CLIP's own."""
        return self._files("hf_tokenizer_name", "tokenizer.json", "tokenizer_config.json")

    @property
    def text_files(self) -> dict[str, str]:
        """File name -> hub reference of what its text tower is built from; none for open_clip's own."""
        return self._files("hf_model_name", "config.json")

    def _files(self, key: str, *names: str) -> dict[str, str]:
        named = str(self.config["text_cfg"].get(key) or "")
        if not named:
            return {}
        if named in _MOVED:
            names = (*names, "config.json")  # these tokenizers do not say of which class they are
        return {name: f"hf-hub:{_MOVED.get(named, named)}/{name}" for name in names}

    def to_json(self) -> str:
        return json.dumps({"kind": KIND, "name": self.name, "config": self.config, "preprocess": self.preprocess})

    @classmethod
    def from_json(cls, text: str) -> Design:
        said = json.loads(text)
        return cls(said["name"], said["config"], said["preprocess"])


def library() -> Any:
    """The module open_clip."""
    from pipeline.torch_compat import import_torchvision

    import_torchvision()
    import open_clip

    return open_clip


def design(architecture: str) -> Design:
    """What `MODEL` or `MODEL/TAG` of open_clip is.

    The tag decides the activation and the preprocessing its weights were trained with: open_clip's own
    loader only warns where `ViT-B-32/openai` needs QuickGELU.

    Raises:
        WeightsError: open_clip knows no such model or tag.
    """
    open_clip = library()
    name, _, tag = architecture.partition("/")
    config = open_clip.get_model_config(name)
    if config is None:
        raise WeightsError(f"open_clip has no model {name!r}", suggest(name, open_clip.list_models()))
    entry = open_clip.get_pretrained_cfg(name, tag) if tag else {}
    if tag and not entry:
        raise WeightsError(
            f"open_clip has no weights {tag!r} of {name}", suggest(tag, open_clip.list_pretrained_tags_by_model(name))
        )
    config["quick_gelu"] = bool(config.get("quick_gelu") or entry.get("quick_gelu"))
    kept = ("mean", "std", "interpolation", "resize_mode", "fill_color")
    return Design(name, config, {key: entry[key] for key in kept if key in entry})


def build(what: Design) -> Any:
    """The network with random weights, in evaluation mode; nothing is fetched.

    Raises:
        WeightsError: the description of its text tower has not been pulled.
    """
    open_clip = library()
    config = json.loads(json.dumps(what.config))
    config["vision_cfg"]["timm_model_pretrained"] = config["text_cfg"]["hf_model_pretrained"] = False
    custom = config.pop("custom_text", False) or bool(what.text_files)
    made = "CoCa" if "multimodal_cfg" in config else "CustomTextCLIP" if custom else "CLIP"
    with _folder_of(what.text_files) as folder:
        if what.text_files:
            config["text_cfg"]["hf_model_name"] = folder
        return getattr(open_clip, made)(**config).eval()


def tokenizer(what: Design) -> Any:
    """Texts to (n, context) token ids, as open_clip's tokenizer of this model gives; nothing is fetched.

    Raises:
        WeightsError: the tokenizer's files have not been pulled.
    """
    open_clip = library()
    text = what.config["text_cfg"]
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    options = dict(text.get("tokenizer_kwargs", {}))
    if not what.tokenizer_files:
        return open_clip.SimpleTokenizer(context_length=length, **options)
    with _folder_of(what.tokenizer_files) as folder:
        mode = text.get("tokenizer_mode")
        return open_clip.tokenizer.HFTokenizer(folder, context_length=length, tokenizer_mode=mode, **options)


@contextmanager
def _folder_of(files: Mapping[str, str]) -> Iterator[str]:
    """A folder in which pulled files have the names that transformers looks for."""
    with tempfile.TemporaryDirectory() as folder:
        for name, reference in files.items():
            Path(folder, name).symlink_to(weights.resolve(reference).resolve())
        yield folder


def preprocess(what: Design) -> Any:
    """open_clip's own transform of a PIL image for this model: a torchvision Compose."""
    library()
    from open_clip.transform import PreprocessCfg, image_transform_v2

    settings = {k: tuple(v) if isinstance(v, list) else v for k, v in what.preprocess.items()}
    size = what.config["vision_cfg"].get("image_size", 224)
    return image_transform_v2(PreprocessCfg(**settings, size=size), is_train=False)


def design_of(path: Path, architecture: str = "") -> Design:
    """What a checkpoint holds: what the file says itself, else `architecture`.

    Raises:
        WeightsError: neither says, or open_clip knows no such model, or the file is of another kind.
    """
    own = described(path)
    if own is None and not architecture:
        raise WeightsError(
            f"{path} does not say what it holds",
            "name the model in project.yaml: models: {encoder: {checkpoint: …, architecture: ViT-B-32}}",
        )
    return own or design(architecture)


def load(path: Path, what: Design) -> Any:
    """The network in a checkpoint.

    Loading is strict: every weight is there, none is left over, every shape agrees. open_clip's loader would
    stretch position embeddings of another image size and invent a missing bias.

    Raises:
        WeightsError: it is damaged, or does not hold that model.
    """
    network = build(what)
    _fill(network, read_state(path), path, what)
    return network


def described(path: Path) -> Design | None:
    """What a checkpoint of ours says of itself; None for others.

    Raises:
        WeightsError: it is damaged, or of another kind of model.
    """
    if path.suffix != ".safetensors":
        return None
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            text = (file.metadata() or {}).get(HEADER)
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"cannot read the checkpoint {path}: {error}", "pull or train it again") from error
    if text is None:
        return None
    if json.loads(text).get("kind") != KIND:
        raise WeightsError(f"{path} is no CLIP model", "look up its kind in the table `models`")
    return Design.from_json(text)


def save(path: Path, network: Any, what: Design) -> None:
    """Write safetensors with the design in the header, atomically."""
    from safetensors.torch import save_file

    state = {name: value.detach().cpu().contiguous().clone() for name, value in network.state_dict().items()}
    with replaced(path) as made:
        save_file(state, made, metadata={HEADER: what.to_json()})


def read_state(path: Path) -> dict[str, Any]:
    """Tensors by name of an open_clip checkpoint: a state dict, or one inside a training checkpoint.

    Raises:
        WeightsError: it cannot be read without running what is in it.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        found: Any = load_file(path) if path.suffix == ".safetensors" else torch.load(path, "cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError, SafetensorError, EOFError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise WeightsError(
            f"cannot read the checkpoint {path}: {reason}",
            "use a safetensors file or a plain state dict; TorchScript archives and pickled objects are refused",
        ) from error
    if isinstance(found, dict) and isinstance(found.get("state_dict"), dict):
        found = found["state_dict"]
    if not (isinstance(found, dict) and found and all(isinstance(v, torch.Tensor) for v in found.values())):
        raise WeightsError(f"{path} holds no state dict", "save model.state_dict(), best as safetensors")
    if all(name.startswith("module.") for name in found):
        found = {name.removeprefix("module."): value for name, value in found.items()}
    return {name: value for name, value in found.items() if name not in _TORCHSCRIPT_KEYS}


def _fill(network: Any, state: dict[str, Any], path: Path, what: Design) -> None:
    """Copy `state` into a network whose names it must match one by one."""
    from open_clip.convert import convert_state_dict
    from open_clip.model import convert_to_custom_text_state_dict

    state = convert_state_dict(network, state)
    if "positional_embedding" in state and not hasattr(network, "positional_embedding"):
        state = convert_to_custom_text_state_dict(state)
    wanted = network.state_dict()
    # Older transformers kept the numbers 0, 1, 2, … as a buffer.
    state = {name: v for name, v in state.items() if name in wanted or not name.endswith("embeddings.position_ids")}
    for name in ("logit_scale", "logit_bias"):  # saved as a number or as a vector of one
        if name in state and name in wanted and state[name].numel() == 1:
            state[name] = state[name].reshape(wanted[name].shape)
    wrong = [f"{name} is missing" for name in wanted if name not in state]
    wrong += [f"{name} is left over" for name in state if name not in wanted]
    wrong += [
        f"{name} is {tuple(value.shape)}, not {tuple(wanted[name].shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    if wrong:
        shown = "; ".join(wrong[:_SHOWN]) + (f"; and {len(wrong) - _SHOWN} more" if len(wrong) > _SHOWN else "")
        raise WeightsError(f"{path} is no {what.name}: {shown}", "correct `architecture` in project.yaml")
    network.load_state_dict(state)
