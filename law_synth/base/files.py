"""Find a base model's files, on disk or on the Hugging Face hub, and check them before anything is loaded."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from typing import Any

from dataset_conversion.system.errors import UserError
from dataset_conversion.system.files import feed
from dataset_conversion.system.json_files import read_json

MODELS = ("unet", "vae", "text_encoder")
PARTS = (*MODELS, "tokenizer", "scheduler")
WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")  # no .fp16, no .non_ema
PROBE_SECONDS = 5

# What is fetched of a hub model: no pickled weights, no half-precision copies, no safety checker.
HUB_PATTERNS = [
    "model_index.json",
    "tokenizer/*",
    "scheduler/*.json",
    *(f"{part}/{name}" for part in MODELS for name in ("*.json", "*model.safetensors", "*-of-*.safetensors")),
]


def find_base(source: str) -> Path:
    """Folder of a base model given as a folder or a hub id, downloaded if need be.

    UserError: no such folder, not in the cache without network, not a complete Stable-Diffusion-1.x-like
    folder, weights that are not safetensors.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if not is_hub_id(source):
            raise UserError(
                f"{source}: no such folder, expected a model in diffusers layout or a hub id such as "
                "owner/name; correct --base or make a base with law-synth init-base"
            )
        folder = _from_hub(source)
    _check(folder, source)
    return folder


def is_hub_id(source: str) -> bool:
    """Whether it may be the owner/name of a hub model, as the hub's own client tells."""
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    try:
        validate_repo_id(source)
    except HFValidationError:
        return False
    return "/" in source


def is_unfinished(folder: Path) -> bool:
    """Whether init-base was interrupted there: there may be weights, but no record of the cases they saw."""
    return (folder / ".training").is_dir() and not (folder / "base_config.json").is_file()


def hash_base(folder: Path) -> str:
    """sha256 over names and contents of the weights and configurations that are loaded."""
    digest = hashlib.sha256()
    for path in (path for part in PARTS for path in _files(folder / part)):
        digest.update(f"{path.relative_to(folder).as_posix()}:{path.stat().st_size}\n".encode())
        feed(digest, path)
    return digest.hexdigest()


def read_settings(path: Path) -> dict[str, Any]:
    """A JSON file of a model in diffusers layout. UserError: missing, malformed, or no table."""
    return read_json(path, dict[str, Any], "get the model again")


def _files(part: Path) -> list[Path]:
    """What is loaded of a part: its weights, configurations and, for a tokenizer, its tables."""
    wanted = [
        path for path in part.iterdir() if path.suffix in (".json", ".txt") or WEIGHTS.fullmatch(path.name)
    ]
    return sorted(path for path in wanted if ".fp16." not in path.name and ".non_ema." not in path.name)


def _check(folder: Path, source: str) -> None:
    if is_unfinished(folder):
        raise UserError(
            f"{source}: found an unfinished base, expected a finished one; give its init-base command again"
        )
    index = folder / "model_index.json"
    if not index.is_file():
        raise UserError(
            f"{source}: found no model_index.json, expected a model in diffusers layout; single-file "
            "checkpoints must be converted first"
        )
    content = read_settings(index)
    if "text_encoder_2" in content or not set(PARTS) <= content.keys():
        raise UserError(
            f"{source}: found a {content.get('_class_name')}, expected a model like Stable Diffusion 1.x "
            f"with {', '.join(PARTS)}; choose such a base"
        )
    for part in PARTS:
        if not (folder / part).is_dir():
            raise UserError(f"{source}: found no {part}/, expected it beside model_index.json; get it again")
    for part in MODELS:
        check_weights(folder / part)


def check_weights(part: Path) -> None:
    """UserError unless all weights that would be loaded from a model's folder are safetensors.

    Pickled weights can run code, and hashes cover safetensors only. So a table of shards may name nothing
    else, and neither adapters nor weights of another name may be loaded besides.
    """
    names = sorted(path.name for path in part.iterdir()) if part.is_dir() else []
    weights = [name for name in names if WEIGHTS.fullmatch(name)]
    odd = [name for name in names if not name.endswith(".json")] if not weights else []
    for name in names:
        if name.endswith(".safetensors.index.json"):
            shards = read_settings(part / name).get("weight_map")
            shards = [*map(str, shards.values())] if isinstance(shards, dict) else ["no weight_map"]
            odd += [f"{shard} (by {name})" for shard in shards if not WEIGHTS.fullmatch(shard)]
    if "adapter_config.json" in names:
        odd.append("adapter_config.json")
    if "config.json" in names and (named := read_settings(part / "config.json").get("transformers_weights")):
        odd.append(f"{named} (by config.json)")
    if odd or not weights:
        found = ", ".join(dict.fromkeys(odd)) or "no weights"
        raise UserError(
            f"{part.parent}: found {found} in {part.name}/, expected a .safetensors file and no others "
            "(pickled weights are not loaded: they can run code); get the model with safetensors weights"
        )


def cached_model(source: str) -> Path:
    """Snapshot of a hub model in the cache; never downloads. OSError: none; ValueError: no hub id."""
    from huggingface_hub import snapshot_download

    # Without the patterns a snapshot of these files alone would count as incomplete.
    return Path(snapshot_download(source, allow_patterns=HUB_PATTERNS, local_files_only=True))


def _from_hub(source: str) -> Path:
    """Cached snapshot of a hub model, fetched when it is not complete and there is a network."""
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = cached_model(source)
        _check(folder, source)
        return folder
    except (LocalEntryNotFoundError, UserError):  # not there, or an interrupted download
        _probe_network(source)
    try:
        return Path(snapshot_download(source, allow_patterns=HUB_PATTERNS))
    except Exception as error:  # the hub's errors have no common parent across its versions
        reason = f"{error}".strip().split("\n")[0]
        raise UserError(f"{source}: the hub gave no model ({reason}), expected one; check the id") from error


def _probe_network(source: str) -> None:
    """UserError without network: one request, where the hub's own client would retry for minutes."""
    from huggingface_hub.constants import ENDPOINT
    from huggingface_hub.utils import get_session

    try:
        get_session().head(ENDPOINT, timeout=PROBE_SECONDS)
    except Exception as error:  # whatever it was, the hub cannot be reached
        raise UserError(
            f"{source}: found neither a folder nor a cached model, and {ENDPOINT} cannot be reached; on a "
            f"machine with network run: hf download {source} --local-dir DIR, then give --base DIR"
        ) from error
