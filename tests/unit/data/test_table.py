"""Tables of cases: rows in any order and from any store; invalid tables are refused with the reason."""

from __future__ import annotations

import zipfile
from pathlib import Path

import fsspec
import pandas as pd
import pytest

from raysim.core.errors import ConfigError
from raysim.data.file_paths import missing_files
from raysim.data.table import SPLITS, labels_are_files, read_table
from tests.support.paths import DATA

HEADER = "site,split,image,label\n"


def written(
    folder: Path, rows: str, name: str = "t.csv", files: tuple[str, ...] = ("a.png", "b.png", "c.png", "m.png", "n.png")
) -> str:
    for file in files:
        (folder / file).touch()
    (folder / name).write_text(rows)
    return str(folder / name)


def refused(path: str, **options: bool) -> str:
    with pytest.raises(ConfigError) as refusal:
        read_table(path, **options)
    assert path in str(refusal.value)  # every refusal names the table
    return str(refusal.value)


def test_rows_are_sorted_and_paths_absolute(tmp_path: Path) -> None:
    rows = ["007,train,b.png,m.png", "007,train,./a.png,n.png", "006,unlabelled,c.png,"]
    one = read_table(written(tmp_path, HEADER + "\n".join(rows)))
    two = read_table(written(tmp_path, HEADER + "\n".join(rows[::-1]) + "\n\n"))
    pd.testing.assert_frame_equal(one, two)
    assert one["site"].tolist() == ["006", "007", "007"]  # not the numbers 6 and 7
    assert one["image"].tolist() == [str(tmp_path / name) for name in ("c.png", "a.png", "b.png")]
    assert one["label"].isna().tolist() == [True, False, False]
    assert labels_are_files(one)


def test_splits_are_those_of_the_engine() -> None:
    from raysim.core.contracts import SPLITS as engine

    assert engine == SPLITS


def test_other_columns_and_names_like_NA_are_kept(tmp_path: Path) -> None:
    path = written(tmp_path, "site, split, image, label, age\nNA, train, a.png, 2.0, 063\n")
    table = read_table(path)
    assert table.loc[0, ["site", "label", "age"]].tolist() == ["NA", "2", "063"]
    assert not labels_are_files(table)


def test_the_byte_order_mark_of_a_spreadsheet_is_ignored(tmp_path: Path) -> None:
    assert read_table(written(tmp_path, "\ufeff" + HEADER + "s,train,a.png,1\n"))["site"].tolist() == ["s"]


def test_root_replaces_the_folder_of_the_table(tmp_path: Path) -> None:
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "c.png").touch()
    table = read_table(written(tmp_path, HEADER + "s,train,c.png,1\n"), root=str(tmp_path / "images"))
    assert table["image"].tolist() == [str(tmp_path / "images" / "c.png")]


def test_columns_that_pandas_stored_as_the_index_are_read(tmp_path: Path) -> None:
    """Without them, the leakage of a patient would not be found."""
    frame = pd.DataFrame({"site": "s", "split": ["train", "test"], "label": ["0", "1"], "patient_id": "p7", "x": "5"})
    frame.set_index(["patient_id", "site"]).to_parquet(tmp_path / "t.parquet")
    read = read_table(str(tmp_path / "t.parquet"), needs_image=False)
    assert sorted(read.columns) == sorted(frame.columns)
    assert read["patient_id"].tolist() == ["p7", "p7"]


@pytest.mark.parametrize("kind", ["symlink", "hard link", "path"])
def test_an_image_with_two_names_is_refused(tmp_path: Path, kind: str) -> None:
    path = written(tmp_path, HEADER)
    other = tmp_path / "other.png"
    if kind == "path":
        other = tmp_path / "none" / ".." / "a.png"
        (tmp_path / "none").mkdir()
    else:
        (other.symlink_to if kind == "symlink" else other.hardlink_to)(tmp_path / "a.png")
    Path(path).write_text(HEADER + f"s,train,a.png,0\ns,test,{other},1\n")
    message = refused(path, label_files=False)
    assert (
        f"images in more than one row (of any site or split): {tmp_path / 'a.png'} and {other} in rows 2, 3" in message
    )


def test_lines_that_end_with_a_carriage_return(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER)
    Path(path).write_bytes(f"{HEADER}s,train,a.png,m.png\n".replace("\n", "\r").encode())
    assert read_table(path)["image"].tolist() == [str(tmp_path / "a.png")]


def test_parquet_gives_the_same_rows_as_csv(tmp_path: Path) -> None:
    frame = pd.DataFrame(
        {"site": [7, 8], "split": ["train", "unlabelled"], "image": ["a.png", "b.png"], "label": [1.0, None]}
    )
    frame["age"] = [63, 64]
    path = written(tmp_path, "")
    frame.to_csv(path, index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    read = read_table(str(tmp_path / "t.parquet"))
    pd.testing.assert_frame_equal(read, read_table(path))
    assert read["site"].tolist() == ["7", "8"]
    assert read["label"].tolist()[0] == "1"


def test_table_behind_a_url() -> None:
    store = fsspec.filesystem("memory")
    store.pipe("/t/table.csv", (HEADER + "s,train,images/a.png,masks/a.png\n").encode())
    store.pipe({"/t/images/a.png": b"", "/t/masks/a.png": b""})
    table = read_table("memory://t/table.csv")
    assert table["image"].tolist() == ["memory://t/images/a.png"]
    store.rm("/t/masks/a.png")
    assert "memory://t/masks/a.png" in refused("memory://t/table.csv")


def test_table_inside_an_archive(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.writestr("table.csv", HEADER + "s,train,images/a.png,1\n")
        archive.writestr("images/a.png", "")
    table = read_table(f"zip://table.csv::{tmp_path}/set.zip")
    assert table["image"].tolist() == [f"zip://images/a.png::{tmp_path}/set.zip"]


def test_missing_files_are_distinguished_by_their_store(tmp_path: Path) -> None:
    (tmp_path / "here.png").touch()
    there = f"memory:/{tmp_path}/here.png"
    assert missing_files([str(tmp_path / "here.png"), there, str(tmp_path / "no" / "x.png"), there]) == [
        there,
        str(tmp_path / "no" / "x.png"),
    ]


def test_seven_missing_files_are_listed_as_five_and_two(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "".join(f"s,train,missing{i}.png,1\n" for i in range(7)))
    message = refused(path)
    assert "files that do not exist" in message
    assert "missing4.png and 2 more" in message
    assert "missing5.png" not in message
    assert len(read_table(path, check_files=False)) == 7


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("s,tran,a.png,1\n", ["'tran'", "row 2", "did you mean 'train'"]),
        ("s,train,a.png,1\n\ns,xyz,b.png,1\n", ["'xyz'", "row 4", "'unlabelled'"]),
        (",train,a.png,1\n", ["empty site cells in row 2"]),
        ("s,train, ,1\ns,val,,1\n", ["empty image cells in rows 2, 3"]),
        ("s,train,a.png,1\ns,test,b.png,\n", ["empty label cells in row 3", "unlabelled"]),
        ("s,train,a.png,1\ns,val,./a.png,1\n", ["in more than one row", "a.png in rows 2, 3."]),
        ("s,train,a.png,1\nr,test,a.png,1\n", ["in more than one row", "a.png in rows 2, 3."]),
        ("".join(f"{s},train,{i}.png,1\n" for s in "rs" for i in range(7)), ["4.png in rows 6, 13; and 2 more."]),
        ("a/b,train,a.png,1\n", ["'a/b'", "letters, digits"]),
        ("..,train,a.png,1\n", ["'..'"]),
        ("s,train,a.png,1,9,9\n", ["more cells"]),
        ("s,train,a.png,m.png\ns,train,b.png,1\n", ["labels that are not files: 1.", "path of a mask"]),
        ("", ["no rows"]),
    ],
)
def test_invalid_rows_are_refused(tmp_path: Path, rows: str, parts: list[str]) -> None:
    message = refused(written(tmp_path, HEADER + rows))
    assert all(part in message for part in parts), message


@pytest.mark.parametrize(
    ("name", "text", "part"),
    [
        ("t.csv", "site,image,label\ns,a.png,1\n", "no column 'split'; its columns are 'site', 'image', 'label'"),
        ("t.csv", "site;split;image;label\ns;train;a.png;1\n", "commas"),
        (
            "t.csv",
            "SITE, Split ,image,label\ns,train,a.png,1\n",
            "'SITE', 'Split' are not read (did you mean 'site', 's",
        ),
        ("t.csv", HEADER.replace("label", "Label") + "s,train,a.png,1\n", "did you mean 'label'?"),
        ("t.csv", "site,split,image, image\ns,train,a.png,b.png\n", "its header has 'image' 2 times"),
        ("t.csv", "", "cannot be read"),
        ("t.parquet", "this is not parquet", "cannot be read"),
        ("t.xlsx", "x", "must end in .csv, .parquet or .pq"),
    ],
)
def test_files_that_are_not_a_table_are_refused(tmp_path: Path, name: str, text: str, part: str) -> None:
    assert part in refused(written(tmp_path, text, name))


def test_a_missing_table_a_folder_and_an_unknown_protocol_are_refused(tmp_path: Path) -> None:
    assert "does not exist" in refused(str(tmp_path / "none.csv"))
    assert "raysim data scan" in refused(str(tmp_path))
    assert "the protocol nowhere is not supported; use file, s3, gs" in refused("nowhere://t.csv")
    (tmp_path / "table.csv").touch()
    assert f"task.data.table={tmp_path / 'table.csv'}" in refused(str(tmp_path))


def test_semicolons_with_decimal_commas_are_refused_with_the_cure(tmp_path: Path) -> None:
    path = written(tmp_path, "site;split;label;age\ns;train;1;60,5\n")
    assert "separate cells by commas, with decimal points" in refused(path)


def test_blanks_around_names_and_patients_are_ignored(tmp_path: Path) -> None:
    path = written(tmp_path, "site , split, image,label,patient,,\ns,train,a.png,1,p1 ,,\ns,val,b.png,1,p1,,\n")
    table = read_table(path)
    assert table["patient"].tolist() == ["p1", "p1"]
    table.iloc[:, :5].rename(columns={"site": "site "}).to_parquet(tmp_path / "t.parquet")
    assert read_table(str(tmp_path / "t.parquet"))["site"].tolist() == ["s", "s"]


def test_a_root_that_is_not_a_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"task\.data\.root=/none is not a folder"):
        read_table(written(tmp_path, HEADER + "s,train,a.png,1\n"), root="/none")


def test_a_folder_and_a_broken_link_are_not_files(tmp_path: Path) -> None:
    (tmp_path / "dir.png").mkdir()
    (tmp_path / "link.png").symlink_to(tmp_path / "missing.png")
    (tmp_path / "good.png").touch()
    (tmp_path / "alias.png").symlink_to(tmp_path / "good.png")
    paths = [str(tmp_path / f"{name}.png") for name in ("dir", "link", "good", "alias")]
    assert missing_files(paths) == paths[:2]


def test_labels_are_reported_only_if_their_files_are_missing(tmp_path: Path) -> None:
    message = refused(written(tmp_path, HEADER + "s,train,missing.png,m.png\n"))
    assert "missing.png. Relative paths start at" in message
    assert "label" not in message.replace(str(tmp_path), "")  # the folder has the name of this test


def test_labels_are_files_or_classes_by_their_spelling_or_as_configured(tmp_path: Path) -> None:
    path = written(tmp_path, HEADER + "s,train,a.png,basophil\ns,train,b.png,1\n")
    assert read_table(path)["label"].tolist() == ["basophil", "1"]
    message = refused(path, label_files=True)
    assert "labels that are not files: basophil, 1. In segmentation a label is the path of a mask" in message
    files = written(tmp_path, HEADER + "s,train,a.png,m.png\n", "files.csv")
    assert read_table(files)["label"].tolist() == [str(tmp_path / "m.png")]
    assert read_table(files, label_files=False)["label"].tolist() == ["m.png"]


def test_labels_and_images_only_where_needed(tmp_path: Path) -> None:
    path = written(tmp_path, "site,split,age\ns,train,63\n")
    assert "'image', 'label'" in refused(path)
    table = read_table(path, needs_label=False, needs_image=False)
    assert table["label"].isna().all()
    assert "image" not in table


@pytest.mark.data
@pytest.mark.skipif(not DATA.is_dir(), reason="the real data sets are not next to the project")
def test_real_tables_are_read() -> None:
    rows = {
        name: len(read_table(str(DATA / name / "table.csv"), needs_image=name != "heart_disease"))
        for name in ("retina_vessels", "hippocampus_3d", "spinal_gm_3d", "wbc_classification", "heart_disease")
    }
    assert list(rows.values()) == [95, 100, 9, 751, 920]


@pytest.mark.parametrize("marker", ["NA", "?", "nan", "N/A", "#N/A", "null", "NULL", "None", "-"])
def test_a_label_that_marks_a_missing_value_is_an_empty_label_unless_it_is_a_class(tmp_path: Path, marker: str) -> None:
    path = written(tmp_path, HEADER + f"s,train,a.png,{marker}\ns,val,b.png,ill\n")
    message = refused(path)
    assert "empty label cells in row 2" in message
    assert f"'{marker}' marks a missing value; if it is a class, list all classes in task.data.classes" in message
    assert read_table(path, label_files=False, classes=[marker, "ill"])["label"].tolist() == [marker, "ill"]


def test_a_marker_of_a_missing_value_is_not_a_patient(tmp_path: Path) -> None:
    path = written(tmp_path, "site,split,image,label,PatientID\ns,train,a.png,1,NA\ns,val,b.png,1, p1\n")
    assert read_table(path)["PatientID"].fillna("none").tolist() == ["none", "p1"]


@pytest.mark.parametrize(
    ("rows", "parts"),
    [
        ("s,train,a.png,m.png\ns,val,b.png,./m.png\n", ["masks that are the label of more than one image", "m.png of"]),
        ("s,train,a.png,m.png\ns,val,m.png,n.png\n", ["both an image and a mask", "m.png"]),
        ("s,train,a.png,a.png\n", ["both an image and a mask", "a.png"]),
        ("s,train,a.png,m.png\ns,val,link.png,n.png\ns,val,b.png,linked.png\n", ["more than one image", "m.png of"]),
        (
            "s,train,k_0000.png,k.png\ns,unlabelled,k_0001.png,\n",
            ["several files for one case: 1 image without a mask", "k_0001.png of case k.", "task.data.image_columns"],
        ),
        ("s,train,k_t1.png,m.png\ns,unlabelled,k_t1_flair.png,\n", ["several files for one case", "of case k_t1."]),
    ],
)
def test_a_file_with_two_roles_is_refused(tmp_path: Path, rows: str, parts: list[str]) -> None:
    names = ("a", "b", "m", "n", "link", "k", "k_0000", "k_0001", "k_t1", "k_t1_flair")
    path = written(tmp_path, HEADER + rows, files=tuple(f"{name}.png" for name in names))
    (tmp_path / "linked.png").symlink_to(tmp_path / "m.png")
    message = refused(path)
    assert all(part in message for part in parts)


def test_numbered_images_that_all_have_a_mask_are_cases(tmp_path: Path) -> None:
    files = ("k_0000.png", "k_0001.png", "m.png", "n.png")
    path = written(tmp_path, HEADER + "s,train,k_0000.png,m.png\ns,train,k_0001.png,n.png\n", files=files)
    assert len(read_table(path)) == 2


@pytest.mark.parametrize(
    ("encoding", "name"), [("cp1252", "WINDOWS-1252"), ("utf-16", "UTF-16"), ("utf-16-le", "UTF-16")]
)
def test_another_encoding_is_refused_with_the_command_that_converts_it(
    tmp_path: Path, encoding: str, name: str
) -> None:
    path = written(tmp_path, "")
    Path(path).write_bytes((HEADER + "Zürich,train,a.png,1\n").encode(encoding))
    message = refused(path)
    assert f"probably {name}" in message
    assert message.endswith(f"iconv -f {name} -t UTF-8 {path} > {path[:-4]}-utf8.csv")
    assert Path(path).read_bytes().decode(name).lstrip("\ufeff").startswith("site,split")


def test_backslashes_in_paths_are_named(tmp_path: Path) -> None:
    message = refused(written(tmp_path, HEADER + "s,train,images\\a.png,1\n"))
    assert "Their names have backslashes: use / between folders, as in images/a.png" in message
