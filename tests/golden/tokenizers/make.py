#!/usr/bin/env python3
"""Makes small SentencePiece models and a GPT-2 vocabulary, and the ids that their own libraries give.

    pip install sentencepiece transformers protobuf
    python tests/golden/tokenizers/make.py

For each model MODEL: MODEL.model, or MODEL/vocab.json and merges.txt; and in ids.json under its name the ids of all texts in
texts.json, and the SHA-256 of the ids (as little-endian 32 bits) of all documents of the example's validation_0 behind each other.
"""
import gzip, hashlib, json, os, random, struct, tempfile
from pathlib import Path

import sentencepiece
from tokenizers import ByteLevelBPETokenizer
from transformers import GPT2Tokenizer, GPT2TokenizerFast, LlamaTokenizer

HERE = Path(__file__).parent
EXAMPLE = HERE / "../../../examples/ja_wiki_mini"


def documents(name):
    with gzip.open(EXAMPLE / f"{name}.jsonl.gz", "rt", encoding="utf-8") as lines:
        return [json.loads(line)["text"] for line in lines]


def texts():
    hard = [
        "", " ", "  ", "\n", "\t", "▁", "▁▁ a ▁", " a", "a ", "  a  b   c  ", "a\u3000b\u00a0c\u2003 d", "\u3000", "\u00a0a",
        "ﾊﾞﾋﾟｶﾞ ﾊ ﾞ ｶﾀｶﾅ", "が か\u3099 ぱ は\u309a é e\u0301 ﬁ Å \u212b ö o\u0308", "①②③ ㌔㍉ ㈱ ½ ⅷ ²³ ™ …", "ＡＢＣ ａｂｃ １２３ ！？",
        "<s> </s> <unk> <s>a</s>", "<0x0A> <0x41>", "a<pad>b", "<sep>", "a<sep>b <sep> c<sep><sep>", "。<sep>日本", "<se", "<mask>",
        "👍🏽👨‍👩‍👧‍👦🇯🇵 e\u20e3 ☃\ufe0f", "𠮷野家 𩸽 𝔘𝔫𝔦 \U0010ffff\ue000", "\0", "a\0b", "\u0001\u007f\u009f\u200b\ufeff\u00ad", "a\r\nb\n\nc\td",
        "한국어 ᄒ\u1161\u11ab Привет Ελληνικά עברית العربية हिन्दी ไทย", "a" * 100, "あ" * 99, " " * 50 + "x", "-" * 63, "ababababa" * 9,
        "東京都は、日本の首都である。", "Hello, world! It's we'll I'M", "1234567890 3.14159", "İstanbul ſ ß ẞ Σς", "<|endoftext|>a <|endoftext|>",
        "x \u0300 \u0301y", "\u1100\u1161\u11a8 \u0e33 \u0f77 \u2126", "ﷺ ㍿ ﬃ Ǆ", "  ", "‥ ‼ ⁇ ¨ ´", "◌\u0327\u0301 ẛ̣",
    ]
    random.seed(7)
    pool = "abc  <s>▁ aあいう日本東京ﾊﾞﾟが\u3099e\u0301\u3000\n\t0１½👍\0\u200d<sep>-"
    hard += ["".join(random.choices(pool, k=random.randrange(1, 40))) for _ in range(300)]
    return hard + [text[:150] for text in documents("validation_0")[:20]]


def train(name, corpus, **options):
    with tempfile.TemporaryDirectory() as directory:
        prefix = os.path.join(directory, "m")
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus), model_prefix=prefix, minloglevel=2, num_threads=1, **options
        )
        (HERE / f"{name}.model").write_bytes(Path(prefix + ".model").read_bytes())


def main():
    corpus = [line for text in documents("train_0")[:300] for line in text.split("\n") if line]
    corpus += ["Hello, world! It's a test of words and numbers: 1234.", "the quick brown fox " * 3] * 20
    # As Llama 2 is.
    train("llama", corpus, model_type="bpe", vocab_size=2700, character_coverage=0.99, byte_fallback=True, split_digits=True,
          normalization_rule_name="identity", remove_extra_whitespaces=False, allow_whitespace_only_pieces=True)
    train("bpe", corpus, model_type="bpe", vocab_size=2500, character_coverage=0.99, user_defined_symbols=["<sep>", "<mask>"])
    train("unigram", corpus, model_type="unigram", vocab_size=2300, character_coverage=0.99, user_defined_symbols=["<sep>"])
    train("fallback", corpus, model_type="unigram", vocab_size=2700, character_coverage=0.99, byte_fallback=True,
          normalization_rule_name="nfkc", add_dummy_prefix=False, remove_extra_whitespaces=False)
    gpt2 = ByteLevelBPETokenizer()
    gpt2.train_from_iterator(corpus, vocab_size=1200, special_tokens=["<|endoftext|>"], show_progress=False)
    (HERE / "gpt2").mkdir(exist_ok=True)
    gpt2.save_model(str(HERE / "gpt2"))

    examples, whole = texts(), documents("validation_0")
    ids = {}

    def keep(name, encode):
        digest = hashlib.sha256()
        for text in whole:
            tokens = encode(text)
            digest.update(struct.pack(f"<{len(tokens)}I", *tokens))
        ids[name] = {"texts": [encode(text) for text in examples], "validation_0": digest.hexdigest()}

    for name in ["llama", "bpe", "unigram", "fallback"]:
        keep(name, sentencepiece.SentencePieceProcessor(model_file=str(HERE / f"{name}.model")).encode)
    # transformers looks for control tokens in the text, and its conversion strips nothing: what it gives otherwise is the same.
    llama = LlamaTokenizer(str(HERE / "llama.model"), legacy=True)
    for text, tokens in zip(examples, ids["llama"]["texts"]):
        if "<s>" not in text and "</s>" not in text and "<unk>" not in text:
            assert llama(text)["input_ids"] == [1] + tokens, (text, llama(text)["input_ids"], tokens)
    files = [str(HERE / "gpt2" / name) for name in ["vocab.json", "merges.txt"]]
    slow, fast = GPT2Tokenizer(*files), GPT2TokenizerFast(*files)
    for text in examples:
        assert slow(text)["input_ids"] == fast(text)["input_ids"], text
    keep("gpt2", lambda text: fast(text)["input_ids"])
    write = lambda name, value: (HERE / name).write_text(json.dumps(value, ensure_ascii=True, separators=(",", ":")) + "\n")
    write("texts.json", examples)
    write("ids.json", ids)


main()
