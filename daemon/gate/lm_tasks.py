"""Tasks of lm-evaluation-harness as suites of the gate (the optional `palorad[lm-eval]`).

The harness brings the questions, its filters and its metrics; palorad asks them through the same
server, in the same order and with the same stored answers as every other suite, so that candidate
and base stay paired item by item.
"""

from __future__ import annotations

import importlib
import random
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from daemon.gate.suites import BadSuite, PromptForm, Suite
from policies.gate.records import Role, SuiteItem

_FREE: Final = "generate_until"
_METRICS: Final = ("exact_match", "acc", "acc_norm", "pass@1", "em")


@dataclass(frozen=True, slots=True)
class TaskGrader:
    """One metric of a task behind one of its filters."""

    task: Any
    instances: Mapping[str, Any]
    pipeline: Any
    metric: str
    until: tuple[str, ...]

    def __call__(self, item: SuiteItem, output: str) -> bool:
        """Whether the harness counts this answer as right."""
        asked = copy(self.instances[item.id])
        ends = [at for stop in self.until if stop and (at := output.find(stop)) >= 0]
        asked.resps, asked.filtered_resps = [output[: min(ends)] if ends else output], {}
        self.pipeline.apply([asked])
        results = self.task.process_results(asked.doc, [asked.filtered_resps[self.pipeline.name]])
        return float(results[self.metric]) >= 1.0


def load_task(
    task: str,
    *,
    name: str,
    role: Role,
    form: PromptForm,
    max_tokens: int,
    filter_name: str | None = None,
    folder: Path | None = None,
) -> tuple[Suite, TaskGrader]:
    """A task as a suite and its grader; raises `BadSuite`.

    `folder` holds task files of your own. Only tasks that generate freely can be asked. Without
    `filter_name` the task's first filter counts.
    """
    where = f"suite {name!r} (lm-eval task {task!r})"
    found = _find(task, folder, where)
    instances = _instances(found, where)
    pipeline = _pipeline(found, filter_name, where)
    grader = TaskGrader(
        task=found,
        instances=instances,
        pipeline=pipeline,
        metric=_metric(found, where),
        until=_until(next(iter(instances.values()))),
    )
    suite = Suite(
        name=name,
        role=role,
        grader=f"lm-eval {task} {found.VERSION} {pipeline.name} {grader.metric}",
        form=form,
        max_tokens=max_tokens,
        items=tuple(
            SuiteItem(id=key, prompt=asked.args[0], answer=_shown(found.doc_to_target(asked.doc)))
            for key, asked in instances.items()
        ),
    )
    return suite, grader


def _find(task: str, folder: Path | None, where: str) -> Any:  # noqa: ANN401 - lm_eval has no types
    try:
        tasks = importlib.import_module("lm_eval.tasks")
    except ImportError as error:
        raise BadSuite(
            f"{where}: lm-evaluation-harness is not installed; pip install 'palorad[lm-eval]'"
        ) from error
    try:
        loaded = tasks.TaskManager(include_path=folder).load([task])["tasks"]
    except Exception as error:
        raise BadSuite(f"{where}: cannot be loaded: {error}") from error
    if len(loaded) != 1:
        raise BadSuite(f"{where}: is a group of {len(loaded)} tasks; name each as its own suite")
    return next(iter(loaded.values()))


def _instances(task: Any, where: str) -> dict[str, Any]:  # noqa: ANN401
    if task.OUTPUT_TYPE != _FREE:
        raise BadSuite(
            f"{where}: is a {task.OUTPUT_TYPE} task; the gate asks by free generation only, "
            f"so choose a {_FREE} one"
        )
    state = random.getstate()
    try:
        task.set_fewshot_seed(seed=0)
        task.build_all_requests()
    finally:
        random.setstate(state)
    instances = {str(asked.doc_id): asked for asked in task.instances}
    if not instances:
        raise BadSuite(f"{where}: has no questions")
    return instances


def _pipeline(task: Any, wanted: str | None, where: str) -> Any:  # noqa: ANN401
    known: Sequence[Any] = task._filters
    if wanted is None:
        return known[0]
    for pipeline in known:
        if pipeline.name == wanted:
            return pipeline
    names = ", ".join(pipeline.name for pipeline in known)
    raise BadSuite(f"{where}: has no filter {wanted!r} (known: {names})")


def _metric(task: Any, where: str) -> str:  # noqa: ANN401
    known = list(task.aggregation())
    for metric in _METRICS:
        if metric in known:
            return metric
    raise BadSuite(
        f"{where}: measures {', '.join(known)}; the gate needs right or wrong, "
        f"so one of {', '.join(_METRICS)}"
    )


def _until(asked: Any) -> tuple[str, ...]:  # noqa: ANN401
    until = asked.args[1].get("until", ())
    return (until,) if isinstance(until, str) else tuple(until)


def _shown(target: object) -> str:
    return target if isinstance(target, str) else str(target)
