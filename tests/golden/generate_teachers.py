"""Writes the small golden teachers of the test suite, each with what transformers makes of it.

    python generate_teachers.py        # rewrites tests/golden/teachers/*

Every teacher is an odd one, as users have them:
    uncased   BERT without tokenizer.json; lower-casing; [MASK] and the other special tokens on odd lines of vocab.txt
    legacy    pytorch_model.bin with names of 2018 (gamma, beta, no `bert.`), an own decoder, a pooler and a position buffer
    padded    more embedding rows than words; bfloat16; tokenizer.json with truncation and padding switched on
    electra   ELECTRA generator with a factorised embedding; float16; a token added behind the vocabulary

and teachers/tokenizers.json: folders with all kinds of settings files, and the ids that AutoTokenizer gives for some texts.

The weights are random, and large enough that logits differ clearly. The same versions of torch and transformers give the same bytes.
"""

import json
import re
import shutil
import sys
from collections import OrderedDict
from pathlib import Path

import torch
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_tensors
from tokenizers import normalizers, pre_tokenizers
from transformers import AutoModelForMaskedLM, AutoTokenizer, BertConfig, BertForPreTraining, ElectraConfig
from transformers import BertForMaskedLM, ElectraForMaskedLM

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent / "parity"))
from teacher_parity import expectation

MASKED = 520

TEXTS = [
    "The printer is out of paper; please refill tray 2 and press Continue.",
    'Open the File menu, choose Export, and tick "Keep layers" (see page 17).',
    "A table of contents can be updated at any time — even while you type.",
    "Don't panic: it's only a warning, isn't it?",
    "Rows 3-14 hold sums such as =SUM(A1:A9)*1.19, in €.",
    "Größe und Färbung der Schrift ändern Sie über das Menü »Format«.",
    "Straßenverzeichnisse dürfen höchstens 65.536 Zeilen enthalten.",
    "Übrigens: ÄRGER mit Umlauten gibt es hier nicht mehr.",
    "¿Dónde está el archivo? ¡Ábralo otra vez, señor Muñoz!",
    "La página siguiente muestra un gráfico con años y niños.",
    "L'élève naïf a reçu un cœur brodé à Noël, déjà payé.",
    "Où est passée la clé USB de Zoë ? Elle est tombée là-bas.",
    "İstanbul'da ışık var; IĞDIR'a gidiyoruz, şimdi değil.",
    "Çalışma sayfası boş, lütfen önce bir hücre seçiniz.",
    "Hyvää yötä! Tämä työkirja on lukittu, pyydä käyttöoikeus.",
    "Età, città, perché: l'accento cambia tutto, però.",
    "Ο χρήστης έγραψε ΟΔΥΣΣΕΑΣ και μετά Οδυσσέας.",
    "Съешь ещё этих мягких булок, да выпей чаю.",
    "यह पंक्ति हिन्दी में है, क्षमा करें।",
    "هذه جملةٌ قصيرةٌ باللغة العربية، شكرًا.",
    "打开文件,然后选择「保存」。共有 12 个工作表。",
    "数据库中没有足够的空间,请删除旧文件!",
    "この文書は日本語で書かれています。カタカナもね。",
    "한국어 문장도 하나 있습니다. 값을 입력하세요.",
    "Tiếng Việt có nhiều dấu: ữ, ậ, ễ, ọ và đ.",
    "Zażółć gęślą jaźń, mówi łódzki księgowy.",
    "Cafe\u0301 and cafe\u00e9 and CAFÉ are written apart; A\u030angstro\u0308m as well.",
    "The ligatures ﬁ and ﬂ, the sign ½, the Roman Ⅷ, 10² and H₂O.",
    "Tabs\tand\u00a0hard\u2003spaces\u3000and\r\nline ends.",
    "soft\u00adhyphen, zero\u200bwidth, joiner\u200d, mark\ufeff, bell\u0007, null\u0000, bad\ufffd.",
    "Family: \U0001f468\u200d\U0001f469\u200d\U0001f467, flag: \U0001f1f9\U0001f1f7, thumbs up: \U0001f44d\U0001f3fd!",
    "Math: 𝔄𝔅𝔠 ∀x∈ℝ ∃y ≤ x²; arrows → and ⇒.",
    "A literal [MASK] and a literal [SEP], but [mask] is none; ##ing neither.",
    "e-mail: jane.doe@example.org, path C:\\temp\\x_1.txt, https://example.org/?q=a&b=c#d",
    "x" * 99 + " " + "y" * 101 + " ends.",
    "𠀀𠮷 are rare; 豈 is a compatibility ideograph; 〇 is not in the block.",
    "…!?;:,.-_()[]{}<>|/\\@#$%^&*+=~`'\"§°¬¦",
    "i\u0307 I ı İ ẞ ß ǅ ŉ",
    "   spaces   before, between   and after   ",
    "Save",
    "?",
    "The margins of the second column are too narrow for this image.",
    "Press and hold the key until the lamp blinks twice.",
    "Ein Absatz ohne Überschrift lässt sich nicht nummerieren.",
    "El número de filas depende de la versión del programa.",
    "Il foglio contiene formule che non si possono calcolare.",
    "Bu belge salt okunurdur; değişiklikler kaydedilmeyecek.",
    "Valitse solut, joiden sisältö halutaan järjestää uudelleen.",
]


def vocabulary(texts, normalizer, limit_words):
    """Frequent words, then single characters at word starts and inside words; rare characters stay unknown."""
    counts, starts, inside = {}, {}, {}
    for text in texts:
        for word, _ in pre_tokenizers.BertPreTokenizer().pre_tokenize_str(normalizer.normalize_str(text)):
            if len(word) > 40:
                continue
            counts[word] = counts.get(word, 0) + 1
            starts[word[0]] = starts.get(word[0], 0) + 1
            for c in word[1:]:
                inside[c] = inside.get(c, 0) + 1
    pieces = [c for c, n in starts.items() if ord(c) < 0x250 or n > 1]
    pieces += ["##" + c for c, n in inside.items() if n > 1]
    words = sorted((w for w in counts if len(w) > 1), key=lambda w: (-counts[w], w))[:limit_words]
    suffixes = ["##en", "##er", "##ing", "##s", "##ed", "##es"]
    return sorted({*pieces, *words, *suffixes})


def randomise(model, scale, seed):
    """Every parameter away from its default, so that nothing can be left out unnoticed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in sorted(model.named_parameters()):
            noise = torch.randn(parameter.shape, generator=generator)
            if name.endswith("LayerNorm.weight"):
                parameter.copy_(1 + 0.2 * noise)
            elif name.endswith("bias"):
                parameter.copy_(0.3 * noise)
            else:
                parameter.copy_(scale * noise)
    return model.eval()


def quantise(model, dtype):
    """The weights as they are after a trip through the file."""
    return model.to(dtype).to(torch.float32)


def fresh(name):
    folder = HERE / "teachers" / name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def write_json(path, value):
    path.write_text(json.dumps(value, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def write_expected(folder, tokenizer, model, seed):
    save_file(expectation(tokenizer, model, TEXTS, wanted=MASKED, seed=seed, rate=0.3), folder / "expected.safetensors")
    for file in folder.iterdir():
        file.chmod(0o644)
    size = sum(file.stat().st_size for file in folder.iterdir())
    print(f"{folder.name}: {len(tokenizer)} words, {model.config.vocab_size} rows, {size / 1024:.0f} KiB")


def check_reload(folder, model):
    """Where transformers can load the folder as it is, it must find the same weights."""
    ids = torch.arange(7, 29)[None]
    again = AutoModelForMaskedLM.from_pretrained(folder, dtype=torch.float32).eval()
    assert torch.equal(again(ids).logits, model(ids).logits), folder


def with_specials(tokens, places):
    """Special tokens on the given lines, ordinary ones on the others."""
    tokens = list(tokens)
    for token, line in sorted(places.items(), key=lambda item: item[1]):
        tokens.insert(line, token)
    return tokens


def config_dict(model, drop=()):
    config = model.config.to_diff_dict() | {"architectures": [type(model).__name__]}
    for key in ("transformers_version", "_name_or_path", "dtype", *drop):
        config.pop(key, None)
    return config


def uncased():
    folder = fresh("uncased")
    normalizer = normalizers.BertNormalizer(lowercase=True)
    places = {"[UNK]": 0, "[PAD]": 3, "[CLS]": 20, "[SEP]": 21, "[MASK]": 137}
    tokens = with_specials(vocabulary(TEXTS, normalizer, 60), places)
    (folder / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    write_json(folder / "tokenizer_config.json", {"do_lower_case": True, "model_max_length": 41})
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=len(tokens),
            hidden_size=24,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=37,
            max_position_embeddings=41,
            pad_token_id=3,
        )
    )
    randomise(model, 0.3, seed=1)
    write_json(folder / "config.json", config_dict(model))
    tensors = {k: v.contiguous() for k, v in model.state_dict().items() if "decoder" not in k}
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    check_reload(folder, model)
    write_expected(folder, AutoTokenizer.from_pretrained(folder), model, seed=11)


def legacy():
    folder = fresh("legacy")
    normalizer = normalizers.BertNormalizer(lowercase=False)
    places = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    tokens = with_specials(vocabulary(TEXTS[:18], normalizer, 20), places)
    tokens[60:60] = ["twice", "twice"]  # of two equal lines the second counts, and the first id is nobody's
    (folder / "vocab.txt").write_text("\r\n".join(tokens) + "\r\n", encoding="utf-8", newline="")
    write_json(folder / "tokenizer_config.json", {"do_lower_case": False, "tokenizer_class": "BertTokenizer"})
    special = {f"{role}_token": f"[{role.upper()}]" for role in ("pad", "unk", "cls", "sep", "mask")}
    write_json(folder / "special_tokens_map.json", special)
    config = BertConfig(
        vocab_size=len(tokens),
        hidden_size=20,
        num_hidden_layers=2,
        num_attention_heads=5,
        intermediate_size=44,
        max_position_embeddings=37,
        hidden_act="gelu_new",
        layer_norm_eps=1e-5,
        tie_word_embeddings=False,
    )
    model = randomise(BertForPreTraining(config), 0.35, seed=2)
    state = model.state_dict()
    old = OrderedDict()
    old._metadata = state._metadata
    for name, tensor in state.items():
        name = re.sub("LayerNorm.weight$", "LayerNorm.gamma", re.sub("LayerNorm.bias$", "LayerNorm.beta", name))
        old[re.sub("^bert\\.", "", name)] = tensor.clone()
    old["embeddings.position_ids"] = torch.arange(37)[None]
    torch.save(old, folder / "pytorch_model.bin")
    write_json(
        folder / "config.json", config_dict(model) | {"architectures": ["BertForPreTraining"], "model_type": "bert"}
    )
    masked_lm = BertForMaskedLM(config)
    masked_lm.load_state_dict({k: v for k, v in model.state_dict().items() if k in masked_lm.state_dict()})
    check_reload(folder, masked_lm.eval())
    write_expected(folder, AutoTokenizer.from_pretrained(folder), masked_lm, seed=12)


def padded():
    folder = fresh("padded")
    normalizer = normalizers.BertNormalizer(lowercase=False, strip_accents=True)
    places = {"[PAD]": 0, "[UNK]": 100, "[CLS]": 101, "[SEP]": 102, "[MASK]": 103}
    tokens = with_specials(vocabulary(TEXTS, normalizer, 80), places)
    scratch = fresh("scratch")
    (scratch / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    settings = {"tokenizer_class": "BertTokenizer", "do_lower_case": False, "strip_accents": True}
    write_json(scratch / "tokenizer_config.json", settings)
    write_json(scratch / "config.json", {"model_type": "bert"})
    tokenizer = AutoTokenizer.from_pretrained(scratch)
    shutil.rmtree(scratch)
    rows = (len(tokens) + 63) // 64 * 64 + 64
    model = BertForMaskedLM(
        BertConfig(
            vocab_size=rows,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=48,
            max_position_embeddings=64,
            hidden_act="relu",
        )
    )
    model = quantise(randomise(model, 0.3, seed=3), torch.bfloat16)
    tensors = {k: v.to(torch.bfloat16).contiguous() for k, v in model.state_dict().items() if "decoder" not in k}
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", config_dict(model))
    check_reload(folder, model)
    write_expected(folder, tokenizer, model, seed=13)
    tokenizer._tokenizer.enable_truncation(8)
    tokenizer._tokenizer.enable_padding(length=16)
    (folder / "tokenizer.json").write_text(tokenizer._tokenizer.to_str(), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)


def electra():
    folder = fresh("electra")
    normalizer = normalizers.BertNormalizer(lowercase=True, strip_accents=False, handle_chinese_chars=False)
    places = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    tokens = with_specials(vocabulary(TEXTS, normalizer, 60), places)
    scratch = fresh("scratch")
    (scratch / "vocab.txt").write_text("\n".join(tokens) + "\n", encoding="utf-8")
    settings = {
        "tokenizer_class": "ElectraTokenizer",
        "do_lower_case": True,
        "strip_accents": False,
        "tokenize_chinese_chars": False,
    }
    write_json(scratch / "tokenizer_config.json", settings)
    write_json(scratch / "config.json", {"model_type": "electra"})
    tokenizer = AutoTokenizer.from_pretrained(scratch)
    shutil.rmtree(scratch)
    tokenizer.add_tokens(["continue"])
    (folder / "tokenizer.json").write_text(tokenizer._tokenizer.to_str(), encoding="utf-8")
    write_json(folder / "tokenizer_config.json", settings)
    config = ElectraConfig(
        vocab_size=len(tokenizer),
        embedding_size=16,
        hidden_size=24,
        num_hidden_layers=3,
        num_attention_heads=3,
        intermediate_size=40,
        max_position_embeddings=53,
    )
    model = quantise(randomise(ElectraForMaskedLM(config), 0.4, seed=4), torch.float16)
    tensors = {
        k: v.to(torch.float16).contiguous() for k, v in model.state_dict().items() if k != "generator_lm_head.weight"
    }
    save_tensors(tensors, folder / "model.safetensors", {"format": "pt"})
    write_json(folder / "config.json", config_dict(model))
    check_reload(folder, model)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    write_expected(folder, tokenizer, model, seed=14)


VARIANT_WORDS = """[PAD] the le Le [UNK] [CLS] [SEP] H h He he ##llo ##l W w Wor wor ##ld ##LD ##OR É é e E e\u0301 ##cole cole a A ##a
 文 字 ##字 文字 x y ##y ##x 1 2 ##2 [ ] MA ##S ##K [MASK] < > mask s ##s new . , i I İ i\u0307 ı ü Ü u U ##ber ß ss""".split()

VARIANT_TEXTS = [
    "Hello WORLD, École élè.",
    "文字 x12 [MASK] y",
    "<s> <mask> NEW new NEWNEW [NEW]",
    "İI über Über ÜBER ß [SEP]",
    "  x  ",
]


def settings_variants():
    """Files of each folder, by the name of the case."""
    cased = {
        "type": "BertNormalizer",
        "clean_text": True,
        "handle_chinese_chars": True,
        "strip_accents": None,
        "lowercase": False,
    }
    wordpiece = {"unk_token": "[UNK]", "continuing_subword_prefix": "##", "max_input_chars_per_word": 100}
    added = lambda id, content, **flags: (
        {
            "id": id,
            "content": content,
            "single_word": False,
            "lstrip": False,
            "rstrip": False,
            "normalized": False,
            "special": True,
        }
        | flags
    )
    ids = {word: id for id, word in enumerate(VARIANT_WORDS)}

    def backend(normalizer=cased, extra=(), **parts):
        listed = [added(ids[f"[{role}]"], f"[{role}]") for role in ("PAD", "UNK", "CLS", "SEP", "MASK")]
        value = {
            "version": "1.0",
            "truncation": None,
            "padding": None,
            "added_tokens": [*listed, *extra],
            "normalizer": normalizer,
            "pre_tokenizer": {"type": "BertPreTokenizer"},
            "post_processor": None,
            "decoder": None,
            "model": {"type": "WordPiece", **wordpiece, "vocab": ids},
        }
        return value | parts

    vocab = "\n".join(VARIANT_WORDS) + "\n"
    end = len(VARIANT_WORDS)
    bert, electra = {"model_type": "bert"}, {"model_type": "electra"}
    keep_case = {"do_lower_case": False}
    generic = {"tokenizer_class": "PreTrainedTokenizerFast"}
    return {
        "vocab.txt alone": {"vocab.txt": vocab},
        "cased": {"vocab.txt": vocab, "tokenizer_config.json": keep_case},
        "accents kept": {"vocab.txt": vocab, "tokenizer_config.json": {"strip_accents": False}},
        "accents stripped, case kept": {
            "vocab.txt": vocab,
            "tokenizer_config.json": keep_case | {"strip_accents": True},
        },
        "no Chinese words": {"vocab.txt": vocab, "tokenizer_config.json": {"tokenize_chinese_chars": False}},
        "ELECTRA class": {
            "vocab.txt": vocab,
            "config.json": electra,
            "tokenizer_config.json": keep_case | {"tokenizer_class": "ElectraTokenizerFast"},
        },
        "tokenizer.json alone": {"tokenizer.json": backend()},
        "tokenizer.json, empty settings": {"tokenizer.json": backend(), "tokenizer_config.json": {}},
        "tokenizer.json, cased settings": {
            "tokenizer.json": backend(cased | {"lowercase": True}),
            "tokenizer_config.json": keep_case,
        },
        "tokenizer.json, Bert class": {
            "tokenizer.json": backend(),
            "tokenizer_config.json": {"tokenizer_class": "BertTokenizer", "strip_accents": False},
        },
        "generic class": {"tokenizer.json": backend(), "tokenizer_config.json": generic},
        "generic class, no normaliser": {"tokenizer.json": backend(None), "tokenizer_config.json": generic},
        "generic class, a sequence of normalisers": {
            "tokenizer.json": backend({"type": "Sequence", "normalizers": [{"type": "NFC"}, {"type": "Lowercase"}]}),
            "tokenizer_config.json": generic,
        },
        "generic class in config.json": {
            "tokenizer.json": backend(),
            "config.json": bert | {"tokenizer_class": "PreTrainedTokenizerFast"},
        },
        "added behind the vocabulary": {
            "tokenizer.json": backend(extra=[added(end, "NEW", special=False)]),
            "tokenizer_config.json": keep_case,
        },
        "added, normalised": {
            "tokenizer.json": backend(extra=[added(end, "NEW", special=False, normalized=True)]),
            "tokenizer_config.json": generic,
        },
        "added, whole words": {
            "tokenizer.json": backend(extra=[added(end, "NEW", single_word=True)]),
            "tokenizer_config.json": keep_case,
        },
        "added_tokens.json": {
            "vocab.txt": vocab,
            "tokenizer_config.json": keep_case,
            "added_tokens.json": {"NEW": end},
        },
        "added_tokens.json, lower case": {"vocab.txt": vocab, "added_tokens.json": {"NEW": end, "<s>": end + 1}},
        "added_tokens_decoder": {
            "vocab.txt": vocab,
            "tokenizer_config.json": keep_case
            | {
                "added_tokens_decoder": {
                    str(end): {k: v for k, v in added(end, "<mask>", lstrip=True).items() if k != "id"}
                },
                "mask_token": "<mask>",
            },
        },
        "special_tokens_map.json": {
            "vocab.txt": vocab,
            "tokenizer_config.json": keep_case,
            "special_tokens_map.json": {
                "mask_token": "x",
                "unk_token": {
                    "content": "[UNK]",
                    "lstrip": False,
                    "normalized": False,
                    "rstrip": False,
                    "single_word": False,
                },
            },
        },
        "special_tokens_map.json is outdone": {
            "vocab.txt": vocab,
            "tokenizer_config.json": keep_case | {"added_tokens_decoder": {}},
            "special_tokens_map.json": {"mask_token": "x"},
        },
        "more special tokens": {
            "vocab.txt": vocab,
            "tokenizer_config.json": {"bos_token": "<s>", "additional_special_tokens": ["NEW"]},
        },
        "special tokens are text": {"vocab.txt": vocab, "tokenizer_config.json": {"split_special_tokens": True}},
    }


def without_vocabulary(content):
    """The vocabulary would fill the file; it is there once, and elsewhere this word stands for it."""
    if isinstance(content, str):
        return "vocabulary"
    if "model" in content:
        return content | {"model": content["model"] | {"vocab": "vocabulary"}}
    return content


def tokenizers():
    cases = []
    for name, files in settings_variants().items():
        folder = fresh("scratch")
        files = {"config.json": {"model_type": "bert"}} | files
        for file, content in files.items():
            (folder / file).write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = [tokenizer(text, add_special_tokens=False)["input_ids"] for text in VARIANT_TEXTS]
        files = {file: without_vocabulary(content) for file, content in files.items()}
        cases.append(
            {"name": name, "files": files, "ids": ids, "mask": tokenizer.mask_token_id, "words": len(tokenizer)}
        )
        shutil.rmtree(folder)
    lines = ",\n".join(json.dumps(case, ensure_ascii=False) for case in cases)
    head = json.dumps({"texts": VARIANT_TEXTS, "vocabulary": VARIANT_WORDS}, ensure_ascii=False)
    path = HERE / "teachers" / "tokenizers.json"
    path.write_text(f'{head[:-1]}, "cases": [\n{lines}\n]}}\n', encoding="utf-8")
    print(f"tokenizers.json: {len(cases)} cases, {path.stat().st_size / 1024:.0f} KiB")


if __name__ == "__main__":
    torch.manual_seed(0)
    torch.set_num_threads(1)
    for teacher in (uncased, legacy, padded, electra):
        teacher()
    tokenizers()
