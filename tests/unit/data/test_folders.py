"""Folders as people have them: layouts, names of splits, tables, suffixes, links and litter.

Every picture has a red value of its own, which says what the label must be.
"""

import json
import sys
import zipfile

import pytest
from PIL import Image, features

from lraqvit_jax.base.errors import UserError
from lraqvit_jax.data import layout, sources

NAMES = ["ant/0.png", "ant/1.png", "cat/2.png"]


def write(root, *names):
    """Pictures of 8 pixels, the red of each ten times the number in its name."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        number = int("".join(filter(str.isdigit, path.stem)))
        image = Image.new("RGB", (4, 2), (10 * number, 0, 0))
        image.save(path, "PNG" if path.suffix.lower() not in Image.registered_extensions() else None)
    return root


def read(root, role="eval", options=""):
    """{number of the picture: name of its class, None for none}"""
    source = sources.load(f"folder:{root}{options}", role)
    examples = [source[index] for index in range(len(source))]
    assert source.labels == [example["label"] for example in examples]
    pairs = [(example["image"].getpixel((0, 0))[0], example["label"]) for example in examples]
    assert len({red for red, _ in pairs}) == len(pairs)
    return {round(red / 10): source.class_names[label] if label >= 0 else None for red, label in pairs}


WANTED = {0: "ant", 1: "ant", 2: "cat"}


@pytest.mark.parametrize(
    ("train", "held_out"),
    [
        ("train", "val"),
        ("Train", "Test"),
        ("training", "testing"),
        ("seg_train", "seg_test"),
        ("TRAIN", "Valid"),
        ("training_set", "test_set"),
        ("train", "Validation"),
        ("train", "dev"),
        ("Training images", "eval"),
        ("train2017", "val2017"),
    ],
)
def test_each_role_reads_its_split_whatever_it_is_called(tmp_path, train, held_out):
    write(tmp_path, f"{train}/ant/3.png", f"{held_out}/ant/1.png", f"{held_out}/cat/2.png")
    assert read(tmp_path) == {1: "ant", 2: "cat"}
    assert read(tmp_path, "train") == read(tmp_path, "calibration") == {3: "ant"}


@pytest.mark.parametrize("inside", ["", "seg_{}"])
def test_folders_that_a_zip_file_leaves_around_the_data_are_passed(tmp_path, inside):
    for split, names in (("train", ["ant/3.png", "cat/4.png"]), ("test", NAMES)):
        write(tmp_path / "archive" / f"seg_{split}" / inside.format(split), *names)
    write(tmp_path / "archive" / "seg_pred", "5.png", "6.png")
    assert read(tmp_path) == WANTED
    assert read(tmp_path, "train") == {3: "ant", 4: "cat"}


@pytest.mark.parametrize("around", ["PetImages", "images", "archive/Data", "data/data"])
def test_one_folder_of_folders_is_no_class(tmp_path, around):
    write(tmp_path / around, *NAMES)
    (tmp_path / "about").mkdir()
    (tmp_path / "about" / "x.xml").write_text("x") if around == "images" else (tmp_path / "about").rmdir()
    assert read(tmp_path) == WANTED


def test_a_class_with_folders_in_it_beside_another_is_one(tmp_path):
    write(tmp_path, "ant/2020/0.png", "ant/2021/1.png", "cat/2.png")
    assert read(tmp_path) == WANTED


def test_pictures_beside_a_split_that_have_no_labels_are_left_out(tmp_path, capsys):
    write(tmp_path, "train/0.png", "unlabeled/1.png")
    assert read(tmp_path, "train") == {0: None}
    assert "unlabeled/ beside train/ is not a split and is left out" in capsys.readouterr().err


def test_validation_comes_before_test_and_that_is_said(tmp_path, capsys):
    write(tmp_path / "valid", *NAMES)
    write(tmp_path / "test", "ant/3.png")
    write(tmp_path / "train", "ant/4.png")
    assert read(tmp_path) == WANTED
    assert "valid/ is read and test/ is not" in capsys.readouterr().out


def test_two_folders_of_one_split_or_none_for_a_role_are_refused(tmp_path):
    write(tmp_path / "a" / "train", *NAMES)
    with pytest.raises(UserError, match=r"nothing for data\.eval, which reads val or test"):
        read(tmp_path / "a")
    write(tmp_path / "a" / "training", *NAMES)
    with pytest.raises(UserError, match="two folders of one split"):
        read(tmp_path / "a", "train")


def test_a_class_may_be_called_as_a_split_is(tmp_path):
    write(tmp_path, "bus/0.png", "train/1.png", "car/2.png")
    assert read(tmp_path) == {0: "bus", 1: "train", 2: "car"}


@pytest.mark.parametrize("litter", ["__MACOSX", ".ipynb_checkpoints", "@eaDir", ".git", "$RECYCLE.BIN"])
def test_litter_of_systems_is_nothing(tmp_path, capsys, litter):
    write(tmp_path, *NAMES, f"{litter}/7.png", f"cat/{litter}/8.png", "cat/._2.png", "ant/.9.png")
    for name in ("ant/.DS_Store", "Thumbs.db", "cat/desktop.ini", ".directory"):
        (tmp_path / name).write_bytes(b"x")
    assert read(tmp_path) == WANTED
    assert sources.load(f"folder:{tmp_path}", "eval").class_names == ["ant", "cat"]
    assert capsys.readouterr() == ("", "")


def test_what_is_skipped_is_counted_and_named_once(tmp_path, capsys):
    write(tmp_path, *NAMES)
    for name in ("ant/a.heic", "ant/b.HEIC", "cat/c.txt", "README.md", "annotations/x.xml"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    for role in ("eval", "train", "calibration"):
        assert read(tmp_path, role) == WANTED
    warned = capsys.readouterr().err
    assert warned.count("warning:") == 1
    assert all(
        word in warned
        for word in ("5 files are left out (no pictures", "2 of .heic (ant/a.heic)", "1 of .txt (cat/c.txt)")
    )


def test_a_class_without_pictures_keeps_its_place(tmp_path):
    write(tmp_path, *NAMES)
    (tmp_path / "bee").mkdir()
    assert sources.load(f"folder:{tmp_path}", "eval").class_names == ["ant", "bee", "cat"]


SUFFIXES = ["jpg", "JPEG", "jfif", "jpe", "png", "Bmp", "webp", "tif", "TIFF", "gif", "ppm", "pgm", "avif"]


@pytest.mark.parametrize("suffix", SUFFIXES)
def test_every_suffix_is_a_picture_in_any_case(tmp_path, suffix):
    if suffix == "avif" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    path = tmp_path / "ant" / f"a.{suffix}"
    path.parent.mkdir()
    Image.new("L", (4, 2), 200).save(path)
    (example,) = list(sources.load(f"folder:{tmp_path}", "eval"))[:1]
    assert example["image"].size == (4, 2)
    assert abs(example["image"].getpixel((0, 0))[0] - 200) < 3


def test_suffixes_are_those_that_torchvision_reads_at_least():
    assert {".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp"} <= layout.SUFFIXES


@pytest.mark.skipif(sys.platform == "win32", reason="links")
def test_links_are_followed_and_never_in_a_circle(tmp_path):
    write(tmp_path / "elsewhere", "1.png", "deep/5.png")
    write(tmp_path / "data", "ant/0.png", "cat/2.png")
    (tmp_path / "data" / "ant" / "more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "again").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "cat" / "up").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "all").symlink_to(tmp_path / "data")
    (tmp_path / "data" / "cat" / "gone.png").symlink_to(tmp_path / "nothing")
    (tmp_path / "data" / "cat" / "self").symlink_to(tmp_path / "data" / "cat" / "self")
    assert read(tmp_path / "data") == {0: "ant", 1: "ant", 5: "ant", 2: "cat"}


def test_classes_are_torchvisions(tmp_path):
    try:
        from torchvision import datasets
    except Exception as error:  # also of another torch than it was built for
        pytest.skip(f"no torchvision: {error}")
    write(tmp_path, "b/0.png", "B/1.png", "10/2.png", "9/3.png", "a b/deep/4.png", "é/5.png")
    theirs = datasets.ImageFolder(str(tmp_path))
    want = {round(image.getpixel((0, 0))[0] / 10): theirs.classes[label] for image, label in theirs}
    assert read(tmp_path) == want
    assert sources.load(f"folder:{tmp_path}", "eval").class_names == theirs.classes


TABLES = {
    "plain": ("labels.csv", "file,label\n0.png,ant\n1.png,ant\n2.png,cat\n"),
    "images/ before": ("labels.csv", "file,label\nimages/0.png,ant\n./images/1.png,ant\nimages\\2.png,cat\n"),
    "longer path": ("labels.csv", "path;target\ndata/images/0.png;ant\ndata/images/1.png;ant\ndata/images/2.png;cat\n"),
    "filename,class": ("labels.csv", "filename,class\n0.png,ant\n1.png,ant\n2.png,cat\n"),
    "kaggle": ("train.csv", "image_id,label\n0,ant\n1,ant\n2,cat\n"),
    "breeds": ("labels.csv", "id,breed\n0,ant\n1,ant\n2,cat\n"),
    "tabs": ("Labels.CSV", "Image\tLabel\n0.PNG\tant\n1.PNG\tant\n2.PNG\tcat\n"),
    "tsv": ("labels.tsv", "image\tcategory\n0.png\tant\n1.png\tant\n2.png\tcat\n"),
    "excel": ("labels.csv", "sep=;\r\nFile Name;Class Name\r\n0.png;ant\r\n1.png;ant\r\n2.png;cat\r\n"),
    "pandas": ("train.csv", ",filename,label\n0,0.png,ant\n1,1.png,ant\n2,2.png,cat\n"),
    "no header": ("labels.csv", "0.png,ant\n1.png,ant\n2.png,cat\n"),
    "other word": ("labels.csv", "name,finding\n0.png,ant\n1.png,ant\n2.png,cat\n"),
    "code": ("train.csv", "id_code,diagnosis\n0,ant\n1,ant\n2,cat\n"),
    "list": ("labels.txt", "0.png ant\n1.png ant\n2.png cat\n"),
    "tiny imagenet": ("val_annotations.txt", "0.png\tant\t0\t9\n1.png\tant\t1\t9\n2.png\tcat\t0\t0\n"),
    "hugging face": ("metadata.csv", "file_name,label\n0.png,ant\n1.png,ant\n2.png,cat\n"),
    "json lines": (
        "metadata.jsonl",
        "".join(json.dumps({"file_name": f"{row}.png", "label": name}) + "\n" for row, name in WANTED.items()),
    ),
    "roboflow": ("_classes.csv", "filename, ant, cat\n0.png, 1, 0\n1.png, 1, 0\n2.png, 0, 1\n"),
    "one hot": ("train.csv", "image_id,ant,bee,cat\n0,1.0,0.0,0.0\n1,1.0,0.0,0.0\n2,0.0,0.0,1.0\n"),
    "numbers and names": ("labels.csv", "file,label,class_name\n0.png,5,ant\n1.png,5,ant\n2.png,3,cat\n"),
    "names and numbers": ("train.csv", "class id,filepaths,labels\n5,0.png,ant\n5,1.png,ant\n3.0,2.png,cat\n"),
}


@pytest.fixture(scope="module")
def three(tmp_path_factory):
    return write(tmp_path_factory.mktemp("three"), "0.png", "1.png", "2.png")


@pytest.mark.parametrize("folder", ["", "images", "Images"])
@pytest.mark.parametrize("table", TABLES.values(), ids=TABLES)
def test_a_table_beside_the_pictures_or_their_folder(tmp_path, three, table, folder):
    (tmp_path / folder).mkdir(exist_ok=True)
    for path in three.iterdir():
        (tmp_path / folder / path.name).symlink_to(path)
    (tmp_path / table[0]).write_text(table[1], newline="")
    assert read(tmp_path) == read(tmp_path, "train") == WANTED


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_tables_may_have_a_mark(tmp_path, encoding):
    write(tmp_path, "0.png", "1.png", "2.png")
    (tmp_path / "labels.csv").write_bytes(TABLES["tabs"][1].encode(encoding))
    assert read(tmp_path) == WANTED


def test_numbers_of_a_table_are_labels(tmp_path):
    write(tmp_path, "0.png", "1.png")
    (tmp_path / "labels.csv").write_text("id,target\n0,7\n1,2.0\n")
    source = sources.load(f"folder:{tmp_path}", "eval")
    assert (source.labels, source.numbered) == ([7, 2], True)


def test_kaggle_with_a_folder_a_split_and_a_form_to_fill_in(tmp_path):
    write(tmp_path / "train_images", "0.png", "1.png", "2.png")
    write(tmp_path / "test_images", "3.png")
    (tmp_path / "train.csv").write_text(TABLES["kaggle"][1])
    (tmp_path / "sample_submission.csv").write_text("image_id,label\n3,ant\n")
    (tmp_path / "test.csv").write_text("image_id\n3\n")
    assert read(tmp_path, "train") == WANTED
    with pytest.raises(UserError, match=r"test\.csv needs a header with the columns file and label"):
        read(tmp_path)
    (tmp_path / "test.csv").unlink()
    with pytest.raises(UserError, match="no labels to measure with; what is read is a sub-folder a class"):
        read(tmp_path)
    assert read(tmp_path / "train.csv") == WANTED


def test_tables_of_a_role_each(tmp_path):
    write(tmp_path / "images", *(f"{row}.png" for row in range(4)))
    (tmp_path / "train.csv").write_text("filename,class\n3.png,cat\n")
    (tmp_path / "test_labels.csv").write_text(TABLES["plain"][1])
    assert read(tmp_path) == WANTED
    assert read(tmp_path, "train") == {3: "cat"}


def test_roboflow_has_a_table_in_each_split(tmp_path, capsys):
    for split, rows in (("train", [3]), ("valid", [0, 1, 2, 4]), ("test", [5])):
        write(tmp_path / split, *(f"{row}.png" for row in rows))
        lines = [f"{row}.png, {int(row in (0, 1))}, {int(row in (2, 3))}\n" for row in rows]
        (tmp_path / split / "_classes.csv").write_text("".join(["filename, ant, cat\n", *lines]))
    for name in ("README.dataset.txt", "README.roboflow.txt"):
        (tmp_path / name).write_text("about")
    assert read(tmp_path) == WANTED
    assert read(tmp_path, "train") == {3: "cat"}
    assert "1 file is left out (of no class in _classes.csv): 1 of .png (4.png)" in capsys.readouterr().err


@pytest.mark.parametrize("where", ["root", "split"])
def test_hugging_face_metadata_of_splits(tmp_path, where):
    write(tmp_path, "train/3.png", "test/0.png", "test/1.png", "test/2.png")
    rows = {"train": {3: "cat"}, "test": WANTED}
    for split, named in rows.items():
        prefix = f"{split}/" if where == "root" else ""
        path = tmp_path / ("" if where == "root" else split) / "metadata.jsonl"
        with path.open("a") as file:
            file.writelines(
                json.dumps({"file_name": f"{prefix}{row}.png", "label": name}) + "\n" for row, name in named.items()
            )
    assert read(tmp_path) == WANTED
    assert read(tmp_path, "train") == {3: "cat"}


def test_a_column_may_say_the_split(tmp_path):
    write(tmp_path, *(f"{row}.png" for row in range(4)))
    (tmp_path / "birds.csv").write_text(
        "class id,filepaths,labels,data set\n"
        "0,0.png,ant,valid\n0,1.png,ant,valid\n1,2.png,cat,valid\n1,3.png,cat,train\n"
    )
    assert read(tmp_path) == WANTED
    assert read(tmp_path, "train") == {3: "cat"}


@pytest.mark.parametrize("table", ["id,class\n0,ant\n1,cat\n", "file_name,text\n0.png,an ant\n", "a,b\n1,2\n"])
def test_a_table_of_something_else_leaves_the_folders_of_classes(tmp_path, table):
    write(tmp_path, *NAMES[:2], "cat/22.png")
    (tmp_path / "classes.csv").write_text(table.replace("0,", "7,").replace("1,", "8,"))
    assert read(tmp_path) == {0: "ant", 1: "ant", 22: "cat"}


@pytest.mark.parametrize(
    ("table", "words"),
    [
        ("file,label\n0.png,ant\n9.png,cat\n", r"names '9\.png' and 0 more files that are not there"),
        ("id,label\n1,ant\n", r"names '1', which may be images/a/1\.png or images/b/1\.png"),
        ("file,label\n0.png,ant\n0,cat\n", r"names '0\.png' and '0', one file"),
        ("file,label\n0.png,ant\n2.png,\n", "Line 3 .* needs a file and a label"),
        ("file,label,name\n0.png,-1,x\n", "Line 2 .* whole number"),
        ("file,a,b\n0.png,1,0\n2.png,1,1\n", "Line 3 .* has several classes, 'a' and 'b'"),
        ("file,label,class_name\n0.png,1,ant\n2.png,1,cat\n", "calls the class 1 'cat', and a line above 'ant'"),
    ],
)
def test_a_table_that_does_not_say_which_picture_or_class_is_refused(tmp_path, table, words):
    write(tmp_path / "images", "0.png", "2.png", "a/1.png", "b/1.png")
    (tmp_path / "labels.csv").write_text(table)
    with pytest.raises(UserError, match=words):
        read(tmp_path)


def test_pictures_without_labels_need_no_table(tmp_path):
    write(tmp_path / "a" / "images", "0.png", "1.png")
    assert read(tmp_path / "a", "train", "?labels=none") == read(tmp_path / "a", "train") == {0: None, 1: None}
    with zipfile.ZipFile(tmp_path / "images.zip", "w") as archive:
        for name in ("0.png", "1.png"):
            archive.write(tmp_path / "a" / "images" / name, f"photos/{name}")
        archive.writestr("__MACOSX/photos/._0.png", b"x")
    (tmp_path / "b").mkdir()
    (tmp_path / "images.zip").rename(tmp_path / "b" / "images.zip")
    assert read(tmp_path / "b", "train", "?labels=none") == {0: None, 1: None}
    (tmp_path / "b" / "labels.csv").write_text("file,label\n0.png,ant\nphotos/1.png,cat\n")
    assert read(tmp_path / "b") == {0: "ant", 1: "cat"}
    for folder in (tmp_path / "a", tmp_path / "a" / "images"):
        with pytest.raises(UserError, match="no labels to measure with; what is read is"):
            read(folder)


def test_unnamed_pictures_are_counted(tmp_path, capsys):
    write(tmp_path / "images", "0.png", "1.png", "2.png")
    (tmp_path / "labels.csv").write_text("file,label\n0.png,ant\n")
    assert read(tmp_path) == {0: "ant"}
    assert "2 files are left out (not named in labels.csv): 2 of .png (images/1.png)" in capsys.readouterr().err


def test_the_table_of_splits_has_no_word_twice():
    words = [word for names in layout.SPLITS.values() for word in names]
    assert len(set(words)) == len(words)
    assert not layout.FILLERS & set(words)
