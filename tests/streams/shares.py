#!/usr/bin/env python3
"""Realised shares of languages against n^alpha: of what is labelled, while sizes change, and of what is trained on.

    python tests/streams/shares.py [--draws 150000] [--plot shares.svg]

Supply: three languages, no labels (teachers lend their tokenizers alone, so that draws are many). The sizes change while it runs: files come into the
watched folder of one language, another is pushed to, one is paused, a share is set by hand and cleared. Consumption is never proportional to
the sizes: alpha is below 1, and examples of one language are longer than those of another. Each stretch between two changes must have
the shares that are due, and so must all stretches together.

Training: runs without a corpus on the finished log, with alpha = 0.3, 0.7 and 1; which languages a step took is in metrics.jsonl."""

import json
import pathlib
import random
import time

from packing import lines_of, text_of
from scene import Client, Failed, Scene, arguments, main, texts, until

LANGUAGES = ["de", "en", "es"]
TEACHERS = {"de": "demo-en-de", "en": "demo-en", "es": "demo-es"}
ALPHA, ALPHAS = 0.7, [0.3, 0.7, 1.0]
# Within one percent: of all draws in a stretch, and of the share itself in all of them.
TOLERANCE = 0.01
COLOURS = {"de": "#1b9e77", "en": "#d95f02", "es": "#7570b3"}
TABLES = [("[queue]", {"linger_ms": 200}), ("[store]", {"top_k": 4, "max_sequence_length": 16})]


def expected_shares(sizes, alpha, fixed=None, without=()):
    """Shares that are due: n^alpha, but for those that are set; languages in `without` have none."""
    fixed = fixed or {}
    weights = {language: size**alpha for language, size in sizes.items() if language not in without}
    free = sum(weight for language, weight in weights.items() if language not in fixed)
    rest = 1 - sum(fixed.values())
    return {language: fixed[language] if language in fixed else rest * weight / free for language, weight in weights.items()}


class Supply:
    def __init__(self, options, scene):
        self.options, self.scene = options, scene
        self.random = random.Random(options.seed)
        self.texts = {language: texts(options.text, language) for language in LANGUAGES}
        self.files = 0
        # First entry, shares that are due, what happened.
        self.stretches = []

    def tables(self):
        watch = lambda language: ("[[corpus]]", {"name": language, "language": language, "watch": language, "documents": "line"})
        teacher = lambda language: ("[[teacher]]", {"name": language, "path": str((self.options.teachers / TEACHERS[language]).resolve()), "languages": [language], "labels": False})
        pushed = ("[[corpus]]", {"name": "es", "language": "es", "source": "http", "format": "jsonl"})
        return [*map(teacher, LANGUAGES), watch("de"), watch("en"), pushed, ("[sampling]", {"alpha": ALPHA}), *TABLES]

    def lines(self, language, size_bytes):
        """Documents of the language, of about so many bytes. Those of `de` are short, so its examples are."""
        made, size = [], 0
        while size < size_bytes:
            words = self.random.choice(self.texts[language]).split()
            words = words[: 8 if language == "de" else 400]
            made.append(" ".join(words))
            size += len(made[-1].encode()) + 1
        return made

    def add(self, language, size_bytes):
        documents = self.lines(language, size_bytes)
        self.files += 1
        if language == "es":
            for first in range(0, len(documents), 2000):
                body = lines_of({"text": text} for text in documents[first : first + 2000])
                client = Client(self.scene.socket)
                status, answer, _ = client.push("es", body, f"{self.files}-{first}")
                if status != 200:
                    raise Failed(f"push: {status} {answer}")
        else:
            path = self.scene.folder / language / f"{self.files:04}.txt"
            path.parent.mkdir(exist_ok=True)
            path.with_suffix(".tmp").write_bytes(text_of(documents, "line"))
            path.with_suffix(".tmp").rename(path)

    def sizes(self):
        return {source["name"]: source["characters_available"] for source in self.scene.status()["corpora"]["corpora"]}

    def change(self, what, grown=(), commands=(), **due):
        """Between two entries: makes the sizes larger, and notes where the next stretch begins and which shares are due."""
        self.scene.ctl("pause", "ingest")
        for command in commands:
            self.scene.ctl("corpus", *command)
        before = self.sizes()
        for language, size_bytes in dict(grown).items():
            self.add(language, size_bytes)
        until("the sizes", lambda: all(self.sizes()[language] > before[language] + 0.8 * size for language, size in dict(grown).items()))
        # The entry that was being made when it was told to pause is done by now: the number does not change any more.
        (first,) = until("the pause", self.paused_at)
        self.stretches.append((first, expected_shares(self.sizes(), ALPHA, **due), what))
        self.scene.ctl("resume", "ingest")

    def paused_at(self):
        entries = self.entries()
        time.sleep(0.5)
        return (entries,) if self.entries() == entries else None

    def entries(self):
        return int(self.scene.metric("mergedistill_stage_items_in_total")["ingest",])

    def draw(self):
        """Waits until the stretch has its draws."""
        first = self.stretches[-1][0]

        def enough():
            self.scene.alive()
            return self.entries() >= first + self.options.draws

        until("draws", enough, seconds=600, interval=0.1)

    def run(self):
        self.scene.configure(self.tables())
        for language in ["de", "en"]:
            (self.scene.folder / language).mkdir()
        self.scene.start()
        self.scene.ctl("pause", "ingest")
        megabyte = 1_000_000
        self.change("at first: de 30, en 15, es 8 MB", {"de": 30 * megabyte, "en": 15 * megabyte, "es": 8 * megabyte})
        self.draw()
        self.change("en: 60 MB more", {"en": 60 * megabyte})
        self.draw()
        self.change("es: 100 MB pushed", {"es": 100 * megabyte})
        self.draw()
        self.change("de paused", commands=[("pause", "de")], without=["de"])
        self.draw()
        self.change("share of de set to 0.5", commands=[("resume", "de"), ("share", "de", "0.5")], fixed={"de": 0.5})
        self.draw()
        self.change("cleared", commands=[("share", "de", "--clear")])
        self.draw()
        self.scene.ctl("pause", "ingest")
        (self.end,) = until("the pause", self.paused_at)
        self.consumed = {source["name"]: source["characters_consumed"] for source in self.scene.status()["corpora"]["corpora"]}
        self.scene.stop()

    def check(self):
        """Each stretch, and all together. Returns the language of each entry."""
        drawn = [None] * self.end
        for record in self.scene.records():
            if record["seq"] < self.end:
                drawn[record["seq"]] = record["language"]
        problems = []
        total, due = dict.fromkeys(LANGUAGES, 0), dict.fromkeys(LANGUAGES, 0.0)
        print(f"{'stretch':32} {'draws':>8} " + " ".join(f"{language + ' due':>9} {'found':>8}" for language in LANGUAGES))
        for index, (first, shares, what) in enumerate(self.stretches):
            # The end of the log may lack the group that was being filled.
            end = self.stretches[index + 1][0] if index + 1 < len(self.stretches) else self.end
            entries = [language for language in drawn[first:end] if language]
            cells = []
            for language in LANGUAGES:
                found, expected = entries.count(language), shares.get(language, 0.0)
                total[language] += found
                due[language] += expected * len(entries)
                cells.append(f"{expected:9.4f} {found / len(entries):8.4f}")
                if abs(found / len(entries) - expected) > TOLERANCE:
                    problems.append(f"{what}: {language} has {found / len(entries):.4f}, due {expected:.4f}")
            print(f"{what:32} {len(entries):8} " + " ".join(cells))
        for language in LANGUAGES:
            off = total[language] / due[language] - 1
            print(f"all stretches, {language}: {total[language]} draws, {due[language]:.0f} due ({100 * off:+.2f} %)")
            if abs(off) > TOLERANCE:
                problems.append(f"{language}: {100 * off:+.2f} % off over all")
        if problems:
            raise Failed("\n".join(problems))
        return drawn


def train(options, scene, log, sizes):
    """Trains on the finished log with each alpha. Returns (alpha, language, due, found)."""
    rows, problems = [], []
    for alpha in ALPHAS:
        state = f"state-{alpha}"
        teachers = [("[[teacher]]", {"name": language, "path": str((options.teachers / TEACHERS[language]).resolve()), "languages": [language], "labels": False}) for language in LANGUAGES]
        scene.configure(
            [
                *teachers,
                ("[sampling]", {"alpha": alpha}),
                ("[store]", {"path": str(log), "max_sequence_length": 16, "top_k": 4}),
                ("[student]", {"layers": 1, "hidden_size": 16, "heads": 2, "max_sequence_length": 16}),
                ("[train]", {"steps": options.steps, "batch_examples": 512, "micro_batch_tokens": 8192, "shuffle_examples": 8192, "checkpoint_every_steps": 1_000_000}),
                ("[evaluate]", {"every_steps": 1_000_000, "max_examples": 1}),
            ],
            state,
        )
        scene.start(ready=False)
        scene.finish(seconds=900)
        taken = dict.fromkeys(LANGUAGES, 0)
        for line in (scene.folder / state / "metrics.jsonl").read_text().splitlines():
            for language, copies in (json.loads(line).get("languages") or {}).items():
                taken[language] += copies
        shares = expected_shares(sizes, alpha)
        for language in LANGUAGES:
            found = taken[language] / sum(taken.values())
            off = found / shares[language] - 1
            rows.append((alpha, language, shares[language], found))
            print(f"training, alpha {alpha}: {language} {taken[language]:8} examples, {found:.4f}, due {shares[language]:.4f} ({100 * off:+.2f} %)")
            if abs(off) > TOLERANCE:
                problems.append(f"training, alpha {alpha}: {language} is {100 * off:+.2f} % off")
    if problems:
        raise Failed("\n".join(problems))
    return rows


def plot(path, drawn, stretches, rows, window):
    """Writes both parts as an SVG."""
    width, height, left, top = 900, 300, 60, 40
    end = len(drawn)
    at_x = lambda entry: left + width * entry / end
    at_y = lambda share: top + height * (1 - share / 0.8)
    parts = []
    text = lambda x, y, words, size=12, anchor="start", colour="#333": parts.append(f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}">{words}</text>')
    line = lambda x1, y1, x2, y2, colour="#bbb", more="": parts.append(f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{colour}" {more}/>')
    text(left, 22, f"Supply: shares of draws over the last {window:,} (curves) and what n^{ALPHA} says (dashed)", 14)
    for share in [0.0, 0.2, 0.4, 0.6, 0.8]:
        line(left, at_y(share), left + width, at_y(share), "#eee")
        text(left - 8, at_y(share) + 4, f"{share:.1f}", anchor="end")
    bounds = [first for first, _, _ in stretches] + [end]
    for index, (first, shares, what) in enumerate(stretches):
        line(at_x(first), top, at_x(first), top + height)
        text((at_x(first) + at_x(bounds[index + 1])) / 2, top + height + 18, what, 10, "middle")
        for language, share in shares.items():
            line(at_x(first), at_y(share), at_x(bounds[index + 1]), at_y(share), COLOURS[language], 'stroke-width="1.5" stroke-dasharray="6 4"')
    for language in LANGUAGES:
        points, number, step = [], 0, max(1, end // 1200)
        for entry in range(end):
            number += (drawn[entry] == language) - (entry >= window and drawn[entry - window] == language)
            if entry % step == 0 and entry >= window // 10:
                points.append(f"{at_x(entry):.1f},{at_y(number / min(entry + 1, window)):.1f}")
        parts.append(f'<polyline points="{" ".join(points)}" fill="none" stroke="{COLOURS[language]}" stroke-width="1.3"/>')
        text(left + width + 8, at_y(number / min(end, window)) + 4, language, colour=COLOURS[language])
    text(left + width / 2, top + height + 36, f"entry of the log (0 to {end:,})", 11, "middle")
    below = top + height - 60
    text(left, below + 128, "Training on that log: share of examples (bars) and what n^alpha says (black)", 14)
    for index, (alpha, language, due, found) in enumerate(rows):
        x, scale = left + 20 + index * 75 + (index // len(LANGUAGES)) * 75, 330
        parts.append(f'<rect x="{x}" y="{below + scale * (1 - found):.1f}" width="40" height="{scale * found:.1f}" fill="{COLOURS[language]}"/>')
        line(x - 5, below + scale * (1 - due), x + 45, below + scale * (1 - due), "#000", 'stroke-width="1.5"')
        text(x + 20, below + scale * (1 - found) - 6, f"{100 * (found / due - 1):+.2f} %", 10, "middle")
        text(x + 20, below + scale + 14, language, 11, "middle")
        if language == LANGUAGES[1]:
            text(x + 20, below + scale + 32, f"alpha = {alpha}", 12, "middle")
    size = f'width="{width + left + 60}" height="{below + 380}"'
    path.write_text(f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif"><rect {size} fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n", encoding="utf-8")


def trial():
    parser = arguments(__doc__)
    parser.add_argument("--draws", type=int, default=150_000, help="in each stretch")
    parser.add_argument("--steps", type=int, default=400, help="of 512 examples, for each alpha")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--plot", type=pathlib.Path, help="where to write the plot")
    options = parser.parse_args()
    with Scene(options, "shares", []) as scene:
        supply = Supply(options, scene)
        supply.run()
        drawn = supply.check()
        sources = scene.log_stat()["sources"]
        sizes = {language: sources[language]["characters_available"] for language in LANGUAGES}
        print("characters at the end: " + ", ".join(f"{language} {size}, {supply.consumed[language]} consumed" for language, size in sizes.items()))
        rows = train(options, scene, scene.log, sizes)
        if options.plot:
            plot(options.plot, drawn, supply.stretches, rows, window=options.draws // 15)


main(trial)
