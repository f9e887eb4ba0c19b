"""Writes the golden training cases: what PyTorch and transformers make of a small batch.

    python tests/golden/generate_training.py

One folder per case under tests/golden/training/:
  config.json, model.safetensors   the student before the first step, as transformers names things
  case.safetensors                 the batch, packed; the loss, every gradient ("gradient.<name>"), and the losses before
                                   each of ten AdamW steps and after the last ("losses")
  case.json                        λ and the optimiser's settings
Everything is computed in double precision from single-precision inputs, with dropout 0.
"""

import json
import pathlib

import torch
from safetensors.torch import save_file
from transformers import BertConfig, BertForMaskedLM, ElectraConfig, ElectraForMaskedLM

OUT = pathlib.Path(__file__).parent / "training"
SHAPE = dict(vocab_size=61, hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=24,
             max_position_embeddings=12, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, layer_norm_eps=1e-12)
SETTINGS = dict(steps=10, warmup_steps=4, learning_rate=5e-3, weight_decay=0.1, clip_norm=0.5)
CASES = {
    # name: (lengths, masked positions per sequence, options)
    "odd-lengths": ([3, 5, 5, 7, 11], [[1], [1, 3], [2], [1, 4, 5], [2, 3, 7, 9]], {}),
    "one-masked-position": ([6], [[3]], {"lambda": 0.5}),
    "duplicate-ids": ([4, 4, 9], [[1, 2], [2], [1, 5, 7]], {"duplicates": True, "lambda": 0.75}),
    "untied-decoder": ([5, 8], [[1, 3], [2, 6]], {"tie_word_embeddings": False}),
    "factorised-embedding": ([3, 7, 7], [[1], [2, 5], [1, 4]], {"embedding_size": 8}),
}


def main():
    for index, (name, (lengths, masked, options)) in enumerate(CASES.items()):
        torch.manual_seed(index)
        write(OUT / name, lengths, masked, options)


def write(folder, lengths, masked, options):
    folder.mkdir(parents=True, exist_ok=True)
    model = student(options)
    initial = parameters(model)
    batch = make_batch(lengths, masked, options)
    lam = options.get("lambda", 0.6)

    loss = objective(model, batch, lam)
    loss.backward()
    gradients = {name: parameter.grad.clone() for name, parameter in parameters(model, keep=True).items()}
    losses = train(model, batch, lam)

    model.config.architectures = [type(model).__name__]
    (folder / "config.json").write_text(json.dumps(model.config.to_diff_dict(), indent=1, sort_keys=True) + "\n")
    save_file({name: tensor.float().contiguous() for name, tensor in initial.items()}, folder / "model.safetensors", {"format": "pt"})
    tensors = {name: batch[name] for name in ("token_ids", "lengths", "masked_rows", "gold_ids", "top_ids", "has_teacher")}
    tensors |= {name: batch[name].float() for name in ("probabilities", "weights")}
    tensors |= {f"gradient.{name}": gradient.float().contiguous() for name, gradient in gradients.items()}
    tensors["losses"] = torch.tensor(losses, dtype=torch.float64)
    save_file(tensors, folder / "case.safetensors")
    (folder / "case.json").write_text(json.dumps(SETTINGS | {"lambda": lam}, indent=1) + "\n")
    print(f"{folder.name}: {losses[0]:.4f} → {losses[-1]:.4f}")


def student(options):
    """Every parameter random, so that none of them hides behind a zero or a one."""
    shape = SHAPE | {"tie_word_embeddings": options.get("tie_word_embeddings", True), "attn_implementation": "eager"}
    if "embedding_size" in options:
        model = ElectraForMaskedLM(ElectraConfig(embedding_size=options["embedding_size"], **shape))
    else:
        model = BertForMaskedLM(BertConfig(**shape))
    for name, parameter in model.named_parameters():
        offset = 1.0 if "LayerNorm.weight" in name else 0.0
        with torch.no_grad():
            parameter.copy_(offset + 0.2 * torch.randn(parameter.shape))
    return model.double().eval()


def parameters(model, keep=False):
    """Trained parameters by name. An untied BERT reads `decoder.bias` and leaves `cls.predictions.bias` idle: they are one here."""
    named = dict(model.named_parameters())
    if not model.config.tie_word_embeddings and "cls.predictions.decoder.bias" in named:
        named["cls.predictions.bias"] = named.pop("cls.predictions.decoder.bias")
    return named if keep else {name: parameter.detach().clone() for name, parameter in named.items()}


def make_batch(lengths, masked, options):
    k, vocabulary = 4, SHAPE["vocab_size"]
    ids = [torch.randint(1, vocabulary, (length,)) for length in lengths]  # 0 is padding: PyTorch's embedding gives it no gradient
    starts = [sum(lengths[:i]) for i in range(len(lengths))]
    rows = torch.tensor([start + position for start, positions in zip(starts, masked) for position in positions])
    n = len(rows)
    top = torch.stack([torch.randperm(vocabulary)[:k] for _ in range(n)])
    gold = torch.randint(0, vocabulary, (n,))
    has_teacher = torch.ones(n, dtype=torch.uint8)
    if options.get("duplicates"):
        top[:, 1] = top[:, 0]       # two of a teacher's tokens that are one in the union
        top[0, 2] = gold[0]         # the gold token among the labels
        top[1] = gold[1]            # four times over
        has_teacher[2] = 0          # and a position that no teacher labelled
    return {
        "token_ids": torch.cat(ids), "lengths": torch.tensor(lengths), "masked_rows": rows, "gold_ids": gold, "top_ids": top,
        "probabilities": (2 * torch.randn(n, k)).softmax(-1), "weights": 0.02 + 0.1 * torch.rand(n), "has_teacher": has_teacher,
        "sequences": ids,
    }


def objective(model, batch, lam):
    """Σ weight · (λ · KD + (1 − λ) · MLM); gold labels alone where there is no teacher."""
    padded = torch.nn.utils.rnn.pad_sequence(batch["sequences"], batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones_like(ids) for ids in batch["sequences"]], batch_first=True)
    logits = model(input_ids=padded, attention_mask=mask).logits[mask.bool()][batch["masked_rows"]]
    log_p = logits.log_softmax(-1)
    mlm = -log_p.gather(1, batch["gold_ids"][:, None])[:, 0]
    kd = -(batch["probabilities"].float().double() * log_p.gather(1, batch["top_ids"])).sum(-1)
    lam = lam * batch["has_teacher"].double()
    return (batch["weights"].float().double() * (lam * kd + (1 - lam) * mlm)).sum()


def train(model, batch, lam):
    trained = list(parameters(model, keep=True).values())
    groups = [{"params": [p for p in trained if p.ndim > 1], "weight_decay": SETTINGS["weight_decay"]},
              {"params": [p for p in trained if p.ndim == 1], "weight_decay": 0.0}]
    optimiser = torch.optim.AdamW(groups, lr=SETTINGS["learning_rate"], betas=(0.9, 0.999), eps=1e-8)
    losses = []
    for step in range(SETTINGS["steps"]):
        for group in optimiser.param_groups:
            group["lr"] = learning_rate(step)
        optimiser.zero_grad()
        loss = objective(model, batch, lam)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(trained, SETTINGS["clip_norm"])
        optimiser.step()
        losses.append(loss.item())
    return losses + [objective(model, batch, lam).item()]


def learning_rate(step):
    """Linear warm-up to the peak, then linear decay that would reach 0 at `steps`."""
    warmup, steps, peak = SETTINGS["warmup_steps"], SETTINGS["steps"], SETTINGS["learning_rate"]
    return peak * (step + 1) / warmup if step < warmup else peak * (steps - step) / (steps - warmup)


if __name__ == "__main__":
    main()
