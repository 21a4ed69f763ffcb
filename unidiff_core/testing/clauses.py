"""The clauses of the codec contract: each raises `Broken`, or lets through what the codec raises.

A clause's docstring is how to fix what it lets through.
"""

from __future__ import annotations

import copy
import inspect
import pickle
import socket
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import torch

from unidiff_core.codec.codec import check_latent
from unidiff_core.foundation.stream import Stream
from unidiff_core.testing.case import (
    TOLERANCE,
    Broken,
    Case,
    differing,
    draw_from,
    global_seed,
    global_states,
    same_state,
    sample_of,
    stray_tensors,
    streams,
    use,
)
from unidiff_core.testing.fragment import unfit


def clause_declaration(case: Case) -> None:
    """Declare `licence`, `extension`, `sources`, `weights` and `decoding` as `Codec` documents them."""
    codec = case.codec
    if not isinstance(codec.extension, str) or not codec.extension.isalnum():
        raise Broken(f"extension is {codec.extension!r}", 'write a file\'s ending without a dot, `extension = "csv"`')
    for name in ("sources", "weights", "decoding"):
        value = getattr(codec, name)
        if not isinstance(value, tuple) or not all(isinstance(item, str) for item in value):
            raise Broken(f"{name} is {value!r}", f"write a tuple of strings, `{name} = (…,)`")
    for name, what in (("weights", "hold a path or hub id"), ("decoding", "change nothing but what `decode` gives")):
        if unknown := set(getattr(codec, name)) - set(inspect.signature(type(codec)).parameters):
            raise Broken(
                f"{name} names {', '.join(sorted(unknown))}, which the constructor does not take",
                f"name the constructor's parameters that {what}",
            )


def clause_constructor(case: Case) -> None:
    """Let the constructor take what the attributes of the same names hold."""
    parameters = inspect.signature(type(case.codec)).parameters
    for name, row in parameters.items():
        if row.kind in (row.VAR_POSITIONAL, row.VAR_KEYWORD, row.POSITIONAL_ONLY):
            raise Broken(
                f"the constructor takes {row}", "name every parameter, so that a model directory can record it"
            )
        if not hasattr(case.codec, name):
            raise Broken(
                f"the constructor's parameter {name!r} is no attribute of the codec",
                f"keep it: `self.{name} = {name}`",
            )
    case.fresh()


def clause_model_directory(case: Case) -> None:
    """Let the constructor take plain data: numbers, strings, lists, mappings, and objects of registered classes."""
    import yaml

    from unidiff_core.foundation.plugin import load_plugins
    from unidiff_core.foundation.registry import Registration
    from unidiff_core.serialization.description import build, describe

    registry = load_plugins()
    cls = type(case.codec)
    registry.registrations[cls.__name__] = Registration(cls, "the one under test")
    try:
        text = yaml.safe_dump(describe(case.codec, registry))
    except (ValueError, yaml.YAMLError) as error:
        raise Broken(
            f"its arguments are not plain data: {' '.join(str(error).split())}",
            "take numbers, strings, lists, mappings, or objects of registered classes",
        ) from error
    built = build(yaml.safe_load(text), registry)
    if dict(built.streams) != dict(case.codec.streams):
        raise Broken(
            f"built again from its own record its streams are {streams(built)}, not {streams(case.codec)}",
            "keep each parameter as it was given, and derive the streams from these attributes",
        )


def clause_lazy_loading(case: Case) -> None:
    """Answer `streams` from the constructor's arguments alone; load networks at first use."""
    used = [name for name in case.codec.weights if getattr(case.codec, name) is not None]
    absent = dict.fromkeys(used, "no/such/weights")
    try:
        codec = case.fresh(**absent)
        declared = dict(codec.streams)
    except Exception as error:
        raise Broken(
            f"without its weights it does not answer `streams`: {type(error).__name__}: {error}",
            "declare shapes from constructor parameters, and load the weights in `encode` and `decode`",
        ) from error
    if declared != dict(case.codec.streams):
        raise Broken(
            f"before loading its streams are {streams(codec)}, afterwards {streams(case.codec)}",
            "declare shapes from constructor parameters, and raise at first use if the weights differ",
        )
    if loaded := [name for name, _ in codec.named_parameters()]:
        raise Broken(
            f"a codec that was not used yet has {len(loaded)} parameters, {loaded[0]} the first",
            "load networks at first use: set `self._network = None`, and load in a method that `encode` calls",
        )


def clause_streams(case: Case) -> None:
    """Make `encode` and `latent` give what `streams` declares."""
    streams = case.codec.streams
    if not streams or not all(isinstance(row, Stream) for row in streams.values()):
        raise Broken(f"streams is {streams!r}", "declare at least one, `{'values': Stream.vector(8)}`")
    if bad := [name for name in streams if "." in name]:
        raise Broken(f"the stream name {bad[0]!r} has a dot", "a dot stands between modality and stream; leave it out")
    for name, value in case.stored.items():
        if len(value) != len(case.raws):
            raise Broken(
                f"encode gives {len(value)} rows of {name!r} for {len(case.raws)} samples",
                "give each stored tensor a row per sample, first",
            )
    try:
        check_latent(case.codec, case.latent)
    except ValueError as error:
        raise Broken(str(error), "make them agree: `streams` is what the network is built from") from error
    for name, stream in streams.items():
        if (found := tuple(case.latent[name].shape[1:])) != stream.shape:
            case.remarks.append(f"streams: {name} came as {found}, its native shape is {stream.shape}.")


def clause_dtype(case: Case) -> None:
    """Give latents of the declared dtype, finite; symbols as ids below their vocabulary."""
    for name, stream in case.codec.streams.items():
        value = case.latent.get(name, torch.zeros(0))  # an absent one is told by `clause_streams`
        if not value.numel():
            continue
        if value.dtype != getattr(torch, stream.dtype):
            raise Broken(f"{name!r} is declared {stream.dtype} and comes as {value.dtype}", "convert it in `latent`")
        if not value.isfinite().all():
            raise Broken(f"{name!r} holds what is not finite", "mask or clip it in `encode`")
        if stream.vocabulary is not None:
            if not 0 <= value.min() <= value.max() < stream.vocabulary:
                raise Broken(
                    f"{name!r} is of {stream.vocabulary} symbols and holds ids from {value.min()} to {value.max()}",
                    f"give ids 0 to {stream.vocabulary - 1}, or declare another vocabulary",
                )
            continue
        mean, std = value.double().mean().item(), value.double().std(unbiased=False).item()
        if abs(mean) > 3 or not 0.1 <= std <= 10:
            remark = (
                f"dtype: {name} has mean {mean:.3g} and standard deviation {std:.3g} over these samples; diffusion "
                "works best near 0 and 1, so normalise in the codec."
            )
            case.remarks.append(remark)
            warnings.warn(f"{type(case.codec).__name__}: {remark}", stacklevel=2)


def clause_determinism(case: Case) -> None:
    """Make `encode` and `decode` give the same again."""
    results = []
    for seed in (1, 2):
        with global_seed(seed):
            stored = case.codec.encode(case.raws)
            latent = case.codec.latent(stored, draw_from(0))
            results.append((stored, latent, case.codec.decode(case.latent)))
    fix = "draw nothing; `latent` takes its noise from `draw`, and a sampling decoder uses a generator of its own"
    for what, first, second in zip(("encode", "latent"), *results, strict=False):
        if name := differing(first, second, 0.0):
            raise Broken(f"{what} gives another {name!r} at the second call, under another global seed", fix)
    for a, b in zip(results[0][2], results[1][2], strict=True):
        if case.distance(a, b) > 0:
            raise Broken("decode gives another sample at the second call, under another global seed", fix)


def clause_global_randomness(case: Case) -> None:
    """Leave the random state of torch, numpy and random alone."""
    use(case, case.codec)
    before = global_states()
    use(case, case.codec)
    after = global_states()
    if moved := [name for name in before if not same_state(before[name], after[name])]:
        raise Broken(
            f"it draws from the global random state of {' and '.join(moved)}",
            "use a generator of your own; a global draw changes every later one of the program",
        )


def clause_batch_independence(case: Case) -> None:
    """Let each result depend on its own sample only."""
    fix = "compute nothing over the batch: no batch statistics, and padding to a fixed shape, never to the longest"
    for i, raw in enumerate(case.raws):
        stored = case.codec.encode([raw])
        if name := differing(stored, sample_of(case.stored, i), TOLERANCE):
            raise Broken(f"encode gives sample {i} another {name!r} alone than in its batch", fix)
        latent = case.codec.latent(sample_of(case.stored, i), draw_from(i))
        if name := differing(latent, sample_of(case.latent, i), TOLERANCE):
            raise Broken(f"latent gives sample {i} another {name!r} alone than in its batch", fix)
        alone = case.codec.decode(sample_of(case.latent, i))[0]
        if not (far := case.distance(alone, case.decoded[i])) <= case.sample_tolerance:
            raise Broken(f"decode gives sample {i} alone at a distance of {far:.3g} from that in its batch", fix)


def clause_round_trip(case: Case) -> None:
    """Decode a sample for each latent, as near to the original as `round_trip` states."""
    if len(case.decoded) != len(case.raws):
        raise Broken(f"decode gives {len(case.decoded)} samples for {len(case.raws)} latents", "give one for each")
    far = max(case.distance(a, b) for a, b in zip(case.raws, case.decoded, strict=True))
    bound = case.codec.round_trip
    if bound is None:
        case.remarks.append(f"round trip: no bound is stated (`round_trip`); the largest distance here is {far:.3g}.")
    elif not far <= bound:
        raise Broken(
            f"a sample comes back at a distance of {far:.3g}, and the codec states at most {bound:.3g}",
            "fix `encode` or `decode`, or state a larger `round_trip`, or write a `distance`: the default compares "
            "arrays of numbers, and is 0 or 1 for anything else",
        )


def clause_empty_batch(case: Case) -> None:
    """Take an empty list of samples: an empty batch has rows of the usual shape, and there are none of them."""
    stored = case.codec.encode([])
    fix = "build tensors with the batch size in their shape: `torch.tensor(raws).view(len(raws), *shape)`"
    for name, value in case.stored.items():
        if name not in stored or stored[name].shape != (0, *value.shape[1:]):
            found = tuple(stored[name].shape) if name in stored else "nothing"
            raise Broken(f"encode([]) gives {found} for {name!r}, not {(0, *value.shape[1:])}", fix)
    for name, value in case.codec.latent(stored, draw_from(0)).items():
        if value.shape != (0, *case.latent[name].shape[1:]):
            raise Broken(f"latent of an empty batch gives {tuple(value.shape)} for {name!r}", fix)
    empty = {name: value[:0] for name, value in case.latent.items()}
    if decoded := case.codec.decode(empty):
        raise Broken(f"decode of an empty batch gives {decoded!r}", "give an empty list")


def clause_missing_sample(case: Case) -> None:
    """Let `latent` take zeros, which stand in for the stored tensors of a sample that lacks this modality."""
    zeros = {name: torch.zeros_like(value) for name, value in case.stored.items()}
    latent = case.codec.latent(zeros, draw_from(0))
    for name, value in latent.items():
        if value.shape != case.latent[name].shape:
            raise Broken(
                f"for zeros latent gives {name!r} as {tuple(value.shape)}", "give the shape that any other sample has"
            )
        if not value.isfinite().all():
            raise Broken(
                f"for zeros latent gives a {name!r} that is not finite",
                "guard a division or a logarithm; what stands in for missing data is masked, but must be a number",
            )


def clause_frozen(case: Case) -> None:
    """Freeze the networks, and keep them in eval mode."""
    use(case, case.codec)
    if free := [name for name, value in case.codec.named_parameters() if value.requires_grad]:
        raise Broken(
            f"{len(free)} parameters require a gradient, {free[0]} the first", "`network.requires_grad_(False)`"
        )
    was = case.codec.training
    case.codec.train()
    active = [name for name, module in case.codec.named_modules() if module.training and name]
    case.codec.train(was)
    if active and list(case.codec.parameters()):
        raise Broken(
            f"after `train()` the network {active[0]} is in training mode",
            "override `train(self, mode=True)`: `return super().train(False)`",
        )
    tensors = [*case.codec.encode(case.raws).values(), *case.codec.latent(case.stored, draw_from(0)).values()]
    if any(value.requires_grad for value in tensors):
        raise Broken("its tensors carry a gradient", "decorate `encode` and `decode` with @torch.no_grad()")


def clause_device(case: Case) -> None:
    """Let `codec.to(device)` move every tensor that the codec owns."""
    use(case, case.codec)
    moved = copy.deepcopy(case.codec).to("meta")
    if stray := [name for module in moved.modules() for name in stray_tensors(vars(module))]:
        raise Broken(
            f"`codec.to(device)` leaves {', '.join(stray)} behind",
            "keep a tensor by `self.register_buffer(name, tensor, persistent=False)`, a module as an attribute, "
            "not in a list",
        )


def clause_pickling(case: Case) -> None:
    """Pickle to a worker process, before and after first use."""
    for when, codec in (("before", case.fresh()), ("after", case.codec)):
        if when == "after":
            use(case, codec)
        try:
            twin = pickle.loads(pickle.dumps(codec))  # our own bytes, made in this line
        except Exception as error:
            raise Broken(
                f"{when} first use it cannot be pickled: {type(error).__name__}: {error}",
                "define the class in a module; keep no lambda, no open file and no lock as an attribute",
            ) from error
        if name := differing(twin.encode(case.raws), case.stored, TOLERANCE):
            raise Broken(f"pickled {when} first use it encodes another {name!r}", "keep all its state as attributes")


def clause_network(case: Case) -> None:
    """Reach for no network."""
    reached: list[str] = []

    def refuse(*arguments: Any, **options: Any) -> None:
        reached.append(next((str(value) for value in arguments if isinstance(value, (str, tuple))), "a socket"))
        raise OSError("the network is blocked by check_codec")

    with (
        mock.patch.object(socket.socket, "connect", refuse),
        mock.patch.object(socket, "create_connection", refuse),
        mock.patch.object(socket, "getaddrinfo", refuse),
    ):
        try:
            use(case, case.fresh())
        except Exception:
            if not reached:
                raise
    if reached:
        raise Broken(
            f"it reached for the network, {reached[0]} first",
            "read weights from the folder that the constructor was given, and fetch only what the user named",
        )


def clause_file(case: Case) -> None:
    """Make `to_bytes` and `from_bytes` each other's inverse, and `save` write files that `parse` or a person reads."""
    codec = case.codec
    for raw in case.raws:
        data = codec.to_bytes(raw)
        if not isinstance(data, bytes):
            raise Broken(f"to_bytes gives a {type(data).__name__}", "give the content of a file, as bytes")
        if not (far := case.distance(raw, codec.from_bytes(data))) <= case.sample_tolerance:
            raise Broken(f"a sample comes back from its own bytes at a distance of {far:.3g}", "fix one of the two")
    try:
        codec.from_bytes(b"\xff\x00 no sample at all")
    except ValueError:
        pass  # as it should: the command line tells it to the user
    except Exception as error:
        raise Broken(
            f"for a file that is no sample from_bytes raises {type(error).__name__}: {error}",
            "raise ValueError, which says why; a recipe names the file with it",
        ) from error
    with tempfile.TemporaryDirectory() as folder:
        paths = codec.save(case.raws, Path(folder), first_index=0)
        if not paths or not all(Path(path).is_file() for path in paths):
            raise Broken(f"save gives {paths}, which are not all files", "write the files, and return their paths")
    if not isinstance(codec.html(case.raws[0]), str):
        raise Broken("html gives no string", "give an HTML fragment")
    if fault := unfit(codec.html(case.raws[0])):
        fix = "give data by `data:` addresses, no script, and close every element: pages load nothing and run nothing"
        raise Broken(f"html does not show on a page: {fault}", fix)


CLAUSES: tuple[Callable[[Case], None], ...] = (
    clause_declaration,
    clause_constructor,
    clause_model_directory,
    clause_lazy_loading,
    clause_streams,
    clause_dtype,
    clause_determinism,
    clause_global_randomness,
    clause_batch_independence,
    clause_round_trip,
    clause_empty_batch,
    clause_missing_sample,
    clause_frozen,
    clause_device,
    clause_pickling,
    clause_network,
    clause_file,
)
"""In this order; an earlier clause tells a fault that shows in later ones too."""
