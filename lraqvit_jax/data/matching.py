"""Labels by name: which class of a model each class of some data is.

A class has several names: "tench, Tinca tinca" is either of the two, and n01440764 of WordNet. Names may differ in
case, in separators and in punctuation. Where two classes bear one name, the number decides where the data have one.
Numbers alone are the model's; places count only for a model that names nothing and has as many classes as the data.
"""

import collections
import functools
import itertools
import re
import unicodedata
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple

from lraqvit_jax.base import console
from lraqvit_jax.base.errors import UserError, short
from lraqvit_jax.data import class_names
from lraqvit_jax.data.sources import Example, Source, Unlabelled

FEW = 3
"""Names that a sentence gives as examples."""
SYNSET = re.compile(r"(n\d{8})(?:[\s_.,:;-]+(.*))?")
"""A WordNet id, perhaps with a name behind it, as in n02085620-Chihuahua."""
NUMBERED = re.compile(r"\d+[\s_.)-]+(\S.*)")
"""As in 001.Black_footed_Albatross."""
LIKENESS = 0.9
"""Share of a thousand classes that must bear ImageNet's names for the others to be ImageNet's as well."""


class Classes(NamedTuple):
    """Of a model.

    Attributes:
        size: how many; of the logits.
        names: of each class, those that are shown first; () where it names none.
    """

    size: int
    names: tuple[tuple[str, ...], ...] = ()

    @classmethod
    def of(cls, size: int, *lists: Sequence[str] | None) -> "Classes":
        """From lists in the order of the logits; one that has not a name for each counts for nothing."""
        whole = [names for names in lists if names and len(names) == size]
        return cls(size, tuple(tuple(dict.fromkeys(names)) for names in zip(*whole, strict=True)))


class Relabelled:
    """A source with the numbers of a model's classes for labels; -1 stays."""

    def __init__(self, source: Source, numbers: Mapping[int, int], classes: Classes) -> None:
        self._source, self._numbers = source, {**numbers, -1: -1}
        self.class_names = [names[0] for names in classes.names] or [str(number) for number in range(classes.size)]
        self.numbered = True

    @property
    def labels(self) -> Sequence[int] | None:
        labels = self._source.labels
        return None if labels is None else [self._numbers[int(label)] for label in labels]

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Example:
        example = self._source[index]
        return {"image": example["image"], "label": self._numbers[example["label"]]}


def matched(source: Source, classes: Classes, where: str, needed: bool = True) -> Source:
    """The source with the model's labels, and a line on the console where they are not simply its own.

    Args:
        source: with the labels of the data.
        classes: of the model.
        where: what the source is called in a sentence, such as data.eval.
        needed: whether the labels count; if not, a source that cannot be matched loses them.

    Raises:
        UserError: a class of the data that is none of the model's, or two of them.
    """
    try:
        return _matched(source, classes, where)
    except UserError:
        if needed:
            raise
        return Unlabelled(source)


def _matched(source: Source, classes: Classes, where: str) -> Source:
    if not source.class_names:
        return source
    labels = range(len(source.class_names)) if source.labels is None else sorted({*map(int, source.labels)} - {-1})
    names = {label: source.class_names[label] for label in labels}
    if not names:
        return source
    matching, how = _matching(names, source, classes, where)
    same = all(label == number for label, number in matching.items())
    if how and not (same and _alike(names, classes)):
        _say(f"{where}: {how}.")
    return source if same else Relabelled(source, matching, classes)


_say = functools.cache(console.say)


def renames(names: Sequence[str], others: Sequence[str]) -> bool:
    """Whether two lists can be names of the same classes in the same order: none stands at another place in both."""
    index = _index(Classes.of(len(others), others))
    return len(names) == len(others) and all(index.find(name) <= {place} for place, name in enumerate(names))


def _alike(names: Mapping[int, str], classes: Classes) -> bool:
    return bool(classes.names) and all(name in classes.names[label] for label, name in names.items())


def _matching(names: Mapping[int, str], source: Source, classes: Classes, where: str) -> tuple[dict[int, int], str]:
    """{label: number of the model's class}, and how, in words; "" where numbers are what they are."""
    numbers = all(name.isascii() and name.isdigit() for name in names.values())
    named = any(name.strip().isdigit() for name in itertools.chain(*classes.names))
    if not classes.names or (numbers and not named):
        return _by_number(names, source, classes, where, numbers)
    number_of = _by_name(names, source.numbered, classes, where)
    pairs = [f"{short(names[label])!r} is {_called(number, classes)}" for label, number in number_of.items()]
    how = f"{len(number_of):,} classes are matched by name with the model's {classes.size:,}: {', '.join(pairs[:FEW])}"
    return number_of, how + (f" and {len(pairs) - FEW:,} more" if len(pairs) > FEW else "")


def _by_number(
    names: Mapping[int, str], source: Source, classes: Classes, where: str, numbers: bool
) -> tuple[dict[int, int], str]:
    """By the numbers that the data give, as labels or as names, or else by the places of the names."""
    if source.numbered:
        _check_range(names, classes, where)
        return {label: label for label in names}, ""
    count = len(source.class_names)
    if numbers and all(len(name) < 10 and int(name) < classes.size for name in names.values()):
        how = f"the {len(names):,} classes are named by numbers, which are taken for the model's"
        return {label: int(name) for label, name in names.items()}, how
    if classes.names or count != classes.size:
        raise UserError(
            f"{where} has {count:,} classes, {_few(names.values())}, and the model {classes.size:,}"
            f"{_shown(classes)}; name the model's in the file class_names, set num_classes to train a new head, or "
            "write labels.csv with the model's numbers."
        )
    if source.class_names == sorted(source.class_names) != sorted(source.class_names, key=_natural):
        raise UserError(
            f"{where} has the classes {_few(names.values())}, which some programs sort by letters and some by numbers, "
            "and the model does not name its own; name them in the file class_names, in the order of the logits."
        )
    how = f"the model does not name its {count:,} classes; the data's are taken in their order, {_few(names.values())}"
    return {label: label for label in names}, how


def _check_range(names: Mapping[int, str], classes: Classes, where: str) -> None:
    if names and max(names) >= classes.size:
        raise UserError(
            f"{where} has the label {max(names):,}, and the model {classes.size:,} classes, 0 to "
            f"{classes.size - 1:,}; correct the labels, which count from 0, or set num_classes to how many there are."
        )


def _natural(name: str) -> list[tuple[int, str]]:
    """As timm sorts folders: by numbers where there are some, whatever the case."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name.lower())]


def _by_name(names: Mapping[int, str], numbered: bool, classes: Classes, where: str) -> dict[int, int]:
    index = _index(classes)
    candidates = {label: index.find(name) for label, name in names.items()}
    for label, name in names.items() if numbered else ():
        if label in candidates[label] or (name == str(label) and not candidates[label] and label < classes.size):
            candidates[label] = {label}
    taken = {number for numbers in candidates.values() if len(numbers) == 1 for number in numbers}
    left = {label: numbers if len(numbers) == 1 else numbers - taken for label, numbers in candidates.items()}
    twice = [label for label, numbers in left.items() if len(candidates[label]) > 1 and len(numbers) != 1]
    if missing := [names[label] for label, numbers in candidates.items() if not numbers]:
        raise UserError(
            f"{where} has {len(missing):,} of {len(names):,} classes that are none of the model's: {_few(missing)}"
            f"{_shown(classes)}; rename them, or write labels.csv with the model's numbers."
        )
    if twice:
        both = ", ".join(_called(number, classes) for number in sorted(candidates[twice[0]])[:FEW])
        raise UserError(
            f"{where} has {len(twice):,} of {len(names):,} classes whose names are those of several of the model's: "
            f"{short(names[twice[0]])!r} may be {both}; rename them, or write labels.csv with the model's numbers."
        )
    return {label: next(iter(numbers)) for label, numbers in left.items()}


def _called(number: int, classes: Classes) -> str:
    return f"{number} {short(classes.names[number][0], 60)!r}"


def _few(names: Iterable[str]) -> str:
    shown = [repr(short(name, 60)) for name in names]
    return ", ".join(shown[:FEW]) + (f" and {len(shown) - FEW:,} more" if len(shown) > FEW else "")


def _shown(classes: Classes) -> str:
    if not classes.names:
        return " without names"
    return f" (which has {_few(names[0] for names in classes.names)})"


def _folded(name: str) -> str:
    return unicodedata.normalize("NFKC", name).casefold().strip()


def _spaced(name: str) -> str:
    return re.sub(r"[\s_.-]+", " ", _folded(name)).strip()


def _squeezed(name: str) -> str:
    """Letters, their marks and digits; a number without zeros in front."""
    text = "".join(letter for letter in _folded(name) if unicodedata.category(letter)[0] in "LMN")
    return str(int(text)) if text.isascii() and text.isdigit() and len(text) < 10 else text


KEYS: tuple[Callable[[str], str], ...] = (_folded, _spaced, _squeezed)
"""What of a name must agree, from strict to lenient: the first that any class agrees in decides."""


def synonyms(name: str) -> list[str]:
    return [part.strip() for part in re.split("[,;|]", name) if part.strip()]


_Table = collections.defaultdict[str, set[int]]
"""Classes by a name."""


class _Index:
    """The classes of a model by whatever they may be called."""

    def __init__(self, classes: Classes) -> None:
        self._whole, self._letters, self._synsets = _Table(set), _Table(set), _Table(set)
        self._first, self._any = [_Table(set) for _ in KEYS], [_Table(set) for _ in KEYS]
        imagenet = _is_imagenet(classes)
        for number, names in enumerate(classes.names):
            for name in names:
                self._add(number, name)
            if imagenet:
                self._synsets[class_names.synsets()[number]].add(number)
                self._put(self._any, number, synonyms(class_names.imagenet()[number]))

    def _add(self, number: int, name: str) -> None:
        self._whole[name].add(number)
        for first in {name, *synonyms(name)[:1]}:
            self._letters[first].add(number)
        synset, rest = _synset(name)
        if synset:
            self._synsets[synset].add(number)
        for whole in filter(None, (name, rest)):
            self._put(self._first, number, [whole, *synonyms(whole)[:1]])
            self._put(self._any, number, synonyms(whole) + NUMBERED.findall(whole))

    @staticmethod
    def _put(tables: Sequence[_Table], number: int, names: Iterable[str]) -> None:
        for name, (table, key) in itertools.product(names, zip(tables, KEYS, strict=True)):
            if key(name):
                table[key(name)].add(number)

    def find(self, name: str) -> set[int]:
        """The classes of a name: none, one, or several that it does not tell apart."""
        whole = self._whole.get(name, set())
        if len(whole) == 1 and whole == self._letters.get(name):
            return whole
        synset, rest = _synset(name)
        if synset in self._synsets:
            return self._synsets[synset]
        parts = synonyms(rest)
        queries = [[name], [rest], parts[:1], parts[1:], NUMBERED.findall(name)]
        return next(filter(None, ({*itertools.chain(*map(self._look, query))} for query in queries)), set())

    def _look(self, name: str) -> set[int]:
        for table, key in itertools.chain(zip(self._first, KEYS, strict=True), zip(self._any, KEYS, strict=True)):
            if numbers := table.get(key(name)):
                return numbers
        return set()


def _synset(name: str) -> tuple[str, str]:
    """The WordNet id in front of a name, and the name without it, or else ImageNet's for it."""
    match = SYNSET.fullmatch(name.strip())
    return (match[1], match[2] or class_names.of_synsets().get(match[1], "")) if match else ("", name)


def _is_imagenet(classes: Classes) -> bool:
    """Whether the classes are ImageNet-1k's, in the usual order, by any of their usual names."""
    if len(classes.names) != class_names.IMAGENET:
        return False
    same = 0
    for names, known, synset in zip(classes.names, class_names.imagenet(), class_names.synsets(), strict=True):
        own = {_squeezed(part) for name in names for part in synonyms(name)}
        same += not own.isdisjoint({_squeezed(part) for part in [synset, *synonyms(known)]})
    return same >= LIKENESS * class_names.IMAGENET


_index = functools.lru_cache(maxsize=8)(_Index)
