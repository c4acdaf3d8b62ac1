"""Corpora from the user's own files."""

import csv
import gzip
import hashlib
import json

import numpy as np
import pytest

from distill_jax import data

ROWS = [(f'It is "number" {i}, café\u2028!', ("bad", "good")[i % 2]) for i in range(30)]


def write(path, rows, columns=("text", "label")):
    """Writes rows in the format that the name asks for."""
    kind = path.name.removesuffix(".gz").rpartition(".")[2]
    if kind == "parquet":
        import pyarrow as pa
        import pyarrow.parquet as pq

        values = list(zip(*rows, strict=True))
        pq.write_table(pa.table(dict(zip(columns, values, strict=True))), path)
        return path
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "wt", encoding="utf-8", newline="") as file:
        if kind == "csv":
            csv.writer(file).writerows([columns, *rows])
        elif kind == "tsv":
            file.writelines("\t".join(map(str, r)) + "\n" for r in [columns, *rows])
        else:
            file.writelines(
                json.dumps(dict(zip(columns, r, strict=True))) + "\n" for r in rows
            )
    return path


def as_lists(dataset):
    return {k: (s.texts, s.labels.tolist()) for k, s in dataset.splits.items()}


@pytest.mark.parametrize("packed", ["", ".gz"])
@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl", "parquet"])
def test_every_format_reads_the_same_corpus(tmp_path, kind, packed):
    if kind == "parquet" and packed:
        pytest.skip("parquet compresses within itself")
    path = write(tmp_path / f"mine.{kind}{packed}", ROWS)
    made = data.load(str(path))
    assert made.name == "mine" and made.label_names == ("bad", "good")
    assert [len(part) for part in made.splits.values()] == [22, 4, 4]
    texts = [t for part in made.splits.values() for t in part.texts]
    assert sorted(texts) == sorted(" ".join(text.split()) for text, _ in ROWS)
    expected = {" ".join(text.split()): label for text, label in ROWS}
    for part in made.splits.values():
        for text, label in zip(part.texts, part.labels, strict=True):
            assert made.label_names[label] == expected[text]
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert made.sha256 == {path.name: digest}
    other = data.load(str(write(tmp_path / "other.jsonl", ROWS)))
    assert as_lists(other) == as_lists(made)


def test_integer_labels_sort_as_numbers(tmp_path):
    rows = [(f"t{i}", label) for i, label in enumerate([10, 2, -1] * 8)]
    made = data.load(str(write(tmp_path / "numbers.csv", rows)))
    assert made.label_names == ("-1", "2", "10")


def test_columns_by_name(tmp_path):
    rows = [(label, i, text) for i, (text, label) in enumerate(ROWS)]
    path = write(tmp_path / "a.parquet", rows, ("stars", "id", "review"))
    made = data.load(str(path), text_column="review", label_column="stars")
    assert made.label_names == ("bad", "good")


def test_folder_of_splits_in_mixed_formats(tmp_path):
    write(tmp_path / "train.tsv.gz", ROWS[:20])
    write(tmp_path / "dev.csv", ROWS[20:24])
    write(tmp_path / "test.parquet", ROWS[24:])
    made = data.load(str(tmp_path))
    assert [len(part) for part in made.splits.values()] == [20, 4, 6]
    assert set(made.sha256) == {"train.tsv.gz", "dev.csv", "test.parquet"}
    assert made.notes == ()


def test_unlabelled_test_file_is_carved_instead(tmp_path):
    write(tmp_path / "train.tsv", [(t, int(la == "good")) for t, la in ROWS])
    write(tmp_path / "test.tsv", [("what is it", -1), ("who knows", -1)])
    made = data.load(str(tmp_path))
    assert "test: discarded, its 2 rows have no labels" in made.notes
    assert made.label_names == ("0", "1")


def test_tree_of_class_folders(tmp_path):
    for part in ("train", "test"):
        for group in ("neg", "pos", "unsup"):
            (tmp_path / part / group).mkdir(parents=True)
            for i in range(6):
                file = tmp_path / part / group / f"{i}.txt"
                file.write_text(f"{part} {group}\n {i} café", "utf-8")
    made = data.load(str(tmp_path))
    assert made.label_names == ("neg", "pos")
    assert [len(part) for part in made.splits.values()] == [10, 2, 12]
    assert made.test.texts[7] == "test pos 1 café" and made.test.labels[7] == 1
    assert "train/unsup: unlabelled, not read" in made.notes
    before = made.sha256
    (tmp_path / "train" / "neg" / "0.txt").write_text("changed")
    assert data.load(str(tmp_path)).sha256 != before
    alone = data.load(str(tmp_path / "train"))
    assert sum(map(len, alone.splits.values())) == 12


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.tsv", b"", "the file is empty"),
        ("a.tsv", b"text\tlabel\n", "no rows"),
        ("a.csv", b"text,label\n", "no rows"),
        ("a.tsv", b"body\tstars\nx\t1\n", "no column 'text'.* 'body', 'stars'"),
        ("a.csv", b"text,stars\nx,1\n", "no column 'label'.* 'text', 'stars'"),
        ("a.jsonl", b'{"text": "x"}\n', "no column 'label'.* 'text'"),
        ("a.tsv", b"text\tlabel\nok\t1\nna\xefve\t0\n", "line 3: byte 0xef is not UTF"),
        ("a.csv", b"\xff\xfet\x00", "line 1: byte 0xff is not UTF-8"),
        ("a.tsv", b"text\tlabel\nx\t1\ty\n", "line 2 has 3 columns, the header 2"),
        ("a.csv", b'text,label\n"x,1\n', "not a well-formed CSV"),
        ("a.jsonl", b"{\n", "line 1 is not JSON"),
        ("a.jsonl", b"[1]\n", "line 1 is not a JSON object"),
        ("a.jsonl", b'{"text": 3, "label": 1}\n', "line 1: .*holds 3, expected text"),
        ("a.jsonl", b'{"text": "x", "label": 0.5}\n', "line 1: .*holds 0.5, expected"),
        ("a.tsv", b"text\tlabel\nx\t\n", "line 2: column 'label' holds ''"),
        ("a.tsv", b"text\tlabel\nx\t1\ny\t1\nz\t1\n", "one class only"),
        (
            "a.tsv.gz",
            gzip.compress(b"text\tlabel\nx\t1\n", mtime=0)[:-9],
            "not a whole gzip",
        ),
        ("a.parquet", b"PAR1 not really", "not a parquet file"),
        ("a.docx", b"x", "cannot tell its format"),
    ],
)
def test_bad_files_are_refused(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"a[.].*{message}|^a: .*{message}"):
        data.load(str(tmp_path / name))


def test_csv_cells_may_be_long_and_the_limit_is_restored(tmp_path):
    limit = 131_072
    csv.field_size_limit(limit)
    rows = [(f"{i} " + "long " * 40_000, i % 2) for i in range(6)]
    made = data.load(str(write(tmp_path / "a.csv", rows)))
    assert len(made.train.texts[0]) > 190_000
    assert csv.field_size_limit() == limit


@pytest.mark.parametrize("kind", ["tsv", "csv", "jsonl"])
def test_byte_order_mark_and_windows_line_ends_are_no_content(tmp_path, kind):
    path = write(tmp_path / f"a.{kind}", ROWS)
    plain = data.load(str(path))
    windows = b"\xef\xbb\xbf" + path.read_bytes().replace(b"\r", b"")
    path.write_bytes(windows.replace(b"\n", b"\r\n"))
    assert as_lists(data.load(str(path))) == as_lists(plain)


def test_missing_paths_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nosuch.tsv: no such file"):
        data.load(str(tmp_path / "nosuch.tsv"))
    (tmp_path / "notes.md").write_text("x")
    with pytest.raises(FileNotFoundError, match="no train split"):
        data.load(str(tmp_path))
    write(tmp_path / "test.tsv", ROWS)
    with pytest.raises(FileNotFoundError, match="no train split"):
        data.load(str(tmp_path))


def test_two_files_for_a_split_are_refused(tmp_path):
    write(tmp_path / "train.tsv", ROWS)
    write(tmp_path / "train.csv", ROWS)
    with pytest.raises(ValueError, match="train.tsv, train.csv; keep one"):
        data.load(str(tmp_path))


def test_label_not_seen_in_train_is_named(tmp_path):
    write(tmp_path / "train.tsv", ROWS)
    write(tmp_path / "test.tsv", [("x", "good"), ("y", "so-so")])
    with pytest.raises(ValueError, match="test has labels not seen in train: 'so-so'"):
        data.load(str(tmp_path))


def test_manifest_names_the_labels(tmp_path):
    folder = tmp_path / "corpus"
    folder.mkdir()
    write(folder / "train.tsv", [(t, int(la == "good")) for t, la in ROWS])
    entry = {"labels": ["poor", "fine"], "provenance": "a film magazine"}
    manifest = tmp_path / "manifest.json"
    manifest.write_text(json.dumps({"datasets": {"corpus": entry}}))
    made = data.load(str(folder))
    assert made.label_names == ("poor", "fine")
    assert made.provenance == "a film magazine"
    manifest.write_text(json.dumps({"datasets": {"corpus": {"labels": ["poor"]}}}))
    with pytest.raises(ValueError, match="labels of manifest.json: '1'"):
        data.load(str(folder))
    manifest.write_text(json.dumps({"version": 3}))
    assert data.load(str(folder)).label_names == ("0", "1")


def test_sst5_is_as_published(shared_data):
    made = data.load(str(shared_data / "sst5"), deduplicate=False)
    counts = [np.bincount(part.labels).tolist() for part in made.splits.values()]
    assert counts == [
        [1092, 2218, 1624, 2322, 1288],
        [139, 289, 229, 279, 165],
        [279, 633, 389, 510, 399],
    ]
    assert made.label_names[0] == "very negative"
    manifest = json.loads((shared_data / "manifest.json").read_text())
    for entry in manifest["datasets"]["sst5"]["splits"].values():
        assert made.sha256[entry["file"].rpartition("/")[2]] == entry["sha256"]
    assert made.notes == (
        "train: kept 4 rows whose text is also in validation or test",
    )
    assert len(data.load(str(shared_data / "sst5")).train) == 8_540


def test_trec6_validation_is_carved(shared_data):
    made = data.load(str(shared_data / "trec6"), deduplicate=False)
    assert len(made.train) + len(made.validation) == 5_452 and len(made.test) == 500
    assert len(made.validation) == pytest.approx(545, abs=3)
    assert set(made.validation.labels.tolist()) == set(range(6))
