"""Good recordings in every format, and what can be wrong with them: the material of tests/fuzz.py.

A damage is a function (place, rng, traps) that changes what lies at `place`, the file or folder of one recording.
`traps` are files of somebody else, full of the number 777777; no reader may open one."""

import functools
import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from pathlib import Path

import h5py
import numpy as np
import test_formats as written
import test_formats_mcap as bags
import yaml

CANARY = 777777.0
LONG = "x" * 100_000
ROWS = 3, 4, 5


def recordings(number):
    return written.rows(seed=number)


def robomimic(place, number):
    with h5py.File(place, "w") as file:
        for k, r in enumerate(recordings(number)):
            demo = file.create_group(f"data/demo_{k}")
            demo["actions"], demo["obs/a"], demo["obs/b"] = r["action"], r["state"][:, :2], r["state"][:, 2:]
            demo["obs/datagen_info/pose"] = np.zeros((len(r["action"]), 4, 4), np.float32)
            demo["next_obs/a"], demo["next_obs/b"] = r["state"][:, :2], r["state"][:, 2:]
            demo["rewards"], demo["dones"] = np.zeros(len(r["action"])), np.zeros(len(r["action"]))
            demo.attrs.update(seed=k, success=bool(k % 2))
        file["data"].attrs.update(fps=20.0, origin="human:glove", task="pick")
        file["mask/train"] = [b"demo_0", b"demo_1"]


def hand_dapg(place, number):
    kept = [
        {
            "observations": r["state"],
            "actions": r["action"],
            "rewards": np.zeros(len(r["action"])),
            "init_state_dict": {},
        }
        for r in recordings(number)
    ]
    place.write_bytes(pickle.dumps(kept, protocol=2 + number % 3))


def hand_dapg_policy(place, number):
    np.savez_compressed(
        place,
        **{
            k: np.zeros((3, 3))
            for k in ("in_shift", "in_scale", "w0", "b0", "w1", "b1", "w2", "b2", "out_shift", "out_scale")
        },
    )


def trials(place, number):
    data = place.parent / f"set{number}"
    written.lerobot_v21(data, recordings(number))
    lines = [f"policy/any@7738d72b8bf9,{k % 2},{k},{data.name},{0.1 * k:g}" for k in range(3)]
    place.write_text("\n".join(["policy,success,episode,data,x", *lines]) + "\n")


def minari(place, number):
    written.minari(place.parent / f"of-{place.stem}", recordings(number)).rename(place)


def bag(place, number):
    bags.record(place, seconds=0.6 + 0.1 * (number % 7) if number < 10**6 else 1.7)
    card = {**bags.CARD, "obs": bags.CARD["obs"][1:]}
    place.with_suffix(".yaml").write_text(yaml.safe_dump(card))


def zipped(place, number):
    written.buffer(place.parent / f"of-{place.stem}", recordings(number))
    root = place.parent / f"of-{place.stem}"
    with zipfile.ZipFile(place, "w") as packed:
        for path in sorted(p for p in root.rglob("*") if p.is_file()):
            packed.write(path, path.relative_to(root).as_posix())


GOOD = {
    "robomimic_hdf5": ("hdf5", robomimic),
    "aloha_hdf5": ("hdf5", lambda place, n: written.aloha(place, recordings(n)[0])),
    "d4rl_hdf5": ("hdf5", lambda place, n: written.d4rl(place, recordings(n), terminals=written.flags(4, 7))),
    "minari_hdf5": ("hdf5", minari),
    "replay_buffer_zarr": ("", lambda place, n: written.buffer(place, recordings(n))),
    "lerobot_v21": ("", lambda place, n: written.lerobot_v21(place, recordings(n))),
    "lerobot_v3": ("", lambda place, n: written.lerobot_v3(place, recordings(n))),
    "ros2_mcap": ("mcap", bag),
    "hand_dapg": ("pickle", hand_dapg),
    "hand_dapg_policy": ("npz", hand_dapg_policy),
    "trials_csv": ("csv", trials),
}  # fmt: skip


class Traps:
    """Files of somebody else in `folder`, in the shapes in which each format might be made to read them."""

    def __init__(self, folder):
        self.folder = folder
        folder.mkdir()
        with h5py.File(folder / "theirs.h5", "w") as file:
            file.create_dataset("x", data=np.full((64, 3), CANARY, np.float32), maxshape=(None, 3))
            file["g/x"] = np.full((64, 3), CANARY, np.float32)
        (folder / "raw").write_bytes(np.full(256, CANARY, np.float32).tobytes())
        theirs = [
            {"state": np.full((n, 3), CANARY, np.float32), "action": np.zeros((n, 2), np.float32)} for n in (5, 3, 4)
        ]
        written.lerobot_v3(folder / "set", theirs)
        self.parquet = folder / "set" / "data" / "chunk-000" / "file-000.parquet"
        (folder / "words.yaml").write_text("rate_hz: 777777\n")
        self.h5, self.raw, self.words = folder / "theirs.h5", folder / "raw", folder / "words.yaml"


@functools.cache
def zeros(codec, megabytes):
    """So many MB of nothing, packed."""
    import numcodecs

    return bytes(numcodecs.get_codec({"id": codec}).encode(bytes(megabytes * 2**20)))


@functools.cache
def zip_bomb(name):
    """A zip with one entry, 200 MB of nothing."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", zipfile.ZIP_DEFLATED) as out:
        out.writestr(name, bytes(200 * 2**20))
    return made.getvalue()


# any file ------------------------------------------------------------------------------------------------------------


def some_file(place, rng):
    files = [place] if place.is_file() else sorted(p for p in place.rglob("*") if p.is_file() and not p.is_symlink())
    return files[int(rng.integers(len(files)))]


def cut(place, rng, traps):
    file = some_file(place, rng)
    file.write_bytes(file.read_bytes()[: int(rng.integers(file.stat().st_size + 1))])


def flip(place, rng, traps):
    file = some_file(place, rng)
    data = bytearray(file.read_bytes())
    for _ in range(int(rng.choice([1, 2, 16, 64])) if data else 0):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    file.write_bytes(data)


def noise(place, rng, traps):
    some_file(place, rng).write_bytes(rng.bytes(int(rng.choice([0, 1, 100, 5000]))))


def hole(place, rng, traps):
    file = some_file(place, rng)
    data = bytearray(file.read_bytes())
    at = int(rng.integers(len(data) + 1))
    data[at : at + 64] = rng.choice([b"\0", b"\xff"]) * len(data[at : at + 64])
    file.write_bytes(data)


def big_end(place, rng, traps):
    """The largest numbers in the place of a length."""
    file = some_file(place, rng)
    data, width = bytearray(file.read_bytes()), int(rng.choice([2, 4, 8]))
    at = int(rng.integers(max(1, len(data) - width)))
    data[at : at + width] = b"\xff" * (width - 1) + b"\x7f"
    file.write_bytes(data)


BYTES = [cut, flip, noise, hole, big_end]

# HDF5 ----------------------------------------------------------------------------------------------------------------


def nodes(file, arrays=True):
    found = []
    file.visititems(lambda name, node: found.append(name) if isinstance(node, h5py.Dataset) == arrays else None)
    return sorted(found)


def in_array(change):
    def damage(place, rng, traps):
        with h5py.File(place, "a") as file:
            names = nodes(file)
            name = names[int(rng.integers(len(names)))]
            data = file[name][()]
            del file[name]
            change(file, name, np.asarray(data), rng, traps)

    return functools.update_wrapper(damage, change)


@in_array
def group_for_array(file, name, data, rng, traps):
    file.create_group(name)["inner"] = np.zeros(3)


@in_array
def gone(file, name, data, rng, traps):
    pass


@in_array
def other_rank(file, name, data, rng, traps):
    file[name] = [data.ravel(), data[..., None], data.reshape(-1)[:1].reshape(()), data[None]][int(rng.integers(4))]


@in_array
def fewer_rows(file, name, data, rng, traps):
    file[name] = np.atleast_1d(data)[: int(rng.integers(2))]


@in_array
def words_for_numbers(file, name, data, rng, traps):
    file[name] = [["a"] * max(1, len(np.atleast_1d(data))), "nothing", np.array([(1, 2.0)], "i4,f8")][
        int(rng.integers(3))
    ]


@in_array
def not_finite(file, name, data, rng, traps):
    file[name] = np.full(data.shape, rng.choice([np.nan, np.inf, 1e30, -1e300]))


@in_array
def wrapped(file, name, data, rng, traps):
    file[name] = np.atleast_1d(data).astype(rng.choice(["i1", "u8", "c16", "f2"]))


@in_array
def empty_shape(file, name, data, rng, traps):
    file[name] = h5py.Empty("f4") if rng.random() < 0.5 else np.zeros((len(np.atleast_1d(data)), 0), np.float32)


@in_array
def huge(file, name, data, rng, traps):
    shape = (int(rng.choice([10**8, 10**9, 10**12])), *data.shape[1:])
    file.create_dataset(name, shape, "f4", chunks=(4096, *data.shape[1:]), compression=rng.choice([None, "gzip"]))


@in_array
def huge_block(file, name, data, rng, traps):
    data = np.atleast_1d(data)
    wide = max(1, int(np.prod(data.shape[1:])))
    chunks = (900_000_000 // (wide * 8), *(max(1, n) for n in data.shape[1:]))
    made = file.create_dataset(
        name, (len(data), *chunks[1:]), "f4", maxshape=(None, *chunks[1:]), chunks=chunks, compression="gzip"
    )
    made.id.write_direct_chunk((0,) * len(chunks), zlib.compress(b"\0" * 4096))


@in_array
def bomb(file, name, data, rng, traps):
    data = np.atleast_1d(data)
    shape = tuple(max(1, n) for n in data.shape)
    made = file.create_dataset(name, shape, "f4", chunks=shape, compression="gzip")
    made.id.write_direct_chunk((0,) * len(shape), zeros("zlib", int(rng.choice([80, 200]))))


@in_array
def external_storage(file, name, data, rng, traps):
    data = np.atleast_1d(data)
    file.create_dataset(name, data.shape, "f4", external=[(str(traps.raw), 0, max(4, 4 * data.size))])


@in_array
def external_link(file, name, data, rng, traps):
    file[name] = h5py.ExternalLink(str(traps.h5), rng.choice(["/x", "/g", "/"]))


@in_array
def soft_link_out(file, name, data, rng, traps):
    file["out"] = h5py.ExternalLink(str(traps.h5), "/")
    file[name] = h5py.SoftLink(rng.choice(["/out/x", "/out", "/out/g/x"]))


@in_array
def soft_link_round(file, name, data, rng, traps):
    file[name] = h5py.SoftLink(rng.choice([f"/{name}", "/", "/data", "nowhere"]))


@in_array
def other_files_rows(file, name, data, rng, traps):
    data, endless = np.atleast_1d(data), bool(rng.random() < 0.5)
    most = (None, 3) if endless else (64, 3)
    layout = h5py.VirtualLayout((len(data), 3), "f4", maxshape=(None, 3) if endless else None)
    source = h5py.VirtualSource(str(traps.h5), "x", (64, 3), maxshape=most)
    if endless:
        layout[0 : h5py.h5s.UNLIMITED] = source[0 : h5py.h5s.UNLIMITED]
    else:
        layout[:] = source[: len(data)]
    file.create_virtual_dataset(name, layout)


def group_link_out(place, rng, traps):
    with h5py.File(place, "a") as file:
        names = nodes(file, arrays=False) or ["observations"]
        name = names[int(rng.integers(len(names)))]
        if name in file:
            del file[name]
        file[name] = h5py.ExternalLink(str(traps.h5), rng.choice(["/", "/g"]))


def round_and_round(place, rng, traps):
    with h5py.File(place, "a") as file:
        for name in nodes(file, arrays=False) or ["/"]:
            file[name]["again"] = file["/"]


def array_for_group(place, rng, traps):
    with h5py.File(place, "a") as file:
        names = nodes(file, arrays=False) or ["data"]
        name = names[int(rng.integers(len(names)))]
        if name in file:
            del file[name]
        file[name] = np.zeros((3, 2), np.float32)


def attributes(place, rng, traps):
    values = [np.nan, np.inf, -1, 2**62, "perhaps", LONG[:60_000], np.zeros(3), b"\xff\xfe", "{" * 5000]
    with h5py.File(place, "a") as file:
        for name in ["/", *nodes(file, arrays=False)]:
            for key in (
                "fps",
                "seed",
                "origin",
                "success",
                "task",
                "obs_keys",
                "dataset_id",
                "env_spec",
                "outcome",
                "sim",
            ):
                if rng.random() < 0.3:
                    file[name].attrs[key] = values[int(rng.integers(len(values)))]


def long_names(place, rng, traps):
    with h5py.File(place, "a") as file:
        names = nodes(file)
        name = names[int(rng.integers(len(names)))]
        file.move(name, f"{name.rpartition('/')[0]}/{'k' * 60_000}".lstrip("/"))
        for group in nodes(file, arrays=False):
            file[f"{group}/{LONG[:60_000]}"] = np.zeros(3)


HDF5 = [
    group_for_array, gone, other_rank, fewer_rows, words_for_numbers, not_finite, wrapped, empty_shape, huge, huge_block, bomb,
    external_storage, external_link, soft_link_out, soft_link_round, other_files_rows, group_link_out, round_and_round,
    array_for_group, attributes, long_names,
]  # fmt: skip

# Zarr ----------------------------------------------------------------------------------------------------------------

WRONG = [
    ("shape", [10**9, 3]), ("shape", [10**15]), ("shape", [-1, 2]), ("shape", "many"), ("shape", []), ("chunks", [10**9, 3]),
    ("chunks", [0, 0]), ("chunks", None), ("dtype", "|O"), ("dtype", "<c16"), ("dtype", "<U100000000"), ("dtype", "nonsense"),
    ("dtype", "<M8[s]"), ("compressor", {"id": "pickle"}), ("compressor", {"id": "zlib", "level": 1}), ("compressor", {"id": "gzip", "level": 1}),
    ("compressor", {"id": LONG}), ("filters", [{"id": "pickle"}]), ("filters", [{"id": "zlib"}, {"id": "zlib"}]), ("fill_value", "NaN"),
    ("order", "X"), ("zarr_format", 7), ("dimension_separator", "/"), ("dimension_separator", ".."),
]  # fmt: skip


def array_told(place, rng, traps):
    files = sorted(place.rglob(".zarray"))
    file = files[int(rng.integers(len(files)))]
    key, value = WRONG[int(rng.integers(len(WRONG)))]
    file.write_text(json.dumps({**json.loads(file.read_text()), key: value}))


def blocks(place):
    return sorted(p for p in place.rglob("*") if p.is_file() and p.name[0] != ".")


def block_bomb(place, rng, traps):
    file = blocks(place)[int(rng.integers(len(blocks(place))))]
    about = file.parent / ".zarray"
    codec = str(rng.choice(["zlib", "gzip", "bz2", "lzma", "blosc", "lz4", "zstd"]))
    about.write_text(json.dumps({**json.loads(about.read_text()), "compressor": {"id": codec}}))
    file.write_bytes(zeros(codec, 700 if codec in ("zstd", "blosc") else 70))


def block_elsewhere(place, rng, traps):
    file = blocks(place)[int(rng.integers(len(blocks(place))))]
    file.unlink()
    file.symlink_to(traps.raw if rng.random() < 0.5 else os.path.relpath(traps.raw, file.parent))


def folder_elsewhere(place, rng, traps):
    other = traps.folder / f"zarr-{rng.integers(2**31)}"
    (place / "data" / "state").rename(other)
    (place / "data" / "state").symlink_to(other, target_is_directory=True)


def ends(place, rng, traps):
    import zarr

    told = [
        [],
        [0],
        [5, 5, 12],
        [0, 5, 12],
        [5, 3, 12],
        [5, 8, 10**9],
        [-3, 5],
        [1, 2, 3],
        [float("nan"), 5.0],
        [[5], [8]],
        [2**63 - 1],
    ]
    group = zarr.open_group(str(place), mode="a")
    del group["meta/episode_ends"]
    group.create_array("meta/episode_ends", data=np.array(told[int(rng.integers(len(told)))]))


def arrays_swapped(place, rng, traps):
    import zarr

    group = zarr.open_group(str(place), mode="a")
    key = str(rng.choice(["state", "action"]))
    del group[f"data/{key}"]
    if rng.random() < 0.5:
        group.create_group(f"data/{key}")
    else:
        made = [
            np.zeros(12),
            np.zeros((12, 0)),
            np.zeros((3, 2)),
            np.full((12, 3), np.nan),
            np.zeros((12, 2, 2, 3)),
            np.zeros((12, 3), bool),
        ]
        group.create_array(f"data/{key}", data=made[int(rng.integers(len(made)))])


def zarr_attributes(place, rng, traps):
    mine = [{"flywheel": {}}, {"flywheel": {"episodes": [], "streams": {}}}, {"flywheel": LONG}, {"a": float("nan")}]
    (place / ".zattrs").write_text(json.dumps(mine[int(rng.integers(len(mine)))]))


def zip_lies(place, rng, traps):
    """The folder as a .zip with entries that climb, and one that is a bomb; the folder goes."""
    import shutil

    packed, bad = (
        place.with_name(f"{place.name}.zarr.zip"),
        "data/state/0.0" if rng.random() < 0.5 else "more.npy",
    )
    packed.write_bytes(zip_bomb(bad))
    with zipfile.ZipFile(packed, "a", zipfile.ZIP_DEFLATED) as out:
        for path in (p for p in sorted(place.rglob("*")) if p.is_file()):
            if (name := path.relative_to(place).as_posix()) != bad:
                out.writestr(name, path.read_bytes())
        out.writestr(f"../{traps.folder.name}/raw2", b"x")
        out.writestr(str(traps.raw), b"x")
    shutil.rmtree(place)
    if rng.random() < 0.4:
        flip(packed, rng, traps)


ZARR = [
    array_told, array_told, block_bomb, block_elsewhere, folder_elsewhere, ends, arrays_swapped, zarr_attributes, zip_lies,
]  # fmt: skip

# LeRobot -------------------------------------------------------------------------------------------------------------


def information(place, rng, traps):
    file = place / "meta" / "info.json"
    told = json.loads(file.read_text())
    climb = os.path.relpath(traps.parquet, place)
    wrong = [
        ("data_path", str(traps.parquet)), ("data_path", climb), ("data_path", f"data/../{climb}"), ("data_path", "{episode_index:9999999d}"),
        ("data_path", "{episode_index.__class__}"), ("data_path", None), ("data_path", LONG), ("data_path", "data/{nobody}"), ("fps", float("nan")), ("fps", -1),
        ("fps", "fast"), ("fps", 1e400), ("features", {}), ("features", []), ("features", {"action": {}}), ("chunks_size", 0),
        ("chunks_size", "x"), ("codebase_version", 3), ("robot_type", LONG), ("total_episodes", 10**12), ("flywheel", {"streams": {}}),
    ]  # fmt: skip
    key, value = wrong[int(rng.integers(len(wrong)))]
    file.write_text(json.dumps({**told, key: value}))


def features(place, rng, traps):
    file = place / "meta" / "info.json"
    told = json.loads(file.read_text())
    key = str(rng.choice(["observation.state", "action", "timestamp", "observation.images.top", "next.reward", LONG]))
    wrong = [
        {"dtype": "video", "shape": [8, 8, 3]},
        {"dtype": "image", "shape": [8, 8, 3]},
        {"dtype": "string", "shape": [1]},
    ]
    wrong += [
        {"dtype": "float32", "shape": [10**9]},
        {"dtype": "float32", "shape": "x"},
        {"dtype": 7, "shape": []},
        None,
    ]
    told["features"][key] = wrong[int(rng.integers(len(wrong)))]
    told["video_path"] = str(
        rng.choice([str(traps.raw), f"../{traps.folder.name}/raw", "videos/{video_key}/{x}.mp4", "none.mp4"])
    )
    file.write_text(json.dumps(told))


def deep_json(place, rng, traps):
    files = [p for p in (place / "meta").iterdir() if p.suffix in (".json", ".jsonl")]
    files[int(rng.integers(len(files)))].write_text("[" * 100_000)


def tables(place):
    return sorted(place.rglob("*.parquet"))


def column(place, rng, traps):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tables(place)[int(rng.integers(len(tables(place))))]
    table = pq.read_table(file)
    name, n = table.column_names[int(rng.integers(table.num_columns))], table.num_rows
    values = [
        pa.nulls(n), pa.array(["a"] * n), pa.array([[1.0] * (i % 3) for i in range(n)]), pa.array(np.full(n, np.nan)),
        pa.array(np.arange(n) % 2), pa.array([[float("nan"), 1.0, 2.0]] * n), pa.array([[]] * n, pa.list_(pa.float32())),
        pa.array([b"\xff\xd8\xff"] * n), pa.array([{"bytes": b"x", "path": str(traps.raw)}] * n), pa.array(np.full(n, 10**12)),
        pa.array([[None, 1.0, 2.0]] * n), pa.array([LONG] * n), pa.array([True] * n),
    ]  # fmt: skip
    at = table.column_names.index(name)
    table = (
        table.remove_column(at)
        if rng.random() < 0.2
        else table.set_column(at, name, values[int(rng.integers(len(values)))])
    )
    pq.write_table(table, file)


def rows(place, rng, traps):
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tables(place)[int(rng.integers(len(tables(place))))]
    table = pq.read_table(file)
    way = int(rng.integers(5))
    if way < 2:
        table = table.slice(0, way)
    elif way == 2:
        table = pa.concat_tables([table, table])
    elif way == 3:
        table = table.take(rng.permutation(table.num_rows))
    else:
        table = table.take(np.delete(np.arange(table.num_rows), 1))
    pq.write_table(table, file)


def table_bomb(place, rng, traps):
    """One stored value for 5 million rows; or one stored text of 2 MB for 50,000."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = tables(place)[int(rng.integers(len(tables(place))))]
    table = pq.read_table(file)
    if rng.random() < 0.5:
        names = [n for n in table.column_names if table.schema.field(n).type in (pa.int64(), pa.float32())]
        many = pa.table({n: np.zeros(20_000_000, table.schema.field(n).type.to_pandas_dtype()) for n in names[:2]})
    else:
        codes = pa.DictionaryArray.from_arrays(np.zeros(50_000, np.int32), pa.array(["y" * 2_000_000]))
        many = pa.table(
            {"observation.state": codes, "action": codes, "episode_index": np.zeros(50_000, np.int64), "tasks": codes}
        )
    pq.write_table(many, file, compression="zstd")


def file_elsewhere(place, rng, traps):
    file = some_file(place, rng)
    file.unlink()
    file.symlink_to(traps.parquet if file.suffix == ".parquet" else traps.words)


LEROBOT = [information, information, features, deep_json, column, column, rows, table_bomb, file_elsewhere]

# bags, pickles, npz --------------------------------------------------------------------------------------------------


def card(place, rng, traps):
    file = place.with_suffix(".yaml")
    told = yaml.safe_load(file.read_text())
    wrong = [
        ("rate_hz", float("nan")), ("rate_hz", 1e12), ("rate_hz", -1), ("rate_hz", "often"), ("stale_s", float("nan")), ("obs", []),
        ("obs", {"a": 1}), ("obs", [LONG]), ("action", [{"topic": "/joints", "field": "name", "size": 2, "unit": "rad"}]),
        ("cameras", {"a": "/joints"}), ("cameras", [1]), ("success", {"topic": "/joints", "field": "header"}), ("success", "/won"),
        ("origin", LONG), ("action", [{"topic": "/command", "field": "__class__", "size": 2, "unit": "rad"}]), ("extra", 1),
        ("obs", [{"topic": "/tool", "field": "position", "size": 10**9, "unit": "m"}]), ("rate_hz", 9999),
    ]  # fmt: skip
    key, value = wrong[int(rng.integers(len(wrong)))]
    file.write_text(yaml.safe_dump({**told, key: value}))


def card_of_aliases(place, rng, traps):
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 12)]
    place.with_suffix(".yaml").write_text("\n".join(lines) if rng.random() < 0.5 else "[" * 50_000)


def card_elsewhere(place, rng, traps):
    place.with_suffix(".yaml").unlink()
    place.with_suffix(".yaml").symlink_to(traps.words)


def record_length(place, rng, traps):
    data = bytearray(place.read_bytes())
    at, ats = 8, []
    while at < len(data) - 17:
        ats.append(at)
        at += 9 + struct.unpack_from("<Q", data, at + 1)[0]
    struct.pack_into("<Q", data, ats[int(rng.integers(len(ats)))] + 1, int(rng.choice([0, 1, 2**31, 2**40, 2**62])))
    place.write_bytes(data)


def chunk_bomb(place, rng, traps):
    """A chunk of 200 MB of nothing, told or not, under zstd or lz4."""
    import lz4.frame

    lies, size = bool(rng.random() < 0.5), 100 * 2**20
    codec, packed = (b"zstd", zeros("zstd", 100)) if rng.random() < 0.5 else (b"lz4", lz4.frame.compress(bytes(size)))
    body = (
        struct.pack("<QQQII", 0, 10**9, 4096 if lies else size, 0, len(codec))
        + codec
        + struct.pack("<Q", len(packed))
        + packed
    )
    data = place.read_bytes()
    place.write_bytes(data[:8] + struct.pack("<BQ", 6, len(body)) + body + data[8:])


MCAP = [card, card, card_of_aliases, card_elsewhere, record_length, record_length, chunk_bomb]


class Evil:
    def __reduce__(self):
        return (print, ("this ran",))


def other_objects(place, rng, traps):
    good = pickle.loads(place.read_bytes())  # our own
    deep = []
    for _ in range(60):
        deep = [deep, deep]
    wrong = [
        {"a": 1}, [], [1, 2], [{}], [Evil()], [{**good[0], "actions": Evil()}], [{**good[0], "actions": good[0]["actions"][:2]}, *good[1:]],
        [{**good[0], "observations": deep}, *good[1:]], [{**good[0], "rewards": np.array(["a"] * 5)}, *good[1:]], [{**good[0], "actions": good[0]["actions"][:, 0]}],
        [{**good[0], "actions": np.array([object()] * 5)}], [{k: v[:1] if k != "init_state_dict" else v for k, v in good[0].items()}, *good[1:]],
        [{k: v[:0] if k != "init_state_dict" else v for k, v in good[0].items()}, *good[1:]], [{**good[0], "observations": np.full((5, 3), np.nan)}, *good[1:]],
        [{**good[0], "init_state_dict": 3}], [{LONG: 1}], [{**good[0], "actions": np.arange(5)}, *good[1:]],
    ]  # fmt: skip
    try:
        place.write_bytes(pickle.dumps(wrong[int(rng.integers(len(wrong)))]))
    except (pickle.PicklingError, TypeError, AttributeError):
        place.write_bytes(b"")


def opcodes(place, rng, traps):
    large = struct.pack("<I", 2**31 - 1)
    shape = b"cnumpy\nndarray\nK\x00\x85cnumpy\ndtype\nU\x02f8\x85R"
    wrong = [
        b"\x80\x02Nr" + large + b".", b"\x80\x02N" + b"p2147483647\n.", b"\x80\x04\x8e" + struct.pack("<Q", 2**40) + b"x.",
        b"\x80\x02T" + large + b"x.", b"\x80\x02cnumpy\nndarray\n(J" + struct.pack("<i", 2**31 - 1) + b"J" + struct.pack("<i", 99) + b"\x86tR.",
        b"\x80\x02cnumpy\ndtype\n(U\x0bV2000000000tR.", b"(" * 200_000 + b".", b"]" + b"(l" * 50_000 + b".", shape + b".",
        b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nJ" + struct.pack("<i", 2**30) + b"\x85U\x01b\x87R.",
        b"\x80\x02cos\nsystem\nU\x04true\x85R.", b"\x80\x02c_codecs\nencode\n(X\x01\x00\x00\x00aU\x04zliBtR.", b"\x82\x01.", b"\x80\x02Nq\x00" + b"h\x00\x86q\x00" * 50_000 + b".",
    ]  # fmt: skip
    place.write_bytes(wrong[int(rng.integers(len(wrong)))])


PICKLE = [other_objects, other_objects, opcodes]


def header(place, rng, traps):
    shape = str(rng.choice(["(10**10,)", "(10000000000,)", "(3, 3)", "(-1,)", "(2**62, 2**62)"]))
    kind = str(rng.choice(["<f8", "|O", "<U1000000000", "[('a', '<f8')]"]))
    text = f"{{'descr': '{kind}', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(117) + b"\n"
    data = b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + bytes(72)
    kept = zipfile.ZipFile(io.BytesIO(place.read_bytes()))
    names = kept.namelist()
    wrong = names[int(rng.integers(len(names)))]
    with zipfile.ZipFile(place, "w", zipfile.ZIP_DEFLATED) as out:
        for name in names:
            out.writestr(name, data if name == wrong else kept.read(name))


def entry_bomb(place, rng, traps):
    kept = zipfile.ZipFile(io.BytesIO(place.read_bytes()))
    bad = str(rng.choice(["w0.npy", "more.npy"]))
    place.write_bytes(zip_bomb(bad))
    with zipfile.ZipFile(place, "a", zipfile.ZIP_DEFLATED) as out:
        for name in sorted({*kept.namelist()} - {bad}):
            out.writestr(name, kept.read(name))


def line(place, rng, traps):
    """A line that says something else, or points elsewhere."""
    text = place.read_text()
    told = ["7738d72b8bf9,1,0,../theirs/set,0", f"7738d72b8bf9,1,0,{traps.folder / 'set'},0", "7738d72b8bf9,1,99999999999,set,0",
            "7738d72b8bf9,perhaps,0,,0", f"{'a' * 10**5},1,0,,0", "7738d72b8bf9,1,0,,nan", ",,,,", "7738d72b8bf9,1", '"7738d72b8bf9,1,0,,0',
            "7738d72b8bf9,1,-1,.,0", "7738d72b8bf9,1,0,..,0", f"7738d72b8bf9,1,0,{'s' * 10**5},0"]  # fmt: skip
    place.write_text(text + str(rng.choice(told)) + "\n")


def head(place, rng, traps):
    """Another first line."""
    first = str(
        rng.choice(
            [
                "",
                "policy,policy,success,episode,data",
                "success,policy,data,episode,x",
                "a,b,c,d,e",
                "policy,success\0,episode,data,x",
            ]
        )
    )
    place.write_text("\n".join([first, *place.read_text().splitlines()[1:]]) + "\n")


DAMAGE = {
    "robomimic_hdf5": HDF5, "aloha_hdf5": HDF5, "d4rl_hdf5": HDF5, "minari_hdf5": HDF5, "replay_buffer_zarr": ZARR, "lerobot_v21": LEROBOT,
    "lerobot_v3": LEROBOT, "ros2_mcap": MCAP, "hand_dapg": PICKLE, "hand_dapg_policy": [header, entry_bomb], "trials_csv": [line, line, head],
}  # fmt: skip
BLIND = {
    f.__name__ for f in (*BYTES, not_finite, wrapped, opcodes, ends, arrays_swapped, column, features)
}  # may change numbers


def make(folder, name, number, rng, traps) -> tuple[Path, str]:
    """A damaged recording in `folder`, and what was done to it."""
    suffix, write = GOOD[name]
    place = Path(folder) / (f"bad{number}.{suffix}" if suffix else f"bad{number}")
    write(place, number)
    kinds = DAMAGE[name] if rng.random() < 0.75 else BYTES
    kind = kinds[int(rng.integers(len(kinds)))]
    try:
        kind(place, rng, traps)
    except Exception:  # such a damage cannot be written here: a file that is cut can
        if place.exists():
            kind = cut
            kind(place, rng, traps)
    if rng.random() < 0.15 and place.exists():
        flip(place, rng, traps)
        return place, f"{kind.__name__}+flip"
    return place, kind.__name__
