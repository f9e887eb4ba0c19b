"""Writes the golden cases of fine-tuning: what transformers, seqeval and the SQuAD script make of a few examples.

    pip install seqeval torchmetrics && python tests/golden/generate_downstream.py

Under tests/golden/downstream/:
  <head>/config.json, model.safetensors   a small model with a task's head, before the first step
  <head>/case.json                        the batch, sequence by sequence, and the settings
  <head>/case.safetensors                 the loss's gradients ("gradient.<name>"), and the losses before each of ten AdamW steps
                                          and after the last ("losses"); double precision, dropout 0
  entities.json                           tags, and what seqeval makes of them
  answers.json                            answers, and what the SQuAD script makes of them
"""

import json
import pathlib
import random

import torch
import transformers as t
from safetensors.torch import save_file

OUT = pathlib.Path(__file__).parent / "downstream"
SHAPE = dict(vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
             max_position_embeddings=14, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-12,
             attn_implementation="eager")
SETTINGS = dict(steps=10, warmup_steps=4, learning_rate=5e-3, weight_decay=0.1, clip_norm=0.5)
HEADS = {
    # name: (class, lengths, rows that are classified, lengths of the first text or None)
    "token-bert": (t.BertForTokenClassification, [4, 9, 6, 12], [[1, 2], [1, 3, 4, 7], [4], [1, 10]], None),
    "token-electra": (t.ElectraForTokenClassification, [5, 3, 11], [[1, 3], [1], [2, 3, 9]], None),
    "sequence-bert": (t.BertForSequenceClassification, [4, 9, 6], None, None),
    "sequence-electra": (t.ElectraForSequenceClassification, [4, 9, 6], None, None),
    "pair-bert": (t.BertForSequenceClassification, [7, 12, 5, 9], None, [3, 8, 3, 4]),
    "pair-electra": (t.ElectraForSequenceClassification, [7, 12, 5], None, [3, 8, 3]),
    # Of equal lengths: transformers counts padding among the places where an answer may be, which is nothing to copy.
    "spans-bert": (t.BertForQuestionAnswering, [11, 11, 11], None, [4, 5, 6]),
    "spans-electra": (t.ElectraForQuestionAnswering, [9, 9], None, [4, 5]),
}


def main():
    for index, (name, case) in enumerate(HEADS.items()):
        torch.manual_seed(index)
        write_head(OUT / name, *case)
    write_entities()
    write_answers()


def write_head(folder, kind, lengths, rows, firsts):
    folder.mkdir(parents=True, exist_ok=True)
    model = with_head(kind)
    batch = make_batch(kind, lengths, rows, firsts)
    initial = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    loss_of(model, batch).backward()
    gradients = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    losses = train(model, batch)
    model.config.architectures = [kind.__name__]
    (folder / "config.json").write_text(json.dumps(model.config.to_diff_dict(), indent=1, sort_keys=True) + "\n")
    save_file({name: tensor.float().contiguous() for name, tensor in initial.items()}, folder / "model.safetensors", {"format": "pt"})
    tensors = {f"gradient.{name}": gradient.float().contiguous() for name, gradient in gradients.items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    save_file(tensors, folder / "case.safetensors")
    case = SETTINGS | {"classes": model.config.num_labels, "sequences": batch}
    (folder / "case.json").write_text(json.dumps(case, indent=1) + "\n")
    print(f"{folder.name}: {losses[0]:.4f} → {losses[-1]:.4f}")


def with_head(kind):
    """Every parameter random, so that none of them hides behind a zero or a one."""
    shape = SHAPE | ({} if "Answering" in kind.__name__ else {"num_labels": 5})
    if kind.__name__.startswith("Electra"):
        model = kind(t.ElectraConfig(embedding_size=8, **shape))
    else:
        model = kind(t.BertConfig(**shape))
    for name, parameter in model.named_parameters():
        offset = 1.0 if "LayerNorm.weight" in name else 0.0
        with torch.no_grad():
            parameter.copy_(offset + 0.2 * torch.randn(parameter.shape))
    return model.double().eval()


def make_batch(kind, lengths, rows, firsts):
    sequences = []
    for index, length in enumerate(lengths):
        # 0 is padding: PyTorch's embedding gives it no gradient.
        sequence = {"token_ids": torch.randint(1, SHAPE["vocab_size"], (length,)).tolist()}
        if firsts:
            sequence["token_types"] = [int(place >= firsts[index]) for place in range(length)]
        if "Token" in kind.__name__:
            sequence["rows"] = rows[index]
            sequence["targets"] = torch.randint(0, 5, (len(rows[index]),)).tolist()
        elif "Sequence" in kind.__name__:
            sequence["rows"], sequence["targets"] = [0], torch.randint(0, 5, (1,)).tolist()
        else:
            sequence["rows"] = list(range(length))
            sequence["targets"] = sorted(torch.randint(firsts[index], length, (2,)).tolist())
        sequences.append(sequence)
    return sequences


def loss_of(model, batch):
    """What the model itself calls its loss."""
    longest = max(len(sequence["token_ids"]) for sequence in batch)
    padded = lambda values, filling: torch.tensor([row + [filling] * (longest - len(row)) for row in values])
    inputs = {
        "input_ids": padded([sequence["token_ids"] for sequence in batch], 0),
        "attention_mask": padded([[1] * len(sequence["token_ids"]) for sequence in batch], 0),
    }
    if "token_types" in batch[0]:
        inputs["token_type_ids"] = padded([sequence["token_types"] for sequence in batch], 0)
    name = type(model).__name__
    if "Token" in name:
        labels = torch.full((len(batch), longest), -100)
        for row, sequence in enumerate(batch):
            labels[row, sequence["rows"]] = torch.tensor(sequence["targets"])
        inputs["labels"] = labels
    elif "Sequence" in name:
        inputs["labels"] = torch.tensor([sequence["targets"][0] for sequence in batch])
    else:
        inputs["start_positions"], inputs["end_positions"] = torch.tensor([sequence["targets"] for sequence in batch]).T
    return model(**inputs).loss


def train(model, batch):
    trained = list(model.parameters())
    groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": SETTINGS["weight_decay"]},
              {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=SETTINGS["learning_rate"], betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for step in range(SETTINGS["steps"]):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step)
        optimiser.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, SETTINGS["clip_norm"])
        optimiser.step()
        losses.append(loss.item())
    return losses + [loss_of(model, batch).item()]


def learning_rate(step):
    """Linear warm-up to the peak, then linear decay that would reach 0 at `steps`."""
    warmup, steps, peak = SETTINGS["warmup_steps"], SETTINGS["steps"], SETTINGS["learning_rate"]
    return peak * (step + 1) / warmup if step < warmup else peak * (steps - step) / (steps - warmup)


def write_entities():
    """By hand what is odd in IOB2, and at random what nobody thinks of."""
    import warnings

    from seqeval.metrics import accuracy_score, f1_score, precision_score, recall_score
    from seqeval.metrics.sequence_labeling import get_entities

    warnings.simplefilter("ignore")
    pairs = [
        ("B-PER I-PER O B-LOC", "B-PER I-PER O B-LOC"),
        ("B-PER I-PER O B-LOC", "B-PER B-PER O B-LOC"),
        ("O I-PER I-PER O", "O B-PER I-PER O"),             # an entity that begins with I
        ("B-PER I-LOC I-LOC O", "B-PER B-LOC I-LOC O"),     # and one that changes its type
        ("I-PER | I-PER", "B-PER | B-PER"),                 # none goes on in the next sentence
        ("B-A-B I-A-B O", "B-A-B I-A-C O"),
        ("O O", "O O"),
        ("O O", "B-PER O"),
        ("B-PER O", "O O"),
        ("B I O S E", "B I O B I"),                         # no types
        ("S-X E-X B-X E-X", "B-X B-X B-X I-X"),             # BIOES
        ("NOUN NOUN VERB | DET NOUN", "NOUN VERB VERB | DET NOUN"),
        ("PRON . PUNCT", "PROPN . PUNCT"),
        (". .-X B-X", "O . B-X"),
    ]
    draw = random.Random(0)
    for tags in [["O", "B-PER", "I-PER", "B-LOC", "I-LOC"], ["O", "B-A", "I-A", "E-A", "S-A", "I-B"], ["NOUN", "VERB", "X", "ADJ", "ADV"]]:
        for noise in (0.1, 0.5):
            lengths = [draw.randint(1, 12) for _ in range(15)]
            gold = [[draw.choice(tags) for _ in range(length)] for length in lengths]
            guess = [[draw.choice(tags) if draw.random() < noise else tag for tag in row] for row in gold]
            pairs.append(tuple(" | ".join(" ".join(row) for row in rows) for rows in (gold, guess)))
    cases = []
    for pair in pairs:
        gold, predicted = ([sentence.split() for sentence in text.split(" | ")] for text in pair)
        scores = {name: 100 * float(score(gold, predicted)) for name, score in
                  [("accuracy", accuracy_score), ("precision", precision_score), ("recall", recall_score), ("f1", f1_score)]}
        entities = [list(entity) for entity in get_entities(gold)]
        cases.append({"gold": pair[0], "predicted": pair[1], "scores": scores, "entities": entities})
    (OUT / "entities.json").write_text(json.dumps(cases, indent=1) + "\n")


def write_answers():
    """The SQuAD script's scores, as torchmetrics has them; over golds the best counts."""
    from torchmetrics.functional.text import squad

    draw = random.Random(1)
    words = ["the", "a", "An", "cat", "cats", "in", "London", "1,000", "U.S.", "well-known", "Straße", "“quoted”", "a-b", "—", "the\u00a0"]
    answers = [
        ("the cat", ["cat"]), ("Cat!", ["the cat", "a dog"]), ("", [""]), ("the", [""]), ("the", ["a"]), ("", ["cat"]),
        ("cat in the hat", ["the hat", "a cat in hat"]), ("theatre", ["the atre"]), ("a.b", ["ab", "a b"]), ("A  B\tC", ["b c"]),
        ("cat cat dog", ["cat dog dog"]), ("1,000 km²", ["1000 km²"]), ("ÉCOLE", ["école"]), ("don't", ["dont"]), ("an_apple", ["anapple"]),
        ("x\u00a0y", ["x y"]), ("x\u2003the\u2003y", ["x y"]), ("ΟΔΟΣ", ["οδος"]), ("日本", ["日 本", "日本"]), ("x\x1cy", ["x y"]), ("the-cat", ["thecat"]),
    ]
    for _ in range(40):
        phrase = lambda: " ".join(draw.choice(words) for _ in range(draw.randint(0, 5)))
        answers.append((phrase(), [phrase() for _ in range(draw.randint(1, 3))]))
    cases = []
    for predicted, gold in answers:
        scores = squad({"prediction_text": predicted, "id": "1"}, {"answers": {"answer_start": [0], "text": gold}, "id": "1"})
        exact = scores["exact_match"].item()
        # torchmetrics has version 2's rule for answers of which nothing is left; in version 1.1 nothing in common is 0.
        alone = [squad({"prediction_text": predicted, "id": "1"}, {"answers": {"answer_start": [0], "text": [one]}, "id": "1"}) for one in gold]
        nothing = squad({"prediction_text": predicted, "id": "1"}, {"answers": {"answer_start": [0], "text": [""]}, "id": "1"})
        f1 = 0.0 if nothing["exact_match"] == 100.0 else max(score["f1"].item() for score in alone)
        cases.append({"predicted": predicted, "gold": gold, "exact_match": exact, "f1": f1})
    (OUT / "answers.json").write_text(json.dumps(cases, indent=1) + "\n")


if __name__ == "__main__":
    main()
