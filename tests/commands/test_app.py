"""The page of trained networks: its results against `predict`, its refusals, and in a browser."""

from __future__ import annotations

import asyncio
import base64
import inspect
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from browser import CHROMIUM, Page, with_page
from image_files import SIGNATURE, chunk, png
from PIL import Image
from places import ROOT
from served import Served, served, trial_of, wait_for
from small_runs import SMALL_WORDS
from tiny import TinyNet
from torch import nn

import cli
import lightning_seg
from datamodules import DataError, SyntheticScenesDataModule
from lightning_seg import CrossEntropyModule, SetupError, errors
from lightning_seg.commands import app as verb
from lightning_seg.commands.app_server import own_names
from lightning_seg.commands.app_trial import Side, how_seen, network_name
from lightning_seg.commands.verb_options import app_parser
from lightning_seg.inference import Predictor

WORDS = [
    *SMALL_WORDS[:-1],
    "--model.network=lightning_seg.networks.LRASPP",
    "--model.network.encoder=test_efficientnet",
]
IMAGE = np.random.default_rng(0).integers(0, 256, (75, 98, 3), dtype=np.uint8)


def encoded(image: Image.Image | np.ndarray, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    picture = image if isinstance(image, Image.Image) else Image.fromarray(image)
    picture.save(buffer, form, **options)
    return buffer.getvalue()


def decoded(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text)))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """The folders of two runs of one step, whose networks differ."""
    folders = []
    for seed in (0, 1):
        folder = tmp_path_factory.mktemp(f"run{seed}")
        words = [*WORDS, f"--trainer.default_root_dir={folder}", f"--seed_everything={seed}"]
        cli.main(["fit", *words, "--trainer.max_steps=1", "--model.lr=0.05"])
        folders.append(folder)
    return folders


def checkpoint_in(run: Path) -> Path:
    (found,) = run.rglob("*.ckpt")
    return found


@pytest.fixture(scope="module")
def page(runs: list[Path]):
    with served(trial_of(*runs)) as found:
        yield found


def photographs(folder: Path) -> list[Path]:
    """Write photographs that need care: turned, transparent, deep, of four inks, and palettes."""
    picture = Image.fromarray(IMAGE)
    exif = Image.Exif()
    exif[0x0112] = 6
    clear = picture.copy()
    clear.putalpha(Image.fromarray(IMAGE[..., 0]))
    files: dict[str, bytes] = {
        "plain.png": encoded(picture),
        "turned.jpg": encoded(picture, "JPEG", exif=exif),
        "clear.png": encoded(clear),
        "inks.jpg": encoded(picture.convert("CMYK"), "JPEG"),
        "deep.png": png(IMAGE.astype(np.uint16) * 257, 16),
        "grey.png": encoded(picture.convert("L")),
        "few.gif": encoded(picture.convert("P"), "GIF"),
        "scan.tif": encoded(picture, "TIFF"),
    }
    for name, data in files.items():
        (folder / name).write_bytes(data)
    return [folder / name for name in files]


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("windows", [False, True])
def test_masks_are_those_that_predict_writes(
    windows: bool, runs: list[Path], tmp_path: Path, page: Served
) -> None:
    photos, results = tmp_path / "photos", tmp_path / "results"
    photos.mkdir()
    files = photographs(photos)
    options = {"window": 48, "flip": True, "scales": [1.0, 0.75]} if windows else {}
    words = [
        f"--inference.{name}={value}".replace("True", "true") for name, value in options.items()
    ]
    cli.main(
        ["predict", *WORDS, f"--ckpt_path={checkpoint_in(runs[0])}", *words,
         f"--data.predict={photos}", f"--predictions.output_dir={results}",
         f"--trainer.default_root_dir={tmp_path}"]
    )  # fmt: skip
    trial = trial_of(runs[0], **options) if windows else page.trial
    for file in files:
        answer = trial.answer(file.read_bytes(), file.name)
        with Image.open(results / "masks" / f"{file.stem}.png") as written:
            found = decoded(answer["results"][0]["mask"])
            assert (found.mode, found.size) == (written.mode, written.size), file.name
            assert found.getpalette() == written.getpalette()
            mask = np.asarray(written)
            assert np.array_equal(np.asarray(found), mask), file.name
        assert np.array_equal(np.asarray(decoded(answer["results"][0]["ids"])), mask)
        assert (answer["height"], answer["width"]) == mask.shape
        assert decoded(answer["picture"]).size == (mask.shape[1], mask.shape[0])


def test_areas_and_differences_are_those_counted_by_hand(runs: list[Path], page: Served) -> None:
    masks = [lightning_seg.load(checkpoint_in(run)).predict(IMAGE) for run in runs]
    status, answer = page.send(encoded(IMAGE))
    assert status == 200
    for mask, result in zip(masks, answer["results"], strict=True):
        by_hand = [int((mask == index).sum()) for index in range(8)]
        assert result["pixels"] == by_hand
        assert sum(by_hand) == 75 * 98
    assert answer["differ"] == int((masks[0] != masks[1]).sum())
    assert 0 < answer["differ"] < 75 * 98
    smooth = np.add.outer(np.arange(75), np.arange(98))[..., None].repeat(3, 2).astype(np.uint8)
    _, answer = page.send(encoded(smooth))
    shown = np.asarray(decoded(answer["picture"]), int)
    assert np.abs(shown - smooth).max() <= 4  # of the compression


def test_the_facts_name_the_networks_and_no_folder(page: Served, runs: list[Path]) -> None:
    status, _, content = page.ask("GET", "/facts")
    facts = json.loads(content)
    assert status == 200
    names = [side["name"] for side in facts["sides"]]
    assert [name.endswith("/epoch=0-step=1.ckpt") for name in names] == [True, True]
    assert names[0] != names[1]
    assert facts["sides"][0]["method"] == "CrossEntropyModule"
    assert facts["sides"][0]["network"] == "LRASPP (test_efficientnet)"
    data = SyntheticScenesDataModule()
    assert [each["name"] for each in facts["classes"]] == data.class_names
    assert [each["color"] for each in facts["classes"]] == [list(each) for each in data.palette]
    assert (facts["device"], facts["seen"]) == ("cpu", "the whole image")
    assert str(runs[0].parent) not in content.decode()


def test_words_for_networks_and_windows() -> None:
    assert network_name(TinyNet(3)) == "TinyNet"
    shown = how_seen(Predictor(window=(64, 96), flip=True, scales=(0.5, 1)))
    assert shown == "windows of 96x64 pixels, mirrored, too, at the scales 0.5, 1"


def test_of_a_large_image_the_page_gets_every_second_pixel_and_the_file_all(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lightning_seg.commands.app_trial.SHOWN_PIXELS", 75 * 98 - 1)
    answer = page.trial.answer(encoded(IMAGE), "photo.png")
    assert answer["step"] == 2
    mask = np.asarray(decoded(answer["results"][1]["mask"]))
    assert mask.shape == (75, 98)
    assert np.array_equal(np.asarray(decoded(answer["results"][1]["ids"])), mask[::2, ::2])
    assert decoded(answer["picture"]).size == (49, 38)
    assert sum(answer["results"][1]["pixels"]) == 75 * 98


def bomb() -> bytes:
    """A PNG of 22 kB that is 12000 x 12000 pixels."""
    pixels = zlib.compress(bytes(12_000 * 1501), 9)
    head = (12_000).to_bytes(4, "big") * 2 + bytes([1, 0, 0, 0, 0])
    return SIGNATURE + chunk(b"IHDR", head) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


JPEG = encoded(IMAGE, "JPEG")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "a.jpg is empty"),
        (b"only words\n" * 50, "a.jpg cannot be read as an image: no known format"),
        (JPEG[: len(JPEG) // 2], "a.jpg cannot be read as an image: "),
        (encoded(IMAGE)[:200], "a.jpg cannot be read as an image: "),
        (bomb(), "a.jpg is 12000x12000 pixels (width x height), 144000000 in all, more than the "
         "limit of 200000 (the command's option --max_pixels 144000000)"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "a.jpg cannot be read as an image"),
        (b"%PDF-1.7", "a.jpg cannot be read as an image"),
    ],
    ids=["empty", "text", "cut JPEG", "cut PNG", "bomb", "SVG", "PDF"],
)  # fmt: skip
def test_what_is_no_image_is_one_sentence(data: bytes, message: str, page: Served) -> None:
    status, answer = page.send(data, "a.jpg")
    assert status == 422
    assert message in answer["error"]
    assert answer.keys() == {"error"}
    assert "\n" not in answer["error"]


@pytest.mark.parametrize("size", [(1, 1), (1, 20_000), (20_000, 1), (33, 65)])
def test_images_of_any_shape_are_segmented(size: tuple[int, int], page: Served) -> None:
    status, answer = page.send(encoded(np.full((*size, 3), 90, np.uint8)))
    assert status == 200
    assert decoded(answer["results"][0]["mask"]).size == size[::-1]
    assert max(decoded(answer["picture"]).size) <= 8192


def test_a_deep_image_without_its_range_names_the_option(page: Served) -> None:
    dark = png(np.arange(400, dtype=np.uint16).reshape(20, 20), 16)
    status, answer = page.send(dark, "dark.png")
    assert status == 422
    assert (
        "does not say which value is white (the command's option --image_range [0,511])"
        in (answer["error"])
    )


def test_a_network_of_five_channels_takes_tiff_files_of_five(tmp_path: Path) -> None:
    tifffile = pytest.importorskip("tifffile")
    bands = np.random.default_rng(1).integers(0, 256, (20, 30, 5), dtype=np.uint8)
    options = {"image_mean": [0.5] * 5, "image_std": [0.2] * 5, "picture_channels": [4, 2, 0]}
    module = CrossEntropyModule(nn.Conv2d(5, 3, 1), num_classes=3, channels=5, **options).eval()
    trial = trial_of(sides=[Side("five", module)])
    tifffile.imwrite(tmp_path / "a.tif", bands, photometric="minisblack", planarconfig="contig")
    answer = trial.answer((tmp_path / "a.tif").read_bytes(), "a.tif")
    weight, bias = (each.detach().numpy() for each in module.network.parameters())
    logits = np.einsum("oc,hwc->hwo", weight[..., 0, 0], (bands / 255 - 0.5) / 0.2) + bias
    mask = np.asarray(decoded(answer["results"][0]["mask"]))
    assert np.array_equal(mask, logits.argmax(-1))
    shown = np.asarray(decoded(answer["picture"]).resize((3, 2), Image.Resampling.BOX), int)
    wanted = Image.fromarray(bands[..., [4, 2, 0]].copy()).resize((3, 2), Image.Resampling.BOX)
    assert np.abs(shown - np.asarray(wanted, int)).mean() < 12
    with served(trial) as page:
        status, found = page.send(encoded(IMAGE), "rgb.png")
    assert (status, found["error"]) == (422, "image rgb.png holds 3 channels, expected 5")


def test_an_error_of_the_network_is_one_sentence() -> None:
    class Picky(nn.Module):
        def forward(self, image: torch.Tensor) -> torch.Tensor:
            if image.shape[-1] > 50:
                raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried\nto")
            raise ZeroDivisionError("too small\nfor this")

    trial = trial_of(sides=[Side("mine", CrossEntropyModule(Picky(), num_classes=3).eval())])
    with served(trial) as page:
        _, small = page.send(encoded(IMAGE[:20, :30].copy()))
        _, large = page.send(encoded(IMAGE))
    message = "mine does not take an image of 30x20 pixels (width x height): too small"
    assert small["error"] == message
    assert large["error"] == (
        "the memory is too small for 98x75 pixels (width x height) at once; the option "
        "--inference.window 512 of the command divides the image into windows"
    )


def raw(page: Served, request: bytes) -> socket.socket:
    connection = socket.create_connection(("127.0.0.1", page.port), 30)
    connection.sendall(request)
    return connection


def test_an_endless_upload_is_stopped_at_the_limit_whatever_it_announces(page: Served) -> None:
    head = b"POST /segment?name=a HTTP/1.1\r\nHost: 127.0.0.1\r\n"
    with raw(page, head + b"Content-Length: 99999999999\r\n\r\n") as connection:
        answer = connection.makefile("rb").read()  # of a file of which nothing was sent
        assert answer.startswith(b"HTTP/1.1 413")
        assert answer.endswith(b'{"error":"a is larger than the limit of 1 MB"}')
    with raw(page, head + b"Transfer-Encoding: chunked\r\n\r\n") as connection:
        sent, block = 0, b"10000\r\n" + bytes(1 << 16) + b"\r\n"
        try:
            while sent < 300_000_000:
                connection.sendall(block)
                sent += 1 << 16
        except OSError:  # the server has closed the connection
            pass
        assert sent < 30_000_000  # what the buffers of the sockets take
    # a body that is longer than it announces is not read as a part of the file
    body = encoded(IMAGE)
    with raw(page, head + b"Content-Length: 100\r\n\r\n" + body) as connection:
        assert connection.recv(100).startswith(b"HTTP/1.1 422")
    assert page.send(body)[0] == 200


def test_no_path_of_a_request_is_opened_and_nothing_is_written(page: Served) -> None:
    page.send(encoded(IMAGE))
    seen: list[tuple[Any, ...]] = []
    watching = [True]
    sys.addaudithook(
        lambda event, given: seen.append(given) if watching and event == "open" else None
    )
    body = encoded(np.random.default_rng(2).integers(0, 256, (500, 390, 3), dtype=np.uint8))
    assert len(body) > 500_000
    secret = ROOT / "LICENSE"
    for name in (str(secret), f"../../..{secret}", "..\\..\\LICENSE", "a\0b", "CON", "é" * 500):
        status, answer = page.send(body, name)
        assert status == 200
        status, answer = page.send(b"text", name)
        assert status == 422
        assert "/" not in answer["error"].partition(" cannot")[0]
        assert len(answer["error"]) < 200
    for path in (
        f"{secret}", f"/..{secret}", "/../LICENSE", "/%2e%2e/LICENSE", "/..%2fLICENSE", "/app.html",
        "/app_page/app.html", "/static/app.html", "//etc/passwd", "/docs", "/redoc",
        "/openapi.json", "/docs/oauth2-redirect", "/facts/", "/favicon.ico", "/segment/a",
    ):  # fmt: skip
        status, _, content = page.ask("GET", path)
        assert status == 404, path
        assert json.loads(content) == {"error": "there is no such page"}
    watching.clear()
    assert page.ask("GET", "/segment")[0] == page.ask("DELETE", "/")[0] == 405
    writing = os.O_WRONLY | os.O_RDWR | os.O_CREAT
    for place, mode, flags in seen:
        assert not set(mode or "") & set("wax+"), place
        assert not flags & writing, place
        assert "LICENSE" not in str(place)
        assert "passwd" not in str(place)


def test_other_hosts_and_other_pages_are_refused(page: Served) -> None:
    body, own = encoded(IMAGE), f"127.0.0.1:{page.port}"
    for host in ("evil.example", f"evil.example:{page.port}", "127.0.0.1.evil.example", "10.0.0.1",
                 "", "[::1", "0.0.0.0", "localhost.evil.example"):  # fmt: skip
        for method, path in (("GET", "/"), ("GET", "/facts"), ("POST", "/segment")):
            status, _, content = page.ask(method, path, body, {"Host": host})
            assert status == 403, host
            assert "does not answer requests to the host" in json.loads(content)["error"]
    for host in ("localhost", f"localhost:{page.port}", "127.0.0.1", "[::1]:80", "LocalHost"):
        assert page.ask("GET", "/", None, {"Host": host})[0] == 200
    for headers in (
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": f"http://127.0.0.1:{page.port + 1}"},
        {"Origin": f"http://localhost:{page.port}"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": f"http://{own}"},
    ):
        status, _, content = page.ask("POST", "/segment", body, {"Host": own, **headers})
        assert status == 403, headers
        assert "from the page of this server alone" in json.loads(content)["error"]
    for headers in ({"Origin": f"http://{own}"}, {"Sec-Fetch-Site": "same-origin"}, {}):
        assert page.ask("POST", "/segment", body, {"Host": own, **headers})[0] == 200
    with raw(page, b"GET / HTTP/1.0\r\n\r\n") as connection:  # without a host
        assert connection.recv(100).startswith(b"HTTP/1.1 403")


def test_every_answer_forbids_what_the_page_does_not_need(page: Served) -> None:
    for method, path, host in (("GET", "/", "127.0.0.1"), ("GET", "/x", "localhost"),
                               ("POST", "/segment", "localhost"), ("GET", "/", "a.b")):  # fmt: skip
        _, headers, _ = page.ask(method, path, b"", {"Host": host})
        policy = headers["content-security-policy"]
        assert policy.startswith("default-src 'none'; script-src 'sha256-")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["x-frame-options"] == "DENY"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
        assert "server" not in headers
        assert "access-control-allow-origin" not in headers
    text = page.ask("GET", "/")[2].decode()
    assert "//" not in text.replace("// ", "")  # no address of another server
    assert "innerHTML" not in text


def test_names_and_numeric_addresses_are_answered_on_a_network(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "Desk")
    assert own_names("0.0.0.0", False) == {"localhost", "0.0.0.0", "desk", "desk.local"}
    with served(page.trial, "0.0.0.0") as open_page:
        for host in ("192.168.1.7:80", "[fe80::1]", "desk", "DESK.local:8000", "localhost"):
            assert open_page.ask("GET", "/", None, {"Host": host})[0] == 200, host
        for host in ("evil.example", "desk.evil.example"):
            assert open_page.ask("GET", "/", None, {"Host": host})[0] == 403, host


def test_the_printed_lines_say_where_the_page_is_and_who_can_use_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(socket, "gethostname", lambda: "desk")
    warning = "anyone on the network can use the page, and there is no password"
    for host, address in {"127.0.0.1": "127.0.0.1", "localhost": "localhost"}.items():
        with verb.listening(host, 0) as taken:
            port = taken.getsockname()[1]
            line = f"the page is at http://{address}:{port}, and Ctrl-C ends it"
            assert verb.notice(host, taken) == line
    with verb.listening("0.0.0.0", 0) as taken:
        text = verb.notice("0.0.0.0", taken)
        assert text.startswith("the page is at http://desk:")
        assert text.endswith(f"note: 0.0.0.0 is not this machine alone: {warning}")


def test_images_are_segmented_one_at_a_time_while_the_page_answers(
    page: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    running, most, go = [], [], threading.Event()

    def slow(data: bytes, name: str) -> dict[str, Any]:
        running.append(name)
        most.append(len(running))
        assert go.wait(30)
        running.remove(name)
        return {"name": name}

    monkeypatch.setattr(page.trial, "answer", slow)
    answers: list[Any] = []
    threads = [
        threading.Thread(target=lambda name=name: answers.append(page.send(b"x", name)))
        for name in "abc"
    ]
    for thread in threads:
        thread.start()
    wait_for(lambda: len(running) == 1)
    assert page.ask("GET", "/facts")[0] == 200
    assert page.ask("GET", "/")[0] == 200
    assert answers == []
    go.set()
    for thread in threads:
        thread.join(30)
    assert sorted(answer["name"] for _, answer in answers) == ["a", "b", "c"]
    assert most == [1, 1, 1]


def test_mistakes_of_the_command_are_one_sentence(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    best = checkpoint_in(runs[0])
    content = torch.load(best, weights_only=True)
    for name in ("Jigsaw", "Colorization", "MixMatch"):
        arguments = {"_class_path": f"lightning_seg.{name}Module"}
        torch.save({**content, "hyper_parameters": arguments}, tmp_path / f"{name}.ckpt")
    arguments = content["hyper_parameters"]
    names = ["a", *arguments["class_names"][1:]]
    torch.save({**content, "hyper_parameters": {**arguments, "class_names": names},
                "class_names": names}, tmp_path / "classes.ckpt")  # fmt: skip
    (tmp_path / "empty").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        for words, message in {
            ("--ckpt_path", tmp_path / "Jigsaw.ckpt"): "JigsawModule, which trains an encoder",
            ("--ckpt_path", tmp_path / "Colorization.ckpt"): "ColorizationModule, which trains",
            ("--ckpt_path", tmp_path / "MixMatch.ckpt"): "MixMatchModule, which trains an encoder",
            ("--ckpt_path", tmp_path / "no.ckpt"): r"no.ckpt does not exist \(option: ckpt_path=\)",
            ("--ckpt_path", tmp_path / "empty"): "there is no checkpoint in .*empty",
            ("--ckpt_path", best, "--against", tmp_path / "empty"): r"in .*empty \(option: against",
            ("--ckpt_path", best, "--against", tmp_path / "no.ckpt"): r"exist \(option: against=\)",
            ("--ckpt_path", best, "--against", tmp_path / "classes.ckpt"):
                r"have different classes, so their masks cannot be compared: only .*step=1.ckpt "
                r"has sky and only .*classes.ckpt has a \(option: against=\)",
            ("--ckpt_path", best, "--inference.window", 8): "8x8 pixels is smaller than the stride",
            ("--ckpt_path", best, "--inference.window", 0): "window must be at least 1, not 0",
            ("--ckpt_path", best, "--inference.overlap", 1): r"overlap must be in \[0, 1\), not 1",
            ("--ckpt_path", best, "--port", port): rf"port {port} of 127.0.0.1 cannot be taken: ",
            ("--ckpt_path", best, "--port", 70_000): r"port must be in \[0, 65535\], not 70000",
            ("--ckpt_path", best, "--host", "no such"): r"no such.* \(option: host=\)",
            ("--ckpt_path", best, "--host", "192.0.2.1"): "of 192.0.2.1 cannot be taken: ",
            ("--ckpt_path", best, "--device", "tpu9"): r"the device tpu9 cannot be used: ",
            ("--ckpt_path", best, "--device", "cuda:77"): r"the device cuda:77 cannot be used: ",
            ("--ckpt_path", best, "--max_megabytes", 0): "max_megabytes must be at least 0.001",
            ("--ckpt_path", best, "--max_pixels", 0): "max_pixels must be at least 1, not 0",
            ("--ckpt_path", best, "--image_range", "[5,5]"): "image_range must be black < white",
        }.items():  # fmt: skip
            with pytest.raises((SetupError, DataError), match=message) as error:
                cli.main(["app", *map(str, words)])
            assert "\n" not in str(error.value)
        monkeypatch.setattr(errors, "find_spec", lambda name: None if name == "fastapi" else True)
        with pytest.raises(
            SetupError, match=r"packages fastapi: pip install 'lightning-seg\[app\]"
        ):
            cli.main(["app", f"--ckpt_path={best}"])


def test_options_of_windows_are_those_of_the_predictor() -> None:
    given = vars(app_parser().parse_args(["--ckpt_path=a"]).inference)
    known = inspect.signature(Predictor).parameters
    assert given.keys() == known.keys()
    for name, default in given.items():
        assert default == (list(known[name].default) if name == "scales" else known[name].default)


def test_what_export_wrote_is_served_too(runs: list[Path], tmp_path: Path) -> None:
    for name in ("model.safetensors", "folder"):
        cli.main(["export", f"--ckpt_path={runs[0]}", f"--output={tmp_path / name}"])
        trial = trial_of(tmp_path / name, runs[0])
        assert trial.answer(encoded(IMAGE), "a.png")["differ"] == 0


def test_two_networks_of_other_channels_or_another_order_are_refused() -> None:
    modules = [
        CrossEntropyModule(nn.Conv2d(3, 2, 1), num_classes=2, class_names=["a", "b"]),
        CrossEntropyModule(nn.Conv2d(3, 2, 1), num_classes=2, class_names=["b", "a"]),
        CrossEntropyModule(
            nn.Conv2d(1, 2, 1), num_classes=2, class_names=["a", "b"], channels=1,
            image_mean=[0.5], image_std=[0.2],
        ),
    ]  # fmt: skip
    from lightning_seg.commands.app_trial import _require_same

    sides = [Side(name, module) for name, module in zip("xyz", modules, strict=True)]
    with pytest.raises(SetupError, match="compared: the classes have another order"):
        _require_same(sides[0], sides[1])
    with pytest.raises(SetupError, match="x takes images of 3 channels, and z of 1"):
        _require_same(sides[0], sides[2])


def test_ctrl_c_ends_the_command_with_zero_and_without_a_word(runs: list[Path]) -> None:
    command = [sys.executable, str(ROOT / "cli.py"), "app", f"--ckpt_path={runs[0]}", "--port=0"]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests/support'}"},
    )  # fmt: skip
    try:
        line = process.stdout.readline()
        address = line.partition(" at ")[2].partition(",")[0]
        request = urllib.request.Request(f"{address}/segment?name=a.png", data=encoded(IMAGE))
        with urllib.request.urlopen(request, timeout=60) as answer:
            found = json.load(answer)
        assert sum(found["results"][0]["pixels"]) == 75 * 98
        process.send_signal(signal.SIGINT)
        out, error = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, out, error) == (0, "", "")


def test_an_image_in_windows_ends_after_the_window_at_hand(runs: list[Path]) -> None:
    trial = trial_of(runs[0], window=32, overlap=0.0, batch_size=1)
    seen = []

    def count(network: nn.Module, given: Any) -> None:
        seen.append(1)
        trial.ending.set()

    with trial.sides[0].module.network.register_forward_pre_hook(count):
        with pytest.raises(SetupError, match="the server is ending"):
            trial.answer(encoded(IMAGE), "a.png")
        with pytest.raises(SetupError, match="the server is ending"):
            trial.answer(encoded(IMAGE), "b.png")
    assert len(seen) == 1


@pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")
def test_the_page_in_a_browser(page: Served, tmp_path: Path) -> None:
    long = CrossEntropyModule(
        nn.Conv2d(3, 2, 1), num_classes=2, class_names=["n" * 300, "<i>m</i>" * 40]
    ).eval()
    with served(trial_of(sides=[Side("x" * 200, long)] * 2)) as named:
        _in_a_browser(page, named, tmp_path)


def _in_a_browser(page: Served, named: Served, tmp_path: Path) -> None:
    photo, other, wrong = tmp_path / "photo.png", tmp_path / "other.png", tmp_path / "<b>x.jpg"
    Image.fromarray(IMAGE).save(photo)
    Image.fromarray(IMAGE[::-1].copy()).save(other)
    wrong.write_text("no image")
    _, answer = page.send(photo.read_bytes())
    first = [each["pixels"] for each in answer["results"]]
    ids = np.asarray(decoded(answer["results"][0]["ids"]))
    colors = np.array(SyntheticScenesDataModule().palette)
    stage = "document.querySelector('#stage')"
    done = "waiting === 0 && !document.querySelector('#result').hidden"
    cells = "[...document.querySelectorAll('#rows tr')].map(e => e.innerText.replace(/\\s+/g, ' '))"
    canvas = (
        "Array.from(document.querySelector('#stage canvas').getContext('2d')"
        ".getImageData(0, 0, 98, 75).data)"
    )

    async def work(browser: Page) -> None:
        # names that have no place for a line break, and images of a pixel and of a line
        for number, size in enumerate([(1, 1), (1, 20_000), (20_000, 1)]):
            Image.new("RGB", size).save(tmp_path / "a.png")
            await browser.open(named.address, 400)
            await browser.until("facts !== null")
            await browser.choose("#file", tmp_path / "a.png")
            await browser.until(done)
            assert await browser.evaluate("document.documentElement.scrollWidth") == 400
            place = f"{stage}.clientWidth >= 16 && {stage}.clientHeight >= 16"
            assert await browser.evaluate(place), number
        for width, dark in itertools.product((1280, 400), (False, True)):
            await browser.open(page.address, width, dark)
            await browser.until("facts !== null")
            assert await browser.evaluate("document.documentElement.scrollWidth") == width
            await browser.choose("#file", photo)
            await browser.until(done)
            assert await browser.evaluate("document.documentElement.scrollWidth") == width
            await browser.screenshot(tmp_path / "page.png")
            with Image.open(tmp_path / "page.png") as shot:
                assert (np.median(np.asarray(shot.convert("L"))) < 60) == dark
        rows = await browser.evaluate(cells)
        order = sorted(range(8), key=lambda index: (-first[0][index], -first[1][index]))
        names = SyntheticScenesDataModule().class_names
        shares = [[100 * each[index] / (75 * 98) for each in first] for index in order]
        wanted = [
            f"{names[index]} {a:.2f} % {first[0][index]:,} pixels"
            for index, (a, _) in zip(order, shares, strict=True)
            if first[0][index] > 1 and a >= 0.01
        ]
        assert [row[: len(text)] for row, text in zip(rows, wanted, strict=False)] == wanted
        # every pixel of the canvas has the colour of its class
        pixels = np.array(await browser.evaluate(canvas), np.uint8).reshape(75, 98, 4)
        assert np.array_equal(pixels[..., :3], colors[ids])
        assert (pixels[..., 3] == 255).all()
        await browser.evaluate("document.querySelector('#rows input').click()")
        pixels = np.array(await browser.evaluate(canvas), np.uint8).reshape(75, 98, 4)
        assert np.array_equal(pixels[..., 3] == 0, ids == order[0])
        await browser.evaluate("document.querySelector('#all').click()")
        for slider, change in (("opacity", "opacity"), ("cut", "--cut")):
            await browser.evaluate("document.querySelector('#file').focus()")
            for _ in range(40):  # sliders are reached by the tabulator key alone
                await browser.press("Tab", 9)
                if await browser.evaluate(f"document.activeElement.id === '{slider}'"):
                    break
            else:
                raise AssertionError(f"{slider} was not reached")
            await browser.press("ArrowRight", 39)
            style = "stage.style" if slider == "cut" else "canvases[0].style"
            value = await browser.evaluate(f"{style}.getPropertyValue('{change}')")
            assert value == {"cut": "51%", "opacity": "0.56"}[slider]
        # a mask that is downloaded is the one of the answer
        folder = str(tmp_path / "saved")
        await browser.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=folder)
        for letter, result in zip("AB", answer["results"], strict=True):
            saved = tmp_path / "saved" / f"photo_{letter}.png"
            await browser.evaluate(f"document.querySelector('[download=\"{saved.name}\"]').click()")
            for _ in range(100):
                if saved.is_file():
                    break
                await asyncio.sleep(0.05)
            assert saved.read_bytes() == base64.b64decode(result["mask"])
        # a file that is dropped
        await browser.evaluate(
            "const files = new DataTransfer(); files.items.add(new File(['words'], 'text.jpg'));"
            "document.dispatchEvent(new DragEvent('drop', {dataTransfer: files, cancelable: true}))"
        )
        problems = "document.querySelector('#problems').textContent"
        await browser.until(f"waiting === 0 && {problems}.startsWith('text.jpg cannot be read')")
        # several files, one of which is none
        await browser.choose("#file", wrong, other)
        await browser.until("waiting === 0 && shots.length === 2")
        found = await browser.evaluate(problems)
        assert found == "<b>x.jpg cannot be read as an image: no known format"
        assert await browser.evaluate("document.querySelector('#title').textContent") == "other.png"
        await browser.evaluate("document.querySelector('#shots button').click()")
        await browser.until("document.querySelector('#title').textContent === 'photo.png'")
        assert await browser.evaluate(cells) == rows
        assert {each for each in browser.requests if not each.startswith("blob:")} <= {
            f"{page.address}/", f"{page.address}/facts",
            *(f"{page.address}/segment?name={name}" for name in
              ("photo.png", "other.png", "%3Cb%3Ex.jpg", "text.jpg", "a.png")),
            *(f"{named.address}/{path}" for path in ("", "facts", "segment?name=a.png")),
        }  # fmt: skip
        # beside the refused file, and the pixels that this test reads from a canvas
        known = ("status of 422", "Multiple readback operations")
        odd = [each for each in browser.complaints if not any(word in each for word in known)]
        assert odd == []

    with_page(work)
