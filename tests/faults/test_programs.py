"""featcache inside programs: processes that fork after it, threads that use it at once, and settings that are theirs.

What is tested runs in a process of its own, which is ended after a while: a hang fails, and hangs nothing else.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from conftest import write_picture

PATIENCE = 240
"""Seconds after which a program hangs; on a loaded computer the slowest takes a quarter of that."""

TINTS = [(60, 180, 60), (70, 110, 220), (210, 180, 110), (200, 60, 60)]

BEGINNING = """
import json, os, sys, threading, warnings
from pathlib import Path
import featcache
from featcache import FeatureExtractor, Options, Training

here, weights = Path.cwd(), Path("scratch.pth")

def options(cache="cache", engine="torch"):
    return Options("scratch-cnn", weights, here / cache, engine=engine)

def pictures(name):
    return sorted(str(path) for path in (here / name).glob("*/*.png"))

def extract(name, cache="cache", engine="torch"):
    summary = featcache.extract(here / name, options(cache, engine))
    return [summary.dataset, summary.found, summary.unreadable]

def load(name, cache="cache"):
    return featcache.load_features(here / name, options=options(cache)).X.sum(axis=1).tolist()

def fit(name, cache="cache", **kwargs):
    found = featcache.fit(here / name, options=options(cache), **kwargs)
    return [found.dataset, found.accuracy, found.log_loss]

def compare(name, cache="cache"):
    heads = ("logreg", "mlp", "svm-rbf")
    found = featcache.compare(here / name, heads, n_seeds=1, options=options(cache))
    return [[row.head, row.accuracy, row.log_loss] for row in found.rows if row.head in heads]

def audit(name, cache="cache"):
    found = featcache.audit(here / name, options=Options(cache=here / cache))
    return [found.dataset, [str(row) for row in found.rows]]

def neighbors(name, cache="cache"):
    found = featcache.neighbors(pictures(name)[0], 3, here / name, options(cache))
    return [[row.path, row.similarity] for row in found.rows]

def finetune(name, cache="cache"):
    extract(name, cache)
    training = Training(unfreeze="last", epochs=2, batch_size=8, dropout=0.5)
    found = featcache.finetune(here / name, training, options=Options(cache=here / cache))
    return [found.dataset, found.log_loss, [row.train_loss for row in found.history]]

def transform(name, cache="cache"):
    extractor = FeatureExtractor("scratch-cnn", weights, here / cache)
    return extractor.fit_transform(pictures(name)).sum(axis=1).tolist()

def report(name, cache="cache"):
    heads = ("logreg", "centroid")
    found = featcache.report(here / name, here / f"{name}.html", heads=heads, options=Options(cache=here / cache))
    return Path(found.out).name
"""

Program = Callable[..., Any]


@pytest.fixture(scope="module")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with datasets and the weights of a small network."""
    import torch

    from featcache.backbones import scratch_cnn

    folder = tmp_path_factory.mktemp("programs")
    torch.save(scratch_cnn.network(7).state_dict(), folder / "scratch.pth")
    for at, name in enumerate(("one", "two", "three")):
        for label in range(2 + at):  # of other numbers of classes, so that answers cannot be taken for each other's
            for number in range(12):
                write_picture(
                    folder / name / f"{label}" / f"{number}.png", 1000 * at + 100 * label + number, TINTS[label]
                )
    return folder


@pytest.fixture
def program(programs: Path, tmp_path: Path) -> Program:
    """Run a program after the BEGINNING, with the threads that it has by itself, and return what it printed as JSON."""
    for path in programs.iterdir():
        (tmp_path / path.name).symlink_to(path)

    def run(text: str, *args: str) -> Any:
        environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
        command = [sys.executable, "-c", BEGINNING + text, *args]
        environment |= {"OMP_NUM_THREADS": "2", "PYTHONFAULTHANDLER": "1"}
        try:
            done = subprocess.run(
                command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
        except subprocess.TimeoutExpired:
            pytest.fail(f"it hung for {PATIENCE} seconds")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return run


FORKED = """
def in_a_child(work, *args):
    out, into = os.pipe()
    child = os.fork()
    if not child:
        try:
            said = work(*args)
        except Exception as error:
            said = [type(error).__name__, str(error)]
        os.write(into, json.dumps(said).encode())
        os._exit(0)
    os.close(into)
    said = os.fdopen(out).read()
    os.waitpid(child, 0)
    return json.loads(said)
"""


@pytest.mark.slow
@pytest.mark.parametrize("engine", [pytest.param("torch", marks=pytest.mark.soak), "onnx"])
def test_a_process_forked_after_an_extraction_computes_what_its_parent_does(program: Program, engine: str) -> None:
    alone, forked = program(
        FORKED
        + """
engine = sys.argv[1]
extract("one", engine=engine)
extract("one", "alone", engine)
work = [(extract, "two"), (load, "two"), (transform, "three"), (fit, "one"), (neighbors, "one"), (finetune, "two")]
forked = [in_a_child(function, name, "cache") for function, name in work]
forked.append(in_a_child(lambda: fit("one", out_of_core=True)))
alone = [function(name, "alone") for function, name in work] + [fit("one", "alone", out_of_core=True)]
print(json.dumps([alone, forked]))
""",
        engine,
    )
    assert forked == alone


@pytest.mark.soak
def test_the_start_methods_and_an_extractor_that_was_fitted_before(program: Program) -> None:
    expected, fork, spawn = program(
        """
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context

extractor = FeatureExtractor("scratch-cnn", weights, here / "cache").fit(pictures("one"))
found = []
for method in ("fork", "spawn"):
    with ProcessPoolExecutor(2, get_context(method)) as pool:
        found.append([rows.tolist() for rows in pool.map(extractor.transform, [pictures("two"), pictures("three")])])
    __import__("shutil").rmtree("cache/segments")
expected = [extractor.transform(pictures(name)).tolist() for name in ("two", "three")]
print(json.dumps([expected, *found]))
"""
    )
    assert fork == expected
    assert spawn == expected


@pytest.mark.slow
def test_a_process_that_was_forked_while_featcache_was_at_work_is_told_so_at_once(program: Program) -> None:
    kind, said = program(
        FORKED
        + """
said = []
def fork_once(stage, done, total):
    if not said:
        said.append(in_a_child(fit, "one"))
featcache.extract(here / "one", options(), fork_once)
print(json.dumps(said[0]))
"""
    )
    assert kind == "ForkedError"
    assert "featcache.fit" in said
    assert "'spawn'" in said


THREADS = """
def at_once(tasks):
    found, start = {}, threading.Barrier(len(tasks))
    def run(key, function, *args):
        start.wait()
        try:
            found[key] = function(*args)
        except Exception as error:
            found[key] = f"{type(error).__name__}: {error}"
    threads = [threading.Thread(target=run, args=(at, *task)) for at, task in enumerate(tasks)]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    return [found[at] for at in range(len(tasks))]
"""


@pytest.mark.slow
@pytest.mark.parametrize("caches", ["one cache", pytest.param("three caches", marks=pytest.mark.soak)])
def test_threads_get_the_answers_that_each_would_get_alone(program: Program, caches: str) -> None:
    alone, together, filters = program(
        THREADS
        + """
names = ["one", "two", "three"]
cache_of = lambda name: "cache" if sys.argv[1] == "one cache" else f"cache-{name}"
before = list(warnings.filters)
together = at_once([(extract, name, cache_of(name)) for name in names] * 2)
for function in (fit, compare, audit, neighbors, load, transform, finetune, report):
    together += at_once([(function, name, cache_of(name)) for name in names])
mixed = (fit, audit, compare, finetune)
together += at_once([(function, name, cache_of(name)) for function in mixed for name in names])
left = [entry for entry in warnings.filters if "featcache" in str(entry)]
filters = not left and all(entry in warnings.filters for entry in before)
alone = [extract(name, f"alone-{name}") for name in names] * 2
for function in (fit, compare, audit, neighbors, load, transform, finetune, report):
    alone += [function(name, f"alone-{name}") for name in names]
alone += [function(name, f"alone-{name}") for function in mixed for name in names]
print(json.dumps([alone, together, filters]))
""",
        caches,
    )
    assert together == alone
    assert filters


@pytest.mark.soak
def test_networks_are_exported_while_other_threads_compute(program: Program) -> None:
    alone, together, printed = program(
        THREADS
        + """
import contextlib, io
names = ["one", "two", "three"]
said = io.StringIO()
def chat():
    for _ in range(200):
        print("still here")
        threading.Event().wait(0.01)
with contextlib.redirect_stdout(said):
    tasks = [(extract, "one", "a", "onnx"), (extract, "one", "b", "onnx"), (extract, "two", "a", "onnx")]
    tasks += [(extract, name, f"torch-{name}") for name in names] + [(finetune, "three", "c"), (chat,)]
    together = at_once(tasks)[:-1]
alone = [function(name, f"alone-{at}", *more) for at, (function, name, _, *more) in enumerate(tasks[:-1])]
print(json.dumps([alone, together, said.getvalue().count("still here")]))
"""
    )
    assert together == alone
    assert printed == 200


SETTINGS = """
import locale, logging, multiprocessing, random, signal, socket, threadpoolctl
import numpy as np
import PIL.Image, PIL.ImageFile, sklearn, torch
# What these set as they are imported is theirs.
import scipy.sparse, torch._dynamo, torch._inductor.config, torch.onnx

def settings():
    mask = os.umask(0)
    os.umask(mask)
    loggers = {name: (logger.level, len(logger.handlers), logger.disabled, logger.propagate)
        for name, logger in logging.root.manager.loggerDict.items() if isinstance(logger, logging.Logger)
        and name.startswith("featcache")}
    return {
        "environment": dict(os.environ), "folder": os.getcwd(), "umask": mask,
        "signals": {str(number): str(signal.getsignal(number)) for number in signal.valid_signals()},
        "filters": [str(entry) for entry in warnings.filters], "show": str(warnings.showwarning),
        "root": [logging.root.level, len(logging.root.handlers), logging.root.manager.disable],
        "ours": [found for found in loggers.values() if found != (0, 0, False, True)],
        "torch": [torch.get_num_threads(), torch.get_num_interop_threads(), str(torch.get_default_dtype()),
            torch.is_grad_enabled(), torch.are_deterministic_algorithms_enabled(), torch.get_float32_matmul_precision(),
            torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.benchmark,
            torch.backends.cudnn.deterministic],
        "random": [torch.get_rng_state().sum().item(), hash(str(np.random.get_state())), hash(random.getstate())],
        "numpy": [str(np.geterr()), str(np.get_printoptions())],
        "sklearn": str(sklearn.get_config()),
        "threads": {found["filepath"]: found["num_threads"] for found in threadpoolctl.threadpool_info()},
        "streams": [id(sys.stdout), id(sys.stderr), id(sys.stdin), id(sys.excepthook), id(threading.excepthook)],
        "pillow": [PIL.Image.MAX_IMAGE_PIXELS, PIL.ImageFile.LOAD_TRUNCATED_IMAGES],
        "socket": socket.getdefaulttimeout(), "locale": locale.setlocale(locale.LC_ALL),
        "recursion": sys.getrecursionlimit(), "path": list(sys.path),
        "processes": multiprocessing.get_start_method(allow_none=True),
        "bars": [each.name for each in threading.enumerate() if "tqdm" in each.name],
    }

signal.signal(signal.SIGTERM, lambda *_: None)
random.seed(1); np.random.seed(2); torch.manual_seed(3)
warnings.filterwarnings("error", "nothing in particular")
changed = {}

def watch(name, function, *args, **kwargs):
    before = settings()
    found = function(*args, **kwargs)
    after = settings()
    # Libraries that were loaded in the meantime are new; those that were there before have what they had.
    after["threads"] = {path: count for path, count in after["threads"].items() if path in before["threads"]}
    changed[name] = {key: [before[key], after[key]] for key in before if before[key] != after[key]}
    return found

for function in (extract, load, fit, compare, audit, neighbors, transform, finetune, report):
    watch(function.__name__, function, "three")
cached = Options(cache=here / "cache")
model = featcache.fit(here / "three", options=options()).model
watch("onnx", extract, "two", "onnx", "onnx")
watch("int8", featcache.extract, here / "three", Options("scratch-cnn", weights, here / "int8", precision="int8"))
watch("predict", featcache.predict, model, pictures("three")[:2], options=cached)
watch("export_onnx", featcache.export_onnx, model, here / "out.onnx", options=cached)
watch("out of core", fit, "three", out_of_core=True)
watch("cache_info", featcache.cache_info, cached)
watch("cache_verify", featcache.cache_verify, options=cached)
changed["malloc"] = {"set for good": True} if featcache.process.keep_freed_memory.cache_info().misses else {}
print(json.dumps(changed))
"""


@pytest.mark.slow
def test_no_function_changes_a_setting_of_the_process(program: Program) -> None:
    changed = program(SETTINGS)
    assert changed == {name: {} for name in changed}
    assert len(changed) == 17


@pytest.mark.slow
def test_a_setting_that_threads_want_at_once_is_taken_back_by_the_last(program: Program) -> None:
    during, after = program(
        """
from threadpoolctl import threadpool_info, threadpool_limits
from featcache.heads.base import one_blas_thread
from featcache.process import filtering

def seen():
    return [[found["num_threads"] for found in threadpool_info() if found["user_api"] == "blas"], len(warnings.filters)]

with threadpool_limits(2, "blas"):
    quiet, before = filtering(("ignore", "", FutureWarning)), seen()
    first, second = threading.Event(), threading.Event()
    def one():
        with one_blas_thread, quiet:
            first.set()
            second.wait()
    thread = threading.Thread(target=one)
    thread.start()
    first.wait()
    with warnings.catch_warnings(), one_blas_thread, quiet:  # begun after the other, and ended after it
        second.set()
        thread.join()
        during = seen()
    print(json.dumps([[set(during[0]) == {1}, during[1] > before[1]], seen() == before]))
"""
    )
    assert during == [True, True]
    assert after


@pytest.mark.slow
@pytest.mark.parametrize("module", ["onnx_engine", "quantising"])
def test_onnx_runtime_keeps_no_number_of_the_device_and_tells_nobody(module: str, tmp_path: Path) -> None:
    """Before it sends anything it makes a folder for what it will send."""
    pytest.importorskip("onnxruntime")
    # it keeps quiet where it finds that tests are run
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "LD_LIBRARY_PATH", "TMPDIR")}
    environment |= {"HOME": str(tmp_path), "PYTHONPATH": os.pathsep.join(sys.path)}
    code = "import os\nimport {}\nassert 'ORT_DISABLE_TELEMETRY' not in os.environ\n"
    for name in ("onnxruntime", f"featcache.embed.{module}"):
        subprocess.run([sys.executable, "-c", code.format(name)], check=True, env=environment, timeout=120)
        made = [path for path in tmp_path.rglob("*") if "onnxruntime" in str(path)]
        if name == "onnxruntime" and not made:
            pytest.skip("this ONNX Runtime keeps none")
        assert bool(made) == (name == "onnxruntime"), made
        for path in reversed(made):
            path.rmdir() if path.is_dir() else path.unlink()
