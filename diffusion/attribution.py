"""Whose objects a network learnt from, and under which licence: the text that ships beside weights."""

from __future__ import annotations

from collections import defaultdict

from diffusion.field_bank import FieldBank
from diffusion.view_bank import ViewBank

LICENCES = {  # as sources write them -> where they are
    "CC0-1.0": "https://creativecommons.org/publicdomain/zero/1.0/",
    "CC-BY-3.0": "https://creativecommons.org/licenses/by/3.0/",
    "CC-BY-3.0-US": "https://creativecommons.org/licenses/by/3.0/us/",
    "CC-BY-4.0": "https://creativecommons.org/licenses/by/4.0/",
    "CC-BY-SA-4.0": "https://creativecommons.org/licenses/by-sa/4.0/",
    "CC-BY-ND-4.0": "https://creativecommons.org/licenses/by-nd/4.0/",
    "CC-BY-NC-4.0": "https://creativecommons.org/licenses/by-nc/4.0/",
    "CC-BY-NC-SA-4.0": "https://creativecommons.org/licenses/by-nc-sa/4.0/",
    "CC-BY-NC-ND-4.0": "https://creativecommons.org/licenses/by-nc-nd/4.0/",
}
MANY = 40  # objects whose names are no longer listed where no licence asks for them


def attribution(bank: FieldBank | ViewBank, treated: str = "fitted with Gaussians") -> str:
    """Markdown: the training objects of `bank` by source and licence, with their authors and names, and what became of them.

    Of many public-domain (CC0) objects by one author the count alone: other licences ask for the titles.
    """
    groups = defaultdict(lambda: defaultdict(list))
    for i, split in enumerate(bank.splits):
        if split == "train":
            groups[bank.sources[i], bank.licences[i]][bank.authors[i] or "unknown author"].append(bank.names[i])
    lines = [
        "# Attribution",
        "",
        "The networks in this folder learnt from the objects below. None of the objects is in the weights as a file; each was",
        f"merged to one mesh, its textures became vertex colours, and it was centred, scaled and {treated}.",
        "",
    ]
    for (source, licence), authors in sorted(groups.items()):
        count = sum(len(names) for names in authors.values())
        where = LICENCES.get(licence)
        lines += [f"## {source or 'Unnamed source'}", ""]
        lines += [f"{count} objects, {licence or 'no licence named'}{f' ({where})' if where else ''}", ""]
        for author, names in sorted(authors.items()):
            counted = len(names) > MANY and licence.startswith("CC0")
            shown = f"{len(names)} objects" if counted else ", ".join(sorted(names))
            lines.append(f"- {author}: {shown}")
        lines.append("")
    return "\n".join(lines)
