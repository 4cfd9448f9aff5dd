from __future__ import annotations

import csv
import io
import json
import re
import subprocess
import sys
import time
import types
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner, Result

from pipeline import report, schema, warehouse, weights
from pipeline.cli import app as commands
from pipeline.cli import show
from pipeline.errors import DataError
from pipeline.pulse import Pulse
from pipeline.store import Store

PROJECT = {"name": "mine", "classes": {"Tree": {}}, "source": {"uri": "photos"}}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    for name in ("CVP_STORE", "CVP_SAMPLES", "CVP_WEIGHTS", "DAGSTER_HOME", "RAY_ADDRESS", "FORCE_COLOR"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CVP_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("CVP_PROJECTS", str(tmp_path / "projects"))
    monkeypatch.setenv("COLUMNS", "200")
    folder = tmp_path / "projects" / "mine"
    folder.mkdir(parents=True)
    folder.joinpath("project.yaml").write_text(yaml.safe_dump(PROJECT))
    show._console.cache_clear()
    yield tmp_path / "home"
    show._console.cache_clear()


def cvp(*arguments: str, stdin: str | None = None) -> Result:
    return CliRunner().invoke(commands.app, list(arguments), input=stdin)


@pytest.fixture
def store(home: Path) -> Store:
    made = Store(str(home / "store" / "mine"))
    rows = [
        {"class_name": "all", "slice": s, "option": o, "model": m, "metric": "AP50", "value": v, "low": v and v - 0.05,
         "high": v and v + 0.05, "support": 100, "certified_coverage": None, "seconds_per_1000": 120.0,
         "cost_per_1000_now": c, "cost_per_1000_at_1m": c, "recommended": o == "trained",
         "reason": "it is [better] by more than the interval"}
        for s in ("all", "dark")
        for o, m, v, c in (("trained", "fcos@1#a", 0.52, 0.004), ("labeller", "crowns@1#b", 0.27, 0.005),
                           ("people", "human", None, 800.0))
    ]  # fmt: skip
    made.write("verdict", schema.table("verdict").from_rows(rows))
    image = {
        "image_id": "i", "batch": "a", "uri": "/x.png", "file_name": "x.png", "parent_id": "i", "tile_x": 0,
        "tile_y": 0, "width": 4, "height": 4, "photo_width": 4, "photo_height": 4, "format": "PNG",
        "mode": "RGB", "orientation": 1, "bytes": 9, "location": "x", "attributes": [("site", "north, or 'so'")],
    }  # fmt: skip
    made.write("images", schema.table("images").from_rows([image]), "a")
    return made


# -- what a newcomer sees -------------------------------------------------------------------------


@pytest.mark.parametrize("command", [(), *[(c,) for c in ("demo", "run", "status", "sql", "report", "new", "doctor")]])
def test_help_reads_well(command: tuple[str, ...]) -> None:
    result = cvp(*command, "--help")
    assert result.exit_code == 0
    assert "Usage" in result.output


def test_help_imports_nothing_heavy() -> None:
    heavy = "torch torchvision ray dagster lancedb duckdb matplotlib cv2 sklearn pandas pyarrow numpy pydantic assets"
    code = (
        "import sys\nfrom pipeline.cli import main\nsys.argv = ['cvp', '--help']\n"
        "try:\n    main()\nexcept SystemExit as end:\n    assert end.code == 0\n"
        f"loaded = [m for m in {heavy.split()!r} if m in sys.modules]\nassert not loaded, loaded"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_version() -> None:
    result = cvp("--version")
    assert result.exit_code == 0
    assert result.output.startswith("cvp 2.")


# -- errors ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("sql", "mene", "SELECT 1"), 2, "did you mean 'mine'"),
        (("sql", "mine", "SELECT * FROM verdct"), 5, "did you mean 'verdict'"),
        (("sql", "mine", "SELECT 1", "--format", "jsno"), 2, "did you mean 'json'"),
        (("report", "mine"), 5, "cvp run mine"),
        (("new", "My Project"), 2, "lower-case"),
        (("new", "mine"), 2, "exists already"),
        (("samples", "pull", "tres"), 3, "did you mean 'trees'"),
        (("demo", "tres"), 3, "did you mean 'trees'"),
        (("models", "pull", "compat"), 4, "there is no checkpoint 'compat'"),
        (("models", "check"), 4, "cvp models pull"),
        (("slq", "mine"), 2, "No such command"),
    ],
)
def test_a_users_mistakes_are_explained(arguments: tuple[str, ...], code: int, said: str) -> None:
    result = cvp(*arguments)
    assert result.exit_code == code
    assert said in result.output
    assert "Traceback" not in result.output


def test_a_broken_project_file_is_explained(tmp_path: Path) -> None:
    path = tmp_path / "projects" / "mine" / "project.yaml"
    path.write_text(yaml.safe_dump(PROJECT | {"clases": {}}))
    result = cvp("sql", "mine", "SELECT 1")
    assert result.exit_code == 2
    assert "unknown key 'clases'" in result.output
    assert "did you mean 'classes'" in result.output


def failing(monkeypatch: pytest.MonkeyPatch, error: BaseException) -> None:
    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(warehouse, "query_store", fail)


def test_unexpected_errors_keep_their_trace_in_a_file(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    failing(monkeypatch, ZeroDivisionError("a [red] surprise"))
    result = cvp("sql", "mine", "SELECT 1")
    assert result.exit_code == 70
    assert "unexpected ZeroDivisionError: a [red] surprise" in result.output
    assert "Traceback" not in result.output
    (log,) = (home / "logs").iterdir()
    assert str(log) in result.output
    assert "Traceback" in log.read_text()
    assert isinstance(cvp("--debug", "sql", "mine", "SELECT 1").exception, ZeroDivisionError)


def test_interrupts_are_quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    failing(monkeypatch, KeyboardInterrupt())
    result = cvp("sql", "mine", "SELECT 1")
    assert result.exit_code == 130
    assert "finished work is kept" in result.output


# -- sql ------------------------------------------------------------------------------------------


def test_sql_formats_agree(store: Store, tmp_path: Path) -> None:
    query = "SELECT option, slice, value, recommended FROM verdict ORDER BY ALL"
    expected = warehouse.query_store(store, query).to_pylist()
    assert json.loads(cvp("sql", "mine", query, "-f", "json").stdout) == expected
    rows = list(csv.DictReader(io.StringIO(cvp("sql", "mine", query, "-f", "csv").stdout)))
    assert [r["option"] for r in rows] == [e["option"] for e in expected]
    assert [float(r["value"]) if r["value"] else None for r in rows] == [e["value"] for e in expected]
    out = tmp_path / "answer.parquet"
    assert cvp("sql", "mine", query, "-f", "parquet", "-o", str(out)).exit_code == 0
    assert pq.read_table(out).to_pylist() == expected
    assert pq.read_table(io.BytesIO(cvp("sql", "mine", query, "-f", "parquet").stdout_bytes)).to_pylist() == expected
    table = cvp("sql", "mine", query).stdout
    assert "labeller" in table and "6 rows" in table


def test_sql_writes_every_type(store: Store) -> None:
    query = (
        "SELECT attributes, [1, NULL] AS list, 'nan'::DOUBLE AS nan, sum(bytes) AS total, 1.5::DECIMAL(4, 2) AS price,"
        " TIMESTAMPTZ '2026-11-23 12:00:00+00' AS at, NULL AS none, '[red]<b>' AS text FROM images GROUP BY ALL"
    )
    (row,) = json.loads(cvp("sql", "mine", query, "-f", "json").stdout)
    assert row == {
        "attributes": {"site": "north, or 'so'"}, "list": [1, None], "nan": None, "total": 9, "price": 1.5,
        "at": "2026-11-23T12:00:00+00:00", "none": None, "text": "[red]<b>",
    }  # fmt: skip
    (line,) = csv.DictReader(io.StringIO(cvp("sql", "mine", query, "-f", "csv").stdout))
    assert json.loads(line["attributes"]) == {"site": "north, or 'so'"}
    table = cvp("sql", "mine", query).stdout
    assert "[red]<b>" in table and "north" in table


def test_sql_reads_stdin_and_lists_tables(store: Store) -> None:
    assert json.loads(cvp("sql", "mine", "-", "-f", "json", stdin="SELECT 7 AS a").stdout) == [{"a": 7}]
    names = json.loads(cvp("sql", "mine", "SHOW TABLES", "-f", "json").stdout)
    assert {n["name"] for n in names} >= set(schema.TABLES)


def test_long_answers_say_what_is_left_out(store: Store) -> None:
    output = cvp("sql", "mine", "SELECT * FROM range(1000)").stdout
    assert "1,000 rows, 800 of them not shown" in output


# -- running --------------------------------------------------------------------------------------


@dataclass
class Step:
    table: str
    batch: str | None = None
    done: int = 0
    total: int = 0
    seconds: float | None = None
    skipped: bool = False
    rows: int = 0


@dataclass
class Outcome:
    success: bool = True
    run_ids: list[str] = field(default_factory=list)
    executed: list[str] = field(default_factory=list)
    skipped: int = 0
    seconds: float = 1.0
    failure: str | None = None
    money: float = 0.25


def planned(**rows: tuple[float | None, float | None, float | None, float | None]) -> pa.Table:
    """What assets.launch.estimate returns."""
    names = "seconds", "low", "high", "money"
    fields = [pa.field("asset", pa.string()), pa.field("batches", pa.int64()), pa.field("images", pa.int64())]
    fields += [*(pa.field(n, pa.float64()) for n in names), pa.field("record", pa.string())]
    made = [
        {"asset": a, "batches": 2, "images": 1500, "record": "2 earlier" if v[0] is not None else "none"}
        | dict(zip(names, v, strict=True))
        for a, v in rows.items()
    ]
    return pa.Table.from_pylist(made, schema=pa.schema(fields))


@dataclass
class Launch:
    """Stands in for assets.launch, which needs Dagster and the whole graph."""

    result: Outcome
    steps: list[Step] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)

    plan: pa.Table = field(default_factory=lambda: planned(images=(90.0, 60.0, 240.0, 0.2), labels=(None,) * 4))

    def run(self, name: str, *, batches: Any, select: Any, epochs: float, on_plan: Any, on_event: Any) -> Outcome:
        self.asked.append({"name": name, "batches": batches, "select": select})
        on_plan(self.plan)
        for step in self.steps:
            on_event(step)
        return self.result

    def estimate(self, name: str, *, batches: Any, select: Any) -> pa.Table:
        self.asked.append({"name": name, "batches": batches, "select": select})
        return self.plan

    def status(self, name: str) -> pa.Table:
        rows = [
            {"asset": "images", "stage": "collection", "batch": b, "state": s, "rows": n, "written_at": w}
            for b, s, n, w in (("a", "fresh", 5, "2026-11-23T12:00"), ("b", "missing", None, None))
        ]
        return pa.Table.from_pylist(rows)


@pytest.fixture
def launch(monkeypatch: pytest.MonkeyPatch) -> Launch:
    fake = Launch(Outcome(executed=["images[a]"], skipped=3))
    module = types.ModuleType("assets.launch")
    module.run, module.status, module.estimate = fake.run, fake.status, fake.estimate  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "assets.launch", module)
    return fake


def test_run_passes_its_options_and_ends_in_the_verdict(store: Store, launch: Launch) -> None:
    launch.steps = [
        Step("images", "a"), Step("images", "a", 2, 4), Step("images", "a", 4, 4, seconds=0.5, rows=4),
        Step("verdict"), Step("verdict", seconds=0.1, rows=3), Step("labels", "[x]", seconds=0.0, skipped=True),
    ]  # fmt: skip
    result = cvp("run", "mine", "--batch", "a", "-b", "b")
    assert result.exit_code == 0
    assert launch.asked == [{"name": "mine", "batches": ["a", "b"], "select": None}]
    assert "images  a" in result.stderr and "4 rows" in result.stderr
    assert "labels" not in result.stderr
    assert "about 1.5 min (60.0 s to 4.0 min) and 0.2 USD, and 1 of which nothing is on record" in result.stderr
    assert "1 made in 1.0 s for 0.25 USD, 3 were up to date" in result.stderr
    for expected in ("fcos", "0.520 0.47–0.57", "→ ", "it is [better]", "800", "USD", "dark", "make ui"):
        assert expected in result.stdout, expected


def test_a_selection_does_not_print_the_verdict(store: Store, launch: Launch) -> None:
    result = cvp("run", "mine", "--select", "labels+")
    assert launch.asked == [{"name": "mine", "batches": None, "select": "labels+"}]
    assert result.stdout == ""


def test_an_estimate_runs_nothing(store: Store, launch: Launch) -> None:
    result = cvp("run", "mine", "--estimate", "--select", "labels+")
    assert launch.asked == [{"name": "mine", "batches": None, "select": "labels+"}]
    for expected in ("1,500", "1.5 min", "4.0 min", "0.20", "2 earlier", "–", "nothing is on record"):
        assert expected in result.stdout, expected
    launch.plan = planned(labels=(None,) * 4)
    assert "no such work is on record yet" in cvp("run", "mine", "--estimate").stdout
    launch.plan = planned()
    assert "everything is up to date" in cvp("run", "mine", "--estimate").stderr


def test_nothing_to_do_is_said(store: Store, launch: Launch) -> None:
    launch.result = Outcome(skipped=31)
    assert "everything is up to date (31 tables" in cvp("run", "mine").stderr


def test_a_failed_run_says_why_and_exits_with_1(launch: Launch) -> None:
    launch.result = Outcome(success=False, failure="no photos in /x\n  -> put some there")
    result = cvp("run", "mine")
    assert result.exit_code == 1
    assert "no photos in /x" in result.stderr and "put some there" in result.stderr


def test_errors_before_the_run_keep_their_exit_code(launch: Launch, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise DataError("bad photos", "mend them")

    monkeypatch.setattr(sys.modules["assets.launch"], "run", fail)
    assert cvp("run", "mine").exit_code == 3


def test_status_tells_workers_queue_memory_and_where(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    work = Pulse("masks", "a", "node-3", 71, began=now - 10, seen=now, done=30, total=130, memory=2048.4)
    shared = replace(
        work, mode="ray://head:10001", workers=4, busy=3, waiting=7, lost=1, nodes={"a (1)": 1, "b (2)": 3}
    )
    monkeypatch.setenv("COLUMNS", "240")
    show.running([shared, replace(work, batch="b")], pa.table({"seconds": pa.array([], pa.float64())}))
    first, second = (line for line in capsys.readouterr().out.splitlines() if "masks" in line)
    assert re.search(
        r"30 of 130 .* 7 +2,048 +3 of 4 busy, ray://head:10001, 1 lost: 3 on b \(2\), 1 on a \(1\) +node-3 71 ", first
    ), first
    assert re.search(r"30 of 130 .* s +2,048 +node-3 71 ", second), second


def test_status_counts_states(launch: Launch) -> None:
    assert "1 fresh, 1 missing" in cvp("status", "mine").stdout
    lines = cvp("status", "mine", "--batches").stdout.splitlines()
    assert any("images" in x and " a " in x and "fresh" in x and "2026-11-23 12:00" in x for x in lines)


def test_demo_prints_everything_to_go_on_with(
    store: Store, launch: Launch, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from pipeline import samples

    folder = tmp_path / "projects" / "trees"
    folder.mkdir()
    folder.joinpath("project.yaml").write_text(
        yaml.safe_dump(PROJECT | {"name": "trees", "source": {"uri": "samples://trees"}})
    )
    pulled: list[str] = []
    monkeypatch.setattr(weights, "pull", lambda item, say, progress: pulled.append(item.name))
    monkeypatch.setattr(samples, "pull", lambda name, say: pulled.append(name))
    Path(store.root).rename(Path(store.root).with_name("trees"))
    trees = Store(str(Path(store.root).with_name("trees")))
    database = warehouse.build(trees)
    page = report.location(trees)
    page.write_text("")
    monkeypatch.chdir(tmp_path)
    result = cvp("demo")
    assert result.exit_code == 0, result.output
    assert pulled == [*(c.name for c in weights.profile_checkpoints("compact")), "trees"]
    assert launch.asked[0]["name"] == "trees"
    for expected in (str(page.relative_to(tmp_path)), str(database.relative_to(tmp_path)), "make ui", "→ "):
        assert expected in result.stdout
    asked = [line.strip() for line in result.stdout.splitlines() if line.strip().startswith("cvp sql trees")]
    assert len(asked) == 3
    for line in asked:
        assert cvp("sql", "trees", line.split('"')[1]).exit_code == 0
    (code,) = [x.split('"')[1] for x in result.stdout.splitlines() if x.strip().startswith("python -c")]
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert "trained" in answer.stdout


# -- setting up -----------------------------------------------------------------------------------


def test_new_prints_or_writes(tmp_path: Path) -> None:
    printed = cvp("new", "roses", "--class", "rose", "--source", "s3://bucket/x", "--print")
    assert yaml.safe_load(printed.stdout)["classes"] == {"rose": {"prompts": ["rose"], "aliases": []}}
    assert not (tmp_path / "projects" / "roses").exists()
    written = cvp("new", "roses", "--class", "rose", "--source", "s3://bucket/x")
    assert written.exit_code == 0
    assert (tmp_path / "projects" / "roses" / "project.yaml").read_text() == printed.stdout


def test_report_is_rendered_where_it_is_missing(store: Store) -> None:
    result = cvp("report", "mine")
    assert result.exit_code == 0
    path = Path(result.stdout.strip())
    assert path == report.location(store)
    first = path.read_text()
    path.write_text("kept")
    cvp("report", "mine")
    assert path.read_text() == "kept"
    cvp("report", "mine", "--render")
    assert path.read_text() == first


def test_models_list_tells_what_is_here(tmp_path: Path) -> None:
    listed = cvp("models", "list").stdout
    assert all(name in listed for name in weights.CHECKPOINTS)
    assert "yes" not in listed and "Apache-2.0" in listed and "694.0 MB" in listed
    assert weights.CHECKPOINTS["sam_vit_h"].sha256[:12] in listed
    own = tmp_path / "own.pth"
    own.write_bytes(b"weights")
    assert cvp("models", "pull", own.as_uri()).exit_code == 0
    (row,) = [line for line in cvp("models", "list").stdout.splitlines() if "own.pth" in line[:12]]
    assert "yes" in row and f"{weights.file_sha256(own)[:12]}~" in row


def test_models_pull_takes_carried_files_and_names_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = b"weights"
    item = weights.Checkpoint(
        "net", "small", "encoder", "https://x.example/net.pth", sha256(data).hexdigest(), 7, "MIT"
    )
    other = weights.Checkpoint("other", "small", "encoder", "https://x.example/other.pth", "", 0, "MIT")
    monkeypatch.setitem(weights.CHECKPOINTS, "net", item)
    monkeypatch.setitem(weights.CHECKPOINTS, "other", other)
    (tmp_path / "stick").mkdir()
    (tmp_path / "stick" / "renamed.pth").write_bytes(data)
    result = cvp("models", "pull", "small", "--from", str(tmp_path / "stick"))
    assert result.exit_code == 4 and "does not hold other" in result.output
    assert weights.resolve("net").read_bytes() == data
    (tmp_path / "stick" / "other.pth").write_bytes(b"pinned now")
    assert cvp("models", "pull", "small", "--from", str(tmp_path / "stick")).exit_code == 0
    assert cvp("models", "check", "small").exit_code == 0
    weights.resolve("other").write_bytes(b"damaged")
    assert cvp("models", "check", "small").exit_code == 4


def test_models_pull_knows_projects(monkeypatch: pytest.MonkeyPatch) -> None:
    pulled: list[str] = []
    monkeypatch.setattr(weights, "pull", lambda item, say, progress: pulled.append(item.name))
    assert cvp("models", "pull", "mine", "sam_vit_b", "-q").exit_code == 0
    assert pulled == [*(c.name for c in weights.profile_checkpoints("compact")), "sam_vit_b"]
    assert "did you mean" in cvp("models", "pull", "sam_vit_bb").output


def test_models_check_hashes_files(monkeypatch: pytest.MonkeyPatch) -> None:
    for item in weights.profile_checkpoints("compact"):
        path = weights.location(item)
        path.parent.mkdir(parents=True)
        path.write_bytes(b"not these weights")
    result = cvp("models", "check")
    assert result.exit_code == 4
    assert "u2netp" in result.output
    monkeypatch.setattr(weights, "is_intact", lambda item: True)
    assert cvp("models", "check").exit_code == 0


def test_samples_list_names_all() -> None:
    from pipeline.samples import SAMPLES

    listed = cvp("samples", "list").stdout
    assert all(name in listed for name in SAMPLES)


# -- doctor ---------------------------------------------------------------------------------------


def test_doctor_names_what_is_missing_and_what_to_do() -> None:
    result = cvp("doctor")
    assert result.exit_code == 1  # the project needs weights that are not in this home
    assert "cvp models pull compact" in result.stdout
    assert "store" in result.stdout and "can be written" in result.stdout


def test_doctor_is_content_when_all_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weights, "is_intact", lambda item: True)
    monkeypatch.setattr(weights, "location", lambda item: Path(__file__))
    result = cvp("doctor")
    assert result.exit_code == 0, result.stdout
    assert "everything that is needed is there" in result.stdout


def test_doctor_finds_what_is_broken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from pipeline import doctor

    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CVP_STORE", str(tmp_path / "file" / "store"))
    monkeypatch.setenv("DAGSTER_HOME", "relative/path")
    project = PROJECT | {"compute": "ray://127.0.0.1:9"}
    (tmp_path / "projects" / "mine" / "project.yaml").write_text(yaml.safe_dump(project))
    (tmp_path / "projects" / "torn").mkdir()
    (tmp_path / "projects" / "torn" / "project.yaml").write_text("name: [")
    found = {f.subject: f for f in doctor.examine()}
    for subject in ("store", "DAGSTER_HOME", "ray", "project torn", "weights, compact"):
        assert found[subject].state == "broken", subject
        assert found[subject].remedy
    assert found["python"].state == "ok"


def test_doctor_reaches_a_cluster_that_listens(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    import socket

    from pipeline import doctor

    with socket.create_server(("127.0.0.1", 0)) as server:
        project = PROJECT | {"compute": f"ray://127.0.0.1:{server.getsockname()[1]}"}
        (tmp_path / "projects" / "mine" / "project.yaml").write_text(yaml.safe_dump(project))
        found = {f.subject: f for f in doctor.examine()}
    assert found["ray"].state == "ok"
