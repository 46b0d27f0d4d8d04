"""Tokenizers of each kind that is in use, made here from a few sentences."""

import json
from functools import cache

from tokenizers import (
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from transformers import PreTrainedTokenizerFast

from tests.support.chat_templates import CHATML

CORPUS = [
    "the capital of France is Paris, and that of Peru is Lima.",
    "What is the capital of Chad?\n\nAnswer: N'Djamena",
    "  two  spaces, tabs\tand new\n\n\nlines; ünïcödé, 東京 and 🎉!",
    "Is the review negative or positive? It is (very) positive :)",
] * 4
SPECIAL = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
SPECIAL += ["<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
SPECIAL += ["<start_of_turn>", "<end_of_turn>", "<|user|>", "<|assistant|>", "<|system|>"]
SPECIAL += ["<|end|>", "<|endoftext|>"]
KINDS = ["byte_bpe", "trimmed_byte_bpe", "metaspace_unigram", "llama_bpe", "wordpiece"]


@cache
def subword_tokenizer(kind, chat=CHATML):
    """A tokenizer like those of GPT-2, RoBERTa, T5, Llama 2 or BERT, with a chat template."""
    inner = _MAKERS[kind]()
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=inner,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="</s>",
        additional_special_tokens=SPECIAL[3:],
    )
    wrapped.chat_template = chat
    return wrapped


def _byte_bpe(trim=False):
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    made.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(vocab_size=400, special_tokens=SPECIAL, initial_alphabet=alphabet),
    )
    if trim:
        made.post_processor = processors.RobertaProcessing(
            ("</s>", 2), ("<s>", 1), trim_offsets=True, add_prefix_space=False
        )
    return made


def _unigram():
    made = Tokenizer(models.Unigram())
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    made.decoder = decoders.Metaspace()
    made.train_from_iterator(
        CORPUS, trainers.UnigramTrainer(vocab_size=200, special_tokens=SPECIAL, unk_token="<unk>")
    )
    made.post_processor = processors.TemplateProcessing(
        single="$A </s>", special_tokens=[("</s>", 2)]
    )
    return made


def _llama_bpe():
    trained = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    trained.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    trained.train_from_iterator(CORPUS, trainers.BpeTrainer(vocab_size=250, special_tokens=SPECIAL))
    state = json.loads(trained.to_str())
    vocabulary = state["model"]["vocab"]
    for byte in range(256):  # for whatever letter is in no other token
        vocabulary[f"<0x{byte:02X}>"] = len(vocabulary)
    made = Tokenizer.from_str(json.dumps(state))
    made.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    return made


def _wordpiece():
    made = Tokenizer(models.WordPiece(unk_token="<unk>"))
    made.normalizer = normalizers.BertNormalizer()
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    made.train_from_iterator(
        CORPUS, trainers.WordPieceTrainer(vocab_size=200, special_tokens=SPECIAL)
    )
    made.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    return made


_MAKERS = {
    "byte_bpe": _byte_bpe,
    "trimmed_byte_bpe": lambda: _byte_bpe(trim=True),
    "metaspace_unigram": _unigram,
    "llama_bpe": _llama_bpe,
    "wordpiece": _wordpiece,
}
