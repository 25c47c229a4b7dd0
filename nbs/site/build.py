"""The site, from the notebooks, into _docs/: `make docs`. Quarto renders it where it is installed, else smalldocs (pure Python); pages and links are the same.

No cell is run and no module imported: the stored outputs are what the tests have seen, and signatures, parameters and sources are read from the cells.
Nothing is fetched by the finished pages: fonts come with the theme, the search index is a file, formulas are MathML.
"""
import ast
import html
import io
import re
import shutil
import subprocess
import sys
import tokenize
from pathlib import Path

import nbformat
import yaml
from nbformat.v4 import new_code_cell, new_markdown_cell, new_raw_cell

ROOT = Path(__file__).parents[2]
PROC, DOCS = ROOT/"_proc", ROOT/"_docs"
CONFIG = yaml.safe_load((ROOT/"_quarto.yml").read_text(encoding="utf-8"))
SOURCE = f"{CONFIG['website']['repo-url']}/blob/{CONFIG['website']['repo-branch']}"
SECTIONS = {"guides": "Guides", "tutorials": "Tutorials", "": "Chapters"}  # folders of nbs/, in the order of the sidebar


def directives(cell): return dict(re.findall(r"^#\|\s*([\w-]+)[:\s]*(.*?)\s*$", cell.source, re.M)) if cell.cell_type == "code" else {}
def without_directives(source): return re.sub(r"^#\|.*\n?", "", source, flags=re.M).strip("\n")
def page_name(path): return re.sub(r"^\d+_", "", path.stem)


def notebooks():
    "Every notebook of the site in reading order, with its page: the path under nbs/, the path under the site."
    order = yaml.safe_load((ROOT/"nbs"/"site"/"order.yml").read_text())
    for folder in SECTIONS:
        found = sorted(p for p in (ROOT/"nbs"/folder).glob("*.ipynb") if not p.name.startswith("_"))
        if folder: found.sort(key=lambda p: (order[folder].index(p.stem) if p.stem in order[folder] else 99, p.stem))
        yield from ((p, Path(folder)/page_name(p)) for p in found)


# ---- the API, read from the source

def comments(source):
    "line -> the comment on it."
    return {t.start[0]: t.string.lstrip("# ").rstrip() for t in tokenize.generate_tokens(io.StringIO(source).readline) if t.type == tokenize.COMMENT}


def parameters(node, source):
    "(name, type, default, docment) of a function's arguments, and of what it returns."
    said, lines, rows = comments(source), source.splitlines(), []
    a = node.args; names = a.posonlyargs + a.args
    defaults = [None] * (len(names) - len(a.defaults)) + list(a.defaults)
    every = [*zip(names, defaults), *([(a.vararg, None)] if a.vararg else []), *zip(a.kwonlyargs, a.kw_defaults), *([(a.kwarg, None)] if a.kwarg else [])]
    last = {}
    for arg, default in every: last[(default or arg.annotation or arg).end_lineno] = arg
    for arg, default in every:
        if arg.arg in ("self", "cls"): continue
        line = (default or arg.annotation or arg).end_lineno
        rows.append((arg.arg, ast.unparse(arg.annotation) if arg.annotation else "", ast.unparse(default) if default else "", said.get(line, "") if last[line] is arg else ""))
    body = node.body[0].lineno
    if node.returns: rows.append(("returns", ast.unparse(node.returns), "", next((said[n] for n in range(node.returns.lineno, body) if n in said), "")))
    return rows


def table(rows):
    if not any(doc for *_, doc in rows): return ""
    def cell(text, code=False): return f"`{t}`" if code and (t := text.replace("|", "\\|")) else plain(text.replace("|", "\\|"))
    return "\n\n| | type | default | |\n|---|---|---|---|\n" + "\n".join(f"| {'*returns*' if n == 'returns' else cell(n, True)} | {cell(t, True)} | {cell(d, True)} | {cell(doc)} |" for n, t, d, doc in rows)


def public(source):
    "(name, its kind, signature, docstring, parameters) of each public definition of a cell; `@patch`ed functions are methods of their class."
    for node in ast.parse(source).body:
        if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): continue
        maker = node if not isinstance(node, ast.ClassDef) else next((n for n in node.body if isinstance(n, ast.FunctionDef) and n.name == "__init__"), None)
        owner = ast.unparse(node.args.args[0].annotation).split("|")[0].strip() + "." if any(ast.unparse(d).startswith("patch") for d in node.decorator_list) and node.args.args and node.args.args[0].annotation else ""
        if node.name.startswith("_") or owner.startswith("_"): continue
        rows = parameters(maker, source) if maker else []
        fields = [n for n in node.body if isinstance(n, ast.AnnAssign)] if isinstance(node, ast.ClassDef) and not maker else []
        said = comments(source)
        rows += [(n.target.id, ast.unparse(n.annotation), ast.unparse(n.value) if n.value else "", said.get(n.end_lineno, "")) for n in fields]
        shown = ", ".join(n + (f"={d}" if d else "") for n, _, d, _ in rows if n != "returns")
        yield owner + node.name, "class" if isinstance(node, ast.ClassDef) else "method" if owner else "function", f"{owner}{node.name}({shown})", ast.get_docstring(node) or "", rows


def where(notebook):
    "The module that a notebook exports, and line numbers of its public names there."
    for cell in nbformat.read(notebook, 4).cells:
        if (module := directives(cell).get("default_exp")): break
    else: return None, {}
    path = ROOT/"vlm_agent"/f"{module}.py"; lines = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)): lines.setdefault(node.name, []).append(node.lineno)
    return module, lines


def symbols():
    "Public name -> (page, module, kind, first line of its docstring), in the order of the house."
    found = {}
    for path, page in notebooks():
        module, _ = where(path)
        for cell in nbformat.read(path, 4).cells:
            if {"export", "exports"} & set(directives(cell)):
                for name, kind, _, doc, _ in public(without_directives(cell.source)): found.setdefault(name, (page, module, kind, doc.split("\n")[0]))
    return found


# ---- pages

def plain(text): return "".join(p if i % 2 else p.replace("<", "&lt;").replace("$", "\\$") for i, p in enumerate(re.split(r"(`[^`]*`)", text)))  # a docstring is no HTML
def anchor(name): return name.replace("__", "-").lower().replace(".", "-")


def mathml(text):
    "Formulas between dollars as MathML, which browsers draw by themselves."
    if not re.search(r"(?<![\\$`\w])\$[^$\n`]+\$", text): return text
    from latex2mathml.converter import convert
    return re.sub(r"(`[^`]*`)|(?<![\\$\w])\$([^$\n`]+?)\$(?!\w)", lambda m: m[1] or convert(m[2]), text)


def linked(text, page, names, pages):
    "Links between notebooks become links between pages; a public name in back-ticks leads to where it is defined."
    up = "../" * (len(page.parts) - 1)
    def target(m):
        href, _, mark = m[1].partition("#")
        if re.match(r"[a-z]+:|#|$", m[1]): return m[0]
        at = ((ROOT/"nbs"/page).parent/href).resolve()
        if at in pages: return f"]({up}{pages[at]}.html{'#' + mark if mark else ''})"
        if at.is_relative_to(ROOT/"nbs") and at.suffix in (".png", ".svg", ".html", ".jpg"): return m[0]
        return f"]({SOURCE}/{at.relative_to(ROOT)})"
    def name(m):
        known = names.get(m[2].removesuffix("()"))
        return f"[`{m[2]}`]({'' if known[0] == page else up + str(known[0]) + '.html'}#{anchor(m[2].removesuffix('()'))})" if known and known[2] != "method" else m[0]
    parts = re.split(r"(^```.*?^```)", text, flags=re.S | re.M)
    for i in range(0, len(parts), 2):
        parts[i] = re.sub(r"\]\(([^)\s]+)\)", target, parts[i])
        parts[i] = "\n".join(l if l.startswith("#") else re.sub(r"(\[[^\]\n]*\]\([^)]*\))|(?<!`)`([\w.]+(?:\(\))?)`(?!`)", lambda m: m[1] or name(m), l) for l in parts[i].split("\n"))
        parts[i] = mathml(parts[i])
    return "".join(parts)


def pictures(outputs, alt):
    "Outputs as the page shows them: no widget states, pictures at the size they were made for, with a text for those who cannot see them."
    for o in outputs:
        data = o.get("data", {})
        if "application/vnd.jupyter.widget-view+json" in data: continue
        kind = next((k for k in ("image/png", "image/jpeg") if k in data), None)
        if kind and "text/html" not in data:
            width = o.metadata.get(kind, {}).get("width")
            o.data = {"text/html": f'<img class="img-fluid" alt="{html.escape(alt, quote=True)}"{f" width={width}" if width else ""} src="data:{kind};base64,{"".join(data[kind]).strip()}">'}
        yield o


def titled(cells):
    "The title and the description: the first heading and the quotation under it."
    m = re.match(r"# (.+?)\n+(?:> (.+?)(?:\n\n|\Z))?(.*)", cells[0].source if cells[0].cell_type == "markdown" else "", re.S)
    if not m: raise ValueError("a page begins with `# Title` and `> one line`")
    cells[0].source = m[3]
    plain = re.sub(r"[`*]|\[([^\]]*)\]\([^)]*\)", r"\1", (m[2] or "").replace("\n", " "))
    return m[1].replace("`", ""), plain


def processed(path, page, names, pages):
    "A notebook as the page shows it."
    nb = nbformat.read(path, 4)
    module, lines = where(path)
    cells = [c for c in nb.cells if c.source.strip() and not {"hide", "default_exp"} & set(directives(c))]
    title, description = titled(cells)
    out, heading = [], title
    for cell in cells:
        flags = directives(cell)
        if cell.cell_type != "code":
            heading = (re.findall(r"^#+ (.+)$", cell.source, re.M) or [heading])[-1]
            out.append(new_markdown_cell(linked(cell.source, page, names, pages))); continue
        source = without_directives(cell.source)
        if {"export", "exports"} & set(flags):
            for name, kind, signature, doc, rows in public(source):
                line = (lines.get(name.split(".")[-1]) or [1]); line = line.pop(0) if len(line) > 1 else line[0]
                out.append(new_markdown_cell(f"### {name} {{#{anchor(name)} .api}}\n\n::: {{.signature}}\n[{kind}, [source]({SOURCE}/vlm_agent/{module}.py#L{line})]{{.kind}}\n\n`{signature}`\n:::\n\n"
                                             + linked(plain(doc), page, names, pages) + table(rows)))
            fold = "export" in flags
            out.append(new_code_cell(("#| code-fold: true\n#| code-summary: \"source\"\n" if fold else "") + source))
        else:
            if "gpu" in flags: out.append(new_markdown_cell("*On a machine with a GPU:*"))
            out.append(new_code_cell(source, outputs=list(pictures(cell.outputs, f"{title}: {heading}"))))
    nb.cells = [new_raw_cell("---\n" + yaml.safe_dump({"title": title, "description": description}, allow_unicode=True) + "---"), *out]
    nb.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    for c in nb.cells: c.pop("id", None)
    nb.nbformat_minor = 4
    return nb, title


def api_page(names):
    "One line for every public name."
    out, module = ["---\ntitle: API\ndescription: Every public name, with its signature and source behind the link.\n---\n"], None
    for name, (page, m, kind, doc) in names.items():
        if m != module: out.append(f"\n## vlm_agent.{m}\n\n| | |\n|---|---|"); module = m
        out.append(f"| [`{name}`]({page}.html#{anchor(name)}) | {plain(doc).replace('|', chr(92) + '|')} |")
    return "\n".join(out) + "\n"


def write_project():
    "The Quarto project under _proc/: processed notebooks, pictures, and the one configuration with a sidebar."
    shutil.rmtree(PROC, ignore_errors=True); PROC.mkdir()
    names, pages = symbols(), {p.resolve(): page for p, page in notebooks()}
    contents = {folder: [] for folder in SECTIONS}
    for path, page in notebooks():
        nb, title = processed(path, page, names, pages)
        to = PROC/f"{page}.ipynb"; to.parent.mkdir(exist_ok=True, parents=True)
        nbformat.write(nb, to)
        if page != Path("index"): contents["" if page.parent == Path(".") else page.parts[0]].append({"text": title, "href": f"{page}.ipynb"})
    (PROC/"api.qmd").write_text(api_page(names), encoding="utf-8")
    shutil.copytree(ROOT/"nbs"/"images", PROC/"images")
    shutil.copy(ROOT/"nbs"/"site"/"style.css", PROC/"style.css")
    config = {k: v for k, v in CONFIG.items() if k != "metadata-files"}
    config["project"] = {**config["project"], "output-dir": "_site", "resources": ["images"]}; config["project"].pop("preview", None)
    config["website"]["sidebar"]["contents"] = [{"text": "Home", "href": "index.ipynb"}, *({"section": title, "contents": contents[f]} for f, title in SECTIONS.items()), {"text": "API", "href": "api.qmd"}]
    (PROC/"_quarto.yml").write_text(yaml.safe_dump(config, sort_keys=False, allow_unicode=True), encoding="utf-8")


def offline():
    "Themes import their fonts from the network; style.css names fonts that every system has."
    for path in (PROC/"_site").rglob("*.css"):
        css = path.read_text(encoding="utf-8")
        if "@import" in css: path.write_text(re.sub(r"@import\s*(url\([^)]*\)|\"[^\"]*\"|'[^']*')\s*;", "", css), encoding="utf-8")


def without_pictures():
    "A language model reads the Markdown copies of the pages: a picture there is its alt text."
    for path in (PROC/"_site").rglob("*.llms.md"): path.write_text(re.sub(r"data:image/[\w+]+;base64,[\w+/=]+", "", path.read_text(encoding="utf-8")), encoding="utf-8")


def build(quarto=shutil.which("quarto")):
    "Write the project, render it, and put it into _docs/."
    write_project()
    if quarto: subprocess.run([quarto, "render", str(PROC), "--no-execute"], check=True)
    else:
        import smalldocs.site
        for warning in smalldocs.site.build(PROC, quiet=True).warnings: print("warning:", warning, file=sys.stderr)
    offline(); without_pictures()
    shutil.rmtree(DOCS, ignore_errors=True); shutil.copytree(PROC/"_site", DOCS)
    print(f"{sum(1 for _ in DOCS.rglob('*.html'))} pages, {sum(p.stat().st_size for p in DOCS.rglob('*') if p.is_file()) / 2**20:.1f} MB in {DOCS.relative_to(ROOT)}/, made by {'Quarto' if quarto else 'smalldocs'}; to read them: python -m http.server -d _docs")


if __name__ == "__main__": build()
