"""Pages of the site from outside docs/: README, the changelog, a reference of each wing, the files that are linked.

A hook of mkdocs, see mkdocs.yml. The reference lists what the stubs name, in the words of the docstrings.
"""

import ast
import posixpath
import re
from pathlib import Path

from mkdocs.structure.files import File, Files


ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "hf_tl"
TITLES = {"README.md": "index.md", "CHANGELOG.md": "changelog.md"}
LINK = re.compile(r"(?<=\]\()[^)\s#:]+")  # to a file, without its heading


def public_names(stub: Path) -> dict[str, str]:
    """What a stub names, with the module that defines it: {"LoraConfig": "hf_tl.lora.config"}."""
    package = ".".join(stub.parent.relative_to(ROOT).parts)
    imports = [node for node in ast.parse(stub.read_text()).body if isinstance(node, ast.ImportFrom)]
    return {alias.asname or alias.name: f"{package}.{node.module}" for node in imports for alias in node.names}


def reference() -> dict[str, str]:
    """Name of each page -> its text: a wing's public names, and below "core" what comes from no wing."""
    wings = {path.parent.name: public_names(path) for path in sorted(PACKAGE.glob("*/__init__.pyi"))}
    core = {
        name: module
        for name, module in public_names(PACKAGE / "__init__.pyi").items()
        if module.removeprefix("hf_tl.") not in wings
    }
    return {name: _page(name, names) for name, names in {"core": core, **wings}.items()}


def _page(name: str, names: dict[str, str]) -> str:
    package = "hf_tl" if name == "core" else f"hf_tl.{name}"
    folder = PACKAGE if name == "core" else PACKAGE / name
    about = ast.get_docstring(ast.parse((folder / "__init__.py").read_text())) or ""
    entries = "\n\n".join(f"::: {module}.{public}" for public, module in names.items())
    return f"# {package}\n\n{about.splitlines()[0]}\n\n{entries}\n"


def on_files(files: Files, *, config) -> Files:
    """Adds the pages, and each file or folder outside docs/ that a page links."""
    texts = {ROOT / "docs" / page.src_uri: page.content_string for page in files.documentation_pages()}
    for source, title in TITLES.items():
        texts[ROOT / source] = (ROOT / source).read_text()
        files.append(File.generated(config, title, content=texts[ROOT / source]))
    for name, text in reference().items():
        files.append(File.generated(config, f"reference/{name}.md", content=text))
    linked = {_target(page, link) for page, text in texts.items() for link in LINK.findall(text)}
    for path in sorted(linked):
        name = _on_site(path)
        if path.is_dir():
            lines = [f"- [{file.name}]({path.name}/{file.name})" for file in sorted(path.glob("*.py"))]
            files.append(File.generated(config, name, content=f"# {path.name}\n\n" + "\n".join(lines) + "\n"))
            for file in sorted(path.glob("*.py")):
                files.append(File.generated(config, _on_site(file), abs_src_path=str(file)))
        elif name not in files.src_uris and path.is_file():
            files.append(File.generated(config, name, abs_src_path=str(path)))
    return files


def on_page_markdown(markdown: str, *, page, **_) -> str:
    """Links of the repository become links of the site, and snippets that go on from others are snippets there."""
    sources = {title: ROOT / source for source, title in TITLES.items()}
    source = sources.get(page.file.src_uri, ROOT / "docs" / page.file.src_uri)
    here = posixpath.dirname(page.file.src_uri)
    if page.file.src_uri.startswith(("reference/", "source/")):
        return markdown
    markdown = markdown.replace("```python continued\n", "```python\n")  # a word for the tests of the pages
    return LINK.sub(lambda link: posixpath.relpath(_on_site(_target(source, link[0])), here or "."), markdown)


def _target(page: Path, link: str) -> Path:
    """The file of the repository that a page links."""
    return (page.parent / link).resolve()


def _on_site(path: Path) -> str:
    """Where a file of the repository is on the site."""
    name = path.relative_to(ROOT).as_posix()
    if name.startswith("docs/"):
        return name.removeprefix("docs/")
    return TITLES.get(name) or f"source/{name}" + (".md" if path.is_dir() else "")
