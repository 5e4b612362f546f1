"""What is wrong with people's data, and what is said: one sentence that names file, place and mend, or a repair that is told."""

from __future__ import annotations

import io
import re
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from scipy.io import wavfile

from assay.cli import main
from assay.errors import AssayError
from assay.own import read

#: Makes bad input in an empty folder, and says what is given on the command line.
Make = Callable[[Path], list[str]]


@pytest.fixture(autouse=True)
def _home(home: Path) -> None:
    """Every test has a cache of its own."""


# ---------------------------------------------------------------------------------------------------- making it


def _file(name: str, content: str | bytes, **options: str) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
        return [str(folder / name), *(word for option, value in options.items() for word in (f"--{option}", value))]

    return make


def _npz(**arrays: object) -> Make:
    def make(folder: Path) -> list[str]:
        np.savez(folder / "a.npz", **arrays)  # type: ignore[arg-type]
        return [str(folder / "a.npz")]

    return make


def _photos(folder: Path, classes: str = "ab", count: int = 8) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for place in range(count):
            Image.new("L", (8, 8), 100 * number + place).save(folder / name / f"{place}.png")
    return folder


def _sounds(folder: Path, classes: str = "ab", count: int = 8) -> Path:
    for number, name in enumerate(classes):
        (folder / name).mkdir(parents=True)
        for place in range(count):
            wave = np.sin(np.arange(800) * (0.2 + 0.4 * number + 0.01 * place)) * 0.5
            wavfile.write(folder / name / f"{place}.wav", 8000, wave.astype(np.float32))
    return folder


def _spoilt(make: Callable[[Path], Path], spoil: Callable[[Path], object], *options: str) -> Make:
    def both(folder: Path) -> list[str]:
        place = make(folder / "x")
        spoil(place)
        return [str(place), *options]

    return both


def _all(suffix: str, content: bytes) -> Callable[[Path], object]:
    return lambda folder: [path.write_bytes(content) for path in folder.rglob(f"*{suffix}")]


def _link_out(folder: Path) -> None:
    file = next(path for path in sorted(folder.rglob("*")) if path.is_file())
    secret = folder.parent / "secret"
    file.rename(secret)
    file.symlink_to(secret)


def _link_folder_out(folder: Path) -> None:
    _photos(folder.parent / "elsewhere", "c")
    (folder / "c").symlink_to(folder.parent / "elsewhere" / "c")


def _listed(*names: str) -> Make:
    """A table that names images."""

    def make(folder: Path) -> list[str]:
        _photos(folder / "set" / "files")
        rows = [f"files/{name}/{place}.png,{place}.5\n" for name in "ab" for place in range(8)]
        (folder / "set" / "ages.csv").write_text("file,age\n" + "".join(rows[: 16 - len(names)]) + "".join(names))
        Image.new("L", (8, 8)).save(folder / "secret.png")
        return [str(folder / "set" / "ages.csv"), "--target", "age"]

    return make


def _zip(**members: str) -> Make:
    def make(folder: Path) -> list[str]:
        with zipfile.ZipFile(folder / "a.zip", "w") as bundle:
            for name, content in members.items():
                bundle.writestr(name.replace("__", "../"), content)
        return [str(folder / "a.zip")]

    return make


def _saved(state: str, info: str = '{"features": {"label": {}}}') -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "state.json").write_text(state)
        (folder / "dataset_info.json").write_text(info)
        return [str(folder)]

    return make


def _parquet(content: bytes) -> Make:
    return _file("a.parquet", content, target="y")


def _lists(folder: Path) -> list[str]:
    frame = pd.DataFrame({"x": [[1, 2]] * 20, "y": [0, 1] * 10})
    frame.to_parquet(folder / "a.parquet")
    return [str(folder / "a.parquet"), "--target", "y"]


def _folder(*names: str) -> Make:
    def make(folder: Path) -> list[str]:
        (folder / "x").mkdir()
        for name in names:
            (folder / "x" / name).write_text("size,y\n1,2\n")
        return [str(folder / "x")]

    return make


_ROWS = "".join(f"{n},{n * n},{'yes' if n % 2 else 'no'}\n" for n in range(30))
_TABLE = "size,price,sold\n" + _ROWS
_LONG = "id,t,v,y\n" + "".join(f"s{n},{t},{n + t},{n % 2}\n" for n in range(12) for t in range(5))


def _bytes(values: np.ndarray) -> bytes:
    out = io.BytesIO()
    wavfile.write(out, 8000, values)
    return out.getvalue()


#: What is wrong -> how to make it, and what is said.
REFUSED: dict[str, tuple[Make, str]] = {
    # paths
    "nothing there": (lambda folder: [str(folder / "nothing.csv")], r"There is no .*nothing\.csv: check the path"),
    "misspelt": (lambda f: [_file("flowers.csv", _TABLE)(f)[0].replace("rs", "sr")], r"did you mean flowers\.csv\?"),
    "unknown kind": (_file("notes.docx", "abc"), r"notes\.docx is of no kind that can be read: give"),
    "no suffix": (_file("notes", "abc"), r"notes is of no kind that can be read"),
    "empty folder": (_folder(), r"x is empty: give it one subfolder"),
    "folder of rubbish": (_folder("a.txt"), r"x holds no images \(a\.txt, \.\.\.\)"),
    "folder of tables": (_folder("a.csv", "b.csv"), r"holds several files \(a\.csv, b\.csv\): name one of them"),
    # tables
    "empty file": (_file("a.csv", "", target="b"), r"a\.csv is empty: give it a line of column names"),
    "only blank lines": (_file("a.csv", "\n\n\n", target="b"), r"a\.csv is empty"),
    "only a header": (_file("a.csv", "size,y\n", target="y"), r"no row with a value in column 'y'"),
    "no target named": (_file("a.csv", _TABLE), r"Which column .* is to be predicted\? Name it as target: size, price, sold\."),
    "target misspelt": (_file("a.csv", _TABLE, target="slod"), r"no column 'slod' for the target: did you mean sold\?"),
    "target unknown": (_file("a.csv", _TABLE, target="zzz"), r"no column 'zzz' for the target: it has size, price, sold\."),
    "text unknown": (_file("a.csv", _TABLE, target="sold", text="words"), r"no column 'words' for the text"),
    "column named twice": (_file("a.csv", _TABLE, target="sold", group="sold"), r"named twice .*target, group must differ"),
    "group and time": (_file("a.csv", "a,b,c,y\n" + "1,2,3,4\n5,6,7,8\n" * 9, target="y", time="a", group="b"), r"only one of"),
    "two groups": (_file("a.csv", "g,x,y\n" + "a,1,0\nb,2,1\n" * 9, target="y", group="g"), r"has 2 groups: .* needs at least 3"),
    "one time": (_file("a.csv", "t,x,y\n" + "1,1,0\n1,2,1\n" * 9, target="y", time="t"), r"too few distinct times"),
    "no time": (
        _file("a.csv", "d,x,y\nsoon,1,0\n" + "".join(f"2020-01-{n},{n},1\n" for n in range(1, 25)), target="y", time="d"),
        r"Row 1 of .* has no time in column 'd' \('soon'\): give a number or a date",
    ),
    "fewer names": (_file("a.csv", "size,price,sold\n1,2,yes,5\n" + _ROWS, target="sold"), r"has fewer names than the rows"),
    "long row": (_file("a.csv", _TABLE + "1,2,yes,5\n", target="sold"), r"a\.csv cannot be read as a table .*line 32.*mend"),
    "open quote": (_file("a.csv", _TABLE + '1,2,"yes\n', target="sold"), r"cannot be read as a table .*row 31.*mend"),
    "no header": (_file("a.csv", "1.5,2.5\n3.5,4.5\n", target="1.5"), r"holds numbers, not names"),
    "constant column": (
        _file("a.csv", "size,sold\n" + "1,yes\n2,no\n".replace("2", "1") * 9, target="sold"),
        r"tells the rows apart",
    ),
    "nothing beside": (
        _file("a.csv", "y\n" + "1\n2\n" * 9, target="y"),
        r"no column besides y: there is nothing to predict from",
    ),
    "one class": (_file("a.csv", "size,y\n" + "".join(f"{n},a\n" for n in range(30)), target="y"), r"have the class 'a'"),
    "one number": (_file("a.csv", "size,y\n" + "".join(f"{n},1.5\n" for n in range(30)), target="y"), r"are 1\.5: there is noth"),
    "few rows": (_file("a.csv", "size,y\n" + "".join(f"{n},{n}.5\n" for n in range(8)), target="y"), r"8 usable examples"),
    "names as target": (_file("a.csv", "size,y\n" + "".join(f"{n},id{n}\n" for n in range(90)), target="y"), r"90 distinct val"),
    "zero byte": (_file("a.csv", b"a,b\n1\0,2\n", target="b"), r"no text file \(line 2 holds a zero byte\): save .* UTF-8"),
    "an image as csv": (_file("a.csv", b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR", target="b"), r"no text file"),
    "parquet of text": (_parquet(b"PAR1"), r"no readable Parquet file .*write it anew, or save it as CSV"),
    "empty parquet": (_parquet(b""), r"no readable Parquet file"),
    "parquet of lists": (_lists, r"has no column besides y"),
    # texts and series
    "empty texts": (_file("a.csv", "t,y\n" + " ,1\n,0\n" * 9, target="y", text="t"), r"holds no examples|no row|usable"),
    "text and series": (_file("a.csv", _LONG, target="y", text="v", series="id"), r"as series and as texts at once"),
    "series unknown": (_file("a.csv", _LONG, series="ids"), r"no column 'ids' for the series: did you mean id\?"),
    "two targets": (
        _file("a.csv", _LONG + "s3,9,1,0\n", series="id", time="t"),
        r"Series 's3' .* several values in column 'y' \(r",
    ),
    "series of words": (
        _file("a.csv", re.sub(r",\d+,(\d)\n", r",word,\1\n", _LONG), series="id", time="t"),
        r"no column of numb",
    ),
    "step without time": (_file("a.csv", _LONG + "s3,soon,1,1\n", series="id", time="t"), r"Row 61 .* no time in column 't'"),
    "hollow series": (
        _file("a.csv", _LONG + "new,1,,1\nnew,2,,1\n", series="id", time="t"),
        r"Series 'new' .* column 'v' \(from row",
    ),
    "ts without labels": (_file("a.ts", "@classLabel false\n@data\n1,2\n"), r"a\.ts has no labels"),
    "ts of words": (_file("a.ts", "@classLabel true\n@data\n1,2,x:a\n"), r"Line 3 of .*a\.ts is no series of numbers"),
    "ts without colon": (_file("a.ts", "@classLabel true\n@data\n1,2\n"), r"Line 3 of .* has no label after a colon"),
    "ts without label": (_file("a.ts", "@classLabel true\n@data\n1,2:\n"), r"Line 3 of .* has no label after its last colon"),
    "ts without data": (_file("a.ts", "@classLabel true\n"), r"a\.ts has no series after a line @data"),
    "empty ts": (_file("a.ts", ""), r"a\.ts has no series after a line @data"),
    "ts with times": (_file("a.ts", "@timeStamps true\n@data\n(0,1):a\n"), r"@timeStamps true\), which is not read"),
    "ts of channels": (_file("a.ts", "@classLabel true\n@data\n1,2:a\n1:2:b\n"), r"have 1 to 2 channels: give all as many"),
    "ts regression of words": (
        _file("a.ts", "@targetLabel true\n@data\n" + "1,2:a\n" * 12),
        r"No target in a\.ts is a finite number",
    ),
    # arrays
    "npz without y": (_npz(x=np.zeros((4, 2))), r"a\.npz holds x: save the inputs as x and the labels as y"),
    "npz of objects": (_npz(x=np.array([{}, []], dtype=object), y=np.zeros(2)), r"Python objects, which could run code"),
    "npz of NaN": (_npz(x=np.zeros((20, 2, 5)) * np.nan, y=np.arange(20) % 2), r"no finite numbers \(first at \(0, 0, 0\)\)"),
    "npz of two lengths": (_npz(x=np.zeros((20, 2)), y=np.zeros(19)), r"give one label to each input"),
    "npz of five dimensions": (_npz(x=np.zeros((20, 2, 2, 2, 2)), y=np.arange(20) % 2), r"x is float64 \(20, 2, 2, 2, 2\); give"),
    "npz of complex numbers": (_npz(x=np.zeros((20, 2), dtype=complex), y=np.arange(20) % 2), r"x is complex128"),
    "npz of two shapes": (
        _npz(x_train=np.zeros((9, 2)), y_train=np.zeros(9), x_test=np.zeros((9, 3)), y_test=np.zeros(9)),
        r"x_train and x_test have different shapes",
    ),
    "npz of nothing": (_npz(), r"a\.npz holds nothing"),
    "npz of rubbish": (_file("a.npz", b"no archive"), r"it is no \.npz file, or broken"),
    "empty npz": (_file("a.npz", b""), r"it is no \.npz file, or broken"),
    "npz with a text option": (lambda f: [*_npz(x=np.zeros((4, 2)))(f), "--text", "t"], r"which has no column for text: leave"),
    # images
    "unreadable images": (_spoilt(_photos, _all(".png", b"no image")), r"16 of 16 images .* cannot be read \(a/0\.png, "),
    "cut images": (_spoilt(_photos, _all(".png", b"\x89PNG\r\n\x1a\n")), r"16 of 16 images .* cannot be read"),
    "loose images": (lambda f: [str(_photos(f / "x") / "a")], r"The images in .*a are in no class folders: put those"),
    "one folder of images": (lambda f: [str(_photos(f / "x", "a", 12))], r"have the class 'a': give examples of two"),
    "few images": (lambda f: [str(_photos(f / "x", count=2))], r"4 usable examples: give at least 10"),
    "images with a target": (
        lambda f: [str(_photos(f / "x")), "--target", "age"],
        r"an image folder, which has no column for tar",
    ),
    "link that leads out": (_spoilt(_photos, _link_out), r"0\.png is a link that leads out of .*: remove it, or copy"),
    "folder that leads out": (_spoilt(_photos, _link_folder_out), r"c is a link that leads out of"),
    "listed image outside": (_listed("../secret.png,1.5\n"), r"Row 16 of .*ages\.csv names .*secret\.png, which leads out of"),
    "listed image elsewhere": (_listed("/etc/hosts.png,1.5\n"), r"Row 16 .* which leads out of"),
    "listed images not there": (
        _listed("no.png,1\n", "nope.png,2\n"),
        r"2 of 16 files that column 'file' .* \(first: 'no\.png', row 15",
    ),
    # recordings
    "unreadable wav": (_spoilt(_sounds, _all(".wav", b"RIFFno")), r"16 of 16 wav files .* cannot be read \(a/0\.wav"),
    "wav of 0 samples": (_spoilt(_sounds, _all(".wav", _bytes(np.zeros(0, np.int16)))), r"16 of 16 wav files .* cannot be read"),
    "wav of NaN": (_spoilt(_sounds, _all(".wav", _bytes(np.full(800, np.nan, np.float32)))), r"16 of 16 wav files .* cannot be"),
    "loose wav": (lambda f: [str(_sounds(f / "x") / "a")], r"The wav files in .*a are in no class folders"),
    "one folder of wav": (lambda f: [str(_sounds(f / "x", "a", 12))], r"have the class 'a'"),
    "wav that leads out": (_spoilt(_sounds, _link_out), r"0\.wav is a link that leads out of"),
    "wav with a text": (lambda f: [str(_sounds(f / "x")), "--text", "t"], r"a folder of wav files, which has no column for text"),
    "mp3": (
        _spoilt(_sounds, lambda p: [w.rename(w.with_suffix(".mp3")) for w in p.rglob("*.wav")]),
        r"are \.mp3 files, which .*ffmp",
    ),
    # archives
    "zip that leads out": (_zip(__evil="x"), r"a\.zip holds the name '\.\./evil', which leads outside the archive"),
    "zip of rubbish": (_file("a.zip", b"PK no"), r"a\.zip is broken or of another kind than its name says"),
    "zip of nothing": (_zip(), r"a\.zip is empty: pack what is to be read"),
    "zip of a bad table": (_zip(**{"a.csv": "1.5,2.5\n"}), r"The first line of .*a\.zip holds numbers, not names"),
    "tar of rubbish": (_file("a.tar.gz", b"\x1f\x8b no"), r"a\.tar\.gz is broken or of another kind"),
    # saved datasets
    "saved without files": (_saved("{}"), r"state\.json names no data files: save the dataset anew"),
    "saved, broken JSON": (_saved("{"), r"state\.json is no JSON"),
    "saved, leads out": (_saved('{"_data_files": [{"filename": "../a.arrow"}]}'), r"'\.\./a\.arrow', which may lead out"),
    "saved, file missing": (_saved('{"_data_files": [{"filename": "a.arrow"}]}'), r"a\.arrow is not there, which .*names: copy"),
}


@pytest.mark.parametrize("wrong", REFUSED)
def test_what_is_refused_gets_one_sentence_and_exit_code_2(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    make, words = REFUSED[wrong]
    (tmp_path / "in").mkdir()
    monkeypatch.setattr(sys, "argv", ["assay", "try", "elr", "--no-save", "--on", *make(tmp_path / "in")])
    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert re.search(words, said)
    assert said.startswith("assay: ")
    assert said.endswith((".", "?"))


# ---------------------------------------------------------------------------------------------------- what is repaired


def _few(make: Callable[..., Path], suffix: str, content: bytes) -> Make:
    """One broken file among many."""

    def both(folder: Path) -> list[str]:
        place = make(folder / "x", count=12)
        (place / "a" / f"0.{suffix}").write_bytes(content)
        return [str(place)]

    return both


REPAIRED: dict[str, tuple[Make, str]] = {
    "not UTF-8": (
        _file("a.csv", ("Ort,x,y\n" + "Köln,1,0\nUlm,2,1\n" * 9).encode("cp1252")),
        r"not UTF-8 \(line 2\), so read as W",
    ),
    "UTF-16": (_file("a.csv", ("Ort,x,y\n" + "Köln,1,0\nUlm,2,1\n" * 9).encode("utf-16")), r"18 rows of 2 columns"),
    "semicolons": (_file("a.csv", "x;z;y\n" + "1,5;1;0\n2,5;2;1\n" * 9), r"18 rows of 2 columns"),
    "tabs": (_file("a.tsv", "x\tz\ty\n" + "1\t1\t0\n2\t2\t1\n" * 9), r"18 rows of 2 columns"),
    "gaps": (_file("a.csv", "x,z,y\n" + "1,,0\n2,3,1\nNA,4,0\n" * 9), r"gaps in numbers filled with the training median"),
    "infinite": (_file("a.csv", "x,z,y\n" + "inf,1,0\n2,3,1\n3,-1e300,1\n" * 9), r"18 infinite numbers taken as gaps"),
    "words among numbers": (
        _file("a.csv", "x,y\n" + "".join(f"{'?!' if n == 3 else n},{n % 2}\n" for n in range(30))),
        r"words among numbers taken as gaps: 1 in 'x' \(first '\?!', row 4\)",
    ),
    "rows without target": (_file("a.csv", "x,y\n" + "1,0\n2,1\n3,\n" * 9), r"9 rows without 'y' left out \(first: row 3\)"),
    "duplicates": (_file("a.csv", "x,z,y\n" + "1,4,0\n2,5,1\n" * 20), r"8 of 8 test examples also occur in training"),
    "names of rows": (
        _file("a.csv", "id,x,y\n" + "".join(f"id{n},{n},{n % 2}\n" for n in range(60))),
        r"columns that name rows left out: id",
    ),
    "columns of one value": (
        _file("a.csv", "a,x,y\n" + "".join(f"1,{n},{n % 2}\n" for n in range(30))),
        r"one value left out: a",
    ),
    "same name twice": (
        _file("a.csv", "x,x,y\n" + "".join(f"{n},{-n},{n % 2}\n" for n in range(30))),
        r"two columns called 'x', of which the second is 'x\.1'",
    ),
    "gaps among words": (_file("a.csv", "x,z,y\n" + "1,,0\n2,b,1\n3,c,0\n" * 9), r"gaps in words a category of their own"),
    "columns without a name": (
        _file("a.csv", ",x,y\n" + "".join(f"{n},{n},{n % 2}\n" for n in range(30))),
        r"1 columns without a na",
    ),
    "targets of words": (
        _file("a.csv", "x,y\n" + "".join(f"{n},{'bad' if n == 4 else n / 7}\n" for n in range(40))),
        r"1 rows left out, whose target is no finite number \(first 'bad', row 5\)",
    ),
    "rare class": (
        _file("a.csv", "x,y\n" + "".join(f"{n},{'c' if n == 4 else 'ab'[n % 2]}\n" for n in range(40))),
        r"have no test",
    ),
    "unequal series": (
        _file("a.ts", "@classLabel true\n@data\n" + "1,2,3:a\n4,5:b\n" * 8),
        r"series of 2 to 3 steps: short ones go on",
    ),
    "gaps in series": (
        _file("a.ts", "@classLabel true\n@data\n" + "1,?,3:a\n4,5,9:b\n" * 8),
        r"8 gaps filled between their neighb",
    ),
    "pixels of any range": (
        _npz(x=np.arange(1600.0).reshape(25, 1, 8, 8), y=np.arange(25) % 2),
        r"brought from \[0, 1599\] into",
    ),
    "one broken image": (_few(_photos, "png", b"no"), r"1 unreadable files left out \(a/0\.png\)"),
    "one broken recording": (_few(_sounds, "wav", b"no"), r"1 unreadable files left out \(a/0\.wav\)"),
    "one empty recording": (_few(_sounds, "wav", _bytes(np.zeros(0, np.int16))), r"1 unreadable files left out \(a/0\.wav\)"),
    "a silent recording": (_few(_sounds, "wav", _bytes(np.zeros(800, np.int16))), r"1 recordings are silent \(first: a/0\.wav\)"),
    "a listed image not there": (_listed("no.png,1.5\n"), r"1 rows whose file is not there left out \(first: row 16\)"),
}


@pytest.mark.parametrize("wrong", REPAIRED)
def test_what_is_repaired_is_said(wrong: str, tmp_path: Path) -> None:
    make, words = REPAIRED[wrong]
    path, *options = make(tmp_path)
    named = {option.removeprefix("--"): value for option, value in zip(options[::2], options[1::2], strict=True)}
    assert re.search(words, read(path, **named).source)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- any bytes


def _said(path: Path, **options: str) -> str:
    """What was understood, or why nothing was; any other exception is a failure."""
    try:
        return read(path, **options).source  # type: ignore[arg-type]
    except AssayError as error:
        return str(error)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(content=st.binary(max_size=400) | st.text(alphabet='01,;"\n@:ab.?-e', max_size=200).map(str.encode))
@pytest.mark.parametrize("suffix", ["csv", "tsv", "ts", "npz", "parquet", "zip", "tar", "tar.gz", "csv.gz"])
def test_any_bytes_are_read_or_refused(tmp_path: Path, suffix: str, content: bytes) -> None:
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(content)
    for options in ({}, {"target": "a"}, {"target": "b", "series": "a"}):
        assert "\n" not in _said(path, **options)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(data=st.data())
@pytest.mark.parametrize("suffix", ["wav", "npz", "zip", "parquet", "png"])
def test_any_damage_is_read_or_refused(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    """Good files with some bytes changed come further than random ones."""
    whole = bytearray(_good(tmp_path, suffix))
    for _ in range(data.draw(st.integers(1, 4))):
        whole[data.draw(st.integers(0, len(whole) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(whole)) | st.just(len(whole)))
    if suffix in ("wav", "png"):
        folder = tmp_path / suffix
        for name in "ab":
            (folder / name).mkdir(parents=True, exist_ok=True)
            for place in range(6):
                (folder / name / f"{place}.{suffix}").write_bytes(_good(tmp_path, suffix))
        (folder / "a" / f"0.{suffix}").write_bytes(whole[:cut])
        path = folder
    else:
        path = tmp_path / f"damaged.{suffix}"
        path.write_bytes(whole[:cut])
    assert "\n" not in _said(path)


def _good(folder: Path, suffix: str) -> bytes:
    frame = pd.DataFrame({"x": np.arange(12.0), "y": [0, 1] * 6})
    out = io.BytesIO()
    if suffix == "wav":
        return _bytes((np.sin(np.arange(400)) * 9999).astype(np.int16))
    if suffix == "png":
        Image.new("L", (8, 8), 100).save(out, "PNG")
    elif suffix == "npz":
        np.savez(out, x=frame[["x"]].to_numpy(), y=frame["y"].to_numpy())
    elif suffix == "parquet":
        frame.to_parquet(out)
    else:
        with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as bundle:
            bundle.writestr("a.csv", frame.to_csv(index=False))
    return out.getvalue()
