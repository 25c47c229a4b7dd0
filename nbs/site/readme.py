"""README.md is nbs/index.ipynb, written as Markdown: `python nbs/site/readme.py`. (nbdev_readme does the same, but wants Quarto.)"""
import posixpath
import re
from pathlib import Path

import nbformat

ROOT = Path(__file__).parents[2]


def render(notebook=ROOT/"nbs"/"index.ipynb"):
    "The notebook's Markdown, code and text outputs, with links as seen from the root of the repository."
    parts = []
    for cell in nbformat.read(notebook, 4).cells:
        if cell.source.startswith("#| hide"): continue
        if cell.cell_type == "markdown": parts.append(re.sub(r"\]\((?!https?://|#)([^)]+)\)", lambda m: f"]({posixpath.normpath('nbs/' + m[1])})", cell.source))
        else:
            said = [o.get("text") or o.get("data", {}).get("text/plain", "") for o in cell.outputs]
            parts.append(f"```python\n{cell.source}\n```" + "".join(f"\n\n    {''.join(s).strip()}".replace("\n    \n", "\n\n") for s in said))
    return "<!-- made from nbs/index.ipynb by nbs/site/readme.py: edit the notebook -->\n\n" + "\n\n".join(parts) + "\n"


if __name__ == "__main__": (ROOT/"README.md").write_text(render(), encoding="utf-8")
