"""Words that found slices are named with, beside the project's own classes and prompts."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from pipeline.ontology import Ontology
from pipeline.slices.prompted import Texts

TEMPLATE = "a photo of {}"
WORDS = tuple(
    """
    snow; rain; fog; night; dusk; a sunny day; shadow; glare; a dark room; a bright sky; clouds; fire; smoke; water;
    the sea; a beach; a river; a lake; a mountain; a forest; bare trees; a tree; grass; a field; soil; sand; rocks;
    a desert; a garden; flowers; leaves; a road; a street; a crossing; a car park; a bridge; a building; a roof; a wall;
    a window; a door; a staircase; a corridor; a kitchen; an office; a shop; a factory; a warehouse;
    a construction site; a farm; a village; a city; an aerial view;
    a satellite image; a close-up; a blurred photo; a drawing; a screenshot;
    text; a sign; a label; a logo; a map; a crowd; a person; a child; a face; hands; clothing; a uniform; a helmet;
    a dog; a cat; a bird; a horse; a cow; a sheep; a fish; an insect; a car; a truck; a bus; a train; a bicycle;
    a motorcycle; a boat; an aeroplane; a machine; a tool; a cable; a pipe; a screw; a box; a bottle; a cup; a plate;
    food; fruit; vegetables; bread; furniture; a chair; a table; a bed; a lamp; a screen; a computer; a telephone;
    a book; paper; a bag; a toy; a ball; wood; metal; glass; plastic; stone; brick; concrete; fabric; leather; wool;
    a stripe; a hole; a stain; a scratch; a crack; a fold; a thread; a knot; rust; dust; dirt; a reflection;
    a pattern; a grid; something round; something long; something small; many small things; nothing
    """.replace("\n", " ").split(";")
)


def vocabulary(ontology: Ontology, encode: Texts, more: Sequence[str] = ()) -> dict[str, NDArray[np.float32]]:
    """Each word's vector: the project's prompts and `more` first, then WORDS, none twice."""
    own = [prompt for c in ontology for prompt in c.prompts]
    words = list(dict.fromkeys([*own, *more, *(" ".join(w.split()) for w in WORDS)]))
    vectors = np.asarray(encode([TEMPLATE.format(word) for word in words]), np.float32)
    return dict(zip(words, vectors, strict=True))
