"""The tensors of the released MultiMAE (Bachmann et al. 2022).

The release keeps patches channel by channel and in convolutions, gives every decoder its own context projection and
one embedding for each input; here patches are (row, column, channel), and what belongs together is one tensor.
"""

from __future__ import annotations

from collections.abc import Iterator

from omnitrunk.models.modality import find_modality
from omnitrunk.models.multimae_config import MultiMAEConfig
from omnitrunk.models.official.layers import blocks, linear, mlp, norm, patch_projection, reshaped, same
from omnitrunk.models.official.parts import Part, Table


def layout(config: MultiMAEConfig) -> Iterator[Part]:
    """All tensors of a released model of these sizes; several of one target are its rows from top to bottom."""
    yield same("global_tokens", "global_tokens", 1, config.global_tokens, config.width)
    for name in config.inputs:
        yield from _tokenizer(name, config)
    yield from blocks("encoder", "blocks", config.depth, config.width, config.mlp_ratio)
    for output in config.outputs:
        yield from _decoder(f"output_adapters.{output}", f"decoders.{output}", output, config)


def _tokenizer(name: str, config: MultiMAEConfig) -> Iterator[Part]:
    modality, patch, width = find_modality(name), config.patch(name), config.width
    official, ours = f"input_adapters.{name}", f"tokenizers.{name}"
    channels = modality.channels
    if modality.kind == "classes":
        channels = config.class_embedding_width
        yield same(f"{official}.class_emb.weight", f"{ours}.class_embedding", config.semseg_classes, channels)
    yield from patch_projection(f"{official}.proj", ours, width, channels, (patch, patch))
    grid = config.position_grid(name)
    yield _table(f"{official}.pos_emb", f"{ours}.position", width, grid, modality.faithful_interpolation)


def _decoder(official: str, ours: str, output: str, config: MultiMAEConfig) -> Iterator[Part]:
    width = config.decoder_width
    yield reshaped(f"{official}.mask_token", f"{ours}.mask_token", (1, 1, width), (width,))
    for name in config.inputs:
        yield reshaped(f"{official}.task_embeddings.{name}", f"{ours}.task_embedding", (1, 1, width), (1, width))
    yield from _decoder_tables(f"{official}.pos_emb", ours, output, config)
    yield from linear(f"{official}.proj_context", "context", width, config.width)
    for name in ("query_norm", "context_norm", "out_norm"):
        yield from norm(f"{official}.{name}", f"{ours}.{name}", width)
    for name, rows in (("q", width), ("kv", 2 * width), ("proj", width)):
        yield from linear(f"{official}.decoder.{name}", f"{ours}.cross.{name}", rows, width)
    yield from mlp(f"{official}.mlp", f"{ours}.mlp", width, config.mlp_ratio)
    transformer = f"{official}.decoder_transformer"
    yield from blocks(transformer, f"{ours}.blocks", config.decoder_depth, width, config.mlp_ratio)
    yield from _out_projection(f"{official}.out_proj", f"{ours}.out", output, config)


def _decoder_tables(official: str, ours: str, output: str, config: MultiMAEConfig) -> Iterator[Part]:
    """A decoder's one table; ours keeps a second one where the inputs' grids are not the output's."""
    width = config.decoder_width
    yield _table(official, f"{ours}.position", width, config.position_grid(output), "bilinear")
    if any(config.grid(name) != config.grid(output) for name in config.inputs):
        for name in config.inputs:
            yield _table(official, f"{ours}.context_position", width, config.position_grid(name), "bilinear")


def _out_projection(official: str, ours: str, output: str, config: MultiMAEConfig) -> Iterator[Part]:
    patch, values, width = config.patch(output), config.patch_values(output), config.decoder_width
    channels = values // patch**2
    for name, last in (("weight", (width,)), ("bias", ())):
        yield Part(
            official=f"{official}.{name}",
            ours=f"{ours}.{name}",
            shape=(values, *last),
            rows=(values, *last),
            factors=(channels, patch, patch, *last),
            order=(1, 2, 0, 3)[: 3 + len(last)],
        )


def _table(official: str, ours: str, width: int, grid: tuple[int, int], mode: str) -> Table:
    return Table(
        official=official,
        ours=ours,
        shape=(1, width, *grid),
        rows=(grid[0] * grid[1], width),
        factors=(width, *grid),
        order=(1, 2, 0),
        mode=mode,
    )
