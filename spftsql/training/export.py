"""`spftsql export`: a trained model as a directory of its own, an adapter merged into its base, and onto the Hub."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

from spftsql.errors import UserError, disk_faults
from spftsql.training.artefact import MANIFEST, named_base, read_manifest, resolve_model, write_manifest
from spftsql.training.card import Accuracy, write_card

_KEPT_OUT = ("*.partial", ".*")


def export(target: str, merge: bool, out: Path | None, push: str | None, say: Callable[[str], None]) -> Path | None:
    """Writes the model of a run, or a model directory, to `out`, and uploads it as the Hub's repository `push`.

    With `merge` an adapter becomes a complete model. `out` defaults to a folder in the run when nothing is pushed.
    Returns where the model was written, None when it was only uploaded. Raises `UserError` when there is no such model,
    when `out` exists, or when the Hub refuses.
    """
    model, name, accuracy, details = _find(Path(target))
    base = named_base(model)
    if merge and base is None:
        say(f"{model.name} is a complete model already: nothing is merged")
    if push is not None:
        check_repository(push)
        if base is not None and not merge and Path(base).is_dir():
            raise UserError(f"the adapter is over the local model {base}, which others do not have: add --merge")
    if out is None and push is None:
        out = Path(target).resolve() / ("exported-merged" if merge else "exported")
    if out is not None and out.exists():
        raise UserError(f"{out} is there already: remove it or choose another --out")
    with tempfile.TemporaryDirectory(prefix="spftsql-export-") if out is None else _beside(out) as folder:
        made = Path(folder) / name
        with disk_faults(Path(folder)):
            _write(model, made, merge and base is not None, accuracy, details)
        if push is not None:
            say(f"uploading to {push} …")
            say(_upload(made, push))
        if out is not None:
            made.rename(out)
            say(f"{out}: {'merged model' if merge and base is not None else 'adapter' if base else 'model'}")
    return out


def _beside(out: Path) -> tempfile.TemporaryDirectory[str]:
    out.parent.mkdir(parents=True, exist_ok=True)
    return tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent)


def _find(target: Path) -> tuple[Path, str, Accuracy | None, dict[str, str]]:
    """The model directory, its name, and what its run knows about it."""
    if (target / "config.yaml").is_file():
        from spftsql.prompts import PromptBuilder
        from spftsql.recipes import recipe_of_run
        from spftsql.selfplay.table import load_result

        result = load_result(target)
        config = recipe_of_run(target)
        model = Path(result.served_path)
        if not model.is_dir():
            model = resolve_model(result.served_path)  # the base model itself, by its Hub name
        row = next((row for row in result.rows if row.candidate == result.served), None)
        about = "Test questions" if result.exam == "test" else "Synthetic selection questions (there is no test set)"
        accuracy = Accuracy(about, row.correct, row.n, row.low, row.high, row.verdicts) if row else None
        prompt = PromptBuilder(config.prompt, str(model), config.model.chat_template).hash
        return model, config.name, accuracy, {"prompt_hash": prompt}
    if any((target / name).is_file() for name in ("config.json", "adapter_config.json")):
        return target.resolve(), target.resolve().name, None, {}
    raise UserError(f"{target} is neither a finished run (config.yaml, result.json) nor a model directory")


def _write(model: Path, made: Path, merged: bool, accuracy: Accuracy | None, details: dict[str, str]) -> None:
    if merged:
        from spftsql.training.weights import merge_adapter

        merge_adapter(model, made, dtype=None)
        weights = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
        for path in model.iterdir():
            if path.is_file() and path.name not in weights and not (made / path.name).exists():
                shutil.copyfile(path, made / path.name)
    else:
        shutil.copytree(model, made, ignore=shutil.ignore_patterns(*_KEPT_OUT))
    manifest = read_manifest(made)
    if not (manifest and manifest.get("training")):
        return  # a model from elsewhere keeps its own card
    manifest["details"] = {**manifest.get("details", {}), **details}
    write_manifest(made, **manifest)
    write_card(made, accuracy)


def check_repository(name: str) -> None:
    """Raises `UserError` for what is no name of a repository of the Hub."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils._validators import validate_repo_id

    try:
        validate_repo_id(name)
    except HFValidationError as error:
        raise UserError(f"--push takes ORG/NAME: {str(error).splitlines()[0]}") from None
    if name.count("/") != 1:
        raise UserError(f"--push takes ORG/NAME, not {name}")


def _upload(folder: Path, name: str) -> str:
    """Uploads a model directory to a private repository, without what is about this machine."""
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError, OfflineModeIsEnabled

    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8")) if (folder / MANIFEST).is_file() else {}
    if manifest.get("base") and Path(str(manifest["base"])).is_absolute():
        write_manifest(folder, **{**manifest, "base": Path(str(manifest["base"])).name})
    api = HfApi()
    try:
        repository = api.create_repo(name, private=True, exist_ok=True)
        api.upload_folder(repo_id=repository.repo_id, folder_path=folder, commit_message="spftsql export")
    except LocalTokenNotFoundError:
        raise UserError("the Hub wants a token: set HF_TOKEN to one that may write") from None
    except OfflineModeIsEnabled:
        raise UserError("HF_HUB_OFFLINE is set: nothing can be pushed") from None
    except HfHubHTTPError as error:
        raise UserError(f"the Hub refused {name}: {str(error).splitlines()[0]} (is HF_TOKEN set?)") from None
    except (httpx.TransportError, OSError) as error:
        raise UserError(f"the Hub cannot be reached: {error}") from None
    return f"{repository} (private until you change that)"
