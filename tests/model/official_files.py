"""Files as the official DAO runs write them: names, shapes and layout, with random numbers."""

from __future__ import annotations

import math
import sys
import types
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from dao_pipeline.process.wrapped_normal import score
from tests.model.reference import Affine, Attention, Layer, Weights

BASE = {"layers": 12, "width": 384, "frequencies": 128, "steps": 1000}
TINY = {"layers": 2, "width": 32, "frequencies": 8, "steps": 20}


def shapes(layers: int, width: int, frequencies: int) -> dict[str, tuple[int, ...]]:
    """Every tensor of the official decoder."""
    d, e = width, 9 + 6 * frequencies
    linear: dict[str, tuple[int, int]] = {
        "embedding_in.1": (d, 92),
        "atom_latent_emb": (d, d + 256),
        "type_out.0": (d, d),
        "type_out.2": (100, d),
        "scalar_out.0": (d, d),
        "scalar_out.2": (1, d),
    }
    found: dict[str, tuple[int, ...]] = {
        "node_embedding.weight": (100, d),
        "embedding_in.0.weight": (101, 92),
        "coord_out.weight": (3, d),
        "lattice_out.weight": (9, d),
    }
    for i in range(layers):
        block = f"block_{i}"
        linear |= {
            f"{block}.attention.fn.to_q": (d, d),
            f"{block}.attention.fn.to_kv": (2 * d, d),
            f"{block}.attention.fn.edges_to_kv": (d, e),
            f"{block}.attention.fn.to_out": (d, d),
            f"{block}.ffn.fn.net.0": (4 * d, d),
            f"{block}.ffn.fn.net.2": (d, 4 * d),
        }
        for name, n in (("attention.fn.edge_norm", e), ("attention.norm", d), ("ffn.norm", d)):
            found |= {f"{block}.{name}.weight": (n,), f"{block}.{name}.bias": (n,)}
        for name in ("attention", "ffn"):
            found[f"{block}.{name}.residue.proj.0.weight"] = (1, 3 * d)
    for name, shape in linear.items():
        found |= {f"{name}.weight": shape, f"{name}.bias": shape[:1]}
    return {f"decoder.{name}": shape for name, shape in found.items()}


def schedules(steps: int) -> dict[str, Tensor]:
    """Buffers of the official schedulers, computed in single precision as there; lambda from random draws."""
    x = torch.linspace(0, steps, steps + 1)
    curve = torch.cos((x / steps + 0.008) / 1.008 * math.pi / 2) ** 2
    beta = torch.cat([torch.zeros(1), (1 - curve[1:] / curve[:-1]).clip(1e-4, 0.9999)])
    abar = torch.cumprod(1 - beta, 0)
    sigma = torch.tensor(np.geomspace(0.005, 0.5, steps), dtype=torch.float32)
    draws = torch.randn(200, steps, generator=torch.Generator().manual_seed(9))
    lam = score(sigma * draws, sigma).square().mean(0)
    posterior = torch.zeros(steps + 1)
    posterior[1:] = (beta[1:] * (1 - abar[:-1]) / (1 - abar[1:])).sqrt()
    return {
        "beta_scheduler.betas": beta,
        "beta_scheduler.alphas": 1 - beta,
        "beta_scheduler.alphas_cumprod": abar,
        "beta_scheduler.sigmas": posterior,
        "sigma_scheduler.sigmas": torch.cat([torch.zeros(1), sigma]),
        "sigma_scheduler.sigmas_norm": torch.cat([torch.ones(1), lam]),
    }


def state_dict(layers: int, width: int, frequencies: int, steps: int, seed: int = 0) -> dict[str, Tensor]:
    """Random weights under official names, and the schedules."""
    g = torch.Generator().manual_seed(seed)
    state: dict[str, Tensor] = OrderedDict()
    for name, shape in shapes(layers, width, frequencies).items():
        scale = 0.1 if len(shape) == 1 else shape[-1] ** -0.5
        state[name] = scale * torch.randn(shape, generator=g)
        if "norm.weight" in name:
            state[name] += 1
    table = torch.randint(0, 2, (101, 92), generator=g).float()
    table[0] = 0
    state["decoder.embedding_in.0.weight"] = table
    return state | schedules(steps)


@contextmanager
def foreign_classes() -> Iterator[tuple[type, type]]:
    """Classes of modules that exist only while files are written: a configuration and a scaler."""
    made: list[type] = []
    for module, name in (("omegaconf_of_then", "DictConfig"), ("dao_of_then", "Scaler")):
        made.append(type(name, (), {"__module__": module}))
        sys.modules[module] = types.ModuleType(module)
        setattr(sys.modules[module], name, made[-1])
    try:
        yield made[0], made[1]
    finally:
        for cls in made:
            del sys.modules[cls.__module__]


def write_run(
    folder: Path,
    state: dict[str, Tensor],
    *,
    model: dict[str, Any] | None = None,
    decoder: dict[str, Any] | None = None,
    prop: str = "stability",
    normaliser: tuple[float, float] | None = (0.25, 0.5),
    extra: dict[str, Any] | None = None,
) -> Path:
    """The folder of an official run: last.ckpt, hparams.yaml, prop_scaler.pt, lattice_scaler.pt."""
    folder.mkdir(parents=True, exist_ok=True)
    hparams = {
        "data": {"prop": prop, "root_path": "${oc.env:PROJECT_ROOT}/data"},
        "model": {
            "_target_": "diffcsp.pl_modules.PTModels.CrystGenerativePretrainModel",
            "time_dim": 256,
            "latent_dim": 0,
            "timesteps": len(state.get("sigma_scheduler.sigmas", torch.zeros(1001))) - 1,
            **(model if model is not None else {"only_diffusion": False}),
            "decoder": {"head_num": 8, "ip": True, "ln": False, "norm_edge": True, **(decoder or {})},
        },
    }
    (folder / "hparams.yaml").write_text(yaml.safe_dump(hparams))
    with foreign_classes() as (config_class, scaler_class):
        config = config_class()
        config.__dict__.update(_content={"model": hparams["model"]}, _metadata=(config_class, None))
        optimiser = {"state": {0: {"step": torch.tensor(3.0), "exp_avg": torch.randn(4)}}, "param_groups": [{}]}
        checkpoint = {
            "epoch": 799,
            "global_step": 12345,
            "pytorch-lightning_version": "1.3.8",
            "state_dict": state,
            "callbacks": {config_class: {"best_model_path": "x", "seen": {1, 2}}},
            "optimizer_states": [optimiser],
            "hyper_parameters": config,
            **(extra or {}),
        }
        torch.save(checkpoint, folder / "last.ckpt")
        scaler = scaler_class()
        mean, std = normaliser or (0.0, 1.0)
        scaler.__dict__.update(means=torch.tensor(mean), stds=torch.tensor(std))
        for name in ("prop_scaler.pt", "lattice_scaler.pt"):
            if normaliser is not None:
                torch.save(scaler, folder / name)
    return folder


def weights_of(state: dict[str, Tensor], heads: int = 8, head: str = "decoder.scalar_out") -> Weights:
    """What the equations call the official tensors, in double precision."""
    p = {name: value.double() for name, value in state.items()}

    def affine(name: str) -> Affine:
        return Affine(p[f"{name}.weight"], p[f"{name}.bias"])

    layers = []
    while f"decoder.block_{len(layers)}.ffn.norm.weight" in p:
        block = f"decoder.block_{len(layers)}"
        names = ("to_q", "to_kv", "edges_to_kv", "to_out", "edge_norm")
        layers.append(
            Layer(
                attention=Attention(*(affine(f"{block}.attention.fn.{name}") for name in names)),
                norm=affine(f"{block}.attention.norm"),
                gate=p[f"{block}.attention.residue.proj.0.weight"][0],
                ffn_norm=affine(f"{block}.ffn.norm"),
                ffn=(affine(f"{block}.ffn.fn.net.0"), affine(f"{block}.ffn.fn.net.2")),
                ffn_gate=p[f"{block}.ffn.residue.proj.0.weight"][0],
            )
        )
    return Weights(
        table=p["decoder.embedding_in.0.weight"],
        element=affine("decoder.embedding_in.1"),
        node=affine("decoder.atom_latent_emb"),
        layers=layers,
        coords=p["decoder.coord_out.weight"],
        lattice=p["decoder.lattice_out.weight"],
        energy=(affine(f"{head}.0"), affine(f"{head}.2")),
        heads=heads,
    )
