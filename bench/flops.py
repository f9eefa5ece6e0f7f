"""Matrix arithmetic of one MultiMAE sample, in FLOP (2 per multiply-add): as the plain model does it, and the least.

Attention's two products count; softmax, norms and other elementwise work do not. All figures are for one sample.
"""

from __future__ import annotations

from dataclasses import dataclass

from omnitrunk.bench.plain_multimae import BASE_TASK, PlainConfig


@dataclass(frozen=True, kw_only=True)
class StepFlops:
    """Forward FLOP by part of the model, and the backward total."""

    projection: float
    encoder: float
    decoders: float
    backward: float

    @property
    def forward(self) -> float:
        """All parts of the forward pass."""
        return self.projection + self.encoder + self.decoders

    @property
    def step(self) -> float:
        """Forward and backward."""
        return self.forward + self.backward


def attention(queries: float, keys: float, width: int) -> float:
    """The two products of attention: queries with keys, weights with values."""
    return 4 * queries * keys * width


def block(tokens: float, width: int, ratio: int, used: float | None = None) -> float:
    """A transformer block on `tokens`, of which only `used` are needed afterwards (keys and values need all)."""
    used = tokens if used is None else used
    keys_values = 2 * tokens * width * 2 * width
    return keys_values + used * 2 * width * width * (2 + 2 * ratio) + attention(used, tokens, width)


def decoder(task: str, config: PlainConfig, masked: float, queries: float) -> float:
    """One decoder, of which `masked` predictions are needed: only those go through its last block and its output.

    `queries` is the number of rows that the query projection takes.
    """
    width, ratio = config.decoder_width, config.mlp_ratio
    size = config.grid[0] * config.grid[1]
    context = config.keep + config.global_tokens
    first = size if config.decoder_depth else masked
    cross = 2 * context * config.width * width + 2 * context * width * 2 * width + attention(first, context, width)
    cross += 2 * (queries + first) * width * width + 2 * first * width * 2 * ratio * width
    blocks = [block(size, width, ratio)] * (config.decoder_depth - 1) + [block(size, width, ratio, used=masked)]
    output = 2 * masked * width * config.channels(task) * config.task_patch(task) ** 2
    return cross + sum(blocks[: config.decoder_depth]) + output


def step_flops(config: PlainConfig, *, least: bool) -> StepFlops:
    """One sample's forward and backward.

    With `least`, what the result needs: only the K kept tokens are projected and only masked patches are predicted,
    an equal share of every task being visible on average; the queries of masked positions are the same for all samples,
    so in a large batch their projection costs nothing. Without it, what the plain model does. A backward pass costs
    twice the forward pass, less the gradients of images, which nobody asks for.
    """
    size = config.grid[0] * config.grid[1]
    visible = config.keep / (size * len(config.inputs)) if least else 1.0
    inputs = {
        task: config.task_patch(task) ** 2 * (config.class_width if task == "semseg" else config.channels(task))
        for task in config.inputs
    }
    projections = {task: 2 * visible * size * values * config.width for task, values in inputs.items()}
    encoder = config.depth * block(config.keep + config.global_tokens, config.width, config.mlp_ratio)
    decoders = 0.0
    for task in config.outputs:
        seen = visible if BASE_TASK.get(task, task) in config.inputs else 0.0
        masked, queries = (size * (1 - seen), size * seen) if least else (size, size)
        decoders += decoder(task, config, masked, queries)
    projection = sum(projections.values())
    forward = projection + encoder + decoders
    images = sum(flops for task, flops in projections.items() if task != "semseg")
    return StepFlops(projection=projection, encoder=encoder, decoders=decoders, backward=2 * forward - images)
