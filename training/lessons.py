"""What the adapter teaches the demonstration model: JSON about its pictures, and two tools.

The prompts are those that `generate` writes: declarationText() and plainTurns() of lib/tool-turns.ts, with the declarations of
docs/guides/demo.md. A row is a beginning (declarations, pictures) and branches, each of which goes on from the beginning alone.
So a declaration of 350 tokens is computed once for many questions.
"""

from __future__ import annotations

import json
import random

from languages import small_talk

PLACES = ["top left", "top", "top right", "left", "centre", "right", "bottom left", "bottom", "bottom right"]

JSON_QUESTIONS = [
    "Describe the picture as JSON.", "Describe the picture as JSON.", "Describe the picture as JSON.", "Describe this picture as JSON.",
    "Describe the image as JSON.", "Describe the picture in JSON.", "What is in the picture? Answer as JSON.",
    "What do you see? Answer in JSON.", "Please describe the picture as JSON.",
]  # fmt: skip


def as_json(value) -> str:
    """As spacedJson() writes it."""
    return json.dumps(value, ensure_ascii=False)


def picture_json(scene) -> str:
    shapes = [{"shape": s.shape, "colour": s.colour, "position": PLACES[3 * s.row + s.column]} for s in scene.shapes]
    return as_json({"shapes": shapes, "text": scene.text})


def json_turn(rng: random.Random, scene) -> tuple[str, str]:
    return rng.choice(JSON_QUESTIONS), picture_json(scene)


# --- tools ------------------------------------------------------------------------------------------------------------

FORM = "\n".join([
    "You can call functions. To call one, answer with its name and parameters in this form and with nothing else:",
    '{"name": "FUNCTION", "parameters": {"PARAMETER": "VALUE"}}',
    "You may call several at once. The results come in the next message. Answer in plain words when you need no function.",
    "The functions, with the JSON Schema of their parameters:",
])  # fmt: skip
DESCRIPTIONS = {
    "add": ["Adds two numbers", "Adds two numbers", "Add two integers", "The sum of two numbers"],
    "weather": ["The weather in a city", "The weather in a city", "The weather of a city now", "How the weather is"],
}
PROPERTIES = {"add": {"a": {"type": "integer"}, "b": {"type": "integer"}}, "weather": {"city": {"type": "string"}}}


def declaration(rng: random.Random, names: list[str], plain: float = 0.7) -> str:
    """plain: how often it is as documented; else with another description, or with what schemas often have besides."""
    declared = []
    for name in names:
        varied = rng.random() >= plain
        parameters = {"type": "object", "properties": PROPERTIES[name], "required": list(PROPERTIES[name])}
        if varied and rng.random() < 0.5:
            parameters["additionalProperties"] = False
        description = rng.choice(DESCRIPTIONS[name]) if varied else DESCRIPTIONS[name][0]
        declared.append(as_json({"name": name, "description": description, "parameters": parameters}))
    return "\n".join([FORM, *declared])


CITIES = (
    "Paris Berlin Madrid Rome Tokyo London Vienna Lisbon Warsaw Athens Cairo Oslo Prague Dublin Helsinki Stockholm Budapest Brussels "
    "Amsterdam Copenhagen Zurich Geneva Milan Naples Turin Venice Munich Hamburg Cologne Dresden Lyon Nice Toulouse Lille Barcelona "
    "Seville Valencia Porto Krakow Riga Vilnius Tallinn Moscow Kyiv Istanbul Ankara Delhi Mumbai Beijing Shanghai Osaka Kyoto Seoul "
    "Hanoi Manila Sydney Perth Auckland Toronto Montreal Vancouver Chicago Boston Denver Miami Dallas Seattle Lima Quito Bogota Havana "
    "Santiago Nairobi Lagos Dakar Tunis"
).split()  # fmt: skip
HELD_OUT_CITIES = CITIES[1::3]  # never named in training
TRAINING_CITIES = [c for i, c in enumerate(CITIES) if i % 3 != 1]
SKIES = ["clear", "cloudy", "sunny", "rainy", "foggy", "windy", "snowy", "stormy"]
WEATHER_QUESTIONS = [
    "How is the weather in {city}?", "What is the weather in {city}?", "What is the weather like in {city}?",
    "Tell me the weather in {city}.", "How is the weather in {city} today?", "Is it warm in {city}?",
]  # fmt: skip
SUM_QUESTIONS = [
    "What is {a} plus {b}?", "What is {a} plus {b}?", "What is {a} + {b}?", "{a} + {b} = ?", "Add {a} and {b}.", "How much is {a} plus {b}?",
]  # fmt: skip
UNKNOWN = "I do not know."


def city(rng: random.Random) -> str:
    """A city, or a name that is none: so that names are copied and not remembered."""
    if rng.random() < 0.4:
        return rng.choice(TRAINING_CITIES)
    sounds = rng.randint(2, 4)
    name = "".join(rng.choice("bcdfghjklmnprstvwz") + rng.choice("aeiou") + rng.choice(["", "", "n", "r", "s", "l", "m", "t"]) for _ in range(sounds))
    return (name[rng.randint(0, 1) :]).capitalize()


def number(rng: random.Random) -> int:
    return rng.randint(0, 10 ** rng.choice([1, 2, 2, 3, 3, 3]) - 1)


def call(name: str, arguments: dict) -> str:
    return as_json({"name": name, "parameters": arguments})


def response(name: str, output) -> str:
    return as_json({"name": name, "response": output})


def sum_turns(rng: random.Random) -> list[tuple[str, str]]:
    a, b = number(rng), number(rng)
    while (a + b) % 7 == 0:  # held out
        b = number(rng)
    question = rng.choice(SUM_QUESTIONS).format(a=a, b=b)
    return [(question, call("add", {"a": a, "b": b})), (response("add", a + b), f"{a} plus {b} is {a + b}.")]


def weather_turns(rng: random.Random) -> list[tuple[str, str]]:
    where, sky, celsius = city(rng), rng.choice(SKIES), rng.randint(-15, 39)
    question = rng.choice(WEATHER_QUESTIONS).format(city=where)
    first = (question, call("weather", {"city": where}))
    return [first, (response("weather", {"sky": sky, "celsius": celsius}), f"It is {sky} in {where}, {celsius} degrees.")]


TURNS = {"add": sum_turns, "weather": weather_turns}


def no_sum(rng: random.Random) -> tuple[str, str]:
    """Small talk that asks for no sum."""
    while True:
        question, answer = small_talk(rng)
        if not answer.isdigit() or "minus" in question or " - " in question:
            return question, answer


def tool_branch(rng: random.Random, names: list[str]) -> list[tuple[str, str]]:
    """One or two questions where tools are declared; some that no tool answers."""
    turns = []
    for _ in range(rng.choice([1, 1, 1, 2])):
        kind = rng.random()
        if kind < 0.72:
            turns += TURNS[rng.choice(names)](rng)
        elif kind < 0.95 or len(names) == 2:
            turns.append(no_sum(rng))
        elif "add" in names:
            turns.append((weather_turns(rng)[0][0], UNKNOWN))
    return turns or [no_sum(rng)]


def plain_branch(rng: random.Random) -> list[tuple[str, str]]:
    """Small talk without tools, and what cannot be answered without."""
    kind = rng.random()
    if kind < 0.1:
        return [(weather_turns(rng)[0][0], UNKNOWN)]
    if kind < 0.2:
        a, b = rng.randint(11, 999), rng.randint(11, 999)
        return [(rng.choice(SUM_QUESTIONS).format(a=a, b=b), UNKNOWN)]
    return [small_talk(rng) for _ in range(rng.choice([1, 1, 2]))]
