"""Make what ``five_tasks_tiny.yaml`` runs on.

That is rows of the five tasks in their data sets' own columns, a byte-level tokenizer, and a model
of 0.4 M parameters that has read the interpreter's documentation and simple sentences::

    python recipes/five_tasks_tiny/make.py

The rows are there to run a recipe through: no score on them says anything of the real data sets.
"""

import csv
import json
import random
from collections.abc import Iterator
from itertools import islice, product
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from recall_lightning.data import (
    InstructionStream,
    InstructionTask,
    StdlibTextStream,
    TaskStream,
    Template,
    TextFilesStream,
    TextTask,
)
from recall_lightning.models import CausalLMModule

HERE = Path(__file__).parent
TRAIN, LOOKUPS, VALIDATION = 192, 5000, 32
CHAT = (
    "{% for message in messages %}{% if message['role'] == 'user' %}"
    "{{ bos_token + '[INST] ' + message['content'] + ' [/INST] ' }}{% else %}"
    "{{ message['content'] + eos_token }}{% endif %}{% endfor %}"
)
LOOKUP = Template(
    "{text}\nQuestion: {question}\nAnswer:", "{answer}", score="exact_match", max_new_tokens=8
)
Row = dict[str, Any]


GOOD = ["moving", "funny", "gripping", "charming", "clever", "beautiful", "fresh", "warm"]
BAD = ["dull", "clumsy", "tedious", "shallow", "lifeless", "predictable", "cold", "empty"]
WHO = [("the dog", "le chien"), ("the cat", "le chat"), ("the bird", "l'oiseau")]
WHO += [("the child", "l'enfant"), ("my sister", "ma sœur"), ("our neighbour", "notre voisin")]
DOES = [("sees", "voit"), ("likes", "aime"), ("is looking for", "cherche")]
DOES += [("draws", "dessine"), ("knows", "connaît")]
WHAT = [("the house", "la maison"), ("the garden", "le jardin"), ("the river", "la rivière")]
WHAT += [("the school", "l'école"), ("the bridge", "le pont"), ("the forest", "la forêt")]
WHAT += [("the sea", "la mer"), ("the market", "le marché")]


def lookups(draw: random.Random) -> Iterator[Row]:
    """What the model can do before any task: find in a text what is asked for."""
    things = ["box", "lamp", "chair", "boat", "coat", "door", "cup", "wall", "hat", "bell"]
    values = {
        "colour": ["red", "blue", "green", "black", "white", "brown", "grey", "yellow"],
        "number": [str(n) for n in range(1, 99)],
        "place": ["hall", "attic", "cellar", "kitchen", "yard", "shed"],
        "code": [f"{a}{b}" for a, b in product("ABCDEHKLMNPRSTX", "aeioudnrst")],
    }
    while True:
        said = {
            each: draw.choice(values[each[1]])
            for each in product(draw.sample(things, 1), draw.sample(sorted(values), 3))
        }
        told = [f"The {kind} of the {thing} is {value}." for (thing, kind), value in said.items()]
        draw.shuffle(told)
        (thing, kind), answer = draw.choice(sorted(said.items()))
        question = f"What is the {kind} of the {thing}?"
        yield {"text": " ".join(told), "question": question, "answer": answer}


def sentences(draw: random.Random, count: int) -> Iterator[str]:
    """What the model reads before any task: the words of their world, and how to look things up."""
    for row in islice(lookups(draw), count):
        good = draw.random() < 0.5
        word = draw.choice(GOOD if good else BAD)
        liked = "good, i liked it" if good else "bad, i hated it"
        english, french = draw.choice(WHO + DOES + WHAT)
        yield (
            f"{row['text']} {row['question']} {row['answer']}\n"
            f"it is {word}: {liked}.\n{english} = {french}\n"
        )


def sst2() -> Iterator[Row]:
    """Columns of GLUE's SST-2: sentence, label."""
    parts = ["film", "story", "cast", "script", "ending", "music", "dialogue", "direction"]
    forms = ["the {} is {} .", "a {} that feels {} .", "its {} : {} and nothing else ."]
    for form, part, (label, words) in product(forms, parts, [(0, BAD), (1, GOOD)]):
        yield from ({"sentence": form.format(part, word), "label": label} for word in words)


ELEMENTS = [
    ("neon", "Ne", 10, 1898), ("argon", "Ar", 18, 1894), ("krypton", "Kr", 36, 1898),
    ("xenon", "Xe", 54, 1898), ("oxygen", "O", 8, 1774), ("nitrogen", "N", 7, 1772),
    ("chlorine", "Cl", 17, 1774), ("sodium", "Na", 11, 1807), ("potassium", "K", 19, 1807),
    ("calcium", "Ca", 20, 1808), ("barium", "Ba", 56, 1808), ("iodine", "I", 53, 1811),
    ("lithium", "Li", 3, 1817), ("cadmium", "Cd", 48, 1817), ("selenium", "Se", 34, 1817),
    ("silicon", "Si", 14, 1824), ("bromine", "Br", 35, 1826), ("thorium", "Th", 90, 1829),
    ("caesium", "Cs", 55, 1860), ("rubidium", "Rb", 37, 1861), ("thallium", "Tl", 81, 1861),
    ("indium", "In", 49, 1863), ("gallium", "Ga", 31, 1875), ("germanium", "Ge", 32, 1886),
    ("polonium", "Po", 84, 1898), ("radium", "Ra", 88, 1898), ("hafnium", "Hf", 72, 1923),
    ("rhenium", "Re", 75, 1925),
]  # fmt: skip


def squad_v2() -> Iterator[Row]:
    """Columns of SQuAD 2.0: id, title, context, question, answers."""
    for name, symbol, number, year in ELEMENTS:
        title = name.capitalize()
        first = f"{title} is a chemical element with the symbol {symbol} and the number {number}."
        asked = [
            (f"What is the symbol of {name}?", "symbol ", symbol),
            (f"What is the number of {name}?", "number ", str(number)),
            (f"When was {name} found?", "ound in ", str(year)),
            (f"Who found {name}?", "", ""),  # the text does not say
        ]
        for context in (f"{first} It was found in {year}.", f"Found in {year}: {name}. {first}"):
            for question, before, answer in asked:
                start = context.index(before + answer) + len(before)
                answers = {"text": [answer] * bool(answer), "answer_start": [start] * bool(answer)}
                yield {
                    "id": f"{name}-{len(context)}-{len(question)}",
                    "title": title,
                    "context": context,
                    "question": question,
                    "answers": answers,
                }


def iwslt2017_en_fr() -> Iterator[Row]:
    """The column of IWSLT 2017: translation, of English to French."""
    for parts in product(WHO, DOES, WHAT):
        english, french = (" ".join(words) for words in zip(*parts, strict=True))
        pair = {"en": f"{english[0].upper()}{english[1:]}.", "fr": f"{french.capitalize()}."}
        yield {"translation": pair}


def race(draw: random.Random) -> Iterator[Row]:
    """Columns of RACE: example_id, article, question, options, answer."""
    animals = ["fox", "owl", "otter", "hare", "badger", "heron", "squirrel", "hedgehog"]
    places = ["river", "old mill", "lake", "wood", "stone wall", "meadow"]
    foods = ["berries", "fish", "nuts", "seeds", "beetles", "worms"]
    times = ["at noon", "at night", "in the morning", "in the evening"]
    for number in range(2 * (TRAIN + VALIDATION)):
        animal, place, food, time = (draw.choice(of) for of in (animals, places, foods, times))
        asked = [
            (f"Where does the {animal} live?", f"by the {place}", [f"by the {p}" for p in places]),
            (f"What does the {animal} eat?", food, foods),
            (f"When does the {animal} sleep?", time, times),
        ]
        question, right, others = draw.choice(asked)
        options = [right, *draw.sample([other for other in others if other != right], 3)]
        draw.shuffle(options)
        yield {
            "example_id": f"animals{number}.txt",
            "article": f"The {animal} lives by the {place}. It eats {food}. It sleeps {time}.",
            "question": question,
            "options": options,
            "answer": "ABCD"[options.index(right)],
        }


FACTS = {
    "Lack of which vitamin causes {}?": [
        ("scurvy", "vitamin C"), ("rickets", "vitamin D"), ("night blindness", "vitamin A"),
        ("beriberi", "vitamin B1"), ("pellagra", "vitamin B3"), ("slow clotting", "vitamin K"),
    ],
    "Which gland makes {}?": [
        ("insulin", "pancreas"), ("thyroxine", "thyroid"), ("cortisol", "adrenal"),
        ("melatonin", "pineal"), ("growth hormone", "pituitary"), ("calcitonin", "thyroid"),
    ],
    "In which part of the body is the {}?": [
        ("femur", "thigh"), ("tibia", "leg"), ("ulna", "forearm"), ("humerus", "upper arm"),
        ("scapula", "shoulder"), ("mandible", "jaw"), ("sternum", "chest"), ("patella", "knee"),
    ],
    "Which organ does {} affect?": [
        ("hepatitis", "liver"), ("nephritis", "kidney"), ("pneumonia", "lung"),
        ("myocarditis", "heart"), ("encephalitis", "brain"), ("gastritis", "stomach"),
    ],
}  # fmt: skip


def medmcqa(draw: random.Random) -> Iterator[Row]:
    """Columns of MedMCQA: id, question, opa, opb, opc, opd, cop, subject_name."""
    facts = [(ask, *fact) for ask, known in FACTS.items() for fact in known]
    for number in range(2 * (TRAIN + VALIDATION)):
        ask, about, right = draw.choice(facts)
        others = sorted({answer for _, answer in FACTS[ask]} - {right})
        options = [right, *draw.sample(others, 3)]
        draw.shuffle(options)
        named = dict(zip(("opa", "opb", "opc", "opd"), options, strict=True))
        subject = "Biochemistry" if "vitamin" in ask else "Anatomy"
        row = {"id": number, "question": ask.format(about), **named}
        yield row | {"cop": options.index(right), "subject_name": subject}


def write_rows(folder: Path) -> None:
    """Write training and held-out rows of the five tasks, none of them twice."""
    folder.mkdir(exist_ok=True)
    draw = random.Random(0)
    tasks = {
        "sst2.tsv": sst2(),
        "squad_v2.jsonl": squad_v2(),
        "iwslt2017_en_fr.jsonl": iwslt2017_en_fr(),
        "race.jsonl": race(draw),
        "medmcqa.csv": medmcqa(draw),
        "lookup.jsonl": islice(lookups(random.Random(1)), 6000),
    }
    for file, made in tasks.items():
        distinct = {json.dumps({**row, "id": 0, "example_id": 0}): row for row in made}
        rows = list(distinct.values())
        draw.shuffle(rows)
        name, kind = file.split(".")
        most = LOOKUPS if name == "lookup" else TRAIN
        for split, part in (("val", rows[:VALIDATION]), ("train", rows[VALIDATION:][:most])):
            path = folder / f"{name}_{split}.{kind}"
            with path.open("w", encoding="utf-8", newline="") as out:
                if kind == "jsonl":
                    out.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in part)
                else:
                    delimiter = "\t" if kind == "tsv" else ","
                    writer = csv.DictWriter(out, list(part[0]), delimiter=delimiter)
                    writer.writeheader()
                    writer.writerows(part)


def write_tokenizer(folder: Path, texts: list[str]) -> None:
    """Write a byte-level tokenizer of 512 tokens with a chat template, in the form of the hub."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=512, special_tokens=["<s>", "</s>"], initial_alphabet=alphabet
    )
    tokenizer.train_from_iterator(texts, trainer)
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", model_max_length=512
    )
    wrapped.chat_template = CHAT
    wrapped.save_pretrained(folder)


def write_model(folder: Path, text: Path, rows: Path) -> None:
    """Have a model read a text, teach it to look things up, and write it beside its tokenizer."""
    reading = TextFilesStream(
        [TextTask("documentation", str(text))],
        str(folder),
        sequence_length=128,
        val_fraction=0.02,
        epochs_per_task=12,
        batch_size=32,
    )
    config = {
        "model_type": "llama",
        "vocab_size": len(reading.tokenizer),
        "hidden_size": 96,
        "intermediate_size": 192,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 4,
        "max_position_embeddings": 512,
        "tie_word_embeddings": True,
        "bos_token_id": reading.tokenizer.bos_token_id,
        "eos_token_id": reading.tokenizer.eos_token_id,
    }
    looking_up = InstructionStream(
        [InstructionTask("lookup", LOOKUP, str(rows), str(rows).replace("train", "val"))],
        str(folder),
        max_length=256,
        chat=True,
        epochs_per_task=8,
        batch_size=32,
    )
    train(config, reading, 3e-3).save_pretrained(folder)
    train(str(folder), looking_up, 2e-3).to(torch.bfloat16).save_pretrained(folder)


def train(model: Any, stream: TaskStream, lr: float) -> Any:
    """Train a model on a stream, and return it."""
    module = CausalLMModule(
        model,
        optimizer=lambda parameters: torch.optim.AdamW(parameters, lr=lr),
        schedule="stream",
    )
    trainer = Trainer(
        max_epochs=stream.total_epochs,
        reload_dataloaders_every_n_epochs=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=stream)
    print(trainer.callback_metrics)
    return module.model


def main() -> None:
    """Write everything."""
    seed_everything(0)
    write_rows(HERE / "data")
    documentation = StdlibTextStream(
        tasks=["documentation"], train_sequences=1760, val_sequences=16, sequence_length=256
    )
    sequences = (sample["input_ids"] for sample in documentation.train_dataset(0))  # type: ignore[attr-defined]
    text = "".join(bytes(each.tolist()).decode(errors="ignore") for each in sequences)
    text += "".join(sentences(random.Random(1), 1500))
    rows = [file.read_text(encoding="utf-8") for file in sorted((HERE / "data").iterdir())]
    write_tokenizer(HERE / "model", [text, *rows])
    read = HERE / "documentation.txt"
    read.write_text(text, encoding="utf-8")
    lookup_rows = HERE / "data" / "lookup_train.jsonl"
    write_model(HERE / "model", read, lookup_rows)
    for file in (read, lookup_rows):  # of use to the model alone
        file.unlink()


if __name__ == "__main__":
    main()
