"""What is asked for: kinds of text about topics, before any instruction is added."""

import random
from typing import NamedTuple

# A topic fits behind "about". The last fifth is held out from all training.
TOPICS = tuple(
    """gardening; chess; the ocean; honey bees; coffee; night trains; bread baking; mountain hiking; sleep; jazz music;
    old friendships; winter storms; house cats; public libraries; long-distance running; solar energy; street food;
    bicycle repair; paper maps; the moon; school uniforms; board games; swimming lessons; wooden furniture;
    local markets; photography; tea ceremonies; city parks; electric cars; handwritten letters; camping; dinosaurs;
    good manners; job interviews; video games; volcanoes; small farms; knitting; public speaking; recycling;
    rainy days; lighthouses;
    learning to cook; moving to a new city; working from home; stray dogs; birthday parties; saving money; deserts;
    opera; football; the first day of school; morning routines; wind turbines; train stations; family recipes; robots;
    rivers; mountain villages; time management; tree houses; museum visits; second-hand clothes; healthy breakfasts;
    penguins; fishing; learning a language; space travel; traffic jams; ice cream; neighbours; ancient Rome; yoga;
    pottery; online shopping; thunderstorms; mushrooms; summer holidays; detective novels; the violin; honesty; kites;
    childhood memories; water; wild horses; market research; customer service; team meetings; new software; first aid;
    city buses; butterflies; a broken phone; a lost umbrella; old bridges; grandparents; comic books; sunrise; cheese;
    elections; newspapers; steam engines; island life; sharks; remote work; group projects; late trains; quiet places;
    startups; the human heart; vaccination; castles; weddings; road trips; homework; theatre; beekeeping;
    autumn leaves; whales; chocolate; tennis; stargazing; apple orchards; folk songs; snow; markets in winter;
    houseplants; origami; earthquakes; sailing; bookshops; radio; rice; marathons; owls; carpentry; picnics;
    the printing press; kindness;
    skateboarding; waterfalls; roommates; cinema; pumpkins; coral reefs; village festivals; budget travel; the harbour;
    spiders; lemonade; climbing; flea markets; elephants; the accordion; cold water; night shifts; ceramics""".replace(
        "\n", " "
    ).split("; ")
)
TOPICS = tuple(" ".join(topic.split()) for topic in TOPICS)


class Request(NamedTuple):
    """One request: its words, the topic, and whether it can be answered by yes or no."""

    text: str
    topic: str
    closed: bool = False


# Each kind of text with its wordings; {topic} is replaced.
TEXTS: dict[str, tuple[str, ...]] = {
    "description": (
        "Describe {topic} to someone who has never heard of it.",
        "Give a short description of {topic}.",
        "What would you say about {topic}? Describe what matters most.",
    ),
    "explanation": (
        "Explain why {topic} can matter to people.",
        "Why do people care about {topic}?",
        "Explain in simple words what is special about {topic}.",
    ),
    "letter": (
        "Write a letter to a friend about {topic}.",
        "Write a letter to the mayor about {topic}.",
        "I want to write to my aunt about {topic}. Draft the letter for me.",
    ),
    "email": ("Write an email to a colleague about {topic}.", "Draft a polite email to my boss about {topic}."),
    "list": (
        "List things that everybody should know about {topic}.",
        "Give me some ideas for a school project about {topic}.",
        "What are the pros and cons of {topic}?",
    ),
    "advice": (
        "Give some advice to a beginner about {topic}.",
        "What are good tips about {topic}?",
        "My sister wants to know more about {topic}. What should she do first?",
    ),
    "story": (
        "Write a very short story about {topic}.",
        "Tell me a story for children about {topic}.",
        "Write a story about {topic} with a surprising end.",
    ),
    "poem": (
        "Write a poem about {topic}.",
        "Compose a short poem about {topic} for a birthday card.",
        "Write a limerick about {topic}.",
    ),
    "headline": (
        "Suggest headlines for an article about {topic}.",
        "Write a headline and one paragraph about {topic}.",
    ),
    "advertisement": (
        "Write an advertisement about {topic}.",
        "Write a slogan and a short product text about {topic}.",
    ),
    "article": ("Write a blog post about {topic}.", "Write a short newspaper article about {topic}."),
    "speech": ("Write a short speech about {topic}.", "Write a toast about {topic} for a dinner."),
    "review": ("Write a critical review of a book about {topic}.", "Write a review of a film about {topic}."),
    "dialogue": (
        "Write a dialogue between two people about {topic}.",
        "Write an interview with an expert about {topic}.",
    ),
    "diary": ("Write a diary entry about {topic}.", "Write down what you remember about {topic}, as if in a diary."),
    "summary": ("Summarize what is known about {topic}.", "Write a summary of the history of {topic}."),
    "argument": (
        "Argue that {topic} should get more attention.",
        "Convince a sceptic to think again about {topic}.",
    ),
    "questions": ("Write questions for a quiz about {topic}.", "What would you ask an expert about {topic}?"),
    "post": ("Write a post for social media about {topic}.", "Write a funny tweet about {topic}."),
    "closed": (
        "Is it worth the time to learn more about {topic}?",
        "Would you say that most people enjoy {topic}?",
        "Should children learn about {topic} at school?",
        "Do you think that {topic} will matter in a hundred years?",
    ),
}


def topics(held_out: bool) -> tuple[str, ...]:
    """The topics of training, or those held out from it."""
    first = len(TOPICS) * 4 // 5
    return TOPICS[first:] if held_out else TOPICS[:first]


def draw_request(rng: random.Random, held_out: bool, closed: bool = False) -> Request:
    """A request about a topic of training or, with `held_out`, about another; `closed`: one to answer by yes or no."""
    topic = rng.choice(topics(held_out))
    kind = "closed" if closed else rng.choice([name for name in TEXTS if name != "closed"])
    return Request(rng.choice(TEXTS[kind]).format(topic=topic), topic, closed)
