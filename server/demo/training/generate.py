"""Writes the demo model's training conversations. Nothing is taken from anywhere.

Every document is a small conversation in the form that `chat.py` renders.
Half of them think. Seeds fix everything: the same seed gives the same text.
"""

import json
import random
import sys

from facts import (
    ANIMALS,
    BOOKS,
    CAPITALS,
    CITIES,
    COLORS,
    DAYS,
    DISHES,
    EXPLANATIONS,
    JOKES,
    LISTS,
    MONTHS,
    OBJECTS,
    OPPOSITES,
    PEOPLE,
    PROGRAMS,
    REFUSAL,
    SMALL_TALK,
    SOUNDS,
    SPELLABLE,
    THINGS,
    TOPICS,
    TRANSLATIONS,
    UNKNOWN,
    UNKNOWN_COUNTRIES,
)

CONSONANTS, VOWELS = "bcdfghjklmnprstvwz", "aeiou"


def invented(r):
    """A word nobody has seen, so that copying is the only way to get it right."""
    return "".join(r.choice(CONSONANTS) + r.choice(VOWELS) for _ in range(r.choice([2, 2, 3]))) + r.choice(
        ["", "n", "x", "l"]
    )


def capital_first(text):
    return text[0].upper() + text[1:]


# --- chat tasks: each returns (question, thought, answer) ---------------------


def small_talk(r):
    questions, thought, answers = r.choice(SMALL_TALK[:5] * 3 + SMALL_TALK)
    return r.choice(questions), thought, r.choice(answers)


def geography(r):
    country = r.choice(list(CAPITALS))
    capital, continent = CAPITALS[country]
    kind = r.random()
    if kind < 0.08:
        country = r.choice(UNKNOWN_COUNTRIES)
        question = r.choice([f"What is the capital of {country}?", f"Tell me the capital of {country}."])
        return question, f"The user asks about {country}. I do not know {country}.", REFUSAL
    if kind < 0.7:
        question = r.choice(
            [
                f"What is the capital of {country}?",
                f"What is the capital of {country}?",
                f"What's the capital of {country}?",
                f"Tell me the capital of {country}.",
                f"Which city is the capital of {country}?",
                f"Name the capital of {country}.",
                f"{capital_first(country)}: capital?",
                f"capital of {country}",
                f"Do you know the capital of {country}?",
            ]
        )
        return (
            question,
            f"The user asks for the capital of {country}. It is {capital}.",
            f"The capital of {country} is {capital}.",
        )
    if kind < 0.85:
        country = r.choice([c for c in CAPITALS if CAPITALS[c][0] == capital and c not in ("England", "the USA")])
        question = r.choice(
            [
                f"Which country has the capital {capital}?",
                f"{capital} is the capital of which country?",
                f"Where is {capital}?",
                f"In which country is {capital}?",
            ]
        )
        return (
            question,
            f"The user asks about {capital}. It is the capital of {country}.",
            f"{capital} is the capital of {country}.",
        )
    question = r.choice(
        [f"On which continent is {country}?", f"Where is {country}?", f"Which continent is {country} in?"]
    )
    return (
        question,
        f"The user asks where {country} is. It is in {continent}.",
        f"{capital_first(country)} is in {continent}.",
    )


def add_steps(a, b):
    """Right to left with carries: what makes a sum learnable digit by digit."""
    ones = a % 10 + b % 10
    text = f"{a % 10} + {b % 10} = {ones}"
    if a < 10 and b < 10:
        return text
    carry = ones // 10
    text += f", write {ones % 10}, carry {carry}. "
    tens = a // 10 + b // 10 + carry
    return text + f"{a // 10} + {b // 10} + {carry} = {tens}, then {ones % 10}: {a + b}"


def subtract_steps(a, b):
    if a < 10 and b < 10:
        return f"{a} - {b} = {a - b}"
    borrow = int(a % 10 < b % 10)
    ones = a % 10 + 10 * borrow - b % 10
    text = f"{a % 10 + 10 * borrow} - {b % 10} = {ones}, borrow {borrow}. "
    return text + f"{a // 10} - {b // 10} - {borrow} = {a // 10 - b // 10 - borrow}, then {ones}: {a - b}"


def number(r):
    return r.randrange(10) if r.random() < 0.25 else r.randrange(10, 100)


def asked(r, a, sign, b, word):
    compact = f"{a}{sign}{b}"
    return r.choice(
        [
            f"What is {a} {sign} {b}?",
            f"What is {a} {sign} {b}?",
            f"{a} {sign} {b}",
            f"{a} {sign} {b} =",
            f"What's {compact}?",
            f"What is {a} {word} {b}?",
            f"Calculate {a} {sign} {b}.",
            f"How much is {a} {sign} {b}?",
            f"{compact}=?",
        ]
    )


def addition(r):
    a, b = number(r), number(r)
    steps = add_steps(a, b)
    return asked(r, a, "+", b, "plus"), f"{steps}.", f"{a} + {b} = {a + b}."


def subtraction(r):
    a, b = sorted((number(r), number(r)), reverse=True)
    return asked(r, a, "-", b, "minus"), f"{subtract_steps(a, b)}.", f"{a} - {b} = {a - b}."


def multiplication(r):
    a, b = r.randrange(1, 11), r.randrange(1, 11)
    return asked(r, a, r.choice("*x*"), b, "times"), f"{a} * {b} = {a * b}.", f"{a} * {b} = {a * b}."


def parity(r):
    n = number(r)
    word = "even" if n % 2 == 0 else "odd"
    question = r.choice([f"Is {n} even or odd?", f"Is {n} odd or even?", f"Is {n} an even number?"])
    return question, f"{n} ends in {n % 10}, so it is {word}.", f"{n} is {word}."


def compare(r):
    numbers = r.sample(range(1, 100), r.choice([2, 3]))
    largest = r.random() < 0.6
    answer = max(numbers) if largest else min(numbers)
    listed = ", ".join(map(str, numbers[:-1])) + f" {r.choice(['or', 'and'])} {numbers[-1]}"
    word = r.choice(["largest", "biggest"]) if largest else "smallest"
    question = r.choice([f"Which number is the {word}: {listed}?", f"What is the {word} of {listed}?"])
    return question, f"I compare the tens: the {word} is {answer}.", f"The {word} is {answer}."


def counting(r):
    start, length = r.choice([1, 1, 1, r.randrange(1, 20)]), r.choice([5, 10, r.randrange(3, 11)])
    end = start + length - 1
    question = r.choice(
        [f"Count from {start} to {end}.", f"Count to {end}." if start == 1 else f"Count from {start} to {end}."]
    )
    return question, f"I count from {start} to {end}.", ", ".join(str(n) for n in range(start, end + 1)) + "."


def spelling(r):
    word = r.choice(SPELLABLE) if r.random() < 0.8 else invented(r)
    letters = "-".join(word)
    question = r.choice([f"Spell {word}.", f"How do you spell {word}?", f"Spell the word {word}."])
    return question, f"The word is {word}. I go letter by letter.", f"{letters}."


def opposite(r):
    a, b = r.choice(OPPOSITES)
    a, b = (a, b) if r.random() < 0.5 else (b, a)
    question = r.choice([f"What is the opposite of {a}?", f"Opposite of {a}?", f"Tell me the opposite of {a}."])
    return question, f"The user wants the opposite of {a}. It is {b}.", f"The opposite of {a} is {b}."


def sound(r):
    animal = r.choice(list(SOUNDS))
    question = r.choice([f"What sound does a {animal} make?", f"What does the {animal} say?"])
    return (
        question,
        f"The user asks about the sound of a {animal}. It is {SOUNDS[animal]}.",
        f"A {animal} says {SOUNDS[animal]}.",
    )


def calendar(r):
    names, unit = (DAYS, "day") if r.random() < 0.6 else (MONTHS, "month")
    i = r.randrange(len(names))
    if r.random() < 0.7:
        question = r.choice([f"What {unit} comes after {names[i]}?", f"Which {unit} follows {names[i]}?"])
        j, word = (i + 1) % len(names), "after"
    else:
        question = f"What {unit} comes before {names[i]}?"
        j, word = (i - 1) % len(names), "before"
    return question, f"The {unit} {word} {names[i]} is {names[j]}.", f"{names[j]} comes {word} {names[i]}."


def listing(r):
    topic = r.choice(list(LISTS))
    n = r.choice([2, 3, 3, 4, 5])
    items = LISTS[topic][:n]
    word = {2: "two", 3: "three", 4: "four", 5: "five"}[n]
    amount = r.choice([str(n), word])
    question = r.choice([f"Name {amount} {topic}.", f"List {amount} {topic}.", f"Give me {amount} {topic}."])
    thought = f"The user wants {n} {topic}."
    if r.random() < 0.2:
        return question[:-1] + " as JSON.", thought, json.dumps(items)
    if r.random() < 0.3:
        return question[:-1] + " as a list.", thought, "\n".join(f"- {item}" for item in items)
    return question, thought, ", ".join(items) + "."


def explanation(r):
    topic = r.choice(list(EXPLANATIONS))
    bare = topic.removeprefix("a ").removeprefix("an ").removeprefix("the ")
    question = r.choice(
        [
            f"What is {topic}?",
            f"What is {topic}?",
            f"Explain {topic}.",
            f"Tell me about {topic}.",
            f"what is {bare}?",
            f"Explain {topic} in two sentences.",
            f"What do you know about {topic}?",
            f"Can you explain {topic}?",
        ]
    )
    return question, f"The user asks about {topic}. I know it.", EXPLANATIONS[topic]


def repeat(r):
    words = [
        r.choice([invented(r), r.choice(COLORS), r.choice(OBJECTS), r.choice(PEOPLE), str(r.randrange(100))])
        for _ in range(r.choice([1, 2, 3, 4]))
    ]
    text = " ".join(words)
    question = r.choice(
        [f"Repeat after me: {text}", f"Say {text}", f"Repeat: {text}", f'Say "{text}".', f"Please repeat this: {text}"]
    )
    return question, "The user wants me to repeat the words.", text


def extraction(r):
    person, other = r.sample(PEOPLE, 2)
    color, thing, city, age = r.choice(COLORS), r.choice(OBJECTS), r.choice(CITIES), r.randrange(5, 90)
    kind = r.randrange(4)
    if kind == 0:
        fact = f"{person} has a {color} {thing}."
        return (
            f"{fact} What color is the {thing}?",
            f'The text says "{fact}" So it is {color}.',
            f"The {thing} is {color}.",
        )
    if kind == 1:
        fact = f"{person} lives in {city}."
        second = f"{other} lives in {r.choice(CITIES)}."
        text = " ".join(r.sample([fact, second], 2))
        return f"{text} Where does {person} live?", f'The text says "{fact}"', f"{person} lives in {city}."
    if kind == 2:
        fact = f"{person} is {age} years old."
        return f"{fact} How old is {person}?", f'The text says "{fact}"', f"{person} is {age} years old."
    text = f"{person} is {age} years old and lives in {city}."
    ask = r.choice(["Write this as JSON with name, age and city.", "Extract name, age and city as JSON."])
    return (
        f"{text} {ask}",
        "The user wants JSON with name, age and city.",
        json.dumps({"name": person, "age": age, "city": city}),
    )


def translation(r):
    language = r.choice(list(TRANSLATIONS))
    word = r.choice(list(TRANSLATIONS[language]))
    foreign = TRANSLATIONS[language][word]
    question = r.choice(
        [f"How do you say {word} in {language}?", f"Translate {word} to {language}.", f"What is {word} in {language}?"]
    )
    return question, f"The user wants {word} in {language}. It is {foreign}.", f"In {language}, {word} is {foreign}."


def joke(r):
    return (
        r.choice(
            ["Tell me a joke.", "Do you know a joke?", "Make me laugh.", "Say something funny.", "A joke, please."]
        ),
        "The user wants a joke. I tell one.",
        r.choice(JOKES),
    )


def program(r):
    language = r.choice(list(PROGRAMS))
    fence, code = PROGRAMS[language]
    question = r.choice(
        [
            f"Write hello world in {language}.",
            f"Show me hello world in {language}.",
            f"Write a {language} program that says hello.",
            f"Write a hello world program in {language}.",
        ]
    )
    return question, f"The user wants hello world in {language}.", f"```{fence}\n{code}\n```"


def unknown(r):
    question = r.choice(UNKNOWN).format(
        year=r.randrange(1900, 2030),
        country=r.choice(list(CAPITALS)),
        dish=r.choice(DISHES),
        thing=r.choice(THINGS),
        book=r.choice(BOOKS),
        city=r.choice(CITIES),
        person=r.choice(PEOPLE),
        word=invented(r),
        topic=r.choice(TOPICS),
    )
    return question, "The user asks something I do not know. I say so.", REFUSAL


def poem(r):
    topic = r.choice(ANIMALS + OBJECTS + ["sun", "moon", "sea", "rain", "river", "tree", "cloud", "star"])
    couplets = r.sample(
        [
            f"A little {topic} woke up at night,\nand everything was calm and bright.",
            f"The {topic} looked up to the sky\nand saw the clouds go drifting by.",
            "It sang a song for all the day,\nthen ran outside to dance and play.",
            "It dreamed about the deep blue sea,\nand of a world so wide and free.",
        ],
        2,
    )
    question = r.choice(
        [
            f"Write a poem about a {topic}.",
            f"Write a short poem about the {topic}.",
            f"A poem about a {topic}, please.",
            f"Write a haiku about a {topic}.",
            "Write a poem.",
        ]
    )
    return question, f"The user wants a poem. It is about a {topic}.", "\n".join(couplets)


def story(r):
    """Six to nine sentences that keep their two names and their object."""
    animal, hero, friend = r.choice(ANIMALS), *r.sample(PEOPLE[:20], 2)
    color, thing, place = (
        r.choice(COLORS),
        r.choice(OBJECTS),
        r.choice(["forest", "park", "garden", "river", "hill", "village"]),
    )
    mood = r.choice(["curious", "brave", "kind", "little", "happy"])
    kind = r.random()
    if kind < 0.45:
        question = r.choice(
            [
                f"Tell me a story about a {animal}.",
                f"Write a short story about a {animal}.",
                f"Tell me a short story about a {animal}.",
            ]
        )
    elif kind < 0.7:
        question = r.choice(
            [
                f"Tell me a story about {hero}.",
                f"Write a short story about {hero}.",
                f"Tell me a story about a {animal} named {hero}.",
            ]
        )
    else:
        question = r.choice(
            [
                "Tell me a story.",
                "Tell me a short story.",
                "Write a story.",
                "Write a short story.",
                "Once upon a time",
                "Can you tell me a story?",
            ]
        )
    parts = [f"Once upon a time there was a {mood} {animal} named {hero}. {hero} lived near the {place}."]
    parts.append(
        r.choice(
            [
                f"One day {hero} found a {color} {thing} near the {place}.",
                f"One morning {hero} lost a {color} {thing} near the {place}.",
            ]
        )
    )
    lost = "lost" in parts[-1]
    parts.append(
        r.choice(
            [f"Soon {friend} came by.", f"Then a friend named {friend} came along.", f"On the way {hero} met {friend}."]
        )
    )
    if lost:
        parts.append(f'"Have you seen my {thing}?" asked {hero}.')
        parts.append(
            r.choice([f'"No, but I will help you," said {friend}.', f'"Let us look for it together," said {friend}.'])
        )

        parts.append(f"At last {friend} found the {color} {thing} under a {r.choice(['stone', 'leaf', 'bush'])}.")
    else:
        parts.append(f'"What a nice {thing}!" said {friend}.')
        parts.append(r.choice([f'"Is it yours?" asked {hero}.', f'"Who lost it?" asked {hero}.']))
        parts.append(r.choice([f'"Yes, it is mine," said {friend}.', f'"It is mine, thank you," said {friend}.']))
        parts.append(f"{hero} gave the {color} {thing} to {friend}.")
    parts.append(r.choice([f"{hero} was very happy.", "They laughed and played until night."]))
    parts.append(f"From that day on, {hero} and {friend} were best friends. The end.")
    return question, f"The user wants a story. My hero is a {animal} named {hero}.", " ".join(parts)


CHAT = {
    small_talk: 14,
    geography: 16,
    addition: 24,
    subtraction: 5,
    multiplication: 6,
    parity: 1,
    compare: 1,
    counting: 2,
    spelling: 3,
    opposite: 3,
    sound: 2,
    calendar: 3,
    listing: 3,
    explanation: 8,
    repeat: 4,
    extraction: 6,
    translation: 2,
    joke: 1.5,
    program: 1.5,
    unknown: 8,
    poem: 2,
    story: 6,
}


def name_memory(r):
    """Two turns: a name is told, then asked for."""
    name = r.choice(PEOPLE) if r.random() < 0.7 else capital_first(invented(r))
    told = r.choice(
        [f"My name is {name}.", f"Hi, I am {name}.", f"Hello, my name is {name}.", f"I am {name}.", f"Call me {name}."]
    )
    asked_for = r.choice(["What is my name?", "Do you remember my name?", "Who am I?", "What's my name?"])
    return [
        (told, f"The user is called {name}.", f"Nice to meet you, {name}!"),
        (asked_for, f"The user said the name is {name}.", f"Your name is {name}."),
    ]


def sloppy(r, text):
    """Newcomers type in lower case and forget the question mark."""
    if "\n" in text or '"' in text:
        return text
    if r.random() < 0.12:
        text = text.rstrip("?.!")
    if r.random() < 0.1:
        text = text.lower()
    if r.random() < 0.05:
        text = "Please " + text[0].lower() + text[1:]
    return text


def keeps_case(task):
    """Tasks whose answer copies the question's letters must not be lowered."""
    return task not in (repeat, extraction, unknown)


# --- tools -------------------------------------------------------------------


def field(kind, description, **extra):
    return {"type": kind, "description": description, **extra}


def undescribed(r, properties):
    """Many tools in the wild describe none of their parameters."""
    if r.random() < 0.25:
        for one in properties.values():
            del one["description"]


def function(name, description, properties, required=None):
    parameters = {"type": "object", "properties": properties, "required": required or list(properties)}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


def place(r):
    return capital_first(invented(r)) if r.random() < 0.2 else r.choice(CITIES)


def weather(r):
    key = r.choice(["city", "location", "location"])
    properties = {
        key: field(
            "string", r.choice(["The city", "City name", "The city and state, e.g. San Francisco, CA", "The location"])
        )
    }
    units = r.random() < 0.4
    if units:
        properties["unit"] = field("string", "The unit", enum=["celsius", "fahrenheit"])
    tool = function(
        r.choice(["get_weather", "get_weather", "get_current_weather"]),
        r.choice(
            [
                "Get the weather",
                "Get the current weather in a given location",
                "Get current weather for a city",
                "Get the weather for a city.",
            ]
        ),
        properties,
        [key],
    )

    def use(r):
        city = place(r)
        arguments = {key: city}
        question = r.choice(
            [
                f"What is the weather in {city}?",
                f"What's the weather like in {city}?",
                f"How is the weather in {city}?",
                f"Weather in {city}?",
                f"What is the weather like in {city} today?",
                f"Is it warm in {city}?",
                f"Tell me the weather in {city}.",
            ]
        )
        if units and r.random() < 0.6:
            arguments["unit"] = r.choice(["celsius", "fahrenheit"])
            question = question.rstrip("?.") + f" in {arguments['unit']}{question[-1]}"
        degrees, sky = r.randrange(-9, 40), r.choice(["sunny", "cloudy", "rainy", "windy", "snowy"])
        result = r.choice(
            [
                f"{degrees} degrees and {sky}",
                json.dumps({"temperature": degrees, "condition": sky}),
                json.dumps({"city": city, "temperature": degrees, "conditions": sky}),
                f"{degrees}C, {sky}",
            ]
        )
        return question, f"the weather in {city}", arguments, result, f"It is {degrees} degrees and {sky} in {city}."

    return tool, use


def clock(r):
    key = r.choice(["city", "city", "location"])
    tool = function(
        r.choice(["get_time", "get_current_time"]),
        r.choice(["Get the time", "Get the current time in a city"]),
        {key: field("string", "The city")},
    )

    def use(r):
        city, time = place(r), f"{r.randrange(24):02}:{r.randrange(60):02}"
        question = r.choice(
            [
                f"What time is it in {city}?",
                f"What is the time in {city}?",
                f"Tell me the time in {city}.",
                f"Time in {city}?",
            ]
        )
        return (
            question,
            f"the time in {city}",
            {key: city},
            r.choice([time, json.dumps({"time": time})]),
            f"It is {time} in {city}.",
        )

    return tool, use


def calculator(r):
    tool = function(
        r.choice(["calculate", "calculator"]),
        r.choice(["Calculate an expression", "Do the math"]),
        {"expression": field("string", "The expression")},
    )

    def use(r):
        a, b, sign = r.randrange(2, 1000), r.randrange(2, 1000), r.choice("+-*")
        value = {"+": a + b, "-": a - b, "*": a * b}[sign]
        expression = f"{a} {sign} {b}"
        question = r.choice(
            [f"What is {expression}?", f"Calculate {expression}.", f"How much is {expression}?", expression]
        )
        return question, expression, {"expression": expression}, str(value), f"{expression} = {value}."

    return tool, use


def timer(r):
    tool = function(
        "set_timer",
        r.choice(["Set a timer", "Start a timer"]),
        {"minutes": field("integer", r.choice(["Minutes", "How many minutes"]))},
    )

    def use(r):
        n = r.randrange(1, 100)
        question = r.choice(
            [
                f"Set a timer for {n} minutes.",
                f"Start a timer for {n} minutes.",
                f"Timer for {n} minutes, please.",
                f"Wake me in {n} minutes.",
            ]
        )
        return (
            question,
            f"a timer for {n} minutes",
            {"minutes": n},
            r.choice(["ok", "done", '{"ok": true}']),
            f"The timer is set for {n} minutes.",
        )

    return tool, use


def message(r):
    tool = function(
        "send_message",
        r.choice(["Send a message", "Send a text message to a person"]),
        {"to": field("string", "Who"), "text": field("string", "The text")},
    )

    def use(r):
        who = r.choice(PEOPLE)
        text = r.choice(
            [
                "hello",
                "I am late",
                "see you soon",
                "call me",
                "good luck",
                "thank you",
                f"bring the {r.choice(OBJECTS)}",
                f"I am in {r.choice(CITIES)}",
                invented(r),
            ]
        )
        question = r.choice(
            [
                f'Send "{text}" to {who}.',
                f"Tell {who}: {text}",
                f"Send {who} a message: {text}",
                f'Write "{text}" to {who}.',
            ]
        )
        return (
            question,
            f"a message to {who}",
            {"to": who, "text": text},
            r.choice(["sent", "ok", '{"ok": true}']),
            f"I sent the message to {who}.",
        )

    return tool, use


def search(r):
    tool = function(
        r.choice(["search", "web_search"]),
        r.choice(["Search the web", "Search for information"]),
        {"query": field("string", r.choice(["The query", "What to search for"]))},
    )

    def use(r):
        query = r.choice(
            [
                f"{invented(r)} {r.choice(OBJECTS)}",
                f"cheap {r.choice(OBJECTS)}s",
                r.choice(TOPICS),
                f"{r.choice(COLORS)} {r.choice(ANIMALS)}s",
                f"history of {r.choice(CITIES)}",
                f"best {r.choice(DISHES)}",
            ]
        )
        question = r.choice(
            [f"Search for {query}.", f"Search the web for {query}.", f"Look up {query}.", f"Find {query}."]
        )
        found = r.randrange(2, 60)
        return (
            question,
            query,
            {"query": query},
            json.dumps({"results": found}),
            f"I found {found} results for {query}.",
        )

    return tool, use


def random_tool(r):
    """Names, parameters and values at random: reading the list is all that helps."""
    verb = r.choice(
        [
            "open",
            "close",
            "start",
            "stop",
            "add",
            "remove",
            "book",
            "order",
            "play",
            "find",
            "read",
            "turn_on",
            "get",
            "create",
            "delete",
        ]
    )
    noun = r.choice(
        [
            "door",
            "light",
            "song",
            "file",
            "task",
            "table",
            "ticket",
            "note",
            "event",
            "room",
            "user",
            "item",
            invented(r),
        ]
    )
    kinds = {
        "name": lambda: r.choice(PEOPLE),
        "color": lambda: r.choice(COLORS),
        "count": lambda: r.randrange(1, 100),
        "city": lambda: r.choice(CITIES),
        "id": lambda: r.randrange(1, 1000),
        "title": lambda: invented(r),
        "day": lambda: r.choice(DAYS),
        "size": lambda: r.choice(["small", "medium", "large"]),
        invented(r): lambda: invented(r),
    }
    keys = r.sample(list(kinds), r.choice([1, 1, 2]))
    properties = {key: field("integer" if isinstance(kinds[key](), int) else "string", f"The {key}") for key in keys}
    spoken = verb.replace("_", " ")
    tool = function(f"{verb}_{noun}", f"{capital_first(spoken)} the {noun}", properties)

    def use(r):
        arguments = {key: kinds[key]() for key in keys}
        given = " and ".join(f"{key} {value}" for key, value in arguments.items())
        question = r.choice(
            [f"{capital_first(spoken)} the {noun} with {given}.", f"Please {spoken} the {noun} with {given}."]
        )
        return question, f"to {spoken} the {noun}", arguments, r.choice(["ok", "done", '{"ok": true}']), "Done!"

    return tool, use


TOOLS = {weather: 30, clock: 11, calculator: 10, timer: 10, message: 10, search: 9, random_tool: 20}


def call(tool, arguments):
    return {"type": "function", "function": {"name": tool["function"]["name"], "arguments": arguments}}


def tool_document(r):
    """Tools offered; usually one is called, sometimes two or none."""
    makers = r.choices(list(TOOLS), TOOLS.values(), k=r.choice([1, 1, 1, 2, 2, 3]))
    offered = [make(r) for make in dict.fromkeys(makers)]
    tools = [tool for tool, _ in offered]
    for one in tools:
        undescribed(r, one["function"]["parameters"]["properties"])
    tool, use = r.choice(offered)
    name = tool["function"]["name"]
    if r.random() < 0.12:
        task = pick(r, {t: w for t, w in CHAT.items() if t not in (story, addition, subtraction, multiplication)})
        question, thought, answer = task(r)
        return tools, turn(question, f"{thought} No tool is needed.", answer)
    question, about, arguments, result, final = use(r)
    if use.__qualname__.startswith(("weather", "clock")) and r.random() < 0.12:
        _, _, arguments_two, result_two, final_two = use(r)
        (key, first), second = next(iter(arguments.items())), next(iter(arguments_two.values()))
        topic = "weather" if use.__qualname__.startswith("weather") else "time"
        question = r.choice(
            [f"What is the {topic} in {first} and {second}?", f"Compare the {topic} in {first} and {second}."]
        )
        calls = [call(tool, {key: first}), call(tool, {key: second})]
        thought = f"The user wants {about} and in {second}. I call {name} twice."
        results, final = [result, result_two], f"{final} {final_two}"
    else:
        calls, results = [call(tool, arguments)], [result]
        thought = f"The user wants {about}. I call {name}."
    messages = turn(question, thought, "", tool_calls=calls)
    if r.random() < 0.3:
        messages += [{"role": "tool", "content": text} for text in results]
        messages.append(
            {"role": "assistant", "content": final, "reasoning_content": "I have the result. I tell the user."}
        )
    return tools, messages


# --- documents ---------------------------------------------------------------

SYSTEM_PROMPTS = [
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "Be brief.",
    "You are a friendly assistant.",
    "You are a helpful AI assistant. Answer the user.",
    "Answer in one sentence.",
    "You are a kind and honest assistant.",
]


def pick(r, weights):
    return r.choices(list(weights), weights.values())[0]


def turn(question, thought, answer, **extra):
    """A question and its answer, both with and without thinking.

    Without, sums are worked out in the answer itself: the steps are what makes
    them right, wherever they stand.
    """
    if "carry" in thought or "borrow" in thought:
        extra["unthought"] = f"{thought[:-1]}. So {answer}"
    return [
        {"role": "user", "content": question},
        {"role": "assistant", "content": answer, "reasoning_content": thought, **extra},
    ]


def chat_turns(r):
    if r.random() < 0.06:
        turns = name_memory(r)
        if r.random() < 0.4:
            turns.insert(1, pick(r, {t: w for t, w in CHAT.items() if t is not story})(r))
        return [message for one in turns for message in turn(*one)]
    count = r.choices([1, 2, 3], [78, 16, 6])[0]
    messages = []
    for _ in range(count):
        task = pick(r, CHAT)
        question, thought, answer = task(r)
        messages += turn(sloppy(r, question) if keeps_case(task) else question, thought, answer)
    return messages


def document(r):
    """One conversation; all answers think, or none do."""
    tools, messages = tool_document(r) if r.random() < 0.27 else ([], chat_turns(r))
    thinking = r.random() < 0.5
    last_user = max(i for i, m in enumerate(messages) if m["role"] == "user")
    for i, m in enumerate(messages):
        aloud = m.pop("unthought", None)
        # Clients seldom send back the thinking of earlier turns.
        if "reasoning_content" in m and not (thinking and (i > last_user or r.random() < 0.3)):
            del m["reasoning_content"]
            if aloud and not thinking:
                m["content"] = aloud
    if r.random() < 0.25:
        messages = [{"role": "system", "content": r.choice(SYSTEM_PROMPTS)}] + messages
    return {"messages": messages, "tools": tools, "thinking": thinking, "low_effort": thinking and r.random() < 0.08}


def documents(seed, count):
    r = random.Random(seed)
    return [document(r) for _ in range(count)]


if __name__ == "__main__":
    from chat import pieces

    for doc in documents(int(sys.argv[1]), int(sys.argv[2])):
        print("".join(text for text, _ in pieces(doc)), end="\n----\n")
