"""Which cut-outs of tuxpaint-stamps show which COCO class, checked by eye against the pictures.

Photographs only: drawings, and animals or things that COCO's annotators might have put under one
of its 80 classes though they are another kind (donkey, fox, tiger, teapot …), are in neither table.
"""

from __future__ import annotations

_BIRDS = (
    "adelaide-rosella blackbird chicken_profile crow crowned_crane drake duck gander guineafowl helmeted_guineafowl "
    "hen heron_greatblue heron_greatblue_flying lark little-penguin magellanic_penguin magpie nandou ostrich owl "
    "pelican penguin pigeon pink_flamingo rainbow-lorikeet rooster seagull silver-gull tucan turkey vulture"
)

# COCO class -> folder and files inside it (without .png).
_CLASSES: dict[str, tuple[tuple[str, str], ...]] = {
    "car": (("vehicles/auto", "beetle sedan sportscar2"),),
    "airplane": (("vehicles/flight/planes", "747"), ("military/vehicles", "f22_raptor")),
    "bus": (("vehicles/masstransit", "green_korean_bus"),),
    "truck": (("vehicles/auto", "truck"), ("vehicles/emergency", "firetruck"), ("vehicles", "garbagetruck")),
    "boat": (("vehicles/ship", "chineseJunk walnutBoat"),),
    "traffic light": (("town/roadsigns", "stoplight_01_red stoplight_02_yellow stoplight_03_green"),),
    "stop sign": (("town/roadsigns", "stop"),),
    "bird": (("animals/birds", _BIRDS),),
    "dog": (("animals/mammals/dogs", "dingo dog"),),
    "horse": (("animals/mammals/equines", "horse"),),
    "sheep": (("animals/mammals/bovines", "ram sheep sheep_lamb"),),
    "cow": (("animals/mammals/bovines", "bull cow cow_white zebu"),),
    "elephant": (("animals/mammals", "elephant"),),
    "bear": (("animals/mammals/bears", "bear european-bear"),),
    "zebra": (("animals/mammals/equines", "zebra"),),
    "giraffe": (("animals/mammals", "giraffe"),),
    "sports ball": (("sports", "australian_rules_football basketball cricketball football soccer tennis_ball"),),
    "tennis racket": (("sports", "tennis_racket"),),
    "cup": (("household/dishes", "mug"),),
    "banana": (("food/fruit", "banana"),),
    "apple": (("food/fruit", "apple_fuji apple_granny_smith apple_green apple_red apple_sierra_beauty"),),
    "orange": (("food/fruit", "mandarine orange"),),
    "broccoli": (("food/vegetables", "broccoli"),),
    "carrot": (("food/vegetables", "carrot"),),
    "toilet": (("household", "toilet"),),
    "scissors": (("household/arttools", "scissors_small_closed scissors_small_open"),),
    "teddy bear": (("animals/mammals/bears/toys", "edward_bear"),),
}

_CLUTTER: tuple[tuple[str, str], ...] = (
    ("household", "Lightbulb garbagecan home_compost_bin kettle key wheelie_bin"),
    ("household/dishes/utensils", "pepper_grinder"),
    ("household/tools", "hammer mallet_metal paintbrush_large plyers saw spade toolbox wrench wrench_adjustable"),
    ("town/roadsigns", "no_entry_sign traffic_cone school_sign"),
    ("town", "uk_post_box usps_mailbox"),
    ("hobbies", "binoculars camera_35mm"),
    ("hobbies/music/string", "cello guitar_classical guitar_electric violin"),
    ("hobbies/music/brass", "trumpet"),
    ("hobbies/music/percussion", "drumkit drum_tomtom_floor"),
    ("plants/trees", "birch holm_oak pinecone"),
    ("plants/mushrooms", "cep cep-1"),
    ("plants/flowers", "anemone_red daffodil iris marigold rose"),
    ("animals/fish", "butterflyfish clownfish lionfish lobster"),
    ("animals/insects", "bee grasshopper hornet mantis"),
    ("animals/mammals", "hippopotamus pig_golden rabbit_little rhino_black"),
    ("food/fruit", "pineapple pomegranate strawberry grapes"),
    ("food/vegetables", "corn eggplant garlic mushroom onion yellowpepper"),
    ("medical", "stethoscope"),
)

# Lettering or a fixed hand would show that these were mirrored.
UNMIRRORED = frozenset({"stop sign"})


def _paths(groups: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    return tuple(f"{folder}/{stem}.png" for folder, stems in groups for stem in stems.split())


STAMPS: dict[str, tuple[str, ...]] = {name: _paths(groups) for name, groups in _CLASSES.items()}
CLUTTER: tuple[str, ...] = _paths(_CLUTTER)
