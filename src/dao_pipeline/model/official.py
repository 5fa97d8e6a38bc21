"""From an official DAO checkpoint to a model directory (names and facts: paper code, sections 1 to 3).

The official runs write a folder with Lightning checkpoints (``*.ckpt``), ``hparams.yaml`` and two pickled scalers.
Only tensors and plain values are taken from them, and no code in them is run (``model.foreign``).

What is kept exactly: all weights, the file's own table of element descriptors, lambda_t (there an average over
random draws, so it differs from run to run) and the normaliser of the energies. Noise levels are checked against
ours and then ours are used, as are our embeddings of time and phases: the official code computes all of these in
single precision.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from pydantic import ValidationError
from torch import Tensor

from dao_pipeline.config import Backbone, Process
from dao_pipeline.crystals.table import file_hash
from dao_pipeline.errors import UserError
from dao_pipeline.model.crysformer import Crysformer
from dao_pipeline.model.dao import About, DaoModel, backbone_sizes, save_model
from dao_pipeline.model.descriptors import element_descriptors
from dao_pipeline.model.foreign import Opaque, Stored, TorchFile

Kind = Literal["dao_p", "dao_g"]

LARGEST_HPARAMS = 1 << 20
"""Bytes of hparams.yaml."""

SCHEDULE_TOLERANCE = 2e-5
"""Single precision moves abar_t by 4e-7 at T = 1000 (5e-6 at 4000); other schedules differ by 1e-2 and more."""

_OUTSIDE = {
    "element": "embedding_in.1",
    "node": "atom_latent_emb",
    "coords_head": "coord_out",
    "lattice_head": "lattice_out",
}
_IN_BLOCK = {
    "attention_norm": "attention.norm",
    "attention.query": "attention.fn.to_q",
    "attention.key_value": "attention.fn.to_kv",
    "attention.edge": "attention.fn.edges_to_kv",
    "attention.edge_norm": "attention.fn.edge_norm",
    "attention.out": "attention.fn.to_out",
    "attention_gate.gate": "attention.residue.proj.0",
    "mlp_norm": "ffn.norm",
    "mlp.0": "ffn.fn.net.0",
    "mlp.2": "ffn.fn.net.2",
    "mlp_gate.gate": "ffn.residue.proj.0",
}
_DESCRIPTORS, _LAMBDA = "decoder.embedding_in.0.weight", "sigma_scheduler.sigmas_norm"
_UNUSED = re.compile(r"decoder\.(node_embedding|type_out|scalar_out)\.|(beta|sigma)_scheduler\.")
"""Tensors that the official module carries and never uses, or that follow from its settings."""

_PUBLISHED: dict[str, Any] = {
    "model.time_dim": 256,
    "model.latent_dim": 0,
    "model.decoder.ip": True,
    "model.decoder.ln": False,
    "model.decoder.norm_edge": True,
    "model.decoder.smooth": False,
    "model.decoder.edge_style": "fc",
    "model.decoder.dis_emb": "sin",
    "model.decoder.act_fn": "silu",
}
"""Settings under which our Crysformer computes what the official one does; a key may be absent."""

_USED = (
    *_PUBLISHED,
    "model.decoder.head_num",
    "model._target_",
    "model.only_diffusion",
    "model.finetune_energy",
    "data.prop",
)

_LABELS = {
    "stability": "e_above_hull",
    "e_above_hull": "e_above_hull",
    "formation_energy_per_atom": "formation_energy",
}


@dataclass(frozen=True)
class Imported:
    """The model, and what its user should know: lines of text."""

    model: DaoModel
    notes: list[str]


def import_checkpoint(source: Path, out: Path, kind: Kind | None = None) -> list[str]:
    """Write the model directory ``out`` from an official checkpoint; returns lines that say what was done.

    source: a ``.ckpt`` file, or its folder (then ``last.ckpt``). ``hparams.yaml`` and, for DAO-P,
    ``prop_scaler.pt`` must lie beside it. kind: decided from the hyperparameters if not given.
    Raises UserError for files that are missing, damaged, hostile or of another model.
    """
    imported = read_official(source / "last.ckpt" if source.is_dir() else source, kind)
    save_model(imported.model, out)
    return imported.notes


def read_official(checkpoint: Path, kind: Kind | None = None) -> Imported:
    """The model of an official checkpoint in paper mode; see ``import_checkpoint``."""
    hparams_file = checkpoint.with_name("hparams.yaml")
    hparams = _hparams(hparams_file)
    file = TorchFile(checkpoint)
    stored, spare = _state(file)
    is_property = any(name.startswith("predictor.") for name in stored)
    kind, why = (kind, "as asked for") if kind else _kind(hparams, is_property)
    if is_property and kind == "dao_g":
        raise UserError(f"{checkpoint}: a property model cannot generate; import it with --kind dao_p.")
    head = None if kind == "dao_g" else "predictor" if is_property else "decoder.scalar_out"

    backbone = _backbone(checkpoint, stored, hparams)
    with torch.device("meta"):  # names and shapes without memory
        blank = Crysformer(
            **backbone_sizes(backbone),
            joint=True,
            distances=backbone.distances,
            noise=None,
            lattice_output="product",
            energy_head=kind == "dao_p",
        ).state_dict()
    names = {ours: official_name(ours, head) for ours in blank}
    _compare(file, stored, {names[ours]: tuple(tensor.shape) for ours, tensor in blank.items()}, spare)
    tensors = {ours: _tensor(file, official, stored[official]) for ours, official in names.items()}

    process, buffers = _process(file, stored)
    mean, std, scaler = 0.0, 1.0, checkpoint.with_name("prop_scaler.pt")
    if kind == "dao_p":
        mean, std = read_scaler(scaler)
    prop = str(hparams.get("data.prop", "unknown"))
    label = _LABELS.get(prop, prop) if kind == "dao_p" else None
    dropped = sorted(
        {re.sub(r"\.[\w.]*", "", n.removeprefix("decoder.")) for n in spare if n.startswith("decoder.")}
    )
    inputs = [checkpoint, hparams_file, *([scaler] if kind == "dao_p" else [])]
    history: dict[str, Any] = {
        "stage": "import_checkpoint",
        "origin": "official DAO checkpoint",
        "target": hparams.get("model._target_"),
        "inputs": {path.name: file_hash(path) for path in inputs},
        "dropped": dropped,
    }
    for key in ("epoch", "global_step"):
        if isinstance(file.root, dict) and type(value := file.root.get(key)) is int:
            history[key] = value
    if is_property:
        history["property"] = {"name": prop, "unit": "", "log": False}
    about = About(
        kind=kind,
        backbone=backbone.model_dump(mode="json"),
        process=process.model_dump(mode="json"),
        energy_label=label,
        energy_mean=mean,
        energy_std=std,
        elements=list(range(1, 101)),  # which ones it was trained on is not recorded
        history=[history],
    )
    # lattices are not scaled in paper mode, so volumes are neither known nor used
    model = DaoModel(about, torch.full((101,), float("nan")))
    model.crysformer.load_state_dict(tensors)
    notes = [f"{kind} ({why}), {model.parameter_count():,} trainable parameters"]
    if buffers:
        ours = {name: value for name, value in model.named_buffers() if name.startswith("schedule.")}
        _check_schedule(checkpoint, ours, buffers)
        ours["schedule.score_norm"].copy_(buffers[_LAMBDA])
        notes.append(f"lambda of the coordinate noise: from the file, {process.timesteps} levels")
    else:
        notes.append("lambda of the coordinate noise: not in the file, computed by quadrature")
    if not torch.equal(tensors["descriptors"], element_descriptors()):
        notes.append("element descriptors: the file's own table, which differs from that of this package")
    if kind == "dao_p":
        notes.append(f"label {label}, mean {mean:.6g}, standard deviation {std:.6g}")
    notes.append(f"not used by this kind of model, left out: {', '.join(dropped) or 'nothing'}")
    return Imported(model.eval(), notes)


def official_name(ours: str, head: str | None) -> str:
    """Official name of a tensor of our Crysformer; ``head`` is the official module of the energy head."""
    if ours == "descriptors":
        return _DESCRIPTORS
    module, _, part = ours.rpartition(".")
    if block := re.fullmatch(r"blocks\.(\d+)\.(.+)", module):
        return f"decoder.block_{block[1]}.{_IN_BLOCK[block[2]]}.{part}"
    if module.startswith("energy_head."):
        return f"{head}{module.removeprefix('energy_head')}.{part}"
    return f"decoder.{_OUTSIDE[module]}.{part}"


def read_scaler(path: Path) -> tuple[float, float]:
    """Mean and standard deviation of the labels, from a pickled scaler with ``means`` and ``stds``.

    Raises UserError if the file is missing, damaged, or scales more than one label.
    """
    file = TorchFile(path)
    state = file.root.state if isinstance(file.root, Opaque) else None
    values: list[float] = []
    for key in ("means", "stds"):
        stored = state.get(key) if isinstance(state, dict) else None
        if not isinstance(stored, Stored) or any(n != 1 for n in stored.shape):
            raise UserError(f"{path}: no scaler of one label ({key} is missing or not a single number).")
        values.append(float(_tensor(file, key, stored).double()))
    if values[1] <= 0:
        raise UserError(f"{path}: the standard deviation is {values[1]}, but it must be positive.")
    return values[0], values[1]


def _hparams(path: Path) -> dict[str, Any]:
    """The hyperparameters that matter, by dotted key; all are plain values, and absent ones are left out."""
    try:
        if path.stat().st_size > LARGEST_HPARAMS:
            raise UserError(f"{path}: larger than {LARGEST_HPARAMS} bytes; this is no file of hyperparameters.")
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({error}); the hparams.yaml of the run must lie beside its checkpoint."
        ) from error
    if not isinstance(values, dict) or not isinstance(values.get("model"), dict):
        raise UserError(f"{path}: no section model; this is not the hparams.yaml of a DAO run.")
    found: dict[str, Any] = {}
    for dotted in _USED:
        value: Any = values
        for key in dotted.split("."):
            value = value.get(key) if isinstance(value, dict) else None
        if value is not None and not isinstance(value, str | int | float | bool):
            raise UserError(f"{path}: {dotted} is no plain value.")
        if value is not None:
            found[dotted] = value
    if wrong := [
        f"{key} = {found[key]} (published: {value})"
        for key, value in _PUBLISHED.items()
        if found.get(key, value) != value
    ]:
        raise UserError(f"{path}: a variant of Crysformer that this package does not have: {'; '.join(wrong)}.")
    return found


def _kind(hparams: dict[str, Any], is_property: bool) -> tuple[Kind, str]:
    if is_property:
        return "dao_p", "it has a property head"
    if (only := hparams.get("model.only_diffusion")) is not None:
        return ("dao_g" if only else "dao_p"), f"only_diffusion is {only}"
    if (energy := hparams.get("model.finetune_energy")) is not None:
        return ("dao_p" if energy else "dao_g"), f"finetune_energy is {energy}"
    raise UserError(
        "hparams.yaml has neither model.only_diffusion nor model.finetune_energy; say --kind dao_p or dao_g."
    )


def _state(file: TorchFile) -> tuple[dict[str, Stored], set[str]]:
    """The state dict, still in the file, and the names in it that no model of ours has."""
    state = file.root.get("state_dict") if isinstance(file.root, dict) else None
    if not isinstance(state, dict):
        raise UserError(f"{file.path}: no state_dict; name a Lightning checkpoint (*.ckpt).")
    if not all(isinstance(name, str) and name.isprintable() for name in state):
        raise UserError(f"{file.path}: the state_dict has keys that are no names.")
    if wrong := [name for name, value in state.items() if not isinstance(value, Stored)]:
        raise UserError(f"{file.path}: not plain tensors in the state_dict: {_some(wrong)}.")
    if sum(tensor.nbytes for tensor in state.values()) > file.size:
        raise UserError(f"{file.path}: the tensors of the state_dict claim more bytes than the file has.")
    return state, {name for name in state if _UNUSED.match(name)}


def _backbone(path: Path, stored: dict[str, Stored], hparams: dict[str, Any]) -> Backbone:
    """Sizes of the backbone, from the shapes of its tensors; heads, which have none, from the settings."""
    layers = {int(m[1]) for name in stored if (m := re.match(r"decoder\.block_(\d{1,4})\.", name))}
    shapes = {name: stored[name].shape for name in stored}
    width = shapes.get("decoder.embedding_in.1.bias", (0,))
    edge = shapes.get("decoder.block_0.attention.fn.edge_norm.weight", (0,))
    try:
        backbone = Backbone(
            preset="base",
            layers=len(layers),
            width=width[0],
            heads=hparams.get("model.decoder.head_num", 8),
            frequencies=(edge[0] - 9) // 6,
            edge_norm="joint",
            distances="none",
            noise_aware=False,
        )
        if width[0] % backbone_sizes(backbone)["heads"]:
            raise ValueError(f"width {width[0]} is not divisible by the number of heads")
    except (ValidationError, ValueError, IndexError) as error:
        raise UserError(
            f"{path}: no Crysformer of a size that this package knows (embedding_in.1.bias {width}, "
            f"edge_norm.weight {edge}, {len(layers)} blocks): {error}"
        ) from error
    return backbone


def _compare(
    file: TorchFile, stored: dict[str, Stored], expected: dict[str, tuple[int, ...]], spare: set[str]
) -> None:
    """Raise one UserError that names every missing, unknown or misshapen tensor."""
    spare -= set(expected)
    missing = sorted(set(expected) - set(stored))
    extra = sorted(set(stored) - set(expected) - spare)
    shapes = [
        f"{name} {stored[name].shape} in place of {shape}"
        for name, shape in expected.items()
        if name in stored and stored[name].shape != shape
    ]
    lines = [
        f"{what}: {_some(names)}"
        for what, names in (("missing", missing), ("unknown", extra), ("of another shape", shapes))
        if names
    ]
    if lines:
        raise UserError(
            f"{file.path}: these tensors are not those of the official Crysformer. {'; '.join(lines)}."
        )
    for name, tensor in stored.items():
        file.check(name, tensor)


def _some(names: list[str], limit: int = 20) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(name[:100] for name in names[:limit]) + more


def _tensor(file: TorchFile, name: str, stored: Stored) -> Tensor:
    tensor = file.tensor(name, stored)
    if not tensor.is_floating_point():
        raise UserError(f"{file.path}: {name} holds {tensor.dtype}, not floating-point numbers.")
    if not tensor.isfinite().all():
        raise UserError(f"{file.path}: {name} holds numbers that are not finite.")
    return tensor.float()


def _process(file: TorchFile, stored: dict[str, Stored]) -> tuple[Process, dict[str, Tensor]]:
    """The published noise with the file's levels, and the buffers that state them (none in property models)."""
    names = ("beta_scheduler.alphas_cumprod", "sigma_scheduler.sigmas", _LAMBDA)
    given = [name for name in names if name in stored]
    published: dict[str, Any] = {"kind": "diffusion", "remove_drift": False, "lattice_scale": "none"}
    if not given:
        return Process(**published), {}
    lengths = {name: stored[name].shape for name in given}
    first = next(iter(lengths.values()))
    if len(given) < len(names) or len(first) != 1 or any(shape != first for shape in lengths.values()):
        raise UserError(f"{file.path}: the noise schedule is incomplete: {', '.join(names)} need one length.")
    buffers = {name: _tensor(file, name, stored[name]).double() for name in names}
    sigma = buffers["sigma_scheduler.sigmas"]
    try:
        process = Process(
            timesteps=len(sigma) - 1,
            # six digits undo the rounding to single precision: 0.005, not 0.004999999888
            sigma_min=float(f"{sigma[1]:.6g}"),
            sigma_max=float(f"{sigma[-1]:.6g}"),
            **published,
        )
    except (ValidationError, IndexError) as error:
        raise UserError(f"{file.path}: a noise schedule that this package does not have: {error}") from error
    return process, buffers


def _check_schedule(path: Path, ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> None:
    """Raise UserError if the file's noise levels are not those of the published schedule."""
    abar, sigma, lam = theirs.values()
    expected = ours["schedule.sigma"]
    for name, error in (
        ("beta_scheduler.alphas_cumprod", (abar - ours["schedule.alpha_bar"]).abs()),
        ("sigma_scheduler.sigmas", (sigma - expected).abs() / expected.clamp(min=1e-12)),
    ):
        if not (worst := float(error.max())) <= SCHEDULE_TOLERANCE:
            raise UserError(
                f"{path}: {name} differs by {worst:.1e} at t = {int(error.argmax())} from the published schedule "
                "(cosine for lattices, geometric for coordinates); models with other schedules cannot be imported."
            )
    if not (lam > 0).all():
        raise UserError(f"{path}: {_LAMBDA} must be positive.")
