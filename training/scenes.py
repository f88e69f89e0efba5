"""Pictures and what can be asked about them: coloured shapes, words and numbers, wide signs, pairs to compare.

Everything follows from a seed. Pictures are drawn with Pillow and the font inside it, so they are the same everywhere.
A scene carries what the vision encoder is trained on (which glyph, which shape, which colour stands where) beside the
conversations that the whole model is trained on.
"""

from __future__ import annotations

import functools
import random
from dataclasses import dataclass, field

from PIL import Image, ImageDraw, ImageFont

from languages import COLOUR_WORDS, POSITION_WORDS, SHAPE_WORDS, number_word, scene_questions

COLOURS = {
    "red": (220, 40, 45), "orange": (245, 135, 25), "yellow": (240, 215, 40), "green": (45, 160, 70),
    "blue": (45, 90, 220), "purple": (135, 60, 185), "brown": (125, 75, 40), "black": (25, 25, 28),
}  # fmt: skip
SHAPES = ["circle", "square", "triangle", "star", "cross", "ring"]
GLYPHS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
BACKGROUNDS = [(255, 255, 255), (246, 246, 244), (250, 244, 232), (232, 240, 250), (238, 248, 238), (226, 226, 228)]

WORDS = (
    "ANT APPLE ARM ART AUTO BABY BALL BANK BEAR BED BELL BIRD BLUE BOAT BOOK BOX BREAD BUS CAKE CAR CAT CHAIR CITY CLOCK CLOUD "
    "COAT COLD COW CUP DANCE DAY DEER DESK DOG DOOR DUCK EAR EARTH EGG EXIT EYE FARM FAST FIRE FISH FLAG FOOD FOOT FORK FOX FROG "
    "GAME GATE GIFT GLASS GOAT GOLD GRASS GREEN HAND HAT HEART HILL HOME HORSE HOT HOUSE ICE INK IRON ISLE JAM JAZZ JOY JUICE JUMP "
    "KEY KING KITE LAKE LAMP LEAF LEFT LEMON LIFE LION LOVE MAP MARCH MILK MOON MOUSE MUSIC NEST NEWS NIGHT NORTH NOSE NUT OCEAN "
    "OLD OPEN OWL PAGE PAPER PARK PEAR PEN PIANO PIG PLANE PLUM POND QUEEN QUIET QUIZ RADIO RAIN RED RICE RING RIVER ROAD ROCK ROOF "
    "ROSE SALE SALT SAND SEA SHIP SHOE SHOP SKY SNOW SOAP SONG SOUP SOUTH STAR STONE STOP SUGAR SUN TABLE TAXI TEA TENT TIGER TIME "
    "TOWN TRAIN TREE UNCLE UNIT VAN VASE VIEW VOICE WALK WALL WATER WAVE WEST WHEEL WIND WOLF WOOD YARD YEAR YES ZEBRA ZERO ZOO"
).split()  # fmt: skip
HELD_OUT_WORDS = WORDS[::3]  # never drawn in training
TRAINING_WORDS = [w for i, w in enumerate(WORDS) if i % 3]

NARROWEST = 0.5  # room for a letter, in sizes of the font: I and 1 are not squeezed


@dataclass
class Glyph:
    """A letter or digit: centre in the picture's pixels, its place in its word."""

    char: str
    x: float
    y: float
    index: int


@dataclass
class Shape:
    shape: str
    colour: str
    column: int
    row: int
    x: float
    y: float
    r: float


@dataclass
class Scene:
    image: Image.Image
    shapes: list[Shape] = field(default_factory=list)
    glyphs: list[Glyph] = field(default_factory=list)
    text: str = ""


@functools.cache
def font(size: int) -> ImageFont.FreeTypeFont:
    return ImageFont.load_default(size)


def jitter(rng: random.Random, colour: tuple[int, int, int], amount: int) -> tuple[int, int, int]:
    return tuple(max(0, min(255, c + rng.randint(-amount, amount))) for c in colour)


def draw_shape(draw: ImageDraw.ImageDraw, s: Shape, fill) -> None:
    import math

    x, y, r = s.x, s.y, s.r
    if s.shape == "circle":
        draw.ellipse([x - r, y - r, x + r, y + r], fill=fill)
    elif s.shape == "square":
        a = r * 0.9
        draw.rectangle([x - a, y - a, x + a, y + a], fill=fill)
    elif s.shape == "triangle":
        draw.polygon([(x, y - r), (x + r * 1.05, y + r * 0.85), (x - r * 1.05, y + r * 0.85)], fill=fill)
    elif s.shape == "star":
        points = []
        for i in range(10):
            a, d = math.pi * i / 5 - math.pi / 2, r * 1.15 if i % 2 == 0 else r * 0.48
            points.append((x + d * math.cos(a), y + d * math.sin(a)))
        draw.polygon(points, fill=fill)
    elif s.shape == "cross":
        a = r * 0.34
        draw.rectangle([x - a, y - r, x + a, y + r], fill=fill)
        draw.rectangle([x - r, y - a, x + r, y + a], fill=fill)
    else:
        draw.ellipse([x - r, y - r, x + r, y + r], outline=fill, width=max(3, round(r * 0.36)))


def canvas(rng: random.Random, w: int, h: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    image = Image.new("RGB", (w, h), jitter(rng, rng.choice(BACKGROUNDS), 4))
    return image, ImageDraw.Draw(image)


def shapes_scene(rng: random.Random, n: int | None = None, kinds: list[tuple[str, str, int]] | None = None) -> Scene:
    """1 to 5 shapes, each in its own ninth of the picture; no two alike. kinds: (shape, colour, ninth) instead of chance."""
    side = rng.randint(200, 360)
    w, h = side, round(side * rng.uniform(0.88, 1.12))
    image, draw = canvas(rng, w, h)
    if kinds is None:
        n = n or rng.choice([1, 1, 2, 2, 3, 3, 4, 5])
        # every third scene repeats shapes, so that counting them means something
        pool = SHAPES if rng.random() < 0.65 else rng.sample(SHAPES, 2)
        kinds, places = [], rng.sample(range(9), n)
        while len(kinds) < n:
            pair = (rng.choice(pool), rng.choice(list(COLOURS)))
            if pair not in [k[:2] for k in kinds]:
                kinds.append((*pair, places[len(kinds)]))
    shapes = []
    for shape, colour, place in sorted(kinds, key=lambda k: k[2]):
        column, row = place % 3, place // 3
        r = min(w, h) * rng.uniform(0.085, 0.135)
        x = w * ((2 * column + 1) / 6 + rng.uniform(-0.035, 0.035))
        y = h * ((2 * row + 1) / 6 + rng.uniform(-0.035, 0.035))
        s = Shape(shape, colour, column, row, x, y, r)
        draw_shape(draw, s, jitter(rng, COLOURS[colour], 10))
        shapes.append(s)
    return Scene(image, shapes)


def random_text(rng: random.Random, longest: int, held_out: bool) -> str:
    """A word or a number. Training sees made-up words and two thirds of the list, held-out data the rest of it."""
    kind = rng.random()
    if kind < 0.4:
        length = rng.randint(1, longest)
        return str(rng.randint(10 ** (length - 1) if length > 1 else 0, 10**length - 1))
    if held_out or kind < 0.6:
        return rng.choice([w for w in (HELD_OUT_WORDS if held_out else TRAINING_WORDS) if len(w) <= longest])
    length = rng.randint(2, longest)
    if kind < 0.8:
        return "".join(rng.choice("AEIOUY" if i % 2 else "BCDFGHJKLMNPQRSTVWXZ") for i in range(length))
    return "".join(rng.choice(GLYPHS[:26]) for _ in range(length))


def hard_text(rng: random.Random, longest: int, held_out: bool = False) -> str:
    """For the last stage: as random_text in training, with more of what was misread: doubled and narrow letters, no pattern to guess by."""
    if held_out or rng.random() < 0.35:
        return random_text(rng, longest, held_out)
    chars = rng.choice([GLYPHS[26:], GLYPHS[:26], GLYPHS[:26], GLYPHS[:26] + "IIJJLLTT"])
    text, length = rng.choice(chars), rng.randint(2, longest)
    while len(text) < length:
        text += text[-1] if rng.random() < 0.15 else rng.choice(chars)
    return text


def draw_text(draw, text: str, size: int, spacing: float, left: float, y: float, fill, stroke: int) -> list[Glyph]:
    """Letter by letter, centred on y. Returns where they are."""
    glyphs, x = [], left
    f = font(size)
    for i, char in enumerate(text):
        width = f.getlength(char)
        pitch = max(width, size * NARROWEST)
        draw.text((x + pitch / 2, y), char, font=f, fill=fill, anchor="mm", stroke_width=stroke)
        glyphs.append(Glyph(char, x + pitch / 2, y, i))
        x += pitch + spacing
    return glyphs


def text_width(text: str, size: int, spacing: float) -> float:
    return sum(max(font(size).getlength(c), size * NARROWEST) for c in text) + spacing * (len(text) - 1)


def ink(rng: random.Random) -> tuple[int, int, int]:
    colour = rng.choice(["black", "black", "black", "blue", "red", "green", "purple", "brown"])
    return jitter(rng, COLOURS[colour], 10)


def text_scene(rng: random.Random, held_out: bool = False, make=random_text) -> Scene:
    """A square picture with one or two words or numbers, one above the other. make: what draws them."""
    side = rng.randint(200, 360)
    w, h = side, round(side * rng.uniform(0.88, 1.12))
    image, draw = canvas(rng, w, h)
    fill, stroke = ink(rng), rng.choice([0, 0, 1])
    n = rng.choice([1, 1, 2])
    scene = Scene(image)
    texts = []
    for i in range(n):
        text = make(rng, 6, held_out)
        size = round(h * rng.uniform(0.16, 0.27))
        spacing = size * rng.uniform(0.02, 0.14)
        while (width := text_width(text, size, spacing)) > w * 0.94:
            size, spacing = round(size * 0.94), spacing * 0.94
        y = h * (rng.uniform(0.2, 0.8) if n == 1 else rng.uniform(0.2, 0.32) + 0.46 * i)
        left = rng.uniform(w * 0.03, w * 0.97 - width)
        scene.glyphs += draw_text(draw, text, size, spacing, left, y, fill, stroke)
        texts.append(text)
    scene.text = " ".join(texts)
    return scene


def wide_scene(rng: random.Random, held_out: bool = False, make=random_text) -> Scene:
    """A wide picture: a sign of 3 or 4 columns, a word or number in some of them. Pan & Scan cuts between the columns."""
    n = rng.choice([3, 4, 4])
    h = rng.randint(256, 300)
    w = round(n * h * rng.uniform(1.0, 1.06))
    image, draw = canvas(rng, w, h)
    fill, stroke = ink(rng), rng.choice([0, 0, 1])
    size = round(h * rng.uniform(0.16, 0.24))
    spacing = size * rng.uniform(0.02, 0.14)
    column = -(-w // n)
    texts, scene = [], Scene(image)
    n_texts = rng.randint(1, min(n, 3))
    base = rng.uniform(0.2, 0.8)
    for i in sorted(rng.sample(range(n), n_texts)):
        text = make(rng, 5, held_out)
        this, gap = size, spacing
        while (width := text_width(text, this, gap)) > column * 0.9:
            this, gap = round(this * 0.94), gap * 0.94
        left = i * column + rng.uniform(column * 0.04, column * 0.95 - width)
        y = h * min(0.85, max(0.15, base + rng.uniform(-0.06, 0.06)))
        scene.glyphs += draw_text(draw, text, this, gap, left, y, fill, stroke)
        texts.append(text)
    scene.text = " ".join(texts)
    return scene


def glyph_field(rng: random.Random) -> Scene:
    """Rows of random letters over the whole picture with shapes between: for the vision encoder alone."""
    side = rng.randint(200, 300)
    image, draw = canvas(rng, side, side)
    scene = Scene(image)
    y = rng.uniform(0.06, 0.2) * side
    while y < side * 0.95:
        size = round(side * rng.uniform(0.14, 0.26))
        fill, stroke = ink(rng), rng.choice([0, 0, 1])
        spacing, x = size * rng.uniform(0.02, 0.16), side * rng.uniform(0.02, 0.3)
        while True:
            text = "".join(rng.choice(GLYPHS) for _ in range(rng.choice([1, 2, 3, 4, 5])))
            width = text_width(text, size, spacing)
            if x + width > side * 0.98:
                break
            scene.glyphs += draw_text(draw, text, size, spacing, x, y + size * 0.3, fill, stroke)
            x += width + size * rng.uniform(0.7, 1.5)
        y += size * rng.uniform(0.95, 1.6)
    return scene


def letter_rows(rng: random.Random) -> Scene:
    """Words of random letters all over the picture, never two rows in a row of cells: what an encoder learns most from in a step."""
    side = rng.randint(200, 300)
    image, draw = canvas(rng, side, side)
    scene = Scene(image)
    y = rng.uniform(0.08, 0.16) * side
    while y < side * 0.93:
        size = round(side * rng.uniform(0.15, 0.26))
        fill, stroke = ink(rng), rng.choice([0, 0, 1])
        spacing, x = size * rng.uniform(0.02, 0.14), side * rng.uniform(0.02, 0.2)
        for _ in range(8):
            text = hard_text(rng, rng.randint(3, 6))
            width = text_width(text, size, spacing)
            if x + width < side * 0.98:
                scene.glyphs += draw_text(draw, text, size, spacing, x, y, fill, stroke)
                x += width + size * rng.uniform(0.5, 1.0)
        y += max(size * 0.95, side / 6) * rng.uniform(1.03, 1.3)
    return scene


def pan_and_scan_boxes(w: int, h: int, min_crop: int = 256, max_crops: int = 4, min_ratio: float = 1.2):
    """As Gemma3ImageProcessor cuts: (x, y, w, h) of each crop. heldout.py checks it against the processor."""
    if w < h:
        return [(y, x, b, a) for x, y, a, b in pan_and_scan_boxes(h, w, min_crop, max_crops, min_ratio)]
    if w / h < min_ratio:
        return []
    n = min(w // min_crop, int(w / h + 0.5))
    n = min(max_crops, max(2, n))
    cw = -(-w // n)
    if min(cw, h) < min_crop:
        return []
    return [(i * cw, 0, min(cw, w - i * cw), h) for i in range(n)]


# --- conversations: [(question, answer)...] about one picture ---------------------------------------------------------


def shape_questions(rng: random.Random, scene: Scene, n: int) -> list[tuple[str, str]]:
    return scene_questions(rng, scene.shapes, n)


READ_QUESTIONS = [
    "What does it say?", "Read the text.", "What is written here?", "Read it.", "What text is in the picture?",
    "What does the sign say?", "Read the words in the picture.", "What is written in the picture?", "Can you read this?",
    "Was steht da?", "Lies den Text.", "Qu'est-ce qui est écrit ?", "Lis le texte.", "¿Qué dice?", "Lee el texto.",
    "Please read the text.", "What do you see?", "Describe the picture.", "Read this.",
]  # fmt: skip


def read_turns(rng: random.Random, scene: Scene) -> list[tuple[str, str]]:
    q = rng.choice(READ_QUESTIONS)
    turns = [(q, f"The text says {scene.text}." if q in ("What do you see?", "Describe the picture.") else scene.text)]
    words = scene.text.split()
    for _ in range(3):
        kind = rng.random()
        if kind < 0.3:
            turns.append((rng.choice(READ_QUESTIONS[:10]), scene.text))
        elif kind < 0.5:
            turns.append((rng.choice(["How many words are there?", "How many words do you see?"]), number_word(len(words))))
        elif kind < 0.7 and len(words) > 1:
            last = rng.random() < 0.5
            turns.append((f"What is the {'last' if last else 'first'} word?", words[-1 if last else 0]))
        else:
            word = rng.choice(words)
            turns.append((f"Is it {'a number' if (n := rng.random() < 0.5) else 'a word'}?", "Yes." if word.isdigit() == n else "No.")
                         if len(words) == 1 else (rng.choice(READ_QUESTIONS[:5]), scene.text))  # fmt: skip
    return turns


def compare_pair(rng: random.Random, difference_first: float = 0.0) -> tuple[Scene, Scene, list[tuple[str, str]]]:
    """Two pictures of one shape each, equal or different in shape, colour or place. difference_first: how often that is asked first."""
    names = ["shape", "colour", "position"]
    what = rng.sample(names, rng.choice([0, 1, 1, 1, 2, 3]))
    a = [rng.choice(SHAPES), rng.choice(list(COLOURS)), rng.randrange(9)]
    b = list(a)
    for i, (name, pool) in enumerate(zip(names, [SHAPES, list(COLOURS), list(range(9))])):
        if name in what:
            b[i] = rng.choice([v for v in pool if v != a[i]])
    differences = [n for n in names if n in what]
    one, two = shapes_scene(rng, kinds=[tuple(a)]), shapes_scene(rng, kinds=[tuple(b)])

    def phrase(k):
        return f"{'an' if k[1][0] in 'aeiou' else 'a'} {k[1]} {k[0]} {POSITION_WORDS['en'][k[2]]}"

    if not differences:
        difference = "The pictures show the same."
    elif len(differences) == 1:
        difference = f"The {differences[0]} is different."
    elif len(differences) == 2:
        difference = f"The {differences[0]} and the {differences[1]} are different."
    else:
        difference = "The shape, the colour and the position are different."
    both = f"The first picture shows {phrase(a)}, the second {phrase(b)}."
    same_shape, same_colour = a[0] == b[0], a[1] == b[1]
    pool = [
        (rng.choice(["Compare the two pictures.", "Compare the pictures.", "Compare these pictures."]), f"{both} {difference}"),
        (rng.choice(["What is different?", "What is the difference?", "How do the pictures differ?"]), difference),
        (rng.choice(["Do both pictures show the same shape?", "Is the shape the same?"]), "Yes." if same_shape else "No."),
        (rng.choice(["Do both pictures have the same colour?", "Is the colour the same?"]), "Yes." if same_colour else "No."),
        ("What is in the first picture?", phrase(a).capitalize() + "."),
        ("What is in the second picture?", phrase(b).capitalize() + "."),
        (f"Which picture shows a {b[0]}?", "Both." if same_shape else "The second picture."),
        (f"Which picture shows a {a[0]}?", "Both." if same_shape else "The first picture."),
        ("What colour is the shape in the second picture?", b[1].capitalize() + "."),
        ("What colour is the shape in the first picture?", a[1].capitalize() + "."),
    ]  # fmt: skip
    if difference_first and rng.random() < difference_first:
        return one, two, [pool.pop(1), *rng.sample(pool, 2)]
    first = pool.pop(0) if rng.random() < 0.4 else None
    turns = rng.sample(pool, 4)
    return one, two, ([first, *turns[:2]] if first else turns)


assert set(COLOUR_WORDS["en"]) == set(COLOURS) and set(SHAPE_WORDS["en"]) == set(SHAPES)
