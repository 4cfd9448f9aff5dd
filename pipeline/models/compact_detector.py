"""SSD MobileNetV2 on COCO's 80 classes, asked by text: each prompt is matched to a term it knows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline import boxes as box_ops
from pipeline import ids, weights
from pipeline.images import Pixels
from pipeline.models.roles import Detections, Term
from pipeline.ontology import Ontology

VERSION = "1"
INPUT = 300  # the whole image is squashed to this square
SIMILARITY = 0.55  # see `match_terms`
_TEMPLATE = "a photo of a {}"

# COCO's label map: id -> term; ids 12, 26, 29, 30, 45, 66, 68, 69, 71 and 83 were never used.
_IDS = [i for i in range(1, 91) if i not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)]
TERMS = [
    "person",
    "bicycle",
    "car",
    "motorcycle",
    "airplane",
    "bus",
    "train",
    "truck",
    "boat",
    "traffic light",
    "fire hydrant",
    "stop sign",
    "parking meter",
    "bench",
    "bird",
    "cat",
    "dog",
    "horse",
    "sheep",
    "cow",
    "elephant",
    "bear",
    "zebra",
    "giraffe",
    "backpack",
    "umbrella",
    "handbag",
    "tie",
    "suitcase",
    "frisbee",
    "skis",
    "snowboard",
    "sports ball",
    "kite",
    "baseball bat",
    "baseball glove",
    "skateboard",
    "surfboard",
    "tennis racket",
    "bottle",
    "wine glass",
    "cup",
    "fork",
    "knife",
    "spoon",
    "bowl",
    "banana",
    "apple",
    "sandwich",
    "orange",
    "broccoli",
    "carrot",
    "hot dog",
    "pizza",
    "donut",
    "cake",
    "chair",
    "couch",
    "potted plant",
    "bed",
    "dining table",
    "toilet",
    "tv",
    "laptop",
    "mouse",
    "remote",
    "keyboard",
    "cell phone",
    "microwave",
    "oven",
    "toaster",
    "sink",
    "refrigerator",
    "book",
    "clock",
    "vase",
    "scissors",
    "teddy bear",
    "hair drier",
    "toothbrush",
]
TERM_OF_ID = dict(zip(_IDS, TERMS, strict=True))

# Words whose sentence vectors lie too far from COCO's own term.
_SYNONYMS = {
    **dict.fromkeys(("people", "man", "woman", "men", "women", "child", "children", "human", "pedestrian"), "person"),
    **dict.fromkeys(("bike", "cycle"), "bicycle"),
    **dict.fromkeys(("cup", "mug"), "cup"),
    **dict.fromkeys(("mobile phone", "smartphone", "phone"), "cell phone"),
    **dict.fromkeys(("lorry", "lorries"), "truck"),
    **dict.fromkeys(("knives",), "knife"),
    **dict.fromkeys(("mice",), "mouse"),
    "coach": "bus",
    "stoplight": "traffic light",
    "rucksack": "backpack",
    "ski": "skis",
    "ship": "boat",
    "hair dryer": "hair drier",
    "hairdryer": "hair drier",
    "houseplant": "potted plant",
}


def producer(ontology: Ontology, nms_iou: float = 0.5, floor: float = 0.05, name: str = "compact_detector") -> str:
    """The name of everything a detector so made finds; needs no weights."""
    recipe = [ontology.prompts(), nms_iou, floor, INPUT, SIMILARITY, _checkpoint_hashes()]
    return ids.producer(name, VERSION, recipe)


class CompactDetector:
    """Fills the `Detector` role on a CPU.

    Args:
        ontology: classes and prompts; a class none of whose prompts has a term yields nothing.
        nms_iou: boxes of one class that overlap more are fused.
        floor: lowest raw score kept.
        name: the producer's name.

    Raises:
        WeightsError: the compact checkpoints have not been pulled.
    """

    def __init__(
        self, ontology: Ontology, nms_iou: float = 0.5, floor: float = 0.05, name: str = "compact_detector"
    ) -> None:
        self.producer = producer(ontology, nms_iou, floor, name)
        self._nms_iou, self._floor = nms_iou, floor
        self._terms = match_terms(ontology)
        self._classes = _classes_of_terms(self._terms)
        self._net = _network() if self._classes else None

    def vocabulary(self) -> list[Term]:
        """How each prompt was understood; `matched` is None where COCO has no such word."""
        return list(self._terms)

    def detect(self, images: Sequence[Pixels]) -> list[Detections]:
        """Boxes of the ontology's classes in n (height, width, 3) uint8 images, best first."""
        return [self._detect(image) for image in images]

    def _detect(self, image: Pixels) -> Detections:
        if self._net is None:
            return Detections()
        import cv2

        # One image a call: the graph keeps the 100 best boxes of a whole batch.
        self._net.setInput(cv2.dnn.blobFromImage(image, size=(INPUT, INPUT)))
        found = self._net.forward()[0, 0]
        height, width = image.shape[:2]
        corners = box_ops.clip(found[:, 3:7] * np.array([width, height, width, height]), width, height)
        usable = (found[:, 2] >= self._floor) & (box_ops.area(corners) > 0)
        terms = [TERM_OF_ID.get(int(i)) for i in found[usable, 1]]
        return self._by_class(corners[usable], found[usable, 2], terms)

    def _by_class(
        self, corners: NDArray[np.floating], scores: NDArray[np.floating], terms: Sequence[str | None]
    ) -> Detections:
        kept_boxes: list[NDArray[np.floating]] = [np.zeros((0, 4))]
        kept_scores: list[NDArray[np.floating]] = [np.zeros(0)]
        names: list[str] = []
        for name, wanted in self._classes.items():
            mine = np.flatnonzero([term in wanted for term in terms])
            mine = mine[box_ops.nms(corners[mine], scores[mine], self._nms_iou)]
            kept_boxes.append(corners[mine])
            kept_scores.append(scores[mine])
            names += [name] * len(mine)
        all_scores = np.concatenate(kept_scores)
        order = np.argsort(-all_scores, kind="stable")
        boxes, ranked = np.concatenate(kept_boxes)[order], np.clip(all_scores[order], 0, 1)
        return Detections(boxes.astype(np.float32), ranked.astype(np.float32), tuple(names[i] for i in order))


def match_terms(ontology: Ontology) -> list[Term]:
    """COCO's term for each prompt: the same word or its plural or synonym, else the nearest in meaning.

    Nearness is the cosine of BGE vectors of "a photo of a …", centred on the 80 terms' mean, and must
    reach SIMILARITY = 0.55: of 56 words outside COCO 2 came so far, of 54 synonyms all but 6.
    """
    known = {term: term for term in TERMS} | _SYNONYMS
    pairs = ontology.prompts()
    exact = [known.get(_lemma(prompt)) or known.get(_bare(prompt)) for _, prompt in pairs]
    asked = [prompt for (_, prompt), term in zip(pairs, exact, strict=True) if term is None]
    nearest = iter(_nearest_terms(asked))
    terms = []
    for (name, prompt), term in zip(pairs, exact, strict=True):
        matched, similarity = (term, 1.0) if term else next(nearest)
        terms.append(Term(name, prompt, matched, similarity))
    return terms


def _nearest_terms(prompts: Sequence[str]) -> list[tuple[str | None, float]]:
    if not prompts:
        return []
    from pipeline.models.text import SentenceEncoder

    encoder = SentenceEncoder()
    terms = encoder.encode([_TEMPLATE.format(term) for term in TERMS])
    asked = encoder.encode([_TEMPLATE.format(_bare(prompt)) for prompt in prompts])
    centre = terms.mean(0)
    cosines = _unit(asked - centre) @ _unit(terms - centre).T
    best = cosines.argmax(1)
    values = cosines[np.arange(len(prompts)), best].clip(0, 1)
    return [(TERMS[i] if value >= SIMILARITY else None, float(value)) for i, value in zip(best, values, strict=True)]


def _classes_of_terms(terms: Sequence[Term]) -> dict[str, set[str]]:
    classes: dict[str, set[str]] = {}
    for term in terms:
        if term.matched is not None:
            classes.setdefault(term.class_name, set()).add(term.matched)
    return classes


def _bare(prompt: str) -> str:
    """A prompt in lower case, without its article."""
    words = prompt.casefold().replace("_", " ").strip(" .").split()
    return " ".join(words[1:] if len(words) > 1 and words[0] in ("a", "an", "the") else words)


def _lemma(prompt: str) -> str:
    """`_bare` with a regular English plural made singular."""
    text = _bare(prompt)
    for ending, singular in (("ches", "ch"), ("shes", "sh"), ("sses", "ss"), ("xes", "x"), ("ies", "y")):
        if text.endswith(ending):
            return text.removesuffix(ending) + singular
    return text[:-1] if text.endswith("s") and not text.endswith(("ss", "us")) else text


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    unit: NDArray[np.float32] = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    return unit


def _checkpoint_hashes() -> list[str]:
    names = ("ssd_mobilenet_v2_coco", "ssd_mobilenet_v2_coco_graph", "bge_small_en")
    return [weights.checkpoint(name).sha256 for name in names]


def _network() -> Any:
    import cv2

    # OpenCV 5's new engine takes half as long again for this graph.
    options: dict[str, Any] = {"engine": cv2.dnn.ENGINE_CLASSIC} if hasattr(cv2.dnn, "ENGINE_CLASSIC") else {}
    graph, layout = weights.resolve("ssd_mobilenet_v2_coco"), weights.resolve("ssd_mobilenet_v2_coco_graph")
    return cv2.dnn.readNetFromTensorflow(str(graph), str(layout), **options)
