"""What is compared with what: logs of labels, the students trained from them (arms), and the claims that they speak to."""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Log:
    """Labels that several arms share: a configuration without its student, and what is changed in it."""

    base: str
    changes: dict = field(default_factory=dict)
    # Corpora that are left out: evaluated, never trained on.
    without: tuple = ()


@dataclass(frozen=True)
class Arm:
    """A student: which log it is trained from, and what is changed in that log's configuration."""

    log: str
    changes: dict = field(default_factory=dict)
    # Of the steps of the others. In changes, a step from which on something holds is a share of the arm's steps.
    share_of_steps: float = 1.0


LOGS = {
    "similar": Log("similar"),
    "similar-k128": Log("top-k-128"),
    "similar-k512": Log("top-k-512"),
    "similar-sampled": Log("similar", {"store.tail_samples": 4}),
    "weak": Log("mbert-like"),
    "weak-alone": Log("sm1"),
    "strong": Log("muril-like"),
    "both": Log("both-all"),
    "spanish": Log("zero-shot-spanish"),
    "spanish-gold": Log("zero-shot-gold"),
    "spanish-unread": Log("zero-shot-spanish", without=("it",)),
    "spanish-gold-unread": Log("zero-shot-gold", without=("it",)),
}

GOLD = {"train.lambda_start": 0.0, "train.lambda_end": 0.0}
HALF = {"train.lambda_start": 0.5, "train.lambda_end": 0.5}

ARMS = {
    # The headline: one student of four teachers, and the same on gold labels alone.
    "kd": Arm("similar"),
    "gold": Arm("similar", GOLD),
    "kd-short": Arm("similar", share_of_steps=0.2),
    "gold-short": Arm("similar", GOLD, share_of_steps=0.2),
    "kd-ghost-short": Arm("similar", {"train.kd_target": "ghost"}, share_of_steps=0.2),
    # What the initial weights are worth to a task.
    "untrained": Arm("similar", {"train.learning_rate": 1e-9}, share_of_steps=0.002),
    # k, and the targets.
    "kd-k128": Arm("similar-k128"),
    "kd-k512": Arm("similar-k512"),
    "kd-ghost": Arm("similar", {"train.kd_target": "ghost"}),
    "kd-gold-residual": Arm("similar", {"train.kd_target": "gold-residual"}),
    "kd-sampled": Arm("similar-sampled"),
    "kd-later-ghost": Arm("similar", {"train.kd_target_later": "ghost", "train.kd_target_later_from_step": 0.5}),
    # Whoever is ahead early first, and whoever is ahead later from three tenths on.
    "kd-ghost-first": Arm("similar", {"train.kd_target": "ghost", "train.kd_target_later": "renormalised", "train.kd_target_later_from_step": 0.3}),
    "kd-warm": Arm("similar", {"train.kd_temperature": 2.0}),
    "kd-cosine": Arm("similar", {"train.lambda_schedule": "cosine"}),
    "kd-step": Arm("similar", {"train.lambda_schedule": "step"}),
    "kd-init": Arm("similar", {"student.init": "teachers"}),
    "gold-init": Arm("similar", GOLD | {"student.init": "teachers"}),
    # The paper's sum of a mean for each language, instead of a mean over all masked positions; and the languages' shares.
    "kd-language": Arm("similar", {"train.loss_norm": "language"}),
    "kd-alpha-0.3": Arm("similar", {"sampling.alpha": 0.3}),
    "kd-alpha-1.0": Arm("similar", {"sampling.alpha": 1.0}),
    "half": Arm("similar", HALF),
    "half-k512": Arm("similar-k512", HALF),
    "half-ghost": Arm("similar", HALF | {"train.kd_target": "ghost"}),
    "half-gold-residual": Arm("similar", HALF | {"train.kd_target": "gold-residual"}),
    "half-sampled": Arm("similar-sampled", HALF),
    # Vocabulary and predictions (SM1, SM2, SM3), and two teachers of a language.
    "sm1": Arm("weak-alone", GOLD),
    "sm2": Arm("strong", GOLD),
    "sm3": Arm("strong"),
    "sm2-short": Arm("strong", GOLD, share_of_steps=0.2),
    "sm3-short": Arm("strong", share_of_steps=0.2),
    "weak-teacher": Arm("weak"),
    "both-all": Arm("both", {"train.copies": "all"}),
    "both-best": Arm("both", {"train.copies": "best"}),
    "both-random": Arm("both", {"train.copies": "random"}),
    # A language without a teacher: Italian text has gold labels alone, or is not trained on at all.
    "spanish": Arm("spanish"),
    "spanish-gold": Arm("spanish-gold"),
    "unread": Arm("spanish-unread"),
    "unread-gold": Arm("spanish-gold-unread"),
}

# What speaks to each claim.
CLAIMS = {
    "headline": ["kd", "kd-ghost", "gold", "untrained"],
    "curve": ["kd", "kd-ghost", "gold", "kd-short", "kd-ghost-short", "gold-short"],
    "vocabulary": ["sm1", "sm2", "sm3", "sm2-short", "sm3-short"],
    "two-teachers": ["sm3", "weak-teacher", "both-all", "both-best", "both-random"],
    "targets": ["kd", "gold", "kd-k128", "kd-k512", "kd-ghost", "kd-gold-residual", "kd-sampled", "half", "half-k512", "half-ghost", "half-gold-residual", "half-sampled"],
    "schedules": ["kd", "kd-ghost-first", "kd-later-ghost", "kd-warm", "kd-cosine", "kd-step", "kd-init", "gold-init"],
    "shares": ["kd", "kd-language", "kd-alpha-0.3", "kd-alpha-1.0"],
    # English in Student_similar (with German, Italian, Spanish) and in Student_dissimilar (with Finnish and Turkish).
    "relatives": ["kd", "sm3"],
    "zero-shot": ["spanish", "spanish-gold", "unread", "unread-gold"],
}

# Students. Of tiny ones the learning rate is the best of 1e-3, 2e-3 and 4e-3 on another seed, for gold labels alone as for the teachers' too. With BERT's own initial weights
# (0.02) a student this narrow stays for 100 to 400 steps where it knows how frequent words are and no more.
SIZES = {
    "tiny": {"student.layers": 2, "student.hidden_size": 128, "student.heads": 2, "student.initializer_range": 0.05, "train.learning_rate": 2e-3},
    "small": {"student.layers": 4, "student.hidden_size": 256, "student.heads": 4},
}
