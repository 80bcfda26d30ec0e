"""Pages of runs on texts: a table of proponents and opponents for each test text."""

from __future__ import annotations

from collections.abc import Mapping

from examples import gallery
from examples.texts import Text
from replay import Influence, Replay

SHOWN = 3  # proponents, and opponents, of a test text
Judgements = Mapping[str, tuple[float, bool]]  # loss, and whether the class is right


def split(texts: list[Text]) -> tuple[dict[str, Text], dict[str, Text]]:
    """Return training and test texts by name; every fifth is for the test."""
    named: dict[str, Text] = {}
    for text in texts:
        named.setdefault(text.name, text)
    train = {name: text for n, (name, text) in enumerate(named.items()) if n % 5}
    return train, {name: text for name, text in named.items() if name not in train}


def chosen_of(test: Mapping[str, Text], judgements: Judgements) -> list[str]:
    """Return a test text of each class: the hardest and a typical one, in turns."""
    chosen = []
    for n, label in enumerate(sorted({text.label for text in test.values()})):
        some = [name for name in judgements if test[name].label == label]
        some.sort(key=lambda name: judgements[name][0])
        chosen.append(some[len(some) // 2 if n % 2 else -1])
    return chosen


def quoted(text: Text) -> str:
    """Return a text as a cell of a table, its first 100 characters."""
    cut = text.text if len(text.text) <= 100 else text.text[:97] + "..."
    for sign in "&\\`*_|<>[]":
        cut = cut.replace(sign, f"&#{ord(sign)};")
    return cut


def rows_of(
    train: Mapping[str, Text], influence: Influence, name: str, k: int
) -> list[list[object]]:
    """Return the rows of a test text's table: proponents, then opponents."""
    rows: list[list[object]] = []
    for side in (influence.top, influence.bottom):
        for train_id, score in zip(*side(name, method="ideal", k=k), strict=True):
            found = train[str(train_id)]
            rows.append(
                [f"{score:+.3f}".replace("-", "−"), found.label, f"`{train_id}`", quoted(found)]
            )
    return rows


def early(run: Replay, influence: Influence, k: int) -> str:
    """Return how many of the strongest examples were in the first batch."""
    sides = (influence.top, influence.bottom)
    listed = {
        i for name in influence.test_ids for s in sides for i in s(name, method="ideal", k=k)[0]
    }
    first = listed & set(run.log.batch_ids(0))
    return (
        f"Of the {len(listed)} training texts below, {len(first)} were in the batch of the first "
        f"step; of all {len(influence.train_ids):,}, {len(set(run.log.batch_ids(0)))} were."
    )


def text_of(
    run: Replay,
    influence: Influence,
    sides: tuple[Mapping[str, Text], Mapping[str, Text]],
    judgements: Judgements,
    epochs: int,
) -> str:
    """Return the page's part: what was computed, and a table for each test text."""
    train, test = sides
    right = sum(found for _, found in judgements.values()) / len(judgements)
    terms = influence.completeness
    sums = {method: float(terms[method]["data"].mean()) for method in terms}
    sums["measured"] = float(terms["ideal"]["measured"].mean())
    shown = {name: gallery.written(value) for name, value in sums.items()}
    pearson = influence.agreement(progress=False).get(("tracin", "ideal"), "pearson")
    parts = [
        f"{len(train):,} training and {len(test):,} test texts, {epochs} epochs, "
        f"{len(influence.steps):,} steps of AdamW; {right:.0%} of the test texts are classified "
        "rightly.",
        f"Over {len(influence.test_ids)} test texts, all scores of `tracin` add up to "
        f"{shown['tracin']} nats on average and those of `ideal` to {shown['ideal']}; "
        f"{shown['measured']} were measured. Pearson's correlation of the two methods: median "
        f"{pearson.median:.3f}.",
        early(run, influence, SHOWN),
    ]
    for name in influence.test_ids:
        loss, found = judgements[str(name)]
        text = test[str(name)]
        verdict = "classified rightly" if found else "classified wrongly"
        parts.append(
            f"### `{name}`\n\n{text.label}, loss {loss:.3g}, {verdict}: *{quoted(text)}*\n\n"
            + gallery.table(
                ["nats", "class", "where", "text"], rows_of(train, influence, str(name), SHOWN)
            )
        )
    return "\n\n".join(parts)
