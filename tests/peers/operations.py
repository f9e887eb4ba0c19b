"""The microbenchmarks: what divan prints, and the table that comes of it."""

import re

# Arguments of `cargo bench`.
BENCHES = ("-p", "model", "-p", "teacher", "-p", "trainer", "--bench", "operations", "--bench", "head", "--bench", "training")
# Operations that count the FLOPs of products.
PRODUCTS = ("dense_forward", "dense_gradient", "attention_forward", "attention_backward", "linear_cross_entropy", "label_rows")
# What `true` among an operation's parameters stands for.
FLAGS = {"norm_forward": "dropout", "norm_backward": "dropout", "attention_forward": "dropout", "attention_backward": "dropout",
         "pack": "transposition", "linear_cross_entropy": "tail mass"}


def leaves(text):
    """What divan's trees say: {"name", "parameters", "seconds", "rate", "best_rate", "unit"} of each leaf; all but the last two medians."""
    found, path = [], []
    for line in text.splitlines():
        branch = re.match(r"((?:[│ ]  )*)[├╰]─ (.*)", line)
        *_, fastest, _slowest, median, _mean, _samples, _iterations = [""] * 6 + (branch[2] if branch else line).split("│")
        if branch:
            name, *_ = re.split(r"\s{2,}", fastest.strip())
            path = [*path[:len(branch[1]) // 3], name]
            if median.strip():
                number, unit = median.split()
                seconds = float(number) * {"ns": 1e-9, "µs": 1e-6, "ms": 1e-3, "s": 1.0}[unit]
                found.append({"name": path[0], "parameters": path[1:], "seconds": seconds})
        elif found and median.strip().endswith("/s"):
            (rate, unit), (best_rate, _) = (rate_of(cell) for cell in (median, fastest))
            found[-1] |= {"rate": rate, "best_rate": best_rate, "unit": unit}
    return found


def rate_of(cell):
    """"114.5 Gitem/s": 1.145e11 and "item"."""
    number, prefix, unit = re.fullmatch(r"\s*([\d.]+) ([KMGTP]?)(item|B)/s\s*", cell).groups()
    return float(number) * 1000 ** " KMGTP".index(prefix or " "), unit


def own_peak(figures):
    """The best FLOP/s of our own product, on one thread."""
    return max(operation["best_rate"] for operation in figures["ours"][0]["operations"] if operation["name"] == "dense_forward")


def table(figures, disturbed):
    """Markdown lines of the figures that the rounds of `run` keep."""
    operations = figures["ours"][0]["operations"]
    library = max(run["flops_per_second"] for run in figures["peak"])
    own = own_peak(figures)
    peak = max(library, own)
    note = "" if not disturbed else " **Disturbed: other programs were running.**"
    lines = [f"Each by itself on one thread, medians. The peak is {peak / 1e9:.1f} GFLOP/s: the larger one of the best product 2048×1024×1024 of PyTorch "
             f"({library / 1e9:.1f}) and the best of `dense_forward` ({own / 1e9:.1f}).{note}", "",
             "Shapes: of `dense_…` rows × outputs × inputs, of `linear_cross_entropy` positions × vocabulary × embedding, of `label_rows` positions × embedding"
             " × vocabulary, of `norm_…` the columns of 256 rows.", "",
             "| operation | shape | median | rate | share of the peak |", "| --- | --- | --- | --- | --- |"]
    for operation in operations:
        name, rate = operation["name"], operation.get("rate")
        shape = ", ".join(parameter(name, text) for text in operation["parameters"])
        if rate is None:
            speed, share = "", ""
        elif name in PRODUCTS:
            speed, share = f"{rate / 1e9:.1f} GFLOP/s", f"{rate / peak:.0%}"
        else:
            speed, share = f"{rate / 1e9:.2f} {'GB/s' if operation['unit'] == 'B' else 'G values/s'}", ""
        lines.append(f"| `{name}` | {shape} | {duration(operation['seconds'])} | {speed} | {share} |")
    return lines


def parameter(name, text):
    """One parameter of an operation, readable."""
    if text in ("true", "false"):
        return ("with " if text == "true" else "without ") + FLAGS[name] if name in FLAGS else text
    return f"k = {text}" if name == "label_rows" and text.isdecimal() else text.strip("()").replace(", ", " × ")


def duration(seconds):
    """Seconds in the unit that suits them."""
    units = (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6), ("ns", 1e-9))
    unit, size = next((candidate for candidate in units if seconds >= candidate[1]), units[-1])
    return f"{seconds / size:.4g} {unit}"
