"""Differences between two students (arms) over seeds, and over what both were scored on; their intervals, and which of many are to be believed.

A difference has noise from two sides: another seed (weights, order, masks) would have given another one, and so would other pages or sentences. The first is its
variance over the seeds, the second that of a bootstrap over pages or sentences with all seeds kept; both are added, with Satterthwaite's degrees of freedom.
"""

import collections
import math
import random
import statistics
from dataclasses import dataclass

import numpy
from scipy.stats import t as student_t

DRAWS = 1000


@dataclass(frozen=True)
class Difference:
    mean: float
    error: float
    degrees: float
    seeds: int

    def half(self):
        """Half the width of its interval, 95 %."""
        return self.error * float(student_t.ppf(0.975, self.degrees))

    def p(self):
        """Of so large a difference where there is none."""
        return 2 * float(student_t.sf(abs(self.mean) / self.error, self.degrees)) if self.error else float(self.mean == 0)

    def text(self, digits=2):
        return f"{self.mean:+.{digits}f} ({self.mean - self.half():+.{digits}f} to {self.mean + self.half():+.{digits}f})"


def of_seeds(values):
    """From one difference for each seed; nothing where there are not two."""
    if len(values) < 2:
        return None
    return Difference(statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5, len(values) - 1, len(values))


def both(by_seed, draws, units):
    """From one difference for each seed, and bootstrapped ones over `units` pages or sentences. One seed says of that alone."""
    over_units = statistics.variance(draws)
    over_seeds = statistics.variance(by_seed) / len(by_seed) if len(by_seed) > 1 else 0.0
    error = math.sqrt(over_units + over_seeds)
    parts = over_units**2 / max(1, units - 1) + (over_seeds**2 / (len(by_seed) - 1) if len(by_seed) > 1 else 0.0)
    return Difference(statistics.mean(by_seed), error, error**4 / parts if parts else 1.0, len(by_seed))


def believed(differences):
    """Which of several differences are not 0, by name: Holm's procedure at 5 % over all of them. One or two seeds are not believed: their variance says too little."""
    tested = sorted((difference.p(), name) for name, difference in differences.items() if difference and difference.seeds > 2)
    found = set()
    for place, (p, name) in enumerate(tested):
        if p > 0.05 / (len(tested) - place):
            break
        found.add(name)
    return found


def of_pages(ours, theirs, figure, language=None):
    """The difference of two arms' results (by seed) on the pages that both saw cut and masked alike, a mean over languages (or of one), and these languages."""
    seeds = sorted(set(ours) & set(theirs))
    pairs = {seed: paired(ours[seed], theirs[seed], figure) for seed in seeds}
    languages = [one for one in sorted(pairs[seeds[0]]) if language in (None, one)] if seeds else []
    if not languages:
        return None, []
    pages = {language: sorted({page for seed in seeds for page in pairs[seed][language]}) for language in languages}
    generator = random.Random(0)

    def value(of_seeds, of_pages):
        return statistics.mean(statistics.mean(language_means(pairs[seed], of_pages)) for seed in of_seeds)

    draws = [value(seeds, {language: generator.choices(of, k=len(of)) for language, of in pages.items()}) for _ in range(DRAWS)]
    return both([value([seed], pages) for seed in seeds], draws, sum(map(len, pages.values()))), languages


def paired(ours, theirs, figure):
    """By language and page: masked positions, and the sum over them of how much more we have. Of pages that the same teacher's tokenizer cut, with the same masks."""
    pages = collections.defaultdict(dict)
    for language, of in ours["pages"].items():
        for page, teachers in of.items():
            others = theirs["pages"].get(language, {}).get(page, {})
            same = [(mine, others[teacher]) for teacher, mine in teachers.items() if teacher in others and have_the_same_masks(mine, others[teacher])]
            if same:
                pages[language][page] = (sum(mine[0] for mine, _ in same), sum(figure(mine) - figure(other) for mine, other in same))
    return pages


def have_the_same_masks(mine, other):
    """Whether two students saw a page masked alike: the teacher's loss tells, where both have it; otherwise the number of masked positions, which the tokenizer and the seed decide."""
    return mine[0] == other[0] and (None in (mine[3], other[3]) or abs(mine[3] - other[3]) < 1e-4)


def language_means(pairs, pages):
    means = []
    for language, of in pages.items():
        counted = [pairs[language][page] for page in of if page in pairs[language]]
        if counted:
            means.append(sum(more for _, more in counted) / sum(positions for positions, _ in counted))
    return means


def of_sentences(ours, theirs, pairs):
    """The difference of two arms' accuracy (by seed), a mean over `pairs` of languages: tuned in the one, scored in the other. Treebanks are parallel: a sentence is drawn in all languages at once."""
    seeds = sorted(set(ours) & set(theirs))
    if not seeds:
        return None
    count = len(ours[seeds[0]]["words"][pairs[0][1]])
    # [draws, sentences]: how often a draw has a sentence; the last one has each once.
    draws = numpy.vstack([numpy.random.default_rng(0).multinomial(count, [1 / count] * count, DRAWS), numpy.ones(count)])
    by_seed = [numpy.mean([accuracies(ours[seed], pair, draws) - accuracies(theirs[seed], pair, draws) for pair in pairs], axis=0) for seed in seeds]
    return both([float(of[-1]) for of in by_seed], [float(of) for of in numpy.mean(by_seed, axis=0)[:-1]], count)


def accuracies(result, pair, draws):
    """`[draws]`: percent of the words of each draw's sentences that are right."""
    return 100 * (draws @ numpy.array(result["right"][pair[0]][pair[1]])) / (draws @ numpy.array(result["words"][pair[1]]))


def accuracy(result, pair):
    """Percent of the words that are right."""
    return 100 * sum(result["right"][pair[0]][pair[1]]) / sum(result["words"][pair[1]])
