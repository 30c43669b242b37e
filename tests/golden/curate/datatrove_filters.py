"""What datatrove decides of a few hundred documents: the golden file of the `filter` stage.

    pip install datatrove nltk regex; python3 tests/golden/curate/datatrove_filters.py

writes documents.jsonl.gz (English ones, composed here from sentences, and damaged in the ways that the rules look for) and
filters.json: for each of these, and for each of the Japanese ones of examples/ja_wiki_mini/validation_0.jsonl.gz, why each of
three filters drops it, or null. C4's comes with a digest of the text that is left. Japanese is not asked for the lengths of
words, stop words and words without letters, which the stage takes otherwise where there are no spaces, nor for C4, whose words
are between spaces.

datatrove's own words come from spaCy, and its sentences too. Both are replaced by what the stage says that they are, so that
what is compared is all the rest. What a word of symbols is, the stage decides by letters and digits, and datatrove by a list."""

import gzip
import hashlib
import json
import random
from pathlib import Path

import regex

import datatrove.pipeline.filters.c4_filters as c4
import datatrove.pipeline.filters.gopher_quality_filter as quality
import datatrove.pipeline.filters.gopher_repetition_filter as repetition
from datatrove.data import Document

HERE = Path(__file__).parent
SPACE = r"\s\x1c-\x1f"
SEA = r"\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
WORDS = regex.compile(
    rf"\p{{Han}}{{1,2}}|[\p{{Hiragana}}ー]{{1,4}}|[\p{{Katakana}}ー]+|[{SEA}]{{1,4}}"
    rf"|[^{SPACE}\p{{Han}}\p{{Hiragana}}\p{{Katakana}}ー{SEA}]+"
)
ENDS = regex.compile(r"[.!?。！？｡][.!?。！？｡\"')\]}”’」』）】》〉]*")

SENTENCES = """The river rose in the night and carried the old bridge with it.
Nobody in the village had expected that the rain would last so long.
We have to repair the road before the winter, said the mayor to the council.
A engine of this kind needs a lot of oil, and most of it is lost through the valves.
In the autumn of that year the harvest was better than it had been for a decade.
She read the letter twice, folded it, and put it back into the drawer of the desk.
The compiler reports an error when a value is used after it was moved.
There are three ways to cross the mountains, and two of them are closed by snow.
Children learn to speak long before they know that there is such a thing as grammar.
The committee will be asked to have another look at the numbers that were published.
Most stars of this type end as white dwarfs, which cool over billions of years.
He had never been to the sea, and the noise of it kept him awake with wonder.
The price of copper fell again, to the surprise of those who had bought it in spring.
An index of the book can be found at the end of the second volume.
To be of use, a map must leave out almost all that there is to see.
They painted the house with a colour that the neighbours could not forgive.
Water boils at a lower temperature on top of a high mountain.
It is not known who wrote the song, but it was sung in every inn of the valley.
The train to the north leaves at six in the morning and takes four hours.
With a little patience the lock can be opened without a key.
Glass is made of sand, and sand is what is left of mountains.
The museum shows tools of stone that people have used for a hundred thousand years.
If the test fails, look at the last line of the log and read it to the end.
A letter that is sent today will be there on the day after tomorrow.
The bees returned to the garden, and with them the sound of summer.
Our memory keeps the beginning and the end of a story, and makes up the middle.
The court decided that the contract was void and that both parties have to pay.
Every language has words that cannot be translated into any other.
The engine was started again, and this time it ran for the whole night.
Salt was once so dear that soldiers were paid with it.""".split("\n")


def compose(random):
    def paragraph(least, most):
        return " ".join(random.choice(SENTENCES) for _ in range(random.randint(least, most)))

    def lines(n, least=1, most=3):
        return [paragraph(least, most) for _ in range(n)]

    kinds = {
        "prose": lambda: "\n\n".join(lines(random.randint(3, 8), 2, 6)),
        "distinct": lambda: "\n".join(random.sample(SENTENCES, random.randint(4, 30))),
        "short": lambda: paragraph(1, 4),
        "repeated lines": lambda: "\n".join(random.sample(SENTENCES, 8) + [random.choice(SENTENCES)] * random.randint(1, 9)),
        "repeated paragraphs": lambda: "\n\n".join(lines(5) + [paragraph(2, 4)] * random.randint(1, 5)),
        "repeated words": lambda: " ".join(random.sample(SENTENCES, 10)) + " buy it now" * random.randint(1, 60),
        "bullets": lambda: "\n".join(
            (random.choice(["- ", "• ", "  - "]) if random.random() < 0.92 else "") + s
            for s in random.sample(SENTENCES, random.randint(5, 20))
        ),
        "ellipses": lambda: "\n".join(
            s[:-1] + (random.choice(["...", "…"]) if random.random() < random.choice([0.1, 0.3, 0.6]) else ".")
            for s in random.sample(SENTENCES, 20)
        ),
        "hashes": lambda: " ".join(
            ("#" if random.random() < random.choice([0.05, 0.12, 0.3]) else "") + word
            for s in random.sample(SENTENCES, 12)
            for word in s.split()
        ),
        "numbers": lambda: " ".join(
            (str(random.randint(0, 99999)) if random.random() < random.choice([0.1, 0.2, 0.3]) else word)
            for s in random.sample(SENTENCES, 12)
            for word in s.split()
        ),
        "no stop words": lambda: " ".join(
            word for s in random.sample(SENTENCES, 25) for word in s.split() if word not in set(quality.STOP_WORDS)
        ),
        "long words": lambda: " ".join(
            word * random.choice([1, 2, 3]) for s in random.sample(SENTENCES, 12) for word in s.split()
        ),
        "short words": lambda: " ".join(
            word[: random.choice([2, 3])] for s in random.sample(SENTENCES, 20) for word in s.split()
        ),
        "page": lambda: "\n".join(
            random.sample(
                random.sample(SENTENCES, random.randint(1, 12))
                + random.sample(
                    [
                        "Home | About | Contact",
                        "Please enable JavaScript to see this page.",
                        "Read our privacy policy before you go on.",
                        "This site uses cookies to make it better.",
                        "To be continued...",
                        "Rivers rise in spring.[1][23] They fall in autumn.[citation needed]",
                        "It rose. It fell! Did it? It did.",
                        "x" * 1001 + " is a long word that is not one.",
                        "  A line with space at both of its ends.  ",
                        "He said that it was \"done.\"",
                        "Lorem ipsum dolor sit amet, consectetur adipiscing elit.",
                        "function f() { return 1; } is a piece of a program.",
                    ],
                    random.choice([1, 2, 5]),
                ),
                3,
            )
            + random.sample(SENTENCES, random.randint(0, 6))
        ),
        "odd lines": lambda: random.choice(["", "\n", " \n"])
        + random.choice(["\r\n", "\n\n\n", "\u2028", "\n \n"]).join(random.sample(SENTENCES, 10))
        + random.choice(["", "\n", "\n\n"]),
    }
    names = list(kinds)
    documents = [(names[i % len(names)], kinds[names[i % len(names)]]()) for i in range(330)]
    return [{"id": i, "kind": kind, "text": text} for i, (kind, text) in enumerate(documents)] + [
        {"id": 330, "kind": "empty", "text": ""},
        {"id": 331, "kind": "blank", "text": " \n "},
    ]


def words(text, language=None):
    return WORDS.findall(text)


def sentences(line, language=None):
    """As many items as there are sentences."""
    count, at = 0, 0
    for end in ENDS.finditer(line):
        wide = any(c in "。！？｡" for c in end.group())
        behind = line[end.end() : end.end() + 1]
        if wide or not behind or behind.isspace():
            count, at = count + 1, end.end()
    return [""] * (count + bool(line[at:].strip()))


def main():
    quality.split_into_words = repetition.split_into_words = words
    c4.split_into_sentences = sentences
    filters = {
        "gopher_quality": quality.GopherQualityFilter(),
        "gopher_repetition": repetition.GopherRepetitionFilter(),
        "c4": c4.C4QualityFilter(min_num_sentences=3, min_words_per_line=5),
    }
    documents = compose(random.Random(7))
    with open(HERE / "documents.jsonl.gz", "wb") as out, gzip.GzipFile(fileobj=out, mode="wb", mtime=0, filename="") as out:
        for document in documents:
            out.write(json.dumps(document, ensure_ascii=False).encode() + b"\n")
    with gzip.open(HERE / "../../../examples/ja_wiki_mini/validation_0.jsonl.gz", "rt") as lines:
        japanese = [json.loads(line)["text"] for line in lines]

    def judge(text, filters):
        verdicts = {}
        for name, one in filters.items():
            document = Document(text=text, id="")
            try:
                verdict = one.filter(document)
            except (ZeroDivisionError, AssertionError) as error:
                verdict = (False, type(error).__name__)
            verdicts[name] = None if verdict is True else verdict[1]
            if name == "c4" and verdict is True:
                verdicts["left"] = hashlib.sha256(document.text.encode()).hexdigest()[:16]
        return verdicts

    unspaced = {
        "gopher_quality": quality.GopherQualityFilter(
            min_avg_word_length=None, max_avg_word_length=None, min_stop_words=None, max_non_alpha_words_ratio=None
        ),
        "gopher_repetition": filters["gopher_repetition"],
    }
    judged = {"english": [judge(document["text"], filters) for document in documents]}
    # The characters of an n-gram are those that the text has: no spaces between words that have none between them.
    repetition.get_n_grams = lambda words, n: ["".join(words[i : i + n]) for i in range(len(words) - n + 1)]
    judged["japanese"] = [judge(text, unspaced) for text in japanese]
    (HERE / "filters.json").write_text(json.dumps(judged, indent=0, ensure_ascii=False) + "\n")
    for name, verdicts in judged.items():
        for filter_name in filters:
            counts = {}
            for verdict in verdicts:
                verdict = verdict.get(filter_name, "not asked")
                counts[verdict] = counts.get(verdict, 0) + 1
            print(name, filter_name, counts)


main()
