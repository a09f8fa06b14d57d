"""Mutants that ``run.py`` leaves out because they cannot matter, each with the reason."""

import re
from typing import NamedTuple


class Ignored(NamedTuple):
    """Mutants of one line that cannot matter: all of them, or those that turn it into ``mutated``.

    Lines are written without indentation and without comments.
    """

    source: str
    line: str
    reason: str
    mutated: str | None = None


def first_or_last(source: str, line: str) -> list[Ignored]:
    """Index -1 for index 0."""
    return [
        Ignored(source, line, "the axis has length 1", f"{line[: zero.start()]}(-1){line[zero.end() :]}")
        for zero in re.finditer(r"(?<=, )0\b", line)
    ]


IGNORED = (
    Ignored(
        "bench/metrics/__init__.py",
        "AT_ONCE, MOST_ELEMENTS = 500, 2**24",
        "the size of a chunk changes memory and speed, not results",
    ),
    Ignored("bench/metrics/__init__.py", "BLOCK, PARTS = 256, 16", "as above"),
    *(
        Ignored(
            "bench/metrics/__init__.py",
            "return max(1, min(AT_ONCE, MOST_ELEMENTS // samples))",
            "as above",
            f"return {mutated}",
        )
        for mutated in (
            "min(1, min(AT_ONCE, MOST_ELEMENTS // samples))",
            "max(2, min(AT_ONCE, MOST_ELEMENTS // samples))",
            "max(1, max(AT_ONCE, MOST_ELEMENTS // samples))",
            "max(1, min(AT_ONCE, MOST_ELEMENTS * samples))",
        )
    ),
    Ignored("bench/metrics/__init__.py", "@lru_cache(maxsize=4)", "changes memory and speed, not results"),
    *(
        Ignored(
            "bench/metrics/__init__.py",
            "low, high = 1 / (1 + np.exp(-np.clip([centre - reach, centre + reach], -700, 700)))",
            "any bound in the range of exp works; the result is 1 or below 1e-303",
            f"low, high = 1 / (1 + np.exp(-np.clip([centre - reach, centre + reach], {bounds})))",
        )
        for bounds in ("-699, 700", "-701, 700", "-700, 699", "-700, 701")
    ),
    Ignored(
        "bench/protocols.py",
        "for images, rows in zip(learnt_from, (learnt.in_validation, learnt.out_validation), strict=True):",
        "both always have two elements; strict is for readers",
    ),
    Ignored(
        "bench/protocols.py",
        "(tested if is_test else learnt).update((images.identity, int(row)) for row in images.base_index[rows])",
        "the intersection stays the same if the two sets swap names",
    ),
    *(
        entry
        for line in (
            "return statistics[:, 0, 0]",
            "columns = inside[:, 0, :]",
            "return (statistics[:, 0, :] - np.asarray(self.mean_)) * np.asarray(self.scale_)",
            "model = LedoitWolf().fit(inside[:, 0, :])",
            "centred = statistics[:, 0, :] - np.asarray(self.mean_)",
            "self.setting_ = max(range(inside.shape[1]), key=lambda s: separation(inside[:, s, 0], outside[:, s, 0], by))",
            "self._fit_columns(*(side[:, 0, :] for side in fit))",
            "standard = (statistics[:, 0, :] - np.asarray(self.mean_)) * np.asarray(self.scale_)",
            "columns = np.concatenate([side[:, 0, :] for side in fit])",
            "return (torch.from_numpy(statistics[:, 0, :]) - self.mean_.cpu()) * self.scale_.cpu()",
            "return F.linear(F.linear(columns, hidden, hidden_bias).relu(), output, output_bias)[:, 0]",
        )
        for entry in first_or_last("bench/heads.py", line)
    ),
    *(
        Ignored(
            "bench/heads.py",
            "return np.divide(1, spread, out=np.zeros_like(spread), where=spread > 1e-12 * np.abs(columns).max(0))",
            "any tolerance of about this size works, and a column within it has nearly equal values",
            f"return np.divide(1, spread, out=np.zeros_like(spread), where=spread > {slack})",
        )
        for slack in ("2e-12 * np.abs(columns).max(0)", "1e-12 * np.abs(columns).min(0)")
    ),
    Ignored(
        "bench/heads.py",
        "inside, outside = (np.concatenate(pair) for pair in zip(fit, choose, strict=True))",
        "both always have two elements; strict is for readers",
    ),
    Ignored("bench/heads.py", "for shape, bound in zip(shapes, bounds, strict=True)", "both have four elements"),
    *(
        Ignored("bench/heads.py", line, "a limit of the solver; fits end far from it")
        for line in ("TOLERANCE = 1e-10", "STEPS, HALVINGS = 100, 30", "ROUNDING = 1e-12")
    ),
    Ignored("bench/heads.py", 'with threadpool_limits(1, "blas"):', "changes speed, not results"),
    *(
        Ignored(
            "bench/heads.py",
            "for setting in range(fit[0].shape[1]):",
            "both sides have the same settings",
            f"for setting in range(fit[{side}].shape[1]):",
        )
        for side in ("1", "(-1)")
    ),
    Ignored(
        "bench/heads.py",
        "inside, outside = (self.score(side[:, setting : setting + 1, :]) for side in choose)",
        "score reads only the first setting that it gets",
        "inside, outside = (self.score(side[:, setting : setting + 2, :]) for side in choose)",
    ),
    *(
        Ignored(
            "bench/heads.py",
            'least, waited = float("inf"), 0',
            "the first loss is finite and sets it to 0",
            f'least, waited = float("inf"), {count}',
        )
        for count in ("1", "(-1)")
    ),
    Ignored(
        "bench/heads.py",
        "bounds = (shape[-1] ** -0.5 for shape in (shapes[0], shapes[0], shapes[2], shapes[2]))",
        "these shapes have two elements",
        "bounds = (shape[1] ** -0.5 for shape in (shapes[0], shapes[0], shapes[2], shapes[2]))",
    ),
    *(
        Ignored(
            "bench/heads.py",
            "for rows in torch.randperm(len(fit[0]), generator=random).split(self.batch_size):",
            "there are as many targets as rows",
            f"for rows in torch.randperm(len(fit[{part}]), generator=random).split(self.batch_size):",
        )
        for part in ("1", "(-1)")
    ),
    *(
        Ignored(
            "bench/heads.py",
            "going = np.abs(gradient).max(1) > TOLERANCE * used[left].sum(1)",
            "a limit of the solver: the last step leaves a gradient far below it",
            f"going = np.abs(gradient).max(1) {limit}",
        )
        for limit in (">= TOLERANCE * used[left].sum(1)", "> TOLERANCE / used[left].sum(1)")
    ),
    *(
        Ignored(
            "bench/heads.py",
            "short = after > before - 1e-4 * size * slope + ROUNDING * np.abs(before)",
            "only saves halvings where a step changes nothing but rounding",
            f"short = {mutated}",
        )
        for mutated in (
            "after >= before - 1e-4 * size * slope + ROUNDING * np.abs(before)",
            "after > before - 1e-4 * size * slope - ROUNDING * np.abs(before)",
        )
    ),
    Ignored("bench/heads.py", "size[short] /= 2", "any factor that shortens a step works", "size[short] /= 3"),
    Ignored(
        "bench/heads.py",
        "short = after > before - 1e-4 * size * slope + ROUNDING * np.abs(before)",
        "any small share of the expected decrease works",
        "short = after > before - 0.0002 * size * slope + ROUNDING * np.abs(before)",
    ),
    Ignored(
        "bench/heads.py",
        "short = after > before - 1e-4 * size * slope + ROUNDING * np.abs(before)",
        "any tolerance of about this size works",
        "short = after > before - 1e-4 * size * slope + ROUNDING / np.abs(before)",
    ),
    Ignored(
        "bench/heads.py",
        "mean_losses = (losses.sum(1) / (1 - used).sum(1)).reshape(len(STRENGTHS), -1).sum(1)",
        "NumPy infers the length for any negative number",
        "mean_losses = (losses.sum(1) / (1 - used).sum(1)).reshape(len(STRENGTHS), -2).sum(1)",
    ),
    *(
        Ignored(
            "bench/heads.py",
            "bounds = (shape[-1] ** -0.5 for shape in (shapes[0], shapes[0], shapes[2], shapes[2]))",
            "both shapes end in the width",
            f"bounds = (shape[-1] ** -0.5 for shape in (shapes[0], shapes[0], {shapes}))",
        )
        for shapes in ("shapes[1], shapes[2]", "shapes[2], shapes[1]")
    ),
    Ignored("bench/inference/thresholds.py", "BATCH_SIZE = 128", "scores do not depend on the batch size"),
    Ignored(
        "bench/inference/thresholds.py",
        "rank = int(np.floor(share * (count + 1) + 1e-9))",
        "any tolerance of about this size works",
        "rank = int(np.floor(share * (count + 1) + 2e-09))",
    ),
)
