"""Snapshot files with bytes that are not what they were."""

from random import Random

from recall_lightning.weights.snapshot_file import FileSnapshot


def damaged(content, seed):
    """Return a file's content with one kind of damage, and its name."""
    random = Random(seed)
    at, other = random.randrange(len(content)), bytes([random.randrange(1, 256)])
    kinds = {
        "a byte changed": content[:at] + bytes([content[at] ^ other[0]]) + content[at + 1 :],
        "truncated": content[:at],
        "a byte lost": content[:at] + content[at + 1 :],
        "a byte added": content[:at] + other + content[at:],
        "a page of zeros": _zeroed(content, at),
        "two halves exchanged": content[at:] + content[:at] if at else content[::-1],
    }
    kind = random.choice(list(kinds))
    return kind, kinds[kind]


def _zeroed(content, at):
    zeroed = content[:at] + bytes(len(content[at : at + 64])) + content[at + 64 :]
    return zeroed if zeroed != content else bytes(len(content))


def is_refused(reference, folder, content):
    """Tell whether a snapshot with this content is refused, in one sentence."""
    (folder / reference.name).write_bytes(content)
    try:
        FileSnapshot.open(reference, folder)
    except ValueError as error:
        return str(folder / reference.name) in str(error)
    return False
