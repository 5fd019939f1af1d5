"""Which class of a model each class of some data is."""

import numpy as np
import pytest
from PIL import Image

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import class_names, matching, sources
from lraqvit_jax.data.matching import Classes
from lraqvit_jax.data.sources import memory

IMAGENET = Classes.of(1000, class_names.imagenet())


class Labelled:
    """An image for every class, in order."""

    def __init__(self, names, labels=None, numbered=False):
        self.class_names, self.numbered = list(names), numbered
        self.labels = list(range(len(names))) if labels is None else labels

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return {"image": None, "label": self.labels[index]}


def numbers(names, classes, labels=None, numbered=False):
    """The model's numbers of the classes of data."""
    source = matching.matched(Labelled(names, labels, numbered), classes, "data.eval")
    got = [source[index]["label"] for index in range(len(source))]
    assert list(source.labels) == got
    return got


def named(*names):
    return Classes.of(len(names), names)


def place(name):
    """Of ImageNet's class with this whole name."""
    return class_names.imagenet().index(name)


@pytest.mark.parametrize(
    ("data", "model", "want"),
    [
        (["ant", "cat", "dog"], ["ant", "cat", "dog"], [0, 1, 2]),
        (["ant", "cat", "dog"], ["dog", "ant", "cat"], [1, 2, 0]),
        (["ant", "dog"], ["dog", "ant", "cat"], [1, 0]),
        (["ANT", "Great_White-Shark"], ["great white shark", "Ant"], [1, 0]),
        (["jack.o.lantern", "t shirt top"], ["T-shirt/top", "jack-o'-lantern"], [1, 0]),
        (["GoldenRetriever"], ["pug", "golden retriever"], [1]),
        (["tench"], ["goldfish", "tench, Tinca tinca"], [1]),
        (["Tinca_tinca"], ["goldfish", "tench, Tinca tinca"], [1]),
        (["goldfish, Carassius auratus", "tench, Tinca tinca"], ["tench", "goldfish"], [1, 0]),
        (["Cat", "cat"], ["cat", "Cat"], [1, 0]),
        (["c", "c#"], ["C#", "C", "C++"], [1, 0]),
        (["Eisba\u0308r"], ["x", "Eisb\u00e4r"], [1]),
        (["क", "का"], ["का", "क"], [1, 0]),
        (["001.Black_footed_Albatross"], ["x", "Black footed Albatross"], [1]),
        (["Black footed Albatross"], ["002.x", "001.Black_footed_Albatross"], [1]),
        (["0", "1", "10", "2"], ["0", "1", "10", "2"], [0, 1, 2, 3]),
        (["01", "02", "10"], ["10", "2", "1"], [2, 1, 0]),
        (["n01443537", "n01440764"], ["n01440764", "n01443537"], [1, 0]),
        (["n01443537", "n01440764"], ["tench", "goldfish"], [1, 0]),
        (["goldfish"], ["n01440764", "n01443537"], [1]),
        (["n01443537-goldfish"], ["n01440764 tench", "n01443537 goldfish"], [1]),
        (["tench", "tinca tinca"], ["goldfish", "tench, Tinca tinca"], [1, 1]),
    ],
)
def test_names_are_matched_however_they_are_written(data, model, want):
    assert numbers(data, named(*model)) == want


@pytest.mark.parametrize(
    ("name", "want"),
    [
        ("n02012849", place("crane")),
        ("n03126707", 517),
        ("n02085620-Chihuahua", place("Chihuahua")),
        ("harp", place("harp")),
        ("mouth_harp", place("harmonica, mouth organ, harp, mouth harp")),
        ("sunglasses", place("sunglasses, dark glasses, shades")),
        ("sunglass", place("sunglass")),
        ("maillot, tank suit", place("maillot, tank suit")),
        ("cardigan", place("cardigan")),
    ],
)
def test_names_of_imagenet(name, want):
    assert numbers([name], IMAGENET) == [want]


def test_the_ids_of_imagenet_are_sorted_and_those_of_tfds():
    tfds = pytest.importorskip("tensorflow_datasets")
    listed = tfds.core.Path(tfds.__file__).parent / "image_classification" / "imagenet_resized_labels.txt"
    assert list(class_names.synsets()) == sorted(listed.read_text().split())
    assert class_names.of_synsets()["n02123045"] == "tabby, tabby cat"


def test_ids_are_known_for_a_model_that_writes_imagenet_otherwise():
    short = [name.split(",")[0].replace(" ", "_") for name in class_names.imagenet()]
    assert numbers(list(class_names.synsets()), Classes.of(1000, short)) == list(range(1000))
    assert numbers(["Tinca tinca"], Classes.of(1000, short)) == [0]
    others = Classes.of(1000, [f"thing {number}" for number in range(1000)])
    with pytest.raises(UserError, match="none of the model's: 'n01440764'"):
        numbers(["n01440764"], others)


@pytest.mark.parametrize("name", ["crane", "Crane", "maillot", "Cardigan", "panda"])
def test_a_name_of_two_classes_is_refused_unless_the_data_have_numbers(name):
    with pytest.raises(UserError, match=f"'{name}' may be .*; rename them, or write labels.csv"):
        numbers([name], IMAGENET)


def test_numbers_decide_between_classes_of_one_name():
    names = list(class_names.imagenet())
    assert numbers(names, IMAGENET, numbered=True) == list(range(1000))
    assert numbers(["x"] * 134 + ["crane"], IMAGENET, [134], numbered=True) == [134]
    assert numbers(["x"] * 517 + ["crane"], IMAGENET, [517], numbered=True) == [517]
    with pytest.raises(UserError, match="'crane' may be 134 'crane', 517 'crane'"):
        numbers(["x"] * 3 + ["crane"], IMAGENET, [3], numbered=True)


def test_what_another_class_has_taken_is_no_choice_any_more():
    assert numbers(["maillot", "maillot, tank suit"], IMAGENET) == [638, 639]


def test_names_come_before_numbers():
    assert numbers(["goldfish", "tench"], IMAGENET, numbered=True) == [1, 0]


@pytest.mark.parametrize(
    ("data", "model", "words"),
    [
        (["bird", "fish"], ["cat", "dog"], r"2 of 2 classes .*: 'bird', 'fish' \(which has 'cat', 'dog'\)"),
        (["cat", "dog", "fish"], ["cat", "dog"], "1 of 3 classes that are none of the model's: 'fish'"),
        (["cats"], ["cat"], "'cats'"),
        ([f"x{number}" for number in range(9)], ["cat", "dog"], "'x0', 'x1', 'x2' and 6 more"),
        (["eight", "five"], ["5", "8"], "'eight', 'five'"),
        (["x0", "x1", "x2"], ["x1", "x2", "x3"], "none of the model's: 'x0'"),
    ],
)
@pytest.mark.parametrize("numbered", [False, True])
def test_what_cannot_be_matched_is_refused_with_the_names(data, model, words, numbered):
    with pytest.raises(UserError, match=words) as error:
        numbers(data, named(*model), numbered=numbered)
    assert len(str(error.value)) < 400


def test_only_classes_that_occur_must_be_the_models():
    assert numbers(["cat", "nothing", "dog"], named("dog", "cat"), [0, 2, 2]) == [1, 0, 0]


@pytest.mark.parametrize(
    ("data", "size", "numbered", "want"),
    [
        (["ant", "cat", "dog"], 3, False, [0, 1, 2]),
        (["ant", "cat"], 10, True, [0, 1]),
        (["0", "1", "10", "2"], 12, False, [0, 1, 10, 2]),
        (["007", "3"], 10, False, [7, 3]),
        (["1", "2", "3"], 3, False, [0, 1, 2]),
        (["ant", "cat", "dog"], 4, False, "has 3 classes, 'ant', 'cat', 'dog', and the model 4 without names"),
        (["class1", "class10", "class2"], 3, False, "some programs sort by letters and some by numbers"),
        (["Bee", "ant"], 2, False, "some programs sort"),
        (["ant", "cat"], 1, True, "has the label 1, and the model 1 classes"),
    ],
)
def test_a_model_that_names_nothing(data, size, numbered, want):
    if isinstance(want, str):
        with pytest.raises(UserError, match=want):
            numbers(data, Classes(size), numbered=numbered)
    else:
        assert numbers(data, Classes(size), numbered=numbered) == want


def test_folders_named_by_numbers_are_the_models_numbers_or_names():
    with pytest.raises(UserError, match="none of the model's: '0'"):
        numbers(["0", "1", "2"], named("1", "2", "3"))
    assert numbers(["0", "1", "10", "999"], IMAGENET) == [0, 1, 10, 999]
    with pytest.raises(UserError, match="has 2 classes, '0', '1000', and the model 1,000"):
        numbers(["0", "1000"], IMAGENET)


def test_names_of_the_weights_count_beside_those_that_are_shown():
    classes = Classes.of(2, ["Hund", "Katze"], ["dog", "cat"])
    assert numbers(["cat", "dog"], classes) == [1, 0]
    assert numbers(["Katze"], classes) == [1]
    assert Classes.of(2, [], None, ["one"]).names == ()


def test_labels_that_do_not_count_are_left_out_where_they_cannot_be_matched():
    source = matching.matched(Labelled(["2020", "Rome"]), named("cat", "dog"), "data.train", needed=False)
    assert source.labels == [-1, -1]
    assert source[1]["label"] == -1


def test_images_without_a_label_stay_so():
    assert numbers(["ant", "cat"], named("cat", "ant"), [-1, 1, 0, -1]) == [-1, 0, 1, -1]


def test_the_console_says_how_labels_were_matched_once_and_nothing_for_the_same(capsys):
    for _ in range(2):
        numbers(["Said-Once", "said twice"], named("said twice", "said once", "other"))
        numbers(["said twice", "other"], named("said twice", "other", "more"))
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        "data.eval: 2 classes are matched by name with the model's 3: 'Said-Once' is 1 'said once', "
        "'said twice' is 0 'said twice'."
    ]
    numbers(["said ant", "said cat"], Classes(2))
    assert "the model does not name its 2 classes; the data's are taken in their order" in capsys.readouterr().out


def test_some_of_a_source_and_joined_sources_keep_labels(tmp_path):
    for row, name in enumerate(("ant", "cat", "cat", "ant")):
        (tmp_path / name).mkdir(exist_ok=True)
        Image.new("L", (2, 2), row).save(tmp_path / name / f"{row}.png")
    some = sources.load(f"folder:{tmp_path}?images=2", "train")
    joined = sources.load(f"folder:{tmp_path}?images=2 + folder:{tmp_path}?labels=none", "train")
    for opened, want in ((some, [1, 0]), (joined, [1, 0, -1, -1, -1, -1])):
        source = matching.matched(opened, named("cat", "ant"), "data.train")
        assert [source[index]["label"] for index in range(len(source))] == source.labels == want


def test_labels_in_memory_may_be_names():
    images = np.zeros((3, 4, 4, 3), np.uint8)
    source = matching.matched(memory.Images(images, ["dog", "cat", "dog"]), named("cat", "dog", "bee"), "labels")
    assert [source[index]["label"] for index in range(3)] == [1, 0, 1]
    assert memory.Images(images, ["dog", "cat", "dog"]).name != memory.Images(images, ["a", "b", "a"]).name


def test_a_file_of_names_may_have_a_mark(tmp_path):
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):
        (tmp_path / "names.txt").write_bytes("Eisbär\r\nKatze\r\n".encode(encoding))
        assert class_names.read(str(tmp_path / "names.txt"), 2) == ["Eisbär", "Katze"]
