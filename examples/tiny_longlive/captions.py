"""What a clip can show, as a grammar: a scene becomes a sentence, and the sentence the scene again.

The words that a prompt may use are exactly the tables below.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from random import Random

SHAPES = ("ball", "square", "triangle", "star", "ring", "cross")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan", "orange", "white")
SIZES = ("small", "large")
PLACES = (
    "at the top left", "at the top", "at the top right",
    "on the left", "in the center", "on the right",
    "at the bottom left", "at the bottom", "at the bottom right",
)  # fmt: skip
DIRECTIONS = ("left", "right", "up", "down")
# Moves that go somewhere are written with a direction.
GOING = ("drifts", "tumbles")
MOVES = (*GOING, "hops", "spins", "circles", "waits")
ROUND = ("ball", "ring")  # shapes on which a rotation cannot be seen
TURNING = ("tumbles", "spins")
GROUNDS = ("gray", "navy", "brown", "olive", "maroon", "teal")
TEXTURES = ("plain", "striped", "checkered", "dotted")
CAMERAS = ("", "sideways", "up and down")
CUT = "The scene transitions. "
MAX_THINGS = 3


@dataclass(frozen=True)
class Thing:
    """One object. `jitter` (x, y in pixels) and `pace` are what the sentence does not say."""

    size: str
    colour: str
    shape: str
    place: str
    move: str
    direction: str = ""
    jitter: tuple[float, float] = (0.0, 0.0)
    pace: float = 1.0

    def __str__(self) -> str:
        what = f"a {self.size} {self.colour} {self.shape} {self.place} {self.move}"
        return f"{what} {self.direction}" if self.direction else what


@dataclass(frozen=True)
class Scene:
    """Objects from back to front, over a background. `scroll` and `camera` are "" if still."""

    things: tuple[Thing, ...]
    ground: str
    texture: str
    scroll: str = ""
    camera: str = ""


def caption(scene: Scene) -> str:
    """One or two sentences that say everything about `scene` but jitter and pace."""
    *front, last = (str(thing) for thing in scene.things)
    things = f"{', '.join(front)} and {last}" if front else last
    scroll = f" that scrolls {scene.scroll}" if scene.scroll else ""
    camera = f" The camera pans {scene.camera}." if scene.camera else ""
    text = f"{things}, over a {scene.ground} {scene.texture} background{scroll}.{camera}"
    return text[0].upper() + text[1:]


def parse(text: str) -> Scene:
    """The inverse of `caption`; jitter and pace are those of the middle.

    Raises ValueError for a sentence outside the grammar.
    """
    match = SCENE.fullmatch(text.removeprefix(CUT))
    if match is None:
        raise ValueError(f"not a sentence of this grammar: {text!r}")
    things = re.split(r", (?=a )| and (?=a )", match["things"])
    parts = [THING.fullmatch(thing[0].lower() + thing[1:]) for thing in things]
    if None in parts:
        raise ValueError(f"an object is not described as the grammar does: {text!r}")
    found = tuple(Thing(**part.groupdict(default="")) for part in parts if part)
    return Scene(found, match["ground"], match["texture"], match["scroll"] or "",
                 match["camera"] or "")  # fmt: skip


def sample_scene(random: Random) -> Scene:
    """A random scene of 1 to 3 objects, all of different colours and at different places."""
    count = random.choices((1, 2, MAX_THINGS), (3, 4, 3))[0]
    colours, places = random.sample(COLOURS, count), random.sample(PLACES, count)
    things = tuple(_sample_thing(random, *pair) for pair in zip(colours, places, strict=True))
    return Scene(
        things,
        ground=random.choice(GROUNDS),
        texture=random.choice(TEXTURES),
        scroll=random.choice(("", "", *DIRECTIONS)),
        camera=random.choice(("", "", *CAMERAS[1:])),
    )


def _sample_thing(random: Random, colour: str, place: str) -> Thing:
    shape = random.choice(SHAPES)
    moves = [move for move in MOVES if not (shape in ROUND and move in TURNING)]
    move = random.choice(moves)
    return Thing(
        size=random.choice(SIZES),
        colour=colour,
        shape=shape,
        place=place,
        move=move,
        direction=random.choice(DIRECTIONS) if move in GOING else "",
        jitter=(random.uniform(-14, 14), random.uniform(-14, 14)),
        pace=random.uniform(0.8, 1.2),
    )


def vocabulary() -> tuple[str, ...]:
    """Every word and mark of the grammar, sorted."""
    tables = (SHAPES, COLOURS, SIZES, PLACES, DIRECTIONS, MOVES, GROUNDS, TEXTURES, CAMERAS)
    text = " ".join(" ".join(table) for table in tables)
    rest = "a and over background that scrolls the camera pans scene transitions , ."
    return tuple(sorted({*text.split(), *rest.split()}))


def _one_of(name: str, words: tuple[str, ...]) -> str:
    longest_first = sorted(filter(None, words), key=len, reverse=True)
    return f"(?P<{name}>{'|'.join(longest_first)})"


THING = re.compile(
    f"a {_one_of('size', SIZES)} {_one_of('colour', COLOURS)} {_one_of('shape', SHAPES)} "
    f"{_one_of('place', PLACES)} {_one_of('move', MOVES)}( {_one_of('direction', DIRECTIONS)})?"
)
SCENE = re.compile(
    f"(?P<things>.+), over a {_one_of('ground', GROUNDS)} {_one_of('texture', TEXTURES)} "
    f"background( that scrolls {_one_of('scroll', DIRECTIONS)})?\\."
    f"( The camera pans {_one_of('camera', CAMERAS)}\\.)?"
)
