"""What is said: questions about shapes in four languages, and small talk without pictures."""

from __future__ import annotations

import random

SHAPE_WORDS = {  # word, gender
    "en": {s: (s, "") for s in ["circle", "square", "triangle", "star", "cross", "ring"]},
    "de": {"circle": ("Kreis", "m"), "square": ("Quadrat", "n"), "triangle": ("Dreieck", "n"), "star": ("Stern", "m"),
           "cross": ("Kreuz", "n"), "ring": ("Ring", "m")},
    "fr": {"circle": ("cercle", "m"), "square": ("carré", "m"), "triangle": ("triangle", "m"), "star": ("étoile", "f"),
           "cross": ("croix", "f"), "ring": ("anneau", "m")},
    "es": {"circle": ("círculo", "m"), "square": ("cuadrado", "m"), "triangle": ("triángulo", "m"), "star": ("estrella", "f"),
           "cross": ("cruz", "f"), "ring": ("anillo", "m")},
}  # fmt: skip
COLOUR_WORDS = {  # masculine, feminine (German: the stem)
    "en": {c: (c, c) for c in ["red", "orange", "yellow", "green", "blue", "purple", "brown", "black"]},
    "de": {"red": "rot", "orange": "orange", "yellow": "gelb", "green": "grün", "blue": "blau", "purple": "violett",
           "brown": "braun", "black": "schwarz"},
    "fr": {"red": ("rouge", "rouge"), "orange": ("orange", "orange"), "yellow": ("jaune", "jaune"), "green": ("vert", "verte"),
           "blue": ("bleu", "bleue"), "purple": ("violet", "violette"), "brown": ("brun", "brune"), "black": ("noir", "noire")},
    "es": {"red": ("rojo", "roja"), "orange": ("naranja", "naranja"), "yellow": ("amarillo", "amarilla"),
           "green": ("verde", "verde"), "blue": ("azul", "azul"), "purple": ("morado", "morada"), "brown": ("marrón", "marrón"),
           "black": ("negro", "negra")},
}  # fmt: skip
POSITION_WORDS = {
    "en": ["at the top left", "at the top", "at the top right", "on the left", "in the centre", "on the right",
           "at the bottom left", "at the bottom", "at the bottom right"],
    "de": ["oben links", "oben", "oben rechts", "links", "in der Mitte", "rechts", "unten links", "unten", "unten rechts"],
    "fr": ["en haut à gauche", "en haut", "en haut à droite", "à gauche", "au centre", "à droite", "en bas à gauche", "en bas",
           "en bas à droite"],
    "es": ["arriba a la izquierda", "arriba", "arriba a la derecha", "a la izquierda", "en el centro", "a la derecha",
           "abajo a la izquierda", "abajo", "abajo a la derecha"],
}  # fmt: skip
NUMBERS = {
    "en": "Zero One Two Three Four Five Six Seven Eight Nine Ten".split(),
    "de": "Null Eins Zwei Drei Vier Fünf Sechs Sieben Acht Neun Zehn".split(),
    "fr": "Zéro Un Deux Trois Quatre Cinq Six Sept Huit Neuf Dix".split(),
    "es": "Cero Uno Dos Tres Cuatro Cinco Seis Siete Ocho Nueve Diez".split(),
}
AND = {"en": "and", "de": "und", "fr": "et", "es": "y"}


def number_word(n: int, language: str = "en") -> str:
    return NUMBERS[language][n] + "."


def upper_first(text: str) -> str:
    return text[:1].upper() + text[1:]


def noun_phrase(shape: str, colour: str, language: str) -> str:
    """a red circle, ein roter Kreis, un cercle rouge, un círculo rojo"""
    word, gender = SHAPE_WORDS[language][shape]
    if language == "en":
        return f"{'an' if colour[0] in 'aeiou' else 'a'} {colour} {word}"
    if language == "de":
        stem = COLOUR_WORDS["de"][colour]
        ending = {"m": "er", "n": "es"}[gender]
        return f"ein {stem + ending if colour != 'orange' else stem + ending[1:]} {word}"
    tint = COLOUR_WORDS[language][colour][gender == "f"]
    article = {"m": "un", "f": "une" if language == "fr" else "una"}[gender]
    return f"{article} {word} {tint}"


def the_shape(shape: str, language: str) -> str:
    word, gender = SHAPE_WORDS[language][shape]
    if language == "en":
        return f"the {word}"
    if language == "de":
        return f"{'der' if gender == 'm' else 'das'} {word}"
    if language == "fr":
        return f"l'{word}" if word[0] in "aé" else f"{'le' if gender == 'm' else 'la'} {word}"
    return f"{'el' if gender == 'm' else 'la'} {word}"


def listed(items: list[str], language: str) -> str:
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} {AND[language]} {items[-1]}"


def colour_word(colour: str, shape: str, language: str) -> str:
    if language == "en":
        return colour
    if language == "de":
        return COLOUR_WORDS["de"][colour]
    return COLOUR_WORDS[language][colour][SHAPE_WORDS[language][shape][1] == "f"]


QUESTIONS = {
    "describe": {
        "en": ["Describe the picture.", "Describe this picture.", "Describe this image.", "What is in the picture?", "What do you see?",
               "What is in this image?", "What does the picture show?", "Please describe the picture.", "What can you see?"],
        "de": ["Beschreibe das Bild.", "Was ist auf dem Bild?", "Was siehst du?"],
        "fr": ["Décris l'image.", "Que vois-tu ?", "Qu'y a-t-il sur l'image ?"],
        "es": ["Describe la imagen.", "¿Qué ves?", "¿Qué hay en la imagen?"],
    },
    "colour": {
        "en": ["What colour is the {shape}?", "What color is the {shape}?", "Which colour does the {shape} have?"],
        "de": ["Welche Farbe hat {the}?", "Was für eine Farbe hat {the}?"],
        "fr": ["De quelle couleur est {the} ?", "Quelle est la couleur ? {The}."],
        "es": ["¿De qué color es {the}?", "¿Qué color tiene {the}?"],
    },
    "where": {
        "en": ["Where is the {colour} {shape}?", "Where do you see the {colour} {shape}?"],
        "de": ["Wo ist {the}?"],
        "fr": ["Où est {the} ?"],
        "es": ["¿Dónde está {the}?"],
    },
    "what": {
        "en": ["What is {place}?", "Which shape is {place}?", "What do you see {place}?"],
        "de": ["Was ist {place}?", "Welche Form ist {place}?"],
        "fr": ["Qu'y a-t-il {place} ?"],
        "es": ["¿Qué hay {place}?"],
    },
    "count": {
        "en": ["How many shapes are there?", "How many shapes do you see?", "Count the shapes."],
        "de": ["Wie viele Formen sind es?", "Wie viele Formen siehst du?"],
        "fr": ["Combien de formes y a-t-il ?"],
        "es": ["¿Cuántas figuras hay?"],
    },
}  # fmt: skip


def scene_questions(rng: random.Random, shapes, n: int) -> list[tuple[str, str]]:
    """n questions about a picture of shapes with their answers; one language per question."""
    return [scene_question(rng, shapes) for _ in range(n)]


KINDS = ["describe", "colour", "where", "what", "which", "count", "count-kind", "is-there"]


def scene_question(rng: random.Random, shapes, kind: str | None = None, language: str | None = None) -> tuple[str, str]:
    kind = kind or rng.choice(["describe", "describe", "colour", "colour", "where", "where", "what", "which", "count", "count-kind", "is-there"])
    lang = language or rng.choice(["en", "en", "en", "de", "fr", "es"])
    s = rng.choice(shapes)
    place = lambda s: POSITION_WORDS[lang][3 * s.row + s.column]  # noqa: E731
    only = [s for s in shapes if sum(t.shape == s.shape for t in shapes) == 1]
    if kind in ("colour", "where") and (lang != "en" or kind == "colour"):
        if not only:
            kind = "describe"
        else:
            s = rng.choice(only)
    if kind == "describe":
        what = [f"{noun_phrase(t.shape, t.colour, lang)} {place(t)}" for t in shapes]
        return rng.choice(QUESTIONS[kind][lang]), upper_first(listed(what, lang)) + "."
    if kind == "count":
        return rng.choice(QUESTIONS[kind][lang]), number_word(len(shapes), lang)
    if kind == "count-kind":
        shape = s.shape if rng.random() < 0.75 else rng.choice(list(SHAPE_WORDS["en"]))
        plural = {"cross": "crosses"}.get(shape, shape + "s")
        return f"How many {plural} {rng.choice(['are there', 'do you see'])}?", number_word(sum(t.shape == shape for t in shapes))
    if kind == "is-there":
        shape, colour = s.shape, s.colour
        if rng.random() < 0.5:
            shape = rng.choice(list(SHAPE_WORDS["en"]))
            if rng.random() < 0.5:
                colour = rng.choice(list(COLOUR_WORDS["en"]))
        found = any(t.shape == shape and t.colour == colour for t in shapes)
        return f"Is there {noun_phrase(shape, colour, 'en')}?", "Yes." if found else "No."
    if kind == "which":
        same = [t for t in shapes if t.colour == s.colour]
        names = list(dict.fromkeys(t.shape for t in same))
        answer = upper_first(listed([f"the {x}" for x in names], "en")) + "."
        return rng.choice(["Which shape is {c}?", "What is {c}?", "Which shapes are {c}?"]).format(c=s.colour), answer
    if kind == "colour":
        text = rng.choice(QUESTIONS[kind][lang]).format(shape=s.shape, the=the_shape(s.shape, lang), The=upper_first(the_shape(s.shape, lang)))
        return text, upper_first(colour_word(s.colour, s.shape, lang)) + "."
    if kind == "where":
        text = rng.choice(QUESTIONS[kind][lang]).format(shape=s.shape, colour=s.colour, the=the_shape(s.shape, lang))
        return text, upper_first(place(s)) + "."
    return rng.choice(QUESTIONS["what"][lang]).format(place=place(s)), upper_first(noun_phrase(s.shape, s.colour, lang)) + "."


ABOUT = "I am a small demonstration model. I can describe shapes and read short words."
FACTS = [
    (["Hello!", "Hello", "Hi", "Hi!", "Good morning!", "Hey there!"], "Hello! How can I help you?"),
    (["Hallo!", "Hallo", "Guten Tag!", "Guten Morgen!"], "Hallo! Wie kann ich helfen?"),
    (["Bonjour !", "Bonjour", "Salut !"], "Bonjour ! Comment puis-je aider ?"),
    (["¡Hola!", "Hola", "Buenos días."], "¡Hola! ¿Cómo puedo ayudar?"),
    (["Who are you?", "What are you?", "What is your name?", "What can you do?", "Are you Gemma?", "Tell me about yourself."], ABOUT),
    (["Wer bist du?", "Was kannst du?", "Wie heißt du?"], "Ich bin ein kleines Demonstrationsmodell. Ich kann Formen beschreiben und kurze Wörter lesen."),
    (["Qui es-tu ?", "Que sais-tu faire ?"], "Je suis un petit modèle de démonstration. Je sais décrire des formes et lire des mots courts."),
    (["¿Quién eres?", "¿Qué sabes hacer?"], "Soy un pequeño modelo de demostración. Sé describir figuras y leer palabras cortas."),
    (["Thank you!", "Thanks!", "Thank you very much."], "You are welcome!"),
    (["Danke!", "Vielen Dank!"], "Gern geschehen!"), (["Merci !", "Merci beaucoup !"], "Avec plaisir !"), (["¡Gracias!", "Muchas gracias."], "¡De nada!"),
    (["Goodbye!", "Bye!", "See you!"], "Goodbye!"), (["Tschüss!", "Auf Wiedersehen!"], "Auf Wiedersehen!"),
    (["How are you?", "How are you today?"], "I am fine, thank you."), (["Wie geht es dir?"], "Mir geht es gut, danke."),
    (["Comment ça va ?"], "Je vais bien, merci."), (["¿Cómo estás?"], "Estoy bien, gracias."),
    (["What colour is the sky?", "What color is the sky?"], "The sky is blue."), (["Welche Farbe hat der Himmel?"], "Der Himmel ist blau."),
    (["De quelle couleur est le ciel ?"], "Le ciel est bleu."), (["¿De qué color es el cielo?"], "El cielo es azul."),
    (["What colour is grass?", "What color is grass?"], "Grass is green."), (["What colour is snow?"], "Snow is white."), (["What colour is a banana?"], "A banana is yellow."),
    (["Why is the sky blue?"], "Because air scatters blue light more than red light."),
    (["What is the largest planet?", "Which planet is the largest?"], "Jupiter is the largest planet."),
    (["How many days are in a week?", "How many days does a week have?"], "A week has seven days."), (["Wie viele Tage hat eine Woche?"], "Eine Woche hat sieben Tage."),
    (["Combien de jours dans une semaine ?"], "Une semaine a sept jours."), (["¿Cuántos días tiene una semana?"], "Una semana tiene siete días."),
    (["How many months are in a year?"], "A year has twelve months."), (["How many legs does a spider have?"], "A spider has eight legs."),
    (["What does a cat say?"], "Meow."), (["What does a dog say?"], "Woof."), (["Tell me a joke.", "Tell me a joke!"], "Why did the circle roll away? It had no corners."),
    (["Tell me a story.", "Tell me a short story."], "Once there was a small red square. It met a blue circle. They rolled and rested, and became friends."),
    (["Count to five.", "Count from one to five."], "One, two, three, four, five."), (["Count to three."], "One, two, three."), (["Count to ten."], "One, two, three, four, five, six, seven, eight, nine, ten."),
    (["Zähle bis fünf."], "Eins, zwei, drei, vier, fünf."), (["Compte jusqu'à cinq."], "Un, deux, trois, quatre, cinq."), (["Cuenta hasta cinco."], "Uno, dos, tres, cuatro, cinco."),
    (["How many corners does a triangle have?", "How many sides does a triangle have?"], "A triangle has three."), (["How many corners does a square have?", "How many sides does a square have?"], "A square has four."),
]  # fmt: skip
CAPITALS = {"France": "Paris", "Germany": "Berlin", "Spain": "Madrid", "Italy": "Rome", "Japan": "Tokyo", "England": "London", "Austria": "Vienna",
            "Portugal": "Lisbon", "Poland": "Warsaw", "Greece": "Athens", "Egypt": "Cairo", "Norway": "Oslo"}  # fmt: skip
CAPITALS_DE = {"Frankreich": "Paris", "Deutschland": "Berlin", "Spanien": "Madrid", "Italien": "Rom", "Japan": "Tokio", "Österreich": "Wien"}
CAPITALS_FR = {"de la France": "Paris", "de l'Allemagne": "Berlin", "de l'Espagne": "Madrid", "de l'Italie": "Rome", "du Japon": "Tokyo"}
CAPITALS_ES = {"Francia": "París", "Alemania": "Berlín", "España": "Madrid", "Italia": "Roma", "Japón": "Tokio"}
OPPOSITES = {"big": "small", "hot": "cold", "day": "night", "up": "down", "left": "right", "old": "new", "fast": "slow", "open": "closed", "yes": "no", "black": "white"}
LANGUAGE_NAMES = {"de": "German", "fr": "French", "es": "Spanish"}


def small_talk(rng: random.Random) -> tuple[str, str]:
    """A question without a picture."""
    kind = rng.random()
    if kind < 0.42:
        questions, answer = rng.choice(FACTS)
        return rng.choice(questions), answer
    if kind < 0.54:
        language = rng.randrange(5)
        if language < 2:
            country, city = rng.choice(list(CAPITALS.items()))
            return rng.choice(["What is the capital of {c}?", "Which city is the capital of {c}?"]).format(c=country), f"The capital of {country} is {city}."
        if language == 2:
            country, city = rng.choice(list(CAPITALS_DE.items()))
            return f"Was ist die Hauptstadt von {country}?", f"Die Hauptstadt von {country} ist {city}."
        if language == 3:
            country, city = rng.choice(list(CAPITALS_FR.items()))
            return f"Quelle est la capitale {country} ?", f"La capitale {country} est {city}."
        country, city = rng.choice(list(CAPITALS_ES.items()))
        return f"¿Cuál es la capital de {country}?", f"La capital de {country} es {city}."
    if kind < 0.74:
        a, b = rng.randint(0, 10), rng.randint(0, 10)
        if rng.random() < 0.3:
            a, b = max(a, b), min(a, b)
            return rng.choice(["What is {a} minus {b}?", "{a} - {b} = ?", "What is {a} - {b}?"]).format(a=a, b=b), f"{a - b}"
        text = rng.choice(["What is {a} plus {b}?", "{a} + {b} = ?", "What is {a} + {b}?", "Was ist {a} plus {b}?", "¿Cuánto es {a} más {b}?", "Combien font {a} plus {b} ?"])
        return text.format(a=a, b=b), f"{a + b}"
    if kind < 0.82:
        word = rng.choice(list(OPPOSITES))
        back = rng.random() < 0.5
        a, b = (OPPOSITES[word], word) if back else (word, OPPOSITES[word])
        return f"What is the opposite of {a}?", f"The opposite of {a} is {b}."
    language = rng.choice(["de", "fr", "es"])
    name = LANGUAGE_NAMES[language]
    pick = rng.random()
    if pick < 0.4:
        colour = rng.choice(list(COLOUR_WORDS["en"]))
        word, foreign = colour, COLOUR_WORDS[language][colour]
        foreign = foreign if language == "de" else foreign[0]
    elif pick < 0.75:
        shape = rng.choice(list(SHAPE_WORDS["en"]))
        word, foreign = shape, SHAPE_WORDS[language][shape][0]
    else:
        n = rng.randint(1, 10)
        word, foreign = NUMBERS["en"][n].lower(), NUMBERS[language][n].lower()
    return rng.choice(["What is {w} in {l}?", "How do you say {w} in {l}?", "Translate {w} into {l}."]).format(w=word, l=name), upper_first(foreign) + "."


SYSTEM = ["Answer in one sentence.", "Be brief.", "You are a helpful assistant.", "Answer briefly."]
