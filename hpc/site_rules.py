"""What the keys of a site must say together: a container has an image, partitions of one list charge one account, time is left to train.

Each rule yields its faults as (key to blame, sentence); hpc.site adds the place that wrote the key. What a cluster allows is not known
here (hpc.limits asks it). One invariant: a rule looks at a Site and at nothing else.
"""

import re
from collections.abc import Iterator

from hpc.site_keys import Site

#: Beside signal_delay_s: Slurm sends its warning up to 60 s early, Python and torch take up to a minute to start, and a minute of work.
LEAST_TRAINING_S = 180

Fault = tuple[str, str]


def broken_rules(site: Site) -> list[Fault]:
    """(key, what is wrong and the fix) of everything that does not fit together."""
    return [*_no_time_to_train(site), *_container(site), *_accounts(site), *_words(site)]


def _no_time_to_train(site: Site) -> Iterator[Fault]:
    least = -(-(site.signal_delay_s + LEAST_TRAINING_S) // 60)
    if site.scheduler == "slurm" and site.walltime_min < least:
        key = "walltime_min" if "walltime_min" in site.places or "signal_delay_s" not in site.places else "signal_delay_s"
        yield (
            key,
            f"site.walltime_min: {site.walltime_min} leaves no time to train: start-up takes up to a minute, and Slurm may warn "
            f"{site.signal_delay_s} + 60 s before the end (signal_delay_s). Use {least} or more.",
        )


def _container(site: Site) -> Iterator[Fault]:
    if site.container and not site.image:
        yield "container", f"site.container: {site.container} needs an image. Add `image: /path/of/the/image.sif`."
    for key in ("image", "overlay", "binds"):
        if getattr(site, key) and not site.container:
            yield key, f"site.{key}: it is used by a container only, and none is named. Add `container: apptainer` or `singularity`."
    if site.overlay and re.search(r":(?!ro$)[^/:]*$", site.overlay):
        yield (
            "overlay",
            f"site.overlay: {site.overlay} asks for more than reading, and only one task could attach it. Leave out what follows `:`.",
        )
    for bind in site.binds:
        if "," in bind:
            yield "binds", f"site.binds: {bind!r} names several. Write one `- SOURCE:PLACE` each."


def _accounts(site: Site) -> Iterator[Fault]:
    charged = {name: site.partition_accounts.get(name, site.account) for name in site.partitions}
    if len(set(charged.values())) > 1:
        pairs = ", ".join(f"{name} ({account or 'none'})" for name, account in charged.items())
        first = next(iter(charged))
        yield (
            "partition",
            f"site.partition: one job is charged to one account, and these differ: {pairs}. Name one, e.g. `partition: {first}`.",
        )


def _words(site: Site) -> Iterator[Fault]:
    for key in ("modules", "partition"):
        value = getattr(site, key)
        for word in (value,) if isinstance(value, str) else value or ():
            if re.search(r"\s", word):
                yield key, f"site.{key}: {word!r} holds a space. Write one `- name` each."
    if site.mail and not re.fullmatch(r"[^\s,;@]+@[^\s,;@]+", site.mail):
        yield "mail", f"site.mail: {site.mail!r} is not one address. Write it as name@host."
    if site.mps_comment and isinstance(site.comment, str) and not re.search(r"=", site.comment):
        yield (
            "mps_comment",
            "site.mps_comment: it joins a comment of `word=value;word=value`, and the site's comment is none. Change one of them.",
        )
