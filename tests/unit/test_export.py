"""What leaves a training: model cards, adapters and their merged form, the Hub, one training alone, loggers."""

from __future__ import annotations

import base64
import json
import struct
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from rich.console import Console
from typer.testing import CliRunner

from spftsql.cli import app
from spftsql.config import LoraConfig
from spftsql.errors import UserError
from spftsql.progress import Reporter
from spftsql.training.artefact import read_manifest
from spftsql.training.card import Accuracy, write_card
from spftsql.training.command import Finetuning, finetune
from spftsql.training.export import export
from spftsql.training.local import train_local
from spftsql.training.loggers import check_loggers
from tests import trainings

LORA = LoraConfig(rank=4, alpha=8)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return trainings.base_model(tmp_path_factory.mktemp("export"))


@pytest.fixture(scope="module")
def adapter(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("adapter")
    job = trainings.job_of(base, folder, 4, details={"prompt_hash": "abc", "verdicts": {"equal": 7, "different": 2}})
    train_local([job], trainings.config_of(lora=LORA), folder / "metrics.jsonl", lambda *_: None)
    return job.output


def logits(model: Any) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.arange(5, 25)[None]).logits


def test_an_adapter_is_loaded_by_peft_and_transformers_and_merges_into_the_same_model(
    adapter: Path, base: Path, tmp_path: Path
) -> None:
    from peft import AutoPeftModelForCausalLM
    from transformers import AutoModelForCausalLM, AutoTokenizer

    files = {path.name for path in adapter.iterdir()}
    assert {"adapter_model.safetensors", "adapter_config.json", "tokenizer.json", "README.md"} <= files
    assert {"chat_template.jinja", "generation_config.json"} & files and "model.safetensors" not in files
    assert sum(path.stat().st_size for path in adapter.glob("*.safetensors")) < 40_000
    expected = logits(AutoPeftModelForCausalLM.from_pretrained(adapter))
    assert not torch.allclose(expected, logits(AutoModelForCausalLM.from_pretrained(base)), atol=1e-3)
    torch.testing.assert_close(logits(AutoModelForCausalLM.from_pretrained(adapter)), expected)
    out = export(str(adapter), True, tmp_path / "merged", None, lambda text: None)
    assert out == tmp_path / "merged"
    merged = AutoModelForCausalLM.from_pretrained(out)
    torch.testing.assert_close(logits(merged), expected, atol=1e-5, rtol=1e-4)
    assert not any(path.name.startswith("adapter") for path in out.iterdir())
    assert (out / "tokenizer.json").read_bytes() == (base / "tokenizer.json").read_bytes()
    assert AutoTokenizer.from_pretrained(out).chat_template
    assert "library_name: transformers" in (out / "README.md").read_text()
    with pytest.raises(UserError, match="is there already"):
        export(str(adapter), True, out, None, lambda text: None)


def test_a_training_goes_on_with_an_adapter(adapter: Path, base: Path, tmp_path: Path) -> None:
    """From an adapter: with adapters it is the same one, trained further; its log-probabilities are the reference's."""
    config = trainings.config_of(lora=LORA)
    job = trainings.job_of(adapter, tmp_path, 3, mode="spft-a")
    train_local([job], config, tmp_path / "metrics.jsonl", lambda *_: None)
    first = trainings.lines(tmp_path / "metrics.jsonl")[0]
    assert first["margin"] == pytest.approx(0, abs=1e-5)  # π is the adapter that ρ is
    settings = json.loads((job.output / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str(base)
    whole = trainings.job_of(adapter, tmp_path / "whole", 3)
    train_local([whole], trainings.config_of(), tmp_path / "whole.jsonl", lambda *_: None)
    assert (whole.output / "model.safetensors").is_file()
    other = trainings.job_of(adapter, tmp_path / "other", 3)
    with pytest.raises(UserError, match=r"rank 4 and alpha 8, and training\.lora asks for 2 and 8"):
        train_local([other], trainings.config_of(lora=LoraConfig(rank=2, alpha=8)), tmp_path / "m", lambda *_: None)


def test_the_card_says_what_is_known(adapter: Path, tmp_path: Path) -> None:
    text = (adapter / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: peft\n")
    assert "- label: 8 rows" in text and "LoRA of rank 4, 4 steps of 8 rows" in text
    assert "`abc`" in text and "different 2, equal 7" in text
    assert "Not measured yet." in text and str(adapter.parent) not in text
    out = export(str(adapter), False, tmp_path / "copy", None, lambda text: None)
    assert out is not None
    write_card(out, Accuracy("Test questions", 87, 100, 0.79, 0.92, {"equal": 87, "error": 13}))
    text = (out / "README.md").read_text()
    assert "Test questions: 0.870 (87 of 100; 95 % interval 0.790 to 0.920). Verdicts: equal 87, error 13." in text


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub as an upload needs; keeps what it gets."""

    created: ClassVar[list[dict[str, Any]]] = []
    files: ClassVar[dict[str, bytes]] = {}
    refuse = False

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        assert self.headers["Authorization"] == "Bearer hf_test"
        if self.refuse:
            return self.answer(403, {"error": "not yours"})
        if self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            return self.answer(200, {"url": f"http://{self.headers['Host']}/team/model", "name": "team/model"})
        if self.path.startswith("/api/models/team/model/preupload/"):
            files = [
                {"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in json.loads(body)["files"]
            ]
            return self.answer(200, {"files": files})
        if self.path.startswith("/api/models/team/model/commit/"):
            for line in body.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            return self.answer(
                200,
                {
                    "success": True,
                    "commitOid": "0" * 40,
                    "commitUrl": f"http://{self.headers['Host']}/team/model/commit/0",
                },
            )
        return self.answer(200, {})

    def do_GET(self) -> None:
        self.answer(200, {"id": "team/model", "sha": "0" * 40, "siblings": []})

    def answer(self, status: int, value: Any) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    Hub.created, Hub.files, Hub.refuse = [], {}, False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()


PUSH = "import sys; from spftsql.cli import main; sys.argv[0] = 'spftsql'; main()"


def push(hub: str, *arguments: str) -> Any:
    import os
    import subprocess

    environment = {**os.environ, "HF_ENDPOINT": hub, "HF_TOKEN": "hf_test", "HF_HUB_OFFLINE": "0"}
    environment |= {"HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_PROGRESS_BARS": "1"}
    command = [sys.executable, "-c", PUSH, "export", *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


@pytest.mark.long  # processes of their own, because the client reads its settings when it is imported
def test_a_model_is_pushed_to_a_private_repository(adapter: Path, hub: str) -> None:
    done = push(hub, str(adapter), "--merge", "--push", "team/model")
    assert done.returncode == 0, done.stderr
    assert Hub.created[0]["name"] == "model" and Hub.created[0]["organization"] == "team"
    assert Hub.created[0].get("visibility") == "private", Hub.created
    assert {"model.safetensors", "config.json", "tokenizer.json", "README.md", "spftsql.json"} <= set(Hub.files)
    assert str(adapter.parent) not in Hub.files["README.md"].decode()
    assert "/" not in json.loads(Hub.files["spftsql.json"])["base"]
    assert "private until you change that" in done.stdout
    assert not (adapter / "exported-merged").exists()


@pytest.mark.long
def test_what_cannot_be_pushed_is_said(adapter: Path, hub: str) -> None:
    done = push(hub, str(adapter), "--push", "team/model")
    assert done.returncode == 2 and "add --merge" in done.stderr
    done = push(hub, str(adapter), "--merge", "--push", "model")
    assert done.returncode == 2 and "--push takes ORG/NAME" in done.stderr
    Hub.refuse = True
    done = push(hub, str(adapter), "--merge", "--push", "team/model")
    assert done.returncode == 2 and "the Hub refused team/model" in done.stderr and "Traceback" not in done.stderr
    assert Hub.files == {}


def finetuning(out: Path, **changes: Any) -> Finetuning:
    values: dict[str, Any] = {
        "recipe": None, "data": None, "model": None, "reference": None, "mode": "sft", "out": out,
        "databases": (), "overrides": ("sft.steps=3", "selfplay.optimization.steps=3", "model.max_length=64"),
    }  # fmt: skip
    return Finetuning(**(values | changes))


def run(wanted: Finetuning) -> None:
    finetune(wanted, Reporter(Console(quiet=True)))


def test_finetune_takes_pairs_of_text_and_leaves_a_model(base: Path, tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    pairs = [{"prompt": row.prompt, "chosen": row.chosen, "rejected": "select 1"} for row in trainings.rows()]
    data.write_text("\n".join(json.dumps(pair) for pair in pairs))
    out = tmp_path / "out"
    run(finetuning(out, data=data, model=str(base), mode="spft-a"))
    assert read_manifest(out)["mode"] == "spft-a" and read_manifest(out)["rows"] == {"R = 1": 8, "label": 8}
    assert [line["step"] for line in trainings.lines(out / "metrics.jsonl")] == [1, 2, 3]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "pairs.jsonl"]
    with pytest.raises(UserError, match="nothing would be trained"):
        run(finetuning(out, data=data, model=str(base)))


def test_finetune_builds_prompts_for_questions(base: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    file = trainings.database(tmp_path)
    pairs = [{"question": f"area of {state} ?", "sql": trainings.sql(state)} for state in trainings.STATES]
    pq.write_table(pa.Table.from_pylist(pairs), tmp_path / "pairs.parquet")
    wanted = finetuning(tmp_path / "out", data=tmp_path / "pairs.parquet", model=str(base), databases=(f"geo={file}",))
    run(Finetuning(**{**wanted.__dict__, "overrides": ("sft.steps=2", "model.max_length=400")}))
    assert read_manifest(tmp_path / "out")["rows"] == {"label": 8}


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{}", r"pair 1: has neither `prompt` and `chosen` nor `question` and `sql`"),
        ('{"prompt": "a"}', "`prompt` and `chosen` are texts"),
        ('{"prompt": "a", "chosen": "b", "reward": 3, "rejected": "c"}', "`reward` is 0 or 1"),
        ("[1]", "one JSON object per line"),
        ("{", "cannot be read as JSON lines or Parquet"),
        ("", "holds no pairs"),
    ],
)
def test_finetune_says_what_is_wrong_with_the_pairs(base: Path, tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "pairs.jsonl").write_text(line)
    with pytest.raises(UserError, match=message):
        run(finetuning(tmp_path / "out", data=tmp_path / "pairs.jsonl", model=str(base)))


def test_finetune_asks_for_what_is_missing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="say what is to be trained on"):
        run(finetuning(tmp_path / "out", model=str(base)))
    (tmp_path / "pairs.jsonl").write_text('{"question": "a", "sql": "b", "db_id": "x"}')
    with pytest.raises(UserError, match=r"--model DIRECTORY_OR_HUB_NAME|exactly one of model\.path"):
        run(finetuning(tmp_path / "out", data=tmp_path / "pairs.jsonl"))
    with pytest.raises(UserError, match="database x is unknown; give it as --db x=FILE"):
        run(finetuning(tmp_path / "out", data=tmp_path / "pairs.jsonl", model=str(base)))
    result = CliRunner().invoke(app, ["finetune", "--out", str(tmp_path / "o"), "--mode", "ppo"])
    assert isinstance(result.exception, UserError) and "unknown mode ppo" in str(result.exception)


def events(folder: Path) -> list[tuple[str, int, float]]:
    """The scalars of TensorBoard's event files: records of a length, its checksum, bytes and their checksum."""
    from tensorboardX.proto.event_pb2 import Event

    found = []
    for file in sorted(folder.glob("events.*")):
        data, at = file.read_bytes(), 0
        while at < len(data):
            (length,) = struct.unpack("<Q", data[at : at + 8])
            event = Event.FromString(data[at + 12 : at + 12 + length])
            found += [(value.tag, event.step, value.simple_value) for value in event.summary.value]
            at += 12 + length + 4
    return found


def test_tensorboard_has_every_step(base: Path, tmp_path: Path) -> None:
    job = trainings.job_of(base, tmp_path, 3)
    config = trainings.config_of(loggers=["tensorboard"])
    train_local([job], config, tmp_path / "metrics.jsonl", lambda *_: None)
    logged = {step: value for tag, step, value in events(tmp_path / "tensorboard" / "job") if tag == "loss"}
    assert logged == pytest.approx({line["step"]: line["loss"] for line in trainings.lines(tmp_path / "metrics.jsonl")})


def test_mlflow_has_every_step_in_one_run(base: Path, tmp_path: Path) -> None:
    pytest.importorskip("mlflow", reason="mlflow cannot be installed beside the pinned packages (cachetools < 8)")
    from mlflow import MlflowClient

    metrics = tmp_path / "metrics.jsonl"
    for steps in (3, 5):  # another training of the same name in the same folder goes on in its run
        job = trainings.job_of(base, tmp_path / str(steps), steps)
        train_local([job], trainings.config_of(loggers=["mlflow"]), metrics, lambda *_: None)
    client = MlflowClient(tracking_uri=f"sqlite:///{tmp_path / 'mlflow.db'}")
    (run,) = client.search_runs([client.get_experiment_by_name("t").experiment_id])
    assert run.info.run_name == "job" and run.info.status == "FINISHED"
    logged = {metric.step: metric.value for metric in client.get_metric_history(run.info.run_id, "loss")}
    assert logged == pytest.approx({line["step"]: line["loss"] for line in trainings.lines(metrics)})


def test_a_logger_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(UserError, match=r"training\.loggers has mlflow, which is not installed: pip install mlflow"):
        check_loggers(["mlflow"])
